//! What is compared: adding a number is one line in [`METRICS`].

use super::thresholds::Thresholds;
use crate::record::rows::ResultRow;

/// Which direction is for the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// What tells a change from chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The windows of `windows.csv`, which both runs share.
    Windows,
    /// The windows' divergences in `windows.csv`; where a run has none, as `Exact`.
    Divergences,
    /// The repetitions of this phase in `samples.csv`.
    Repetitions(&'static str),
    /// It repeats to the last digit: every change is one.
    Exact,
}

/// One number of a row.
pub struct Metric {
    /// Its column in `results.csv`.
    pub id: &'static str,
    pub title: &'static str,
    pub better: Better,
    /// Share of the base's value by which it may get worse.
    pub limit: fn(&Thresholds) -> f64,
    pub value: fn(&ResultRow) -> Option<f64>,
    pub evidence: Evidence,
    /// Whether it differs between batches and contexts, or belongs to the precision and KV cache.
    pub per_workload: bool,
    /// Changes up to this size, in the metric's unit, are none whatever their share.
    pub floor: fn(&Thresholds) -> f64,
}

/// Every compared number, in the order of the output.
pub static METRICS: &[Metric] = &[
    Metric {
        id: "perplexity",
        title: "perplexity",
        better: Better::Lower,
        limit: |t| t.max_perplexity_increase.share(),
        value: |row| row.perplexity,
        evidence: Evidence::Windows,
        per_workload: false,
        floor: |_| 0.0,
    },
    Metric {
        id: "kl_mean_nats",
        title: "mean KL divergence (nats)",
        better: Better::Lower,
        limit: |t| t.max_kl_increase.share(),
        value: |row| row.kl_mean_nats,
        evidence: Evidence::Divergences,
        per_workload: false,
        // Near the reference, shares of almost nothing mean nothing.
        floor: |t| t.kl_floor_nats,
    },
    Metric {
        id: "prefill_tok_s",
        title: "prefill (tok/s)",
        better: Better::Higher,
        limit: |t| t.max_prefill_decrease.share(),
        value: |row| row.prefill_tok_s,
        evidence: Evidence::Repetitions("prefill"),
        per_workload: true,
        floor: |_| 0.0,
    },
    Metric {
        id: "decode_tok_s",
        title: "decode (tok/s)",
        better: Better::Higher,
        limit: |t| t.max_decode_decrease.share(),
        value: |row| row.decode_tok_s,
        evidence: Evidence::Repetitions("decode"),
        per_workload: true,
        floor: |_| 0.0,
    },
    Metric {
        id: "peak_memory_bytes",
        title: "peak memory (bytes)",
        better: Better::Lower,
        limit: |t| t.max_memory_increase.share(),
        value: |row| row.peak_memory_bytes.map(|bytes| bytes as f64),
        evidence: Evidence::Exact,
        per_workload: true,
        floor: |_| 0.0,
    },
];
