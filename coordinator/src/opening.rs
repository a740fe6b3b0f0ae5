//! Opens the store: at once, or as soon as its database lets itself be used.
//!
//! A file that cannot be opened ends the process. A database server may be away when a coordinator starts, because both
//! are started anew together or because the network between them is down; then the coordinator stands by, passes calls on
//! to whoever leads, and tries again, so that nothing has to be started in a certain order. What no time mends (a schema of
//! a later version, a database that refuses the statements) ends the process as well.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::backoff::Backoff;
use runtime::retry::Retries;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::store::{self, Store};

/// Delays between tries: soon at first, since databases start within seconds.
const TRIES: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(10) };

/// How often a reason that stays the same is said again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The store of this process, which may not be open yet. Clones share it.
#[derive(Clone, Debug)]
pub struct Opening {
    config: store::Config,
    open: Arc<OnceLock<Store>>,
}

impl Opening {
    /// A store that is opened when [`Opening::wait`] is first awaited.
    #[must_use]
    pub fn later(config: store::Config) -> Self {
        Self { config, open: Arc::default() }
    }

    /// A store that is open.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn now(config: &store::Config) -> Result<Self, store::Error> {
        let store = Store::open(config).await?;
        Ok(Self { config: config.clone(), open: Arc::new(OnceLock::from(store)) })
    }

    /// The store, if it is open.
    #[must_use]
    pub fn get(&self) -> Option<Store> {
        self.open.get().cloned()
    }

    /// The store; tries until it is open. To be awaited by one task at a time; may be dropped at any point.
    ///
    /// # Errors
    /// What no further try would change.
    pub async fn wait(&self) -> Result<Store, store::Error> {
        let mut retries = Retries::new(TRIES);
        let mut said: Option<(store::Error, Instant)> = None;
        loop {
            if let Some(store) = self.get() {
                return Ok(store);
            }
            match Store::open(&self.config).await {
                Ok(store) => {
                    if said.is_some() {
                        info!(store = self.config.shown(), "the store is open");
                    }
                    let _ = self.open.set(store);
                }
                Err(error) if passes(&error) => {
                    let known = said.as_ref().is_some_and(|(same, at)| *same == error && at.elapsed() < SAY_AGAIN);
                    if !known {
                        warn!("{error}; standing by and trying again");
                        said = Some((error, Instant::now()));
                    }
                    tokio::time::sleep(retries.next_delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the same try may succeed later without anybody touching this coordinator.
const fn passes(error: &store::Error) -> bool {
    matches!(error, store::Error::Open { .. } | store::Error::Unavailable(_) | store::Error::Busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> store::Config {
        store::Config { url: url.to_owned(), ..store::Config::default() }
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_opened_yet_is_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("later");
        let opening = Opening::later(config(&format!("sqlite:{}", folder.join("rug.db").display())));
        let waiting = tokio::spawn({
            let opening = opening.clone();
            async move { opening.wait().await }
        });
        assert!(Opening::now(&opening.config).await.is_err(), "its folder is missing");
        assert!(opening.get().is_none());
        std::fs::create_dir(&folder).expect("make the folder");
        let store = waiting.await.expect("no panic").expect("it is open now");
        assert!(opening.get().is_some());
        store.close().await;
    }

    #[tokio::test]
    async fn what_time_does_not_mend_is_said_at_once() {
        let nonsense = Opening::later(config("nonsense:"));
        assert!(matches!(nonsense.wait().await, Err(store::Error::Url { .. })));
    }
}
