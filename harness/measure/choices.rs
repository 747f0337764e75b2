//! Multiple choice by the likelihood of each choice as a continuation of its context.
//!
//! The conventions are those of EleutherAI's lm-evaluation-harness. Context and continuation are
//! tokenized together; the tokens after as many as the context has alone are the continuation's.
//! The choice with the largest sum of log-probabilities is taken (its `acc`), or with the largest
//! per length (its `acc_norm` divides by characters, without the separating space; here it is
//! bytes of the choice as stored, or tokens). Of equal ones the first is taken.

use super::quality::{CachedDecoder, LanguageModel, nll_nats};
use crate::Result;
use crate::stats::proportion::exact_interval;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Takes whole rows of logits of one of several sequences: which, the first row, the values.
pub type RestSink<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<()> + 'a;

/// A language model that reads several continuations of one prefix.
pub trait Continue: LanguageModel {
    /// Logits of every position of each of `rests`, each after `prefix`, handed to
    /// `sink(which, first_row, values)` in order; rows count from the first of the rest.
    fn logits_after(
        &mut self,
        prefix: &[u32],
        rests: &[&[u32]],
        sink: &mut RestSink,
    ) -> Result<()> {
        let vocab = self.vocab_size();
        for (which, rest) in rests.iter().enumerate() {
            self.logits(&[prefix, rest].concat(), &mut |first_row, values| {
                let before = prefix.len().saturating_sub(first_row);
                match values.get(before * vocab..) {
                    None | Some([]) => Ok(()),
                    Some(values) => sink(which, first_row + before - prefix.len(), values),
                }
            })?;
        }
        Ok(())
    }
}

/// Runs the prefix once: its keys and values stay in the cache.
impl Continue for CachedDecoder<'_> {
    fn logits_after(
        &mut self,
        prefix: &[u32],
        rests: &[&[u32]],
        sink: &mut RestSink,
    ) -> Result<()> {
        self.decoder.read(prefix, &mut self.cache)?;
        for (which, rest) in rests.iter().enumerate() {
            self.decoder
                .score_after(prefix.len(), rest, &mut self.cache, &mut |row, values| {
                    sink(which, row, values)
                })?;
        }
        Ok(())
    }
}

/// A context with one of its continuations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// Context and continuation.
    pub ids: Vec<u32>,
    /// Position in `ids` of the continuation's first token; at least 1, less than their number.
    pub start: usize,
    /// Bytes of the continuation.
    pub bytes: usize,
}

/// An item to score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub continuations: Vec<Continuation>,
    /// Index of the right one.
    pub answer: usize,
}

impl Item {
    /// Tokens of its longest sequence.
    pub fn longest(&self) -> usize {
        let lengths = self.continuations.iter().map(|c| c.ids.len());
        lengths.max().unwrap_or(0)
    }

    /// Tokens that all sequences begin with, short of the one that predicts the first that
    /// differs.
    fn shared(&self) -> usize {
        let Some((first, others)) = self.continuations.split_first() else {
            return 0;
        };
        let alike = others.iter().map(|other| {
            let pairs = first.ids.iter().zip(&other.ids);
            pairs.take_while(|(a, b)| a == b).count()
        });
        let starts = self.continuations.iter().map(|c| c.start);
        let least = alike.chain(starts).min().unwrap_or(0);
        least.saturating_sub(1)
    }
}

/// Log-likelihood of each continuation of an item, in nats; absent where it is not finite.
pub fn log_likelihoods(model: &mut dyn Continue, item: &Item) -> Result<Vec<Option<f64>>> {
    let vocab = model.vocab_size();
    let shared = item.shared();
    // The last token predicts nothing that is asked for.
    let rests: Vec<&[u32]> = item
        .continuations
        .iter()
        .map(|c| {
            c.ids
                .get(shared..c.ids.len().saturating_sub(1))
                .unwrap_or_default()
        })
        .collect();
    let prefix = item.continuations.first().map(|c| &c.ids[..shared]);
    let mut sums = vec![0.0; rests.len()];
    model.logits_after(
        prefix.unwrap_or_default(),
        &rests,
        &mut |which, first_row, values| {
            let c = &item.continuations[which];
            let first_target = shared + first_row + 1;
            let unscored = c.start.saturating_sub(first_target);
            let rows: Vec<&[f32]> = values.chunks_exact(vocab).skip(unscored).collect();
            let nlls: Vec<f64> = rows
                .par_iter()
                .zip(&c.ids[first_target + unscored..])
                .map(|(row, target)| nll_nats(row, *target))
                .collect();
            sums[which] -= nlls.iter().sum::<f64>();
            Ok(())
        },
    )?;
    let finite = |sum: f64| sum.is_finite().then_some(sum);
    Ok(sums.into_iter().map(finite).collect())
}

/// What a likelihood is divided by before continuations are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// Nothing: the likelihood of the whole continuation.
    Sum,
    Byte,
    Token,
}

/// The continuation that is taken: the first of the largest; `None` if any has no finite
/// likelihood, for it might have been the largest.
pub fn chosen(item: &Item, log_likelihoods: &[Option<f64>], per: Per) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, (continuation, sum)) in item.continuations.iter().zip(log_likelihoods).enumerate() {
        let length = match per {
            Per::Sum => 1,
            Per::Byte => continuation.bytes,
            Per::Token => continuation.ids.len() - continuation.start,
        };
        let value = (*sum)? / length as f64;
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

/// How many of a set's items were answered rightly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    pub items: u64,
    pub correct: u64,
    /// Exact 95 % interval of the share of right answers.
    pub ci: (f64, f64),
}

impl Accuracy {
    /// Counts right answers; `choices` are those of [`chosen`], item by item.
    pub fn of(items: &[Item], choices: &[Option<usize>]) -> Self {
        let right = items.iter().zip(choices);
        let right = right.filter(|(item, choice)| **choice == Some(item.answer));
        let (items, correct) = (items.len() as u64, right.count() as u64);
        Accuracy {
            items,
            correct,
            ci: exact_interval(correct, items, 0.95),
        }
    }

    /// Share of right answers.
    pub fn share(&self) -> f64 {
        self.correct as f64 / self.items as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next token depends on the current one; rows come in pieces of two.
    struct Bigram {
        probabilities: Vec<Vec<f64>>,
    }

    impl LanguageModel for Bigram {
        fn vocab_size(&self) -> usize {
            self.probabilities.len()
        }

        fn logits(
            &mut self,
            ids: &[u32],
            sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
        ) -> Result<()> {
            for (piece, ids) in ids.chunks(2).enumerate() {
                let rows: Vec<f32> = ids
                    .iter()
                    .flat_map(|id| &self.probabilities[*id as usize])
                    .map(|p| p.ln() as f32)
                    .collect();
                sink(2 * piece, &rows)?;
            }
            Ok(())
        }
    }

    impl Continue for Bigram {}

    fn model() -> Bigram {
        Bigram {
            probabilities: vec![
                vec![0.125, 0.625, 0.25],
                vec![0.5, 0.25, 0.25],
                vec![0.25, 0.25, 0.5],
            ],
        }
    }

    fn continuation(context: &[u32], rest: &[u32], bytes: usize) -> Continuation {
        Continuation {
            ids: [context, rest].concat(),
            start: context.len(),
            bytes,
        }
    }

    fn item(context: &[u32], rests: &[(&[u32], usize)], answer: usize) -> Item {
        Item {
            continuations: rests
                .iter()
                .map(|(rest, bytes)| continuation(context, rest, *bytes))
                .collect(),
            answer,
        }
    }

    #[test]
    fn likelihoods_are_the_closed_form() {
        let item = item(&[2, 1, 0], &[(&[1], 1), (&[2, 2, 0], 3), (&[0, 0], 2)], 0);
        let found = log_likelihoods(&mut model(), &item).unwrap();
        // p(1|0); p(2|0) p(2|2) p(0|2); p(0|0)².
        for (found, wanted) in found.iter().zip([0.625f64, 0.25 * 0.5 * 0.25, 0.015625]) {
            // Logits are F32.
            assert!((found.unwrap() - wanted.ln()).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(item.longest(), 6);
    }

    #[test]
    fn a_context_of_one_token_is_enough() {
        let item = item(&[0], &[(&[1], 1), (&[2], 1)], 1);
        let found = log_likelihoods(&mut model(), &item).unwrap();
        assert!((found[1].unwrap() - 0.25f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn length_decides_what_is_taken() {
        // Sums -2, -3, -4 over 1, 2, 4 bytes and 1, 3, 2 tokens.
        let item = item(&[0], &[(&[1], 1), (&[1, 1, 1], 2), (&[1, 1], 4)], 2);
        let sums = [Some(-2.0), Some(-3.0), Some(-4.0)];
        assert_eq!(chosen(&item, &sums, Per::Sum), Some(0));
        assert_eq!(chosen(&item, &sums, Per::Byte), Some(2));
        assert_eq!(chosen(&item, &sums, Per::Token), Some(1));
    }

    #[test]
    fn of_equal_ones_the_first_is_taken_and_of_unknown_ones_none() {
        let item = item(&[0], &[(&[1], 2), (&[2], 2), (&[0], 2)], 1);
        let tied = [Some(-1.5), Some(-1.0), Some(-1.0)];
        for per in [Per::Sum, Per::Byte, Per::Token] {
            assert_eq!(chosen(&item, &tied, per), Some(1));
            assert_eq!(chosen(&item, &[Some(-1.0), None, Some(-9.0)], per), None);
        }
        let mut broken = model();
        broken.probabilities[0][1] = f64::NAN;
        assert_eq!(
            log_likelihoods(&mut broken, &item).unwrap()[0],
            None,
            "a likelihood that is not finite"
        );
    }

    #[test]
    fn right_answers_are_counted() {
        let items: Vec<Item> = [0, 1, 0, 1]
            .map(|answer| item(&[0], &[(&[1], 1), (&[2], 1)], answer))
            .into();
        let accuracy = Accuracy::of(&items, &[Some(0), Some(0), None, Some(1)]);
        assert_eq!((accuracy.items, accuracy.correct), (4, 2));
        assert_eq!(accuracy.share(), 0.5);
        // 2 of 4: where the tail of 6 p² - 8 p³ + 3 p⁴ is 0.025.
        let p = accuracy.ci.0;
        let tail = 6.0 * p.powi(2) - 8.0 * p.powi(3) + 3.0 * p.powi(4);
        assert!((tail - 0.025).abs() < 1e-9);
        assert!((accuracy.ci.0 + accuracy.ci.1 - 1.0).abs() < 1e-9);
    }
}
