//! What the GPU did while a cell was timed, and how that enters its row.

use super::Suite;
use crate::measure::nvml::NvmlGpu;
use crate::measure::telemetry::{PERIOD, Recording, Telemetry, summarize, warnings};
use crate::report::record::GpuTelemetry;

/// The recordings of a cell's repetitions, and the processes that they can be about. A cell that
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
        for (list, ids) in [(&mut self.own, &[own][..]), (&mut self.ours, ours)] {
            list.extend(
                ids.iter()
                    .filter(|id| !list.contains(id))
                    .collect::<Vec<_>>(),
            );
        }
    }
}

impl Suite<'_> {
    /// What is timed, as in the column `device`.
    fn device(&self) -> &str {
        "cpu"
    }

    /// Prepares to read the GPU, if it is one that is timed. The one place where the device
    /// decides about telemetry.
    pub(super) fn open_telemetry(&mut self) {
        let device = self.device();
        if device == "cpu" {
            return;
        }
        match NvmlGpu::open(device) {
            Ok(gpu) => self.telemetry = Some(Telemetry::new(gpu, PERIOD)),
            Err(why) => {
                let missing = GpuTelemetry {
                    missing: why,
                    ..GpuTelemetry::default()
                };
                self.info.warnings.extend(warnings(&missing));
            }
        }
    }

    /// Enters what was read while cell `i` was timed.
    pub(super) fn record_telemetry(&mut self, i: usize) {
        let cell = &mut self.cells[i];
        let watched = &cell.watched;
        if watched.recordings.is_empty() {
            return;
        }
        let telemetry = summarize(&watched.recordings, &watched.own, &watched.ours);
        let tokens =
            watched.recordings.len() * self.workload.batch() * self.workload.generated_tokens;
        let row = &mut cell.row;
        row.gpu_clock_mhz_median = telemetry.gpu_clock_mhz_median;
        row.throttled = telemetry.throttled;
        row.joules_per_token = telemetry.energy_j.map(|energy| energy / tokens as f64);
        row.nvml_process_bytes = telemetry.process_bytes.or(row.nvml_process_bytes);
        cell.warnings.extend(warnings(&telemetry));
        cell.detail.gpu = Some(telemetry);
    }
}
