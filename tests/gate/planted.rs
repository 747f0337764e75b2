//! Planted regressions: real rows, worsened or renamed.

use quantbench::record::Tables;
use std::path::Path;

/// Leaves the first precision and `from`, which is called `to` from here on: a run in which `to`
/// is really `from`.
pub fn take(run: &Path, from: &str, to: &str, out: &Path) -> quantbench::Result<()> {
    let mut t = Tables::read(run)?;
    let first = t.info.precisions.first().cloned().unwrap_or_default();
    let stays = |precision: &str| precision == first || precision == from;
    let renamed = |precision: &mut String| {
        if precision == from {
            *precision = to.into();
        }
    };
    t.results.retain(|r| stays(&r.precision));
    t.quality.retain(|r| stays(&r.precision));
    t.windows.retain(|r| stays(&r.precision));
    t.samples.retain(|r| stays(&r.precision));
    t.pairs.clear();
    t.info.cells.retain(|c| stays(&c.precision));
    t.info.precisions.retain(|p| stays(p));
    t.results.iter_mut().for_each(|r| renamed(&mut r.precision));
    t.quality.iter_mut().for_each(|r| renamed(&mut r.precision));
    t.windows.iter_mut().for_each(|r| renamed(&mut r.precision));
    t.samples.iter_mut().for_each(|r| renamed(&mut r.precision));
    t.info
        .cells
        .iter_mut()
        .for_each(|c| renamed(&mut c.precision));
    t.info.precisions.iter_mut().for_each(renamed);
    t.write(out)
}

/// Decoding of one precision takes `factor` times as long, in every repetition and in the medians.
pub fn slower_decode(
    run: &Path,
    precision: &str,
    factor: f64,
    out: &Path,
) -> quantbench::Result<()> {
    let mut t = Tables::read(run)?;
    let planted = t.samples.iter_mut();
    for s in planted.filter(|s| s.precision == precision && s.phase == "decode") {
        s.seconds *= factor;
    }
    for r in t.results.iter_mut().filter(|r| r.precision == precision) {
        r.decode_tok_s = r.decode_tok_s.map(|speed| speed / factor);
    }
    t.write(out)
}

/// One precision needs `factor` times the memory.
pub fn more_memory(run: &Path, precision: &str, factor: f64, out: &Path) -> quantbench::Result<()> {
    let mut t = Tables::read(run)?;
    for r in t.results.iter_mut().filter(|r| r.precision == precision) {
        let more = |bytes: u64| (bytes as f64 * factor).round() as u64;
        r.peak_memory_bytes = r.peak_memory_bytes.map(more);
    }
    t.write(out)
}
