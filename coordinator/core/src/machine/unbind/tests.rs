//! Each reason to refuse, what a success leads to, and that no history of losses and unbinding gives an appliance two owners.

use std::collections::{BTreeMap, BTreeSet};

use common::Term;
use common::driver::{DriverCapabilities, DriverName};
use common::kind::KindName;
use common::session::{Ack, Hello, ToCoordinator};

use super::super::tests::{L, Puppet, World, id, profile, seed, worker};
use super::super::{Config, Event, Pause, Restored};
use super::*;
use crate::grants::{Profile, StoredGrant};
use crate::planner::Needs;
use crate::table::Seed;

const SECOND: Duration = Duration::from_secs(1);

/// A profile of a worker on the host `h` that keeps instances in `dir`.
fn at(dir: &str) -> Profile {
    let process = (DriverName::process(), DriverCapabilities::of_all_kinds(Some(dir)));
    Profile { host: "h".into(), drivers: [process].into(), ..profile() }
}

fn site(dir: &str) -> Site {
    Site::new("h", dir)
}

/// A worker of this directory opens a stream.
fn connect(w: &mut World, name: &str, dir: &str) {
    let conn = w.next_conn;
    w.next_conn += 1;
    let puppet = w.puppets.entry(worker(name)).or_default();
    puppet.conn = conn;
    puppet.stream = puppet.stream.next();
    let puppet = w.puppets[&worker(name)].clone();
    let hello = Hello { profile: at(dir), ..w.hello_of(name, &puppet) };
    w.say_hello(conn, &puppet, hello);
}

/// An appliance whose driver is bound to its host.
fn bound(n: u128) -> Seed {
    Seed { needs: Needs { driver: DriverName::process(), kind: KindName::Custom, site: None }, ..seed(n) }
}

/// Worker `w1` in `/a` owns appliance 1, which is bound to that directory.
fn owned() -> World {
    let mut w = World::with(Config { freeze_fraction: 1.0, ..Config::default() }, Term::new(1), Restored::default());
    connect(&mut w, "w1", "/a");
    w.pass(SECOND);
    w.step(Event::Created(bound(1)));
    w.pass(SECOND);
    assert_eq!(w.holder(1), Some("w1"));
    w
}

/// As [`owned`], with `w1` lost for good and `w2` in `/b`.
fn lost() -> World {
    let mut w = owned();
    w.kill("w1");
    connect(&mut w, "w2", "/b");
    w.pass(SECOND * 5);
    assert_eq!((w.holder(1), state(&w)), (None, "orphaned"));
    // The brake counts the loss of the only worker.
    w.step(Event::Resume);
    w.pass(SECOND);
    assert_eq!((w.holder(1), state(&w)), (None, "orphaned"), "it waits for its site");
    w
}

fn state(w: &World) -> &'static str {
    let table = w.machine.table();
    table.slot(id(1)).and_then(|slot| table.get(slot)).map_or("gone", |row| row.state.name())
}

fn unbind(w: &mut World, from: Option<Site>) -> Option<Result<Option<Site>, UnbindRefused>> {
    w.step(Event::Unbind { id: id(1), site: from, number: 1 });
    w.unbound.pop()
}

fn refusal(w: &mut World) -> String {
    match unbind(w, None) {
        Some(Err(refused)) => refused.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_waits_for_a_lost_site_is_placed_elsewhere_once_it_is_unbound() {
    let mut w = lost();
    assert_eq!(unbind(&mut w, Some(site("/a"))), Some(Ok(Some(site("/a")))));
    w.pass(SECOND);
    assert_eq!(w.holder(1), Some("w2"));
    let sites = w.stored.iter().flat_map(|commit| &commit.grants).map(|op| match op {
        GrantOp::Grant { site, .. } => format!("grant {}", site.as_ref().map_or("none", Site::as_str)),
        GrantOp::Unbind { .. } => "unbind".to_owned(),
        other => format!("{other:?}"),
    });
    assert_eq!(sites.collect::<Vec<_>>(), ["grant h:/a", "unbind", "grant h:/b"]);
    // The worker of the old directory is back: it is another life, and the appliance is bound elsewhere by now.
    connect(&mut w, "w1", "/a");
    w.pass(SECOND * 5);
    assert_eq!((w.holder(1), w.violations.len()), (Some("w2"), 0));
}

#[test]
fn an_appliance_that_was_released_before_its_host_was_lost_is_unbound_as_well() {
    let mut w = owned();
    let puppet = w.puppets[&worker("w1")].clone();
    let envelope = w.envelope(puppet.conn);
    let token = puppet.held[&id(1)];
    w.step(Event::Pause(Pause { why: "so that nothing is granted".to_owned(), ..Pause::default() }));
    w.puppets.get_mut(&worker("w1")).expect("lives").held.clear();
    let released = vec![common::session::Release { appliance: id(1), token, carryover: Carryover::default() }];
    let ack = Ack { applied: puppet.version, released, ..Ack::default() };
    w.step(Event::Received(puppet.conn, envelope, ToCoordinator::Ack(ack)));
    w.step(Event::Tick);
    assert_eq!(state(&w), "unowned");
    assert_eq!(unbind(&mut w, None), Some(Ok(Some(site("/a")))));
    assert_eq!(unbind(&mut w, None), Some(Ok(None)), "there is nothing left to do");
}

#[test]
fn what_a_worker_may_act_on_is_not_unbound() {
    let mut w = owned();
    assert_eq!(refusal(&mut w), "w1 owns it");
    w.kill("w1");
    w.pass(Duration::from_millis(1_300));
    assert_eq!(refusal(&mut w), "w1 owns it; its lease ends in 1.0 s if no heartbeat comes");
    assert_eq!(state(&w), "owned");
}

#[test]
fn what_is_being_granted_or_released_is_not_unbound() {
    let mut w = World::new(Restored::default());
    connect(&mut w, "w1", "/a");
    w.pass(SECOND);
    w.hold_commits = true;
    w.step(Event::Created(bound(1)));
    w.step(Event::Tick);
    assert_eq!(refusal(&mut w), "w1 is about to be granted it");
    w.hold_commits = false;
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Durable(batch));
    let puppet = w.puppets[&worker("w1")].clone();
    w.hold_commits = true;
    let envelope = w.envelope(puppet.conn);
    let released = vec![common::session::Release {
        appliance: id(1),
        token: puppet.held[&id(1)],
        carryover: Carryover::default(),
    }];
    let ack = Ack { applied: puppet.version, released, ..Ack::default() };
    w.step(Event::Pause(Pause { why: "so that nothing is granted".to_owned(), ..Pause::default() }));
    w.puppets.get_mut(&worker("w1")).expect("lives").held.clear();
    w.step(Event::Received(puppet.conn, envelope, ToCoordinator::Ack(ack)));
    assert_eq!(refusal(&mut w), "a change of its ownership is being stored");
}

#[test]
fn what_a_worker_owns_against_the_table_is_not_unbound() {
    let mut w = lost();
    let conflicting = common::Token::new(Term::new(0), 9);
    w.puppets.insert(worker("w3"), Puppet { held: [(id(1), conflicting)].into(), ..Puppet::default() });
    connect(&mut w, "w3", "/b");
    assert!(refusal(&mut w).starts_with("w3 owns it against the table"));
}

#[test]
fn a_new_leader_that_awaits_workers_unbinds_nothing() {
    let member = crate::grants::StoredMember {
        worker: worker("w2"),
        incarnation: common::Incarnation::new(5),
        profile: at("/b"),
        departed: false,
        seal: None,
    };
    let grant = StoredGrant { site: Some(site("/a")), ever: true, ..StoredGrant::default() };
    let restored = Restored { appliances: vec![(bound(1), grant)], members: vec![member], ..Restored::default() };
    let mut w = World::in_term(Term::new(2), restored);
    assert_eq!(refusal(&mut w), "a new leader waits for w2 to say what they own");
    w.pass(SECOND * 6);
    assert_eq!(unbind(&mut w, None), Some(Ok(Some(site("/a")))));
}

#[test]
fn another_site_or_no_appliance_is_refused() {
    let mut w = lost();
    assert_eq!(unbind(&mut w, Some(site("/b"))), Some(Err(UnbindRefused::OtherSite(site("/a")))));
    w.step(Event::Unbind { id: id(9), site: None, number: 2 });
    assert_eq!(w.unbound.pop(), Some(Err(UnbindRefused::Unknown)));
    w.create([2]);
    w.step(Event::Unbind { id: id(2), site: None, number: 3 });
    assert_eq!(w.unbound.pop(), Some(Ok(None)), "it is bound to nothing");
}

#[test]
fn until_the_store_has_it_the_appliance_is_granted_to_no_worker() {
    let mut w = lost();
    w.hold_commits = true;
    assert_eq!(unbind(&mut w, None), None, "not answered yet");
    assert_eq!(refusal(&mut w), "a change of its ownership is being stored");
    // The old directory has a worker again, in the middle of it.
    connect(&mut w, "w3", "/a");
    let commits: Vec<_> = w.commits.drain(..).collect();
    for (batch, commit) in commits {
        if !commit.grants.iter().any(|op| matches!(op, GrantOp::Unbind { .. })) {
            w.step(Event::Durable(batch));
        } else {
            w.commits.push((batch, commit));
        }
    }
    w.pass(SECOND * 2);
    assert_eq!(state(&w), "orphaned");
    let (batch, _) = w.commits.remove(0);
    w.hold_commits = false;
    w.step(Event::Undone(batch));
    assert_eq!(w.unbound.pop(), Some(Err(UnbindRefused::NotStored)));
    w.pass(SECOND * 2);
    assert_eq!(w.holder(1), Some("w3"), "it is bound as before");
}

#[test]
fn what_the_next_owner_has_to_wait_for_is_kept() {
    let fence_delay = Duration::from_secs(7);
    let grant = StoredGrant { site: Some(site("/a")), ever: true, fence_delay, ..StoredGrant::default() };
    let mut w = World::in_term(Term::new(2), Restored { appliances: vec![(bound(1), grant)], ..Restored::default() });
    w.pass(SECOND);
    assert_eq!(unbind(&mut w, None), Some(Ok(Some(site("/a")))));
    let ops: Vec<_> = w.stored.iter().flat_map(|commit| &commit.grants).collect();
    assert!(matches!(ops[..], [GrantOp::Unbind { fence_delay: stored, .. }] if *stored == fence_delay), "{ops:?}");
}

/// A little generator, so that a failure names its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Who may act on an appliance: whoever lives and has taken it, and whoever was killed less than a lease ago.
fn actors(w: &World, killed: &[(Timestamp, Puppet)]) -> BTreeMap<ApplianceId, usize> {
    let mut actors = BTreeMap::new();
    let dead = killed.iter().filter(|(at, _)| w.now < *at + L).map(|(_, puppet)| puppet);
    for puppet in w.puppets.values().chain(dead) {
        for appliance in puppet.held.keys() {
            *actors.entry(*appliance).or_default() += 1;
        }
    }
    actors
}

#[test]
fn no_history_of_losses_and_unbinding_gives_an_appliance_two_owners() {
    let mut unbound = 0;
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let config = Config { freeze_fraction: 1.0, ..Config::default() };
        let mut w = World::with(config, Term::new(1), Restored::default());
        let (mut killed, mut next) = (Vec::new(), 0);
        w.pass(SECOND);
        (1..=3).for_each(|n| w.step(Event::Created(bound(n))));
        for _ in 0..120 {
            match dice.roll(8) {
                0 => {
                    next += 1;
                    let dir = ["/a", "/b"][dice.roll(2) as usize];
                    connect(&mut w, &format!("w{next}"), dir);
                }
                1 => {
                    let names: Vec<_> = w.puppets.keys().cloned().collect();
                    if let Some(name) = names.get(dice.roll(4) as usize) {
                        let puppet = w.puppets[name].clone();
                        w.kill(name.as_str());
                        killed.push((w.now, puppet));
                    }
                }
                2 => w.step(Event::Resume),
                3 => w.hold_commits = dice.roll(3) == 0,
                4 => {
                    for (batch, commit) in std::mem::take(&mut w.commits) {
                        w.stored.push(commit);
                        w.step(Event::Durable(batch));
                    }
                }
                _ => {
                    let n = 1 + u128::from(dice.roll(3));
                    w.step(Event::Unbind { id: id(n), site: None, number: 0 });
                }
            }
            w.pass(Duration::from_millis(100 * (1 + dice.roll(12))));
            let twice: BTreeSet<_> =
                actors(&w, &killed).into_iter().filter(|(_, n)| *n > 1).map(|(id, _)| id).collect();
            assert!(twice.is_empty(), "seed {seed}: {twice:?} have two owners");
        }
        unbound += w.unbound.iter().filter(|answer| matches!(answer, Ok(Some(_)))).count();
    }
    assert!(unbound > 40, "only {unbound} times unbound: the histories are too tame");
}
