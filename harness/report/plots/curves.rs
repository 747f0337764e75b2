//! Decoding speed over the batch or the context, one curve per precision: what the two plots of
//! a sweep share.

use super::axis::{Axis, Frame};
use super::scene::{Point, Scene};
use super::style::{self, EDGE, LegendMark, PAPER, WIDTH};
use super::{not_shown, positive};
use crate::record::format;
use crate::record::rows::{ResultRow, Status};
use crate::record::tables::Tables;
use crate::report::content;

/// What a plot of a sweep draws: x is what varies, the other is held at its first value.
pub struct Sweep {
    pub varies: fn(&ResultRow) -> Option<u64>,
    pub held: fn(&ResultRow) -> Option<u64>,
    pub x_title: &'static str,
}

/// One precision (with one KV cache).
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub label: String,
    precision: String,
    kv_cache: String,
    /// What varies, and tokens per second; by rising x.
    pub points: Vec<(u64, f64)>,
}

impl Curve {
    pub fn at(&self, x: u64) -> Option<f64> {
        let found = self.points.iter().find(|point| point.0 == x);
        found.map(|point| point.1)
    }
}

impl Sweep {
    fn rows<'a>(&'a self, tables: &'a Tables) -> impl Iterator<Item = &'a ResultRow> {
        let held = tables.results.iter().find_map(self.held);
        let rows = tables.results.iter();
        rows.filter(move |row| (self.held)(row) == held)
            .filter(|row| !content::is_noise_floor(tables, &row.precision))
    }

    /// The value that everything else is held at.
    pub fn held_at(&self, tables: &Tables) -> Option<u64> {
        tables.results.iter().find_map(self.held)
    }

    /// Curves in the order of the rows; none unless some has two points.
    pub fn curves(&self, tables: &Tables) -> Vec<Curve> {
        let summary = content::first_workload(tables);
        let mut curves: Vec<Curve> = vec![];
        for row in self.rows(tables).filter(|r| r.status == Status::Ok) {
            let (Some(x), Some(y)) = ((self.varies)(row), positive(row.decode_tok_s)) else {
                continue;
            };
            let label = content::label(&summary, row);
            let found = curves.iter().position(|curve| curve.label == label);
            let curve = found.unwrap_or_else(|| {
                curves.push(Curve {
                    label,
                    precision: row.precision.clone(),
                    kv_cache: row.kv_cache.clone(),
                    points: vec![],
                });
                curves.len() - 1
            });
            curves[curve].points.push((x.max(1), y));
        }
        for curve in &mut curves {
            curve.points.sort_by_key(|point| point.0);
            curve.points.dedup_by_key(|point| point.0);
        }
        match curves.iter().any(|curve| curve.points.len() > 1) {
            true => curves,
            false => vec![],
        }
    }

    /// The end of a caption: rows of this plot that have no point.
    pub fn not_shown(&self, tables: &Tables) -> String {
        let missing =
            |row: &&ResultRow| row.status != Status::Ok || positive(row.decode_tok_s).is_none();
        let left_out: Vec<String> = self
            .rows(tables)
            .filter(missing)
            .map(|row| {
                let why = match row.status {
                    Status::Ok => "no value",
                    status => status.word(),
                };
                format!("{} ({why})", content::label(tables, row))
            })
            .collect();
        not_shown(&left_out)
    }

    /// The curves over a logarithmic x axis, rings around these places; nothing without curves.
    pub fn draw(&self, tables: &Tables, rings: &[(f64, f64)]) -> Option<Scene> {
        const HEIGHT: f64 = 380.0;
        let curves = self.curves(tables);
        if curves.is_empty() {
            return None;
        }
        let styles = style::styles(curves.iter().map(|curve| curve.label.as_str()));
        let legend: Vec<(String, LegendMark)> = curves
            .iter()
            .map(|curve| {
                let mark = LegendMark::Marker(styles[&curve.label]);
                (format::shortened(&curve.label, 48), mark)
            })
            .collect();
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let x = Axis::log2(points().map(|point| point.0));
        let speeds = points().map(|point| point.1);
        let y = Axis::covering(speeds.chain([0.0]), 6);
        let frame = Frame::new(WIDTH, HEIGHT, x, y);
        let mut scene = Scene::new(WIDTH, HEIGHT + style::legend_height(WIDTH, &legend) + EDGE);
        frame.draw(&mut scene, self.x_title, "Decode (tokens/s, all sequences)");
        let place = |x: f64, y: f64| frame.at(x.log2(), y);
        for curve in &curves {
            let line: Vec<Point> = curve
                .points
                .iter()
                .map(|p| place(p.0 as f64, p.1))
                .collect();
            scene.line(line, 2.0, styles[&curve.label].color);
        }
        for (x, y) in rings {
            scene.disc(place(*x, *y), 9.0, style::INK);
            scene.disc(place(*x, *y), 7.0, PAPER);
        }
        for curve in &curves {
            for (x, y) in &curve.points {
                let style = styles[&curve.label];
                style::draw_marker(&mut scene, place(*x as f64, *y), 5.0, style);
            }
        }
        style::draw_legend(&mut scene, HEIGHT, &legend);
        Some(scene)
    }
}

/// How a curve stands to the reference's over the values that both have.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Faster at first; from this value on the reference is. The curves cross at this place.
    OvertakenAt(u64, (f64, f64)),
    /// Faster at the largest value, or as fast.
    Ahead,
    /// Nowhere faster.
    Behind,
}

/// Every curve but the references, with its standing to the reference that has its KV cache.
pub fn standings<'a>(tables: &Tables, curves: &'a [Curve]) -> Vec<(&'a Curve, Standing)> {
    let reference = &tables.info.reference;
    let others = curves.iter().filter(|curve| curve.precision != *reference);
    others
        .filter_map(|curve| {
            let same = |r: &&Curve| r.precision == *reference && r.kv_cache == curve.kv_cache;
            let standing = standing(curve, curves.iter().find(same)?)?;
            Some((curve, standing))
        })
        .collect()
}

fn standing(curve: &Curve, reference: &Curve) -> Option<Standing> {
    // Value, the reference's speed, and by how much the curve is faster.
    let common: Vec<(u64, f64, f64)> = curve
        .points
        .iter()
        .filter_map(|(x, y)| Some((*x, reference.at(*x)?, y - reference.at(*x)?)))
        .collect();
    let last = common.last()?;
    if common.iter().all(|(.., lead)| *lead <= 0.0) {
        return Some(Standing::Behind);
    }
    if last.2 >= 0.0 {
        return Some(Standing::Ahead);
    }
    let ahead = common.iter().rposition(|(.., lead)| *lead > 0.0)?;
    let (before, after) = (common[ahead], common.get(ahead + 1)?);
    let t = before.2 / (before.2 - after.2);
    let between = |a: f64, b: f64| a + t * (b - a);
    let x = between((before.0 as f64).log2(), (after.0 as f64).log2()).exp2();
    Some(Standing::OvertakenAt(
        after.0,
        (x, between(before.1, after.1)),
    ))
}
