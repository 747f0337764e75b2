//! A/A: comparisons of runs that differ by chance alone, made from a real run by resampling.
//!
//! Speed: both sides draw their repetitions from the same real ones. Quality: builds that compute
//! the same give equal windows, which would show nothing; so windows differ here by as much as
//! two real precisions do, window by window, but by nothing on average: differences are centred,
//! then drawn with replacement and with either sign.

use quantbench::compare::{Outcome, Side, Thresholds, Verdict, compare};
use quantbench::record::Tables;
use quantbench::record::rows::WindowRow;
use quantbench::stats::quantiles::median;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// What the comparisons said.
#[derive(Default)]
pub struct Alarms {
    pub comparisons: usize,
    /// Comparisons with any alarm.
    pub any: usize,
    /// Alarms by metric.
    pub by_metric: BTreeMap<&'static str, usize>,
    /// Changes beyond the threshold that were not significant: what a gate without statistics
    /// would have failed on.
    pub beyond_threshold: usize,
}

/// Compares `count` simulated pairs.
pub fn simulate(run: &Tables, count: usize, seed: u64) -> Alarms {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let thresholds = Thresholds::default();
    let noise = window_noise(run);
    let mut alarms = Alarms::default();
    for _ in 0..count {
        let base = side("base", with_speeds(run, &mut rng));
        let mut new = with_speeds(run, &mut rng);
        disturb(&mut new, &noise, &mut rng);
        let found = compare(&base, &side("new", new), &thresholds);
        assert!(
            matches!(found.outcome, Outcome::Fine | Outcome::Regression),
            "{:?}",
            found.runs
        );
        alarms.comparisons += 1;
        alarms.any += usize::from(found.outcome == Outcome::Regression);
        alarms.beyond_threshold +=
            usize::from(found.count(Verdict::Regression) + found.count(Verdict::Insignificant) > 0);
        for change in found.changes().filter(|c| c.verdict == Verdict::Regression) {
            *alarms.by_metric.entry(change.metric).or_default() += 1;
        }
    }
    alarms
}

fn side(name: &str, run: Tables) -> Side {
    Side {
        name: name.into(),
        runs: BTreeMap::from([(String::new(), vec![run])]),
    }
}

fn draw<'a, T>(rng: &mut ChaCha8Rng, from: &'a [T]) -> &'a T {
    &from[(rng.next_u32() as usize) % from.len()]
}

/// The run with its repetitions drawn anew, and the medians that follow.
fn with_speeds(run: &Tables, rng: &mut ChaCha8Rng) -> Tables {
    let mut drawn = run.clone();
    type Key = (String, String, String, u64, u64);
    let mut series: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (i, s) in run.samples.iter().enumerate().filter(|(_, s)| !s.warmup) {
        let (precision, kv) = (s.precision.clone(), s.kv_cache.clone());
        let key = (precision, kv, s.phase.clone(), s.batch, s.context);
        series.entry(key).or_default().push(i);
    }
    for ((precision, kv, phase, batch, _), places) in series {
        let pool: Vec<f64> = places.iter().map(|i| run.samples[*i].seconds).collect();
        let mut speeds = vec![];
        for i in places {
            drawn.samples[i].seconds = *draw(rng, &pool);
            speeds.push(drawn.samples[i].tokens as f64 / drawn.samples[i].seconds);
        }
        for row in &mut drawn.results {
            if (&row.precision, &row.kv_cache, row.batch) == (&precision, &kv, Some(batch)) {
                match phase.as_str() {
                    "prefill" => row.prefill_tok_s = median(&speeds),
                    "decode" => row.decode_tok_s = median(&speeds),
                    _ => {}
                }
            }
        }
    }
    drawn
}

/// Differences per token between windows of the first precision and of the last, centred.
fn window_noise(run: &Tables) -> Vec<f64> {
    let of = |precision: &str| -> Vec<WindowRow> {
        let rows = run.windows.iter().filter(|w| w.precision == precision);
        rows.cloned().collect()
    };
    let precisions = &run.info.precisions;
    let (a, b) = (of(&precisions[0]), of(&precisions[precisions.len() - 1]));
    let per_token = |w: &WindowRow| w.nll_sum_nats / w.scored_tokens as f64;
    let deltas: Vec<f64> = a
        .iter()
        .zip(&b)
        .map(|(a, b)| per_token(b) - per_token(a))
        .collect();
    let mean = deltas.iter().sum::<f64>() / deltas.len() as f64;
    deltas.iter().map(|d| d - mean).collect()
}

fn disturb(run: &mut Tables, noise: &[f64], rng: &mut ChaCha8Rng) {
    for w in &mut run.windows {
        let sign = if rng.next_u32().is_multiple_of(2) {
            1.0
        } else {
            -1.0
        };
        w.nll_sum_nats += sign * draw(rng, noise) * w.scored_tokens as f64;
    }
    let perplexity = |precision: &str, kv: &str| {
        let of_cell =
            |w: &&WindowRow| (w.precision.as_str(), w.kv_cache.as_str()) == (precision, kv);
        let rows = || run.windows.iter().filter(of_cell);
        let tokens: u64 = rows().map(|w| w.scored_tokens).sum();
        (rows().map(|w| w.nll_sum_nats).sum::<f64>() / tokens as f64).exp()
    };
    for row in &mut run.results {
        row.perplexity = Some(perplexity(&row.precision, &row.kv_cache));
    }
    for row in &mut run.quality {
        if row.dataset == "overall" {
            row.perplexity = perplexity(&row.precision, &row.kv_cache);
        }
    }
}

/// Upper end of the one-sided 95 % interval of a share after Clopper and Pearson (1934): the
/// share at which so few or fewer happen in 5 % of cases.
pub fn upper_bound(happened: usize, of: usize) -> f64 {
    let (k, n) = (happened as f64, of as f64);
    if happened >= of {
        return 1.0;
    }
    // Logarithms of binomial probabilities, summed.
    let at_most = |p: f64| -> f64 {
        let mut log = n * (1.0 - p).ln();
        let mut sum = log.exp();
        for i in 1..=happened {
            let i = i as f64;
            log += ((n - i + 1.0) / i).ln() + (p / (1.0 - p)).ln();
            sum += log.exp();
        }
        sum
    };
    let (mut low, mut high) = (k / n, 1.0 - 1e-12);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        match at_most(middle) > 0.05 {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}
