//! `fp16+ulp`: what "lossless" means for a model. FP16 weights with rounding-sized noise: each is
//! moved by −1, 0 or +1 unit in the last place, with equal odds and a fixed seed. Another
//! computer, another order of summation or another way to convert the checkpoint makes differences
//! of this kind, so a precision that is no further from FP16 than this cannot be told from it.
//!
//! The noise has a standard deviation of 0.82 units, 2.8 times that of rounding to FP16 itself
//! (uniform over one unit: 0.29). Zeros stay zeros, and no weight leaves the range of FP16.

use super::full::Full;
use super::{Family, Group, LayerStats, Listed, Matrix, Notes, QuantMethod};
use crate::Result;
use crate::packed::{FormatSpec, PackedLinear};
use candle_core::DType;
use half::f16;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ID: &str = "fp16+ulp";
const SEED: u64 = 16;
const EXACT: Full = Full { dtype: DType::F16 };

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: ID,
        about: "fp16 with noise of one unit in the last place: the noise floor of fp16",
    }],
    parse: |id| (id == ID).then(|| Ok(Box::new(UlpNoise) as Box<dyn QuantMethod>)),
};

/// FP16 with noise.
pub struct UlpNoise;

impl QuantMethod for UlpNoise {
    fn id(&self) -> String {
        ID.into()
    }

    fn method(&self) -> &'static str {
        "ulp"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        let mut parameters = EXACT.parameters();
        parameters.insert("noise_ulp".into(), json!([-1, 0, 1]));
        parameters.insert("seed".into(), json!(SEED));
        parameters
    }

    fn spec(&self) -> FormatSpec {
        EXACT.spec()
    }

    fn noise_floor_of(&self) -> Option<String> {
        Some(EXACT.id())
    }

    fn quantize(
        &self,
        group: &Group,
        stats: Option<&LayerStats>,
        notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        group.check(ID)?;
        let mut group = group.clone();
        for member in &mut group.members {
            disturb(&mut member.weight, &member.name);
        }
        EXACT.quantize(&group, stats, notes)
    }
}

/// Rounds to FP16 and moves. The noise depends on the seed and the module's name alone.
fn disturb(weight: &mut Matrix, module: &str) {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    rng.set_stream(fnv1a(module));
    for w in &mut weight.data {
        let rounded = f16::from_f32(*w);
        let toss = rng.next_u32() % 3;
        // What FP16 cannot hold is refused by the caller, as it was given.
        if rounded.is_finite() && rounded != f16::ZERO {
            *w = moved(rounded, toss).to_f32();
        }
    }
}

/// One unit towards zero, none, or one away from it.
fn moved(w: f16, toss: u32) -> f16 {
    let bits = match toss {
        0 => w.to_bits() - 1,
        1 => w.to_bits(),
        _ => w.to_bits() + 1,
    };
    let moved = f16::from_bits(bits);
    if moved.is_finite() { moved } else { w }
}

/// The 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_moves_by_a_unit_at_most_and_all_three_ways_occur() {
        let (rows, cols) = (3, 1000);
        let data: Vec<f32> = (0..rows * cols)
            .map(|i| (i as f32 - 1499.5) * 1e-3)
            .collect();
        let mut weight = Matrix { rows, cols, data };
        let before: Vec<i32> = bits(&weight);
        disturb(&mut weight, "a");
        let moves: Vec<i32> = bits(&weight)
            .iter()
            .zip(&before)
            .map(|(a, b)| a - b)
            .collect();
        for way in [-1, 0, 1] {
            let share = moves.iter().filter(|m| **m == way).count() as f64 / moves.len() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.05, "{way}: {share}");
        }
        assert!(moves.iter().all(|m| m.abs() <= 1));
        let mut other = weight.clone();
        disturb(&mut other, "b");
        assert_ne!(other, weight);
    }

    fn bits(weight: &Matrix) -> Vec<i32> {
        let bits = |w: &f32| i32::from(f16::from_f32(*w).to_bits());
        weight.data.iter().map(bits).collect()
    }

    #[test]
    fn zeros_and_the_ends_of_the_range_stay() {
        for toss in 0..3 {
            for w in [f16::MAX, f16::MIN, f16::MIN_POSITIVE_SUBNORMAL] {
                assert!(moved(w, toss).is_finite());
                assert!(moved(w, toss).to_f32().abs() <= f16::MAX.to_f32());
            }
        }
        let data = vec![0.0, -0.0, 1e-30, 65504.0];
        let (rows, cols) = (1, 4);
        let mut weight = Matrix { rows, cols, data };
        disturb(&mut weight, "a");
        assert_eq!(weight.data[..3], [0.0, -0.0, 1e-30]);
        assert!(weight.data[3] <= 65504.0);
    }
}
