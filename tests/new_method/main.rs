//! A method that is its own file and one line (`FAMILIES` below) reaches everything that follows
//! from the registry: `list`, contract tests, CSV, plots, report.
//!
//! This program is the test and, with [`INNER`] set, quantbench with one more method.

mod absmax;
#[path = "../contracts/mod.rs"]
mod contracts;

use quantbench::memory::CountingAllocator;
use quantbench::quant::{self, Family};
use std::process::Command;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const FAMILIES: &[Family] = &[absmax::FAMILY];

const INNER: &str = "QUANTBENCH_TEST_NEW_METHOD";

fn main() {
    quant::register(FAMILIES).unwrap();
    if std::env::var_os(INNER).is_some() {
        std::process::exit(quantbench::cli::main());
    }
    contracts::all("absmax");

    let out = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let listed = Command::new(&program)
        .args(["list", "precisions"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("8 bits around zero, one scale per row"),
        "{listed}"
    );

    let run = Command::new(&program)
        .args([
            "run",
            "--precisions",
            "fp16,absmax",
            "--limit",
            "6",
            "--reps",
            "2",
        ])
        .args(["--no-noise-floor", "--choices", "none"])
        .args(["--prompt-tokens", "16", "--gen-tokens", "4", "--out"])
        .arg(out.path())
        .env("QUANTBENCH_CACHE", "off")
        .env(INNER, "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(0), "{stderr}");
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    for table in [
        "results.csv",
        "quality.csv",
        "pairs.csv",
        "windows.csv",
        "samples.csv",
    ] {
        assert!(read(table).contains(",absmax,"), "{table}");
    }
    for file in ["quality_vs_memory.svg", "index.html", "report.md"] {
        assert!(read(file).contains("absmax"), "{file}");
    }
    println!(
        "test a_new_method_is_a_file_and_a_line ... ok\n\ntest result: ok. 1 passed; 0 failed"
    );
}
