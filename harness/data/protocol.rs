//! Perplexity protocols: how a token stream is cut into windows and which positions are scored.
//!
//! The same model and text give numbers that differ by a third between conventions, so a
//! protocol has a versioned id that is part of every row.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `gptq-v1@N`, the convention of the GPTQ and AWQ papers' code: the text's ids (with the
/// tokenizer's default special tokens) cut into disjoint windows of N, each run with a fresh
/// cache; tokens 1..N of every window are scored, the tail that fills no window is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// Tokens per window, at least 2.
    pub window: usize,
}

/// One forward pass and what of it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Positions of the token stream that are fed.
    pub tokens: Range<usize>,
    /// Positions of the token stream whose prediction is scored.
    pub scored: Range<usize>,
}

/// A protocol family, for `list`.
pub struct ProtocolFamily {
    pub id: &'static str,
    pub summary: &'static str,
}

pub const PROTOCOLS: &[ProtocolFamily] = &[ProtocolFamily {
    id: "gptq-v1@N",
    summary: "disjoint windows of N tokens, tokens 1..N of each scored, tail dropped (GPTQ, AWQ)",
}];

impl Protocol {
    /// Reads `gptq-v1@512`, or `gptq-v1` with `default_window`.
    pub fn parse(id: &str, default_window: usize) -> Result<Self> {
        let (family, window) = match id.split_once('@') {
            None => (id, default_window),
            Some((family, n)) => (
                family,
                n.parse().map_err(|_| {
                    Error::usage(
                        format!("protocol `{id}`: `{n}` is not a number of tokens"),
                        "write for example gptq-v1@512",
                    )
                })?,
            ),
        };
        if family != "gptq-v1" {
            let known: Vec<_> = PROTOCOLS.iter().map(|p| p.id).collect();
            return Err(Error::usage(
                format!("unknown perplexity protocol `{id}`"),
                format!("choose from: {} (quantbench list)", known.join(", ")),
            ));
        }
        if window < 2 {
            return Err(Error::usage(
                format!("protocol `{family}` with a window of {window} scores nothing"),
                "use a window of at least 2 tokens (--window 512)",
            ));
        }
        Ok(Protocol { window })
    }

    /// The versioned id.
    pub fn id(&self) -> String {
        format!("gptq-v1@{}", self.window)
    }

    /// Windows over a stream of `tokens` ids.
    pub fn windows(&self, tokens: usize) -> Vec<Window> {
        (0..tokens / self.window)
            .map(|w| {
                let start = w * self.window;
                let end = start + self.window;
                Window {
                    tokens: start..end,
                    scored: start + 1..end,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scored_positions_equal_a_list_written_by_hand() {
        let protocol = Protocol::parse("gptq-v1@4", 512).unwrap();
        let scored: Vec<Vec<usize>> = protocol
            .windows(11)
            .into_iter()
            .map(|w| w.scored.collect())
            .collect();
        assert_eq!(scored, [[1, 2, 3], [5, 6, 7]]);
        let fed: Vec<_> = protocol.windows(11).into_iter().map(|w| w.tokens).collect();
        assert_eq!(fed, [0..4, 4..8]);
        assert!(protocol.windows(3).is_empty());
        assert_eq!(protocol.windows(4).len(), 1);
    }

    #[test]
    fn ids_are_read_and_written() {
        assert_eq!(Protocol::parse("gptq-v1", 512).unwrap().id(), "gptq-v1@512");
        assert_eq!(
            Protocol::parse("gptq-v1@2048", 512).unwrap().id(),
            "gptq-v1@2048"
        );
        for bad in [
            "gptq",
            "gptq-v1@",
            "gptq-v1@x",
            "gptq-v1@1",
            "gptq-v1@0",
            "",
        ] {
            assert!(Protocol::parse(bad, 512).is_err(), "{bad}");
        }
    }
}
