//! What the services of the admin API and the single writer (the runner) say to each other.
//!
//! Reads need no conversation: they take a short lock on the [`Catalog`](crate::catalog::Catalog). Everything that
//! changes something, or needs the decisions of the core, travels as a [`Command`] through one bounded channel and is
//! answered when it is durable. The history of rebalances is read from the store through [`History`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::{FieldViolation, Name};
use common::{ApplianceId, CoordinatorId, Generation, Incarnation, RebalanceId, Site, Term, Token, WorkerId};
use coordinator_core::health::Health;
use futures::future::BoxFuture;
use proto::convert::admin::{Draft, Target};
use proto::convert::patch::Update;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::catalog::Entry;
use crate::record::{MoveRecord, RebalanceRecord};

/// Commands waiting for the runner. It takes them in batches; a caller that finds the channel full waits, at most until
/// its deadline.
pub const COMMAND_QUEUE: usize = 1024;

/// Where the answer to a command goes. A caller that has given up drops the other end.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// What a service asks of the runner.
#[derive(Debug)]
pub enum Command {
    /// Change the stored appliances. The runner calls [`Catalog::prepare`](crate::catalog::Catalog::prepare), makes
    /// the result durable, commits it, and answers.
    Change {
        /// What to change.
        mutation: Arc<Mutation>,
        /// Answered when it is durable.
        reply: Reply<Changed>,
    },
    /// Have the owner probe an appliance now.
    Check {
        /// The appliance.
        appliance: ApplianceId,
        /// Answered when the owner's report is in the catalog.
        reply: Reply<()>,
    },
    /// Why an appliance is where it is.
    Explain {
        /// The appliance.
        appliance: ApplianceId,
        /// Answered at once.
        reply: Reply<Explanation>,
    },
    /// End the lease of one life of a worker.
    Evict {
        /// The worker.
        worker: WorkerId,
        /// Only this life of it; the present one when absent.
        incarnation: Option<Incarnation>,
        /// For the audit trail.
        request: Operator,
        /// Answered when no further heartbeat of that life can count, and the catalog shows it.
        reply: Reply<()>,
    },
    /// Stop all planning, until [`Resume`](Self::Resume).
    Pause {
        /// The reason is shown in [`ClusterView::paused`].
        request: Operator,
        /// Answered when it is in force and the catalog shows it.
        reply: Reply<()>,
    },
    /// End a pause, and a freeze after a loss of sight.
    Resume {
        /// For the audit trail.
        request: Operator,
        /// Answered when planning goes on and the catalog shows it.
        reply: Reply<()>,
    },
}

/// Who asks for an operator's measure, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operator {
    /// Why; may be empty, has at most [`MAX_REASON`] bytes.
    pub reason: String,
    /// Address of the caller.
    pub actor: String,
}

/// Longest reason an operator can give, in bytes.
pub const MAX_REASON: usize = 500;

/// A change of the stored appliances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// What changes.
    pub change: Change,
    /// Check everything and change nothing.
    pub validate_only: bool,
    /// Makes the call idempotent.
    pub request: Option<RequestKey>,
    /// Who asks: address of the caller.
    pub actor: String,
}

/// The caller's id of a call, and a digest of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The caller's id.
    pub id: Uuid,
    /// Digest of the content; a repeat with another is refused.
    pub digest: [u8; 16],
}

/// What changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new appliance.
    Create {
        /// Its identity, unless the draft has one.
        fresh: ApplianceId,
        /// What it shall be.
        draft: Box<Draft>,
    },
    /// Fields of an appliance; creates it when the update says so.
    Update {
        /// Identity of a new one, unless the draft has one.
        fresh: ApplianceId,
        /// What changes.
        update: Box<Update>,
    },
    /// An appliance is to be removed.
    Delete {
        /// Which.
        target: Target,
        /// Generation it must have.
        expected: Option<Generation>,
        /// One that does not exist is no error.
        allow_missing: bool,
    },
    /// Every instance is to be replaced.
    Rebuild {
        /// Which.
        target: Target,
        /// Image from now on; unchanged when absent.
        image: Option<String>,
    },
}

impl Change {
    /// The word for it in the audit trail.
    #[must_use]
    pub const fn action(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
            Self::Rebuild { .. } => "rebuild",
        }
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The appliance is new.
    Created,
    /// It is different now.
    Changed,
    /// It was so already.
    Unchanged,
}

/// Answer to a change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The appliance afterwards; `None` when there is none, which only a `Delete` can say.
    pub entry: Option<Arc<Entry>>,
    /// What was done.
    pub outcome: Outcome,
}

/// Why a command was not carried out. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Fields that cannot be as they are.
    #[error("{}", FieldList(.0))]
    Invalid(Vec<FieldViolation>),
    /// There is no such appliance.
    #[error("there is no appliance {0}")]
    NotFound(Target),
    /// The name is taken within the tenant.
    #[error("the name {tenant}/{name} is taken by appliance {by}{}", if *.deleting { ", which is being deleted" } else { "" })]
    NameTaken {
        /// The tenant.
        tenant: Name,
        /// The name.
        name: Name,
        /// Who has it.
        by: ApplianceId,
        /// It goes away soon.
        deleting: bool,
    },
    /// There is an appliance with this identity already.
    #[error("there is an appliance {0} already")]
    IdTaken(ApplianceId),
    /// The caller acted on an older state.
    #[error("appliance {appliance} is at generation {}, not {}", current.get(), expected.get())]
    Stale {
        /// The appliance.
        appliance: ApplianceId,
        /// What the caller expected.
        expected: Generation,
        /// What it is.
        current: Generation,
    },
    /// It is being removed and cannot be changed any more.
    #[error("appliance {0} is being deleted")]
    Deleting(ApplianceId),
    /// The request id was used for something else within the last 24 h.
    #[error("request id {0} was used for a call with other content")]
    RequestReused(Uuid),
    /// The request was carried out before, and the appliance is gone since.
    #[error("appliance {0}, which this request was about, is gone")]
    RequestedGone(ApplianceId),
    /// Another change of the same appliance, name or request is being written. Asking again once
    /// [`Catalog::settled`](crate::catalog::Catalog::settled) fires is the caller's part; clients never see this.
    #[error("another change of the same appliance is being written")]
    Contended,
    /// No more appliances fit.
    #[error("there are {0} appliances already, which is the limit of this cluster")]
    Full(usize),
    /// Nobody holds the appliance, so that nobody can look at it.
    #[error("appliance {appliance} has no owner: {reason}")]
    NoOwner {
        /// The appliance.
        appliance: ApplianceId,
        /// Why.
        reason: String,
    },
    /// There is no such worker.
    #[error("there is no worker {0}")]
    NoWorker(WorkerId),
    /// The worker lives another life than the one that was meant.
    #[error("worker {worker} is in another life, {}", current.map_or_else(|| "or none".to_owned(), |i| i.to_string()))]
    OtherLife {
        /// The worker.
        worker: WorkerId,
        /// The one it is in; `None` when it is in none.
        current: Option<Incarnation>,
    },
    /// The worker has no lease that could be ended.
    #[error("worker {0} has no lease: its life is over")]
    NoLease(WorkerId),
    /// The coordination service does not answer; trying again may help.
    #[error("coordination does not answer: {0}")]
    Coordination(String),
    /// This coordinator does not lead.
    #[error("this coordinator does not lead{}", .0.as_ref().map(|l| format!("; {l} does")).unwrap_or_default())]
    NotLeading(Option<CoordinatorId>),
    /// The store cannot be written; trying again may help.
    #[error("the store cannot be written: {0}")]
    Unavailable(String),
    /// The coordinator is stopping.
    #[error("the coordinator is stopping")]
    Stopping,
}

struct FieldList<'a>(&'a [FieldViolation]);

impl fmt::Display for FieldList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("the request is not valid"),
            [first] => write!(f, "{first}"),
            [first, rest @ ..] => write!(f, "{first} (and {} more)", rest.len()),
        }
    }
}

/// Why an appliance is where it is, or is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Ring position of its placement key.
    pub position: u128,
    /// One sentence.
    pub summary: String,
    /// Every member, in ring order of preference.
    pub candidates: Vec<Candidate>,
}

/// A member, as far as one appliance is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub worker: WorkerId,
    /// It could take the appliance.
    pub eligible: bool,
    /// Why it could not, or why it was not chosen; empty for the owner.
    pub reason: String,
    /// Appliances of the same class it holds.
    pub load: u64,
    /// Least it should hold.
    pub floor: u64,
    /// Most it should hold.
    pub ceiling: u64,
}

/// A worker as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its name.
    pub id: WorkerId,
    /// Its life; `None` for one that was only heard of in the store.
    pub incarnation: Option<Incarnation>,
    /// How well it is.
    pub health: Health,
    /// Host it runs on.
    pub host: String,
    /// Where it keeps instances of host-bound drivers; empty when it offers none.
    pub state_dir: String,
    /// Failure zone.
    pub zone: String,
    /// Share of the appliances relative to others.
    pub weight: u32,
    /// Names of the drivers it offers.
    pub drivers: Vec<String>,
    /// Version of the program.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// When news of its last heartbeat came.
    pub last_seen: Option<SystemTime>,
    /// It gives up what it has.
    pub draining: bool,
    /// Its member node is there: it is in the ring.
    pub member: bool,
}

/// Who holds an appliance, in the words of the hand-off machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentView {
    /// State of the hand-off machine.
    pub state: &'static str,
    /// Who holds it, or is being offered it.
    pub worker: Option<WorkerId>,
    /// Token of the grant.
    pub token: Option<Token>,
    /// Why it is there, or is nowhere.
    pub reason: Cow<'static, str>,
    /// Where its instances are kept, once they are bound to it.
    pub site: Option<Site>,
}

impl Default for AssignmentView {
    fn default() -> Self {
        Self { state: "unowned", worker: None, token: None, reason: Cow::Borrowed("new"), site: None }
    }
}

/// A rebalance with its moves, as the leader keeps the latest ones in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceView {
    /// What is stored of it.
    pub record: RebalanceRecord,
    /// Its moves, at most 1,000.
    pub moves: Vec<MoveView>,
}

/// One move, under way or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveView {
    /// What moves.
    pub appliance: ApplianceId,
    /// Who held it.
    pub from: Option<WorkerId>,
    /// Who shall hold it.
    pub to: WorkerId,
    /// Why.
    pub reason: String,
    /// planned, releasing, granting, done, dropped.
    pub state: &'static str,
    /// When it reached that state.
    pub time: SystemTime,
}

/// The cluster as a whole, less what the catalog counts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// This coordinator.
    pub coordinator: CoordinatorId,
    /// The current term.
    pub term: Term,
    /// Whether it leads.
    pub leading: bool,
    /// When this process started.
    pub started: SystemTime,
    /// Why the leader places nothing; empty when it does.
    pub waiting: String,
    /// Moves under way.
    pub moves_in_flight: u64,
    /// What was refused because it contradicts the table.
    pub violations: u64,
    /// Where appliances are stored, without credentials.
    pub store: String,
    /// How the cluster is coordinated, without credentials.
    pub coordination: String,
    /// Whether the coordination service answers.
    pub coordination_state: CoordinationState,
    /// Every coordinator that is known, by name; this one among them.
    pub coordinators: Vec<CoordinatorView>,
    /// Too many workers vanished at once: nothing is moved.
    pub frozen: Option<FrozenView>,
    /// An operator stopped all planning.
    pub paused: Option<PausedView>,
    /// Moves past their deadline.
    pub stalled_moves: u64,
    /// What a person should look at: what differs after a restored database or a wiped ZooKeeper, stored appliances
    /// that cannot be read. The first [`MAX_NOTES`] are shown.
    pub notes: Vec<String>,
    /// What was refused by kind; every kind there is.
    pub violation_kinds: Vec<(&'static str, u64)>,
    /// When something was last refused in this term.
    pub last_violation: Option<SystemTime>,
    /// Appliances without an owner.
    pub unowned: UnownedView,
    /// Appliances whose former owner died while it held them.
    pub suspects: u64,
    /// Those of them that nobody is granted any more.
    pub quarantined: u64,
    /// Why the store takes no changes.
    pub store_problem: Option<String>,
}

/// Appliances that nobody acts on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnownedView {
    /// How many.
    pub appliances: u64,
    /// Those without an owner for longest, at most [`MAX_UNOWNED`], the longest first.
    pub oldest: Vec<UnownedAppliance>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnownedAppliance {
    /// Its identity.
    pub id: ApplianceId,
    /// Its tenant.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// Since when it has no owner, as far as the leader knows.
    pub since: SystemTime,
    /// State of the hand-off machine.
    pub state: &'static str,
    /// Why it is in it.
    pub reason: Cow<'static, str>,
}

/// Most appliances without an owner that are shown with the cluster.
pub const MAX_UNOWNED: usize = 10;

/// Most notes that are shown.
pub const MAX_NOTES: usize = 20;

/// Most names of missing workers that are shown.
pub const MAX_MISSING: usize = 20;

/// Whether the coordination service answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CoordinationState {
    /// It does; also what embedded coordination always says.
    #[default]
    Connected,
    /// Not for a while: this leader may be about to step down.
    InDoubt,
}

/// A coordinator as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorView {
    /// Its name.
    pub id: CoordinatorId,
    /// Address of its APIs; empty when it told none.
    pub address: String,
    /// It is the one that leads.
    pub leading: bool,
}

/// A freeze after a loss of sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenView {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// Who vanished, by name. The first [`MAX_MISSING`] are shown, and the number of all.
    pub missing: Vec<WorkerId>,
}

/// An operator's stop of all planning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausedView {
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// Who asked for it.
    pub by: String,
}

/// An answer from the history, once it comes.
pub type HistoryAnswer<'a, T> = BoxFuture<'a, Result<T, HistoryError>>;

/// Reads of what is not kept in memory. The store implements it.
pub trait History: Send + Sync + 'static {
    /// Rebalances before `before`, newest first, at most `limit`.
    fn rebalances(&self, before: Option<RebalanceId>, limit: u64) -> HistoryAnswer<'_, Vec<RebalanceRecord>>;

    /// One rebalance and its moves.
    fn rebalance(&self, id: RebalanceId) -> HistoryAnswer<'_, Option<(RebalanceRecord, Vec<MoveRecord>)>>;

    /// Latest moves of an appliance, newest first, at most `limit`.
    fn moves_of(&self, appliance: ApplianceId, limit: u64) -> HistoryAnswer<'_, Vec<MoveRecord>>;
}

/// The store could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the history: {0}")]
pub struct HistoryError(pub String);
