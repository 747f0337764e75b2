//! What is measured, and how numbers become statistics.

pub mod binomial;
pub mod choices;
pub mod meter;
pub mod nvml;
pub mod quality;
pub mod roofline;
pub mod speed;
pub mod stats;
pub mod telemetry;
