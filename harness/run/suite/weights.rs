//! Packed weights of a run: quantized, taken from the cache, or left by a run that was cut off.
//!
//! A cell whose measurement is in the journal needs no weights: they are provided when a child
//! has to read them.

use super::super::cache::{self, Cache};
use super::super::child::{Ending, Outcome};
use super::super::job::{Event, Job, QuantizeJob, QuantizeResult};
use super::super::progress::Progress;
use super::Suite;
use super::cell::Step;
use super::pieces::Teller;
use crate::hash::sha256_of_file;
use crate::record::rows::Status;
use crate::{Error, Result, quant};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where packed files lie while they are in use.
#[derive(Default)]
pub(super) struct Shelf {
    /// In the run's folder, for what the cache does not take; removed when the run ends.
    folder: PathBuf,
    cache: Option<Cache>,
    /// By precision id.
    files: HashMap<String, PathBuf>,
    held: Vec<cache::Held>,
}

const FOLDER: &str = ".packed";

impl Shelf {
    pub(super) fn open(
        out: &Path,
        choice: Option<&cache::Choice>,
        progress: Progress,
    ) -> Result<Self> {
        let folder = out.join(FOLDER);
        std::fs::create_dir_all(&folder)
            .map_err(|e| Error::io(&folder, e, "choose another folder with --out"))?;
        let cache = choice.and_then(|choice| {
            Cache::open(choice)
                .inspect_err(|why| {
                    progress.note(&format!("quantized weights are not cached: {why}"));
                })
                .ok()
        });
        Ok(Shelf {
            folder,
            cache,
            files: HashMap::new(),
            held: vec![],
        })
    }

    /// Where the reference's log-probabilities lie in the folder of a run.
    pub(super) fn log_probs(out: &Path) -> PathBuf {
        out.join(FOLDER).join("reference.logprobs")
    }

    /// The packed file of a precision; empty if it was not provided.
    pub(super) fn file(&self, id: &str) -> PathBuf {
        self.files.get(id).cloned().unwrap_or_default()
    }

    /// Where a quantizing child writes.
    fn made(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.safetensors"))
    }

    /// Cached weights of a precision, which then are the ones in use.
    fn take(&mut self, id: &str, key: &str, progress: Progress) -> Option<QuantizeResult> {
        let held = match self.cache.as_ref()?.get(key) {
            Ok(held) => held?,
            Err(damaged) => {
                progress.note(&damaged);
                return None;
            }
        };
        Some(self.hold(id, held))
    }

    /// Puts what a child has just made into use, in the cache if that has room.
    fn keep(&mut self, id: &str, key: &str, result: &QuantizeResult, progress: Progress) {
        let made = self.made(id);
        let put = self.cache.as_ref().map(|c| c.put(key, result, &made));
        match put {
            Some(Ok(held)) => {
                self.hold(id, held);
                return;
            }
            Some(Err(why)) => progress.note(&format!("{id} is not cached: {why}")),
            None => {}
        }
        self.files.insert(id.into(), made);
    }

    fn hold(&mut self, id: &str, held: cache::Held) -> QuantizeResult {
        let result = held.result.clone();
        self.files.insert(id.into(), held.packed.clone());
        self.held.push(held);
        result
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if !self.folder.as_os_str().is_empty() {
            // What cannot be removed now is reused or removed by the next run in the folder.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

impl Suite<'_> {
    pub(super) fn quantize_job(&self, i: usize) -> Job {
        let cell = &self.cells[i];
        let calibrated = cell.method.calibration() == quant::Calibration::Inputs;
        Job::Quantize(QuantizeJob {
            model: self.options.model.clone(),
            precision: cell.method.source(),
            calibration: match calibrated {
                true => self.calibration.clone(),
                false => vec![],
            },
            output: self.shelf.made(&cell.id),
            place: self.place.clone(),
        })
    }

    /// Gives a cell its weights' numbers: from an earlier cell of the precision, the journal, the
    /// cache or a child.
    pub(super) fn quantize(&mut self, i: usize) -> Result<Step> {
        if !self.has_weights {
            return Ok(Step::Done);
        }
        let first = self.first_of(i);
        if first != i {
            // The weights do not depend on the cache that they will run with.
            return Ok(match self.cells[first].quantized.clone() {
                Some(result) => {
                    let from_cache = self.cells[first].detail.weights_from_cache;
                    self.cells[i].detail.weights_from_cache = from_cache;
                    self.cells[i].record_quantized(result);
                    Step::Done
                }
                None => Step::Failed(self.cells[first].ending()),
            });
        }
        let job = self.quantize_job(i);
        let cell = &mut self.cells[i];
        let key = self.keys.quantize(&job, cell.method.as_ref());
        if let Some(mut teller) = Teller::kept(&self.journal, &key) {
            let from_cache = self.journal.work(&key).is_some_and(|(w, _)| w.from_cache);
            self.cells[i].detail.weights_from_cache = from_cache;
            return match self.hear_quantized(i, &mut teller) {
                Ok(result) => self.enter_quantized(i, teller, result),
                Err(step) => Ok(step),
            };
        }
        let shared = self.keys.weights(&job, cell.method.as_ref());
        if let Some(result) = self.shelf.take(&cell.id, &shared, self.progress) {
            self.progress.note(&format!(
                "{:<28} from the cache ({:.1} s when made)",
                format!("{} quantize", cell.id),
                result.quantize_s
            ));
            cell.detail.weights_from_cache = true;
            let event = serde_json::json!(Event::Quantized(result.clone()));
            self.journal.keep_cached(key, super::timestamp(), event)?;
            cell.record_quantized(result);
            return Ok(Step::Done);
        }
        let mut teller = Teller::start(&job, key, self.options.threads, self.timeout())?;
        match self.hear_quantized(i, &mut teller) {
            Ok(result) => {
                let id = &self.cells[i].id;
                self.shelf.keep(id, &shared, &result, self.progress);
                self.enter_quantized(i, teller, result)
            }
            Err(step) => Ok(step),
        }
    }

    fn enter_quantized(
        &mut self,
        i: usize,
        teller: Teller,
        result: QuantizeResult,
    ) -> Result<Step> {
        let cell = &mut self.cells[i];
        cell.detail.started_at = teller.started_at.clone();
        cell.took_s += teller.seconds();
        cell.record_quantized(result);
        teller.keep(&mut self.journal, &mut self.info.reused, |r| {
            &mut r.quantized
        })?;
        Ok(Step::Done)
    }

    /// Listens to a quantizing child to its end.
    fn hear_quantized(
        &self,
        i: usize,
        teller: &mut Teller,
    ) -> std::result::Result<QuantizeResult, Step> {
        let layers = self.info.model.layers as usize;
        let label = format!("{} quantize", self.cells[i].id);
        let stage = self.progress.stage(&label, layers, "blocks");
        let mut result: Option<QuantizeResult> = None;
        loop {
            match teller.next(self.interrupted) {
                Outcome::Event(Event::Progress { done, .. }) => stage.set(done),
                Outcome::Event(Event::Quantized(r)) => result = Some(r),
                Outcome::Event(other) => return Err(Step::unexpected(&other)),
                Outcome::Failed(ending) => return Err(Step::Failed(ending)),
                Outcome::Interrupted => return Err(Step::Interrupted),
                Outcome::Done => break,
            }
        }
        let result = result.ok_or_else(Step::silent)?;
        if teller.is_live() {
            stage.finish(&format!("{:.1} s", result.quantize_s));
        }
        Ok(result)
    }

    /// Sees to it that a child can read the weights of a cell, whose numbers are known.
    pub(super) fn provide_weights(&mut self, i: usize) -> Result<Step> {
        let cell = &self.cells[i];
        let Some(known) = cell.quantized.clone().filter(|_| self.has_weights) else {
            return Ok(Step::Done);
        };
        if self.shelf.files.contains_key(&cell.id) {
            return Ok(Step::Done);
        }
        let id = cell.id.clone();
        let made = self.shelf.made(&id);
        // Left by a run that was cut off.
        if sha256_of_file(&made).is_ok_and(|sha256| sha256 == known.packed_sha256) {
            self.shelf.files.insert(id, made);
            return Ok(Step::Done);
        }
        let first = self.first_of(i);
        let job = self.quantize_job(first);
        let method = self.cells[first].method.as_ref();
        let shared = self.keys.weights(&job, method);
        let again = match self.shelf.take(&id, &shared, self.progress) {
            Some(result) => result,
            None => {
                let key = self.keys.quantize(&job, method);
                let mut teller = Teller::start(&job, key, self.options.threads, self.timeout())?;
                match self.hear_quantized(first, &mut teller) {
                    Ok(result) => {
                        self.shelf.keep(&id, &shared, &result, self.progress);
                        result
                    }
                    Err(step) => return Ok(step),
                }
            }
        };
        Ok(match again.packed_sha256 == known.packed_sha256 {
            true => Step::Done,
            false => Step::Failed(Ending {
                status: Status::Error,
                message: "quantizing again gave other weights than the journal has: measure \
                          afresh with --force"
                    .into(),
            }),
        })
    }
}
