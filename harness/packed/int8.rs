//! `int8`: one two's-complement byte per weight, `codes` U8 `[n_out, k_in]`, and F16 `scales`
//! `[n_out]` (group size -1) or `[1]` for the whole matrix (group size 0): `w = code * scale`.

use super::cpu::isa::Isa;
use super::cpu::rows::{Element, Elements, Scales};
use super::gpu::{GpuWeight, ManyRows};
use super::random::{self, Codes, Content, Untrained};
use super::{
    FormatSpec, PackedLinear, Stored, Tensors, bad_spec, check_len, check_shape, cpu, not_on_cpu,
    take, with_slice,
};
use crate::Result;
use candle_core::{DType, Device, Tensor};
use half::f16;

/// What a file records about a matrix with one scale per output, or one for all.
pub fn spec(per_row: bool) -> FormatSpec {
    FormatSpec {
        format: "int8".into(),
        bits: 8,
        group_size: if per_row { -1 } else { 0 },
    }
}

/// A weight of symmetric 8-bit integers.
pub struct Int8 {
    codes: Tensor,
    scales: Tensor,
    shape: (usize, usize),
    per_row: bool,
}

impl Int8 {
    /// `codes` row-major `[n_out, k_in]`, `scales` one per output.
    ///
    /// # Errors
    /// Lengths that contradict `shape`.
    pub fn per_row(codes: &[i8], scales: &[f16], shape: (usize, usize)) -> Result<Self> {
        check_len("scales", shape.0, scales.len())?;
        Self::new(codes, scales, shape, true)
    }

    /// `codes` row-major `[n_out, k_in]`, one scale for all.
    ///
    /// # Errors
    /// A number of codes that contradicts `shape`.
    pub fn per_matrix(codes: &[i8], scale: f16, shape: (usize, usize)) -> Result<Self> {
        Self::new(codes, &[scale], shape, false)
    }

    fn new(codes: &[i8], scales: &[f16], shape: (usize, usize), per_row: bool) -> Result<Self> {
        check_shape(shape)?;
        check_len("codes", shape.0 * shape.1, codes.len())?;
        let bytes: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
        Ok(Self {
            codes: Tensor::from_vec(bytes, shape, &Device::Cpu)?,
            scales: Tensor::from_slice(scales, scales.len(), &Device::Cpu)?,
            shape,
            per_row,
        })
    }

    /// The weight made of stored `codes` and `scales`; one scale for all unless `per_row`.
    pub(super) fn load(
        per_row: bool,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Self> {
        check_shape(shape)?;
        let codes = take(tensors, "codes", DType::U8, &[shape.0, shape.1])?;
        let scales = if per_row { shape.0 } else { 1 };
        let scales = take(tensors, "scales", DType::F16, &[scales])?;
        Ok(Self {
            codes,
            scales,
            shape,
            per_row,
        })
    }

    pub(super) fn slices<R>(&self, f: impl FnOnce(&[u8], &[f16]) -> Result<R>) -> Result<R> {
        with_slice("codes", &self.codes, |codes| {
            with_slice("scales", &self.scales, |scales| f(codes, scales))
        })
    }

    /// What a weight that nobody trained stores; see [`super::Format::untrained`]. Codes are -127
    /// to 127, as methods use them: symmetric, so that weights have no mean.
    pub(super) fn untrained(per_row: bool, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        check_shape(shape)?;
        let (n_out, k_in) = shape;
        let codes = Content::Codes(Codes {
            levels: 255,
            below: 128,
            resume: 129,
            row_bytes: k_in,
            row_bits: 8 * k_in,
        });
        // Of a number drawn evenly from -n to n the mean square is n (n + 1) / 3.
        let root_mean_square = (127.0f32 * 128.0 / 3.0).sqrt();
        let scale = Content::Constant(random::deviation(k_in) / root_mean_square);
        let scales = if per_row { n_out } else { 1 };
        Ok(vec![
            Untrained::new("codes", DType::U8, &[n_out, k_in], codes),
            Untrained::new("scales", DType::F16, &[scales], scale),
        ])
    }
}

impl PackedLinear for Int8 {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn spec(&self) -> FormatSpec {
        spec(self.per_row)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match x.device() {
            Device::Cpu => self.slices(|codes, scales| {
                cpu::forward(
                    Elements::<I8>::new(codes, self.shape, Scales::F16(scales)),
                    x,
                )
            }),
            other => Err(not_on_cpu(other)),
        }
    }

    fn dequantize(&self) -> Result<Vec<f32>> {
        let k_in = self.shape.1.max(1);
        self.slices(|codes, scales| {
            let scale = |i: usize| scales[if self.per_row { i / k_in } else { 0 }].to_f32();
            let weight = |(i, &code): (usize, &u8)| code as i8 as f32 * scale(i);
            Ok(codes.iter().enumerate().map(weight).collect())
        })
    }

    fn stored(&self) -> Vec<Stored> {
        vec![
            Stored {
                name: "codes",
                tensor: self.codes.clone(),
            },
            Stored {
                name: "scales",
                tensor: self.scales.clone(),
            },
        ]
    }

    fn kernel(&self, rows: usize) -> String {
        cpu::kernel_name(rows)
    }

    fn gpu(&self) -> Option<GpuWeight<'_>> {
        Some(GpuWeight {
            name: "int8",
            codes: &self.codes,
            scales: Some(&self.scales),
            zeros: None,
            scales_per_row: usize::from(self.per_row),
            group: self.shape.1,
            many_rows: ManyRows::Dequantize,
        })
    }
}

/// Loads [`Int8`].
pub struct Format;

/// Whether a spec has one scale per output; else it has one for the matrix.
fn per_row(spec: &FormatSpec) -> Result<bool> {
    match (spec.bits, spec.group_size) {
        (8, -1) => Ok(true),
        (8, 0) => Ok(false),
        _ => Err(bad_spec(spec, "8 bits and group size -1 or 0")),
    }
}

impl super::Format for Format {
    fn names(&self) -> &'static [&'static str] {
        &["int8"]
    }

    fn load(
        &self,
        spec: &FormatSpec,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Box<dyn PackedLinear>> {
        Ok(Box::new(Int8::load(per_row(spec)?, shape, tensors)?))
    }

    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        Int8::untrained(per_row(spec)?, shape)
    }
}

#[derive(Clone, Copy)]
struct I8;

impl Element for I8 {
    type Code = u8;

    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::V {
        // SAFETY: passed on.
        unsafe { S::i8(p) }
    }
}
