//! Plans as they are carried out.

use super::*;
use crate::orders::OrderOp;

#[test]
fn a_new_leader_moves_nothing_because_it_is_new() {
    let w = two();
    let mut next = World::in_term(Term::new(2), w.stored());
    next.now = next.now + Duration::from_millis(50);
    next.step(Event::Tick);
    assert!(next.machine.waiting(next.now).is_some());
    next.puppets = w.puppets.clone();
    for name in ["w1", "w2"] {
        next.connect(name);
    }
    next.pass(Duration::from_secs(4));
    assert_eq!(next.loads(), [5, 5]);
    assert_eq!(next.puppets, w.puppets_with_conns(&next));
    assert_eq!((next.moved(), next.violations.len()), (0, 0));
}

impl World {
    fn puppets_with_conns(&self, other: &Self) -> BTreeMap<WorkerId, Puppet> {
        let mut puppets = self.puppets.clone();
        for (name, puppet) in &mut puppets {
            let theirs = &other.puppets[name];
            puppet.conn = theirs.conn;
            puppet.stream = theirs.stream;
            puppet.beats = theirs.beats;
            puppet.version = theirs.version;
        }
        puppets
    }
}

impl PartialEq for Puppet {
    fn eq(&self, other: &Self) -> bool {
        self.held == other.held && self.incarnation == other.incarnation
    }
}

#[test]
fn joins_are_gathered_and_move_the_least_possible() {
    let mut w = two();
    w.connect("w3");
    w.pass(Duration::from_millis(300));
    w.connect("w4");
    w.pass(Duration::from_millis(100));
    assert_eq!(w.moved(), 0, "still gathering");
    w.pass(Duration::from_secs(1));
    // Ten over four: fair is 2.5, so the floor is 2 and the ceiling 3.
    assert_eq!(w.moved(), 4);
    assert_eq!(w.loads(), [3, 3, 2, 2]);
    let opened: Vec<_> = w.events.iter().filter(|n| matches!(n, RebalanceEvent::Opened { .. })).collect();
    assert_eq!(opened.len(), 1, "{opened:?}");
}

#[test]
fn a_plan_of_another_table_or_of_assumed_members_is_not_carried_out() {
    let mut w = two();
    let stale = w.machine.propose(&Assumptions::default());
    let assumed =
        Assumptions { orders: vec![OrderOp::Drain { worker: worker("w1"), set: true }], ..Assumptions::default() };
    let drained = w.machine.propose(&assumed);
    assert_eq!(drained.moves().len(), 5, "all of one worker");
    assert!(
        drained.moves().all(|m| m.from == Some(&worker("w1")) && w.holder(m.appliance.uuid().as_u128()) == Some("w1"))
    );
    w.create([11]);
    let current = w.machine.planner().version();
    let before = format!("{:?}", w.machine);
    let refused = PlanRefused::Stale { planned: stale.version, current };
    assert_eq!(w.machine.apply(w.now, &stale, None, w.now), Err(refused));
    let drained = w.machine.propose(&assumed);
    let id = drained.id;
    assert_eq!(w.machine.apply(w.now, &drained, None, w.now), Err(PlanRefused::Assumed(id)));
    assert_eq!(format!("{:?}", w.machine), before);
}

impl World {
    /// A user deletes an appliance, and its owner removes it.
    fn delete(&mut self, n: u128) {
        self.step(Event::Updated { id: id(n), edition: edition(2), kind: KindName::Custom, size: 10, deleting: true });
        let owner = self.holder(n).map(worker).expect("it is owned");
        let puppet = self.puppets.get_mut(&owner).expect("lives");
        let token = puppet.held.remove(&id(n)).expect("owned");
        let (conn, applied) = (puppet.conn, puppet.version);
        let ack = Ack { applied, removed: vec![GrantRef::new(id(n), token)], ..Ack::default() };
        self.step(Event::Received(conn, self.envelope(conn), ToCoordinator::Ack(ack)));
        self.step(Event::Tick);
    }
}

#[test]
fn deleting_many_is_one_rebalance_at_most_and_moves_nothing_twice() {
    let config = Config { gap_target: Duration::ZERO, ..Config::default() };
    let mut w = World::with(config, Term::new(1), Restored::default());
    for name in ["w1", "w2", "w3"] {
        w.connect(name);
    }
    w.pass(Duration::from_secs(1));
    w.create(1..=60);
    w.pass(Duration::from_millis(500));
    w.events.clear();
    // All of one worker's but one, then some of the others'.
    let of_first: Vec<u128> = (1..=60).filter(|n| w.holder(*n) == Some("w1")).skip(1).collect();
    let others: Vec<u128> = (1..=60).filter(|n| w.holder(*n) != Some("w1")).take(10).collect();
    for n in of_first.iter().chain(&others) {
        w.delete(*n);
        w.pass(Duration::from_millis(100));
        assert_eq!(w.moved(), 0, "the balance waits for the last of them");
    }
    w.pass(Duration::from_secs(3));
    assert_eq!(w.causes(), ["out of the band"]);
    let moved = w.events.iter().filter_map(|event| match event {
        RebalanceEvent::Moved { appliance, .. } => Some(*appliance),
        _ => None,
    });
    let moved: Vec<_> = moved.collect();
    let once: BTreeSet<_> = moved.iter().copied().collect();
    assert_eq!(once.len(), moved.len());
    let done = moved.len() as u64;
    assert!(
        done > 0
            && w.events
                .iter()
                .any(|e| matches!(e, RebalanceEvent::Closed { moves, done: d, .. } if (*moves, *d) == (done, done))),
        "{:?}",
        w.events
    );
}

#[test]
fn deletions_without_end_do_not_keep_the_balance_from_being_restored() {
    let mut w =
        World::with(Config { gap_target: Duration::ZERO, ..Config::default() }, Term::new(1), Restored::default());
    for name in ["w1", "w2"] {
        w.connect(name);
    }
    w.pass(Duration::from_secs(1));
    w.create(1..=400);
    w.pass(Duration::from_millis(500));
    w.events.clear();
    let of_first: Vec<u128> = (1..=400).filter(|n| w.holder(*n) == Some("w1")).collect();
    for n in of_first.into_iter().take(120) {
        if w.holder(n) == Some("w1") {
            w.delete(n);
        }
        w.pass(Duration::from_millis(100));
    }
    assert!(w.moved() > 0, "12 s of deletions, and the balance is looked at after 10 s");
}

/// The next leader of `w`, which was told what its predecessor did not end; its workers say hello to it.
fn successor(w: &World, moved: &[u128]) -> (World, RebalanceId) {
    let id_of_rebalance = RebalanceId { term: Term::new(1), number: 7 };
    let moved = moved.iter().map(|n| id(*n)).collect();
    let unfinished = Some(UnfinishedRebalance { id: id_of_rebalance, moved });
    let config = Config { gap_target: Duration::ZERO, ..Config::default() };
    let mut next = World::with(config, Term::new(2), Restored { unfinished, ..w.stored() });
    next.puppets = w.puppets.clone();
    for name in w.puppets.keys() {
        next.connect(name.as_str());
    }
    (next, id_of_rebalance)
}

#[test]
fn a_new_leader_goes_on_with_the_rebalance_it_finds_and_ends_it() {
    let mut w = two();
    w.connect("w3");
    let (mut next, rebalance) = successor(&w, &[100]);
    next.pass(Duration::from_secs(2));
    assert_eq!(next.causes(), Vec::<String>::new(), "no other one is opened");
    let resumed = RebalanceEvent::Resumed { id: rebalance, cause: RebalanceCause::Start, moves: 4 };
    assert_eq!(next.events.first(), Some(&resumed));
    let closed = RebalanceEvent::Closed { id: rebalance, moves: 4, done: 4, end: RebalanceEnd::Completed };
    assert_eq!(next.events.last(), Some(&closed));
    assert_eq!(next.loads().iter().max(), Some(&4));
}

#[test]
fn a_new_leader_ends_a_rebalance_that_has_nothing_left() {
    let (mut next, rebalance) = successor(&two(), &[1, 2]);
    next.pass(Duration::from_secs(1));
    let closed = RebalanceEvent::Closed { id: rebalance, moves: 2, done: 2, end: RebalanceEnd::Completed };
    assert_eq!(next.events, [closed]);
}

#[test]
fn the_time_a_rebalance_begins_is_that_of_what_set_it_off() {
    let mut w = two();
    w.connect("w3");
    let joined = w.now;
    w.pass(Duration::from_secs(1));
    let opened = w.events.iter().find_map(|event| match event {
        RebalanceEvent::Opened { since, .. } => Some(*since),
        _ => None,
    });
    assert_eq!(opened, Some(joined), "not when the joins were gathered");
}
