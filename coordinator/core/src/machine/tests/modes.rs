//! Hands off: rules of operators, who is told, and when whoever set one is answered.

use super::*;
use crate::modes::ModeOp;
use crate::planner::Unplaced;
use common::mode::{ModeRule, ModeScope};
use common::{ModeEdition, ModeId};

/// A rule of this number.
fn rule(n: u128, scope: ModeScope) -> ModeRule {
    let (reason, by) = ("maintenance".to_owned(), "op".to_owned());
    ModeRule { id: ModeId::new(n), scope, reason, by, since_unix_ms: 0, expires_unix_ms: None }
}

fn color(color: &str) -> ModeScope {
    ModeScope::Labels(format!("color={color}").parse().expect("a selector"))
}

/// What was said of the modes of single appliances.
fn told(messages: &[(StreamId, ToWorker<()>)]) -> Vec<(ApplianceId, Mode)> {
    let deltas = messages.iter().filter_map(|(_, message)| match message {
        ToWorker::Delta(delta) => Some(&delta.entries),
        _ => None,
    });
    let modes = deltas.flatten().filter_map(|entry| match entry {
        DeltaEntry::Mode { appliance, mode, .. } | DeltaEntry::Grant { appliance, mode, .. } => {
            Some((*appliance, *mode))
        }
        _ => None,
    });
    modes.collect()
}

impl World {
    fn set(&mut self, n: u128, scope: ModeScope) {
        self.set_for(n, scope, None);
    }

    fn set_for(&mut self, n: u128, scope: ModeScope, expires_in: Option<Duration>) {
        self.step(Event::SetMode(StoredMode { rule: rule(n, scope), expires_in }, 7));
        self.step(Event::Tick);
    }

    fn clear(&mut self, n: u128) {
        self.step(Event::ClearMode(ModeId::new(n), 8));
        self.step(Event::Tick);
    }

    fn hands_off(&self, n: u128) -> HandsOff {
        self.machine.hands_off(self.now, id(n)).expect("it is known")
    }

    fn is_off(&self, n: u128) -> bool {
        self.hands_off(n) == HandsOff::Off(Duration::ZERO)
    }

    fn waits(&self, n: u128) -> Option<ModeWait> {
        match self.hands_off(n) {
            HandsOff::Waits(why) => Some(why),
            HandsOff::On | HandsOff::Off(_) => None,
        }
    }

    fn progress(&self, n: u128) -> ModeProgress {
        self.machine.mode_progress(self.now, ModeId::new(n)).expect("it is in force")
    }

    fn mode(&self, n: u128) -> Mode {
        let table = self.machine.table();
        table.slot(id(n)).and_then(|slot| table.get(slot)).expect("it is known").mode
    }

    /// The step of a worker ends: it says of everything that it keeps its hands off where it was told so.
    fn falls_quiet(&mut self, name: &str, fence_delay: Duration) {
        let puppet = self.puppets.get_mut(&worker(name)).expect("lives");
        puppet.busy = false;
        let puppet = puppet.clone();
        let off = puppet.modes.iter().filter(|(_, mode)| mode.hands_off);
        let quiet = off.map(|(appliance, mode)| {
            let (appliance, token) = (*appliance, puppet.held[appliance]);
            Quiet { appliance, token, edition: mode.edition, fence_delay }
        });
        self.say_quiet(name, quiet.collect());
    }

    fn say_quiet(&mut self, name: &str, quiet: Vec<Quiet>) {
        let puppet = self.puppets[&worker(name)].clone();
        let ack = Ack { applied: puppet.version, quiet, ..Ack::default() };
        self.step(Event::Received(puppet.conn, self.envelope(puppet.conn), ToCoordinator::Ack(ack)));
    }
}

/// A worker with one appliance.
fn one() -> World {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.create([1]);
    w.pass(Duration::from_millis(200));
    assert_eq!(w.holder(1), Some("w1"));
    w.sent.clear();
    w
}

#[test]
fn a_rule_is_durable_before_any_worker_is_told() {
    let mut w = one();
    w.hold_commits = true;
    w.set(1, ModeScope::Global);
    let (batch, commit) = w.commits.remove(0);
    assert_eq!(commit.modes, [ModeOp::Set(rule(1, ModeScope::Global))]);
    assert_eq!((told(&w.sent), w.outcomes.clone(), w.hands_off(1)), (vec![], vec![], HandsOff::On));
    assert_eq!(w.machine.mode_progress(w.now, ModeId::new(1)), None, "it is not in force");
    w.step(Event::Durable(batch));
    assert_eq!(w.outcomes, [(7, ModeOutcome::InForce)]);
    assert!(w.mode(1).hands_off && told(&w.sent) == [(id(1), w.mode(1))]);
    w.sent.clear();
    w.clear(1);
    assert_eq!(told(&w.sent), [], "nor is its end told before it is durable");
    let (batch, commit) = w.commits.remove(0);
    assert_eq!(commit.modes, [ModeOp::Clear(ModeId::new(1))]);
    assert!(w.is_off(1));
    w.step(Event::Durable(batch));
    assert_eq!((w.outcomes[1].clone(), w.hands_off(1)), ((8, ModeOutcome::Cleared), HandsOff::On));
    assert_eq!(told(&w.sent), [(id(1), w.mode(1))]);
}

#[test]
fn a_rule_that_is_not_stored_covers_nothing() {
    let mut w = one();
    w.hold_commits = true;
    w.set(1, ModeScope::Global);
    let (batch, _) = w.commits.remove(0);
    w.step(Event::SetMode(StoredMode { rule: rule(1, ModeScope::Global), expires_in: None }, 9));
    assert_eq!(w.outcomes, [(9, ModeOutcome::BeingStored)]);
    w.step(Event::Undone(batch));
    assert_eq!(w.outcomes[1], (7, ModeOutcome::NotStored));
    assert_eq!((w.hands_off(1), w.machine.mode_rules().count()), (HandsOff::On, 0));
}

#[test]
fn setting_a_rule_is_answered_when_the_step_has_ended() {
    let mut w = one();
    w.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    w.set(1, ModeScope::Appliance(id(1)));
    assert_eq!(w.waits(1), Some(ModeWait::Owner(worker("w1"))));
    assert_eq!(w.progress(1).waiting, [(id(1), ModeWait::Owner(worker("w1")))]);
    w.pass(Duration::from_secs(60));
    assert!(w.waits(1).is_some(), "time alone answers nothing");
    w.falls_quiet("w1", Duration::ZERO);
    assert_eq!(w.progress(1), ModeProgress { covered: 1, ..ModeProgress::default() });
}

#[test]
fn what_nobody_holds_is_answered_at_once() {
    let mut w = World::new(Restored::default());
    w.create([1]);
    w.set(1, ModeScope::Global);
    assert!(w.is_off(1));
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w1"), "it gets an owner");
    assert!(w.puppets[&worker("w1")].modes[&id(1)].hands_off && w.is_off(1), "who only looks");
}

#[test]
fn a_second_rule_over_what_is_quiet_is_answered_at_once() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    let edition = w.mode(1).edition;
    w.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    w.set(2, ModeScope::Appliance(id(1)));
    assert_eq!((w.progress(2).waiting, w.mode(1).edition), (vec![], edition));
    w.clear(1);
    assert_eq!((w.is_off(1), w.mode(1).edition), (true, edition), "the other one holds");
    w.clear(2);
    assert!(w.hands_off(1) == HandsOff::On && w.mode(1).edition > edition);
}

#[test]
fn an_acknowledgement_of_before_a_clear_does_not_count() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    let first = w.puppets[&worker("w1")].modes[&id(1)].edition;
    w.clear(1);
    w.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    w.set(2, ModeScope::Global);
    assert!(w.waits(1).is_some());
    let (appliance, token) = (id(1), w.puppets[&worker("w1")].held[&id(1)]);
    w.say_quiet("w1", vec![Quiet { appliance, token, edition: first, fence_delay: Duration::ZERO }]);
    assert!(w.waits(1).is_some(), "in between the gate was open");
    w.falls_quiet("w1", Duration::ZERO);
    assert!(w.is_off(1));
}

#[test]
fn an_edition_of_another_term_counts_for_nothing() {
    let mut w = one();
    w.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    w.set(1, ModeScope::Global);
    let (appliance, token) = (id(1), w.puppets[&worker("w1")].held[&id(1)]);
    for edition in [(0, 9), (1, u64::MAX), (2, 1), (9, 9)] {
        let edition = ModeEdition::new(Term::new(edition.0), edition.1);
        w.say_quiet("w1", vec![Quiet { appliance, token, edition, fence_delay: Duration::ZERO }]);
        assert!(w.waits(1).is_some(), "{edition} was never given");
    }
    let other = Quiet { appliance, token: Token::new(Term::new(1), 99), edition: w.mode(1).edition, fence_delay: L };
    w.say_quiet("w1", vec![other]);
    assert!(w.waits(1).is_some(), "nor of another grant");
}

#[test]
fn a_new_leader_goes_on_with_the_rules_of_the_store() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    let mut next = World::in_term(Term::new(2), w.stored());
    next.puppets = w.puppets.clone();
    assert!(next.waits(1).is_some(), "nobody has said anything in this term");
    next.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    next.connect("w1");
    assert_eq!(next.waits(1), Some(ModeWait::Owner(worker("w1"))));
    let told = next.puppets[&worker("w1")].modes[&id(1)];
    assert_eq!((told, told.edition.term), (next.mode(1), Term::new(2)), "every covered one is told anew");
    next.falls_quiet("w1", Duration::ZERO);
    assert!(next.is_off(1));
}

#[test]
fn a_worker_that_missed_a_mode_is_told_after_its_hello() {
    let mut w = one();
    let puppet = w.puppets[&worker("w1")].clone();
    w.step(Event::Closed(puppet.conn));
    w.set(1, ModeScope::Global);
    assert!(matches!(w.waits(1), Some(ModeWait::Unreachable(..))));
    w.connect("w1");
    assert!(w.is_off(1));
    let conn = w.puppets[&worker("w1")].conn;
    w.step(Event::Closed(conn));
    w.clear(1);
    w.sent.clear();
    w.connect("w1");
    assert_eq!(told(&w.sent), [(id(1), w.mode(1))], "and so is the end of it");
    assert!(!w.puppets[&worker("w1")].modes[&id(1)].hands_off);
    w.sent.clear();
    w.connect("w1");
    assert_eq!(told(&w.sent), [], "who is right is told nothing");
}

#[test]
fn an_edition_that_a_store_which_was_put_back_never_gave_is_told_over() {
    let mut w = one();
    let foreign = Mode::new(ModeEdition::new(Term::new(1), 9), true);
    w.puppets.get_mut(&worker("w1")).expect("lives").modes.insert(id(1), foreign);
    w.connect("w1");
    let told = w.puppets[&worker("w1")].modes[&id(1)];
    assert!(told.edition > foreign.edition && !told.hands_off && w.mode(1) == told);
}

#[test]
fn the_next_owner_is_granted_it_with_its_mode() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    w.connect("w2");
    w.kill("w1");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.holder(1), Some("w2"));
    assert_eq!(w.puppets[&worker("w2")].modes[&id(1)], w.mode(1));
    assert!(w.mode(1).hands_off && w.is_off(1));
}

/// The next leader would let a life go on whose end is not in the store, and its gate with it. (Simulation, seed 7754.)
#[test]
fn an_owner_that_is_gone_is_answered_for_once_the_store_has_its_end() {
    let mut w = one();
    w.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    w.set(1, ModeScope::Global);
    w.hold_commits = true;
    w.kill("w1");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.waits(1), Some(ModeWait::NotStored(worker("w1"))));
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Durable(batch));
    assert!(w.is_off(1));
}

#[test]
fn what_is_covered_moves_in_a_drain() {
    let mut w = two();
    w.set(1, ModeScope::Global);
    let conn = w.puppets[&worker("w1")].conn;
    w.step(Event::Received(conn, w.envelope(conn), ToCoordinator::Drain { hand_back: false }));
    w.pass(Duration::from_secs(5));
    assert_eq!(w.loads(), [0, 10]);
    assert_eq!(w.progress(1), ModeProgress { covered: 10, ..ModeProgress::default() });
}

#[test]
fn a_worker_scope_covers_what_that_worker_owns() {
    let mut w = two();
    w.set(1, ModeScope::Worker(worker("w1")));
    let owned = |w: &World, name: &str| -> Vec<u128> { (1..=10).filter(|n| w.holder(*n) == Some(name)).collect() };
    let (of_w1, of_w2) = (owned(&w, "w1"), owned(&w, "w2"));
    assert!(of_w1.iter().all(|n| w.is_off(*n)) && of_w2.iter().all(|n| w.hands_off(*n) == HandsOff::On));
    let conn = w.puppets[&worker("w1")].conn;
    w.step(Event::Received(conn, w.envelope(conn), ToCoordinator::Drain { hand_back: false }));
    w.pass(Duration::from_secs(5));
    assert_eq!(owned(&w, "w1"), [0; 0]);
    assert!((1..=10).all(|n| w.hands_off(n) == HandsOff::On), "what moved away is covered no longer");
    assert!(w.puppets[&worker("w2")].modes.values().all(|mode| !mode.hands_off));
    assert_eq!(w.progress(1).covered, 0);
    w.set(2, ModeScope::Worker(worker("w2")));
    w.create([11]);
    w.pass(Duration::from_millis(500));
    assert!(w.is_off(11), "what it is granted is covered from the first");
}

#[test]
fn labels_that_change_change_what_is_covered() {
    let mut w = one();
    w.set(1, color("blue"));
    assert_eq!(w.hands_off(1), HandsOff::On);
    w.step(Event::Labelled(id(1), subject("blue")));
    assert!(w.is_off(1));
    w.step(Event::Labelled(id(1), subject("green")));
    assert_eq!(w.hands_off(1), HandsOff::On);
    assert!(!w.puppets[&worker("w1")].modes[&id(1)].hands_off);
}

#[test]
fn an_expiry_is_a_clear_that_the_leader_writes() {
    let mut w = one();
    w.set_for(1, ModeScope::Global, Some(Duration::from_secs(5)));
    let output = w.machine.step(w.now, Event::Tick);
    assert!(output.wake_at.is_some_and(|at| at <= w.now + Duration::from_secs(5)), "it wakes by itself");
    w.pass(Duration::from_millis(4_900));
    assert!(w.is_off(1));
    w.hold_commits = true;
    w.pass(Duration::from_millis(200));
    assert!(w.is_off(1), "until the store has it");
    let (batch, commit) = w.commits.remove(0);
    assert_eq!(commit.modes, [ModeOp::Clear(ModeId::new(1))]);
    w.step(Event::Undone(batch));
    w.pass(Duration::from_secs(1));
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Durable(batch));
    assert_eq!(w.hands_off(1), HandsOff::On, "what failed is tried again");
    assert_eq!(w.outcomes.len(), 1, "nobody asked for it");
}

#[test]
fn a_set_that_is_repeated_writes_nothing_and_is_answered_from_the_table() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    let stored = w.stored.len();
    w.set(1, ModeScope::Global);
    assert_eq!((w.outcomes[1].clone(), w.stored.len()), ((7, ModeOutcome::InForce), stored));
    w.set(1, color("red"));
    assert_eq!(w.outcomes[2], (7, ModeOutcome::OtherRule));
    let mut next = World::in_term(Term::new(2), w.stored());
    next.puppets = w.puppets.clone();
    next.connect("w1");
    next.set(1, ModeScope::Global);
    assert_eq!((next.outcomes.clone(), next.progress(1).waiting), (vec![(7, ModeOutcome::InForce)], vec![]));
    next.clear(1);
    next.clear(1);
    assert_eq!(next.outcomes[2], (8, ModeOutcome::Unknown));
}

#[test]
fn a_conflicting_owner_is_waited_for() {
    let mut w = one();
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.set(1, ModeScope::Global);
    assert!(w.is_off(1));
    w.puppets.get_mut(&worker("w2")).expect("lives").held.insert(id(1), Token::new(Term::new(0), 9));
    w.connect("w2");
    assert_eq!(w.waits(1), Some(ModeWait::Conflict(worker("w2"))));
}

#[test]
fn the_answer_names_what_may_still_take_effect() {
    let mut w = one();
    let profile = held_profile(Duration::from_secs(20));
    let puppet = w.puppets[&worker("w1")].clone();
    let next = Puppet { conn: 50, stream: puppet.stream.next(), ..puppet };
    let hello = Hello { profile, ..w.hello_of("w1", &next) };
    w.puppets.insert(worker("w1"), next.clone());
    w.say_hello(50, &next, hello);
    w.puppets.get_mut(&worker("w1")).expect("lives").busy = true;
    w.set(1, ModeScope::Global);
    w.falls_quiet("w1", Duration::from_secs(3_600));
    assert_eq!(w.hands_off(1), HandsOff::Off(Duration::from_secs(20)), "no longer than its driver can have left");
    assert_eq!(w.progress(1).late, [(id(1), Duration::from_secs(20))]);
    w.kill("w1");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.holder(1), None);
    assert_eq!(w.hands_off(1), HandsOff::Off(Duration::from_secs(20)), "of an owner that is gone");
}

/// Of a worker whose calls no token fences.
fn held_profile(fence_delay: Duration) -> Profile {
    let unfenced = DriverCapabilities { fence_delay: Some(fence_delay), ..DriverCapabilities::of_all_kinds(None) };
    Profile { drivers: DriverOffers::from([(DriverName::simulated(), unfenced)]), ..profile() }
}

#[test]
fn a_worker_that_knows_no_modes_never_acknowledges_and_gets_nothing_covered() {
    let mut w = World::new(Restored::default());
    w.puppets.insert(worker("w1"), Puppet { knows_no_modes: true, ..Puppet::default() });
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.create([1]);
    w.pass(Duration::from_millis(200));
    w.sent.clear();
    w.set(1, ModeScope::Global);
    w.pass(Duration::from_secs(120));
    assert_eq!(w.progress(1).waiting, [(id(1), ModeWait::Version(worker("w1")))]);
    w.create([2]);
    w.pass(Duration::from_millis(200));
    assert_eq!(w.holder(2), None);
    let table = w.machine.table();
    let why = table.slot(id(2)).and_then(|slot| table.get(slot)?.placement.unplaced.clone());
    assert_eq!(why, Some(Unplaced::NoModes));
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    assert_eq!((w.holder(2), w.is_off(2)), (Some("w2"), true));
    let conn = w.puppets[&worker("w1")].conn;
    w.step(Event::Received(conn, w.envelope(conn), ToCoordinator::Drain { hand_back: false }));
    w.pass(Duration::from_secs(5));
    assert_eq!((w.holder(1), w.progress(1).waiting), (Some("w2"), vec![]), "a drain helps");
    w.kill("w1");
    w.pass(Duration::from_secs(5));
    w.connect("w1");
    w.kill("w2");
    w.pass(Duration::from_secs(5));
    assert_eq!((w.holder(1), w.holder(2)), (Some("w1"), Some("w1")), "and so does an upgrade");
}

#[test]
fn a_grant_on_its_way_to_a_worker_that_knows_no_modes_is_not_answered_for() {
    let mut w = World::new(Restored::default());
    w.puppets.insert(worker("w1"), Puppet { knows_no_modes: true, ..Puppet::default() });
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.create([1]);
    let (granting, _) = w.commits.remove(0);
    w.set(1, ModeScope::Global);
    let (setting, _) = w.commits.remove(0);
    w.step(Event::Durable(setting));
    assert_eq!(w.waits(1), Some(ModeWait::Version(worker("w1"))));
    w.step(Event::Durable(granting));
    assert_eq!(w.waits(1), Some(ModeWait::Version(worker("w1"))));
}

#[test]
fn a_new_leader_answers_for_nothing_before_it_has_heard_who_owns_it() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    w.create([2]);
    let mut next = World::in_term(Term::new(2), w.stored());
    next.create([3]);
    assert_eq!(next.waits(3), Some(ModeWait::Awaited(vec![worker("w1")])));
    next.pass(Duration::from_secs(6));
    assert!(next.waits(3).is_none());
}

#[test]
fn a_deletion_waits_until_hands_are_on_and_is_told_all_the_same() {
    let mut w = one();
    w.set(1, ModeScope::Global);
    w.sent.clear();
    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: true });
    w.step(Event::Tick);
    let updated = w.sent.iter().any(|(_, message)| match message {
        ToWorker::Delta(delta) => delta.entries.iter().any(|entry| matches!(entry, DeltaEntry::Update { .. })),
        _ => false,
    });
    assert!(updated && w.is_off(1), "its owner keeps it for then");
}
