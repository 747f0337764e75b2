//! `int8-w8a8`: the weights of [`int8`], multiplied by inputs that are quantized to INT8 as well
//! while the model runs, with one scale per token that is computed from that token (dynamic, as
//! in SmoothQuant, arXiv 2211.10438, without its smoothing). No data is looked at beforehand.

use super::{Family, Group, LayerStats, Listed, Notes, QuantMethod, int8};
use crate::Result;
use crate::packed::activations::Activations;
use crate::packed::int8_a8::Int8A8 as Packed;
use crate::packed::{FormatSpec, PackedLinear, int8_a8};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ID: &str = "int8-w8a8";

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: ID,
        about: "int8 weights and activations: inputs rounded to INT8, one scale per token",
    }],
    parse: |id| (id == ID).then(|| Ok(Box::new(Int8W8A8) as Box<dyn QuantMethod>)),
};

/// Symmetric 8-bit integers, weights and inputs.
pub struct Int8W8A8;

impl QuantMethod for Int8W8A8 {
    fn id(&self) -> String {
        ID.into()
    }

    fn method(&self) -> &'static str {
        ID
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("bits".into(), json!(8)),
            ("group_size".into(), json!(-1)),
            ("symmetric".into(), json!(true)),
            ("scale_dtype".into(), json!("f16")),
            ("activations".into(), json!(Activations::Int8.name())),
            ("activation_scale".into(), json!("dynamic, absmax / 127")),
        ])
    }

    fn spec(&self) -> FormatSpec {
        int8_a8::spec()
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        group.pack_each(ID, |member| {
            let weight = &member.weight;
            let (codes, scales) = int8::encode(member, weight.cols, ID)?;
            let packed = Packed::new(&codes, &scales, (weight.rows, weight.cols))?;
            Ok(Box::new(packed) as Box<dyn PackedLinear>)
        })
    }
}
