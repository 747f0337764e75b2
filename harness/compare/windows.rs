//! The windows that two runs share: what they tell of a change in quality.

use super::cell::Cell;
use super::comparable::Difference;
use crate::record::Tables;
use crate::record::format::one_line;
use crate::record::rows::{ResultRow, WindowRow};
use crate::stats::bootstrap::PairedWindow;

/// Numerator and weight of a window in the mean NLL of its protocol.
fn weighted(row: &WindowRow) -> (f64, f64) {
    match (row.weighted_nll_nats, row.weight) {
        (Some(nll), Some(weight)) => (nll, weight),
        // From before protocols had weights: all of them counted tokens.
        _ => (row.nll_sum_nats, row.scored_tokens as f64),
    }
}

/// What a cell's windows tell of a change; nothing where some token of either run had no finite
/// likelihood, so that the means are not of the same tokens.
pub fn windows(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Option<Vec<PairedWindow>>, Difference> {
    let pair = |(a, b): &(WindowRow, WindowRow)| {
        let ((base, weight), (new, same)) = (weighted(a), weighted(b));
        (weight == same).then_some(PairedWindow {
            delta_nats: new - base,
            weight,
        })
    };
    let rows = paired_rows(cell, protocol, base, new)?;
    Ok(rows.iter().map(pair).collect())
}

/// Tokens without a finite likelihood under any protocol: where they are more than they were, a
/// cell has got worse, whatever its perplexity over the others.
pub fn lost_tokens(base: &ResultRow, new: &ResultRow) -> Option<String> {
    let (was, is) = (
        base.nonfinite_tokens.unwrap_or(0),
        new.nonfinite_tokens.unwrap_or(0),
    );
    (is > was).then(|| format!("has {is} tokens without a finite likelihood; the base has {was}"))
}

/// The windows of a cell in both runs, which must be the same.
fn paired_rows(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Vec<(WindowRow, WindowRow)>, Difference> {
    let of = |tables: &'_ Tables| -> Vec<WindowRow> {
        let rows = tables.windows.iter().filter(|w| {
            (&w.precision, &w.kv_cache) == (&cell.precision, &cell.kv_cache)
                && w.protocol == protocol
        });
        rows.cloned().collect()
    };
    let (a, b) = (of(base), of(new));
    let same = |a: &WindowRow, b: &WindowRow| {
        (&a.dataset, a.window, a.scored_tokens) == (&b.dataset, b.window, b.scored_tokens)
    };
    if a.is_empty() || a.len() != b.len() || !a.iter().zip(&b).all(|(a, b)| same(a, b)) {
        let tokens = |rows: &[WindowRow]| rows.iter().map(|w| w.scored_tokens).sum::<u64>();
        let count = |rows: &[WindowRow]| match rows.is_empty() {
            true => "none in windows.csv".to_string(),
            false => format!("{} windows of {} scored tokens", rows.len(), tokens(rows)),
        };
        let what = format!("windows of {cell} under {}", one_line(protocol));
        return Err(Difference::new(what, count(&a), count(&b)));
    }
    Ok(a.into_iter().zip(b).collect())
}

/// One window that both runs compared with their references, summed over its tokens.
pub struct WindowDivergence {
    pub base_nats: f64,
    pub new_nats: f64,
    pub tokens: f64,
}

/// The windows that both runs compared with their references, and whether one compared more;
/// `None` where a run kept none by window.
pub fn divergences(
    cell: &Cell,
    protocol: &str,
    base: &Tables,
    new: &Tables,
) -> Result<Option<(Vec<WindowDivergence>, bool)>, Difference> {
    let pairs = paired_rows(cell, protocol, base, new)?;
    let compared = |row: &WindowRow| Some((row.kl_sum_nats?, row.kl_tokens?));
    let count = |side: fn(&(WindowRow, WindowRow)) -> &WindowRow| {
        pairs
            .iter()
            .filter(|pair| compared(side(pair)).is_some())
            .count()
    };
    let (of_base, of_new) = (count(|pair| &pair.0), count(|pair| &pair.1));
    if of_base.min(of_new) == 0 {
        return Ok(None);
    }
    let common: Vec<WindowDivergence> = pairs
        .iter()
        .filter_map(|(a, b)| {
            let ((a, tokens), (b, same)) = (compared(a)?, compared(b)?);
            (tokens == same).then_some(WindowDivergence {
                base_nats: a,
                new_nats: b,
                tokens: tokens as f64,
            })
        })
        .collect();
    match common.is_empty() {
        true => Err(Difference::new(
            format!("windows of {cell} compared with the reference"),
            format!("{of_base} windows"),
            format!("{of_new} others"),
        )),
        false => {
            let partial = common.len() < of_base.max(of_new);
            Ok(Some((common, partial)))
        }
    }
}

/// What rounding alone makes of the reference, if the run measured it.
pub fn noise_floor_nats(run: &Tables, cell: &Cell) -> f64 {
    let floors = run.results.iter().filter(|row| {
        run.info.noise_floors.contains(&row.precision) && row.kv_cache == cell.kv_cache
    });
    floors
        .filter_map(|row| row.kl_mean_nats)
        .fold(0.0, f64::max)
}

/// How many consecutive windows share text, as the run says; those from before runs said it had
/// none that do.
pub fn block(run: &Tables, protocol: &str) -> usize {
    let mut protocols = run.info.protocols.iter();
    let described = protocols.find(|p| p.id == protocol);
    described.map_or(1, |p| p.block_windows.max(1) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::run_info::ProtocolInfo;

    #[test]
    fn a_run_says_how_many_of_its_windows_share_text() {
        let mut run = Tables::default();
        for (id, block_windows) in [("gptq-v1@512", 1), ("hf-strided-v1@512:200", 3), ("x", 0)] {
            run.info.protocols.push(ProtocolInfo {
                id: id.into(),
                block_windows,
                ..ProtocolInfo::default()
            });
        }
        for (id, windows) in [
            ("gptq-v1@512", 1),
            ("hf-strided-v1@512:200", 3),
            ("x", 1),
            ("hf-strided-v1@512:100", 1),
        ] {
            assert_eq!(block(&run, id), windows, "{id}");
        }
    }
}
