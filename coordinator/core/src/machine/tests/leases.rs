//! Lives and streams: when a worker is gone, and when it is not.

use super::*;

#[test]
fn a_broken_stream_is_no_lost_lease() {
    let mut w = two();
    let before = w.puppets[&worker("w1")].clone();
    w.step(Event::Closed(before.conn));
    w.pass(Duration::from_millis(1000));
    w.connect("w1");
    w.pass(Duration::from_secs(3));
    assert_eq!(w.puppets[&worker("w1")].held, before.held, "the same grants under the same tokens");
    assert_eq!(w.moved(), 0);
}

#[test]
fn a_dead_worker_loses_its_appliances_after_its_lease_and_not_before() {
    let mut w = two();
    w.kill("w1");
    w.pass(Duration::from_millis(2200));
    assert_eq!(w.loads(), [5], "nobody may act on them yet");
    assert_eq!(w.gone, []);
    w.pass(Duration::from_millis(200));
    assert_eq!(w.loads(), [10]);
    assert!(matches!(&w.gone[..], [(life, _)] if life.worker == worker("w1")), "said once: {:?}", w.gone);
    assert_eq!(w.moved(), 5);
    assert!(
        matches!(w.events.last(), Some(RebalanceEvent::Closed { done: 5, end: RebalanceEnd::Completed, .. })),
        "{:?}",
        w.events
    );
}

#[test]
fn a_worker_that_says_it_leaves_is_gone_at_once() {
    let mut w = two();
    let puppet = w.puppets.remove(&worker("w1")).expect("lives");
    let envelope = Envelope { term: w.term, incarnation: puppet.incarnation, stream: puppet.stream };
    w.step(Event::Received(puppet.conn, envelope, ToCoordinator::Leave));
    w.step(Event::Tick);
    assert_eq!(w.loads(), [10]);
}

#[test]
fn a_second_process_of_one_name_waits_until_the_first_cannot_act() {
    let mut w = two();
    w.kill("w1");
    let conn = w.connect("w1");
    assert!(matches!(w.closed.last(), Some((c, Refusal::NameTaken(wait))) if *c == conn && *wait <= L * 115 / 100));
    w.puppets.remove(&worker("w1"));
    w.pass(Duration::from_millis(2400));
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [4, 6], "the least that fills the band: 5 is fair, 4 the floor");
}

#[test]
fn a_new_leader_gives_up_on_silent_members_when_their_lease_is_over() {
    let w = two();
    let mut next = World::in_term(Term::new(2), w.stored());
    next.puppets = w.puppets.clone();
    next.puppets.remove(&worker("w1"));
    next.connect("w2");
    next.pass(Duration::from_millis(2200));
    assert_eq!(next.loads(), [5], "w1 may still act");
    next.pass(Duration::from_millis(200));
    assert_eq!(next.loads(), [10]);
}

#[test]
fn messages_of_other_streams_and_terms_are_dropped_and_counted() {
    let mut w = two();
    let conn = w.puppets[&worker("w1")].conn;
    let right = w.envelope(conn);
    for wrong in [
        Envelope { term: Term::new(9), ..right },
        Envelope { incarnation: Some(Incarnation::new(9)), ..right },
        Envelope { stream: StreamNumber::new(9), ..right },
    ] {
        let (appliance, token) =
            w.puppets[&worker("w1")].held.iter().map(|(a, t)| (*a, *t)).next().expect("holds some");
        let release = Release { appliance, token, carryover: Carryover::default() };
        w.step(Event::Received(conn, wrong, ToCoordinator::Ack(Ack { released: vec![release], ..Ack::default() })));
    }
    assert_eq!(w.machine.counters().stale_messages, 3);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [5, 5]);
}

#[test]
fn a_leader_that_slept_calls_nobody_gone_for_it() {
    let mut w = two();
    w.now = w.now + Duration::from_secs(30);
    w.step(Event::Tick);
    w.pass(Duration::from_secs(3));
    assert_eq!(w.loads(), [5, 5]);
    assert_eq!(w.closed, vec![]);
}

#[test]
fn a_leader_that_fell_behind_waits_for_every_lease_anew() {
    let mut w = two();
    for _ in 0..9 {
        // Time is looked at often enough, but what workers said meanwhile is not read.
        w.now = w.now + Duration::from_millis(250);
        w.step(Event::FellBehind);
        w.step(Event::Tick);
    }
    w.pass(Duration::from_secs(3));
    assert_eq!((w.loads(), w.closed.len()), (vec![5, 5], 0));
}
