//! The angles by which rotary positions turn, and how families scale them.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Rotary position scaling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    None,
    /// Positions divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent scaling.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// One divisor per rotary pair, `[head_dim / 2]`, as GGUF's `rope_freqs.weight` gives it.
    Factors(Vec<f32>),
}

/// What determines the angles of a head.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    pub head_dim: usize,
    pub theta: f64,
    pub scaling: &'a RopeScaling,
}

/// Whether two decoders of one head dimension turn pairs by the same angles, up to the rounding of
/// a file that states them in F32.
pub(super) fn same_angles(a: Angles, b: Angles) -> bool {
    let (a, b) = (inverse_frequencies(a), inverse_frequencies(b));
    a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * a)
}

/// Angle per position for each rotary pair, `[head_dim / 2]`.
///
/// The angles are rounded to F32 before they are multiplied by a position, as the reference
/// implementations do: at position 1000 the difference would show.
pub(super) fn inverse_frequencies(angles: Angles) -> Vec<f64> {
    let Angles {
        head_dim,
        theta,
        scaling,
    } = angles;
    let base = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
    let scale = |i: usize| match scaling {
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
    (0..head_dim / 2)
        .map(|i| f64::from(scale(i) as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling) -> Vec<f64> {
        inverse_frequencies(Angles {
            head_dim: 128,
            theta: 500000.0,
            scaling: &scaling,
        })
    }

    #[test]
    fn llama3_scaling_keeps_fast_pairs_and_slows_slow_ones() {
        let plain = frequencies(RopeScaling::None);
        let scaled = frequencies(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
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
        let plain = frequencies(RopeScaling::None);
        let linear = frequencies(RopeScaling::Linear { factor: 4.0 });
        let factors = frequencies(RopeScaling::Factors(vec![4.0; 64]));
        assert_eq!(linear, factors);
        assert!((plain[9] / linear[9] - 4.0).abs() < 1e-6);
    }
}
