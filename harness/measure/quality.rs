//! Negative log-likelihood of texts under a model, window by window.

use crate::Result;
use crate::data::protocol::Protocol;
use crate::model::decoder::Decoder;
use crate::model::kv_cache::KvCache;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Anything that gives logits for a sequence.
pub trait LanguageModel {
    fn vocab_size(&self) -> usize;

    /// Logits of every position of `ids`, run with an empty context, handed to
    /// `sink(first_row, values)` in order; `values` holds whole rows of `vocab_size`.
    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;
}

/// A decoder with the cache that scoring uses.
pub struct CachedDecoder<'a> {
    pub decoder: &'a Decoder,
    pub cache: KvCache,
}

impl LanguageModel for CachedDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.decoder.config.vocab_size
    }

    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.decoder.score(ids, &mut self.cache, sink)
    }
}

/// What one window contributed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    pub scored_tokens: u64,
    /// Bytes of text that the scored tokens stand for.
    pub scored_bytes: u64,
    pub nll_sum_nats: f64,
    /// Scored tokens whose NLL was not finite; they are left out of the sum and named in a
    /// warning.
    pub nonfinite_tokens: u64,
}

/// A tokenized text: ids and the bytes of text that each stands for.
#[derive(Debug, Clone, Default)]
pub struct TokenStream {
    pub ids: Vec<u32>,
    pub bytes: Vec<u32>,
}

/// Rows of logits that predict scored tokens, handed on while they are hot.
pub struct ScoredRows<'a> {
    /// Which text, counted from 0.
    pub text: usize,
    /// Window of that text.
    pub window: usize,
    pub targets: &'a [u32],
    /// `targets.len()` rows of `vocab_size`.
    pub logits: &'a [f32],
}

/// Sees every row that is scored, in order of text, window and position.
pub trait Observer {
    fn rows(&mut self, rows: &ScoredRows) -> Result<()>;
}

/// Scores at most `limit` windows of a text; calls `progress` after each.
pub fn score_text(
    model: &mut dyn LanguageModel,
    text: &TokenStream,
    protocol: &Protocol,
    limit: usize,
    progress: &mut dyn FnMut(&WindowScore) -> Result<()>,
) -> Result<Vec<WindowScore>> {
    score_observed(model, (0, text), protocol, limit, None, progress)
}

/// [`score_text`] of a text with its number, before the eyes of an observer.
pub fn score_observed(
    model: &mut dyn LanguageModel,
    (number, text): (usize, &TokenStream),
    protocol: &Protocol,
    limit: usize,
    mut observer: Option<&mut dyn Observer>,
    progress: &mut dyn FnMut(&WindowScore) -> Result<()>,
) -> Result<Vec<WindowScore>> {
    let vocab = model.vocab_size();
    let mut scores = vec![];
    let windows = protocol.windows(text.ids.len()).into_iter().take(limit);
    for (w, window) in windows.enumerate() {
        let ids = &text.ids[window.tokens.clone()];
        let mut nlls = vec![];
        model.logits(ids, &mut |first_row, values| {
            // The logits at position i predict the token at i + 1.
            let first = window.tokens.start + first_row + 1;
            let end = first + values.len() / vocab;
            let from = window.scored.start.clamp(first, end);
            let to = window.scored.end.clamp(from, end);
            let targets = &text.ids[from..to];
            let logits = &values[(from - first) * vocab..(to - first) * vocab];
            nlls.par_extend(
                targets
                    .par_iter()
                    .zip(logits.par_chunks_exact(vocab))
                    .map(|(target, row)| nll_nats(row, *target)),
            );
            if let Some(observer) = &mut observer {
                observer.rows(&ScoredRows {
                    text: number,
                    window: w,
                    targets,
                    logits,
                })?;
            }
            Ok(())
        })?;
        let score = WindowScore {
            scored_tokens: nlls.len() as u64,
            scored_bytes: text.bytes[window.scored]
                .iter()
                .map(|b| u64::from(*b))
                .sum(),
            nll_sum_nats: nlls.iter().filter(|x| x.is_finite()).sum(),
            nonfinite_tokens: nlls.iter().filter(|x| !x.is_finite()).count() as u64,
        };
        progress(&score)?;
        scores.push(score);
    }
    Ok(scores)
}

/// `-ln softmax(logits)[target]`, in f64 throughout: sums over large vocabularies keep all
/// digits, so that closed forms hold to 1e-12.
pub fn nll_nats(logits: &[f32], target: u32) -> f64 {
    let Some(&at_target) = logits.get(target as usize) else {
        return f64::NAN;
    };
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    sum.ln() + max - f64::from(at_target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::stats;

    /// A model whose next-token logits depend on the current token only.
    struct Bigram {
        rows: Vec<Vec<f32>>,
    }

    impl LanguageModel for Bigram {
        fn vocab_size(&self) -> usize {
            self.rows[0].len()
        }

        fn logits(
            &mut self,
            ids: &[u32],
            sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
        ) -> Result<()> {
            // Uneven pieces, to exercise the bookkeeping.
            let mut at = 0;
            for n in [1, 2, 3].into_iter().cycle() {
                if at >= ids.len() {
                    return Ok(());
                }
                let piece = &ids[at..ids.len().min(at + n)];
                let rows: Vec<f32> = piece
                    .iter()
                    .flat_map(|id| self.rows[*id as usize].clone())
                    .collect();
                sink(at, &rows)?;
                at += n;
            }
            Ok(())
        }
    }

    fn stream(ids: Vec<u32>) -> TokenStream {
        let bytes = ids.iter().map(|id| id % 3).collect();
        TokenStream { ids, bytes }
    }

    fn all(model: &mut dyn LanguageModel, text: &TokenStream, window: usize) -> Vec<WindowScore> {
        let protocol = Protocol { window };
        score_text(model, text, &protocol, usize::MAX, &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn uniform_logits_give_the_vocabulary_size() {
        for vocab in [7, 4096, 49152] {
            let mut model = Bigram {
                rows: vec![vec![-3.25; vocab]; 7],
            };
            let text = stream((0..64).map(|i| i % 7).collect());
            let scores = all(&mut model, &text, 16);
            let ppl = stats::mean_nll(&scores).unwrap().exp();
            assert!((ppl / vocab as f64 - 1.0).abs() < 1e-12, "{ppl}");
        }
    }

    #[test]
    fn a_bigram_model_gives_its_closed_form() {
        // Probabilities that F32 logarithms cannot hold exactly: the closed form starts from the
        // logits as stored.
        let table = [[0.7f64, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]];
        let rows: Vec<Vec<f32>> = table
            .iter()
            .map(|row| row.iter().map(|p| p.ln() as f32).collect())
            .collect();
        let ids: Vec<u32> = (0..50u32).map(|i| (i * i + i / 7) % 3).collect();
        let window = 8;
        let (mut nll, mut n, mut bytes) = (0.0, 0, 0);
        for w in 0..ids.len() / window {
            for i in 1..window {
                let (a, b) = (ids[w * window + i - 1], ids[w * window + i]);
                let row = &rows[a as usize];
                let z: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                nll += z.ln() - f64::from(row[b as usize]);
                n += 1;
                bytes += u64::from(b % 3);
            }
        }
        let scores = all(&mut Bigram { rows }, &stream(ids), window);
        assert_eq!(scores.iter().map(|s| s.scored_tokens).sum::<u64>(), n);
        assert_eq!(scores.iter().map(|s| s.scored_bytes).sum::<u64>(), bytes);
        let mean = stats::mean_nll(&scores).unwrap();
        assert!((mean / (nll / n as f64) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn nonfinite_logits_are_counted_not_hidden() {
        let mut model = Bigram {
            rows: vec![vec![0.0, f32::NAN], vec![0.0, 0.0]],
        };
        let scores = all(&mut model, &stream(vec![0, 1, 1, 1]), 4);
        assert_eq!(scores[0].nonfinite_tokens, 1);
        assert_eq!(scores[0].scored_tokens, 3);
        assert!(scores[0].nll_sum_nats.is_finite());
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_not_finite() {
        assert!(nll_nats(&[0.0, 1.0], 2).is_nan());
    }
}
