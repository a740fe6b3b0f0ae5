//! Processes of a cluster on this machine whose state folder was deleted or moved under them.
//!
//! A folder that is gone cannot say what runs, and neither can a lock in it: the next `rugctl up` makes a new one at the same
//! path. But a process keeps the path of what it has open, and the kernel tells it (`/proc/PID/fd`), with ` (deleted)` behind
//! it once that has no name any more. So nothing has to be prepared, a cluster that an earlier version has started is found as well, and a
//! process that has ended is never found. Of other users' processes nothing is believed.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Exit, Failure};

/// What the kernel puts behind the path of what has no name any more.
const DELETED: &str = " (deleted)";

/// `rugctl up` and the processes that it starts, as the kernel names them.
const SUPERVISOR: &str = "rugctl";
const COORDINATOR: &str = "rug-coordinator";
const CHILDREN: [&str; 2] = [COORDINATOR, "rug-worker"];

/// A cluster that runs without its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LostCluster {
    /// Where its folder was.
    folder: PathBuf,
    /// The `rugctl up` that runs it, unless that was killed or never was.
    up: Option<u32>,
    /// Its other processes, by name and pid.
    others: Vec<(String, u32)>,
}

/// One process of this user.
#[derive(Debug)]
struct Process {
    pid: u32,
    name: String,
}

impl Process {
    fn all() -> Vec<Self> {
        let own = rustix::process::geteuid().as_raw();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let process = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            if pid == std::process::id() || entry.metadata().ok()?.uid() != own {
                return None;
            }
            let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned();
            let known = name == SUPERVISOR || CHILDREN.contains(&name.as_str());
            known.then_some(Self { pid, name })
        };
        entries.filter_map(process).collect()
    }

    /// What it has open, as the kernel tells it.
    fn open(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    }

    /// Its parent, if that is a `rugctl`.
    fn supervisor(&self, all: &[Self]) -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        all.iter().find(|other| other.pid == parent && other.name == SUPERVISOR).map(|other| other.pid)
    }

    /// Whether it is the coordinator that was told to keep its state in this folder.
    fn coordinates(&self, folder: &Path) -> bool {
        let words = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let words: Vec<_> = words.split(|byte| *byte == 0).collect();
        let state = folder.join("coordinator");
        self.name == COORDINATOR
            && words.windows(2).any(|pair| pair[0] == b"--state-dir" && pair[1] == state.as_os_str().as_bytes())
    }
}

/// Whether a path that the kernel tells is this folder, or something in it, and has no name any more.
fn is_lost(open: &Path, folder: &Path) -> bool {
    let path = open.as_os_str().as_bytes().strip_suffix(DELETED.as_bytes());
    path.is_some_and(|path| Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(folder))
}

/// The cluster of the first of these folders, absolute and without symbolic links, that runs without it.
pub(crate) fn lost_cluster(folders: &[PathBuf]) -> Option<LostCluster> {
    let all = Process::all();
    if all.is_empty() {
        return None;
    }
    let open: Vec<_> = all.iter().map(Process::open).collect();
    folders.iter().find_map(|folder| {
        let lock = folder.join("lock");
        let mut found = LostCluster { folder: folder.clone(), up: None, others: Vec::new() };
        for (process, open) in all.iter().zip(&open) {
            if process.name == SUPERVISOR {
                // Its lock is the one file that only a running `up` has open.
                if open.iter().any(|open| is_lost(open, &lock)) {
                    found.up = Some(process.pid);
                }
            } else if open.iter().any(|open| is_lost(open, folder)) {
                found.others.push((process.name.clone(), process.pid));
            } else if process.coordinates(folder) && !open.iter().any(|open| open.starts_with(folder)) {
                // The folder was moved, so that nothing of it is at this path.
                found.up = found.up.or_else(|| process.supervisor(&all));
                found.others.push((process.name.clone(), process.pid));
            }
        }
        found.others.sort();
        // A worker alone may be somebody's who has deleted its folder on purpose.
        let counts = found.up.is_some() || found.others.iter().any(|(name, _)| name == COORDINATOR);
        counts.then_some(found)
    })
}

/// The `.rug` of a folder, as the kernel tells the paths of what is in it: nothing of it needs to be there.
pub(crate) fn real_path(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    if let Ok(real) = folder.canonicalize() {
        return Some(real);
    }
    Some(folder.parent()?.canonicalize().ok()?.join(folder.file_name()?))
}

impl LostCluster {
    /// What is wrong, and what to do about it.
    pub(crate) fn failure(&self, exit: Exit) -> Failure {
        let folder = self.folder.display();
        let mut text = match (self.up, self.others.as_slice()) {
            (Some(pid), _) => format!("a `rugctl up` (pid {pid})"),
            (None, others) => {
                let named = others.iter().map(|(name, pid)| format!("{name} (pid {pid})"));
                named.collect::<Vec<_>>().join(", ")
            }
        };
        let pids = match self.up {
            Some(pid) => pid.to_string(),
            None => self.others.iter().map(|(_, pid)| pid.to_string()).collect::<Vec<_>>().join(" "),
        };
        let verb = if self.up.is_none() && self.others.len() > 1 { "run" } else { "runs" };
        let _ = write!(
            text,
            " {verb} for {folder}, which was deleted or moved, or parts of it: what it stores may be lost with its end. Stop it \
             with `kill {pids}`; only then start a cluster here. Appliances keep running"
        );
        Failure::new(exit, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_lost_when_the_kernel_says_so_of_it_or_of_what_is_in_it() {
        let folder = Path::new("/a/.rug");
        for lost in ["/a/.rug (deleted)", "/a/.rug/lock (deleted)", "/a/.rug/coordinator/rug.db (deleted)"] {
            assert!(is_lost(Path::new(lost), folder), "{lost}");
        }
        for other in ["/a/.rug", "/a/.rug/lock", "/a/.rug2/lock (deleted)", "/b/a/.rug (deleted)", "socket:[12]"] {
            assert!(!is_lost(Path::new(other), folder), "{other}");
        }
    }

    #[test]
    fn the_path_of_a_folder_that_is_gone_is_the_one_it_had() {
        let top = tempfile::tempdir().expect("a folder");
        let real = top.path().canonicalize().expect("it is there");
        std::os::unix::fs::symlink(top.path(), top.path().join("link")).expect("a link");
        assert_eq!(real_path(&top.path().join("link/.rug")), Some(real.join(".rug")));
        assert_eq!(real_path(&top.path().join("none/.rug")), None);
    }

    #[test]
    fn what_to_stop_is_named() {
        let up = LostCluster { folder: "/a/.rug".into(), up: Some(7), others: vec![("rug-worker".into(), 8)] };
        let text = up.failure(Exit::Failed).to_string();
        assert!(text.starts_with("a `rugctl up` (pid 7) runs for /a/.rug") && text.contains("`kill 7`"), "{text}");
        let others = vec![("rug-coordinator".into(), 9), ("rug-worker".into(), 8)];
        let text = LostCluster { up: None, others, ..up }.failure(Exit::Failed).to_string();
        assert!(text.contains("rug-coordinator (pid 9), rug-worker (pid 8) run for"), "{text}");
        assert!(text.contains("`kill 9 8`"), "{text}");
    }
}
