//! Turns with other runs on this machine, for `--turns FILE`.
//!
//! Two builds that are measured one after the other meet two machines: a neighbour, a clock or a
//! page cache has changed in between, by more than the builds differ. Runs that name the same file
//! share it repetition by repetition instead: one works while the others wait, so that what slows
//! one slows the others too.
//!
//! Two locks make a queue: who waits for the turn holds the place next to it, and who has just had
//! the turn must ask for that place. So nobody passes one who holds it. A lock alone would go back,
//! mostly, to the one who has just let it go and is still awake.

use super::progress::Progress;
use crate::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The turn, held. It passes on when this is dropped, or the process ends however it may.
pub struct Turn {
    path: PathBuf,
    turn: File,
    next: File,
}

impl Turn {
    /// Waits for the turn. Makes `path` and `path.next`, which hold nothing and stay.
    ///
    /// # Errors
    /// Files that cannot be made or locked.
    pub fn join(path: &Path, progress: Progress) -> Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".next");
        let open = |path: &Path| {
            let opened = File::options().append(true).create(true).open(path);
            opened.map_err(|e| failed(path, e))
        };
        let turn = Turn {
            path: path.into(),
            turn: open(path)?,
            next: open(Path::new(&beside))?,
        };
        if turn.next.try_lock().is_err() || turn.turn.try_lock().is_err() {
            progress.note(&format!("waiting for the turn ({})", path.display()));
        }
        turn.wait()?;
        Ok(turn)
    }

    /// Lets those who wait have a turn each.
    ///
    /// # Errors
    /// A file system that no longer locks.
    pub fn hand_over(&self) -> Result<()> {
        self.turn.unlock().map_err(|e| failed(&self.path, e))?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let failed = |e| failed(&self.path, e);
        self.next.lock().map_err(failed)?;
        self.turn.lock().map_err(failed)?;
        self.next.unlock().map_err(failed)
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    let next = "name a file with --turns that can be written, on a file system with locks";
    Error::io(path, error, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    #[test]
    fn two_who_want_turns_have_them_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turns");
        let log = Mutex::new(vec![]);
        let first = Turn::join(&path, Progress::Quiet).unwrap();
        std::thread::scope(|scope| {
            let (path, log) = (&path, &log);
            scope.spawn(move || {
                let turn = Turn::join(path, Progress::Quiet).unwrap();
                for _ in 0..20 {
                    work("b", log);
                    turn.hand_over().unwrap();
                }
            });
            // It is waiting by then; nothing depends on it but the test.
            std::thread::sleep(Duration::from_millis(200));
            for _ in 0..20 {
                work("a", log);
                first.hand_over().unwrap();
            }
            drop(first);
        });
        let log = log.into_inner().unwrap();
        assert_eq!(log.len(), 2 * 40);
        let turns: Vec<&str> = log.chunks(2).map(|c| c[0]).collect();
        assert!(
            log.chunks(2).all(|c| c[0] == c[1]),
            "two at a time: {log:?}"
        );
        // On a busy machine one may come too late for its place now and then. By a lock alone
        // nearly all of these would be the same twice.
        let again = turns.windows(2).filter(|two| two[0] == two[1]).count();
        assert!(again <= 10, "{turns:?}");
    }

    /// Notes the begin and the end of a piece of work.
    fn work(who: &'static str, log: &Mutex<Vec<&'static str>>) {
        log.lock().unwrap().push(who);
        std::thread::sleep(Duration::from_millis(5));
        log.lock().unwrap().push(who);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let error = Turn::join(Path::new("/nosuch/turns"), Progress::Quiet);
        let message = error.err().unwrap().to_string();
        assert!(
            message.contains("/nosuch/turns") && message.contains("--turns"),
            "{message}"
        );
    }
}
