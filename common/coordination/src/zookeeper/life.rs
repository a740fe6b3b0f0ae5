//! One life of a member: it enters with a member node and a lease node made in one transaction, and beats until its end.
//!
//! [`LeaseKeeper`] decides when a heartbeat is written, with which version, and what an answer proves; here it is carried
//! out, and only what is known to have committed extends the guard.
//!
//! The guard is shut before the session closes: both sit in [`HeldNodes`], whose `Drop` shuts first, whatever ends the task.
//! Only after that may another life of this process remove the nodes this one left behind ([`Former`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::membership::{
    CallFailure, LeaseAction, LeaseCall, LeaseEvent, LeaseKeeper, LeaseNodeState, MembershipEnd, NodeOwner,
};
use common::secret::LifeSeal;
use common::{Incarnation, Timestamp};
use runtime::clock;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use zookeeper_client::StateWatcher;

use super::connection::{ZkSession, over};
use super::layout::{self, LeaseData, NodePlace};
use super::until;
use crate::Guard;

/// Sessions that are remembered; a name is joined once in a session, and what is older has expired long ago.
const FORMER: usize = 64;

/// Sessions of this process that are done with: their guards are shut, so that nodes they left may be removed.
#[derive(Clone, Debug, Default)]
pub(super) struct Former(Arc<Mutex<VecDeque<i64>>>);

impl Former {
    fn note(&self, session: i64) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() == FORMER {
            sessions.pop_front();
        }
        sessions.push_back(session);
    }

    /// Whether the session was one of ours and is done with.
    fn contains(&self, session: i64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&session)
    }
}

/// A session that made, or may have made, nodes. Done with when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) session: ZkSession,
    pub(super) former: Former,
}

impl Claim {
    /// Whose session this is.
    pub(super) fn owner(&self, session: i64) -> NodeOwner {
        if session == self.session.id() {
            NodeOwner::ThisSession
        } else if self.former.contains(session) {
            NodeOwner::FormerSession
        } else {
            NodeOwner::Other
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.former.note(self.session.id());
    }
}

/// A guard with the session it hangs on. Dropping it shuts the guard, then lets go of the session.
struct HeldNodes {
    guard: Arc<dyn Guard>,
    claim: Claim,
}

impl Drop for HeldNodes {
    fn drop(&mut self) {
        // Fields are dropped after this.
        self.guard.shut();
    }
}

/// What entering came to.
#[derive(Debug)]
pub(super) struct Entered {
    /// The session both nodes belong to.
    pub(super) claim: Claim,
    /// Names of the nodes.
    pub(super) place: NodePlace,
    /// The life.
    pub(super) incarnation: Incarnation,
    /// When the transaction that made the nodes was sent; it counts as the first heartbeat.
    pub(super) sent: Timestamp,
    /// How long the member may act after a heartbeat.
    pub(super) lease: Duration,
    /// What the life is sealed with; `None` for a coordinator.
    pub(super) seal: Option<LifeSeal>,
}

impl Entered {
    /// Begins to beat. Needs a Tokio runtime.
    pub(super) fn live(self, guard: Arc<dyn Guard>) -> KeptLease {
        guard.extend(self.sent + self.lease);
        let (commits, committed) = watch::channel(self.sent);
        let (ended, over) = watch::channel(None);
        let (stop, kick) = (CancellationToken::new(), Arc::new(Notify::new()));
        let life = KeptLease {
            incarnation: self.incarnation,
            lease: self.lease,
            timeout: self.claim.session.timeout(),
            states: self.claim.session.states(),
            guard: Arc::clone(&guard),
            stop: stop.clone(),
            kick: Arc::clone(&kick),
            committed,
            ended: over,
        };
        let beats = Beats {
            path: self.place.lease(),
            place: self.place,
            lease: self.lease,
            seal: self.seal,
            keeper: LeaseKeeper::new(self.incarnation, self.lease, self.claim.session.timeout(), self.sent),
            commits,
            kick,
            held: HeldNodes { guard, claim: self.claim },
        };
        tokio::spawn(async move {
            let how = beats.run(stop).await;
            ended.send_replace(Some(how));
        });
        life
    }
}

/// A life that beats. Dropping it shuts the guard and ends it in the background.
pub(super) struct KeptLease {
    /// Which life.
    pub(super) incarnation: Incarnation,
    /// How long the member may act after a heartbeat.
    pub(super) lease: Duration,
    /// When the last heartbeat that committed was sent.
    pub(super) committed: watch::Receiver<Timestamp>,
    /// Makes it beat at once.
    pub(super) kick: Arc<Notify>,
    timeout: Duration,
    states: StateWatcher,
    guard: Arc<dyn Guard>,
    stop: CancellationToken,
    ended: watch::Receiver<Option<MembershipEnd>>,
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.guard.shut();
        self.stop.cancel();
    }
}

impl KeptLease {
    /// Waits for the end; the guard is shut by then.
    pub(super) async fn ended(&self) -> MembershipEnd {
        match self.ended.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(how)) => how.clone(),
            // The task panicked, and shut the guard while it unwound.
            _ => MembershipEnd::SessionOver("its task ended".to_owned()),
        }
    }

    /// Shuts the guard, removes the nodes and waits until the session is closed, at most as long as one lasts.
    pub(super) async fn leave(self) {
        self.guard.shut();
        self.stop.cancel();
        self.ended().await;
        _ = tokio::time::timeout(self.timeout, over(self.states.clone())).await;
    }
}

/// The task of a life: carries out what [`LeaseKeeper`] decides.
struct Beats {
    place: NodePlace,
    path: String,
    lease: Duration,
    seal: Option<LifeSeal>,
    keeper: LeaseKeeper,
    commits: watch::Sender<Timestamp>,
    kick: Arc<Notify>,
    held: HeldNodes,
}

impl Beats {
    async fn run(mut self, stop: CancellationToken) -> MembershipEnd {
        let states = self.held.claim.session.states();
        let mut session_over = std::pin::pin!(over(states));
        let mut call = None;
        let how = 'life: loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => LeaseEvent::Leave,
                why = &mut session_over => LeaseEvent::SessionOver(why),
                event = self.next(call.take()) => event,
            };
            for action in self.keeper.step(clock::now(), event) {
                match action {
                    LeaseAction::Committed(sent) => {
                        self.held.guard.extend(sent + self.lease);
                        self.commits.send_replace(sent);
                    }
                    LeaseAction::Call(next) => call = Some(next),
                    LeaseAction::End(how) => break 'life how,
                }
            }
        };
        self.held.guard.shut();
        if how == MembershipEnd::Left {
            self.remove().await;
        }
        how
    }

    /// The answer to the call; without one, what comes next. A call is given up only at the end of the life.
    async fn next(&self, call: Option<LeaseCall>) -> LeaseEvent {
        let wake_at = self.keeper.wake_at();
        tokio::select! {
            biased;
            event = self.make(call), if call.is_some() => event,
            () = until(wake_at) => LeaseEvent::Tick,
            () = self.kick.notified(), if call.is_none() => LeaseEvent::BeatNow,
        }
    }

    async fn make(&self, call: Option<LeaseCall>) -> LeaseEvent {
        match call {
            Some(LeaseCall::Write { number, version }) => LeaseEvent::Wrote(self.write(number, version).await),
            Some(LeaseCall::Read) => LeaseEvent::Read(self.read().await),
            None => std::future::pending().await,
        }
    }

    async fn write(&self, beat: u64, version: i32) -> Result<(Incarnation, i32), CallFailure> {
        let session = &self.held.claim.session;
        let data = layout::heartbeat(beat, self.lease, session.id(), self.seal.as_ref());
        match session.call(session.client().set_data(&self.path, &data, Some(version))).await {
            Ok(stat) => Ok((layout::incarnation(&stat), stat.version)),
            Err(failure) => {
                let failure = CallFailure::from(&failure);
                match &failure {
                    CallFailure::Unknown(why) => {
                        tracing::debug!(path = self.path, beat, why, "the outcome of a heartbeat is not known");
                    }
                    CallFailure::Refused(error) => {
                        runtime::log_limited!(warn, path = self.path, beat, error, "a heartbeat was refused");
                    }
                    _ => {}
                }
                Err(failure)
            }
        }
    }

    async fn read(&self) -> Result<Option<LeaseNodeState>, CallFailure> {
        let session = &self.held.claim.session;
        let found = session.read(&self.path).await.map_err(|failure| CallFailure::from(&failure))?;
        Ok(found.map(|(data, stat)| {
            let read = LeaseData::read(&data);
            LeaseNodeState {
                incarnation: layout::incarnation(&stat),
                version: stat.version,
                evicted: read.evicted,
                beat: read.beat_of(session.id()),
            }
        }))
    }

    /// Removes both nodes, as far as they are still ours. Closing the session would do that as well, but others may
    /// still use it.
    async fn remove(&self) {
        let session = &self.held.claim.session;
        let mut writer = session.client().new_multi_writer();
        for path in [self.place.member(), self.path.clone()] {
            if let Ok(Some((_, stat))) = session.read(&path).await
                && stat.ephemeral_owner == session.id()
                && writer.add_delete(&path, Some(stat.version)).is_err()
            {
                return;
            }
        }
        if let Err(failure) = session.call(writer.commit()).await {
            tracing::debug!(path = self.path, ?failure, "the nodes go when the session ends");
        }
    }
}
