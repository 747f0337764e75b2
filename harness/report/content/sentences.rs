//! The sentences of a report beside its headline and notes: notices, warnings, options.

use super::rows::{label, protocol};
use super::sweep;
use super::table::json_text;
use crate::record::format::one_line;
use crate::record::rows::Status;
use crate::record::tables::Tables;
use std::collections::BTreeSet;

/// What a reader has to know before the numbers: an incomplete run, failed rows.
pub fn notices(tables: &Tables) -> Vec<String> {
    let mut notices = Vec::new();
    if !tables.info.complete {
        let asked = tables.info.precisions.len();
        let missing: Vec<&str> = tables
            .info
            .precisions
            .iter()
            .map(String::as_str)
            .filter(|id| !tables.results.iter().any(|row| row.precision == *id))
            .collect();
        notices.push(if missing.is_empty() {
            "This run was stopped before its end; what it had measured is shown.".into()
        } else {
            format!(
                "This run was stopped before its end: {} of {asked} precisions have no row ({}).",
                missing.len(),
                one_line(&missing.join(", "))
            )
        });
    }
    let failed: Vec<String> = tables
        .results
        .iter()
        .filter(|row| row.status != Status::Ok)
        .map(|row| format!("{} ({})", label(tables, row), row.status.word()))
        .collect();
    if !failed.is_empty() {
        let noun = if failed.len() == 1 { "row" } else { "rows" };
        notices.push(format!(
            "{} {noun} without a full result: {}.",
            failed.len(),
            failed.join(", ")
        ));
    }
    notices.extend(sweep::notice(tables));
    let protocols: BTreeSet<&str> = tables
        .results
        .iter()
        .map(|r| r.protocol.as_str())
        .filter(|p| !p.is_empty())
        .collect();
    notices.extend(other_protocols(tables));
    if let (Some(shown), true) = (protocol(tables), protocols.len() > 1) {
        notices.push(format!(
            "The rows come from {} protocols, whose perplexities do not compare; only those of \
             {} are shown.",
            protocols.len(),
            one_line(shown)
        ));
    }
    notices
}

/// Warnings of the run, then those of its rows; one that several rows share is said once.
pub fn warnings(tables: &Tables) -> Vec<String> {
    let mut warnings: Vec<(String, Vec<String>)> = Vec::new();
    for warning in &tables.info.warnings {
        let text = one_line(warning);
        if !text.is_empty() && !warnings.iter().any(|(known, _)| *known == text) {
            warnings.push((text, Vec::new()));
        }
    }
    for row in &tables.results {
        for part in row.warnings.split(';') {
            let text = one_line(part);
            if text.is_empty() {
                continue;
            }
            let name = label(tables, row);
            match warnings.iter_mut().find(|(known, _)| *known == text) {
                Some((_, of)) => of.push(name),
                None => warnings.push((text, vec![name])),
            }
        }
    }
    warnings
        .into_iter()
        .map(|(text, of)| match of.len() {
            0 => text,
            n if n == tables.results.len() && n > 1 => format!("{text} (all rows)"),
            _ => format!("{text} ({})", of.join(", ")),
        })
        .collect()
}

/// Where the numbers of the run's further protocols are: never beside those of the first.
fn other_protocols(tables: &Tables) -> Option<String> {
    let shown = protocol(tables)?;
    let mut others: Vec<String> = vec![];
    for row in tables.quality.iter().filter(|row| row.protocol != shown) {
        let id = one_line(&row.protocol);
        if !others.contains(&id) {
            others.push(id);
        }
    }
    (!others.is_empty()).then(|| {
        format!(
            "All numbers here are of {}. Those of {} do not compare with them and are in \
             quality.csv, pairs.csv and windows.csv.",
            one_line(shown),
            others.join(", ")
        )
    })
}

/// All options of the run, as `name = value`.
pub fn options(tables: &Tables) -> Vec<String> {
    tables
        .info
        .options
        .iter()
        .map(|(name, value)| one_line(&format!("{name} = {}", json_text(value))))
        .collect()
}
