//! Live workers: their lives (worker and incarnation), leases, and whether each is gone.
//!
//! A life counts as gone only when no further heartbeat of it can arrive *and* 1.15 times its lease passed since the last
//! one was seen (ownership.md section 2). With an external authority (ZooKeeper) the first half is the deletion of its
//! lease node; embedded, the coordinator itself is the authority and closes a lease by no longer answering heartbeats.
//! A worker that shut its gate and said so (`Leave`) is gone at once.
//!
//! One name can have several lives for a while: the newest is the member, the older ones only wait for their end.

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Incarnation, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use crate::grants::{Profile, StoredMember};

/// How much longer than its lease a life is waited for: clock rates differ by less than 5 % each way, and the worker's
/// own check and send lie in between (ownership.md section 2).
const LEASE_WAIT_PERCENT: u32 = 115;

/// Shortest and longest lease a worker may ask for. Below, a scheduling hiccup fences; above, a failover takes minutes.
pub const LEASE_RANGE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(120));

/// Who says that no further heartbeat of a life can arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The coordinator: heartbeats ride on the session stream.
    #[default]
    Embedded,
    /// The coordination service, by deleting the lease node.
    External,
}

/// One life of one worker.
pub type Life = (WorkerId, Incarnation);

/// How long a life is waited for after its last heartbeat was seen.
#[must_use]
pub fn lease_wait(lease: Duration) -> Duration {
    lease * LEASE_WAIT_PERCENT / 100
}

#[derive(Clone, Debug)]
struct Lease {
    length: Duration,
    seen: Timestamp,
    /// No further heartbeat can arrive.
    closed: bool,
    profile: Profile,
    /// It shall be given nothing new and gives up what it has.
    draining: bool,
}

impl Lease {
    fn ends(&self) -> Timestamp {
        self.seen + lease_wait(self.length)
    }
}

/// What became of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// It counts and may be answered.
    Counts,
    /// The life's lease is over, or was never known: it must not be answered.
    Over,
}

/// The lives the leader knows of.
#[derive(Clone, Debug)]
pub struct Membership {
    authority: Authority,
    lives: BTreeMap<Life, Lease>,
    /// The life that is the ring member under each name.
    current: BTreeMap<WorkerId, Incarnation>,
}

impl Membership {
    /// Membership as the store has it. Every lease is taken to have been renewed `now`: a new leader calls nobody gone
    /// before it has watched for as long as the lease lasts.
    #[must_use]
    pub fn restore(authority: Authority, now: Timestamp, members: Vec<StoredMember>) -> Self {
        let mut this = Self { authority, lives: BTreeMap::new(), current: BTreeMap::new() };
        for member in members {
            this.join(now, member.worker, member.incarnation, member.profile);
        }
        this
    }

    /// Adds a life, or renews what is known of it, and makes it the member of its name.
    pub fn join(&mut self, now: Timestamp, worker: WorkerId, incarnation: Incarnation, profile: Profile) {
        let length = profile.lease.clamp(LEASE_RANGE.0, LEASE_RANGE.1);
        self.current.insert(worker.clone(), incarnation);
        self.lives.insert((worker, incarnation), Lease { length, seen: now, closed: false, profile, draining: false });
    }

    /// Notes a heartbeat.
    pub fn beat(&mut self, now: Timestamp, life: &Life) -> Beat {
        match self.lives.get_mut(life) {
            // Expiry is final even when nobody has looked yet: what was not called gone in time must not be revived after
            // another beat could already have been refused.
            Some(lease) if !lease.closed && (self.authority == Authority::External || now < lease.ends()) => {
                lease.seen = now;
                Beat::Counts
            }
            _ => Beat::Over,
        }
    }

    /// Notes that no further heartbeat of `life` can arrive. With `shut` the worker itself said that its gate is shut for
    /// good, so there is nothing to wait for.
    pub fn close(&mut self, now: Timestamp, life: &Life, shut: bool) {
        if let Some(lease) = self.lives.get_mut(life) {
            lease.closed = true;
            if shut {
                lease.length = Duration::ZERO;
                lease.seen = now;
            }
        }
    }

    /// Takes a life out of the ring (its member node went); what it holds stays its own until its lease ends.
    pub fn leave_ring(&mut self, life: &Life) {
        if self.current.get(&life.0) == Some(&life.1) {
            self.current.remove(&life.0);
        }
    }

    /// Removes and returns the lives that are gone by now, in order.
    pub fn take_gone(&mut self, now: Timestamp) -> Vec<Life> {
        let authority = self.authority;
        let gone: Vec<Life> = self
            .lives
            .iter()
            .filter(|(_, lease)| (lease.closed || authority == Authority::Embedded) && now >= lease.ends())
            .map(|(life, _)| life.clone())
            .collect();
        for life in &gone {
            self.lives.remove(life);
            self.leave_ring(life);
        }
        gone
    }

    /// When the next life may be gone.
    #[must_use]
    pub fn next_end(&self) -> Option<Timestamp> {
        self.lives.values().filter(|lease| lease.closed || self.authority == Authority::Embedded).map(Lease::ends).min()
    }

    /// Starts every wait anew. For a leader that did not run for a while: beats may lie unread in its sockets, and waiting
    /// longer is always safe.
    pub fn start_waits_anew(&mut self, now: Timestamp) {
        for lease in self.lives.values_mut().filter(|lease| !lease.closed) {
            lease.seen = now;
        }
    }

    /// Whether this life is known and not over.
    #[must_use]
    pub fn is_alive(&self, life: &Life) -> bool {
        self.lives.get(life).is_some_and(|lease| !lease.closed)
    }

    /// Whether anybody under this name may still act.
    #[must_use]
    pub fn any_life_of(&self, worker: &WorkerId) -> Option<Incarnation> {
        self.lives.keys().find(|(w, _)| w == worker).map(|(_, i)| *i)
    }

    /// The life that is the member under this name.
    #[must_use]
    pub fn current(&self, worker: &WorkerId) -> Option<Incarnation> {
        self.current.get(worker).copied()
    }

    /// Members of the ring, by name.
    pub fn members(&self) -> impl Iterator<Item = (&WorkerId, Incarnation, &Profile, bool)> {
        self.current.iter().filter_map(|(worker, incarnation)| {
            let lease = self.lives.get(&(worker.clone(), *incarnation))?;
            Some((worker, *incarnation, &lease.profile, lease.draining))
        })
    }

    /// Profile of a life.
    #[must_use]
    pub fn profile(&self, life: &Life) -> Option<&Profile> {
        self.lives.get(life).map(|lease| &lease.profile)
    }

    /// Replaces what a living worker published about itself. Returns whether anything changed.
    pub fn publish(&mut self, life: &Life, profile: Profile) -> bool {
        match self.lives.get_mut(life) {
            Some(lease) if lease.profile != profile => {
                lease.length = profile.lease.clamp(LEASE_RANGE.0, LEASE_RANGE.1);
                lease.profile = profile;
                true
            }
            _ => false,
        }
    }

    /// Time until the lease of `life` is over for the leader, if nothing is heard; `None` when it is not known.
    #[must_use]
    pub fn remaining(&self, now: Timestamp, life: &Life) -> Option<Duration> {
        self.lives.get(life).map(|lease| lease.ends().since(now))
    }

    /// How long ago the last heartbeat was seen, and the length of the lease.
    #[must_use]
    pub fn last_beat(&self, now: Timestamp, life: &Life) -> Option<(Duration, Duration)> {
        self.lives.get(life).map(|lease| (now.since(lease.seen), lease.length))
    }

    /// Lives that are known, members or not.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        self.lives.keys()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const L: Duration = Duration::from_secs(2);

    fn profile() -> Profile {
        Profile {
            weight: 1,
            zone: String::new(),
            host: "h".into(),
            drivers: BTreeSet::new(),
            version: String::new(),
            pid: 1,
            lease: L,
        }
    }

    fn w1() -> Life {
        (WorkerId::new("w1").expect("valid"), Incarnation::new(1))
    }

    fn one(authority: Authority) -> Membership {
        let mut m = Membership::restore(authority, Timestamp::ZERO, vec![]);
        m.join(Timestamp::ZERO, w1().0, w1().1, profile());
        m
    }

    #[test]
    fn an_embedded_lease_ends_fifteen_percent_after_its_length_and_for_ever() {
        let mut m = one(Authority::Embedded);
        assert_eq!(m.beat(Timestamp::from_millis(1000), &w1()), Beat::Counts);
        assert_eq!(m.take_gone(Timestamp::from_millis(3299)), vec![]);
        assert_eq!(m.beat(Timestamp::from_millis(3300), &w1()), Beat::Over, "expiry is final before anybody looked");
        assert_eq!(m.take_gone(Timestamp::from_millis(3300)), vec![w1()]);
        assert_eq!(m.beat(Timestamp::from_millis(3301), &w1()), Beat::Over);
        assert_eq!(m.current(&w1().0), None);
    }

    #[test]
    fn an_external_lease_ends_only_when_it_is_closed_and_the_wait_is_over() {
        let mut m = one(Authority::External);
        let late = Timestamp::from_millis(60_000);
        assert_eq!(m.take_gone(late), vec![], "silence alone is no end");
        assert_eq!(m.beat(late, &w1()), Beat::Counts);
        m.close(late, &w1(), false);
        assert_eq!(m.beat(late, &w1()), Beat::Over);
        assert_eq!(m.take_gone(late + Duration::from_millis(2299)), vec![], "a deleted node alone is no end");
        assert_eq!(m.take_gone(late + Duration::from_millis(2300)), vec![w1()]);
    }

    #[test]
    fn a_worker_that_shut_its_gate_is_gone_at_once() {
        let mut m = one(Authority::Embedded);
        m.close(Timestamp::from_millis(10), &w1(), true);
        assert_eq!(m.take_gone(Timestamp::from_millis(10)), vec![w1()]);
    }

    #[test]
    fn a_restored_member_is_waited_for_from_the_start_of_the_leader() {
        let stored = StoredMember { worker: w1().0, incarnation: w1().1, profile: profile(), departed: false };
        let start = Timestamp::from_millis(500_000);
        let mut m = Membership::restore(Authority::Embedded, start, vec![stored]);
        assert_eq!(m.take_gone(start + Duration::from_millis(2299)), vec![]);
        assert_eq!(m.take_gone(start + Duration::from_millis(2300)), vec![w1()]);
    }

    #[test]
    fn leaving_the_ring_does_not_end_the_lease() {
        let mut m = one(Authority::External);
        m.leave_ring(&w1());
        assert_eq!(m.members().count(), 0);
        assert!(m.is_alive(&w1()));
    }
}
