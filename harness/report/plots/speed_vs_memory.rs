//! Decoding speed over peak memory.

use super::pareto::Better;
use super::scatter::{self, Dot};
use super::{Plot, Scene, not_shown, nothing_to_draw, positive, split};
use crate::record::rows::ResultRow;
use crate::record::tables::Tables;
use crate::report::content;

pub const PLOT: Plot = Plot {
    name: "speed_vs_memory",
    title: "Decoding speed and peak memory",
    whole_sweep: false,
    caption,
    draw,
};

fn point(tables: &Tables, row: &ResultRow) -> Option<(f64, f64)> {
    let unit = content::memory_unit(tables);
    let memory = positive(row.peak_memory_bytes.map(|b| b as f64 / unit.bytes))?;
    Some((memory, positive(row.decode_tok_s)?))
}

fn dots(tables: &Tables) -> Vec<Dot> {
    let (rows, _) = split(tables, |row| point(tables, row));
    rows.into_iter()
        .map(|(row, (x, y))| Dot {
            label: content::label(tables, row),
            x,
            y,
            interval: positive(row.decode_tok_s_sd).map(|sd| ((y - sd).max(0.0), y + sd)),
        })
        .collect()
}

fn draw(tables: &Tables) -> Option<Scene> {
    let unit = content::memory_unit(tables).name;
    scatter::draw(
        tables,
        &dots(tables),
        &format!("Peak memory ({unit})"),
        "Decode (tokens/s)",
        Better::Higher,
    )
}

fn caption(tables: &Tables) -> String {
    let (rows, left_out) = split(tables, |row| point(tables, row));
    if rows.is_empty() {
        return nothing_to_draw("both decoding speed and peak memory", &left_out);
    }
    let bars = if rows.iter().any(|(row, _)| row.decode_tok_s_sd.is_some()) {
        " Bars: ± standard deviation of the repetitions."
    } else {
        ""
    };
    format!(
        "Median decoding speed against peak memory; faster is up, smaller is left. Grey line: \
         Pareto front.{bars}{}{}",
        scatter::moved_apart(&dots(tables), Better::Higher),
        not_shown(&left_out)
    )
}
