//! A run: every precision of one model, each finished cell on disk at once.

mod cell;
mod choices;
mod differences;
mod divergence;
mod measuring;
mod options;
mod pieces;
mod plan;
mod prepare;
mod roofline;
mod rows;
mod scoring;
mod speed_pairs;
mod sweep;
mod telemetry;
mod texts;
mod timing;
mod weights;

pub use options::{Narrowed, Options, check_inputs};
pub use plan::{Plan, Planned, plan};
pub use texts::CALIBRATION_WINDOW;

use self::cell::Cell;
use self::choices::ChoiceSet;
use self::differences::Differences;
use self::options::{Methods, check};
use self::prepare::{prepare_folder, take_over, unsupported};
use self::scoring::Scoring;
use self::weights::Shelf;
use super::child::Ending;
use super::job::{DivergenceJob, Place, Subject};
use super::journal::Journal;
use super::keys::Keys;
use super::progress::Progress;
use super::turns::Participant;
use crate::data::protocol::Protocol;
use crate::formats as sources;
use crate::measure::speed::Workload;
use crate::measure::telemetry::Telemetry;
use crate::model::config::Config;
use crate::record::Tables;
use crate::record::rows::{SpeedPairRow, Status};
use crate::record::run_info::{RunInfo, TextInfo};
use crate::record::warning::Warning;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How a run ended.
pub struct Finished {
    pub tables: Tables,
    pub interrupted: bool,
}

impl Finished {
    /// Whether some cell has no result.
    pub fn failed(&self) -> bool {
        self.tables.results.iter().any(|r| r.status != Status::Ok)
    }
}

/// Everything that a run needs, prepared before the first child starts.
struct Suite<'a> {
    options: &'a Options,
    /// Held all along, and handed over before every repetition.
    turn: Option<Participant>,
    keys: Keys,
    /// Before the journal: its folder goes while that is still locked.
    shelf: Shelf,
    journal: Journal,
    place: Place,
    config: Config,
    /// Whether there are weights to quantize and texts to score.
    has_weights: bool,
    protocols: Vec<Protocol>,
    /// Every batch with every context, in the order of the rows.
    workloads: Vec<Workload>,
    /// Evaluation texts; [`Scoring::texts`] holds them once per protocol.
    texts: Vec<TextInfo>,
    scoring: Scoring,
    calibration: Vec<Vec<u32>>,
    choices: Vec<ChoiceSet>,
    reference: Option<String>,
    info: RunInfo,
    progress: Progress,
    interrupted: &'a AtomicBool,
    started: Instant,
    cells: Vec<Cell>,
    /// Of the GPU that is timed, if it is one that can be asked.
    telemetry: Option<Telemetry>,
    /// Warnings of the model's source and of the texts, for every row.
    common_warnings: Vec<Warning>,
    /// What is compared with the reference token by token, if anything is.
    divergence: Option<DivergenceJob>,
    differences: Differences,
    /// Empty until everything is timed.
    speed_pairs: Vec<SpeedPairRow>,
    /// What a test multiplies times by; every row then says so.
    time_factors: Option<String>,
}

/// Runs everything. [`Error`]s are wrong arguments or unusable inputs; failures of single cells
/// are rows.
pub fn run(options: &Options, progress: Progress, interrupted: &AtomicBool) -> Result<Finished> {
    check(options)?;
    let methods = Methods::of(options)?;
    let join = |path: &PathBuf| Participant::join(path, progress);
    let turn = options.turns.as_ref().map(join).transpose()?;
    let journal = prepare_folder(options, progress)?;
    let mut suite = match sources::open(options.model.as_deref()) {
        Ok(source) => Suite::prepare(
            options,
            source.as_ref(),
            methods,
            journal,
            progress,
            interrupted,
        )?,
        // A checkpoint that is real but not ours to run: every cell says so.
        Err(error @ Error::Unsupported { .. }) => {
            return unsupported(options, &methods, &error.to_string());
        }
        Err(error) => return Err(error),
    };
    suite.turn = turn;
    suite.shelf = Shelf::open(&options.out, options.cache.as_ref(), progress)?;
    take_over(options)?;
    suite.write(false)?;
    let mut going = true;
    for i in suite.measuring_order() {
        going = going && suite.measure_cell(i)?;
        if !going {
            suite.cells[i].fail(&Ending {
                status: Status::Skipped,
                message: "stopped by the user".into(),
            });
        }
        suite.write(false)?;
    }
    if going {
        going = suite.time_cells()?;
    }
    suite.write(going)?;
    if let Some(line) = suite.reused_line() {
        progress.note(&line);
    }
    Ok(Finished {
        tables: suite.tables(going),
        interrupted: !going,
    })
}

/// Now, as records show it.
fn timestamp() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Suite<'_> {
    /// The first cell of the same precision.
    fn first_of(&self, i: usize) -> usize {
        let same = |cell: &Cell| cell.id == self.cells[i].id;
        self.cells.iter().position(same).unwrap_or(i)
    }

    /// What the children of a cell run.
    fn subject(&self, i: usize) -> Subject {
        let cell = &self.cells[i];
        match self.has_weights {
            true => Subject::Packed(self.shelf.file(&cell.id)),
            false => Subject::Synthetic {
                config: self.config.clone(),
                precision: cell.id.clone(),
                seed: self.options.seed,
            },
        }
    }

    fn timeout(&self) -> Option<Duration> {
        self.options.timeout_s.map(Duration::from_secs_f64)
    }

    /// Records a doubt that is about the run or its machine, not about a row.
    fn doubt_run(&mut self, warning: Warning) {
        self.info.warnings.push(warning.to_string());
        self.info.machine_warnings.push(warning);
    }

    fn write(&self, complete: bool) -> Result<()> {
        self.tables(complete).write(&self.options.out)
    }
}
