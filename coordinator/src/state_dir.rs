//! The directory a coordinator keeps its state in, held by one process at a time.
//!
//! With embedded coordination this lock is what makes the leader the only one (docs/protocol.md, Leases and lives), so it
//! is taken before anything else and kept until the process ends; the kernel releases it with the process.

use std::path::{Path, PathBuf};

use runtime::folder::{self, FileLock, Folder, LockError};

/// What is in the directory of an earlier version, and in no other.
const OWN: [&str; 3] = ["lock", "rug.db", "term"];

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be made or written, or is not this user's alone.
    #[error("state directory {}: {source}", path.display())]
    Unusable {
        /// The directory, as it was configured.
        path: PathBuf,
        /// Why.
        source: folder::Error,
    },
    /// Another coordinator has it.
    #[error("state directory {} is {lock}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        lock: LockError,
    },
}

/// A state directory, for this user alone.
#[derive(Debug)]
pub struct StateDir {
    _folder: Folder,
    /// Held with embedded coordination, until this is dropped.
    _lock: Option<FileLock>,
}

impl StateDir {
    /// Makes the directory if need be.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { _folder: private(path)?, _lock: None })
    }

    /// The same with its lock.
    ///
    /// # Errors
    /// [`Error::InUse`] names the process that has it; everything else is [`Error::Unusable`].
    pub fn take(path: &Path) -> Result<Self, Error> {
        let folder = private(path)?;
        match folder.lock("lock") {
            Ok(lock) => Ok(Self { _folder: folder, _lock: Some(lock) }),
            Err(LockError::Unusable(source)) => Err(Error::Unusable { path: path.to_owned(), source }),
            Err(lock) => Err(Error::InUse { path: path.to_owned(), lock }),
        }
    }
}

fn private(path: &Path) -> Result<Folder, Error> {
    Folder::private(path, &OWN).map_err(|source| Error::Unusable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let top = tempfile::tempdir().expect("a folder");
        let dir = top.path().join("state");
        let held = StateDir::take(&dir).expect("free");
        let error = StateDir::take(&dir).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        assert!(StateDir::take(&dir).is_ok());
    }
}
