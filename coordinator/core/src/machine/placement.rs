//! When to plan, and how a plan becomes hand-offs under the limits on what may be under way.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use common::{ApplianceId, Life, Site, Timestamp, WorkerId};

use super::{Action, Machine};
use crate::handoff::{HandoffEvent, HandoffState};
use crate::health::SessionState;
use crate::planner::{Assumptions, Plan, PlanRefused, PlannedMove, PlannerMember, Reason, Unplaced};
use crate::rebalance::RebalanceCause;
use crate::slot::Slot;

/// How long the balance is looked at no more while appliances are being deleted one after the other, as a multiple of the
/// time for which joins are gathered.
const LONGEST_DELETION: u32 = 20;

/// After so long without a move, how long one takes alone is measured anew. Between moves that follow each other there are none now and then.
const IDLE: Duration = Duration::from_secs(1);

/// From what age a move is slow: many times what one takes whose owner can give up at once. It lets others begin beside it.
pub const SLOW: Duration = Duration::from_millis(250);

/// Moves that are kept of a plan beside those that have begun. Once they are made, a new plan names further ones.
const MAX_BACKLOG: usize = 2_048;
/// Moves without room that are passed over in search of one that has.
const LOOK_AHEAD: usize = 32;

/// A move that a plan wants and that has not begun.
#[derive(Clone, Debug)]
struct Waiting {
    slot: Slot,
    id: ApplianceId,
    from: WorkerId,
    to: WorkerId,
    reason: Reason,
}

/// What became of a move that was to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    Begun,
    /// As many as may be are under way.
    NoRoom,
    /// Something else is against it, of which the next change makes a new plan.
    Refused,
}

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
    /// Moves ended as they were planned: those that the last plan left may begin.
    room: bool,
    /// Appliances that were given up on a planned move, and are for the worker that it was planned for.
    passing: Vec<Slot>,
    /// What the last plan wanted to move and had no room for, in its order; empty again with the next change of anything else.
    backlog: VecDeque<Waiting>,
    /// The time of this step.
    now: Timestamp,
    /// When the oldest was noticed of what the next plan is to look at, but for joins.
    noticed: Option<Timestamp>,
    /// When the first of the joins was noticed that are being gathered.
    joins_noticed: Option<Timestamp>,
    /// The store refused a grant: nothing is planned before.
    not_before: Timestamp,
    /// Appliances are being deleted one after the other.
    deletions: Option<Deletions>,
    /// How long such a run may pause before it has ended.
    gather: Duration,
}

/// Deletions that follow each other: the balance is restored once, after the last of them.
#[derive(Clone, Copy, Debug)]
struct Deletions {
    since: Timestamp,
    last: Timestamp,
}

impl Due {
    /// A new leader waits for `awaited`, at most for `grace`. `gather` is for how long deletions are gathered.
    pub(super) fn at_start(now: Timestamp, grace: Duration, gather: Duration, awaited: BTreeSet<Life>) -> Self {
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
            room: false,
            passing: Vec::new(),
            backlog: VecDeque::new(),
            now,
            noticed: Some(now),
            joins_noticed: None,
            not_before: now,
            deletions: None,
            gather,
        }
    }

    /// It is so late now.
    pub(super) const fn advance(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// A plan should look at something that is noticed now.
    fn notice(&mut self) {
        self.dirty = true;
        self.noticed.get_or_insert(self.now);
    }

    /// An appliance is being deleted from now on, and leaves its owner with less than its share.
    pub(super) fn deleting(&mut self, now: Timestamp) {
        self.deletions.get_or_insert(Deletions { since: now, last: now }).last = now;
        self.notice();
    }

    /// Until when deletions keep the balance from being looked at.
    fn deletions_end(&self) -> Option<Timestamp> {
        let gather = self.gather;
        self.deletions.map(|run| (run.last + gather).min(run.since + gather * LONGEST_DELETION))
    }

    /// The store takes no grants now. Planning again at once would only offer it the same ones as fast as it refuses.
    pub(super) const fn hold_back(&mut self, until: Timestamp) {
        self.not_before = until;
    }

    /// An appliance wants an owner.
    pub(super) fn want_owner(&mut self) {
        self.notice();
    }

    /// The balance may have changed, or room was made for further moves that no plan has named.
    pub(super) fn drifted(&mut self) {
        self.notice();
    }

    /// A move ended as it was planned: what the last plan wanted besides has not changed.
    pub(super) fn made_room(&mut self) {
        if self.backlog.is_empty() {
            self.notice();
        } else {
            self.room = true;
        }
    }

    /// An appliance was given up on a planned move.
    pub(super) fn pass_on(&mut self, slot: Slot) {
        self.passing.push(slot);
    }

    /// Whether only what the last plan said is to be gone on with.
    fn goes_on(&self) -> bool {
        self.room || !self.passing.is_empty()
    }

    /// A plan is made: it says anew what is to be moved.
    fn plan_begins(&mut self) {
        (self.dirty, self.room) = (false, false);
        self.passing.clear();
        self.backlog.clear();
    }

    pub(super) fn spoke(&mut self, life: &Life) {
        self.awaited.remove(life);
    }

    pub(super) fn lost(&mut self, life: &Life) {
        self.awaited.remove(life);
        self.lost.push(life.worker.clone());
        self.notice();
    }

    /// External: every member that is there is awaited, whether the store knew of them or not.
    pub(super) fn await_members(&mut self, now: Timestamp, lives: impl Iterator<Item = Life>) {
        self.awaited = lives.collect();
        self.grace_ends = now + self.grace;
        self.notice();
    }

    /// A member came into the ring; it is gathered with others until `due`.
    pub(super) fn joined(&mut self, due: Timestamp, name: WorkerId) {
        if !self.joined.contains(&name) {
            self.joined.push(name);
        }
        self.joins_due.get_or_insert(due);
        self.joins_noticed.get_or_insert(self.now);
    }

    /// A name that was missed is back: it is not gathered with newcomers.
    pub(super) fn came_back(&mut self, name: &WorkerId) {
        self.joined.retain(|joined| joined != name);
        self.back.push(name.clone());
        self.notice();
    }

    /// A member that held no lease left the ring.
    pub(super) fn left_ring(&mut self, name: WorkerId) {
        self.lost.push(name);
        self.notice();
    }

    fn waiting(&self, now: Timestamp) -> bool {
        !self.awaited.is_empty() && now < self.grace_ends
    }

    pub(super) fn due_at(&self, now: Timestamp) -> Option<Timestamp> {
        if self.waiting(now) {
            return Some(self.grace_ends);
        }
        let later = self.joins_due.into_iter().chain(self.deletions_end()).min();
        let due = if self.dirty || self.goes_on() { Some(now) } else { later };
        due.map(|at| at.max(self.not_before))
    }

    /// Names of the members a new leader still waits for.
    pub(super) fn awaited(&self, now: Timestamp) -> Vec<WorkerId> {
        if self.waiting(now) { self.awaited.iter().map(|life| life.worker.clone()).collect() } else { Vec::new() }
    }

    /// When the oldest was noticed of what the plan looks at that is made now.
    fn take_noticed(&mut self) -> Timestamp {
        // Joins that are still being gathered are noticed by a later plan.
        let joins = if self.joins_due.is_none() { self.joins_noticed.take() } else { None };
        self.noticed.take().into_iter().chain(joins).min().unwrap_or(self.now)
    }

    fn take_cause(&mut self) -> Option<RebalanceCause> {
        let mut joined = std::mem::take(&mut self.joined);
        joined.append(&mut self.back);
        let lost = std::mem::take(&mut self.lost);
        let start = std::mem::take(&mut self.start);
        match (joined.is_empty(), lost.is_empty()) {
            _ if start => Some(RebalanceCause::Start),
            (true, true) => None,
            (false, true) => Some(RebalanceCause::Joined(joined)),
            (true, false) => Some(RebalanceCause::Gone(lost)),
            (false, false) => Some(RebalanceCause::Changed { joined, gone: lost }),
        }
    }
}

/// How long a move has been under way already. Its state never changes by time alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pace {
    /// It counts against every limit.
    Fresh,
    /// It waits for a step of its owner, who looks after it until then: others need not wait with it.
    Slow,
    /// It took too long and no longer counts against any limit.
    Stalled,
}

/// One move that has not ended.
#[derive(Clone, Debug)]
struct Moving {
    from: WorkerId,
    to: WorkerId,
    since: Timestamp,
    pace: Pace,
}

/// Moves from and to one worker.
#[derive(Clone, Copy, Debug, Default)]
struct WorkerMoves {
    fresh: usize,
    /// Fresh and slow ones.
    counted: usize,
}

/// Moves from one owner to another that have not ended.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    moves: BTreeMap<Slot, Moving>,
    per_worker: BTreeMap<WorkerId, WorkerMoves>,
    stalled: usize,
    /// When the newest began.
    newest: Timestamp,
}

impl InFlight {
    fn begin(&mut self, now: Timestamp, slot: Slot, from: WorkerId, to: WorkerId) {
        self.end(slot);
        for worker in [&from, &to] {
            let counts = self.per_worker.entry(worker.clone()).or_default();
            counts.fresh += 1;
            counts.counted += 1;
        }
        self.moves.insert(slot, Moving { from, to, since: now, pace: Pace::Fresh });
        self.newest = now;
    }

    /// Whether there has been none for a while.
    fn is_idle(&self, now: Timestamp) -> bool {
        self.moves.is_empty() && now.since(self.newest) >= IDLE
    }

    pub(super) fn end(&mut self, slot: Slot) {
        let Some(moving) = self.moves.remove(&slot) else { return };
        self.uncount(&moving);
        self.stalled -= usize::from(moving.pace == Pace::Stalled);
    }

    /// Takes a move out of the counts that its pace puts it into.
    fn uncount(&mut self, moving: &Moving) {
        for worker in [&moving.from, &moving.to] {
            let Some(counts) = self.per_worker.get_mut(worker) else { continue };
            counts.fresh -= usize::from(moving.pace == Pace::Fresh);
            counts.counted -= usize::from(moving.pace < Pace::Stalled);
            if counts.counted == 0 {
                self.per_worker.remove(worker);
            }
        }
    }

    /// Looks how old moves are: those of `slow` and more let others begin, those of `stalled` and more no longer count at
    /// all. Returns whether that made room.
    pub(super) fn age(&mut self, now: Timestamp, slow: Duration, stalled: Duration) -> bool {
        let pace = |m: &Moving| match now.since(m.since) {
            age if age >= stalled => Pace::Stalled,
            age if age >= slow => Pace::Slow,
            _ => Pace::Fresh,
        };
        let aged: Vec<(Slot, Pace)> =
            self.moves.iter().filter(|(_, m)| pace(m) > m.pace).map(|(slot, m)| (*slot, pace(m))).collect();
        for (slot, pace) in &aged {
            let Some(moving) = self.moves.get(slot).cloned() else { continue };
            self.uncount(&moving);
            if *pace == Pace::Stalled {
                self.stalled += 1;
            } else {
                for worker in [&moving.from, &moving.to] {
                    self.per_worker.entry(worker.clone()).or_default().counted += 1;
                }
            }
            self.moves.insert(*slot, Moving { pace: *pace, ..moving });
        }
        !aged.is_empty()
    }

    /// Whether a worker may give up or get one more, with so many fresh ones and so many in all.
    fn has_room(&self, worker: &WorkerId, fresh: usize, counted: usize) -> bool {
        let counts = self.per_worker.get(worker).copied().unwrap_or_default();
        counts.fresh < fresh && counts.counted < counted
    }

    /// Whether a move from or to this worker is under way and not stalled.
    pub(super) fn concerns(&self, worker: &WorkerId) -> bool {
        self.per_worker.contains_key(worker)
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

/// What an appliance is bound to from now on, if that changes: the site of its new owner. One that is bound already is of that
/// site; it comes to be known by another host name or path, or by the id that a worker of the version before did not publish.
fn newer_site(bound: Option<&Site>, owners: Option<Site>) -> Option<Site> {
    let owners = owners?;
    match bound {
        None => Some(owners),
        Some(bound) => (bound.is(&owners) && owners.id().is_some() && *bound != owners).then_some(owners),
    }
}

impl Machine {
    /// A stream was welcomed. A worker that is new to the ring is gathered with others for the debounce; one that comes
    /// back counts at once.
    pub(super) fn settled_changed(&mut self, now: Timestamp, joined: Option<&WorkerId>) {
        match joined {
            Some(worker) => {
                let due = now + self.config.debounce;
                self.pacing.due.joined(due, worker.clone());
            }
            None => {
                self.refresh_members();
                self.pacing.due.notice();
            }
        }
    }

    /// Tells the planner who the members are. Those whose join is still being gathered are left out.
    pub(super) fn refresh_members(&mut self) {
        let members: Vec<PlannerMember> = self
            .membership
            .members()
            .filter(|member| {
                // What it holds must not be taken for that of a worker that left the ring.
                let holds = || self.tallies.granted.contains_key(&member.life());
                !self.pacing.due.joined.contains(member.worker) || holds()
            })
            .map(|member| PlannerMember {
                id: member.worker.clone(),
                weight: self.weight(member.worker, member.profile.weight),
                published_weight: member.profile.weight,
                zone: member.profile.zone.clone(),
                host: member.profile.host.clone(),
                drivers: member.profile.drivers.clone(),
                connected: member.leased && self.sessions.state(&member.life()) == SessionState::Settled,
                draining: member.draining,
                drained: self.orders.is_drained(member.worker),
                cordoned: self.is_cordoned(member.worker),
            })
            .collect();
        if self.planner.members() != members {
            let zones = |members: &[PlannerMember]| -> Vec<_> {
                members.iter().map(|member| (member.id.clone(), member.zone.clone())).collect()
            };
            let moved = !self.budgets.is_idle() && zones(self.planner.members()) != zones(&members);
            self.planner.set_members(members);
            if moved {
                self.count_budgets();
            }
        }
    }

    /// Plans if it is due, and begins what the limits allow.
    pub(super) fn place(&mut self, now: Timestamp) {
        let joins_due = self.pacing.due.joins_due.is_some_and(|at| at <= now);
        let deleted = self.pacing.due.deletions_end().is_some_and(|at| at <= now);
        let goes_on = self.pacing.due.goes_on();
        let asked = self.pacing.due.dirty || joins_due || deleted || goes_on;
        if self.pacing.due.waiting(now) || now < self.pacing.due.not_before || !asked || !self.members.has_read() {
            return;
        }
        if self.pacing.plans_nothing() {
            self.tell_leavers(&BTreeSet::new());
            return;
        }
        if goes_on && !self.pacing.due.dirty && !joins_due && !deleted && self.go_on(now) {
            return;
        }
        let mut cause = None;
        let changed = !self.pacing.due.lost.is_empty() || !self.pacing.due.back.is_empty();
        if joins_due || changed || self.pacing.due.start {
            self.pacing.due.joins_due = None;
            cause = self.pacing.due.take_cause();
            self.refresh_members();
        }
        self.pacing.due.plan_begins();
        if deleted {
            self.pacing.due.deletions = None;
        }
        self.counters.plans += 1;
        let since = self.pacing.due.take_noticed();
        self.return_home(now, since);
        let plan = self.propose(&Assumptions::default());
        self.apply(now, &plan, cause, since).expect("the table has not changed since the plan was made");
    }

    /// Goes on with what the last plan said, after moves ended as it had planned them; `false` when a new plan is due. A plan looks at every
    /// appliance that is to be moved, and a large rebalance consists of as many moves: planned anew after each, most of the time of the
    /// leader, and of each hand-off, would be spent on that.
    fn go_on(&mut self, now: Timestamp) -> bool {
        self.pacing.due.room = false;
        for slot in std::mem::take(&mut self.pacing.due.passing) {
            if !self.hand_to_planned(now, slot) {
                return false;
            }
        }
        let mut blocked = VecDeque::new();
        let mut tried = 0;
        while tried < LOOK_AHEAD
            && self.pacing.in_flight.counted() < self.config.max_moves_in_flight
            && let Some(next) = self.pacing.due.backlog.pop_front()
        {
            let Waiting { slot, id, from, to, reason } = &next;
            let m = PlannedMove { appliance: *id, slot: *slot, from: Some(from), to, reason: *reason };
            let is_as_planned = self
                .table
                .get(*slot)
                .is_some_and(|row| row.id == *id && matches!(&row.state, HandoffState::Owned(g) if g.worker == *from));
            if !is_as_planned || !self.allows(now, &m) {
                return false;
            }
            if self.begin(now, &m) == Begin::NoRoom {
                tried += 1;
                blocked.push_back(next);
            }
        }
        while let Some(waits) = blocked.pop_back() {
            self.pacing.due.backlog.push_front(waits);
        }
        // The next plan has what this one did not name, or finds that nothing is left.
        !self.pacing.due.backlog.is_empty()
    }

    /// Grants an appliance that was given up on a planned move to the worker that it was planned for; `false` when that cannot have it any more.
    fn hand_to_planned(&mut self, now: Timestamp, slot: Slot) -> bool {
        let Some(entry) = self.table.get(slot).filter(|entry| matches!(entry.state, HandoffState::Freeing(_))) else {
            return true;
        };
        let Some(to) = entry.placement.preferred.clone() else { return false };
        let Some(incarnation) = self.membership.current(&to) else { return false };
        let life = Life::new(to.clone(), incarnation);
        let Some(profile) = self.membership.profile(&life) else { return false };
        let takes = self.sessions.state(&life) == SessionState::Settled
            && !self.membership.is_draining(&life)
            && self.planner.members().iter().any(|member| member.id == to && !member.cordoned && !member.gives_up())
            && self.may_return(entry, &to)
            && profile.can_run(&entry.needs.driver, entry.needs.kind, entry.needs.site.as_ref())
            && !self.pacing.has_declined(slot, &to)
            && !self.versions_excluded(slot).any(|unable| *unable == to)
            && !self.is_barred(slot, entry.id);
        let (appliance, reason) = (entry.id, entry.placement.reason.unwrap_or(Reason::Unowned));
        let m = PlannedMove { appliance, slot, from: None, to: &to, reason };
        takes && self.allows(now, &m) && self.grant(now, &m)
    }

    /// What should change, now or if members were as assumed. What holds moves back (the brake, the limits on what is under
    /// way, a pause) is not considered: that is for when a plan is carried out.
    #[must_use]
    pub fn propose(&self, assumptions: &Assumptions) -> Plan {
        self.planner.propose(assumptions)
    }

    /// Carries out a plan as far as the limits allow; the next one has the rest. A plan that does not fit the table as it
    /// is changes nothing. What it is made for was noticed at `since`.
    pub(super) fn apply(
        &mut self,
        now: Timestamp,
        plan: &Plan,
        cause: Option<RebalanceCause>,
        since: Timestamp,
    ) -> Result<(), PlanRefused> {
        self.planner.adopt(plan)?;
        for unplaced in &plan.unplaced {
            let by_version =
                unplaced.why == Unplaced::Declined && self.versions_excluded(unplaced.slot).next().is_some();
            let why = if by_version { Unplaced::NoModes } else { unplaced.why.clone() };
            self.note_unplaced(unplaced.slot, Some(why));
            // It was on its way to a worker that cannot take it any more: others must not wait for that move.
            self.move_ended(unplaced.slot, None);
        }
        // What a join or a loss asks for need not wait for deletions, nor what is being moved for one of them already.
        let gathers = cause.is_none()
            && self.pacing.rebalances.current().is_none()
            && self.pacing.due.deletions_end().is_some_and(|at| now < at);
        let waits = |m: &PlannedMove<'_>| gathers && matches!(m.reason, Reason::OverCeiling | Reason::UnderFloor);
        let moves: Vec<PlannedMove<'_>> = plan.moves().filter(|m| !waits(m) && self.allows(now, m)).collect();
        self.name_rebalance(cause, &moves, since);
        let movers = moves.iter().filter_map(|m| m.from.cloned()).collect();
        self.budgets.release_held();
        let mut begun = 0;
        for m in &moves {
            match (self.begin(now, m), m.from) {
                (Begin::Begun, _) => begun += 1,
                (Begin::NoRoom, Some(from)) if self.pacing.due.backlog.len() < MAX_BACKLOG => {
                    let (from, to, reason) = (from.clone(), m.to.clone(), m.reason);
                    self.pacing.due.backlog.push_back(Waiting { slot: m.slot, id: m.appliance, from, to, reason });
                }
                (Begin::NoRoom | Begin::Refused, _) => {}
            }
        }
        self.tell_leavers(&movers);
        self.note_stuck(&movers);
        // What a former leader began has not ended while moves are held back that it would have made.
        let held_back =
            self.budgets.holds_any() || self.pacing.rebalances.is_inherited() && plan.moves().next().is_some();
        if begun == 0 && self.pacing.in_flight.len() == 0 && !held_back {
            let mut events = Vec::new();
            self.pacing.rebalances.nothing_left(&mut events);
            self.out.rebalance(events);
        }
        Ok(())
    }

    /// Whether a move may be begun: nothing is taken from a worker while most are out of sight, or from or to one that is
    /// waited for, and what a missed name held waits for it.
    fn allows(&mut self, now: Timestamp, m: &PlannedMove<'_>) -> bool {
        if self.conflicts.concern(m.slot) || self.members.is_handing_back(m.to) {
            return false;
        }
        let frozen = self.pacing.brake.frozen_since().is_some();
        if let Some(from) = m.from {
            let life = self.table.get(m.slot).and_then(|e| e.state.grant()).map(|g| g.life());
            // One whose lease is over need not be asked, it is gone in a moment; nor one that cannot be asked: if it must
            // give something up, it is evicted.
            let answers = life.is_some_and(|life| {
                self.membership.is_alive(&life) && self.sessions.state(&life) == SessionState::Settled
            });
            // A balance that a missing name upset is not mended before that name had its time.
            let balance = matches!(m.reason, Reason::OverCeiling | Reason::UnderFloor | Reason::RingOwner);
            let waits = frozen || (balance && self.pacing.brake.in_grace(now));
            return answers && !waits && !self.pacing.moves_nothing() && !self.members.is_handing_back(from);
        }
        let Some(former) = self.former(m.slot) else { return true };
        if !self.pacing.brake.waits_for(now, &former) {
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
            HandoffState::Orphaned(g) => Some(g.worker.clone()),
            HandoffState::Unowned | HandoffState::Freeing(_) => entry.placement.preferred.clone(),
            _ => None,
        }
    }

    /// Gives back to names that were missed what they held, if they still can take it.
    fn return_home(&mut self, now: Timestamp, since: Timestamp) {
        if !self.members.anybody_comes_home() {
            return;
        }
        let mut returning = Vec::new();
        for (slot, entry) in self.table.iter().filter(|(_, e)| e.state.wants_owner()) {
            let Some(to) = self.former(slot).filter(|name| self.members.comes_home(name)) else { continue };
            let Some(incarnation) = self.membership.current(&to) else { continue };
            let life = Life::new(to.clone(), incarnation);
            let Some(profile) = self.membership.profile(&life) else { continue };
            let takes = self.sessions.state(&life) == SessionState::Settled
                && !self.membership.is_draining(&life)
                && self.may_return(entry, &to)
                && !self.members.is_handing_back(&to)
                && profile.can_run(&entry.needs.driver, entry.needs.kind, entry.needs.site.as_ref())
                && !self.pacing.has_declined(slot, &to)
                && !self.versions_excluded(slot).any(|unable| *unable == to);
            if takes && !self.is_barred(slot, entry.id) {
                returning.push((entry.id, slot, to));
            }
        }
        let reason = Reason::Returned;
        let returning =
            returning.iter().map(|&(appliance, slot, ref to)| PlannedMove { appliance, slot, from: None, to, reason });
        let moves: Vec<PlannedMove<'_>> = returning.collect();
        self.name_rebalance(None, &moves, since);
        for m in &moves {
            self.begin(now, m);
        }
    }

    /// Opens a rebalance for what a cause moves. Giving new appliances their first owner is none.
    fn name_rebalance(&mut self, cause: Option<RebalanceCause>, moves: &[PlannedMove<'_>], mut since: Timestamp) {
        let (mut counted, mut moved_before) = (0, false);
        for m in moves.iter().filter(|m| self.belongs_to_rebalance(m)) {
            counted += 1;
            moved_before |= self.pacing.rebalances.has_moved(m.appliance);
            since = since.min(self.waited_since(m.slot).unwrap_or(since));
        }
        if counted == 0 {
            return;
        }
        let mut events = Vec::new();
        // What another worker does is a cause of its own, also for a new leader.
        let own_cause = cause.as_ref().is_some_and(|cause| *cause != RebalanceCause::Start);
        if self.pacing.rebalances.is_inherited() && !own_cause && !moved_before {
            let cause = cause.unwrap_or_else(|| self.cause_of(moves));
            self.pacing.rebalances.resume(cause, counted, &mut events);
        } else if (cause.is_none() || self.pacing.rebalances.is_of_former_leader())
            && !own_cause
            && self.pacing.rebalances.current().is_some()
            && !moved_before
        {
            self.pacing.rebalances.planned(counted, &mut events);
        } else {
            // What one rebalance has moved it does not move again: whatever asks for that is another cause.
            let cause = cause.unwrap_or_else(|| self.cause_of(moves));
            self.pacing.rebalances.open(cause, counted, since, &mut events);
        }
        self.out.rebalance(events);
    }

    /// Since when an appliance waits for a name that is gone, if it does: what sets its move off was noticed then.
    fn waited_since(&self, slot: Slot) -> Option<Timestamp> {
        let unplaced = self.table.get(slot)?.placement.unplaced.as_ref()?;
        let waits = matches!(unplaced, Unplaced::WaitsFor(_) | Unplaced::Frozen(_));
        if waits { self.tallies.unowned.since(slot) } else { None }
    }

    /// The cause that moves show themselves. Those that waited for a name, in its grace or while the brake held, are made
    /// long after the plan that its loss set off.
    fn cause_of(&self, moves: &[PlannedMove<'_>]) -> RebalanceCause {
        let lost = |m: &PlannedMove<'_>| match self.table.get(m.slot).map(|entry| &entry.state) {
            Some(HandoffState::Orphaned(former)) => Some(former.worker.clone()),
            _ => None,
        };
        let gone: BTreeSet<WorkerId> = moves.iter().filter_map(lost).collect();
        if !gone.is_empty() {
            return RebalanceCause::Gone(gone.into_iter().collect());
        }
        let drained = moves.iter().filter(|m| matches!(m.reason, Reason::Draining | Reason::Unowned));
        let drained: BTreeSet<WorkerId> = drained.filter_map(|m| m.from.cloned()).collect();
        if drained.is_empty() { RebalanceCause::Drift } else { RebalanceCause::Draining(drained.into_iter().collect()) }
    }

    fn belongs_to_rebalance(&self, m: &PlannedMove<'_>) -> bool {
        // What is on a move already keeps its rebalance; a void offer is no move of its own.
        m.from.is_some()
            || self.table.get(m.slot).is_some_and(|e| {
                // What its owner has given up for the former leader was on a move of that leader's rebalance.
                let given_up = || {
                    self.pacing.rebalances.is_of_former_leader()
                        && e.granted_before
                        && matches!(e.state, HandoffState::Unowned | HandoffState::Freeing(_))
                };
                e.placement.rebalance.is_none() && (matches!(e.state, HandoffState::Orphaned(_)) || given_up())
            })
    }

    fn begin(&mut self, now: Timestamp, m: &PlannedMove<'_>) -> Begin {
        let begun = |begun| if begun { Begin::Begun } else { Begin::Refused };
        match m.from {
            None => begun(self.grant(now, m)),
            Some(from) => {
                let (fresh, counted) = (self.pacing.window.size(), self.config.max_moves_per_worker);
                let has_room = |worker| self.pacing.in_flight.has_room(worker, fresh, counted);
                if self.pacing.in_flight.counted() >= self.config.max_moves_in_flight
                    || !has_room(from)
                    || !has_room(m.to)
                {
                    return Begin::NoRoom;
                }
                if let Some(spent) = self.refuses_move(m) {
                    self.budgets.hold(&spent.budget);
                    return Begin::Refused;
                }
                begun(self.take(now, m, from.clone()))
            }
        }
    }

    fn grant(&mut self, now: Timestamp, m: &PlannedMove<'_>) -> bool {
        let Some(incarnation) = self.membership.current(m.to) else { return false };
        let counted = self.belongs_to_rebalance(m);
        let life = Life::new(m.to.clone(), incarnation);
        let token = self.epoch.next_token(m.appliance, &life);
        let rebalance = self.pacing.rebalances.current();
        let Some(entry) = self.table.get_mut(m.slot) else { return false };
        if !entry.state.wants_owner() {
            return false;
        }
        // One may be found while the grant is written, which then is not offered; none may begin beside one.
        debug_assert!(!self.conflicts.concern(m.slot), "{} is granted while a worker acts on it", m.appliance);
        if let HandoffState::Orphaned(former) = &entry.state {
            entry.placement.moved_from = Some(former.worker.clone());
        }
        // On a planned move the reason is the move's own, not that it has no owner right now.
        if entry.placement.rebalance.is_none() {
            entry.placement.reason = Some(match (m.reason, &entry.state) {
                (Reason::Unowned, HandoffState::Orphaned(_)) => Reason::OwnerGone,
                (Reason::Unowned, _) if !entry.granted_before => Reason::New,
                (reason, _) => reason,
            });
        }
        if counted && let Some(id) = rebalance {
            entry.placement.rebalance = Some(id);
            self.pacing.rebalances.begin(id);
        }
        entry.granted_before = true;
        // Workers may differ, as while a fleet is being updated: what counts is what its new owner says of the driver.
        let site = self.membership.profile(&life).and_then(|profile| profile.site(&entry.needs.driver));
        if let Some(site) = newer_site(entry.needs.site.as_ref(), site) {
            if entry.needs.site.is_none() {
                entry.binding = Some(token);
            }
            entry.needs.site = Some(site);
            let needs = entry.needs.clone();
            self.planner.set_needs(m.slot, needs);
        }
        self.note_unplaced(m.slot, None);
        self.note_grant(m.slot, &life);
        let granted = self.granted_to(&life, token);
        self.transition(now, m.slot, HandoffEvent::Assign(granted))
    }

    fn take(&mut self, now: Timestamp, m: &PlannedMove<'_>, from: WorkerId) -> bool {
        let rebalance = self.pacing.rebalances.current();
        let Some(entry) = self.table.get_mut(m.slot) else { return false };
        if !matches!(&entry.state, HandoffState::Owned(g) if g.worker == from) {
            return false;
        }
        entry.placement.preferred = Some(m.to.clone());
        entry.placement.moved_from = Some(from.clone());
        // Whoever holds something and is no member any more is drained.
        entry.placement.reason = Some(if m.reason == Reason::Unowned { Reason::Draining } else { m.reason });
        if let Some(id) = rebalance {
            entry.placement.rebalance = Some(id);
            self.pacing.rebalances.begin(id);
        }
        if self.pacing.in_flight.is_idle(now) {
            self.pacing.window.begin();
        }
        self.pacing.in_flight.begin(now, m.slot, from, m.to.clone());
        self.transition(now, m.slot, HandoffEvent::Take)
    }

    pub(super) fn note_unplaced(&mut self, slot: Slot, why: Option<crate::planner::Unplaced>) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        if entry.placement.unplaced != why {
            entry.placement.unplaced = why;
            if entry.placement.unplaced.is_some() {
                self.out.push(Action::Assigned(entry.id));
            }
        }
    }

    /// Lets workers that declined an appliance some time ago take it again.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        for slot in self.pacing.forgive(now) {
            self.tell_excluded(slot);
            self.pacing.due.want_owner();
        }
    }

    pub(super) fn tell_excluded(&mut self, slot: Slot) {
        let mut excluded = self.pacing.decliners(slot);
        excluded.extend(self.versions_excluded(slot).cloned());
        self.planner.set_excluded(slot, excluded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALLED: Duration = Duration::from_secs(30);

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).expect("valid")
    }

    #[test]
    fn a_slow_move_lets_others_begin_and_a_stalled_one_counts_no_more() {
        let (from, to) = (worker("w1"), worker("w2"));
        let mut it = InFlight::default();
        let begin = |it: &mut InFlight, at: Timestamp, slot| it.begin(at, Slot(slot), from.clone(), to.clone());
        let (start, slow) = (Timestamp::from_millis(1_000), Timestamp::from_millis(1_000) + SLOW);
        begin(&mut it, start, 1);
        begin(&mut it, start, 2);
        assert!(!it.has_room(&from, 2, 3) && !it.has_room(&to, 2, 3) && it.has_room(&from, 3, 3));
        assert!(!it.age(Timestamp::from_millis(1_100), SLOW, STALLED));
        assert!(it.age(slow, SLOW, STALLED));
        assert!(it.has_room(&from, 2, 3) && it.has_room(&to, 2, 3), "both are slow");
        begin(&mut it, slow, 3);
        assert!(!it.has_room(&from, 2, 3), "slow ones count among all");
        assert!(it.age(start + STALLED, SLOW, STALLED));
        assert_eq!((it.counted(), it.stalled(), it.len()), (1, 2, 3));
        for slot in 1..=3 {
            it.end(Slot(slot));
        }
        assert!(!it.concerns(&from) && !it.concerns(&to));
        assert_eq!((it.counted(), it.stalled(), it.len()), (0, 0, 0));
    }
}
