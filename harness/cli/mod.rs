//! The command line: the only place that prints and that chooses exit codes.

mod args;
mod compare;
mod exit;
mod history;
mod list;
mod report;
mod run;
mod suite;
mod values;

use self::args::RunArgs;
use self::exit::{EXIT_OK, EXIT_USAGE};
use self::list::Listed;
use crate::run::child::WORKER;
use crate::run::worker;
use crate::say;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;

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
        None => run::run(&cli.run, &matches),
        Some(Command::Run(args)) => {
            run::run(&args, matches.subcommand_matches("run").unwrap_or(&matches))
        }
        Some(Command::List { what }) => list::list(what),
        Some(Command::Report { dir }) => report::render(&dir),
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::History(args)) => history::run(&args),
    };
    result.unwrap_or_else(|error| {
        say::aside(format_args!("error: {error}\n"));
        EXIT_USAGE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
