//! Every precision beside every other: what one costs and gains, and where nothing was shown.

use super::rows::{is_noise_floor, protocol};
use super::table::{Cell, Kind, Row, Table, change, column, percent_decimals};
use crate::record::format::{self, ABSENT, one_line};
use crate::record::rows::{OVERALL, PairRow, SpeedPairRow};
use crate::record::tables::Tables;
use std::collections::BTreeSet;

/// What is said of an interval that holds the value of equal precisions.
const NOT_SHOWN: &str = "no difference shown";

/// The pairs over all texts, under the report's protocol.
fn quality_pairs(tables: &Tables) -> Vec<&PairRow> {
    let protocol = protocol(tables);
    tables
        .pairs
        .iter()
        .filter(|row| row.dataset == OVERALL && protocol.is_none_or(|p| row.protocol == p))
        .filter(|row| {
            let mut ends = [&row.precision_a, &row.precision_b].into_iter();
            !ends.any(|id| is_noise_floor(tables, id))
        })
        .collect()
}

/// Every pair of precisions over all texts, with what the interval allows to say.
pub fn pairs(tables: &Tables) -> Table {
    let rows = quality_pairs(tables);
    let decimals = percent_decimals(
        rows.iter()
            .map(|r| (r.delta_nll_ci_low, r.delta_nll_ci_high)),
    );
    let columns = vec![
        column("From", "", "from", Kind::Word),
        column("To", "", "to", Kind::Word),
        column(
            "Change of perplexity",
            "%, 95 % interval",
            "change %",
            Kind::Number,
        ),
        column("Reading", "", "reading", Kind::Prose),
    ];
    let rows = rows
        .into_iter()
        .map(|row| Row {
            failed: false,
            cells: vec![
                Cell::new(one_line(&row.precision_a), ""),
                Cell::new(one_line(&row.precision_b), ""),
                change(
                    Some(row.delta_nll_nats),
                    row.delta_nll_ci_low,
                    row.delta_nll_ci_high,
                    decimals,
                ),
                Cell::new(quality_reading(row).unwrap_or_else(|| ABSENT.into()), ""),
            ],
        })
        .collect();
    Table { columns, rows }
}

/// `int4 costs 0.012 ± 0.002 nats more than fp16`; nothing without an interval.
fn quality_reading(row: &PairRow) -> Option<String> {
    let (low, high) = (row.delta_nll_ci_low?, row.delta_nll_ci_high?);
    let (a, b) = (one_line(&row.precision_a), one_line(&row.precision_b));
    let (dear, cheap) = match () {
        () if low > 0.0 => (b, a),
        () if high < 0.0 => (a, b),
        () => return Some(NOT_SHOWN.into()),
    };
    Some(format!(
        "{dear} costs {} nats more than {cheap}",
        with_half_width(row.delta_nll_nats.abs(), low, high)
    ))
}

/// Every pair of precisions that ran the same workload, with what the interval allows to say.
pub fn speed_pairs(tables: &Tables) -> Table {
    let columns = vec![
        column("From", "", "from", Kind::Word),
        column("To", "", "to", Kind::Word),
        column("Phase", "", "phase", Kind::Word),
        column("Times as fast", "interval", "times", Kind::Number),
        column("Reading", "", "reading", Kind::Prose),
    ];
    let several = several_caches(tables);
    let rows = tables
        .speed_pairs
        .iter()
        .map(|row| {
            let (ratio, interval) = match (row.ratio_ci_low, row.ratio_ci_high) {
                (Some(low), Some(high)) => {
                    let decimals = format::decimals_for((high - low) / 2.0).unwrap_or(2);
                    let [low, high] = [low, high].map(|x| format::number(x, decimals));
                    (
                        format::number(row.ratio, decimals),
                        format!("[{low}, {high}]"),
                    )
                }
                _ => (format::number(row.ratio, 2), String::new()),
            };
            let cache = match several {
                true => format!("kv={}", one_line(&row.kv_cache)),
                false => String::new(),
            };
            Row {
                failed: false,
                cells: vec![
                    Cell::new(one_line(&row.precision_a), ""),
                    Cell::new(one_line(&row.precision_b), cache),
                    Cell::new(one_line(&row.phase), ""),
                    Cell::new(ratio, interval),
                    Cell::new(speed_reading(row), ""),
                ],
            }
        })
        .collect();
    Table { columns, rows }
}

fn several_caches(tables: &Tables) -> bool {
    let caches: BTreeSet<&str> = tables
        .speed_pairs
        .iter()
        .map(|row| row.kv_cache.as_str())
        .collect();
    caches.len() > 1
}

/// `int8 is 1.92 ± 0.03 × faster than fp16`.
fn speed_reading(row: &SpeedPairRow) -> String {
    let (a, b) = (one_line(&row.precision_a), one_line(&row.precision_b));
    let (Some(low), Some(high)) = (row.ratio_ci_low, row.ratio_ci_high) else {
        return "too few repetitions for an interval".into();
    };
    let (fast, slow, ratio, low, high) = match () {
        () if low > 1.0 => (b, a, row.ratio, low, high),
        () if high < 1.0 && low > 0.0 => (a, b, 1.0 / row.ratio, 1.0 / high, 1.0 / low),
        () => return NOT_SHOWN.into(),
    };
    format!(
        "{fast} is {} × faster than {slow}",
        with_half_width(ratio, low, high)
    )
}

/// `0.012 ± 0.002`: a value and half the width of its interval.
fn with_half_width(value: f64, low: f64, high: f64) -> String {
    let half = (high - low) / 2.0;
    let decimals = format::decimals_for(half).unwrap_or(2);
    format!(
        "{} {}",
        format::number(value, decimals),
        format::plus_minus(half, decimals)
    )
}

/// Pairs up to which [`pair_sentences`] says them all: three precisions.
const FEW_PAIRS: usize = 3;

/// Every pair in a sentence, for places without room for tables; nothing where there are many.
pub fn pair_sentences(tables: &Tables) -> Vec<String> {
    let quality = quality_pairs(tables);
    if quality.len() > FEW_PAIRS || tables.speed_pairs.len() > 2 * FEW_PAIRS {
        return vec![];
    }
    let speed = tables.speed_pairs.iter().map(|row| {
        let reading = speed_reading(row);
        let named = naming(reading, &row.precision_a, &row.precision_b);
        format!("{}: {named}.", one_line(&row.phase))
    });
    let quality = quality.into_iter().filter_map(|row| {
        let named = naming(quality_reading(row)?, &row.precision_a, &row.precision_b);
        Some(format!("quality: {named}."))
    });
    speed.chain(quality).collect()
}

/// A reading that says whom it is about.
fn naming(reading: String, a: &str, b: &str) -> String {
    let (a, b) = (one_line(a), one_line(b));
    match reading.contains(&b) {
        true => reading,
        false => format!("{reading} between {a} and {b}"),
    }
}
