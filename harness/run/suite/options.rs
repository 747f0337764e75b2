//! What a run is asked for, and what is refused before anything starts.

use super::super::cache;
use super::super::job::Place;
use super::choices;
use crate::device::DeviceChoice;
use crate::formats as sources;
use crate::measure::speed::Workload;
use crate::model::kv_cache::KvPrecision;
use crate::packed::gpu::Choice;
use crate::quant::{self, QuantMethod};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// The file by which this run takes turns with others ([`Participant`](super::super::turns::Participant)).
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
    pub(super) fn takes_kv(&self, kv: &str) -> bool {
        self.kv.is_empty() || self.kv.iter().any(|id| id == kv)
    }

    pub(super) fn takes(&self, workload: &Workload) -> bool {
        let among = |list: &[usize], value| list.is_empty() || list.contains(&value);
        among(&self.batch, workload.batch()) && among(&self.context, workload.prompt_tokens())
    }
}

impl Options {
    /// Of the largest batch of the longest prompts.
    fn most_prompt_tokens(&self) -> usize {
        let most = |list: &[usize]| list.iter().copied().max().unwrap_or(1);
        most(&self.batch).saturating_mul(most(&self.contexts()))
    }

    pub(super) fn choice(&self, id: &str) -> Narrowed {
        self.narrowed.get(id).cloned().unwrap_or_default()
    }

    /// What determines the results of a run: the options without where they go, how long they may
    /// take and who else is at work.
    pub(super) fn asked(&self) -> serde_json::Value {
        let mut asked = serde_json::json!(self);
        if let Some(asked) = asked.as_object_mut() {
            for name in ["out", "command", "timeout_s", "turns", "compare"] {
                asked.remove(name);
            }
        }
        asked
    }
}

/// Far more than is of use, and few enough to be prepared for.
const MOST_REPS: usize = 1_000_000;
const MOST_THREADS: usize = 4096;
const MOST_PROMPT_TOKENS: usize = 1 << 26;

pub(super) fn check(options: &Options) -> Result<()> {
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
    for (name, value, most) in [
        ("--reps", options.reps.max(options.max_reps), MOST_REPS),
        ("--threads", options.threads, MOST_THREADS),
        (
            "tokens of --batch times --context",
            options.most_prompt_tokens(),
            MOST_PROMPT_TOKENS,
        ),
    ] {
        if value > most {
            return Err(Error::usage(
                format!("{value} {name} are more than {most}, which no machine gets through"),
                "ask for less",
            ));
        }
    }
    let cache = options.cache.as_ref().map(|cache| &cache.folder);
    let paths = [
        options.model.as_ref(),
        options.tokenizer.as_ref(),
        options.turns.as_ref(),
    ];
    let paths = paths
        .into_iter()
        .flatten()
        .chain(cache)
        .chain([&options.out]);
    if let Some(path) = paths.into_iter().find(|path| path.to_str().is_none()) {
        return Err(Error::usage(
            format!(
                "{} is no UTF-8 text, and could not be recorded",
                path.display()
            ),
            "rename it, or use a link of another name",
        ));
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

/// Refuses what [`run`](super::run) would refuse before it starts anything, as far as options and
/// the model's files tell.
pub fn check_inputs(options: &Options) -> Result<()> {
    check(options)?;
    Methods::of(options)?;
    match sources::open(options.model.as_deref()) {
        Err(Error::Unsupported { .. }) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A method to run.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) method: Arc<dyn QuantMethod>,
    /// Whether it is timed: what is there for quality alone is not.
    pub(super) timed: bool,
}

/// The methods to run.
pub(super) struct Methods {
    /// Each once; the reference first if it was added.
    pub(super) asked: Vec<Asked>,
    /// Id of the reference.
    pub(super) reference: Option<String>,
}

impl Methods {
    /// Reads the ids of the options.
    pub(super) fn of(options: &Options) -> Result<Self> {
        let mut methods = Methods {
            asked: vec![],
            reference: None,
        };
        for id in &options.precisions {
            let method = quant::parse(id)?;
            match methods.find(&method.id()).map(|same| same.source()) {
                None => methods.push(method, true),
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
        let Some(reference) = &options.reference else {
            return Ok(methods);
        };
        let reference = quant::parse(reference)?;
        let id = reference.id();
        if methods.find(&id).is_none() {
            methods.push(reference, false);
            methods.asked.rotate_right(1);
        }
        // With nothing but the reference there is nothing to see it beside.
        let beside = methods.asked.len() > 1 || options.kv.len() > 1;
        if options.kl && options.noise_floor && beside {
            let floor = quant::noise_floor(&id);
            if let Some(floor) = floor.filter(|floor| methods.find(&floor.id()).is_none()) {
                methods.push(floor, false);
            }
        }
        methods.reference = Some(id);
        Ok(methods)
    }

    fn push(&mut self, method: Box<dyn QuantMethod>, timed: bool) {
        let method = method.into();
        self.asked.push(Asked { method, timed });
    }

    fn find(&self, id: &str) -> Option<&dyn QuantMethod> {
        let mut methods = self.asked.iter().map(|asked| asked.method.as_ref());
        methods.find(|method| method.id() == id)
    }
}

/// Where the children run their models.
pub(super) fn place(options: &Options) -> Result<Place> {
    let device = options.device.parse::<DeviceChoice>()?.resolve()?;
    Ok(Place {
        device: device.to_string(),
        kernels: options.kernels,
        graphs: options.graphs,
    })
}

pub(super) fn model_name(options: &Options) -> String {
    options
        .model
        .as_deref()
        .and_then(|p| p.file_stem())
        .map_or("embedded".into(), |s| s.to_string_lossy().into_owned())
}

/// Refuses options that ask for what a model without text does not have; one with weights has
/// random calibration windows, which may be limited.
pub(super) fn refuse_quality(options: &Options, has_weights: bool) -> Result<()> {
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
