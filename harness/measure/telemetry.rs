//! What a GPU did while it was timed: clocks, heat, power, energy, and who else was on it.
//!
//! Where a number comes from ([`Sensors`]) and what it means are two things: NVML answers in a
//! run (`nvml.rs`), a script answers in the tests. A GPU without telemetry is no error: what is
//! not told stays absent, and one sentence says why.

use crate::lock::lock;
use crate::record::run_info::GpuTelemetry;
use crate::record::warning::Warning;
use crate::stats::quantiles::{median, quantile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two readings: short against a repetition, long against what a reading takes
/// (about a millisecond, in which the driver may keep launches waiting).
pub const PERIOD: Duration = Duration::from_millis(50);

/// One look at a GPU; absent is what it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Clock of the multiprocessors.
    pub gpu_clock_mhz: Option<f64>,
    pub memory_clock_mhz: Option<f64>,
    pub temperature_c: Option<f64>,
    pub power_w: Option<f64>,
    /// Why the clock is held down, in words; empty if it is not.
    pub throttle_reasons: Option<Vec<String>>,
    /// Used since some moment in the past.
    pub energy_j: Option<f64>,
    /// Processes that compute on the GPU.
    pub processes: Option<Vec<Process>>,
}

/// A process on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub id: u32,
    /// GPU memory that it holds.
    pub bytes: Option<u64>,
}

/// What can be asked about one GPU.
pub trait Sensors: Send {
    /// # Errors
    /// In words, if the GPU cannot be asked at all (any more).
    fn read(&mut self) -> Result<Reading, String>;
}

/// Telemetry of one GPU.
pub struct Telemetry {
    sensors: Arc<Mutex<dyn Sensors>>,
    period: Duration,
}

impl Telemetry {
    pub fn new(sensors: impl Sensors + 'static, period: Duration) -> Self {
        Telemetry {
            sensors: Arc::new(Mutex::new(sensors)),
            period,
        }
    }

    /// Begins to read in a thread of its own, at once and then every period.
    pub fn start(&self) -> Sampler {
        let (stop, stopped) = channel::<()>();
        let (sensors, period) = (self.sensors.clone(), self.period);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            let mut recording = Recording::default();
            let mut last = false;
            loop {
                let reading = lock(&sensors).read();
                match reading {
                    Ok(reading) => recording
                        .readings
                        .push((start.elapsed().as_secs_f64(), reading)),
                    Err(why) => {
                        recording.failure = Some(why);
                        return recording;
                    }
                }
                if last {
                    return recording;
                }
                match stopped.recv_timeout(period) {
                    Err(RecvTimeoutError::Timeout) => {}
                    // One more look: energy is a difference between the ends.
                    Ok(()) => last = true,
                    Err(RecvTimeoutError::Disconnected) => return recording,
                }
            }
        });
        Sampler { stop, thread }
    }
}

/// Readings under way. Dropping it ends them and forgets what was read.
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Recording>,
}

impl Sampler {
    /// Takes a last reading; the decode phase was the last `decode_s` seconds.
    pub fn stop(self, decode_s: f64) -> Recording {
        // A thread that has ended already had its reason, which is in the recording.
        let _ = self.stop.send(());
        let mut recording = self.thread.join().unwrap_or_else(|_| Recording {
            failure: Some("the thread that reads the GPU ended early".into()),
            ..Recording::default()
        });
        recording.decode_s = decode_s;
        recording
    }
}

/// The readings of one repetition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// Seconds since the start, and what was read then.
    pub readings: Vec<(f64, Reading)>,
    /// Why they ended before the repetition did.
    pub failure: Option<String>,
    /// Length of the decode phase, with which the repetition ended.
    pub decode_s: f64,
}

impl Recording {
    /// Readings under load. The first was taken before the work began.
    fn under_load(&self) -> impl Iterator<Item = &Reading> {
        self.readings.iter().skip(1).map(|(_, reading)| reading)
    }

    /// Energy of the decode phase: the counter at the end less the counter at its beginning,
    /// linear between the two readings around that moment.
    fn decode_energy_j(&self) -> Option<f64> {
        if self.failure.is_some() {
            return None;
        }
        let counter: Vec<(f64, f64)> = self
            .readings
            .iter()
            .map(|(at, reading)| Some((*at, reading.energy_j?)))
            .collect::<Option<_>>()?;
        let (end, total) = *counter.last()?;
        let begin = end - self.decode_s;
        let (before, after) = counter
            .windows(2)
            .map(|pair| (pair[0], pair[1]))
            .find(|(before, after)| before.0 <= begin && begin <= after.0)?;
        let part = (begin - before.0) / (after.0 - before.0);
        let at_begin = before.1 + (after.1 - before.1) * part;
        Some(total - at_begin).filter(|energy| energy.is_finite() && *energy >= 0.0)
    }
}

/// What the recordings of a cell's repetitions come to. `own` is the process that was timed
/// (two if there were two passes), `ours` all processes of this run on the GPU, which wait while
/// one is timed.
pub fn summarize(recordings: &[Recording], own: &[u32], ours: &[u32]) -> GpuTelemetry {
    let readings = || recordings.iter().flat_map(Recording::under_load);
    let all =
        |value: fn(&Reading) -> Option<f64>| -> Vec<f64> { readings().filter_map(value).collect() };
    let clocks = all(|r| r.gpu_clock_mhz);
    let power = all(|r| r.power_w);
    let reasons: Vec<&Vec<String>> = readings()
        .filter_map(|r| r.throttle_reasons.as_ref())
        .collect();
    let named: BTreeSet<&String> = reasons.iter().copied().flatten().collect();
    let energies: Option<Vec<f64>> = recordings.iter().map(Recording::decode_energy_j).collect();
    let seen = processes(recordings, ours);
    GpuTelemetry {
        gpu_clock_mhz_median: median(&clocks),
        gpu_clock_spread: spread(clocks),
        memory_clock_mhz_median: median(&all(|r| r.memory_clock_mhz)),
        temperature_c_max: all(|r| r.temperature_c).into_iter().reduce(f64::max),
        power_w_mean: (!power.is_empty()).then(|| power.iter().sum::<f64>() / power.len() as f64),
        throttled: (!reasons.is_empty()).then_some(!named.is_empty()),
        throttle_reasons: named.into_iter().cloned().collect(),
        energy_j: energies.filter(|e| !e.is_empty()).map(|e| e.iter().sum()),
        other_processes: seen.as_ref().map(|seen| {
            let others = seen.iter().map(|p| p.id).filter(|id| !ours.contains(id));
            others.collect::<BTreeSet<_>>().len() as u64
        }),
        process_bytes: seen.and_then(|seen| {
            let of_own = seen.iter().filter(|p| own.contains(&p.id));
            of_own.filter_map(|p| p.bytes).max()
        }),
        readings: readings().count() as u64,
        missing: recordings
            .iter()
            .find_map(|r| r.failure.clone())
            .unwrap_or_default(),
    }
}

/// All processes that were seen on the GPU; `None` where none of ours was ever among them, which
/// computed there: process numbers from outside a container say nothing inside.
fn processes(recordings: &[Recording], ours: &[u32]) -> Option<Vec<Process>> {
    let seen: Vec<Process> = recordings
        .iter()
        .flat_map(|r| &r.readings)
        .filter_map(|(_, reading)| reading.processes.as_ref())
        .flatten()
        .copied()
        .collect();
    seen.iter().any(|p| ours.contains(&p.id)).then_some(seen)
}

/// How far the values lie apart, as a share of their median: 5th to 95th percentile, because one
/// reading in the moment when the work begins or ends proves nothing.
fn spread(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = median(&values).filter(|m| *m > 0.0)?;
    Some((quantile(&values, 0.95) - quantile(&values, 0.05)) / middle)
}

/// Movement of the clock up to which speeds are taken to be made at one clock.
const MOST_SPREAD: f64 = 0.05;

/// What a reader of the speeds has to know.
pub fn warnings(telemetry: &GpuTelemetry) -> Vec<Warning> {
    let mut warnings = vec![];
    if let (Some(spread), Some(clock_mhz)) = (
        telemetry.gpu_clock_spread.filter(|s| *s > MOST_SPREAD),
        telemetry.gpu_clock_mhz_median,
    ) {
        warnings.push(Warning::ClockMoved { spread, clock_mhz });
    }
    if telemetry.throttled == Some(true) {
        warnings.push(Warning::Throttled {
            reasons: telemetry.throttle_reasons.join(", "),
        });
    }
    if let Some(count) = telemetry.other_processes.filter(|n| *n > 0) {
        warnings.push(Warning::OtherProcesses { count });
    }
    if !telemetry.missing.is_empty() {
        warnings.push(Warning::TelemetryMissing {
            why: telemetry.missing.clone(),
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Receiver;

    /// A GPU that answers from a script, over and over its last line.
    struct Fake {
        script: Vec<Result<Reading, String>>,
        asked: usize,
        /// Gets a message for every reading.
        tell: Sender<()>,
    }

    impl Sensors for Fake {
        fn read(&mut self) -> Result<Reading, String> {
            let at = self.asked.min(self.script.len() - 1);
            self.asked += 1;
            // A test that no longer listens has seen enough.
            let _ = self.tell.send(());
            self.script[at].clone()
        }
    }

    /// A GPU with this script, and what hears of every reading.
    fn scripted(script: Vec<Result<Reading, String>>) -> (Telemetry, Receiver<()>) {
        let (tell, told) = channel();
        let asked = 0;
        let fake = Fake {
            script,
            asked,
            tell,
        };
        (Telemetry::new(fake, Duration::from_millis(1)), told)
    }

    const OWN: u32 = 10;
    const SIBLING: u32 = 11;

    fn steady() -> Reading {
        Reading {
            gpu_clock_mhz: Some(1980.0),
            memory_clock_mhz: Some(2619.0),
            temperature_c: Some(50.0),
            power_w: Some(400.0),
            throttle_reasons: Some(vec![]),
            energy_j: Some(1000.0),
            processes: Some(
                [OWN, SIBLING]
                    .map(|id| Process {
                        id,
                        bytes: Some(u64::from(id) << 30),
                    })
                    .into(),
            ),
        }
    }

    /// A recording with a reading every 0.1 s, of which each uses 40 J.
    fn recording(count: usize, change: impl Fn(usize, &mut Reading)) -> Recording {
        let readings = (0..count).map(|i| {
            let mut reading = steady();
            reading.energy_j = Some(1000.0 + 40.0 * i as f64);
            change(i, &mut reading);
            (0.1 * i as f64, reading)
        });
        Recording {
            readings: readings.collect(),
            failure: None,
            decode_s: 0.25,
        }
    }

    fn said(telemetry: &GpuTelemetry) -> Vec<String> {
        warnings(telemetry).iter().map(Warning::to_string).collect()
    }

    fn summed(recordings: &[Recording]) -> GpuTelemetry {
        summarize(recordings, &[OWN], &[OWN, SIBLING])
    }

    #[test]
    fn a_steady_gpu_gives_numbers_and_no_warning() {
        let recordings = [
            recording(11, |_, _| ()),
            // The first reading of a repetition still shows an idle GPU.
            recording(11, |i, r| {
                if i == 0 {
                    r.gpu_clock_mhz = Some(345.0);
                    r.power_w = Some(70.0);
                }
                r.temperature_c = Some(50.0 + i as f64);
            }),
        ];
        let summary = summed(&recordings);
        assert_eq!(summary.gpu_clock_mhz_median, Some(1980.0));
        assert_eq!(summary.memory_clock_mhz_median, Some(2619.0));
        assert_eq!(summary.temperature_c_max, Some(60.0));
        assert_eq!(summary.power_w_mean, Some(400.0));
        assert_eq!(summary.throttled, Some(false));
        // 0.25 s at 400 W, twice.
        assert!((summary.energy_j.unwrap() - 200.0).abs() < 1e-9);
        assert_eq!(summary.other_processes, Some(0));
        assert_eq!(summary.process_bytes, Some(10 << 30));
        assert_eq!(summary.readings, 20);
        assert_eq!(warnings(&summary), []);
    }

    #[test]
    fn a_clock_that_moves_is_said() {
        let moved = recording(21, |i, r| {
            r.gpu_clock_mhz = Some(if i < 10 { 1980.0 } else { 1755.0 })
        });
        let words = said(&summed(&[moved]));
        assert!(words[0].contains("13 % around 1755 MHz"), "{words:?}");
        // Within 5 % it is one clock; one odd reading among many is none.
        let calm = recording(21, |i, r| r.gpu_clock_mhz = Some(1980.0 - 4.0 * i as f64));
        assert_eq!(warnings(&summed(&[calm])), []);
        let odd = recording(51, |i, r| {
            if i == 50 {
                r.gpu_clock_mhz = Some(1200.0);
            }
        });
        assert_eq!(warnings(&summed(&[odd])), []);
    }

    #[test]
    fn throttling_is_said_with_its_reasons() {
        let hot = recording(11, |i, r| {
            r.throttle_reasons = Some(match i {
                3 => vec!["power limit".into()],
                4 => vec!["heat".into(), "power limit".into()],
                _ => vec![],
            })
        });
        let summary = summed(&[hot]);
        assert_eq!(summary.throttled, Some(true));
        assert_eq!(summary.throttle_reasons, ["heat", "power limit"]);
        let words = said(&summary);
        assert!(words[0].contains("(heat, power limit)"), "{words:?}");
        // Held down before the work began only: idle clocks are not its speed.
        let idle = recording(11, |i, r| {
            if i == 0 {
                r.throttle_reasons = Some(vec!["heat".into()]);
            }
        });
        assert_eq!(summed(&[idle]).throttled, Some(false));
        let silent = recording(11, |_, r| r.throttle_reasons = None);
        assert_eq!(summed(&[silent]).throttled, None);
    }

    #[test]
    fn other_processes_are_counted_where_ours_are_known() {
        let stranger = Process {
            id: 99,
            bytes: None,
        };
        let shared = recording(11, |i, r| {
            if i == 5 {
                r.processes.as_mut().unwrap().push(stranger);
            }
        });
        let words = said(&summed(&[shared]));
        assert!(
            words[0].starts_with("1 other process used the GPU"),
            "{words:?}"
        );
        // Numbers from outside a container: no statement, rather than a wrong one.
        let outside = recording(11, |_, r| r.processes = Some(vec![stranger]));
        let summary = summed(&[outside]);
        assert_eq!(
            (summary.other_processes, summary.process_bytes),
            (None, None)
        );
        assert_eq!(warnings(&summary), []);
    }

    #[test]
    fn without_an_energy_counter_there_is_no_energy() {
        let blind = recording(11, |_, r| r.energy_j = None);
        assert_eq!(summed(std::slice::from_ref(&blind)).energy_j, None);
        // Half of the repetitions would pass for all of them.
        assert_eq!(summed(&[recording(11, |_, _| ()), blind]).energy_j, None);
        assert_eq!(summed(&[]).energy_j, None);
        // A decode phase that began before the first reading is not covered.
        let mut long = recording(11, |_, _| ());
        long.decode_s = 1.5;
        assert_eq!(summed(&[long]).energy_j, None);
        // A counter that starts over is no negative energy.
        let reset = recording(11, |i, r| {
            r.energy_j = Some(if i < 9 { 900.0 } else { 1.0 })
        });
        assert_eq!(summed(&[reset]).energy_j, None);
    }

    #[test]
    fn sampling_runs_until_it_is_stopped() {
        // The counter goes up by 1 J with every reading.
        let counting = (0..100_000).map(|i| {
            Ok(Reading {
                energy_j: Some(f64::from(i)),
                ..steady()
            })
        });
        let (telemetry, told) = scripted(counting.collect());
        for _ in 0..2 {
            let sampler = telemetry.start();
            assert_eq!(told.iter().take(3).count(), 3);
            let mut recording = sampler.stop(0.02);
            assert_eq!(recording.decode_s, 0.02);
            let times: Vec<f64> = recording.readings.iter().map(|(at, _)| *at).collect();
            let count = times.len();
            assert_eq!(count, 3 + told.try_iter().count(), "all are kept");
            assert!(
                count >= 4 && times.is_sorted(),
                "the last one is of the end"
            );
            recording.decode_s = times[count - 1] - times[1];
            let energy = summed(&[recording]).energy_j.unwrap();
            assert!((energy - (count as f64 - 2.0)).abs() < 1e-6, "{energy}");
        }
        // Stopped at once: the two ends are there all the same.
        assert!(telemetry.start().stop(0.0).readings.len() >= 2);
        // Dropped, it leaves the sensors to the next.
        drop(telemetry.start());
        assert!(telemetry.start().stop(0.0).failure.is_none());
    }

    #[test]
    fn sampling_that_fails_in_the_middle_keeps_what_it_had() {
        let (telemetry, told) = scripted(vec![
            Ok(steady()),
            Ok(steady()),
            Err("the driver no longer answers".into()),
        ]);
        let sampler = telemetry.start();
        assert_eq!(told.iter().take(3).count(), 3);
        let recording = sampler.stop(0.01);
        assert_eq!(recording.readings.len(), 2);
        let summary = summed(&[recording]);
        assert_eq!(summary.gpu_clock_mhz_median, Some(1980.0));
        assert_eq!(summary.energy_j, None);
        let words = said(&summary);
        assert!(words[0].contains("no longer answers"), "{words:?}");
    }
}
