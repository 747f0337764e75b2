//! How far precisions are from the reference, token by token: its tables and sentences.

use super::rows::{comparable, has_divergence, is_noise_floor, is_reference, label};
use super::table::{Cell, Kind, Row, Table, column};
use crate::record::format::{self, ABSENT, one_line};
use crate::record::rows::{ResultRow, Status};
use crate::record::run_info::{CellDetail, Divergence};
use crate::record::tables::Tables;

/// Mean divergence of a row, for the main table.
pub(super) fn kl_cell(tables: &Tables, row: &ResultRow) -> Cell {
    match is_reference(tables, &row.precision, &row.kv_cache) || !comparable(tables, row) {
        true => Cell::new(ABSENT, ""),
        false => Cell::optional(row.kl_mean_nats.map(format::nats)),
    }
}

fn share(value: Option<f64>, decimals: usize) -> Cell {
    Cell::optional(value.map(|v| format::number(100.0 * v, decimals)))
}

/// One line per precision that was compared.
pub fn divergence(tables: &Tables) -> Table {
    let nats = |head: &str, short: &str| column(head, "nats", short, Kind::Number);
    let columns = vec![
        column("Precision", "", "precision", Kind::Word),
        nats("Mean KL", "KL mean"),
        nats("Median", "KL median"),
        nats("90 %", "KL p90"),
        nats("99 %", "KL p99"),
        nats("Largest", "KL max"),
        column("Same top token", "%", "top-1 %", Kind::Number),
        column("Mean Δp", "%", "dp mean %", Kind::Number),
        column("RMS Δp", "%", "dp rms %", Kind::Number),
        column(
            "Perplexity ratio",
            "± standard error",
            "ratio",
            Kind::Number,
        ),
        column("Tokens", "", "tokens", Kind::Number),
        column("Not finite", "tokens", "not finite", Kind::Number),
    ];
    let kl = |value: Option<f64>| Cell::optional(value.map(format::nats));
    let rows = tables
        .results
        .iter()
        .filter(|row| row.kl_tokens.is_some() && comparable(tables, row))
        .map(|row| Row {
            failed: row.status != Status::Ok,
            cells: vec![
                named(tables, &label(tables, row), &row.precision),
                kl(row.kl_mean_nats),
                kl(row.kl_median_nats),
                kl(row.kl_p90_nats),
                kl(row.kl_p99_nats),
                kl(row.kl_max_nats),
                share(row.top1_agreement, 2),
                Cell::optional(row.delta_p_mean.map(|p| format::signed(100.0 * p, 3))),
                share(row.delta_p_rms, 3),
                ratio(row),
                Cell::optional(row.kl_tokens.map(format::count)),
                Cell::optional(row.nonfinite_tokens.map(format::count)),
            ],
        })
        .collect();
    Table { columns, rows }
}

/// A name, with a remark where it is a noise floor's.
fn named(tables: &Tables, name: &str, precision: &str) -> Cell {
    let remark = match is_noise_floor(tables, precision) {
        true => "noise floor",
        false => "",
    };
    Cell::new(name, remark)
}

fn ratio(row: &ResultRow) -> Cell {
    let Some(ratio) = row.perplexity_ratio else {
        return Cell::new(ABSENT, "");
    };
    let decimals = row.perplexity_ratio_se.and_then(format::decimals_for);
    let decimals = decimals.unwrap_or(4).max(3);
    let error = row.perplexity_ratio_se;
    let error = error.map(|se| format::plus_minus(se, decimals));
    Cell::new(format::number(ratio, decimals), error.unwrap_or_default())
}

/// The cells of `run.json` that were compared, one per precision and KV cache.
fn compared(tables: &Tables) -> impl Iterator<Item = (&CellDetail, &Divergence)> {
    let cells = tables.info.cells.iter();
    cells.filter_map(|cell| Some((cell, cell.divergence.as_ref()?)))
}

/// Mean divergence by the reference's confidence; beside it the share of equal top tokens.
pub fn confidence(tables: &Tables) -> Table {
    let Some((_, first)) = compared(tables).next() else {
        return Table::default();
    };
    let mut columns = vec![column("Precision", "", "precision", Kind::Word)];
    columns.extend(first.buckets.iter().map(|bucket| {
        let [from, to] = [bucket.from, bucket.to].map(|p| format::number(100.0 * p, 0));
        let tokens = format!("{} tokens", format::count(bucket.tokens));
        column(&format!("{from}–{to} %"), &tokens, &from, Kind::Number)
    }));
    let rows = compared(tables).map(|(cell, divergence)| {
        let row = tables
            .results
            .iter()
            .find(|row| (&row.precision, &row.kv_cache) == (&cell.precision, &cell.kv_cache));
        let name = row.map_or_else(|| one_line(&cell.precision), |row| label(tables, row));
        let mut cells = vec![named(tables, &name, &cell.precision)];
        cells.extend(divergence.buckets.iter().map(|bucket| {
            let same = bucket.top1_agreement;
            let same = same.map(|share| format!("{} %", format::number(100.0 * share, 1)));
            Cell {
                extra: same.unwrap_or_default(),
                ..Cell::optional(bucket.kl_mean_nats.map(format::nats))
            }
        }));
        // Of another run's edges, if files were mixed: no cell may stand in a wrong column.
        cells.resize(columns.len(), Cell::new(ABSENT, ""));
        Row {
            cells,
            failed: false,
        }
    });
    Table {
        rows: rows.collect(),
        columns,
    }
}

/// How the comparison was made, and what lossless means in it.
pub(super) fn note(tables: &Tables) -> String {
    if !has_divergence(tables) {
        return String::new();
    }
    let reference = one_line(&tables.info.reference);
    let tokens = tables.results.iter().filter_map(|row| row.kl_tokens).max();
    let resolution = compared(tables)
        .map(|(_, divergence)| divergence.resolution_nats)
        .fold(0.0, f64::max);
    let resolution = match resolution > 0.0 {
        true => format!(
            " {reference}’s log-probabilities were kept in 16 bits per value, which by itself shows \
             as at most {} nats.",
            format::nats(resolution)
        ),
        false => String::new(),
    };
    format!(
        "For {} scored tokens (the first windows of every text that fit --kl-cache) the whole \
         distribution over the vocabulary is compared with {reference}’s: KL divergence from \
         {reference} in nats, whether the most probable token is the same, and Δp, the probability \
         of the actual token minus {reference}’s.{resolution} The perplexity ratio is over all \
         scored windows; its standard error is paired, over windows (delta method). Tokens that \
         are not finite are counted and left out.{}",
        format::count(tokens.unwrap_or(0)),
        noise_floor_sentence(tables)
    )
}

/// What the noise floor is, with its divergence.
fn noise_floor_sentence(tables: &Tables) -> String {
    let mut rows = tables.results.iter();
    let floor = rows.find(|row| is_noise_floor(tables, &row.precision));
    let Some((row, kl)) = floor.and_then(|row| Some((row, row.kl_mean_nats?))) else {
        return String::new();
    };
    format!(
        " {} is {} with noise of the size of its own rounding, so {} nats is what “lossless” means \
         here; it is no precision to choose, and only its quality was measured.",
        one_line(&row.precision),
        one_line(&tables.info.reference),
        format::nats(kl)
    )
}
