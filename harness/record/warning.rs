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

/// What a few windows can make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Negative log-likelihood.
    Loss,
    /// Its difference to the reference, window by window, as magnitudes.
    Difference,
}

/// One doubt. Shares and noise are fractions: 0.05 is 5 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Warning {
    // Of what is measured.
    /// The source of the weights doubts what it gives.
    Source {
        words: String,
    },
    /// A text's own doubt.
    Text {
        words: String,
    },
    /// A text that is not used because it fills no window.
    ShortText {
        dataset: String,
        tokens: u64,
        /// What the protocol needs at least.
        windows: u64,
        window_tokens: u64,
        protocol: String,
    },
    /// The text holds the BOS that the protocol puts before it.
    TwoBos {
        dataset: String,
        windows: u64,
        id: u32,
        protocol: String,
    },
    /// The files beside the tokenizer say something else of a BOS than it does.
    BosDisagrees {
        declared: bool,
    },
    /// Weights that were quantized elsewhere.
    Declared {
        run_as: String,
        bits_per_weight: f64,
    },
    /// The quantization method doubts its result.
    Method {
        words: String,
    },

    // Of quality.
    NonfiniteTokens {
        tokens: u64,
        protocol: String,
    },
    /// Multiple-choice items with a choice that has no finite likelihood.
    NonfiniteItems {
        items: u64,
    },
    /// Tokens that could not be compared with the reference.
    UncomparedTokens {
        tokens: u64,
    },
    FewScoredTokens {
        windows: u64,
        tokens: u64,
    },
    HeavyTail {
        of: Quantity,
        windows: u64,
        of_windows: u64,
        share: f64,
    },
    HeavyDivergence {
        mean_nats: f64,
        p99_nats: f64,
    },

    // Of memory.
    UntaggedMemory {
        bytes: u64,
    },
    FitsCache {
        weights_bytes: u64,
        cache_bytes: u64,
    },

    // Of speed.
    /// A reference that is there for quality.
    ReferenceOnly,
    /// Shows what cannot be told from this precision, and nothing else.
    NoiseFloor {
        of: String,
    },
    FewGeneratedTokens {
        tokens: u64,
        decode_s: f64,
    },
    /// `times`: duration over that of the median repetition.
    SlowFirstRun {
        phase: Phase,
        times: f64,
    },
    SlowWarmup {
        phase: Phase,
        times: f64,
    },
    /// `change`: duration of the second half over that of the first, less 1.
    Drift {
        phase: Phase,
        change: f64,
        repetitions: u64,
    },
    WideSpread {
        phase: Phase,
        spread: f64,
    },
    /// The most repetitions did not reach the noise asked for.
    StillNoisy {
        phase: Phase,
        noise: f64,
        most_noise: f64,
        repetitions: u64,
    },
    /// A test made repetitions longer than they were.
    AlteredTimes {
        factors: String,
    },

    // Of the run and its machine.
    /// The reference's log-probabilities of one window are more than may be kept.
    NothingCompared {
        most_bytes: u64,
        protocol: String,
    },
    RatesNotMeasured {
        why: String,
    },
    BusyMachine {
        spread: f64,
    },
    ClockMoved {
        spread: f64,
        clock_mhz: f64,
    },
    Throttled {
        reasons: String,
    },
    OtherProcesses {
        count: u64,
    },
    TelemetryMissing {
        why: String,
    },

    /// From a later version, read back; its words are in the row.
    #[serde(other)]
    Unknown,
}

impl Warning {
    /// A stable word for programs; `kind` in `run.json`.
    pub fn kind(&self) -> &'static str {
        match self {
            Warning::Source { .. } => "source",
            Warning::Text { .. } => "text",
            Warning::ShortText { .. } => "short-text",
            Warning::TwoBos { .. } => "two-bos",
            Warning::BosDisagrees { .. } => "bos-disagrees",
            Warning::Declared { .. } => "declared",
            Warning::Method { .. } => "method",
            Warning::NonfiniteTokens { .. } => "nonfinite-tokens",
            Warning::NonfiniteItems { .. } => "nonfinite-items",
            Warning::UncomparedTokens { .. } => "uncompared-tokens",
            Warning::FewScoredTokens { .. } => "few-scored-tokens",
            Warning::HeavyTail { .. } => "heavy-tail",
            Warning::HeavyDivergence { .. } => "heavy-divergence",
            Warning::UntaggedMemory { .. } => "untagged-memory",
            Warning::FitsCache { .. } => "fits-cache",
            Warning::ReferenceOnly => "reference-only",
            Warning::NoiseFloor { .. } => "noise-floor",
            Warning::FewGeneratedTokens { .. } => "few-generated-tokens",
            Warning::SlowFirstRun { .. } => "slow-first-run",
            Warning::SlowWarmup { .. } => "slow-warmup",
            Warning::Drift { .. } => "drift",
            Warning::WideSpread { .. } => "wide-spread",
            Warning::StillNoisy { .. } => "still-noisy",
            Warning::AlteredTimes { .. } => "altered-times",
            Warning::NothingCompared { .. } => "nothing-compared",
            Warning::RatesNotMeasured { .. } => "rates-not-measured",
            Warning::BusyMachine { .. } => "busy-machine",
            Warning::ClockMoved { .. } => "clock-moved",
            Warning::Throttled { .. } => "throttled",
            Warning::OtherProcesses { .. } => "other-processes",
            Warning::TelemetryMissing { .. } => "telemetry-missing",
            Warning::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Warning::Source { words } | Warning::Text { words } | Warning::Method { words } => {
                f.write_str(words)
            }
            Warning::ShortText {
                dataset,
                tokens,
                windows,
                window_tokens,
                protocol,
            } => {
                let least = match windows {
                    1 => "a window".to_string(),
                    n => format!("{n} windows"),
                };
                write!(
                    f,
                    "dataset `{dataset}` has {tokens} tokens, too few for {least} of \
                     {window_tokens} under {protocol}: not used"
                )
            }
            Warning::TwoBos {
                dataset,
                windows,
                id,
                protocol,
            } => write!(
                f,
                "{windows} windows of dataset `{dataset}` begin with two BOS tokens (id {id}) \
                 under {protocol}: the text holds one already"
            ),
            Warning::BosDisagrees { declared } => {
                let (says, does) = match declared {
                    true => ("a BOS is to be put before texts", "puts none"),
                    false => ("no BOS is to be put before texts", "puts one"),
                };
                write!(
                    f,
                    "the model's files say that {says}, but its tokenizer {does}: what the \
                     tokenizer does was used"
                )
            }
            Warning::Declared {
                run_as,
                bits_per_weight,
            } => write!(
                f,
                "its weights were quantized elsewhere and run here as plain {run_as}: its memory \
                 follows from the {bits_per_weight} bits per weight that it declares, and its speed \
                 is not measured"
            ),
            Warning::NonfiniteTokens { tokens, protocol } => write!(
                f,
                "{tokens} of the tokens scored under {protocol} had no finite likelihood, they are \
                 left out"
            ),
            Warning::NonfiniteItems { items } => write!(
                f,
                "{items} of the multiple-choice items had a choice without finite likelihood, they \
                 count as wrong"
            ),
            Warning::UncomparedTokens { tokens } => write!(
                f,
                "{tokens} of the tokens compared with the reference were not finite in one of the \
                 two, they are left out"
            ),
            Warning::FewScoredTokens { windows, tokens } => write!(
                f,
                "{tokens} scored tokens in {windows} windows are too few: intervals of quality are \
                 narrower than they should be"
            ),
            Warning::HeavyTail {
                of,
                windows,
                of_windows,
                share,
            } => {
                let (what, so) = match of {
                    Quantity::Loss => (
                        "loss",
                        "the perplexity is about them more than about the text",
                    ),
                    Quantity::Difference => (
                        "difference to the reference",
                        "its interval may be too narrow",
                    ),
                };
                write!(
                    f,
                    "{windows} of {of_windows} windows make {:.0} % of the {what}: {so}",
                    100.0 * share
                )
            }
            Warning::HeavyDivergence {
                mean_nats,
                p99_nats,
            } => write!(
                f,
                "fewer than 1 % of the tokens make the mean of the KL divergence ({mean_nats:.2e} \
                 nats, above the {p99_nats:.2e} that 99 % stay below)"
            ),
            Warning::UntaggedMemory { bytes } => write!(
                f,
                "{bytes} bytes of the peak belong to no part: the breakdown does not add up"
            ),
            Warning::FitsCache {
                weights_bytes,
                cache_bytes,
            } => write!(
                f,
                "all weights ({:.1} MiB) fit the last-level cache ({} MiB): tok/s does not predict \
                 that of larger models, and mbu, a share of the bandwidth of memory, can exceed 1",
                *weights_bytes as f64 / f64::from(1 << 20),
                cache_bytes >> 20
            ),
            Warning::ReferenceOnly => {
                f.write_str("measured as the reference only, its speed was not asked for")
            }
            Warning::NoiseFloor { of } => write!(
                f,
                "not a precision but the noise floor of {of}: its weights moved by at most one unit \
                 in the last place, for comparison, quality only"
            ),
            Warning::FewGeneratedTokens { tokens, decode_s } => write!(
                f,
                "{tokens} generated tokens in {:.1} ms are too few to time: take decode tok/s as an \
                 order of magnitude",
                1e3 * decode_s
            ),
            Warning::SlowFirstRun { phase, times } => write!(
                f,
                "the first timed {} took {times:.2} times as long as the median one: the machine \
                 had not settled after the warm-up",
                phase.word()
            ),
            Warning::SlowWarmup { phase, times } => write!(
                f,
                "the warm-up of {} took {times:.1} times as long as the median repetition, and the \
                 first timed one was still the slowest: one warm-up may not be enough",
                phase.word()
            ),
            Warning::Drift {
                phase,
                change,
                repetitions,
            } => write!(
                f,
                "{} became {:.0} % {} in the course of {repetitions} repetitions (heat, clocks, \
                 another load?): their median stands for no one state of the machine",
                phase.word(),
                100.0 * change.abs(),
                if *change > 0.0 { "slower" } else { "faster" }
            ),
            Warning::WideSpread { phase, spread } => write!(
                f,
                "{} speed varied by {:.0} % between repetitions: the machine was busy",
                phase.word(),
                100.0 * spread
            ),
            Warning::StillNoisy {
                phase,
                noise,
                most_noise,
                repetitions,
            } => write!(
                f,
                "after {repetitions} repetitions, the most allowed, the median of {} is uncertain \
                 by {:.1} %, and {:.1} % was asked for",
                phase.word(),
                100.0 * noise,
                100.0 * most_noise
            ),
            Warning::AlteredTimes { factors } => write!(
                f,
                "a test multiplied the measured times by {factors}: they are not this machine's"
            ),
            Warning::RatesNotMeasured { why } => write!(
                f,
                "the machine's own rates were not measured ({why}), so mbu and mfu are empty"
            ),
            Warning::BusyMachine { spread } => write!(
                f,
                "the machine was busy while its rates were measured (they varied by {:.0} %): mbu \
                 and mfu may be too high",
                100.0 * spread
            ),
            Warning::ClockMoved { spread, clock_mhz } => write!(
                f,
                "the GPU's clock moved by {:.0} % around {clock_mhz:.0} MHz while it was timed: \
                 part of the differences in speed is the clock",
                100.0 * spread
            ),
            Warning::Throttled { reasons } => write!(
                f,
                "the GPU held its clock down while it was timed ({reasons}): it can be faster than \
                 shown"
            ),
            Warning::OtherProcesses { count } => write!(
                f,
                "{count} other {} used the GPU while it was timed: speed and memory are not its own",
                if *count == 1 { "process" } else { "processes" }
            ),
            Warning::NothingCompared {
                most_bytes,
                protocol,
            } => write!(
                f,
                "no KL divergence: --kl-cache {most_bytes} holds no whole window of {protocol}"
            ),
            Warning::TelemetryMissing { why } => write!(
                f,
                "clock, heat and energy of the GPU are not (all) known: {why}"
            ),
            Warning::Unknown => f.write_str("a warning that only a later version knows"),
        }
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

    /// One of every kind with the words that must be said.
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
                "`notes` has 9 tokens, too few for 2 windows of 512 under mine",
            ),
            (
                Warning::TwoBos {
                    dataset: words("notes"),
                    windows: 3,
                    id: 1,
                    protocol: words("mine"),
                },
                "3 windows of dataset `notes` begin with two BOS tokens (id 1)",
            ),
            (
                Warning::BosDisagrees { declared: true },
                "its tokenizer puts none",
            ),
            (
                Warning::Declared {
                    run_as: words("f16"),
                    bits_per_weight: 3.5,
                },
                "run here as plain f16: its memory follows from the 3.5 bits",
            ),
            (
                Warning::Method {
                    words: words("3 inputs were zero"),
                },
                "3 inputs",
            ),
            (
                Warning::NonfiniteTokens {
                    tokens: 7,
                    protocol: words("mine"),
                },
                "7 of the tokens scored under mine",
            ),
            (
                Warning::NonfiniteItems { items: 2 },
                "2 of the multiple-choice items",
            ),
            (
                Warning::UncomparedTokens { tokens: 5 },
                "5 of the tokens compared",
            ),
            (
                Warning::FewScoredTokens {
                    windows: 6,
                    tokens: 3066,
                },
                "3066 scored tokens in 6 windows are too few",
            ),
            (
                Warning::HeavyTail {
                    of: Quantity::Loss,
                    windows: 2,
                    of_windows: 40,
                    share: 0.41,
                },
                "2 of 40 windows make 41 % of the loss",
            ),
            (
                Warning::HeavyDivergence {
                    mean_nats: 0.02,
                    p99_nats: 0.01,
                },
                "fewer than 1 % of the tokens",
            ),
            (
                Warning::UntaggedMemory { bytes: 4096 },
                "4096 bytes of the peak",
            ),
            (
                Warning::FitsCache {
                    weights_bytes: 3 << 19,
                    cache_bytes: 32 << 20,
                },
                "all weights (1.5 MiB) fit the last-level cache (32 MiB)",
            ),
            (Warning::ReferenceOnly, "as the reference only"),
            (
                Warning::NoiseFloor { of: words("fp16") },
                "the noise floor of fp16",
            ),
            (
                Warning::FewGeneratedTokens {
                    tokens: 4,
                    decode_s: 0.0123,
                },
                "4 generated tokens in 12.3 ms",
            ),
            (
                Warning::SlowFirstRun { phase, times: 1.5 },
                "the first timed decode took 1.50 times",
            ),
            (
                Warning::SlowWarmup { phase, times: 2.5 },
                "the warm-up of decode took 2.5 times",
            ),
            (
                Warning::Drift {
                    phase: Phase::Prefill,
                    change: 0.12,
                    repetitions: 9,
                },
                "prefill became 12 % slower in the course of 9 repetitions",
            ),
            (
                Warning::WideSpread { phase, spread: 0.2 },
                "decode speed varied by 20 %",
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
                "multiplied the measured times by 2,1",
            ),
            (
                Warning::RatesNotMeasured {
                    why: words("killed"),
                },
                "not measured (killed)",
            ),
            (Warning::BusyMachine { spread: 0.6 }, "varied by 60 %"),
            (
                Warning::ClockMoved {
                    spread: 0.13,
                    clock_mhz: 1755.0,
                },
                "13 % around 1755 MHz",
            ),
            (
                Warning::Throttled {
                    reasons: words("heat"),
                },
                "held its clock down while it was timed (heat)",
            ),
            (Warning::OtherProcesses { count: 1 }, "1 other process used"),
            (
                Warning::NothingCompared {
                    most_bytes: 3_000_000,
                    protocol: words("gptq-v1@512"),
                },
                "--kl-cache 3000000 holds no whole window of gptq-v1@512",
            ),
            (
                Warning::TelemetryMissing {
                    why: words("no NVML"),
                },
                "not (all) known: no NVML",
            ),
            (Warning::Unknown, "later version"),
        ]
    }

    #[test]
    fn every_kind_has_its_word_and_its_words() {
        let mut kinds = std::collections::BTreeSet::new();
        for (warning, words) in examples() {
            let said = warning.to_string();
            assert!(said.contains(words), "{said}");
            assert!(!said.contains(';') && !said.contains('\n'), "{said}");
            let json = serde_json::to_value(&warning).unwrap();
            assert_eq!(json["kind"], warning.kind());
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
