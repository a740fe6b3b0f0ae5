//! An outage of the database: it cannot be reached, does not answer, or did not answer a commit.
//!
//! A task tries to reconnect, at a bounded rate with jitter, without end, while the writer refuses everything at once.
//! The outage is over when the task has a connection *and* the lock on the chain, so that no earlier connection can
//! still change what it then reads. Only the group whose commit was not answered waits meanwhile: any answer would be a
//! guess.

use std::sync::Arc;
use std::time::Duration;

use common::backoff::Backoff;
use runtime::retry::Retries;
use sea_orm::DatabaseConnection;
use tokio::task::JoinHandle;

use super::super::StoreShared;
use super::super::dialect::{self, DatabaseTarget};
use super::super::error::{Error, OutageCause};
use super::super::transaction::{self, ChainPosition};
use super::Submission;

/// Pause after failed attempts. The longest is about the longest time until a recovery is noticed.
const PAUSE: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };

/// An outage in progress. Dropping it ends the search.
pub(super) struct StoreOutage {
    cause: OutageCause,
    /// Number of the batch whose commit was not answered.
    unknown: Option<u64>,
    /// The group that wrote it.
    waiting: Vec<Submission>,
    log_bytes: u64,
    search: JoinHandle<(DatabaseConnection, ChainPosition)>,
}

impl Drop for StoreOutage {
    fn drop(&mut self) {
        self.search.abort();
    }
}

impl StoreOutage {
    /// Starts the search for the database.
    pub(super) fn begin(
        target: &DatabaseTarget,
        shared: &Arc<StoreShared>,
        cause: OutageCause,
        unknown: Option<u64>,
    ) -> Self {
        let search = tokio::spawn(search(target.clone(), Arc::clone(shared)));
        Self { cause, unknown, waiting: Vec::new(), log_bytes: 0, search }
    }

    /// Its cause when it began.
    pub(super) fn cause(&self) -> &OutageCause {
        &self.cause
    }

    pub(super) fn unknown(&self) -> Option<u64> {
        self.unknown
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// Whether changes wait for its end.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Keeps the changes of the unknown batch waiting.
    pub(super) fn wait(&mut self, group: Vec<Submission>, log_bytes: u64) {
        self.waiting = group;
        self.log_bytes = log_bytes;
    }

    /// The unknown batch was stored. Returns the bytes it added to the grant log.
    pub(super) fn acknowledge(mut self) -> u64 {
        self.waiting.drain(..).for_each(|s| drop(s.done.send(Ok(()))));
        self.log_bytes
    }

    /// The unknown batch was not stored, or its outcome cannot be determined here.
    pub(super) fn give_up(mut self, error: &Error) {
        self.waiting.drain(..).for_each(|s| drop(s.done.send(Err(error.clone()))));
    }
}

/// Waits for the end of an outage; for ever, if there is none. The result is returned once.
pub(super) async fn back(outage: &mut Option<StoreOutage>) -> (DatabaseConnection, ChainPosition) {
    match outage {
        Some(outage) => match (&mut outage.search).await {
            Ok(found) => found,
            // The search does not panic, nor is it aborted before the outage is dropped: the runtime is shutting down.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn search(target: DatabaseTarget, shared: Arc<StoreShared>) -> (DatabaseConnection, ChainPosition) {
    let mut retries = Retries::new(PAUSE);
    let mut told = None;
    loop {
        match look(&target).await {
            Ok(found) => return found,
            Err(error) => {
                if let Error::Unavailable(cause) = &error {
                    shared.update_outage(cause);
                } else if told.as_ref() != Some(&error) {
                    tracing::error!(store = %target.name(), %error, "reconnected to the store, which cannot be used");
                    told = Some(error);
                }
            }
        }
        tokio::time::sleep(retries.next_delay()).await;
    }
}

async fn look(target: &DatabaseTarget) -> Result<(DatabaseConnection, ChainPosition), Error> {
    let db = target.connect_writer().await.map_err(|e| dialect::failure("connect to the store", &e))?;
    match transaction::settled_place(target, &db).await {
        Ok(found) => Ok((db, found)),
        Err(error) => {
            target.close(db).await;
            Err(error)
        }
    }
}
