//! Budgets of disruption, as the machine keeps to them when it moves appliances.

use common::appliance::Name;
use common::status::{Phase, Status};

use super::*;
use crate::budget::{Budget, BudgetGroup, BudgetScope, MaxUnavailable};
use crate::orders::OrderOp;

fn budget(name: &str, per: BudgetGroup, most: u32) -> Event {
    let budget = Budget { scope: BudgetScope::default(), per, max_unavailable: MaxUnavailable::Count(most) };
    Event::Orders(vec![OrderOp::Budget { name: Name::new(name).expect("a valid name"), budget: Some(budget) }])
}

fn drain(name: &str) -> Event {
    Event::Orders(vec![OrderOp::Drain { worker: worker(name), set: true }])
}

impl World {
    /// The owner of an appliance says how it is.
    fn report(&mut self, n: u128, phase: Phase) {
        let table = self.machine.table();
        let slot = table.slot(id(n)).expect("known");
        let holder = table.get(slot).and_then(|row| row.state.holder().cloned()).expect("held");
        let conn = self.puppets[&holder.worker].conn;
        let observed_generation = table.get(slot).expect("known").edition.generation;
        let status = Status { phase, observed_generation, ..Status::default() };
        let report = StatusReport {
            appliance: id(n),
            token: holder.token,
            status,
            checked: 0,
            adopted: false,
            would_have: vec![],
        };
        let envelope = self.envelope(conn);
        let message = ToCoordinator::Report(Report { statuses: vec![report], owned: None });
        self.step(Event::Received(conn, envelope, message));
    }

    fn available(&self) -> usize {
        let slots = self.machine.table().iter().map(|(slot, _)| slot);
        slots.filter(|slot| !self.machine.is_unavailable(*slot)).count()
    }
}

/// Two workers with five appliances each, all of which are configured.
fn configured() -> World {
    let mut w = two();
    (1..=10).for_each(|n| w.report(n, Phase::Configured));
    assert_eq!(w.available(), 10);
    w
}

#[test]
fn a_drain_takes_down_no_more_at_a_time_than_a_budget_allows() {
    let mut w = configured();
    w.step(budget("fleet", BudgetGroup::All, 2));
    w.step(drain("w1"));
    w.pass(Duration::from_millis(300));
    assert_eq!((w.moved(), w.available()), (2, 8), "nobody has said of them that they are well");
    let view = &w.machine.budgets()[0];
    assert_eq!((view.covered, view.down, view.spent, view.held), (10, 2, 1, 3));
    let still: Vec<u128> = (1..=10).filter(|n| w.holder(*n) == Some("w1")).collect();
    let explained = w.machine.explain(w.now, id(still[0])).expect("known").summary;
    assert!(explained.contains("budget fleet allows 2 unavailable, and 2 are"), "{explained}");
    while w.loads()[0] > 0 {
        let before = w.moved();
        let arrived = (1..=10).find(|n| {
            let slot = w.machine.table().slot(id(*n)).expect("known");
            w.machine.is_unavailable(slot) && w.holder(*n) == Some("w2")
        });
        w.report(arrived.expect("one has arrived"), Phase::Configured);
        w.pass(Duration::from_millis(200));
        assert!(w.available() >= 8 && w.moved() <= before + 1);
    }
    assert_eq!(w.loads(), [0, 10]);
    assert_eq!(w.causes().iter().filter(|cause| cause.starts_with("draining")).count(), 1, "it is one rebalance");
}

#[test]
fn what_is_down_by_itself_counts_and_what_is_down_may_move() {
    let mut w = configured();
    let on = |w: &World, name: &str| -> Vec<u128> { (1..=10).filter(|n| w.holder(*n) == Some(name)).collect() };
    let (held, others) = (on(&w, "w1"), on(&w, "w2"));
    w.report(others[0], Phase::Booting);
    w.step(budget("fleet", BudgetGroup::All, 1));
    w.step(drain("w1"));
    w.pass(Duration::from_millis(300));
    assert_eq!(w.moved(), 0, "one is down already");
    w.report(held[0], Phase::Error);
    w.pass(Duration::from_millis(300));
    assert_eq!((w.moved(), w.holder(held[0])), (1, Some("w2")), "that takes no further one down");
    assert_eq!(w.available(), 8);
}

#[test]
fn the_dead_find_owners_whatever_a_budget_says() {
    let mut w = configured();
    w.step(budget("fleet", BudgetGroup::All, 0));
    w.kill("w1");
    w.pass(Duration::from_secs(5));
    assert_eq!(w.loads(), [10]);
}

#[test]
fn who_asks_to_take_one_down_counts_until_it_is_seen() {
    let mut w = configured();
    w.step(budget("tenants", BudgetGroup::Tenant, 1));
    assert_eq!(w.machine.refuses_disruption(id(1)), None);
    w.step(Event::Disrupt { id: id(1), begins: true });
    assert!(w.machine.refuses_disruption(id(2)).is_some());
    assert_eq!(w.machine.refuses_disruption(id(1)), None, "it is the one");
    // The change is stored before whoever asked says that it has asked.
    let (edition, kind) = (edition(2), KindName::Custom);
    w.step(Event::Updated { id: id(1), edition, kind, size: 1, deleting: false });
    w.step(Event::Disrupt { id: id(1), begins: false });
    assert!(w.machine.refuses_disruption(id(2)).is_some(), "it has not acted on its newest generation");
    w.report(1, Phase::Configured);
    assert_eq!(w.machine.refuses_disruption(id(2)), None);
}

#[test]
fn a_new_leader_counts_as_down_what_it_has_not_heard_of() {
    let mut w = configured();
    w.step(budget("fleet", BudgetGroup::All, 3));
    w.step(drain("w1"));
    let mut next = World::with(Config::default(), Term::new(2), w.stored());
    next.now = w.now;
    next.puppets.clone_from(&w.puppets);
    next.connect("w1");
    next.connect("w2");
    next.pass(Duration::from_secs(1));
    let held: Vec<u128> = (1..=10).filter(|n| next.holder(*n) == Some("w1")).collect();
    assert!(held.is_empty(), "whatever is down may move, and all are, as far as it knows");
}

#[test]
fn moves_are_paused_apart_from_those_without_an_owner_and_a_rebalance_is_aborted() {
    // One move at a time, so that there is something left to abort.
    let config = Config { max_moves_per_worker: 1, ..Config::default() };
    let mut w = World::with(config, Term::new(1), Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=10);
    w.pass(Duration::from_millis(200));
    w.step(drain("w1"));
    w.step(Event::Tick);
    let current = w.machine.current_rebalance().expect("it drains");
    let moved = w.moved();
    let pause = Pause { why: "enough".into(), moves_only: true, aborts: Some(current) };
    w.step(Event::Pause(pause.clone()));
    w.pass(Duration::from_secs(1));
    assert!(w.moved() <= moved + 1, "at most the one under way has ended");
    assert!(!w.machine.is_rebalancing(current));
    let ended = w
        .events
        .iter()
        .any(|event| matches!(event, RebalanceEvent::Closed { id, end: RebalanceEnd::Aborted, .. } if *id == current));
    assert!(ended, "{:?}", w.events);
    w.create(11..=12);
    w.pass(Duration::from_millis(300));
    assert_eq!((w.holder(11), w.holder(12)), (Some("w2"), Some("w2")), "what has no owner gets one");
    let left = w.loads()[0];
    assert!(left > 0);
    let mut next = w.stored();
    next.paused = Some(pause);
    let mut next = World::with(Config::default(), Term::new(2), next);
    next.now = w.now;
    next.puppets.clone_from(&w.puppets);
    next.connect("w1");
    next.connect("w2");
    next.pass(Duration::from_secs(2));
    assert_eq!(next.loads()[0], left, "the next leader keeps to it");
    next.step(Event::Resume);
    next.pass(Duration::from_secs(2));
    assert_eq!(next.loads(), [0, 12]);
}
