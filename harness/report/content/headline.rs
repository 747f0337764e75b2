//! What a run says in a sentence or two.

use super::rows::{comparable, is_noise_floor, is_reference, label, reference_of};
use super::table::result_percent_decimals;
use crate::record::format::{self, one_line};
use crate::record::rows::{ResultRow, Status};
use crate::record::tables::Tables;

/// Increase of perplexity, in nats, up to which a row may be put forward: about 5 %.
const HEADLINE_MOST_DELTA: f64 = 0.05;

/// What the run says, in a sentence or two, from the rows alone.
pub fn headline(tables: &Tables) -> String {
    let chosen = |r: &&ResultRow| !is_noise_floor(tables, &r.precision);
    let fine = || {
        let rows = tables.results.iter().filter(chosen);
        rows.filter(|r| r.status == Status::Ok)
    };
    if tables.results.is_empty() {
        return "This run holds no rows yet.".into();
    }
    if fine().next().is_none() {
        return "No precision was measured to the end; the table gives the reason for each.".into();
    }
    if fine().all(|row| row.perplexity.is_none()) {
        return without_quality(tables);
    }
    // The smallest row that is still close; rows within 2 % of its memory compete on quality.
    let close: Vec<(&ResultRow, u64, f64)> = fine()
        .filter(|row| {
            !is_reference(tables, &row.precision, &row.kv_cache) && comparable(tables, row)
        })
        .filter_map(|row| {
            let delta = row.delta_nll_nats.filter(|d| *d <= HEADLINE_MOST_DELTA)?;
            let reference = reference_of(tables, row)?;
            let memory = row.peak_memory_bytes?;
            (reference.status == Status::Ok && memory < reference.peak_memory_bytes?)
                .then_some((row, memory, delta))
        })
        .collect();
    let smallest = close.iter().map(|(_, memory, _)| *memory).min();
    let best = close
        .iter()
        .filter(|(_, memory, _)| {
            smallest.is_some_and(|smallest| *memory as f64 <= smallest as f64 * 1.02)
        })
        .min_by(|a, b| a.2.total_cmp(&b.2));
    match best {
        Some((row, ..)) => versus_reference(tables, row),
        None => {
            let measured = fine().count();
            let noun = if measured == 1 { "row" } else { "rows" };
            let reference = one_line(&tables.info.reference);
            if !fine().any(|row| is_reference(tables, &row.precision, &row.kv_cache)) {
                let why = match reference.as_str() {
                    "" => "no reference was measured".to_string(),
                    name => format!("the reference {name} has no result"),
                };
                format!("{measured} {noun} measured; {why}, so nothing is compared.")
            } else if measured == 1 {
                format!("Only the reference {reference} was measured, so nothing is compared.")
            } else {
                format!(
                    "{measured} {noun} measured; none is both smaller than {reference} and within \
                     5 % of its perplexity."
                )
            }
        }
    }
}

/// The headline of a run that measured memory and speed only: its smallest row.
fn without_quality(tables: &Tables) -> String {
    let others = tables.results.iter().filter(|row| {
        row.status == Status::Ok
            && !is_reference(tables, &row.precision, &row.kv_cache)
            && !is_noise_floor(tables, &row.precision)
    });
    let smaller = others.filter(|row| {
        reference_of(tables, row).is_some_and(|reference| {
            reference.status == Status::Ok && row.peak_memory_bytes < reference.peak_memory_bytes
        })
    });
    match smaller.min_by_key(|row| row.peak_memory_bytes) {
        Some(row) => versus_reference(tables, row),
        None => "Memory and speed were measured; quality was not.".into(),
    }
}

fn versus_reference(tables: &Tables, row: &ResultRow) -> String {
    let name = label(tables, row);
    let Some(reference) = reference_of(tables, row) else {
        return String::new();
    };
    let against = label(tables, reference);
    let memory = match (row.peak_memory_bytes, reference.peak_memory_bytes) {
        (Some(own), Some(other)) if other > 0 => {
            format!(
                "needs {} % of {against}’s peak memory",
                format::number(100.0 * own as f64 / other as f64, 0)
            )
        }
        _ => "was measured".into(),
    };
    let speed = match (row.decode_tok_s, reference.decode_tok_s) {
        (Some(own), Some(other)) if own.is_finite() && other > 0.0 => {
            format!(" and decodes at {} its speed", format::times(own / other))
        }
        _ => String::new(),
    };
    let quality = match (
        row.delta_nll_nats,
        row.delta_nll_ci_low,
        row.delta_nll_ci_high,
    ) {
        (Some(delta), Some(low), Some(high)) => {
            let decimals = result_percent_decimals(tables);
            let [percent, low_text, high_text] =
                [delta, low, high].map(|d| format::signed(format::percent(d), decimals));
            let interval = format!("95 % interval {low_text} to {high_text} %");
            if low > 0.0 {
                let amount = percent.trim_start_matches('+');
                format!("its perplexity is {amount} % higher ({interval})")
            } else if high < 0.0 {
                let amount = percent.trim_start_matches('−');
                format!("its perplexity is {amount} % lower ({interval})")
            } else {
                format!("its perplexity shows no clear difference ({percent} %, {interval})")
            }
        }
        (Some(delta), ..) => format!(
            "its perplexity changes by {} %",
            format::signed(format::percent(delta), 1)
        ),
        _ => "its quality was not measured".into(),
    };
    format!("{name} {memory}{speed}; {quality}.")
}
