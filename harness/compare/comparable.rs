//! Whether two runs measured the same thing: what differs, named with both values.

use super::cell::Cell;
use crate::record::Tables;
use crate::record::format::one_line;
use crate::record::rows::{OVERALL, ResultRow, Status};
use crate::record::run_info::TextInfo;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Something that must agree and does not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub what: String,
    pub base: String,
    pub new: String,
}

impl Difference {
    pub fn new(what: impl Into<String>, base: impl Into<String>, new: impl Into<String>) -> Self {
        Difference {
            what: what.into(),
            base: base.into(),
            new: new.into(),
        }
    }
}

/// Everything in which two runs differ so that their numbers do not compare; none if they do.
pub fn differences(base: &Tables, new: &Tables) -> Vec<Difference> {
    let mut found = vec![];
    let mut check = |what: &str, base: String, new: String| {
        if base != new {
            found.push(Difference::new(what, named(base), named(new)));
        }
    };
    let (a, b) = (&base.info, &new.info);
    check(
        "metrics version",
        a.metrics_version.to_string(),
        b.metrics_version.to_string(),
    );
    check("host CPU", a.host.cpu.clone(), b.host.cpu.clone());
    check(
        "instruction set",
        a.host.instruction_set.clone(),
        b.host.instruction_set.clone(),
    );
    let on_gpu = |t: &Tables| t.results.iter().any(|row| row.device != "cpu");
    if on_gpu(base) || on_gpu(new) {
        let gpus = |t: &Tables| {
            let names = t.info.host.gpus.iter().map(|gpu| gpu.name.clone());
            names.collect::<Vec<_>>().join(", ")
        };
        check("GPU", gpus(base), gpus(new));
    }
    check("model", a.model.name.clone(), b.model.name.clone());
    check(
        "model weights (sha256)",
        a.model.weights_sha256.clone(),
        b.model.weights_sha256.clone(),
    );
    if ![a, b]
        .iter()
        .any(|info| info.model.config_sha256.is_empty())
    {
        check(
            "model configuration (sha256)",
            a.model.config_sha256.clone(),
            b.model.config_sha256.clone(),
        );
    }
    check(
        "tokenizer (sha256)",
        a.model.tokenizer_sha256.clone(),
        b.model.tokenizer_sha256.clone(),
    );
    if [base, new].iter().all(|t| has_divergence(t)) {
        check("reference", a.reference.clone(), b.reference.clone());
    }
    for (what, of) in AXES {
        let (a, b) = (values(base, *of), values(new, *of));
        if !a.is_empty() && !b.is_empty() && a.is_disjoint(&b) {
            check(what, joined(&a), joined(&b));
        }
    }
    let (a, b) = (protocols(base), protocols(new));
    if !a.is_empty() && !b.is_empty() && a.is_disjoint(&b) {
        check("protocol", joined(&a), joined(&b));
    }
    found.extend(texts(base, new));
    found.extend(rows(base, new));
    found
}

fn named(value: String) -> String {
    match one_line(&value) {
        empty if empty.is_empty() => "nothing".into(),
        value => value,
    }
}

type Axis = (&'static str, fn(&ResultRow) -> Option<String>);

/// Axes of the cells. One without a common value leaves no cell to compare; one with some leaves
/// cells that are missing, which is another thing.
const AXES: &[Axis] = &[
    ("device", |r| Some(r.device.clone())),
    ("KV cache", |r| Some(r.kv_cache.clone())),
    ("batch", |r| r.batch.map(|n| n.to_string())),
    ("prompt tokens", |r| r.prompt_tokens.map(|n| n.to_string())),
];

fn values(tables: &Tables, of: fn(&ResultRow) -> Option<String>) -> BTreeSet<String> {
    tables.results.iter().filter_map(of).collect()
}

fn protocols(tables: &Tables) -> BTreeSet<String> {
    let of_results = tables.results.iter().map(|row| &row.protocol);
    let of_quality = tables.quality.iter().map(|row| &row.protocol);
    of_results
        .chain(of_quality)
        .filter(|protocol| !protocol.is_empty())
        .cloned()
        .collect()
}

fn joined(values: &BTreeSet<String>) -> String {
    values.iter().cloned().collect::<Vec<_>>().join(", ")
}

fn has_divergence(tables: &Tables) -> bool {
    tables.results.iter().any(|row| row.kl_mean_nats.is_some())
}

/// Evaluation and calibration texts: the same token ids, and the same number of windows of them.
fn texts(base: &Tables, new: &Tables) -> Vec<Difference> {
    let of = |tables: &Tables| -> BTreeMap<(String, String), TextInfo> {
        let texts = tables.info.texts.iter();
        texts
            .map(|t| ((t.kind.clone(), t.name.clone()), t.clone()))
            .collect()
    };
    let (base, new) = (of(base), of(new));
    let keys: BTreeSet<_> = base.keys().chain(new.keys()).collect();
    let mut found = vec![];
    for key in keys {
        let what = |of: &str| format!("{} text `{}`{of}", key.0, one_line(&key.1));
        let (Some(a), Some(b)) = (base.get(key), new.get(key)) else {
            let there = |side: &BTreeMap<_, _>| match side.contains_key(key) {
                true => "there",
                false => "missing",
            };
            found.push(Difference::new(what(""), there(&base), there(&new)));
            continue;
        };
        if a.ids_sha256 != b.ids_sha256 {
            let (a, b) = (named(a.ids_sha256.clone()), named(b.ids_sha256.clone()));
            found.push(Difference::new(what(", token ids (sha256)"), a, b));
        } else if a.windows != b.windows {
            let (a, b) = (a.windows.to_string(), b.windows.to_string());
            found.push(Difference::new(what(", windows"), a, b));
        }
    }
    found
}

/// What has to agree in the rows of one cell.
fn rows(base: &Tables, new: &Tables) -> Vec<Difference> {
    let mut found: Vec<Difference> = vec![];
    for (side, tables) in [("BASE", base), ("NEW", new)] {
        let mut seen = BTreeSet::new();
        for row in &tables.results {
            if !seen.insert(Cell::of(row)) {
                let cell = Cell::of(row).to_string();
                let what = format!("rows of {cell} in {side}");
                found.push(Difference::new(what, "one expected", "two or more"));
            }
        }
    }
    for a in &base.results {
        let Some(b) = new.results.iter().find(|b| Cell::of(b) == Cell::of(a)) else {
            continue;
        };
        if (a.status, b.status) != (Status::Ok, Status::Ok) {
            continue;
        }
        let number = |n: Option<u64>| n.map_or("nothing".into(), |n| n.to_string());
        for (what, a, b) in [
            ("threads", number(a.threads), number(b.threads)),
            (
                "generated tokens",
                number(a.generated_tokens),
                number(b.generated_tokens),
            ),
            (
                "scored tokens",
                number(a.scored_tokens),
                number(b.scored_tokens),
            ),
            (
                "peak memory's method",
                named(a.peak_memory_method.clone()),
                named(b.peak_memory_method.clone()),
            ),
        ] {
            let difference = Difference::new(what, a, b);
            if difference.base != difference.new && !found.contains(&difference) {
                found.push(difference);
            }
        }
    }
    found
}

/// The pooled perplexities of a cell by protocol, in the order of the file; the one of
/// `results.csv` where `quality.csv` has none.
pub fn perplexities(tables: &Tables, row: &ResultRow) -> Vec<(String, f64)> {
    let mut pooled: Vec<(String, f64)> = tables
        .quality
        .iter()
        .filter(|q| {
            q.dataset == OVERALL
                && (&q.precision, &q.kv_cache) == (&row.precision, &row.kv_cache)
                && (&q.device, &q.model) == (&row.device, &row.model)
        })
        .map(|q| (q.protocol.clone(), q.perplexity))
        .collect();
    if let (true, Some(perplexity)) = (pooled.is_empty(), row.perplexity) {
        pooled.push((row.protocol.clone(), perplexity));
    }
    pooled
}
