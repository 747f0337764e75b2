//! Models without weights: the shapes of published models, filled with random codes in their
//! stored form. Memory and speed depend on shapes and stored bytes, not on values; quality is
//! not there to be measured.

use super::assembly::{self, Parts};
use super::config::Config;
use super::decoder::Decoder;
use super::kernels::Kernels;
use crate::Result;
use crate::packed::random::{Content, Untrained};
use crate::packed::{self, FormatSpec, PackedLinear, dense};
use candle_core::{DType, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
        spec,
        kernels: kernels.as_ref(),
        next_seed: AtomicU64::new(seed.wrapping_mul(SEED_STRIDE)),
    };
    assembly::decoder(config, positions, kernels, &parts)
}

/// Seeds that neighbouring models keep between them: more than a model has tensors.
const SEED_STRIDE: u64 = 1 << 20;

struct RandomParts<'a> {
    spec: &'a FormatSpec,
    kernels: &'a dyn Kernels,
    next_seed: AtomicU64,
}

impl RandomParts<'_> {
    fn seed(&self) -> u64 {
        // A weight may use two: its own and the next.
        self.next_seed.fetch_add(2, Relaxed)
    }
}

impl Parts for RandomParts<'_> {
    fn half(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let [rows, cols] = *shape {
            let numbers = dense::untrained(DType::F16, (rows, cols));
            return self.kernels.fill(&numbers, self.seed());
        }
        let value = if name.ends_with(".bias") { 0.0 } else { 1.0 };
        let content = Content::Constant(value);
        let what = Untrained::new("codes", DType::F16, shape, content);
        self.kernels.fill(&what, 0)
    }

    fn weight(&self, _module: &str, shape: (usize, usize)) -> Result<Box<dyn PackedLinear>> {
        let seed = self.seed();
        packed::random_by(self.spec, shape, &mut |what| self.kernels.fill(what, seed))
    }
}
