//! How coordinators and workers find each other, who leads, and who may act: embedded in the coordinator, or in ZooKeeper.
//!
//! Two conversations. A worker joins its [`Group`] under its name; each life is a [`MemberSession`], kept alive by
//! heartbeats. A coordinator is a [`Candidate`]: it campaigns, and while elected its [`Leadership`] raises terms,
//! tells what becomes of the workers' nodes ([`RosterEvent`]) and evicts. Both traits have two implementations, [`embedded`] and
//! [`zookeeper`]; nothing else knows which one it talks to.
//!
//! The rules are those of docs/protocol.md (Leases and lives, Terms). In short: a life ends for
//! good when its lease node can take no further heartbeat; a worker may act until `sent(last committed heartbeat) + lease`
//! and the [`Guard`] it hands over is extended by nothing else; the guard is shut before a session is closed, also when
//! the task that owns it panics.

mod connect;
pub mod embedded;
pub mod url;
pub mod zookeeper;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use common::membership::MembershipEnd;
pub use common::roster::{LeaseNode, MemberNode, RosterEvent};
use common::secret::LifeSeal;
use common::{CoordinatorId, Incarnation, Profile, Term, Timestamp, WorkerId};

/// Why coordination failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or did not answer in time. Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It answered, and will answer the same again: credentials, paths, names.
    #[error("{0}")]
    Refused(String),
    /// A live session holds the name.
    #[error("the name {name} is taken: {by}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who holds it, as far as its node tells: host, process, session, since when.
        by: String,
    },
    /// The session this was asked of is over, or the lock of the leader is not held any more.
    #[error("the session is over: {0}")]
    Lost(String),
}

/// What a lease opens and shuts: the worker's gate, or the leader's right to answer.
pub trait Guard: Send + Sync + 'static {
    /// The lease stands until `until` (boot-time clock). An earlier moment than the present one changes nothing.
    fn extend(&self, until: Timestamp);
    /// The life is over: nothing passes any more, for ever.
    fn shut(&self);
}

/// The group of workers, for one of them.
#[async_trait]
pub trait Group: fmt::Debug + Send + Sync + 'static {
    /// Takes the worker's name and begins a life, once. Waits, within a bound, for what an earlier life under this name
    /// left behind; what an earlier life of this very process left is removed at once, its guard being shut. The life is
    /// sealed with `seal` where others can read it; embedded, the leader seals it by the first `Hello`.
    ///
    /// # Errors
    /// [`Error::NameTaken`] when a live session keeps the name beyond that bound; [`Error::Unavailable`] and
    /// [`Error::Refused`] otherwise. Cancel-safe: a dropped call leaves no node behind for longer than a session lasts.
    async fn join(
        &self,
        profile: &Profile,
        seal: LifeSeal,
        guard: Arc<dyn Guard>,
    ) -> Result<Box<dyn MemberSession>, Error>;

    /// Addresses of coordinators, the leader's first, as far as they are known now.
    fn coordinators(&self) -> watch::Receiver<Vec<String>>;

    /// How long to wait, beyond the lease of whoever had it, for a name to become free that the leader gives (embedded).
    fn name_timeout(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// One life of a worker. Dropping it shuts the guard, then closes the session.
#[async_trait]
pub trait MemberSession: fmt::Debug + Send + Sync + 'static {
    /// Which life it is; `None` when the leader gives it at `Hello` (embedded).
    fn incarnation(&self) -> Option<Incarnation>;

    /// How long this worker may act after a heartbeat.
    fn lease(&self) -> Duration;

    /// Whether heartbeats ride on the stream to the leader (embedded): then the session sends them and extends the guard,
    /// otherwise the life does both itself.
    fn beats_on_stream(&self) -> bool {
        self.incarnation().is_none()
    }

    /// Waits until the life is over; the guard is shut by then. For ever when it never ends by itself (embedded).
    /// Cancel-safe.
    async fn ended(&self) -> MembershipEnd;

    /// Ends the life: the guard is shut, the nodes are removed, the session is closed. Takes as long as the service takes
    /// to answer, which the caller bounds; cut short, the nodes go when the session expires.
    async fn leave(self: Box<Self>);
}

/// A coordinator, most often the leader, as others find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its name.
    pub id: CoordinatorId,
    /// Address of its APIs, such as `https://host:7470`; empty when it published none.
    pub address: String,
}

/// A coordinator's part.
#[async_trait]
pub trait Candidate: fmt::Debug + Send + Sync + 'static {
    /// Waits until this coordinator is elected. Keeps the coordinator's membership alive meanwhile, through as many
    /// sessions as it takes. Cancel-safe: dropping it stops contending.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::NameTaken`], which waiting cannot mend.
    async fn campaign(&self) -> Result<Box<dyn Leadership>, Error>;

    /// Who leads, as far as is known; `None` when nobody does or nobody can tell. Names this coordinator as well.
    fn leader(&self) -> watch::Receiver<Option<Leader>>;

    /// Every coordinator that is there, the leader first, as far as is known now; this one among them.
    fn coordinators(&self) -> watch::Receiver<Vec<Leader>>;

    /// Leaves the group and closes the session.
    async fn leave(&self);
}

/// A new term, and what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The term; higher than `above` and than every one the service had.
    pub term: Term,
    /// What the service had; `None` when it had none: it is new, or was wiped.
    pub found: Option<Term>,
}

/// The elected leader's part. Dropping it gives the leadership up without waiting.
#[async_trait]
pub trait Leadership: fmt::Debug + Send + Sync + 'static {
    /// Writes a new term above `above` and above the service's own, provided that this leadership still stands.
    ///
    /// # Errors
    /// [`Error::Lost`] when it does not stand; [`Error::Unavailable`] when nobody can tell: campaign again.
    async fn raise_term(&self, above: Term) -> Result<Raised, Error>;

    /// Cancelled as soon as the leadership is lost, or in doubt: its session is over, its lock is gone, or its own
    /// heartbeats did not commit for as long as a lease.
    fn lost(&self) -> CancellationToken;

    /// What becomes of the workers' nodes from now on, each with the moment it reached this process; begins with a
    /// [`RosterEvent::Read`]. `None` when the leader itself is the authority (embedded). To be called once, after the term was
    /// raised.
    fn roster(&self) -> Option<mpsc::Receiver<(Timestamp, RosterEvent)>>;

    /// Writes `evicted` over the lease node of a life, so that no further heartbeat of it can commit. Also fine when the
    /// node is gone, or is another life's. The roster says [`RosterEvent::Ended`] when it is done.
    fn evict(&self, worker: WorkerId, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>>;

    /// Gives the leadership up so that others can take it at once. The coordinator stays a member of its group.
    async fn resign(self: Box<Self>);
}
