//! All rows of a run as they stand.

use super::cell::{Cell, Point, State};
use super::{OVERALL, Suite};
use crate::measure::quality::WindowScore;
use crate::measure::stats;
use crate::report::Tables;
use crate::report::record::{PairRow, QualityRow, ResultRow, RunInfo, WindowRow};

impl Suite<'_> {
    /// All rows as they stand.
    pub(super) fn tables(&self, complete: bool) -> Tables {
        let now = jiff::Timestamp::now();
        let mut tables = Tables {
            info: RunInfo {
                finished_at: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
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
                let perplexities: Vec<f64> = quality
                    .iter()
                    .filter(|q| q.dataset != OVERALL)
                    .map(|q| q.perplexity)
                    .collect();
                detail.macro_perplexity = (!perplexities.is_empty())
                    .then(|| perplexities.iter().sum::<f64>() / perplexities.len() as f64);
                if let Some(overall) = quality.iter().find(|q| q.dataset == OVERALL) {
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
                tables.quality.extend(quality);
                tables.windows.extend(self.window_rows(cell));
                let samples = cell.points.iter().flat_map(|p| &p.samples);
                tables.samples.extend(samples.cloned());
            }
            let asked = |p: &&Point| p.state != State::LeftOut;
            for point in cell.points.iter().filter(asked) {
                tables
                    .results
                    .push(result_row(cell, point, &quality_columns));
            }
        }
        tables.pairs = self.pair_rows();
        tables
    }

    /// Name and scores of every text that was scored, then of all of them.
    fn scored_texts<'b>(&'b self, cell: &'b Cell) -> Vec<(&'b str, Vec<WindowScore>)> {
        let mut texts: Vec<(&str, Vec<WindowScore>)> = self
            .texts
            .iter()
            .zip(&cell.scores)
            .filter(|(_, scores)| !scores.is_empty())
            .map(|(text, scores)| (text.info.name.as_str(), scores.clone()))
            .collect();
        texts.push((OVERALL, cell.scores.concat()));
        texts
    }

    fn quality_rows(&self, cell: &Cell, reference: Option<&Cell>) -> Vec<QualityRow> {
        let reference = reference
            .filter(|r| (&r.id, &r.kv) != (&cell.id, &cell.kv))
            .map(|r| self.scored_texts(r));
        self.scored_texts(cell)
            .iter()
            .filter_map(|(dataset, scores)| {
                let nll = stats::mean_nll(scores)?;
                let se = stats::nll_standard_error(scores);
                let scored_bytes: u64 = scores.iter().map(|s| s.scored_bytes).sum();
                let nll_sum: f64 = scores.iter().map(|s| s.nll_sum_nats).sum();
                let delta = reference.as_ref().and_then(|texts| {
                    let (_, of_reference) = texts.iter().find(|(name, _)| name == dataset)?;
                    stats::paired_difference(of_reference, scores, self.options.seed)
                });
                Some(QualityRow {
                    run_id: self.info.run_id.clone(),
                    device: self.place.device.clone(),
                    model: self.info.model.name.clone(),
                    precision: cell.id.clone(),
                    kv_cache: cell.kv.clone(),
                    protocol: self.protocol.id(),
                    dataset: dataset.to_string(),
                    windows: scores.len() as u64,
                    scored_tokens: scores.iter().map(|s| s.scored_tokens).sum(),
                    scored_bytes,
                    nll_mean_nats: nll,
                    nll_se_nats: se,
                    perplexity: nll.exp(),
                    perplexity_se: se.map(|se| se * nll.exp()),
                    bits_per_byte: (scored_bytes > 0)
                        .then(|| nll_sum / (scored_bytes as f64 * std::f64::consts::LN_2)),
                    delta_nll_nats: delta.map(|d| d.mean_nats),
                    delta_nll_ci_low: delta.and_then(|d| d.ci_nats).map(|ci| ci.0),
                    delta_nll_ci_high: delta.and_then(|d| d.ci_nats).map(|ci| ci.1),
                })
            })
            .collect()
    }

    fn window_rows<'b>(&'b self, cell: &'b Cell) -> impl Iterator<Item = WindowRow> + 'b {
        self.texts
            .iter()
            .zip(&cell.scores)
            .flat_map(move |(text, scores)| {
                scores.iter().enumerate().map(move |(w, score)| WindowRow {
                    run_id: self.info.run_id.clone(),
                    precision: cell.id.clone(),
                    kv_cache: cell.kv.clone(),
                    protocol: self.protocol.id(),
                    dataset: text.info.name.clone(),
                    window: w as u64,
                    scored_tokens: score.scored_tokens,
                    nll_sum_nats: score.nll_sum_nats,
                })
            })
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
                let (of_a, of_b) = (self.scored_texts(a), self.scored_texts(b));
                for ((dataset, a_scores), (_, b_scores)) in of_a.iter().zip(&of_b) {
                    let seed = self.options.seed;
                    if let Some(d) = stats::paired_difference(a_scores, b_scores, seed) {
                        rows.push(PairRow {
                            run_id: self.info.run_id.clone(),
                            protocol: self.protocol.id(),
                            dataset: dataset.to_string(),
                            precision_a: a.id.clone(),
                            precision_b: b.id.clone(),
                            delta_nll_nats: d.mean_nats,
                            delta_nll_ci_low: d.ci_nats.map(|ci| ci.0),
                            delta_nll_ci_high: d.ci_nats.map(|ci| ci.1),
                        });
                    }
                }
            }
        }
        rows
    }
}

/// The row of a point, with the quality of its cell.
fn result_row(cell: &Cell, point: &Point, quality: &ResultRow) -> ResultRow {
    let mut warnings = [&cell.warnings[..], &point.warnings].concat();
    if !cell.timed && cell.declared.is_none() {
        warnings.push("measured as the reference only; its speed was not asked for".into());
    }
    // The separator of the column must not stand inside a warning.
    let warnings: Vec<String> = warnings.iter().map(|w| w.replace("; ", ", ")).collect();
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
        warnings: warnings.join("; "),
        ..point.row.clone()
    }
}
