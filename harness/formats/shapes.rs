//! The shapes of published models, which have no weights: `synthetic:ID`.

use super::source::{SourceInfo, WeightSource};
use crate::model::angles::RopeScaling;
use crate::model::config::Config;
use crate::model::layout::layout;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

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
    pub info: SourceInfo,
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
        let mut warnings = vec![format!(
            "the weights are random codes in the shapes of {}: memory and speed are measured, \
             quality is not there",
            row.model
        )];
        if row.sliding_window.is_some() {
            warnings.push(format!(
                "the model attends within a sliding window: contexts are limited to {} tokens, \
                 where it makes no difference",
                config.max_position_embeddings
            ));
        }
        Ok(Shape {
            info: SourceInfo {
                name: format!("{SYNTHETIC}:{}", row.id),
                source_format: SYNTHETIC.into(),
                config,
                warnings,
                has_weights: false,
                reads_text: false,
            },
            id: row.id,
            model: row.model,
        })
    }

    /// Weights, biases and gains of the whole model.
    pub fn parameters(&self) -> u64 {
        layout(self.config())
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
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn has(&self, _name: &str) -> bool {
        false
    }

    fn tensor(&self, name: &str, _expected: &[usize]) -> Result<Vec<f32>> {
        Err(Error::unsupported(
            format!(
                "{} has no `{name}` to read: it is a shape only",
                self.info.name
            ),
            "use a model with weights",
        ))
    }

    /// Of nothing: empty.
    fn sha256(&self) -> Result<String> {
        Ok(String::new())
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
