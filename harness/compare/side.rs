//! One side of a comparison: a run, or a folder of runs that are matched by name.

use crate::record::Tables;
use crate::record::tables::is_run;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The runs of a folder.
pub struct Side {
    /// As the user named it.
    pub name: String,
    /// By the name of their subfolder; the empty name is the folder itself. Each was made once or
    /// more: quality and memory, which repeat exactly, are those of the first.
    pub runs: BTreeMap<String, Vec<Tables>>,
}

impl Side {
    /// Reads the run in `dir`, or those in its subfolders.
    ///
    /// # Errors
    /// A folder that is not there, holds no run, or a damaged one (file, line and column).
    pub fn read(dir: &Path) -> Result<Self> {
        let mut runs = BTreeMap::new();
        for (name, folder) in run_folders(dir)? {
            runs.insert(name, vec![Tables::read(&folder)?]);
        }
        Ok(Side {
            name: dir.display().to_string(),
            runs,
        })
    }

    /// The first of its runs.
    pub fn first(&self) -> Option<&Tables> {
        self.runs.values().flatten().next()
    }

    /// Reads the runs in the subfolders of `dir` as one run that was made several times.
    ///
    /// # Errors
    /// As [`Side::read`].
    pub fn read_repeated(dir: &Path) -> Result<Self> {
        let mut side = Side::read(dir)?;
        let all = std::mem::take(&mut side.runs).into_values().flatten();
        side.runs.insert(String::new(), all.collect());
        Ok(side)
    }
}

/// Name and folder of every run in `dir`.
pub fn run_folders(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let next = "name the folder of a run (it holds results.csv and run.json), or of several";
    let itself = || BTreeMap::from([(String::new(), dir.to_path_buf())]);
    if is_run(dir) {
        return Ok(itself());
    }
    let mut folders = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e, next))? {
        let path = entry.map_err(|e| Error::io(dir, e, next))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && is_run(&path) {
            folders.insert(name.into_owned(), path);
        }
    }
    if folders.is_empty() && dir.join("results.csv").is_file() {
        // A run that has lost its run.json, which reading it will say.
        return Ok(itself());
    }
    if folders.is_empty() {
        return Err(Error::file(dir, "no run in this folder", next));
    }
    Ok(folders)
}
