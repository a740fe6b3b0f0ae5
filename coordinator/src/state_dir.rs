//! The directory a coordinator keeps its state in, held by one process at a time.
//!
//! With embedded coordination this lock is what makes the leader the only one (docs/protocol.md, Leases and lives), so it
//! is taken before anything else and kept until the process ends; the kernel releases it with the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be made or written.
    #[error("state directory {}: {source}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another coordinator has it.
    #[error("state directory {} is in use by {by}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        by: String,
    },
}

/// The lock on a state directory; dropping it gives the directory up.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

impl StateDir {
    /// Makes the directory if need be and takes its lock.
    ///
    /// # Errors
    /// [`Error::InUse`] names the process that has it; everything else is [`Error::Unusable`].
    pub fn take(path: &Path) -> Result<Self, Error> {
        let unusable = |source| Error::Unusable { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(unusable)?;
        let file = path.join("lock");
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file).map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut by = String::new();
                let _ = lock.read_to_string(&mut by);
                let by = match by.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(Error::InUse { path: path.to_owned(), by });
            }
            Err(e) => return Err(unusable(e.into())),
        }
        let note = |lock: &mut File| -> io::Result<()> {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())?;
            lock.sync_all()
        };
        note(&mut lock).map_err(unusable)?;
        Ok(Self { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let dir = std::env::temp_dir().join(format!("rug-state-dir-{}", std::process::id()));
        let held = StateDir::take(&dir).expect("free");
        let error = StateDir::take(&dir).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        assert!(StateDir::take(&dir).is_ok());
        fs::remove_dir_all(&dir).expect("made above");
    }
}
