//! Owners that the table does not know, and claims that cannot be true.

use super::*;

#[test]
fn a_conflicting_owner_keeps_an_appliance_from_all_others_until_it_has_ended() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    // Known to nobody's table: as after a store was put back to an older state.
    let conflicting = Token::new(Term::new(0), 9);
    w.hold_commits = true;
    w.create([1]);
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Undone(batch));
    w.puppets.get_mut(&worker("w1")).expect("lives").held.insert(id(1), conflicting);
    w.hold_commits = false;
    let conn = w.connect("w1");
    assert_eq!(w.violations.len(), 1);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), None, "granted although somebody acts on it");
    let envelope = w.envelope(conn);
    let release = Release {
        appliance: id(1),
        token: conflicting,
        carryover: Carryover {
            progress: Progress { failed_boots: 3, ..Progress::default() },
            fence_delay: Duration::ZERO,
        },
    };
    let applied = w.puppets[&worker("w1")].version;
    w.step(Event::Received(
        conn,
        envelope,
        ToCoordinator::Ack(Ack { applied, released: vec![release], ..Ack::default() }),
    ));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w1"));
}

impl World {
    /// A worker claims to own these beside what it owns, on a new stream. Returns that stream.
    fn claim_to_own(&mut self, name: &str, claimed: impl IntoIterator<Item = (ApplianceId, Token)>) -> StreamId {
        let puppet = self.puppets.get_mut(&worker(name)).expect("lives");
        puppet.held.extend(claimed);
        self.connect(name)
    }

    /// A worker says that it released these.
    fn release(&mut self, name: &str, released: impl IntoIterator<Item = (ApplianceId, Token)>, carryover: &Carryover) {
        let puppet = self.puppets[&worker(name)].clone();
        let release = |(appliance, token)| Release { appliance, token, carryover: carryover.clone() };
        let released = released.into_iter().map(release).collect();
        let ack = Ack { applied: puppet.version, released, ..Ack::default() };
        self.step(Event::Received(puppet.conn, self.envelope(puppet.conn), ToCoordinator::Ack(ack)));
    }

    fn held_by(&self, name: &str) -> BTreeMap<ApplianceId, Token> {
        self.puppets[&worker(name)].held.clone()
    }

    fn false_claims(&self) -> u64 {
        let kinds = self.machine.counters().kinds;
        kinds.iter().filter(|(kind, _)| *kind == ViolationKind::ClaimedGrant).map(|(_, n)| n).sum()
    }
}

/// Found by the simulation with seed 69916.
#[test]
fn the_end_of_a_conflict_over_what_is_owned_lets_it_be_moved() {
    let mut w = two();
    let foreign: Vec<_> = w.held_by("w1").keys().map(|id| (*id, Token::new(Term::new(0), 9))).collect();
    w.claim_to_own("w2", foreign.clone());
    w.connect("w3");
    w.pass(Duration::from_secs(2));
    assert_eq!(w.loads(), [5, 3, 2], "what a worker claims stays where it is");
    let reason = w.machine.explain(w.now, foreign[0].0).expect("known").summary;
    assert_eq!(reason, "w2 owns it against the table; no other worker gets it before that has ended");
    let plans = w.machine.counters().plans;
    w.release("w2", foreign, &Carryover::default());
    w.step(Event::Tick);
    assert!(w.machine.counters().plans > plans, "planned at once, and not with the next other cause");
    w.pass(Duration::from_secs(2));
    assert_eq!(w.loads(), [4, 3, 3]);
}

#[test]
fn a_grant_of_another_life_cannot_be_claimed() {
    let mut w = two();
    let before = w.held_by("w1");
    let own = *w.held_by("w2").values().next().expect("owns some");
    w.claim_to_own("w2", before.clone());
    assert_eq!((w.false_claims(), w.violations.len()), (1, 1), "{:?}", w.violations);
    assert!(w.violations[0].starts_with("w2 claims what was never granted to it: "), "{}", w.violations[0]);
    // Its own token, for what it was not given for.
    w.claim_to_own("w2", before.keys().map(|id| (*id, own)));
    assert_eq!((w.false_claims(), w.violations.len()), (2, 2), "{:?}", w.violations);
    assert_eq!(w.held_by("w2").len(), 5, "told that it owns nothing of it");
    w.connect("w3");
    w.pass(Duration::from_secs(2));
    assert!(w.held_by("w1").len() < 5 && w.loads().iter().max() == Some(&4), "nothing is kept from being moved");
}

#[test]
fn what_the_store_gives_to_another_life_cannot_be_claimed_of_the_next_leader_either() {
    let w = two();
    let claimed = w.held_by("w1");
    let mut next = World::in_term(Term::new(2), w.stored());
    next.puppets = w.puppets.clone();
    next.connect("w1");
    next.claim_to_own("w2", claimed);
    assert_eq!((next.false_claims(), next.violations.len()), (1, 1), "{:?}", next.violations);
    next.connect("w3");
    next.pass(Duration::from_secs(3));
    assert!(next.held_by("w1").len() < 5 && next.loads().iter().max() == Some(&4), "{:?}", next.loads());
}

/// What was granted to the former life of a name is not the grant of the life it has now, and a token that nobody knows may
/// be the true one after a restore.
#[test]
fn only_what_is_known_makes_a_claim_false() {
    let mut w = two();
    let (held, at) = (w.held_by("w1"), w.now);
    w.kill("w1");
    w.pass(L * 2);
    assert!(w.now > at && w.held_by("w2").len() == 10);
    w.connect("w1");
    w.claim_to_own("w1", held.clone());
    assert_eq!(w.false_claims(), 1, "the tokens of its former life");
    w.pass(Duration::from_secs(2));
    let later = (1..).zip(held.keys()).map(|(n, id)| (*id, Token::new(Term::new(0), n)));
    w.claim_to_own("w1", later);
    assert!(w.false_claims() == 1 && w.violations.len() > 1, "{:?}", w.violations);
}

#[test]
fn who_was_never_granted_it_leaves_no_fence_delay() {
    let mut w = World::new(Restored::default());
    for name in ["w1", "w2"] {
        w.connect(name);
    }
    w.pass(Duration::from_secs(1));
    w.create([1]);
    let (owner, other) = if w.holder(1) == Some("w1") { ("w1", "w2") } else { ("w2", "w1") };
    let token = w.held_by(owner)[&id(1)];
    w.hold_commits = true;
    w.release(owner, [(id(1), token)], &Carryover::default());
    let slot = w.machine.table().slot(id(1)).expect("known");
    let late = Carryover { fence_delay: Duration::from_secs(60), ..Carryover::default() };
    w.release(other, [(id(1), token)], &late);
    assert_eq!(w.false_claims(), 1);
    assert_eq!(w.machine.table().get(slot).expect("known").fence_delay(), Duration::ZERO);
}
