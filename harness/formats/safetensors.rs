//! A Hugging Face folder: `config.json` and one or many `*.safetensors`, memory-mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::source::{
    Bytes, Float, SourceInfo, WeightSource, check_layout, check_shape, display_name, missing,
    untied,
};
use crate::error::TensorFault;
use crate::hash::sha256;
use crate::model::config::Config;
use crate::model::hugging_face::already_quantized;
use crate::model::layout::{EMBEDDING, HEAD, is_body_linear};
use crate::{Error, Result};

/// Weights in safetensors files, of a folder or compiled in.
pub(super) struct SafetensorsSource {
    info: SourceInfo,
    config_path: PathBuf,
    /// In name order.
    shards: Vec<(PathBuf, Bytes)>,
    tensors: BTreeMap<String, Stored>,
}

/// Where one tensor lies.
struct Stored {
    shard: usize,
    float: Float,
    shape: Vec<usize>,
    /// Byte range in the shard's file.
    start: usize,
    end: usize,
}

/// Opens a folder. Refuses one that another tool has quantized, naming the key or file.
pub(super) fn open(folder: &Path) -> Result<SafetensorsSource> {
    let config_path = folder.join("config.json");
    let config = std::fs::read_to_string(&config_path).map_err(|e| {
        Error::io(
            &config_path,
            e,
            "Pass a Hugging Face folder (config.json and *.safetensors) or a GGUF file.",
        )
    })?;
    for file in [
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
    ] {
        if folder.join(file).exists() {
            return Err(already_quantized(folder, file, "the file is there"));
        }
    }
    // Before the weights are looked at: a refusal by configuration is the clearer message.
    Config::from_hugging_face(&config_path, &config)?;
    let shards = weight_files(folder)?
        .into_iter()
        .map(|path| Bytes::map(&path).map(|bytes| (path, bytes)))
        .collect::<Result<Vec<_>>>()?;
    let source =
        SafetensorsSource::new(display_name(folder, false), &config_path, &config, shards)?;
    Ok(source)
}

/// The folder's weight files in name order: `model.safetensors`, else those of the index, else
/// every `*.safetensors`.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        return indexed_files(folder, &index);
    }
    let listing = std::fs::read_dir(folder)
        .map_err(|e| Error::io(folder, e, "Check the path and its permissions."))?;
    let mut files = BTreeSet::new();
    let mut pickled = false;
    for entry in listing {
        let path = entry
            .map_err(|e| Error::io(folder, e, "Check the path and its permissions."))?
            .path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => {
                files.insert(path);
            }
            Some("bin" | "pt" | "pth") => pickled = true,
            _ => {}
        }
    }
    match files.is_empty() {
        false => Ok(files.into_iter().collect()),
        true if pickled => Err(Error::unsupported(
            format!(
                "{}: weights only as pickled PyTorch files",
                folder.display()
            ),
            "Convert them to safetensors, or download the model's *.safetensors files.",
        )),
        true => Err(Error::file(
            folder,
            "no *.safetensors files",
            "Download the model's weights into this folder.",
        )),
    }
}

fn indexed_files(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let next = "Download the index and its files again.";
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, e, next))?;
    let json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::file(index, format!("not valid JSON: {e}"), next))?;
    let map = json
        .get("weight_map")
        .and_then(|m| m.as_object())
        .filter(|m| !m.is_empty())
        .ok_or_else(|| Error::file(index, "`weight_map` is missing or empty", next))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        // A plain name only: an index must not reach outside its folder.
        let plain = file
            .as_str()
            .filter(|f| Path::new(f).file_name() == Some(f.as_ref()));
        match plain {
            Some(file) => files.insert(folder.join(file)),
            None => {
                return Err(Error::file(
                    index,
                    format!(
                        "`weight_map`: tensor `{tensor}` is said to be in {file}, not a file of this folder"
                    ),
                    next,
                ));
            }
        };
    }
    Ok(files.into_iter().collect())
}

impl SafetensorsSource {
    /// Reads the headers of `shards` and checks every tensor against `config`.
    pub(super) fn new(
        name: String,
        config_path: &Path,
        config: &str,
        shards: Vec<(PathBuf, Bytes)>,
    ) -> Result<Self> {
        let (config, warnings) = Config::from_hugging_face(config_path, config)?;
        let mut tensors = BTreeMap::new();
        for (i, (path, bytes)) in shards.iter().enumerate() {
            for (name, stored) in read_header(i, path, bytes)? {
                if let Some(other) = tensors.insert(name.clone(), stored) {
                    return Err(Error::file(
                        path,
                        format!(
                            "tensor `{name}` is also in {}",
                            shards[other.shard].0.display()
                        ),
                        "Keep the files of one model only in the folder.",
                    ));
                }
            }
        }
        let found = tensors
            .iter()
            .map(|(name, t)| (name.as_str(), (shards[t.shard].0.as_path(), &t.shape[..])))
            .collect();
        check_layout(config_path, &config, &found)?;
        let info = SourceInfo {
            name,
            source_format: format(&tensors),
            config,
            warnings,
            has_weights: true,
            reads_text: true,
        };
        let source = Self {
            info,
            config_path: config_path.to_path_buf(),
            shards,
            tensors,
        };
        source.check_tied_head()?;
        Ok(source)
    }

    /// Refuses a head beside a configuration that ties it, unless it is the embedding once more.
    fn check_tied_head(&self) -> Result<()> {
        let (true, Some(head)) = (self.config().tied_head, self.tensors.get(HEAD)) else {
            return Ok(());
        };
        let embedding = &self.tensors[EMBEDDING];
        // In pieces, so that neither is in memory as a whole.
        const PIECE: usize = 1 << 16;
        let pieces = self.bytes(head).chunks(PIECE * head.float.size());
        let others = self.bytes(embedding).chunks(PIECE * embedding.float.size());
        for (i, (piece, other)) in pieces.zip(others).enumerate() {
            let (piece, other) = (head.float.to_f32(piece), embedding.float.to_f32(other));
            if let Some(at) = piece.iter().zip(&other).position(|(a, b)| a != b) {
                let found = format!(
                    "{} at {}, where that has {}",
                    piece[at],
                    i * PIECE + at,
                    other[at]
                );
                return Err(untied(&self.shards[head.shard].0, found));
            }
        }
        Ok(())
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.shards[stored.shard].1[stored.start..stored.end]
    }
}

/// One tensor as the header of a file describes it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The tensors of one file.
///
/// The file is a little-endian `u64` header length, that many bytes of JSON, and data which the
/// tensors must tile exactly: no gap, no overlap, nothing beyond the end.
fn read_header(shard: usize, path: &Path, bytes: &[u8]) -> Result<Vec<(String, Stored)>> {
    let damaged = |what: String| Error::file(path, what, "Download the file again.");
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged(format!("{} bytes is no safetensors file", bytes.len())))?;
    let length = u64::from_le_bytes(*length);
    let (header, data) = usize::try_from(length)
        .ok()
        .and_then(|n| rest.split_at_checked(n))
        .ok_or_else(|| {
            damaged(format!(
                "the header claims {length} bytes, but only {} follow",
                rest.len()
            ))
        })?;
    let mut header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|e| damaged(format!("the safetensors header is not valid JSON: {e}")))?;
    header.remove("__metadata__");

    let mut tensors = Vec::with_capacity(header.len());
    for (name, entry) in header {
        let entry = Entry::deserialize(entry)
            .map_err(|e| damaged(format!("tensor `{name}`: bad header entry: {e}")))?;
        let (start, end) = entry.data_offsets;
        if start > end || end > data.len() {
            return Err(damaged(format!(
                "tensor `{name}`: bytes {start}..{end} do not lie in the {} bytes of data",
                data.len()
            )));
        }
        let float = match entry.dtype.as_str() {
            "F32" => Float::F32,
            "F16" => Float::F16,
            "BF16" => Float::BF16,
            other => {
                return Err(Error::unsupported(
                    format!(
                        "{}: tensor `{name}` is stored as {other}, not F32, F16 or BF16",
                        path.display()
                    ),
                    "Pass the full-precision checkpoint.",
                ));
            }
        };
        let size = entry
            .shape
            .iter()
            .try_fold(float.size(), |size, &d| size.checked_mul(d));
        if size != Some(end - start) {
            return Err(Error::from(TensorFault {
                path: path.to_path_buf(),
                tensor: name,
                expected: format!("shape {:?} of {float:?}", entry.shape),
                found: format!("{} bytes", end - start),
                next: "Download the file again.".into(),
            }));
        }
        tensors.push((
            name,
            Stored {
                shard,
                float,
                shape: entry.shape,
                start,
                end,
            },
        ));
    }

    tensors.sort_by_key(|(_, t)| (t.start, t.end));
    let mut covered = 0;
    for (name, t) in &tensors {
        if t.start != covered {
            let problem = if t.start < covered {
                "overlaps"
            } else {
                "leaves a gap after"
            };
            return Err(damaged(format!(
                "tensor `{name}` {problem} the one before it"
            )));
        }
        covered = t.end;
    }
    if covered != data.len() {
        return Err(damaged(format!(
            "{} bytes after the last tensor belong to none",
            data.len() - covered
        )));
    }
    let data = bytes.len() - data.len();
    for (_, t) in &mut tensors {
        t.start += data;
        t.end += data;
    }
    Ok(tensors)
}

fn format(tensors: &BTreeMap<String, Stored>) -> String {
    let mut floats: Vec<Float> = Vec::new();
    for (_, t) in tensors.iter().filter(|(name, _)| is_body_linear(name)) {
        if !floats.contains(&t.float) {
            floats.push(t.float);
        }
    }
    match floats[..] {
        [Float::F32] => "safetensors-f32",
        [Float::F16] => "safetensors-f16",
        [Float::BF16] => "safetensors-bf16",
        _ => "safetensors-mixed",
    }
    .into()
}

impl WeightSource for SafetensorsSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(|| missing(&self.config_path, name, expected))?;
        check_shape(&self.shards[stored.shard].0, name, expected, &stored.shape)?;
        Ok(stored.float.to_f32(self.bytes(stored)))
    }

    fn sha256(&self) -> Result<String> {
        Ok(sha256(self.shards.iter().map(|(_, bytes)| &bytes[..])))
    }
}
