//! GPTQ's kernels: rounding against the arithmetic of the CPU, to the bit; the factor, composed
//! as the host composes it, against its definition.

use super::*;
use quantbench::quant::grid::{Grid, GridSpec};

/// What one block of columns is rounded to.
#[derive(Debug, Default, Clone)]
struct Block {
    codes: Vec<u8>,
    errors: Vec<f32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    failed: bool,
}

/// One call of `gptq_block`.
#[derive(Debug, Clone, Copy)]
struct Call {
    spec: GridSpec,
    rows: usize,
    k: usize,
    first: usize,
    width: usize,
    act_order: bool,
}

impl Call {
    fn group(&self) -> usize {
        self.spec.group_len(self.k)
    }

    /// A permutation that mixes all columns.
    fn order(&self) -> Vec<i32> {
        let mut order: Vec<i32> = (0..self.k as i32).collect();
        if self.act_order {
            order.sort_by_key(|i| i.wrapping_mul(0x5bd1_e995) >> 3);
        }
        order
    }

    /// U of all columns: upper triangular; what is below is not to be read.
    fn upper(&self) -> Vec<f32> {
        let mut u: Vec<f32> = numbers(self.k * self.k, 41)
            .iter()
            .map(|x| x * 0.2)
            .collect();
        for i in 0..self.k {
            u[i * self.k..][..i].fill(f32::NAN);
            u[i * (self.k + 1)] += 1.0;
        }
        u
    }

    /// As `harness/quant/gptq.rs` does it. `w` stands in the order of rounding.
    fn expected(&self, w: &[f32], fixed: &Block) -> Option<Block> {
        let (k, groups) = (self.k, self.spec.groups(self.k));
        let (upper, order) = (self.upper(), self.order());
        let mut block = fixed.clone();
        block.codes = vec![0xff; self.rows * k];
        for r in 0..self.rows {
            let mut row = w[r * k..][..k].to_vec();
            for at in self.first..self.first + self.width {
                let column = order[at] as usize;
                let g = r * groups + column / self.group();
                if at % self.group() == 0 && self.fits() {
                    let end = (at + self.group()).min(k);
                    let grid = self.spec.fit(&row[at..end])?;
                    (block.scales[g], block.zeros[g]) = (grid.scale, grid.zero);
                }
                let grid = Grid {
                    scale: block.scales[g],
                    zero: block.zeros[g],
                    top: self.spec.top(),
                };
                let code = grid.code(row[at]);
                block.codes[r * k + column] = code as u8;
                let u = &upper[at * k..][..k];
                let error = (row[at] - grid.level(code)) / u[at];
                block.errors.push(error);
                for j in at + 1..self.first + self.width {
                    row[j] -= error * u[j];
                }
            }
        }
        Some(block)
    }

    /// Whether grids are fitted on the way.
    fn fits(&self) -> bool {
        let start = self.first.is_multiple_of(self.group());
        let whole = (self.first + self.width).is_multiple_of(self.group());
        !self.act_order && start && (whole || self.first + self.width == self.k)
    }

    fn run(&self, emulation: &Emulation, w: &[f32], fixed: &Block) -> Block {
        let groups = self.spec.groups(self.k);
        let (w, upper) = (Guarded::from(w), Guarded::from(&self.upper()));
        let order = Guarded::from(&self.order());
        let scales = Guarded::from(&fixed.scales);
        let zeros = Guarded::from(&fixed.zeros);
        let codes = Guarded::<u8>::poisoned(self.rows * self.k);
        let errors = Guarded::<f32>::poisoned(self.rows * self.width);
        let failed = Guarded::from(&[0u32]);
        let order = match self.act_order {
            true => order.pointer(),
            false => std::ptr::null_mut(),
        };
        let upper = upper.pointer().wrapping_add(self.first * (self.k + 1));
        emulation
            .launch(
                "gptq_block",
                [self.rows.div_ceil(16) as u32, 1, 1],
                [128, 1, 1],
                0,
                arguments![
                    w.pointer(),
                    upper,
                    order,
                    scales.pointer(),
                    zeros.pointer(),
                    codes.pointer(),
                    errors.pointer(),
                    failed.pointer(),
                    self.rows as i32,
                    self.k as i32,
                    self.first as i32,
                    self.width as i32,
                    self.k as i64,
                    self.group() as i32,
                    groups as i32,
                    i32::from(self.fits()),
                    self.spec.top()
                ],
            )
            .unwrap();
        Block {
            codes: to_vec(&codes),
            errors: to_vec(&errors),
            scales: to_vec(&scales),
            zeros: to_vec(&zeros),
            failed: failed.as_slice()[0] != 0,
        }
    }

    /// Grids of some groups, fitted to `w` as it is.
    fn fit(&self, emulation: &Emulation, w: &[f32], which: std::ops::Range<usize>) -> Block {
        let groups = self.spec.groups(self.k);
        let count = self.rows * groups;
        let run = || {
            let w = Guarded::from(w);
            let scales = Guarded::<f32>::poisoned(count);
            let zeros = Guarded::<f32>::poisoned(count);
            let failed = Guarded::from(&[0u32]);
            emulation
                .launch(
                    "gptq_fit",
                    [which.len() as u32, self.rows.div_ceil(4) as u32, 1],
                    [128, 1, 1],
                    0,
                    arguments![
                        w.pointer(),
                        scales.pointer(),
                        zeros.pointer(),
                        failed.pointer(),
                        self.rows as i32,
                        self.k as i32,
                        self.group() as i32,
                        groups as i32,
                        which.start as i32,
                        self.spec.top()
                    ],
                )
                .unwrap();
            (to_vec(&scales), to_vec(&zeros), failed.as_slice()[0] != 0)
        };
        on_every_schedule(emulation, || {
            let (scales, zeros, _) = run();
            scales.into_iter().chain(zeros).collect()
        });
        let (scales, zeros, failed) = run();
        Block {
            scales,
            zeros,
            failed,
            ..Block::default()
        }
    }

    fn weights(&self) -> Vec<f32> {
        let mut w = numbers(self.rows * self.k, 42);
        for (i, x) in w.iter_mut().enumerate() {
            // Rows and columns of different size, and a row of zeros.
            *x *= 0.02 * (1 + i % self.k % 7) as f32;
            if self.rows > 2 && i / self.k == 1 {
                *x = 0.0;
            }
        }
        w
    }
}

fn same(found: &[f32], expected: &[f32]) -> bool {
    let equal = |(f, e): (&f32, &f32)| f == e || (f.is_nan() && e.is_nan());
    found.len() == expected.len() && found.iter().zip(expected).all(equal)
}

fn call(bits: u32, group_size: i64, rows: usize, k: usize, first: usize, width: usize) -> Call {
    Call {
        spec: GridSpec { bits, group_size },
        rows,
        k,
        first,
        width,
        act_order: false,
    }
}

#[test]
fn a_block_is_rounded_as_on_the_cpu() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let calls = [
        call(4, 128, 17, 128, 0, 128),
        call(4, 32, 3, 256, 128, 128),
        call(3, 64, 5, 200, 128, 72),
        call(2, 8, 16, 40, 0, 40),
        call(8, -1, 4, 97, 0, 97),
        call(4, 128, 1, 1, 0, 1),
        // Groups that are longer than the block: fitted beforehand.
        call(4, 256, 6, 300, 128, 128),
        call(4, -1, 6, 300, 256, 44),
    ];
    for plain in calls {
        for act_order in [false, true] {
            let call = Call { act_order, ..plain };
            let mut w = call.weights();
            if call.rows == 5 {
                w[2 * call.k + call.first + 3] = f32::NAN;
            }
            let groups = call.spec.groups(call.k);
            // With act-order `w` stands for the permuted weights; any grids do.
            let fixed = call.fit(emulation, &w, 0..groups);
            assert!(!fixed.failed);
            for r in 0..call.rows {
                for (g, range) in call.spec.ranges(call.k).enumerate() {
                    let grid = call.spec.fit(&w[r * call.k..][range]).unwrap();
                    let at = r * groups + g;
                    assert_eq!(
                        (fixed.scales[at], fixed.zeros[at]),
                        (grid.scale, grid.zero),
                        "{call:?}"
                    );
                }
            }
            let fixed = match call.fits() {
                true => Block {
                    scales: vec![f32::NAN; fixed.scales.len()],
                    zeros: vec![f32::NAN; fixed.scales.len()],
                    ..fixed
                },
                false => fixed,
            };
            let expected = call.expected(&w, &fixed).unwrap();
            on_every_schedule(emulation, || call.run(emulation, &w, &fixed).errors);
            let found = call.run(emulation, &w, &fixed);
            assert_eq!(found.codes, expected.codes, "{call:?}");
            assert!(same(&found.errors, &expected.errors), "{call:?}");
            assert!(same(&found.scales, &expected.scales), "{call:?}");
            assert!(same(&found.zeros, &expected.zeros), "{call:?}");
            assert!(!found.failed);
        }
    }
}

#[test]
fn ties_and_quotients_are_rounded_as_on_the_cpu() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let call = Call {
        act_order: true,
        ..call(4, 8, 500, 8, 0, 8)
    };
    let scales: Vec<f32> = numbers(call.rows, 43)
        .iter()
        .map(|x| f16::from_f32(0.03 + 0.02 * x).to_f32())
        .collect();
    // Halfway between two levels, or as near to it as F32 comes.
    let middle = |i: usize| scales[i / call.k] * ((i * 7 % 15) as f32 - 7.5);
    let w: Vec<f32> = (0..call.rows * call.k).map(middle).collect();
    let fixed = Block {
        zeros: (0..call.rows).map(|r| (r % 16) as f32).collect(),
        scales,
        ..Block::default()
    };
    let found = call.run(emulation, &w, &fixed);
    let expected = call.expected(&w, &fixed).unwrap();
    assert_eq!(found.codes, expected.codes);
    assert!(same(&found.errors, &expected.errors));
}

#[test]
fn a_step_beyond_f16_is_reported() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let call = call(4, 32, 2, 64, 0, 64);
    let mut w = call.weights();
    w[call.k + 40] = 3e38;
    assert!(call.expected(&w, &call.fit(emulation, &w, 0..2)).is_none());
    assert!(!call.fit(emulation, &w, 0..1).failed);
    let fixed = call.fit(emulation, &w, 1..2);
    assert!(fixed.failed);
    assert!(call.run(emulation, &w, &fixed).failed);
}

/// A floating-point type that matrices are factored in.
trait Real: Copy + Into<f64> {
    const KERNEL: &'static str;
    const TOLERANCE: f64;
    fn of(value: f64) -> Self;
}

impl Real for f32 {
    const KERNEL: &'static str = "cholesky_block_f32";
    const TOLERANCE: f64 = 2e-4;
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    const KERNEL: &'static str = "cholesky_block_f64";
    const TOLERANCE: f64 = 1e-11;
    fn of(value: f64) -> Self {
        value
    }
}

/// Symmetric, positive definite, `[n, n]`.
fn hessian(n: usize) -> Vec<f64> {
    let x = numbers(n * (n + 3), 51);
    let at = |i: usize, t: usize| f64::from(x[t * n + i]);
    (0..n * n)
        .map(|e| {
            let sum: f64 = (0..n + 3).map(|t| at(e / n, t) * at(e % n, t)).sum();
            sum + if e / n == e % n { 0.05 * n as f64 } else { 0.0 }
        })
        .collect()
}

/// Factors the block of `n` columns from `first` of the `[size, size]` matrix, in place; its
/// inverse, or `None`.
fn cholesky_block<T: Real>(
    emulation: &Emulation,
    a: &Guarded<T>,
    size: usize,
    first: usize,
    n: usize,
) -> Option<Vec<T>> {
    let inverse = Guarded::<T>::poisoned(n * n);
    let failed = Guarded::from(&[0u32]);
    emulation
        .launch(
            T::KERNEL,
            [1; 3],
            [256, 1, 1],
            0,
            arguments![
                a.pointer().wrapping_add(first * (size + 1)),
                inverse.pointer(),
                failed.pointer(),
                size as i64,
                n as i32
            ],
        )
        .unwrap();
    (failed.as_slice()[0] == 0).then(|| to_vec(&inverse))
}

/// `a[rows, inner] b[inner, columns]`, elements by index.
fn product(
    (rows, inner, columns): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    (0..rows * columns)
        .map(|i| {
            (0..inner)
                .map(|k| a(i / columns, k) * b(k, i % columns))
                .sum()
        })
        .collect()
}

/// `U` of the comment in gptq.cu, `[n, n]`.
fn factor<T: Real>(emulation: &Emulation, h: &[f64], n: usize) -> Vec<f64> {
    let reversed: Vec<T> = h.iter().rev().map(|x| T::of(*x)).collect();
    let mut a = Guarded::from(&reversed);
    let width = 64;
    let mut x = vec![0f64; n * n];
    for first in (0..n).step_by(width) {
        let w = width.min(n - first);
        let below = first + w;
        let inverse = cholesky_block(emulation, &a, n, first, w).expect("positive definite");
        let inverse: Vec<f64> = inverse.iter().map(|x| (*x).into()).collect();
        let of = |a: &Guarded<T>, i: usize, j: usize| -> f64 { a.as_slice()[i * n + j].into() };
        let l = product(
            (n - below, w, w),
            |i, k| of(&a, below + i, first + k),
            |k, j| inverse[j * w + k],
        );
        let update = product(
            (n - below, w, n - below),
            |i, k| l[i * w + k],
            |k, j| l[j * w + k],
        );
        for i in below..n {
            for j in 0..w {
                a.as_mut_slice()[i * n + first + j] = T::of(l[(i - below) * w + j]);
            }
            for j in below..n {
                let moved = update[(i - below) * (n - below) + j - below];
                let old = of(&a, i, j);
                a.as_mut_slice()[i * n + j] = T::of(old - moved);
            }
        }
        // Rows of this block of L^-1.
        let sums = product(
            (w, first, first),
            |i, k| of(&a, first + i, k),
            |k, j| x[k * n + j],
        );
        let rows = product(
            (w, w, first),
            |i, k| -inverse[i * w + k],
            |k, j| sums[k * first + j],
        );
        for i in 0..w {
            x[(first + i) * n..][..first].copy_from_slice(&rows[i * first..][..first]);
            x[(first + i) * n + first..][..w].copy_from_slice(&inverse[i * w..][..w]);
        }
    }
    x.reverse();
    x
}

fn factors<T: Real>(emulation: &Emulation) {
    for n in [1, 5, 64, 150] {
        let h = hessian(n);
        let u = factor::<T>(emulation, &h, n);
        for i in 0..n {
            assert!(u[i * n..][..i].iter().all(|x| *x == 0.0));
        }
        // H UT U = I.
        let inverse = product((n, n, n), |i, k| u[k * n + i], |k, j| u[k * n + j]);
        let identity = product((n, n, n), |i, k| h[i * n + k], |k, j| inverse[k * n + j]);
        for (e, found) in identity.iter().enumerate() {
            let expected = if e / n == e % n { 1.0 } else { 0.0 };
            assert!((found - expected).abs() < T::TOLERANCE, "{n} {e} {found}");
        }
    }
}

#[test]
fn the_factor_of_the_inverse_comes_out_of_blocks() {
    if let Some(emulation) = Emulation::get() {
        factors::<f32>(emulation);
        factors::<f64>(emulation);
    }
}

fn one_block<T: Real>(emulation: &Emulation) {
    let size = 70;
    for n in [1, 2, 33, 64] {
        let h = hessian(size);
        // Above the diagonal nothing is to be read.
        let lower = |i: usize| if i % size > i / size { f64::NAN } else { h[i] };
        let matrix: Vec<T> = (0..size * size).map(|i| T::of(lower(i))).collect();
        let run = || {
            let a = Guarded::from(&matrix);
            let inverse = cholesky_block(emulation, &a, size, 3, n).unwrap();
            let all = a.as_slice().iter().chain(&inverse);
            all.map(|x| (*x).into() as f32).collect()
        };
        let found = on_every_schedule(emulation, run);
        let (a, inverse) = found.split_at(size * size);
        for (i, before) in matrix.iter().enumerate() {
            let (row, column) = (i / size, i % size);
            let inside = |x: usize| (3..3 + n).contains(&x);
            let before: f64 = (*before).into();
            match inside(row) && inside(column) {
                true if column > row => assert_eq!(a[i], 0.0),
                true => assert!(a[i].is_finite()),
                false => assert!(a[i] == before as f32 || before.is_nan() && a[i].is_nan()),
            }
        }
        let l = |i: usize, j: usize| f64::from(a[(3 + i) * size + 3 + j]);
        let x = |i: usize, j: usize| f64::from(inverse[i * n + j]);
        let squared = product((n, n, n), l, |k, j| l(j, k));
        let identity = product((n, n, n), l, x);
        for e in 0..n * n {
            let (i, j) = (e / n, e % n);
            let expected = h[(3 + i) * size + 3 + j];
            assert!((squared[e] - expected).abs() < 1e-4, "{n} {i} {j}");
            let one = if i == j { 1.0 } else { 0.0 };
            assert!((identity[e] - one).abs() < 1e-5);
            assert!(j <= i || x(i, j) == 0.0);
        }
    }
    // A pivot that is negative, zero or none: nothing is written.
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let mut h = hessian(20);
        h[7 * 21] = bad;
        let matrix: Vec<T> = h.iter().map(|x| T::of(*x)).collect();
        let a = Guarded::from(&matrix);
        assert!(cholesky_block(emulation, &a, 20, 0, 20).is_none(), "{bad}");
        let kept = a.as_slice().iter().zip(&matrix);
        let bits = |x: T| -> f64 { x.into() };
        assert!(
            kept.into_iter()
                .all(|(a, b)| bits(*a).to_bits() == bits(*b).to_bits())
        );
    }
}

#[test]
fn a_diagonal_block_is_factored_and_inverted() {
    if let Some(emulation) = Emulation::get() {
        one_block::<f32>(emulation);
        one_block::<f64>(emulation);
    }
}

#[test]
fn both_orders_of_a_matrix_are_reversed() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let values = numbers(1003, 61);
    let narrow = Guarded::from(&values);
    let (wide, back) = (
        Guarded::<f64>::poisoned(1003),
        Guarded::<f32>::poisoned(1003),
    );
    let same_type = Guarded::<f32>::poisoned(1003);
    let launch = |kernel: &str, from: *mut f32, to: *mut f32| {
        let (grid, block) = ([2, 1, 1], [64, 1, 1]);
        emulation
            .launch(kernel, grid, block, 0, arguments![from, to, 1003i64])
            .unwrap();
    };
    launch("reverse_f32", narrow.pointer(), same_type.pointer());
    launch("reverse_f32_f64", narrow.pointer(), wide.pointer().cast());
    launch("reverse_f64_f32", wide.pointer().cast(), back.pointer());
    assert_eq!(back.as_slice(), values);
    let reversed: Vec<f32> = values.iter().rev().copied().collect();
    assert_eq!(same_type.as_slice(), reversed);
}
