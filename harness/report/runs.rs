//! The top of a suite of several models: their rows in two tables and a page that lists their
//! runs. Each run is whole in a folder of its own below.

use crate::record::rows::Status;
use crate::record::tables::{Tables, is_run, write_csv, write_whole};
use crate::{Error, Result};
use askama::Template;
use std::path::{Path, PathBuf};

#[derive(Template)]
#[template(path = "runs.html", config = "harness/report/askama.toml")]
struct Page {
    lines: Vec<Line>,
}

struct Line {
    folder: String,
    model: String,
    precisions: String,
    rows: usize,
    failed: usize,
}

/// Refuses a folder that holds the run of one model, which the tables of several would replace.
pub fn check(dir: &Path) -> Result<()> {
    match is_run(dir) {
        false => Ok(()),
        true => Err(Error::usage(
            format!("{} holds the run of one model", dir.display()),
            "choose another folder with --out for a suite of several",
        )),
    }
}

/// Folders of runs below `dir`, by name.
pub fn below(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| is_run(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Writes `results.csv`, `quality.csv` and `index.html` over these folders of runs below `dir`;
/// returns the page.
pub fn write(dir: &Path, folders: &[String]) -> Result<PathBuf> {
    let (mut results, mut quality, mut lines) = (vec![], vec![], vec![]);
    for folder in folders {
        let tables = Tables::read(&dir.join(folder))?;
        let failed = tables.results.iter().filter(|r| r.status != Status::Ok);
        lines.push(Line {
            folder: folder.clone(),
            model: tables.info.model.name.clone(),
            precisions: tables.info.precisions.join(", "),
            rows: tables.results.len(),
            failed: failed.count(),
        });
        results.extend(tables.results);
        quality.extend(tables.quality);
    }
    write_csv(&dir.join("results.csv"), &results)?;
    write_csv(&dir.join("quality.csv"), &quality)?;
    let page = dir.join("index.html");
    let text = Page { lines }
        .render()
        .map_err(|e| Error::file(&page, e.to_string(), "report this as a defect"))?;
    write_whole(&page, text.as_bytes())?;
    Ok(page)
}
