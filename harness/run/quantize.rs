//! Walks a model block by block: calibrate, fold, quantize, pass on.
//!
//! Blocks are calibrated in order, each seeing the outputs of the already quantized blocks before
//! it ([`super::calibration`]). The source is read tensor by tensor, and packed blocks go to a
//! file as they come, so that of a large model one block at a time is in memory.

use super::calibration::{Flow, GROUPS};
use crate::device::Gpu;
use crate::formats::native::{self, PackedModel};
use crate::formats::source::{WeightSource, untied};
use crate::model::config::Config;
use crate::model::decoder::{Block, Linear};
use crate::model::kernels::{CpuKernels, Kernels};
use crate::model::kv_cache::KvPrecision;
use crate::model::layout::{layout, module, weight_name};
use crate::packed::random::{self, Untrained};
use crate::packed::{PackedLinear, dense::Dense, with_slice};
use crate::quant::{
    Brought, Calibration, Group, LayerStats, Matrix, Member, ModelShape, Notes, QuantMethod, Role,
};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::f16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A quantized model and what the method counted on the way.
pub struct Quantized {
    pub model: PackedModel,
    pub notes: Notes,
}

/// Where a model is quantized, and how it is calibrated.
pub struct Setting {
    /// What runs the calibration texts; a GPU also does the methods' matrix work.
    pub kernels: Arc<dyn Kernels>,
    /// Of the cache that the texts attend through.
    pub kv: KvPrecision,
    /// A folder for packed blocks until all are there; in memory without one.
    pub spool: Option<PathBuf>,
}

/// [`quantize_in`] on the CPU and in memory.
pub fn quantize(
    source: &dyn WeightSource,
    method: &dyn QuantMethod,
    windows: &[Vec<u32>],
    kv: KvPrecision,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Quantized> {
    let setting = Setting {
        kernels: Arc::new(CpuKernels),
        kv,
        spool: None,
    };
    quantize_in(&setting, source, method, windows, progress)
}

/// Quantizes every block's linears; embedding, head and norms become F16.
///
/// `windows` are the calibration texts' ids; `progress(done, total)` is called per block.
pub fn quantize_in(
    setting: &Setting,
    source: &dyn WeightSource,
    method: &dyn QuantMethod,
    windows: &[Vec<u32>],
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Quantized> {
    let config = source.config().clone();
    let brought = method.brings(&ModelShape {
        tensors: &layout(&config),
        check_config: &|path, text| config.check_same(path, text),
    })?;
    let source: &dyn WeightSource = &Read {
        source,
        brought,
        gpu: setting.kernels.gpu(),
    };
    let calibrated = method.calibration() == Calibration::Inputs;
    if calibrated && windows.is_empty() {
        return Err(Error::usage(
            format!("{} needs calibration texts and there are none", method.id()),
            "name texts of at least 512 tokens with --calibration",
        ));
    }
    let mut model = PackedModel::new(
        config.clone(),
        method.id(),
        method.method().into(),
        method.parameters(),
    );
    if let Some(folder) = &setting.spool {
        model.spool_in(folder)?;
    }
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let embedding = f16_tensor(source, native::EMBEDDING, &[vocab, hidden])?;
    model.add_tensor(
        native::FINAL_NORM,
        f16_tensor(source, native::FINAL_NORM, &[hidden])?,
    )?;
    if !config.tied_head {
        model.add_tensor(
            native::HEAD,
            f16_tensor(source, native::HEAD, &[vocab, hidden])?,
        )?;
    } else if let Some(head) = brought
        .map(|b| b.tensor(native::HEAD))
        .transpose()?
        .flatten()
    {
        check_tied(&method.source(), &head, &embedding)?;
    }
    let mut flow = match calibrated {
        true => Some(Flow::new(
            &config,
            &setting.kernels,
            &embedding,
            windows,
            setting.kv,
        )?),
        false => None,
    };
    model.add_tensor(native::EMBEDDING, embedding)?;

    let mut notes = Notes::new();
    for layer in 0..config.layers {
        progress(layer, config.layers)?;
        let mut raw = RawBlock::read(source, &config, layer)?;
        let mut stats = match &mut flow {
            Some(flow) => {
                let dtype = setting.kernels.activation_dtype();
                flow.statistics(raw.unquantized(dtype)?)?.map(Some)
            }
            None => [const { None }; GROUPS],
        };
        raw.fold(method, &mut stats, &mut notes)?;
        let mut packed: Vec<Arc<dyn PackedLinear>> = vec![];
        for (group, stats) in raw.groups.iter().zip(&stats) {
            let linears = method.quantize(group, stats.as_ref(), &mut notes)?;
            for (member, linear) in group.members.iter().zip(linears) {
                model.add_linear(&member.name, linear.as_ref())?;
                packed.push(linear.into());
            }
        }
        drop(stats);
        let block = raw.block(packed)?;
        for (name, gain) in [
            (native::ATTENTION_NORM, &block.attention_norm),
            (native::MLP_NORM, &block.mlp_norm),
        ] {
            model.add_tensor(&weight_name(&module(layer, name)), gain.clone())?;
        }
        let biased = raw.members().zip(block.linears());
        for (member, bias) in biased.filter_map(|(m, l)| Some((m, l.bias.as_ref()?))) {
            model.add_tensor(&format!("{}.bias", member.name), bias.clone())?;
        }
        if let Some(flow) = &mut flow
            && layer + 1 < config.layers
        {
            flow.advance(&block)?;
        }
    }
    progress(config.layers, config.layers)?;
    Ok(Quantized { model, notes })
}

/// A model as it is quantized: some tensors a method may bring itself, and random ones are made
/// on the GPU, where there is one.
struct Read<'a> {
    source: &'a dyn WeightSource,
    brought: Option<&'a dyn Brought>,
    gpu: Option<&'a Gpu>,
}

impl WeightSource for Read<'_> {
    fn config(&self) -> &Config {
        self.source.config()
    }

    fn name(&self) -> &str {
        self.source.name()
    }

    fn source_format(&self) -> &str {
        self.source.source_format()
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let brought = self.brought.map(|b| b.tensor(name)).transpose()?;
        match brought.flatten() {
            Some(values) => Ok(values),
            None => {
                let make = |what: &Untrained, seed| match self.gpu {
                    Some(gpu) => random::through_gpu(gpu, what, seed),
                    None => random::on_cpu(what, seed),
                };
                self.source.tensor_by(name, expected, &make)
            }
        }
    }

    fn sha256(&self) -> Result<String> {
        self.source.sha256()
    }

    fn warnings(&self) -> Vec<String> {
        self.source.warnings()
    }
}

/// The four groups of a block, in the order of [`RawBlock::groups`].
const QKV: usize = 0;
const O: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

/// One block as the source has it, in F32.
struct RawBlock {
    groups: [Group; GROUPS],
    /// Biases of q, k, v; empty where the family has none.
    biases: Vec<Vec<f32>>,
    attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    layer: usize,
}

impl RawBlock {
    fn read(source: &dyn WeightSource, config: &Config, layer: usize) -> Result<Self> {
        let hidden = config.hidden_size;
        let q_width = config.heads * config.head_dim;
        let kv_width = config.kv_heads * config.head_dim;
        let ffn = config.intermediate_size;
        let member = |name: &str, role, rows, cols| {
            let name = module(layer, name);
            let data = source.tensor(&weight_name(&name), &[rows, cols])?;
            Ok::<_, Error>(Member {
                name,
                role,
                weight: Matrix { rows, cols, data },
            })
        };
        let group = |members, foldable| Group { members, foldable };
        let norm = |name: &str| source.tensor(&weight_name(&module(layer, name)), &[hidden]);
        let biases = if config.qkv_bias {
            [("q", q_width), ("k", kv_width), ("v", kv_width)]
                .into_iter()
                .map(|(x, width)| {
                    source.tensor(
                        &module(layer, &format!("self_attn.{x}_proj.bias")),
                        &[width],
                    )
                })
                .collect::<Result<_>>()?
        } else {
            vec![]
        };
        Ok(RawBlock {
            groups: [
                group(
                    vec![
                        member("self_attn.q_proj", Role::Query, q_width, hidden)?,
                        member("self_attn.k_proj", Role::Key, kv_width, hidden)?,
                        member("self_attn.v_proj", Role::Value, kv_width, hidden)?,
                    ],
                    true,
                ),
                group(
                    vec![member("self_attn.o_proj", Role::Output, hidden, q_width)?],
                    // A narrower v_proj feeds several heads: no scale per input channel.
                    config.heads == config.kv_heads,
                ),
                group(
                    vec![
                        member("mlp.gate_proj", Role::Gate, ffn, hidden)?,
                        member("mlp.up_proj", Role::Up, ffn, hidden)?,
                    ],
                    true,
                ),
                group(
                    vec![member("mlp.down_proj", Role::Down, hidden, ffn)?],
                    true,
                ),
            ],
            biases,
            attention_norm: norm(native::ATTENTION_NORM)?,
            mlp_norm: norm(native::MLP_NORM)?,
            layer,
        })
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.groups.iter().flat_map(|g| &g.members)
    }

    /// Lets the method choose scales per group, all from the block as it was calibrated, then
    /// moves them: into the consumers' columns, out of the producer's rows or gains, and out of
    /// the statistics.
    fn fold(
        &mut self,
        method: &dyn QuantMethod,
        stats: &mut [Option<LayerStats>; GROUPS],
        notes: &mut Notes,
    ) -> Result<()> {
        let mut scales = vec![];
        for (group, stats) in self.groups.iter().zip(stats.iter()) {
            // Asked of every group, because a method may count those that cannot be folded.
            let chosen = method.fold(group, stats.as_ref(), notes)?;
            scales.push(chosen.filter(|_| group.foldable));
        }
        for (g, scales) in scales.into_iter().enumerate() {
            let Some(mut scales) = scales else { continue };
            match g {
                QKV => absorb_into_gain(&mut self.attention_norm, &mut scales),
                GATE_UP => absorb_into_gain(&mut self.mlp_norm, &mut scales),
                O => {
                    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
                    self.groups[QKV].members[2].weight.scale_rows(&inverse);
                    if let Some(bias) = self.biases.get_mut(2) {
                        bias.iter_mut().zip(&inverse).for_each(|(b, s)| *b *= s);
                    }
                }
                DOWN => {
                    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
                    self.groups[GATE_UP].members[1].weight.scale_rows(&inverse);
                }
                _ => unreachable!("a block has four groups"),
            }
            self.groups[g].scale_inputs(&scales);
            if let Some(stats) = &mut stats[g] {
                *stats = stats.scaled(&scales);
            }
        }
        Ok(())
    }

    /// The block with its weights as they are, in F32 or F16.
    fn unquantized(&self, dtype: DType) -> Result<Block> {
        let linears = self.members().map(|member| {
            let Matrix { rows, cols, data } = &member.weight;
            if dtype == DType::F16
                && let Some(w) = data.iter().find(|w| !f16::from_f32(**w).is_finite())
            {
                return Err(Error::unsupported(
                    format!("`{}` holds {w}, which FP16 cannot", member.name),
                    "on a GPU calibration runs in FP16: use --device cpu for this checkpoint",
                ));
            }
            let linear: Arc<dyn PackedLinear> = Arc::new(Dense::new(dtype, data, (*rows, *cols))?);
            Ok(linear)
        });
        self.block(linears.collect::<Result<_>>()?)
    }

    /// The block over these linears (q, k, v, o, gate, up, down).
    fn block(&self, linears: Vec<Arc<dyn PackedLinear>>) -> Result<Block> {
        let mut linears = linears.into_iter();
        let mut biases = self.members().zip(&self.biases);
        let mut next = |biased: bool| -> Result<Linear> {
            let weight = linears
                .next()
                .ok_or_else(|| Error::defect("a method packed fewer linears than it was given"))?;
            let bias = match biased.then(|| biases.next()).flatten() {
                Some((member, bias)) => {
                    let name = format!("{}.bias", member.name);
                    Some(to_f16(&name, bias, &[bias.len()])?)
                }
                None => None,
            };
            Ok(Linear { weight, bias })
        };
        let gain = |name: &str, values: &[f32]| {
            let name = weight_name(&module(self.layer, name));
            to_f16(&name, values, &[values.len()])
        };
        Ok(Block {
            attention_norm: gain(native::ATTENTION_NORM, &self.attention_norm)?,
            q: next(true)?,
            k: next(true)?,
            v: next(true)?,
            o: next(false)?,
            mlp_norm: gain(native::MLP_NORM, &self.mlp_norm)?,
            gate: next(false)?,
            up: next(false)?,
            down: next(false)?,
        })
    }
}

/// Divides a norm's gain by the scales and replaces each scale by what the gain, stored in F16,
/// really gives away, so that the fold itself costs no accuracy. Channels whose gain F16 cannot
/// hold afterwards stay as they are.
fn absorb_into_gain(gain: &mut [f32], scales: &mut [f32]) {
    for (gain, scale) in gain.iter_mut().zip(scales) {
        let folded = f16::from_f32(*gain / *scale).to_f32();
        if folded.is_normal() {
            *scale = *gain / folded;
            *gain = folded;
        } else {
            *scale = 1.0;
        }
    }
}

/// Refuses a head that `place` brings for tied embeddings, unless it is the embedding (F16) that
/// runs in its place.
fn check_tied(place: &str, head: &[f32], embedding: &Tensor) -> Result<()> {
    with_slice::<f16, _>("embedding", embedding, |embedding| {
        let mut pairs = head.iter().map(|x| f16::from_f32(*x)).zip(embedding);
        let found = match pairs.position(|(head, embedding)| head != *embedding) {
            Some(at) => format!("{} at {at}, where that has {}", head[at], embedding[at]),
            None if head.len() != embedding.len() => {
                format!("{} values, where that has {}", head.len(), embedding.len())
            }
            None => return Ok(()),
        };
        Err(untied(Path::new(place), found))
    })
}

fn f16_tensor(source: &dyn WeightSource, name: &str, shape: &[usize]) -> Result<Tensor> {
    to_f16(name, &source.tensor(name, shape)?, shape)
}

/// Refuses values that are not finite in FP16.
fn to_f16(name: &str, values: &[f32], shape: &[usize]) -> Result<Tensor> {
    let narrow: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
    if let Some(at) = narrow.iter().position(|x| !x.is_finite()) {
        return Err(Error::unsupported(
            format!(
                "tensor `{name}` holds {} at {at}, which FP16 cannot",
                values[at]
            ),
            "embedding, norms, biases and head are kept in FP16; use a checkpoint without such \
             values",
        ));
    }
    Ok(Tensor::from_vec(narrow, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_into_a_gain_keeps_the_product() {
        let before = [1.0f32, 0.3337, -2.0, 0.0, 1e-30, 60000.0];
        let mut gain = before;
        let mut scales = [3.0f32, 0.7, 1.9, 2.0, 5.0, 1e-3];
        absorb_into_gain(&mut gain, &mut scales);
        for ((before, after), scale) in before.iter().zip(&gain).zip(&scales) {
            assert!((after * scale - before).abs() <= 1e-6 * before.abs());
        }
        assert_eq!(f16::from_f32(gain[1]).to_f32(), gain[1]);
        // Zero, underflow and overflow leave the channel alone.
        assert_eq!(scales[3..], [1.0, 1.0, 1.0]);
    }
}
