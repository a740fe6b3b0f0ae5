//! The trace of what a worker does about one appliance until it is as it shall be: a *run*.
//!
//! A run begins with the first step that changes the world and ends when a probe is answered and nothing is left to do, when the
//! appliance is given up, or when a step fails; the next try is a run of its own. A run that follows from a call continues the trace of
//! that call, if it is recorded; others are traces of their own, linked to the rebalance that brought the appliance.

use common::{ApplianceId, TraceContext};
use runtime::telemetry;
use tracing::{Span, info_span};
use worker_core::lifecycle::{LifecycleStep, StepOutcome};

/// The run of one appliance, and what it follows from.
#[derive(Debug, Default)]
pub(super) struct RunTrace {
    /// The call that it follows from.
    call: Option<Box<TraceContext>>,
    /// Trace context of the rebalance that brought the appliance.
    rebalance: Option<Box<str>>,
    /// While it is under way.
    open: Option<Span>,
}

/// How far a step that has ended brought a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunStage {
    /// There is more to do.
    UnderWay,
    /// It was looked. If nothing else is to be done now, this part of it is over; what it follows from is still to come.
    Looked,
    /// If nothing else is to be done, it is over.
    Settled,
    /// It has come to nothing.
    Failed,
}

impl RunStage {
    /// After a step with this outcome.
    pub(super) fn of(step: Option<LifecycleStep>, outcome: &StepOutcome) -> Self {
        let changes = step.is_some_and(LifecycleStep::changes_the_world);
        match outcome {
            StepOutcome::Observed(_) => Self::Looked,
            StepOutcome::Answered(_) | StepOutcome::Configured | StepOutcome::Replugged(_) | StepOutcome::Forgotten => {
                Self::Settled
            }
            _ if changes && problem(outcome).is_some() => Self::Failed,
            _ => Self::UnderWay,
        }
    }
}

/// What was wrong with a step, if it did not do what it should.
pub(super) fn problem(outcome: &StepOutcome) -> Option<&str> {
    match outcome {
        StepOutcome::Failed(text)
        | StepOutcome::Refused(text)
        | StepOutcome::Silent(text)
        | StepOutcome::Unclear(text)
        | StepOutcome::Vanished(text, _) => Some(text),
        StepOutcome::TimedOut => Some("it took too long"),
        _ => None,
    }
}

impl RunTrace {
    /// Of an appliance that is taken: in a rebalance with this trace context, which may be empty, after this call.
    pub(super) fn of_grant(traceparent: &str, call: Option<Box<TraceContext>>) -> Self {
        Self { call, rebalance: (!traceparent.is_empty()).then(|| traceparent.into()), open: None }
    }

    /// The appliance shall be something else, because of this call.
    pub(super) fn changed(&mut self, call: Option<Box<TraceContext>>) {
        if call.is_some() {
            self.call = call;
            self.rebalance = None;
            self.open = None;
        }
    }

    /// The run that a step belongs to, which may begin with it.
    pub(super) fn of_step(&mut self, appliance: ApplianceId, step: LifecycleStep) -> Option<Span> {
        // What follows from a call is traced from the first look on.
        let begins = step.changes_the_world() || (step == LifecycleStep::Observe && self.call.is_some());
        if self.open.is_none() && begins {
            self.open = Some(self.begin(appliance, step));
        }
        self.open.clone()
    }

    fn begin(&self, appliance: ApplianceId, step: LifecycleStep) -> Span {
        let cause = match (&self.call, &self.rebalance) {
            (Some(_), _) => "call",
            (None, Some(_)) => "rebalance",
            // A probe that was not answered, an instance that ended, or another try.
            (None, None) => "worker",
        };
        let span = info_span!(parent: None, "lifecycle", %appliance, first = step.name(), cause);
        if let Some(call) = &self.call {
            telemetry::continue_or_link(&span, call);
        }
        if let Some(rebalance) = &self.rebalance {
            telemetry::add_link(&span, rebalance);
        }
        span
    }

    /// Logs as a part of the run, if one is under way.
    pub(super) fn in_scope(&self, log: impl FnOnce()) {
        match &self.open {
            Some(span) => span.in_scope(log),
            None => log(),
        }
    }

    /// A step has ended; `idle`: no other one follows at once.
    pub(super) fn step_ended(&mut self, stage: RunStage, idle: bool) {
        match stage {
            RunStage::UnderWay => {}
            RunStage::Settled if idle => *self = Self::default(),
            RunStage::Looked if idle => self.open = None,
            RunStage::Looked | RunStage::Settled => {}
            // What it follows from is still what the next try follows from.
            RunStage::Failed => self.open = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use common::status::Details;

    use super::*;

    #[test]
    fn a_run_ends_when_a_probe_is_answered_and_nothing_is_left_to_do() {
        let boot = LifecycleStep::Boot { ordinal: 0, attempt: 1, beside: None };
        let probe = StepOutcome::Answered(Details::default());
        assert_eq!(RunStage::of(Some(boot), &StepOutcome::TimedOut), RunStage::Failed);
        assert_eq!(RunStage::of(Some(LifecycleStep::Observe), &StepOutcome::TimedOut), RunStage::UnderWay);
        let call = TraceContext { traceparent: "00-1-2-01".into(), ..TraceContext::default() };
        let mut run = RunTrace::of_grant("", Some(Box::new(call)));
        assert!(run.of_step(ApplianceId::from_u128(1), boot).is_some());
        run.step_ended(RunStage::Failed, true);
        assert!(run.open.is_none() && run.call.is_some(), "the next try follows from the call, too");
        assert!(run.of_step(ApplianceId::from_u128(1), boot).is_some());
        run.step_ended(RunStage::of(None, &probe), false);
        assert!(run.open.is_some(), "there is more to do");
        run.step_ended(RunStage::of(None, &probe), true);
        assert!(run.open.is_none() && run.call.is_none());
    }
}
