//! What a parent asks of a child and what the child answers: one line of JSON each.

use crate::measure::quality::WindowScore;
use crate::measure::roofline::Cost;
use crate::measure::speed::{Sample, Workload};
use crate::packed::FormatSpec;
use crate::report::record::{Roofline, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The first line on a child's standard input.
#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    Quantize(QuantizeJob),
    Measure(MeasureJob),
    Time(TimeJob),
    /// Measures the machine itself; answered by [`Event::Roofline`].
    Roofline {
        /// Of each of two buffers.
        buffer_bytes: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct QuantizeJob {
    /// Folder or GGUF file; the embedded model without one.
    pub model: Option<PathBuf>,
    pub precision: String,
    /// Token ids of the calibration windows.
    pub calibration: Vec<Vec<u32>>,
    pub kv: String,
    pub output: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct MeasureJob {
    pub packed: PathBuf,
    pub kv: String,
    pub workload: Workload,
    pub texts: Vec<JobText>,
    /// Protocol id.
    pub protocol: String,
    /// Bytes that the measured parts may take.
    pub memory_limit_bytes: Option<usize>,
}

/// A tokenized text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobText {
    pub ids: Vec<u32>,
    /// Bytes of text per id.
    pub bytes: Vec<u32>,
    /// Windows to score at most.
    pub windows: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct TimeJob {
    pub packed: PathBuf,
    pub kv: String,
    pub workload: Workload,
}

/// Answer of a time child to a line on its standard input is one [`Event::Timed`].
pub const TIME_ONCE: &str = "once";

/// A line on a child's standard output.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// Blocks quantized.
    Progress {
        done: usize,
        total: usize,
    },
    Quantized(QuantizeResult),
    Memory(Box<MemoryResult>),
    /// One window of a text (by index) was scored.
    Window {
        text: usize,
        score: WindowScore,
    },
    Scored {
        perplexity_peak_bytes: usize,
    },
    /// A time child has loaded its model.
    Ready,
    Timed(Sample),
    Roofline(Box<Roofline>),
    Failed {
        status: Status,
        message: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct QuantizeResult {
    pub quantize_s: f64,
    /// High-water mark of everything the child allocated.
    pub peak_bytes: usize,
    pub notes: BTreeMap<String, f64>,
    pub packed_sha256: String,
}

/// Memory of load, prefill and decode in the default workload.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryResult {
    pub load_s: f64,
    pub spec: FormatSpec,
    pub bits_per_weight: f64,
    pub weight_bytes: usize,
    pub embedding_bytes: usize,
    pub kv_cache_bytes: usize,
    pub activation_peak_bytes: usize,
    pub workspace_peak_bytes: usize,
    pub other_bytes: usize,
    pub other_parts_bytes: BTreeMap<String, u64>,
    /// High-water mark over the three phases.
    pub peak_bytes: usize,
    pub peak_bytes_by_phase: BTreeMap<String, u64>,
    /// Live bytes right after load.
    pub loaded_bytes: usize,
    /// Allocations inside the bracket that no part claimed, at their highest.
    pub untagged_peak_bytes: usize,
    pub peak_rss_bytes: Option<u64>,
    /// Of the inputs of the blocks' linears, as they are multiplied.
    pub activation_dtype: String,
    pub prefill_kernel: String,
    pub decode_kernel: String,
    pub cost: Cost,
}
