//! AVX2 with FMA and F16C: 8 lanes, 16 registers.

// Each function is one or a few instructions whose requirements are those of `Isa` itself.
#![allow(unsafe_op_in_unsafe_fn)]

use super::isa::{Dot, Isa, word};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2;

/// `LANES` ones (all bits) followed by as many zeros: a window into it masks the first lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

// SAFETY: callers guarantee avx2, fma and f16c; every function reads or writes exactly the
// elements that `Isa` names.
impl Isa for Avx2 {
    const LANES: usize = 8;
    const TILE_INPUTS: usize = 3;
    const FUSED_INPUTS: usize = 2;
    type V = __m256;
    /// `zero` and `scale` in every lane.
    type Levels = (__m256, __m256);

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sums(v: [__m256; 4]) -> [f32; 4] {
        // Pairs within each half, twice; then the halves.
        let ab = _mm256_hadd_ps(v[0], v[1]);
        let cd = _mm256_hadd_ps(v[2], v[3]);
        let abcd = _mm256_hadd_ps(ab, cd);
        let sum = _mm_add_ps(
            _mm256_castps256_ps128(abcd),
            _mm256_extractf128_ps::<1>(abcd),
        );
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), sum);
        out
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        // SAFETY: SSE is part of x86-64, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn f32(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn f32_first(p: *const f32, count: usize) -> __m256 {
        let mask = _mm256_loadu_si256(FIRST.as_ptr().add(8 - count).cast());
        _mm256_maskload_ps(p, mask)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v)
    }

    #[inline(always)]
    unsafe fn f16(p: *const u16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }

    #[inline(always)]
    unsafe fn bf16(p: *const u16) -> __m256 {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }

    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
    }

    #[inline(always)]
    unsafe fn e4m3(p: *const u8) -> __m256 {
        // Widening copies the sign into bit 14 too, which is an exponent bit of the half.
        let wide = _mm_slli_epi16::<7>(_mm_cvtepi8_epi16(_mm_loadl_epi64(p.cast())));
        _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(0xBFFF_u16 as i16)))
    }

    #[inline(always)]
    unsafe fn e5m2(p: *const u8) -> __m256 {
        let halves = _mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64(p.cast()));
        _mm256_cvtph_ps(halves)
    }

    #[inline(always)]
    unsafe fn scalar_f16(bits: u16) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)))
    }

    #[inline(always)]
    unsafe fn levels<const BITS: usize>(zero: u8, scale: u16) -> Self::Levels {
        (
            _mm256_set1_ps(zero as f32),
            _mm256_cvtph_ps(_mm_set1_epi16(scale as i16)),
        )
    }

    #[inline(always)]
    unsafe fn codes<const BITS: usize>(p: *const u8, (zero, scale): Self::Levels) -> __m256 {
        let codes = if BITS == 8 {
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))
        } else {
            let b = BITS as i32;
            let shifts = _mm256_setr_epi32(0, b, 2 * b, 3 * b, 4 * b, 5 * b, 6 * b, 7 * b);
            let word = _mm256_set1_epi32(word::<BITS>(p) as i32);
            let mask = _mm256_set1_epi32((1 << BITS) - 1);
            _mm256_and_si256(_mm256_srlv_epi32(word, shifts), mask)
        };
        _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(codes), zero), scale)
    }
}

// SAFETY: as above. Bytes are widened to 16 bits, whose products are added up in pairs without
// saturation; the instruction that multiplies bytes saturates its 16-bit sums.
impl Dot for Avx2 {
    const CODES: usize = 16;
    const INPUTS: usize = 2;
    type Sums = __m256i;
    type Weights = __m256i;
    type Inputs = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> __m256i {
        _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()))
    }

    #[inline(always)]
    unsafe fn inputs(p: *const i8) -> __m256i {
        _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()))
    }

    #[inline(always)]
    unsafe fn add_products(s: __m256i, w: __m256i, x: __m256i) -> __m256i {
        _mm256_add_epi32(s, _mm256_madd_epi16(w, x))
    }

    #[inline(always)]
    unsafe fn totals(v: [__m256i; 4]) -> [i32; 4] {
        let ab = _mm256_hadd_epi32(v[0], v[1]);
        let cd = _mm256_hadd_epi32(v[2], v[3]);
        let abcd = _mm256_hadd_epi32(ab, cd);
        let sum = _mm_add_epi32(
            _mm256_castsi256_si128(abcd),
            _mm256_extracti128_si256::<1>(abcd),
        );
        let mut out = [0; 4];
        _mm_storeu_si128(out.as_mut_ptr().cast(), sum);
        out
    }
}
