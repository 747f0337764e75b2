//! Rotary position embedding tables (NeoX order: pairs `i, i + head_dim/2`).

use super::config::{Config, RopeScaling};
use super::kernels::Kernels;
use crate::{Result, memory};
use candle_core::{Device, Tensor};
use std::f64::consts::PI;

/// Cosines and sines, `[positions, head_dim / 2]` F32 each.
pub struct Rope {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rope {
    pub fn new(config: &Config, positions: usize, kernels: &dyn Kernels) -> Result<Self> {
        memory::scope(memory::Part::Other, || {
            let freqs = inverse_frequencies(config);
            let table = |f: fn(f64) -> f64| {
                let values: Vec<f32> = (0..positions)
                    .flat_map(|p| freqs.iter().map(move |w| f(p as f64 * w) as f32))
                    .collect();
                let table = Tensor::from_vec(values, (positions, freqs.len()), &Device::Cpu)?;
                kernels.place(table)
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

/// Whether two decoders of one head dimension turn pairs by the same angles, up to the rounding of
/// a file that states them in F32.
pub(super) fn same_angles(a: &Config, b: &Config) -> bool {
    let (a, b) = (inverse_frequencies(a), inverse_frequencies(b));
    a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * a)
}

/// Angle per position for each rotary pair, `[head_dim / 2]`.
///
/// The angles are rounded to F32 before they are multiplied by a position, as the reference
/// implementations do: at position 1000 the difference would show.
fn inverse_frequencies(config: &Config) -> Vec<f64> {
    let half = config.head_dim / 2;
    let base = |i: usize| {
        config
            .rope_theta
            .powf(-2.0 * i as f64 / config.head_dim as f64)
    };
    let scale = |i: usize| match &config.rope_scaling {
        RopeScaling::None => base(i),
        RopeScaling::Linear { factor } => base(i) / factor,
        RopeScaling::Factors(factors) => base(i) / factors.get(i).copied().map_or(1.0, f64::from),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let w = base(i);
            let original = *original_max_position_embeddings as f64;
            let turns = original * w / (2.0 * PI);
            if turns > *high_freq_factor {
                w
            } else if turns < *low_freq_factor {
                w / factor
            } else {
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * w / factor + smooth * w
            }
        }
    };
    (0..half).map(|i| f64::from(scale(i) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rope_scaling: RopeScaling) -> Config {
        Config {
            architecture: "llama".into(),
            hidden_size: 8,
            intermediate_size: 8,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 128,
            vocab_size: 8,
            max_position_embeddings: 131072,
            rms_norm_eps: 1e-5,
            rope_theta: 500000.0,
            rope_scaling,
            tied_head: true,
            qkv_bias: false,
            bos_token_id: None,
            eos_token_id: None,
        }
    }

    #[test]
    fn llama3_scaling_keeps_fast_pairs_and_slows_slow_ones() {
        let plain = inverse_frequencies(&config(RopeScaling::None));
        let scaled = inverse_frequencies(&config(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        }));
        // Wavelength below 8192/4 tokens: unchanged; above 8192: eight times slower.
        for (p, s) in plain.iter().zip(&scaled) {
            let wavelength = 2.0 * PI / p;
            if wavelength < 2048.0 {
                assert_eq!(p, s);
            } else if wavelength > 8192.0 {
                assert!((p / s - 8.0).abs() < 1e-5);
            } else {
                assert!(s < p && *s > p / 8.0);
            }
        }
        assert_eq!(plain[0], 1.0);
    }

    #[test]
    fn linear_scaling_and_factors_divide() {
        let plain = inverse_frequencies(&config(RopeScaling::None));
        let linear = inverse_frequencies(&config(RopeScaling::Linear { factor: 4.0 }));
        let factors = inverse_frequencies(&config(RopeScaling::Factors(vec![4.0; 64])));
        assert_eq!(linear, factors);
        assert!((plain[9] / linear[9] - 4.0).abs() < 1e-6);
    }
}
