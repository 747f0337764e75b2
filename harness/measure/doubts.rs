//! When numbers are to be doubted: thresholds, each with its reason.

use super::quality::WindowScore;
use crate::measure::nll::mean_nll;
use crate::record::warning::{Phase, Quantity, Warning};
use crate::stats::quantiles::{median, standard_deviation};

/// Windows below which a bootstrap interval is too narrow to be called one of 95 %: resampling n
/// windows misses the factor √(n/(n−1)) and the tails of Student's t, so that 20 windows cover
/// 93 % and 6 cover 87 %.
pub const LEAST_WINDOWS: usize = 20;
/// Scored tokens below which a perplexity itself says little: a token's loss varies by about
/// 3 nats, so that 1,000 of them leave 0.1 nats, a tenth of the perplexity.
pub const LEAST_SCORED_TOKENS: u64 = 1_000;
/// The windows that a tail is made of, as a share of all.
const TAIL: f64 = 0.05;
/// Part of the loss that a twentieth of the tokens may hold: five times what even windows do. Kinds of text differ
/// by a factor of two.
const MOST_LOSS: f64 = 0.25;
/// Part of the differences, as magnitudes, that it may hold. Normal ones leave 15 % to the
/// largest twentieth; from 40 % on few windows decide, and resampling them says little.
const MOST_DIFFERENCE: f64 = 0.4;

/// Steps below which the first, which finds caches and clocks as prefill left them, is more than
/// an eighth of the time.
pub const LEAST_GENERATED_TOKENS: u64 = 8;
/// Seconds of decoding below which one interruption by the system's scheduler (some milliseconds)
/// shows.
pub const LEAST_DECODE_S: f64 = 0.01;

/// Modified z-score from which a value is an outlier (Iglewicz and Hoaglin 1993).
const OUTLIER: f64 = 3.5;
/// How much slower than the median a first repetition must be as well: on a quiet machine 3.5
/// deviations are less than anybody cares about.
const SLOW: f64 = 1.05;
/// Likewise a warm-up, which is there to be slower.
const SLOW_WARMUP: f64 = 2.0;
/// Repetitions from which outliers and spreads are looked for.
const LEAST_REPETITIONS: usize = 5;
/// Repetitions from which a drift is: of fewer, chance makes an order too often.
const LEAST_FOR_DRIFT: usize = 8;
/// Rank correlation times √(n−1), which is about normal without a drift: 1 in 100 by chance.
const DRIFT: f64 = 2.576;
/// Change between the halves from which a drift matters.
const LEAST_DRIFT: f64 = 0.03;
/// Standard deviation over the median from which the machine was busy; idle ones stay below 3 %.
const MOST_SPREAD: f64 = 0.1;

/// A doubt about windows scored under any protocol.
pub fn nonfinite(scores: &[WindowScore], protocol: &str) -> Option<Warning> {
    let tokens: u64 = scores.iter().map(|s| s.nonfinite_tokens).sum();
    (tokens > 0).then(|| Warning::NonfiniteTokens {
        tokens,
        protocol: protocol.into(),
    })
}

/// Doubts about the pooled windows of a precision under the first protocol.
pub fn quality(scores: &[WindowScore], protocol: &str) -> Vec<Warning> {
    let tokens: u64 = scores.iter().map(|s| s.scored_tokens).sum();
    let mut warnings = Vec::from_iter(nonfinite(scores, protocol));
    if tokens > 0 && (scores.len() < LEAST_WINDOWS || tokens < LEAST_SCORED_TOKENS) {
        warnings.push(Warning::FewScoredTokens {
            windows: scores.len() as u64,
            tokens,
        });
    }
    let losses = scores.iter().map(|s| s.nll_sum_nats);
    warnings.extend(heavy_tail(Quantity::Loss, losses, scores));
    warnings
}

/// Doubts about the difference between two precisions over the same windows.
pub fn difference(a: &[WindowScore], b: &[WindowScore]) -> Option<Warning> {
    if a.len() != b.len() {
        return None;
    }
    let differences = a
        .iter()
        .zip(b)
        .map(|(a, b)| b.nll_sum_nats - a.nll_sum_nats);
    heavy_tail(Quantity::Difference, differences.map(f64::abs), a)
}

/// Whether the twentieth of the windows with the most of a quantity per token holds too much of
/// it.
fn heavy_tail(
    of: Quantity,
    amounts: impl Iterator<Item = f64>,
    windows: &[WindowScore],
) -> Option<Warning> {
    if windows.len() < LEAST_WINDOWS || mean_nll(windows).is_none_or(|nll| !nll.is_finite()) {
        return None;
    }
    let mut windows: Vec<(f64, f64)> = amounts
        .zip(windows)
        .map(|(amount, w)| (amount, w.scored_tokens.max(1) as f64))
        .collect();
    windows.sort_by(|a, b| (b.0 / b.1).total_cmp(&(a.0 / a.1)));
    let in_tail = (TAIL * windows.len() as f64).ceil() as usize;
    let total: f64 = windows.iter().map(|w| w.0).sum();
    let share = windows[..in_tail].iter().map(|w| w.0).sum::<f64>() / total;
    let tokens: f64 = windows.iter().map(|w| w.1).sum();
    let share_of_tokens = windows[..in_tail].iter().map(|w| w.1).sum::<f64>() / tokens;
    // Long windows hold more without being odd.
    let most = share_of_tokens / TAIL
        * match of {
            Quantity::Loss => MOST_LOSS,
            Quantity::Difference => MOST_DIFFERENCE,
        };
    (share.is_finite() && share > most).then_some(Warning::HeavyTail {
        of,
        windows: in_tail as u64,
        of_windows: windows.len() as u64,
        share,
    })
}

/// A mean above the 99th percentile is made by less than a hundredth of the tokens.
pub fn divergence(mean_nats: Option<f64>, p99_nats: Option<f64>) -> Option<Warning> {
    let (mean_nats, p99_nats) = (mean_nats?, p99_nats?);
    let heavy = mean_nats.is_finite() && p99_nats.is_finite() && mean_nats > p99_nats;
    heavy.then_some(Warning::HeavyDivergence {
        mean_nats,
        p99_nats,
    })
}

/// Whether too little was generated to be timed; `decode_s` of every repetition.
pub fn generated(tokens: u64, decode_s: &[f64]) -> Option<Warning> {
    let decode_s = median(decode_s)?;
    let few = tokens < LEAST_GENERATED_TOKENS || decode_s < LEAST_DECODE_S;
    few.then_some(Warning::FewGeneratedTokens { tokens, decode_s })
}

/// Doubts about the repetitions of one phase, in their order: seconds of equal work each, and of
/// its warm-up.
pub fn repetitions(phase: Phase, warmup_s: Option<f64>, timed_s: &[f64]) -> Vec<Warning> {
    let all = warmup_s.iter().chain(timed_s);
    if all.clone().any(|s| !(s.is_finite() && *s > 0.0)) {
        return vec![];
    }
    let settling = slow_first(phase, timed_s).or_else(|| slow_warmup(phase, warmup_s, timed_s));
    [settling, drift(phase, timed_s), spread(phase, timed_s)]
        .into_iter()
        .flatten()
        .collect()
}

fn slow_first(phase: Phase, timed_s: &[f64]) -> Option<Warning> {
    let (first, times) = (
        *timed_s.first()?,
        times_of_median(timed_s, timed_s.first()?)?,
    );
    (times > SLOW && is_outlier(first, timed_s)).then_some(Warning::SlowFirstRun { phase, times })
}

fn slow_warmup(phase: Phase, warmup_s: Option<f64>, timed_s: &[f64]) -> Option<Warning> {
    let warmup = warmup_s?;
    let times = times_of_median(timed_s, &warmup)?;
    let still_slowest = timed_s[1..].iter().all(|s| *s < timed_s[0]);
    (times > SLOW_WARMUP && still_slowest && is_outlier(warmup, timed_s))
        .then_some(Warning::SlowWarmup { phase, times })
}

fn times_of_median(timed_s: &[f64], value: &f64) -> Option<f64> {
    (timed_s.len() >= LEAST_REPETITIONS).then_some(value / median(timed_s)?)
}

/// Whether a value lies far above the middle of others: 0.6745 (x − median) / MAD.
fn is_outlier(value: f64, of: &[f64]) -> bool {
    let middle = median(of).unwrap_or(value);
    let deviations: Vec<f64> = of.iter().map(|x| (x - middle).abs()).collect();
    let mad = median(&deviations).unwrap_or(0.0);
    0.6745 * (value - middle) > OUTLIER * mad
}

fn drift(phase: Phase, timed_s: &[f64]) -> Option<Warning> {
    let n = timed_s.len();
    if n < LEAST_FOR_DRIFT {
        return None;
    }
    let (early, late) = (&timed_s[..n / 2], &timed_s[n - n / 2..]);
    let change = median(late)? / median(early)? - 1.0;
    let strength = rank_correlation(timed_s) * ((n - 1) as f64).sqrt();
    (strength.abs() > DRIFT && change.abs() > LEAST_DRIFT).then_some(Warning::Drift {
        phase,
        change,
        repetitions: n as u64,
    })
}

/// Spearman's rank correlation of values with their order; ties share a rank.
fn rank_correlation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let rank = |x: &f64| {
        let below = values.iter().filter(|y| *y < x).count() as f64;
        let equal = values.iter().filter(|y| *y == x).count() as f64;
        below + (equal - 1.0) / 2.0 - middle
    };
    let ranks: Vec<f64> = values.iter().map(rank).collect();
    let order = (0..values.len()).map(|i| i as f64 - middle);
    let together: f64 = ranks.iter().zip(order).map(|(r, o)| r * o).sum();
    let own: f64 = ranks.iter().map(|r| r * r).sum();
    let of_order = n * (n * n - 1.0) / 12.0;
    match own > 0.0 {
        true => together / (own * of_order).sqrt(),
        false => 0.0,
    }
}

fn spread(phase: Phase, timed_s: &[f64]) -> Option<Warning> {
    let rates: Vec<f64> = timed_s.iter().map(|s| 1.0 / s).collect();
    let spread = standard_deviation(&rates)? / median(&rates)?;
    (spread > MOST_SPREAD).then_some(Warning::WideSpread { phase, spread })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quality(scores: &[WindowScore]) -> Vec<Warning> {
        super::quality(scores, "mine")
    }

    fn windows(nlls: impl IntoIterator<Item = f64>) -> Vec<WindowScore> {
        nlls.into_iter()
            .map(|nll_sum_nats| WindowScore {
                weighted_nll_nats: nll_sum_nats,
                weight: 511.0,
                scored_tokens: 511,
                scored_bytes: 2000,
                nll_sum_nats,
                nonfinite_tokens: 0,
            })
            .collect()
    }

    fn kinds(warnings: &[Warning]) -> Vec<String> {
        warnings.iter().map(Warning::kind).collect()
    }

    #[test]
    fn ordinary_windows_raise_nothing() {
        let scores = windows((0..40).map(|i| 1400.0 + 10.0 * f64::from(i)));
        assert_eq!(quality(&scores), []);
        assert_eq!(quality(&[]), []);
    }

    #[test]
    fn few_windows_or_tokens_are_said() {
        let warnings = quality(&windows([1500.0; 19]));
        assert_eq!(
            warnings,
            [Warning::FewScoredTokens {
                windows: 19,
                tokens: 19 * 511
            }]
        );
        assert_eq!(quality(&windows([1500.0; 20])), []);
        let mut short = windows([30.0; 40]);
        short.iter_mut().for_each(|w| w.scored_tokens = 10);
        assert_eq!(kinds(&quality(&short)), ["few-scored-tokens"]);
    }

    #[test]
    fn tokens_without_likelihood_are_counted() {
        let mut scores = windows([1500.0; 30]);
        scores[3].nonfinite_tokens = 2;
        scores[9].nonfinite_tokens = 5;
        assert_eq!(
            quality(&scores),
            [Warning::NonfiniteTokens {
                tokens: 7,
                protocol: "mine".into(),
            }]
        );
    }

    #[test]
    fn windows_that_dominate_the_loss_are_said() {
        // 2 of 40 windows hold (2 · 20) / (38 + 40) of it.
        let loss = |i: i32| if i < 2 { 30_000.0 } else { 1_500.0 };
        let warnings = quality(&windows((0..40).map(loss)));
        let Warning::HeavyTail {
            of: Quantity::Loss,
            windows: 2,
            of_windows: 40,
            share,
        } = warnings[0]
        else {
            panic!("{warnings:?}");
        };
        assert!((share - 40.0 / 78.0).abs() < 1e-12);
        // Long windows weigh more by their length, which is no tail.
        let mut long = windows((0..40).map(loss));
        long[..2].iter_mut().for_each(|w| w.scored_tokens *= 20);
        assert_eq!(quality(&long), []);
    }

    #[test]
    fn windows_that_dominate_a_difference_are_said() {
        let a = windows([1500.0; 40]);
        let b = windows((0..40).map(|i| 1500.0 + if i == 7 { -50.0 } else { 0.5 }));
        let warning = difference(&a, &b).unwrap();
        assert!(
            matches!(warning, Warning::HeavyTail { of: Quantity::Difference, share, .. } if share > 0.7),
            "{warning:?}"
        );
        let even = windows((0..40).map(|i| 1500.0 + f64::from(i % 7) - 2.0));
        assert_eq!(difference(&a, &even), None);
        // The reference with itself, other windows, too few of them.
        assert_eq!(difference(&a, &a), None);
        assert_eq!(difference(&a, &b[1..]), None);
        assert_eq!(difference(&a[..10], &b[..10]), None);
    }

    #[test]
    fn a_divergence_of_few_tokens_is_said() {
        let heavy = divergence(Some(0.02), Some(0.01)).unwrap();
        assert_eq!(heavy.kind(), "heavy-divergence");
        assert_eq!(divergence(Some(0.002), Some(0.01)), None);
        assert_eq!(divergence(None, Some(0.01)), None);
        assert_eq!(divergence(Some(f64::INFINITY), Some(0.01)), None);
    }

    #[test]
    fn short_generations_are_said() {
        assert_eq!(generated(64, &[0.5; 5]), None);
        let few = generated(4, &[0.5; 5]).unwrap();
        assert_eq!(
            few,
            Warning::FewGeneratedTokens {
                tokens: 4,
                decode_s: 0.5
            }
        );
        assert!(generated(64, &[0.004; 5]).is_some());
        assert_eq!(generated(4, &[]), None);
    }

    #[test]
    fn a_slow_first_repetition_is_said() {
        let of = |timed_s: &[f64]| repetitions(Phase::Decode, Some(1.1), timed_s);
        assert_eq!(of(&[1.0, 1.02, 0.99, 1.01, 1.0]), []);
        assert_eq!(
            of(&[1.08, 1.001, 0.999, 1.002, 1.0]),
            [Warning::SlowFirstRun {
                phase: Phase::Decode,
                times: 1.08 / 1.001
            }]
        );
        // Far off by the deviations, but by 1 % only; slow, but as others are; not the first.
        assert_eq!(of(&[1.01, 1.0001, 0.9999, 1.0, 1.0]), []);
        assert_eq!(of(&[1.06, 1.05, 1.0, 0.96, 1.04]), []);
        assert_eq!(of(&[1.0, 1.08, 1.001, 0.999, 1.0]), []);
        // Equal times have no deviation: anything slower is far off.
        assert_eq!(kinds(&of(&[1.06, 1.0, 1.0, 1.0, 1.0])), ["slow-first-run"]);
        assert_eq!(of(&[1.09, 1.0, 1.0, 1.0]), []);
    }

    #[test]
    fn a_warmup_that_does_not_end_is_said() {
        let of = |warmup, timed_s: &[f64]| repetitions(Phase::Prefill, Some(warmup), timed_s);
        let settling = [1.03, 1.01, 1.0, 1.02, 0.99];
        assert_eq!(
            of(2.5, &settling),
            [Warning::SlowWarmup {
                phase: Phase::Prefill,
                times: 2.5 / 1.01
            }]
        );
        assert_eq!(of(1.5, &settling), []);
        // Done with the warm-up, as it should be.
        assert_eq!(of(2.5, &[1.0, 1.01, 1.03, 1.02, 0.99]), []);
        assert_eq!(repetitions(Phase::Prefill, None, &settling), []);
    }

    #[test]
    fn a_drift_is_said() {
        let slower: Vec<f64> = (0..10).map(|i| 1.0 + 0.01 * f64::from(i)).collect();
        let warnings = repetitions(Phase::Decode, None, &slower);
        let Warning::Drift {
            change,
            repetitions: 10,
            ..
        } = warnings[0]
        else {
            panic!("{warnings:?}");
        };
        assert!((change - (1.07 / 1.02 - 1.0)).abs() < 1e-12);
        let faster: Vec<f64> = slower.iter().rev().copied().collect();
        let warnings = repetitions(Phase::Decode, None, &faster);
        assert!(
            warnings
                .iter()
                .any(|w| w.to_string().contains("5 % faster"))
        );
        // Too few; too small; without order.
        assert_eq!(repetitions(Phase::Decode, None, &slower[..7]), []);
        let small: Vec<f64> = (0..10).map(|i| 1.0 + 0.001 * f64::from(i)).collect();
        assert_eq!(repetitions(Phase::Decode, None, &small), []);
        let mixed: Vec<f64> = (0..10)
            .map(|i| 1.0 + 0.01 * f64::from(i * 7 % 10))
            .collect();
        assert_eq!(repetitions(Phase::Decode, None, &mixed), []);
    }

    #[test]
    fn rank_correlations() {
        assert!((rank_correlation(&[1.0, 5.0, 6.0, 9.0]) - 1.0).abs() < 1e-12);
        assert!((rank_correlation(&[9.0, 6.0, 5.0, 1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(rank_correlation(&[2.0, 2.0, 2.0]), 0.0);
        // Ranks 1.5, 1.5, 3 against 1, 2, 3.
        assert!((rank_correlation(&[1.0, 1.0, 2.0]) - 0.75f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_wide_spread_is_said() {
        let warnings = repetitions(Phase::Decode, None, &[1.0, 1.4, 1.1, 1.35, 1.0]);
        assert_eq!(kinds(&warnings), ["wide-spread"]);
        assert_eq!(repetitions(Phase::Decode, None, &[1.0, 1.02, 1.01]), []);
    }

    #[test]
    fn impossible_times_raise_nothing() {
        for bad in [0.0, f64::NAN, f64::INFINITY] {
            let times = [bad, 1.0, 1.0, 1.0, 1.0];
            assert_eq!(repetitions(Phase::Decode, None, &times), []);
        }
    }
}
