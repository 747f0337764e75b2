//! The exact interval of a proportion.

/// The Clopper-Pearson interval of a proportion of which `successes` of `trials` were seen: it
/// covers the true one with at least this `confidence` (0.95) whatever it is (Clopper and Pearson
/// 1934). All of 0 to 1 without a trial.
///
/// Its ends are where a tail of the binomial distribution has half of the remaining probability;
/// they are found by bisection, to the last digit that matters.
pub fn exact_interval(successes: u64, trials: u64, confidence: f64) -> (f64, f64) {
    let half = (1.0 - confidence) / 2.0;
    let ln_factorials = ln_factorials(trials);
    let at_least = |k: u64, p: f64| tail(&ln_factorials, k, p);
    let low = match successes {
        0 => 0.0,
        k => root(|p| at_least(k, p) - half),
    };
    let high = match successes {
        k if k >= trials => 1.0,
        k => root(|p| at_least(k + 1, p) - (1.0 - half)),
    };
    (low, high)
}

/// `ln n!` for 0 to `n`.
fn ln_factorials(n: u64) -> Vec<f64> {
    let logs = (1..=n).map(|i| (i as f64).ln());
    std::iter::once(0.0)
        .chain(logs.scan(0.0, |sum, ln| {
            *sum += ln;
            Some(*sum)
        }))
        .collect()
}

/// The probability of at least `k` successes, 0 < p < 1.
fn tail(ln_factorials: &[f64], k: u64, p: f64) -> f64 {
    let n = ln_factorials.len() - 1;
    let (ln_p, ln_q) = (p.ln(), (-p).ln_1p());
    (k as usize..=n)
        .map(|i| {
            let ways = ln_factorials[n] - ln_factorials[i] - ln_factorials[n - i];
            (ways + i as f64 * ln_p + (n - i) as f64 * ln_q).exp()
        })
        .sum()
}

/// Where a rising function of 0 to 1 crosses zero.
fn root(f: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        match f(middle) < 0.0 {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: (f64, f64), wanted: (f64, f64), within: f64) {
        assert!(
            (found.0 - wanted.0).abs() < within && (found.1 - wanted.1).abs() < within,
            "{found:?} is not {wanted:?}"
        );
    }

    #[test]
    fn intervals_equal_published_ones() {
        // Closed forms where all or none succeed: 1 - (α/2)^(1/n).
        for n in [1, 10, 120, 5000] {
            let end = 1.0 - 0.025f64.powf(1.0 / n as f64);
            near(exact_interval(0, n, 0.95), (0.0, end), 1e-12);
            near(exact_interval(n, n, 0.95), (1.0 - end, 1.0), 1e-12);
        }
        // Newcombe 1998, table I, method 5: 81 of 263, 15 of 148, 1 of 29.
        near(exact_interval(81, 263, 0.95), (0.2527, 0.3676), 5e-5);
        near(exact_interval(15, 148, 0.95), (0.0578, 0.1617), 5e-5);
        near(exact_interval(1, 29, 0.95), (0.0009, 0.1776), 5e-5);
        assert_eq!(exact_interval(0, 0, 0.95), (0.0, 1.0));
    }

    #[test]
    fn ends_have_the_tails_that_define_them() {
        let ln_factorials = ln_factorials(120);
        for k in 1..120 {
            let (low, high) = exact_interval(k, 120, 0.95);
            assert!((tail(&ln_factorials, k, low) - 0.025).abs() < 1e-9);
            assert!((1.0 - tail(&ln_factorials, k + 1, high) - 0.025).abs() < 1e-9);
            let (mirrored_low, mirrored_high) = exact_interval(120 - k, 120, 0.95);
            near((1.0 - mirrored_high, 1.0 - mirrored_low), (low, high), 1e-9);
        }
    }
}
