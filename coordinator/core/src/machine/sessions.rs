//! Streams of workers: who speaks on which, and whether it counts.
//!
//! One stream per life at a time, the newest `Hello` closes older ones; which `Hello` counts is decided in [`super::greeting`]. A
//! stream is *settled* once the worker has answered
//! the welcome to its `Hello`; only then is what it said it holds compared with the table, and only then is it given
//! anything. A `Hello` alone proves nothing: it may have been stuck in the network while a newer stream, and a whole
//! term, passed it by, and whoever believes it takes away what the worker was granted since. A dead stream cannot answer.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet};

use common::mutant::{self, Mutant};
use common::session::{
    Ack, AnnouncedStep, Declined, Delta, DeltaEntry, Envelope, GrantRef, Hello, OwnedDigest, OwnedGrant, Release,
    Report, StatusReport, ToCoordinator, ToWorker, Welcome,
};
use common::status::Phase;
use common::{ApplianceId, Edition, Life, Mode, StreamNumber, Term, Timestamp, Token, WorkerId};

use super::greeting::Greetings;
use super::{Action, Machine, Refusal};
use crate::audit::Verdict;
use crate::grants::{Granted, StoredMember};
use crate::handoff::{HandoffEvent, HandoffState};
use crate::health::SessionState;
use crate::membership::Beat;
use crate::outbox::{Outbox, OutboxEntry};
use crate::quarantine::Quarantine;
use crate::slot::Slot;
use crate::table::Table;
use crate::violation::ViolationKind;

/// Most appliances named in one violation.
const LOST_SHOWN: usize = 5;

/// One stream, as the shell numbers them. Never used twice in a process.
pub type StreamId = u64;

#[derive(Clone, Debug)]
enum SessionStage {
    /// The member behind it is being made durable.
    Storing(Box<Hello>),
    /// Welcomed, and asked for an answer by an empty delta.
    Welcomed(Box<Hello>),
    /// The worker has answered: what its `Hello` said is true of now.
    Settled,
}

#[derive(Clone, Debug)]
pub(super) struct WorkerSession {
    life: Life,
    stream: StreamNumber,
    /// Its life began with the `Hello` of this stream, and nothing outside has been told of it before the welcome.
    is_new: bool,
    /// Its worker keeps hands off where it is told so.
    knows_modes: bool,
    stage: SessionStage,
    outbox: Outbox,
}

impl WorkerSession {
    const fn is_settled(&self) -> bool {
        matches!(self.stage, SessionStage::Settled)
    }

    const fn envelope(&self, term: Term) -> Envelope {
        Envelope { term, incarnation: Some(self.life.incarnation), stream: self.stream }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct WorkerSessions {
    by_conn: BTreeMap<StreamId, WorkerSession>,
    by_life: BTreeMap<Life, StreamId>,
    /// Workers of a version before debug modes, as of their newest stream.
    without_modes: BTreeSet<WorkerId>,
    pub(super) greetings: Greetings,
}

impl WorkerSessions {
    /// No streams yet. Claims of higher terms count from `claims_from` on.
    pub(super) fn new(claims_from: Timestamp) -> Self {
        Self { greetings: Greetings::new(claims_from), ..Self::default() }
    }

    pub(super) fn state(&self, life: &Life) -> SessionState {
        match self.by_life.get(life).and_then(|conn| self.by_conn.get(conn)) {
            None => SessionState::None,
            Some(session) if session.is_settled() => SessionState::Settled,
            Some(_) => SessionState::Unsettled,
        }
    }

    /// Whether the worker at the end of the stream of a life keeps hands off where it is told so.
    pub(super) fn knows_modes(&self, life: &Life) -> bool {
        let session = self.by_life.get(life).and_then(|conn| self.by_conn.get(conn));
        session.is_some_and(|session| session.knows_modes)
    }

    pub(super) const fn without_modes(&self) -> &BTreeSet<WorkerId> {
        &self.without_modes
    }

    /// Notes whether a worker knows debug modes. Returns whether that is news.
    pub(super) fn note_version(&mut self, worker: &WorkerId, knows_modes: bool) -> bool {
        if knows_modes { self.without_modes.remove(worker) } else { self.without_modes.insert(worker.clone()) }
    }

    /// Entries that wait in all outboxes.
    pub(super) fn unsent(&self) -> usize {
        self.by_conn.values().map(|session| session.outbox.len()).sum()
    }

    fn remove(&mut self, conn: StreamId) -> Option<WorkerSession> {
        let session = self.by_conn.remove(&conn)?;
        if self.by_life.get(&session.life) == Some(&conn) {
            self.by_life.remove(&session.life);
        }
        Some(session)
    }

    pub(super) fn settled_conn(&self, life: &Life) -> Option<StreamId> {
        let conn = *self.by_life.get(life)?;
        self.by_conn.get(&conn).filter(|session| session.is_settled()).map(|_| conn)
    }

    fn settled(&mut self, life: &Life) -> Option<(StreamId, &mut WorkerSession)> {
        let conn = *self.by_life.get(life)?;
        let session = self.by_conn.get_mut(&conn)?;
        session.is_settled().then_some((conn, session))
    }
}

impl Machine {
    /// Whether the worker at the end of this stream has answered its welcome, so that nothing of its `Hello` is kept.
    #[must_use]
    pub fn has_settled(&self, conn: StreamId) -> bool {
        self.sessions.by_conn.get(&conn).is_some_and(WorkerSession::is_settled)
    }

    /// Takes in a message of a worker.
    pub(super) fn received(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope, message: ToCoordinator) {
        match message {
            ToCoordinator::Hello(hello) => self.hello(now, conn, envelope, *hello),
            ToCoordinator::Beat(number) => self.beat(now, conn, envelope, number),
            ToCoordinator::Ack(ack) => self.acknowledged(now, conn, envelope, ack),
            ToCoordinator::Report(report) => self.reported(now, conn, envelope, report),
            ToCoordinator::Drain { hand_back } => self.drain(now, conn, envelope, hand_back),
            ToCoordinator::Leave => self.leave(now, conn, envelope),
        }
    }

    /// Sends a message on a stream that is open.
    pub(super) fn send(&mut self, conn: StreamId, message: ToWorker<()>) {
        if let Some(session) = self.sessions.by_conn.get(&conn) {
            self.out.push(Action::Send(conn, session.envelope(self.epoch.term), message));
        }
    }

    /// A `Hello` counts: it is a heartbeat, and its stream takes the place of an older one of the same life.
    pub(super) fn greeted(
        &mut self,
        now: Timestamp,
        conn: StreamId,
        stream: StreamNumber,
        mut hello: Hello,
        life: Life,
        is_new: bool,
    ) {
        self.sessions.greetings.newest.insert(life.clone(), stream);
        if let Some(&older) = self.sessions.by_life.get(&life) {
            self.sessions.remove(older);
            self.out.close(older, Refusal::Superseded);
        }
        hello.profile = self.limit(&hello.worker, std::mem::take(&mut hello.profile));
        if is_new {
            self.membership.join(now, life.worker.clone(), life.incarnation, hello.profile.clone());
        } else if self.membership.is_embedded() {
            // It was sent after the last heartbeat that was answered.
            self.membership.beat(now, &life);
            self.membership.publish(&life, hello.profile.clone());
        }
        if let Some(secret) = hello.secret.take() {
            self.membership.seal(&life, secret.seal());
        }
        let changed = !self.membership.is_stored(&life);
        if changed && let Some(profile) = self.membership.profile(&life).cloned() {
            let seal = self.membership.seal_of(&life);
            let Life { worker, incarnation } = life.clone();
            self.writes.member(conn, StoredMember { worker, incarnation, profile, departed: false, seal });
        }
        self.sessions.by_life.insert(life.clone(), conn);
        let knows_modes = hello.knows_modes;
        let stage = SessionStage::Storing(Box::new(hello));
        let session =
            WorkerSession { life: life.clone(), stream, is_new, knows_modes, stage, outbox: Outbox::default() };
        self.sessions.by_conn.insert(conn, session);
        self.out.worker_changed(life.worker);
        if !changed {
            self.welcome(now, conn);
        }
    }

    /// The member behind `conn` is durable, or surely is not.
    pub(super) fn member_written(&mut self, now: Timestamp, conn: StreamId, durable: bool) {
        let Some(session) = self.sessions.by_conn.get(&conn) else { return };
        let SessionStage::Storing(_) = &session.stage else { return };
        let (life, is_new) = (session.life.clone(), session.is_new);
        if !self.membership.is_alive(&life) {
            self.sessions.remove(conn);
            self.out.close(conn, Refusal::IncarnationOver);
        } else if durable {
            self.membership.set_stored(&life);
            self.welcome(now, conn);
        } else {
            self.sessions.remove(conn);
            if is_new {
                // This life was not confirmed to its worker, which therefore cannot act in it.
                self.membership.close(now, &life, true);
            }
            self.out.close(conn, Refusal::StoreUnavailable);
        }
    }

    /// Answers a `Hello` with what stands, and asks for a sign that the stream is alive. Nothing is taken from the worker
    /// by this: what it no longer acts on it says itself, and what it holds against the table is given to no other worker.
    fn welcome(&mut self, now: Timestamp, conn: StreamId) {
        let Some(session) = self.sessions.by_conn.get_mut(&conn) else { return };
        let SessionStage::Storing(hello) = std::mem::replace(&mut session.stage, SessionStage::Settled) else { return };
        session.stage = SessionStage::Welcomed(hello.clone());
        let life = session.life.clone();
        for release in &hello.released {
            self.released(now, conn, &life, release.clone());
        }
        for &grant in &hello.removed {
            self.deleted(now, conn, &life, grant);
        }
        self.forget_conflicts(&life, &hello.owned);
        let mut keep = Vec::with_capacity(hello.owned.len());
        let mut false_claims = Vec::new();
        for held in &hello.owned {
            let entry = self.table.slot(held.appliance).and_then(|slot| Some((slot, self.table.get(slot)?)));
            let Some((slot, entry)) = entry else {
                let text =
                    format!("{} holds {}, which does not exist, under {}", life.worker, held.appliance, held.token);
                self.violation(ViolationKind::UnknownAppliance, text);
                continue;
            };
            if self.is_false_claim(slot, &life, held.token) {
                // It is not kept, so that a worker which is only wrong stops acting on it before its lease goes on.
                false_claims.push((slot, held.token));
            } else if entry.state.holder().is_some_and(|g| g.is_of(&life)) {
                keep.push(GrantRef::new(held.appliance, held.token));
            } else {
                let granted = self.granted_to(&life, held.token);
                self.transition(now, slot, HandoffEvent::Owns(granted));
            }
        }
        self.note_false_claims(&life, &false_claims);
        let lease = self.membership.last_beat(now, &life).map(|(_, lease)| lease).unwrap_or_default();
        self.send(conn, ToWorker::Welcome(Welcome { keep, lease }));
        if let Some(session) = self.sessions.by_conn.get_mut(&conn) {
            let (base, target) = session.outbox.empty();
            self.send(conn, ToWorker::Delta(Delta { base, target, rebalance: None, entries: vec![] }));
        }
    }

    /// The worker has answered its welcome: compares what it holds with the table, and makes it eligible.
    fn settle(&mut self, now: Timestamp, conn: StreamId) {
        let Some(session) = self.sessions.by_conn.get_mut(&conn) else { return };
        if !matches!(session.stage, SessionStage::Welcomed(_)) {
            return;
        }
        let SessionStage::Welcomed(hello) = std::mem::replace(&mut session.stage, SessionStage::Settled) else {
            return;
        };
        let (life, is_new, knows_modes) = (&session.life.clone(), session.is_new, session.knows_modes);
        self.note_version(&life.worker, knows_modes);
        self.quarantine.greeted(life, hello.owned.iter().map(|held| held.appliance));
        if self.conflicts.audit.greeted(life) {
            self.tell_lost(life, &hello.owned);
        }
        let mut unsaid = self.tallies.of(life);
        let (mut stale, mut ahead) = (Vec::new(), Vec::new());
        for held in &hello.owned {
            let granted = self.granted_to(life, held.token);
            let Some(slot) = self.table.slot(held.appliance) else { continue };
            if self.is_false_claim(slot, life, held.token) {
                continue;
            }
            unsaid.remove(&slot);
            let theirs = |e: &crate::table::TableRow| e.state.holder().is_some_and(|g| g.is_of(life));
            if self.table.get(slot).is_some_and(theirs) {
                self.note_held(slot, life);
                self.transition(now, slot, HandoffEvent::Owns(granted.clone()));
                let entry = self.table.get(slot).filter(|e| e.state.holder() == Some(&granted));
                match entry.map(|e| e.edition) {
                    Some(stored) if stored == held.edition => {}
                    // A worker from before editions says only the generation.
                    Some(stored) if stored.generation == held.edition.generation && held.edition.term.get() == 0 => {}
                    Some(stored) if stored.generation > held.edition.generation => stale.push((slot, held.token)),
                    Some(_) => ahead.push((slot, held.edition)),
                    None => {}
                }
                if knows_modes {
                    self.compare_mode(slot, held);
                }
            }
        }
        for slot in unsaid {
            self.transition(now, slot, HandoffEvent::OwnsNothing(life.clone()));
        }
        for (slot, token) in stale {
            self.tell(life, slot, OutboxEntry::Update(token), None);
        }
        for (slot, edition) in ahead {
            self.adopt_newer_grants(now, life, slot, edition);
        }
        if hello.highest_term < self.epoch.term {
            self.out.push(Action::Met(hello.highest_term));
        }
        self.pacing.due.spoke(life);
        self.settled_member(now, life);
        self.settled_changed(now, is_new.then_some(&life.worker));
        self.out.worker_changed(life.worker.clone());
    }

    /// A worker has a later generation than the store, or this one as another term wrote it: the store was put back to an
    /// older state. Generations are counted on from what is stored, and the worker would take one of them for what it has:
    /// so it gives the appliance up, and whoever gets it begins with what is stored.
    fn adopt_newer_grants(&mut self, now: Timestamp, life: &Life, slot: Slot, held: Edition) {
        let Some(entry) = self.table.get(slot) else { return };
        let (id, stored, owned) = (entry.id, entry.edition, matches!(entry.state, HandoffState::Owned(_)));
        let text = format!("{} holds {id} at {held}, and it is stored at {stored}: given anew as stored", life.worker);
        self.violation(ViolationKind::GenerationAhead, text);
        if owned {
            self.transition(now, slot, HandoffEvent::Take);
        }
    }

    /// The life behind a message, if it is the newest stream's, settled, and of this term.
    pub(super) fn speaker(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope) -> Option<Life> {
        let term = self.epoch.term;
        let life = self.sessions.by_conn.get(&conn).and_then(|s| {
            let right = !matches!(s.stage, SessionStage::Storing(_))
                && envelope.term == term
                && envelope.incarnation == Some(s.life.incarnation)
                && envelope.stream == s.stream;
            right.then(|| s.life.clone())
        });
        match life {
            // Only who was welcomed knows the term.
            Some(_) => self.settle(now, conn),
            None => self.counters.stale_messages += 1,
        }
        life
    }

    pub(super) fn beat(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope, number: u64) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        if !self.membership.is_embedded() {
            // Its lease is kept elsewhere, and nothing said here may extend it.
            self.counters.stale_messages += 1;
            return;
        }
        match self.membership.beat(now, &life) {
            Beat::Counts => self.send(conn, ToWorker::BeatAck(number)),
            Beat::Over => {
                self.sessions.remove(conn);
                self.out.close(conn, Refusal::IncarnationOver);
            }
        }
    }

    fn acknowledged(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope, ack: Ack) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        let known = self.sessions.by_conn.get_mut(&conn).is_some_and(|s| s.outbox.acknowledge(ack.applied));
        if !known {
            let text = format!("{} applied version {}, which was never sent", life.worker, ack.applied);
            self.violation(ViolationKind::ImpossibleVersion, text);
        }
        for GrantRef { appliance, token } in ack.granted {
            if let Some(slot) = self.table.slot(appliance) {
                let granted = self.granted_to(&life, token);
                self.transition(now, slot, HandoffEvent::Ack(granted));
            }
        }
        for release in ack.released {
            self.released(now, conn, &life, release);
        }
        for grant in ack.removed {
            self.deleted(now, conn, &life, grant);
        }
        // Last: a release that crossed with its confirmation is declined, and must not free what is being removed.
        for Declined { appliance, token, reason: _ } in ack.declined {
            if let Some(slot) = self.table.slot(appliance) {
                let granted = self.granted_to(&life, token);
                self.transition(now, slot, HandoffEvent::Declined(granted));
            }
        }
        for quiet in ack.quiet {
            self.mode_quiet(&life, quiet);
        }
        for step in ack.ended {
            if let Some(next) = self.quarantine.ended(&life, step) {
                self.clear_step(&life, next);
            }
        }
        for step in ack.begun {
            let granted = self.granted_to(&life, step.token);
            let entry = self.table.slot(step.appliance).and_then(|slot| self.table.get(slot));
            if entry.is_some_and(|e| e.state.holder() == Some(&granted)) && self.quarantine.begins(&life, step) {
                self.clear_step(&life, step);
            }
        }
    }

    /// Tells a worker that an announced step may begin.
    pub(super) fn clear_step(&mut self, life: &Life, step: AnnouncedStep) {
        if let Some((conn, _)) = self.sessions.settled(life) {
            self.out.may_begin(conn, step);
        }
    }

    fn released(&mut self, now: Timestamp, conn: StreamId, life: &Life, mut release: Release) {
        let granted = self.granted_to(life, release.token);
        match self.table.slot(release.appliance) {
            Some(slot) if self.is_false_claim(slot, life, release.token) => {
                self.note_false_claims(life, &[(slot, release.token)]);
                self.out.confirm(conn, GrantRef::new(release.appliance, release.token));
            }
            Some(slot) => {
                self.limit_fence_delay(slot, life, &mut release.carryover);
                if self.members.hands_back(life)
                    && let Some(entry) = self.table.get_mut(slot)
                    && matches!(&entry.state, HandoffState::Owned(g) if *g == granted)
                {
                    // Kept for its name while the grace lasts.
                    entry.placement.preferred = Some(life.worker.clone());
                }
                self.conflict_ended(slot, life, release.token);
                self.delay_at_least(slot, release.carryover.fence_delay);
                self.transition(now, slot, HandoffEvent::Released(granted, release.carryover));
            }
            // Gone meanwhile: it need not be said again.
            None => self.out.confirm(conn, GrantRef::new(release.appliance, release.token)),
        }
    }

    fn deleted(&mut self, now: Timestamp, conn: StreamId, life: &Life, grant: GrantRef) {
        let GrantRef { appliance, token } = grant;
        let granted = self.granted_to(life, token);
        match self.table.slot(appliance) {
            Some(slot) => {
                self.conflict_ended(slot, life, token);
                if self.table.get(slot).is_some_and(|e| !e.deleting && e.state.holder() == Some(&granted)) {
                    // A user's appliance goes only when a user said so.
                    let text = format!("{} removed {appliance}, which nobody deleted", life.worker);
                    self.violation(ViolationKind::RemovedUndeleted, text);
                    let handed = self.nothing_handed_in(slot);
                    self.transition(now, slot, HandoffEvent::Released(granted, handed));
                    return;
                }
                self.transition(now, slot, HandoffEvent::Deleted(granted));
            }
            None => self.out.confirm(conn, grant),
        }
    }

    pub(super) fn leave(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope) {
        let Some(leaver) = self.speaker(now, conn, envelope) else { return };
        self.sessions.remove(conn);
        self.membership.close(now, &leaver, true);
        for (life, profile) in self.membership.take_gone(now) {
            let left = life == leaver;
            self.gone(now, &life, profile, left);
        }
    }

    pub(super) fn closed(&mut self, now: Timestamp, conn: StreamId) {
        self.sessions.greetings.unpark(conn);
        let Some(session) = self.sessions.remove(conn) else { return };
        self.members.lost_session(now, &session.life);
        if mutant::is(Mutant::GoneWithStream) {
            self.membership.close(now, &session.life, true);
        }
        if mutant::is(Mutant::BrokenStreamAsWitness) {
            self.witnessed(now, &session.life, std::time::Duration::from_millis(100));
        }
        self.out.worker_changed(session.life.worker);
        self.refresh_members();
    }

    /// A life is gone: no `Hello` of it counts any more.
    pub(super) fn forget_streams(&mut self, life: &Life) {
        self.sessions.greetings.newest.remove(life);
        // Whoever comes back under the name may be of another version.
        if self.membership.any_life_of(&life.worker).is_none() {
            self.note_version(&life.worker, true);
        }
    }

    /// Ends the stream of a life.
    pub(super) fn close_session(&mut self, life: &Life, refusal: Refusal) {
        if let Some(&conn) = self.sessions.by_life.get(life) {
            self.sessions.remove(conn);
            self.out.close(conn, refusal);
        }
    }

    /// Queues an entry for the stream of `life`; without one, `Hello` will bring things in order.
    pub(super) fn tell(&mut self, life: &Life, slot: Slot, entry: OutboxEntry, rebalance: Option<common::RebalanceId>) {
        let bytes = match entry {
            OutboxEntry::Grant(_) | OutboxEntry::Update(_) => {
                self.table.get(slot).map_or(0, crate::table::TableRow::told_size)
            }
            OutboxEntry::Release(_) | OutboxEntry::Check(..) | OutboxEntry::Mode(_) => 64,
        };
        if let Some((_, session)) = self.sessions.settled(life) {
            session.outbox.push(slot, entry, rebalance, bytes);
        }
    }

    pub(super) fn confirm_to(&mut self, granted: &Granted, appliance: ApplianceId) {
        if let Some(&conn) = self.sessions.by_life.get(&granted.life()) {
            self.out.confirm(conn, GrantRef::new(appliance, granted.token));
        }
    }

    pub(super) fn flush_outboxes(&mut self) {
        let (table, quarantine) = (&self.table, &self.quarantine);
        for (&conn, session) in &mut self.sessions.by_conn {
            if !session.is_settled() {
                continue;
            }
            while let Some(delta) = session.outbox.next_delta() {
                // What was overtaken while it waited is not said any more; the version goes on all the same.
                let entries = delta.entries.into_iter();
                let message = ToWorker::Delta(Delta {
                    base: delta.base,
                    target: delta.target,
                    rebalance: delta.rebalance,
                    entries: entries.filter_map(|(slot, entry)| current(table, quarantine, slot, entry)).collect(),
                });
                self.out.push(Action::Send(conn, session.envelope(self.epoch.term), message));
            }
        }
    }

    /// Compares a digest of what a worker holds with the table. One that differs costs it its stream: the `Hello` on the
    /// next one settles whatever it is.
    fn audit(&mut self, now: Timestamp, conn: StreamId, life: Life, claim: OwnedDigest) {
        let Some(session) = self.sessions.by_conn.get(&conn) else { return };
        let Verdict::Differs { expected, heal: true } =
            self.conflicts.audit.judge(now, &life, claim, session.outbox.level())
        else {
            return;
        };
        let text = format!(
            "{} holds {} appliances with digest {:032x} at version {} of {}, the table says {} with {:032x}: it has to \
             say hello again",
            life.worker,
            claim.digest.count,
            claim.digest.sum,
            claim.applied,
            session.stream,
            expected.count,
            expected.sum
        );
        self.violation(ViolationKind::DigestDiffers, text);
        self.sessions.remove(conn);
        self.members.lost_session(now, &life);
        self.out.close(conn, Refusal::Differs);
        self.out.worker_changed(life.worker);
        self.refresh_members();
    }

    /// Names what a worker had taken and, as its `Hello` shows, holds no more, or under another token. What it holds beyond
    /// that is reported as conflicting ownership.
    fn tell_lost(&mut self, life: &Life, held: &[OwnedGrant]) {
        let held: BTreeMap<ApplianceId, Token> = held.iter().map(|h| (h.appliance, h.token)).collect();
        let slots = self.tallies.granted.get(life).into_iter().flatten();
        let taken = slots.filter_map(|slot| {
            let entry = self.table.get(*slot)?;
            let token = match &entry.state {
                HandoffState::Owned(g) | HandoffState::Releasing(g) => g.token,
                _ => return None,
            };
            (held.get(&entry.id) != Some(&token)).then_some((entry.id, token))
        });
        let mut lost: Vec<_> = taken.map(|(id, token)| format!("{id} under {token}")).collect();
        if !lost.is_empty() {
            let more = lost.len().saturating_sub(LOST_SHOWN);
            lost.truncate(LOST_SHOWN);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let text = format!("{} had taken and does not hold any more: {}{more}", life.worker, lost.join(", "));
            self.violation(ViolationKind::GrantLost, text);
        }
    }

    /// Takes statuses that come from the owners of their appliances, and compares the digest with the table.
    fn reported(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope, report: Report) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        let Report { mut statuses, owned } = report;
        statuses.retain(|status: &StatusReport| {
            let row = self.table.slot(status.appliance).and_then(|slot| self.table.get(slot));
            let holder = row.and_then(|row| row.state.holder());
            holder.is_some_and(|g| g.token == status.token && g.is_of(&life))
        });
        for status in &statuses {
            self.take_status(status);
        }
        if !statuses.is_empty() {
            self.out.push(Action::Reports(statuses));
        }
        if let Some(owned) = owned {
            self.audit(now, conn, life, owned);
        }
    }
}

impl Machine {
    /// Its owner has said how an appliance is.
    fn take_status(&mut self, report: &StatusReport) {
        let Some(slot) = self.table.slot(report.appliance) else { return };
        let Some(row) = self.table.get_mut(slot) else { return };
        let StatusReport { status, .. } = report;
        let available = status.phase == Phase::Configured && status.observed_generation >= row.edition.generation;
        if std::mem::replace(&mut row.available, available) != available {
            self.note_budget(slot);
            if self.budgets.holds_any() {
                // One that is down may be moved.
                self.pacing.due.drifted();
            }
        }
    }
}

/// The entry as it is to be sent now; `None` when the table has gone past it.
fn current(table: &Table, quarantine: &Quarantine, slot: Slot, entry: OutboxEntry) -> Option<DeltaEntry<()>> {
    let owned = |token| table.under(slot, token).filter(|row| row.state.holder().is_some());
    match entry {
        OutboxEntry::Grant(token) => {
            let row = table.under(slot, token).filter(|row| matches!(row.state, HandoffState::Offered(_)))?;
            let carryover = row.handed.as_deref().cloned().unwrap_or_default();
            let suspect = quarantine.is_suspect(row.id);
            let mode =
                if mutant::is(Mutant::ModeLostOnGrant) { Mode { hands_off: false, ..row.mode } } else { row.mode };
            Some(DeltaEntry::Grant { appliance: row.id, token, desired: (), carryover, suspect, mode })
        }
        OutboxEntry::Release(token) => {
            let row = table.under(slot, token).filter(|row| matches!(row.state, HandoffState::Releasing(_)))?;
            Some(DeltaEntry::Release(GrantRef::new(row.id, token)))
        }
        OutboxEntry::Update(token) => {
            owned(token).map(|row| DeltaEntry::Update { appliance: row.id, token, desired: () })
        }
        OutboxEntry::Mode(token) => {
            owned(token).map(|row| DeltaEntry::Mode { appliance: row.id, token, mode: row.mode })
        }
        OutboxEntry::Check(token, number) => {
            owned(token).map(|row| DeltaEntry::Check { appliance: row.id, token, number })
        }
    }
}
