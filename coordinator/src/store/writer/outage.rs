//! A time without the database: it cannot be reached, does not answer, or has not said what became of a commit.
//!
//! A task of its own looks for it, at a bounded rate with jitter and for as long as it takes, while the writer refuses
//! everything at once. It has found the database when it has a connection *and* the lock on the chain, so that nothing
//! of an earlier connection can still change what it then reads. Only the group whose commit was not answered waits
//! meanwhile: telling it anything would be a guess.

use std::sync::Arc;
use std::time::Duration;

use runtime::retry::Backoff;
use sea_orm::DatabaseConnection;
use tokio::task::JoinHandle;

use super::super::StoreShared;
use super::super::dialect::{self, DatabaseTarget};
use super::super::error::{Error, OutageCause};
use super::super::transaction::{self, ChainPosition};
use super::Submission;

/// Pause after the first failed look; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause, and so about the longest a database is back without being noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// An outage under way. Dropping it ends the search.
pub(super) struct StoreOutage {
    cause: OutageCause,
    /// Number of the batch whose commit was not answered.
    unknown: Option<u64>,
    /// Who wrote it.
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
    /// Begins to look for the database.
    pub(super) fn begin(
        target: &DatabaseTarget,
        shared: &Arc<StoreShared>,
        cause: OutageCause,
        unknown: Option<u64>,
    ) -> Self {
        let search = tokio::spawn(search(target.clone(), Arc::clone(shared)));
        Self { cause, unknown, waiting: Vec::new(), log_bytes: 0, search }
    }

    /// How it began.
    pub(super) fn cause(&self) -> &OutageCause {
        &self.cause
    }

    pub(super) fn unknown(&self) -> Option<u64> {
        self.unknown
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// Whether somebody waits for its end.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lets those wait who wrote the unknown batch.
    pub(super) fn wait(&mut self, group: Vec<Submission>, log_bytes: u64) {
        self.waiting = group;
        self.log_bytes = log_bytes;
    }

    /// The unknown batch was stored. Answers the bytes it added to the log of grants.
    pub(super) fn acknowledge(mut self) -> u64 {
        self.waiting.drain(..).for_each(|s| drop(s.done.send(Ok(()))));
        self.log_bytes
    }

    /// The unknown batch was not stored, or it will not be found out here.
    pub(super) fn give_up(mut self, error: &Error) {
        self.waiting.drain(..).for_each(|s| drop(s.done.send(Err(error.clone()))));
    }
}

/// Waits for the end of an outage; for ever, if there is none. What it answers it answers once.
pub(super) async fn back(outage: &mut Option<StoreOutage>) -> (DatabaseConnection, ChainPosition) {
    match outage {
        Some(outage) => match (&mut outage.search).await {
            Ok(found) => found,
            // The search neither panics nor is it aborted before the outage is dropped; the runtime is going down.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn search(target: DatabaseTarget, shared: Arc<StoreShared>) -> (DatabaseConnection, ChainPosition) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut told = None;
    loop {
        match look(&target).await {
            Ok(found) => return found,
            Err(error) => {
                if let Error::Unavailable(cause) = &error {
                    shared.update_outage(cause);
                } else if told.as_ref() != Some(&error) {
                    tracing::error!(store = %target.name(), %error, "the store is there again and cannot be used");
                    told = Some(error);
                }
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
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
