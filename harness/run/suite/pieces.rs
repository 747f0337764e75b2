//! Pieces of work: done by a child now, or told again as the journal has them. Both pass through
//! the same code.

use super::super::child::{Child, Outcome};
use super::super::job::{Event, Job};
use super::super::journal::{self, Journal};
use super::{Suite, timestamp};
use crate::Result;
use crate::record::run_info::Reused;
use serde_json::json;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Tells the events of a piece of work.
pub(super) struct Teller {
    key: String,
    pub(super) started_at: String,
    voice: Voice,
}

enum Voice {
    Live {
        child: Child,
        /// What the journal will hold.
        said: Vec<serde_json::Value>,
        start: Instant,
    },
    Kept {
        events: std::vec::IntoIter<Event>,
        seconds: f64,
    },
}

impl Teller {
    /// What the journal has under this key.
    pub(super) fn kept(journal: &Journal, key: &str) -> Option<Self> {
        let (work, events) = journal.work(key)?;
        Some(Teller {
            key: key.into(),
            started_at: work.started_at.clone(),
            voice: Voice::Kept {
                events: events.into_iter(),
                seconds: work.seconds,
            },
        })
    }

    /// A child that begins now.
    pub(super) fn start(
        job: &Job,
        key: String,
        threads: usize,
        timeout: Option<Duration>,
    ) -> Result<Self> {
        Ok(Teller {
            key,
            started_at: timestamp(),
            voice: Voice::Live {
                start: Instant::now(),
                child: Child::start(job, threads, timeout)?,
                said: vec![],
            },
        })
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.voice, Voice::Live { .. })
    }

    pub(super) fn next(&mut self, interrupted: &AtomicBool) -> Outcome {
        match &mut self.voice {
            Voice::Kept { events, .. } => events.next().map_or(Outcome::Done, Outcome::Event),
            Voice::Live { child, said, .. } => {
                let outcome = child.next(interrupted);
                if let Outcome::Event(event) = &outcome
                    && !matches!(event, Event::Progress { .. })
                {
                    said.push(json!(event));
                }
                outcome
            }
        }
    }

    /// Seconds that the piece took, now or then.
    pub(super) fn seconds(&self) -> f64 {
        match &self.voice {
            Voice::Live { start, .. } => start.elapsed().as_secs_f64(),
            Voice::Kept { seconds, .. } => *seconds,
        }
    }

    /// Enters a piece that is whole: into the journal, or into what was reused.
    pub(super) fn keep(
        self,
        journal: &mut Journal,
        reused: &mut Reused,
        counter: fn(&mut Reused) -> &mut u64,
    ) -> Result<()> {
        let seconds = self.seconds();
        match self.voice {
            Voice::Live { said, .. } => journal.keep_work(self.key, self.started_at, seconds, said),
            Voice::Kept { .. } => {
                *counter(reused) += 1;
                reused.seconds += seconds;
                Ok(())
            }
        }
    }
}

impl Suite<'_> {
    /// Takes over a timed turn of a point from the journal, if it is there.
    pub(super) fn take_over_turn(
        &mut self,
        cell: usize,
        point: usize,
        rep: usize,
        warmup: bool,
    ) -> bool {
        let workload = &self.workloads[point];
        let point = &mut self.cells[cell].points[point];
        let Some(kept) = self.journal.turn(&point.turn_key, rep, warmup) else {
            return false;
        };
        point.record_sample(kept, workload);
        if let Some((recording, own, ours)) = &kept.watched {
            point.watched.push(recording.clone(), *own, ours);
        }
        self.info.reused.timed_turns += u64::from(!warmup);
        self.info.reused.seconds += kept.sample.ttft_s + kept.sample.decode_s;
        true
    }

    /// Whether a repetition of a point, or the warm-up before them, is still to be timed.
    pub(super) fn lacks_turns(
        &self,
        cell: usize,
        point: usize,
        reps: &std::ops::Range<usize>,
    ) -> bool {
        let key = &self.cells[cell].points[point].turn_key;
        let has = |rep, warmup| self.journal.turn(key, rep, warmup).is_some();
        !has(reps.start, true) || reps.clone().any(|rep| !has(rep, false))
    }

    /// In one line what was taken over; None if nothing was.
    pub(super) fn reused_line(&self) -> Option<String> {
        let reused = &self.info.reused;
        let parts: Vec<String> = [
            (reused.quantized, "quantized"),
            (reused.measured, "measured"),
            (reused.rooflines, "roofline"),
            (reused.timed_turns, "timed turns"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        (!parts.is_empty()).then(|| {
            format!(
                "taken over from {}: {} (--force measures afresh)",
                self.options.out.join(journal::FILE).display(),
                parts.join(", ")
            )
        })
    }
}
