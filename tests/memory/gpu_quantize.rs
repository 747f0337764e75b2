//! What quantizing on a GPU takes of both memories, and that it gives it back: on the emulation or
//! on the GPU that `QUANTBENCH_TEST_DEVICE` names.

use crate::alone;
use crate::common::{fp16_cache, window_ids};
use crate::driver::{driver, gpu, gpu_kernels};
use quantbench::device::Gpu;
use quantbench::formats::drawn::Drawn;
use quantbench::formats::source::WeightSource;
use quantbench::memory::{self, Bracket};
use quantbench::model::angles::RopeScaling;
use quantbench::model::config::Config;
use quantbench::model::kernels::{CpuKernels, Kernels};
use quantbench::quant;
use quantbench::run::footprint::{Texts, footprint};
use quantbench::run::quantize::{Setting, quantize_in};
use std::sync::Arc;

/// A shape in which neither vectors nor tables hide what blocks take.
fn tiny(kv_heads: usize, qkv_bias: bool) -> Drawn {
    let config = Config {
        architecture: "llama family".into(),
        hidden_size: 128,
        intermediate_size: 320,
        layers: 2,
        heads: 4,
        kv_heads,
        head_dim: 32,
        vocab_size: 64,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied_head: false,
        qkv_bias,
        bos_token_id: None,
        eos_token_id: None,
    };
    Drawn::new("tiny", "nothing", config)
}

#[test]
fn no_more_memory_is_taken_than_predicted() {
    let _alone = alone();
    let Some(gpu) = gpu() else { return };
    // Whole parts of the footprint by turns: workspace, streams, with and without a tile.
    for (count, tokens, kv_heads, bias) in [(2, 40, 2, false), (5, 96, 4, true)] {
        let source = tiny(kv_heads, bias);
        let windows = window_ids(count, tokens, source.config().vocab_size);
        let texts = Texts {
            windows: count,
            tokens,
            kv: fp16_cache(),
        };
        for id in ["gptq-int4", "awq-int4"] {
            let spec = quant::parse(id).unwrap().spec();
            let predicted = footprint(source.config(), &texts, &spec);
            let before = memory::device::live().total_bytes;
            memory::device::reset_peak();
            let bracket = Bracket::open();
            let folder = tempfile::tempdir().unwrap();
            let setting = Setting {
                kernels: gpu_kernels(&gpu),
                kv: fp16_cache(),
                spool: Some(folder.path().into()),
            };
            let method = quant::parse(id).unwrap();
            let done = quantize_in(&setting, &source, method.as_ref(), &windows, &mut |_, _| {
                Ok(())
            });
            let done = done.unwrap();
            drop((setting, done));
            // Device memory of the emulation is set apart as a cache's.
            let device = memory::device::peak().total_bytes - before;
            let host = bracket.peak().untagged_bytes;
            assert_eq!(memory::device::live().total_bytes, before, "{id}: kept");
            println!("{id}: device {device}, host {host} of {predicted:?}");
            let share = device as f64 / predicted.device_bytes as f64;
            assert!(share <= 1.0, "{id}: {share} of the predicted device memory");
            // The bound is that of the hungriest method.
            assert!(share >= 0.99 || id != "gptq-int4", "{id}: {share}");
            let share = host as f64 / predicted.host_bytes as f64;
            assert!((0.4..=1.0).contains(&share), "{id}: {share} of the host's");
        }
    }
}

#[test]
fn random_weights_are_made_on_the_gpu_with_the_bytes_of_the_cpu() {
    let _alone = alone();
    let Some(driver) = driver() else { return };
    let gpu = Gpu::new(driver.clone());
    let source = tiny(2, true);
    let method = quant::parse("rtn-int4").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let before = memory::device::live().total_bytes;
    let made = |kernels: Arc<dyn Kernels>| {
        driver.take_launches();
        let path = folder.path().join("model.safetensors");
        let setting = Setting {
            kernels,
            kv: fp16_cache(),
            spool: None,
        };
        let done = quantize_in(&setting, &source, method.as_ref(), &[], &mut |_, _| Ok(()));
        done.unwrap().model.write(&path).unwrap();
        let fills = driver.take_launches();
        let fills = fills.iter().filter(|k| k.starts_with("fill_picks")).count();
        (fills, std::fs::read(path).unwrap())
    };
    let (none, expected) = made(Arc::new(CpuKernels));
    let (fills, found) = made(gpu_kernels(&gpu));
    // Seven linears and two norms a block; embedding, head and their norm.
    assert_eq!((none, fills), (0, 2 * 9 + 3));
    assert!(found == expected, "the files differ");
    assert_eq!(memory::device::live().total_bytes, before);
}
