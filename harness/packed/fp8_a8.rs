//! `fp8-e4m3-a8`: weights stored as in [`fp8`](super::fp8) (E4M3), and inputs that are quantized to
//! E4M3 per token when the product runs.
//!
//! CPUs multiply no FP8 numbers, so inputs are rounded to E4M3 and kept as F32, where products of
//! two E4M3 numbers are exact; sums are F32 in the order of the F32 kernels. The result is that of
//! quantized inputs; the speed says nothing of hardware that has FP8 units.
//! `y = (sum · x_scale) · weight_scale` from left to right; [`activations`]
//! has the whole arithmetic.

use super::activations::{self, Activations, check_inputs};
use super::cpu::rounded;
use super::cpu::rows::{Elements, Scales};
use super::fp8::{E4m3, Fp8, Kind};
use super::gpu::{GpuWeight, ManyRows};
use super::random::Untrained;
use super::{FormatSpec, PackedLinear, Stored, Tensors, bad_spec, not_on_cpu};
use crate::Result;
use candle_core::{Device, Tensor};

/// A weight of E4M3 codes whose inputs are rounded to E4M3 as well.
pub struct Fp8A8 {
    weight: Fp8,
}

impl Fp8A8 {
    /// `codes` row-major `[n_out, k_in]` E4M3, `scales` `[n_out]`.
    ///
    /// # Errors
    /// Lengths that contradict `shape`, a code that is not a finite number, and rows of more than
    /// [`MAX_INPUTS`](super::activations::MAX_INPUTS).
    pub fn new(codes: &[u8], scales: &[f32], shape: (usize, usize)) -> Result<Self> {
        check_inputs(shape)?;
        let weight = Fp8::new(Kind::E4m3, codes, scales, shape)?;
        Ok(Self { weight })
    }
}

impl PackedLinear for Fp8A8 {
    fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }

    fn spec(&self) -> FormatSpec {
        spec()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match x.device() {
            Device::Cpu => self.weight.slices(|codes, scales| {
                let codes = Elements::<E4m3>::new(codes, self.shape(), Scales::None);
                rounded::forward(codes, scales, activations::e4m3, x)
            }),
            other => Err(not_on_cpu(other)),
        }
    }

    fn activations(&self) -> Option<Activations> {
        Some(Activations::E4m3)
    }

    fn dequantize(&self) -> Result<Vec<f32>> {
        self.weight.dequantize()
    }

    fn stored(&self) -> Vec<Stored> {
        self.weight.stored()
    }

    fn kernel(&self, rows: usize) -> String {
        rounded::kernel_name(rows, self.shape().1)
    }

    fn gpu(&self) -> Option<GpuWeight<'_>> {
        self.weight.gpu().map(|weight| GpuWeight {
            many_rows: ManyRows::Fp8Inputs,
            ..weight
        })
    }
}

const NAME: &str = "fp8-e4m3-a8";

/// The one spec of this format.
pub fn spec() -> FormatSpec {
    FormatSpec {
        format: NAME.into(),
        bits: 8,
        group_size: -1,
    }
}

/// Loads [`Fp8A8`].
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
        let weight = Fp8::load(Kind::E4m3, shape, tensors)?;
        Ok(Box::new(Fp8A8 { weight }))
    }

    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        check(spec, shape)?;
        Fp8::untrained(Kind::E4m3, shape)
    }

    fn check(&self, _spec: &FormatSpec, name: &str, bytes: &[u8]) -> Result<()> {
        match name {
            "codes" => Fp8::check(Kind::E4m3, bytes),
            _ => Ok(()),
        }
    }
}

fn check(spec: &FormatSpec, shape: (usize, usize)) -> Result<()> {
    match spec == &self::spec() {
        true => check_inputs(shape),
        false => Err(bad_spec(spec, "8 bits and group size -1")),
    }
}
