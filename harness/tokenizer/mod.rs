//! Text to token ids, with the bytes of text that each token stands for.
//!
//! Every tokenizer is a definition in the form of a Hugging Face `tokenizer.json`, run by the
//! `tokenizers` crate. For a GGUF file the definition is built from its metadata: vocabulary,
//! merges, special tokens and the name of a pre-tokenizer (`tokenizer.ggml.pre`), whose rules
//! the file itself does not contain.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

mod special_tokens;

use crate::formats::Kind;
use crate::formats::embedded;
use crate::formats::gguf::Gguf;
use crate::hash::sha256;
use crate::model::config::Config;
use crate::{Error, Result, hub};
use special_tokens::Declared;

const OWN_FILE: &str = "Pass the model's tokenizer.json with --tokenizer FILE.";

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Where the definition came from, for errors.
    path: PathBuf,
    sha256: String,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    declared: Declared,
}

/// A tokenized text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens at the ends included.
    pub ids: Vec<u32>,
    /// For each token, the byte of the text up to which it and its predecessors reach. Never
    /// falls; the last is the text's length, unless the text became no token at all. A special
    /// token put before or after the text adds nothing; a character split over several tokens
    /// counts with the first of them.
    pub ends: Vec<usize>,
}

impl Encoding {
    /// Bytes of text that a range of tokens stands for, each source byte counted once.
    pub fn bytes(&self, tokens: Range<usize>) -> usize {
        let reach = |tokens: usize| match tokens {
            0 => 0,
            n => self.ends[n - 1],
        };
        reach(tokens.end).saturating_sub(reach(tokens.start))
    }
}

impl Tokenizer {
    /// Loads the file `explicit`, else the tokenizer of `model` (see [`crate::formats::open`]).
    pub fn load(model: Option<&Path>, explicit: Option<&Path>) -> Result<Tokenizer> {
        let file = match (explicit, model) {
            (Some(file), _) => file.to_path_buf(),
            (None, None) => {
                let path = PathBuf::from("datasets/embedded-model/tokenizer.json");
                let mut tokenizer = Tokenizer::new(path, embedded::TOKENIZER.as_bytes())?;
                let config: Value =
                    serde_json::from_str(embedded::TOKENIZER_CONFIG).unwrap_or_default();
                tokenizer.declared =
                    Declared::in_tokenizer_config(&config, &|t| tokenizer.inner.token_to_id(t));
                return Ok(tokenizer);
            }
            (None, Some(model)) => {
                let model = hub::model(model)?;
                match Kind::of(&model)? {
                    Kind::Folder => model.join("tokenizer.json"),
                    Kind::Gguf => {
                        let file = Gguf::open(&model)?;
                        let definition = definition(&file)?.to_string();
                        let mut tokenizer =
                            Tokenizer::new(model.to_path_buf(), definition.as_bytes())?;
                        tokenizer.declared = Declared::in_gguf(&file)?;
                        return Ok(tokenizer);
                    }
                }
            }
        };
        let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e, OWN_FILE))?;
        let mut tokenizer = Tokenizer::new(file, &bytes)?;
        tokenizer.declared =
            Declared::beside(&tokenizer.path, &|t| tokenizer.inner.token_to_id(t))?;
        Ok(tokenizer)
    }

    /// From the bytes of a `tokenizer.json`.
    fn new(path: PathBuf, definition: &[u8]) -> Result<Tokenizer> {
        let damaged = |what: String| {
            Error::file(
                &path,
                format!("not a usable tokenizer: {what}"),
                "Pass a tokenizer.json in Hugging Face's format with --tokenizer FILE.",
            )
        };
        let mut json: Value = serde_json::from_slice(definition)
            .map_err(|e| damaged(format!("not valid JSON: {e}")))?;
        // Trimmed offsets would credit white space to the wrong token.
        if let Some(processor) = json.get_mut("post_processor") {
            keep_white_space(processor);
        }
        let mut inner: tokenizers::Tokenizer =
            serde_json::from_value(json).map_err(|e| damaged(e.to_string()))?;
        // A file may have been saved with the settings of a training run.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| damaged(e.to_string()))?;
        let vocab_size = inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 {
            return Err(damaged("its vocabulary is empty".into()));
        }
        let probe = inner
            .encode("a", true)
            .map_err(|e| damaged(e.to_string()))?;
        let special = probe.get_special_tokens_mask();
        let bos = match special.first() {
            Some(1) => probe.get_ids().first().copied(),
            _ => None,
        };
        let eos = match special.last() {
            Some(1) => probe.get_ids().last().copied(),
            _ => None,
        };
        Ok(Tokenizer {
            inner,
            sha256: sha256([definition]),
            path,
            vocab_size,
            bos,
            eos,
            declared: Declared::default(),
        })
    }

    /// Tokenizes a whole text with the tokenizer's default special tokens.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        self.encode_by(&self.inner, text, true)
    }

    /// Tokenizes a whole text and puts nothing around it.
    pub fn encode_bare(&self, text: &str) -> Result<Encoding> {
        self.encode_by(&self.inner, text, false)
    }

    /// [`Tokenizer::encode`], but the text of a special token is text like any other.
    pub fn encode_literal(&self, text: &str) -> Result<Encoding> {
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(true);
        self.encode_by(&inner, text, true)
    }

    fn encode_by(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Result<Encoding> {
        let encoding = inner.encode(text, add_special).map_err(|e| {
            Error::file(
                &self.path,
                format!(
                    "the tokenizer failed on a text of {} bytes: {e}",
                    text.len()
                ),
                OWN_FILE,
            )
        })?;
        // Special tokens put around the text have the offsets 0..0.
        let mut reach = 0;
        let mut ends: Vec<usize> = encoding
            .get_offsets()
            .iter()
            .map(|&(_, end)| {
                reach = reach.max(end.min(text.len()));
                reach
            })
            .collect();
        // Text that a normalizer dropped at the end belongs to the last token.
        let special = encoding.get_special_tokens_mask();
        if let Some(last) = special.iter().rposition(|&s| s == 0) {
            ends[last..].fill(text.len());
        }
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            ends,
        })
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// SHA-256 (hex) of the definition: of the file's bytes, or of what was built from a GGUF.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The token that `encode` puts before a text, if it does.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that `encode` puts after a text, if it does.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What the files beside it say of its special tokens.
    pub fn declared(&self) -> Declared {
        self.declared
    }

    /// Refuses a model with another vocabulary.
    ///
    /// Embedding tables are often padded, so the tokenizer may be up to a sixteenth smaller;
    /// it may never be larger.
    pub fn check(&self, config: &Config) -> Result<()> {
        let (tokens, rows) = (self.vocab_size, config.vocab_size);
        if tokens <= rows && tokens >= rows - rows / 16 {
            return Ok(());
        }
        Err(Error::usage(
            format!(
                "{}: tokenizer with another vocabulary: it has {tokens} tokens, the model's \
                 embedding {rows} rows",
                self.path.display()
            ),
            "Pass the model's own tokenizer.json with --tokenizer FILE, or leave --tokenizer out \
             where the model brings its own.",
        ))
    }
}

/// Sets `trim_offsets` to false everywhere in a post-processor.
fn keep_white_space(processor: &mut Value) {
    match processor {
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    "trim_offsets" => *value = Value::Bool(false),
                    _ => keep_white_space(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(keep_white_space),
        _ => {}
    }
}

/// What a name in `tokenizer.ggml.pre` stands for.
struct Pre {
    normalizer: Value,
    splits: Vec<Value>,
    /// A word that is a token needs no merges (Llama 3).
    ignore_merges: bool,
    /// Where the file does not say.
    add_bos: bool,
}

impl Pre {
    fn named(name: &str) -> Option<Pre> {
        let plain = |splits| Pre {
            normalizer: Value::Null,
            splits,
            ignore_merges: false,
            add_bos: false,
        };
        Some(match name {
            "gpt-2" => plain(vec![byte_level(true)]),
            "smollm" => plain(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ]),
            "llama3" | "llama-v3" | "llama-bpe" => Pre {
                ignore_merges: true,
                add_bos: true,
                ..plain(vec![split(r"\p{N}{1,3}"), byte_level(false)])
            },
            "qwen2" => Pre {
                normalizer: json!({"type": "NFC"}),
                ..plain(vec![split(r"\p{N}"), byte_level(false)])
            },
            _ => return None,
        })
    }
}

/// Bytes to the 256 printable characters of GPT-2's alphabet, after GPT-2's own split or none.
fn byte_level(split: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": split,
    })
}

/// The split that Llama 3 and Qwen 2 share but for the length of a number.
fn split(number: &str) -> Value {
    let alternatives = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        number,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ];
    json!({
        "type": "Split",
        "pattern": {"Regex": alternatives.join("|")},
        "behavior": "Isolated",
        "invert": false,
    })
}

/// Token types of `tokenizer.ggml.token_type` that are matched in the text as they stand.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The `tokenizer.json` that a GGUF file's metadata amounts to.
fn definition(file: &Gguf) -> Result<Value> {
    let damaged = |what: String| Error::file(file.path(), what, OWN_FILE);
    let unsupported =
        |what: String| Error::unsupported(format!("{}: {what}", file.path().display()), OWN_FILE);
    let absent = |key: &str| damaged(format!("no tokenizer: `{key}` is missing"));

    match file.string("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some(other) => {
            return Err(unsupported(format!(
                "`tokenizer.ggml.model` \"{other}\": only byte-level BPE (\"gpt2\") can be built"
            )));
        }
        None => return Err(absent("tokenizer.ggml.model")),
    }
    let name = file
        .string("tokenizer.ggml.pre")?
        .ok_or_else(|| absent("tokenizer.ggml.pre"))?;
    let pre = Pre::named(name).ok_or_else(|| {
        unsupported(format!(
            "`tokenizer.ggml.pre` \"{name}\": the rules that it stands for are not known here"
        ))
    })?;

    let tokens = file
        .strings("tokenizer.ggml.tokens")?
        .ok_or_else(|| absent("tokenizer.ggml.tokens"))?;
    let mut vocab = BTreeMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = vocab.insert(*token, id) {
            return Err(damaged(format!(
                "`tokenizer.ggml.tokens`: {other} and {id} are both {token:?}"
            )));
        }
    }
    let merges = file
        .strings("tokenizer.ggml.merges")?
        .ok_or_else(|| absent("tokenizer.ggml.merges"))?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok([left, right]),
            None => Err(damaged(format!(
                "`tokenizer.ggml.merges`: {merge:?} is not a pair"
            ))),
        })
        .collect::<Result<Vec<_>>>()?;
    let types = file
        .integers("tokenizer.ggml.token_type")?
        .unwrap_or_default();
    let added: Vec<Value> = types
        .iter()
        .zip(&tokens)
        .enumerate()
        .filter(|(_, (kind, _))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (kind, token))| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind == CONTROL,
            })
        })
        .collect();

    // The special token that `add` asks for, as (text, id).
    let special = |add: &str, default: bool, id_key: &str| -> Result<Option<(&str, u32)>> {
        if !file.flag(add)?.unwrap_or(default) {
            return Ok(None);
        }
        let id = file.count(id_key)?.ok_or_else(|| absent(id_key))?;
        let token = tokens.get(id as usize).ok_or_else(|| {
            damaged(format!(
                "`{id_key}` {id} is not one of the {} tokens",
                tokens.len()
            ))
        })?;
        Ok(Some((token, id)))
    };
    let bos = special(
        "tokenizer.ggml.add_bos_token",
        pre.add_bos,
        "tokenizer.ggml.bos_token_id",
    )?;
    let eos = special(
        "tokenizer.ggml.add_eos_token",
        false,
        "tokenizer.ggml.eos_token_id",
    )?;

    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.splits},
        "post_processor": template(bos, eos),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

/// The post-processor that puts special tokens before and after a text.
fn template(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(token, _): (&str, u32)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let around = |id: &str| -> Vec<Value> {
        let text = json!({"Sequence": {"id": id, "type_id": 0}});
        let parts = [bos.map(special), Some(text), eos.map(special)];
        parts.into_iter().flatten().collect()
    };
    let tokens: serde_json::Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|(token, id)| {
            let entry = json!({"id": token, "ids": [id], "tokens": [token]});
            (token.to_string(), entry)
        })
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": ([around("A"), around("B")].concat()),
        "special_tokens": tokens,
    })
}
