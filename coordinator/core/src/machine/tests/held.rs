//! Fence delays from owner to owner: who leaves how much, what is stored of it, and what the next owner is told.

use crate::grants::GrantOp;
use common::session::{Ack, Declined, DeltaEntry, GrantRef, Hello, Release, ToCoordinator};
use common::{ApplianceId, Incarnation};
use std::time::Duration;

use common::driver::{DriverCapabilities, DriverName};

use super::super::*;
use super::{Puppet, World, id, profile, seed, worker};

const DELAY: Duration = Duration::from_secs(10);

/// A worker opens a stream whose calls may take effect for `fence_delay` after its lease.
fn connect(w: &mut World, name: &str, fence_delay: Duration) -> StreamId {
    let conn = w.next_conn;
    w.next_conn += 1;
    let puppet = w.puppets.entry(worker(name)).or_default();
    puppet.conn = conn;
    puppet.stream = puppet.stream.next();
    let puppet = w.puppets[&worker(name)].clone();
    let hello = Hello { profile: unfenced(fence_delay), ..w.hello_of(name, &puppet) };
    w.say_hello(conn, &puppet, hello);
    conn
}

fn unfenced(fence_delay: Duration) -> Profile {
    let simulated = DriverCapabilities { fence_delay: Some(fence_delay), ..DriverCapabilities::of_all_kinds(None) };
    Profile { drivers: [(DriverName::simulated(), simulated)].into(), ..profile() }
}

/// A worker without tokens that has appliance 1.
fn owned() -> World {
    let mut w = World::new(Restored::default());
    connect(&mut w, "w1", DELAY);
    w.pass(Duration::from_secs(1));
    w.create([1]);
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w1"), vec![Duration::ZERO]));
    w
}

/// Has a worker say something about the appliance, which it then holds no more.
fn say(w: &mut World, name: &str, answers: impl FnOnce(ApplianceId, Token) -> Ack) {
    let puppet = w.puppets.get_mut(&worker(name)).expect("lives");
    let token = puppet.held.remove(&id(1)).expect("it holds the appliance");
    let (conn, applied) = (puppet.conn, puppet.version);
    let envelope = w.envelope(conn);
    w.step(Event::Received(conn, envelope, ToCoordinator::Ack(Ack { applied, ..answers(id(1), token) })));
}

fn release(w: &mut World, name: &str, fence_delay: Duration) {
    say(w, name, |appliance, token| {
        let carryover = Carryover { fence_delay, ..Carryover::default() };
        Ack { released: vec![Release { appliance, token, carryover }], ..Ack::default() }
    });
}

/// The fence delays that owners of the appliance were told, one after the other.
fn delays_sent(w: &World) -> Vec<Duration> {
    let deltas =
        w.sent.iter().filter_map(|(_, message)| if let ToWorker::Delta(d) = message { Some(&d.entries) } else { None });
    let fence_delay = |entry: &DeltaEntry<()>| match entry {
        DeltaEntry::Grant { carryover, .. } => Some(carryover.fence_delay),
        _ => None,
    };
    deltas.flatten().filter_map(fence_delay).collect()
}

/// What the store was told: `true` for a grant.
fn stored(w: &World) -> Vec<(bool, Duration)> {
    let ops = w.stored.iter().flat_map(|commit| &commit.grants);
    ops.filter_map(|op| match op {
        GrantOp::Grant { fence_delay, .. } => Some((true, *fence_delay)),
        GrantOp::Free { fence_delay, .. } => Some((false, *fence_delay)),
        GrantOp::Unbind { .. } | GrantOp::Remove { .. } => None,
    })
    .collect()
}

#[test]
fn an_owner_that_is_lost_leaves_its_fence_delay_in_full() {
    let mut w = owned();
    assert_eq!(stored(&w), [(true, DELAY)], "known to whoever leads when it is lost");
    w.kill("w1");
    connect(&mut w, "w2", Duration::from_secs(3));
    w.pass(Duration::from_secs(3));
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w2"), vec![Duration::ZERO, DELAY]));
    assert_eq!(stored(&w)[1], (true, DELAY), "lost at once, it leaves what it had to wait itself");
}

#[test]
fn an_owner_that_tokens_fence_leaves_none_of_its_own() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.create([1]);
    w.kill("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(4));
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w2"), vec![Duration::ZERO; 2]));
    assert_eq!(stored(&w), [(true, Duration::ZERO); 2]);
}

#[test]
fn a_release_says_what_is_left_and_nobody_counts_it_down() {
    let mut w = owned();
    let left = Duration::from_secs(4);
    w.pass(Duration::from_secs(1));
    let conn = w.puppets[&worker("w1")].conn;
    let envelope = w.envelope(conn);
    w.step(Event::Pause(Pause { why: "so that nobody takes it".to_owned(), ..Pause::default() }));
    release(&mut w, "w1", left);
    w.step(Event::Received(conn, envelope, ToCoordinator::Leave));
    w.puppets.clear();
    w.pass(Duration::from_secs(3_600));
    w.step(Event::Resume);
    connect(&mut w, "w2", DELAY);
    w.pass(Duration::from_secs(1));
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w2"), vec![Duration::ZERO, left]));
    assert_eq!(stored(&w), [(true, DELAY), (false, left), (true, DELAY)]);
    release(&mut w, "w2", Duration::ZERO);
    w.pass(Duration::from_secs(1));
    assert_eq!(delays_sent(&w).last(), Some(&Duration::ZERO), "who held it has served it");
}

#[test]
fn a_release_leaves_no_longer_fence_delay_than_its_worker_can_have() {
    let day = Duration::from_secs(86_400);
    let mut w = owned();
    w.pass(Duration::from_secs(1));
    release(&mut w, "w1", day);
    w.pass(Duration::from_secs(1));
    assert_eq!(delays_sent(&w).last(), Some(&DELAY), "its own driver's");

    // An owner is lost, and a worker that never had the appliance says a release of it.
    let mut w = World::new(Restored::default());
    w.connect("w1");
    connect(&mut w, "w2", DELAY);
    w.pass(Duration::from_secs(1));
    w.create([1]);
    let owner = w.holder(1).expect("one has it").to_owned();
    let owner = owner.as_str();
    let other = if owner == "w1" { "w2" } else { "w1" };
    w.step(Event::Pause(Pause { why: "so that nobody takes it".to_owned(), ..Pause::default() }));
    w.kill(owner);
    w.pass(Duration::from_secs(6));
    w.puppets.get_mut(&worker(other)).expect("lives").held.insert(id(1), Token::new(Term::new(1), 1));
    release(&mut w, other, day);
    w.step(Event::Resume);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some(other));
    assert!(delays_sent(&w).last().is_some_and(|told| *told <= DELAY), "{:?}", delays_sent(&w));
}

#[test]
fn an_offer_that_nobody_took_keeps_the_fence_delay() {
    let mut w = owned();
    let left = Duration::from_secs(4);
    w.hold_commits = true;
    release(&mut w, "w1", left);
    w.pass(Duration::from_millis(100));
    // Stored, and its stream breaks before it is told.
    let (batch, _) = w.commits.remove(0);
    let conn = w.puppets[&worker("w1")].conn;
    w.step(Event::Closed(conn));
    w.hold_commits = false;
    w.step(Event::Durable(batch));
    assert_eq!(delays_sent(&w).len(), 1);
    connect(&mut w, "w1", DELAY);
    w.pass(Duration::from_secs(1));
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w1"), vec![Duration::ZERO, left]));

    // Told, and declined.
    release(&mut w, "w1", left);
    w.pass(Duration::from_millis(100));
    assert_eq!(w.holder(1), Some("w1"));
    let before = delays_sent(&w).len();
    w.hold_commits = true;
    release(&mut w, "w1", left);
    w.pass(Duration::from_millis(100));
    let (batch, commit) = w.commits.remove(0);
    let Some(GrantOp::Grant { to, .. }) = commit.grants.last() else { panic!("a grant is written") };
    let token = to.token;
    w.hold_commits = false;
    let puppet = w.puppets.remove(&worker("w1")).expect("lives");
    w.step(Event::Durable(batch));
    let version = puppet.version + 1;
    w.puppets.insert(worker("w1"), Puppet { version, ..puppet });
    let conn = w.puppets[&worker("w1")].conn;
    let envelope = w.envelope(conn);
    let declined = Ack {
        applied: version,
        declined: vec![Declined { appliance: id(1), token, reason: String::new() }],
        ..Ack::default()
    };
    w.step(Event::Received(conn, envelope, ToCoordinator::Ack(declined)));
    w.pass(Duration::from_secs(6));
    assert_eq!(w.holder(1), Some("w1"));
    assert_eq!(delays_sent(&w)[before..], [left, left], "offered, declined, offered again");
}

#[test]
fn an_owner_that_forgot_its_grant_leaves_its_fence_delay_in_full() {
    let mut w = owned();
    w.puppets.get_mut(&worker("w1")).expect("lives").held.clear();
    connect(&mut w, "w1", DELAY);
    w.pass(Duration::from_secs(1));
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w1"), vec![Duration::ZERO, DELAY]), "it may have acted");
}

#[test]
fn a_removal_that_nobody_asked_for_leaves_the_fence_delay_in_full() {
    let mut w = owned();
    say(&mut w, "w1", |appliance, token| Ack { removed: vec![GrantRef::new(appliance, token)], ..Ack::default() });
    w.pass(Duration::from_secs(1));
    assert_eq!((w.holder(1), delays_sent(&w)), (Some("w1"), vec![Duration::ZERO, DELAY]));
}

/// What the store has of the appliance.
fn restored(grant: StoredGrant) -> Restored {
    Restored { appliances: vec![(seed(1), StoredGrant { ever: true, ..grant })], ..Restored::default() }
}

#[test]
fn a_new_leader_knows_the_fence_delay_of_an_owner_of_which_nothing_is_left() {
    let lost = Granted { worker: worker("w0"), incarnation: Incarnation::new(7), token: Token::new(Term::new(1), 1) };
    for (granted, fence_delay) in [(Some(lost), DELAY), (None, Duration::from_secs(4))] {
        let grant = StoredGrant { granted, fence_delay, ..StoredGrant::default() };
        let mut w = World::in_term(Term::new(2), restored(grant));
        connect(&mut w, "w1", Duration::from_secs(1));
        w.pass(Duration::from_secs(6));
        assert_eq!((w.holder(1), delays_sent(&w)), (Some("w1"), vec![fence_delay]));
        assert_eq!(stored(&w), [(true, fence_delay)]);
    }
}

#[test]
fn who_acted_against_the_table_leaves_a_fence_delay_as_well() {
    let left = Duration::from_secs(7);
    for lost in [false, true] {
        // Known to nobody's table: as after a store was put back to an older state.
        let conflicting = Token::new(Term::new(0), 9);
        let mut w = World::new(restored(StoredGrant::default()));
        w.puppets.insert(worker("w1"), Puppet { held: [(id(1), conflicting)].into(), ..Puppet::default() });
        connect(&mut w, "w1", DELAY);
        w.pass(Duration::from_secs(6));
        assert_eq!((w.holder(1), delays_sent(&w)), (None, vec![]), "somebody acts on it");
        if lost {
            w.kill("w1");
        } else {
            // The welcome told it to give up what is not its own.
            w.puppets.get_mut(&worker("w1")).expect("lives").held.insert(id(1), conflicting);
            release(&mut w, "w1", left);
        }
        connect(&mut w, "w2", DELAY);
        w.pass(Duration::from_secs(4));
        let fence_delay = if lost { DELAY } else { left };
        assert_eq!(delays_sent(&w), [fence_delay]);
        assert_eq!(stored(&w), [(false, fence_delay), (true, DELAY)], "for a leader that comes in between");
    }
}

#[test]
fn a_fence_delay_that_is_waited_for_is_shown_until_it_is_over() {
    let mut w = owned();
    let summary = |w: &World| w.machine.explain(w.now, id(1)).expect("it is known").summary;
    assert_eq!((w.machine.fence_waits(w.now), summary(&w).as_str()), (0, "it is new"));
    w.kill("w1");
    w.pass(Duration::from_secs(3));
    let next = "; its next owner waits 12 s before it acts, because calls of a former one may still take effect";
    assert!(summary(&w).ends_with(next), "{}", summary(&w));
    connect(&mut w, "w2", Duration::from_secs(3));
    w.pass(Duration::from_secs(2));
    assert_eq!((w.holder(1), w.machine.fence_waits(w.now)), (Some("w2"), 1));
    let owner = "its owner waits about ";
    assert!(summary(&w).contains(owner), "{}", summary(&w));
    w.pass(Duration::from_secs(12));
    assert_eq!((w.machine.fence_waits(w.now), summary(&w).contains(owner)), (0, false));
}
