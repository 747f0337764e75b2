//! The comparison as aligned plain ASCII.

use super::words::{Shown, failures, headline, notes, rule, title};
use crate::compare::Comparison;
use crate::record::format::ascii;

pub fn terminal(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut line = |words: &str| {
        text += ascii(words).trim_end();
        text.push('\n');
    };
    for run in &comparison.runs {
        line(&title(run));
        for d in &run.not_comparable {
            line(&format!(
                "NOT COMPARABLE: {}: {} against {}",
                d.what, d.base, d.new
            ));
        }
        let mut rows = vec![Shown::HEADER.map(String::from)];
        rows.extend(
            run.changes
                .iter()
                .map(|c| Shown::of(c).cells().map(|c| ascii(&c))),
        );
        let width = |i: usize| rows.iter().map(|r| r[i].len()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        for row in rows.iter().filter(|_| !run.changes.is_empty()) {
            let cells = row.iter().enumerate().map(|(i, cell)| match i {
                2..=5 => format!("{cell:>0$}", widths[i]),
                _ => format!("{cell:<0$}", widths[i]),
            });
            line(&cells.collect::<Vec<_>>().join("  "));
        }
        line("");
    }
    for sentence in notes(comparison) {
        line(&format!("note: {sentence}"));
    }
    for sentence in failures(comparison) {
        line(&sentence);
    }
    line(&rule(comparison));
    line("");
    line(&format!(
        "{} against {}: {}",
        comparison.new,
        comparison.base,
        headline(comparison)
    ));
    text
}
