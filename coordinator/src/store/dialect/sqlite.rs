//! SQLite: write-ahead log and `synchronous=FULL`, so that a commit that was acknowledged survives a power cut; a write
//! transaction begins `IMMEDIATE`, so that it never fails half way because a reader became a writer. The writer has one
//! connection of its own; readers have a small pool that may not write.
//!
//! One process writes a file: [`FileLock`] enforces it, because two coordinators with different state directories would
//! depose each other for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};

use super::super::error::{Error, OutageCause};
use super::DatabaseTarget;

/// How long SQLite waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// Page cache of the writer in KiB: random UUID keys touch pages all over the tables, and with SQLite's default of 2 MiB
/// inserts into 100,000 rows run at a third of the speed.
const CACHE_KIB: u32 = 64 * 1024;
/// Pages of the log that are gathered before they are copied to the main file (32 MiB). SQLite's default of 1,000 copies,
/// and syncs the main file, eight times as often.
const CHECKPOINT_PAGES: u32 = 8_000;

pub(super) async fn connect(
    target: &DatabaseTarget,
    path: &Path,
    connections: u32,
    writes: bool,
) -> Result<DatabaseConnection, DbErr> {
    // Passed as a path: within a URL `?`, `#` and `%` have other meanings.
    let mut options = ConnectOptions::new("sqlite:rug");
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(target.statement_timeout())
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    let path = path.to_owned();
    #[cfg(test)]
    let faults = target.faults.clone();
    options.map_sqlx_sqlite_opts(move |options| {
        let options = options
            .filename(&path)
            .create_if_missing(writes)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(false)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
            .thread_name(move |n| format!("store-{n}"));
        let options = if writes {
            options.pragma("cache_size", format!("-{CACHE_KIB}"))
        } else {
            options.pragma("query_only", "1")
        };
        #[cfg(test)]
        let options = faults.inject(options, writes);
        options
    });
    Database::connect(options).await
}

#[cfg(test)]
impl super::Faults {
    fn inject(
        &self,
        options: sea_orm::sqlx::sqlite::SqliteConnectOptions,
        writes: bool,
    ) -> sea_orm::sqlx::sqlite::SqliteConnectOptions {
        use std::sync::atomic::Ordering::SeqCst;
        let options = match self.max_pages.load(SeqCst) {
            0 => options,
            pages if writes => options.pragma("max_page_count", pages.to_string()),
            _ => options,
        };
        if self.read_only.load(SeqCst) { options.read_only(true).create_if_missing(false) } else { options }
    }
}

/// The right of one process to write a file, until it is dropped; the kernel ends it with the process. It is a lock on
/// a separate file, `<file>.lock`: SQLite's locks on the database would be lost when a second handle to it is closed.
#[derive(Debug)]
pub(in crate::store) struct FileLock {
    _file: File,
}

impl FileLock {
    pub(super) fn take(database: &Path) -> Result<Self, Error> {
        let open = |e: &io::Error| Error::Open { path: database.display().to_string(), cause: cause(e) };
        let path = lock_path(database);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|e| open(&e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut by = String::new();
                let _ = file.read_to_string(&mut by);
                let by = match by.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(Error::InUse { path: database.display().to_string(), by });
            }
            Err(e) => return Err(open(&e.into())),
        }
        let note = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note(&mut file).map_err(|e| open(&e))?;
        Ok(Self { _file: file })
    }
}

/// The same for every name of the file, also through symbolic links.
fn lock_path(database: &Path) -> PathBuf {
    let resolved = database.canonicalize().unwrap_or_else(|_| match (database.parent(), database.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map_or(database.to_owned(), |parent| parent.join(name)),
        _ => database.to_owned(),
    });
    let mut path = resolved.into_os_string();
    path.push(".lock");
    path.into()
}

fn cause(error: &io::Error) -> OutageCause {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => OutageCause::ReadOnly,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OutageCause::Full,
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => {
            OutageCause::CannotOpen
        }
        _ => OutageCause::Io(error.to_string()),
    }
}
