//! The arguments of `quantbench run`, and the options that they become.

use super::compare::{BaselineArgs, ThresholdArgs};
use super::values::{bytes, seconds, share};
use crate::data::protocol::PROTOCOLS;
use crate::error::{Error, Result};
use crate::model::kv_cache::KV_FORMATS;
use crate::packed::gpu::Choice;
use crate::run::suite::Options;
use crate::run::{cache, host};
use crate::stats::medians::LEAST_FOR_LEVEL;
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the bare command measures.
const DEFAULT_PRECISIONS: &str = "fp16,fp8,int8,awq-int4,gptq-int4";
/// Timed repetitions: a fixed number, and the least with a noise to reach.
const DEFAULT_REPS: usize = 5;
/// The most with a noise to reach.
const DEFAULT_MAX_REPS: usize = 30;

#[derive(Args)]
pub(super) struct RunArgs {
    /// Hugging Face folder, GGUF file, hub:OWNER/NAME, synthetic:ID for random codes in a published
    /// model's shapes (`quantbench list shapes`), synthetic-fp16:ID for random weights that are
    /// really quantized [default: the embedded 7.3M-parameter model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// tokenizer.json to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Precision ids, comma-separated (see `quantbench list`)
    #[arg(short, long, value_delimiter = ',', default_value = DEFAULT_PRECISIONS, value_name = "IDS")]
    precisions: Vec<String>,
    /// Precision that quality differences refer to; measured for quality if not asked for
    #[arg(long, default_value = "fp16", value_name = "ID")]
    reference: String,
    /// Leave the differences empty
    #[arg(long, conflicts_with = "reference")]
    no_reference: bool,
    /// Precisions of the KV cache, comma-separated: fp16, fp32
    #[arg(long, value_delimiter = ',', default_value = KV_FORMATS[0].id(), value_name = "IDS")]
    kv: Vec<String>,
    /// Evaluation texts: names, manifests, text, JSONL or Parquet files (FILE#FIELD),
    /// comma-separated [default: all embedded]
    #[arg(short, long, value_delimiter = ',', value_name = "SETS")]
    datasets: Vec<String>,
    /// Calibration texts, likewise [default: all embedded]
    #[arg(long, value_delimiter = ',', value_name = "SETS")]
    calibration: Vec<String>,
    /// Perplexity protocols, comma-separated, optionally with window and stride (gptq-v1@512,
    /// hf-strided-v2@1024:512); the first is the one of results.csv
    #[arg(long, value_delimiter = ',', default_value = PROTOCOLS[0].values.name, value_name = "IDS")]
    protocol: Vec<String>,
    /// Tokens per evaluation window of protocols that state none; their stride is half of it
    /// [default: 512]
    #[arg(long, value_name = "TOKENS")]
    window: Option<usize>,
    /// Prompt length of the speed test
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    prompt_tokens: usize,
    /// Prompt lengths instead, comma-separated: speed and memory at each
    #[arg(
        long,
        value_delimiter = ',',
        conflicts_with = "prompt_tokens",
        value_name = "TOKENS"
    )]
    context: Vec<usize>,
    /// Tokens generated from that depth
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    gen_tokens: usize,
    /// Sequences at a time in the speed test, comma-separated: speed and memory at each
    #[arg(
        short,
        long,
        value_delimiter = ',',
        default_value = "1",
        value_name = "SEQUENCES"
    )]
    batch: Vec<usize>,
    /// Where to run: auto (a GPU if this build can use one), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Products on a GPU: the fastest kernel, or weights dequantized first whatever it costs
    #[arg(long, value_enum, default_value_t = KernelArg::Auto)]
    kernel: KernelArg,
    /// Launch every decode step's kernels one by one instead of replaying a recorded graph (GPU)
    #[arg(long)]
    no_graph: bool,
    /// Timed repetitions after a warm-up, exactly this many [default: 5]
    #[arg(short, long, value_name = "N", conflicts_with_all = ["min_reps", "max_reps", "max_noise"])]
    reps: Option<usize>,
    /// Threads [default: all cores]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Folder for the results; what an earlier run in it has measured is taken over
    #[arg(short, long, default_value = "reports/latest", value_name = "DIR")]
    out: PathBuf,
    /// Seed of bootstrap and turn order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At most this many evaluation windows in all (under each protocol), spread over the texts
    #[arg(long, value_name = "WINDOWS")]
    limit: Option<usize>,
    /// At most this many calibration windows in all, spread over the texts
    #[arg(long, value_name = "WINDOWS")]
    calibration_limit: Option<usize>,
    /// End a child process after this many seconds (its row says `timeout`)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<f64>,
    /// Bytes the measured parts may take, with K, M or G for powers of 1024 (beyond: `oom`)
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory_limit: Option<usize>,
    /// Bytes on disk for the reference's log-probabilities while the run lasts, with K, M or G:
    /// as many whole windows as fit are compared token by token (KL divergence)
    #[arg(long, default_value = "1G", value_name = "BYTES", value_parser = bytes)]
    kl_cache: usize,
    /// Compare perplexities only, not distributions
    #[arg(long)]
    no_kl: bool,
    /// Leave out the reference with rounding-sized noise that shows what lossless means
    #[arg(long)]
    no_noise_floor: bool,
    /// Print the closing table only
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Multiple-choice sets: names or JSONL files, comma-separated, or none [default: the
    /// embedded 120 items]
    #[arg(long, value_delimiter = ',', value_name = "SETS")]
    choices: Vec<String>,
    /// At most this many multiple-choice items in all, spread over the sets
    #[arg(long, value_name = "ITEMS")]
    choices_limit: Option<usize>,
    /// Repeat until the 95 % interval of every median is this narrow: half its width over the
    /// median, such as 0.02 or 2%
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_noise: Option<f64>,
    /// Timed repetitions at least, with --max-noise [default: 5]
    #[arg(long, value_name = "N", requires = "max_noise")]
    min_reps: Option<usize>,
    /// Timed repetitions at most, with --max-noise [default: 30, or --min-reps if that is more]
    #[arg(long, value_name = "N", requires = "max_noise")]
    max_reps: Option<usize>,
    /// Spread the repetitions over this many processes of each precision, one after another: what a
    /// process happens to get (pages, addresses) then shows in the scatter
    #[arg(long, default_value_t = 1, value_name = "N")]
    processes: usize,
    /// Do not measure the machine's bandwidth and arithmetic; mbu and mfu stay empty
    #[arg(long)]
    no_roofline: bool,
    /// Take turns with other runs that name this file, repetition by repetition, one at work at a
    /// time, in the order in which they came: for builds or settings that are to meet the same
    /// machine. The file is made where it is missing, and nothing is written to it
    #[arg(long, value_name = "FILE")]
    turns: Option<PathBuf>,
    /// Suite file (TOML): models, precisions, batches, ...; what is typed beside it goes before it
    #[arg(long, value_name = "FILE")]
    pub(super) suite: Option<PathBuf>,
    /// Print the cells and what the journal of the output folder has of them; measure nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Measure afresh what the journal of the output folder already has
    #[arg(long)]
    force: bool,
    /// Folder in which quantized weights outlive the run [default: QUANTBENCH_CACHE (a folder or
    /// `off`), else `quantbench` in the platform's cache folder]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    cache: Option<PathBuf>,
    /// Keep no quantized weights after the run and use none of before
    #[arg(long)]
    no_cache: bool,
    /// Bytes that the cache may hold, with K, M or G for powers of 1024; the least recently used
    /// weights go first
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "20G")]
    cache_limit: usize,
    #[command(flatten)]
    pub(super) baseline: BaselineArgs,
    #[command(flatten)]
    pub(super) thresholds: ThresholdArgs,
}

impl RunArgs {
    /// Where quantized weights are cached, if anywhere.
    fn cache_choice(&self) -> Option<cache::Choice> {
        let folder = match (&self.cache, std::env::var_os(cache::VARIABLE)) {
            _ if self.no_cache => return None,
            (Some(folder), _) => folder.clone(),
            (None, Some(word)) if word == "off" => return None,
            (None, Some(folder)) if !folder.is_empty() => folder.into(),
            _ => cache::platform_folder().unwrap_or_default(),
        };
        Some(cache::Choice {
            folder,
            limit_bytes: self.cache_limit as u64,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum KernelArg {
    Auto,
    Dequant,
}

/// Repetitions at least and at most.
fn repetitions(args: &RunArgs) -> Result<(usize, usize)> {
    if args.max_noise.is_none() {
        let reps = args.reps.unwrap_or(DEFAULT_REPS);
        return Ok((reps, reps));
    }
    let least = args.min_reps.unwrap_or(DEFAULT_REPS);
    let most = args.max_reps.unwrap_or(DEFAULT_MAX_REPS.max(least));
    let least = args.min_reps.unwrap_or(least.min(most));
    if least > most {
        return Err(Error::usage(
            format!("--min-reps {least} is more than --max-reps {most}"),
            "lower one or raise the other",
        ));
    }
    if most < LEAST_FOR_LEVEL {
        return Err(Error::usage(
            format!(
                "--max-reps {most} cannot reach any --max-noise: fewer than {LEAST_FOR_LEVEL} \
                 repetitions have no 95 % interval"
            ),
            format!("use at least --max-reps {LEAST_FOR_LEVEL}, or --reps {most} alone"),
        ));
    }
    Ok((least, most))
}

/// What a run is asked for by these arguments.
pub(super) fn options(args: &RunArgs) -> Result<Options> {
    let (reps, max_reps) = repetitions(args)?;
    Ok(Options {
        model: args.model.clone(),
        tokenizer: args.tokenizer.clone(),
        precisions: args.precisions.clone(),
        reference: (!args.no_reference).then(|| args.reference.clone()),
        kv: each_once(&args.kv),
        datasets: args.datasets.clone(),
        calibration: args.calibration.clone(),
        protocol: protocols(args)?,
        limit: args.limit,
        calibration_limit: args.calibration_limit,
        prompt_tokens: args.prompt_tokens,
        context: each_once(&args.context),
        gen_tokens: args.gen_tokens,
        batch: each_once(&args.batch),
        device: args.device.clone(),
        kernels: match args.kernel {
            KernelArg::Auto => Choice::Auto,
            KernelArg::Dequant => Choice::Dequantize,
        },
        graphs: !args.no_graph,
        reps,
        threads: args.threads.unwrap_or_else(host::cores),
        seed: args.seed,
        timeout_s: args.timeout,
        memory_limit_bytes: args.memory_limit,
        out: args.out.clone(),
        command: command_line(),
        choices: args.choices.clone(),
        choices_limit: args.choices_limit,
        kl: !args.no_kl,
        kl_cache_bytes: args.kl_cache,
        noise_floor: !args.no_noise_floor,
        max_reps,
        max_noise: args.max_noise,
        processes: args.processes,
        roofline: !args.no_roofline,
        turns: args.turns.as_deref().map(turns_file).transpose()?,
        force: args.force,
        cache: args.cache_choice(),
        narrowed: BTreeMap::new(),
        compare: toml::Table::new(),
    })
}

/// The same for everyone who names the file, wherever they are started.
fn turns_file(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(path, e, "name a file with --turns"))
}

/// The protocols, with the window of `--window` where they state none.
fn protocols(args: &RunArgs) -> Result<Vec<String>> {
    let Some(window) = args.window else {
        return Ok(args.protocol.clone());
    };
    if args.protocol.iter().all(|id| id.contains('@')) {
        return Err(Error::usage(
            format!(
                "--protocol {} already says its window, and --window says {window}",
                args.protocol.join(",")
            ),
            "give one of the two",
        ));
    }
    let with_window = |id: &String| match id.contains('@') {
        true => id.clone(),
        false => format!("{id}@{window}"),
    };
    Ok(args.protocol.iter().map(with_window).collect())
}

/// The values of a list in order, without repetitions.
fn each_once<T: Clone + PartialEq>(list: &[T]) -> Vec<T> {
    let mut once: Vec<T> = vec![];
    for value in list {
        if !once.contains(value) {
            once.push(value.clone());
        }
    }
    once
}

/// The command as typed, without the folder that the program stands in.
fn command_line() -> String {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let program = args.next().unwrap_or_default();
    let program = Path::new(&program)
        .file_name()
        .map_or("quantbench".into(), |n| n.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}
