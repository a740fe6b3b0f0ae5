//! Live workers: their lives (worker and incarnation), leases, and whether each is gone.
//!
//! A life counts as gone only when no further heartbeat of it can arrive, *and* either 1.15 times its lease passed since the last
//! one was seen or its process was seen to have ended (docs/protocol.md, Leases and lives, Witnessed deaths). With an external
//! authority (ZooKeeper) the first half is the deletion of its lease node; embedded, the coordinator itself is the authority and closes a lease by no longer
//! answering heartbeats. A worker that shut its gate and said so (`Leave`) is gone at once.
//!
//! One name can have several lives for a while: one is the member, the others only wait for their end. With an external
//! authority the member nodes say who is in the ring and the lease nodes who may act: a member without a lease is a
//! Python service, a lease without a member node belongs to a worker that has to be drained.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use common::mutant::{self, Mutant};
use common::secret::{LifeSeal, LifeSecret};
use common::{Incarnation, Life, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use crate::grants::{Profile, StoredMember};

/// How much longer than its lease a life is waited for: clock rates differ by less than 5 % each way, and the worker's
/// own check and send lie in between (docs/protocol.md, Leases and lives).
const LEASE_WAIT_PERCENT: u32 = 115;

/// Shortest and longest lease a worker may ask for. Below, a scheduling hiccup fences; above, a failover takes minutes.
pub const LEASE_RANGE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(120));

/// Who says that no further heartbeat of a life can arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseAuthority {
    /// The coordinator: heartbeats ride on the session stream.
    #[default]
    Embedded,
    /// The coordination service, by deleting the lease node.
    External,
}

/// How long a life is waited for after its last heartbeat was seen.
#[must_use]
pub fn lease_wait(lease: Duration) -> Duration {
    lease * LEASE_WAIT_PERCENT / 100
}

/// Most lives an embedded leader gives out at once, in all names. A cluster is made for a tenth of it; each costs a row of
/// the store and a place in the ring, and whoever may open a stream could ask for more of them.
pub const MAX_LIVES: usize = 10_000;

#[derive(Clone, Debug)]
struct Lease {
    length: Duration,
    seen: Timestamp,
    /// No further heartbeat can arrive.
    closed: bool,
    profile: Profile,
    /// It shall be given nothing new and gives up what it has.
    draining: bool,
    /// The store knows of it, so that a next leader will wait for its end.
    stored: bool,
    /// Whoever speaks for it has to have the secret that this belongs to. `None` for a worker of a version before secrets.
    seal: Option<LifeSeal>,
    /// It is known that its process has ended, so that nothing of it starts a call any more; until then its death is held back.
    dead: Option<Timestamp>,
}

impl Lease {
    /// When the life cannot act any more, if no further heartbeat arrives.
    fn ends(&self) -> Timestamp {
        let lease = self.seen + lease_wait(self.length);
        self.dead.map_or(lease, |held| lease.min(held))
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

/// A member node of the coordination service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedMember {
    /// The life it belongs to.
    pub incarnation: Incarnation,
    /// What it publishes.
    pub profile: Profile,
}

/// A lease node of the coordination service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedLease {
    /// How long the life may act after a heartbeat.
    pub lease: Duration,
    /// It was written over: no further heartbeat can commit.
    pub evicted: bool,
    /// What the life is sealed with, if its worker knows of seals.
    pub seal: Option<LifeSeal>,
}

/// A member of the ring.
#[derive(Clone, Copy, Debug)]
pub struct RingMember<'a> {
    /// Its name.
    pub worker: &'a WorkerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// What it published.
    pub profile: &'a Profile,
    /// It holds a lease that is not over; a Python service has none.
    pub leased: bool,
    /// It gives up what it has.
    pub draining: bool,
}

impl RingMember<'_> {
    /// Its life.
    #[must_use]
    pub fn life(&self) -> Life {
        Life::new(self.worker.clone(), self.incarnation)
    }
}

/// Lives that are over and of which late events may still arrive; older ones are forgotten.
const ENDED: usize = 4_096;

/// The lives the leader knows of.
#[derive(Clone, Debug)]
pub struct Membership {
    authority: LeaseAuthority,
    lives: BTreeMap<Life, Lease>,
    /// The life that is the ring member under each name. Embedded, the newest of each name.
    current: BTreeMap<WorkerId, Incarnation>,
    /// External: what each member node publishes, with members that hold no lease.
    nodes: BTreeMap<WorkerId, Profile>,
    /// External: lives that are over for this leader though their nodes may be seen again.
    ended: VecDeque<Life>,
    /// External: those whose process has ended while their member nodes stand, which they do until the session is over.
    dead: BTreeSet<Life>,
}

impl Membership {
    /// Membership as the store has it. Every lease is taken to have been renewed `now`: a new leader calls no life gone
    /// before it has watched for as long as the lease lasts.
    #[must_use]
    pub fn restore(authority: LeaseAuthority, now: Timestamp, members: Vec<StoredMember>) -> Self {
        let mut this = Self {
            authority,
            lives: BTreeMap::new(),
            current: BTreeMap::new(),
            nodes: BTreeMap::new(),
            ended: VecDeque::new(),
            dead: BTreeSet::new(),
        };
        for member in members {
            let life = Life::new(member.worker, member.incarnation);
            match authority {
                LeaseAuthority::Embedded => this.join(now, life.worker.clone(), life.incarnation, member.profile),
                // Who is in the ring stands in the member nodes, which have not been read yet.
                LeaseAuthority::External => _ = this.lives.insert(life.clone(), lease(now, member.profile)),
            }
            if let Some(seal) = member.seal {
                this.seal(&life, seal);
            }
            this.set_stored(&life);
        }
        this
    }

    /// Whether the coordinator itself ends leases.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.authority == LeaseAuthority::Embedded
    }

    /// Embedded: adds a life, or renews what is known of it, and makes it the member of its name.
    pub fn join(&mut self, now: Timestamp, worker: WorkerId, incarnation: Incarnation, profile: Profile) {
        self.current.insert(worker.clone(), incarnation);
        self.lives.insert(Life::new(worker, incarnation), lease(now, profile));
    }

    /// External: takes in that every lease node was read, so that whoever has none can send no further heartbeat. Every
    /// wait starts anew: what happened while the connection was down was not seen (docs/protocol.md, Leases and lives).
    pub fn read_leases(&mut self, now: Timestamp, nodes: &BTreeMap<Life, ObservedLease>) {
        for (life, node) in nodes {
            self.beat_seen(now, life, *node);
        }
        for (life, lease) in self.lives.iter_mut().filter(|(_, lease)| !lease.closed) {
            if !mutant::is(Mutant::SeenNotReset) {
                lease.seen = now;
            }
            lease.closed = nodes.get(life).is_none_or(|node| node.evicted);
            if mutant::is(Mutant::NameWithoutSession) && nodes.keys().any(|known| known.worker == life.worker) {
                lease.closed = false;
            }
        }
    }

    /// External: a lease node was read, or its heartbeat seen. Returns whether the life is new.
    pub fn beat_seen(&mut self, now: Timestamp, life: &Life, node: ObservedLease) -> bool {
        let length = node.lease.clamp(LEASE_RANGE.0, LEASE_RANGE.1);
        match self.lives.get_mut(life) {
            Some(lease) if lease.closed => false,
            Some(lease) => {
                lease.seen = now;
                lease.length = length;
                lease.profile.lease = length;
                lease.closed = node.evicted;
                lease.seal = lease.seal.or(node.seal);
                false
            }
            None if node.evicted || self.ended.contains(life) => false,
            None => {
                let published =
                    self.nodes.get(&life.worker).filter(|_| self.current.get(&life.worker) == Some(&life.incarnation));
                let profile = Profile { lease: length, ..published.cloned().unwrap_or_else(nothing) };
                self.lives.insert(life.clone(), Lease { seal: node.seal, ..lease(now, profile) });
                true
            }
        }
    }

    /// External: replaces the member nodes. Returns the names that came and those that went; a name under which another
    /// life published itself did both.
    pub fn set_nodes(&mut self, mut nodes: BTreeMap<WorkerId, ObservedMember>) -> (Vec<WorkerId>, Vec<WorkerId>) {
        if mutant::is(Mutant::NameWithoutSession) {
            for (name, node) in &mut nodes {
                node.incarnation = self.current.get(name).copied().unwrap_or(node.incarnation);
            }
        }
        if mutant::is(Mutant::GoneByMemberNode) {
            let lives = self.current.iter().map(|(name, incarnation)| Life::new(name.clone(), *incarnation));
            let gone: Vec<Life> = lives.filter(|life| !nodes.contains_key(&life.worker)).collect();
            gone.iter().for_each(|life| self.close(Timestamp::ZERO, life, true));
        }
        let same = |name: &WorkerId, life: Incarnation| self.current.get(name) == Some(&life);
        let came = nodes.iter().filter(|(name, node)| !same(name, node.incarnation)).map(|(n, _)| n.clone()).collect();
        let went =
            |(name, life): &(&WorkerId, &Incarnation)| nodes.get(*name).is_none_or(|node| node.incarnation != **life);
        let went = self.current.iter().filter(went).map(|(name, _)| name.clone()).collect();
        self.current = nodes.iter().map(|(name, node)| (name.clone(), node.incarnation)).collect();
        let current = &self.current;
        self.dead.retain(|life| current.get(&life.worker) == Some(&life.incarnation));
        for (name, node) in &nodes {
            if let Some(lease) = self.lives.get_mut(&Life::new(name.clone(), node.incarnation)) {
                lease.profile = Profile { lease: lease.length, ..node.profile.clone() };
            }
        }
        self.nodes = nodes.into_iter().map(|(name, node)| (name, node.profile)).collect();
        (came, went)
    }

    /// Embedded: whether a heartbeat of this life would count now.
    #[must_use]
    pub fn is_standing(&self, now: Timestamp, life: &Life) -> bool {
        self.lives.get(life).is_some_and(|lease| !lease.closed && now < lease.ends())
    }

    /// Whether whoever has this secret, or none, may speak for a life. A life that nothing was sealed with is of a worker
    /// that knows of no secrets, or of one that has not said its own yet.
    #[must_use]
    pub fn is_proven(&self, life: &Life, secret: Option<&LifeSecret>) -> bool {
        let seal = self.lives.get(life).and_then(|lease| lease.seal);
        seal.is_none_or(|seal| secret.is_some_and(|secret| secret.seal() == seal)) || mutant::is(Mutant::ProofNotAsked)
    }

    /// From now on only the owner of the secret behind `seal` speaks for a life. The first seal counts.
    pub fn seal(&mut self, life: &Life, seal: LifeSeal) {
        if let Some(lease) = self.lives.get_mut(life)
            && lease.seal.is_none()
        {
            lease.seal = Some(seal);
            lease.stored = false;
        }
    }

    /// What a life is sealed with.
    #[must_use]
    pub fn seal_of(&self, life: &Life) -> Option<LifeSeal> {
        self.lives.get(life)?.seal
    }

    /// Whether as many lives are known as an embedded leader gives out.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lives.len() >= MAX_LIVES
    }

    /// Embedded: notes a heartbeat.
    pub fn beat(&mut self, now: Timestamp, life: &Life) -> Beat {
        match self.lives.get_mut(life) {
            // Expiry is final even if no step has noticed it yet: what was not called gone in time must not be revived after
            // another beat could already have been refused.
            Some(lease) if !lease.closed && now < lease.ends() => {
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

    /// Takes in that the process of `life` has ended. Answers whether that is news of a life that is known: of another life
    /// of the name it says nothing. It is held back until `held_until`, so that the deaths of workers that were killed together are judged
    /// together by the brake.
    ///
    /// It is not gone by that alone: while the coordination service takes heartbeats of it, one that is on its way could
    /// still be reported, and the next leader has to know of the end ([`Self::close`]).
    pub fn witness(&mut self, life: &Life, held_until: Timestamp) -> bool {
        self.lives.get_mut(life).is_some_and(|lease| lease.dead.replace(lease.dead.unwrap_or(held_until)).is_none())
    }

    /// Whether the process of a life was seen to have ended.
    #[must_use]
    pub fn is_dead(&self, life: &Life) -> bool {
        self.lives.get(life).is_some_and(|lease| lease.dead.is_some())
    }

    /// It is to be given nothing new, and what it has is taken from it.
    pub fn drain(&mut self, life: &Life) {
        if let Some(lease) = self.lives.get_mut(life) {
            lease.draining = true;
        }
    }

    /// The store knows of this life.
    pub fn set_stored(&mut self, life: &Life) {
        if let Some(lease) = self.lives.get_mut(life) {
            lease.stored = true;
        }
    }

    /// Whether the store knows of this life.
    #[must_use]
    pub fn is_stored(&self, life: &Life) -> bool {
        self.lives.get(life).is_some_and(|lease| lease.stored)
    }

    /// Removes and returns the lives that are gone by now, in order, with what they last published.
    pub fn take_gone(&mut self, now: Timestamp) -> Vec<(Life, Profile)> {
        let embedded = self.is_embedded();
        let over = |lease: &Lease| (lease.closed || embedded) && now >= lease.ends();
        let gone: Vec<Life> = self.lives.iter().filter(|(_, l)| over(l)).map(|(life, _)| life.clone()).collect();
        let mut taken = Vec::with_capacity(gone.len());
        for life in gone {
            let Some(lease) = self.lives.remove(&life) else { continue };
            if embedded {
                if self.current.get(&life.worker) == Some(&life.incarnation) {
                    self.current.remove(&life.worker);
                }
            } else {
                if lease.dead.is_some() && self.is_member(&life) {
                    self.dead.insert(life.clone());
                }
                self.ended.push_back(life.clone());
                if self.ended.len() > ENDED {
                    self.ended.pop_front();
                }
            }
            taken.push((life, lease.profile));
        }
        taken
    }

    /// When the next life may be gone.
    #[must_use]
    pub fn next_end(&self) -> Option<Timestamp> {
        self.lives.values().filter(|lease| lease.closed || self.is_embedded()).map(Lease::ends).min()
    }

    /// Starts every wait anew. For a leader that did not run for a while: beats may lie unread in its sockets, and waiting
    /// longer is always safe. Not needed where the end of a life is told in order with its heartbeats.
    pub fn start_waits_anew(&mut self, now: Timestamp) {
        if self.is_embedded() {
            for lease in self.lives.values_mut().filter(|lease| !lease.closed) {
                lease.seen = now;
            }
        }
    }

    /// Whether this life is known and not over.
    #[must_use]
    pub fn is_alive(&self, life: &Life) -> bool {
        self.lives.get(life).is_some_and(|lease| !lease.closed)
    }

    /// Whether this life is known, over or not.
    #[must_use]
    pub fn is_known(&self, life: &Life) -> bool {
        self.lives.contains_key(life)
    }

    /// Whether this life was called gone here not long ago.
    #[must_use]
    pub fn has_ended(&self, life: &Life) -> bool {
        self.ended.contains(life)
    }

    /// Whether this life is the member under its name.
    #[must_use]
    pub fn is_member(&self, life: &Life) -> bool {
        self.current.get(&life.worker) == Some(&life.incarnation)
    }

    /// A life under this name that may still act.
    #[must_use]
    pub fn any_life_of(&self, worker: &WorkerId) -> Option<Incarnation> {
        self.lives.keys().find(|life| life.worker == *worker).map(|life| life.incarnation)
    }

    /// The life that is the member under this name.
    #[must_use]
    pub fn current(&self, worker: &WorkerId) -> Option<Incarnation> {
        self.current.get(worker).copied()
    }

    /// Members of the ring, by name. Of one whose process has ended the node is as good as gone: a plan that counted on it would be
    /// made anew when it goes.
    pub fn members(&self) -> impl Iterator<Item = RingMember<'_>> {
        let stands = |(worker, incarnation): &(&WorkerId, &Incarnation)| {
            self.dead.is_empty() || !self.dead.contains(&Life::new((*worker).clone(), **incarnation))
        };
        self.current.iter().filter(stands).filter_map(|(worker, incarnation)| {
            let lease = self.lives.get(&Life::new(worker.clone(), *incarnation));
            let profile = match self.authority {
                LeaseAuthority::Embedded => &lease?.profile,
                LeaseAuthority::External => self.nodes.get(worker)?,
            };
            Some(RingMember {
                worker,
                incarnation: *incarnation,
                profile,
                leased: lease.is_some_and(|l| !l.closed),
                draining: lease.is_some_and(|l| l.draining),
            })
        })
    }

    /// Profile of a life.
    #[must_use]
    pub fn profile(&self, life: &Life) -> Option<&Profile> {
        self.lives.get(life).map(|lease| &lease.profile)
    }

    /// Whether a life gives up what it has: it said so, or its member node was taken from it.
    #[must_use]
    pub fn is_draining(&self, life: &Life) -> bool {
        self.lives.get(life).is_some_and(|lease| lease.draining)
            || (!self.is_embedded() && self.is_alive(life) && !self.is_member(life))
    }

    /// Embedded: replaces what a living worker published about itself. Returns whether anything changed.
    pub fn publish(&mut self, life: &Life, profile: Profile) -> bool {
        match self.lives.get_mut(life) {
            Some(lease) if lease.profile != profile => {
                lease.length = profile.lease.clamp(LEASE_RANGE.0, LEASE_RANGE.1);
                lease.profile = profile;
                lease.stored = false;
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

    /// Lives that are not over here but whose lease is over by their own clock, because no heartbeat came for as long, and those whose
    /// process has ended.
    #[must_use]
    pub fn overdue(&self, now: Timestamp) -> usize {
        let silent = |lease: &&Lease| !lease.closed && now.since(lease.seen) > lease.length;
        self.lives.values().filter(|lease| lease.dead.is_some() || silent(lease)).count()
    }

    /// Lives that are known, members or not.
    pub fn lives(&self) -> impl DoubleEndedIterator<Item = &Life> {
        self.lives.keys()
    }
}

fn lease(now: Timestamp, profile: Profile) -> Lease {
    let length = profile.lease.clamp(LEASE_RANGE.0, LEASE_RANGE.1);
    Lease { length, seen: now, closed: false, profile, draining: false, stored: false, seal: None, dead: None }
}

/// What is known of a life that published nothing.
fn nothing() -> Profile {
    Profile { weight: 1, ..Profile::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: Duration = Duration::from_secs(2);

    fn profile() -> Profile {
        Profile { weight: 1, host: "h".into(), pid: 1, lease: L, ..Profile::default() }
    }

    fn w1() -> Life {
        Life::new(WorkerId::new("w1").expect("valid"), Incarnation::new(1))
    }

    fn gone(m: &mut Membership, now: Timestamp) -> Vec<Life> {
        m.take_gone(now).into_iter().map(|(life, _)| life).collect()
    }

    fn one(authority: LeaseAuthority) -> Membership {
        let mut m = Membership::restore(authority, Timestamp::ZERO, vec![]);
        m.join(Timestamp::ZERO, w1().worker, w1().incarnation, profile());
        m
    }

    #[test]
    fn an_embedded_lease_ends_fifteen_percent_after_its_length_and_for_ever() {
        let mut m = one(LeaseAuthority::Embedded);
        assert_eq!(m.beat(Timestamp::from_millis(1000), &w1()), Beat::Counts);
        assert_eq!(gone(&mut m, Timestamp::from_millis(3299)), vec![]);
        assert_eq!(m.beat(Timestamp::from_millis(3300), &w1()), Beat::Over, "expiry is final before anybody looked");
        assert_eq!(gone(&mut m, Timestamp::from_millis(3300)), vec![w1()]);
        assert_eq!(m.beat(Timestamp::from_millis(3301), &w1()), Beat::Over);
        assert_eq!(m.current(&w1().worker), None);
    }

    fn node(evicted: bool) -> ObservedLease {
        ObservedLease { lease: L, evicted, seal: None }
    }

    #[test]
    fn an_external_lease_ends_only_when_it_is_closed_and_the_wait_is_over() {
        let mut m = one(LeaseAuthority::External);
        let late = Timestamp::from_millis(60_000);
        assert_eq!(gone(&mut m, late), vec![], "silence alone is no end");
        m.beat_seen(late, &w1(), node(false));
        m.close(late, &w1(), false);
        m.beat_seen(late + L, &w1(), node(false));
        assert_eq!(gone(&mut m, late + Duration::from_millis(2299)), vec![], "a deleted node alone is no end");
        assert_eq!(gone(&mut m, late + Duration::from_millis(2300)), vec![w1()]);
        assert!(!m.beat_seen(late + L * 2, &w1(), node(false)), "late news does not revive it");
        assert!(!m.is_known(&w1()));
    }

    #[test]
    fn a_life_whose_process_has_ended_is_gone_once_no_heartbeat_of_it_can_arrive() {
        let mut m = one(LeaseAuthority::External);
        let now = Timestamp::from_millis(60_000);
        m.beat_seen(now, &w1(), node(false));
        let successor = Life::new(w1().worker, Incarnation::new(2));
        let gathered = now + L / 2;
        assert!(!m.witness(&successor, now), "of a life that is not known");
        assert!(m.witness(&w1(), gathered) && !m.witness(&w1(), gathered + L), "it is news once");
        assert_eq!((m.overdue(now), gone(&mut m, gathered)), (1, vec![]), "a heartbeat may still be told");
        m.beat_seen(now, &w1(), node(true));
        assert_eq!((m.next_end(), gone(&mut m, now)), (Some(gathered), vec![]), "others may have died with it");
        assert_eq!(gone(&mut m, gathered), vec![w1()]);
        let mut m = one(LeaseAuthority::Embedded);
        assert!(m.witness(&w1(), Timestamp::ZERO + L / 2));
        m.close(Timestamp::ZERO, &w1(), false);
        assert_eq!(gone(&mut m, Timestamp::ZERO + L / 2), vec![w1()]);
    }

    #[test]
    fn an_absent_or_evicted_lease_node_closes_and_the_wait_starts_at_the_read() {
        let w2 = Life::new(WorkerId::new("w2").expect("valid"), Incarnation::new(2));
        let mut m = one(LeaseAuthority::External);
        m.beat_seen(Timestamp::ZERO, &w2, node(false));
        let read = Timestamp::from_millis(60_000);
        m.read_leases(read, &BTreeMap::from([(w2.clone(), node(true))]));
        assert_eq!(gone(&mut m, read + Duration::from_millis(2299)), vec![]);
        assert_eq!(gone(&mut m, read + Duration::from_millis(2300)), vec![w1(), w2]);
    }

    #[test]
    fn another_life_under_a_name_came_and_went() {
        let mut m = one(LeaseAuthority::External);
        let member = |life| {
            BTreeMap::from([(w1().worker, ObservedMember { incarnation: Incarnation::new(life), profile: profile() })])
        };
        m.set_nodes(member(1));
        assert_eq!(m.set_nodes(member(1)), (vec![], vec![]));
        assert!(!m.is_draining(&w1()));
        assert_eq!(m.set_nodes(member(2)), (vec![w1().worker], vec![w1().worker]));
        assert!(m.is_draining(&w1()), "its node is another life's");
        assert!(m.is_alive(&w1()), "which does not end its lease");
    }

    #[test]
    fn a_worker_that_shut_its_gate_is_gone_at_once() {
        let mut m = one(LeaseAuthority::Embedded);
        m.close(Timestamp::from_millis(10), &w1(), true);
        assert_eq!(gone(&mut m, Timestamp::from_millis(10)), vec![w1()]);
    }

    #[test]
    fn a_restored_member_is_waited_for_from_the_start_of_the_leader() {
        let stored = StoredMember {
            worker: w1().worker,
            incarnation: w1().incarnation,
            profile: profile(),
            departed: false,
            seal: None,
        };
        let start = Timestamp::from_millis(500_000);
        let mut m = Membership::restore(LeaseAuthority::Embedded, start, vec![stored]);
        assert_eq!(gone(&mut m, start + Duration::from_millis(2299)), vec![]);
        assert_eq!(gone(&mut m, start + Duration::from_millis(2300)), vec![w1()]);
    }

    #[test]
    fn leaving_the_ring_does_not_end_the_lease() {
        let mut m = one(LeaseAuthority::External);
        m.set_nodes(BTreeMap::new());
        assert_eq!(m.members().count(), 0);
        assert!(m.is_alive(&w1()));
    }
}
