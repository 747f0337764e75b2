//! What is compared: a cell, a number of it in both runs, and the evidence for a change.

use super::metric::Metric;
use crate::record::Tables;
use crate::record::format::one_line;
use crate::record::rows::ResultRow;
use crate::stats::bootstrap::PairedWindow;
use serde::Serialize;
use std::fmt;

/// What a number belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cell {
    pub device: String,
    pub model: String,
    pub precision: String,
    pub kv_cache: String,
    /// Absent where the number does not depend on it, as quality.
    pub batch: Option<u64>,
    pub prompt_tokens: Option<u64>,
}

impl Cell {
    pub fn of(row: &ResultRow) -> Self {
        Cell {
            device: row.device.clone(),
            model: row.model.clone(),
            precision: row.precision.clone(),
            kv_cache: row.kv_cache.clone(),
            batch: row.batch,
            prompt_tokens: row.prompt_tokens,
        }
    }

    pub fn of_any_workload(row: &ResultRow) -> Self {
        Cell {
            batch: None,
            prompt_tokens: None,
            ..Cell::of(row)
        }
    }
}

impl fmt::Display for Cell {
    /// `int8 kv=fp16 b=1 ctx=256`; device and model stand in the title of a run.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", one_line(&self.precision))?;
        if !self.kv_cache.is_empty() {
            write!(f, " kv={}", one_line(&self.kv_cache))?;
        }
        if let Some(batch) = self.batch {
            write!(f, " b={batch}")?;
        }
        if let Some(tokens) = self.prompt_tokens {
            write!(f, " ctx={tokens}")?;
        }
        Ok(())
    }
}

/// A cell, or one number of it, that the base has and the new run does not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    pub cell: Cell,
    pub what: String,
}

/// A number of a cell in both runs.
pub struct Observation {
    pub cell: Cell,
    pub metric: &'static Metric,
    /// The protocol of a perplexity.
    pub protocol: Option<String>,
    pub base: f64,
    pub new: f64,
    pub data: Data,
    /// Change that the base run itself shows to be none, in the metric's unit.
    pub floor: f64,
}

/// What tells its change from chance.
pub enum Data {
    Windows {
        windows: Vec<PairedWindow>,
        /// Consecutive windows that share text.
        block: usize,
    },
    /// Divergences of the windows, each times its tokens.
    Divergences {
        windows: Vec<PairedWindow>,
        block: usize,
    },
    /// Tokens per second of each repetition of each run; of each process of each run where these
    /// took turns.
    Repetitions {
        base: Vec<Vec<f64>>,
        new: Vec<Vec<f64>>,
        /// Whether `base[i]` took turns with `new[i]`.
        in_turns: bool,
    },
    Exact,
}

/// The runs of a side, and a row of the first.
pub type SideRow<'a> = (&'a [Tables], &'a ResultRow);
