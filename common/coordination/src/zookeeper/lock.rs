//! The election: kazoo's lock recipe, as python-tooz contends in it.
//!
//! A contender is an ephemeral, sequential node `<uuid>__lock__<sequence>`; who has the lowest sequence number leads, and
//! each of the others waits for the one before it. Python contenders of tooz do not queue, they try and go away, so that
//! one that queues always comes before them.
//!
//! The recipe of the client crate is not used: it gives up on errors other than a lost connection, and may then leave a
//! contender behind that nobody knows of, which would keep everybody else from leading for as long as the session lasts.
//! Here a contender's node is found again by its UUID, and whatever drops a [`Contender`] sees to its removal.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::backoff::Backoff;
use common::election::{Election, ElectionAction, ElectionEvent, LostReason};
use common::membership::CallFailure;
use uuid::Uuid;
use zookeeper_client::{CreateMode, Error as ZkError};

use super::connection::{ZkFailed, ZkSession};
use super::layout::{self, LOCK_MARK};
use super::member::ContenderNode;
use runtime::clock;
use runtime::retry::Retries;

/// Delays between tries whose outcome is not known.
const RETRY: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(1) };

/// Our place in the queue. Dropping it removes the node in the background, for as long as the session lasts.
#[derive(Debug)]
pub(super) struct Contender {
    session: ZkSession,
    dir: String,
    prefix: String,
    /// Under which name it contends.
    id: String,
    /// How far it has come.
    election: Mutex<Election<String>>,
    /// The node; `None` while it is not known whether it was made.
    name: Option<String>,
    /// The node is gone, or goes with its session.
    gone: bool,
    /// It is being removed in the background; nothing is begun again when that is cut short.
    removing: bool,
}

impl Contender {
    /// A contender in `dir`, under the name `id`, that has no node yet.
    pub(super) fn new(session: ZkSession, dir: String, id: &str) -> Self {
        let prefix = format!("{}{LOCK_MARK}", Uuid::new_v4().simple());
        let (id, election) = (id.to_owned(), Mutex::default());
        Self { session, dir, prefix, id, election, name: None, gone: false, removing: false }
    }

    fn step(&self, event: ElectionEvent<String>) -> Option<ElectionAction<String>> {
        self.election.lock().unwrap_or_else(PoisonError::into_inner).step(clock::now(), event)
    }

    /// Contends until it is elected, or until it has to begin anew (`false`): its node was deleted, or the membership has
    /// ended.
    ///
    /// # Errors
    /// A call failed for a reason that trying again does not mend.
    pub(super) async fn elected(&mut self, member: &ContenderNode) -> Result<bool, ZkFailed> {
        let mut retries = Retries::new(RETRY);
        let mut failure = None;
        let mut action = self.step(ElectionEvent::Continue);
        loop {
            let event = match action {
                Some(ElectionAction::Enter) => {
                    let made = self.enter().await;
                    self.name = made.clone().ok();
                    ElectionEvent::Entered(noted(made, &mut failure))
                }
                Some(ElectionAction::Find) => {
                    let found = self.find().await;
                    self.name = found.clone().ok().flatten();
                    ElectionEvent::Found(noted(found, &mut failure))
                }
                Some(ElectionAction::List) => {
                    let names = self.session.children(&self.dir).await;
                    ElectionEvent::Listed(noted(names.map(layout::in_order), &mut failure))
                }
                Some(ElectionAction::Watch(node)) => {
                    let event = self.watch(&node, &mut retries).await?;
                    retries.reset();
                    event
                }
                Some(ElectionAction::Confirm(since)) => match member.fresh(since).await {
                    Some(sent) => ElectionEvent::Committed(sent),
                    None => return Ok(false),
                },
                Some(ElectionAction::Pause) => {
                    tokio::time::sleep(retries.next_delay()).await;
                    ElectionEvent::Continue
                }
                Some(ElectionAction::Elected) => return Ok(true),
                Some(ElectionAction::Fail(_)) => return Err(failure.take().expect("a call has failed")),
                Some(ElectionAction::Deleted | ElectionAction::Lost(_)) | None => return Ok(false),
            };
            action = self.step(event);
        }
    }

    /// Waits until it leads no more. Its session may have ended before.
    pub(super) async fn lost(&self, member: &ContenderNode) -> LostReason {
        let mut retries = Retries::new(RETRY);
        let mut action = self.step(ElectionEvent::Continue);
        loop {
            let event = match action {
                Some(ElectionAction::Watch(node)) => tokio::select! {
                    event = self.watch(&node, &mut retries) => event.unwrap_or(ElectionEvent::Absent),
                    () = member.doubtful() => ElectionEvent::Doubt,
                },
                Some(ElectionAction::Lost(why)) => return why,
                other => unreachable!("who leads waits for its node, and is not asked for {other:?}"),
            };
            action = self.step(event);
        }
    }

    /// Waits until a node moves or is gone.
    ///
    /// # Errors
    /// [`ZkFailed::Over`] alone: whatever else fails is looked at anew, after a while.
    async fn watch(&self, node: &str, retries: &mut Retries) -> Result<ElectionEvent<String>, ZkFailed> {
        let path = format!("{}/{node}", self.dir);
        match self.session.call(self.session.client().get_and_watch_data(&path)).await {
            Ok((_, _, watcher)) => {
                _ = watcher.changed().await;
                Ok(ElectionEvent::Changed)
            }
            Err(ZkFailed::Said(ZkError::NoNode)) => Ok(ElectionEvent::Absent),
            Err(failure @ ZkFailed::Over(_)) => Err(failure),
            Err(ZkFailed::Said(_) | ZkFailed::Unknown(_)) => {
                tokio::time::sleep(retries.next_delay()).await;
                Ok(ElectionEvent::Changed)
            }
        }
    }

    /// Makes the node, and its folder when that is missing.
    async fn enter(&self) -> Result<String, ZkFailed> {
        loop {
            match self.make().await {
                Err(ZkFailed::Said(ZkError::NoNode)) => self.session.ensure(&self.dir).await?,
                made => return made,
            }
        }
    }

    async fn make(&self) -> Result<String, ZkFailed> {
        let options = CreateMode::EphemeralSequential.with_acls(self.session.acls());
        let path = format!("{}/{}", self.dir, self.prefix);
        let create = self.session.client().create(&path, self.id.as_bytes(), &options);
        let (_, sequence) = self.session.call(create).await?;
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
            id: std::mem::take(&mut self.id),
            election: Mutex::default(),
            name: self.name.take(),
            gone: false,
            removing: true,
        };
        runtime.spawn(async move { rest.remove().await });
    }
}

/// What a call came to, for [`Election`]; the failure itself is kept aside.
fn noted<T>(result: Result<T, ZkFailed>, kept: &mut Option<ZkFailed>) -> Result<T, CallFailure> {
    result.map_err(|failure| {
        let shown = CallFailure::from(&failure);
        *kept = Some(failure);
        shown
    })
}
