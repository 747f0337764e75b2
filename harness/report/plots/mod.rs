//! The plots of a report. Adding one is its file and one line in [`PLOTS`].
//!
//! A plot turns rows into a [`Scene`] of plain shapes; `scene::paint` draws a scene with
//! plotters, once for every backend. So a plot knows no file format, and its geometry can be
//! tested without pixels.

pub mod axis;
pub mod curves;
pub mod decode_vs_batch;
pub mod decode_vs_context;
pub mod domains;
pub mod kl_vs_memory;
pub mod labels;
pub mod memory_breakdown;
pub mod pareto;
pub mod quality_vs_memory;
pub mod scatter;
pub mod scene;
pub mod speed_vs_memory;
pub mod style;

pub use scene::Scene;

use super::content;
use crate::record::rows::{ResultRow, Status};
use crate::record::tables::{Tables, beside, write_whole};
use crate::{Error, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// One plot.
pub struct Plot {
    /// File name without extension.
    pub name: &'static str,
    pub title: &'static str,
    /// Whether it is given the rows of every batch and context, or those of the first.
    pub whole_sweep: bool,
    /// What is to be seen, how it was made, and which rows are missing. Without
    /// a caption and a picture there is nothing to say: the plot is left out.
    pub caption: fn(&Tables) -> String,
    /// Nothing where no row has the numbers that the plot needs.
    pub draw: fn(&Tables) -> Option<Scene>,
}

/// Every plot, in the order of the report.
pub static PLOTS: &[Plot] = &[
    quality_vs_memory::PLOT,
    kl_vs_memory::PLOT,
    speed_vs_memory::PLOT,
    domains::PLOT,
    memory_breakdown::PLOT,
    decode_vs_batch::PLOT,
    decode_vs_context::PLOT,
];

impl Plot {
    /// The rows that it shows.
    fn tables<'a>(&self, tables: &'a Tables) -> Cow<'a, Tables> {
        match self.whole_sweep {
            true => Cow::Borrowed(tables),
            false => content::first_workload(tables),
        }
    }
}

/// A plot of one run, or the sentence in its place.
pub struct Figure {
    pub plot: &'static Plot,
    pub caption: String,
    /// Absent where there was nothing to draw.
    pub svg: Option<String>,
}

/// All plots of a run.
pub fn figures(tables: &Tables) -> Result<Vec<Figure>> {
    PLOTS
        .iter()
        .map(|plot| {
            let tables = plot.tables(tables);
            let caption = (plot.caption)(&tables);
            let svg = match (plot.draw)(&tables) {
                Some(scene) => Some(scene::svg(&scene, plot.title, &caption)?),
                None => None,
            };
            Ok(Figure { plot, caption, svg })
        })
        .collect()
}

impl Figure {
    /// Whether there is a picture, or a sentence to say why there is none.
    pub fn is_shown(&self) -> bool {
        self.svg.is_some() || !self.caption.is_empty()
    }

    /// Writes `<name>.svg` and `<name>.png` into `dir` and names them.
    pub fn save(&self, svg: &str, tables: &Tables, dir: &Path) -> Result<Vec<PathBuf>> {
        let [svg_file, png_file] = self.files(dir);
        write_whole(&svg_file, svg.as_bytes())?;
        let mut written = vec![svg_file];
        if let Some(scene) = (self.plot.draw)(&self.plot.tables(tables)) {
            let temporary = beside(&png_file);
            scene::png(&scene, &temporary)?;
            std::fs::rename(&temporary, &png_file).map_err(|e| {
                let _ = std::fs::remove_file(&temporary);
                Error::io(&png_file, e, "check that the folder is writable")
            })?;
            written.push(png_file);
        }
        Ok(written)
    }

    /// Removes the files of an earlier rendering.
    pub fn remove(&self, dir: &Path) -> Result<()> {
        for file in self.files(dir) {
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(&file, e, "remove this outdated file by hand"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn files(&self, dir: &Path) -> [PathBuf; 2] {
        ["svg", "png"].map(|extension| dir.join(format!("{}.{extension}", self.plot.name)))
    }
}

/// The rows that have what a plot needs, and the names of those left out, with the reason.
fn split<T>(
    tables: &Tables,
    needed: impl Fn(&ResultRow) -> Option<T>,
) -> (Vec<(&ResultRow, T)>, Vec<String>) {
    let mut shown = Vec::new();
    let mut left_out = Vec::new();
    let chosen = |row: &&ResultRow| !content::is_noise_floor(tables, &row.precision);
    for row in tables.results.iter().filter(chosen) {
        let value = match row.status {
            Status::Ok => needed(row).ok_or("no value"),
            status => Err(status.word()),
        };
        match value {
            Ok(value) => shown.push((row, value)),
            Err(why) => left_out.push(format!("{} ({why})", content::label(tables, row))),
        }
    }
    (shown, left_out)
}

/// The end of a caption.
fn not_shown(left_out: &[String]) -> String {
    if left_out.is_empty() {
        String::new()
    } else {
        format!(" Not shown: {}.", left_out.join(", "))
    }
}

/// The caption of a plot without rows.
fn nothing_to_draw(what: &str, left_out: &[String]) -> String {
    format!("Not drawn: no row has {what}.{}", not_shown(left_out))
}

/// A finite number above zero, or nothing: plots have no place for others.
fn positive(value: Option<f64>) -> Option<f64> {
    value.filter(|v| v.is_finite() && *v > 0.0 && *v < 1e15)
}
