//! A row-major product as the column-major one that the vendor's library knows.
//!
//! A row-major matrix `[r, c]` is, byte for byte, the column-major matrix `[c, r]` of its
//! transpose. So `y = x Wᵀ` is asked for as `yᵀ = W xᵀ`: the library's first operand is `Wᵀ`
//! `[k_in, n_out]`, to be transposed, the second `xᵀ` `[k_in, rows]`, not transposed. That is also
//! the only order in which it multiplies 8-bit types on tensor cores (cuBLAS documentation,
//! `cublasLtMatmul`, "TN format").

use super::{Gemm, GemmKind};
use crate::{Error, Result};

/// A column-major matrix: the element of row `i` and column `j` is at `i + j * leading`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    pub rows: u64,
    pub columns: u64,
    pub leading: u64,
}

/// `d = aᵀ b`, or `d += aᵀ b`, column-major; `a` is the weight, `b` the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ColumnMajor {
    pub kind: GemmKind,
    pub a: Layout,
    pub b: Layout,
    pub d: Layout,
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
        Ok(ColumnMajor {
            kind: gemm.kind,
            a: layout(k_in, n_out, k_in),
            b: layout(k_in, rows, k_in),
            d: layout(n_out, rows, gemm.y_stride as u64),
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
            GemmKind::Fp8 | GemmKind::Int8 => (1, 4),
        }
    }

    /// What `k_in` and `n_out` must be multiples of, and the addresses of `x` and `w` in bytes.
    /// cuBLAS documentation, `cublasLtMatmul`: FP8 asks for dimensions and addresses that are
    /// multiples of 16 bytes, INT8 in plain order for multiples of 4.
    fn granularity(self) -> u64 {
        match self {
            GemmKind::F16 { .. } | GemmKind::F32 => 1,
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
    if gemm.y_stride < gemm.n_out || !(gemm.y_stride as u64).is_multiple_of(granularity) {
        return refuse(format!(
            "y_stride = {} is less than n_out or not a multiple of {granularity}",
            gemm.y_stride
        ));
    }
    // Dimensions travel as 32-bit numbers in places.
    if gemm.rows.max(gemm.y_stride).max(gemm.k_in) > i32::MAX as usize {
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
        Gemm {
            kind,
            x: 0x1000,
            w: 0x2000,
            y: 0x3000,
            rows,
            n_out,
            k_in,
            y_stride: n_out,
            accumulate: false,
        }
    }

    /// What the library computes, written from its definition.
    fn multiply(product: &ColumnMajor, a: &[f64], b: &[f64], d: &mut [f64]) {
        for i in 0..product.a.columns {
            for j in 0..product.b.columns {
                let at = |p: u64, q: u64, m: &Layout| (p + q * m.leading) as usize;
                let sum: f64 = (0..product.a.rows)
                    .map(|l| a[at(l, i, &product.a)] * b[at(l, j, &product.b)])
                    .sum();
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
