//! Bootstraps over windows of text: differences that neighbouring windows share.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Resamples behind every interval.
pub const RESAMPLES: usize = 10_000;

/// A uniform whole number below `n`, which is at most 2³².
pub fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize
}

/// One window as two models scored it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedWindow {
    /// The second's sum minus the first's.
    pub delta_nats: f64,
    /// What the sum counts in the mean.
    pub weight: f64,
}

/// Weighted mean difference; `None` without weight.
pub fn mean_delta(windows: &[PairedWindow]) -> Option<f64> {
    let weight: f64 = windows.iter().map(|w| w.weight).sum();
    let delta: f64 = windows.iter().map(|w| w.delta_nats).sum();
    (weight > 0.0).then(|| delta / weight)
}

/// [`mean_delta`] of [`RESAMPLES`] resamples, ascending: a bootstrap over blocks of
/// `block_windows` consecutive windows (1 where they are disjoint; the last block is joined to the
/// first), the same for the same seed whatever the number of threads.
///
/// `None` with fewer than two blocks of windows that have weight.
pub fn resampled_means(
    windows: &[PairedWindow],
    block_windows: usize,
    seed: u64,
) -> Option<Vec<f64>> {
    let windows: Vec<PairedWindow> = windows.iter().filter(|w| w.weight > 0.0).copied().collect();
    let (n, block) = (windows.len(), block_windows.max(1));
    if n < 2 * block {
        return None;
    }
    let mut means: Vec<f64> = (0..RESAMPLES as u64)
        .into_par_iter()
        .map(|resample| {
            // One stream per resample, so that the split over threads does not matter.
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(resample);
            let (mut delta, mut weight) = (0.0, 0.0);
            for drawn in (0..n).step_by(block) {
                let start = below(&mut rng, n);
                // As many windows in all as there are.
                for i in start..start + block.min(n - drawn) {
                    delta += windows[i % n].delta_nats;
                    weight += windows[i % n].weight;
                }
            }
            delta / weight
        })
        .collect();
    means.sort_by(f64::total_cmp);
    Some(means)
}
