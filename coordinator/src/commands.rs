//! The one way to change something, or to have the leader decide: [`Commands`], used by the admin services and by
//! whatever else changes appliances.
//!
//! Callers give domain values, who asks and until when, and get domain errors. Behind the handle are the queue of the
//! leader, the retry after a change that met another one under way, and the idempotency of request ids: a call with the
//! [`RequestKey`] of one that was carried out within the last 24 h answers as that did. Reads need no command: they take a
//! short lock on the catalog.

mod change;
mod error;
mod plan;
mod queue;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::execution::{ExecAnswer, ExecStep};
use common::inquiry::{LogPart, LogQuery};
use common::mode::ModeScope;
use common::reload::Reloaded;
use common::telemetry::TelemetryOrder;
use common::{ApplianceId, Incarnation, ModeId, ProcessIdentity, RebalanceId, Site, WorkerId, text};
use coordinator_core::machine::StreamId;
use coordinator_core::orders::OrderOp;
use coordinator_core::rollout::{RolloutAction, RolloutOrder, RolloutPolicy};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::Span;
use uuid::Uuid;

use crate::metrics;
use crate::tuning::TuningChange;
use crate::views::{BudgetStatus, Explanation, ModeList, ModeView, PlanView, RolloutView};

pub use crate::access::Scope;
pub use change::{Change, ChangeOrigin, ChangeOutcome, Changed, Mutation, RequestKey};
pub use error::CommandError;
pub use plan::{Joiner, PlanAssumptions, PlanPart, ShownPlan};
pub use queue::{Command, CommandQueue, Reply};

/// Commands that wait for the leader. It takes them in batches; a caller that finds the queue full waits, at most until
/// its deadline.
const QUEUE: usize = 1024;

/// Longest reason an operator can give, in bytes.
const MAX_REASON: usize = 500;

/// How much before the deadline of a call the leader says how far a debug mode is.
const MODE_MARGIN: Duration = Duration::from_millis(200);

/// How long the leader may take to hear a witness.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(5);

/// Who asks, and until when an answer is of use.
#[derive(Clone, Debug)]
pub struct CommandContext {
    /// For the audit trail: address of the caller, or name of the source.
    pub actor: String,
    /// What is not answered by then is [`CommandError::DeadlineExceeded`].
    pub deadline: Instant,
}

/// Why an operator asks for something. It has at most 500 bytes, all plain in the sense of [`common::text`]; it may be
/// empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// Checks a reason.
    ///
    /// # Errors
    /// What is wrong with the field `reason`.
    pub fn new(text: String) -> Result<Self, FieldViolation> {
        text::check(&text, MAX_REASON).map_err(|problem| FieldViolation::new("reason", problem.to_string()))?;
        Ok(Self(text))
    }
}

/// A debug mode to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMode {
    /// Its name.
    pub id: ModeId,
    /// What it covers.
    pub scope: ModeScope,
    /// After which time it ends by itself.
    pub expires_in: Option<Duration>,
}

/// A rollout to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRollout {
    /// Its name.
    pub id: Uuid,
    /// What is done.
    pub action: RolloutAction,
    /// How fast, and when it stops.
    pub policy: RolloutPolicy,
    /// How the appliances were selected, for people.
    pub selection: String,
    /// Also what sources manage.
    pub force: bool,
    /// To which appliances, in this order.
    pub items: Vec<ApplianceId>,
}

/// Part of what an instance has printed, and who read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRead {
    /// The owner of the appliance.
    pub worker: WorkerId,
    /// The part.
    pub part: LogPart,
}

/// A command for an instance.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Position of the instance among the replicas.
    pub ordinal: u16,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may take.
    pub limit: Duration,
}

impl fmt::Debug for ExecRequest {
    /// Without the words, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { appliance, ordinal, limit, .. } = self;
        f.debug_struct("ExecRequest")
            .field("appliance", appliance)
            .field("ordinal", ordinal)
            .field("limit", limit)
            .finish_non_exhaustive()
    }
}

/// A command that was begun, on one stream of its worker: it ends with that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionRef {
    /// Who runs it.
    pub worker: WorkerId,
    /// The stream.
    pub stream: StreamId,
    /// Number of the inquiry that began it.
    pub number: u64,
}

/// What the worker has said about a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecAnswered {
    /// The command.
    pub execution: ExecutionRef,
    /// The answer.
    pub answer: ExecAnswer,
}

/// What a process has found when it read its configuration again: what changed, or why it cannot be used, so that nothing did.
pub type ConfigReload = Result<Reloaded, String>;

/// Who asks for an operator's measure, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operator {
    /// Why; may be empty.
    pub reason: String,
    /// Address of the caller.
    pub actor: String,
}

/// The handle. Clones send to the same leader, whichever term it leads.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: mpsc::Sender<Command>,
    settled: Arc<Notify>,
}

impl Commands {
    /// Shows in metrics how full the queue is.
    pub(crate) fn show_queue(&self) {
        metrics::watch_queue("commands", &self.queue);
    }
}

/// A handle, and the queue that the leader takes its commands from.
#[must_use]
pub fn channel() -> (Commands, CommandQueue) {
    let (queue, received) = mpsc::channel(QUEUE);
    let settled = Arc::new(Notify::new());
    (Commands { queue, settled: Arc::clone(&settled) }, CommandQueue::new(received, settled))
}

impl Commands {
    /// Changes an appliance; answered when the change is durable. After another change of the same appliance, name, port
    /// or request it is tried again, until the deadline. With `validate_only` everything is checked and nothing changes.
    /// `origin` decides what may be changed, and who manages what is created.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn change(
        &self,
        context: &CommandContext,
        origin: ChangeOrigin,
        change: Change,
        validate_only: bool,
        request: Option<RequestKey>,
    ) -> Result<Changed, CommandError> {
        let mutation = Arc::new(Mutation { change, validate_only, request, actor: context.actor.clone(), origin });
        let deadline = context.deadline;
        let command =
            |reply| Command::Change { mutation: Arc::clone(&mutation), caller: Span::current(), deadline, reply };
        self.ask_until_settled(context, command).await
    }

    /// Asks again after each change that was met under way, until the deadline.
    async fn ask_until_settled<T>(
        &self,
        context: &CommandContext,
        command: impl Fn(Reply<T>) -> Command,
    ) -> Result<T, CommandError> {
        loop {
            // Made before the command is sent, so that no change that ends in between is missed.
            let settled = self.settled.notified();
            match self.ask(context, &command).await {
                Err(CommandError::Contended) => {
                    timeout_at(context.deadline, settled).await.map_err(|_| CommandError::DeadlineExceeded)?;
                }
                answer => return answer,
            }
        }
    }

    /// Has the owner probe an appliance now; answered when its report is in the catalog.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn check(&self, context: &CommandContext, appliance: ApplianceId) -> Result<(), CommandError> {
        self.ask(context, |reply| Command::Check { appliance, reply }).await
    }

    /// Why an appliance is where it is.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn explain(&self, context: &CommandContext, appliance: ApplianceId) -> Result<Explanation, CommandError> {
        self.ask(context, |reply| Command::Explain { appliance, reply }).await
    }

    /// Has the owner of an appliance read a part of what an instance has printed.
    ///
    /// # Errors
    /// [`CommandError`]; [`CommandError::NoLog`] when it cannot be read, of which waiting may be a cure.
    pub async fn read_log(&self, context: &CommandContext, query: LogQuery) -> Result<LogRead, CommandError> {
        let deadline = context.deadline;
        self.ask(context, |reply| Command::ReadLog { query: Box::new(query), deadline, reply }).await
    }

    /// Has the owner of an appliance run a command in an instance; answered when it is begun, or refused.
    ///
    /// # Errors
    /// [`CommandError`]; [`CommandError::NotExecuted`] when it is not run.
    pub async fn execute(
        &self,
        context: &CommandContext,
        asked: ExecRequest,
        reason: String,
    ) -> Result<ExecAnswered, CommandError> {
        let request = Operator { reason, actor: context.actor.clone() };
        let deadline = context.deadline;
        self.ask(context, |reply| Command::Execute { asked: Box::new(asked), request, deadline, reply }).await
    }

    /// Goes on with a command in an instance.
    ///
    /// # Errors
    /// [`CommandError`]; after [`CommandError::NotExecuted`] it runs no more.
    pub async fn go_on_executing(
        &self,
        context: &CommandContext,
        appliance: ApplianceId,
        execution: ExecutionRef,
        step: ExecStep,
    ) -> Result<ExecAnswered, CommandError> {
        let deadline = context.deadline;
        let step = Box::new(step);
        self.ask(context, |reply| Command::GoOnExecuting { appliance, execution, step, deadline, reply }).await
    }

    /// Has a worker read its configuration again, or this coordinator when none is named.
    ///
    /// # Errors
    /// [`CommandError`]; [`CommandError::NoAnswer`] when it was not asked, or may have done it and has not answered.
    pub async fn reload_config(
        &self,
        context: &CommandContext,
        worker: Option<WorkerId>,
        reason: Reason,
    ) -> Result<ConfigReload, CommandError> {
        let (request, deadline) = (operator(context, reason), context.deadline);
        self.ask(context, |reply| Command::ReloadConfig { worker, request, deadline, reply }).await
    }

    /// Ends the lease of one life of a worker, the present one unless an incarnation is given; answered when no further
    /// heartbeat of that life can count, and the catalog shows it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn evict(
        &self,
        context: &CommandContext,
        worker: WorkerId,
        incarnation: Option<Incarnation>,
        reason: Reason,
    ) -> Result<(), CommandError> {
        let request = operator(context, reason);
        self.ask(context, |reply| Command::Evict { worker, incarnation, request, reply }).await
    }

    /// Takes in that the process of a worker has ended, as `by` saw, who knows; answered when the leader has heard it. Nobody waits for
    /// the lease of a life that this worker led in this process.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(crate) async fn witness(
        &self,
        worker: WorkerId,
        process: ProcessIdentity,
        by: String,
    ) -> Result<(), CommandError> {
        let context = CommandContext { deadline: Instant::now() + WITNESS_TIMEOUT, actor: String::new() };
        self.ask(&context, |reply| Command::Witness { worker, process, by, reply }).await
    }

    /// Has a worker that is lost or has left neither shown nor waited for any more; answered when the catalog shows that.
    ///
    /// # Errors
    /// [`CommandError`]; [`CommandError::HasLease`] while it may act.
    pub async fn forget(&self, context: &CommandContext, worker: WorkerId, reason: Reason) -> Result<(), CommandError> {
        let request = operator(context, reason);
        self.ask(context, |reply| Command::Forget { worker, request, reply }).await
    }

    /// Frees an appliance from the site that its instances are kept on, or from `site` only, because that host is lost for
    /// good; answered with the site it was bound to, once that is durable.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn unbind(
        &self,
        context: &CommandContext,
        appliance: ApplianceId,
        site: Option<Site>,
        reason: Reason,
    ) -> Result<Option<Site>, CommandError> {
        let request = operator(context, reason);
        let command = |reply| {
            let (site, request) = (site.clone(), request.clone());
            Command::Unbind { appliance, site, request, reply }
        };
        self.ask_until_settled(context, command).await
    }

    /// Sets a debug mode; answered when no call that changes the world starts any more for what it covers, or at `until` with
    /// what it waits for.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn set_mode(
        &self,
        context: &CommandContext,
        mode: NewMode,
        reason: Reason,
        until: Instant,
    ) -> Result<ModeView, CommandError> {
        let request = operator(context, reason);
        let until = until.min(context.deadline - MODE_MARGIN);
        let command = |reply| Command::SetMode { mode: mode.clone(), request: request.clone(), until, reply };
        self.ask_until_settled(context, command).await
    }

    /// Ends a debug mode; answered when that is durable.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn clear_mode(&self, context: &CommandContext, mode: ModeId, reason: Reason) -> Result<(), CommandError> {
        let request = operator(context, reason);
        let command = |reply| Command::ClearMode { mode, request: request.clone(), reply };
        self.ask_until_settled(context, command).await
    }

    /// How far a debug mode has taken hold.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn mode(&self, context: &CommandContext, mode: ModeId) -> Result<ModeView, CommandError> {
        self.ask(context, |reply| Command::Mode { mode, reply }).await
    }

    /// At most `most` debug modes, after one of them, in the order of their names.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn modes(
        &self,
        context: &CommandContext,
        after: Option<ModeId>,
        most: usize,
    ) -> Result<ModeList, CommandError> {
        self.ask(context, |reply| Command::Modes { after, most, reply }).await
    }

    /// Starts a rollout; answered when it is durable. One of the same name, action, policy and selection is the same one.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn start_rollout(
        &self,
        context: &CommandContext,
        new: NewRollout,
        reason: Reason,
    ) -> Result<RolloutView, CommandError> {
        let request = operator(context, reason);
        let command = |reply| Command::StartRollout { new: Box::new(new.clone()), request: request.clone(), reply };
        self.ask_until_settled(context, command).await
    }

    /// Holds a rollout, has it go on, or ends it; answered when that is durable.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn order_rollout(
        &self,
        context: &CommandContext,
        rollout: Uuid,
        order: RolloutOrder,
        reason: Reason,
    ) -> Result<RolloutView, CommandError> {
        let request = operator(context, reason);
        let command = |reply| Command::OrderRollout { rollout, order, request: request.clone(), reply };
        self.ask_until_settled(context, command).await
    }

    /// How far a rollout is.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn rollout(&self, context: &CommandContext, rollout: Uuid) -> Result<RolloutView, CommandError> {
        self.ask(context, |reply| Command::Rollout { rollout, reply }).await
    }

    /// All rollouts that are kept, the newest first.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn rollouts(&self, context: &CommandContext) -> Result<Vec<RolloutView>, CommandError> {
        self.ask(context, |reply| Command::Rollouts { reply }).await
    }

    /// Stops planning, or only that anything is taken from a worker that has it, until [`resume`](Self::resume); answered when the
    /// catalog shows it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn pause(&self, context: &CommandContext, moves_only: bool, reason: Reason) -> Result<(), CommandError> {
        let request = operator(context, reason);
        self.ask(context, |reply| Command::Pause { moves_only, request, reply }).await
    }

    /// Has a rebalance, the one that runs where none is named, end with the moves that are under way, and stops moves until
    /// [`resume`](Self::resume); answered when that is durable, with the rebalance.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn abort_rebalance(
        &self,
        context: &CommandContext,
        rebalance: Option<RebalanceId>,
        reason: Reason,
    ) -> Result<RebalanceId, CommandError> {
        let request = operator(context, reason);
        self.ask(context, |reply| Command::AbortRebalance { rebalance, request, reply }).await
    }

    /// How each budget of disruption stands.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn budgets(&self, context: &CommandContext) -> Result<Vec<BudgetStatus>, CommandError> {
        self.ask(context, |reply| Command::Budgets { reply }).await
    }

    /// Gives orders about placement, or takes them back, all of them or none; answered when the catalog shows them. A drain that
    /// leaves appliances which no other worker can take needs `force`.
    ///
    /// # Errors
    /// [`CommandError`]; never [`CommandError::Contended`].
    pub async fn order(
        &self,
        context: &CommandContext,
        ops: Vec<OrderOp>,
        force: bool,
        reason: Reason,
    ) -> Result<(), CommandError> {
        let request = operator(context, reason);
        let command = |reply| Command::Order { ops: ops.clone(), force, request: request.clone(), reply };
        self.ask_until_settled(context, command).await
    }

    /// What would change under assumptions. Nothing is changed.
    ///
    /// # Errors
    /// [`CommandError`]; [`CommandError::StalePlan`] when `part` goes on with a plan that would be another one now.
    pub async fn plan(
        &self,
        context: &CommandContext,
        assumptions: PlanAssumptions,
        part: PlanPart,
    ) -> Result<PlanView, CommandError> {
        let assumptions = Arc::new(assumptions);
        self.ask(context, |reply| Command::Plan { assumptions, part, reply }).await
    }

    /// Has done what a plan shows, if it would be the same now; answered when its orders are in force.
    ///
    /// # Errors
    /// [`CommandError`]; [`CommandError::StalePlan`] when it would be another one.
    pub async fn apply_plan(
        &self,
        context: &CommandContext,
        assumptions: PlanAssumptions,
        shown: ShownPlan,
        force: bool,
        reason: Reason,
    ) -> Result<(), CommandError> {
        let (assumptions, request) = (Arc::new(assumptions), operator(context, reason));
        let command = |reply| {
            let (assumptions, shown, request) = (Arc::clone(&assumptions), shown.clone(), request.clone());
            Command::ApplyPlan { assumptions, shown, force, request, reply }
        };
        self.ask_until_settled(context, command).await
    }

    /// Changes what one process logs or samples, or all do when `process` is empty; answered with all orders in force.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn tune(
        &self,
        context: &CommandContext,
        process: String,
        change: TuningChange,
        reason: Reason,
    ) -> Result<Vec<(String, TelemetryOrder)>, CommandError> {
        let request = operator(context, reason);
        self.ask(context, |reply| Command::Tune { process, change, request, reply }).await
    }

    /// The orders about what processes log and sample.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn tuning(&self, context: &CommandContext) -> Result<Vec<(String, TelemetryOrder)>, CommandError> {
        self.ask(context, |reply| Command::Tuning { reply }).await
    }

    /// Ends a pause, and a freeze after many workers were lost; answered when the catalog shows it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn resume(&self, context: &CommandContext) -> Result<(), CommandError> {
        let request = operator(context, Reason::default());
        self.ask(context, |reply| Command::Resume { request, reply }).await
    }

    /// Sends a command and waits for its answer until the deadline.
    async fn ask<T>(
        &self,
        context: &CommandContext,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.queue.send(command(reply)).await.map_err(|_| CommandError::Stopping)?;
            answer.await.map_err(|_| CommandError::Unanswered)?
        };
        timeout_at(context.deadline, asked).await.map_err(|_| CommandError::DeadlineExceeded)?
    }
}

fn operator(context: &CommandContext, Reason(reason): Reason) -> Operator {
    Operator { reason, actor: context.actor.clone() }
}
