//! Runs with several batches or contexts: the table of all of them, and the run as summaries see
//! it, at the first.

use super::rows::{label, memory_unit};
use super::table::{Cell, Column, Kind, Row, Table, column, rate, rate_decimals};
use crate::record::format::one_line;
use crate::record::rows::{ResultRow, Status};
use crate::record::tables::Tables;
use std::borrow::Cow;

/// Batch and context of a row.
type Workload = (Option<u64>, Option<u64>);

fn workload(row: &ResultRow) -> Workload {
    (row.batch, row.prompt_tokens)
}

/// Every batch and context of the run, in the order of its rows.
fn workloads(tables: &Tables) -> Vec<Workload> {
    let mut found = vec![];
    for row in tables.results.iter().filter(|r| r.batch.is_some()) {
        if !found.contains(&workload(row)) {
            found.push(workload(row));
        }
    }
    found
}

/// The run at its first batch and context: what summaries, and plots of one workload, show.
pub fn first_workload(tables: &Tables) -> Cow<'_, Tables> {
    let workloads = workloads(tables);
    let (Some(first), true) = (workloads.first(), workloads.len() > 1) else {
        return Cow::Borrowed(tables);
    };
    let mut tables = tables.clone();
    tables
        .results
        .retain(|row| row.batch.is_none() || workload(row) == *first);
    let (batch, context) = *first;
    // Prefill starts at depth 0; its prompt shows in the tokens.
    let prompts = batch.zip(context).map(|(batch, context)| batch * context);
    tables.samples.retain(|s| {
        let own = match s.phase.as_str() {
            "decode" => Some(s.context) == context,
            _ => Some(s.tokens) == prompts,
        };
        own && Some(s.batch) == batch
    });
    tables
        .speed_pairs
        .retain(|pair| (Some(pair.batch), Some(pair.context)) == *first);
    Cow::Owned(tables)
}

/// What to say of summaries where there is more than they show.
pub(super) fn notice(tables: &Tables) -> Option<String> {
    let workloads = workloads(tables);
    let (batch, context) = *workloads.first().filter(|_| workloads.len() > 1)?;
    Some(format!(
        "Summaries show batch {}, context {}, the first of {}; the table of every batch and \
         context has all of them.",
        batch?,
        context?,
        workloads.len()
    ))
}

/// One line per row of `results.csv`, with its batch and context; without rows where there is
/// one of each only.
pub fn sweep(tables: &Tables) -> Table {
    if workloads(tables).len() < 2 {
        return Table::default();
    }
    let unit = memory_unit(tables);
    let prefill = rate_decimals(&tables.results, |r| r.prefill_tok_s);
    let decode = rate_decimals(&tables.results, |r| r.decode_tok_s);
    let summary = first_workload(tables);
    let mut columns: Vec<Column> = vec![
        column("Precision", "", "precision", Kind::Word),
        column("Batch", "", "batch", Kind::Number),
        column("Context", "tokens", "context", Kind::Number),
        column("Prefill", "tok/s", "prefill/s", Kind::Number),
        column("Decode", "tok/s", "decode/s", Kind::Number),
    ];
    for (head, short) in [("KV cache", "kv"), ("Peak memory", "peak")] {
        let short = format!("{short} {}", unit.name);
        columns.push(column(head, unit.name, &short, Kind::Number));
    }
    columns.push(column("Status", "", "status", Kind::Prose));
    let count = |value: Option<u64>| Cell::optional(value.map(|v| v.to_string()));
    let bytes = |value: Option<u64>| Cell::optional(value.map(|b| unit.number(b)));
    let rows = tables.results.iter().map(|row| Row {
        failed: row.status != Status::Ok,
        cells: vec![
            Cell::new(label(&summary, row), ""),
            count(row.batch),
            count(row.prompt_tokens),
            rate(row.prefill_tok_s, row.prefill_tok_s_sd, prefill),
            rate(row.decode_tok_s, row.decode_tok_s_sd, decode),
            bytes(row.kv_cache_bytes),
            bytes(row.peak_memory_bytes),
            Cell::new(row.status.word(), one_line(&row.error)),
        ],
    });
    Table {
        rows: rows.collect(),
        columns,
    }
}
