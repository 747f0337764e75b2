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
//! else. The reference comes from a file ([`log_probs`](super::log_probs)), whose resolution bounds from above what
//! a model compared with itself shows.

use super::log_probs::{Address, Block, Reader, Writer};
use super::quality::{Observer, ScoredRows, WindowScore};
use super::softmax::{self, Range};
use crate::Result;
use crate::packed::cpu::{self, Path as Instructions};
use crate::record::run_info::{ConfidenceBucket, Divergence};
use crate::stats::quantiles;
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
    /// The divergence of every token that was finite on both sides, in order; for percentiles.
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
    Record(Box<Writer>),
    Compare(Box<Comparer<'a>>),
}

impl<'a> Pass<'a> {
    /// Writes the reference's log-probabilities to `path`.
    pub fn record(path: &Path, address: Address) -> Result<Self> {
        Ok(Pass::Record(Box::new(Writer::create(path, address)?)))
    }

    /// Compares with those in `path`; every window's result goes to `sink`.
    pub fn compare(
        path: &Path,
        address: Address,
        sink: &'a mut dyn FnMut(WindowDivergence) -> Result<()>,
    ) -> Result<Self> {
        Ok(Pass::Compare(Box::new(Comparer {
            reader: Reader::open(path, address)?,
            instructions: cpu::path()?,
            window: None,
            sink,
        })))
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
    let quantile = |q| (tokens > 0).then(|| quantiles::quantile(&sorted, q));
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

/// Perplexity over the reference's on the same windows, weighted as the protocol weights them, and
/// its standard error over windows:
/// `e^δ` with δ the difference of mean NLL, and by the delta method `e^δ` times the standard
/// error of δ, which is that of a ratio of sums (residuals around the pooled mean). The error is
/// absent below two windows; all is absent where the windows do not pair up.
pub fn perplexity_ratio(
    reference: &[WindowScore],
    candidate: &[WindowScore],
) -> Option<(f64, Option<f64>)> {
    let paired = reference.len() == candidate.len()
        && reference
            .iter()
            .zip(candidate)
            .all(|(r, c)| r.weight == c.weight && r.nonfinite_tokens + c.nonfinite_tokens == 0);
    let weights: Vec<f64> = candidate.iter().map(|c| c.weight).collect();
    let total: f64 = weights.iter().sum();
    if !paired || total == 0.0 {
        return None;
    }
    let pairs = reference.iter().zip(candidate);
    let differences: Vec<f64> = pairs
        .map(|(r, c)| c.weighted_nll_nats - r.weighted_nll_nats)
        .collect();
    let mean = differences.iter().sum::<f64>() / total;
    let residuals = differences.iter().zip(&weights);
    let squares: f64 = residuals.map(|(d, n)| (d - mean * n).powi(2)).sum();
    let windows = differences.len() as f64;
    let error = (squares * windows / (windows - 1.0)).sqrt() / total;
    let ratio = mean.exp();
    Some((ratio, (windows > 1.0).then_some(ratio * error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::log_probs::AddressedText;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn address(vocab_size: usize, windows: &[u64]) -> Address {
        let text = |scored_tokens: &u64| AddressedText {
            ids_sha256: format!("ids of {scored_tokens}"),
            windows: 1,
            scored_tokens: *scored_tokens,
        };
        Address {
            weights_sha256: "w".into(),
            tokenizer_sha256: "t".into(),
            precision: "fp16".into(),
            packed_sha256: "p".into(),
            kv_cache: "fp16".into(),
            protocol: "gptq-v1@512".into(),
            device: "cpu".into(),
            program: "test".into(),
            vocab_size,
            texts: windows.iter().map(text).collect(),
        }
    }

    fn logits(seed: u64, tokens: usize, vocab: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..tokens * vocab)
            .map(|_| 12.0 * (rng.random::<f32>() - rng.random::<f32>()))
            .collect()
    }

    fn feed(pass: &mut Pass, text: usize, targets: &[u32], logits: &[f32]) -> Result<()> {
        pass.rows(&ScoredRows {
            text,
            window: 0,
            targets,
            logits,
        })
    }

    /// Windows of one text each: records the reference, then compares.
    fn contrast(
        vocab: usize,
        targets: &[u32],
        reference: &[f32],
        candidate: &[f32],
    ) -> WindowDivergence {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.logprobs");
        let address = address(vocab, &[targets.len() as u64]);
        let mut pass = Pass::record(&path, address.clone()).unwrap();
        feed(&mut pass, 0, targets, reference).unwrap();
        // Of a window that is not kept.
        feed(&mut pass, 1, &targets[..1], &reference[..vocab]).unwrap();
        pass.finish().unwrap();
        let mut windows = vec![];
        let mut sink = |w| {
            windows.push(w);
            Ok(())
        };
        let mut pass = Pass::compare(&path, address, &mut sink).unwrap();
        let half = targets.len() / 2;
        feed(&mut pass, 0, &targets[..half], &candidate[..half * vocab]).unwrap();
        feed(&mut pass, 0, &targets[half..], &candidate[half * vocab..]).unwrap();
        pass.finish().unwrap();
        assert_eq!(windows.len(), 1);
        windows.remove(0)
    }

    fn softmax(row: &[f32]) -> Vec<f64> {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let e: Vec<f64> = row.iter().map(|x| (f64::from(*x) - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|x| x / sum).collect()
    }

    #[test]
    fn a_model_compared_with_itself_is_below_the_stated_resolution() {
        for vocab in [1, 2, 33, 4096] {
            let values = logits(1, 20, vocab);
            let targets = vec![0; 20];
            let window = contrast(vocab, &targets, &values, &values);
            let span = values.iter().fold(0f32, |m, x| m.max(x.abs())) * 2.0;
            assert!(window.resolution_nats <= (f64::from(span) / 65535.0).powi(2) / 8.0);
            for kl in &window.kl_nats {
                // In F64 the divergence itself is known to 1e-14 or so.
                assert!(
                    f64::from(*kl) <= window.resolution_nats + 1e-13,
                    "{kl} {window:?}"
                );
            }
            assert_eq!(window.same_top_tokens, 20);
            assert!(window.delta_p_sum.abs() < 1e-3);
        }
    }

    #[test]
    fn sums_are_those_of_the_definitions() {
        let vocab = 50;
        let (reference, candidate) = (logits(2, 30, vocab), logits(3, 30, vocab));
        let mut targets: Vec<u32> = (0..30).collect();
        let window = contrast(vocab, &targets, &reference, &candidate);
        let (mut kl, mut same, mut delta, mut squares) = (0.0, 0, 0.0, 0.0);
        for (t, target) in targets.iter().enumerate() {
            let p = softmax(&reference[t * vocab..(t + 1) * vocab]);
            let q = softmax(&candidate[t * vocab..(t + 1) * vocab]);
            let token: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            assert!((f64::from(window.kl_nats[t]) / token - 1.0).abs() < 1e-3);
            kl += token;
            let top = |p: &[f64]| (0..vocab).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap();
            same += u64::from(top(&p) == top(&q));
            let d = q[*target as usize] - p[*target as usize];
            delta += d;
            squares += d * d;
        }
        assert!((window.kl_sum_nats / kl - 1.0).abs() < 1e-4, "{kl}");
        assert_eq!(window.same_top_tokens, same);
        assert!((window.delta_p_sum - delta).abs() < 1e-3);
        assert!((window.delta_p_square_sum - squares).abs() < 1e-3);
        assert_eq!(window.tokens(), 30);
        let of_buckets: u64 = window.buckets.iter().map(|b| b.tokens).sum();
        assert_eq!(of_buckets, 30);

        // A target that the vocabulary lacks has no probability to compare.
        targets[7] = vocab as u32;
        let window = contrast(vocab, &targets, &reference, &candidate);
        assert_eq!((window.tokens(), window.nonfinite_tokens), (29, 1));
    }

    #[test]
    fn two_uniform_halves_have_their_closed_form() {
        // p uniform over 4 tokens, q = (1/2, 1/6, 1/6, 1/6): KL = ln(1/4) + (ln 2 + 3 ln 6) / 4.
        let reference = [0.0; 4];
        let candidate = [3f32.ln(), 0.0, 0.0, 0.0];
        let window = contrast(4, &[0], &reference, &candidate);
        let exact = 0.25f64.ln() + (2f64.ln() + 3.0 * 6f64.ln()) / 4.0;
        assert!((window.kl_sum_nats - exact).abs() < 1e-7, "{window:?}");
        assert!((window.delta_p_sum - 0.25).abs() < 1e-7);
        // A flat row loses nothing to storage. Confidence 0.25 opens the second bucket.
        assert_eq!(window.resolution_nats, 0.0);
        assert_eq!(window.buckets[1].tokens, 1);
    }

    #[test]
    fn confidence_falls_into_its_bucket() {
        for (p, bucket) in [(0.3, 1), (0.6, 2), (0.8, 3), (0.95, 4), (0.995, 5)] {
            let row = [0.0, ((1.0 - p) / p / 3.0f64).ln() as f32];
            let row = [row[0], row[1], row[1], row[1]];
            let window = contrast(4, &[0], &row, &row);
            let tokens: Vec<u64> = window.buckets.iter().map(|b| b.tokens).collect();
            assert_eq!(tokens[bucket], 1, "{p}: {tokens:?}");
        }
        let certain = contrast(3, &[0], &[900.0, 0.0, 0.0], &[900.0, 0.0, 0.0]);
        assert_eq!(certain.buckets[5].tokens, 1);
        let sum = summary(&[certain]).unwrap();
        assert_eq!((sum.buckets[5].from, sum.buckets[5].to), (0.99, 1.0));
        assert_eq!(sum.buckets[0].kl_mean_nats, None);
    }

    #[test]
    fn what_is_not_finite_on_either_side_is_counted_and_left_out() {
        let vocab = 20;
        let good = logits(4, 3, vocab);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut broken = good.clone();
            broken[vocab + 5] = bad;
            for (reference, candidate) in [(&good, &broken), (&broken, &good)] {
                let window = contrast(vocab, &[0, 1, 2], reference, candidate);
                assert_eq!((window.tokens(), window.nonfinite_tokens), (2, 1));
                assert!(window.kl_sum_nats.is_finite() && window.delta_p_sum.is_finite());
                let sum = summary(&[window]).unwrap();
                assert_eq!((sum.tokens, sum.nonfinite_tokens), (2, 1));
                assert!(sum.kl_mean_nats.unwrap() < 1e-6);
            }
        }
        let nothing = contrast(vocab, &[0], &[f32::NAN; 20], &good[..vocab]);
        let sum = summary(&[nothing]).unwrap();
        assert_eq!((sum.tokens, sum.nonfinite_tokens), (0, 1));
        assert_eq!((sum.kl_mean_nats, sum.kl_max_nats), (None, None));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let vocab = 700;
        let (reference, candidate) = (logits(5, 64, vocab), logits(6, 64, vocab));
        let targets: Vec<u32> = (0..64).collect();
        let all = || contrast(vocab, &targets, &reference, &candidate);
        let expected = all();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            assert_eq!(pool.build().unwrap().install(all), expected);
        }
    }

    #[test]
    fn percentiles_and_means_are_over_all_tokens() {
        let window = |kl: &[f32], same_top_tokens| WindowDivergence {
            kl_nats: kl.to_vec(),
            kl_sum_nats: kl.iter().map(|k| f64::from(*k)).sum(),
            same_top_tokens,
            delta_p_square_sum: 1.0,
            ..WindowDivergence::default()
        };
        let sum = summary(&[window(&[4.0, 1.0], 1), window(&[2.0, 3.0, 5.0], 3)]).unwrap();
        assert_eq!(sum.tokens, 5);
        assert_eq!(sum.kl_mean_nats, Some(3.0));
        assert_eq!(sum.kl_median_nats, Some(3.0));
        assert!((sum.kl_p90_nats.unwrap() - 4.6).abs() < 1e-12);
        assert!((sum.kl_p99_nats.unwrap() - 4.96).abs() < 1e-12);
        assert_eq!(sum.kl_max_nats, Some(5.0));
        assert_eq!(sum.top1_agreement, Some(0.8));
        assert!((sum.delta_p_rms.unwrap() - 0.4f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_perplexity_ratio_is_paired() {
        let score = |nll: f64| WindowScore {
            scored_tokens: 10,
            scored_bytes: 30,
            nll_sum_nats: 10.0 * nll,
            nonfinite_tokens: 0,
            weighted_nll_nats: 10.0 * nll,
            weight: 10.0,
        };
        let reference: Vec<_> = [1.0, 5.0, 3.0].map(score).to_vec();
        let candidate: Vec<_> = [1.01, 5.03, 3.02].map(score).to_vec();
        let (ratio, se) = perplexity_ratio(&reference, &candidate).unwrap();
        assert!((ratio - 0.02f64.exp()).abs() < 1e-12);
        // Differences 0.01, 0.03, 0.02: standard deviation 0.01 over √3 windows.
        assert!((se.unwrap() - ratio * 0.01 / 3f64.sqrt()).abs() < 1e-12);
        let (_, se) = perplexity_ratio(&reference[..1], &candidate[..1]).unwrap();
        assert_eq!(se, None);
        assert_eq!(perplexity_ratio(&reference, &candidate[..2]), None);
        assert_eq!(perplexity_ratio(&[], &[]), None);
    }

    #[test]
    fn files_that_are_not_the_reference_are_errors() {
        let vocab = 9;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.logprobs");
        let address = address(vocab, &[4]);
        let values = logits(7, 4, vocab);
        let mut pass = Pass::record(&path, address.clone()).unwrap();
        feed(&mut pass, 0, &[0; 4], &values).unwrap();
        assert!(!path.exists(), "half a file must not have its name");
        pass.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8], address: &Address| -> Result<()> {
            std::fs::write(&path, bytes).unwrap();
            let mut sink = |_| Ok(());
            let mut pass = Pass::compare(&path, address.clone(), &mut sink)?;
            feed(&mut pass, 0, &[0; 4], &values)?;
            pass.finish()
        };
        read(&whole, &address).unwrap();
        // Cut anywhere, or longer than it should be.
        for length in 0..whole.len() {
            assert!(read(&whole[..length], &address).is_err(), "{length} bytes");
        }
        assert!(read(&[&whole[..], &[0]].concat(), &address).is_err());
        // Any bit of it.
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let message = read(&damaged, &address).err().map(|e| e.to_string());
            let message = message.unwrap_or_else(|| panic!("byte {at} may be wrong"));
            assert!(message.contains("reference.logprobs"), "{message}");
        }
        // A header that claims 4 GiB.
        let mut claims = whole.clone();
        claims[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read(&claims, &address).is_err());
        // Of something else.
        let mut other = address.clone();
        other.texts[0].ids_sha256 = "other".into();
        let message = read(&whole, &other).unwrap_err().to_string();
        assert!(message.contains("another model"), "{message}");
        // Rows that the model does not give, and rows too many.
        std::fs::write(&path, &whole).unwrap();
        let mut sink = |_| Ok(());
        let pass = Pass::compare(&path, address.clone(), &mut sink).unwrap();
        assert!(pass.finish().is_err());
        let mut pass = Pass::record(&path, address).unwrap();
        assert!(feed(&mut pass, 0, &[0; 5], &logits(7, 5, vocab)).is_err());
        assert!(feed(&mut pass, 0, &[0; 4], &values[1..]).is_err());
        assert!(pass.finish().is_err());
    }
}
