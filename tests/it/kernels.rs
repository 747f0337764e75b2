//! Contracts of every stored format: its product against multiplication by its own dequantized
//! weight, on every instruction set and over thread counts; its bytes; its round trip through
//! `stored` and `load`; and what it refuses. A format that is registered but not in the table
//! below fails the first test.

use crate::allocations::peak_bytes;
use crate::common::numbers;
use candle_core::{DType, Device, Tensor};
use half::f16;
use quantbench::packed::activations::{Activations, MAX_INPUTS};
use quantbench::packed::cpu::{self, Path};
use quantbench::packed::dense::Dense;
use quantbench::packed::fp8::{Fp8, Kind};
use quantbench::packed::fp8_a8::Fp8A8;
use quantbench::packed::grouped::Grouped;
use quantbench::packed::int8::Int8;
use quantbench::packed::int8_a8::Int8A8;
use quantbench::packed::{FORMATS, FormatSpec, PackedLinear, load, random};
use quantbench::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

type Pack = dyn Fn((usize, usize)) -> Box<dyn PackedLinear>;

/// One way to store a matrix, and what it must take.
struct Case {
    name: String,
    format: &'static str,
    pack: Box<Pack>,
    bytes: Box<dyn Fn((usize, usize)) -> usize>,
}

fn case(
    name: impl Into<String>,
    format: &'static str,
    pack: impl Fn((usize, usize)) -> Box<dyn PackedLinear> + 'static,
    bytes: impl Fn((usize, usize)) -> usize + 'static,
) -> Case {
    Case {
        name: name.into(),
        format,
        pack: Box::new(pack),
        bytes: Box::new(bytes),
    }
}

fn scales(count: usize) -> Vec<f16> {
    let scale = |v: f32| f16::from_f32(0.01 + 0.005 * v);
    numbers(count, 3).into_iter().map(scale).collect()
}

fn f32_scales(count: usize) -> Vec<f32> {
    scales(count).iter().map(|s| s.to_f32()).collect()
}

/// Every code that is a number, subnormal ones included.
fn fp8_codes(kind: Kind, count: usize) -> Vec<u8> {
    let valid: Vec<u8> = (0..=255).filter(|&c| kind.decode(c).is_finite()).collect();
    (0..count)
        .map(|i| valid[(i * 7 + i / 13) % valid.len()])
        .collect()
}

/// Every byte.
fn integers(count: usize) -> Vec<i8> {
    let all: Vec<i8> = (-128..=127).collect();
    (0..count).map(|i| all[(i * 7 + i / 13) % 256]).collect()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, size) in [(DType::F32, 4), (DType::F16, 2), (DType::BF16, 2)] {
        cases.push(case(
            dtype.as_str(),
            dtype.as_str(),
            move |(n, k)| Box::new(Dense::new(dtype, &numbers(n * k, 1), (n, k)).unwrap()),
            move |(n, k)| size * n * k,
        ));
    }
    for kind in Kind::ALL {
        cases.push(case(
            kind.name(),
            kind.name(),
            move |(n, k)| {
                Box::new(Fp8::new(kind, &fp8_codes(kind, n * k), &f32_scales(n), (n, k)).unwrap())
            },
            |(n, k)| n * k + 4 * n,
        ));
    }
    cases.push(case(
        "fp8 with fp8 inputs",
        "fp8-e4m3-a8",
        |(n, k)| {
            let codes = fp8_codes(Kind::E4m3, n * k);
            Box::new(Fp8A8::new(&codes, &f32_scales(n), (n, k)).unwrap())
        },
        |(n, k)| n * k + 4 * n,
    ));
    cases.push(case(
        "int8 with int8 inputs",
        "int8-a8",
        |(n, k)| Box::new(Int8A8::new(&integers(n * k), &scales(n), (n, k)).unwrap()),
        |(n, k)| n * k + 2 * n,
    ));
    cases.push(case(
        "int8 per row",
        "int8",
        |(n, k)| Box::new(Int8::per_row(&integers(n * k), &scales(n), (n, k)).unwrap()),
        |(n, k)| n * k + 2 * n,
    ));
    cases.push(case(
        "int8 per matrix",
        "int8",
        |(n, k)| {
            let scale = f16::from_f32(0.02);
            Box::new(Int8::per_matrix(&integers(n * k), scale, (n, k)).unwrap())
        },
        |(n, k)| n * k + 2,
    ));
    for bits in [2u32, 3, 4, 8] {
        for group in [8, 24, 32, 64, 128, -1] {
            let groups = move |k: usize| match group {
                -1 => 1,
                g => k.div_ceil(g as usize),
            };
            cases.push(case(
                format!("uint{bits} group {group}"),
                "uint-grouped",
                move |(n, k)| {
                    let values = |count, seed| -> Vec<u8> {
                        let code = |v: f32| ((v + 1.0) / 2.0 * (1 << bits) as f32) as u8;
                        numbers(count, seed).into_iter().map(code).collect()
                    };
                    let count = n * groups(k);
                    Box::new(
                        Grouped::new(
                            bits,
                            group,
                            &values(n * k, 4),
                            &scales(count),
                            &values(count, 5),
                            (n, k),
                        )
                        .unwrap(),
                    )
                },
                move |(n, k)| {
                    let bits = bits as usize;
                    let count = n * groups(k);
                    n * k.div_ceil(8) * bits + 2 * count + (count * bits).div_ceil(8)
                },
            ));
        }
    }
    cases
}

fn tensor(rows: usize, k: usize, seed: u32) -> Tensor {
    Tensor::from_vec(numbers(rows * k, seed), (rows, k), &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// What a product multiplies: its inputs, or those rounded as `packed::activations` documents it,
/// in so many words.
fn seen(packed: &dyn PackedLinear, mut x: Vec<f32>) -> Vec<f32> {
    let Some(activations) = packed.activations() else {
        return x;
    };
    for row in x.chunks_mut(packed.shape().1) {
        let largest = row.iter().fold(0f32, |m, x| m.max(x.abs()));
        let (top, nearest): (f32, fn(f32) -> f32) = match activations {
            Activations::Int8 => (127.0, |v| v.round_ties_even().clamp(-127.0, 127.0)),
            Activations::E4m3 => (448.0, |v| Kind::E4m3.decode(Kind::E4m3.encode(v))),
        };
        let scale = (largest / top).max(f32::MIN_POSITIVE);
        let mut rounded = row.to_vec();
        activations.round(&mut rounded);
        row.iter_mut()
            .for_each(|x| *x = nearest(*x / scale) * scale);
        assert_eq!(row, rounded, "{}", activations.name());
    }
    x
}

/// What products started by this thread give on a path.
fn on<R>(path: Path, f: impl FnOnce() -> R) -> R {
    cpu::force(Some(path)).unwrap();
    let result = f();
    cpu::force(None).unwrap();
    result
}

/// Checks `y = x wᵀ` against sums in F64, within 1e-5 of the largest magnitude of each row.
fn check(name: &str, x: &[f32], w: &[f32], y: &[f32], (rows, n, k): (usize, usize, usize)) {
    assert_eq!(y.len(), rows * n, "{name}");
    for r in 0..rows {
        let x = &x[r * k..(r + 1) * k];
        let expected: Vec<f64> = (0..n)
            .map(|i| {
                let w = &w[i * k..(i + 1) * k];
                x.iter().zip(w).map(|(&a, &b)| a as f64 * b as f64).sum()
            })
            .collect();
        let mut largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        if n == 1 {
            // A lone sum may cancel to almost nothing, and then says nothing of its magnitude.
            let squares = x
                .iter()
                .zip(w)
                .map(|(&a, &b)| (a as f64 * b as f64).powi(2));
            largest = largest.max(squares.sum::<f64>().sqrt());
        }
        for (i, (&found, expected)) in y[r * n..(r + 1) * n].iter().zip(expected).enumerate() {
            // Not `>`, which NaN would pass.
            let close = (found as f64 - expected).abs() <= 1e-5 * largest;
            assert!(
                close,
                "{name} [{n}, {k}]: y[{r}, {i}] = {found}, not {expected}"
            );
        }
    }
}

#[test]
fn the_table_covers_every_registered_format() {
    let registered: BTreeSet<&str> = FORMATS.iter().flat_map(|f| f.names()).copied().collect();
    let tested: BTreeSet<&str> = cases().iter().map(|c| c.format).collect();
    assert_eq!(registered, tested);
    let count: usize = FORMATS.iter().map(|f| f.names().len()).sum();
    assert_eq!(registered.len(), count, "a name has two formats");
}

#[test]
fn products_equal_those_of_the_dequantized_weight() {
    let shapes = [
        (1, 8),
        (1, 24),
        (7, 24),
        (37, 57),
        (7, 131),
        (37, 200),
        (7, 576),
        (37, 1),
        // Two chunks of k in the tile kernel, and more weight rows than a task.
        (67, 1100),
    ];
    for case in cases() {
        for (n, k) in shapes {
            let packed = (case.pack)((n, k));
            let weights = packed.dequantize().unwrap();
            assert_eq!(weights.len(), n * k);
            let all = (n, k) == (7, 131);
            let rows: Vec<usize> = match all {
                true => (1..=64).collect(),
                false => vec![1, 2, 3, 4, 8, 9, 17],
            };
            for path in Path::available() {
                on(path, || {
                    for &rows in &rows {
                        let x = tensor(rows, k, rows as u32);
                        let y = packed.forward(&x).unwrap();
                        assert_eq!(y.dims(), [rows, n]);
                        let name = format!("{} on {}, {rows} rows", case.name, path.name());
                        let x = seen(&*packed, values(&x));
                        check(&name, &x, &weights, &values(&y), (rows, n, k));
                    }
                    assert!(packed.kernel(1).ends_with(path.name()));
                    assert!(packed.kernel(64).ends_with(path.name()));
                });
            }
        }
    }
}

#[test]
fn dequantized_values_are_the_documented_ones() {
    let half = f16::from_f32(0.5);
    let grouped = Grouped::new(
        4,
        8,
        &[0, 15, 7, 1, 2, 3, 4, 5, 9],
        &[half, f16::ONE],
        &[7, 10],
        (1, 9),
    );
    let expected = [-3.5, 4.0, 0.0, -3.0, -2.5, -2.0, -1.5, -1.0, -1.0];
    assert_eq!(grouped.unwrap().dequantize().unwrap(), expected);
    let int8 = Int8::per_row(&[-128, 127, 1, -1], &[half, f16::ONE], (2, 2)).unwrap();
    assert_eq!(int8.dequantize().unwrap(), [-64.0, 63.5, 1.0, -1.0]);
    let int8 = Int8::per_matrix(&[-128, 127, 1, -1], half, (2, 2)).unwrap();
    assert_eq!(int8.dequantize().unwrap(), [-64.0, 63.5, 0.5, -0.5]);
    let fp8 = Fp8::new(Kind::E4m3, &[0x38, 0xfe], &[2.0], (1, 2)).unwrap();
    assert_eq!(fp8.dequantize().unwrap(), [2.0, -896.0]);
    let f16 = Dense::new(DType::F16, &[1.0 + 1.0 / 4096.0], (1, 1)).unwrap();
    assert_eq!(f16.dequantize().unwrap(), [1.0]);
}

#[test]
fn results_are_bit_identical_for_any_number_of_threads() {
    // Large enough to be split: see `cpu::product`.
    let (n, k) = (4100, 576);
    for case in cases().iter().filter(|c| !c.name.contains("group 8")) {
        let packed = (case.pack)((n, k));
        for path in Path::available() {
            for rows in [1, 3, 17] {
                if path == Path::Portable && rows > 1 && cfg!(debug_assertions) {
                    continue;
                }
                let x = tensor(rows, k, 6);
                let bits: Vec<Vec<u32>> = [1, 2, 5]
                    .map(|threads| {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                        let pool = pool.build().unwrap();
                        let y = pool.install(|| on(path, || packed.forward(&x).unwrap()));
                        values(&y).iter().map(|v| v.to_bits()).collect()
                    })
                    .into();
                assert!(
                    bits.windows(2).all(|w| w[0] == w[1]),
                    "{} on {}, {rows} rows",
                    case.name,
                    path.name()
                );
            }
        }
    }
}

#[test]
fn dense_products_overwrite_what_was_there() {
    for (rows, n, k) in [
        (1, 5, 33),
        (9, 130, 1030),
        (70, 3, 8),
        (3, 4, 0),
        (70, 3, 0),
    ] {
        let (x, w) = (numbers(rows * k, 1), numbers(n * k, 2));
        for path in Path::available() {
            let mut y = vec![f32::NAN; rows * n];
            on(path, || cpu::product_f32(&x, &w, rows, n, k, &mut y)).unwrap();
            check("product_f32", &x, &w, &y, (rows, n, k));
        }
    }
}

#[test]
fn an_input_inside_a_larger_tensor_is_read_where_it_lies() {
    let weights = numbers(6 * 40, 1);
    let packed = Dense::new(DType::F32, &weights, (6, 40)).unwrap();
    let x = tensor(10, 40, 2);
    let part = x.narrow(0, 3, 4).unwrap();
    let y = packed.forward(&part).unwrap();
    check(
        "narrowed",
        &values(&part),
        &weights,
        &values(&y),
        (4, 6, 40),
    );
}

#[test]
fn inputs_that_are_not_what_is_documented_are_refused() {
    let device = &Device::Cpu;
    for case in cases() {
        let packed = (case.pack)((5, 24));
        let refused = [
            Tensor::zeros((2, 23), DType::F32, device).unwrap(),
            Tensor::zeros((2, 24), DType::F16, device).unwrap(),
            Tensor::zeros(24, DType::F32, device).unwrap(),
            Tensor::zeros((24, 2), DType::F32, device)
                .unwrap()
                .t()
                .unwrap(),
        ];
        for x in refused {
            assert!(packed.forward(&x).is_err(), "{} {x:?}", case.name);
        }
        let none = Tensor::zeros((0, 24), DType::F32, device).unwrap();
        assert_eq!(packed.forward(&none).unwrap().dims(), [0, 5]);
    }
}

#[test]
fn bytes_are_those_of_the_documented_layout() {
    for case in cases() {
        for shape in [(1, 8), (7, 57), (37, 200), (16, 576), (64, 1024)] {
            let packed = (case.pack)(shape);
            assert_eq!(
                packed.bytes(),
                (case.bytes)(shape),
                "{} {shape:?}",
                case.name
            );
        }
    }
    let bits_per_weight = |shape: (usize, usize)| {
        let cases = cases();
        let case = cases.iter().find(|c| c.name == "uint4 group 128").unwrap();
        8.0 * (case.pack)(shape).bytes() as f64 / (shape.0 * shape.1) as f64
    };
    assert_eq!(bits_per_weight((64, 1024)), 4.15625);
    assert_eq!(bits_per_weight((64, 576)), 4.0 + 20.0 * 5.0 / 576.0);
}

type Tensors = BTreeMap<String, Tensor>;

fn tensors(packed: &dyn PackedLinear) -> Tensors {
    let stored = packed.stored().into_iter();
    stored.map(|s| (s.name.to_string(), s.tensor)).collect()
}

fn reload(
    spec: &FormatSpec,
    shape: (usize, usize),
    tensors: &Tensors,
) -> Result<Box<dyn PackedLinear>> {
    load(spec, shape, &mut |name| {
        let missing = || Error::usage(format!("no tensor {name}"), "");
        tensors.get(name).cloned().ok_or_else(missing)
    })
}

/// The bytes of a tensor of any dtype that formats store.
fn bytes(t: &Tensor) -> Vec<u8> {
    let flat = t.flatten_all().unwrap();
    match t.dtype() {
        DType::U8 => flat.to_vec1().unwrap(),
        DType::F32 => {
            let v: Vec<f32> = flat.to_vec1().unwrap();
            v.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        DType::F16 => {
            let v: Vec<f16> = flat.to_vec1().unwrap();
            v.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        DType::BF16 => {
            let v: Vec<half::bf16> = flat.to_vec1().unwrap();
            v.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn loading_what_was_stored_is_the_identity() {
    for case in cases() {
        for shape in [(1, 8), (7, 57), (37, 200)] {
            let packed = (case.pack)(shape);
            let spec = packed.spec();
            assert_eq!(spec.format, case.format);
            let again = reload(&spec, shape, &tensors(&*packed)).unwrap();
            assert_eq!((again.spec(), again.shape()), (spec, shape));
            let (a, b) = (packed.stored(), again.stored());
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(&b) {
                assert_eq!(a.name, b.name);
                assert_eq!(a.tensor.dtype(), b.tensor.dtype());
                assert_eq!(a.tensor.dims(), b.tensor.dims());
                assert_eq!(
                    bytes(&a.tensor),
                    bytes(&b.tensor),
                    "{} {}",
                    case.name,
                    a.name
                );
            }
            assert_eq!(packed.dequantize().unwrap(), again.dequantize().unwrap());
        }
    }
}

#[test]
fn random_weights_are_weights_of_their_format() {
    for case in cases() {
        // The last two leave padding behind the codes of a row.
        for (n, k) in [(300, 1024), (200, 577), (1, 3)] {
            let spec = (case.pack)((n, k)).spec();
            let make = |seed| random(&spec, (n, k), seed).unwrap();
            let made = make(1);
            assert_eq!(made.shape(), (n, k), "{}", case.name);
            assert_eq!(made.spec(), spec, "{}", case.name);
            assert_eq!(made.bytes(), (case.bytes)((n, k)), "{}", case.name);
            let bytes_of = |p: &dyn PackedLinear| -> Vec<Vec<u8>> {
                p.stored().iter().map(|s| bytes(&s.tensor)).collect()
            };
            // Loading refuses what is no number; padding is what quantizing leaves there.
            let loaded = reload(&spec, (n, k), &tensors(&*made)).unwrap();
            assert!(bytes_of(loaded.as_ref()) == bytes_of(made.as_ref()));
            assert!(bytes_of(make(1).as_ref()) == bytes_of(made.as_ref()));
            assert!(bytes_of(make(2).as_ref()) != bytes_of(made.as_ref()));
            if k % 8 != 0 && spec.format == "uint-grouped" {
                let used = k * spec.bits as usize;
                let row_bytes = k.div_ceil(8) * spec.bits as usize;
                for row in bytes_of(made.as_ref())[0].chunks(row_bytes) {
                    let padding = (used..8 * row_bytes).any(|i| row[i / 8] >> (i % 8) & 1 == 1);
                    assert!(!padding, "{}", case.name);
                }
            }
            if n < 100 {
                continue;
            }
            let weights = made.dequantize().unwrap();
            let mean = |f: &dyn Fn(f64) -> f64| {
                weights.iter().map(|w| f(f64::from(*w))).sum::<f64>() / weights.len() as f64
            };
            let deviation = 1.0 / (k as f64).sqrt();
            let (mean, size) = (mean(&|w| w), mean(&|w| w * w).sqrt());
            assert!(mean.abs() < 0.02 * deviation, "{}: mean {mean}", case.name);
            let ratio = size / deviation;
            assert!((ratio - 1.0).abs() < 0.02, "{}: {ratio}", case.name);
        }
    }
    let spec = FormatSpec {
        format: "uint-grouped".into(),
        bits: 5,
        group_size: 128,
    };
    assert!(random(&spec, (8, 8), 1).is_err());
}

#[test]
fn hostile_files_are_errors() {
    let shape = (7, 56);
    for case in cases() {
        let packed = (case.pack)(shape);
        let (spec, good) = (packed.spec(), tensors(&*packed));
        for name in good.keys() {
            let mut missing = good.clone();
            missing.remove(name);
            assert!(
                reload(&spec, shape, &missing).is_err(),
                "{} {name}",
                case.name
            );

            let tensor = &good[name];
            let other = match tensor.dtype() {
                DType::F32 => DType::F16,
                _ => DType::F32,
            };
            let longer = Tensor::cat(&[tensor, tensor], 0).unwrap();
            let deeper = tensor.unsqueeze(0).unwrap();
            for bad in [tensor.to_dtype(other).unwrap(), longer, deeper] {
                let mut tensors = good.clone();
                tensors.insert(name.clone(), bad);
                let error = reload(&spec, shape, &tensors).err();
                let error = error.unwrap_or_else(|| panic!("{} {name}", case.name));
                let text = error.to_string();
                assert!(text.contains(name) && text.contains("found"), "{text}");
            }
            if tensor.rank() == 2 && tensor.dims()[0] != tensor.dims()[1] {
                // Right shape, wrong strides.
                let strided = tensor.t().unwrap().contiguous().unwrap().t().unwrap();
                let mut tensors = good.clone();
                tensors.insert(name.clone(), strided);
                let refused = reload(&spec, shape, &tensors).is_err();
                assert!(
                    refused || tensor.dims().contains(&1),
                    "{} {name}",
                    case.name
                );
            }
        }
        for wrong in [
            (8, 56),
            (7, 64),
            (56, 7),
            (0, 0),
            (usize::MAX, 2),
            (1 << 40, 1 << 40),
        ] {
            assert!(
                reload(&spec, wrong, &good).is_err(),
                "{} {wrong:?}",
                case.name
            );
        }
        for bits in [0, 1, 5, 7, 9, 77, u32::MAX] {
            let spec = FormatSpec {
                bits,
                ..spec.clone()
            };
            assert!(
                reload(&spec, shape, &good).is_err(),
                "{} {bits} bits",
                case.name
            );
        }
        for group_size in [i64::MIN, -2, 1, 7, 12, 1 << 20, i64::MAX] {
            let spec = FormatSpec {
                group_size,
                ..spec.clone()
            };
            let refused = reload(&spec, shape, &good).is_err();
            // A group longer than the row is a whole row by another name.
            let whole = case.name.ends_with("group -1")
                || case.name.ends_with("group 64")
                || case.name.ends_with("group 128");
            assert!(
                refused || (whole && group_size == 1 << 20),
                "{} group {group_size}",
                case.name
            );
        }
        for format in ["", "f64", "UINT-GROUPED", "uint-grouped "] {
            let spec = FormatSpec {
                format: format.into(),
                ..spec.clone()
            };
            assert!(reload(&spec, shape, &good).is_err());
        }
    }
    // An FP8 weight may not hold codes that are no numbers.
    let mut bad = tensors(&Fp8::new(Kind::E4m3, &[0; 8], &[1.0], (1, 8)).unwrap());
    bad.insert(
        "codes".into(),
        Tensor::full(0x7fu8, (1, 8), &Device::Cpu).unwrap(),
    );
    let spec = FormatSpec {
        format: "fp8-e4m3".into(),
        bits: 8,
        group_size: -1,
    };
    assert!(reload(&spec, (1, 8), &bad).is_err());
}

#[test]
fn constructors_check_every_length() {
    let s = |n| vec![f16::ONE; n];
    assert!(Dense::new(DType::F16, &[0.0; 5], (2, 3)).is_err());
    assert!(Dense::new(DType::U8, &[0.0; 6], (2, 3)).is_err());
    assert!(Fp8::new(Kind::E5m2, &[0; 5], &[1.0; 2], (2, 3)).is_err());
    assert!(Fp8::new(Kind::E5m2, &[0; 6], &[1.0; 3], (2, 3)).is_err());
    assert!(Int8::per_row(&[0; 5], &s(2), (2, 3)).is_err());
    assert!(Int8::per_row(&[0; 6], &s(1), (2, 3)).is_err());
    assert!(Int8::per_matrix(&[0; 7], f16::ONE, (2, 3)).is_err());
    assert!(Int8A8::new(&[0; 5], &s(2), (2, 3)).is_err());
    assert!(Int8A8::new(&[0; 6], &s(1), (2, 3)).is_err());
    assert!(Fp8A8::new(&[0; 6], &[1.0; 3], (2, 3)).is_err());
    assert!(Fp8A8::new(&[0x7f; 6], &[1.0; 2], (2, 3)).is_err());
    let long = MAX_INPUTS + 1;
    assert!(Int8A8::new(&vec![0; long], &s(1), (1, long)).is_err());
    assert!(Fp8A8::new(&vec![0; long], &[1.0], (1, long)).is_err());
    assert!(Grouped::new(4, 8, &[0; 31], &s(4), &[0; 4], (2, 16)).is_err());
    assert!(Grouped::new(4, 8, &[0; 32], &s(3), &[0; 4], (2, 16)).is_err());
    assert!(Grouped::new(4, 8, &[0; 32], &s(4), &[0; 5], (2, 16)).is_err());
    assert!(Grouped::new(5, 8, &[0; 32], &s(4), &[0; 4], (2, 16)).is_err());
    assert!(Grouped::new(4, 0, &[0; 32], &s(4), &[0; 4], (2, 16)).is_err());
    let error = Grouped::new(4, 8, &[0; 31], &s(4), &[0; 4], (2, 16))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(text.contains("32") && text.contains("31"), "{text}");
}

/// `y` of integer products to the last bit, on every instruction set and at the limits of I32.
#[test]
fn integer_products_are_exact_everywhere() {
    for (n, k, rows) in [(7, 57, 3), (37, 1100, 70), (5, 8, 9), (9, MAX_INPUTS, 2)] {
        let codes = match k {
            // Sums of the largest magnitude there is.
            MAX_INPUTS => vec![-128; n * k],
            _ => integers(n * k),
        };
        let scales = scales(n);
        let packed = Int8A8::new(&codes, &scales, (n, k)).unwrap();
        let x: Vec<f32> = match k {
            MAX_INPUTS => vec![2.5; rows * k],
            _ => numbers(rows * k, 8),
        };
        let mut expected = Vec::new();
        for row in x.chunks(k) {
            let scale = row.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
            for (codes, w_scale) in codes.chunks(k).zip(&scales) {
                let terms = codes.iter().zip(row);
                let sum: i64 = terms
                    .map(|(w, x)| i64::from(*w) * (x / scale).round_ties_even() as i64)
                    .sum();
                expected.push((sum as f32 * scale) * w_scale.to_f32());
            }
        }
        let x = Tensor::from_vec(x, (rows, k), &Device::Cpu).unwrap();
        for path in Path::available() {
            let y = on(path, || values(&packed.forward(&x).unwrap()));
            assert_eq!(y, expected, "[{n}, {k}] on {}", path.name());
        }
    }
}

/// NaN and infinity spoil their own row, wholly; a row of zeros stays one.
#[test]
fn odd_rows_of_inputs_keep_to_themselves() {
    let (n, k) = (9, 70);
    for case in cases().iter().filter(|c| c.format.ends_with("-a8")) {
        let packed = (case.pack)((n, k));
        for path in Path::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for rows in [4, 20] {
                    let mut x = numbers(rows * k, 9);
                    let tensor = |x: &[f32]| Tensor::from_slice(x, (rows, k), &Device::Cpu);
                    let sound = on(path, || packed.forward(&tensor(&x).unwrap()).unwrap());
                    x[k..2 * k].fill(0.0);
                    x[3 * k - 1] = bad;
                    let y = on(path, || packed.forward(&tensor(&x).unwrap()).unwrap());
                    let (sound, y) = (values(&sound), values(&y));
                    let name = format!("{} on {}", case.name, path.name());
                    assert_eq!(y[..n], sound[..n], "{name}");
                    assert_eq!(y[n..2 * n], [0.0; 9], "{name}");
                    assert!(y[2 * n..3 * n].iter().all(|y| y.is_nan()), "{name}: {y:?}");
                    assert_eq!(y[3 * n..], sound[3 * n..], "{name}");
                }
            }
        }
    }
}

#[test]
fn workspace_stays_below_256_kib_per_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
    let pool = pool.build().unwrap();
    for case in cases() {
        for (n, k) in [(200, 4096), (64, 1000)] {
            let packed = (case.pack)((n, k));
            for rows in [1, 32] {
                let x = tensor(rows, k, 1);
                let peak = pool.install(|| peak_bytes(|| drop(packed.forward(&x).unwrap())));
                let workspace = peak - rows * n * size_of::<f32>();
                // What a tensor and a task take besides.
                let limit = match (rows, packed.activations()) {
                    (1, None) => 0,
                    (1, Some(_)) => k * size_of::<f32>(),
                    _ => 256 << 10,
                };
                assert!(
                    workspace <= limit + 4096,
                    "{}: {workspace} bytes",
                    case.name
                );
            }
        }
    }
}
