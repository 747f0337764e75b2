//! Where a precision loses quality: the change of perplexity by text domain.

use super::axis::{Axis, Frame};
use super::scene::{Align, Scene, text_width};
use super::style::{self, EDGE, GRID, INK, LegendMark, QUIET, TEXT, WIDTH};
use super::{Plot, nothing_to_draw};
use crate::record::format::{self, one_line};
use crate::record::rows::{OVERALL, QualityRow};
use crate::record::tables::Tables;
use crate::report::content;

pub const PLOT: Plot = Plot {
    name: "domains",
    title: "Change of perplexity by kind of text",
    whole_sweep: false,
    caption,
    draw,
};

const STEP: f64 = 13.0;
const GAP: f64 = 16.0;

/// Change in % with its interval.
struct Change {
    dataset: String,
    label: String,
    percent: f64,
    interval: Option<(f64, f64)>,
}

fn change(tables: &Tables, row: &QualityRow) -> Option<Change> {
    let finite = |nats: Option<f64>| {
        nats.map(format::percent)
            .filter(|percent| percent.is_finite() && percent.abs() < 1e9)
    };
    Some(Change {
        dataset: row.dataset.clone(),
        label: content::quality_label(tables, row),
        percent: finite(row.delta_nll_nats)?,
        interval: finite(row.delta_nll_ci_low).zip(finite(row.delta_nll_ci_high)),
    })
}

fn changes(tables: &Tables) -> Vec<Change> {
    content::quality(tables)
        .filter(|row| !content::is_noise_floor(tables, &row.precision))
        .filter_map(|row| change(tables, row))
        .collect()
}

fn draw(tables: &Tables) -> Option<Scene> {
    let changes = changes(tables);
    if changes.is_empty() {
        return None;
    }
    let mut labels: Vec<String> = Vec::new();
    for change in &changes {
        if !labels.contains(&change.label) {
            labels.push(change.label.clone());
        }
    }
    let names: Vec<String> = tables
        .results
        .iter()
        .map(|row| content::label(tables, row))
        .chain(labels.iter().cloned())
        .collect();
    let styles = style::styles(names.iter().map(String::as_str));
    let groups: Vec<(String, Vec<&Change>)> = content::datasets(tables)
        .into_iter()
        .map(|dataset| {
            let of = changes.iter().filter(|c| c.dataset == dataset).collect();
            (dataset, of)
        })
        .filter(|(_, of): &(String, Vec<&Change>)| !of.is_empty())
        .collect();

    let legend: Vec<(String, LegendMark)> = labels
        .iter()
        .map(|l| (format::shortened(l, 48), LegendMark::Marker(styles[l])))
        .collect();
    let top = EDGE + style::legend_height(WIDTH, &legend) + 8.0;
    let group_height = |of: &[&Change]| STEP * of.len().max(1) as f64 + GAP;
    let bottom = top + groups.iter().map(|(_, of)| group_height(of)).sum::<f64>();
    let title = |dataset: &str| format::shortened(&one_line(dataset), 16);
    let widest = groups
        .iter()
        .map(|(dataset, _)| text_width(&title(dataset), TEXT) * 1.1)
        .fold(0.0, f64::max);

    let mut scene = Scene::new(WIDTH, bottom + 52.0);
    style::draw_legend(&mut scene, EDGE, &legend);
    let (low, high) = changes
        .iter()
        .flat_map(|c| {
            let (low, high) = c.interval.unwrap_or((c.percent, c.percent));
            [low.min(c.percent), high.max(c.percent)]
        })
        .fold((0.0f64, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    let room = (0.05 * (high - low)).max(1e-3);
    let frame = Frame {
        left: EDGE + widest + 12.0,
        top,
        right: WIDTH - EDGE - 14.0,
        bottom,
        x: Axis::new(low - room, high + room, 8),
        y: Axis::new(0.0, 1.0, 1),
    };
    let reference = match one_line(&tables.info.reference) {
        name if name.is_empty() => "the reference".into(),
        name => format::shortened(&name, 20),
    };
    frame.draw_x(
        &mut scene,
        &format!("Change of perplexity from {reference} (%)"),
    );
    let zero = frame.at(0.0, 0.0).0;
    scene.line([(zero, top), (zero, bottom)], 1.5, QUIET);

    let mut y = top;
    for (i, (dataset, of)) in groups.iter().enumerate() {
        if i > 0 {
            scene.line([(EDGE, y), (frame.right, y)], 1.0, GRID);
        }
        let middle = y + group_height(of) / 2.0 + 0.36 * TEXT;
        if dataset == OVERALL {
            scene.bold((EDGE, middle), &title(dataset), TEXT, Align::Left, INK);
        } else {
            scene.text((EDGE, middle), &title(dataset), TEXT, Align::Left, INK);
        }
        for (j, change) in of.iter().enumerate() {
            let line = y + GAP / 2.0 + STEP * (j as f64 + 0.5);
            let style = styles[&change.label];
            if let Some((low, high)) = change.interval {
                let ends = [frame.at(low, 0.0).0, frame.at(high, 0.0).0];
                scene.line([(ends[0], line), (ends[1], line)], 1.5, style.color);
            }
            let x = frame.at(change.percent, 0.0).0;
            style::draw_marker(&mut scene, (x, line), 4.5, style);
        }
        y += group_height(of);
    }
    Some(scene)
}

fn caption(tables: &Tables) -> String {
    let changes = changes(tables);
    if changes.is_empty() {
        return nothing_to_draw("a difference to a reference", &[]);
    }
    let bars = if changes.iter().any(|c| c.interval.is_some()) {
        " Bars: 95 % interval of the paired difference over windows."
    } else {
        ""
    };
    let missing: Vec<String> = tables
        .results
        .iter()
        .filter(|row| row.precision != tables.info.reference)
        .filter(|row| !content::is_noise_floor(tables, &row.precision))
        .map(|row| (content::label(tables, row), row.status))
        .filter(|(label, _)| !changes.iter().any(|c| c.label == *label))
        .map(|(label, status)| match status {
            crate::record::rows::Status::Ok => format!("{label} (no value)"),
            status => format!("{label} ({})", status.word()),
        })
        .collect();
    format!(
        "Change of perplexity from {} in %, by kind of text; right of zero is worse.{bars}{}",
        one_line(&tables.info.reference),
        super::not_shown(&missing)
    )
}
