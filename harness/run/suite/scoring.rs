//! Evaluation texts as the protocols of a run read them: token streams, windows, and a record of
//! what was put where.

use super::Options;
use super::texts::{ids_sha256, spread};
use crate::data::Dataset;
use crate::data::protocol::{
    Bos, Length, PROTOCOLS, Protocol, Reading, SpecialTokens, Specials, Window,
};
use crate::measure::quality::{ScoredText, TokenStream};
use crate::model::config::Config;
use crate::record::run_info::{ProtocolInfo, ProtocolText, TokenizerInfo};
use crate::record::warning::Warning;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Tokens per window where nothing says otherwise.
const DEFAULT_WINDOW: usize = 512;

/// Architectures that are no use without a BOS, as exllamav2 lists them.
const REQUIRE_BOS: &[&str] = &["gemma", "gemma2", "gemma3"];

/// Everything that is to be scored.
#[derive(Default)]
pub(super) struct Scoring {
    /// Different ones only: protocols share them.
    pub(super) streams: Vec<TokenStream>,
    /// Every text under every protocol, those of the first protocol first.
    pub(super) texts: Vec<ScoredText>,
    pub(super) protocols: Vec<ProtocolInfo>,
    pub(super) tokenizer: TokenizerInfo,
    pub(super) warnings: Vec<Warning>,
}

/// The protocols that the options name, each once.
pub(super) fn protocols(options: &Options) -> Result<Vec<Protocol>> {
    let mut protocols: Vec<Protocol> = vec![];
    for id in &options.protocol {
        let protocol = Protocol::parse(id, DEFAULT_WINDOW)?;
        if !protocols.contains(&protocol) {
            protocols.push(protocol);
        }
    }
    if protocols.is_empty() {
        return Err(Error::usage(
            "no perplexity protocol",
            format!("name one, such as --protocol {}", PROTOCOLS[0].id),
        ));
    }
    Ok(protocols)
}

impl Scoring {
    /// Cuts `sets` into the windows of `protocols`, of each at most the limit in all.
    pub(super) fn new(
        sets: &[Dataset],
        protocols: &[Protocol],
        tokenizer: &Tokenizer,
        config: &Config,
        limit: Option<usize>,
    ) -> Result<Self> {
        let special = special_tokens(tokenizer, config);
        let mut scoring = Scoring {
            tokenizer: TokenizerInfo {
                added_bos_id: special.added_bos,
                added_eos_id: special.added_eos,
                bos_id: special.bos,
                eos_id: special.eos,
            },
            warnings: disagreement(tokenizer).into_iter().collect(),
            ..Scoring::default()
        };
        for protocol in protocols {
            protocol.check(&special)?;
            scoring.add(sets, protocol, tokenizer, &special, limit)?;
        }
        Ok(scoring)
    }

    /// Adds every text under one protocol.
    fn add(
        &mut self,
        sets: &[Dataset],
        protocol: &Protocol,
        tokenizer: &Tokenizer,
        special: &SpecialTokens,
        limit: Option<usize>,
    ) -> Result<()> {
        let id = protocol.id();
        let mut infos = vec![];
        let mut windows: Vec<Vec<Window>> = vec![];
        for set in sets {
            let name = &set.manifest.name;
            let (indices, words) =
                self.tokenize(set.readings(protocol.join), protocol.specials, tokenizer)?;
            let streams = || indices.iter().map(|i| &self.streams[*i]);
            let lengths: Vec<Length> = streams()
                .zip(words)
                .map(|(s, words)| Length {
                    tokens: s.ids.len(),
                    words,
                })
                .collect();
            let tokens: usize = lengths.iter().map(|l| l.tokens).sum();
            let mut cut = protocol.windows(&lengths, special);
            cut.truncate(set.manifest.take_windows.unwrap_or(usize::MAX));
            if cut.is_empty() {
                self.warnings.push(Warning::ShortText {
                    dataset: name.clone(),
                    tokens: tokens as u64,
                    windows: protocol.least_windows as u64,
                    window_tokens: protocol.window as u64,
                    protocol: id.clone(),
                });
            }
            infos.push(ProtocolText {
                name: name.clone(),
                streams: lengths.len() as u64,
                tokens: tokens as u64,
                windows: 0,
                ids_sha256: ids_sha256(streams().flat_map(|s| &s.ids)),
            });
            for window in &mut cut {
                window.stream = indices[window.stream];
            }
            windows.push(cut);
        }
        if windows.iter().all(Vec::is_empty) {
            return Err(no_window(protocol, &infos));
        }
        let available: Vec<usize> = windows.iter().map(Vec::len).collect();
        let taken = spread(&available, limit);
        for ((mut windows, taken), info) in windows.into_iter().zip(taken).zip(&mut infos) {
            windows.truncate(taken);
            info.windows = taken as u64;
            let twice = self.begin_with_two(&windows, special.bos);
            if twice > 0 {
                self.warnings.push(Warning::TwoBos {
                    dataset: info.name.clone(),
                    windows: twice as u64,
                    id: special.bos.unwrap_or_default(),
                    protocol: id.clone(),
                });
            }
            self.texts.push(ScoredText {
                protocol: id.clone(),
                windows,
            });
        }
        self.protocols.push(described(protocol, special, infos));
        Ok(())
    }

    /// Tokenizes what a protocol reads of a set: the indices of the streams, and the words of the
    /// text behind each.
    fn tokenize(
        &mut self,
        readings: Vec<Reading>,
        specials: Specials,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<usize>, Vec<u64>)> {
        let (mut indices, mut words) = (vec![], vec![]);
        for reading in readings {
            let stream = token_stream(&reading, specials, tokenizer)?;
            let known = self.streams.iter().position(|s| *s == stream);
            indices.push(known.unwrap_or(self.streams.len()));
            if known.is_none() {
                self.streams.push(stream);
            }
            words.push(reading.words);
        }
        Ok((indices, words))
    }

    /// How many windows feed the token twice at their start.
    fn begin_with_two(&self, windows: &[Window], bos: Option<u32>) -> usize {
        let Some(bos) = bos else { return 0 };
        let starts_with_two = |w: &&Window| {
            let inputs = w.inputs(&self.streams[w.stream].ids);
            inputs.starts_with(&[bos, bos])
        };
        windows.iter().filter(starts_with_two).count()
    }

    /// All ids of the first text that has windows: the speed test's prompts are cut from them.
    pub(super) fn prompts(&self) -> Vec<u32> {
        let text = self.texts.iter().find(|t| !t.windows.is_empty());
        let mut used: Vec<usize> =
            text.map_or_else(Vec::new, |t| t.windows.iter().map(|w| w.stream).collect());
        used.dedup();
        used.iter()
            .flat_map(|s| self.streams[*s].ids.clone())
            .collect()
    }

    /// Windows in all, every protocol's counted.
    pub(super) fn windows(&self) -> usize {
        self.texts.iter().map(|t| t.windows.len()).sum()
    }
}

fn special_tokens(tokenizer: &Tokenizer, config: &Config) -> SpecialTokens {
    let declared = tokenizer.declared();
    SpecialTokens {
        added_bos: tokenizer.bos(),
        added_eos: tokenizer.eos(),
        bos: declared.bos.or(tokenizer.bos()),
        eos: declared.eos.or(tokenizer.eos()),
        requires_bos: REQUIRE_BOS.contains(&config.architecture.as_str()),
    }
}

/// A doubt where the files beside the tokenizer say something else than it does.
fn disagreement(tokenizer: &Tokenizer) -> Option<Warning> {
    let declared = tokenizer.declared().adds_bos?;
    (declared != tokenizer.bos().is_some()).then_some(Warning::BosDisagrees { declared })
}

fn token_stream(
    reading: &Reading,
    specials: Specials,
    tokenizer: &Tokenizer,
) -> Result<TokenStream> {
    let text = &reading.text;
    let encoding = match specials {
        Specials::Default => tokenizer.encode(text),
        Specials::DefaultLiteral => tokenizer.encode_literal(text),
        Specials::None => tokenizer.encode_bare(text),
    }?;
    // The bytes of the text as it was read: detokenizing took some away.
    let (read, tokenized) = (u128::from(reading.bytes), text.len().max(1) as u128);
    let mut reached = 0;
    let bytes = encoding.ends.iter().map(|end| {
        let before = reached;
        reached = *end as u128 * read / tokenized;
        (reached - before) as u32
    });
    Ok(TokenStream {
        bytes: bytes.collect(),
        ids: encoding.ids,
    })
}

fn no_window(protocol: &Protocol, infos: &[ProtocolText]) -> Error {
    let texts: Vec<String> = infos
        .iter()
        .map(|t| format!("{}: {} tokens", t.name, t.tokens))
        .collect();
    let windows = match protocol.least_windows {
        1 => "a window".to_string(),
        n => format!("{n} windows"),
    };
    Error::usage(
        format!(
            "no evaluation text fills {windows} of {} tokens under {} ({})",
            protocol.window,
            protocol.id(),
            texts.join(", ")
        ),
        "use a longer text (--datasets) or a shorter window (--window)",
    )
}

/// What `run.json` says of a protocol.
fn described(
    protocol: &Protocol,
    special: &SpecialTokens,
    texts: Vec<ProtocolText>,
) -> ProtocolInfo {
    let start = protocol.start_token(special);
    let added = |id: Option<u32>| id.filter(|_| protocol.specials != Specials::None);
    ProtocolInfo {
        id: protocol.id(),
        about: protocol.family().map_or("", |f| f.about).into(),
        rules: match serde_json::to_value(protocol) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        },
        block_windows: protocol.block_windows() as u64,
        stream_start_id: added(special.added_bos),
        stream_end_id: added(special.added_eos),
        window_start_id: start,
        window_start: match (protocol.bos, start) {
            (_, None) | (Bos::Nothing, _) => "",
            (Bos::ReplaceFirst, _) => "in place of the first token of every window",
            (Bos::PrependDropLast, _) => "before every window, whose last token is dropped",
            (Bos::LeadStream, _) => "before the first window of every stream",
        }
        .into(),
        texts,
    }
}
