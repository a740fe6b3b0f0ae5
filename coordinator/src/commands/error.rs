//! Why a command was not carried out.

use std::fmt;

use common::appliance::{FieldViolation, Name};
use common::change::ApplianceTarget;
use common::driver::DriverName;
use common::manager::Manager;
use common::{ApplianceId, CoordinatorId, Generation, Incarnation, ModeId, RebalanceId, Site, WorkerId};
use coordinator_core::budget::{BudgetSpent, MAX_BUDGETS};
use coordinator_core::orders::{MAX_PINS, MAX_WORKER_ORDERS};
use coordinator_core::rollout::OrderRefused;
use uuid::Uuid;

/// Why a command was not carried out. Nothing was changed, unless the variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Fields that cannot be as they are.
    #[error("{}", FieldList(.0))]
    Invalid(Vec<FieldViolation>),
    /// There is no such appliance.
    #[error("there is no appliance {0}")]
    NotFound(ApplianceTarget),
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
    #[error("the request id was used for a call with other content")]
    RequestReused(Uuid),
    /// The request was carried out before, and the appliance is gone since.
    #[error("appliance {0}, which this request was about, is gone")]
    RequestedGone(ApplianceId),
    /// Another change of the same appliance, name, port or request is being written. [`Commands`](super::Commands) asks
    /// again once it has settled; callers never see this.
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
    /// What an instance has printed cannot be read now.
    #[error("appliance {appliance}: what it printed cannot be read: {why}")]
    NoLog {
        /// The appliance.
        appliance: ApplianceId,
        /// Why.
        why: String,
    },
    /// Where its instances run keeps nothing of what they print.
    #[error("appliance {appliance}: its driver `{driver}` keeps no output of instances")]
    KeepsNoLogs {
        /// The appliance.
        appliance: ApplianceId,
        /// The driver.
        driver: DriverName,
    },
    /// A command is not run in an instance, or it is not known how it ended. It does not run any more.
    #[error("appliance {appliance}: the command cannot be run: {why}")]
    NotExecuted {
        /// The appliance.
        appliance: ApplianceId,
        /// Why.
        why: String,
    },
    /// A worker was not asked, or has not answered.
    #[error("worker {worker}: {why}")]
    NoAnswer {
        /// The worker.
        worker: WorkerId,
        /// Why.
        why: String,
    },
    /// A source manages the appliance, and a client wants to change it.
    #[error("appliance {appliance} is managed by `{by}`; change it there, or use --force")]
    Managed {
        /// The appliance.
        appliance: ApplianceId,
        /// The source.
        by: Manager,
    },
    /// A source wants to change an appliance that it does not manage.
    #[error("appliance {appliance} is not managed by `{source_name}`")]
    NotManaged {
        /// The appliance.
        appliance: ApplianceId,
        /// The source that asks.
        source_name: Manager,
    },
    /// A worker may own the appliance, so that it is not freed from its host.
    #[error("appliance {appliance} may be owned: {reason}")]
    MayBeOwned {
        /// The appliance.
        appliance: ApplianceId,
        /// By which worker, and for how long if that is known.
        reason: String,
    },
    /// The appliance is bound to another site than the one that was meant.
    #[error("appliance {appliance} is bound to {site}")]
    OtherSite {
        /// The appliance.
        appliance: ApplianceId,
        /// Where it is bound to.
        site: Site,
    },
    /// Without its host an appliance could come to where its ports are taken.
    #[error(
        "appliance {appliance} could come to the same host as another one once it is bound to none: {problem}; change one of them first"
    )]
    PortTaken {
        /// The appliance.
        appliance: ApplianceId,
        /// The port, and the other appliance.
        problem: String,
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
    /// The worker may act: it is alive, or its lease is not over.
    #[error(
        "worker {0} has a lease, so it is not gone: it can be forgotten once that is over, at most 1.15 times the lease after it was lost or \
         evicted; stop one that runs, and evict one that cannot be reached"
    )]
    HasLease(WorkerId),
    /// There is no such rollout.
    #[error("there is no rollout {0}, or it is kept no longer")]
    NoRollout(Uuid),
    /// There is a rollout of this name that does something else.
    #[error("rollout {0} does something else")]
    RolloutIdTaken(Uuid),
    /// There are as many rollouts as there may be.
    #[error("there are {0} rollouts that have not ended, which is the limit")]
    TooManyRollouts(usize),
    /// More appliances are selected than one rollout may have.
    #[error("more than {0} appliances are selected, which is the limit of one rollout")]
    RolloutTooLarge(usize),
    /// What is asked of a rollout does not fit how far it is.
    #[error("rollout {0}: {1}")]
    RolloutRefused(Uuid, OrderRefused),
    /// There is no such debug mode.
    #[error("there is no debug mode {0}: it was cleared, or has expired")]
    NoMode(ModeId),
    /// There is a debug mode of this name that covers something else.
    #[error("debug mode {0} covers something else")]
    ModeIdTaken(ModeId),
    /// There are as many debug modes as there may be.
    #[error("there are {0} debug modes already, which is the limit")]
    ModesFull(usize),
    /// Under strategy `ring` an order has no meaning.
    #[error(
        "the strategy is `ring`, under which the ring alone decides: {0} can be drained, not cordoned, weighted or pinned to"
    )]
    RingDecides(String),
    /// No other worker can take what a worker has.
    #[error(
        "worker {worker} is the only one that can take {what}; with --force it is drained all the same, and they stay"
    )]
    LastAble {
        /// The worker.
        worker: WorkerId,
        /// What it alone can take, and how many.
        what: String,
    },
    /// A worker lacks what an appliance needs.
    #[error("worker {worker} cannot take appliance {appliance}: {why}")]
    CannotTake {
        /// The appliance.
        appliance: ApplianceId,
        /// The worker.
        worker: WorkerId,
        /// What it lacks.
        why: String,
    },
    /// There are as many orders as there may be.
    #[error(
        "there are {MAX_WORKER_ORDERS} orders about workers, {MAX_PINS} pins, or {MAX_BUDGETS} budgets, which is all there may be: take some back"
    )]
    TooManyOrders,
    /// A budget of disruption has no room.
    #[error("appliance {appliance} is not made unavailable: {spent}; with --force it is all the same")]
    BudgetSpent {
        /// The appliance.
        appliance: ApplianceId,
        /// The budget, and how it stands.
        spent: BudgetSpent,
    },
    /// There is no such rebalance that runs.
    #[error("{}", .0.map_or_else(|| "no rebalance runs".to_owned(), |id| format!("rebalance {id} does not run (any more)")))]
    NotRebalancing(Option<RebalanceId>),
    /// A rebalance has not ended.
    #[error("rebalance {0} runs: abort it first")]
    StillRebalancing(RebalanceId),
    /// A plan that was shown would be another one now.
    #[error("the plan was made from {planned}, and now it would be {current}: nothing was changed; plan again")]
    StalePlan {
        /// The version of the table it was made from, or its id.
        planned: String,
        /// The same as it is now.
        current: String,
    },
    /// A plan cannot be applied.
    #[error("this plan cannot be applied: {0}")]
    NotAppliable(String),
    /// This coordinator does not lead.
    #[error("this coordinator does not lead{}", .0.as_ref().map(|l| format!("; {l} does")).unwrap_or_default())]
    NotLeading(Option<CoordinatorId>),
    /// The store cannot be written; trying again may help.
    #[error("the store cannot be written: {0}")]
    Unavailable(String),
    /// The coordinator is stopping.
    #[error("the coordinator is stopping")]
    Stopping,
    /// The leader did not answer before the deadline. The change may still be made.
    #[error("no answer before the deadline; the call may still be carried out")]
    DeadlineExceeded,
    /// The leader ended before it answered. The change may have been made.
    #[error("the coordinator stopped before it answered; the call may have been carried out")]
    Unanswered,
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
