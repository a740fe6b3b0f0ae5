//! What is kept of a run for those who ask later what was done ([`common::run`]).
//!
//! Beside the trace of a run ([`super::run`]), with the same begin and end, and kept of every run, whatever is sampled. Records wait here and in
//! the session, bounded in number: nothing waits for them, and the oldest give way.

use std::collections::VecDeque;
use std::time::Duration;

use common::run::{MAX_RUN_PARTS, PhaseChange, Run, RunOutcome, RunStep};
use common::{ApplianceId, Timestamp};
use runtime::log_limited;
use worker_core::desired::Desired;
use worker_core::lifecycle::{LifecycleStep, StepOutcome, Transition, TransitionCause};

use super::run::problem;

/// Records that wait: what a host with a few thousand appliances does while the leader is away for some minutes. Each has up to a few KiB,
/// and most have less than one.
const MAX_WAITING: usize = 4_096;

/// A run that is over, and when that was.
#[derive(Clone, Debug)]
pub struct EndedRun {
    run: Box<Run>,
    ended: Timestamp,
}

impl EndedRun {
    /// A change of phase.
    #[cfg(test)]
    pub(crate) fn of_change(appliance: ApplianceId, desired: &Desired, change: Transition) -> Self {
        let subject = RunSubject { appliance, desired, now: Timestamp::default() };
        RunRecorder::default().phase_changes(subject, change, String::new).expect("no run is under way")
    }

    /// The run, as it is told now.
    #[must_use]
    pub fn told(self, now: Timestamp) -> Run {
        Run { ago: now.since(self.ended), ..*self.run }
    }
}

/// Records that wait to be told, oldest first.
#[derive(Debug, Default)]
pub(crate) struct WaitingRuns {
    runs: VecDeque<EndedRun>,
}

impl WaitingRuns {
    /// Adds one; the oldest gives way to it where there is no room.
    pub(crate) fn push(&mut self, run: EndedRun) {
        if self.runs.len() >= MAX_WAITING {
            self.runs.pop_front();
            log_limited!(warn, "runs end faster than the leader stores them: the oldest are missing in its history");
        }
        self.runs.push_back(run);
    }

    /// Takes the oldest.
    pub(crate) fn pop(&mut self) -> Option<EndedRun> {
        self.runs.pop_front()
    }

    /// Takes the oldest, at most `most`.
    pub(crate) fn take(&mut self, most: usize) -> Vec<EndedRun> {
        self.runs.drain(..most.min(self.runs.len())).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// Of which appliance a record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunSubject<'a> {
    pub(super) appliance: ApplianceId,
    pub(super) desired: &'a Desired,
    pub(super) now: Timestamp,
}

/// The run of one appliance that is under way, and what set off the next one.
#[derive(Debug, Default)]
pub(super) struct RunRecorder {
    /// What a run that begins now is set off by; empty when nothing is known but that time passed.
    cause: &'static str,
    open: Option<Box<OpenRun>>,
}

#[derive(Debug)]
struct OpenRun {
    cause: &'static str,
    began: Timestamp,
    /// The step that runs, and when it was started.
    running: Option<(LifecycleStep, Timestamp)>,
    steps: Vec<RunStep>,
    changes: Vec<PhaseChange>,
    error: String,
}

impl RunRecorder {
    /// Of an appliance that is newly taken, perhaps to be removed.
    pub(super) const fn taken(deleting: bool) -> Self {
        Self { cause: if deleting { "delete" } else { "taken" }, open: None }
    }

    /// Something was learnt, which may set off a run.
    pub(super) fn learnt(&mut self, cause: TransitionCause) {
        match cause {
            // What was to be done is still to be done.
            TransitionCause::Time => {}
            TransitionCause::Ended("silent" | "vanished" | "timed out") if self.open.is_none() => {
                self.cause = cause.name();
            }
            TransitionCause::Ended(_) => {}
            // Of commands in a row the last one counts, and what is found out does not count against a command.
            TransitionCause::Command(_) | TransitionCause::Release | TransitionCause::Mode => self.cause = cause.name(),
            TransitionCause::Exited if self.open.is_none() => self.cause = cause.name(),
            TransitionCause::Exited => {}
        }
    }

    /// A step that changes the world is to be started: a run begins, unless one is under way.
    pub(super) fn begins(&mut self, now: Timestamp) {
        if self.open.is_none() {
            let cause = std::mem::take(&mut self.cause);
            self.open = Some(Box::new(OpenRun {
                cause: if cause.is_empty() { "time" } else { cause },
                began: now,
                running: None,
                steps: Vec::new(),
                changes: Vec::new(),
                error: String::new(),
            }));
        }
    }

    /// A step is started.
    pub(super) fn step_begins(&mut self, now: Timestamp, step: LifecycleStep) {
        if step.changes_the_world() {
            self.begins(now);
        }
        if let Some(open) = &mut self.open {
            open.running = Some((step, now));
        }
    }

    /// A step has ended.
    pub(super) fn step_ends(&mut self, now: Timestamp, step: LifecycleStep, outcome: &StepOutcome) {
        let Some(open) = &mut self.open else { return };
        let Some((_, began)) = open.running.take() else { return };
        if let Some(problem) = problem(outcome) {
            problem.clone_into(&mut open.error);
        }
        // A probe is asked again and again until it is answered.
        let repeats = open.steps.last().is_some_and(|last| {
            !step.changes_the_world() && last.outcome == outcome.name() && last.step == step.to_string()
        });
        let took = now.since(began);
        if repeats && let Some(last) = open.steps.last_mut() {
            last.took += took;
        } else if open.steps.len() < MAX_RUN_PARTS {
            open.steps.push(RunStep { step: step.to_string(), outcome: outcome.name().to_owned(), took });
        }
    }

    /// The phase has changed. Without a run that is a record by itself.
    pub(super) fn phase_changes(
        &mut self,
        subject: RunSubject<'_>,
        change: Transition,
        error: impl FnOnce() -> String,
    ) -> Option<EndedRun> {
        let change = |after| PhaseChange { from: change.from, to: change.to, cause: change.cause.to_string(), after };
        match &mut self.open {
            Some(open) if open.changes.len() < MAX_RUN_PARTS => {
                open.changes.push(change(subject.now.since(open.began)));
                None
            }
            Some(_) => None,
            None => {
                let changes = vec![change(Duration::ZERO)];
                let cause = changes[0].cause.clone();
                let run = record(subject, cause, RunOutcome::Observed, error());
                Some(EndedRun { run: Box::new(Run { changes, ..run }), ended: subject.now })
            }
        }
    }

    /// The run is over, if one is under way.
    pub(super) fn ends(&mut self, subject: RunSubject<'_>, outcome: RunOutcome) -> Option<EndedRun> {
        match outcome {
            // A command that came meanwhile is what the next try follows from.
            RunOutcome::Failed if self.cause.is_empty() => self.cause = "retry",
            RunOutcome::Failed => {}
            _ => self.cause = "",
        }
        let OpenRun { cause, began, running, mut steps, changes, error } = *self.open.take()?;
        if let Some((step, began)) = running.filter(|(step, _)| step.changes_the_world()) {
            let took = subject.now.since(began);
            steps.push(RunStep { step: step.to_string(), outcome: "unfinished".to_owned(), took });
        }
        let outcome = match (steps.is_empty(), changes.is_empty()) {
            // Its step was never started.
            (true, true) => return None,
            (true, false) => RunOutcome::Observed,
            (false, _) => outcome,
        };
        let error = if outcome == RunOutcome::Completed { String::new() } else { error };
        let run = record(subject, cause.to_owned(), outcome, error);
        let run = Run { took: subject.now.since(began), steps, changes, ..run };
        Some(EndedRun { run: Box::new(run), ended: subject.now })
    }
}

fn record(subject: RunSubject<'_>, cause: String, outcome: RunOutcome, error: String) -> Run {
    let RunSubject { appliance, desired, .. } = subject;
    Run {
        id: rand::random(),
        appliance,
        tenant: desired.tenant.clone(),
        name: desired.name.clone(),
        generation: desired.edition.generation,
        cause,
        outcome,
        error,
        ago: Duration::ZERO,
        took: Duration::ZERO,
        steps: Vec::new(),
        changes: Vec::new(),
    }
}
