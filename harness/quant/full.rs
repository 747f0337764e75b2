//! `fp32 fp16 bf16`: no quantization. Weights are rounded to the dtype, to nearest even, and kept
//! as they are; the baseline, and an ordinary method.

use super::{Family, Group, LayerStats, Listed, Notes, QuantMethod};
use crate::Result;
use crate::packed::{FormatSpec, PackedLinear, dense, dense::Dense};
use candle_core::DType;
use half::{bf16, f16};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[
        Listed {
            id: "fp32",
            about: "weights in 32-bit floating point",
        },
        Listed {
            id: "fp16",
            about: "weights in 16-bit floating point: the usual reference",
        },
        Listed {
            id: "bf16",
            about: "weights in bfloat16: the range of fp32 with 8 significant bits",
        },
    ],
    parse: |id| {
        let dtype = match id {
            "fp32" => DType::F32,
            "fp16" => DType::F16,
            "bf16" => DType::BF16,
            _ => return None,
        };
        Some(Ok(Box::new(Full { dtype })))
    },
};

/// Weights as numbers of one dtype.
pub struct Full {
    /// F32, F16 or BF16.
    pub dtype: DType,
}

impl Full {
    /// The largest magnitude of the dtype.
    fn max(&self) -> f32 {
        match self.dtype {
            DType::F16 => f16::MAX.to_f32(),
            DType::BF16 => bf16::MAX.to_f32(),
            _ => f32::MAX,
        }
    }
}

impl QuantMethod for Full {
    fn id(&self) -> String {
        self.method().into()
    }

    fn method(&self) -> &'static str {
        match self.dtype {
            DType::F16 => "fp16",
            DType::BF16 => "bf16",
            _ => "fp32",
        }
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([("dtype".into(), json!(self.dtype.as_str()))])
    }

    fn spec(&self) -> FormatSpec {
        dense::spec(self.dtype)
    }

    /// [`Error::Quantize`](crate::Error::Quantize) for a weight beyond the range of the dtype
    /// (±65504 for FP16).
    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        let max = self.max();
        group.pack_each(self.method(), |member| {
            let weight = &member.weight;
            if let Some(w) = weight.data.iter().find(|w| w.abs() > max) {
                return Err(member.refuse(
                    self.method(),
                    format!("a weight is {w}, beyond ±{max}"),
                    "use fp32 or bf16 for this checkpoint (--reference bf16)",
                ));
            }
            let shape = (weight.rows, weight.cols);
            Ok(Box::new(Dense::new(self.dtype, &weight.data, shape)?))
        })
    }
}
