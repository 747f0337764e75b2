//! The comparison for a job summary or a pull-request comment: the verdict first, what changed
//! next, all the rest folded.

use super::words::{Shown, failures, headline, notes, rule, title};
use crate::compare::{Change, Comparison};
use crate::record::format::one_line;

pub fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("### quantbench: {}\n\n", headline(comparison));
    text += &format!(
        "{} against {}\n\n",
        escaped(&comparison.new),
        escaped(&comparison.base)
    );
    for sentence in failures(comparison) {
        text += &format!("- {}\n", escaped(&sentence));
    }
    for run in &comparison.runs {
        for d in &run.not_comparable {
            text += &format!(
                "- NOT COMPARABLE: {}: {} against {}\n",
                escaped(&d.what),
                escaped(&d.base),
                escaped(&d.new)
            );
        }
    }
    text.push('\n');
    for run in &comparison.runs {
        let changed = || run.changes.iter().filter(|c| c.verdict.stands_out());
        if changed().next().is_some() {
            text += &format!("{}\n\n{}\n", escaped(&title(run)), table(changed()));
        }
    }
    let all = comparison.changes().count();
    text += &format!("<details><summary>All {all} numbers, and the rule</summary>\n\n");
    for run in &comparison.runs {
        text += &format!(
            "{}\n\n{}\n",
            escaped(&title(run)),
            table(run.changes.iter())
        );
    }
    for sentence in notes(comparison) {
        text += &format!("- {}\n", escaped(&sentence));
    }
    text += &format!("\n{}\n\n</details>\n", escaped(&rule(comparison)));
    text
}

fn table<'a>(changes: impl Iterator<Item = &'a Change>) -> String {
    let row = |cells: [String; 7]| format!("| {} |\n", cells.join(" | "));
    let mut text = row(Shown::HEADER.map(String::from));
    text += "|---|---|---:|---:|---:|---:|---|\n";
    for change in changes {
        text += &row(Shown::of(change).cells().map(|cell| escaped(&cell)));
    }
    text
}

/// Text that Markdown and HTML leave as it is: names come from files that anyone may have made.
fn escaped(text: &str) -> String {
    let mut plain = String::new();
    for c in one_line(text).chars() {
        match c {
            '&' => plain += "&amp;",
            '<' => plain += "&lt;",
            '>' => plain += "&gt;",
            // A mention in a comment would notify someone.
            '@' => plain += "&#64;",
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '#' => {
                plain.push('\\');
                plain.push(c);
            }
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}
