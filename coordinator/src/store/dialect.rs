//! The one place that knows which database is behind the store: how it is connected to, how a write transaction locks
//! out other leaders, and what its failures mean.
//!
//! SQLite: write-ahead log and `synchronous=FULL`, so that a commit that was acknowledged survives a power cut; a write
//! transaction begins `IMMEDIATE`, so that it never fails half way because a reader became a writer. The writer has one
//! connection of its own; readers have a small pool that may not write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::sea_query::Expr;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ColumnTrait, ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, QueryFilter,
    RuntimeErr, SqliteTransactionMode, SqlxError, SqlxSqliteError, TransactionOptions, TransactionTrait,
};

use super::entities::leadership;
use super::error::{Cause, Error};

/// How long SQLite waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// Page cache of the writer in KiB: random UUID keys touch pages all over the tables, and with SQLite's default of 2 MiB
/// inserts into 100,000 rows run at a third of the speed.
const CACHE_KIB: u32 = 64 * 1024;
/// Pages of the log that are gathered before they are copied to the main file (32 MiB). SQLite's default of 1,000 copies,
/// and syncs the main file, eight times as often.
const CHECKPOINT_PAGES: u32 = 8_000;
/// Connections for lists. They are short and rare; more would only compete with the writer for the disk.
const READERS: u32 = 2;

/// Where the database is. `Clone` is cheap.
#[derive(Clone, Debug)]
pub(super) struct Target {
    path: PathBuf,
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<Faults>,
}

/// Faults that tests put into new connections.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Pages the file may grow to; 0 is no limit.
    pub(super) max_pages: std::sync::atomic::AtomicU32,
    /// Writing is refused.
    pub(super) read_only: std::sync::atomic::AtomicBool,
    /// Commits are made, but not answered.
    pub(super) lose_answers: std::sync::atomic::AtomicBool,
    /// No connection can be made.
    pub(super) unreachable: std::sync::atomic::AtomicBool,
}

impl Target {
    /// Understands `sqlite:<path>`, also with `//` after the colon.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Err(Error::Url { url: url.to_owned(), reason: reason.to_owned() });
        let Some(rest) = url.strip_prefix("sqlite:") else {
            return refuse("only `sqlite:<path>` is known to this version");
        };
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if path.is_empty() || path == ":memory:" || path.contains('\0') {
            return refuse("a path must follow `sqlite:`");
        }
        Ok(Self {
            path: PathBuf::from(path),
            #[cfg(test)]
            faults: std::sync::Arc::default(),
        })
    }

    /// The name for messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The database file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The one connection that writes; makes the file when there is none.
    pub(super) async fn connect_writer(&self) -> Result<DatabaseConnection, DbErr> {
        self.connect(1, true).await
    }

    /// Connections that only read.
    pub(super) async fn connect_readers(&self) -> Result<DatabaseConnection, DbErr> {
        self.connect(READERS, false).await
    }

    async fn connect(&self, connections: u32, writes: bool) -> Result<DatabaseConnection, DbErr> {
        #[cfg(test)]
        if self.faults.unreachable.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(DbErr::Conn(RuntimeErr::SqlxError(std::sync::Arc::new(SqlxError::PoolTimedOut))));
        }
        // The path goes in as a path: within the URL `?`, `#` and `%` would be read as something else.
        let mut options = ConnectOptions::new("sqlite:rug");
        options
            .max_connections(connections)
            .min_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .sqlx_logging(false)
            .record_stmt_in_spans(false);
        let target = self.clone();
        options.map_sqlx_sqlite_opts(move |options| {
            let options = options
                .filename(&target.path)
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
            let options = target.faults.inject(options, writes);
            options
        });
        Database::connect(options).await
    }
}

#[cfg(test)]
impl Faults {
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

/// Begins a transaction that holds the write lock from its start.
pub(super) async fn begin_write(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    db.begin_with_options(TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    })
    .await
}

/// Locks the row that every write transaction begins with, by writing it as it is. (SQLite has locked everything by now;
/// there this shows whether the file can be written at all, since `BEGIN IMMEDIATE` passes on a read-only one.)
pub(super) async fn lock_chain(tx: &DatabaseTransaction) -> Result<(), DbErr> {
    leadership::Entity::update_many()
        .col_expr(leadership::Column::Batch, Expr::col(leadership::Column::Batch))
        .filter(leadership::Column::Id.eq(leadership::ROW))
        .exec(tx)
        .await?;
    Ok(())
}

/// What a failure means, if it is one of the surroundings rather than of the statement.
pub(super) fn cause(error: &DbErr) -> Option<Cause> {
    let runtime = match error {
        DbErr::Conn(e) | DbErr::Exec(e) | DbErr::Query(e) => e,
        DbErr::ConnectionAcquire(_) => return Some(Cause::TimedOut),
        _ => return None,
    };
    let RuntimeErr::SqlxError(error) = runtime else { return None };
    match &**error {
        SqlxError::Database(e) => {
            let code: i32 = e.try_downcast_ref::<SqlxSqliteError>().and(e.code())?.parse().ok()?;
            // The low byte is the primary result code, see sqlite.org/rescode.html.
            match code & 0xff {
                5 | 6 => Some(Cause::Locked),
                8 => Some(Cause::ReadOnly),
                10 => Some(Cause::Io(e.message().to_owned())),
                13 => Some(Cause::Full),
                14 => Some(Cause::CannotOpen),
                _ => None,
            }
        }
        SqlxError::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => Some(Cause::Full),
        SqlxError::Io(e) => Some(Cause::Io(e.to_string())),
        SqlxError::PoolTimedOut => Some(Cause::TimedOut),
        SqlxError::PoolClosed | SqlxError::WorkerCrashed | SqlxError::BeginFailed => {
            Some(Cause::Lost(error.to_string()))
        }
        _ => None,
    }
}

/// The error of a store that was at work when the database said `error`.
pub(super) fn failure(doing: &'static str, error: &DbErr) -> Error {
    match cause(error) {
        Some(cause) => Error::Unavailable(cause),
        None => Error::Database { doing, reason: error.to_string() },
    }
}
