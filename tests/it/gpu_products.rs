//! The CUDA products of every stored format, run on the CPU: against multiplication of the rounded
//! input by the format's own dequantized weight in F64, over rows, shapes, groups, members and
//! outputs, in every order of threads.

use crate::common::numbers;
use crate::emulation::{Emulation, Guarded, Schedule};
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use quantbench::packed::PackedLinear;
use quantbench::packed::dense::Dense;
use quantbench::packed::fp8::{Fp8, Kind};
use quantbench::packed::grouped::Grouped;
use quantbench::packed::int8::Int8;
use std::ffi::c_void;
use std::ptr::null;

/// `Member` of linear.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Member {
    codes: *const c_void,
    scales: *const c_void,
    zeros: *const c_void,
    bias: *const f16,
    y: *mut c_void,
    n_out: i32,
    scales_per_row: i32,
}

/// `Members` of linear.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Members {
    m: [Member; 3],
    count: i32,
}

/// `Output` of linear.cuh.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Output {
    StoreF16,
    AddF32,
    StoreF32,
}

const OUTPUTS: [Output; 3] = [Output::StoreF16, Output::AddF32, Output::StoreF32];
/// `LINEAR_THREADS` of linear.cuh.
const THREADS: [u32; 3] = [256, 1, 1];

/// `linear_tile` of linear.cuh.
fn tile(r: usize) -> usize {
    r.clamp(16, 32)
}

fn halves(count: usize, seed: u32) -> Vec<f16> {
    numbers(count, seed)
        .into_iter()
        .map(f16::from_f32)
        .collect()
}

/// Packs a weight of a shape.
type Pack = dyn Fn((usize, usize)) -> Box<dyn PackedLinear>;

/// A way to store a matrix.
struct Case {
    name: String,
    /// As kernels call it.
    format: String,
    pack: Box<Pack>,
}

fn scales(count: usize) -> Vec<f16> {
    let scale = |v: f32| f16::from_f32(0.01 + 0.005 * v);
    numbers(count, 3).into_iter().map(scale).collect()
}

fn cases() -> Vec<Case> {
    type Pack = Box<dyn Fn((usize, usize)) -> Box<dyn PackedLinear>>;
    let mut cases = Vec::new();
    let mut case = |name: &str, format: &str, pack: Pack| {
        let (name, format) = (name.to_owned(), format.to_owned());
        cases.push(Case { name, format, pack });
    };
    for dtype in [DType::F16, DType::F32, DType::BF16] {
        let pack = move |(n, k)| Dense::new(dtype, &numbers(n * k, 1), (n, k)).unwrap();
        case(
            dtype.as_str(),
            dtype.as_str(),
            Box::new(move |s| Box::new(pack(s))),
        );
    }
    for kind in Kind::ALL {
        let pack = move |(n, k)| {
            // Every code that is a number, subnormal ones included, but of E5M2 none so large
            // that it hides all others.
            let small = |&c: &u8| kind.decode(c).abs() <= 448.0;
            let valid: Vec<u8> = (0..=255).filter(small).collect();
            let codes: Vec<u8> = (0..n * k)
                .map(|i| valid[(i * 7 + i / 13) % valid.len()])
                .collect();
            let scales: Vec<f32> = scales(n).iter().map(|s| s.to_f32()).collect();
            Fp8::new(kind, &codes, &scales, (n, k)).unwrap()
        };
        let format = kind.name().trim_start_matches("fp8-");
        case(kind.name(), format, Box::new(move |s| Box::new(pack(s))));
    }
    let integers =
        |count| -> Vec<i8> { (0..count).map(|i| (i * 7 + i / 13) as u8 as i8).collect() };
    let pack = move |(n, k)| Int8::per_row(&integers(n * k), &scales(n), (n, k)).unwrap();
    case("int8 per row", "int8", Box::new(move |s| Box::new(pack(s))));
    let pack =
        move |(n, k)| Int8::per_matrix(&integers(n * k), f16::from_f32(0.02), (n, k)).unwrap();
    case(
        "int8 per matrix",
        "int8",
        Box::new(move |s| Box::new(pack(s))),
    );
    for bits in [2u32, 3, 4, 8] {
        for group in [32i64, 64, 128, -1, 24] {
            let pack = move |(n, k): (usize, usize)| {
                let groups = if group < 0 {
                    1
                } else {
                    k.div_ceil(group as usize)
                };
                let values = |count, seed| -> Vec<u8> {
                    let code = |v: f32| ((v + 1.0) / 2.0 * (1 << bits) as f32) as u8;
                    numbers(count, seed).into_iter().map(code).collect()
                };
                let (codes, zeros) = (values(n * k, 4), values(n * groups, 5));
                Grouped::new(bits, group, &codes, &scales(n * groups), &zeros, (n, k)).unwrap()
            };
            let (name, format) = (format!("u{bits} group {group}"), format!("u{bits}"));
            case(&name, &format, Box::new(move |s| Box::new(pack(s))));
        }
    }
    cases
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::U8 => flat.to_vec1::<u8>().unwrap(),
        DType::F16 => flat
            .to_vec1::<f16>()
            .unwrap()
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        DType::BF16 => flat
            .to_vec1::<bf16>()
            .unwrap()
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        _ => flat
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
    }
}

/// A matrix in device memory, and what it stands for.
struct Weight {
    n_out: usize,
    k_in: usize,
    codes: Guarded<u8>,
    scales: Guarded<u8>,
    zeros: Guarded<u8>,
    scales_per_row: usize,
    group: usize,
    values: Vec<f32>,
}

impl Weight {
    fn new(packed: &dyn PackedLinear) -> Self {
        let (n_out, k_in) = packed.shape();
        let stored = packed.stored();
        let of = |name| {
            let found = stored.iter().find(|s| s.name == name);
            Guarded::from(&found.map_or(Vec::new(), |s| bytes(&s.tensor)))
        };
        let scale_count = stored
            .iter()
            .find(|s| s.name == "scales")
            .map_or(0, |s| s.tensor.elem_count());
        let row = k_in.max(1).next_multiple_of(8);
        let group = usize::try_from(packed.spec().group_size).map_or(row, |g| g.clamp(8, row));
        let scales_per_row = scale_count / n_out;
        Self {
            n_out,
            k_in,
            codes: of("codes"),
            scales: of("scales"),
            zeros: of("zeros"),
            // One scale for the matrix is told from one per output by the format.
            scales_per_row: if packed.spec().group_size == 0 {
                0
            } else {
                scales_per_row
            },
            group,
            values: packed.dequantize().unwrap(),
        }
    }

    fn member(&self, bias: *const f16, y: *mut c_void) -> Member {
        Member {
            codes: self.codes.pointer().cast(),
            scales: self.scales.pointer().cast(),
            zeros: self.zeros.pointer().cast(),
            bias,
            y,
            n_out: self.n_out as i32,
            scales_per_row: self.scales_per_row as i32,
        }
    }
}

/// The smallest kernel that serves this many rows.
fn smallest(rows: usize) -> usize {
    [8, 16, 32, 64].into_iter().find(|&r| r >= rows).unwrap()
}

/// One launch, to be checked.
struct Product<'a> {
    format: &'a str,
    weights: &'a [&'a Weight],
    rows: usize,
    output: Output,
    bias: bool,
    /// Elements that x lies behind an address of full alignment.
    x_offset: usize,
}

impl Product<'_> {
    /// Runs in every schedule and checks every element.
    fn check(&self, name: &str) {
        let emulation = Emulation::get().unwrap();
        let (rows, k_in) = (self.rows, self.weights[0].k_in);
        let x = halves(rows * k_in + self.x_offset, rows as u32 + 7);
        let device_x = Guarded::from(&x);
        let x = &x[self.x_offset..];
        let r = smallest(rows);
        let mut first: Option<Vec<Vec<u8>>> = None;
        for schedule in Schedule::ALL {
            emulation.schedule(schedule);
            let biases: Vec<_> = self
                .weights
                .iter()
                .map(|w| Guarded::from(&halves(w.n_out, 11)))
                .collect();
            let outputs: Vec<_> = self.weights.iter().map(|w| self.output_of(w)).collect();
            let none = self.weights[0].member(null(), std::ptr::null_mut());
            let mut members = Members {
                m: [none; 3],
                count: self.weights.len() as i32,
            };
            let mut blocks = 0;
            for (i, w) in self.weights.iter().enumerate() {
                let bias = if self.bias {
                    biases[i].pointer().cast_const()
                } else {
                    null()
                };
                members.m[i] = w.member(bias, outputs[i].pointer().cast());
                blocks += w.n_out.div_ceil(tile(r));
            }
            let kernel = format!("linear_{}_r{r}", self.format);
            // SAFETY: inside the buffer.
            let x_pointer = unsafe { device_x.pointer().add(self.x_offset) };
            emulation
                .launch(
                    &kernel,
                    [blocks as u32, 1, 1],
                    THREADS,
                    0,
                    arguments![
                        members,
                        x_pointer,
                        rows as i32,
                        k_in as i32,
                        self.weights[0].group as i32,
                        self.output as i32,
                    ],
                )
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let found: Vec<Vec<u8>> = outputs.iter().map(|o| o.as_slice().to_vec()).collect();
            match &first {
                None => {
                    for (i, w) in self.weights.iter().enumerate() {
                        self.check_member(name, w, x, biases[i].as_slice(), &found[i]);
                    }
                    first = Some(found);
                }
                // The order of sums is fixed.
                Some(first) => assert!(*first == found, "{name}: {schedule:?} differs"),
            }
        }
    }

    /// What the result is added to.
    fn before(&self, w: &Weight) -> Vec<f32> {
        numbers(self.rows * w.n_out, 13)
    }

    fn output_of(&self, w: &Weight) -> Guarded<u8> {
        let count = self.rows * w.n_out;
        match self.output {
            Output::StoreF16 => Guarded::poisoned(2 * count),
            Output::StoreF32 => Guarded::poisoned(4 * count),
            Output::AddF32 => Guarded::from(
                &self
                    .before(w)
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<u8>>(),
            ),
        }
    }

    fn check_member(&self, name: &str, w: &Weight, x: &[f16], bias: &[f16], found: &[u8]) {
        let size = if self.output == Output::StoreF16 {
            2
        } else {
            4
        };
        let before = self.before(w);
        for (i, found) in found.chunks(size).enumerate() {
            let (row, n) = (i / w.n_out, i % w.n_out);
            let x = &x[row * w.k_in..(row + 1) * w.k_in];
            let weights = &w.values[n * w.k_in..(n + 1) * w.k_in];
            let products = x.iter().zip(weights).map(|(x, &w)| x.to_f64() * w as f64);
            let (mut expected, mut size) =
                products.fold((0.0, 0.0), |(sum, size), p: f64| (sum + p, size + p.abs()));
            if self.bias {
                expected += bias[n].to_f64();
                size += bias[n].to_f64().abs();
            }
            if self.output == Output::AddF32 {
                expected += before[i] as f64;
                size += before[i].abs() as f64;
            }
            // Products are exact; F32 sums lose far less than 16 units of the last place of the
            // sum of magnitudes.
            let mut tolerance = size * 2f64.powi(-20);
            let found = match found {
                [a, b] => {
                    tolerance += expected.abs() * 2f64.powi(-11) + 2f64.powi(-25);
                    f16::from_le_bytes([*a, *b]).to_f64()
                }
                four => f32::from_le_bytes(four.try_into().unwrap()) as f64,
            };
            assert!(
                (found - expected).abs() <= tolerance,
                "{name} [{}, {}], {} rows, {:?}: y[{row}, {n}] = {found}, not {expected}",
                w.n_out,
                w.k_in,
                self.rows,
                self.output
            );
        }
    }
}

#[test]
fn products_of_every_number_of_rows() {
    if Emulation::get().is_none() {
        return;
    }
    // Two blocks of 16 outputs, two loads of a lane, and a short last group.
    let shape = (19, 320);
    for case in cases() {
        let weight = Weight::new((case.pack)(shape).as_ref());
        for rows in 1..=64 {
            let product = Product {
                format: &case.format,
                weights: &[&weight],
                rows,
                output: OUTPUTS[rows % 3],
                bias: rows % 2 == 1,
                x_offset: 0,
            };
            product.check(&case.name);
        }
    }
}

#[test]
fn products_of_every_shape() {
    if Emulation::get().is_none() {
        return;
    }
    let shapes = [
        (1, 1),
        (1, 8),
        (7, 24),
        (37, 57),
        (17, 131),
        (33, 200),
        (130, 64),
        (40, 576),
        // Every warp has several turns of all its chunks, and the last chunk is short.
        (18, 6464),
        (5, 6463),
    ];
    for case in cases() {
        for (n, k) in shapes {
            let weight = Weight::new((case.pack)((n, k)).as_ref());
            for (i, rows) in [1, 3, 9, 17, 33].into_iter().enumerate() {
                let product = Product {
                    format: &case.format,
                    weights: &[&weight],
                    rows,
                    output: OUTPUTS[(i + n) % 3],
                    bias: i % 2 == 0,
                    x_offset: 0,
                };
                product.check(&case.name);
            }
        }
    }
}

#[test]
fn products_of_several_matrices_in_one_launch() {
    if Emulation::get().is_none() {
        return;
    }
    let outputs: [&[usize]; 4] = [&[37, 5, 16], &[16, 16], &[65, 1, 100], &[1, 64, 17]];
    for case in cases() {
        for (i, outputs) in outputs.into_iter().enumerate() {
            let weights: Vec<Weight> = outputs
                .iter()
                .map(|&n| Weight::new((case.pack)((n, 192)).as_ref()))
                .collect();
            let weights: Vec<&Weight> = weights.iter().collect();
            for rows in [1, 12, 20, 64] {
                let product = Product {
                    format: &case.format,
                    weights: &weights,
                    rows,
                    output: OUTPUTS[(i + rows) % 3],
                    bias: i % 2 == 0,
                    x_offset: 0,
                };
                product.check(&case.name);
            }
        }
    }
}

#[test]
fn an_input_at_any_address() {
    if Emulation::get().is_none() {
        return;
    }
    for case in cases() {
        let weight = Weight::new((case.pack)((20, 256)).as_ref());
        for x_offset in [1, 4, 8] {
            let product = Product {
                format: &case.format,
                weights: &[&weight],
                rows: 2,
                output: Output::StoreF16,
                bias: false,
                x_offset,
            };
            product.check(&case.name);
        }
    }
}

#[test]
fn dequantized_rows_are_the_oracles_rounded_once() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for case in cases() {
        let kernel = match case.format.as_str() {
            "f16" | "f32" => continue,
            "bf16" => "widen_bf16".to_owned(),
            format => format!("dequant_{format}"),
        };
        for (n, k) in [(9, 320), (5, 57), (3, 1), (4, 600)] {
            let weight = Weight::new((case.pack)((n, k)).as_ref());
            let member = weight.member(null(), std::ptr::null_mut());
            for (first, rows) in [(0, n), (1, n - 1), (n - 1, 1)] {
                let wide = if case.format == "bf16" { 4 } else { 2 };
                let out = Guarded::<u8>::poisoned(wide * rows * k);
                for grid in [[1, 1, 1], [2, 3, 1]] {
                    emulation
                        .launch(
                            &kernel,
                            grid,
                            [64, 1, 1],
                            0,
                            arguments![
                                member,
                                out.pointer(),
                                first as i32,
                                rows as i32,
                                k as i32,
                                weight.group as i32,
                            ],
                        )
                        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
                    let expected = &weight.values[first * k..(first + rows) * k];
                    let expected: Vec<u8> = match wide {
                        4 => expected.iter().flat_map(|v| v.to_le_bytes()).collect(),
                        _ => expected
                            .iter()
                            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                            .collect(),
                    };
                    assert!(out.as_slice() == expected, "{} [{n}, {k}]", case.name);
                }
            }
        }
    }
}
