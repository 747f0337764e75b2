//! Entry points: the kernel compiled once for each instruction set.

use super::super::Path;
use super::super::portable::Portable;
use super::kernel::{self, Product};
use super::operands::Row;
use std::ops::Range;

/// Which instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with VNNI, which multiplies bytes and adds up fours of products at once.
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Kernel {
    pub fn of(path: Path) -> Self {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 if is_x86_feature_detected!("avx512vnni") => Kernel::Vnni,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => Kernel::Avx512,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Kernel::Avx2,
            _ => Kernel::Portable,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => "int8-dot-vnni",
            _ => "int8-dot",
        }
    }

    /// [`kernel::multiply`] for this kernel.
    ///
    /// # Safety
    /// The CPU has the instructions; otherwise as for [`kernel::multiply`].
    pub unsafe fn multiply(self, p: Product, weight_rows: Range<usize>) {
        // SAFETY: passed on.
        unsafe {
            match self {
                Kernel::Portable => portable::multiply(p, weight_rows),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => avx2::multiply(p, weight_rows),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => avx512::multiply(p, weight_rows),
                #[cfg(target_arch = "x86_64")]
                Kernel::Vnni => vnni::multiply(p, weight_rows),
            }
        }
    }

    /// [`kernel::quantize`] for this kernel.
    ///
    /// # Safety
    /// The CPU has the instructions.
    pub unsafe fn quantize(self, x: &[f32], codes: &mut [i8]) -> Row {
        // SAFETY: passed on.
        unsafe {
            match self {
                Kernel::Portable => portable::quantize(x, codes),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => avx2::quantize(x, codes),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => avx512::quantize(x, codes),
                #[cfg(target_arch = "x86_64")]
                Kernel::Vnni => vnni::quantize(x, codes),
            }
        }
    }
}

/// The kernel, compiled for one instruction set.
macro_rules! entry_points {
    ($module:ident, $dot:ty, $(#[$attribute:meta])*) => {
        mod $module {
            use super::*;

            $(#[$attribute])*
            pub(super) unsafe fn multiply(p: Product, weight_rows: Range<usize>) {
                // SAFETY: the caller vouches for the instructions and the pointers.
                unsafe { kernel::multiply::<$dot>(p, weight_rows) }
            }

            $(#[$attribute])*
            pub(super) unsafe fn quantize(x: &[f32], codes: &mut [i8]) -> Row {
                kernel::quantize(x, codes)
            }
        }
    };
}

entry_points!(portable, Portable,);
#[cfg(target_arch = "x86_64")]
entry_points!(avx2, super::super::super::avx2::Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
entry_points!(
    avx512,
    super::super::super::avx512::Avx512,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
);
#[cfg(target_arch = "x86_64")]
entry_points!(
    vnni,
    super::super::super::avx512::Vnni,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
);

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::{Weights, product};
    use super::*;
    use half::f16;
    use std::mem::MaybeUninit;

    /// AVX-512 without VNNI is no path of its own, so no other test sees it where VNNI is there.
    #[test]
    fn avx512_gives_the_same_bits_with_and_without_vnni() {
        if !Path::Avx512.is_available() {
            println!("SKIPPED: int8-dot: this CPU has no AVX-512");
            return;
        }
        let best = Kernel::of(Path::Avx512);
        for (n, k, rows) in [(7, 57, 3), (4, 64, 1), (37, 1100, 13)] {
            let codes: Vec<u8> = (0..n * k).map(|i| (i * 7 + i / 13) as u8).collect();
            let scales: Vec<f16> = (0..n).map(|i| f16::from_f32(1.0 + i as f32)).collect();
            let x: Vec<f32> = (0..rows * k).map(|i| (i as f32).sin()).collect();
            let [a, b, c] = [Kernel::Portable, Kernel::Avx512, best].map(|kernel| {
                let mut y = vec![MaybeUninit::new(f32::NAN); rows * n];
                let w = Weights::new(&codes, &scales, (n, k));
                product(kernel, w, &x, rows, &mut y);
                // SAFETY: `product` writes every element, and all were set before.
                y.iter()
                    .map(|y| unsafe { y.assume_init() })
                    .collect::<Vec<f32>>()
            });
            assert_eq!(a, b, "[{n}, {k}]");
            assert_eq!(a, c, "[{n}, {k}] {}", best.name());
        }
    }
}
