//! The matrix work of calibration and methods, on the CPU or on a GPU. Methods ask for it through
//! [`LayerStats::solver`] and do not know where it happens.
//!
//! Matrices travel as host memory; what is used more than once stays where it was prepared, in a
//! [`Quadratic`] or a [`Factor`].

pub mod cpu;
pub mod gpu;

use super::grid::{GridSpec, Rounded};
use super::{LayerStats, Matrix};
use crate::Result;
use candle_core::Tensor;
use std::fmt::Debug;

/// Where products with `Σ x xᵀ` and its factors are computed.
pub trait Solver: Debug + Send + Sync {
    /// Sums over inputs of `k` channels, none so far.
    fn sums(&self, k: usize) -> Result<Box<dyn InputSums>>;

    /// Output errors under `h`, symmetric `[k, k]`.
    fn quadratic<'a>(&self, h: &'a Matrix) -> Result<Box<dyn Quadratic + 'a>>;

    /// The upper factor `U` of `H⁻¹ = Uᵀ U`, where `H` is `h`, symmetric `[k, k]`, with its inputs
    /// in the order `order` and `diagonal` (in that order) in place of its diagonal. `None` when
    /// `H` is not positive definite.
    fn factor(
        &self,
        h: &Matrix,
        order: &[usize],
        diagonal: &[f64],
    ) -> Result<Option<Box<dyn Factor>>>;
}

/// [`LayerStats`] in the making.
pub trait InputSums: Send {
    /// Adds inputs `[tokens, k]`, of the dtype and on the device of the activations.
    fn add(&mut self, x: &Tensor) -> Result<()>;

    /// The statistics of all inputs so far.
    fn finish(self: Box<Self>) -> Result<LayerStats>;
}

/// A symmetric `H`, ready to weigh errors.
pub trait Quadratic {
    /// `d H dᵀ` for every row `d` of `errors`, row-major `[_, k]`.
    fn energies(&self, errors: &[f32]) -> Result<Vec<f64>>;
}

/// A factor `U`, ready to make later columns up for the errors of earlier ones.
pub trait Factor {
    /// Codes of a weight `[n, k]`, columns rounded one after the other, each error moved to the
    /// columns that are not rounded yet. `None` when a grid's step exceeds FP16.
    fn round(&self, weight: &Matrix, rounding: &Rounding) -> Result<Option<Rounded>>;
}

/// How [`Factor::round`] takes the columns of a weight.
#[derive(Debug, Clone, Copy)]
pub struct Rounding<'a> {
    pub spec: GridSpec,
    /// The columns as they are rounded: the order that the factor was made for.
    pub order: &'a [usize],
    /// Whether grids are fitted to the weights as they were, or each when its first column comes
    /// up; the latter needs columns in their own order.
    pub static_groups: bool,
    /// Columns that are corrected at once, if they hold whole groups or lie in one.
    pub block: usize,
}
