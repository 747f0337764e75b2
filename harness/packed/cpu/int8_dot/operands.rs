//! The operands of an 8-bit integer product: packed weights, and rows of inputs quantized to codes.

use crate::packed::cpu::WORKSPACE_BYTES;
use half::f16;
use rayon::prelude::*;

/// Inputs that repay handing them to another thread.
const QUANTIZE_TASK: usize = 1 << 14;

/// A packed matrix `[n_out, k_in]` of two's-complement bytes with a scale per output.
#[derive(Clone, Copy)]
pub(in crate::packed) struct Weights<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [f16],
    pub shape: (usize, usize),
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

/// One cache line of codes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// What a row of inputs is besides its codes.
#[derive(Clone, Copy, Default)]
pub struct Row {
    pub scale: f32,
    /// The sum of its codes.
    pub sum: i32,
}

/// Quantized rows of `x`, each on lines of its own with zeros behind its codes.
pub struct Inputs {
    codes: Vec<Line>,
    pub rows: Vec<Row>,
    k_in: usize,
}

impl Inputs {
    /// Lines of a row. One is not used: it keeps rows whose length is a power of two off the same
    /// sets of the cache.
    fn stride(k_in: usize) -> usize {
        k_in.div_ceil(64) + 1
    }

    /// Rows that fit the workspace.
    pub fn most(k_in: usize) -> usize {
        let row = Self::stride(k_in) * size_of::<Line>() + size_of::<Row>();
        (WORKSPACE_BYTES / row).max(1)
    }

    pub fn new(rows: usize, k_in: usize) -> Self {
        Self {
            codes: vec![Line([0; 64]); rows * Self::stride(k_in)],
            rows: vec![Row::default(); rows],
            k_in,
        }
    }

    /// Replaces the first rows by those of `x`, `[rows, k_in]`, each quantized by `quantize_row`, which
    /// writes the codes and returns what the row is besides.
    pub fn quantize(&mut self, x: &[f32], quantize_row: impl Fn(&[f32], &mut [i8]) -> Row + Sync) {
        self.codes
            .par_chunks_mut(Self::stride(self.k_in))
            .zip(&mut self.rows)
            .zip(x.par_chunks(self.k_in))
            .with_min_len(QUANTIZE_TASK.div_ceil(self.k_in))
            .for_each(|((lines, row), x)| {
                // SAFETY: lines are 64 codes each, and there are enough for those of a row.
                let codes =
                    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), x.len()) };
                *row = quantize_row(x, codes);
            });
    }

    #[inline(always)]
    pub fn codes(&self, row: usize) -> *const i8 {
        self.codes[row * Self::stride(self.k_in)..].as_ptr().cast()
    }
}
