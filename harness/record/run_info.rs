//! What `run.json` holds of a run: what was measured, where, with what, and every cell in detail.

use super::warning::Warning;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Raised when a definition changes so that old and new numbers do not compare.
pub const METRICS_VERSION: u32 = 1;

/// The machine a run was made on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub instruction_set: String,
    pub last_level_cache_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub os: String,
    pub kernel: String,
    /// Those that the driver shows, whether they were used or not.
    #[serde(default)]
    pub gpus: Vec<GpuInfo>,
    pub gpu_driver: Option<String>,
}

/// A GPU of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuInfo {
    pub name: String,
    pub memory_bytes: Option<u64>,
    pub gpu_clock_max_mhz: Option<u32>,
    pub memory_clock_max_mhz: Option<u32>,
    pub power_limit_w: Option<f64>,
}

/// What a GPU did while a cell was timed, over all its repetitions but the warm-up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuTelemetry {
    pub gpu_clock_mhz_median: Option<f64>,
    /// 5th to 95th percentile of the clock over its median.
    pub gpu_clock_spread: Option<f64>,
    pub memory_clock_mhz_median: Option<f64>,
    pub temperature_c_max: Option<f64>,
    pub power_w_mean: Option<f64>,
    pub throttled: Option<bool>,
    /// In words.
    pub throttle_reasons: Vec<String>,
    /// Energy of the decode phases.
    pub energy_j: Option<f64>,
    /// Processes on the GPU that this run did not start.
    pub other_processes: Option<u64>,
    /// GPU memory of the timed process.
    pub process_bytes: Option<u64>,
    pub readings: u64,
    /// Why something above is absent, where that is known; else empty.
    pub missing: String,
}

/// What a machine can do at most, as measured in the run itself. Rates are the best of the
/// repetitions, all threads (or the whole GPU) together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Roofline {
    pub device: String,
    /// Threads of a CPU.
    pub threads: Option<u64>,
    /// Bytes per second of reading a buffer from end to end.
    pub read_bytes_s: f64,
    /// Bytes per second of copying a buffer, bytes read and written counted.
    pub copy_bytes_s: f64,
    /// F32 operations per second; a multiplication and an addition are two.
    pub f32_flop_s: Option<f64>,
    /// Likewise of a large product of F16 matrices accumulated in F32.
    pub f16_gemm_flop_s: Option<f64>,
    pub fp8_gemm_flop_s: Option<f64>,
    pub int8_gemm_op_s: Option<f64>,
    /// How the arithmetic rates were measured, in words.
    pub arithmetic: String,
    /// Size of one buffer; a copy goes from one to another of the same size.
    pub buffer_bytes: u64,
    /// All last-level caches of the machine together.
    pub last_level_cache_bytes: Option<u64>,
    pub repetitions: u64,
    /// How much longer the median pass took than the best, of the kind where that is most: 0.1 is
    /// a tenth. Large where something else used the machine.
    pub spread: Option<f64>,
    /// What measuring all this took.
    pub seconds: f64,
}

impl Roofline {
    /// What mbu divides by: the better of reading and copying.
    pub fn bandwidth_bytes_s(&self) -> f64 {
        self.read_bytes_s.max(self.copy_bytes_s)
    }

    /// What mfu divides by: the rate of F16 matrix products where there is one, else of F32.
    pub fn flop_s(&self) -> Option<f64> {
        self.f16_gemm_flop_s.or(self.f32_flop_s)
    }
}

/// The model a run measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub name: String,
    pub source: String,
    pub source_format: String,
    pub architecture: String,
    pub parameters: u64,
    pub body_parameters: u64,
    pub layers: u64,
    pub hidden_size: u64,
    pub vocab_size: u64,
    pub weights_sha256: String,
    /// Hash of everything else that makes the model: sizes, RoPE, epsilons.
    #[serde(default)]
    pub config_sha256: String,
    pub tokenizer_sha256: String,
}

/// One evaluation or calibration text, as it was used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextInfo {
    pub name: String,
    /// `evaluation` or `calibration`.
    pub kind: String,
    pub title: String,
    pub file: String,
    pub licence: String,
    pub sha256: String,
    pub bytes: u64,
    pub tokens: u64,
    /// Windows used, after `--limit`.
    pub windows: u64,
    pub ids_sha256: String,
}

/// The special tokens of a run's tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizerInfo {
    /// Put before every text by the tokenizer itself.
    pub added_bos_id: Option<u32>,
    /// Put after every text by the tokenizer itself.
    pub added_eos_id: Option<u32>,
    /// The token that begins texts, as the model's files declare it.
    pub bos_id: Option<u32>,
    /// The token that ends texts, as the model's files declare it.
    pub eos_id: Option<u32>,
}

/// A perplexity protocol of a run, with what it put where.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProtocolInfo {
    pub id: String,
    /// What it does, in sentences.
    pub about: String,
    /// Every rule and number.
    pub rules: BTreeMap<String, serde_json::Value>,
    /// Consecutive windows that share tokens: intervals resample them together.
    pub block_windows: u64,
    /// The token that the tokenizer put before each stream.
    pub stream_start_id: Option<u32>,
    /// The token that the tokenizer put after each stream.
    pub stream_end_id: Option<u32>,
    /// The token that the protocol put at the start of windows.
    pub window_start_id: Option<u32>,
    /// Where it was put, in words; empty without one.
    pub window_start: String,
    pub texts: Vec<ProtocolText>,
}

/// A text under one protocol.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProtocolText {
    pub name: String,
    /// Token streams: pages for a protocol that scores each by itself.
    pub streams: u64,
    pub tokens: u64,
    /// Windows used, after `--limit`.
    pub windows: u64,
    pub ids_sha256: String,
}

/// Memory in detail of one batch and context.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkloadDetail {
    pub batch: u64,
    pub prompt_tokens: u64,
    pub peak_bytes_by_phase: BTreeMap<String, u64>,
    pub other_parts_bytes: BTreeMap<String, u64>,
    #[serde(default)]
    pub timing: Option<TimingDetail>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// Why no more repetitions were timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopRule {
    /// Their number was given.
    #[default]
    Fixed,
    /// Both medians had become as certain as was asked for.
    Noise,
    /// The most that were allowed.
    MaxReps,
    /// The run was stopped, or the timing failed.
    CutShort,
}

/// The repetitions of one batch and context.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimingDetail {
    pub repetitions: u64,
    pub stopped_by: StopRule,
    /// Half the width of the median's interval over the median; absent without an interval.
    pub prefill_noise: Option<f64>,
    pub decode_noise: Option<f64>,
    /// Confidence of the medians' intervals: exact for few repetitions, so not 0.95 itself.
    pub interval_level: Option<f64>,
}

/// How far a precision's predictions are from the reference's, token by token; divergences are
/// KL(reference ‖ precision). What is absent had no token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Divergence {
    /// Tokens compared.
    pub tokens: u64,
    /// Tokens that were not finite on one side and enter nothing else.
    pub nonfinite_tokens: u64,
    /// What the stored form of the reference can show as divergence at most.
    pub resolution_nats: f64,
    pub kl_mean_nats: Option<f64>,
    pub kl_median_nats: Option<f64>,
    pub kl_p90_nats: Option<f64>,
    pub kl_p99_nats: Option<f64>,
    pub kl_max_nats: Option<f64>,
    /// Share of tokens for which both hold the same one for the most probable.
    pub top1_agreement: Option<f64>,
    /// Probability of the actual token, minus the reference's.
    pub delta_p_mean: Option<f64>,
    pub delta_p_rms: Option<f64>,
    /// By the largest probability of the reference.
    pub buckets: Vec<ConfidenceBucket>,
}

/// Tokens at which the reference's largest probability is in `from..to` (the last: up to 1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfidenceBucket {
    pub from: f64,
    pub to: f64,
    pub tokens: u64,
    pub kl_mean_nats: Option<f64>,
    pub top1_agreement: Option<f64>,
}

/// What does not fit one flat row, per precision and KV cache.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CellDetail {
    pub precision: String,
    pub kv_cache: String,
    /// Every parameter of the method, defaults included.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Counts that the method reported (damping retries, groups left unscaled, ...).
    pub notes: BTreeMap<String, f64>,
    pub quantize_peak_bytes: Option<u64>,
    /// High-water marks of the measuring process by phase: `load`, `prefill`, `decode` of the
    /// first batch and context, `perplexity`.
    pub peak_bytes_by_phase: BTreeMap<String, u64>,
    /// What `other_bytes` consists of.
    pub other_parts_bytes: BTreeMap<String, u64>,
    /// The same for every further batch and context.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<WorkloadDetail>,
    pub packed_sha256: String,
    pub macro_perplexity: Option<f64>,
    /// Absent on a CPU.
    pub gpu: Option<GpuTelemetry>,
    pub started_at: String,
    pub duration_s: f64,
    /// Absent for the reference, and where nothing was compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
    /// What was timed at the first batch and context.
    #[serde(default)]
    pub timing: Option<TimingDetail>,
    /// Warnings of the precision and of its first batch and context; the rows hold the words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// Whether the weights were quantized by an earlier run of the same program, with the same
    /// texts; `quantize_s` then is what it took there.
    #[serde(default)]
    pub weights_from_cache: bool,
    /// High-water mark of the device memory that quantizing took; absent where it worked on the
    /// CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize_device_peak_bytes: Option<u64>,
    /// High-water mark of the quantizing process as the system saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize_peak_rss_bytes: Option<u64>,
}

/// Finished work of earlier runs in the same folder that a run took over from its journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reused {
    pub quantized: u64,
    pub measured: u64,
    pub rooflines: u64,
    /// Repetitions, warm-ups not counted.
    pub timed_turns: u64,
    /// What all of it took then.
    pub seconds: f64,
}

/// Everything about a run that is not a table: `run.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    pub run_id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    pub finished_at: String,
    pub duration_s: f64,
    /// The command as typed.
    pub command: String,
    pub quantbench_version: String,
    pub git_commit: String,
    pub metrics_version: u32,
    /// The precision that differences refer to; empty with `--no-reference`.
    pub reference: String,
    pub host: Host,
    /// Absent if nothing was timed, or it could not be measured.
    #[serde(default)]
    pub roofline: Option<Roofline>,
    pub model: ModelInfo,
    pub texts: Vec<TextInfo>,
    /// All options of the run with their values, defaults included.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Precision ids in the order asked for.
    pub precisions: Vec<String>,
    pub cells: Vec<CellDetail>,
    pub warnings: Vec<String>,
    /// Whether every cell was reached (false after Ctrl-C or a crash).
    pub complete: bool,
    /// The first is that of `results.csv`.
    #[serde(default)]
    pub protocols: Vec<ProtocolInfo>,
    #[serde(default)]
    pub tokenizer: TokenizerInfo,
    /// Precisions that are not to be chosen but show what cannot be told from the reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub noise_floors: Vec<String>,
    /// `warnings` as values: those that are about the run or its machine, not about a row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machine_warnings: Vec<Warning>,
    #[serde(default)]
    pub reused: Reused,
}
