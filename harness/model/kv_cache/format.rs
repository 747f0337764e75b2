//! What a format of the KV cache is, and the keys or values of a layer stored in one.

use crate::Result;
use crate::device::{Buffer, Claim};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::fmt::Debug;

/// How keys or values are stored. One file per format, one line in
/// [`KV_FORMATS`](super::KV_FORMATS).
///
/// A row is one position of one KV head: `head_dim` numbers. Rows lie one after the other, `[batch,
/// capacity, kv_heads, head_dim]`.
pub trait KvFormat: Debug + Send + Sync {
    /// The word in `--kv`.
    fn id(&self) -> &'static str;

    /// Dtype of a stored number.
    fn dtype(&self) -> DType;

    /// What the names of the GPU kernels say of a cache in this format: the `kvf16` of
    /// `attend_decode_kvf16_d64`.
    fn kernel(&self) -> &'static str;

    /// Bytes that one position of `kv_heads` heads takes in the keys or in the values.
    fn position_bytes(&self, kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * head_dim * self.dtype().size_in_bytes()
    }

    /// The stored form of F32 `rows`, `[batch, tokens, kv_heads, head_dim]`.
    fn store(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(rows.to_dtype(self.dtype())?)
    }

    /// Widens row number `row` of `stored` to F32; `to` is `head_dim` long.
    ///
    /// # Panics
    /// If `stored` is not of this format's dtype, or shorter.
    fn load(&self, stored: &CpuStorage, row: usize, to: &mut [f32]);
}

/// The keys or the values of one layer: `[batch, capacity, kv_heads, head_dim]`, contiguous.
pub struct Stored {
    pub format: &'static dyn KvFormat,
    pub codes: Tensor,
    /// Counts the tensor for as long as it lives, where an allocator does not.
    _claim: Option<Claim>,
}

impl Stored {
    /// Over a tensor that the allocator counts.
    pub fn new(format: &'static dyn KvFormat, codes: Tensor) -> Self {
        Stored {
            format,
            codes,
            _claim: None,
        }
    }

    /// Over device memory.
    pub fn in_buffer(format: &'static dyn KvFormat, buffer: Buffer) -> Self {
        let (codes, claim) = buffer.into_parts();
        Stored {
            format,
            codes,
            _claim: Some(claim),
        }
    }

    /// Bytes of all positions.
    pub fn bytes(&self) -> usize {
        self.codes.elem_count() * self.codes.dtype().size_in_bytes()
    }

    /// Writes `rows`, `[batch, tokens, kv_heads, head_dim]` F32, at position `at`.
    pub(super) fn append(&self, rows: &Tensor, at: usize) -> Result<()> {
        let rows = self.format.store(rows)?.contiguous()?;
        Ok(self.codes.slice_set(&rows, 1, at)?)
    }

    /// Hands the stored numbers to `f`, which reads them by [`KvFormat::load`].
    ///
    /// # Errors
    /// A cache on a device that the CPU cannot read, a view of a tensor, another dtype than the
    /// format's.
    pub(in crate::model) fn with_rows<T>(
        &self,
        f: impl FnOnce(&CpuStorage) -> candle_core::Result<T>,
    ) -> candle_core::Result<T> {
        let (dtype, wanted) = (self.codes.dtype(), self.format.dtype());
        if dtype != wanted {
            candle_core::bail!("a KV cache of {dtype:?} where its format has {wanted:?}");
        }
        let (storage, layout) = self.codes.storage_and_layout();
        // Rows are counted from the start of the storage.
        if !(layout.is_contiguous() && layout.start_offset() == 0) {
            candle_core::bail!("expected a whole contiguous KV cache, found {layout:?}");
        }
        match &*storage {
            Storage::Cpu(stored) => f(stored),
            _ => candle_core::bail!("the CPU cannot read a KV cache on a device"),
        }
    }
}
