//! What is read, checked and recorded before the first child starts.

use super::super::altered;
use super::super::host;
use super::super::journal::{Began, Journal};
use super::super::keys::Keys;
use super::super::progress::Progress;
use super::cell::{Cell, Point, State};
use super::differences::Differences;
use super::options::{Asked, Methods, Options, model_name, place, refuse_quality};
use super::telemetry::Watched;
use super::texts::{Texts, windows_of};
use super::weights::Shelf;
use super::{Finished, Suite, scoring, sweep};
use crate::formats::source::WeightSource;
use crate::hash::sha256;
use crate::measure::speed::Workload;
use crate::model::layout::layout;
use crate::quant::QuantMethod;
use crate::record::Tables;
use crate::record::rows::{ResultRow, Status};
use crate::record::run_info::{CellDetail, METRICS_VERSION, ModelInfo, RunInfo};
use crate::record::warning::Warning;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Creates the output folder, or takes over one that holds an earlier run, for this run alone.
pub(super) fn prepare_folder(options: &Options, progress: Progress) -> Result<Journal> {
    let out = options.out.as_path();
    let next = "choose a folder that can be written with --out";
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e, next))?;
    tempfile::tempfile_in(out).map_err(|e| Error::io(out, e, next))?;
    let journal = Journal::open(out, options.force)?;
    for warning in &journal.warnings {
        progress.note(&format!("warning: {warning}"));
    }
    Ok(journal)
}

/// Removes what an earlier run left: from here on the folder describes this one.
pub(super) fn take_over(options: &Options) -> Result<()> {
    crate::record::tables::clear_partial(&options.out);
    crate::record::tables::clear(&options.out)
}

pub(super) fn unsupported(options: &Options, methods: &Methods, message: &str) -> Result<Finished> {
    let device = place(options)?.device;
    let mut tables = Tables {
        info: base_info(options),
        ..Tables::default()
    };
    let asked = methods.asked.iter();
    tables.results = asked
        .map(|Asked { method, .. }| ResultRow {
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
    take_over(options)?;
    tables.write(&options.out)?;
    Ok(Finished {
        tables,
        interrupted: false,
    })
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
    let shapes = layout(config);
    Ok(ModelInfo {
        name: source.info().name.clone(),
        source: options
            .model
            .as_ref()
            .map_or("embedded".into(), |p| p.display().to_string()),
        source_format: source.info().source_format.clone(),
        architecture: config.architecture.clone(),
        parameters: count(&shapes, false),
        body_parameters: count(&shapes, true),
        layers: config.layers as u64,
        hidden_size: config.hidden_size as u64,
        vocab_size: config.vocab_size as u64,
        weights_sha256: source.sha256()?,
        config_sha256: sha256([serde_json::json!(config).to_string().as_bytes()]),
        tokenizer_sha256,
    })
}

impl<'a> Suite<'a> {
    pub(super) fn prepare(
        options: &'a Options,
        source: &dyn WeightSource,
        methods: Methods,
        mut journal: Journal,
        progress: Progress,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let started = Instant::now();
        let Methods {
            asked: mut methods,
            reference,
        } = methods;
        let protocols = scoring::protocols(options)?;
        let config = source.config();
        let has_weights = source.info().has_weights;
        let reads_text = source.info().reads_text;
        if !reads_text {
            refuse_quality(options, has_weights)?;
            let brings_weights = |asked: &&Asked| asked.method.declared().is_some();
            if let Some(Asked { method, .. }) = methods.iter().find(brings_weights) {
                return Err(Error::usage(
                    format!(
                        "{} brings weights, and a synthetic model has none",
                        method.source()
                    ),
                    "use it with the model that it was made from",
                ));
            }
            // Nothing is compared but speed and memory, of which it takes no part.
            methods.retain(|asked| asked.timed);
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

        let of_source = source.info().warnings.iter().cloned();
        let mut common_warnings: Vec<Warning> = of_source
            .map(|words| Warning::Source { words })
            .chain(warnings)
            .collect();
        let time_factors = altered::asked();
        let altered = time_factors.clone();
        common_warnings.extend(altered.map(|factors| Warning::AlteredTimes { factors }));
        // Without quality it is not added, only taken where it was asked for.
        let reference = reference.filter(|id| methods.iter().any(|m| m.method.id() == *id));
        let mut info = base_info(options);
        info.reference = reference.clone().unwrap_or_default();
        info.precisions = methods.iter().map(|asked| asked.method.id()).collect();
        let is_floor = |asked: &&Asked| asked.method.noise_floor_of().is_some();
        let floors = methods.iter().filter(is_floor);
        info.noise_floors = floors.map(|asked| asked.method.id()).collect();
        info.model = model_info(source, options, tokenizer_sha256)?;
        info.texts = texts.clone();
        info.texts
            .extend(calibration.iter().map(|t| t.info.clone()));
        info.texts
            .extend(choices.iter().map(|set| set.info.clone()));
        info.protocols = scoring.protocols.clone();
        info.tokenizer = scoring.tokenizer.clone();
        let model = [&info.model.weights_sha256, &info.model.config_sha256];
        let model = sha256(model.map(|hash| hash.as_bytes()));
        let keys = Keys::new(&info.host, options.threads, &model)?;
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
        for Asked { method, timed } in &methods {
            // Of a reference that is there for quality, one row is enough.
            let kvs = if *timed { options.kv.len() } else { 1 };
            for kv in &options.kv[..kvs] {
                if !options.choice(&method.id()).takes_kv(kv) {
                    continue;
                }
                let cell = suite.new_cell(method.clone(), kv, *timed);
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

    fn new_cell(&self, method: Arc<dyn QuantMethod>, kv: &str, timed: bool) -> Cell {
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
}
