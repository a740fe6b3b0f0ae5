//! What goes into the machine and what comes out of it: events are facts, actions are to be carried out in order.

use std::collections::BTreeMap;
use std::time::Duration;

use common::kind::KindName;
use common::session::{Envelope, RefusedReason, StatusReport, ToCoordinator, ToWorker};
use common::{
    ApplianceId, Edition, Life, ModeId, ModeSubject, RebalanceId, Site, StreamNumber, Term, Timestamp, WorkerId,
};

use super::StreamId;
use super::hands_off::{ModeNumber, ModeOutcome};
use super::unbind::{UnbindNumber, UnbindRefused};
use crate::grants::{GrantOp, StoredGrant, StoredMember};
use crate::membership::{ObservedLease, ObservedMember};
use crate::modes::{ModeOp, StoredMode};
use crate::orders::{OrderOp, Orders};
use crate::rebalance::{RebalanceEvent, UnfinishedRebalance};
use crate::table::Seed;
use crate::unowned::Regained;
use crate::violation::ViolationCounts;

/// Number of one group of writes.
pub type BatchId = u64;

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker sent a message: the stream it came on, which conversation it names, and what it says.
    Received(StreamId, Envelope, ToCoordinator),
    /// Operators give orders about placement, or take them back, and the store has that: all of them, or none.
    Orders(Vec<OrderOp>),
    /// A stream ended.
    Closed(StreamId),
    /// External: every node was read, after the connection was made anew. Nothing counts before the first of these.
    Read {
        /// The member nodes.
        members: BTreeMap<WorkerId, ObservedMember>,
        /// The lease nodes.
        leases: BTreeMap<Life, ObservedLease>,
    },
    /// External: the member nodes, read after one came or went.
    Members(BTreeMap<WorkerId, ObservedMember>),
    /// External: a lease node was read, or a heartbeat seen.
    Observed(Life, ObservedLease),
    /// External: no further heartbeat of this life can arrive; all that did were reported before.
    Over(Life),
    /// An operator wants the lease of a life ended.
    Evict(Life),
    /// The process of a life has ended, as somebody saw who can tell it from every other process. Those of others that ended with it
    /// are seen within this time, for which it is held back.
    Witnessed(Life, Duration),
    /// An operator says that a worker does not come back. One that has a life is not forgotten.
    Forget(WorkerId),
    /// An operator stops planning, or a part of it. The newest one counts.
    Pause(Pause),
    /// An operator lets planning go on, also where the brake holds it.
    Resume,
    /// The store has a batch.
    Durable(BatchId),
    /// The store surely does not have a batch.
    Undone(BatchId),
    /// An appliance was stored.
    Created(Seed),
    /// A stored appliance changed.
    Updated {
        /// The appliance.
        id: ApplianceId,
        /// Its new edition.
        edition: Edition,
        /// What it is now.
        kind: KindName,
        /// About how many bytes its specification has on the wire.
        size: usize,
        /// It is to be removed.
        deleting: bool,
    },
    /// What rules of operators go by about an appliance has changed.
    Labelled(ApplianceId, ModeSubject),
    /// An operator sets a rule: hands off what it covers. Answered by [`Action::Mode`] once the store has it.
    SetMode(StoredMode, ModeNumber),
    /// An operator clears a rule. Answered by [`Action::Mode`] once the store has that.
    ClearMode(ModeId, ModeNumber),
    /// An operator frees an unowned appliance from the site it is bound to, because its host is lost for good.
    Unbind {
        /// The appliance.
        id: ApplianceId,
        /// Only from this site; from whichever it is bound to when absent.
        site: Option<Site>,
        /// Returned with the answer, [`Action::Unbind`].
        number: UnbindNumber,
    },
    /// A client wants an appliance probed now.
    Check(ApplianceId, u64),
    /// Somebody is about to make an appliance unavailable on purpose, after [`Machine::refuses_disruption`](super::Machine::refuses_disruption),
    /// or has not done so after all.
    Disrupt {
        /// The appliance.
        id: ApplianceId,
        /// `false`: it is not about to any more. What it did is seen by the appliance itself.
        begins: bool,
    },
    /// What workers say has waited so long to be read that a lease may seem over which is not.
    FellBehind,
    /// Nothing but time has passed.
    Tick,
}

/// An operator stops planning, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Why.
    pub why: String,
    /// What has no owner is still given one: nothing is taken from a worker that has it.
    pub moves_only: bool,
    /// This rebalance ends with the moves that are under way.
    pub aborts: Option<RebalanceId>,
}

/// When to try again what fails for a reason that is over soon.
const RETRY_SOON: Duration = Duration::from_millis(500);

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The life's lease is over, or was never known.
    IncarnationOver,
    /// Another worker under this name may still act, for at most this long if nothing is heard of it.
    NameTaken(Duration),
    /// A newer stream of the same life took over.
    Superseded,
    /// It does not prove that it speaks for the life that it names.
    NotProven,
    /// The number of its stream is far above any that its life can have come to.
    ImplausibleStream(StreamNumber),
    /// It asks for a life, and more were asked for than are given out at once: another try makes sense after this time.
    Crowded(Duration),
    /// It claims to have met a term far above the leader's.
    ImplausibleTerm(Term),
    /// The store cannot be written now.
    StoreUnavailable,
    /// It names no life, though lives are taken from the coordination service.
    NoLife,
    /// No lease node of this life was seen.
    UnknownLife,
    /// It has met this term, which is not below the leader's, and no term above it is begun before this time has passed.
    TermAhead(Term, Duration),
    /// What it holds differs from the table: it shall say `Hello` again, which settles it.
    Differs,
    /// Its member node was taken away, and it holds nothing any more: it may come back in a new life.
    NotMember,
}

impl Refusal {
    /// What the worker is told.
    #[must_use]
    pub const fn reason(&self) -> RefusedReason {
        match self {
            Self::IncarnationOver | Self::NotMember => RefusedReason::IncarnationOver,
            Self::NameTaken(_) => RefusedReason::NameTaken,
            Self::Superseded => RefusedReason::Superseded,
            Self::ImplausibleTerm(_) | Self::ImplausibleStream(_) | Self::NoLife => RefusedReason::Malformed,
            Self::NotProven => RefusedReason::NotProven,
            Self::StoreUnavailable | Self::UnknownLife | Self::TermAhead(..) | Self::Crowded(_) => {
                RefusedReason::NotLeading
            }
            Self::Differs => RefusedReason::AssignmentsDiffer,
        }
    }

    /// When another try makes sense; at once when `None`.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NameTaken(wait) | Self::TermAhead(_, wait) | Self::Crowded(wait) => Some(*wait),
            Self::StoreUnavailable | Self::UnknownLife => Some(RETRY_SOON),
            Self::IncarnationOver
            | Self::NotMember
            | Self::Superseded
            | Self::ImplausibleTerm(_)
            | Self::ImplausibleStream(_)
            | Self::NotProven
            | Self::NoLife
            | Self::Differs => None,
        }
    }
}

/// Writes to be made in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Changes of ownership.
    pub grants: Vec<GrantOp>,
    /// Members to be stored.
    pub put_members: Vec<StoredMember>,
    /// Members to be removed.
    pub remove_members: Vec<Life>,
    /// Rules that are set and cleared, in order.
    pub modes: Vec<ModeOp>,
}

impl Commit {
    pub(super) fn is_empty(&self) -> bool {
        let members = self.put_members.is_empty() && self.remove_members.is_empty();
        self.grants.is_empty() && members && self.modes.is_empty()
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make durable, then say `Event::Durable` or `Event::Undone`. Batches are committed in order.
    Commit(BatchId, Commit),
    /// Send to a worker, as part of this conversation. Nothing is owed when the stream broke.
    Send(StreamId, Envelope, ToWorker<()>),
    /// End a stream.
    Close(StreamId, Refusal),
    /// Statuses that come from the owners of their appliances: to be stored, and shown to readers.
    Reports(Vec<StatusReport>),
    /// Ownership of an appliance changed, for readers.
    Assigned(ApplianceId),
    /// An appliance is gone for ever and its rows with it.
    Removed(ApplianceId),
    /// The answer to [`Event::Unbind`]: the site that the appliance was bound to, which the store does not have any more;
    /// `None` when it was bound to none.
    Unbind(UnbindNumber, Result<Option<Site>, UnbindRefused>),
    /// The answer to [`Event::SetMode`] and [`Event::ClearMode`]. Of a rule that is in force
    /// [`Machine::mode_progress`](super::Machine::mode_progress) tells how far it has taken hold.
    Mode(ModeNumber, ModeOutcome),
    /// What [`Machine::mode_progress`](super::Machine::mode_progress) tells may be another thing now, for those who wait. It
    /// is after [`Action::Assigned`] as well.
    ModesChanged,
    /// A worker joined, changed or is gone, for readers.
    WorkerChanged(WorkerId),
    /// A life is gone, decided at this moment: others may act on what it held from then on. To be logged.
    Gone(Life, Timestamp),
    /// Event of a rebalance.
    Rebalance(RebalanceEvent),
    /// So many workers died while a step of this appliance ran; no worker is granted it any more.
    Quarantined(ApplianceId, u32),
    /// A worker owns, or reports, what contradicts the table. To be logged and counted.
    Violation(String),
    /// Write over the lease node of a life, so that no further heartbeat of it commits.
    Evict(Life),
    /// A worker, which speaks for its life, had met this term of another leader.
    Met(Term),
    /// A higher term was met: begin a new one above it. Nothing this machine does counts any more.
    RaiseTerm(TermClaim),
}

/// A worker says that it has met a term that the leader's does not lie above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermClaim {
    /// The term.
    pub met: Term,
    /// The worker.
    pub by: WorkerId,
}

/// What a step leads to.
#[derive(Debug, Default)]
pub struct Output {
    /// To be carried out in order.
    pub actions: Vec<Action>,
    /// When to send `Event::Tick` at the latest.
    pub wake_at: Option<Timestamp>,
    /// Appliances that had no owner and got one in this step.
    pub regained: Vec<Regained>,
}

/// What the leader starts from.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Every appliance with what the store knows of its ownership.
    pub appliances: Vec<(Seed, StoredGrant)>,
    /// Members as of the last change.
    pub members: Vec<StoredMember>,
    /// How long this term lasts at least before a worker that has met a higher one ends it.
    pub raise_after: Duration,
    /// An operator stopped planning, or a part of it, in a term before this one.
    pub paused: Option<Pause>,
    /// The rebalance that the former leader did not end.
    pub unfinished: Option<UnfinishedRebalance>,
    /// Rules that are in force, read in the transaction that raised the term.
    pub modes: Vec<StoredMode>,
    /// Orders about placement, read in the same transaction.
    pub orders: Orders,
}

/// Counters for metrics and `Cluster.Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Contradictions met.
    pub violations: u64,
    /// The same by kind.
    pub kinds: ViolationCounts,
    /// Messages dropped because they named another stream, life or term.
    pub stale_messages: u64,
    /// Plans made.
    pub plans: u64,
}
