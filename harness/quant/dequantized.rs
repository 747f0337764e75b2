//! `dir:PATH`: weights that another tool quantized and wrote back as plain numbers.
//!
//! The folder holds `*.safetensors` (F32, F16 or BF16) under the model's Hugging Face names and
//! `quantbench.toml`:
//!
//! ```toml
//! name = "mine-int4-g64"       # the precision's id in every table
//! bits_per_weight = 4.25       # of the linears in the blocks, scales and zeros counted
//! format = "int4-g64"          # in words
//! notes = "optional"
//! ```
//!
//! Every linear of the blocks must be there. Embedding, norms, biases and head are taken from the
//! folder where it has them (a method may have folded scales into them), else from the model. A
//! `config.json` must describe the same decoder as the model's, and a head beside tied embeddings
//! must be the embedding once more. The linears run as FP16 where all of them are stored so, else
//! as FP32, which both keep the stored values exactly; what they would take in their own format is
//! only declared.

use super::{Brought, Declared, Family, Group, LayerStats, Listed, ModelShape, Notes, QuantMethod};
use crate::error::TensorFault;
use crate::hash::sha256;
use crate::packed::{FormatSpec, PackedLinear, dense, dense::Dense};
use crate::{Error, Result};
use candle_core::DType;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const FAMILY: Family = Family {
    // Ids of this family are the folders' own.
    ids: &[],
    parse: |id| {
        let folder = id.strip_prefix(PREFIX)?;
        Some(Dequantized::open(Path::new(folder)).map(|m| Box::new(m) as Box<dyn QuantMethod>))
    },
};

pub const LISTED: Listed = Listed {
    id: "dir:PATH",
    about: "dequantized weights made elsewhere: quality measured, memory as declared, no speed",
};

const PREFIX: &str = "dir:";
const ABOUT: &str = "quantbench.toml";
const LONGEST_NAME: usize = 48;

/// What the folder says about itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    name: String,
    bits_per_weight: f64,
    format: String,
    #[serde(default)]
    notes: String,
}

struct Dequantized {
    folder: PathBuf,
    about: About,
    /// In name order.
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Stored>,
    /// Over all of the above.
    sha256: String,
}

/// Where a tensor lies.
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Dequantized {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(ABOUT);
        let next = "it says `name = \"mine-int4\"`, `bits_per_weight = 4.25` and \
                    `format = \"int4-g64\"`";
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e, next))?;
        let about: About =
            toml::from_str(&text).map_err(|e| Error::file(&path, e.to_string(), next))?;
        about
            .check()
            .map_err(|what| Error::file(&path, what, next))?;
        let files = files(folder)?;
        let tensors = tensors(&files)?;
        let parts = files.iter().map(|(_, map)| &map[..]);
        let sha256 = sha256(std::iter::once(text.as_bytes()).chain(parts));
        Ok(Dequantized {
            folder: folder.into(),
            about,
            files,
            tensors,
            sha256,
        })
    }

    fn fault(&self, tensor: &str, expected: String, found: String) -> Error {
        Error::from(TensorFault {
            path: self.folder.clone(),
            tensor: tensor.into(),
            expected,
            found,
            next: "save the dequantized weights of the same model, under its own names".into(),
        })
    }

    /// Compares a `config.json` that is there with the model's.
    fn check_config(&self, model: &ModelShape) -> Result<()> {
        let path = self.folder.join("config.json");
        match std::fs::read_to_string(&path) {
            Ok(text) => (model.check_config)(&path, &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(path, e, "make it readable, or leave it out")),
        }
    }

    /// What runs it without changing a value.
    fn dtype(&self) -> DType {
        let mut linears = self.tensors.iter().filter(|(name, _)| is_linear(name));
        match linears.all(|(_, stored)| stored.dtype == Dtype::F16) {
            true => DType::F16,
            false => DType::F32,
        }
    }
}

impl About {
    fn check(&self) -> std::result::Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        let name = self.name.as_str();
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
            return Err(format!(
                "`name` is {name:?}: expected 1 to {LONGEST_NAME} letters, digits or . _ + -"
            ));
        }
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(format!(
                "`name` is {name:?}: expected a letter or digit first"
            ));
        }
        if super::parse(name).is_ok() {
            return Err(format!(
                "`name` is {name:?}, which is a precision of quantbench itself"
            ));
        }
        if !(self.bits_per_weight > 0.0 && self.bits_per_weight <= 32.0) {
            return Err(format!(
                "`bits_per_weight` is {}: expected more than 0 and at most 32",
                self.bits_per_weight
            ));
        }
        if self.format.trim().is_empty() || self.format.contains(['\n', ';']) {
            return Err("`format` is empty or not one plain line".into());
        }
        Ok(())
    }
}

/// The folder's safetensors files, mapped.
fn files(folder: &Path) -> Result<Vec<(PathBuf, Mmap)>> {
    let next = "check the folder and its permissions";
    let mut paths = vec![];
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e, next))? {
        let path = entry.map_err(|e| Error::io(folder, e, next))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Error::file(
            folder,
            "no *.safetensors files",
            "save the dequantized weights there as safetensors",
        ));
    }
    paths.sort();
    let map = |path: PathBuf| {
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e, next))?;
        // SAFETY: read-only bytes; a program that shortened the file meanwhile would end this one.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(&path, e, next))?;
        Ok((path, map))
    };
    paths.into_iter().map(map).collect()
}

fn tensors(files: &[(PathBuf, Mmap)]) -> Result<BTreeMap<String, Stored>> {
    let mut tensors = BTreeMap::new();
    for (file, (path, map)) in files.iter().enumerate() {
        let damaged = |what: String| Error::file(path, what, "the file is damaged; write it again");
        let views = SafeTensors::deserialize(map).map_err(|e| damaged(e.to_string()))?;
        for (name, view) in views.iter() {
            let dtype = view.dtype();
            if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(Error::unsupported(
                    format!("{}: tensor `{name}` is {dtype:?}", path.display()),
                    "dequantized weights are F32, F16 or BF16",
                ));
            }
            let stored = Stored {
                file,
                dtype,
                shape: view.shape().to_vec(),
            };
            if tensors.insert(name.to_string(), stored).is_some() {
                return Err(damaged(format!("tensor `{name}` is in two files")));
            }
        }
    }
    Ok(tensors)
}

/// What quantization acts on.
fn is_linear(name: &str) -> bool {
    name.starts_with("model.layers.") && name.ends_with("_proj.weight")
}

impl Brought for Dequantized {
    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(stored) = self.tensors.get(name) else {
            return Ok(None);
        };
        let (path, map) = &self.files[stored.file];
        let damaged = |what: String| Error::file(path, what, "write the file again");
        let views = SafeTensors::deserialize(map).map_err(|e| damaged(e.to_string()))?;
        let view = views.tensor(name).map_err(|e| damaged(e.to_string()))?;
        let pairs = || view.data().as_chunks::<2>().0.iter();
        let values: Vec<f32> = match stored.dtype {
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => {
                let words = view.data().as_chunks::<4>().0.iter();
                words.map(|b| f32::from_le_bytes(*b)).collect()
            }
        };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let value = values[at];
            return Err(self.fault(name, "finite values".into(), format!("{value} at {at}")));
        }
        Ok(Some(values))
    }
}

impl QuantMethod for Dequantized {
    fn id(&self) -> String {
        self.about.name.clone()
    }

    fn source(&self) -> String {
        format!("{PREFIX}{}", self.folder.display())
    }

    fn method(&self) -> &'static str {
        "dir"
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("bits_per_weight".into(), json!(self.about.bits_per_weight)),
            ("format".into(), json!(self.about.format)),
            ("notes".into(), json!(self.about.notes)),
            ("sha256".into(), json!(self.sha256)),
        ])
    }

    fn spec(&self) -> FormatSpec {
        dense::spec(self.dtype())
    }

    fn brings(&self, model: &ModelShape) -> Result<Option<&dyn Brought>> {
        self.check_config(model)?;
        for (name, shape) in model.tensors {
            match self.tensors.get(name) {
                Some(stored) if stored.shape == *shape => {}
                Some(stored) => {
                    let (expected, found) =
                        (format!("shape {shape:?}"), format!("{:?}", stored.shape));
                    return Err(self.fault(name, expected, found));
                }
                None if is_linear(name) => {
                    return Err(self.fault(
                        name,
                        format!("shape {shape:?}"),
                        "no such tensor".into(),
                    ));
                }
                None => {}
            }
        }
        let known = |name: &str| {
            model.tensors.contains_key(name)
                // A tied head saved once more, which is compared, and what can be computed.
                || name == "lm_head.weight"
                || name.ends_with("rotary_emb.inv_freq")
        };
        match self.tensors.keys().find(|name| !known(name)) {
            Some(name) => Err(self.fault(name, "no such tensor".into(), "it is there".into())),
            None => Ok(Some(self)),
        }
    }

    fn declared(&self) -> Option<Declared> {
        Some(Declared {
            bits_per_weight: self.about.bits_per_weight,
            format: self.about.format.clone(),
        })
    }

    fn quantize(
        &self,
        group: &Group,
        _stats: Option<&LayerStats>,
        _notes: &mut Notes,
    ) -> Result<Vec<Box<dyn PackedLinear>>> {
        let dtype = self.dtype();
        group.pack_each(self.method(), |member| {
            let weight = &member.weight;
            let shape = (weight.rows, weight.cols);
            Ok(Box::new(Dense::new(dtype, &weight.data, shape)?))
        })
    }
}
