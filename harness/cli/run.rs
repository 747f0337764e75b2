//! `quantbench run`: one run, or one for each model of a suite file.

use super::args::{RunArgs, options};
use super::compare::Gate;
use super::exit::{EXIT_CELL_FAILED, EXIT_OK};
use super::suite::{self, Part};
use crate::error::Result;
use crate::report::{self, Rendered};
use crate::run::progress::Progress;
use crate::run::suite::{self as runs, Finished, Options, Plan};
use crate::say;
use clap::ArgMatches;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Measures what the arguments, of which `typed` were typed, ask for; the exit code.
pub(super) fn run(args: &RunArgs, typed: &ArgMatches) -> Result<i32> {
    let parts = match &args.suite {
        Some(path) => suite::parts(path, typed)?,
        None => vec![Part {
            name: String::new(),
            options: options(args)?,
        }],
    };
    let suite = args.suite.as_deref();
    let gate = match Gate::prepare(&args.baseline, &args.thresholds, suite)? {
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
