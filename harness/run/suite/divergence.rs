//! What is compared with the reference token by token, and what became of it.

use super::super::child::{Child, Outcome};
use super::cell::{Cell, Step};
use super::weights::Shelf;
use super::{Options, Suite};
use crate::Result;
use crate::measure::divergence::summary;
use crate::measure::log_probs::{Address, AddressedText, Reader, row_bytes};
use crate::measure::quality::ScoredText;
use crate::record::rows::ResultRow;
use crate::record::run_info::{CellDetail, ModelInfo, ProtocolInfo};
use crate::record::warning::Warning;
use crate::run::job::{DivergenceJob, Event, Job};

/// The part of the texts whose log-probabilities fit `budget_bytes`, as whole windows: the first
/// of every text, then the second of every text, and so on up to the one that does not fit.
pub(super) fn address(
    options: &Options,
    model: &ModelInfo,
    (reference, kv): (&str, &str),
    device: &str,
    protocol: &ProtocolInfo,
    texts: &[ScoredText],
) -> Address {
    let vocab_size = model.vocab_size as usize;
    let scored: Vec<Vec<u64>> = texts
        .iter()
        .map(|text| text.windows.iter().map(|w| w.scored.len() as u64))
        .map(Iterator::collect)
        .collect();
    let rows = (options.kl_cache_bytes / row_bytes(vocab_size)) as u64;
    let taken = first_windows(&scored, rows);
    let texts = protocol.texts.iter().zip(&scored).zip(taken);
    let texts = texts.map(|((text, scored), windows)| AddressedText {
        ids_sha256: text.ids_sha256.clone(),
        windows,
        scored_tokens: scored[..windows].iter().sum(),
    });
    Address {
        weights_sha256: model.weights_sha256.clone(),
        tokenizer_sha256: model.tokenizer_sha256.clone(),
        precision: reference.into(),
        // Known once it has been quantized.
        packed_sha256: String::new(),
        kv_cache: kv.into(),
        protocol: protocol.id.clone(),
        device: device.into(),
        program: format!(
            "quantbench {} {}",
            env!("CARGO_PKG_VERSION"),
            env!("QUANTBENCH_GIT_COMMIT")
        ),
        vocab_size,
        texts: texts.collect(),
    }
}

/// Windows of each text, taken in turn while their tokens together are at most `most`.
fn first_windows(scored: &[Vec<u64>], most: u64) -> Vec<usize> {
    let mut taken = vec![0; scored.len()];
    let longest = scored.iter().map(Vec::len).max().unwrap_or(0);
    let mut left = most;
    for window in 0..longest {
        for (text, tokens) in scored.iter().enumerate() {
            let Some(tokens) = tokens.get(window) else {
                continue;
            };
            match left.checked_sub(*tokens) {
                Some(rest) => left = rest,
                None => return taken,
            }
            taken[text] += 1;
        }
    }
    taken
}

impl Suite<'_> {
    /// The cell that others are compared with: the reference with the first KV cache.
    pub(super) fn reference_cell(&self) -> Option<usize> {
        let is_reference = |cell: &Cell| Some(&cell.id) == self.reference.as_ref();
        self.cells.iter().position(is_reference)
    }

    /// Cells in the order in which they are measured: the reference first where the others are
    /// compared with it.
    pub(super) fn measuring_order(&self) -> Vec<usize> {
        let compared = self.divergence.is_some();
        let reference = self.reference_cell().filter(|_| compared);
        let others = (0..self.cells.len()).filter(|i| Some(*i) != reference);
        reference.into_iter().chain(others).collect()
    }

    /// Chooses what is compared, if anything is, and where the reference's log-probabilities go.
    pub(super) fn plan_divergence(&mut self) {
        let (Some(reference), true) = (self.reference_cell(), self.options.kl) else {
            return;
        };
        if self.texts.is_empty() || self.cells.len() < 2 {
            return;
        }
        let cell = &self.cells[reference];
        // The first protocol's texts stand first, one for each set.
        let protocol = &self.scoring.protocols[0];
        let address = address(
            self.options,
            &self.info.model,
            (&cell.id, &cell.kv),
            &self.place.device,
            protocol,
            &self.scoring.texts[..self.texts.len()],
        );
        if address.scored_tokens() == 0 {
            self.doubt_run(Warning::NothingCompared {
                most_bytes: self.options.kl_cache_bytes as u64,
                protocol: protocol.id.clone(),
            });
            return;
        }
        self.divergence = Some(DivergenceJob {
            path: Shelf::log_probs(&self.options.out),
            address,
            records: false,
        });
    }

    /// The part of a cell's measuring job; nothing where the reference has no result.
    pub(super) fn divergence_job(&self, i: usize) -> Option<DivergenceJob> {
        let job = self.divergence.as_ref()?;
        let reference = self.reference_cell()?;
        let records = i == reference;
        let reference = &self.cells[reference];
        (records || reference.measured).then(|| DivergenceJob {
            records,
            address: Address {
                packed_sha256: reference.detail.packed_sha256.clone(),
                ..job.address.clone()
            },
            ..job.clone()
        })
    }
}

impl Suite<'_> {
    /// Sees to it that a child can read the reference's log-probabilities. They are there, unless
    /// the journal has the reference's measurement from a run that was cut off: then they are
    /// made again.
    pub(super) fn provide_reference(&mut self, i: usize) -> Result<Step> {
        let (Some(job), Some(reference)) = (self.divergence_job(i), self.reference_cell()) else {
            return Ok(Step::Done);
        };
        if job.records || Reader::open(&job.path, job.address).is_ok() {
            return Ok(Step::Done);
        }
        match self.provide_weights(reference)? {
            Step::Done => {}
            other => return Ok(other),
        }
        let Job::Measure(mut job) = self.measure_job(reference, &[]) else {
            return Ok(Step::silent());
        };
        job.choices.clear();
        job.texts.truncate(self.texts.len());
        let windows: usize = job.texts.iter().map(|t| t.windows.len()).sum();
        let title = format!("{} log-probabilities", self.cells[reference].title);
        let stage = self.progress.stage(&title, windows, "windows");
        let timeout = self.timeout();
        let mut child = Child::start(&Job::Measure(job), self.options.threads, timeout)?;
        let mut done = 0;
        loop {
            match child.next(self.interrupted) {
                Outcome::Event(Event::Window { .. }) => {
                    done += 1;
                    stage.set(done);
                }
                Outcome::Event(_) => {}
                Outcome::Failed(ending) => return Ok(Step::Failed(ending)),
                Outcome::Interrupted => return Ok(Step::Interrupted),
                Outcome::Done => return Ok(Step::Done),
            }
        }
    }
}

/// Enters what was compared into a cell's row and detail.
pub(super) fn record(cell: &Cell, row: &mut ResultRow, detail: &mut CellDetail) {
    let scores = cell.scores.iter().flatten();
    let unscored = scores.map(|s| s.nonfinite_tokens).reduce(|a, b| a + b);
    row.nonfinite_tokens = unscored;
    let Some(divergence) = summary(&cell.divergences) else {
        return;
    };
    row.nonfinite_tokens = unscored.max(Some(divergence.nonfinite_tokens));
    row.kl_tokens = Some(divergence.tokens);
    row.kl_mean_nats = divergence.kl_mean_nats;
    row.kl_median_nats = divergence.kl_median_nats;
    row.kl_p90_nats = divergence.kl_p90_nats;
    row.kl_p99_nats = divergence.kl_p99_nats;
    row.kl_max_nats = divergence.kl_max_nats;
    row.top1_agreement = divergence.top1_agreement;
    row.delta_p_mean = divergence.delta_p_mean;
    row.delta_p_rms = divergence.delta_p_rms;
    detail.divergence = Some(divergence);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_taken_whole_and_in_turn() {
        let scored = [vec![10; 3], vec![10; 1], vec![], vec![7; 2]];
        assert_eq!(first_windows(&scored, 1000), [3, 1, 0, 2]);
        assert_eq!(first_windows(&scored, 27), [1, 1, 0, 1]);
        assert_eq!(first_windows(&scored, 26), [1, 1, 0, 0]);
        assert_eq!(first_windows(&scored, 43), [2, 1, 0, 1]);
        assert_eq!(first_windows(&scored, 9), [0, 0, 0, 0]);
        assert_eq!(first_windows(&[], 9), [0; 0]);
    }
}
