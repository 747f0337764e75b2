//! Which rows of a run compare, and what each is called.

use crate::record::format::{ByteUnit, one_line};
use crate::record::rows::{OVERALL, QualityRow, ResultRow};
use crate::record::tables::Tables;
use std::collections::BTreeSet;

/// The name of a row: its precision, and whichever other axis varies within the run.
pub fn label(tables: &Tables, row: &ResultRow) -> String {
    let varies = |key: fn(&ResultRow) -> String| {
        tables
            .results
            .iter()
            .map(key)
            .collect::<BTreeSet<_>>()
            .len()
            > 1
    };
    let mut label = one_line(&row.precision);
    if varies(|r| r.model.clone()) {
        label = format!("{} {label}", one_line(&row.model));
    }
    if varies(|r| r.device.clone()) {
        label += &format!(" {}", one_line(&row.device));
    }
    if varies(|r| r.kv_cache.clone()) && !row.kv_cache.is_empty() {
        label += &format!(" kv={}", one_line(&row.kv_cache));
    }
    if let Some(batch) = row.batch.filter(|_| varies(|r| format!("{:?}", r.batch))) {
        label += &format!(" b={batch}");
    }
    if let Some(tokens) = row
        .prompt_tokens
        .filter(|_| varies(|r| format!("{:?}", r.prompt_tokens)))
    {
        label += &format!(" ctx={tokens}");
    }
    label
}

/// The protocol that tables and plots show: the one of `results.csv`, never a mixture.
pub fn protocol(tables: &Tables) -> Option<&str> {
    tables
        .results
        .iter()
        .map(|row| row.protocol.as_str())
        .find(|protocol| !protocol.is_empty())
}

/// Whether a row's quality may stand beside the others'.
pub fn comparable(tables: &Tables, row: &ResultRow) -> bool {
    protocol(tables).is_none_or(|protocol| row.protocol == protocol)
}

/// The row that `row` is compared with: the reference precision with its first KV cache, all
/// other axes equal.
pub fn reference_of<'a>(tables: &'a Tables, row: &ResultRow) -> Option<&'a ResultRow> {
    let reference = &tables.info.reference;
    tables.results.iter().find(|r| {
        !reference.is_empty()
            && r.precision == *reference
            && r.model == row.model
            && r.device == row.device
            && r.batch == row.batch
            && r.prompt_tokens == row.prompt_tokens
    })
}

/// Whether differences refer to rows of this precision and KV cache.
pub fn is_reference(tables: &Tables, precision: &str, kv_cache: &str) -> bool {
    let reference = &tables.info.reference;
    !reference.is_empty() && precision == *reference && {
        let mut rows = tables.results.iter();
        rows.find(|r| r.precision == *reference)
            .is_none_or(|r| r.kv_cache == kv_cache)
    }
}

/// 95 % interval of a row's perplexity. Paired where the difference to the reference has one:
/// both precisions read the same windows, so what the text contributes cancels.
pub fn perplexity_interval(row: &ResultRow) -> Option<(f64, f64, Interval)> {
    let perplexity = row.perplexity?;
    match (
        row.delta_nll_nats,
        row.delta_nll_ci_low,
        row.delta_nll_ci_high,
    ) {
        (Some(delta), Some(low), Some(high)) => Some((
            perplexity * (low - delta).exp(),
            perplexity * (high - delta).exp(),
            Interval::Paired,
        )),
        _ => row.perplexity_se.map(|se| {
            (
                perplexity - 1.96 * se,
                perplexity + 1.96 * se,
                Interval::Text,
            )
        }),
    }
}

/// Where an interval comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interval {
    /// The interval of the difference to the reference, over the same windows.
    Paired,
    /// ±1.96 standard errors: how much another text would change the number.
    Text,
}

/// Whether any row's speed was related to what the machine can do.
pub fn has_shares(tables: &Tables) -> bool {
    let mut rows = tables.results.iter();
    rows.any(|row| row.mbu.is_some() || row.mfu.is_some())
}

/// The unit for every amount of memory in the report.
pub fn memory_unit(tables: &Tables) -> ByteUnit {
    ByteUnit::for_largest(tables.results.iter().filter_map(|r| r.peak_memory_bytes))
}

/// The rows of `quality.csv` that belong to the report's protocol.
pub fn quality(tables: &Tables) -> impl Iterator<Item = &QualityRow> {
    let protocol = protocol(tables);
    tables
        .quality
        .iter()
        .filter(move |row| protocol.is_none_or(|p| row.protocol == p))
}

/// Text domains in the order of the file, `overall` last.
pub fn datasets(tables: &Tables) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in quality(tables) {
        if row.dataset != OVERALL && !names.contains(&row.dataset) {
            names.push(row.dataset.clone());
        }
    }
    if quality(tables).any(|row| row.dataset == OVERALL) {
        names.push(OVERALL.into());
    }
    names
}

/// The name of a quality row, as [`label`] gives it to a result row.
pub fn quality_label(tables: &Tables, row: &QualityRow) -> String {
    cell_label(
        tables,
        [&row.precision, &row.model, &row.device, &row.kv_cache],
    )
}

/// The name of a row with this precision, model, device and KV cache, as [`label`] gives it to a
/// result row.
pub fn cell_label(tables: &Tables, of: [&String; 4]) -> String {
    let mut results = tables.results.iter();
    results
        .find(|r| [&r.precision, &r.model, &r.device, &r.kv_cache] == of)
        .map_or_else(|| one_line(of[0]), |r| label(tables, r))
}

/// Whether a precision shows what cannot be told from the reference, rather than one to choose.
pub fn is_noise_floor(tables: &Tables, precision: &str) -> bool {
    let mut floors = tables.info.noise_floors.iter();
    floors.any(|id| id == precision)
}

/// Whether any row was compared token by token.
pub fn has_divergence(tables: &Tables) -> bool {
    let mut rows = tables.results.iter();
    rows.any(|row| row.kl_mean_nats.is_some())
}
