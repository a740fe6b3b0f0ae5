//! What a session does about what it is told: by the leader on a stream, and by the runner at any time.

use std::sync::Arc;
use std::time::Duration;

use common::{ApplianceId, Token};
use proto::convert::{DesiredParts, Envelope, Step, down};
use runtime::{clock, telemetry};
use tracing::{debug, error, info, info_span, warn};
use worker_core::desired::Desired;
use worker_core::holdings::{Effect, Handed, Refused, Tell};

use super::beat::Beat;
use super::{Ended, Queued, Session, link};
use crate::runner::{Command, Event};

/// How often a stream is ended because something knows of a higher term than the leader's. Each costs the leader an
/// election, so an appliance that makes tokens up must not cause one after the other; the coordinator forgives those that
/// are more than a minute apart.
const RAISE_PAUSE: Duration = Duration::from_secs(120);

impl Session {
    /// Takes in a message of the leader. `Some` when the stream ends because of it.
    pub(super) fn on_message(
        &mut self,
        envelope: &Envelope,
        said: down::Down,
        beat: Option<&mut Beat>,
    ) -> Option<Ended> {
        let from = link::core_envelope(envelope)?;
        match said {
            down::Down::Welcome(_) => None,
            down::Down::BeatAck(number) => {
                if self.holdings.counts(from)
                    && let Some(deadline) = beat.and_then(|beat| beat.answered(number))
                {
                    self.gate.extend(deadline);
                }
                None
            }
            down::Down::Delta(delta) => {
                let mut delta = delta;
                let target = delta.target;
                let traceparent = std::mem::take(&mut delta.traceparent);
                let unreadable = std::mem::take(&mut delta.unreadable);
                match self.holdings.delta(from, delta.base, target, tells(delta)) {
                    Ok(effects) => {
                        self.apply(effects, &traceparent);
                        unreadable.into_iter().for_each(|(id, token, problem)| self.set_aside(id, token, problem));
                        self.commands.push_back(Queued::Applied(target));
                        None
                    }
                    Err(Refused::Stale) => {
                        debug!("a delta of another conversation was dropped");
                        None
                    }
                    Err(refused @ Refused::Base { .. }) => {
                        warn!("{refused}; saying hello again");
                        Some(Ended::Again(Duration::ZERO))
                    }
                }
            }
            down::Down::Confirm(confirm) => {
                if self.holdings.confirm(from, &confirm.released).is_ok() {
                    for Step { appliance, token, number } in confirm.begun {
                        self.command(Command::Clear { appliance, token, number });
                    }
                }
                None
            }
            down::Down::Refused(refused) => Some(self.on_refused(&refused)),
            down::Down::Drained => {
                self.drained = self.draining && self.holdings.counts(from);
                None
            }
        }
    }

    pub(super) fn on_refused(&self, refused: &down::Refused) -> Ended {
        use down::RefusedReason as Reason;
        let later = refused.retry_after.unwrap_or_default().min(Duration::from_secs(30));
        match refused.reason {
            Reason::IncarnationOver => return Ended::LifeOver(format!("the leader says so: {}", refused.detail)),
            Reason::NameTaken => {
                warn!(worker = %self.name, "another worker of this name may still act: {}", refused.detail);
            }
            Reason::HoldingsDiffer => {
                error!(held = self.holdings.len(), "the leader's table says something else: {}", refused.detail);
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
                Effect::Take { appliance, token, desired, handed, suspect } => {
                    let unwanted = if !self.profile.drivers.contains(&desired.driver) {
                        Some(format!("driver {} is not offered here", desired.driver))
                    } else {
                        // Offered before the leader heard of it.
                        self.draining.then(|| "this worker is about to stop".to_owned())
                    };
                    if let Some(reason) = unwanted {
                        self.holdings.declined(appliance, token);
                        self.outgoing.decline(appliance, token, reason);
                        continue;
                    }
                    let span = info_span!("adopt", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    let _entered = span.enter();
                    self.gate.admit(appliance, token, handed.hold);
                    self.outgoing.granted(appliance, token);
                    self.command(Command::Take {
                        appliance,
                        token,
                        desired,
                        progress: handed.progress,
                        hold: handed.hold,
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
                Effect::Again(appliance, token, handed) => self.outgoing.released(appliance, token, handed),
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
    fn set_aside(&mut self, appliance: ApplianceId, token: Token, problem: String) {
        warn!(%appliance, %token, "an entry of a delta cannot be read: {problem}");
        if self.holdings.is_news(appliance, token) {
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
                let handed = Handed { progress, hold };
                if self.holdings.released(appliance, token, handed.clone()) {
                    self.outgoing.forget(appliance);
                    self.outgoing.released(appliance, token, handed);
                }
            }
            Event::Gone { appliance, token } => {
                self.gate.dismiss(appliance, token);
                self.releasing.remove(&(appliance, token));
                if self.holdings.gone(appliance, token) {
                    self.outgoing.forget(appliance);
                    self.outgoing.gone(appliance, token);
                }
            }
            Event::Begins { appliance, token, number } => {
                if self.holdings.is_held(appliance, token) {
                    self.outgoing.begins(Step { appliance, token, number });
                }
            }
            Event::Done { appliance, token, number } => {
                if self.holdings.is_held(appliance, token) {
                    self.outgoing.done(Step { appliance, token, number });
                }
            }
            Event::Status { appliance, token, status, checked } => {
                if self.holdings.is_held(appliance, token) {
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
        if self.holdings.met(newer.term) {
            let now = clock::now();
            if self.raised.is_some_and(|at| now.since(at) < RAISE_PAUSE) {
                debug!(%appliance, %token, %newer, "refused for a token of a later term; the next hello says so");
                return None;
            }
            self.raised = Some(now);
            warn!(%appliance, %token, %newer, "refused for a token of a later term than the leader's; saying hello again");
            return Some(Ended::Again(Duration::ZERO));
        }
        if self.holdings.give_up(appliance, token, newer) {
            info!(%appliance, %token, %newer, "given up: only a newer grant can be acted on");
            self.command(Command::Release { appliance, token });
        }
        None
    }
}

fn tells(delta: down::Delta) -> Vec<Tell<Arc<Desired>>> {
    let mut tells = Vec::new();
    tells.extend(delta.prepare.into_iter().map(|(appliance, _)| Tell::Prepare(appliance)));
    tells.extend(delta.grant.into_iter().map(|g| Tell::Grant {
        appliance: g.appliance,
        token: g.token,
        edition: g.desired.edition,
        desired: desired(g.desired),
        handed: Handed { progress: g.progress, hold: g.hold },
        suspect: g.suspect,
    }));
    tells.extend(delta.release.into_iter().map(|(appliance, token)| Tell::Release(appliance, token)));
    tells.extend(delta.update.into_iter().map(|u| Tell::Update {
        appliance: u.appliance,
        token: u.token,
        edition: u.desired.edition,
        desired: desired(u.desired),
    }));
    tells.extend(delta.check.into_iter().map(|c| Tell::Check(c.appliance, c.token, c.number)));
    tells
}

fn desired(parts: DesiredParts) -> Arc<Desired> {
    let DesiredParts { name, tenant, driver, edition, revision, deleting, spec } = parts;
    Arc::new(Desired { name, tenant, driver, generation: edition.generation, revision, deleting, spec })
}
