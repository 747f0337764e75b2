//! Runs that are cut off, repeated, disturbed and cached, through the real binary.

use crate::common::{model_copy, quantbench, stderr};
use quantbench::record::Tables;
use quantbench::record::rows::{ResultRow, SampleRow, Status};
use quantbench::record::tables::TABLES;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const JOURNAL: &str = "journal.jsonl";

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{text}");
    output
}

fn ok(command: &mut Command) -> Output {
    let output = run(command);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    output
}

/// A run of a second or two, in which the machine's rates are not measured.
fn quick(out: &Path, precisions: &str) -> Command {
    let mut command = brief(out, precisions);
    command.arg("--no-roofline");
    command
}

fn brief(out: &Path, precisions: &str) -> Command {
    let mut command = quantbench();
    command.args([
        "run",
        "--limit",
        "6",
        "--prompt-tokens",
        "16",
        "--gen-tokens",
        "4",
    ]);
    command.args(["--no-noise-floor", "--choices", "none"]);
    command.args(["--precisions", precisions, "--out"]).arg(out);
    command
}

/// Two precisions with two batches: a few seconds of every kind of work.
fn suite_of(out: &Path, reps: &str) -> Command {
    let mut command = brief(out, "fp16,gptq-int4");
    command.args(["--calibration-limit", "4", "--batch", "2,1", "--reps", reps]);
    command
}

fn small_suite(out: &Path) -> Command {
    suite_of(out, "2")
}

/// The same with a timing that is long enough to be hit.
fn suite_to_kill(out: &Path) -> Command {
    let mut command = quantbench();
    command.args(["run", "--precisions", "fp16,gptq-int4", "--limit", "6"]);
    command.args(["--calibration-limit", "4", "--batch", "2,1", "--reps", "4"]);
    command.args(["--prompt-tokens", "128", "--gen-tokens", "48"]);
    command.args(["--no-noise-floor", "--choices-limit", "4"]);
    command.arg("--out").arg(out);
    command
}

fn journal(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join(JOURNAL)).unwrap();
    text.lines().map(String::from).collect()
}

/// What identifies each record of a journal: none may be there twice.
fn identities(out: &Path) -> Vec<String> {
    let of = |line: String| {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let record = &line["record"];
        match (&record["run"], &record["work"], &record["turn"]) {
            (_, serde_json::Value::Null, serde_json::Value::Null) => {
                format!("run {}", record["run"]["configuration"])
            }
            (_, work, serde_json::Value::Null) => format!("work {}", work["key"]),
            (_, _, turn) => format!("turn {} {} {}", turn["key"], turn["rep"], turn["warmup"]),
        }
    };
    journal(out).into_iter().map(of).collect()
}

/// Everything in the tables that does not depend on the moment.
fn lasting(out: &Path) -> Vec<String> {
    let tables = Tables::read(out).unwrap();
    assert!(tables.info.complete);
    let mut lines = vec![];
    for row in &tables.results {
        assert_eq!(row.run_id, tables.info.run_id);
        assert!(row.decode_tok_s.is_some() && row.prefill_tok_s.is_some() && row.mbu.is_some());
        assert!(row.quantize_s.is_some() && row.load_s.is_some());
        assert!(row.workspace_bytes.is_some() && row.peak_memory_bytes.is_some());
        let timeless = ResultRow {
            run_id: String::new(),
            prefill_tok_s: None,
            prefill_tok_s_sd: None,
            decode_tok_s: None,
            decode_tok_s_sd: None,
            prefill_tok_s_ci_low: None,
            prefill_tok_s_ci_high: None,
            decode_tok_s_ci_low: None,
            decode_tok_s_ci_high: None,
            ttft_s: None,
            peak_rss_bytes: None,
            // Threads that happen to need their tiles at the same time need more together.
            workspace_bytes: None,
            peak_memory_bytes: None,
            quantize_s: None,
            load_s: None,
            mbu: None,
            mfu: None,
            // Some are about how long things took.
            warnings: String::new(),
            ..row.clone()
        };
        lines.push(format!("{timeless:?}"));
    }
    let id = tables.info.run_id.as_str();
    for table in ["quality.csv", "pairs.csv", "windows.csv", "choices.csv"] {
        lines.push(fs::read_to_string(out.join(table)).unwrap().replace(id, ""));
    }
    for mut sample in tables.samples {
        (sample.run_id, sample.seconds) = (String::new(), 0.0);
        (sample.process, sample.ended_at_s) = (None, None);
        lines.push(format!("{sample:?}"));
    }
    let packed = tables.info.cells.iter().map(|c| c.packed_sha256.clone());
    lines.extend(packed);
    lines
}

/// `QUANTBENCH_KILLS` sets how often (scripts/kill-check.sh does).
#[test]
fn a_run_killed_again_and_again_ends_like_an_undisturbed_one() {
    let wanted: usize = std::env::var("QUANTBENCH_KILLS").map_or(4, |n| n.parse().unwrap());
    let seed: u64 = std::env::var("QUANTBENCH_KILL_SEED").map_or(7, |n| n.parse().unwrap());
    let undisturbed = tempfile::tempdir().unwrap();
    let start = Instant::now();
    ok(&mut suite_to_kill(undisturbed.path()));
    let whole = start.elapsed();
    let expected = lasting(undisturbed.path());
    let records = identities(undisturbed.path()).len();

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let (mut kills, mut suites, mut records_at_kills) = (0, 0, vec![]);
    while kills < wanted {
        let out = tempfile::tempdir().unwrap();
        let first_id = loop {
            if kills >= wanted {
                break None;
            }
            let mut process = suite_to_kill(out.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(whole.mul_f64(rng.random_range(0.0..0.8)));
            if let Some(status) = process.try_wait().unwrap() {
                // It was faster than its killer.
                assert_eq!(status.code(), Some(0));
                break Some(());
            }
            process.kill().unwrap();
            process.wait().unwrap();
            kills += 1;
            let kept = fs::read(out.path().join(JOURNAL)).unwrap_or_default();
            records_at_kills.push(kept.iter().filter(|b| **b == b'\n').count());
        };
        ok(&mut suite_to_kill(out.path()));
        suites += 1;
        assert_eq!(lasting(out.path()), expected);
        let all = identities(out.path());
        let once: BTreeSet<&String> = all.iter().collect();
        assert_eq!(once.len(), all.len(), "something is in the journal twice");
        assert_eq!(all.len(), records, "something is missing or too much");
        if first_id.is_some() {
            continue;
        }
        let hidden = fs::read_dir(out.path()).unwrap().flatten();
        let hidden = hidden.filter(|e| e.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0, "something of a killed run is left");
    }
    println!(
        "{kills} kills in {suites} suites of {records} records ({whole:.1?} undisturbed); records \
         at each kill: {records_at_kills:?}"
    );
}

#[test]
fn a_repeated_run_measures_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    ok(&mut small_suite(out));
    let tables = |name: &str| fs::read(out.join(name)).unwrap();
    let all: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
    let all: Vec<&str> = all.into_iter().filter(|name| *name != "run.json").collect();
    let before: Vec<Vec<u8>> = all.iter().map(|name| tables(name)).collect();
    let (kept, info) = (journal(out), Tables::read(out).unwrap().info);
    assert_eq!(info.reused, Default::default());

    let again = stderr(&ok(&mut small_suite(out)));
    assert!(
        again.contains("taken over")
            && again.contains("2 quantized, 2 measured, 1 roofline, 8 timed"),
        "{again}"
    );
    assert_eq!(journal(out), kept);
    for (name, before) in all.iter().zip(before) {
        assert!(tables(name) == before, "{name} has changed");
    }
    let repeated = Tables::read(out).unwrap().info;
    assert_eq!(repeated.run_id, info.run_id);
    assert_eq!(repeated.started_at, info.started_at);
    assert_eq!(repeated.reused.timed_turns, 8);

    // Other options: another run, with the same pieces and the missing turns of four points.
    ok(&mut suite_of(out, "3"));
    let more = Tables::read(out).unwrap();
    assert_ne!(more.info.run_id, info.run_id);
    assert_eq!(journal(out).len(), kept.len() + 1 + 4);
    assert_eq!(more.info.reused.timed_turns, 8);
    assert_eq!(more.samples.len(), 4 * 3 * (3 + 1));
    // Fewer use the first.
    ok(&mut suite_of(out, "1"));
    assert_eq!(Tables::read(out).unwrap().samples.len(), 4 * 3 * (1 + 1));

    let forced = stderr(&ok(small_suite(out).arg("--force")));
    assert!(!forced.contains("taken over"), "{forced}");
    let fresh = Tables::read(out).unwrap().info;
    assert_eq!(fresh.reused, Default::default());
    assert_ne!(fresh.run_id, info.run_id);
    assert_eq!(journal(out).len(), kept.len());
}

#[test]
fn a_mistake_costs_nothing_that_is_finished() {
    let out = tempfile::tempdir().unwrap();
    let with = |more: &[&str]| run(quick(out.path(), "fp16").args(["--reps", "1"]).args(more));
    assert_eq!(with(&[]).status.code(), Some(0));
    let kept = journal(out.path());
    let page = fs::read(out.path().join("index.html")).unwrap();
    for mistake in [
        &["--force", "--model", "/nosuch"][..],
        &["--datasets", "/nosuch"],
    ] {
        let output = with(mistake);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_eq!(journal(out.path()), kept);
        assert_eq!(fs::read(out.path().join("index.html")).unwrap(), page);
    }
    assert!(stderr(&with(&[])).contains("taken over"));
    assert!(!stderr(&with(&["--force"])).contains("taken over"));
}

#[test]
fn speeds_that_are_compared_were_timed_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let timed = |precisions: &str, more: &[&str]| {
        ok(quick(out, precisions).args(["--reps", "4"]).args(more));
        let samples = Tables::read(out).unwrap().samples;
        let decode = samples
            .into_iter()
            .filter(|s| s.phase == "decode" && !s.warmup);
        decode.collect::<Vec<SampleRow>>()
    };
    let processes = |samples: &[SampleRow], precision: &str| -> BTreeSet<String> {
        let own = samples.iter().filter(|s| s.precision == precision);
        own.map(|s| s.process.clone().unwrap()).collect()
    };
    let alone = timed("fp16", &[]);
    assert_eq!(processes(&alone, "fp16").len(), 1);
    assert_eq!(
        timed("fp16", &[]),
        alone,
        "nothing was asked for that is not there"
    );
    // A precision more: all take turns again, whatever the journal has of the others.
    let both = timed("fp16,int8", &[]);
    assert!(processes(&both, "fp16").is_disjoint(&processes(&alone, "fp16")));
    let ended = |samples: &[SampleRow], precision: &str, rep: u64| {
        let mut own = samples
            .iter()
            .filter(|s| s.precision == precision && s.rep == rep);
        own.next().unwrap().ended_at_s.unwrap()
    };
    for (a, b) in [("fp16", "int8"), ("int8", "fp16")] {
        assert!((1..4).all(|rep| ended(&both, a, rep - 1) < ended(&both, b, rep)));
    }
    // Each further process takes repetitions, and not only a warm-up.
    let spread = timed("fp16,int8", &["--processes", "2"]);
    for precision in ["fp16", "int8"] {
        assert_eq!(processes(&spread, precision).len(), 2);
        assert!(processes(&spread, precision).is_disjoint(&processes(&both, precision)));
    }
    // Where nothing has changed, the first ones count again.
    let more = timed("fp16", &[]);
    assert_eq!(processes(&more, "fp16"), processes(&alone, "fp16"));
}

#[test]
fn a_changed_configuration_is_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_copy();
    let model = model.path();
    let perplexity = |out: &str| {
        let out = dir.path().join(out);
        ok(quick(&out, "int8")
            .args(["--reps", "1", "--model"])
            .arg(model)
            .arg("--cache")
            .arg(dir.path().join("cache")));
        let tables = Tables::read(&out).unwrap();
        (
            tables.results[0].perplexity.unwrap(),
            tables.info.cells[0].weights_from_cache,
        )
    };
    let (before, _) = perplexity("a");
    assert_eq!(perplexity("b"), (before, true));
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rms_norm_eps"] = 0.1.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    // Neither the cache nor the journal has it.
    let (new, from_cache) = perplexity("c");
    assert!(
        (new / before - 1.0).abs() > 0.01 && !from_cache,
        "{before} {new}"
    );
    assert_eq!(perplexity("a"), (new, true));
}

#[test]
fn calibrated_weights_do_not_depend_on_the_caches_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let packed = |kv: &str| {
        let out = dir.path().join(kv);
        ok(quick(&out, "gptq-int4")
            .args(["--calibration-limit", "4", "--reps", "1"])
            .args(["--no-reference", "--kv", kv]));
        let cells = Tables::read(&out).unwrap().info.cells;
        cells
            .into_iter()
            .map(|c| c.packed_sha256)
            .collect::<BTreeSet<_>>()
    };
    let one = packed("fp16,fp32");
    assert_eq!(one.len(), 1);
    assert_eq!(packed("fp32,fp16"), one);
}

#[test]
fn failed_cells_are_tried_again() {
    let out = tempfile::tempdir().unwrap();
    let with = |more: &[&str]| {
        run(quick(out.path(), "fp16,rtn-int4")
            .args(["--reps", "2"])
            .args(more))
    };
    let output = with(&["--memory-limit", "12M"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let first = journal(out.path()).len();
    // The same again: only what failed is tried, and fails again.
    let output = with(&["--memory-limit", "12M"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(journal(out.path()).len(), first);
    assert_eq!(Tables::read(out.path()).unwrap().info.reused.measured, 1);
    // How long a child may take is no part of what is asked for.
    let output = with(&["--timeout", "0.01"]);
    assert_eq!(output.status.code(), Some(3));
    let id = Tables::read(out.path()).unwrap().info.run_id;
    let output = with(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.info.run_id, id);
    assert!(tables.results.iter().all(|r| r.status == Status::Ok));
}

#[test]
fn a_damaged_journal_costs_the_damaged_pieces_only() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    ok(&mut small_suite(out));
    let expected = lasting(out);
    let whole = fs::read(out.join(JOURNAL)).unwrap();
    let lines = journal(out).len();

    // The last line is torn and one in the middle has a wrong byte.
    let mut bytes = whole[..whole.len() - 20].to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(out.join(JOURNAL), &bytes).unwrap();
    let log = stderr(&ok(&mut small_suite(out)));
    assert!(
        log.contains("warning") && log.contains("damaged or cut off"),
        "{log}"
    );
    assert_eq!(lasting(out), expected);
    // The damaged line is still there, what it held has been added.
    assert_eq!(journal(out).len(), lines + 1);

    // Not a journal at all.
    fs::write(out.join(JOURNAL), [0xff, 0, b'\n', b'{', b'\n']).unwrap();
    let log = stderr(&ok(&mut small_suite(out)));
    assert!(log.contains("line 1, 2 damaged"), "{log}");
    assert_eq!(lasting(out), expected);
}

#[test]
fn two_runs_in_one_folder_are_refused_and_a_dead_one_does_not_block() {
    let out = tempfile::tempdir().unwrap();
    let mut first = small_suite(out.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    // The first line is written under the lock.
    while fs::metadata(out.path().join(JOURNAL)).map_or(0, |m| m.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(600));
        std::thread::sleep(Duration::from_millis(2));
    }
    for more in [None, Some("--force")] {
        let second = run(small_suite(out.path()).args(more));
        let text = stderr(&second);
        assert_eq!(second.status.code(), Some(2), "{text}");
        assert!(text.contains("another run is at work"), "{text}");
        assert!(text.contains("--out"), "{text}");
    }
    assert!(first.try_wait().unwrap().is_none(), "it ended too early");
    first.kill().unwrap();
    first.wait().unwrap();
    ok(&mut small_suite(out.path()));
}

/// A run whose weights are cached in `cache`, into a new folder: its tables and its log.
fn cached(cache: &Path, more: &[&str]) -> (Tables, String) {
    let out = tempfile::tempdir().unwrap();
    let mut command = quick(out.path(), "fp16,gptq-int4");
    let output = ok(command
        .arg("--cache")
        .arg(cache)
        .args(["--reps", "1"])
        .args(more));
    (Tables::read(out.path()).unwrap(), stderr(&output))
}

#[test]
fn quantized_weights_are_cached_checked_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let (first, _) = cached(&cache, &["--calibration-limit", "4"]);
    let from_cache =
        |t: &Tables| -> Vec<bool> { t.info.cells.iter().map(|c| c.weights_from_cache).collect() };
    assert_eq!(from_cache(&first), [false, false]);

    // Another folder and other threads: nothing is quantized, and the time is that of making.
    let (second, log) = cached(&cache, &["--calibration-limit", "4", "--threads", "1"]);
    assert_eq!(from_cache(&second), [true, true]);
    assert!(log.contains("from the cache"), "{log}");
    for (a, b) in first.results.iter().zip(&second.results) {
        assert_eq!(a.quantize_s, b.quantize_s);
        assert_eq!(a.perplexity, b.perplexity);
    }
    // The journal does not forget where they came from.
    let out = dir.path().join("twice");
    for _ in 0..2 {
        let mut command = quick(&out, "fp16,gptq-int4");
        command.args(["--calibration-limit", "4", "--reps", "1", "--cache"]);
        ok(command.arg(&cache));
        assert_eq!(from_cache(&Tables::read(&out).unwrap()), [true, true]);
    }
    // Other calibration is other weights for the method that calibrates.
    let (other, _) = cached(&cache, &["--calibration-limit", "3"]);
    assert_eq!(from_cache(&other), [true, false]);

    // A damaged file is made again.
    let files = || -> Vec<_> {
        let files = fs::read_dir(cache.join("packed")).unwrap().flatten();
        files
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect()
    };
    assert_eq!(files().len(), 3);
    for file in files() {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let (third, log) = cached(&cache, &["--calibration-limit", "4"]);
    assert!(log.contains("were damaged"), "{log}");
    assert_eq!(from_cache(&third), [false, false]);
    for (a, b) in first.info.cells.iter().zip(&third.info.cells) {
        assert_eq!(a.packed_sha256, b.packed_sha256);
    }

    // Too small for anything, then without.
    let (_, log) = cached(
        &dir.path().join("small"),
        &["--calibration-limit", "1", "--cache-limit", "1K"],
    );
    assert!(
        log.contains("is not cached") && log.contains("--cache-limit"),
        "{log}"
    );
    assert_eq!(
        fs::read_dir(dir.path().join("small/packed"))
            .unwrap()
            .count(),
        0
    );
    let out = dir.path().join("out");
    ok(quick(&out, "fp16").args(["--reps", "1", "--no-cache"]));
}

#[test]
fn a_run_needs_no_home_and_no_cache() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = quick(&dir.path().join("a"), "fp16");
    for name in ["HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "QUANTBENCH_CACHE"] {
        command.env_remove(name);
    }
    let log = stderr(&ok(&mut command));
    assert_eq!(log.matches("are not cached").count(), 1, "{log}");
    let mut command = quick(&dir.path().join("b"), "fp16");
    command.args(["--cache", "/proc/nosuch"]);
    let log = stderr(&ok(&mut command));
    assert_eq!(
        log.matches("are not cached: /proc/nosuch").count(),
        1,
        "{log}"
    );
}

#[test]
fn an_unfinished_run_shows_in_a_dry_run() {
    let out = tempfile::tempdir().unwrap();
    let shown_by = |more: &[&str]| {
        let reps: &[&str] = match more.contains(&"--reps") {
            true => &[],
            false => &["--reps", "2"],
        };
        let mut command = quick(out.path(), "fp16,int8");
        crate::common::stdout(&ok(command.args(reps).args(more)))
    };
    assert!(shown_by(&["--dry-run"]).contains("2 cells, 0 of them done"));
    assert!(!out.path().join(JOURNAL).exists());
    shown_by(&["--reps", "1"]);
    let shown = shown_by(&["--dry-run"]);
    assert!(
        shown.contains("quantized, measured, 1 of 2 repetitions"),
        "{shown}"
    );
    shown_by(&[]);
    let shown = shown_by(&["--dry-run"]);
    assert!(shown.contains("2 cells, 2 of them done"), "{shown}");
    let shown = shown_by(&["--dry-run", "--force"]);
    assert!(shown.contains("2 cells, 0 of them done"), "{shown}");
    let mut bare = quantbench();
    let shown = ok(bare
        .args(["--dry-run", "--out"])
        .arg(out.path().join("none")));
    assert!(crate::common::stdout(&shown).contains("6 cells"));
    assert!(!out.path().join("none").exists());
}
