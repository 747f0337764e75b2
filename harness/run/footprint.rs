//! What quantizing with calibration on a GPU takes at most, from shapes alone: whether a model can
//! be quantized on a machine is known before it is tried.
//!
//! On the device are the residual streams of all calibration texts (F32), the buffers of one
//! decoder step, and by turns: the embedding; a block in F16 with the sums over its inputs; the
//! workspace of the method; the packed block. On the host are one block in F32, its `Σ x xᵀ`, and
//! what is on its way. Packed blocks wait in a file ([`super::quantize::Setting::spool`]).

use crate::model::config::Config;
use crate::model::kv_cache::KvPrecision;
use crate::packed::FormatSpec;
use crate::packed::gpu::{FUSED_ROWS, WORKSPACE_BYTES};
use crate::quant::solver::gpu::{sums_bytes, workspace_bytes};

/// Bytes at their highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Of the device's memory, beside its context and what its libraries take.
    pub device_bytes: u64,
    /// Of the host's heap, beside the texts themselves.
    pub host_bytes: u64,
}

/// Calibration texts: `windows` of `tokens` tokens each.
#[derive(Debug, Clone, Copy)]
pub struct Texts {
    pub windows: usize,
    pub tokens: usize,
    /// Of the cache that they attend through.
    pub kv: KvPrecision,
}

/// The footprint of quantizing a model of this shape to a grouped integer format.
pub fn footprint(config: &Config, texts: &Texts, spec: &FormatSpec) -> Footprint {
    let sizes = Sizes::new(config, spec);
    Footprint {
        device_bytes: device_bytes(&sizes, config, texts),
        host_bytes: host_bytes(&sizes),
    }
}

/// Sizes of a model, in elements unless they say bytes.
struct Sizes {
    hidden: u64,
    query: u64,
    key: u64,
    wide: u64,
    /// Embedding, and head where it is its own.
    table: u64,
    /// Outputs and inputs of the seven linears.
    linears: [(usize, usize); 7],
    /// Norms and biases of a block.
    vectors: u64,
    spec: FormatSpec,
}

impl Sizes {
    fn new(config: &Config, spec: &FormatSpec) -> Self {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let query = config.heads * config.head_dim;
        let key = config.kv_heads * config.head_dim;
        let biases = if config.qkv_bias { query + 2 * key } else { 0 };
        let linears = [
            (query, hidden),
            (key, hidden),
            (key, hidden),
            (hidden, query),
            (wide, hidden),
            (wide, hidden),
            (hidden, wide),
        ];
        Sizes {
            hidden: hidden as u64,
            query: query as u64,
            key: key as u64,
            wide: wide as u64,
            table: (config.vocab_size * hidden) as u64,
            linears,
            vectors: (2 * hidden + biases) as u64,
            spec: spec.clone(),
        }
    }

    /// Groups of weights in a row of `k`.
    fn groups(&self, k: usize) -> usize {
        match usize::try_from(self.spec.group_size) {
            Ok(0) => 0,
            Ok(size) => k.div_ceil(size),
            Err(_) => 1,
        }
    }

    /// Bytes of a packed block: codes, scales, zeros.
    fn packed_bytes(&self) -> u64 {
        let bits = self.spec.bits as usize;
        let linears = self.linears.iter().map(|(n, k)| {
            let scales = n * self.groups(*k);
            let codes = n * k.div_ceil(8) * bits;
            (codes + 2 * scales + (scales * bits).div_ceil(8)) as u64
        });
        linears.sum()
    }

    fn weights(&self) -> u64 {
        self.linears.iter().map(|(n, k)| (n * k) as u64).sum()
    }

    /// Of the largest linear.
    fn largest(&self) -> u64 {
        let sizes = self.linears.iter().map(|(n, k)| (n * k) as u64);
        sizes.max().unwrap_or(0)
    }

    /// Inputs of the four groups.
    fn inputs(&self) -> [u64; 4] {
        [self.hidden, self.query, self.hidden, self.wide]
    }
}

fn device_bytes(s: &Sizes, config: &Config, texts: &Texts) -> u64 {
    let (tokens, windows) = (texts.tokens as u64, texts.windows as u64);
    let stream = 4 * tokens * s.hidden;
    let rope = 4 * tokens * config.head_dim as u64;
    let cache = tokens * texts.kv.position_bytes(1, s.key as usize) as u64;
    let position = 4;
    // All streams, room for one, and the embedding's own, with its ids.
    let lasting = rope + cache + position + (windows + 2) * stream + 4 * tokens;
    // Normalized, up to three products at a time, attended: F16.
    let products = s.query.max(s.wide) + s.key.max(s.wide) + s.key;
    let steps = 2 * tokens * (s.hidden + products + s.query);
    // Tiles of dequantized weights, from the first packed block on.
    let tile = match texts.tokens > FUSED_ROWS {
        true => WORKSPACE_BYTES as u64,
        false => 0,
    };
    let sums: u64 = s.inputs().map(|k| sums_bytes(k as usize)).iter().sum();
    let calibrating = 2 * (s.weights() + s.vectors) + sums;
    let workspace = |(n, k): &(usize, usize)| workspace_bytes(*n, *k, s.groups(*k));
    let solving = s.linears.iter().map(workspace).max().unwrap_or(0);
    let advancing = s.packed_bytes() + 2 * s.vectors;
    let by_turns = calibrating.max(solving).max(advancing);
    lasting + (2 * s.table).max(steps + tile + by_turns)
}

fn host_bytes(s: &Sizes) -> u64 {
    // A tensor as it is read: F32, and what a source may hold beside it.
    let reading = |elements: u64| 10 * elements;
    // The head while the embedding waits.
    let opening = 2 * s.table + reading(s.table);
    let block = 4 * s.weights();
    let squares = s.inputs().map(|k| 4 * k * k);
    let largest_square = squares.iter().max().copied().unwrap_or(0);
    // In F16, a tensor of it once more on its way to the device.
    let calibrating = 2 * s.weights() + 2 * s.largest();
    // One square twice, on its way from the device or scaled; a weight's errors and codes, the
    // latter twice; packed linears until the block is done.
    let solving = squares.iter().sum::<u64>() + largest_square + 6 * s.largest() + s.packed_bytes();
    let by_turns = reading(s.largest()).max(calibrating).max(solving);
    opening.max(block + by_turns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::shapes;
    use crate::quant;

    /// The promise for a card of 80 GB and a host of 24 GB.
    #[test]
    fn seven_billion_parameters_fit() {
        let shape = shapes::shape("llama-2-7b").unwrap();
        let texts = Texts {
            windows: 128,
            tokens: 2048,
            kv: KvPrecision::parse("fp16").unwrap(),
        };
        for id in ["gptq-int4", "awq-int4", "gptq-int3-g32", "gptq-int8-gch"] {
            let spec = quant::parse(id).unwrap().spec();
            let found = footprint(&shape.info.config, &texts, &spec);
            println!("{id}: {found:?}");
            assert!(found.device_bytes < 80_000_000_000, "{id}: {found:?}");
            assert!(found.host_bytes < 24_000_000_000, "{id}: {found:?}");
            // The streams alone, and a block with what it was calibrated on.
            assert!(found.device_bytes > 128 * 2048 * 4096 * 4);
            assert!(found.host_bytes > 4 * (202_375_168 + 3 * 4096 * 4096 + 11008 * 11008));
        }
    }
}
