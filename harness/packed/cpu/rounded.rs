//! Products whose inputs are rounded first, by a scale per row, and kept as F32 numbers: the F32
//! kernels on a few rows at a time.

use super::kernel::Tile;
use super::rows::Rows;
use super::{FUSED_ROWS, WORKSPACE_BYTES};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Writes the rounded numbers of a row, and returns the scale that they are to be multiplied by.
type Round = fn(&[f32], &mut [f32]) -> f32;

/// Numbers that repay handing them to another thread.
const ROUND_TASK: usize = 1 << 14;

/// `y = (round(x) Wᵀ · x_scale) · weight_scale`: `w` comes without scales, `scales` are one per
/// output.
///
/// # Errors
/// Those of [`super::forward`].
pub(in crate::packed) fn forward(
    w: impl Rows,
    scales: &[f32],
    round: Round,
    x: &Tensor,
) -> Result<Tensor> {
    super::output(w.shape(), x, |x, rows, y| {
        product(w, scales, round, x, rows, y)
    })
}

fn product(
    w: impl Rows,
    scales: &[f32],
    round: Round,
    x: &[f32],
    rows: usize,
    y: &mut [MaybeUninit<f32>],
) -> Result<()> {
    let (n_out, k_in) = w.shape();
    assert_eq!(scales.len(), n_out, "one scale per output");
    if n_out == 0 || k_in == 0 {
        return super::product(w, x, rows, y);
    }
    let step = step(rows, k_in);
    let mut numbers = super::workspace(step * k_in);
    numbers.resize(step * k_in, 0.0);
    for (x, y) in x.chunks(step * k_in).zip(y.chunks_mut(step * n_out)) {
        let rows = x.len() / k_in;
        let numbers = &mut numbers[..x.len()];
        let x_scales: Vec<f32> = numbers
            .par_chunks_mut(k_in)
            .zip(x.par_chunks(k_in))
            .with_min_len(ROUND_TASK.div_ceil(k_in))
            .map(|(numbers, x)| round(x, numbers))
            .collect();
        super::product(w, numbers, rows, y)?;
        for (y, x_scale) in y.chunks_mut(n_out).zip(x_scales) {
            for (y, scale) in y.iter_mut().zip(scales) {
                // SAFETY: `product` has written every element.
                let sum = unsafe { y.assume_init() };
                y.write((sum * x_scale) * scale);
            }
        }
    }
    Ok(())
}

/// Rows of inputs that are rounded at once: as many as fit a thread's workspace beside a tile of
/// weights; where those are few, as many as the fused kernel takes, which needs no tile.
fn step(rows: usize, k_in: usize) -> usize {
    let room = WORKSPACE_BYTES / size_of::<f32>();
    let beside_tile = (room - Tile::new(k_in).len()) / k_in;
    let most = match beside_tile > FUSED_ROWS {
        true => beside_tile,
        false => (room / k_in).clamp(1, FUSED_ROWS),
    };
    super::even_step(rows, most)
}

/// Name of the kernel for `rows` inputs of `k_in` numbers, for a row of the report.
pub(in crate::packed) fn kernel_name(rows: usize, k_in: usize) -> String {
    let kernel = super::kernel_name(step(rows, k_in.max(1)));
    format!("rounded-inputs {kernel}")
}

#[cfg(test)]
mod tests {
    use super::super::super::activations::MAX_INPUTS;
    use super::*;

    #[test]
    fn inputs_and_a_tile_fit_the_workspace() {
        for k_in in (1..=MAX_INPUTS).step_by(7).chain([MAX_INPUTS]) {
            for rows in [1, 8, 9, 64, 2048] {
                let step = step(rows, k_in);
                let tile = match step > FUSED_ROWS {
                    true => Tile::new(k_in).len(),
                    false => 0,
                };
                let bytes = (step * k_in + tile) * size_of::<f32>();
                assert!(step > 0 && bytes <= WORKSPACE_BYTES, "{rows} of {k_in}");
            }
        }
    }
}
