//! A deadline for every statement: a paused server or a network that drops packets never answers, and no driver notices
//! within useful time.
//!
//! A statement that timed out leaves its connection in an unknown state, so callers that get
//! [`OutageCause::TimedOut`](super::OutageCause::TimedOut) from here close the connection.

use std::future::Future;
use std::time::Duration;

use sea_orm::{ConnAcquireErr, ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use tokio::time::{Instant, timeout_at};

/// Limits on the duration of statements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For each statement.
    pub(super) each: Duration,
    /// For all together.
    pub(super) until: Instant,
}

impl Limits {
    /// Limits that start now.
    pub(super) fn new(each: Duration, all: Duration) -> Self {
        Self { each, until: Instant::now() + all }
    }

    /// Waits for one statement.
    pub(super) async fn within<T>(self, work: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        let deadline = self.until.min(Instant::now() + self.each);
        timeout_at(deadline, work).await.unwrap_or_else(|_| Err(out_of_time()))
    }
}

/// The error of a statement that timed out.
pub(super) fn out_of_time() -> DbErr {
    DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)
}

/// A connection or transaction whose statements have deadlines.
#[derive(Debug)]
pub(super) struct Timed<C> {
    pub(super) inner: C,
    pub(super) limits: Limits,
    /// Statements are noted here.
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<super::dialect::Faults>,
}

#[async_trait::async_trait]
impl<C: ConnectionTrait> ConnectionTrait for Timed<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        #[cfg(test)]
        self.faults.note(&statement);
        self.limits.within(self.inner.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.limits.within(self.inner.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        #[cfg(test)]
        self.faults.note(&statement);
        self.limits.within(self.inner.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        #[cfg(test)]
        self.faults.note(&statement);
        self.limits.within(self.inner.query_all_raw(statement)).await
    }
}
