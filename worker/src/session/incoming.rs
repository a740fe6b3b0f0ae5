//! What a session does about messages of the leader, and about events of the runner.

use std::sync::Arc;
use std::time::Duration;

use common::session::{self, AnnouncedStep, Carryover, Delta, Desired, GrantRef, RefusedReason, ToWorker};
use common::{ApplianceId, Token};
use proto::convert::down::{FromCoordinator, Unreadable};
use runtime::{clock, telemetry};
use tracing::{debug, error, info, info_span, warn};
use worker_core::assignments::{Effect, Refused};

use super::beat::Beat;
use super::{Ended, Queued, Session};
use crate::runner::{Command, Event};

/// How often a stream is ended because something knows of a higher term than the leader's. Each costs the leader an
/// election, so an appliance that makes tokens up must not cause one after the other; the coordinator forgives those that
/// are more than a minute apart.
const RAISE_PAUSE: Duration = Duration::from_secs(120);

impl Session {
    /// Takes in a message of the leader. `Some` when the stream ends because of it.
    pub(super) fn on_message(&mut self, received: FromCoordinator, beat: Option<&mut Beat>) -> Option<Ended> {
        let FromCoordinator { envelope: from, message, more: _, unreadable, traceparent } = received;
        match message {
            ToWorker::Welcome(_) => None,
            ToWorker::BeatAck(number) => {
                if self.assignments.counts(from)
                    && let Some(deadline) = beat.and_then(|beat| beat.answered(number))
                {
                    self.gate.extend(deadline);
                }
                None
            }
            ToWorker::Delta(delta) => self.on_delta(from, delta, unreadable, &traceparent),
            ToWorker::Confirm(confirm) => {
                if self.assignments.confirm(from, &confirm.released).is_ok() {
                    for AnnouncedStep { appliance, token, number } in confirm.begin {
                        self.command(Command::Clear { appliance, token, number });
                    }
                }
                None
            }
            ToWorker::Refused(refused) => Some(self.on_refused(&refused)),
            ToWorker::Drained => {
                self.drained = self.draining && self.assignments.counts(from);
                None
            }
        }
    }

    fn on_delta(
        &mut self,
        from: session::Envelope,
        delta: Delta,
        unreadable: Vec<Unreadable>,
        traceparent: &str,
    ) -> Option<Ended> {
        let target = delta.target;
        match self.assignments.delta(from, delta) {
            Ok(effects) => {
                self.apply(effects, traceparent);
                unreadable.into_iter().for_each(|entry| self.skip(entry));
                self.commands.push_back(Queued::Applied(target));
                None
            }
            Err(Refused::Stale) => {
                debug!("a delta of another conversation was dropped");
                None
            }
            Err(refused @ Refused::Base { .. }) => {
                warn!("{refused}; sending hello again");
                Some(Ended::Again(Duration::ZERO))
            }
        }
    }

    pub(super) fn on_refused(&self, refused: &session::Refused) -> Ended {
        use RefusedReason as Reason;
        let later = refused.retry_after.unwrap_or_default().min(Duration::from_secs(30));
        match refused.reason {
            Reason::IncarnationOver => return Ended::LifeOver(format!("the leader says so: {}", refused.detail)),
            Reason::NameTaken => {
                warn!(worker = %self.name, "another worker of this name may still act: {}", refused.detail);
            }
            Reason::AssignmentsDiffer => {
                error!(held = self.assignments.len(), "the leader's table says something else: {}", refused.detail);
            }
            Reason::Malformed => error!("the coordinator cannot read what this worker says: {}", refused.detail),
            // The only coordinator there is.
            Reason::Stopping if self.draining && self.beats_on_stream => {
                info!("the coordinator stops as well");
                return Ended::Stopping;
            }
            Reason::NotLeading | Reason::Superseded | Reason::Stopping | Reason::Unknown => {
                info!(reason = ?refused.reason, "the coordinator ended the session: {}", refused.detail);
            }
        }
        Ended::Again(later)
    }

    pub(super) fn apply(&mut self, effects: Vec<Effect<Arc<Desired>>>, traceparent: &str) {
        for effect in effects {
            match effect {
                Effect::Take { appliance, token, desired, carryover, suspect } => {
                    let unwanted = if !self.profile.drivers.contains(&desired.driver) {
                        Some(format!("driver {} is not offered here", desired.driver))
                    } else {
                        // Offered before the leader heard of it.
                        self.draining.then(|| "this worker is about to stop".to_owned())
                    };
                    if let Some(reason) = unwanted {
                        self.assignments.declined(appliance, token);
                        self.outgoing.decline(appliance, token, reason);
                        continue;
                    }
                    let span = info_span!("adopt", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    let _entered = span.enter();
                    self.gate.admit(appliance, token, carryover.fence_delay);
                    self.outgoing.granted(appliance, token);
                    self.command(Command::Take {
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
                Effect::Decline(appliance, token) => {
                    self.outgoing.decline(appliance, token, "it is not free here".to_owned());
                }
                Effect::Fence(appliance, token) => {
                    // Before the lease is extended by the welcome that said so.
                    warn!(%appliance, %token, "held, but not kept by the leader: the gate is shut for it");
                    self.gate.dismiss(appliance, token);
                    self.command(Command::Release { appliance, token });
                }
                Effect::Release(appliance, token) => {
                    let span = info_span!("release", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    self.releasing.insert((appliance, token), span);
                    self.command(Command::Release { appliance, token });
                }
                Effect::Again(release) => self.outgoing.released(release),
                Effect::Update { appliance, token, desired } => {
                    self.command(Command::Update { appliance, token, desired });
                }
                Effect::Check(appliance, token, number) => {
                    self.command(Command::Check { appliance, token, number });
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
    pub(super) fn on_event(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Refused { appliance, token, newer } => return self.on_refused_token(appliance, token, newer),
            Event::Released { appliance, token, progress, hold } => {
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
            Event::Gone { appliance, token } => {
                self.gate.dismiss(appliance, token);
                self.releasing.remove(&(appliance, token));
                if self.assignments.removed(appliance, token) {
                    self.outgoing.forget(appliance);
                    self.outgoing.removed(GrantRef::new(appliance, token));
                }
            }
            Event::Begins { appliance, token, number } => {
                if self.assignments.is_held(appliance, token) {
                    self.outgoing.begins(AnnouncedStep { appliance, token, number });
                }
            }
            Event::Done { appliance, token, number } => {
                if self.assignments.is_held(appliance, token) {
                    self.outgoing.done(AnnouncedStep { appliance, token, number });
                }
            }
            Event::Status { appliance, token, status, checked } => {
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
    fn on_refused_token(&mut self, appliance: ApplianceId, token: Token, newer: Token) -> Option<Ended> {
        if self.assignments.met(newer.term) {
            let now = clock::now();
            if self.raised.is_some_and(|at| now.since(at) < RAISE_PAUSE) {
                debug!(%appliance, %token, %newer, "refused for a token of a later term; the next hello says so");
                return None;
            }
            self.raised = Some(now);
            warn!(%appliance, %token, %newer, "refused for a token of a later term than the leader's; saying hello again");
            return Some(Ended::Again(Duration::ZERO));
        }
        if self.assignments.give_up(appliance, token, newer) {
            info!(%appliance, %token, %newer, "given up: only a newer grant can be acted on");
            self.command(Command::Release { appliance, token });
        }
        None
    }
}
