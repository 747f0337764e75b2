//! What a parent asks of a child and what the child answers: one line of JSON each.

use crate::measure::choices::Item;
use crate::measure::divergence::WindowDivergence;
use crate::measure::log_probs::Address;
use crate::measure::meter::DeviceMemory;
use crate::measure::quality::{ScoredText, TokenStream, WindowScore};
use crate::measure::roofline::Cost;
use crate::measure::speed::{Sample, Workload};
use crate::model::config::Config;
use crate::packed::FormatSpec;
use crate::packed::gpu::Choice;
use crate::record::rows::Status;
use crate::record::run_info::Roofline;
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
        place: Place,
        /// Of each of two buffers in the memory of a CPU.
        buffer_bytes: u64,
    },
}

/// Where a child runs its model, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// As in results: `cpu`, `cuda:0`.
    pub device: String,
    pub kernels: Choice,
    /// Whether decode steps may be recorded.
    pub graphs: bool,
}

impl Place {
    pub fn on_cpu(&self) -> bool {
        self.device == "cpu"
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct QuantizeJob {
    /// Folder or GGUF file; the embedded model without one.
    pub model: Option<PathBuf>,
    pub precision: String,
    /// Token ids of the calibration windows.
    pub calibration: Vec<Vec<u32>>,
    pub output: PathBuf,
    /// Where a method that looks at inputs works.
    pub place: Place,
}

/// The model that a measuring or timing child runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Subject {
    /// The file that a quantize child wrote.
    Packed(PathBuf),
    /// A shape filled with random codes.
    Synthetic {
        config: Config,
        precision: String,
        seed: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct MeasureJob {
    pub place: Place,
    pub subject: Subject,
    pub kv: String,
    /// Their memory is measured one after the other.
    pub workloads: Vec<Workload>,
    /// What the windows of the texts are cut from.
    pub streams: Vec<TokenStream>,
    /// Every text under every protocol, those of the first protocol first. Nothing is scored
    /// without any.
    pub texts: Vec<ScoredText>,
    /// Bytes that the measured parts may take.
    pub memory_limit_bytes: Option<usize>,
    /// Multiple-choice items of all sets, scored after the texts.
    pub choices: Vec<Item>,
    /// Absent where nothing is compared token by token.
    pub divergence: Option<Box<DivergenceJob>>,
}

/// The file by which distributions are compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DivergenceJob {
    pub path: PathBuf,
    pub address: Address,
    /// Whether this child's model is the reference, which writes the file; others read it and
    /// answer with [`Event::Divergence`]s.
    pub records: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct TimeJob {
    pub place: Place,
    pub subject: Subject,
    /// Each line on the child's standard input is an index into these; the answer is one
    /// [`Event::Timed`].
    pub turns: Vec<Turn>,
    /// What a test multiplies the times of every turn by ([`super::altered`]).
    #[serde(default)]
    pub time_factors: Option<String>,
}

/// What a time child runs when it is asked to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Turn {
    pub kv: String,
    pub workload: Workload,
}

/// A line on a child's standard output.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// Blocks quantized.
    Progress {
        done: usize,
        total: usize,
    },
    Quantized(QuantizeResult),
    /// A measuring child has loaded its model.
    Loaded,
    /// Memory of the next workload.
    Memory(Box<MemoryResult>),
    /// The next window of a text (by index) was scored.
    Window {
        text: usize,
        score: WindowScore,
    },
    /// One window was compared with the reference.
    Divergence(WindowDivergence),
    Scored {
        perplexity_peak_bytes: usize,
    },
    /// The next multiple-choice item was scored.
    Choice {
        /// Of each continuation; absent where it is not finite.
        log_likelihoods_nats: Vec<Option<f64>>,
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

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuantizeResult {
    pub quantize_s: f64,
    /// High-water mark of everything the child allocated.
    pub peak_bytes: usize,
    pub notes: BTreeMap<String, f64>,
    pub packed_sha256: String,
    /// High-water mark of what it took of a GPU's memory; empty where it worked on the CPU.
    #[serde(default)]
    pub device_peak_bytes: Option<usize>,
    /// High-water mark of the child as the system saw it, pinned buffers and mapped files included.
    #[serde(default)]
    pub peak_rss_bytes: Option<u64>,
}

/// Memory of load, prefill and decode in one workload.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryResult {
    /// Absent where nothing was read.
    pub load_s: Option<f64>,
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
    /// How `peak_bytes` was measured.
    pub peak_memory_method: String,
    /// What a GPU says beside the parts.
    pub device_memory: Option<DeviceMemory>,
    pub prefill_kernel: String,
    pub decode_kernel: String,
    pub cost: Cost,
}
