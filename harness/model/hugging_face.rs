//! The keys of a Hugging Face `config.json`: what they must be, and the errors that name them.

use super::angles::RopeScaling;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A `config.json` and the errors that name its keys.
pub(super) struct Json<'a> {
    pub(super) path: &'a Path,
    object: Map<String, Value>,
}

impl<'a> Json<'a> {
    pub(super) fn parse(path: &'a Path, text: &str) -> Result<Self> {
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

    pub(super) fn damaged(&self, what: impl Into<String>) -> Error {
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
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn dimension(&self, key: &str) -> Result<usize> {
        let value = self
            .get(key)
            .ok_or_else(|| self.damaged(format!("`{key}` is missing")))?;
        match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
            Some(v) if v > 0 => Ok(v as usize),
            _ => Err(self.damaged(format!("`{key}` is {value}, not a positive number"))),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        number(&self.object, key).map_err(|what| self.damaged(what))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| self.damaged(format!("`{key}` is {value}, not true or false")))
            })
            .transpose()
    }

    /// A token id; of a list (several ends of text), the first.
    pub(super) fn token(&self, key: &str) -> Result<Option<u32>> {
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

    pub(super) fn refuse_quantized(&self) -> Result<()> {
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
    pub(super) fn family(&self) -> Result<String> {
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
    pub(super) fn refuse_other_arithmetic(&self) -> Result<()> {
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

    pub(super) fn sliding_window(&self, family: &str) -> Result<Option<usize>> {
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
    pub(super) fn rope(&self) -> Result<(f64, RopeScaling)> {
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
