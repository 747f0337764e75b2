//! Every warning through the real binary: provoked by a run where that is possible, else kept in a
//! run's files and rendered by `quantbench report`. And the rule that ends repetitions.

use crate::common::{model_copy, quantbench, quick_run, root, stderr, stdout};
use quantbench::record::Tables;
use quantbench::record::run_info::StopRule;
use quantbench::record::warning::{self, Phase, Warning};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Kinds that a run here provokes. With [`fed`] they are all there are.
const PROVOKED: &[&str] = &[
    "altered-times",
    "drift",
    "few-generated-tokens",
    "few-scored-tokens",
    "fits-cache",
    "heavy-tail",
    "method",
    "nonfinite-tokens",
    "reference-only",
    "short-text",
    "slow-first-run",
    "slow-warmup",
    "source",
    "still-noisy",
    "text",
    "wide-spread",
];

/// One of every kind that takes a GPU, a machine under load, a defect, or a divergence that only
/// large models have, and of those that other tests provoke.
fn fed() -> Vec<Warning> {
    let words = |text: &str| text.to_string();
    vec![
        Warning::UntaggedMemory { bytes: 123_456 },
        Warning::HeavyDivergence {
            mean_nats: 0.02,
            p99_nats: 0.01,
        },
        Warning::RatesNotMeasured {
            why: words("killed by signal 9"),
        },
        Warning::BusyMachine { spread: 0.61 },
        Warning::NothingCompared {
            most_bytes: 3_000_000,
            protocol: words("gptq-v1@512"),
        },
        Warning::ClockMoved {
            spread: 0.13,
            clock_mhz: 1755.0,
        },
        Warning::Throttled {
            reasons: words("power limit, heat"),
        },
        Warning::OtherProcesses { count: 3 },
        Warning::TelemetryMissing {
            why: words("NVML is not installed"),
        },
        Warning::TwoBos {
            dataset: words("notes"),
            windows: 3,
            id: 1,
            protocol: words("gptq-v1@512"),
        },
        Warning::BosDisagrees { declared: true },
        Warning::UncomparedTokens { tokens: 5 },
        Warning::NonfiniteItems { items: 2 },
        Warning::Declared {
            run_as: words("f16"),
            bits_per_weight: 3.5,
        },
        Warning::NoiseFloor { of: words("fp16") },
        Warning::Unknown,
    ]
}

/// Runs to the end; the tables, and what was printed, on one line.
fn finished(command: &mut Command, out: &Path) -> (Tables, String) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    (Tables::read(out).unwrap(), flat(&stdout(&output)))
}

fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All warnings of a run, as values.
fn warnings(tables: &Tables) -> Vec<Warning> {
    let cells = &tables.info.cells;
    cells.iter().flat_map(|c| c.warnings.clone()).collect()
}

/// The warning of a kind that a run must have raised: as a value, in the row and on the terminal.
fn raised(kind: &str, (tables, shown): &(Tables, String)) -> Warning {
    assert!(PROVOKED.contains(&kind), "{kind}");
    let all = warnings(tables);
    let found = all.iter().find(|w| w.kind() == kind);
    let found = found.unwrap_or_else(|| panic!("no {kind} among {all:?}"));
    let words = warning::joined(std::slice::from_ref(found));
    assert!(
        tables.results.iter().any(|r| r.warnings.contains(&words)),
        "{words}"
    );
    assert!(shown.contains(&flat(&words)), "{words} in {shown}");
    found.clone()
}

/// A run of two precisions whose measured times are multiplied by these factors.
fn altered(factors: &str, args: &[&str]) -> (Tables, String) {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    command
        .env("QUANTBENCH_TEST_TIME_FACTORS", factors)
        .args(["run", "--precisions", "fp16,int8", "--limit", "2"])
        .args(["--prompt-tokens", "64", "--gen-tokens", "16"])
        .args(["--no-noise-floor", "--choices", "none", "--no-roofline"])
        .args(args)
        .arg("--out")
        .arg(out.path());
    finished(&mut command, out.path())
}

#[test]
fn texts_and_short_tests_are_doubted() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let sets = [
        file(
            "tokens.txt",
            &"the <unk> of the <unk> is read . ".repeat(300),
        ),
        file("short.txt", "a few words"),
    ];
    let out = dir.path().join("out");
    let run = finished(
        quantbench()
            .args(["run", "--precisions", "int8", "--datasets", &sets.join(",")])
            .args(["--prompt-tokens", "16", "--gen-tokens", "1", "--reps", "2"])
            .arg("--out")
            .arg(&out),
        &out,
    );
    assert!(raised("text", &run).to_string().contains("<unk>"));
    let short = raised("short-text", &run);
    assert!(short.to_string().contains("too few for a window of 512"));
    let windows = run.0.quality[0].windows;
    let tokens = windows * 511;
    assert_eq!(
        raised("few-scored-tokens", &run),
        Warning::FewScoredTokens { windows, tokens }
    );
    let few = raised("few-generated-tokens", &run);
    assert!(matches!(few, Warning::FewGeneratedTokens { tokens: 1, .. }));
    raised("reference-only", &run);
    assert_eq!(run.0.info.cells[0].timing, None);
    // Of a reference that is not timed there is no pair.
    assert!(run.0.speed_pairs.is_empty());
    let cache = run.0.info.host.last_level_cache_bytes;
    if cache.is_some_and(|bytes| bytes >= 16 << 20) {
        raised("fits-cache", &run);
    } else {
        println!("SKIPPED: fits-cache: the last-level cache of this machine is {cache:?} bytes");
    }
}

#[test]
fn random_codes_are_said() {
    let out = tempfile::tempdir().unwrap();
    let run = finished(
        quantbench()
            .args(["run", "--model", "synthetic:smollm2-135m", "--context", "8"])
            .args(["--precisions", "int8", "--gen-tokens", "2", "--reps", "1"])
            .arg("--out")
            .arg(out.path()),
        out.path(),
    );
    assert!(raised("source", &run).to_string().contains("random codes"));
}

/// A folder with the embedded model, values of one tensor replaced: index from 0, F16 bits.
fn model_with(tensor: &str, values: &[(usize, u16)]) -> tempfile::TempDir {
    let dir = model_copy();
    let mut bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let about = &json[tensor];
    assert_eq!(about["dtype"], "F16", "{tensor}");
    let start = 8 + header + about["data_offsets"][0].as_u64().unwrap() as usize;
    for (index, bits) in values {
        let at = start + 2 * index;
        bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

#[test]
fn a_method_says_what_it_met() {
    // A channel that the norm silences is zero on every calibration token.
    let model = model_with("model.layers.0.input_layernorm.weight", &[(7, 0)]);
    let out = tempfile::tempdir().unwrap();
    let run = finished(
        quick_run(out.path())
            .args(["--precisions", "gptq-int4", "--no-reference", "--model"])
            .arg(model.path()),
        out.path(),
    );
    let doubt = raised("method", &run).to_string();
    assert!(doubt.contains("inputs were zero"), "{doubt}");
}

#[test]
fn tokens_without_likelihood_are_said() {
    // The largest gains that FP16 holds make keys and values that it does not: they are infinite
    // in the KV cache.
    const LARGEST: u16 = 0x7bff;
    let gains: Vec<(usize, u16)> = (0..256).map(|i| (i, LARGEST)).collect();
    let model = model_with("model.layers.0.input_layernorm.weight", &gains);
    let out = tempfile::tempdir().unwrap();
    let run = finished(
        quick_run(out.path())
            .args(["--precisions", "fp16", "--model"])
            .arg(model.path()),
        out.path(),
    );
    let Warning::NonfiniteTokens { tokens, .. } = raised("nonfinite-tokens", &run) else {
        panic!();
    };
    assert!((1..=6 * 511).contains(&tokens), "{tokens}");
}

#[test]
fn a_few_windows_that_decide_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("uneven.txt");
    // About 40 windows of 128 tokens that repeat a line, and two of blanks, which no text holds
    // so many of: twenty times the loss.
    let (even, odd) = ("word\n".repeat(1250), " ".repeat(1100));
    fs::write(&text, format!("{even}{odd}{even}")).unwrap();
    let out = dir.path().join("out");
    let run = finished(
        quantbench()
            .args(["run", "--precisions", "fp16,rtn-int3", "--window", "128"])
            .args(["--prompt-tokens", "16", "--gen-tokens", "4", "--reps", "2"])
            .arg("--datasets")
            .arg(&text)
            .arg("--out")
            .arg(&out),
        &out,
    );
    let tail = raised("heavy-tail", &run).to_string();
    assert!(tail.contains("% of the loss"), "{tail}");
}

#[test]
fn a_slow_first_repetition_is_said() {
    let run = altered("1,6,1", &["--reps", "6"]);
    let Warning::SlowFirstRun { times, .. } = raised("slow-first-run", &run) else {
        panic!();
    };
    assert!(times > 2.0, "{times}");
    // Altered times do not go unnoticed.
    let mark = raised("altered-times", &run);
    assert!(mark.to_string().contains("by 1,6,1"));
    assert!(run.0.results.iter().all(|r| r.warnings.contains("a test")));
}

#[test]
fn a_machine_that_does_not_settle_is_said() {
    // The first is the slowest by far more than a busy machine varies, and still no outlier.
    let run = altered("1000000,100,30,1,30,1,30,1,30,1", &["--reps", "9"]);
    raised("slow-warmup", &run);
}

#[test]
fn a_drift_and_a_wide_spread_are_said() {
    let run = altered("1,1,2,4,8,16,32,64,128,256", &["--reps", "9"]);
    let drift = raised("drift", &run);
    assert!(
        matches!(drift, Warning::Drift { change, repetitions: 9, .. } if change > 1.0),
        "{drift:?}"
    );
    raised("wide-spread", &run);
}

#[test]
fn repetitions_end_when_every_median_is_certain_enough() {
    // Constant times would be certain at once; a machine's are not constant, so leave room.
    let run = altered("1", &["--max-noise", "95%", "--max-reps", "40"]);
    let timings = || run.0.info.cells.iter().map(|c| c.timing.as_ref().unwrap());
    for timing in timings() {
        assert_eq!(timing.stopped_by, StopRule::Noise, "{timing:?}");
        assert!((6..40).contains(&timing.repetitions), "{timing:?}");
        assert!(timing.decode_noise.unwrap() <= 0.95);
        assert!(timing.interval_level.unwrap() >= 0.95);
    }
    // Turns stay interleaved: all points have as many.
    let counts: BTreeSet<u64> = timings().map(|t| t.repetitions).collect();
    assert_eq!(counts.len(), 1);
    for row in &run.0.results {
        let (low, high) = (row.decode_tok_s_ci_low, row.decode_tok_s_ci_high);
        assert!(low <= row.decode_tok_s && row.decode_tok_s <= high);
        assert!(row.prefill_tok_s_ci_low < row.prefill_tok_s_ci_high);
    }
    for pair in &run.0.speed_pairs {
        assert!(pair.ratio_ci_low.unwrap() <= pair.ratio);
        assert!(pair.ratio <= pair.ratio_ci_high.unwrap());
    }
    // Two precisions are few enough for sentences.
    assert!(run.1.contains("between fp16 and int8") || run.1.contains("x faster than"));
}

#[test]
fn a_median_that_stays_uncertain_is_said() {
    let args = ["--max-noise", "0.02", "--min-reps", "2", "--max-reps", "7"];
    let run = altered("1,1,3", &args[..]);
    let first = run.0.info.cells[0].timing.clone().unwrap();
    assert_eq!(first.repetitions, 7, "{first:?}");
    let run = altered("1,1,3,1,3,1,3,1", &args);
    let Warning::StillNoisy {
        noise,
        most_noise,
        repetitions,
        ..
    } = raised("still-noisy", &run)
    else {
        panic!();
    };
    assert!(noise > most_noise && most_noise == 0.02);
    assert_eq!(repetitions, 7);
    for cell in &run.0.info.cells {
        let timing = cell.timing.as_ref().unwrap();
        assert_eq!(timing.stopped_by, StopRule::MaxReps);
        assert_eq!(timing.repetitions, 7);
    }
}

#[test]
fn kept_warnings_are_rendered_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut tables = Tables::read(&root().join("tests/golden/report/run")).unwrap();
    let [of_row, of_machine] = [0, 1].map(|half| {
        let all = fed().into_iter().enumerate();
        let kept = all.filter(|(i, _)| i % 2 == half);
        kept.map(|(_, w)| w).collect::<Vec<_>>()
    });
    tables.results[2].warnings = warning::joined(&of_row);
    tables.info.cells[2].warnings = of_row.clone();
    tables.info.warnings = of_machine.iter().map(Warning::to_string).collect();
    tables.info.machine_warnings = of_machine.clone();
    tables.write(dir.path()).unwrap();
    let (read, shown) = finished(quantbench().arg("report").arg(dir.path()), dir.path());
    assert_eq!(read, tables);
    let html = fs::read_to_string(dir.path().join("index.html")).unwrap();
    let markdown = fs::read_to_string(dir.path().join("report.md")).unwrap();
    for (warning, row) in of_row
        .iter()
        .map(|w| (w, true))
        .chain(of_machine.iter().map(|w| (w, false)))
    {
        let words = warning.to_string();
        let own = if row {
            format!("{words} (int8)")
        } else {
            words
        };
        assert!(shown.contains(&format!("warning: {own}")), "{own}: {shown}");
        assert!(html.replace("&#39;", "'").contains(&own), "{own}");
        assert!(markdown.replace('\\', "").contains(&own), "{own}");
    }
}

#[test]
fn no_kind_is_forgotten() {
    let fed: Vec<Warning> = fed();
    let mut kinds: BTreeSet<String> = fed.iter().map(Warning::kind).collect();
    kinds.extend(PROVOKED.iter().map(|kind| kind.to_string()));
    assert_eq!(kinds.len(), fed.len() + PROVOKED.len());
    // As many as the enum has: its own test counts the same.
    assert_eq!(kinds.len(), 32);
    // A phase is a word in words and in files.
    for phase in [Phase::Prefill, Phase::Decode] {
        assert_eq!(serde_json::to_value(phase).unwrap(), phase.word());
    }
}
