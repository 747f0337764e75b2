//! Every doubt about a result, as a value: one enum for the whole program.
//!
//! Who measures decides whether there is a doubt (thresholds stand there, with their reasons);
//! here is only what is kept and how it is said. A row holds the words ([`joined`]), `run.json` the
//! values. What lies below the measurement (sources of weights, texts, quantization methods) hands
//! over doubts in its own words, so that a new one of these adds no variant.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which part of a repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Prefill,
    Decode,
}

impl Phase {
    /// As in `samples.csv`.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a few windows can make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Negative log-likelihood.
    Loss,
    /// Its difference to the reference, window by window, as magnitudes.
    Difference,
}

impl Quantity {
    fn words(self) -> &'static str {
        match self {
            Quantity::Loss => "loss",
            Quantity::Difference => "difference to the reference",
        }
    }

    /// What follows for who reads the number.
    fn consequence(self) -> &'static str {
        match self {
            Quantity::Loss => "the perplexity is about them more than about the text",
            Quantity::Difference => "its interval may be too narrow",
        }
    }
}

/// One doubt: its sentence is its attribute, its word (`kind` in `run.json`) its name in kebab-case.
/// Shares and noise are fractions: 0.05 is 5 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Warning {
    // What is measured.
    /// The source of the weights doubts what it gives.
    #[error("{words}")]
    Source { words: String },
    /// A text's own doubt.
    #[error("{words}")]
    Text { words: String },
    /// A text that is not used because it fills no window; `windows` is what the protocol needs at
    /// least.
    #[error(
        "dataset `{dataset}` has {tokens} tokens, too few for {least} of {window_tokens} under \
         {protocol}: not used",
        least = match windows {
            1 => "a window".to_string(),
            n => format!("{n} windows"),
        }
    )]
    ShortText {
        dataset: String,
        tokens: u64,
        windows: u64,
        window_tokens: u64,
        protocol: String,
    },
    /// The text holds the BOS that the protocol puts before it.
    #[error(
        "{windows} windows of dataset `{dataset}` begin with two BOS tokens (id {id}) under \
         {protocol}: the text holds one already"
    )]
    TwoBos {
        dataset: String,
        windows: u64,
        id: u32,
        protocol: String,
    },
    /// The files beside the tokenizer say something else of a BOS than it does.
    #[error(
        "the model's files say that {} is to be put before texts, but its tokenizer puts {}: what \
         the tokenizer does was used",
        if *declared { "a BOS" } else { "no BOS" },
        if *declared { "none" } else { "one" }
    )]
    BosDisagrees { declared: bool },
    /// Weights that were quantized elsewhere.
    #[error(
        "its weights were quantized elsewhere and run here as plain {run_as}: its memory follows \
         from the {bits_per_weight} bits per weight that it declares, and its speed is not measured"
    )]
    Declared {
        run_as: String,
        bits_per_weight: f64,
    },
    /// The quantization method doubts its result.
    #[error("{words}")]
    Method { words: String },

    // Quality.
    #[error(
        "{tokens} of the tokens scored under {protocol} had no finite likelihood, they are left out"
    )]
    NonfiniteTokens { tokens: u64, protocol: String },
    /// Multiple-choice items with a choice that has no finite likelihood.
    #[error(
        "{items} of the multiple-choice items had a choice without finite likelihood, they count \
         as wrong"
    )]
    NonfiniteItems { items: u64 },
    /// Tokens that could not be compared with the reference.
    #[error(
        "{tokens} of the tokens compared with the reference were not finite in one of the two, \
         they are left out"
    )]
    UncomparedTokens { tokens: u64 },
    #[error(
        "{tokens} scored tokens in {windows} windows are too few: intervals of quality are \
         narrower than they should be"
    )]
    FewScoredTokens { windows: u64, tokens: u64 },
    #[error(
        "{windows} of {of_windows} windows make {:.0} % of the {}: {}",
        100.0 * share,
        of.words(),
        of.consequence()
    )]
    HeavyTail {
        of: Quantity,
        windows: u64,
        of_windows: u64,
        share: f64,
    },
    #[error(
        "fewer than 1 % of the tokens make the mean of the KL divergence ({mean_nats:.2e} nats, \
         above the {p99_nats:.2e} that 99 % stay below)"
    )]
    HeavyDivergence { mean_nats: f64, p99_nats: f64 },

    // Memory.
    #[error("{bytes} bytes of the peak belong to no part: the breakdown does not add up")]
    UntaggedMemory { bytes: u64 },
    #[error(
        "all weights ({:.1} MiB) fit the last-level cache ({} MiB): tok/s does not predict that of \
         larger models, and mbu, a share of the bandwidth of memory, can exceed 1",
        *weights_bytes as f64 / f64::from(1 << 20),
        cache_bytes >> 20
    )]
    FitsCache {
        weights_bytes: u64,
        cache_bytes: u64,
    },

    // Speed.
    /// A reference that is there for quality.
    #[error("measured as the reference only, its speed was not asked for")]
    ReferenceOnly,
    /// Shows what cannot be told from this precision, and nothing else.
    #[error(
        "not a precision but the noise floor of {of}: its weights moved by at most one unit in the \
         last place, for comparison, quality only"
    )]
    NoiseFloor { of: String },
    #[error(
        "{tokens} generated tokens in {:.1} ms are too few to time: take decode tok/s as an order \
         of magnitude",
        1e3 * decode_s
    )]
    FewGeneratedTokens { tokens: u64, decode_s: f64 },
    /// `times`: duration over that of the median repetition.
    #[error(
        "the first timed {phase} took {times:.2} times as long as the median one: the machine had \
         not settled after the warm-up"
    )]
    SlowFirstRun { phase: Phase, times: f64 },
    #[error(
        "the warm-up of {phase} took {times:.1} times as long as the median repetition, and the \
         first timed one was still the slowest: one warm-up may not be enough"
    )]
    SlowWarmup { phase: Phase, times: f64 },
    /// `change`: duration of the second half over that of the first, less 1.
    #[error(
        "{phase} became {:.0} % {} in the course of {repetitions} repetitions (heat, clocks, \
         another load?): their median stands for no one state of the machine",
        100.0 * change.abs(),
        if *change > 0.0 { "slower" } else { "faster" }
    )]
    Drift {
        phase: Phase,
        change: f64,
        repetitions: u64,
    },
    #[error(
        "{phase} speed varied by {:.0} % between repetitions: the machine was busy",
        100.0 * spread
    )]
    WideSpread { phase: Phase, spread: f64 },
    /// The most repetitions did not reach the noise asked for.
    #[error(
        "after {repetitions} repetitions, the most allowed, the median of {phase} is uncertain by \
         {:.1} %, and {:.1} % was asked for",
        100.0 * noise,
        100.0 * most_noise
    )]
    StillNoisy {
        phase: Phase,
        noise: f64,
        most_noise: f64,
        repetitions: u64,
    },
    /// A test made repetitions longer than they were.
    #[error("a test multiplied the measured times by {factors}: they are not this machine's")]
    AlteredTimes { factors: String },

    // The run and its machine.
    /// The reference's log-probabilities of one window are more than may be kept.
    #[error("no KL divergence: --kl-cache {most_bytes} holds no whole window of {protocol}")]
    NothingCompared { most_bytes: u64, protocol: String },
    #[error("the machine's own rates were not measured ({why}), so mbu and mfu are empty")]
    RatesNotMeasured { why: String },
    #[error(
        "the machine was busy while its rates were measured (they varied by {:.0} %): mbu and mfu \
         may be too high",
        100.0 * spread
    )]
    BusyMachine { spread: f64 },
    #[error(
        "the GPU's clock moved by {:.0} % around {clock_mhz:.0} MHz while it was timed: part of \
         the differences in speed is the clock",
        100.0 * spread
    )]
    ClockMoved { spread: f64, clock_mhz: f64 },
    #[error(
        "the GPU held its clock down while it was timed ({reasons}): it can be faster than shown"
    )]
    Throttled { reasons: String },
    #[error(
        "{count} other {} used the GPU while it was timed: speed and memory are not its own",
        if *count == 1 { "process" } else { "processes" }
    )]
    OtherProcesses { count: u64 },
    #[error("clock, heat and energy of the GPU are not (all) known: {why}")]
    TelemetryMissing { why: String },

    /// From a later version, read back; its words are in the row.
    #[error("a warning that only a later version knows")]
    #[serde(other)]
    Unknown,
}

impl Warning {
    /// A stable word for programs; `kind` in `run.json`.
    pub fn kind(&self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json["kind"].as_str().unwrap_or_default().into()
    }
}

/// All words in the form of the `warnings` column: joined with `; `, which stands inside none.
pub fn joined(warnings: &[Warning]) -> String {
    let words: Vec<String> = warnings
        .iter()
        .map(|w| w.to_string().replace(';', ","))
        .collect();
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of every kind, and its sentence.
    fn examples() -> Vec<(Warning, &'static str)> {
        let words = |text: &str| text.to_string();
        let phase = Phase::Decode;
        vec![
            (
                Warning::Source {
                    words: words("odd weights"),
                },
                "odd weights",
            ),
            (
                Warning::Text {
                    words: words("odd text"),
                },
                "odd text",
            ),
            (
                Warning::ShortText {
                    dataset: words("notes"),
                    tokens: 9,
                    windows: 2,
                    window_tokens: 512,
                    protocol: words("mine"),
                },
                "dataset `notes` has 9 tokens, too few for 2 windows of 512 under mine: not used",
            ),
            (
                Warning::TwoBos {
                    dataset: words("notes"),
                    windows: 3,
                    id: 1,
                    protocol: words("mine"),
                },
                "3 windows of dataset `notes` begin with two BOS tokens (id 1) under mine: the \
                 text holds one already",
            ),
            (
                Warning::BosDisagrees { declared: true },
                "the model's files say that a BOS is to be put before texts, but its tokenizer \
                 puts none: what the tokenizer does was used",
            ),
            (
                Warning::Declared {
                    run_as: words("f16"),
                    bits_per_weight: 3.5,
                },
                "its weights were quantized elsewhere and run here as plain f16: its memory \
                 follows from the 3.5 bits per weight that it declares, and its speed is not \
                 measured",
            ),
            (
                Warning::Method {
                    words: words("3 inputs were zero"),
                },
                "3 inputs were zero",
            ),
            (
                Warning::NonfiniteTokens {
                    tokens: 7,
                    protocol: words("mine"),
                },
                "7 of the tokens scored under mine had no finite likelihood, they are left out",
            ),
            (
                Warning::NonfiniteItems { items: 2 },
                "2 of the multiple-choice items had a choice without finite likelihood, they \
                 count as wrong",
            ),
            (
                Warning::UncomparedTokens { tokens: 5 },
                "5 of the tokens compared with the reference were not finite in one of the two, \
                 they are left out",
            ),
            (
                Warning::FewScoredTokens {
                    windows: 6,
                    tokens: 3066,
                },
                "3066 scored tokens in 6 windows are too few: intervals of quality are narrower \
                 than they should be",
            ),
            (
                Warning::HeavyTail {
                    of: Quantity::Loss,
                    windows: 2,
                    of_windows: 40,
                    share: 0.41,
                },
                "2 of 40 windows make 41 % of the loss: the perplexity is about them more than \
                 about the text",
            ),
            (
                Warning::HeavyDivergence {
                    mean_nats: 0.02,
                    p99_nats: 0.01,
                },
                "fewer than 1 % of the tokens make the mean of the KL divergence (2.00e-2 nats, \
                 above the 1.00e-2 that 99 % stay below)",
            ),
            (
                Warning::UntaggedMemory { bytes: 4096 },
                "4096 bytes of the peak belong to no part: the breakdown does not add up",
            ),
            (
                Warning::FitsCache {
                    weights_bytes: 3 << 19,
                    cache_bytes: 32 << 20,
                },
                "all weights (1.5 MiB) fit the last-level cache (32 MiB): tok/s does not predict \
                 that of larger models, and mbu, a share of the bandwidth of memory, can exceed \
                 1",
            ),
            (
                Warning::ReferenceOnly,
                "measured as the reference only, its speed was not asked for",
            ),
            (
                Warning::NoiseFloor { of: words("fp16") },
                "not a precision but the noise floor of fp16: its weights moved by at most one \
                 unit in the last place, for comparison, quality only",
            ),
            (
                Warning::FewGeneratedTokens {
                    tokens: 4,
                    decode_s: 0.0123,
                },
                "4 generated tokens in 12.3 ms are too few to time: take decode tok/s as an \
                 order of magnitude",
            ),
            (
                Warning::SlowFirstRun { phase, times: 1.5 },
                "the first timed decode took 1.50 times as long as the median one: the machine \
                 had not settled after the warm-up",
            ),
            (
                Warning::SlowWarmup { phase, times: 2.5 },
                "the warm-up of decode took 2.5 times as long as the median repetition, and the \
                 first timed one was still the slowest: one warm-up may not be enough",
            ),
            (
                Warning::Drift {
                    phase: Phase::Prefill,
                    change: 0.12,
                    repetitions: 9,
                },
                "prefill became 12 % slower in the course of 9 repetitions (heat, clocks, \
                 another load?): their median stands for no one state of the machine",
            ),
            (
                Warning::WideSpread { phase, spread: 0.2 },
                "decode speed varied by 20 % between repetitions: the machine was busy",
            ),
            (
                Warning::StillNoisy {
                    phase,
                    noise: 0.051,
                    most_noise: 0.02,
                    repetitions: 30,
                },
                "after 30 repetitions, the most allowed, the median of decode is uncertain by \
                 5.1 %, and 2.0 % was asked for",
            ),
            (
                Warning::AlteredTimes {
                    factors: words("2,1"),
                },
                "a test multiplied the measured times by 2,1: they are not this machine's",
            ),
            (
                Warning::RatesNotMeasured {
                    why: words("killed"),
                },
                "the machine's own rates were not measured (killed), so mbu and mfu are empty",
            ),
            (
                Warning::BusyMachine { spread: 0.6 },
                "the machine was busy while its rates were measured (they varied by 60 %): mbu \
                 and mfu may be too high",
            ),
            (
                Warning::ClockMoved {
                    spread: 0.13,
                    clock_mhz: 1755.0,
                },
                "the GPU's clock moved by 13 % around 1755 MHz while it was timed: part of the \
                 differences in speed is the clock",
            ),
            (
                Warning::Throttled {
                    reasons: words("heat"),
                },
                "the GPU held its clock down while it was timed (heat): it can be faster than \
                 shown",
            ),
            (
                Warning::OtherProcesses { count: 1 },
                "1 other process used the GPU while it was timed: speed and memory are not its \
                 own",
            ),
            (
                Warning::NothingCompared {
                    most_bytes: 3_000_000,
                    protocol: words("gptq-v1@512"),
                },
                "no KL divergence: --kl-cache 3000000 holds no whole window of gptq-v1@512",
            ),
            (
                Warning::TelemetryMissing {
                    why: words("no NVML"),
                },
                "clock, heat and energy of the GPU are not (all) known: no NVML",
            ),
            (
                Warning::Unknown,
                "a warning that only a later version knows",
            ),
        ]
    }

    #[test]
    fn every_kind_has_its_word_and_its_sentence() {
        let mut kinds = std::collections::BTreeSet::new();
        for (warning, sentence) in examples() {
            let said = warning.to_string();
            assert_eq!(said, sentence);
            assert!(!said.contains(';') && !said.contains('\n'), "{said}");
            let json = serde_json::to_value(&warning).unwrap();
            let back: Warning = serde_json::from_value(json).unwrap();
            assert_eq!(back, warning);
            assert!(kinds.insert(warning.kind()), "{}", warning.kind());
        }
        // Raised together with the enum: an example is missing above if this fails.
        assert_eq!(kinds.len(), 32);
    }

    #[test]
    fn words_that_differ_by_value() {
        let many = Warning::OtherProcesses { count: 2 };
        assert!(many.to_string().starts_with("2 other processes"));
        let faster = Warning::Drift {
            phase: Phase::Decode,
            change: -0.1,
            repetitions: 8,
        };
        assert!(faster.to_string().contains("10 % faster"));
        let tail = Warning::HeavyTail {
            of: Quantity::Difference,
            windows: 1,
            of_windows: 20,
            share: 0.5,
        };
        assert!(tail.to_string().contains("difference to the reference"));
    }

    #[test]
    fn a_kind_from_a_later_version_is_read() {
        let later = r#"{"kind": "cosmic-rays", "count": 3}"#;
        assert_eq!(
            serde_json::from_str::<Warning>(later).unwrap(),
            Warning::Unknown
        );
    }

    #[test]
    fn the_separator_stands_inside_no_warning() {
        let words = |text: &str| Warning::Method { words: text.into() };
        assert_eq!(joined(&[]), "");
        assert_eq!(joined(&[words("a; b"), words("c;d")]), "a, b; c,d");
    }
}
