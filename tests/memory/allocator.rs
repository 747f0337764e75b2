//! The allocator's counts against what is known to be alive.

use crate::alone;
use crate::common::{cpu, packed};
use candle_core::{DType, Device, Tensor};
use quantbench::measure::speed::{Workload, run_once};
use quantbench::memory::{self, Bracket, Part};
use quantbench::model::generate::Generator;
use quantbench::model::kv_cache::KvPrecision;
use quantbench::model::synthetic;
use quantbench::packed::{FormatSpec, PackedLinear, Stored};
use quantbench::quant;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[test]
fn parts_and_marks_are_exact() {
    let _alone = alone();
    assert!(memory::installed());
    let bracket = Bracket::open();
    let weights = memory::scope(Part::Weights, || vec![1u8; 1000]);
    let mut cache = memory::scope(Part::KvCache, || {
        let mut v: Vec<u64> = Vec::with_capacity(10);
        v.extend(0..10);
        v
    });
    assert_eq!(bracket.live().weights_bytes, 1000);
    assert_eq!(bracket.live().kv_cache_bytes, 80);
    // A block keeps its part when it grows elsewhere, and when another scope frees it.
    memory::scope(Part::Activations, || cache.reserve_exact(90));
    assert_eq!(bracket.live().kv_cache_bytes, 800);
    assert_eq!(bracket.live().activations_bytes, 0);
    memory::scope(Part::Other, || drop(weights));
    assert_eq!(bracket.live().weights_bytes, 0);
    assert_eq!(bracket.peak().weights_bytes, 1000);
    bracket.reset_peak();
    assert_eq!(bracket.peak().weights_bytes, 0);
    assert_eq!(bracket.peak().total_bytes, bracket.live().total_bytes);
    drop(cache);
    // Large alignments and zeroed blocks come back as they should.
    let layout = std::alloc::Layout::from_size_align(300, 256).unwrap();
    // SAFETY: allocated and freed with the same layout; 300 bytes are readable.
    unsafe {
        let p = std::alloc::alloc_zeroed(layout);
        assert_eq!(p as usize % 256, 0);
        assert!((0..300).all(|i| p.add(i).read() == 0));
        std::alloc::dealloc(p, layout);
    }
    assert_eq!(bracket.live().total_bytes, 0);
}

#[test]
fn scopes_nest_and_survive_a_panic() {
    let _alone = alone();
    let bracket = Bracket::open();
    let outcome = std::panic::catch_unwind(|| {
        // Not `panic!`: printing a backtrace allocates, and would be counted here.
        memory::scope(Part::Workspace, || std::panic::resume_unwind(Box::new(())));
    });
    assert!(outcome.is_err());
    drop(outcome);
    let kept = memory::scope(Part::Other, || {
        let inner = memory::scope(Part::Weights, || vec![0u8; 10]);
        (inner, vec![0u8; 20])
    });
    let live = bracket.live();
    assert_eq!((live.weights_bytes, live.other_bytes), (10, 20));
    let after = vec![0u8; 30];
    assert_eq!(bracket.live().workspace_bytes, 0);
    drop((kept, after));
}

#[test]
fn after_load_live_bytes_equal_the_stored_ones() {
    let _alone = alone();
    rayon::broadcast(|_| ());
    for precision in ["fp16", "int8", "rtn-int4"] {
        let bracket = Bracket::open();
        let loaded = packed(None, precision, 320);
        let live = bracket.live();
        let decoder = &loaded.decoder;
        let stored = decoder.body_bytes() + decoder.embedding_bytes() + decoder.rope.bytes();
        let parts = live.weights_bytes + live.embeddings_bytes + live.other_bytes;
        for (what, bytes) in [("parts", parts), ("total", live.total_bytes)] {
            let ratio = bytes as f64 / stored as f64;
            assert!((ratio - 1.0).abs() < 0.02, "{precision}: {what} {ratio}");
        }
        println!("{precision}: live {} stored {stored}", live.total_bytes);
    }
}

#[test]
fn a_synthetic_model_takes_its_own_bytes_and_no_more() {
    let _alone = alone();
    rayon::broadcast(|_| ());
    let shape = quantbench::formats::shapes::named(Path::new("synthetic:smollm2-135m"));
    let config = shape.unwrap().unwrap().info.config;
    for precision in ["fp16", "fp8", "int8", "rtn-int4", "rtn-int3-g64"] {
        let spec = quant::parse(precision).unwrap().spec();
        let bracket = Bracket::open();
        let decoder = synthetic::decoder(&config, &spec, 1, 320, &cpu()).unwrap();
        let stored = decoder.body_bytes() + decoder.embedding_bytes() + decoder.rope.bytes();
        let (peak, live) = (bracket.peak(), bracket.live());
        println!("{precision}: peak {} stored {stored}", peak.total_bytes);
        for bytes in [peak.total_bytes, live.total_bytes] {
            let ratio = bytes as f64 / stored as f64;
            assert!((ratio - 1.0).abs() < 0.02, "{precision}: {ratio}");
        }
        let ratio = live.weights_bytes as f64 / decoder.body_bytes() as f64;
        assert!((ratio - 1.0).abs() < 0.02, "{precision}: weights {ratio}");
    }
}

/// Does what its linear does, and forgets a mebibyte the first time.
struct Leaky {
    inner: Arc<dyn PackedLinear>,
    leaked: Mutex<bool>,
}

impl PackedLinear for Leaky {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn spec(&self) -> FormatSpec {
        self.inner.spec()
    }

    fn forward(&self, x: &Tensor) -> quantbench::Result<Tensor> {
        let mut leaked = self.leaked.lock().unwrap();
        if !*leaked {
            std::mem::forget(vec![1u8; 1 << 20]);
            *leaked = true;
        }
        self.inner.forward(x)
    }

    fn dequantize(&self) -> quantbench::Result<Vec<f32>> {
        self.inner.dequantize()
    }

    fn stored(&self) -> Vec<Stored> {
        self.inner.stored()
    }

    fn kernel(&self, rows: usize) -> String {
        self.inner.kernel(rows)
    }
}

#[test]
fn a_planted_leak_raises_the_peak_by_its_size() {
    let _alone = alone();
    let mut loaded = packed(None, "int8", 40);
    let workload = Workload::from_text(&[1, 2, 3, 4, 5], 1, 32, 8).unwrap();
    let kv = KvPrecision::parse("fp16").unwrap();
    rayon::broadcast(|_| ());
    let mut peak = |leak: bool| {
        if leak {
            let first = &mut loaded.decoder.blocks[0].linears[0];
            first.weight = Arc::new(Leaky {
                inner: first.weight.clone(),
                leaked: Mutex::new(false),
            });
        }
        let bracket = Bracket::open();
        let cache = loaded.decoder.cache(1, workload.positions(), kv).unwrap();
        run_once(
            &mut Generator::new(&loaded.decoder, cache),
            &workload,
            &mut |_| Ok(()),
        )
        .unwrap();
        bracket.peak().total_bytes
    };
    peak(false);
    let sound = peak(false);
    let leaking = peak(true);
    let raised = leaking as i64 - sound as i64;
    println!("peak {sound} bytes, with the leak {leaking}");
    assert!((raised - (1 << 20)).abs() < 16 * 1024, "raised by {raised}");
}

#[test]
fn the_peak_does_not_depend_on_which_threads_are_awake() {
    let _alone = alone();
    let loaded = packed(None, "int8", 300);
    let weight = &loaded.decoder.blocks[0].linears[0].weight;
    let x = Tensor::zeros((256, weight.shape().1), DType::F32, &Device::Cpu).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let pool = pool.unwrap();
    let workspace_bytes = |other_is_busy: bool| {
        pool.install(|| {
            let (started, done) = (AtomicBool::new(!other_is_busy), AtomicBool::new(false));
            rayon::scope(|scope| {
                if other_is_busy {
                    scope.spawn(|_| {
                        started.store(true, SeqCst);
                        while !done.load(SeqCst) {
                            std::thread::yield_now();
                        }
                    });
                }
                while !started.load(SeqCst) {
                    std::thread::yield_now();
                }
                let bracket = Bracket::open();
                weight.forward(&x).unwrap();
                done.store(true, SeqCst);
                bracket.peak().workspace_bytes
            })
        })
    };
    let alone = workspace_bytes(true);
    assert!(alone > 0);
    for _ in 0..20 {
        assert_eq!(workspace_bytes(false), alone);
    }
}

#[test]
fn kernels_stay_within_a_tile_per_thread() {
    let _alone = alone();
    rayon::broadcast(|_| ());
    let threads = rayon::current_num_threads();
    for precision in [
        "fp16",
        "fp8",
        "fp8-w8a8",
        "int8",
        "int8-w8a8",
        "rtn-int4",
        "rtn-int3",
    ] {
        let loaded = packed(None, precision, 300);
        let workload = Workload::from_text(&[5, 6, 7], 1, 256, 4).unwrap();
        let kv = KvPrecision::parse("fp16").unwrap();
        let cache = loaded.decoder.cache(1, workload.positions(), kv).unwrap();
        let bracket = Bracket::open();
        run_once(
            &mut Generator::new(&loaded.decoder, cache),
            &workload,
            &mut |_| Ok(()),
        )
        .unwrap();
        let workspace = bracket.peak().workspace_bytes;
        println!("{precision}: workspace {workspace} bytes on {threads} threads");
        assert!(workspace > 0, "{precision}: no workspace was counted");
        assert!(
            workspace <= threads * 256 * 1024,
            "{precision}: {workspace}"
        );
    }
}
