//! The command line: the only place that prints and that chooses exit codes.

use crate::data::{self, Kind};
use crate::error::{Error, Result};
use crate::model::kv_cache::KV_PRECISIONS;
use crate::model::synthetic;
use crate::packed::gpu::Choice;
use crate::report::{self, Rendered, record::Status};
use crate::run::child::WORKER;
use crate::run::progress::Progress;
use crate::run::suite::{self, Finished, Options};
use crate::run::{host, worker};
use crate::{data::protocol::PROTOCOLS, quant};
use clap::{Args, Parser, Subcommand, ValueEnum};
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
        quantbench list                               what --precisions, --datasets, ... take\n  \
        quantbench report DIR                         render a run's files again\n\n\
        Exit codes: 0 all fine, 2 wrong usage or input, 3 some precision has no result"
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
    /// Hugging Face folder, GGUF file, or synthetic:ID for random codes in a published model's
    /// shapes (`quantbench list shapes`), synthetic-fp16:ID for random weights that are really
    /// quantized [default: the embedded 7.3M-parameter model]
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
    /// Evaluation texts: names, text files or manifests, comma-separated [default: all embedded]
    #[arg(short, long, value_delimiter = ',', value_name = "SETS")]
    datasets: Vec<String>,
    /// Calibration texts, likewise [default: all embedded]
    #[arg(long, value_delimiter = ',', value_name = "SETS")]
    calibration: Vec<String>,
    /// Perplexity protocol, optionally with its window (gptq-v1@512)
    #[arg(long, default_value = "gptq-v1", value_name = "ID")]
    protocol: String,
    /// Tokens per evaluation window [default: 512]
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
    /// Timed repetitions after a warm-up
    #[arg(short, long, default_value_t = 5)]
    reps: usize,
    /// Threads [default: all cores]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Folder for the results; an earlier run in it is replaced
    #[arg(short, long, default_value = "reports/latest", value_name = "DIR")]
    out: PathBuf,
    /// Seed of bootstrap and turn order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At most this many evaluation windows in all, spread over the texts
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
    /// Print the closing table only
    #[arg(short, long)]
    quiet: bool,
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { EXIT_USAGE } else { EXIT_OK };
        }
    };
    let result = match cli.command {
        None => run(&cli.run),
        Some(Command::Run(args)) => run(&args),
        Some(Command::List { what }) => list(what),
        Some(Command::Report { dir }) => render(&dir),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        EXIT_USAGE
    })
}

fn run(args: &RunArgs) -> Result<i32> {
    let options = options(args)?;
    let progress = Progress::detect(args.quiet);
    let interrupted = stop_on_signal();
    let finished = suite::run(&options, progress, &interrupted)?;
    let rendered = report::render(&options.out)?;
    print!("{}", report::terminal::summary(&finished.tables));
    say_where(&rendered, progress);
    Ok(exit_code(&options, &finished))
}

fn options(args: &RunArgs) -> Result<Options> {
    let protocol = match (args.window, args.protocol.contains('@')) {
        (Some(window), false) => format!("{}@{window}", args.protocol),
        (None, _) => args.protocol.clone(),
        (Some(window), true) => {
            return Err(Error::usage(
                format!(
                    "--protocol {} already says its window, and --window says {window}",
                    args.protocol
                ),
                "give one of the two",
            ));
        }
    };
    Ok(Options {
        model: args.model.clone(),
        tokenizer: args.tokenizer.clone(),
        precisions: args.precisions.clone(),
        reference: (!args.no_reference).then(|| args.reference.clone()),
        kv: each_once(&args.kv),
        datasets: args.datasets.clone(),
        calibration: args.calibration.clone(),
        protocol,
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
        reps: args.reps,
        threads: args.threads.unwrap_or_else(host::cores),
        seed: args.seed,
        timeout_s: args.timeout,
        memory_limit_bytes: args.memory_limit,
        out: args.out.clone(),
        command: command_line(),
    })
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
    let mut args = std::env::args();
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
        let unmeasured = finished.tables.results.iter();
        let unmeasured = unmeasured.filter(|r| r.perplexity.is_none() && r.status != Status::Ok);
        let left: Vec<&str> = unmeasured.map(|r| r.precision.as_str()).collect();
        let left = each_once(&left);
        let what = if left.is_empty() {
            "Only the timing is missing: run the same command again to have it.".to_string()
        } else {
            format!(
                "To go on, measure the rest into a folder of its own:\n  \
                 quantbench run --precisions {} --out {}-rest",
                left.join(","),
                options.out.display()
            )
        };
        eprintln!(
            "Stopped. What was finished is in {}.\n{what}",
            options.out.display()
        );
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
            .map(|l| (l.id.into(), l.about.into()))
            .collect();
        sections.push(("Precisions", rows));
    }
    if wanted(Listed::Datasets) {
        let mut rows = vec![];
        for kind in [Kind::Evaluation, Kind::Calibration] {
            for set in data::select(&[], kind)? {
                let m = set.manifest;
                rows.push((
                    m.name,
                    format!(
                        "{kind}: {} ({} bytes, {})",
                        m.title,
                        set.text.len(),
                        m.licence
                    ),
                ));
            }
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
            println!();
        }
        println!("{title}");
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, summary) in rows {
            println!("  {name:<0$} {summary}", width.max(20));
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
    let rendered = report::render(dir)?;
    println!("{}", rendered.html.display());
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
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
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["0", "-1", "nan", "inf", "x", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
