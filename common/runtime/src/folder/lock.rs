//! Exclusive locks that name who has them.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Access, Error, Folder};

/// A lock on a file, until it is dropped; the kernel ends it with the process.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("in use by {}", self.holder())]
    InUse(Option<u32>),
    /// The file cannot be used.
    #[error(transparent)]
    Unusable(#[from] Error),
}

impl LockError {
    /// Who has it, for people.
    #[must_use]
    pub fn holder(&self) -> String {
        match self {
            Self::InUse(Some(pid)) => format!("process {pid}"),
            Self::InUse(None) | Self::Unusable(_) => "another process".to_owned(),
        }
    }
}

impl FileLock {
    pub(super) fn take(folder: &Folder, name: &Path) -> Result<Self, LockError> {
        let failed = |e: io::Error| Error::io(&folder.path().join(name), e);
        let mut file = folder.open(name, Access::Write)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The holder may be writing it at this moment.
                let _ = (&mut file).take(32).read_to_string(&mut holder);
                return Err(LockError::InUse(holder.trim().parse().ok()));
            }
            Err(e) => return Err(failed(e.into()).into()),
        }
        let note = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
