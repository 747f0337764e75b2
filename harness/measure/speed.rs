//! Wall time of prefill and decode.

use crate::memory::{self, Part};
use crate::model::generate::Generator;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What one repetition does: a prompt of real text, then greedy decoding from that depth.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Workload {
    /// `batch` prompts of the same length.
    pub prompts: Vec<Vec<u32>>,
    /// Decode steps, one token per sequence each.
    pub generated_tokens: usize,
}

impl Workload {
    /// Sequences of `prompt_tokens` ids cut from a text, one after the other, starting over at
    /// its end.
    pub fn from_text(
        ids: &[u32],
        batch: usize,
        prompt_tokens: usize,
        generated_tokens: usize,
    ) -> Result<Self> {
        if batch == 0 || prompt_tokens == 0 || generated_tokens == 0 {
            return Err(Error::usage(
                "batch, prompt tokens and generated tokens must be at least 1",
                "raise --batch, --prompt-tokens or --gen-tokens",
            ));
        }
        if ids.is_empty() {
            return Err(Error::usage(
                "the prompts' text has no tokens",
                "name a longer text with --datasets",
            ));
        }
        let mut stream = ids.iter().copied().cycle();
        Ok(Workload {
            prompts: (0..batch)
                .map(|_| stream.by_ref().take(prompt_tokens).collect())
                .collect(),
            generated_tokens,
        })
    }

    pub fn batch(&self) -> usize {
        self.prompts.len()
    }

    pub fn prompt_tokens(&self) -> usize {
        self.prompts[0].len()
    }

    /// Cache positions that a repetition fills.
    pub fn positions(&self) -> usize {
        self.prompt_tokens() + self.generated_tokens
    }
}

/// Times of one repetition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub prefill_s: f64,
    /// Prefill and choice of the first token.
    pub ttft_s: f64,
    /// All decode steps.
    pub decode_s: f64,
}

impl Sample {
    /// Multiplies all times.
    pub fn lengthen(&mut self, factor: f64) {
        self.prefill_s *= factor;
        self.ttft_s *= factor;
        self.decode_s *= factor;
    }
}

/// Points of a repetition at which a caller may read counters.
pub enum Phase {
    Prefilled,
    Decoded,
}

/// Runs the workload once. Times are wall clock with the device idle at both ends.
pub fn run_once(
    generator: &mut Generator,
    workload: &Workload,
    at: &mut dyn FnMut(Phase) -> Result<()>,
) -> Result<Sample> {
    let kernels = generator.decoder().kernels.clone();
    let ids = memory::scope(Part::Other, || workload.prompts.concat());
    kernels.synchronize()?;

    let start = Instant::now();
    let logits = generator.prefill(&ids, workload.batch())?;
    kernels.synchronize()?;
    let prefill_s = start.elapsed().as_secs_f64();
    generator.choose(&logits)?;
    kernels.synchronize()?;
    let ttft_s = start.elapsed().as_secs_f64();
    drop(logits);
    at(Phase::Prefilled)?;

    let start = Instant::now();
    generator.decode(workload.generated_tokens)?;
    kernels.synchronize()?;
    let decode_s = start.elapsed().as_secs_f64();
    at(Phase::Decoded)?;
    Ok(Sample {
        prefill_s,
        ttft_s,
        decode_s,
    })
}
