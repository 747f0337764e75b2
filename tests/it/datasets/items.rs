//! Multiple-choice items: their format, and their rows through the real binary.

use crate::common::{model_copy, packed, quick_run_with_choices, root, stderr};
use quantbench::data::choices::{Question, questions};
use quantbench::data::{self, Kind};
use quantbench::measure::choices::{Continuation, Continue, Item, log_likelihoods};
use quantbench::measure::quality::{CachedDecoder, LanguageModel, nll_nats};
use quantbench::model::kv_cache::KvPrecision;
use quantbench::record::Tables;
use quantbench::record::rows::ChoiceRow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

fn read(path: &str) -> quantbench::Result<Vec<Question>> {
    let set = data::select(&[path.to_string()], Kind::Choices)?.remove(0);
    questions(&set)
}

#[test]
fn the_embedded_items_are_whole() {
    let questions = read("choices").unwrap();
    let mut tasks = BTreeMap::new();
    let mut answers = [0; 4];
    for question in &questions {
        *tasks.entry(question.task.as_str()).or_insert(0) += 1;
        answers[question.answer] += 1;
        assert_eq!(question.choices.len(), 4);
        assert!(
            question
                .choices
                .iter()
                .all(|choice| choice.starts_with(' '))
        );
    }
    let wanted = ["arithmetic", "commonsense", "grammar", "science"].map(|task| (task, 30));
    assert_eq!(tasks, BTreeMap::from(wanted));
    assert!(answers.iter().all(|n| *n >= 25), "{answers:?}");
    // The same bytes as where they were written.
    let source = root().join("../shared/texts/choices.jsonl");
    match fs::read_to_string(&source) {
        Ok(text) => {
            let set = data::select(&["choices".into()], Kind::Choices).unwrap();
            assert_eq!(set[0].text, text);
        }
        Err(_) => println!(
            "SKIPPED: the_embedded_items_are_whole: {} is missing",
            source.display()
        ),
    }
}

#[test]
fn hostile_items_are_named_by_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let good = r#"{"task": "t", "context": "One and one is", "choices": [" two.", " nine."], "answer": 0}"#;
    let cases = [
        ("", "task", "{", "JSON object"),
        (
            r#""context": "One and one is""#,
            r#""context": 3"#,
            "",
            "field `context`: expected a string, found 3",
        ),
        (
            r#""context": "One and one is", "#,
            "",
            "",
            "field `context`: expected a string, found none",
        ),
        (
            r#""One and one is""#,
            r#""""#,
            "",
            "field `context`: expected some text",
        ),
        (
            r#"[" two.", " nine."]"#,
            r#"" two.""#,
            "",
            "field `choices`: expected a list of strings, found a string",
        ),
        (
            r#"[" two.", " nine."]"#,
            r#"[" two."]"#,
            "",
            "field `choices`: expected at least 2, found 1",
        ),
        (
            r#"" nine.""#,
            "9",
            "",
            "field `choices[1]`: expected a string, found 9",
        ),
        (
            r#"" nine.""#,
            r#"" two.""#,
            "",
            "field `choices[1]`: expected a text of its own",
        ),
        (r#"" nine.""#, r#""""#, "", "field `choices[1]`"),
        (
            r#""answer": 0"#,
            r#""answer": 2"#,
            "",
            "field `answer`: expected an index below 2, found 2",
        ),
        (
            r#""answer": 0"#,
            r#""answer": -1"#,
            "",
            "field `answer`: expected an index below 2, found -1",
        ),
        (
            r#""answer": 0"#,
            r#""answer": "A""#,
            "",
            "field `answer`: expected an index below 2, found a string",
        ),
        (
            r#", "answer": 0"#,
            "",
            "",
            "field `answer`: expected an index below 2, found none",
        ),
        (
            r#""task": "t""#,
            r#""task": []"#,
            "",
            "field `task`: expected a string, found a list",
        ),
        (r#""task""#, r#""tusk""#, "", "field `tusk`"),
    ];
    for (from, to, whole, message) in cases {
        let line = match whole {
            "" => good.replacen(from, to, 1),
            whole => whole.into(),
        };
        assert_ne!(line, good);
        fs::write(&path, format!("{good}\n\n{line}\n")).unwrap();
        let text = read(path.to_str().unwrap()).unwrap_err().to_string();
        for word in ["x.jsonl", "line 3", message] {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
    fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
    let questions = read(path.to_str().unwrap()).unwrap();
    assert_eq!((questions.len(), questions[1].line), (2, 3));
}

fn run(out: &Path, arguments: &[&str]) -> Output {
    quick_run_with_choices(out)
        .args(arguments)
        .output()
        .unwrap()
}

fn rows(out: &Path) -> Vec<ChoiceRow> {
    Tables::read(out).unwrap().choices
}

#[test]
fn every_precision_has_a_row_with_its_interval() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let arguments = ["--precisions", "fp16,gptq-int3", "--choices-limit", "40"];
    let output = run(out, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let rows = rows(out);
    let ids: Vec<&str> = rows.iter().map(|r| r.precision.as_str()).collect();
    assert_eq!(ids, ["fp16", "gptq-int3"]);
    for row in &rows {
        assert_eq!((row.dataset.as_str(), row.items), ("choices", 40));
        assert_eq!(row.nonfinite_items, 0);
        assert!((row.accuracy - row.correct as f64 / 40.0).abs() < 1e-15);
        assert!((row.accuracy_normalized - row.correct_normalized as f64 / 40.0).abs() < 1e-15);
        assert!((row.accuracy_per_token - row.correct_per_token as f64 / 40.0).abs() < 1e-15);
        for (low, value, high) in [
            (row.accuracy_ci_low, row.accuracy, row.accuracy_ci_high),
            (
                row.accuracy_normalized_ci_low,
                row.accuracy_normalized,
                row.accuracy_normalized_ci_high,
            ),
        ] {
            // 40 items leave some thirty percentage points.
            assert!(low <= value && value <= high && (0.2..0.35).contains(&(high - low)));
        }
    }
    let [reference, other] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!(reference.changed_items, None);
    let (lost, gained) = (other.lost_items.unwrap(), other.gained_items.unwrap());
    assert!(lost + gained <= other.changed_items.unwrap());
    assert_eq!(other.correct + lost, reference.correct + gained);
    // Three bits change some choices of so small a model.
    assert!(other.changed_items.unwrap() > 0);
    for page in ["report.md", "index.html"] {
        let page = fs::read_to_string(out.join(page)).unwrap();
        assert!(page.contains("Multiple choice") && page.contains("choices.csv"));
    }
    let header = fs::read_to_string(out.join("choices.csv")).unwrap();
    assert!(header.starts_with(
        "run_id,device,model,precision,kv_cache,dataset,items,correct,accuracy,accuracy_ci_low,\
         accuracy_ci_high,correct_normalized,accuracy_normalized,accuracy_normalized_ci_low,\
         accuracy_normalized_ci_high"
    ));
    let first = fs::read_to_string(out.join("choices.csv")).unwrap();
    // Likelihoods do not depend on the threads that summed them.
    let output = run(out, &[&arguments[..], &["--threads", "1"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let again = fs::read_to_string(out.join("choices.csv")).unwrap();
    let without_id = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|l| l.split_once(',').unwrap().1);
        lines.map(str::to_string).collect()
    };
    assert_eq!(without_id(&first), without_id(&again));
}

#[test]
fn own_items_are_scored_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let items = dir.path().join("mine.jsonl");
    let line = r#"{"context": "The dog ran after the", "choices": [" ball.", " zqxv wqk jjx."], "answer": 0}"#;
    fs::write(&items, format!("{line}\n{}\n", line.replace("dog", "boy"))).unwrap();
    let items = items.to_str().unwrap();
    let output = run(&out, &["--precisions", "fp16", "--choices", items]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let row = rows(&out).remove(0);
    assert_eq!((row.dataset.as_str(), row.items), ("mine", 2));
    assert_eq!((row.correct, row.correct_per_token), (2, 2));

    let output = run(&out, &["--precisions", "fp16", "--choices", "none"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(rows(&out).is_empty());
    let page = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(!page.contains("## Multiple choice"));

    let refused = |arguments: &[&str], words: &[&str]| {
        let output = run(&out, arguments);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        for word in words {
            assert!(stderr(&output).contains(word), "{}", stderr(&output));
        }
    };
    refused(&["--choices", "nosuch"], &["choices set", "choices"]);
    refused(&["--choices-limit", "0"], &["--choices-limit 0"]);
    fs::write(items, line.replace("The dog", &"The dog ".repeat(600))).unwrap();
    refused(
        &["--choices", items],
        &["mine.jsonl: line 1", "1024 tokens"],
    );
    fs::write(items, line.replace("0}", "7}")).unwrap();
    refused(&["--choices", items], &["mine.jsonl: line 1", "`answer`"]);
}

#[test]
fn a_tokenizer_that_ends_texts_changes_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_copy();
    let model = model.path();
    let answers = |out: &str| {
        let out = dir.path().join(out);
        let arguments = ["--precisions", "fp16", "--choices-limit", "8", "--model"];
        let output = run(&out, &[&arguments[..], &[model.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let journal = fs::read_to_string(out.join("journal.jsonl")).unwrap();
        let said = journal
            .match_indices("log_likelihoods_nats")
            .map(|(at, _)| {
                let rest = &journal[at..];
                rest[..rest.find(']').unwrap()].to_string()
            });
        said.collect::<Vec<_>>()
    };
    let before = answers("before");
    assert_eq!(before.len(), 8);
    let path = model.join("tokenizer.json");
    let tokenizer = fs::read_to_string(&path).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let template = &mut tokenizer["post_processor"]["processors"][1];
    let end = "<|end_of_text|>";
    let after = serde_json::json!({"SpecialToken": {"id": end, "type_id": 0}});
    template["single"].as_array_mut().unwrap().push(after);
    template["special_tokens"][end] = serde_json::json!({"id": end, "ids": [1], "tokens": [end]});
    fs::write(&path, tokenizer.to_string()).unwrap();
    assert_eq!(answers("after"), before);
}

#[test]
fn a_synthetic_model_answers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = crate::common::quantbench()
        .args([
            "run",
            "--model",
            "synthetic:smollm2-135m",
            "--choices",
            "choices",
        ])
        .arg("--out")
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--choices"), "{}", stderr(&output));
}

/// A decoder that reads every sequence from its beginning.
struct Whole<'a>(CachedDecoder<'a>);

impl LanguageModel for Whole<'_> {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> quantbench::Result<()>,
    ) -> quantbench::Result<()> {
        self.0.logits(ids, sink)
    }
}

impl Continue for Whole<'_> {}

#[test]
fn a_shared_beginning_is_run_once_and_changes_nothing() {
    let loaded = packed(None, "fp16", 64);
    let kv = KvPrecision::parse("fp32").unwrap();
    let model = || CachedDecoder {
        decoder: &loaded.decoder,
        cache: loaded.decoder.cache(1, 64, kv).unwrap(),
    };
    let continuation = |rest: &[u32]| Continuation {
        ids: [&[100, 200, 300, 400, 500][..], rest].concat(),
        start: 5,
        bytes: 1,
    };
    let rests: [&[u32]; 4] = [&[7, 8, 9], &[7, 10], &[11], &[12, 13, 14, 15]];
    let item = Item {
        continuations: rests.map(continuation).into(),
        answer: 0,
    };
    let shared = log_likelihoods(&mut model(), &item).unwrap();
    let whole = log_likelihoods(&mut Whole(model()), &item).unwrap();
    for (shared, whole) in shared.iter().zip(&whole) {
        let (shared, whole) = (shared.unwrap(), whole.unwrap());
        assert!(
            whole < -1.0 && (shared / whole - 1.0).abs() < 1e-5,
            "{shared} {whole}"
        );
    }
    // All begin alike beyond the context: the first token of the choice is scored all the same.
    let alike = Item {
        continuations: [&[7, 8][..], &[7, 9]].map(continuation).into(),
        answer: 0,
    };
    let first = log_likelihoods(&mut model(), &alike).unwrap()[0].unwrap();
    let by_hand = {
        let mut sum = 0.0;
        let ids = [100, 200, 300, 400, 500, 7, 8];
        let vocab = loaded.decoder.config.vocab_size;
        let sink = &mut |row: usize, values: &[f32]| {
            for (r, logits) in values.chunks_exact(vocab).enumerate() {
                if row + r >= 4 && row + r < 6 {
                    sum -= nll_nats(logits, ids[row + r + 1]);
                }
            }
            Ok(())
        };
        model().logits(&ids, sink).unwrap();
        sum
    };
    assert!((first / by_hand - 1.0).abs() < 1e-5, "{first} {by_hand}");
}
