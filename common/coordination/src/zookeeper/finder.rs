//! Who leads, and where coordinators are, kept current over reconnections and sessions.
//!
//! It has a session of its own, so that it depends on nobody's having joined. One recursive watch on the coordinators'
//! group reports members, what they publish, and contenders alike; polling Python contenders come and go in there, so
//! that events are gathered for a moment and then everything, a handful of nodes, is read anew.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zookeeper_client::{AddWatchMode, EventType, PersistentWatcher, SessionState};

use super::config::Config;
use super::connection::{ZkFailed, ZkSession};
use super::layout::{self, LEADER};
use crate::Leader;
use common::CoordinatorId;
use common::backoff::Backoff;
use runtime::retry::Retries;

/// How long events are gathered before everything is read: bounds the reads that polling contenders cause.
const GATHER: Duration = Duration::from_millis(20);

/// Delays between tries to reach ZooKeeper.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// Who leads and where the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaderView {
    /// The leader; its address is empty when it published none, as a Python process.
    pub(super) leader: Option<Leader>,
    /// The other coordinators, in the order of their names; a Python process among them has no address.
    others: Vec<Leader>,
}

impl LeaderView {
    /// All coordinators, the leader first.
    pub(super) fn all(&self) -> Vec<Leader> {
        self.leader.iter().chain(&self.others).cloned().collect()
    }

    /// All addresses, the leader's first.
    pub(super) fn addresses(&self) -> Vec<String> {
        let all = self.leader.iter().chain(&self.others);
        all.map(|one| one.address.clone()).filter(|address| !address.is_empty()).collect()
    }
}

/// Looks until `stop` is cancelled. `publish` gets each view that was read, and `None` when ZooKeeper has been away for
/// longer than a lease, so that what was told last may be wrong.
pub(super) fn spawn(
    config: Arc<Config>,
    stop: CancellationToken,
    publish: impl FnMut(Option<LeaderView>) + Send + 'static,
) {
    let finder = Finder { blind_after: config.timeout * super::LEASE_PERCENT / 100, config, away: None, publish };
    tokio::spawn(async move {
        stop.run_until_cancelled(finder.run()).await;
    });
}

struct Finder<P> {
    config: Arc<Config>,
    blind_after: Duration,
    /// Since when nothing could be read; `None` when it can, or when that has been said already.
    away: Option<Instant>,
    publish: P,
}

/// What events came to.
enum FinderEvent {
    /// Something changed.
    Changed,
    /// The connection broke.
    Broke,
    /// It stands again; watches are gone.
    Back,
    /// No more will come.
    Over,
}

impl<P: FnMut(Option<LeaderView>) + Send> Finder<P> {
    async fn run(mut self) {
        let mut retries = Retries::new(RETRY);
        loop {
            let config = Arc::clone(&self.config);
            match self.patiently(ZkSession::open(&config)).await {
                Ok(session) => {
                    retries.reset();
                    self.follow(&session).await;
                    self.blinded();
                }
                Err(error) => tracing::debug!(%error, "coordinators cannot be looked up"),
            }
            let pause = tokio::time::sleep(retries.next_delay());
            self.patiently(pause).await;
        }
    }

    /// Follows one session to its end.
    async fn follow(&mut self, session: &ZkSession) {
        let mut retries = Retries::new(RETRY);
        loop {
            let ended = match self.patiently(self.watch(session)).await {
                Ok(mut watcher) => self.keep_current(session, &mut watcher, &mut retries).await,
                Err(failure) => Err(failure),
            };
            match ended {
                Ok(()) => retries.reset(),
                Err(ZkFailed::Over(_)) => return,
                Err(failure) => {
                    self.blinded();
                    tracing::debug!(?failure, "coordinators cannot be read");
                    let pause = tokio::time::sleep(retries.next_delay());
                    self.patiently(pause).await;
                }
            }
        }
    }

    fn watch<'a>(
        &self,
        session: &'a ZkSession,
    ) -> impl Future<Output = Result<PersistentWatcher, ZkFailed>> + use<'a, P> {
        let adding = session.client().watch(self.config.layout.coordinators(), AddWatchMode::PersistentRecursive);
        session.call(adding)
    }

    /// Reads after each change, until the watch is gone (`Ok`) or something fails.
    async fn keep_current(
        &mut self,
        session: &ZkSession,
        watcher: &mut PersistentWatcher,
        retries: &mut Retries,
    ) -> Result<(), ZkFailed> {
        loop {
            let config = Arc::clone(&self.config);
            let view = self.patiently(look(session, &config)).await?;
            self.away = None;
            retries.reset();
            (self.publish)(Some(view));
            loop {
                let mut told = self.patiently(next(watcher)).await;
                if let FinderEvent::Changed = told {
                    tokio::time::sleep(GATHER).await;
                    while let Some(more) = match told {
                        FinderEvent::Changed => next(watcher).now_or_never(),
                        _ => None,
                    } {
                        told = more;
                    }
                }
                match told {
                    FinderEvent::Changed => break,
                    FinderEvent::Broke => self.blinded(),
                    FinderEvent::Back => return Ok(()),
                    FinderEvent::Over => return Err(ZkFailed::Over("the session is over".to_owned())),
                }
            }
        }
    }

    fn blinded(&mut self) {
        self.away.get_or_insert_with(Instant::now);
    }

    /// Waits, and says meanwhile when nothing could be read for too long.
    async fn patiently<T>(&mut self, waiting: impl Future<Output = T>) -> T {
        let mut waiting = std::pin::pin!(waiting);
        // Said once: the far future stands for "not again".
        loop {
            let Some(since) = self.away else { return waiting.await };
            tokio::select! {
                done = &mut waiting => return done,
                () = tokio::time::sleep_until(since + self.blind_after) => {
                    (self.publish)(None);
                    self.away = None;
                }
            }
        }
    }
}

async fn next(watcher: &mut PersistentWatcher) -> FinderEvent {
    let event = watcher.changed().await;
    match event.event_type {
        EventType::Session => match event.session_state {
            SessionState::Disconnected => FinderEvent::Broke,
            state if state.is_terminated() => FinderEvent::Over,
            _ => FinderEvent::Back,
        },
        _ => FinderEvent::Changed,
    }
}

async fn look(session: &ZkSession, config: &Config) -> Result<LeaderView, ZkFailed> {
    let layout = &config.layout;
    let leader = first_contender(session, &layout.contenders()).await?;
    let mut names = session.children(layout.coordinators()).await?;
    names.sort_unstable();
    let (mut address, mut others) = (String::new(), Vec::new());
    for name in names.iter().filter(|name| *name != LEADER) {
        let Some((data, _)) = session.read(&format!("{}/{name}", layout.coordinators())).await? else { continue };
        let found = layout::address(&data);
        if leader.as_ref().is_some_and(|leader| leader.as_str() == name) {
            address = found;
        } else if let Ok(id) = CoordinatorId::new(name) {
            others.push(Leader { id, address: found });
        }
    }
    Ok(LeaderView { leader: leader.map(|id| Leader { id, address }), others })
}

/// Who stands first. A contender whose node went since the listing leaves its place to the next.
async fn first_contender(session: &ZkSession, contenders: &str) -> Result<Option<CoordinatorId>, ZkFailed> {
    for name in layout::in_order(session.children(contenders).await?) {
        let Some((data, _)) = session.read(&format!("{contenders}/{name}")).await? else { continue };
        let id = std::str::from_utf8(&data).ok().and_then(|id| CoordinatorId::new(id).ok());
        if id.is_none() {
            tracing::debug!(node = name, "the leader's name cannot be a coordinator's");
        }
        return Ok(id);
    }
    Ok(None)
}
