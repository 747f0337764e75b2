//! `quantbench list`: what can be measured.

use super::exit::EXIT_OK;
use crate::data::protocol::PROTOCOLS;
use crate::error::Result;
use crate::formats::shapes;
use crate::model::kv_cache::KV_FORMATS;
use crate::{data, quant, report, say};
use clap::ValueEnum;

/// A list that can be asked for alone.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Listed {
    Precisions,
    Datasets,
    Shapes,
    Protocols,
    Kv,
    Plots,
}

/// Prints one list, or all.
pub(super) fn list(what: Option<Listed>) -> Result<i32> {
    let wanted = |listed| what.is_none_or(|w| w == listed);
    let mut sections: Vec<(&str, Vec<(String, String)>)> = vec![];
    if wanted(Listed::Precisions) {
        let rows = quant::families()
            .flat_map(|f| f.ids)
            .chain(quant::BY_PATH)
            .map(|l| (l.id.into(), l.about.into()))
            .collect();
        sections.push(("Precisions", rows));
    }
    if wanted(Listed::Datasets) {
        let mut rows = vec![];
        for set in data::embedded()? {
            let m = set.manifest;
            let about = format!(
                "{}: {} ({} bytes, {})",
                m.kind,
                m.title,
                set.text.len(),
                m.licence
            );
            rows.push((m.name, about));
        }
        for m in data::public()? {
            let id = m.hub.map_or_else(String::new, |hub| hub.id);
            let about = format!("{}: {} (hub {id}, {})", m.kind, m.title, m.licence);
            rows.push((m.name, about));
        }
        sections.push(("Datasets", rows));
    }
    if wanted(Listed::Shapes) {
        let rows = shapes::shapes()?
            .iter()
            .map(|shape| (format!("synthetic:{}", shape.id), about_shape(shape)))
            .collect();
        sections.push(("Shapes", rows));
    }
    if wanted(Listed::Protocols) {
        let rows = PROTOCOLS
            .iter()
            .map(|p| (p.id.into(), p.summary.into()))
            .collect();
        sections.push(("Protocols", rows));
    }
    if wanted(Listed::Kv) {
        let rows = KV_FORMATS
            .iter()
            .map(|k| (k.id().into(), "KV cache kept at this precision".into()))
            .collect();
        sections.push(("KV caches", rows));
    }
    if wanted(Listed::Plots) {
        let rows = report::plots::PLOTS
            .iter()
            .map(|p| (p.name.into(), p.title.into()))
            .collect();
        sections.push(("Plots", rows));
    }
    for (i, (title, rows)) in sections.iter().enumerate() {
        if i > 0 {
            say::out(format_args!("\n"));
        }
        say::out(format_args!("{title}\n"));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, summary) in rows {
            say::out(format_args!("  {name:<0$} {summary}\n", width.max(20)));
        }
    }
    Ok(EXIT_OK)
}

fn about_shape(shape: &shapes::Shape) -> String {
    let parameters = shape.parameters() as f64;
    format!(
        "{}: {:.2} B parameters, {:.1} GiB in FP16",
        shape.model,
        parameters / 1e9,
        2.0 * parameters / f64::from(1 << 30)
    )
}
