//! `int8-a8`: weights stored as in [`int8`](super::int8) with one scale per output, and inputs
//! that are quantized to INT8 per token when the product runs.
//!
//! `sum = Σ code(x) · code(w)` is exact in I32, `y = (sum · x_scale) · weight_scale` in F32 from
//! left to right: results are the same to the last bit for any number of threads and on every
//! instruction set. [`activations`](super::activations) has the whole arithmetic.

use super::activations::{Activations, check_inputs};
use super::cpu::int8_dot::{self, Weights};
use super::gpu::{GpuWeight, ManyRows};
use super::int8::Int8;
use super::random::Untrained;
use super::{FormatSpec, PackedLinear, Stored, Tensors, bad_spec, not_on_cpu};
use crate::Result;
use candle_core::{Device, Tensor};
use half::f16;

/// A weight of symmetric 8-bit integers whose inputs are rounded to such integers as well.
pub struct Int8A8 {
    weight: Int8,
}

impl Int8A8 {
    /// `codes` row-major `[n_out, k_in]`, `scales` one per output.
    ///
    /// # Errors
    /// Lengths that contradict `shape`, and rows of more than
    /// [`MAX_INPUTS`](super::activations::MAX_INPUTS).
    pub fn new(codes: &[i8], scales: &[f16], shape: (usize, usize)) -> Result<Self> {
        check_inputs(shape)?;
        let weight = Int8::per_row(codes, scales, shape)?;
        Ok(Self { weight })
    }
}

impl PackedLinear for Int8A8 {
    fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }

    fn spec(&self) -> FormatSpec {
        spec()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match x.device() {
            Device::Cpu => self.weight.slices(|codes, scales| {
                int8_dot::forward(Weights::new(codes, scales, self.shape()), x)
            }),
            other => Err(not_on_cpu(other)),
        }
    }

    fn activations(&self) -> Option<Activations> {
        Some(Activations::Int8)
    }

    fn dequantize(&self) -> Result<Vec<f32>> {
        self.weight.dequantize()
    }

    fn stored(&self) -> Vec<Stored> {
        self.weight.stored()
    }

    fn kernel(&self, _rows: usize) -> String {
        int8_dot::kernel_name()
    }

    fn gpu(&self) -> Option<GpuWeight<'_>> {
        self.weight.gpu().map(|weight| GpuWeight {
            many_rows: ManyRows::Int8Inputs,
            ..weight
        })
    }
}

const NAME: &str = "int8-a8";

/// The one spec of this format.
pub fn spec() -> FormatSpec {
    FormatSpec {
        format: NAME.into(),
        bits: 8,
        group_size: -1,
    }
}

/// Loads [`Int8A8`].
pub struct Format;

impl super::Format for Format {
    fn names(&self) -> &'static [&'static str] {
        &[NAME]
    }

    fn load(
        &self,
        spec: &FormatSpec,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Box<dyn PackedLinear>> {
        check(spec, shape)?;
        let weight = Int8::load(true, shape, tensors)?;
        Ok(Box::new(Int8A8 { weight }))
    }

    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        check(spec, shape)?;
        Int8::untrained(true, shape)
    }
}

fn check(spec: &FormatSpec, shape: (usize, usize)) -> Result<()> {
    match spec == &self::spec() {
        true => check_inputs(shape),
        false => Err(bad_spec(spec, "8 bits and group size -1")),
    }
}
