//! Connections that only read, for lists that are not kept in memory.
//!
//! A pool whose statements time out or whose connections break is replaced as a whole: its other connections may hang
//! for as long as the network lets them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::DatabaseConnection;

use super::StoreShared;
use super::dialect::DatabaseTarget;
use super::error::{Error, OutageCause};
use super::timed::Timed;
use crate::metrics;

/// The readers' pool. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Readers {
    target: DatabaseTarget,
    shared: Arc<StoreShared>,
    pool: Arc<Mutex<DatabaseConnection>>,
}

impl Readers {
    pub(super) fn new(target: DatabaseTarget, shared: Arc<StoreShared>, pool: DatabaseConnection) -> Self {
        Self { target, shared, pool: Arc::new(Mutex::new(pool)) }
    }

    /// The current pool, with a deadline for each statement.
    pub(super) fn now(&self) -> Timed<DatabaseConnection> {
        let limit = self.target.statement_timeout();
        self.timed(limit * 3)
    }

    /// The same for a reader of everything, which may pause between statements.
    pub(super) fn unhurried(&self) -> Timed<DatabaseConnection> {
        self.timed(Duration::from_secs(24 * 60 * 60))
    }

    fn timed(&self, all: Duration) -> Timed<DatabaseConnection> {
        Timed {
            inner: self.current(),
            limits: self.target.limits(all),
            #[cfg(test)]
            faults: self.target.faults.clone(),
        }
    }

    fn current(&self) -> DatabaseConnection {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads something.
    ///
    /// # Errors [`Error::Unavailable`] at once during a known outage; errors of `read`.
    pub(super) async fn read<T, F>(&self, read: impl Fn(Timed<DatabaseConnection>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        if let Some(cause) = self.shared.outage() {
            return Err(Error::Unavailable(cause));
        }
        let began = Instant::now();
        let result = self.read_again(read).await;
        metrics::read(result.is_ok(), began.elapsed());
        result
    }

    async fn read_again<T, F>(&self, read: impl Fn(Timed<DatabaseConnection>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let result = read(self.now()).await;
        match &result {
            // The server may have been unavailable since the connection was last used.
            Err(Error::Unavailable(OutageCause::Lost(_))) => {
                self.renew().await;
                read(self.now()).await
            }
            Err(Error::Unavailable(OutageCause::TimedOut)) => {
                self.renew().await;
                result
            }
            _ => result,
        }
    }

    async fn renew(&self) {
        // Connections to a file do not hang, and reopening its readers would not be lazy.
        if !self.target.is_server() {
            return;
        }
        if let Ok(fresh) = self.target.connect_readers().await {
            let old = std::mem::replace(&mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner), fresh);
            self.target.close(old).await;
        }
    }

    /// Ends the connections.
    pub(super) async fn close(&self) {
        self.target.close(self.current()).await;
    }
}
