//! How each number of a report was made: a term and its explanation.

use super::rows::{comparable, has_shares, is_reference, label, protocol, quality};
use crate::record::format::{self, ABSENT, ByteUnit, one_line};
use crate::record::run_info::{ProtocolInfo, StopRule, TimingDetail};
use crate::record::tables::Tables;
use std::collections::BTreeSet;

/// How each number was made: a term and its explanation.
pub fn method_notes(tables: &Tables) -> Vec<(&'static str, String)> {
    let info = &tables.info;
    let mut notes = Vec::new();
    let mut note = |term, text: String| {
        if !text.is_empty() {
            notes.push((term, text));
        }
    };
    note("Perplexity", perplexity_note(tables));
    note("Intervals", intervals_note(tables));
    note("KL divergence", super::divergence::note(tables));
    note(
        "Weights",
        "Bits per weight count all stored bytes of the quantized matrices (codes, \
        scales, zero points, index, padding) over their weights. Embedding, norms and output \
        head stay in 16 bits and are counted as embeddings."
            .into(),
    );
    note("Memory", memory_note(tables));
    note("Speed", speed_note(tables));
    note("MBU and MFU", shares_note(tables));
    note("Kernels", kernels_note(tables));
    note(
        "Quantizing",
        "Time to quantize, in its own process; its memory is not part of the peak. \
        Parameters were set beforehand and calibration used calibration texts only: no option was \
        chosen on evaluation text."
            .into(),
    );
    note("Model", model_note(tables));
    note("GPU while timed", gpu_note(tables));
    note("Machine", machine_note(tables));
    note("Roofline", roofline_note(tables));
    note("Version", {
        let commit = match info.git_commit.as_str() {
            "" => String::new(),
            commit => format!(" (commit {})", one_line(commit)),
        };
        format!(
            "quantbench {}{commit}, metrics version {}. Numbers of different metrics versions do \
             not compare.",
            one_line(&info.quantbench_version),
            info.metrics_version
        )
    });
    note("Run", {
        let span = match info.finished_at.as_str() {
            "" => format!("started {}", one_line(&info.started_at)),
            end => format!("{} to {}", one_line(&info.started_at), one_line(end)),
        };
        format!(
            "{}: {span}, {} s.",
            one_line(&info.run_id),
            format::seconds(info.duration_s)
        )
    });
    notes
}

fn perplexity_note(tables: &Tables) -> String {
    let Some(protocol) = protocol(tables) else {
        return String::new();
    };
    let counts: BTreeSet<u64> = tables
        .results
        .iter()
        .filter(|row| comparable(tables, row))
        .filter_map(|row| row.scored_tokens)
        .collect();
    let scored = match (counts.first(), counts.last()) {
        (Some(least), Some(most)) if least == most => {
            format!(" {} tokens were scored.", format::count(*most))
        }
        (Some(least), Some(most)) => format!(
            " {} to {} tokens were scored: rows with different counts do not compare.",
            format::count(*least),
            format::count(*most)
        ),
        _ => String::new(),
    };
    let said = tables.info.protocols.iter().find(|p| p.id == protocol);
    let about = said.map_or_else(String::new, |p| {
        format!(" {}{}", one_line(&p.about), start_token(p))
    });
    format!(
        "Protocol {}.{about}{scored} Lower is better; it compares only with numbers of the same \
         protocol, texts and tokenizer.",
        one_line(protocol)
    )
}

/// Which special tokens stand where.
fn start_token(protocol: &ProtocolInfo) -> String {
    let mut words = String::new();
    if let Some(id) = protocol.stream_start_id {
        words += &format!(" The tokenizer put token {id} before each text.");
    }
    if let Some(id) = protocol.window_start_id {
        words += &format!(" Token {id} stands {}.", one_line(&protocol.window_start));
    }
    words
}

fn intervals_note(tables: &Tables) -> String {
    if quality(tables).next().is_none() && protocol(tables).is_none() {
        return String::new();
    }
    let standard_error = tables
        .results
        .iter()
        .find(|r| is_reference(tables, &r.precision, &r.kv_cache))
        .or(tables.results.first())
        .and_then(|r| Some((r.precision.clone(), r.perplexity_se?)))
        .map(|(precision, se)| {
            format!(
                " (for {}, standard error {})",
                one_line(&precision),
                format::number(se, 2)
            )
        })
        .unwrap_or_default();
    format!(
        "Differences between precisions are paired: both read the same windows, whose differences \
         are resampled with a fixed seed (bootstrap), and the interval holds the middle 95 % of \
         the results. What the choice of text does to a single perplexity is far larger\
         {standard_error}, but moves all precisions together, so it says little about which is \
         better. An interval that includes zero is no proof of equality."
    )
}

fn memory_note(tables: &Tables) -> String {
    let methods: BTreeSet<&str> = tables
        .results
        .iter()
        .map(|r| r.peak_memory_method.as_str())
        .filter(|m| !m.is_empty())
        .collect();
    if methods.is_empty() {
        return String::new();
    }
    let how = methods
        .iter()
        .map(|method| match *method {
            "allocator" => {
                "allocator: a counting allocator sees every allocation of the measuring process"
                    .to_string()
            }
            "cuda-pool" => "cuda-pool: the GPU's memory pool keeps the mark, which is reset for \
                            each phase; memory of recorded graphs is added"
                .to_string(),
            other => one_line(other),
        })
        .collect::<Vec<_>>()
        .join("; ");
    let on_gpu = match methods.contains("cuda-pool") {
        true => {
            " On a GPU, pool_reserved_bytes is what the pool held from the driver, free pieces \
             included; driver_delta_bytes how much less was free on the device than before the \
             process had a context, so with context, modules and libraries; nvml_process_bytes \
             what the driver counts for the process that was timed."
        }
        false => "",
    };
    format!(
        "Peak memory is the high-water mark of loading, prefill and decode in the speed workload, \
         in a fresh process per precision ({how}). Inside: weights, embeddings, norms, head, KV \
         cache, activations, workspace, tables and token ids. Outside: the program, the \
         tokenizer, the texts, the source of the weights, quantizing, and the perplexity run, \
         whose own peak is in run.json. The resident set is what the operating system reports for \
         the same process, all of it included.{on_gpu}"
    )
}

fn speed_note(tables: &Tables) -> String {
    let Some(row) = tables.results.iter().find(|r| r.decode_tok_s.is_some()) else {
        return String::new();
    };
    let amount = |value: Option<u64>| value.map_or_else(|| "?".into(), format::count);
    let repetitions = tables
        .samples
        .iter()
        .filter(|s| !s.warmup && s.precision == row.precision && s.phase == "decode")
        .filter(|s| s.kv_cache == row.kv_cache && Some(s.batch) == row.batch)
        .count();
    let repetitions = match repetitions {
        0 => "several repetitions".into(),
        1 => "one repetition".into(),
        n => format!("{n} repetitions"),
    };
    let threads: BTreeSet<u64> = tables.results.iter().filter_map(|r| r.threads).collect();
    let threads = match (threads.first(), threads.len()) {
        (Some(1), 1) => ", one thread".to_string(),
        (Some(n), 1) => format!(", {n} threads"),
        _ => String::new(),
    };
    let of = match tables.info.model.source_format.as_str() {
        "synthetic" | "synthetic-fp16" => "random tokens",
        _ => "tokens of evaluation text",
    };
    format!(
        "A prompt of {} {of}, then {} tokens generated from that depth, batch \
         {}{threads}. Tokens per second of wall time: median of {repetitions} after warm-up in the \
         same shape, ± standard deviation. Precisions took turns in a seeded order. Prefill \
         computes the output head for the last position only. {} Raw times are in samples.csv.",
        amount(row.prompt_tokens),
        amount(row.generated_tokens),
        amount(row.batch),
        speed_intervals(tables),
    )
}

/// What the intervals of speeds mean, and which rule ended the repetitions.
fn speed_intervals(tables: &Tables) -> String {
    let timings: Vec<&TimingDetail> = tables
        .info
        .cells
        .iter()
        .filter_map(|cell| cell.timing.as_ref())
        .collect();
    let counts: BTreeSet<u64> = timings.iter().map(|t| t.repetitions).collect();
    let levels = timings.iter().filter_map(|t| t.interval_level);
    let level = match levels.reduce(f64::min) {
        Some(level) => format!(
            "Medians have intervals in results.csv, exact by order statistics or, of more than 30 \
             repetitions, from a bootstrap (here {} %).",
            format::number(100.0 * level, 1)
        ),
        None => "Fewer than five repetitions give medians without intervals.".into(),
    };
    let ratios =
        "Ratios between precisions have the exact interval of a common factor (rank sums).";
    let stopped = |rule| timings.iter().any(|t| t.stopped_by == rule);
    let rule = match (counts.first(), counts.last()) {
        (Some(least), Some(most)) if stopped(StopRule::Noise) || stopped(StopRule::MaxReps) => {
            let why = match stopped(StopRule::MaxReps) {
                true => "the most allowed was reached",
                false => "every median was as certain as was asked for",
            };
            let count = match least == most {
                true => least.to_string(),
                false => format!("{least} to {most}"),
            };
            format!(" Repetitions ended after {count}, when {why}.")
        }
        _ => String::new(),
    };
    match timings.is_empty() {
        true => ratios.into(),
        false => format!("{level} {ratios}{rule}"),
    }
}

fn shares_note(tables: &Tables) -> String {
    if !has_shares(tables) {
        return String::new();
    }
    let mut shares = tables.results.iter().filter_map(|row| row.mbu);
    let beyond = match shares.any(|mbu| mbu > 1.0) {
        true => ", as it does here",
        false => "",
    };
    format!(
        "Shares of what this machine can do at most, measured in this run (see Roofline). MBU, \
         memory bandwidth utilization of decoding: the bytes that a step has to read (codes and \
         scales of the blocks, output head, norms, keys and values of all positions seen) times \
         steps per second, over the memory bandwidth. MFU, model FLOP utilization of prefill: the \
         operations that the prompt needs (two per weight of the blocks and token, the head for \
         the last position, attention) per second, over the arithmetic rate. Where the weights \
         fit a cache they are not read from memory: MBU can then exceed 100 %{beyond}, and says \
         nothing about larger models."
    )
}

fn gpu_note(tables: &Tables) -> String {
    let lines: Vec<String> = tables
        .results
        .iter()
        .filter_map(|row| {
            let clock = row
                .gpu_clock_mhz_median
                .map(|mhz| format!("{} MHz", format::number(mhz, 0)));
            let throttled = row.throttled.map(|throttled| match throttled {
                true => "clock held down".to_string(),
                false => "clock free".to_string(),
            });
            let energy = row
                .joules_per_token
                .map(|joules| format!("{} J per token", format::seconds(joules)));
            let parts: Vec<String> = [clock, throttled, energy].into_iter().flatten().collect();
            (!parts.is_empty()).then(|| format!("{}: {}", label(tables, row), parts.join(", ")))
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "Read from the driver (NVML) in the timed repetitions: median clock of the \
         multiprocessors, whether power, heat or hardware held it down, and the energy of the \
         decode phase over its tokens. {}.",
        lines.join("; ")
    )
}

fn roofline_note(tables: &Tables) -> String {
    let Some(roofline) = &tables.info.roofline else {
        return String::new();
    };
    let giga = |rate: f64| format::number(rate / 1e9, format::three_digits(rate / 1e9));
    let size = |bytes: u64| {
        ByteUnit {
            decimals: 0,
            ..ByteUnit::for_largest([bytes])
        }
        .with_unit(bytes)
    };
    let threads = match roofline.threads {
        Some(1) => ", one thread".to_string(),
        Some(n) => format!(", {n} threads"),
        None => String::new(),
    };
    let caches = match roofline.last_level_cache_bytes {
        Some(bytes) => format!(" (last-level caches {})", size(bytes)),
        None => String::new(),
    };
    let rates: Vec<String> = [
        ("F32", roofline.f32_flop_s),
        ("F16 matrix products", roofline.f16_gemm_flop_s),
        ("FP8 matrix products", roofline.fp8_gemm_flop_s),
        ("INT8 matrix products", roofline.int8_gemm_op_s),
    ]
    .into_iter()
    .filter_map(|(what, rate)| Some(format!("{what} {} GFLOP/s", giga(rate?))))
    .collect();
    let arithmetic = match one_line(&roofline.arithmetic) {
        how if how.is_empty() || rates.is_empty() => rates.join(", "),
        how => format!("{} ({how})", rates.join(", ")),
    };
    format!(
        "Measured in a process of its own before the timing ({}{threads}): reading a buffer of \
         {}{caches} {} GB/s, copying it {} GB/s (bytes read and written); the better one counts. \
         Arithmetic: {arithmetic}. Best of {} passes each, {} s in all.",
        one_line(&roofline.device),
        size(roofline.buffer_bytes),
        giga(roofline.read_bytes_s),
        giga(roofline.copy_bytes_s),
        roofline.repetitions,
        format::seconds(roofline.seconds),
    )
}

fn kernels_note(tables: &Tables) -> String {
    let lines: Vec<String> = tables
        .results
        .iter()
        .filter(|r| !(r.prefill_kernel.is_empty() && r.decode_kernel.is_empty()))
        .map(|r| {
            let or_absent = |text: &str| match one_line(text) {
                text if text.is_empty() => ABSENT.to_string(),
                text => text,
            };
            let kernels = if r.prefill_kernel == r.decode_kernel {
                or_absent(&r.decode_kernel)
            } else {
                format!(
                    "{} (prefill), {} (decode)",
                    or_absent(&r.prefill_kernel),
                    or_absent(&r.decode_kernel)
                )
            };
            let activations = match r.activation_dtype.as_str() {
                "" => String::new(),
                dtype => format!(", activations {}", one_line(dtype)),
            };
            format!("{}: {kernels}{activations}", label(tables, r))
        })
        .collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!("{}.", lines.join("; ")),
    }
}

fn model_note(tables: &Tables) -> String {
    let model = &tables.info.model;
    if model.name.is_empty() {
        return String::new();
    }
    let hashes = match model.weights_sha256.as_str() {
        "" => "No weights and no tokenizer: random codes in these shapes.".into(),
        weights => format!(
            "Weights SHA-256 {}; tokenizer SHA-256 {}.",
            one_line(weights),
            one_line(&model.tokenizer_sha256)
        ),
    };
    format!(
        "{} ({}, {}), {} parameters of which {} in quantized matrices, {} layers, width {}, \
         vocabulary {}. {hashes}",
        one_line(&model.name),
        one_line(&model.architecture),
        one_line(&model.source_format),
        format::count(model.parameters),
        format::count(model.body_parameters),
        model.layers,
        format::count(model.hidden_size),
        format::count(model.vocab_size),
    )
}

fn machine_note(tables: &Tables) -> String {
    let host = &tables.info.host;
    if host.cpu.is_empty() {
        return String::new();
    }
    let mut parts = vec![one_line(&host.cpu), format!("{} cores", host.cores)];
    if !host.instruction_set.is_empty() {
        parts.push(one_line(&host.instruction_set));
    }
    for (what, bytes) in [
        ("last-level cache", host.last_level_cache_bytes),
        ("memory", host.memory_bytes),
    ] {
        if let Some(bytes) = bytes {
            let size = ByteUnit {
                decimals: if bytes < 1 << 30 { 0 } else { 1 },
                ..ByteUnit::for_largest([bytes])
            };
            parts.push(format!("{what} {}", size.with_unit(bytes)));
        }
    }
    parts.push(one_line(&format!("{} {}", host.os, host.kernel)));
    parts.extend(host.gpus.iter().map(|gpu| {
        let memory = gpu.memory_bytes.map(|bytes| {
            let size = ByteUnit {
                decimals: 0,
                ..ByteUnit::for_largest([bytes])
            };
            size.with_unit(bytes)
        });
        let power = gpu
            .power_limit_w
            .map(|watts| format!("{} W at most", format::number(watts, 0)));
        let details: Vec<String> = memory.into_iter().chain(power).collect();
        match details.is_empty() {
            true => one_line(&gpu.name),
            false => format!("{} ({})", one_line(&gpu.name), details.join(", ")),
        }
    }));
    parts.extend(
        host.gpu_driver
            .iter()
            .map(|version| format!("GPU driver {}", one_line(version))),
    );
    format!("{}.", parts.join(", "))
}
