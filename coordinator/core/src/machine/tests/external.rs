//! Scenarios with lives that are taken from a coordination service, and of brake, grace, draining and eviction.

use super::super::*;
use super::*;
use crate::membership::{LeaseAuthority, ObservedLease, ObservedMember};
use crate::rebalance::RebalanceEvent;
use common::driver::DriverOffers;
use common::mode::{ModeRule, ModeScope};
use common::session::{Ack, Hello, Release, ToCoordinator};
use common::{ApplianceId, Edition, Incarnation, ModeId, StreamNumber};
use std::collections::{BTreeMap, BTreeSet};

/// A cluster whose leader reads nodes; the test writes them.
struct FakeService {
    w: World,
    nodes: BTreeMap<WorkerId, ObservedMember>,
    next_life: u128,
}

impl FakeService {
    fn new(config: Config, restored: Restored) -> Self {
        Self::in_term(config, Term::new(1), restored)
    }

    fn in_term(config: Config, term: Term, restored: Restored) -> Self {
        let config = Config { authority: LeaseAuthority::External, ..config };
        Self { w: World::with(config, term, restored), nodes: BTreeMap::new(), next_life: 1 }
    }

    fn read(&mut self) {
        let leases = self.leases();
        self.w.step(Event::Read { members: self.nodes.clone(), leases });
        self.w.step(Event::Tick);
    }

    fn leases(&self) -> BTreeMap<Life, ObservedLease> {
        let lease = ObservedLease { lease: L, evicted: false, seal: None };
        self.w.puppets.iter().filter_map(|(name, p)| Some((Life::new(name.clone(), p.incarnation?), lease))).collect()
    }

    /// A worker makes its nodes; the leader has not read them yet.
    fn enrol(&mut self, name: &str) -> Life {
        let incarnation = Incarnation::new(self.next_life);
        self.next_life += 1;
        self.nodes.insert(worker(name), ObservedMember { incarnation, profile: profile() });
        let puppet = Puppet { incarnation: Some(incarnation), ..Puppet::default() };
        self.w.puppets.insert(worker(name), puppet);
        Life::new(worker(name), incarnation)
    }

    fn tell_nodes(&mut self, life: &Life) {
        self.w.step(Event::Members(self.nodes.clone()));
        self.w.step(Event::Observed(life.clone(), ObservedLease { lease: L, evicted: false, seal: None }));
    }

    fn join(&mut self, name: &str) -> Life {
        let life = self.enrol(name);
        self.tell_nodes(&life);
        self.w.connect(name);
        life
    }

    /// The process dies; its session expires when the service says so.
    fn kill(&mut self, name: &str) -> Life {
        let incarnation = self.w.puppets[&worker(name)].incarnation.expect("enrolled");
        self.w.kill(name);
        Life::new(worker(name), incarnation)
    }

    /// The service deletes the nodes of a life.
    fn expire(&mut self, life: &Life) {
        self.nodes.remove(&life.worker);
        self.w.step(Event::Members(self.nodes.clone()));
        self.w.step(Event::Over(life.clone()));
        self.w.step(Event::Tick);
    }

    fn all_owned(&self, n: u128) -> bool {
        (1..=n).all(|i| self.w.holder(i).is_some())
    }
}

fn cluster(config: Config, names: &[&str], appliances: u128) -> FakeService {
    let mut s = FakeService::new(config, Restored::default());
    s.read();
    for name in names {
        s.join(name);
    }
    s.w.pass(Duration::from_secs(1));
    s.w.create(1..=appliances);
    s.w.pass(Duration::from_millis(200));
    assert!(s.all_owned(appliances));
    s
}

fn grace(ms: u64) -> Config {
    Config { departure_grace: Duration::from_millis(ms), ..Config::default() }
}

fn restored_from(w: &World, departed: &[(&str, Incarnation)]) -> Restored {
    let mut restored = Restored::default();
    for (_, entry) in w.machine.table().iter() {
        let stored = StoredGrant { granted: entry.state.grant().cloned(), ..StoredGrant::default() };
        restored.appliances.push((seed(u128::from_be_bytes(*entry.id.as_bytes())), stored));
    }
    for life in w.machine.membership().lives() {
        let Life { worker, incarnation } = life.clone();
        restored.members.push(StoredMember { worker, incarnation, profile: profile(), departed: false, seal: None });
    }
    for (name, incarnation) in departed {
        let (worker, incarnation) = (worker(name), *incarnation);
        restored.members.push(StoredMember { worker, incarnation, profile: profile(), departed: true, seal: None });
    }
    restored
}

#[test]
fn a_hello_that_is_faster_than_the_news_of_its_nodes_waits_for_it() {
    let mut s = FakeService::new(Config::default(), Restored::default());
    s.read();
    let life = s.enrol("w1");
    let conn = s.w.connect("w1");
    assert_eq!(s.w.closed, vec![]);
    assert!(!s.w.sent.iter().any(|(c, _)| *c == conn), "welcomed before its node was read");
    s.tell_nodes(&life);
    assert!(s.w.sent.iter().any(|(c, d)| *c == conn && matches!(d, ToWorker::Welcome(_))));
    let stranger = s.enrol("w2");
    let conn = s.w.connect("w2");
    s.w.puppets.remove(&stranger.worker);
    s.w.pass(Duration::from_secs(6));
    assert_eq!(s.w.closed, vec![(conn, Refusal::UnknownLife)], "not for ever");
}

#[test]
fn a_hello_without_a_life_is_refused_and_one_of_an_ended_life_too() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 4);
    s.w.puppets.insert(worker("w9"), Puppet::default());
    let conn = s.w.connect("w9");
    assert_eq!(s.w.closed.last(), Some(&(conn, Refusal::NoLife)));
    s.w.puppets.remove(&worker("w9"));
    let puppet = s.w.puppets[&worker("w1")].clone();
    let life = s.kill("w1");
    s.expire(&life);
    s.w.pass(Duration::from_secs(3));
    s.w.puppets.insert(worker("w1"), puppet);
    let conn = s.w.connect("w1");
    assert_eq!(s.w.closed.last(), Some(&(conn, Refusal::IncarnationOver)));
}

#[test]
fn nothing_is_placed_before_everything_was_read() {
    let mut s = FakeService::new(Config::default(), Restored::default());
    let life = s.enrol("w1");
    s.w.connect("w1");
    s.w.create([1]);
    s.w.pass(Duration::from_secs(4));
    assert_eq!(s.w.holder(1), None);
    s.read();
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.holder(1), Some("w1"), "{life:?}");
}

#[test]
fn a_silent_worker_with_a_lease_node_keeps_what_it_holds() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    s.kill("w1");
    s.w.pass(Duration::from_secs(40));
    assert_eq!(s.w.loads(), [5], "a broken stream and silence are no end");
}

#[test]
fn a_deleted_lease_node_ends_a_life_once_the_wait_is_over() {
    let mut s = cluster(Config::default(), &["w1", "w2", "w3"], 12);
    let life = s.kill("w1");
    s.expire(&life);
    s.w.pass(Duration::from_millis(2_100));
    assert_eq!(s.w.loads(), [4, 4], "its last heartbeat may be that young");
    s.w.pass(Duration::from_millis(300));
    assert_eq!(s.w.loads(), [6, 6]);
    assert!(s.w.stored.iter().any(|c| c.remove_members.contains(&life) || c.put_members.iter().any(|m| m.departed)));
}

#[test]
fn a_life_whose_heartbeats_are_long_past_is_over_with_its_node() {
    let mut s = cluster(Config::default(), &["w1", "w2", "w3"], 12);
    let life = s.kill("w1");
    s.w.pass(Duration::from_secs(6));
    s.expire(&life);
    assert_eq!(s.w.loads(), [6, 6], "in the very step that told of it");
}

#[test]
fn a_worker_without_member_node_is_drained_and_sent_home() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    s.nodes.remove(&worker("w1"));
    s.w.step(Event::Members(s.nodes.clone()));
    let conn = s.w.puppets[&worker("w1")].conn;
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.loads(), [0, 10]);
    assert_eq!(s.w.closed, vec![], "it may still come to be a member");
    s.w.pass(Duration::from_secs(2));
    assert_eq!(s.w.closed, vec![(conn, Refusal::NotMember)]);
    assert_eq!(s.w.violations, Vec::<String>::new());
}

#[test]
fn an_unreachable_worker_is_evicted_once_a_move_waits_on_it() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    let life = s.kill("w1");
    let beating = Puppet { incarnation: Some(life.incarnation), conn: 999, ..Puppet::default() };
    s.w.puppets.insert(worker("w1"), beating);
    s.w.pass(Duration::from_secs(70));
    assert_eq!(s.w.evicted, vec![], "it does no harm");
    s.nodes.remove(&worker("w1"));
    s.w.step(Event::Members(s.nodes.clone()));
    s.w.pass(Duration::from_millis(300));
    assert_eq!(s.w.evicted, vec![life.clone()], "it is to be drained");
    s.w.puppets.remove(&worker("w1"));
    s.w.step(Event::Over(life));
    s.w.pass(Duration::from_secs(3));
    assert_eq!(s.w.loads(), [10]);
}

#[test]
fn a_holder_that_cannot_be_reached_is_waited_for_and_evicted() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    let life = s.kill("w1");
    let beating = Puppet { incarnation: Some(life.incarnation), conn: 999, ..Puppet::default() };
    s.w.puppets.insert(worker("w1"), beating);
    let rule = ModeRule {
        id: ModeId::new(1),
        scope: ModeScope::Global,
        reason: String::new(),
        by: String::new(),
        since_unix_ms: 0,
        expires_unix_ms: None,
    };
    s.w.step(Event::SetMode(StoredMode { rule, expires_in: None }, 1));
    let waiting = |s: &FakeService| s.w.machine.mode_progress(s.w.now, ModeId::new(1)).expect("in force").waiting.len();
    assert_eq!(waiting(&s), 5);
    s.w.pass(Duration::from_secs(59));
    assert_eq!((waiting(&s), s.w.evicted.clone()), (5, vec![]));
    s.w.pass(Duration::from_secs(2));
    assert_eq!((waiting(&s), s.w.evicted.clone()), (5, vec![life.clone()]), "its lease stands until it is over");
    s.w.puppets.remove(&worker("w1"));
    s.w.step(Event::Over(life));
    s.w.pass(Duration::from_secs(3));
    assert_eq!((waiting(&s), s.w.loads()), (0, vec![10]));
}

#[test]
fn an_operator_can_evict() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    let life = s.w.machine.life_of(&worker("w1")).expect("lives");
    s.w.step(Event::Evict(Life::new(worker("w1"), life)));
    assert_eq!(s.w.evicted, vec![Life::new(worker("w1"), life)]);
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=4);
    let conn = w.puppets[&worker("w1")].conn;
    let life = w.machine.life_of(&worker("w1")).expect("lives");
    w.step(Event::Evict(Life::new(worker("w1"), life)));
    assert_eq!(w.closed.last(), Some(&(conn, Refusal::IncarnationOver)));
    w.puppets.remove(&worker("w1"));
    w.pass(Duration::from_millis(2_400));
    assert_eq!(w.loads(), [4]);
}

/// How long deaths are held back.
const GATHER: Duration = Duration::from_millis(100);

#[test]
fn what_a_dead_process_owned_goes_to_others_once_its_lease_node_is_written_over() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    let life = s.kill("w1");
    s.w.step(Event::Witnessed(life.clone(), GATHER));
    assert_eq!(s.w.evicted, vec![life.clone()]);
    s.w.step(Event::Witnessed(life.clone(), GATHER));
    s.w.pass(Duration::from_millis(100));
    assert_eq!(s.w.evicted, vec![life.clone()], "it is said once more often than it was done");
    let kept = s.w.loads();
    assert!(kept[0] < 10, "it is not gone yet: {kept:?}");
    s.w.step(Event::Over(life));
    s.w.pass(Duration::from_millis(200));
    assert_eq!(s.w.loads(), [10]);
    let names: Vec<_> = s.w.machine.workers(s.w.now).into_iter().filter(|worker| worker.member).map(|w| w.id).collect();
    assert_eq!(names, [worker("w2")], "its node stands until its session is over, and is no member any more");
}

#[test]
fn workers_that_are_killed_together_are_judged_together() {
    let mut s = cluster(Config::default(), &["w1", "w2", "w3", "w4", "w5"], 15);
    let lives: Vec<Life> = ["w1", "w2", "w3"].into_iter().map(|name| s.kill(name)).collect();
    for life in &lives {
        s.w.step(Event::Witnessed(life.clone(), GATHER));
        s.w.step(Event::Over(life.clone()));
        s.w.pass(Duration::from_millis(20));
    }
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.loads(), [3, 3], "the brake holds before anything of theirs has moved");
}

#[test]
fn a_witness_of_an_earlier_life_says_nothing_of_the_present_one() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    s.w.step(Event::Witnessed(Life::new(worker("w1"), Incarnation::new(99)), GATHER));
    s.w.pass(Duration::from_secs(1));
    assert_eq!((s.w.evicted.clone(), s.w.loads().len()), (vec![], 2));
}

#[test]
fn embedded_a_dead_process_is_waited_for_no_longer() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=4);
    let life = Life::new(worker("w1"), w.machine.life_of(&worker("w1")).expect("lives"));
    w.puppets.remove(&worker("w1"));
    w.step(Event::Witnessed(life, GATHER));
    w.pass(Duration::from_millis(200));
    assert_eq!(w.loads(), [4]);
}

#[test]
fn a_draining_worker_gives_up_everything_and_gets_nothing() {
    let mut s = cluster(Config::default(), &["w1", "w2", "w3"], 12);
    let conn = s.w.puppets[&worker("w1")].conn;
    let envelope = s.w.envelope(conn);
    s.w.step(Event::Received(conn, envelope, ToCoordinator::Drain { hand_back: false }));
    s.w.pass(Duration::from_secs(1));
    let caused =
        s.w.events
            .iter()
            .any(|n| matches!(n, RebalanceEvent::Opened { cause, .. } if cause.to_string() == "draining: w1"));
    assert!(caused, "{:?}", s.w.events);
    assert_eq!(s.w.loads(), [0, 6, 6]);
    s.w.create(13..=20);
    assert_eq!(s.w.loads(), [0, 10, 10]);
    assert_eq!(s.w.moved(), 4);
}

#[test]
fn most_workers_that_vanish_at_once_freeze_and_their_return_thaws() {
    let names = ["w1", "w2", "w3", "w4", "w5"];
    let mut s = cluster(Config::default(), &names, 20);
    let before: Vec<_> = (1..=20).map(|n| s.w.holder(n).map(str::to_owned)).collect();
    let lives: Vec<Life> = ["w1", "w2", "w3"].map(|name| s.kill(name)).to_vec();
    s.w.pass(Duration::from_secs(6));
    lives.iter().for_each(|life| s.expire(life));
    s.w.pass(Duration::from_secs(60));
    assert_eq!(s.w.loads(), [4, 4], "nothing moves");
    let frozen = s.w.machine.frozen(s.w.now).expect("says so");
    assert_eq!((frozen.missing.len(), frozen.live), (3, 2));
    s.w.create(21..=22);
    assert!(s.w.holder(21).is_some(), "what is new was never out of sight");
    // A next leader starts frozen as well.
    let departed: Vec<(&str, Incarnation)> = lives.iter().map(|l| (l.worker.as_str(), l.incarnation)).collect();
    let mut next = FakeService::in_term(Config::default(), Term::new(2), restored_from(&s.w, &departed));
    next.nodes = s.nodes.clone();
    next.next_life = 100;
    next.w.puppets = s.w.puppets.clone();
    next.read();
    next.w.connect("w4");
    next.w.connect("w5");
    next.w.pass(Duration::from_secs(10));
    assert_eq!(next.w.machine.frozen(next.w.now).map(|f| f.missing.len()), Some(3));
    for name in ["w1", "w2", "w3"] {
        next.join(name);
    }
    next.w.pass(Duration::from_secs(1));
    let after: Vec<_> = (1..=20).map(|n| next.w.holder(n).map(str::to_owned)).collect();
    assert_eq!(after, before, "each orphan went home, before the brake let go");
    next.w.pass(Duration::from_secs(2));
    assert_eq!(next.w.machine.frozen(next.w.now), None);
}

#[test]
fn an_operator_resumes_what_the_brake_holds() {
    let mut s = cluster(Config::default(), &["w1", "w2", "w3", "w4", "w5"], 20);
    let lives: Vec<Life> = ["w1", "w2", "w3"].map(|name| s.kill(name)).to_vec();
    s.w.pass(Duration::from_secs(6));
    lives.iter().for_each(|life| s.expire(life));
    assert!(s.w.machine.frozen(s.w.now).is_some());
    s.w.stored.clear();
    s.w.events.clear();
    s.w.step(Event::Resume);
    s.w.pass(Duration::from_millis(300));
    assert_eq!(s.w.loads(), [10, 10]);
    assert_eq!(s.w.causes(), ["gone: w1, w2, w3"], "though that was long before");
    let removed: BTreeSet<Life> = s.w.stored.iter().flat_map(|c| c.remove_members.clone()).collect();
    assert_eq!(removed, lives.into_iter().collect(), "the next leader must not start frozen");
}

#[test]
fn a_name_that_is_back_within_its_grace_costs_no_move() {
    let mut s = cluster(grace(5_000), &["w1", "w2", "w3"], 12);
    let before: Vec<_> = (1..=12).map(|n| s.w.holder(n).map(str::to_owned)).collect();
    let life = s.kill("w1");
    s.w.pass(Duration::from_secs(6));
    s.expire(&life);
    s.w.pass(Duration::from_secs(4));
    assert_eq!(s.w.loads(), [4, 4], "its share waits");
    s.join("w1");
    s.w.pass(Duration::from_millis(300));
    let after: Vec<_> = (1..=12).map(|n| s.w.holder(n).map(str::to_owned)).collect();
    assert_eq!(after, before);
    let life = s.kill("w1");
    s.w.pass(Duration::from_secs(6));
    s.w.events.clear();
    s.expire(&life);
    s.w.pass(Duration::from_millis(5_300));
    assert_eq!(s.w.loads(), [6, 6], "not for ever");
    assert_eq!(s.w.causes(), ["gone: w1"], "though the plan that its end set off moved nothing");
}

#[test]
fn what_is_handed_back_waits_for_its_name() {
    let mut s = cluster(grace(5_000), &["w1", "w2", "w3"], 12);
    let before: Vec<_> = (1..=12).map(|n| s.w.holder(n).map(str::to_owned)).collect();
    let puppet = s.w.puppets[&worker("w1")].clone();
    let envelope = s.w.envelope(puppet.conn);
    s.w.step(Event::Received(puppet.conn, envelope, ToCoordinator::Drain { hand_back: true }));
    let handed = |(id, token): (&ApplianceId, &Token)| Release {
        appliance: *id,
        token: *token,
        carryover: Carryover::default(),
    };
    let released = puppet.held.iter().map(handed).collect();
    s.w.puppets.get_mut(&worker("w1")).expect("lives").held.clear();
    s.w.step(Event::Received(
        puppet.conn,
        envelope,
        ToCoordinator::Ack(Ack { applied: puppet.version, released, ..Ack::default() }),
    ));
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.loads(), [0, 4, 4], "nobody gets it, not even itself");
    s.w.step(Event::Received(puppet.conn, envelope, ToCoordinator::Leave));
    s.w.puppets.remove(&worker("w1"));
    s.nodes.remove(&worker("w1"));
    s.w.step(Event::Members(s.nodes.clone()));
    s.w.pass(Duration::from_secs(3));
    assert_eq!(s.w.loads(), [4, 4]);
    s.join("w1");
    s.w.pass(Duration::from_millis(500));
    let after: Vec<_> = (1..=12).map(|n| s.w.holder(n).map(str::to_owned)).collect();
    assert_eq!(after, before);
}

#[test]
fn a_python_member_is_in_the_ring_and_gets_nothing() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    let bare = Profile { weight: 2, drivers: DriverOffers::default(), lease: Duration::ZERO, ..profile() };
    s.nodes.insert(worker("py"), ObservedMember { incarnation: Incarnation::new(77), profile: bare });
    s.w.step(Event::Members(s.nodes.clone()));
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.machine.planner().members().len(), 3);
    assert_eq!(s.w.moved(), 0);
    s.nodes.remove(&worker("py"));
    s.w.step(Event::Members(s.nodes.clone()));
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.machine.planner().members().len(), 2);
}

#[test]
fn a_new_life_under_a_name_does_not_end_the_former_one() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    let former = s.kill("w1");
    let life = s.join("w1");
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.loads(), [0, 5], "the former life may still act");
    s.w.step(Event::Over(former));
    s.w.pass(Duration::from_secs(3));
    assert_eq!(s.w.loads(), [5, 5], "{life:?}");
}

#[test]
fn a_paused_leader_places_nothing() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    s.w.step(Event::Pause(Pause { why: "maintenance".to_owned(), ..Pause::default() }));
    s.w.create([11]);
    s.w.pass(Duration::from_secs(1));
    assert_eq!(s.w.holder(11), None);
    assert_eq!(s.w.machine.waiting(s.w.now), Some("paused: maintenance".to_owned()));
    let wake_at = s.w.machine.step(s.w.now, Event::Tick).wake_at;
    assert!(wake_at.is_some_and(|at| at > s.w.now), "it would be asked again as fast as it answers");
    s.w.step(Event::Resume);
    s.w.pass(Duration::from_millis(300));
    assert!(s.w.holder(11).is_some());
}

#[test]
fn a_worker_that_is_about_to_stop_hears_when_nobody_takes_what_it_has() {
    let mut s = cluster(Config::default(), &["w1", "w2"], 10);
    for name in ["w1", "w2"] {
        let conn = s.w.puppets[&worker(name)].conn;
        let envelope = s.w.envelope(conn);
        s.w.sent.clear();
        s.w.step(Event::Received(conn, envelope, ToCoordinator::Drain { hand_back: false }));
        s.w.pass(Duration::from_secs(1));
        let told = s.w.sent.iter().any(|(c, d)| *c == conn && *d == ToWorker::Drained);
        assert_eq!(told, name == "w2", "{name}");
    }
    assert_eq!(s.w.loads(), [0, 10]);
}

#[test]
fn what_a_worker_has_at_a_later_generation_than_the_store_is_given_anew() {
    given_anew(edition(3));
}

#[test]
fn what_a_worker_has_at_a_generation_that_was_written_twice_is_given_anew() {
    given_anew(Edition { term: Term::new(7), ..edition(1) });
}

#[test]
fn a_worker_that_knows_no_terms_of_generations_keeps_what_it_has_at_the_stored_one() {
    let (before, after) = greeted_with(Edition { term: Term::default(), ..edition(1) });
    assert_eq!(after.w.violations, Vec::<String>::new());
    assert!((1..=4).all(|n| token_of(&after, n) == token_of(&before, n)));
}

fn given_anew(held: Edition) {
    let (before, after) = greeted_with(held);
    assert_eq!(after.w.violations.len(), 1, "{:?}", after.w.violations);
    assert!(token_of(&after, 1) > token_of(&before, 1), "under a token of this term");
    assert!((2..=4).all(|n| token_of(&after, n) == token_of(&before, n)), "the others stay where they are");
}

fn token_of(s: &FakeService, n: u128) -> Token {
    s.w.puppets.values().find_map(|p| p.held.get(&id(n)).copied()).expect("held")
}

/// A cluster, and the same under a next leader whom one worker tells that it has an appliance as `held`.
fn greeted_with(held: Edition) -> (FakeService, FakeService) {
    let mut s = cluster(Config::default(), &["w1", "w2"], 4);
    let mut next = FakeService::in_term(Config::default(), Term::new(2), restored_from(&s.w, &[]));
    (next.nodes, next.w.puppets) = (std::mem::take(&mut s.nodes), s.w.puppets.clone());
    next.read();
    for (conn, name) in [(101, "w1"), (102, "w2")] {
        let puppet = next.w.puppets.get_mut(&worker(name)).expect("lives");
        (puppet.conn, puppet.stream) = (conn, puppet.stream.next());
        let puppet = next.w.puppets[&worker(name)].clone();
        let mut hello = next.w.hello_of(name, &puppet);
        hello.owned.iter_mut().filter(|h| h.appliance == id(1)).for_each(|h| h.edition = held);
        next.w.say_hello(conn, &puppet, hello);
    }
    next.w.pass(Duration::from_secs(1));
    assert!(next.all_owned(4));
    (s, next)
}

/// A `Hello` that was stuck while a newer stream and a change of term passed it by must take nothing from anybody.
#[test]
fn a_hello_from_before_the_term_takes_nothing_before_its_stream_answers() {
    let s = cluster(Config::default(), &["w1", "w2"], 10);
    let mut next = FakeService::in_term(Config::default(), Term::new(2), restored_from(&s.w, &[]));
    next.nodes = s.nodes.clone();
    next.w.puppets = s.w.puppets.clone();
    next.w.next_conn = 100;
    next.read();
    next.w.connect("w2");
    let puppet = &s.w.puppets[&worker("w1")];
    let late = Hello { owned: vec![], ..next.w.hello_of("w1", puppet) };
    next.w.say_hello(77, puppet, late);
    next.w.step(Event::Tick);
    next.w.step(Event::Closed(77));
    next.w.pass(Duration::from_secs(10));
    assert_eq!(next.w.loads(), [5, 5], "what it held was given to somebody else");
    next.w.puppets.get_mut(&worker("w1")).expect("lives").stream = StreamNumber::new(5);
    next.w.connect("w1");
    next.w.pass(Duration::from_secs(1));
    assert_eq!((next.w.loads(), next.w.violations.len()), (vec![5, 5], 0));
}

/// It is the leader that is cut off; with everybody fenced, the brake would come too late.
#[test]
fn a_leader_that_reaches_nobody_evicts_nobody() {
    let mut s = cluster(Config::default(), &["w1", "w2", "w3", "w4"], 12);
    for (n, name) in ["w1", "w2", "w3", "w4"].into_iter().enumerate() {
        let life = s.kill(name);
        let beating = Puppet { incarnation: Some(life.incarnation), conn: 900 + n as u64, ..Puppet::default() };
        s.w.puppets.insert(worker(name), beating);
        s.nodes.remove(&worker(name));
    }
    s.w.step(Event::Members(s.nodes.clone()));
    s.w.pass(Duration::from_secs(90));
    assert_eq!(s.w.evicted, vec![]);
}

#[test]
fn what_is_handed_back_too_slowly_goes_to_others() {
    let mut s = cluster(grace(2_000), &["w1", "w2", "w3"], 12);
    let conn = s.w.puppets[&worker("w1")].conn;
    let envelope = s.w.envelope(conn);
    s.w.step(Event::Received(conn, envelope, ToCoordinator::Drain { hand_back: true }));
    s.w.pass(Duration::from_secs(4));
    assert_eq!(s.w.loads(), [0, 6, 6], "drained like any other once the grace was over");
}

#[test]
fn the_only_worker_without_member_node_begins_another_life() {
    let mut s = cluster(Config::default(), &["w1"], 5);
    let conn = s.w.puppets[&worker("w1")].conn;
    s.nodes.clear();
    s.w.step(Event::Members(s.nodes.clone()));
    s.w.pass(Duration::from_secs(3));
    assert_eq!(s.w.closed, vec![(conn, Refusal::NotMember)], "nobody will ever take what it holds");
    let former = s.kill("w1");
    s.w.step(Event::Over(former));
    s.join("w1");
    s.w.pass(Duration::from_secs(8));
    assert_eq!(s.w.loads(), [5]);
}

/// Given up without a trace, then deleted under another leader: somebody has to look for its instances all the same.
#[test]
fn what_was_ever_granted_is_removed_by_a_worker() {
    let mut restored = Restored::default();
    restored
        .appliances
        .push((Seed { deleting: true, ..seed(1) }, StoredGrant { ever: true, ..StoredGrant::default() }));
    let mut s = FakeService::in_term(Config::default(), Term::new(2), restored);
    s.read();
    s.join("w1");
    s.w.pass(Duration::from_secs(2));
    assert_eq!((s.w.holder(1), s.w.removed.len()), (Some("w1"), 0), "its owner removes it");
}
