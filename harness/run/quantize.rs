//! Walks a model block by block: calibrate, fold, quantize, pass on.
//!
//! Blocks are calibrated in order, each seeing the outputs of the already quantized blocks before
//! it ([`super::calibration`]). The source is read tensor by tensor, and packed blocks go to a
//! file as they come, so that of a large model one block at a time is in memory.

use super::calibration::Flow;
use crate::device::Gpu;
use crate::formats::native::PackedModel;
use crate::formats::source::{SourceInfo, WeightSource, untied};
use crate::model::config::Config;
use crate::model::decoder::Block;
use crate::model::kernels::{CpuKernels, Kernels};
use crate::model::kv_cache::KvPrecision;
use crate::model::layout::{
    self, EMBEDDING, FINAL_NORM, HEAD, INPUTS, Norm, Producer, Slot, bias_name, norms, weight_name,
};
use crate::model::linear::Linear;
use crate::packed::random::{self, Untrained};
use crate::packed::{PackedLinear, dense::Dense, with_slice};
use crate::quant::{
    Brought, Calibration, Group, LayerStats, Matrix, Member, ModelShape, Notes, QuantMethod, Role,
};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::f16;
use std::collections::BTreeMap;
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
        tensors: &layout::layout(&config),
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
    let embedding = f16_tensor(source, EMBEDDING, &[vocab, hidden])?;
    model.add_tensor(FINAL_NORM, f16_tensor(source, FINAL_NORM, &[hidden])?)?;
    if !config.tied_head {
        model.add_tensor(HEAD, f16_tensor(source, HEAD, &[vocab, hidden])?)?;
    } else if let Some(head) = brought.map(|b| b.tensor(HEAD)).transpose()?.flatten() {
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
    model.add_tensor(EMBEDDING, embedding)?;

    let mut notes = Notes::new();
    for layer in 0..config.layers {
        progress(layer, config.layers)?;
        let mut raw = RawBlock::read(source, &config, layer)?;
        let mut stats: Vec<Option<LayerStats>> = match &mut flow {
            Some(flow) => {
                let dtype = setting.kernels.activation_dtype();
                let stats = flow.statistics(raw.unquantized(dtype)?)?;
                stats.into_iter().map(Some).collect()
            }
            None => INPUTS.iter().map(|_| None).collect(),
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
        for row in norms(&config) {
            model.add_tensor(&row.tensor(layer), block.gains[&row.norm].clone())?;
        }
        for (row, linear) in layout::linears().zip(&block.linears) {
            if let Some(bias) = &linear.bias {
                model.add_tensor(&bias_name(&row.module(layer)), bias.clone())?;
            }
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
    fn info(&self) -> &SourceInfo {
        self.source.info()
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
}

/// What methods call a linear.
fn role(slot: Slot) -> Role {
    match slot {
        Slot::Q => Role::Query,
        Slot::K => Role::Key,
        Slot::V => Role::Value,
        Slot::O => Role::Output,
        Slot::Gate => Role::Gate,
        Slot::Up => Role::Up,
        Slot::Down => Role::Down,
    }
}

/// One block as the source has it, in F32.
struct RawBlock<'a> {
    config: &'a Config,
    layer: usize,
    /// In the order of [`INPUTS`].
    groups: Vec<Group>,
    biases: BTreeMap<Slot, Vec<f32>>,
    gains: BTreeMap<Norm, Vec<f32>>,
}

impl<'a> RawBlock<'a> {
    fn read(source: &dyn WeightSource, config: &'a Config, layer: usize) -> Result<Self> {
        let (mut groups, mut biases) = (vec![], BTreeMap::new());
        for input in &INPUTS {
            let mut members = vec![];
            for row in input.linears {
                let (name, (rows, cols)) = (row.module(layer), (row.shape)(config));
                let data = source.tensor(&weight_name(&name), &[rows, cols])?;
                if (row.has_bias)(config) {
                    biases.insert(row.slot, source.tensor(&bias_name(&name), &[rows])?);
                }
                members.push(Member {
                    name,
                    role: role(row.slot),
                    weight: Matrix { rows, cols, data },
                });
            }
            groups.push(Group {
                members,
                foldable: (input.is_foldable)(config),
            });
        }
        let gains = norms(config)
            .map(|row| {
                let gain = source.tensor(&row.tensor(layer), &[(row.width)(config)])?;
                Ok((row.norm, gain))
            })
            .collect::<Result<_>>()?;
        Ok(RawBlock {
            config,
            layer,
            groups,
            biases,
            gains,
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
        stats: &mut [Option<LayerStats>],
        notes: &mut Notes,
    ) -> Result<()> {
        let mut scales = vec![];
        for (group, stats) in self.groups.iter().zip(stats.iter()) {
            // Asked of every group, because a method may count those that cannot be folded.
            let chosen = method.fold(group, stats.as_ref(), notes)?;
            scales.push(chosen.filter(|_| group.foldable));
        }
        for (g, (scales, input)) in scales.into_iter().zip(&INPUTS).enumerate() {
            let Some(mut scales) = scales else { continue };
            match input.producer {
                Producer::Norm(norm) => match self.gains.get_mut(&norm) {
                    Some(gain) => absorb_into_gain(gain, &mut scales),
                    None => continue,
                },
                Producer::Linear(slot) => self.divide_outputs(slot, &scales),
            }
            self.groups[g].scale_inputs(&scales);
            if let Some(stats) = &mut stats[g] {
                *stats = stats.scaled(&scales);
            }
        }
        Ok(())
    }

    /// Divides what a linear gives, channel by channel.
    fn divide_outputs(&mut self, slot: Slot, scales: &[f32]) {
        let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        let mut members = self.groups.iter_mut().flat_map(|g| &mut g.members);
        if let Some(member) = members.nth(slot as usize) {
            member.weight.scale_rows(&inverse);
        }
        if let Some(bias) = self.biases.get_mut(&slot) {
            bias.iter_mut().zip(&inverse).for_each(|(b, s)| *b *= s);
        }
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

    /// The block over these linears, in the order of [`Slot`].
    fn block(&self, linears: Vec<Arc<dyn PackedLinear>>) -> Result<Block> {
        let layer = self.layer;
        let f16 = |name: &str, values: &[f32]| to_f16(name, values, &[values.len()]);
        Block::new(
            self.config,
            |row| {
                let weight = linears.get(row.slot as usize).ok_or_else(|| {
                    Error::defect("a method packed fewer linears than it was given")
                })?;
                let bias = self.biases.get(&row.slot);
                let bias = bias.map(|values| f16(&bias_name(&row.module(layer)), values));
                Ok(Linear {
                    weight: weight.clone(),
                    bias: bias.transpose()?,
                })
            },
            |row| f16(&row.tensor(layer), &self.gains[&row.norm]),
        )
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
