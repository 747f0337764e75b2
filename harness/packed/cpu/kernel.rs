//! The two kernels, written once for every format and instruction set.
//!
//! * **fused** (few inputs): dot products along k straight from the packed codes. Four weight
//!   rows at once: each loaded `x` serves four of them, and their sums are independent, so that
//!   the latency of one multiplication is hidden behind the others.
//! * **tile** (many inputs): a tile of weight rows × a chunk of k is unpacked once into F32
//!   workspace that stays in the second-level cache, then multiplied by register blocks whose
//!   inputs stay in the first.
//!
//! Every sum has one accumulator vector per block of k (two in the fused kernel for one input),
//! added up in an order that depends on the shapes and on the lanes alone.

// Counted loops over arrays of constant size become registers; iterator adapters would put
// closures between, which do not inherit the instruction set of the entry point.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy)]

use super::isa::Isa;
use super::rows::Rows;
use std::ops::Range;

/// Weight rows in a register block of either kernel.
pub const BLOCK: usize = 4;

/// The fused kernel asks for the weight rows of a later block, this many bytes ahead or the next
/// block if that is longer. Hardware follows one long stream, not four that change every row.
const PREFETCH: usize = 8 << 10;

/// Where a kernel reads inputs and writes outputs: `x` is `[rows, k_in]` and `y` is
/// `[rows, n_out]`, both row-major.
#[derive(Clone, Copy)]
pub struct Product {
    pub x: *const f32,
    pub y: *mut f32,
    pub rows: usize,
}

// SAFETY: tasks write disjoint columns of `y` (`cpu::product` hands out disjoint weight rows) and
// only read `x`; both outlive the product.
unsafe impl Send for Product {}
unsafe impl Sync for Product {}

/// Writes `y[.., weight_rows]`, reading the codes directly.
///
/// # Safety
/// The instructions of `S` are there; `p` is valid for the shape of `w` and `p.rows`;
/// `weight_rows` lies inside the matrix and no other thread writes these columns.
#[inline(always)]
pub unsafe fn fused<S: Isa, W: Rows>(w: W, weight_rows: Range<usize>, p: Product) {
    let mut row = weight_rows.start;
    // SAFETY: passed on; every block stays inside `weight_rows` and `p.rows`.
    unsafe {
        while row + BLOCK <= weight_rows.end {
            fused_inputs::<S, W, BLOCK>(w, row, p);
            row += BLOCK;
        }
        while row < weight_rows.end {
            fused_inputs::<S, W, 1>(w, row, p);
            row += 1;
        }
    }
}

/// `N` weight rows from `row` on, times all inputs.
#[inline(always)]
unsafe fn fused_inputs<S: Isa, W: Rows, const N: usize>(w: W, row: usize, p: Product) {
    let mut m = 0;
    // SAFETY: passed on; `m` plus the block's inputs never exceeds `p.rows`.
    unsafe {
        while m < p.rows {
            let inputs = (p.rows - m).min(S::FUSED_INPUTS);
            match inputs {
                1 => fused_block::<S, W, 1, N, 2>(w, row, p, m),
                2 => fused_block::<S, W, 2, N, 1>(w, row, p, m),
                3 => fused_block::<S, W, 3, N, 1>(w, row, p, m),
                _ => fused_block::<S, W, 4, N, 1>(w, row, p, m),
            }
            m += inputs;
        }
    }
}

/// `M` inputs from `m` on, `N` weight rows from `row` on, `U` accumulators for each pair.
#[inline(always)]
unsafe fn fused_block<S: Isa, W: Rows, const M: usize, const N: usize, const U: usize>(
    w: W,
    row: usize,
    p: Product,
    m: usize,
) {
    let (n_out, k_in) = w.shape();
    let len = w.span_len();
    let blocks = N * w.row_bytes();
    let ahead = blocks * PREFETCH.div_ceil(blocks.max(1));
    // SAFETY: `k + LANES <= end` (or the count behind it) keeps every load inside the span and
    // the row of `x`; `m + M <= rows` and `row + N <= n_out` keep the stores inside `y`.
    unsafe {
        let x = p.x.add(m * k_in);
        let mut acc = [[[S::zero(); N]; M]; U];
        let mut start = 0;
        let mut index = 0;
        while start < k_in {
            let end = (start + len).min(k_in);
            let mut spans = [w.span::<S>(row, index); N];
            for n in 1..N {
                spans[n] = w.span::<S>(row + n, index);
            }
            let mut k = start;
            while k + U * S::LANES <= end {
                for (u, acc) in acc.iter_mut().enumerate() {
                    // Once for every 64 bytes of a row, or every block where that is less often.
                    if (u * S::LANES * W::BITS / 8).is_multiple_of(64) {
                        for span in spans {
                            S::prefetch(w.address::<S>(span, k).wrapping_add(ahead));
                        }
                    }
                    step::<S, W, M, N>(w, &spans, x, k_in, k, acc);
                    k += S::LANES;
                }
            }
            while k + S::LANES <= end {
                step::<S, W, M, N>(w, &spans, x, k_in, k, &mut acc[0]);
                k += S::LANES;
            }
            if k < end {
                let count = end - k;
                for n in 0..N {
                    let weights = w.load_first::<S>(spans[n], k, count);
                    for m in 0..M {
                        let inputs = S::f32_first(x.add(m * k_in + k), count);
                        acc[0][m][n] = S::fma(inputs, weights, acc[0][m][n]);
                    }
                }
            }
            start = end;
            index += 1;
        }
        for i in 0..M {
            let mut sums = [S::zero(); BLOCK];
            for n in 0..N {
                sums[n] = acc[0][i][n];
                for acc in &acc[1..] {
                    sums[n] = S::add(sums[n], acc[i][n]);
                }
            }
            let sums = S::sums(sums);
            for n in 0..N {
                let y = p.y.add((m + i) * n_out + row + n);
                y.write(sums[n] * w.scale::<S>(row + n));
            }
        }
    }
}

/// One vector of k for `M` inputs and `N` weight rows.
#[inline(always)]
unsafe fn step<S: Isa, W: Rows, const M: usize, const N: usize>(
    w: W,
    spans: &[W::Span<S>; N],
    x: *const f32,
    k_in: usize,
    k: usize,
    acc: &mut [[S::V; N]; M],
) {
    // SAFETY: the caller keeps `k + LANES` inside the span.
    unsafe {
        let mut inputs = [S::zero(); M];
        for m in 0..M {
            inputs[m] = S::f32(x.add(m * k_in + k));
        }
        for n in 0..N {
            let weights = w.load::<S>(spans[n], k);
            for m in 0..M {
                acc[m][n] = S::fma(inputs[m], weights, acc[m][n]);
            }
        }
    }
}

/// The shape of a tile: `chunk` inputs of `rows` weight rows, which lie `stride` numbers apart in
/// the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub rows: usize,
    pub chunk: usize,
    pub stride: usize,
}

impl Tile {
    /// Inputs in a chunk, at most: the inputs of a register block (6 rows on AVX-512) stay in a
    /// first-level cache of 32 KiB, and sums over lanes are rare against multiplications.
    const CHUNK: usize = 1024;
    /// Weight rows in a tile, at most.
    const ROWS: usize = 48;
    /// Behind each row, so that rows do not fall on the same sets of the cache, and behind the
    /// last, because whole vectors are written.
    const PAD: usize = 16;

    /// The tile for rows of `k_in` weights: depends on nothing else, so that results do not.
    pub fn new(k_in: usize) -> Self {
        let chunks = k_in.div_ceil(Self::CHUNK).max(1);
        let chunk = k_in.div_ceil(chunks).max(1).next_multiple_of(64);
        Self {
            rows: Self::ROWS,
            chunk,
            stride: chunk + Self::PAD,
        }
    }

    /// Numbers of F32 workspace, with room to start on a cache line.
    pub fn len(&self) -> usize {
        self.rows * self.stride + 2 * Self::PAD
    }
}

/// Writes `y[.., weight_rows]` by way of `workspace`. F32 weights take that way too: in the
/// workspace rows are padded, where rows a power of two apart would share sets of the cache.
///
/// # Safety
/// As for [`fused`]; besides, `weight_rows` has at most `tile.rows` rows and `workspace` is valid
/// for writes of `tile.len()` numbers.
#[inline(always)]
pub unsafe fn tile<S: Isa, W: Rows>(
    w: W,
    weight_rows: Range<usize>,
    p: Product,
    tile: Tile,
    workspace: *mut f32,
) {
    let (n_out, k_in) = w.shape();
    let rows = weight_rows.len();
    // SAFETY: chunks cut `0..k_in`; blocks stay inside `p.rows` and `weight_rows`.
    unsafe {
        let mut scales = [0.0; Tile::ROWS];
        for (n, scale) in scales.iter_mut().enumerate().take(rows) {
            *scale = w.scale::<S>(weight_rows.start + n);
        }
        // Vectors that straddle two cache lines take two loads.
        let workspace = workspace.wrapping_add(workspace.align_offset(64));
        let mut start = 0;
        while start < k_in {
            let end = (start + tile.chunk).min(k_in);
            for n in 0..rows {
                let row = weight_rows.start + n;
                unpack::<S, W>(w, row, start..end, workspace.add(n * tile.stride));
            }
            let mut m = 0;
            while m < p.rows {
                let inputs = (p.rows - m).min(S::TILE_INPUTS);
                let mut n = 0;
                while n < rows {
                    let block = Block {
                        x: p.x.add(m * k_in + start),
                        x_stride: k_in,
                        w: workspace.add(n * tile.stride),
                        w_stride: tile.stride,
                        k: end - start,
                        y: p.y.add(m * n_out + weight_rows.start + n),
                        y_stride: n_out,
                        scales: scales.as_ptr().add(n),
                        first: start == 0,
                    };
                    if n + BLOCK <= rows {
                        block_inputs::<S, BLOCK>(&block, inputs);
                        n += BLOCK;
                    } else {
                        block_inputs::<S, 1>(&block, inputs);
                        n += 1;
                    }
                }
                m += inputs;
            }
            start = end;
        }
    }
}

/// Writes the weights of `row` at `range` to `out`, and up to a vector of numbers behind them.
#[inline(always)]
unsafe fn unpack<S: Isa, W: Rows>(w: W, row: usize, range: Range<usize>, out: *mut f32) {
    let len = w.span_len();
    let mut k = range.start;
    // SAFETY: loads stay inside a span; the store that starts last in a row starts before
    // `range.end`, so it ends before `range.end - range.start + LANES` numbers of `out`.
    unsafe {
        while k < range.end {
            let index = k / len;
            let span = w.span::<S>(row, index);
            let end = ((index + 1) * len).min(range.end);
            while k + S::LANES <= end {
                S::store(out.add(k - range.start), w.load::<S>(span, k));
                k += S::LANES;
            }
            if k < end {
                // What is written behind the span is overwritten by the next one.
                let weights = w.load_first::<S>(span, k, end - k);
                S::store(out.add(k - range.start), weights);
                k = end;
            }
        }
    }
}

/// One register block: `M` rows of `x` times `N` rows of F32 weights over `k` inputs.
struct Block {
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    k: usize,
    y: *mut f32,
    y_stride: usize,
    /// One per weight row.
    scales: *const f32,
    /// Whether this is the first chunk of k, which writes `y`; later ones add to it.
    first: bool,
}

#[inline(always)]
unsafe fn block_inputs<S: Isa, const N: usize>(b: &Block, inputs: usize) {
    // SAFETY: passed on.
    unsafe {
        match inputs {
            1 => block::<S, 1, N>(b),
            2 => block::<S, 2, N>(b),
            3 => block::<S, 3, N>(b),
            4 => block::<S, 4, N>(b),
            5 => block::<S, 5, N>(b),
            _ => block::<S, 6, N>(b),
        }
    }
}

#[inline(always)]
unsafe fn block<S: Isa, const M: usize, const N: usize>(b: &Block) {
    // SAFETY: `M` rows of x and y and `N` rows of w are valid for `k` numbers; tails are masked.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let mut k = 0;
        while k + S::LANES <= b.k {
            let mut weights = [S::zero(); N];
            for n in 0..N {
                weights[n] = S::f32(b.w.add(n * b.w_stride + k));
            }
            for m in 0..M {
                let inputs = S::f32(b.x.add(m * b.x_stride + k));
                for n in 0..N {
                    acc[m][n] = S::fma(inputs, weights[n], acc[m][n]);
                }
            }
            k += S::LANES;
        }
        if k < b.k {
            let count = b.k - k;
            for n in 0..N {
                let weights = S::f32_first(b.w.add(n * b.w_stride + k), count);
                for m in 0..M {
                    let inputs = S::f32_first(b.x.add(m * b.x_stride + k), count);
                    acc[m][n] = S::fma(inputs, weights, acc[m][n]);
                }
            }
        }
        if N == BLOCK {
            for m in 0..M {
                let mut vectors = [S::zero(); BLOCK];
                for n in 0..N {
                    vectors[n] = acc[m][n];
                }
                S::write_sums(vectors, b.scales, b.y.add(m * b.y_stride), !b.first);
            }
            return;
        }
        // In a loop of its own, small enough to be unrolled, so that `acc` stays in registers.
        let mut sums = [[0.0; BLOCK]; M];
        for m in 0..M {
            let mut vectors = [S::zero(); BLOCK];
            for n in 0..N {
                vectors[n] = acc[m][n];
            }
            sums[m] = S::sums(vectors);
        }
        for m in 0..M {
            for n in 0..N {
                let y = b.y.add(m * b.y_stride + n);
                let sum = sums[m][n] * b.scales.add(n).read();
                y.write(if b.first { sum } else { y.read() + sum });
            }
        }
    }
}
