//! A row-major product as the column-major one that the vendor's library knows.
//!
//! A row-major matrix `[r, c]` is, byte for byte, the column-major matrix `[c, r]` of its
//! transpose. So `y = x Wᵀ` is asked for as `yᵀ = W xᵀ`: the library's first operand is `Wᵀ`
//! `[k_in, n_out]`, to be transposed, the second `xᵀ` `[k_in, rows]`, not transposed. That is also
//! the only order in which it multiplies 8-bit types on tensor cores (cuBLAS documentation,
//! `cublasLtMatmul`, "TN format"). An operand that is stored as its transpose flips its own sign:
//! `w` is then not transposed, `x` is.

use super::driver::{Gemm, GemmKind};
use crate::{Error, Result};

/// A column-major matrix: the element of row `i` and column `j` is at `i + j * leading`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    pub rows: u64,
    pub columns: u64,
    pub leading: u64,
}

/// `d = aᵀ b`, or `d += aᵀ b`, column-major; `a` is the weight, `b` the activations. Layouts are
/// those in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ColumnMajor {
    pub kind: GemmKind,
    pub a: Layout,
    pub b: Layout,
    pub d: Layout,
    /// Whether the library transposes `a`, and `b`.
    pub transposes: [bool; 2],
    pub negated: bool,
    pub accumulate: bool,
    /// What divides the addresses of `a`, `b` and `d`, in bytes: the library chooses by it.
    pub alignments: [u32; 3],
}

impl ColumnMajor {
    /// # Errors
    /// [`Error::Unsupported`] for a shape or an address that the library does not take.
    pub fn new(gemm: &Gemm) -> Result<Self> {
        check(gemm)?;
        let (rows, n_out, k_in) = (gemm.rows as u64, gemm.n_out as u64, gemm.k_in as u64);
        let layout = |rows, columns, leading| Layout {
            rows,
            columns,
            leading,
        };
        let (w_stride, x_stride) = (gemm.w_stride as u64, gemm.x_stride as u64);
        Ok(ColumnMajor {
            kind: gemm.kind,
            a: match gemm.w_transposed {
                false => layout(k_in, n_out, w_stride),
                true => layout(n_out, k_in, w_stride),
            },
            b: match gemm.x_transposed {
                false => layout(k_in, rows, x_stride),
                true => layout(rows, k_in, x_stride),
            },
            d: layout(n_out, rows, gemm.y_stride as u64),
            transposes: [!gemm.w_transposed, gemm.x_transposed],
            negated: gemm.negated,
            accumulate: gemm.accumulate,
            alignments: [gemm.w, gemm.x, gemm.y].map(alignment),
        })
    }
}

impl GemmKind {
    /// Bytes of an element of `x` and `w`, and of `y`.
    pub fn element_bytes(self) -> (u64, u64) {
        match self {
            GemmKind::F16 { f32_output: false } => (2, 2),
            GemmKind::F16 { f32_output: true } => (2, 4),
            GemmKind::F32 => (4, 4),
            GemmKind::F64 => (8, 8),
            GemmKind::Fp8 | GemmKind::Int8 => (1, 4),
        }
    }

    /// What `k_in` and `n_out` must be multiples of, and the addresses of `x` and `w` in bytes.
    /// cuBLAS documentation, `cublasLtMatmul`: FP8 asks for dimensions and addresses that are
    /// multiples of 16 bytes, INT8 in plain order for multiples of 4.
    fn granularity(self) -> u64 {
        match self {
            GemmKind::F16 { .. } | GemmKind::F32 | GemmKind::F64 => 1,
            GemmKind::Fp8 => 16,
            GemmKind::Int8 => 4,
        }
    }
}

fn check(gemm: &Gemm) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::unsupported(
            format!("{what}, in a product of type {:?}", gemm.kind),
            "use the kernels of the stored format for this shape",
        ))
    };
    let (input, output) = gemm.kind.element_bytes();
    let granularity = gemm.kind.granularity();
    for (name, n) in [("k_in", gemm.k_in), ("n_out", gemm.n_out)] {
        if !(n as u64).is_multiple_of(granularity) {
            return refuse(format!("{name} = {n} is not a multiple of {granularity}"));
        }
    }
    let (x_width, w_width) = gemm.stored_widths();
    for (name, stride, width) in [
        ("x_stride", gemm.x_stride, x_width),
        ("w_stride", gemm.w_stride, w_width),
        ("y_stride", gemm.y_stride, gemm.n_out),
    ] {
        if stride < width || !(stride as u64).is_multiple_of(granularity) {
            return refuse(format!(
                "{name} = {stride} is less than {width} or not a multiple of {granularity}"
            ));
        }
    }
    let plain = !(gemm.x_transposed || gemm.w_transposed || gemm.negated);
    if granularity > 1 && !plain {
        return refuse("an operand that is transposed or a minus sign".into());
    }
    // Dimensions travel as 32-bit numbers in places.
    let strides = gemm.x_stride.max(gemm.w_stride).max(gemm.y_stride);
    if gemm.rows.max(strides).max(gemm.k_in) > i32::MAX as usize {
        return refuse("a dimension beyond 2^31".into());
    }
    for (name, address, bytes) in [
        ("x", gemm.x, granularity.max(input)),
        ("w", gemm.w, granularity.max(input)),
        ("y", gemm.y, granularity.max(output)),
    ] {
        if !address.is_multiple_of(bytes) {
            return refuse(format!(
                "the address of {name} is not a multiple of {bytes}"
            ));
        }
    }
    Ok(())
}

/// The largest power of two, up to 256, that divides an address.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gemm(kind: GemmKind, rows: usize, n_out: usize, k_in: usize) -> Gemm {
        Gemm::new(kind, [0x1000, 0x2000, 0x3000], [rows, n_out, k_in])
    }

    /// What the library computes, written from its definition.
    fn multiply(product: &ColumnMajor, a: &[f64], b: &[f64], d: &mut [f64]) {
        let at = |p: u64, q: u64, m: &Layout| {
            assert!(p < m.rows && q < m.columns && m.leading >= m.rows);
            (p + q * m.leading) as usize
        };
        let [a_turned, b_turned] = product.transposes;
        let inner = match a_turned {
            true => product.a.rows,
            false => product.a.columns,
        };
        for i in 0..product.d.rows {
            for j in 0..product.d.columns {
                let sum: f64 = (0..inner)
                    .map(|l| {
                        let a_at = match a_turned {
                            true => at(l, i, &product.a),
                            false => at(i, l, &product.a),
                        };
                        let b_at = match b_turned {
                            true => at(j, l, &product.b),
                            false => at(l, j, &product.b),
                        };
                        a[a_at] * b[b_at]
                    })
                    .sum();
                let sum = if product.negated { -sum } else { sum };
                let d = &mut d[at(i, j, &product.d)];
                *d = sum + if product.accumulate { *d } else { 0.0 };
            }
        }
    }

    #[test]
    fn column_major_is_the_row_major_product() {
        let (rows, n_out, k_in, y_stride) = (3, 5, 7, 9);
        let x: Vec<f64> = (0..rows * k_in)
            .map(|i| (i * 7 % 11) as f64 - 5.0)
            .collect();
        let w: Vec<f64> = (0..n_out * k_in)
            .map(|i| (i * 5 % 13) as f64 - 6.0)
            .collect();
        for accumulate in [false, true] {
            let product = ColumnMajor::new(&Gemm {
                y_stride,
                accumulate,
                ..gemm(GemmKind::F32, rows, n_out, k_in)
            })
            .unwrap();
            let before: Vec<f64> = (0..rows * y_stride).map(|i| i as f64).collect();
            let mut y = before.clone();
            multiply(&product, &w, &x, &mut y);
            for r in 0..rows {
                for n in 0..y_stride {
                    let at = r * y_stride + n;
                    let dot: f64 = match n < n_out {
                        true => (0..k_in).map(|k| x[r * k_in + k] * w[n * k_in + k]).sum(),
                        false => 0.0,
                    };
                    let kept = accumulate || n >= n_out;
                    let expected = dot + if kept { before[at] } else { 0.0 };
                    assert_eq!(y[at], expected, "row {r}, column {n}");
                }
            }
        }
    }

    #[test]
    fn operands_may_be_parts_and_transposed_and_the_sign_turned() {
        let (rows, n_out, k_in, stride) = (3, 5, 7, 11);
        let values = |seed: usize| -> Vec<f64> {
            (0..8 * stride)
                .map(|i| (i * seed % 17) as f64 - 8.0)
                .collect()
        };
        let (x, w) = (values(7), values(5));
        for bits in 0..8 {
            let [x_transposed, w_transposed, negated] = [1, 2, 4].map(|bit| bits & bit != 0);
            let product = ColumnMajor::new(&Gemm {
                x_stride: stride,
                w_stride: stride,
                x_transposed,
                w_transposed,
                negated,
                ..gemm(GemmKind::F64, rows, n_out, k_in)
            });
            let mut y = vec![0.0; rows * n_out];
            multiply(&product.unwrap(), &w, &x, &mut y);
            let of = |m: &[f64], row: usize, k: usize, transposed: bool| match transposed {
                true => m[k * stride + row],
                false => m[row * stride + k],
            };
            for (i, found) in y.iter().enumerate() {
                let dot: f64 = (0..k_in)
                    .map(|k| {
                        of(&x, i / n_out, k, x_transposed) * of(&w, i % n_out, k, w_transposed)
                    })
                    .sum();
                assert_eq!(*found, if negated { -dot } else { dot }, "{bits} {i}");
            }
        }
    }

    #[test]
    fn refuses_shapes_that_the_library_does_not_take() {
        let f16 = GemmKind::F16 { f32_output: false };
        let fine = [
            gemm(f16, 1, 3, 5),
            gemm(GemmKind::Fp8, 7, 576, 1536),
            gemm(GemmKind::Int8, 17, 12, 20),
        ];
        for gemm in fine {
            ColumnMajor::new(&gemm).unwrap();
        }
        let wrong = [
            ("k_in = 24", gemm(GemmKind::Fp8, 1, 16, 24)),
            ("n_out = 24", gemm(GemmKind::Fp8, 1, 24, 16)),
            ("k_in = 6", gemm(GemmKind::Int8, 1, 16, 6)),
            (
                "y_stride = 2",
                Gemm {
                    y_stride: 2,
                    ..fine[0]
                },
            ),
            (
                "y_stride = 584",
                Gemm {
                    y_stride: 584,
                    ..fine[1]
                },
            ),
            (
                "x_stride = 4",
                Gemm {
                    x_stride: 4,
                    ..fine[0]
                },
            ),
            (
                "transposed",
                Gemm {
                    w_transposed: true,
                    w_stride: 576,
                    ..fine[1]
                },
            ),
            (
                "address of x",
                Gemm {
                    x: 0x1008,
                    ..fine[1]
                },
            ),
            (
                "address of w",
                Gemm {
                    w: 0x2001,
                    ..fine[0]
                },
            ),
            (
                "address of y",
                Gemm {
                    y: 0x3002,
                    ..fine[2]
                },
            ),
            ("2^31", gemm(f16, 1 << 31, 16, 16)),
        ];
        for (what, gemm) in wrong {
            let error = ColumnMajor::new(&gemm).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }));
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn tells_how_addresses_are_aligned() {
        let product = ColumnMajor::new(&Gemm {
            x: 0x1010,
            w: 0x2000,
            y: 0x3044,
            ..gemm(GemmKind::F32, 1, 1, 1)
        });
        assert_eq!(product.unwrap().alignments, [256, 16, 4]);
    }
}
