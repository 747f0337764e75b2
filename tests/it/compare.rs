//! The gate through the real binary, over made-up run folders: what fails, what does not, every
//! exit code, every reason for not comparing, hostile folders, and all four formats.

use crate::common::{quantbench, stderr, stdout};
use quantbench::compare::baseline::save;
use quantbench::compare::metric::{Better, Evidence, METRICS, Metric};
use quantbench::compare::thresholds::Thresholds;
use quantbench::record::Tables;
use quantbench::record::rows::{ChoiceRow, QualityRow, ResultRow, SampleRow, Status, WindowRow};
use quantbench::record::run_info::{GpuInfo, TextInfo};
use quantbench::report;
use quantbench::run::progress::Progress;
use quantbench::run::turns::Participant;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

const PROTOCOL: &str = "gptq-v1@512";
const WINDOWS: u64 = 40;
const REPS: u64 = 20;
/// Of every window.
const KL: f64 = 0.01;

/// A run of two precisions: 40 windows, 20 repetitions that spread by 0.2 %.
fn made_up() -> Tables {
    let mut t = Tables::default();
    t.info.run_id = "made-up".into();
    t.info.metrics_version = 1;
    t.info.complete = true;
    t.info.reference = "fp16".into();
    t.info.precisions = vec!["fp16".into(), "int8".into()];
    t.info.host.cpu = "A CPU".into();
    t.info.host.instruction_set = "avx2".into();
    t.info.model.name = "tiny".into();
    t.info.model.weights_sha256 = "abc".into();
    t.info.model.tokenizer_sha256 = "def".into();
    t.info.texts = vec![TextInfo {
        name: "prose".into(),
        kind: "evaluation".into(),
        ids_sha256: "123".into(),
        windows: WINDOWS,
        ..TextInfo::default()
    }];
    for (precision, nll) in [("fp16", 3.0), ("int8", 3.01)] {
        t.results.push(ResultRow {
            run_id: "made-up".into(),
            device: "cpu".into(),
            model: "tiny".into(),
            precision: precision.into(),
            kv_cache: "fp16".into(),
            status: Status::Ok,
            perplexity: Some(f64::exp(nll)),
            protocol: PROTOCOL.into(),
            dataset: "overall".into(),
            scored_tokens: Some(WINDOWS * 511),
            kl_mean_nats: Some(KL),
            batch: Some(1),
            prompt_tokens: Some(256),
            generated_tokens: Some(64),
            prefill_tok_s: Some(1000.0),
            decode_tok_s: Some(100.0),
            peak_memory_bytes: Some(20_000_000),
            peak_memory_method: "allocator".into(),
            threads: Some(2),
            metrics_version: Some(1),
            ..ResultRow::default()
        });
        t.quality.push(QualityRow {
            device: "cpu".into(),
            model: "tiny".into(),
            precision: precision.into(),
            kv_cache: "fp16".into(),
            protocol: PROTOCOL.into(),
            dataset: "overall".into(),
            windows: WINDOWS,
            scored_tokens: WINDOWS * 511,
            nll_mean_nats: nll,
            perplexity: f64::exp(nll),
            ..QualityRow::default()
        });
        t.windows.extend((0..WINDOWS).map(|window| WindowRow {
            precision: precision.into(),
            kv_cache: "fp16".into(),
            protocol: PROTOCOL.into(),
            dataset: "prose".into(),
            window,
            scored_tokens: 511,
            nll_sum_nats: 511.0 * (nll + 0.2 * ((window * 7 % 11) as f64 - 5.0)),
            kl_tokens: Some(511),
            kl_sum_nats: Some(511.0 * KL),
            ..WindowRow::default()
        }));
        for (phase, context, tokens, speed) in
            [("prefill", 0, 256, 1000.0), ("decode", 256, 64, 100.0)]
        {
            t.samples.extend((0..REPS).map(|rep| SampleRow {
                precision: precision.into(),
                kv_cache: "fp16".into(),
                phase: phase.into(),
                batch: 1,
                context,
                rep,
                tokens,
                seconds: tokens as f64 / speed * (1.0 + 0.001 * ((rep * 7 % 11) as f64 - 5.0)),
                process: Some(format!("process of {precision}")),
                ended_at_s: Some(2.0 * rep as f64),
                ..SampleRow::default()
            }));
        }
    }
    t
}

/// Folders of a comparison.
struct Pair {
    dir: tempfile::TempDir,
}

impl Pair {
    fn of(base: &Tables, new: &Tables) -> Self {
        let pair = Pair {
            dir: tempfile::tempdir().unwrap(),
        };
        base.write(&pair.base()).unwrap();
        new.write(&pair.changed()).unwrap();
        pair
    }

    /// A made-up run, and the same after an edit.
    fn edited(edit: impl FnOnce(&mut Tables)) -> Self {
        let base = made_up();
        let mut new = base.clone();
        edit(&mut new);
        Pair::of(&base, &new)
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn changed(&self) -> PathBuf {
        self.dir.path().join("new")
    }

    fn compare(&self, args: &[&str]) -> Output {
        compare(&self.base(), &self.changed(), args)
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.compare(&[args, &["--format", "json"]].concat());
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {} {}", stdout(&output), stderr(&output)));
        assert_eq!(
            json["exit_code"].as_i64(),
            output.status.code().map(i64::from)
        );
        json
    }
}

fn compare(base: &Path, new: &Path, args: &[&str]) -> Output {
    let output = quantbench()
        .arg("compare")
        .args([base, new])
        .args(args)
        .output()
        .unwrap();
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{text}");
    output
}

fn change<'a>(json: &'a Value, metric: &str, precision: &str) -> &'a Value {
    let mut runs = json["runs"].as_array().unwrap().iter();
    runs.find_map(|run| {
        let mut changes = run["changes"].as_array().unwrap().iter();
        changes.find(|c| c["metric"] == metric && c["cell"]["precision"] == precision)
    })
    .unwrap_or_else(|| panic!("no {metric} of {precision} in {json}"))
}

/// Makes one metric of `int8` worse (above 1) or better (below) by a factor: evenly, or by one
/// window or in repetitions that scatter, so that it could be chance.
fn worsen(t: &mut Tables, metric: &Metric, factor: f64, by_chance: bool) {
    let row = t
        .results
        .iter_mut()
        .find(|r| r.precision == "int8")
        .unwrap();
    let ratio = match metric.better {
        Better::Lower => factor,
        Better::Higher => 1.0 / factor,
    };
    match metric.id {
        "perplexity" => row.perplexity = row.perplexity.map(|v| v * ratio),
        "kl_mean_nats" => row.kl_mean_nats = row.kl_mean_nats.map(|v| v * ratio),
        "prefill_tok_s" => row.prefill_tok_s = row.prefill_tok_s.map(|v| v * ratio),
        "decode_tok_s" => row.decode_tok_s = row.decode_tok_s.map(|v| v * ratio),
        "peak_memory_bytes" => {
            row.peak_memory_bytes = row.peak_memory_bytes.map(|v| (v as f64 * ratio) as u64);
        }
        other => panic!("teach this test about {other}"),
    }
    match metric.evidence {
        Evidence::Windows => {
            for q in t.quality.iter_mut().filter(|q| q.precision == "int8") {
                q.perplexity *= ratio;
            }
            let shift = ratio.ln() * 511.0;
            for w in t.windows.iter_mut().filter(|w| w.precision == "int8") {
                w.nll_sum_nats += match (by_chance, w.window) {
                    (false, _) => shift,
                    (true, 3) => shift * WINDOWS as f64,
                    (true, _) => 0.0,
                };
            }
        }
        Evidence::Repetitions(phase) => {
            let ours = |s: &&mut SampleRow| s.precision == "int8" && s.phase == phase;
            for s in t.samples.iter_mut().filter(ours) {
                s.seconds /= ratio;
                if by_chance {
                    s.seconds *= [0.5, 1.0, 1.6][(s.rep % 3) as usize];
                }
            }
        }
        Evidence::Divergences => {
            for w in t.windows.iter_mut().filter(|w| w.precision == "int8") {
                let share = match (by_chance, w.window) {
                    (false, _) => 1.0,
                    (true, 3) => WINDOWS as f64,
                    (true, _) => 0.0,
                };
                let sum = w.kl_sum_nats.as_mut().unwrap();
                *sum *= 1.0 + (ratio - 1.0) * share;
            }
        }
        Evidence::Exact => {}
    }
}

#[test]
fn every_metric_fails_only_on_what_is_large_and_certain() {
    let thresholds = Thresholds::default();
    // Made-up repetitions scatter less than real runs do.
    let quiet = ["--run-noise", "0.1%"];
    for metric in METRICS {
        let limit = (metric.limit)(&thresholds);
        let verdict = |factor: f64, by_chance: bool| {
            let pair = Pair::edited(|t| worsen(t, metric, factor, by_chance));
            let json = pair.json(&quiet);
            let found = change(&json, metric.id, "int8");
            // Nothing else moved.
            for other in METRICS.iter().filter(|m| m.id != metric.id) {
                assert_eq!(change(&json, other.id, "int8")["verdict"], "unchanged");
            }
            assert_eq!(change(&json, metric.id, "fp16")["verdict"], "unchanged");
            let word = found["verdict"].as_str().unwrap().to_string();
            (word, json["exit_code"].as_i64().unwrap())
        };
        let name = metric.id;
        let tiny = verdict(1.0 + 0.5 * limit, false);
        assert_eq!(tiny, ("tiny".into(), 0), "{name}");
        let both = verdict(1.0 + 2.5 * limit, false);
        assert_eq!(both, ("regression".into(), 1), "{name}");
        let better = verdict(1.0 / (1.0 + 2.5 * limit), false);
        assert_eq!(better, ("improvement".into(), 0), "{name}");
        if metric.evidence != Evidence::Exact {
            let chance = verdict(1.0 + 2.5 * limit, true);
            assert_eq!(chance, ("insignificant".into(), 0), "{name}");
        }
    }
}

/// As runs were before windows had divergences.
fn without_windows(t: &mut Tables) {
    for w in &mut t.windows {
        (w.kl_tokens, w.kl_sum_nats) = (None, None);
    }
}

#[test]
fn a_divergence_of_almost_nothing_is_none() {
    let with = |from: f64, to: f64| {
        let mut base = made_up();
        let mut new = made_up();
        without_windows(&mut base);
        without_windows(&mut new);
        base.results[1].kl_mean_nats = Some(from);
        new.results[1].kl_mean_nats = Some(to);
        let json = Pair::of(&base, &new).json(&[]);
        change(&json, "kl_mean_nats", "int8")["verdict"].clone()
    };
    assert_eq!(with(0.0, 0.0), "unchanged");
    assert_eq!(with(1e-6, 1.9e-6), "unchanged");
    assert_eq!(with(8e-5, 1.8e-4), "regression");
    assert_eq!(with(0.0, 0.01), "regression");
    // What is almost nothing is for the user to say, or for the noise floor of the base.
    let kl = METRICS.iter().find(|m| m.id == "kl_mean_nats").unwrap();
    let verdict = |floor: f64, args: &[&str]| {
        let mut base = made_up();
        base.info.noise_floors = vec!["fp16".into()];
        base.results[0].kl_mean_nats = Some(floor);
        base.windows.iter_mut().for_each(|w| {
            let of = if w.precision == "fp16" { floor } else { KL };
            w.kl_sum_nats = Some(511.0 * of);
        });
        let mut new = base.clone();
        worsen(&mut new, kl, 1.5, false);
        let json = Pair::of(&base, &new).json(args);
        let found = change(&json, "kl_mean_nats", "int8").clone();
        (found["verdict"].clone(), found["note"].clone())
    };
    assert_eq!(verdict(1e-5, &[]).0, "regression");
    let (word, note) = verdict(0.006, &[]);
    assert_eq!(
        (word, note),
        (
            "unchanged".into(),
            "differs by no more than rounding does".into()
        )
    );
    assert_eq!(verdict(1e-5, &["--kl-floor", "0.006"]).0, "unchanged");
    assert_eq!(verdict(1e-5, &["--kl-floor", "0.004"]).0, "regression");
    let json = Pair::edited(without_windows).json(&[]);
    let note = change(&json, "kl_mean_nats", "int8")["note"]
        .as_str()
        .unwrap();
    assert!(note.contains("threshold alone"), "{note}");
}

#[test]
fn thresholds_are_set_by_flags_and_by_a_file() {
    let decode = METRICS.iter().find(|m| m.id == "decode_tok_s").unwrap();
    let pair = Pair::edited(|t| worsen(t, decode, 1.15, false));
    let code = |args: &[&str]| pair.compare(args).status.code();
    assert_eq!(code(&[]), Some(1));
    assert_eq!(code(&["--max-decode-decrease", "15%"]), Some(0));
    // So much noise between runs would explain it.
    assert_eq!(code(&["--run-noise", "10%"]), Some(0));
    let file = pair.dir.path().join("suite.toml");
    fs::write(&file, "[compare]\nmax_decode_decrease = \"15%\"\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(code(&["--thresholds", file]), Some(0));
    // The command line is nearer to the user than the file.
    assert_eq!(
        code(&["--thresholds", file, "--max-decode-decrease", "5%"]),
        Some(1)
    );
    let memory = METRICS
        .iter()
        .find(|m| m.id == "peak_memory_bytes")
        .unwrap();
    let pair = Pair::edited(|t| worsen(t, memory, 1.008, false));
    assert_eq!(pair.compare(&[]).status.code(), Some(0));
    let tight = ["--max-memory-increase", "0.5%"];
    assert_eq!(pair.compare(&tight).status.code(), Some(1));
}

#[test]
fn too_little_evidence_is_said_and_fails_nothing() {
    let decode = METRICS.iter().find(|m| m.id == "decode_tok_s").unwrap();
    let few = |mut t: Tables| {
        t.samples.retain(|s| s.rep < 4);
        t
    };
    let mut new = made_up();
    worsen(&mut new, decode, 2.0, false);
    let pair = Pair::of(&few(made_up()), &few(new));
    let json = pair.json(&[]);
    assert_eq!(json["exit_code"], 0);
    let found = change(&json, "decode_tok_s", "int8");
    assert_eq!(found["verdict"], "undecided");
    assert!(
        found["note"]
            .as_str()
            .unwrap()
            .contains("4 and 4 repetitions")
    );
    assert!(stdout(&pair.compare(&[])).contains("undecided"));
}

#[test]
fn a_perplexity_that_is_no_number_is_a_regression() {
    let json = Pair::edited(|t| {
        t.results[1].perplexity = Some(f64::INFINITY);
        t.quality[1].perplexity = f64::INFINITY;
    })
    .json(&[]);
    assert_eq!(json["exit_code"], 1);
    assert_eq!(change(&json, "perplexity", "int8")["note"], "is not finite");
}

#[test]
fn tokens_without_a_likelihood_do_not_pass_for_a_gain() {
    // As a run leaves them: out of the sum and out of the weight.
    let lose = |t: &mut Tables, windows: u64| {
        let ours = |w: &&mut WindowRow| w.precision == "int8" && w.window < windows;
        for w in t.windows.iter_mut().filter(ours) {
            (w.weighted_nll_nats, w.weight) = (Some(w.nll_sum_nats / 2.0), Some(255.5));
            w.nll_sum_nats /= 2.0;
        }
        t.results[1].nonfinite_tokens = Some(windows * 255);
    };
    let pair = Pair::edited(|t| lose(t, 20));
    let text = stdout(&pair.compare(&[]));
    assert!(
        text.contains("has 5100 tokens without a finite likelihood; the base has 0"),
        "{text}"
    );
    assert!(!text.contains("improved"), "{text}");
    assert_eq!(pair.compare(&[]).status.code(), Some(3));
    // Fewer are no failure, and no number to compare with either.
    let json = compare(&pair.changed(), &pair.base(), &["--format", "json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["exit_code"], 0, "{json}");
    let note = json["runs"][0]["notes"][0].as_str().unwrap();
    assert!(note.contains("is not compared"), "{note}");
    // The same ones are left out of both.
    let mut base = made_up();
    lose(&mut base, 20);
    let mut new = base.clone();
    let shift = |w: &mut WindowRow| w.weighted_nll_nats = w.weighted_nll_nats.map(|n| n + 20.0);
    new.windows
        .iter_mut()
        .filter(|w| w.precision == "int8" && w.weight.is_some())
        .for_each(shift);
    for q in new.quality.iter_mut().filter(|q| q.precision == "int8") {
        q.perplexity *= 1.04;
    }
    let json = Pair::of(&base, &new).json(&[]);
    assert_eq!(
        change(&json, "perplexity", "int8")["verdict"],
        "regression",
        "{json}"
    );
}

#[test]
fn divergences_are_compared_over_the_windows_that_both_runs_have() {
    // The later windows diverge more; a run with a smaller cache has the first 10 only.
    let with = |windows: u64, factor: f64| {
        let mut t = made_up();
        let own = |w: &&mut WindowRow| w.precision == "int8";
        let mut sum = 0.0;
        for w in t.windows.iter_mut().filter(own) {
            let kl = factor * 511.0 * KL * (1.0 + w.window as f64);
            let kept = w.window < windows;
            (w.kl_sum_nats, w.kl_tokens) = (kept.then_some(kl), kept.then_some(511));
            sum += w.kl_sum_nats.unwrap_or(0.0);
        }
        let tokens = windows * 511;
        t.results[1].kl_tokens = Some(tokens);
        t.results[1].kl_mean_nats = Some(sum / tokens as f64);
        t
    };
    for (from, to) in [(10, 40), (40, 10)] {
        let json = Pair::of(&with(from, 1.0), &with(to, 1.0)).json(&[]);
        assert_eq!(json["exit_code"], 0, "{json}");
        let found = change(&json, "kl_mean_nats", "int8");
        assert_eq!(found["verdict"], "unchanged");
        assert!((found["base"].as_f64().unwrap() - 5.5 * KL).abs() < 1e-12);
        let note = json["runs"][0]["notes"][0].as_str().unwrap();
        assert!(note.contains("over the 5110 tokens"), "{note}");
    }
    let json = Pair::of(&with(10, 1.0), &with(40, 1.5)).json(&[]);
    assert_eq!(
        change(&json, "kl_mean_nats", "int8")["verdict"],
        "regression"
    );
    // Nothing in common is nothing to compare.
    let mut other = with(40, 1.0);
    for w in other.windows.iter_mut().filter(|w| w.window < 10) {
        (w.kl_sum_nats, w.kl_tokens) = (None, None);
    }
    let json = Pair::of(&with(10, 1.0), &other).json(&[]);
    assert_eq!(json["exit_code"], 4, "{json}");
}

#[test]
fn every_protocol_is_judged_by_itself() {
    let second = |t: &mut Tables, nll: f64| {
        let mut q = t.quality[1].clone();
        q.protocol = "strided@512:256".into();
        q.perplexity = f64::exp(nll);
        t.quality.push(q);
        let mut windows = t.windows.clone();
        windows.retain(|w| w.precision == "int8");
        for w in &mut windows {
            w.protocol = "strided@512:256".into();
            w.nll_sum_nats += 511.0 * (nll - 3.01);
        }
        t.windows.extend(windows);
    };
    let (mut base, mut new) = (made_up(), made_up());
    second(&mut base, 2.9);
    second(&mut new, 2.95);
    let json = Pair::of(&base, &new).json(&[]);
    let changes = json["runs"][0]["changes"].as_array().unwrap();
    let verdict = |protocol: &str| {
        let ours = |c: &&Value| c["protocol"] == protocol && c["cell"]["precision"] == "int8";
        changes.iter().find(ours).unwrap()["verdict"].clone()
    };
    assert_eq!(verdict(PROTOCOL), "unchanged");
    assert_eq!(verdict("strided@512:256"), "regression");
    // One that is gone is a failure, since the other can still be compared.
    let json = Pair::of(&base, &made_up()).json(&[]);
    assert_eq!(json["exit_code"], 3);
}

#[test]
fn nothing_to_compare_is_code_4() {
    let lost: fn(&mut Tables) = |t| {
        for row in &mut t.results {
            row.status = Status::Timeout;
        }
    };
    let mut base = made_up();
    lost(&mut base);
    for (new, found) in [(base.clone(), "0 cells"), (made_up(), "2 cells")] {
        let pair = Pair::of(&base, &new);
        let output = pair.compare(&[]);
        assert_eq!(output.status.code(), Some(4));
        assert!(stdout(&output).contains(found), "{}", stdout(&output));
    }
    // Where the new run has lost what the base has, that is what is wrong.
    assert_eq!(
        Pair::of(&made_up(), &base).compare(&[]).status.code(),
        Some(3)
    );
    // A table that has lost its rows, or all of it, is damaged.
    for text in ["", "garbage\n"] {
        let pair = Pair::edited(|_| {});
        fs::write(pair.base().join("results.csv"), text).unwrap();
        let output = pair.compare(&[]);
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("no column `run_id`"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_comparison_is_written_into_what_a_link_names() {
    let pair = Pair::edited(|_| {});
    let [file, link] = ["text", "link"].map(|name| pair.dir.path().join(name));
    fs::write(&file, "before").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let output = pair.compare(&["--output", link.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fs::read_to_string(&file).unwrap().contains("no regression"));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_suite_brings_its_thresholds() {
    let decode = METRICS.iter().find(|m| m.id == "decode_tok_s").unwrap();
    let pair = Pair::edited(|t| {
        worsen(t, decode, 1.15, false);
        let table = serde_json::json!({"max_decode_decrease": "15%"});
        t.info.options.insert("compare".into(), table);
    });
    assert_eq!(pair.compare(&[]).status.code(), Some(0));
    let typed = ["--max-decode-decrease", "5%"];
    assert_eq!(pair.compare(&typed).status.code(), Some(1));
    let file = pair.dir.path().join("own.toml");
    fs::write(&file, "[compare]\n").unwrap();
    let own = ["--thresholds", file.to_str().unwrap()];
    assert_eq!(pair.compare(&own).status.code(), Some(1));
}

#[test]
fn missing_and_failed_cells_are_code_3() {
    let code = |edit: fn(&mut Tables), words: &str| {
        let pair = Pair::edited(edit);
        let output = pair.compare(&[]);
        let text = stdout(&output);
        assert!(text.contains(words), "`{words}` is missing in {text}");
        output.status.code()
    };
    let missing: fn(&mut Tables) = |t| {
        t.results.pop();
    };
    assert_eq!(
        code(missing, "FAILED: int8 kv=fp16 b=1 ctx=256 is missing"),
        Some(3)
    );
    let oom: fn(&mut Tables) = |t| {
        t.results[1].status = Status::Oom;
        t.results[1].error = "too large".into();
    };
    assert_eq!(code(oom, "ended as `oom`: too large"), Some(3));
    let no_speed: fn(&mut Tables) = |t| t.results[1].decode_tok_s = None;
    assert_eq!(code(no_speed, "has no decode_tok_s"), Some(3));
    let no_perplexity: fn(&mut Tables) = |t| {
        t.results[1].perplexity = None;
        t.quality.pop();
    };
    assert_eq!(code(no_perplexity, "has no perplexity"), Some(3));

    let failed: fn(&mut Tables) = |t| t.results[1].status = Status::Oom;
    let (good, mut bad) = (made_up(), made_up());
    failed(&mut bad);
    // Failed before: fine again, or not worse.
    let again = Pair::of(&bad, &good).compare(&[]);
    assert_eq!(again.status.code(), Some(0));
    assert!(stdout(&again).contains("is fine; it was `oom`"));
    assert_eq!(Pair::of(&bad, &bad).compare(&[]).status.code(), Some(0));
    // New cells have nothing to be worse than.
    let mut less = made_up();
    missing(&mut less);
    let more = Pair::of(&less, &good).compare(&[]);
    assert_eq!(more.status.code(), Some(0));
    assert!(stdout(&more).contains("int8 kv=fp16 b=1 ctx=256 is new"));
}

#[test]
fn every_reason_for_not_comparing_is_named_with_both_values() {
    type Edit = fn(&mut Tables);
    let reasons: &[(Edit, &[&str])] = &[
        (
            |t| t.info.metrics_version = 0,
            &["metrics version", "1 against 0"],
        ),
        (
            |t| t.info.host.cpu = "Another".into(),
            &["host CPU", "A CPU against Another"],
        ),
        (
            |t| t.info.host.instruction_set = "avx512".into(),
            &["instruction set", "avx512"],
        ),
        (
            |t| {
                t.results
                    .iter_mut()
                    .for_each(|r| r.device = "cuda:0".into())
            },
            &["device", "cpu against cuda:0"],
        ),
        (
            |t| t.info.model.name = "other".into(),
            &["model", "tiny against other"],
        ),
        (
            |t| t.info.model.weights_sha256 = "x".into(),
            &["model weights", "abc against x"],
        ),
        (
            |t| t.info.model.tokenizer_sha256 = "x".into(),
            &["tokenizer", "def against x"],
        ),
        (
            |t| t.info.reference = "fp32".into(),
            &["reference", "fp16 against fp32"],
        ),
        (
            |t| {
                t.results
                    .iter_mut()
                    .for_each(|r| r.kv_cache = "fp32".into())
            },
            &["KV cache", "fp16 against fp32"],
        ),
        (
            |t| t.results.iter_mut().for_each(|r| r.batch = Some(4)),
            &["batch", "1 against 4"],
        ),
        (
            |t| {
                t.results
                    .iter_mut()
                    .for_each(|r| r.prompt_tokens = Some(512))
            },
            &["prompt tokens", "256 against 512"],
        ),
        (
            |t| t.results[0].generated_tokens = Some(32),
            &["generated tokens", "64 against 32"],
        ),
        (
            |t| t.results[0].threads = Some(4),
            &["threads", "2 against 4"],
        ),
        (
            |t| t.results[0].peak_memory_method = "pool".into(),
            &["peak memory's method", "allocator against pool"],
        ),
        (
            |t| {
                t.results
                    .iter_mut()
                    .for_each(|r| r.protocol = "other@1".into());
                t.quality
                    .iter_mut()
                    .for_each(|q| q.protocol = "other@1".into());
            },
            &["protocol", "gptq-v1@512 against other@1"],
        ),
        (
            |t| t.info.texts[0].ids_sha256 = "999".into(),
            &["evaluation text `prose`", "123 against 999"],
        ),
        (
            |t| t.info.texts[0].windows = 20,
            &["evaluation text `prose`, windows", "40 against 20"],
        ),
        (
            |t| t.info.texts.clear(),
            &["evaluation text `prose`", "there against missing"],
        ),
        (
            |t| t.results[0].scored_tokens = Some(7),
            &["scored tokens", "against 7"],
        ),
        (
            |t| {
                t.windows.pop();
            },
            &["windows of int8", "40 windows", "against 39 windows"],
        ),
        (
            |t| t.samples.retain(|s| s.phase != "decode"),
            &["decode repetitions of fp16", "20 in samples.csv against 0"],
        ),
        (
            |t| t.results.push(t.results[0].clone()),
            &["rows of fp16", "in NEW", "two or more"],
        ),
    ];
    for (edit, words) in reasons {
        let output = Pair::edited(*edit).compare(&[]);
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(4), "{words:?}: {text}");
        assert!(text.contains("NOT COMPARABLE"), "{text}");
        for word in *words {
            assert!(text.contains(word), "`{word}` is missing in {text}");
        }
    }
    // On a GPU, also which.
    let on = |gpu: &str| {
        let mut t = made_up();
        t.results
            .iter_mut()
            .for_each(|r| r.device = "cuda:0".into());
        t.info.host.gpus = vec![GpuInfo {
            name: gpu.into(),
            ..GpuInfo::default()
        }];
        t
    };
    let output = Pair::of(&on("One"), &on("Two")).compare(&[]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stdout(&output).contains("GPU: One against Two"));
    assert_eq!(
        Pair::of(&on("One"), &on("One")).compare(&[]).status.code(),
        Some(0)
    );
}

#[test]
fn not_comparable_goes_before_failed_before_regression() {
    let perplexity = &METRICS[0];
    let worse = |t: &mut Tables| {
        worsen(t, perplexity, 1.05, false);
    };
    let failed = |t: &mut Tables| t.results[0].status = Status::Killed;
    assert_eq!(Pair::edited(worse).compare(&[]).status.code(), Some(1));
    let both = Pair::edited(|t| {
        worse(t);
        failed(t);
    });
    assert_eq!(both.compare(&[]).status.code(), Some(3));
    let all = Pair::edited(|t| {
        worse(t);
        failed(t);
        t.info.host.cpu = "Another".into();
    });
    assert_eq!(all.compare(&[]).status.code(), Some(4));
}

#[test]
fn sets_of_runs_are_matched_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for run in ["base/small", "base/large", "new/small", "new/large"] {
        made_up().write(&at(run)).unwrap();
    }
    fs::create_dir(at("new/notes")).unwrap();
    let code = || compare(&at("base"), &at("new"), &[]).status.code();
    assert_eq!(code(), Some(0));
    let mut worse = made_up();
    worsen(&mut worse, &METRICS[0], 1.05, false);
    worse.write(&at("new/large")).unwrap();
    let output = compare(&at("base"), &at("new"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("large: tiny on cpu"));
    fs::remove_dir_all(at("new/large")).unwrap();
    let output = compare(&at("base"), &at("new"), &[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).contains("run `large` of the base is missing"));
    // A run against a set: nothing has the same name.
    let output = compare(&at("base/small"), &at("new"), &[]);
    assert_eq!(output.status.code(), Some(4));
    made_up().write(&at("new/large")).unwrap();
    made_up().write(&at("new/extra")).unwrap();
    assert_eq!(code(), Some(0));
}

#[test]
fn repeated_runs_show_what_repetitions_hide() {
    let decode = METRICS.iter().find(|m| m.id == "decode_tok_s").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Runs of one build that differ by up to a fifth, each with repetitions that agree.
    let write = |side: &str, factors: [f64; 5]| {
        for (i, factor) in factors.into_iter().enumerate() {
            let mut run = made_up();
            worsen(&mut run, decode, factor, false);
            run.write(&at(side).join(i.to_string())).unwrap();
        }
    };
    write("base", [1.0, 1.1, 0.95, 1.05, 0.9]);
    write("new", [1.18, 1.0, 1.12, 0.93, 1.05]);
    let single = compare(&at("base/0"), &at("new/0"), &[]);
    assert_eq!(single.status.code(), Some(1), "one pair is fooled");
    let repeated = compare(&at("base"), &at("new"), &["--repeated"]);
    assert_eq!(repeated.status.code(), Some(0), "{}", stdout(&repeated));
    write("new", [1.6, 1.5, 1.7, 1.55, 1.65]);
    let repeated = compare(&at("base"), &at("new"), &["--repeated"]);
    assert_eq!(repeated.status.code(), Some(1), "{}", stdout(&repeated));
    // What is shown is what was compared, not the first run.
    let output = compare(&at("base"), &at("new"), &["--repeated", "--format", "json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = change(&json, "decode_tok_s", "int8");
    let shown = found["new"].as_f64().unwrap() / found["base"].as_f64().unwrap() - 1.0;
    assert!(
        (shown - found["change"].as_f64().unwrap()).abs() < 1e-9,
        "{found}"
    );
    // A cell that failed once has failed.
    let mut failed = made_up();
    failed.results[1].status = Status::Oom;
    failed.samples.retain(|s| s.precision != "int8");
    failed.write(&at("new/4")).unwrap();
    let once = compare(&at("base"), &at("new"), &["--repeated"]);
    assert_eq!(once.status.code(), Some(3), "{}", stdout(&once));
    // They have to be repetitions of the same.
    let mut other = made_up();
    other.info.model.weights_sha256 = "x".into();
    other.write(&at("new/5")).unwrap();
    let mixed = compare(&at("base"), &at("new"), &["--repeated"]);
    assert_eq!(mixed.status.code(), Some(4));
    assert!(stdout(&mixed).contains("between repeated runs of NEW"));
}

/// Of the run of a pair.
type Edit = dyn Fn(usize, &mut Tables);

#[test]
fn runs_that_took_turns_are_compared_repetition_by_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Eight pairs on a machine that slows by up to 70 %, in some pairs more than in others.
    let write = |side: &str, factor: f64, edit: &Edit| {
        for pair in 0..8 {
            let mut run = made_up();
            run.info.started_at = format!("2026-11-27T10:{pair:02}:00Z");
            run.info.finished_at = format!("2026-11-27T10:{pair:02}:30Z");
            run.info
                .options
                .insert("turns".into(), format!("/tmp/turns-{pair}").into());
            for sample in &mut run.samples {
                let moment = sample.rep as usize * 5 % 7 + pair * 3 % 5;
                let second = f64::from(side == "new");
                sample.ended_at_s = Some(2.0 * sample.rep as f64 + second);
                sample.seconds *= 1.0 + 0.07 * moment as f64;
                if sample.phase == "decode" && sample.precision == "int8" {
                    sample.seconds *= factor;
                }
            }
            edit(pair, &mut run);
            // The names say nothing of who took turns with whom.
            let name = if side == "new" { 7 - pair } else { pair };
            run.write(&at(side).join(name.to_string())).unwrap();
        }
    };
    let as_it_is: &Edit = &|_, _| {};
    write("base", 1.0, as_it_is);
    let json = || -> Value {
        let output = compare(&at("base"), &at("new"), &["--repeated", "--format", "json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    write("new", 1.12, as_it_is);
    let found = json();
    assert_eq!(found["exit_code"], 1, "{found}");
    let slower = change(&found, "decode_tok_s", "int8")["change"].clone();
    assert!((slower.as_f64().unwrap() - (1.0 / 1.12 - 1.0)).abs() < 1e-9);
    assert!(
        found["runs"][0]["notes"][0]
            .as_str()
            .unwrap()
            .contains("took turns (8 of")
    );
    write("new", 1.0, as_it_is);
    assert_eq!(json()["exit_code"], 0);
    // Without turns, the same numbers show nothing: of another file, of none, or at other times.
    let apart: [&Edit; 4] = [
        &|_, run| {
            let own = "/tmp/own".into();
            run.info.options.insert("turns".into(), own);
        },
        &|_, run| {
            run.info.options.remove("turns");
        },
        &|pair, run| {
            run.info.started_at = format!("2026-11-27T11:{pair:02}:00Z");
            run.info.finished_at = format!("2026-11-27T11:{pair:02}:30Z");
        },
        // One that was timed before and came back to the same file.
        &|_, run| {
            let samples = run.samples.iter_mut();
            samples.for_each(|s| s.ended_at_s = s.ended_at_s.map(|at| at - 1000.0));
        },
    ];
    for (i, edit) in apart.into_iter().enumerate() {
        write("new", 1.12, edit);
        let found = json();
        assert_eq!(found["exit_code"], 0, "{found}");
        let verdict = &change(&found, "decode_tok_s", "int8")["verdict"];
        assert_eq!(verdict, "insignificant", "{found}");
        let notes = &found["runs"][0]["notes"];
        match i {
            3 => assert!(
                notes[0].as_str().unwrap().contains("did not alternate"),
                "{notes}"
            ),
            _ => assert_eq!(*notes, serde_json::json!([])),
        }
    }
}

/// Lets runs of eight repetitions, in folders of these names, take turns, and requires that they
/// alternate strictly. What happens first is no matter of luck: this process has the turn until
/// all of them have said that they wait for it.
fn alternate_strictly(dir: &Path, names: &[&str]) {
    let turns = dir.join("turns");
    let own = Participant::join(&turns, Progress::Quiet).unwrap();
    let start = |name: &&str| {
        let mut run = quantbench()
            .args([
                "run",
                "--precisions",
                "int8",
                "--no-reference",
                "--limit",
                "2",
            ])
            .args([
                "--calibration-limit",
                "2",
                "--choices",
                "none",
                "--reps",
                "8",
            ])
            .args(["--prompt-tokens", "16", "--gen-tokens", "8"])
            .args(["--processes", "2", "--no-roofline"])
            .arg("--turns")
            .arg(&turns)
            .arg("--out")
            .arg(dir.join(name))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(run.stderr.take().unwrap());
        let mut line = String::new();
        says.read_line(&mut line).unwrap();
        assert!(line.starts_with("waiting for the turn"), "{line}");
        (run, says)
    };
    let runs: Vec<_> = names.iter().map(start).collect();
    drop(own);
    for (mut run, says) in runs {
        let said: Vec<String> = says.lines().map(Result::unwrap).collect();
        assert_eq!(run.wait().unwrap().code(), Some(0), "{said:?}");
    }
    let mut turns = vec![];
    for name in names {
        let run = Tables::read(&dir.join(name)).unwrap();
        let decode = run.samples.iter().filter(|s| s.phase == "decode");
        turns.extend(decode.map(|s| (s.ended_at_s.unwrap(), *name)));
    }
    turns.sort_by(|a, b| a.0.total_cmp(&b.0));
    let order: Vec<&str> = turns.iter().map(|(_, name)| *name).collect();
    // A warm-up and four repetitions in each of two processes.
    assert_eq!(order, names.repeat(10));
}

#[test]
fn three_runs_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    alternate_strictly(dir.path(), &["base", "new", "other"]);
    for new in ["new", "other"] {
        let compared = compare(&dir.path().join("base"), &dir.path().join(new), &[]);
        let said = stdout(&compared);
        assert!(said.contains("took turns (1 of each side)"), "{said}");
    }
}

#[test]
fn two_runs_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    alternate_strictly(dir.path(), &["base", "new"]);
    let run = Tables::read(&at("new")).unwrap();
    let decode = run.samples.iter().filter(|s| s.phase == "decode");
    let warmups: Vec<bool> = decode.map(|s| s.warmup).collect();
    let of_one = [true, false, false, false, false];
    assert_eq!(warmups, [of_one, of_one].concat(), "two processes");
    assert!(run.info.roofline.is_none() && run.results[0].mbu.is_none());
    let compared = compare(&at("base"), &at("new"), &["--max-decode-decrease", "90%"]);
    assert!(
        stdout(&compared).contains("took turns (1 of each side)"),
        "{}",
        stdout(&compared)
    );
    // A file that cannot be made is said before anything is measured.
    let output = quantbench()
        .args(["run", "--turns", "/nosuch/turns", "--out"])
        .arg(at("none"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("/nosuch/turns"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn wrong_usage_is_code_2() {
    let pair = Pair::edited(|_| {});
    let (base, new) = (pair.base(), pair.changed());
    let (base, new) = (base.to_str().unwrap(), new.to_str().unwrap());
    let cases: &[(&[&str], &str)] = &[
        (&[], "DIR"),
        (&[new], "--baseline"),
        (&[base, new, "--baseline", "main"], "too many"),
        (&[base, new, base], "unexpected"),
        (&[base, new, "--max-kl-increase", "10"], "such as 0.3%"),
        (&[base, new, "--max-decode-decrease", "100%"], "100%"),
        (&[base, new, "--false-alarms", "0%"], "false_alarms"),
        (&[base, new, "--format", "pdf"], "junit"),
        (&[base, new, "--thresholds", "/nosuch.toml"], "/nosuch.toml"),
        (&[base, new, "--output", "/nosuch/file"], "/nosuch/file"),
        (&[base, "/nosuch"], "/nosuch"),
        (&[new, "--save-baseline", "../evil"], "name for a baseline"),
        (&[new, "--baseline", "a/b"], "name for a baseline"),
    ];
    for (args, words) in cases {
        let output = quantbench().arg("compare").args(*args).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
}

#[test]
fn hostile_and_partial_folders_end_in_words() {
    let damage: &[(&str, &[u8])] = &[
        ("results.csv", b"\xff\xfe\x00garbage\n\n\"unclosed"),
        ("results.csv", b"run_id\n1,2,3\n"),
        ("windows.csv", b"run_id,precision\nx\n"),
        ("samples.csv", b"run_id,precision,kv_cache,phase,batch,context,rep,warmup,tokens,seconds\nx,int8,fp16,decode,-1,0,0,false,64,1\n"),
        ("run.json", b"{\"run_id\": "),
        ("run.json", b"[]"),
    ];
    for (file, bytes) in damage {
        let pair = Pair::edited(|_| {});
        fs::write(pair.changed().join(file), bytes).unwrap();
        let output = pair.compare(&[]);
        assert_eq!(output.status.code(), Some(2), "{file}: {}", stderr(&output));
        assert!(stderr(&output).contains(file));
        // The same on the other side: there is no baseline to compare with.
        let output = compare(&pair.changed(), &pair.base(), &[]);
        assert_eq!(output.status.code(), Some(4), "{file}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("no baseline"),
            "{}",
            stderr(&output)
        );
    }
    let pair = Pair::edited(|_| {});
    fs::remove_file(pair.changed().join("run.json")).unwrap();
    assert_eq!(pair.compare(&[]).status.code(), Some(2));
    // Tables that a run cut short lacks: what they would tell cannot be told.
    for file in ["windows.csv", "samples.csv"] {
        let pair = Pair::edited(|_| {});
        fs::remove_file(pair.changed().join(file)).unwrap();
        let output = pair.compare(&[]);
        assert_eq!(output.status.code(), Some(4), "{}", stdout(&output));
        assert!(stdout(&output).contains(file), "{}", stdout(&output));
    }
    // Numbers that no run writes.
    let pair = Pair::edited(|t| {
        t.samples.iter_mut().for_each(|s| s.seconds = 0.0);
        t.windows.iter_mut().for_each(|w| w.nll_sum_nats = f64::NAN);
        t.results[0].batch = Some(u64::MAX);
        t.results[0].prompt_tokens = Some(u64::MAX);
    });
    assert!([3, 4].contains(&pair.compare(&[]).status.code().unwrap()));
    let empty = tempfile::tempdir().unwrap();
    let pair = Pair::edited(|_| {});
    assert_eq!(
        compare(empty.path(), &pair.changed(), &[]).status.code(),
        Some(4)
    );
    assert_eq!(
        compare(&pair.base(), empty.path(), &[]).status.code(),
        Some(2)
    );
    assert_eq!(
        compare(Path::new("/nosuch"), &pair.changed(), &[])
            .status
            .code(),
        Some(4)
    );
}

#[test]
fn all_formats_say_the_same_and_escape_what_they_are_given() {
    let evil = "int8<script>|`&\"'@all\u{1}]]>";
    let rename = |t: &mut Tables| {
        t.results[1].precision = evil.into();
        t.quality[1].precision = evil.into();
        for w in t.windows.iter_mut().filter(|w| w.precision == "int8") {
            w.precision = evil.into();
        }
        for s in t.samples.iter_mut().filter(|s| s.precision == "int8") {
            s.precision = evil.into();
        }
    };
    let (mut base, mut new) = (made_up(), made_up());
    worsen(&mut new, &METRICS[0], 1.05, false);
    new.results[0].decode_tok_s = None;
    rename(&mut base);
    rename(&mut new);
    let pair = Pair::of(&base, &new);

    let text = stdout(&pair.compare(&[]));
    assert!(text.contains("REGRESSION") && text.is_ascii(), "{text}");
    assert!(text.contains("FAILED: fp16 kv=fp16 b=1 ctx=256 has no decode_tok_s"));
    let last = text.trim_end().lines().last().unwrap();
    assert!(
        last.contains("cells failed (1 cell failed, 1 regression"),
        "{last}"
    );

    let page = stdout(&pair.compare(&["--format", "markdown"]));
    assert!(page.starts_with("### quantbench: cells failed"), "{page}");
    let (shown, folded) = page.split_once("<details>").unwrap();
    assert!(
        shown.contains("REGRESSION") && !shown.contains("unchanged"),
        "{shown}"
    );
    assert!(folded.contains("unchanged") && folded.contains("</details>"));
    assert!(
        !page.contains("<script>") && !page.contains("@all"),
        "{page}"
    );

    let output = pair.compare(&["--format", "junit"]);
    assert_eq!(output.status.code(), Some(3));
    let xml = stdout(&output);
    let document = roxmltree::Document::parse(&xml).unwrap_or_else(|e| panic!("{e}: {xml}"));
    let count = |name: &str| {
        document
            .descendants()
            .filter(|n| n.has_tag_name(name))
            .count()
    };
    assert_eq!(
        (count("failure"), count("error"), count("skipped")),
        (1, 1, 0)
    );
    let root = document.root_element();
    assert_eq!(root.attribute("failures"), Some("1"));
    assert_eq!(
        root.attribute("tests"),
        Some(&*count("testcase").to_string())
    );

    let file = pair.dir.path().join("comparison.json");
    let output = pair.compare(&["--format", "json", "--output", file.to_str().unwrap()]);
    assert_eq!(stdout(&output), "");
    let json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["format_version"], 1);
    assert_eq!(json["outcome"], "cells_failed");
    assert_eq!(json["thresholds"]["max_decode_decrease"], "5%");
    assert_eq!(change(&json, "perplexity", evil)["verdict"], "regression");

    // What does not compare is an error in each.
    let other = Pair::edited(|t| t.info.host.cpu = "Other <&>".into());
    let xml = stdout(&other.compare(&["--format", "junit"]));
    let document = roxmltree::Document::parse(&xml).unwrap();
    let errors = document.descendants().filter(|n| n.has_tag_name("error"));
    let said: Vec<&str> = errors.filter_map(|n| n.attribute("message")).collect();
    assert_eq!(said, ["host CPU: A CPU against Other <&>"]);
    let page = stdout(&other.compare(&["--format", "markdown"]));
    assert!(page.contains("NOT COMPARABLE: host CPU: A CPU against Other &lt;&amp;&gt;"));
}

#[test]
fn baselines_are_kept_by_name() {
    let pair = Pair::edited(|_| {});
    let dir = pair.dir.path().join("baselines");
    let run = |new: &Path, args: &[&str]| {
        let output = quantbench()
            .args(["compare", "--baselines"])
            .arg(&dir)
            .args(args)
            .arg(new)
            .output()
            .unwrap();
        (output.status.code(), stdout(&output) + &stderr(&output))
    };
    let (code, said) = run(&pair.changed(), &["--baseline", "main"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("main"), "{said}");
    let (code, said) = run(&pair.base(), &["--save-baseline", "main"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(dir.join("main/results.csv").exists());
    assert_eq!(run(&pair.changed(), &["--baseline", "main"]).0, Some(0));
    // One that is worse does not become the baseline in passing.
    let mut worse = made_up();
    worsen(&mut worse, &METRICS[0], 1.05, false);
    worse.write(&pair.changed()).unwrap();
    let save = ["--baseline", "main", "--save-baseline", "main"];
    let (code, said) = run(&pair.changed(), &save);
    assert_eq!(code, Some(1));
    assert!(said.contains("was not saved"), "{said}");
    assert_eq!(run(&pair.changed(), &["--baseline", "main"]).0, Some(1));
    // But it may, if one says so.
    assert_eq!(
        run(&pair.changed(), &["--save-baseline", "main"]).0,
        Some(0)
    );
    assert_eq!(run(&pair.changed(), &["--baseline", "main"]).0, Some(0));
}

#[test]
fn a_baseline_renders_as_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let (run, baselines) = (dir.path().join("run"), dir.path().join("baselines"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report/run");
    let mut tables = Tables::read(&golden).unwrap();
    assert!(!tables.speed_pairs.is_empty());
    tables.choices = vec![ChoiceRow {
        run_id: tables.info.run_id.clone(),
        precision: tables.info.reference.clone(),
        kv_cache: tables.results[0].kv_cache.clone(),
        dataset: "questions".into(),
        items: 8,
        correct: 6,
        accuracy: 0.75,
        ..ChoiceRow::default()
    }];
    tables.write(&run).unwrap();
    let kept = save(&run, &baselines, "main").unwrap();
    assert_eq!(Tables::read(&kept).unwrap(), tables);
    let pages = |dir: &Path| {
        let rendered = report::render(dir).unwrap();
        [rendered.html, rendered.markdown].map(|page| fs::read_to_string(page).unwrap())
    };
    let [html, markdown] = pages(&kept);
    assert_eq!([html.clone(), markdown.clone()], pages(&run));
    for page in [html, markdown] {
        assert!(page.contains("questions"), "{page}");
    }
}

#[test]
fn a_run_ends_with_its_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let run = |args: &[&str]| {
        let mut command = quantbench();
        command
            .args(["run", "--calibration-limit", "4", "--prompt-tokens", "16"])
            .args(["--no-noise-floor", "--choices", "none"])
            .args(["--gen-tokens", "4", "--reps", "2", "--out"])
            .arg(&out)
            .arg("--baselines")
            .arg(dir.path().join("baselines"));
        for (name, default) in [("--precisions", "fp16,int8"), ("--limit", "6")] {
            if !args.contains(&name) {
                command.args([name, default]);
            }
        }
        let output = command.args(args).output().unwrap();
        (output.status.code(), stdout(&output) + &stderr(&output))
    };
    // A baseline that is not there costs no measuring.
    let (code, said) = run(&["--baseline", "main"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(!out.exists());
    let (code, said) = run(&["--save-baseline", "main"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["--baseline", "main"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no regression"), "{said}");
    let (code, said) = run(&["--baseline", "main", "--precisions", "fp16"]);
    assert_eq!(code, Some(3), "{said}");
    let (code, said) = run(&["--baseline", "main", "--limit", "5"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("windows"), "{said}");
}
