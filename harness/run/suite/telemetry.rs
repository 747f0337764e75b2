//! What the GPU did while a cell was timed, and how that enters its row.

use super::Suite;
use crate::measure::nvml::NvmlGpu;
use crate::measure::telemetry::{PERIOD, Recording, Telemetry, summarize, warnings};
use crate::record::rows::ResultRow;
use crate::record::run_info::GpuTelemetry;

/// The recordings of a point's repetitions, and the processes that they can be about. A cell that
/// is timed in two passes is two processes.
#[derive(Default)]
pub(super) struct Watched {
    recordings: Vec<Recording>,
    own: Vec<u32>,
    ours: Vec<u32>,
}

impl Watched {
    /// Adds a repetition of process `own`, while all of `ours` were on the GPU.
    pub(super) fn push(&mut self, recording: Recording, own: u32, ours: &[u32]) {
        self.recordings.push(recording);
        self.own.push(own);
        self.ours.extend(ours);
    }

    /// Fills the columns that only a GPU has; `tokens` were decoded in each repetition. Nothing
    /// where nothing was watched.
    fn enter(&self, row: &mut ResultRow, tokens: usize) -> Option<GpuTelemetry> {
        if self.recordings.is_empty() {
            return None;
        }
        let telemetry = summarize(&self.recordings, &self.own, &self.ours);
        let tokens = (tokens * self.recordings.len()) as f64;
        row.gpu_clock_mhz_median = telemetry.gpu_clock_mhz_median;
        row.throttled = telemetry.throttled;
        row.joules_per_token = telemetry.energy_j.map(|energy| energy / tokens);
        row.nvml_process_bytes = telemetry.process_bytes.or(row.nvml_process_bytes);
        Some(telemetry)
    }
}

impl Suite<'_> {
    /// Prepares to read the GPU, if it is one that is timed. The one place where the device
    /// decides about telemetry.
    pub(super) fn open_telemetry(&mut self) {
        let device = self.place.device.as_str();
        if self.place.on_cpu() {
            return;
        }
        match NvmlGpu::open(device) {
            Ok(gpu) => self.telemetry = Some(Telemetry::new(gpu, PERIOD)),
            Err(why) => {
                let missing = GpuTelemetry {
                    missing: why,
                    ..GpuTelemetry::default()
                };
                for warning in warnings(&missing) {
                    self.doubt_run(warning);
                }
            }
        }
    }

    /// Enters what was read while a cell's point was timed.
    pub(super) fn record_telemetry(&mut self, cell: usize, point: usize) {
        let workload = &self.workloads[point];
        let tokens = workload.batch() * workload.generated_tokens;
        let cell = &mut self.cells[cell];
        let point = &mut cell.points[point];
        if let Some(telemetry) = point.watched.enter(&mut point.row, tokens) {
            point.warnings.extend(warnings(&telemetry));
            // Of several batches and contexts the first stands for the cell.
            cell.detail.gpu.get_or_insert(telemetry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::telemetry::{Process, Reading};

    #[test]
    fn repetitions_enter_the_row() {
        let mut watched = Watched::default();
        let mut row = ResultRow::default();
        assert_eq!(watched.enter(&mut row, 8), None);
        assert_eq!(row, ResultRow::default());
        // Two repetitions, the second by a process of a second pass: 60 J each while decoding.
        for own in [5, 6] {
            let reading = |energy_j: f64| Reading {
                gpu_clock_mhz: Some(1500.0),
                throttle_reasons: Some(vec![]),
                energy_j: Some(energy_j),
                processes: Some(vec![Process {
                    id: own,
                    bytes: Some(u64::from(own)),
                }]),
                ..Reading::default()
            };
            let recording = Recording {
                readings: vec![
                    (0.0, reading(0.0)),
                    (1.0, reading(40.0)),
                    (2.0, reading(100.0)),
                ],
                failure: None,
                decode_s: 1.0,
            };
            watched.push(recording, own, &[own]);
        }
        let telemetry = watched.enter(&mut row, 8).unwrap();
        assert_eq!(telemetry.energy_j, Some(120.0));
        assert_eq!(row.joules_per_token, Some(120.0 / 16.0));
        assert_eq!(row.gpu_clock_mhz_median, Some(1500.0));
        assert_eq!(row.throttled, Some(false));
        assert_eq!(row.nvml_process_bytes, Some(6));
        assert_eq!(telemetry.other_processes, Some(0));
    }
}
