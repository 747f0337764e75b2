//! Plain Rust on arrays of eight numbers: runs everywhere, and is the kernel of CPUs without
//! AVX2. The compiler turns the loops into whatever vectors the target has.

// Element-wise loops over two arrays read best with an index.
#![allow(clippy::needless_range_loop)]

use super::isa::{Dot, Isa, word};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub struct Portable;

const LANES: usize = 8;

// SAFETY: no instruction beyond the target's own is used; every function reads or writes exactly
// the elements that `Isa` names.
impl Isa for Portable {
    const LANES: usize = LANES;
    const TILE_INPUTS: usize = 2;
    const FUSED_INPUTS: usize = 2;
    type V = [f32; LANES];
    /// `(zero, scale)`.
    type Levels = (f32, f32);

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..LANES {
            // Not `mul_add`: without the instruction it is a library call per number.
            c[i] += a[i] * b[i];
        }
        c
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, mut b: Self::V) -> Self::V {
        for i in 0..LANES {
            b[i] += a[i];
        }
        b
    }

    #[inline(always)]
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4] {
        v.map(|v| ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])))
    }

    #[inline(always)]
    fn prefetch(_p: *const u8) {}

    #[inline(always)]
    unsafe fn f32(p: *const f32) -> Self::V {
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn f32_first(p: *const f32, count: usize) -> Self::V {
        let mut v = [0.0; LANES];
        for (i, v) in v.iter_mut().enumerate().take(count) {
            *v = unsafe { p.add(i).read() };
        }
        v
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn f16(p: *const u16) -> Self::V {
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }

    #[inline(always)]
    unsafe fn bf16(p: *const u16) -> Self::V {
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| bf16::from_bits(b).to_f32())
    }

    #[inline(always)]
    unsafe fn i8(p: *const u8) -> Self::V {
        let bytes = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        bytes.map(f32::from)
    }

    #[inline(always)]
    unsafe fn e4m3(p: *const u8) -> Self::V {
        let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        bytes.map(|b| {
            let b = b as u16;
            f16::from_bits((b & 0x80) << 8 | (b & 0x7f) << 7).to_f32()
        })
    }

    #[inline(always)]
    unsafe fn e5m2(p: *const u8) -> Self::V {
        let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        bytes.map(|b| f16::from_bits((b as u16) << 8).to_f32())
    }

    #[inline(always)]
    unsafe fn scalar_f16(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }

    #[inline(always)]
    unsafe fn levels<const BITS: usize>(zero: u8, scale: u16) -> Self::Levels {
        (zero as f32, f16::from_bits(scale).to_f32())
    }

    #[inline(always)]
    unsafe fn codes<const BITS: usize>(p: *const u8, (zero, scale): Self::Levels) -> Self::V {
        let mut v = [0.0; LANES];
        if BITS == 8 {
            let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
            for i in 0..LANES {
                v[i] = (bytes[i] as f32 - zero) * scale;
            }
        } else {
            let word = unsafe { word::<BITS>(p) };
            for (i, v) in v.iter_mut().enumerate() {
                let code = (word >> (i * BITS)) & ((1 << BITS) - 1);
                *v = (code as f32 - zero) * scale;
            }
        }
        v
    }
}

/// Codes that the compiler makes vectors of; of fewer it makes none.
const CODES: usize = 64;

// SAFETY: as above.
impl Dot for Portable {
    const CODES: usize = CODES;
    const INPUTS: usize = 6;
    type Sums = i32;
    type Weights = [i16; CODES];
    type Inputs = [i16; CODES];

    #[inline(always)]
    unsafe fn zero() -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> [i16; CODES] {
        let bytes = unsafe { p.cast::<[i8; CODES]>().read_unaligned() };
        let mut wide = [0; CODES];
        for i in 0..CODES {
            wide[i] = i16::from(bytes[i]);
        }
        wide
    }

    #[inline(always)]
    unsafe fn inputs(p: *const i8) -> [i16; CODES] {
        unsafe { Self::weights(p.cast()) }
    }

    #[inline(always)]
    unsafe fn add_products(mut s: i32, w: [i16; CODES], x: [i16; CODES]) -> i32 {
        for i in 0..CODES {
            s += i32::from(w[i]) * i32::from(x[i]);
        }
        s
    }

    #[inline(always)]
    unsafe fn totals(v: [i32; 4]) -> [i32; 4] {
        v
    }
}
