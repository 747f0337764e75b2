//! The GPU path against the CPU: our kernels and the host code that launches them, executed by the
//! emulation, or by the GPU that `QUANTBENCH_TEST_DEVICE` names (`cuda:0`; feature `cuda`).

use crate::common::{packed_file, packed_on, smollm2};
use crate::driver::{Spy, driver};
use crate::half_activations::HalfActivations;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use quantbench::device::{Driver, Gpu};
use quantbench::error::{Error, Shortage};
use quantbench::formats::native::{self, Loaded};
use quantbench::measure::meter::Meter;
use quantbench::measure::nvml;
use quantbench::memory::Part;
use quantbench::model::config::Config;
use quantbench::model::decoder::Decoder;
use quantbench::model::generate::Generator;
use quantbench::model::gpu::GpuKernels;
use quantbench::model::kernels::{CpuKernels, Kernels};
use quantbench::model::kv_cache::KvPrecision;
use quantbench::model::layout::Slot;
use quantbench::model::synthetic;
use quantbench::packed::gpu::{Choice, Output, Product, Products};
use quantbench::packed::{self, PackedLinear};
use quantbench::quant;
use safetensors::tensor::View;
use std::path::Path;
use std::sync::Arc;

/// One of each stored form, and of each way to multiply by it.
const PRECISIONS: [&str; 13] = [
    "fp32",
    "fp16",
    "bf16",
    "fp8",
    "fp8-e5m2",
    "int8",
    "int8-tensor",
    "fp8-w8a8",
    "int8-w8a8",
    "rtn-int8",
    "rtn-int4",
    "rtn-int3",
    "rtn-int2",
];

const POSITIONS: usize = 128;

/// Those that the device has: the library multiplies FP8 numbers from compute capability 8.9 on.
fn precisions(driver: &Spy) -> Vec<&'static str> {
    let info = driver.info();
    let fp8 = info.id == "emulated" || info.compute_capability >= (8, 9);
    if !fp8 {
        println!("SKIPPED: fp8-w8a8: {} has no FP8 units", info.id);
    }
    let has = |id: &&str| fp8 || *id != "fp8-w8a8";
    PRECISIONS.into_iter().filter(has).collect()
}

fn on_gpu(driver: &Arc<Spy>, precision: &str, choice: Choice, graphs: bool) -> Loaded {
    let gpu = Gpu::new(driver.clone());
    let kernels: Arc<dyn Kernels> = Arc::new(GpuKernels::new(gpu, choice, graphs).unwrap());
    packed_on(&kernels, None, precision, POSITIONS)
}

fn on_cpu(precision: &str) -> Loaded {
    let kernels: Arc<dyn Kernels> = Arc::new(CpuKernels);
    packed_on(&kernels, None, precision, POSITIONS)
}

/// Whether a precision rounds the inputs of its products to 8 bits.
fn rounds_inputs(precision: &str) -> bool {
    let loaded = on_cpu(precision);
    loaded.decoder.blocks[0]
        .linear(Slot::Q)
        .weight
        .activations()
        .is_some()
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
    for precision in precisions(&driver) {
        if rounds_inputs(precision) {
            continue;
        }
        let expected = logits(&on_cpu(precision), 1, 70, 2, "fp16");
        let found = on_gpu(&driver, precision, Choice::Auto, false);
        let distance = distance(&logits(&found, 1, 70, 2, "fp16"), &expected);
        println!("{precision}: {distance:.1e} of the logits' rms");
        assert!(distance <= 2e-2, "{precision}: {distance}");
    }
}

/// A model that people use: three query heads to a head of the cache, and groups of which the last
/// is short.
#[test]
fn logits_of_smollm2_equal_those_of_the_cpu() {
    let Some(model) = smollm2("logits_of_smollm2_equal_those_of_the_cpu") else {
        return;
    };
    let Some(driver) = driver() else { return };
    // The emulation takes half a minute for one.
    let precisions = match driver.info().id.as_str() {
        "emulated" => vec!["fp16", "rtn-int4"],
        _ => precisions(&driver),
    };
    for precision in precisions {
        if rounds_inputs(precision) {
            continue;
        }
        let cpu: Arc<dyn Kernels> = Arc::new(CpuKernels);
        let gpu = GpuKernels::new(Gpu::new(driver.clone()), Choice::Auto, false).unwrap();
        let gpu: Arc<dyn Kernels> = Arc::new(gpu);
        let [expected, found] = [cpu, gpu].map(|kernels| {
            let loaded = packed_on(&kernels, Some(&model), precision, POSITIONS);
            logits(&loaded, 1, 5, 1, "fp16")
        });
        let distance = distance(&found, &expected);
        println!("SmolLM2, {precision}: {distance:.1e} of the logits' rms");
        assert!(distance <= 2e-2, "{precision}: {distance}");
    }
}

/// Where inputs are rounded to 8 bits, the last bit of an F16 activation now and then decides
/// between neighbours that are a tenth apart, and every block passes that on: the CPU with F16
/// activations is as far from itself. A GPU may be no farther than that.
#[test]
fn logits_of_rounded_inputs_are_as_near_as_f16_activations_allow() {
    let Some(driver) = driver() else { return };
    let rounding: Vec<&str> = precisions(&driver)
        .into_iter()
        .filter(|id| rounds_inputs(id))
        .collect();
    assert!(rounding.contains(&"int8-w8a8"));
    for precision in rounding {
        let expected = logits(&on_cpu(precision), 1, 70, 2, "fp16");
        let halves: Arc<dyn Kernels> = Arc::new(HalfActivations);
        let halves = packed_on(&halves, None, precision, POSITIONS);
        let allowed = distance(&logits(&halves, 1, 70, 2, "fp16"), &expected);
        let found = on_gpu(&driver, precision, Choice::Auto, false);
        let distance = distance(&logits(&found, 1, 70, 2, "fp16"), &expected);
        println!("{precision}: {distance:.1e} of the logits' rms, F16 on the CPU {allowed:.1e}");
        assert!(distance <= (1.5 * allowed).max(2e-2), "{precision}");
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
    // On a card all of them, products of its own library included; an emulation has no hurry to
    // launch, and takes its time.
    let precisions = match std::env::var_os("QUANTBENCH_TEST_DEVICE") {
        Some(_) => precisions(&driver),
        None => vec!["rtn-int4"],
    };
    for precision in precisions {
        same_tokens_recorded(&driver, precision);
    }
}

fn same_tokens_recorded(driver: &Arc<Spy>, precision: &str) {
    let mut runs = vec![];
    for graphs in [false, true] {
        let loaded = on_gpu(driver, precision, Choice::Auto, graphs);
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
    assert_eq!(runs[0], runs[1], "{precision}");
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

/// Stored bytes of every linear, and of the embedding and a norm.
fn stored_bytes(decoder: &Decoder) -> Vec<Vec<u8>> {
    let bytes = |t: &Tensor| View::data(&t.to_device(&Device::Cpu).unwrap()).into_owned();
    let mut all = vec![bytes(decoder.embedding.codes()), bytes(&decoder.final_norm)];
    for block in &decoder.blocks {
        for linear in &block.linears {
            all.extend(linear.weight.stored().iter().map(|s| bytes(&s.tensor)));
        }
    }
    all
}

#[test]
fn models_without_weights_are_filled_on_the_device_with_the_bytes_of_the_cpu() {
    let Some(driver) = driver() else { return };
    let shape = quantbench::formats::shapes::named(Path::new("synthetic:smollm2-135m"));
    let config = Config {
        hidden_size: 64,
        // Rows of codes that end within a block of eight, and a short last group.
        intermediate_size: 203,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab_size: 333,
        qkv_bias: true,
        ..shape.unwrap().unwrap().info.config
    };
    for precision in PRECISIONS {
        let spec = quant::parse(precision).unwrap().spec();
        let on_cpu: Arc<dyn Kernels> = Arc::new(CpuKernels);
        let expected = synthetic::decoder(&config, &spec, 3, 20, &on_cpu).unwrap();
        let gpu = Gpu::new(driver.clone());
        let kernels: Arc<dyn Kernels> =
            Arc::new(GpuKernels::new(gpu, Choice::Auto, false).unwrap());
        driver.take_written_bytes();
        let found = synthetic::decoder(&config, &spec, 3, 20, &kernels).unwrap();
        // RoPE's angles, and a table of 4096 values for each matrix of numbers.
        let number_bytes = match spec.format.as_str() {
            "f32" => 4,
            "f16" | "bf16" => 2,
            _ => 0,
        };
        let tables = 4096 * (2 + 7 * config.layers * number_bytes);
        assert_eq!(
            driver.take_written_bytes(),
            found.rope.bytes() + tables,
            "{precision}"
        );
        assert!(
            stored_bytes(&found) == stored_bytes(&expected),
            "{precision}"
        );
        assert_eq!(found.body_bytes(), expected.body_bytes());
    }
}

/// A buffer of logits has room for the longest call before; what a short one left there is all
/// that it costs.
#[test]
fn scoring_copies_the_logits_of_its_own_rows() {
    let Some(driver) = driver() else { return };
    let loaded = on_gpu(&driver, "fp16", Choice::Auto, false);
    let kv = KvPrecision::parse("fp16").unwrap();
    let mut cache = loaded.decoder.cache(1, POSITIONS, kv).unwrap();
    for tokens in [30, 3] {
        driver.take_read_bytes();
        let mut values = 0;
        let mut sink = |_, row: &[f32]| {
            values += row.len();
            Ok(())
        };
        let ids = ids(1, tokens);
        loaded.decoder.score(&ids, &mut cache, &mut sink).unwrap();
        assert_eq!(values, tokens * loaded.decoder.config.vocab_size);
        assert_eq!(driver.take_read_bytes(), 4 * values, "{tokens} tokens");
    }
}

/// Free memory is asked of NVML, before there is a context and after: absent where it is not there.
#[test]
fn the_drivers_difference_is_there_where_nvml_tells_and_absent_elsewhere() {
    let free = nvml::free_bytes("cuda:0");
    let Some(driver) = driver() else { return };
    let gpu = Gpu::new(driver);
    let meter = Meter::on_gpu(gpu.clone()).unwrap().since(free);
    let _held = gpu.buffer(64 << 20, DType::U8, Part::Other).unwrap();
    let memory = meter.device_memory().unwrap().unwrap();
    match (free, gpu.driver().info().id.as_str()) {
        // Other tests of this program may have opened the device before.
        (Some(_), "cuda:0") => assert!(memory.driver_delta_bytes.is_some()),
        _ => assert_eq!(memory.driver_delta_bytes, None),
    }
}

#[test]
fn what_does_not_fit_says_how_much_is_missing() {
    let Some(driver) = driver() else { return };
    let gpu = Gpu::new(driver);
    let kernels = GpuKernels::new(gpu.clone(), Choice::Auto, false).unwrap();
    let kernels: Arc<dyn Kernels> = Arc::new(kernels);
    let loaded = packed_on(&kernels, None, "int8", POSITIONS);
    let kv = KvPrecision::parse("fp16").unwrap();
    let config = &loaded.decoder.config;
    let layer = POSITIONS * config.kv_heads * config.head_dim * 2;
    // Other tests of this program claim memory too: whatever is free, a byte is too little.
    gpu.set_limit(1);
    let error = loaded
        .decoder
        .cache(1, POSITIONS, kv)
        .map(|_| ())
        .unwrap_err();
    gpu.set_limit(usize::MAX);
    let Error::OutOfMemory(Shortage::Buffer {
        requested_bytes,
        free_bytes,
        missing_bytes,
    }) = error
    else {
        panic!("{error}")
    };
    assert_eq!((requested_bytes, free_bytes), (layer as u64, 0));
    assert!(missing_bytes >= requested_bytes);
    let said = error.to_string();
    assert!(
        said.contains(&format!("{missing_bytes} bytes are missing")),
        "{said}"
    );
}

#[test]
fn damaged_codes_are_refused_before_they_reach_the_device() {
    let Some(driver) = driver() else { return };
    let gpu = Gpu::new(driver.clone());
    let kernels: Arc<dyn Kernels> = Arc::new(GpuKernels::new(gpu, Choice::Auto, false).unwrap());
    let (dir, path) = packed_file("fp8");
    let mut bytes = std::fs::read(&path).unwrap();
    let name = "model.layers.0.self_attn.q_proj.codes";
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header_bytes + start + 77] = 0xff;
    std::fs::write(&path, bytes).unwrap();
    let said = native::load(&path, POSITIONS, &kernels).map(|_| ());
    let said = said.unwrap_err().to_string();
    assert!(said.contains(name) && said.contains("0xff"), "{said}");
    drop(dir);
}

/// `y` of one product of any format, against multiplication by its dequantized weight.
#[test]
fn products_of_every_format_and_number_of_rows_equal_the_dequantized_weight() {
    let Some(driver) = driver() else { return };
    let gpu = Gpu::new(driver.clone());
    for precision in precisions(&driver) {
        let loaded = on_cpu(precision);
        // 256 inputs or more, and rows on both sides of what the fused kernels serve.
        let weight = loaded.decoder.blocks[0].linear(Slot::K).weight.as_ref();
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
        let mut x: Vec<f32> = x[r * k_in..]
            .iter()
            .take(k_in)
            .map(|x| x.to_f32())
            .collect();
        if let Some(activations) = weight.activations() {
            activations.round(&mut x);
        }
        let product = |w: &[f32]| -> f64 {
            let terms = w.iter().zip(&x);
            terms.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let expected: Vec<f64> = oracle.chunks_exact(k_in).map(product).collect();
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
