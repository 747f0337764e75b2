//! `quantbench history`.

use super::exit::EXIT_OK;
use crate::Result;
use crate::history::{self, trend};
use crate::say;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct HistoryArgs {
    /// Folders that each hold a run, or runs in subfolders, to be appended first
    #[arg(value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// The history; made if need be
    #[arg(long, default_value = "reports/history.csv", value_name = "FILE")]
    history: PathBuf,
    /// Folder for the pictures and trend.md [default: where the history is]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &HistoryArgs) -> Result<i32> {
    let read = match args.runs.as_slice() {
        [] => history::read(&args.history)?,
        runs => history::append(&args.history, runs)?,
    };
    if !read.said.is_empty() {
        say::out(format_args!("{}: {}\n", args.history.display(), read.said));
    }
    for line in &read.rejected {
        say::aside(format_args!("warning: {line}\n"));
    }
    let beside = args.history.parent().filter(|p| !p.as_os_str().is_empty());
    let out = args.out.as_deref().or(beside).unwrap_or(Path::new("."));
    let drawn = trend::render(&read.rows, out)?;
    for sentence in &drawn.changes {
        say::out(format_args!("{sentence}\n"));
    }
    say::out(format_args!("trend: {}\n", drawn.page.display()));
    Ok(EXIT_OK)
}
