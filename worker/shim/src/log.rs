//! The log of one instance: bounded in size while it is written, and together with all other logs of the host.
//!
//! The current file is standard error of the shim, so that what the shim itself has to say goes there as well. Names are
//! relative to the working directory, which is the folder of the instance. What cannot be written is dropped and counted, and never holds
//! up the instance.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use shim::LOG_FILE;
use shim::order::LogBounds;
use shim::state::MAX_OUTPUT;

/// What a log may grow by before the sum of all is looked at again, at least and at most. The sum is exceeded by at most
/// the least for each instance.
const LEAST_GRANT: u64 = 64 * 1024;
const MOST_GRANT: u64 = 1024 * 1024;
/// How long output is dropped before the sum of all logs is looked at again.
const PAUSE: Duration = Duration::from_secs(5);

/// The log of one instance.
pub(crate) struct Log {
    file: File,
    bounds: LogBounds,
    size: u64,
    /// What may be written before the sum of all logs is looked at.
    granted: u64,
    /// Output is dropped until then.
    full_until: Option<Instant>,
    /// Bytes that were dropped and not told of yet.
    untold: u64,
    /// Bytes that were dropped, ever.
    dropped: u64,
    /// The newest output of this run.
    newest: Vec<u8>,
}

impl Log {
    /// Goes on in the log that is standard error.
    pub(crate) fn take(bounds: LogBounds) -> io::Result<Self> {
        let file = File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?);
        let size = file.metadata()?.len();
        let newest = Vec::with_capacity(2 * MAX_OUTPUT);
        Ok(Self { file, bounds, size, granted: LEAST_GRANT, full_until: None, untold: 0, dropped: 0, newest })
    }

    /// Bytes of output that were dropped.
    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The newest output of this run.
    pub(crate) fn newest(&self) -> &[u8] {
        &self.newest
    }

    /// Takes in output.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(MAX_OUTPUT);
        let over = (self.newest.len() + bytes.len() - from).saturating_sub(2 * MAX_OUTPUT);
        self.newest.drain(..over.min(self.newest.len()));
        self.newest.extend_from_slice(&bytes[from..]);
        let length = bytes.len() as u64;
        if self.may_grow(length) && self.put(bytes).is_ok() {
            self.granted = self.granted.saturating_sub(length);
        } else {
            self.untold = self.untold.saturating_add(length);
            self.dropped = self.dropped.saturating_add(length);
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size.saturating_add(bytes.len() as u64) > self.bounds.size && self.size > 0 {
            self.rotate()?;
        }
        if self.untold > 0 {
            let note = format!("\nrug-shim: {} bytes of output were dropped here\n", self.untold);
            self.file.write_all(note.as_bytes())?;
            self.size += note.len() as u64;
            self.untold = 0;
        }
        // What is written in part counts as written: the rest cannot be told apart.
        self.size = self.size.saturating_add(bytes.len() as u64);
        self.file.write_all(bytes)
    }

    /// Puts the log aside and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let name = |n: u32| if n == 0 { PathBuf::from(LOG_FILE) } else { PathBuf::from(format!("{LOG_FILE}.{n}")) };
        let kept = self.bounds.kept;
        remove(&name(kept))?;
        for n in (0..kept).rev() {
            match fs::rename(name(n), name(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Made anew and by nobody else: whatever lies there is not followed.
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(LOG_FILE)?;
        rustix::stdio::dup2_stderr(&file)?;
        self.file = file;
        self.size = 0;
        Ok(())
    }

    /// Whether so much more may be kept, all logs of the host together.
    fn may_grow(&mut self, length: u64) -> bool {
        if self.granted >= length {
            return true;
        }
        if self.full_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        let least = LEAST_GRANT.max(length);
        let room = make_room(&self.bounds.folder, self.bounds.quota, least);
        self.full_until = (room < least).then(|| Instant::now() + PAUSE);
        // The closer to the bound, the smaller the steps.
        self.granted = if room < least { 0 } else { (room / 16).clamp(least, MOST_GRANT.max(least)) };
        self.granted >= length
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes that are left of `quota`, after logs that were put aside were removed, oldest first, for as long as there is less room than
/// `wanted`. Shims that do this at the same time remove the same files.
fn make_room(folder: &Path, quota: u64, wanted: u64) -> u64 {
    let (mut sum, mut aside) = (0_u64, Vec::new());
    for file in entries(folder).flat_map(|appliance| entries(&appliance)).flat_map(|ordinal| entries(&ordinal)) {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(rest) = name.strip_prefix(LOG_FILE) else { continue };
        let Ok(meta) = fs::symlink_metadata(&file) else { continue };
        sum = sum.saturating_add(meta.len());
        if rest.strip_prefix('.').is_some_and(|n| n.parse::<u32>().is_ok()) {
            aside.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), file));
        }
    }
    aside.sort();
    for (_, length, file) in aside {
        if quota.saturating_sub(sum) >= wanted {
            break;
        }
        if remove(&file).is_ok() {
            sum = sum.saturating_sub(length);
        }
    }
    quota.saturating_sub(sum)
}

/// What is in a folder; nothing when it is none.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_logs_that_were_put_aside_make_room() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for (n, name) in ["a/0/log.2", "b/0/log.1", "a/0/log.1", "a/0/log", "b/0/log", "a/0/work"].iter().enumerate() {
            fs::create_dir_all(at(name).parent().expect("it has one")).expect("writable");
            let file = File::create(at(name)).expect("writable");
            file.set_len(100).expect("writable");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(n as u64)).expect("ours");
        }
        let there = || ["a/0/log.2", "b/0/log.1", "a/0/log.1", "a/0/log"].map(|name| at(name).exists());
        assert_eq!(make_room(folder.path(), 1000, 100), 500, "there is room");
        assert_eq!(there(), [true; 4]);
        assert_eq!(make_room(folder.path(), 500, 100), 100);
        assert_eq!(there(), [false, true, true, true], "the oldest one goes");
        assert_eq!(make_room(folder.path(), 300, 200), 100, "logs that are written stay");
        assert_eq!(there(), [false, false, false, true]);
        assert_eq!(make_room(folder.path(), 100, 1), 0);
        assert_eq!(make_room(&at("none"), 100, 1), 100);
    }
}
