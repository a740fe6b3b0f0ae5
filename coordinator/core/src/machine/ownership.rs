//! Carries hand-off transitions through: durable writes, what is sent to workers, what readers see.

use std::collections::BTreeSet;
use std::time::Duration;

use common::kind::KindName;
use common::mutant::{self, Mutant};
use common::session::{Carryover, OwnedGrant};
use common::{ApplianceId, Life, ModeSubject, Timestamp, Token, WorkerId};

use super::fence_delays::fence_wait;
use super::writes::Pending;
use super::{Action, Machine, WRITE_RETRY};
use crate::brake::Departure;
use crate::grants::{GrantOp, Granted, Profile};
use crate::handoff::{self, HandoffEffect, HandoffEvent, HandoffRefused, HandoffState};
use crate::orders::OrderOp;
use crate::outbox::OutboxEntry;
use crate::planner::Unplaced;
use crate::rebalance::RebalanceEvent;
use crate::slot::Slot;
use crate::unowned::{self, Regained, UnownedCause};
use crate::violation::ViolationKind;

impl Machine {
    /// Applies a hand-off event to an appliance. Returns whether it counted.
    pub(super) fn transition(&mut self, now: Timestamp, slot: Slot, event: HandoffEvent) -> bool {
        let Some(entry) = self.table.get(slot) else { return false };
        match handoff::step(&entry.state, event) {
            Err(HandoffRefused) => false,
            Ok((state, effects)) => {
                self.set_state(slot, state);
                for effect in effects {
                    self.carry_out(now, slot, effect);
                }
                true
            }
        }
    }

    /// Puts an appliance into a state and keeps everything derived from states in step with it.
    pub(super) fn set_state(&mut self, slot: Slot, state: HandoffState) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        let former = std::mem::replace(&mut entry.state, state);
        if former == entry.state {
            return;
        }
        let id = entry.id;
        self.conflicts.audit.moved(id, &former, &entry.state);
        self.tallies.fence_waits.remove(&slot);
        if matches!((&former, &entry.state), (HandoffState::Offered(_), HandoffState::Owned(_)))
            && let Some(wait) = fence_wait(entry.fence_delay())
        {
            self.tallies.fence_waits.insert(slot, (self.epoch.last_step, wait));
        }
        match (unowned::has_owner(&former), unowned::has_owner(&entry.state)) {
            (true, false) => {
                let cause = match (&former, &entry.state) {
                    (_, HandoffState::Orphaned(_)) => UnownedCause::Lost,
                    (HandoffState::Releasing(_), _) if entry.placement.moved_from.is_some() => UnownedCause::HandOff,
                    _ => UnownedCause::Other,
                };
                self.tallies.unowned.begin(self.epoch.last_step, slot, cause);
            }
            (false, true) => {
                let ended = self.tallies.unowned.end(self.epoch.last_step, slot);
                if let (HandoffState::Owned(_), Some((lasted, cause))) = (&entry.state, ended) {
                    if cause == UnownedCause::HandOff {
                        self.pacing.window.note(lasted);
                    }
                    self.out.regained(Regained { lasted, cause, rebalance: entry.placement.rebalance });
                }
            }
            _ => {}
        }
        if entry.binding.is_some() && entry.binding == untaken(&former, &entry.state) {
            // Nothing ever ran there, and that site may never come back.
            entry.binding = None;
            entry.needs.site = None;
            let needs = entry.needs.clone();
            self.planner.set_needs(slot, needs);
        }
        if entry.state == HandoffState::Unowned {
            entry.fence_delay_if_lost = Duration::ZERO;
            // Neither a grant that was refused nor an offer that no worker took changes what is handed on.
            let taken_back =
                matches!(former, HandoffState::Granting(_) | HandoffState::Offered(_) | HandoffState::Releasing(_));
            if taken_back && mutant::is(Mutant::FenceDelayLostOnOffer) {
                entry.lose_fence_delay();
            }
        }
        let Some(entry) = self.table.get(slot) else { return };
        let (before, after) = (former.granted_to(), entry.state.granted_to());
        let mut unblocked = None;
        let moves = before != after;
        if moves {
            self.tallies.regrant(slot, before.as_ref(), after);
            if let Some(life) = before {
                unblocked = self.quarantine.left(&life, id).map(|step| (life, step));
            }
        }
        self.tallies.moved(&former, &entry.state);
        if let Some((life, step)) = unblocked {
            self.clear_step(&life, step);
        }
        if moves {
            self.refresh_mode(slot);
            if let Some(entry) = self.table.get_mut(slot) {
                // Its next owner has not said how it is.
                entry.available = false;
            }
        }
        self.note_budget(slot);
        self.tell_planner(slot);
        self.out.push(Action::Assigned(id));
    }

    /// Where the planner counts an appliance, and whether it may pick it.
    pub(super) fn tell_planner(&mut self, slot: Slot) {
        let Some(entry) = self.table.get(slot) else { return };
        let preferred = entry.placement.preferred.as_ref();
        let (owner, former): (Option<&WorkerId>, Option<&WorkerId>) = match &entry.state {
            HandoffState::Unowned | HandoffState::Freeing(_) => (None, preferred),
            HandoffState::Orphaned(g) => (None, Some(&g.worker)),
            HandoffState::Granting(g)
            | HandoffState::Passing { to: g, .. }
            | HandoffState::Offered(g)
            | HandoffState::Owned(g)
            | HandoffState::Removing(g) => (Some(&g.worker), None),
            // On its way: counted where it goes, so that no second appliance is sent to fill the same place.
            HandoffState::Releasing(g) => (Some(preferred.unwrap_or(&g.worker)), None),
        };
        let movable = !self.is_barred(slot, entry.id)
            && (entry.state.wants_owner() || matches!(entry.state, HandoffState::Owned(_)));
        self.planner.set_owner(slot, owner, former);
        let again = self.planner.set_movable(slot, movable) && movable;
        let is_on_its_way = entry.placement.preferred.is_some() && entry.placement.moved_from.is_some();
        if matches!(entry.state, HandoffState::Freeing(_)) && is_on_its_way {
            self.pacing.due.pass_on(slot);
        } else if entry.state.wants_owner() {
            self.pacing.due.want_owner();
        } else if again {
            // Plans made meanwhile had to leave it where it is, whatever the balance asked for.
            self.pacing.due.made_room();
        }
    }

    /// Whether an appliance is granted to no worker, whatever the planner thinks of it.
    pub(super) fn is_barred(&self, slot: Slot, id: ApplianceId) -> bool {
        self.conflicts.concern(slot) || self.quarantine.quarantined(id).is_some() || self.writes.is_unbinding(slot)
    }

    fn carry_out(&mut self, now: Timestamp, slot: Slot, effect: HandoffEffect) {
        let Some(entry) = self.table.get(slot) else { return };
        let id = entry.id;
        let grant = entry.state.grant().cloned();
        match (effect, grant) {
            (HandoffEffect::PersistGrant, Some(to)) => self.write_grant(slot, to),
            (HandoffEffect::Offer, Some(g)) => {
                let rebalance = entry.placement.rebalance;
                self.tell(&g.life(), slot, OutboxEntry::Grant(g.token), rebalance);
            }
            (HandoffEffect::AskRelease, Some(g)) => {
                let rebalance = entry.placement.rebalance;
                self.tell(&g.life(), slot, OutboxEntry::Release(g.token), rebalance);
            }
            (HandoffEffect::PersistPass, Some(to)) => {
                let Carryover { progress, fence_delay } = entry.handed.as_deref().cloned().unwrap_or_default();
                self.writes.free_with_grant(slot, GrantOp::Free { appliance: id, progress, fence_delay });
                self.write_grant(slot, to);
            }
            (HandoffEffect::PersistFree(carryover), Some(_)) => self.write_free(slot, carryover),
            (HandoffEffect::PersistRemoval, Some(g)) => {
                self.writes.change(slot, g.token, GrantOp::Remove { appliance: id })
            }
            (HandoffEffect::Retry, Some(_)) => self.writes.retry(now + WRITE_RETRY, slot),
            (HandoffEffect::Confirm(to), _) => self.confirm_to(&to, id),
            (HandoffEffect::Arrived, _) => self.arrived(now, slot),
            (HandoffEffect::LeaveOut(worker), _) => {
                let until = now + self.config.decline_backoff;
                self.pacing.declined(slot, worker, until);
                self.tell_excluded(slot);
                self.move_ended(slot, None);
            }
            (HandoffEffect::StartFenceDelay, _) => {
                if let Some(entry) = self.table.get_mut(slot) {
                    entry.start_fence_delay();
                }
                self.move_ended(slot, None);
            }
            (HandoffEffect::Conflict(by), _) => {
                if self.conflicts.add(slot, by.life(), by.token) {
                    let text = format!("{} holds {id} under {} against the table", by.worker, by.token);
                    self.violation(ViolationKind::HeldAgainstTable, text);
                    self.tell_planner(slot);
                    self.out.push(Action::Assigned(id));
                }
            }
            (HandoffEffect::Removed, _) => self.removed(slot),
            (
                HandoffEffect::PersistGrant
                | HandoffEffect::PersistPass
                | HandoffEffect::Offer
                | HandoffEffect::AskRelease
                | HandoffEffect::PersistFree(_)
                | HandoffEffect::PersistRemoval
                | HandoffEffect::Retry,
                None,
            ) => unreachable!("these effects belong to states that have a grant"),
        }
    }

    /// Writes that nobody owns it, and keeps what its last owner passed on.
    fn write_free(&mut self, slot: Slot, carryover: Carryover) {
        if let Some(entry) = self.table.get_mut(slot) {
            entry.handed = (carryover != Carryover::default()).then(|| Box::new(carryover));
        }
        self.writes.free_later(slot);
    }

    fn write_grant(&mut self, slot: Slot, to: Granted) {
        let Some(row) = self.table.get(slot) else { return };
        let (appliance, site, fence_delay, token) = (row.id, row.needs.site.clone(), row.fence_delay_if_lost, to.token);
        self.writes.change(slot, token, GrantOp::Grant { appliance, to, site, fence_delay });
    }

    /// Makes durable the carryovers that found no next owner in the plan just made.
    pub(super) fn write_freed(&mut self) {
        for slot in self.writes.take_freed() {
            self.write_again(slot);
        }
    }

    /// Writes what the end of a grant leaves, unless the appliance went on meanwhile.
    pub(super) fn write_again(&mut self, slot: Slot) {
        let Some(entry) = self.table.get(slot) else { return };
        let id = entry.id;
        let handed = entry.handed.as_deref().cloned().unwrap_or_default();
        match entry.state.clone() {
            HandoffState::Freeing(g) => {
                let op = GrantOp::Free { appliance: id, progress: handed.progress, fence_delay: handed.fence_delay };
                self.writes.change(slot, g.token, op);
            }
            HandoffState::Removing(g) => self.writes.change(slot, g.token, GrantOp::Remove { appliance: id }),
            HandoffState::Unowned
            | HandoffState::Granting(_)
            | HandoffState::Passing { .. }
            | HandoffState::Offered(_)
            | HandoffState::Owned(_)
            | HandoffState::Releasing(_)
            | HandoffState::Orphaned(_) => {}
        }
    }

    pub(super) fn written(&mut self, now: Timestamp, batch: super::BatchId, durable: bool) {
        for pending in self.writes.take_batch(batch) {
            match pending {
                Pending::Slot(slot, token) => {
                    let granting = |state: &HandoffState| {
                        matches!(state, HandoffState::Granting(_) | HandoffState::Passing { .. })
                    };
                    let granting = self.table.under(slot, token).is_some_and(|e| granting(&e.state));
                    if granting && !durable {
                        self.pacing.due.hold_back(now + WRITE_RETRY);
                    }
                    // A worker was found acting on it while the grant was written: it must not be offered, and its token
                    // is burnt.
                    let offered = durable && !(granting && self.conflicts.concern(slot));
                    let event = if offered { HandoffEvent::Durable(token) } else { HandoffEvent::Undone(token) };
                    self.transition(now, slot, event);
                }
                Pending::Member(conn) => self.member_written(now, conn, durable),
                Pending::Unbound(slot, number) => self.unbound(now, slot, number, durable),
                Pending::Mode(id, number) => self.mode_written(now, id, number, durable),
                Pending::Departed(life, missed) => {
                    self.writes.life_written(&life, missed, durable, now + WRITE_RETRY);
                    self.out.push(Action::ModesChanged);
                }
            }
        }
    }

    /// The lease of a life is over: what it held is orphaned, what kept others waiting for it is free. With `left` it
    /// said itself that it leaves, so that nothing it held is suspected of having ended it.
    pub(super) fn gone(&mut self, now: Timestamp, life: &Life, profile: Profile, left: bool) {
        self.out.push(Action::Gone(life.clone(), now));
        self.close_session(life, super::Refusal::IncarnationOver);
        self.forget_streams(life);
        self.conflicts.audit.forget(life);
        let slots = self.tallies.of(life);
        let explained = !left && self.suspect(life, &slots);
        for slot in slots {
            self.transition(now, slot, HandoffEvent::Gone(life.clone()));
        }
        for slot in self.conflicts.of(life) {
            self.conflicting_owner_lost(slot, &profile);
            if self.conflicts.end_life(slot, life) {
                self.no_conflict_left(slot);
            }
        }
        let how = match (left, explained) {
            (true, _) => Departure::Left,
            (false, true) => Departure::Explained,
            (false, false) => Departure::Lost,
        };
        self.missed(now, life, &profile, how);
        self.departed(now, life, profile, left);
        self.pacing.due.lost(life);
        self.refresh_members();
        self.out.worker_changed(life.worker.clone());
    }

    /// A life that held all these ended without a word. Returns whether a step that was announced is the likely reason.
    fn suspect(&mut self, life: &Life, slots: &BTreeSet<Slot>) -> bool {
        let held = slots.iter().filter_map(|slot| {
            let entry = self.table.get(*slot)?;
            Some((entry.id, entry.state.holder()?.token))
        });
        let (quarantined, explained) = self.quarantine.died(life, held);
        for (id, strikes) in quarantined {
            if let Some(slot) = self.table.slot(id) {
                self.note_unplaced(slot, Some(Unplaced::Quarantined(strikes)));
                self.out.push(Action::Quarantined(id, strikes));
            }
        }
        explained
    }

    /// A life says what it holds: whatever else it held against the table has ended.
    pub(super) fn forget_conflicts(&mut self, life: &Life, owned: &[OwnedGrant]) {
        let table = &self.table;
        for (slot, token) in self.conflicts.not_among(life, owned, |slot| table.get(slot).map(|row| row.id)) {
            self.conflict_ended(slot, life, token);
        }
    }

    pub(super) fn conflict_ended(&mut self, slot: Slot, life: &Life, token: Token) {
        if self.conflicts.end(slot, life, token) {
            self.no_conflict_left(slot);
        }
    }

    fn no_conflict_left(&mut self, slot: Slot) {
        self.tell_planner(slot);
        if let Some(entry) = self.table.get(slot) {
            self.out.push(Action::Assigned(entry.id));
        }
    }

    pub(super) fn updated(
        &mut self,
        id: common::ApplianceId,
        edition: common::Edition,
        kind: KindName,
        size: usize,
        deleting: bool,
    ) {
        let Some(slot) = self.table.slot(id) else { return };
        let Some(entry) = self.table.get_mut(slot) else { return };
        let newer = edition.generation > entry.edition.generation;
        entry.edition = edition;
        entry.size = size;
        entry.deleting = deleting;
        entry.available &= !newer;
        if entry.needs.kind != kind {
            entry.needs.kind = kind;
            let needs = entry.needs.clone();
            self.planner.set_needs(slot, needs);
            self.pacing.due.want_owner();
        }
        if deleting {
            self.planner.set_deleting(slot);
            self.pacing.due.deleting(self.epoch.last_step);
        }
        self.note_budget(slot);
        let Some(entry) = self.table.get_mut(slot) else { return };
        if newer && self.quarantine.changed(id, deleting) {
            entry.placement.unplaced = None;
            self.tell_planner(slot);
            self.out.push(Action::Assigned(id));
        }
        let Some(entry) = self.table.get(slot) else { return };
        if deleting && entry.state == HandoffState::Unowned && !entry.granted_before {
            // No worker ever heard of it: there is nothing to remove but its rows.
            let nobody = Life::new(WorkerId::new("nobody").expect("a valid name"), common::Incarnation::new(0));
            let token = self.epoch.next_token(id, &nobody);
            let nobody = self.granted_to(&nobody, token);
            self.set_state(slot, HandoffState::Removing(nobody));
            self.writes.change(slot, token, GrantOp::Remove { appliance: id });
            return;
        }
        if let Some(g) = entry.state.holder().cloned() {
            self.tell(&g.life(), slot, OutboxEntry::Update(g.token), None);
        }
    }

    /// Labels of an appliance have changed, and with them the rules that cover it.
    pub(super) fn labelled(&mut self, id: ApplianceId, subject: ModeSubject) {
        let Some(slot) = self.table.slot(id) else { return };
        if let Some(entry) = self.table.get_mut(slot)
            && *entry.subject != subject
        {
            *entry.subject = subject;
            self.refresh_mode(slot);
            self.note_budget(slot);
            self.tell_excluded(slot);
            self.pacing.due.drifted();
        }
    }

    pub(super) fn check(&mut self, id: common::ApplianceId, number: u64) {
        let Some(slot) = self.table.slot(id) else { return };
        let Some(g) = self.table.get(slot).and_then(|e| e.state.holder().cloned()) else { return };
        self.tell(&g.life(), slot, OutboxEntry::Check(g.token, number), None);
    }

    fn removed(&mut self, slot: Slot) {
        self.move_ended(slot, None);
        self.tallies.removed(self.epoch.last_step, slot);
        self.conflicts.forget(slot);
        self.pacing.declined.remove(&slot);
        self.planner.remove(slot);
        self.budgets.note(slot, None);
        if let Some(entry) = self.table.remove(slot) {
            self.quarantine.forget(entry.id);
            // The store forgets the pin with the appliance.
            self.orders.apply(&OrderOp::Pin { appliance: entry.id, pin: None });
            self.out.push(Action::Removed(entry.id));
        }
        self.pacing.due.drifted();
    }

    /// The grant came to its owner.
    fn arrived(&mut self, now: Timestamp, slot: Slot) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        let Some((worker, token)) = entry.state.grant().map(|g| (g.worker.clone(), g.token)) else { return };
        self.quarantine.arrived(now, entry.id, token);
        // Should its owner die, this is the newest that is known: what the store has, as after a restart.
        entry.handed = entry.handed.take().and_then(|handed| super::aged(*handed));
        // It may act from now on, and end without a word.
        entry.start_fence_delay();
        entry.binding = None;
        self.move_ended(slot, Some(worker));
        // Its site may be known only now. Whoever declined it is not asked again before its time: one that declines
        // everything would be asked as fast as others can take it back.
        self.pacing.due.made_room();
    }

    /// The move an appliance was on has ended: at `to`, or given up.
    pub(super) fn move_ended(&mut self, slot: Slot, to: Option<WorkerId>) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        let from = entry.placement.moved_from.take();
        let target = entry.placement.preferred.take();
        let id = entry.id;
        let rebalance = entry.placement.rebalance.take();
        let reason = entry.placement.reason;
        self.pacing.in_flight.end(slot);
        if to.is_none() {
            // No worker has it, so the name it was meant for stays the preferred one.
            if let Some(entry) = self.table.get_mut(slot) {
                entry.placement.preferred = target;
            }
        }
        self.note_budget(slot);
        let Some(rebalance) = rebalance else { return };
        let mut events = Vec::new();
        if let (Some(to), Some(reason)) = (&to, reason) {
            events.push(RebalanceEvent::Moved { id: rebalance, appliance: id, from, to: to.clone(), reason });
        }
        self.pacing.rebalances.end(rebalance, to.is_some().then_some(id), &mut events);
        self.out.rebalance(events);
        if to.is_some() {
            self.pacing.due.made_room();
        } else {
            self.pacing.due.drifted();
        }
    }
}

/// Token of a grant that ended with this transition and that no worker took.
fn untaken(from: &HandoffState, to: &HandoffState) -> Option<Token> {
    match (from, to) {
        (HandoffState::Granting(g), HandoffState::Unowned | HandoffState::Orphaned(_))
        | (HandoffState::Offered(g), HandoffState::Unowned) => Some(g.token),
        (HandoffState::Passing { to, .. }, HandoffState::Freeing(_)) => Some(to.token),
        _ => None,
    }
}
