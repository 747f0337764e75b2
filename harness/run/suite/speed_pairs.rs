//! How many times as fast one precision is as another, for every pair that ran the same workload.

use super::Suite;
use super::cell::{Cell, Point, State};
use crate::record::rows::SpeedPairRow;
use crate::record::warning::Phase;
use crate::stats::medians::median_ratio;
use crate::stats::quantiles::median;

impl Suite<'_> {
    /// All pairs of precisions with the same KV cache, at every workload. A precision that was not
    /// timed, or failed, is in none.
    pub(super) fn compare_speeds(&self) -> Vec<SpeedPairRow> {
        let mut rows = vec![];
        for kv in &self.options.kv {
            for (p, workload) in self.workloads.iter().enumerate() {
                let timed: Vec<(&Cell, &Point)> = self
                    .cells
                    .iter()
                    .filter(|cell| cell.timed && cell.kv == *kv)
                    .filter_map(|cell| Some((cell, cell.points.get(p)?)))
                    .filter(|(_, point)| point.state == State::Measured)
                    .collect();
                for phase in [Phase::Prefill, Phase::Decode] {
                    for (n, (a, of_a)) in timed.iter().enumerate() {
                        for (b, of_b) in &timed[n + 1..] {
                            let rates = (of_a.rates(phase), of_b.rates(phase));
                            let Some(ratio) = median(&rates.1).zip(median(&rates.0)) else {
                                continue;
                            };
                            let interval = median_ratio(&rates.0, &rates.1, self.options.seed);
                            rows.push(SpeedPairRow {
                                run_id: self.info.run_id.clone(),
                                kv_cache: kv.clone(),
                                phase: phase.word().into(),
                                batch: workload.batch() as u64,
                                context: workload.prompt_tokens() as u64,
                                precision_a: a.id.clone(),
                                precision_b: b.id.clone(),
                                ratio: ratio.0 / ratio.1,
                                ratio_ci_low: interval.map(|i| i.low),
                                ratio_ci_high: interval.map(|i| i.high),
                            });
                        }
                    }
                }
            }
        }
        rows
    }
}
