//! Fencing by token file: the far side of the process driver, so to speak.
//!
//! ```text
//! <state_dir>/fences/<appliance>           newest token seen, in place, under a short lock
//!                    <appliance>.lock      held over each side effect; says who holds it
//!                    <appliance>.journal   who did what with which token
//! ```
//!
//! A call first raises the token (older ones are refused from then on, also in calls that are under way), then takes the
//! lock within a bounded time, then checks token and permit again right before each effect. The kernel lets go of a lock
//! when its holder dies; a holder that hangs is reported as [`Error::FenceBusy`]. Files lie outside the instance's
//! folder and outlive the appliance as tombstones, so that a late call of a former owner still meets its successor's
//! token.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{ApplianceId, Term, Token, WorkerId};
use runtime::folder::{Access, Folder};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::system::{self, POLL, ProcessStamp};
use crate::drivers::Error;
use crate::gate::Permit;

/// How long a tombstone stays at least, beside two terms.
const TOMBSTONE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Size a journal is cut at; the newer half stays. Some 1,000 entries, days of a busy appliance.
const JOURNAL_LIMIT: u64 = 256 * 1024;
/// Bytes of a token file. Fixed, so that a newer token overwrites the older one in one write.
const TOKEN_BYTES: usize = 128;
/// How long the short lock around a token file is waited for; its holders only read and write 128 bytes.
const TOKEN_WAIT: Duration = Duration::from_secs(1);

/// Content of a token file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    token: Token,
    /// When the appliance was forgotten, in milliseconds since the Unix epoch.
    forgotten_at_unix_ms: Option<u64>,
}

/// Content of a lock file: who holds it, or held it last.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LockHolder {
    worker: String,
    process: ProcessStamp,
    token: Token,
    since_unix_ms: u64,
}

/// One line of a journal. Intervals of two entries of one appliance never overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceJournalEntry {
    /// When it was written, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// When it was written on CLOCK_BOOTTIME, in nanoseconds: comparable over all processes of one host and boot.
    pub at_boot_ns: u64,
    /// Worker that acted.
    pub worker: String,
    /// Process that acted.
    pub actor_pid: u32,
    /// Term of the token it acted with.
    pub term: u64,
    /// Sequence of the token it acted with.
    pub sequence: u64,
    /// What was done: `spawn`, `adopt`, `terminate`, `kill`, `sweep`, `forget`.
    pub action: String,
    /// Ordinal it was done to.
    pub ordinal: u16,
    /// Attempt it was done to.
    pub attempt: u32,
    /// Process it was done to, once known.
    pub pid: Option<u32>,
    /// `begun`, `done`, or what went wrong.
    pub outcome: String,
}

/// All fences of one state directory.
#[derive(Debug)]
pub(super) struct Fences {
    /// Of this user alone: whoever can open a file can lock it.
    folder: Folder,
    worker: WorkerId,
    me: ProcessStamp,
    lock_wait: Duration,
}

impl Fences {
    pub(super) fn open(folder: Folder, worker: WorkerId, lock_wait: Duration) -> io::Result<Self> {
        let me = system::identify(std::process::id()).ok_or_else(|| io::Error::other("/proc does not show us"))?;
        Ok(Self { folder, worker, me, lock_wait })
    }

    /// Raises the token of the permit's appliance.
    ///
    /// # Errors
    /// [`Error::Superseded`] when a newer one is in force.
    pub(super) async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        permit.check()?;
        let path = self.token_path(permit.appliance());
        let file = lock(&self.folder, &path, FlockOperation::NonBlockingLockExclusive, Instant::now() + TOKEN_WAIT)
            .await
            .map_err(|e| failed("open", &path, &e))?
            .ok_or_else(|| Error::FenceBusy("its token file stays locked".into()))?;
        let mark = read_mark(&file).map_err(|e| failed("read", &path, &e))?;
        if mark.token > permit.token() {
            return Err(Error::Superseded(mark.token));
        }
        let new = Mark { token: permit.token(), forgotten_at_unix_ms: None };
        if new != mark {
            // Not flushed to disk: what it fences off are processes of this boot, and a power cut ends them all.
            write_mark(&file, &new).map_err(|e| failed("write", &path, &e))?;
        }
        Ok(())
    }

    /// Raises the token and takes the lock that spans side effects, within the configured wait.
    ///
    /// # Errors
    /// [`Error::Superseded`], or [`Error::FenceBusy`] when another call keeps the lock.
    pub(super) async fn acquire(self: &Arc<Self>, permit: &Permit) -> Result<HeldLock, Error> {
        self.claim(permit).await?;
        let path = self.lock_path(permit.appliance());
        let taken =
            lock(&self.folder, &path, FlockOperation::NonBlockingLockExclusive, Instant::now() + self.lock_wait)
                .await
                .map_err(|e| failed("lock", &path, &e))?;
        let Some(mut file) = taken else { return Err(Error::FenceBusy(describe_holder(&self.folder, &path))) };
        let holder = LockHolder {
            worker: self.worker.to_string(),
            process: self.me.clone(),
            token: permit.token(),
            since_unix_ms: unix_ms(),
        };
        // Only read by people and in error messages: a lock file without it fences as well.
        let _ = serde_json::to_vec(&holder).map(|bytes| file.set_len(0).and_then(|()| file.write_all(&bytes)));
        let held = HeldLock { fences: Arc::clone(self), permit: permit.clone(), _lock: file };
        held.check()?;
        Ok(held)
    }

    /// Removes tombstones that are older than seven days and two terms. Returns how many.
    ///
    /// # Errors
    /// When the folder cannot be read; a fence in use is skipped.
    pub(super) fn cleanup(&self, current: Term, now: SystemTime) -> io::Result<usize> {
        let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, millis);
        let mut removed = 0;
        for entry in fs::read_dir(self.folder.path())? {
            let name = entry?.file_name();
            let Some(appliance) = name.to_str().and_then(|name| name.parse::<ApplianceId>().ok()) else { continue };
            let take =
                |path: &Path| try_lock(&self.folder, path, FlockOperation::NonBlockingLockExclusive).ok().flatten();
            let (token, lock) = (self.token_path(appliance), self.lock_path(appliance));
            let Some(_lock_file) = take(&lock) else { continue };
            let Some(token_file) = take(&token) else { continue };
            let Ok(mark) = read_mark(&token_file) else { continue };
            let old = mark.forgotten_at_unix_ms.is_some_and(|at| now_ms.saturating_sub(at) >= millis(TOMBSTONE))
                && current.get() >= mark.token.term.get().saturating_add(2);
            if old {
                let _ = self.folder.remove(journal_name(appliance));
                self.folder.remove(&token)?;
                self.folder.remove(&lock)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn token_path(&self, appliance: ApplianceId) -> PathBuf {
        PathBuf::from(appliance.to_string())
    }

    fn lock_path(&self, appliance: ApplianceId) -> PathBuf {
        PathBuf::from(format!("{appliance}.lock"))
    }

    pub(super) fn journal_path(&self, appliance: ApplianceId) -> PathBuf {
        self.folder.path().join(journal_name(appliance))
    }
}

/// Names of files are relative to the folder.
fn journal_name(appliance: ApplianceId) -> String {
    format!("{appliance}.journal")
}

/// The lock of one appliance, held. Dropping it lets go.
#[derive(Debug)]
pub(super) struct HeldLock {
    fences: Arc<Fences>,
    permit: Permit,
    _lock: File,
}

impl HeldLock {
    /// Asks right before a side effect whether it may still happen: by the gate and by the token file.
    ///
    /// # Errors
    /// [`Error::Shut`] or [`Error::Superseded`].
    pub(super) fn check(&self) -> Result<(), Error> {
        let path = self.fences.token_path(self.permit.appliance());
        let deadline = std::time::Instant::now() + TOKEN_WAIT;
        let file = loop {
            match try_lock(&self.fences.folder, &path, FlockOperation::NonBlockingLockShared)
                .map_err(|e| failed("read", &path, &e))?
            {
                Some(file) => break file,
                None if std::time::Instant::now() >= deadline => {
                    return Err(Error::FenceBusy("its token file stays locked".into()));
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let mark = read_mark(&file).map_err(|e| failed("read", &path, &e))?;
        if mark.token > self.permit.token() {
            return Err(Error::Superseded(mark.token));
        }
        Ok(self.permit.check()?)
    }

    /// Notes a side effect. Best effort: a full disk must not keep an instance from being ended.
    pub(super) fn note(&self, action: &str, ordinal: u16, attempt: u32, pid: Option<u32>, outcome: &str) {
        let token = self.permit.token();
        let entry = FenceJournalEntry {
            at_unix_ms: unix_ms(),
            at_boot_ns: runtime::clock::now().as_nanos(),
            worker: self.fences.worker.to_string(),
            actor_pid: self.fences.me.pid,
            term: token.term.get(),
            sequence: token.sequence,
            action: action.to_owned(),
            ordinal,
            attempt,
            pid,
            outcome: outcome.chars().take(400).collect(),
        };
        if let Err(error) = append(&self.fences.folder, &journal_name(self.permit.appliance()), &entry) {
            tracing::warn!(appliance = %self.permit.appliance(), %error, "a journal entry was lost");
        }
    }

    /// Leaves a tombstone: the token stays, and the time from which it may be removed.
    pub(super) fn entomb(&self) -> Result<(), Error> {
        let path = self.fences.token_path(self.permit.appliance());
        let write = || -> io::Result<()> {
            let Some(file) = try_lock(&self.fences.folder, &path, FlockOperation::NonBlockingLockExclusive)? else {
                // Somebody raises the token right now: the appliance is not forgotten for them.
                return Ok(());
            };
            let mark = read_mark(&file)?;
            write_mark(&file, &Mark { forgotten_at_unix_ms: Some(unix_ms()), ..mark })
        };
        write().map_err(|e| failed("write", &path, &e))
    }
}

/// Takes a lock on the file at `path`, which is made when missing. `None` when it is not free by `deadline`.
async fn lock(folder: &Folder, path: &Path, operation: FlockOperation, deadline: Instant) -> io::Result<Option<File>> {
    // Polled, because a blocking flock cannot be given a deadline. Contention is rare: two owners at once.
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(file) = try_lock(folder, path, operation)? {
            return Ok(Some(file));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(POLL * 5);
    }
}

fn try_lock(folder: &Folder, path: &Path, operation: FlockOperation) -> io::Result<Option<File>> {
    let file = folder.open(path, Access::Write)?;
    match flock(&file, operation) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // A clean-up may have removed the file between open and lock; such a lock protects nothing.
    let same = fs::symlink_metadata(folder.path().join(path))
        .is_ok_and(|now| file.metadata().is_ok_and(|mine| mine.ino() == now.ino()));
    Ok(same.then_some(file))
}

/// The token in the bytes of a token file. For the fuzz tests.
pub(crate) fn token_in(bytes: &[u8]) -> Result<Token, String> {
    mark_of(&bytes[..bytes.len().min(TOKEN_BYTES)]).map(|mark| mark.token).map_err(|error| error.to_string())
}

fn read_mark(file: &File) -> io::Result<Mark> {
    let mut bytes = [0; TOKEN_BYTES];
    let length = file.read_at(&mut bytes, 0)?;
    mark_of(&bytes[..length])
}

fn mark_of(bytes: &[u8]) -> io::Result<Mark> {
    let text = bytes.trim_ascii();
    // A file without content was just made, or a power cut ended everybody whom it fenced off.
    if text.iter().all(|byte| *byte == 0) {
        return Ok(Mark::default());
    }
    serde_json::from_slice(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn write_mark(file: &File, mark: &Mark) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(mark).map_err(io::Error::other)?;
    bytes.resize(TOKEN_BYTES - 1, b' ');
    bytes.push(b'\n');
    file.write_all_at(&bytes, 0)
}

fn append(folder: &Folder, name: &str, entry: &FenceJournalEntry) -> io::Result<()> {
    let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut file = folder.open(name, Access::Append)?;
    if file.metadata()?.len() + line.len() as u64 > JOURNAL_LIMIT {
        // Only the holder of the appliance's lock writes here, so nobody appends meanwhile.
        let mut kept = Vec::new();
        file.seek(SeekFrom::Start(JOURNAL_LIMIT / 2))?;
        file.read_to_end(&mut kept)?;
        let start = kept.iter().position(|byte| *byte == b'\n').map_or(kept.len(), |at| at + 1);
        file.set_len(0)?;
        file.write_all(&kept[start..])?;
    }
    file.write_all(&line)
}

fn describe_holder(folder: &Folder, path: &Path) -> String {
    match folder.read(path, 64 * 1024).ok().and_then(|bytes| serde_json::from_slice::<LockHolder>(&bytes).ok()) {
        Some(h) => {
            let age = Duration::from_millis(unix_ms().saturating_sub(h.since_unix_ms)).as_secs();
            format!("worker {} (pid {}) holds its lock under token {} for {age} s", h.worker, h.process.pid, h.token)
        }
        None => "its lock is held".into(),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::Failed(format!("cannot {what} {}: {error}", path.display()))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests;
