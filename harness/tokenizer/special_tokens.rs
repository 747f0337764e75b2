//! Which special tokens a model declares, in the files beside its tokenizer.
//!
//! What a tokenizer puts around texts is decided by its definition alone; what begins and ends
//! texts where somebody else puts it there is only said here.

use crate::formats::gguf::Gguf;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The ids that begin and end texts, as declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Declared {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Whether a BOS is said to be put before texts.
    pub adds_bos: Option<bool>,
}

impl Declared {
    /// From `tokenizer_config.json` beside a tokenizer's file, else from the ids of `config.json`
    /// there; nothing where neither exists. `id_of` gives the id of a token's text.
    pub(crate) fn beside(file: &Path, id_of: &dyn Fn(&str) -> Option<u32>) -> Result<Declared> {
        let config = file.with_file_name("tokenizer_config.json");
        if let Some(json) = read(&config)? {
            return Ok(Declared::in_tokenizer_config(&json, id_of));
        }
        let Some(json) = read(&file.with_file_name("config.json"))? else {
            return Ok(Declared::default());
        };
        // Some models have several tokens that end a text: the first is the one that is put.
        let id = |key: &str| {
            let value = json.get(key)?;
            let value = value.as_array().map_or(Some(value), |list| list.first())?;
            u32::try_from(value.as_u64()?).ok()
        };
        Ok(Declared {
            bos: id("bos_token_id"),
            eos: id("eos_token_id"),
            adds_bos: None,
        })
    }

    /// From the content of a `tokenizer_config.json`; a token that the vocabulary lacks is none.
    pub(crate) fn in_tokenizer_config(
        json: &Value,
        id_of: &dyn Fn(&str) -> Option<u32>,
    ) -> Declared {
        let token = |key: &str| {
            let value = json.get(key)?;
            id_of(value.get("content").unwrap_or(value).as_str()?)
        };
        Declared {
            bos: token("bos_token"),
            eos: token("eos_token"),
            adds_bos: json.get("add_bos_token").and_then(Value::as_bool),
        }
    }

    /// From the metadata of a GGUF file.
    pub(crate) fn in_gguf(file: &Gguf) -> Result<Declared> {
        Ok(Declared {
            bos: file.count("tokenizer.ggml.bos_token_id")?,
            eos: file.count("tokenizer.ggml.eos_token_id")?,
            adds_bos: file.flag("tokenizer.ggml.add_bos_token")?,
        })
    }
}

fn read(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e, "Check its permissions.")),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        Error::file(
            path,
            format!("not valid JSON: {e}"),
            "Restore the file as the model's publisher has it.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(token: &str) -> Option<u32> {
        ["<s>", "</s>"]
            .iter()
            .position(|t| *t == token)
            .map(|i| i as u32)
    }

    fn beside(files: &[(&str, &str)]) -> Result<Declared> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        Declared::beside(&dir.path().join("tokenizer.json"), &id_of)
    }

    #[test]
    fn tokens_are_read_by_text_or_by_id() {
        let declared = |bos, eos, adds_bos| Declared { bos, eos, adds_bos };
        let text =
            r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true}"#;
        let ids = (
            "config.json",
            r#"{"bos_token_id": 7, "eos_token_id": [8, 9]}"#,
        );
        let found = beside(&[("tokenizer_config.json", text), ids]).unwrap();
        assert_eq!(found, declared(Some(0), Some(1), Some(true)));
        // A tokenizer that says it has none has none, whatever the model's configuration says.
        let none = r#"{"bos_token": null, "eos_token": "</s>"}"#;
        let found = beside(&[("tokenizer_config.json", none), ids]).unwrap();
        assert_eq!(found, declared(None, Some(1), None));
        assert_eq!(beside(&[ids]).unwrap(), declared(Some(7), Some(8), None));
        assert_eq!(beside(&[]).unwrap(), Declared::default());
        let odd = ("config.json", r#"{"bos_token_id": -1, "eos_token_id": []}"#);
        assert_eq!(beside(&[odd]).unwrap(), Declared::default());
        let error = beside(&[("tokenizer_config.json", "{")]).unwrap_err();
        assert!(
            error.to_string().contains("tokenizer_config.json"),
            "{error}"
        );
    }
}
