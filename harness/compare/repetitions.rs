//! The timed repetitions of two runs, and whether the runs took turns.

use super::cell::{Cell, Data, SideRow};
use super::comparable::Difference;
use crate::record::Tables;
use crate::record::rows::{ResultRow, SampleRow};

/// Whether the runs of two sides took turns.
pub enum Turns<'a> {
    /// For every run of the base the one of the other side that took turns with it.
    Taken(Vec<&'a Tables>),
    /// They name the same file and were at work at the same time, but their repetitions did not
    /// alternate: some are from before, or one side had more to do.
    Mixed,
    Apart,
}

/// Runs took turns that name the same file, were at work at the same time, pair up one to one,
/// and whose k-th repetitions of every point both ended before the next ones of either.
pub fn turns<'a>(base: &[Tables], new: &'a [Tables]) -> Turns<'a> {
    let file = |run: &Tables| -> Option<String> {
        let file = run.info.options.get("turns")?.as_str()?;
        Some(file.into())
    };
    let pair = |a: &Tables, b: &Tables| {
        let (a, b, same) = (&a.info, &b.info, file(a).is_some() && file(a) == file(b));
        // Times of RFC 3339 in UTC are ordered as their text is.
        same && a.started_at < b.finished_at && b.started_at < a.finished_at
    };
    let partner = |a: &Tables| {
        let mut partners = new.iter().filter(|b| pair(a, b));
        partners.next().filter(|_| partners.next().is_none())
    };
    let Some(partners) = base.iter().map(partner).collect::<Option<Vec<&Tables>>>() else {
        return Turns::Apart;
    };
    let alone = |b: &Tables| base.iter().filter(|a| pair(a, b)).count() == 1;
    if !new.iter().all(alone) {
        return Turns::Apart;
    }
    let mut pairs = base.iter().zip(&partners);
    match pairs.all(|(a, b)| alternate(a, b)) {
        true => Turns::Taken(partners),
        false => Turns::Mixed,
    }
}

/// Whether the repetitions of every point that both runs timed alternate, and change processes
/// together.
fn alternate(a: &Tables, b: &Tables) -> bool {
    let cells = a.results.iter().filter_map(|row| {
        let cell = Cell::of(row);
        Some((row, b.results.iter().find(|other| Cell::of(other) == cell)?))
    });
    let mut points = cells.map(|(of_a, of_b)| (timed(a, of_a, "decode"), timed(b, of_b, "decode")));
    points.all(|(a, b)| {
        let ends =
            |of: &[&SampleRow]| -> Option<Vec<f64>> { of.iter().map(|s| s.ended_at_s).collect() };
        let (Some(of_a), Some(of_b)) = (ends(&a), ends(&b)) else {
            return false;
        };
        let rounds: Vec<(f64, f64)> = of_a
            .iter()
            .zip(&of_b)
            .map(|(a, b)| (a.min(*b), a.max(*b)))
            .collect();
        let sizes = |of: &[&SampleRow]| -> Vec<usize> {
            let same = |a: &&SampleRow, b: &&SampleRow| a.process == b.process;
            let processes = of[..rounds.len()].chunk_by(same);
            processes.map(<[&SampleRow]>::len).collect()
        };
        rounds.windows(2).all(|w| w[0].1 < w[1].0) && sizes(&a) == sizes(&b)
    })
}

/// Speeds of the repetitions of a phase in every run, warm-up left out.
pub fn repetitions(
    cell: &Cell,
    phase: &str,
    base: SideRow,
    new: SideRow,
    turns: &Turns,
) -> Result<Data, Difference> {
    let by_process = |run: &Tables, row: &ResultRow| processes(run, row, phase);
    let (base, new, in_turns) = match turns {
        Turns::Taken(partners) => {
            let pairs = base.0.iter().zip(partners).flat_map(|(a, b)| {
                let new = by_process(b, new.1);
                by_process(a, base.1).into_iter().zip(new)
            });
            let (base, new) = pairs.unzip();
            (base, new, true)
        }
        Turns::Mixed | Turns::Apart => {
            let of = |(runs, row): SideRow| -> Vec<Vec<f64>> {
                runs.iter()
                    .map(|run| by_process(run, row).concat())
                    .collect()
            };
            (of(base), of(new), false)
        }
    };
    if base.is_empty() || base.iter().chain(&new).any(Vec::is_empty) {
        let count = |runs: &[Vec<f64>]| {
            let counts: Vec<String> = runs.iter().map(|r| r.len().to_string()).collect();
            format!("{} in samples.csv", counts.join(", "))
        };
        let what = format!("{phase} repetitions of {cell}");
        return Err(Difference::new(what, count(&base), count(&new)));
    }
    Ok(Data::Repetitions {
        base,
        new,
        in_turns,
    })
}

/// The repetitions of a phase of a row's point, warm-ups left out.
fn timed<'a>(run: &'a Tables, row: &ResultRow, phase: &str) -> Vec<&'a SampleRow> {
    let (batch, prompt) = (row.batch.unwrap_or(0), row.prompt_tokens.unwrap_or(0));
    let own = |s: &&SampleRow| {
        !s.warmup
            && (&s.precision, &s.kv_cache) == (&row.precision, &row.kv_cache)
            && (s.phase.as_str(), s.batch) == (phase, batch)
            // Prefill starts at depth 0 whatever its length.
            && (s.context == prompt
                || (s.context == 0 && Some(s.tokens) == prompt.checked_mul(batch)))
    };
    run.samples.iter().filter(own).collect()
}

/// Speeds of a run's repetitions by process.
fn processes(run: &Tables, row: &ResultRow, phase: &str) -> Vec<Vec<f64>> {
    let timed = timed(run, row, phase);
    let same = |a: &&SampleRow, b: &&SampleRow| a.process == b.process;
    let speeds = |of: &[&SampleRow]| -> Vec<f64> {
        let speeds = of.iter().map(|s| s.tokens as f64 / s.seconds);
        speeds.filter(|s| s.is_finite() && *s > 0.0).collect()
    };
    let mut processes: Vec<Vec<f64>> = timed.chunk_by(same).map(speeds).collect();
    processes.retain(|speeds| !speeds.is_empty());
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A point of a run: its repetitions with their process and when they ended.
    fn run_of(repetitions: &[(&str, f64)]) -> Tables {
        let mut run = Tables::default();
        run.results.push(ResultRow {
            batch: Some(1),
            prompt_tokens: Some(64),
            ..ResultRow::default()
        });
        for (rep, (process, ended_at_s)) in repetitions.iter().enumerate() {
            run.samples.push(SampleRow {
                phase: "decode".into(),
                batch: 1,
                context: 64,
                tokens: 4,
                rep: rep as u64,
                warmup: rep == 0,
                seconds: rep as f64,
                process: Some(process.to_string()),
                ended_at_s: Some(*ended_at_s),
                ..SampleRow::default()
            });
        }
        run
    }

    #[test]
    fn repetitions_are_told_apart_by_their_process() {
        let run = run_of(&[("a", 0.0), ("a", 1.0), ("a", 2.0), ("b", 3.0)]);
        let speeds = |phase| processes(&run, &run.results[0], phase);
        assert_eq!(speeds("decode"), [vec![4.0, 2.0], vec![4.0 / 3.0]]);
        assert!(speeds("prefill").is_empty());
        // Of a run from before it was recorded, they are one process's.
        let mut old = run.clone();
        old.samples.iter_mut().for_each(|s| s.process = None);
        assert_eq!(processes(&old, &old.results[0], "decode").len(), 1);
    }

    #[test]
    fn turns_are_told_by_when_repetitions_ended() {
        let base = run_of(&[("a", 0.0), ("a", 1.0), ("a", 3.0), ("b", 5.0)]);
        let taken = |of: &[(&str, f64)]| alternate(&base, &run_of(of));
        assert!(taken(&[("x", 0.0), ("x", 2.0), ("x", 4.0), ("y", 6.0)]));
        // Who goes first may change, and one may have had enough earlier.
        assert!(taken(&[("x", 0.0), ("x", 0.5), ("x", 4.0), ("y", 4.5)]));
        assert!(taken(&[("x", 0.0), ("x", 2.0), ("x", 4.0)]));
        // It began later, it was timed before, its processes changed at another repetition.
        assert!(!taken(&[("x", 0.0), ("x", 3.5), ("x", 5.5), ("y", 6.0)]));
        assert!(!taken(&[("x", 0.0), ("x", -3.0), ("x", -2.0), ("y", -1.0)]));
        assert!(!taken(&[("x", 0.0), ("x", 2.0), ("y", 4.0), ("y", 6.0)]));
        let mut old = base.clone();
        old.samples.iter_mut().for_each(|s| s.ended_at_s = None);
        assert!(!alternate(&base, &old) && !alternate(&old, &base));
    }
}
