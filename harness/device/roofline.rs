//! What a device can do at best, measured on it in the same run: bytes per second of its memory
//! and operations per second of the vendor's matrix product. Other figures are ratios to these.
//!
//! Everything works on random data: products of zeros draw less power and run faster.

use super::driver::{Args, Driver, Gemm, GemmKind, Launch};
use crate::{Error, Result};
use candle_core::{DType, Shape, Tensor};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Bytes per second of the device's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// A copy within the device, bytes read plus bytes written.
    pub copy_bytes_s: f64,
    /// Reading alone.
    pub read_bytes_s: f64,
    /// Size of each buffer: several times the last cache.
    pub buffer_bytes: usize,
}

const THREADS: u32 = 256;
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;

/// How long a figure is measured, after a warm-up of a fifth of that.
const MEASURE_S: f64 = 0.25;

/// Side of the matrices of [`gemm_rate`]: large enough that a rate no longer grows with it.
const GEMM_SIZE: usize = 8192;

/// Measures the memory of a device with buffers of eight times its L2 cache (at least 64 MiB), two
/// of them.
///
/// # Errors
/// [`Error::OutOfMemory`] if the device has no room for the buffers; a read that came back wrong.
pub fn bandwidth(driver: &dyn Driver) -> Result<Bandwidth> {
    let bytes = (8 * driver.info().l2_bytes as usize).max(64 << 20);
    bandwidth_of(driver, bytes.next_multiple_of(16))
}

/// [`bandwidth`] with buffers of `bytes`, a multiple of 16.
pub fn bandwidth_of(driver: &dyn Driver, bytes: usize) -> Result<Bandwidth> {
    let vectors = (bytes / 16) as i64;
    let blocks = driver.info().multiprocessors.max(1) * BLOCKS_PER_MULTIPROCESSOR;
    let content = random_bytes(bytes, |byte| byte);
    let from = upload(driver, &content, &Shape::from(bytes), DType::U8)?;
    let to = driver.allocate(&Shape::from(bytes), DType::U8, false)?;
    let partial = driver.allocate(&Shape::from(blocks as usize), DType::U32, true)?;
    let (from_at, to_at) = (driver.address(&from)?, driver.address(&to)?);
    let partial_at = driver.address(&partial)?;
    let start = |kernel, mut args: Args| {
        let launch = Launch {
            kernel,
            grid: [blocks, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
        };
        driver.launch(&launch, &mut args)
    };
    let copy = || {
        start(
            "roofline_copy",
            Args::new().with(from_at).with(to_at).with(vectors),
        )
    };
    let read = || {
        start(
            "roofline_read",
            Args::new().with(to_at).with(partial_at).with(vectors),
        )
    };
    let copy_s = seconds_each(driver, &copy)?;
    let read_s = seconds_each(driver, &read)?;
    // The second buffer holds the first one's content, and all of it was read.
    let partial = partial.to_vec1::<u32>()?;
    if partial.into_iter().fold(0, u32::wrapping_add) != sum_of_words(&content) {
        return Err(Error::device(
            format!("{} read other bytes than were written", driver.info().id),
            "nothing measured on this device can be trusted; check its memory",
        ));
    }
    Ok(Bandwidth {
        copy_bytes_s: 2.0 * bytes as f64 / copy_s,
        read_bytes_s: bytes as f64 / read_s,
        buffer_bytes: bytes,
    })
}

/// Operations per second (two per multiply-add) of an 8192³ product by the vendor's library.
///
/// # Errors
/// [`Error::Unsupported`] for a kind that the device does not have; [`Error::OutOfMemory`].
pub fn gemm_rate(driver: &dyn Driver, kind: GemmKind) -> Result<f64> {
    gemm_rate_of(driver, kind, GEMM_SIZE)
}

/// [`gemm_rate`] of matrices with `size` rows and columns.
pub fn gemm_rate_of(driver: &dyn Driver, kind: GemmKind, size: usize) -> Result<f64> {
    let shape = Shape::from((size, size));
    let x = random_matrix(driver, kind, &shape)?;
    let w = random_matrix(driver, kind, &shape)?;
    let output = match kind {
        GemmKind::F16 { f32_output: false } => DType::F16,
        GemmKind::F64 => DType::F64,
        _ => DType::F32, // of the size of I32
    };
    let y = driver.allocate(&shape, output, false)?;
    let addresses = [
        driver.address(&x)?,
        driver.address(&w)?,
        driver.address(&y)?,
    ];
    let gemm = Gemm::new(kind, addresses, [size; 3]);
    let seconds = seconds_each(driver, &|| driver.gemm(&gemm))?;
    Ok(2.0 * (size as f64).powi(3) / seconds)
}

/// Seconds that one of many takes, started one behind the other.
fn seconds_each(driver: &dyn Driver, start: &dyn Fn() -> Result<()>) -> Result<f64> {
    start()?; // what is done once: choosing an algorithm, loading its code
    let time = |n: usize| driver.elapsed_s(&mut || (0..n).try_for_each(|_| start()));
    let once_s = time(1)?.max(1e-6);
    let n = ((MEASURE_S / once_s) as usize).clamp(1, 10_000);
    time(n / 5)?;
    Ok(time(n)? / n as f64)
}

/// Random numbers of about [-1, 1] in the type of `kind`'s inputs, which 8-bit types hold as U8.
fn random_matrix(driver: &dyn Driver, kind: GemmKind, shape: &Shape) -> Result<Tensor> {
    let n = shape.elem_count();
    let (bytes, dtype) = match kind {
        GemmKind::F16 { .. } => {
            let value = |bits: u32| half::f16::from_f32(unit(bits)).to_le_bytes();
            (random_values(n, value), DType::F16)
        }
        GemmKind::F32 => (
            random_values(n, |bits| unit(bits).to_le_bytes()),
            DType::F32,
        ),
        GemmKind::F64 => (
            random_values(n, |bits| f64::from(unit(bits)).to_le_bytes()),
            DType::F64,
        ),
        // E4M3: the two codes that are not a number become the largest ones.
        GemmKind::Fp8 => {
            let finite = |byte| match byte & 0x7f {
                0x7f => byte - 1,
                _ => byte,
            };
            (random_bytes(n, finite), DType::U8)
        }
        GemmKind::Int8 => (random_bytes(n, |byte| byte), DType::U8),
    };
    upload(driver, &bytes, shape, dtype)
}

fn upload(driver: &dyn Driver, bytes: &[u8], shape: &Shape, dtype: DType) -> Result<Tensor> {
    let tensor = driver.allocate(shape, dtype, false)?;
    driver.write(bytes, driver.address(&tensor)?)?;
    Ok(tensor)
}

/// The bits as a number in [-1, 1).
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// Made once and repeated: a quarter million values are random enough for any unit that works on
/// them, and made in no time.
const PERIOD: usize = 1 << 18;

fn random_values<const N: usize>(n: usize, value: impl Fn(u32) -> [u8; N]) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let values = (0..n.min(PERIOD)).flat_map(|_| value(random.next_u32()));
    repeated(values.collect(), n * N)
}

fn random_bytes(n: usize, map: impl Fn(u8) -> u8) -> Vec<u8> {
    let mut bytes = vec![0; n.min(PERIOD)];
    ChaCha8Rng::seed_from_u64(0).fill_bytes(&mut bytes);
    bytes.iter_mut().for_each(|byte| *byte = map(*byte));
    repeated(bytes, n)
}

fn repeated(period: Vec<u8>, bytes: usize) -> Vec<u8> {
    period.into_iter().cycle().take(bytes).collect()
}

/// Modulo 2^32.
fn sum_of_words(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(4);
    let word = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("four bytes"));
    words.map(word).fold(0, u32::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_content_is_neither_zero_nor_not_a_number() {
        let values = random_values(1000, |bits| unit(bits).to_le_bytes());
        let values: Vec<f32> = values
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        let mean = values.iter().sum::<f32>() / 1000.0;
        assert!(mean.abs() < 0.1, "{mean}");
        assert!(values.iter().filter(|v| **v == 0.0).count() < 3);
    }

    #[test]
    fn content_beyond_the_period_repeats() {
        let bytes = random_bytes(PERIOD + 3, |byte| byte);
        assert_eq!(bytes.len(), PERIOD + 3);
        assert_eq!(bytes[..3], bytes[PERIOD..]);
        // A sum of zero could not tell a buffer that was read from one that was not.
        assert_ne!(sum_of_words(&bytes[..PERIOD]), 0);
    }

    #[test]
    fn sums_words_modulo_their_range() {
        assert_eq!(sum_of_words(&[1, 0, 0, 0, 3, 0, 0, 0]), 4);
        assert_eq!(sum_of_words(&[255, 255, 255, 255, 2, 0, 0, 0]), 1);
    }
}
