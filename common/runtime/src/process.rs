//! Which process this one is, and seeing that another one on this machine has ended.
//!
//! A *pidfd* refers to one process, whatever becomes of its pid, and becomes readable when the last thread of the process has ended:
//! from then on nothing of it starts a call. That is what makes it a witness (docs/protocol.md, Witnessed deaths).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use common::ProcessIdentity;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

/// Place of the start of a process among the fields of `/proc/<pid>/stat` that follow the name of the program.
const START: usize = 19;

/// Why it cannot be seen here whether a process has ended.
#[derive(Debug, thiserror::Error)]
pub enum Unwatchable {
    /// It runs on another machine, or in another pid namespace.
    #[error("it does not run beside this process")]
    Elsewhere,
    /// Its pid is another process's here, or says so: it has ended, or the clocks of time namespaces differ.
    #[error("its pid belongs to another process")]
    Reused,
    /// The kernel does not let this process look.
    #[error("it cannot be watched: {0}")]
    Refused(#[from] io::Error),
}

/// This process; `None` where `/proc` is not there or is that of another pid namespace.
#[must_use]
pub fn own_identity() -> Option<ProcessIdentity> {
    let pid = std::process::id();
    // Of a `/proc` that was mounted for other processes, this link names another pid, or nothing.
    let own = fs::read_link("/proc/self").ok()?;
    if own.to_str()?.parse() != Ok(pid) {
        return None;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = boot.trim().replace('-', "");
    let boot = u128::from_str_radix(&boot, 16).ok()?;
    let pid_namespace = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    Some(ProcessIdentity { boot, pid_namespace, pid, start: start_of(pid)? })
}

/// When a process started, in clock ticks after the start of the kernel.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(START)?.parse().ok()
}

/// Waits until a process beside this one has ended. That it was not found counts as well: its pid was its own while it ran.
///
/// # Errors
/// [`Unwatchable`]; then nothing is known of it.
pub async fn ended(process: ProcessIdentity) -> Result<(), Unwatchable> {
    if !own_identity().is_some_and(|own| own.is_neighbour(&process)) {
        return Err(Unwatchable::Elsewhere);
    }
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or(Unwatchable::Elsewhere)?;
    let watched: OwnedFd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(watched) => watched,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(Unwatchable::Refused(error.into())),
    };
    // Only now: whoever has this start is the process, and the descriptor stands for whoever had the pid before this look.
    match start_of(process.pid) {
        Some(start) if start == process.start => {}
        Some(_) => return Err(Unwatchable::Reused),
        // It has ended since, which the descriptor says too; where `/proc` shows other users' processes to nobody it does not.
        None => {}
    }
    drop(registered(watched)?.readable().await?);
    Ok(())
}

/// Has the runtime tell when a pidfd becomes readable.
#[expect(unsafe_code, reason = "no safe function takes an OwnedFd, which keeps what is asked for")]
fn registered(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is an open descriptor, the same one until it is dropped, and the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Most processes that are watched at once, each with a descriptor: far more workers than one machine has.
const MAX_WATCHED: usize = 1_024;

/// Watches processes beside this one for their ends.
#[derive(Debug)]
pub struct ProcessWatch {
    own: Option<ProcessIdentity>,
    /// Those that are wanted, also when they have ended or cannot be watched: each is tried once.
    wanted: BTreeMap<ProcessIdentity, AbortHandle>,
    ends: JoinSet<(ProcessIdentity, Result<(), Unwatchable>)>,
}

impl Default for ProcessWatch {
    fn default() -> Self {
        Self { own: own_identity(), wanted: BTreeMap::new(), ends: JoinSet::new() }
    }
}

impl ProcessWatch {
    /// Watches these, as far as they run beside this process, and no others.
    pub fn set(&mut self, processes: impl IntoIterator<Item = ProcessIdentity>) {
        let Some(own) = self.own else { return };
        let beside = processes.into_iter().filter(|one| own.is_neighbour(one)).take(MAX_WATCHED);
        let mut former = std::mem::take(&mut self.wanted);
        for process in beside {
            let known = former.remove(&process);
            let task = known.unwrap_or_else(|| self.ends.spawn(async move { (process, ended(process).await) }));
            self.wanted.insert(process, task);
        }
        former.into_values().for_each(|task| task.abort());
    }

    /// The next of them that has ended. Never while there is none; may be dropped at any time.
    pub async fn next(&mut self) -> ProcessIdentity {
        loop {
            match self.ends.join_next().await {
                Some(Ok((process, Ok(())))) if self.wanted.contains_key(&process) => return process,
                Some(Ok((process, Err(error)))) => {
                    debug!(%process, "the end of this process will not be seen: {error}")
                }
                // It is not wanted any more.
                Some(_) => {}
                None => return std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A process that runs until it is killed, and who it is.
    fn sleeper() -> (Child, ProcessIdentity) {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep runs");
        let own = own_identity().expect("/proc is there");
        let process = ProcessIdentity { pid: child.id(), start: start_of(child.id()).expect("it runs"), ..own };
        (child, process)
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_nothing_else_is_taken_for_one() {
        let (mut child, process) = sleeper();
        let mut seen = std::pin::pin!(ended(process));
        assert!(timeout(Duration::from_millis(50), &mut seen).await.is_err(), "it runs");
        rustix::process::kill_process(Pid::from_child(&child), rustix::process::Signal::STOP).expect("it runs");
        assert!(timeout(Duration::from_millis(50), &mut seen).await.is_err(), "one that is stopped has not ended");
        child.kill().expect("it runs");
        // Nobody has waited for it yet: it is a zombie, which starts no call.
        timeout(Duration::from_secs(10), seen).await.expect("in time").expect("it was watched");
        child.wait().expect("it has ended");
        assert!(ended(process).await.is_ok(), "a pid that nobody has");
    }

    #[tokio::test]
    async fn of_many_the_one_that_ended_is_named_once() {
        let ((mut one, first), (mut other, second)) = (sleeper(), sleeper());
        let mut watch = ProcessWatch::default();
        watch.set([first, second]);
        assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err(), "both run");
        other.kill().expect("it runs");
        assert_eq!(timeout(Duration::from_secs(10), watch.next()).await, Ok(second));
        watch.set([first, second]);
        assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err(), "once");
        watch.set([second]);
        one.kill().expect("it runs");
        assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err(), "it is not wanted any more");
        for mut child in [one, other] {
            child.wait().expect("it has ended");
        }
    }

    #[tokio::test]
    async fn of_who_cannot_be_told_from_others_nothing_is_said() {
        let (mut child, process) = sleeper();
        let earlier = ProcessIdentity { start: process.start - 1, ..process };
        assert!(matches!(ended(earlier).await, Err(Unwatchable::Reused)), "another process with this pid");
        for elsewhere in [
            ProcessIdentity { boot: process.boot ^ 1, ..process },
            ProcessIdentity { pid_namespace: process.pid_namespace + 1, ..process },
            own_identity().expect("/proc is there"),
        ] {
            assert!(matches!(ended(elsewhere).await, Err(Unwatchable::Elsewhere)), "{elsewhere}");
        }
        child.kill().expect("it runs");
        child.wait().expect("it has ended");
    }
}
