//! `fp8-e4m3`, `fp8-e5m2`: one byte per weight, `codes` U8 `[n_out, k_in]`, and one scale per
//! output, `scales` F32 `[n_out]` (group size -1): `w = decode(code) * scale`.
//!
//! The codes are those of the OCP 8-bit floating point specification (OFP8, revision 1.0).
//! E4M3 has no infinity and one NaN (0x7f, and 0xff); E5M2 has both. Neither is ever produced,
//! and a weight that holds one is refused, so that kernels need not look for them.

use super::cpu::isa::Isa;
use super::cpu::rows::{Element, Elements, Scales};
use super::gpu::{GpuWeight, ManyRows};
use super::random::{self, Codes, Content, Untrained};
use super::{
    FormatSpec, PackedLinear, Stored, Tensors, bad_spec, check_len, check_shape, cpu, mismatch,
    not_on_cpu, take, with_slice,
};
use crate::Result;
use candle_core::{DType, Device, Tensor};

/// Which 8-bit floating point number a code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 4 bits of exponent, 3 of mantissa; up to ±448.
    E4m3,
    /// 5 bits of exponent, 2 of mantissa; up to ±57344.
    E5m2,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::E4m3, Kind::E5m2];

    /// Name of the format.
    pub fn name(self) -> &'static str {
        match self {
            Kind::E4m3 => "fp8-e4m3",
            Kind::E5m2 => "fp8-e5m2",
        }
    }

    /// The largest number.
    pub fn max(self) -> f32 {
        match self {
            Kind::E4m3 => 448.0,
            Kind::E5m2 => 57344.0,
        }
    }

    /// What a file records about a matrix of these numbers.
    pub fn spec(self) -> FormatSpec {
        FormatSpec {
            format: self.name().into(),
            bits: 8,
            group_size: -1,
        }
    }

    /// The kind that a spec names, if it is one of ours.
    fn of(spec: &FormatSpec) -> Result<Kind> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.spec() == *spec)
            .ok_or_else(|| bad_spec(spec, "8 bits and group size -1"))
    }

    /// Code of the largest number; greater ones, without the sign, are no numbers.
    fn max_code(self) -> u8 {
        match self {
            Kind::E4m3 => 0x7e,
            Kind::E5m2 => 0x7b,
        }
    }

    fn mantissa_bits(self) -> u32 {
        match self {
            Kind::E4m3 => 3,
            Kind::E5m2 => 2,
        }
    }

    fn bias(self) -> u32 {
        match self {
            Kind::E4m3 => 7,
            Kind::E5m2 => 15,
        }
    }

    /// The code nearest to `value`, ties to the even code; saturates at ±[`Kind::max`], infinity
    /// included. NaN, which has no nearest number, becomes zero of its sign.
    pub fn encode(self, value: f32) -> u8 {
        let sign = ((value.to_bits() >> 24) & 0x80) as u8;
        let magnitude = value.abs();
        if magnitude.is_nan() {
            return sign;
        }
        let mantissa = self.mantissa_bits();
        // Exponent of the smallest normal number; below it, codes are multiples of a fixed unit.
        let smallest = 1 - self.bias() as i32;
        let code = if magnitude < 2f32.powi(smallest) {
            let units = magnitude * 2f32.powi(mantissa as i32 - smallest);
            units.round_ties_even() as u32
        } else {
            // Rounding the integer rounds the number: a carry out of the mantissa is the next
            // power of two.
            let drop = 23 - mantissa;
            let bits = magnitude.to_bits();
            let rounded = bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1);
            (rounded >> drop) - ((127 - self.bias()) << mantissa)
        };
        sign | code.min(self.max_code() as u32) as u8
    }

    /// The number that a code stands for; NaN or infinite for the codes that are none.
    pub fn decode(self, code: u8) -> f32 {
        let mantissa_bits = self.mantissa_bits();
        let bias = self.bias() as i32;
        let exponent = ((code & 0x7f) >> mantissa_bits) as i32;
        let mantissa = (code & ((1 << mantissa_bits) - 1)) as f32 / (1 << mantissa_bits) as f32;
        let magnitude = match (code & 0x7f, self) {
            (0x7f, Kind::E4m3) | (0x7d.., Kind::E5m2) => f32::NAN,
            (0x7c, Kind::E5m2) => f32::INFINITY,
            _ if exponent == 0 => mantissa * 2f32.powi(1 - bias),
            _ => (1.0 + mantissa) * 2f32.powi(exponent - bias),
        };
        if code & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }
}

/// A weight of 8-bit floating point codes with a scale per output.
pub struct Fp8 {
    kind: Kind,
    codes: Tensor,
    scales: Tensor,
    shape: (usize, usize),
}

impl Fp8 {
    /// `codes` row-major `[n_out, k_in]`, `scales` `[n_out]`.
    ///
    /// # Errors
    /// Lengths that contradict `shape`, or a code that is not a finite number.
    pub fn new(kind: Kind, codes: &[u8], scales: &[f32], shape: (usize, usize)) -> Result<Self> {
        check_shape(shape)?;
        check_len("codes", shape.0 * shape.1, codes.len())?;
        check_len("scales", shape.0, scales.len())?;
        Self::checked(
            kind,
            Tensor::from_slice(codes, shape, &Device::Cpu)?,
            Tensor::from_slice(scales, shape.0, &Device::Cpu)?,
            shape,
        )
    }

    fn checked(kind: Kind, codes: Tensor, scales: Tensor, shape: (usize, usize)) -> Result<Self> {
        // Bytes on another device were checked on their way there.
        if codes.device().is_cpu() {
            with_slice::<u8, _>("codes", &codes, |codes| Self::check(kind, codes))?;
        }
        Ok(Self {
            kind,
            codes,
            scales,
            shape,
        })
    }

    /// The weight made of stored `codes` and `scales`.
    pub(super) fn load(kind: Kind, shape: (usize, usize), tensors: &mut Tensors) -> Result<Self> {
        check_shape(shape)?;
        let codes = take(tensors, "codes", DType::U8, &[shape.0, shape.1])?;
        let scales = take(tensors, "scales", DType::F32, &[shape.0])?;
        Self::checked(kind, codes, scales, shape)
    }

    pub(super) fn slices<R>(&self, f: impl FnOnce(&[u8], &[f32]) -> Result<R>) -> Result<R> {
        with_slice("codes", &self.codes, |codes| {
            with_slice("scales", &self.scales, |scales| f(codes, scales))
        })
    }

    /// What a weight that nobody trained stores; see [`super::Format::untrained`].
    pub(super) fn untrained(kind: Kind, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        check_shape(shape)?;
        let (n_out, k_in) = shape;
        let positive = u32::from(kind.max_code()) + 1;
        let codes = Content::Codes(Codes {
            levels: 2 * positive,
            below: positive,
            resume: 0x80,
            row_bytes: k_in,
            row_bits: 8 * k_in,
        });
        let squares = (0..=kind.max_code()).map(|code| kind.decode(code).powi(2));
        let mean_square = squares.sum::<f32>() / positive as f32;
        let scale = Content::Constant(random::deviation(k_in) / mean_square.sqrt());
        Ok(vec![
            Untrained::new("codes", DType::U8, &[n_out, k_in], codes),
            Untrained::new("scales", DType::F32, &[n_out], scale),
        ])
    }

    /// Refuses codes that are no finite numbers.
    pub(super) fn check(kind: Kind, codes: &[u8]) -> Result<()> {
        match codes.iter().find(|&&c| c & 0x7f > kind.max_code()) {
            Some(code) => Err(mismatch(
                "codes",
                "finite numbers",
                format!("code {code:#04x}, which is {}", kind.decode(*code)),
            )),
            None => Ok(()),
        }
    }
}

impl PackedLinear for Fp8 {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn spec(&self) -> FormatSpec {
        self.kind.spec()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match x.device() {
            Device::Cpu => self.slices(|codes, scales| {
                let scales = Scales::F32(scales);
                match self.kind {
                    Kind::E4m3 => cpu::forward(Elements::<E4m3>::new(codes, self.shape, scales), x),
                    Kind::E5m2 => cpu::forward(Elements::<E5m2>::new(codes, self.shape, scales), x),
                }
            }),
            other => Err(not_on_cpu(other)),
        }
    }

    fn dequantize(&self) -> Result<Vec<f32>> {
        let numbers: Vec<f32> = (0..=255).map(|code| self.kind.decode(code)).collect();
        let k_in = self.shape.1.max(1);
        self.slices(|codes, scales| {
            let number = |(i, &code): (usize, &u8)| numbers[code as usize] * scales[i / k_in];
            Ok(codes.iter().enumerate().map(number).collect())
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
            name: match self.kind {
                Kind::E4m3 => "e4m3",
                Kind::E5m2 => "e5m2",
            },
            codes: &self.codes,
            scales: Some(&self.scales),
            zeros: None,
            scales_per_row: 1,
            group: self.shape.1,
            many_rows: ManyRows::Dequantize,
        })
    }
}

/// Loads [`Fp8`].
pub struct Format;

impl super::Format for Format {
    fn names(&self) -> &'static [&'static str] {
        &["fp8-e4m3", "fp8-e5m2"]
    }

    fn load(
        &self,
        spec: &FormatSpec,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Box<dyn PackedLinear>> {
        Ok(Box::new(Fp8::load(Kind::of(spec)?, shape, tensors)?))
    }

    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        Fp8::untrained(Kind::of(spec)?, shape)
    }

    fn check(&self, spec: &FormatSpec, name: &str, bytes: &[u8]) -> Result<()> {
        match name {
            "codes" => Fp8::check(Kind::of(spec)?, bytes),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct E4m3;

impl Element for E4m3 {
    type Code = u8;
    const FACTOR: f32 = 256.0;

    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::V {
        // SAFETY: passed on; codes that are no numbers were refused.
        unsafe { S::e4m3(p) }
    }
}

#[derive(Clone, Copy)]
struct E5m2;

impl Element for E5m2 {
    type Code = u8;

    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::V {
        // SAFETY: passed on.
        unsafe { S::e5m2(p) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes of the finite numbers from zero up.
    fn codes(kind: Kind) -> impl Iterator<Item = u8> {
        0..=kind.max_code()
    }

    #[test]
    fn known_values() {
        let e4m3 = [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x39, 1.125),
            (0xc0, -2.0),
            (0x7e, 448.0),
        ];
        let e5m2 = [
            (0x01, 2f32.powi(-16)),
            (0x04, 2f32.powi(-14)),
            (0x3c, 1.0),
            (0xbd, -1.25),
            (0x7b, 57344.0),
            (0x7c, f32::INFINITY),
        ];
        for (code, value) in e4m3 {
            assert_eq!(Kind::E4m3.decode(code), value, "{code:#x}");
        }
        for (code, value) in e5m2 {
            assert_eq!(Kind::E5m2.decode(code), value, "{code:#x}");
        }
        assert!(Kind::E4m3.decode(0x7f).is_nan() && Kind::E4m3.decode(0xff).is_nan());
        assert!((0x7d..=0x7f).all(|c| Kind::E5m2.decode(c).is_nan()));
    }

    #[test]
    fn e5m2_is_the_upper_byte_of_a_half() {
        for code in 0..=255u8 {
            let half = half::f16::from_bits((code as u16) << 8).to_f32();
            let ours = Kind::E5m2.decode(code);
            assert!(
                ours == half || (ours.is_nan() && half.is_nan()),
                "{code:#x}"
            );
        }
    }

    #[test]
    fn every_number_encodes_to_itself() {
        for kind in Kind::ALL {
            for code in codes(kind) {
                assert_eq!(kind.encode(kind.decode(code)), code, "{kind:?} {code:#x}");
                let negative = code | 0x80;
                assert_eq!(kind.encode(kind.decode(negative)), negative);
            }
        }
    }

    #[test]
    fn halfway_goes_to_the_even_code_and_anything_else_to_the_nearer() {
        for kind in Kind::ALL {
            for (lower, upper) in codes(kind).zip(codes(kind).skip(1)) {
                let (a, b) = (kind.decode(lower), kind.decode(upper));
                let middle = (a + b) / 2.0;
                let even = if lower & 1 == 0 { lower } else { upper };
                assert_eq!(kind.encode(middle), even, "{kind:?} {lower:#x}");
                assert_eq!(kind.encode(-middle), even | 0x80);
                assert_eq!(kind.encode(middle.next_down()), lower);
                assert_eq!(kind.encode(middle.next_up()), upper);
            }
        }
    }

    #[test]
    fn saturates_and_never_makes_a_nan() {
        for kind in Kind::ALL {
            let max = kind.max();
            assert_eq!(kind.decode(kind.max_code()), max);
            for value in [
                max,
                max.next_up(),
                max * 1.07,
                1e30,
                f32::MAX,
                f32::INFINITY,
            ] {
                assert_eq!(kind.encode(value), kind.max_code(), "{kind:?} {value}");
                assert_eq!(kind.encode(-value), kind.max_code() | 0x80);
            }
            assert_eq!(kind.encode(f32::NAN) & 0x7f, 0);
            assert_eq!(kind.encode(f32::MIN_POSITIVE / 8.0), 0);
            // A sweep of bit patterns over the whole range of F32.
            for bits in (0..=u32::MAX).step_by(9973) {
                let code = kind.encode(f32::from_bits(bits));
                assert!(kind.decode(code).is_finite());
            }
        }
    }

    #[test]
    fn codes_that_are_no_numbers_are_refused() {
        for (kind, code) in [(Kind::E4m3, 0x7f), (Kind::E4m3, 0xff), (Kind::E5m2, 0xfc)] {
            assert!(Fp8::new(kind, &[0, code], &[1.0], (1, 2)).is_err());
        }
    }
}
