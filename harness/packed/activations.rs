//! Executed activation quantization: a product that rounds each row of its inputs (each token) to
//! 8 bits before it multiplies, by a scale that is computed from that row alone ("dynamic per
//! token" in SmoothQuant, arXiv 2211.10438).
//!
//! The arithmetic is fixed to the last bit, so that kernels elsewhere can repeat it. Every
//! operation is IEEE F32, rounded to nearest even:
//!
//! 1. `largest` is the largest `|x|` of the row.
//! 2. `scale = max(largest / top, 2⁻¹²⁶)`, where `top` is 127 (INT8) or 448 (E4M3). It is 1 where
//!    `largest` is 0, and NaN where the row holds a NaN or an infinity.
//! 3. `code = round(x / scale)`: the quotient is rounded to F32 first, then to the nearest whole
//!    number or E4M3 number, ties to even. The codes of a row whose scale is NaN are 0. Nothing
//!    is left to saturate: rounding of the scale lifts `largest / scale` above `top` by 2⁻²³ of
//!    it at most, which rounds to `top`.
//! 4. `y = (sum · scale) · weight_scale`, where `sum` adds up products of codes: exactly in I32,
//!    then rounded to F32 (INT8), or in F32 in the order of the kernel (E4M3, whose products are
//!    exact). All outputs of a row whose scale is NaN are NaN.

use crate::{Error, Result};

/// How a product rounds a row of its inputs before it multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// Whole numbers from -127 to 127.
    Int8,
    /// FP8 E4M3 of the OCP specification (OFP8), up to ±448; arXiv 2209.05433.
    E4m3,
}

/// Inputs that a row may have: as F32 they fill the workspace of a thread, and sums of products
/// of 8-bit integers, one of them raised by 128 to be unsigned, stay below 2³¹.
pub const MAX_INPUTS: usize = 1 << 16;

/// Refuses a weight `(n_out, k_in)` of more inputs than that.
pub(super) fn check_inputs((_, k_in): (usize, usize)) -> Result<()> {
    if k_in <= MAX_INPUTS {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("activation quantization of rows of {k_in} inputs"),
        format!("at most {MAX_INPUTS}; use a precision that quantizes weights only"),
    ))
}

impl Activations {
    /// What the column `activation_dtype` says.
    pub fn name(self) -> &'static str {
        match self {
            Activations::Int8 => "int8 per token",
            Activations::E4m3 => "fp8-e4m3 per token",
        }
    }

    /// Replaces a row of inputs by what the product takes them for, `code · scale`; by NaN where
    /// the scale is NaN. For oracles: a product multiplies codes.
    pub fn round(self, row: &mut [f32]) {
        let mut codes = vec![0.0; row.len()];
        let scale = match self {
            Activations::Int8 => {
                let mut integers = vec![0; row.len()];
                let scale = int8(row, &mut integers);
                codes = integers.into_iter().map(f32::from).collect();
                scale
            }
            Activations::E4m3 => e4m3(row, &mut codes),
        };
        for (x, code) in row.iter_mut().zip(codes) {
            *x = code * scale;
        }
    }
}

/// Writes the INT8 codes of a row and returns their scale.
#[inline(always)]
pub(super) fn int8(row: &[f32], codes: &mut [i8]) -> f32 {
    let scale = scale(row, 127.0);
    if scale.is_nan() {
        codes.fill(0);
        return scale;
    }
    for (code, x) in codes.iter_mut().zip(row) {
        // Adding 1.5 · 2²³ leaves no fractional bits; the whole number is then in the lowest
        // ones, in two's complement. Vectorizes on every instruction set.
        *code = (x / scale + 12_582_912.0).to_bits() as i8;
    }
    scale
}

/// Writes the E4M3 numbers of a row, before scaling, and returns their scale.
#[inline(always)]
pub(super) fn e4m3(row: &[f32], numbers: &mut [f32]) -> f32 {
    let scale = scale(row, 448.0);
    if scale.is_nan() {
        numbers.fill(0.0);
        return scale;
    }
    for (number, x) in numbers.iter_mut().zip(row) {
        *number = nearest_e4m3(x / scale);
    }
    scale
}

/// The scale that maps the largest magnitude of a row to `top`.
#[inline(always)]
fn scale(row: &[f32], top: f32) -> f32 {
    // Magnitudes order as their bits do, with infinity and then NaN at the end.
    let mut largest = 0;
    for x in row {
        largest = largest.max((x.to_bits() & 0x7fff_ffff) as i32);
    }
    match f32::from_bits(largest as u32) {
        0.0 => 1.0,
        largest if largest.is_finite() => (largest / top).max(f32::MIN_POSITIVE),
        _ => f32::NAN,
    }
}

/// The E4M3 number nearest to `value`, ties to even, for magnitudes below 464 (halfway from 448
/// to what would follow it).
#[inline(always)]
fn nearest_e4m3(value: f32) -> f32 {
    // Subnormal numbers are multiples of 2⁻⁹, which are the last bits beside 1.5 · 2¹⁴.
    let subnormal = (value + 24_576.0) - 24_576.0;
    // Others keep 3 bits of mantissa; a carry out of it is the next power of two.
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7_ffff + ((bits >> 20) & 1));
    let normal = f32::from_bits(rounded & !0xf_ffff);
    match value.abs() < 1.0 / 64.0 {
        true => subnormal,
        false => normal,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fp8::Kind;
    use super::*;

    #[test]
    fn numbers_are_those_of_the_codec() {
        let check = |value: f32| {
            let expected = Kind::E4m3.decode(Kind::E4m3.encode(value));
            assert_eq!(nearest_e4m3(value), expected, "{value:e}");
        };
        for bits in (0..464f32.to_bits()).step_by(997) {
            check(f32::from_bits(bits));
            check(-f32::from_bits(bits));
        }
        // Every number, every halfway point and its neighbours.
        for code in 0..0x7e {
            let (a, b) = (Kind::E4m3.decode(code), Kind::E4m3.decode(code + 1));
            let middle = (a + b) / 2.0;
            for value in [a, middle.next_down(), middle, middle.next_up(), b] {
                check(value);
                check(-value);
            }
        }
    }

    #[test]
    fn the_largest_input_gets_the_largest_code() {
        // Scales of every rounding error, down to those that are held at 2⁻¹²⁶ and above.
        for bits in (0x0800_0000..f32::MAX.to_bits()).step_by(99_991) {
            let largest = f32::from_bits(bits);
            let (mut codes, mut numbers) = ([0; 2], [0.0; 2]);
            int8(&[largest, -largest], &mut codes);
            e4m3(&[largest, -largest], &mut numbers);
            assert_eq!(codes, [127, -127], "{largest:e}");
            assert_eq!(numbers, [448.0, -448.0], "{largest:e}");
        }
        let mut codes = [0; 2];
        let scale = int8(&[f32::MIN_POSITIVE, -1e-44], &mut codes);
        assert_eq!((scale, codes), (f32::MIN_POSITIVE, [1, 0]));
    }

    #[test]
    fn a_row_that_is_not_finite_has_no_scale() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut codes, mut numbers) = ([9; 3], [9.0; 3]);
            assert!(int8(&[1.0, bad, 2.0], &mut codes).is_nan());
            assert!(e4m3(&[1.0, bad, 2.0], &mut numbers).is_nan());
            assert_eq!((codes, numbers), ([0; 3], [0.0; 3]));
        }
    }
}
