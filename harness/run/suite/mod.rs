//! A run: every precision of one model, each finished cell on disk at once.

mod cell;
mod choices;
mod differences;
mod divergence;
mod pieces;
mod plan;
mod roofline;
mod rows;
mod scoring;
mod speed_pairs;
mod sweep;
mod telemetry;
mod texts;
mod timing;
mod weights;

pub use plan::{Plan, Planned, plan};
pub use texts::CALIBRATION_WINDOW;

use self::cell::{Cell, Point, State, Step};
use self::choices::ChoiceSet;
use self::differences::Differences;
use self::pieces::Teller;
use self::scoring::Scoring;
use self::telemetry::Watched;
use self::texts::{Texts, windows_of};
use self::weights::Shelf;
use super::altered;
use super::cache;
use super::child::{Ending, Outcome};
use super::host;
use super::job::{DivergenceJob, Event, Job, MeasureJob, Place, Subject};
use super::journal::{Began, Journal};
use super::keys::Keys;
use super::progress::Progress;
use super::turns::Turn;
use crate::data::protocol::Protocol;
use crate::device::DeviceChoice;
use crate::measure::doubts;
use crate::measure::speed::Workload;
use crate::measure::stats;
use crate::measure::telemetry::Telemetry;
use crate::model::config::Config;
use crate::model::kv_cache::KvPrecision;
use crate::model::weights::{self as sources, WeightSource};
use crate::packed::gpu::Choice;
use crate::quant::{self, QuantMethod};
use crate::report::Tables;
use crate::report::record::{
    CellDetail, METRICS_VERSION, ModelInfo, ResultRow, RunInfo, SpeedPairRow, Status, TextInfo,
};
use crate::report::warning::Warning;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Name of the pooled rows over all evaluation texts.
pub const OVERALL: &str = "overall";

/// What to measure and how; every field ends up in `run.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Folder, GGUF file, `synthetic:ID` or `synthetic-fp16:ID`; the embedded model without one.
    pub model: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub precisions: Vec<String>,
    /// `None` leaves the differences empty.
    pub reference: Option<String>,
    /// Precisions of the KV cache; differences refer to the reference with the first.
    pub kv: Vec<String>,
    /// Evaluation texts; all embedded ones if empty.
    pub datasets: Vec<String>,
    /// Calibration texts; all embedded ones if empty.
    pub calibration: Vec<String>,
    /// Protocol ids; the first is the one of `results.csv`.
    pub protocol: Vec<String>,
    /// Evaluation windows in all under each protocol, spread over the texts.
    pub limit: Option<usize>,
    /// Calibration windows in all, spread over the texts.
    pub calibration_limit: Option<usize>,
    /// The context without `context`.
    pub prompt_tokens: usize,
    /// Prompt lengths: the depths from which tokens are generated.
    pub context: Vec<usize>,
    pub gen_tokens: usize,
    pub batch: Vec<usize>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Which kernels of a GPU multiply by weights.
    pub kernels: Choice,
    /// Whether a GPU's decode steps are recorded and replayed.
    pub graphs: bool,
    /// Timed repetitions at least.
    pub reps: usize,
    pub threads: usize,
    pub seed: u64,
    /// Seconds for one child.
    pub timeout_s: Option<f64>,
    /// For the measured parts of a measuring child.
    pub memory_limit_bytes: Option<usize>,
    pub out: PathBuf,
    /// The command as typed, for the record.
    pub command: String,
    /// Multiple-choice sets; all embedded ones if empty, none if it is `none`.
    pub choices: Vec<String>,
    /// Multiple-choice items in all, spread over the sets.
    pub choices_limit: Option<usize>,
    /// Whether distributions are compared with the reference's, token by token.
    pub kl: bool,
    /// For the reference's log-probabilities on disk; as many windows as fit are compared.
    pub kl_cache_bytes: usize,
    /// Whether the reference's noise floor is measured too.
    pub noise_floor: bool,
    /// Timed repetitions at most: `reps` without `max_noise`.
    pub max_reps: usize,
    /// Repetitions go on until the 95 % interval of every median is this narrow: half its width
    /// over the median.
    pub max_noise: Option<f64>,
    /// Processes of each precision over which the repetitions are spread.
    pub processes: usize,
    /// Whether the machine's rates are measured, of which `mbu` and `mfu` are shares.
    pub roofline: bool,
    /// The file by which this run takes turns with others ([`Turn`]).
    pub turns: Option<PathBuf>,
    /// Forget what the folder's journal holds.
    #[serde(skip)]
    pub force: bool,
    /// Of quantized weights; none without.
    #[serde(skip)]
    pub cache: Option<cache::Choice>,
    /// By precision id, which of the KV caches, batches and contexts it takes; all without.
    pub narrowed: BTreeMap<String, Narrowed>,
    /// The thresholds of a suite file, as they stand there.
    pub compare: toml::Table,
}

/// Which of a run's KV caches, batches and contexts a precision takes; all where empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Narrowed {
    pub kv: Vec<String>,
    pub batch: Vec<usize>,
    pub context: Vec<usize>,
}

impl Narrowed {
    fn takes_kv(&self, kv: &str) -> bool {
        self.kv.is_empty() || self.kv.iter().any(|id| id == kv)
    }

    fn takes(&self, workload: &Workload) -> bool {
        let among = |list: &[usize], value| list.is_empty() || list.contains(&value);
        among(&self.batch, workload.batch()) && among(&self.context, workload.prompt_tokens())
    }
}

impl Options {
    fn choice(&self, id: &str) -> Narrowed {
        self.narrowed.get(id).cloned().unwrap_or_default()
    }

    /// What determines the results of a run: the options without where they go, how long they may
    /// take and who else is at work.
    fn asked(&self) -> serde_json::Value {
        let mut asked = serde_json::json!(self);
        if let Some(asked) = asked.as_object_mut() {
            for name in ["out", "command", "timeout_s", "turns", "compare"] {
                asked.remove(name);
            }
        }
        asked
    }
}

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
    turn: Option<Turn>,
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
    let methods = methods(options)?;
    let join = |path: &PathBuf| Turn::join(path, progress);
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
            return unsupported(options, methods, &error.to_string());
        }
        Err(error) => return Err(error),
    };
    suite.turn = turn;
    suite.shelf = Shelf::open(&options.out, options.cache.as_ref(), progress)?;
    // From here on the folder describes this run, whatever becomes of it.
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

fn check(options: &Options) -> Result<()> {
    let least = |list: &[usize]| list.iter().copied().min().unwrap_or(1);
    for (name, value) in [
        ("--reps", options.reps.min(options.max_reps)),
        ("--processes", options.processes),
        ("--prompt-tokens", options.prompt_tokens),
        ("--batch", least(&options.batch)),
        ("--context", least(&options.context)),
        ("--gen-tokens", options.gen_tokens),
        ("--threads", options.threads),
        ("--limit", options.limit.unwrap_or(1)),
        (
            "--calibration-limit",
            options.calibration_limit.unwrap_or(1),
        ),
        ("--choices-limit", options.choices_limit.unwrap_or(1)),
    ] {
        if value == 0 {
            return Err(Error::usage(
                format!("{name} 0 leaves nothing to measure"),
                format!("use at least {name} 1"),
            ));
        }
    }
    if options.precisions.is_empty() {
        return Err(Error::usage(
            "no precision to measure",
            "name some with --precisions (quantbench list)",
        ));
    }
    place(options)?;
    options
        .kv
        .iter()
        .try_for_each(|id| KvPrecision::parse(id).map(|_| ()))
}

/// Refuses what [`run`] would refuse before it starts anything, as far as options and the model's
/// files tell.
pub fn check_inputs(options: &Options) -> Result<()> {
    check(options)?;
    methods(options)?;
    match sources::open(options.model.as_deref()) {
        Err(Error::Unsupported { .. }) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The methods to run, each once, and whether each is timed; the reference first if it was added.
fn methods(options: &Options) -> Result<Vec<(Box<dyn QuantMethod>, bool)>> {
    let mut methods: Vec<(Box<dyn QuantMethod>, bool)> = vec![];
    for id in &options.precisions {
        let method = quant::parse(id)?;
        let same = methods.iter().find(|(m, _)| m.id() == method.id());
        match same.map(|(m, _)| m.source()) {
            None => methods.push((method, true)),
            Some(source) if source == method.source() => {}
            Some(source) => {
                return Err(Error::usage(
                    format!(
                        "{source} and {} are both called `{}`",
                        method.source(),
                        method.id()
                    ),
                    "give each a name of its own",
                ));
            }
        }
    }
    if let Some(reference) = &options.reference {
        let method = quant::parse(reference)?;
        if methods.iter().all(|(m, _)| m.id() != method.id()) {
            methods.insert(0, (method, false));
        }
        // With nothing but the reference there is nothing to see it beside.
        if options.kl && options.noise_floor && (methods.len() > 1 || options.kv.len() > 1) {
            let floor = quant::noise_floor(&quant::parse(reference)?.id());
            let floor = floor.filter(|f| methods.iter().all(|(m, _)| m.id() != f.id()));
            methods.extend(floor.map(|method| (method, false)));
        }
    }
    Ok(methods)
}

/// Creates the output folder, or takes over one that holds an earlier run, for this run alone.
fn prepare_folder(options: &Options, progress: Progress) -> Result<Journal> {
    let out = options.out.as_path();
    let next = "choose a folder that can be written with --out";
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e, next))?;
    tempfile::tempfile_in(out).map_err(|e| Error::io(out, e, next))?;
    let journal = Journal::open(out, options.force)?;
    for warning in &journal.warnings {
        progress.note(&format!("warning: {warning}"));
    }
    crate::report::csv::clear_partial(out);
    crate::report::clear(out)?;
    Ok(journal)
}

fn unsupported(
    options: &Options,
    methods: Vec<(Box<dyn QuantMethod>, bool)>,
    message: &str,
) -> Result<Finished> {
    let device = place(options)?.device;
    let mut tables = Tables {
        info: base_info(options),
        ..Tables::default()
    };
    tables.results = methods
        .iter()
        .map(|(method, _)| ResultRow {
            run_id: tables.info.run_id.clone(),
            device: device.clone(),
            model: model_name(options),
            precision: method.id(),
            method: method.method().into(),
            kv_cache: options.kv.join(","),
            status: Status::Unsupported,
            metrics_version: Some(METRICS_VERSION),
            error: message.into(),
            ..ResultRow::default()
        })
        .collect();
    tables.info.precisions = tables.results.iter().map(|r| r.precision.clone()).collect();
    tables.info.complete = true;
    tables.write(&options.out)?;
    Ok(Finished {
        tables,
        interrupted: false,
    })
}

/// Where the children run their models.
fn place(options: &Options) -> Result<Place> {
    let device = options.device.parse::<DeviceChoice>()?.resolve()?;
    Ok(Place {
        device: device.to_string(),
        kernels: options.kernels,
        graphs: options.graphs,
    })
}

fn model_name(options: &Options) -> String {
    options
        .model
        .as_deref()
        .and_then(|p| p.file_stem())
        .map_or("embedded".into(), |s| s.to_string_lossy().into_owned())
}

/// Now, as records show it.
fn timestamp() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn base_info(options: &Options) -> RunInfo {
    let now = jiff::Timestamp::now();
    let serialized = serde_json::to_value(options).unwrap_or_default();
    RunInfo {
        run_id: format!(
            "{}-{:04x}",
            now.strftime("%Y%m%dT%H%M%SZ"),
            std::process::id() & 0xffff
        ),
        started_at: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        command: options.command.clone(),
        quantbench_version: env!("CARGO_PKG_VERSION").into(),
        git_commit: env!("QUANTBENCH_GIT_COMMIT").into(),
        metrics_version: METRICS_VERSION,
        host: host::describe(),
        options: match serialized {
            serde_json::Value::Object(map) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        },
        ..RunInfo::default()
    }
}

impl<'a> Suite<'a> {
    fn prepare(
        options: &'a Options,
        source: &dyn WeightSource,
        mut methods: Vec<(Box<dyn QuantMethod>, bool)>,
        mut journal: Journal,
        progress: Progress,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let started = Instant::now();
        let protocols = scoring::protocols(options)?;
        let config = source.config();
        let has_weights = source.has_weights();
        let reads_text = source.reads_text();
        if !reads_text {
            refuse_quality(options, has_weights)?;
            if let Some((method, _)) = methods.iter().find(|(m, _)| m.declared().is_some()) {
                return Err(Error::usage(
                    format!(
                        "{} brings weights, and a synthetic model has none",
                        method.source()
                    ),
                    "use it with the model that it was made from",
                ));
            }
            // Nothing is compared but speed and memory, of which it takes no part.
            methods.retain(|(_, timed)| *timed);
        }
        let window = protocols.iter().map(|p| p.window).max();
        let window = window.filter(|_| reads_text).unwrap_or(0);
        let longest = window.max(options.longest_workload());
        if longest > config.max_position_embeddings {
            return Err(Error::usage(
                format!(
                    "{longest} tokens are asked for, the model was made for {}",
                    config.max_position_embeddings
                ),
                "use a shorter --window, --context, --prompt-tokens or --gen-tokens",
            ));
        }
        let texts = match reads_text {
            true => Texts::read(options, config, &protocols)?,
            false => Texts::none(sweep::random_ids(options, config.vocab_size)),
        };
        let workloads = sweep::workloads(options, &texts.prompts)?;
        let Texts {
            evaluation: texts,
            scoring,
            calibration,
            choices,
            tokenizer_sha256,
            warnings,
            ..
        } = texts;

        let of_source = source.warnings().into_iter();
        let mut common_warnings: Vec<Warning> = of_source
            .map(|words| Warning::Source { words })
            .chain(warnings)
            .collect();
        let time_factors = altered::asked();
        let altered = time_factors.clone();
        common_warnings.extend(altered.map(|factors| Warning::AlteredTimes { factors }));
        let reference = match &options.reference {
            Some(id) => Some(quant::parse(id)?.id()),
            None => None,
        };
        // Without quality it is not added, only taken where it was asked for.
        let reference = reference.filter(|id| methods.iter().any(|(m, _)| m.id() == *id));
        let mut info = base_info(options);
        info.reference = reference.clone().unwrap_or_default();
        info.precisions = methods.iter().map(|(m, _)| m.id()).collect();
        let floors = methods.iter().filter(|(m, _)| m.noise_floor_of().is_some());
        info.noise_floors = floors.map(|(m, _)| m.id()).collect();
        info.model = model_info(source, options, tokenizer_sha256)?;
        info.texts = texts.clone();
        info.texts
            .extend(calibration.iter().map(|t| t.info.clone()));
        info.texts
            .extend(choices.iter().map(|set| set.info.clone()));
        info.protocols = scoring.protocols.clone();
        info.tokenizer = scoring.tokenizer.clone();
        let keys = Keys::new(&info.host, options.threads, &info.model.weights_sha256)?;
        let began = journal.begin(Began {
            run_id: info.run_id.clone(),
            started_at: info.started_at.clone(),
            configuration: keys.configuration(&options.asked()),
        })?;
        info.run_id = began.run_id;
        info.started_at = began.started_at;

        let mut suite = Suite {
            options,
            turn: None,
            keys,
            journal,
            shelf: Shelf::default(),
            place: place(options)?,
            config: config.clone(),
            has_weights,
            protocols,
            workloads,
            calibration: match reads_text || !has_weights {
                true => windows_of(&calibration),
                false => sweep::random_windows(options, config),
            },
            choices,
            texts,
            scoring,
            reference,
            info,
            progress,
            interrupted,
            started,
            cells: vec![],
            telemetry: None,
            common_warnings,
            divergence: None,
            differences: Differences::default(),
            speed_pairs: vec![],
            time_factors,
        };
        for (method, timed) in &methods {
            // Of a reference that is there for quality, one row is enough.
            let kvs = if *timed { options.kv.len() } else { 1 };
            for kv in &options.kv[..kvs] {
                if !options.choice(&method.id()).takes_kv(kv) {
                    continue;
                }
                let cell = suite.new_cell(quant::parse(&method.source())?, kv, *timed);
                suite.cells.push(cell);
            }
        }
        suite.plan_divergence();
        let texts = match has_weights {
            true => format!(
                "{} evaluation windows and {} calibration windows",
                suite.scoring.windows(),
                suite.calibration.len()
            ),
            false => "random codes".into(),
        };
        progress.note(&format!(
            "{}: {:.1} M parameters, {texts}, {} threads",
            suite.info.model.name,
            suite.info.model.parameters as f64 / 1e6,
            options.threads
        ));
        Ok(suite)
    }

    fn new_cell(&self, method: Box<dyn QuantMethod>, kv: &str, timed: bool) -> Cell {
        let id = method.id();
        let row = |workload: &Workload| ResultRow {
            run_id: self.info.run_id.clone(),
            device: self.place.device.clone(),
            model: self.info.model.name.clone(),
            source_format: self.info.model.source_format.clone(),
            precision: id.clone(),
            method: method.method().into(),
            kv_cache: kv.into(),
            status: Status::Skipped,
            batch: Some(workload.batch() as u64),
            prompt_tokens: Some(workload.prompt_tokens() as u64),
            generated_tokens: Some(workload.generated_tokens as u64),
            error: "not reached".into(),
            threads: Some(self.options.threads as u64),
            seed: Some(self.options.seed),
            metrics_version: Some(METRICS_VERSION),
            ..ResultRow::default()
        };
        let choice = self.options.choice(&id);
        let declared = method.declared();
        let point = |workload| Point {
            state: match choice.takes(workload) || !timed {
                true => State::Open,
                false => State::LeftOut,
            },
            row: row(workload),
            samples: vec![],
            warnings: vec![],
            timing: None,
            watched: Watched::default(),
            turn_key: String::new(),
        };
        let points = if timed { self.workloads.len() } else { 1 };
        Cell {
            points: self.workloads[..points].iter().map(point).collect(),
            detail: CellDetail {
                precision: id.clone(),
                kv_cache: kv.into(),
                parameters: method.parameters(),
                ..CellDetail::default()
            },
            kv: kv.into(),
            quantized: None,
            scores: vec![vec![]; self.scoring.texts.len()],
            choices: vec![],
            divergences: vec![],
            warnings: self.common_warnings.clone(),
            took_s: 0.0,
            measured: false,
            cost: None,
            device: None,
            timed: timed && declared.is_none(),
            declared,
            title: match self.options.kv.len() {
                1 => id.clone(),
                _ => format!("{id} kv={kv}"),
            },
            method,
            id,
        }
    }

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

    /// Quantizes and measures one precision with one KV cache. `false` if the user asked to stop.
    fn measure_cell(&mut self, i: usize) -> Result<bool> {
        self.cells[i].detail.started_at = timestamp();
        let going = match self.quantize(i)? {
            Step::Done => self.measure(i)?,
            other => other,
        };
        let cell = &mut self.cells[i];
        cell.detail.duration_s = cell.took_s;
        match going {
            Step::Done => {
                cell.measured = true;
                let measured = |p: &&mut Point| p.state == State::Measured;
                for point in cell.points.iter_mut().filter(measured) {
                    point.row.status = Status::Ok;
                    point.row.error.clear();
                }
                Ok(true)
            }
            Step::Failed(ending) | Step::TooLarge(_, ending) => {
                self.progress.note(&lost_line(&cell.title, &ending));
                // Half a text's perplexity would pass for a whole one's.
                cell.scores.iter_mut().for_each(Vec::clear);
                cell.choices.clear();
                cell.divergences.clear();
                cell.fail(&ending);
                Ok(true)
            }
            Step::Interrupted => Ok(false),
        }
    }

    /// Measures memory at every point of a cell, then quality. A point that runs out of memory
    /// ends its child; another child goes on with what is left.
    fn measure(&mut self, i: usize) -> Result<Step> {
        loop {
            let open = self.cells[i].open_points(&self.workloads);
            if open.is_empty() && self.texts.is_empty() {
                return Ok(Step::Done);
            }
            let (point, ending) = match self.measure_points(i, &open)? {
                Step::TooLarge(point, ending) => (point, ending),
                step => return Ok(step),
            };
            let cell = &mut self.cells[i];
            cell.out_of_memory(point, &ending);
            if cell.is_lost() {
                return Ok(Step::Failed(ending));
            }
            self.progress
                .note(&lost_line(&cell.point_title(point), &ending));
        }
    }

    fn measure_job(&self, i: usize, open: &[usize]) -> Job {
        Job::Measure(MeasureJob {
            place: self.place.clone(),
            subject: self.subject(i),
            kv: self.cells[i].kv.clone(),
            workloads: open.iter().map(|p| self.workloads[*p].clone()).collect(),
            streams: self.scoring.streams.clone(),
            texts: self.scoring.texts.clone(),
            memory_limit_bytes: self.options.memory_limit_bytes,
            choices: choices::items(&self.choices),
            divergence: self.divergence_job(i).map(Box::new),
        })
    }

    /// Of a measurement of these points in the journal.
    fn measure_key(&self, i: usize, open: &[usize]) -> String {
        let packed = &self.cells[i].detail.packed_sha256;
        self.keys.run(&self.measure_job(i, open), packed)
    }

    /// Runs one measuring child over these points, and over the texts if it gets through them.
    fn measure_points(&mut self, i: usize, open: &[usize]) -> Result<Step> {
        let key = self.measure_key(i, open);
        let mut teller = match Teller::kept(&self.journal, &key) {
            Some(teller) => teller,
            None => {
                match self.provide_weights(i)? {
                    Step::Done => {}
                    other => return Ok(other),
                }
                match self.provide_reference(i)? {
                    Step::Done => {}
                    other => return Ok(other),
                }
                let job = self.measure_job(i, open);
                Teller::start(&job, key, self.options.threads, self.timeout())?
            }
        };
        let cell = &mut self.cells[i];
        let items: usize = self.choices.iter().map(|set| set.items.len()).sum();
        let windows = self.scoring.windows();
        let (what, steps, unit) = match windows {
            0 => ("memory", open.len(), "workloads"),
            _ => ("quality", windows + items, "windows and items"),
        };
        let stage = self
            .progress
            .stage(&format!("{} {what}", cell.title), steps, unit);
        let mut left = open.iter().copied();
        let mut done = 0;
        let (mut loaded, mut scored) = (false, windows == 0);
        loop {
            match teller.next(self.interrupted) {
                Outcome::Event(Event::Loaded) => loaded = true,
                Outcome::Event(Event::Memory(memory)) => match left.next() {
                    Some(point) => cell.record_memory(point, &memory),
                    None => return Ok(Step::silent()),
                },
                Outcome::Event(Event::Window { text, score }) => {
                    done += 1;
                    stage.set(done);
                    match cell.scores.get_mut(text) {
                        Some(scores) => scores.push(score),
                        None => return Ok(Step::silent()),
                    }
                }
                Outcome::Event(Event::Divergence(window)) => cell.divergences.push(window),
                Outcome::Event(Event::Scored {
                    perplexity_peak_bytes,
                }) => {
                    scored = true;
                    cell.detail
                        .peak_bytes_by_phase
                        .insert("perplexity".into(), perplexity_peak_bytes as u64);
                }
                Outcome::Event(Event::Choice {
                    log_likelihoods_nats,
                }) => {
                    cell.choices.push(log_likelihoods_nats);
                    stage.set(done + cell.choices.len());
                }
                Outcome::Event(other) => return Ok(Step::unexpected(&other)),
                Outcome::Failed(ending) => {
                    return Ok(match left.next() {
                        Some(point) if loaded && ending.status == Status::Oom => {
                            Step::TooLarge(point, ending)
                        }
                        None if loaded => Step::Failed(ending.during("scoring")),
                        _ => Step::Failed(ending),
                    });
                }
                Outcome::Interrupted => return Ok(Step::Interrupted),
                Outcome::Done => break,
            }
        }
        if !scored || left.next().is_some() || cell.choices.len() != items {
            return Ok(Step::silent());
        }
        let peak = format!(
            "peak {:.1} MiB",
            cell.points[cell.first_point()]
                .row
                .peak_memory_bytes
                .unwrap_or(0) as f64
                / f64::from(1 << 20)
        );
        let live = teller.is_live();
        cell.took_s += teller.seconds();
        teller.keep(&mut self.journal, &mut self.info.reused, |r| {
            &mut r.measured
        })?;
        if windows == 0 {
            if live {
                stage.finish(&peak);
            }
            return Ok(Step::Done);
        }
        let uncompared: u64 = cell.divergences.iter().map(|d| d.nonfinite_tokens).sum();
        if uncompared > 0 {
            cell.warnings
                .push(Warning::UncomparedTokens { tokens: uncompared });
        }
        let unanswered = self.choice_rows(&self.cells[i], None);
        let items: u64 = unanswered.iter().map(|row| row.nonfinite_items).sum();
        if items > 0 {
            let doubt = Warning::NonfiniteItems { items };
            self.cells[i].warnings.push(doubt);
        }
        let scored = self.scored_line(i);
        if live {
            stage.finish(&format!("{scored}, {peak}"));
            self.note_choices(i);
        }
        Ok(Step::Done)
    }

    /// What was found under each protocol, for progress; a warning of what was not finite.
    fn scored_line(&mut self, i: usize) -> String {
        let (mut parts, mut warnings) = (vec![], vec![]);
        for (p, (protocol, texts)) in self.by_protocol(&self.cells[i]).enumerate() {
            let (id, scores) = (protocol.id(), texts.concat());
            warnings.extend(match p {
                0 => doubts::quality(&scores, &id),
                _ => doubts::nonfinite(&scores, &id).into_iter().collect(),
            });
            parts.push(match stats::mean_nll(&scores).map(f64::exp) {
                Some(p) => format!("{p:.4} ({id}, {} windows)", scores.len()),
                None => format!("no finite likelihood ({id})"),
            });
        }
        self.cells[i].warnings.extend(warnings);
        parts.join(", ")
    }

    /// Records a doubt that is about the machine, not about a row.
    fn doubt_machine(&mut self, warning: Warning) {
        self.info.warnings.push(warning.to_string());
        self.info.machine_warnings.push(warning);
    }

    fn write(&self, complete: bool) -> Result<()> {
        self.tables(complete).write(&self.options.out)
    }
}

/// The line of a part of the run that gave no result.
fn lost_line(what: &str, ending: &Ending) -> String {
    format!("{what:<28} {}: {}", ending.status.word(), ending.message)
}

/// Refuses options that ask for what a model without text does not have; one with weights has
/// random calibration windows, which may be limited.
fn refuse_quality(options: &Options, has_weights: bool) -> Result<()> {
    for (name, given) in [
        ("--tokenizer", options.tokenizer.is_some()),
        ("--datasets", !options.datasets.is_empty()),
        ("--calibration", !options.calibration.is_empty()),
        ("--limit", options.limit.is_some()),
        (
            "--calibration-limit",
            options.calibration_limit.is_some() && !has_weights,
        ),
        (
            "--choices",
            options.choices.iter().any(|set| set != choices::NONE),
        ),
        ("--choices-limit", options.choices_limit.is_some()),
    ] {
        if given {
            return Err(Error::usage(
                format!("{name} is about texts, and a synthetic model has no quality to measure"),
                format!("leave {name} out, or use a model with weights"),
            ));
        }
    }
    Ok(())
}

fn model_info(
    source: &dyn WeightSource,
    options: &Options,
    tokenizer_sha256: String,
) -> Result<ModelInfo> {
    let config = source.config();
    let count = |shapes: &BTreeMap<String, Vec<usize>>, body: bool| -> u64 {
        shapes
            .iter()
            .filter(|(name, _)| !body || name.ends_with("_proj.weight"))
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum()
    };
    let shapes = sources::layout(config);
    Ok(ModelInfo {
        name: source.name().into(),
        source: options
            .model
            .as_ref()
            .map_or("embedded".into(), |p| p.display().to_string()),
        source_format: source.source_format().into(),
        architecture: config.architecture.clone(),
        parameters: count(&shapes, false),
        body_parameters: count(&shapes, true),
        layers: config.layers as u64,
        hidden_size: config.hidden_size as u64,
        vocab_size: config.vocab_size as u64,
        weights_sha256: source.sha256()?,
        tokenizer_sha256,
    })
}
