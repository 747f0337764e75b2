//! A method made elsewhere: one 8-bit grid per row, symmetric around code 128, as wide as the
//! row's largest weight.

use half::f16;
use quantbench::packed::grouped::{self, Grouped};
use quantbench::packed::{FormatSpec, PackedLinear};
use quantbench::quant::{Family, Group, LayerStats, Listed, Notes, QuantMethod};
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: "absmax",
        about: "8 bits around zero, one scale per row (a test's method)",
    }],
    parse: |id| (id == "absmax").then(|| Ok(Box::new(AbsMax) as Box<dyn QuantMethod>)),
};

struct AbsMax;

impl QuantMethod for AbsMax {
    fn id(&self) -> String {
        "absmax".into()
    }

    fn method(&self) -> &'static str {
        "absmax"
    }

    fn parameters(&self) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("bits".into(), 8.into()),
            ("group_size".into(), (-1).into()),
        ])
    }

    fn spec(&self) -> FormatSpec {
        grouped::spec(8, -1)
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> quantbench::Result<Vec<Box<dyn PackedLinear>>> {
        group.pack_each("absmax", |member| {
            let w = &member.weight;
            let scales: Vec<f16> = (0..w.rows)
                .map(|r| w.row(r).iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0)
                .map(f16::from_f32)
                .collect();
            if let Some(row) = scales.iter().position(|s| !s.is_finite()) {
                let what = format!("row {row} is too large for an FP16 scale");
                return Err(member.refuse("absmax", what, "use fp32 for this model"));
            }
            let mut codes = Vec::with_capacity(w.data.len());
            for (r, scale) in scales.iter().enumerate() {
                let scale = scale.to_f32().max(f32::MIN_POSITIVE);
                codes.extend(w.row(r).iter().map(|x| {
                    let steps = (x / scale).round().clamp(-128.0, 127.0);
                    (128.0 + steps) as u8
                }));
            }
            let zeros = vec![128; w.rows];
            let packed = Grouped::new(8, -1, &codes, &scales, &zeros, (w.rows, w.cols))?;
            Ok(Box::new(packed) as Box<dyn PackedLinear>)
        })
    }
}
