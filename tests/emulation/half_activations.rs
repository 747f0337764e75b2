//! The CPU with the activations of a GPU: F16 between the steps.

use candle_core::{DType, Device, Tensor};
use quantbench::Result;
use quantbench::device::Graph;
use quantbench::model::kernels::{CpuKernels, Kernels, Placing, Projected};
use quantbench::model::kv_cache::{KvPrecision, KvShape, LayerCache};
use quantbench::model::linear::Linear;
use quantbench::packed::PackedLinear;
use quantbench::packed::dense::Dense;
use quantbench::packed::random::Untrained;

/// Says how far F16 activations alone take a model from itself.
pub struct HalfActivations;

fn rounded(x: Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F16)?.to_dtype(DType::F32)?)
}

impl Kernels for HalfActivations {
    fn device(&self) -> &Device {
        CpuKernels.device()
    }

    fn activation_dtype(&self) -> DType {
        DType::F16
    }

    fn chunk_tokens(&self, batch: usize) -> usize {
        CpuKernels.chunk_tokens(batch)
    }

    fn logit_rows(&self) -> usize {
        CpuKernels.logit_rows()
    }

    fn product_name(&self, weight: &dyn PackedLinear, rows: usize) -> String {
        CpuKernels.product_name(weight, rows)
    }

    fn upload(&self, bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
        CpuKernels.upload(bytes, dtype, shape)
    }

    fn place(&self, tensor: Tensor) -> Result<Tensor> {
        CpuKernels.place(tensor)
    }

    fn fill(&self, what: &Untrained, seed: u64) -> Result<Tensor> {
        CpuKernels.fill(what, seed)
    }

    fn kv_cache(&self, shape: KvShape, precision: KvPrecision) -> Result<Vec<LayerCache>> {
        CpuKernels.kv_cache(shape, precision)
    }

    fn ids(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        CpuKernels.ids(ids, batch)
    }

    fn seek(&self, position: usize) -> Result<()> {
        CpuKernels.seek(position)
    }

    fn advance(&self, tokens: usize) -> Result<()> {
        CpuKernels.advance(tokens)
    }

    fn embed(&self, table: &Dense, ids: &Tensor) -> Result<Tensor> {
        CpuKernels.embed(table, ids)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        rounded(CpuKernels.rms_norm(x, gain, eps)?)
    }

    fn linears(&self, linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        let ys = CpuKernels.linears(linears, x)?;
        ys.into_iter().map(rounded).collect()
    }

    fn add_linear(&self, x: Tensor, linear: &Linear, h: &Tensor) -> Result<Tensor> {
        CpuKernels.add_linear(x, linear, h)
    }

    fn attend(&self, qkv: Projected, cache: &LayerCache, placing: &Placing) -> Result<Tensor> {
        rounded(CpuKernels.attend(qkv, cache, placing)?)
    }

    fn swiglu(&self, gate: Tensor, up: Tensor) -> Result<Tensor> {
        rounded(CpuKernels.swiglu(gate, up)?)
    }

    fn last_rows(&self, h: &Tensor) -> Result<Tensor> {
        CpuKernels.last_rows(h)
    }

    fn logits(&self, head: &dyn PackedLinear, h: &Tensor) -> Result<Tensor> {
        CpuKernels.logits(head, h)
    }

    fn greedy(&self, logits: &Tensor) -> Result<Tensor> {
        CpuKernels.greedy(logits)
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        CpuKernels.record(body)
    }

    fn synchronize(&self) -> Result<()> {
        CpuKernels.synchronize()
    }
}
