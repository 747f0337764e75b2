//! `awq-int4`: AWQ (Lin et al., arXiv 2306.00978). Channels with large inputs are scaled up
//! before rounding, so that their weights are rounded more finely, and the producer of the input
//! is scaled down; then the range of each grid is clipped where that lowers the error.
//!
//! 1. [`fold`](QuantMethod::fold): scales `s = abs_mean^α`, normalized by `√(max · min)`, for 20
//!    exponents `α = 0, 1/20 … 19/20`. The best has the least output error of all linears of the
//!    group together, `Σ tr(D H Dᵀ)` with `H = Σ x xᵀ` and `D = RTN(W·s)/s - W`: exactly the
//!    squared error summed over all calibration tokens. The paper's code measures the same on
//!    one sample of tokens.
//! 2. [`quantize`](QuantMethod::quantize): per row and group, the range `[min, max]` times
//!    `1 - i/20` for `i` in `0..10`, by the squared error of that group's part of the output.
//!    Query and key are not clipped: attention multiplies the two, so that their own output
//!    error says little (as in the paper's code).

use super::grid::{Grid, GridSpec, Rounded, extent, too_large};
use super::solver::{Quadratic, cpu::energies};
use super::{
    Calibration, Family, Group, LayerStats, Listed, Matrix, Member, Notes, QuantMethod, Role, count,
};
use crate::Result;
use crate::packed::{FormatSpec, PackedLinear};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: "awq-int4",
        about: "AWQ: channels with large inputs are scaled up, ranges clipped, 4 bits, groups of \
                128 (also -int2 -int3 -int8, -g64, -gch)",
    }],
    parse: |id| GridSpec::parse("awq", id, |spec| Awq { spec }),
};

/// Exponents that are tried, `i / 20`.
const EXPONENTS: usize = 20;
/// Ranges that are tried, `1 - i / 20`.
const RATIOS: usize = 10;

/// AWQ. Notes: `awq_groups` (searched), `awq_identity_groups` (searched, best left alone),
/// `awq_exponent_0.35` (groups that chose it), `awq_unfoldable_groups`, `awq_clipped_grids` of
/// `awq_grids`.
pub struct Awq {
    pub spec: GridSpec,
}

impl Awq {
    /// `Σ tr(D H Dᵀ)` over members for scales `s`; infinite when a grid's step exceeds FP16.
    fn scaled_error(&self, group: &Group, h: &dyn Quadratic, s: &[f32]) -> Result<f64> {
        let k = group.inputs();
        let mut total = 0.0;
        for member in &group.members {
            let weight = &member.weight;
            let mut error = vec![0f32; weight.data.len()];
            let rounded = error
                .par_chunks_mut(k)
                .enumerate()
                .try_for_each(|(r, error)| {
                    let row = weight.row(r);
                    let scaled: Vec<f32> = row.iter().zip(s).map(|(w, s)| w * s).collect();
                    for range in self.spec.ranges(k) {
                        let grid = self.spec.fit(&scaled[range.clone()])?;
                        for at in range {
                            error[at] = grid.nearest(scaled[at]) / s[at] - row[at];
                        }
                    }
                    Some(())
                });
            if rounded.is_none() {
                return Ok(f64::INFINITY);
            }
            total += h.energies(&error)?.iter().sum::<f64>();
        }
        Ok(total)
    }

    /// The grid of every row and group, `[rows, groups]`, and how many have a clipped range.
    fn clipped_grids(&self, member: &Member, h: &Matrix) -> Result<(Vec<Grid>, usize)> {
        let weight = &member.weight;
        let Matrix { rows, cols: k, .. } = *weight;
        let groups = self.spec.groups(k);
        let mut grids = vec![None; rows * groups];
        let mut clipped = 0;
        for (g, range) in self.spec.ranges(k).enumerate() {
            let len = range.len();
            let part: Vec<f32> = h.data[range.start * k..range.end * k]
                .chunks(k)
                .flat_map(|row| &row[range.clone()])
                .copied()
                .collect();
            // Per row: least error, its grid, whether it is clipped.
            let mut best = vec![(f64::INFINITY, None, false); rows];
            let mut error = vec![0f32; rows * len];
            for i in 0..RATIOS {
                let ratio = 1.0 - i as f32 / 20.0;
                let tried: Vec<Option<Grid>> = error
                    .par_chunks_mut(len)
                    .enumerate()
                    .map(|(r, error)| {
                        let weights = &weight.row(r)[range.clone()];
                        let (low, high) = extent(weights);
                        let grid = self.spec.span(low * ratio, high * ratio)?;
                        for (error, w) in error.iter_mut().zip(weights) {
                            *error = grid.nearest(*w) - w;
                        }
                        Some(grid)
                    })
                    .collect();
                let errors = energies(&error, &part, len)?;
                for (best, (grid, error)) in best.iter_mut().zip(tried.into_iter().zip(errors)) {
                    // The whole range first and then only what is strictly better: ties, and
                    // channels that were never active, keep the whole range.
                    if grid.is_some() && (best.1.is_none() || error < best.0) {
                        *best = (error, grid, i > 0);
                    }
                }
            }
            for (r, (_, grid, is_clipped)) in best.into_iter().enumerate() {
                grids[r * groups + g] = grid;
                clipped += usize::from(is_clipped);
            }
        }
        let grids: Option<Vec<Grid>> = grids.into_iter().collect();
        let grids = grids.ok_or_else(|| too_large(member, &self.id()))?;
        Ok((grids, clipped))
    }

    fn round(&self, member: &Member, h: &Matrix, notes: &mut Notes) -> Result<Rounded> {
        let spec = &self.spec;
        if matches!(member.role, Role::Query | Role::Key) {
            return spec.round(member, &self.id(), |_, _, weights| spec.fit(weights));
        }
        let (grids, clipped) = self.clipped_grids(member, h)?;
        count(notes, "awq_grids", grids.len());
        count(notes, "awq_clipped_grids", clipped);
        let groups = spec.groups(member.weight.cols);
        spec.round(member, &self.id(), |r, g, _| Some(grids[r * groups + g]))
    }
}

/// `abs_mean^α`, normalized so that `√(max · min) = 1`; `None` when no channel was ever active.
///
/// A channel that was never active takes the scale of the least active one: it says nothing of
/// how fine it should be rounded, and zero cannot be divided by.
fn scales(abs_mean: &[f32], alpha: f64) -> Option<Vec<f32>> {
    let live = abs_mean.iter().filter(|a| **a > 0.0).map(|a| f64::from(*a));
    let (low, high) = live.fold((f64::INFINITY, 0f64), |(l, h), a| (l.min(a), h.max(a)));
    if high == 0.0 {
        return None;
    }
    let middle = (low * high).sqrt();
    let scale = |a: &f32| (f64::from(*a).max(low) / middle).powf(alpha) as f32;
    Some(abs_mean.iter().map(scale).collect())
}

impl QuantMethod for Awq {
    fn id(&self) -> String {
        self.spec.id("awq")
    }

    fn method(&self) -> &'static str {
        "awq"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        let mut parameters = self.spec.parameters();
        parameters.insert("exponents".into(), json!(EXPONENTS));
        parameters.insert("clip_ratios".into(), json!(RATIOS));
        parameters.insert("clip_step".into(), json!(0.05));
        parameters.insert("objective".into(), json!("group output error from XtX"));
        parameters
    }

    fn spec(&self) -> FormatSpec {
        self.spec.format()
    }

    fn calibration(&self) -> Calibration {
        Calibration::Inputs
    }

    fn fold(
        &self,
        group: &Group,
        stats: Option<&LayerStats>,
        notes: &mut Notes,
    ) -> Result<Option<Vec<f32>>> {
        group.check(&self.id())?;
        let stats = LayerStats::require(stats, group, &self.id())?;
        if !group.foldable {
            count(notes, "awq_unfoldable_groups", 1);
            return Ok(None);
        }
        let h = stats.solver.quadratic(&stats.xtx)?;
        let mut best = (f64::INFINITY, 0, None);
        for i in 0..EXPONENTS {
            let Some(s) = scales(&stats.abs_mean, i as f64 / EXPONENTS as f64) else {
                break;
            };
            let error = self.scaled_error(group, h.as_ref(), &s)?;
            if error < best.0 {
                best = (error, i, (i > 0).then_some(s));
            }
        }
        let (_, exponent, chosen) = best;
        count(notes, "awq_groups", 1);
        count(notes, "awq_identity_groups", usize::from(chosen.is_none()));
        let exponent = exponent as f64 / EXPONENTS as f64;
        count(notes, format!("awq_exponent_{exponent:.2}"), 1);
        Ok(chosen)
    }

    fn quantize(
        &self,
        group: &Group,
        stats: Option<&LayerStats>,
        notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        let id = self.id();
        group.check(&id)?;
        let stats = LayerStats::require(stats, group, &id)?;
        group.pack_each(&id, |member| {
            let rounded = self.round(member, &stats.xtx, notes)?;
            rounded.pack(&self.spec, member.weight.rows, member.weight.cols)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_normalized_and_positive() {
        let s = scales(&[4.0, 1.0, 0.0, 16.0], 0.5).unwrap();
        assert_eq!(s, [1.0, 0.5, 0.5, 2.0]);
        assert_eq!(scales(&[4.0, 0.0], 0.0).unwrap(), [1.0, 1.0]);
        assert!(scales(&[0.0, 0.0], 0.5).is_none());
    }
}
