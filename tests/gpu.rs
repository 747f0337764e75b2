//! The GPU path against the CPU: our kernels and the host code that launches them, executed by the
//! emulation, or by the GPU that `QUANTBENCH_TEST_DEVICE` names (`cuda:0`; feature `cuda`).

mod common;
#[path = "emulation/driver.rs"]
mod driver;
mod emulation;

use candle_core::{DType, Tensor};
use common::packed_on;
use driver::{Spy, driver};
use half::{bf16, f16};
use quantbench::device::Gpu;
use quantbench::formats::native::Loaded;
use quantbench::memory::Part;
use quantbench::model::generate::Generator;
use quantbench::model::gpu::GpuKernels;
use quantbench::model::kernels::{CpuKernels, Kernels};
use quantbench::model::kv_cache::KvPrecision;
use quantbench::packed::gpu::{Choice, Output, Product, Products};
use quantbench::packed::{self, PackedLinear};
use std::sync::Arc;

/// One of each stored form.
const PRECISIONS: [&str; 10] = [
    "fp32",
    "fp16",
    "bf16",
    "fp8",
    "fp8-e5m2",
    "int8",
    "int8-tensor",
    "rtn-int4",
    "rtn-int3",
    "rtn-int2",
];

const POSITIONS: usize = 128;

fn on_gpu(driver: &Arc<Spy>, precision: &str, choice: Choice, graphs: bool) -> Loaded {
    let gpu = Gpu::new(driver.clone());
    let kernels: Arc<dyn Kernels> = Arc::new(GpuKernels::new(gpu, choice, graphs).unwrap());
    packed_on(&kernels, None, precision, POSITIONS)
}

fn on_cpu(precision: &str) -> Loaded {
    let kernels: Arc<dyn Kernels> = Arc::new(CpuKernels);
    packed_on(&kernels, None, precision, POSITIONS)
}

/// Ids of a text that a model might see, `batch` times `tokens`.
fn ids(batch: usize, tokens: usize) -> Vec<u32> {
    (0..(batch * tokens) as u32)
        .map(|i| (i * 37 + i * i) % 4096)
        .collect()
}

/// Logits after a prompt and after each of some given tokens: `[1 + steps][batch · vocab]`.
fn logits(loaded: &Loaded, batch: usize, tokens: usize, steps: usize, kv: &str) -> Vec<Vec<f32>> {
    let decoder = &loaded.decoder;
    let kv = KvPrecision::parse(kv).unwrap();
    let mut cache = decoder.cache(batch, POSITIONS, kv).unwrap();
    let flat = |t: candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let prompt = ids(batch, tokens);
    let mut rows = vec![flat(decoder.prefill(&prompt, batch, &mut cache).unwrap())];
    for step in 0..steps {
        let next: Vec<u32> = (0..batch)
            .map(|b| (b * 911 + step * 77 + 5) as u32)
            .collect();
        let next = decoder.kernels.ids(&next, batch).unwrap();
        rows.push(flat(decoder.step(&next, &mut cache).unwrap()));
    }
    rows
}

/// Largest difference as a share of the root mean square of what is expected.
fn distance(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0f32;
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let squares: f32 = expected.iter().map(|x| x * x).sum();
        let rms = (squares / expected.len() as f32).sqrt();
        for (f, e) in found.iter().zip(expected) {
            assert!(f.is_finite(), "a logit is {f}");
            worst = worst.max((f - e).abs() / rms);
        }
    }
    worst
}

#[test]
fn logits_equal_those_of_the_cpu_at_every_stored_form() {
    let Some(driver) = driver() else { return };
    for precision in PRECISIONS {
        let expected = logits(&on_cpu(precision), 1, 70, 2, "fp16");
        let found = logits(
            &on_gpu(&driver, precision, Choice::Auto, false),
            1,
            70,
            2,
            "fp16",
        );
        let distance = distance(&found, &expected);
        println!("{precision}: {distance:.1e} of the logits' rms");
        assert!(distance <= 2e-2, "{precision}: {distance}");
    }
}

#[test]
fn batches_caches_and_forced_kernels_equal_the_cpu_too() {
    let Some(driver) = driver() else { return };
    let expected = logits(&on_cpu("rtn-int4"), 3, 9, 2, "fp32");
    for choice in [Choice::Auto, Choice::Dequantize] {
        driver.take_launches();
        let found = logits(&on_gpu(&driver, "rtn-int4", choice, false), 3, 9, 2, "fp32");
        let distance = distance(&found, &expected);
        assert!(distance <= 2e-2, "{choice:?}: {distance}");
        // The embedding, which serves as head, is F16 and not dequantized.
        let launches = driver.take_launches();
        let fused = launches.iter().any(|k| k.starts_with("linear_u4"));
        let dequantized = launches.iter().any(|k| k == "dequant_u4");
        assert_eq!(fused, choice == Choice::Auto, "{choice:?}");
        assert_eq!(dequantized, choice == Choice::Dequantize, "{choice:?}");
    }
}

#[test]
fn a_recorded_step_chooses_the_same_tokens() {
    let Some(driver) = driver() else { return };
    let mut runs = vec![];
    for graphs in [false, true] {
        let loaded = on_gpu(&driver, "rtn-int4", Choice::Auto, graphs);
        let kv = KvPrecision::parse("fp16").unwrap();
        let cache = loaded.decoder.cache(2, 24, kv).unwrap();
        let mut generator = Generator::new(&loaded.decoder, cache);
        let mut chosen = vec![];
        // A longer prompt moves buffers, which takes another recording; the last round replays from
        // the start, at positions that the recording never saw.
        for prompt in [5, 11, 7] {
            let logits = generator.prefill(&ids(2, prompt), 2).unwrap();
            generator.choose(&logits).unwrap();
            chosen.push(generator.last().unwrap());
            driver.take_launches();
            for _ in 0..6 {
                generator.decode(1).unwrap();
                chosen.push(generator.last().unwrap());
            }
            let steps = driver
                .take_launches()
                .iter()
                .filter(|k| *k == "embed")
                .count();
            // One that runs and one that is recorded; from then on none.
            let expected = match (graphs, prompt) {
                (false, _) => 6,
                (true, 7) => 0,
                (true, _) => 2,
            };
            assert_eq!(steps, expected, "steps launched one by one");
        }
        runs.push(chosen);
    }
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn q_k_and_v_share_a_launch() {
    let Some(driver) = driver() else { return };
    let loaded = on_gpu(&driver, "rtn-int4", Choice::Auto, false);
    let layers = loaded.decoder.blocks.len();
    driver.take_launches();
    logits(&loaded, 1, 1, 1, "fp16");
    let launches = driver.take_launches();
    // q/k/v, o, gate/up and down, for the prompt's one token and for the step.
    let fused = launches
        .iter()
        .filter(|k| k.starts_with("linear_u4"))
        .count();
    assert_eq!(fused, 2 * 4 * layers);
}

/// `y` of one product of any format, against multiplication by its dequantized weight.
#[test]
fn products_of_every_format_and_number_of_rows_equal_the_dequantized_weight() {
    let Some(driver) = driver() else { return };
    let gpu = Gpu::new(driver);
    for precision in PRECISIONS {
        let loaded = on_cpu(precision);
        // 256 inputs or more, and rows on both sides of what the fused kernels serve.
        let weight = loaded.decoder.blocks[0].k.weight.as_ref();
        for choice in [Choice::Auto, Choice::Dequantize] {
            let products = Products::new(gpu.clone(), choice);
            for rows in [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130] {
                let worst = check_product(&gpu, &products, weight, rows);
                assert!(
                    worst <= 2e-3,
                    "{precision}, {rows} rows, {choice:?}: {worst:.1e}"
                );
            }
        }
    }
}

/// Largest error as a share of the row's largest magnitude.
fn check_product(gpu: &Gpu, products: &Products, weight: &dyn PackedLinear, rows: usize) -> f64 {
    let (n_out, k_in) = weight.shape();
    let oracle = weight.dequantize().unwrap();
    let on_device = move_to(gpu, weight);
    let x: Vec<f16> = (0..rows * k_in)
        .map(|i| f16::from_f32(((i * 7919 + i / 13) % 2003) as f32 / 1001.0 - 1.0))
        .collect();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_ne_bytes()).collect();
    let input = upload(gpu, &bytes, DType::F16, &[rows, k_in]);
    let output = gpu.buffer((rows, n_out), DType::F32, Part::Other).unwrap();
    let product = Product {
        weight: on_device.as_ref(),
        bias: None,
        y: output.tensor(),
    };
    products.run(&[product], &input, Output::F32).unwrap();
    gpu.driver().synchronize().unwrap();
    let y: Vec<f32> = output.tensor().flatten_all().unwrap().to_vec1().unwrap();
    let mut worst = 0f64;
    for r in 0..rows {
        let x = &x[r * k_in..(r + 1) * k_in];
        let expected: Vec<f64> = oracle
            .chunks_exact(k_in)
            .map(|w| {
                w.iter()
                    .zip(x)
                    .map(|(w, x)| f64::from(*w) * x.to_f64())
                    .sum()
            })
            .collect();
        let largest = expected.iter().fold(0f64, |a, b| a.max(b.abs()));
        for (e, y) in expected.iter().zip(&y[r * n_out..]) {
            assert!(y.is_finite());
            worst = worst.max((e - f64::from(*y)).abs() / largest);
        }
    }
    worst
}

/// The same stored form on the device.
fn move_to(gpu: &Gpu, weight: &dyn PackedLinear) -> Box<dyn PackedLinear> {
    let stored = weight.stored();
    packed::load(&weight.spec(), weight.shape(), &mut |name| {
        let tensor = &stored.iter().find(|s| s.name == name).unwrap().tensor;
        let flat = tensor.flatten_all()?;
        let bytes: Vec<u8> = match tensor.dtype() {
            DType::U8 => flat.to_vec1()?,
            DType::F16 => of(flat.to_vec1::<f16>()?, |v| v.to_ne_bytes().to_vec()),
            DType::BF16 => of(flat.to_vec1::<bf16>()?, |v| v.to_ne_bytes().to_vec()),
            _ => of(flat.to_vec1::<f32>()?, |v| v.to_ne_bytes().to_vec()),
        };
        Ok(upload(gpu, &bytes, tensor.dtype(), tensor.dims()))
    })
    .unwrap()
}

fn of<T: Copy>(values: Vec<T>, bytes: impl Fn(T) -> Vec<u8>) -> Vec<u8> {
    values.into_iter().flat_map(bytes).collect()
}

fn upload(gpu: &Gpu, bytes: &[u8], dtype: DType, dims: &[usize]) -> Tensor {
    let buffer = gpu.buffer(dims, dtype, Part::Other).unwrap();
    let address = gpu.address(buffer.tensor()).unwrap();
    gpu.driver().write(bytes, address).unwrap();
    buffer.into_parts().0
}
