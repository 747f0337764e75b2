//! Products of 8-bit integer weights with inputs that are quantized to 8-bit integers.
//!
//! A block of rows of `x` is quantized once into workspace that all threads read; tasks of weight
//! rows then multiply it in register blocks, straight from the codes, for one row as for many.
//! Sums are exact in I32 (see [`MAX_INPUTS`](crate::packed::activations::MAX_INPUTS)) and scaled by
//! the same two F32 multiplications everywhere, so results do not depend on the instruction set,
//! the threads or the blocks.

mod kernel;
mod operands;
mod paths;

pub(in crate::packed) use operands::Weights;

use crate::Result;
use crate::memory::{self, Part};
use candle_core::Tensor;
use kernel::{BLOCK, Product, TASK_ROWS};
use operands::Inputs;
use paths::Kernel;
use std::mem::MaybeUninit;

/// Codes of weights in a task, about: they stay in the second-level cache, beside the inputs, and
/// take long against the cost of a task.
const TASK: usize = 1 << 17;

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
        // SAFETY: the kernel is available.
        inputs.quantize(x, |x, codes| unsafe { kernel.quantize(x, codes) });
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
