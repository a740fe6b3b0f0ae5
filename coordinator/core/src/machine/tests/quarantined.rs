//! Appliances that kill the worker handling them.

use super::*;

/// For tests in which one worker dies after the other.
fn unbraked() -> Config {
    Config { freeze_fraction: 1.0, ..Config::default() }
}

/// Which of the grants sent since the last call told their owner to announce its steps.
fn grants(w: &mut World) -> BTreeMap<ApplianceId, bool> {
    let tells = w.sent.drain(..).filter_map(|(_, down)| match down {
        ToWorker::Delta(delta) => Some(delta.entries),
        _ => None,
    });
    tells
        .flatten()
        .filter_map(|tell| match tell {
            DeltaEntry::Grant { appliance, suspect, .. } => Some((appliance, suspect)),
            _ => None,
        })
        .collect()
}

/// The worker announces a step of appliance `n`; gives back what it is told it may begin.
fn announce(w: &mut World, name: &str, n: u128) -> Vec<AnnouncedStep> {
    let puppet = w.puppets[&worker(name)].clone();
    let step = AnnouncedStep { appliance: id(n), token: puppet.held[&id(n)], number: 1 };
    let answers = Ack { applied: puppet.version, begun: vec![step], ..Ack::default() };
    w.sent.clear();
    w.step(Event::Received(puppet.conn, w.envelope(puppet.conn), ToCoordinator::Ack(answers)));
    let cleared = w.sent.drain(..).filter_map(|(conn, down)| match down {
        ToWorker::Confirm(confirm) if conn == puppet.conn => Some(confirm.begin),
        _ => None,
    });
    cleared.flatten().collect()
}

#[test]
fn what_kills_three_workers_is_given_to_no_fourth_until_it_is_changed() {
    let mut w = World::with(unbraked(), Term::new(1), Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.create(1..=3);
    assert_eq!(grants(&mut w), (1..=3).map(|n| (id(n), false)).collect());
    w.kill("w1");
    for name in ["w2", "w3", "w4"] {
        w.connect(name);
        w.pass(Duration::from_secs(4));
        assert_eq!(grants(&mut w), (1..=3).map(|n| (id(n), true)).collect(), "{name}");
        assert_eq!(announce(&mut w, name, 1).len(), 1);
        assert_eq!(w.quarantined, []);
        w.kill(name);
    }
    w.connect("w5");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.quarantined, [(id(1), 3)]);
    assert_eq!((w.holder(1), w.holder(2), w.holder(3)), (None, Some("w5"), Some("w5")));
    let summary = "quarantined: 3 workers died while a step of it ran; update, rebuild or delete it to try again";
    assert_eq!(w.machine.explain(w.now, id(1)).expect("it is known").summary, summary);
    w.pass(Duration::from_secs(120));
    assert_eq!(w.holder(1), None, "time alone does not lift it");

    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: false });
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w5"));
    assert!(grants(&mut w)[&id(1)], "its owner is warned all the same");
}

#[test]
fn a_quarantined_appliance_is_granted_once_more_for_each_call_that_deletes_it() {
    let mut w = World::with(unbraked(), Term::new(1), Restored::default());
    for name in ["w1", "w2", "w3"] {
        w.connect(name);
        w.pass(Duration::from_secs(4));
        w.create((name == "w1").then_some(1));
        announce(&mut w, name, 1);
        w.kill(name);
    }
    w.connect("w5");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.quarantined, [(id(1), 3)]);
    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: true });
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w5"));
    announce(&mut w, "w5", 1);
    w.kill("w5");
    w.connect("w6");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.quarantined, [(id(1), 3), (id(1), 4)]);
    w.step(Event::Updated { id: id(1), edition: edition(3), kind: KindName::Custom, size: 10, deleting: true });
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w6"), "it was deleted again");
}

#[test]
fn who_leaves_in_order_or_lives_on_makes_nothing_suspect() {
    let mut w = two();
    let conn = w.puppets[&worker("w1")].conn;
    let envelope = w.envelope(conn);
    w.sent.clear();
    w.step(Event::Received(conn, envelope, ToCoordinator::Leave));
    w.puppets.remove(&worker("w1"));
    w.pass(Duration::from_secs(1));
    let grants = grants(&mut w);
    assert_eq!((grants.len(), grants.values().any(|suspect| *suspect)), (5, false));
    // Nobody asked for it, but who announces is answered.
    assert_eq!(announce(&mut w, "w2", 1).len(), 1);
}
