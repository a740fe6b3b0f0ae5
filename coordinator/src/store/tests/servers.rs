//! The database servers of this test run: one of each kind that all tests share, each with a database of its own, and
//! further ones for tests that end them.

use std::sync::atomic::{AtomicU32, Ordering};

use ::servers::mariadb::{self, MariaDb};
use ::servers::postgres::{self, Postgres};
use tokio::sync::OnceCell;

static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
static MARIADB: OnceCell<MariaDb> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Which database a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DatabaseKind {
    Sqlite,
    Postgres,
    MariaDb,
}

/// The URL of an empty database on the shared server. The server ends with the test run.
pub(super) async fn new_database(kind: DatabaseKind) -> String {
    let name = format!("rug_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let made = match kind {
        DatabaseKind::Sqlite => unreachable!("a file has no server"),
        DatabaseKind::Postgres => {
            let options = postgres::Options { fsync: false, ..postgres::Options::default() };
            let server = POSTGRES.get_or_try_init(|| Postgres::start(options)).await.expect("PostgreSQL starts");
            server.create_database(&name).await
        }
        DatabaseKind::MariaDb => {
            let options = mariadb::Options { fsync: false, ..mariadb::Options::default() };
            let server = MARIADB.get_or_try_init(|| MariaDb::start(options)).await.expect("MariaDB starts");
            server.create_database(&name).await
        }
    };
    made.expect("the name is new")
}

/// A server of one's own.
pub(super) enum DatabaseServer {
    Postgres(Postgres),
    MariaDb(MariaDb),
}

macro_rules! each {
    ($self:expr, $server:ident => $call:expr) => {
        match $self {
            Self::Postgres($server) => $call,
            Self::MariaDb($server) => $call,
        }
    };
}

impl DatabaseServer {
    pub(super) async fn start(kind: DatabaseKind) -> Self {
        Self::start_with(kind, None).await
    }

    /// One that speaks TLS as well.
    pub(super) async fn start_with(kind: DatabaseKind, tls: Option<::servers::ServerTlsFiles>) -> Self {
        match kind {
            DatabaseKind::Sqlite => unreachable!("a file has no server"),
            DatabaseKind::Postgres => {
                let options = postgres::Options { fsync: false, tls, ..postgres::Options::default() };
                Self::Postgres(Postgres::start(options).await.expect("PostgreSQL starts"))
            }
            DatabaseKind::MariaDb => {
                let options = mariadb::Options { fsync: false, tls, ..mariadb::Options::default() };
                Self::MariaDb(MariaDb::start(options).await.expect("MariaDB starts"))
            }
        }
    }

    pub(super) async fn create_database(&self, name: &str) -> String {
        each!(self, it => it.create_database(name).await).expect("the name is new")
    }

    pub(super) async fn stop(&mut self) {
        each!(self, it => it.stop().await).expect("it runs");
    }

    pub(super) fn kill(&mut self) {
        each!(self, it => it.kill()).expect("it runs");
    }

    pub(super) async fn start_again(&mut self) {
        each!(self, it => it.start_again().await).expect("it starts with the data it has");
    }

    pub(super) fn pause(&mut self) {
        each!(self, it => it.pause()).expect("it runs");
    }

    pub(super) fn resume(&mut self) {
        each!(self, it => it.resume()).expect("it was paused");
    }
}
