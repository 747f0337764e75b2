//! What a comparison fails on. One struct for the command line, the `[compare]` table of a TOML
//! file, and the JSON of a comparison.
//!
//! Why the defaults are what they are:
//!
//! - `max_perplexity_increase` 0.3 %: about what 8-bit weights with one scale per row cost on the
//!   models kept under `reports/` (0.1 to 0.3 %), the smallest step between two precisions that
//!   anyone chooses between. Two builds that compute the same differ by nothing at all.
//! - `max_kl_increase` 10 %: KL divergence is of second order in the error of the logits, so this
//!   is an error 5 % larger.
//! - `kl_floor_nats` 1e-6: changes of the KL divergence up to this size, or up to the noise floor
//!   that the base run measured, are none whatever their share. Rounding alone amounts to about as
//!   much (7e-7 to 8e-6 nats on the models kept under `reports/`).
//! - `max_prefill_decrease`, `max_decode_decrease` 5 %: less is within what page placement and
//!   code alignment change between two builds of the same kernels.
//! - `max_memory_increase` 1 %: memory is counted, not sampled, and repeats to the byte; a
//!   hundredth leaves room for a table or a buffer of no consequence.
//! - `run_noise` 2 %: how far medians of the same build scatter from run to run on a machine that
//!   does nothing else. It is the least that is assumed: what the repetitions of a run spread, or
//!   repeated runs scatter, is taken into account beside it (`scripts/gate-check.sh OUT pairs`
//!   measures a machine's; a shared virtual machine was seen at five times that, where a decision
//!   needs runs that take turns).
//! - `false_alarms` 1 %: of a hundred comparisons of equal builds, one may alarm. It is shared
//!   equally among all decisions of a comparison (Bonferroni), so that more cells do not mean
//!   more false alarms.

use crate::record::Tables;
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A share, written with its sign: `0.3%` is 0.003.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// `0.003` for 0.3 %.
    pub fn share(self) -> f64 {
        self.0
    }

    const fn of(percent: f64) -> Self {
        Percent(percent / 100.0)
    }
}

impl FromStr for Percent {
    type Err = String;

    /// The sign is asked for because `0.3` alone could mean either.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = text.trim().strip_suffix('%').map(str::trim);
        match number.and_then(|n| n.parse::<f64>().ok()) {
            Some(percent) if (0.0..=1000.0).contains(&percent) => Ok(Percent::of(percent)),
            _ => Err(format!(
                "`{text}` is not a percentage from 0% to 1000%, such as 0.3%"
            )),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // Rounding hides that 0.3 / 100 × 100 is not 0.3.
        write!(f, "{}%", (self.0 * 1e8).round() / 1e6)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Largest changes for the worse that pass, and how sure a comparison has to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    pub max_perplexity_increase: Percent,
    pub max_kl_increase: Percent,
    pub max_prefill_decrease: Percent,
    pub max_decode_decrease: Percent,
    pub max_memory_increase: Percent,
    /// Change of a mean KL divergence that is none, in nats.
    pub kl_floor_nats: f64,
    /// Standard deviation of a run's median speed between runs of one build on one machine.
    pub run_noise: Percent,
    /// Chance that a comparison of two equal builds raises any alarm.
    pub false_alarms: Percent,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            max_perplexity_increase: Percent::of(0.3),
            max_kl_increase: Percent::of(10.0),
            max_prefill_decrease: Percent::of(5.0),
            max_decode_decrease: Percent::of(5.0),
            max_memory_increase: Percent::of(1.0),
            kl_floor_nats: 1e-6,
            run_noise: Percent::of(2.0),
            false_alarms: Percent::of(1.0),
        }
    }
}

impl Thresholds {
    /// The `[compare]` table of a TOML file; other tables are not looked at. Defaults stand where
    /// the table or a key is absent; an unknown key is an error.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Sections {
            #[serde(default)]
            compare: Thresholds,
        }
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(path, e, "name a TOML file with a [compare] table"))?;
        let sections: Sections = toml::from_str(&text).map_err(|e| {
            let what = e.to_string().trim_end().to_string();
            Error::file(path, what, "write it as in `max_decode_decrease = \"5%\"`")
        })?;
        sections.compare.checked()
    }

    /// The `[compare]` table of the suite file that a run was asked for by; `None` without one.
    pub fn stored(run: &Tables) -> Result<Option<Self>> {
        let table = run.info.options.get("compare");
        let Some(table) = table.filter(|t| t.as_object().is_some_and(|t| !t.is_empty())) else {
            return Ok(None);
        };
        let next = "leave the thresholds of its suite aside with --thresholds FILE";
        let read = serde_json::from_value::<Self>(table.clone());
        let read = read.map_err(|e| Error::usage(format!("`compare` in run.json: {e}"), next))?;
        read.checked().map(Some)
    }

    /// Itself, if the values make sense together.
    pub fn checked(self) -> Result<Self> {
        for (name, value) in [
            ("max_prefill_decrease", self.max_prefill_decrease),
            ("max_decode_decrease", self.max_decode_decrease),
        ] {
            if value.share() >= 1.0 {
                return Err(Error::usage(
                    format!("{name} {value} can never be exceeded"),
                    "use less than 100%",
                ));
            }
        }
        if !(1e-6..=0.5).contains(&self.false_alarms.share()) {
            return Err(Error::usage(
                format!("false_alarms {} is no useful chance", self.false_alarms),
                "use 0.0001% to 50%",
            ));
        }
        if !(0.0..=1.0).contains(&self.kl_floor_nats) {
            return Err(Error::usage(
                format!(
                    "kl_floor_nats {} is no divergence to pass over",
                    self.kl_floor_nats
                ),
                "use 0 to 1 nats, such as 0.00001",
            ));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_keep_their_sign() {
        for text in ["0.3%", "10%", "0%", "0.05%", "33.3%"] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), text);
        }
        assert_eq!(" 5 % ".parse::<Percent>().unwrap().share(), 0.05);
        for bad in ["", "%", "0.3", "-1%", "nan%", "inf%", "x%", "2000%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_overrides_defaults_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suite.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Thresholds::read(&path)
        };
        let defaults = Thresholds::default();
        assert_eq!(read("[model]\npath = 'x'\n").unwrap(), defaults);
        let set = read("[compare]\nmax_decode_decrease = \"7.5%\"\n").unwrap();
        assert_eq!(set.max_decode_decrease.share(), 0.075);
        assert_eq!(set.max_prefill_decrease, defaults.max_prefill_decrease);
        for (bad, word) in [
            ("[compare]\nmax_speed = \"1%\"\n", "max_speed"),
            ("[compare]\nrun_noise = 0.01\n", "run_noise"),
            ("[compare]\nrun_noise = \"1\"\n", "percentage"),
            ("[compare]\nmax_decode_decrease = \"100%\"\n", "100%"),
            ("[compare]\nfalse_alarms = \"0%\"\n", "false_alarms"),
            ("[compare]\nkl_floor_nats = -1e-6\n", "kl_floor_nats"),
            ("[compare]\nkl_floor_nats = nan\n", "kl_floor_nats"),
            ("[compare", "line 1"),
        ] {
            let message = read(bad).unwrap_err().to_string();
            assert!(message.contains(word), "{bad}: {message}");
        }
        let text = toml::to_string(&set).unwrap();
        assert_eq!(toml::from_str::<Thresholds>(&text).unwrap(), set);
    }
}
