//! Grants: durable before they are offered, offered once, and what ends them.

use super::*;

#[test]
fn a_grant_is_on_the_wire_only_after_it_is_durable() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.sent.clear();
    w.create([1]);
    assert_eq!(w.commits.len(), 1);
    assert!(!w.sent.iter().any(|(_, d)| matches!(d, ToWorker::Delta(_))), "told before it was stored");
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Durable(batch));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn a_grant_the_store_refused_burns_its_token() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.create([1]);
    let (batch, first) = w.commits.remove(0);
    w.step(Event::Undone(batch));
    w.step(Event::Tick);
    assert_eq!(w.commits, vec![], "asked again as fast as it refuses");
    w.pass(WRITE_RETRY);
    let (batch, second) = w.commits.remove(0);
    assert_ne!(first.grants, second.grants, "a token is offered once");
    w.step(Event::Durable(batch));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn a_worker_that_declines_is_left_out_for_a_while() {
    let mut w = World::new(Restored::default());
    let conn = w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.create([1]);
    let (batch, commit) = w.commits.remove(0);
    let Some(GrantOp::Grant { to, .. }) = commit.grants.first() else { panic!("a grant is written") };
    let token = to.token;
    // The puppet would take it; this worker refuses.
    let puppet = w.puppets.remove(&worker("w1")).expect("lives");
    w.step(Event::Durable(batch));
    w.puppets.insert(worker("w1"), Puppet { version: 2, ..puppet });
    w.hold_commits = false;
    let envelope = w.envelope(conn);
    w.step(Event::Received(
        conn,
        envelope,
        ToCoordinator::Ack(Ack {
            applied: 2,
            declined: vec![Declined { appliance: id(1), token, reason: String::new() }],
            ..Ack::default()
        }),
    ));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), None);
    let slot = w.machine.table().slot(id(1)).expect("known");
    assert_eq!(w.machine.reason(slot), "the workers that could take it declined it recently");
    w.pass(Duration::from_secs(5));
    assert_eq!(w.holder(1), Some("w1"));
}

/// One that declines everything would otherwise be asked as fast as others can take it back.
#[test]
fn who_declined_is_left_alone_for_its_time_also_when_another_has_taken_it() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.create([1]);
    let (batch, commit) = w.commits.remove(0);
    let Some(GrantOp::Grant { to, .. }) = commit.grants.first() else { panic!("a grant is written") };
    let (token, decliner) = (to.token, to.worker.clone());
    let puppet = w.puppets.remove(&decliner).expect("lives");
    let conn = puppet.conn;
    w.step(Event::Durable(batch));
    w.puppets.insert(decliner.clone(), Puppet { version: 2, ..puppet });
    w.hold_commits = false;
    let envelope = w.envelope(conn);
    let declined = vec![Declined { appliance: id(1), token, reason: String::new() }];
    w.step(Event::Received(conn, envelope, ToCoordinator::Ack(Ack { applied: 2, declined, ..Ack::default() })));
    w.pass(Duration::from_secs(1));
    let slot = w.machine.table().slot(id(1)).expect("known");
    assert!(w.holder(1).is_some_and(|holder| holder != decliner.as_str()), "the other has it");
    assert!(w.machine.pacing.has_declined(slot, &decliner));
    w.pass(Duration::from_secs(6));
    assert!(!w.machine.pacing.has_declined(slot, &decliner), "it may be asked again");
}

#[test]
fn what_no_worker_ever_heard_of_is_deleted_without_one() {
    let mut w = World::new(Restored::default());
    w.create([1]);
    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: true });
    assert_eq!(w.removed, [id(1)]);
    assert!(w.machine.table().is_empty());
}

#[test]
fn an_appliance_that_nobody_deleted_survives_a_worker_that_says_it_is_gone() {
    let mut w = two();
    let conn = w.puppets[&worker("w1")].conn;
    let (appliance, token) = w.puppets[&worker("w1")].held.iter().map(|(a, t)| (*a, *t)).next().expect("holds some");
    let envelope = w.envelope(conn);
    let puppet = w.puppets.get_mut(&worker("w1")).expect("lives");
    puppet.held.remove(&appliance);
    let applied = puppet.version;
    w.step(Event::Received(
        conn,
        envelope,
        ToCoordinator::Ack(Ack { applied, removed: vec![GrantRef::new(appliance, token)], ..Ack::default() }),
    ));
    w.pass(Duration::from_secs(1));
    assert_eq!((w.removed.len(), w.violations.len()), (0, 1));
    assert_eq!(w.loads(), [5, 5]);
}
