//! Means of NLL over windows, their standard errors, and paired differences.

use super::quality::WindowScore;
use crate::stats::bootstrap::{PairedWindow, mean_delta, resampled_means};
use crate::stats::quantiles::quantile;

/// Mean NLL under the windows' protocol: per scored token, but where the protocol weighs
/// otherwise. `None` without a finite token.
pub fn mean_nll(scores: &[WindowScore]) -> Option<f64> {
    let weight: f64 = scores.iter().map(|s| s.weight).sum();
    let nll: f64 = scores.iter().map(|s| s.weighted_nll_nats).sum();
    (weight > 0.0).then(|| nll / weight)
}

/// Standard error of [`mean_nll`] over windows (windows are the independent unit, tokens are
/// not); `None` for fewer than two windows that count.
pub fn nll_standard_error(scores: &[WindowScore]) -> Option<f64> {
    let counted: Vec<&WindowScore> = scores.iter().filter(|s| s.weight > 0.0).collect();
    if counted.len() < 2 {
        return None;
    }
    let mean = mean_nll(scores)?;
    let weight: f64 = counted.iter().map(|s| s.weight).sum();
    // Ratio estimator: residuals of the sums around the pooled mean.
    let squares: f64 = counted
        .iter()
        .map(|s| (s.weighted_nll_nats - mean * s.weight).powi(2))
        .sum();
    let n = counted.len() as f64;
    Some((squares * n / (n - 1.0)).sqrt() / weight)
}

/// A difference of mean NLL, with its 95 % interval where there are windows enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedDifference {
    pub mean_nats: f64,
    pub ci_nats: Option<(f64, f64)>,
}

/// Mean NLL of `b` minus that of `a` over the same windows, with percentiles of
/// [`resampled_means`].
///
/// `None` where the two do not pair up (other windows) or nothing was scored; no interval with
/// fewer than two blocks.
pub fn paired_difference(
    a: &[WindowScore],
    b: &[WindowScore],
    block_windows: usize,
    seed: u64,
) -> Option<PairedDifference> {
    let differ = |(a, b): (&WindowScore, &WindowScore)| {
        a.scored_tokens != b.scored_tokens || a.weight != b.weight
    };
    if a.len() != b.len()
        || a.iter().zip(b).any(differ)
        || a.iter().chain(b).any(|s| s.nonfinite_tokens > 0)
    {
        return None;
    }
    let pair = |(a, b): (&WindowScore, &WindowScore)| PairedWindow {
        delta_nats: b.weighted_nll_nats - a.weighted_nll_nats,
        weight: a.weight,
    };
    let windows: Vec<PairedWindow> = a.iter().zip(b).map(pair).collect();
    let mean_nats = mean_delta(&windows)?;
    let means = resampled_means(&windows, block_windows, seed);
    Some(PairedDifference {
        mean_nats,
        ci_nats: means.map(|means| (quantile(&means, 0.025), quantile(&means, 0.975))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::quantiles::standard_deviation;

    fn scores(nlls: &[f64]) -> Vec<WindowScore> {
        nlls.iter()
            .map(|n| WindowScore {
                scored_tokens: 10,
                scored_bytes: 30,
                nll_sum_nats: 10.0 * n,
                nonfinite_tokens: 0,
                weighted_nll_nats: 10.0 * n,
                weight: 10.0,
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
        let d = paired_difference(&a, &b, 1, 7).unwrap();
        assert!((d.mean_nats - 0.01).abs() < 1e-9);
        let (low, high) = d.ci_nats.unwrap();
        // Standard deviation of the differences: uniform over 0.01, so 0.01 / sqrt(12).
        let half = 1.96 * 0.01 / 12f64.sqrt() / 10.0;
        assert!((low - (0.01 - half)).abs() < 0.1 * half, "{low}");
        assert!((high - (0.01 + half)).abs() < 0.1 * half, "{high}");
        assert_eq!(paired_difference(&a, &b, 1, 7), Some(d));
        assert_ne!(paired_difference(&a, &b, 1, 8), Some(d));
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(one.install(|| paired_difference(&a, &b, 1, 7)), Some(d));
    }

    #[test]
    fn differences_need_the_same_windows() {
        let a = scores(&[1.0, 2.0]);
        assert_eq!(paired_difference(&a, &scores(&[1.0]), 1, 0), None);
        let mut other = a.clone();
        other[1].scored_tokens = 9;
        assert_eq!(paired_difference(&a, &other, 1, 0), None);
        assert_eq!(paired_difference(&[], &[], 1, 0), None);
        let single = paired_difference(&a[..1], &a[..1], 1, 0).unwrap();
        assert_eq!((single.mean_nats, single.ci_nats), (0.0, None));
    }

    #[test]
    fn weights_make_the_mean_and_unweighted_windows_make_no_interval() {
        let mut a = scores(&[2.0, 4.0, 9.0]);
        a[1].weight = 30.0;
        a[1].weighted_nll_nats = 120.0;
        a[2].weight = 0.0;
        a[2].weighted_nll_nats = 0.0;
        assert_eq!(mean_nll(&a), Some(3.5));
        // Two windows that count: residuals -15 and 15.
        let se = nll_standard_error(&a).unwrap();
        assert!((se - 30.0 / 40.0).abs() < 1e-12, "{se}");
        let mut b = a.clone();
        b[1].weighted_nll_nats += 3.0;
        let d = paired_difference(&a, &b, 1, 0).unwrap();
        assert!((d.mean_nats - 3.0 / 40.0).abs() < 1e-12);
        assert!(d.ci_nats.is_some());
        assert_eq!(paired_difference(&a, &b, 2, 0).unwrap().ci_nats, None);
        b[1].weight = 29.0;
        assert_eq!(paired_difference(&a, &b, 1, 0), None);
    }

    /// Differences that come in runs of four.
    #[test]
    fn blocks_widen_the_interval_of_dependent_windows() {
        let a = scores(&[3.0; 400]);
        let runs: Vec<f64> = (0..400u64)
            .map(|i| 3.0 + ((i / 4 * 21 % 100) as f64 - 49.5) * 1e-3)
            .collect();
        let b = scores(&runs);
        let width = |block| {
            let (low, high) = paired_difference(&a, &b, block, 3)
                .unwrap()
                .ci_nats
                .unwrap();
            high - low
        };
        let ratio = width(4) / width(1);
        // A block that begins within a run averages two of them: over the four places where it can
        // begin its variance is (16 + 10 + 8 + 10) / 64 of a run's, and there are a quarter as
        // many blocks as windows.
        let expected = (4.0f64 * 44.0 / 64.0).sqrt();
        assert!((ratio / expected - 1.0).abs() < 0.05, "{ratio}");
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(one.install(|| width(4)), width(4));
    }
}
