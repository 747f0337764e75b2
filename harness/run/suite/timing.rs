//! The timing at the end of a run: children take turns.

use super::super::child::{Child, Outcome};
use super::super::host;
use super::super::job::{Event, Job, TIME_ONCE, TimeJob};
use super::super::progress::Stage;
use super::Suite;
use super::cell::lost;
use crate::Result;
use crate::measure::telemetry::Telemetry;
use crate::report::record::Status;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

impl Suite<'_> {
    /// Times every measured cell, in turns. `false` if the user asked to stop.
    pub(super) fn time_cells(&mut self) -> Result<bool> {
        let who: Vec<usize> = (0..self.cells.len())
            .filter(|i| self.cells[*i].measured && self.cells[*i].timed)
            .collect();
        if who.is_empty() {
            return Ok(true);
        }
        if !self.measure_roofline()? {
            return Ok(false);
        }
        self.open_telemetry();
        let needed: u64 = who
            .iter()
            .map(|i| self.cells[*i].row.peak_memory_bytes.unwrap_or(0))
            .sum();
        let together = host::available_memory_bytes().is_none_or(|free| needed < free / 5 * 4);
        let reps = self.options.reps;
        let stage = self
            .progress
            .stage("timing", who.len() * (reps + 1), "repetitions");
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        let mut turns = Turns {
            stage: &stage,
            done: 0,
        };
        let going = if together {
            self.time_group(&who, 0..reps, &mut rng, &mut turns)?
        } else {
            // They do not fit together: one at a time, forth and back, so that a drift of the
            // machine hits all of them alike.
            let half = reps.div_ceil(2);
            let mut going = true;
            for i in &who {
                going = going && self.time_group(&[*i], 0..half, &mut rng, &mut turns)?;
            }
            for i in who.iter().rev() {
                going = going
                    && (half == reps
                        || self.time_group(&[*i], half..reps, &mut rng, &mut turns)?);
            }
            going
        };
        if going {
            stage.finish(&format!(
                "{reps} repetitions of {} + {} tokens each",
                self.options.prompt_tokens, self.options.gen_tokens
            ));
        }
        for i in who {
            self.cells[i].summarize_speed(&self.workload);
            self.record_shares(i);
            self.record_telemetry(i);
        }
        Ok(going)
    }

    /// Loads these cells side by side, warms each up, then lets them take turns: one active at a
    /// time, in a fresh random order per repetition.
    fn time_group(
        &mut self,
        who: &[usize],
        reps: Range<usize>,
        rng: &mut ChaCha8Rng,
        turns: &mut Turns,
    ) -> Result<bool> {
        let mut children: Vec<(usize, Child)> = vec![];
        for i in who {
            let job = Job::Time(TimeJob {
                packed: self.cells[*i].packed.clone(),
                kv: self.options.kv.clone(),
                workload: self.workload.clone(),
            });
            let mut child = Child::start(&job, self.options.threads, self.timeout())?;
            match child.next(self.interrupted) {
                Outcome::Event(Event::Ready) => children.push((*i, child)),
                Outcome::Interrupted => return Ok(false),
                Outcome::Failed(ending) => self.cells[*i].fail_timing(ending),
                Outcome::Event(_) | Outcome::Done => self.cells[*i].fail_timing(lost()),
            }
        }
        let ours: Vec<u32> = children.iter().map(|(_, child)| child.id()).collect();
        let first = reps.start;
        let rounds = std::iter::once((true, 0)).chain(reps.map(|r| (false, r)));
        for (warmup, rep) in rounds {
            children.shuffle(rng);
            for (i, child) in &mut children {
                let cell = &mut self.cells[*i];
                if cell.row.status != Status::Ok {
                    continue;
                }
                let sampler = self.telemetry.as_ref().map(Telemetry::start);
                child.tell(TIME_ONCE);
                match child.next(self.interrupted) {
                    Outcome::Event(Event::Timed(sample)) => {
                        // A second pass warms up again; its sample continues the numbering.
                        let rep = if warmup { first } else { rep };
                        cell.record_sample(&sample, &self.workload, rep, warmup);
                        if let Some(sampler) = sampler.filter(|_| !warmup) {
                            cell.watched
                                .push(sampler.stop(sample.decode_s), child.id(), &ours);
                        }
                    }
                    Outcome::Interrupted => return Ok(false),
                    Outcome::Failed(ending) => cell.fail_timing(ending),
                    Outcome::Event(_) | Outcome::Done => cell.fail_timing(lost()),
                }
                turns.done += 1;
                turns.stage.set(turns.done);
            }
        }
        for (_, child) in children {
            child.finish();
        }
        Ok(true)
    }
}

struct Turns<'a> {
    stage: &'a Stage,
    done: usize,
}
