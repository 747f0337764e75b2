//! The real binary, end to end: outputs, failures and exit codes.

use crate::common::{model_copy, quantbench, quick_run, quick_run_with_roofline, stderr, stdout};
use quantbench::record::Tables;
use quantbench::record::rows::{ResultRow, Status};
use quantbench::record::run_info::StopRule;
use quantbench::record::tables::TABLES;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{text}");
    output
}

/// Expects a refusal: exit code, words that must be in the message, and a way out (second line).
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let output = run(command);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    assert!(
        text.trim_end().lines().count() >= 2,
        "no way out in: {text}"
    );
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// Beside the files of [`TABLES`].
const OUTPUTS: &[&str] = &[
    "report.md",
    "index.html",
    "quality_vs_memory.svg",
    "quality_vs_memory.png",
    "speed_vs_memory.svg",
    "memory_breakdown.png",
    "domains.svg",
];

#[test]
fn a_run_leaves_every_output_and_consistent_numbers() {
    let out = tempfile::tempdir().unwrap();
    let output = run(&mut quick_run_with_roofline(out.path()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = TABLES.iter().map(|table| table.name);
    for name in tables.chain(OUTPUTS.iter().copied()) {
        let size = fs::metadata(out.path().join(name)).unwrap().len();
        assert!(size > 0, "{name} is empty");
    }
    let tables = Tables::read(out.path()).unwrap();
    let ids: Vec<&str> = tables
        .results
        .iter()
        .map(|r| r.precision.as_str())
        .collect();
    assert_eq!(ids, ["fp16", "fp8", "int8", "awq-int4", "gptq-int4"]);
    assert!(tables.info.complete);
    for row in &tables.results {
        assert_eq!(row.status, Status::Ok, "{}", row.error);
        let weights: f64 = row.weight_bytes.unwrap() as f64;
        let bits = row.bits_per_weight.unwrap();
        assert!(
            (weights * 8.0 / tables.info.model.body_parameters as f64 / bits - 1.0).abs() < 1e-9
        );
        // The parts' own high-water marks bound the peak from above, the lasting ones from below.
        let lasting =
            row.weight_bytes.unwrap() + row.embedding_bytes.unwrap() + row.kv_cache_bytes.unwrap();
        let parts = lasting
            + row.activation_peak_bytes.unwrap()
            + row.workspace_bytes.unwrap()
            + row.other_bytes.unwrap();
        let peak = row.peak_memory_bytes.unwrap();
        assert!(lasting < peak, "{}", row.precision);
        assert!(
            peak as f64 <= 1.02 * parts as f64,
            "{}: {peak} {parts}",
            row.precision
        );
        assert_eq!(row.kl_mean_nats.is_none(), row.precision == "fp16");
        assert!(row.decode_tok_s.unwrap() > 0.0 && row.prefill_tok_s.unwrap() > 0.0);
        // The head of the embedded model is its embedding: every step reads all of it. The 4
        // tokens after a prompt of 16 see 17 to 20 positions of a cache that was made for 20.
        let roofline = tables.info.roofline.as_ref().unwrap();
        let kv_position = row.kv_cache_bytes.unwrap() as f64 / 20.0;
        let step = weights + row.embedding_bytes.unwrap() as f64 + kv_position * (16.0 + 5.0 / 2.0);
        let mbu = step * row.decode_tok_s.unwrap() / roofline.bandwidth_bytes_s();
        assert!((row.mbu.unwrap() / mbu - 1.0).abs() < 1e-9, "{row:?}");
        // Two operations per weight and token (the head's for the last one only), and four per
        // number of a query and position it sees: 1 + 2 + ... + 16 of them.
        let model = &tables.info.model;
        // This model's heads times their size are its hidden size.
        let query = (model.layers * model.hidden_size) as f64;
        let head = (model.vocab_size * model.hidden_size) as f64;
        let flop =
            2.0 * (16.0 * model.body_parameters as f64 + head) + 4.0 * query * (16.0 * 17.0 / 2.0);
        let mfu = flop * row.prefill_tok_s.unwrap() / 16.0 / roofline.flop_s().unwrap();
        assert!((row.mfu.unwrap() / mfu - 1.0).abs() < 1e-9, "{row:?}");
        // What only a GPU has.
        assert_eq!(row.gpu_clock_mhz_median, None);
        assert_eq!(row.throttled, None);
        assert_eq!(row.joules_per_token, None);
        assert_eq!(row.nvml_process_bytes, None);
        assert_eq!(row.scored_tokens, Some(6 * 511));
        assert!(
            row.warnings.contains("last-level cache")
                || tables.info.host.last_level_cache_bytes < Some(20 << 20)
        );
        let windows: f64 = tables
            .windows
            .iter()
            .filter(|w| w.precision == row.precision)
            .map(|w| w.nll_sum_nats)
            .sum();
        let perplexity = (windows / (6.0 * 511.0)).exp();
        assert!((perplexity / row.perplexity.unwrap() - 1.0).abs() < 1e-12);
    }
    let roofline = tables.info.roofline.as_ref().unwrap();
    assert!(roofline.read_bytes_s > 1e8 && roofline.copy_bytes_s > 1e8);
    assert!(roofline.flop_s().unwrap() > 1e8);
    // The time that this takes is the machine's affair; the work is ours: few passes over buffers
    // that no cache holds.
    let buffer_bytes = roofline.buffer_bytes;
    let wanted_bytes = (4 * roofline.last_level_cache_bytes.unwrap_or(0)).max(256 << 20);
    assert_eq!(roofline.repetitions, 10);
    assert!(
        (1 << 20..=wanted_bytes).contains(&buffer_bytes),
        "{roofline:?}"
    );
    // Widths as the contract defines them.
    let bits = |id: &str| {
        tables
            .results
            .iter()
            .find(|r| r.precision == id)
            .unwrap()
            .bits_per_weight
            .unwrap()
    };
    assert_eq!(bits("fp16"), 16.0);
    assert_eq!(bits("gptq-int4"), 4.15625);
    assert_eq!(bits("awq-int4"), 4.15625);
    // Every pair, on each text and on all.
    assert_eq!(tables.pairs.len(), 10 * 7);
    assert_eq!(tables.quality.len(), 5 * 7);
    assert_eq!(tables.speed_pairs.len(), 10 * 2);
    for pair in &tables.speed_pairs {
        let rate = |id: &str| {
            let row = tables.results.iter().find(|r| r.precision == id).unwrap();
            match pair.phase.as_str() {
                "prefill" => row.prefill_tok_s.unwrap(),
                _ => row.decode_tok_s.unwrap(),
            }
        };
        let ratio = rate(&pair.precision_b) / rate(&pair.precision_a);
        assert!((pair.ratio / ratio - 1.0).abs() < 1e-12, "{pair:?}");
        // Two repetitions have no interval worth the name.
        assert_eq!((pair.ratio_ci_low, pair.ratio_ci_high), (None, None));
        assert_eq!((pair.batch, pair.context), (1, 16));
    }
    for cell in &tables.info.cells {
        let timing = cell.timing.as_ref().unwrap();
        assert_eq!(
            (timing.repetitions, timing.stopped_by),
            (2, StopRule::Fixed)
        );
        assert_eq!(timing.interval_level, None);
    }
    // Warm-ups are kept and marked; 3 phases of 2 repetitions and a warm-up each.
    assert_eq!(tables.samples.len(), 5 * 3 * 3);
    // The closing table shows what the files hold.
    let shown = stdout(&output);
    for row in &tables.results {
        assert!(shown.contains(&row.precision), "{shown}");
    }
    // Nothing but results stays behind.
    let hidden = fs::read_dir(out.path())
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with('.')
        })
        .count();
    assert_eq!(hidden, 0);

    // `report` gives the same page from the files alone.
    let page = fs::read(out.path().join("index.html")).unwrap();
    fs::remove_file(out.path().join("index.html")).unwrap();
    fs::remove_file(out.path().join("domains.svg")).unwrap();
    let again = run(quantbench().arg("report").arg(out.path()));
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(fs::read(out.path().join("index.html")).unwrap(), page);
    assert!(out.path().join("domains.svg").exists());
}

#[test]
fn quality_does_not_depend_on_threads_or_repetition() {
    let quality = |threads: &str| {
        let out = tempfile::tempdir().unwrap();
        let output = run(quick_run(out.path()).args([
            "--threads",
            threads,
            "--precisions",
            "fp16,int8,awq-int4,gptq-int4",
        ]));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let tables = Tables::read(out.path()).unwrap();
        let packed: Vec<String> = tables
            .info
            .cells
            .into_iter()
            .map(|c| c.packed_sha256)
            .collect();
        let windows: Vec<f64> = tables.windows.iter().map(|w| w.nll_sum_nats).collect();
        (packed, windows)
    };
    let one = quality("1");
    assert_eq!(quality("2"), one);
    assert_eq!(quality("2"), one);
}

const ALL_PROTOCOLS: [&str; 8] = [
    "llamacpp-v1@64",
    "gptq-v1@64",
    "hf-strided-v1@64:32",
    "hf-strided-v2@64:32",
    "hf-strided-exact@64:32",
    "lmeval-wikitext-v2@64",
    "exl2-ed-v1@64",
    "exl3-v1@64",
];

/// A short run of two precisions under these protocols.
fn run_under(protocols: &str, more: &[&str]) -> Tables {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    command
        .args(["run", "--precisions", "fp16,rtn-int4", "--limit", "24"])
        .args(["--calibration-limit", "4", "--prompt-tokens", "16"])
        .args(["--gen-tokens", "4", "--reps", "2", "--no-noise-floor"])
        .args(["--choices", "none", "--no-roofline", "--out"])
        .arg(out.path())
        .args(["--protocol", protocols])
        .args(more);
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    Tables::read(out.path()).unwrap()
}

#[test]
fn every_protocol_has_its_rows_and_the_first_is_that_of_the_results() {
    // The default window is that of --window where an id states none.
    let mut given = ALL_PROTOCOLS.map(str::to_string);
    given[1] = "gptq-v1".into();
    given[7] = "exl3-v1".into();
    given[2] = "hf-strided-v1".into();
    let tables = run_under(&given.join(","), &["--window", "64"]);
    let ids: Vec<&str> = tables
        .info
        .protocols
        .iter()
        .map(|p| p.id.as_str())
        .collect();
    assert_eq!(ids, ALL_PROTOCOLS);
    for row in &tables.results {
        assert_eq!(row.protocol, "llamacpp-v1@64");
        let mut quality = tables.quality.iter();
        let overall = quality.find(|q| {
            (
                q.precision.as_str(),
                q.protocol.as_str(),
                q.dataset.as_str(),
            ) == (row.precision.as_str(), "llamacpp-v1@64", "overall")
        });
        assert_eq!(row.perplexity, overall.map(|q| q.perplexity));
    }
    for (p, id) in ALL_PROTOCOLS.iter().enumerate() {
        let own: Vec<_> = tables
            .quality
            .iter()
            .filter(|q| q.protocol == *id)
            .collect();
        // Six texts and all of them, at two precisions.
        assert_eq!(own.len(), 2 * 7, "{id}");
        assert_eq!(tables.pairs.iter().filter(|q| q.protocol == *id).count(), 7);
        for row in own {
            let windows: Vec<_> = tables
                .windows
                .iter()
                .filter(|w| w.protocol == *id && w.precision == row.precision)
                .filter(|w| w.dataset == row.dataset || row.dataset == "overall")
                .collect();
            let used = if row.dataset == "overall" { 24 } else { 4 };
            assert_eq!((windows.len(), row.windows), (used, used as u64), "{id}");
            let sum = |of: fn(&quantbench::record::rows::WindowRow) -> f64| {
                windows.iter().map(|w| of(w)).sum::<f64>()
            };
            let mean = sum(|w| w.weighted_nll_nats.unwrap()) / sum(|w| w.weight.unwrap());
            assert!((mean / row.nll_mean_nats - 1.0).abs() < 1e-12, "{id}");
            assert!((mean.exp() / row.perplexity - 1.0).abs() < 1e-12, "{id}");
            let bits = sum(|w| w.nll_sum_nats) / (row.scored_bytes as f64 * 2f64.ln());
            assert!(
                (row.bits_per_byte.unwrap() / bits - 1.0).abs() < 1e-12,
                "{id}"
            );
            assert_eq!(row.delta_nll_nats.is_some(), row.precision == "rtn-int4");
        }
        // What the tokenizer and the protocol put where: BOS is token 0 of this model.
        let info = &tables.info.protocols[p];
        let by_tokenizer = !["lmeval", "exl2-e", "exl3-v"].contains(&&id[..6]);
        assert_eq!(info.stream_start_id, by_tokenizer.then_some(0), "{id}");
        let by_protocol = ["llamac", "lmeval"].contains(&&id[..6]);
        assert_eq!(info.window_start_id, by_protocol.then_some(0), "{id}");
        assert_eq!(info.window_start.is_empty(), !by_protocol);
        assert_eq!(info.block_windows, if id.starts_with("hf") { 2 } else { 1 });
        assert_eq!(info.texts.len(), 6);
        assert!(info.rules["window"] == 64 && !info.about.is_empty());
    }
    let tokenizer = &tables.info.tokenizer;
    assert_eq!(
        (tokenizer.added_bos_id, tokenizer.bos_id),
        (Some(0), Some(0))
    );
    assert_eq!((tokenizer.added_eos_id, tokenizer.eos_id), (None, Some(1)));
    assert!(!tables.results[0].warnings.contains("BOS"));
    // The mean of texts' perplexities is the first protocol's too.
    let of_texts: Vec<f64> = tables
        .quality
        .iter()
        .filter(|q| q.precision == "fp16" && q.protocol == ids[0] && q.dataset != "overall")
        .map(|q| q.perplexity)
        .collect();
    let mean = of_texts.iter().sum::<f64>() / 6.0;
    assert!((tables.info.cells[0].macro_perplexity.unwrap() / mean - 1.0).abs() < 1e-12);
}

#[test]
fn protocols_give_the_same_alone_together_and_at_any_number_of_threads() {
    type Score = (String, String, u64, u64);
    let scores = |tables: &Tables, protocol: &str| -> Vec<Score> {
        let own = tables.windows.iter().filter(|w| w.protocol == protocol);
        own.map(|w| {
            let (precision, dataset) = (w.precision.clone(), w.dataset.clone());
            (precision, dataset, w.window, w.nll_sum_nats.to_bits())
        })
        .collect()
    };
    let all = ALL_PROTOCOLS.join(",");
    let together = run_under(&all, &["--threads", "2"]);
    let one = run_under(&all, &["--threads", "1"]);
    for id in ALL_PROTOCOLS {
        assert_eq!(scores(&one, id), scores(&together, id), "{id}");
    }
    for id in [ALL_PROTOCOLS[1], ALL_PROTOCOLS[4], ALL_PROTOCOLS[5]] {
        let alone = run_under(id, &["--threads", "2"]);
        assert_eq!(scores(&alone, id), scores(&together, id), "{id}");
        assert!(!scores(&alone, id).is_empty());
    }
}

#[test]
fn a_second_bos_is_warned_of_and_short_texts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("begins.txt");
    fs::write(
        &text,
        format!("<|begin_of_text|>{}", "a word after a word. ".repeat(60)),
    )
    .unwrap();
    let short = dir.path().join("short.txt");
    fs::write(&short, "one window and a little more, no two. ".repeat(7)).unwrap();
    let datasets = format!("{},{}", text.display(), short.display());
    let protocols = "gptq-v1@64,llamacpp-v1@64,lmeval-wikitext-v2@64";
    let tables = run_under(protocols, &["--datasets", &datasets]);
    let warnings = &tables.results[0].warnings;
    let twice = |id: &str| {
        warnings.contains(&format!(
            "1 windows of dataset `begins` begin with two BOS tokens (id 0) under {id}"
        ))
    };
    assert!(
        twice("gptq-v1@64") && twice("lmeval-wikitext-v2@64"),
        "{warnings}"
    );
    // llama.cpp takes the text of a special token for text.
    assert!(!twice("llamacpp-v1@64"), "{warnings}");
    assert!(
        warnings.contains("too few for 2 windows of 64 under llamacpp-v1@64"),
        "{warnings}"
    );
    let used = |id: &str| {
        let mut rows = tables.quality.iter();
        rows.any(|q| q.protocol == id && q.dataset == "short")
    };
    assert!(used("gptq-v1@64") && !used("llamacpp-v1@64"));

    let mut command = quick_run(dir.path());
    command.args(["--protocol", "gptq-v1@64,llamacpp-v1@64", "--datasets"]);
    command.arg(&short);
    refused(
        &mut command,
        2,
        &["2 windows of 64", "llamacpp-v1@64", "short"],
    );
}

#[test]
fn the_reference_is_added_and_can_be_left_out() {
    let out = tempfile::tempdir().unwrap();
    let output = run(quick_run_with_roofline(out.path()).args(["--precisions", "int8"]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.results.len(), 2);
    assert_eq!(tables.results[0].precision, "fp16");
    assert_eq!(tables.results[0].decode_tok_s, None);
    assert_eq!(tables.results[0].mbu, None);
    assert_eq!(tables.results[0].mfu, None);
    assert!(tables.results[1].mbu.is_some() && tables.results[1].mfu.is_some());
    assert!(tables.results[1].delta_nll_nats.is_some());

    let output = run(quick_run(out.path()).args(["--precisions", "int8", "--no-reference"]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.results.len(), 1);
    assert_eq!(tables.results[0].delta_nll_nats, None);
}

#[test]
fn wrong_arguments_are_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let short = dir.path().join("short.txt");
    fs::write(&short, "a few words").unwrap();
    let short = short.to_str().unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--precisions", "gptq-in4"],
            &["unknown precision", "gptq-int4"],
        ),
        (&["--precisions", "awq-int5"], &["awq-int5"]),
        (
            &["--batch", "18446744073709551615"],
            &["--batch", "67108864"],
        ),
        (&["--batch", "2000000", "--context", "512"], &["1024000000"]),
        (&["--reps", "18446744073709551615"], &["--reps", "1000000"]),
        (&["--threads", "100000"], &["--threads", "4096"]),
        (&["--reference", "nothing"], &["unknown precision"]),
        (&["--kv", "int1"], &["KV cache", "fp16, fp32"]),
        (&["--protocol", "mine"], &["protocol", "gptq-v1@N"]),
        (&["--window", "1"], &["window of 1"]),
        (
            &["--protocol", "gptq-v1@256", "--window", "512"],
            &["gptq-v1@256", "--window"],
        ),
        (
            &["--protocol", "gptq-v1@256,exl3-v1@256", "--window", "512"],
            &["exl3-v1@256", "--window"],
        ),
        (
            &["--protocol", "gptq-v1,lamacpp-v1"],
            &["`lamacpp-v1`", "llamacpp-v1@N"],
        ),
        (
            &["--protocol", "gptq-v1@512:256"],
            &["gptq-v1@512:256", "stride"],
        ),
        (
            &["--protocol", "hf-strided-v2@256:512"],
            &["stride of 512", "256"],
        ),
        (
            &["--protocol", "gptq-v1,exl2-ed-v1@2048"],
            &["2048", "1024", "--window"],
        ),
        (&["--window", "4000"], &["1024", "--window"]),
        (&["--reps", "0"], &["--reps 0"]),
        (
            &["--reps", "3", "--max-noise", "2%"],
            &["--reps", "--max-noise"],
        ),
        (
            &["--reps", "3", "--min-reps", "3"],
            &["--reps", "--min-reps"],
        ),
        (&["--max-reps", "9"], &["--max-noise"]),
        (&["--max-noise", "2"], &["between 0 and 1", "2%"]),
        (
            &["--max-noise", "2%", "--max-reps", "5"],
            &["--max-reps 5", "--max-reps 6"],
        ),
        (
            &["--max-noise", "2%", "--max-reps", "8", "--min-reps", "9"],
            &["--min-reps 9", "--max-reps 8"],
        ),
        (&["--device", "gpu"], &["`gpu`", "cuda:N"]),
        #[cfg(not(feature = "cuda"))]
        (&["--device", "cuda"], &["cuda:0", "--features cuda"]),
        (&["--batch", "0"], &["--batch 0"]),
        (&["--gen-tokens", "0"], &["--gen-tokens 0"]),
        (&["--batch", "1,0"], &["--batch 0"]),
        (&["--batch", "1,x"], &["--batch", "invalid digit"]),
        (&["--batch", "1,"], &["--batch"]),
        (&["--context", "0,16"], &["--context 0"]),
        (&["--context", "16,4000"], &["4064", "1024", "--context"]),
        (
            &["--context", "16", "--prompt-tokens", "16"],
            &["--context", "--prompt-tokens"],
        ),
        (
            &["--kv", "fp16,int1"],
            &["KV cache precision `int1`", "fp16, fp32"],
        ),
        (
            &["--model", "synthetic:gpt-5"],
            &["`gpt-5`", "llama-2-7b", "list shapes"],
        ),
        (
            &["--model", "synthetic:smollm2-135m", "--datasets", "prose"],
            &["--datasets", "synthetic"],
        ),
        (
            &["--model", "synthetic:smollm2-135m", "--context", "9000"],
            &["9064", "8192"],
        ),
        (&["--limit", "0"], &["--limit 0"]),
        (&["--threads", "0"], &["--threads 0"]),
        (&["--datasets", "nosuchset"], &["nosuchset", "prose"]),
        (&["--datasets", short], &["window of 512", "--window"]),
        (&["--model", "/nosuch"], &["/nosuch"]),
        (&["--tokenizer", "/nosuch.json"], &["/nosuch.json"]),
        (&["--memory-limit", "12X"], &["12M"]),
        (&["--kl-cache", "0"], &["--kl-cache", "12M"]),
        (&["--nosuchflag"], &["--nosuchflag"]),
        (
            &["--out", "/proc/nosuch/out"],
            &["/proc/nosuch/out", "--out"],
        ),
    ];
    for (args, words) in cases {
        let mut command = quantbench();
        if !args.contains(&"--out") {
            command.arg("--out").arg(out);
        }
        refused(command.args(*args), 2, words);
    }
    refused(quantbench().args(["report", "/nosuch"]), 2, &["/nosuch"]);
    refused(quantbench().arg("report").arg(out), 2, &["results.csv"]);
}

#[test]
fn damaged_and_foreign_models_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let with = |model: &Path| {
        let mut command = quick_run(out.path());
        command.arg("--model").arg(model);
        command
    };

    let dir = model_copy();
    let weights = dir.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    refused(&mut with(dir.path()), 2, &["model.safetensors"]);
    fs::write(&weights, (1u64 << 60).to_le_bytes()).unwrap();
    refused(&mut with(dir.path()), 2, &["model.safetensors"]);
    fs::remove_file(&weights).unwrap();
    refused(&mut with(dir.path()), 2, &["safetensors"]);

    let dir = model_copy();
    edit(
        &dir.path().join("config.json"),
        "\"hidden_size\": 256",
        "\"hidden_size\": 512",
    );
    refused(&mut with(dir.path()), 2, &["expected", "512", "256"]);

    let dir = model_copy();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(&mut with(dir.path()), 2, &["config.json"]);

    let dir = model_copy();
    fs::write(dir.path().join("config.json"), "{").unwrap();
    refused(&mut with(dir.path()), 2, &["config.json"]);

    let dir = model_copy();
    edit(&dir.path().join("config.json"), "4096", "49152");
    refused(&mut with(dir.path()), 2, &["49152"]);

    for (name, content) in [
        ("truncated.gguf", b"GGUF\x03\0\0\0".to_vec()),
        (
            "absurd.gguf",
            [b"GGUF\x03\0\0\0".as_slice(), &[0xff; 64]].concat(),
        ),
        ("noise.bin", vec![7; 100]),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        refused(&mut with(&file), 2, &[name]);
    }
}

#[test]
fn an_already_quantized_folder_is_an_unsupported_row() {
    let dir = model_copy();
    edit(
        &dir.path().join("config.json"),
        "\"use_cache\"",
        "\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}, \"use_cache\"",
    );
    let out = tempfile::tempdir().unwrap();
    let output = run(quick_run(out.path())
        .args(["--precisions", "fp16,int8", "--model"])
        .arg(dir.path()));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.results.len(), 2);
    for row in &tables.results {
        assert_eq!(row.status, Status::Unsupported);
        assert!(row.error.contains("quantization_config"), "{}", row.error);
    }
    assert!(stdout(&output).contains("unsupported"));
}

#[test]
fn a_text_shorter_than_a_window_is_a_warning_beside_others() {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.txt");
    fs::write(&short, "a few words").unwrap();
    let out = dir.path().join("out");
    let sets = format!("prose,{}", short.display());
    let output = run(quick_run(&out).args(["--precisions", "fp16", "--datasets", &sets]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(&out).unwrap();
    assert!(
        tables.results[0]
            .warnings
            .contains("too few for a window of 512")
    );
}

#[test]
fn evaluation_text_is_not_taken_for_calibration() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("both.txt");
    fs::write(&text, "Some words that repeat themselves. ".repeat(400)).unwrap();
    let mut command = quick_run(&dir.path().join("out"));
    command
        .arg("--datasets")
        .arg(&text)
        .arg("--calibration")
        .arg(&text);
    refused(&mut command, 2, &["evaluation", "calibration"]);
}

#[test]
fn a_memory_limit_ends_the_large_precision_only() {
    let out = tempfile::tempdir().unwrap();
    let output =
        run(quick_run(out.path()).args(["--precisions", "fp16,rtn-int4", "--memory-limit", "12M"]));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.results[0].status, Status::Oom);
    assert!(
        tables.results[0].error.contains("exceeds it by"),
        "{}",
        tables.results[0].error
    );
    assert_eq!(tables.results[0].perplexity, None);
    assert_eq!(
        tables.results[1].status,
        Status::Ok,
        "{}",
        tables.results[1].error
    );
    assert!(tables.results[1].perplexity.is_some());
    assert!(
        fs::read_to_string(out.path().join("index.html"))
            .unwrap()
            .contains("oom")
    );
}

#[test]
fn every_batch_context_and_kv_cache_has_its_row() {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    command
        .args(["run", "--precisions", "fp16,int8", "--limit", "6"])
        .arg("--no-noise-floor")
        .args(["--kv", "fp16,fp32", "--batch", "2,1", "--context", "16,40"])
        .args(["--gen-tokens", "4", "--reps", "2", "--out"])
        .arg(out.path());
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    let shown: Vec<String> = tables
        .results
        .iter()
        .map(|r| {
            let (batch, context) = (r.batch.unwrap(), r.prompt_tokens.unwrap());
            format!("{} {} {batch} {context}", r.precision, r.kv_cache)
        })
        .collect();
    let mut expected = vec![];
    for precision in ["fp16", "int8"] {
        for kv in ["fp16", "fp32"] {
            for shape in ["2 16", "2 40", "1 16", "1 40"] {
                expected.push(format!("{precision} {kv} {shape}"));
            }
        }
    }
    assert_eq!(shown, expected);
    let quality = |r: &ResultRow| (r.perplexity, r.delta_nll_nats, r.bits_per_byte);
    for (i, row) in tables.results.iter().enumerate() {
        assert_eq!(row.status, Status::Ok, "{}", row.error);
        // Room for every position of every sequence, in numbers of the cache.
        let bytes = if row.kv_cache == "fp16" { 2 } else { 4 };
        let positions = row.batch.unwrap() * (row.prompt_tokens.unwrap() + 4);
        let per_position = tables.results[2].kv_cache_bytes.unwrap() / (20 * 2);
        assert_eq!(
            row.kv_cache_bytes,
            Some(positions * per_position * bytes),
            "{}",
            shown[i]
        );
        assert!(row.decode_tok_s.unwrap() > 0.0 && row.prefill_tok_s.unwrap() > 0.0);
        // Quality is the precision's and the cache's, not the speed test's.
        let first = &tables.results[i / 4 * 4];
        assert_eq!(quality(row), quality(first));
        assert!(row.perplexity.is_some());
        assert_eq!(row.delta_nll_nats.is_none(), i < 4, "{}", shown[i]);
    }
    // More sequences and longer ones take more memory, each measured by itself.
    let peaks: Vec<u64> = tables.results[..4]
        .iter()
        .map(|r| r.peak_memory_bytes.unwrap())
        .collect();
    assert!(
        peaks[2] < peaks[0] && peaks[0] < peaks[1] && peaks[3] < peaks[1],
        "{peaks:?}"
    );
    // 16 rows, three phases, two repetitions and a warm-up each.
    assert_eq!(tables.samples.len(), 16 * 3 * 3);
    for row in &tables.results {
        let own = tables.samples.iter().filter(|s| {
            s.phase == "decode"
                && (s.precision == row.precision && s.kv_cache == row.kv_cache)
                && (Some(s.batch), Some(s.context)) == (row.batch, row.prompt_tokens)
        });
        assert!(
            own.clone()
                .all(|s| Some(s.tokens) == row.batch.map(|b| 4 * b))
        );
        assert_eq!(own.count(), 3);
    }
    // One packed file per precision; pairs name precisions only.
    let packed: Vec<&str> = tables
        .info
        .cells
        .iter()
        .map(|c| c.packed_sha256.as_str())
        .collect();
    assert_eq!(packed.len(), 4);
    assert!(packed[0] == packed[1] && packed[2] == packed[3] && packed[1] != packed[2]);
    assert_eq!(tables.info.cells[0].further.len(), 3);
    assert_eq!(tables.pairs.len(), 7);
    for name in ["decode_vs_batch.svg", "decode_vs_context.png"] {
        assert!(out.path().join(name).exists(), "{name}");
    }
}

#[test]
fn what_does_not_fit_costs_its_own_row_and_larger_ones() {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    command
        .args([
            "run",
            "--precisions",
            "int8",
            "--no-reference",
            "--limit",
            "6",
        ])
        .args([
            "--batch",
            "8,1,4",
            "--context",
            "16,128",
            "--gen-tokens",
            "4",
        ])
        .args(["--reps", "1", "--memory-limit", "14M", "--out"])
        .arg(out.path());
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    let shown: Vec<(u64, u64, Status)> = tables
        .results
        .iter()
        .map(|r| (r.batch.unwrap(), r.prompt_tokens.unwrap(), r.status))
        .collect();
    assert_eq!(
        shown,
        [
            (8, 16, Status::Ok),
            (8, 128, Status::Skipped),
            (1, 16, Status::Ok),
            (1, 128, Status::Ok),
            (4, 16, Status::Ok),
            (4, 128, Status::Oom),
        ]
    );
    let [skipped, oom] = [&tables.results[1], &tables.results[5]];
    assert_eq!(skipped.error, "oom@int8 kv=fp16 b=4 ctx=128");
    assert!(oom.error.contains("exceeds it by"), "{}", oom.error);
    for row in &tables.results {
        assert!(row.perplexity.is_some());
        let measured = row.status == Status::Ok;
        assert_eq!(row.decode_tok_s.is_some(), measured);
        assert_eq!(row.peak_memory_bytes.is_some(), measured);
    }
}

#[test]
fn a_synthetic_model_has_memory_and_speed_and_no_quality() {
    let out = tempfile::tempdir().unwrap();
    let mut command = quantbench();
    command
        .args(["run", "--model", "synthetic:smollm2-135m"])
        .args(["--precisions", "fp8,gptq-int4", "--context", "8,24"])
        .args(["--gen-tokens", "2", "--reps", "1", "--out"])
        .arg(out.path());
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.results.len(), 4);
    assert!(tables.quality.is_empty() && tables.windows.is_empty() && tables.pairs.is_empty());
    assert_eq!(tables.info.model.parameters, 134_515_008);
    assert_eq!(tables.info.reference, "");
    for row in &tables.results {
        assert_eq!(row.status, Status::Ok, "{}", row.error);
        assert_eq!(row.model, "synthetic:smollm2-135m");
        assert_eq!(row.source_format, "synthetic");
        assert!(row.warnings.contains("random codes"), "{}", row.warnings);
        assert!(row.protocol.is_empty() && row.dataset.is_empty());
        assert_eq!((row.perplexity, row.delta_nll_nats), (None, None));
        assert_eq!((row.quantize_s, row.load_s), (None, None));
        assert!(row.decode_tok_s.unwrap() > 0.0 && row.prefill_tok_s.unwrap() > 0.0);
        // Nothing but the packed model and what running it takes.
        let lasting =
            row.weight_bytes.unwrap() + row.embedding_bytes.unwrap() + row.kv_cache_bytes.unwrap();
        let peak = row.peak_memory_bytes.unwrap();
        assert!(lasting < peak && peak < lasting + lasting / 20, "{peak}");
    }
    let bits = tables.results[2].bits_per_weight.unwrap();
    // 4.1736 where the inputs are 576, 4.15625 in down_proj with its 1536.
    assert!((bits - 4.169271).abs() < 1e-6, "{bits}");
    let page = fs::read_to_string(out.path().join("index.html")).unwrap();
    assert!(page.contains("random codes") && page.contains("decode_vs_context"));
    assert!(!page.contains("SHA-256 ;"), "an empty hash is shown");
}

#[test]
fn a_timeout_is_a_row() {
    let out = tempfile::tempdir().unwrap();
    let mut command = quick_run_with_roofline(out.path());
    let output = run(command.args(["--precisions", "fp16", "--timeout", "0.01"]));
    assert_eq!(output.status.code(), Some(3));
    let tables = Tables::read(out.path()).unwrap();
    assert_eq!(tables.results[0].status, Status::Timeout);
    // Nothing was timed, so the machine was not measured either.
    assert_eq!(tables.info.roofline, None);
}

/// Process ids of a process's children.
fn children(parent: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect()
}

/// Starts a longer run and waits until the line of a stage appears.
#[allow(clippy::zombie_processes)] // The callers wait for it.
fn start_and_wait(out: &Path, stage: &str) -> (std::process::Child, Option<u32>) {
    let log = fs::File::create(out.join("stderr.txt")).unwrap();
    let process = quantbench()
        .args([
            "run",
            "--precisions",
            "rtn-int4,int8,fp16",
            "--limit",
            "60",
            "--reps",
            "2",
            "--no-noise-floor",
        ])
        .args(["--prompt-tokens", "16", "--gen-tokens", "4", "--out"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let start = Instant::now();
    loop {
        let log = fs::read_to_string(out.join("stderr.txt")).unwrap();
        if log.contains(stage) {
            // The next stage has just begun, or is about to: take its child.
            if let Some(child) = children(process.id()).first() {
                return (process, Some(*child));
            }
        }
        assert!(start.elapsed() < Duration::from_secs(600), "{log}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_killed_child_costs_its_own_row() {
    let out = tempfile::tempdir().unwrap();
    let (mut process, child) = start_and_wait(out.path(), "int8 quantize");
    signal(child.unwrap(), "KILL");
    let status = process.wait().unwrap();
    let log = fs::read_to_string(out.path().join("stderr.txt")).unwrap();
    assert_eq!(status.code(), Some(3), "{log}");
    let tables = Tables::read(out.path()).unwrap();
    let statuses: Vec<Status> = tables.results.iter().map(|r| r.status).collect();
    assert_eq!(statuses, [Status::Ok, Status::Killed, Status::Ok], "{log}");
    assert!(tables.results[1].error.contains("signal 9"));
    assert_eq!(tables.results[1].perplexity, None);
    for row in [&tables.results[0], &tables.results[2]] {
        assert!(row.perplexity.is_some() && row.decode_tok_s.is_some());
    }
}

#[test]
fn ctrl_c_keeps_what_is_finished_and_says_how_to_go_on() {
    let out = tempfile::tempdir().unwrap();
    let (mut process, _) = start_and_wait(out.path(), "int8 quantize");
    signal(process.id(), "INT");
    let status = process.wait().unwrap();
    let log = fs::read_to_string(out.path().join("stderr.txt")).unwrap();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(
        log.contains("Stopped") && log.contains("same command again"),
        "{log}"
    );
    let tables = Tables::read(out.path()).unwrap();
    assert!(!tables.info.complete);
    // The reference went first: the others are compared with it.
    assert!(tables.results[0].kl_mean_nats.is_some());
    assert!(tables.results[2].perplexity.is_some());
    assert_eq!(tables.results[1].status, Status::Skipped);
    assert!(out.path().join("index.html").exists());
}

#[test]
fn list_shows_the_registries() {
    let output = run(quantbench().arg("list"));
    assert_eq!(output.status.code(), Some(0));
    let shown = stdout(&output);
    for family in quantbench::quant::families() {
        for listed in family.ids {
            assert!(shown.contains(listed.id) && shown.contains(listed.about));
        }
    }
    for word in [
        "prose",
        "calibration",
        "wikitext-2-raw",
        "hub allenai/c4",
        "choices: 120 four-option items",
        "gptq-v1@N",
        "hf-strided-exact@N:S",
        "fp32",
        "quality_vs_memory",
    ] {
        assert!(shown.contains(word), "{word}");
    }
    for shape in quantbench::formats::shapes::shapes().unwrap() {
        assert!(shown.contains(&format!("synthetic:{} ", shape.id)));
    }
    let shapes = stdout(&run(quantbench().args(["list", "shapes"])));
    assert!(
        shapes.contains("Llama-2-7B: 6.74 B parameters, 12.6 GiB in FP16"),
        "{shapes}"
    );
    let precisions = stdout(&run(quantbench().args(["list", "precisions"])));
    assert!(!precisions.contains("gptq-v1@N"));
}

#[test]
fn a_reader_who_has_gone_changes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let mut run_of = quick_run(out.path());
    run_of.args(["--precisions", "fp16"]);
    let mut list = quantbench();
    list.arg("list");
    for command in [&mut list, &mut run_of] {
        let started = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = started.unwrap();
        drop((process.stdout.take(), process.stderr.take()));
        assert_eq!(process.wait().unwrap().code(), Some(0));
    }
    assert!(Tables::read(out.path()).unwrap().info.complete);
    assert!(out.path().join("index.html").exists());
}

#[test]
fn names_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"m\xff"));
    for option in ["--model", "--out", "--turns", "--cache"] {
        let mut command = quick_run(&dir.path().join("out"));
        // The last --out would count; clap refuses two.
        if option == "--out" {
            command = quantbench();
            command.arg("run");
        }
        let output = run(command.arg(option).arg(&odd));
        assert_eq!(
            output.status.code(),
            Some(2),
            "{option}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("UTF-8"),
            "{option}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn quiet_prints_the_table_only() {
    let out = tempfile::tempdir().unwrap();
    let output = run(quick_run(out.path()).args(["--precisions", "fp16", "--quiet"]));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
    assert!(stdout(&output).contains("fp16"));
}
