//! Where tensors live and what executes kernels there.
//!
//! Everything that a GPU does for us goes through [`Driver`]: launches of our own kernels, matrix
//! products of the vendor's library, recording a graph, reading the memory pool. Two drivers
//! exist: the CUDA driver (feature `cuda`) and, in the tests, an emulation that executes the same
//! kernels on the CPU. What sits above, packed products and model steps, does not know which.

pub mod choice;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod driver;
pub mod gemm;
pub mod gpu;
pub mod requirements;
pub mod roofline;

pub use choice::{DeviceChoice, open};
pub use driver::{Args, DeviceInfo, Driver, Gemm, GemmKind, Graph, Launch, PoolUsage};
pub use gpu::{Buffer, Claim, Gpu};
