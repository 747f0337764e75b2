//! The Llama-family decoder, written once over [`PackedLinear`]: RMSNorm, rotary attention with
//! grouped queries, SwiGLU. It knows no precision and no device.

use super::config::Config;
use super::kernels::{Kernels, Placing, Projected};
use super::kv_cache::{KvCache, KvPrecision, KvShape, LayerCache};
use super::layout::{self, Input, LinearRow, Norm, NormRow, Slot};
use super::linear::{Linear, with_f32};
use super::rope::Rope;
use crate::memory::{self, Part};
use crate::packed::PackedLinear;
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One decoder block: what [`layout`]'s tables say that it has.
#[derive(Clone)]
pub struct Block {
    /// In the order of [`Slot`].
    pub linears: Vec<Linear>,
    /// F16 vectors.
    pub gains: BTreeMap<Norm, Tensor>,
}

/// The parts of a model that every block needs.
pub struct Shared<'a> {
    pub config: &'a Config,
    pub rope: &'a Rope,
    pub kernels: &'a dyn Kernels,
    pub observer: Option<&'a dyn Observer>,
}

/// Sees what the linears of a block are given, on its way: the sums of calibration.
pub trait Observer {
    /// `x`, `[rows, k_in]` in the dtype of the activations, is about to be read by the linears of
    /// this input.
    fn observe(&self, input: Input, x: &Tensor) -> Result<()>;
}

impl Shared<'_> {
    fn observe(&self, input: Input, x: &Tensor) -> Result<()> {
        self.observer.map_or(Ok(()), |o| o.observe(input, x))
    }
}

impl Block {
    /// A block of what `linear` and `gain` hand out for the rows of the tables.
    pub fn new(
        config: &Config,
        mut linear: impl FnMut(&LinearRow) -> Result<Linear>,
        mut gain: impl FnMut(&NormRow) -> Result<Tensor>,
    ) -> Result<Self> {
        Ok(Block {
            linears: layout::linears().map(&mut linear).collect::<Result<_>>()?,
            gains: layout::norms(config)
                .map(|row| Ok((row.norm, gain(row)?)))
                .collect::<Result<_>>()?,
        })
    }

    /// Adds this block's contribution to the residual stream `x`, `[batch · tokens, hidden]` F32,
    /// sequence after sequence, whose first tokens stand at `position`; keys and values go into
    /// `cache`.
    pub fn forward(
        &self,
        x: Tensor,
        batch: usize,
        shared: &Shared,
        cache: &LayerCache,
        position: usize,
    ) -> Result<Tensor> {
        let (config, kernels) = (shared.config, shared.kernels);
        let placing = Placing {
            rope: shared.rope,
            batch,
            tokens: x.dim(0)? / batch,
            head_dim: config.head_dim,
            position,
        };
        let h = self.normalize(Norm::Attention, &x, shared)?;
        shared.observe(Input::Attention, &h)?;
        let [q, k, v] =
            outputs(kernels.linears(&[Slot::Q, Slot::K, Slot::V].map(|s| self.linear(s)), &h)?)?;
        drop(h);
        let attended = kernels.attend(Projected { q, k, v }, cache, &placing)?;
        shared.observe(Input::Attended, &attended)?;
        let x = kernels.add_linear(x, self.linear(Slot::O), &attended)?;
        drop(attended);

        let h = self.normalize(Norm::Mlp, &x, shared)?;
        shared.observe(Input::Mlp, &h)?;
        let [gate, up] =
            outputs(kernels.linears(&[Slot::Gate, Slot::Up].map(|s| self.linear(s)), &h)?)?;
        drop(h);
        let h = kernels.swiglu(gate, up)?;
        shared.observe(Input::Activated, &h)?;
        kernels.add_linear(x, self.linear(Slot::Down), &h)
    }

    pub fn linear(&self, slot: Slot) -> &Linear {
        &self.linears[slot as usize]
    }

    /// `x` after a norm; as it is where the family has no such norm.
    fn normalize(&self, norm: Norm, x: &Tensor, shared: &Shared) -> Result<Tensor> {
        let Some(gain) = self.gains.get(&norm) else {
            return Ok(x.clone());
        };
        let eps = shared.config.rms_norm_eps;
        shared.kernels.rms_norm(x, gain, eps)
    }
}

/// As many tensors as were asked for.
fn outputs<const N: usize>(tensors: Vec<Tensor>) -> Result<[Tensor; N]> {
    tensors.try_into().map_err(|t: Vec<Tensor>| {
        Error::defect(format!("a device gave {} outputs for {N} linears", t.len()))
    })
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
    pub kernels: Arc<dyn Kernels>,
}

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
        Ok(KvCache::new(self.kernels.kv_cache(shape, kv)?, capacity))
    }

    /// Final hidden states (normalized) of `ids`, `[batch, tokens]` U32, appended to `cache`:
    /// `[batch, tokens, hidden]`.
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
            let kernels = self.kernels.as_ref();
            let shared = Shared {
                config: &self.config,
                rope: &self.rope,
                kernels,
                observer: None,
            };
            kernels.seek(position)?;
            let mut x = kernels.embed(&self.embedding, ids)?;
            for (block, layer) in self.blocks.iter().zip(&cache.layers) {
                x = block.forward(x, batch, &shared, layer, position)?;
            }
            kernels.advance(tokens)?;
            cache.advance(tokens);
            let h = kernels.rms_norm(&x, &self.final_norm, self.config.rms_norm_eps)?;
            Ok(h.reshape((batch, tokens, self.config.hidden_size))?)
        })
    }

    /// Logits of normalized rows: `[rows, hidden]` → `[rows, vocab]`, F32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        memory::scope(Part::Activations, || {
            self.kernels.logits(self.head.as_ref(), hidden)
        })
    }

    /// Runs prompts, `[batch][tokens]` flattened, in chunks, and returns the logits of their last
    /// positions, `[batch, vocab]`.
    pub fn prefill(&self, ids: &[u32], batch: usize, cache: &mut KvCache) -> Result<Tensor> {
        let tokens = ids.len() / batch.max(1);
        let step = self.kernels.chunk_tokens(batch);
        let mut last = None;
        for start in (0..tokens).step_by(step) {
            let n = step.min(tokens - start);
            let chunk: Vec<u32> = ids
                .chunks_exact(tokens)
                .flat_map(|sequence| &sequence[start..start + n])
                .copied()
                .collect();
            // The chunk before is not needed any more: its memory is this one's.
            drop(last.take());
            last = Some(self.hidden(&self.kernels.ids(&chunk, batch)?, cache)?);
        }
        let hidden = last.ok_or_else(|| {
            Error::usage(
                "an empty prompt",
                "give at least one token (--prompt-tokens)",
            )
        })?;
        self.logits(&memory::scope(Part::Activations, || {
            self.kernels.last_rows(&hidden)
        })?)
    }

    /// One step: `ids` `[batch, 1]` → logits `[batch, vocab]`.
    pub fn step(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let batch = ids.dim(0)?;
        let hidden = self.hidden(ids, cache)?;
        self.logits(&hidden.reshape((batch, self.config.hidden_size))?)
    }

    /// Logits of every position of one sequence, handed to `sink(first_row, rows)` in pieces of
    /// at most [`Kernels::logit_rows`] rows of `vocab` values.
    pub fn score(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.score_after(0, ids, cache, sink)
    }

    /// [`Decoder::score`] of `ids` as they follow the first `kept` positions of the cache; what it
    /// holds beyond those is dropped first. Rows count from the first of `ids`.
    pub fn score_after(
        &self,
        kept: usize,
        ids: &[u32],
        cache: &mut KvCache,
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        cache.truncate(kept);
        let (tokens, logit_rows) = (self.kernels.chunk_tokens(1), self.kernels.logit_rows());
        for (c, chunk) in ids.chunks(tokens).enumerate() {
            let input = self.kernels.ids(chunk, 1)?;
            let hidden = self.hidden(&input, cache)?.squeeze(0)?;
            for start in (0..chunk.len()).step_by(logit_rows) {
                let rows = logit_rows.min(chunk.len() - start);
                let logits = self.logits(&hidden.narrow(0, start, rows)?.contiguous()?)?;
                let gpu = self.kernels.gpu();
                with_f32(&logits, gpu, |values| sink(c * tokens + start, values))?;
            }
        }
        Ok(())
    }
}

impl Decoder {
    /// Fills an emptied cache with `ids`, without their logits.
    pub fn read(&self, ids: &[u32], cache: &mut KvCache) -> Result<()> {
        cache.clear();
        for chunk in ids.chunks(self.kernels.chunk_tokens(1)) {
            self.hidden(&self.kernels.ids(chunk, 1)?, cache)?;
        }
        Ok(())
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
            .flat_map(|b| b.gains.values().map(size))
            .sum();
        let biases: usize = self.body().filter_map(|l| l.bias.as_ref()).map(size).sum();
        self.embedding.bytes() + head + norms + biases + size(&self.final_norm)
    }

    fn body(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|b| &b.linears)
    }
}
