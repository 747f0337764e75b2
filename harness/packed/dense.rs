//! `f32`, `f16`, `bf16`: weights as numbers of that type, `codes` `[n_out, k_in]`, no scale.

use super::cpu::isa::Isa;
use super::cpu::rows::{Element, Elements, Scales};
use super::gpu::{GpuWeight, ManyRows};
use super::random::{self, Content, Untrained};
use super::{
    FormatSpec, PackedLinear, Stored, Tensors, bad_spec, check_len, check_shape, cpu, mismatch,
    not_on_cpu, take, with_slice,
};
use crate::Result;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

/// What a file records about a matrix of this type.
pub fn spec(dtype: DType) -> FormatSpec {
    FormatSpec {
        format: dtype.as_str().into(),
        bits: 8 * dtype.size_in_bytes() as u32,
        group_size: 0,
    }
}

/// A weight in full or half precision.
pub struct Dense {
    codes: Tensor,
    shape: (usize, usize),
}

impl Dense {
    /// Rounds row-major `weights` `[n_out, k_in]` to `dtype` (F32, F16 or BF16), to nearest even.
    ///
    /// # Errors
    /// Another dtype, or a number of weights that contradicts `shape`.
    pub fn new(dtype: DType, weights: &[f32], shape: (usize, usize)) -> Result<Self> {
        check_shape(shape)?;
        check_len("codes", shape.0 * shape.1, weights.len())?;
        let codes = match dtype {
            DType::F32 => Tensor::from_slice(weights, shape, &Device::Cpu)?,
            DType::F16 => {
                let halves: Vec<_> = weights.iter().map(|&w| f16::from_f32(w)).collect();
                Tensor::from_vec(halves, shape, &Device::Cpu)?
            }
            DType::BF16 => {
                let halves: Vec<_> = weights.iter().map(|&w| bf16::from_f32(w)).collect();
                Tensor::from_vec(halves, shape, &Device::Cpu)?
            }
            other => return Err(mismatch("codes", "f32, f16 or bf16", other.as_str())),
        };
        Ok(Self { codes, shape })
    }

    /// Keeps a contiguous `[n_out, k_in]` tensor of F32, F16 or BF16 as it is.
    ///
    /// # Errors
    /// Another rank, dtype or layout.
    pub fn from_tensor(codes: Tensor) -> Result<Self> {
        let shape = codes.dims2()?;
        let dtype = match codes.dtype() {
            dtype @ (DType::F32 | DType::F16) => dtype,
            _ => DType::BF16,
        };
        let dims = [shape.0, shape.1];
        let codes = take(&mut |_| Ok(codes.clone()), "codes", dtype, &dims)?;
        Ok(Self { codes, shape })
    }

    /// The weights as they are stored, `[n_out, k_in]`.
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }
}

impl PackedLinear for Dense {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn spec(&self) -> FormatSpec {
        spec(self.codes.dtype())
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        fn run<E: Element>(codes: &[E::Code], shape: (usize, usize), x: &Tensor) -> Result<Tensor> {
            cpu::forward(Elements::<E>::new(codes, shape, Scales::None), x)
        }
        match (x.device(), self.codes.dtype()) {
            (Device::Cpu, DType::F32) => {
                with_slice("codes", &self.codes, |c| run::<F32>(c, self.shape, x))
            }
            (Device::Cpu, DType::F16) => {
                with_slice("codes", &self.codes, |c| run::<F16>(c, self.shape, x))
            }
            (Device::Cpu, _) => with_slice("codes", &self.codes, |c| run::<Bf16>(c, self.shape, x)),
            (other, _) => Err(not_on_cpu(other)),
        }
    }

    fn dequantize(&self) -> Result<Vec<f32>> {
        Ok(self
            .codes
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?)
    }

    fn stored(&self) -> Vec<Stored> {
        vec![Stored {
            name: "codes",
            tensor: self.codes.clone(),
        }]
    }

    fn kernel(&self, rows: usize) -> String {
        cpu::kernel_name(rows)
    }

    fn gpu(&self) -> Option<GpuWeight<'_>> {
        let (name, many_rows) = match self.codes.dtype() {
            DType::F16 => ("f16", ManyRows::Library),
            DType::BF16 => ("bf16", ManyRows::Fused),
            _ => ("f32", ManyRows::Fused),
        };
        Some(GpuWeight {
            name,
            codes: &self.codes,
            scales: None,
            zeros: None,
            scales_per_row: 0,
            group: self.shape.1,
            many_rows,
        })
    }
}

/// The numbers of a matrix that nobody trained, `[n_out, k_in]` F32, F16 or BF16: normal, with a
/// standard deviation of `1 / sqrt(k_in)`.
pub fn untrained(dtype: DType, (n_out, k_in): (usize, usize)) -> Untrained {
    let deviation = random::deviation(k_in);
    Untrained::new(
        "codes",
        dtype,
        &[n_out, k_in],
        Content::Normal { deviation },
    )
}

/// Loads [`Dense`].
pub struct Format;

/// The type that a spec names, if it is one of ours.
fn dtype_of(spec: &FormatSpec) -> Result<DType> {
    match (spec.format.as_str(), spec.bits, spec.group_size) {
        ("f32", 32, 0) => Ok(DType::F32),
        ("f16", 16, 0) => Ok(DType::F16),
        ("bf16", 16, 0) => Ok(DType::BF16),
        _ => Err(bad_spec(spec, "its own bits and group size 0")),
    }
}

impl super::Format for Format {
    fn names(&self) -> &'static [&'static str] {
        &["f32", "f16", "bf16"]
    }

    fn load(
        &self,
        spec: &FormatSpec,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Box<dyn PackedLinear>> {
        let dtype = dtype_of(spec)?;
        check_shape(shape)?;
        let codes = take(tensors, "codes", dtype, &[shape.0, shape.1])?;
        Ok(Box::new(Dense { codes, shape }))
    }

    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        check_shape(shape)?;
        Ok(vec![untrained(dtype_of(spec)?, shape)])
    }
}

/// F32 codes, which kernels of many inputs read in place.
#[derive(Clone, Copy)]
pub(super) struct F32;

impl Element for F32 {
    type Code = f32;

    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const f32) -> S::V {
        // SAFETY: passed on.
        unsafe { S::f32(p) }
    }
}

/// IEEE half codes.
#[derive(Clone, Copy)]
pub(super) struct F16;

impl Element for F16 {
    type Code = f16;

    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const f16) -> S::V {
        // SAFETY: `f16` is a transparent u16.
        unsafe { S::f16(p.cast()) }
    }
}

/// bfloat16 codes.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

impl Element for Bf16 {
    type Code = bf16;

    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const bf16) -> S::V {
        // SAFETY: `bf16` is a transparent u16.
        unsafe { S::bf16(p.cast()) }
    }
}
