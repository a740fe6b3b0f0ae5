//! What to do next, from everything that is known.
//!
//! In this order: look when something is unknown; end what is doomed; boot what is missing; probe what is due; replug and
//! configure; replace what runs with another digest. Replacement is last and takes one instance at a time, each only
//! while all others are there and the ones already replaced serve, so that a bad image or command costs one instance; and none where
//! an instance can hand its service over: its successor is started beside it, and it is ended once that serves.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use common::Timestamp;
use common::status::Phase;

use super::fleet::{InstanceLife, InstanceSlot, on_rhythm};
use super::{Bar, Boots, Config, Lifecycle, LifecycleOutput, LifecycleState, LifecycleStep};
use crate::peers::{Peer, PeerDigest};

/// Time from a start, or from an unanswered poll, to the next poll of an instance that has not answered yet: short at
/// first because most processes are up within a moment, at most a second because machines take minutes.
pub(super) fn poll_delay(polls: u32) -> Duration {
    let doubled = Duration::from_millis(100).saturating_mul(1_u32.checked_shl(polls).unwrap_or(u32::MAX));
    doubled.min(Duration::from_secs(1))
}

/// Gathers the earliest moment at which anything becomes due.
pub(super) struct Wake {
    pub(super) now: Timestamp,
    at: Option<Timestamp>,
}

impl Wake {
    pub(super) const fn at(now: Timestamp) -> Self {
        Self { now, at: None }
    }

    /// Whether `at` has come; otherwise it counts for the wake-up.
    pub(super) fn due(&mut self, at: Timestamp) -> bool {
        if at <= self.now {
            return true;
        }
        self.at = Some(self.at.map_or(at, |earliest| earliest.min(at)));
        false
    }
}

pub(super) enum Choice {
    Do(LifecycleStep),
    /// Start an instance at this ordinal.
    Boot(u16),
    /// End the instance at this ordinal in favour of a new one.
    Replace(u16),
    /// Start a new one beside the instance at this ordinal.
    Succeed(u16),
}

impl Lifecycle {
    /// Chooses and begins the next step, or asks for a wake-up.
    pub(super) fn plan(&mut self, now: Timestamp, output: &mut LifecycleOutput) {
        if let Bar::Cooldown(until) = self.boots.bar
            && until <= now
        {
            self.boots = Boots::NONE;
        }
        for until in [&mut self.waits.held_until, &mut self.waits.unanswered_until] {
            if until.is_some_and(|until| until <= now) {
                *until = None;
                self.fleet.known = false;
            }
        }
        // Also one that was booted while the wish for it was withdrawn.
        if !self.hands.are_off() {
            self.fleet.condemn_from(if self.goal.desired.deleting { 0 } else { self.goal.replicas() });
            self.fleet.settle_successions();
        }
        let mut wake = Wake::at(now);
        let settled = self.waits.unanswered_until.is_none_or(|until| wake.due(until));
        let choice = if self.hands.are_off() {
            self.next_look(&mut wake, settled)
        } else if self.goal.desired.deleting {
            self.next_removal(&mut wake, settled)
        } else {
            self.next_repair(&mut wake, true)
        };
        let step = match choice {
            Some(Choice::Do(step)) => Some(step),
            Some(Choice::Boot(ordinal)) => {
                Some(LifecycleStep::Boot { ordinal, attempt: self.fleet.next_attempt(ordinal), beside: None })
            }
            Some(Choice::Succeed(ordinal)) => {
                self.troubles.replacing = true;
                let beside = self.fleet.slot(ordinal).map(|slot| slot.instance.attempt);
                self.fleet.make_way(ordinal);
                Some(LifecycleStep::Boot { ordinal, attempt: self.fleet.next_attempt(ordinal), beside })
            }
            Some(Choice::Replace(ordinal)) => {
                self.troubles.replacing = true;
                self.fleet.condemn(ordinal);
                self.fleet.doomed.last().map(|i| LifecycleStep::Destroy { ordinal: i.ordinal, attempt: i.attempt })
            }
            None => None,
        };
        if let Some(LifecycleStep::Replug { ordinal, .. }) = step
            && let Some(slot) = self.fleet.slot_mut(ordinal)
        {
            // However it ends: what the instance was told of its ports may not be true any more.
            slot.configured = None;
        }
        if let Some(LifecycleStep::Probe { ordinal }) = step
            && let Some(slot) = self.fleet.slot_mut(ordinal)
        {
            slot.exited = false;
        }
        match step {
            Some(step) => {
                self.state = LifecycleState::Running { step, leaving: false };
                output.action = Some(step);
            }
            None => {
                self.state = LifecycleState::Idle;
                output.wake_at = wake.at;
            }
        }
    }

    pub(super) fn next_removal(&self, wake: &mut Wake, settled: bool) -> Option<Choice> {
        if !self.fleet.known {
            return wake.due(self.waits.looks.at).then_some(Choice::Do(LifecycleStep::Observe));
        }
        let ready = wake.due(self.waits.fenced_until.max(self.waits.removals.at));
        let last = settled.then_some(LifecycleStep::Forget);
        self.doomed_step().or(last).filter(|_| ready).map(Choice::Do)
    }

    /// The next step that a kept appliance needs; without `may_change`, the next look or probe.
    pub(super) fn next_repair(&self, wake: &mut Wake, may_change: bool) -> Option<Choice> {
        if !self.fleet.known && wake.due(self.waits.looks.at) {
            return Some(Choice::Do(LifecycleStep::Observe));
        }
        if let Bar::Cooldown(until) = self.boots.bar {
            // The phase changes then, also when nothing is missing any more.
            let _ = wake.due(until);
        }
        // What changes the world needs to know the world, and the gate.
        let may_act = may_change && self.fleet.known && wake.due(self.waits.fenced_until);
        if may_act
            && let Some(step) = self.doomed_step()
            && wake.due(self.waits.removals.at)
        {
            return Some(Choice::Do(step));
        }
        if may_act
            && let Some(ordinal) = self.fleet.missing(self.goal.replicas())
            && wake.due(self.boots.bar.until())
        {
            return Some(Choice::Boot(ordinal));
        }
        let due = self.fleet.slots.iter().min_by_key(|slot| (slot.probe_at(), slot.instance.ordinal));
        if let Some(slot) = due
            && wake.due(slot.probe_at())
        {
            return Some(Choice::Do(LifecycleStep::Probe { ordinal: slot.instance.ordinal }));
        }
        if !may_act {
            return None;
        }
        let stale = |slot: &&InstanceSlot| self.is_stale(slot);
        let fresh = |slot: &&InstanceSlot| !self.is_stale(slot);
        let slots = &self.fleet.slots;
        slots
            .iter()
            .filter(fresh)
            .find_map(|slot| self.tend(slot, wake))
            .or_else(|| self.next_replacement(wake))
            .or_else(|| slots.iter().filter(stale).find_map(|slot| self.tend(slot, wake)))
    }

    fn doomed_step(&self) -> Option<LifecycleStep> {
        self.fleet.doomed.first().map(|i| LifecycleStep::Destroy { ordinal: i.ordinal, attempt: i.attempt })
    }

    /// Whether an instance is to be replaced.
    fn is_stale(&self, slot: &InstanceSlot) -> bool {
        self.goal.is_stale(&slot.instance) || slot.plugging.given_up
    }

    /// Whether an instance answers and has the wanted ports and configuration.
    fn serves(&self, slot: &InstanceSlot) -> bool {
        slot.is_alive() && self.is_configured(slot) && !self.goal.needs_plugging(&slot.instance)
    }

    /// Whether an instance has the configuration of this generation, and was told of the others that there are.
    fn is_configured(&self, slot: &InstanceSlot) -> bool {
        let told = || slot.peers == PeerDigest::of(&self.peers(slot.instance.ordinal));
        slot.configured == Some(self.goal.generation()) && told()
    }

    /// The other instances that the configuration of the one at `ordinal` tells of; none where the kind does not.
    #[must_use]
    pub fn peers(&self, ordinal: u16) -> Vec<Peer> {
        if self.goal.desired.spec.kind.knows_peers() { self.fleet.peers(ordinal) } else { Vec::new() }
    }

    /// What one living instance needs.
    fn tend(&self, slot: &InstanceSlot, wake: &mut Wake) -> Option<Choice> {
        let ordinal = slot.instance.ordinal;
        let generation = self.goal.generation();
        let step = if !slot.is_alive() {
            return None;
        } else if self.goal.needs_plugging(&slot.instance) {
            // A late effect of a call that was not answered would undo what is plugged now.
            let not_before = slot.plugging.retry.at.max(self.waits.unanswered_until.unwrap_or_default());
            return wake.due(not_before).then_some(Choice::Do(LifecycleStep::Replug { ordinal, generation }));
        } else if !self.is_configured(slot) {
            LifecycleStep::Configure { ordinal, generation, peers: PeerDigest::of(&self.peers(ordinal)) }
        } else {
            return None;
        };
        wake.due(slot.retry.at).then_some(Choice::Do(step))
    }

    /// The next instance to give way to one with the wanted digest.
    fn next_replacement(&self, wake: &mut Wake) -> Option<Choice> {
        let slots = &self.fleet.slots;
        // One that does not serve yet costs nothing.
        let idle = slots.iter().find(|slot| self.is_stale(slot) && !slot.is_alive());
        let rest_serves = slots.len() == usize::from(self.goal.replicas())
            && slots.iter().all(|slot| self.is_stale(slot) || self.serves(slot));
        let next = idle.or_else(|| {
            // One that serves is not ended before its successor may be booted.
            let stale = slots.iter().find(|slot| rest_serves && self.is_stale(slot));
            stale.filter(|_| wake.due(self.boots.bar.until()))
        });
        next.map(|slot| {
            let (ordinal, instance) = (slot.instance.ordinal, &slot.instance);
            // One that leaves probes unanswered may not answer its successor either.
            let hands_over = instance.hands_over && slot.answered() == Some(true);
            if hands_over && self.fleet.predecessor(ordinal).is_none() {
                Choice::Succeed(ordinal)
            } else {
                Choice::Replace(ordinal)
            }
        })
    }

    /// Time between two probes of one instance.
    pub(super) fn interval(&self, config: &Config) -> Duration {
        self.goal.desired.spec.probe_interval.unwrap_or(config.probe_interval)
    }

    pub(super) fn next_probe(&self, ordinal: u16, now: Timestamp, config: &Config) -> Timestamp {
        on_rhythm(self.appliance, ordinal, self.goal.replicas(), self.interval(config), now)
    }

    /// Where it is in its life, from what is known.
    pub(super) fn derive_phase(&self) -> Phase {
        let slots = &self.fleet.slots;
        let alive = slots.iter().filter(|slot| slot.is_alive()).count();
        let booting = matches!(self.state, LifecycleState::Running { step: LifecycleStep::Boot { .. }, .. });
        if self.state == LifecycleState::Gone {
            Phase::Gone
        } else if self.goal.desired.deleting {
            Phase::Deleting
        } else if slots.iter().any(|slot| self.is_replugged(slot)) {
            Phase::Replugging
        } else if self.is_settled() {
            Phase::Configured
        } else if matches!(self.boots.bar, Bar::Cooldown(_)) {
            Phase::Error
        } else if self.troubles.replacing || slots.iter().any(|slot| self.is_stale(slot)) {
            Phase::Restarting
        } else if alive == usize::from(self.goal.replicas()) {
            Phase::Up
        } else if alive > 0 && self.troubles.lost {
            Phase::Degraded
        } else if booting || !slots.is_empty() {
            Phase::Booting
        } else {
            Phase::Down
        }
    }

    /// Whether every instance is there, answers and has the wanted configuration.
    fn is_settled(&self) -> bool {
        let slots = &self.fleet.slots;
        slots.len() == usize::from(self.goal.replicas())
            && slots.iter().all(|slot| self.serves(slot) && !self.is_stale(slot))
    }

    /// Whether an instance is kept and gets other ports.
    fn is_replugged(&self, slot: &InstanceSlot) -> bool {
        slot.is_alive() && !self.is_stale(slot) && self.goal.needs_plugging(&slot.instance)
    }

    /// Changes whenever the status does (but for one chance in 2^64), without the cost of building it.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        (self.reporting.phase, self.goal.generation(), self.boots.in_vain()).hash(&mut hash);
        (&self.troubles.last_error, &self.troubles.last_end).hash(&mut hash);
        for slot in &self.fleet.slots {
            let i = &slot.instance;
            (i.ordinal, i.attempt, i.started_at_unix_ms, i.addresses.service, &i.ports, &i.details).hash(&mut hash);
            (slot.answered(), slot.configured, slot.runs, &slot.conditions).hash(&mut hash);
            slot.management().hash(&mut hash);
            matches!(slot.life, InstanceLife::Alive).hash(&mut hash);
        }
        self.hands.shown().for_each(|shown| shown.hash(&mut hash));
        hash.finish()
    }
}
