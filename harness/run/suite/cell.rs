//! One precision under way: what it has become so far, and how its results enter its rows.

use super::super::child::Ending;
use super::super::host;
use super::super::job::{Event, MemoryResult, QuantizeResult};
use super::super::journal::Timed;
use super::telemetry::Watched;
use crate::measure::divergence::WindowDivergence;
use crate::measure::doubts;
use crate::measure::meter::DeviceMemory;
use crate::measure::quality::WindowScore;
use crate::measure::roofline::Cost;
use crate::measure::speed::Workload;
use crate::quant::{Declared, QuantMethod};
use crate::record::rows::{ResultRow, SampleRow, Status};
use crate::record::run_info::{CellDetail, StopRule, TimingDetail, WorkloadDetail};
use crate::record::warning::{Phase, Warning};
use crate::stats::medians;
use crate::stats::medians::median_interval;
use crate::stats::quantiles;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One precision with one KV cache under way.
pub(super) struct Cell {
    pub(super) method: Arc<dyn QuantMethod>,
    pub(super) id: String,
    pub(super) kv: String,
    /// For progress: the id, and the cache where there are several.
    pub(super) title: String,
    /// Whether it takes part in the timing (a reference added for quality does not).
    pub(super) timed: bool,
    /// Seconds of its pieces, in this run or an earlier one.
    pub(super) took_s: f64,
    pub(super) detail: CellDetail,
    /// What quantizing gave, here or in an earlier cell of the precision.
    pub(super) quantized: Option<QuantizeResult>,
    /// Scores of every text under every protocol, those of the first protocol first.
    pub(super) scores: Vec<Vec<WindowScore>>,
    /// Log-likelihoods per multiple-choice item of all sets.
    pub(super) choices: Vec<Vec<Option<f64>>>,
    /// Windows that were compared with the reference, in order of text and window.
    pub(super) divergences: Vec<WindowDivergence>,
    pub(super) warnings: Vec<Warning>,
    pub(super) measured: bool,
    /// What its model asks of a machine, once its measuring child has told.
    pub(super) cost: Option<Cost>,
    /// What the GPU that it was measured on has told.
    pub(super) device: Option<DeviceMemory>,
    /// What its weights would take in the format that they were made for, where they are run in
    /// another.
    pub(super) declared: Option<Declared>,
    /// One per workload of the suite, in its order (a reference added for quality has the first
    /// only).
    pub(super) points: Vec<Point>,
}

/// One batch and context of a cell: a row of `results.csv`.
pub(super) struct Point {
    pub(super) state: State,
    pub(super) row: ResultRow,
    pub(super) samples: Vec<SampleRow>,
    pub(super) warnings: Vec<Warning>,
    /// Once it was timed.
    pub(super) timing: Option<TimingDetail>,
    pub(super) watched: Watched,
    /// Of its timed turns in the journal.
    pub(super) turn_key: String,
}

/// How far a point has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its memory is still to be measured.
    Open,
    Measured,
    /// It has no full result, and its row says why.
    Failed,
    /// The suite file leaves it out for this precision: it has no row.
    LeftOut,
}

impl Cell {
    pub(super) fn record_quantized(&mut self, result: QuantizeResult) {
        // Reading what was quantized elsewhere is not quantizing.
        let quantize_s = self.declared.is_none().then_some(result.quantize_s);
        for point in &mut self.points {
            point.row.quantize_s = quantize_s;
        }
        self.detail.quantize_peak_bytes = Some(result.peak_bytes as u64);
        self.detail.quantize_device_peak_bytes = result.device_peak_bytes.map(|n| n as u64);
        self.detail.quantize_peak_rss_bytes = result.peak_rss_bytes;
        self.detail.packed_sha256 = result.packed_sha256.clone();
        let doubts = self.method.doubts(&result.notes).into_iter();
        let doubts = doubts.map(|words| Warning::Method { words });
        self.warnings.extend(doubts);
        self.detail.notes = result.notes.clone();
        self.quantized = Some(result);
    }

    pub(super) fn record_memory(&mut self, point: usize, m: &MemoryResult) {
        let first = point == self.first_point();
        let point = &mut self.points[point];
        point.record_memory(m);
        let mut peak_bytes_by_phase = m.peak_bytes_by_phase.clone();
        if let Some(declared) = &self.declared {
            point.declare(declared, m, &mut peak_bytes_by_phase);
        }
        self.cost = Some(m.cost.clone());
        self.device = m.device_memory;
        if first {
            self.detail.peak_bytes_by_phase = peak_bytes_by_phase;
            self.detail.other_parts_bytes = m.other_parts_bytes.clone();
        } else {
            self.detail.further.push(WorkloadDetail {
                batch: point.row.batch.unwrap_or_default(),
                prompt_tokens: point.row.prompt_tokens.unwrap_or_default(),
                peak_bytes_by_phase,
                other_parts_bytes: m.other_parts_bytes.clone(),
                ..WorkloadDetail::default()
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
        for point in &mut self.points {
            if !matches!(point.state, State::Failed | State::LeftOut) {
                point.fail(ending);
            }
        }
    }

    /// The first point that has a row.
    pub(super) fn first_point(&self) -> usize {
        let asked = |p: &Point| p.state != State::LeftOut;
        self.points.iter().position(asked).unwrap_or(0)
    }

    /// How its first point failed.
    pub(super) fn ending(&self) -> Ending {
        self.points[self.first_point()].ending()
    }

    /// Whether all that was asked for has failed.
    pub(super) fn is_lost(&self) -> bool {
        let lost = |p: &Point| matches!(p.state, State::Failed | State::LeftOut);
        self.points.iter().all(lost)
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
        row.driver_delta_bytes = m.device_memory.and_then(|d| d.driver_delta_bytes);
        row.peak_rss_bytes = m.peak_rss_bytes;
        row.load_s = m.load_s;
        if m.untagged_peak_bytes > m.peak_bytes / 50 {
            self.warnings.push(Warning::UntaggedMemory {
                bytes: m.untagged_peak_bytes as u64,
            });
        }
        let weights_bytes = (m.weight_bytes + m.embedding_bytes) as u64;
        let cache = match m.device_memory {
            Some(device) => Some(device.l2_bytes),
            None => host::last_level_caches_bytes(),
        };
        if let Some(cache_bytes) = cache.filter(|c| weights_bytes <= *c) {
            self.warnings.push(Warning::FitsCache {
                weights_bytes,
                cache_bytes,
            });
        }
    }

    /// Puts what the weights are said to take in the place of what their dequantized form took.
    fn declare(
        &mut self,
        declared: &Declared,
        m: &MemoryResult,
        peak_bytes_by_phase: &mut BTreeMap<String, u64>,
    ) {
        let weights = 8.0 * m.weight_bytes as f64 / m.bits_per_weight;
        let weight_bytes = (weights * declared.bits_per_weight / 8.0).round() as u64;
        let as_declared = |peak: u64| (peak + weight_bytes).saturating_sub(m.weight_bytes as u64);
        peak_bytes_by_phase
            .values_mut()
            .for_each(|peak| *peak = as_declared(*peak));
        self.warnings.push(Warning::Declared {
            run_as: m.spec.format.clone(),
            bits_per_weight: declared.bits_per_weight,
        });
        self.row = ResultRow {
            format: declared.format.clone(),
            weight_bits: None,
            group_size: None,
            bits_per_weight: Some(declared.bits_per_weight),
            weight_bytes: Some(weight_bytes),
            peak_memory_bytes: self.row.peak_memory_bytes.map(as_declared),
            peak_memory_method: "declared".into(),
            pool_reserved_bytes: None,
            driver_delta_bytes: None,
            nvml_process_bytes: None,
            peak_rss_bytes: None,
            load_s: None,
            ..std::mem::take(&mut self.row)
        };
    }

    pub(super) fn record_sample(&mut self, timed: &Timed, workload: &Workload) {
        let sample = &timed.sample;
        let row = |phase: &str, context: usize, tokens: usize, seconds: f64| SampleRow {
            run_id: self.row.run_id.clone(),
            precision: self.row.precision.clone(),
            kv_cache: self.row.kv_cache.clone(),
            phase: phase.into(),
            batch: workload.batch() as u64,
            context: context as u64,
            rep: timed.rep as u64,
            warmup: timed.warmup,
            tokens: (tokens * workload.batch()) as u64,
            seconds,
            process: Some(timed.process.clone()),
            ended_at_s: Some(timed.ended_at_s),
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

    /// Rates of the timed repetitions in their order, tokens per second.
    pub(super) fn rates(&self, phase: Phase) -> Vec<f64> {
        self.timed(phase.word())
            .map(|s| s.tokens as f64 / s.seconds)
            .collect()
    }

    /// The timed repetitions of a phase, warm-ups left out.
    fn timed<'s>(&'s self, phase: &'s str) -> impl Iterator<Item = &'s SampleRow> {
        let own = move |s: &&SampleRow| s.phase == phase && !s.warmup;
        self.samples.iter().filter(own)
    }

    /// Half the width of the median's interval over the median; `None` while there are too few
    /// repetitions for an interval of 95 %.
    pub(super) fn noise(&self, phase: Phase, seed: u64) -> Option<f64> {
        median_interval(&self.rates(phase), seed)
            .filter(|interval| interval.level >= medians::LEVEL)
            .map(|interval| interval.noise())
    }

    /// Medians and spreads of what was timed, and what is to be doubted about them.
    pub(super) fn summarize_speed(&mut self, seed: u64) {
        let seconds = |phase: &str| self.timed(phase).map(|s| s.seconds).collect::<Vec<f64>>();
        let warmup = |phase: Phase| {
            let mut samples = self.samples.iter();
            samples.find(|s| s.warmup && s.phase == phase.word())
        };
        let [prefill, decode] = [Phase::Prefill, Phase::Decode].map(|phase| self.rates(phase));
        let intervals = [&prefill, &decode].map(|rates| median_interval(rates, seed));
        let mut warnings: Vec<Warning> = [Phase::Prefill, Phase::Decode]
            .into_iter()
            .flat_map(|phase| {
                let warmup_s = warmup(phase).map(|s| s.seconds);
                doubts::repetitions(phase, warmup_s, &seconds(phase.word()))
            })
            .collect();
        let generated = self.row.generated_tokens.unwrap_or(0);
        warnings.extend(doubts::generated(generated, &seconds("decode")));
        let ttft_s = quantiles::median(&seconds("ttft"));

        let row = &mut self.row;
        row.prefill_tok_s = quantiles::median(&prefill);
        row.prefill_tok_s_sd = quantiles::standard_deviation(&prefill);
        row.prefill_tok_s_ci_low = intervals[0].map(|i| i.low);
        row.prefill_tok_s_ci_high = intervals[0].map(|i| i.high);
        row.decode_tok_s = quantiles::median(&decode);
        row.decode_tok_s_sd = quantiles::standard_deviation(&decode);
        row.decode_tok_s_ci_low = intervals[1].map(|i| i.low);
        row.decode_tok_s_ci_high = intervals[1].map(|i| i.high);
        row.ttft_s = ttft_s;
        self.timing = Some(TimingDetail {
            repetitions: decode.len() as u64,
            stopped_by: StopRule::Fixed,
            prefill_noise: intervals[0].map(|i| i.noise()),
            decode_noise: intervals[1].map(|i| i.noise()),
            interval_level: intervals[1].map(|i| i.level),
        });
        self.warnings.extend(warnings);
    }

    /// Records by which rule the repetitions of a summarized point ended, and doubts a median that
    /// is still less certain than `most_noise`.
    pub(super) fn record_stop(&mut self, most_noise: Option<f64>, seed: u64) {
        let phases = [Phase::Prefill, Phase::Decode];
        let noise = phases.map(|phase| (phase, self.noise(phase, seed)));
        let failed = self.state == State::Failed;
        let Some(timing) = &mut self.timing else {
            return;
        };
        let Some(most_noise) = most_noise.filter(|_| !failed) else {
            if failed {
                timing.stopped_by = StopRule::CutShort;
            }
            return;
        };
        timing.stopped_by = StopRule::Noise;
        for (phase, noise) in noise {
            match noise {
                Some(noise) if noise <= most_noise => {}
                noise => {
                    timing.stopped_by = StopRule::MaxReps;
                    self.warnings.extend(noise.map(|noise| Warning::StillNoisy {
                        phase,
                        noise,
                        most_noise,
                        repetitions: timing.repetitions,
                    }));
                }
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
