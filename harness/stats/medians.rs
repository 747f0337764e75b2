//! Medians of few repetitions and ratios of them, with intervals that promise no more than the
//! repetitions can hold.
//!
//! Few values get exact intervals that follow from ranks alone, whatever the distribution of times
//! (which is skewed). A bootstrap would not do: the median of a resample of few values is one of
//! these values, and the percentiles of such a handful of numbers cover less than they say. From
//! [`MOST_EXACT`] values on the two agree, and the percentile bootstrap is used.

use crate::stats::bootstrap::{RESAMPLES, below};
use crate::stats::quantiles::{median, quantile, standard_deviation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Confidence that intervals have where there are values enough.
pub const LEVEL: f64 = 0.95;
/// Below it no interval is given. The widest that n values allow, smallest to largest, holds the
/// median with 1 − 2^(1−n): 87.5 % of four values, 93.75 % of five, 96.9 % of six.
pub const LEAST_LEVEL: f64 = 0.9;
/// Values up to which intervals are exact.
pub const MOST_EXACT: usize = 30;
/// Values from which the interval of a median reaches [`LEVEL`].
pub const LEAST_FOR_LEVEL: usize = 6;

/// A number with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MedianEstimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// Confidence of the interval; of exact ones it is the true one, so not [`LEVEL`] itself.
    pub level: f64,
}

impl MedianEstimate {
    /// Half the width of the interval over the value.
    pub fn noise(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.value
    }
}

/// Median of positive finite values with its interval: up to [`MOST_EXACT`] values between order
/// statistics (the narrowest symmetric pair of at least [`LEVEL`], else smallest to largest), above
/// a percentile bootstrap of [`RESAMPLES`] resamples.
///
/// `None` for fewer than five values, whose widest interval is below [`LEAST_LEVEL`].
pub fn median_interval(values: &[f64], seed: u64) -> Option<MedianEstimate> {
    if !usable(values) {
        return None;
    }
    let value = median(values)?;
    if values.len() > MOST_EXACT {
        let (low, high) = bootstrap(seed, |rng| resampled_median(values, rng));
        return Some(MedianEstimate {
            value,
            low,
            high,
            level: LEVEL,
        });
    }
    let (rank, level) = median_rank(values.len());
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    enough(level).then(|| MedianEstimate {
        value,
        low: sorted[rank - 1],
        high: sorted[values.len() - rank],
        level,
    })
}

/// Median of `b` over the median of `a`, positive finite values of two samples taken
/// independently. Up to [`MOST_EXACT`] values in each, the interval holds the middle of all
/// quotients `b / a` by the exact null distribution of the rank-sum statistic (Mann and Whitney
/// 1947): if the two samples differ by a factor, it is the interval of that factor. Above, a
/// percentile bootstrap.
///
/// `None` where the widest interval is below [`LEAST_LEVEL`]: fewer than three values in each.
pub fn median_ratio(a: &[f64], b: &[f64], seed: u64) -> Option<MedianEstimate> {
    if !(usable(a) && usable(b)) {
        return None;
    }
    let value = median(b)? / median(a)?;
    if a.len().max(b.len()) > MOST_EXACT {
        let (low, high) = bootstrap(seed, |rng| {
            resampled_median(b, rng) / resampled_median(a, rng)
        });
        return Some(MedianEstimate {
            value,
            low,
            high,
            level: LEVEL,
        });
    }
    let (rank, level) = quotient_rank(a.len(), b.len());
    let mut quotients: Vec<f64> = b
        .iter()
        .flat_map(|b| a.iter().map(move |a| b / a))
        .collect();
    quotients.sort_by(f64::total_cmp);
    enough(level).then(|| MedianEstimate {
        value,
        // The ratio of medians is not the median of ratios, so in theory it can lie outside.
        low: quotients[rank - 1].min(value),
        high: quotients[quotients.len() - rank].max(value),
        level,
    })
}

/// Resamples of a median, of which only the scatter is needed.
const SCATTER_RESAMPLES: usize = 2_000;

/// Standard deviation of the logarithm of one value, from the median absolute deviation: a single
/// slow repetition is no spread.
pub fn log_spread(values: &[f64]) -> Option<f64> {
    let middle = median(values)?.ln();
    let off: Vec<f64> = values.iter().map(|v| (v.ln() - middle).abs()).collect();
    // Of normally distributed values the median deviation is 0.6745 of the standard one.
    median(&off).map(|deviation| deviation / 0.6745)
}

/// Variance of the logarithm of the median, by bootstrap.
pub fn log_median_variance(values: &[f64], seed: u64) -> Option<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let medians: Vec<f64> = (0..SCATTER_RESAMPLES)
        .map(|_| resampled_median(values, &mut rng).ln())
        .collect();
    standard_deviation(&medians).map(|sd| sd * sd)
}

fn usable(values: &[f64]) -> bool {
    !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0)
}

/// Rounding must not cost a level that is met exactly.
fn enough(level: f64) -> bool {
    level >= LEAST_LEVEL - 1e-9
}

/// The largest rank `k` for which the `k`-th smallest to the `k`-th largest of `n` values hold the
/// median with [`LEVEL`] (1 if there is none), and their level: 1 − 2 P(Binomial(n, ½) < k).
fn median_rank(n: usize) -> (usize, f64) {
    let mut outcomes = vec![1u128];
    for _ in 0..n {
        // One more value doubles the outcomes: Pascal's triangle.
        let next = |i: usize| {
            outcomes.get(i).copied().unwrap_or(0)
                + i.checked_sub(1).map_or(0, |before| outcomes[before])
        };
        outcomes = (0..=outcomes.len()).map(next).collect();
    }
    rank_of(&outcomes)
}

/// Likewise of the `n m` quotients of two samples: 1 − 2 P(U < k).
fn quotient_rank(n: usize, m: usize) -> (usize, f64) {
    // Orderings of the two samples with rank-sum statistic u are the coefficients of the Gaussian
    // binomial, the product over i of (1 − q^(n+i)) / (1 − q^i).
    let largest = n * m;
    let mut orderings = vec![0i128; largest + 1];
    orderings[0] = 1;
    for i in 1..=m {
        for u in (n + i..=largest).rev() {
            orderings[u] -= orderings[u - n - i];
        }
        for u in i..=largest {
            orderings[u] += orderings[u - i];
        }
    }
    let counts: Vec<u128> = orderings.iter().map(|c| c.unsigned_abs()).collect();
    rank_of(&counts)
}

/// The largest rank at which a symmetric distribution leaves [`LEVEL`] between its tails, at least
/// 1, and what it leaves there. `counts` are outcomes per value of the statistic, from 0.
fn rank_of(counts: &[u128]) -> (usize, f64) {
    let all: u128 = counts.iter().sum();
    let level = |below: u128| 1.0 - 2.0 * below as f64 / all as f64;
    let mut below = counts[0];
    let mut rank = 1;
    while rank < counts.len() / 2 && level(below + counts[rank]) >= LEVEL {
        below += counts[rank];
        rank += 1;
    }
    (rank, level(below))
}

fn resampled_median(values: &[f64], rng: &mut ChaCha8Rng) -> f64 {
    let mut drawn: Vec<f64> = values
        .iter()
        .map(|_| values[below(rng, values.len())])
        .collect();
    drawn.sort_by(f64::total_cmp);
    quantile(&drawn, 0.5)
}

/// The middle [`LEVEL`] of what `draw` gives, the same for the same seed whatever the number of
/// threads.
fn bootstrap(seed: u64, draw: impl Fn(&mut ChaCha8Rng) -> f64 + Sync) -> (f64, f64) {
    let mut drawn: Vec<f64> = (0..RESAMPLES as u64)
        .into_par_iter()
        .map(|resample| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(resample);
            draw(&mut rng)
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    (quantile(&drawn, tail), quantile(&drawn, 1.0 - tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn ranks_are_those_of_the_tables() {
        // Order statistics: level of the extremes is 1 − 2^(1−n).
        for (n, rank, level) in [
            (1, 1, 0.0),
            (4, 1, 0.875),
            (5, 1, 0.9375),
            (6, 1, 0.96875),
            (8, 1, 0.9921875),
            (9, 2, 0.9609375),
            (10, 2, 0.978515625),
            (20, 6, 0.958610534667969),
        ] {
            let found = median_rank(n);
            assert_eq!(found.0, rank, "{n}");
            assert!((found.1 - level).abs() < 1e-12, "{n}: {}", found.1);
        }
        // Critical values of U at 5 %, two-sided, are one less than the ranks.
        for (n, m, critical) in [
            (4, 4, 0),
            (5, 5, 2),
            (5, 6, 3),
            (8, 8, 13),
            (10, 10, 23),
            (20, 20, 127),
            (7, 12, 18),
        ] {
            assert_eq!(quotient_rank(n, m).0, critical + 1, "{n} {m}");
        }
        assert!((quotient_rank(5, 5).1 - (1.0 - 2.0 * 4.0 / 252.0)).abs() < 1e-12);
        assert!((quotient_rank(3, 3).1 - 0.9).abs() < 1e-12);
    }

    #[test]
    fn few_values_give_what_they_can() {
        let e = median_interval(&[5.0, 1.0, 4.0, 2.0, 3.0], 0).unwrap();
        assert_eq!((e.value, e.low, e.high, e.level), (3.0, 1.0, 5.0, 0.9375));
        assert!((e.noise() - 2.0 / 3.0).abs() < 1e-12);
        let nine: Vec<f64> = (1..=9).map(f64::from).collect();
        let e = median_interval(&nine, 0).unwrap();
        assert_eq!((e.low, e.high), (2.0, 8.0));
        assert_eq!(median_interval(&nine[..4], 0), None);
        assert_eq!(median_interval(&[], 0), None);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(median_interval(&[1.0, 2.0, 3.0, 4.0, 5.0, bad], 0), None);
            assert_eq!(median_ratio(&[1.0; 5], &[bad; 5], 0), None);
        }
    }

    #[test]
    fn a_ratio_has_the_interval_of_the_middle_quotients() {
        let a = [100.0, 101.0, 102.0, 103.0, 104.0];
        let b = a.map(|x| 2.0 * x);
        let e = median_ratio(&a, &b, 0).unwrap();
        assert_eq!(e.value, 2.0);
        assert!(
            1.9 < e.low && e.low < 2.0 && 2.0 < e.high && e.high < 2.1,
            "{e:?}"
        );
        // The other way round it is the reciprocal.
        let back = median_ratio(&b, &a, 0).unwrap();
        assert!((back.low * e.high - 1.0).abs() < 1e-12);
        assert!((back.high * e.low - 1.0).abs() < 1e-12);
        assert!(median_ratio(&a[..3], &b[..3], 0).is_some());
        assert_eq!(median_ratio(&a[..2], &b[..2], 0), None);
    }

    #[test]
    fn many_values_are_resampled_alike_on_any_threads() {
        let values: Vec<f64> = (0..101).map(|i| 100.0 + f64::from(i * 37 % 101)).collect();
        let e = median_interval(&values, 3).unwrap();
        assert_eq!((e.value, e.level), (150.0, LEVEL));
        // Of 101 even steps the order statistics 41 and 61 are the exact interval.
        assert!(
            (e.low - 140.0).abs() <= 2.0 && (e.high - 160.0).abs() <= 2.0,
            "{e:?}"
        );
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(one.install(|| median_interval(&values, 3)), Some(e));
        let double: Vec<f64> = values.iter().map(|v| 2.0 * v).collect();
        let r = median_ratio(&values, &double, 3).unwrap();
        assert!(r.low < 2.0 && 2.0 < r.high && r.noise() < 0.12, "{r:?}");
        assert_eq!(one.install(|| median_ratio(&values, &double, 3)), Some(r));
    }

    /// How often of `trials` samples `interval` holds the true value.
    fn coverage(trials: usize, mut holds: impl FnMut(&mut ChaCha8Rng) -> bool) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        (0..trials).filter(|_| holds(&mut rng)).count() as f64 / trials as f64
    }

    /// Times as they are: a floor, and now and then much more.
    fn skewed(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
        let one = |rng: &mut ChaCha8Rng| 1.0 - 0.1 * rng.random_range(f64::EPSILON..1.0).ln();
        (0..n).map(|_| one(rng)).collect()
    }

    #[test]
    fn intervals_cover_what_they_say() {
        let true_median = 1.0 + 0.1 * std::f64::consts::LN_2;
        for n in [5, 6, 10, 17] {
            let stated = median_rank(n).1;
            let covered = coverage(4000, |rng| {
                let e = median_interval(&skewed(rng, n), 0).unwrap();
                e.low <= true_median && true_median <= e.high
            });
            assert!((covered - stated).abs() < 0.015, "{n}: {covered} {stated}");
        }
        for n in [3, 5, 8] {
            let stated = quotient_rank(n, n).1;
            let covered = coverage(4000, |rng| {
                let a = skewed(rng, n);
                let b: Vec<f64> = skewed(rng, n).iter().map(|x| 1.25 * x).collect();
                let e = median_ratio(&a, &b, 0).unwrap();
                e.low <= 1.25 && 1.25 <= e.high
            });
            assert!((covered - stated).abs() < 0.015, "{n}: {covered} {stated}");
        }
    }
}
