//! Distributions against the reference's, through the real binary.

use crate::common::{quantbench, quick_run, stderr, stdout};
use quantbench::record::Tables;
use quantbench::record::rows::{ResultRow, Status};
use quantbench::record::warning::Warning;
use std::fs;
use std::path::Path;

fn row<'a>(tables: &'a Tables, precision: &str) -> &'a ResultRow {
    let mut rows = tables.results.iter();
    rows.find(|r| r.precision == precision).unwrap()
}

#[test]
fn a_run_compares_every_precision_and_shows_the_noise_floor() {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    // The reference is asked for last, and is measured first all the same.
    command
        .args(["run", "--precisions", "fp8,int8,rtn-int4,fp16"])
        .args(["--limit", "6", "--prompt-tokens", "16"])
        .args(["--gen-tokens", "4", "--reps", "2", "--out"])
        .arg(out.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    let ids: Vec<&str> = tables.results.iter().map(|r| &*r.precision).collect();
    assert_eq!(ids, ["fp8", "int8", "rtn-int4", "fp16", "fp16+ulp"]);
    assert_eq!(tables.info.noise_floors, ["fp16+ulp"]);
    let reference = row(&tables, "fp16");
    assert_eq!(reference.kl_tokens, None);
    assert_eq!(reference.perplexity_ratio, None);
    assert_eq!(reference.nonfinite_tokens, Some(0));
    let floor = row(&tables, "fp16+ulp");
    assert_eq!(floor.decode_tok_s, None, "it is measured for quality only");
    assert!(floor.warnings.contains("noise floor of fp16"));
    for compared in tables.results.iter().filter(|r| r.precision != "fp16") {
        let name = &compared.precision;
        assert_eq!(compared.status, Status::Ok, "{name}: {}", compared.error);
        assert_eq!(compared.kl_tokens, Some(6 * 511), "{name}");
        let [median, mean, p90, p99, max] = [
            compared.kl_median_nats,
            compared.kl_mean_nats,
            compared.kl_p90_nats,
            compared.kl_p99_nats,
            compared.kl_max_nats,
        ]
        .map(Option::unwrap);
        assert!(0.0 < median && median < p90 && p90 < p99 && p99 < max);
        assert!(median < mean && mean < p99, "{name}");
        let same = compared.top1_agreement.unwrap();
        assert!((0.5..=1.0).contains(&same));
        let (delta, rms) = (
            compared.delta_p_mean.unwrap(),
            compared.delta_p_rms.unwrap(),
        );
        assert!(delta.abs() < rms && rms < 1.0);
        assert_eq!(compared.nonfinite_tokens, Some(0));
        let ratio = compared.perplexity_ratio.unwrap();
        let of_perplexities = compared.perplexity.unwrap() / reference.perplexity.unwrap();
        assert!((ratio / of_perplexities - 1.0).abs() < 1e-9);
        assert!(compared.perplexity_ratio_se.unwrap() > 0.0);
        // The windows' sums make the mean; the detail says how fine the comparison is.
        let windows = tables.windows.iter().filter(|w| w.precision == *name);
        let sum: f64 = windows.clone().map(|w| w.kl_sum_nats.unwrap()).sum();
        let tokens: u64 = windows.map(|w| w.kl_tokens.unwrap()).sum();
        assert!((sum / tokens as f64 / mean - 1.0).abs() < 1e-12);
        let cells = &tables.info.cells;
        let cell = cells.iter().find(|c| c.precision == *name).unwrap();
        let detail = cell.divergence.as_ref().unwrap();
        assert_eq!(detail.kl_mean_nats, Some(mean));
        let of_buckets: u64 = detail.buckets.iter().map(|b| b.tokens).sum();
        assert_eq!(of_buckets, tokens);
        assert!(detail.resolution_nats < 1e-7);
        let kl = |r: &ResultRow| r.kl_mean_nats.unwrap();
        match name.as_str() {
            "fp16+ulp" => assert!(kl(floor) > detail.resolution_nats),
            _ => assert!(kl(compared) > 10.0 * kl(floor), "{name}: {mean:e}"),
        }
    }
    let kl = |id| row(&tables, id).kl_mean_nats.unwrap();
    assert!(kl("int8") < kl("fp8") && kl("fp8") < kl("rtn-int4"));
    let page = fs::read_to_string(out.path().join("report.md")).unwrap();
    assert!(page.contains("Distance from the reference, token by token"));
    assert!(page.contains("it is no precision to choose"));
    assert!(out.path().join("kl_vs_memory.png").exists());
    assert!(stdout(&output).contains("KL nats"));
    // The log-probabilities are gone.
    let left = fs::read_dir(out.path()).unwrap();
    for entry in left {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(
            !name.starts_with('.') && !name.contains("logprobs"),
            "{name}"
        );
    }
}

#[test]
fn another_reference_of_the_same_name_is_another_reference() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let with = |out: &Path, calibration: &str| {
        let output = quantbench()
            .args(["run", "--precisions", "int8", "--reference", "gptq-int4"])
            .args([
                "--limit",
                "6",
                "--calibration-limit",
                calibration,
                "--reps",
                "1",
            ])
            .args([
                "--prompt-tokens",
                "16",
                "--gen-tokens",
                "4",
                "--choices",
                "none",
            ])
            .arg("--out")
            .arg(out)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        row(&Tables::read(out).unwrap(), "int8")
            .kl_mean_nats
            .unwrap()
    };
    let first = with(one.path(), "1");
    // The same folder again, with a reference that was calibrated on more.
    let again = with(one.path(), "4");
    assert_ne!(again, first);
    assert_eq!(with(two.path(), "4"), again);
}

#[test]
fn a_budget_limits_what_is_compared_and_options_leave_it_out() {
    let out = tempfile::tempdir().unwrap();
    let with = |args: &[&str]| {
        let output = quick_run(out.path())
            .args(["--precisions", "int8"])
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        Tables::read(out.path()).unwrap()
    };
    // A window takes 511 rows of 16 + 2 · 4096 bytes, 4.0 MiB.
    let tables = with(&["--kl-cache", "9M"]);
    assert_eq!(row(&tables, "int8").kl_tokens, Some(2 * 511));
    let of: Vec<_> = tables
        .windows
        .iter()
        .filter(|w| w.kl_tokens.is_some())
        .collect();
    assert_eq!(of.len(), 2);
    // The first window of each of the first two texts.
    assert!(of.iter().all(|w| w.window == 0 && w.precision == "int8"));
    assert_ne!(of[0].dataset, of[1].dataset);

    let tables = with(&["--kl-cache", "4M"]);
    let compared = row(&tables, "int8");
    assert_eq!(compared.kl_tokens, Some(511));

    let tables = with(&["--kl-cache", "3M"]);
    assert_eq!(row(&tables, "int8").kl_tokens, None);
    let warning = Warning::NothingCompared {
        most_bytes: 3 << 20,
        protocol: "gptq-v1@512".into(),
    };
    assert!(
        tables.info.warnings.contains(&warning.to_string()),
        "{:?}",
        tables.info.warnings
    );
    assert!(tables.info.machine_warnings.contains(&warning));

    let tables = with(&["--no-kl"]);
    let compared = row(&tables, "int8");
    assert_eq!((compared.kl_tokens, compared.kl_mean_nats), (None, None));
    assert!(compared.perplexity_ratio.is_some());
    assert!(tables.info.cells.iter().all(|c| c.divergence.is_none()));

    let tables = with(&["--no-reference"]);
    assert_eq!(row(&tables, "int8").kl_tokens, None);
    assert_eq!(row(&tables, "int8").perplexity_ratio, None);
}

#[test]
fn divergences_do_not_depend_on_threads() {
    let columns = |threads: &str| {
        let out = tempfile::tempdir().unwrap();
        let output = quick_run(out.path())
            .args(["--precisions", "fp16,int8", "--threads", threads])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let tables = Tables::read(out.path()).unwrap();
        let details = tables.info.cells.iter().map(|c| c.divergence.clone());
        let details: Vec<_> = details.collect();
        let sums: Vec<_> = tables.windows.iter().map(|w| w.kl_sum_nats).collect();
        (details, sums)
    };
    let one = columns("1");
    assert!(one.0[1].is_some());
    assert_eq!(columns("2"), one);
}
