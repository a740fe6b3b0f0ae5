//! The election: kazoo's lock recipe, as python-tooz contends in it.
//!
//! A contender is an ephemeral, sequential node `<uuid>__lock__<sequence>`; who has the lowest sequence number leads, and
//! each of the others waits for the one before it. Python contenders of tooz do not queue, they try and go away, so that
//! one that queues always comes before them.
//!
//! The recipe of the client crate is not used: it gives up on errors other than a lost connection, and may then leave a
//! contender behind that nobody knows of, which would keep everybody else from leading for as long as the session lasts.
//! Here a contender's node is found again by its UUID, and whatever drops a [`Contender`] sees to its removal.

use std::time::Duration;

use uuid::Uuid;
use zookeeper_client::{CreateMode, Error as ZkError};

use super::connection::{ZkFailed, ZkSession};
use super::layout::{self, LOCK_MARK};
use common::backoff::Backoff;
use runtime::retry::Retries;

/// Delays between tries whose outcome is not known.
const RETRY: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(1) };

/// Our place in the queue. Dropping it removes the node in the background, for as long as the session lasts.
#[derive(Debug)]
pub(super) struct Contender {
    session: ZkSession,
    dir: String,
    prefix: String,
    /// The node; `None` while it is not known whether it was made.
    name: Option<String>,
    /// The node is gone, or goes with its session.
    gone: bool,
    /// It is being removed in the background; nothing is begun again when that is cut short.
    removing: bool,
}

/// Where a contender stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueuePlace {
    /// It leads.
    First,
    /// Somebody deleted its node.
    Gone,
}

impl Contender {
    /// Queues up in `dir`, under the name `id`.
    pub(super) async fn enter(session: ZkSession, dir: String, id: &str) -> Result<Self, ZkFailed> {
        let prefix = format!("{}{LOCK_MARK}", Uuid::new_v4().simple());
        let mut this = Self { session, dir, prefix, name: None, gone: false, removing: false };
        let mut retries = Retries::new(RETRY);
        while this.name.is_none() {
            match this.make(id).await {
                Ok(name) => this.name = Some(name),
                Err(ZkFailed::Said(ZkError::NoNode)) => this.session.ensure(&this.dir).await?,
                // Not before it is known that there is none: two of ours would wait for each other.
                Err(ZkFailed::Unknown(_)) => this.name = this.find_for_sure(&mut retries).await?,
                Err(failure) => return Err(failure),
            }
        }
        Ok(this)
    }

    async fn find_for_sure(&self, retries: &mut Retries) -> Result<Option<String>, ZkFailed> {
        loop {
            tokio::time::sleep(retries.next_delay()).await;
            match self.find().await {
                Err(ZkFailed::Unknown(_)) => {}
                known => return known,
            }
        }
    }

    async fn make(&self, id: &str) -> Result<String, ZkFailed> {
        let options = CreateMode::EphemeralSequential.with_acls(self.session.acls());
        let path = format!("{}/{}", self.dir, self.prefix);
        let (_, sequence) = self.session.call(self.session.client().create(&path, id.as_bytes(), &options)).await?;
        Ok(format!("{}{sequence}", self.prefix))
    }

    /// Finds the node by its UUID, on a server that knows of everything committed before.
    async fn find(&self) -> Result<Option<String>, ZkFailed> {
        match self.session.call(self.session.client().sync(&self.dir)).await {
            Ok(()) | Err(ZkFailed::Said(ZkError::NoNode)) => {}
            Err(failure) => return Err(failure),
        }
        let names = self.session.children(&self.dir).await?;
        Ok(names.into_iter().find(|name| name.starts_with(&self.prefix)))
    }

    /// The session the node belongs to.
    pub(super) fn session(&self) -> &ZkSession {
        &self.session
    }

    /// Path of the node.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.dir, self.name.as_deref().unwrap_or(&self.prefix))
    }

    /// Waits until it leads. Cancel-safe.
    pub(super) async fn first(&self) -> Result<QueuePlace, ZkFailed> {
        let mut retries = Retries::new(RETRY);
        loop {
            match self.step().await {
                Ok(Some(place)) => return Ok(place),
                Ok(None) => retries.reset(),
                Err(ZkFailed::Unknown(_)) => tokio::time::sleep(retries.next_delay()).await,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Looks where it stands, and waits for the one before it to move.
    async fn step(&self) -> Result<Option<QueuePlace>, ZkFailed> {
        let order = layout::in_order(self.session.children(&self.dir).await?);
        // A listing is never older than our own node, so that whoever came before is in it or gone.
        match order.iter().position(|name| Some(name) == self.name.as_ref()) {
            None => Ok(Some(QueuePlace::Gone)),
            Some(0) => Ok(Some(QueuePlace::First)),
            Some(at) => {
                let before = format!("{}/{}", self.dir, order[at - 1]);
                match self.session.call(self.session.client().get_and_watch_data(&before)).await {
                    Ok((_, _, watcher)) => _ = watcher.changed().await,
                    Err(ZkFailed::Said(ZkError::NoNode)) => {}
                    Err(failure) => return Err(failure),
                }
                Ok(None)
            }
        }
    }

    /// Waits until the node is gone, or its session is over.
    pub(super) async fn gone(&self) {
        let mut retries = Retries::new(RETRY);
        let path = self.path();
        loop {
            match self.session.call(self.session.client().get_and_watch_data(&path)).await {
                Ok((_, _, watcher)) => _ = watcher.changed().await,
                Err(ZkFailed::Said(ZkError::NoNode) | ZkFailed::Over(_)) => return,
                Err(_) => tokio::time::sleep(retries.next_delay()).await,
            }
        }
    }

    /// Leaves the queue, and waits until the node is gone.
    pub(super) async fn leave(mut self) {
        self.remove().await;
    }

    async fn remove(&mut self) {
        let mut retries = Retries::new(RETRY);
        while !self.gone {
            self.gone = match self.try_remove().await {
                Ok(()) | Err(ZkFailed::Said(ZkError::NoNode) | ZkFailed::Over(_)) => true,
                Err(failure) => {
                    tracing::debug!(?failure, path = self.path(), "a contender is not removed yet");
                    tokio::time::sleep(retries.next_delay()).await;
                    false
                }
            };
        }
    }

    async fn try_remove(&mut self) -> Result<(), ZkFailed> {
        if self.name.is_none() {
            self.name = self.find().await?;
        }
        match self.name {
            Some(_) => self.session.call(self.session.client().delete(&self.path(), None)).await,
            None => Ok(()),
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if self.gone || self.removing || self.session.is_over() {
            return;
        }
        // Without a runtime the process ends, and the session with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut rest = Self {
            session: self.session.clone(),
            dir: std::mem::take(&mut self.dir),
            prefix: std::mem::take(&mut self.prefix),
            name: self.name.take(),
            gone: false,
            removing: true,
        };
        runtime.spawn(async move { rest.remove().await });
    }
}
