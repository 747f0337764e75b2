//! AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers.

// Each function is one or a few instructions whose requirements are those of `Isa` itself.
#![allow(unsafe_op_in_unsafe_fn)]

use super::isa::{Dot, Isa};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512;

// SAFETY: callers guarantee avx512f, avx512bw, avx512dq and avx512vl; every function reads or
// writes exactly the elements that `Isa` names.
impl Isa for Avx512 {
    const LANES: usize = 16;
    const TILE_INPUTS: usize = 6;
    const FUSED_INPUTS: usize = 4;
    type V = __m512;
    /// Up to 4 bits: a table of 16 levels, repeated where there are fewer, and nothing.
    /// 8 bits: `zero` and `scale` in every lane.
    type Levels = (__m512, __m512);

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sums(v: [__m512; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), sum_lanes(v));
        out
    }

    #[inline(always)]
    unsafe fn write_sums(v: [__m512; 4], scales: *const f32, y: *mut f32, add: bool) {
        let sums = _mm_mul_ps(sum_lanes(v), _mm_loadu_ps(scales));
        let sums = match add {
            true => _mm_add_ps(_mm_loadu_ps(y), sums),
            false => sums,
        };
        _mm_storeu_ps(y, sums)
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        // SAFETY: SSE is part of x86-64, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn f32(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn f32_first(p: *const f32, count: usize) -> __m512 {
        _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as __mmask16, p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        _mm512_storeu_ps(p, v)
    }

    #[inline(always)]
    unsafe fn f16(p: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn bf16(p: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }

    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }

    #[inline(always)]
    unsafe fn e4m3(p: *const u8) -> __m512 {
        // Widening copies the sign into bit 14 too, which is an exponent bit of the half.
        let wide = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())));
        _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(0xBFFF_u16 as i16)))
    }

    #[inline(always)]
    unsafe fn e5m2(p: *const u8) -> __m512 {
        let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
        _mm512_cvtph_ps(_mm256_slli_epi16::<8>(wide))
    }

    #[inline(always)]
    unsafe fn scalar_f16(bits: u16) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)))
    }

    #[inline(always)]
    unsafe fn levels<const BITS: usize>(zero: u8, scale: u16) -> Self::Levels {
        // The half is converted in every lane at once: cheaper than once and then spread.
        let scale = _mm512_cvtph_ps(_mm256_set1_epi16(scale as i16));
        if BITS == 8 {
            return (_mm512_set1_ps(zero as f32), scale);
        }
        let differences = const { &differences(BITS) };
        let differences = _mm512_loadu_ps(differences[zero as usize & 15].as_ptr());
        let table = _mm512_mul_ps(differences, scale);
        (table, table)
    }

    #[inline(always)]
    unsafe fn codes<const BITS: usize>(p: *const u8, levels: Self::Levels) -> __m512 {
        if BITS == 8 {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let (zero, scale) = levels;
            return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(codes), zero), scale);
        }
        // Two words of eight codes each. The upper one ends with the last byte, so that nothing
        // is read beyond it: its codes start `32 - 8 * BITS` bits up.
        let b = BITS as i32;
        let u = 32 - 8 * b;
        let shifts = _mm512_setr_epi32(
            0,
            b,
            2 * b,
            3 * b,
            4 * b,
            5 * b,
            6 * b,
            7 * b,
            u,
            u + b,
            u + 2 * b,
            u + 3 * b,
            u + 4 * b,
            u + 5 * b,
            u + 6 * b,
            u + 7 * b,
        );
        let lower = p.cast::<i32>().read_unaligned();
        let upper = p.add(2 * BITS - 4).cast::<i32>().read_unaligned();
        let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(lower), 0xFF00, upper);
        // The permutation uses the low four bits of each index only.
        _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), levels.0)
    }
}

/// `code - zero` for each zero point and code. Below 4 bits the codes are repeated, so that an
/// index whose upper bits are those of the next code needs no mask.
const fn differences(bits: usize) -> [[f32; 16]; 16] {
    let mut table = [[0.0; 16]; 16];
    let mut i = 0;
    while i < 256 {
        let code = (i % 16) & ((1 << bits) - 1);
        table[i / 16][i % 16] = code as f32 - (i / 16) as f32;
        i += 1;
    }
    table
}

/// The sum of each vector's lanes. Interleaving adds two vectors at a time, where horizontal
/// additions would take three instructions each.
#[inline(always)]
unsafe fn sum_lanes(v: [__m512; 4]) -> __m128 {
    let ab = _mm512_add_ps(
        _mm512_unpacklo_ps(v[0], v[1]),
        _mm512_unpackhi_ps(v[0], v[1]),
    );
    let cd = _mm512_add_ps(
        _mm512_unpacklo_ps(v[2], v[3]),
        _mm512_unpackhi_ps(v[2], v[3]),
    );
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    // Each quarter now holds its part of all four sums, in their order.
    let abcd = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
    );
    let half = _mm256_add_ps(
        _mm512_castps512_ps256(abcd),
        _mm512_extractf32x8_ps::<1>(abcd),
    );
    _mm_add_ps(
        _mm256_castps256_ps128(half),
        _mm256_extractf128_ps::<1>(half),
    )
}

// SAFETY: as above. Bytes are widened to 16 bits, as with AVX2.
impl Dot for Avx512 {
    const CODES: usize = 32;
    const INPUTS: usize = 6;
    type Sums = __m512i;
    type Weights = __m512i;
    type Inputs = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> __m512i {
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn weights_first(p: *const u8, count: usize) -> __m512i {
        let mask = (1_u32 << count) - 1;
        _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, p.cast()))
    }

    #[inline(always)]
    unsafe fn inputs(p: *const i8) -> __m512i {
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn add_products(s: __m512i, w: __m512i, x: __m512i) -> __m512i {
        _mm512_add_epi32(s, _mm512_madd_epi16(w, x))
    }

    #[inline(always)]
    unsafe fn totals(v: [__m512i; 4]) -> [i32; 4] {
        total_lanes(v)
    }
}

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub struct Vnni;

// SAFETY: as above, with avx512vnni. The instruction multiplies unsigned bytes by signed ones:
// flipping the upper bit of a weight adds 128 to it, which the kernel takes back.
impl Dot for Vnni {
    const CODES: usize = 64;
    const INPUTS: usize = 6;
    const OFFSET: i32 = 128;
    type Sums = __m512i;
    type Weights = __m512i;
    type Inputs = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> __m512i {
        _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(-128))
    }

    #[inline(always)]
    unsafe fn weights_first(p: *const u8, count: usize) -> __m512i {
        let codes = _mm512_maskz_loadu_epi8((1_u64 << count) - 1, p.cast());
        _mm512_xor_si512(codes, _mm512_set1_epi8(-128))
    }

    #[inline(always)]
    unsafe fn inputs(p: *const i8) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }

    #[inline(always)]
    unsafe fn add_products(s: __m512i, w: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(s, w, x)
    }

    #[inline(always)]
    unsafe fn totals(v: [__m512i; 4]) -> [i32; 4] {
        total_lanes(v)
    }
}

/// [`sum_lanes`] of integers.
#[inline(always)]
unsafe fn total_lanes(v: [__m512i; 4]) -> [i32; 4] {
    let ab = _mm512_add_epi32(
        _mm512_unpacklo_epi32(v[0], v[1]),
        _mm512_unpackhi_epi32(v[0], v[1]),
    );
    let cd = _mm512_add_epi32(
        _mm512_unpacklo_epi32(v[2], v[3]),
        _mm512_unpackhi_epi32(v[2], v[3]),
    );
    let abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(
        _mm512_castsi512_si256(abcd),
        _mm512_extracti64x4_epi64::<1>(abcd),
    );
    let sum = _mm_add_epi32(
        _mm256_castsi256_si128(half),
        _mm256_extracti128_si256::<1>(half),
    );
    let mut out = [0; 4];
    _mm_storeu_si128(out.as_mut_ptr().cast(), sum);
    out
}
