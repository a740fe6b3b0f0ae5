//! When to plan, and how a plan becomes hand-offs under the limits on what may be under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Timestamp, Token, WorkerId};

use super::{Action, Machine};
use crate::handoff::{self, State};
use crate::health::Session;
use crate::membership::Life;
use crate::outbox::Entry;
use crate::planner::{Member, Move, Reason, Slot};
use crate::rebalance::Cause;

/// Why and when the next plan is due.
#[derive(Clone, Debug)]
pub(super) struct Due {
    /// Members of the predecessor that have not spoken yet, until the grace is over.
    awaited: BTreeSet<Life>,
    grace_ends: Timestamp,
    joined: Vec<WorkerId>,
    joins_due: Option<Timestamp>,
    lost: Vec<WorkerId>,
    start: bool,
    /// Something changed that a plan should look at.
    dirty: bool,
    /// The store refused a grant: nothing is planned before.
    not_before: Timestamp,
}

impl Due {
    pub(super) fn at_start(now: Timestamp, grace: Duration, awaited: BTreeSet<Life>) -> Self {
        Self {
            awaited,
            grace_ends: now + grace,
            joined: Vec::new(),
            joins_due: None,
            lost: Vec::new(),
            start: true,
            dirty: true,
            not_before: now,
        }
    }

    /// The store takes no grants now. Planning again at once would only offer it the same ones as fast as it refuses.
    pub(super) const fn hold_back(&mut self, until: Timestamp) {
        self.not_before = until;
    }

    /// An appliance wants an owner.
    pub(super) const fn want_owner(&mut self) {
        self.dirty = true;
    }

    /// The balance may have changed, or room was made for further moves.
    pub(super) const fn drifted(&mut self) {
        self.dirty = true;
    }

    pub(super) fn spoke(&mut self, life: &Life) {
        self.awaited.remove(life);
    }

    pub(super) fn lost(&mut self, life: &Life) {
        self.awaited.remove(life);
        self.lost.push(life.0.clone());
        self.dirty = true;
    }

    fn waiting(&self, now: Timestamp) -> bool {
        !self.awaited.is_empty() && now < self.grace_ends
    }

    pub(super) fn due_at(&self, now: Timestamp) -> Option<Timestamp> {
        if self.waiting(now) {
            return Some(self.grace_ends);
        }
        let due = if self.dirty { Some(now) } else { self.joins_due };
        due.map(|at| at.max(self.not_before))
    }

    /// Names of the members a new leader still waits for.
    pub(super) fn awaited(&self, now: Timestamp) -> Vec<WorkerId> {
        if self.waiting(now) { self.awaited.iter().map(|(w, _)| w.clone()).collect() } else { Vec::new() }
    }

    fn take_cause(&mut self) -> Option<Cause> {
        let joined = std::mem::take(&mut self.joined);
        let lost = std::mem::take(&mut self.lost);
        let start = std::mem::take(&mut self.start);
        match (joined.is_empty(), lost.is_empty()) {
            _ if start => Some(Cause::Start),
            (true, true) => None,
            (false, true) => Some(Cause::Joined(joined)),
            (true, false) => Some(Cause::Gone(lost)),
            (false, false) => Some(Cause::Changed { joined, gone: lost }),
        }
    }
}

/// Moves from one owner to another that have not ended.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    moves: BTreeMap<Slot, (WorkerId, WorkerId)>,
    per_worker: BTreeMap<WorkerId, usize>,
}

impl InFlight {
    fn begin(&mut self, slot: Slot, from: WorkerId, to: WorkerId) {
        self.end(slot);
        *self.per_worker.entry(from.clone()).or_default() += 1;
        *self.per_worker.entry(to.clone()).or_default() += 1;
        self.moves.insert(slot, (from, to));
    }

    pub(super) fn end(&mut self, slot: Slot) {
        let Some((from, to)) = self.moves.remove(&slot) else { return };
        for worker in [from, to] {
            if let Some(count) = self.per_worker.get_mut(&worker) {
                *count -= 1;
                if *count == 0 {
                    self.per_worker.remove(&worker);
                }
            }
        }
    }

    fn of(&self, worker: &WorkerId) -> usize {
        self.per_worker.get(worker).copied().unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.moves.len()
    }
}

impl Machine {
    /// A stream was welcomed. A worker that is new to the ring is gathered with others for the debounce; one that comes
    /// back counts at once.
    pub(super) fn settled_changed(&mut self, now: Timestamp, joined: Option<&WorkerId>) {
        match joined {
            Some(worker) => {
                self.placement.joined.push(worker.clone());
                let due = now + Duration::from_millis(self.config.debounce_ms);
                self.placement.joins_due.get_or_insert(due);
            }
            None => {
                self.refresh_members();
                self.placement.dirty = true;
            }
        }
    }

    /// Tells the planner who the members are. Those whose join is still being gathered are left out.
    pub(super) fn refresh_members(&mut self) {
        let members: Vec<Member> = self
            .membership
            .members()
            .filter(|(worker, ..)| !self.placement.joined.contains(worker))
            .map(|(worker, incarnation, profile, draining)| Member {
                id: worker.clone(),
                weight: profile.weight,
                zone: profile.zone.clone(),
                host: profile.host.clone(),
                drivers: profile.drivers.clone(),
                connected: self.sessions.state(&(worker.clone(), incarnation)) == Session::Settled,
                draining,
            })
            .collect();
        if self.planner.members() != members {
            self.planner.set_members(members);
        }
    }

    /// Plans if it is due, and begins what the limits allow.
    pub(super) fn place(&mut self, now: Timestamp) {
        let joins_due = self.placement.joins_due.is_some_and(|at| at <= now);
        if self.placement.waiting(now) || now < self.placement.not_before || !(self.placement.dirty || joins_due) {
            return;
        }
        let mut cause = None;
        if joins_due || !self.placement.lost.is_empty() || self.placement.start {
            self.placement.joins_due = None;
            cause = self.placement.take_cause();
            self.refresh_members();
        }
        self.placement.dirty = false;
        self.counters.plans += 1;
        let plan = self.planner.plan();
        for (slot, why) in plan.unplaced {
            self.note_unplaced(slot, Some(why));
            // It was on its way to somebody who cannot take it any more: others must not wait for that move.
            self.move_ended(slot, None);
        }
        let moves: Vec<Move> = plan.moves.into_iter().filter(|m| !self.intruders.contains_key(&m.slot)).collect();
        self.name_rebalance(cause, &moves);
        let mut begun = 0;
        for m in &moves {
            begun += usize::from(self.begin(now, m));
        }
        if begun == 0 && self.in_flight.len() == 0 {
            let mut news = Vec::new();
            self.rebalances.nothing_left(&mut news);
            self.actions.extend(news.into_iter().map(Action::Rebalance));
        }
    }

    /// Opens a rebalance for what a cause moves. Giving new appliances their first owner is none.
    fn name_rebalance(&mut self, cause: Option<Cause>, moves: &[Move]) {
        let counted = moves.iter().filter(|m| self.belongs_to_rebalance(m)).count() as u64;
        if counted == 0 {
            return;
        }
        let cause = match (cause, self.rebalances.current()) {
            (Some(cause), _) => cause,
            (None, Some(_)) => return,
            (None, None) => Cause::Drift,
        };
        let mut news = Vec::new();
        self.rebalances.open(cause, counted, &mut news);
        self.actions.extend(news.into_iter().map(Action::Rebalance));
    }

    fn belongs_to_rebalance(&self, m: &Move) -> bool {
        // What is on a move already keeps its rebalance; a void offer is no move of its own.
        m.from.is_some()
            || self.table.get(m.slot).is_some_and(|e| matches!(e.state, State::Orphaned(_)) && e.rebalance.is_none())
    }

    fn begin(&mut self, now: Timestamp, m: &Move) -> bool {
        match &m.from {
            None => self.grant(now, m),
            Some(from) => {
                if self.in_flight.len() >= self.config.max_moves_in_flight
                    || self.in_flight.of(from) >= self.config.max_moves_per_worker
                    || self.in_flight.of(&m.to) >= self.config.max_moves_per_worker
                {
                    return false;
                }
                self.take(now, m, from.clone())
            }
        }
    }

    fn grant(&mut self, now: Timestamp, m: &Move) -> bool {
        let Some(incarnation) = self.membership.current(&m.to) else { return false };
        let counted = self.belongs_to_rebalance(m);
        let host = self.membership.profile(&(m.to.clone(), incarnation)).map(|p| p.host.clone());
        let token = Token::new(self.term, self.next_sequence);
        self.next_sequence += 1;
        let rebalance = self.rebalances.current();
        let Some(entry) = self.table.get_mut(m.slot) else { return false };
        if !entry.state.wants_owner() {
            return false;
        }
        if let State::Orphaned(former) = &entry.state {
            entry.moved_from = Some(former.worker.clone());
        }
        // On a planned move the reason is the move's own, not that it has no owner right now.
        if entry.rebalance.is_none() {
            entry.reason = Some(match (m.reason, &entry.state) {
                (Reason::Unowned, State::Orphaned(_)) => Reason::OwnerGone,
                (Reason::Unowned, _) if !entry.granted_before => Reason::New,
                (reason, _) => reason,
            });
        }
        if counted && let Some(id) = rebalance {
            entry.rebalance = Some(id);
            self.rebalances.begin(id);
        }
        entry.granted_before = true;
        if entry.needs.driver.is_host_bound() && entry.needs.host.is_none() {
            entry.needs.host = host;
            entry.binding = Some(token);
            let needs = entry.needs.clone();
            self.planner.set_needs(m.slot, needs);
        }
        self.note_unplaced(m.slot, None);
        let granted = self.granted_to(&(m.to.clone(), incarnation), token);
        self.hand(now, m.slot, handoff::Event::Assign(granted))
    }

    fn take(&mut self, now: Timestamp, m: &Move, from: WorkerId) -> bool {
        let rebalance = self.rebalances.current();
        let Some(entry) = self.table.get_mut(m.slot) else { return false };
        if !matches!(&entry.state, State::Owned(g) if g.worker == from) {
            return false;
        }
        entry.preferred = Some(m.to.clone());
        entry.moved_from = Some(from.clone());
        entry.reason = Some(m.reason);
        if let Some(id) = rebalance {
            entry.rebalance = Some(id);
            self.rebalances.begin(id);
        }
        self.in_flight.begin(m.slot, from, m.to.clone());
        if !self.hand(now, m.slot, handoff::Event::Take) {
            return false;
        }
        if let Some(incarnation) = self.membership.current(&m.to) {
            self.tell(&(m.to.clone(), incarnation), m.slot, Entry::Prepare, rebalance);
        }
        true
    }

    pub(super) fn note_unplaced(&mut self, slot: Slot, why: Option<crate::planner::Unplaced>) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        if entry.unplaced != why {
            entry.unplaced = why;
            if entry.unplaced.is_some() {
                self.actions.push(Action::Assigned(entry.id));
            }
        }
    }

    /// Lets workers that declined an appliance some time ago take it again.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        let due: Vec<Slot> =
            self.declined.iter().filter(|(_, by)| by.values().any(|until| *until <= now)).map(|(s, _)| *s).collect();
        for slot in due {
            if let Some(by) = self.declined.get_mut(&slot) {
                by.retain(|_, until| *until > now);
                if by.is_empty() {
                    self.declined.remove(&slot);
                }
            }
            self.tell_excluded(slot);
            self.placement.want_owner();
        }
    }

    pub(super) fn tell_excluded(&mut self, slot: Slot) {
        let members = self.declined.get(&slot).map(|by| by.keys().cloned().collect()).unwrap_or_default();
        self.planner.set_excluded(slot, members);
    }
}
