//! The state folder of an embedded cluster: files that `rugctl up` owns.
//!
//! ```text
//! lock              held (flock) by the `up` that runs here; its pid inside
//! endpoint          address of the coordinator and id of the cluster, for the other commands
//! coordinator.sock  the coordinator's socket, which is that address
//! up.json           drivers of the last start, so that `up --down` can remove what they made, and the cluster's id
//! logs/<name>.log   what each process writes to stderr
//! run/<name>.pid    pid and start time of each process
//! coordinator/, workers/   theirs
//! ```
//!
//! Everything is for this user alone, whatever the umask. The lock belongs to the open file, not to its name: it ends with the process that holds it, however that process
//! ends.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use runtime::folder::{self, Access, FileLock, Folder, LockError};
use runtime::socket;
use serde::{Deserialize, Serialize};

use crate::client::Endpoint;
use crate::error::{Exit, Failure};

/// A log larger than this, in bytes, is rotated (one generation is kept) when its process is started.
const LOG_ROTATE: u64 = 16 << 20;
/// Lines of the log that are shown when a process failed.
const TAIL_LINES: usize = 12;
/// Bytes at the end of a log that are searched for those lines.
const TAIL_BYTES: u64 = 16 << 10;

/// What is in the folder of an earlier version, and in no other.
const OWN: [&str; 4] = ["lock", "up.json", "logs", "coordinator"];

/// A state folder; it exists once this value does.
#[derive(Clone, Debug)]
pub(crate) struct StateFolder {
    folder: Folder,
    logs: Folder,
    run: Folder,
    /// Device and inode of the folder when it was opened.
    opened: Option<(u64, u64)>,
}

/// What becomes of a state folder while its cluster runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// It is where it was.
    InPlace,
    /// It is somewhere else now.
    Moved(PathBuf),
    /// It has no name any more.
    Deleted,
}

/// What of a state folder no process can do without, and which file or folder that was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts(Vec<(&'static str, (u64, u64))>);

/// The parts; what is in another one comes after that.
const PARTS: [&str; 5] = ["lock", "coordinator.sock", "coordinator", STORE, "workers"];

/// The file of the store.
pub(crate) const STORE: &str = "coordinator/rug.db";

/// Device and inode of what is at a path.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Arguments of the last start, as far as a later `--down` needs them.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastStart {
    /// Drivers that the workers offered.
    pub(crate) drivers: Vec<String>,
    /// Id of the cluster; empty where it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) cluster: String,
}

impl StateFolder {
    /// Creates the folder unless it exists.
    ///
    /// # Errors It cannot be made, belongs to another user, or others can change it.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let create = || {
            let folder = Folder::private(root, &OWN)?;
            let (logs, run) = (folder.subfolder("logs")?, folder.subfolder("run")?);
            let opened = inode(folder.path());
            Ok(Self { folder, logs, run, opened })
        };
        create().map_err(|e: folder::Error| Failure::failed(format!("state directory {}: {e}", root.display())))
    }

    /// Absolute path of a file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The folder itself, absolute.
    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the folder is still at its path, and where it is otherwise.
    pub(crate) fn whereabouts(&self) -> Whereabouts {
        if inode(self.root()).is_some_and(|now| Some(now) == self.opened) {
            return Whereabouts::InPlace;
        }
        let handle = rustix::fd::AsRawFd::as_raw_fd(&self.folder.handle());
        match fs::read_link(format!("/proc/self/fd/{handle}")) {
            Ok(path) if inode(&path).is_some_and(|now| Some(now) == self.opened) => Whereabouts::Moved(path),
            _ => Whereabouts::Deleted,
        }
    }

    /// What is in the folder and has to stay there while the cluster runs.
    pub(crate) fn parts(&self) -> Parts {
        Parts(PARTS.iter().filter_map(|name| Some((*name, inode(&self.path(name))?))).collect())
    }

    /// Those of them that were deleted, moved or replaced.
    pub(crate) fn lost(&self, parts: &Parts) -> Vec<&'static str> {
        let kept = |name: &str, was| inode(&self.path(name)) == Some(was);
        parts.0.iter().filter(|(name, was)| !kept(name, *was)).map(|(name, _)| *name).collect()
    }

    /// What to tell when other users could read the folder until now.
    pub(crate) fn tightened(&self) -> Option<String> {
        let mode = self.folder.tightened()?;
        Some(format!("other users could read {} (mode {mode:04o}); it is closed to them now", self.root().display()))
    }

    /// Address of the coordinator's socket.
    pub(crate) fn socket_address(&self) -> String {
        format!("{}{}", socket::SCHEME, self.path("coordinator.sock").display())
    }

    /// Whether a coordinator has ever stored state here.
    pub(crate) fn has_cluster(root: &Path) -> bool {
        root.join("coordinator").is_dir()
    }

    /// Takes the lock; `Err` with the holder's pid, if known, when another process has it.
    pub(crate) fn try_lock(&self) -> Result<Result<FileLock, Option<u32>>, Failure> {
        match self.folder.lock("lock") {
            Ok(lock) => Ok(Ok(lock)),
            Err(LockError::InUse(holder)) => Ok(Err(holder)),
            Err(LockError::Unusable(error)) => Err(Failure::failed(error.to_string())),
        }
    }

    /// Takes the lock or fails with the holder's pid.
    pub(crate) fn lock(&self) -> Result<FileLock, Failure> {
        self.try_lock()?.map_err(|holder| {
            let who = holder.map_or_else(String::new, |pid| format!(" with pid {pid}"));
            Failure::new(
                Exit::Conflict,
                format!("state directory {} is in use by a `rugctl up`{who}", self.root().display()),
            )
        })
    }

    /// The folder of pid files.
    pub(crate) fn run(&self) -> &Folder {
        &self.run
    }

    /// The folder of logs.
    pub(crate) fn logs(&self) -> &Folder {
        &self.logs
    }

    /// Log of a process.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.path().join(format!("{name}.log"))
    }

    /// Rotates a log that has become large.
    pub(crate) fn rotate(&self, name: &str) {
        let log = self.log(name);
        if fs::metadata(&log).is_ok_and(|m| m.len() > LOG_ROTATE) {
            // A log that cannot be renamed keeps growing, which is no reason not to start.
            let _ = fs::rename(&log, log.with_extension("log.1"));
        }
    }

    /// The last lines of a log.
    pub(crate) fn tail(&self, name: &str) -> String {
        let read = || -> io::Result<String> {
            let mut file: File = self.logs.open(format!("{name}.log"), Access::Read)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..]
            .iter()
            .map(|line| format!("  | {}\n", crate::text::one_line(line)))
            .collect()
    }

    /// Path of the endpoint file, in which other commands find the server.
    pub(crate) fn endpoint(&self) -> PathBuf {
        self.path("endpoint")
    }

    /// Publishes where the server is; readers see the old or the new endpoint, never a part of one.
    pub(crate) fn publish(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        self.write("endpoint", endpoint.to_string().as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        self.folder.write_atomic(name, bytes).map_err(|e| Failure::failed(e.to_string()))
    }

    /// Removes the published address.
    pub(crate) fn withdraw(&self) {
        let _ = fs::remove_file(self.endpoint());
    }

    /// Stores the arguments of this start.
    pub(crate) fn remember(&self, start: &LastStart) -> Result<(), Failure> {
        let text = serde_json::to_string(start).map_err(|e| Failure::failed(e.to_string()))?;
        self.write("up.json", text.as_bytes())
    }

    /// Arguments of the last start; default values when unknown.
    pub(crate) fn last_start(&self) -> LastStart {
        let text = fs::read_to_string(self.path("up.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::open(&dir.path().join("state")).expect("writable");
        let held = folder.lock().expect("free");
        let failure = folder.lock().expect_err("held");
        assert_eq!(failure.exit, Exit::Conflict);
        assert!(failure.to_string().ends_with(&format!("with pid {}", std::process::id())), "{failure}");
        drop(held);
        folder.lock().expect("free again");
    }

    #[test]
    fn a_folder_that_was_deleted_or_made_anew_is_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state");
        let folder = StateFolder::open(&path).expect("writable");
        assert_eq!(folder.whereabouts(), Whereabouts::InPlace);
        let moved = dir.path().canonicalize().expect("it is there").join("moved");
        fs::rename(&path, &moved).expect("moved");
        assert_eq!(folder.whereabouts(), Whereabouts::Moved(moved.clone()));
        fs::create_dir(&path).expect("made anew");
        assert_eq!(folder.whereabouts(), Whereabouts::Moved(moved.clone()));
        fs::remove_dir_all(&moved).expect("ours");
        assert_eq!(folder.whereabouts(), Whereabouts::Deleted);
    }

    #[test]
    fn parts_of_a_folder_that_are_deleted_or_replaced_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::open(dir.path()).expect("writable");
        fs::create_dir(folder.path("coordinator")).expect("a folder");
        fs::create_dir(folder.path("workers")).expect("a folder");
        fs::write(folder.path(STORE), "").expect("a file");
        let parts = folder.parts();
        assert!(folder.lost(&parts).is_empty());
        fs::rename(folder.path("workers"), folder.path("aside")).expect("moved");
        fs::create_dir(folder.path("workers")).expect("made anew");
        fs::remove_file(folder.path(STORE)).expect("ours");
        assert_eq!(folder.lost(&parts), [STORE, "workers"]);
    }

    #[test]
    fn an_error_names_the_folder_that_cannot_be_created() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("file");
        let failure = StateFolder::open(&file.join("state")).expect_err("below a file");
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.to_string().contains("file/state"), "{failure}");
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::open(dir.path()).expect("writable");
        let text: String = (0..5000).map(|i| format!("line {i}\n")).collect();
        fs::write(folder.log("w"), text).expect("file");
        let tail = folder.tail("w");
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("  | line 4999\n"), "{tail}");
        assert_eq!(folder.tail("absent"), "");
    }

    #[test]
    fn the_last_start_is_stored() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::open(dir.path()).expect("writable");
        assert_eq!(folder.last_start(), LastStart::default());
        let start = LastStart { drivers: vec!["process".into(), "simulated".into()], cluster: String::new() };
        folder.remember(&start).expect("writable");
        assert_eq!(folder.last_start(), start);
        let endpoint = Endpoint { address: "unix:/x/s".into(), cluster: "prod".parse().ok() };
        folder.publish(&endpoint).expect("writable");
        assert_eq!(crate::client::read_endpoint(folder.root()).expect("ours"), Some(endpoint));
        folder.withdraw();
        assert_eq!(crate::client::read_endpoint(folder.root()).expect("ours"), None);
    }
}
