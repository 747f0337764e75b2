//! The model compiled into the binary: see `datasets/embedded-model/README.md`.

use std::path::{Path, PathBuf};

use super::safetensors::SafetensorsSource;
use super::source::Bytes;
use crate::Result;

const CONFIG: &str = include_str!("../../datasets/embedded-model/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../datasets/embedded-model/model.safetensors");

/// Its `tokenizer.json`.
pub(crate) const TOKENIZER: &str = include_str!("../../datasets/embedded-model/tokenizer.json");

/// Its `tokenizer_config.json`.
pub(crate) const TOKENIZER_CONFIG: &str =
    include_str!("../../datasets/embedded-model/tokenizer_config.json");

/// Opens it; the folder in errors is the one in the repository that it was compiled from.
pub(super) fn open() -> Result<SafetensorsSource> {
    let folder = Path::new("datasets/embedded-model");
    let shard: (PathBuf, Bytes) = (folder.join("model.safetensors"), Bytes::Static(WEIGHTS));
    SafetensorsSource::new(
        "embedded-7m".into(),
        &folder.join("config.json"),
        CONFIG,
        vec![shard],
    )
}
