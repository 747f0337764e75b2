//! The kernel, written once for every instruction set.

// As in the F32 kernels: counted loops over arrays of constant size become registers.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy)]

use super::operands::{Inputs, Row, Weights};
use crate::packed::activations;
use crate::packed::cpu::isa::Dot;
use std::ops::Range;

/// Weight rows in a register block.
pub const BLOCK: usize = 4;

/// Weight rows in a task, at most.
pub const TASK_ROWS: usize = 256;

/// How far ahead weights are asked for, as in the fused F32 kernel.
const PREFETCH: usize = 8 << 10;

/// Where a kernel reads and writes: `y` is `[rows, n_out]`, `rows` the first ones of `inputs`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub w: Weights<'a>,
    pub inputs: &'a Inputs,
    pub rows: usize,
    pub y: *mut f32,
}

// SAFETY: tasks write disjoint columns of `y`, which outlives the product.
unsafe impl Send for Product<'_> {}
unsafe impl Sync for Product<'_> {}

/// Writes the codes of a row of inputs.
#[inline(always)]
pub fn quantize(x: &[f32], codes: &mut [i8]) -> Row {
    let scale = activations::int8(x, codes);
    let mut sum = 0;
    for code in codes {
        sum += i32::from(*code);
    }
    Row { scale, sum }
}

/// Writes `y[.., weight_rows]`.
///
/// # Safety
/// The instructions of `D` are there; `p` is valid for its rows and the shape of its weights;
/// `weight_rows` are at most `TASK_ROWS` rows of the matrix and no other thread writes these
/// columns.
#[inline(always)]
pub unsafe fn multiply<D: Dot>(p: Product, weight_rows: Range<usize>) {
    let mut scales = [0.0; TASK_ROWS];
    for (i, row) in weight_rows.clone().enumerate() {
        scales[i] = p.w.scales[row].to_f32();
    }
    let mut m = 0;
    while m < p.rows {
        let inputs = (p.rows - m).min(D::INPUTS);
        let mut n = weight_rows.start;
        // SAFETY: blocks stay inside `weight_rows` and `p.rows`.
        unsafe {
            while n + BLOCK <= weight_rows.end {
                let scales = scales.as_ptr().add(n - weight_rows.start);
                block_inputs::<D, BLOCK>(p, m, inputs, n, scales);
                n += BLOCK;
            }
            while n < weight_rows.end {
                let scales = scales.as_ptr().add(n - weight_rows.start);
                block_inputs::<D, 1>(p, m, inputs, n, scales);
                n += 1;
            }
        }
        m += inputs;
    }
}

#[inline(always)]
unsafe fn block_inputs<D: Dot, const N: usize>(
    p: Product,
    m: usize,
    inputs: usize,
    n: usize,
    scales: *const f32,
) {
    // SAFETY: passed on.
    unsafe {
        match inputs {
            1 => block::<D, 1, N>(p, m, n, scales),
            2 => block::<D, 2, N>(p, m, n, scales),
            3 => block::<D, 3, N>(p, m, n, scales),
            4 => block::<D, 4, N>(p, m, n, scales),
            5 => block::<D, 5, N>(p, m, n, scales),
            _ => block::<D, 6, N>(p, m, n, scales),
        }
    }
}

/// `M` rows of inputs from `m` on times `N` weight rows from `n` on.
#[inline(always)]
unsafe fn block<D: Dot, const M: usize, const N: usize>(
    p: Product,
    m: usize,
    n: usize,
    scales: *const f32,
) {
    let (n_out, k_in) = p.w.shape;
    let ahead = N * k_in * PREFETCH.div_ceil(N * k_in);
    // SAFETY: loads of weights stay inside a row, with the last ones counted; those of inputs
    // inside its lines, which end in zeros; `m + M <= rows` and `n + N <= n_out` hold for `y`.
    unsafe {
        let mut w = [p.w.codes.as_ptr(); N];
        for i in 0..N {
            w[i] = w[i].add((n + i) * k_in);
        }
        let mut x = [p.inputs.codes(m); M];
        for i in 1..M {
            x[i] = p.inputs.codes(m + i);
        }
        let mut sums = [[D::zero(); N]; M];
        let mut k = 0;
        while k + D::CODES <= k_in {
            // Later rows of inputs find the weights in a cache.
            if m == 0 && k.is_multiple_of(64) {
                for i in 0..N {
                    prefetch(w[i].wrapping_add(k + ahead));
                }
            }
            let mut weights = [D::weights(w[0].add(k)); N];
            for i in 1..N {
                weights[i] = D::weights(w[i].add(k));
            }
            add_block::<D, M, N>(&mut sums, weights, x, k);
            k += D::CODES;
        }
        if k < k_in {
            let mut weights = [D::weights_first(w[0].add(k), k_in - k); N];
            for i in 1..N {
                weights[i] = D::weights_first(w[i].add(k), k_in - k);
            }
            add_block::<D, M, N>(&mut sums, weights, x, k);
        }
        for i in 0..M {
            let mut vectors = [D::zero(); BLOCK];
            for j in 0..N {
                vectors[j] = sums[i][j];
            }
            let totals = D::totals(vectors);
            let row = p.inputs.rows[m + i];
            let y = p.y.add((m + i) * n_out + n);
            for j in 0..N {
                let sum = totals[j] - D::OFFSET * row.sum;
                y.add(j)
                    .write((sum as f32 * row.scale) * scales.add(j).read());
            }
        }
    }
}

#[inline(always)]
unsafe fn add_block<D: Dot, const M: usize, const N: usize>(
    sums: &mut [[D::Sums; N]; M],
    weights: [D::Weights; N],
    x: [*const i8; M],
    k: usize,
) {
    for i in 0..M {
        // SAFETY: passed on.
        unsafe {
            let inputs = D::inputs(x[i].add(k));
            for j in 0..N {
                sums[i][j] = D::add_products(sums[i][j], weights[j], inputs);
            }
        }
    }
}

/// Asks for the cache line of `p` ahead of its use; any address will do.
#[inline(always)]
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
