//! Sums over rows of logits in F64, compiled once per instruction set.
//!
//! Sixteen rows of a large vocabulary are a million exponentials: the library's, one at a time,
//! would cost more than the model. Each row is summed by one thread in eight fixed lanes, so that
//! results do not depend on how rows are spread over threads.

use crate::packed::cpu::Path;

const LANES: usize = 8;

/// Compiles a body, generic over whether multiply-adds are fused, for each instruction set.
macro_rules! for_every_path {
    ($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $type:ty),*) -> $out:ty) => {
        $(#[$doc])*
        pub(super) fn $name(path: Path, $($arg: $type),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) -> $out {
                $body::<true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $type),*) -> $out {
                $body::<true>($($arg),*)
            }
            match path {
                // SAFETY: a path that is handed on was found on this CPU.
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<false>($($arg),*),
            }
        }
    };
}

/// Smallest and largest logit of a row, and where the largest is first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Range {
    pub(super) min: f32,
    pub(super) max: f32,
    pub(super) top: usize,
}

/// The range of a row; `None` if it is empty or any value is not finite.
pub(super) fn range(path: Path, logits: &[f32]) -> Option<Range> {
    let (min, max) = extremes(path, logits)?;
    let top = logits.iter().position(|x| *x == max)?;
    Some(Range { min, max, top })
}

for_every_path!(extremes = extremes_body(logits: &[f32]) -> Option<(f32, f32)>);

#[inline(always)]
fn extremes_body<const FMA: bool>(logits: &[f32]) -> Option<(f32, f32)> {
    const WIDE: usize = 16;
    let (mut low, mut high) = ([f32::INFINITY; WIDE], [f32::NEG_INFINITY; WIDE]);
    // NaN loses every comparison: what is not finite shows in `0 x`, which is then not 0.
    let mut zero = [0.0f32; WIDE];
    let (chunks, rest) = logits.as_chunks::<WIDE>();
    let mut visit = |k: usize, x: f32| {
        low[k] = if x < low[k] { x } else { low[k] };
        high[k] = if x > high[k] { x } else { high[k] };
        zero[k] += x * 0.0;
    };
    for chunk in chunks {
        for (k, x) in chunk.iter().enumerate() {
            visit(k, *x);
        }
    }
    for (k, x) in rest.iter().enumerate() {
        visit(k, *x);
    }
    let finite = !logits.is_empty() && zero.iter().all(|z| *z == 0.0);
    finite.then(|| {
        (
            low.into_iter().fold(f32::INFINITY, f32::min),
            high.into_iter().fold(f32::NEG_INFINITY, f32::max),
        )
    })
}

for_every_path!(
    /// `Σ e^(logit - max)`.
    exp_sum = exp_sum_body(logits: &[f32], max: f64) -> f64
);

#[inline(always)]
fn exp_sum_body<const FMA: bool>(logits: &[f32], max: f64) -> f64 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for k in 0..LANES {
            sums[k] += exp::<FMA>(f64::from(chunk[k]) - max);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += exp::<FMA>(f64::from(*x) - max);
    }
    sums.iter().sum()
}

for_every_path!(
    /// Writes `round((logit - min) / step)` of every logit, as little-endian `u16`.
    encode = encode_body(logits: &[f32], min: f64, step: f64, codes: &mut [u8]) -> ()
);

#[inline(always)]
fn encode_body<const FMA: bool>(logits: &[f32], min: f64, step: f64, codes: &mut [u8]) {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    for (x, code) in logits.iter().zip(codes.as_chunks_mut::<2>().0) {
        // Within 0..=65535 by the choice of the step; the cut is for the last bit of rounding.
        let place = ((f64::from(*x) - min) * inverse + 0.5).min(65535.0);
        *code = (place as i32 as u16).to_le_bytes();
    }
}

/// Sums over a vocabulary, of a reference `u = step · (code - top_code)` and a candidate
/// `v = logit - max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sums {
    /// `Σ e^u`
    pub(super) reference: f64,
    /// `Σ e^v`
    pub(super) candidate: f64,
    /// `Σ e^u (v - u)`
    pub(super) difference: f64,
}

for_every_path!(
    /// `codes` are as many little-endian `u16` as there are logits.
    contrast = contrast_body(codes: &[u8], step: f64, top_code: u16, logits: &[f32], max: f64)
        -> Sums
);

#[inline(always)]
fn contrast_body<const FMA: bool>(
    codes: &[u8],
    step: f64,
    top_code: u16,
    logits: &[f32],
    max: f64,
) -> Sums {
    let top = f64::from(top_code);
    let (mut reference, mut candidate) = ([0.0; LANES], [0.0; LANES]);
    let mut difference = [0.0; LANES];
    let (codes, code_rest) = codes.as_chunks::<2>().0.as_chunks::<LANES>();
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut visit = |k: usize, code: [u8; 2], logit: f32| {
        let u = step * (f64::from(u16::from_le_bytes(code)) - top);
        let v = f64::from(logit) - max;
        let (p, q) = (exp::<FMA>(u), exp::<FMA>(v));
        reference[k] += p;
        candidate[k] += q;
        difference[k] += p * (v - u);
    };
    for (codes, logits) in codes.iter().zip(chunks) {
        for k in 0..LANES {
            visit(k, codes[k], logits[k]);
        }
    }
    for (k, (code, logit)) in code_rest.iter().zip(rest).enumerate() {
        visit(k, *code, *logit);
    }
    Sums {
        reference: reference.iter().sum(),
        candidate: candidate.iter().sum(),
        difference: difference.iter().sum(),
    }
}

/// `e^x` in F64 without branches, so that loops over it vectorize; relative error below 2e-14,
/// and `exp(0) = 1` exactly. Outside ±708 it stays at the value there.
///
/// Range reduction `x = n ln 2 + r` with ln 2 in two parts, then the Taylor polynomial of degree
/// 11 on `|r| <= ln 2 / 2`, whose remainder is below 7e-15.
#[inline(always)]
fn exp<const FMA: bool>(x: f64) -> f64 {
    // 1.5 · 2^52: adding it rounds to an integer in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let fma = |a: f64, b: f64, c: f64| match FMA {
        true => a.mul_add(b, c),
        false => a * b + c,
    };
    let x = x.clamp(-708.0, 708.0);
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));
    let mut p = 1.0 / 39_916_800.0;
    for factor in [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = fma(p, r, factor);
    }
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(1023);
    p * f64::from_bits(exponent << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_close_as_it_says() {
        assert_eq!((exp::<true>(0.0), exp::<false>(0.0)), (1.0, 1.0));
        for i in -70_800..=7_000 {
            let x = f64::from(i) * 0.01 + 1e-4;
            let x = x.clamp(-708.0, 708.0);
            for y in [exp::<true>(x), exp::<false>(x)] {
                assert!((y / x.exp() - 1.0).abs() < 2e-14, "exp({x}) = {y}");
            }
        }
        assert!(exp::<true>(-1e9) < 1e-300 && exp::<true>(1e9).is_finite());
    }

    #[test]
    fn every_instruction_set_gives_the_sums() {
        for n in [1, 7, 8, 16, 17, 100] {
            let logits: Vec<f32> = (0..n).map(|i| ((i * 37 % 19) as f32).sin() * 9.0).collect();
            let codes: Vec<u16> = (0..n).map(|i| (i * 7919 % 65536) as u16).collect();
            let top_code = *codes.iter().max().unwrap();
            let bytes: Vec<u8> = codes.iter().flat_map(|c| c.to_le_bytes()).collect();
            let step = 3e-4;
            for path in Path::available() {
                let Range { min, max, top } = range(path, &logits).unwrap();
                assert!(logits.iter().all(|x| (min..=max).contains(x)));
                assert_eq!(logits[top], max);
                let max = f64::from(max);
                let sums = contrast(path, &bytes, step, top_code, &logits, max);
                let (mut p, mut q, mut d) = (0.0, 0.0, 0.0);
                for (code, logit) in codes.iter().zip(&logits) {
                    let u = step * (f64::from(*code) - f64::from(top_code));
                    let v = f64::from(*logit) - max;
                    p += u.exp();
                    q += v.exp();
                    d += u.exp() * (v - u);
                }
                for (sum, exact) in [
                    (sums.reference, p),
                    (sums.candidate, q),
                    (sums.difference, d),
                    (exp_sum(path, &logits, max), q),
                ] {
                    assert!((sum - exact).abs() <= 1e-12 * exact.abs().max(1.0));
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_has_no_range() {
        for path in Path::available() {
            assert_eq!(range(path, &[]), None);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 15, 16, 20] {
                    let mut logits = [0.5f32; 21];
                    logits[at] = bad;
                    assert_eq!(range(path, &logits), None, "{bad} at {at}");
                }
            }
        }
    }
}
