//! What is measured, and how numbers become statistics.

pub mod choices;
pub mod divergence;
pub mod doubts;
pub mod log_probs;
pub mod meter;
pub mod nll;
pub mod nvml;
pub mod quality;
pub mod roofline;
mod softmax;
pub mod speed;
pub mod telemetry;
