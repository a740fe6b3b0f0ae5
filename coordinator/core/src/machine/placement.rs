//! When to plan, and how a plan becomes hand-offs under the limits on what may be under way.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Timestamp, Token, WorkerId};

use super::{Action, Machine};
use crate::handoff::{self, State};
use crate::health::Session;
use crate::membership::Life;
use crate::outbox::Entry;
use crate::planner::{Member, Move, Reason, Slot, Unplaced};
use crate::rebalance::Cause;

/// Why and when the next plan is due.
#[derive(Clone, Debug)]
pub(super) struct Due {
    /// Members of the predecessor that have not spoken yet, until the grace is over.
    awaited: BTreeSet<Life>,
    grace: Duration,
    grace_ends: Timestamp,
    joined: Vec<WorkerId>,
    /// Names that were waited for and are back. They are not gathered.
    back: Vec<WorkerId>,
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
            grace,
            grace_ends: now + grace,
            joined: Vec::new(),
            back: Vec::new(),
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

    /// External: everybody who is there is awaited, whether the store knew of them or not.
    pub(super) fn await_members(&mut self, now: Timestamp, lives: impl Iterator<Item = Life>) {
        self.awaited = lives.collect();
        self.grace_ends = now + self.grace;
        self.dirty = true;
    }

    /// A member came into the ring; it is gathered with others until `due`.
    pub(super) fn joined(&mut self, due: Timestamp, name: WorkerId) {
        if !self.joined.contains(&name) {
            self.joined.push(name);
        }
        self.joins_due.get_or_insert(due);
    }

    /// A name that was missed is back: it is not gathered with newcomers.
    pub(super) fn came_back(&mut self, name: &WorkerId) {
        self.joined.retain(|joined| joined != name);
        self.back.push(name.clone());
        self.dirty = true;
    }

    /// A member that held no lease left the ring.
    pub(super) fn left_ring(&mut self, name: WorkerId) {
        self.lost.push(name);
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
        let mut joined = std::mem::take(&mut self.joined);
        joined.append(&mut self.back);
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

/// One move that has not ended.
#[derive(Clone, Debug)]
struct Moving {
    from: WorkerId,
    to: WorkerId,
    since: Timestamp,
    /// It took too long and no longer counts against the limits. Its state never changes by time alone.
    stalled: bool,
}

/// Moves from one owner to another that have not ended.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    moves: BTreeMap<Slot, Moving>,
    per_worker: BTreeMap<WorkerId, usize>,
    stalled: usize,
}

impl InFlight {
    fn begin(&mut self, now: Timestamp, slot: Slot, from: WorkerId, to: WorkerId) {
        self.end(slot);
        *self.per_worker.entry(from.clone()).or_default() += 1;
        *self.per_worker.entry(to.clone()).or_default() += 1;
        self.moves.insert(slot, Moving { from, to, since: now, stalled: false });
    }

    pub(super) fn end(&mut self, slot: Slot) {
        match self.moves.remove(&slot) {
            None => {}
            Some(moving) if moving.stalled => self.stalled -= 1,
            Some(Moving { from, to, .. }) => self.uncount(&from, &to),
        }
    }

    fn uncount(&mut self, from: &WorkerId, to: &WorkerId) {
        for worker in [from, to] {
            if let Some(count) = self.per_worker.get_mut(worker) {
                *count -= 1;
                if *count == 0 {
                    self.per_worker.remove(worker);
                }
            }
        }
    }

    /// Stops counting moves that are older than `deadline`. Returns whether there were any.
    pub(super) fn stall(&mut self, now: Timestamp, deadline: Duration) -> bool {
        let late = |m: &Moving| !m.stalled && now.since(m.since) >= deadline;
        let late: Vec<Slot> = self.moves.iter().filter(|(_, m)| late(m)).map(|(slot, _)| *slot).collect();
        for slot in &late {
            let Some(moving) = self.moves.get_mut(slot) else { continue };
            moving.stalled = true;
            let (from, to) = (moving.from.clone(), moving.to.clone());
            self.stalled += 1;
            self.uncount(&from, &to);
        }
        !late.is_empty()
    }

    fn of(&self, worker: &WorkerId) -> usize {
        self.per_worker.get(worker).copied().unwrap_or_default()
    }

    /// Whether a move from or to this worker is under way and not stalled.
    pub(super) fn concerns(&self, worker: &WorkerId) -> bool {
        self.of(worker) > 0
    }

    /// Moves that count against the limit.
    fn counted(&self) -> usize {
        self.moves.len() - self.stalled
    }

    pub(super) const fn stalled(&self) -> usize {
        self.stalled
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
                let due = now + Duration::from_millis(self.config.debounce_ms);
                self.placement.joined(due, worker.clone());
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
            .filter(|member| {
                // What it holds must not be taken for that of somebody who left the ring.
                let holds = || self.granted.contains_key(&(member.worker.clone(), member.incarnation));
                !self.placement.joined.contains(member.worker) || holds()
            })
            .map(|member| Member {
                id: member.worker.clone(),
                weight: member.profile.weight,
                zone: member.profile.zone.clone(),
                host: member.profile.host.clone(),
                drivers: member.profile.drivers.clone(),
                connected: member.leased
                    && self.sessions.state(&(member.worker.clone(), member.incarnation)) == Session::Settled,
                draining: member.draining,
            })
            .collect();
        if self.planner.members() != members {
            self.planner.set_members(members);
        }
    }

    /// Plans if it is due, and begins what the limits allow.
    pub(super) fn place(&mut self, now: Timestamp) {
        let joins_due = self.placement.joins_due.is_some_and(|at| at <= now);
        let asked = self.placement.dirty || joins_due;
        if self.placement.waiting(now) || now < self.placement.not_before || !asked || !self.members.has_read() {
            return;
        }
        if self.paused.is_some() {
            self.tell_leavers(&BTreeSet::new());
            return;
        }
        let mut cause = None;
        let changed = !self.placement.lost.is_empty() || !self.placement.back.is_empty();
        if joins_due || changed || self.placement.start {
            self.placement.joins_due = None;
            cause = self.placement.take_cause();
            self.refresh_members();
        }
        self.placement.dirty = false;
        self.counters.plans += 1;
        self.return_home(now);
        let plan = self.planner.plan();
        for (slot, why) in plan.unplaced {
            self.note_unplaced(slot, Some(why));
            // It was on its way to somebody who cannot take it any more: others must not wait for that move.
            self.move_ended(slot, None);
        }
        let moves: Vec<Move> = plan.moves.into_iter().filter(|m| self.allows(now, m)).collect();
        self.name_rebalance(cause, &moves);
        let movers = moves.iter().filter_map(|m| m.from.clone()).collect();
        let mut begun = 0;
        for m in &moves {
            begun += usize::from(self.begin(now, m));
        }
        self.tell_leavers(&movers);
        self.note_stuck(&movers);
        if begun == 0 && self.in_flight.len() == 0 {
            let mut news = Vec::new();
            self.rebalances.nothing_left(&mut news);
            self.actions.extend(news.into_iter().map(Action::Rebalance));
        }
    }

    /// Whether a move may be begun: nothing is taken from somebody while most are out of sight, or from or to one that is
    /// waited for, and what a missed name held waits for it.
    fn allows(&mut self, now: Timestamp, m: &Move) -> bool {
        if self.intruders.contains_key(&m.slot) || self.members.is_handing_back(&m.to) {
            return false;
        }
        let frozen = self.brake.frozen_since().is_some();
        if let Some(from) = &m.from {
            let life = self.table.get(m.slot).and_then(|e| e.state.grant()).map(|g| (g.worker.clone(), g.incarnation));
            // One whose lease is over need not be asked, it is gone in a moment; nor one that nobody can ask: if it must
            // give something up, it is evicted.
            let answers = life
                .is_some_and(|life| self.membership.is_alive(&life) && self.sessions.state(&life) == Session::Settled);
            // A balance that a missing name upset is not mended before that name had its time.
            let balance = matches!(m.reason, Reason::OverCeiling | Reason::UnderFloor | Reason::RingOwner);
            let waits = frozen || (balance && self.brake.in_grace(now));
            return answers && !waits && !self.members.is_handing_back(from);
        }
        let Some(former) = self.former(m.slot) else { return true };
        if !self.brake.waits_for(now, &former) {
            return true;
        }
        let why = if frozen { Unplaced::Frozen(former) } else { Unplaced::WaitsFor(former) };
        self.note_unplaced(m.slot, Some(why));
        false
    }

    /// The name that held an appliance last, or is to have it back.
    fn former(&self, slot: Slot) -> Option<WorkerId> {
        let entry = self.table.get(slot)?;
        match &entry.state {
            State::Orphaned(g) => Some(g.worker.clone()),
            State::Unowned | State::Freeing(_) => entry.preferred.clone(),
            _ => None,
        }
    }

    /// Gives back to names that were missed what they held, if they still can take it.
    fn return_home(&mut self, now: Timestamp) {
        if !self.members.anybody_comes_home() {
            return;
        }
        let mut moves = Vec::new();
        for (slot, entry) in self.table.iter().filter(|(_, e)| e.state.wants_owner()) {
            let Some(to) = self.former(slot).filter(|name| self.members.comes_home(name)) else { continue };
            let Some(incarnation) = self.membership.current(&to) else { continue };
            let life = (to.clone(), incarnation);
            let Some(profile) = self.membership.profile(&life) else { continue };
            let takes = self.sessions.state(&life) == Session::Settled
                && !self.membership.is_draining(&life)
                && !self.members.is_handing_back(&to)
                && profile.drivers.contains(&entry.needs.driver)
                && entry.needs.host.as_ref().is_none_or(|host| *host == profile.host)
                && !self.declined.get(&slot).is_some_and(|by| by.contains_key(&to));
            let barred = self.intruders.contains_key(&slot) || self.quarantine.quarantined(entry.id).is_some();
            if takes && !barred {
                moves.push(Move { slot, from: None, to, reason: Reason::Returned });
            }
        }
        self.name_rebalance(None, &moves);
        for m in &moves {
            self.begin(now, m);
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
            (None, None) => {
                let drained = moves.iter().filter(|m| matches!(m.reason, Reason::Draining | Reason::Unowned));
                let drained: BTreeSet<WorkerId> = drained.filter_map(|m| m.from.clone()).collect();
                if drained.is_empty() { Cause::Drift } else { Cause::Draining(drained.into_iter().collect()) }
            }
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
                if self.in_flight.counted() >= self.config.max_moves_in_flight
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
        self.note_grant(m.slot, &(m.to.clone(), incarnation));
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
        // Whoever holds something and is no member any more is drained.
        entry.reason = Some(if m.reason == Reason::Unowned { Reason::Draining } else { m.reason });
        if let Some(id) = rebalance {
            entry.rebalance = Some(id);
            self.rebalances.begin(id);
        }
        self.in_flight.begin(now, m.slot, from, m.to.clone());
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
