//! The kernels that measure a device's memory touch every byte once, whatever the grid.

use crate::driver;
use crate::emulation::{Emulation, Guarded, Schedule};
use quantbench::device::{GemmKind, roofline};

/// Vectors of 16 bytes: fewer than threads, not a multiple of anything, several rounds.
const SIZES: [usize; 5] = [1, 3, 2560, 5000, 40_961];
const GRID: [u32; 3] = [5, 1, 1];

fn content(vectors: usize) -> Vec<u32> {
    let word = |i: usize| (i as u32).wrapping_mul(2_654_435_761) ^ 0x5bd1_e995;
    (0..4 * vectors).map(word).collect()
}

#[test]
fn copies_all() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for vectors in SIZES {
        let from = Guarded::from(&content(vectors));
        let to = Guarded::<u32>::poisoned(4 * vectors);
        let n = vectors as i64;
        emulation
            .launch(
                "roofline_copy",
                GRID,
                [256, 1, 1],
                0,
                arguments![from.pointer(), to.pointer(), n],
            )
            .unwrap();
        assert!(from.as_slice() == to.as_slice(), "{vectors} vectors");
    }
}

#[test]
fn sums_all() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for (vectors, schedule) in SIZES.into_iter().zip(Schedule::ALL.into_iter().cycle()) {
        let content = content(vectors);
        let from = Guarded::from(&content);
        let partial = Guarded::<u32>::poisoned(GRID[0] as usize);
        let n = vectors as i64;
        emulation.schedule(schedule);
        emulation
            .launch(
                "roofline_read",
                GRID,
                [256, 1, 1],
                0,
                arguments![from.pointer(), partial.pointer(), n],
            )
            .unwrap();
        let sum = |words: &[u32]| words.iter().fold(0u32, |a, b| a.wrapping_add(*b));
        assert_eq!(sum(partial.as_slice()), sum(&content), "{vectors} vectors");
    }
}

/// What is measured means nothing in the emulation, but it is the same code that measures a GPU,
/// and it fails if what was read is not what was written.
#[test]
fn measures_a_device() {
    let Some(driver) = driver::driver() else {
        return;
    };
    let bandwidth = roofline::bandwidth_of(&*driver, 1 << 20).unwrap();
    assert!(bandwidth.copy_bytes_s > 0.0 && bandwidth.read_bytes_s > 0.0);
    assert_eq!(bandwidth.buffer_bytes, 1 << 20);
    for kind in [
        GemmKind::F16 { f32_output: false },
        GemmKind::F16 { f32_output: true },
        GemmKind::F32,
        GemmKind::Int8,
    ] {
        let rate = roofline::gemm_rate_of(&*driver, kind, 64).unwrap();
        assert!(rate.is_finite() && rate > 0.0, "{kind:?}: {rate}");
    }
}
