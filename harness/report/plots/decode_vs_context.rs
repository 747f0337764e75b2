//! Decoding speed over the context: what keys and values cost that every step reads.

use super::curves::Sweep;
use super::{Plot, Scene};
use crate::record::tables::Tables;

pub const PLOT: Plot = Plot {
    name: "decode_vs_context",
    title: "Decoding speed and context",
    whole_sweep: true,
    caption,
    draw,
};

const SWEEP: Sweep = Sweep {
    varies: |row| row.prompt_tokens,
    held: |row| row.batch,
    x_title: "Context (tokens)",
};

fn draw(tables: &Tables) -> Option<Scene> {
    SWEEP.draw(tables, &[])
}

fn caption(tables: &Tables) -> String {
    if SWEEP.curves(tables).is_empty() {
        return String::new();
    }
    let batch = match SWEEP.held_at(tables) {
        Some(batch) => format!(" at batch {batch}"),
        None => String::new(),
    };
    format!(
        "Median decoding speed{batch} against the tokens that lie in the KV cache when decoding \
         begins.{}",
        SWEEP.not_shown(tables)
    )
}
