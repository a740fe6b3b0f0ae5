//! One appliance as the scheduler holds it: its machine, its grant, and where its step is.

use common::kind::StopRecipe;
use common::run::RunOutcome;
use common::session::StatusReport;
use common::{ApplianceId, Mode, ModeEdition, Timestamp, Token};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::Span;
use worker_core::lifecycle::{Lifecycle, LifecycleEvent, LifecycleStep, StepOutcome, Transition};

use super::boots::Boots;
use super::history::{EndedRun, RunRecorder, RunSubject};
use super::run::{RunTrace, problem};

/// Where the step of a machine is.
#[derive(Debug)]
pub(super) enum StepStage {
    /// No step.
    Idle,
    /// The machine began one, and it waits for room.
    Queued,
    /// It was announced, and waits until then for the word that it may begin.
    Announced(Timestamp),
    /// It runs.
    Running(AbortHandle),
    /// The machine was not started yet: a step of a former grant still runs. Keeps what came in meanwhile, the newest of
    /// each sort.
    Blocked(Vec<LifecycleEvent>),
}

#[derive(Debug)]
pub(super) struct ApplianceEntry {
    pub(super) lifecycle: Lifecycle,
    pub(super) token: Token,
    /// Calls of former owners, or of ours that were not answered, may take effect until then.
    pub(super) fence_delay_until: Timestamp,
    /// The far side knows our token.
    pub(super) claimed: bool,
    /// Its steps are announced before they begin.
    pub(super) suspect: bool,
    /// Whether hands are off.
    pub(super) mode: Mode,
    /// It has to be said that nothing runs under that mode any more, once it is so.
    pub(super) owes_quiet: bool,
    /// Number of the step that was announced and is not over.
    pub(super) announced: Option<u64>,
    /// Open until it was seen how the appliance is that a rebalance brought here.
    pub(super) adopting: Option<Span>,
    /// That was seen. Said with each status that is told again, since the first may have been lost.
    pub(super) seen: bool,
    /// Boots that have not been answered, for metrics.
    pub(super) boots: Boots,
    /// The trace of what is done about it.
    pub(super) run: RunTrace,
    /// What is kept of it.
    pub(super) record: RunRecorder,
    /// Number of the newest step, over all appliances.
    pub(super) serial: u64,
    pub(super) stage: StepStage,
    /// How the step that runs has to end instances, if that is what it does.
    pub(super) stop: Option<watch::Sender<StopRecipe>>,
    /// The wake-up that counts.
    pub(super) wake: Option<Timestamp>,
}

impl ApplianceEntry {
    /// Takes in how a step ended. Returns whether that tells, for the first time, how the appliance is: a probe has an outcome, or
    /// there is nothing to probe.
    pub(super) fn adopted(&mut self, outcome: &StepOutcome) -> bool {
        let seen = match outcome {
            StepOutcome::Observed(found) => found.running.is_empty(),
            _ => self.lifecycle.running() != Some(LifecycleStep::Observe),
        };
        let Some(span) = self.adopting.take_if(|_| seen) else { return false };
        span.record("outcome", outcome.name());
        // Nothing runs, or what runs does not answer.
        if matches!(outcome, StepOutcome::Observed(_)) || problem(outcome).is_some() {
            span.record("otel.status_code", "ERROR");
        }
        self.seen = true;
        true
    }

    /// What its owner sees.
    pub(super) fn report(&self, appliance: ApplianceId, now: Timestamp, checked: u64, adopted: bool) -> StatusReport {
        let (status, would_have) = (self.lifecycle.status(), self.lifecycle.would_have(now));
        StatusReport { appliance, token: self.token, status, checked, adopted, would_have }
    }

    /// The run is over, if one is under way; what is kept of it.
    pub(super) fn end_run(&mut self, appliance: ApplianceId, now: Timestamp, outcome: RunOutcome) -> Option<EndedRun> {
        let subject = RunSubject { appliance, desired: self.lifecycle.desired(), now };
        self.record.ends(subject, outcome)
    }

    /// The phase has changed; what is kept of that, unless it is a part of a run.
    pub(super) fn phase_changes(
        &mut self,
        appliance: ApplianceId,
        now: Timestamp,
        change: Transition,
    ) -> Option<EndedRun> {
        let error = || self.lifecycle.status().last_error.unwrap_or_default();
        let subject = RunSubject { appliance, desired: self.lifecycle.desired(), now };
        self.record.phase_changes(subject, change, error)
    }

    /// Tells a step that ends instances when they have to end in another way by now.
    pub(super) fn tell_stop(&self) {
        let Some(told) = &self.stop else { return };
        let wanted = self.lifecycle.desired().spec.kind.stop();
        told.send_if_modified(|known| std::mem::replace(known, wanted) != wanted);
    }

    /// Drops a step that changes nothing.
    pub(super) fn drop_step(&mut self) {
        if let StepStage::Running(task) = &self.stage {
            task.abort();
        }
        self.stage = StepStage::Idle;
    }

    /// The number of a step that runs and must be let end before another owner of this appliance begins.
    pub(super) fn unfinished(&self) -> Option<u64> {
        (self.is_changing() && matches!(self.stage, StepStage::Running(_))).then_some(self.serial)
    }

    /// Whether a step was never started that a release waits for, or that hands off keep from being started.
    pub(super) fn is_stopped_unstarted(&self) -> bool {
        let stops = self.lifecycle.is_leaving() || (self.mode.hands_off && self.is_changing());
        stops && matches!(self.stage, StepStage::Queued | StepStage::Announced(_))
    }

    /// Takes another mode. Whether its word that nothing runs is to be said is decided with what the machine does next.
    pub(super) const fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.owes_quiet = mode.hands_off;
    }

    /// Takes the edition of a mode under which nothing runs any more, if that is to be said.
    pub(super) fn take_quiet(&mut self) -> Option<ModeEdition> {
        let is_blocked = matches!(self.stage, StepStage::Blocked(_));
        let is_quiet = self.owes_quiet && !is_blocked && !self.is_changing();
        self.owes_quiet &= !is_quiet;
        is_quiet.then_some(self.mode.edition)
    }

    /// Whether a step that changes the world is under way, from its queue to its end.
    pub(super) fn is_changing(&self) -> bool {
        self.lifecycle.running().is_some_and(LifecycleStep::changes_the_world)
    }

    /// Takes the number of the announced step once that is over.
    pub(super) fn take_done(&mut self) -> Option<u64> {
        let over = self.announced.is_some_and(|number| number != self.serial || !self.is_changing());
        if over { self.announced.take() } else { None }
    }

    /// Keeps an event for when the machine may start.
    pub(super) fn keep(waiting: &mut Vec<LifecycleEvent>, event: LifecycleEvent) {
        waiting.retain(|kept| std::mem::discriminant(kept) != std::mem::discriminant(&event));
        waiting.push(event);
    }
}
