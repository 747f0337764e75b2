//! Multiple-choice sets as they are used: tokenized, limited, and what each precision makes of
//! them.

use super::cell::Cell;
use super::texts::{ids_sha256, text_info};
use super::{Options, Suite};
use crate::data::choices::{Question, questions};
use crate::data::{self, Dataset, Kind};
use crate::measure::choices::{Accuracy, Continuation, Item, Per, chosen};
use crate::model::config::Config;
use crate::record::rows::ChoiceRow;
use crate::record::run_info::{ProtocolText, TextInfo};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The word that leaves multiple choice out.
pub(super) const NONE: &str = "none";

/// A set and the items of it that will be used.
pub(super) struct ChoiceSet {
    pub(super) info: TextInfo,
    pub(super) items: Vec<Item>,
}

/// Reads and tokenizes the sets that the options name.
pub(super) fn read(
    options: &Options,
    tokenizer: &Tokenizer,
    config: &Config,
) -> Result<Vec<ChoiceSet>> {
    if options.choices == [NONE] {
        return Ok(vec![]);
    }
    let mut sets = data::select(&options.choices, Kind::Choices)?
        .iter()
        .map(|set| ChoiceSet::new(set, tokenizer, config))
        .collect::<Result<Vec<_>>>()?;
    if let Some(limit) = options.choices_limit {
        let all: usize = sets.iter().map(|set| set.items.len()).sum();
        let limit = limit.min(all);
        let mut i = 0;
        for set in &mut sets {
            // Spread over each set: its items may stand in the order of their tasks.
            set.items.retain(|_| {
                i += 1;
                (i - 1) * limit / all != i * limit / all
            });
        }
        sets.retain(|set| !set.items.is_empty());
    }
    Ok(sets)
}

/// The items of all sets, one set after the other.
pub(super) fn items(sets: &[ChoiceSet]) -> Vec<Item> {
    sets.iter().flat_map(|set| set.items.clone()).collect()
}

impl ChoiceSet {
    fn new(set: &Dataset, tokenizer: &Tokenizer, config: &Config) -> Result<Self> {
        let items = questions(set)?
            .iter()
            .map(|question| {
                item(question, tokenizer)?
                    .and_then(
                        |item| match item.longest() <= config.max_position_embeddings {
                            true => Ok(item),
                            false => Err(format!(
                                "expected at most the model's {} tokens, found {}",
                                config.max_position_embeddings,
                                item.longest()
                            )),
                        },
                    )
                    .map_err(|what| {
                        Error::file(
                            &set.path,
                            format!("line {}: {what}", question.line),
                            "Correct the item, or leave it out.",
                        )
                    })
            })
            .collect::<Result<Vec<Item>>>()?;
        let ids = || {
            let sequences = items.iter().flat_map(|item| &item.continuations);
            sequences.flat_map(|c| &c.ids)
        };
        let used = ProtocolText {
            tokens: ids().count() as u64,
            ids_sha256: ids_sha256(ids()),
            ..ProtocolText::default()
        };
        Ok(ChoiceSet {
            info: text_info(set, &used),
            items,
        })
    }
}

/// A question in tokens, or what is wrong with it.
///
/// Context and choice are tokenized together; what stands after as many tokens as the context has
/// alone belongs to the choice. Where the last letters of a context and the first of a choice
/// merge into one token, that token counts as the context's.
fn item(question: &Question, tokenizer: &Tokenizer) -> Result<Result<Item, String>> {
    // A token that the tokenizer puts after whole texts stands between no context and its choice.
    let encode = |text: &str| -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(text)?.ids;
        ids.pop_if(|last| Some(*last) == tokenizer.eos());
        Ok(ids)
    };
    let start = encode(&question.context)?.len();
    let mut continuations = vec![];
    for (i, choice) in question.choices.iter().enumerate() {
        let ids = encode(&format!("{}{choice}", question.context))?;
        if start == 0 || ids.len() <= start {
            return Ok(Err(format!(
                "field `choices[{i}]`: expected tokens of its own after those of the context, \
                 found {} of both together and {start} of the context",
                ids.len()
            )));
        }
        continuations.push(Continuation {
            ids,
            start,
            bytes: choice.len(),
        });
    }
    Ok(Ok(Item {
        continuations,
        answer: question.answer,
    }))
}

impl Suite<'_> {
    /// What a measured cell makes of every set.
    pub(super) fn choice_rows(&self, cell: &Cell, reference: Option<&Cell>) -> Vec<ChoiceRow> {
        let reference = reference.filter(|r| (&r.id, &r.kv) != (&cell.id, &cell.kv));
        let mut first = 0;
        let mut rows = vec![];
        for set in &self.choices {
            let range = first..first + set.items.len();
            first = range.end;
            let Some(scores) = cell.choices.get(range.clone()) else {
                continue;
            };
            let of_reference = reference.and_then(|r| r.choices.get(range));
            rows.push(ChoiceRow {
                run_id: self.info.run_id.clone(),
                device: self.place.device.clone(),
                model: self.info.model.name.clone(),
                precision: cell.id.clone(),
                kv_cache: cell.kv.clone(),
                ..row(set, scores, of_reference)
            });
        }
        rows
    }

    /// Says in a line how many items a cell answered rightly.
    pub(super) fn note_choices(&self, i: usize) {
        let cell = &self.cells[i];
        for row in self.choice_rows(cell, None) {
            let what = format!("{} {}", cell.title, row.dataset);
            self.progress.note(&format!(
                "{what:<28} {} of {} right ({:.1} %), {} per byte",
                row.correct,
                row.items,
                100.0 * row.accuracy,
                row.correct_normalized
            ));
        }
    }
}

/// The counts of a set; the names are left to the caller.
fn row(
    set: &ChoiceSet,
    scores: &[Vec<Option<f64>>],
    of_reference: Option<&[Vec<Option<f64>>]>,
) -> ChoiceRow {
    let choices = |scores: &[Vec<Option<f64>>], per| -> Vec<Option<usize>> {
        let pairs = set.items.iter().zip(scores);
        pairs.map(|(item, sums)| chosen(item, sums, per)).collect()
    };
    let accuracy = |per| Accuracy::of(&set.items, &choices(scores, per));
    let [whole, per_byte, per_token] = [Per::Sum, Per::Byte, Per::Token].map(accuracy);
    let own = choices(scores, Per::Sum);
    // Of each item: right here, right in the reference, and whether the same choice was taken.
    let pairs: Option<Vec<(bool, bool, bool)>> = of_reference.map(|scores| {
        let others = choices(scores, Per::Sum);
        let right = |item: &Item, choice: &Option<usize>| *choice == Some(item.answer);
        set.items
            .iter()
            .zip(own.iter().zip(&others))
            .map(|(item, (a, b))| (right(item, a), right(item, b), a == b))
            .collect()
    });
    let count = |which: fn(&(bool, bool, bool)) -> bool| {
        pairs
            .as_ref()
            .map(|pairs| pairs.iter().filter(|pair| which(pair)).count() as u64)
    };
    ChoiceRow {
        dataset: set.info.name.clone(),
        items: whole.items,
        correct: whole.correct,
        accuracy: whole.share(),
        accuracy_ci_low: whole.ci.0,
        accuracy_ci_high: whole.ci.1,
        correct_normalized: per_byte.correct,
        accuracy_normalized: per_byte.share(),
        accuracy_normalized_ci_low: per_byte.ci.0,
        accuracy_normalized_ci_high: per_byte.ci.1,
        correct_per_token: per_token.correct,
        accuracy_per_token: per_token.share(),
        changed_items: count(|(_, _, same)| !same),
        lost_items: count(|(own, reference, _)| !own && *reference),
        gained_items: count(|(own, reference, _)| *own && !reference),
        nonfinite_items: own.iter().filter(|choice| choice.is_none()).count() as u64,
        ..ChoiceRow::default()
    }
}
