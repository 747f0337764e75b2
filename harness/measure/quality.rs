//! Negative log-likelihood of texts under a model, window by window, under several protocols at
//! once: where two feed the same tokens, one forward pass serves both.

use crate::data::protocol::Window;
use crate::model::decoder::Decoder;
use crate::model::kv_cache::KvCache;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

/// Anything that gives logits for a sequence.
pub trait LanguageModel {
    fn vocab_size(&self) -> usize;

    /// Logits of every position of `ids`, run with an empty context, handed to
    /// `sink(first_row, values)` in order; `values` holds whole rows of `vocab_size`.
    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;
}

/// A decoder with the cache that scoring uses.
pub struct CachedDecoder<'a> {
    pub decoder: &'a Decoder,
    pub cache: KvCache,
}

impl LanguageModel for CachedDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.decoder.config.vocab_size
    }

    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.decoder.score(ids, &mut self.cache, sink)
    }
}

/// What one window contributed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    pub scored_tokens: u64,
    /// Bytes of text that the scored tokens stand for.
    pub scored_bytes: u64,
    pub nll_sum_nats: f64,
    /// Scored tokens whose NLL was not finite; they are left out of the sum and named in a
    /// warning.
    pub nonfinite_tokens: u64,
    /// What the window adds to the numerator of a mean under its protocol.
    pub weighted_nll_nats: f64,
    /// What it adds to the denominator. Tokens with a finite NLL where all tokens weigh the same.
    pub weight: f64,
}

/// A tokenized text: ids and the bytes of text that each stands for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenStream {
    pub ids: Vec<u32>,
    pub bytes: Vec<u32>,
}

/// A text under one protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredText {
    /// The protocol's id.
    pub protocol: String,
    pub windows: Vec<Window>,
}

/// Rows of logits that predict scored tokens, handed on while they are hot.
pub struct ScoredRows<'a> {
    /// Index of the text.
    pub text: usize,
    /// Index of its window.
    pub window: usize,
    pub targets: &'a [u32],
    /// `targets.len()` rows of `vocab_size`: row i predicts `targets[i]`.
    pub logits: &'a [f32],
}

/// Sees the logits of the first protocol's scored tokens, each once, in order of text, window and
/// position.
pub trait Observer {
    fn rows(&mut self, rows: &ScoredRows) -> Result<()>;
}

/// The forward passes that score texts.
pub struct Plan<'a> {
    streams: &'a [TokenStream],
    texts: &'a [ScoredText],
    passes: Vec<Pass>,
}

/// Windows that feed the same tokens, at most one of each protocol.
struct Pass {
    windows: Vec<Place>,
}

/// A window of a text, by index.
#[derive(Clone, Copy)]
struct Place {
    text: usize,
    window: usize,
}

impl<'a> Plan<'a> {
    /// Finds out which windows share a pass. The texts of a protocol stand together; those of the
    /// first are observed. An error names a window that its stream does not hold.
    pub fn new(streams: &'a [TokenStream], texts: &'a [ScoredText]) -> Result<Self> {
        let mut plan = Plan {
            streams,
            texts,
            passes: vec![],
        };
        // By a hash of what they feed.
        let mut alike: HashMap<u64, Vec<usize>> = HashMap::new();
        for (t, text) in texts.iter().enumerate() {
            for (w, window) in text.windows.iter().enumerate() {
                let stream = streams.get(window.stream);
                let whole = |s: &&TokenStream| s.bytes.len() == s.ids.len();
                let Some(stream) = stream.filter(whole) else {
                    return Err(foreign(t, w));
                };
                if !window.is_within(stream.ids.len()) {
                    return Err(foreign(t, w));
                }
                let mut hasher = DefaultHasher::new();
                window.inputs(&stream.ids).hash(&mut hasher);
                let candidates = alike.entry(hasher.finish()).or_default();
                let place = Place { text: t, window: w };
                match candidates.iter().find(|p| plan.serves(**p, place)) {
                    Some(pass) => plan.passes[*pass].windows.push(place),
                    None => {
                        candidates.push(plan.passes.len());
                        plan.passes.push(Pass {
                            windows: vec![place],
                        });
                    }
                }
            }
        }
        Ok(plan)
    }

    /// Forward passes in all.
    pub fn passes(&self) -> usize {
        self.passes.len()
    }

    /// Tokens of the longest pass.
    pub fn longest(&self) -> usize {
        let first = |pass: &Pass| self.window(pass.windows[0]).fed_tokens();
        self.passes.iter().map(first).max().unwrap_or(0)
    }

    fn window(&self, place: Place) -> &'a Window {
        &self.texts[place.text].windows[place.window]
    }

    fn ids(&self, place: Place) -> &'a [u32] {
        &self.streams[self.window(place).stream].ids
    }

    /// Whether a pass feeds what a window wants, and serves no other of its protocol: those keep
    /// their order.
    fn serves(&self, pass: usize, place: Place) -> bool {
        let protocol = |p: &Place| &self.texts[p.text].protocol;
        let served = &self.passes[pass].windows;
        served.iter().all(|p| protocol(p) != protocol(&place))
            && self.window(served[0]).inputs(self.ids(served[0]))
                == self.window(place).inputs(self.ids(place))
    }

    /// Runs every pass. Calls `progress` with the index of a text and the score of its next window:
    /// in order within a text, across texts as passes finish. Returns the scores by text.
    pub fn score(
        &self,
        model: &mut dyn LanguageModel,
        observers: &mut [&mut dyn Observer],
        progress: &mut dyn FnMut(usize, &WindowScore) -> Result<()>,
    ) -> Result<Vec<Vec<WindowScore>>> {
        let mut scores: Vec<Vec<WindowScore>> = vec![vec![]; self.texts.len()];
        // Windows that came before their turn, in the pass of another protocol.
        let mut early: Vec<BTreeMap<usize, WindowScore>> = vec![BTreeMap::new(); self.texts.len()];
        for pass in &self.passes {
            let nlls = self.run(model, pass, observers)?;
            for (place, nlls) in pass.windows.iter().zip(nlls) {
                let Place { text, window } = *place;
                early[text].insert(window, self.summed(*place, &nlls));
                while let Some(score) = early[text].remove(&scores[text].len()) {
                    progress(text, &score)?;
                    scores[text].push(score);
                }
            }
        }
        Ok(scores)
    }

    /// The NLLs of the scored tokens of each of a pass's windows, in their order.
    fn run(
        &self,
        model: &mut dyn LanguageModel,
        pass: &Pass,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Vec<Vec<f64>>> {
        let vocab = model.vocab_size();
        let windows: Vec<(Place, Range<usize>)> = pass
            .windows
            .iter()
            .map(|p| (*p, self.window(*p).rows()))
            .collect();
        let mut nlls: Vec<Vec<f64>> = windows
            .iter()
            .map(|(_, rows)| Vec::with_capacity(rows.len()))
            .collect();
        let first = pass.windows[0];
        let inputs = self.window(first).inputs(self.ids(first));
        model.logits(&inputs, &mut |first_row, values| {
            // Each row's own sum, so that how rows are spread over threads does not matter.
            let normalizers: Vec<f64> = values
                .par_chunks_exact(vocab)
                .enumerate()
                .map(|(r, row)| {
                    let scored = windows.iter().any(|(_, w)| w.contains(&(first_row + r)));
                    if scored { log_sum_exp(row) } else { f64::NAN }
                })
                .collect();
            let last_row = first_row + normalizers.len();
            for ((place, rows), nlls) in windows.iter().zip(&mut nlls) {
                let here = rows.start.max(first_row)..rows.end.min(last_row);
                if here.is_empty() {
                    continue;
                }
                let target = self.window(*place).scored.start + here.start - rows.start;
                let targets = &self.ids(*place)[target..target + here.len()];
                let (from, to) = (here.start - first_row, here.end - first_row);
                let logits = &values[from * vocab..to * vocab];
                let tokens = logits.chunks_exact(vocab).zip(&normalizers[from..to]);
                nlls.extend(tokens.zip(targets).map(|((row, normalizer), target)| {
                    let logit = row.get(*target as usize);
                    logit.map_or(f64::NAN, |l| normalizer - f64::from(*l))
                }));
                if self.texts[place.text].protocol == self.texts[0].protocol {
                    for observer in observers.iter_mut() {
                        observer.rows(&ScoredRows {
                            text: place.text,
                            window: place.window,
                            targets,
                            logits,
                        })?;
                    }
                }
            }
            Ok(())
        })?;
        Ok(nlls)
    }

    fn summed(&self, place: Place, nlls: &[f64]) -> WindowScore {
        let window = self.window(place);
        let bytes = &self.streams[window.stream].bytes[window.scored.clone()];
        let nll_sum_nats: f64 = nlls.iter().filter(|x| x.is_finite()).sum();
        let finite = nlls.iter().filter(|x| x.is_finite()).count();
        WindowScore {
            scored_tokens: nlls.len() as u64,
            scored_bytes: bytes.iter().map(|b| u64::from(*b)).sum(),
            nll_sum_nats,
            nonfinite_tokens: (nlls.len() - finite) as u64,
            weighted_nll_nats: nll_sum_nats * window.nll_scale,
            // Of what is left out neither the sum nor the weight may count.
            weight: window.weight * (finite as f64 / nlls.len() as f64),
        }
    }
}

fn foreign(text: usize, window: usize) -> Error {
    Error::usage(
        format!("window {window} of text {text} does not lie within a token stream"),
        "start the measuring process through quantbench run",
    )
}

/// `ln Σ exp(logits)`, in f64 throughout: sums over large vocabularies keep all digits, so that
/// closed forms hold to 1e-12.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    sum.ln() + max
}

/// `-ln softmax(logits)[target]`; NaN for a target outside of the vocabulary.
pub fn nll_nats(logits: &[f32], target: u32) -> f64 {
    let at_target = logits.get(target as usize);
    at_target.map_or(f64::NAN, |l| log_sum_exp(logits) - f64::from(*l))
}

#[cfg(test)]
mod tests;
