//! What `manifest.toml` says of a set: its file, how documents lie in it, and where it comes from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::hub::HubFile;
use crate::{Error, Result};

/// What a set may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Quality is measured on it; nothing may ever be chosen by it.
    Evaluation,
    /// Quantization methods may look at it.
    Calibration,
    /// Multiple-choice items, one JSON object a line.
    Choices,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Evaluation => "evaluation",
            Kind::Calibration => "calibration",
            Kind::Choices => "choices",
        })
    }
}

/// How a file holds its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// UTF-8; the whole file is one document.
    #[default]
    Text,
    /// One JSON object a line, possibly compressed with gzip; a field of each is a document.
    Jsonl,
    /// A column's rows are documents.
    Parquet,
}

/// What `manifest.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Unique among the sets of its kind; the word that selects it.
    pub name: String,
    pub title: String,
    pub kind: Kind,
    pub domain: String,
    /// Position among the embedded sets of its kind.
    #[serde(default)]
    pub order: u32,
    /// The set's file, beside the manifest.
    #[serde(default)]
    pub file: String,
    pub split: String,
    pub licence: String,
    pub source: String,
    /// Hex, of the file. A file of a hub may go without; the run then records what it found.
    #[serde(default)]
    pub sha256: String,
    /// Hex, of the documents one after another: for a text whose file may be another every time
    /// that it is converted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text_sha256: String,
    #[serde(default)]
    pub format: Format,
    /// The JSON field or Parquet column that holds the text.
    #[serde(default = "text_field")]
    pub field: String,
    /// The set is the first so many documents of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_documents: Option<usize>,
    /// The set is the first so many windows, however long the protocol makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_windows: Option<usize>,
    /// What the set's own definition puts between documents. Without it, the protocol's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Text as it was written: a file with `<unk>` in it is another variant, and is refused.
    #[serde(default)]
    pub raw: bool,
    /// Where the file can be had if it does not lie beside the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubFile>,
}

/// What most public sets call it.
pub fn text_field() -> String {
    "text".into()
}

impl Manifest {
    /// Reads the manifest at `path`, whose content is `text`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let next = "See datasets/README.md for what a manifest holds.";
        let manifest: Manifest = toml::from_str(text).map_err(|e| {
            let what = format!("not a dataset manifest: {}", e.message());
            Error::file(path, what, next)
        })?;
        let fault = if manifest.file.is_empty() && manifest.hub.is_none() {
            "neither `file` nor `[hub]` says where the text is"
        } else if manifest.sha256.is_empty() && manifest.hub.is_none() {
            "`sha256` is missing; only a file of a hub may go without"
        } else if manifest.take_documents == Some(0) || manifest.take_windows == Some(0) {
            "`take_documents` and `take_windows` must be at least 1"
        } else if manifest.kind == Kind::Choices && manifest.format != Format::Text {
            "multiple-choice items have a format of their own: leave `format` out"
        } else {
            return Ok(manifest);
        };
        Err(Error::file(path, fault, next))
    }

    /// Whether the set is text as it was written, by its own word or by its name.
    pub fn is_raw(&self) -> bool {
        self.raw || self.name.ends_with("-raw")
    }
}
