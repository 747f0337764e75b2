//! Rows quantized to 8 bits, and the products of codes scaled back.

use super::*;
use quantbench::packed::fp8::Kind;

/// Codes, as bytes, and scales.
fn quantize(emulation: &Emulation, kernel: &str, x: &[f16], k: usize) -> (Vec<u8>, Vec<f32>) {
    let rows = x.len() / k;
    let run = || {
        let x = Guarded::from(x);
        let codes = Guarded::<u8>::poisoned(x.len());
        let scales = Guarded::<f32>::poisoned(rows);
        let grid = [rows as u32, 1, 1];
        emulation
            .launch(
                kernel,
                grid,
                [256, 1, 1],
                0,
                arguments![
                    x.pointer(),
                    codes.pointer(),
                    scales.pointer(),
                    rows as i32,
                    k as i32
                ],
            )
            .unwrap();
        (to_vec(&codes), to_vec(&scales))
    };
    let codes = on_every_schedule(emulation, || run().0);
    (codes, on_every_schedule(emulation, || run().1))
}

#[test]
fn rows_are_quantized_as_the_cpu_encodes() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let e4m3 = |x: f32| Kind::E4m3.encode(x);
    let int8 = |x: f32| x.round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    type Encode<'a> = &'a dyn Fn(f32) -> u8;
    let kernels: [(&str, f32, Encode); 2] = [
        ("quantize_rows_e4m3", 448.0, &e4m3),
        ("quantize_rows_int8", 127.0, &int8),
    ];
    for (rows, k) in [(1, 1), (3, 7), (2, 8), (4, 100), (17, 576), (1, 2056)] {
        let mut x = random_halves(rows * k, 1.0, 21);
        // Values over many powers of two, the smallest of them subnormal codes.
        for (i, x) in x.iter_mut().enumerate() {
            *x = f16::from_f32(x.to_f32() * 2f32.powi(i as i32 % 19 - 14));
        }
        if rows > 2 {
            x[k..2 * k].fill(f16::ZERO);
            x[2 * k] = f16::NEG_ZERO;
        }
        for (kernel, top, encode) in kernels {
            // A row whose scale is 1 and whose values lie halfway between codes.
            if rows > 3 {
                for (i, x) in x[3 * k..4 * k].iter_mut().enumerate() {
                    *x = f16::from_f32((i % 64) as f32 - 31.5);
                }
                x[3 * k] = f16::from_f32(top);
            }
            let (codes, scales) = quantize(emulation, kernel, &x, k);
            for ((x, codes), scale) in x.chunks(k).zip(codes.chunks(k)).zip(&scales) {
                let largest = x.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
                let expected = if largest == 0.0 { 1.0 } else { largest / top };
                assert_eq!(*scale, expected);
                for (x, code) in x.iter().zip(codes) {
                    assert_eq!(*code, encode(x.to_f32() / scale), "{kernel} {x} {scale}");
                }
            }
        }
    }
}

#[test]
fn a_row_with_nan_or_infinity_has_no_scale() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for k in [24usize, 25] {
        let mut x = random_halves(4 * k, 1.0, 22);
        x[3] = f16::NAN;
        x[k + k - 1] = f16::NEG_INFINITY;
        x[2 * k] = f16::MAX;
        for kernel in ["quantize_rows_e4m3", "quantize_rows_int8"] {
            let (codes, scales) = quantize(emulation, kernel, &x, k);
            assert!(scales[0].is_nan() && scales[1].is_nan());
            assert!(scales[2].is_finite() && scales[3].is_finite());
            assert!(codes[..2 * k].iter().all(|c| *c == 0));
            assert!(codes[2 * k..].iter().any(|c| *c != 0));
        }
    }
}

/// `struct Member` of linear.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Member {
    codes: *const u8,
    scales: *const u8,
    zeros: *const u8,
    bias: *const f16,
    y: *mut u8,
    n_out: i32,
    scales_per_row: i32,
}

/// One way to scale back.
#[derive(Debug, Clone, Copy)]
struct Rescale {
    rows: usize,
    n_out: usize,
    per_output: bool,
    bias: bool,
}

impl Rescale {
    fn check<Acc: Copy, Scale: Copy>(
        &self,
        emulation: &Emulation,
        kernel: &str,
        acc: &[Acc],
        scales: &[Scale],
        exact: impl Fn(usize, usize) -> f64,
    ) {
        let bias = random_halves(self.n_out, 1.0, 31);
        let x_scales: Vec<f32> = numbers(self.rows, 32).iter().map(|x| x + 2.0).collect();
        let before = numbers(self.rows * self.n_out, 33);
        let run = |output: i32| {
            let (acc, scales) = (Guarded::from(acc), Guarded::from(scales));
            let (bias, x_scales) = (Guarded::from(&bias), Guarded::from(&x_scales));
            let y_f16 = Guarded::<f16>::poisoned(before.len());
            let y_f32 = match output {
                1 => Guarded::from(&before),
                _ => Guarded::poisoned(before.len()),
            };
            let member = Member {
                codes: std::ptr::null(),
                scales: scales.pointer().cast(),
                zeros: std::ptr::null(),
                bias: if self.bias {
                    bias.pointer()
                } else {
                    std::ptr::null()
                },
                y: match output {
                    0 => y_f16.pointer().cast(),
                    _ => y_f32.pointer().cast(),
                },
                n_out: self.n_out as i32,
                scales_per_row: self.per_output.into(),
            };
            let grid = [self.rows as u32, self.n_out.div_ceil(4 * 64) as u32, 1];
            emulation
                .launch(
                    kernel,
                    grid,
                    [64, 1, 1],
                    0,
                    arguments![
                        acc.pointer(),
                        x_scales.pointer(),
                        member,
                        self.rows as i32,
                        output
                    ],
                )
                .unwrap();
            match output {
                0 => y_f16.as_slice().iter().map(|y| y.to_f32()).collect(),
                _ => to_vec(&y_f32),
            }
        };
        for output in 0..3 {
            let y = on_every_schedule(emulation, || run(output));
            for (i, y) in y.iter().enumerate() {
                let (row, n) = (i / self.n_out, i % self.n_out);
                let mut exact = exact(i, n) * f64::from(x_scales[row]);
                if self.bias {
                    exact += bias[n].to_f64();
                }
                if output == 1 {
                    exact += f64::from(before[i]);
                }
                if output == 0 {
                    assert_rounded(f16::from_f32(*y), exact, 1e-4);
                } else {
                    let error = (f64::from(*y) - exact).abs();
                    assert!(error <= 1e-5 * exact.abs().max(1.0), "{self:?} {y} {exact}");
                }
            }
        }
    }
}

#[test]
fn products_of_codes_are_scaled_back() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for (rows, n_out, per_output, bias) in [
        (1, 1, true, false),
        (3, 7, true, true),
        (2, 8, false, true),
        (5, 260, true, true),
        (2, 301, false, false),
    ] {
        let shape = Rescale {
            rows,
            n_out,
            per_output,
            bias,
        };
        let count = if per_output { n_out } else { 1 };
        let scales: Vec<f32> = numbers(count, 34).iter().map(|s| s * 0.01 + 0.02).collect();
        let at = |n: usize| if per_output { n } else { 0 };

        let acc: Vec<f32> = numbers(rows * n_out, 35)
            .iter()
            .map(|x| x * 900.0)
            .collect();
        shape.check(emulation, "rescale_f32", &acc, &scales, |i, n| {
            f64::from(acc[i]) * f64::from(scales[at(n)])
        });
        let acc: Vec<i32> = acc.iter().map(|x| (x * 10.0) as i32).collect();
        let scales = halves(&scales);
        shape.check(emulation, "rescale_i32", &acc, &scales, |i, n| {
            f64::from(acc[i]) * scales[at(n)].to_f64()
        });
    }
}
