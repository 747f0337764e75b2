//! What is measured, and how numbers become statistics.

pub mod doubts;
pub mod medians;
pub mod meter;
pub mod nvml;
pub mod quality;
pub mod roofline;
pub mod speed;
pub mod stats;
pub mod telemetry;
