//! Distance from the reference over peak memory, on a logarithmic scale: precisions that a plot of
//! perplexity cannot tell apart lie decades apart here.

use super::pareto::Better;
use super::scatter::{self, Dot};
use super::{Plot, Scene, not_shown, nothing_to_draw, positive, split};
use crate::record::format::{self, one_line};
use crate::record::rows::ResultRow;
use crate::record::tables::Tables;
use crate::report::content;

pub const PLOT: Plot = Plot {
    name: "kl_vs_memory",
    title: "KL divergence and peak memory",
    whole_sweep: false,
    caption,
    draw,
};

/// Memory, and the logarithm of the divergence.
fn point(tables: &Tables, row: &ResultRow) -> Option<(f64, f64)> {
    let unit = content::memory_unit(tables);
    let memory = positive(row.peak_memory_bytes.map(|b| b as f64 / unit.bytes))?;
    let kl = positive(row.kl_mean_nats).filter(|kl| *kl > 1e-15)?;
    content::comparable(tables, row).then_some((memory, kl.log10()))
}

fn dots(tables: &Tables) -> Vec<Dot> {
    let (rows, _) = split(tables, |row| point(tables, row));
    rows.into_iter()
        .map(|(row, (x, y))| Dot {
            label: content::label(tables, row),
            x,
            y,
            interval: None,
        })
        .collect()
}

fn draw(tables: &Tables) -> Option<Scene> {
    let unit = content::memory_unit(tables).name;
    scatter::draw(
        tables,
        &dots(tables),
        &format!("Peak memory ({unit})"),
        "Mean KL divergence (nats, power of ten)",
        Better::Lower,
    )
}

/// Runs that compared nothing have no place for this plot, and nothing to say about it.
fn caption(tables: &Tables) -> String {
    if !content::has_divergence(tables) {
        return String::new();
    }
    let (rows, mut left_out) = split(tables, |row| point(tables, row));
    let reference = one_line(&tables.info.reference);
    // It is where all others are measured from.
    left_out.retain(|name| *name != format!("{reference} (no value)"));
    if rows.is_empty() {
        return nothing_to_draw("both a divergence and peak memory", &left_out);
    }
    let mut floors = tables.results.iter();
    let floor = floors
        .find(|row| content::is_noise_floor(tables, &row.precision))
        .and_then(|row| Some((row, row.kl_mean_nats?)));
    let floor = floor.map_or_else(String::new, |(row, kl)| {
        format!(
            " What rounding alone makes ({}) is {} nats, {} on this axis.",
            one_line(&row.precision),
            format::nats(kl),
            format::number(kl.log10(), 1)
        )
    });
    format!(
        "Mean KL divergence from {reference} against peak memory; lower is better in both, and −3 \
         stands for 0.001 nats. Grey line: Pareto front.{floor}{}{}",
        scatter::moved_apart(&dots(tables), Better::Lower),
        not_shown(&left_out)
    )
}
