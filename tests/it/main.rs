//! All tests that can share a process, a module per subject. Others are programs of their own:
//! `memory` (counters of the whole process), `new_method` and `gate` (quantbench with more methods).

#[macro_use]
#[path = "../emulation/mod.rs"]
mod emulation;
#[path = "../common/mod.rs"]
mod common;
#[path = "../contracts/mod.rs"]
mod contracts;
#[path = "../emulation/driver.rs"]
mod driver;
#[path = "../emulation/half_activations.rs"]
mod half_activations;

mod allocations;
mod cli;
mod compare;
mod datasets;
mod decoder;
mod divergence;
mod docs;
mod drawn;
mod emulation_faults;
mod floors;
mod gpu;
mod gpu_products;
mod gpu_quantize;
mod gpu_steps;
mod history;
mod kernels;
mod methods;
mod quality;
mod quantize;
mod report;
mod resume;
mod roofline;
mod sources;
mod suites;
mod tokenizer;
mod warnings;
