//! How a kernel sees a packed weight: rows that open into spans, spans that load as F32 vectors.

use super::isa::Isa;
use half::f16;

/// A packed matrix `[n_out, k_in]`, borrowed for one product.
///
/// # Safety
/// The `unsafe` functions require the instructions of `S`, `row < n_out`, `span` opened by
/// [`Rows::span`] of the same matrix, and a range `k..` that stays inside that span.
pub trait Rows: Copy + Sync {
    /// Bits of a code.
    const BITS: usize;
    /// A row and whatever is constant in a span of it.
    type Span<S: Isa>: Copy;

    /// `(n_out, k_in)`.
    fn shape(self) -> (usize, usize);

    /// Inputs in a span: a multiple of 8, or all of them. The last span may be shorter.
    fn span_len(self) -> usize {
        self.shape().1.max(1)
    }

    /// The span of `row` that holds input `index * span_len`.
    unsafe fn span<S: Isa>(self, row: usize, index: usize) -> Self::Span<S>;

    /// Bytes from one row to the next.
    fn row_bytes(self) -> usize;

    /// Where the code of input `k` is, for prefetching.
    fn address<S: Isa>(self, span: Self::Span<S>, k: usize) -> *const u8;

    /// The `LANES` weights from input `k` on, without the row's scale.
    unsafe fn load<S: Isa>(self, span: Self::Span<S>, k: usize) -> S::V;

    /// The `count < LANES` weights from input `k` on; any finite number in the lanes behind them
    /// (provided the weights themselves are finite).
    unsafe fn load_first<S: Isa>(self, span: Self::Span<S>, k: usize, count: usize) -> S::V;

    /// What the sums of `row` are multiplied by.
    unsafe fn scale<S: Isa>(self, row: usize) -> f32;
}

/// A code that is one machine number, with no neighbour needed to read it.
pub trait Element: Copy + Sync + 'static {
    type Code: Copy + Default + Sync;
    /// What every loaded number is to be multiplied by; an exact power of two.
    const FACTOR: f32 = 1.0;
    /// The `LANES` codes at `p` over [`Element::FACTOR`].
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; `p` is valid for `LANES` codes.
    unsafe fn load<S: Isa>(p: *const Self::Code) -> S::V;
}

/// The scales of a matrix of [`Element`]s.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    None,
    /// One per row.
    F32(&'a [f32]),
    /// One per row, or one in all.
    F16(&'a [f16]),
}

/// A row-major matrix of [`Element`]s.
#[derive(Clone, Copy)]
pub struct Elements<'a, E: Element> {
    codes: &'a [E::Code],
    shape: (usize, usize),
    scales: Scales<'a>,
}

impl<'a, E: Element> Elements<'a, E> {
    /// # Panics
    /// If the lengths contradict the shape; packed formats have checked them before.
    pub fn new(codes: &'a [E::Code], shape: (usize, usize), scales: Scales<'a>) -> Self {
        assert_eq!(codes.len(), shape.0 * shape.1);
        match scales {
            Scales::None => {}
            Scales::F32(s) => assert_eq!(s.len(), shape.0),
            Scales::F16(s) => assert!(s.len() == shape.0 || s.len() == 1),
        }
        Self {
            codes,
            shape,
            scales,
        }
    }
}

impl<E: Element> Rows for Elements<'_, E> {
    const BITS: usize = 8 * size_of::<E::Code>();
    type Span<S: Isa> = *const E::Code;

    #[inline(always)]
    fn shape(self) -> (usize, usize) {
        self.shape
    }

    #[inline(always)]
    unsafe fn span<S: Isa>(self, row: usize, _index: usize) -> *const E::Code {
        // SAFETY: `row < n_out`, so the row's start is inside `codes`.
        unsafe { self.codes.as_ptr().add(row * self.shape.1) }
    }

    #[inline(always)]
    fn row_bytes(self) -> usize {
        self.shape.1 * size_of::<E::Code>()
    }

    #[inline(always)]
    fn address<S: Isa>(self, row: *const E::Code, k: usize) -> *const u8 {
        row.wrapping_add(k).cast()
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(self, row: *const E::Code, k: usize) -> S::V {
        // SAFETY: `k + LANES <= k_in` by contract.
        unsafe { E::load::<S>(row.add(k)) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Isa>(self, row: *const E::Code, k: usize, count: usize) -> S::V {
        let mut padded = [E::Code::default(); 16];
        const { assert!(S::LANES <= 16) };
        // SAFETY: `count < LANES <= 16` codes are inside the row, and `padded` holds 16.
        unsafe {
            padded
                .as_mut_ptr()
                .copy_from_nonoverlapping(row.add(k), count);
            E::load::<S>(padded.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Isa>(self, row: usize) -> f32 {
        E::FACTOR
            * match self.scales {
                Scales::None => 1.0,
                Scales::F32(s) => s[row],
                // SAFETY: the instructions of `S` are there.
                Scales::F16(s) => unsafe { S::scalar_f16(s[row.min(s.len() - 1)].to_bits()) },
            }
    }
}
