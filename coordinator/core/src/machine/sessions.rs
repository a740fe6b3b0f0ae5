//! Streams of workers: who speaks on which, and whether it counts.
//!
//! One stream per life at a time, the newest `Hello` closes older ones. A stream is *settled* once the worker has answered
//! the welcome to its `Hello`; only then is what it said it holds compared with the table, and only then is it given
//! anything. A `Hello` alone proves nothing: it may have been stuck in the network while a newer stream, and a whole
//! term, passed it by, and whoever believes it takes away what the worker was granted since. A dead stream cannot answer.

#[cfg(feature = "canon")]
mod canon;

use std::collections::BTreeMap;

use common::mutant::{self, Mutant};
use common::{ApplianceId, Edition, StreamNumber, Timestamp, Token};

use super::{Action, Answers, Claim, Down, Envelope, Held, Hello, Machine, Pending, Refusal, Tell};
use crate::audit::Verdict;
use crate::grants::{Granted, StoredMember};
use crate::handoff::{self, State};
use crate::health::Session as SessionState;
use crate::membership::{Beat, Life};
use crate::outbox::{Entry, Outbox};
use crate::planner::Slot;
use crate::quarantine::{Quarantine, Step};
use crate::table::Table;
use crate::violation::Kind;

/// Most appliances named in one violation.
const LOST_SHOWN: usize = 5;

/// One connection, as the shell numbers them. Never used twice in a process.
pub type Conn = u64;

#[derive(Clone, Debug)]
enum Stage {
    /// The member behind it is being made durable.
    Storing(Box<Hello>),
    /// Welcomed, and asked for an answer by an empty delta.
    Welcomed(Box<Hello>),
    /// The worker has answered: what its `Hello` said is true of now.
    Settled,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    life: Life,
    stream: StreamNumber,
    stage: Stage,
    outbox: Outbox,
}

impl Session {
    const fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Settled)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    by_conn: BTreeMap<Conn, Session>,
    by_life: BTreeMap<Life, Conn>,
    /// Highest stream each life said `Hello` on. Outlives its session: a `Hello` that was stuck in the network must not
    /// be taken for news after the stream that overtook it has ended as well.
    newest: BTreeMap<Life, StreamNumber>,
}

impl Sessions {
    pub(super) fn state(&self, life: &Life) -> SessionState {
        match self.by_life.get(life).and_then(|conn| self.by_conn.get(conn)) {
            None => SessionState::None,
            Some(session) if session.is_settled() => SessionState::Settled,
            Some(_) => SessionState::Unsettled,
        }
    }

    /// Entries that wait in all outboxes.
    pub(super) fn untold(&self) -> usize {
        self.by_conn.values().map(|session| session.outbox.len()).sum()
    }

    fn remove(&mut self, conn: Conn) -> Option<Session> {
        let session = self.by_conn.remove(&conn)?;
        if self.by_life.get(&session.life) == Some(&conn) {
            self.by_life.remove(&session.life);
        }
        Some(session)
    }

    pub(super) fn settled_conn(&self, life: &Life) -> Option<Conn> {
        let conn = *self.by_life.get(life)?;
        self.by_conn.get(&conn).filter(|session| session.is_settled()).map(|_| conn)
    }

    fn settled(&mut self, life: &Life) -> Option<(Conn, &mut Session)> {
        let conn = *self.by_life.get(life)?;
        let session = self.by_conn.get_mut(&conn)?;
        session.is_settled().then_some((conn, session))
    }
}

impl Machine {
    pub(super) fn hello(&mut self, now: Timestamp, conn: Conn, hello: Hello) {
        if hello.highest_term.get().saturating_sub(self.term.get()) > super::PLAUSIBLE_TERMS {
            let text = format!("{} claims to have met {}", hello.worker, hello.highest_term);
            self.violation(Kind::ImplausibleTerm, text);
            self.actions.push(Action::Close(conn, Refusal::ImplausibleTerm(hello.highest_term)));
            return;
        }
        if hello.highest_term > self.term {
            self.actions.push(Action::RaiseTerm(hello.highest_term));
            return;
        }
        let newest = hello.held.iter().map(|h| h.token).max();
        if newest.is_some_and(|t| t.term == self.term && t.sequence >= self.next_sequence) {
            // A token of this term that this leader never gave: the store was put back to an older state.
            self.actions.push(Action::RaiseTerm(self.term));
            return;
        }
        let Some((life, is_new)) = self.speaking_life(now, conn, &hello) else { return };
        if self.sessions.newest.get(&life).is_some_and(|newest| *newest >= hello.stream) {
            self.actions.push(Action::Close(conn, Refusal::Superseded));
            return;
        }
        let stream = hello.stream;
        self.sessions.newest.insert(life.clone(), stream);
        if let Some(&older) = self.sessions.by_life.get(&life) {
            self.sessions.remove(older);
            self.actions.push(Action::Close(older, Refusal::Superseded));
        }
        if is_new {
            self.membership.join(now, life.0.clone(), life.1, hello.profile.clone());
        } else if self.membership.is_embedded() {
            self.membership.publish(&life, hello.profile.clone());
        }
        let changed = !self.membership.is_stored(&life);
        if changed && let Some(profile) = self.membership.profile(&life).cloned() {
            let (worker, incarnation) = life.clone();
            self.commit.put_members.push(StoredMember { worker, incarnation, profile, departed: false });
            self.commit_pending.push(Pending::Member(conn));
        }
        self.sessions.by_life.insert(life.clone(), conn);
        let stage = Stage::Storing(Box::new(hello));
        let session = Session { life: life.clone(), stream, stage, outbox: Outbox::default() };
        self.sessions.by_conn.insert(conn, session);
        self.actions.push(Action::WorkerChanged(life.0.clone()));
        if !changed {
            self.welcome(now, conn);
        }
    }

    /// The member behind `conn` is durable, or surely is not.
    pub(super) fn member_written(&mut self, now: Timestamp, conn: Conn, durable: bool) {
        let Some(session) = self.sessions.by_conn.get(&conn) else { return };
        let Stage::Storing(hello) = &session.stage else { return };
        let (life, is_new) = (session.life.clone(), hello.incarnation.is_none());
        if !self.membership.is_alive(&life) {
            self.sessions.remove(conn);
            self.actions.push(Action::Close(conn, Refusal::IncarnationOver));
        } else if durable {
            self.membership.set_stored(&life);
            self.welcome(now, conn);
        } else {
            self.sessions.remove(conn);
            if is_new {
                // Nobody was told of this life, so nobody can act in it.
                self.membership.close(now, &life, true);
            }
            self.actions.push(Action::Close(conn, Refusal::StoreUnavailable));
        }
    }

    /// Answers a `Hello` with what stands, and asks for a sign that the stream is alive. Nothing is taken from the worker
    /// by this: what it no longer acts on it says itself, and what it holds against the table is given to nobody else.
    fn welcome(&mut self, now: Timestamp, conn: Conn) {
        let Some(session) = self.sessions.by_conn.get_mut(&conn) else { return };
        let Stage::Storing(hello) = std::mem::replace(&mut session.stage, Stage::Settled) else { return };
        session.stage = Stage::Welcomed(hello.clone());
        let life = session.life.clone();
        for said in &hello.released {
            self.released(now, conn, &life, said.clone());
        }
        for &(appliance, token) in &hello.gone {
            self.deleted(now, conn, &life, appliance, token);
        }
        self.forget_intrusions(&life, &hello.held);
        let mut keep = Vec::with_capacity(hello.held.len());
        for held in &hello.held {
            let entry = self.table.slot(held.appliance).and_then(|slot| Some((slot, self.table.get(slot)?)));
            let Some((slot, entry)) = entry else {
                let text = format!("{} holds {}, which does not exist, under {}", life.0, held.appliance, held.token);
                self.violation(Kind::UnknownAppliance, text);
                continue;
            };
            if entry.state.holder().is_some_and(|g| g.is_of(&life.0, life.1)) {
                keep.push((held.appliance, held.token));
            } else {
                let granted = self.granted_to(&life, held.token);
                self.hand(now, slot, handoff::Event::Holds(granted));
            }
        }
        let lease = self.membership.last_beat(now, &life).map(|(_, lease)| lease).unwrap_or_default();
        let stream = hello.stream;
        self.actions.push(Action::Send(conn, Down::Welcome { incarnation: life.1, stream, keep, lease }));
        if let Some(session) = self.sessions.by_conn.get_mut(&conn) {
            let (base, target) = session.outbox.empty();
            self.actions.push(Action::Send(conn, Down::Delta { base, target, rebalance: None, tell: vec![] }));
        }
    }

    /// The worker has answered its welcome: compares what it holds with the table, and makes it eligible.
    fn settle(&mut self, now: Timestamp, conn: Conn) {
        let Some(session) = self.sessions.by_conn.get_mut(&conn) else { return };
        if !matches!(session.stage, Stage::Welcomed(_)) {
            return;
        }
        let Stage::Welcomed(hello) = std::mem::replace(&mut session.stage, Stage::Settled) else { return };
        let life = &session.life.clone();
        self.quarantine.greeted(life, hello.held.iter().map(|held| held.appliance));
        if self.audit.greeted(life) {
            self.tell_lost(life, &hello.held);
        }
        let mut unsaid = self.granted.get(life).cloned().unwrap_or_default();
        let (mut stale, mut ahead) = (Vec::new(), Vec::new());
        for held in &hello.held {
            let granted = self.granted_to(life, held.token);
            let Some(slot) = self.table.slot(held.appliance) else { continue };
            unsaid.remove(&slot);
            let theirs = |e: &crate::table::Entry| e.state.holder().is_some_and(|g| g.is_of(&life.0, life.1));
            if self.table.get(slot).is_some_and(theirs) {
                self.note_held(slot, life);
                self.hand(now, slot, handoff::Event::Holds(granted.clone()));
                let entry = self.table.get(slot).filter(|e| e.state.holder() == Some(&granted));
                match entry.map(|e| e.edition) {
                    Some(stored) if stored == held.edition => {}
                    // A worker from before editions says only the generation.
                    Some(stored) if stored.generation == held.edition.generation && held.edition.term.get() == 0 => {}
                    Some(stored) if stored.generation > held.edition.generation => stale.push((slot, held.token)),
                    Some(_) => ahead.push((slot, held.edition)),
                    None => {}
                }
            }
        }
        for slot in unsaid {
            self.hand(now, slot, handoff::Event::HoldsNothing(life.0.clone(), life.1));
        }
        for (slot, token) in stale {
            self.tell(life, slot, Entry::Update(token), None);
        }
        for (slot, edition) in ahead {
            self.take_what_is_ahead(now, life, slot, edition);
        }
        self.placement.spoke(life);
        self.settled_member(now, life);
        self.settled_changed(now, hello.incarnation.is_none().then_some(&life.0));
        self.actions.push(Action::WorkerChanged(life.0.clone()));
    }

    /// A worker has a later generation than the store, or this one as another term wrote it: the store was put back to an
    /// older state. Generations are counted on from what is stored, and the worker would take one of them for what it has:
    /// so it gives the appliance up, and whoever gets it begins with what is stored.
    fn take_what_is_ahead(&mut self, now: Timestamp, life: &Life, slot: Slot, held: Edition) {
        let Some(entry) = self.table.get(slot) else { return };
        let (id, stored, owned) = (entry.id, entry.edition, matches!(entry.state, State::Owned(_)));
        let text = format!("{} holds {id} at {held}, and it is stored at {stored}: given anew as stored", life.0);
        self.violation(Kind::GenerationAhead, text);
        if owned {
            self.hand(now, slot, handoff::Event::Take);
        }
    }

    /// The life behind a message, if it is the newest stream's, settled, and of this term.
    pub(super) fn speaker(&mut self, now: Timestamp, conn: Conn, envelope: Envelope) -> Option<Life> {
        let term = self.term;
        let life = self.sessions.by_conn.get(&conn).and_then(|s| {
            let right = !matches!(s.stage, Stage::Storing(_))
                && envelope.term == term
                && envelope.incarnation == s.life.1
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

    pub(super) fn beat(&mut self, now: Timestamp, conn: Conn, envelope: Envelope, number: u64) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        if !self.membership.is_embedded() {
            // Its lease is kept elsewhere, and nothing said here may extend it.
            self.counters.stale_messages += 1;
            return;
        }
        match self.membership.beat(now, &life) {
            Beat::Counts => self.actions.push(Action::Send(conn, Down::BeatAck(number))),
            Beat::Over => {
                self.sessions.remove(conn);
                self.actions.push(Action::Close(conn, Refusal::IncarnationOver));
            }
        }
    }

    pub(super) fn answers(&mut self, now: Timestamp, conn: Conn, envelope: Envelope, answers: Answers) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        let known = self.sessions.by_conn.get_mut(&conn).is_some_and(|s| s.outbox.acknowledge(answers.applied));
        if !known {
            let text = format!("{} applied version {}, which was never sent", life.0, answers.applied);
            self.violation(Kind::ImpossibleVersion, text);
        }
        for (appliance, token) in answers.granted {
            if let Some(slot) = self.table.slot(appliance) {
                let granted = self.granted_to(&life, token);
                self.hand(now, slot, handoff::Event::Ack(granted));
            }
        }
        for said in answers.released {
            self.released(now, conn, &life, said);
        }
        for (appliance, token) in answers.gone {
            self.deleted(now, conn, &life, appliance, token);
        }
        // Last: a release that crossed with its confirmation is declined, and must not free what is being removed.
        for (appliance, token) in answers.declined {
            if let Some(slot) = self.table.slot(appliance) {
                let granted = self.granted_to(&life, token);
                self.hand(now, slot, handoff::Event::Declined(granted));
            }
        }
        for step in answers.ended {
            if let Some(next) = self.quarantine.ended(&life, step) {
                self.clear_step(&life, next);
            }
        }
        for step in answers.begun {
            let granted = self.granted_to(&life, step.token);
            let entry = self.table.slot(step.appliance).and_then(|slot| self.table.get(slot));
            if entry.is_some_and(|e| e.state.holder() == Some(&granted)) && self.quarantine.begins(&life, step) {
                self.clear_step(&life, step);
            }
        }
    }

    /// Tells a worker that an announced step may begin.
    pub(super) fn clear_step(&mut self, life: &Life, step: Step) {
        if let Some((conn, _)) = self.sessions.settled(life) {
            self.clear.entry(conn).or_default().push(step);
        }
    }

    fn released(&mut self, now: Timestamp, conn: Conn, life: &Life, said: super::Said) {
        let granted = self.granted_to(life, said.token);
        match self.table.slot(said.appliance) {
            Some(slot) => {
                if self.members.hands_back(life)
                    && let Some(entry) = self.table.get_mut(slot)
                    && matches!(&entry.state, State::Owned(g) if *g == granted)
                {
                    // Kept for its name while the grace lasts.
                    entry.preferred = Some(life.0.clone());
                }
                self.intruder_ended(slot, life, said.token);
                self.hold_at_least(slot, said.handed.hold);
                self.hand(now, slot, handoff::Event::Released(granted, said.handed));
            }
            // Gone meanwhile: it need not be said again.
            None => self.confirm.entry(conn).or_default().push((said.appliance, said.token)),
        }
    }

    fn deleted(&mut self, now: Timestamp, conn: Conn, life: &Life, appliance: ApplianceId, token: Token) {
        let granted = self.granted_to(life, token);
        match self.table.slot(appliance) {
            Some(slot) => {
                self.intruder_ended(slot, life, token);
                if self.table.get(slot).is_some_and(|e| !e.deleting && e.state.holder() == Some(&granted)) {
                    // A user's appliance goes only when a user said so.
                    let text = format!("{} removed {appliance}, which nobody deleted", life.0);
                    self.violation(Kind::RemovedUndeleted, text);
                    let handed = self.nothing_handed_in(slot);
                    self.hand(now, slot, handoff::Event::Released(granted, handed));
                    return;
                }
                self.hand(now, slot, handoff::Event::Deleted(granted));
            }
            None => self.confirm.entry(conn).or_default().push((appliance, token)),
        }
    }

    pub(super) fn leave(&mut self, now: Timestamp, conn: Conn, envelope: Envelope) {
        let Some(leaver) = self.speaker(now, conn, envelope) else { return };
        self.sessions.remove(conn);
        self.membership.close(now, &leaver, true);
        for (life, profile) in self.membership.take_gone(now) {
            let farewell = life == leaver;
            self.gone(now, &life, profile, farewell);
        }
    }

    pub(super) fn closed(&mut self, now: Timestamp, conn: Conn) {
        self.members.unpark(conn);
        let Some(session) = self.sessions.remove(conn) else { return };
        self.members.lost_session(now, &session.life);
        if mutant::is(Mutant::GoneWithStream) {
            self.membership.close(now, &session.life, true);
        }
        self.actions.push(Action::WorkerChanged(session.life.0));
        self.refresh_members();
    }

    /// A life is gone: no `Hello` of it counts any more.
    pub(super) fn forget_streams(&mut self, life: &Life) {
        self.sessions.newest.remove(life);
    }

    /// Ends the stream of a life.
    pub(super) fn close_session(&mut self, life: &Life, refusal: Refusal) {
        if let Some(&conn) = self.sessions.by_life.get(life) {
            self.sessions.remove(conn);
            self.actions.push(Action::Close(conn, refusal));
        }
    }

    /// Queues an entry for the stream of `life`; without one, `Hello` will bring things in order.
    pub(super) fn tell(&mut self, life: &Life, slot: Slot, entry: Entry, rebalance: Option<common::RebalanceId>) {
        let bytes = match entry {
            Entry::Grant(_) | Entry::Update(_) => self.table.get(slot).map_or(0, |e| e.size) + 128,
            Entry::Prepare | Entry::Release(_) | Entry::Check(..) => 64,
        };
        if let Some((_, session)) = self.sessions.settled(life) {
            session.outbox.push(slot, entry, rebalance, bytes);
        }
    }

    pub(super) fn confirm_to(&mut self, granted: &Granted, appliance: ApplianceId) {
        let life = (granted.worker.clone(), granted.incarnation);
        if let Some(&conn) = self.sessions.by_life.get(&life) {
            self.confirm.entry(conn).or_default().push((appliance, granted.token));
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
                let tell =
                    delta.entries.into_iter().filter_map(|(slot, entry)| telling(table, quarantine, slot, entry));
                let down = Down::Delta {
                    base: delta.base,
                    target: delta.target,
                    rebalance: delta.rebalance,
                    tell: tell.collect(),
                };
                self.actions.push(Action::Send(conn, down));
            }
        }
    }

    /// Compares a digest of what a worker holds with the table. One that differs costs it its stream: the `Hello` on the
    /// next one settles whatever it is.
    pub(super) fn audit(&mut self, now: Timestamp, conn: Conn, envelope: Envelope, claim: Claim) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        let Some(session) = self.sessions.by_conn.get(&conn) else { return };
        let Verdict::Differs { expected, heal: true } = self.audit.judge(now, &life, claim, session.outbox.level())
        else {
            return;
        };
        let text = format!(
            "{} holds {} appliances with digest {:032x} at version {} of {}, the table says {} with {:032x}: it has to \
             say hello again",
            life.0, claim.held.count, claim.held.sum, claim.applied, session.stream, expected.count, expected.sum
        );
        self.violation(Kind::DigestDiffers, text);
        self.sessions.remove(conn);
        self.members.lost_session(now, &life);
        self.actions.push(Action::Close(conn, Refusal::Differs));
        self.actions.push(Action::WorkerChanged(life.0));
        self.refresh_members();
    }

    /// Names what a worker had taken and, as its `Hello` shows, holds no more, or under another token. What it holds beyond
    /// that is told as what everybody holds against the table.
    fn tell_lost(&mut self, life: &Life, held: &[Held]) {
        let held: BTreeMap<ApplianceId, Token> = held.iter().map(|h| (h.appliance, h.token)).collect();
        let slots = self.granted.get(life).into_iter().flatten();
        let taken = slots.filter_map(|slot| {
            let entry = self.table.get(*slot)?;
            let token = match &entry.state {
                State::Owned(g) | State::Releasing(g) => g.token,
                _ => return None,
            };
            (held.get(&entry.id) != Some(&token)).then_some((entry.id, token))
        });
        let mut lost: Vec<_> = taken.map(|(id, token)| format!("{id} under {token}")).collect();
        if !lost.is_empty() {
            let more = lost.len().saturating_sub(LOST_SHOWN);
            lost.truncate(LOST_SHOWN);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let text = format!("{} had taken and does not hold any more: {}{more}", life.0, lost.join(", "));
            self.violation(Kind::GrantLost, text);
        }
    }

    /// Whether a report under this token comes from its owner. Reports of anybody else are dropped and counted.
    pub fn reports_count(
        &mut self,
        now: Timestamp,
        conn: Conn,
        envelope: Envelope,
        of: &[(ApplianceId, Token)],
    ) -> Vec<bool> {
        let Some(life) = self.speaker(now, conn, envelope) else { return vec![false; of.len()] };
        of.iter()
            .map(|&(appliance, token)| {
                self.table
                    .slot(appliance)
                    .and_then(|slot| self.table.get(slot))
                    .is_some_and(|e| e.state.holder().is_some_and(|g| g.token == token && g.is_of(&life.0, life.1)))
            })
            .collect()
    }
}

fn telling(table: &Table, quarantine: &Quarantine, slot: Slot, entry: Entry) -> Option<Tell> {
    match entry {
        Entry::Prepare => table.get(slot).map(|e| Tell::Prepare(e.id)),
        Entry::Grant(token) => table.under(slot, token).filter(|e| matches!(e.state, State::Offered(_))).map(|e| {
            let handed = e.handed.as_deref().cloned().unwrap_or_default();
            Tell::Grant { appliance: e.id, token, handed, suspect: quarantine.is_suspect(e.id) }
        }),
        Entry::Release(token) => table
            .under(slot, token)
            .filter(|e| matches!(e.state, State::Releasing(_)))
            .map(|e| Tell::Release(e.id, token)),
        Entry::Update(token) => {
            table.under(slot, token).filter(|e| e.state.holder().is_some()).map(|e| Tell::Update(e.id, token))
        }
        Entry::Check(token, number) => {
            table.under(slot, token).filter(|e| e.state.holder().is_some()).map(|e| Tell::Check(e.id, token, number))
        }
    }
}
