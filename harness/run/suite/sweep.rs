//! The speed test's shapes: every batch with every context, and which of them are given up when
//! one runs out of memory.

use super::super::child::Ending;
use super::Options;
use super::cell::{Cell, State};
use crate::Result;
use crate::measure::speed::Workload;
use crate::model::config::Config;
use crate::record::rows::Status;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

impl Options {
    /// Prompt lengths to measure, in the order asked for.
    pub fn contexts(&self) -> Vec<usize> {
        match self.context.is_empty() {
            true => vec![self.prompt_tokens],
            false => self.context.clone(),
        }
    }

    /// Cache positions that the longest workload fills.
    pub(super) fn longest_workload(&self) -> usize {
        let context = self.contexts().into_iter().max().unwrap_or(0);
        context.saturating_add(self.gen_tokens)
    }
}

/// Every batch with every context, prompts cut from `ids`.
pub(super) fn workloads(options: &Options, ids: &[u32]) -> Result<Vec<Workload>> {
    let mut workloads = vec![];
    for batch in &options.batch {
        for context in options.contexts() {
            workloads.push(Workload::from_text(
                ids,
                *batch,
                context,
                options.gen_tokens,
            )?);
        }
    }
    Ok(workloads)
}

/// Prompts for a model without a tokenizer: random ids, enough for every workload.
pub(super) fn random_ids(options: &Options, vocab_size: usize) -> Vec<u32> {
    let batch = options.batch.iter().max().unwrap_or(&1);
    let context = options.contexts().into_iter().max().unwrap_or(1);
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    (0..batch.saturating_mul(context))
        .map(|_| rng.random_range(0..vocab_size as u32))
        .collect()
}

/// Random calibration windows, as many and as long as GPTQ's authors took (arXiv 2210.17323,
/// section 4: 128 of 2048 tokens), or fewer if asked to.
pub(super) fn random_windows(options: &Options, config: &Config) -> Vec<Vec<u32>> {
    let tokens = config.max_position_embeddings.min(2048);
    // A stream of its own: prompts are other ids.
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    rng.set_stream(1);
    (0..options.calibration_limit.unwrap_or(128))
        .map(|_| {
            (0..tokens)
                .map(|_| rng.random_range(0..config.vocab_size as u32))
                .collect()
        })
        .collect()
}

impl Cell {
    /// The points whose memory is still to be measured, those of few tokens first: what does not
    /// fit then comes last.
    pub(super) fn open_points(&self, workloads: &[Workload]) -> Vec<usize> {
        let mut open: Vec<usize> = (0..self.points.len())
            .filter(|p| self.points[*p].state == State::Open)
            .collect();
        open.sort_by_key(|p| workloads[*p].batch() * workloads[*p].positions());
        open
    }

    /// Records that a point ran out of memory, and gives up those that need at least as much.
    pub(super) fn out_of_memory(&mut self, point: usize, ending: &Ending) {
        self.points[point].fail(ending);
        let size = |cell: &Cell, p: usize| {
            let row = &cell.points[p].row;
            (row.batch.unwrap_or(0), row.prompt_tokens.unwrap_or(0))
        };
        let (batch, context) = size(self, point);
        let given_up = Ending {
            status: Status::Skipped,
            message: format!("oom@{} kv={} b={batch} ctx={context}", self.id, self.kv),
        };
        for p in 0..self.points.len() {
            let (other_batch, other_context) = size(self, p);
            let larger = other_batch >= batch && other_context >= context;
            if larger && !matches!(self.points[p].state, State::Failed | State::LeftOut) {
                self.points[p].fail(&given_up);
            }
        }
    }
}
