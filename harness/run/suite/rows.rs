//! All rows of a run as they stand.

use super::cell::{Cell, Point, State};
use super::{Suite, divergence, timestamp};
use crate::data::protocol::Protocol;
use crate::measure::divergence::{WindowDivergence, perplexity_ratio};
use crate::measure::doubts;
use crate::measure::nll;
use crate::measure::quality::WindowScore;
use crate::record::Tables;
use crate::record::rows::{OVERALL, PairRow, QualityRow, ResultRow, WindowRow};
use crate::record::run_info::{CellDetail, RunInfo, WorkloadDetail};
use crate::record::warning::{self, Warning};

impl Suite<'_> {
    /// All rows as they stand.
    pub(super) fn tables(&self, complete: bool) -> Tables {
        let mut tables = Tables {
            info: RunInfo {
                finished_at: timestamp(),
                duration_s: self.started.elapsed().as_secs_f64() + self.info.reused.seconds,
                complete,
                cells: self.cells.iter().map(|c| c.detail.clone()).collect(),
                ..self.info.clone()
            },
            ..Tables::default()
        };
        // With the first KV cache: cells of a precision stand in the order of the caches.
        let reference = self
            .cells
            .iter()
            .find(|c| Some(&c.id) == self.reference.as_ref())
            .filter(|c| c.measured);
        for (cell, detail) in self.cells.iter().zip(&mut tables.info.cells) {
            let mut quality_columns = ResultRow::default();
            if cell.measured {
                let quality = self.quality_rows(cell, reference);
                // Of the first protocol: results.csv and its means never mix two.
                let first = self.protocols[0].id();
                let perplexities: Vec<f64> = quality
                    .iter()
                    .filter(|q| q.protocol == first && q.dataset != OVERALL)
                    .map(|q| q.perplexity)
                    .collect();
                detail.macro_perplexity = (!perplexities.is_empty())
                    .then(|| perplexities.iter().sum::<f64>() / perplexities.len() as f64);
                let mut overall = quality.iter().filter(|q| q.dataset == OVERALL);
                if let Some(overall) = overall.find(|q| q.protocol == first) {
                    let row = &mut quality_columns;
                    row.perplexity = Some(overall.perplexity);
                    row.perplexity_se = overall.perplexity_se;
                    row.protocol = overall.protocol.clone();
                    row.dataset = overall.dataset.clone();
                    row.scored_tokens = Some(overall.scored_tokens);
                    row.delta_nll_nats = overall.delta_nll_nats;
                    row.delta_nll_ci_low = overall.delta_nll_ci_low;
                    row.delta_nll_ci_high = overall.delta_nll_ci_high;
                    row.bits_per_byte = overall.bits_per_byte;
                }
                divergence::record(cell, &mut quality_columns, detail);
                let compared = reference.filter(|r| (&r.id, &r.kv) != (&cell.id, &cell.kv));
                if let Some(reference) = compared {
                    let [of, with] = [reference, cell].map(|c| self.first_scores(c));
                    let ratio = perplexity_ratio(&of, &with);
                    quality_columns.perplexity_ratio = ratio.map(|r| r.0);
                    quality_columns.perplexity_ratio_se = ratio.and_then(|r| r.1);
                }
                tables.quality.extend(quality);
                tables.windows.extend(self.window_rows(cell));
                tables.choices.extend(self.choice_rows(cell, reference));
                let samples = cell.points.iter().flat_map(|p| &p.samples);
                tables.samples.extend(samples.cloned());
            }
            let asked = |(_, p): &(usize, &Point)| p.state != State::LeftOut;
            for (p, point) in cell.points.iter().enumerate().filter(asked) {
                let mut row = result_row(point, &quality_columns);
                let warnings = self.warnings_of(cell, point, reference, &row);
                row.warnings = warning::joined(&warnings);
                enter(detail, p, &row, point, warnings);
                tables.results.push(row);
            }
        }
        tables.pairs = self.pair_rows();
        tables.speed_pairs = self.speed_pairs.clone();
        tables
    }

    /// The texts' scores in a cell under each protocol.
    pub(super) fn by_protocol<'b>(
        &'b self,
        cell: &'b Cell,
    ) -> impl Iterator<Item = (&'b Protocol, &'b [Vec<WindowScore>])> {
        // A model without weights has protocols, and no texts.
        let texts = self.texts.len().max(1);
        self.protocols.iter().zip(cell.scores.chunks(texts))
    }

    /// All windows under the first protocol.
    fn first_scores(&self, cell: &Cell) -> Vec<WindowScore> {
        let mut protocols = self.by_protocol(cell);
        protocols.next().map_or_else(Vec::new, |(_, s)| s.concat())
    }

    /// Name and scores of every text that was scored under a protocol, then of all of them.
    fn scored_texts(&self, scores: &[Vec<WindowScore>]) -> Vec<(&str, Vec<WindowScore>)> {
        let mut texts: Vec<(&str, Vec<WindowScore>)> = self
            .texts
            .iter()
            .zip(scores)
            .filter(|(_, scores)| !scores.is_empty())
            .map(|(text, scores)| (text.name.as_str(), scores.clone()))
            .collect();
        texts.push((OVERALL, scores.concat()));
        texts
    }

    /// What a cell's texts have become under every protocol, each against the reference's under
    /// the same.
    fn quality_rows(&self, cell: &Cell, reference: Option<&Cell>) -> Vec<QualityRow> {
        let reference = reference.filter(|r| (&r.id, &r.kv) != (&cell.id, &cell.kv));
        let mut rows = vec![];
        for (p, (protocol, scores)) in self.by_protocol(cell).enumerate() {
            let of_reference = reference
                .and_then(|r| self.by_protocol(r).nth(p))
                .map(|(_, scores)| self.scored_texts(scores));
            for (dataset, scores) in self.scored_texts(scores) {
                let of_reference = of_reference.as_ref().and_then(|texts| {
                    let text = texts.iter().find(|(name, _)| *name == dataset)?;
                    Some(text.1.as_slice())
                });
                rows.extend(self.quality_row(cell, protocol, dataset, &scores, of_reference));
            }
        }
        rows
    }

    fn quality_row(
        &self,
        cell: &Cell,
        protocol: &Protocol,
        dataset: &str,
        scores: &[WindowScore],
        of_reference: Option<&[WindowScore]>,
    ) -> Option<QualityRow> {
        let nll = nll::mean_nll(scores)?;
        let se = nll::nll_standard_error(scores);
        let scored_bytes: u64 = scores.iter().map(|s| s.scored_bytes).sum();
        let nll_sum: f64 = scores.iter().map(|s| s.nll_sum_nats).sum();
        let delta = of_reference.and_then(|of_reference| {
            let against = self.reference.as_deref().unwrap_or_default();
            let text = format!("{dataset} {}", protocol.id());
            self.differences.of(against, &cell.title, &text, || {
                let block = protocol.block_windows();
                nll::paired_difference(of_reference, scores, block, self.options.seed)
            })
        });
        Some(QualityRow {
            run_id: self.info.run_id.clone(),
            device: self.place.device.clone(),
            model: self.info.model.name.clone(),
            precision: cell.id.clone(),
            kv_cache: cell.kv.clone(),
            protocol: protocol.id(),
            dataset: dataset.to_string(),
            windows: scores.len() as u64,
            scored_tokens: scores.iter().map(|s| s.scored_tokens).sum(),
            scored_bytes,
            nll_mean_nats: nll,
            nll_se_nats: se,
            perplexity: nll.exp(),
            perplexity_se: se.map(|se| se * nll.exp()),
            // Of lost tokens the bytes would count and the likelihood would not.
            bits_per_byte: (scored_bytes > 0 && scores.iter().all(|s| s.nonfinite_tokens == 0))
                .then(|| nll_sum / (scored_bytes as f64 * std::f64::consts::LN_2)),
            delta_nll_nats: delta.map(|d| d.mean_nats),
            delta_nll_ci_low: delta.and_then(|d| d.ci_nats).map(|ci| ci.0),
            delta_nll_ci_high: delta.and_then(|d| d.ci_nats).map(|ci| ci.1),
        })
    }

    fn window_rows(&self, cell: &Cell) -> Vec<WindowRow> {
        let mut rows = vec![];
        let compared = |text: usize, window: usize| {
            let mut divergences = cell.divergences.iter();
            divergences.find(|d| (d.text, d.window) == (text, window))
        };
        let mut number = 0;
        for (protocol, texts) in self.by_protocol(cell) {
            for (text, scores) in self.texts.iter().zip(texts) {
                let t = number;
                number += 1;
                rows.extend(scores.iter().enumerate().map(|(w, score)| WindowRow {
                    run_id: self.info.run_id.clone(),
                    precision: cell.id.clone(),
                    kv_cache: cell.kv.clone(),
                    protocol: protocol.id(),
                    dataset: text.name.clone(),
                    window: w as u64,
                    scored_tokens: score.scored_tokens,
                    nll_sum_nats: score.nll_sum_nats,
                    weighted_nll_nats: Some(score.weighted_nll_nats),
                    weight: Some(score.weight),
                    kl_tokens: compared(t, w).map(WindowDivergence::tokens),
                    kl_sum_nats: compared(t, w).map(|d| d.kl_sum_nats),
                }));
            }
        }
        rows
    }

    /// All doubts about a row, those that need the reference included.
    fn warnings_of(
        &self,
        cell: &Cell,
        point: &Point,
        reference: Option<&Cell>,
        row: &ResultRow,
    ) -> Vec<Warning> {
        let mut warnings = [&cell.warnings[..], &point.warnings].concat();
        if cell.measured {
            let against = reference.filter(|r| r.title != cell.title);
            let difference = against.and_then(|reference| {
                let [of, with] = [reference, cell].map(|c| self.first_scores(c));
                doubts::difference(&of, &with)
            });
            warnings.extend(difference);
            warnings.extend(doubts::divergence(row.kl_mean_nats, row.kl_p99_nats));
        }
        match cell.method.noise_floor_of() {
            _ if cell.timed || cell.declared.is_some() => {}
            Some(of) => warnings.push(Warning::NoiseFloor { of }),
            None => warnings.push(Warning::ReferenceOnly),
        }
        warnings
    }

    fn pair_rows(&self) -> Vec<PairRow> {
        // The file names precisions only, so all of them with one cache: the first.
        let first = self.options.kv.first();
        let measured: Vec<&Cell> = self
            .cells
            .iter()
            .filter(|c| c.measured && Some(&c.kv) == first)
            .collect();
        let mut rows = vec![];
        for (n, a) in measured.iter().enumerate() {
            for b in &measured[n + 1..] {
                rows.extend(self.rows_of_pair(a, b));
            }
        }
        rows
    }

    fn rows_of_pair(&self, a: &Cell, b: &Cell) -> Vec<PairRow> {
        let mut rows = vec![];
        for ((protocol, of_a), (_, of_b)) in self.by_protocol(a).zip(self.by_protocol(b)) {
            let (of_a, of_b) = (self.scored_texts(of_a), self.scored_texts(of_b));
            for ((dataset, of_a), (_, of_b)) in of_a.iter().zip(&of_b) {
                let text = format!("{dataset} {}", protocol.id());
                let difference = self.differences.of(&a.title, &b.title, &text, || {
                    let block = protocol.block_windows();
                    nll::paired_difference(of_a, of_b, block, self.options.seed)
                });
                let Some(d) = difference else { continue };
                rows.push(PairRow {
                    run_id: self.info.run_id.clone(),
                    protocol: protocol.id(),
                    dataset: dataset.to_string(),
                    precision_a: a.id.clone(),
                    precision_b: b.id.clone(),
                    delta_nll_nats: d.mean_nats,
                    delta_nll_ci_low: d.ci_nats.map(|ci| ci.0),
                    delta_nll_ci_high: d.ci_nats.map(|ci| ci.1),
                });
            }
        }
        rows
    }
}

/// The row of a point, with the quality of its cell.
fn result_row(point: &Point, quality: &ResultRow) -> ResultRow {
    ResultRow {
        perplexity: quality.perplexity,
        perplexity_se: quality.perplexity_se,
        protocol: quality.protocol.clone(),
        dataset: quality.dataset.clone(),
        scored_tokens: quality.scored_tokens,
        delta_nll_nats: quality.delta_nll_nats,
        delta_nll_ci_low: quality.delta_nll_ci_low,
        delta_nll_ci_high: quality.delta_nll_ci_high,
        bits_per_byte: quality.bits_per_byte,
        kl_mean_nats: quality.kl_mean_nats,
        kl_p99_nats: quality.kl_p99_nats,
        top1_agreement: quality.top1_agreement,
        kl_tokens: quality.kl_tokens,
        kl_median_nats: quality.kl_median_nats,
        kl_p90_nats: quality.kl_p90_nats,
        kl_max_nats: quality.kl_max_nats,
        delta_p_mean: quality.delta_p_mean,
        delta_p_rms: quality.delta_p_rms,
        perplexity_ratio: quality.perplexity_ratio,
        perplexity_ratio_se: quality.perplexity_ratio_se,
        nonfinite_tokens: quality.nonfinite_tokens,
        ..point.row.clone()
    }
}

/// Enters the timing and warnings of point `p` where `run.json` keeps them. A further point that
/// failed before its memory was known has no place there; its row says why.
fn enter(detail: &mut CellDetail, p: usize, row: &ResultRow, point: &Point, of: Vec<Warning>) {
    let own = |w: &&mut WorkloadDetail| {
        (Some(w.batch), Some(w.prompt_tokens)) == (row.batch, row.prompt_tokens)
    };
    if p == 0 {
        detail.timing = point.timing.clone();
        detail.warnings = of;
    } else if let Some(workload) = detail.further.iter_mut().find(own) {
        workload.timing = point.timing.clone();
        workload.warnings = of;
    }
}
