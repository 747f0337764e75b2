//! What several test programs need: packed models on disk, the SmolLM2 file, the real binary.

#![allow(dead_code)]

use quantbench::formats;
use quantbench::formats::native::{self, Loaded};
use quantbench::model::kernels::{CpuKernels, Kernels};
use quantbench::model::kv_cache::KvPrecision;
use quantbench::quant;
use quantbench::run::quantize::quantize;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder with the embedded model's files, to be changed.
pub fn model_copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = root().join("datasets/embedded-model");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Packs a model at a precision that needs no calibration and loads it again, on the CPU.
pub fn packed(model: Option<&Path>, precision: &str, positions: usize) -> Loaded {
    packed_on(&cpu(), model, precision, positions)
}

/// The CPU.
pub fn cpu() -> Arc<dyn Kernels> {
    Arc::new(CpuKernels)
}

/// [`packed`] on a device.
pub fn packed_on(
    kernels: &Arc<dyn Kernels>,
    model: Option<&Path>,
    precision: &str,
    positions: usize,
) -> Loaded {
    let (_dir, path) = packed_file_of(model, precision);
    native::load(&path, positions, kernels).unwrap()
}

/// The embedded model, packed at a precision that needs no calibration: a file in a folder of its
/// own.
pub fn packed_file(precision: &str) -> (tempfile::TempDir, PathBuf) {
    packed_file_of(None, precision)
}

fn packed_file_of(model: Option<&Path>, precision: &str) -> (tempfile::TempDir, PathBuf) {
    let source = formats::open(model).unwrap();
    let method = quant::parse(precision).unwrap();
    let kv = fp16_cache();
    let quantized = quantize(
        source.as_ref(),
        method.as_ref(),
        &[],
        kv,
        &mut |_, _| Ok(()),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    quantized.model.write(&path).unwrap();
    (dir, path)
}

/// The SmolLM2 GGUF, or a printed reason why the test does not run. With
/// `QUANTBENCH_REQUIRE_SMOLLM2` set its absence is a failure.
pub fn smollm2(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("QUANTBENCH_SMOLLM2").map_or_else(
        || root().join("models/smollm2-135m-instruct-q4_1.gguf"),
        PathBuf::from,
    );
    if path.is_file() {
        return Some(path);
    }
    assert!(
        std::env::var_os("QUANTBENCH_REQUIRE_SMOLLM2").is_none(),
        "{} is required and missing: run scripts/fetch-smollm2.sh",
        path.display()
    );
    println!(
        "SKIPPED: {test}: {} is missing; scripts/fetch-smollm2.sh fetches it",
        path.display()
    );
    None
}

/// The real binary, without a cache: no test depends on what another left there.
pub fn quantbench() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantbench"));
    command.env("QUANTBENCH_CACHE", "off");
    command
}

/// A run that takes a second or two: few windows, short prompts, no noise floor, and the machine's
/// rates are not measured.
pub fn quick_run(out: &Path) -> Command {
    let mut command = quick_run_with_choices(out);
    command.args(["--choices", "none"]);
    command
}

/// The same with multiple-choice items, which take longer than all the rest.
pub fn quick_run_with_choices(out: &Path) -> Command {
    let mut command = brief_run(out);
    command.arg("--no-roofline");
    command
}

/// [`quick_run`], and the machine's rates, which take some seconds.
pub fn quick_run_with_roofline(out: &Path) -> Command {
    let mut command = brief_run(out);
    command.args(["--choices", "none"]);
    command
}

fn brief_run(out: &Path) -> Command {
    let mut command = quantbench();
    command
        .args(["run", "--limit", "6", "--calibration-limit", "4"])
        .args(["--prompt-tokens", "16", "--gen-tokens", "4", "--reps", "2"])
        .arg("--no-noise-floor")
        .arg("--out")
        .arg(out);
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn fp16_cache() -> KvPrecision {
    KvPrecision::parse("fp16").unwrap()
}

/// Ids that a text might have, cut into windows.
pub fn window_ids(count: usize, tokens: usize, vocab: usize) -> Vec<Vec<u32>> {
    let id = |i: usize| ((i * 37 + i * i) % vocab) as u32;
    (0..count)
        .map(|w| (w * tokens..(w + 1) * tokens).map(id).collect())
        .collect()
}

/// Numbers in [-1, 1), the same in every run.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
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
