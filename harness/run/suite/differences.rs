//! Quality differences between cells, each computed once: tables are written after every cell,
//! and the scores of a finished one do not change any more.

use crate::measure::nll::PairedDifference;
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
