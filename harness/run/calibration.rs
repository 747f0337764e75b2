//! Calibration texts on their way through the blocks, and what each group of linears sees of them.
//!
//! The decoder runs through [`Kernels`], on the CPU or on a GPU. While a block is calibrated an
//! [`Observer`] sums up every input of its linears. On a GPU the residual streams of all texts stay on the device, and so do the
//! sums, until they are complete; of the model one block at a time is there.

use crate::device::{Args, Buffer, Claim, Gpu};
use crate::memory::Part;
use crate::model::config::Config;
use crate::model::decoder::{Block, Observer, Shared};
use crate::model::kernels::Kernels;
use crate::model::kv_cache::{KvCache, KvPrecision, KvShape};
use crate::model::layout::{INPUTS, Input};
use crate::model::linear::Linear;
use crate::model::rope::Rope;
use crate::packed::{self, PackedLinear, dense::Dense};
use crate::quant::LayerStats;
use crate::quant::solver::{InputSums, Solver, cpu::Cpu, gpu::GpuSolver};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use safetensors::tensor::View;
use std::cell::RefCell;
use std::sync::Arc;

/// The calibration texts between two blocks.
pub struct Flow {
    config: Config,
    kernels: Arc<dyn Kernels>,
    solver: Arc<dyn Solver>,
    rope: Rope,
    cache: KvCache,
    /// One `[tokens, hidden]` F32 residual stream per window.
    streams: Vec<Held>,
    /// Room for one of them, where the decoder adds to it in place.
    scratch: Option<Buffer>,
}

/// A tensor, and what counts it where an allocator does not.
struct Held {
    tensor: Tensor,
    _claim: Option<Claim>,
}

/// A block where the kernels work.
struct Placed {
    block: Block,
    _claims: Vec<Claim>,
}

impl Flow {
    /// The streams that the embedding, F16 `[vocab, hidden]` on the CPU, begins.
    pub fn new(
        config: &Config,
        kernels: &Arc<dyn Kernels>,
        embedding: &Tensor,
        windows: &[Vec<u32>],
        kv: KvPrecision,
    ) -> Result<Self> {
        let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
        let shape = KvShape {
            layers: 1,
            batch: 1,
            capacity: longest,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let dims = (longest, config.hidden_size);
        let mut flow = Flow {
            config: config.clone(),
            rope: Rope::new(config, longest, |table| kernels.place(table))?,
            cache: KvCache::new(kernels.kv_cache(shape, kv)?, longest),
            streams: vec![],
            scratch: match kernels.gpu() {
                Some(gpu) => Some(gpu.buffer(dims, DType::F32, Part::Activations)?),
                None => None,
            },
            solver: match kernels.gpu() {
                Some(gpu) => Arc::new(GpuSolver::new(gpu.clone())),
                None => Arc::new(Cpu),
            },
            kernels: kernels.clone(),
        };
        let mut claims = vec![];
        let table = Dense::from_tensor(flow.place(embedding, &mut claims)?)?;
        for ids in windows {
            let ids = kernels.ids(ids, 1)?;
            let stream = flow.keep(kernels.embed(&table, &ids)?)?;
            flow.streams.push(stream);
        }
        // What reads the table has to end before it goes.
        kernels.synchronize()?;
        Ok(flow)
    }

    /// Statistics of the inputs of [`INPUTS`], with this block as it stands in the source, in the
    /// dtype of the activations.
    pub fn statistics(&mut self, block: Block) -> Result<Vec<LayerStats>> {
        let placed = self.placed(&block)?;
        drop(block);
        let widths = INPUTS
            .iter()
            .map(|input| (input.linears[0].shape)(&self.config).1);
        let sums: Vec<_> = widths.map(|k| self.solver.sums(k)).collect();
        let recorder = Recorder {
            sums: RefCell::new(sums.into_iter().collect::<Result<_>>()?),
        };
        for stream in &self.streams {
            self.run(&placed.block, self.lend(stream)?, Some(&recorder))?;
        }
        self.kernels.synchronize()?;
        drop(placed);
        let sums = recorder.sums.into_inner().into_iter();
        sums.map(|sums| sums.finish()).collect()
    }

    /// Replaces every stream by what the (quantized) block makes of it.
    pub fn advance(&mut self, block: &Block) -> Result<()> {
        let placed = self.placed(block)?;
        for i in 0..self.streams.len() {
            let stream = self.streams[i].tensor.clone();
            self.streams[i].tensor = self.run(&placed.block, stream, None)?;
        }
        self.kernels.synchronize()
    }

    fn run(
        &self,
        block: &Block,
        stream: Tensor,
        observer: Option<&dyn Observer>,
    ) -> Result<Tensor> {
        let kernels = self.kernels.as_ref();
        let shared = Shared {
            config: &self.config,
            rope: &self.rope,
            kernels,
            observer,
        };
        kernels.seek(0)?;
        block.forward(stream, 1, &shared, &self.cache.layers[0], 0)
    }

    /// What a step returned, kept beyond the step's next run.
    fn keep(&self, x: Tensor) -> Result<Held> {
        let Some(gpu) = self.kernels.gpu() else {
            return Ok(Held {
                tensor: x,
                _claim: None,
            });
        };
        let (tensor, claim) = gpu
            .buffer(x.dims(), DType::F32, Part::Activations)?
            .into_parts();
        copy(gpu, &x, &tensor)?;
        Ok(Held {
            tensor,
            _claim: Some(claim),
        })
    }

    /// A stream for a pass that must leave it as it is.
    fn lend(&self, stream: &Held) -> Result<Tensor> {
        let (Some(gpu), Some(scratch)) = (self.kernels.gpu(), &self.scratch) else {
            return Ok(stream.tensor.clone());
        };
        let lent = scratch.tensor().narrow(0, 0, stream.tensor.dim(0)?)?;
        copy(gpu, &stream.tensor, &lent)?;
        Ok(lent)
    }

    fn placed(&self, block: &Block) -> Result<Placed> {
        let (mut claims, mut of_gains) = (vec![], vec![]);
        let block = Block::new(
            &self.config,
            |row| {
                let Linear { weight, bias } = block.linear(row.slot);
                let bias = bias.as_ref();
                Ok(Linear {
                    weight: self.place_weight(weight, &mut claims)?,
                    bias: bias.map(|b| self.place(b, &mut claims)).transpose()?,
                })
            },
            |row| self.place(&block.gains[&row.norm], &mut of_gains),
        )?;
        claims.extend(of_gains);
        Ok(Placed {
            block,
            _claims: claims,
        })
    }

    fn place_weight(
        &self,
        weight: &Arc<dyn PackedLinear>,
        claims: &mut Vec<Claim>,
    ) -> Result<Arc<dyn PackedLinear>> {
        if self.kernels.gpu().is_none() {
            return Ok(weight.clone());
        }
        let stored = weight.stored();
        let placed = packed::load(&weight.spec(), weight.shape(), &mut |name| {
            let found = stored.iter().find(|s| s.name == name);
            let found =
                found.ok_or_else(|| Error::defect(format!("a packed weight without `{name}`")))?;
            self.place(&found.tensor, claims)
        })?;
        Ok(placed.into())
    }

    /// A tensor of the CPU where the kernels work.
    fn place(&self, tensor: &Tensor, claims: &mut Vec<Claim>) -> Result<Tensor> {
        let Some(gpu) = self.kernels.gpu() else {
            return Ok(tensor.clone());
        };
        let buffer = gpu.buffer(tensor.dims(), tensor.dtype(), Part::Weights)?;
        let (placed, claim) = buffer.into_parts();
        gpu.driver()
            .write(&View::data(tensor), gpu.address(&placed)?)?;
        claims.push(claim);
        Ok(placed)
    }
}

/// Copies F32 numbers on a device.
fn copy(gpu: &Gpu, from: &Tensor, to: &Tensor) -> Result<()> {
    let n = from.elem_count();
    let args = Args::new()
        .with(gpu.address(from)?)
        .with(gpu.address(to)?)
        .with(n as i64);
    gpu.launch("copy_f32", [n.div_ceil(1024), 1, 1], 256, args)
}

/// Sums up the inputs of a block's linears.
struct Recorder {
    /// In the order of [`INPUTS`].
    sums: RefCell<Vec<Box<dyn InputSums>>>,
}

impl Observer for Recorder {
    fn observe(&self, input: Input, x: &Tensor) -> Result<()> {
        self.sums.borrow_mut()[input as usize].add(x)
    }
}
