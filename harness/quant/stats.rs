//! What calibration learns of one group's inputs, and how it is summed up.

use super::solver::{Solver, cpu::Cpu};
use super::{Group, Matrix};
use crate::packed::cpu::product_f32;
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

/// Statistics of one group's inputs over the calibration tokens.
#[derive(Debug, Clone)]
pub struct LayerStats {
    pub tokens: usize,
    /// `Σ x xᵀ` over tokens, row-major `[k_in, k_in]`, symmetric.
    pub xtx: Matrix,
    /// Mean of `|x|` per channel, `[k_in]`.
    pub abs_mean: Vec<f32>,
    /// Where methods compute with them.
    pub solver: Arc<dyn Solver>,
}

impl LayerStats {
    /// Statistics that methods compute with on the CPU.
    pub fn new(tokens: usize, xtx: Matrix, abs_mean: Vec<f32>) -> Self {
        LayerStats {
            tokens,
            xtx,
            abs_mean,
            solver: Arc::new(Cpu),
        }
    }

    /// Sums for inputs of `k` channels; feed it with [`StatsBuilder::accumulate`].
    pub fn builder(k: usize) -> StatsBuilder {
        StatsBuilder {
            tokens: 0,
            xtx: Matrix::zeros(k, k),
            abs_sum: vec![0.0; k],
        }
    }

    /// The statistics of `x[k] / scales[k]`, that is of the inputs after a fold.
    pub fn scaled(&self, scales: &[f32]) -> LayerStats {
        let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        let mut scaled = self.clone();
        // One product of the two scales first: (i, j) and (j, i) then round alike.
        let k = inverse.len().max(1);
        for (row, a) in scaled.xtx.data.chunks_mut(k).zip(&inverse) {
            row.iter_mut().zip(&inverse).for_each(|(h, b)| *h *= a * b);
        }
        for (mean, b) in scaled.abs_mean.iter_mut().zip(&inverse) {
            *mean *= b;
        }
        scaled
    }

    /// The statistics that a method asked for, or an [`Error::Quantize`] that names the group's
    /// first module when they are missing, of another width, or not finite.
    pub fn require<'a>(
        stats: Option<&'a LayerStats>,
        group: &Group,
        method: &str,
    ) -> Result<&'a LayerStats> {
        let fault = |what: String, next: &str| match group.members.first() {
            Some(member) => member.refuse(method, what, next),
            None => Error::Quantize {
                method: method.into(),
                what,
                next: next.into(),
            },
        };
        let Some(stats) = stats else {
            let what = "no statistics of its inputs".to_string();
            return Err(fault(what, "calibrate before quantizing with this method"));
        };
        let k = group.inputs();
        let Matrix { rows, cols, data } = &stats.xtx;
        if (*rows, *cols, data.len(), stats.abs_mean.len()) != (k, k, k * k, k) {
            let what = format!("takes {k} inputs, its statistics describe {cols}");
            return Err(fault(what, "calibrate with the model that is quantized"));
        }
        if !data.iter().chain(&stats.abs_mean).all(|v| v.is_finite()) {
            return Err(fault(
                "its inputs were not finite during calibration".to_string(),
                "compare perplexity at fp32: the checkpoint or an earlier layer overflows",
            ));
        }
        Ok(stats)
    }
}

/// Adds up [`LayerStats`] chunk by chunk.
///
/// `Σ x xᵀ` is kept in F32, half the memory of F64 where it is largest (`k_in²` values). With `c`
/// chunks of `t` tokens an entry carries a relative error of at most `(c + t) · 2⁻²⁴` of its
/// channels' energies, some 1e-5; GPTQ adds a hundredth of the mean diagonal before it uses the
/// matrix and AWQ only compares sums of it. `Σ |x|` has no such size and is kept in F64.
#[derive(Debug, Clone)]
pub struct StatsBuilder {
    tokens: usize,
    xtx: Matrix,
    abs_sum: Vec<f64>,
}

impl StatsBuilder {
    /// Adds inputs `x`, row-major `[tokens, k_in]`. [`Error::Usage`] when the length is not a
    /// multiple of `k_in`. The sums depend on how tokens are cut into chunks (by rounding) and on
    /// nothing else.
    pub fn accumulate(&mut self, x: &[f32]) -> Result<()> {
        let k = self.abs_sum.len();
        if k == 0 || !x.len().is_multiple_of(k) {
            return Err(Error::usage(
                format!("{} values are not rows of {k} inputs", x.len()),
                "pass whole tokens",
            ));
        }
        let tokens = x.len() / k;
        if tokens == 0 {
            return Ok(());
        }
        let mut transposed = vec![0.0; x.len()];
        transposed
            .par_chunks_mut(tokens)
            .zip(&mut self.abs_sum)
            .enumerate()
            .for_each(|(channel, (column, sum))| {
                for (value, row) in column.iter_mut().zip(x.chunks(k)) {
                    *value = row[channel];
                    *sum += f64::from(value.abs());
                }
            });
        let mut chunk = vec![0.0; k * k];
        product_f32(&transposed, &transposed, k, k, tokens, &mut chunk)?;
        for (sum, value) in self.xtx.data.iter_mut().zip(&chunk) {
            *sum += value;
        }
        self.tokens += tokens;
        Ok(())
    }

    /// The statistics of all tokens so far; all zero when there were none.
    pub fn finish(self) -> LayerStats {
        let mut xtx = self.xtx;
        mirror(&mut xtx);
        let tokens = self.tokens.max(1) as f64;
        let abs_mean = self.abs_sum.iter().map(|s| (s / tokens) as f32).collect();
        LayerStats::new(self.tokens, xtx, abs_mean)
    }
}

/// Copies what is above the diagonal below it: a product may sum (i, j) and (j, i) in different
/// order, and methods rely on symmetry.
pub(super) fn mirror(xtx: &mut Matrix) {
    for i in 0..xtx.rows {
        for j in 0..i {
            xtx.data[i * xtx.cols + j] = xtx.data[j * xtx.cols + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(chunks: &[&[f32]], k: usize) -> LayerStats {
        let mut builder = LayerStats::builder(k);
        for chunk in chunks {
            builder.accumulate(chunk).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn chunks_add_up_to_the_whole() {
        let x = [1.0, -2.0, 3.0, 4.0, -5.0, 6.0];
        for s in [stats(&[&x], 2), stats(&[&x[..2], &x[2..]], 2)] {
            assert_eq!(s.tokens, 3);
            assert_eq!(s.xtx.data, [35.0, -20.0, -20.0, 56.0]);
            assert_eq!(s.abs_mean, [3.0, 4.0]);
        }
        assert!(LayerStats::builder(2).accumulate(&x[..3]).is_err());
    }

    #[test]
    fn scaled_statistics_are_those_of_scaled_inputs() {
        let scaled = stats(&[&[8.0, -2.0, 16.0, 4.0]], 2).scaled(&[4.0, 0.5]);
        let direct = stats(&[&[2.0, -4.0, 4.0, 8.0]], 2);
        assert_eq!(scaled.xtx, direct.xtx);
        assert_eq!(scaled.abs_mean, direct.abs_mean);
    }
}
