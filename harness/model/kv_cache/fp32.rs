//! Keys and values as IEEE 754 single precision: the cache of the checks against other implementations.

use super::format::KvFormat;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType};

/// The format.
#[derive(Debug)]
pub struct Fp32;

impl KvFormat for Fp32 {
    fn id(&self) -> &'static str {
        "fp32"
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn kernel(&self) -> &'static str {
        "kvf32"
    }

    fn load(&self, stored: &CpuStorage, row: usize, to: &mut [f32]) {
        let CpuStorage::F32(stored) = stored else {
            panic!("a cache in fp32 holds {}", stored.dtype().as_str());
        };
        let from = &stored[row * to.len()..][..to.len()];
        to.copy_from_slice(from);
    }
}
