//! Workers that are not there any more: lost ones, those that left in good order, and those an operator gives up.

use super::super::*;
use super::{World, id, worker};
use crate::health::Health;

fn health(w: &World, name: &str) -> Option<Health> {
    w.machine.workers(w.now).into_iter().find(|view| view.id == worker(name)).map(|view| view.health)
}

fn two_workers(config: Config) -> World {
    let mut w = World::with(config, Term::new(1), Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w
}

fn leave(w: &mut World, name: &str) {
    let conn = w.puppets[&worker(name)].conn;
    let envelope = w.envelope(conn);
    w.step(Event::Received(conn, envelope, common::session::ToCoordinator::Leave));
    w.puppets.remove(&worker(name));
}

#[test]
fn one_that_left_is_shown_as_that_and_for_a_short_time() {
    let mut w = two_workers(Config::default());
    leave(&mut w, "w1");
    assert_eq!(health(&w, "w1"), Some(Health::Left));
    w.pass(Duration::from_secs(299));
    assert_eq!(health(&w, "w1"), Some(Health::Left));
    w.pass(Duration::from_secs(2));
    assert_eq!((health(&w, "w1"), w.machine.has_life(&worker("w1"))), (None, false));
}

#[test]
fn one_that_was_lost_is_shown_as_dead_until_it_is_forgotten() {
    let mut w = two_workers(Config::default());
    w.kill("w1");
    w.pass(Duration::from_secs(600));
    assert_eq!(health(&w, "w1"), Some(Health::Dead));
    w.step(Event::Forget(worker("w1")));
    assert_eq!((health(&w, "w1"), w.machine.knows(&worker("w1"))), (None, false));
    w.step(Event::Forget(worker("w2")));
    assert_eq!(health(&w, "w2"), Some(Health::Healthy), "one that is alive is not forgotten");
}

#[test]
fn what_waits_for_a_lost_worker_goes_to_others_once_that_is_forgotten() {
    let grace = Duration::from_secs(3_600);
    let mut w = two_workers(Config { departure_grace: grace, freeze_fraction: 1.0, ..Config::default() });
    w.create(1..=4);
    w.pass(Duration::from_secs(1));
    let held: Vec<u128> = (1..=4).filter(|n| w.holder(*n) == Some("w1")).collect();
    assert!(!held.is_empty());
    w.kill("w1");
    w.pass(Duration::from_secs(60));
    assert!(held.iter().all(|n| w.holder(*n).is_none()), "they wait for its return");
    w.step(Event::Forget(worker("w1")));
    w.pass(Duration::from_secs(2));
    assert!((1..=4).all(|n| w.holder(n) == Some("w2")), "{:?}", (1..=4).map(|n| w.holder(n)).collect::<Vec<_>>());
    assert!(w.machine.table().slot(id(1)).is_some());
}
