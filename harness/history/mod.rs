//! What every night measured: one CSV file that only grows, and the trend drawn from it.
//!
//! A damaged line costs itself and nothing else: it is named, left out, and at the next append
//! moved as it is to `<file>.rejected`. A record is one line, so that a stray quote cannot
//! swallow those after it. Columns go by their names: where no header names them, nothing says
//! what a value is, and all lines count as damaged.

pub mod change_points;
pub mod trend;

use crate::compare::side::run_folders;
use crate::record::Tables;
use crate::record::format::one_line;
use crate::record::rows::Status;
use crate::record::tables::write_whole;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// One row of the history: a row of `results.csv`, with what a trend needs of `run.json`.
/// Columns are only ever appended; absent is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// RFC 3339, UTC.
    pub started_at: String,
    pub run_id: String,
    pub git_commit: String,
    pub quantbench_version: String,
    pub metrics_version: u32,
    pub host_cpu: String,
    pub threads: Option<u64>,
    pub device: String,
    pub model: String,
    pub precision: String,
    pub kv_cache: String,
    pub batch: Option<u64>,
    pub prompt_tokens: Option<u64>,
    pub generated_tokens: Option<u64>,
    pub status: Status,
    pub protocol: String,
    pub perplexity: Option<f64>,
    pub kl_mean_nats: Option<f64>,
    pub prefill_tok_s: Option<f64>,
    pub decode_tok_s: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
}

/// A history as it was read.
#[derive(Debug, Default)]
pub struct History {
    pub rows: Vec<HistoryRow>,
    /// What was left out and why.
    pub rejected: Vec<String>,
    /// What an append did, in words.
    pub said: String,
    /// Lines that were understood, as they stand in the file.
    lines: Vec<String>,
    header: String,
    rejected_lines: Vec<Vec<u8>>,
}

/// Reads a history; one that is not there is empty. Damaged lines are left out and named.
///
/// # Errors
/// Only a file that is there and cannot be read at all.
pub fn read(path: &Path) -> Result<History> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
        Err(e) => return Err(Error::io(path, e, "name a history with --history")),
    };
    let mut history = History {
        header: header(),
        ..History::default()
    };
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let found = lines.iter().position(|line| is_header(line));
    let Some(first) = found else {
        if !lines.is_empty() {
            history.rejected.push(format!(
                "{} is left out: it has no header of a history, which says what its columns are",
                path.display()
            ));
        }
        history.rejected_lines = lines.into_iter().map(<[u8]>::to_vec).collect();
        return Ok(history);
    };
    // Of an older version: ours, which is longer, takes its place.
    let named = text(lines[first]).unwrap_or_default();
    if !extends(&history.header, &named) {
        history.header = named;
    }
    let columns = fields(&history.header).map_or(0, |names| names.len());
    for (i, line) in lines.into_iter().enumerate().filter(|(i, _)| *i != first) {
        let parsed = text(line).and_then(|line| {
            if i < first {
                return Err("it stands before the header".into());
            }
            let row = parse(&line, &history.header)?;
            Ok((row, line))
        });
        match parsed {
            Ok((row, line)) => {
                history.lines.push(padded(line, columns));
                history.rows.push(row);
            }
            Err(why) => history.reject(path, i + 1, line, &why),
        }
    }
    Ok(history)
}

/// Appends the runs in `dirs` (each a run, or a folder of runs) to a history. A row that is in it
/// already is not added again, unless the cell had failed and the run, resumed, has measured it
/// since. The file is replaced whole; two appends at once take turns.
///
/// # Errors
/// A folder without a run, a damaged run, or a folder that cannot be written.
pub fn append(path: &Path, dirs: &[PathBuf]) -> Result<History> {
    let mut new = vec![];
    for dir in dirs {
        for folder in run_folders(dir)?.values() {
            new.extend(rows(&Tables::read(folder)?));
        }
    }
    let next = "choose a file that can be written with --history";
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e, next))?;
    // Held until the end. Where folders cannot be locked, appends must not overlap.
    let lock = File::open(folder).map_err(|e| Error::io(folder, e, next))?;
    let _ = lock.lock();

    let mut history = read(path)?;
    let mut there: BTreeMap<_, bool> = BTreeMap::new();
    for row in &history.rows {
        *there.entry(identity(row)).or_default() |= row.status == Status::Ok;
    }
    let all = new.len();
    new.retain(|row| {
        let ok = row.status == Status::Ok;
        let is_new = match there.get(&identity(row)) {
            None => true,
            Some(was_ok) => ok && !was_ok,
        };
        if is_new {
            there.insert(identity(row), ok);
        }
        is_new
    });
    history.said = format!("{} added", counted(new.len(), "row"));
    match all - new.len() {
        0 => {}
        1 => history.said += ", 1 was there",
        known => history.said += &format!(", {known} were there"),
    }
    for row in &new {
        history.lines.push(line(row, &history.header)?);
    }
    history.rows.extend(new);
    set_aside(path, &history.rejected_lines)?;
    if !history.rejected_lines.is_empty() {
        let moved = counted(history.rejected_lines.len(), "damaged line");
        let file = rejected_file(path);
        history.said += &format!(", {moved} moved to {}", file.display());
    }
    let mut text = history.header.clone() + "\n";
    for line in &history.lines {
        text += line;
        text.push('\n');
    }
    write_whole(path, text.as_bytes())?;
    Ok(history)
}

/// Where damaged lines of a history are kept.
pub fn rejected_file(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".rejected");
    path.with_file_name(name)
}

fn set_aside(path: &Path, lines: &[Vec<u8>]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let file = rejected_file(path);
    let mut kept = match std::fs::read(&file) {
        Ok(kept) => kept,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
        Err(e) => return Err(Error::io(file, e, "make it readable, or move it away")),
    };
    for line in lines {
        kept.extend(line);
        if !line.ends_with(b"\n") {
            kept.push(b'\n');
        }
    }
    write_whole(&file, &kept)
}

impl History {
    fn reject(&mut self, path: &Path, number: usize, line: &[u8], why: &str) {
        self.rejected.push(format!(
            "{}, line {number}, is left out: {why}",
            path.display()
        ));
        self.rejected_lines.push(line.to_vec());
    }
}

/// What no two rows share, but for a failed one and the one that a resumed run measured later.
fn identity(row: &HistoryRow) -> ([String; 5], [Option<u64>; 2]) {
    let words = [
        &row.run_id,
        &row.device,
        &row.model,
        &row.precision,
        &row.kv_cache,
    ];
    (words.map(String::clone), [row.batch, row.prompt_tokens])
}

/// "1 row", "2 rows".
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The rows of a run.
fn rows(tables: &Tables) -> Vec<HistoryRow> {
    let info = &tables.info;
    let results = tables.results.iter();
    results
        .map(|row| HistoryRow {
            started_at: one_line(&info.started_at),
            run_id: one_line(&info.run_id),
            git_commit: one_line(&info.git_commit),
            quantbench_version: one_line(&info.quantbench_version),
            metrics_version: info.metrics_version,
            host_cpu: one_line(&info.host.cpu),
            threads: row.threads,
            device: one_line(&row.device),
            model: one_line(&row.model),
            precision: one_line(&row.precision),
            kv_cache: one_line(&row.kv_cache),
            batch: row.batch,
            prompt_tokens: row.prompt_tokens,
            generated_tokens: row.generated_tokens,
            status: row.status,
            protocol: one_line(&row.protocol),
            perplexity: row.perplexity,
            kl_mean_nats: row.kl_mean_nats,
            prefill_tok_s: row.prefill_tok_s,
            decode_tok_s: row.decode_tok_s,
            peak_memory_bytes: row.peak_memory_bytes,
        })
        .collect()
}

/// A whole line as text, without its end. One without an end was cut off, and what looks like
/// its last number may be part of one.
fn text(line: &[u8]) -> std::result::Result<String, String> {
    let Some(line) = line.strip_suffix(b"\n") else {
        return Err("it ends in the middle".into());
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8 text")?;
    match text.trim() {
        "" => Err("it is empty".into()),
        _ => Ok(text.into()),
    }
}

/// The cells of a line.
fn fields(line: &str) -> std::result::Result<csv::StringRecord, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(line.as_bytes());
    let first = reader.records().next();
    first.ok_or("it is empty")?.map_err(|e| e.to_string())
}

/// Whether a line names every column of ours once, in whatever order, as a spreadsheet may leave
/// them; or the first ones, as an older version's.
fn is_header(line: &[u8]) -> bool {
    let Ok(line) = text(line) else { return false };
    let ours = header();
    let named = |names: &csv::StringRecord| {
        let once = |ours: &str| names.iter().filter(|name| *name == ours).count() == 1;
        ours.split(',').all(once)
    };
    extends(&ours, &line) || fields(&line).is_ok_and(|names| named(&names))
}

fn parse(line: &str, header: &str) -> std::result::Result<HistoryRow, String> {
    let (names, mut record) = (fields(header)?, fields(line)?);
    // Columns that a later version appended are absent in older lines. In another order nothing
    // says which ones a short line lacks.
    let least = match extends(header, &self::header()) {
        true => HEADER_AT_FIRST,
        false => names.len(),
    };
    if record.len() < least || record.len() > names.len() {
        let (found, expected) = (record.len(), names.len());
        return Err(format!(
            "it has {found} columns where the header has {expected}"
        ));
    }
    while record.len() < names.len() {
        record.push_field("");
    }
    let row: HistoryRow = record
        .deserialize(Some(&names))
        .map_err(|e| match e.kind() {
            csv::ErrorKind::Deserialize { err, .. } => format!("{}", err.kind()),
            _ => e.to_string(),
        })?;
    match row.run_id.is_empty() || row.precision.is_empty() {
        true => Err("it names no run or no precision".into()),
        false => Ok(row),
    }
}

/// Columns of the first version; no line can have fewer.
const HEADER_AT_FIRST: usize = 21;

/// A row as a line under a header: a column that is not ours stays empty.
fn line(row: &HistoryRow, header: &str) -> Result<String> {
    let defect = |what: String| Error::file("history", what, "report this as a defect");
    let text = csv_text(row).map_err(defect)?;
    // No cell holds a line end: `one_line` sees to it.
    let mut lines = text.lines();
    let mut next = || fields(lines.next().unwrap_or_default()).map_err(defect);
    let (ours, values, names) = (next()?, next()?, fields(header).map_err(defect)?);
    let cells = names.iter().map(|name| {
        let column = ours.iter().position(|our| our == name);
        column.and_then(|i| values.get(i)).unwrap_or_default()
    });
    let mut writer = csv::Writer::from_writer(vec![]);
    let written = writer.write_record(cells).map_err(|e| e.to_string());
    let bytes = written.and_then(|()| writer.into_inner().map_err(|e| e.to_string()));
    let text = String::from_utf8(bytes.map_err(defect)?).map_err(|e| defect(e.to_string()))?;
    Ok(text.trim_end_matches('\n').into())
}

fn header() -> String {
    let text = csv_text(&HistoryRow::default()).unwrap_or_default();
    text.lines().next().unwrap_or_default().into()
}

/// Our header, and the row under it.
fn csv_text(row: &HistoryRow) -> std::result::Result<String, String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.serialize(row).map_err(|e| e.to_string())?;
    let bytes = writer.into_inner().map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// Whether a header has all columns of another, in their places.
fn extends(long: &str, short: &str) -> bool {
    long.strip_prefix(short)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
}

/// A line with empty cells for columns that it lacks.
fn padded(line: String, columns: usize) -> String {
    let cells = fields(&line).map_or(columns, |record| record.len());
    line + &",".repeat(columns.saturating_sub(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_headers() {
        assert_eq!(header().split(',').count(), HEADER_AT_FIRST);
        let row = HistoryRow {
            run_id: "a, \"b\"".into(),
            precision: "int8".into(),
            perplexity: Some(25.25),
            ..HistoryRow::default()
        };
        let text = line(&row, &header()).unwrap();
        assert_eq!(parse(&text, &header()), Ok(row.clone()));
        // A later version's columns: kept, and padded on lines that lack them.
        let later = header() + ",joules";
        assert!(extends(&later, &header()) && !extends(&header(), &later));
        assert!(!extends(&(header() + "x"), &header()));
        assert_eq!(parse(&text, &later), Ok(row.clone()));
        assert_eq!(line(&row, &later).unwrap(), text.clone() + ",");
        let padded = padded(text.clone(), 22);
        assert_eq!(padded, text + ",");
    }

    #[test]
    fn columns_go_by_their_names() {
        let row = HistoryRow {
            run_id: "a, \"b\"".into(),
            precision: "int8".into(),
            batch: Some(4),
            decode_tok_s: Some(25.25),
            ..HistoryRow::default()
        };
        let ours = header();
        let mut names: Vec<&str> = ours.split(',').rev().collect();
        names.insert(3, "\"a, note\"");
        let turned = names.join(",");
        assert!(is_header((turned.clone() + "\n").as_bytes()));
        let text = line(&row, &turned).unwrap();
        assert!(text.starts_with(",25.25,,,"), "{text}");
        assert_eq!(parse(&text, &turned), Ok(row));
        // Whatever it lacks might be any column.
        let short = text.rsplit_once(',').unwrap().0;
        assert!(parse(short, &turned).unwrap_err().contains("21 columns"));
        for other in [
            turned.replace("batch,", ""),
            turned.clone() + ",batch",
            ours.replace("batch", "bitch"),
            String::new(),
        ] {
            assert!(!is_header((other.clone() + "\n").as_bytes()), "{other}");
        }
    }
}
