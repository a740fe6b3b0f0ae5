//! One life of a member: it enters with a member node and a lease node made in one transaction, and beats until its end.
//!
//! A heartbeat is a `setData` on the lease node with the expected version, one at a time. What it proves counts from the
//! moment before it was *sent*, and only once it is known to have committed: by its answer, or, when the answer got lost,
//! by reading the very data it wrote. Nothing else extends the guard.
//!
//! The guard is shut before the session closes: both sit in [`Held`], whose `Drop` shuts first, whatever ends the task.
//! Only after that may another life of this process remove the nodes this one left behind ([`Former`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Error as ZkError, StateWatcher};

use super::connection::{Failure, Session, over};
use super::layout::{self, LeaseData, Place};
use super::until;
use crate::{Ended, Guard};
use common::{Incarnation, Timestamp};
use runtime::clock;

/// Sessions that are remembered; a name is joined once in a session, and what is older has expired long ago.
const FORMER: usize = 64;

/// Unanswered heartbeats that are remembered. Each is looked up before the next is sent, so that there is hardly ever
/// more than one.
const PENDING: usize = 16;

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
    pub(super) fn contains(&self, session: i64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&session)
    }
}

/// A session that made, or may have made, nodes. Done with when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) session: Session,
    pub(super) former: Former,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.former.note(self.session.id());
    }
}

/// A guard with the session it hangs on. Dropping it shuts the guard, then lets go of the session.
struct Held {
    guard: Arc<dyn Guard>,
    claim: Claim,
}

impl Drop for Held {
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
    pub(super) place: Place,
    /// The life.
    pub(super) incarnation: Incarnation,
    /// When the transaction that made the nodes was sent; it counts as the first heartbeat.
    pub(super) sent: Timestamp,
    /// How long the member may act after a heartbeat.
    pub(super) lease: Duration,
}

impl Entered {
    /// Begins to beat. Needs a Tokio runtime.
    pub(super) fn live(self, guard: Arc<dyn Guard>) -> Life {
        guard.extend(self.sent + self.lease);
        let (commits, committed) = watch::channel(self.sent);
        let (ended, over) = watch::channel(None);
        let (stop, kick) = (CancellationToken::new(), Arc::new(Notify::new()));
        let life = Life {
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
            incarnation: self.incarnation,
            lease: self.lease,
            version: 0,
            beat: layout::FIRST_BEAT,
            pending: VecDeque::new(),
            stands_until: self.sent + self.lease,
            last_sent: self.sent,
            commits,
            kick,
            held: Held { guard, claim: self.claim },
        };
        tokio::spawn(async move {
            let how = beats.run(stop).await;
            ended.send_replace(Some(how));
        });
        life
    }
}

/// A life that beats. Dropping it shuts the guard and ends it in the background.
pub(super) struct Life {
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
    ended: watch::Receiver<Option<Ended>>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.guard.shut();
        self.stop.cancel();
    }
}

impl Life {
    /// Waits for the end; the guard is shut by then.
    pub(super) async fn ended(&self) -> Ended {
        match self.ended.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(how)) => how.clone(),
            // The task panicked, and shut the guard while it unwound.
            _ => Ended::SessionOver("its task ended".to_owned()),
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

/// What to do after a call.
enum Next {
    /// Beat when it is time.
    Beat,
    /// Find out what became of a heartbeat.
    Look,
    /// Find out, but not at once.
    LookLater,
}

/// The task of a life.
struct Beats {
    place: Place,
    path: String,
    incarnation: Incarnation,
    lease: Duration,
    /// Of the lease node, as of the last heartbeat known to have committed.
    version: i32,
    /// Number of the last heartbeat sent; never used twice.
    beat: u64,
    /// Heartbeats whose outcome is not known, with the moments before they were sent.
    pending: VecDeque<(u64, Timestamp)>,
    stands_until: Timestamp,
    last_sent: Timestamp,
    commits: watch::Sender<Timestamp>,
    kick: Arc<Notify>,
    held: Held,
}

impl Beats {
    async fn run(mut self, stop: CancellationToken) -> Ended {
        let states = self.held.claim.session.states();
        let mut session_over = std::pin::pin!(over(states));
        let how = loop {
            // Moves only when a heartbeat commits, which ends the turn.
            let given_up = self.stands_until + self.held.claim.session.timeout();
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ended::Left,
                why = &mut session_over => break Ended::SessionOver(why),
                () = until(given_up) => {
                    break Ended::SessionOver("no heartbeat committed for a session timeout after the lease".to_owned());
                }
                turn = self.turn() => if let Err(how) = turn { break how },
            }
        };
        self.held.guard.shut();
        if how == Ended::Left {
            self.remove().await;
        }
        how
    }

    /// One heartbeat with all that is needed to know what became of it.
    async fn turn(&mut self) -> Result<(), Ended> {
        let pause = self.lease / super::BEATS_PER_LEASE;
        tokio::select! {
            () = until(self.last_sent + pause) => {}
            () = self.kick.notified() => {}
        }
        let mut next = self.send().await?;
        loop {
            match next {
                Next::Beat => return Ok(()),
                Next::Look => {}
                Next::LookLater => tokio::time::sleep(pause).await,
            }
            next = self.look().await?;
        }
    }

    async fn send(&mut self) -> Result<Next, Ended> {
        self.beat += 1;
        let (beat, sent) = (self.beat, clock::now());
        self.last_sent = sent;
        if self.pending.len() == PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back((beat, sent));
        let session = &self.held.claim.session;
        let data = layout::heartbeat(beat, self.lease, session.id());
        match session.call(session.client().set_data(&self.path, &data, Some(self.version))).await {
            // Somebody deleted the node, and the one made since happened to have the same version.
            Ok(stat) if layout::incarnation(&stat) != self.incarnation => {
                Err(Ended::LeaseTaken("made anew".to_owned()))
            }
            Ok(stat) => {
                self.committed(sent, stat.version);
                Ok(Next::Beat)
            }
            Err(Failure::Said(ZkError::BadVersion | ZkError::NoNode)) => Ok(Next::Look),
            Err(Failure::Said(error @ ZkError::NoAuth)) => Err(Ended::LeaseTaken(error.to_string())),
            Err(Failure::Over(why)) => Err(Ended::SessionOver(why)),
            Err(Failure::Unknown(why)) => {
                tracing::debug!(path = self.path, beat, why, "the outcome of a heartbeat is not known");
                Ok(Next::Look)
            }
            // Quotas and throttling: nothing was changed, and it may be let through later.
            Err(Failure::Said(error)) => {
                tracing::warn!(path = self.path, beat, %error, "a heartbeat was refused");
                Ok(Next::Beat)
            }
        }
    }

    async fn look(&mut self) -> Result<Next, Ended> {
        let (data, stat) = match self.held.claim.session.read(&self.path).await {
            Ok(Some(found)) => found,
            // The session never reads from before its last answer, and the node was there then.
            Ok(None) => return Err(Ended::LeaseTaken("it was deleted".to_owned())),
            Err(Failure::Over(why)) => return Err(Ended::SessionOver(why)),
            Err(_) => return Ok(Next::LookLater),
        };
        if layout::incarnation(&stat) != self.incarnation {
            return Err(Ended::LeaseTaken(format!("session {:#x} made it anew", stat.ephemeral_owner)));
        }
        let read = LeaseData::read(&data);
        if read.evicted {
            return Err(Ended::Evicted);
        }
        if stat.version == self.version {
            return Ok(Next::Beat);
        }
        let beat = read.beat_of(self.held.claim.session.id());
        match self.pending.iter().find(|(pending, _)| beat == Some(*pending)) {
            Some((_, sent)) => {
                self.committed(*sent, stat.version);
                Ok(Next::Beat)
            }
            None => Err(Ended::LeaseTaken("it was written over".to_owned())),
        }
    }

    fn committed(&mut self, sent: Timestamp, version: i32) {
        self.version = version;
        self.pending.clear();
        self.stands_until = self.stands_until.max(sent + self.lease);
        self.held.guard.extend(sent + self.lease);
        self.commits.send_replace(sent);
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
