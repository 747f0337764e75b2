//! A run over drawn FP16 weights: really quantized, with what that costs and without quality.

use crate::common::{quantbench, stderr};
use quantbench::record::Tables;
use quantbench::record::rows::Status;

#[test]
fn a_drawn_model_is_quantized_and_has_no_quality() {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    command
        .args(["run", "--model", "synthetic-fp16:smollm2-135m"])
        .args(["--precisions", "rtn-int4", "--calibration-limit", "1"])
        .args(["--prompt-tokens", "8", "--gen-tokens", "2", "--reps", "1"])
        .arg("--out")
        .arg(out.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert!(tables.quality.is_empty() && tables.windows.is_empty() && tables.pairs.is_empty());
    let [row] = &tables.results[..] else {
        panic!("{} rows", tables.results.len());
    };
    assert_eq!(row.status, Status::Ok, "{}", row.error);
    assert_eq!(row.model, "synthetic-fp16:smollm2-135m");
    assert_eq!(row.source_format, "synthetic-fp16");
    assert!(row.warnings.contains("random FP16"), "{}", row.warnings);
    assert!(row.protocol.is_empty() && row.dataset.is_empty());
    assert_eq!((row.perplexity, row.delta_nll_nats), (None, None));
    // What a synthetic model of random codes does not have.
    assert!(row.quantize_s.unwrap() > 0.0 && row.load_s.unwrap() > 0.0);
    assert!(row.decode_tok_s.unwrap() > 0.0);
    let bits = row.bits_per_weight.unwrap();
    assert!((bits - 4.169271).abs() < 1e-6, "{bits}");
    // A block at a time: far less than the model in F32, and no packed model beside it.
    let detail = &tables.info.cells[0];
    let quantize_peak = detail.quantize_peak_bytes.unwrap();
    assert!(quantize_peak < 400_000_000, "{quantize_peak}");
    assert_eq!(detail.quantize_device_peak_bytes, None);
    if cfg!(target_os = "linux") {
        // The system also sees the program itself.
        let seen = detail.quantize_peak_rss_bytes.unwrap();
        assert!((quantize_peak / 2..600_000_000).contains(&seen), "{seen}");
    }
}

#[test]
fn texts_are_refused_for_a_drawn_model() {
    let mut command = quantbench();
    command.args(["run", "--model", "synthetic-fp16:smollm2-135m"]);
    let output = command.args(["--datasets", "prose"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no quality to measure"));
}
