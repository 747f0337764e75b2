//! `int8`, `int8-tensor`: symmetric 8-bit integers, round to nearest. The scale is the largest
//! magnitude / 127, per output channel or, naively, one for the whole matrix: a single large row
//! then coarsens all others. The scale is rounded to FP16, as it is stored, before codes are
//! computed from it. Weights only; no data is looked at.

use super::grid::{stored_scale, too_large};
use super::{Family, Group, LayerStats, Listed, Member, Notes, QuantMethod};
use crate::Result;
use crate::packed::{FormatSpec, PackedLinear, int8, int8::Int8 as Packed};
use half::f16;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[
        Listed {
            id: "int8",
            about: "symmetric 8-bit integers, one scale per output channel",
        },
        Listed {
            id: "int8-tensor",
            about: "symmetric 8-bit integers, one scale per matrix: the naive form",
        },
    ],
    parse: |id| {
        let per_row = match id {
            "int8" => true,
            "int8-tensor" => false,
            _ => return None,
        };
        Some(Ok(Box::new(Int8 { per_row })))
    },
};

/// Symmetric 8-bit integers.
pub struct Int8 {
    /// One scale per output channel, else one per matrix.
    pub per_row: bool,
}

/// The highest code; -128 is left unused, which keeps codes symmetric.
const TOP: f32 = 127.0;

/// Codes and scales of a weight, one scale per `part` of consecutive weights. `method` is for the
/// error of a scale that exceeds FP16.
pub(super) fn encode(member: &Member, part: usize, method: &str) -> Result<(Vec<i8>, Vec<f16>)> {
    let weights = &member.weight.data;
    let mut codes = Vec::with_capacity(weights.len());
    let mut scales = Vec::new();
    for part in weights.chunks(part) {
        let largest = part.iter().fold(0f32, |m, w| m.max(w.abs()));
        let scale = stored_scale(largest / TOP).ok_or_else(|| too_large(member, method))?;
        scales.push(scale);
        let scale = scale.to_f32();
        let code = |w: &f32| (w / scale).round_ties_even().clamp(-TOP, TOP) as i8;
        codes.extend(part.iter().map(code));
    }
    Ok((codes, scales))
}

impl Int8 {
    fn pack(&self, member: &Member) -> Result<Box<dyn PackedLinear>> {
        let weight = &member.weight;
        let shape = (weight.rows, weight.cols);
        let part = match self.per_row {
            true => weight.cols,
            false => weight.data.len(),
        };
        let (codes, scales) = encode(member, part, &self.id())?;
        Ok(match self.per_row {
            true => Box::new(Packed::per_row(&codes, &scales, shape)?),
            false => Box::new(Packed::per_matrix(&codes, scales[0], shape)?),
        })
    }
}

impl QuantMethod for Int8 {
    fn id(&self) -> String {
        match self.per_row {
            true => "int8".into(),
            false => "int8-tensor".into(),
        }
    }

    fn method(&self) -> &'static str {
        "int8"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("bits".into(), json!(8)),
            (
                "group_size".into(),
                json!(if self.per_row { -1 } else { 0 }),
            ),
            ("symmetric".into(), json!(true)),
            ("scale_dtype".into(), json!("f16")),
        ])
    }

    fn spec(&self) -> FormatSpec {
        int8::spec(self.per_row)
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        group.pack_each(&self.id(), |member| self.pack(member))
    }
}
