//! What a kernel needs of an instruction set. Kernels are written once against [`Isa`]; an
//! instruction set is one file that implements it.

/// A vector of `LANES` F32 numbers and the loads that fill it from stored codes.
///
/// # Safety
/// Every function requires that the CPU has the instructions of the implementation, and that
/// each pointer is valid for the elements its comment names; no alignment is required. The
/// functions are inlined into entry points that enable the instructions (`cpu::paths`).
pub trait Isa: Copy + 'static {
    /// F32 numbers in a vector: a multiple of 8.
    const LANES: usize;
    /// Rows of `x` whose sums the tile kernel keeps in registers, beside 4 weight rows; at most 6.
    const TILE_INPUTS: usize;
    /// Rows of `x` whose sums the fused kernel keeps in registers, beside 4 weight rows; at most 4.
    const FUSED_INPUTS: usize;

    type V: Copy;
    /// The values that the codes of one group stand for.
    type Levels: Copy;

    unsafe fn zero() -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// The sum of the lanes of each vector, in one fixed order.
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4];
    /// Writes the four sums times `scales[0..4]` to `y[0..4]`, or adds them to what is there.
    #[inline(always)]
    unsafe fn write_sums(v: [Self::V; 4], scales: *const f32, y: *mut f32, add: bool) {
        // SAFETY: the caller vouches for four numbers at both.
        unsafe {
            let sums = Self::sums(v);
            for (n, sum) in sums.iter().enumerate() {
                let sum = sum * scales.add(n).read();
                let y = y.add(n);
                y.write(if add { y.read() + sum } else { sum });
            }
        }
    }

    /// Asks for the cache line of `p` ahead of its use; any address will do.
    fn prefetch(p: *const u8);

    /// `LANES` F32.
    unsafe fn f32(p: *const f32) -> Self::V;
    /// The first `count < LANES` lanes from `p`, zeros behind them.
    unsafe fn f32_first(p: *const f32, count: usize) -> Self::V;
    /// Writes `LANES` F32.
    unsafe fn store(p: *mut f32, v: Self::V);

    /// `LANES` IEEE halves.
    unsafe fn f16(p: *const u16) -> Self::V;
    /// `LANES` bfloat16.
    unsafe fn bf16(p: *const u16) -> Self::V;
    /// `LANES` two's-complement bytes.
    unsafe fn i8(p: *const u8) -> Self::V;
    /// `LANES` FP8 E4M3 codes that are numbers, as `value / 256`: the bits moved into an IEEE
    /// half, whose exponent bias is larger by 8.
    unsafe fn e4m3(p: *const u8) -> Self::V;
    /// `LANES` FP8 E5M2 codes: the upper byte of an IEEE half.
    unsafe fn e5m2(p: *const u8) -> Self::V;
    /// One IEEE half.
    unsafe fn scalar_f16(bits: u16) -> f32;

    /// Levels `(code - zero) * scale` of codes of `BITS` bits; `scale` is an IEEE half.
    unsafe fn levels<const BITS: usize>(zero: u8, scale: u16) -> Self::Levels;
    /// The levels of the `LANES` codes in the `LANES / 8 * BITS` bytes at `p`, lowest bits first.
    unsafe fn codes<const BITS: usize>(p: *const u8, levels: Self::Levels) -> Self::V;
}

/// The `BITS <= 4` bytes at `p`, which hold eight codes, as one little-endian word.
///
/// # Safety
/// `p` is valid for reads of `BITS` bytes.
#[inline(always)]
pub unsafe fn word<const BITS: usize>(p: *const u8) -> u32 {
    // SAFETY: reads bytes 0..BITS only.
    unsafe {
        match BITS {
            2 => p.cast::<u16>().read_unaligned().to_le() as u32,
            3 => p.cast::<u16>().read_unaligned().to_le() as u32 | (p.add(2).read() as u32) << 16,
            _ => p.cast::<u32>().read_unaligned().to_le(),
        }
    }
}

/// What the kernel needs of an instruction set.
///
/// # Safety
/// As for [`Isa`]: the CPU has the instructions, and pointers are valid for the
/// codes that the comments name.
pub trait Dot: Copy + 'static {
    /// Codes in a vector: a divisor of 64.
    const CODES: usize;
    /// Rows of `x` whose sums are kept in registers, beside 4 weight rows; at most 6.
    const INPUTS: usize;
    /// What a loaded weight exceeds its code by.
    const OFFSET: i32 = 0;
    /// I32 sums.
    type Sums: Copy;
    type Weights: Copy;
    type Inputs: Copy;

    unsafe fn zero() -> Self::Sums;
    /// `CODES` weights.
    unsafe fn weights(p: *const u8) -> Self::Weights;
    /// The `count < CODES` weights from `p` on, whatever in the lanes behind them.
    #[inline(always)]
    unsafe fn weights_first(p: *const u8, count: usize) -> Self::Weights {
        let mut padded = [0; 64];
        // SAFETY: `count` codes are valid, and `padded` holds a vector.
        unsafe {
            padded.as_mut_ptr().copy_from_nonoverlapping(p, count);
            Self::weights(padded.as_ptr())
        }
    }
    /// `CODES` inputs.
    unsafe fn inputs(p: *const i8) -> Self::Inputs;
    /// `sums + weights · inputs`, each product in one of the lanes.
    unsafe fn add_products(s: Self::Sums, w: Self::Weights, x: Self::Inputs) -> Self::Sums;
    /// The sum of the lanes of each vector.
    unsafe fn totals(v: [Self::Sums; 4]) -> [i32; 4];
}
