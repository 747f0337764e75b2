//! Keys and values of past positions, preallocated for the length of the test.

pub mod format;
mod fp16;
mod fp32;

use crate::{Error, Result};
use candle_core::Tensor;
use format::{KvFormat, Stored};

/// Every format of a cache; the first is the default.
pub const KV_FORMATS: &[&dyn KvFormat] = &[&fp16::Fp16, &fp32::Fp32];

/// Precision of the cache: an axis of its own, independent of the weights. Keys and values may be
/// stored differently.
#[derive(Debug, Clone, Copy)]
pub struct KvPrecision {
    pub keys: &'static dyn KvFormat,
    pub values: &'static dyn KvFormat,
}

impl Default for KvPrecision {
    fn default() -> Self {
        KvPrecision::both(KV_FORMATS[0])
    }
}

impl KvPrecision {
    /// The precision with this id.
    pub fn parse(id: &str) -> Result<Self> {
        let format = KV_FORMATS.iter().find(|format| format.id() == id);
        let format = format.ok_or_else(|| {
            let known: Vec<_> = KV_FORMATS.iter().map(|format| format.id()).collect();
            Error::usage(
                format!("unknown KV cache precision `{id}`"),
                format!("choose from: {}", known.join(", ")),
            )
        })?;
        Ok(KvPrecision::both(*format))
    }

    fn both(format: &'static dyn KvFormat) -> Self {
        KvPrecision {
            keys: format,
            values: format,
        }
    }

    /// As many layers, keys and values each as `stored` makes them in a format.
    pub fn layers(
        &self,
        count: usize,
        stored: impl Fn(&'static dyn KvFormat) -> Result<Stored>,
    ) -> Result<Vec<LayerCache>> {
        let layer = |_| {
            Ok(LayerCache {
                k: stored(self.keys)?,
                v: stored(self.values)?,
            })
        };
        (0..count).map(layer).collect()
    }

    /// Bytes that one position of a layer takes.
    pub fn position_bytes(&self, kv_heads: usize, head_dim: usize) -> usize {
        let bytes = |format: &dyn KvFormat| format.position_bytes(kv_heads, head_dim);
        bytes(self.keys) + bytes(self.values)
    }
}

/// One layer's cache.
pub struct LayerCache {
    pub k: Stored,
    pub v: Stored,
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
    /// An empty cache over these layers, of `capacity` positions each.
    pub fn new(layers: Vec<LayerCache>, capacity: usize) -> Self {
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
        let layers = self.layers.iter();
        layers.map(|l| l.k.bytes() + l.v.bytes()).sum()
    }
}

impl LayerCache {
    /// Writes `k` and `v`, `[batch, tokens, kv_heads, head_dim]` F32, at position `at`.
    pub(super) fn append(&self, k: &Tensor, v: &Tensor, at: usize) -> Result<()> {
        self.k.append(k, at)?;
        self.v.append(v, at)
    }
}
