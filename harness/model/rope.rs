//! Rotary position embedding tables (NeoX order: pairs `i, i + head_dim/2`).

use super::angles::inverse_frequencies;
use super::config::Config;
use crate::{Result, memory};
use candle_core::{Device, Tensor};

/// Cosines and sines, `[positions, head_dim / 2]` F32 each.
pub struct Rope {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rope {
    /// Tables for `positions`, which `place` takes from the CPU to where they are used.
    pub fn new(
        config: &Config,
        positions: usize,
        place: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        memory::scope(memory::Part::Other, || {
            let freqs = inverse_frequencies(config.angles());
            let table = |f: fn(f64) -> f64| {
                let values: Vec<f32> = (0..positions)
                    .flat_map(|p| freqs.iter().map(move |w| f(p as f64 * w) as f32))
                    .collect();
                let table = Tensor::from_vec(values, (positions, freqs.len()), &Device::Cpu)?;
                place(table)
            };
            Ok(Rope {
                cos: table(f64::cos)?,
                sin: table(f64::sin)?,
            })
        })
    }

    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }

    pub fn bytes(&self) -> usize {
        4 * (self.cos.elem_count() + self.sin.elem_count())
    }

    /// Rotates `x`, `[batch, tokens, heads, head_dim]`, whose first token stands at `position`.
    pub(super) fn rotate(&self, x: &Tensor, position: usize) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        let cos = self.cos.narrow(0, position, tokens)?;
        let sin = self.sin.narrow(0, position, tokens)?;
        Ok(candle_nn::rotary_emb::rope_thd(
            &x.contiguous()?,
            &cos,
            &sin,
        )?)
    }
}
