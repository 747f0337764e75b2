//! Models whose FP16 weights are drawn, tensor by tensor, in the shapes of published models:
//! something to quantize at any size without a download. Of what quantizing takes, time and memory
//! can be measured on them; quality is not there to be measured, and how much a method gains over
//! another on random weights says nothing about real ones.
//!
//! Linears and embedding are normal with a standard deviation of `1 / sqrt(k_in)`. Gains of norms
//! are `exp(z / 2)` for normal `z`, so that channels differ in size as those of trained models do
//! (a sixth of them more than twofold from the middle). Biases are zero. A tensor depends on its
//! name alone: the same bytes in every run, made on the CPU or on a GPU.

use super::shapes;
use super::source::{Make, SourceInfo, WeightSource};
use crate::error::TensorFault;
use crate::hash::sha256;
use crate::model::config::Config;
use crate::model::layout::layout;
use crate::packed::random::{self, Content, Untrained};
use crate::{Error, Result};
use candle_core::DType;
use half::f16;
use std::path::Path;

/// What a model's name begins with, and its `source_format`.
const DRAWN: &str = "synthetic-fp16";

/// Random FP16 weights in a shape.
pub struct Drawn {
    info: SourceInfo,
}

impl Drawn {
    /// Weights for this shape; `model` is the name of whose shape it is.
    pub fn new(id: &str, model: &str, config: Config) -> Self {
        Drawn {
            info: SourceInfo {
                name: format!("{DRAWN}:{id}"),
                source_format: DRAWN.into(),
                config,
                warnings: vec![format!(
                    "the weights are random FP16 numbers in the shapes of {model}, calibrated on \
                     random tokens: the cost of quantizing, memory and speed are measured, quality \
                     is not there"
                )],
                has_weights: true,
                reads_text: false,
            },
        }
    }
}

/// The source that `synthetic-fp16:ID` names; `None` for any other model.
pub fn named(model: &Path) -> Option<Result<Drawn>> {
    let id = model.to_str()?.strip_prefix(DRAWN)?.strip_prefix(':')?;
    let shape = shapes::shape(id);
    Some(shape.map(|shape| Drawn::new(&shape.id, &shape.model, shape.info.config)))
}

impl WeightSource for Drawn {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn has(&self, name: &str) -> bool {
        layout(self.config()).contains_key(name)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        self.tensor_by(name, expected, &random::on_cpu)
    }

    fn tensor_by(&self, name: &str, expected: &[usize], make: &Make) -> Result<Vec<f32>> {
        let tensors = layout(self.config());
        let shape = tensors.get(name);
        if shape.is_none_or(|shape| shape != expected) {
            return Err(Error::from(TensorFault {
                path: self.info.name.clone().into(),
                tensor: name.into(),
                expected: format!("shape {expected:?}"),
                found: shape.map_or("no such tensor".into(), |s| format!("{s:?}")),
                next: "report this defect".into(),
            }));
        }
        let shape = match *expected {
            [n] if name.ends_with(".bias") => return Ok(vec![0.0; n]),
            [n] => (1, n),
            _ => (expected[0], expected[1..].iter().product()),
        };
        let content = Content::Normal {
            deviation: 1.0 / (shape.1.max(1) as f32).sqrt(),
        };
        let drawn = Untrained::new("codes", DType::F16, &[shape.0, shape.1], content);
        let codes = make(&drawn, seed(name))?;
        let mut values: Vec<f32> = codes.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        if expected.len() == 1 {
            // Back to a standard deviation of one.
            let size = (shape.1 as f32).sqrt();
            for x in &mut values {
                *x = f16::from_f32((0.5 * size * *x).exp()).to_f32();
            }
        }
        Ok(values)
    }

    /// Of the name, which determines every weight.
    fn sha256(&self) -> Result<String> {
        Ok(sha256([self.info.name.as_bytes()]))
    }
}

/// FNV-1a of a tensor's name.
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Drawn {
        let path = Path::new("synthetic-fp16:smollm2-135m");
        named(path).unwrap().unwrap()
    }

    #[test]
    fn names_are_those_of_shapes() {
        assert_eq!(source().info().name, "synthetic-fp16:smollm2-135m");
        assert_eq!(source().config().hidden_size, 576);
        assert!(named(Path::new("synthetic:smollm2-135m")).is_none());
        assert!(named(Path::new("models/synthetic-fp16")).is_none());
        let error = named(Path::new("synthetic-fp16:gpt-5")).unwrap().err();
        assert!(error.unwrap().to_string().contains("`gpt-5`"));
    }

    #[test]
    fn tensors_are_fp16_and_spread_as_stated() {
        let name = "model.layers.3.self_attn.q_proj.weight";
        let w = source().tensor(name, &[576, 576]).unwrap();
        assert_eq!(w, source().tensor(name, &[576, 576]).unwrap());
        let other = "model.layers.4.self_attn.q_proj.weight";
        assert_ne!(w, source().tensor(other, &[576, 576]).unwrap());
        assert!(w.iter().all(|x| f16::from_f32(*x).to_f32() == *x));
        let square: f32 = w.iter().map(|x| x * x).sum::<f32>() / w.len() as f32;
        assert!((square * 576.0 - 1.0).abs() < 0.02, "{square}");

        let gain = source().tensor("model.norm.weight", &[576]).unwrap();
        assert!(gain.iter().all(|g| *g > 0.0 && g.is_finite()));
        let far = gain.iter().filter(|g| !(0.5..=2.0).contains(*g)).count();
        assert!((0.08..0.30).contains(&(far as f32 / 576.0)), "{far}");
    }

    #[test]
    fn another_shape_or_name_is_refused() {
        for (name, shape) in [("model.norm.weight", [575].as_slice()), ("lm_head", &[1])] {
            let error = source().tensor(name, shape).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(source().has("model.norm.weight") && !source().has("lm_head.weight"));
    }
}
