//! The coordinator's part until it leads: a member of the coordinators' group at all times, a contender when asked.
//!
//! A task of its own keeps the membership, through as many sessions as it takes. A campaign takes the session as it finds
//! it and contends in it; [`common::election`] decides when that has led to a leadership.
//!
//! A leadership that ended in doubt only (heartbeats did not commit in time, but the session lives) leaves its contender
//! here: the next campaign of the same session goes on with it, so that a hiccup of ZooKeeper is not a change of leader
//! for everybody. It is given up when no campaign takes it within a session timeout.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::connection::{ZkFailed, ZkSession};
use super::entry::enter;
use super::finder;
use super::layout;
use super::leadership::ZooKeeperLeadership;
use super::life::{Claim, Former, KeptLease};
use super::lock::Contender;
use super::member::ContenderNode;
use crate::{Candidate, Error, Guard, Leader, Leadership, MembershipEnd};
use common::backoff::Backoff;
use common::{CoordinatorId, Incarnation, Timestamp};
use runtime::retry::Retries;

/// Delays between tries to join, and between tries to be elected whose outcome is not known.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// A coordinator's candidacy.
pub(super) struct ZooKeeperCandidate {
    config: Arc<Config>,
    id: CoordinatorId,
    standing: watch::Receiver<Standing>,
    leader: watch::Receiver<Option<Leader>>,
    all: watch::Receiver<Vec<Leader>>,
    parked: ParkedContender,
    stop: CancellationToken,
}

/// How the membership is.
#[derive(Clone, Debug)]
enum Standing {
    /// Not a member now; it is being tried.
    Away,
    /// Not a member, for a reason that waiting does not mend; it is tried all the same.
    Failed(Error),
    /// A member.
    Member(Arc<ContenderNode>),
    /// It left for good.
    Left,
}

/// A contender between two leaderships of the same session.
#[derive(Clone, Debug, Default)]
pub(super) struct ParkedContender(Arc<Mutex<Option<Contender>>>);

impl ParkedContender {
    /// Keeps the contender for the next campaign, for a session timeout. Needs a Tokio runtime.
    pub(super) fn put(&self, contender: Contender) {
        let (path, patience) = (contender.path(), contender.session().timeout());
        let former = self.swap(Some(contender));
        drop(former);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            let mut slot = this.0.lock().unwrap_or_else(PoisonError::into_inner);
            let unused = slot.take_if(|contender| contender.path() == path);
            drop(slot);
            drop(unused);
        });
    }

    fn swap(&self, contender: Option<Contender>) -> Option<Contender> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), contender)
    }

    /// The contender, if it belongs to this session. Another session's is given up.
    fn take(&self, session: &ZkSession) -> Option<Contender> {
        self.swap(None).filter(|contender| contender.session().id() == session.id())
    }
}

/// The leader's lease opens no gate: it is read off the heartbeats.
struct NoGate;

impl Guard for NoGate {
    fn extend(&self, _: Timestamp) {}

    fn shut(&self) {}
}

impl fmt::Debug for ZooKeeperCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperCandidate").field("id", &self.id).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Drop for ZooKeeperCandidate {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ZooKeeperCandidate {
    pub(super) fn new(config: Config, id: CoordinatorId, address: String) -> Self {
        let config = Arc::new(config);
        let stop = CancellationToken::new();
        let (told, leader) = watch::channel(None);
        let (told_all, all) = watch::channel(Vec::new());
        finder::spawn(Arc::clone(&config), stop.clone(), move |view| {
            told_all.send_replace(view.as_ref().map(finder::LeaderView::all).unwrap_or_default());
            let leader = view.and_then(|view| view.leader);
            told.send_if_modified(|known| {
                let changed = *known != leader;
                *known = leader;
                changed
            });
        });
        let (standing, seen) = watch::channel(Standing::Away);
        let membership = GroupMembership {
            config: Arc::clone(&config),
            id: id.clone(),
            capabilities: layout::coordinator_capabilities(&address),
            former: Former::default(),
            standing,
        };
        tokio::spawn(membership.keep(stop.clone()));
        Self { config, id, standing: seen, leader, all, parked: ParkedContender::default(), stop }
    }

    async fn member(&self) -> Result<Arc<ContenderNode>, Error> {
        let mut standing = self.standing.clone();
        let settled = standing.wait_for(|standing| !matches!(standing, Standing::Away)).await;
        match settled.as_deref() {
            Ok(Standing::Member(member)) => Ok(Arc::clone(member)),
            Ok(Standing::Failed(error)) => Err(error.clone()),
            _ => Err(Error::Refused(format!("the coordinator {} has left its group", self.id))),
        }
    }

    /// Contends in one session. `None` when it has to begin anew.
    async fn contend(&self, member: &Arc<ContenderNode>) -> Result<Option<Contender>, ZkFailed> {
        let mut contender = self.parked.take(&member.session).unwrap_or_else(|| {
            let dir = self.config.layout.contenders();
            Contender::new(member.session.clone(), dir, self.id.as_str())
        });
        let elected = match member.over.run_until_cancelled(contender.elected(member)).await {
            Some(elected) => elected?,
            None => false,
        };
        Ok(elected.then_some(contender))
    }
}

#[async_trait]
impl Candidate for ZooKeeperCandidate {
    async fn campaign(&self) -> Result<Box<dyn Leadership>, Error> {
        let mut retries = Retries::new(RETRY);
        loop {
            let member = self.member().await?;
            match self.contend(&member).await {
                Ok(Some(contender)) => {
                    tracing::info!(coordinator = %self.id, lock = contender.path(), "elected");
                    let config = Arc::clone(&self.config);
                    let parked = self.parked.clone();
                    return Ok(Box::new(ZooKeeperLeadership::new(config, self.id.clone(), member, contender, parked)));
                }
                Ok(None) | Err(ZkFailed::Over(_) | ZkFailed::Unknown(_)) => {}
                Err(failure @ ZkFailed::Said(_)) => match Error::from(failure) {
                    error @ Error::Refused(_) => return Err(error),
                    error => tracing::warn!(%error, "cannot contend for the leadership now"),
                },
            }
            tokio::time::sleep(retries.next_delay()).await;
        }
    }

    fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.clone()
    }

    fn coordinators(&self) -> watch::Receiver<Vec<Leader>> {
        self.all.clone()
    }

    async fn leave(&self) {
        self.stop.cancel();
        drop(self.parked.swap(None));
        _ = self.standing.clone().wait_for(|standing| matches!(standing, Standing::Left)).await;
    }
}

/// How a membership ended.
enum CandidacyEnd {
    /// With its life.
    Lease(MembershipEnd),
    /// Somebody deleted the member node.
    Expelled,
}

impl fmt::Display for CandidacyEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease(how) => how.fmt(f),
            Self::Expelled => f.write_str("somebody deleted the member node"),
        }
    }
}

/// The task that keeps the coordinator a member of its group.
struct GroupMembership {
    config: Arc<Config>,
    id: CoordinatorId,
    capabilities: Vec<u8>,
    former: Former,
    standing: watch::Sender<Standing>,
}

impl GroupMembership {
    async fn keep(self, stop: CancellationToken) {
        let mut retries = Retries::new(RETRY);
        while !stop.is_cancelled() {
            match stop.run_until_cancelled(self.join()).await {
                None => break,
                Some(Ok((member, life))) => {
                    retries.reset();
                    let over = member.over.clone();
                    self.standing.send_replace(Standing::Member(Arc::clone(&member)));
                    let ended = stop.run_until_cancelled(self.membership_ends(&member, &life)).await;
                    over.cancel();
                    self.standing.send_replace(Standing::Away);
                    if let Some(how) = &ended {
                        tracing::warn!(coordinator = %self.id, %how, "no longer a member");
                    }
                    if !matches!(ended, Some(CandidacyEnd::Lease(_))) {
                        life.leave().await;
                    }
                }
                Some(Err(error @ (Error::Refused(_) | Error::NameTaken { .. }))) => {
                    tracing::error!(coordinator = %self.id, %error, "cannot join the group of coordinators");
                    self.standing.send_replace(Standing::Failed(error));
                }
                Some(Err(error)) => {
                    tracing::info!(coordinator = %self.id, %error, "cannot join the group of coordinators now");
                    self.standing.send_replace(Standing::Away);
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(retries.next_delay())).await;
        }
        self.standing.send_replace(Standing::Left);
    }

    async fn membership_ends(&self, member: &ContenderNode, life: &KeptLease) -> CandidacyEnd {
        tokio::select! {
            how = life.ended() => CandidacyEnd::Lease(how),
            () = self.expelled(&member.session, life.incarnation) => CandidacyEnd::Expelled,
        }
    }

    /// Waits until the member node is gone. It has the address at which everybody else looks for this coordinator; its
    /// lease node and its lock say nothing of that.
    async fn expelled(&self, session: &ZkSession, incarnation: Incarnation) {
        let path = self.config.layout.coordinator(&self.id).member();
        let mut retries = Retries::new(RETRY);
        loop {
            // Never older than this session's own write of the node.
            match session.call(session.client().check_and_watch_stat(&path)).await {
                Ok((Some(stat), watcher)) if layout::incarnation(&stat) == incarnation => {
                    retries.reset();
                    _ = watcher.changed().await;
                }
                Ok(_) => return,
                // The life ends with the session.
                Err(ZkFailed::Over(_)) => std::future::pending().await,
                Err(_) => tokio::time::sleep(retries.next_delay()).await,
            }
        }
    }

    async fn join(&self) -> Result<(Arc<ContenderNode>, KeptLease), Error> {
        let session = ZkSession::open(&self.config).await?;
        let claim = Claim { session: session.clone(), former: self.former.clone() };
        let place = self.config.layout.coordinator(&self.id);
        let life =
            enter(claim, place, &self.capabilities, None, self.config.join_timeout).await?.live(Arc::new(NoGate));
        tracing::info!(coordinator = %self.id, incarnation = %life.incarnation, "joined");
        let member = ContenderNode {
            session,
            lease: life.lease,
            committed: life.committed.clone(),
            over: CancellationToken::new(),
            kick: Arc::clone(&life.kick),
        };
        Ok((Arc::new(member), life))
    }
}
