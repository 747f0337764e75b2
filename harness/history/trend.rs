//! The history as pictures: one per metric, one line per precision, change points ringed.

use super::change_points::{ChangePoint, change_points};
use super::{HistoryRow, counted};
use crate::compare::Thresholds;
use crate::record::format;
use crate::record::rows::Status;
use crate::record::tables::write_whole;
use crate::report::plots::axis::{Axis, Frame};
use crate::report::plots::scene::{self, Align, Point, Scene};
use crate::report::plots::style::{self, EDGE, INK, LegendMark, PAPER, QUIET, TEXT, WIDTH};
use crate::stats::quantiles::median;
use crate::{Error, Result};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One picture.
pub struct Trend {
    /// File name without extension.
    pub name: &'static str,
    pub title: &'static str,
    value: fn(&HistoryRow) -> Option<f64>,
    /// Change of the median that matters: the gate's.
    least_share: fn(&Thresholds) -> f64,
    /// Whether it differs between batches and contexts.
    per_workload: bool,
}

/// Every picture; adding one is a line.
pub static TRENDS: &[Trend] = &[
    Trend {
        name: "trend_perplexity",
        title: "Perplexity",
        value: |row| row.perplexity,
        least_share: |t| t.max_perplexity_increase.share(),
        per_workload: false,
    },
    Trend {
        name: "trend_decode",
        title: "Decode speed (tokens/s)",
        value: |row| row.decode_tok_s,
        least_share: |t| t.max_decode_decrease.share(),
        per_workload: true,
    },
    Trend {
        name: "trend_memory",
        title: "Peak memory (bytes)",
        value: |row| row.peak_memory_bytes.map(|bytes| bytes as f64),
        least_share: |t| t.max_memory_increase.share(),
        per_workload: true,
    },
];

/// One line of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub label: String,
    /// Number of the run, from 0, and value.
    pub points: Vec<(usize, f64)>,
    /// `at` counts the points of the series.
    pub changes: Vec<ChangePoint>,
}

/// Runs whose median is a line's start.
const START: usize = 5;

impl Series {
    fn start(&self) -> f64 {
        let first = self.points.iter().take(START);
        let values: Vec<f64> = first.map(|point| point.1).collect();
        median(&values).unwrap_or(1.0)
    }
}

/// What [`render`] wrote and found.
pub struct Drawn {
    pub page: PathBuf,
    pub pictures: Vec<PathBuf>,
    /// A sentence per change point.
    pub changes: Vec<String>,
}

/// Runs in the order of the rows, each once.
fn runs(rows: &[HistoryRow]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let ids = rows.iter().map(|row| row.run_id.as_str());
    ids.filter(|id| seen.insert(*id)).collect()
}

/// Rows in the order in which their runs started: nights may be appended late. A run that says no
/// time stays behind the one before it.
fn by_time(rows: &[HistoryRow]) -> Vec<HistoryRow> {
    let mut places: BTreeMap<&str, (Option<Timestamp>, usize)> = BTreeMap::new();
    let mut before = None;
    for row in rows {
        let number = places.len();
        let place = places.entry(&row.run_id).or_insert_with(|| {
            let time = row.started_at.parse().ok();
            (time.or(before), number)
        });
        before = place.0;
    }
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|row| places.get(row.run_id.as_str()));
    sorted
}

type Key = fn(&HistoryRow) -> String;

/// What tells series apart, beside the precision: shown where it varies. Numbers of two protocols
/// or machines are never one line.
const AXES: &[(Key, bool)] = &[
    (|r| r.model.clone(), false),
    (|r| r.device.clone(), false),
    (|r| r.host_cpu.clone(), false),
    (|r| number("t", r.threads), false),
    (|r| format!("metrics v{}", r.metrics_version), false),
    (|r| format!("kv={}", r.kv_cache), false),
    (|r| r.protocol.clone(), false),
    (|r| number("b", r.batch), true),
    (|r| number("ctx", r.prompt_tokens), true),
    (|r| number("gen", r.generated_tokens), true),
];

fn number(name: &str, value: Option<u64>) -> String {
    value.map_or(String::new(), |n| format!("{name}={n}"))
}

impl Trend {
    /// Its lines, in the order of the rows.
    pub fn series(&self, rows: &[HistoryRow]) -> Vec<Series> {
        let fine = |row: &&HistoryRow| row.status == Status::Ok;
        let positive = |v: &f64| v.is_finite() && *v > 0.0;
        let with_value: Vec<(&HistoryRow, f64)> = rows
            .iter()
            .filter(fine)
            .filter_map(|row| Some((row, (self.value)(row).filter(positive)?)))
            .collect();
        let varying: Vec<Key> = AXES
            .iter()
            .filter(|(key, workload)| {
                let values = with_value.iter().map(|(row, _)| key(row));
                (self.per_workload || !workload) && values.collect::<BTreeSet<_>>().len() > 1
            })
            .map(|(key, _)| *key)
            .collect();
        let order = runs(rows);
        let mut all: Vec<Series> = vec![];
        for (row, value) in with_value {
            let mut label = row.precision.clone();
            for key in &varying {
                label += &format!(" {}", key(row));
            }
            let label = label.trim_end().to_string();
            let run = order.iter().position(|id| *id == row.run_id).unwrap_or(0);
            let found = all.iter().position(|s| s.label == label);
            let at = found.unwrap_or_else(|| {
                all.push(Series {
                    label,
                    points: vec![],
                    changes: vec![],
                });
                all.len() - 1
            });
            // Quality is repeated in every batch and context of a run.
            if all[at].points.last().is_none_or(|(last, _)| *last != run) {
                all[at].points.push((run, value));
            }
        }
        let least = (self.least_share)(&Thresholds::default());
        for series in &mut all {
            let values: Vec<f64> = series.points.iter().map(|p| p.1).collect();
            series.changes = change_points(&values, least);
        }
        all
    }

    /// Lines as changes from each one's start, the median of its first runs, so that one odd
    /// first run does not lift or sink a line; nothing unless some has two points.
    pub fn draw(&self, rows: &[HistoryRow]) -> Option<Scene> {
        const HEIGHT: f64 = 380.0;
        let all = self.series(rows);
        if all.iter().all(|series| series.points.len() < 2) {
            return None;
        }
        let change = |series: &Series, value: f64| 100.0 * (value / series.start() - 1.0);
        let styles = style::styles(all.iter().map(|series| series.label.as_str()));
        let legend: Vec<(String, LegendMark)> = all
            .iter()
            .map(|series| {
                let mark = LegendMark::Marker(styles[&series.label]);
                (format::shortened(&series.label, 48), mark)
            })
            .collect();
        let changes = all
            .iter()
            .flat_map(|series| series.points.iter().map(|p| change(series, p.1)));
        let y = Axis::covering(changes.chain([0.0]), 6);
        let frame = Frame::new(WIDTH, HEIGHT, whole_numbers(runs(rows).len()), y);
        let mut scene = Scene::new(WIDTH, HEIGHT + style::legend_height(WIDTH, &legend) + EDGE);
        let y_title = format!("{}: change from the start (%)", self.title);
        frame.draw(&mut scene, "Run", &y_title);
        let place = |series: &Series, (run, value): (usize, f64)| {
            frame.at(run as f64 + 1.0, change(series, value))
        };
        for series in &all {
            let line: Vec<Point> = series.points.iter().map(|p| place(series, *p)).collect();
            scene.line(line, 1.6, styles[&series.label].color);
        }
        for (i, series) in all.iter().enumerate() {
            // Lines that lie on each other, as of memory, stay visible one inside the other.
            let radius = (3.0 + 1.2 * (all.len() - 1 - i) as f64).min(6.6);
            for point in &series.points {
                let style = styles[&series.label];
                style::draw_marker(&mut scene, place(series, *point), radius, style);
            }
        }
        for series in &all {
            for mark in &series.changes {
                let at = place(series, series.points[mark.at]);
                scene.disc(at, 8.0, INK);
                scene.disc(at, 6.4, PAPER);
                style::draw_marker(&mut scene, at, 3.6, styles[&series.label]);
                let text = percent(mark);
                let above = (at.0, at.1 - 12.0);
                scene.text(above, &text, 0.85 * TEXT, Align::Centre, QUIET);
            }
        }
        style::draw_legend(&mut scene, HEIGHT, &legend);
        Some(scene)
    }

    fn caption(&self, rows: &[HistoryRow]) -> String {
        let dates = || rows.iter().map(|row| row.started_at.as_str());
        let (first, last) = (
            dates().next().unwrap_or(""),
            dates().next_back().unwrap_or(""),
        );
        format!(
            "{} of every run in the history, {first} to {last}, as a change from the median of each \
             line's first {START} runs. Rings are change points: the level \
             changed there by more than the gate's threshold, and random order would look so in at \
             most 1 % of cases.",
            self.title
        )
    }
}

fn percent(mark: &ChangePoint) -> String {
    let change = 100.0 * (mark.after / mark.before - 1.0);
    format!(
        "{} %",
        format::signed(change, if change.abs() < 1.0 { 2 } else { 1 })
    )
}

/// 1 to `count`, with ticks at whole numbers.
fn whole_numbers(count: usize) -> Axis {
    let step = (0..6)
        .flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(e)))
        .find(|step| count as f64 / step <= 7.0)
        .unwrap_or(1e6);
    let steps = ((count as f64 - 0.2) / step).ceil().max(1.0);
    Axis::new(0.6, 0.6 + steps * step, steps as usize)
}

/// Writes `trend_*.svg`, `trend_*.png` and `trend.md` into `out`, which is made if need be.
pub fn render(rows: &[HistoryRow], out: &Path) -> Result<Drawn> {
    let rows = &by_time(rows);
    let next = "choose a folder that can be written with --out";
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e, next))?;
    let mut drawn = Drawn {
        page: out.join("trend.md"),
        pictures: vec![],
        changes: vec![],
    };
    let mut page = format!("# Trend\n\n{}.\n", counted(runs(rows).len(), "run"));
    for trend in TRENDS {
        let files = ["svg", "png"].map(|e| out.join(format!("{}.{e}", trend.name)));
        page += &format!("\n## {}\n\n", trend.title);
        let Some(scene) = trend.draw(rows) else {
            // A picture of an earlier rendering would contradict the sentence.
            for file in &files {
                let _ = std::fs::remove_file(file);
            }
            page += "Not drawn: no precision has two runs.\n";
            continue;
        };
        let caption = trend.caption(rows);
        let svg = scene::svg(&scene, trend.title, &caption)?;
        write_whole(&files[0], svg.as_bytes())?;
        save_png(&scene, &files[1])?;
        page += &format!("![{}]({}.svg)\n\n{caption}\n", trend.title, trend.name);
        for series in trend.series(rows) {
            for mark in &series.changes {
                let run = series.points[mark.at].0;
                let sentence = sentence(trend, &series.label, mark, rows, run);
                page += &format!("\n- {sentence}\n");
                drawn.changes.push(sentence);
            }
        }
        drawn.pictures.extend(files);
    }
    write_whole(&drawn.page, page.as_bytes())?;
    Ok(drawn)
}

/// Beside its destination first: a reader never meets half a picture.
fn save_png(scene: &Scene, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{}.{name}", std::process::id()));
    scene::png(scene, &temporary)?;
    std::fs::rename(&temporary, path).map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, e, "choose a folder that can be written with --out")
    })
}

fn sentence(
    trend: &Trend,
    label: &str,
    mark: &ChangePoint,
    rows: &[HistoryRow],
    run: usize,
) -> String {
    let id = runs(rows)[run];
    let commit = rows
        .iter()
        .find(|row| row.run_id == id)
        .map_or("", |row| &row.git_commit);
    format!(
        "{} of {label} changed by {} at run {} ({id}, commit {commit}): median {} before, {} after",
        trend.title,
        percent(mark),
        run + 1,
        format::number(mark.before, format::three_digits(mark.before)),
        format::number(mark.after, format::three_digits(mark.after)),
    )
}
