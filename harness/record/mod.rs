//! What a run leaves behind: rows, run information, warnings, and how their numbers are written.
//!
//! Measuring, comparing and rendering share this vocabulary and know nothing of each other.

pub mod format;
pub mod rows;
pub mod run_info;
pub mod tables;
pub mod warning;

pub use tables::Tables;
