//! The one factorization that GPTQ needs, in F64, blocked and parallel.

use rayon::prelude::*;

/// Columns that are solved together: small enough that the triangle stays in the first cache.
const PANEL: usize = 64;
/// Rows that one task carries through a panel.
const TASK: usize = 16;
/// Length of the piece of a dot product that stays in cache while a task's rows share it.
const DEPTH: usize = 256;

/// `Uᵀ`, row-major F32 `[n, n]`, for the upper triangular `U` with `H⁻¹ = Uᵀ U`; `None` when `H`
/// (`[n, n]`, symmetric, taken by value and overwritten) is not positive definite.
///
/// GPTQ asks for the Cholesky factor of the *inverse*. Neither the inverse nor a second
/// factorization is needed: let `P` reverse the order of the inputs and `P H P = L Lᵀ`. Then
/// `H⁻¹ = (P L⁻ᵀ P)(P L⁻¹ P)`, so that `Uᵀ = P L⁻ᵀ P`.
///
/// Rows `Y` of `L⁻ᵀ` solve `Y Lᵀ = I` and rows of `L` solve `L Lᵀ = P H P`: the same substitution,
/// [`solve_panel`], with another right-hand side. Every row runs through it alone, in an order
/// that depends on `n` only, hence bytes that do not depend on the number of threads.
pub fn inverse_factor(mut h: Vec<f64>, n: usize) -> Option<Vec<f32>> {
    assert_eq!(h.len(), n * n);
    h.reverse(); // P H P
    cholesky(&mut h, n)?;
    let l = h;

    let mut transposed = vec![0f32; n * n];
    transposed
        .par_chunks_mut((TASK * n).max(1))
        .enumerate()
        .for_each(|(task, out)| {
            // Rows of the result from the first; the matching rows of Y from the last.
            let rows = out.len() / n;
            let last = n - task * TASK;
            let first = last - rows;
            let mut y = vec![0f64; rows * n];
            for r in 0..rows {
                y[r * n + first + r] = 1.0;
            }
            // Row r of Y is zero before column r.
            let begin = first - first % PANEL;
            for from in (begin..n).step_by(PANEL) {
                let to = (from + PANEL).min(n);
                solve_panel(&mut y, n, &l[from * n..to * n], begin, from, to);
            }
            for (out, y) in out.chunks_mut(n).zip(y.rchunks(n)) {
                for (out, y) in out.iter_mut().zip(y.iter().rev()) {
                    *out = *y as f32;
                }
            }
        });
    Some(transposed)
}

/// Overwrites the lower triangle of `a` (`[n, n]`) by its Cholesky factor; what is above the
/// diagonal is left undefined. `None` when a pivot is not positive and finite.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for from in (0..n).step_by(PANEL) {
        let to = (from + PANEL).min(n);
        let (panel, below) = a[from * n..].split_at_mut((to - from) * n);
        // The panel's own rows first, one after the other: each needs those above it.
        for r in 0..to - from {
            let (done, row) = panel.split_at_mut(r * n);
            let row = &mut row[..n];
            let at = from + r;
            solve_panel(row, n, done, 0, from, at);
            let pivot = row[at] - dot(&row[..at], &row[..at]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            row[at] = pivot.sqrt();
        }
        let panel = &*panel;
        below
            .par_chunks_mut(TASK * n)
            .for_each(|rows| solve_panel(rows, n, panel, 0, from, to));
    }
    Some(())
}

/// One step of `X Lᵀ = B`, where each row of `rows` (`[_, n]`) holds `B` and, in its columns
/// before `from`, the part of `X` that is known: makes columns `from..to` known as well.
/// `panel` holds rows `from..to` of `L` (`[to - from, n]`); columns of `X` before `begin` are zero.
fn solve_panel(rows: &mut [f64], n: usize, panel: &[f64], begin: usize, from: usize, to: usize) {
    for start in (begin..from).step_by(DEPTH) {
        let depth = start..(start + DEPTH).min(from);
        subtract_products(rows, n, panel, depth, from);
    }
    for row in rows.chunks_mut(n) {
        for j in from..to {
            let l = &panel[(j - from) * n..][..n];
            row[j] = (row[j] - dot(&row[from..j], &l[from..j])) / l[j];
        }
    }
}

/// `rows[r][from + j] -= Σ_k rows[r][k] · panel[j][k]` for `k` in `depth`.
fn subtract_products(
    rows: &mut [f64],
    n: usize,
    panel: &[f64],
    depth: std::ops::Range<usize>,
    from: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the instructions that the function is compiled for are there.
        return unsafe { subtract_products_avx(rows, n, panel, depth, from) };
    }
    subtract_products_any(rows, n, panel, depth, from);
}

/// The same arithmetic in the same order, four at a time: without fused operations the result is
/// the same to the bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn subtract_products_avx(
    rows: &mut [f64],
    n: usize,
    panel: &[f64],
    depth: std::ops::Range<usize>,
    from: usize,
) {
    subtract_products_any(rows, n, panel, depth, from);
}

#[inline(always)]
fn subtract_products_any(
    rows: &mut [f64],
    n: usize,
    panel: &[f64],
    depth: std::ops::Range<usize>,
    from: usize,
) {
    for rows in rows.chunks_mut(4 * n) {
        for (pair, panel) in panel.chunks(2 * n).enumerate() {
            let at = from + 2 * pair;
            if rows.len() == 4 * n && panel.len() == 2 * n {
                let x = [0, 1, 2, 3].map(|r| &rows[r * n..][depth.clone()]);
                let l = [0, 1].map(|j| &panel[j * n..][depth.clone()]);
                let sums = dots(x, l);
                for (row, sums) in rows.chunks_mut(n).zip(sums) {
                    row[at] -= sums[0];
                    row[at + 1] -= sums[1];
                }
            } else {
                for row in rows.chunks_mut(n) {
                    for (j, l) in panel.chunks(n).enumerate() {
                        row[at + j] -= dot(&row[depth.clone()], &l[depth.clone()]);
                    }
                }
            }
        }
    }
}

/// Dot products of every `x` with every `l`, all of one length, each summed as [`dot`] does it.
#[inline(always)]
fn dots<const R: usize, const C: usize>(x: [&[f64]; R], l: [&[f64]; C]) -> [[f64; C]; R] {
    // Cut to one length that the compiler can see: no bounds are checked in the loop.
    let quads = x[0].len() / 4;
    let xs = x.map(|x| &x.as_chunks::<4>().0[..quads]);
    let ls = l.map(|l| &l.as_chunks::<4>().0[..quads]);
    let mut lanes = [[[0f64; 4]; C]; R];
    for k in 0..quads {
        for r in 0..R {
            for c in 0..C {
                for i in 0..4 {
                    lanes[r][c][i] += xs[r][k][i] * ls[c][k][i];
                }
            }
        }
    }
    let mut sums = [[0f64; C]; R];
    for r in 0..R {
        for c in 0..C {
            let [a, b, d, e] = lanes[r][c];
            let rest = x[r][4 * quads..].iter().zip(&l[c][4 * quads..]);
            sums[r][c] = ((a + b) + (d + e)) + rest.map(|(x, l)| x * l).sum::<f64>();
        }
    }
    sums
}

#[inline(always)]
fn dot(x: &[f64], l: &[f64]) -> f64 {
    dots([x], [l])[0][0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symmetric positive definite matrix without structure.
    fn example(n: usize) -> Vec<f64> {
        let b: Vec<f64> = (0..n * n)
            .map(|i| ((i * i * 31 + i * 17) % 103) as f64 / 51.0 - 1.0)
            .collect();
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = dot(&b[i * n..][..n], &b[j * n..][..n]);
            }
            h[i * n + i] += 0.1 * n as f64;
        }
        h
    }

    #[test]
    fn the_factor_reproduces_the_inverse() {
        // Below, at and across the sizes of tasks and panels.
        for n in [1, 2, 5, 15, 16, 17, 63, 64, 65, 130, 200, 323] {
            let h = example(n);
            let ut = inverse_factor(h.clone(), n).unwrap();
            for i in 0..n {
                assert!(ut[i * n + i + 1..(i + 1) * n].iter().all(|v| *v == 0.0));
            }
            // H Uᵀ U = I, with Uᵀ U summed in F64.
            let inverse = |i: usize, j: usize| -> f64 {
                (0..n)
                    .map(|k| f64::from(ut[i * n + k]) * f64::from(ut[j * n + k]))
                    .sum()
            };
            for (i, j) in [
                (0, 0),
                (n - 1, n - 1),
                (n / 2, 0),
                (0, n - 1),
                (n / 3, n / 2),
            ] {
                let product: f64 = (0..n).map(|k| h[i * n + k] * inverse(k, j)).sum();
                let identity = if i == j { 1.0 } else { 0.0 };
                assert!((product - identity).abs() < 1e-4, "{n} {i} {j} {product}");
            }
        }
    }

    #[test]
    fn indefinite_and_damaged_matrices_have_no_factor() {
        let mut h = example(70);
        h[69 * 70 + 69] = -1.0;
        assert!(inverse_factor(h, 70).is_none());
        let mut h = example(70);
        h[3 * 70 + 3] = f64::NAN;
        assert!(inverse_factor(h, 70).is_none());
        assert!(inverse_factor(vec![1.0, 1.0, 1.0, 1.0], 2).is_none());
        assert_eq!(inverse_factor(vec![], 0), Some(vec![]));
    }

    #[test]
    fn bytes_do_not_depend_on_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| inverse_factor(example(200), 200).unwrap())
        };
        assert_eq!(run(1), run(3));
    }
}
