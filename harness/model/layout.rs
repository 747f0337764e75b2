//! A decoder's tensors as tables: every linear and norm of a block with its names, its shape as a
//! function of the configuration, and which linears share an input. Whoever walks over a block
//! (readers, assembly, quantization, calibration) walks over these.

use super::config::Config;
use std::collections::BTreeMap;

/// A linear of a decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// What a checkpoint stores of a [`Slot`].
pub struct LinearRow {
    pub slot: Slot,
    /// Name within the block, in a Hugging Face checkpoint and in a GGUF file.
    pub name: &'static str,
    pub gguf: &'static str,
    /// `(n_out, k_in)`.
    pub shape: fn(&Config) -> (usize, usize),
    pub has_bias: fn(&Config) -> bool,
    /// Whether its outputs are turned by their position, in pairs of rows.
    pub is_rotary: bool,
}

/// Linears that read one input.
pub struct InputRow {
    /// What makes the input, and so can absorb `1 / scale` per channel.
    pub producer: Producer,
    /// Whether each channel of the input has a channel of the producer to itself.
    pub is_foldable: fn(&Config) -> bool,
    pub linears: &'static [LinearRow],
}

/// What makes an input of linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Producer {
    Norm(Norm),
    Linear(Slot),
}

/// An input of a block's linears: a row of [`INPUTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Attention,
    Attended,
    Mlp,
    Activated,
}

/// The linears of a block in the order of [`Slot`], by the input that they share in the order of
/// [`Input`], which is the order in which a block uses them.
pub static INPUTS: [InputRow; 4] = [
    InputRow {
        producer: Producer::Norm(Norm::Attention),
        is_foldable: always,
        linears: &[
            LinearRow {
                slot: Slot::Q,
                name: "self_attn.q_proj",
                gguf: "attn_q",
                shape: |c| (c.heads * c.head_dim, c.hidden_size),
                has_bias: qkv_bias,
                is_rotary: true,
            },
            LinearRow {
                slot: Slot::K,
                name: "self_attn.k_proj",
                gguf: "attn_k",
                shape: |c| (c.kv_heads * c.head_dim, c.hidden_size),
                has_bias: qkv_bias,
                is_rotary: true,
            },
            LinearRow {
                slot: Slot::V,
                name: "self_attn.v_proj",
                gguf: "attn_v",
                shape: |c| (c.kv_heads * c.head_dim, c.hidden_size),
                has_bias: qkv_bias,
                is_rotary: false,
            },
        ],
    },
    InputRow {
        producer: Producer::Linear(Slot::V),
        // A narrower v_proj feeds several heads: no scale per input channel.
        is_foldable: |c| c.heads == c.kv_heads,
        linears: &[LinearRow {
            slot: Slot::O,
            name: "self_attn.o_proj",
            gguf: "attn_output",
            shape: |c| (c.hidden_size, c.heads * c.head_dim),
            has_bias: never,
            is_rotary: false,
        }],
    },
    InputRow {
        producer: Producer::Norm(Norm::Mlp),
        is_foldable: always,
        linears: &[
            LinearRow {
                slot: Slot::Gate,
                name: "mlp.gate_proj",
                gguf: "ffn_gate",
                shape: |c| (c.intermediate_size, c.hidden_size),
                has_bias: never,
                is_rotary: false,
            },
            LinearRow {
                slot: Slot::Up,
                name: "mlp.up_proj",
                gguf: "ffn_up",
                shape: |c| (c.intermediate_size, c.hidden_size),
                has_bias: never,
                is_rotary: false,
            },
        ],
    },
    InputRow {
        producer: Producer::Linear(Slot::Up),
        is_foldable: always,
        linears: &[LinearRow {
            slot: Slot::Down,
            name: "mlp.down_proj",
            gguf: "ffn_down",
            shape: |c| (c.hidden_size, c.intermediate_size),
            has_bias: never,
            is_rotary: false,
        }],
    },
];

/// What a checkpoint stores of a [`Norm`]: the gain, a vector.
pub struct NormRow {
    pub norm: Norm,
    /// Name within the block, in a Hugging Face checkpoint and in a GGUF file.
    pub name: &'static str,
    pub gguf: &'static str,
    pub width: fn(&Config) -> usize,
    pub is_present: fn(&Config) -> bool,
}

/// An RMSNorm of a decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Norm {
    Attention,
    Mlp,
}

#[rustfmt::skip]
pub static NORMS: [NormRow; 2] = [
    NormRow { norm: Norm::Attention, name: "input_layernorm", gguf: "attn_norm", width: hidden, is_present: always },
    NormRow { norm: Norm::Mlp, name: "post_attention_layernorm", gguf: "ffn_norm", width: hidden, is_present: always },
];

fn always(_: &Config) -> bool {
    true
}

fn never(_: &Config) -> bool {
    false
}

fn qkv_bias(config: &Config) -> bool {
    config.qkv_bias
}

fn hidden(config: &Config) -> usize {
    config.hidden_size
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";

pub const HEAD: &str = "lm_head.weight";

pub const FINAL_NORM: &str = "model.norm.weight";

/// The tensors outside of the blocks: Hugging Face name and GGUF name.
const OUTSIDE: [(&str, &str); 3] = [
    (EMBEDDING, "token_embd.weight"),
    (FINAL_NORM, "output_norm.weight"),
    (HEAD, "output.weight"),
];

impl LinearRow {
    /// Hugging Face name of the module in a layer.
    pub fn module(&self, layer: usize) -> String {
        format!("{BLOCKS}{layer}.{}", self.name)
    }
}

impl NormRow {
    /// Hugging Face name of the gain in a layer.
    pub fn tensor(&self, layer: usize) -> String {
        weight_name(&format!("{BLOCKS}{layer}.{}", self.name))
    }
}

/// The linears of a block, in the order of [`Slot`].
pub fn linears() -> impl Iterator<Item = &'static LinearRow> {
    INPUTS.iter().flat_map(|input| input.linears)
}

/// The norms that a block of this configuration has.
pub fn norms(config: &Config) -> impl Iterator<Item = &'static NormRow> {
    NORMS.iter().filter(|norm| (norm.is_present)(config))
}

/// The name and shape of every tensor that a decoder of this shape reads.
pub fn layout(config: &Config) -> BTreeMap<String, Vec<usize>> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut tensors = BTreeMap::from([
        (EMBEDDING.to_string(), vec![vocab, hidden]),
        (FINAL_NORM.to_string(), vec![hidden]),
    ]);
    if !config.tied_head {
        tensors.insert(HEAD.into(), vec![vocab, hidden]);
    }
    for layer in 0..config.layers {
        for norm in norms(config) {
            tensors.insert(norm.tensor(layer), vec![(norm.width)(config)]);
        }
        for linear in linears() {
            let (module, (n_out, k_in)) = (linear.module(layer), (linear.shape)(config));
            if (linear.has_bias)(config) {
                tensors.insert(bias_name(&module), vec![n_out]);
            }
            tensors.insert(weight_name(&module), vec![n_out, k_in]);
        }
    }
    tensors
}

/// The row that a Hugging Face name of a block's linear belongs to, be it weight or bias.
pub fn linear(name: &str) -> Option<&'static LinearRow> {
    let (_, module, _) = block_tensor(BLOCKS, name)?;
    linears().find(|linear| linear.name == module)
}

/// Whether the tensor is the weight of a block's linear: what quantization acts on.
pub fn is_body_linear(name: &str) -> bool {
    name.ends_with(".weight") && linear(name).is_some()
}

/// The Hugging Face name of a tensor of a GGUF file; `None` for one that no table has.
pub fn hugging_face_name(gguf: &str) -> Option<String> {
    if let Some((name, _)) = OUTSIDE.iter().find(|(_, theirs)| *theirs == gguf) {
        return Some((*name).into());
    }
    let (layer, module, parameter) = block_tensor("blk.", gguf)?;
    let linears = linears().map(|linear| (linear.gguf, linear.name));
    let norms = NORMS.iter().map(|norm| (norm.gguf, norm.name));
    let (_, name) = linears.chain(norms).find(|(theirs, _)| *theirs == module)?;
    Some(format!("{BLOCKS}{layer}.{name}.{parameter}"))
}

/// What the blocks' tensors begin with in a Hugging Face checkpoint.
const BLOCKS: &str = "model.layers.";

/// Layer, module and parameter of a block's tensor.
fn block_tensor<'a>(prefix: &str, name: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
    let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    Some((layer, module, parameter))
}

/// Hugging Face name of a module's weight.
pub fn weight_name(module: &str) -> String {
    format!("{module}.weight")
}

/// Hugging Face name of a module's bias.
pub fn bias_name(module: &str) -> String {
    format!("{module}.bias")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_norms_number_the_rows_of_their_tables() {
        for (at, row) in linears().enumerate() {
            assert_eq!(row.slot as usize, at, "{}", row.name);
        }
        for (at, row) in NORMS.iter().enumerate() {
            assert_eq!(row.norm as usize, at, "{}", row.name);
        }
        assert_eq!(INPUTS.len(), Input::Activated as usize + 1);
    }

    #[test]
    fn names_are_found_in_both_directions() {
        for (gguf, name, is_body) in [
            (
                "blk.7.attn_k.weight",
                "model.layers.7.self_attn.k_proj.weight",
                true,
            ),
            (
                "blk.7.attn_k.bias",
                "model.layers.7.self_attn.k_proj.bias",
                false,
            ),
            (
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                false,
            ),
            ("output.weight", HEAD, false),
        ] {
            assert_eq!(hugging_face_name(gguf).as_deref(), Some(name));
            assert_eq!(is_body_linear(name), is_body, "{name}");
        }
        assert_eq!(hugging_face_name("blk.0.attn_q_norm.weight"), None);
        assert_eq!(hugging_face_name("rope_freqs.weight"), None);
    }
}
