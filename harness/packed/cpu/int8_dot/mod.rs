//! Products of 8-bit integer weights with inputs that are quantized to 8-bit integers.
//!
//! A block of rows of `x` is quantized once into workspace that all threads read; tasks of weight
//! rows then multiply it in register blocks, straight from the codes, for one row as for many.
//! Sums are exact in I32 (see [`MAX_INPUTS`](crate::packed::activations::MAX_INPUTS)) and scaled by
//! the same two F32 multiplications everywhere, so results do not depend on the instruction set,
//! the threads or the blocks.

mod kernel;
mod paths;

pub use kernel::Dot;

use super::WORKSPACE_BYTES;
use crate::Result;
use crate::memory::{self, Part};
use candle_core::Tensor;
use half::f16;
use kernel::{BLOCK, Product, TASK_ROWS};
use paths::Kernel;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Codes of weights in a task, about: they stay in the second-level cache, beside the inputs, and
/// take long against the cost of a task.
const TASK: usize = 1 << 17;

/// Inputs that repay handing them to another thread.
const QUANTIZE_TASK: usize = 1 << 14;

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

/// `y = x Wᵀ` with inputs quantized per row; see
/// [`activations`](crate::packed::activations).
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
        super::split(n_out, task, parallel, |_, weight_rows| {
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
