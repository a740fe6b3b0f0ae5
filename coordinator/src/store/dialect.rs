//! Everything that depends on the kind of database: how to connect, how a write transaction excludes other leaders, and
//! what its errors mean.
//!
//! # Why the chain is the same on all three
//!
//! Every write transaction begins by updating the one row of `leadership`, and holds the lock on it to its end; no table
//! is written without it. So write transactions run one after the other, on SQLite because `BEGIN IMMEDIATE` takes the
//! only write lock, on PostgreSQL and MariaDB because the second waits for the row.
//!
//! - *A batch takes its place or fails.* `UPDATE ... WHERE term = t AND batch = n - 1` is evaluated on the newest committed
//!   row: under `READ COMMITTED`, which every session here sets, PostgreSQL evaluates the condition anew once the row it
//!   waited for is free, and InnoDB's updates always read the newest version. (Under `REPEATABLE READ` PostgreSQL would
//!   fail with a serialization error instead, and InnoDB would read the rest of the tables as they were at the first
//!   plain read.)
//! - *A new leader sees everything that was acknowledged.* Its first statement locks the row. What committed before has
//!   released the lock and is visible to the statements that follow, each of which reads the newest committed rows;
//!   what has not committed by then waits, and then finds a later term. Nothing can commit between two of the leader's
//!   reads, so that together they are one consistent state.
//! - *An unknown outcome can be determined.* `COMMIT` is sent only after the row was locked. After a lost response the
//!   row is locked from another connection: once that succeeds, the first transaction has been committed or rolled
//!   back.
//! - *A stale lock is released by the server.* A leader that is paused or cut off inside a transaction is disconnected
//!   after the statement timeout (`idle_in_transaction_session_timeout`, `idle_transaction_timeout`); others wait for
//!   the row no longer than half of that at a time, and retry.

mod cause;
mod servers;
pub(super) mod sqlite;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use runtime::folder::FileLock;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

pub(super) use self::cause::{cause, failure, is_bad_value};
use super::Config;
use super::entities::leadership;
use super::error::{Error, OutageCause};
use super::timed::{Limits, Timed};
use super::url::{self, Address};

/// Connections for lists. Such reads are short and rare; more connections would compete with the writer for the disk.
const READERS: u32 = 2;
/// Longest a connection may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Free bytes below which a disk counts as full when a write to it failed.
const ROOM: u64 = 128 * 1024;

/// A write transaction.
pub(super) type Transaction = Timed<DatabaseTransaction>;

/// Address of the database and the deadline of its statements.
#[derive(Clone)]
pub(super) struct DatabaseTarget {
    address: Address,
    name: String,
    statement_timeout: Duration,
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<Faults>,
}

impl fmt::Debug for DatabaseTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseTarget({})", self.name)
    }
}

/// Faults that tests inject into new connections.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Pages the file may grow to; 0 is no limit.
    pub(super) max_pages: std::sync::atomic::AtomicU32,
    /// Writes fail.
    pub(super) read_only: std::sync::atomic::AtomicBool,
    /// Commits succeed without a response.
    pub(super) lose_answers: std::sync::atomic::AtomicBool,
    /// No connection can be opened.
    pub(super) unreachable: std::sync::atomic::AtomicBool,
    /// The file lock is not taken, as if the file were open on a second machine.
    pub(super) unlocked: std::sync::atomic::AtomicBool,
    /// One statement of each shape that was executed.
    pub(super) executed: std::sync::Mutex<std::collections::BTreeMap<String, sea_orm::Statement>>,
}

impl DatabaseTarget {
    /// Parses the URL of a configuration.
    pub(super) fn parse(config: &Config) -> Result<Self, Error> {
        let address = url::parse(&config.url)?;
        let name = match &address {
            Address::Sqlite(path) => path.display().to_string(),
            Address::Postgres(_) | Address::MySql(_) => url::shown_url(&config.url),
        };
        Ok(Self {
            address,
            name,
            statement_timeout: config.statement_timeout,
            #[cfg(test)]
            faults: std::sync::Arc::default(),
        })
    }

    /// The name for messages, without credentials.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The database file, if it is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.address {
            Address::Sqlite(path) => Some(path),
            Address::Postgres(_) | Address::MySql(_) => None,
        }
    }

    /// Its name in the semantic conventions.
    pub(super) const fn system(&self) -> &'static str {
        match self.address {
            Address::Sqlite(_) => "sqlite",
            Address::Postgres(_) => "postgresql",
            Address::MySql(_) => "mariadb",
        }
    }

    /// Whether it is a database server, which may be unavailable while this process runs.
    pub(super) fn is_server(&self) -> bool {
        self.path().is_none()
    }

    /// Limits for a piece of work that takes up to `all`, with the configured one for each statement.
    pub(super) fn limits(&self, all: Duration) -> Limits {
        Limits::new(self.statement_timeout, all)
    }

    /// The configured deadline of a statement.
    pub(super) fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// What is behind a failure to read or write a file: SQLite does not tell a full disk from a broken one everywhere.
    pub(super) fn judge(&self, cause: OutageCause) -> OutageCause {
        match (&cause, self.path()) {
            (OutageCause::Io(_), Some(path)) if is_full(path) => OutageCause::Full,
            _ => cause,
        }
    }

    /// Keeps other processes from opening the same file for writing, until the result is dropped. Not needed for a
    /// database server.
    pub(super) fn lock(&self) -> Result<Option<FileLock>, Error> {
        #[cfg(test)]
        if self.faults.unlocked.load(std::sync::atomic::Ordering::SeqCst) {
            return Ok(None);
        }
        self.path().map(sqlite::take_lock).transpose()
    }

    /// The one connection that writes; creates the file if missing.
    pub(super) async fn connect_writer(&self) -> Result<DatabaseConnection, DbErr> {
        self.within_reach()?;
        self.limits(self.statement_timeout)
            .within(async {
                match &self.address {
                    Address::Sqlite(path) => sqlite::connect(self, path, 1, true).await,
                    Address::Postgres(options) => servers::postgres_writer(self, options).await,
                    Address::MySql(options) => servers::mysql_writer(self, options).await,
                }
            })
            .await
    }

    /// Connections that only read. Those to a server are opened on demand.
    pub(super) async fn connect_readers(&self) -> Result<DatabaseConnection, DbErr> {
        self.within_reach()?;
        match &self.address {
            Address::Sqlite(path) => {
                self.limits(self.statement_timeout).within(sqlite::connect(self, path, READERS, false)).await
            }
            Address::Postgres(options) => Ok(servers::postgres_readers(self, options)),
            Address::MySql(options) => Ok(servers::mysql_readers(self, options)),
        }
    }

    /// One connection that makes a copy of the file; `None` of a server.
    pub(super) async fn connect_copier(&self) -> Option<Result<DatabaseConnection, DbErr>> {
        let connect = async |path| {
            let db = sqlite::connect(self, path, 1, false).await?;
            // What is written is the copy.
            db.execute_unprepared("PRAGMA query_only = 0").await?;
            Ok(db)
        };
        Some(connect(self.path()?).await)
    }

    fn within_reach(&self) -> Result<(), DbErr> {
        #[cfg(test)]
        if self.faults.unreachable.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(super::timed::out_of_time());
        }
        Ok(())
    }

    /// Begins a write transaction; on SQLite it holds the write lock from its start.
    pub(super) async fn begin(&self, db: &DatabaseConnection, limits: Limits) -> Result<Transaction, DbErr> {
        let begin = db.begin_with_options(TransactionOptions {
            sqlite_transaction_mode: (!self.is_server()).then_some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        });
        Ok(Timed {
            inner: limits.within(begin).await?,
            limits,
            #[cfg(test)]
            faults: self.faults.clone(),
        })
    }

    /// Closes a connection. A file is closed on return, so that its locks are free; a server may be unreachable and is
    /// not waited for.
    pub(super) async fn close(&self, db: DatabaseConnection) {
        let name = self.name.clone();
        let close = async move {
            if tokio::time::timeout(CLOSE_TIMEOUT, db.close()).await.is_err() {
                tracing::debug!(store = %name, "a connection of the store did not close in time");
            }
        };
        if self.is_server() { drop(tokio::spawn(close)) } else { close.await }
    }
}

/// Whether the file system of a file has no room for a further page.
fn is_full(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(folder).is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) < ROOM)
}

/// Commits. An error says nothing about the outcome.
pub(super) async fn commit(tx: Transaction) -> Result<(), DbErr> {
    tx.limits.within(tx.inner.commit()).await
}

/// Rolls back. After an error the connection must not be used any more.
pub(super) async fn rollback(tx: Transaction) -> Result<(), DbErr> {
    tx.limits.within(tx.inner.rollback()).await
}

/// Locks the row that every write transaction begins with, by an update without a change. (SQLite has locked everything
/// by now; there this shows whether the file can be written at all, since `BEGIN IMMEDIATE` succeeds on a read-only
/// one.)
pub(super) async fn lock_chain(tx: &Transaction) -> Result<(), DbErr> {
    leadership::Entity::update_many()
        .col_expr(leadership::Column::Batch, Expr::col(leadership::Column::Batch))
        .filter(leadership::Column::Id.eq(leadership::ROW))
        .exec(tx)
        .await?;
    Ok(())
}

/// Lets this transaction be idle for `time`: a new leader reads and parses a whole store inside one.
pub(super) async fn allow_idle(tx: &Transaction, time: Duration) -> Result<(), DbErr> {
    match tx.get_database_backend() {
        DbBackend::Postgres => tx.execute_unprepared(&servers::postgres_idle(time)).await.map(drop),
        DbBackend::MySql => tx.execute_unprepared(&servers::mysql_idle(time)).await.map(drop),
        _ => Ok(()),
    }
}

/// Reverts [`allow_idle`] where the end of the transaction does not.
pub(super) async fn end_idle(target: &DatabaseTarget, db: &DatabaseConnection) {
    if db.get_database_backend() == DbBackend::MySql {
        let limit = servers::mysql_idle(target.statement_timeout);
        if let Err(e) = target.limits(target.statement_timeout).within(db.execute_unprepared(&limit)).await {
            // If the connection is broken, the next batch fails.
            tracing::debug!(store = %target.name, "resetting the limit for idle transactions failed: {e}");
        }
    }
}

/// Waits until no other process migrates the database, at most as long as for any lock.
pub(super) async fn lock_migrations(tx: &Transaction, target: &DatabaseTarget) -> Result<(), DbErr> {
    match &target.address {
        // `BEGIN IMMEDIATE` has taken the lock.
        Address::Sqlite(_) => Ok(()),
        Address::Postgres(_) => servers::postgres_lock_migrations(tx).await,
        Address::MySql(_) => servers::mysql_lock_migrations(tx, target.statement_timeout / 2).await,
    }
}

/// Releases the lock of [`lock_migrations`] where the end of the transaction does not.
pub(super) async fn unlock_migrations(tx: &Transaction, target: &DatabaseTarget) -> Result<(), DbErr> {
    match &target.address {
        Address::Sqlite(_) | Address::Postgres(_) => Ok(()),
        Address::MySql(_) => servers::mysql_unlock_migrations(tx).await,
    }
}
