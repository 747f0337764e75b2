//! Turns with other runs on this machine, for `--turns FILE`.
//!
//! Two builds that are measured one after the other meet two machines: a neighbour, a clock or a
//! page cache has changed in between, by more than the builds differ. Runs that name the same file
//! share it repetition by repetition instead: one works while the others wait, so that what slows
//! one slows the others too.
//!
//! # Protocol
//! The participants are a queue, and the queue is the kernel's table of locks on that file. A
//! participant holds one byte of it for itself, its place.
//!
//! - *Registering* is taking the byte behind the highest one that anyone holds. Only who holds the
//!   `DOOR` may look for it, so that no two take the same.
//! - *Waiting* is asking for all lower bytes, shared. The kernel grants that as soon as nobody has
//!   a place among them, and lets the participant sleep until then.
//! - *Handing over* is registering again behind all others, then giving up the old place, then
//!   waiting.
//! - *Leaving* is giving up the place.
//!
//! # Why the order is strict
//! From registering to leaving there is no moment without a place, and a place is only ever taken
//! behind all others. So nobody can be passed, however late it is, and the participants go round in
//! the order in which they registered. The locks belong to the open file: the kernel takes them
//! back from one who dies, in whatever way and at whatever step, and nobody waits for the dead. No
//! byte is ever written, so there is nothing that a crash could leave half done: the file may be
//! empty, from an earlier run, or anybody's.

use super::progress::Progress;
use crate::{Error, Result};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The byte that a participant holds while it takes a place. Places are lower.
const DOOR: i64 = 1 << 62;

/// One of those who share a file. The turn passes on when this is dropped, or the process ends
/// however it may.
pub struct Participant {
    path: PathBuf,
    file: File,
    /// The byte that it holds; 0, which is nobody's place, before it has one.
    place: i64,
}

impl Participant {
    /// Registers behind all others and waits for the first turn. Makes the file, which stays.
    ///
    /// # Errors
    /// A file that cannot be made or locked.
    pub fn join(path: &Path, progress: Progress) -> Result<Self> {
        let participant = Self::register(path)?;
        if !participant.is_first()? {
            progress.note(&format!("waiting for the turn ({})", path.display()));
        }
        participant.wait()?;
        Ok(participant)
    }

    /// Lets everyone else have a turn, and waits for the next one.
    ///
    /// # Errors
    /// A file system that no longer locks.
    pub fn hand_over(&mut self) -> Result<()> {
        self.take_place()?;
        step("in two places");
        self.lock(libc::F_UNLCK, 0..self.place)?;
        step("gave up the old place");
        self.wait()
    }

    fn register(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let opened = options.read(true).append(true).create(true).open(path);
        let mut participant = Participant {
            path: path.into(),
            file: opened.map_err(|e| failed(path, e))?,
            place: 0,
        };
        step("opened the file");
        participant.take_place()?;
        step("registered");
        Ok(participant)
    }

    /// Takes the place behind all others, in addition to the one it may have.
    fn take_place(&mut self) -> Result<()> {
        let door = DOOR..DOOR + 1;
        self.lock(libc::F_WRLCK, door.clone())?;
        step("at the door");
        let mut free = self.place + 1;
        while let Some(after) = self.held_by_another(free..DOOR)? {
            free = after;
        }
        step("found a place");
        self.lock(libc::F_WRLCK, free..free + 1)?;
        self.place = free;
        step("took a place");
        self.lock(libc::F_UNLCK, door)
    }

    /// Waits until nobody has a lower place.
    fn wait(&self) -> Result<()> {
        self.lock(libc::F_RDLCK, 0..self.place)?;
        step("has the turn");
        Ok(())
    }

    fn is_first(&self) -> Result<bool> {
        Ok(self.held_by_another(0..self.place)?.is_none())
    }

    /// The end of some place among these bytes that another participant holds.
    fn held_by_another(&self, bytes: Range<i64>) -> Result<Option<i64>> {
        let found = self.fcntl(libc::F_OFD_GETLK, libc::F_RDLCK, bytes)?;
        let held = i32::from(found.l_type) != libc::F_UNLCK;
        Ok(held.then_some(found.l_start + found.l_len))
    }

    /// Locks these bytes or gives them up, as soon as others let it.
    fn lock(&self, kind: libc::c_int, bytes: Range<i64>) -> Result<()> {
        self.fcntl(libc::F_OFD_SETLKW, kind, bytes).map(drop)
    }

    fn fcntl(
        &self,
        command: libc::c_int,
        kind: libc::c_int,
        bytes: Range<i64>,
    ) -> Result<libc::flock> {
        let mut lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: bytes.start,
            l_len: bytes.end - bytes.start,
            l_pid: 0,
        };
        loop {
            // SAFETY: the file is open, and nobody else has the structure.
            if unsafe { libc::fcntl(self.file.as_raw_fd(), command, &mut lock) } != -1 {
                return Ok(lock);
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(failed(&self.path, error));
            }
        }
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        // Closing the file does it as well, but for a child process that is just being started and
        // still shares it. An error is no reason not to close it.
        let _ = self.lock(libc::F_UNLCK, 0..DOOR + 1);
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    let next = "name a file with --turns that can be written, on a file system with locks";
    Error::io(path, error, next)
}

/// Where tests delay and kill a participant.
#[cfg(not(test))]
fn step(_: &'static str) {}
#[cfg(test)]
use tests::step;

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::{Barrier, Mutex};
    use std::thread;
    use std::time::Duration;

    type AtStep = Box<dyn FnMut(&'static str)>;

    thread_local! {
        static AT_STEP: RefCell<AtStep> = RefCell::new(Box::new(|_| ()));
    }

    pub fn step(name: &'static str) {
        AT_STEP.with_borrow_mut(|at_step| at_step(name));
    }

    /// Has this thread do something at every step of the protocol.
    fn at_each_step(what: impl FnMut(&'static str) + 'static) {
        AT_STEP.set(Box::new(what));
    }

    /// The steps of a participant that joins and hands over once.
    fn steps() -> Vec<&'static str> {
        let seen = std::rc::Rc::new(RefCell::new(vec![]));
        let dir = tempfile::tempdir().unwrap();
        let log = seen.clone();
        at_each_step(move |name| log.borrow_mut().push(name));
        let mut alone = Participant::join(&dir.path().join("turns"), Progress::Quiet).unwrap();
        alone.hand_over().unwrap();
        at_each_step(|_| ());
        seen.take()
    }

    /// Has `turns` turns, each of which writes `who` when it begins and when it ends.
    fn work(mut own: Participant, who: usize, turns: usize, log: &Mutex<Vec<usize>>) {
        own.wait().unwrap();
        for turn in 0..turns {
            if turn > 0 {
                own.hand_over().unwrap();
            }
            log.lock().unwrap().push(who);
            thread::yield_now();
            log.lock().unwrap().push(who);
        }
    }

    /// Requires that `count` participants go round in the order in which they registered, each
    /// doing at every step what `at_step` says of it.
    fn go_round<F: FnMut(&'static str) + 'static>(
        count: usize,
        at_step: impl Fn(usize) -> F + Sync,
    ) {
        const TURNS: usize = 8;
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (&dir.path().join("turns"), &Mutex::new(vec![]));
        let (registered, all_registered) = (&Barrier::new(2), &Barrier::new(count));
        thread::scope(|scope| {
            for who in 0..count {
                let at_step = &at_step;
                scope.spawn(move || {
                    at_each_step(at_step(who));
                    let own = Participant::register(path).unwrap();
                    registered.wait();
                    all_registered.wait();
                    work(own, who, TURNS, log);
                });
                registered.wait();
            }
        });
        let round: Vec<usize> = (0..count).flat_map(|who| [who, who]).collect();
        assert_eq!(*log.lock().unwrap(), round.repeat(TURNS));
    }

    #[test]
    fn turns_go_round_in_the_order_of_registration() {
        for count in [1, 2, 3, 5] {
            go_round(count, |_| |_: &'static str| ());
        }
    }

    #[test]
    fn who_is_late_at_any_step_is_waited_for() {
        let steps = BTreeSet::from_iter(steps());
        thread::scope(|scope| {
            for late_at in steps {
                for late in 0..3 {
                    scope.spawn(move || {
                        go_round(3, |who| {
                            move |name| {
                                if (who, name) == (late, late_at) {
                                    thread::sleep(Duration::from_millis(50));
                                }
                            }
                        });
                    });
                }
            }
        });
    }

    #[test]
    fn who_comes_later_goes_last_and_who_leaves_is_passed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turns");
        let register = || Participant::register(&path).unwrap();
        let first = |of: &[&Participant]| -> Vec<bool> {
            of.iter().map(|p| p.is_first().unwrap()).collect()
        };
        let (a, b, c) = (register(), register(), register());
        assert_eq!(first(&[&a, &b, &c]), [true, false, false]);
        drop(b);
        let d = register();
        assert_eq!(first(&[&a, &c, &d]), [true, false, false]);
        drop(a);
        assert_eq!(first(&[&c, &d]), [true, false]);
        drop(c);
        assert_eq!(first(&[&d]), [true]);
    }

    const CHILD_PATH: &str = "QUANTBENCH_TEST_TURNS_PATH";
    const CHILD_STEPS: &str = "QUANTBENCH_TEST_TURNS_STEPS";

    /// A process that goes so many steps, says each, and then waits to be killed.
    struct Victim {
        process: Child,
        says: std::io::Lines<BufReader<ChildStdout>>,
    }

    impl Victim {
        fn start(path: &Path, steps: usize) -> Self {
            let (_, module) = module_path!().split_once("::").unwrap();
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "--nocapture"])
                .arg(format!("{module}::a_process_to_kill"))
                .env(CHILD_PATH, path)
                .env(CHILD_STEPS, steps.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let says = BufReader::new(process.stdout.take().unwrap()).lines();
            Victim { process, says }
        }

        /// Waits until it has come so far; `false` if it ended before.
        fn comes_to(&mut self, step: &str) -> bool {
            self.says.any(|line| line.unwrap().ends_with(step))
        }
    }

    impl Drop for Victim {
        /// Kills it with SIGKILL and waits until it is dead.
        fn drop(&mut self) {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    #[test]
    #[ignore = "a part of the tests that kill it"]
    fn a_process_to_kill() {
        let Some(path) = std::env::var_os(CHILD_PATH) else {
            return;
        };
        let steps: usize = std::env::var(CHILD_STEPS).unwrap().parse().unwrap();
        let mut gone = 0;
        at_each_step(move |name| {
            gone += 1;
            println!("step {gone}: {name}");
            if gone == steps {
                loop {
                    thread::park();
                }
            }
        });
        let mut own = Participant::join(Path::new(&path), Progress::Quiet).unwrap();
        loop {
            own.hand_over().unwrap();
        }
    }

    #[test]
    fn who_is_killed_is_passed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turns");
        let register = || Participant::register(&path).unwrap();
        let join_steps = 1 + steps().iter().position(|s| *s == "has the turn").unwrap();

        let mut holder = Victim::start(&path, join_steps);
        assert!(holder.comes_to("has the turn"));
        let (a, b) = (register(), register());
        assert!(!a.is_first().unwrap());
        drop(holder);
        // Nothing to wait for, so no time to measure.
        assert!(a.is_first().unwrap() && !b.is_first().unwrap());

        let mut waiter = Victim::start(&path, join_steps);
        assert!(waiter.comes_to("registered"));
        let c = register();
        drop(b);
        drop(waiter);
        assert!(a.is_first().unwrap() && !c.is_first().unwrap());
        drop(a);
        assert!(c.is_first().unwrap());
    }

    /// Two go on while a third is killed at each of its steps: they are held up while it is alive
    /// and in their way, or this would not end.
    #[test]
    fn who_is_killed_at_any_step_leaves_nothing_behind() {
        let steps = steps();
        for last in 1..=steps.len() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("turns");
            let both = [(); 2].map(|()| Participant::register(&path).unwrap());
            let (log, killed) = (Mutex::new(vec![]), AtomicBool::new(false));
            thread::scope(|scope| {
                for (who, mut own) in both.into_iter().enumerate() {
                    let (log, killed) = (&log, &killed);
                    scope.spawn(move || {
                        own.wait().unwrap();
                        let mut turns = 0;
                        while turns < 8 || !killed.load(SeqCst) {
                            log.lock().unwrap().push(who);
                            own.hand_over().unwrap();
                            turns += 1;
                        }
                    });
                }
                let mut third = Victim::start(&path, last);
                let came = third.comes_to(&format!("step {last}: {}", steps[last - 1]));
                drop(third);
                killed.store(true, SeqCst);
                assert!(came, "it ended before step {last}");
            });
            let log = log.into_inner().unwrap();
            let in_turn = |log: &[usize]| log.windows(2).all(|two| two[0] != two[1]);
            assert!(in_turn(&log), "killed after {last} steps");
        }
    }

    #[test]
    fn any_file_will_do_and_is_left_as_it_was() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let odd = std::ffi::OsStr::from_bytes(b" a\nb'\"*\\\xff.next");
        let path = dir.path().join(odd);
        std::fs::write(&path, "of an earlier run").unwrap();
        let mut a = Participant::join(&path, Progress::Quiet).unwrap();
        let b = Participant::register(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| work(b, 1, 1, &Mutex::new(vec![])));
            a.hand_over().unwrap();
        });
        assert_eq!(std::fs::read(&path).unwrap(), b"of an earlier run");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let error = Participant::join(Path::new("/nosuch/turns"), Progress::Quiet);
        let message = error.err().unwrap().to_string();
        assert!(
            message.contains("/nosuch/turns") && message.contains("--turns"),
            "{message}"
        );
    }
}
