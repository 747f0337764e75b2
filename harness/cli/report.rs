//! `quantbench report`: a run's report from its files alone.

use super::exit::EXIT_OK;
use crate::error::{Error, Result};
use crate::record::Tables;
use crate::{report, say};
use std::path::Path;

/// Renders the run in `dir`, or each of the runs in its subfolders.
pub(super) fn render(dir: &Path) -> Result<i32> {
    if !dir.is_dir() {
        return Err(Error::usage(
            format!("{} is not a folder", dir.display()),
            "name the folder of a run, such as reports/latest",
        ));
    }
    let folders = report::runs::below(dir);
    if dir.join("run.json").exists() || folders.is_empty() {
        let rendered = report::render(dir)?;
        say::out(format_args!(
            "{}",
            report::terminal::summary(&Tables::read(dir)?)
        ));
        say::out(format_args!("{}\n", rendered.html.display()));
        return Ok(EXIT_OK);
    }
    for folder in &folders {
        report::render(&dir.join(folder))?;
    }
    say::out(format_args!(
        "{}\n",
        report::runs::write(dir, &folders)?.display()
    ));
    Ok(EXIT_OK)
}
