//! Products of 8-bit integer weights with inputs that are quantized to 8-bit integers.
//!
//! A block of rows of `x` is quantized once into workspace that all threads read; tasks of weight
//! rows then multiply it in register blocks, straight from the codes, for one row as for many.
//! Sums are exact in I32 ([`MAX_INPUTS`]) and scaled by the same two F32 multiplications
//! everywhere, so results do not depend on the instruction set, the threads or the blocks.

// As in the F32 kernels: counted loops over arrays of constant size become registers.
#![allow(clippy::needless_range_loop)]

use super::portable::Portable;
use super::{Path, WORKSPACE_BYTES};
use crate::Result;
use crate::memory::{self, Part};
use crate::packed::activations;
#[cfg(doc)]
use crate::packed::activations::MAX_INPUTS;
use candle_core::Tensor;
use half::f16;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Weight rows in a register block.
const BLOCK: usize = 4;

/// Codes of weights in a task, about: they stay in the second-level cache, beside the inputs, and
/// take long against the cost of a task.
const TASK: usize = 1 << 17;

/// Weight rows in a task, at most.
const TASK_ROWS: usize = 256;

/// How far ahead weights are asked for, as in the fused F32 kernel.
const PREFETCH: usize = 8 << 10;

/// Inputs that repay handing them to another thread.
const QUANTIZE_TASK: usize = 1 << 14;

/// What the kernel needs of an instruction set.
///
/// # Safety
/// As for [`Isa`](super::isa::Isa): the CPU has the instructions, and pointers are valid for the
/// codes that the comments name.
pub trait Dot: Copy + 'static {
    /// Codes in a vector: a divisor of 64.
    const CODES: usize;
    /// Rows of `x` whose sums are kept in registers, beside 4 weight rows; at most 6.
    const INPUTS: usize;
    /// What a loaded weight exceeds its code by.
    const OFFSET: i32 = 0;
    /// I32 sums.
    type Sums: Copy;
    type Weights: Copy;
    type Inputs: Copy;

    unsafe fn zero() -> Self::Sums;
    /// `CODES` weights.
    unsafe fn weights(p: *const u8) -> Self::Weights;
    /// The `count < CODES` weights from `p` on, whatever in the lanes behind them.
    #[inline(always)]
    unsafe fn weights_first(p: *const u8, count: usize) -> Self::Weights {
        let mut padded = [0; 64];
        // SAFETY: `count` codes are valid, and `padded` holds a vector.
        unsafe {
            padded.as_mut_ptr().copy_from_nonoverlapping(p, count);
            Self::weights(padded.as_ptr())
        }
    }
    /// `CODES` inputs.
    unsafe fn inputs(p: *const i8) -> Self::Inputs;
    /// `sums + weights · inputs`, each product in one of the lanes.
    unsafe fn add_products(s: Self::Sums, w: Self::Weights, x: Self::Inputs) -> Self::Sums;
    /// The sum of the lanes of each vector.
    unsafe fn totals(v: [Self::Sums; 4]) -> [i32; 4];
}

/// A packed matrix `[n_out, k_in]` of two's-complement bytes with a scale per output.
#[derive(Clone, Copy)]
pub(in crate::packed) struct Weights<'a> {
    codes: &'a [u8],
    scales: &'a [f16],
    shape: (usize, usize),
}

impl<'a> Weights<'a> {
    /// # Panics
    /// If the lengths contradict the shape; packed formats have checked them before.
    pub fn new(codes: &'a [u8], scales: &'a [f16], shape: (usize, usize)) -> Self {
        assert_eq!(codes.len(), shape.0 * shape.1);
        assert_eq!(scales.len(), shape.0);
        Self {
            codes,
            scales,
            shape,
        }
    }
}

/// `y = x Wᵀ` with inputs quantized per row; see [`activations`].
///
/// # Errors
/// Those of [`super::forward`].
pub(in crate::packed) fn forward(w: Weights, x: &Tensor) -> Result<Tensor> {
    let kernel = Kernel::of(super::path()?);
    super::output(w.shape, x, |x, rows, y| {
        product(kernel, w, x, rows, y);
        Ok(())
    })
}

/// Name of the kernel, for a row of the report.
pub(in crate::packed) fn kernel_name() -> String {
    match super::path() {
        Ok(path) => format!("{} {}", Kernel::of(path).name(), path.name()),
        Err(_) => "none".into(),
    }
}

fn product(kernel: Kernel, w: Weights, x: &[f32], rows: usize, y: &mut [MaybeUninit<f32>]) {
    let (n_out, k_in) = w.shape;
    if n_out == 0 || k_in == 0 {
        y.fill(MaybeUninit::new(0.0));
        return;
    }
    let step = super::even_step(rows, Inputs::most(k_in));
    let mut inputs = memory::scope(Part::Workspace, || Inputs::new(step, k_in));
    let task = (TASK / k_in).min(n_out.div_ceil(16)).clamp(1, TASK_ROWS);
    for (x, y) in x.chunks(step * k_in).zip(y.chunks_mut(step * n_out)) {
        inputs.quantize(kernel, x);
        let p = Product {
            w,
            inputs: &inputs,
            rows: x.len() / k_in,
            y: y.as_mut_ptr().cast(),
        };
        let parallel = x.len() * n_out >= super::SERIAL;
        let task = task.next_multiple_of(BLOCK);
        super::split(n_out, task, parallel, |weight_rows| {
            // SAFETY: the kernel is available, `x` and `y` have the lengths that `output` made
            // sure of, and `split` hands out disjoint ranges of at most `TASK_ROWS` weight rows.
            unsafe { kernel.multiply(p, weight_rows) }
        });
    }
}

/// One cache line of codes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// What a row of inputs is besides its codes.
#[derive(Clone, Copy, Default)]
struct Row {
    scale: f32,
    /// The sum of its codes.
    sum: i32,
}

/// Quantized rows of `x`, each on lines of its own with zeros behind its codes.
struct Inputs {
    codes: Vec<Line>,
    rows: Vec<Row>,
    k_in: usize,
}

impl Inputs {
    /// Lines of a row. One is not used: it keeps rows whose length is a power of two off the same
    /// sets of the cache.
    fn stride(k_in: usize) -> usize {
        k_in.div_ceil(64) + 1
    }

    /// Rows that fit the workspace.
    fn most(k_in: usize) -> usize {
        let row = Self::stride(k_in) * size_of::<Line>() + size_of::<Row>();
        (WORKSPACE_BYTES / row).max(1)
    }

    fn new(rows: usize, k_in: usize) -> Self {
        Self {
            codes: vec![Line([0; 64]); rows * Self::stride(k_in)],
            rows: vec![Row::default(); rows],
            k_in,
        }
    }

    /// Replaces the first rows by those of `x`, `[rows, k_in]`.
    fn quantize(&mut self, kernel: Kernel, x: &[f32]) {
        self.codes
            .par_chunks_mut(Self::stride(self.k_in))
            .zip(&mut self.rows)
            .zip(x.par_chunks(self.k_in))
            .with_min_len(QUANTIZE_TASK.div_ceil(self.k_in))
            .for_each(|((lines, row), x)| {
                // SAFETY: lines are 64 codes each, and there are enough for those of a row.
                let codes =
                    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), x.len()) };
                // SAFETY: the kernel is available.
                *row = unsafe { kernel.quantize(x, codes) };
            });
    }

    #[inline(always)]
    fn codes(&self, row: usize) -> *const i8 {
        self.codes[row * Self::stride(self.k_in)..].as_ptr().cast()
    }
}

/// Where a kernel reads and writes: `y` is `[rows, n_out]`, `rows` the first ones of `inputs`.
#[derive(Clone, Copy)]
struct Product<'a> {
    w: Weights<'a>,
    inputs: &'a Inputs,
    rows: usize,
    y: *mut f32,
}

// SAFETY: tasks write disjoint columns of `y`, which outlives the product.
unsafe impl Send for Product<'_> {}
unsafe impl Sync for Product<'_> {}

/// Which instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
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
    fn of(path: Path) -> Self {
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

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => "int8-dot-vnni",
            _ => "int8-dot",
        }
    }

    /// [`multiply`] for this kernel.
    ///
    /// # Safety
    /// The CPU has the instructions; otherwise as for [`multiply`].
    unsafe fn multiply(self, p: Product, weight_rows: Range<usize>) {
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

    /// [`quantize`] for this kernel.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn quantize(self, x: &[f32], codes: &mut [i8]) -> Row {
        // SAFETY: passed on.
        unsafe {
            match self {
                Kernel::Portable => portable::quantize(x, codes),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => avx2::quantize(x, codes),
                #[cfg(target_arch = "x86_64")]
                _ => avx512::quantize(x, codes),
            }
        }
    }
}

/// The functions below, compiled for one instruction set.
macro_rules! entry_points {
    ($module:ident, $dot:ty, $(#[$attribute:meta])*) => {
        mod $module {
            use super::*;

            $(#[$attribute])*
            pub(super) unsafe fn multiply(p: Product, weight_rows: Range<usize>) {
                // SAFETY: the caller vouches for the instructions and the pointers.
                unsafe { super::multiply::<$dot>(p, weight_rows) }
            }

            $(#[$attribute])*
            #[allow(dead_code)]
            pub(super) unsafe fn quantize(x: &[f32], codes: &mut [i8]) -> Row {
                super::quantize(x, codes)
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
#[cfg(target_arch = "x86_64")]
entry_points!(
    vnni,
    super::super::avx512::Vnni,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
);

#[inline(always)]
fn quantize(x: &[f32], codes: &mut [i8]) -> Row {
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
unsafe fn multiply<D: Dot>(p: Product, weight_rows: Range<usize>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// AVX-512 without VNNI is no path of its own, so no other test sees it where VNNI is there.
    #[test]
    #[cfg(target_arch = "x86_64")]
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
