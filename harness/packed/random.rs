//! Contents of weights that were never trained: speed and memory of a model can be measured in
//! its shapes alone.
//!
//! Every number depends on its index and the seed alone, through the same arithmetic on the CPU
//! and in `device/fill.cu`: both give the same bytes, whatever the number of threads. On a GPU
//! weights are made where they stay; nothing but a table of [`LEVELS`] numbers is copied there.

use crate::device::{Args, Gpu};
use crate::memory::Part;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// A stored tensor of a weight that nobody trained, before it exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Untrained {
    /// As in [`super::Stored`].
    pub name: &'static str,
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub content: Content,
}

impl Untrained {
    pub fn new(name: &'static str, dtype: DType, dims: &[usize], content: Content) -> Self {
        Untrained {
            name,
            dtype,
            dims: dims.to_vec(),
            content,
        }
    }
}

/// The law that the content of a tensor follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Content {
    /// One number everywhere; F16 or F32.
    Constant(f32),
    /// F32, F16 or BF16 numbers, normal around zero with this standard deviation. They are picks
    /// from [`LEVELS`] values: a logarithm and a cosine for each of billions of weights would
    /// take minutes.
    Normal { deviation: f32 },
    /// U8.
    Codes(Codes),
    /// U8: a stream of `count` zero points of `bits` bits, lowest bits first, each one of the two
    /// codes in the middle, and of every two neighbours one of each, so that few of them have no
    /// mean either; drawn from the seed that follows.
    Middle { bits: usize, count: usize },
}

/// Bytes drawn evenly from `0..below` and the numbers from `resume` on, `levels` in all (to a part
/// in 256: a draw has 16 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codes {
    pub levels: u32,
    pub below: u32,
    pub resume: u32,
    /// What follows the first `row_bits` bits of every row is zero.
    pub row_bytes: usize,
    pub row_bits: usize,
}

impl Codes {
    fn of(self, draw: u16) -> u8 {
        let level = (u32::from(draw) * self.levels) >> 16;
        match level < self.below {
            true => level as u8,
            false => (level - self.below + self.resume) as u8,
        }
    }
}

/// Standard deviation of a weight with `k_in` inputs: outputs are then as large as inputs.
pub(super) fn deviation(k_in: usize) -> f32 {
    1.0 / (k_in.max(1) as f32).sqrt()
}

/// Makes the tensor on the CPU.
///
/// # Errors
/// A dtype that the content does not have.
pub fn on_cpu(what: &Untrained, seed: u64) -> Result<Tensor> {
    let dims = &what.dims[..];
    let count: usize = dims.iter().product();
    let cpu = &Device::Cpu;
    Ok(match (what.content, what.dtype) {
        (Content::Constant(value), DType::F16) => {
            Tensor::from_vec(vec![f16::from_f32(value); count], dims, cpu)?
        }
        (Content::Constant(value), DType::F32) => Tensor::from_vec(vec![value; count], dims, cpu)?,
        (Content::Normal { deviation }, DType::F32) => {
            Tensor::from_vec(normals(count, deviation, seed, |x| x), dims, cpu)?
        }
        (Content::Normal { deviation }, DType::F16) => {
            Tensor::from_vec(normals(count, deviation, seed, f16::from_f32), dims, cpu)?
        }
        (Content::Normal { deviation }, DType::BF16) => {
            Tensor::from_vec(normals(count, deviation, seed, bf16::from_f32), dims, cpu)?
        }
        (Content::Codes(law), DType::U8) => Tensor::from_vec(codes(count, seed, law), dims, cpu)?,
        (Content::Middle { bits, count }, DType::U8) => {
            Tensor::from_vec(middle(count, bits, seed.wrapping_add(1)), dims, cpu)?
        }
        _ => return Err(no_such(what)),
    })
}

/// Blocks of the kernels that fill: enough for any card, and no more, since each thread goes on.
const BLOCKS: usize = 4096;
const THREADS: u32 = 256;

/// Fills `tensor`, which is on the GPU and of this dtype and shape, with what [`on_cpu`] makes.
///
/// # Errors
/// As [`on_cpu`], and what the device refuses.
pub fn on_gpu(gpu: &Gpu, what: &Untrained, seed: u64, tensor: &Tensor) -> Result<()> {
    let count: usize = what.dims.iter().product();
    let args = Args::new().with(gpu.address(tensor)?);
    let launch = |kernel: &str, args: Args| {
        let blocks = count.div_ceil(4 * THREADS as usize).min(BLOCKS);
        gpu.launch(kernel, [blocks, 1, 1], THREADS, args)
    };
    let picks = |kernel: &str, levels: Vec<u8>| {
        let table = gpu.buffer(LEVELS, what.dtype, Part::Other)?;
        gpu.driver().write(&levels, gpu.address(table.tensor())?)?;
        let args = Args::new()
            .with(gpu.address(tensor)?)
            .with(gpu.address(table.tensor())?)
            .with(count as i64)
            .with(seed);
        launch(kernel, args)
    };
    match (what.content, what.dtype) {
        (Content::Constant(value), DType::F16) => {
            launch("fill_constant_f16", args.with(count as i64).with(value))
        }
        (Content::Constant(value), DType::F32) => {
            launch("fill_constant_f32", args.with(count as i64).with(value))
        }
        (Content::Normal { deviation }, DType::F32) => {
            let levels = levels(deviation, seed, |x| x.to_ne_bytes());
            picks("fill_picks_32", levels.concat())
        }
        (Content::Normal { deviation }, DType::F16) => {
            let levels = levels(deviation, seed, |x| f16::from_f32(x).to_ne_bytes());
            picks("fill_picks_16", levels.concat())
        }
        (Content::Normal { deviation }, DType::BF16) => {
            let levels = levels(deviation, seed, |x| bf16::from_f32(x).to_ne_bytes());
            picks("fill_picks_16", levels.concat())
        }
        (Content::Codes(law), DType::U8) => {
            let args = args.with(count as i64).with(seed);
            let args = args.with(law.levels).with(law.below).with(law.resume);
            let args = args.with(law.row_bytes as i64).with(law.row_bits as i64);
            launch("fill_codes", args)
        }
        (Content::Middle { bits, count }, DType::U8) => {
            let args = args.with(count as i64).with(bits as i32);
            launch("fill_middle", args.with(seed.wrapping_add(1)))
        }
        _ => Err(no_such(what)),
    }
}

/// Makes the tensor on the GPU and brings it to the CPU; the device keeps nothing.
///
/// # Errors
/// As [`on_gpu`].
pub fn through_gpu(gpu: &Gpu, what: &Untrained, seed: u64) -> Result<Tensor> {
    let buffer = gpu.buffer(&what.dims[..], what.dtype, Part::Other)?;
    on_gpu(gpu, what, seed, buffer.tensor())?;
    Ok(buffer.tensor().to_device(&Device::Cpu)?)
}

fn no_such(what: &Untrained) -> Error {
    Error::defect(format!("{:?} as {}", what.content, what.dtype.as_str()))
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), by
/// index.
fn random_bits(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Draws of 16 bits that 64 random bits hold.
const DRAWS: usize = 4;
/// Values that a thread fills at a time.
const PIECE: usize = 1 << 16;

/// `len` values, each made of a draw.
fn draw<T: Copy + Default + Send>(len: usize, seed: u64, make: impl Fn(u16) -> T + Sync) -> Vec<T> {
    let mut values = vec![T::default(); len];
    let pieces = values.par_chunks_mut(PIECE).enumerate();
    pieces.for_each(|(piece, values)| {
        let first = piece * PIECE / DRAWS;
        for (i, four) in values.chunks_mut(DRAWS).enumerate() {
            let bits = random_bits(seed, (first + i) as u64);
            for (j, value) in four.iter_mut().enumerate() {
                *value = make((bits >> (16 * j)) as u16);
            }
        }
    });
    values
}

fn codes(len: usize, seed: u64, law: Codes) -> Vec<u8> {
    let mut codes = draw(len, seed, |draw| law.of(draw));
    if law.row_bits < 8 * law.row_bytes {
        for row in codes.chunks_mut(law.row_bytes) {
            row[law.row_bits / 8] &= (1 << (law.row_bits % 8)) - 1;
            row[law.row_bits / 8 + 1..].fill(0);
        }
    }
    codes
}

fn middle(count: usize, bits: usize, seed: u64) -> Vec<u8> {
    let zero = |i: usize| {
        let pair = i / 2;
        let coin = random_bits(seed, pair as u64 / 64) >> (pair % 64) ^ i as u64;
        (1 << (bits - 1)) - (coin & 1)
    };
    let bit = |at: usize| match at / bits < count {
        true => (zero(at / bits) >> (at % bits) & 1) as u8,
        false => 0,
    };
    let byte = |i: usize| (0..8).map(|b| bit(8 * i + b) << b).sum();
    let bytes = (count * bits).div_ceil(8);
    (0..bytes).into_par_iter().map(byte).collect()
}

/// Different values that [`Content::Normal`] has.
pub const LEVELS: usize = 4096;

fn normals<T: Copy + Default + Send + Sync>(
    len: usize,
    deviation: f32,
    seed: u64,
    convert: impl Fn(f32) -> T,
) -> Vec<T> {
    let levels = levels(deviation, seed, convert);
    draw(len, seed, |draw| levels[draw as usize % LEVELS])
}

/// [`LEVELS`] values of mean 0 and this standard deviation exactly (Box and Muller's method, each
/// value with its negative), as `convert` rounds them.
fn levels<T>(deviation: f32, seed: u64, convert: impl Fn(f32) -> T) -> Vec<T> {
    // Another sequence than that of the picks.
    let seed = random_bits(seed, 0);
    let uniform = |i: usize| {
        let bits = random_bits(seed, i as u64) >> 32;
        (bits as f64 + 0.5) / 2f64.powi(32)
    };
    let half: Vec<f64> = (0..LEVELS / 2)
        .map(|i| {
            let angle = std::f64::consts::TAU * uniform(2 * i + 1);
            (-2.0 * uniform(2 * i).ln()).sqrt() * angle.cos()
        })
        .collect();
    let size = (half.iter().map(|x| x * x).sum::<f64>() / half.len() as f64).sqrt();
    half.iter()
        .flat_map(|x| [(x / size) as f32, (-x / size) as f32])
        .map(|x| convert(deviation * x))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_uniform_over_the_valid_ones() {
        let law = Codes {
            levels: 254,
            below: 127,
            resume: 128,
            row_bytes: 1024,
            row_bits: 8192,
        };
        let drawn = codes(3 << 20, 5, law);
        let mut counts = [0usize; 256];
        drawn.iter().for_each(|b| counts[*b as usize] += 1);
        for (byte, count) in counts.iter().enumerate() {
            match byte & 0x7f {
                0x7f => assert_eq!(*count, 0),
                // Standard deviation of a count: about 110 of 12385.
                _ => assert!(count.abs_diff(drawn.len() / 254) < 700, "{byte}: {count}"),
            }
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let drawn = normals(2 << 20, 0.5, 7, f64::from);
        let moment = |n: i32| drawn.iter().map(|x| x.powi(n)).sum::<f64>() / drawn.len() as f64;
        assert!(moment(1).abs() < 2e-3, "{}", moment(1));
        assert!((moment(2) - 0.25).abs() < 1e-3, "{}", moment(2));
        // Kurtosis 3, within what 2048 independent draws allow.
        assert!((moment(4) / 0.0625 - 3.0).abs() < 0.5, "{}", moment(4));
    }

    #[test]
    fn zero_points_are_both_middle_codes_to_the_last() {
        for bits in [2, 3, 4, 8] {
            let stream = middle(1001, bits, 3);
            let zeros: Vec<u32> = (0..stream.len() * 8 / bits)
                .map(|i| {
                    let bit = |b: usize| u32::from(stream[b / 8] >> (b % 8) & 1);
                    (0..bits).map(|b| bit(i * bits + b) << b).sum()
                })
                .collect();
            let (high, low) = (1 << (bits - 1), (1 << (bits - 1)) - 1);
            let of = |code: u32| zeros[..1001].iter().filter(|z| **z == code).count();
            assert_eq!(of(high) + of(low), 1001, "{bits} bits");
            assert!(of(high).abs_diff(500) <= 1, "{bits} bits: {}", of(high));
            let first = zeros[..1000].chunks(2).filter(|z| z[0] == high).count();
            assert!(first.abs_diff(250) < 80, "{bits} bits: {first}");
            assert!(zeros[1001..].iter().all(|z| *z == 0), "{bits} bits");
        }
    }

    #[test]
    fn threads_and_neighbours_do_not_matter() {
        let make = |len: usize, seed: u64| draw(len, seed, |draw| draw);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| make(PIECE * 2 + 5, 3))
        };
        let one = with(1);
        assert_eq!(one, with(3));
        assert_eq!(one[..101], make(101, 3));
        assert_ne!(one[..100], one[PIECE..PIECE + 100]);
        assert_ne!(one[..100], make(100, 4));
    }
}
