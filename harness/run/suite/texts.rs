//! Texts as they are used: read, tokenized, cut into windows, limited.

use super::Options;
use super::choices::{self, ChoiceSet};
use super::scoring::Scoring;
use crate::data::protocol::{Join, Protocol};
use crate::data::{self, Dataset, Kind};
use crate::hash::sha256;
use crate::model::config::Config;
use crate::record::run_info::{ProtocolText, TextInfo};
use crate::record::warning::Warning;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// All texts of a run.
pub(super) struct Texts {
    /// As the first protocol uses them.
    pub(super) evaluation: Vec<TextInfo>,
    pub(super) scoring: Scoring,
    pub(super) calibration: Vec<Calibration>,
    pub(super) choices: Vec<ChoiceSet>,
    /// Ids that the speed test's prompts are cut from.
    pub(super) prompts: Vec<u32>,
    pub(super) tokenizer_sha256: String,
    pub(super) warnings: Vec<Warning>,
}

/// A calibration text with its tokens.
pub(super) struct Calibration {
    pub(super) info: TextInfo,
    ids: Vec<u32>,
}

impl Texts {
    /// Reads and tokenizes what the options name.
    pub(super) fn read(options: &Options, config: &Config, protocols: &[Protocol]) -> Result<Self> {
        let tokenizer = Tokenizer::load(options.model.as_deref(), options.tokenizer.as_deref())?;
        tokenizer.check(config)?;
        let sets = data::select(&options.datasets, Kind::Evaluation)?;
        let scoring = Scoring::new(&sets, protocols, &tokenizer, config, options.limit)?;
        let of_sets = sets.iter().flat_map(Dataset::warnings);
        let mut warnings: Vec<Warning> = of_sets.map(|words| Warning::Text { words }).collect();
        warnings.extend_from_slice(&scoring.warnings);
        let evaluation: Vec<TextInfo> = sets
            .iter()
            .zip(&scoring.protocols[0].texts)
            .map(|(set, used)| text_info(set, used))
            .collect();
        let calibration = calibration(options, &tokenizer)?;
        refuse_shared_texts(&evaluation, &calibration)?;
        Ok(Texts {
            prompts: scoring.prompts(),
            choices: choices::read(options, &tokenizer, config)?,
            evaluation,
            scoring,
            calibration,
            tokenizer_sha256: tokenizer.sha256().into(),
            warnings,
        })
    }

    /// No text at all: a model without a tokenizer, whose prompts are these ids.
    pub(super) fn none(prompts: Vec<u32>) -> Self {
        Texts {
            evaluation: vec![],
            scoring: Scoring::default(),
            calibration: vec![],
            choices: vec![],
            prompts,
            tokenizer_sha256: String::new(),
            warnings: vec![],
        }
    }
}

/// SHA-256 of token ids, each as four bytes, lowest first.
pub(super) fn ids_sha256<'a>(ids: impl Iterator<Item = &'a u32>) -> String {
    let bytes: Vec<u8> = ids.flat_map(|id| id.to_le_bytes()).collect();
    sha256([bytes.as_slice()])
}

pub(super) fn text_info(set: &Dataset, used: &ProtocolText) -> TextInfo {
    let manifest = set.manifest.clone();
    TextInfo {
        name: manifest.name,
        kind: manifest.kind.to_string(),
        title: manifest.title,
        file: manifest.file,
        licence: manifest.licence,
        sha256: manifest.sha256,
        bytes: set.text.len() as u64,
        tokens: used.tokens,
        windows: used.windows,
        ids_sha256: used.ids_sha256.clone(),
    }
}

/// Calibration texts, their windows spread evenly where they are limited.
fn calibration(options: &Options, tokenizer: &Tokenizer) -> Result<Vec<Calibration>> {
    let mut texts = vec![];
    for set in data::select(&options.calibration, Kind::Calibration)? {
        let mut ids = vec![];
        for reading in set.readings(Join::Paragraphs) {
            ids.extend(tokenizer.encode(&reading.text)?.ids);
        }
        let used = ProtocolText {
            tokens: ids.len() as u64,
            ids_sha256: ids_sha256(ids.iter()),
            ..ProtocolText::default()
        };
        texts.push(Calibration {
            info: text_info(&set, &used),
            ids,
        });
    }
    let available: Vec<usize> = texts
        .iter()
        .map(|t| t.ids.len() / CALIBRATION_WINDOW)
        .collect();
    let taken = spread(&available, options.calibration_limit);
    for (text, taken) in texts.iter_mut().zip(taken) {
        text.info.windows = taken as u64;
    }
    Ok(texts)
}

/// How many windows of each text to use: all, or `limit` in all, as evenly as they allow.
pub(super) fn spread(available: &[usize], limit: Option<usize>) -> Vec<usize> {
    let Some(limit) = limit else {
        return available.to_vec();
    };
    let mut taken = vec![0; available.len()];
    let mut left = limit;
    while left > 0 {
        let before = left;
        for (taken, available) in taken.iter_mut().zip(available) {
            if left > 0 && *taken < *available {
                *taken += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    taken
}

/// Tokens per calibration window.
pub const CALIBRATION_WINDOW: usize = 512;

/// Token ids of all windows, in the order of the texts.
pub(super) fn windows_of(texts: &[Calibration]) -> Vec<Vec<u32>> {
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
fn refuse_shared_texts(evaluation: &[TextInfo], calibration: &[Calibration]) -> Result<()> {
    for e in evaluation {
        if let Some(c) = calibration.iter().find(|c| c.info.sha256 == e.sha256) {
            return Err(Error::usage(
                format!(
                    "`{}` is asked for as evaluation and `{}` as calibration, and they are one text",
                    e.name, c.info.name
                ),
                "calibrate on another text (--calibration)",
            ));
        }
    }
    Ok(())
}
