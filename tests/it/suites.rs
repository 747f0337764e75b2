//! Suite files, dry runs and precisions made elsewhere, through the real binary.

use crate::common::{quantbench, quick_run, root, stderr, stdout};
use quantbench::record::Tables;
use quantbench::record::rows::{QualityRow, ResultRow, Status};
use quantbench::record::tables::read_csv;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(output.status.code(), Some(code), "{text}");
    output
}

/// A run of a suite file; results go into `out`.
fn suite(file: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = quantbench();
    command.args(["run", "--suite"]).arg(file);
    command.args(["--no-noise-floor", "--choices", "none", "--no-roofline"]);
    command.arg("--out").arg(out).args(more);
    command
}

const EXAMPLE: &str = "datasets/suites/embedded.toml";

#[test]
fn a_dry_run_shows_the_cells_of_the_example() {
    let out = tempfile::tempdir().unwrap();
    let shown = |more: &[&str]| {
        let mut command = suite(&root().join(EXAMPLE), out.path(), more);
        stdout(&run(command.arg("--dry-run"), 0))
    };
    let expected = "\
model                precision  kv    batch  context  in the journal
MODEL  fp16       fp16  1      16       -
MODEL  fp16       fp16  1      64       -
MODEL  int8       fp16  1      16       -
MODEL  int8       fp16  1      64       -
MODEL  int8       fp16  2      16       -
MODEL  int8       fp16  2      64       -
MODEL  int8       fp16  4      16       -
MODEL  int8       fp16  4      64       -
MODEL  gptq-int4  fp16  1      16       -
MODEL  gptq-int4  fp16  1      64       -
MODEL  gptq-int4  fp16  2      16       -
MODEL  gptq-int4  fp16  2      64       -
MODEL  gptq-int4  fp16  4      16       -
MODEL  gptq-int4  fp16  4      64       -
14 cells, 0 of them done
";
    let squeezed = |text: &str| -> Vec<String> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(words).collect()
    };
    let name = {
        let all = shown(&[]);
        let line = all.lines().nth(1).unwrap().to_string();
        line.split_whitespace().next().unwrap().to_string()
    };
    assert_eq!(
        squeezed(&shown(&[])),
        squeezed(&expected.replace("MODEL", &name))
    );
    // What is typed goes before the file, for every precision.
    let typed = shown(&[
        "--batch",
        "2",
        "--prompt-tokens",
        "8",
        "--precisions",
        "fp16,int8",
    ]);
    assert_eq!(
        squeezed(&typed)[1..],
        [
            format!("{name} fp16 fp16 2 8 -"),
            format!("{name} int8 fp16 2 8 -"),
            "2 cells, 0 of them done".into()
        ]
    );
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_suite_measures_its_cells_and_no_others() {
    let out = tempfile::tempdir().unwrap();
    let more = ["--precisions", "fp16,int8", "--context", "16"];
    run(&mut suite(&root().join(EXAMPLE), out.path(), &more), 0);
    let tables = Tables::read(out.path()).unwrap();
    let cells: Vec<(&str, u64)> = tables
        .results
        .iter()
        .map(|r| (r.precision.as_str(), r.batch.unwrap()))
        .collect();
    assert_eq!(cells, [("fp16", 1), ("int8", 1), ("int8", 2), ("int8", 4)]);
    for row in &tables.results {
        assert_eq!(row.status, Status::Ok, "{}", row.error);
        assert!(row.decode_tok_s.is_some() && row.perplexity.is_some());
    }
    assert_eq!(tables.info.options["limit"], 4);
    let shown = stdout(&run(
        suite(&root().join(EXAMPLE), out.path(), &more).arg("--dry-run"),
        0,
    ));
    assert!(shown.contains("4 cells, 4 of them done"), "{shown}");
}

#[test]
fn several_models_have_a_folder_each_and_tables_together() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("two.toml");
    let out = dir.path().join("out");
    let model = root().join("datasets/embedded-model");
    let text = format!(
        "limit = 4\nreps = 1\nprompt-tokens = 16\ngen-tokens = 2\nprecisions = [\"fp16\"]\n\
         [[model]]\nname = \"first\"\n[[model]]\npath = {:?}\nname = \"second\"\n\
         precisions = [\"fp16\", \"int8\"]\n",
        model.display().to_string()
    );
    fs::write(&file, text).unwrap();
    run(&mut suite(&file, &out, &[]), 0);
    let results: Vec<ResultRow> = read_csv(&out.join("results.csv")).unwrap();
    let precisions: Vec<&str> = results.iter().map(|r| r.precision.as_str()).collect();
    assert_eq!(precisions, ["fp16", "fp16", "int8"]);
    assert_eq!(results[0].perplexity, results[1].perplexity);
    let quality: Vec<QualityRow> = read_csv(&out.join("quality.csv")).unwrap();
    assert_eq!(quality.len() % 3, 0);
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    for folder in ["first", "second"] {
        assert!(
            page.contains(&format!("href=\"{folder}/index.html\"")),
            "{page}"
        );
        assert!(out.join(folder).join("index.html").exists());
    }
    // Again: everything is there. Rendered from the files: the same page.
    let again = run(&mut suite(&file, &out, &[]), 0);
    assert_eq!(stderr(&again).matches("taken over").count(), 2);
    fs::remove_file(out.join("index.html")).unwrap();
    run(quantbench().arg("report").arg(&out), 0);
    assert_eq!(fs::read_to_string(out.join("index.html")).unwrap(), page);
    // Its runs are kept and compared by their names.
    let kept = |more: &str| {
        let baselines = dir.path().join("baselines");
        run(
            suite(&file, &out, &[more, "all", "--baselines"]).arg(baselines),
            0,
        )
    };
    kept("--save-baseline");
    let compared = stdout(&kept("--baseline"));
    assert!(
        compared.contains("first") && compared.contains("second"),
        "{compared}"
    );
    assert!(compared.contains("no regression"), "{compared}");
    // A typed model stands for all of the file's.
    let one = dir.path().join("one");
    let mut typed = suite(&file, &one, &["--dry-run", "--model"]);
    assert!(stdout(&run(typed.arg(&model), 0)).contains("1 cells"));
    // The folder of one model's run is not taken for several.
    let refused = run(&mut suite(&file, &out.join("first"), &[]), 2);
    assert!(stderr(&refused).contains("run of one model"));
}

#[test]
fn mistakes_in_a_suite_are_named_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("suite.toml");
    let out = dir.path().join("out");
    for (text, words) in [
        ("precision = [\"fp16\"]", "precision"),
        ("batchs = [1]", "did you mean `batch`"),
        ("[[model]]\nreps = 1\nlimits = 2", "did you mean `limit`"),
        (
            "[precision.fp16]\nreps = 1",
            "unknown key `reps` of precision.fp16",
        ),
        ("[precision.int3]\nbatch = 2", "precision.int3"),
        ("batch = \"4..1\"", "`batch`"),
        ("batch = [\"x\"]", "x"),
        ("reps = \"many\"", "many"),
        ("dry-run = true", "unknown key `dry-run`"),
        ("precisions = [\"int5\"]", "int5"),
        ("model = [\"embedded\", \"/nosuch\"]", "/nosuch"),
        ("model = \"/nosuch\"", "/nosuch"),
        ("reps = 1\nreps = 2", "suite.toml"),
        ("prompt-tokens = 8\ncontext = [8]", "cannot be used with"),
    ] {
        fs::write(&file, text).unwrap();
        let refused = stderr(&run(&mut suite(&file, &out, &[]), 2));
        assert!(refused.contains(words), "{text}: {refused}");
        assert!(refused.trim_end().lines().count() >= 2, "{refused}");
        assert!(!out.join("results.csv").exists());
    }
    // A dry run is to show what a run would meet, its thresholds included.
    fs::write(&file, "[compare]\nmax_speed = \"1%\"").unwrap();
    for more in [&[][..], &["--dry-run"]] {
        let refused = stderr(&run(&mut suite(&file, &out, more), 2));
        assert!(refused.contains("max_speed"), "{refused}");
    }
    let missing = run(&mut suite(Path::new("/nosuch.toml"), &out, &[]), 2);
    assert!(stderr(&missing).contains("/nosuch.toml"));
}

/// How a folder's weights are changed from the embedded model's.
#[derive(Clone, Copy)]
enum Made {
    AsTheyAre,
    Rounded,
}

/// A folder of dequantized weights made from the embedded model.
fn dequantized(folder: &Path, name: &str, made: Made) {
    fs::create_dir_all(folder).unwrap();
    let bytes = fs::read(root().join("datasets/embedded-model/model.safetensors")).unwrap();
    let model = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = model
        .iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::F16, "{name}");
            let data = match made {
                Made::Rounded if name.ends_with("_proj.weight") => view
                    .data()
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .flat_map(|b| {
                        let value = half::f16::from_le_bytes(*b).to_f32();
                        half::f16::from_f32((value * 64.0).round() / 64.0).to_le_bytes()
                    })
                    .collect(),
                _ => view.data().to_vec(),
            };
            (name.to_string(), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = changed.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("weights.safetensors")).unwrap();
    let about = format!("name = \"{name}\"\nbits_per_weight = 4.25\nformat = \"sixty-fourths\"\n");
    fs::write(folder.join("quantbench.toml"), about).unwrap();
}

#[test]
fn weights_quantized_elsewhere_get_a_quality_row() {
    let dir = tempfile::tempdir().unwrap();
    let (same, rounded) = (dir.path().join("same"), dir.path().join("rounded"));
    dequantized(&same, "same", Made::AsTheyAre);
    dequantized(&rounded, "rounded", Made::Rounded);
    fs::copy(
        root().join("datasets/embedded-model/config.json"),
        rounded.join("config.json"),
    )
    .unwrap();
    let precisions = format!("fp16,dir:{},dir:{}", same.display(), rounded.display());
    let out = dir.path().join("out");
    let quick = |more: &[&str]| {
        let mut command = quick_run(&out);
        command.args(["--precisions", &precisions]).args(more);
        command
    };
    let shown = stdout(&run(&mut quick(&["--batch", "1,2"]), 0));
    assert!(shown.contains("rounded"), "{shown}");
    let tables = Tables::read(&out).unwrap();
    let ids: Vec<&str> = tables
        .results
        .iter()
        .map(|r| r.precision.as_str())
        .collect();
    assert_eq!(ids, ["fp16", "fp16", "same", "same", "rounded", "rounded"]);
    let [fp16, _, same_row, _, rounded_row, _] = &tables.results[..] else {
        panic!()
    };
    // Stored values are kept: the very same weights score the very same.
    assert_eq!(same_row.perplexity, fp16.perplexity);
    assert_eq!(same_row.delta_nll_nats, Some(0.0));
    assert!(rounded_row.delta_nll_nats.unwrap() > 0.0);
    let body = tables.info.model.body_parameters as f64;
    let weight_bytes = (body * 4.25 / 8.0).round() as u64;
    for row in &tables.results[2..] {
        assert_eq!(row.status, Status::Ok, "{}", row.error);
        assert_eq!(
            (row.method.as_str(), row.format.as_str()),
            ("dir", "sixty-fourths")
        );
        assert_eq!(row.bits_per_weight, Some(4.25));
        assert_eq!(row.weight_bytes, Some(weight_bytes));
        assert_eq!(row.peak_memory_method, "declared");
        assert!(row.warnings.contains("plain f16"), "{}", row.warnings);
        assert_eq!(
            (row.decode_tok_s, row.prefill_tok_s, row.ttft_s),
            (None, None, None)
        );
        assert_eq!(
            (row.quantize_s, row.load_s, row.peak_rss_bytes),
            (None, None, None)
        );
    }
    // The same parts, but for the weights and for tiles that threads need at the same time.
    let saved = fp16.weight_bytes.unwrap() - weight_bytes;
    let expected = fp16.peak_memory_bytes.unwrap() - saved;
    let peak = same_row.peak_memory_bytes.unwrap();
    assert!(peak.abs_diff(expected) <= 512 << 10, "{peak} {expected}");
    assert!(tables.samples.iter().all(|s| s.precision == "fp16"));
    // Taken over, and noticed when the weights change behind the same name.
    let again = stderr(&run(&mut quick(&["--batch", "1,2"]), 0));
    assert!(again.contains("3 quantized, 3 measured"), "{again}");
    dequantized(&rounded, "rounded", Made::AsTheyAre);
    run(&mut quick(&["--batch", "1,2"]), 0);
    let tables = Tables::read(&out).unwrap();
    assert_eq!(tables.info.reused.measured, 2);
    assert_eq!(tables.results[4].perplexity, fp16.perplexity);
}

#[test]
fn folders_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("w");
    let out = dir.path().join("out");
    let attempt = |precisions: &str, code: i32| {
        let mut command = quick_run(&out);
        let output = run(command.args(["--precisions", precisions]), code);
        // What a child refuses stands in its row.
        let rows = fs::read_to_string(out.join("results.csv")).unwrap_or_default();
        stderr(&output) + &rows
    };
    let id = format!("dir:{}", folder.display());
    assert!(attempt(&id, 2).contains("quantbench.toml"));
    dequantized(&folder, "mine", Made::Rounded);
    let about = folder.join("quantbench.toml");
    for (text, words) in [
        ("name = \"a b\"", "bits_per_weight"),
        (
            "name = \"a b\"\nbits_per_weight = 4\nformat = \"x\"",
            "letters",
        ),
        (
            "name = \"int8\"\nbits_per_weight = 4\nformat = \"x\"",
            "quantbench itself",
        ),
        (
            "name = \"a\"\nbits_per_weight = 0\nformat = \"x\"",
            "more than 0",
        ),
        (
            "name = \"a\"\nbits_per_weight = 4\nformat = \"x\"\nbit = 1",
            "bit",
        ),
    ] {
        fs::write(&about, text).unwrap();
        let refused = attempt(&id, 2);
        assert!(refused.contains(words), "{text}: {refused}");
    }
    dequantized(&folder, "mine", Made::Rounded);
    let other = dir.path().join("other");
    dequantized(&other, "mine", Made::AsTheyAre);
    let both = format!("{id},dir:{}", other.display());
    assert!(attempt(&both, 2).contains("both called `mine`"));
    let mut bare = quantbench();
    bare.args([
        "run",
        "--model",
        "synthetic:smollm2-135m",
        "--precisions",
        &id,
        "--out",
    ]);
    assert!(stderr(&run(bare.arg(&out), 2)).contains("brings weights"));

    // Of another model: what does not fit is named in the row, and the others are measured.
    let config = fs::read_to_string(root().join("datasets/embedded-model/config.json")).unwrap();
    let at = config.find("\"rope_theta\": ").unwrap() + "\"rope_theta\": ".len();
    fs::write(
        folder.join("config.json"),
        format!("{}9{}", &config[..at], &config[at..]),
    )
    .unwrap();
    let refused = attempt(&format!("fp16,{id}"), 3);
    assert!(refused.contains("`rope_theta` is"), "{refused}");
    fs::remove_file(folder.join("config.json")).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    for (from, to, words) in [
        (name, "model.layers.0.mlp.pu_proj.weight", "no such tensor"),
        ("model.norm.weight", "model.nrom.weight", "it is there"),
    ] {
        dequantized(&folder, "mine", Made::Rounded);
        let weights = folder.join("weights.safetensors");
        let bytes = fs::read(&weights).unwrap();
        // Names of the same length, in the header at the beginning.
        let at = bytes
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        let mut bytes = bytes;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&weights, bytes).unwrap();
        let refused = attempt(&format!("fp16,{id}"), 3);
        assert!(refused.contains(words), "{to}: {refused}");
    }
}
