//! The words of a comparison that every output shares.

use crate::compare::{Change, Comparison, RunComparison, Verdict};
use crate::record::format::{self, one_line};

/// One line: the outcome and what it rests on.
pub(super) fn headline(comparison: &Comparison) -> String {
    let counted = |n: usize, one: &str, many: &str| match n {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    };
    let runs = &comparison.runs;
    let differences = runs.iter().map(|r| r.not_comparable.len()).sum();
    let failed = runs.iter().map(|r| r.failed.len()).sum();
    let parts: Vec<String> = [
        counted(
            differences,
            "difference in what was measured",
            "differences in what was measured",
        ),
        counted(comparison.missing_runs.len(), "run missing", "runs missing"),
        counted(failed, "cell failed", "cells failed"),
        counted(
            comparison.count(Verdict::Regression),
            "regression",
            "regressions",
        ),
        counted(
            comparison.count(Verdict::Improvement),
            "improvement",
            "improvements",
        ),
        counted(
            comparison.count(Verdict::Undecided),
            "undecided",
            "undecided",
        ),
        counted(
            comparison.changes().count(),
            "number compared",
            "numbers compared",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    match parts.is_empty() {
        true => comparison.outcome.words().into(),
        false => format!("{} ({})", comparison.outcome.words(), parts.join(", ")),
    }
}

/// What a run of a set is called: its folder, model and device.
pub(super) fn title(run: &RunComparison) -> String {
    let name = match run.name.as_str() {
        "" => String::new(),
        name => format!("{}: ", one_line(name)),
    };
    let commit = |commit: &str| match commit {
        "" => "an unknown commit".to_string(),
        commit => one_line(commit),
    };
    let (base, new) = (commit(&run.base_commit), commit(&run.new_commit));
    let commits = match base == new {
        true => format!("both {new}"),
        false => format!("{new} against {base}"),
    };
    let (model, device) = (one_line(&run.model), one_line(&run.device));
    format!("{name}{model} on {device}, {commits}")
}

/// Sentences about runs and cells that are missing, failed or new: failures first.
pub(super) fn failures(comparison: &Comparison) -> Vec<String> {
    let named = |name: &String| match name.as_str() {
        "" => "the folder's own run".to_string(),
        name => format!("run `{}`", one_line(name)),
    };
    let missing = comparison.missing_runs.iter();
    let mut lines: Vec<String> = missing
        .map(|name| format!("FAILED: {} of the base is missing", named(name)))
        .collect();
    for run in &comparison.runs {
        let failed = run.failed.iter();
        lines.extend(failed.map(|f| format!("FAILED: {} {}", f.cell, f.what)));
    }
    lines
}

pub(super) fn notes(comparison: &Comparison) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for run in &comparison.runs {
        lines.extend(run.notes.clone());
    }
    for name in &comparison.added_runs {
        let name = one_line(name);
        lines.push(format!(
            "run `{name}` is new: the base has none of that name"
        ));
    }
    lines
}

/// How the decisions were made.
pub(super) fn rule(comparison: &Comparison) -> String {
    let t = &comparison.thresholds;
    format!(
        "Fails only where a change is larger than its threshold and its interval excludes no \
         change: perplexity +{}, KL divergence +{}, prefill -{}, decode -{}, memory +{}. Each \
         interval holds with {:.2} %, so that a comparison of equal builds raises an alarm in at \
         most {} of cases; speeds allow for {} between runs. Memory repeats exactly and is judged by \
         the threshold alone; changes of the KL divergence up to {:e} nats or the base's noise floor \
         are none.",
        t.max_perplexity_increase,
        t.max_kl_increase,
        t.max_prefill_decrease,
        t.max_decode_decrease,
        t.max_memory_increase,
        100.0 * comparison.interval_confidence,
        t.false_alarms,
        t.run_noise,
        t.kl_floor_nats
    )
}

/// Cells of a row of the table.
pub(super) struct Shown {
    pub cell: String,
    pub metric: String,
    pub base: String,
    pub new: String,
    pub change: String,
    pub interval: String,
    pub verdict: String,
}

impl Shown {
    pub const HEADER: [&str; 7] = [
        "cell",
        "metric",
        "base",
        "new",
        "change %",
        "interval %",
        "verdict",
    ];

    pub fn of(change: &Change) -> Self {
        let value = |v: Option<f64>| v.map_or("not finite".into(), significant);
        let percent = |share: f64| {
            let percent = 100.0 * share;
            format::signed(percent, if percent.abs() < 1.0 { 3 } else { 1 })
        };
        let metric = match &change.protocol {
            Some(protocol) => format!("{} {}", change.metric, one_line(protocol)),
            None => change.metric.to_string(),
        };
        let verdict = match change.note.as_str() {
            "" => change.verdict.words().to_string(),
            note => format!("{} ({note})", change.verdict.words()),
        };
        Shown {
            cell: change.cell.to_string(),
            metric,
            base: value(change.base),
            new: value(change.new),
            change: change.change.map_or(format::ABSENT.into(), percent),
            interval: change.interval.map_or(String::new(), |(low, high)| {
                format!("[{}, {}]", percent(low), percent(high))
            }),
            verdict,
        }
    }

    pub fn cells(self) -> [String; 7] {
        [
            self.cell,
            self.metric,
            self.base,
            self.new,
            self.change,
            self.interval,
            self.verdict,
        ]
    }
}

/// Six significant digits, whole numbers in full.
fn significant(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value}");
    }
    let digits = 5 - value.abs().log10().floor().clamp(-9.0, 5.0) as i32;
    format::number(value, digits.max(0) as usize)
}
