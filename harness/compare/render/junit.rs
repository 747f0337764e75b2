//! The comparison as JUnit XML: a suite per run, a case per number, a failure per regression, an
//! error per cell that failed or was not comparable.

use super::words::{Shown, title};
use crate::compare::{Comparison, RunComparison, Verdict};

pub fn junit(comparison: &Comparison) -> String {
    let mut suites: Vec<Suite> = comparison.runs.iter().map(suite).collect();
    for name in &comparison.missing_runs {
        let mut suite = Suite::new(match name.as_str() {
            "" => "the folder's own run".into(),
            name => name.into(),
        });
        suite.case("run", "run", Body::Error("the run is missing".into()));
        suites.push(suite);
    }
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    text += &format!(
        "<testsuites name=\"quantbench compare\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n",
        suites.iter().map(|s| s.tests).sum::<usize>(),
        suites.iter().map(|s| s.failures).sum::<usize>(),
        suites.iter().map(|s| s.errors).sum::<usize>(),
    );
    for suite in suites {
        text += &format!(
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n{}  \
             </testsuite>\n",
            escaped(&suite.name),
            suite.tests,
            suite.failures,
            suite.errors,
            suite.skipped,
            suite.cases
        );
    }
    text + "</testsuites>\n"
}

fn suite(run: &RunComparison) -> Suite {
    let mut suite = Suite::new(title(run));
    for d in &run.not_comparable {
        let message = format!("{}: {} against {}", d.what, d.base, d.new);
        suite.case("comparable", &d.what, Body::Error(message));
    }
    for failure in &run.failed {
        let cell = failure.cell.to_string();
        suite.case(
            &cell,
            "cell",
            Body::Error(format!("{cell} {}", failure.what)),
        );
    }
    for change in &run.changes {
        let shown = Shown::of(change);
        let message = format!(
            "{} to {}, change {} % {} (threshold {} %)",
            shown.base,
            shown.new,
            shown.change,
            shown.interval,
            100.0 * change.threshold
        );
        let body = match change.verdict {
            Verdict::Regression => Body::Failure(message),
            Verdict::Undecided => Body::Skipped(format!("{message}: {}", change.note)),
            _ => Body::Passed(message),
        };
        suite.case(&shown.cell, &shown.metric, body);
    }
    suite
}

enum Body {
    Passed(String),
    Failure(String),
    Error(String),
    Skipped(String),
}

struct Suite {
    name: String,
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    cases: String,
}

impl Suite {
    fn new(name: String) -> Self {
        Suite {
            name,
            tests: 0,
            failures: 0,
            errors: 0,
            skipped: 0,
            cases: String::new(),
        }
    }

    fn case(&mut self, class: &str, name: &str, body: Body) {
        self.tests += 1;
        let body = match body {
            Body::Passed(said) => format!("<system-out>{}</system-out>", escaped(&said)),
            Body::Failure(message) => {
                self.failures += 1;
                format!("<failure message=\"{}\"/>", escaped(&message))
            }
            Body::Error(message) => {
                self.errors += 1;
                format!("<error message=\"{}\"/>", escaped(&message))
            }
            Body::Skipped(message) => {
                self.skipped += 1;
                format!("<skipped message=\"{}\"/>", escaped(&message))
            }
        };
        self.cases += &format!(
            "    <testcase classname=\"{}\" name=\"{}\">{body}</testcase>\n",
            escaped(class),
            escaped(name)
        );
    }
}

/// Text for attributes and content. XML 1.0 has no place at all for most control characters and
/// for two code points that are no characters.
fn escaped(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '&' => plain += "&amp;",
            '<' => plain += "&lt;",
            '>' => plain += "&gt;",
            '"' => plain += "&quot;",
            '\'' => plain += "&apos;",
            '\t' | '\n' | '\r' => plain.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => plain.push('?'),
            c => plain.push(c),
        }
    }
    plain
}
