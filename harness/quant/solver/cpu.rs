//! The [`Solver`] of the CPU: F32 products, the factorization in F64.

use super::{Factor, InputSums, Quadratic, Rounding, Solver};
use crate::Result;
use crate::packed::cpu::product_f32;
use crate::quant::grid::Rounded;
use crate::quant::linalg::inverse_factor;
use crate::quant::{LayerStats, Matrix, StatsBuilder};
use candle_core::Tensor;
use rayon::prelude::*;

/// The CPU.
#[derive(Debug, Clone, Copy)]
pub struct Cpu;

impl Solver for Cpu {
    fn sums(&self, k: usize) -> Result<Box<dyn InputSums>> {
        Ok(Box::new(LayerStats::builder(k)))
    }

    fn quadratic<'a>(&self, h: &'a Matrix) -> Result<Box<dyn Quadratic + 'a>> {
        Ok(Box::new(Weighing { h }))
    }

    fn factor(
        &self,
        h: &Matrix,
        order: &[usize],
        diagonal: &[f64],
    ) -> Result<Option<Box<dyn Factor>>> {
        let k = order.len();
        let mut damped = vec![0f64; k * k];
        let rows = damped.par_chunks_mut(k.max(1)).zip(order).zip(diagonal);
        rows.enumerate().for_each(|(r, ((row, i), own))| {
            for (to, j) in row.iter_mut().zip(order) {
                *to = f64::from(h.data[i * k + j]);
            }
            row[r] = *own;
        });
        let factor = inverse_factor(damped, k);
        Ok(factor.map(|transposed| Box::new(Triangle { transposed, k }) as Box<dyn Factor>))
    }
}

impl InputSums for StatsBuilder {
    fn add(&mut self, x: &Tensor) -> Result<()> {
        self.accumulate(&x.flatten_all()?.to_vec1::<f32>()?)
    }

    fn finish(self: Box<Self>) -> Result<LayerStats> {
        Ok(StatsBuilder::finish(*self))
    }
}

struct Weighing<'a> {
    h: &'a Matrix,
}

impl Quadratic for Weighing<'_> {
    fn energies(&self, errors: &[f32]) -> Result<Vec<f64>> {
        energies(errors, &self.h.data, self.h.cols)
    }
}

/// `d H dᵀ` for every row `d` of `errors` `[_, k]`, with `H` symmetric `[k, k]`.
pub fn energies(errors: &[f32], h: &[f32], k: usize) -> Result<Vec<f64>> {
    let mut product = vec![0f32; errors.len()];
    product_f32(errors, h, errors.len() / k, k, k, &mut product)?;
    let rows = errors
        .par_chunks(k)
        .zip(product.par_chunks(k))
        .map(|(d, p)| {
            d.iter()
                .zip(p)
                .map(|(d, p)| f64::from(*d) * f64::from(*p))
                .sum()
        });
    Ok(rows.collect())
}

/// `Uᵀ`, row-major `[k, k]`.
struct Triangle {
    transposed: Vec<f32>,
    k: usize,
}

impl Factor for Triangle {
    fn round(&self, weight: &Matrix, rounding: &Rounding) -> Result<Option<Rounded>> {
        let Matrix {
            rows: n, cols: k, ..
        } = *weight;
        let Rounding { spec, order, .. } = rounding;
        let len = spec.group_len(k);
        let divides = |a: usize, b: usize| b.is_multiple_of(a);
        let aligned = divides(len, rounding.block) || divides(rounding.block, len) || len == k;
        let block = if aligned { rounding.block } else { len };

        let mut work: Vec<f32> = weight
            .data
            .chunks(k)
            .flat_map(|row| order.iter().map(|column| row[*column]))
            .collect();
        let mut rounded = Rounded::new(spec, n, k);
        if rounding.static_groups {
            let fits = weight.data.chunks(k).flat_map(|row| row.chunks(len));
            for (grid, weights) in rounded.grids.iter_mut().zip(fits) {
                match spec.fit(weights) {
                    Some(fit) => *grid = fit,
                    None => return Ok(None),
                }
            }
        }
        for from in (0..k).step_by(block) {
            let to = (from + block).min(k);
            let width = to - from;
            // Rows `from..to` of U, so that the inner loop reads along a row.
            let mut upper = vec![0f32; width * width];
            for i in 0..width {
                for j in i..width {
                    upper[i * width + j] = self.transposed[(from + j) * k + from + i];
                }
            }
            let mut errors = vec![0f32; n * width];
            let Rounded { codes, grids } = &mut rounded;
            let fitted = work
                .par_chunks_mut(k)
                .zip(codes.par_chunks_mut(k))
                .zip(grids.par_chunks_mut(spec.groups(k)))
                .zip(errors.par_chunks_mut(width))
                .try_for_each(|(((row, codes), grids), errors)| {
                    for i in 0..width {
                        let at = from + i;
                        let column = order[at];
                        if at % len == 0 && !rounding.static_groups {
                            grids[at / len] = spec.fit(&row[at..(at + len).min(k)])?;
                        }
                        let grid = grids[column / len];
                        let code = grid.code(row[at]);
                        codes[column] = code as u8;
                        let u = &upper[i * width..][..width];
                        errors[i] = (row[at] - grid.level(code)) / u[i];
                        for (w, u) in row[at + 1..to].iter_mut().zip(&u[i + 1..]) {
                            *w -= errors[i] * u;
                        }
                    }
                    Some(())
                });
            if fitted.is_none() {
                return Ok(None);
            }
            self.correct(&mut work, &errors, from..to)?;
        }
        Ok(Some(rounded))
    }
}

impl Triangle {
    /// `work[:, end..] -= errors · U[block, end..]` for `work` `[n, k]` and `errors` `[n, block]`.
    fn correct(
        &self,
        work: &mut [f32],
        errors: &[f32],
        block: std::ops::Range<usize>,
    ) -> Result<()> {
        let k = self.k;
        let (width, behind) = (block.len(), k - block.end);
        let n = work.len() / k;
        if behind == 0 {
            return Ok(());
        }
        let columns: Vec<f32> = self.transposed[block.end * k..]
            .chunks(k)
            .flat_map(|row| &row[block.clone()])
            .copied()
            .collect();
        let mut moved = vec![0f32; n * behind];
        product_f32(errors, &columns, n, behind, width, &mut moved)?;
        let rows = work.par_chunks_mut(k).zip(moved.par_chunks(behind));
        rows.for_each(|(row, moved)| {
            for (w, m) in row[block.end..].iter_mut().zip(moved) {
                *w -= m;
            }
        });
        Ok(())
    }
}
