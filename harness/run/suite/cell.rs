//! One precision under way: what it has become so far, and how its results enter its row.

use super::super::child::Ending;
use super::super::host;
use super::super::job::{Event, MemoryResult};
use super::telemetry::Watched;
use crate::measure::quality::WindowScore;
use crate::measure::roofline::Cost;
use crate::measure::speed::{Sample, Workload};
use crate::measure::stats;
use crate::quant::QuantMethod;
use crate::report::record::{CellDetail, ResultRow, SampleRow, Status};
use std::path::PathBuf;
use std::time::Instant;

/// One precision under way.
pub(super) struct Cell {
    pub(super) method: Box<dyn QuantMethod>,
    pub(super) id: String,
    pub(super) packed: PathBuf,
    /// Whether it takes part in the timing (a reference added for quality does not).
    pub(super) timed: bool,
    pub(super) started: Instant,
    pub(super) row: ResultRow,
    pub(super) detail: CellDetail,
    /// Scores per text.
    pub(super) scores: Vec<Vec<WindowScore>>,
    pub(super) samples: Vec<SampleRow>,
    pub(super) warnings: Vec<String>,
    pub(super) measured: bool,
    /// What its model asks of a machine, once its measuring child has told.
    pub(super) cost: Option<Cost>,
    pub(super) watched: Watched,
}

impl Cell {
    pub(super) fn record_memory(&mut self, m: &MemoryResult) {
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
        row.peak_memory_method = "allocator".into();
        row.peak_rss_bytes = m.peak_rss_bytes;
        row.load_s = Some(m.load_s);
        self.cost = Some(m.cost.clone());
        self.detail.peak_bytes_by_phase = m.peak_bytes_by_phase.clone();
        self.detail.other_parts_bytes = m.other_parts_bytes.clone();
        if m.untagged_peak_bytes > m.peak_bytes / 50 {
            self.warnings.push(format!(
                "{} bytes of the peak belong to no part: the breakdown does not add up",
                m.untagged_peak_bytes
            ));
        }
        let weights = (m.weight_bytes + m.embedding_bytes) as u64;
        if let Some(cache) = host::last_level_cache_bytes().filter(|c| weights <= *c) {
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
            precision: self.id.clone(),
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
    pub(super) fn summarize_speed(&mut self, workload: &Workload) {
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
        row.batch = Some(workload.batch() as u64);
        row.prompt_tokens = Some(workload.prompt_tokens() as u64);
        row.generated_tokens = Some(workload.generated_tokens as u64);
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

    pub(super) fn fail_timing(&mut self, ending: Ending) {
        self.row.status = ending.status;
        self.row.error = format!("while timing: {}", one_line(&ending.message));
    }
}

/// How a step of a cell ended.
pub(super) enum Step {
    Done,
    Failed(Ending),
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
