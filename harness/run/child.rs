//! A child process: events in, cause of death out.

use super::host::unix_s;
use super::job::{Event, Job};
use crate::memory::{EXIT_OUT_OF_MEMORY, OUT_OF_MEMORY_MARK};
use crate::record::rows::Status;
use crate::{Error, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Name of the hidden subcommand.
pub const WORKER: &str = "worker";

/// Why a child gave no result.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    pub status: Status,
    pub message: String,
}

impl Ending {
    /// The same, with what was under way.
    pub fn during(self, what: &str) -> Self {
        Ending {
            message: format!("while {what}: {}", self.message),
            ..self
        }
    }
}

/// What waiting for an event came to.
#[derive(Debug)]
pub enum Outcome {
    Event(Event),
    /// The child ended well; no more events.
    Done,
    Failed(Ending),
    /// The user asked to stop; the child was ended.
    Interrupted,
}

pub struct Child {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    events: Receiver<std::result::Result<Event, String>>,
    stderr: Option<JoinHandle<String>>,
    /// Of its own work.
    timeout: Option<Duration>,
    /// How long its events were waited for.
    worked: Duration,
    name: String,
    oom_kills_before: Option<u64>,
}

impl Child {
    /// Starts this same program as a worker with `threads` threads and hands it its job.
    pub fn start(job: &Job, threads: usize, timeout: Option<Duration>) -> Result<Self> {
        let next = "check that the quantbench binary can still be read and run";
        let program = std::env::current_exe().map_err(|e| Error::io("quantbench", e, next))?;
        let mut command = Command::new(&program);
        command
            .arg(WORKER)
            .env("RAYON_NUM_THREADS", threads.to_string())
            // The products are ours and run on rayon. candle's own pool, used for elementwise
            // sums only, waits in busy loops and would take their cores.
            .env("CANDLE_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Its own process group: Ctrl-C reaches the parent, which decides.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let oom_kills_before = cgroup_oom_kills();
        let started_s = unix_s();
        let mut process = command.spawn().map_err(|e| Error::io(&program, e, next))?;
        let stdout = process.stdout.take();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|s| BufReader::new(s).lines()) {
                let event = line
                    .map_err(|e| e.to_string())
                    .and_then(|l| serde_json::from_str(&l).map_err(|e| format!("{e}: {l}")));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let stderr = process.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut bytes = vec![];
                // What arrived before an error is still worth showing.
                let _ = stderr.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let mut child = Child {
            name: format!("{}-{}", started_s as u64, process.id()),
            stdin: process.stdin.take(),
            process,
            events,
            stderr,
            timeout,
            worked: Duration::ZERO,
            oom_kills_before,
        };
        let job = serde_json::to_string(job).map_err(|e| Error::io("job", e.into(), next))?;
        // A child that died at once is reported by `next`, with its cause.
        child.tell(&job);
        Ok(child)
    }

    /// Sends a line; a broken pipe shows in the next event.
    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        }
    }

    /// Waits for the next event, the end, the timeout or the user.
    pub fn next(&mut self, interrupted: &AtomicBool) -> Outcome {
        let since = Instant::now();
        let outcome = self.wait(interrupted, since);
        self.worked += since.elapsed();
        outcome
    }

    fn wait(&mut self, interrupted: &AtomicBool, since: Instant) -> Outcome {
        loop {
            if interrupted.load(Relaxed) {
                self.kill();
                return Outcome::Interrupted;
            }
            // While nobody waits for it, a child has nothing to do: others have their turns.
            let worked = self.worked + since.elapsed();
            if self.timeout.is_some_and(|timeout| worked > timeout) {
                self.kill();
                let seconds = self.timeout.unwrap_or_default().as_secs_f64();
                return Outcome::Failed(Ending {
                    status: Status::Timeout,
                    message: format!("not finished after {seconds} s (--timeout)"),
                });
            }
            match self.events.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok(Event::Failed { status, message })) => {
                    let _ = self.process.wait();
                    return Outcome::Failed(Ending { status, message });
                }
                Ok(Ok(event)) => return Outcome::Event(event),
                Ok(Err(what)) => {
                    self.kill();
                    return Outcome::Failed(Ending {
                        status: Status::Error,
                        message: format!("unreadable answer of the child: {what}"),
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
        }
    }

    /// Closes the child's input and waits until it has ended.
    pub fn finish(mut self) {
        self.stdin = None;
        let _ = self.process.wait();
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// A name that no other child has: when it started, in seconds since 1970, and its number.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn end(&mut self) -> Outcome {
        let status = match self.process.wait() {
            Ok(status) if status.success() => return Outcome::Done,
            Ok(status) => status,
            Err(e) => {
                return Outcome::Failed(Ending {
                    status: Status::Error,
                    message: format!("cannot tell how the child ended: {e}"),
                });
            }
        };
        let stderr = self
            .stderr
            .take()
            .and_then(|t| t.join().ok())
            .unwrap_or_default();
        let oom_killed = match (self.oom_kills_before, cgroup_oom_kills()) {
            (Some(before), Some(after)) => after > before,
            _ => false,
        };
        Outcome::Failed(explain(status, &stderr, oom_killed))
    }

    fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn explain(status: ExitStatus, stderr: &str, oom_killed: bool) -> Ending {
    let refused = stderr
        .lines()
        .find_map(|l| l.strip_prefix(OUT_OF_MEMORY_MARK));
    let last = stderr.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("");
    if status.code() == Some(EXIT_OUT_OF_MEMORY) {
        return Ending {
            status: Status::Oom,
            message: refused.unwrap_or("memory limit").trim().into(),
        };
    }
    if oom_killed {
        return Ending {
            status: Status::Oom,
            message: "the system ended the process for lack of memory".into(),
        };
    }
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return Ending {
            status: Status::Killed,
            message: format!("ended by signal {signal} {last}").trim().into(),
        };
    }
    Ending {
        status: Status::Error,
        message: format!("{status}: {last}"),
    }
}

/// How often the kernel ended a process of our control group for lack of memory.
fn cgroup_oom_kills() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    let events = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.events")).ok()?;
    events
        .lines()
        .find_map(|l| l.strip_prefix("oom_kill "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn endings_are_told_apart() {
        let signalled = ExitStatus::from_raw(9);
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        let cases = [
            (signalled, "", false, Status::Killed),
            (signalled, "", true, Status::Oom),
            (
                exited(EXIT_OUT_OF_MEMORY),
                "quantbench-oom: memory limit: a request of 5 bytes\n",
                false,
                Status::Oom,
            ),
            (exited(101), "thread panicked\n\n", false, Status::Error),
        ];
        for (status, stderr, oom, expected) in cases {
            let ending = explain(status, stderr, oom);
            assert_eq!(ending.status, expected);
            assert!(!ending.message.is_empty());
            assert!(!ending.message.contains(OUT_OF_MEMORY_MARK));
        }
    }
}
