//! The leader of one term: owns the machine, its clock and everything only a leader may do.
//!
//! One task takes every input in turn (commands, workers' messages, finished writes, events of the workers' nodes, time),
//! feeds the machine, and carries out its actions. It is the only writer of the catalog. Nothing here waits for a worker
//! or the disk: writes come back as inputs, workers have bounded queues of their own. When the store is lost to another
//! term, the task ends and says so; [`crate::leadership`] decides what follows.
//!
//! | module | what |
//! |---|---|
//! | `begin` | raises the term, reads the store |
//! | `sessions`, `connections` | what workers say; their streams, and how one is closed |
//! | `writes` | what was submitted to the store, and what each outcome means |
//! | `commands`, `waiting` | what callers ask for; callers that are answered later |
//! | `inquiries`, `judging`, `direct` | what workers are asked beside the protocol; changes that wait for that; what one worker is asked for one caller |
//! | `modes` | debug modes, and who waits until they have taken hold |
//! | `rollouts` | one command over many appliances, a few at a time |
//! | `runs` | what workers did, on its way to the store |
//! | `roster`, `witness` | events of the workers' nodes; ends of their processes |
//! | `publisher`, `notes`, `rebalances` | what is shown: to readers, to a person, of each rebalance |
//! | `convert` | between the machine's terms and everybody else's |

mod begin;
mod causes;
mod commands;
mod connections;
mod convert;
mod direct;
mod inquiries;
mod judging;
mod modes;
mod notes;
mod orders;
mod plans;
mod publisher;
mod rebalances;
mod rollouts;
mod roster;
mod runs;
mod sessions;
mod waiting;
mod witness;
mod writes;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::appliance::Name;
use common::session::{Refused, RefusedReason};
use common::{CoordinatorId, Life, Timestamp};
use coordination::Leadership;
use coordinator_core::machine::{self, Action, Event, Machine, TermClaim};
use coordinator_core::rebalance::RebalanceEvent;
use runtime::process::ProcessWatch;
use runtime::{clock, log_limited};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::causes::Causes;
use self::connections::Connections;
use self::direct::DirectInquiries;
use self::inquiries::Inquiries;
use self::modes::ModeCallers;
use self::notes::Notes;
use self::publisher::{Publisher, REFRESH};
use self::rebalances::RebalanceHistory;
use self::rollouts::Rollouts;
use self::roster::RosterEvents;
use self::waiting::WaitingCallers;
use self::witness::HeldWitnesses;
use self::writes::{PendingWrites, WriteOutcome};
use crate::admission::Admission;
use crate::catalog::Catalog;
use crate::commands::{CommandError, CommandQueue};
use crate::leader_tasks::LeaderTasks;
use crate::metrics;
use crate::sessions::Input;
use crate::store::{self, StoreWrite};
use crate::tuning::Tuning;

pub use begin::{BeginError, FormerTerms};
pub use notes::Violations;

/// Inputs taken before the machine is asked to plan, so that calls that come together are placed together.
const BATCH: usize = 256;

/// How long a stopping leader waits for workers to say that they leave.
const LEAVE_WAIT: Duration = Duration::from_secs(1);

/// How long writes under way may take at the end of a term.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Why a term ended.
#[derive(Debug)]
pub enum TermEnd {
    /// This process stops.
    Stopped,
    /// A higher term was met: campaign above it.
    HigherTerm(TermClaim),
    /// The store is lost to another term, or an outcome could not be found out.
    StoreLost(store::Error),
    /// The leadership is lost, or in doubt: campaign again.
    LeadershipLost,
    /// A task has ended without which the term cannot go on.
    TaskEnded(&'static str),
}

impl TermEnd {
    /// The name in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::HigherTerm(_) => "higher_term",
            Self::StoreLost(_) => "store_lost",
            Self::LeadershipLost => "leadership_lost",
            Self::TaskEnded(_) => "task_ended",
        }
    }
}

/// How a term ended, and what the next one is told of it.
#[derive(Debug)]
pub struct EndedTerm {
    /// Why it ended.
    pub end: TermEnd,
    /// What was refused in it and before.
    pub violations: Violations,
}

/// What every term of this coordinator is led with.
#[derive(Clone, Debug)]
pub struct LeaderSetup {
    /// Settings of the machine.
    pub machine: machine::Config,
    /// What readers see.
    pub catalog: Arc<Catalog>,
    /// Notified whenever a change under way was committed or given up.
    pub settled: Arc<Notify>,
    /// Who this coordinator is.
    pub identity: Identity,
    /// What processes log and sample by order.
    pub tuning: Arc<Tuning>,
}

/// Who this coordinator is, for `Cluster.Status`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub coordinator: CoordinatorId,
    /// What it calls the cluster.
    pub cluster_name: Option<Name>,
    /// When the process started.
    pub started: SystemTime,
    /// The store, without credentials.
    pub store: String,
    /// How the cluster is coordinated, without credentials.
    pub coordination: String,
    /// Where others reach its APIs.
    pub address: String,
    /// The coordinators that are there.
    pub coordinators: watch::Receiver<Vec<coordination::Leader>>,
}

/// Where a leader's inputs come from. They outlive its term.
#[derive(Debug)]
pub struct Inputs {
    /// From the admin services.
    pub commands: CommandQueue,
    /// From workers.
    pub sessions: mpsc::Receiver<(Timestamp, Input)>,
}

/// The leader of one term.
#[derive(Debug)]
pub struct Leader<'a> {
    machine: Machine,
    leadership: &'a dyn Leadership,
    /// Events of the workers' nodes; `None` when this coordinator itself is the authority.
    roster: Option<RosterEvents>,
    connections: Connections,
    writes: PendingWrites,
    waiting: WaitingCallers,
    modes: ModeCallers,
    rollouts: Rollouts,
    inquiries: Inquiries,
    direct: DirectInquiries,
    publisher: Publisher,
    notes: Notes,
    rebalances: RebalanceHistory,
    causes: Causes,
    /// Workers that run beside this coordinator.
    processes: ProcessWatch,
    held_witnesses: HeldWitnesses,
    tuning: Arc<Tuning>,
    /// The coordinators that are there.
    coordinators: watch::Receiver<Vec<coordination::Leader>>,
    admission: Admission,
    catalog: Arc<Catalog>,
    /// Why the term is over, once it is.
    end: Option<TermEnd>,
}

impl Leader<'_> {
    /// Leads until `stop`, or until the term ends, for which the failure of one of `tasks` is a reason. The tasks are
    /// cancelled by then.
    pub async fn run(mut self, inputs: &mut Inputs, stop: CancellationToken, tasks: &mut LeaderTasks) -> EndedTerm {
        let mut wake_at = Some(clock::now());
        let lost = self.leadership.lost();
        let mut looked = tokio::time::Instant::now();
        loop {
            let look_at_rollouts = self.rollouts.next_look();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    tasks.cancel();
                    self.await_leaves(inputs).await;
                    let end = self.end.take().unwrap_or(TermEnd::Stopped);
                    return self.ended(end);
                }
                () = lost.cancelled() => self.end = Some(TermEnd::LeadershipLost),
                task = tasks.failed() => self.end = Some(TermEnd::TaskEnded(task)),
                event = roster::next(&mut self.roster) => self.on_roster_event(event),
                process = self.processes.next() => self.process_ended(process),
                Some(outcome) = self.writes.next(), if !self.writes.is_empty() => self.on_write(outcome),
                Some(input) = inputs.sessions.recv() => self.on_session(input),
                Some(command) = inputs.commands.recv() => self.on_command(command),
                () = sleep_until(wake_at) => {}
                () = at(self.inquiries.next_deadline()) => {}
                () = at(self.direct.next_deadline()) => {}
                () = at(self.modes.next_look()) => {}
                call = self.rollouts.call_ended(), if self.rollouts.has_calls() => self.rollout_called(call),
                () = at(look_at_rollouts) => {}
            }
            self.take_waiting(inputs);
            self.put_inquiries();
            if looked.elapsed() >= REFRESH {
                looked = tokio::time::Instant::now();
                self.end_unanswered();
            }
            self.hear_held_witnesses();
            self.answer_modes();
            self.drive_rollouts();
            wake_at = self.step(Event::Tick);
            self.publish();
            if self.end.is_none() && !self.writes.leads(self.machine.term()) {
                self.end = Some(TermEnd::StoreLost(store::Error::Deposed { term: self.machine.term() }));
            }
            if let Some(end) = self.end.take() {
                tasks.cancel();
                self.resign().await;
                return self.ended(end);
            }
        }
    }

    fn ended(self, end: TermEnd) -> EndedTerm {
        EndedTerm { end, violations: self.notes.into_violations(&self.machine.counters().kinds) }
    }

    /// Takes what else has come, without waiting.
    fn take_waiting(&mut self, inputs: &mut Inputs) {
        for _ in 0..BATCH {
            let mut idle = true;
            if let Some(event) = self.roster.as_mut().and_then(|roster| roster.try_recv().ok()) {
                self.on_roster_event(Some(event));
                idle = false;
            }
            if let Some(outcome) = self.writes.try_next() {
                self.on_write(outcome);
                idle = false;
            }
            if let Ok(input) = inputs.sessions.try_recv() {
                self.on_session(input);
                idle = false;
            }
            if let Ok(command) = inputs.commands.try_recv() {
                self.on_command(command);
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    /// Feeds the machine one event and carries out what follows.
    fn step(&mut self, event: Event) -> Option<Timestamp> {
        if let Event::Closed(stream) = &event {
            self.rebalances.stream_closed(*stream);
        }
        let (plans, began, timer) = (self.machine.counters().plans, SystemTime::now(), Instant::now());
        let output = self.machine.step(clock::now(), event);
        if self.machine.counters().plans > plans {
            metrics::planned(timer.elapsed());
        }
        for regained in &output.regained {
            metrics::regained(regained, regained.rebalance.and_then(|id| self.rebalances.trace(id)));
        }
        for action in output.actions {
            self.carry_out(action, began);
        }
        output.wake_at
    }

    /// Carries out an action of the step that began at `began`.
    fn carry_out(&mut self, action: Action, began: SystemTime) {
        match action {
            Action::Commit(batch, commit) => {
                self.rebalances.committing(batch, &commit, &self.machine);
                let mut events = self.unbind_events(&commit);
                events.extend(self.mode_events(&commit));
                self.writes.commit(batch, commit, events);
            }
            Action::Send(stream, envelope, message) => self.send(stream, envelope, message),
            Action::Reports(reports) => self.on_reports(reports),
            Action::Close(stream, refusal) => self.connections.close(stream, &refusal),
            Action::Assigned(id) => {
                self.modes.changed();
                self.publisher.assigned(&self.machine, id);
            }
            Action::Removed(id) => {
                self.admission.removed(id);
                self.rebalances.removed(id);
                self.modes.changed();
                self.publisher.removed(id);
            }
            Action::Unbind(number, answer) => self.unbound(number, answer),
            Action::Mode(number, outcome) => self.mode_outcome(number, outcome),
            Action::ModesChanged => self.modes.changed(),
            Action::WorkerChanged(worker) => self.publisher.worker_changed(worker),
            Action::Gone(Life { worker, incarnation }, at) => {
                // Beside the worker's `may_act_until_ns` of the same host it shows what the lease's margin comes to.
                info!(%worker, %incarnation, at_ns = at.as_nanos(), "gone: its lease is over, or it left");
            }
            Action::Rebalance(event) => self.on_rebalance(event, began),
            Action::Quarantined(id, deaths) => {
                warn!(appliance = %id, deaths, "quarantined: workers died while a step of it ran");
            }
            Action::Violation(text) => {
                log_limited!(warn, "refused: {text}");
                self.publisher.cluster_changed();
                self.notes.violation(text, SystemTime::now());
            }
            Action::Evict(life) => {
                info!(worker = %life.worker, incarnation = %life.incarnation, "evicting");
                metrics::evicting();
                let evicted = self.leadership.evict(life.worker.clone(), life.incarnation);
                self.writes.evict(life, evicted);
            }
            Action::Met(term) => self.notes.met(term),
            Action::RaiseTerm(claim) => self.end = Some(TermEnd::HigherTerm(claim)),
        }
    }

    fn on_rebalance(&mut self, event: RebalanceEvent, began: SystemTime) {
        self.publisher.count_rebalance(&event);
        let begins = match &event {
            RebalanceEvent::Opened { id, .. } | RebalanceEvent::Resumed { id, .. } => Some(*id),
            RebalanceEvent::Planned { .. } | RebalanceEvent::Moved { .. } | RebalanceEvent::Closed { .. } => None,
        };
        if let Some(id) = begins {
            let members = self.machine.planner().members().iter().map(convert::member_then).collect();
            self.writes.history("members of a rebalance", StoreWrite::Members(id, members));
        }
        self.rebalances.take_in(event, began);
        self.store_history();
    }

    /// Stores what there is to be known later of rebalances, in one change per turn unless one begins or ends.
    fn store_history(&mut self) {
        let records = self.rebalances.take_records();
        if !records.is_empty() {
            self.store_moves();
        }
        for record in records {
            self.writes.rebalance(record);
        }
    }

    /// Stores the moves that ended, and what new owners have seen.
    fn store_moves(&mut self) {
        let moves = self.rebalances.take_ended_moves();
        if !moves.is_empty() {
            self.writes.history("moves", StoreWrite::Moves(moves));
        }
        let adoptions = self.rebalances.take_adoptions();
        if !adoptions.is_empty() {
            self.writes.history("adoptions", StoreWrite::Adoptions(adoptions));
        }
    }

    fn on_write(&mut self, outcome: WriteOutcome) {
        match outcome {
            WriteOutcome::Durable(batch) => {
                self.rebalances.committed(batch, true);
                self.step(Event::Durable(batch));
            }
            WriteOutcome::Undone(batch) => {
                self.rebalances.committed(batch, false);
                self.step(Event::Undone(batch));
            }
            WriteOutcome::Changed(change, caller, reply) => self.changed(*change, &caller, reply),
            WriteOutcome::Unchanged(change, reply, error) => {
                self.withdraw(*change);
                let _ = reply.send(Err(CommandError::Unavailable(error.to_string())));
                if error.ends_term() {
                    self.end = Some(TermEnd::StoreLost(error));
                }
            }
            WriteOutcome::Paused(change) => self.paused(*change),
            WriteOutcome::NotPaused(change, error) => {
                change.reply.send(Err(CommandError::Unavailable(error.to_string())));
                if error.ends_term() {
                    self.end = Some(TermEnd::StoreLost(error));
                }
            }
            WriteOutcome::Ordered(change) => self.ordered(*change),
            WriteOutcome::NotOrdered(change, error) => {
                self.not_ordered(*change, &error);
                if error.ends_term() {
                    self.end = Some(TermEnd::StoreLost(error));
                }
            }
            WriteOutcome::RolloutChanged(change) => self.rollout_changed(*change),
            WriteOutcome::RolloutNotChanged(change, error) => {
                self.rollout_not_changed(*change, &error);
                if error.ends_term() {
                    self.end = Some(TermEnd::StoreLost(error));
                }
            }
            WriteOutcome::RolloutStored(progress) => self.rollout_stored(&progress),
            WriteOutcome::RolloutNotStored(progress) => self.rollout_not_stored(&progress),
            WriteOutcome::NotStored(rebalance) => self.rebalances.not_stored(*rebalance),
            WriteOutcome::RunsStored(stream, batch) => self.connections.runs_stored(stream, batch),
            WriteOutcome::Nothing => {}
            WriteOutcome::TermOver(error) => self.end = Some(TermEnd::StoreLost(error)),
        }
    }

    /// Shows readers what this turn changed.
    fn publish(&mut self) {
        self.rebalances.end_late(false);
        let asked = self.rebalances.take_asked();
        if !asked.is_empty() {
            self.connections.keep(asked);
        }
        self.store_history();
        self.store_moves();
        if self.publisher.has_changed_workers() {
            // Claims are made anew from the catalog, which must not show appliances that were removed in this turn.
            self.publisher.flush();
            self.admission.learn_drivers(self.machine.offers());
            self.watch_processes();
        }
        self.publisher.publish(&self.machine, &self.notes, &mut self.rebalances);
        self.waiting.answer_evictions(|life| self.machine.is_alive(life));
    }

    /// Before a leader that stops resigns, workers that stop at the same time get to say that they leave, so that the
    /// next leader need not wait for their leases. Nothing is planned any more.
    async fn await_leaves(&mut self, inputs: &mut Inputs) {
        if self.roster.is_some() {
            // The next leader waits for this one's lock only, and workers for neither.
            return self.resign().await;
        }
        self.end_inquiries(&CommandError::Stopping);
        let deadline = tokio::time::Instant::now() + LEAVE_WAIT;
        while self.end.is_none() && !(self.connections.is_empty() && self.writes.is_empty()) {
            tokio::select! {
                biased;
                Some(outcome) = self.writes.next(), if !self.writes.is_empty() => self.on_write(outcome),
                Some(input) = inputs.sessions.recv() => match input {
                    (_, Input::Hello { envelope, out, .. }) => {
                        let detail = "the coordinator is stopping".to_owned();
                        let refused = Refused { reason: RefusedReason::Stopping, detail, retry_after: None };
                        out.refuse(&envelope, refused);
                    }
                    input => self.on_session(input),
                },
                Some(command) = inputs.commands.recv() => command.fail(CommandError::Stopping),
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        self.resign().await;
    }

    /// Ends everything that belongs to the term: workers are told to look for the leader, writes under way end, callers
    /// are answered.
    async fn resign(&mut self) {
        self.connections.close_all();
        // What has made its last move has ended; what has not is gone on with by the next leader.
        self.rebalances.end_late(true);
        self.store_history();
        self.store_moves();
        let last_writes = async {
            while let Some(outcome) = self.writes.next().await {
                match outcome {
                    // It is stored, and whoever leads next reads it.
                    WriteOutcome::Changed(change, _, reply) => drop(reply.send(Ok(self.admission.commit(*change)))),
                    WriteOutcome::Unchanged(change, reply, error) => {
                        self.admission.withdraw(*change);
                        let _ = reply.send(Err(CommandError::Unavailable(error.to_string())));
                    }
                    WriteOutcome::Paused(change) => change.reply.send(Ok(())),
                    WriteOutcome::NotPaused(change, error) => {
                        change.reply.send(Err(CommandError::Unavailable(error.to_string())));
                    }
                    WriteOutcome::Ordered(change) => drop(change.reply.send(Ok(()))),
                    WriteOutcome::NotOrdered(change, error) => self.not_ordered(*change, &error),
                    WriteOutcome::RolloutChanged(change) => self.rollout_changed(*change),
                    WriteOutcome::RolloutNotChanged(change, error) => self.rollout_not_changed(*change, &error),
                    WriteOutcome::Durable(_) | WriteOutcome::Undone(_) => {}
                    WriteOutcome::RolloutStored(_) | WriteOutcome::RolloutNotStored(_) => {}
                    WriteOutcome::NotStored(_)
                    | WriteOutcome::RunsStored(..)
                    | WriteOutcome::Nothing
                    | WriteOutcome::TermOver(_) => {}
                }
            }
        };
        let _ = tokio::time::timeout(LAST_WRITES, last_writes).await;
        self.waiting.fail_all(&CommandError::NotLeading(None));
        self.modes.fail_all(&CommandError::NotLeading(None));
        self.end_inquiries(&CommandError::NotLeading(None));
        self.publisher.flush();
    }
}

/// Waits until then; for ever when there is nothing to wait for.
async fn at(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    let wait = at.map_or(REFRESH, |at| at.since(clock::now()).min(REFRESH));
    tokio::time::sleep(wait).await;
}
