//! A planted defect: `scales-x2-METHOD` quantizes as METHOD does, but with the scales of one
//! decoder layer doubled, in all its linears. (Of one linear alone it can be within the gate's
//! threshold: `down_proj` of this layer costs the embedded model 0.26 % of its perplexity.)

use quantbench::packed::{FormatSpec, PackedLinear};
use quantbench::quant::{self, Calibration, Family, Group, LayerStats, Listed, Notes, QuantMethod};
use std::collections::BTreeMap;

/// The layer whose scales are doubled.
const LAYER: &str = ".layers.3.";
const PREFIX: &str = "scales-x2-";

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: "scales-x2-rtn-int4",
        about: "any method, the scales of one layer doubled (a planted defect)",
    }],
    parse: |id| {
        let method = quant::parse(id.strip_prefix(PREFIX)?);
        Some(method.map(|inner| Box::new(Doubled { inner }) as Box<dyn QuantMethod>))
    },
};

struct Doubled {
    inner: Box<dyn QuantMethod>,
}

impl QuantMethod for Doubled {
    fn id(&self) -> String {
        format!("{PREFIX}{}", self.inner.id())
    }

    fn method(&self) -> &'static str {
        self.inner.method()
    }

    fn parameters(&self) -> BTreeMap<String, serde_json::Value> {
        self.inner.parameters()
    }

    fn spec(&self) -> FormatSpec {
        self.inner.spec()
    }

    fn calibration(&self) -> Calibration {
        self.inner.calibration()
    }

    fn fold(
        &self,
        group: &Group,
        stats: Option<&LayerStats>,
        notes: &mut Notes,
    ) -> quantbench::Result<Option<Vec<f32>>> {
        self.inner.fold(group, stats, notes)
    }

    /// A grid is proportional to its weights, so that twice the weights have the same codes and
    /// twice the scales (doubling an FP16 number is exact).
    fn quantize(
        &self,
        group: &Group,
        stats: Option<&LayerStats>,
        notes: &mut Notes,
    ) -> quantbench::Result<Vec<Box<dyn PackedLinear>>> {
        let mut group = group.clone();
        for member in &mut group.members {
            if member.name.contains(LAYER) {
                member.weight.data.iter_mut().for_each(|w| *w *= 2.0);
            }
        }
        self.inner.quantize(&group, stats, notes)
    }
}
