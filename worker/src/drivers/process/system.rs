//! What the kernel knows about processes: who is alive, who belongs to an instance, who holds a port.
//!
//! A process is its pid *and* its start time; a pid alone may have been given to somebody else. Signals go through a
//! pidfd that is opened before the start time is compared, so that no signal reaches a successor of the same pid.
//! Everything here reads `/proc` and can block for as long as a scan takes: callers run it off the async threads.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use worker_core::instance::Handle;

/// Variable that names the instance a process belongs to.
pub(super) const INSTANCE_VARIABLE: &str = "RUG_INSTANCE";
/// Variable that names the state directory the instance belongs to; two clusters may share a host.
pub(super) const STATE_VARIABLE: &str = "RUG_STATE_DIR";

/// One process, for ever: boots, pids and start times together never repeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessStamp {
    /// Process id.
    pub(super) pid: u32,
    /// Start time in clock ticks since boot, as `/proc/<pid>/stat` has it.
    pub(super) start_ticks: u64,
    /// Boot during which it was started.
    pub(super) boot: String,
}

impl ProcessStamp {
    /// How an instance is found by this driver for as long as a worker owns it, which is never longer than a boot lasts.
    pub(super) fn handle(&self) -> Handle {
        Handle::new(format!("{}:{}", self.pid, self.start_ticks)).expect("two numbers are short")
    }
}

/// Pid and start time of a [`ProcessStamp::handle`].
pub(super) fn process_of(handle: &Handle) -> Option<(u32, u64)> {
    let (pid, start_ticks) = handle.as_str().split_once(':')?;
    Some((pid.parse().ok()?, start_ticks.parse().ok()?))
}

/// The part of `/proc/<pid>/stat` that matters here.
struct Stat {
    state: char,
    session: u32,
    start_ticks: u64,
}

/// Id of the running boot; empty where the kernel does not tell, which only weakens the comparison.
fn boot_id() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
    });
    &BOOT
}

/// Identity of a live process. `None` when there is none; a zombie counts as none.
pub(super) fn identify(pid: u32) -> Option<ProcessStamp> {
    let stat = stat(pid)?;
    alive(&stat).then(|| ProcessStamp { pid, start_ticks: stat.start_ticks, boot: boot_id().to_owned() })
}

/// Identity of a child that was not waited for yet: it may be a zombie already.
pub(super) fn identify_child(pid: u32) -> Option<ProcessStamp> {
    stat(pid).map(|stat| ProcessStamp { pid, start_ticks: stat.start_ticks, boot: boot_id().to_owned() })
}

/// Whether exactly this process runs.
pub(super) fn is_alive(identity: &ProcessStamp) -> bool {
    identity.boot == boot_id() && runs(identity.pid, identity.start_ticks)
}

/// Whether process `pid` runs and was started at `start_ticks` of this boot. Reads one line of `/proc`, which takes some
/// ten microseconds and never waits, so that it may be asked on an async thread.
pub(super) fn runs(pid: u32, start_ticks: u64) -> bool {
    stat(pid).is_some_and(|stat| alive(&stat) && stat.start_ticks == start_ticks)
}

/// Start of a process in milliseconds since the Unix epoch, as well as the kernel can tell.
pub(super) fn started_at_unix_ms(identity: &ProcessStamp) -> u64 {
    let boot = procfs::boot_time_secs().unwrap_or(0);
    let ticks = procfs::ticks_per_second().max(1);
    boot * 1000 + identity.start_ticks * 1000 / ticks
}

/// A process that carries the variables of an instance.
#[derive(Debug)]
pub(super) struct Marked {
    /// The process.
    pub(super) identity: ProcessStamp,
    /// Its `RUG_` variables.
    pub(super) variables: BTreeMap<String, String>,
}

/// The first process of each instance of this state directory that can be found by its environment. Leaders of a
/// session, or on the way to become one; what an instance starts in sessions of their own is younger.
pub(super) fn marked(state_dir: &Path) -> Vec<Marked> {
    let mut found: BTreeMap<String, Marked> = BTreeMap::new();
    for pid in own_pids() {
        let Some(stat) = stat(pid).filter(alive) else { continue };
        if stat.session != pid && !is_launching(pid) {
            continue;
        }
        let variables = variables(pid);
        let Some(name) = owner(&variables, state_dir).map(str::to_owned) else { continue };
        // The start time is read again after the environment: both then belong to the same process.
        let Some(identity) = identify(pid).filter(|id| id.start_ticks == stat.start_ticks) else { continue };
        let age = |id: &ProcessStamp| (id.start_ticks, id.pid);
        if found.get(&name).is_none_or(|known| age(&identity) < age(&known.identity)) {
            found.insert(name, Marked { identity, variables });
        }
    }
    found.into_values().collect()
}

/// Every live process of an instance: the leader, what runs in its session, and what carries the instance's name in a
/// session of its own. Once the leader is gone its session number may have been used again, and only the name counts.
pub(super) fn family(leader: &ProcessStamp, name: &str, state_dir: &Path) -> Vec<ProcessStamp> {
    if leader.boot != boot_id() {
        return Vec::new();
    }
    let leads = is_alive(leader);
    own_pids()
        .filter_map(|pid| {
            let stat = stat(pid).filter(alive)?;
            let is_leader = pid == leader.pid && stat.start_ticks == leader.start_ticks;
            let follows = stat.start_ticks >= leader.start_ticks
                && ((leads && stat.session == leader.pid) || owner(&variables(pid), state_dir) == Some(name));
            (is_leader || follows).then(|| ProcessStamp {
                pid,
                start_ticks: stat.start_ticks,
                boot: leader.boot.clone(),
            })
        })
        .collect()
}

/// The instance of this state directory that a process with these variables belongs to.
fn owner<'a>(variables: &'a BTreeMap<String, String>, state_dir: &Path) -> Option<&'a str> {
    let ours = variables.get(STATE_VARIABLE).is_some_and(|dir| Path::new(dir) == state_dir);
    variables.get(INSTANCE_VARIABLE).filter(|_| ours).map(String::as_str)
}

/// A process held by a pidfd: it can be signalled without hitting another one.
#[derive(Debug)]
pub(super) struct SignalTarget {
    identity: ProcessStamp,
    fd: OwnedFd,
}

impl SignalTarget {
    /// Takes hold of a process; `None` when it is gone.
    ///
    /// # Errors
    /// What the kernel says, other than that there is no such process.
    pub(super) fn open(identity: &ProcessStamp) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(identity.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !is_alive(identity) {
            return Ok(None);
        }
        Ok(Some(Self { identity: identity.clone(), fd }))
    }

    /// Sends a signal. A process that has ended meanwhile is fine.
    ///
    /// # Errors
    /// What the kernel says, such as a missing permission.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end of the process; `false` when it still runs at `deadline`.
    pub(super) async fn ended(&self, deadline: Instant) -> bool {
        // Looked at again and again: tokio has no safe way to wait for a pidfd, and ends are too rare for it to matter.
        let mut pause = Duration::from_millis(1);
        while is_alive(&self.identity) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(POLL);
        }
        true
    }
}

/// Who listens on a TCP port, for error messages: `pid 812 (nginx)`. `None` when it cannot be found out.
pub(super) fn port_holder(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    pids().find_map(|pid| {
        let holds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
        });
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        holds.then(|| format!("pid {pid} ({})", comm().trim()))
    })
}

/// Inodes of the sockets that listen on `port` in a table of `/proc/net/tcp`'s form.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            let matches = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
            matches.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
        })
        .collect()
}

fn alive(stat: &Stat) -> bool {
    !matches!(stat.state, 'Z' | 'X' | 'x')
}

fn stat(pid: u32) -> Option<Stat> {
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
        session: fields.nth(2)?.parse().ok()?,
        start_ticks: fields.nth(15)?.parse().ok()?,
    })
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// Processes of our own user: those of others are neither ours nor readable.
fn own_pids() -> impl Iterator<Item = u32> {
    let own = geteuid().as_raw();
    let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    pids().filter(move |pid| is_of_user(&status(pid), own))
}

/// Whether all users of a process are `own`, by its `/proc/<pid>/status`. One that another user started with the right of
/// this one (`su`, setuid programs) has the environment that the other user gave it, and must not pass for an instance.
fn is_of_user(status: &str, own: u32) -> bool {
    // Real, effective, saved, and that of file accesses.
    let Some(uids) = status.lines().find_map(|line| line.strip_prefix("Uid:")) else { return false };
    let mut uids = uids.split_ascii_whitespace().map(str::parse);
    uids.by_ref().take(4).filter(|uid| *uid == Ok(own)).count() == 4 && uids.next().is_none()
}

/// `RUG_` variables a process was started with.
fn variables(pid: u32) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
        .filter(|(name, _)| name.starts_with("RUG_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Whether a process is the launcher on its way into a session of its own (see `rug-appliance exec`).
fn is_launching(pid: u32) -> bool {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = bytes.split(|byte| *byte == 0).skip(1);
    words.next() == Some(b"exec".as_slice()) && words.next() == Some(b"--".as_slice())
}

/// How often a condition without an event of its own is looked at again.
pub(super) const POLL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let mut line = "12 (a) b (c)) S 1 12 34 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 98765 0".to_owned();
        line.push_str(" 0 0 0");
        let stat = parse_stat(line.as_bytes()).expect("a full line");
        assert_eq!((stat.state, stat.session, stat.start_ticks), ('S', 34, 98765));
        assert!(parse_stat(b"12 (short) S 1").is_none());
    }

    #[test]
    fn a_process_that_another_user_started_is_none_of_ours() {
        let status = |uids: &str| format!("Name:\tsu\nUid:\t{uids}\nGid:\t0\t0\t0\t0\n");
        assert!(is_of_user(&status("0\t0\t0\t0"), 0));
        for other in ["1000\t0\t0\t0", "0\t0\t1000\t0", "0\t1000\t0\t0", "1\t1\t1\t1", "0\t0\t0", "x\t0\t0\t0", ""] {
            assert!(!is_of_user(&status(other), 0), "{other}");
        }
        assert!(!is_of_user("", 0));
        assert!(own_pids().any(|pid| pid == std::process::id()));
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
        let identity = identify(child.id());
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        assert!(std::str::from_utf8(&comm).is_err(), "{comm:?}");
        assert!(identity.is_some());
    }

    #[test]
    fn this_process_is_alive_and_a_process_of_another_start_time_or_boot_is_not() {
        let me = identify(std::process::id()).expect("this process runs");
        assert!(is_alive(&me));
        assert!(!is_alive(&ProcessStamp { start_ticks: me.start_ticks + 1, ..me.clone() }));
        assert!(!is_alive(&ProcessStamp { boot: "another".into(), ..me }));
    }

    #[test]
    fn the_holder_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let holder = port_holder(port).expect("our own socket");
        assert!(holder.starts_with(&format!("pid {} (", std::process::id())), "{holder}");
    }
}
