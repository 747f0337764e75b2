//! The rows of a run. Field order is column order; an absent value is an empty cell.
//!
//! Definitions of every column are in docs/columns.md. Columns are only ever appended.

use serde::{Deserialize, Serialize};

/// The pool of all texts, in `dataset` columns.
pub const OVERALL: &str = "overall";

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Oom,
    Killed,
    Timeout,
    Unsupported,
    #[default]
    Error,
    Skipped,
}

impl Status {
    /// The word used in files.
    pub fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Oom => "oom",
            Status::Killed => "killed",
            Status::Timeout => "timeout",
            Status::Unsupported => "unsupported",
            Status::Error => "error",
            Status::Skipped => "skipped",
        }
    }
}

/// One row of `results.csv`: device × model × precision × KV cache × batch × context.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    pub run_id: String,
    pub device: String,
    pub model: String,
    pub source_format: String,
    pub precision: String,
    pub method: String,
    pub format: String,
    pub weight_bits: Option<u32>,
    pub group_size: Option<i64>,
    pub activation_dtype: String,
    pub kv_cache: String,
    pub status: Status,
    pub perplexity: Option<f64>,
    pub perplexity_se: Option<f64>,
    pub protocol: String,
    pub dataset: String,
    pub scored_tokens: Option<u64>,
    pub delta_nll_nats: Option<f64>,
    pub delta_nll_ci_low: Option<f64>,
    pub delta_nll_ci_high: Option<f64>,
    pub bits_per_byte: Option<f64>,
    pub kl_mean_nats: Option<f64>,
    pub kl_p99_nats: Option<f64>,
    pub top1_agreement: Option<f64>,
    pub batch: Option<u64>,
    pub prompt_tokens: Option<u64>,
    pub generated_tokens: Option<u64>,
    pub prefill_tok_s: Option<f64>,
    pub prefill_tok_s_sd: Option<f64>,
    pub decode_tok_s: Option<f64>,
    pub decode_tok_s_sd: Option<f64>,
    pub ttft_s: Option<f64>,
    pub prefill_kernel: String,
    pub decode_kernel: String,
    pub bits_per_weight: Option<f64>,
    pub weight_bytes: Option<u64>,
    pub embedding_bytes: Option<u64>,
    pub kv_cache_bytes: Option<u64>,
    pub activation_peak_bytes: Option<u64>,
    pub workspace_bytes: Option<u64>,
    pub other_bytes: Option<u64>,
    pub peak_memory_bytes: Option<u64>,
    pub peak_memory_method: String,
    pub peak_rss_bytes: Option<u64>,
    pub quantize_s: Option<f64>,
    pub load_s: Option<f64>,
    pub threads: Option<u64>,
    pub seed: Option<u64>,
    pub metrics_version: Option<u32>,
    /// Plain-word warnings, joined with `; `; as values in [`CellDetail`](super::run_info::CellDetail).
    pub warnings: String,
    pub error: String,
    /// Share of the measured memory bandwidth that decoding used; 0.5 is half.
    pub mbu: Option<f64>,
    /// Share of the measured arithmetic rate that prefill used.
    pub mfu: Option<f64>,
    /// GPU: what the memory pool held from the driver, high-water.
    pub pool_reserved_bytes: Option<u64>,
    /// GPU: how much less memory was free on the device than before the measuring process had a
    /// context: the pool as reserved, and context, modules and the vendor's library beside it.
    pub driver_delta_bytes: Option<u64>,
    /// GPU: what NVML reports for the process.
    pub nvml_process_bytes: Option<u64>,
    pub gpu_clock_mhz_median: Option<f64>,
    /// GPU: whether it held its clock down while it was timed.
    pub throttled: Option<bool>,
    /// GPU: energy of the decode phase over its tokens.
    pub joules_per_token: Option<f64>,
    /// Tokens whose whole distribution was compared with the reference's; all `kl_` columns,
    /// `top1_agreement` and `delta_p_` columns are of these.
    pub kl_tokens: Option<u64>,
    pub kl_median_nats: Option<f64>,
    pub kl_p90_nats: Option<f64>,
    pub kl_max_nats: Option<f64>,
    /// Probability of the token that the text goes on with, minus the reference's.
    pub delta_p_mean: Option<f64>,
    pub delta_p_rms: Option<f64>,
    /// Perplexity over the reference's, on all scored windows.
    pub perplexity_ratio: Option<f64>,
    /// Paired, over windows, by the delta method.
    pub perplexity_ratio_se: Option<f64>,
    /// Scored tokens without a finite likelihood, and compared tokens where one of the two sides
    /// was not finite, whichever are more: they are left out of every average.
    pub nonfinite_tokens: Option<u64>,
    /// Interval of the median: 95 % from 6 repetitions on, smallest to largest (93.75 %) of 5,
    /// absent for fewer.
    pub prefill_tok_s_ci_low: Option<f64>,
    pub prefill_tok_s_ci_high: Option<f64>,
    pub decode_tok_s_ci_low: Option<f64>,
    pub decode_tok_s_ci_high: Option<f64>,
}

/// One row of `quality.csv`; `dataset` is a set's name or `overall`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityRow {
    pub run_id: String,
    pub device: String,
    pub model: String,
    pub precision: String,
    pub kv_cache: String,
    pub protocol: String,
    pub dataset: String,
    pub windows: u64,
    pub scored_tokens: u64,
    pub scored_bytes: u64,
    pub nll_mean_nats: f64,
    pub nll_se_nats: Option<f64>,
    pub perplexity: f64,
    pub perplexity_se: Option<f64>,
    pub bits_per_byte: Option<f64>,
    pub delta_nll_nats: Option<f64>,
    pub delta_nll_ci_low: Option<f64>,
    pub delta_nll_ci_high: Option<f64>,
}

/// One row of `pairs.csv`: mean NLL of `precision_b` minus that of `precision_a`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PairRow {
    pub run_id: String,
    pub protocol: String,
    pub dataset: String,
    pub precision_a: String,
    pub precision_b: String,
    pub delta_nll_nats: f64,
    pub delta_nll_ci_low: Option<f64>,
    pub delta_nll_ci_high: Option<f64>,
}

/// One row of `speed_pairs.csv`: how many times the rate of `precision_a` that of `precision_b`
/// is, with the same KV cache and workload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedPairRow {
    pub run_id: String,
    pub kv_cache: String,
    /// `prefill` or `decode`.
    pub phase: String,
    pub batch: u64,
    /// Prompt tokens of the workload, in both phases.
    pub context: u64,
    pub precision_a: String,
    pub precision_b: String,
    /// Ratio of the medians.
    pub ratio: f64,
    /// At least 90 %, 95 % from four repetitions on; absent for fewer than three.
    pub ratio_ci_low: Option<f64>,
    pub ratio_ci_high: Option<f64>,
}

/// One row of `windows.csv`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowRow {
    pub run_id: String,
    pub precision: String,
    pub kv_cache: String,
    pub protocol: String,
    pub dataset: String,
    pub window: u64,
    pub scored_tokens: u64,
    pub nll_sum_nats: f64,
    /// What the window adds to the numerator of the protocol's mean NLL.
    pub weighted_nll_nats: Option<f64>,
    /// What it adds to the denominator.
    pub weight: Option<f64>,
    /// Tokens compared with the reference, and their KL divergences added up.
    pub kl_tokens: Option<u64>,
    pub kl_sum_nats: Option<f64>,
}

/// One row of `samples.csv`: one timed repetition of `prefill` or `decode`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    pub run_id: String,
    pub precision: String,
    pub kv_cache: String,
    pub phase: String,
    pub batch: u64,
    pub context: u64,
    pub rep: u64,
    pub warmup: bool,
    pub tokens: u64,
    pub seconds: f64,
    /// Names the process that took it.
    pub process: Option<String>,
    /// When it ended, in seconds since 1970: repetitions of runs that took turns alternate.
    pub ended_at_s: Option<f64>,
}

/// One row of `choices.csv`: a set of multiple-choice items under one precision and KV cache.
///
/// `accuracy` takes the choice of the largest log-likelihood, `accuracy_normalized` that of the
/// largest per byte of the choice, `accuracy_per_token` per token; intervals are exact
/// (Clopper-Pearson), 95 %.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChoiceRow {
    pub run_id: String,
    pub device: String,
    pub model: String,
    pub precision: String,
    pub kv_cache: String,
    pub dataset: String,
    pub items: u64,
    pub correct: u64,
    pub accuracy: f64,
    pub accuracy_ci_low: f64,
    pub accuracy_ci_high: f64,
    pub correct_normalized: u64,
    pub accuracy_normalized: f64,
    pub accuracy_normalized_ci_low: f64,
    pub accuracy_normalized_ci_high: f64,
    pub correct_per_token: u64,
    pub accuracy_per_token: f64,
    /// Items for which the reference takes another choice (by the whole log-likelihood); absent
    /// for the reference and without one.
    pub changed_items: Option<u64>,
    /// Changed items that the reference has right and this precision wrong.
    pub lost_items: Option<u64>,
    /// Changed items that this precision has right and the reference wrong.
    pub gained_items: Option<u64>,
    /// Items of which a choice had no finite likelihood; they count as wrong.
    pub nonfinite_items: u64,
}
