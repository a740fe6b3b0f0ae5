//! What a session does about messages of the leader, and about events of the runner.

use std::sync::Arc;
use std::time::Duration;

use common::session::{self, AnnouncedStep, Carryover, Delta, Desired, GrantRef, RefusedReason, ToWorker, Welcome};
use common::{ApplianceId, Token};
use proto::convert::down::{FromCoordinator, Unreadable};
use runtime::{clock, telemetry};
use tracing::{debug, error, info, info_span, warn};
use worker_core::assignments::{AssignmentEffect, DeltaRefused};
use worker_core::session::{ControlEvent, StreamEnd};

use super::{Queued, Session};
use crate::runner::{RunnerCommand, RunnerEvent};

/// How often a stream is ended because something knows of a higher term than the leader's. Each costs the leader an
/// election, so an appliance that makes tokens up must not cause one after the other; the coordinator forgives those that
/// are more than a minute apart.
const RAISE_PAUSE: Duration = Duration::from_secs(120);

/// How long to wait after a `Welcome` that answers another `Hello`, or comes from an older leader.
const STALE_WELCOME_PAUSE: Duration = Duration::from_millis(500);

impl Session {
    /// Takes in a message of the leader, and says what that means for the stream.
    pub(super) fn on_message(&mut self, received: FromCoordinator) -> Option<ControlEvent> {
        let FromCoordinator { envelope: from, message, more, unreadable, traceparent } = received;
        let streaming = self.control.is_streaming();
        match message {
            ToWorker::Refused(refused) => Some(ControlEvent::StreamEnded(self.on_refused(&refused))),
            ToWorker::Welcome(part) if !streaming => self.on_welcome(from, part, more),
            ToWorker::Welcome(_) => None,
            // Nothing else applies between `Hello` and `Welcome`.
            _ if !streaming => None,
            ToWorker::BeatAck(number) => self.assignments.counts(from).then_some(ControlEvent::BeatAnswered(number)),
            ToWorker::Delta(delta) => self.on_delta(from, delta, unreadable, &traceparent),
            ToWorker::Confirm(confirm) => {
                if self.assignments.confirm(from, &confirm.released).is_ok() {
                    for AnnouncedStep { appliance, token, number } in confirm.begin {
                        self.command(RunnerCommand::Clear { appliance, token, number });
                    }
                }
                None
            }
            ToWorker::Drained => {
                self.drained = self.control.is_draining() && self.assignments.counts(from);
                None
            }
        }
    }

    /// Takes in one part of the answer to `Hello`.
    fn on_welcome(&mut self, from: session::Envelope, part: Welcome, more: bool) -> Option<ControlEvent> {
        self.pending.keep.extend(part.keep);
        if more {
            return None;
        }
        let keep = std::mem::take(&mut self.pending.keep);
        match self.assignments.welcome::<Arc<Desired>>(from, &keep) {
            Ok(effects) => {
                info!(term = %from.term, incarnation = ?from.incarnation, kept = keep.len(), "welcomed");
                self.terms.send_replace(from.term);
                self.apply(effects, "");
                // Statuses are not confirmed: those on a stream that broke, and those a leader had not stored when it
                // died, are lost, and an appliance that is well reports nothing for a long time.
                self.command(RunnerCommand::Restate);
                Some(ControlEvent::Welcomed(part.lease))
            }
            Err(refused) => {
                warn!(term = %from.term, incarnation = ?from.incarnation, "welcome dropped: {refused}");
                Some(ControlEvent::StreamEnded(StreamEnd::Again(STALE_WELCOME_PAUSE)))
            }
        }
    }

    fn on_delta(
        &mut self,
        from: session::Envelope,
        delta: Delta,
        unreadable: Vec<Unreadable>,
        traceparent: &str,
    ) -> Option<ControlEvent> {
        let target = delta.target;
        match self.assignments.delta(from, delta) {
            Ok(effects) => {
                self.apply(effects, traceparent);
                unreadable.into_iter().for_each(|entry| self.skip(entry));
                self.commands.push_back(Queued::Applied(target));
                None
            }
            Err(DeltaRefused::Stale) => {
                debug!("a delta of another conversation was dropped");
                None
            }
            Err(refused @ DeltaRefused::Base { .. }) => {
                warn!("{refused}; sending hello again");
                Some(ControlEvent::StreamEnded(StreamEnd::Again(Duration::ZERO)))
            }
        }
    }

    fn on_refused(&self, refused: &session::Refused) -> StreamEnd {
        use RefusedReason as Reason;
        let later = refused.retry_after.unwrap_or_default().min(Duration::from_secs(30));
        match refused.reason {
            Reason::IncarnationOver => return StreamEnd::LifeOver(format!("the leader says so: {}", refused.detail)),
            Reason::NameTaken => {
                warn!(worker = %self.name, "another worker of this name may still act: {}", refused.detail);
            }
            Reason::AssignmentsDiffer => {
                let owned = self.assignments.len();
                error!(owned, "the leader's table differs from what this worker owns: {}", refused.detail);
            }
            Reason::Malformed => error!("the coordinator cannot read a message of this worker: {}", refused.detail),
            Reason::NotLeading | Reason::Superseded | Reason::Stopping | Reason::Unknown => {
                info!(reason = ?refused.reason, "the coordinator ended the session: {}", refused.detail);
            }
        }
        match refused.reason {
            Reason::Stopping => StreamEnd::CoordinatorStops(later),
            _ => StreamEnd::Again(later),
        }
    }

    /// Why an appliance cannot be taken, if so.
    fn unwanted(&self, desired: &Desired) -> Option<String> {
        let (driver, kind) = (&desired.driver, desired.spec.kind.kind_name());
        match self.profile.drivers.get(driver) {
            None => Some(format!("driver {driver} is not offered here")),
            // A leader of the version before asks no worker for its kinds.
            Some(offered) if !offered.kinds.contains(&kind) => {
                Some(format!("driver {driver} does not run {kind} here"))
            }
            // Offered before the leader heard of it.
            Some(_) => self.control.is_draining().then(|| "this worker is about to stop".to_owned()),
        }
    }

    pub(super) fn apply(&mut self, effects: Vec<AssignmentEffect<Arc<Desired>>>, traceparent: &str) {
        for effect in effects {
            match effect {
                AssignmentEffect::Take { appliance, token, desired, carryover, suspect } => {
                    if let Some(reason) = self.unwanted(&desired) {
                        self.assignments.declined(appliance, token);
                        self.outgoing.decline(appliance, token, reason);
                        continue;
                    }
                    let span = info_span!("adopt", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    let _entered = span.enter();
                    self.gate.admit(appliance, token, carryover.fence_delay);
                    self.outgoing.granted(appliance, token);
                    self.command(RunnerCommand::Take {
                        appliance,
                        token,
                        desired,
                        progress: carryover.progress,
                        hold: carryover.fence_delay,
                        suspect,
                        traceparent: traceparent.to_owned(),
                    });
                    debug!("taken");
                }
                AssignmentEffect::Decline(appliance, token) => {
                    self.outgoing.decline(appliance, token, "it is not free here".to_owned());
                }
                AssignmentEffect::Fence(appliance, token) => {
                    // Before the lease is extended by the welcome that said so.
                    warn!(%appliance, %token, "held, but not kept by the leader: the gate is shut for it");
                    self.gate.dismiss(appliance, token);
                    self.command(RunnerCommand::Release { appliance, token });
                }
                AssignmentEffect::Release(appliance, token) => {
                    let span = info_span!("release", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    self.releasing.insert((appliance, token), span);
                    self.command(RunnerCommand::Release { appliance, token });
                }
                AssignmentEffect::Again(release) => self.outgoing.released(release),
                AssignmentEffect::Update { appliance, token, desired } => {
                    self.command(RunnerCommand::Update { appliance, token, desired });
                }
                AssignmentEffect::Check(appliance, token, number) => {
                    self.command(RunnerCommand::Check { appliance, token, number });
                }
            }
        }
    }

    /// An entry of a delta could not be read. An offer is declined with the reason; what is held stays as it was, and so
    /// does the generation that is reported, by which people see that the newer one was not taken up.
    fn skip(&mut self, entry: Unreadable) {
        let Unreadable { grant: GrantRef { appliance, token }, problem } = entry;
        warn!(%appliance, %token, "skipping an entry of a delta that does not parse: {problem}");
        if self.assignments.is_news(appliance, token) {
            self.outgoing.decline(appliance, token, problem);
        }
    }

    /// Takes in what the runner says. `Some` when the leader has to hear of it in a `Hello`.
    pub(super) fn on_event(&mut self, event: RunnerEvent) -> Option<StreamEnd> {
        match event {
            RunnerEvent::Refused { appliance, token, newer } => return self.on_refused_token(appliance, token, newer),
            RunnerEvent::Released { appliance, token, progress, hold } => {
                // The gate first: once the leader may hear of it, nothing here must be able to act.
                self.gate.dismiss(appliance, token);
                // With `taken` of the next owner, this is how long nobody looked after it.
                debug!(%appliance, %token, "released");
                self.releasing.remove(&(appliance, token));
                let carryover = Carryover { progress, fence_delay: hold };
                if self.assignments.released(appliance, token, carryover.clone()) {
                    self.outgoing.forget(appliance);
                    self.outgoing.released(session::Release { appliance, token, carryover });
                }
            }
            RunnerEvent::Gone { appliance, token } => {
                self.gate.dismiss(appliance, token);
                self.releasing.remove(&(appliance, token));
                if self.assignments.removed(appliance, token) {
                    self.outgoing.forget(appliance);
                    self.outgoing.removed(GrantRef::new(appliance, token));
                }
            }
            RunnerEvent::Begins { appliance, token, number } => {
                if self.assignments.is_held(appliance, token) {
                    self.outgoing.begins(AnnouncedStep { appliance, token, number });
                }
            }
            RunnerEvent::Done { appliance, token, number } => {
                if self.assignments.is_held(appliance, token) {
                    self.outgoing.done(AnnouncedStep { appliance, token, number });
                }
            }
            RunnerEvent::Status { appliance, token, status, checked } => {
                if self.assignments.is_held(appliance, token) {
                    self.outgoing.report(appliance, token, status, checked);
                }
            }
        }
        None
    }

    /// The far side of an appliance has seen a newer token. When it is of a later term than the leader's, the store was
    /// put back to an older state: the leader has to begin a term above it, which it does after a `Hello` that says so.
    /// Once it has, grants of before are given up, so that new ones take their place.
    fn on_refused_token(&mut self, appliance: ApplianceId, token: Token, newer: Token) -> Option<StreamEnd> {
        if self.assignments.met(newer.term) {
            let now = clock::now();
            if self.raised.is_some_and(|at| now.since(at) < RAISE_PAUSE) {
                debug!(%appliance, %token, %newer, "refused for a token of a later term; the next hello says so");
                return None;
            }
            self.raised = Some(now);
            warn!(%appliance, %token, %newer, "refused for a token of a later term than the leader's; saying hello again");
            return Some(StreamEnd::Again(Duration::ZERO));
        }
        if self.assignments.give_up(appliance, token, newer) {
            info!(%appliance, %token, %newer, "given up: only a newer grant can be acted on");
            self.command(RunnerCommand::Release { appliance, token });
        }
        None
    }
}
