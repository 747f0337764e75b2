//! Evidence for the gate: what `scripts/gate-check.sh` needs beside the real binary, and a short
//! form of the same as a test.
//!
//! ```text
//! gate aa RUN COUNT                       simulated comparisons of a real run with itself
//! gate take RUN FROM TO OUT               a run in which TO is really FROM
//! gate slower RUN PRECISION FACTOR OUT    decoding takes FACTOR times as long
//! gate memory RUN PRECISION FACTOR OUT    FACTOR times the memory
//! gate pairs FILE...                      what comparisons of equal builds found
//! gate found METRIC PRECISION FILE...     whether comparisons found a planted regression
//! ```
//!
//! With [`INNER`] set it is quantbench with the planted method.

mod doubled;
mod false_alarms;
mod planted;
mod tally;

use false_alarms::{simulate, upper_bound};
use quantbench::memory::CountingAllocator;
use quantbench::quant::{self, Family};
use quantbench::record::Tables;
use std::path::{Path, PathBuf};
use std::process::Command;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const FAMILIES: &[Family] = &[doubled::FAMILY];
const INNER: &str = "QUANTBENCH_TEST_GATE";
/// The most that the upper bound of the share of false alarms may be.
const ALLOWED: f64 = 0.02;

fn main() {
    quant::register(FAMILIES).unwrap();
    if std::env::var_os(INNER).is_some() {
        std::process::exit(quantbench::cli::main());
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let fine = match words.as_slice() {
        ["aa", run, count] => aa(Path::new(run), count.parse().unwrap()),
        ["take", run, from, to, out] => {
            planted::take(Path::new(run), from, to, Path::new(out)).unwrap();
            true
        }
        ["slower", run, precision, factor, out] => {
            let factor = factor.parse().unwrap();
            planted::slower_decode(Path::new(run), precision, factor, Path::new(out)).unwrap();
            true
        }
        ["memory", run, precision, factor, out] => {
            let factor = factor.parse().unwrap();
            planted::more_memory(Path::new(run), precision, factor, Path::new(out)).unwrap();
            true
        }
        ["pairs", files @ ..] => tally::pairs(files),
        ["found", metric, precision, files @ ..] => tally::found(metric, precision, files),
        // What cargo passes to every test program is not for this one.
        _ => {
            test();
            true
        }
    };
    std::process::exit(i32::from(!fine));
}

/// Prints the share of false alarms; whether it is small enough.
fn aa(run: &Path, count: usize) -> bool {
    let alarms = simulate(&Tables::read(run).unwrap(), count, 1);
    let bound = upper_bound(alarms.any, alarms.comparisons);
    println!(
        "A/A, {}: {} of {} comparisons raised an alarm, upper 95 % bound {:.2} %; {} had a change \
         beyond its threshold; alarms by metric: {:?}",
        run.file_name().unwrap_or_default().to_string_lossy(),
        alarms.any,
        alarms.comparisons,
        100.0 * bound,
        alarms.beyond_threshold,
        alarms.by_metric
    );
    bound <= ALLOWED
}

fn test() {
    // Printed tables: 0 of 100 gives 2.95 %, 2 of 100 gives 6.16 %.
    assert!((upper_bound(0, 100) - 0.0295).abs() < 1e-4);
    assert!((upper_bound(2, 100) - 0.0616).abs() < 1e-4);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = Tables::read(&root.join("tests/golden/report/run")).unwrap();
    let alarms = simulate(&run, 60, 7);
    assert!(alarms.any <= 3, "{} of 60", alarms.any);
    println!("test comparisons_of_equal_runs_raise_few_alarms ... ok");

    let dir = tempfile::tempdir().unwrap();
    let measured = |name: &str, precisions: &str| -> PathBuf {
        let out = dir.path().join(name);
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["run", "--precisions", precisions, "--limit", "12"])
            .args(["--calibration-limit", "4", "--reps", "1"])
            .args(["--no-noise-floor", "--choices", "none"])
            .args(["--prompt-tokens", "16", "--gen-tokens", "4", "--out"])
            .arg(&out)
            .env(INNER, "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(0), "{stderr}");
        out
    };
    let base = measured("base", "fp16,rtn-int4");
    let new = measured("new", "fp16,rtn-int3,scales-x2-rtn-int4");
    for from in ["rtn-int3", "scales-x2-rtn-int4"] {
        let planted = dir.path().join(format!("{from}-planted"));
        planted::take(&new, from, "rtn-int4", &planted).unwrap();
        let json = dir.path().join(format!("{from}.json"));
        let compared = Command::new(env!("CARGO_BIN_EXE_quantbench"))
            .args(["compare", "--format", "json", "--output"])
            .arg(&json)
            .args([&base, &planted])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&compared.stderr);
        assert_eq!(compared.status.code(), Some(1), "{from}: {stderr}");
        assert!(tally::found(
            "perplexity",
            "rtn-int4",
            &[json.to_str().unwrap()]
        ));
        assert!(!tally::found(
            "decode_tok_s",
            "rtn-int4",
            &[json.to_str().unwrap()]
        ));
    }
    println!("test planted_regressions_are_found ... ok\n\ntest result: ok. 2 passed; 0 failed");
}
