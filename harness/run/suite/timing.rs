//! The timing at the end of a run: children take turns.
//!
//! A child holds one precision and runs any of its points when asked: a turn is a cell's point,
//! and the order of turns is random over precisions and points alike.

use super::super::child::{Child, Ending, Outcome};
use super::super::host;
use super::super::job::{self, Event, Job, TimeJob};
use super::super::journal::Timed;
use super::super::progress::Stage;
use super::Suite;
use super::cell::{Point, State, Step, lost};
use crate::measure::meter::DeviceMemory;
use crate::measure::nvml;
use crate::measure::telemetry::Telemetry;
use crate::record::rows::Status;
use crate::record::run_info::StopRule;
use crate::record::warning::Phase;
use crate::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// A cell and one of its points.
#[derive(Debug, Clone, Copy)]
struct Turn {
    cell: usize,
    point: usize,
}

/// A child that holds a precision for as long as it is timed.
struct Timer {
    child: Child,
    /// Turns that it has had.
    warm: Vec<usize>,
}

impl Timer {
    /// Has the child take a turn; its first is a warm-up that counts for nothing where none was
    /// meant, as in a child that took the place of a lost one.
    fn take(&mut self, turn: usize, warmup: bool, interrupted: &AtomicBool) -> Outcome {
        if !self.warm.contains(&turn) {
            self.warm.push(turn);
            if !warmup {
                match self.once(turn, interrupted) {
                    Outcome::Event(Event::Timed(_)) => {}
                    other => return other,
                }
            }
        }
        self.once(turn, interrupted)
    }

    fn once(&mut self, turn: usize, interrupted: &AtomicBool) -> Outcome {
        self.child.tell(&turn.to_string());
        self.child.next(interrupted)
    }
}

/// More than the context of a process on a GPU takes.
const CONTEXT_BYTES: u64 = 1 << 30;

/// Whether children that take so much at most may live at the same time in `room_bytes`.
fn fit_together(peaks: &[u64], on_gpu: Option<DeviceMemory>, room_bytes: Option<u64>) -> bool {
    let of_contexts = match on_gpu {
        // A second process would get no context.
        Some(device) if device.exclusive && peaks.len() > 1 => return false,
        // Every process on a GPU has a context beside what it asked for.
        Some(_) => CONTEXT_BYTES * peaks.len() as u64,
        None => 0,
    };
    let needed = peaks.iter().sum::<u64>() + of_contexts;
    room_bytes.is_none_or(|room| needed < room / 5 * 4)
}

/// Refuses turns with another run on a device that one process has for itself: children wait for
/// their turns with their models loaded.
fn refuse_turns(device: &str, on_gpu: Option<DeviceMemory>) -> Result<()> {
    match on_gpu {
        Some(memory) if memory.exclusive => Err(Error::usage(
            format!("{device} lets one process in (exclusive mode), and --turns needs two"),
            "set its compute mode to default (nvidia-smi -c 0), or leave --turns out",
        )),
        _ => Ok(()),
    }
}

impl Suite<'_> {
    /// Times every measured point, in turns. `false` if the user asked to stop.
    pub(super) fn time_cells(&mut self) -> Result<bool> {
        let precisions = self.turns();
        let count: usize = precisions.iter().map(Vec::len).sum();
        if count == 0 {
            return Ok(true);
        }
        if !self.measure_roofline()? {
            return Ok(false);
        }
        let on_gpu = self.cells.iter().find_map(|c| c.device);
        if self.turn.is_some() {
            refuse_turns(&self.place.device, on_gpu)?;
        }
        self.open_telemetry();
        let largest = |turns: &Vec<Turn>| {
            let peaks = turns.iter().map(|t| self.point(t).row.peak_memory_bytes);
            peaks.max().flatten().unwrap_or(0)
        };
        let peaks: Vec<u64> = precisions.iter().map(largest).collect();
        let together = fit_together(&peaks, on_gpu, self.room_bytes(on_gpu));
        let most = self.options.max_reps;
        self.enter_turn_keys();
        let stage = self
            .progress
            .stage("timing", count * (most + 1), "repetitions");
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        let mut progress = Progress {
            stage: &stage,
            done: 0,
        };
        let going = if together {
            self.time_side_by_side(&precisions, &mut rng, &mut progress)?
        } else {
            self.time_passes(&precisions, &mut rng, &mut progress)?
        };
        for turn in precisions.iter().flatten() {
            self.summarize(turn.cell, turn.point, going);
        }
        self.speed_pairs = self.compare_speeds();
        if going {
            let turns = precisions.iter().flatten();
            let reps = turns.map(|t| self.point(t).rates(Phase::Decode).len());
            let reps = reps.max().unwrap_or(0);
            stage.finish(&match &self.workloads[..] {
                [one] => format!(
                    "{reps} repetitions of {} + {} tokens each",
                    one.prompt_tokens(),
                    one.generated_tokens
                ),
                several => format!(
                    "{reps} repetitions of {} batches and contexts each",
                    several.len()
                ),
            });
        }
        Ok(going)
    }

    /// Memory for the children of the timing, where that is known. The next run that takes turns
    /// with this one has children too, of about the same size.
    fn room_bytes(&self, on_gpu: Option<DeviceMemory>) -> Option<u64> {
        let free = match on_gpu {
            Some(device) => nvml::free_bytes(&self.place.device).or(Some(device.total_bytes)),
            None => host::available_memory_bytes(),
        };
        free.map(|bytes| bytes / if self.turn.is_some() { 2 } else { 1 })
    }

    /// Times precisions that fit together: in one process each, or in several after one another,
    /// so that what a process happens to get (pages, addresses) shows in the scatter.
    fn time_side_by_side(
        &mut self,
        precisions: &[Vec<Turn>],
        rng: &mut ChaCha8Rng,
        progress: &mut Progress,
    ) -> Result<bool> {
        let (least, most) = (self.options.reps, self.options.max_reps);
        let mut done = 0;
        while done < most && !self.steady(done) {
            let reps = match self.options.processes {
                1 => 0..most,
                processes => pass(done, least, most, processes),
            };
            done = reps.end;
            if !self.time_group(precisions, reps, rng, progress)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Times precisions that do not fit together: one at a time, forth and back, so that a drift
    /// of the machine hits all of them alike. Two passes, or as many as processes were asked for,
    /// make the least repetitions; where that is not enough, further ones follow.
    fn time_passes(
        &mut self,
        precisions: &[Vec<Turn>],
        rng: &mut ChaCha8Rng,
        progress: &mut Progress,
    ) -> Result<bool> {
        let (least, most) = (self.options.reps, self.options.max_reps);
        let mut forth = true;
        let mut done = 0;
        while done < most && !self.steady(done) {
            let reps = pass(done, least, most, self.options.processes.max(2));
            let mut order: Vec<&Vec<Turn>> = precisions.iter().collect();
            if !forth {
                order.reverse();
            }
            for turns in order {
                let one = std::slice::from_ref(turns);
                if !self.time_group(one, reps.clone(), rng, progress)? {
                    return Ok(false);
                }
            }
            (done, forth) = (reps.end, !forth);
        }
        Ok(true)
    }

    /// Whether, after so many repetitions, every median is as certain as was asked for.
    fn steady(&self, repetitions: usize) -> bool {
        let (Some(most_noise), true) = (self.options.max_noise, repetitions >= self.options.reps)
        else {
            return false;
        };
        let timed = self.cells.iter().filter(|c| c.measured && c.timed);
        timed
            .flat_map(|cell| &cell.points)
            .filter(|point| point.state == State::Measured)
            .all(|point| {
                [Phase::Prefill, Phase::Decode].into_iter().all(|phase| {
                    let noise = point.noise(phase, self.options.seed);
                    noise.is_some_and(|noise| noise <= most_noise)
                })
            })
    }

    /// Turns the repetitions of a point into its row, and says why they ended.
    fn summarize(&mut self, cell: usize, point: usize, going: bool) {
        let options = self.options;
        let timed = &mut self.cells[cell].points[point];
        timed.summarize_speed(options.seed);
        timed.record_stop(options.max_noise.filter(|_| going), options.seed);
        if let (Some(timing), false) = (&mut timed.timing, going) {
            timing.stopped_by = StopRule::CutShort;
        }
        self.record_shares(cell, point);
        self.record_telemetry(cell, point);
    }

    /// What is to be timed, by precision.
    fn turns(&self) -> Vec<Vec<Turn>> {
        let mut precisions: Vec<(&str, Vec<Turn>)> = vec![];
        for (c, cell) in self.cells.iter().enumerate() {
            if !(cell.measured && cell.timed) {
                continue;
            }
            if precisions.last().is_none_or(|(id, _)| *id != cell.id) {
                precisions.push((&cell.id, vec![]));
            }
            let measured = (0..cell.points.len())
                .filter(|p| cell.points[*p].state == State::Measured)
                .map(|point| Turn { cell: c, point });
            if let Some((_, turns)) = precisions.last_mut() {
                turns.extend(measured);
            }
        }
        let turns = precisions.into_iter().map(|(_, turns)| turns);
        turns.filter(|turns| !turns.is_empty()).collect()
    }

    fn point(&self, turn: &Turn) -> &Point {
        &self.cells[turn.cell].points[turn.point]
    }

    /// Loads these precisions side by side, warms up every point, then lets them take turns: one
    /// active at a time, in a fresh random order per repetition.
    fn time_group(
        &mut self,
        precisions: &[Vec<Turn>],
        reps: Range<usize>,
        rng: &mut ChaCha8Rng,
        progress: &mut Progress,
    ) -> Result<bool> {
        let mut timers = vec![];
        let lacks = |suite: &Self, t: &Turn| suite.lacks_turns(t.cell, t.point, &reps);
        for turns in precisions {
            if !turns.iter().any(|t| lacks(self, t)) {
                // The journal has all of it.
                timers.push(None);
                continue;
            }
            match self.start_timer(turns)? {
                Ok(timer) => timers.push(timer),
                Err(Stop) => return Ok(false),
            }
        }
        let mut order: Vec<(usize, usize)> = precisions
            .iter()
            .enumerate()
            .flat_map(|(p, turns)| (0..turns.len()).map(move |t| (p, t)))
            .collect();
        let ours: Vec<u32> = timers.iter().flatten().map(|t| t.child.id()).collect();
        let first = reps.start;
        let rounds = std::iter::once((true, 0)).chain(reps.clone().map(|r| (false, r)));
        for (warmup, rep) in rounds {
            order.shuffle(rng);
            for (p, t) in &order {
                progress.advance();
                let turn = precisions[*p][*t];
                if self.point(&turn).state != State::Measured {
                    continue;
                }
                // A second pass warms up again; its sample continues the numbering.
                let rep = if warmup { first } else { rep };
                let kept = self.take_over_turn(turn.cell, turn.point, rep, warmup);
                // A child that has turns left to do warms up for them, whatever was kept.
                if kept && !(warmup && lacks(self, &turn)) {
                    continue;
                }
                let Some(timer) = &mut timers[*p] else {
                    continue;
                };
                if let Some(turn) = &mut self.turn {
                    turn.hand_over()?;
                }
                let sampler = self.telemetry.as_ref().map(Telemetry::start);
                let ending = match timer.take(*t, warmup, self.interrupted) {
                    Outcome::Event(Event::Timed(_)) if kept => continue,
                    Outcome::Event(Event::Timed(sample)) => {
                        let ended_at_s = host::unix_s();
                        let (own, process) = (timer.child.id(), timer.child.name().to_string());
                        let workload = &self.workloads[turn.point];
                        let point = &mut self.cells[turn.cell].points[turn.point];
                        let watched = sampler
                            .filter(|_| !warmup)
                            .map(|sampler| (sampler.stop(sample.decode_s), own, ours.clone()));
                        let timed = Timed {
                            key: point.turn_key.clone(),
                            rep,
                            warmup,
                            sample,
                            process,
                            ended_at_s,
                            watched,
                        };
                        point.record_sample(&timed, workload);
                        if let Some((recording, own, ours)) = &timed.watched {
                            point.watched.push(recording.clone(), *own, ours);
                        }
                        self.journal.keep_turn(timed)?;
                        continue;
                    }
                    Outcome::Interrupted => return Ok(false),
                    Outcome::Failed(ending) => ending,
                    Outcome::Event(_) | Outcome::Done => lost(),
                };
                timers[*p] = None;
                if self.fail_timing(&precisions[*p], turn, ending) {
                    match self.start_timer(&precisions[*p])? {
                        Ok(timer) => timers[*p] = timer,
                        Err(Stop) => return Ok(false),
                    }
                }
            }
            if !warmup && self.steady(rep + 1) {
                break;
            }
        }
        for timer in timers.into_iter().flatten() {
            timer.child.finish();
        }
        Ok(true)
    }

    /// Gives every measured point the key of its turns in the journal.
    pub(super) fn enter_turn_keys(&mut self) {
        let turns = self.turns().concat();
        let own = |turn: &Turn| {
            let packed = &self.cells[turn.cell].detail.packed_sha256;
            self.keys.run(&self.time_job(&[*turn]), packed)
        };
        let own: Vec<String> = turns.iter().map(own).collect();
        let mut beside = own.clone();
        beside.sort();
        let (processes, others) = (self.options.processes, self.options.turns.is_some());
        for (turn, own) in turns.iter().zip(&own) {
            let key = self.keys.turn(own, &beside, processes, others);
            self.cells[turn.cell].points[turn.point].turn_key = key;
        }
    }

    fn time_job(&self, turns: &[Turn]) -> Job {
        Job::Time(TimeJob {
            place: self.place.clone(),
            subject: self.subject(turns[0].cell),
            turns: turns
                .iter()
                .map(|t| job::Turn {
                    kv: self.cells[t.cell].kv.clone(),
                    workload: self.workloads[t.point].clone(),
                })
                .collect(),
            time_factors: self.time_factors.clone(),
        })
    }

    /// A child that holds a precision, or none where it cannot be loaded.
    fn start_timer(&mut self, turns: &[Turn]) -> Result<std::result::Result<Option<Timer>, Stop>> {
        match self.provide_weights(turns[0].cell)? {
            Step::Done => {}
            Step::Interrupted => return Ok(Err(Stop)),
            Step::Failed(ending) | Step::TooLarge(_, ending) => {
                self.fail_all(turns, ending);
                return Ok(Ok(None));
            }
        }
        let job = self.time_job(turns);
        let mut child = Child::start(&job, self.options.threads, self.timeout())?;
        let ending = match child.next(self.interrupted) {
            Outcome::Event(Event::Ready) => {
                return Ok(Ok(Some(Timer {
                    child,
                    warm: vec![],
                })));
            }
            Outcome::Interrupted => return Ok(Err(Stop)),
            Outcome::Failed(ending) => ending,
            Outcome::Event(_) | Outcome::Done => lost(),
        };
        self.fail_all(turns, ending);
        Ok(Ok(None))
    }

    /// Records how a child ended in a turn; whether its other turns can go on in a new one.
    fn fail_timing(&mut self, turns: &[Turn], turn: Turn, ending: Ending) -> bool {
        if ending.status != Status::Oom {
            self.fail_all(turns, ending);
            return false;
        }
        self.cells[turn.cell].out_of_memory(turn.point, &ending.during("timing"));
        turns.iter().any(|t| self.point(t).state == State::Measured)
    }

    fn fail_all(&mut self, turns: &[Turn], ending: Ending) {
        let ending = ending.during("timing");
        for turn in turns {
            let point = &mut self.cells[turn.cell].points[turn.point];
            if point.state == State::Measured {
                point.fail(&ending);
            }
        }
    }
}

/// The repetitions of the pass after `done` of them: such a part of the least that so many passes
/// make those, and no more than the most.
fn pass(done: usize, least: usize, most: usize, passes: usize) -> Range<usize> {
    let limit = if done < least { least } else { most };
    done..(done + least.div_ceil(passes)).min(limit)
}

/// The user asked to stop.
struct Stop;

struct Progress<'a> {
    stage: &'a Stage,
    done: usize,
}

impl Progress<'_> {
    fn advance(&mut self) {
        self.done += 1;
        self.stage.set(self.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_live_together_where_memory_and_device_let_them() {
        let gib = |n: u64| n << 30;
        assert!(fit_together(&[gib(3), gib(4)], None, Some(gib(10))));
        assert!(!fit_together(&[gib(4), gib(5)], None, Some(gib(10))));
        assert!(fit_together(&[gib(4), gib(5)], None, None));
        // The contexts of a GPU's processes take memory beside the models.
        let device = Some(DeviceMemory::default());
        assert!(fit_together(&[gib(30), gib(30)], device, Some(gib(80))));
        assert!(!fit_together(&[gib(31), gib(31)], device, Some(gib(80))));
        let exclusive = Some(DeviceMemory {
            exclusive: true,
            ..DeviceMemory::default()
        });
        assert!(!fit_together(&[gib(1), gib(1)], exclusive, None));
        assert!(fit_together(&[gib(1)], exclusive, None));
        let refused = refuse_turns("cuda:1", exclusive).unwrap_err().to_string();
        assert!(refused.contains("cuda:1") && refused.contains("nvidia-smi -c 0"));
        assert!(refuse_turns("cuda:1", device).is_ok() && refuse_turns("cpu", None).is_ok());
    }

    #[test]
    fn passes_make_the_least_in_as_many_and_never_more_than_the_most() {
        let passes_of = |least, most, count| {
            let mut ranges = vec![];
            let mut done = 0;
            while done < most {
                let range = pass(done, least, most, count);
                assert!(range.start == done && !range.is_empty());
                done = range.end;
                ranges.push(range);
            }
            ranges
        };
        let passes = |least, most| passes_of(least, most, 2);
        assert_eq!(passes(5, 5), [0..3, 3..5]);
        assert_eq!(passes(2, 2), [0..1, 1..2]);
        assert_eq!(passes(4, 4), [0..2, 2..4]);
        assert_eq!(passes(5, 10), [0..3, 3..5, 5..8, 8..10]);
        assert_eq!(passes_of(6, 6, 3), [0..2, 2..4, 4..6]);
        assert_eq!(passes_of(2, 2, 3), [0..1, 1..2]);
    }
}
