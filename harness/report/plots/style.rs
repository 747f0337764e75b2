//! Colours, markers and sizes. A precision keeps its colour and marker in every plot and run.
//!
//! The hues are those of Okabe and Ito, which stay apart for colour-blind readers, darkened
//! where they would be faint on white; shapes tell the rows apart in grey print.

pub use super::scene::PAPER;
use super::scene::{Align, Point, Scene, text_width};
use plotters::style::RGBColor;
use std::collections::BTreeMap;

/// Neutral colours. The HTML page maps exactly these values to its own, light or dark, so
/// nothing else may use them.
pub const INK: RGBColor = RGBColor(0x1b, 0x1f, 0x24);
pub const QUIET: RGBColor = RGBColor(0x59, 0x63, 0x6e);
pub const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);
/// Pareto front, reference line.
pub const GUIDE: RGBColor = RGBColor(0xb0, 0xb7, 0xbf);

/// How plotters writes a colour in SVG.
pub fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const SKY: RGBColor = RGBColor(0x3f, 0xa4, 0xdc);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const ORANGE: RGBColor = RGBColor(0xd9, 0x8f, 0x00);
const RED: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const PURPLE: RGBColor = RGBColor(0xc0, 0x63, 0x9a);
const GREY: RGBColor = RGBColor(0x7a, 0x84, 0x8f);
const OLIVE: RGBColor = RGBColor(0x9a, 0x8b, 0x1f);

/// Width of every plot, narrow enough that its text stays readable on a phone.
pub const WIDTH: f64 = 500.0;
/// Text size for labels and ticks.
pub const TEXT: f64 = 14.5;
/// Space between content and the edge.
pub const EDGE: f64 = 8.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Marker {
    Disc,
    Square,
    Diamond,
    Up,
    Down,
    Pentagon,
    Star,
    Cross,
}

const MARKERS: [Marker; 8] = [
    Marker::Disc,
    Marker::Square,
    Marker::Diamond,
    Marker::Up,
    Marker::Down,
    Marker::Pentagon,
    Marker::Star,
    Marker::Cross,
];

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    pub color: RGBColor,
    pub marker: Marker,
}

/// Families of precisions by the start of their id; the longest match counts. Others get a style
/// from their name.
const FAMILIES: [(&str, RGBColor, Marker); 12] = [
    ("fp32", GREY, Marker::Pentagon),
    ("fp16", GREY, Marker::Disc),
    ("bf16", GREY, Marker::Cross),
    ("fp8", BLUE, Marker::Square),
    ("fp8-e5m2", SKY, Marker::Square),
    ("fp8-w8a8", BLUE, Marker::Pentagon),
    ("int8", GREEN, Marker::Diamond),
    ("int8-tensor", OLIVE, Marker::Diamond),
    ("int8-w8a8", GREEN, Marker::Cross),
    ("awq", RED, Marker::Up),
    ("gptq", PURPLE, Marker::Star),
    ("rtn", ORANGE, Marker::Down),
];

/// Styles for the labels of one run. Variants of a family share its colour and take the next
/// free marker; two labels look alike only once all 64 looks are taken.
pub fn styles<'a>(labels: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, Style> {
    let colors = [BLUE, RED, GREEN, PURPLE, SKY, ORANGE, OLIVE, GREY];
    let mut styles: BTreeMap<String, Style> = BTreeMap::new();
    for label in labels {
        if styles.contains_key(label) {
            continue;
        }
        let family = FAMILIES
            .iter()
            .filter(|(start, ..)| label.split(' ').any(|word| word.starts_with(start)))
            .max_by_key(|(start, ..)| start.len());
        let (color, first) = family.map_or_else(
            || {
                let hash = label
                    .bytes()
                    .fold(7usize, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
                (
                    colors[hash % colors.len()],
                    MARKERS[hash / 8 % MARKERS.len()],
                )
            },
            |(_, color, marker)| (*color, *marker),
        );
        // Own colour and marker, then own colour, then any that is free.
        let start = MARKERS.iter().position(|m| *m == first).unwrap_or(0);
        let style = std::iter::once(color)
            .chain(colors)
            .flat_map(|color| {
                (0..MARKERS.len()).map(move |i| Style {
                    color,
                    marker: MARKERS[(start + i) % MARKERS.len()],
                })
            })
            .find(|style| !styles.values().any(|taken| taken == style))
            .unwrap_or(Style {
                color,
                marker: first,
            });
        styles.insert(label.into(), style);
    }
    styles
}

/// Draws a marker with a rim of paper, so that overlapping ones stay apart.
pub fn draw_marker(scene: &mut Scene, centre: Point, radius: f64, style: Style) {
    for (grow, color) in [(1.5, PAPER), (0.0, style.color)] {
        match style.marker {
            Marker::Disc => scene.disc(centre, radius + grow, color),
            marker => scene.area(outline(marker, centre, radius, grow), color),
        }
    }
}

/// Corners of a marker whose area is about that of a disc of `radius`.
fn outline(marker: Marker, (x, y): Point, radius: f64, grow: f64) -> Vec<Point> {
    let polygon = |corners: usize, radius: f64, turn: f64| -> Vec<Point> {
        (0..corners)
            .map(|i| {
                let angle = std::f64::consts::TAU * (i as f64 / corners as f64 + turn);
                (x + radius * angle.sin(), y - radius * angle.cos())
            })
            .collect()
    };
    match marker {
        Marker::Square => polygon(4, radius * 1.22 + grow * 1.4, 0.125),
        Marker::Diamond => polygon(4, radius * 1.3 + grow * 1.4, 0.0),
        Marker::Up => polygon(3, radius * 1.4 + grow * 2.0, 0.0),
        Marker::Down => polygon(3, radius * 1.4 + grow * 2.0, 0.5),
        Marker::Star => {
            let inner = polygon(5, radius * 0.62 + grow * 1.2, 0.1);
            let outer = polygon(5, radius * 1.5 + grow * 1.8, 0.0);
            outer
                .into_iter()
                .zip(inner)
                .flat_map(|(a, b)| [a, b])
                .collect()
        }
        Marker::Cross => {
            let (long, half) = (radius * 1.15 + grow, radius * 0.42 + grow);
            [
                (-half, -long),
                (half, -long),
                (half, -half),
                (long, -half),
                (long, half),
                (half, half),
                (half, long),
                (-half, long),
                (-half, half),
                (-long, half),
                (-long, -half),
                (-half, -half),
            ]
            .map(|(dx, dy)| (x + dx, y + dy))
            .to_vec()
        }
        Marker::Disc | Marker::Pentagon => polygon(5, radius * 1.2 + grow * 1.2, 0.0),
    }
}

/// Rows of markers with names, as wide as the plot; gives the height used.
pub fn draw_legend(scene: &mut Scene, top: f64, entries: &[(String, LegendMark)]) -> f64 {
    const ROW: f64 = 22.0;
    let (mut x, mut y) = (EDGE, top);
    for (name, mark) in entries {
        let width = 18.0 + text_width(name, TEXT);
        if x > EDGE && x + width > scene.width - EDGE {
            (x, y) = (EDGE, y + ROW);
        }
        let centre = (x + 6.0, y + ROW / 2.0);
        match mark {
            LegendMark::Marker(style) => draw_marker(scene, centre, 5.0, *style),
            LegendMark::Patch(color) => scene.rectangle(
                (centre.0 - 6.0, centre.1 - 6.0),
                (centre.0 + 6.0, centre.1 + 6.0),
                *color,
            ),
        }
        scene.text(
            (x + 17.0, y + ROW / 2.0 + 0.36 * TEXT),
            name,
            TEXT,
            Align::Left,
            INK,
        );
        x += width + 16.0;
    }
    if entries.is_empty() {
        0.0
    } else {
        y + ROW - top
    }
}

/// The height that [`draw_legend`] will use.
pub fn legend_height(width: f64, entries: &[(String, LegendMark)]) -> f64 {
    draw_legend(&mut Scene::new(width, 0.0), 0.0, entries)
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LegendMark {
    Marker(Style),
    Patch(RGBColor),
}
