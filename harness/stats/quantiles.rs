//! Quantiles of samples and of distributions, medians and standard deviations.

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

/// The largest rank `k` such that the `k`-th smallest to the `k`-th largest mean of two of `n`
/// values miss the middle of their symmetric distribution with a chance of at most `tail` on
/// either side; `None` where even the smallest and the largest do so more often. Exact up to
/// `MOST_EXACT_RANKS` values, after that by the normal approximation of the signed-rank sum.
pub fn signed_rank(n: usize, tail: f64) -> Option<usize> {
    if 0.5f64.powi(n as i32) > tail {
        return None;
    }
    if n > MOST_EXACT_RANKS {
        let n = n as f64;
        let (mean, variance) = (n * (n + 1.0) / 4.0, n * (n + 1.0) * (2.0 * n + 1.0) / 24.0);
        return Some((mean - normal_quantile(tail) * variance.sqrt()) as usize);
    }
    // Chance of each sum of those of the ranks 1 to n whose sign is positive, all signs being
    // equally likely.
    let mut chances = vec![1.0];
    for rank in 1..=n {
        let sums = chances.len() + rank;
        let at = |sum: usize| chances.get(sum).copied().unwrap_or(0.0);
        let next = |sum: usize| 0.5 * (at(sum) + sum.checked_sub(rank).map_or(0.0, at));
        chances = (0..sums).map(next).collect();
    }
    let mut below = 0.0;
    let rarer = chances.iter().take_while(|chance| {
        below += **chance;
        below <= tail
    });
    Some(rarer.count())
}

/// The value that a standard normal variable exceeds with chance `tail` (at most 0.5), to 5e-4:
/// Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23.
pub fn normal_quantile(tail: f64) -> f64 {
    let t = (-2.0 * tail.ln()).sqrt();
    let above = 2.515517 + t * (0.802853 + t * 0.010328);
    let below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    t - above / below
}

/// The same for Student's distribution with `freedom` degrees of freedom: the series in
/// 1 / freedom of Abramowitz and Stegun 26.7.5, within 3 % from 4 degrees on. It diverges below 3,
/// where the closed forms for 1 and 2 stand, which are larger and so on the safe side.
pub fn student_quantile(tail: f64, freedom: f64) -> f64 {
    if freedom < 2.0 {
        return 1.0 / (std::f64::consts::PI * tail).tan();
    }
    if freedom < 3.0 {
        return (1.0 - 2.0 * tail) / (2.0 * tail * (1.0 - tail)).sqrt();
    }
    let z = normal_quantile(tail);
    let n = freedom;
    let z2 = z * z;
    let g1 = z * (z2 + 1.0) / 4.0;
    let g2 = z * (3.0 + z2 * (16.0 + z2 * 5.0)) / 96.0;
    let g3 = z * (-15.0 + z2 * (17.0 + z2 * (19.0 + z2 * 3.0))) / 384.0;
    let g4 = z * (-945.0 + z2 * (-1920.0 + z2 * (1482.0 + z2 * (776.0 + z2 * 79.0)))) / 92160.0;
    z + (g1 + (g2 + (g3 + g4 / n) / n) / n) / n
}

/// Values up to which the distribution of their signed ranks is counted out.
const MOST_EXACT_RANKS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(standard_deviation(&[1.0]), None);
        assert_eq!(standard_deviation(&[1.0, 3.0]), Some(2f64.sqrt()));
    }

    #[test]
    fn quantiles_are_those_of_printed_tables() {
        for (tail, z) in [(0.025, 1.95996), (0.005, 2.57583), (0.001, 3.09023)] {
            assert!((normal_quantile(tail) - z).abs() < 5e-4, "{tail}");
        }
        for (tail, freedom, t, within) in [
            (0.001, 1.0, 318.31, 0.001),
            (0.01, 2.0, 6.965, 0.001),
            (0.001, 3.0, 10.215, 0.05),
            (0.025, 4.0, 2.776, 0.005),
            (0.025, 8.0, 2.306, 0.002),
            (0.005, 8.0, 3.355, 0.005),
            (0.001, 4.0, 7.173, 0.03),
            (0.001, 8.0, 4.501, 0.005),
            (0.001, 38.0, 3.319, 0.002),
        ] {
            let found = student_quantile(tail, freedom);
            assert!(
                (found / t - 1.0).abs() < within,
                "{tail} {freedom}: {found}"
            );
        }
    }

    #[test]
    fn signed_ranks_are_those_of_printed_tables() {
        // Largest sums that are significant on one side, plus one: n, chance, rank.
        for (n, tail, rank) in [
            (8, 0.025, 4),
            (10, 0.025, 9),
            (10, 0.005, 4),
            (12, 0.01, 10),
            (20, 0.025, 53),
            (20, 0.005, 38),
            (50, 0.025, 435),
            (50, 0.005, 374),
        ] {
            assert_eq!(signed_rank(n, tail), Some(rank), "{n} {tail}");
        }
        assert_eq!(signed_rank(9, 0.001), None);
        assert_eq!(signed_rank(10, 0.001), Some(1));
        // Where counting ends the approximation is close.
        let (exact, approximate) = (signed_rank(60, 0.001), signed_rank(61, 0.001));
        assert!(
            exact.is_some() && exact < approximate,
            "{exact:?} {approximate:?}"
        );
        assert!(approximate.unwrap() < exact.unwrap() + 40);
    }
}
