//! `gptq-int4`: GPTQ (Frantar et al., arXiv 2210.17323). Columns are rounded one after the other;
//! the error of each is made up for by the columns that are not rounded yet, in the way that
//! changes the layer's output on the calibration inputs least.
//!
//! With `H = Σ x xᵀ + λ I` and the upper factor `U` of `H⁻¹ = Uᵀ U`, rounding column `i` of a row
//! `w` to `q` moves every later column `j` by `-(w_i - q_i) / U_ii · U_ij`. Rows never meet, so
//! they run in parallel. Columns are taken in blocks: within one the correction is immediate,
//! what lies behind it is corrected once per block by a matrix product. Where that happens is the
//! [`solver`](super::solver)'s.
//!
//! **Order.** Columns are taken by falling energy of their input ("act-order"), so that the largest
//! inputs are rounded while there is most left to make up for it. Grids are fitted beforehand, to
//! the weights as they were ("static groups"), so that the stored form is that of round-to-nearest
//! and no index is needed. With `-noao` columns keep their order, and a group's grid is fitted when
//! its first column is reached, to weights that carry all corrections so far: the paper's own
//! algorithm, and the one behind tables that do not say act-order.
//!
//! Act-order is the default because without it GPTQ can lose to round-to-nearest where a model has
//! a few very large inputs. Its authors met that on LLaMA-7B and added both options to their code:
//! WikiText-2 perplexity at 4 bits without groups is 6.29 for round-to-nearest, 7.15 for GPTQ and
//! 6.09 for GPTQ with act-order and true-sequential (github.com/IST-DASLab/gptq, README at
//! 2d65066). The commands in GPTQ-for-LLaMa's README (e985b70) ask for act-order; GPTQModel
//! (f4c327a) reorders by activation, within groups and group by group, unless told otherwise.
//! SmolLM2-135M shows the same loss. The default was chosen on calibration text that was held
//! out, never on evaluation text (`scripts/gptq-order.sh`; the figures are in
//! `reports/2026-11-21-epyc-2core-gptq-order`).

use super::grid::{GridSpec, too_large};
use super::solver::{Factor, Rounding};
use super::{Calibration, Family, Group, LayerStats, Listed, Notes, QuantMethod, count};
use crate::Result;
use crate::packed::{FormatSpec, PackedLinear};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[
        Listed {
            id: "gptq-int4",
            about: "GPTQ: later columns make up for rounding errors, largest inputs first \
                    (act-order); 4 bits, groups of 128 (also -int2 -int3 -int8, -g64, -gch)",
        },
        Listed {
            id: "gptq-int4-noao",
            about: "GPTQ without act-order: columns in their order, as in the paper",
        },
    ],
    parse: |id| match id.strip_suffix(COLUMN_ORDER) {
        Some(id) => GridSpec::parse("gptq", id, |spec| Gptq::new(spec, false)),
        None => {
            let id = id.strip_suffix(ACT_ORDER).unwrap_or(id);
            GridSpec::parse("gptq", id, |spec| Gptq::new(spec, true))
        }
    },
};

/// What ends the ids of methods without act-order.
const COLUMN_ORDER: &str = "-noao";
/// What may end the others; their canonical ids leave it out.
const ACT_ORDER: &str = "-ao";

/// How often the damping is multiplied by ten before the method gives up.
const RETRIES: usize = 3;

/// GPTQ. Notes: `gptq_damping_retries`, `gptq_dead_inputs` (channels that were zero on all
/// calibration tokens), `gptq_groups` (groups of linears).
pub struct Gptq {
    pub spec: GridSpec,
    /// `λ` as a fraction of the mean diagonal of `Σ x xᵀ`.
    pub damping: f64,
    /// Columns that are corrected at once. A block must hold whole groups or lie in one; where
    /// the two do not divide each other, the group size is used instead.
    pub block: usize,
    /// Whether columns are taken by falling energy of their input, with grids fitted beforehand,
    /// or in their order, with grids fitted on the way.
    pub act_order: bool,
}

impl Gptq {
    /// The paper's damping and block.
    pub fn new(spec: GridSpec, act_order: bool) -> Self {
        Gptq {
            spec,
            damping: 0.01,
            block: 128,
            act_order,
        }
    }

    /// The columns in the order in which they are rounded.
    fn order(&self, stats: &LayerStats) -> Vec<usize> {
        let k = stats.xtx.cols;
        let mut order: Vec<usize> = (0..k).collect();
        if self.act_order {
            let energy = |i: usize| stats.xtx.data[i * (k + 1)];
            order.sort_by(|a, b| energy(*b).total_cmp(&energy(*a)));
        }
        order
    }

    /// The factor for columns in this order.
    fn factor(
        &self,
        group: &Group,
        stats: &LayerStats,
        order: &[usize],
        notes: &mut Notes,
    ) -> Result<Box<dyn Factor>> {
        let k = group.inputs();
        let energy = |i: &usize| f64::from(stats.xtx.data[i * (k + 1)]);
        let mut energies: Vec<f64> = order.iter().map(energy).collect();
        let mean = energies.iter().sum::<f64>() / k as f64;
        let mut dead = 0;
        for energy in energies.iter_mut().filter(|energy| **energy == 0.0) {
            // Its covariances are zero too, so that any positive diagonal leaves the other
            // channels alone and rounds this one to nearest: evaluation may need it.
            *energy = 1.0;
            dead += 1;
        }
        count(notes, "gptq_dead_inputs", dead);
        count(notes, "gptq_groups", 1);
        let mut damping = self.damping;
        for retry in 0..=RETRIES {
            let diagonal: Vec<f64> = energies.iter().map(|e| e + damping * mean).collect();
            if let Some(factor) = stats.solver.factor(&stats.xtx, order, &diagonal)? {
                count(notes, "gptq_damping_retries", retry);
                return Ok(factor);
            }
            damping *= 10.0;
        }
        Err(group.members[0].refuse(
            &self.id(),
            format!(
                "the covariance of its inputs ({} tokens) is not positive definite, not even \
                 with {} of the mean diagonal added",
                stats.tokens,
                damping / 10.0
            ),
            "use more calibration tokens, or rtn or awq for this model",
        ))
    }
}

impl QuantMethod for Gptq {
    fn id(&self) -> String {
        let suffix = if self.act_order { "" } else { COLUMN_ORDER };
        self.spec.id("gptq") + suffix
    }

    fn method(&self) -> &'static str {
        "gptq"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        let mut parameters = self.spec.parameters();
        parameters.insert("damping".into(), json!(self.damping));
        parameters.insert("block".into(), json!(self.block));
        parameters.insert("act_order".into(), json!(self.act_order));
        // One option, not two: act-order on grids fitted on the way needs an index of groups.
        parameters.insert("static_groups".into(), json!(self.act_order));
        parameters
    }

    fn spec(&self) -> FormatSpec {
        self.spec.format()
    }

    fn calibration(&self) -> Calibration {
        Calibration::Inputs
    }

    fn doubts(&self, notes: &Notes) -> Vec<String> {
        let some = |name: &str| notes.get(name).copied().filter(|n| *n > 0.0);
        let retries = some("gptq_damping_retries").map(|n| {
            format!("{n} Hessians could be factored only with more than the stated damping")
        });
        let dead = some("gptq_dead_inputs")
            .map(|n| format!("{n} inputs were zero on all calibration tokens"));
        retries.into_iter().chain(dead).collect()
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
        if group.members.is_empty() {
            return Ok(vec![]);
        }
        let order = self.order(stats);
        let factor = self.factor(group, stats, &order, notes)?;
        let rounding = Rounding {
            spec: self.spec,
            order: &order,
            static_groups: self.act_order,
            block: self.block,
        };
        group.pack_each(&id, |member| {
            let rounded = factor.round(&member.weight, &rounding)?;
            let rounded = rounded.ok_or_else(|| too_large(member, &id))?;
            rounded.pack(&self.spec, member.weight.rows, member.weight.cols)
        })
    }
}
