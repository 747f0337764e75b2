//! What is measured, and how numbers become statistics.

pub mod meter;
pub mod quality;
pub mod roofline;
pub mod speed;
pub mod stats;
