//! The machine's ceilings, measured before the timing, and each row's share of them.

use super::super::child::Outcome;
use super::super::host;
use super::super::job::{Event, Job};
use super::Suite;
use super::cell::{lost, one_line};
use super::pieces::Teller;
use crate::Result;
use crate::measure::roofline::buffer_bytes;
use crate::record::format::number;
use crate::record::run_info::Roofline;
use crate::record::warning::Warning;

impl Suite<'_> {
    /// Measures the machine in a fresh child, alone, with the threads that the timing will use.
    /// Without it `mbu` and `mfu` stay empty and a warning says why. `false` if the user asked to
    /// stop.
    pub(super) fn measure_roofline(&mut self) -> Result<bool> {
        if !self.options.roofline {
            return Ok(true);
        }
        let caches = host::last_level_caches_bytes();
        let buffer_bytes = buffer_bytes(caches, host::available_memory_bytes());
        if let Some(why) = fits_caches(buffer_bytes, caches).filter(|_| self.place.device == "cpu")
        {
            self.doubt_run(Warning::RatesNotMeasured { why });
            return Ok(true);
        }
        let job = Job::Roofline {
            place: self.place.clone(),
            buffer_bytes,
        };
        let stage = self.progress.stage("roofline", 1, "machine");
        let key = self.keys.roofline(&job);
        let mut teller = match Teller::kept(&self.journal, &key) {
            Some(teller) => teller,
            None => Teller::start(&job, key, self.options.threads, self.timeout())?,
        };
        let ending = match teller.next(self.interrupted) {
            Outcome::Event(Event::Roofline(measured)) => {
                if teller.is_live() {
                    stage.finish(&in_words(&measured));
                }
                teller.keep(&mut self.journal, &mut self.info.reused, |r| {
                    &mut r.rooflines
                })?;
                if let Some(doubt) = doubt(&measured) {
                    self.doubt_run(doubt);
                }
                self.info.roofline = Some(Roofline {
                    last_level_cache_bytes: caches,
                    ..*measured
                });
                return Ok(true);
            }
            Outcome::Interrupted => return Ok(false),
            Outcome::Failed(ending) => ending,
            Outcome::Event(_) | Outcome::Done => lost(),
        };
        self.doubt_run(Warning::RatesNotMeasured {
            why: one_line(&ending.message),
        });
        Ok(true)
    }

    /// Relates the speed of a timed point to what the machine can do.
    pub(super) fn record_shares(&mut self, cell: usize, point: usize) {
        let workload = &self.workloads[point];
        let cell = &mut self.cells[cell];
        if let (Some(cost), Some(roofline)) = (&cell.cost, &self.info.roofline) {
            let row = &mut cell.points[point].row;
            row.mbu = row
                .decode_tok_s
                .and_then(|tok_s| cost.mbu(workload, tok_s, roofline));
            row.mfu = row
                .prefill_tok_s
                .and_then(|tok_s| cost.mfu(workload, tok_s, roofline));
        }
    }
}

/// Why a buffer of this size measures no memory: half of it or more stays in the caches.
fn fits_caches(buffer_bytes: u64, caches_bytes: Option<u64>) -> Option<String> {
    let caches = caches_bytes.filter(|caches| buffer_bytes < 2 * caches)?;
    Some(format!(
        "free memory allows a buffer of {} MiB, and caches hold {} MiB",
        buffer_bytes >> 20,
        caches >> 20
    ))
}

/// Spread of the passes up to which their best is what the machine can do.
const MOST_SPREAD: f64 = 0.25;

fn doubt(roofline: &Roofline) -> Option<Warning> {
    let spread = roofline.spread.filter(|spread| *spread > MOST_SPREAD)?;
    Some(Warning::BusyMachine { spread })
}

fn in_words(roofline: &Roofline) -> String {
    let giga = |value: f64| number(value / 1e9, 1);
    let arithmetic = roofline
        .flop_s()
        .map_or_else(String::new, |rate| format!(", {} GFLOP/s", giga(rate)));
    format!(
        "{} GB/s read, {} GB/s copied{arithmetic}",
        giga(roofline.read_bytes_s),
        giga(roofline.copy_bytes_s)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_within_the_caches_measures_nothing() {
        let mib = 1 << 20;
        assert_eq!(fits_caches(256 * mib, None), None);
        assert_eq!(fits_caches(1200 * mib, Some(300 * mib)), None);
        let why = fits_caches(599 * mib, Some(300 * mib)).unwrap();
        assert!(why.contains("599 MiB") && why.contains("300 MiB"), "{why}");
    }

    #[test]
    fn a_busy_machine_is_doubted() {
        let with = |spread| Roofline {
            spread: Some(spread),
            ..Roofline::default()
        };
        assert_eq!(doubt(&with(0.2)), None);
        assert_eq!(
            doubt(&with(0.6)),
            Some(Warning::BusyMachine { spread: 0.6 })
        );
    }
}
