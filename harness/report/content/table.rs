//! What a table of a report is made of, and how its cells show changes and rates.

use super::rows::comparable;
use crate::record::format::{self, ABSENT};
use crate::record::rows::ResultRow;
use crate::record::tables::Tables;

/// One table, ready to be laid out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub head: String,
    pub unit: String,
    /// For narrow output: what is being counted, unit included.
    pub short: String,
    pub kind: Kind,
}

/// How the cells of a column are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A word or two, never broken.
    Word,
    /// Aligned right.
    Number,
    /// Text of any length, broken where needed.
    Prose,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    pub cells: Vec<Cell>,
    pub failed: bool,
}

/// A value, and its uncertainty or remark in a quieter voice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cell {
    pub text: String,
    pub extra: String,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, extra: impl Into<String>) -> Self {
        Cell {
            text: text.into(),
            extra: extra.into(),
        }
    }

    pub(super) fn optional(text: Option<String>) -> Self {
        Cell::new(text.unwrap_or_else(|| ABSENT.into()), "")
    }

    /// Value and remark on one line.
    pub fn joined(&self) -> String {
        if self.extra.is_empty() {
            self.text.clone()
        } else {
            format!("{} {}", self.text, self.extra)
        }
    }
}

pub(super) fn column(head: &str, unit: &str, short: &str, kind: Kind) -> Column {
    Column {
        head: head.into(),
        unit: unit.into(),
        short: short.into(),
        kind,
    }
}

/// The change of perplexity in %, with its interval where there is one.
pub(super) fn change(
    delta: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    decimals: usize,
) -> Cell {
    let Some(delta) = delta else {
        return Cell::new(ABSENT, "");
    };
    let interval = match (low, high) {
        (Some(low), Some(high)) => {
            format::interval(format::percent(low), format::percent(high), decimals)
        }
        _ => String::new(),
    };
    Cell::new(format::signed(format::percent(delta), decimals), interval)
}

/// Decimals for a column of changes in %.
pub(super) fn percent_decimals(
    intervals: impl IntoIterator<Item = (Option<f64>, Option<f64>)>,
) -> usize {
    let half_widths = intervals
        .into_iter()
        .map(|(low, high)| Some((format::percent(high?) - format::percent(low?)) / 2.0));
    format::column_decimals(half_widths, 1, 2).unwrap_or(2)
}

pub(super) fn result_percent_decimals(tables: &Tables) -> usize {
    percent_decimals(
        tables
            .results
            .iter()
            .filter(|row| comparable(tables, row))
            .map(|r| (r.delta_nll_ci_low, r.delta_nll_ci_high)),
    )
}

pub(super) fn rate(median: Option<f64>, sd: Option<f64>, decimals: usize) -> Cell {
    match median {
        None => Cell::new(ABSENT, ""),
        Some(median) => Cell::new(
            format::number(median, decimals),
            sd.map(|sd| format::plus_minus(sd, decimals))
                .unwrap_or_default(),
        ),
    }
}

pub(super) fn rate_decimals<'a>(
    rows: impl IntoIterator<Item = &'a ResultRow>,
    value: fn(&ResultRow) -> Option<f64>,
) -> usize {
    rows.into_iter()
        .filter_map(value)
        .map(format::three_digits)
        .max()
        .unwrap_or(1)
        .min(1)
}

pub(super) fn json_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
