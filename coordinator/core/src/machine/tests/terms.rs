//! Terms that workers have met.

use super::*;

#[test]
fn a_higher_term_is_never_acted_against() {
    let mut w = World::new(Restored::default());
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w1", &newcomer()) };
    w.say_hello(1, &newcomer(), hello);
    assert_eq!(w.raised, Some(Term::new(7)));
}

#[test]
fn a_higher_term_is_begun_above_only_after_this_one_lasted() {
    let raise_after = Duration::from_secs(2);
    let mut w = World::new(Restored { raise_after, ..Restored::default() });
    w.connect("w1");
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w2", &newcomer()) };
    w.say_hello(9, &newcomer(), hello.clone());
    assert_eq!((w.raised, w.closed.pop()), (None, Some((9, Refusal::TermAhead(Term::new(7), raise_after)))));
    w.pass(raise_after);
    assert_eq!(w.puppets[&worker("w1")].incarnation, Some(Incarnation::embedded(Term::new(1), 1)), "is led meanwhile");
    w.say_hello(10, &newcomer(), hello);
    assert_eq!(w.raised, Some(Term::new(7)));
}

#[test]
fn a_pause_outlives_the_term_in_which_it_was_ordered() {
    let mut w = World::new(Restored {
        paused: Some(Pause { why: "maintenance".to_owned(), ..Pause::default() }),
        ..Restored::default()
    });
    w.connect("w1");
    w.create([1]);
    w.pass(Duration::from_secs(2));
    assert_eq!((w.holder(1), w.machine.waiting(w.now)), (None, Some("paused: maintenance".to_owned())));
    w.step(Event::Resume);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn a_life_that_is_not_known_raises_no_term() {
    let mut w = World::new(Restored::default());
    let unknown = Puppet { incarnation: Some(Incarnation::new(77)), ..newcomer() };
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w1", &unknown) };
    w.say_hello(1, &unknown, hello);
    assert_eq!((w.raised, w.closed), (None, vec![(1, Refusal::IncarnationOver)]));
}

#[test]
fn a_term_that_no_cluster_reaches_is_refused() {
    let mut w = World::new(Restored::default());
    let hello = Hello { highest_term: Term::new(u64::MAX), ..w.hello_of("w1", &newcomer()) };
    w.say_hello(1, &newcomer(), hello);
    assert_eq!(w.raised, None);
    assert_eq!(w.closed, [(1, Refusal::ImplausibleTerm(Term::new(u64::MAX)))]);
}
