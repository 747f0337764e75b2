//! Runs cells in child processes and keeps their rows.
//!
//! Per precision a *quantize* child writes the packed file and a fresh *measure* child loads only
//! that file and measures memory and quality; at the end *time* children take turns. A child that
//! dies costs its own row and nothing else.

pub mod altered;
pub mod cache;
pub mod calibration;
pub mod child;
pub mod footprint;
pub mod host;
pub mod job;
pub mod journal;
pub mod keys;
pub mod progress;
pub mod quantize;
pub mod suite;
pub mod suite_file;
pub mod turns;
pub mod worker;
