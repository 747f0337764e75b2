//! For tests only: repetitions made longer than they were, so that a slow, noisy or drifting
//! machine can be had on any machine. It cannot pass unnoticed: every row of such a run warns.

/// Holds factors for the repetitions of every point in their order, warm-up first, separated by
/// commas; the last one holds for all that follow.
pub const VARIABLE: &str = "QUANTBENCH_TEST_TIME_FACTORS";

/// The factors that a test asked for, as typed; `None` in every ordinary run.
pub fn asked() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())
}

/// The factor of repetition `n`, the warm-up being 0; 1 where it cannot be read.
pub fn factor(asked: &str, n: usize) -> f64 {
    let factors: Vec<&str> = asked.split(',').collect();
    let text = factors.get(n).or(factors.last());
    text.and_then(|t| t.trim().parse().ok())
        .filter(|f: &f64| f.is_finite() && *f > 0.0)
        .unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_factor_holds_on() {
        let of = |n| factor("1, 3,0.5", n);
        assert_eq!([of(0), of(1), of(2), of(9)], [1.0, 3.0, 0.5, 0.5]);
        assert_eq!(factor("x,-1,inf,2", 0), 1.0);
        assert_eq!(factor("x,-1,inf,2", 1), 1.0);
        assert_eq!(factor("x,-1,inf,2", 2), 1.0);
        assert_eq!(factor("x,-1,inf,2", 3), 2.0);
    }
}
