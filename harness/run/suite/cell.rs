//! One precision under way: what it has become so far, and how its results enter its rows.

use super::super::child::Ending;
use super::super::host;
use super::super::job::{Event, MemoryResult, QuantizeResult};
use super::telemetry::Watched;
use crate::measure::quality::WindowScore;
use crate::measure::roofline::Cost;
use crate::measure::speed::{Sample, Workload};
use crate::measure::stats;
use crate::quant::QuantMethod;
use crate::report::record::{CellDetail, ResultRow, SampleRow, Status, WorkloadDetail};
use std::path::PathBuf;
use std::time::Instant;

/// One precision with one KV cache under way.
pub(super) struct Cell {
    pub(super) method: Box<dyn QuantMethod>,
    pub(super) id: String,
    pub(super) kv: String,
    /// For progress: the id, and the cache where there are several.
    pub(super) title: String,
    /// Shared by all cells of the precision.
    pub(super) packed: PathBuf,
    /// Whether it takes part in the timing (a reference added for quality does not).
    pub(super) timed: bool,
    pub(super) started: Instant,
    pub(super) detail: CellDetail,
    /// What quantizing gave, here or in an earlier cell of the precision.
    pub(super) quantized: Option<QuantizeResult>,
    /// Scores per text.
    pub(super) scores: Vec<Vec<WindowScore>>,
    pub(super) warnings: Vec<String>,
    pub(super) measured: bool,
    /// What its model asks of a machine, once its measuring child has told.
    pub(super) cost: Option<Cost>,
    /// All memory of the GPU that it was measured on.
    pub(super) device_total_bytes: Option<u64>,
    /// One per workload of the suite, in its order (a reference added for quality has the first
    /// only).
    pub(super) points: Vec<Point>,
}

/// One batch and context of a cell: a row of `results.csv`.
pub(super) struct Point {
    pub(super) state: State,
    pub(super) row: ResultRow,
    pub(super) samples: Vec<SampleRow>,
    pub(super) warnings: Vec<String>,
    pub(super) watched: Watched,
}

/// How far a point has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its memory is still to be measured.
    Open,
    Measured,
    /// It has no full result, and its row says why.
    Failed,
}

impl Cell {
    pub(super) fn record_quantized(&mut self, result: QuantizeResult) {
        for point in &mut self.points {
            point.row.quantize_s = Some(result.quantize_s);
        }
        self.detail.quantize_peak_bytes = Some(result.peak_bytes as u64);
        self.detail.quantize_device_peak_bytes = result.device_peak_bytes.map(|n| n as u64);
        self.detail.packed_sha256 = result.packed_sha256.clone();
        self.warnings.extend(self.method.doubts(&result.notes));
        self.detail.notes = result.notes.clone();
        self.quantized = Some(result);
    }

    pub(super) fn record_memory(&mut self, point: usize, m: &MemoryResult) {
        let first = point == 0;
        let point = &mut self.points[point];
        point.record_memory(m);
        self.cost = Some(m.cost.clone());
        self.device_total_bytes = m.device_memory.map(|d| d.total_bytes);
        if first {
            self.detail.peak_bytes_by_phase = m.peak_bytes_by_phase.clone();
            self.detail.other_parts_bytes = m.other_parts_bytes.clone();
        } else {
            self.detail.further.push(WorkloadDetail {
                batch: point.row.batch.unwrap_or_default(),
                prompt_tokens: point.row.prompt_tokens.unwrap_or_default(),
                peak_bytes_by_phase: m.peak_bytes_by_phase.clone(),
                other_parts_bytes: m.other_parts_bytes.clone(),
            });
        }
    }

    /// For progress: a point of this cell.
    pub(super) fn point_title(&self, point: usize) -> String {
        let row = &self.points[point].row;
        let (batch, context) = (row.batch.unwrap_or(0), row.prompt_tokens.unwrap_or(0));
        format!("{} b={batch} ctx={context}", self.title)
    }

    /// Gives every point that has not failed by itself this ending.
    pub(super) fn fail(&mut self, ending: &Ending) {
        for point in self.points.iter_mut().filter(|p| p.state != State::Failed) {
            point.fail(ending);
        }
    }
}

impl Point {
    fn record_memory(&mut self, m: &MemoryResult) {
        self.state = State::Measured;
        let row = &mut self.row;
        row.format = m.spec.format.clone();
        row.weight_bits = Some(m.spec.bits);
        row.group_size = (m.spec.group_size != 0).then_some(m.spec.group_size);
        row.activation_dtype = m.activation_dtype.clone();
        row.prefill_kernel = m.prefill_kernel.clone();
        row.decode_kernel = m.decode_kernel.clone();
        row.bits_per_weight = Some(m.bits_per_weight);
        row.weight_bytes = Some(m.weight_bytes as u64);
        row.embedding_bytes = Some(m.embedding_bytes as u64);
        row.kv_cache_bytes = Some(m.kv_cache_bytes as u64);
        row.activation_peak_bytes = Some(m.activation_peak_bytes as u64);
        row.workspace_bytes = Some(m.workspace_peak_bytes as u64);
        row.other_bytes = Some(m.other_bytes as u64);
        row.peak_memory_bytes = Some(m.peak_bytes as u64);
        row.peak_memory_method = m.peak_memory_method.clone();
        row.pool_reserved_bytes = m.device_memory.map(|d| d.pool_reserved_bytes);
        row.peak_rss_bytes = m.peak_rss_bytes;
        row.load_s = m.load_s;
        if m.untagged_peak_bytes > m.peak_bytes / 50 {
            self.warnings.push(format!(
                "{} bytes of the peak belong to no part: the breakdown does not add up",
                m.untagged_peak_bytes
            ));
        }
        let weights = (m.weight_bytes + m.embedding_bytes) as u64;
        let cache = match m.device_memory {
            Some(device) => Some(device.l2_bytes),
            None => host::last_level_cache_bytes(),
        };
        if let Some(cache) = cache.filter(|c| weights <= *c) {
            self.warnings.push(format!(
                "all weights ({:.1} MiB) fit the last-level cache ({} MiB): tok/s does not \
                 predict that of larger models, and mbu, a share of the bandwidth of memory, can \
                 exceed 1",
                weights as f64 / f64::from(1 << 20),
                cache >> 20
            ));
        }
    }

    pub(super) fn record_sample(
        &mut self,
        sample: &Sample,
        workload: &Workload,
        rep: usize,
        warmup: bool,
    ) {
        let row = |phase: &str, context: usize, tokens: usize, seconds: f64| SampleRow {
            run_id: self.row.run_id.clone(),
            precision: self.row.precision.clone(),
            kv_cache: self.row.kv_cache.clone(),
            phase: phase.into(),
            batch: workload.batch() as u64,
            context: context as u64,
            rep: rep as u64,
            warmup,
            tokens: (tokens * workload.batch()) as u64,
            seconds,
        };
        let rows = [
            row("prefill", 0, workload.prompt_tokens(), sample.prefill_s),
            row("ttft", 0, workload.prompt_tokens(), sample.ttft_s),
            row(
                "decode",
                workload.prompt_tokens(),
                workload.generated_tokens,
                sample.decode_s,
            ),
        ];
        self.samples.extend(rows);
    }

    /// Medians and spreads of what was timed.
    pub(super) fn summarize_speed(&mut self) {
        let of = |phase: &str, value: fn(&SampleRow) -> f64| -> Vec<f64> {
            self.samples
                .iter()
                .filter(|s| s.phase == phase && !s.warmup)
                .map(value)
                .collect()
        };
        let rate = |s: &SampleRow| s.tokens as f64 / s.seconds;
        let (prefill, decode) = (of("prefill", rate), of("decode", rate));
        let ttft = of("ttft", |s| s.seconds);
        let row = &mut self.row;
        row.prefill_tok_s = stats::median(&prefill);
        row.prefill_tok_s_sd = stats::standard_deviation(&prefill);
        row.decode_tok_s = stats::median(&decode);
        row.decode_tok_s_sd = stats::standard_deviation(&decode);
        row.ttft_s = stats::median(&ttft);
        for (phase, median, sd) in [
            ("prefill", row.prefill_tok_s, row.prefill_tok_s_sd),
            ("decode", row.decode_tok_s, row.decode_tok_s_sd),
        ] {
            if let (Some(median), Some(sd)) = (median, sd)
                && sd > 0.1 * median
            {
                self.warnings.push(format!(
                    "{phase} speed varied by {:.0} % between repetitions: the machine was busy",
                    100.0 * sd / median
                ));
            }
        }
    }

    /// How it failed, for what depends on it.
    pub(super) fn ending(&self) -> Ending {
        Ending {
            status: self.row.status,
            message: self.row.error.clone(),
        }
    }

    pub(super) fn fail(&mut self, ending: &Ending) {
        self.state = State::Failed;
        self.row.status = ending.status;
        self.row.error = one_line(&ending.message);
    }
}

/// How a step of a cell ended.
pub(super) enum Step {
    Done,
    Failed(Ending),
    /// This point ran out of memory, after the model was loaded.
    TooLarge(usize, Ending),
    Interrupted,
}

impl Step {
    pub(super) fn unexpected(event: &Event) -> Self {
        Step::Failed(Ending {
            status: Status::Error,
            message: format!("the child answered out of turn: {event:?}"),
        })
    }

    pub(super) fn silent() -> Self {
        Step::Failed(lost())
    }
}

pub(super) fn lost() -> Ending {
    Ending {
        status: Status::Error,
        message: "the child ended without a result".into(),
    }
}

pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
