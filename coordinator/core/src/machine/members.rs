//! Who is there: what the coordination service tells of members and leases, goodbyes, evictions, and who is missed.
//!
//! Embedded, lives come from `Hello` and end by silence; no event of the service applies. External, a life is known
//! once its lease node was read. A worker
//! whose member node was taken away keeps what it holds and is drained; one that cannot be reached while a move waits on
//! it is evicted. Neither is ever called gone here: that is the membership's to say.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::mutant::{self, Mutant};
use common::session::{Envelope, ToWorker};
use common::{Life, Timestamp, WorkerId};

use super::events::Pause;
use super::placement::SLOW;
use super::view::Departed;
use super::{Action, Machine, Profile, Refusal, StreamId};
use crate::brake::Departure;
use crate::handoff::HandoffState;
use crate::health::SessionState;
use crate::membership::{LeaseAuthority, ObservedLease, ObservedMember};
use crate::slot::Slot;
use crate::violation::ViolationKind;

/// How long a life without a member node is looked at before it counts as taken away: the two nodes of a newcomer are read
/// one after the other.
const EXPELLED: Duration = Duration::from_secs(2);

/// How often an eviction is tried again.
const EVICT_AGAIN: Duration = Duration::from_secs(5);

/// Most names that are kept for their return at once; a bound, not a tuning value.
const HOMECOMING: usize = 100_000;

/// What is watched of the lives besides their leases.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// Everything was read at least once; embedded there is nothing to read.
    read: bool,
    /// Lives without a stream, and since when.
    silent: BTreeMap<Life, Timestamp>,
    /// Lives without a member node, and since when.
    expelled: BTreeMap<Life, Timestamp>,
    /// Those of them that own what no worker takes.
    stuck: BTreeSet<Life>,
    /// Lives that were to be evicted, and when that was last asked for.
    evicting: BTreeMap<Life, Timestamp>,
    /// Lives that are about to stop, and whether `Drained` was sent to them.
    leaving: BTreeMap<Life, bool>,
    /// Those of them that hand back what they hold.
    handing_back: BTreeSet<Life>,
    /// Names that were missed and are back: what they held goes to them, whatever the band says. Until when.
    homecoming: BTreeMap<WorkerId, Timestamp>,
    /// Names that left within the last hour, for people.
    pub(super) departed: BTreeMap<WorkerId, Departed>,
    /// What does not count of what workers say of themselves.
    pub(super) limited: BTreeMap<WorkerId, Vec<String>>,
}

impl Watch {
    pub(super) fn new(now: Timestamp, lives: Vec<Life>, authority: LeaseAuthority) -> Self {
        Self {
            read: authority == LeaseAuthority::Embedded,
            silent: lives.into_iter().map(|life| (life, now)).collect(),
            expelled: BTreeMap::new(),
            stuck: BTreeSet::new(),
            evicting: BTreeMap::new(),
            leaving: BTreeMap::new(),
            handing_back: BTreeSet::new(),
            homecoming: BTreeMap::new(),
            departed: BTreeMap::new(),
            limited: BTreeMap::new(),
        }
    }

    pub(super) const fn has_read(&self) -> bool {
        self.read
    }

    pub(super) fn hands_back(&self, life: &Life) -> bool {
        self.handing_back.contains(life)
    }

    /// Whether a worker of this name is about to stop and hands back what it has.
    pub(super) fn is_handing_back(&self, name: &WorkerId) -> bool {
        self.handing_back.iter().any(|life| life.worker == *name)
    }

    pub(super) fn comes_home(&self, name: &WorkerId) -> bool {
        self.homecoming.contains_key(name)
    }

    pub(super) fn anybody_comes_home(&self) -> bool {
        !self.homecoming.is_empty()
    }

    pub(super) fn lost_session(&mut self, now: Timestamp, life: &Life) {
        self.silent.entry(life.clone()).or_insert(now);
    }

    fn forget(&mut self, life: &Life) {
        self.silent.remove(life);
        self.expelled.remove(life);
        self.stuck.remove(life);
        self.evicting.remove(life);
        self.leaving.remove(life);
        self.handing_back.remove(life);
    }
}

impl Machine {
    /// What counts of what a worker says of itself. Whatever does not is a violation when it is said first.
    pub(super) fn limit(&mut self, worker: &WorkerId, profile: Profile) -> Profile {
        let (profile, notes) = self.config.limits.apply(worker, profile);
        let known = self.members.limited.get(worker).map_or(&[][..], Vec::as_slice);
        if known != notes {
            if notes.is_empty() {
                self.members.limited.remove(worker);
            } else {
                let text = format!("{worker} says of itself what it may not: {}", notes.join("; "));
                self.violation(ViolationKind::BeyondLimits, text);
                self.members.limited.insert(worker.clone(), notes);
            }
            self.out.worker_changed(worker.clone());
        }
        profile
    }

    fn limit_members(&mut self, members: &mut BTreeMap<WorkerId, ObservedMember>) {
        for (name, member) in members {
            let published = std::mem::take(&mut member.profile);
            member.profile = self.limit(name, published);
        }
    }

    /// Every node was read anew.
    pub(super) fn read(
        &mut self,
        now: Timestamp,
        mut members: BTreeMap<WorkerId, ObservedMember>,
        leases: &BTreeMap<Life, ObservedLease>,
    ) {
        self.limit_members(&mut members);
        let first = !std::mem::replace(&mut self.members.read, true);
        let (came, went) = self.membership.set_nodes(members);
        self.membership.read_leases(now, leases);
        if first {
            let lives: Vec<Life> = self.membership.lives().cloned().collect();
            let alive = lives.iter().filter(|life| self.membership.is_alive(life)).cloned();
            self.pacing.due.await_members(now, alive);
        } else {
            self.ring_changed(now, came, went);
        }
        self.nodes_changed(now);
    }

    pub(super) fn members_changed(&mut self, now: Timestamp, mut members: BTreeMap<WorkerId, ObservedMember>) {
        self.limit_members(&mut members);
        let (came, went) = self.membership.set_nodes(members);
        self.ring_changed(now, came, went);
        self.nodes_changed(now);
    }

    /// Gathers newcomers, and notes the causes of what is planned next. A name that went and came is one gone, one
    /// joined; where it holds a lease, the end of that tells.
    fn ring_changed(&mut self, now: Timestamp, came: Vec<WorkerId>, went: Vec<WorkerId>) {
        for name in came {
            self.pacing.due.joined(now + self.config.debounce, name);
        }
        for name in went {
            self.out.worker_changed(name.clone());
            if self.membership.any_life_of(&name).is_none() {
                self.pacing.due.left_ring(name);
            }
        }
    }

    fn nodes_changed(&mut self, now: Timestamp) {
        let lives: Vec<Life> = self.membership.lives().cloned().collect();
        for life in lives {
            if self.sessions.state(&life) == SessionState::None {
                self.members.lost_session(now, &life);
            }
            if self.membership.is_member(&life) || !self.membership.is_alive(&life) {
                self.members.expelled.remove(&life);
            } else {
                self.members.expelled.entry(life).or_insert(now);
            }
        }
        self.refresh_members();
        self.pacing.due.drifted();
        self.greet_parked(now);
    }

    /// A heartbeat of a life was seen, or its node read for the first time.
    pub(super) fn observed(&mut self, now: Timestamp, life: &Life, node: ObservedLease) {
        if self.membership.beat_seen(now, life, node) {
            self.out.worker_changed(life.worker.clone());
            self.nodes_changed(now);
        }
    }

    /// No further heartbeat of this life can arrive.
    pub(super) fn over(&mut self, now: Timestamp, life: &Life) {
        if self.membership.is_alive(life) {
            self.membership.close(now, life, false);
            self.members.expelled.remove(life);
            self.refresh_members();
            self.out.worker_changed(life.worker.clone());
        }
    }

    /// A stream of this life was welcomed.
    pub(super) fn settled_member(&mut self, now: Timestamp, life: &Life) {
        self.members.silent.remove(life);
        if self.pacing.brake.joined(now, &life.worker) {
            self.come_home(now, &life.worker);
        }
        self.forget_missed(now);
    }

    /// What this name held goes to it from now on, until the last of its former lives must have ended.
    fn come_home(&mut self, now: Timestamp, name: &WorkerId) {
        if self.members.homecoming.len() >= HOMECOMING {
            return;
        }
        let lives = self.membership.lives().filter(|life| life.worker == *name);
        let last = lives.filter_map(|life| self.membership.remaining(now, life)).max().unwrap_or_default();
        let settle = self.config.debounce * 4;
        self.members.homecoming.insert(name.clone(), now + last.max(settle));
        self.pacing.due.came_back(name);
        self.refresh_members();
    }

    /// A life is gone: is its name missed?
    pub(super) fn missed(&mut self, now: Timestamp, life: &Life, profile: &Profile, how: Departure) {
        let how = if self.members.hands_back(life) { Departure::HandedBack } else { how };
        self.members.forget(life);
        let successor = self.membership.lives().find(|other| {
            other.worker == life.worker
                && self.membership.is_alive(other)
                && self.sessions.state(other) == SessionState::Settled
        });
        if successor.is_none() {
            let silent = self.membership.overdue(now);
            self.pacing.brake.left(now, &life.worker, how, silent);
        } else if !self.config.departure_grace.is_zero() || self.pacing.brake.frozen_since().is_some() {
            self.come_home(now, &life.worker.clone());
        }
        let missed = self.pacing.brake.remembers(&life.worker);
        if missed {
            self.writes.remember(life.clone());
        }
        self.writes.end(now, life.clone(), missed.then(|| profile.clone()));
        self.forget_missed(now);
    }

    /// Has rows removed of names that are not missed any more.
    pub(super) fn forget_missed(&mut self, now: Timestamp) {
        self.writes.forget_names(now, |name| self.pacing.brake.remembers(name));
    }

    pub(super) fn drain(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope, hand_back: bool) {
        let Some(life) = self.speaker(now, conn, envelope) else { return };
        self.members.leaving.insert(life.clone(), false);
        if hand_back && !self.config.departure_grace.is_zero() {
            self.members.handing_back.insert(life.clone());
            self.pacing.brake.left(now, &life.worker, Departure::HandedBack, 0);
        } else {
            self.membership.drain(&life);
        }
        self.refresh_members();
        self.pacing.due.drifted();
        self.out.worker_changed(life.worker);
    }

    /// Sends `Drained` to workers that are about to stop when no more grants will be taken from them: no worker can take them, or
    /// nothing is moved now. `movers` are those that something is yet to be taken from.
    pub(super) fn tell_leavers(&mut self, movers: &BTreeSet<WorkerId>) {
        let done: Vec<Life> = self
            .members
            .leaving
            .iter()
            .filter(|(life, answered)| {
                !**answered
                    && !self.members.handing_back.contains(*life)
                    && self.tallies.granted.contains_key(*life)
                    && !movers.contains(&life.worker)
                    && !self.pacing.in_flight.concerns(&life.worker)
            })
            .map(|(life, _)| life.clone())
            .collect();
        for life in done {
            if let Some(conn) = self.sessions.settled_conn(&life) {
                self.send(conn, ToWorker::Drained);
                self.members.leaving.insert(life, true);
            }
        }
    }

    /// Has no further heartbeat of a life count, as soon as the authority can see to it.
    pub(super) fn evict(&mut self, now: Timestamp, life: &Life) {
        if !self.membership.is_alive(life) {
            return;
        }
        if self.membership.is_embedded() {
            self.membership.close(now, life, false);
            self.close_session(life, Refusal::IncarnationOver);
            self.refresh_members();
        } else {
            self.members.evicting.insert(life.clone(), now);
            self.out.push(Action::Evict(life.clone()));
        }
        self.out.worker_changed(life.worker.clone());
    }

    /// The process of a life has ended. Nobody has to wait for the rest of its lease: no heartbeat of it is to count any more, and
    /// once that is certain the life is gone. What it had under way keeps its other fences.
    pub(super) fn witnessed(&mut self, now: Timestamp, life: &Life, gather: Duration) {
        if self.membership.witness(life, now + gather) {
            self.evict(now, life);
        }
    }

    /// Whether a witness of the end of this life would change anything.
    #[must_use]
    pub fn would_hear_witness(&self, life: &Life) -> bool {
        self.membership.is_known(life) && !self.membership.is_dead(life)
    }

    /// A name without a life is neither shown nor waited for any more.
    pub(super) fn forget_worker(&mut self, now: Timestamp, name: &WorkerId) {
        if self.membership.any_life_of(name).is_some() {
            return;
        }
        self.members.departed.remove(name);
        if self.pacing.brake.give_up(name) {
            self.forget_missed(now);
            self.pacing.due.drifted();
        }
        self.out.worker_changed(name.clone());
    }

    pub(super) fn pause(&mut self, now: Timestamp, pause: Pause) {
        self.pacing.paused = Some(pause);
        self.abort_rebalance();
        // One that was paused altogether may give owners again.
        self.pacing.due.drifted();
        self.show_waiting();
        self.forget_missed(now);
    }

    /// Has the rebalance end that an operator aborted.
    pub(super) fn abort_rebalance(&mut self) {
        let Some(id) = self.pacing.paused.as_ref().and_then(|pause| pause.aborts) else { return };
        let mut events = Vec::new();
        self.pacing.rebalances.abort(id, &mut events);
        self.out.rebalance(events);
    }

    /// What waits for an owner does so for another reason from now on.
    fn show_waiting(&mut self) {
        let waiting = self.table.iter().filter(|(_, entry)| entry.state.wants_owner()).map(|(_, entry)| entry.id);
        for id in waiting {
            self.out.push(Action::Assigned(id));
        }
    }

    pub(super) fn resume(&mut self, now: Timestamp) {
        self.pacing.paused = None;
        self.show_waiting();
        self.pacing.brake.resume();
        self.forget_missed(now);
        self.pacing.due.drifted();
    }

    /// What time brings about members.
    pub(super) fn watch_members(&mut self, now: Timestamp) {
        let silent = self.membership.overdue(now);
        if self.pacing.brake.tick(now, silent) {
            self.forget_missed(now);
            self.pacing.due.drifted();
        }
        self.members.homecoming.retain(|_, until| now < *until);
        self.end_handing_back(now);
        if mutant::is(Mutant::OfferEndedByTime) {
            self.end_offers(now);
        }
        if self.pacing.in_flight.age(now, SLOW, self.config.release_deadline) {
            self.pacing.due.drifted();
        }
        self.end_parking(now);
        if self.membership.is_embedded() {
            return;
        }
        self.send_expelled_home(now);
        self.evict_unreachable(now);
    }

    /// What must not be: takes back what was offered and is not answered for a while.
    fn end_offers(&mut self, now: Timestamp) {
        let late =
            |slot: &Slot| self.tallies.unowned.since(*slot).is_some_and(|s| now.since(s) >= Duration::from_millis(500));
        let offered = |slot: &Slot| self.table.get(*slot).is_some_and(|e| matches!(e.state, HandoffState::Offered(_)));
        let slots: Vec<Slot> =
            self.tallies.granted.values().flatten().copied().filter(|s| offered(s) && late(s)).collect();
        for slot in slots {
            self.set_state(slot, HandoffState::Unowned);
        }
    }

    /// A worker that has not handed everything back within the grace is drained like any other: what it gave up is waited
    /// for no more.
    fn end_handing_back(&mut self, now: Timestamp) {
        let late = |life: &&Life| !self.pacing.brake.waits_for(now, &life.worker);
        let late: Vec<Life> = self.members.handing_back.iter().filter(late).cloned().collect();
        for life in late {
            self.members.handing_back.remove(&life);
            self.membership.drain(&life);
            self.refresh_members();
            self.pacing.due.drifted();
        }
    }

    /// Notes which workers without a member node own what no worker takes, after a plan of which `movers` are to give
    /// something up: waiting longer would not make them members again.
    pub(super) fn note_stuck(&mut self, movers: &BTreeSet<WorkerId>) {
        let frozen = self.pacing.brake.frozen_since().is_some();
        let stuck =
            |life: &&Life| !frozen && !movers.contains(&life.worker) && !self.pacing.in_flight.concerns(&life.worker);
        self.members.stuck = self.members.expelled.keys().filter(stuck).cloned().collect();
    }

    /// A worker whose member node was taken away and that nothing more can be taken from may come back in a new life.
    fn send_expelled_home(&mut self, now: Timestamp) {
        let due = |(life, since): &(&Life, &Timestamp)| {
            now.since(**since) >= EXPELLED
                && (!self.tallies.granted.contains_key(*life) || self.members.stuck.contains(*life))
                && self.sessions.state(life) == SessionState::Settled
        };
        let due: Vec<Life> = self.members.expelled.iter().filter(due).map(|(life, _)| life.clone()).collect();
        for life in due {
            self.close_session(&life, Refusal::NotMember);
            self.members.lost_session(now, &life);
            self.refresh_members();
        }
    }

    fn evict_unreachable(&mut self, now: Timestamp) {
        let limit = self.config.unreachable_after;
        let mut due = Vec::new();
        let alive = self.membership.lives().filter(|life| self.membership.is_alive(life));
        let (alive, silent) = alive.fold((0_usize, 0_usize), |(alive, silent), life| {
            (alive + 1, silent + usize::from(self.members.silent.contains_key(life)))
        });
        // Where most cannot be reached, it is the leader that is cut off; and one at a time, so that the brake can hold.
        let most = silent as f64 > self.config.freeze_fraction * alive as f64;
        let one_goes = self.members.evicting.keys().any(|life| self.membership.is_alive(life));
        for (life, since) in &self.members.silent {
            let asked = self.members.evicting.get(life).is_some_and(|at| now.since(*at) < EVICT_AGAIN);
            let unreachable = now.since(*since) >= limit && self.membership.is_alive(life);
            if unreachable && !asked && !most && !one_goes && due.is_empty() && self.a_move_waits_on(life) {
                due.push(life.clone());
            }
        }
        // One that was to be evicted by command, and has not gone yet.
        for (life, at) in &self.members.evicting {
            if now.since(*at) >= EVICT_AGAIN && self.membership.is_alive(life) && !due.contains(life) {
                due.push(life.clone());
            }
        }
        for life in due {
            self.evict(now, &life);
        }
    }

    fn a_move_waits_on(&self, life: &Life) -> bool {
        let draining = self.membership.is_draining(life);
        let drained = self.orders.is_drained(&life.worker);
        self.tallies.granted.get(life).is_some_and(|slots| {
            slots.iter().filter_map(|slot| Some((*slot, self.table.get(*slot)?))).any(|(slot, entry)| {
                let given = matches!(
                    entry.state,
                    HandoffState::Offered(_) | HandoffState::Granting(_) | HandoffState::Passing { .. }
                );
                // One that is drained by order may keep for long what nobody else can take.
                let taken = draining || (drained && self.planner.can_move(slot));
                let moves = taken || given || matches!(entry.state, HandoffState::Releasing(_));
                moves || Self::a_mode_waits_on(life, entry)
            })
        })
    }
}
