//! The journal of a run's folder: what its children said, so that a run that was cut off goes on
//! where it was.
//!
//! `journal.jsonl` is only ever appended to, a line for each finished piece of work: everything
//! that a quantizing, measuring or roofline child said, or one timed turn. A line is written and
//! synced when its piece is finished, so a crash loses the pieces under way and nothing else.
//! Failures are not written: running again tries them again.
//!
//! A line is `{"check":"<16 hex digits>","record":<JSON>}`; the digits begin the SHA-256 of the
//! record's text. A line that does not agree with its digits is left out with a warning. Every
//! record has a key (see [`keys`](super::keys)) that names what determines its result.
//!
//! The open file is locked: one run at a time writes to a folder, and the lock of a process that
//! was killed ends with it.

use super::job::Event;
use crate::hash::sha256;
use crate::measure::speed::Sample;
use crate::measure::telemetry::Recording;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Its name in a run's folder.
pub const FILE: &str = "journal.jsonl";

/// Hex digits of the hash that guards a line.
const CHECK_DIGITS: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Run(Began),
    Work(Work),
    Turn(Timed),
}

/// A run that was begun in the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Began {
    pub run_id: String,
    pub started_at: String,
    /// Hash of what was asked for, on which machine and with which program.
    pub configuration: String,
}

/// All that a child said, from its start to its good end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Work {
    pub key: String,
    pub started_at: String,
    pub seconds: f64,
    /// Whether it was not done but taken from the cache.
    #[serde(default)]
    pub from_cache: bool,
    /// As [`Event`]s; what another version wrote may not be one of ours.
    events: Vec<serde_json::Value>,
}

/// One repetition of a point.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timed {
    pub key: String,
    pub rep: usize,
    pub warmup: bool,
    pub sample: Sample,
    /// The child that took it ([`Child::name`](super::child::Child::name)).
    pub process: String,
    /// Seconds since 1970.
    pub ended_at_s: f64,
    /// What the GPU did meanwhile, by which process, and all of the run's then.
    pub watched: Option<(Recording, u32, Vec<u32>)>,
}

/// What a folder's journal holds, and the file to which it grows.
#[derive(Debug, Default)]
pub struct Journal {
    path: PathBuf,
    /// None where it is only looked at.
    file: Option<File>,
    /// What of the file stays when something is entered; `None` once that has happened.
    keeps_bytes: Option<u64>,
    runs: Vec<Began>,
    work: HashMap<String, Work>,
    turns: HashMap<(String, usize, bool), Timed>,
    /// Plain words on what could not be read.
    pub warnings: Vec<String>,
}

impl Journal {
    /// Opens and locks the journal of `dir`; `afresh`, what it holds counts for nothing, and goes
    /// when the first record is entered: not for a mistake in a command.
    ///
    /// # Errors
    /// Another run holds it ([`Error::Usage`]), or the file cannot be written or locked.
    pub fn open(dir: &Path, afresh: bool) -> Result<Self> {
        let path = dir.join(FILE);
        let failed = |e| Error::io(&path, e, "choose a folder that can be written with --out");
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::usage(
                    format!("another run is at work in {}", dir.display()),
                    "wait until it has ended, or choose another folder with --out",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(failed)?;
        let mut journal = match afresh {
            true => Journal {
                path: path.clone(),
                ..Journal::default()
            },
            false => Journal::parse(path.clone(), &bytes),
        };
        // What follows must not continue a line that was cut off.
        journal.keeps_bytes = match afresh {
            true => Some(0),
            false => Some(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1) as u64),
        };
        journal.file = Some(file);
        Ok(journal)
    }

    /// What the journal of `dir` holds, without locking or making it.
    pub fn look(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Journal::parse(path, &bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Journal::default()),
            Err(e) => Err(Error::io(path, e, "check its permissions")),
        }
    }

    fn parse(path: PathBuf, bytes: &[u8]) -> Self {
        let mut journal = Journal {
            path,
            ..Journal::default()
        };
        let mut damaged = vec![];
        for (n, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            match record_text(line) {
                // Whole, but of another version: none of its keys would be asked for.
                Some(text) => match serde_json::from_str(text) {
                    Ok(record) => journal.take(record),
                    Err(_) => continue,
                },
                None => damaged.push((n + 1).to_string()),
            }
        }
        if !damaged.is_empty() {
            journal.warnings.push(format!(
                "{}: line {} damaged or cut off, so that work is done again",
                journal.path.display(),
                damaged.join(", ")
            ));
        }
        journal
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Run(began) => self.runs.push(began),
            Record::Work(work) => {
                self.work.insert(work.key.clone(), work);
            }
            Record::Turn(turn) => {
                let place = (turn.key.clone(), turn.rep, turn.warmup);
                self.turns.insert(place, turn);
            }
        }
    }

    fn append(&mut self, record: Record) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let failed = |e| Error::io(&self.path, e, "is the disk full? run again to go on");
        let text = serde_json::to_string(&record).map_err(|e| failed(e.into()))?;
        let line = format!(
            "{{\"check\":\"{}\",\"record\":{text}}}\n",
            check_digits(&text)
        );
        let cut = self.keeps_bytes.take().map(|bytes| file.set_len(bytes));
        cut.unwrap_or(Ok(()))
            .and_then(|()| file.write_all(line.as_bytes()))
            .and_then(|()| file.sync_data())
            .map_err(failed)?;
        self.take(record);
        Ok(())
    }

    /// The run of this configuration that the folder holds, else `new`, which is entered.
    pub fn begin(&mut self, new: Began) -> Result<Began> {
        let same = |run: &&Began| run.configuration == new.configuration;
        if let Some(earlier) = self.runs.iter().rfind(same) {
            return Ok(earlier.clone());
        }
        self.append(Record::Run(new.clone()))?;
        Ok(new)
    }

    /// What a child with this key said, if all of it can be understood.
    pub fn work(&self, key: &str) -> Option<(&Work, Vec<Event>)> {
        let work = self.work.get(key)?;
        let events = work.events.iter();
        let events: Option<Vec<Event>> = events
            .map(|event| serde_json::from_value(event.clone()).ok())
            .collect();
        Some((work, events?))
    }

    /// Enters the events (as JSON) of a child that ended well.
    pub fn keep_work(
        &mut self,
        key: String,
        started_at: String,
        seconds: f64,
        events: Vec<serde_json::Value>,
    ) -> Result<()> {
        self.append(Record::Work(Work {
            key,
            started_at,
            seconds,
            from_cache: false,
            events,
        }))
    }

    /// Enters the one event (as JSON) that a child would have said, had the cache not known it.
    pub fn keep_cached(
        &mut self,
        key: String,
        taken_at: String,
        event: serde_json::Value,
    ) -> Result<()> {
        self.append(Record::Work(Work {
            key,
            started_at: taken_at,
            seconds: 0.0,
            from_cache: true,
            events: vec![event],
        }))
    }

    pub fn turn(&self, key: &str, rep: usize, warmup: bool) -> Option<&Timed> {
        self.turns.get(&(key.to_string(), rep, warmup))
    }

    pub fn keep_turn(&mut self, turn: Timed) -> Result<()> {
        self.append(Record::Turn(turn))
    }
}

/// The record of a line that is whole and agrees with its digits.
fn record_text(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("}\n")?;
    let (digits, rest) = line
        .strip_prefix("{\"check\":\"")?
        .split_at_checked(CHECK_DIGITS)?;
    let text = rest.strip_prefix("\",\"record\":")?;
    (check_digits(text) == digits).then_some(text)
}

fn check_digits(text: &str) -> String {
    let mut digits = sha256([text.as_bytes()]);
    digits.truncate(CHECK_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(rep: usize) -> Timed {
        Timed {
            key: "k".into(),
            rep,
            warmup: false,
            sample: Sample {
                prefill_s: 0.1 + rep as f64,
                ttft_s: 0.3,
                decode_s: 1.0 / 3.0,
            },
            process: "p".into(),
            ended_at_s: 0.1,
            watched: None,
        }
    }

    fn filled(dir: &Path) -> Vec<u8> {
        let mut journal = Journal::open(dir, false).unwrap();
        for rep in 0..3 {
            journal.keep_turn(timed(rep)).unwrap();
        }
        std::fs::read(dir.join(FILE)).unwrap()
    }

    #[test]
    fn what_was_written_is_read_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let journal = Journal::look(dir.path()).unwrap();
        for rep in 0..3 {
            let sample = journal.turn("k", rep, false).unwrap().sample;
            assert_eq!(sample, timed(rep).sample);
        }
        assert!(journal.turn("k", 0, true).is_none() && journal.turn("k", 3, false).is_none());
        assert!(journal.warnings.is_empty());
    }

    #[test]
    fn every_cut_loses_the_last_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = filled(dir.path());
        let lines: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] == b'\n').collect();
        for cut in 0..bytes.len() {
            std::fs::write(dir.path().join(FILE), &bytes[..cut]).unwrap();
            let mut journal = Journal::open(dir.path(), false).unwrap();
            let whole = lines.iter().filter(|end| **end < cut).count();
            let kept = (0..3).filter(|rep| journal.turn("k", *rep, false).is_some());
            assert_eq!(kept.count(), whole, "cut at {cut}");
            // And what comes next is whole again.
            journal.keep_turn(timed(7)).unwrap();
            drop(journal);
            let again = Journal::look(dir.path()).unwrap();
            assert!(again.turn("k", 7, false).is_some() && again.warnings.is_empty());
        }
    }

    #[test]
    fn a_changed_byte_loses_its_line_with_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = filled(dir.path());
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let journal = Journal::parse("journal".into(), &bytes);
            let kept = (0..3).filter(|rep| journal.turn("k", *rep, false).is_some());
            // A lost line end costs both neighbours.
            assert!((1..=2).contains(&kept.count()), "byte {at}");
            assert_eq!(journal.warnings.len(), 1, "byte {at}");
        }
    }

    #[test]
    fn a_second_run_is_refused_until_the_first_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path(), false).unwrap();
        let refused = Journal::open(dir.path(), true).unwrap_err().to_string();
        assert!(refused.contains("another run"), "{refused}");
        drop(first);
        Journal::open(dir.path(), false).unwrap();
    }
}
