//! A model in a GGUF file: its configuration from the metadata, its tensors under Hugging Face names.

use super::file::{Decode, Gguf, Type, damaged};
use crate::formats::source::{
    SourceInfo, WeightSource, check_layout, check_shape, display_name, missing,
};
use crate::hash::sha256;
use crate::model::angles::RopeScaling;
use crate::model::config::Config;
use crate::model::layout::{self, hugging_face_name, is_body_linear};
use crate::{Error, Result};
use candle_core::quantized::GgmlDType;
use std::collections::BTreeMap;
use std::path::Path;

/// A llama or qwen2 model in a GGUF file.
pub(crate) struct GgufSource {
    file: Gguf,
    info: SourceInfo,
    /// GGUF name by Hugging Face name.
    names: BTreeMap<String, String>,
}

/// Opens a model; see [`super::open`].
pub(crate) fn open(path: &Path) -> Result<GgufSource> {
    let file = Gguf::open(path)?;
    let config = config(&file)?;
    let mut names = BTreeMap::new();
    for name in file.tensors.keys() {
        // Read by `config` already.
        if name != ROPE_FACTORS {
            names.insert(
                hugging_face_name(name).unwrap_or(name.clone()),
                name.clone(),
            );
        }
    }
    let found = names
        .iter()
        .map(|(hf, gguf)| (hf.as_str(), (path, &file.tensors[gguf].shape[..])))
        .collect();
    check_layout(path, &config, &found)?;
    let (source_format, warnings) = describe(&file, &names);
    let info = SourceInfo {
        name: display_name(path, true),
        source_format,
        config,
        warnings,
        has_weights: true,
        reads_text: true,
    };
    Ok(GgufSource { file, info, names })
}

const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The model's shape from metadata and tensor table.
fn config(file: &Gguf) -> Result<Config> {
    let unsupported = |what: String| {
        Error::unsupported(
            format!("{}: {what}", file.path.display()),
            "Use a dense Llama, Mistral or Qwen2 model, as GGUF or as a Hugging Face folder.",
        )
    };
    if file.count("split.count")?.unwrap_or(1) > 1 {
        return Err(Error::unsupported(
            format!(
                "{}: one part of a split GGUF (`split.count`)",
                file.path.display()
            ),
            "Merge the parts into one file first.",
        ));
    }
    let architecture = match file.string("general.architecture")? {
        Some(a @ ("llama" | "qwen2")) => a,
        Some(other) => {
            return Err(unsupported(format!("`general.architecture` \"{other}\"")));
        }
        None => return Err(damaged(&file.path, "`general.architecture` is missing")),
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let dimension = |name: &str| match file.count(&key(name))? {
        Some(value) => Ok(value as usize),
        None => Err(damaged(&file.path, format!("`{}` is missing", key(name)))),
    };
    let optional = |name: &str| file.count(&key(name)).map(|v| v.map(|v| v as usize));

    if optional("expert_count")?.unwrap_or(0) > 0 {
        return Err(unsupported(format!(
            "`{}`: a mixture of experts",
            key("expert_count")
        )));
    }
    let hidden_size = dimension("embedding_length")?;
    let heads = dimension("attention.head_count")?;
    let head_dim = match optional("attention.key_length")? {
        Some(length) => length,
        None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
        None => {
            return Err(damaged(
                &file.path,
                format!("{hidden_size} hidden units cannot be divided among {heads} heads"),
            ));
        }
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = optional(name)?
            && found != head_dim
        {
            return Err(unsupported(format!(
                "`{}` {found}, not the head dimension {head_dim}",
                key(name)
            )));
        }
    }
    let mut max_position_embeddings = dimension("context_length")?;
    if let Some(window) = optional("attention.sliding_window")?.filter(|&w| w > 0) {
        // Within one window, sliding and full attention are the same computation.
        max_position_embeddings = max_position_embeddings.min(window);
    }
    let Some(embedding) = file.tensors.get("token_embd.weight") else {
        return Err(damaged(&file.path, "tensor `token_embd.weight` is missing"));
    };
    let config = Config {
        architecture: architecture.to_string(),
        hidden_size,
        intermediate_size: dimension("feed_forward_length")?,
        layers: dimension("block_count")?,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        // The table's own rows: the metadata key is optional.
        vocab_size: embedding.shape[0],
        max_position_embeddings,
        rms_norm_eps: file
            .number(&key("attention.layer_norm_rms_epsilon"))?
            .unwrap_or(1e-5),
        rope_theta: file.number(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(file, &key("rope"), head_dim)?,
        tied_head: !file.tensors.contains_key("output.weight"),
        qkv_bias: file.tensors.contains_key("blk.0.attn_q.bias"),
        bos_token_id: file.count("tokenizer.ggml.bos_token_id")?,
        eos_token_id: file.count("tokenizer.ggml.eos_token_id")?,
    };
    config.validate(&file.path)?;
    Ok(config)
}

/// As llama.cpp reads it: without a type the scaling is linear, the factor stands under its new or
/// else its old key, and without a factor, or with 0, there is none. `prefix` is the keys'.
fn rope_scaling(file: &Gguf, prefix: &str, head_dim: usize) -> Result<RopeScaling> {
    let unsupported = |what: String| {
        Error::unsupported(
            format!("{}: {what}", file.path.display()),
            "Only unscaled, linear and Llama 3 rotary positions are implemented.",
        )
    };
    let attention_key = format!("{prefix}.scaling.attn_factor");
    if let Some(factor) = file.number(&attention_key)?.filter(|f| *f != 1.0) {
        return Err(unsupported(format!("`{attention_key}` {factor}, not 1")));
    }
    let factor = || {
        for key in ["scaling.factor", "scale_linear"] {
            let key = format!("{prefix}.{key}");
            match file.number(&key)? {
                None => {}
                Some(factor) if factor.is_finite() && factor >= 0.0 => return Ok(factor),
                Some(factor) => {
                    let what = format!("`{key}` is {factor}, not a positive number");
                    return Err(damaged(&file.path, what));
                }
            }
        }
        Ok(0.0)
    };
    let kind_key = format!("{prefix}.scaling.type");
    let scaling = match file.string(&kind_key)? {
        Some("none") => RopeScaling::None,
        None | Some("linear") => match factor()? {
            0.0 | 1.0 => RopeScaling::None,
            factor => RopeScaling::Linear { factor },
        },
        Some(other) => return Err(unsupported(format!("`{kind_key}` \"{other}\""))),
    };
    let Some(factors) = file.tensors.get(ROPE_FACTORS) else {
        return Ok(scaling);
    };
    check_shape(&file.path, ROPE_FACTORS, &[head_dim / 2], &factors.shape)?;
    if scaling != RopeScaling::None {
        return Err(Error::unsupported(
            format!(
                "{}: both a factor of `{prefix}` and tensor `{ROPE_FACTORS}`",
                file.path.display()
            ),
            "Only one of the two ways to scale rotary positions is implemented at a time.",
        ));
    }
    let factors = file.dequantize(factors)?;
    if factors.iter().any(|f| !(f.is_finite() && *f > 0.0)) {
        return Err(damaged(
            &file.path,
            format!("tensor `{ROPE_FACTORS}` holds a factor that is not positive"),
        ));
    }
    Ok(RopeScaling::Factors(factors))
}

/// Source format by the type that holds most body weights, and what the reader must know of it.
fn describe(file: &Gguf, names: &BTreeMap<String, String>) -> (String, Vec<String>) {
    let mut weights: BTreeMap<u32, (Type, usize)> = BTreeMap::new();
    let mut total = 0;
    for (_, gguf) in names.iter().filter(|(hf, _)| is_body_linear(hf)) {
        let tensor = &file.tensors[gguf];
        let count = tensor.shape.iter().product::<usize>();
        weights.entry(tensor.kind.id).or_insert((tensor.kind, 0)).1 += count;
        total += count;
    }
    let mut weights: Vec<_> = weights.into_values().collect();
    weights.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let Some((most, _)) = weights.first() else {
        return ("gguf".into(), Vec::new());
    };
    let mut format = format!("gguf-{}", most.name.to_lowercase());
    let mut described = most.name.to_string();
    if weights.len() > 1 {
        format += "-mixed";
        described = weights
            .iter()
            .map(|(kind, count)| {
                let share = 100.0 * *count as f64 / total as f64;
                format!("{} {share:.0} %", kind.name)
            })
            .collect::<Vec<_>>()
            .join(", ");
    }
    let warning = match most.decode {
        Decode::Float(_) => None,
        // 8-bit blocks flatter 8-bit rows most; anything below flatters the 4-bit ones.
        Decode::Blocks(GgmlDType::Q8_0) => Some(8),
        Decode::Blocks(_) => Some(4),
    }
    .map(|bits| {
        format!(
            "weights were already quantized ({described}): {bits}-bit rows look better than they \
             would from full precision"
        )
    });
    (format, warning.into_iter().collect())
}

/// Puts the rows of q and k back into Hugging Face order.
///
/// GGUF's llama converter interleaves the two halves of each head, so that rotary pairs are
/// neighbours: its row `2i + j` of a head is Hugging Face's row `j · head_dim/2 + i`.
/// `values` is `[heads · head_dim, columns]`; a bias has one column.
fn unpermute(values: &[f32], head_dim: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * columns) {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = 2 * pair + half;
                out.extend_from_slice(&head[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

impl WeightSource for GgufSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let tensor = self
            .names
            .get(name)
            .and_then(|gguf| self.file.tensors.get(gguf))
            .ok_or_else(|| missing(&self.file.path, name, expected))?;
        check_shape(&self.file.path, name, expected, &tensor.shape)?;
        let values = self.file.dequantize(tensor)?;
        let is_rotary = layout::linear(name).is_some_and(|row| row.is_rotary);
        if is_rotary && self.config().architecture == "llama" {
            let columns = tensor.shape.get(1).copied().unwrap_or(1);
            return Ok(unpermute(&values, self.config().head_dim, columns));
        }
        Ok(values)
    }

    fn sha256(&self) -> Result<String> {
        Ok(sha256([&self.file.bytes[..]]))
    }
}
