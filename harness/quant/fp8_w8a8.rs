//! `fp8-w8a8`: the weights of [`fp8`], multiplied by inputs that are quantized to E4M3 as well
//! while the model runs, with one scale per token that is computed from that token (dynamic, as
//! in SmoothQuant, arXiv 2211.10438, without its smoothing). No data is looked at beforehand.

use super::{Family, Group, LayerStats, Listed, Notes, QuantMethod, fp8};
use crate::Result;
use crate::packed::activations::Activations;
use crate::packed::fp8::Kind;
use crate::packed::fp8_a8::Fp8A8 as Packed;
use crate::packed::{FormatSpec, PackedLinear, fp8_a8};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ID: &str = "fp8-w8a8";

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: ID,
        about: "fp8 weights and activations: inputs rounded to E4M3, one scale per token",
    }],
    parse: |id| (id == ID).then(|| Ok(Box::new(Fp8W8A8) as Box<dyn QuantMethod>)),
};

/// 8-bit floating point, weights and inputs.
pub struct Fp8W8A8;

impl QuantMethod for Fp8W8A8 {
    fn id(&self) -> String {
        ID.into()
    }

    fn method(&self) -> &'static str {
        ID
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("bits".into(), json!(8)),
            ("kind".into(), json!(Kind::E4m3.name())),
            ("group_size".into(), json!(-1)),
            ("scale_dtype".into(), json!("f32")),
            ("activations".into(), json!(Activations::E4m3.name())),
            ("activation_scale".into(), json!("dynamic, absmax / 448")),
        ])
    }

    fn spec(&self) -> FormatSpec {
        fp8_a8::spec()
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        group.pack_each(ID, |member| {
            let weight = &member.weight;
            let (codes, scales) = fp8::encode(Kind::E4m3, weight);
            let packed = Packed::new(&codes, &scales, (weight.rows, weight.cols))?;
            Ok(Box::new(packed) as Box<dyn PackedLinear>)
        })
    }
}
