//! The cells of two runs: which pair up, which are missing or failed, and the numbers of those
//! that pair up with the evidence for each.

use super::comparable::{Difference, perplexities};
use super::metric::{Evidence, METRICS, Metric};
use crate::measure::stats::PairedWindow;
use crate::report::Tables;
use crate::report::content::one_line;
use crate::report::record::{ResultRow, Status, WindowRow};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// What a number belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cell {
    pub device: String,
    pub model: String,
    pub precision: String,
    pub kv_cache: String,
    /// Absent where the number does not depend on it, as quality.
    pub batch: Option<u64>,
    pub prompt_tokens: Option<u64>,
}

impl Cell {
    pub fn of(row: &ResultRow) -> Self {
        Cell {
            device: row.device.clone(),
            model: row.model.clone(),
            precision: row.precision.clone(),
            kv_cache: row.kv_cache.clone(),
            batch: row.batch,
            prompt_tokens: row.prompt_tokens,
        }
    }

    fn of_any_workload(row: &ResultRow) -> Self {
        Cell {
            batch: None,
            prompt_tokens: None,
            ..Cell::of(row)
        }
    }
}

impl fmt::Display for Cell {
    /// `int8 kv=fp16 b=1 ctx=256`; device and model stand in the title of a run.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", one_line(&self.precision))?;
        if !self.kv_cache.is_empty() {
            write!(f, " kv={}", one_line(&self.kv_cache))?;
        }
        if let Some(batch) = self.batch {
            write!(f, " b={batch}")?;
        }
        if let Some(tokens) = self.prompt_tokens {
            write!(f, " ctx={tokens}")?;
        }
        Ok(())
    }
}

/// A cell, or one number of it, that the base has and the new run does not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    pub cell: Cell,
    pub what: String,
}

/// A number of a cell in both runs.
pub struct Observation {
    pub cell: Cell,
    pub metric: &'static Metric,
    /// Of a perplexity.
    pub protocol: Option<String>,
    pub base: f64,
    pub new: f64,
    pub data: Data,
}

/// What tells its change from chance.
pub enum Data {
    Windows {
        windows: Vec<PairedWindow>,
        /// Consecutive windows that share text.
        block: usize,
    },
    /// Divergences of the windows, each times its tokens.
    Divergences {
        windows: Vec<PairedWindow>,
        block: usize,
    },
    /// Tokens per second of each repetition of each run; of each process of each run where these
    /// took turns.
    Repetitions {
        base: Vec<Vec<f64>>,
        new: Vec<Vec<f64>>,
        /// Whether `base[i]` took turns with `new[i]`.
        in_turns: bool,
    },
    Exact,
}

/// The cells of a run against those of another.
#[derive(Default)]
pub struct Matched {
    pub observations: Vec<Observation>,
    pub failed: Vec<Failure>,
    /// What to know and no failure: cells that are new, or failed before too.
    pub notes: Vec<String>,
    /// Evidence that one side lacks.
    pub lacking: Vec<Difference>,
}

/// Matches every cell of the first run of `base` with the one of the first of `new` that has its
/// key. Further runs of a side are repetitions: their speeds count too.
pub fn matched(base_runs: &[Tables], new_runs: &[Tables]) -> Matched {
    let mut all = Matched::default();
    let ([base, ..], [new, ..]) = (base_runs, new_runs) else {
        return all;
    };
    let mut quality_done = BTreeSet::new();
    for a in &base.results {
        let cell = Cell::of(a);
        let b = new.results.iter().find(|b| Cell::of(b) == cell);
        match (a.status, b.map(|b| b.status)) {
            (Status::Ok, None) => all.failed.push(Failure {
                cell,
                what: "is missing".into(),
            }),
            (_, None) => all.notes.push(format!(
                "{cell} is missing; it was `{}` in the base too",
                a.status.word()
            )),
            (Status::Ok, Some(Status::Ok)) => {
                let b = b.unwrap_or(a);
                let quality = quality_done.insert(Cell::of_any_workload(a));
                all.observe((base_runs, a), (new_runs, b), quality);
            }
            (Status::Ok, Some(status)) => {
                let why = one_line(b.map_or("", |b| b.error.as_str()));
                let what = format!("ended as `{}`: {why}", status.word());
                all.failed.push(Failure { cell, what });
            }
            (was, Some(Status::Ok)) => all.notes.push(format!(
                "{cell} is fine; it was `{}` in the base",
                was.word()
            )),
            (was, Some(status)) => all.notes.push(format!(
                "{cell} ended as `{}`; it was `{}` in the base",
                status.word(),
                was.word()
            )),
        }
    }
    for row in &new.results {
        let cell = Cell::of(row);
        if !base.results.iter().any(|a| Cell::of(a) == cell) {
            all.notes.push(format!(
                "{cell} is new: the base has nothing to compare it with"
            ));
        }
    }
    all
}

/// The runs of a side, and a row of the first.
type Row<'a> = (&'a [Tables], &'a ResultRow);

impl Matched {
    fn observe(&mut self, base: Row, new: Row, with_quality: bool) {
        for metric in METRICS {
            match metric.evidence {
                _ if !metric.per_workload && !with_quality => {}
                Evidence::Windows => self.observe_windows(metric, base, new),
                Evidence::Divergences => {
                    let data = |cell: &Cell| Ok(divergences(cell, base, new));
                    self.observe_value(metric, base, new, data);
                }
                Evidence::Repetitions(phase) => {
                    let data = |cell: &Cell| repetitions(cell, phase, base, new);
                    self.observe_value(metric, base, new, data);
                }
                Evidence::Exact => self.observe_value(metric, base, new, |_| Ok(Data::Exact)),
            }
        }
    }

    fn observe_value(
        &mut self,
        metric: &'static Metric,
        base: Row,
        new: Row,
        data: impl Fn(&Cell) -> Result<Data, Difference>,
    ) {
        let cell = match metric.per_workload {
            true => Cell::of(base.1),
            false => Cell::of_any_workload(base.1),
        };
        match ((metric.value)(base.1), (metric.value)(new.1)) {
            (Some(a), Some(b)) => match data(&cell) {
                Ok(data) => self.observations.push(Observation {
                    cell,
                    metric,
                    protocol: None,
                    base: a,
                    new: b,
                    data,
                }),
                Err(lacking) => self.lacking.push(lacking),
            },
            (Some(_), None) => self.failed.push(Failure {
                cell,
                what: format!("has no {}", metric.id),
            }),
            (None, _) => {}
        }
    }

    /// One observation per protocol.
    fn observe_windows(&mut self, metric: &'static Metric, base: Row, new: Row) {
        let cell = Cell::of_any_workload(base.1);
        let found = perplexities(&new.0[0], new.1);
        for (protocol, value) in perplexities(&base.0[0], base.1) {
            let Some((_, other)) = found.iter().find(|(p, _)| *p == protocol) else {
                self.failed.push(Failure {
                    cell: cell.clone(),
                    what: format!("has no {} under {}", metric.id, one_line(&protocol)),
                });
                continue;
            };
            match windows(&cell, &protocol, &base.0[0], &new.0[0]) {
                Ok(windows) => self.observations.push(Observation {
                    cell: cell.clone(),
                    metric,
                    base: value,
                    new: *other,
                    data: Data::Windows {
                        windows,
                        block: block(&base.0[0], &protocol),
                    },
                    protocol: Some(protocol),
                }),
                Err(lacking) => self.lacking.push(lacking),
            }
        }
    }
}

/// Numerator and weight of a window in the mean NLL of its protocol.
fn weighted(row: &WindowRow) -> (f64, f64) {
    match (row.weighted_nll_nats, row.weight) {
        (Some(nll), Some(weight)) => (nll, weight),
        // From before protocols had weights: all of them counted tokens.
        _ => (row.nll_sum_nats, row.scored_tokens as f64),
    }
}

fn windows(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Vec<PairedWindow>, Difference> {
    let pair = |(a, b): &(WindowRow, WindowRow)| {
        let ((base, weight), (new, _)) = (weighted(a), weighted(b));
        PairedWindow {
            delta_nats: new - base,
            weight,
        }
    };
    let rows = paired_rows(cell, protocol, base, new)?;
    Ok(rows.iter().map(pair).collect())
}

/// The windows of a cell in both runs, which must be the same.
fn paired_rows(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Vec<(WindowRow, WindowRow)>, Difference> {
    let of = |tables: &'_ Tables| -> Vec<WindowRow> {
        let rows = tables.windows.iter().filter(|w| {
            (&w.precision, &w.kv_cache) == (&cell.precision, &cell.kv_cache)
                && w.protocol == protocol
        });
        rows.cloned().collect()
    };
    let (a, b) = (of(base), of(new));
    let same = |a: &WindowRow, b: &WindowRow| {
        (&a.dataset, a.window, a.scored_tokens) == (&b.dataset, b.window, b.scored_tokens)
    };
    if a.is_empty() || a.len() != b.len() || !a.iter().zip(&b).all(|(a, b)| same(a, b)) {
        let tokens = |rows: &[WindowRow]| rows.iter().map(|w| w.scored_tokens).sum::<u64>();
        let count = |rows: &[WindowRow]| match rows.is_empty() {
            true => "none in windows.csv".to_string(),
            false => format!("{} windows of {} scored tokens", rows.len(), tokens(rows)),
        };
        let what = format!("windows of {cell} under {}", one_line(protocol));
        return Err(Difference::new(what, count(&a), count(&b)));
    }
    Ok(a.into_iter().zip(b).collect())
}

/// The windows of a cell that were compared with the reference, if they are the same in both runs.
fn divergences(cell: &Cell, base: Row, new: Row) -> Data {
    let protocol = &base.1.protocol;
    let Ok(pairs) = paired_rows(cell, protocol, &base.0[0], &new.0[0]) else {
        return Data::Exact;
    };
    let compared = |row: &WindowRow| Some((row.kl_sum_nats?, row.kl_tokens?));
    let mut windows = vec![];
    for (a, b) in &pairs {
        match (compared(a), compared(b)) {
            (Some((a, tokens)), Some((b, same))) if tokens == same => windows.push(PairedWindow {
                delta_nats: b - a,
                weight: tokens as f64,
            }),
            (None, None) => {}
            _ => return Data::Exact,
        }
    }
    match windows.len() {
        0 => Data::Exact,
        _ => Data::Divergences {
            windows,
            block: block(&base.0[0], protocol),
        },
    }
}

/// How many consecutive windows share text, as the run says; those from before runs said it had
/// none that do.
fn block(run: &Tables, protocol: &str) -> usize {
    let mut protocols = run.info.protocols.iter();
    let described = protocols.find(|p| p.id == protocol);
    described.map_or(1, |p| p.block_windows.max(1) as usize)
}

/// For every run of `base` the one of `new` that took turns with it: both name the same file and
/// were at work at the same time. `None` unless all runs of both sides pair up so.
pub fn in_turns<'a>(base: &[Tables], new: &'a [Tables]) -> Option<Vec<&'a Tables>> {
    let file = |run: &Tables| -> Option<String> {
        let file = run.info.options.get("turns")?.as_str()?;
        Some(file.into())
    };
    let pair = |a: &Tables, b: &Tables| {
        let (a, b, same) = (&a.info, &b.info, file(a).is_some() && file(a) == file(b));
        // Times of RFC 3339 in UTC are ordered as their text is.
        same && a.started_at < b.finished_at && b.started_at < a.finished_at
    };
    let partner = |a: &Tables| {
        let mut partners = new.iter().filter(|b| pair(a, b));
        partners.next().filter(|_| partners.next().is_none())
    };
    let partners: Vec<&Tables> = base.iter().map(partner).collect::<Option<_>>()?;
    let alone = |b: &Tables| base.iter().filter(|a| pair(a, b)).count() == 1;
    new.iter().all(alone).then_some(partners)
}

/// Speeds of the repetitions of a phase in every run, warm-up left out.
fn repetitions(cell: &Cell, phase: &str, base: Row, new: Row) -> Result<Data, Difference> {
    let by_process = |run: &Tables, row: &ResultRow| processes(run, row, phase);
    let (base, new, in_turns) = match in_turns(base.0, new.0) {
        Some(partners) => {
            let pairs = base.0.iter().zip(partners).flat_map(|(a, b)| {
                let new = by_process(b, new.1);
                by_process(a, base.1).into_iter().zip(new)
            });
            let (base, new) = pairs.unzip();
            (base, new, true)
        }
        None => {
            let of = |(runs, row): Row| -> Vec<Vec<f64>> {
                runs.iter()
                    .map(|run| by_process(run, row).concat())
                    .collect()
            };
            (of(base), of(new), false)
        }
    };
    if base.is_empty() || base.iter().chain(&new).any(Vec::is_empty) {
        let count = |runs: &[Vec<f64>]| {
            let counts: Vec<String> = runs.iter().map(|r| r.len().to_string()).collect();
            format!("{} in samples.csv", counts.join(", "))
        };
        let what = format!("{phase} repetitions of {cell}");
        return Err(Difference::new(what, count(&base), count(&new)));
    }
    Ok(Data::Repetitions {
        base,
        new,
        in_turns,
    })
}

/// Speeds of a run's repetitions by process, each of which begins with a warm-up.
fn processes(run: &Tables, row: &ResultRow, phase: &str) -> Vec<Vec<f64>> {
    let (batch, prompt) = (row.batch.unwrap_or(0), row.prompt_tokens.unwrap_or(0));
    let samples = run.samples.iter().filter(|s| {
        (&s.precision, &s.kv_cache) == (&row.precision, &row.kv_cache)
            && (s.phase.as_str(), s.batch) == (phase, batch)
            // Prefill starts at depth 0 whatever its length.
            && (s.context == prompt
                || (s.context == 0 && Some(s.tokens) == prompt.checked_mul(batch)))
    });
    let mut processes = vec![vec![]];
    for sample in samples {
        let speed = sample.tokens as f64 / sample.seconds;
        if sample.warmup {
            processes.push(vec![]);
        } else if speed.is_finite() && speed > 0.0 {
            let last = processes.last_mut();
            last.into_iter().for_each(|process| process.push(speed));
        }
    }
    processes.retain(|speeds| !speeds.is_empty());
    processes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::record::{ProtocolInfo, SampleRow};

    #[test]
    fn a_run_says_how_many_of_its_windows_share_text() {
        let mut run = Tables::default();
        for (id, block_windows) in [("gptq-v1@512", 1), ("hf-strided-v1@512:200", 3), ("x", 0)] {
            run.info.protocols.push(ProtocolInfo {
                id: id.into(),
                block_windows,
                ..ProtocolInfo::default()
            });
        }
        for (id, windows) in [
            ("gptq-v1@512", 1),
            ("hf-strided-v1@512:200", 3),
            ("x", 1),
            ("hf-strided-v1@512:100", 1),
        ] {
            assert_eq!(block(&run, id), windows, "{id}");
        }
    }

    #[test]
    fn a_warm_up_begins_a_process() {
        let mut run = Tables::default();
        for (warmup, seconds) in [
            (true, 9.0),
            (false, 1.0),
            (false, 2.0),
            (true, 9.0),
            (true, 9.0),
            (false, 4.0),
            (false, f64::INFINITY),
        ] {
            run.samples.push(SampleRow {
                phase: "decode".into(),
                batch: 1,
                context: 64,
                tokens: 4,
                warmup,
                seconds,
                ..SampleRow::default()
            });
        }
        let row = ResultRow {
            batch: Some(1),
            prompt_tokens: Some(64),
            ..ResultRow::default()
        };
        let found = processes(&run, &row, "decode");
        assert_eq!(found, [vec![4.0, 2.0], vec![1.0]]);
        assert!(processes(&run, &row, "prefill").is_empty());
    }
}
