//! Measures quality, memory and speed of one language model across precisions.
//!
//! ```text
//! weights ─► calibrate ─► quantize ─► PackedLinear ─► model ─► measure ─► rows ─► report
//! ```
//!
//! Imports go down only: `cli > run > measure > model > packed > candle`. `quant` knows no
//! model, `packed` no quantization method, `model` no precision and `report` no measurement.

pub mod cli;
pub mod compare;
pub mod data;
pub mod device;
pub mod error;
pub mod formats;
pub mod hash;
pub mod history;
pub mod hub;
mod lock;
pub mod measure;
pub mod memory;
pub mod model;
pub mod packed;
pub mod quant;
pub mod record;
pub mod report;
pub mod run;
pub mod say;
pub mod stats;
pub mod tokenizer;

pub use error::{Error, Result};
