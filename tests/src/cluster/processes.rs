//! What runs, as the kernel shows it: processes are found by their environment, because instances are detached on
//! purpose and are nobody's children.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Variable every daemon of a test carries: the directory of its sandbox.
pub const ROOT_VARIABLE: &str = "RUG_TEST_ROOT";
/// Variables every instance carries.
const STATE_VARIABLE: &str = "RUG_STATE_DIR";
const INSTANCE_VARIABLE: &str = "RUG_INSTANCE";

/// How long killed processes may take to vanish.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A process for certain: a pid is used again, a pid with a start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
}

/// Sends a signal; a process that has ended is fine.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Live instances of a sandbox by name. Processes that an instance started itself are not listed.
#[must_use]
pub fn instances(root: &Path) -> BTreeMap<String, ProcessIdentity> {
    let of = |found: FoundProcess| Some((found.variables.get(INSTANCE_VARIABLE)?.clone(), found.identity));
    all(root).filter(|p| p.session == p.identity.pid).filter_map(of).collect()
}

/// Who a process is; `None` when it has ended.
#[must_use]
pub fn identify(pid: u32) -> Option<ProcessIdentity> {
    stat(pid).map(|(identity, _)| identity)
}

/// Whether exactly this process runs.
#[must_use]
pub fn is_alive(identity: ProcessIdentity) -> bool {
    stat(identity.pid).is_some_and(|(found, _)| found == identity)
}

/// Kills every process of a sandbox and waits until none is left.
///
/// # Errors
/// Names what does not end.
pub fn end_all(root: &Path) -> Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left: Vec<u32> = all(root).map(|p| p.identity.pid).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("processes {left:?} of {} do not end", root.display());
        }
        left.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct FoundProcess {
    identity: ProcessIdentity,
    session: u32,
    variables: BTreeMap<String, String>,
}

fn all(root: &Path) -> impl Iterator<Item = FoundProcess> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    pids.filter_map(move |pid| {
        let (identity, session) = stat(pid)?;
        let variables = variables(pid);
        let below = |name: &str| variables.get(name).is_some_and(|dir| Path::new(dir).starts_with(root));
        (below(ROOT_VARIABLE) || below(STATE_VARIABLE)).then_some(FoundProcess { identity, session, variables })
    })
}

/// Identity and session of a live process; zombies have ended.
fn stat(pid: u32) -> Option<(ProcessIdentity, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields after it cannot.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some((ProcessIdentity { pid, start_ticks: fields.get(19)?.parse().ok()? }, fields.get(3)?.parse().ok()?))
}

fn variables(pid: u32) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let entries = bytes.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='));
    entries.filter(|(name, _)| name.starts_with("RUG_")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}
