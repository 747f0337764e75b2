//! The gate: whether a run is worse than another. Sees rows only.
//!
//! ```text
//! BASE ─┐                    ┌► cells     which pair up, which failed ─┐
//!       ├► side ─► comparable┤                                         ├► Comparison ─► render/
//! NEW  ─┘          (or not)  └► interval  of every change of METRICS  ─┘
//! ```
//!
//! A change fails only where it is both larger than its threshold and significant: a large change
//! of a few noisy repetitions is no regression, and neither is a tiny one that is certain.

pub mod baseline;
pub mod cell;
pub mod cells;
pub mod comparable;
pub mod interval;
pub mod metric;
pub mod render;
pub mod repetitions;
pub mod side;
pub mod thresholds;
pub mod windows;

pub use side::Side;
pub use thresholds::Thresholds;

use crate::record::Tables;
use crate::record::rows::Status;
use crate::stats::quantiles::median;
use cell::{Cell, Data, Failure, Observation};
use cells::matched;
use comparable::{Difference, differences};
use interval::{
    Estimate, LEAST_REPETITIONS, paired, ratio_in_turns, ratio_of_medians, ratio_of_runs,
};
use metric::{Better, Evidence};
use rayon::prelude::*;
use serde::Serialize;

/// Raised when fields of the JSON change their meaning.
pub const FORMAT_VERSION: u32 = 1;

/// The result of a whole comparison, in the order in which results take precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Fine,
    Regression,
    CellsFailed,
    NotComparable,
}

impl Outcome {
    pub fn exit_code(self) -> i32 {
        match self {
            Outcome::Fine => 0,
            Outcome::Regression => 1,
            Outcome::CellsFailed => 3,
            Outcome::NotComparable => 4,
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Outcome::Fine => "no regression",
            Outcome::Regression => "regression",
            Outcome::CellsFailed => "cells failed",
            Outcome::NotComparable => "not comparable",
        }
    }
}

/// What became of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Worse by more than the threshold, and significantly.
    Regression,
    /// Better by as much.
    Improvement,
    /// Beyond the threshold, but the interval contains no change.
    Insignificant,
    /// Significant, but within the threshold.
    Tiny,
    Unchanged,
    /// Too few windows or repetitions to tell.
    Undecided,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Regression => "REGRESSION",
            Verdict::Improvement => "improved",
            Verdict::Insignificant => "not significant",
            Verdict::Tiny => "within threshold",
            Verdict::Unchanged => "unchanged",
            Verdict::Undecided => "undecided",
        }
    }

    /// Whether a reader wants to see it first.
    pub fn stands_out(self) -> bool {
        !matches!(self, Verdict::Tiny | Verdict::Unchanged)
    }
}

/// One number of one cell in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    pub cell: Cell,
    pub metric: &'static str,
    /// The protocol of a perplexity.
    pub protocol: Option<String>,
    /// Absent where it is not finite.
    pub base: Option<f64>,
    pub new: Option<f64>,
    /// `new / base - 1`; absent where it is not finite. Of runs that took turns, from the ratios of
    /// their repetitions in pairs.
    pub change: Option<f64>,
    /// Interval of `change`. All intervals of a comparison hold together.
    pub interval: Option<(f64, f64)>,
    /// Share by which it may get worse.
    pub threshold: f64,
    pub verdict: Verdict,
    /// What to know about the verdict; may be empty.
    pub note: String,
}

/// Two runs of the same name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunComparison {
    /// Name of the subfolder; empty where a folder was one run.
    pub name: String,
    pub model: String,
    pub device: String,
    pub base_run_id: String,
    pub new_run_id: String,
    pub base_commit: String,
    pub new_commit: String,
    /// If any, nothing was compared.
    pub not_comparable: Vec<Difference>,
    pub failed: Vec<Failure>,
    pub notes: Vec<String>,
    pub changes: Vec<Change>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub format_version: u32,
    pub outcome: Outcome,
    pub exit_code: i32,
    pub base: String,
    pub new: String,
    pub thresholds: Thresholds,
    /// Confidence of each interval, such that they hold together.
    pub interval_confidence: f64,
    /// Runs that the base has and the new folder lacks; they count as failed cells.
    pub missing_runs: Vec<String>,
    /// Runs without a counterpart in the base.
    pub added_runs: Vec<String>,
    pub runs: Vec<RunComparison>,
}

impl Comparison {
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.runs.iter().flat_map(|run| &run.changes)
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        self.changes().filter(|c| c.verdict == verdict).count()
    }
}

/// Compares every run of `base` with the run of `new` that has its name.
pub fn compare(base: &Side, new: &Side, thresholds: &Thresholds) -> Comparison {
    let pending: Vec<(RunComparison, Vec<Observation>)> = base
        .runs
        .iter()
        .filter_map(|(name, a)| observe(name, a, new.runs.get(name)?))
        .collect();
    let noisy = |o: &&Observation| !matches!(o.data, Data::Exact);
    let decisions: usize = pending
        .iter()
        .map(|(_, o)| o.iter().filter(noisy).count())
        .sum();
    let tail = (thresholds.false_alarms.share() / decisions.max(1) as f64).min(0.25);
    let runs: Vec<RunComparison> = pending
        .into_par_iter()
        .map(|(mut run, observations)| {
            let judge = |o: Observation| judge(o, thresholds, tail);
            run.changes = observations.into_par_iter().map(judge).collect();
            run
        })
        .collect();
    let absent = |from: &Side, of: &Side| -> Vec<String> {
        let names = of.runs.keys().filter(|n| !from.runs.contains_key(*n));
        names.cloned().collect()
    };
    let mut comparison = Comparison {
        format_version: FORMAT_VERSION,
        outcome: Outcome::Fine,
        exit_code: 0,
        base: base.name.clone(),
        new: new.name.clone(),
        thresholds: thresholds.clone(),
        interval_confidence: 1.0 - 2.0 * tail,
        missing_runs: absent(new, base),
        added_runs: absent(base, new),
        runs,
    };
    comparison.outcome = outcome(&comparison);
    comparison.exit_code = comparison.outcome.exit_code();
    comparison
}

/// What one run has to be judged by; nothing to judge where the two do not compare.
fn observe(
    name: &str,
    base: &[Tables],
    new: &[Tables],
) -> Option<(RunComparison, Vec<Observation>)> {
    let (a, b) = (base.first()?, new.first()?);
    let mut run = RunComparison {
        name: name.into(),
        model: b.info.model.name.clone(),
        device: b.results.first().map_or("", |r| &r.device).into(),
        base_run_id: a.info.run_id.clone(),
        new_run_id: b.info.run_id.clone(),
        base_commit: a.info.git_commit.clone(),
        new_commit: b.info.git_commit.clone(),
        not_comparable: differences(a, b),
        failed: vec![],
        notes: vec![],
        changes: vec![],
    };
    for (side, repeated) in [("BASE", base), ("NEW", new)] {
        for again in repeated.iter().skip(1) {
            let found = differences(&repeated[0], again).into_iter();
            run.not_comparable.extend(found.map(|mut d| {
                d.what += &format!(", between repeated runs of {side}");
                d
            }));
        }
    }
    if !run.not_comparable.is_empty() {
        return Some((run, vec![]));
    }
    // A cell that failed in one repetition has failed, and has no speed there to go by.
    for again in new.iter().skip(1) {
        let failed = matched(&base[..1], std::slice::from_ref(again)).failed;
        run.failed.extend(failed);
    }
    if !run.failed.is_empty() {
        return Some((run, vec![]));
    }
    let cells = matched(base, new);
    run.failed = cells.failed;
    run.notes = cells.notes;
    run.not_comparable = cells.lacking;
    if cells.observations.is_empty() && run.failed.is_empty() && run.not_comparable.is_empty() {
        let fine = |t: &Tables| {
            let fine = t.results.iter().filter(|row| row.status == Status::Ok);
            format!("{} cells with a result", fine.count())
        };
        let what = "numbers that both have".to_string();
        run.not_comparable
            .push(Difference::new(what, fine(a), fine(b)));
    }
    match run.not_comparable.is_empty() {
        true => Some((run, cells.observations)),
        false => Some((run, vec![])),
    }
}

fn outcome(comparison: &Comparison) -> Outcome {
    let runs = &comparison.runs;
    // Folders of which no run has a counterpart are about different things.
    if runs.is_empty() || runs.iter().any(|r| !r.not_comparable.is_empty()) {
        Outcome::NotComparable
    } else if !comparison.missing_runs.is_empty() || runs.iter().any(|r| !r.failed.is_empty()) {
        Outcome::CellsFailed
    } else if comparison.count(Verdict::Regression) > 0 {
        Outcome::Regression
    } else {
        Outcome::Fine
    }
}

/// Decides about one number.
fn judge(observation: Observation, thresholds: &Thresholds, tail: f64) -> Change {
    let metric = observation.metric;
    let threshold = (metric.limit)(thresholds);
    let remark = match (metric.evidence, &observation.data) {
        (Evidence::Divergences, Data::Exact) => {
            "no per-window values: judged by the threshold alone"
        }
        _ => "",
    };
    let (base, new) = typical(&observation).unwrap_or((observation.base, observation.new));
    let change = |value: f64, interval, verdict, note: &str| Change {
        cell: observation.cell.clone(),
        metric: metric.id,
        protocol: observation.protocol.clone(),
        base: Some(base).filter(|v| v.is_finite()),
        new: Some(new).filter(|v| v.is_finite()),
        change: Some(value).filter(|v| v.is_finite()),
        interval,
        threshold,
        verdict,
        note: note.into(),
    };
    let plain = match base == new {
        true => 0.0,
        false => new / base - 1.0,
    };
    match (base.is_finite(), new.is_finite()) {
        (true, false) => return change(plain, None, Verdict::Regression, "is not finite"),
        (false, true) => return change(plain, None, Verdict::Improvement, "is finite again"),
        (false, false) => return change(plain, None, Verdict::Undecided, "is finite in neither"),
        (true, true) => {}
    }
    if (new - base).abs() <= (metric.floor)(thresholds).max(observation.floor) {
        let note = match new == base {
            true => remark,
            false => "differs by no more than rounding does",
        };
        return change(plain, None, Verdict::Unchanged, note);
    }
    let noise = thresholds.run_noise.share();
    let estimate = match &observation.data {
        Data::Exact => Some(Estimate {
            value: plain,
            low: plain,
            high: plain,
        }),
        Data::Windows { windows, block } => paired(windows, *block, tail).map(|e| Estimate {
            value: e.value.exp_m1(),
            low: e.low.exp_m1(),
            high: e.high.exp_m1(),
        }),
        Data::Divergences { windows, block } => paired(windows, *block, tail).map(|e| Estimate {
            value: plain,
            low: e.low / observation.base,
            high: e.high / observation.base,
        }),
        Data::Repetitions {
            base,
            new,
            in_turns,
        } => match in_turns {
            true => ratio_in_turns(base, new, noise, tail),
            false => speed_ratio(base, new, noise, tail),
        }
        .map(|e| Estimate {
            value: e.value - 1.0,
            low: e.low - 1.0,
            high: e.high - 1.0,
        }),
    };
    let Some(e) = estimate.filter(|e| !e.value.is_nan()) else {
        let note = match &observation.data {
            Data::Repetitions { base, new, .. } => format!(
                "{} and {} repetitions; at least {LEAST_REPETITIONS} are needed",
                base[0].len(),
                new[0].len()
            ),
            _ => "at least two windows are needed".into(),
        };
        return change(plain, None, Verdict::Undecided, &note);
    };
    let exact = matches!(observation.data, Data::Exact);
    let interval = (!exact).then_some((e.low, e.high));
    change(
        e.value,
        interval,
        verdict(metric.better, &e, threshold),
        remark,
    )
}

/// From the medians of repeated runs where both sides have them, else from the repetitions within
/// the only runs there are.
fn speed_ratio(base: &[Vec<f64>], new: &[Vec<f64>], noise: f64, tail: f64) -> Option<Estimate> {
    if base.len().min(new.len()) < 2 {
        return ratio_of_medians(&base[0], &new[0], noise, tail);
    }
    ratio_of_runs(&medians(base)?, &medians(new)?, noise, tail)
}

fn medians(runs: &[Vec<f64>]) -> Option<Vec<f64>> {
    runs.iter().map(|speeds| median(speeds)).collect()
}

/// The speeds that a comparison of repeated runs is about: geometric means over the runs.
fn typical(observation: &Observation) -> Option<(f64, f64)> {
    let Data::Repetitions { base, new, .. } = &observation.data else {
        return None;
    };
    let mean = |runs: &[Vec<f64>]| -> Option<f64> {
        let logs: Vec<f64> = medians(runs)?.iter().map(|speed| speed.ln()).collect();
        Some((logs.iter().sum::<f64>() / logs.len() as f64).exp())
    };
    (base.len().min(new.len()) > 1).then_some((mean(base)?, mean(new)?))
}

fn verdict(better: Better, change: &Estimate, threshold: f64) -> Verdict {
    // From here on, up is worse.
    let (worse, low, high) = match better {
        Better::Lower => (change.value, change.low, change.high),
        Better::Higher => (-change.value, -change.high, -change.low),
    };
    match () {
        () if worse > threshold && low > 0.0 => Verdict::Regression,
        () if worse < -threshold && high < 0.0 => Verdict::Improvement,
        () if worse.abs() > threshold => Verdict::Insignificant,
        () if low > 0.0 || high < 0.0 => Verdict::Tiny,
        () => Verdict::Unchanged,
    }
}
