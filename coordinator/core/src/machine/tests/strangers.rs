//! Who can open a stream and knows everything that is public: nothing that is said without the secret of a life counts.

use super::*;
use crate::membership::MAX_LIVES;
use common::{PLAUSIBLE_STREAMS, PLAUSIBLE_TERMS};

/// The stream of somebody who is no worker of the test.
const STRANGE: StreamId = 900;

/// What somebody says in the name of `w1`, whose life and newest stream it knows, with this secret.
fn strange_hello(w: &World, stream: u64, said: Option<LifeSecret>) -> (Puppet, Hello) {
    let puppet = w.puppets[&worker("w1")].clone();
    let hello = Hello { owned: vec![], secret: said, ..w.hello_of("w1", &puppet) };
    (Puppet { stream: StreamNumber::new(stream), held: BTreeMap::new(), ..puppet }, hello)
}

/// The reason for which a stranger was refused.
fn refused(w: &mut World) -> Option<Refusal> {
    let at = w.closed.iter().position(|(conn, _)| *conn == STRANGE)?;
    Some(w.closed.remove(at).1)
}

#[test]
fn without_its_secret_nobody_takes_the_stream_of_a_life_or_prolongs_it() {
    let mut w = two();
    for said in [None, Some(secret("w2"))] {
        for stream in [0, 1, 2, 3, u64::MAX] {
            w.now = w.now + Duration::from_millis(10);
            w.step(Event::Tick);
            let before = w.machine.workers(w.now);
            let (puppet, hello) = strange_hello(&w, stream, said.clone());
            w.say_hello(STRANGE, &puppet, Hello { highest_term: Term::new(2), ..hello });
            assert_eq!(refused(&mut w), Some(Refusal::NotProven));
            assert_eq!(w.machine.workers(w.now), before, "as if nothing had been said");
        }
    }
    assert_eq!((w.raised, w.closed.len(), w.violations.len()), (None, 0, 0));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [5, 5]);
}

#[test]
fn an_overtaken_or_far_too_high_stream_is_no_heartbeat() {
    let mut w = two();
    w.kill("w2");
    let puppet = w.puppets.remove(&worker("w1")).expect("lives");
    let newest = puppet.stream.get();
    w.puppets.clear();
    for _ in 0..30 {
        w.now = w.now + Duration::from_millis(100);
        for (stream, why) in [
            (newest, Refusal::Superseded),
            (u64::MAX, Refusal::ImplausibleStream(StreamNumber::new(u64::MAX))),
            (
                newest + PLAUSIBLE_STREAMS + 1,
                Refusal::ImplausibleStream(StreamNumber::new(newest + PLAUSIBLE_STREAMS + 1)),
            ),
        ] {
            let late = Puppet { stream: StreamNumber::new(stream), ..puppet.clone() };
            let hello = w.hello_of("w1", &late);
            if w.machine.membership().lives().next().is_some() {
                w.say_hello(STRANGE, &late, hello);
                assert!(refused(&mut w).is_some_and(|refusal| refusal == why || refusal == Refusal::IncarnationOver));
            }
        }
        w.step(Event::Tick);
    }
    assert_eq!(w.gone.len(), 2, "the lease of a worker that is dead ends, whatever is said in its name");
}

#[test]
fn a_worker_that_opened_very_many_streams_is_let_in() {
    let mut w = two();
    let puppet = w.puppets.get_mut(&worker("w1")).expect("lives");
    puppet.stream = StreamNumber::new(puppet.stream.get() + PLAUSIBLE_STREAMS - 1);
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [5, 5]);
}

#[test]
fn the_next_leader_still_asks_for_the_secret() {
    let w = two();
    let members = w.machine.membership().members().map(|m| StoredMember {
        worker: m.worker.clone(),
        incarnation: m.incarnation,
        profile: m.profile.clone(),
        departed: false,
        seal: w.machine.membership().seal_of(&m.life()),
    });
    let sealed: Vec<_> = w.stored.iter().flat_map(|commit| &commit.put_members).map(|m| m.seal).collect();
    assert_eq!(sealed, [Some(secret("w1").seal()), Some(secret("w2").seal())], "as it was stored");
    let mut next = World::in_term(Term::new(2), Restored { members: members.collect(), ..Restored::default() });
    next.puppets = w.puppets.clone();
    let (puppet, hello) = strange_hello(&next, 9, None);
    next.say_hello(STRANGE, &puppet, hello);
    assert_eq!(refused(&mut next), Some(Refusal::NotProven));
    next.connect("w1");
    assert_eq!(next.closed, []);
}

#[test]
fn a_life_of_a_worker_that_knows_no_secrets_is_led_until_it_says_one() {
    let mut w = World::new(Restored::default());
    let hello = Hello { secret: None, ..w.hello_of("w1", &newcomer()) };
    let conn = w.next_conn;
    w.next_conn += 1;
    w.puppets.insert(worker("w1"), Puppet { conn, ..newcomer() });
    w.say_hello(conn, &newcomer(), hello.clone());
    let puppet = w.puppets[&worker("w1")].clone();
    assert!(puppet.incarnation.is_some(), "it is welcomed");
    let again = Puppet { stream: puppet.stream.next(), ..puppet.clone() };
    w.say_hello(conn + 1, &again, hello.clone());
    assert_eq!(w.closed, [(conn, Refusal::Superseded)]);
    let sealing = Puppet { stream: again.stream.next(), ..puppet };
    w.say_hello(conn + 2, &sealing, Hello { secret: Some(secret("w1")), ..hello.clone() });
    let unsealed = Puppet { stream: sealing.stream.next(), ..sealing };
    w.say_hello(STRANGE, &unsealed, hello);
    assert_eq!(refused(&mut w), Some(Refusal::NotProven), "from then on nobody else speaks for it");
}

#[test]
fn a_claim_of_a_life_waits_for_its_moment_and_the_life_is_led_meanwhile() {
    let raise_after = Duration::from_secs(2);
    let mut w = World::new(Restored { raise_after, ..Restored::default() });
    w.connect("w1");
    let puppet = w.puppets.get_mut(&worker("w1")).expect("lives");
    (puppet.stream, puppet.conn) = (puppet.stream.next(), 50);
    let puppet = puppet.clone();
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w1", &puppet) };
    w.say_hello(50, &puppet, hello);
    assert!(w.closed.iter().all(|(conn, _)| *conn != 50), "it is welcomed: {:?}", w.closed);
    w.pass(Duration::from_millis(1900));
    assert_eq!(w.raised, None);
    w.pass(Duration::from_millis(100));
    assert_eq!(w.raised, Some(Term::new(7)));
}

#[test]
fn a_claim_far_ahead_is_shown_once_and_not_followed() {
    let mut w = two();
    for _ in 0..3 {
        let puppet = w.puppets.get_mut(&worker("w1")).expect("lives");
        puppet.stream = puppet.stream.next();
        let puppet = puppet.clone();
        let highest_term = Term::new(1 + PLAUSIBLE_TERMS + 1);
        w.say_hello(puppet.conn, &puppet, Hello { highest_term, ..w.hello_of("w1", &puppet) });
    }
    assert_eq!((w.raised, w.violations.len()), (None, 1), "{:?}", w.violations);
    let puppet = w.puppets[&worker("w1")].clone();
    let puppet = Puppet { stream: puppet.stream.next(), ..puppet };
    let highest_term = Term::new(1 + PLAUSIBLE_TERMS);
    w.say_hello(puppet.conn, &puppet, Hello { highest_term, ..w.hello_of("w1", &puppet) });
    assert_eq!(w.raised, Some(highest_term));
}

#[test]
fn lives_are_given_out_at_a_bounded_rate() {
    let mut w = World::new(Restored::default());
    let ask = |w: &mut World, n: usize| {
        let hello = w.hello_of(&format!("x{n}"), &newcomer());
        w.say_hello(STRANGE, &newcomer(), hello);
        refused(w)
    };
    let given = (0..MAX_LIVES).take_while(|n| ask(&mut w, *n).is_none()).count();
    assert_eq!(given, 1_000);
    let wait = Duration::from_millis(20);
    assert_eq!(ask(&mut w, given), Some(Refusal::Crowded(wait)));
    w.now = w.now + wait;
    assert_eq!((ask(&mut w, given), ask(&mut w, given + 1)), (None, Some(Refusal::Crowded(wait))));
}
