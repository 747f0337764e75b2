//! The command line: the only place that prints and that chooses exit codes.

mod compare;
mod history;
mod suite;

use self::suite::Part;
use crate::data;
use crate::error::{Error, Result};
use crate::measure::medians::LEAST_FOR_LEVEL;
use crate::model::kv_cache::KV_PRECISIONS;
use crate::model::synthetic;
use crate::packed::gpu::Choice;
use crate::report::{self, Rendered};
use crate::run::child::WORKER;
use crate::run::progress::Progress;
use crate::run::suite::{self as runs, Finished, Options, Plan};
use crate::run::{cache, host, worker};
use crate::say;
use crate::{data::protocol::PROTOCOLS, quant};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// All cells fine.
const EXIT_OK: i32 = 0;
/// Wrong arguments or configuration.
const EXIT_USAGE: i32 = 2;
/// Some cell has no result; the report was written all the same.
const EXIT_CELL_FAILED: i32 = 3;

/// What the bare command measures.
const DEFAULT_PRECISIONS: &str = "fp16,fp8,int8,awq-int4,gptq-int4";
/// Timed repetitions: a fixed number, and the least with a noise to reach.
const DEFAULT_REPS: usize = 5;
/// The most with a noise to reach.
const DEFAULT_MAX_REPS: usize = 30;

#[derive(Parser)]
#[command(
    name = "quantbench",
    version,
    about = "Measures quality, memory and speed of one language model across precisions",
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        quantbench                                    the embedded model at five precisions\n  \
        quantbench run --model DIR                    a Hugging Face folder\n  \
        quantbench run --model FILE.gguf --limit 40   a GGUF file, 40 evaluation windows\n  \
        quantbench run --precisions fp16,gptq-int3,awq-int3-g64\n  \
        quantbench run --model synthetic:llama-2-7b   memory and speed in a model's shapes\n  \
        quantbench run --batch 1,4,16 --context 512,2048\n  \
        quantbench run --protocol gptq-v1@2048,llamacpp-v1@512\n  \
        quantbench list                               what --precisions, --datasets, ... take\n  \
        quantbench run --suite FILE.toml --dry-run    what a suite file would measure\n  \
        quantbench report DIR                         render a run's files again\n  \
        quantbench compare BASE NEW                   fail where NEW is worse than BASE\n\n\
        Exit codes: 0 all fine, 1 regression (compare), 2 wrong usage or input, 3 some precision \
        has no result, 4 baseline missing or not comparable"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a model (also what the bare command does)
    Run(Box<RunArgs>),
    /// Show what can be measured: precisions, datasets, shapes, protocols
    List {
        /// Only this list
        what: Option<Listed>,
    },
    /// Render the report of a run again from its files alone
    Report {
        /// Folder with results.csv and run.json
        dir: PathBuf,
    },
    /// Compare two runs, or two folders of runs, and fail where one got worse
    Compare(Box<compare::CompareArgs>),
    /// Append runs to the history, and draw its trend
    History(history::HistoryArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Listed {
    Precisions,
    Datasets,
    Shapes,
    Protocols,
    Kv,
    Plots,
}

#[derive(Args)]
struct RunArgs {
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
    #[arg(long, value_delimiter = ',', default_value = KV_PRECISIONS[0].id, value_name = "IDS")]
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
    quiet: bool,
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
    suite: Option<PathBuf>,
    /// Print the cells and what the journal of the output folder has of them; measure nothing
    #[arg(long)]
    dry_run: bool,
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
    baseline: compare::BaselineArgs,
    #[command(flatten)]
    thresholds: compare::ThresholdArgs,
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
enum KernelArg {
    Auto,
    Dequant,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        // A year is longer than any run and still fits every clock.
        Ok(s) if s > 0.0 && s <= 366.0 * 86400.0 => Ok(s),
        _ => Err("expected a positive number of seconds".into()),
    }
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent, 0.01),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(share) if share > 0.0 && share * unit < 1.0 => Ok(share * unit),
        _ => Err("expected a share between 0 and 1, such as 0.02 or 2%".into()),
    }
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

fn bytes(text: &str) -> std::result::Result<usize, String> {
    let expected = || "expected a positive number of bytes, such as 12M or 1500000".to_string();
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(['b', 'i']);
    let (digits, factor) = match digits.strip_suffix(['k', 'm', 'g']) {
        Some(rest) => (
            rest,
            match digits.as_bytes()[rest.len()] {
                b'k' => 1usize << 10,
                b'm' => 1 << 20,
                _ => 1 << 30,
            },
        ),
        None => (digits, 1),
    };
    let number: usize = digits.trim().parse().map_err(|_| expected())?;
    number
        .checked_mul(factor)
        .filter(|n| *n > 0)
        .ok_or_else(expected)
}

/// The program: parses the command line, runs it and returns the exit code.
pub fn main() -> i32 {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|a| a == WORKER) && args.next().is_none() {
        return worker::main();
    }
    let parsed = Cli::command()
        .try_get_matches()
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { EXIT_USAGE } else { EXIT_OK };
        }
    };
    let result = match cli.command {
        None => run(&cli.run, &matches),
        Some(Command::Run(args)) => {
            run(&args, matches.subcommand_matches("run").unwrap_or(&matches))
        }
        Some(Command::List { what }) => list(what),
        Some(Command::Report { dir }) => render(&dir),
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::History(args)) => history::run(&args),
    };
    result.unwrap_or_else(|error| {
        say::aside(format_args!("error: {error}\n"));
        EXIT_USAGE
    })
}

fn run(args: &RunArgs, typed: &ArgMatches) -> Result<i32> {
    let parts = match &args.suite {
        Some(path) => suite::parts(path, typed)?,
        None => vec![Part {
            name: String::new(),
            options: options(args)?,
        }],
    };
    let suite = args.suite.as_deref();
    let gate = match compare::Gate::prepare(&args.baseline, &args.thresholds, suite)? {
        Ok(gate) => gate,
        Err(code) => return Ok(code),
    };
    if args.dry_run {
        return dry_run(&parts);
    }
    let progress = Progress::detect(args.quiet);
    let interrupted = stop_on_signal();
    if let [only] = &parts[..] {
        let code = run_part(only, progress, &interrupted)?;
        return gate.conclude(&only.options.out, code);
    }
    // A mistake about the last model shows before the first is measured.
    for part in &parts {
        runs::check_inputs(&part.options)?;
    }
    let top = parts[0].options.out.parent().unwrap_or(Path::new("."));
    report::runs::check(top)?;
    let mut code = EXIT_OK;
    let mut folders = vec![];
    for part in &parts {
        say::out(format_args!("{}:\n", part.name));
        code = code.max(run_part(part, progress, &interrupted)?);
        folders.push(part.name.clone());
        if interrupted.load(SeqCst) {
            break;
        }
    }
    let page = report::runs::write(top, &folders)?;
    progress.note(&format!("all models: {}", page.display()));
    gate.conclude(top, code)
}

fn run_part(part: &Part, progress: Progress, interrupted: &AtomicBool) -> Result<i32> {
    let options = &part.options;
    let finished = runs::run(options, progress, interrupted)?;
    let rendered = report::render(&options.out);
    // What was measured is shown even where no page of it can be written.
    say::out(format_args!(
        "{}",
        report::terminal::summary(&finished.tables)
    ));
    say_where(&rendered?, progress);
    Ok(exit_code(options, &finished))
}

/// Prints what would be measured, and what is there already.
fn dry_run(parts: &[Part]) -> Result<i32> {
    const HEAD: [&str; 6] = [
        "model",
        "precision",
        "kv",
        "batch",
        "context",
        "in the journal",
    ];
    let plans: Vec<Plan> = parts
        .iter()
        .map(|part| runs::plan(&part.options))
        .collect::<Result<_>>()?;
    let mut rows = vec![HEAD.map(String::from)];
    let (mut count, mut done) = (0, 0);
    for plan in &plans {
        for warning in &plan.warnings {
            say::aside(format_args!("warning: {warning}\n"));
        }
        for cell in &plan.cells {
            count += 1;
            done += usize::from(cell.is_done());
            rows.push([
                plan.model.clone(),
                cell.precision.clone(),
                cell.kv_cache.clone(),
                cell.batch.to_string(),
                cell.prompt_tokens.to_string(),
                cell.progress(),
            ]);
        }
    }
    let widths: [usize; HEAD.len()] =
        std::array::from_fn(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or(0));
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        say::out(format_args!("{}\n", cells.join("  ").trim_end()));
    }
    say::out(format_args!("{count} cells, {done} of them done\n"));
    Ok(EXIT_OK)
}

fn options(args: &RunArgs) -> Result<Options> {
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

/// Raised by the first Ctrl-C (or a request to end); the second ends the program at once.
fn stop_on_signal() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    // A second call in one process fails; the first handler then stays, which is as good.
    let _ = ctrlc::set_handler(move || {
        if seen.swap(true, SeqCst) {
            std::process::exit(130);
        }
    });
    flag
}

fn say_where(rendered: &Rendered, progress: Progress) {
    progress.note(&format!("report: {}", rendered.html.display()));
}

fn exit_code(options: &Options, finished: &Finished) -> i32 {
    if finished.interrupted {
        say::aside(format_args!(
            "Stopped. What was finished is in {}.\nRun the same command again to go on from there.\n",
            options.out.display()
        ));
    }
    if finished.interrupted || finished.failed() {
        EXIT_CELL_FAILED
    } else {
        EXIT_OK
    }
}

fn list(what: Option<Listed>) -> Result<i32> {
    let wanted = |listed| what.is_none_or(|w| w == listed);
    let mut sections: Vec<(&str, Vec<(String, String)>)> = vec![];
    if wanted(Listed::Precisions) {
        let rows = quant::families()
            .flat_map(|f| f.ids)
            .chain(quant::BY_PATH)
            .map(|l| (l.id.into(), l.about.into()))
            .collect();
        sections.push(("Precisions", rows));
    }
    if wanted(Listed::Datasets) {
        let mut rows = vec![];
        for set in data::embedded()? {
            let m = set.manifest;
            let about = format!(
                "{}: {} ({} bytes, {})",
                m.kind,
                m.title,
                set.text.len(),
                m.licence
            );
            rows.push((m.name, about));
        }
        for m in data::public()? {
            let id = m.hub.map_or_else(String::new, |hub| hub.id);
            let about = format!("{}: {} (hub {id}, {})", m.kind, m.title, m.licence);
            rows.push((m.name, about));
        }
        sections.push(("Datasets", rows));
    }
    if wanted(Listed::Shapes) {
        let rows = synthetic::shapes()?
            .iter()
            .map(|shape| (format!("synthetic:{}", shape.id), about_shape(shape)))
            .collect();
        sections.push(("Shapes", rows));
    }
    if wanted(Listed::Protocols) {
        let rows = PROTOCOLS
            .iter()
            .map(|p| (p.id.into(), p.summary.into()))
            .collect();
        sections.push(("Protocols", rows));
    }
    if wanted(Listed::Kv) {
        let rows = KV_PRECISIONS
            .iter()
            .map(|k| (k.id.into(), "KV cache kept at this precision".into()))
            .collect();
        sections.push(("KV caches", rows));
    }
    if wanted(Listed::Plots) {
        let rows = report::plots::PLOTS
            .iter()
            .map(|p| (p.name.into(), p.title.into()))
            .collect();
        sections.push(("Plots", rows));
    }
    for (i, (title, rows)) in sections.iter().enumerate() {
        if i > 0 {
            say::out(format_args!("\n"));
        }
        say::out(format_args!("{title}\n"));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, summary) in rows {
            say::out(format_args!("  {name:<0$} {summary}\n", width.max(20)));
        }
    }
    Ok(EXIT_OK)
}

fn about_shape(shape: &synthetic::Shape) -> String {
    let parameters = shape.parameters() as f64;
    format!(
        "{}: {:.2} B parameters, {:.1} GiB in FP16",
        shape.model,
        parameters / 1e9,
        2.0 * parameters / f64::from(1 << 30)
    )
}

fn render(dir: &Path) -> Result<i32> {
    if !dir.is_dir() {
        return Err(Error::usage(
            format!("{} is not a folder", dir.display()),
            "name the folder of a run, such as reports/latest",
        ));
    }
    let folders = report::runs::below(dir);
    if dir.join("run.json").exists() || folders.is_empty() {
        let rendered = report::render(dir)?;
        say::out(format_args!(
            "{}",
            report::terminal::summary(&report::Tables::read(dir)?)
        ));
        say::out(format_args!("{}\n", rendered.html.display()));
        return Ok(EXIT_OK);
    }
    for folder in &folders {
        report::render(&dir.join(folder))?;
    }
    say::out(format_args!(
        "{}\n",
        report::runs::write(dir, &folders)?.display()
    ));
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        for (text, n) in [
            ("1500", 1500),
            ("12M", 12 << 20),
            ("12MiB", 12 << 20),
            ("3k", 3 << 10),
            ("2 GB", 2 << 30),
        ] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        for bad in ["", "0", "-1", "M", "1T", "99999999999G", "1.5M"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for (text, s) in [("0.02", 0.02), ("2%", 0.02), ("1.5 %", 0.015)] {
            assert!((share(text).unwrap() - s).abs() < 1e-12, "{text}");
        }
        for bad in ["0", "-1", "1", "100%", "nan", "x", "%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["0", "-1", "nan", "inf", "x", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
