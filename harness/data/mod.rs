//! Texts for evaluation and calibration, each described by a manifest.
//!
//! The embedded ones are folders of `datasets/embedded/`, compiled in by the build script: a new
//! one is a folder with a `manifest.toml` and its text, and no code. A text or manifest of the
//! user's is read from a path.

pub mod protocol;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::hash::sha256;
use crate::{Error, Result};

// `const FOLDERS: &[Folder]`, in name order.
include!(concat!(env!("OUT_DIR"), "/datasets.rs"));

/// One folder of `datasets/embedded/`.
struct Folder {
    /// Its name in the repository.
    name: &'static str,
    manifest: &'static str,
    /// Every other file: name and content.
    files: &'static [(&'static str, &'static str)],
}

/// What a text may be used for.
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

/// How the text is made from the file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// The bytes as they are.
    Whole,
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
    /// The text's file, beside the manifest.
    pub file: String,
    pub split: String,
    pub licence: String,
    pub source: String,
    /// Hex, of the file.
    pub sha256: String,
    pub join: Join,
}

/// A text and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dataset {
    #[serde(flatten)]
    pub manifest: Manifest,
    #[serde(skip)]
    pub text: Cow<'static, str>,
}

impl Dataset {
    /// Its documents, in order. How they are joined is a protocol's.
    pub fn documents(&self) -> Vec<&str> {
        vec![&self.text]
    }

    /// Plain-word doubts about the text.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.text.contains("<unk>") {
            warnings.push(format!(
                "dataset `{}` contains `<unk>`: a tokenized variant, whose perplexities cannot be \
                 compared with those of the raw text",
                self.manifest.name
            ));
        }
        warnings
    }
}

/// Every set that is compiled in, by kind and order; each is checked against its hash.
pub fn embedded() -> Result<Vec<Dataset>> {
    let mut sets = Vec::with_capacity(FOLDERS.len());
    for folder in FOLDERS {
        let path = Path::new("datasets/embedded")
            .join(folder.name)
            .join("manifest.toml");
        let manifest = parse(&path, folder.manifest)?;
        let file = path.with_file_name(&manifest.file);
        let (_, text) = folder
            .files
            .iter()
            .find(|(name, _)| *name == manifest.file)
            .ok_or_else(|| {
                Error::file(
                    &path,
                    format!("`file` {:?} is not in the folder", manifest.file),
                    "Add the file, or name the right one.",
                )
            })?;
        sets.push(dataset(&path, &file, manifest, Cow::Borrowed(*text))?);
    }
    sets.sort_by_key(|set| (set.manifest.kind as u8, set.manifest.order));
    Ok(sets)
}

/// The sets of one kind that `names` asks for, in its order; all embedded ones if it is empty.
///
/// A name is that of an embedded set, or the path of a text file (which becomes a set of this
/// kind), of a manifest, or of a folder with a `manifest.toml`.
pub fn select(names: &[String], kind: Kind) -> Result<Vec<Dataset>> {
    let mut known = embedded()?;
    known.retain(|set| set.manifest.kind == kind);
    if names.is_empty() {
        return Ok(known);
    }
    let mut chosen: Vec<Dataset> = Vec::with_capacity(names.len());
    for name in names {
        let set = match known.iter().find(|set| set.manifest.name == *name) {
            Some(set) => set.clone(),
            None => from_path(name, kind, &known)?,
        };
        // Rows are told apart by this name.
        if chosen.iter().any(|c| c.manifest.name == set.manifest.name) {
            return Err(Error::usage(
                format!("{kind} set `{}` is asked for twice", set.manifest.name),
                "Name each set once; rename one of two files of the same name.",
            ));
        }
        chosen.push(set);
    }
    Ok(chosen)
}

fn from_path(name: &str, kind: Kind, known: &[Dataset]) -> Result<Dataset> {
    let path = PathBuf::from(name);
    if !path.exists() {
        let names: Vec<_> = known.iter().map(|s| s.manifest.name.as_str()).collect();
        return Err(Error::usage(
            format!("`{name}` is neither an embedded {kind} set nor a file"),
            format!(
                "The embedded ones are: {}. A path to a text file, a manifest.toml or a folder \
                 with one works too.",
                names.join(", ")
            ),
        ));
    }
    let manifest = if path.is_dir() {
        path.join("manifest.toml")
    } else {
        path.clone()
    };
    if manifest.extension().is_none_or(|e| e != "toml") {
        return local_text(&path, kind);
    }
    let text = read(&manifest)?;
    let parsed = parse(&manifest, &text)?;
    if parsed.kind != kind {
        return Err(Error::usage(
            format!(
                "{}: the set is for {}, not for {kind}",
                manifest.display(),
                parsed.kind
            ),
            "Evaluation and calibration never share a text: name it with the other option, or \
             take another set.",
        ));
    }
    let file = manifest.with_file_name(&parsed.file);
    let text = read(&file)?;
    dataset(&manifest, &file, parsed, Cow::Owned(text))
}

/// A text file without a manifest.
fn local_text(path: &Path, kind: Kind) -> Result<Dataset> {
    let text = read(path)?;
    let part = |part: Option<&std::ffi::OsStr>| {
        part.map_or_else(String::new, |p| p.to_string_lossy().into_owned())
    };
    let manifest = Manifest {
        name: part(path.file_stem()),
        title: part(path.file_name()),
        kind,
        domain: "local".into(),
        order: 0,
        file: part(path.file_name()),
        split: "whole".into(),
        licence: "not stated".into(),
        source: "a file of the user's".into(),
        sha256: sha256([text.as_bytes()]),
        join: Join::Whole,
    };
    dataset(path, path, manifest, Cow::Owned(text))
}

fn parse(path: &Path, text: &str) -> Result<Manifest> {
    toml::from_str(text).map_err(|e| {
        Error::file(
            path,
            format!("not a dataset manifest: {}", e.message()),
            "See datasets/embedded/README.md for what a manifest holds.",
        )
    })
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::io(path, e, "Check the path and its permissions."))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::file(
            path,
            format!(
                "not UTF-8 text: byte {} does not decode",
                e.utf8_error().valid_up_to()
            ),
            "Convert the text to UTF-8.",
        )
    })
}

/// Joins manifest and text; `file` is the text's path.
fn dataset(
    manifest_path: &Path,
    file: &Path,
    manifest: Manifest,
    text: Cow<'static, str>,
) -> Result<Dataset> {
    let found = sha256([text.as_bytes()]);
    if !manifest.sha256.eq_ignore_ascii_case(&found) {
        return Err(Error::file(
            file,
            format!(
                "its sha256 is {found}, but {} says {}",
                manifest_path.display(),
                manifest.sha256
            ),
            "Restore the file; if the change is meant, write the new hash into the manifest.",
        ));
    }
    if text.trim().is_empty() {
        return Err(Error::file(
            file,
            "the text is empty",
            "Give a text of at least a few thousand words.",
        ));
    }
    match manifest.join {
        Join::Whole => Ok(Dataset { manifest, text }),
    }
}
