//! Where a series of nights changes its level.
//!
//! Rule: at the split where the ranks before and after differ most (a two-sided CUSUM of ranks,
//! after Pettitt 1979, Applied Statistics 28(2)), a permutation test asks how often a series in
//! random order shows as much. At p ≤ 0.01, and where the medians of the two parts differ by more
//! than the metric's threshold of `compare`, the split is a change point, and both parts are
//! looked at in turn. Ranks let one night on a busy machine pass; at least [`LEAST`] nights lie on
//! either side of a change point, so the latest nights are for `compare` to judge.

use crate::stats::quantiles::median;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Fewest values on either side of a change point.
pub const LEAST: usize = 3;
const PERMUTATIONS: usize = 999;
const SIGNIFICANT: f64 = 0.01;
/// The same series always gives the same points.
const SEED: u64 = 1;

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChangePoint {
    /// Index of the first value of the new level.
    pub at: usize,
    /// Medians of the stretches on either side, up to the neighbouring change points.
    pub before: f64,
    pub after: f64,
}

/// Change points of finite values above zero, in order. `least_share` is the smallest change of
/// the median that matters: 0.05 is 5 %.
pub fn change_points(values: &[f64], least_share: f64) -> Vec<ChangePoint> {
    let mut splits = vec![];
    segment(values, 0, least_share, &mut splits);
    splits.sort_unstable();
    let mut edges = vec![0];
    edges.extend(&splits);
    edges.push(values.len());
    edges
        .windows(3)
        .filter_map(|e| {
            Some(ChangePoint {
                at: e[1],
                before: median(&values[e[0]..e[1]])?,
                after: median(&values[e[1]..e[2]])?,
            })
        })
        .collect()
}

fn segment(values: &[f64], offset: usize, least_share: f64, splits: &mut Vec<usize>) {
    if values.len() < 2 * LEAST {
        return;
    }
    let mut ranks = ranks(values);
    let (at, statistic) = strongest(&ranks);
    let (Some(before), Some(after)) = (median(&values[..at]), median(&values[at..])) else {
        return;
    };
    if (after / before - 1.0).abs() <= least_share {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let as_strong = (0..PERMUTATIONS).filter(|_| {
        ranks.shuffle(&mut rng);
        // Equal up to the order in which sums were formed.
        strongest(&ranks).1 >= statistic * (1.0 - 1e-9)
    });
    let p = (1 + as_strong.count()) as f64 / (1 + PERMUTATIONS) as f64;
    if p <= SIGNIFICANT {
        splits.push(offset + at);
        segment(&values[..at], offset, least_share, splits);
        segment(&values[at..], offset + at, least_share, splits);
    }
}

/// The split with the largest standardized difference of mean ranks, and that difference.
fn strongest(ranks: &[f64]) -> (usize, f64) {
    let n = ranks.len() as f64;
    let mean = ranks.iter().sum::<f64>() / n;
    let (mut sum, mut best) = (0.0, (LEAST, 0.0));
    for (i, rank) in ranks.iter().enumerate() {
        sum += rank - mean;
        let k = i + 1;
        if k >= LEAST && k + LEAST <= ranks.len() {
            let statistic = sum.abs() / (k as f64 * (n - k as f64) / n).sqrt();
            if statistic > best.1 {
                best = (k, statistic);
            }
        }
    }
    best
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let equal = |i: &&usize| values[**i] == values[order[start]];
        let count = order[start..].iter().take_while(equal).count();
        let rank = start as f64 + (count as f64 + 1.0) / 2.0;
        for i in &order[start..start + count] {
            ranks[*i] = rank;
        }
        start += count;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    /// About normal, deviation 1.
    fn noise(rng: &mut ChaCha8Rng) -> f64 {
        let uniform = |rng: &mut ChaCha8Rng| f64::from(rng.next_u32()) / f64::from(u32::MAX);
        (0..12).map(|_| uniform(rng)).sum::<f64>() - 6.0
    }

    #[test]
    fn planted_steps_are_found_where_they_are() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..20 {
            let speed: Vec<f64> = (0..40)
                .map(|i| match i {
                    0..15 => 100.0,
                    15..30 => 88.0,
                    _ => 96.0,
                })
                .map(|level| level * (1.0 + 0.015 * noise(&mut rng)))
                .collect();
            let found = change_points(&speed, 0.05);
            let at: Vec<usize> = found.iter().map(|c| c.at).collect();
            assert_eq!(at.len(), 2, "{found:?}");
            assert!(at[0].abs_diff(15) <= 1 && at[1].abs_diff(30) <= 1, "{at:?}");
            assert!((found[0].before / 100.0 - 1.0).abs() < 0.02);
            assert!((found[0].after / 88.0 - 1.0).abs() < 0.02);
        }
    }

    #[test]
    fn an_exact_step_needs_no_noise() {
        let memory: Vec<f64> = (0..30).map(|i| if i < 27 { 1e6 } else { 1.02e6 }).collect();
        let found = change_points(&memory, 0.01);
        assert_eq!(
            found,
            [ChangePoint {
                at: 27,
                before: 1e6,
                after: 1.02e6
            }]
        );
        // Smaller than what matters.
        assert!(change_points(&memory, 0.03).is_empty());
    }

    #[test]
    fn flat_noise_and_single_nights_have_none() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut marked = 0;
        for _ in 0..200 {
            let mut speed: Vec<f64> = (0..30).map(|_| 100.0 + noise(&mut rng)).collect();
            speed[11] = 40.0;
            // Whatever its size: only the test keeps noise out here.
            marked += change_points(&speed, 0.0).len();
        }
        assert!(marked <= 8, "{marked} of 200");
        assert!(change_points(&[], 0.0).is_empty());
        assert!(change_points(&[1.0; 50], 0.0).is_empty());
        assert!(change_points(&[1.0, 1.0, 2.0, 2.0], 0.0).is_empty());
    }
}
