//! Sets of documents for evaluation and calibration, and of multiple-choice items, each described
//! by a manifest.
//!
//! The embedded ones are folders of `datasets/embedded/`, compiled in by the build script: a new
//! one is a folder with a `manifest.toml` and its text, and no code. Of the public ones in
//! `datasets/public/` only the manifests are compiled in; their files come from the hub's cache.
//! A file or manifest of the user's is read from a path.

pub mod choices;
mod documents;
mod jsonl;
pub mod manifest;
mod parquet;
pub mod protocol;
mod read;

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::documents::MAX_TEXT_BYTES;
pub use self::manifest::{Format, Kind, Manifest};

use self::documents::Documents;
use self::manifest::text_field;
use crate::hash::{sha256, sha256_of_file};
use crate::record::rows::OVERALL;
use crate::{Error, Result};

// `const FOLDERS: &[Folder]` and `const PUBLIC: &[Folder]`, each in name order.
include!(concat!(env!("OUT_DIR"), "/datasets.rs"));

/// One folder of `datasets/embedded/` or `datasets/public/`.
struct Folder {
    /// Its name in the repository.
    name: &'static str,
    manifest: &'static str,
    /// Every other file: name and content.
    files: &'static [(&'static str, &'static str)],
}

/// Documents and where they come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dataset {
    #[serde(flatten)]
    pub manifest: Manifest,
    /// All documents, one after the other with nothing between them.
    #[serde(skip)]
    pub text: Cow<'static, str>,
    /// Where each document ends in `text`.
    #[serde(skip)]
    ends: Vec<usize>,
    /// The file that was read.
    #[serde(skip)]
    pub path: PathBuf,
}

impl Dataset {
    /// The documents: the whole of a plain text, or a string of each line or row. How they are
    /// joined is the protocol's, unless the set's definition says it ([`Manifest::separator`]).
    pub fn documents(&self) -> Vec<&str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.text[start..*end])
            .collect()
    }

    /// What a protocol reads that joins documents so. Where the set's own definition says what
    /// stands between its documents, one stream is that text; pages stay pages.
    pub fn readings(&self, join: protocol::Join) -> Vec<protocol::Reading<'_>> {
        match &self.manifest.separator {
            Some(separator) if join != protocol::Join::Pages => {
                vec![protocol::Reading::joined(&self.documents(), separator)]
            }
            _ => join.readings(&self.documents()),
        }
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
        let manifest = Manifest::parse(&path, folder.manifest)?;
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
        let file = path.with_file_name(&manifest.file);
        let found = sha256([text.as_bytes()]);
        sets.push(dataset(
            &path,
            file,
            manifest,
            Cow::Borrowed(*text),
            vec![text.len()],
            found,
        )?);
    }
    sets.sort_by_key(|set| (set.manifest.kind as u8, set.manifest.order));
    Ok(sets)
}

/// The known public sets, in order: manifests only, their files are not part of the program.
pub fn public() -> Result<Vec<Manifest>> {
    let mut manifests = PUBLIC
        .iter()
        .map(|folder| Manifest::parse(&public_path(folder.name), folder.manifest))
        .collect::<Result<Vec<_>>>()?;
    manifests.sort_by_key(|manifest| (manifest.kind as u8, manifest.order));
    Ok(manifests)
}

fn public_path(folder: &str) -> PathBuf {
    Path::new("datasets/public")
        .join(folder)
        .join("manifest.toml")
}

/// The sets of one kind that `names` asks for, in its order; all embedded ones if it is empty.
///
/// A name is that of an embedded or public set, the path of a text, JSONL or Parquet file (which
/// becomes a set of this kind; `FILE#FIELD` names field or column), of a manifest, or of a folder
/// with a `manifest.toml`.
pub fn select(names: &[String], kind: Kind) -> Result<Vec<Dataset>> {
    let mut known = embedded()?;
    known.retain(|set| set.manifest.kind == kind);
    if names.is_empty() {
        return Ok(known);
    }
    let mut public = public()?;
    public.retain(|manifest| manifest.kind == kind);
    let mut chosen: Vec<Dataset> = Vec::with_capacity(names.len());
    for name in names {
        let set = if let Some(set) = known.iter().find(|set| set.manifest.name == *name) {
            set.clone()
        } else if let Some(manifest) = public.iter().find(|m| m.name == *name) {
            let path = public_path(name);
            described(&path, manifest.clone())?
        } else {
            let embedded = known.iter().map(|set| set.manifest.name.as_str());
            let public = public.iter().map(|manifest| manifest.name.as_str());
            from_path(name, kind, &embedded.chain(public).collect::<Vec<_>>())?
        };
        if set.manifest.name == OVERALL {
            return Err(Error::usage(
                format!("a {kind} set cannot be called `{OVERALL}`: that is all of them together"),
                "Rename the file, or name it otherwise in a manifest.",
            ));
        }
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

fn from_path(name: &str, kind: Kind, known: &[&str]) -> Result<Dataset> {
    let mut path = PathBuf::from(name);
    let mut field = None;
    if !path.exists()
        && let Some((file, named)) = name.rsplit_once('#')
    {
        (path, field) = (PathBuf::from(file), Some(named));
    }
    if !path.exists() {
        return Err(Error::usage(
            format!("`{name}` is neither a known {kind} set nor a file"),
            format!(
                "The known ones are: {}. A path to a text, JSONL or Parquet file, a \
                 manifest.toml or a folder with one works too.",
                known.join(", ")
            ),
        ));
    }
    let manifest = if path.is_dir() {
        path.join("manifest.toml")
    } else {
        path.clone()
    };
    if manifest.extension().is_none_or(|e| e != "toml") {
        return local_file(&path, field, kind);
    }
    let text = std::fs::read_to_string(&manifest)
        .map_err(|e| Error::io(&manifest, e, "Check the path and its permissions."))?;
    let parsed = Manifest::parse(&manifest, &text)?;
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
    described(&manifest, parsed)
}

/// The set of a manifest whose file is not compiled in: beside it, or a hub's.
fn described(manifest_path: &Path, manifest: Manifest) -> Result<Dataset> {
    let beside = manifest_path.with_file_name(&manifest.file);
    let file = match &manifest.hub {
        Some(hub) if manifest.file.is_empty() || !beside.exists() => hub.locate()?,
        _ => beside,
    };
    from_file(manifest_path, file, manifest)
}

/// A file without a manifest.
fn local_file(path: &Path, field: Option<&str>, kind: Kind) -> Result<Dataset> {
    let part = |part: Option<&std::ffi::OsStr>| {
        part.map_or_else(String::new, |p| p.to_string_lossy().into_owned())
    };
    let format = match kind {
        Kind::Choices => Format::Text,
        _ => format_of(path, field.is_some())?,
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
        sha256: String::new(),
        text_sha256: String::new(),
        format,
        field: field.map_or_else(text_field, str::to_string),
        take_documents: None,
        take_windows: None,
        separator: None,
        raw: false,
        hub: None,
    };
    from_file(path, path.to_path_buf(), manifest)
}

/// How a file without a manifest holds its documents: Parquet by its first bytes, JSONL by its
/// name (nothing else tells it from text that quotes JSON), or because a field is named.
fn format_of(path: &Path, has_field: bool) -> Result<Format> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .map_err(|e| Error::io(path, e, "Check the path and its permissions."))?;
    let name = path.to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let is_jsonl = name.ends_with(".jsonl") || name.ends_with(".ndjson");
    Ok(if start == b"PAR1" || name.ends_with(".parquet") {
        Format::Parquet
    } else if is_jsonl || has_field {
        Format::Jsonl
    } else {
        Format::Text
    })
}

/// Reads the documents of `file` as its manifest says.
fn from_file(manifest_path: &Path, file: PathBuf, manifest: Manifest) -> Result<Dataset> {
    let Documents { text, ends } = read::read(
        &file,
        manifest.format,
        &manifest.field,
        manifest.take_documents,
    )?;
    let found = sha256_of_file(&file)
        .map_err(|e| Error::io(&file, e, "Check the path and its permissions."))?;
    let text = Cow::Owned(text);
    dataset(manifest_path, file, manifest, text, ends, found)
}

/// Joins manifest and documents; `found` is the hash of `file`, which is recorded where the
/// manifest names none.
fn dataset(
    manifest_path: &Path,
    file: PathBuf,
    mut manifest: Manifest,
    text: Cow<'static, str>,
    ends: Vec<usize>,
    found: String,
) -> Result<Dataset> {
    if manifest.sha256.is_empty() {
        manifest.sha256 = found;
    } else if !manifest.sha256.eq_ignore_ascii_case(&found) {
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
    if !manifest.text_sha256.is_empty() {
        let found = sha256([text.as_bytes()]);
        if !manifest.text_sha256.eq_ignore_ascii_case(&found) {
            return Err(Error::file(
                file,
                format!(
                    "the sha256 of its documents is {found}, but {} says {}",
                    manifest_path.display(),
                    manifest.text_sha256
                ),
                "It holds another text; take the file that the manifest names as its source.",
            ));
        }
    }
    if text.trim().is_empty() {
        return Err(Error::file(
            file,
            "the text is empty",
            "Give a text of at least a few thousand words.",
        ));
    }
    if manifest.is_raw() && text.contains("<unk>") {
        return Err(Error::file(
            file,
            format!(
                "`{}` is to be raw text, but this file contains `<unk>`: it is the tokenized \
                 variant, whose perplexities cannot be compared with those of the raw text",
                manifest.name
            ),
            "Use the raw file (wikitext-2-raw-v1, wiki.test.raw); to measure the tokenized one \
             all the same, give its path under another name, without a manifest that says raw.",
        ));
    }
    Ok(Dataset {
        manifest,
        text,
        ends,
        path: file,
    })
}
