//! The Llama-family decoder, written once over [`PackedLinear`]: RMSNorm, rotary attention with
//! grouped queries, SwiGLU. It knows no precision and no device.

use super::attention::Attention;
use super::config::Config;
use super::kv_cache::{KvCache, KvPrecision, KvShape, LayerCache};
use super::rope::Rope;
use super::swiglu::SwiGlu;
use crate::memory::{self, Part};
use crate::packed::PackedLinear;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// A linear of a block: packed weight and, for some families, a bias `[n_out]` (F16).
#[derive(Clone)]
pub struct Linear {
    pub weight: Arc<dyn PackedLinear>,
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[rows, k_in]` → `[rows, n_out]`, F32.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(&bias.to_dtype(DType::F32)?)?),
            None => Ok(y),
        }
    }
}

/// One decoder block. Norm gains are `[hidden]` F16.
#[derive(Clone)]
pub struct Block {
    pub attention_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub mlp_norm: Tensor,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// The parts of a model that every block needs.
pub struct Shared<'a> {
    pub config: &'a Config,
    pub rope: &'a Rope,
}

impl Block {
    /// Adds this block's contribution to the residual stream `x`, `[batch, tokens, hidden]` F32,
    /// whose first token stands at `position`; keys and values go into `cache`.
    pub fn forward(
        &self,
        x: &Tensor,
        shared: &Shared,
        cache: &LayerCache,
        position: usize,
    ) -> Result<Tensor> {
        let config = shared.config;
        let (batch, tokens, hidden) = x.dims3()?;
        let rows = batch * tokens;
        let x = x.reshape((rows, hidden))?;

        let h = rms_norm(&x, &self.attention_norm, config.rms_norm_eps)?;
        let heads = |y: Tensor, n: usize| y.reshape((batch, tokens, n, config.head_dim));
        let q = heads(self.q.forward(&h)?, config.heads)?;
        let k = heads(self.k.forward(&h)?, config.kv_heads)?;
        let v = heads(self.v.forward(&h)?, config.kv_heads)?;
        drop(h);
        let q = shared.rope.rotate(&q, position)?;
        let k = shared.rope.rotate(&k, position)?;
        cache.append(&k, &v, position)?;
        drop((k, v));
        let attended = q.apply_op3_no_bwd(
            &cache.k,
            &cache.v,
            &Attention {
                position,
                scale: 1.0 / (config.head_dim as f32).sqrt(),
            },
        )?;
        drop(q);
        let attended = attended.reshape((rows, config.heads * config.head_dim))?;
        let x = (x + self.o.forward(&attended)?)?;
        drop(attended);

        let h = rms_norm(&x, &self.mlp_norm, config.rms_norm_eps)?;
        let gate = self.gate.forward(&h)?;
        let up = self.up.forward(&h)?;
        drop(h);
        let h = gate.apply_op2_no_bwd(&up, &SwiGlu)?;
        drop((gate, up));
        let x = (x + self.down.forward(&h)?)?;
        Ok(x.reshape((batch, tokens, hidden))?)
    }

    /// The seven linears in a fixed order.
    pub fn linears(&self) -> [&Linear; 7] {
        [
            &self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down,
        ]
    }
}

/// `x / sqrt(mean(x²) + eps) * gain`, per row.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let gain = gain.to_dtype(x.dtype())?;
    Ok(candle_nn::ops::rms_norm(x, &gain, eps as f32)?)
}

/// A whole model, ready to run.
pub struct Decoder {
    pub config: Config,
    /// `[vocab, hidden]`; serves as the head too where that is tied.
    pub embedding: Arc<crate::packed::dense::Dense>,
    pub head: Arc<dyn PackedLinear>,
    pub final_norm: Tensor,
    pub blocks: Vec<Block>,
    pub rope: Rope,
    pub device: Device,
}

/// Tokens per prefill step: bounds activations whatever the prompt's length.
pub const PREFILL_CHUNK: usize = 256;

/// Rows of logits made at a time when every position is scored: bounds them for large
/// vocabularies.
pub const LOGIT_ROWS: usize = 32;

impl Decoder {
    /// A cache for `batch` sequences of up to `capacity` positions.
    pub fn cache(&self, batch: usize, capacity: usize, kv: KvPrecision) -> Result<KvCache> {
        if capacity > self.rope.positions() {
            return Err(Error::usage(
                format!(
                    "a context of {capacity} tokens is longer than the {} positions the model was loaded for",
                    self.rope.positions()
                ),
                "use a shorter --window, --prompt-tokens or --gen-tokens",
            ));
        }
        let shape = KvShape {
            layers: self.blocks.len(),
            batch,
            capacity,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
        };
        KvCache::new(shape, kv, &self.device)
    }

    /// Final hidden states (normalized) of `ids`, `[batch, tokens]` U32, appended to `cache`:
    /// `[batch, tokens, hidden]` F32.
    ///
    /// Runs `ids` in one piece; callers with many tokens go through [`Decoder::prefill`] or
    /// [`Decoder::score`].
    pub fn hidden(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        memory::scope(Part::Activations, || {
            let (batch, tokens) = ids.dims2()?;
            let position = cache.len();
            if position + tokens > cache.capacity() {
                return Err(Error::usage(
                    format!(
                        "{} tokens do not fit a KV cache of {} positions",
                        position + tokens,
                        cache.capacity()
                    ),
                    "ask for a longer cache",
                ));
            }
            let shared = Shared {
                config: &self.config,
                rope: &self.rope,
            };
            let mut x = self.embed(ids)?;
            for (block, layer) in self.blocks.iter().zip(&cache.layers) {
                x = block.forward(&x, &shared, layer, position)?;
            }
            cache.advance(tokens);
            let x = x.reshape((batch * tokens, self.config.hidden_size))?;
            let x = rms_norm(&x, &self.final_norm, self.config.rms_norm_eps)?;
            Ok(x.reshape((batch, tokens, self.config.hidden_size))?)
        })
    }

    /// Rows of the embedding, `[batch, tokens, hidden]` F32.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let rows = self
            .embedding
            .codes()
            .index_select(&ids.flatten_all()?, 0)?
            .to_dtype(DType::F32)?;
        Ok(rows.reshape((batch, tokens, self.config.hidden_size))?)
    }

    /// Logits of hidden rows: `[rows, hidden]` → `[rows, vocab]`, F32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        memory::scope(Part::Activations, || self.head.forward(hidden))
    }

    /// Runs a prompt, `[batch, tokens]`, in chunks, and returns the logits of its last position,
    /// `[batch, vocab]`.
    pub fn prefill(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let mut last = None;
        for start in (0..tokens).step_by(PREFILL_CHUNK) {
            let n = PREFILL_CHUNK.min(tokens - start);
            let chunk = ids.narrow(1, start, n)?.contiguous()?;
            last = Some((self.hidden(&chunk, cache)?, n));
        }
        let (hidden, n) = last.ok_or_else(|| {
            Error::usage(
                "an empty prompt",
                "give at least one token (--prompt-tokens)",
            )
        })?;
        let hidden = memory::scope(Part::Activations, || {
            hidden
                .narrow(1, n - 1, 1)?
                .reshape((batch, self.config.hidden_size))
        })?;
        self.logits(&hidden)
    }

    /// One step: `ids` `[batch, 1]` → logits `[batch, vocab]`.
    pub fn step(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let batch = ids.dim(0)?;
        let hidden = self.hidden(ids, cache)?;
        self.logits(&hidden.reshape((batch, self.config.hidden_size))?)
    }

    /// Logits of every position of one sequence, handed to `sink(first_row, rows)` in pieces of
    /// at most [`LOGIT_ROWS`] rows of `vocab` values.
    pub fn score(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        cache.clear();
        for (c, chunk) in ids.chunks(PREFILL_CHUNK).enumerate() {
            let input = memory::scope(Part::Other, || {
                Tensor::from_slice(chunk, (1, chunk.len()), &self.device)
            })?;
            let hidden = self.hidden(&input, cache)?.squeeze(0)?;
            for start in (0..chunk.len()).step_by(LOGIT_ROWS) {
                let rows = LOGIT_ROWS.min(chunk.len() - start);
                let logits = self.logits(&hidden.narrow(0, start, rows)?.contiguous()?)?;
                with_f32(&logits, |values| sink(c * PREFILL_CHUNK + start, values))?;
            }
        }
        Ok(())
    }
}

/// Hands a contiguous F32 tensor's values to `f` without a copy on the CPU.
pub fn with_f32<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let cpu = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = cpu.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => {
            let start = layout.start_offset();
            f(&storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()])
        }
        _ => unreachable!("the tensor was moved to the CPU"),
    }
}

impl Decoder {
    /// Bytes of all packed linears of the blocks: codes, scales, zeros, padding.
    pub fn body_bytes(&self) -> usize {
        self.body().map(|l| l.weight.bytes()).sum()
    }

    /// Weights of the blocks' linears.
    pub fn body_weights(&self) -> usize {
        self.body()
            .map(|l| l.weight.shape())
            .map(|(n, k)| n * k)
            .sum()
    }

    /// Stored bits per weight of the blocks' linears, scales and padding included; embedding,
    /// head, norms and biases are counted apart.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.body_bytes() as f64 / self.body_weights() as f64
    }

    /// Bytes of embedding, head (where it is its own), norms and biases.
    pub fn embedding_bytes(&self) -> usize {
        let size = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let head = if self.config.tied_head {
            0
        } else {
            self.head.bytes()
        };
        let norms: usize = self
            .blocks
            .iter()
            .map(|b| size(&b.attention_norm) + size(&b.mlp_norm))
            .sum();
        let biases: usize = self.body().filter_map(|l| l.bias.as_ref()).map(size).sum();
        self.embedding.bytes() + head + norms + biases + size(&self.final_norm)
    }

    fn body(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|b| b.linears())
    }
}
