//! Shape of a Llama-family decoder, and how it is read from a Hugging Face `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::angles::{self, Angles, RopeScaling};
use super::hugging_face::Json;
use crate::{Error, Result};

/// Everything that the decoder needs to know of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `llama`, `mistral`, `qwen2`, ...: for the record; the code does not branch on it.
    pub architecture: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Not always `hidden_size / heads`.
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub tied_head: bool,
    /// Bias on q, k and v (Qwen2).
    pub qkv_bias: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

/// Longest dimension believed, so that products of three of them fit 64 bits.
const MAX_DIMENSION: usize = 1 << 20;

impl Config {
    /// Reads a Hugging Face `config.json` of the Llama, Mistral or Qwen2 family.
    ///
    /// Returns the shape and plain-word warnings. `path` names the file in errors. What the
    /// decoder would compute differently is `Error::Unsupported` naming the key; a key that is
    /// missing or impossible is `Error::File`.
    pub fn from_hugging_face(path: &Path, text: &str) -> Result<(Config, Vec<String>)> {
        let json = Json::parse(path, text)?;
        json.refuse_quantized()?;
        Self::read(&json)
    }

    /// The angles of its rotary positions.
    pub(super) fn angles(&self) -> Angles<'_> {
        Angles {
            head_dim: self.head_dim,
            theta: self.rope_theta,
            scaling: &self.rope_scaling,
        }
    }

    /// Refuses a `config.json` of a decoder that computes otherwise than this one; `path` names it.
    ///
    /// The model's name and its special tokens are not compared: the decoder does not look at
    /// them. Nor is a `quantization_config`, which may tell where dequantized weights come from.
    pub fn check_same(&self, path: &Path, text: &str) -> Result<()> {
        let (other, _) = Self::read(&Json::parse(path, text)?)?;
        match self.difference(&other) {
            None => Ok(()),
            Some((key, expected, found)) => Err(Error::file(
                path,
                format!("`{key}` is {found}, the model's is {expected}"),
                "Use the config.json of the same model, or leave it out.",
            )),
        }
    }

    /// The first key in which two decoders differ, with both values.
    fn difference(&self, other: &Config) -> Option<(&'static str, String, String)> {
        let pairs = self.described().into_iter().zip(other.described());
        let differing = pairs.map(|((key, a), (_, b))| (key, a, b));
        let scaling = (
            "rope_scaling",
            format!("{:?}", self.rope_scaling),
            format!("{:?}", other.rope_scaling),
        );
        differing
            .filter(|(_, a, b)| a != b)
            .chain((!angles::same_angles(self.angles(), other.angles())).then_some(scaling))
            .next()
    }

    /// Keys and values of all that two decoders can differ in, but for how positions are scaled:
    /// GGUF and `config.json` say that in different words. Real numbers in F32, as GGUF has them.
    fn described(&self) -> [(&'static str, String); 12] {
        // In full, so that a new field is not forgotten here.
        let Config {
            architecture: _,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            max_position_embeddings,
            rms_norm_eps,
            rope_theta,
            rope_scaling: _,
            tied_head,
            qkv_bias,
            bos_token_id: _,
            eos_token_id: _,
        } = self;
        [
            ("hidden_size", hidden_size.to_string()),
            ("intermediate_size", intermediate_size.to_string()),
            ("num_hidden_layers", layers.to_string()),
            ("num_attention_heads", heads.to_string()),
            ("num_key_value_heads", kv_heads.to_string()),
            ("head_dim", head_dim.to_string()),
            ("vocab_size", vocab_size.to_string()),
            (
                "max_position_embeddings",
                max_position_embeddings.to_string(),
            ),
            ("rms_norm_eps", (*rms_norm_eps as f32).to_string()),
            ("rope_theta", (*rope_theta as f32).to_string()),
            ("tie_word_embeddings", tied_head.to_string()),
            ("attention_bias", qkv_bias.to_string()),
        ]
    }

    fn read(json: &Json) -> Result<(Config, Vec<String>)> {
        let architecture = json.family()?;
        json.refuse_other_arithmetic()?;

        let hidden_size = json.dimension("hidden_size")?;
        let heads = json.dimension("num_attention_heads")?;
        let kv_heads = match json.get("num_key_value_heads") {
            // Only Llama's own default is "as many as query heads".
            None if architecture == "llama" => heads,
            _ => json.dimension("num_key_value_heads")?,
        };
        let head_dim = match json.get("head_dim") {
            Some(_) => json.dimension("head_dim")?,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(json.damaged(format!(
                    "`hidden_size` {hidden_size} is not a multiple of `num_attention_heads` {heads} \
                     and there is no `head_dim`"
                )));
            }
        };
        let (rope_theta, rope_scaling) = json.rope()?;
        let mut warnings = Vec::new();
        let mut max_position_embeddings = json.dimension("max_position_embeddings")?;
        if let Some(window) = json.sliding_window(&architecture)?
            && window < max_position_embeddings
        {
            // Within one window, sliding and full attention are the same computation.
            max_position_embeddings = window;
            warnings.push(format!(
                "the model attends within a sliding window (`sliding_window`): contexts are limited \
                 to {window} tokens, where it makes no difference"
            ));
        }
        let config = Config {
            hidden_size,
            intermediate_size: json.dimension("intermediate_size")?,
            layers: json.dimension("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab_size: json.dimension("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tied_head: json.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: architecture == "qwen2" || json.flag("attention_bias")?.unwrap_or(false),
            bos_token_id: json.token("bos_token_id")?,
            eos_token_id: json.token("eos_token_id")?,
            architecture,
        };
        config.validate(json.path)?;
        Ok((config, warnings))
    }

    /// Refuses shapes with which no decoder can be built; `path` names the file in errors.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let problem = if [
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.vocab_size,
            self.max_position_embeddings,
        ]
        .contains(&0)
        {
            "a dimension of the model is zero".to_string()
        } else if let Some(big) = [
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads * self.head_dim,
        ]
        .into_iter()
        .find(|&d| d > MAX_DIMENSION)
        {
            format!("a dimension of the model is {big}, more than {MAX_DIMENSION}")
        } else if !self.heads.is_multiple_of(self.kv_heads) {
            format!(
                "{} query heads cannot share {} key/value heads evenly",
                self.heads, self.kv_heads
            )
        } else if !self.head_dim.is_multiple_of(2) {
            format!(
                "head dimension {} is odd, rotary positions need pairs",
                self.head_dim
            )
        } else if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            format!("RMSNorm epsilon {} is not in (0, 1)", self.rms_norm_eps)
        } else if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            format!("rotary base {} is not above 1", self.rope_theta)
        } else {
            return Ok(());
        };
        Err(Error::file(
            path,
            problem,
            "The file is damaged or not of this model: download it again.",
        ))
    }
}
