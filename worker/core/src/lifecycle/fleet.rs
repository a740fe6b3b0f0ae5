//! The instances of one appliance as far as they are known.
//!
//! At most one instance per ordinal is kept in a slot. Beside it there may be its predecessor, which serves until it does. Everything
//! else that was found is doomed and waits to be ended.
//! Which one is kept follows from what was found alone (the wanted digest first, then the lowest attempt), so that two
//! owners in a row decide alike. What was doomed once stays doomed, also when it is found again.

use std::net::IpAddr;
use std::time::Duration;

use common::appliance::MAX_REPLICAS;
use common::status::{Details, MANAGEMENT_DETAIL};
use common::{ApplianceId, Generation, Timestamp};

use crate::instance::{BootState, Instance, Observation};
use crate::peers::{Peer, PeerDigest};
use common::backoff::Retry;

/// How far an instance has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstanceLife {
    /// Was started then, by this owner or a former one, and has not answered any yet.
    Rising { since: Timestamp, polls: u32 },
    /// Was found running when this owner began, and has not answered it yet. It answered a former owner, as far as its driver
    /// knows, and is given no more patience than if it had answered this one.
    Adopted,
    /// Has answered.
    Alive,
}

/// One instance that is kept.
#[derive(Clone, Debug)]
pub(super) struct InstanceSlot {
    pub(super) instance: Instance,
    pub(super) life: InstanceLife,
    /// What it says about itself, as of its last answer.
    pub(super) conditions: Details,
    /// Generation of the configuration it accepted from this owner.
    pub(super) configured: Option<Generation>,
    /// The other instances that this told of, for kinds that do.
    pub(super) peers: PeerDigest,
    /// Newest generation that it runs: one of an older command is given newer configurations until its turn comes to be
    /// replaced, and runs what it ran.
    pub(super) runs: Option<Generation>,
    /// When it first accepted one.
    pub(super) serves_since: Option<Timestamp>,
    /// Failed probes in a row.
    pub(super) failed_probes: u32,
    /// When it is probed next.
    pub(super) next_probe: Timestamp,
    /// Its driver says that it has ended, and no probe has begun since.
    pub(super) exited: bool,
    /// When it may be configured again after that failed.
    pub(super) retry: Retry,
    /// How plugging its ports has failed.
    pub(super) plugging: Plugging,
}

/// How plugging the ports of one instance has failed since it last succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plugging {
    /// When it may be tried again.
    pub(super) retry: Retry,
    /// Failures in a row that count towards `replug_attempts`.
    pub(super) failed: u32,
    /// They were so many that the instance is to be replaced. Until its turn comes plugging is still tried.
    pub(super) given_up: bool,
}

impl InstanceSlot {
    /// Where it is managed, if that is an address of its own.
    pub(super) fn management(&self) -> Option<IpAddr> {
        let Instance { addresses, has_own_address, .. } = &self.instance;
        addresses.management.filter(|_| *has_own_address).map(|address| address.ip())
    }

    /// What is shown of it: what its driver knows, and what it says about itself. Where it is managed it does not say: operators log in there.
    pub(super) fn details(&self) -> Details {
        let known = match self.management() {
            Some(address) => {
                Details::from_iter([(MANAGEMENT_DETAIL, address.to_string())]).with(&self.instance.details)
            }
            None => self.instance.details.clone(),
        };
        if self.conditions.get(MANAGEMENT_DETAIL).is_none() {
            return known.with(&self.conditions);
        }
        known.with(&self.conditions.iter().filter(|(name, _)| *name != MANAGEMENT_DETAIL).collect())
    }

    /// An instance that was just started, or found. Where its driver cannot tell whether its boot is over, `rising` says so: it
    /// has begun now, then.
    pub(super) fn started(instance: Instance, rising: bool, now: Timestamp, next_probe: Timestamp) -> Self {
        let life = match instance.boot {
            // The clock of the driver may have been that of another boot of the host.
            BootState::UnderWay { since } => InstanceLife::Rising { since: since.min(now), polls: 0 },
            BootState::Unknown if rising => InstanceLife::Rising { since: now, polls: 0 },
            BootState::Unknown | BootState::Over => InstanceLife::Adopted,
        };
        Self::new(instance, life, next_probe)
    }

    fn new(instance: Instance, life: InstanceLife, next_probe: Timestamp) -> Self {
        Self {
            instance,
            life,
            conditions: Details::default(),
            configured: None,
            peers: PeerDigest::default(),
            runs: None,
            serves_since: None,
            failed_probes: 0,
            next_probe,
            exited: false,
            retry: Retry::default(),
            plugging: Plugging::default(),
        }
    }

    /// The same one as its driver describes it now. Drivers know the address it was started with; the one of a
    /// configuration that was accepted since is known here only.
    pub(super) fn see(&mut self, mut instance: Instance) {
        if self.serves_since.is_some() && !instance.has_own_address {
            instance.addresses.service = self.instance.addresses.service;
        }
        self.instance = instance;
    }

    /// When it is due to be probed.
    pub(super) const fn probe_at(&self) -> Timestamp {
        if self.exited { Timestamp::ZERO } else { self.next_probe }
    }

    pub(super) const fn is_alive(&self) -> bool {
        matches!(self.life, InstanceLife::Alive)
    }

    /// Whether its boot is not over yet, so that its end would be a failed boot.
    pub(super) const fn is_rising(&self) -> bool {
        matches!(self.life, InstanceLife::Rising { .. })
    }

    /// Whether its end would not speak against it: it has served for `stable_after`, or did so for a former owner as far
    /// as anybody knows.
    pub(super) fn is_proven(&self, now: Timestamp, stable_after: Duration) -> bool {
        let served = self.serves_since.is_some_and(|since| now.since(since) >= stable_after);
        served || matches!(self.life, InstanceLife::Adopted)
    }

    /// Whether the last probe was answered; `None` before the first.
    pub(super) const fn answered(&self) -> Option<bool> {
        match self.life {
            InstanceLife::Alive => Some(self.failed_probes == 0),
            InstanceLife::Adopted if self.failed_probes > 0 => Some(false),
            InstanceLife::Adopted | InstanceLife::Rising { polls: 0, .. } => None,
            InstanceLife::Rising { .. } => Some(false),
        }
    }
}

/// All instances of one appliance.
#[derive(Clone, Debug, Default)]
pub(super) struct Instances {
    /// By ordinal, one for each at most.
    pub(super) slots: Vec<InstanceSlot>,
    /// Serve until their successors do, which are in `slots`. One without a successor goes back into its slot.
    pub(super) predecessors: Vec<InstanceSlot>,
    /// To be ended.
    pub(super) doomed: Vec<Instance>,
    /// Attempts ever made, by ordinal.
    attempts: Vec<u32>,
    /// Attempts the former owner had begun and not seen answer. Of what is found at the first look and whose driver cannot tell
    /// whether its boot is over, all that is not among them is adopted. `None` after that look.
    handed: Option<Box<[(u16, u32)]>>,
    /// Whether `slots` and `doomed` are all there is. Unknown before the first look, and after every call whose outcome
    /// is not known.
    pub(super) known: bool,
}

/// What a look changed.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Instances that had served and are gone.
    pub(super) lost: Vec<InstanceSlot>,
    /// Ordinals of instances that were still rising and are gone.
    pub(super) failed_boots: Vec<u16>,
}

impl Instances {
    /// Nothing is known but the attempts ever made, and which of them were `rising` when the former owner let go.
    pub(super) fn new(mut attempts: Vec<u32>, rising: impl Iterator<Item = (u16, u32)>) -> Self {
        attempts.truncate(usize::from(MAX_REPLICAS));
        attempts.shrink_to_fit();
        Self { attempts, handed: Some(rising.take(usize::from(MAX_REPLICAS)).collect()), ..Self::default() }
    }

    /// Attempts ever made, by ordinal.
    pub(super) fn attempts(&self) -> &[u32] {
        &self.attempts
    }

    pub(super) fn slot(&self, ordinal: u16) -> Option<&InstanceSlot> {
        self.slots.iter().find(|slot| slot.instance.ordinal == ordinal)
    }

    /// The others beside the one at `ordinal`: those that have answered somebody, so that one that only starts is no reason to yield.
    pub(super) fn peers(&self, ordinal: u16) -> Vec<Peer> {
        let others = self.slots.iter().filter(|slot| slot.instance.ordinal != ordinal && !slot.is_rising());
        let peer = |slot: &InstanceSlot| Peer {
            ordinal: slot.instance.ordinal,
            attempt: slot.instance.attempt,
            started_at_unix_ms: slot.instance.started_at_unix_ms,
            management: slot.instance.addresses.management.map(|address| address.ip()),
        };
        others.map(peer).collect()
    }

    pub(super) fn slot_mut(&mut self, ordinal: u16) -> Option<&mut InstanceSlot> {
        self.slots.iter_mut().find(|slot| slot.instance.ordinal == ordinal)
    }

    /// Notes what a driver says of an instance that has ended.
    pub(super) fn exited(&mut self, ordinal: u16, attempt: u32) {
        if let Some(slot) = self.slot_mut(ordinal).filter(|slot| slot.instance.attempt == attempt) {
            slot.exited = true;
        }
    }

    /// Puts an instance into its slot; one that was there is doomed.
    pub(super) fn keep(&mut self, slot: InstanceSlot) {
        self.condemn(slot.instance.ordinal);
        self.saw_attempt(&slot.instance);
        self.slots.reserve_exact(1);
        self.slots.push(slot);
        self.slots.sort_by_key(|slot| slot.instance.ordinal);
    }

    /// Takes out an instance that is gone.
    pub(super) fn remove(&mut self, ordinal: u16) -> Option<InstanceSlot> {
        let at = self.slots.iter().position(|slot| slot.instance.ordinal == ordinal)?;
        Some(self.slots.remove(at))
    }

    /// Moves the instance at `ordinal` to those that are to be ended.
    pub(super) fn condemn(&mut self, ordinal: u16) {
        if let Some(slot) = self.remove(ordinal) {
            self.doomed.push(slot.instance);
        }
    }

    /// Leaves the slot of an instance to its successor.
    pub(super) fn make_way(&mut self, ordinal: u16) {
        if let Some(slot) = self.remove(ordinal) {
            self.predecessors.push(slot);
        }
    }

    /// The predecessor of the instance at `ordinal`, if that has one.
    pub(super) fn predecessor(&self, ordinal: u16) -> Option<&InstanceSlot> {
        self.predecessors.iter().find(|slot| slot.instance.ordinal == ordinal)
    }

    /// Moves the predecessor at `ordinal` to those that are to be ended.
    pub(super) fn condemn_predecessor(&mut self, ordinal: u16) {
        let gone = self.predecessors.extract_if(.., |slot| slot.instance.ordinal == ordinal);
        self.doomed.extend(gone.map(|slot| slot.instance));
    }

    /// Ends predecessors whose successors have accepted a configuration, and with it taken their service over. Those whose successors
    /// came to nothing get their slots back.
    pub(super) fn settle_successions(&mut self) {
        for predecessor in std::mem::take(&mut self.predecessors) {
            match self.slot(predecessor.instance.ordinal) {
                Some(slot) if slot.serves_since.is_some() => self.doomed.push(predecessor.instance),
                Some(_) => self.predecessors.push(predecessor),
                None => self.keep(predecessor),
            }
        }
    }

    /// Moves every instance at `first` and above to those that are to be ended.
    pub(super) fn condemn_from(&mut self, first: u16) {
        let gone = self.predecessors.extract_if(.., |slot| slot.instance.ordinal >= first);
        self.doomed.extend(gone.map(|slot| slot.instance));
        while let Some(ordinal) = self.slots.last().map(|slot| slot.instance.ordinal).filter(|n| *n >= first) {
            self.condemn(ordinal);
        }
    }

    /// The number of the next attempt at `ordinal`, which is taken from now on.
    pub(super) fn next_attempt(&mut self, ordinal: u16) -> u32 {
        let made = self.attempts_at(ordinal);
        *made = made.saturating_add(1);
        *made
    }

    /// The attempt was not made: its number is free again.
    pub(super) fn untake_attempt(&mut self, ordinal: u16, attempt: u32) {
        let made = self.attempts_at(ordinal);
        if *made == attempt {
            *made = attempt.saturating_sub(1);
        }
    }

    fn saw_attempt(&mut self, instance: &Instance) {
        let made = self.attempts_at(instance.ordinal);
        *made = instance.attempt.max(*made);
    }

    fn attempts_at(&mut self, ordinal: u16) -> &mut u32 {
        let at = usize::from(ordinal);
        if self.attempts.len() <= at {
            self.attempts.reserve_exact(at + 1 - self.attempts.len());
            self.attempts.resize(at + 1, 0);
        }
        &mut self.attempts[at]
    }

    /// The lowest ordinal without an instance that nothing doomed occupies.
    pub(super) fn missing(&self, replicas: u16) -> Option<u16> {
        (0..replicas).find(|n| self.slot(*n).is_none() && self.doomed.iter().all(|doomed| doomed.ordinal != *n))
    }

    /// Takes in everything that runs now.
    pub(super) fn observe(&mut self, found: Observation, digest: &str, replicas: u16, now: Timestamp) -> Findings {
        let Observation { running: mut found, attempts } = found;
        for (ordinal, attempt) in attempts.into_iter().filter(|(ordinal, _)| *ordinal < MAX_REPLICAS) {
            let made = self.attempts_at(ordinal);
            *made = attempt.max(*made);
        }
        // Drivers say what they find; a bound that no real fleet reaches keeps a confused one from filling the memory.
        found.retain(|instance| instance.ordinal < u16::MAX);
        found.truncate(usize::from(MAX_REPLICAS) * 16);
        found.sort_by(|a, b| {
            let key = |i: &Instance| (i.ordinal, i.boot_digest != digest, i.attempt);
            key(a).cmp(&key(b))
        });
        found.dedup_by_key(|instance| (instance.ordinal, instance.attempt));
        let mut findings = Findings::default();
        let doomed_before = std::mem::take(&mut self.doomed);
        let was_doomed = |i: &Instance| doomed_before.iter().any(|d| is_same(d, i));
        let handed = self.handed.take();
        let starts = |i: &Instance| handed.as_ref().is_none_or(|list| list.contains(&(i.ordinal, i.attempt)));
        let mut before = std::mem::take(&mut self.slots);
        // One that is not found any more has ended when its time had come, or is not missed before its successor is.
        let mut predecessors = std::mem::take(&mut self.predecessors);
        self.slots.reserve_exact(usize::from(replicas).min(found.len()));
        for instance in found {
            if instance.ordinal < MAX_REPLICAS {
                self.saw_attempt(&instance);
            }
            let successor = self.slots.last().filter(|slot| slot.instance.ordinal == instance.ordinal);
            let precedes = successor.is_some_and(|slot| slot.instance.boot_digest == digest)
                && (instance.hands_over && instance.boot_digest != digest)
                && self.predecessor(instance.ordinal).is_none();
            if (successor.is_some() && !precedes) || instance.ordinal >= replicas || was_doomed(&instance) {
                self.doomed.push(instance);
                continue;
            }
            let known = [&mut before, &mut predecessors].into_iter().find_map(|slots| take(slots, &instance));
            let slot = match known {
                Some(mut slot) => {
                    slot.see(instance);
                    slot
                }
                None => {
                    let rising = starts(&instance);
                    InstanceSlot::started(instance, rising, now, now)
                }
            };
            if precedes { self.predecessors.push(slot) } else { self.slots.push(slot) }
        }
        for gone in before {
            // One that lost its slot to a better one is doomed, not gone.
            let doomed = |d: &Instance| is_same(d, &gone.instance);
            if self.doomed.iter().any(doomed) {
                continue;
            }
            if gone.is_rising() {
                findings.failed_boots.push(gone.instance.ordinal);
            } else {
                findings.lost.push(gone);
            }
        }
        self.known = true;
        findings
    }
}

fn is_same(a: &Instance, b: &Instance) -> bool {
    (a.ordinal, a.attempt) == (b.ordinal, b.attempt)
}

/// What is known of an instance, taken out of `slots`.
fn take(slots: &mut Vec<InstanceSlot>, instance: &Instance) -> Option<InstanceSlot> {
    let at = slots.iter().position(|slot| is_same(&slot.instance, instance))?;
    Some(slots.remove(at))
}

/// When the instance is probed next in its steady rhythm: the same moments of every interval for the same instance,
/// spread evenly over all of them by the appliance's id, replicas at equal distances.
pub(super) fn on_rhythm(
    appliance: ApplianceId,
    ordinal: u16,
    replicas: u16,
    interval: Duration,
    now: Timestamp,
) -> Timestamp {
    let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
    let share = interval / u64::from(replicas.max(1));
    let offset = (spread(appliance) % interval).wrapping_add(share.wrapping_mul(u64::from(ordinal))) % interval;
    let start = now.as_nanos() - now.as_nanos() % interval;
    let at = Timestamp::from_nanos(start.saturating_add(offset));
    if at > now { at } else { at + Duration::from_nanos(interval) }
}

/// A number that looks random for neighbouring ids (the finaliser of splitmix64), so that ids which were counted up
/// spread as well as random ones.
fn spread(appliance: ApplianceId) -> u64 {
    let id = appliance.uuid().as_u128();
    let mut z = (id >> 64) as u64 ^ (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(ordinal: u16, attempt: u32, digest: &str) -> Instance {
        Instance { ordinal, attempt, boot_digest: digest.to_owned(), ..Instance::default() }
    }

    fn keys(instances: &[Instance]) -> Vec<(u16, u32)> {
        instances.iter().map(|i| (i.ordinal, i.attempt)).collect()
    }

    fn kept(fleet: &Instances) -> Vec<(u16, u32)> {
        fleet.slots.iter().map(|s| (s.instance.ordinal, s.instance.attempt)).collect()
    }

    #[test]
    fn a_look_keeps_one_per_ordinal_and_dooms_the_rest() {
        let mut fleet = Instances::default();
        let found = vec![
            instance(2, 1, "new"),
            instance(0, 3, "new"),
            instance(0, 2, "new"),
            instance(0, 1, "old"),
            instance(1, 4, "old"),
            instance(1, 3, "old"),
        ];
        let findings = fleet.observe(found.into(), "new", 2, Timestamp::ZERO);
        assert!(findings.lost.is_empty() && findings.failed_boots.is_empty(), "{findings:?}");
        assert_eq!(kept(&fleet), [(0, 2), (1, 3)]);
        assert_eq!(keys(&fleet.doomed), [(0, 3), (0, 1), (1, 4), (2, 1)]);
        assert_eq!(fleet.attempts(), [3, 4, 1], "numbers that were seen are never given out again");
        assert_eq!(fleet.missing(2), None);
        assert_eq!(fleet.missing(3), None, "what is doomed at an ordinal has to go first");
    }

    #[test]
    fn what_was_doomed_stays_doomed_and_what_is_gone_is_told_apart() {
        let mut fleet = Instances::default();
        fleet.observe((0..4).map(|n| instance(n, 1, "d")).collect::<Vec<_>>().into(), "d", 4, Timestamp::ZERO);
        fleet.condemn(0);
        fleet.slot_mut(1).expect("it was found").life = InstanceLife::Alive;
        fleet.slot_mut(2).expect("it was found").life = InstanceLife::Rising { since: Timestamp::ZERO, polls: 0 };
        let findings = fleet.observe(vec![instance(0, 1, "d"), instance(3, 1, "d")].into(), "d", 4, Timestamp::ZERO);
        let lost: Vec<_> = findings.lost.iter().map(|slot| slot.instance.ordinal).collect();
        assert_eq!((lost, findings.failed_boots), (vec![1], vec![2]));
        assert_eq!(keys(&fleet.doomed), [(0, 1)]);
        assert_eq!(kept(&fleet), [(3, 1)]);
    }

    #[test]
    fn probes_of_many_appliances_spread_evenly_and_keep_their_rhythm() {
        let interval = Duration::from_secs(60);
        let mut seconds = [0_u32; 60];
        for n in 0..6_000 {
            let id = ApplianceId::from_u128(n);
            let first = on_rhythm(id, 0, 1, interval, Timestamp::from_millis(123_456));
            let wait = first.since(Timestamp::from_millis(123_456));
            assert!(!wait.is_zero() && wait <= interval);
            assert_eq!(on_rhythm(id, 0, 1, interval, first), first + interval);
            seconds[usize::try_from(wait.as_secs() % 60).expect("below 60")] += 1;
        }
        assert!(seconds.iter().all(|n| (60..=140).contains(n)), "{seconds:?}");
    }

    #[test]
    fn replicas_of_one_appliance_are_probed_at_equal_distances() {
        let interval = Duration::from_secs(60);
        let id = ApplianceId::from_u128(5);
        let first = on_rhythm(id, 0, 2, interval, Timestamp::ZERO);
        let second = on_rhythm(id, 1, 2, interval, first);
        assert_eq!(second.since(first), Duration::from_secs(30));
    }
}
