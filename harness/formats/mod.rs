//! Readers and writers of checkpoints, one file or folder per format: a Hugging Face folder, a GGUF
//! file, the embedded model, shapes with drawn weights or none, and our own packed files.
//!
//! [`open`] looks at content, never at a file's name. A source that opens has every tensor that
//! the decoder reads, in the right shape, and none that the decoder would ignore.

pub mod drawn;
pub(crate) mod embedded;
pub(crate) mod gguf;
pub mod native;
mod safetensors;
pub mod shapes;
pub mod source;

use crate::{Error, Result, hub};
use source::WeightSource;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Opens a model: `None` is the embedded one, `synthetic:ID` a shape without weights,
/// `synthetic-fp16:ID` a shape with weights that are drawn, `hub:OWNER/NAME` a repository of the
/// Hugging Face hub, a folder is Hugging Face's layout, a file must begin with GGUF's magic bytes.
pub fn open(model: Option<&Path>) -> Result<Box<dyn WeightSource>> {
    let Some(path) = model else {
        return Ok(Box::new(embedded::open()?));
    };
    if let Some(shape) = shapes::named(path) {
        return Ok(Box::new(shape?));
    }
    if let Some(source) = drawn::named(path) {
        return Ok(Box::new(source?));
    }
    let path = &hub::model(path)?;
    match Kind::of(path)? {
        Kind::Folder => Ok(Box::new(safetensors::open(path)?)),
        Kind::Gguf => Ok(Box::new(gguf::open(path)?)),
    }
}

/// What a model path holds, judged by content.
pub(crate) enum Kind {
    Folder,
    Gguf,
}

impl Kind {
    pub(crate) fn of(path: &Path) -> Result<Kind> {
        const WAYS: &str = "Pass a Hugging Face folder (config.json and *.safetensors) or a GGUF \
                            file, or leave the model out to use the embedded one.";
        let about = std::fs::metadata(path).map_err(|e| Error::io(path, e, WAYS))?;
        if about.is_dir() {
            return Ok(Kind::Folder);
        }
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(4).read_to_end(&mut start))
            .map_err(|e| Error::io(path, e, WAYS))?;
        if start == gguf::MAGIC {
            return Ok(Kind::Gguf);
        }
        Err(match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Error::file(
                path,
                "one safetensors file does not describe a model",
                "Pass the folder that holds it together with config.json.",
            ),
            _ => Error::file(path, "neither a folder nor a GGUF file", WAYS),
        })
    }
}
