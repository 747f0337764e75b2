//! `index.html`: one file that needs nothing else, no script and no network.

use super::content::{self, Kind, Table};
use super::plots::{Figure, style};
use crate::record::format::one_line;
use crate::record::tables::{TABLES, Tables};
use crate::{Error, Result};
use askama::Template;
use std::path::Path;

#[derive(Template)]
#[template(path = "index.html", config = "harness/report/askama.toml")]
struct Page<'a> {
    title: String,
    subtitle: String,
    headline: String,
    notices: Vec<String>,
    results: Table,
    has_shares: bool,
    sweep: Table,
    warnings: Vec<String>,
    figures: &'a [Figure],
    domains: Table,
    divergence: Table,
    confidence: Table,
    pairs: Table,
    choices: Table,
    speed_pairs: Table,
    memory: Table,
    notes: Vec<(&'static str, String)>,
    methods: Table,
    texts: Table,
    options: Vec<String>,
    command: &'a str,
    /// A plot's neutral colours as they stand in the SVG, and the page's variable for each.
    recolored: [(String, &'static str); 5],
}

/// The whole page.
pub fn page(tables: &Tables, figures: &[Figure]) -> Result<String> {
    let summary = &content::first_workload(tables);
    Page {
        title: title(tables),
        subtitle: subtitle(tables),
        headline: content::headline(summary),
        notices: content::notices(tables),
        results: content::results(summary),
        has_shares: content::has_shares(summary),
        sweep: content::sweep(tables),
        warnings: content::warnings(tables),
        figures,
        domains: content::domains(summary),
        divergence: content::divergence(summary),
        confidence: content::confidence(summary),
        pairs: content::pairs(tables),
        choices: content::choices(tables),
        speed_pairs: content::speed_pairs(summary),
        memory: content::memory(summary),
        notes: content::method_notes(summary),
        methods: content::methods(tables),
        texts: content::texts(tables),
        options: content::options(tables),
        command: &tables.info.command,
        recolored: [
            (style::hex(style::PAPER), "paper"),
            (style::hex(style::INK), "ink"),
            (style::hex(style::QUIET), "quiet"),
            (style::hex(style::GRID), "grid"),
            (style::hex(style::GUIDE), "guide"),
        ],
    }
    .render()
    .map_err(|e| {
        Error::file(
            Path::new("index.html"),
            e.to_string(),
            "report this as a defect",
        )
    })
}

impl Kind {
    /// The class in the style sheet.
    fn class(self) -> &'static str {
        match self {
            Kind::Word => "w",
            Kind::Number => "n",
            Kind::Prose => "p",
        }
    }
}

/// The model under test.
pub(super) fn title(tables: &Tables) -> String {
    let name = match tables.info.model.name.as_str() {
        "" => tables.results.first().map_or("", |row| row.model.as_str()),
        name => name,
    };
    match one_line(name) {
        name if name.is_empty() => "Quantization report".into(),
        name => format!("{name} across precisions"),
    }
}

/// Day, machine and run, in one line.
fn subtitle(tables: &Tables) -> String {
    let info = &tables.info;
    let day = info.started_at.split('T').next().unwrap_or_default();
    let device = tables.results.first().map_or("", |row| row.device.as_str());
    [day, device, &info.host.cpu, &info.run_id]
        .into_iter()
        .map(one_line)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" · ")
}
