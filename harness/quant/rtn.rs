//! `rtn-int4`: round to nearest. Every group of a row takes the asymmetric grid between its
//! smallest and largest weight ([`grid`](super::grid)); no data is looked at. What the other
//! integer methods are measured against.

use super::grid::GridSpec;
use super::{Family, Group, LayerStats, Listed, Notes, QuantMethod};
use crate::Result;
use crate::packed::{FormatSpec, PackedLinear};
use serde_json::Value;
use std::collections::BTreeMap;

pub const FAMILY: Family = Family {
    ids: &[Listed {
        id: "rtn-int4",
        about: "round to nearest, 4 bits, groups of 128 (also -int2 -int3 -int8, -g64, -gch)",
    }],
    parse: |id| GridSpec::parse("rtn", id, |spec| Rtn { spec }),
};

/// Round to nearest on asymmetric grids.
pub struct Rtn {
    pub spec: GridSpec,
}

impl QuantMethod for Rtn {
    fn id(&self) -> String {
        self.spec.id("rtn")
    }

    fn method(&self) -> &'static str {
        "rtn"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        self.spec.parameters()
    }

    fn spec(&self) -> FormatSpec {
        self.spec.format()
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        let spec = &self.spec;
        group.pack_each(&self.id(), |member| {
            let rounded = spec.round(member, &self.id(), |_, _, weights| spec.fit(weights))?;
            rounded.pack(spec, member.weight.rows, member.weight.cols)
        })
    }
}
