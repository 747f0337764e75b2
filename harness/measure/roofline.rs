//! What the machine can do at most, and how much of it decoding and prefill used.
//!
//! Two ceilings (the roofline model, Williams et al., doi 10.1145/1498765.1498785): decoding at a
//! small batch reads every weight once per step, so memory bandwidth bounds it; prefill reuses
//! each weight for every token, so arithmetic bounds it. Both are measured in the run, because
//! data sheets give neither what a virtual machine gets nor what a given number of threads can do.

use super::speed::Workload;
use crate::device::{self, Driver, GemmKind};
use crate::lock::lock;
use crate::model::decoder::Decoder;
use crate::model::kv_cache::KvPrecision;
use crate::packed::{PackedLinear, cpu};
use crate::record::run_info::Roofline;
use crate::stats::quantiles::quantile;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::time::Instant;

/// What a model asks of a machine: sizes that do not depend on the workload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Read by every decode step whatever the batch: codes and scales of the blocks' linears,
    /// head, norms, biases. An embedding that is not the head is not among them: a step reads
    /// one row of it.
    pub step_weight_bytes: u64,
    /// Keys and values of one position of one sequence, all layers.
    pub kv_position_bytes: u64,
    /// Weights of the blocks' linears.
    pub body_weights: u64,
    /// Weights of the head, tied or not.
    pub head_weights: u64,
    /// `layers · heads · head_dim`: numbers in the queries of one token.
    pub query_size: u64,
}

impl Cost {
    pub fn of(decoder: &Decoder, kv: KvPrecision) -> Self {
        let config = &decoder.config;
        let looked_up = if config.tied_head {
            0
        } else {
            decoder.embedding.bytes()
        };
        let (vocab, hidden) = decoder.head.shape();
        let kv_bytes = kv.position_bytes(config.kv_heads, config.head_dim);
        Cost {
            step_weight_bytes: (decoder.body_bytes() + decoder.embedding_bytes() - looked_up)
                as u64,
            kv_position_bytes: (config.layers * kv_bytes) as u64,
            body_weights: decoder.body_weights() as u64,
            head_weights: (vocab * hidden) as u64,
            query_size: (config.layers * config.heads * config.head_dim) as u64,
        }
    }

    /// Bytes that one decode step reads, on average over the workload: the weights once, and the
    /// keys and values of every position that each sequence sees. Generating token `i` of `n`
    /// (from 1) after a prompt of `p` sees `p + i` positions: `p + (n + 1) / 2` on average.
    pub fn step_bytes(&self, workload: &Workload) -> f64 {
        let (prompt, generated) = (workload.prompt_tokens(), workload.generated_tokens);
        let positions = prompt as f64 + (generated as f64 + 1.0) / 2.0;
        self.step_weight_bytes as f64
            + workload.batch() as f64 * positions * self.kv_position_bytes as f64
    }

    /// F32 operations of the prefill of one sequence of `tokens`: two per weight of the body and
    /// token, two per weight of the head (for the last position only), and four per number of a
    /// query and position it sees (scores and weighted sum, a multiplication and an addition
    /// each). Position `t` (from 1) sees `t` positions: `tokens · (tokens + 1) / 2` in all.
    pub fn prefill_flop(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        let seen = tokens * (tokens + 1.0) / 2.0;
        2.0 * self.body_weights as f64 * tokens
            + 2.0 * self.head_weights as f64
            + 4.0 * self.query_size as f64 * seen
    }

    /// Memory bandwidth utilization: bytes that decoding read per second over the measured
    /// bandwidth. `tok_s` counts the tokens of all sequences, so there are `tok_s / batch` steps
    /// per second. Above 1 where the weights stay in a cache.
    pub fn mbu(&self, workload: &Workload, decode_tok_s: f64, roofline: &Roofline) -> Option<f64> {
        let steps_s = decode_tok_s / workload.batch() as f64;
        share(
            self.step_bytes(workload) * steps_s,
            roofline.bandwidth_bytes_s(),
        )
    }

    /// Model FLOP utilization (arXiv 2204.02311): operations of the prefill per second over the
    /// measured rate. `tok_s` counts the tokens of all sequences.
    pub fn mfu(&self, workload: &Workload, prefill_tok_s: f64, roofline: &Roofline) -> Option<f64> {
        let tokens = workload.prompt_tokens();
        let sequences_s = prefill_tok_s / tokens as f64;
        share(self.prefill_flop(tokens) * sequences_s, roofline.flop_s()?)
    }
}

fn share(used: f64, most: f64) -> Option<f64> {
    Some(used / most).filter(|share| share.is_finite() && *share > 0.0)
}

/// Smallest buffer, where the cache is small or unknown.
const LEAST_BUFFER_BYTES: u64 = 256 << 20;

/// Caches that a buffer is as large as: what of it a cache keeps from one pass to the next then
/// hardly counts.
const CACHES: u64 = 4;

/// Size of one of the two buffers: several times the last-level caches, within a quarter of the
/// free memory for both.
pub fn buffer_bytes(last_level_cache: Option<u64>, available: Option<u64>) -> u64 {
    let wanted = (CACHES * last_level_cache.unwrap_or(0)).max(LEAST_BUFFER_BYTES);
    wanted.min(available.map_or(u64::MAX, |bytes| bytes / 8))
}

/// Passes of each kind; the best counts, since whatever disturbs a pass makes it slower.
const REPETITIONS: usize = 10;

/// Multiply-adds per chain and pass: about ten milliseconds.
const ROUNDS: usize = 1 << 22;

/// Measures a GPU: its memory, and products of large matrices of the types that it multiplies.
///
/// # Errors
/// A device that fails, or has too little memory for the matrices.
pub fn measure_gpu(driver: &dyn Driver) -> Result<Roofline> {
    let start = Instant::now();
    let bandwidth = device::roofline::bandwidth(driver)?;
    // A type that the device has not is no error: its rate stays empty.
    let rate = |kind| match device::roofline::gemm_rate(driver, kind) {
        Ok(rate) => Ok(Some(rate)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(Roofline {
        device: driver.info().id.clone(),
        threads: None,
        read_bytes_s: bandwidth.read_bytes_s,
        copy_bytes_s: bandwidth.copy_bytes_s,
        f32_flop_s: None,
        f16_gemm_flop_s: rate(GemmKind::F16 { f32_output: false })?,
        fp8_gemm_flop_s: rate(GemmKind::Fp8)?,
        int8_gemm_op_s: rate(GemmKind::Int8)?,
        arithmetic: "products of square matrices by cuBLAS and cuBLASLt".into(),
        buffer_bytes: bandwidth.buffer_bytes as u64,
        last_level_cache_bytes: Some(driver.info().l2_bytes),
        repetitions: 1,
        spread: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Measures the CPU with all threads of the current rayon pool.
///
/// # Errors
/// A buffer too small to be read, or a bad `QUANTBENCH_CPU_PATH`.
pub fn measure(buffer_bytes: u64) -> Result<Roofline> {
    let start = Instant::now();
    let threads = rayon::current_num_threads();
    let len = buffer_bytes as usize / threads / size_of::<f32>();
    if len < 1024 {
        return Err(Error::usage(
            format!("a buffer of {buffer_bytes} bytes for {threads} threads measures nothing"),
            "free some memory",
        ));
    }
    // Every thread owns a share, so that its pages lie in its own part of the memory.
    let shares = rayon::broadcast(|_| Mutex::new(Share::new(len)));
    let bytes = (threads * len * size_of::<f32>()) as f64;
    let own = |thread: usize| lock(&shares[thread]);
    let read = passes(|thread| cpu::read(&own(thread).source))?;
    let copy = passes(|thread| {
        own(thread).copy();
        Ok(())
    })?;
    let flop = cpu::multiply_adds(1)? * (ROUNDS * threads) as f64;
    let arithmetic = passes(|_| cpu::multiply_adds(ROUNDS).map(|_| ()))?;
    let spreads = [&read, &copy, &arithmetic].map(|p| p.median_s / p.best_s - 1.0);
    Ok(Roofline {
        device: "cpu".into(),
        threads: Some(threads as u64),
        read_bytes_s: bytes / read.best_s,
        copy_bytes_s: 2.0 * bytes / copy.best_s,
        f32_flop_s: Some(flop / arithmetic.best_s),
        arithmetic: format!("F32 multiply-adds in registers, {}", cpu::path()?.name()),
        buffer_bytes: bytes as u64,
        repetitions: REPETITIONS as u64,
        spread: spreads.into_iter().reduce(f64::max),
        seconds: start.elapsed().as_secs_f64(),
        ..Roofline::default()
    })
}

/// One thread's part of the buffers.
struct Share {
    source: Vec<f32>,
    target: Vec<f32>,
}

impl Share {
    /// Filled with ones: pages that were never written all stand for one page of zeros, which
    /// any cache holds.
    fn new(len: usize) -> Self {
        Share {
            source: vec![1.0; len],
            target: vec![1.0; len],
        }
    }

    fn copy(&mut self) {
        self.target.copy_from_slice(&self.source);
        // A copy that nobody looks at need not be made.
        std::hint::black_box(&mut self.target);
    }
}

/// Times of passes of one kind.
struct Passes {
    best_s: f64,
    median_s: f64,
}

/// Runs [`REPETITIONS`] passes, each by every thread at once with its number.
fn passes(pass: impl Fn(usize) -> Result<()> + Sync) -> Result<Passes> {
    let mut seconds = vec![];
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        let done = rayon::broadcast(|context| pass(context.index()));
        seconds.push(start.elapsed().as_secs_f64());
        done.into_iter().collect::<Result<()>>()?;
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Passes {
        best_s: seconds[0],
        median_s: quantile(&seconds, 0.5),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(batch: usize, prompt: usize, generated: usize) -> Workload {
        Workload::from_text(&[1, 2, 3], batch, prompt, generated).unwrap()
    }

    fn roofline() -> Roofline {
        Roofline {
            read_bytes_s: 8000.0,
            copy_bytes_s: 10_000.0,
            f32_flop_s: Some(50_000.0),
            ..Roofline::default()
        }
    }

    /// 2 layers, 3 heads and 1 KV head of 4, FP16 cache; 100 + 50 weights.
    fn cost() -> Cost {
        Cost {
            step_weight_bytes: 300,
            kv_position_bytes: 2 * 2 * 4 * 2,
            body_weights: 100,
            head_weights: 50,
            query_size: 2 * 3 * 4,
        }
    }

    #[test]
    fn bytes_of_a_step_by_hand() {
        // Prompt 5, then 3 tokens that see 6, 7 and 8 positions: 7 on average, 32 bytes each.
        assert_eq!(cost().step_bytes(&workload(1, 5, 3)), 300.0 + 7.0 * 32.0);
        // Four sequences share the weights, not the cache.
        assert_eq!(
            cost().step_bytes(&workload(4, 5, 3)),
            300.0 + 4.0 * 7.0 * 32.0
        );
        assert_eq!(cost().step_bytes(&workload(1, 5, 1)), 300.0 + 6.0 * 32.0);
    }

    #[test]
    fn operations_of_a_prefill_by_hand() {
        // 3 tokens see 1 + 2 + 3 positions: 2·100·3 + 2·50 + 4·24·6.
        assert_eq!(cost().prefill_flop(3), 600.0 + 100.0 + 576.0);
        assert_eq!(cost().prefill_flop(1), 200.0 + 100.0 + 96.0);
    }

    #[test]
    fn shares_by_hand() {
        // 524 bytes a step, 10 steps a second, of 10 000: the copy is the better of the two.
        let near = |a: Option<f64>, b: f64| assert!((a.unwrap() / b - 1.0).abs() < 1e-12, "{a:?}");
        near(cost().mbu(&workload(1, 5, 3), 10.0, &roofline()), 0.524);
        // Batch 4: 40 tokens a second are 10 steps of 1196 bytes.
        near(cost().mbu(&workload(4, 5, 3), 40.0, &roofline()), 1.196);
        // 1276 operations for 3 tokens; 30 tokens a second are 10 sequences.
        near(cost().mfu(&workload(1, 3, 1), 30.0, &roofline()), 0.2552);
        near(cost().mfu(&workload(2, 3, 1), 30.0, &roofline()), 0.2552);
        let matrix = Roofline {
            f16_gemm_flop_s: Some(100_000.0),
            ..roofline()
        };
        near(cost().mfu(&workload(1, 3, 1), 30.0, &matrix), 0.1276);
        // Without a rate there is no share, rather than an infinite one.
        let none = Roofline::default();
        assert_eq!(cost().mbu(&workload(1, 3, 1), 30.0, &none), None);
        assert_eq!(cost().mfu(&workload(1, 3, 1), 30.0, &none), None);
    }

    #[test]
    fn buffers_are_larger_than_caches_and_fit_the_memory() {
        let mib = 1 << 20;
        assert_eq!(buffer_bytes(None, None), 256 * mib);
        assert_eq!(buffer_bytes(Some(384 * mib), None), 1536 * mib);
        assert_eq!(buffer_bytes(Some(384 * mib), Some(800 * mib)), 100 * mib);
        assert!(measure(0).is_err());
    }

    #[test]
    fn the_machine_is_measured_sanely() {
        let roofline = measure(128 << 20).unwrap();
        let (read, copy) = (roofline.read_bytes_s, roofline.copy_bytes_s);
        let threads = roofline.threads.unwrap() as f64;
        let flop_s = roofline.f32_flop_s.unwrap() / threads;
        // How slow a busy machine is nobody knows. Of a loop that was optimized away the rates would
        // be far above these, and these far above those of any machine: the largest servers read
        // 1e12 bytes/s, and 2 vectors of 16 numbers at 6 GHz are 384e9 FLOP/s of a thread.
        for (rate, most) in [(read, 1e14), (copy, 1e14), (flop_s, 1e13)] {
            assert!(0.0 < rate && rate < most, "{roofline:?}");
        }
        assert_eq!(roofline.bandwidth_bytes_s(), read.max(copy));
        assert!(roofline.spread.unwrap() >= 0.0, "{roofline:?}");
    }
}
