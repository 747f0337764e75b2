//! What loops compiled per instruction set share. A body is an `#[inline(always)]` function,
//! generic over whether multiply-adds are fused; entry points with `#[target_feature]` compile it
//! again for each [`Level`].

use candle_core::{CpuStorage, Layout, Result, bail};

/// Instruction sets that the bodies above are compiled for.
#[derive(Clone, Copy)]
pub(super) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The instruction set that the linears' kernels use too.
    pub(super) fn current() -> Result<Self> {
        use crate::packed::cpu::{self, Path};
        Ok(match cpu::path().map_err(candle_core::Error::wrap)? {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => Level::Avx512,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Level::Avx2,
            _ => Level::Portable,
        })
    }
}

pub(super) fn contiguous<'a, T: candle_core::WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

/// `a * b + c`, fused where the instruction set has it (elsewhere a fused one is a slow call).
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` without branches, so that loops over it vectorize; relative error below 2e-7, and
/// `exp(0) = 1` exactly. Below -87 the result is 0 or the smallest normal number's order.
///
/// Range reduction `x = n ln 2 + r` with ln 2 in two parts, then the Taylor polynomial of degree
/// 7 on `|r| <= ln 2 / 2`, whose remainder is below 1e-8.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer in the low bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    p = fma::<FMA>(p, r, 1.0 / 720.0);
    p = fma::<FMA>(p, r, 1.0 / 120.0);
    p = fma::<FMA>(p, r, 1.0 / 24.0);
    p = fma::<FMA>(p, r, 1.0 / 6.0);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r, 1.0);
    p = fma::<FMA>(p, r, 1.0);
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::packed::cpu;

    #[test]
    fn exp_is_close_and_exact_at_zero() {
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<false>(0.0), 1.0);
        for i in -8000..800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            for y in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(y) / exact - 1.0).abs() < 3e-7, "exp({x}) = {y}");
            }
        }
        assert!(exp::<true>(f32::NEG_INFINITY) < 1e-37);
    }

    /// Every case with every instruction set of this CPU. Forcing one is process-wide; tests that
    /// run beside these hold on each.
    pub fn on_every_path<T: Copy, const N: usize>(cases: [T; N]) -> Vec<(cpu::Path, T)> {
        let paths = cpu::Path::available();
        assert!(paths.contains(&cpu::Path::Portable));
        let with = |path: cpu::Path| cases.map(|case| (path, case));
        paths.into_iter().flat_map(with).collect()
    }
}
