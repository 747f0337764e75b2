//! The history through the real binary: appending, damage of every kind, the trend.

use crate::common::{quantbench, stderr, stdout};
use quantbench::history::trend;
use quantbench::record::Tables;
use quantbench::record::rows::{ResultRow, Status};
use std::fs;
use std::path::{Path, PathBuf};

/// A run of two precisions on a night.
fn night(dir: &Path, number: usize, decode_tok_s: f64, perplexity: f64) -> PathBuf {
    let mut t = Tables::default();
    t.info.run_id = format!("night-{number:02}");
    t.info.started_at = format!("2026-11-{:02}T02:00:00Z", number + 1);
    t.info.git_commit = format!("c{number:03}");
    t.info.metrics_version = 1;
    for (precision, factor) in [("fp16", 1.0), ("int8, a \"quoted\" one", 1.3)] {
        t.results.push(ResultRow {
            device: "cpu".into(),
            model: "tiny".into(),
            precision: precision.into(),
            kv_cache: "fp16".into(),
            status: Status::Ok,
            protocol: "gptq-v1@512".into(),
            perplexity: Some(perplexity),
            batch: Some(1),
            prompt_tokens: Some(256),
            generated_tokens: Some(64),
            decode_tok_s: Some(factor * decode_tok_s),
            peak_memory_bytes: Some(1_000_000),
            ..ResultRow::default()
        });
    }
    let run = dir.join(format!("runs/{number:02}"));
    t.write(&run).unwrap();
    run
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn history(file: &Path, runs: &[&Path]) -> Said {
    let output = quantbench()
        .arg("history")
        .arg("--history")
        .arg(file)
        .args(runs)
        .output()
        .unwrap();
    let (out, err) = (stdout(&output), stderr(&output));
    assert!(!err.contains("panicked"), "{err}");
    Said {
        code: output.status.code(),
        out,
        err,
    }
}

#[test]
fn nights_are_appended_once_and_steps_are_marked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("reports/history.csv");
    // Speed falls by 12 % at night 12, perplexity rises by 1 % at night 20.
    for n in 0..24 {
        let noise = 1.0 + 0.01 * ((n * 7 % 5) as f64 - 2.0);
        let speed = if n < 12 { 100.0 } else { 88.0 } * noise;
        night(dir.path(), n, speed, if n < 20 { 25.0 } else { 25.25 });
    }
    let first = night(dir.path(), 0, 100.0, 25.0);
    assert_eq!(history(&file, &[&first]).code, Some(0));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(text.starts_with("started_at,run_id,git_commit,quantbench_version,"));
    // All at once, the first again.
    let all = dir.path().join("runs");
    let said = history(&file, &[&all]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(
        said.out.contains("46 rows added, 2 were there"),
        "{}",
        said.out
    );
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.starts_with(&text), "a line that was there changed");
    assert_eq!(after.lines().count(), 49);
    for name in ["trend_perplexity", "trend_decode", "trend_memory"] {
        for extension in ["svg", "png"] {
            let picture = dir.path().join(format!("reports/{name}.{extension}"));
            assert!(fs::metadata(picture).unwrap().len() > 1000, "{name}");
        }
    }
    let page = fs::read_to_string(dir.path().join("reports/trend.md")).unwrap();
    for mark in [
        "Decode speed (tokens/s) of fp16 changed by −12.0 % at run 13 (night-12, commit c012)",
        "Perplexity of fp16 changed by +1.0 % at run 21 (night-20, commit c020)",
    ] {
        assert!(
            page.contains(mark) && said.out.contains(mark),
            "{mark}: {page}"
        );
    }
    assert_eq!(page.matches("changed by").count(), 4, "{page}");
    let svg = fs::read_to_string(dir.path().join("reports/trend_decode.svg")).unwrap();
    roxmltree::Document::parse(&svg).unwrap();
    assert!(svg.contains("−12.0 %"));
}

#[test]
fn damage_costs_its_own_lines_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.csv");
    let runs: Vec<PathBuf> = (0..3).map(|n| night(dir.path(), n, 100.0, 25.0)).collect();
    history(&file, &[&runs[0], &runs[1]]);
    let good = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let damaged: &[&[u8]] = &[
        b"<<<<<<< conflict",
        b"\xff\xfe not text",
        b"\"a quote that never ends,1,2,3",
        b"",
        b"2026-11-09T02:00:00Z,night,c,0.1.0,one,,,cpu,tiny,fp16,fp16,1,256,64,ok,p,25,,,100,1",
    ];
    let mut bytes = format!("{}\n{}\n", lines[0], lines[1]).into_bytes();
    for line in damaged {
        bytes.extend(*line);
        bytes.push(b'\n');
    }
    bytes.extend(format!("{}\n{}\n", lines[2], lines[3]).as_bytes());
    // Cut off in the middle of its last number, which would still read as one.
    let partial = &lines[4][..lines[4].len() - 2];
    bytes.extend(partial.as_bytes());
    fs::write(&file, &bytes).unwrap();

    // Looking changes nothing, and does not say that it did.
    let said = history(&file, &[]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert!(!(said.out + &said.err).contains("rejected"));
    let said = history(&file, &[]);
    assert_eq!(said.err.matches("is left out").count(), 6, "{}", said.err);
    for word in [
        "line 3",
        "not UTF-8",
        "21",
        "ends in the middle",
        "is empty",
    ] {
        assert!(
            said.err.contains(word),
            "`{word}` is missing in {}",
            said.err
        );
    }
    // Appending moves them aside and says so.
    let said = history(&file, &[&runs[2]]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let moved = format!(
        "2 rows added, 6 damaged lines moved to {}.rejected",
        file.display()
    );
    assert!(said.out.contains(&moved), "{}", said.out);
    let kept = fs::read_to_string(&file).unwrap();
    assert_eq!(kept.lines().count(), 1 + 3 + 2, "{kept}");
    for line in &lines[..4] {
        assert!(kept.contains(line));
    }
    let rejected = fs::read(dir.path().join("history.csv.rejected")).unwrap();
    for line in damaged.iter().chain(&[partial.as_bytes()]) {
        assert!(rejected.windows(line.len().max(1)).any(|w| w == *line) || line.is_empty());
    }
    // The run that lost a row gets this one again.
    let said = history(&file, &[&runs[1], &runs[2]]);
    assert_eq!(said.err, "");
    assert!(
        said.out.contains("1 row added, 3 were there\n"),
        "{}",
        said.out
    );
    let mended = fs::read_to_string(&file).unwrap();
    assert_eq!(mended, kept + lines[4] + "\n");

    // Not a history at all: it is kept, and a new one begins.
    let foreign = dir.path().join("other.csv");
    fs::write(&foreign, "name,value\nx,1\n").unwrap();
    let said = history(&foreign, &[&runs[0]]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("no header of a history"), "{}", said.err);
    assert!(
        said.out.contains("2 damaged lines moved to"),
        "{}",
        said.out
    );
    assert_eq!(fs::read_to_string(&foreign).unwrap().lines().count(), 3);
    let aside = fs::read_to_string(dir.path().join("other.csv.rejected")).unwrap();
    assert_eq!(aside, "name,value\nx,1\n");
    // A damaged run is the user's to mend.
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(history(&file, &[empty.path()]).code, Some(2));
}

#[test]
fn columns_of_other_versions_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.csv");
    let runs: Vec<PathBuf> = (0..2).map(|n| night(dir.path(), n, 100.0, 25.0)).collect();
    history(&file, &[&runs[0]]);
    let text = fs::read_to_string(&file).unwrap();
    let later: String = text
        .lines()
        .enumerate()
        .map(|(i, line)| format!("{line},{}\n", if i == 0 { "joules" } else { "7.5" }))
        .collect();
    fs::write(&file, &later).unwrap();
    let said = history(&file, &[&runs[1]]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.starts_with(&later), "{after}");
    assert!(
        after.lines().skip(3).all(|line| line.ends_with(',')),
        "{after}"
    );
    assert_eq!(history(&file, &[]).err, "");
}

#[test]
fn a_cell_that_a_resumed_run_has_measured_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.csv");
    let run = night(dir.path(), 0, 100.0, 25.0);
    let complete = Tables::read(&run).unwrap();
    let mut cut = complete.clone();
    cut.results[1].status = Status::Oom;
    cut.results[1].perplexity = None;
    cut.results[1].decode_tok_s = None;
    cut.write(&run).unwrap();
    // The folder named twice is one run.
    let said = history(&file, &[&run, &run]);
    assert!(
        said.out.contains("2 rows added, 2 were there"),
        "{}",
        said.out
    );
    // Failed again: nothing new.
    let said = history(&file, &[&run]);
    assert!(
        said.out.contains("0 rows added, 2 were there"),
        "{}",
        said.out
    );
    night(dir.path(), 1, 100.0, 25.0);
    history(&file, &[&dir.path().join("runs")]);

    complete.write(&run).unwrap();
    let before = fs::read_to_string(&file).unwrap();
    let said = history(&file, &[&run]);
    assert!(
        said.out.contains("1 row added, 1 was there"),
        "{}",
        said.out
    );
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.starts_with(&before), "{after}");
    // It stands at the end of the file, and for the first run in the trend.
    let rows = quantbench::history::read(&file).unwrap().rows;
    assert_eq!(rows.len(), 5);
    for series in trend::TRENDS.iter().flat_map(|trend| trend.series(&rows)) {
        assert_eq!(series.points.len(), 2, "{}", series.label);
    }
    let out = dir.path().join("trend");
    trend::render(&rows, &out).unwrap();
    let page = fs::read_to_string(out.join("trend.md")).unwrap();
    assert!(page.contains("\n2 runs.\n"), "{page}");
    let said = history(&file, &[&run]);
    assert!(
        said.out.contains("0 rows added, 2 were there"),
        "{}",
        said.out
    );
    let said = history(&file, &[&night(dir.path(), 0, 1.0, 1.0)]);
    assert!(
        said.out.contains("0 rows added"),
        "measured is measured: {}",
        said.out
    );
}

#[test]
fn columns_in_another_order_keep_their_values() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.csv");
    let runs: Vec<PathBuf> = (0..2).map(|n| night(dir.path(), n, 100.0, 25.0)).collect();
    history(&file, &[&runs[0]]);
    let rows = quantbench::history::read(&file).unwrap().rows;
    // As a spreadsheet may save it: a mark at the start, other line ends, another order.
    let turned: Vec<Vec<String>> = csv::Reader::from_path(&file)
        .map(|mut reader| {
            let mut all = vec![reader.headers().unwrap().clone()];
            all.extend(reader.records().map(Result::unwrap));
            let cells = |line: &csv::StringRecord| line.iter().rev().map(String::from).collect();
            all.iter().map(cells).collect()
        })
        .unwrap();
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer("\u{feff}".as_bytes().to_vec());
    for line in turned {
        writer.write_record(line).unwrap();
    }
    let turned = writer.into_inner().unwrap();
    fs::write(&file, &turned).unwrap();
    let read = quantbench::history::read(&file).unwrap();
    assert_eq!((read.rows, read.rejected.len()), (rows, 0));
    let said = history(&file, &[&runs[0], &runs[1]]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out.contains("2 rows added, 2 were there\n"),
        "{}",
        said.out
    );
    let after = fs::read_to_string(&file).unwrap();
    let before = String::from_utf8(turned).unwrap().replace("\r\n", "\n");
    assert!(after.starts_with(&before), "{after}");
    let rows = quantbench::history::read(&file).unwrap().rows;
    let speeds: Vec<Option<f64>> = rows.iter().map(|r| r.decode_tok_s).collect();
    assert_eq!(speeds, [100.0, 130.0, 100.0, 130.0].map(Some));
    assert_eq!(rows[3].precision, "int8, a \"quoted\" one");

    // A column less: nothing can be made of it, and nothing is lost.
    let without = after.replace("decode_tok_s", "tok_s");
    fs::write(&file, &without).unwrap();
    let said = history(&file, &[&runs[0]]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("no header of a history"), "{}", said.err);
    assert!(
        said.out.contains("2 rows added, 5 damaged lines moved"),
        "{}",
        said.out
    );
    let aside = fs::read_to_string(dir.path().join("history.csv.rejected")).unwrap();
    assert_eq!(aside, without);
    // What came before the header, as of a merge, costs only itself.
    let merged = "<<<<<<< ours\n".to_string() + &fs::read_to_string(&file).unwrap();
    fs::write(&file, merged).unwrap();
    let said = history(&file, &[&runs[0]]);
    assert!(said.err.contains("line 1, is left out"), "{}", said.err);
    assert!(
        said.out
            .contains("0 rows added, 2 were there, 1 damaged line moved")
    );
}

#[test]
fn the_trend_goes_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.csv");
    let speed = |n: usize| if n < 6 { 100.0 } else { 80.0 };
    let runs: Vec<PathBuf> = (0..12)
        .map(|n| night(dir.path(), n, speed(n), 25.0))
        .collect();
    history(&file, &[&runs[0]]);
    let page = || fs::read_to_string(dir.path().join("trend.md")).unwrap();
    assert!(page().contains("\n1 run.\n"), "{}", page());
    // Appended in any order; in that of the file no level would last.
    for n in [7, 2, 9, 4, 11, 6, 1, 8, 3, 10, 5] {
        history(&file, &[&runs[n]]);
    }
    // A run that says no time stays where it is: behind night 5, with its level.
    let text = fs::read_to_string(&file).unwrap();
    let (head, last) = text.split_at(text.find("2026-11-06T").unwrap());
    let untimed = last
        .replace("2026-11-06T02:00:00Z", "")
        .replace("night-05", "untimed");
    fs::write(&file, format!("{head}{last}{untimed}")).unwrap();
    let said = history(&file, &[]);
    assert_eq!(said.err, "");
    let mark = "of fp16 changed by −20.0 % at run 8 (night-06, commit c006)";
    assert!(page().contains(mark), "{}", page());
    assert!(page().contains("\n13 runs.\n"));
    assert!(page().contains("2026-11-01T02:00:00Z to 2026-11-12T02:00:00Z"));
}

/// `scripts/nightly.sh` with a program in place of quantbench that writes its commands to `log`,
/// makes runs that hold nothing, and does `of_a_run` for each.
#[cfg(unix)]
fn nightly(dir: &Path, of_a_run: &str) -> std::process::Command {
    use std::os::unix::fs::PermissionsExt;
    let program = dir.join("quantbench");
    let text = format!(
        "#!/usr/bin/env bash\necho \"$*\" >>{dir}/log\ncase \"$*\" in\n\
         *--dry-run*) cat {dir}/plan ;;\n\
         run*) while [ \"$1\" != --out ]; do shift; done\n\
         mkdir -p \"$2\"; touch \"$2/run.json\"; {of_a_run} ;;\nesac\n",
        dir = dir.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let plan = "model  precision\ntiny   fp16\ntiny   int8\n2 cells, 0 of them done\n";
    fs::write(dir.join("plan"), plan).unwrap();
    let mut script = std::process::Command::new(crate::common::root().join("scripts/nightly.sh"));
    script
        .env("QUANTBENCH", &program)
        .env("REPORTS", dir.join("reports"))
        .env("RUNS", "2");
    for name in ["AGAINST", "BASELINE", "THRESHOLDS", "GITHUB_STEP_SUMMARY"] {
        script.env_remove(name);
    }
    script
}

#[cfg(unix)]
#[test]
fn a_night_with_a_failed_run_is_no_baseline() {
    for (of_a_run, code) in [
        ("[[ $2 != */1 ]] || exit 3", 3),
        ("[[ $2 != */2 ]] || exit 3", 3),
        ("true", 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = nightly(dir.path(), of_a_run).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.contains("history --history"), "{log}");
        assert_eq!(log.contains("--save-baseline"), code == 0, "{log}");
        // The same on a night that has a baseline.
        fs::create_dir_all(dir.path().join("reports/baselines/last-good")).unwrap();
        fs::remove_file(dir.path().join("log")).unwrap();
        let output = nightly(dir.path(), of_a_run).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.contains("--baseline last-good"), "{log}");
        assert_eq!(log.contains("--save-baseline"), code == 0, "{log}");
    }
}

#[cfg(unix)]
#[test]
fn a_stopped_night_starts_and_writes_nothing_more() {
    for against in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        // As the program: it ends with 3 once it was asked to stop.
        let of_a_run =
            "trap 'exit 3' INT; touch \"$2/began\"; for i in {1..600}; do sleep 0.1; done";
        let mut script = nightly(dir.path(), of_a_run);
        if against {
            script.env("AGAINST", dir.path().join("quantbench"));
        }
        let child = script.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let nights = dir.path().join("reports/nightly");
        let began = || {
            let folders = fs::read_dir(&nights).into_iter().flatten().flatten();
            let runs = folders.filter(|night| night.path().join("1/began").exists());
            runs.count() == 1 + usize::from(against)
        };
        for _ in 0..300 {
            if began() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert!(began());
        let kill = |id: u32| {
            std::process::Command::new("kill")
                .arg(id.to_string())
                .status()
        };
        assert!(kill(child.id()).unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        // The plan, and the first run of each program.
        assert_eq!(log.lines().count(), 2 + usize::from(against), "{log}");
        assert!(!log.contains("history"), "{log}");
    }
}

#[cfg(unix)]
#[test]
fn a_night_refuses_mistakes_before_it_measures() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for (name, value) in [
        ("RUNS", "0"),
        ("RUNS", "-1"),
        ("RUNS", "many"),
        ("AGAINST", "/nosuch/quantbench"),
        ("QUANTBENCH", "/"),
    ] {
        let output = nightly(dir.path(), "true")
            .env(name, value)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        assert!(stderr(&output).contains(name), "{}", stderr(&output));
        assert!(!log.exists());
    }
    // The real program reads the thresholds.
    let mut script = nightly(dir.path(), "true");
    script.env("QUANTBENCH", env!("CARGO_BIN_EXE_quantbench"));
    let output = script.env("THRESHOLDS", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("[compare]"), "{}", stderr(&output));
    // Several models, by the plan, and by a run that has folders only.
    let mut script = nightly(dir.path(), "rm \"$2/run.json\"");
    let output = script.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 2);
    fs::remove_file(&log).unwrap();
    let plan = "model  precision\ntiny   fp16\nlarge  fp16\n2 cells, 0 of them done\n";
    let mut script = nightly(dir.path(), "true");
    fs::write(dir.path().join("plan"), plan).unwrap();
    let output = script.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("several models"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 1);
}
