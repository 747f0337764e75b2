//! Intervals of a change between two runs.
//!
//! Quality: both runs read the same windows, so windows are resampled in pairs, in blocks where
//! they overlap. Speed: repetitions of two runs do not pair up, and those of one run share its
//! process, its pages and its minute, so that they scatter less than runs do. Where both sides were
//! run several times, that scatter is measured; else `run_noise` stands for it. Runs that took
//! turns are the exception: the k-th repetitions of both met the same moment of the machine.

use crate::stats::bootstrap::{PairedWindow, mean_delta, resampled_means};
use crate::stats::medians::{log_median_variance, log_spread};
use crate::stats::quantiles::{
    median, normal_quantile, quantile, signed_rank, standard_deviation, student_quantile,
};

/// Fewest repetitions per side from which the scatter of a median can be told.
pub const LEAST_REPETITIONS: usize = 5;
/// The same data always give the same decision.
const SEED: u64 = 1;

/// A number with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Weighted mean difference of new and base; `None` with fewer than two blocks of `block` windows.
///
/// Percentile bootstrap over blocks, widened to Student's quantile: percentiles of a handful of
/// windows are too narrow. `tail` is the chance on either side.
pub fn paired(windows: &[PairedWindow], block: usize, tail: f64) -> Option<Estimate> {
    let value = mean_delta(windows)?;
    let means = resampled_means(windows, block, SEED)?;
    let counted = windows.iter().filter(|w| w.weight > 0.0).count();
    let n = counted as f64 / block.max(1) as f64;
    let widen = student_quantile(tail, n - 1.0) / normal_quantile(tail) * (n / (n - 1.0)).sqrt();
    Some(Estimate {
        value,
        low: value + (quantile(&means, tail) - value) * widen,
        high: value + (quantile(&means, 1.0 - tail) - value) * widen,
    })
}

/// Median of `new` over median of `base`, both above zero; `None` for fewer than
/// [`LEAST_REPETITIONS`] of either.
///
/// Student's interval of the logarithm: the scatter of each median from the bootstrap, that
/// between runs from `run_noise` and, since a machine that was busy during a run was perhaps not
/// during the other, from how widely single repetitions spread.
pub fn ratio_of_medians(base: &[f64], new: &[f64], run_noise: f64, tail: f64) -> Option<Estimate> {
    if base.len().min(new.len()) < LEAST_REPETITIONS {
        return None;
    }
    let value = median(new)? / median(base)?;
    let (of_base, of_new) = (
        log_median_variance(base, SEED)?,
        log_median_variance(new, SEED)?,
    );
    let spread = log_spread(base)?.powi(2) + log_spread(new)?.powi(2);
    let variance = of_base + of_new + spread + 2.0 * run_noise * run_noise;
    let freedom = freedom(variance, &[(of_base, base.len()), (of_new, new.len())]);
    Some(around(value, variance, freedom, tail))
}

/// Mean of `new` over mean of `base`, both geometric, of one speed per run; `None` for fewer than
/// two runs of either.
///
/// Student's interval of the logarithm with the scatter of the runs themselves, pooled, but no
/// less than `run_noise`: a few runs may agree by luck.
pub fn ratio_of_runs(base: &[f64], new: &[f64], run_noise: f64, tail: f64) -> Option<Estimate> {
    let logs = |speeds: &[f64]| speeds.iter().map(|s| s.ln()).collect::<Vec<f64>>();
    let (base, new) = (logs(base), logs(new));
    let squares = |logs: &[f64]| {
        let freedom = logs.len() as f64 - 1.0;
        standard_deviation(logs).map(|sd| sd * sd * freedom)
    };
    let freedom = (base.len() + new.len()) as f64 - 2.0;
    let pooled = (squares(&base)? + squares(&new)?) / freedom;
    let pooled = pooled.max(run_noise * run_noise);
    let mean = |logs: &[f64]| logs.iter().sum::<f64>() / logs.len() as f64;
    let variance = pooled * (1.0 / base.len() as f64 + 1.0 / new.len() as f64);
    let value = (mean(&new) - mean(&base)).exp();
    Some(around(value, variance, freedom, tail))
}

/// Speed of `new` over that of `base`, from pairs of processes that took turns (`base[i]` with
/// `new[i]`); `None` for a single pair of fewer than [`LEAST_REPETITIONS`].
///
/// A pair gives the median of the ratios of its repetitions, k-th to k-th: what slows both alike
/// is out. Of enough pairs, the median of the means of any two (Hodges and Lehmann 1963) with the
/// interval of Wilcoxon's signed ranks, which asks of the logarithms that they scatter
/// symmetrically, as those of equal builds do, and of nothing else: some processes are slow for
/// life. Fewer: Student's interval of the logarithm from how the pairs scatter, but no less than
/// `run_noise`; of a single pair from the bootstrap of its median and `run_noise` of both.
pub fn ratio_in_turns(
    base: &[Vec<f64>],
    new: &[Vec<f64>],
    run_noise: f64,
    tail: f64,
) -> Option<Estimate> {
    let ratios = |(base, new): (&Vec<f64>, &Vec<f64>)| -> Vec<f64> {
        base.iter().zip(new).map(|(b, n)| n / b).collect()
    };
    let pairs: Vec<Vec<f64>> = base.iter().zip(new).map(ratios).collect();
    let noise = run_noise * run_noise;
    if let [only] = &pairs[..] {
        if only.len() < LEAST_REPETITIONS {
            return None;
        }
        let of_median = log_median_variance(only, SEED)?;
        let variance = of_median + 2.0 * noise;
        let freedom = freedom(variance, &[(of_median, only.len())]);
        return Some(around(median(only)?, variance, freedom, tail));
    }
    let logs: Vec<f64> = pairs
        .iter()
        .map(|ratios| median(ratios).map(f64::ln))
        .collect::<Option<_>>()?;
    if let Some(rank) = signed_rank(logs.len(), tail) {
        let mut means = vec![];
        for (i, a) in logs.iter().enumerate() {
            means.extend(logs[i..].iter().map(|b| (a + b) / 2.0));
        }
        means.sort_by(f64::total_cmp);
        return Some(Estimate {
            value: quantile(&means, 0.5).exp(),
            low: means[rank - 1].exp(),
            high: means[means.len() - rank].exp(),
        });
    }
    let n = logs.len() as f64;
    let scatter = standard_deviation(&logs)?.powi(2).max(noise);
    let value = (logs.iter().sum::<f64>() / n).exp();
    Some(around(value, scatter / n, n - 1.0, tail))
}

/// Degrees of freedom of a variance that is a sum, by Welch and Satterthwaite; `estimated` are
/// its summands that come from this many values each, the rest is known.
fn freedom(variance: f64, estimated: &[(f64, usize)]) -> f64 {
    let spent = |(v, n): &(f64, usize)| v * v / (*n as f64 - 1.0);
    let spent: f64 = estimated.iter().map(spent).sum();
    variance * variance / spent.max(f64::MIN_POSITIVE)
}

fn around(value: f64, log_variance: f64, freedom: f64, tail: f64) -> Estimate {
    let half = match log_variance > 0.0 {
        true => student_quantile(tail, freedom) * log_variance.sqrt(),
        false => 0.0,
    };
    Estimate {
        value,
        low: value * (-half).exp(),
        high: value * half.exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_windows_have_no_interval_to_speak_of() {
        let same = vec![
            PairedWindow {
                delta_nats: 0.0,
                weight: 511.0
            };
            20
        ];
        let none = paired(&same, 1, 0.005).unwrap();
        assert_eq!((none.value, none.low, none.high), (0.0, 0.0, 0.0));
        assert_eq!(paired(&same[..1], 1, 0.005), None);
        assert_eq!(paired(&[], 1, 0.005), None);
        // Two windows that overlap are one observation.
        assert_eq!(paired(&same[..2], 2, 0.005), None);
    }

    #[test]
    fn blocks_of_correlated_windows_widen_the_interval() {
        let windows: Vec<PairedWindow> = (0..60)
            .map(|i| PairedWindow {
                delta_nats: f64::from((i / 4 * 7) % 15) - 7.0,
                weight: 10.0,
            })
            .collect();
        let width = |block| {
            paired(&windows, block, 0.025)
                .map(|e| e.high - e.low)
                .unwrap()
        };
        assert!(width(4) > 1.5 * width(1));
    }

    #[test]
    fn between_run_noise_widens_the_ratio() {
        let base: Vec<f64> = (0..20).map(|i| 1.0 + 0.0001 * f64::from(i)).collect();
        let slower: Vec<f64> = base.iter().map(|s| 1.12 * s).collect();
        let narrow = ratio_of_medians(&base, &slower, 0.0, 0.001).unwrap();
        let wide = ratio_of_medians(&base, &slower, 0.02, 0.001).unwrap();
        assert!((narrow.value - 1.12).abs() < 1e-12);
        assert!(narrow.low > 1.10 && narrow.high < 1.14, "{narrow:?}");
        assert!(wide.low > 1.0 && wide.low < 1.05, "{wide:?}");
        assert_eq!(ratio_of_medians(&base[..4], &slower, 0.0, 0.001), None);
        let constant = ratio_of_medians(&[2.0; 5], &[3.0; 5], 0.0, 0.01).unwrap();
        assert!(constant.high - constant.low < 1e-9 && (constant.value - 1.5).abs() < 1e-12);
        // A busy machine shows in the repetitions, however many there are.
        let busy: Vec<f64> = (0..200).map(|i| 1.0 + 0.3 * f64::from(i % 7)).collect();
        let doubtful = ratio_of_medians(&busy, &busy, 0.0, 0.001).unwrap();
        assert!(doubtful.low < 0.5 && doubtful.high > 2.0, "{doubtful:?}");
    }

    #[test]
    fn what_slows_both_sides_of_a_pair_is_no_change() {
        // Eight pairs; the machine is slower by up to a half in some, and in every third turn.
        let run = |pair: usize, factor: f64| -> Vec<f64> {
            let speed = |rep: usize| {
                let machine =
                    1.0 + 0.1 * ((pair * 5) % 8) as f64 + 0.4 * f64::from(rep.is_multiple_of(3));
                let own = 1.0 + 0.003 * ((rep * 7 + pair * 3) % 11) as f64;
                factor * own / machine
            };
            (0..12).map(speed).collect()
        };
        let side = |factor: f64, shift: usize| -> Vec<Vec<f64>> {
            (0..8).map(|pair| run(pair + shift, factor)).collect()
        };
        let (base, slower) = (side(1.0, 0), side(0.893, 8));
        let found = ratio_in_turns(&base, &slower, 0.01, 0.001).unwrap();
        assert!((found.value - 0.893).abs() < 0.01, "{found:?}");
        assert!(found.high < 0.93 && found.low > 0.86, "{found:?}");
        let medians = |side: &[Vec<f64>]| side.iter().map(|r| median(r).unwrap()).collect();
        let (a, b): (Vec<f64>, Vec<f64>) = (medians(&base), medians(&slower));
        assert!(ratio_of_runs(&a, &b, 0.01, 0.001).unwrap().high > 1.0);

        let one = |reps| ratio_in_turns(&base[..1], &[slower[0][..reps].to_vec()], 0.01, 0.001);
        assert_eq!(one(LEAST_REPETITIONS - 1), None);
        let wide = one(12).unwrap();
        assert!(wide.high < 1.0 && wide.low < found.low, "{wide:?}");
        // A quarter of the processes slow for life moves the middle little, and the mean a lot.
        let halves =
            |run: &[f64]| -> Vec<Vec<f64>> { run.chunks(4).map(<[f64]>::to_vec).collect() };
        let of_processes = |side: &[Vec<f64>]| -> Vec<Vec<f64>> {
            side.iter().flat_map(|run| halves(run)).collect()
        };
        let (base, mut slower) = (of_processes(&base), of_processes(&slower));
        for process in slower.iter_mut().step_by(4) {
            process.iter_mut().for_each(|speed| *speed *= 0.7);
        }
        let found = ratio_in_turns(&base, &slower, 0.01, 0.001).unwrap();
        assert!((found.value - 0.893).abs() < 0.02, "{found:?}");
        assert!(found.high < 0.93 && found.low > 0.7, "{found:?}");
        // Pairs that agree by luck are trusted no further than the stated noise.
        let lucky = ratio_in_turns(&side(1.0, 0)[..2], &side(0.9, 0)[..2], 0.02, 0.01).unwrap();
        assert!(lucky.high > 1.0, "{lucky:?}");
    }

    #[test]
    fn repeated_runs_show_their_own_noise() {
        let (base, new) = ([1.0, 1.02, 0.98, 1.01, 0.99], [1.12, 1.1, 1.14, 1.13, 1.11]);
        let found = ratio_of_runs(&base, &new, 0.0, 0.001).unwrap();
        // Pooled deviation of the logarithms 0.0150, 8 degrees of freedom: 4.5 × 0.0150 × √0.4.
        let half = 4.501 * 0.0150 * 0.4f64.sqrt();
        assert!((found.value - 1.12).abs() < 1e-3, "{found:?}");
        assert!(
            ((found.high / found.value).ln() / half - 1.0).abs() < 0.05,
            "{found:?}"
        );
        // Runs that agree by luck are trusted no further than the stated noise.
        let lucky = ratio_of_runs(&[1.0; 2], &[1.1; 2], 0.02, 0.01).unwrap();
        assert!(lucky.low < 1.0, "{lucky:?}");
        assert_eq!(ratio_of_runs(&base[..1], &new, 0.0, 0.001), None);
    }
}
