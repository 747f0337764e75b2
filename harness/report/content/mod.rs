//! What a report says: its tables and sentences as plain text, formatted once. HTML, Markdown
//! and the terminal only lay them out, so that they cannot disagree.

mod choices;
mod divergence;
mod headline;
mod notes;
mod pairs;
mod rows;
mod sentences;
mod sweep;
mod table;
mod tables;

pub use choices::choices;
pub use divergence::{confidence, divergence};
pub use headline::headline;
pub use notes::method_notes;
pub use pairs::{pair_sentences, pairs, speed_pairs};
pub use rows::{
    Interval, comparable, datasets, has_divergence, has_shares, is_noise_floor, is_reference,
    label, memory_unit, perplexity_interval, protocol, quality, quality_label, reference_of,
};
pub use sentences::{notices, options, warnings};
pub use sweep::{first_workload, sweep};
pub use table::{Cell, Column, Kind, Row, Table};
pub use tables::{PARTS, Part, domains, memory, methods, results, texts};
