//! The cells of two runs: which pair up, which are missing or failed, and the numbers of those
//! that pair up with the evidence for each.

use super::cell::{Cell, Data, Failure, Observation, SideRow};
use super::comparable::{Difference, perplexities};
use super::metric::{Evidence, METRICS, Metric};
use super::repetitions::{Turns, repetitions, turns};
use super::windows::{
    WindowDivergence, block, divergences, lost_tokens, noise_floor_nats, windows,
};
use crate::record::Tables;
use crate::record::format::one_line;
use crate::record::rows::Status;
use crate::stats::bootstrap::PairedWindow;
use std::collections::BTreeSet;

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

impl Matched {
    fn observe(&mut self, base: SideRow, new: SideRow, turns: &Turns, with_quality: bool) {
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
        base: SideRow,
        new: SideRow,
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
    fn observe_divergences(&mut self, metric: &'static Metric, base: SideRow, new: SideRow) {
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
        let mean = |of: fn(&WindowDivergence) -> f64| common.iter().map(of).sum::<f64>() / tokens;
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
    fn observe_windows(&mut self, metric: &'static Metric, base: SideRow, new: SideRow) {
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
