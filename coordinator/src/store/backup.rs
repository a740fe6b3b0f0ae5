//! A copy of a store that is a file, made while a coordinator may use it: `rug-coordinator store backup`.
//!
//! `VACUUM INTO` reads one consistent state, with what is only in the log yet, and writes it as one file. The copy appears
//! under its name when it is complete and on the disk, and never takes the place of another file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use runtime::folder::{self, Folder};
use sea_orm::ConnectionTrait;

use super::Config;
use super::dialect::{self, DatabaseTarget};
use super::error::{Error, OutageCause};

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] Error),
    /// It is not a file.
    #[error("{0} is a database server: copy it with its own program, pg_dump or mariadb-dump --single-transaction")]
    Server(String),
    /// Other users could replace the copy, or what it is copied to first.
    #[error("the copy would not be safe: {0}")]
    Exposed(#[from] folder::Error),
    /// The copy cannot be written.
    #[error("write {}: {source}", path.display())]
    Output {
        /// The copy, or what it is written as first.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Copies the store to a file that must not exist; returns its size in bytes.
///
/// # Errors
/// [`BackupError`]; nothing is left then.
pub(super) async fn backup(config: &Config, to: &Path) -> Result<u64, BackupError> {
    let target = DatabaseTarget::parse(config)?;
    let Some(path) = target.path() else { return Err(BackupError::Server(target.name().to_owned())) };
    if !path.exists() {
        return Err(Error::Open { path: target.name().to_owned(), cause: OutageCause::CannotOpen }.into());
    }
    let failed = |path: &Path, source| BackupError::Output { path: path.to_owned(), source };
    // Whoever can replace files in the folder would get the whole database.
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(failed(folder, io::Error::new(io::ErrorKind::NotFound, "is no folder")));
    }
    Folder::trusted(folder)?;
    if to.symlink_metadata().is_ok() {
        return Err(failed(to, io::Error::new(io::ErrorKind::AlreadyExists, "it exists, and is not replaced")));
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let copied = copy(&target, &partial).await;
    let placed = match copied {
        // A link, unlike a renaming, replaces nothing.
        Ok(()) => place(&partial, to).map_err(|source| failed(to, source)),
        Err(error) => Err(error),
    };
    let _ = fs::remove_file(&partial);
    placed
}

async fn copy(target: &DatabaseTarget, partial: &Path) -> Result<(), BackupError> {
    let Some(connected) = target.connect_copier().await else {
        return Err(BackupError::Server(target.name().to_owned()));
    };
    let refused = |e: sea_orm::DbErr| match dialect::cause(&e) {
        Some(cause) => Error::Open { path: target.name().to_owned(), cause },
        None => Error::Database { doing: "copy the store", reason: e.to_string() },
    };
    let db = connected.map_err(refused)?;
    let text = partial.to_str().ok_or_else(|| BackupError::Output {
        path: partial.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8"),
    })?;
    // Made first, so that it is for this user alone whatever the umask; an empty file is written to.
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial);
    made.map_err(|source| BackupError::Output { path: partial.to_owned(), source })?;
    let copied = db.execute_unprepared(&format!("VACUUM INTO '{}'", text.replace('\'', "''"))).await;
    target.close(db).await;
    copied.map_err(refused)?;
    Ok(())
}

fn place(partial: &Path, to: &Path) -> io::Result<u64> {
    let file = File::open(partial)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    fs::hard_link(partial, to)?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(bytes)
}
