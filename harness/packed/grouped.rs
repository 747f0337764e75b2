//! `uint-grouped`: unsigned codes of 2, 3, 4 or 8 bits with a scale and a zero point for each
//! group of neighbouring inputs of a row: `w = (code - zero) * scale`.
//!
//! * `codes` U8 `[n_out, ceil(k_in / 8) * bits]`: each row is a stream of codes, lowest bits
//!   first, so eight of them fill `bits` bytes; the last block of eight is padded with zeros.
//! * `scales` F16 `[n_out, groups]`, `groups = ceil(k_in / group_size)`: a last group may be short.
//! * `zeros` U8 `[ceil(n_out * groups * bits / 8)]`: one stream of all zero points, row after row.
//!
//! With 4 bits and groups of 128 that is 4 + (16 + 4) / 128 = 4.15625 bits per weight.

use super::cpu::isa::Isa;
use super::cpu::rows::Rows;
use super::gpu::{GpuWeight, ManyRows};
use super::random::{self, Codes, Content, Untrained};
use super::{
    FormatSpec, PackedLinear, Stored, Tensors, bad_spec, check_len, check_shape, cpu, mismatch,
    not_on_cpu, take, with_slice,
};
use crate::Result;
use candle_core::{DType, Device, Tensor};
use half::f16;

/// Codes of these widths exist.
pub const BITS: [u32; 4] = [2, 3, 4, 8];

/// What a file records about a matrix of such codes; `group_size` as in [`FormatSpec`].
pub fn spec(bits: u32, group_size: i64) -> FormatSpec {
    FormatSpec {
        format: "uint-grouped".into(),
        bits,
        group_size,
    }
}

/// How a matrix is cut into groups, and what that takes to store.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits: usize,
    /// As in [`FormatSpec`]: -1 for a whole row.
    group_size: i64,
    shape: (usize, usize),
}

impl Layout {
    /// # Errors
    /// Bits, a group size or a shape that does not exist.
    fn new(bits: u32, group_size: i64, shape: (usize, usize)) -> Result<Self> {
        let group = group_size == -1 || (group_size >= 8 && group_size % 8 == 0);
        if !BITS.contains(&bits) || !group {
            let expected = "2, 3, 4 or 8 bits and a group size of -1 or a multiple of 8";
            return Err(bad_spec(&spec(bits, group_size), expected));
        }
        check_shape(shape)?;
        Ok(Self {
            bits: bits as usize,
            group_size,
            shape,
        })
    }

    /// Inputs in a group (the last one may have fewer).
    fn group(&self) -> usize {
        // A multiple of eight, because groups begin where blocks of eight codes do.
        let row = self.shape.1.max(1).next_multiple_of(8);
        match usize::try_from(self.group_size) {
            Ok(group) => group.min(row),
            Err(_) => row,
        }
    }

    fn groups(&self) -> usize {
        self.shape.1.div_ceil(self.group())
    }

    fn row_bytes(&self) -> usize {
        self.shape.1.div_ceil(8) * self.bits
    }

    fn zero_bytes(&self) -> usize {
        (self.shape.0 * self.groups() * self.bits).div_ceil(8)
    }
}

/// A weight of grouped unsigned codes.
pub struct Grouped {
    layout: Layout,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
}

impl Grouped {
    /// Packs `codes` (row-major `[n_out, k_in]`, one per weight, each below `2^bits`) with
    /// `scales` and `zeros` (row-major `[n_out, ceil(k_in / group_size)]`). `group_size` is a
    /// multiple of 8, or -1 for whole rows.
    ///
    /// # Errors
    /// Bits or a group size that do not exist, lengths that contradict `shape`, or a code or zero
    /// point that does not fit.
    pub fn new(
        bits: u32,
        group_size: i64,
        codes: &[u8],
        scales: &[f16],
        zeros: &[u8],
        shape: (usize, usize),
    ) -> Result<Self> {
        let layout = Layout::new(bits, group_size, shape)?;
        let (n_out, k_in) = shape;
        let groups = layout.groups();
        check_len("codes", n_out * k_in, codes.len())?;
        check_len("scales", n_out * groups, scales.len())?;
        check_len("zeros", n_out * groups, zeros.len())?;
        for (part, values) in [("codes", codes), ("zeros", zeros)] {
            if let Some(value) = values.iter().find(|&&v| v as u32 >= 1 << bits) {
                return Err(mismatch(
                    part,
                    format!("values of {bits} bits"),
                    value.to_string(),
                ));
            }
        }
        let mut packed = vec![0; n_out * layout.row_bytes()];
        if k_in > 0 {
            let rows = packed.chunks_mut(layout.row_bytes());
            for (row, codes) in rows.zip(codes.chunks(k_in)) {
                pack(codes, layout.bits, row);
            }
        }
        let mut packed_zeros = vec![0; layout.zero_bytes()];
        pack(zeros, layout.bits, &mut packed_zeros);
        let device = &Device::Cpu;
        Ok(Self {
            layout,
            codes: Tensor::from_vec(packed, (n_out, layout.row_bytes()), device)?,
            scales: Tensor::from_slice(scales, (n_out, groups), device)?,
            zeros: Tensor::from_vec(packed_zeros, layout.zero_bytes(), &Device::Cpu)?,
        })
    }

    fn slices<R>(&self, f: impl FnOnce(&[u8], &[f16], &[u8]) -> Result<R>) -> Result<R> {
        with_slice("codes", &self.codes, |codes| {
            with_slice("scales", &self.scales, |scales| {
                with_slice("zeros", &self.zeros, |zeros| f(codes, scales, zeros))
            })
        })
    }

    fn product<const BITS: usize>(&self, x: &Tensor) -> Result<Tensor> {
        self.slices(|codes, scales, zeros| {
            cpu::forward(View::<BITS>::new(self.layout, codes, scales, zeros), x)
        })
    }
}

impl PackedLinear for Grouped {
    fn shape(&self) -> (usize, usize) {
        self.layout.shape
    }

    fn spec(&self) -> FormatSpec {
        spec(self.layout.bits as u32, self.layout.group_size)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match (x.device(), self.layout.bits) {
            (Device::Cpu, 2) => self.product::<2>(x),
            (Device::Cpu, 3) => self.product::<3>(x),
            (Device::Cpu, 4) => self.product::<4>(x),
            (Device::Cpu, _) => self.product::<8>(x),
            (other, _) => Err(not_on_cpu(other)),
        }
    }

    fn dequantize(&self) -> Result<Vec<f32>> {
        let layout = self.layout;
        let (n_out, k_in) = layout.shape;
        self.slices(|codes, scales, zeros| {
            let mut weights = Vec::with_capacity(n_out * k_in);
            for n in 0..n_out {
                let row = &codes[n * layout.row_bytes()..][..layout.row_bytes()];
                for k in 0..k_in {
                    let group = n * layout.groups() + k / layout.group();
                    let zero = unpack(zeros, layout.bits, group);
                    let code = unpack(row, layout.bits, k);
                    weights.push((code as f32 - zero as f32) * scales[group].to_f32());
                }
            }
            Ok(weights)
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
            Stored {
                name: "zeros",
                tensor: self.zeros.clone(),
            },
        ]
    }

    fn kernel(&self, rows: usize) -> String {
        cpu::kernel_name(rows)
    }

    fn gpu(&self) -> Option<GpuWeight<'_>> {
        Some(GpuWeight {
            name: match self.layout.bits {
                2 => "u2",
                3 => "u3",
                4 => "u4",
                _ => "u8",
            },
            codes: &self.codes,
            scales: Some(&self.scales),
            zeros: Some(&self.zeros),
            scales_per_row: self.layout.groups(),
            group: self.layout.group(),
            many_rows: ManyRows::Dequantize,
        })
    }
}

/// Loads [`Grouped`].
pub struct Format;

impl super::Format for Format {
    fn names(&self) -> &'static [&'static str] {
        &["uint-grouped"]
    }

    fn load(
        &self,
        spec: &FormatSpec,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Box<dyn PackedLinear>> {
        let layout = Layout::new(spec.bits, spec.group_size, shape)?;
        let n_out = shape.0;
        Ok(Box::new(Grouped {
            layout,
            codes: take(tensors, "codes", DType::U8, &[n_out, layout.row_bytes()])?,
            scales: take(tensors, "scales", DType::F16, &[n_out, layout.groups()])?,
            zeros: take(tensors, "zeros", DType::U8, &[layout.zero_bytes()])?,
        }))
    }

    /// Zero points are one of the two codes in the middle, so that weights have no mean.
    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>> {
        let layout = Layout::new(spec.bits, spec.group_size, shape)?;
        let (n_out, k_in) = shape;
        let (groups, row_bytes) = (layout.groups(), layout.row_bytes());
        // All codes of a width are valid, so a row of them is a row of random bytes.
        let codes = Content::Codes(Codes {
            levels: 256,
            below: 256,
            resume: 256,
            row_bytes,
            row_bits: layout.bits * k_in,
        });
        // Variance of an even draw from 2^bits codes, whose mean is half a code from the zero.
        let levels = (1u32 << layout.bits) as f32;
        let mean_square = (levels * levels - 1.0) / 12.0 + 0.25;
        let scale = Content::Constant(random::deviation(k_in) / mean_square.sqrt());
        let zeros = Content::Middle {
            bits: layout.bits,
            count: n_out * groups,
        };
        Ok(vec![
            Untrained::new("codes", DType::U8, &[n_out, row_bytes], codes),
            Untrained::new("scales", DType::F16, &[n_out, groups], scale),
            Untrained::new("zeros", DType::U8, &[layout.zero_bytes()], zeros),
        ])
    }
}

/// Writes `values` of `bits` bits each into `out`, which is zero, lowest bits first.
fn pack(values: &[u8], bits: usize, out: &mut [u8]) {
    for (i, &value) in values.iter().enumerate() {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let shifted = (value as u16) << shift;
        out[byte] |= shifted as u8;
        if shift + bits > 8 {
            out[byte + 1] |= (shifted >> 8) as u8;
        }
    }
}

/// The `i`-th value of `bits` bits in a stream.
#[inline(always)]
fn unpack(stream: &[u8], bits: usize, i: usize) -> u8 {
    let (byte, shift) = (i * bits / 8, i * bits % 8);
    let mut value = stream[byte] as u16;
    if shift + bits > 8 {
        value |= (stream[byte + 1] as u16) << 8;
    }
    ((value >> shift) & ((1 << bits) - 1)) as u8
}

/// The matrix as kernels read it.
#[derive(Clone, Copy)]
struct View<'a, const BITS: usize> {
    codes: &'a [u8],
    scales: &'a [f16],
    zeros: &'a [u8],
    shape: (usize, usize),
    row_bytes: usize,
    group: usize,
    groups: usize,
}

impl<'a, const BITS: usize> View<'a, BITS> {
    fn new(layout: Layout, codes: &'a [u8], scales: &'a [f16], zeros: &'a [u8]) -> Self {
        let n_out = layout.shape.0;
        assert_eq!(layout.bits, BITS);
        assert_eq!(codes.len(), n_out * layout.row_bytes());
        assert_eq!(scales.len(), n_out * layout.groups());
        assert_eq!(zeros.len(), layout.zero_bytes());
        Self {
            codes,
            scales,
            zeros,
            shape: layout.shape,
            row_bytes: layout.row_bytes(),
            group: layout.group(),
            groups: layout.groups(),
        }
    }
}

impl<const BITS: usize> Rows for View<'_, BITS> {
    const BITS: usize = BITS;
    type Span<S: Isa> = (*const u8, S::Levels);

    #[inline(always)]
    fn shape(self) -> (usize, usize) {
        self.shape
    }

    #[inline(always)]
    fn span_len(self) -> usize {
        self.group
    }

    #[inline(always)]
    unsafe fn span<S: Isa>(self, row: usize, index: usize) -> Self::Span<S> {
        let group = row * self.groups + index;
        // SAFETY: `row < n_out` and `index < groups`; the lengths were asserted.
        unsafe {
            let scale = self.scales.get_unchecked(group).to_bits();
            let zero = unpack(self.zeros, BITS, group);
            let codes = self.codes.as_ptr().add(row * self.row_bytes);
            (codes, S::levels::<BITS>(zero, scale))
        }
    }

    #[inline(always)]
    fn row_bytes(self) -> usize {
        self.row_bytes
    }

    #[inline(always)]
    fn address<S: Isa>(self, (row, _): Self::Span<S>, k: usize) -> *const u8 {
        row.wrapping_add(k / 8 * BITS)
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(self, (row, levels): Self::Span<S>, k: usize) -> S::V {
        // SAFETY: `k` is a multiple of 8 and `LANES` codes from there are inside the row.
        unsafe { S::codes::<BITS>(row.add(k / 8 * BITS), levels) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Isa>(
        self,
        (row, levels): Self::Span<S>,
        k: usize,
        count: usize,
    ) -> S::V {
        let mut padded = [0; 16];
        const { assert!(S::LANES <= 16 && BITS <= 8) };
        // SAFETY: whole vectors are read where they lie inside `codes`. Else the row holds whole
        // blocks of eight codes, of which `count` needs `ceil(count / 8)`: at most 16 bytes.
        unsafe {
            let first = row.add(k / 8 * BITS);
            let left = self.codes.as_ptr_range().end.offset_from_unsigned(first);
            // Codes behind the group stand for finite numbers too, and a copy would be waited for.
            if left >= S::LANES / 8 * BITS {
                return S::codes::<BITS>(first, levels);
            }
            let bytes = count.div_ceil(8) * BITS;
            padded.as_mut_ptr().copy_from_nonoverlapping(first, bytes);
            S::codes::<BITS>(padded.as_ptr(), levels)
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Isa>(self, _row: usize) -> f32 {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_give_back_what_was_packed() {
        for bits in BITS.map(|b| b as usize) {
            for count in 0..40 {
                let values: Vec<u8> = (0..count)
                    .map(|i| (i * 37 + 11) as u8 & ((1u16 << bits) - 1) as u8)
                    .collect();
                let mut stream = vec![0; (count * bits).div_ceil(8)];
                pack(&values, bits, &mut stream);
                let back: Vec<u8> = (0..count).map(|i| unpack(&stream, bits, i)).collect();
                assert_eq!(back, values, "{bits} bits, {count} values");
            }
        }
    }

    #[test]
    fn the_layout_of_three_bits_is_the_documented_one() {
        let mut stream = [0; 3];
        pack(&[1, 2, 3, 4, 5, 6, 7, 0], 3, &mut stream);
        let word = stream[0] as u32 | (stream[1] as u32) << 8 | (stream[2] as u32) << 16;
        assert_eq!(word, 0o0765_4321);
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        let one = f16::ONE;
        assert!(Grouped::new(3, 8, &[7; 8], &[one], &[7], (1, 8)).is_ok());
        assert!(Grouped::new(3, 8, &[8; 8], &[one], &[7], (1, 8)).is_err());
        assert!(Grouped::new(3, 8, &[7; 8], &[one], &[8], (1, 8)).is_err());
    }
}
