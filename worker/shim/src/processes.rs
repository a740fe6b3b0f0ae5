//! Processes as the kernel shows them: who one is, what descends from it, and a signal to exactly it.
//!
//! A process is its pid *and* its start time; a pid alone may have been given to another one. Signals go through a pidfd that
//! is opened before the start time is compared, so that no signal reaches a successor of the same pid.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, as `/proc/<pid>/stat` has it.
    pub start_ticks: u64,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid, self.start_ticks)
    }
}

/// The text is not a [`ProcessId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidProcessId;

impl FromStr for ProcessId {
    type Err = InvalidProcessId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pid, start_ticks) = text.split_once(':').ok_or(InvalidProcessId)?;
        let number = |_| InvalidProcessId;
        Ok(Self { pid: pid.parse().map_err(number)?, start_ticks: start_ticks.parse().map_err(number)? })
    }
}

/// The part of `/proc/<pid>/stat` that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    /// Its parent.
    pub parent: u32,
    /// Its session.
    pub session: u32,
    /// How many threads it has.
    pub threads: u32,
    /// When it was started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    /// Whether it runs. A zombie does not, unless only its first thread has ended and others go on: then it is shown as one, too.
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x') || self.threads > 1
    }
}

/// What the kernel says of a process; `None` when there is none of that pid.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    // Twice what the longest line can have, so that one read gets it all.
    let mut line = [0; 1024];
    let length = fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut line).ok()?;
    parse_stat(&line[..length])
}

/// The command's name is in parentheses and may hold anything, also half a character where the kernel cut it, so fields
/// count from the last closing one.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let name_ends = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&line[name_ends + 1..]).ok()?.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        session: fields.nth(1)?.parse().ok()?,
        threads: fields.nth(13)?.parse().ok()?,
        start_ticks: fields.nth(1)?.parse().ok()?,
    })
}

/// Every pid there is.
pub fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// Id of the running boot; empty where the kernel does not tell, which only weakens comparisons.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl ProcessId {
    /// The process of this pid, be it alive or a zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, start_ticks: stat.start_ticks })
    }

    /// Whether exactly this process runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.is_alive() && stat.start_ticks == self.start_ticks)
    }
}

/// Every live process that descends from `root`, itself left out. What is forked or ends meanwhile may be missed or listed:
/// callers look again until they find none.
#[must_use]
pub fn descendants(root: u32) -> Vec<ProcessId> {
    let mut found: Vec<ProcessId> = Vec::new();
    let mut next = vec![root];
    let mut by_parent = None;
    while let Some(parent) = next.pop() {
        let children = listed_children(parent).unwrap_or_else(|| {
            // A kernel without lists of children.
            by_parent.get_or_insert_with(children_of_all).get(&parent).cloned().unwrap_or_default()
        });
        for pid in children {
            // What has ended as a whole has no children: those were given to the nearest subreaper.
            let Some(stat) = stat(pid).filter(Stat::is_alive) else { continue };
            let id = ProcessId { pid, start_ticks: stat.start_ticks };
            if pid != root && !found.contains(&id) {
                found.push(id);
                next.push(pid);
            }
        }
    }
    found
}

/// The children of a process, also those that have ended and were not waited for.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    listed_children(parent).unwrap_or_else(|| children_of_all().remove(&parent).unwrap_or_default())
}

/// Children by the lists that the kernel keeps for each thread; `None` where it keeps none.
fn listed_children(parent: u32) -> Option<Vec<u32>> {
    let mut children = Vec::new();
    let threads = fs::read_dir(format!("/proc/{parent}/task")).ok().into_iter().flatten().flatten();
    for thread in threads {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            // The thread has ended, unless it is still there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && thread.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(children)
}

fn children_of_all() -> BTreeMap<u32, Vec<u32>> {
    let mut by_parent: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in pids() {
        if let Some(stat) = stat(pid) {
            by_parent.entry(stat.parent).or_default().push(pid);
        }
    }
    by_parent
}

/// A process held by a pidfd: it can be signalled without hitting another one.
#[derive(Debug)]
pub struct SignalTarget {
    fd: OwnedFd,
}

impl SignalTarget {
    /// Takes hold of a process; `None` when it is gone.
    ///
    /// # Errors
    /// What the kernel says, other than that there is no such process.
    pub fn open(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(id.is_alive().then_some(Self { fd }))
    }

    /// Sends a signal. A process that has ended meanwhile is fine.
    ///
    /// # Errors
    /// What the kernel says, such as a missing permission.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends a signal to exactly this process; one that is gone is fine.
///
/// # Errors
/// As [`SignalTarget`].
pub fn signal(id: ProcessId, signal: Signal) -> io::Result<()> {
    match SignalTarget::open(id)? {
        Some(target) => target.signal(signal),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let mut line = "12 (a) b (c)) S 7 12 34 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 98765 0".to_owned();
        line.push_str(" 0 0 0");
        let stat = parse_stat(line.as_bytes()).expect("a full line");
        assert_eq!(stat, Stat { state: 'S', parent: 7, session: 34, threads: 1, start_ticks: 98765 });
        assert!(parse_stat(b"12 (short) S 1").is_none());
    }

    #[test]
    fn a_name_that_was_cut_within_a_character_is_no_death() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // The kernel keeps 15 bytes, and the last letter is the 15th and 16th.
        let program = folder.path().join("serveur-annuaié");
        std::os::unix::fs::symlink("/bin/sh", &program).expect("writable");
        let mut command = std::process::Command::new(&program);
        let piped = std::process::Stdio::piped;
        command.args(["-c", "echo up; read line"]).stdin(piped()).stdout(piped());
        let mut child = command.spawn().expect("every system has a shell");
        // `spawn` may return before the kernel has set the new name; what the program says comes after.
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut up).expect("it says so");
        let comm = fs::read(format!("/proc/{}/comm", child.id())).expect("it runs");
        let alive = ProcessId::of(child.id()).is_some_and(ProcessId::is_alive);
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        assert!(std::str::from_utf8(&comm).is_err(), "{comm:?}");
        assert!(alive);
    }

    #[test]
    fn descendants_are_found_at_every_depth_and_by_either_way() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sh -c 'sleep 1000 & echo up; wait' & wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("every system has a shell");
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut up).expect("it says so");
        let found = descendants(child.id());
        let all = children_of_all();
        let mut slowly = Vec::new();
        let mut next = vec![child.id()];
        while let Some(pid) = next.pop() {
            let children = all.get(&pid).cloned().unwrap_or_default();
            slowly.extend(&children);
            next.extend(children);
        }
        for id in &found {
            signal(*id, Signal::KILL).expect("it is ours");
        }
        child.wait().expect("it is ours");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|id| slowly.contains(&id.pid)), "{found:?} {slowly:?}");
        assert!(descendants(child.id()).is_empty());
    }

    #[test]
    fn a_signal_to_a_process_of_another_start_time_goes_nowhere() {
        let me = ProcessId::of(std::process::id()).expect("this process runs");
        assert!(me.is_alive());
        let other = ProcessId { start_ticks: me.start_ticks + 1, ..me };
        assert!(!other.is_alive());
        signal(other, Signal::KILL).expect("nobody is hit");
    }

    #[test]
    fn a_process_is_written_and_read() {
        let id = ProcessId { pid: 4, start_ticks: 70 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "4", "4:", ":7", "4:7:8", "-1:7"] {
            assert!(text.parse::<ProcessId>().is_err(), "{text}");
        }
    }
}
