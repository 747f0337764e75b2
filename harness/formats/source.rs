//! What a source of unquantized weights is, and the checks and types that sources share.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use half::{bf16, f16};

use crate::error::TensorFault;
use crate::model::config::Config;
use crate::model::layout::{EMBEDDING, HEAD, layout};
use crate::packed::random::Untrained;
use crate::{Error, Result, hub};

/// Makes a tensor of random content from a seed, for the CPU: as [`random::on_cpu`] or, with the
/// same bytes, [`random::through_gpu`].
///
/// [`random::on_cpu`]: crate::packed::random::on_cpu
/// [`random::through_gpu`]: crate::packed::random::through_gpu
pub type Make<'a> = dyn Fn(&Untrained, u64) -> Result<Tensor> + 'a;

/// What a source says about its model.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceInfo {
    /// Display name of the model.
    pub name: String,
    /// What the weights were stored as: `safetensors-f16`, `gguf-q4_1`, ...
    pub source_format: String,
    pub config: Config,
    /// Plain-word warnings for every row of the run.
    pub warnings: Vec<String>,
    /// Whether there are weights to read; without, the source is a shape only.
    pub has_weights: bool,
    /// Whether its ids stand for text, so that there is quality to measure.
    pub reads_text: bool,
}

/// A checkpoint whose tensors are read one at a time, under Hugging Face names
/// (`model.layers.0.self_attn.q_proj.weight`), in Hugging Face row order.
pub trait WeightSource: Send + Sync {
    fn info(&self) -> &SourceInfo;

    fn config(&self) -> &Config {
        &self.info().config
    }

    /// Whether the tensor exists.
    fn has(&self, name: &str) -> bool;

    /// The tensor as row-major F32; refuses another shape than `expected`.
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>>;

    /// The same; what is random in it, if anything, is made by `make`.
    fn tensor_by(&self, name: &str, expected: &[usize], _make: &Make) -> Result<Vec<f32>> {
        self.tensor(name, expected)
    }

    /// SHA-256 (hex) over the weight files' bytes, in name order.
    fn sha256(&self) -> Result<String>;
}

/// Refuses a checkpoint that lacks a tensor of the decoder, has one in another shape, or has one
/// that the decoder would silently ignore. `found` gives file and shape by Hugging Face name.
pub(crate) fn check_layout<'a>(
    path: &Path,
    config: &Config,
    found: &BTreeMap<&'a str, (&'a Path, &'a [usize])>,
) -> Result<()> {
    // Checked by name first: a hostile layer count must not build a huge list.
    if config.layers > found.len() {
        return Err(Error::file(
            path,
            format!(
                "the configuration names {} layers, but there are only {} tensors",
                config.layers,
                found.len()
            ),
            "Download the model again; some of its files are missing or of another model.",
        ));
    }
    let wanted = layout(config);
    for (name, shape) in &wanted {
        match found.get(name.as_str()) {
            Some((file, found)) => check_shape(file, name, shape, found)?,
            None => return Err(missing(path, name, shape)),
        }
    }
    for (name, (file, shape)) in found {
        if config.tied_head && *name == HEAD {
            // May be the embedding once more: whoever has the values compares them.
            check_shape(file, name, &wanted[EMBEDDING], shape)?;
            continue;
        }
        let harmless = name.ends_with("rotary_emb.inv_freq");
        if !harmless && !wanted.contains_key(*name) {
            return Err(Error::unsupported(
                format!(
                    "{}: tensor `{name}` has no place in a {} decoder of this configuration",
                    file.display(),
                    config.architecture
                ),
                "Ignoring it would give wrong numbers: use a plain Llama, Mistral or Qwen2 \
                 checkpoint.",
            ));
        }
    }
    Ok(())
}

pub(crate) fn check_shape(
    path: &Path,
    name: &str,
    expected: &[usize],
    found: &[usize],
) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::from(TensorFault {
        path: path.to_path_buf(),
        tensor: name.to_string(),
        expected: format!("shape {expected:?}"),
        found: format!("{found:?}"),
        next: "The weights belong to another configuration: download config and weights together."
            .into(),
    }))
}

/// The refusal of a head that is not the embedding, though the configuration says so; `found`
/// says where it differs.
pub(crate) fn untied(path: &Path, found: String) -> Error {
    Error::from(TensorFault {
        path: path.to_path_buf(),
        tensor: HEAD.into(),
        expected: format!("the values of `{EMBEDDING}`, as `tie_word_embeddings` is true"),
        found,
        next: "If the model has a head of its own, its config.json must say \
               `tie_word_embeddings` false; else remove the tensor."
            .into(),
    })
}

pub(crate) fn missing(path: &Path, name: &str, expected: &[usize]) -> Error {
    Error::from(TensorFault {
        path: path.to_path_buf(),
        tensor: name.to_string(),
        expected: format!("shape {expected:?}"),
        found: "no such tensor".into(),
        next: "Download the model again; some of its files are missing or of another model.".into(),
    })
}

/// A weight file's content: mapped from disk, or compiled in.
///
/// A mapped file must not be shortened while it is read; that ends the process (SIGBUS).
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    pub(crate) fn map(path: &Path) -> Result<Bytes> {
        let next = "Check the path and its permissions.";
        let file = File::open(path).map_err(|e| Error::io(path, e, next))?;
        let length = file.metadata().map_err(|e| Error::io(path, e, next))?.len();
        if length == 0 {
            return Err(Error::file(path, "the file is empty", "Download it again."));
        }
        // SAFETY: read-only, and only ever read as plain bytes; see the type's caveat.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e, next))?;
        Ok(Bytes::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// The float types that both file formats store, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    pub(crate) fn size(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::BF16 => 2,
        }
    }

    /// Widens to F32, which is exact for every value.
    pub(crate) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Float::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Float::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
            Float::BF16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
        }
    }
}

/// Display name: the last component of the path, links and `..` resolved.
pub(crate) fn display_name(path: &Path, stem: bool) -> String {
    let full: PathBuf = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if let Some(name) = hub::model_name(&full) {
        return name;
    }
    let part = if stem {
        full.file_stem()
    } else {
        full.file_name()
    };
    part.map_or_else(
        || full.display().to_string(),
        |p| p.to_string_lossy().into_owned(),
    )
}
