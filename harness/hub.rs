//! Files of the Hugging Face hub, by the id of their repository: out of the hub's local cache, or
//! downloaded into it.
//!
//! This is the only place that ever opens a connection, and only for what a user names by id: a
//! model `hub:owner/name`, or a set whose manifest has a `[hub]` part and whose file is not at
//! hand. The cache is the one that the hub's own tools use, laid out as they lay it out:
//! `{models,datasets}--OWNER--NAME/snapshots/COMMIT/FILE`, with the commit that a branch stood at
//! in `refs/BRANCH`.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a model's path begins with if it is an id.
const PREFIX: &str = "hub:";
/// The branch that is meant where none is named.
const MAIN: &str = "main";

/// One file of a dataset's repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    /// `owner/name`.
    pub id: String,
    /// Path within the repository.
    pub file: String,
    /// Branch, tag or commit.
    #[serde(default = "main_branch")]
    pub revision: String,
}

fn main_branch() -> String {
    MAIN.into()
}

impl HubFile {
    /// The file on this machine, downloaded if it is not in the cache.
    ///
    /// # Errors
    ///
    /// A malformed id; a file that is not there and cannot be had: names id, cache folder and the
    /// place where the file would be found.
    pub fn locate(&self) -> Result<PathBuf> {
        let repository = Repository::new(Holds::Dataset, &self.id, &self.revision)?;
        if !is_inside(Path::new(&self.file)) {
            return Err(Error::usage(
                format!("`{}` is not a path within a repository", self.file),
                "write it as the hub shows it, such as en/part-0.json.gz",
            ));
        }
        match repository.cached(&self.file) {
            Some(path) => Ok(path),
            None => repository
                .download(&self.file)
                .map_err(|why| repository.absent(&self.file, &why)),
        }
    }
}

/// The folder on this machine that a model's path stands for: that of `hub:owner/name` or
/// `hub:owner/name@revision`, downloaded if it is not complete; any other path is itself.
pub fn model(path: &Path) -> Result<Cow<'_, Path>> {
    let Some(id) = path.to_str().and_then(|p| p.strip_prefix(PREFIX)) else {
        return Ok(Cow::Borrowed(path));
    };
    let (id, revision) = id.split_once('@').unwrap_or((id, MAIN));
    let repository = Repository::new(Holds::Model, id, revision)?;
    let missing = match repository.snapshot() {
        Some(folder) => match missing_file(&folder) {
            None => return Ok(Cow::Owned(folder)),
            Some(file) => file,
        },
        None => CONFIG.to_string(),
    };
    repository
        .download_model()
        .map(Cow::Owned)
        .map_err(|why| repository.absent(&missing, &why))
}

/// The name of the model in this folder, if it lies in the hub's cache, whose folders are called
/// after commits.
pub fn model_name(folder: &Path) -> Option<String> {
    let snapshots = folder.parent()?;
    let repository = snapshots.parent()?.file_name()?.to_str()?;
    let id = repository.strip_prefix("models--")?;
    (snapshots.file_name()? == "snapshots").then(|| match id.split_once("--") {
        Some((_, name)) => name.to_string(),
        None => id.to_string(),
    })
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The first file that a model's folder lacks, if it lacks one.
fn missing_file(folder: &Path) -> Option<String> {
    let lacks = |name: &&str| !folder.join(name).exists();
    if let Some(name) = [CONFIG, TOKENIZER].into_iter().find(lacks) {
        return Some(name.into());
    }
    match (folder.join(WEIGHTS).exists(), folder.join(INDEX).exists()) {
        (true, _) => None,
        (false, false) => Some(WEIGHTS.into()),
        (false, true) => shards(&folder.join(INDEX))
            .into_iter()
            .find(|name| lacks(&name.as_str())),
    }
}

/// The weight files that an index names, each once. What is wrong with an index is for the reader
/// of the weights to say.
fn shards(index: &Path) -> Vec<String> {
    let json: serde_json::Value = std::fs::read(index)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let mut names: Vec<String> = map
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(|name| name.as_str())
        .filter(|name| is_inside(Path::new(name)))
        .map(str::to_string)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Whether a path stays within the folder that it is joined to.
fn is_inside(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The hub's cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `~/.cache/huggingface`.
fn cache_folder() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match (set("HF_HUB_CACHE"), set("HF_HOME")) {
        (Some(cache), _) => cache.into(),
        (None, Some(home)) => Path::new(&home).join("hub"),
        (None, None) => std::env::home_dir()
            .unwrap_or_default()
            .join(".cache/huggingface/hub"),
    }
}

/// Kinds of repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Model,
    Dataset,
}

/// A repository at a revision.
struct Repository<'a> {
    holds: Holds,
    id: &'a str,
    revision: &'a str,
}

impl<'a> Repository<'a> {
    fn new(holds: Holds, id: &'a str, revision: &'a str) -> Result<Self> {
        let plain = |text: &str| {
            !text.is_empty()
                && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        };
        if !plain(id) || id.split('/').count() > 2 || !plain(revision) {
            return Err(Error::usage(
                format!("`{id}@{revision}` is not the id of a repository on the hub"),
                "write hub:owner/name, or hub:owner/name@revision",
            ));
        }
        Ok(Repository {
            holds,
            id,
            revision,
        })
    }

    /// Its folder in the cache, whether it is there or not.
    fn folder(&self) -> PathBuf {
        let kind = match self.holds {
            Holds::Model => "models",
            Holds::Dataset => "datasets",
        };
        cache_folder().join(format!("{kind}--{}", self.id.replace('/', "--")))
    }

    /// The folder of this revision's files, if there is one.
    fn snapshot(&self) -> Option<PathBuf> {
        let folder = self.folder();
        let commit = std::fs::read_to_string(folder.join("refs").join(self.revision)).ok();
        let commit = commit.as_deref().map_or(self.revision, str::trim);
        let snapshot = folder.join("snapshots").join(commit);
        (is_inside(Path::new(commit)) && snapshot.is_dir()).then_some(snapshot)
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        let path = self.snapshot()?.join(file);
        path.is_file().then_some(path)
    }

    /// That a file is neither here nor to be had.
    fn absent(&self, file: &str, why: &str) -> Error {
        let place = self
            .snapshot()
            .unwrap_or_else(|| self.folder().join("snapshots").join(self.revision))
            .join(file);
        Error::usage(
            format!(
                "{}: `{file}` is not in the hub's cache {}, and {why}",
                self.id,
                cache_folder().display()
            ),
            format!(
                "With a network, run the same command again. Without one, put the file at {}, or \
                 give the path of a local copy instead of the id.",
                place.display()
            ),
        )
    }
}

#[cfg(not(feature = "hub"))]
impl Repository<'_> {
    fn download(&self, _file: &str) -> Result<PathBuf, String> {
        Err("this program was built without the feature `hub`, so it cannot download".into())
    }

    fn download_model(&self) -> Result<PathBuf, String> {
        self.download(CONFIG)
    }
}

#[cfg(feature = "hub")]
impl Repository<'_> {
    /// Downloads one file into the cache.
    fn download(&self, file: &str) -> Result<PathBuf, String> {
        self.remote()?.download(file).map_err(cannot)
    }

    /// Downloads what [`crate::formats`] and the tokenizer read; the folder of all of it.
    fn download_model(&self) -> Result<PathBuf, String> {
        let remote = self.remote()?;
        let listed = remote.info().map_err(cannot)?.siblings;
        let has = |name: &str| listed.iter().any(|file| file.rfilename == name);
        let get = |name: &str| remote.download(name).map_err(cannot);
        let config = get(CONFIG)?;
        get(TOKENIZER)?;
        // What the tokenizer's special tokens are; marks of a model that is already quantized, by
        // which it is refused.
        for optional in [
            "tokenizer_config.json",
            "special_tokens_map.json",
            "quantize_config.json",
            "quant_config.json",
            "hf_quant_config.json",
        ] {
            if has(optional) {
                get(optional)?;
            }
        }
        if has(INDEX) && !has(WEIGHTS) {
            for shard in shards(&get(INDEX)?) {
                get(&shard)?;
            }
        } else {
            get(WEIGHTS)?;
        }
        Ok(config.parent().unwrap_or(&config).to_path_buf())
    }

    fn remote(&self) -> Result<hf_hub::api::sync::ApiRepo, String> {
        use hf_hub::{Cache, Repo, RepoType, api::sync::ApiBuilder};
        // The words that the hub's own tools take for yes.
        let yes = |value: String| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
        };
        if std::env::var("HF_HUB_OFFLINE").is_ok_and(yes) {
            return Err("HF_HUB_OFFLINE forbids to download it".into());
        }
        let holds = match self.holds {
            Holds::Model => RepoType::Model,
            Holds::Dataset => RepoType::Dataset,
        };
        let mut api = ApiBuilder::from_cache(Cache::new(cache_folder())).with_progress(false);
        if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
            api = api.with_endpoint(endpoint);
        }
        let api = api.build().map_err(cannot)?;
        let (id, revision) = (self.id.to_string(), self.revision.to_string());
        Ok(api.repo(Repo::with_revision(id, holds, revision)))
    }
}

#[cfg(feature = "hub")]
fn cannot(error: hf_hub::api::sync::ApiError) -> String {
    format!("it cannot be downloaded: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_within_the_cache() {
        let fine = |id, revision| Repository::new(Holds::Model, id, revision).is_ok();
        assert!(fine("owner/name-1.5_b", "main"));
        assert!(fine("gpt2", "refs/convert/parquet"));
        for (id, revision) in [
            ("", "main"),
            ("a/b/c", "main"),
            ("../b", "main"),
            ("a/..", "main"),
            ("a//b", "main"),
            ("/a", "main"),
            ("a/b c", "main"),
            ("a/b", ""),
            ("a/b", "../../etc"),
        ] {
            assert!(!fine(id, revision), "{id}@{revision}");
        }
        assert!(is_inside(Path::new("en/part.json.gz")));
        for outside in ["", "/etc/passwd", "../x", "a/../../x"] {
            assert!(!is_inside(Path::new(outside)), "{outside}");
        }
    }

    #[test]
    fn a_model_in_the_cache_has_its_own_name() {
        let folder = Path::new("/cache/hub/models--owner--a-name/snapshots/0123abcd");
        assert_eq!(model_name(folder).as_deref(), Some("a-name"));
        let plain = Path::new("/cache/hub/models--gpt2/snapshots/0123abcd");
        assert_eq!(model_name(plain).as_deref(), Some("gpt2"));
        assert_eq!(model_name(Path::new("/models/mine/snapshots/1")), None);
        assert_eq!(model_name(Path::new("/models/mine")), None);
    }
}
