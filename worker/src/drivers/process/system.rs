//! What the kernel knows about processes: who is alive, who belongs to an instance, who holds a port.
//!
//! A process is its pid *and* its start time, on this boot (see [`shim::processes`]). Everything here reads `/proc` and can block for as long as a scan takes: callers
//! run it off the async threads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use common::Timestamp;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use shim::SHIM_VARIABLE;
use shim::processes::{self, ProcessId, Stat, descendants, pids, stat};
use tokio::time::Instant;
use worker_core::instance::Handle;

use super::shared_look::SharedLook;

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
    /// A process of this boot.
    pub(super) fn of(id: ProcessId) -> Self {
        Self { pid: id.pid, start_ticks: id.start_ticks, boot: boot_id().to_owned() }
    }

    /// The process on this boot; `None` when it was one of another boot.
    pub(super) fn id(&self) -> Option<ProcessId> {
        (self.boot == boot_id()).then_some(ProcessId { pid: self.pid, start_ticks: self.start_ticks })
    }

    /// When it was started, on the clock of this boot.
    pub(super) fn started(&self) -> Timestamp {
        let ticks = procfs::ticks_per_second().max(1);
        let nanos = u128::from(self.start_ticks) * 1_000_000_000 / u128::from(ticks);
        Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How an instance is found by this driver for as long as a worker owns it, which is never longer than a boot lasts.
    pub(super) fn handle(&self) -> Handle {
        Handle::new(format!("{}:{}", self.pid, self.start_ticks)).expect("two numbers are short")
    }
}

/// The process of a [`ProcessStamp::handle`].
pub(super) fn process_of(handle: &Handle) -> Option<ProcessId> {
    handle.as_str().parse().ok()
}

/// Id of the running boot; empty where the kernel does not tell, which only weakens the comparison.
pub(super) fn boot_id() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(processes::boot_id);
    &BOOT
}

/// Identity of a live process. `None` when there is none; a zombie counts as none.
pub(super) fn identify(pid: u32) -> Option<ProcessStamp> {
    let stat = stat(pid)?;
    stat.is_alive().then(|| ProcessStamp::of(ProcessId { pid, start_ticks: stat.start_ticks }))
}

/// Whether exactly this process runs.
pub(super) fn is_alive(identity: &ProcessStamp) -> bool {
    identity.id().is_some_and(ProcessId::is_alive)
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

/// A live process, as far as it tells whose it is.
#[derive(Debug)]
struct SeenProcess {
    id: ProcessId,
    session: u32,
    /// Its `RUG_` variables; none of a process of another user.
    variables: BTreeMap<String, String>,
}

/// Every live process there is, seen after this call.
fn live_processes() -> Arc<Vec<SeenProcess>> {
    static LOOK: SharedLook<Vec<SeenProcess>> = SharedLook::new();
    LOOK.get(|| pids().filter_map(see).collect())
}

fn see(pid: u32) -> Option<SeenProcess> {
    let stat = stat(pid).filter(Stat::is_alive)?;
    let id = ProcessId { pid, start_ticks: stat.start_ticks };
    let variables = if is_own(pid) { variables(pid) } else { BTreeMap::new() };
    // Looked at again after the environment: both then belong to the same process.
    (variables.is_empty() || id.is_alive()).then_some(SeenProcess { id, session: stat.session, variables })
}

/// The first process of each instance of this state directory that can be found by its environment. Leaders of a
/// session, or on the way to become one; what an instance starts in sessions of their own is younger.
pub(super) fn marked(state_dir: &Path) -> Vec<Marked> {
    let mut found: BTreeMap<String, Marked> = BTreeMap::new();
    for process in live_processes().iter() {
        let Some(name) = owner(&process.variables, state_dir) else { continue };
        if process.session != process.id.pid && !is_launching(process.id.pid) {
            continue;
        }
        let identity = ProcessStamp::of(process.id);
        let age = |id: &ProcessStamp| (id.start_ticks, id.pid);
        if found.get(name).is_none_or(|known| age(&identity) < age(&known.identity)) {
            found.insert(name.to_owned(), Marked { identity, variables: process.variables.clone() });
        }
    }
    found.into_values().collect()
}

/// The same, and the first process below each shim of this state directory whose instance shows no environment.
pub(super) fn marked_or_shimmed(state_dir: &Path) -> Vec<Marked> {
    let mut found = marked(state_dir);
    for process in live_processes().iter() {
        let variables = &process.variables;
        let ours = variables.get(STATE_VARIABLE).is_some_and(|dir| Path::new(dir) == state_dir);
        let Some(name) = variables.get(SHIM_VARIABLE).filter(|_| ours) else { continue };
        if found.iter().any(|known| known.variables.get(INSTANCE_VARIABLE) == Some(name)) {
            continue;
        }
        if let Some(main) = descendants(process.id.pid).first() {
            let variables = [(INSTANCE_VARIABLE.to_owned(), name.clone())].into();
            found.push(Marked { identity: ProcessStamp::of(*main), variables });
        }
    }
    found
}

/// Every live process of an instance as far as they can be found without its shim: the leader, what runs in its session, and what
/// carries the instance's name in a session of its own. Once the leader is gone its session number may have been used again, and
/// only the name counts. Leader and session count whoever their user is; an environment only of our own user.
fn family(leader: &ProcessStamp, name: &str, state_dir: &Path) -> Vec<ProcessId> {
    let Some(leader) = leader.id() else { return Vec::new() };
    let leads = leader.is_alive();
    let follows = |process: &&SeenProcess| {
        let named = || owner(&process.variables, state_dir) == Some(name);
        let younger = process.id.start_ticks >= leader.start_ticks;
        process.id == leader || younger && ((leads && process.session == leader.pid) || named())
    };
    live_processes().iter().filter(follows).map(|process| process.id).collect()
}

/// What runs of an instance.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Its shim.
    pub(super) shim: Option<ProcessId>,
    /// Every process of the instance itself.
    pub(super) processes: Vec<ProcessId>,
}

impl Tree {
    /// Everything that runs of the instance `name`: what descends from its shim, and what can be found without one.
    pub(super) fn of(shim: Option<ProcessId>, leader: Option<&ProcessStamp>, name: &str, state_dir: &Path) -> Self {
        let shim = shim.filter(|shim| shim.is_alive());
        let processes = shim.map(|shim| descendants(shim.pid)).unwrap_or_default();
        let others = leader.map(|leader| family(leader, name, state_dir)).unwrap_or_default();
        let mut tree = Self { shim, processes };
        tree.add(others);
        tree
    }

    /// Adds what was found otherwise.
    pub(super) fn add(&mut self, others: Vec<ProcessId>) {
        self.processes.extend(others.into_iter().filter(|id| Some(*id) != self.shim));
        self.processes.sort_unstable();
        self.processes.dedup();
    }

    /// Whether nothing runs.
    pub(super) fn is_empty(&self) -> bool {
        self.shim.is_none() && self.processes.is_empty()
    }
}

/// The shim of an instance, found by its environment.
pub(super) fn find_shim(name: &str, state_dir: &Path) -> Option<ProcessId> {
    let is_it = |process: &&SeenProcess| {
        let variables = &process.variables;
        let ours = variables.get(STATE_VARIABLE).is_some_and(|dir| Path::new(dir) == state_dir);
        ours && variables.get(SHIM_VARIABLE).is_some_and(|instance| instance == name)
    };
    live_processes().iter().find(is_it).map(|process| process.id).filter(|id| id.is_alive())
}

/// Who a process is, for people: `process 812 (nginx, user 33)`.
pub(super) fn describe(id: ProcessId) -> String {
    let comm = fs::read_to_string(format!("/proc/{}/comm", id.pid)).unwrap_or_default();
    let user = fs::metadata(format!("/proc/{}", id.pid)).map(|meta| runtime::folder::user_name(meta.uid()));
    match user {
        Ok(user) => format!("process {} ({}, {user})", id.pid, comm.trim()),
        Err(_) => format!("process {}", id.pid),
    }
}

/// The instance of this state directory that a process with these variables belongs to.
fn owner<'a>(variables: &'a BTreeMap<String, String>, state_dir: &Path) -> Option<&'a str> {
    let ours = variables.get(STATE_VARIABLE).is_some_and(|dir| Path::new(dir) == state_dir);
    variables.get(INSTANCE_VARIABLE).filter(|_| ours).map(String::as_str)
}

/// Waits for the end of processes. Answers those that still run at `deadline`.
pub(super) async fn ended(mut left: Vec<ProcessId>, deadline: Instant) -> Vec<ProcessId> {
    // Looked at again and again: only somebody who ends something waits here, for a moment.
    let mut pause = Duration::from_millis(1);
    loop {
        left.retain(|id| id.is_alive());
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(POLL);
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

/// Whether a process is one of our own user: those of others could carry any environment.
fn is_own(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    is_of_user(&status, geteuid().as_raw())
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
    fn a_process_that_another_user_started_is_none_of_ours() {
        let status = |uids: &str| format!("Name:\tsu\nUid:\t{uids}\nGid:\t0\t0\t0\t0\n");
        assert!(is_of_user(&status("0\t0\t0\t0"), 0));
        for other in ["1000\t0\t0\t0", "0\t0\t1000\t0", "0\t1000\t0\t0", "1\t1\t1\t1", "0\t0\t0", "x\t0\t0\t0", ""] {
            assert!(!is_of_user(&status(other), 0), "{other}");
        }
        assert!(!is_of_user("", 0));
        assert!(is_own(std::process::id()));
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
