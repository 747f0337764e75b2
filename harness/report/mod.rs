//! Renders a run's files. Sees rows only: no weights, no models, no measurement.
//!
//! ```text
//! the files of a run, listed in record::tables::TABLES
//!   └► Tables ─┬► plots/     one file per plot, listed in PLOTS ─► *.svg *.png
//!              └► content    tables and sentences, formatted once ─┬► index.html
//!                                                                  ├► report.md
//!                                                                  └► terminal summary
//! ```

pub mod content;
pub mod html;
pub mod markdown;
pub mod plots;
pub mod runs;
pub mod terminal;

use crate::Result;
use crate::record::{Tables, tables};
use std::path::{Path, PathBuf};

/// What [`render`] wrote, and what it could not draw.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rendered {
    /// The page to open.
    pub html: PathBuf,
    pub markdown: PathBuf,
    /// Every `.svg` and `.png`.
    pub plots: Vec<PathBuf>,
    /// Plots without a drawable row: name and the sentence that stands in their place.
    pub not_drawn: Vec<(String, String)>,
}

/// Writes the plots, `report.md` and `index.html` of the run in `dir`, from its files alone.
///
/// Works on whatever rows are there: a run that was cut short or whose cells failed gets a
/// report that says so.
pub fn render(dir: &Path) -> Result<Rendered> {
    let tables = Tables::read(dir)?;
    let mut figures = plots::figures(&tables)?;
    let mut rendered = Rendered {
        html: dir.join("index.html"),
        markdown: dir.join("report.md"),
        ..Rendered::default()
    };
    for figure in &figures {
        match &figure.svg {
            Some(svg) => rendered.plots.extend(figure.save(svg, &tables, dir)?),
            None => {
                // A picture of an earlier rendering would contradict the sentence.
                figure.remove(dir)?;
                if figure.is_shown() {
                    let name = figure.plot.name.to_string();
                    rendered.not_drawn.push((name, figure.caption.clone()));
                }
            }
        }
    }
    figures.retain(plots::Figure::is_shown);
    tables::write_whole(
        &rendered.markdown,
        markdown::page(&tables, &figures).as_bytes(),
    )?;
    tables::write_whole(&rendered.html, html::page(&tables, &figures)?.as_bytes())?;
    Ok(rendered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_list_every_table() {
        let dir = tempfile::tempdir().unwrap();
        Tables::default().write(dir.path()).unwrap();
        let rendered = render(dir.path()).unwrap();
        for page in [rendered.html, rendered.markdown] {
            let page = std::fs::read_to_string(page).unwrap();
            for table in tables::TABLES {
                assert!(page.contains(table.name) && page.contains(table.holds));
            }
        }
    }
}
