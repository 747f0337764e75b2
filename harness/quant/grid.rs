//! The asymmetric integer grid that round-to-nearest, AWQ and GPTQ share, and their ids.
//!
//! A group of weights in one row has `2^bits` levels `scale · (code - zero)`. The scale is rounded
//! to FP16, the dtype in which it is stored, before zero and codes are computed from it, so that
//! codes are the best ones for the scale that the model will really use.

use super::{Member, Parsed, QuantMethod};
use crate::packed::grouped::{self, Grouped};
use crate::packed::{FormatSpec, PackedLinear};
use crate::{Error, Result};
use half::f16;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bits that `-int{bits}` accepts.
pub const BITS: [u32; 4] = [2, 3, 4, 8];
/// Group size without a suffix.
pub const DEFAULT_GROUP: i64 = 128;

/// The parameters that all grouped integer methods take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridSpec {
    /// One of [`BITS`].
    pub bits: u32,
    /// Inputs that share a scale: a multiple of 8, or -1 for the whole row.
    pub group_size: i64,
}

impl GridSpec {
    /// Reads `{method}-int{bits}`, optionally followed by `-g{size}` or `-gch` (one scale per
    /// output channel), and makes the method of it. `None` when the id does not begin with
    /// `{method}-int`; [`Error::Usage`] when it does and goes on wrongly.
    pub fn parse<M: QuantMethod + 'static>(
        method: &str,
        id: &str,
        make: fn(GridSpec) -> M,
    ) -> Option<Parsed> {
        let rest = id.strip_prefix(method)?.strip_prefix("-int")?;
        let spec = Self::parse_suffix(rest).map_err(|what| {
            Error::usage(
                format!("precision `{id}`: {what}"),
                format!("write {method}-int2, -int3, -int4 or -int8, then perhaps -g64 or -gch"),
            )
        });
        Some(spec.map(|spec| Box::new(make(spec)) as Box<dyn QuantMethod>))
    }

    fn parse_suffix(rest: &str) -> Result<Self, String> {
        let (bits, group) = rest.split_once('-').unwrap_or((rest, "g128"));
        let bits = BITS
            .into_iter()
            .find(|b| b.to_string() == bits)
            .ok_or_else(|| format!("`int{bits}` is not a width"))?;
        if group == "gch" {
            let group_size = -1;
            return Ok(GridSpec { bits, group_size });
        }
        let digits = group.strip_prefix('g').unwrap_or_default();
        match digits.parse::<u32>() {
            // Compared as text so that `+64` and `064` are refused: one id per method.
            Ok(size) if size > 0 && size.is_multiple_of(8) && size.to_string() == digits => {
                let group_size = i64::from(size);
                Ok(GridSpec { bits, group_size })
            }
            _ => Err(format!("`{group}` is not a group size (a multiple of 8)")),
        }
    }

    /// The canonical id: the default group size is left out.
    pub fn id(&self, method: &str) -> String {
        let GridSpec { bits, group_size } = self;
        match *group_size {
            DEFAULT_GROUP => format!("{method}-int{bits}"),
            -1 => format!("{method}-int{bits}-gch"),
            size => format!("{method}-int{bits}-g{size}"),
        }
    }

    /// The parameters for [`QuantMethod::parameters`].
    pub fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("bits".into(), json!(self.bits)),
            ("group_size".into(), json!(self.group_size)),
            ("symmetric".into(), json!(false)),
            ("scale_dtype".into(), json!("f16")),
        ])
    }

    /// The form in which [`Rounded::pack`] stores a weight.
    pub fn format(&self) -> FormatSpec {
        grouped::spec(self.bits, self.group_size)
    }

    /// Weights of a whole group in a row of `k`.
    pub fn group_len(&self, k: usize) -> usize {
        usize::try_from(self.group_size).map_or(k, |size| size.min(k))
    }

    /// Groups in a row of `k`; the last may be short.
    pub fn groups(&self, k: usize) -> usize {
        k.div_ceil(self.group_len(k))
    }

    /// The columns of each group.
    pub fn ranges(&self, k: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = self.group_len(k);
        (0..k).step_by(len).map(move |at| at..(at + len).min(k))
    }

    /// The highest code, `2^bits - 1`.
    pub fn top(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The grid that spans `low..=high` and zero; `None` when its step exceeds FP16.
    ///
    /// Zero is always a level, so padding, pruned weights and all-zero rows stay exact.
    pub fn span(&self, low: f32, high: f32) -> Option<Grid> {
        let (low, high, top) = (low.min(0.0), high.max(0.0), self.top());
        // Halves, because the difference of two finite weights may not be finite.
        let step = (high / top) - (low / top);
        let scale = stored_scale(step)?;
        let zero = round_small(-low / scale.to_f32()).clamp(0.0, top);
        Some(Grid {
            scale: scale.to_f32(),
            zero,
            top,
        })
    }

    /// The grid from the smallest to the largest of these weights.
    pub fn fit(&self, weights: &[f32]) -> Option<Grid> {
        let (low, high) = extent(weights);
        self.span(low, high)
    }

    /// Rounds every weight to the nearest level of its group's grid. `grid_of` gives the grid of
    /// `(row, group, weights)`; rows are independent and run in parallel.
    ///
    /// [`Error::Quantize`] where it gives none.
    pub fn round(
        &self,
        member: &Member,
        method: &str,
        grid_of: impl Fn(usize, usize, &[f32]) -> Option<Grid> + Sync,
    ) -> Result<Rounded> {
        let weight = &member.weight;
        let k = weight.cols;
        let mut rounded = Rounded::new(self, weight.rows, k);
        let Rounded { codes, grids } = &mut rounded;
        codes
            .par_chunks_mut(k)
            .zip(grids.par_chunks_mut(self.groups(k)))
            .enumerate()
            .try_for_each(|(r, (codes, grids))| {
                let row = weight.row(r);
                for (g, range) in self.ranges(k).enumerate() {
                    let grid = grid_of(r, g, &row[range.clone()])?;
                    grids[g] = grid;
                    for (code, w) in codes[range.clone()].iter_mut().zip(&row[range]) {
                        *code = grid.code(*w) as u8;
                    }
                }
                Some(())
            })
            .ok_or_else(|| too_large(member, method))?;
        Ok(rounded)
    }
}

/// The error for a weight whose step exceeds FP16.
pub fn too_large(member: &Member, method: &str) -> Error {
    member.refuse(
        method,
        "a weight is so large that its scale exceeds FP16",
        "use fp32 or bf16 for this checkpoint",
    )
}

/// A step as it is stored: nearest in FP16 and positive; `None` when it exceeds FP16.
pub fn stored_scale(step: f32) -> Option<f16> {
    let scale = f16::from_f32(step);
    if scale == f16::ZERO {
        // Every weight is zero, or too small for FP16: the finest step there is.
        return Some(f16::from_bits(1));
    }
    scale.is_finite().then_some(scale)
}

/// Smallest and largest of some weights.
pub fn extent(weights: &[f32]) -> (f32, f32) {
    weights
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), w| {
            (low.min(*w), high.max(*w))
        })
}

/// The levels of one group: `scale · (code - zero)` for codes `0..=top`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// A positive value that FP16 holds exactly.
    pub scale: f32,
    /// A whole number in `0..=top`, as are codes; kept as F32 because arithmetic needs it so.
    pub zero: f32,
    pub top: f32,
}

impl Grid {
    /// The code of the level nearest to `w` (ties to even), a whole number in `0..=top`.
    pub fn code(&self, w: f32) -> f32 {
        (round_small(w / self.scale) + self.zero).clamp(0.0, self.top)
    }

    /// The level of a code.
    pub fn level(&self, code: f32) -> f32 {
        self.scale * (code - self.zero)
    }

    /// The level nearest to `w`.
    pub fn nearest(&self, w: f32) -> f32 {
        self.level(self.code(w))
    }
}

/// The nearest whole number, ties to even, of a value that is clamped to ±1024 (codes lie within
/// ±255).
///
/// Adding 1.5 · 2²³ leaves no fractional bits: two additions that vectorize everywhere, where
/// `round_ties_even` is a function call per weight on the baseline instruction set.
fn round_small(x: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0;
    (x.clamp(-1024.0, 1024.0) + WHOLE) - WHOLE
}

/// A weight on its grids, ready to be packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// `[n_out, k_in]`, one code per weight.
    pub codes: Vec<u8>,
    /// `[n_out, groups]`.
    pub grids: Vec<Grid>,
}

impl Rounded {
    /// Room for the codes of an `[n, k]` weight.
    pub fn new(spec: &GridSpec, n: usize, k: usize) -> Self {
        let empty = Grid {
            scale: 1.0,
            zero: 0.0,
            top: spec.top(),
        };
        Rounded {
            codes: vec![0; n * k],
            grids: vec![empty; n * spec.groups(k)],
        }
    }

    /// Packs the codes of an `[n, k]` weight.
    pub fn pack(self, spec: &GridSpec, n: usize, k: usize) -> Result<Box<dyn PackedLinear>> {
        let Rounded { codes, grids } = self;
        let scales: Vec<f16> = grids.iter().map(|g| f16::from_f32(g.scale)).collect();
        let zeros: Vec<u8> = grids.iter().map(|g| g.zero as u8).collect();
        let GridSpec { bits, group_size } = *spec;
        let packed = Grouped::new(bits, group_size, &codes, &scales, &zeros, (n, k))?;
        Ok(Box::new(packed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT4: GridSpec = GridSpec {
        bits: 4,
        group_size: 128,
    };

    #[test]
    fn constant_and_empty_groups_are_exact() {
        for value in [0.0, 0.75, -0.75, 1.5] {
            let grid = INT4.fit(&[value; 5]).unwrap();
            assert!((grid.nearest(value) - value).abs() <= 1e-3 * value.abs());
            assert_eq!(grid.nearest(0.0), 0.0);
        }
    }

    #[test]
    fn codes_are_nearest_to_the_scale_that_is_stored() {
        let weights: Vec<f32> = (0..128)
            .map(|i| ((i * 37 % 101) as f32 - 40.0) / 97.0)
            .collect();
        let grid = INT4.fit(&weights).unwrap();
        assert_eq!(f16::from_f32(grid.scale).to_f32(), grid.scale);
        for w in weights {
            let best = (0..16)
                .map(|code| (grid.level(code as f32) - w).abs())
                .fold(f32::INFINITY, f32::min);
            assert!((grid.nearest(w) - w).abs() <= best * 1.000001 + 1e-9);
        }
    }

    #[test]
    fn scales_outside_fp16_are_refused_or_kept_positive() {
        assert!(INT4.fit(&[3.0e38, -3.0e38]).is_none());
        assert!(INT4.fit(&[1.0e-30]).unwrap().scale > 0.0);
    }

    #[test]
    fn rounding_is_to_even() {
        for i in -4000..4000 {
            let x = i as f32 / 16.0;
            assert_eq!(round_small(x), x.round_ties_even());
        }
        assert_eq!(round_small(1e30), 1024.0);
        assert_eq!(round_small(f32::NEG_INFINITY), -1024.0);
    }

    #[test]
    fn suffixes() {
        for (text, bits, group_size) in [("4", 4, 128), ("3-g64", 3, 64), ("8-gch", 8, -1)] {
            let spec = GridSpec { bits, group_size };
            assert_eq!(GridSpec::parse_suffix(text), Ok(spec), "{text}");
        }
        for text in [
            "", "5", "04", "4-", "4-g", "4-g0", "4-g12", "4-g+8", "4-g064", "4-64",
        ] {
            assert!(GridSpec::parse_suffix(text).is_err(), "{text}");
        }
        for text in ["4-g128-g64", "4-gch-g8", "4-g99999999999", "+4", "4-g-8"] {
            assert!(GridSpec::parse_suffix(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_cover_a_row_with_a_short_last_group() {
        let ranges: Vec<_> = INT4.ranges(576).collect();
        assert_eq!(ranges.len(), 5);
        assert_eq!(INT4.groups(576), 5);
        assert_eq!(ranges[4], 512..576);
    }
}
