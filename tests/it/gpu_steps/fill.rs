//! Contents for benchmarks.

use super::*;

/// Grids whose threads meet the elements in very different ways.
const GRIDS: [([u32; 3], [u32; 3]); 3] = [
    ([1, 1, 1], [1, 1, 1]),
    ([3, 1, 1], [32, 1, 1]),
    ([40, 1, 1], [256, 1, 1]),
];

fn on_every_grid<T: Bits>(run: impl Fn([u32; 3], [u32; 3]) -> Vec<T>) -> Vec<T> {
    let mut results = GRIDS.iter().map(|(grid, block)| run(*grid, *block));
    let first = results.next().unwrap();
    assert!(results.all(|r| same_bits(&r, &first)));
    first
}

#[test]
fn random_bytes_are_uniform_and_depend_on_the_seed_alone() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let fill = |bytes: usize, seed: u64| {
        on_every_grid(|grid, block| {
            let p = Guarded::<u8>::poisoned(bytes);
            emulation
                .launch(
                    "fill_random",
                    grid,
                    block,
                    0,
                    arguments![p.pointer(), bytes as i64, seed],
                )
                .unwrap();
            to_vec(&p)
        })
    };
    for bytes in [1, 7, 8, 9, 1003] {
        // The beginning does not depend on the length.
        assert_eq!(fill(bytes, 5), fill(2000, 5)[..bytes]);
    }
    let bytes = fill(65536, 1);
    let other = fill(65536, 2);
    let equal = bytes.iter().zip(&other).filter(|(a, b)| a == b).count();
    assert!(equal < 65536 / 256 * 2, "{equal} bytes equal for two seeds");
    for bit in 0..8 {
        let ones = bytes.iter().filter(|b| **b >> bit & 1 == 1).count();
        // Six standard deviations of a fair coin.
        assert!(ones.abs_diff(32768) < 6 * 128, "bit {bit}: {ones}");
    }
}

#[test]
fn normal_halves_have_mean_and_deviation() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let deviation = 0.25f32;
    let fill = |n: usize| {
        on_every_grid(|grid, block| {
            let p = Guarded::<f16>::poisoned(n);
            emulation
                .launch(
                    "fill_normal_f16",
                    grid,
                    block,
                    0,
                    arguments![p.pointer(), n as i64, deviation, 9u64],
                )
                .unwrap();
            to_vec(&p)
        })
    };
    for n in [1, 2, 1003] {
        assert!(same_bits(&fill(n), &fill(2000)[..n]));
    }
    let x: Vec<f64> = fill(40_000).iter().map(|x| x.to_f64() / 0.25).collect();
    let moment = |power: i32| x.iter().map(|x| x.powi(power)).sum::<f64>() / x.len() as f64;
    for (power, expected, error) in [(1, 0.0, 0.03), (2, 1.0, 0.05), (3, 0.0, 0.1), (4, 3.0, 0.3)] {
        let found = moment(power);
        assert!((found - expected).abs() < error, "moment {power}: {found}");
    }
    // Neighbours are the two results of one pair of random numbers.
    let together: f64 = x.chunks_exact(2).map(|p| p[0] * p[1]).sum::<f64>() / 20_000.0;
    assert!(together.abs() < 0.05, "{together}");
}

#[test]
fn codes_zero_points_and_picks_do_not_depend_on_the_grid() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let levels: Vec<u32> = (0..4096).map(|i| i * 1_000_003).collect();
    let table = Guarded::from(&levels);
    for count in [1usize, 5, 8, 1003] {
        let codes = on_every_grid(|grid, block| {
            let p = Guarded::<u8>::poisoned(count);
            // Rows of 5 bytes of which 37 bits are used; no code is 200 or more.
            emulation
                .launch(
                    "fill_codes",
                    grid,
                    block,
                    0,
                    arguments![
                        p.pointer(),
                        count as i64,
                        7u64,
                        200u32,
                        200u32,
                        200u32,
                        5i64,
                        37i64
                    ],
                )
                .unwrap();
            to_vec(&p)
        });
        assert!(codes.iter().all(|c| *c < 200));
        assert!(codes.iter().skip(4).step_by(5).all(|c| *c < 1 << 5));
        let zeros = on_every_grid(|grid, block| {
            let p = Guarded::<u8>::poisoned((3 * count).div_ceil(8));
            emulation
                .launch(
                    "fill_middle",
                    grid,
                    block,
                    0,
                    arguments![p.pointer(), count as i64, 3i32, 7u64],
                )
                .unwrap();
            to_vec(&p)
        });
        let bit = |b: usize| zeros[b / 8] >> (b % 8) & 1;
        // 3 is 011 and 4 is 100.
        assert!((0..count).all(|i| bit(3 * i) != bit(3 * i + 2) && bit(3 * i) == bit(3 * i + 1)));
        let picks = on_every_grid(|grid, block| {
            let p = Guarded::<u32>::poisoned(count);
            emulation
                .launch(
                    "fill_picks_32",
                    grid,
                    block,
                    0,
                    arguments![p.pointer(), table.pointer(), count as i64, 7u64],
                )
                .unwrap();
            to_vec(&p)
        });
        assert!(picks.iter().all(|p| levels.contains(p)));
    }
}

#[test]
fn constants_fill_every_element() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for n in [1usize, 7, 8, 1003] {
        for (grid, block) in GRIDS {
            let (h, f) = (Guarded::<f16>::poisoned(n), Guarded::<f32>::poisoned(n));
            emulation
                .launch(
                    "fill_constant_f16",
                    grid,
                    block,
                    0,
                    arguments![h.pointer(), n as i64, 1.5f32],
                )
                .unwrap();
            emulation
                .launch(
                    "fill_constant_f32",
                    grid,
                    block,
                    0,
                    arguments![f.pointer(), n as i64, -0.1f32],
                )
                .unwrap();
            assert!(h.as_slice().iter().all(|x| x.to_f32() == 1.5));
            assert!(f.as_slice().iter().all(|x| *x == -0.1));
        }
    }
}
