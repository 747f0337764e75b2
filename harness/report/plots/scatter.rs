//! Points with intervals over memory, the Pareto front, and a name at every point: what the
//! quality and the speed plot share.

use super::axis::{Axis, Frame};
use super::labels::{self, Rect, Surroundings};
use super::pareto::{self, Better};
use super::scene::{Align, Point, Scene, text_width};
use super::style::{self, GUIDE, INK, LegendMark, PAPER, QUIET, TEXT, WIDTH};
use crate::record::format;
use crate::record::tables::Tables;
use crate::report::content;

/// One row of the table as a point.
pub struct Dot {
    pub label: String,
    pub x: f64,
    pub y: f64,
    /// Ends of the error bar.
    pub interval: Option<(f64, f64)>,
}

const HEIGHT: f64 = 400.0;
const MARKER: f64 = 6.0;
/// What it costs a name to cover an error bar, or the front.
const COVERED_BAR: f64 = 90.0;
const COVERED_FRONT: f64 = 36.0;
/// Distance of points that stand side by side.
const SIDE_STEP: f64 = 15.0;
/// Longest name beside a point; the legend has more room.
const MOST_CHARS: usize = 26;

/// Draws the points; nothing without any.
pub fn draw(
    tables: &Tables,
    dots: &[Dot],
    x_title: &str,
    y_title: &str,
    y_better: Better,
) -> Option<Scene> {
    if dots.is_empty() {
        return None;
    }
    let names: Vec<String> = tables
        .results
        .iter()
        .map(|row| content::label(tables, row))
        .collect();
    let styles = style::styles(names.iter().map(String::as_str));
    let (frame, points) = layout(dots, y_better);
    let bars: Vec<Option<(Point, Point)>> = dots
        .iter()
        .zip(&points)
        .map(|(dot, (x, _))| {
            let (low, high) = dot.interval?;
            let (low, high) = (frame.at(dot.x, low).1, frame.at(dot.x, high).1);
            // A bar inside its marker would only fray the marker's edge.
            (low - high > 2.0 * MARKER + 6.0).then_some(((*x, low), (*x, high)))
        })
        .collect();
    let steps = staircase(&frame, dots, &points, y_better);

    let mut scene = Scene::new(WIDTH, HEIGHT);
    frame.draw(&mut scene, x_title, y_title);
    let better = match y_better {
        Better::Lower => "better: lower left",
        Better::Higher => "better: upper left",
    };
    scene.text(
        (frame.right, frame.top - 17.0),
        better,
        TEXT,
        Align::Right,
        QUIET,
    );
    scene.line(steps.clone(), 2.0, GUIDE);
    let texts: Vec<String> = dots
        .iter()
        .map(|d| format::shortened(&d.label, MOST_CHARS))
        .collect();
    let sizes: Vec<(f64, f64)> = texts
        .iter()
        .map(|t| (text_width(t, TEXT), TEXT * 1.1))
        .collect();
    let lines: Vec<(Point, Point, f64)> = bars
        .iter()
        .flatten()
        .map(|(low, high)| (*low, *high, COVERED_BAR))
        .chain(
            steps
                .windows(2)
                .map(|pair| (pair[0], pair[1], COVERED_FRONT)),
        )
        .collect();
    let around = Surroundings {
        bounds: Rect {
            left: frame.left + 2.0,
            top: frame.top - 6.0,
            right: WIDTH - 2.0,
            bottom: frame.bottom - 2.0,
        },
        solid: &points
            .iter()
            .map(|p| Rect::around(*p, MARKER + 2.0))
            .collect::<Vec<_>>(),
        lines: &lines,
        most_covered: 2.0 * COVERED_BAR,
    };
    let places = labels::place(&points, &sizes, &around);
    for place in places.iter().flatten() {
        // Paper under a name keeps what it must cross from striking it through.
        let (left, top) = (place.rect.left - 1.0, place.rect.top);
        scene.rectangle(
            (left, top),
            (place.rect.right + 1.0, place.rect.bottom),
            PAPER,
        );
        if let Some((from, to)) = place.leader {
            scene.line([from, to], 1.0, QUIET);
        }
    }
    for (dot, bar) in dots.iter().zip(&bars) {
        let Some((low, high)) = bar else { continue };
        let color = styles[&dot.label].color;
        scene.line([*low, *high], 1.5, color);
        for end in [low, high] {
            scene.line([(end.0 - 4.0, end.1), (end.0 + 4.0, end.1)], 1.5, color);
        }
    }
    for (dot, point) in dots.iter().zip(&points) {
        style::draw_marker(&mut scene, *point, MARKER, styles[&dot.label]);
    }
    match places {
        Some(places) => {
            for (text, place) in texts.iter().zip(&places) {
                scene.text(
                    (place.rect.left, place.rect.bottom - 0.19 * TEXT),
                    text,
                    TEXT,
                    Align::Left,
                    INK,
                );
            }
        }
        // Too crowded to name the points where they are.
        None => {
            let entries: Vec<_> = dots
                .iter()
                .map(|d| {
                    (
                        format::shortened(&d.label, 48),
                        LegendMark::Marker(styles[&d.label]),
                    )
                })
                .collect();
            scene.height += style::legend_height(WIDTH, &entries) + 6.0;
            style::draw_legend(&mut scene, HEIGHT, &entries);
        }
    }
    Some(scene)
}

/// Axes, and where each point is drawn: at its values, but side by side where markers or error
/// bars would hide each other.
fn layout(dots: &[Dot], y_better: Better) -> (Frame, Vec<Point>) {
    let x = Axis::covering(dots.iter().map(|d| d.x), 7);
    let y = Axis::covering(
        dots.iter().flat_map(|d| {
            let (low, high) = d.interval.unwrap_or((d.y, d.y));
            [low, high, d.y]
        }),
        6,
    );
    let frame = Frame::new(WIDTH, HEIGHT, x, y);
    let mut points: Vec<Point> = dots.iter().map(|d| frame.at(d.x, d.y)).collect();
    let span = |i: usize| {
        let dot: &Dot = &dots[i];
        let (low, high) = dot.interval.unwrap_or((dot.y, dot.y));
        let (bottom, top) = (frame.at(dot.x, low).1, frame.at(dot.x, high).1);
        let middle = frame.at(dot.x, dot.y).1;
        (
            top.min(middle - MARKER - 1.0),
            bottom.max(middle + MARKER + 1.0),
        )
    };
    let mut order: Vec<usize> = (0..dots.len()).collect();
    order.sort_by(|a, b| dots[*a].x.total_cmp(&dots[*b].x));
    // Columns of points that hide each other, each column from left to right.
    let mut columns: Vec<Vec<usize>> = Vec::new();
    for i in order {
        let hidden = |j: &usize| {
            (points[i].0 - points[*j].0).abs() < SIDE_STEP
                && span(i).0 < span(*j).1
                && span(*j).0 < span(i).1
        };
        match columns.iter_mut().find(|column| column.iter().any(hidden)) {
            Some(column) => column.push(i),
            None => columns.push(vec![i]),
        }
    }
    let values: Vec<(f64, f64)> = dots.iter().map(|d| (d.x, d.y)).collect();
    let front = pareto::front(&values, y_better);
    for column in columns.iter_mut().filter(|column| column.len() > 1) {
        // To the right only, those on the front first: no point may look better than it is.
        column.sort_by_key(|i| !front.contains(i));
        let least = column
            .iter()
            .map(|i| points[*i].0)
            .fold(f64::INFINITY, f64::min);
        let last = frame.right - SIDE_STEP * (column.len() - 1) as f64 - MARKER;
        let start = least.min(last).max(frame.left + MARKER);
        for (place, i) in column.iter().enumerate() {
            points[*i].0 = start + SIDE_STEP * place as f64;
        }
    }
    (frame, points)
}

/// What a caption has to say about points that were moved apart.
pub fn moved_apart(dots: &[Dot], y_better: Better) -> &'static str {
    let (frame, points) = layout(dots, y_better);
    let moved = dots
        .iter()
        .zip(&points)
        .any(|(dot, point)| (frame.at(dot.x, dot.y).0 - point.0).abs() > 0.5);
    match moved {
        true => " Points of nearly equal memory stand side by side.",
        false => "",
    }
}

/// The Pareto front as steps: between two points nothing is on offer that is as good as both.
fn staircase(frame: &Frame, dots: &[Dot], points: &[Point], y_better: Better) -> Vec<Point> {
    let values: Vec<(f64, f64)> = dots.iter().map(|d| (d.x, d.y)).collect();
    let mut steps: Vec<Point> = Vec::new();
    for i in pareto::front(&values, y_better) {
        let point = points[i];
        let before = match (steps.last(), y_better) {
            (Some(last), _) => last.1,
            // Nothing is smaller than the first point, however bad.
            (None, Better::Lower) => frame.top,
            (None, Better::Higher) => frame.bottom,
        };
        steps.push((point.0, before));
        steps.push(point);
    }
    if let Some(last) = steps.last().copied() {
        steps.push((frame.right, last.1));
    }
    steps
}
