//! What the coordination service tells the leader, and what operators do to its members.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use common::Life;
use common::{Incarnation, Term, Timestamp, WorkerId};
use coordination::{LeaseNode, MemberNode, RosterEvent};
use coordinator_core::machine::Event;
use coordinator_core::membership::{ObservedLease, ObservedMember};
use runtime::clock;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{Ended, Leader};
use crate::commands::{CommandError, Operator, Reply};
use crate::record::AuditEvent;
use crate::store::{StoreWrite, Unreadable};
use crate::views::{FrozenView, PausedView};

/// Contradictions that are shown; older ones stand in the log.
const VIOLATIONS: usize = 10;

/// What a person should look at.
#[derive(Debug, Default)]
pub(super) struct Notes {
    found: Vec<String>,
    /// The term of the database before this one.
    stored: Term,
    /// That a worker had met a later one is among them.
    rewound: bool,
    violations: VecDeque<String>,
}

impl Notes {
    /// What the terms tell: the store's, the service's, and one that a worker had met.
    pub(super) fn found(stored: Term, service: Option<Term>, external: bool, met: Term) -> Self {
        let mut found = Vec::new();
        match service {
            None if external && stored > Term::default() => found.push(format!(
                "the coordination service knew no term, the database was at {stored}: its data is new, or was wiped"
            )),
            Some(term) if term < stored => found.push(format!(
                "the coordination service was at {term}, the database at {stored}: its data comes from an older copy"
            )),
            // One ahead is a leader that ended between the two.
            Some(term) if term.get() > stored.get().saturating_add(1) => found.push(format!(
                "the database was at {stored}, the coordination service at {term}: the database comes from an older \
                 copy, or leaders ended before they could write to it"
            )),
            _ => {}
        }
        for note in &found {
            warn!("{note}");
        }
        let mut notes = Self { found, stored, rewound: false, violations: VecDeque::new() };
        if service.is_none_or(|term| met > term) {
            notes.met(met);
        }
        notes
    }

    /// A worker had met this term of another leader. Leaders begin their term in the database before they speak to
    /// anybody, so one that the database does not know was lost with what was written in it.
    pub(super) fn met(&mut self, met: Term) {
        if met <= self.stored || self.rewound {
            return;
        }
        self.rewound = true;
        let note = format!(
            "a worker had met {met}, the database was at {}: the database comes from an older copy; what workers hold \
             under later tokens is taken from them and given anew",
            self.stored
        );
        warn!("{note}");
        self.found.push(note);
    }

    pub(super) fn unreadable(&mut self, one: &Unreadable) {
        self.found.push(format!(
            "appliance {} ({}/{}) is stored and cannot be read, so nobody looks after it: {}",
            one.id, one.tenant, one.name, one.why
        ));
    }

    pub(super) fn violation(&mut self, text: String) {
        if self.violations.contains(&text) {
            return;
        }
        if self.violations.len() == VIOLATIONS {
            self.violations.pop_front();
        }
        self.violations.push_back(text);
    }

    pub(super) fn list(&self) -> Vec<String> {
        self.found.iter().chain(&self.violations).cloned().collect()
    }
}

/// The next event of the roster; never when this coordinator itself is the authority.
pub(super) async fn next(
    roster: &mut Option<mpsc::Receiver<(Timestamp, RosterEvent)>>,
) -> Option<(Timestamp, RosterEvent)> {
    match roster {
        Some(roster) => roster.recv().await,
        None => std::future::pending().await,
    }
}

fn nodes(members: Vec<MemberNode>) -> BTreeMap<WorkerId, ObservedMember> {
    let node = |m: MemberNode| (m.worker, ObservedMember { incarnation: m.incarnation, profile: m.profile });
    members.into_iter().map(node).collect()
}

fn lease(node: LeaseNode) -> (Life, ObservedLease) {
    let LeaseNode { worker, incarnation, lease, evicted } = node;
    (Life::new(worker, incarnation), ObservedLease { lease, evicted })
}

impl Leader<'_> {
    /// Takes in an event of the workers' nodes. Only their order counts: the end of a life arrives after each of its
    /// heartbeats.
    pub(super) fn on_roster_event(&mut self, event: Option<(Timestamp, RosterEvent)>) {
        let event = match event {
            None => {
                debug!("the coordination service sends no more events");
                self.roster = None;
                self.end = Some(Ended::LeadershipLost);
                return;
            }
            Some((_, RosterEvent::Read { members, leases })) => {
                debug!(members = members.len(), leases = leases.len(), "nodes were read");
                Event::Read { members: nodes(members), leases: leases.into_iter().map(lease).collect() }
            }
            Some((_, RosterEvent::Members(members))) => Event::Members(nodes(members)),
            Some((_, RosterEvent::Beat(node))) => {
                let (life, node) = lease(node);
                Event::Observed(life, node)
            }
            Some((_, RosterEvent::Ended(worker, incarnation))) => Event::Over(Life::new(worker, incarnation)),
        };
        self.step(event);
    }

    pub(super) fn evict(
        &mut self,
        worker: WorkerId,
        incarnation: Option<Incarnation>,
        request: &Operator,
        reply: Reply<()>,
    ) {
        let current = self.machine.life_of(&worker);
        let life = match (incarnation, current) {
            (None, Some(life)) => Life::new(worker.clone(), life),
            (Some(asked), _) if self.machine.is_alive(&Life::new(worker.clone(), asked)) => {
                Life::new(worker.clone(), asked)
            }
            (Some(_), current) if self.machine.knows(&worker) => {
                return drop(reply.send(Err(CommandError::OtherLife { worker, current })));
            }
            (None, None) if self.machine.knows(&worker) => {
                return drop(reply.send(Err(CommandError::NoLease(worker))));
            }
            _ => return drop(reply.send(Err(CommandError::NoWorker(worker)))),
        };
        self.audit("evict", worker.as_str(), request);
        self.evictions.retain(|(_, reply)| !reply.is_closed());
        self.evictions.push((life.clone(), reply));
        self.step(Event::Evict(life));
    }

    /// Answers those whose eviction is certain.
    pub(super) fn answer_evictions(&mut self) {
        if self.evictions.is_empty() {
            return;
        }
        let (waiting, done): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.evictions).into_iter().partition(|(life, _)| self.machine.is_alive(life));
        self.evictions = waiting;
        for (_, reply) in done {
            let _ = reply.send(Ok(()));
        }
    }

    pub(super) fn pause(&mut self, request: &Operator, reply: Reply<()>) {
        self.audit("pause", "placement", request);
        let Operator { reason, actor } = request.clone();
        let why = if reason.is_empty() { format!("by {actor}") } else { reason.clone() };
        self.paused = Some(PausedView { reason, since: SystemTime::now(), by: actor });
        self.step(Event::Pause(why));
        self.show_cluster(clock::now());
        let _ = reply.send(Ok(()));
    }

    pub(super) fn resume(&mut self, request: &Operator, reply: Reply<()>) {
        self.audit("resume", "placement", request);
        self.paused = None;
        self.step(Event::Resume);
        self.show_cluster(clock::now());
        let _ = reply.send(Ok(()));
    }

    fn audit(&mut self, action: &str, subject: &str, request: &Operator) {
        let event = AuditEvent {
            time: SystemTime::now(),
            actor: request.actor.clone(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            detail: request.reason.clone(),
        };
        self.note("audit event", vec![StoreWrite::Event(event)]);
    }

    pub(super) fn frozen_view(&self, now: Timestamp) -> Option<FrozenView> {
        self.machine.frozen(now).map(|frozen| FrozenView {
            reason: format!(
                "{} of {} workers vanished within a short time; nothing moves before they are back or placement is resumed",
                frozen.missing.len(),
                frozen.missing.len() + frozen.live
            ),
            since: SystemTime::now().checked_sub(frozen.since).unwrap_or_else(SystemTime::now),
            missing: frozen.missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_the_database_does_not_know_is_noted_once() {
        let (stored, service) = (Term::new(3), Some(Term::new(4)));
        let mut notes = Notes::found(stored, service, true, Term::default());
        notes.met(Term::new(3));
        assert_eq!(notes.list(), Vec::<String>::new(), "one ahead is a leader that ended before it could write");
        notes.met(Term::new(4));
        notes.met(Term::new(4));
        let list = notes.list();
        assert!(list.len() == 1 && list[0].contains("a worker had met t4, the database was at t3"), "{list:?}");
    }
}
