//! The leader's end: commands as they wait for it, and how it tells that changes have settled.

use std::sync::Arc;

use common::execution::ExecStep;
use common::inquiry::LogQuery;
use common::telemetry::TelemetryOrder;
use common::{ApplianceId, Incarnation, ModeId, ProcessIdentity, RebalanceId, Site, WorkerId};
use coordinator_core::orders::OrderOp;
use coordinator_core::rollout::RolloutOrder;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use super::{
    Changed, CommandError, ConfigReload, ExecAnswered, ExecRequest, ExecutionRef, LogRead, Mutation, NewMode,
    NewRollout, Operator, PlanAssumptions, PlanPart, ShownPlan,
};
use crate::tuning::TuningChange;
use crate::views::{BudgetStatus, Explanation, ModeList, ModeView, PlanView, RolloutView};

/// Where the answer to a command goes. A caller that has given up drops the other end.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// What is asked of the leader.
#[derive(Debug)]
pub enum Command {
    /// Change the stored appliances. The leader admits it (see [`crate::admission`]), makes it durable, commits it, and
    /// answers.
    Change {
        /// What to change.
        mutation: Arc<Mutation>,
        /// The call, for its trace.
        caller: Span,
        /// When the caller waits no more.
        deadline: Instant,
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
    /// Have the owner read a part of what an instance has printed.
    ReadLog {
        /// Which part.
        query: Box<LogQuery>,
        /// When the caller waits no more.
        deadline: Instant,
        /// Answered when the owner has.
        reply: Reply<LogRead>,
    },
    /// Have the owner run a command in an instance.
    Execute {
        /// Which command, in which instance.
        asked: Box<ExecRequest>,
        /// For the audit trail.
        request: Operator,
        /// When the caller waits no more.
        deadline: Instant,
        /// Answered when it is begun, or refused.
        reply: Reply<ExecAnswered>,
    },
    /// Go on with a command in an instance.
    GoOnExecuting {
        /// The appliance.
        appliance: ApplianceId,
        /// The command.
        execution: ExecutionRef,
        /// What is asked about it.
        step: Box<ExecStep>,
        /// When the caller waits no more.
        deadline: Instant,
        /// Answered when the worker has.
        reply: Reply<ExecAnswered>,
    },
    /// Have a process read its configuration again.
    ReloadConfig {
        /// The worker; this coordinator when absent.
        worker: Option<WorkerId>,
        /// For the audit trail.
        request: Operator,
        /// When the caller waits no more.
        deadline: Instant,
        /// Answered when it has.
        reply: Reply<ConfigReload>,
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
    /// The process of a worker has ended: it need not be waited for.
    Witness {
        /// The worker; a life of another one that published this process is not meant.
        worker: WorkerId,
        /// The process.
        process: ProcessIdentity,
        /// Who saw it, for people.
        by: String,
        /// Answered when it was heard.
        reply: Reply<()>,
    },
    /// Neither show nor wait for a worker any more that is lost or has left.
    Forget {
        /// The worker.
        worker: WorkerId,
        /// For the audit trail.
        request: Operator,
        /// Answered when the catalog shows it no more.
        reply: Reply<()>,
    },
    /// Free an appliance from the site it is bound to.
    Unbind {
        /// The appliance.
        appliance: ApplianceId,
        /// Only from this site; from whichever it is bound to when absent.
        site: Option<Site>,
        /// For the audit trail.
        request: Operator,
        /// Answered with the site it was bound to, once the store has that it is not, and the catalog shows it.
        reply: Reply<Option<Site>>,
    },
    /// Set a debug mode.
    SetMode {
        /// What it covers, and for how long.
        mode: NewMode,
        /// Why, and who asks.
        request: Operator,
        /// When the answer is given although the mode has not taken hold everywhere.
        until: Instant,
        /// Answered when it has taken hold, or with how far it is.
        reply: Reply<ModeView>,
    },
    /// End a debug mode.
    ClearMode {
        /// Its name.
        mode: ModeId,
        /// For the audit trail.
        request: Operator,
        /// Answered when that is stored.
        reply: Reply<()>,
    },
    /// How far a debug mode has taken hold.
    Mode {
        /// Its name.
        mode: ModeId,
        /// Answered at once.
        reply: Reply<ModeView>,
    },
    /// The debug modes, in the order of their names.
    Modes {
        /// Those after this one.
        after: Option<ModeId>,
        /// Most of them.
        most: usize,
        /// Answered at once.
        reply: Reply<ModeList>,
    },
    /// Start a rollout.
    StartRollout {
        /// What is done to which appliances.
        new: Box<NewRollout>,
        /// Why, and who asks.
        request: Operator,
        /// Answered when it is stored.
        reply: Reply<RolloutView>,
    },
    /// Hold a rollout, have it go on, or end it.
    OrderRollout {
        /// Its name.
        rollout: Uuid,
        /// What is asked for.
        order: RolloutOrder,
        /// Why, and who asks.
        request: Operator,
        /// Answered when that is stored.
        reply: Reply<RolloutView>,
    },
    /// How far a rollout is.
    Rollout {
        /// Its name.
        rollout: Uuid,
        /// Answered at once.
        reply: Reply<RolloutView>,
    },
    /// All rollouts that are kept, the newest first.
    Rollouts {
        /// Answered at once.
        reply: Reply<Vec<RolloutView>>,
    },
    /// Stop planning, or moves alone, until [`Resume`](Self::Resume).
    Pause {
        /// What has no owner still gets one.
        moves_only: bool,
        /// The reason is shown in [`PausedView`](crate::views::PausedView).
        request: Operator,
        /// Answered when it is in force and the catalog shows it.
        reply: Reply<()>,
    },
    /// Have a rebalance end with the moves that are under way, and stop moves until [`Resume`](Self::Resume).
    AbortRebalance {
        /// Which; the one that runs when absent.
        rebalance: Option<RebalanceId>,
        /// Why, and who asks.
        request: Operator,
        /// Answered with the rebalance, when it is in force.
        reply: Reply<RebalanceId>,
    },
    /// How each budget of disruption stands.
    Budgets {
        /// Answered at once.
        reply: Reply<Vec<BudgetStatus>>,
    },
    /// Give orders about placement, or take them back.
    Order {
        /// All of them, or none.
        ops: Vec<OrderOp>,
        /// Also where a drain leaves appliances that no other worker can take.
        force: bool,
        /// For the audit trail, and shown with the orders.
        request: Operator,
        /// Answered when they are in force and the catalog shows them.
        reply: Reply<()>,
    },
    /// What would change under assumptions.
    Plan {
        /// What is taken for given.
        assumptions: Arc<PlanAssumptions>,
        /// Which moves of it.
        part: PlanPart,
        /// Answered at once.
        reply: Reply<PlanView>,
    },
    /// Have done what a plan shows.
    ApplyPlan {
        /// What it took for given: orders.
        assumptions: Arc<PlanAssumptions>,
        /// The plan as it was shown.
        shown: ShownPlan,
        /// As for [`Order`](Self::Order).
        force: bool,
        /// For the audit trail, and shown with the orders.
        request: Operator,
        /// Answered when its orders are in force.
        reply: Reply<()>,
    },
    /// Change what processes log or sample.
    Tune {
        /// Name of a coordinator or worker; all of them when empty.
        process: String,
        /// What changes.
        change: TuningChange,
        /// For the audit trail.
        request: Operator,
        /// Answered with all orders in force, once workers that are connected were told.
        reply: Reply<Vec<(String, TelemetryOrder)>>,
    },
    /// What processes log and sample by order.
    Tuning {
        /// Answered at once.
        reply: Reply<Vec<(String, TelemetryOrder)>>,
    },
    /// End a pause, and a freeze after a loss of sight.
    Resume {
        /// For the audit trail.
        request: Operator,
        /// Answered when planning goes on and the catalog shows it.
        reply: Reply<()>,
    },
}

impl Command {
    /// Answers with `error` instead of carrying it out.
    pub fn fail(self, error: CommandError) {
        match self {
            Self::Change { reply, .. } => drop(reply.send(Err(error))),
            Self::ReadLog { reply, .. } => drop(reply.send(Err(error))),
            Self::Execute { reply, .. } | Self::GoOnExecuting { reply, .. } => drop(reply.send(Err(error))),
            Self::ReloadConfig { reply, .. } => drop(reply.send(Err(error))),
            Self::Explain { reply, .. } => drop(reply.send(Err(error))),
            Self::SetMode { reply, .. } | Self::Mode { reply, .. } => drop(reply.send(Err(error))),
            Self::Modes { reply, .. } => drop(reply.send(Err(error))),
            Self::StartRollout { reply, .. } | Self::OrderRollout { reply, .. } | Self::Rollout { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Rollouts { reply } => drop(reply.send(Err(error))),
            Self::AbortRebalance { reply, .. } => drop(reply.send(Err(error))),
            Self::Budgets { reply } => drop(reply.send(Err(error))),
            Self::Unbind { reply, .. } => drop(reply.send(Err(error))),
            Self::Plan { reply, .. } => drop(reply.send(Err(error))),
            Self::Tune { reply, .. } | Self::Tuning { reply } => drop(reply.send(Err(error))),
            Self::Check { reply, .. }
            | Self::ClearMode { reply, .. }
            | Self::Evict { reply, .. }
            | Self::Witness { reply, .. }
            | Self::Forget { reply, .. }
            | Self::Pause { reply, .. }
            | Self::Order { reply, .. }
            | Self::ApplyPlan { reply, .. }
            | Self::Resume { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// The commands that wait for the leader. It outlives terms: a standby refuses what comes.
#[derive(Debug)]
pub struct CommandQueue {
    queue: mpsc::Receiver<Command>,
    settled: Arc<Notify>,
}

impl CommandQueue {
    pub(super) const fn new(queue: mpsc::Receiver<Command>, settled: Arc<Notify>) -> Self {
        Self { queue, settled }
    }

    /// The next command; `None` when nobody can send one any more. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Command> {
        self.queue.recv().await
    }

    /// A command that has come already.
    ///
    /// # Errors
    /// There is none.
    pub fn try_recv(&mut self) -> Result<Command, TryRecvError> {
        self.queue.try_recv()
    }

    /// To be notified whenever a change under way was committed or given up: callers whose change met it ask again.
    #[must_use]
    pub fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.settled)
    }
}
