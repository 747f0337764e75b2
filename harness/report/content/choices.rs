//! The table of right answers to multiple-choice items.

use super::rows::cell_label;
use super::table::{Cell, Kind, Row, Table, column};
use crate::record::format::{self, ABSENT, one_line};
use crate::record::tables::Tables;

/// One line per precision, KV cache and set.
pub fn choices(tables: &Tables) -> Table {
    let columns = vec![
        column("Precision", "", "precision", Kind::Word),
        column("Set", "", "set", Kind::Word),
        column("Items", "", "items", Kind::Number),
        column("Right", "%, 95 % interval", "right %", Kind::Number),
        column(
            "Right per byte",
            "%, 95 % interval",
            "per byte %",
            Kind::Number,
        ),
        column("Right per token", "%", "per token %", Kind::Number),
        column("Changed", "lost, gained", "changed", Kind::Number),
    ];
    let rows = tables
        .choices
        .iter()
        .map(|row| Row {
            failed: false,
            cells: vec![
                Cell::new(
                    cell_label(
                        tables,
                        [&row.precision, &row.model, &row.device, &row.kv_cache],
                    ),
                    "",
                ),
                Cell::new(one_line(&row.dataset), ""),
                Cell::new(format::count(row.items), ""),
                share(row.accuracy, row.accuracy_ci_low, row.accuracy_ci_high),
                share(
                    row.accuracy_normalized,
                    row.accuracy_normalized_ci_low,
                    row.accuracy_normalized_ci_high,
                ),
                Cell::new(format::number(100.0 * row.accuracy_per_token, 1), ""),
                match (row.changed_items, row.lost_items, row.gained_items) {
                    (Some(changed), Some(lost), Some(gained)) => Cell::new(
                        format::count(changed),
                        format!("({lost} lost, {gained} gained)"),
                    ),
                    _ => Cell::new(ABSENT, ""),
                },
            ],
        })
        .collect();
    Table { columns, rows }
}

/// A share in %, with its interval.
fn share(value: f64, low: f64, high: f64) -> Cell {
    let percent = |share: f64| format::number(100.0 * share, 1);
    Cell::new(
        percent(value),
        format!("[{}, {}]", percent(low), percent(high)),
    )
}
