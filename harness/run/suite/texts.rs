//! Texts as they are used: tokenized, cut into windows, limited.

use super::Options;
use super::choices::{self, ChoiceSet};
use crate::data::protocol::Protocol;
use crate::data::{self, Dataset, Kind};
use crate::hash::sha256;
use crate::model::config::Config;
use crate::model::tokenizer::Tokenizer;
use crate::report::record::TextInfo;
use crate::{Error, Result};

/// All texts of a run.
pub(super) struct Texts {
    pub(super) evaluation: Vec<Text>,
    pub(super) calibration: Vec<Text>,
    pub(super) choices: Vec<ChoiceSet>,
    /// Ids that the speed test's prompts are cut from.
    pub(super) prompts: Vec<u32>,
    pub(super) tokenizer_sha256: String,
}

impl Texts {
    /// Reads and tokenizes what the options name.
    pub(super) fn read(options: &Options, config: &Config, protocol: &Protocol) -> Result<Self> {
        let tokenizer = Tokenizer::load(options.model.as_deref(), options.tokenizer.as_deref())?;
        tokenizer.check(config)?;
        let read = |names: &[String], kind, window| -> Result<Vec<Text>> {
            data::select(names, kind)?
                .into_iter()
                .map(|set| Text::new(set, &tokenizer, window))
                .collect()
        };
        let mut evaluation = read(&options.datasets, Kind::Evaluation, protocol.window)?;
        let Some(first) = evaluation.iter().find(|t| t.info.windows > 0) else {
            return Err(Error::usage(
                format!(
                    "no evaluation text fills a window of {} tokens ({})",
                    protocol.window,
                    evaluation
                        .iter()
                        .map(|t| format!("{}: {} tokens", t.info.name, t.info.tokens))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                "use a longer text (--datasets) or a shorter window (--window)",
            ));
        };
        let prompts = first.ids.clone();
        spread(&mut evaluation, options.limit);
        let mut calibration = read(&options.calibration, Kind::Calibration, CALIBRATION_WINDOW)?;
        spread(&mut calibration, options.calibration_limit);
        refuse_shared_texts(&evaluation, &calibration)?;
        Ok(Texts {
            choices: choices::read(options, &tokenizer, config)?,
            evaluation,
            calibration,
            prompts,
            tokenizer_sha256: tokenizer.sha256().into(),
        })
    }

    /// No text at all: a model without a tokenizer, whose prompts are these ids.
    pub(super) fn none(prompts: Vec<u32>) -> Self {
        Texts {
            evaluation: vec![],
            calibration: vec![],
            choices: vec![],
            prompts,
            tokenizer_sha256: String::new(),
        }
    }
}

/// A text with its tokens and the windows that will be used.
pub(super) struct Text {
    pub(super) info: TextInfo,
    pub(super) ids: Vec<u32>,
    pub(super) bytes: Vec<u32>,
    pub(super) warnings: Vec<String>,
}

impl Text {
    /// Tokenizes a set and cuts it into windows of `window` tokens.
    pub(super) fn new(set: Dataset, tokenizer: &Tokenizer, window: usize) -> Result<Self> {
        // As the code of GPTQ and AWQ does, unless the set's definition says otherwise.
        let separator = set.manifest.separator.as_deref().unwrap_or("\n\n");
        let text = set.documents().join(separator);
        let encoding = tokenizer.encode(&text)?;
        let bytes: Vec<u32> = (0..encoding.ids.len())
            .map(|i| encoding.bytes(i..i + 1) as u32)
            .collect();
        let id_bytes: Vec<u8> = encoding.ids.iter().flat_map(|i| i.to_le_bytes()).collect();
        let mut warnings = set.warnings();
        let windows = encoding.ids.len() / window;
        let windows = windows.min(set.manifest.take_windows.unwrap_or(windows));
        if windows == 0 {
            warnings.push(format!(
                "dataset `{}` has {} tokens, fewer than a window of {window}: not used",
                set.manifest.name,
                encoding.ids.len()
            ));
        }
        let manifest = set.manifest;
        Ok(Text {
            info: TextInfo {
                name: manifest.name,
                kind: manifest.kind.to_string(),
                title: manifest.title,
                file: manifest.file,
                licence: manifest.licence,
                sha256: manifest.sha256,
                bytes: set.text.len() as u64,
                tokens: encoding.ids.len() as u64,
                windows: windows as u64,
                ids_sha256: sha256([id_bytes.as_slice()]),
            },
            ids: encoding.ids,
            bytes,
            warnings,
        })
    }
}

/// Reduces the windows of the texts to `limit` in all, as evenly as they allow.
fn spread(texts: &mut [Text], limit: Option<usize>) {
    let Some(limit) = limit else { return };
    let mut taken = vec![0; texts.len()];
    let mut left = limit as u64;
    while left > 0 {
        let before = left;
        for (taken, text) in taken.iter_mut().zip(texts.iter()) {
            if left > 0 && *taken < text.info.windows {
                *taken += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    for (taken, text) in taken.into_iter().zip(texts) {
        text.info.windows = taken;
    }
}

/// Tokens per calibration window.
pub const CALIBRATION_WINDOW: usize = 512;

/// Token ids of all windows, in the order of the texts.
pub(super) fn windows_of(texts: &[Text]) -> Vec<Vec<u32>> {
    texts
        .iter()
        .flat_map(|t| {
            t.ids
                .chunks_exact(CALIBRATION_WINDOW)
                .take(t.info.windows as usize)
        })
        .map(<[u32]>::to_vec)
        .collect()
}

/// A method that has seen the evaluation text would look better than it is.
fn refuse_shared_texts(evaluation: &[Text], calibration: &[Text]) -> Result<()> {
    for e in evaluation {
        if let Some(c) = calibration.iter().find(|c| c.info.sha256 == e.info.sha256) {
            return Err(Error::usage(
                format!(
                    "`{}` is asked for as evaluation and `{}` as calibration, and they are one text",
                    e.info.name, c.info.name
                ),
                "calibrate on another text (--calibration)",
            ));
        }
    }
    Ok(())
}
