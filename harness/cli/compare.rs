//! `quantbench compare`, and the baselines of `quantbench run`.

use super::exit::{EXIT_CELL_FAILED, EXIT_OK};
use crate::compare::thresholds::Percent;
use crate::compare::{self, Comparison, Outcome, Side, Thresholds, baseline, render};
use crate::record::tables::write_whole;
use crate::say;
use crate::{Error, Result};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct CompareArgs {
    /// BASE and NEW: folders that each hold a run, or runs in subfolders that are matched by name.
    /// NEW alone with --baseline, or to be saved
    #[arg(required = true, num_args = 1..=2, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// The subfolders of BASE are one run made several times, and so are those of NEW: speeds are
    /// judged by how much the runs themselves scatter
    #[arg(long)]
    repeated: bool,
    #[command(flatten)]
    baseline: BaselineArgs,
    /// How to show the comparison
    #[arg(long, value_enum, default_value_t = Format::Terminal)]
    format: Format,
    /// Write it to this file instead
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    thresholds: ThresholdArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Terminal,
    Markdown,
    Json,
    Junit,
}

#[derive(Args)]
#[command(next_help_heading = "Baselines")]
pub(super) struct BaselineArgs {
    /// Compare with this named baseline; the exit code is the comparison's
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Keep the new run under this name, unless something is wrong with it
    #[arg(long, value_name = "NAME")]
    save_baseline: Option<String>,
    /// Folder of the named baselines
    #[arg(long, default_value = "reports/baselines", value_name = "DIR")]
    baselines: PathBuf,
}

#[derive(Args)]
#[command(next_help_heading = "What a comparison fails on")]
pub(super) struct ThresholdArgs {
    /// TOML file whose [compare] table sets what follows
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
    /// Perplexity, per protocol [default: 0.3%]
    #[arg(long, value_name = "PERCENT")]
    max_perplexity_increase: Option<Percent>,
    /// Mean KL divergence to the reference [default: 10%]
    #[arg(long, value_name = "PERCENT")]
    max_kl_increase: Option<Percent>,
    /// Prefill tokens per second [default: 5%]
    #[arg(long, value_name = "PERCENT")]
    max_prefill_decrease: Option<Percent>,
    /// Decode tokens per second [default: 5%]
    #[arg(long, value_name = "PERCENT")]
    max_decode_decrease: Option<Percent>,
    /// Peak memory [default: 1%]
    #[arg(long, value_name = "PERCENT")]
    max_memory_increase: Option<Percent>,
    /// Changes of a mean KL divergence up to so many nats are none, nor are those up to the noise
    /// floor of the base [default: 0.000001]
    #[arg(long, value_name = "NATS")]
    kl_floor: Option<f64>,
    /// Standard deviation of a median speed between runs of one build [default: 2%]
    #[arg(long, value_name = "PERCENT")]
    run_noise: Option<Percent>,
    /// Chance of any alarm between two equal builds [default: 1%]
    #[arg(long, value_name = "PERCENT")]
    false_alarms: Option<Percent>,
}

impl ThresholdArgs {
    /// The values of the file, else of the suite file, or the defaults, with those of the command
    /// line over them.
    fn read(&self, suite: Option<&Path>) -> Result<Thresholds> {
        let t = match self.thresholds.as_deref().or(suite) {
            Some(file) => Thresholds::read(file)?,
            None => Thresholds::default(),
        };
        self.over(t)
    }

    /// Those of the command line over `t`.
    fn over(&self, mut t: Thresholds) -> Result<Thresholds> {
        for (value, given) in [
            (&mut t.max_perplexity_increase, self.max_perplexity_increase),
            (&mut t.max_kl_increase, self.max_kl_increase),
            (&mut t.max_prefill_decrease, self.max_prefill_decrease),
            (&mut t.max_decode_decrease, self.max_decode_decrease),
            (&mut t.max_memory_increase, self.max_memory_increase),
            (&mut t.run_noise, self.run_noise),
            (&mut t.false_alarms, self.false_alarms),
        ] {
            *value = given.unwrap_or(*value);
        }
        t.kl_floor_nats = self.kl_floor.unwrap_or(t.kl_floor_nats);
        t.checked()
    }
}

impl BaselineArgs {
    /// Refuses names that are none before anything is measured or compared.
    fn check(&self) -> Result<()> {
        [&self.baseline, &self.save_baseline]
            .into_iter()
            .flatten()
            .try_for_each(|name| baseline::folder(&self.baselines, name).map(|_| ()))
    }

    fn save(&self, run: &Path, code: i32) -> Result<()> {
        let Some(name) = &self.save_baseline else {
            return Ok(());
        };
        match code {
            EXIT_OK => {
                let folder = baseline::save(run, &self.baselines, name)?;
                say::aside(format_args!("baseline `{name}`: {}\n", folder.display()));
            }
            code => say::aside(format_args!(
                "baseline `{name}` was not saved, since the exit code is {code}; to keep this run \
                 all the same:\n  quantbench compare --save-baseline {name} --baselines {} {}\n",
                self.baselines.display(),
                run.display()
            )),
        }
        Ok(())
    }
}

/// The base's side, or the exit code for one that is missing or damaged.
fn base(side: Result<Side>) -> std::result::Result<Side, i32> {
    side.map_err(|error| {
        say::aside(format_args!(
            "error: no baseline to compare with: {error}\n"
        ));
        Outcome::NotComparable.exit_code()
    })
}

pub(super) fn run(args: &CompareArgs) -> Result<i32> {
    args.baseline.check()?;
    let (base_dir, new) = match (args.dirs.as_slice(), &args.baseline.baseline) {
        ([base, new], None) => (Some(base.clone()), new),
        ([new], Some(name)) => {
            let base = baseline::folder(&args.baseline.baselines, name)?;
            (Some(base), new)
        }
        ([new], None) if args.baseline.save_baseline.is_some() => (None, new),
        ([_, _], Some(_)) => {
            return Err(Error::usage(
                "two folders and --baseline: one base too many",
                "leave out the first folder, or --baseline",
            ));
        }
        _ => {
            return Err(Error::usage(
                "one folder, and nothing to compare it with",
                "give BASE and NEW, or --baseline NAME and NEW",
            ));
        }
    };
    let read = match args.repeated {
        true => Side::read_repeated,
        false => Side::read,
    };
    let side = read(new)?;
    let stored = match args.thresholds.thresholds {
        Some(_) => None,
        None => side.first().map(Thresholds::stored).transpose()?.flatten(),
    };
    let thresholds = match stored {
        Some(stored) => args.thresholds.over(stored)?,
        None => args.thresholds.read(None)?,
    };
    let code = match base_dir {
        None => EXIT_OK,
        Some(dir) => {
            let base = match base(read(&dir)) {
                Ok(base) => base,
                Err(code) => return Ok(code),
            };
            let comparison = compare::compare(&base, &side, &thresholds);
            let text = match args.format {
                Format::Terminal => render::terminal(&comparison),
                Format::Markdown => render::markdown(&comparison),
                Format::Json => render::json(&comparison),
                Format::Junit => render::junit(&comparison),
            };
            match &args.output {
                Some(file) => write(file, text.as_bytes())?,
                None => say::out(format_args!("{text}")),
            }
            comparison.exit_code
        }
    };
    args.baseline.save(new, code)?;
    Ok(code)
}

/// Writes a comparison: whole or not at all, but into what is no plain file as it is (a device, a
/// pipe, what a link points to), rather than putting a file in its place.
fn write(file: &Path, text: &[u8]) -> Result<()> {
    match std::fs::symlink_metadata(file) {
        Ok(found) if !found.is_file() => std::fs::write(file, text)
            .map_err(|e| Error::io(file, e, "name another file with --output")),
        _ => write_whole(file, text),
    }
}

/// What follows a run: the comparison with a baseline, and saving one.
pub(super) struct Gate<'a> {
    args: &'a BaselineArgs,
    base: Option<Side>,
    thresholds: Thresholds,
}

impl<'a> Gate<'a> {
    /// Reads the baseline before the run: a missing one shall not cost the hours of measuring, and
    /// the run may be about to replace it. The inner error is an exit code.
    pub(super) fn prepare(
        args: &'a BaselineArgs,
        thresholds: &ThresholdArgs,
        suite: Option<&Path>,
    ) -> Result<std::result::Result<Self, i32>> {
        args.check()?;
        let thresholds = thresholds.read(suite)?;
        let base = match &args.baseline {
            Some(name) => match base(Side::read(&baseline::folder(&args.baselines, name)?)) {
                Ok(base) => Some(base),
                Err(code) => return Ok(Err(code)),
            },
            None => None,
        };
        Ok(Ok(Gate {
            args,
            base,
            thresholds,
        }))
    }

    /// The exit code of the run in `out`, which ended with `code`.
    pub(super) fn conclude(&self, out: &Path, code: i32) -> Result<i32> {
        let code = match &self.base {
            Some(base) => {
                let comparison: Comparison =
                    compare::compare(base, &Side::read(out)?, &self.thresholds);
                say::out(format_args!("\n{}", render::terminal(&comparison)));
                match comparison.exit_code {
                    // Stopped before its end, or a cell that has failed in the base too.
                    EXIT_OK if code != EXIT_OK => EXIT_CELL_FAILED,
                    code => code,
                }
            }
            None => code,
        };
        self.args.save(out, code)?;
        Ok(code)
    }
}
