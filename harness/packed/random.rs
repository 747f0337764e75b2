//! Random numbers for weights that were never trained: speed and memory of a model can be
//! measured in its shapes alone.
//!
//! Everything is drawn in pieces of a fixed size, each from a stream of its own, so that a seed
//! gives the same bytes whatever the number of threads.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Numbers that one stream fills.
const PIECE: usize = 1 << 20;

fn stream(seed: u64, piece: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(piece as u64);
    rng
}

/// Standard deviation of a weight with `k_in` inputs: outputs are then as large as inputs.
pub(super) fn deviation(k_in: usize) -> f32 {
    1.0 / (k_in.max(1) as f32).sqrt()
}

/// `len` bytes, uniform over those that `valid` lets pass.
pub(super) fn bytes(len: usize, seed: u64, valid: impl Fn(u8) -> bool + Sync) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes
        .par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(piece, bytes)| {
            let mut rng = stream(seed, piece);
            rng.fill_bytes(bytes);
            for byte in bytes {
                while !valid(*byte) {
                    *byte = rng.next_u32() as u8;
                }
            }
        });
    bytes
}

/// Different values that [`normals`] hands out.
const LEVELS: usize = 4096;

/// `len` numbers, normal with this standard deviation around zero, in the type that `convert`
/// makes. They are picks from [`LEVELS`] values drawn beforehand: a logarithm and a cosine for
/// each of billions of weights would take minutes.
pub(super) fn normals<T: Copy + Default + Send + Sync>(
    len: usize,
    deviation: f32,
    seed: u64,
    convert: impl Fn(f32) -> T,
) -> Vec<T> {
    let levels: Vec<T> = standard_normals(seed)
        .iter()
        .map(|x| convert(deviation * x))
        .collect();
    let mut values = vec![T::default(); len];
    values
        .par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(piece, values)| {
            let mut rng = stream(seed, piece);
            let mut drawn = [0u8; 512];
            for values in values.chunks_mut(drawn.len() / 2) {
                rng.fill_bytes(&mut drawn);
                for (value, pair) in values.iter_mut().zip(drawn.as_chunks::<2>().0) {
                    *value = levels[u16::from_le_bytes(*pair) as usize % LEVELS];
                }
            }
        });
    values
}

/// [`LEVELS`] values of mean 0 and standard deviation 1 exactly (Box and Muller's method, each
/// value with its negative).
fn standard_normals(seed: u64) -> Vec<f32> {
    let mut rng = stream(seed, usize::MAX);
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 2f64.powi(32);
    let half: Vec<f64> = (0..LEVELS / 2)
        .map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
        .collect();
    let size = (half.iter().map(|x| x * x).sum::<f64>() / half.len() as f64).sqrt();
    half.iter()
        .flat_map(|x| [(x / size) as f32, (-x / size) as f32])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_uniform_over_the_valid_ones() {
        let drawn = bytes(3 << 20, 5, |b| b & 0x7f != 0x7f);
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
    fn threads_and_neighbours_do_not_matter() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build()
                .unwrap()
                .install(|| bytes(PIECE * 2 + 5, 3, |_| true))
        };
        let one = with(1);
        assert_eq!(one, with(3));
        assert_eq!(one[..100], bytes(100, 3, |_| true));
        assert_ne!(one[..100], one[PIECE..PIECE + 100]);
        assert_ne!(one[..100], bytes(100, 4, |_| true));
    }
}
