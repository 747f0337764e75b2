//! The cells of two runs: which pair up, which are missing or failed, and the numbers of those
//! that pair up with the evidence for each.

use super::comparable::{Difference, perplexities};
use super::metric::{Evidence, METRICS, Metric};
use crate::record::Tables;
use crate::record::format::one_line;
use crate::record::rows::{ResultRow, SampleRow, Status, WindowRow};
use crate::stats::bootstrap::PairedWindow;
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
    /// Change that the base run itself shows to be none, in the metric's unit.
    pub floor: f64,
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
    let turns = turns(base_runs, new_runs);
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
                all.observe((base_runs, a), (new_runs, b), &turns, quality);
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
    match &turns {
        Turns::Taken(pairs) => all.notes.push(format!(
            "took turns ({} of each side): speeds are compared repetition by repetition",
            pairs.len()
        )),
        Turns::Mixed => all.notes.push(
            "named one --turns file, but their repetitions did not alternate: speeds are compared \
             as of runs apart"
                .into(),
        ),
        Turns::Apart => {}
    }
    all
}

/// The runs of a side, and a row of the first.
type Row<'a> = (&'a [Tables], &'a ResultRow);

impl Matched {
    fn observe(&mut self, base: Row, new: Row, turns: &Turns, with_quality: bool) {
        if let Some(what) = lost_tokens(base.1, new.1).filter(|_| with_quality) {
            let cell = Cell::of_any_workload(base.1);
            self.failed.push(Failure { cell, what });
        }
        for metric in METRICS {
            match metric.evidence {
                _ if !metric.per_workload && !with_quality => {}
                Evidence::Windows => self.observe_windows(metric, base, new),
                Evidence::Divergences => self.observe_divergences(metric, base, new),
                Evidence::Repetitions(phase) => {
                    let data = |cell: &Cell| repetitions(cell, phase, base, new, turns);
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
                    floor: 0.0,
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

    /// Over the windows that both runs compared: a larger `--kl-cache` reaches further texts.
    fn observe_divergences(&mut self, metric: &'static Metric, base: Row, new: Row) {
        let cell = Cell::of_any_workload(base.1);
        let [a, b] = [base, new].map(|row| (metric.value)(row.1));
        if a.and(b).is_none() {
            return self.observe_value(metric, base, new, |_| Ok(Data::Exact));
        }
        let protocol = &base.1.protocol;
        let (common, partial) = match divergences(&cell, protocol, &base.0[0], &new.0[0]) {
            Ok(Some(found)) => found,
            Ok(None) => return self.observe_value(metric, base, new, |_| Ok(Data::Exact)),
            Err(lacking) => return self.lacking.push(lacking),
        };
        let tokens: f64 = common.iter().map(|w| w.tokens).sum();
        if partial {
            self.notes.push(format!(
                "{cell}: {} is compared over the {tokens} tokens that both runs compared",
                metric.title
            ));
        }
        let mean = |of: fn(&Divergence) -> f64| common.iter().map(of).sum::<f64>() / tokens;
        let windows = common.iter().map(|w| PairedWindow {
            delta_nats: w.new_nats - w.base_nats,
            weight: w.tokens,
        });
        self.observations.push(Observation {
            floor: noise_floor_nats(&base.0[0], &cell),
            metric,
            protocol: None,
            base: mean(|w| w.base_nats),
            new: mean(|w| w.new_nats),
            data: Data::Divergences {
                windows: windows.collect(),
                block: block(&base.0[0], protocol),
            },
            cell,
        });
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
                Ok(None) => self.notes.push(format!(
                    "{cell} has other tokens without a finite likelihood: its {} under {} is not \
                     compared",
                    metric.id,
                    one_line(&protocol)
                )),
                Ok(Some(windows)) => self.observations.push(Observation {
                    cell: cell.clone(),
                    metric,
                    base: value,
                    new: *other,
                    data: Data::Windows {
                        windows,
                        block: block(&base.0[0], &protocol),
                    },
                    protocol: Some(protocol),
                    floor: 0.0,
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

/// What a cell's windows tell of a change; nothing where some token of either run had no finite
/// likelihood, so that the means are not of the same tokens.
fn windows(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Option<Vec<PairedWindow>>, Difference> {
    let pair = |(a, b): &(WindowRow, WindowRow)| {
        let ((base, weight), (new, same)) = (weighted(a), weighted(b));
        (weight == same).then_some(PairedWindow {
            delta_nats: new - base,
            weight,
        })
    };
    let rows = paired_rows(cell, protocol, base, new)?;
    Ok(rows.iter().map(pair).collect())
}

/// Tokens without a finite likelihood under any protocol: where they are more than they were, a
/// cell has got worse, whatever its perplexity over the others.
fn lost_tokens(base: &ResultRow, new: &ResultRow) -> Option<String> {
    let (was, is) = (
        base.nonfinite_tokens.unwrap_or(0),
        new.nonfinite_tokens.unwrap_or(0),
    );
    (is > was).then(|| format!("has {is} tokens without a finite likelihood; the base has {was}"))
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

/// One window that both runs compared with their references, summed over its tokens.
struct Divergence {
    base_nats: f64,
    new_nats: f64,
    tokens: f64,
}

/// The windows that both runs compared with their references, and whether one compared more;
/// `None` where a run kept none by window.
fn divergences(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Option<(Vec<Divergence>, bool)>, Difference> {
    let pairs = paired_rows(cell, protocol, base, new)?;
    let compared = |row: &WindowRow| Some((row.kl_sum_nats?, row.kl_tokens?));
    let count = |side: fn(&(WindowRow, WindowRow)) -> &WindowRow| {
        pairs
            .iter()
            .filter(|pair| compared(side(pair)).is_some())
            .count()
    };
    let (of_base, of_new) = (count(|pair| &pair.0), count(|pair| &pair.1));
    if of_base.min(of_new) == 0 {
        return Ok(None);
    }
    let common: Vec<Divergence> = pairs
        .iter()
        .filter_map(|(a, b)| {
            let ((a, tokens), (b, same)) = (compared(a)?, compared(b)?);
            (tokens == same).then_some(Divergence {
                base_nats: a,
                new_nats: b,
                tokens: tokens as f64,
            })
        })
        .collect();
    match common.is_empty() {
        true => Err(Difference::new(
            format!("windows of {cell} compared with the reference"),
            format!("{of_base} windows"),
            format!("{of_new} others"),
        )),
        false => {
            let partial = common.len() < of_base.max(of_new);
            Ok(Some((common, partial)))
        }
    }
}

/// What rounding alone makes of the reference, if the run measured it.
fn noise_floor_nats(run: &Tables, cell: &Cell) -> f64 {
    let floors = run.results.iter().filter(|row| {
        run.info.noise_floors.contains(&row.precision) && row.kv_cache == cell.kv_cache
    });
    floors
        .filter_map(|row| row.kl_mean_nats)
        .fold(0.0, f64::max)
}

/// How many consecutive windows share text, as the run says; those from before runs said it had
/// none that do.
fn block(run: &Tables, protocol: &str) -> usize {
    let mut protocols = run.info.protocols.iter();
    let described = protocols.find(|p| p.id == protocol);
    described.map_or(1, |p| p.block_windows.max(1) as usize)
}

/// Whether the runs of two sides took turns.
enum Turns<'a> {
    /// For every run of the base the one of the other side that took turns with it.
    Taken(Vec<&'a Tables>),
    /// They name the same file and were at work at the same time, but their repetitions did not
    /// alternate: some are from before, or one side had more to do.
    Mixed,
    Apart,
}

/// Runs took turns that name the same file, were at work at the same time, pair up one to one,
/// and whose k-th repetitions of every point both ended before the next ones of either.
fn turns<'a>(base: &[Tables], new: &'a [Tables]) -> Turns<'a> {
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
    let Some(partners) = base.iter().map(partner).collect::<Option<Vec<&Tables>>>() else {
        return Turns::Apart;
    };
    let alone = |b: &Tables| base.iter().filter(|a| pair(a, b)).count() == 1;
    if !new.iter().all(alone) {
        return Turns::Apart;
    }
    let mut pairs = base.iter().zip(&partners);
    match pairs.all(|(a, b)| alternate(a, b)) {
        true => Turns::Taken(partners),
        false => Turns::Mixed,
    }
}

/// Whether the repetitions of every point that both runs timed alternate, and change processes
/// together.
fn alternate(a: &Tables, b: &Tables) -> bool {
    let cells = a.results.iter().filter_map(|row| {
        let cell = Cell::of(row);
        Some((row, b.results.iter().find(|other| Cell::of(other) == cell)?))
    });
    let mut points = cells.map(|(of_a, of_b)| (timed(a, of_a, "decode"), timed(b, of_b, "decode")));
    points.all(|(a, b)| {
        let ends =
            |of: &[&SampleRow]| -> Option<Vec<f64>> { of.iter().map(|s| s.ended_at_s).collect() };
        let (Some(of_a), Some(of_b)) = (ends(&a), ends(&b)) else {
            return false;
        };
        let rounds: Vec<(f64, f64)> = of_a
            .iter()
            .zip(&of_b)
            .map(|(a, b)| (a.min(*b), a.max(*b)))
            .collect();
        let sizes = |of: &[&SampleRow]| -> Vec<usize> {
            let same = |a: &&SampleRow, b: &&SampleRow| a.process == b.process;
            let processes = of[..rounds.len()].chunk_by(same);
            processes.map(<[&SampleRow]>::len).collect()
        };
        rounds.windows(2).all(|w| w[0].1 < w[1].0) && sizes(&a) == sizes(&b)
    })
}

/// Speeds of the repetitions of a phase in every run, warm-up left out.
fn repetitions(
    cell: &Cell,
    phase: &str,
    base: Row,
    new: Row,
    turns: &Turns,
) -> Result<Data, Difference> {
    let by_process = |run: &Tables, row: &ResultRow| processes(run, row, phase);
    let (base, new, in_turns) = match turns {
        Turns::Taken(partners) => {
            let pairs = base.0.iter().zip(partners).flat_map(|(a, b)| {
                let new = by_process(b, new.1);
                by_process(a, base.1).into_iter().zip(new)
            });
            let (base, new) = pairs.unzip();
            (base, new, true)
        }
        Turns::Mixed | Turns::Apart => {
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

/// The repetitions of a phase of a row's point, warm-ups left out.
fn timed<'a>(run: &'a Tables, row: &ResultRow, phase: &str) -> Vec<&'a SampleRow> {
    let (batch, prompt) = (row.batch.unwrap_or(0), row.prompt_tokens.unwrap_or(0));
    let own = |s: &&SampleRow| {
        !s.warmup
            && (&s.precision, &s.kv_cache) == (&row.precision, &row.kv_cache)
            && (s.phase.as_str(), s.batch) == (phase, batch)
            // Prefill starts at depth 0 whatever its length.
            && (s.context == prompt
                || (s.context == 0 && Some(s.tokens) == prompt.checked_mul(batch)))
    };
    run.samples.iter().filter(own).collect()
}

/// Speeds of a run's repetitions by process.
fn processes(run: &Tables, row: &ResultRow, phase: &str) -> Vec<Vec<f64>> {
    let timed = timed(run, row, phase);
    let same = |a: &&SampleRow, b: &&SampleRow| a.process == b.process;
    let speeds = |of: &[&SampleRow]| -> Vec<f64> {
        let speeds = of.iter().map(|s| s.tokens as f64 / s.seconds);
        speeds.filter(|s| s.is_finite() && *s > 0.0).collect()
    };
    let mut processes: Vec<Vec<f64>> = timed.chunk_by(same).map(speeds).collect();
    processes.retain(|speeds| !speeds.is_empty());
    processes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::rows::SampleRow;
    use crate::record::run_info::ProtocolInfo;

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

    /// A point of a run: its repetitions with their process and when they ended.
    fn run_of(repetitions: &[(&str, f64)]) -> Tables {
        let mut run = Tables::default();
        run.results.push(ResultRow {
            batch: Some(1),
            prompt_tokens: Some(64),
            ..ResultRow::default()
        });
        for (rep, (process, ended_at_s)) in repetitions.iter().enumerate() {
            run.samples.push(SampleRow {
                phase: "decode".into(),
                batch: 1,
                context: 64,
                tokens: 4,
                rep: rep as u64,
                warmup: rep == 0,
                seconds: rep as f64,
                process: Some(process.to_string()),
                ended_at_s: Some(*ended_at_s),
                ..SampleRow::default()
            });
        }
        run
    }

    #[test]
    fn repetitions_are_told_apart_by_their_process() {
        let run = run_of(&[("a", 0.0), ("a", 1.0), ("a", 2.0), ("b", 3.0)]);
        let speeds = |phase| processes(&run, &run.results[0], phase);
        assert_eq!(speeds("decode"), [vec![4.0, 2.0], vec![4.0 / 3.0]]);
        assert!(speeds("prefill").is_empty());
        // Of a run from before it was recorded, they are one process's.
        let mut old = run.clone();
        old.samples.iter_mut().for_each(|s| s.process = None);
        assert_eq!(processes(&old, &old.results[0], "decode").len(), 1);
    }

    #[test]
    fn turns_are_told_by_when_repetitions_ended() {
        let base = run_of(&[("a", 0.0), ("a", 1.0), ("a", 3.0), ("b", 5.0)]);
        let taken = |of: &[(&str, f64)]| alternate(&base, &run_of(of));
        assert!(taken(&[("x", 0.0), ("x", 2.0), ("x", 4.0), ("y", 6.0)]));
        // Who goes first may change, and one may have had enough earlier.
        assert!(taken(&[("x", 0.0), ("x", 0.5), ("x", 4.0), ("y", 4.5)]));
        assert!(taken(&[("x", 0.0), ("x", 2.0), ("x", 4.0)]));
        // It began later, it was timed before, its processes changed at another repetition.
        assert!(!taken(&[("x", 0.0), ("x", 3.5), ("x", 5.5), ("y", 6.0)]));
        assert!(!taken(&[("x", 0.0), ("x", -3.0), ("x", -2.0), ("y", -1.0)]));
        assert!(!taken(&[("x", 0.0), ("x", 2.0), ("y", 4.0), ("y", 6.0)]));
        let mut old = base.clone();
        old.samples.iter_mut().for_each(|s| s.ended_at_s = None);
        assert!(!alternate(&base, &old) && !alternate(&old, &base));
    }
}
