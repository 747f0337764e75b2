//! The history through the real binary: appending, damage of every kind, the trend.

mod common;

use common::{quantbench, stderr, stdout};
use quantbench::report::Tables;
use quantbench::report::record::{ResultRow, Status};
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

    // Looking changes nothing.
    let said = history(&file, &[]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(fs::read(&file).unwrap(), bytes);
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
    // Appending moves them aside, and the run that lost a row still counts as there.
    let said = history(&file, &[&runs[2]]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let kept = fs::read_to_string(&file).unwrap();
    assert_eq!(kept.lines().count(), 1 + 3 + 2, "{kept}");
    for line in &lines[..4] {
        assert!(kept.contains(line));
    }
    let rejected = fs::read(dir.path().join("history.csv.rejected")).unwrap();
    for line in damaged.iter().chain(&[partial.as_bytes()]) {
        assert!(rejected.windows(line.len().max(1)).any(|w| w == *line) || line.is_empty());
    }
    assert_eq!(history(&file, &[&runs[2]]).err, "");

    // Not a history at all: it is kept, and a new one begins.
    let foreign = dir.path().join("other.csv");
    fs::write(&foreign, "name,value\nx,1\n").unwrap();
    let said = history(&foreign, &[&runs[0]]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("its header"), "{}", said.err);
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
