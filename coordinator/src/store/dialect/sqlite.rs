//! SQLite: write-ahead log and `synchronous=FULL`, so that a commit that was acknowledged survives a power cut; a write
//! transaction begins `IMMEDIATE`, so that it never fails half way because a reader became a writer. The writer has one
//! connection of its own; readers have a small pool that may not write.
//!
//! One process writes a file: [`take_lock`] enforces it, because two coordinators with different state directories would
//! depose each other for ever.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use runtime::folder::{self, Access, FileLock, Folder, LockError};
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr};

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

/// Takes the right to write a file, until the result is dropped: a lock on a separate file, `<file>.lock`, because SQLite's
/// locks on the database would be lost when a second handle to it is closed. The kernel ends it with the process.
///
/// The database is made here if need be, and it and what lies beside it is for this user alone from now on: SQLite gives its log
/// and its shared memory the mode of the database, and whoever may open those can stop every change with a lock.
pub(super) fn take_lock(database: &Path) -> Result<FileLock, Error> {
    let shown = || database.display().to_string();
    let failed = |cause| Error::Open { path: shown(), cause };
    let parent = database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Only a state directory is made by this program; a store elsewhere belongs to a folder that is there.
    let (Some(name), true) = (database.file_name(), parent.is_dir()) else {
        return Err(failed(OutageCause::CannotOpen));
    };
    let folder = Folder::exclusive(parent).map_err(|e| failed(cause(&e)))?;
    let beside = |suffix: &str| {
        let mut beside = name.to_owned();
        beside.push(suffix);
        beside
    };
    let lock = folder.lock(beside(".lock")).map_err(|error| match error {
        LockError::InUse(_) => Error::InUse { path: shown(), by: error.holder() },
        LockError::Unusable(error) => failed(cause(&error)),
    })?;
    folder.open(name, Access::Write).map_err(|e| failed(cause(&e)))?;
    for suffix in ["-wal", "-shm", "-journal"] {
        match folder.open(beside(suffix), Access::Read) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(cause(&error))),
            _ => {}
        }
    }
    Ok(lock)
}

/// Which file a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// The file that is there now.
    pub(in crate::store) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some(Self { device: found.dev(), inode: found.ino() })
    }
}

/// Bytes of the write-ahead log of a database.
pub(in crate::store) fn log_bytes(database: &Path) -> u64 {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |found| found.len())
}

/// Copies the log into the main file and empties it, unless somebody reads at this moment.
pub(in crate::store) async fn empty_log(db: &DatabaseConnection) -> Result<(), DbErr> {
    let busy = BUSY_TIMEOUT.as_millis();
    let statement = format!("PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA busy_timeout = {busy}");
    db.execute_unprepared(&statement).await.map(drop)
}

fn cause(error: &folder::Error) -> OutageCause {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => OutageCause::ReadOnly,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OutageCause::Full,
        // The system forbids it. What this program refuses has a reason of its own.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory
            if matches!(error, folder::Error::Io { .. }) =>
        {
            OutageCause::CannotOpen
        }
        _ => OutageCause::Io(error.to_string()),
    }
}
