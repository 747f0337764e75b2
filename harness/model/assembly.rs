//! Puts a decoder together from tensors that someone hands out under their Hugging Face names:
//! a packed file, or a generator of random ones.

use super::config::Config;
use super::decoder::{Block, Decoder, Linear};
use super::kernels::Kernels;
use super::layout::{ATTENTION_NORM, EMBEDDING, FINAL_NORM, HEAD, MLP_NORM, module, weight_name};
use super::rope::Rope;
use crate::Result;
use crate::memory::{self, Part};
use crate::packed::{PackedLinear, dense::Dense};
use candle_core::Tensor;
use std::sync::Arc;

/// Hands out what a decoder is made of, each part once.
pub trait Parts {
    /// An F16 tensor of this shape: embedding, head, gain of a norm.
    fn half(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The packed weight of a module, `(n_out, k_in)`.
    fn weight(&self, module: &str, shape: (usize, usize)) -> Result<Box<dyn PackedLinear>>;

    /// The bias of a module, F16 `[n_out]`, where it has one.
    fn bias(&self, module: &str, n_out: usize) -> Result<Option<Tensor>>;
}

/// A decoder of these parts, with RoPE tables for `positions`. Allocations are counted as weights (packed linears), embeddings (F16 tensors) and other (tables).
pub fn decoder(
    config: &Config,
    positions: usize,
    kernels: &Arc<dyn Kernels>,
    parts: &dyn Parts,
) -> Result<Decoder> {
    memory::scope(Part::Embeddings, || {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = Arc::new(Dense::from_tensor(
            parts.half(EMBEDDING, &[vocab, hidden])?,
        )?);
        let head: Arc<dyn PackedLinear> = if config.tied_head {
            embedding.clone()
        } else {
            Arc::new(Dense::from_tensor(parts.half(HEAD, &[vocab, hidden])?)?)
        };
        let blocks = (0..config.layers)
            .map(|layer| block(config, layer, parts))
            .collect::<Result<_>>()?;
        Ok(Decoder {
            config: config.clone(),
            embedding,
            head,
            final_norm: parts.half(FINAL_NORM, &[hidden])?,
            blocks,
            rope: Rope::new(config, positions, kernels.as_ref())?,
            kernels: kernels.clone(),
        })
    })
}

fn block(config: &Config, layer: usize, parts: &dyn Parts) -> Result<Block> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let q_width = config.heads * config.head_dim;
    let kv_width = config.kv_heads * config.head_dim;
    let linear = |name: &str, shape: (usize, usize)| {
        let module = module(layer, name);
        let weight = memory::scope(Part::Weights, || parts.weight(&module, shape))?;
        Ok::<_, crate::Error>(Linear {
            weight: weight.into(),
            bias: parts.bias(&module, shape.0)?,
        })
    };
    let norm = |name: &str| parts.half(&weight_name(&module(layer, name)), &[hidden]);
    Ok(Block {
        attention_norm: norm(ATTENTION_NORM)?,
        q: linear("self_attn.q_proj", (q_width, hidden))?,
        k: linear("self_attn.k_proj", (kv_width, hidden))?,
        v: linear("self_attn.v_proj", (kv_width, hidden))?,
        o: linear("self_attn.o_proj", (hidden, q_width))?,
        mlp_norm: norm(MLP_NORM)?,
        gate: linear("mlp.gate_proj", (ffn, hidden))?,
        up: linear("mlp.up_proj", (ffn, hidden))?,
        down: linear("mlp.down_proj", (hidden, ffn))?,
    })
}
