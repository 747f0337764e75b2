//! What is measured, and how numbers become statistics.

pub mod binomial;
pub mod choices;
pub mod divergence;
pub mod doubts;
pub mod log_probs;
pub mod medians;
pub mod meter;
pub mod nvml;
pub mod quality;
pub mod roofline;
mod softmax;
pub mod speed;
pub mod stats;
pub mod telemetry;
