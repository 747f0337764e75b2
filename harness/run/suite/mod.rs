//! A run: every precision of one model, each finished cell on disk at once.

mod cell;
mod roofline;
mod rows;
mod telemetry;
mod texts;
mod timing;

pub use texts::CALIBRATION_WINDOW;

use self::cell::{Cell, Step, one_line};
use self::telemetry::Watched;
use self::texts::{Text, refuse_shared_texts, spread, windows_of};
use super::child::{Child, Outcome};
use super::host;
use super::job::{Event, Job, JobText, MeasureJob, QuantizeJob, QuantizeResult};
use super::progress::Progress;
use crate::data::protocol::Protocol;
use crate::data::{self, Kind};
use crate::measure::quality::WindowScore;
use crate::measure::speed::Workload;
use crate::measure::stats;
use crate::measure::telemetry::Telemetry;
use crate::model::kv_cache::KvPrecision;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::{self, WeightSource};
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
    /// Folder or GGUF file; the embedded model without one.
    pub model: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub precisions: Vec<String>,
    /// `None` leaves the differences empty.
    pub reference: Option<String>,
    pub kv: String,
    /// Evaluation texts; all embedded ones if empty.
    pub datasets: Vec<String>,
    /// Calibration texts; all embedded ones if empty.
    pub calibration: Vec<String>,
    pub protocol: String,
    /// Evaluation windows in all, spread over the texts.
    pub limit: Option<usize>,
    /// Calibration windows in all, spread over the texts.
    pub calibration_limit: Option<usize>,
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub batch: usize,
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
    protocol: Protocol,
    workload: Workload,
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
    // From here on the folder describes this run, whatever becomes of it.
    suite.write(false)?;
    let mut going = true;
    for i in 0..suite.cells.len() {
        suite.cells[i].packed = work.path().join(format!("{i}.safetensors"));
        going = going && suite.measure_cell(i)?;
        if !going {
            suite.cells[i].row.status = Status::Skipped;
            suite.cells[i].row.error = "stopped by the user".into();
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
    for (name, value) in [
        ("--reps", options.reps),
        ("--batch", options.batch),
        ("--prompt-tokens", options.prompt_tokens),
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
    KvPrecision::parse(&options.kv)?;
    Ok(())
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
    let mut tables = Tables {
        info: base_info(options),
        ..Tables::default()
    };
    tables.results = methods
        .iter()
        .map(|(method, _)| ResultRow {
            run_id: tables.info.run_id.clone(),
            device: "cpu".into(),
            model: model_name(options),
            precision: method.id(),
            method: method.method().into(),
            kv_cache: options.kv.clone(),
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
        methods: Vec<(Box<dyn QuantMethod>, bool)>,
        progress: Progress,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let started = Instant::now();
        let protocol = Protocol::parse(&options.protocol, CALIBRATION_WINDOW)?;
        let config = source.config();
        let longest = protocol
            .window
            .max(options.prompt_tokens + options.gen_tokens);
        if longest > config.max_position_embeddings {
            return Err(Error::usage(
                format!(
                    "{longest} tokens are asked for, the model was made for {}",
                    config.max_position_embeddings
                ),
                "use a shorter --window, --prompt-tokens or --gen-tokens",
            ));
        }
        let tokenizer = Tokenizer::load(options.model.as_deref(), options.tokenizer.as_deref())?;
        tokenizer.check(config)?;

        let read = |names: &[String], kind, window| -> Result<Vec<Text>> {
            data::select(names, kind)?
                .into_iter()
                .map(|set| Text::new(set, &tokenizer, window))
                .collect()
        };
        let mut texts = read(&options.datasets, Kind::Evaluation, protocol.window)?;
        if texts.iter().all(|t| t.info.windows == 0) {
            return Err(Error::usage(
                format!(
                    "no evaluation text fills a window of {} tokens ({})",
                    protocol.window,
                    texts
                        .iter()
                        .map(|t| format!("{}: {} tokens", t.info.name, t.info.tokens))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                "use a longer text (--datasets) or a shorter window (--window)",
            ));
        }
        spread(&mut texts, options.limit);
        let mut calibration = read(&options.calibration, Kind::Calibration, CALIBRATION_WINDOW)?;
        spread(&mut calibration, options.calibration_limit);
        refuse_shared_texts(&texts, &calibration)?;
        let prompts = texts.iter().find(|t| t.info.windows > 0);
        let workload = Workload::from_text(
            prompts.map_or(&[][..], |t| &t.ids),
            options.batch,
            options.prompt_tokens,
            options.gen_tokens,
        )?;

        let mut common_warnings = source.warnings();
        common_warnings.extend(texts.iter().flat_map(|t| t.warnings.clone()));
        let reference = match &options.reference {
            Some(id) => Some(quant::parse(id)?.id()),
            None => None,
        };
        let mut info = base_info(options);
        info.reference = reference.clone().unwrap_or_default();
        info.precisions = methods.iter().map(|(m, _)| m.id()).collect();
        info.model = model_info(source, options, &tokenizer)?;
        info.texts = texts
            .iter()
            .chain(&calibration)
            .map(|t| t.info.clone())
            .collect();

        let mut suite = Suite {
            options,
            protocol,
            workload,
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
        };
        suite.cells = methods
            .into_iter()
            .map(|(method, timed)| suite.new_cell(method, timed))
            .collect();
        progress.note(&format!(
            "{}: {:.1} M parameters, {} evaluation windows and {} calibration windows, {} threads",
            suite.info.model.name,
            suite.info.model.parameters as f64 / 1e6,
            suite.texts.iter().map(|t| t.info.windows).sum::<u64>(),
            suite.calibration.len(),
            options.threads
        ));
        Ok(suite)
    }

    fn new_cell(&self, method: Box<dyn QuantMethod>, timed: bool) -> Cell {
        let id = method.id();
        Cell {
            row: ResultRow {
                run_id: self.info.run_id.clone(),
                device: "cpu".into(),
                model: self.info.model.name.clone(),
                source_format: self.info.model.source_format.clone(),
                precision: id.clone(),
                method: method.method().into(),
                kv_cache: self.options.kv.clone(),
                status: Status::Skipped,
                error: "not reached".into(),
                threads: Some(self.options.threads as u64),
                seed: Some(self.options.seed),
                metrics_version: Some(METRICS_VERSION),
                ..ResultRow::default()
            },
            detail: CellDetail {
                precision: id.clone(),
                kv_cache: self.options.kv.clone(),
                parameters: method.parameters(),
                ..CellDetail::default()
            },
            scores: vec![vec![]; self.texts.len()],
            samples: vec![],
            warnings: self.common_warnings.clone(),
            packed: PathBuf::new(),
            started: Instant::now(),
            measured: false,
            cost: None,
            watched: Watched::default(),
            timed,
            method,
            id,
        }
    }

    fn timeout(&self) -> Option<Duration> {
        self.options.timeout_s.map(Duration::from_secs_f64)
    }

    /// Quantizes and measures one precision. `false` if the user asked to stop.
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
                cell.row.status = Status::Ok;
                cell.row.error.clear();
                Ok(true)
            }
            Step::Failed(ending) => {
                self.progress.note(&format!(
                    "{:<28} {}: {}",
                    cell.id,
                    ending.status.word(),
                    ending.message
                ));
                // Half a text's perplexity would pass for a whole one's.
                cell.scores.iter_mut().for_each(Vec::clear);
                cell.row.status = ending.status;
                cell.row.error = one_line(&ending.message);
                Ok(true)
            }
            Step::Interrupted => Ok(false),
        }
    }

    fn quantize(&mut self, i: usize) -> Result<Step> {
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
            kv: self.options.kv.clone(),
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
        cell.row.quantize_s = Some(result.quantize_s);
        cell.detail.quantize_peak_bytes = Some(result.peak_bytes as u64);
        cell.detail.packed_sha256 = result.packed_sha256;
        cell.warnings.extend(cell.method.doubts(&result.notes));
        cell.detail.notes = result.notes;
        Ok(Step::Done)
    }

    fn measure(&mut self, i: usize) -> Result<Step> {
        let timeout = self.timeout();
        let cell = &mut self.cells[i];
        let job = Job::Measure(MeasureJob {
            packed: cell.packed.clone(),
            kv: self.options.kv.clone(),
            workload: self.workload.clone(),
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
        });
        let windows: u64 = self.texts.iter().map(|t| t.info.windows).sum();
        let stage = self.progress.stage(
            &format!("{} perplexity", cell.id),
            windows as usize,
            "windows",
        );
        let mut child = Child::start(&job, self.options.threads, timeout)?;
        let mut done = 0;
        let mut scored = false;
        loop {
            match child.next(self.interrupted) {
                Outcome::Event(Event::Memory(memory)) => cell.record_memory(&memory),
                Outcome::Event(Event::Window { text, score }) => {
                    done += 1;
                    stage.set(done);
                    match cell.scores.get_mut(text) {
                        Some(scores) => scores.push(score),
                        None => return Ok(Step::silent()),
                    }
                }
                Outcome::Event(Event::Scored {
                    perplexity_peak_bytes,
                }) => {
                    scored = true;
                    cell.detail
                        .peak_bytes_by_phase
                        .insert("perplexity".into(), perplexity_peak_bytes as u64);
                }
                Outcome::Event(other) => return Ok(Step::unexpected(&other)),
                Outcome::Failed(ending) => return Ok(Step::Failed(ending)),
                Outcome::Interrupted => return Ok(Step::Interrupted),
                Outcome::Done => break,
            }
        }
        if !scored {
            return Ok(Step::silent());
        }
        let all: Vec<WindowScore> = cell.scores.concat();
        let nonfinite: u64 = all.iter().map(|s| s.nonfinite_tokens).sum();
        if nonfinite > 0 {
            cell.warnings.push(format!(
                "{nonfinite} of the scored tokens had no finite likelihood; they are left out"
            ));
        }
        let perplexity = stats::mean_nll(&all).map(f64::exp);
        stage.finish(&match perplexity {
            Some(p) => format!(
                "{p:.4} ({}, {done} windows), peak {:.1} MiB",
                self.protocol.id(),
                cell.row.peak_memory_bytes.unwrap_or(0) as f64 / f64::from(1 << 20)
            ),
            None => "no finite likelihood".into(),
        });
        Ok(Step::Done)
    }

    fn write(&self, complete: bool) -> Result<()> {
        self.tables(complete).write(&self.options.out)
    }
}

fn model_info(
    source: &dyn WeightSource,
    options: &Options,
    tokenizer: &Tokenizer,
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
        tokenizer_sha256: tokenizer.sha256().into(),
    })
}
