//! Keys and values as IEEE 754 half precision.

use super::format::KvFormat;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType};
use half::slice::HalfFloatSliceExt;

/// The format.
#[derive(Debug)]
pub struct Fp16;

impl KvFormat for Fp16 {
    fn id(&self) -> &'static str {
        "fp16"
    }

    fn dtype(&self) -> DType {
        DType::F16
    }

    fn kernel(&self) -> &'static str {
        "kvf16"
    }

    fn load(&self, stored: &CpuStorage, row: usize, to: &mut [f32]) {
        let CpuStorage::F16(stored) = stored else {
            panic!("a cache in fp16 holds {}", stored.dtype().as_str());
        };
        let from = &stored[row * to.len()..][..to.len()];
        from.convert_to_f32_slice(to);
    }
}
