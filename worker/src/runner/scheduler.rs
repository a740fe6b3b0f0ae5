//! The task that owns every machine: commands, ends of steps and wake-ups go in; steps are started and news sent.
//!
//! Invariants: an appliance has at most one running step that changes the world, also over a change of grant or
//! incarnation (`former`); a step starts only from the queue, and only while there is room; one of a suspect that changes
//! the world starts only after the leader's word (`announced`); nothing here waits for the receiver of events.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::run::RunOutcome;
use common::{ApplianceId, Timestamp, Token};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use worker_core::desired::Desired;
use worker_core::gate::{fence_delay_end, fence_delay_left};
use worker_core::lifecycle::{
    Lifecycle, LifecycleEnd, LifecycleEvent as Fact, LifecycleOutput, LifecycleStep, StepOutcome,
};
use worker_core::report::Reports;

use super::announced::{Announced, PATIENCE};
use super::boots::{Boots, EndedBoot};
use super::entry::{ApplianceEntry, StepStage};
use super::history::{EndedRun, RunRecorder, WaitingRuns};
use super::run::{RunStage, RunTrace};
use super::steps::{Done, FoundAt, StepTask, fenced};
use super::timers::Timers;
use super::{Config, RunnerClock, RunnerCommand, RunnerEvent};
use crate::drivers::{DriverFencing, EndSender, EndedInstance};
use crate::gate::SharedGate;
use crate::held::HeldInstances;
use crate::metrics;
use crate::offer::{Drivers, Offer};

/// Ends of instances that may wait. When it is full, drivers wait, or leave the end to be found by a probe.
const ENDS: usize = 1_024;
/// Inputs of one sort that are taken in a row before the others get their turn.
const BATCH: usize = 256;

pub(super) struct Scheduler {
    config: Config,
    drivers: Drivers,
    clock: RunnerClock,
    /// Gate of the incarnation; none before the first.
    gate: Option<Arc<SharedGate>>,
    // Boxed so that the table stays small while it grows.
    entries: HashMap<ApplianceId, Box<ApplianceEntry>>,
    /// Steps of grants that are over, by their appliance: its next machine starts when they have ended.
    former: HashMap<ApplianceId, u64>,
    timers: Timers,
    announced: Announced,
    steps: Steps,
    ends: Ends,
    unsent: UnsentEvents,
    serial: u64,
    /// Told where instances are, if somebody wants to know.
    held: Option<HeldInstances>,
}

/// What drivers report of instances that have ended.
struct Ends {
    sender: EndSender,
    receiver: mpsc::Receiver<EndedInstance>,
}

/// Steps that wait for room, and steps that run: those that change nothing (looks) apart from those that do.
#[derive(Default)]
struct Steps {
    queued_looks: VecDeque<(ApplianceId, u64)>,
    queued_changes: VecDeque<(ApplianceId, u64)>,
    looks: JoinSet<Done>,
    changes: JoinSet<Done>,
}

/// Events that the session did not receive yet.
#[derive(Default)]
struct UnsentEvents {
    /// Releases and removals; they go before statuses.
    outbox: VecDeque<RunnerEvent>,
    /// Tokens of grants that were refused, and for which.
    refused: BTreeMap<ApplianceId, (Token, Token)>,
    reports: Reports,
    /// They go last, and survive the life that they belong to.
    runs: WaitingRuns,
}

impl UnsentEvents {
    fn is_empty(&self) -> bool {
        self.outbox.is_empty() && self.refused.is_empty() && self.reports.is_empty() && self.runs.is_empty()
    }

    /// Takes in the end of a run, if there was one.
    fn run_ended(&mut self, run: Option<EndedRun>) {
        if let Some(run) = run {
            self.runs.push(run);
        }
    }

    /// Takes out the next one.
    fn pop(&mut self) -> Option<RunnerEvent> {
        let refused = |(appliance, (token, newer))| RunnerEvent::Refused { appliance, token, newer };
        self.outbox
            .pop_front()
            .or_else(|| self.refused.pop_first().map(refused))
            .or_else(|| self.reports.take(1).pop().map(RunnerEvent::Status))
            .or_else(|| self.runs.pop().map(RunnerEvent::Run))
    }
}

impl Scheduler {
    pub(super) fn new(config: Config, drivers: Drivers, clock: RunnerClock, held: Option<HeldInstances>) -> Self {
        let (sender, receiver) = mpsc::channel(ENDS);
        Self {
            config,
            drivers,
            clock,
            gate: None,
            entries: HashMap::new(),
            former: HashMap::new(),
            timers: Timers::default(),
            announced: Announced::default(),
            steps: Steps::default(),
            ends: Ends { sender, receiver },
            unsent: UnsentEvents::default(),
            serial: 0,
            held,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<RunnerCommand>, events: mpsc::Sender<RunnerEvent>) {
        loop {
            self.start_queued();
            self.show_steps();
            let next = self.timers.next().into_iter().chain(self.announced.next()).min();
            let unsent = !self.unsent.is_empty();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => {
                        self.command(command);
                        self.more_commands(&mut commands);
                    }
                    None => break,
                },
                Some(done) = self.steps.changes.join_next() => self.ended(done),
                Some(done) = self.steps.looks.join_next() => self.looked(done),
                Some(ended) = self.ends.receiver.recv() => self.instance_ended(ended),
                () = sleep_until(&self.clock, next) => self.wake(),
                slot = events.reserve(), if unsent => match slot {
                    Ok(slot) => {
                        if let Some(event) = self.unsent.pop() {
                            slot.send(event);
                        }
                        self.more_events(&events);
                    }
                    // Nobody wants to hear of it: the session is gone, and with it the right to act.
                    Err(_) => break,
                },
            }
        }
        self.stop().await;
    }

    async fn stop(mut self) {
        self.steps.looks.abort_all();
        let grace = tokio::time::sleep(self.config.stop_grace);
        tokio::pin!(grace);
        loop {
            tokio::select! {
                ended = self.steps.changes.join_next() => if ended.is_none() { break },
                () = &mut grace => {
                    tracing::warn!(steps = self.steps.changes.len(), "steps were still running when the worker stopped");
                    break;
                }
            }
        }
        self.steps.changes.shutdown().await;
    }

    fn show_steps(&self) {
        let Steps { queued_looks, queued_changes, looks, changes } = &self.steps;
        let limit = [self.config.looks_in_flight.get(), self.config.steps_in_flight.get()];
        metrics::steps([looks.len(), changes.len()], [queued_looks.len(), queued_changes.len()], limit);
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    // ------------------------------------------------------------------------------------------------------ inputs

    fn more_commands(&mut self, commands: &mut mpsc::Receiver<RunnerCommand>) {
        for _ in 0..BATCH {
            let Ok(command) = commands.try_recv() else { return };
            self.command(command);
        }
    }

    fn command(&mut self, command: RunnerCommand) {
        match command {
            RunnerCommand::Begin { gate } => self.begin(gate),
            RunnerCommand::Take {
                appliance,
                token,
                desired,
                progress,
                fence_delay,
                suspect,
                mode,
                traceparent,
                adopting,
                cause,
            } => {
                let now = self.now();
                let fence_delay_until = fence_delay_end(now, fence_delay);
                let plugs_ports = self.drivers.offer(&desired.driver).is_some_and(|o| o.driver.plugs_ports());
                let config = &self.config.lifecycle;
                let record = RunRecorder::taken(desired.deleting);
                let mut lifecycle = Lifecycle::new(appliance, desired, plugs_ports, progress, now, config);
                if !fence_delay.is_zero() {
                    lifecycle.await_fence_delay(fence_delay_until);
                }
                if mode.hands_off {
                    lifecycle.begin_hands_off();
                }
                let entry = ApplianceEntry {
                    lifecycle,
                    token,
                    fence_delay_until,
                    claimed: false,
                    suspect,
                    mode,
                    owes_quiet: mode.hands_off,
                    announced: None,
                    adopting,
                    seen: false,
                    boots: Boots::default(),
                    run: RunTrace::of_grant(&traceparent, cause),
                    record,
                    serial: 0,
                    stage: StepStage::Idle,
                    stop: None,
                    wake: None,
                };
                self.take(appliance, entry);
            }
            RunnerCommand::Clear { appliance, token, number } => self.clear(appliance, token, number),
            RunnerCommand::Mode { appliance, token, mode } => {
                if let Some(entry) = self.entries.get_mut(&appliance).filter(|entry| entry.token == token) {
                    entry.set_mode(mode);
                }
                self.tell(appliance, token, Fact::HandsOff(mode.hands_off));
            }
            RunnerCommand::Update { appliance, token, desired, cause } => {
                if let Some(entry) = self.entries.get_mut(&appliance).filter(|entry| entry.token == token) {
                    entry.run.changed(cause);
                }
                self.tell(appliance, token, Fact::Change(desired));
            }
            RunnerCommand::Release { appliance, token } => self.tell(appliance, token, Fact::Release),
            RunnerCommand::Check { appliance, token, number } => self.tell(appliance, token, Fact::Check(number)),
            RunnerCommand::Restate => self.restate(),
        }
    }

    /// Queues the status of every machine that has begun to look; the others speak up when they have.
    fn restate(&mut self) {
        let now = self.now();
        for (appliance, entry) in &self.entries {
            if !matches!(entry.stage, StepStage::Blocked(_)) {
                self.unsent.reports.push(entry.report(*appliance, now, 0, entry.seen));
            }
            if let Some(number) = entry.announced {
                self.unsent.outbox.push_back(RunnerEvent::Begins { appliance: *appliance, token: entry.token, number });
            }
        }
    }

    /// Drops everything of the former incarnation. Its gate is shut, so that whatever step still runs can change nothing
    /// it has not begun to change; and no machine of the new one starts on an appliance before that step has ended.
    fn begin(&mut self, gate: Arc<SharedGate>) {
        if let Some(old) = self.gate.replace(Arc::clone(&gate))
            && !Arc::ptr_eq(&old, &gate)
        {
            old.shut();
        }
        if let (Some(held), Some(gate)) = (&self.held, &self.gate) {
            held.begin(Arc::clone(gate));
        }
        let now = self.now();
        for (appliance, mut entry) in self.entries.drain() {
            if let Some(serial) = entry.unfinished() {
                self.former.insert(appliance, serial);
            }
            self.unsent.run_ended(entry.end_run(appliance, now, RunOutcome::Interrupted));
        }
        self.steps.looks.abort_all();
        self.steps.queued_looks.clear();
        self.steps.queued_changes.clear();
        self.timers.clear();
        self.announced.clear();
        self.unsent = UnsentEvents { runs: std::mem::take(&mut self.unsent.runs), ..UnsentEvents::default() };
    }

    fn take(&mut self, appliance: ApplianceId, mut entry: ApplianceEntry) {
        if self.gate.is_none() || self.entries.get(&appliance).is_some_and(|held| held.token >= entry.token) {
            return;
        }
        if let Some(mut old) = self.entries.remove(&appliance) {
            let now = self.now();
            self.unsent.run_ended(old.end_run(appliance, now, RunOutcome::Interrupted));
            match old.unfinished() {
                Some(serial) => {
                    self.former.insert(appliance, serial);
                }
                None => old.drop_step(),
            }
        }
        let blocked = self.former.contains_key(&appliance);
        if blocked {
            entry.stage = StepStage::Blocked(vec![Fact::Tick]);
        }
        self.entries.insert(appliance, Box::new(entry));
        if !blocked {
            self.drive(appliance, Fact::Tick);
        }
    }

    fn tell(&mut self, appliance: ApplianceId, token: Token, fact: Fact) {
        match self.entries.get_mut(&appliance) {
            Some(entry) if entry.token == token => match &mut entry.stage {
                StepStage::Blocked(waiting) => ApplianceEntry::keep(waiting, fact),
                StepStage::Idle | StepStage::Queued | StepStage::Announced(_) | StepStage::Running(_) => {
                    self.drive(appliance, fact)
                }
            },
            _ => tracing::debug!(%appliance, %token, "command for a grant that is not held"),
        }
    }

    fn looked(&mut self, done: Result<Done, JoinError>) {
        self.ended(done);
        for _ in 0..BATCH {
            let Some(done) = self.steps.looks.try_join_next() else { return };
            self.ended(done);
        }
    }

    fn ended(&mut self, done: Result<Done, JoinError>) {
        // Panics are caught within the task, so this one was dropped on purpose.
        let Ok(Done { appliance, serial, outcome, claimed, found_at }) = done else { return };
        if let MapEntry::Occupied(former) = self.former.entry(appliance)
            && *former.get() == serial
        {
            former.remove();
            return self.unblock(appliance);
        }
        let now = self.now();
        let runs = |entry: &ApplianceEntry| entry.serial == serial && matches!(entry.stage, StepStage::Running(_));
        if let Some(entry) = self.entries.get(&appliance).filter(|entry| runs(entry)) {
            self.watch(appliance, entry, &outcome);
        }
        let Some(entry) = self.entries.get_mut(&appliance).filter(|entry| runs(entry)) else { return };
        entry.stage = StepStage::Idle;
        entry.stop = None;
        entry.claimed |= claimed;
        if let Some(FoundAt { ordinal, attempt, addresses }) = found_at {
            entry.lifecycle.found_at(ordinal, attempt, addresses);
        }
        if let Some(step) = entry.lifecycle.running() {
            let over = entry.boots.ended(now, step, &outcome);
            count_boot(entry.lifecycle.desired(), over);
            entry.record.step_ends(now, step, &outcome);
        }
        if let StepOutcome::Superseded(newer) = outcome {
            self.unsent.refused.insert(appliance, (entry.token, newer));
        }
        let step = entry.lifecycle.running();
        let ended = RunStage::of(step, &outcome);
        let changes = step.is_some_and(LifecycleStep::changes_the_world);
        if changes
            && matches!(outcome, StepOutcome::TimedOut | StepOutcome::Failed(_))
            && let Some(Offer { driver, .. }) = self.drivers.offer(&entry.lifecycle.desired().driver)
            && let DriverFencing::Delay(fence_delay) = driver.fencing()
        {
            // Without an answer that says otherwise, the call may still take effect, also for the next owner.
            let until = fence_delay_end(now, fence_delay);
            entry.fence_delay_until = entry.fence_delay_until.max(until);
            entry.lifecycle.unanswered(until);
        }
        let adopted = entry.adopted(&outcome);
        self.drive(appliance, Fact::Ended(Box::new(outcome)));
        if let Some(entry) = self.entries.get_mut(&appliance) {
            let idle = matches!(entry.stage, StepStage::Idle);
            entry.run.step_ended(ended, idle);
            let outcome = match ended {
                RunStage::Settled if idle => Some(RunOutcome::Completed),
                RunStage::Failed => Some(RunOutcome::Failed),
                RunStage::Settled | RunStage::Looked | RunStage::UnderWay => None,
            };
            let run = outcome.and_then(|outcome| entry.end_run(appliance, now, outcome));
            self.unsent.run_ended(run);
        }
        if let Some(entry) = self.entries.get(&appliance).filter(|_| adopted) {
            self.unsent.reports.push(entry.report(appliance, now, 0, true));
        }
    }

    /// Asks to be told when the instances end that a step has started or found.
    fn watch(&self, appliance: ApplianceId, entry: &ApplianceEntry, outcome: &StepOutcome) {
        let instances = match outcome {
            StepOutcome::Booted(instance) => std::slice::from_ref(instance),
            StepOutcome::Observed(found) => &found.running,
            _ => return,
        };
        let Some(Offer { driver, .. }) = self.drivers.offer(&entry.lifecycle.desired().driver) else { return };
        instances.iter().for_each(|instance| driver.watch(appliance, instance, &self.ends.sender));
    }

    /// A driver says that an instance does not run any more. A machine that has not begun to look finds that out itself.
    fn instance_ended(&mut self, ended: EndedInstance) {
        let EndedInstance { appliance, ordinal, attempt } = ended;
        if self.entries.get(&appliance).is_some_and(|entry| !matches!(entry.stage, StepStage::Blocked(_))) {
            self.drive(appliance, Fact::Exited { ordinal, attempt });
        }
    }

    fn unblock(&mut self, appliance: ApplianceId) {
        let Some(entry) = self.entries.get_mut(&appliance) else { return };
        if let StepStage::Blocked(waiting) = &mut entry.stage {
            let waiting = std::mem::take(waiting);
            entry.stage = StepStage::Idle;
            for fact in waiting {
                self.drive(appliance, fact);
            }
        }
    }

    fn wake(&mut self) {
        let now = self.now();
        while let Some((at, appliance)) = self.timers.pop_due(now) {
            if self.entries.get(&appliance).is_some_and(|entry| entry.wake == Some(at)) {
                self.drive(appliance, Fact::Tick);
            }
        }
        while let Some((until, number, appliance)) = self.announced.pop_due(now) {
            if let Some(entry) = self.entries.get_mut(&appliance)
                && entry.serial == number
                && matches!(entry.stage, StepStage::Announced(at) if at == until)
            {
                entry.stage = StepStage::Idle;
                self.drive(appliance, Fact::Ended(Box::new(StepOutcome::Fenced { retry_after: None })));
            }
        }
    }

    // --------------------------------------------------------------------------------------------------- machines

    /// Tells a machine a fact, and does what follows.
    fn drive(&mut self, appliance: ApplianceId, fact: Fact) {
        let now = self.now();
        let mut next = Some(fact);
        while let Some(fact) = next.take() {
            let Some(entry) = self.entries.get_mut(&appliance) else { return };
            entry.record.learnt(fact.cause(entry.lifecycle.desired()));
            let output = entry.lifecycle.step(now, fact, rand::random(), &self.config.lifecycle);
            if output.cancel {
                entry.drop_step();
            }
            entry.tell_stop();
            if let Some(step) = output.action {
                self.serial += 1;
                entry.serial = self.serial;
                entry.stage = StepStage::Queued;
                let queue = if step.changes_the_world() {
                    entry.record.begins(now);
                    &mut self.steps.queued_changes
                } else {
                    &mut self.steps.queued_looks
                };
                queue.push_back((appliance, self.serial));
            }
            if entry.wake != output.wake_at {
                entry.wake = output.wake_at;
                if let Some(at) = output.wake_at {
                    self.timers.set(at, appliance);
                }
            }
            if let Some(number) = entry.take_done() {
                self.unsent.outbox.push_back(RunnerEvent::Done { appliance, token: entry.token, number });
            }
            let stopped = output.end.is_none() && entry.is_stopped_unstarted();
            if output.action.is_none() && stopped {
                if let StepStage::Announced(until) = entry.stage {
                    self.announced.remove(&(until, entry.serial, appliance));
                }
                // The step has not begun, so nothing has to be waited for.
                entry.stage = StepStage::Idle;
                next = Some(Fact::Ended(Box::new(StepOutcome::Fenced { retry_after: None })));
            }
            self.announce(appliance, output, now);
        }
        self.say_quiet(appliance, now);
        self.note_addresses(appliance);
        let entries = &self.entries;
        self.timers.sweep(entries.len(), |at, owner| entries.get(&owner).is_some_and(|e| e.wake == Some(at)));
    }

    /// Notes where the instances of an appliance are, or that it is not held any more.
    fn note_addresses(&self, appliance: ApplianceId) {
        let Some(held) = &self.held else { return };
        match self.entries.get(&appliance).map(|entry| &entry.lifecycle) {
            Some(lifecycle) => held.note(appliance, lifecycle.desired(), lifecycle.management_addresses()),
            None => held.forget(appliance),
        }
    }

    /// Says that nothing runs under a mode any more, if that is so and was not said.
    fn say_quiet(&mut self, appliance: ApplianceId, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&appliance) else { return };
        if let Some(edition) = entry.take_quiet() {
            let (token, fence_delay) = (entry.token, fence_delay_left(now, entry.fence_delay_until));
            self.unsent.outbox.push_back(RunnerEvent::Quiet { appliance, token, edition, fence_delay });
        }
    }

    fn announce(&mut self, appliance: ApplianceId, output: LifecycleOutput, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&appliance) else { return };
        if let Some(change) = output.transition {
            self.unsent.run_ended(entry.phase_changes(appliance, now, change));
            let (from, to, cause) = (change.from, change.to, change.cause);
            // In the trace of the run, and without the fields of its span in the line.
            entry.run.in_scope(|| tracing::info!(parent: None, %appliance, %from, %to, %cause, "phase changed"));
        }
        if let Some(commands) = output.backlog {
            tracing::warn!(%appliance, commands, "commands gather behind one running step");
        }
        let token = entry.token;
        if output.status_changed || output.checked.is_some() {
            self.unsent.reports.push(entry.report(appliance, now, output.checked.unwrap_or(0), false));
        }
        let Some(end) = output.end else { return };
        let outcome = match end {
            LifecycleEnd::Released(_) => RunOutcome::Released,
            LifecycleEnd::Gone => RunOutcome::Removed,
        };
        self.unsent.run_ended(entry.end_run(appliance, now, outcome));
        let fence_delay = fence_delay_left(now, entry.fence_delay_until);
        self.entries.remove(&appliance);
        self.unsent.refused.remove(&appliance);
        if let Some(gate) = &self.gate {
            gate.dismiss(appliance, token);
        }
        // What was seen last goes before the word that nobody looks any more.
        self.unsent.outbox.extend(self.unsent.reports.remove(appliance).map(RunnerEvent::Status));
        self.unsent.outbox.push_back(match end {
            LifecycleEnd::Released(progress) => RunnerEvent::Released { appliance, token, progress, fence_delay },
            LifecycleEnd::Gone => RunnerEvent::Gone { appliance, token },
        });
    }

    // ------------------------------------------------------------------------------------------------------ steps

    fn start_queued(&mut self) {
        while self.steps.looks.len() < self.config.looks_in_flight.get() {
            let Some((appliance, serial)) = self.steps.queued_looks.pop_front() else { break };
            self.start(appliance, serial);
        }
        while self.steps.changes.len() + self.announced.len() < self.config.steps_in_flight.get() {
            let Some((appliance, serial)) = self.steps.queued_changes.pop_front() else { break };
            self.start(appliance, serial);
        }
    }

    fn start(&mut self, appliance: ApplianceId, serial: u64) {
        let now = self.now();
        let Some(gate) = &self.gate else { return };
        let Some(entry) = self.entries.get_mut(&appliance).filter(|entry| entry.serial == serial) else { return };
        if !matches!(entry.stage, StepStage::Queued) {
            return;
        }
        // Nothing is announced that could not begin now.
        if entry.suspect && entry.is_changing() && gate.pass(appliance, entry.token).is_ok() {
            let until = now + PATIENCE;
            entry.stage = StepStage::Announced(until);
            entry.announced = Some(serial);
            self.announced.insert((until, serial, appliance));
            self.unsent.outbox.push_back(RunnerEvent::Begins { appliance, token: entry.token, number: serial });
            return;
        }
        self.launch(appliance);
    }

    /// The leader knows of an announced step: it may begin.
    fn clear(&mut self, appliance: ApplianceId, token: Token, number: u64) {
        let Some(entry) = self.entries.get(&appliance) else { return };
        let StepStage::Announced(until) = entry.stage else { return };
        if (entry.token, entry.serial) == (token, number) {
            self.announced.remove(&(until, number, appliance));
            self.launch(appliance);
        }
    }

    /// Starts the step of a machine, for which there is room and nothing else to wait for.
    fn launch(&mut self, appliance: ApplianceId) {
        let now = self.now();
        let Some(gate) = &self.gate else { return };
        let Some(entry) = self.entries.get_mut(&appliance) else { return };
        let Some(step) = entry.lifecycle.running() else { return };
        let serial = entry.serial;
        let desired = Arc::clone(entry.lifecycle.desired());
        let Some(Offer { driver, protocol }) = self.drivers.offer(&desired.driver).cloned() else {
            entry.stage = StepStage::Idle;
            let text = format!("this worker does not offer the driver `{}`", desired.driver);
            return self.drive(appliance, Fact::Ended(Box::new(StepOutcome::Refused(text))));
        };
        // A look raises the token and does nothing else.
        let passed = match step {
            LifecycleStep::Observe => gate.pass_to_fence(appliance, entry.token),
            _ => gate.pass(appliance, entry.token),
        };
        let permit = match passed {
            _ if matches!(step, LifecycleStep::Probe { .. }) => None,
            _ if step == LifecycleStep::Observe && entry.claimed => None,
            Ok(permit) => Some(permit),
            Err(_) if step == LifecycleStep::Observe => None,
            Err(shut) => {
                entry.stage = StepStage::Idle;
                metrics::refused(shut.name());
                let outcome = fenced(shut);
                return self.drive(appliance, Fact::Ended(Box::new(outcome)));
            }
        };
        let (stop, stop_changes) = watch::channel(desired.spec.kind.stop());
        entry.stop = matches!(step, LifecycleStep::Destroy { .. }).then_some(stop);
        let over = entry.boots.begins(now, step);
        count_boot(&desired, over);
        if matches!(step, LifecycleStep::Boot { .. }) {
            metrics::boot_begins(desired.spec.kind.kind_name(), &desired.driver);
        }
        entry.record.step_begins(now, step);
        let attempt = if let LifecycleStep::Destroy { attempt, .. } = step { Some(attempt) } else { None };
        let task = StepTask {
            appliance,
            serial,
            step,
            desired,
            boot_digest: entry.lifecycle.boot_digest().into(),
            instance: step.ordinal().and_then(|n| entry.lifecycle.instance(n, attempt)).cloned(),
            peers: match step {
                LifecycleStep::Configure { ordinal, .. } => entry.lifecycle.peers(ordinal),
                _ => Vec::new(),
            },
            others_ending: entry.lifecycle.others_ending(),
            stop: stop_changes,
            driver,
            protocol,
            permit,
            adopting: entry.adopting.clone(),
            run: entry.run.of_step(appliance, step),
            hands_off: entry.mode.hands_off,
            claimed: AtomicBool::new(false),
        };
        let set = if step.changes_the_world() { &mut self.steps.changes } else { &mut self.steps.looks };
        let run = task.run(self.config.lifecycle.clone());
        entry.stage = StepStage::Running(set.spawn(run));
    }

    // ------------------------------------------------------------------------------------------------------- news

    fn more_events(&mut self, events: &mpsc::Sender<RunnerEvent>) {
        for _ in 0..BATCH {
            let Ok(slot) = events.try_reserve() else { return };
            let Some(event) = self.unsent.pop() else { return };
            slot.send(event);
        }
    }
}

/// Counts a boot that is over, if one is.
fn count_boot(desired: &Desired, over: Option<EndedBoot>) {
    if let Some(EndedBoot { outcome, took }) = over {
        metrics::boot_ended(desired.spec.kind.kind_name(), &desired.driver, outcome, took);
    }
}

/// Waits for a moment of the scheduler's clock; for ever when there is none.
async fn sleep_until(clock: &RunnerClock, at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(clock())).await,
        None => std::future::pending().await,
    }
}
