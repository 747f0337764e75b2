//! The steps of a decoder on a device: what [`super::decoder`] is written over, besides the
//! packed products. [`CpuKernels`] is here, [`super::gpu::GpuKernels`] beside it.

use super::attention::attend;
use super::kv_cache::format::Stored;
use super::kv_cache::{KvPrecision, KvShape, LayerCache};
use super::linear::{Linear, with_f32};
use super::rope::Rope;
use super::swiglu::SwiGlu;
use crate::Result;
use crate::device::{Gpu, Graph};
use crate::memory::{self, Part};
use crate::packed::PackedLinear;
use crate::packed::dense::Dense;
use crate::packed::random::{self, Untrained};
use candle_core::{DType, Device, Tensor};

/// Queries, keys and values of one layer as the linears gave them: `[batch · tokens, width]`.
pub struct Projected {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// Sizes and place of one call of attention.
pub struct Placing<'a> {
    pub rope: &'a Rope,
    pub batch: usize,
    pub tokens: usize,
    pub head_dim: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
}

/// The steps of a decoder. Rows are tokens, sequence after sequence.
///
/// The residual stream is F32 `[rows, hidden]` on every device; the other activations have the
/// dtype that [`Kernels::activation_dtype`] names. A device may keep one buffer per step: what a
/// step returns is to be read before the same step runs again.
pub trait Kernels: Send + Sync {
    /// Where weights, caches and activations live.
    fn device(&self) -> &Device;

    /// The GPU behind it, where there is one.
    fn gpu(&self) -> Option<&Gpu> {
        None
    }

    /// Dtype of the inputs of the linears.
    fn activation_dtype(&self) -> DType;

    /// Tokens of each of `batch` sequences to run at a time: bounds activations.
    fn chunk_tokens(&self, batch: usize) -> usize;

    /// Rows of logits to make at a time: bounds them for large vocabularies.
    fn logit_rows(&self) -> usize;

    /// Name of the kernel that runs `weight` for this many rows.
    fn product_name(&self, weight: &dyn PackedLinear, rows: usize) -> String;

    /// A tensor with this content on the device, counted under the current part.
    fn upload(&self, bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor>;

    /// A tensor of the CPU on the device, counted under the current part.
    fn place(&self, tensor: Tensor) -> Result<Tensor>;

    /// A tensor of random or constant content, made on the device; counted under the current part.
    fn fill(&self, what: &Untrained, seed: u64) -> Result<Tensor>;

    /// Room for every layer's keys and values, counted as KV cache while it lives.
    fn kv_cache(&self, shape: KvShape, precision: KvPrecision) -> Result<Vec<LayerCache>>;

    /// Token ids, sequence after sequence, as [`Kernels::embed`] takes them: `[batch, tokens]` U32.
    fn ids(&self, ids: &[u32], batch: usize) -> Result<Tensor>;

    /// Announces tokens that stand at `position` and after it.
    fn seek(&self, position: usize) -> Result<()>;

    /// Ends a pass over `tokens` tokens per sequence.
    fn advance(&self, tokens: usize) -> Result<()>;

    /// The rows of the table: a fresh residual stream.
    fn embed(&self, table: &Dense, ids: &Tensor) -> Result<Tensor>;

    /// `x / sqrt(mean(x²) + eps) · gain` per row.
    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor>;

    /// What up to three linears make of one input `[rows, k_in]`: `[rows, n_out]` each.
    fn linears(&self, linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>>;

    /// The residual stream `x` plus what the linear makes of `h`.
    fn add_linear(&self, x: Tensor, linear: &Linear, h: &Tensor) -> Result<Tensor>;

    /// Turns queries and keys, stores keys and values, and attends: `[rows, heads · head_dim]`.
    fn attend(&self, qkv: Projected, cache: &LayerCache, placing: &Placing) -> Result<Tensor>;

    /// `silu(gate) · up`.
    fn swiglu(&self, gate: Tensor, up: Tensor) -> Result<Tensor>;

    /// The last row of each sequence: `[batch, tokens, hidden]` → `[batch, hidden]`.
    fn last_rows(&self, h: &Tensor) -> Result<Tensor>;

    /// Logits `[rows, vocab]` F32 of normalized rows.
    fn logits(&self, head: &dyn PackedLinear, h: &Tensor) -> Result<Tensor>;

    /// The most probable token of each row, the lowest of equals: the next input, `[rows, 1]`.
    fn greedy(&self, logits: &Tensor) -> Result<Tensor>;

    /// Records the steps that `body` takes, to be run again without their launch cost; nothing
    /// where the device has no such thing or the user does not want it.
    ///
    /// # Errors
    /// A body that does what cannot be recorded, such as allocating.
    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>>;

    /// Waits until everything has been done.
    fn synchronize(&self) -> Result<()>;
}

/// The CPU: F32 activations, F32 accumulation.
pub struct CpuKernels;

impl CpuKernels {
    fn linear(linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let y = linear.weight.forward(x)?;
        match &linear.bias {
            Some(bias) => Ok(y.broadcast_add(&bias.to_dtype(DType::F32)?)?),
            None => Ok(y),
        }
    }
}

impl Kernels for CpuKernels {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn activation_dtype(&self) -> DType {
        DType::F32
    }

    fn chunk_tokens(&self, _batch: usize) -> usize {
        256
    }

    fn logit_rows(&self) -> usize {
        32
    }

    fn product_name(&self, weight: &dyn PackedLinear, rows: usize) -> String {
        weight.kernel(rows)
    }

    fn upload(&self, bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?)
    }

    fn place(&self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }

    fn fill(&self, what: &Untrained, seed: u64) -> Result<Tensor> {
        random::on_cpu(what, seed)
    }

    fn kv_cache(&self, shape: KvShape, precision: KvPrecision) -> Result<Vec<LayerCache>> {
        let dims = (shape.batch, shape.capacity, shape.kv_heads, shape.head_dim);
        memory::scope(Part::KvCache, || {
            precision.layers(shape.layers, |format| {
                let zeros = Tensor::zeros(dims, format.dtype(), &Device::Cpu)?;
                Ok(Stored::new(format, zeros))
            })
        })
    }

    fn ids(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        let dims = (batch, ids.len() / batch.max(1));
        memory::scope(Part::Other, || {
            Ok(Tensor::from_slice(ids, dims, &Device::Cpu)?)
        })
    }

    fn seek(&self, _position: usize) -> Result<()> {
        Ok(())
    }

    fn advance(&self, _tokens: usize) -> Result<()> {
        Ok(())
    }

    fn embed(&self, table: &Dense, ids: &Tensor) -> Result<Tensor> {
        let rows = table.codes().index_select(&ids.flatten_all()?, 0)?;
        Ok(rows.to_dtype(DType::F32)?)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        let gain = gain.to_dtype(DType::F32)?;
        Ok(candle_nn::ops::rms_norm(x, &gain, eps as f32)?)
    }

    fn linears(&self, linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        linears.iter().map(|l| Self::linear(l, x)).collect()
    }

    fn add_linear(&self, x: Tensor, linear: &Linear, h: &Tensor) -> Result<Tensor> {
        Ok((x + Self::linear(linear, h)?)?)
    }

    fn attend(&self, qkv: Projected, cache: &LayerCache, placing: &Placing) -> Result<Tensor> {
        let Placing { rope, position, .. } = *placing;
        let (batch, tokens, head_dim) = (placing.batch, placing.tokens, placing.head_dim);
        let heads = |y: Tensor| {
            let n = y.dim(1)? / head_dim;
            y.reshape((batch, tokens, n, head_dim))
        };
        let q = rope.rotate(&heads(qkv.q)?, position)?;
        let k = rope.rotate(&heads(qkv.k)?, position)?;
        let v = heads(qkv.v)?;
        cache.append(&k, &v, position)?;
        drop((k, v));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attended = attend(&q, cache, position, scale)?;
        Ok(attended.reshape((batch * tokens, ()))?)
    }

    fn swiglu(&self, gate: Tensor, up: Tensor) -> Result<Tensor> {
        Ok(gate.apply_op2_no_bwd(&up, &SwiGlu)?)
    }

    fn last_rows(&self, h: &Tensor) -> Result<Tensor> {
        let (batch, tokens, hidden) = h.dims3()?;
        let last = h.narrow(1, tokens - 1, 1)?.contiguous()?;
        Ok(last.reshape((batch, hidden))?)
    }

    fn logits(&self, head: &dyn PackedLinear, h: &Tensor) -> Result<Tensor> {
        head.forward(h)
    }

    fn greedy(&self, logits: &Tensor) -> Result<Tensor> {
        let (batch, vocab) = logits.dims2()?;
        let best: Vec<u32> = with_f32(logits, None, |values| {
            Ok(values.chunks_exact(vocab).map(argmax).collect())
        })?;
        self.ids(&best, batch)
    }

    fn record(&self, _body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        Ok(None)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as u32
}
