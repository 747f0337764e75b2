//! A linear of a decoder block as the kernels take it, and how its results are read.

use crate::Result;
use crate::device::Gpu;
use crate::packed::PackedLinear;
use candle_core::Tensor;
use std::sync::Arc;

/// A linear of a block: packed weight and, for some families, a bias `[n_out]` (F16).
#[derive(Clone)]
pub struct Linear {
    pub weight: Arc<dyn PackedLinear>,
    pub bias: Option<Tensor>,
}

/// Hands a contiguous F32 tensor's values to `f`, without a copy on the CPU.
pub fn with_f32<T>(
    tensor: &Tensor,
    gpu: Option<&Gpu>,
    f: impl FnOnce(&[f32]) -> Result<T>,
) -> Result<T> {
    if let Some(gpu) = gpu {
        return f(&gpu.read_f32(tensor)?);
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => {
            let start = layout.start_offset();
            f(&storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()])
        }
        _ => unreachable!("a tensor is on the CPU where there is no GPU"),
    }
}
