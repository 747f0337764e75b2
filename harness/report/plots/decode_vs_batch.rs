//! Decoding speed over the batch: where reading fewer bytes stops to help.

use super::curves::{Curve, Standing, Sweep, standings};
use super::{Plot, Scene};
use crate::record::format::one_line;
use crate::record::tables::Tables;

pub const PLOT: Plot = Plot {
    name: "decode_vs_batch",
    title: "Decoding speed and batch",
    whole_sweep: true,
    caption,
    draw,
};

const SWEEP: Sweep = Sweep {
    varies: |row| row.batch,
    held: |row| row.prompt_tokens,
    x_title: "Batch (sequences at a time)",
};

fn draw(tables: &Tables) -> Option<Scene> {
    let curves = SWEEP.curves(tables);
    let crossings = standings(tables, &curves);
    let rings: Vec<(f64, f64)> = crossings
        .iter()
        .filter_map(|(_, standing)| match standing {
            Standing::OvertakenAt(_, place) => Some(*place),
            _ => None,
        })
        .collect();
    SWEEP.draw(tables, &rings)
}

fn caption(tables: &Tables) -> String {
    let curves = SWEEP.curves(tables);
    if curves.is_empty() {
        return String::new();
    }
    let depth = match SWEEP.held_at(tables) {
        Some(tokens) => format!(" from a depth of {tokens} tokens"),
        None => String::new(),
    };
    format!(
        "Median decoding speed of all sequences together{depth}, against the batch.{}{}",
        overtaking(tables, &curves),
        SWEEP.not_shown(tables)
    )
}

/// From which batch on the reference is faster than which others. Reading fewer bytes per step
/// helps while a step waits for memory; with the batch it comes to wait for arithmetic, which
/// unpacking makes more of.
fn overtaking(tables: &Tables, curves: &[Curve]) -> String {
    let reference = one_line(&tables.info.reference);
    let standings = standings(tables, curves);
    let names = |wanted: &dyn Fn(&Standing) -> bool| -> Vec<&str> {
        let matching = standings.iter().filter(|(_, standing)| wanted(standing));
        matching.map(|(curve, _)| curve.label.as_str()).collect()
    };
    let largest = curves.iter().flat_map(|curve| &curve.points);
    let largest = largest.map(|point| point.0).max().unwrap_or(0);
    let mut batches: Vec<u64> = standings
        .iter()
        .filter_map(|(_, standing)| match standing {
            Standing::OvertakenAt(batch, _) => Some(*batch),
            _ => None,
        })
        .collect();
    batches.sort_unstable();
    batches.dedup();
    let mut text = String::new();
    for batch in batches {
        let overtaken = names(&|s| matches!(s, Standing::OvertakenAt(b, _) if *b == batch));
        text += &format!(
            " From batch {batch} on {reference} decodes faster than {} (ring).",
            overtaken.join(", ")
        );
    }
    let ahead = names(&|s| *s == Standing::Ahead);
    if !ahead.is_empty() {
        let ahead = ahead.join(", ");
        text += &format!(" Up to batch {largest} {reference} does not overtake {ahead}.");
    }
    let behind = names(&|s| *s == Standing::Behind);
    if !behind.is_empty() {
        let behind = behind.join(", ");
        text += &format!(" {reference} is faster than {behind} at every batch.");
    }
    text
}
