//! One cell after the other: quantized, its memory measured at every point, its texts scored.

use super::super::child::{Ending, Outcome};
use super::super::job::{Event, Job, MeasureJob};
use super::cell::{Point, State, Step};
use super::pieces::Teller;
use super::{Suite, choices, timestamp};
use crate::Result;
use crate::measure::{doubts, nll};
use crate::record::rows::Status;
use crate::record::warning::Warning;

impl Suite<'_> {
    /// Quantizes and measures one precision with one KV cache. `false` if the user asked to stop.
    pub(super) fn measure_cell(&mut self, i: usize) -> Result<bool> {
        self.cells[i].detail.started_at = timestamp();
        let going = match self.quantize(i)? {
            Step::Done => self.measure(i)?,
            other => other,
        };
        let cell = &mut self.cells[i];
        cell.detail.duration_s = cell.took_s;
        match going {
            Step::Done => {
                cell.measured = true;
                let measured = |p: &&mut Point| p.state == State::Measured;
                for point in cell.points.iter_mut().filter(measured) {
                    point.row.status = Status::Ok;
                    point.row.error.clear();
                }
                Ok(true)
            }
            Step::Failed(ending) | Step::TooLarge(_, ending) => {
                self.progress.note(&lost_line(&cell.title, &ending));
                // Half a text's perplexity would pass for a whole one's.
                cell.scores.iter_mut().for_each(Vec::clear);
                cell.choices.clear();
                cell.divergences.clear();
                cell.fail(&ending);
                Ok(true)
            }
            Step::Interrupted => Ok(false),
        }
    }

    /// Measures memory at every point of a cell, then quality. A point that runs out of memory
    /// ends its child; another child goes on with what is left.
    fn measure(&mut self, i: usize) -> Result<Step> {
        loop {
            let open = self.cells[i].open_points(&self.workloads);
            if open.is_empty() && self.texts.is_empty() {
                return Ok(Step::Done);
            }
            let (point, ending) = match self.measure_points(i, &open)? {
                Step::TooLarge(point, ending) => (point, ending),
                step => return Ok(step),
            };
            let cell = &mut self.cells[i];
            cell.out_of_memory(point, &ending);
            if cell.is_lost() {
                return Ok(Step::Failed(ending));
            }
            self.progress
                .note(&lost_line(&cell.point_title(point), &ending));
        }
    }

    pub(super) fn measure_job(&self, i: usize, open: &[usize]) -> Job {
        Job::Measure(MeasureJob {
            place: self.place.clone(),
            subject: self.subject(i),
            kv: self.cells[i].kv.clone(),
            workloads: open.iter().map(|p| self.workloads[*p].clone()).collect(),
            streams: self.scoring.streams.clone(),
            texts: self.scoring.texts.clone(),
            memory_limit_bytes: self.options.memory_limit_bytes,
            choices: choices::items(&self.choices),
            divergence: self.divergence_job(i).map(Box::new),
        })
    }

    /// Of a measurement of these points in the journal.
    pub(super) fn measure_key(&self, i: usize, open: &[usize]) -> String {
        let packed = &self.cells[i].detail.packed_sha256;
        self.keys.run(&self.measure_job(i, open), packed)
    }

    /// Runs one measuring child over these points, and over the texts if it gets through them.
    fn measure_points(&mut self, i: usize, open: &[usize]) -> Result<Step> {
        let key = self.measure_key(i, open);
        let mut teller = match Teller::kept(&self.journal, &key) {
            Some(teller) => teller,
            None => {
                match self.provide_weights(i)? {
                    Step::Done => {}
                    other => return Ok(other),
                }
                match self.provide_reference(i)? {
                    Step::Done => {}
                    other => return Ok(other),
                }
                let job = self.measure_job(i, open);
                Teller::start(&job, key, self.options.threads, self.timeout())?
            }
        };
        let cell = &mut self.cells[i];
        let items: usize = self.choices.iter().map(|set| set.items.len()).sum();
        let windows = self.scoring.windows();
        let (what, steps, unit) = match windows {
            0 => ("memory", open.len(), "workloads"),
            _ => ("quality", windows + items, "windows and items"),
        };
        let stage = self
            .progress
            .stage(&format!("{} {what}", cell.title), steps, unit);
        let mut left = open.iter().copied();
        let mut done = 0;
        let (mut loaded, mut scored) = (false, windows == 0);
        loop {
            match teller.next(self.interrupted) {
                Outcome::Event(Event::Loaded) => loaded = true,
                Outcome::Event(Event::Memory(memory)) => match left.next() {
                    Some(point) => cell.record_memory(point, &memory),
                    None => return Ok(Step::silent()),
                },
                Outcome::Event(Event::Window { text, score }) => {
                    done += 1;
                    stage.set(done);
                    match cell.scores.get_mut(text) {
                        Some(scores) => scores.push(score),
                        None => return Ok(Step::silent()),
                    }
                }
                Outcome::Event(Event::Divergence(window)) => cell.divergences.push(window),
                Outcome::Event(Event::Scored {
                    perplexity_peak_bytes,
                }) => {
                    scored = true;
                    cell.detail
                        .peak_bytes_by_phase
                        .insert("perplexity".into(), perplexity_peak_bytes as u64);
                }
                Outcome::Event(Event::Choice {
                    log_likelihoods_nats,
                }) => {
                    cell.choices.push(log_likelihoods_nats);
                    stage.set(done + cell.choices.len());
                }
                Outcome::Event(other) => return Ok(Step::unexpected(&other)),
                Outcome::Failed(ending) => {
                    return Ok(match left.next() {
                        Some(point) if loaded && ending.status == Status::Oom => {
                            Step::TooLarge(point, ending)
                        }
                        None if loaded => Step::Failed(ending.during("scoring")),
                        _ => Step::Failed(ending),
                    });
                }
                Outcome::Interrupted => return Ok(Step::Interrupted),
                Outcome::Done => break,
            }
        }
        if !scored || left.next().is_some() || cell.choices.len() != items {
            return Ok(Step::silent());
        }
        let peak = format!(
            "peak {:.1} MiB",
            cell.points[cell.first_point()]
                .row
                .peak_memory_bytes
                .unwrap_or(0) as f64
                / f64::from(1 << 20)
        );
        let live = teller.is_live();
        cell.took_s += teller.seconds();
        teller.keep(&mut self.journal, &mut self.info.reused, |r| {
            &mut r.measured
        })?;
        if windows == 0 {
            if live {
                stage.finish(&peak);
            }
            return Ok(Step::Done);
        }
        let uncompared: u64 = cell.divergences.iter().map(|d| d.nonfinite_tokens).sum();
        if uncompared > 0 {
            cell.warnings
                .push(Warning::UncomparedTokens { tokens: uncompared });
        }
        let unanswered = self.choice_rows(&self.cells[i], None);
        let items: u64 = unanswered.iter().map(|row| row.nonfinite_items).sum();
        if items > 0 {
            let doubt = Warning::NonfiniteItems { items };
            self.cells[i].warnings.push(doubt);
        }
        let scored = self.scored_line(i);
        if live {
            stage.finish(&format!("{scored}, {peak}"));
            self.note_choices(i);
        }
        Ok(Step::Done)
    }

    /// What was found under each protocol, for progress; a warning of what was not finite.
    fn scored_line(&mut self, i: usize) -> String {
        let (mut parts, mut warnings) = (vec![], vec![]);
        for (p, (protocol, texts)) in self.by_protocol(&self.cells[i]).enumerate() {
            let (id, scores) = (protocol.id(), texts.concat());
            warnings.extend(match p {
                0 => doubts::quality(&scores, &id),
                _ => doubts::nonfinite(&scores, &id).into_iter().collect(),
            });
            parts.push(match nll::mean_nll(&scores).map(f64::exp) {
                Some(p) => format!("{p:.4} ({id}, {} windows)", scores.len()),
                None => format!("no finite likelihood ({id})"),
            });
        }
        self.cells[i].warnings.extend(warnings);
        parts.join(", ")
    }
}

/// The line of a part of the run that gave no result.
pub(super) fn lost_line(what: &str, ending: &Ending) -> String {
    format!("{what:<28} {}: {}", ending.status.word(), ending.message)
}
