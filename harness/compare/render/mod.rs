//! A comparison as text: for a terminal, Markdown, JSON and JUnit XML. All say the same.

mod junit;
mod markdown;
mod terminal;
mod words;

pub use junit::junit;
pub use markdown::markdown;
pub use terminal::terminal;

use super::Comparison;

/// The comparison as JSON, fields as the structs name them.
pub fn json(comparison: &Comparison) -> String {
    let text = serde_json::to_string_pretty(comparison);
    // Every number was checked to be finite and every key is a string.
    text.unwrap_or_else(|e| format!("{{\"error\": \"{e}\"}}")) + "\n"
}
