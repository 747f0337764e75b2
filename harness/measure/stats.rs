//! Means, standard errors and paired bootstrap intervals over windows.
//!
//! Of repetitions: [`super::medians`].

pub use super::medians::{median_interval, median_ratio};

use super::quality::WindowScore;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Resamples behind every interval.
pub const RESAMPLES: usize = 10_000;

fn finite_tokens(s: &WindowScore) -> f64 {
    (s.scored_tokens - s.nonfinite_tokens) as f64
}

/// Token-weighted mean NLL; `None` without a finite token.
pub fn mean_nll(scores: &[WindowScore]) -> Option<f64> {
    let tokens: f64 = scores.iter().map(finite_tokens).sum();
    let nll: f64 = scores.iter().map(|s| s.nll_sum_nats).sum();
    (tokens > 0.0).then(|| nll / tokens)
}

/// Standard error of [`mean_nll`] over windows (windows are the independent unit, tokens are
/// not); `None` for fewer than two windows.
pub fn nll_standard_error(scores: &[WindowScore]) -> Option<f64> {
    if scores.len() < 2 {
        return None;
    }
    let mean = mean_nll(scores)?;
    let tokens: f64 = scores.iter().map(finite_tokens).sum();
    // Ratio estimator: residuals of the sums around the pooled mean.
    let squares: f64 = scores
        .iter()
        .map(|s| (s.nll_sum_nats - mean * finite_tokens(s)).powi(2))
        .sum();
    let n = scores.len() as f64;
    Some((squares * n / (n - 1.0)).sqrt() / tokens)
}

/// A difference of mean NLL, with its 95 % interval where there are windows enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedDifference {
    pub mean_nats: f64,
    pub ci_nats: Option<(f64, f64)>,
}

/// Mean NLL of `b` minus that of `a` over the same windows: percentile bootstrap over windows,
/// [`RESAMPLES`] resamples, the same for the same seed whatever the number of threads.
///
/// `None` where the two do not pair up (other windows) or nothing was scored.
pub fn paired_difference(
    a: &[WindowScore],
    b: &[WindowScore],
    seed: u64,
) -> Option<PairedDifference> {
    if a.len() != b.len()
        || a.iter()
            .zip(b)
            .any(|(a, b)| a.scored_tokens != b.scored_tokens)
        || a.iter().chain(b).any(|s| s.nonfinite_tokens > 0)
    {
        return None;
    }
    let tokens: Vec<f64> = a.iter().map(finite_tokens).collect();
    let deltas: Vec<f64> = a
        .iter()
        .zip(b)
        .map(|(a, b)| b.nll_sum_nats - a.nll_sum_nats)
        .collect();
    let total: f64 = tokens.iter().sum();
    if total == 0.0 {
        return None;
    }
    let mean_nats = deltas.iter().sum::<f64>() / total;
    if deltas.len() < 2 {
        return Some(PairedDifference {
            mean_nats,
            ci_nats: None,
        });
    }
    let n = deltas.len() as u64;
    let mut means: Vec<f64> = (0..RESAMPLES as u64)
        .into_par_iter()
        .map(|resample| {
            // One stream per resample, so that the split over threads does not matter.
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(resample);
            let (mut delta, mut tokens_drawn) = (0.0, 0.0);
            for _ in 0..n {
                let i = ((u64::from(rng.next_u32()) * n) >> 32) as usize;
                delta += deltas[i];
                tokens_drawn += tokens[i];
            }
            delta / tokens_drawn
        })
        .collect();
    means.sort_by(f64::total_cmp);
    Some(PairedDifference {
        mean_nats,
        ci_nats: Some((quantile(&means, 0.025), quantile(&means, 0.975))),
    })
}

/// Quantile of sorted values, linear between neighbours.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// Median; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(quantile(&sorted, 0.5))
}

/// Sample standard deviation (n − 1); `None` for fewer than two values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    Some((squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(nlls: &[f64]) -> Vec<WindowScore> {
        nlls.iter()
            .map(|n| WindowScore {
                scored_tokens: 10,
                scored_bytes: 30,
                nll_sum_nats: 10.0 * n,
                nonfinite_tokens: 0,
            })
            .collect()
    }

    #[test]
    fn equal_windows_reduce_to_the_textbook_formulas() {
        let nlls = [2.0, 3.0, 5.0, 4.5, 1.25];
        let s = scores(&nlls);
        assert!((mean_nll(&s).unwrap() - 3.15).abs() < 1e-12);
        let expected = standard_deviation(&nlls).unwrap() / 5f64.sqrt();
        assert!((nll_standard_error(&s).unwrap() - expected).abs() < 1e-12);
        assert_eq!(nll_standard_error(&s[..1]), None);
        assert_eq!(mean_nll(&[]), None);
    }

    #[test]
    fn bootstrap_interval_is_near_the_normal_one_and_reproducible() {
        let a: Vec<f64> = (0..100).map(|i| 3.0 + f64::from(i % 10) * 0.2).collect();
        let b: Vec<f64> = a
            .iter()
            .enumerate()
            .map(|(i, x)| x + 0.01 + ((i * 37 % 100) as f64 - 49.5) * 1e-4)
            .collect();
        let (a, b) = (scores(&a), scores(&b));
        let d = paired_difference(&a, &b, 7).unwrap();
        assert!((d.mean_nats - 0.01).abs() < 1e-9);
        let (low, high) = d.ci_nats.unwrap();
        // Standard deviation of the differences: uniform over 0.01, so 0.01 / sqrt(12).
        let half = 1.96 * 0.01 / 12f64.sqrt() / 10.0;
        assert!((low - (0.01 - half)).abs() < 0.1 * half, "{low}");
        assert!((high - (0.01 + half)).abs() < 0.1 * half, "{high}");
        assert_eq!(paired_difference(&a, &b, 7), Some(d));
        assert_ne!(paired_difference(&a, &b, 8), Some(d));
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(one.install(|| paired_difference(&a, &b, 7)), Some(d));
    }

    #[test]
    fn differences_need_the_same_windows() {
        let a = scores(&[1.0, 2.0]);
        assert_eq!(paired_difference(&a, &scores(&[1.0]), 0), None);
        let mut other = a.clone();
        other[1].scored_tokens = 9;
        assert_eq!(paired_difference(&a, &other, 0), None);
        assert_eq!(paired_difference(&[], &[], 0), None);
        let single = paired_difference(&a[..1], &a[..1], 0).unwrap();
        assert_eq!((single.mean_nats, single.ci_nats), (0.0, None));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(standard_deviation(&[1.0]), None);
        assert_eq!(standard_deviation(&[1.0, 3.0]), Some(2f64.sqrt()));
    }
}
