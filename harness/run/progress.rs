//! Progress on standard error: bars on a terminal, plain lines elsewhere.

use crate::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// How much to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Bars,
    Lines,
    Quiet,
}

impl Progress {
    pub fn detect(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Progress::Quiet,
            (false, true) => Progress::Bars,
            (false, false) => Progress::Lines,
        }
    }

    /// Begins a stage of `total` steps, each `unit`.
    pub fn stage(self, label: &str, total: usize, unit: &str) -> Stage {
        let bar = match self {
            Progress::Bars => {
                let bar =
                    ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
                let template = format!(
                    "{{msg:28}} {{bar:30}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left"
                );
                if let Ok(style) = ProgressStyle::with_template(&template) {
                    bar.set_style(style);
                }
                bar.set_message(label.to_string());
                bar.enable_steady_tick(std::time::Duration::from_millis(200));
                bar
            }
            Progress::Lines | Progress::Quiet => ProgressBar::hidden(),
        };
        Stage {
            progress: self,
            bar,
            label: label.into(),
        }
    }

    /// One line between stages.
    pub fn note(self, line: &str) {
        if self != Progress::Quiet {
            say::aside(format_args!("{line}\n"));
        }
    }
}

/// A stage under way.
pub struct Stage {
    progress: Progress,
    bar: ProgressBar,
    label: String,
}

impl Stage {
    pub fn set(&self, done: usize) {
        self.bar.set_position(done as u64);
    }

    /// Ends the stage with a line that stays.
    pub fn finish(self, outcome: &str) {
        self.bar.finish_and_clear();
        self.progress.note(&format!("{:<28} {outcome}", self.label));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
