//! Datasets: documents of every format, files that lie about themselves, multiple-choice items,
//! and the hub's cache through the real binary.

mod documents;
mod hostile_parquet;
mod hub;
mod items;
mod raw;

use quantbench::data::{self, Dataset, Kind};
use std::path::Path;

/// The evaluation set of this name or path.
fn evaluation(name: impl AsRef<Path>) -> quantbench::Result<Dataset> {
    let name = name.as_ref().to_str().unwrap().to_string();
    data::select(&[name], Kind::Evaluation).map(|mut sets| sets.remove(0))
}

/// Expects a refusal with these words, and with what to do next.
fn refused(name: impl AsRef<Path>, words: &[&str]) {
    let text = evaluation(name).unwrap_err().to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(text.lines().count() >= 2, "no way out in: {text}");
}

/// The lines of a manifest that has the keys that all have, and `more`.
fn manifest(name: &str, more: &str) -> String {
    format!(
        "name = '{name}'\ntitle = 't'\nkind = 'evaluation'\ndomain = 'd'\nsplit = 's'\n\
         licence = 'l'\nsource = 'o'\n{more}"
    )
}
