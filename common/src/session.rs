//! What a worker and the leading coordinator send each other, as domain types.
//!
//! One vocabulary for both cores, the wire conversion in `proto`, the simulator and the model. A conversation is one
//! stream: the worker sends [`Hello`], the leader answers with [`Welcome`]; from then on the leader sends [`Delta`]s and
//! [`Confirm`]s, the worker [`Ack`]s and [`Report`]s. Every message travels with an [`Envelope`] that names the
//! conversation; a receiver drops what names another one.
//!
//! Messages are whole here. Where the wire splits a long one into several, `proto::convert` and the shells split and join.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::appliance::{Name, Spec};
use crate::driver::DriverName;
use crate::mode::{Mode, Quiet, WouldHave};
use crate::secret::LifeSecret;
use crate::status::{Progress, Status};
use crate::{ApplianceId, Digest, Edition, Incarnation, Profile, RebalanceId, StreamNumber, Term, Token, WorkerId};

/// Most entries of one message on the wire, over all of its lists. What does not fit follows in further messages.
pub const MAX_ENTRIES_PER_MESSAGE: usize = 1_000;

/// One life of one worker: its stable name, and the incarnation that tells this run from earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life {
    /// Name of the worker.
    pub worker: WorkerId,
    /// Which life of that name.
    pub incarnation: Incarnation,
}

impl Life {
    /// The life `incarnation` of `worker`.
    #[must_use]
    pub const fn new(worker: WorkerId, incarnation: Incarnation) -> Self {
        Self { worker, incarnation }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.worker, self.incarnation)
    }
}

/// Which conversation a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Term of the leader that sends the message, or that it is meant for. In a [`Hello`], the highest term the worker
    /// ever saw.
    pub term: Term,
    /// Life of the worker. `None` before it has one: in the first [`Hello`] of a worker whose incarnation is assigned by
    /// the coordinator (embedded), and in the refusal of it.
    pub incarnation: Option<Incarnation>,
    /// Number of the stream within the life.
    pub stream: StreamNumber,
}

/// One grant: the right to act on `appliance`, under `token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Token of the grant.
    pub token: Token,
}

impl GrantRef {
    /// The grant of `appliance` under `token`.
    #[must_use]
    pub const fn new(appliance: ApplianceId, token: Token) -> Self {
        Self { appliance, token }
    }
}

/// A grant that a worker owns, as its [`Hello`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedGrant {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Token of the grant.
    pub token: Token,
    /// Edition of the specification that the worker works with.
    pub edition: Edition,
    /// Whether hands are off, as far as the worker was told.
    pub mode: Mode,
}

/// What a hand-off takes along from one owner to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carryover {
    /// Attempts, cooldown, step journal.
    pub progress: Progress,
    /// For how long calls of this owner, or of those before it, may still take effect though no token fences them.
    pub fence_delay: Duration,
}

/// A grant given up by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Token it was owned under.
    pub token: Token,
    /// What the next owner needs.
    pub carryover: Carryover,
}

/// An offer that a worker refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Token it was offered under.
    pub token: Token,
    /// Why, for people.
    pub reason: String,
}

/// A step of a suspect appliance that changes the world, announced by its owner before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnnouncedStep {
    /// The appliance it changes.
    pub appliance: ApplianceId,
    /// Token of the grant it is done under.
    pub token: Token,
    /// Grows with every step of a worker.
    pub number: u64,
}

/// Digest of the grants a worker owns, sent along with reports, which the leader compares with its table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnedDigest {
    /// Version of the worker's assignments after the newest delta it applied.
    pub applied: u64,
    /// Of every grant the leader made or kept.
    pub digest: Digest,
}

/// What an appliance shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Its name.
    pub name: Name,
    /// Its tenant.
    pub tenant: Name,
    /// Where its instances run.
    pub driver: DriverName,
    /// Edition of `spec`; its generation is also raised by `deleting` and `revision`.
    pub edition: Edition,
    /// Raised by each rebuild; instances of a lower revision are replaced.
    pub revision: u64,
    /// It shall be removed to the last trace.
    pub deleting: bool,
    /// What it does.
    pub spec: Spec,
}

/// First message of a stream: who the worker is, and everything it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub worker: WorkerId,
    /// What it publishes about itself.
    pub profile: Profile,
    /// Every grant it owns.
    pub owned: Vec<OwnedGrant>,
    /// Releases that were not confirmed yet, also from before this stream.
    pub released: Vec<Release>,
    /// Removals that were not confirmed yet.
    pub removed: Vec<GrantRef>,
    /// Highest term it ever saw, or that what an appliance runs on claims to have seen.
    pub highest_term: Term,
    /// What proves that it speaks for its life; `None` from workers of a version before secrets.
    pub secret: Option<LifeSecret>,
    /// It keeps hands off where it is told so; workers of a version before debug modes do not.
    pub knows_modes: bool,
}

/// What became of what the leader asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Version of the worker's assignments after the newest delta it applied.
    pub applied: u64,
    /// Offers it took.
    pub granted: Vec<GrantRef>,
    /// Offers it refused.
    pub declined: Vec<Declined>,
    /// Grants it gave up: it does not act on them any more.
    pub released: Vec<Release>,
    /// Grants whose appliance it removed to the last trace.
    pub removed: Vec<GrantRef>,
    /// Steps of suspects it wants to begin; each waits until a [`Confirm`] names it.
    pub begun: Vec<AnnouncedStep>,
    /// Announced steps that have ended, or will not be begun.
    pub ended: Vec<AnnouncedStep>,
    /// Appliances about which it keeps its hands off from now on.
    pub quiet: Vec<Quiet>,
}

/// State of one appliance, as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Token it is owned under.
    pub token: Token,
    /// What its owner sees.
    pub status: Status,
    /// Newest check this answers; 0 when none.
    pub checked: u64,
    /// Its owner, to whom a rebalance brought it, has now seen how it is.
    pub adopted: bool,
    /// What its owner would have done while hands are off, the newest first; at most [`MAX_WOULD_HAVE`](crate::mode::MAX_WOULD_HAVE).
    pub would_have: Vec<WouldHave>,
}

/// States that changed, and a digest of what the worker owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The newest status of each appliance that changed.
    pub statuses: Vec<StatusReport>,
    /// Absent while an [`Ack`] waits to be sent: it refers to the moment after everything sent before it on this stream.
    pub owned: Option<OwnedDigest>,
}

/// A message from a worker to the leading coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToCoordinator {
    /// The stream was opened.
    Hello(Box<Hello>),
    /// Heartbeat of an embedded lease, with its number.
    Beat(u64),
    /// Answers to deltas, and what else became of grants.
    Ack(Ack),
    /// Statuses and the digest.
    Report(Report),
    /// The worker is about to stop: it takes nothing new and gives up what it owns.
    Drain {
        /// It releases everything by itself, to have it kept for its name.
        hand_back: bool,
    },
    /// It has shut its gate for good: whatever it still owned may be granted to others at once.
    Leave,
}

/// Answer to [`Hello`]: the grants that stand. The worker stops acting on everything else at once and releases it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Owned grants that stand.
    pub keep: Vec<GrantRef>,
    /// How long the lease lasts after a heartbeat that was answered.
    pub lease: Duration,
}

/// One entry of a [`Delta`]. `D` says what the appliance shall be; the machine of the coordinator knows only *that* it is
/// to be sent (`()`), and its shell fills it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeltaEntry<D = Arc<Desired>> {
    /// The appliance is granted.
    Grant {
        /// The appliance.
        appliance: ApplianceId,
        /// Under which token.
        token: Token,
        /// What it shall be.
        desired: D,
        /// What the last owner handed over.
        carryover: Carryover,
        /// A former owner died while it owned this: steps that change the world are to be announced.
        suspect: bool,
        /// Whether hands are off.
        mode: Mode,
    },
    /// Hands are off from now on, or on again.
    Mode {
        /// The appliance.
        appliance: ApplianceId,
        /// Token it is owned under.
        token: Token,
        /// Which.
        mode: Mode,
    },
    /// It shall be given up.
    Release(GrantRef),
    /// It shall be something else.
    Update {
        /// The appliance.
        appliance: ApplianceId,
        /// Token it is owned under.
        token: Token,
        /// What it shall be.
        desired: D,
    },
    /// It shall be probed now.
    Check {
        /// The appliance.
        appliance: ApplianceId,
        /// Token it is owned under.
        token: Token,
        /// Number that the answering report names.
        number: u64,
    },
}

impl<D> DeltaEntry<D> {
    /// The same entry with the wanted state that `desired` finds; `None` where it finds none.
    pub fn fill<E>(self, desired: impl FnOnce(ApplianceId) -> Option<E>) -> Option<DeltaEntry<E>> {
        Some(match self {
            Self::Grant { appliance, token, desired: _, carryover, suspect, mode } => {
                DeltaEntry::Grant { appliance, token, desired: desired(appliance)?, carryover, suspect, mode }
            }
            Self::Mode { appliance, token, mode } => DeltaEntry::Mode { appliance, token, mode },
            Self::Release(grant) => DeltaEntry::Release(grant),
            Self::Update { appliance, token, desired: _ } => {
                DeltaEntry::Update { appliance, token, desired: desired(appliance)? }
            }
            Self::Check { appliance, token, number } => DeltaEntry::Check { appliance, token, number },
        })
    }
}

/// A change of what a worker owns. It applies to one version of the worker's assignments and leads to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<D = Arc<Desired>> {
    /// Version it applies to.
    pub base: u64,
    /// Version it leads to.
    pub target: u64,
    /// Rebalance it belongs to. Not on the wire, which carries the trace context of the rebalance instead.
    pub rebalance: Option<RebalanceId>,
    /// What to do, in order.
    pub entries: Vec<DeltaEntry<D>>,
}

impl<D> ToWorker<D> {
    /// The same message with the wanted states that `desired` finds. Entries of a delta for which it finds none are left
    /// out: those appliances are gone.
    pub fn fill<E>(self, desired: impl Fn(ApplianceId) -> Option<E>) -> ToWorker<E> {
        match self {
            Self::Welcome(welcome) => ToWorker::Welcome(welcome),
            Self::BeatAck(number) => ToWorker::BeatAck(number),
            Self::Delta(Delta { base, target, rebalance, entries }) => {
                let entries = entries.into_iter().filter_map(|entry| entry.fill(&desired)).collect();
                ToWorker::Delta(Delta { base, target, rebalance, entries })
            }
            Self::Confirm(confirm) => ToWorker::Confirm(confirm),
            Self::Refused(refused) => ToWorker::Refused(refused),
            Self::Drained => ToWorker::Drained,
        }
    }
}

/// What the worker need not send again, and what it may begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirm {
    /// Releases and removals that the store has.
    pub released: Vec<GrantRef>,
    /// Announced steps that may begin.
    pub begin: Vec<AnnouncedStep>,
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What kind of reason.
    pub reason: RefusedReason,
    /// Details, for people.
    pub detail: String,
    /// When another try makes sense.
    pub retry_after: Option<Duration>,
}

/// What kind of reason a stream ends for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// One this version does not know.
    Unknown,
    /// The incarnation's lease is over: come back in another life.
    IncarnationOver,
    /// Another process with this name has a live lease.
    NameTaken,
    /// This coordinator does not lead (any more).
    NotLeading,
    /// A message cannot be used.
    Malformed,
    /// A newer stream of the same worker took over.
    Superseded,
    /// The coordinator is stopping.
    Stopping,
    /// What the worker owns differs from the leader's table: it has to send [`Hello`] again.
    AssignmentsDiffer,
    /// Nothing proves that the worker speaks for the life that it names.
    NotProven,
}

/// A message from the leading coordinator to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToWorker<D = Arc<Desired>> {
    /// Answer to [`Hello`].
    Welcome(Welcome),
    /// The heartbeat of this number counts.
    BeatAck(u64),
    /// A change of what it owns.
    Delta(Delta<D>),
    /// Answer to releases, removals and announced steps.
    Confirm(Confirm),
    /// The stream ends.
    Refused(Refused),
    /// To a worker that drains: nothing more will be taken from it now.
    Drained,
}
