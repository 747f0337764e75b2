//! Puts a decoder together from tensors that someone hands out under their Hugging Face names:
//! a packed file, or a generator of random ones.

use super::config::Config;
use super::decoder::{Block, Decoder};
use super::kernels::Kernels;
use super::layout::{EMBEDDING, FINAL_NORM, HEAD, bias_name};
use super::linear::Linear;
use super::rope::Rope;
use crate::Result;
use crate::memory::{self, Part};
use crate::packed::{PackedLinear, dense::Dense};
use candle_core::Tensor;
use std::sync::Arc;

/// Hands out what a decoder is made of, each part once.
pub trait Parts {
    /// An F16 tensor of this shape: embedding, head, gain of a norm, bias of a module.
    fn half(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The packed weight of a module, `(n_out, k_in)`.
    fn weight(&self, module: &str, shape: (usize, usize)) -> Result<Box<dyn PackedLinear>>;
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
            rope: Rope::new(config, positions, |table| kernels.place(table))?,
            kernels: kernels.clone(),
        })
    })
}

fn block(config: &Config, layer: usize, parts: &dyn Parts) -> Result<Block> {
    Block::new(
        config,
        |row| {
            let (module, shape) = (row.module(layer), (row.shape)(config));
            let weight = memory::scope(Part::Weights, || parts.weight(&module, shape))?;
            let bias = (row.has_bias)(config).then(|| bias_name(&module));
            Ok(Linear {
                weight: weight.into(),
                bias: bias.map(|name| parts.half(&name, &[shape.0])).transpose()?,
            })
        },
        |row| parts.half(&row.tensor(layer), &[(row.width)(config)]),
    )
}
