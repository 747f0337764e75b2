//! What the peak memory of each precision consists of: stacked bars.

use super::axis::{Axis, Frame};
use super::scene::{Align, Scene, text_width};
use super::style::{self, EDGE, INK, LegendMark, PAPER, QUIET, TEXT, WIDTH};
use super::{Plot, not_shown, nothing_to_draw, split};
use crate::record::format;
use crate::record::rows::ResultRow;
use crate::record::tables::Tables;
use crate::report::content::{self, PARTS};
use plotters::style::RGBColor;

pub const PLOT: Plot = Plot {
    name: "memory_breakdown",
    title: "Memory by part",
    whole_sweep: false,
    caption,
    draw,
};

/// One colour per part, neighbours differing in lightness so that grey print keeps them apart.
const COLORS: [RGBColor; PARTS.len()] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x7f, 0xbf, 0xe6),
    RGBColor(0x00, 0x7f, 0x5c),
    RGBColor(0xe3, 0xa0, 0x1a),
    RGBColor(0xa8, 0x45, 0x7d),
    RGBColor(0x9a, 0xa3, 0xad),
];

const ROW: f64 = 46.0;
const BAR: f64 = 18.0;

/// Sizes of the parts of a row, in the order of [`PARTS`]; nothing if none is known.
fn parts(row: &ResultRow) -> Option<[u64; PARTS.len()]> {
    let sizes = PARTS.map(|(_, part)| part(row));
    let known = sizes.iter().any(|s| s.is_some_and(|bytes| bytes > 0));
    known.then(|| sizes.map(|size| size.unwrap_or(0)))
}

fn total(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
}

/// Whether the parts, each at its own high point, are more or less than the peak.
fn differs(row: &ResultRow, parts: &[u64]) -> bool {
    row.peak_memory_bytes
        .is_some_and(|peak| (total(parts) as f64 - peak as f64).abs() > 0.01 * peak as f64)
}

fn draw(tables: &Tables) -> Option<Scene> {
    let (rows, _) = split(tables, parts);
    if rows.is_empty() {
        return None;
    }
    let unit = content::memory_unit(tables);
    let legend: Vec<(String, LegendMark)> = PARTS
        .iter()
        .zip(COLORS)
        .enumerate()
        .filter(|(i, _)| rows.iter().any(|(_, parts)| parts[*i] > 0))
        .map(|(_, ((name, _), color))| (name.to_string(), LegendMark::Patch(color)))
        .collect();
    let legend_height = style::legend_height(WIDTH, &legend);
    let top = EDGE + legend_height + 6.0;
    let bottom = top + ROW * rows.len() as f64;
    let largest = rows
        .iter()
        .map(|(row, parts)| total(parts).max(row.peak_memory_bytes.unwrap_or(0)) as f64)
        .fold(0.0, f64::max)
        / unit.bytes;
    let mut scene = Scene::new(WIDTH, bottom + 52.0);
    style::draw_legend(&mut scene, EDGE, &legend);
    let frame = Frame {
        left: EDGE + 2.0,
        top,
        right: WIDTH - EDGE - 14.0,
        bottom,
        x: Axis::new(0.0, largest * 1.02, 6),
        y: Axis::new(0.0, 1.0, 1),
    };
    frame.draw_x(&mut scene, &format!("Memory ({})", unit.name));
    for (i, (row, parts)) in rows.iter().enumerate() {
        let row_top = top + ROW * i as f64;
        let bar_top = row_top + 22.0;
        let size = unit.with_unit(row.peak_memory_bytes.unwrap_or(total(parts)));
        let room = frame.right - frame.left - text_width(&size, TEXT) - 16.0;
        let name = fitting(&content::label(tables, row), room);
        // Names cross the grid; a strip of paper keeps them readable.
        scene.rectangle(
            (frame.left + 1.0, row_top + 2.0),
            (frame.left + text_width(&name, TEXT) + 6.0, bar_top),
            PAPER,
        );
        scene.rectangle(
            (frame.right - text_width(&size, TEXT) - 6.0, row_top + 2.0),
            (frame.right, bar_top),
            PAPER,
        );
        let baseline = row_top + 16.5;
        scene.text((frame.left + 3.0, baseline), &name, TEXT, Align::Left, INK);
        scene.text((frame.right, baseline), &size, TEXT, Align::Right, QUIET);
        let mut sum = 0u64;
        for (bytes, color) in parts.iter().zip(COLORS) {
            let from = frame.at(sum as f64 / unit.bytes, 0.0).0;
            sum = sum.saturating_add(*bytes);
            let to = frame.at(sum as f64 / unit.bytes, 0.0).0;
            scene.rectangle((from, bar_top), (to, bar_top + BAR), color);
            // A gap between parts, where there is room for one.
            if to - from > 3.0 {
                scene.line([(to, bar_top), (to, bar_top + BAR)], 1.0, PAPER);
            }
        }
        if let Some(peak) = row.peak_memory_bytes.filter(|_| differs(row, parts)) {
            let x = frame.at(peak as f64 / unit.bytes, 0.0).0;
            scene.line([(x, bar_top - 3.0), (x, bar_top + BAR + 3.0)], 2.0, INK);
        }
    }
    Some(scene)
}

/// A name shortened to a width.
fn fitting(name: &str, width: f64) -> String {
    (4..=48)
        .rev()
        .map(|most| format::shortened(name, most))
        .find(|text| text_width(text, TEXT) <= width)
        .unwrap_or_default()
}

fn caption(tables: &Tables) -> String {
    let (rows, left_out) = split(tables, parts);
    if rows.is_empty() {
        return nothing_to_draw("its memory by part", &left_out);
    }
    let mark = if rows.iter().any(|(row, parts)| differs(row, parts)) {
        " Parts are drawn at their own high points, which need not fall together; the dark stroke \
         is the measured peak."
    } else {
        ""
    };
    format!(
        "Memory at the peak by part; the number at the right is the peak. Embeddings include norms \
         and the output head.{mark}{}",
        not_shown(&left_out)
    )
}
