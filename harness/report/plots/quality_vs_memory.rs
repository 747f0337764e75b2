//! Perplexity over peak memory: what a precision costs in quality, and what it saves.

use super::pareto::Better;
use super::scatter::{self, Dot};
use super::{Plot, Scene, not_shown, nothing_to_draw, positive, split};
use crate::record::format::one_line;
use crate::record::rows::ResultRow;
use crate::record::tables::Tables;
use crate::report::content::{self, Interval};

pub const PLOT: Plot = Plot {
    name: "quality_vs_memory",
    title: "Perplexity and peak memory",
    whole_sweep: false,
    caption,
    draw,
};

fn point(tables: &Tables, row: &ResultRow) -> Option<(f64, f64)> {
    let unit = content::memory_unit(tables);
    let memory = positive(row.peak_memory_bytes.map(|b| b as f64 / unit.bytes))?;
    let perplexity = positive(row.perplexity)?;
    content::comparable(tables, row).then_some((memory, perplexity))
}

/// The error bar of a row. The reference has none where the others are relative to it.
fn bar(tables: &Tables, row: &ResultRow) -> Option<(f64, f64, Interval)> {
    let paired = tables
        .results
        .iter()
        .any(|r| content::perplexity_interval(r).is_some_and(|i| i.2 == Interval::Paired));
    let is_reference = row.precision == tables.info.reference && row.delta_nll_nats.is_none();
    if paired && is_reference {
        return None;
    }
    content::perplexity_interval(row)
        .filter(|(low, high, _)| positive(Some(*low)).is_some() && positive(Some(*high)).is_some())
}

fn dots(tables: &Tables) -> Vec<Dot> {
    let (rows, _) = split(tables, |row| point(tables, row));
    rows.into_iter()
        .map(|(row, (x, y))| Dot {
            label: content::label(tables, row),
            x,
            y,
            interval: bar(tables, row).map(|(low, high, _)| (low, high)),
        })
        .collect()
}

fn draw(tables: &Tables) -> Option<Scene> {
    let unit = content::memory_unit(tables).name;
    scatter::draw(
        tables,
        &dots(tables),
        &format!("Peak memory ({unit})"),
        "Perplexity",
        Better::Lower,
    )
}

fn caption(tables: &Tables) -> String {
    let (rows, left_out) = split(tables, |row| point(tables, row));
    if rows.is_empty() {
        return nothing_to_draw("both perplexity and peak memory", &left_out);
    }
    let of_kind = |kind: Interval| {
        rows.iter()
            .filter(|(row, _)| bar(tables, row).is_some_and(|b| b.2 == kind))
            .map(|(row, _)| content::label(tables, row))
            .collect::<Vec<_>>()
    };
    let (paired, text) = (of_kind(Interval::Paired), of_kind(Interval::Text));
    let reference = one_line(&tables.info.reference);
    let mut bars = String::new();
    if !paired.is_empty() {
        bars += &format!(
            " Bars: 95 % interval of the difference to {reference} over the same windows, so \
             {reference} has none."
        );
    }
    if !text.is_empty() {
        let of = if paired.is_empty() {
            String::new()
        } else {
            format!(" of {}", text.join(", "))
        };
        bars += &format!(
            " Bars{of}: ±1.96 standard errors over windows, which is how much other texts would \
             change the number."
        );
    }
    let protocol = match content::protocol(tables) {
        Some(protocol) => format!(" ({})", one_line(protocol)),
        None => String::new(),
    };
    format!(
        "Perplexity over all texts{protocol} against peak memory; lower is better in both. Grey \
         line: Pareto front.{bars}{}{}",
        scatter::moved_apart(&dots(tables), Better::Lower),
        not_shown(&left_out)
    )
}
