//! `fp8`, `fp8-e5m2`: 8-bit floating point (Micikevicius et al., arXiv 2209.05433), rounded to
//! nearest even. One F32 scale per output channel maps its largest magnitude to the largest
//! number of the format (448 for E4M3, 57344 for E5M2). Weights only; no data is looked at.

use super::{Family, Group, LayerStats, Listed, Matrix, Notes, QuantMethod};
use crate::Result;
use crate::packed::fp8::{Fp8 as Packed, Kind};
use crate::packed::{FormatSpec, PackedLinear};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[
        Listed {
            id: "fp8",
            about: "8-bit floating point E4M3, one scale per output channel",
        },
        Listed {
            id: "fp8-e5m2",
            about: "8-bit floating point E5M2: more range and fewer digits than fp8",
        },
    ],
    parse: |id| {
        let kind = match id {
            "fp8" => Kind::E4m3,
            "fp8-e5m2" => Kind::E5m2,
            _ => return None,
        };
        Some(Ok(Box::new(Fp8 { kind })))
    },
};

/// 8-bit floating point.
pub struct Fp8 {
    pub kind: Kind,
}

/// Codes and scales of a weight, one scale per output channel.
pub(super) fn encode(kind: Kind, weight: &Matrix) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0u8; weight.data.len()];
    let mut scales = vec![0f32; weight.rows];
    codes
        .par_chunks_mut(weight.cols)
        .zip(&mut scales)
        .zip(weight.data.par_chunks(weight.cols))
        .for_each(|((codes, scale), row)| {
            *scale = row_scale(kind, row);
            for (code, w) in codes.iter_mut().zip(row) {
                *code = kind.encode(w / *scale);
            }
        });
    (codes, scales)
}

/// The scale of a row: positive, such that no quotient exceeds the format's range.
fn row_scale(kind: Kind, row: &[f32]) -> f32 {
    let largest = row.iter().fold(0f32, |m, w| m.max(w.abs()));
    match largest {
        0.0 => 1.0,
        _ => (largest / kind.max()).max(f32::MIN_POSITIVE),
    }
}

impl QuantMethod for Fp8 {
    fn id(&self) -> String {
        match self.kind {
            Kind::E4m3 => "fp8".into(),
            Kind::E5m2 => "fp8-e5m2".into(),
        }
    }

    fn method(&self) -> &'static str {
        "fp8"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("bits".into(), json!(8)),
            ("kind".into(), json!(self.kind.name())),
            ("group_size".into(), json!(-1)),
            ("scale_dtype".into(), json!("f32")),
        ])
    }

    fn spec(&self) -> FormatSpec {
        self.kind.spec()
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        group.pack_each(&self.id(), |member| {
            let (codes, scales) = encode(self.kind, &member.weight);
            let shape = (member.weight.rows, member.weight.cols);
            Ok(Box::new(Packed::new(self.kind, &codes, &scales, shape)?))
        })
    }
}
