//! The kernels beside GPTQ's own: sums over inputs, matrices in another order.

use super::*;

#[test]
fn magnitudes_are_added_to_what_was_there() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for (rows, k) in [(1, 1), (7, 33), (8, 32), (50, 70)] {
        let x = random_halves(rows * k, 3.0, 71);
        let before: Vec<f64> = (0..k).map(|c| c as f64).collect();
        let run = || {
            let (x, sums) = (Guarded::from(&x), Guarded::from(&before));
            emulation
                .launch(
                    "add_abs",
                    [k.div_ceil(32) as u32, 1, 1],
                    [256, 1, 1],
                    0,
                    arguments![x.pointer(), sums.pointer(), rows as i32, k as i32],
                )
                .unwrap();
            sums.as_slice().iter().map(|s| *s as f32).collect()
        };
        for (c, found) in on_every_schedule(emulation, run).into_iter().enumerate() {
            let column = x.iter().skip(c).step_by(k);
            let sum: f64 = column.map(|v| v.to_f64().abs()).sum();
            assert_eq!(found, (before[c] + sum) as f32, "{rows} {k} {c}");
        }
    }
}

#[test]
fn a_hessian_is_ordered_damped_and_reversed() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let n = 21;
    let h = numbers(n * n, 72);
    let order: Vec<u32> = (0..n as u32).map(|i| i * 8 % n as u32).collect();
    let diagonal: Vec<f64> = (0..n).map(|i| 100.0 + i as f64).collect();
    let run = || {
        let (h, order) = (Guarded::from(&h), Guarded::from(&order));
        let diagonal = Guarded::from(&diagonal);
        let a = Guarded::<f64>::poisoned(n * n);
        emulation
            .launch(
                "damped_reversed",
                [2, 1, 1],
                [64, 1, 1],
                0,
                arguments![
                    h.pointer(),
                    order.pointer(),
                    diagonal.pointer(),
                    a.pointer(),
                    n as i32
                ],
            )
            .unwrap();
        a.as_slice().iter().map(|x| *x as f32).collect()
    };
    let found = on_every_schedule(emulation, run);
    for (at, found) in found.into_iter().enumerate() {
        let (i, j) = (n - 1 - at / n, n - 1 - at % n);
        let expected = match i == j {
            true => diagonal[i] as f32,
            false => h[order[i] as usize * n + order[j] as usize],
        };
        assert_eq!(found, expected, "{i} {j}");
    }
}

#[test]
fn rows_of_the_inverse_become_rows_of_the_factor() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let n = 13;
    for (first, width) in [(0, 5), (5, 5), (10, 3)] {
        // What is right of the known columns is not read.
        let mut solved: Vec<f64> = numbers(width * n, 73).iter().map(|x| (*x).into()).collect();
        for row in solved.chunks_mut(n) {
            row[first..].fill(f64::NAN);
        }
        let inverse: Vec<f64> = numbers(width * width, 74)
            .iter()
            .map(|x| (*x).into())
            .collect();
        let run = || {
            let (solved, inverse) = (Guarded::from(&solved), Guarded::from(&inverse));
            let upper = Guarded::<f32>::poisoned(n * n);
            emulation
                .launch(
                    "store_upper",
                    [1, 1, 1],
                    [32, 1, 1],
                    0,
                    arguments![
                        solved.pointer(),
                        inverse.pointer(),
                        upper.pointer(),
                        n as i32,
                        first as i32,
                        width as i32
                    ],
                )
                .unwrap();
            to_vec(&upper)
        };
        let found = on_every_schedule(emulation, run);
        for i in 0..n {
            let row = &found[(n - 1 - i) * n..][..n];
            if !(first..first + width).contains(&i) {
                assert!(row.iter().all(|x| x.is_nan()), "row {i} was written");
                continue;
            }
            for j in 0..n {
                let expected = match j {
                    j if j < first => solved[(i - first) * n + j] as f32,
                    j if j < first + width => inverse[(i - first) * width + j - first] as f32,
                    _ => 0.0,
                };
                assert_eq!(row[n - 1 - j], expected, "{i} {j}");
            }
        }
    }
}

#[test]
fn columns_are_gathered_and_numbers_copied() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let (rows, k) = (5, 37);
    let from = numbers(rows * k, 75);
    let order: Vec<u32> = (0..k as u32).map(|i| i * 5 % k as u32).collect();
    let gather = || {
        let (from, order) = (Guarded::from(&from), Guarded::from(&order));
        let to = Guarded::<f32>::poisoned(rows * k);
        let (grid, block) = ([2, 2, 1], [32, 1, 1]);
        emulation
            .launch(
                "gather_columns",
                grid,
                block,
                0,
                arguments![
                    from.pointer(),
                    order.pointer(),
                    to.pointer(),
                    rows as i32,
                    k as i32
                ],
            )
            .unwrap();
        to_vec(&to)
    };
    let found = on_every_schedule(emulation, gather);
    for (at, found) in found.into_iter().enumerate() {
        assert_eq!(found, from[at / k * k + order[at % k] as usize]);
    }
    let copy = || {
        let (from, to) = (Guarded::from(&from), Guarded::<f32>::poisoned(rows * k));
        emulation
            .launch(
                "copy_f32",
                [2, 1, 1],
                [64, 1, 1],
                0,
                arguments![from.pointer(), to.pointer(), (rows * k) as i64],
            )
            .unwrap();
        to_vec(&to)
    };
    assert_eq!(on_every_schedule(emulation, copy), from);
}

#[test]
fn rows_are_multiplied_by_rows() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for k in [1, 31, 300] {
        let rows = 3;
        let (a, b) = (numbers(rows * k, 76), numbers(rows * k, 77));
        let run = || {
            let (a, b) = (Guarded::from(&a), Guarded::from(&b));
            let dots = Guarded::<f64>::poisoned(rows);
            emulation
                .launch(
                    "row_dots",
                    [rows as u32, 1, 1],
                    [256, 1, 1],
                    0,
                    arguments![a.pointer(), b.pointer(), dots.pointer(), k as i32],
                )
                .unwrap();
            dots.as_slice().iter().map(|x| *x as f32).collect()
        };
        let found = on_every_schedule(emulation, run);
        for (r, found) in found.into_iter().enumerate() {
            let pairs = a[r * k..(r + 1) * k].iter().zip(&b[r * k..]);
            let dot: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(found) - dot).abs() <= 1e-6 * k as f64, "{k} {r}");
        }
    }
}
