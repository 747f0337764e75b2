//! How far a model's predictions are from a reference's, token by token.
//!
//! Per scored position, with the reference's distribution p and the candidate's q over the whole
//! vocabulary, all in F64:
//!
//! * KL divergence `Σ p (ln p − ln q)` in nats, the one from reference to candidate;
//! * whether both hold the same token for the most probable (the smallest id of equals);
//! * Δp, the probability of the token that the text goes on with: candidate − reference;
//! * the reference's confidence, its largest probability, by which tokens fall into buckets.
//!
//! A position where either side has a logit that is not finite is counted and enters nothing
//! else. The reference comes from a file ([`log_probs`]), whose resolution bounds from above what
//! a model compared with itself shows.

use super::log_probs::{Address, Block, Reader, Writer};
use super::quality::{Observer, ScoredRows, WindowScore};
use super::softmax::{self, Range};
use super::stats;
use crate::Result;
use crate::packed::cpu::{self, Path as Instructions};
use crate::report::record::{ConfidenceBucket, Divergence};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Buckets of the reference's confidence: from each number up to, not including, the next.
pub const CONFIDENCE_EDGES: [f64; BUCKETS + 1] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0];
const BUCKETS: usize = 6;

/// What one window contributed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowDivergence {
    /// Which text, counted from 0, and window of it.
    pub text: usize,
    pub window: usize,
    /// Of every token that was finite on both sides, in order; for percentiles.
    pub kl_nats: Vec<f32>,
    pub kl_sum_nats: f64,
    pub same_top_tokens: u64,
    pub delta_p_sum: f64,
    pub delta_p_square_sum: f64,
    /// Tokens that enter nothing above.
    pub nonfinite_tokens: u64,
    /// The largest of the rows' bounds of what storing the reference can show as divergence.
    pub resolution_nats: f64,
    pub buckets: [BucketSums; BUCKETS],
}

/// Tokens of one bucket of the reference's confidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct BucketSums {
    pub tokens: u64,
    pub kl_sum_nats: f64,
    pub same_top_tokens: u64,
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Token {
    kl_nats: f64,
    same_top: bool,
    delta_p: f64,
    confidence: f64,
    resolution_nats: f64,
}

/// The two ends of the file of log-probabilities: the reference's measuring process writes it,
/// those of all others read it.
pub enum Pass<'a> {
    Record(Writer),
    Compare(Comparer<'a>),
}

impl<'a> Pass<'a> {
    /// Writes the reference's log-probabilities to `path`.
    pub fn record(path: &Path, address: Address) -> Result<Self> {
        Writer::create(path, address).map(Pass::Record)
    }

    /// Compares with those in `path`; every window's result goes to `sink`.
    pub fn compare(
        path: &Path,
        address: Address,
        sink: &'a mut dyn FnMut(WindowDivergence) -> Result<()>,
    ) -> Result<Self> {
        Ok(Pass::Compare(Comparer {
            reader: Reader::open(path, address)?,
            instructions: cpu::path()?,
            window: None,
            sink,
        }))
    }

    /// To be called after the last row. Fails if there were fewer rows than announced.
    pub fn finish(self) -> Result<()> {
        match self {
            Pass::Record(writer) => writer.finish(),
            Pass::Compare(mut comparer) => {
                comparer.hand_on()?;
                comparer.reader.finish()
            }
        }
    }
}

impl Observer for Pass<'_> {
    fn rows(&mut self, rows: &ScoredRows) -> Result<()> {
        match self {
            Pass::Record(writer) => writer.append(rows),
            Pass::Compare(comparer) => comparer.rows(rows),
        }
    }
}

/// Compares rows with the reference's, window by window.
pub struct Comparer<'a> {
    reader: Reader,
    instructions: Instructions,
    /// The window under way.
    window: Option<WindowDivergence>,
    sink: &'a mut dyn FnMut(WindowDivergence) -> Result<()>,
}

impl Comparer<'_> {
    fn rows(&mut self, rows: &ScoredRows) -> Result<()> {
        if !self.reader.address().covers(rows.text, rows.window) {
            return Ok(());
        }
        let same = |w: &WindowDivergence| (w.text, w.window) == (rows.text, rows.window);
        if !self.window.as_ref().is_some_and(same) {
            self.hand_on()?;
        }
        let window = self.window.get_or_insert_with(|| WindowDivergence {
            text: rows.text,
            window: rows.window,
            ..WindowDivergence::default()
        });
        let vocab = self.reader.address().vocab_size;
        let instructions = self.instructions;
        self.reader.alongside(rows, |block, targets, logits| {
            let tokens: Vec<_> = targets
                .par_iter()
                .zip(logits.par_chunks_exact(vocab))
                .enumerate()
                .map(|(i, (target, logits))| {
                    compare(instructions, block, i, *target as usize, logits)
                        .map_err(|what| (i, what))
                })
                .collect();
            for token in tokens {
                window.add(token?);
            }
            Ok(())
        })
    }

    /// Hands on the window that is complete.
    fn hand_on(&mut self) -> Result<()> {
        self.window.take().map_or(Ok(()), &mut *self.sink)
    }
}

/// One token; `None` where one side is not finite.
fn compare(
    instructions: Instructions,
    block: &Block,
    row: usize,
    target: usize,
    logits: &[f32],
) -> std::result::Result<Option<Token>, &'static str> {
    let reference = block.row(row)?;
    let range = softmax::range(instructions, logits);
    let (Some(reference), Some(Range { max, top, .. })) = (reference, range) else {
        return Ok(None);
    };
    let Some(at_target) = logits.get(target) else {
        return Ok(None);
    };
    let max = f64::from(max);
    let top_code = reference.code(reference.top);
    let sums = softmax::contrast(
        instructions,
        reference.codes,
        reference.step,
        top_code,
        logits,
        max,
    );
    let kl = sums.candidate.ln() - sums.reference.ln() - sums.difference / sums.reference;
    let below_top = f64::from(reference.code(target)) - f64::from(top_code);
    let p = (reference.step * below_top).exp() / sums.reference;
    let q = (f64::from(*at_target) - max).exp() / sums.candidate;
    Ok(Some(Token {
        // Below zero by rounding only.
        kl_nats: kl.max(0.0),
        same_top: top == reference.top,
        delta_p: q - p,
        confidence: 1.0 / sums.reference,
        resolution_nats: reference.resolution_nats(),
    }))
}

impl WindowDivergence {
    fn add(&mut self, token: Option<Token>) {
        let Some(token) = token else {
            self.nonfinite_tokens += 1;
            return;
        };
        let same_top = u64::from(token.same_top);
        self.kl_nats.push(token.kl_nats as f32);
        self.kl_sum_nats += token.kl_nats;
        self.same_top_tokens += same_top;
        self.delta_p_sum += token.delta_p;
        self.delta_p_square_sum += token.delta_p * token.delta_p;
        self.resolution_nats = self.resolution_nats.max(token.resolution_nats);
        let inner = &CONFIDENCE_EDGES[1..BUCKETS];
        let bucket = &mut self.buckets[inner.partition_point(|edge| *edge <= token.confidence)];
        bucket.tokens += 1;
        bucket.kl_sum_nats += token.kl_nats;
        bucket.same_top_tokens += same_top;
    }

    /// Tokens that were compared.
    pub fn tokens(&self) -> u64 {
        self.kl_nats.len() as u64
    }
}

/// All windows together; `None` without any. Averages weight every token equally, percentiles
/// are linear between neighbours.
pub fn summary(windows: &[WindowDivergence]) -> Option<Divergence> {
    if windows.is_empty() {
        return None;
    }
    let total = |of: fn(&WindowDivergence) -> f64| windows.iter().map(of).sum::<f64>();
    let count = |of: fn(&WindowDivergence) -> u64| windows.iter().map(of).sum::<u64>();
    let tokens = count(WindowDivergence::tokens);
    let mean = |sum: f64| (tokens > 0).then(|| sum / tokens as f64);
    let all = windows.iter().flat_map(|w| &w.kl_nats);
    let mut sorted: Vec<f64> = all.map(|kl| f64::from(*kl)).collect();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q| (tokens > 0).then(|| stats::quantile(&sorted, q));
    Some(Divergence {
        tokens,
        nonfinite_tokens: count(|w| w.nonfinite_tokens),
        resolution_nats: windows
            .iter()
            .map(|w| w.resolution_nats)
            .fold(0.0, f64::max),
        kl_mean_nats: mean(total(|w| w.kl_sum_nats)),
        kl_median_nats: quantile(0.5),
        kl_p90_nats: quantile(0.9),
        kl_p99_nats: quantile(0.99),
        kl_max_nats: quantile(1.0),
        top1_agreement: mean(count(|w| w.same_top_tokens) as f64),
        delta_p_mean: mean(total(|w| w.delta_p_sum)),
        delta_p_rms: mean(total(|w| w.delta_p_square_sum)).map(f64::sqrt),
        buckets: (0..BUCKETS).map(|b| bucket(windows, b)).collect(),
    })
}

fn bucket(windows: &[WindowDivergence], b: usize) -> ConfidenceBucket {
    let of = || windows.iter().map(|w| &w.buckets[b]);
    let tokens: u64 = of().map(|s| s.tokens).sum();
    let mean = |sum: f64| (tokens > 0).then(|| sum / tokens as f64);
    ConfidenceBucket {
        from: CONFIDENCE_EDGES[b],
        to: CONFIDENCE_EDGES[b + 1],
        tokens,
        kl_mean_nats: mean(of().map(|s| s.kl_sum_nats).sum()),
        top1_agreement: mean(of().map(|s| s.same_top_tokens).sum::<u64>() as f64),
    }
}

/// Perplexity over the reference's on the same windows, and its standard error over windows:
/// `e^δ` with δ the difference of mean NLL, and by the delta method `e^δ` times the standard
/// error of δ, which is that of a ratio of sums (residuals around the pooled mean). The error is
/// absent below two windows; all is absent where the windows do not pair up.
pub fn perplexity_ratio(
    reference: &[WindowScore],
    candidate: &[WindowScore],
) -> Option<(f64, Option<f64>)> {
    let paired = reference.len() == candidate.len()
        && reference.iter().zip(candidate).all(|(r, c)| {
            r.scored_tokens == c.scored_tokens && r.nonfinite_tokens + c.nonfinite_tokens == 0
        });
    let tokens: Vec<f64> = candidate.iter().map(|c| c.scored_tokens as f64).collect();
    let total: f64 = tokens.iter().sum();
    if !paired || total == 0.0 {
        return None;
    }
    let pairs = reference.iter().zip(candidate);
    let differences: Vec<f64> = pairs
        .map(|(r, c)| c.nll_sum_nats - r.nll_sum_nats)
        .collect();
    let mean = differences.iter().sum::<f64>() / total;
    let residuals = differences.iter().zip(&tokens);
    let squares: f64 = residuals.map(|(d, n)| (d - mean * n).powi(2)).sum();
    let windows = differences.len() as f64;
    let error = (squares * windows / (windows - 1.0)).sqrt() / total;
    let ratio = mean.exp();
    Some((ratio, (windows > 1.0).then_some(ratio * error)))
}
