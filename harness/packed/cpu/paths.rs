//! Entry points: the kernels compiled once for each instruction set.

use super::Path;
use super::kernel::{self, Product, Tile};
use super::peak;
use super::portable::Portable;
use super::rows::Rows;
use std::ops::Range;

/// A kernel for one format and one instruction set, which are fixed inside.
macro_rules! entry_points {
    ($module:ident, $isa:ty, $(#[$attribute:meta])*) => {
        mod $module {
            use super::*;

            $(#[$attribute])*
            pub unsafe fn fused<W: Rows>(w: W, weight_rows: Range<usize>, p: Product) {
                // SAFETY: the caller vouches for the instructions and the pointers.
                unsafe { kernel::fused::<$isa, W>(w, weight_rows, p) }
            }

            $(#[$attribute])*
            pub unsafe fn tile<W: Rows>(
                w: W,
                weight_rows: Range<usize>,
                p: Product,
                tile: Tile,
                workspace: *mut f32,
            ) {
                // SAFETY: the caller vouches for the instructions and the pointers.
                unsafe { kernel::tile::<$isa, W>(w, weight_rows, p, tile, workspace) }
            }

            $(#[$attribute])*
            pub unsafe fn multiply_adds(
                rounds: usize,
                operands: &[f32; peak::OPERANDS],
            ) -> (f32, f64) {
                // SAFETY: the caller vouches for the instructions.
                unsafe { peak::multiply_adds::<$isa>(rounds, operands) }
            }

            $(#[$attribute])*
            pub unsafe fn read(data: &[f32]) -> f32 {
                // SAFETY: the caller vouches for the instructions.
                unsafe { peak::read::<$isa>(data) }
            }
        }
    };
}

entry_points!(portable, Portable,);
#[cfg(target_arch = "x86_64")]
entry_points!(avx2, super::super::avx2::Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
entry_points!(
    avx512,
    super::super::avx512::Avx512,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
);

/// [`kernel::fused`] on `path`.
///
/// # Safety
/// `path` is available; the pointers are those of [`kernel::fused`].
pub unsafe fn fused<W: Rows>(path: Path, w: W, weight_rows: Range<usize>, p: Product) {
    // SAFETY: passed on.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => avx512::fused(w, weight_rows, p),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::fused(w, weight_rows, p),
            _ => portable::fused(w, weight_rows, p),
        }
    }
}

/// [`kernel::tile`] on `path`.
///
/// # Safety
/// `path` is available; the pointers are those of [`kernel::tile`].
pub unsafe fn tile<W: Rows>(
    path: Path,
    w: W,
    weight_rows: Range<usize>,
    p: Product,
    tile: Tile,
    workspace: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => avx512::tile(w, weight_rows, p, tile, workspace),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::tile(w, weight_rows, p, tile, workspace),
            _ => portable::tile(w, weight_rows, p, tile, workspace),
        }
    }
}

/// [`peak::multiply_adds`] on `path`.
///
/// # Safety
/// `path` is available.
pub unsafe fn multiply_adds(
    path: Path,
    rounds: usize,
    operands: &[f32; peak::OPERANDS],
) -> (f32, f64) {
    // SAFETY: passed on.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => avx512::multiply_adds(rounds, operands),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::multiply_adds(rounds, operands),
            _ => portable::multiply_adds(rounds, operands),
        }
    }
}

/// [`peak::read`] on `path`.
///
/// # Safety
/// `path` is available.
pub unsafe fn read(path: Path, data: &[f32]) -> f32 {
    // SAFETY: passed on.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => avx512::read(data),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::read(data),
            _ => portable::read(data),
        }
    }
}
