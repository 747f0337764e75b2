//! The GPU kernels of the model steps, executed by the emulation, against their definitions in
//! F64: odd shapes, ends of buffers, numbers that are none, and every order of threads.

mod activations;
mod attention;
mod fill;
mod gptq;
mod solver;
mod steps;

use crate::emulation::{Emulation, Guarded, Schedule};
use half::f16;

/// Numbers in [-1, 1), the same in every run.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|v| f16::from_f32(*v)).collect()
}

/// Random halves in [-factor, factor).
fn random_halves(count: usize, factor: f32, seed: u64) -> Vec<f16> {
    let scaled: Vec<f32> = numbers(count, seed).iter().map(|v| v * factor).collect();
    halves(&scaled)
}

/// What is compared bit by bit, so that NaN equals itself.
trait Bits: Copy {
    fn bits(self) -> u32;
}

macro_rules! bits {
    ($($t:ty: $x:ident => $bits:expr),*) => {
        $(impl Bits for $t {
            fn bits(self) -> u32 {
                let $x = self;
                $bits
            }
        })*
    };
}
bits!(f32: x => x.to_bits(), f16: x => x.to_bits().into(), u8: x => x.into(), i8: x => x as u32, u32: x => x);

fn same_bits<T: Bits>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bits() == b.bits())
}

/// The result of `run`, which must be the same to the bit in whatever order threads run.
fn on_every_schedule<T: Bits>(emulation: &Emulation, run: impl Fn() -> Vec<T>) -> Vec<T> {
    let [first, others @ ..] = &Schedule::ALL;
    emulation.schedule(*first);
    let result = run();
    for schedule in others {
        emulation.schedule(*schedule);
        assert!(
            same_bits(&run(), &result),
            "{schedule:?} gives another result"
        );
    }
    result
}

/// Panics unless a half is as near to the exact value as it can be, give or take `slack`.
#[track_caller]
fn assert_rounded(found: f16, exact: f64, slack: f64) {
    // Half a unit in the last place, subnormals included.
    let unit = exact.abs().max(f64::from(f16::MIN_POSITIVE)) / 2048.0;
    let error = (found.to_f64() - exact).abs();
    assert!(error <= 1.01 * unit + slack, "{found} is not {exact}");
}

/// A guarded copy of a result, so that tests can hand it on.
fn to_vec<T: Copy>(buffer: &Guarded<T>) -> Vec<T> {
    buffer.as_slice().to_vec()
}
