//! A run: every precision of one model, each finished cell on disk at once.

mod cell;
mod divergence;
mod roofline;
mod rows;
mod sweep;
mod telemetry;
mod texts;
mod timing;

pub use texts::CALIBRATION_WINDOW;

use self::cell::{Cell, Point, State, Step};
use self::telemetry::Watched;
use self::texts::{Text, Texts, windows_of};
use super::child::{Child, Ending, Outcome};
use super::host;
use super::job::{
    DivergenceJob, Event, Job, JobText, MeasureJob, Place, QuantizeJob, QuantizeResult, Subject,
};
use super::progress::Progress;
use crate::data::protocol::Protocol;
use crate::device::DeviceChoice;
use crate::measure::quality::WindowScore;
use crate::measure::speed::Workload;
use crate::measure::stats;
use crate::measure::telemetry::Telemetry;
use crate::model::config::Config;
use crate::model::kv_cache::KvPrecision;
use crate::model::weights::{self, WeightSource};
use crate::packed::gpu::Choice;
use crate::quant::{self, QuantMethod};
use crate::report::Tables;
use crate::report::record::{CellDetail, METRICS_VERSION, ModelInfo, ResultRow, RunInfo, Status};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Name of the pooled rows over all evaluation texts.
pub const OVERALL: &str = "overall";

/// What to measure and how; every field ends up in `run.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Folder, GGUF file or `synthetic:ID`; the embedded model without one.
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
    pub protocol: String,
    /// Evaluation windows in all, spread over the texts.
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
    /// Whether distributions are compared with the reference's, token by token.
    pub kl: bool,
    /// For the reference's log-probabilities on disk; as many windows as fit are compared.
    pub kl_cache_bytes: usize,
    /// Whether the reference's noise floor is measured too.
    pub noise_floor: bool,
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
    place: Place,
    config: Config,
    /// Whether there are weights to quantize and texts to score.
    has_weights: bool,
    protocol: Protocol,
    /// Every batch with every context, in the order of the rows.
    workloads: Vec<Workload>,
    texts: Vec<Text>,
    calibration: Vec<Vec<u32>>,
    reference: Option<String>,
    info: RunInfo,
    progress: Progress,
    interrupted: &'a AtomicBool,
    started: Instant,
    cells: Vec<Cell>,
    /// Of the GPU that is timed, if it is one that can be asked.
    telemetry: Option<Telemetry>,
    /// Warnings of the model's source and of the texts, for every row.
    common_warnings: Vec<String>,
    /// What is compared with the reference token by token, if anything is.
    divergence: Option<DivergenceJob>,
}

/// Runs everything. [`Error`]s are wrong arguments or unusable inputs; failures of single cells
/// are rows.
pub fn run(options: &Options, progress: Progress, interrupted: &AtomicBool) -> Result<Finished> {
    check(options)?;
    let methods = methods(options)?;
    prepare_folder(&options.out)?;
    let mut suite = match weights::open(options.model.as_deref()) {
        Ok(source) => Suite::prepare(options, source.as_ref(), methods, progress, interrupted)?,
        // A checkpoint that is real but not ours to run: every cell says so.
        Err(error @ Error::Unsupported { .. }) => {
            return unsupported(options, methods, &error.to_string());
        }
        Err(error) => return Err(error),
    };
    let work = tempfile::Builder::new()
        .prefix(".packed-")
        .tempdir_in(&options.out)
        .map_err(|e| Error::io(&options.out, e, "choose another folder with --out"))?;
    suite.plan_divergence(work.path());
    // From here on the folder describes this run, whatever becomes of it.
    suite.write(false)?;
    let mut going = true;
    for i in suite.measuring_order() {
        suite.cells[i].packed = work
            .path()
            .join(format!("{}.safetensors", suite.first_of(i)));
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
    Ok(Finished {
        tables: suite.tables(going),
        interrupted: !going,
    })
}

fn check(options: &Options) -> Result<()> {
    let least = |list: &[usize]| list.iter().copied().min().unwrap_or(1);
    for (name, value) in [
        ("--reps", options.reps),
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

/// The methods to run, each once, and whether each is timed; the reference first if it was added.
fn methods(options: &Options) -> Result<Vec<(Box<dyn QuantMethod>, bool)>> {
    let mut methods: Vec<(Box<dyn QuantMethod>, bool)> = vec![];
    for id in &options.precisions {
        let method = quant::parse(id)?;
        if methods.iter().all(|(m, _)| m.id() != method.id()) {
            methods.push((method, true));
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

/// Creates the output folder, or takes over one that holds an earlier run.
fn prepare_folder(out: &Path) -> Result<()> {
    let next = "choose a folder that can be written with --out";
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e, next))?;
    tempfile::tempfile_in(out).map_err(|e| Error::io(out, e, next))?;
    crate::report::clear(out)
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
        progress: Progress,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let started = Instant::now();
        let protocol = Protocol::parse(&options.protocol, CALIBRATION_WINDOW)?;
        let config = source.config();
        let has_weights = source.has_weights();
        if !has_weights {
            refuse_quality(options)?;
            // Nothing is compared but speed and memory, of which it takes no part.
            methods.retain(|(_, timed)| *timed);
        }
        let window = if has_weights { protocol.window } else { 0 };
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
        let texts = match has_weights {
            true => Texts::read(options, config, &protocol)?,
            false => Texts::none(sweep::random_ids(options, config.vocab_size)),
        };
        let workloads = sweep::workloads(options, &texts.prompts)?;
        let Texts {
            evaluation: texts,
            calibration,
            tokenizer_sha256,
            ..
        } = texts;

        let mut common_warnings = source.warnings();
        common_warnings.extend(texts.iter().flat_map(|t| t.warnings.clone()));
        let reference = match &options.reference {
            Some(id) => Some(quant::parse(id)?.id()),
            None => None,
        };
        // Without weights it is not added, only taken where it was asked for.
        let reference = reference.filter(|id| methods.iter().any(|(m, _)| m.id() == *id));
        let mut info = base_info(options);
        info.reference = reference.clone().unwrap_or_default();
        info.precisions = methods.iter().map(|(m, _)| m.id()).collect();
        let floors = methods.iter().filter(|(m, _)| m.noise_floor_of().is_some());
        info.noise_floors = floors.map(|(m, _)| m.id()).collect();
        info.model = model_info(source, options, tokenizer_sha256)?;
        info.texts = texts
            .iter()
            .chain(&calibration)
            .map(|t| t.info.clone())
            .collect();

        let mut suite = Suite {
            options,
            place: place(options)?,
            config: config.clone(),
            has_weights,
            protocol,
            workloads,
            calibration: windows_of(&calibration),
            texts,
            reference,
            info,
            progress,
            interrupted,
            started,
            cells: vec![],
            telemetry: None,
            common_warnings,
            divergence: None,
        };
        for (method, timed) in &methods {
            // Of a reference that is there for quality, one row is enough.
            let kvs = if *timed { options.kv.len() } else { 1 };
            for kv in &options.kv[..kvs] {
                let cell = suite.new_cell(quant::parse(&method.id())?, kv, *timed);
                suite.cells.push(cell);
            }
        }
        let texts = match has_weights {
            true => format!(
                "{} evaluation windows and {} calibration windows",
                suite.texts.iter().map(|t| t.info.windows).sum::<u64>(),
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
        let point = |workload| Point {
            state: State::Open,
            row: row(workload),
            samples: vec![],
            warnings: vec![],
            watched: Watched::default(),
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
            scores: vec![vec![]; self.texts.len()],
            divergences: vec![],
            warnings: self.common_warnings.clone(),
            packed: PathBuf::new(),
            started: Instant::now(),
            measured: false,
            cost: None,
            device_total_bytes: None,
            timed,
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
            true => Subject::Packed(cell.packed.clone()),
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
        self.cells[i].started = Instant::now();
        self.cells[i].detail.started_at = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let going = match self.quantize(i)? {
            Step::Done => self.measure(i)?,
            other => other,
        };
        let cell = &mut self.cells[i];
        cell.detail.duration_s = cell.started.elapsed().as_secs_f64();
        match going {
            Step::Done => {
                cell.measured = true;
                for point in cell.points.iter_mut().filter(|p| p.state != State::Failed) {
                    point.row.status = Status::Ok;
                    point.row.error.clear();
                }
                Ok(true)
            }
            Step::Failed(ending) | Step::TooLarge(_, ending) => {
                self.progress.note(&lost_line(&cell.title, &ending));
                // Half a text's perplexity would pass for a whole one's.
                cell.scores.iter_mut().for_each(Vec::clear);
                cell.divergences.clear();
                cell.fail(&ending);
                Ok(true)
            }
            Step::Interrupted => Ok(false),
        }
    }

    fn quantize(&mut self, i: usize) -> Result<Step> {
        if !self.has_weights {
            return Ok(Step::Done);
        }
        let first = self.first_of(i);
        if first != i {
            // The weights do not depend on the cache: they are those of the first one's cell.
            return Ok(match self.cells[first].quantized.clone() {
                Some(result) => {
                    self.cells[i].record_quantized(result);
                    Step::Done
                }
                None => Step::Failed(self.cells[first].points[0].ending()),
            });
        }
        let cell = &mut self.cells[i];
        let calibrated = cell.method.calibration() == quant::Calibration::Inputs;
        let job = Job::Quantize(QuantizeJob {
            model: self.options.model.clone(),
            precision: cell.id.clone(),
            calibration: if calibrated {
                self.calibration.clone()
            } else {
                vec![]
            },
            kv: cell.kv.clone(),
            output: cell.packed.clone(),
        });
        let layers = self.info.model.layers as usize;
        let stage = self
            .progress
            .stage(&format!("{} quantize", cell.id), layers, "blocks");
        let timeout = self.options.timeout_s.map(Duration::from_secs_f64);
        let mut child = Child::start(&job, self.options.threads, timeout)?;
        let mut result: Option<QuantizeResult> = None;
        loop {
            match child.next(self.interrupted) {
                Outcome::Event(Event::Progress { done, .. }) => stage.set(done),
                Outcome::Event(Event::Quantized(r)) => result = Some(r),
                Outcome::Event(other) => return Ok(Step::unexpected(&other)),
                Outcome::Failed(ending) => return Ok(Step::Failed(ending)),
                Outcome::Interrupted => return Ok(Step::Interrupted),
                Outcome::Done => break,
            }
        }
        let Some(result) = result else {
            return Ok(Step::silent());
        };
        stage.finish(&format!("{:.1} s", result.quantize_s));
        cell.record_quantized(result);
        Ok(Step::Done)
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
            if cell.points.iter().all(|p| p.state == State::Failed) {
                return Ok(Step::Failed(ending));
            }
            self.progress
                .note(&lost_line(&cell.point_title(point), &ending));
        }
    }

    /// Runs one measuring child over these points, and over the texts if it gets through them.
    fn measure_points(&mut self, i: usize, open: &[usize]) -> Result<Step> {
        let timeout = self.timeout();
        let subject = self.subject(i);
        let divergence = self.divergence_job(i);
        let cell = &mut self.cells[i];
        let job = Job::Measure(MeasureJob {
            place: self.place.clone(),
            subject,
            kv: cell.kv.clone(),
            workloads: open.iter().map(|p| self.workloads[*p].clone()).collect(),
            texts: self
                .texts
                .iter()
                .map(|t| JobText {
                    ids: t.ids.clone(),
                    bytes: t.bytes.clone(),
                    windows: t.info.windows as usize,
                })
                .collect(),
            protocol: self.protocol.id(),
            memory_limit_bytes: self.options.memory_limit_bytes,
            divergence: divergence.map(Box::new),
        });
        let windows: u64 = self.texts.iter().map(|t| t.info.windows).sum();
        let (what, steps, unit) = match windows {
            0 => ("memory", open.len(), "workloads"),
            _ => ("perplexity", windows as usize, "windows"),
        };
        let stage = self
            .progress
            .stage(&format!("{} {what}", cell.title), steps, unit);
        let mut child = Child::start(&job, self.options.threads, timeout)?;
        let mut left = open.iter().copied();
        let mut done = 0;
        let (mut loaded, mut scored) = (false, windows == 0);
        loop {
            match child.next(self.interrupted) {
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
        if !scored || left.next().is_some() {
            return Ok(Step::silent());
        }
        let peak = format!(
            "peak {:.1} MiB",
            cell.points[0].row.peak_memory_bytes.unwrap_or(0) as f64 / f64::from(1 << 20)
        );
        if windows == 0 {
            stage.finish(&peak);
            return Ok(Step::Done);
        }
        let all: Vec<WindowScore> = cell.scores.concat();
        let nonfinite: u64 = all.iter().map(|s| s.nonfinite_tokens).sum();
        if nonfinite > 0 {
            cell.warnings.push(format!(
                "{nonfinite} of the scored tokens had no finite likelihood; they are left out"
            ));
        }
        let uncompared: u64 = cell.divergences.iter().map(|d| d.nonfinite_tokens).sum();
        if uncompared > 0 {
            cell.warnings.push(format!(
                "{uncompared} of the tokens compared with the reference were not finite in one of \
                 the two; they are left out"
            ));
        }
        let perplexity = stats::mean_nll(&all).map(f64::exp);
        stage.finish(&match perplexity {
            Some(p) => format!("{p:.4} ({}, {done} windows), {peak}", self.protocol.id()),
            None => "no finite likelihood".into(),
        });
        Ok(Step::Done)
    }

    fn write(&self, complete: bool) -> Result<()> {
        self.tables(complete).write(&self.options.out)
    }
}

/// The line of a part of the run that gave no result.
fn lost_line(what: &str, ending: &Ending) -> String {
    format!("{what:<28} {}: {}", ending.status.word(), ending.message)
}

/// Refuses options that ask for what a model without weights does not have.
fn refuse_quality(options: &Options) -> Result<()> {
    for (name, given) in [
        ("--tokenizer", options.tokenizer.is_some()),
        ("--datasets", !options.datasets.is_empty()),
        ("--calibration", !options.calibration.is_empty()),
        ("--limit", options.limit.is_some()),
        ("--calibration-limit", options.calibration_limit.is_some()),
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
    let shapes = weights::layout(config);
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
