//! Models without weights: the shapes of published models, filled with random codes in their
//! stored form. Memory and speed depend on shapes and stored bytes, not on values; quality is
//! not there to be measured.

use super::assembly::{self, Parts};
use super::config::{Config, RopeScaling};
use super::decoder::Decoder;
use super::kernels::Kernels;
use super::weights::{WeightSource, layout};
use crate::packed::random::{Content, Untrained};
use crate::packed::{self, FormatSpec, PackedLinear, dense};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a model's name begins with, and its `source_format`.
const SYNTHETIC: &str = "synthetic";

/// See `datasets/shapes/README.md`.
const TABLE: &str = include_str!("../../datasets/shapes/model_shapes.csv");

/// A row of the table. Columns that are not read here are for people.
#[derive(Deserialize)]
struct TableRow {
    id: String,
    model: String,
    n_layers: usize,
    hidden: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    tie_word_embeddings: String,
    qkv_bias: String,
    rope_theta: String,
    rms_norm_eps: f64,
    max_position: usize,
    sliding_window: Option<usize>,
}

/// The shape of a published model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The name in `synthetic:ID`.
    pub id: String,
    /// The model's own name.
    pub model: String,
    pub config: Config,
    name: String,
    sliding_window: bool,
}

impl Shape {
    fn new(row: TableRow) -> Result<Self> {
        let theta = row.rope_theta.split(' ').next().unwrap_or_default();
        let config = Config {
            architecture: "llama family".into(),
            hidden_size: row.hidden,
            intermediate_size: row.ffn,
            layers: row.n_layers,
            heads: row.n_heads,
            kv_heads: row.n_kv_heads,
            head_dim: row.head_dim,
            vocab_size: row.vocab,
            max_position_embeddings: row
                .max_position
                .min(row.sliding_window.unwrap_or(usize::MAX)),
            rms_norm_eps: row.rms_norm_eps,
            // Angles have no influence on bytes or seconds.
            rope_theta: theta.parse().unwrap_or(10_000.0),
            rope_scaling: RopeScaling::None,
            tied_head: row.tie_word_embeddings == "True",
            qkv_bias: row.qkv_bias == "True",
            bos_token_id: None,
            eos_token_id: None,
        };
        config.validate(Path::new("datasets/shapes/model_shapes.csv"))?;
        Ok(Shape {
            name: format!("{SYNTHETIC}:{}", row.id),
            id: row.id,
            model: row.model,
            config,
            sliding_window: row.sliding_window.is_some(),
        })
    }

    /// Weights, biases and gains of the whole model.
    pub fn parameters(&self) -> u64 {
        layout(&self.config)
            .values()
            .map(|shape| shape.iter().product::<usize>() as u64)
            .sum()
    }
}

/// Every shape, in the order of the table.
pub fn shapes() -> Result<Vec<Shape>> {
    csv::Reader::from_reader(TABLE.as_bytes())
        .deserialize()
        .map(|row| {
            Shape::new(row.map_err(|e| {
                Error::file(
                    "datasets/shapes/model_shapes.csv",
                    e.to_string(),
                    "the table was damaged before it was compiled in: restore it and build again",
                )
            })?)
        })
        .collect()
}

/// The shape that `synthetic:ID` names; `None` for any other model.
pub fn named(model: &Path) -> Option<Result<Shape>> {
    let id = model.to_str()?.strip_prefix(SYNTHETIC)?.strip_prefix(':')?;
    Some(shape(id))
}

/// The shape of this id.
pub fn shape(id: &str) -> Result<Shape> {
    let shapes = shapes()?;
    let known: Vec<String> = shapes.iter().map(|s| s.id.clone()).collect();
    shapes.into_iter().find(|s| s.id == id).ok_or_else(|| {
        Error::usage(
            format!("no model shape is called `{id}`"),
            format!("known: {} (quantbench list shapes)", known.join(" ")),
        )
    })
}

impl WeightSource for Shape {
    fn config(&self) -> &Config {
        &self.config
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn source_format(&self) -> &str {
        SYNTHETIC
    }

    fn has_weights(&self) -> bool {
        false
    }

    fn has(&self, _name: &str) -> bool {
        false
    }

    fn tensor(&self, name: &str, _expected: &[usize]) -> Result<Vec<f32>> {
        Err(Error::unsupported(
            format!("{} has no `{name}` to read: it is a shape only", self.name),
            "use a model with weights",
        ))
    }

    /// Of nothing: empty.
    fn sha256(&self) -> Result<String> {
        Ok(String::new())
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![format!(
            "the weights are random codes in the shapes of {}: memory and speed are measured, \
             quality is not there",
            self.model
        )];
        if self.sliding_window {
            warnings.push(format!(
                "the model attends within a sliding window: contexts are limited to {} tokens, \
                 where it makes no difference",
                self.config.max_position_embeddings
            ));
        }
        warnings
    }
}

/// A decoder of this shape, with RoPE tables for `positions`: packed linears of
/// random codes stored as `spec`, normal embedding and head, gains of one, biases of zero.
/// Equal seeds give equal bytes on every device. Everything is made where it stays, tensor by
/// tensor, and takes no more memory than the model.
pub fn decoder(
    config: &Config,
    spec: &FormatSpec,
    seed: u64,
    positions: usize,
    kernels: &Arc<dyn Kernels>,
) -> Result<Decoder> {
    let parts = RandomParts {
        config,
        spec,
        kernels: kernels.as_ref(),
        next_seed: AtomicU64::new(seed.wrapping_mul(SEED_STRIDE)),
    };
    assembly::decoder(config, positions, kernels, &parts)
}

/// Seeds that neighbouring models keep between them: more than a model has tensors.
const SEED_STRIDE: u64 = 1 << 20;

struct RandomParts<'a> {
    config: &'a Config,
    spec: &'a FormatSpec,
    kernels: &'a dyn Kernels,
    next_seed: AtomicU64,
}

impl RandomParts<'_> {
    fn seed(&self) -> u64 {
        // A weight may use two: its own and the next.
        self.next_seed.fetch_add(2, Relaxed)
    }

    fn constant(&self, shape: &[usize], value: f32) -> Result<Tensor> {
        let content = Content::Constant(value);
        let what = Untrained::new("codes", DType::F16, shape, content);
        self.kernels.fill(&what, 0)
    }
}

impl Parts for RandomParts<'_> {
    fn half(&self, _name: &str, shape: &[usize]) -> Result<Tensor> {
        match *shape {
            [rows, cols] => {
                let numbers = dense::untrained(DType::F16, (rows, cols));
                self.kernels.fill(&numbers, self.seed())
            }
            _ => self.constant(shape, 1.0),
        }
    }

    fn weight(&self, _module: &str, shape: (usize, usize)) -> Result<Box<dyn PackedLinear>> {
        let seed = self.seed();
        packed::random_by(self.spec, shape, &mut |what| self.kernels.fill(what, seed))
    }

    fn bias(&self, module: &str, n_out: usize) -> Result<Option<Tensor>> {
        let biased = ["q_proj", "k_proj", "v_proj"].map(|name| module.ends_with(name));
        if !(self.config.qkv_bias && biased.contains(&true)) {
            return Ok(None);
        }
        self.constant(&[n_out], 0.0).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The column that nothing else reads.
    #[derive(Deserialize)]
    struct Computed {
        params_computed: u64,
    }

    #[test]
    fn parameters_are_those_of_the_table() {
        let shapes = shapes().unwrap();
        let mut reader = csv::Reader::from_reader(TABLE.as_bytes());
        let rows: Vec<Computed> = reader.deserialize().map(Result::unwrap).collect();
        assert!(shapes.len() >= 18);
        assert_eq!(shapes.len(), rows.len());
        for (shape, row) in shapes.iter().zip(rows) {
            assert_eq!(shape.parameters(), row.params_computed, "{}", shape.id);
        }
    }

    #[test]
    fn every_row_has_a_plain_name_of_its_own() {
        let shapes = shapes().unwrap();
        for (i, shape) in shapes.iter().enumerate() {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            assert!(shape.id.chars().all(plain), "{}", shape.id);
            assert!(shapes[i + 1..].iter().all(|s| s.id != shape.id));
            let path = format!("synthetic:{}", shape.id);
            assert_eq!(&named(Path::new(&path)).unwrap().unwrap(), shape);
        }
        assert!(named(Path::new("models/synthetic")).is_none());
        let message = named(Path::new("synthetic:gpt-5")).unwrap().unwrap_err();
        let message = message.to_string();
        assert!(message.contains("`gpt-5`") && message.contains("llama-2-7b"));
    }
}
