//! The files of a run: CSV tables and `run.json`, read and written whole.
//!
//! [`TABLES`] is the only list of them: reading, writing, saved baselines and the lists that reports
//! show follow from it. A file is written beside its destination and then renamed, so a reader
//! never meets half a table. Column names and their order come from the row structs alone.

use crate::record::rows::{
    ChoiceRow, PairRow, QualityRow, ResultRow, SampleRow, SpeedPairRow, WindowRow,
};
use crate::record::run_info::{METRICS_VERSION, RunInfo};
use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// Every row of a run, and what is not a row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tables {
    pub results: Vec<ResultRow>,
    pub quality: Vec<QualityRow>,
    pub pairs: Vec<PairRow>,
    pub windows: Vec<WindowRow>,
    pub samples: Vec<SampleRow>,
    pub speed_pairs: Vec<SpeedPairRow>,
    pub info: RunInfo,
    pub choices: Vec<ChoiceRow>,
    /// Shows that a field here and a line in [`TABLES`] are all that a table needs.
    #[cfg(test)]
    pub added: Vec<PairRow>,
}

/// One file of a run.
pub struct RunFile {
    pub name: &'static str,
    /// What it holds, as reports say it.
    pub holds: &'static str,
    /// A folder without it holds no run.
    pub required: bool,
    read: fn(&mut Tables, &Path) -> Result<()>,
    write: fn(&Tables, &Path) -> Result<()>,
}

/// A CSV table whose rows are this field of [`Tables`].
macro_rules! csv_table {
    ($rows:ident, $name:literal, $holds:literal) => {
        csv_table!($rows, $name, $holds, required: false)
    };
    ($rows:ident, $name:literal, $holds:literal, required: $required:literal) => {
        RunFile {
            name: $name,
            holds: $holds,
            required: $required,
            read: |tables, path| read_csv(path).map(|rows| tables.$rows = rows),
            write: |tables, path| write_csv(path, &tables.$rows),
        }
    };
}

/// The files of a run, in the order in which reports list them.
pub const TABLES: &[RunFile] = &[
    csv_table!(results, "results.csv", "one row per precision", required: true),
    csv_table!(quality, "quality.csv", "perplexity by text and protocol"),
    csv_table!(pairs, "pairs.csv", "differences between all pairs"),
    csv_table!(windows, "windows.csv", "loss of every window"),
    csv_table!(samples, "samples.csv", "every timed repetition"),
    csv_table!(
        speed_pairs,
        "speed_pairs.csv",
        "ratios of speeds between all pairs"
    ),
    RunFile {
        name: "run.json",
        holds: "configuration, machine, provenance",
        required: true,
        read: |tables, path| read_info(path).map(|info| tables.info = info),
        write: |tables, path| write_info(path, &tables.info),
    },
    csv_table!(
        choices,
        "choices.csv",
        "right answers to multiple-choice items"
    ),
    #[cfg(test)]
    csv_table!(added, "added.csv", "rows that only tests have"),
];

impl Tables {
    /// Reads the run in `dir`. A run that was cut short may lack the files that are not required.
    pub fn read(dir: &Path) -> Result<Self> {
        let results = dir.join("results.csv");
        if !results.exists() {
            return Err(Error::file(
                results,
                "no such file, so this folder does not hold a run",
                "give the folder that a run wrote (it holds results.csv and run.json)",
            ));
        }
        let mut tables = Tables::default();
        for table in TABLES {
            let path = dir.join(table.name);
            if table.required || path.exists() {
                (table.read)(&mut tables, &path)?;
            }
        }
        Ok(tables)
    }

    /// Writes all files into `dir`, which is made if need be. Those that make it a run come last.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io(dir, e, "choose a folder that can be written"))?;
        for required in [false, true] {
            for table in TABLES.iter().filter(|table| table.required == required) {
                (table.write)(self, &dir.join(table.name))?;
            }
        }
        Ok(())
    }
}

/// Whether `dir` is the folder of a run. The tables of a suite of several models stand beside
/// their runs, so that it is `run.json` that makes a folder a run.
pub fn is_run(dir: &Path) -> bool {
    dir.join("run.json").is_file()
}

/// Every table has it.
const KEY_COLUMN: &str = "run_id";

/// Reads one CSV table. Columns are matched by name, so columns that a later version appended
/// are ignored, and optional ones that an earlier version lacked are absent.
pub fn read_csv<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e, "check the path"))?;
    let mut reader = csv::Reader::from_reader(bytes.as_slice());
    let header = reader
        .headers()
        .map_err(|e| damaged(path, &e, None))?
        .clone();
    // Rows that lack a column say so themselves.
    if !header.iter().any(|column| column == KEY_COLUMN) {
        let what = format!("line 1: no column `{KEY_COLUMN}`");
        return Err(Error::file(
            path,
            what,
            "the file is damaged or no table of a run",
        ));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| damaged(path, &e, None))?;
        let row = record.deserialize(Some(&header));
        rows.push(row.map_err(|e| damaged(path, &e, Some((&header, &record))))?);
    }
    Ok(rows)
}

/// Writes one CSV table; the header is there even without rows.
pub fn write_csv<T: Serialize + Default>(path: &Path, rows: &[T]) -> Result<()> {
    let to_csv = |rows: &[T]| -> std::result::Result<Vec<u8>, String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in rows {
            writer.serialize(row).map_err(|e| e.to_string())?;
        }
        writer.into_inner().map_err(|e| e.to_string())
    };
    let bytes = if rows.is_empty() {
        // The header is only known to serde once a row passes through it.
        to_csv(&[T::default()]).map(|bytes| {
            let end = bytes.iter().position(|&b| b == b'\n').map_or(0, |i| i + 1);
            bytes[..end].to_vec()
        })
    } else {
        to_csv(rows)
    };
    let bytes = bytes.map_err(|what| Error::file(path, what, "report this as a defect"))?;
    write_whole(path, &bytes)
}

fn read_info(path: &Path) -> Result<RunInfo> {
    let bytes = std::fs::read(path).map_err(|e| {
        Error::io(
            path,
            e,
            "run.json belongs to every run; copy it beside results.csv",
        )
    })?;
    let info: RunInfo = serde_json::from_slice(&bytes).map_err(|e| {
        Error::file(
            path,
            format!("line {}, column {}: {e}", e.line(), e.column()),
            "restore the file as the run wrote it",
        )
    })?;
    if info.metrics_version > METRICS_VERSION {
        return Err(Error::file(
            path,
            format!(
                "metrics version {} is newer than this program's {METRICS_VERSION}",
                info.metrics_version
            ),
            "render it with the quantbench version named in the file",
        ));
    }
    Ok(info)
}

fn write_info(path: &Path, info: &RunInfo) -> Result<()> {
    let mut info = info.clone();
    // JSON has no NaN or infinity: absent is better than a `null` that cannot be read back.
    for cell in &mut info.cells {
        cell.notes.retain(|_, value| value.is_finite());
        cell.macro_perplexity = cell.macro_perplexity.filter(|value| value.is_finite());
    }
    let mut bytes = serde_json::to_vec_pretty(&info)
        .map_err(|e| Error::file(path, e.to_string(), "report this as a defect"))?;
    bytes.push(b'\n');
    write_whole(path, &bytes)
}

/// Writes a file so that it is either the old one or the new one, never a part of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = beside(path);
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            Error::io(
                path,
                e,
                "check that the folder exists, is writable and has space",
            )
        })
}

/// A name in the same folder (a rename across file systems is a copy), with the same extension
/// (the PNG encoder chooses by it).
pub fn beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{}.{name}", std::process::id()))
}

/// Removes what a killed process left of [`write_whole`]. Only for the one that writes to `dir`.
pub fn clear_partial(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let partial = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.split_once('.'))
            .is_some_and(|(process, _)| process.parse::<u32>().is_ok());
        if partial {
            // A remainder is unsightly and harmless.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Says where a table is damaged: file, line, column.
fn damaged(
    path: &Path,
    error: &csv::Error,
    place: Option<(&csv::StringRecord, &csv::StringRecord)>,
) -> Error {
    let line = error
        .position()
        .or_else(|| place.and_then(|(_, record)| record.position()))
        .map_or(1, csv::Position::line);
    let what = match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => match column_of(err, place) {
            Some((number, name)) => {
                format!("line {line}, column {number} (`{name}`): {}", err.kind())
            }
            // A column that is not there has no line of its own.
            None => format!("line 1: {}", err.kind()),
        },
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("line {line}: {len} columns where the header has {expected_len}"),
        csv::ErrorKind::Utf8 { err, .. } => {
            format!("line {line}, column {}: not UTF-8 text", err.field() + 1)
        }
        _ => format!("line {line}: {error}"),
    };
    Error::file(path, what, "restore the file as the run wrote it")
}

/// Number (from 1) and name of the column that could not be understood.
fn column_of<'a>(
    error: &csv::DeserializeError,
    place: Option<(&'a csv::StringRecord, &csv::StringRecord)>,
) -> Option<(usize, &'a str)> {
    let (header, record) = place?;
    let index = match error.field() {
        Some(index) => usize::try_from(index).ok()?,
        // An unknown word comes without a position; the message quotes it.
        None => {
            let message = error.kind().to_string();
            record
                .iter()
                .position(|cell| message.contains(&format!("variant `{cell}`")))?
        }
    };
    Some((index + 1, header.get(index)?))
}

/// Removes the rendered pages of an earlier run, which would contradict the rows to come.
pub fn clear(dir: &Path) -> Result<()> {
    for name in ["index.html", "report.md"] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(path, e, "choose another folder with --out"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with_an_added_row() -> Tables {
        let row = PairRow {
            run_id: "one".into(),
            delta_nll_nats: 0.25,
            ..PairRow::default()
        };
        Tables {
            added: vec![row],
            ..Tables::default()
        }
    }

    #[test]
    fn a_table_is_a_field_and_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let tables = run_with_an_added_row();
        tables.write(dir.path()).unwrap();
        assert_eq!(Tables::read(dir.path()).unwrap(), tables);
    }

    #[test]
    fn a_run_lacks_only_what_is_not_required() {
        for table in TABLES {
            let dir = tempfile::tempdir().unwrap();
            run_with_an_added_row().write(dir.path()).unwrap();
            std::fs::remove_file(dir.path().join(table.name)).unwrap();
            match Tables::read(dir.path()) {
                Ok(_) => assert!(!table.required, "{}", table.name),
                Err(e) => assert!(table.required && e.to_string().contains(table.name), "{e}"),
            }
        }
    }
}
