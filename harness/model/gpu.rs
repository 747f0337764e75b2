//! The steps of a decoder on a GPU, one launch each. The kernels stand beside this file (`*.cu`).
//!
//! The residual stream is F32; every other activation is F16. Each step writes into a buffer of
//! its own that grows with the largest call and is then kept, so that decoding allocates nothing
//! and can be recorded as a graph. Kernels read the position of the current token from the
//! device, so that one recorded step serves every position.

use super::kernels::{Kernels, Placing, Projected};
use super::kv_cache::format::Stored;
use super::kv_cache::{KvPrecision, KvShape, LayerCache};
use super::linear::Linear;
use crate::device::{Args, Buffer, Claim, Gpu, Graph};
use crate::lock::lock;
use crate::memory::{self, Part};
use crate::packed::PackedLinear;
use crate::packed::dense::Dense;
use crate::packed::gpu::{Choice, Output, Product, Products};
use crate::packed::random::{self, Untrained};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::View;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Tokens of all sequences of one prefill step.
const PREFILL_ROWS: usize = 2048;
/// Rows of logits of one step.
const LOGIT_ROWS: usize = 256;

/// Head sizes that the attention kernels were compiled for.
pub const HEAD_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];

/// Threads of a block of the attention kernels (`DECODE_THREADS`, `PREFILL_THREADS`).
const ATTENTION_THREADS: u32 = 128;
/// Queries of a block of prefill attention (`PREFILL_QUERIES`).
const PREFILL_QUERIES: usize = 64;
/// Cached positions below which another slice of the context does not pay.
const SLICE: usize = 128;

/// A position that no call has.
const UNKNOWN: u64 = u64::MAX;

/// The steps on one GPU.
pub struct GpuKernels {
    gpu: Gpu,
    products: Products,
    graphs: bool,
    /// By step; a step's tensors are views of the front of its buffer.
    buffers: Mutex<HashMap<Slot, Buffer>>,
    /// What a model was put into, counted as long as this lives.
    claims: Mutex<Vec<Claim>>,
    /// U32 `[1]`: tokens already in the cache.
    position: Buffer,
    /// What `position` holds, as far as the host knows.
    known_position: Arc<AtomicU64>,
    recording: AtomicBool,
}

/// The buffers of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    Ids,
    Next,
    Residual,
    Normalized,
    /// Outputs of up to three linears of one input.
    Product(usize),
    Attended,
    /// Results of the slices of a context.
    Partial,
    /// Last rows of the sequences of a prompt.
    Last,
    Logits,
}

impl Slot {
    fn part(self) -> Part {
        match self {
            Slot::Ids | Slot::Next => Part::Other,
            Slot::Partial => Part::Workspace,
            _ => Part::Activations,
        }
    }
}

impl GpuKernels {
    /// `graphs`: whether [`Kernels::record`] records.
    pub fn new(gpu: Gpu, choice: Choice, graphs: bool) -> Result<Self> {
        Ok(GpuKernels {
            products: Products::new(gpu.clone(), choice),
            graphs,
            buffers: Mutex::default(),
            claims: Mutex::default(),
            position: gpu.zeros(1, DType::U32, Part::Other)?,
            known_position: Arc::new(AtomicU64::new(UNKNOWN)),
            recording: AtomicBool::new(false),
            gpu,
        })
    }

    /// A view of a step's buffer, which grows if it has to.
    fn slot(&self, slot: Slot, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let count: usize = dims.iter().product();
        let mut buffers = lock(&self.buffers);
        let held = buffers.get(&slot).map_or(0, |b| b.tensor().elem_count());
        if held < count {
            // The old one goes first: the two never exist together.
            buffers.remove(&slot);
            buffers.insert(slot, self.gpu.buffer(count, dtype, slot.part())?);
        }
        let Some(buffer) = buffers.get(&slot) else {
            return Err(Error::defect("a step without a buffer"));
        };
        Ok(buffer.tensor().narrow(0, 0, count)?.reshape(dims)?)
    }

    fn products(&self, linears: &[(&Linear, &Tensor)], x: &Tensor, output: Output) -> Result<()> {
        let products: Vec<Product> = linears
            .iter()
            .map(|(linear, y)| Product {
                weight: linear.weight.as_ref(),
                bias: linear.bias.as_ref(),
                y,
            })
            .collect();
        self.products.run(&products, x, output)
    }

    fn attend_one(
        &self,
        q: &Tensor,
        cache: &LayerCache,
        shape: &AttentionShape,
        out: &Tensor,
    ) -> Result<()> {
        let s = shape;
        let kernel = format!("attend_decode_{}_d{}", s.kv, s.head_dim);
        let driver = self.gpu.driver();
        let resident = driver.resident_blocks(&kernel, ATTENTION_THREADS)?;
        let places = (resident * driver.info().multiprocessors) as usize;
        let splits = splits(places, s.kv_heads * s.batch, s.capacity);
        let dims = [s.batch * s.heads * splits * (s.head_dim + 2)];
        let partial = self
            .gpu
            .address(&self.slot(Slot::Partial, DType::F32, &dims)?)?;
        self.gpu.launch(
            &kernel,
            [splits, s.kv_heads, s.batch],
            ATTENTION_THREADS,
            Args::new()
                .with(self.gpu.address(q)?)
                .with(self.gpu.address(&cache.k.codes)?)
                .with(self.gpu.address(&cache.v.codes)?)
                .with(partial)
                .with(self.gpu.address(self.position.tensor())?)
                .with(s.batch as i32)
                .with(s.heads as i32)
                .with(s.kv_heads as i32)
                .with(s.head_dim as i32)
                .with(s.capacity as i32)
                .with(splits as i32)
                .with(s.scale()),
        )?;
        self.gpu.launch(
            "attend_combine",
            [s.heads, s.batch, 1],
            ATTENTION_THREADS,
            Args::new()
                .with(partial)
                .with(self.gpu.address(out)?)
                .with(s.batch as i32)
                .with(s.heads as i32)
                .with(s.head_dim as i32)
                .with(splits as i32),
        )
    }

    fn attend_many(
        &self,
        q: &Tensor,
        cache: &LayerCache,
        shape: &AttentionShape,
        out: &Tensor,
    ) -> Result<()> {
        let s = shape;
        self.gpu.launch(
            &format!("attend_prefill_{}_d{}", s.kv, s.head_dim),
            [s.tokens.div_ceil(PREFILL_QUERIES), s.heads, s.batch],
            ATTENTION_THREADS,
            Args::new()
                .with(self.gpu.address(q)?)
                .with(self.gpu.address(&cache.k.codes)?)
                .with(self.gpu.address(&cache.v.codes)?)
                .with(self.gpu.address(out)?)
                .with(self.gpu.address(self.position.tensor())?)
                .with(s.batch as i32)
                .with(s.tokens as i32)
                .with(s.heads as i32)
                .with(s.kv_heads as i32)
                .with(s.head_dim as i32)
                .with(s.capacity as i32)
                .with(s.scale()),
        )
    }

    fn rotate_append(
        &self,
        qkv: &Projected,
        cache: &LayerCache,
        placing: &Placing,
        shape: &AttentionShape,
    ) -> Result<()> {
        let s = shape;
        self.gpu.launch(
            &format!("rotate_append_{}", s.kv),
            [s.batch * s.tokens, 1, 1],
            256,
            Args::new()
                .with(self.gpu.address(&qkv.q)?)
                .with(self.gpu.address(&qkv.k)?)
                .with(self.gpu.address(&qkv.v)?)
                .with(self.gpu.address(&placing.rope.cos)?)
                .with(self.gpu.address(&placing.rope.sin)?)
                .with(self.gpu.address(&cache.k.codes)?)
                .with(self.gpu.address(&cache.v.codes)?)
                .with(self.gpu.address(self.position.tensor())?)
                .with(s.batch as i32)
                .with(s.tokens as i32)
                .with(s.heads as i32)
                .with(s.kv_heads as i32)
                .with(s.head_dim as i32)
                .with(s.capacity as i32),
        )
    }
}

/// Slices of the context of each of `heads`, of which the card runs `places` at a time: as many as
/// it has places for, since one more would run after all others, and none of them too short.
fn splits(places: usize, heads: usize, capacity: usize) -> usize {
    (places / heads.max(1)).clamp(1, capacity.div_ceil(SLICE).max(1))
}

/// Sizes of one call of attention.
struct AttentionShape {
    /// What the kernels' names say of the cache.
    kv: &'static str,
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
}

impl AttentionShape {
    fn new(q: &Tensor, cache: &LayerCache, placing: &Placing) -> Result<Self> {
        let (_, capacity, kv_heads, head_dim) = cache.k.codes.dims4()?;
        if !HEAD_DIMS.contains(&head_dim) {
            return Err(Error::unsupported(
                format!("attention heads of {head_dim} channels on a GPU"),
                format!("sizes it has: {HEAD_DIMS:?}; use --device cpu"),
            ));
        }
        let (kv, values) = (cache.k.format, cache.v.format);
        if kv.id() != values.id() {
            return Err(Error::unsupported(
                format!(
                    "keys in {} beside values in {} on a GPU",
                    kv.id(),
                    values.id()
                ),
                "store both alike, or use --device cpu",
            ));
        }
        Ok(AttentionShape {
            kv: kv.kernel(),
            batch: placing.batch,
            tokens: placing.tokens,
            heads: q.dim(1)? / head_dim,
            kv_heads,
            head_dim,
            capacity,
        })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// A recorded step. Where it leaves the position, only the device knows.
struct Step {
    graph: Box<dyn Graph>,
    known_position: Arc<AtomicU64>,
    gpu: Gpu,
    /// What [`Gpu::releases`] was.
    releases: u64,
}

impl Graph for Step {
    fn is_current(&self) -> bool {
        self.gpu.releases() == self.releases
    }

    fn replay(&self) -> Result<()> {
        self.known_position.store(UNKNOWN, Relaxed);
        self.graph.replay()
    }
}

impl Kernels for GpuKernels {
    fn device(&self) -> &Device {
        self.gpu.device()
    }

    fn gpu(&self) -> Option<&Gpu> {
        Some(&self.gpu)
    }

    fn activation_dtype(&self) -> DType {
        DType::F16
    }

    fn chunk_tokens(&self, batch: usize) -> usize {
        (PREFILL_ROWS / batch.max(1)).max(1)
    }

    fn logit_rows(&self) -> usize {
        LOGIT_ROWS
    }

    fn product_name(&self, weight: &dyn PackedLinear, rows: usize) -> String {
        self.products.name(weight, rows)
    }

    fn upload(&self, bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let buffer = self.gpu.buffer(shape, dtype, memory::current())?;
        let (tensor, claim) = buffer.into_parts();
        self.gpu.driver().write(bytes, self.gpu.address(&tensor)?)?;
        lock(&self.claims).push(claim);
        Ok(tensor)
    }

    fn place(&self, tensor: Tensor) -> Result<Tensor> {
        self.upload(&View::data(&tensor), tensor.dtype(), tensor.dims())
    }

    fn fill(&self, what: &Untrained, seed: u64) -> Result<Tensor> {
        let buffer = self
            .gpu
            .buffer(&what.dims[..], what.dtype, memory::current())?;
        let (tensor, claim) = buffer.into_parts();
        random::on_gpu(&self.gpu, what, seed, &tensor)?;
        lock(&self.claims).push(claim);
        Ok(tensor)
    }

    fn kv_cache(&self, shape: KvShape, precision: KvPrecision) -> Result<Vec<LayerCache>> {
        let dims = (shape.batch, shape.capacity, shape.kv_heads, shape.head_dim);
        precision.layers(shape.layers, |format| {
            let buffer = self.gpu.buffer(dims, format.dtype(), Part::KvCache)?;
            Ok(Stored::in_buffer(format, buffer))
        })
    }

    fn ids(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        let dims = [batch, ids.len() / batch.max(1)];
        let tensor = self.slot(Slot::Ids, DType::U32, &dims)?;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        self.gpu
            .driver()
            .write(&bytes, self.gpu.address(&tensor)?)?;
        Ok(tensor)
    }

    fn seek(&self, position: usize) -> Result<()> {
        if self.known_position.load(Relaxed) == position as u64 || self.recording.load(Relaxed) {
            return Ok(());
        }
        let bytes = (position as u32).to_ne_bytes();
        let to = self.gpu.address(self.position.tensor())?;
        self.gpu.driver().write(&bytes, to)?;
        self.known_position.store(position as u64, Relaxed);
        Ok(())
    }

    fn advance(&self, tokens: usize) -> Result<()> {
        let args = Args::new()
            .with(self.gpu.address(self.position.tensor())?)
            .with(tokens as u32);
        self.gpu.launch("advance", [1, 1, 1], 1, args)?;
        if !self.recording.load(Relaxed) {
            self.known_position.fetch_add(tokens as u64, Relaxed);
        }
        Ok(())
    }

    fn embed(&self, table: &Dense, ids: &Tensor) -> Result<Tensor> {
        let (vocab, hidden) = table.shape();
        let rows = ids.elem_count();
        let x = self.slot(Slot::Residual, DType::F32, &[rows, hidden])?;
        let args = Args::new()
            .with(self.gpu.address(ids)?)
            .with(self.gpu.address(table.codes())?)
            .with(self.gpu.address(&x)?)
            .with(rows as i32)
            .with(hidden as i32)
            .with(vocab as i32);
        self.gpu.launch("embed", [rows, 1, 1], 128, args)?;
        Ok(x)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let h = self.slot(Slot::Normalized, DType::F16, &[rows, hidden])?;
        let args = Args::new()
            .with(self.gpu.address(x)?)
            .with(self.gpu.address(gain)?)
            .with(self.gpu.address(&h)?)
            .with(rows as i32)
            .with(hidden as i32)
            .with(eps as f32);
        self.gpu.launch("rms_norm", [rows, 1, 1], 256, args)?;
        Ok(h)
    }

    fn linears(&self, linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        let rows = x.dim(0)?;
        let ys = linears
            .iter()
            .enumerate()
            .map(|(i, l)| self.slot(Slot::Product(i), DType::F16, &[rows, l.weight.shape().0]))
            .collect::<Result<Vec<_>>>()?;
        let pairs: Vec<_> = linears.iter().copied().zip(&ys).collect();
        self.products(&pairs, x, Output::F16)?;
        Ok(ys)
    }

    fn add_linear(&self, x: Tensor, linear: &Linear, h: &Tensor) -> Result<Tensor> {
        self.products(&[(linear, &x)], h, Output::AddF32)?;
        Ok(x)
    }

    fn attend(&self, qkv: Projected, cache: &LayerCache, placing: &Placing) -> Result<Tensor> {
        let shape = AttentionShape::new(&qkv.q, cache, placing)?;
        self.rotate_append(&qkv, cache, placing, &shape)?;
        let out = self.slot(Slot::Attended, DType::F16, qkv.q.dims())?;
        match shape.tokens {
            1 => self.attend_one(&qkv.q, cache, &shape, &out)?,
            _ => self.attend_many(&qkv.q, cache, &shape, &out)?,
        }
        Ok(out)
    }

    fn swiglu(&self, gate: Tensor, up: Tensor) -> Result<Tensor> {
        let n = gate.elem_count();
        let (gate_at, up_at) = (self.gpu.address(&gate)?, self.gpu.address(&up)?);
        // In place: nothing else reads the gate.
        let args = Args::new()
            .with(gate_at)
            .with(up_at)
            .with(gate_at)
            .with(n as i64);
        self.gpu
            .launch("swiglu", [n.div_ceil(8 * 256), 1, 1], 256, args)?;
        Ok(gate)
    }

    fn last_rows(&self, h: &Tensor) -> Result<Tensor> {
        let (batch, tokens, hidden) = h.dims3()?;
        let last = self.slot(Slot::Last, DType::F16, &[batch, hidden])?;
        let args = Args::new()
            .with(self.gpu.address(h)?)
            .with(self.gpu.address(&last)?)
            .with(tokens as i32)
            .with(hidden as i32);
        self.gpu.launch("last_rows", [batch, 1, 1], 256, args)?;
        Ok(last)
    }

    fn logits(&self, head: &dyn PackedLinear, h: &Tensor) -> Result<Tensor> {
        let y = self.slot(Slot::Logits, DType::F32, &[h.dim(0)?, head.shape().0])?;
        let product = Product {
            weight: head,
            bias: None,
            y: &y,
        };
        self.products.run(&[product], h, Output::F32)?;
        Ok(y)
    }

    fn greedy(&self, logits: &Tensor) -> Result<Tensor> {
        let (rows, vocab) = logits.dims2()?;
        let next = self.slot(Slot::Next, DType::U32, &[rows, 1])?;
        let args = Args::new()
            .with(self.gpu.address(logits)?)
            .with(self.gpu.address(&next)?)
            .with(vocab as i32);
        self.gpu.launch("argmax", [rows, 1, 1], 1024, args)?;
        Ok(next)
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        if !self.graphs {
            return Ok(None);
        }
        self.recording.store(true, Relaxed);
        let graph = self.gpu.driver().record(body);
        self.recording.store(false, Relaxed);
        Ok(Some(Box::new(Step {
            graph: graph?,
            known_position: self.known_position.clone(),
            gpu: self.gpu.clone(),
            releases: self.gpu.releases(),
        })))
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.driver().synchronize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_a_context_run_at_once() {
        // 132 multiprocessors with four blocks each: 512 blocks, where 17 slices made 544.
        assert_eq!(splits(528, 32, 4096), 16);
        assert_eq!(splits(528, 8, 1 << 20), 66);
        assert_eq!(splits(528, 600, 4096), 1);
        // Slices of too few keys do not pay.
        assert_eq!(splits(528, 8, 300), 3);
        assert_eq!(splits(528, 8, 1), 1);
        assert_eq!(splits(0, 8, 300), 1);
    }
}
