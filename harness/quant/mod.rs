//! Quantization methods: how a precision chooses the codes of a weight. One file per method and
//! one line in [`METHODS`].
//!
//! The unit handed to a method is the [`Group`]: the linears that share one input, together with
//! what produces that input. A method may fold one scale per input channel into the group
//! ([`QuantMethod::fold`], applied by the caller to consumers, producer and statistics alike);
//! afterwards it packs all members at once ([`QuantMethod::quantize`]), so that what depends on
//! the input alone is computed once for all of them.
//!
//! Everything here is deterministic: the same weights and statistics give the same bytes,
//! whatever the number of threads.

pub mod awq;
pub mod dequantized;
pub mod fp8;
pub mod fp8_w8a8;
pub mod full;
pub mod gptq;
pub mod grid;
pub mod int8;
pub mod int8_w8a8;
mod linalg;
pub mod rtn;
pub mod solver;
mod stats;
pub mod ulp_noise;

pub use stats::{LayerStats, StatsBuilder};

use crate::packed::{FormatSpec, PackedLinear};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// The built-in families, in the order in which tables show them.
pub static METHODS: &[Family] = &[
    full::FAMILY,
    fp8::FAMILY,
    fp8_w8a8::FAMILY,
    int8::FAMILY,
    int8_w8a8::FAMILY,
    rtn::FAMILY,
    awq::FAMILY,
    gptq::FAMILY,
    ulp_noise::FAMILY,
    dequantized::FAMILY,
];

/// What an id turns out to be: a method, or an [`Error::Usage`] about its parameters.
pub type Parsed = Result<Box<dyn QuantMethod>>;

/// One method with all its parameter variants.
pub struct Family {
    /// What `list` shows. Every id here is canonical: its method's [`QuantMethod::id`] is the
    /// same string.
    pub ids: &'static [Listed],
    /// Reads an id of this family: `None` when the id belongs to another family, an
    /// [`Error::Usage`] when it belongs here and a parameter is wrong.
    pub parse: fn(&str) -> Option<Parsed>,
}

/// An id worth advertising and what it means in one line.
pub struct Listed {
    pub id: &'static str,
    pub about: &'static str,
}

/// What else [`parse`] takes: ids that begin with one of these words and go on with a path.
pub static BY_PATH: &[Listed] = &[dequantized::LISTED];

static REGISTERED: OnceLock<&'static [Family]> = OnceLock::new();

/// Adds families to the built-in ones, for a program that embeds this crate. To be called at most
/// once and before anything has read the registry; otherwise [`Error::Usage`].
pub fn register(families: &'static [Family]) -> Result<()> {
    REGISTERED.set(families).map_err(|_| {
        Error::usage(
            "the registry of methods is already in use",
            "call `quant::register` once, before the first call of `parse` or `families`",
        )
    })
}

/// All families: the built-in ones, then the registered ones.
pub fn families() -> impl Iterator<Item = &'static Family> {
    let registered = *REGISTERED.get_or_init(|| &[]);
    METHODS.iter().chain(registered)
}

/// The method that an id names, for example `gptq-int4-g64`. [`Error::Usage`] for an id that is
/// unknown, with the known ones and the nearest of them.
pub fn parse(id: &str) -> Parsed {
    if let Some(found) = families().find_map(|family| (family.parse)(id)) {
        return found;
    }
    let known: Vec<&str> = families()
        .flat_map(|family| family.ids.iter().map(|listed| listed.id))
        .collect();
    let lower = id.to_lowercase();
    // A word that a known id begins with (`awq`) is as near as can be.
    let distance = |name: &str| match !lower.is_empty() && name.starts_with(&lower) {
        true => 0,
        false => edit_distance(&lower, name),
    };
    let nearest = known.iter().map(|name| (distance(name), *name)).min();
    let suggestion = match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 3 => {
            format!("did you mean `{name}`? ")
        }
        _ => String::new(),
    };
    Err(Error::usage(
        format!("unknown precision `{id}`"),
        format!(
            "{suggestion}known: {}; integer methods take other widths and groups, for example \
             `rtn-int3-g64` or `gptq-int4-gch`",
            known.join(" ")
        ),
    ))
}

/// The noise floor of a precision, if one is known: its method says so
/// ([`QuantMethod::noise_floor_of`]).
pub fn noise_floor(id: &str) -> Option<Box<dyn QuantMethod>> {
    let ids = families().flat_map(|family| family.ids);
    let methods = ids.filter_map(|listed| parse(listed.id).ok());
    let mut floors = methods.filter(|method| method.noise_floor_of().as_deref() == Some(id));
    floors.next()
}

/// Insertions, deletions and replacements that turn `a` into `b`.
pub(crate) fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A row-major F32 matrix `[rows, cols]`; a weight is `[n_out, k_in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let data = vec![0.0; rows * cols];
        Matrix { rows, cols, data }
    }

    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// Multiplies column `c` by `scales[c]`; `scales` has one value per column.
    pub fn scale_columns(&mut self, scales: &[f32]) {
        debug_assert_eq!(scales.len(), self.cols);
        for row in self.data.chunks_mut(self.cols.max(1)) {
            row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
        }
    }

    /// Multiplies row `r` by `scales[r]`; `scales` has one value per row.
    pub fn scale_rows(&mut self, scales: &[f32]) {
        debug_assert_eq!(scales.len(), self.rows);
        for (row, s) in self.data.chunks_mut(self.cols.max(1)).zip(scales) {
            row.iter_mut().for_each(|w| *w *= s);
        }
    }
}

/// Which linear of a decoder block a weight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

/// One linear of a group.
#[derive(Debug, Clone)]
pub struct Member {
    /// Full module name, for messages (`model.layers.3.self_attn.q_proj`).
    pub name: String,
    pub role: Role,
    /// `[n_out, k_in]`.
    pub weight: Matrix,
}

impl Member {
    /// An [`Error::Quantize`] about this module.
    pub fn refuse(&self, method: &str, what: impl AsRef<str>, next: impl Into<String>) -> Error {
        Error::Quantize {
            method: method.into(),
            what: format!("`{}`: {}", self.name, what.as_ref()),
            next: next.into(),
        }
    }

    /// Refuses a weight that is empty, not as long as its shape says, or not finite.
    fn check(&self, method: &str) -> Result<()> {
        let Matrix { rows, cols, data } = &self.weight;
        if data.is_empty() || rows.checked_mul(*cols) != Some(data.len()) {
            return Err(self.refuse(
                method,
                format!("shape [{rows}, {cols}] with {} values", data.len()),
                "check the checkpoint's config against its tensors",
            ));
        }
        if let Some(at) = data.iter().position(|w| !w.is_finite()) {
            return Err(self.refuse(
                method,
                format!("weight [{}, {}] is {}", at / cols, at % cols, data[at]),
                "the checkpoint is damaged or was saved after training diverged; get it again",
            ));
        }
        Ok(())
    }
}

/// The linears that share one input of `k_in` channels.
#[derive(Debug, Clone)]
pub struct Group {
    pub members: Vec<Member>,
    /// Whether the producer of the input can absorb `1 / scale` per channel (it cannot for
    /// `o_proj` where grouped-query attention makes `v_proj` narrower).
    pub foldable: bool,
}

impl Group {
    /// Input channels, 0 for a group without members.
    pub fn inputs(&self) -> usize {
        self.members.first().map_or(0, |member| member.weight.cols)
    }

    /// Applies a fold to the consumers: `W[:, k] *= scales[k]` in every member. The caller
    /// divides the producer's rows ([`Matrix::scale_rows`]) and the statistics
    /// ([`LayerStats::scaled`]) by the same scales.
    pub fn scale_inputs(&mut self, scales: &[f32]) {
        for member in &mut self.members {
            member.weight.scale_columns(scales);
        }
    }

    /// Refuses members whose weights are damaged or take inputs of different width.
    pub fn check(&self, method: &str) -> Result<()> {
        for member in &self.members {
            member.check(method)?;
            if member.weight.cols != self.inputs() {
                return Err(member.refuse(
                    method,
                    format!(
                        "takes {} inputs and `{}`, which shares them, {}",
                        member.weight.cols,
                        self.members[0].name,
                        self.inputs()
                    ),
                    "check the checkpoint's config against its tensors",
                ));
            }
        }
        Ok(())
    }

    /// Packs members that need nothing of each other, in order, after [`Group::check`].
    pub fn pack_each(
        &self,
        method: &str,
        pack: impl FnMut(&Member) -> Result<Box<dyn PackedLinear>>,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        self.check(method)?;
        self.members.iter().map(pack).collect()
    }
}

/// What a method must see of a layer's inputs before it can quantize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calibration {
    /// Weights alone.
    None,
    /// [`LayerStats`] of the calibration texts, from blocks whose predecessors are quantized.
    Inputs,
}

/// Counts a method wants in its row (damping retries, groups left unscaled, ...). Every note is
/// a sum over groups.
pub type Notes = BTreeMap<String, f64>;

/// Adds to a note.
pub fn count(notes: &mut Notes, name: impl Into<String>, by: usize) {
    *notes.entry(name.into()).or_default() += by as f64;
}

/// Tensors that a method brings itself.
pub trait Brought: Send + Sync {
    /// Row-major F32; `None` for one that is the model's own.
    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>>;
}

/// What a method must agree with if it brings tensors for a model.
pub struct ModelShape<'a> {
    /// Of every tensor, by its Hugging Face name.
    pub tensors: &'a BTreeMap<String, Vec<usize>>,
    /// Refuses the text of a `config.json`, given its path, that describes another model.
    pub check_config: &'a dyn Fn(&Path, &str) -> Result<()>,
}

/// What weights would take in a format that they are not run in.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    pub bits_per_weight: f64,
    pub format: String,
}

/// A precision, and how weights reach it.
pub trait QuantMethod: Send + Sync {
    /// The canonical id: what the user types and every table shows (`gptq-int4-g64`).
    fn id(&self) -> String;

    /// What [`parse`] makes this method from. The id, unless the method lives in files.
    fn source(&self) -> String {
        self.id()
    }

    /// The algorithm's name, without parameters (`gptq`).
    fn method(&self) -> &'static str;

    /// All parameters, defaults included, for the row's JSON.
    fn parameters(&self) -> BTreeMap<String, serde_json::Value>;

    /// The form in which [`QuantMethod::quantize`] stores every weight.
    fn spec(&self) -> FormatSpec;

    fn calibration(&self) -> Calibration {
        Calibration::None
    }

    /// The precision that this one is with rounding-sized noise, if it is no precision to choose
    /// but shows what cannot be told from that one.
    fn noise_floor_of(&self) -> Option<String> {
        None
    }

    /// Tensors that take the place of the model's before anything else is done with them.
    ///
    /// # Errors
    /// They are not of a model of this shape.
    fn brings(&self, _model: &ModelShape) -> Result<Option<&dyn Brought>> {
        Ok(None)
    }

    /// Present where memory is stated, not measured, and speed says nothing about the method.
    fn declared(&self) -> Option<Declared> {
        None
    }

    /// Plain-word warnings that follow from what was counted.
    fn doubts(&self, _notes: &Notes) -> Vec<String> {
        vec![]
    }

    /// Scales `s[k_in] > 0` such that columns become `W[:,k] · s[k]` and inputs `x[k] / s[k]`;
    /// `None` leaves the group as it is. Called for every group; where it is not
    /// [foldable](Group::foldable), scales are dropped.
    fn fold(
        &self,
        _group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }

    /// Packs the members of a group, in their order. `stats` is present when
    /// [`QuantMethod::calibration`] asked for it and already describes the folded inputs.
    ///
    /// [`Error::Quantize`], naming the module, for a weight that is not finite or that the format
    /// cannot hold, and for statistics that are missing or not usable.
    fn quantize(
        &self,
        group: &Group,
        stats: Option<&LayerStats>,
        notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_rows_scale() {
        let data = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (rows, cols) = (2, 3);
        let mut m = Matrix { rows, cols, data };
        m.scale_columns(&[1.0, 10.0, 100.0]);
        assert_eq!(m.data, [1.0, 20.0, 300.0, 4.0, 50.0, 600.0]);
        m.scale_rows(&[2.0, 0.5]);
        assert_eq!(m.row(0), [2.0, 40.0, 600.0]);
        assert_eq!(m.row(1), [2.0, 25.0, 300.0]);
    }

    #[test]
    fn an_unknown_id_is_answered_with_the_nearest() {
        for (typed, meant) in [
            ("gptq-in4", "gptq-int4"),
            ("FP16", "fp16"),
            ("awq", "awq-int4"),
        ] {
            let message = parse(typed).err().unwrap().to_string();
            assert!(
                message.contains(&format!("did you mean `{meant}`")),
                "{message}"
            );
            assert!(message.contains("fp8-e5m2"), "{message}");
        }
        let message = parse("something-else-entirely").err().unwrap().to_string();
        assert!(!message.contains("did you mean"), "{message}");
    }

    #[test]
    fn edit_distances() {
        for (a, b, d) in [
            ("", "abc", 3),
            ("abc", "", 3),
            ("int4", "in4", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
        }
    }
}
