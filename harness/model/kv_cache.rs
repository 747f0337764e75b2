//! Keys and values of past positions, preallocated for the length of the test.

use crate::device::{Buffer, Claim};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Precision of the cache: an axis of its own, independent of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvPrecision {
    pub id: &'static str,
    pub dtype: DType,
}

/// Every cache precision; the first is the default.
pub const KV_PRECISIONS: &[KvPrecision] = &[
    KvPrecision {
        id: "fp16",
        dtype: DType::F16,
    },
    KvPrecision {
        id: "fp32",
        dtype: DType::F32,
    },
];

impl KvPrecision {
    /// The precision with this id.
    pub fn parse(id: &str) -> Result<Self> {
        KV_PRECISIONS
            .iter()
            .find(|p| p.id == id)
            .copied()
            .ok_or_else(|| {
                let known: Vec<_> = KV_PRECISIONS.iter().map(|p| p.id).collect();
                Error::usage(
                    format!("unknown KV cache precision `{id}`"),
                    format!("choose from: {}", known.join(", ")),
                )
            })
    }
}

/// One layer's cache: `k` and `v` are `[batch, capacity, kv_heads, head_dim]`, contiguous.
pub struct LayerCache {
    pub k: Tensor,
    pub v: Tensor,
    /// Counts the tensors for as long as they live, where an allocator does not.
    _claims: Vec<Claim>,
}

/// The cache of all layers; every sequence of a batch has the same length.
pub struct KvCache {
    pub layers: Vec<LayerCache>,
    capacity: usize,
    len: usize,
}

/// Sizes that determine a cache.
#[derive(Debug, Clone, Copy)]
pub struct KvShape {
    pub layers: usize,
    pub batch: usize,
    pub capacity: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvCache {
    /// An empty cache of `capacity` positions over these buffers.
    pub fn new(capacity: usize, layers: Vec<LayerCache>) -> Self {
        KvCache {
            layers,
            capacity,
            len: 0,
        }
    }

    /// Positions stored so far.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets everything; the buffers stay.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets what stands at `len` and after it.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes `tokens` positions, written by all layers, visible.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|l| 2 * l.k.elem_count() * l.k.dtype().size_in_bytes())
            .sum()
    }
}

impl LayerCache {
    /// Over tensors that the allocator counts.
    pub fn new(k: Tensor, v: Tensor) -> Self {
        LayerCache {
            k,
            v,
            _claims: vec![],
        }
    }

    /// Over device memory.
    pub fn of_buffers(k: Buffer, v: Buffer) -> Self {
        let ((k, k_claim), (v, v_claim)) = (k.into_parts(), v.into_parts());
        LayerCache {
            k,
            v,
            _claims: vec![k_claim, v_claim],
        }
    }

    /// Writes `k` and `v`, `[batch, tokens, kv_heads, head_dim]` F32, at position `at`.
    pub(super) fn append(&self, k: &Tensor, v: &Tensor, at: usize) -> Result<()> {
        let dtype = self.k.dtype();
        self.k.slice_set(&k.to_dtype(dtype)?.contiguous()?, 1, at)?;
        self.v.slice_set(&v.to_dtype(dtype)?.contiguous()?, 1, at)?;
        Ok(())
    }
}
