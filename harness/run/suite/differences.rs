//! Quality differences between cells, each computed once: tables are written after every cell,
//! and the scores of a finished one do not change any more.

use crate::measure::stats::PairedDifference;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Two cells, by their titles, and what is compared of them.
type Key = (String, String, String);

/// What was computed so far.
#[derive(Default)]
pub(super) struct Differences(RefCell<BTreeMap<Key, Option<PairedDifference>>>);

impl Differences {
    /// The difference of cell `b` to cell `a` over `text`, computed at the first call. Only for
    /// cells that are measured to the end.
    pub(super) fn of(
        &self,
        a: &str,
        b: &str,
        text: &str,
        compute: impl FnOnce() -> Option<PairedDifference>,
    ) -> Option<PairedDifference> {
        let key = (a.into(), b.into(), text.into());
        if let Some(known) = self.0.borrow().get(&key) {
            return *known;
        }
        let difference = compute();
        self.0.borrow_mut().insert(key, difference);
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::quality::WindowScore;
    use crate::measure::stats::{RESAMPLES, paired_difference};
    use std::time::Instant;

    /// Scores of `windows` windows, seeded by `precision`.
    fn scores(precision: u32, windows: u32) -> Vec<WindowScore> {
        (0..windows)
            .map(|w| WindowScore {
                scored_tokens: 511,
                scored_bytes: 2000,
                nll_sum_nats: 1500.0 + f64::from(w * 37 % 101) + f64::from(w * precision % 7),
                nonfinite_tokens: 0,
            })
            .collect()
    }

    #[test]
    fn all_differences_of_a_run_take_less_than_a_second() {
        // Five precisions on six texts of 147 windows together, and on the pool.
        let windows = [25, 25, 25, 24, 24, 24, 147];
        let once = || {
            let differences = Differences::default();
            let start = Instant::now();
            for a in 0..5 {
                for b in a + 1..5 {
                    for (text, n) in windows.into_iter().enumerate() {
                        let (a, b) = (a.to_string(), b.to_string());
                        let of = |p: &str| scores(p.parse().unwrap(), n);
                        let found = differences.of(&a, &b, &text.to_string(), || {
                            paired_difference(&of(&a), &of(&b), 1)
                        });
                        assert!(found.unwrap().ci_nats.is_some());
                    }
                }
            }
            start.elapsed().as_secs_f64()
        };
        // The best of three: other tests run beside this one.
        let seconds = (0..3).map(|_| once()).fold(f64::INFINITY, f64::min);
        println!("70 differences of {RESAMPLES} resamples: {seconds:.3} s");
        assert!(seconds < 1.0, "{seconds}");
    }

    #[test]
    fn each_is_computed_once() {
        let differences = Differences::default();
        let some = Some(PairedDifference {
            mean_nats: 0.5,
            ci_nats: None,
        });
        let mut computed = 0;
        for _ in 0..3 {
            let found = differences.of("fp16", "int8", "prose", || {
                computed += 1;
                some
            });
            assert_eq!(found, some);
            // That there is none is known as well.
            let none = differences.of("fp16", "int8", "code", || {
                computed += 1;
                None
            });
            assert_eq!(none, None);
        }
        assert_eq!(computed, 2);
        // The other way round is another one.
        assert_eq!(differences.of("int8", "fp16", "prose", || None), None);
    }
}
