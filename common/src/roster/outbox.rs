//! News that the leader has not taken yet.
//!
//! What is newer than something still waiting takes its place where nothing is lost by it: a heartbeat that of the same
//! life, a list of members the former list, a full read everything but ends of lives. Together with an end goes the last
//! heartbeat before it, told by itself or by a full read: the leader counts from that until the worker has stopped. So what
//! waits grows with the number of lives, not with time.
//!
//! Before the first full read is taken, ends are dropped as well: to a leader that has heard nothing else, the next full
//! read tells them better.

use std::collections::{BTreeMap, HashMap};

use super::{LeaseNode, MemberNode, RosterEvent};
use crate::{Incarnation, Timestamp, WorkerId};

/// News that may wait, before it is better to read everything anew. Only ends of lives can come to so many.
const MOST: usize = 100_000;

/// News in the order in which it is told.
#[derive(Clone, Debug, Default)]
pub(super) struct RosterOutbox {
    waiting: BTreeMap<u64, (Timestamp, RosterEvent)>,
    next: u64,
    /// Where the last heartbeat of each life waits.
    beats: HashMap<(WorkerId, Incarnation), u64>,
    /// Where the list of members waits.
    members: Option<u64>,
    /// A full read was taken.
    begun: bool,
}

impl RosterOutbox {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether so much waits that beginning anew is cheaper.
    pub(super) fn is_swollen(&self) -> bool {
        self.waiting.len() > MOST
    }

    /// Takes the oldest.
    pub(super) fn pop(&mut self) -> Option<(Timestamp, RosterEvent)> {
        let (at, (moment, news)) = self.waiting.pop_first()?;
        match &news {
            RosterEvent::Beat(node) => _ = self.beats.remove(&(node.worker.clone(), node.incarnation)),
            RosterEvent::Members(_) => self.members = self.members.filter(|place| *place != at),
            RosterEvent::Read { .. } => self.begun = true,
            RosterEvent::Ended(..) => {}
        }
        Some((moment, news))
    }

    /// A heartbeat, or a lease node that is new.
    pub(super) fn beat(&mut self, now: Timestamp, node: LeaseNode) {
        let life = (node.worker.clone(), node.incarnation);
        let place = self.push(now, RosterEvent::Beat(node));
        if let Some(former) = self.beats.insert(life, place) {
            self.waiting.remove(&former);
        }
    }

    /// All members.
    pub(super) fn members(&mut self, now: Timestamp, members: Vec<MemberNode>) {
        let place = self.push(now, RosterEvent::Members(members));
        if let Some(former) = self.members.replace(place) {
            self.waiting.remove(&former);
        }
    }

    /// The end of a life.
    pub(super) fn ended(&mut self, now: Timestamp, worker: WorkerId, life: Incarnation) {
        self.push(now, RosterEvent::Ended(worker, life));
    }

    /// Everything, as it was just read.
    pub(super) fn read(&mut self, now: Timestamp, members: Vec<MemberNode>, leases: Vec<LeaseNode>) {
        self.silence();
        self.push(now, RosterEvent::Read { members, leases });
    }

    /// Drops what the next full read will tell anew: all but ends of lives, each with the last heartbeat before it. All
    /// when so much waits that a read is cheaper: it tells ends too, later than they were.
    pub(super) fn silence(&mut self) {
        let all = !self.begun || self.is_swollen();
        let former = std::mem::take(&mut self.waiting);
        self.beats.clear();
        self.members = None;
        if all {
            return;
        }
        let mut last = HashMap::new();
        for (now, news) in former.into_values() {
            match news {
                RosterEvent::Beat(node) => _ = last.insert((node.worker.clone(), node.incarnation), (now, node)),
                // To the leader, a life that was read has sent a heartbeat as late as that. One that was evicted by then
                // has no end to come.
                RosterEvent::Read { leases, .. } => {
                    let lives = leases.into_iter().filter(|node| !node.evicted);
                    last.extend(lives.map(|node| ((node.worker.clone(), node.incarnation), (now, node))));
                }
                RosterEvent::Ended(worker, life) => {
                    if let Some((at, node)) = last.remove(&(worker.clone(), life)) {
                        self.beat(at, node);
                    }
                    self.ended(now, worker, life);
                }
                RosterEvent::Members(_) => {}
            }
        }
    }

    fn push(&mut self, now: Timestamp, news: RosterEvent) -> u64 {
        let place = self.next;
        self.next += 1;
        self.waiting.insert(place, (now, news));
        place
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn node(life: u128) -> LeaseNode {
        LeaseNode {
            worker: WorkerId::new("w").expect("valid"),
            incarnation: Incarnation::new(life),
            lease: Duration::from_secs(1),
            evicted: false,
            seal: None,
        }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn drain(outbox: &mut RosterOutbox) -> Vec<(Timestamp, RosterEvent)> {
        std::iter::from_fn(|| outbox.pop()).collect()
    }

    #[test]
    fn the_last_heartbeat_of_each_life_is_told_and_every_end() {
        let mut outbox = RosterOutbox::default();
        let worker = node(1).worker;
        outbox.beat(at(1), node(1));
        outbox.beat(at(2), node(2));
        outbox.beat(at(3), node(1));
        outbox.ended(at(4), worker.clone(), Incarnation::new(1));
        outbox.beat(at(5), node(2));
        let told = drain(&mut outbox);
        let expected = [
            (at(3), RosterEvent::Beat(node(1))),
            (at(4), RosterEvent::Ended(worker, Incarnation::new(1))),
            (at(5), RosterEvent::Beat(node(2))),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_heartbeat_after_one_that_was_taken_is_told_as_well() {
        let mut outbox = RosterOutbox::default();
        outbox.beat(at(1), node(1));
        assert_eq!(outbox.pop(), Some((at(1), RosterEvent::Beat(node(1)))));
        outbox.beat(at(2), node(1));
        assert_eq!(drain(&mut outbox), [(at(2), RosterEvent::Beat(node(1)))]);
    }

    fn read(leases: Vec<LeaseNode>) -> RosterEvent {
        RosterEvent::Read { members: Vec::new(), leases }
    }

    /// One whose first full read was taken.
    fn begun() -> RosterOutbox {
        let mut outbox = RosterOutbox::default();
        outbox.read(at(0), Vec::new(), Vec::new());
        assert_eq!(drain(&mut outbox), [(at(0), read(Vec::new()))]);
        outbox
    }

    #[test]
    fn a_full_read_takes_the_place_of_all_but_ends_and_the_heartbeats_before_them() {
        let mut outbox = begun();
        let worker = node(1).worker;
        outbox.members(at(1), Vec::new());
        outbox.beat(at(2), node(1));
        outbox.beat(at(3), node(9));
        outbox.beat(at(4), node(9));
        outbox.ended(at(5), worker.clone(), Incarnation::new(9));
        outbox.ended(at(6), worker.clone(), Incarnation::new(8));
        outbox.read(at(7), Vec::new(), vec![node(1)]);
        outbox.members(at(8), Vec::new());
        outbox.members(at(9), Vec::new());
        let expected = [
            (at(4), RosterEvent::Beat(node(9))),
            (at(5), RosterEvent::Ended(worker.clone(), Incarnation::new(9))),
            (at(6), RosterEvent::Ended(worker, Incarnation::new(8))),
            (at(7), read(vec![node(1)])),
            (at(9), RosterEvent::Members(Vec::new())),
        ];
        assert_eq!(drain(&mut outbox), expected);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_broken_connection_leaves_a_life_that_ended_its_last_heartbeat() {
        let mut outbox = begun();
        let worker = node(1).worker;
        outbox.read(at(1), Vec::new(), vec![node(1), node(2), LeaseNode { evicted: true, ..node(3) }]);
        outbox.beat(at(2), node(2));
        for life in 1..4 {
            outbox.ended(at(2 + life), worker.clone(), Incarnation::new(life.into()));
        }
        // A second break changes nothing more.
        outbox.silence();
        outbox.silence();
        let expected = [
            // As late as it was read: what it sent during an earlier break was not seen.
            (at(1), RosterEvent::Beat(node(1))),
            (at(3), RosterEvent::Ended(worker.clone(), Incarnation::new(1))),
            (at(2), RosterEvent::Beat(node(2))),
            (at(4), RosterEvent::Ended(worker.clone(), Incarnation::new(2))),
            (at(5), RosterEvent::Ended(worker, Incarnation::new(3))),
        ];
        assert_eq!(drain(&mut outbox), expected);
    }

    #[test]
    fn a_leader_that_took_no_full_read_hears_nothing_before_it() {
        let mut outbox = RosterOutbox::default();
        outbox.read(at(1), Vec::new(), vec![node(1)]);
        outbox.beat(at(2), node(1));
        outbox.ended(at(3), node(1).worker, Incarnation::new(1));
        outbox.read(at(4), Vec::new(), vec![node(2)]);
        assert_eq!(drain(&mut outbox), [(at(4), read(vec![node(2)]))]);
    }
}
