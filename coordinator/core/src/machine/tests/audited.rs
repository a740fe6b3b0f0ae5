//! Digests of what workers hold, compared with the table; and since when appliances have no owner.

use super::super::*;
use super::{L, World, digest_report, edition, id, worker};
use crate::audit::{AuditCounts, PAUSE};
use crate::violation::ViolationKind;
use common::Digest;
use common::kind::KindName;
use common::session::{Envelope, OwnedDigest};

impl World {
    /// A worker with three appliances.
    fn three() -> Self {
        let mut w = Self::new(Restored::default());
        w.connect("w1");
        w.pass(Duration::from_secs(1));
        w.create(1..=3);
        w.pass(Duration::from_millis(200));
        assert_eq!(w.loads(), [3]);
        w
    }

    fn claim(&self, name: &str) -> OwnedDigest {
        let puppet = &self.puppets[&worker(name)];
        OwnedDigest { applied: puppet.version, digest: puppet.held.iter().map(|(id, token)| (*id, *token)).collect() }
    }

    /// A worker says what it holds.
    fn audit(&mut self, name: &str, claim: OwnedDigest) {
        let conn = self.puppets[&worker(name)].conn;
        let envelope = self.envelope(conn);
        self.step(Event::Received(conn, envelope, digest_report(claim)));
    }

    fn kinds(&self) -> Vec<(ViolationKind, u64)> {
        self.machine.counters().kinds.iter().filter(|(_, n)| *n > 0).collect()
    }

    fn unowned(&self) -> Vec<(u128, u64)> {
        let table = self.machine.table();
        let one = |(since, slot)| {
            let entry = table.get(slot).expect("in the table");
            let age: Duration = self.now.since(since);
            (u128::from_be_bytes(*entry.id.as_bytes()), age.as_millis() as u64)
        };
        self.machine.unowned().oldest().map(one).collect()
    }
}

#[test]
fn an_honest_worker_agrees_at_every_moment_it_may_be_asked() {
    let mut w = World::three();
    w.audit("w1", w.claim("w1"));
    w.connect("w2");
    for _ in 0..20 {
        w.pass(Duration::from_millis(100));
        for name in ["w1", "w2"] {
            w.audit(name, w.claim(name));
        }
    }
    assert_eq!(w.loads(), [2, 1], "appliances moved meanwhile");
    let counts = w.machine.audits();
    assert_eq!((counts.agreed, counts.in_flight, counts.differed), (41, 0, 0));
    assert_eq!(w.kinds(), []);
}

#[test]
fn what_was_not_applied_yet_is_not_compared() {
    let mut w = World::three();
    let before = w.claim("w1");
    w.create([4]);
    w.audit("w1", before);
    w.audit("w1", OwnedDigest { applied: before.applied + 100, digest: Digest::default() });
    assert_eq!((w.machine.audits().in_flight, w.closed.len()), (2, 0));
}

#[test]
fn a_digest_of_another_stream_or_term_does_not_count() {
    let mut w = World::three();
    let wrong = OwnedDigest { digest: Digest::default(), ..w.claim("w1") };
    let conn = w.puppets[&worker("w1")].conn;
    let envelope = w.envelope(conn);
    w.step(Event::Received(conn, Envelope { stream: envelope.stream.next(), ..envelope }, digest_report(wrong)));
    w.step(Event::Received(conn, Envelope { term: Term::new(9), ..envelope }, digest_report(wrong)));
    assert_eq!((w.machine.audits(), w.machine.counters().stale_messages), (AuditCounts::default(), 2));
    assert_eq!(w.closed, []);
}

#[test]
fn a_lost_grant_is_found_named_and_granted_anew() {
    let mut w = World::three();
    let token = w.puppets.get_mut(&worker("w1")).and_then(|p| p.held.remove(&id(2))).expect("held");
    w.audit("w1", w.claim("w1"));
    let conn = w.puppets[&worker("w1")].conn;
    assert_eq!(w.closed, [(conn, Refusal::Differs)]);
    assert_eq!(w.holder(2), Some("w1"), "nothing is decided before it has said what it holds");
    w.connect("w1");
    w.pass(Duration::from_millis(200));
    assert_eq!(w.kinds(), [(ViolationKind::DigestDiffers, 1), (ViolationKind::GrantLost, 1)]);
    assert!(w.violations[0].starts_with("w1 holds 2 appliances with digest "), "{:?}", w.violations);
    let lost = format!("w1 had taken and does not hold any more: {} under {token}", id(2));
    assert_eq!(w.violations[1], lost);
    assert!(w.puppets[&worker("w1")].held[&id(2)] > token, "a new token");
    w.audit("w1", w.claim("w1"));
    assert_eq!((w.machine.audits().agreed, w.violations.len()), (1, 2));
}

#[test]
fn a_grant_under_another_token_is_taken_back_and_given_anew() {
    let mut w = World::three();
    let puppet = w.puppets.get_mut(&worker("w1")).expect("lives");
    let token = puppet.held[&id(1)];
    // A token of nobody's, below those that were given.
    let other = Token::new(Term::new(0), 77);
    puppet.held.insert(id(1), other);
    w.audit("w1", w.claim("w1"));
    w.connect("w1");
    w.pass(Duration::from_millis(200));
    assert_eq!(w.kinds(), [(ViolationKind::DigestDiffers, 1), (ViolationKind::GrantLost, 1)]);
    assert!(w.puppets[&worker("w1")].held[&id(1)] > token);
    w.audit("w1", w.claim("w1"));
    assert_eq!(w.machine.audits().agreed, 1);
}

#[test]
fn a_grant_too_many_is_ended_before_anybody_gets_it() {
    let mut w = World::three();
    let stray = Token::new(Term::new(0), 5);
    w.puppets.get_mut(&worker("w1")).expect("lives").held.insert(id(9), stray);
    w.audit("w1", w.claim("w1"));
    w.connect("w1");
    w.pass(Duration::from_millis(200));
    assert_eq!(w.kinds(), [(ViolationKind::UnknownAppliance, 1), (ViolationKind::DigestDiffers, 1)]);
    assert!(!w.puppets[&worker("w1")].held.contains_key(&id(9)), "the welcome did not keep it");
    w.audit("w1", w.claim("w1"));
    assert_eq!(w.machine.audits().agreed, 1);
}

#[test]
fn a_worker_that_cannot_count_is_not_sent_round_in_circles() {
    let mut w = World::three();
    let wrong = |w: &World| OwnedDigest { digest: Digest { count: 1, sum: 1 }, ..w.claim("w1") };
    let seconds = 4 * PAUSE.0.as_secs();
    for _ in 0..seconds {
        w.audit("w1", wrong(&w));
        if w.closed.last().is_some_and(|(conn, _)| *conn == w.puppets[&worker("w1")].conn) {
            w.connect("w1");
        }
        w.pass(Duration::from_secs(1));
    }
    assert_eq!(w.closed.len(), 3, "at 0, 30 and 90 s");
    assert_eq!(w.kinds(), [(ViolationKind::DigestDiffers, 3)]);
    assert_eq!(w.loads(), [3], "and nothing is taken from it");
}

#[test]
fn time_without_an_owner_counts_from_when_the_leader_knows_until_a_worker_took_it() {
    let mut w = World::new(Restored::default());
    w.pass(Duration::from_secs(1));
    w.create([1]);
    w.pass(Duration::from_secs(2));
    w.create([2]);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.unowned(), [(1, 3_000), (2, 1_000)]);
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    assert_eq!((w.loads(), w.unowned()), (vec![2], vec![]));
    w.kill("w1");
    w.pass(L);
    assert_eq!(w.unowned(), [], "it may still act");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.unowned().len(), 2);
    assert!(w.unowned().iter().all(|(_, age)| (500..1_000).contains(age)), "{:?}", w.unowned());
    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 1, deleting: true });
    w.connect("w2");
    // Its only worker vanished, so that the brake holds.
    w.step(Event::Resume);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.unowned(), []);
}

#[test]
fn how_long_it_had_no_owner_is_told_when_it_gets_one() {
    let mut w = World::new(Restored::default());
    w.pass(Duration::from_secs(1));
    w.create([1]);
    w.pass(Duration::from_secs(2));
    assert!(w.regained.is_empty());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.regained.len(), 1);
    assert!((2_000..3_000).contains(&w.regained[0].lasted.as_millis()), "{:?}", w.regained);
    assert_eq!((w.regained[0].cause, w.regained[0].rebalance), (UnownedCause::Created, None));
    let conn = w.puppets[&worker("w1")].conn;
    w.step(Event::Closed(conn));
    w.connect("w1");
    assert_eq!(w.regained.len(), 1, "a stream is no owner");
}

#[test]
fn a_hand_off_is_told_from_a_loss() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(5));
    w.create(1..=4);
    w.pass(Duration::from_secs(1));
    w.regained.clear();
    w.connect("w2");
    w.pass(Duration::from_secs(10));
    let gained = w.loads()[1];
    assert!(gained > 0, "{:?}", w.loads());
    let moved: Vec<_> = w.regained.drain(..).map(|regained| (regained.cause, regained.rebalance.is_some())).collect();
    assert_eq!(moved, vec![(UnownedCause::HandOff, true); gained]);
    let conn = w.puppets[&worker("w2")].conn;
    let envelope = w.envelope(conn);
    w.puppets.remove(&worker("w2"));
    w.step(Event::Received(conn, envelope, common::session::ToCoordinator::Leave));
    w.pass(Duration::from_secs(10));
    let lost: Vec<_> = w.regained.drain(..).map(|regained| regained.cause).collect();
    assert_eq!(lost, vec![UnownedCause::Lost; gained]);
}

#[test]
fn a_new_leader_counts_from_its_start_and_takes_owners_at_their_word() {
    let w = World::three();
    let mut restored = Restored::default();
    for (n, (_, entry)) in w.machine.table().iter().enumerate() {
        let granted = entry.state.grant().cloned().filter(|_| n > 0);
        let stored = StoredGrant { granted, ever: true, ..StoredGrant::default() };
        restored.appliances.push((super::seed(n as u128 + 1), stored));
    }
    for m in w.machine.membership().members() {
        let (worker, incarnation, profile) = (m.worker.clone(), m.incarnation, m.profile.clone());
        restored.members.push(StoredMember { worker, incarnation, profile, departed: false, seal: None });
    }
    let mut next = World::in_term(Term::new(2), restored);
    assert_eq!(next.unowned(), [(1, 0)]);
    next.pass(Duration::from_millis(700));
    assert_eq!(next.unowned(), [(1, 700)]);
}
