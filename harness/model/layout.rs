//! The tensors of a decoder: names, shapes and roles.

use super::config::Config;
use std::collections::BTreeMap;

/// The name and shape of every tensor that a decoder of this shape reads.
pub fn layout(config: &Config) -> BTreeMap<String, Vec<usize>> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let q = config.heads * config.head_dim;
    let kv = config.kv_heads * config.head_dim;
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        tensors.insert(name, shape.to_vec());
    };
    add(EMBEDDING.into(), &[config.vocab_size, hidden]);
    add("model.norm.weight".into(), &[hidden]);
    if !config.tied_head {
        add(HEAD.into(), &[config.vocab_size, hidden]);
    }
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("{prefix}.{norm}.weight"), &[hidden]);
        }
        for (linear, rows, columns) in [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ] {
            add(format!("{prefix}.{linear}.weight"), &[rows, columns]);
        }
        if config.qkv_bias {
            for (linear, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(format!("{prefix}.self_attn.{linear}.bias"), &[rows]);
            }
        }
    }
    tensors
}

/// Whether the tensor is a linear of a decoder block: what quantization acts on.
pub fn is_body_linear(name: &str) -> bool {
    name.starts_with("model.layers.") && name.ends_with("_proj.weight")
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";

pub const HEAD: &str = "lm_head.weight";

pub const FINAL_NORM: &str = "model.norm.weight";

pub const ATTENTION_NORM: &str = "input_layernorm";

pub const MLP_NORM: &str = "post_attention_layernorm";

/// Hugging Face name of a module of a block.
pub fn module(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

/// Hugging Face name of a module's weight.
pub fn weight_name(module: &str) -> String {
    format!("{module}.weight")
}
