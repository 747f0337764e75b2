//! Shape of a Llama-family decoder, and how it is read from a Hugging Face `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::rope;
use crate::{Error, Result};

/// Rotary position scaling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    None,
    /// Positions divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent scaling.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// One divisor per rotary pair, `[head_dim / 2]`, as GGUF's `rope_freqs.weight` gives it.
    Factors(Vec<f32>),
}

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
            .chain((!rope::same_angles(self, other)).then_some(scaling))
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

/// A `config.json` and the errors that name its keys.
struct Json<'a> {
    path: &'a Path,
    object: Map<String, Value>,
}

impl<'a> Json<'a> {
    fn parse(path: &'a Path, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Json { path, object }),
            Ok(_) => Err(Error::file(
                path,
                "not a JSON object",
                "Pass a folder whose config.json describes the model.",
            )),
            Err(e) => Err(Error::file(
                path,
                format!("not valid JSON: {e}"),
                "Download the file again.",
            )),
        }
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::file(
            self.path,
            what,
            "Compare the file with the one that the model's publisher provides.",
        )
    }

    fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::unsupported(
            format!("{}: {what}", self.path.display()),
            "Use a dense checkpoint of the Llama, Mistral or Qwen2 family.",
        )
    }

    /// The value of a key; `null` is absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn dimension(&self, key: &str) -> Result<usize> {
        let value = self
            .get(key)
            .ok_or_else(|| self.damaged(format!("`{key}` is missing")))?;
        match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
            Some(v) if v > 0 => Ok(v as usize),
            _ => Err(self.damaged(format!("`{key}` is {value}, not a positive number"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        number(&self.object, key).map_err(|what| self.damaged(what))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| self.damaged(format!("`{key}` is {value}, not true or false")))
            })
            .transpose()
    }

    /// A token id; of a list (several ends of text), the first.
    fn token(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let first = match value {
            Value::Array(list) => list.first(),
            other => Some(other),
        };
        match first.and_then(Value::as_u64).map(u32::try_from) {
            Some(Ok(id)) => Ok(Some(id)),
            _ => Err(self.damaged(format!("`{key}` is {value}, not a token id"))),
        }
    }

    fn refuse_quantized(&self) -> Result<()> {
        for key in ["quantization_config", "compression_config"] {
            if let Some(value) = self.get(key) {
                let method = value
                    .get("quant_method")
                    .and_then(Value::as_str)
                    .unwrap_or("unnamed method");
                return Err(already_quantized(self.path, key, method));
            }
        }
        Ok(())
    }

    /// The model type, if both it and the named architecture are ours.
    fn family(&self) -> Result<String> {
        let found = self.get("model_type").and_then(Value::as_str);
        let (family, class) = match found {
            Some("llama") => ("llama", "LlamaForCausalLM"),
            Some("mistral") => ("mistral", "MistralForCausalLM"),
            Some("qwen2") => ("qwen2", "Qwen2ForCausalLM"),
            Some(other) => return Err(self.unsupported(format!("`model_type` \"{other}\""))),
            None => return Err(self.damaged("`model_type` is missing")),
        };
        if let Some(classes) = self.get("architectures")
            && !classes
                .as_array()
                .is_some_and(|list| list.iter().any(|c| c == class))
        {
            return Err(self.unsupported(format!("`architectures` {classes}, not {class}")));
        }
        Ok(family.to_string())
    }

    /// Options that change the arithmetic and that the decoder lacks.
    fn refuse_other_arithmetic(&self) -> Result<()> {
        match self.get("hidden_act") {
            None => {}
            Some(act) if act == "silu" || act == "swish" => {}
            Some(act) => return Err(self.unsupported(format!("`hidden_act` {act}, not \"silu\""))),
        }
        if self.flag("mlp_bias")? == Some(true) {
            return Err(self.unsupported("`mlp_bias` true"));
        }
        for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
            if self.number(key)?.is_some_and(|n| n > 0.0) {
                return Err(self.unsupported(format!("`{key}`: a mixture of experts")));
            }
        }
        if self.number("partial_rotary_factor")?.unwrap_or(1.0) != 1.0 {
            return Err(self.unsupported("`partial_rotary_factor` other than 1"));
        }
        Ok(())
    }

    fn sliding_window(&self, family: &str) -> Result<Option<usize>> {
        if family == "mistral" && !self.object.contains_key("sliding_window") {
            // transformers' `MistralConfig`: only an explicit null means that there is none.
            return Ok(Some(4096));
        }
        // Qwen2 carries a window that it switches off with a key of its own.
        if self.get("sliding_window").is_none() || self.flag("use_sliding_window")? == Some(false) {
            return Ok(None);
        }
        self.dimension("sliding_window").map(Some)
    }

    /// Rotary base and scaling, from `rope_parameters` or the older `rope_theta` and
    /// `rope_scaling`. Where both sections are there, readers differ in which one they believe.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        match (self.get("rope_parameters"), self.get("rope_scaling")) {
            (Some(new), Some(old)) => {
                let rope = self.rope_section("rope_parameters", new)?;
                if rope != self.rope_section("rope_scaling", old)? {
                    return Err(self.damaged(format!(
                        "`rope_parameters` {new} and `rope_scaling` {old} contradict each other"
                    )));
                }
                Ok(rope)
            }
            (Some(new), None) => self.rope_section("rope_parameters", new),
            (None, Some(old)) => self.rope_section("rope_scaling", old),
            (None, None) => Ok((self.rope_theta()?, RopeScaling::None)),
        }
    }

    fn rope_theta(&self) -> Result<f64> {
        Ok(self.number("rope_theta")?.unwrap_or(10_000.0))
    }

    /// What one of the two sections says. What is not understood is refused, not left out:
    /// positions that are scaled otherwise are another model.
    fn rope_section(&self, section: &str, value: &Value) -> Result<(f64, RopeScaling)> {
        let object = value
            .as_object()
            .ok_or_else(|| self.damaged(format!("`{section}` is {value}, not an object")))?;
        if let Some((key, _)) = object.iter().find(|(_, value)| value.is_object()) {
            return Err(self.unsupported(format!(
                "`{section}.{key}` is a section of its own: layers differ in their positions"
            )));
        }
        let optional = |key: &str| {
            number(object, key).map_err(|what| self.damaged(format!("`{section}`: {what}")))
        };
        let required = |key: &str| match optional(key)? {
            Some(v) if v.is_finite() && v > 0.0 => Ok(v),
            Some(v) => Err(self.damaged(format!("`{section}.{key}` is {v}, not positive"))),
            None => Err(self.damaged(format!("`{section}.{key}` is missing"))),
        };
        let theta = match optional("rope_theta")? {
            Some(theta) => theta,
            None => self.rope_theta()?,
        };
        if optional("partial_rotary_factor")?.unwrap_or(1.0) != 1.0 {
            return Err(self.unsupported(format!("`{section}.partial_rotary_factor` other than 1")));
        }
        let kind = self.rope_kind(section, object)?;
        let scaling = match kind.unwrap_or("default") {
            "default" => match optional("factor")? {
                None | Some(1.0) => RopeScaling::None,
                Some(factor) => {
                    return Err(self.damaged(format!(
                        "`{section}.factor` is {factor}, but `rope_type` is {}",
                        kind.unwrap_or("missing")
                    )));
                }
            },
            "linear" => RopeScaling::Linear {
                factor: required("factor")?,
            },
            "llama3" => {
                let scaling = (required("low_freq_factor")?, required("high_freq_factor")?);
                if scaling.0 >= scaling.1 {
                    return Err(self.damaged(format!(
                        "`{section}`: `low_freq_factor` is not below `high_freq_factor`"
                    )));
                }
                RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor: scaling.0,
                    high_freq_factor: scaling.1,
                    original_max_position_embeddings: required("original_max_position_embeddings")?
                        as usize,
                }
            }
            other => {
                return Err(self.unsupported(format!("`{section}` of type \"{other}\"")));
            }
        };
        Ok((theta, scaling))
    }

    /// The type of a section, under its new or its old key.
    fn rope_kind<'v>(
        &self,
        section: &str,
        object: &'v Map<String, Value>,
    ) -> Result<Option<&'v str>> {
        let kind = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(kind)) => Ok(Some(kind.as_str())),
            Some(other) => Err(self.damaged(format!("`{section}.{key}` is {other}, not a string"))),
        };
        match (kind("rope_type")?, kind("type")?) {
            (Some(new), Some(old)) if new != old => Err(self.damaged(format!(
                "`{section}.rope_type` is \"{new}\" and `{section}.type` \"{old}\""
            ))),
            (new, old) => Ok(new.or(old)),
        }
    }
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(v) => Ok(Some(v)),
            None => Err(format!("`{key}` is {value}, not a number")),
        },
    }
}

/// The refusal of a checkpoint that some other tool has quantized.
pub(crate) fn already_quantized(path: &Path, key: &str, method: &str) -> Error {
    Error::unsupported(
        format!(
            "{}: the checkpoint is already quantized (`{key}`: {method})",
            path.display()
        ),
        "Pass the full-precision checkpoint that it was made from.",
    )
}
