//! Orders of operators, as the machine follows them.

use super::*;
use crate::orders::{OrderOp, Pin};
use crate::planner::{Reason, Unplaced};

fn drain(name: &str, set: bool) -> Event {
    Event::Orders(vec![OrderOp::Drain { worker: worker(name), set }])
}

fn cordon(name: &str, set: bool) -> Event {
    Event::Orders(vec![OrderOp::Cordon { worker: worker(name), set }])
}

fn pin(n: u128, to: &str, strict: bool) -> OrderOp {
    OrderOp::Pin { appliance: id(n), pin: Some(Pin { worker: worker(to), strict }) }
}

impl World {
    fn unplaced(&self, n: u128) -> Option<Unplaced> {
        let table = self.machine.table();
        table.get(table.slot(id(n))?)?.placement.unplaced.clone()
    }

    /// The same cluster under its next leader, to whom both workers come back.
    fn next_leader(&self, config: Config) -> Self {
        let mut next = Self::with(config, Term::new(2), self.stored());
        next.now = self.now;
        next.puppets.clone_from(&self.puppets);
        for name in self.puppets.keys() {
            next.connect(name.as_str());
        }
        next
    }
}

#[test]
fn a_drained_worker_gives_up_everything_stays_a_member_and_stays_drained_when_it_starts_anew() {
    let mut w = two();
    w.step(drain("w1", true));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [0, 10]);
    assert_eq!(w.causes().last().map(String::as_str), Some("draining: w1"));
    let view = &w.machine.workers(w.now)[0];
    assert!(view.draining && view.member && view.immovable == 0, "{view:?}");
    w.kill("w1");
    w.pass(Duration::from_secs(4));
    w.connect("w1");
    w.create(11..=14);
    w.pass(Duration::from_secs(4));
    assert_eq!(w.loads(), [0, 14]);
    w.step(drain("w1", false));
    w.pass(Duration::from_secs(2));
    assert_eq!(w.loads(), [6, 8]);
}

#[test]
fn a_drain_goes_on_under_the_next_leader() {
    // One move at a time, so that the leader changes in the middle.
    let config = Config { max_moves_per_worker: 1, ..Config::default() };
    let mut w = World::with(config.clone(), Term::new(1), Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=10);
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.step(drain("w1", true));
    w.step(Event::Tick);
    w.hold_commits = false;
    let before = w.puppets[&worker("w1")].held.len();
    assert!(before >= 4, "{before}");
    let mut next = w.next_leader(config);
    next.pass(Duration::from_secs(8));
    assert_eq!(next.loads(), [0, 10]);
    assert!(next.machine.orders().is_drained(&worker("w1")));
    assert_eq!(next.violations, Vec::<String>::new());
}

#[test]
fn a_cordoned_worker_keeps_what_it_has_and_is_given_nothing_new() {
    let mut w = two();
    w.step(cordon("w1", true));
    w.create(11..=30);
    w.pass(Duration::from_secs(2));
    assert_eq!(w.loads(), [5, 25]);
    assert_eq!(w.moved(), 0);
    let mut next = w.next_leader(Config::default());
    next.pass(Duration::from_secs(4));
    next.create(31..=40);
    next.pass(Duration::from_secs(1));
    assert_eq!(next.loads(), [5, 35]);
    next.step(cordon("w1", false));
    next.pass(Duration::from_secs(4));
    assert!(next.loads()[0] >= 19, "{:?}", next.loads());
}

#[test]
fn a_cordoned_worker_that_is_waited_for_has_back_what_it_held() {
    let config = Config { departure_grace: Duration::from_secs(10), gap_target: Duration::ZERO, ..Config::default() };
    let mut w = World::with(config, Term::new(1), Restored::default());
    for name in ["w1", "w2", "w3"] {
        w.connect(name);
    }
    w.pass(Duration::from_secs(1));
    w.create(1..=12);
    w.pass(Duration::from_secs(1));
    let held = w.puppets[&worker("w1")].held.len();
    w.step(cordon("w1", true));
    w.kill("w1");
    w.pass(Duration::from_secs(4));
    w.connect("w1");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.puppets[&worker("w1")].held.len(), held);
}

#[test]
fn a_weight_by_order_counts_until_it_is_taken_back() {
    let mut w = two();
    w.step(Event::Orders(vec![OrderOp::Weight { worker: worker("w2"), weight: Some(4) }]));
    w.pass(Duration::from_secs(1));
    // A fair share is 2, and no more is moved than the band asks for.
    assert_eq!(w.loads(), [3, 7]);
    w.step(Event::Orders(vec![OrderOp::Weight { worker: worker("w2"), weight: None }]));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [4, 6]);
}

#[test]
fn a_strict_pin_holds_over_a_change_of_the_leader_and_the_absence_of_its_worker() {
    let mut w = two();
    let n = (1..=10).find(|n| w.holder(*n) == Some("w2")).expect("five are there");
    w.step(Event::Orders(vec![pin(n, "w1", true)]));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(n), Some("w1"));
    let mut next = w.next_leader(Config::default());
    next.pass(Duration::from_secs(4));
    assert_eq!(next.holder(n), Some("w1"));
    next.kill("w1");
    next.pass(Duration::from_secs(5));
    assert_eq!((next.holder(n), next.unplaced(n)), (None, Some(Unplaced::Pinned(worker("w1")))));
    assert_eq!(next.loads(), [9], "all others");
    let why = next.machine.explain(next.now, id(n)).expect("known").summary;
    assert_eq!(why, "it is pinned to w1 alone, which cannot take it now; it is pinned to w1 alone");
    next.connect("w1");
    next.pass(Duration::from_secs(2));
    assert_eq!(next.holder(n), Some("w1"));
    let slot = next.machine.table().slot(id(n)).expect("known");
    assert_eq!(next.machine.table().get(slot).and_then(|row| row.placement.reason), Some(Reason::Pinned));
    next.step(Event::Orders(vec![OrderOp::Pin { appliance: id(n), pin: None }]));
    assert_eq!(next.machine.orders().pins().len(), 0);
}

#[test]
fn a_preferred_pin_lets_others_have_it_while_its_worker_is_away() {
    let mut w = two();
    let n = (1..=10).find(|n| w.holder(*n) == Some("w1")).expect("five are there");
    w.step(Event::Orders(vec![pin(n, "w1", false)]));
    w.kill("w1");
    w.pass(Duration::from_secs(5));
    assert_eq!(w.holder(n), Some("w2"));
    w.connect("w1");
    w.pass(Duration::from_secs(2));
    assert_eq!(w.holder(n), Some("w1"));
}

#[test]
fn several_orders_that_are_given_at_once_are_one_plan() {
    let mut w = two();
    w.connect("w3");
    w.pass(Duration::from_secs(2));
    w.events.clear();
    let pinned = (1..=10).find(|n| w.holder(*n) == Some("w1")).expect("some are there");
    w.step(Event::Orders(vec![
        OrderOp::Drain { worker: worker("w1"), set: true },
        OrderOp::Cordon { worker: worker("w2"), set: true },
        pin(pinned, "w3", true),
    ]));
    let second = w.puppets[&worker("w2")].held.len();
    w.pass(Duration::from_secs(2));
    assert_eq!(w.loads(), [0, second, 10 - second]);
    assert_eq!(w.causes().len(), 1, "{:?}", w.causes());
}
