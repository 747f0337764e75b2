//! Products of every stored format beside candle's own F32 and F16 matrix products.
//!
//! * `cargo bench --bench products` runs criterion: decode cases (1 row) report bytes of stored
//!   weights per second, prefill cases (256 rows) floating-point operations per second (a
//!   multiplication and an addition count as two).
//! * `QUANTBENCH_BENCH_RATIO=1 cargo bench --bench products` prints a table of ratios to candle's
//!   F32 product instead: all kernels of a shape take turns, and each figure is the median of
//!   the quotients of neighbouring samples, so that drift of the machine cancels. Another value
//!   than 1 selects the cases whose name contains it (`256x576x`: rows, outputs, inputs).

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use half::f16;
use quantbench::packed::dense::Dense;
use quantbench::packed::fp8::{Fp8, Kind};
use quantbench::packed::fp8_a8::Fp8A8;
use quantbench::packed::grouped::Grouped;
use quantbench::packed::int8::Int8;
use quantbench::packed::int8_a8::Int8A8;
use quantbench::packed::{PackedLinear, cpu};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// `(n_out, k_in)`: the linears of models of about 10 M to 7 B parameters.
const SHAPES: [(usize, usize); 9] = [
    (256, 256),
    (768, 256),
    (256, 768),
    (4096, 256),
    (576, 576),
    (1536, 576),
    (576, 1536),
    (2048, 2048),
    (4096, 4096),
];

/// Rows of `x`: one decoded token, and a prompt.
const ROWS: [usize; 2] = [1, 256];

fn main() {
    // As in a run: on a thread of the pool, so that there are as many threads as cores.
    rayon::scope(|_| run());
}

fn run() {
    if let Ok(filter) = std::env::var("QUANTBENCH_BENCH_RATIO") {
        return ratios(if filter == "1" { "" } else { &filter });
    }
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500))
        .configure_from_args();
    for rows in ROWS {
        for shape in SHAPES {
            bench(&mut criterion, rows, shape);
        }
    }
    criterion.final_summary();
}

/// Numbers in [-1, 1), the same in every run.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / (1u64 << 31) as f32 - 1.0
        })
        .collect()
}

/// One weight in every format. The codes need not be a good quantization: time does not depend
/// on them.
fn formats(weights: &[f32], shape: (usize, usize)) -> Vec<(String, Box<dyn PackedLinear>)> {
    let (n, k) = shape;
    let bytes: Vec<u8> = weights.iter().map(|w| (w * 127.0 + 128.0) as u8).collect();
    let integers: Vec<i8> = weights.iter().map(|w| (w * 127.0) as i8).collect();
    let mut all: Vec<(String, Box<dyn PackedLinear>)> = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let dense = Dense::new(dtype, weights, shape).unwrap();
        all.push((dtype.as_str().into(), Box::new(dense)));
    }
    for kind in Kind::ALL {
        let codes: Vec<u8> = weights.iter().map(|&w| kind.encode(w)).collect();
        let fp8 = Fp8::new(kind, &codes, &vec![1.0; n], shape).unwrap();
        all.push((kind.name().into(), Box::new(fp8)));
    }
    let codes: Vec<u8> = weights.iter().map(|&w| Kind::E4m3.encode(w)).collect();
    let fp8 = Fp8A8::new(&codes, &vec![1.0; n], shape).unwrap();
    all.push((fp8.spec().format, Box::new(fp8)));
    let scales = vec![f16::from_f32(0.01); n];
    let int8 = Int8::per_row(&integers, &scales, shape).unwrap();
    all.push(("int8".into(), Box::new(int8)));
    let int8 = Int8A8::new(&integers, &scales, shape).unwrap();
    all.push((int8.spec().format, Box::new(int8)));
    for (bits, group) in [(2, 128), (3, 128), (4, 128), (4, 32), (8, 128)] {
        let groups = n * k.div_ceil(group as usize);
        let codes: Vec<u8> = bytes.iter().map(|b| b >> (8 - bits)).collect();
        let scales = vec![f16::from_f32(0.01); groups];
        let zeros = vec![1 << (bits - 1); groups];
        let grouped = Grouped::new(bits, group, &codes, &scales, &zeros, shape).unwrap();
        all.push((format!("uint{bits}-g{group}"), Box::new(grouped)));
    }
    all
}

fn tensor(rows: usize, cols: usize, seed: u32) -> Tensor {
    Tensor::from_vec(numbers(rows * cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

/// Candle's own product for a linear layer.
fn candle(x: &Tensor, w: &Tensor) -> Tensor {
    x.matmul(&w.t().unwrap()).unwrap()
}

fn bench(criterion: &mut Criterion, rows: usize, (n, k): (usize, usize)) {
    let x = tensor(rows, k, 1);
    let weights = numbers(n * k, 2);
    let w = Tensor::from_slice(&weights, (n, k), &Device::Cpu).unwrap();
    let throughput = |bytes: usize| match rows {
        1 => Throughput::Bytes(bytes as u64),
        _ => Throughput::Elements(2 * (rows * n * k) as u64),
    };
    let mut group = criterion.benchmark_group(format!("{rows}x{n}x{k}"));
    group.throughput(throughput(4 * n * k));
    group.bench_function("candle-f32", |b| b.iter(|| candle(&x, &w)));
    if n == k {
        let (x, w) = (
            x.to_dtype(DType::F16).unwrap(),
            w.to_dtype(DType::F16).unwrap(),
        );
        group.throughput(throughput(2 * n * k));
        group.bench_function("candle-f16", |b| b.iter(|| candle(&x, &w)));
    }
    for (name, packed) in formats(&weights, (n, k)) {
        group.throughput(throughput(packed.bytes()));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| packed.forward(&x).unwrap())
        });
    }
    group.finish();
}

/// Seconds of one call, over as many calls as take half a millisecond.
fn sample(calls: usize, f: &dyn Fn() -> Tensor) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        black_box(f());
    }
    start.elapsed().as_secs_f64() / calls as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ratios(filter: &str) {
    println!(
        "Speed relative to candle's F32 product (above 1 is faster), {} threads, {}.",
        rayon::current_num_threads(),
        cpu::path().expect("an instruction set").name()
    );
    for rows in ROWS {
        for (n, k) in SHAPES {
            if !format!("{rows}x{n}x{k}").contains(filter) {
                continue;
            }
            let x = tensor(rows, k, 1);
            let weights = numbers(n * k, 2);
            let w = Tensor::from_slice(&weights, (n, k), &Device::Cpu).unwrap();
            let all = formats(&weights, (n, k));
            let reference = || candle(&x, &w);
            reference();
            let calls = ((5e-4 / sample(1, &reference)) as usize).clamp(1, 200);
            let budget = Instant::now();
            let mut seconds = vec![vec![]; all.len() + 1];
            let mut quotients = vec![vec![]; all.len()];
            while seconds[0].len() < 5
                || (seconds[0].len() < 101 && budget.elapsed() < Duration::from_secs(5))
            {
                for (i, (_, packed)) in all.iter().enumerate() {
                    let theirs = sample(calls, &reference);
                    let ours = sample(calls, &|| packed.forward(&x).unwrap());
                    seconds[0].push(theirs);
                    seconds[i + 1].push(ours);
                    quotients[i].push(theirs / ours);
                }
            }
            let rate = |bytes: usize, seconds: f64| match rows {
                1 => format!("{:.1} GB/s", bytes as f64 / seconds / 1e9),
                _ => format!("{:.0} GFLOP/s", (2 * rows * n * k) as f64 / seconds / 1e9),
            };
            let theirs = median(seconds.remove(0));
            println!(
                "\n{rows} x [{n}, {k}]: candle f32 {:.1} us, {}",
                theirs * 1e6,
                rate(4 * n * k, theirs)
            );
            for (((name, packed), seconds), quotients) in all.iter().zip(seconds).zip(quotients) {
                let ours = median(seconds);
                println!(
                    "  {name:<12} {:>6.2}  {:>9.1} us  {:>14}  {}",
                    median(quotients),
                    ours * 1e6,
                    rate(packed.bytes(), ours),
                    packed.kernel(rows)
                );
            }
        }
    }
}
