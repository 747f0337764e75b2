//! What an instruction set can do at most: multiply-adds that never leave the registers, and a
//! stream of loads that feeds nothing. Products are judged by these.

use super::isa::Isa;

/// Numbers that [`multiply_adds`] starts from: three vectors of the widest instruction set.
pub const OPERANDS: usize = 48;

/// `rounds` multiply-adds in each of several independent chains, so that the latency of one is
/// hidden behind the others. Returns a number that depends on every one of them, and how many
/// F32 operations they were (a multiplication and an addition are two).
///
/// # Safety
/// The instructions of `S` are there.
#[inline(always)]
pub unsafe fn multiply_adds<S: Isa>(rounds: usize, operands: &[f32; OPERANDS]) -> (f32, f64) {
    // SAFETY: passed on.
    unsafe {
        match S::TILE_INPUTS {
            // A vector of plain Rust takes two registers of sixteen: more chains do not fit.
            2 => chains::<S, 4>(rounds, operands),
            _ => chains::<S, 12>(rounds, operands),
        }
    }
}

#[inline(always)]
unsafe fn chains<S: Isa, const N: usize>(rounds: usize, operands: &[f32; OPERANDS]) -> (f32, f64) {
    // SAFETY: three vectors of at most 16 numbers lie inside `operands`.
    unsafe {
        let at = |i: usize| S::f32(operands.as_ptr().add(i * S::LANES));
        let (factor, term) = (at(1), at(2));
        let mut acc = [at(0); N];
        for _ in 0..rounds {
            // The chain runs through the multiplication too: a product of constants would be
            // computed once, before the loop.
            for a in &mut acc {
                *a = S::fma(*a, factor, term);
            }
        }
        let total = acc.into_iter().fold(S::zero(), |sum, a| S::add(sum, a));
        let flop = 2.0 * (rounds * N * S::LANES) as f64;
        (S::sums([total; 4])[0], flop)
    }
}

/// Streams that [`read`] follows side by side, as the kernels do with their four weight rows.
const STREAMS: usize = 4;

/// Vectors that [`read`] loads per turn from each stream.
const UNROLL: usize = 4;

/// Bytes that [`read`] asks for ahead of their use, as the kernels do.
const AHEAD: usize = 8 << 10;

/// Loads all of `data` but a tail shorter than a turn, in whole vectors, and returns their sum.
///
/// # Safety
/// The instructions of `S` are there.
#[inline(always)]
pub unsafe fn read<S: Isa>(data: &[f32]) -> f32 {
    let turn = UNROLL * S::LANES;
    let len = data.len() / STREAMS / turn * turn;
    // SAFETY: stream `s` covers `s * len..(s + 1) * len`; prefetching any address is harmless.
    unsafe {
        let mut acc = [S::zero(); STREAMS];
        let mut i = 0;
        while i < len {
            for (s, acc) in acc.iter_mut().enumerate() {
                for u in 0..UNROLL {
                    let p = data.as_ptr().add(s * len + i + u * S::LANES);
                    // Once for every 64 bytes.
                    if (u * S::LANES).is_multiple_of(16) {
                        S::prefetch(p.cast::<u8>().wrapping_add(AHEAD));
                    }
                    *acc = S::add(*acc, S::f32(p));
                }
            }
            i += turn;
        }
        S::sums(acc).into_iter().sum()
    }
}
