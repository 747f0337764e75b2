//! Greedy generation: a prompt, then one token after the other.

use super::decoder::Decoder;
use super::kv_cache::KvCache;
use crate::device::Graph;
use crate::{Error, Result};
use candle_core::Tensor;

/// Generates with one decoder and one cache, again and again.
///
/// Where the device can record steps, the first step of the first generation runs as it is, which
/// leaves every buffer in place, and is then recorded; all later ones are replayed.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    cache: KvCache,
    /// The tokens last chosen, `[batch, 1]`.
    next: Option<Tensor>,
    step: Step,
}

enum Step {
    NotRecorded,
    /// For this many sequences.
    Recorded(Box<dyn Graph>, usize),
    /// The device does not record.
    Plain,
}

impl<'a> Generator<'a> {
    pub fn new(decoder: &'a Decoder, cache: KvCache) -> Self {
        Generator {
            decoder,
            cache,
            next: None,
            step: Step::NotRecorded,
        }
    }

    pub fn decoder(&self) -> &'a Decoder {
        self.decoder
    }

    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Forgets what was generated and runs prompts, `[batch][tokens]` flattened: logits of their
    /// last positions, `[batch, vocab]`.
    pub fn prefill(&mut self, ids: &[u32], batch: usize) -> Result<Tensor> {
        self.cache.clear();
        self.decoder.prefill(ids, batch, &mut self.cache)
    }

    /// Chooses each sequence's next token.
    pub fn choose(&mut self, logits: &Tensor) -> Result<()> {
        self.next = Some(self.decoder.kernels.greedy(logits)?);
        Ok(())
    }

    /// Chooses `tokens` more tokens per sequence, without waiting for the device.
    ///
    /// # Errors
    /// More tokens than the cache has room for, or nothing to start from.
    pub fn decode(&mut self, tokens: usize) -> Result<()> {
        if self.cache.len() + tokens > self.cache.capacity() {
            return Err(Error::usage(
                format!(
                    "{} tokens do not fit a KV cache of {} positions",
                    self.cache.len() + tokens,
                    self.cache.capacity()
                ),
                "ask for a longer cache",
            ));
        }
        for _ in 0..tokens {
            let Some(next) = self.next.clone() else {
                return Err(Error::usage("nothing to decode from", "run a prompt first"));
            };
            match &self.step {
                Step::Recorded(graph, batch) if *batch == next.dim(0)? && graph.is_current() => {
                    graph.replay()?;
                    self.cache.advance(1);
                }
                Step::Plain => self.next = Some(self.run(&next)?),
                _ => {
                    let next = self.run(&next)?;
                    self.step = self.record(&next)?;
                    self.next = Some(next);
                }
            }
        }
        Ok(())
    }

    /// The tokens last chosen, one per sequence.
    pub fn last(&self) -> Result<Vec<u32>> {
        match &self.next {
            Some(next) => Ok(next.flatten_all()?.to_vec1()?),
            None => Ok(vec![]),
        }
    }

    fn run(&mut self, next: &Tensor) -> Result<Tensor> {
        let logits = self.decoder.step(next, &mut self.cache)?;
        self.decoder.kernels.greedy(&logits)
    }

    fn record(&mut self, next: &Tensor) -> Result<Step> {
        let batch = next.dim(0)?;
        let len = self.cache.len();
        if len == self.cache.capacity() {
            return Ok(Step::NotRecorded);
        }
        let kernels = self.decoder.kernels.clone();
        let graph = kernels.record(&mut || self.run(next).map(|_| ()))?;
        // What was recorded has not run.
        self.cache.truncate(len);
        Ok(match graph {
            Some(graph) => Step::Recorded(graph, batch),
            None => Step::Plain,
        })
    }
}
