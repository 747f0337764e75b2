//! What a run would do, and what its folder's journal has of it already.

use super::super::job::Event;
use super::super::journal::Journal;
use super::super::progress::Progress;
use super::cell::{Point, State};
use super::options::{Methods, check};
use super::{Options, Suite, sources};
use crate::Result;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// The cells of a run in the order in which they are measured.
#[derive(Debug)]
pub struct Plan {
    pub model: String,
    pub cells: Vec<Planned>,
    /// Of the journal.
    pub warnings: Vec<String>,
}

/// A row to be: a precision with a KV cache, a batch and a context.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub precision: String,
    pub kv_cache: String,
    pub batch: u64,
    pub prompt_tokens: u64,
    pub quantized: bool,
    pub measured: bool,
    /// Repetitions in the journal.
    pub timed: usize,
    /// Repetitions asked for: none of a reference that is there for quality.
    pub reps: usize,
}

impl Planned {
    pub fn is_done(&self) -> bool {
        self.measured && self.timed >= self.reps
    }

    /// What the journal has of it, in words.
    pub fn progress(&self) -> String {
        let mut parts = vec![];
        if self.quantized {
            parts.push("quantized".to_string());
        }
        if self.measured {
            parts.push("measured".to_string());
        }
        if self.timed > 0 {
            parts.push(format!("{} of {} repetitions", self.timed, self.reps));
        }
        match parts.is_empty() {
            true => "-".into(),
            false => parts.join(", "),
        }
    }
}

/// Reads what a run would read and starts nothing.
///
/// # Errors
/// The same as [`run`](super::run)'s: wrong arguments and unusable inputs.
pub fn plan(options: &Options) -> Result<Plan> {
    check(options)?;
    let methods = Methods::of(options)?;
    let journal = match options.force {
        true => Journal::default(),
        false => Journal::look(&options.out)?,
    };
    let warnings = journal.warnings.clone();
    let source = sources::open(options.model.as_deref())?;
    let interrupted = AtomicBool::new(false);
    let mut suite = Suite::prepare(
        options,
        source.as_ref(),
        methods,
        journal,
        Progress::Quiet,
        &interrupted,
    )?;
    let order = suite.measuring_order();
    let quantized: BTreeMap<usize, bool> = order.iter().map(|i| (*i, suite.look_up(*i))).collect();
    suite.enter_turn_keys();
    let cells = quantized.iter();
    Ok(Plan {
        model: suite.info.model.name.clone(),
        cells: cells.flat_map(|(i, q)| suite.planned(*i, *q)).collect(),
        warnings,
    })
}

impl Suite<'_> {
    /// Enters what the journal has of a cell; whether its weights are in it.
    fn look_up(&mut self, i: usize) -> bool {
        let quantized = self.has_weights && self.look_up_quantized(i);
        // A measurement that went through without a failure is one piece of work.
        let open = self.cells[i].open_points(&self.workloads);
        let known = quantized || !self.has_weights;
        let measured = known && self.journal.work(&self.measure_key(i, &open)).is_some();
        // What others are compared with stands before them.
        let cell = &mut self.cells[i];
        cell.measured = measured;
        let asked = |p: &&mut Point| p.state == State::Open;
        for point in cell.points.iter_mut().filter(asked).filter(|_| measured) {
            point.state = State::Measured;
        }
        quantized
    }

    fn planned(&self, i: usize, quantized: bool) -> Vec<Planned> {
        let cell = &self.cells[i];
        let reps = match cell.timed {
            true => self.options.reps,
            false => 0,
        };
        let asked = cell.points.iter().filter(|p| p.state != State::LeftOut);
        asked
            .map(|point| {
                let (row, key) = (&point.row, &point.turn_key);
                let timed = (0..reps).filter(|rep| self.journal.turn(key, *rep, false).is_some());
                Planned {
                    precision: cell.id.clone(),
                    kv_cache: cell.kv.clone(),
                    batch: row.batch.unwrap_or_default(),
                    prompt_tokens: row.prompt_tokens.unwrap_or_default(),
                    quantized,
                    measured: cell.measured,
                    timed: timed.count(),
                    reps,
                }
            })
            .collect()
    }

    /// Enters the weights' hash of a cell if the journal has it.
    fn look_up_quantized(&mut self, i: usize) -> bool {
        let first = self.first_of(i);
        let job = self.quantize_job(first);
        let key = self.keys.quantize(&job, self.cells[first].method.as_ref());
        let events = self.journal.work(&key).map(|(_, events)| events);
        let result = events.into_iter().flatten().find_map(|event| match event {
            Event::Quantized(result) => Some(result),
            _ => None,
        });
        match result {
            Some(result) => {
                self.cells[i].detail.packed_sha256 = result.packed_sha256;
                true
            }
            None => false,
        }
    }
}
