//! The tables of a report.

use super::divergence::kl_cell;
use super::rows::{
    Interval, comparable, datasets, has_divergence, has_shares, is_reference, label, memory_unit,
    perplexity_interval, quality, quality_label,
};
use super::table::{
    Cell, Kind, Row, Table, change, column, json_text, percent_decimals, rate, rate_decimals,
    result_percent_decimals,
};
use crate::record::format::{self, ABSENT, one_line};
use crate::record::rows::{ResultRow, Status};
use crate::record::tables::Tables;

/// Decimals shared by all perplexities of the report's protocol.
fn perplexity_decimals(tables: &Tables) -> usize {
    let rows = || tables.results.iter().filter(|row| comparable(tables, row));
    let half_width = |kind: Interval| {
        rows()
            .map(move |row| perplexity_interval(row).filter(|i| i.2 == kind))
            .map(|interval| interval.map(|(low, high, _)| (high - low) / 2.0))
            .collect::<Vec<_>>()
    };
    format::column_decimals(half_width(Interval::Paired), 2, 3)
        .or_else(|| format::column_decimals(half_width(Interval::Text), 1, 3))
        .unwrap_or(2)
}

/// Decimals of a column of shares in %: one where all are small.
fn share_decimals(tables: &Tables, share: fn(&ResultRow) -> Option<f64>) -> usize {
    let small = |share: f64| share < 0.1;
    usize::from(tables.results.iter().filter_map(share).all(small))
}

/// The main table: one line per row of `results.csv`, failed ones included.
pub fn results(tables: &Tables) -> Table {
    let reference = &tables.info.reference;
    let against = if reference.is_empty() {
        "reference".to_string()
    } else {
        one_line(reference)
    };
    let unit = memory_unit(tables);
    let perplexity = perplexity_decimals(tables);
    let percent = result_percent_decimals(tables);
    let prefill = rate_decimals(&tables.results, |r| r.prefill_tok_s);
    let decode = rate_decimals(&tables.results, |r| r.decode_tok_s);
    // Runs without a timing have neither.
    let shares = has_shares(tables);
    let share_cell = |row: &ResultRow, share: fn(&ResultRow) -> Option<f64>| {
        shares.then(|| {
            let decimals = share_decimals(tables, share);
            Cell::optional(share(row).map(|s| format::number(100.0 * s, decimals)))
        })
    };
    let share_column =
        |head: &str| shares.then(|| column(head, "%", &format!("{head}%"), Kind::Number));
    let mut columns = vec![
        column("Precision", "", "precision", Kind::Word),
        column("Perplexity", "", "ppl", Kind::Number),
        column(
            &format!("Change from {against}"),
            "%, 95 % interval",
            "change % [95 % CI]",
            Kind::Number,
        ),
        column("Weights", "bits each", "bits/w", Kind::Number),
        column(
            "Peak memory",
            unit.name,
            &format!("peak {}", unit.name),
            Kind::Number,
        ),
        column("Prefill", "tok/s", "prefill/s", Kind::Number),
    ];
    columns.extend(share_column("MFU"));
    columns.push(column("Decode", "tok/s", "decode/s", Kind::Number));
    columns.extend(share_column("MBU"));
    columns.extend([
        column("Quantize", "s", "quant s", Kind::Number),
        column("Status", "", "status", Kind::Prose),
    ]);
    let compared = has_divergence(tables);
    if compared {
        let head = format!("KL from {against}");
        columns.insert(3, column(&head, "nats", "KL nats", Kind::Number));
    }
    let rows = tables
        .results
        .iter()
        .map(|row| {
            let own_protocol = comparable(tables, row);
            let change = if is_reference(tables, &row.precision, &row.kv_cache) {
                Cell::new(
                    if row.perplexity.is_some() {
                        "reference"
                    } else {
                        ABSENT
                    },
                    "",
                )
            } else if own_protocol {
                change(
                    row.delta_nll_nats,
                    row.delta_nll_ci_low,
                    row.delta_nll_ci_high,
                    percent,
                )
            } else {
                Cell::new(ABSENT, "")
            };
            let kl = compared.then(|| kl_cell(tables, row));
            let mut cells = vec![
                Cell::new(label(tables, row), ""),
                match row.perplexity {
                    Some(value) if own_protocol => Cell::new(format::number(value, perplexity), ""),
                    Some(_) => Cell::new(ABSENT, one_line(&row.protocol)),
                    None => Cell::new(ABSENT, ""),
                },
                change,
            ];
            cells.extend(kl);
            cells.extend([
                Cell::optional(row.bits_per_weight.map(|b| format::number(b, 2))),
                Cell::optional(row.peak_memory_bytes.map(|b| unit.number(b))),
                rate(row.prefill_tok_s, row.prefill_tok_s_sd, prefill),
            ]);
            cells.extend(share_cell(row, |r| r.mfu));
            cells.push(rate(row.decode_tok_s, row.decode_tok_s_sd, decode));
            cells.extend(share_cell(row, |r| r.mbu));
            cells.extend([
                Cell::optional(row.quantize_s.map(format::seconds)),
                Cell::new(row.status.word(), one_line(&row.error)),
            ]);
            Row {
                failed: row.status != Status::Ok,
                cells,
            }
        })
        .collect();
    Table { columns, rows }
}

/// Perplexity by text domain; beside it the standard error for the reference and the change in %
/// for all others.
pub fn domains(tables: &Tables) -> Table {
    let datasets = datasets(tables);
    let decimals = perplexity_decimals(tables);
    let percent =
        percent_decimals(quality(tables).map(|r| (r.delta_nll_ci_low, r.delta_nll_ci_high)));
    let mut labels: Vec<String> = Vec::new();
    for row in quality(tables) {
        let label = quality_label(tables, row);
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    let mut columns = vec![column("Precision", "", "precision", Kind::Word)];
    columns.extend(
        datasets
            .iter()
            .map(|name| column(&one_line(name), "", name, Kind::Number)),
    );
    let rows = labels
        .into_iter()
        .map(|name| {
            let mut cells = vec![Cell::new(name.clone(), "")];
            for dataset in &datasets {
                let row = quality(tables)
                    .find(|r| r.dataset == *dataset && quality_label(tables, r) == name);
                cells.push(match row {
                    None => Cell::new(ABSENT, ""),
                    Some(row) => {
                        let extra = match row.delta_nll_nats {
                            Some(delta) if !is_reference(tables, &row.precision, &row.kv_cache) => {
                                format!("{} %", format::signed(format::percent(delta), percent))
                            }
                            _ => row
                                .perplexity_se
                                .map(|se| format::plus_minus(se, 2))
                                .unwrap_or_default(),
                        };
                        Cell::new(format::number(row.perplexity, decimals), extra)
                    }
                });
            }
            Row {
                cells,
                failed: false,
            }
        })
        .collect();
    Table { columns, rows }
}

/// A part of the peak memory: its name and its column.
pub type Part = (&'static str, fn(&ResultRow) -> Option<u64>);

/// The parts of the peak, in the order in which they are stacked.
pub const PARTS: [Part; 6] = [
    ("weights", |r| r.weight_bytes),
    ("embeddings", |r| r.embedding_bytes),
    ("KV cache", |r| r.kv_cache_bytes),
    ("activations", |r| r.activation_peak_bytes),
    ("workspace", |r| r.workspace_bytes),
    ("other", |r| r.other_bytes),
];

/// Memory by part, for the rows that have any.
pub fn memory(tables: &Tables) -> Table {
    let unit = memory_unit(tables);
    let mut columns = vec![column("Precision", "", "precision", Kind::Word)];
    columns.extend(PARTS.map(|(name, _)| {
        let mut head = name.to_string();
        head[..1].make_ascii_uppercase();
        column(&head, unit.name, name, Kind::Number)
    }));
    columns.push(column("Peak", unit.name, "peak", Kind::Number));
    columns.push(column("Resident set", unit.name, "rss", Kind::Number));
    let rows = tables
        .results
        .iter()
        .filter(|row| row.peak_memory_bytes.is_some())
        .map(|row| {
            let bytes = |value: Option<u64>| Cell::optional(value.map(|b| unit.number(b)));
            let mut cells = vec![Cell::new(label(tables, row), "")];
            cells.extend(PARTS.map(|(_, part)| bytes(part(row))));
            cells.push(bytes(row.peak_memory_bytes));
            cells.push(bytes(row.peak_rss_bytes));
            Row {
                cells,
                failed: false,
            }
        })
        .collect();
    Table { columns, rows }
}

/// The evaluation and calibration texts.
pub fn texts(tables: &Tables) -> Table {
    let columns = vec![
        column("Text", "", "text", Kind::Word),
        column("Use", "", "use", Kind::Word),
        column("Tokens", "", "tokens", Kind::Number),
        column("Windows", "", "windows", Kind::Number),
        column("Bytes", "", "bytes", Kind::Number),
        column("Licence", "", "licence", Kind::Word),
        column("SHA-256", "", "sha256", Kind::Prose),
    ];
    let rows = tables
        .info
        .texts
        .iter()
        .map(|text| Row {
            failed: false,
            cells: vec![
                Cell::new(one_line(&text.name), one_line(&text.title)),
                Cell::new(one_line(&text.kind), ""),
                Cell::new(format::count(text.tokens), ""),
                Cell::new(format::count(text.windows), ""),
                Cell::new(format::count(text.bytes), ""),
                Cell::new(one_line(&text.licence), ""),
                Cell::new(one_line(&text.sha256), ""),
            ],
        })
        .collect();
    Table { columns, rows }
}

/// Every parameter of every method, and the counts that it reported.
pub fn methods(tables: &Tables) -> Table {
    let columns = vec![
        column("Precision", "", "precision", Kind::Word),
        column("Parameters", "", "parameters", Kind::Prose),
        column("Reported while quantizing", "", "notes", Kind::Prose),
        column("Packed file", "SHA-256", "packed", Kind::Word),
    ];
    let cells = &tables.info.cells;
    let rows = cells
        .iter()
        .enumerate()
        // The same for every KV cache.
        .filter(|(i, cell)| cells[..*i].iter().all(|c| c.precision != cell.precision))
        .map(|(_, cell)| {
            let parameters: Vec<String> = cell
                .parameters
                .iter()
                .map(|(name, value)| format!("{name} = {}", json_text(value)))
                .collect();
            let notes: Vec<String> = cell
                .notes
                .iter()
                .map(|(name, value)| format!("{name}: {}", format::number(*value, 0)))
                .collect();
            let or_absent = |text: String| if text.is_empty() { ABSENT.into() } else { text };
            Row {
                failed: false,
                cells: vec![
                    Cell::new(one_line(&cell.precision), ""),
                    Cell::new(or_absent(one_line(&parameters.join(", "))), ""),
                    Cell::new(or_absent(one_line(&notes.join(", "))), ""),
                    Cell::new(or_absent(format::shortened(&cell.packed_sha256, 17)), ""),
                ],
            }
        })
        .collect();
    Table { columns, rows }
}
