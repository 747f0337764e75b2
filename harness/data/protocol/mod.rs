//! Perplexity protocols: how documents become token streams, how a stream is cut into windows and
//! which positions are scored with which weight.
//!
//! The same model and text give numbers that differ by a third between conventions, so a
//! protocol has a versioned id that is part of every row. All of them are values of one struct,
//! [`Protocol`], read by one engine (`windows.rs`); a new one is an entry in [`PROTOCOLS`].

mod definition;
mod join;
mod registry;
mod wikitext;
mod windows;

pub use definition::{Bos, FirstScored, Protocol, SpecialTokens, Specials, Tail, Weighting};
pub use join::{Join, Reading};
pub use registry::{PROTOCOLS, ProtocolFamily};
pub use windows::{Length, Window};

use crate::{Error, Result};

impl Protocol {
    /// Reads an id of [`PROTOCOLS`]: `gptq-v1@512`, `hf-strided-v2@1024:512`. The window is
    /// `default_window` and the stride half the window where the id does not say.
    pub fn parse(id: &str, default_window: usize) -> Result<Self> {
        let (name, numbers) = match id.split_once('@') {
            None => (id, None),
            Some((name, numbers)) => (name, Some(numbers)),
        };
        let Some(family) = PROTOCOLS.iter().find(|f| f.values.name == name) else {
            let known: Vec<_> = PROTOCOLS.iter().map(|p| p.id).collect();
            return Err(Error::usage(
                format!("unknown perplexity protocol `{id}`"),
                format!("choose from: {} (quantbench list)", known.join(", ")),
            ));
        };
        let number = |digits: &str| {
            digits.parse::<usize>().map_err(|_| {
                Error::usage(
                    format!("protocol `{id}`: `{digits}` is not a number of tokens"),
                    format!("write it as {}, for example gptq-v1@512", family.id),
                )
            })
        };
        let (window, stride) = match numbers.map(|n| n.split_once(':').unwrap_or((n, ""))) {
            None => (default_window, None),
            Some((window, "")) => (number(window)?, None),
            Some((window, stride)) => (number(window)?, Some(number(stride)?)),
        };
        if stride.is_some() && !family.strided() {
            return Err(Error::usage(
                format!("protocol `{id}` states a stride, and `{name}` has none"),
                format!("write it as {}", family.id),
            ));
        }
        if window < family.least_window() {
            return Err(Error::usage(
                format!("protocol `{name}` with a window of {window} scores nothing"),
                format!(
                    "use a window of at least {} tokens (--window 512)",
                    family.least_window()
                ),
            ));
        }
        let stride = match family.strided() {
            true => stride.unwrap_or(window / 2),
            false => window,
        };
        if stride == 0 || stride > window {
            return Err(Error::usage(
                format!("protocol `{id}`: a stride of {stride} in windows of {window} tokens"),
                "use a stride of at least 1 and at most the window",
            ));
        }
        Ok(Protocol {
            window,
            stride,
            ..family.values
        })
    }

    /// The versioned id, with all its numbers.
    pub fn id(&self) -> String {
        let Protocol { window, stride, .. } = self;
        match self.family().is_some_and(ProtocolFamily::strided) {
            true => format!("{}@{window}:{stride}", self.name),
            false => format!("{}@{window}", self.name),
        }
    }

    /// Its entry among the registered ones.
    pub fn family(&self) -> Option<&'static ProtocolFamily> {
        PROTOCOLS.iter().find(|f| f.values.name == self.name)
    }

    /// Consecutive windows whose scores depend on each other, because they share tokens: 1 where
    /// windows are disjoint.
    pub fn block_windows(&self) -> usize {
        self.window.div_ceil(self.stride)
    }

    /// The token that stands before the stream's first, or at the start of every window.
    pub fn start_token(&self, special: &SpecialTokens) -> Option<u32> {
        match self.bos {
            Bos::Nothing => None,
            Bos::ReplaceFirst => special.added_bos,
            Bos::PrependDropLast => special.bos.filter(|_| special.requires_bos),
            Bos::LeadStream => special.bos.or(special.eos),
        }
    }

    /// Refuses a tokenizer for which the protocol is not defined.
    pub fn check(&self, special: &SpecialTokens) -> Result<()> {
        let refused = |what: &str| {
            Err(Error::usage(
                format!("protocol `{}` {what}", self.id()),
                "choose another with --protocol (quantbench list protocols)",
            ))
        };
        if self.bos == Bos::LeadStream && self.start_token(special).is_none() {
            return refused(
                "needs a token that begins or ends texts, and this tokenizer names neither",
            );
        }
        if self.specials == Specials::DefaultLiteral && special.added_eos.is_some() {
            return refused("is not defined for a tokenizer that adds a token after texts");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written() {
        for (given, id) in [
            ("gptq-v1", "gptq-v1@512"),
            ("gptq-v1@2048", "gptq-v1@2048"),
            ("hf-strided-v1", "hf-strided-v1@512:256"),
            ("hf-strided-v2@1024", "hf-strided-v2@1024:512"),
            ("hf-strided-exact@8:8", "hf-strided-exact@8:8"),
            ("llamacpp-v1@3", "llamacpp-v1@3"),
            ("lmeval-wikitext-v2", "lmeval-wikitext-v2@512"),
            ("exl2-ed-v1", "exl2-ed-v1@512"),
            ("exl3-v1", "exl3-v1@512"),
        ] {
            assert_eq!(Protocol::parse(given, 512).unwrap().id(), id);
            assert_eq!(Protocol::parse(id, 7).unwrap().id(), id);
        }
        for bad in [
            "gptq",
            "gptq-v1@",
            "gptq-v1@x",
            "gptq-v1@1",
            "gptq-v1@0",
            "gptq-v1@512:256",
            "gptq-v1@-5",
            "hf-strided-v2@8:0",
            "hf-strided-v2@8:9",
            "hf-strided-v2@8:x",
            "hf-strided-v2@:8",
            "llamacpp-v1@2",
            "",
            "@512",
        ] {
            let error = Protocol::parse(bad, 512).unwrap_err().to_string();
            assert!(error.contains('\n'), "{bad}: {error}");
        }
    }

    #[test]
    fn every_registered_protocol_is_whole() {
        let special = SpecialTokens {
            bos: Some(1),
            ..SpecialTokens::default()
        };
        for family in PROTOCOLS {
            let name = family.values.name;
            assert!(family.id.starts_with(&format!("{name}@N")), "{}", family.id);
            assert_eq!(
                PROTOCOLS.iter().filter(|f| f.values.name == name).count(),
                1
            );
            let version = name.rsplit('-').next().unwrap();
            assert!(version == "exact" || version.starts_with('v'), "{name}");
            assert!(!family.summary.is_empty() && family.about.ends_with('.'));
            assert!(!family.summary.ends_with('.'));

            let protocol = Protocol::parse(name, 8).unwrap();
            assert_eq!(Protocol::parse(&protocol.id(), 0).unwrap(), protocol);
            protocol.check(&special).unwrap();
            assert!(protocol.block_windows() >= 1);
            let least = Protocol::parse(name, family.least_window()).unwrap();
            assert!(Protocol::parse(name, family.least_window() - 1).is_err());
            for protocol in [protocol, least] {
                let windows = protocol.windows(&[Length::of(40)], &special);
                assert!(!windows.is_empty(), "{}", protocol.id());
                check(&protocol, &windows);
            }
        }
    }

    /// What holds of the windows of every protocol over one stream of 40 tokens.
    fn check(protocol: &Protocol, windows: &[Window]) {
        let id = protocol.id();
        let mut scored_to = 0;
        for w in windows {
            assert!(w.is_within(40), "{id}: {w:?}");
            assert!(w.fed_tokens() <= protocol.window, "{id}: {w:?}");
            // No token is scored twice, and order is that of the text.
            assert!(w.scored.start >= scored_to, "{id}: {w:?}");
            scored_to = w.scored.end;
            assert_eq!(w.rows().len(), w.scored.len());
            assert!(w.rows().end <= w.fed_tokens(), "{id}: {w:?}");
            assert!(w.weight >= 0.0 && w.nll_scale.is_finite());
        }
    }

    #[test]
    fn a_tokenizer_may_not_suit_a_protocol() {
        let nothing = SpecialTokens::default();
        let adds_eos = SpecialTokens {
            added_eos: Some(2),
            eos: Some(2),
            ..nothing
        };
        for family in PROTOCOLS {
            let protocol = Protocol::parse(family.values.name, 8).unwrap();
            let name = protocol.name;
            assert_eq!(
                protocol.check(&nothing).is_err(),
                name == "lmeval-wikitext-v2",
                "{name}"
            );
            assert_eq!(
                protocol.check(&adds_eos).is_err(),
                name == "llamacpp-v1",
                "{name}"
            );
        }
    }
}
