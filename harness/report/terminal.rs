//! The short table that ends the terminal output: plain ASCII, at most [`WIDTH`] columns.

use super::content::{self, Kind, Table};
use crate::record::format;
use crate::record::tables::Tables;

/// Longest line.
pub const WIDTH: usize = 100;
const GAP: usize = 2;
const NAME: usize = 24;

/// The results as an aligned table, then what to know about them.
pub fn summary(tables: &Tables) -> String {
    let summary = &content::first_workload(tables);
    let mut text = String::new();
    for table in [content::results(summary), content::sweep(tables)] {
        if !table.rows.is_empty() {
            text += &grid(&table);
            text.push('\n');
        }
    }
    for sentence in std::iter::once(content::headline(summary)).chain(content::notices(tables)) {
        text += &wrapped(&format::ascii(&sentence), "");
    }
    for sentence in content::pair_sentences(summary) {
        text += &wrapped(&format::ascii(&sentence), "  ");
    }
    for warning in content::warnings(tables) {
        text += &wrapped(&format::ascii(&format!("warning: {warning}")), "  ");
    }
    text
}

/// Columns in the order in which they are given up when the line is too long.
const LEAST_NEEDED: [&str; 6] = ["MFU%", "quant s", "bits/w", "MBU%", "prefill/s", "decode/s"];

fn grid(table: &Table) -> String {
    // The last column is the status, which a failed row shows in place of its numbers.
    let status = table.columns.len() - 1;
    let cell = |row: usize, column: usize| {
        let cell = &table.rows[row].cells[column];
        // Standard deviations are in the report; the line has room for one interval.
        match cell.extra.starts_with('[') {
            true => format::ascii(&cell.joined()),
            false => format::shortened(&format::ascii(&cell.text), NAME).replace('…', "~"),
        }
    };
    let fine: Vec<usize> = (0..table.rows.len())
        .filter(|row| !table.rows[*row].failed)
        .collect();
    let width = |column: usize| {
        let rows: Vec<usize> = match column {
            0 => (0..table.rows.len()).collect(),
            _ => fine.clone(),
        };
        rows.into_iter()
            .map(|row| cell(row, column).len())
            .chain([format::ascii(&table.columns[column].short).len()])
            .max()
            .unwrap_or(0)
    };
    let mut columns: Vec<usize> = (0..status).collect();
    let total = |columns: &[usize]| columns.iter().map(|c| width(*c) + GAP).sum::<usize>();
    for name in LEAST_NEEDED {
        if total(&columns) > WIDTH + GAP {
            columns.retain(|c| table.columns[*c].short != name);
        }
    }
    let aligned = |column: usize, text: String| match table.columns[column].kind {
        Kind::Number => format!("{text:>0$}", width(column)),
        _ => format!("{text:<0$}", width(column)),
    };
    let line = |cells: Vec<String>| {
        let line = cells.join(&" ".repeat(GAP));
        let cut: String = line.trim_end().chars().take(WIDTH).collect();
        format!("{cut}\n")
    };
    let mut text = line(
        columns
            .iter()
            .map(|c| aligned(*c, format::ascii(&table.columns[*c].short)))
            .collect(),
    );
    for (row, content) in table.rows.iter().enumerate() {
        text += &if content.failed {
            let reason = &content.cells[status];
            let reason = match reason.extra.as_str() {
                "" => reason.text.clone(),
                extra => format!("{}: {extra}", reason.text),
            };
            line(vec![aligned(0, cell(row, 0)), format::ascii(&reason)])
        } else {
            line(columns.iter().map(|c| aligned(*c, cell(row, *c))).collect())
        };
    }
    text
}

/// A sentence broken at words.
fn wrapped(text: &str, indent: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            line = indent.into();
        }
        if !line.trim().is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines += &line;
    lines.push('\n');
    lines
}
