//! The model by inputs and orders, and the state that the drawn screens of [`view`](crate::top::view) are tested with.

use super::*;
use crate::top::input::Key;

/// The moment that the fixtures are made for.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn time(seconds: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp::from(at(seconds)))
}

pub(crate) fn worker(n: u64, appliances: u64) -> v1::Worker {
    v1::Worker {
        id: format!("worker-{n}"),
        incarnation: format!("i{n}"),
        health: v1::Health::Healthy.into(),
        weight: 1,
        appliances,
        phases: [("Configured".to_owned(), appliances)].into(),
        last_seen: time(NOW - 1),
        member: true,
        zone: format!("z{}", n % 3),
        ..v1::Worker::default()
    }
}

fn worker_event(kind: v1::worker_event::Type, worker: v1::Worker) -> Input {
    Input::Worker(Box::new(v1::WorkerEvent { r#type: kind.into(), worker: Some(worker) }))
}

pub(crate) fn appliance(n: u64) -> v1::Appliance {
    let phase = match n {
        7 => v1::Phase::Error,
        11 => v1::Phase::Booting,
        _ => v1::Phase::Configured,
    };
    let kind = v1::spec::Kind::Custom(v1::Custom::default());
    v1::Appliance {
        id: format!("00000000-0000-4000-8000-{n:012}"),
        name: format!("web-{n:05}"),
        tenant: "shop".into(),
        create_time: time(NOW - 90_000),
        spec: Some(v1::Spec { kind: Some(kind), ..v1::Spec::default() }),
        status: Some(v1::Status {
            phase: phase.into(),
            last_error: if n == 7 {
                "port 8080 is in use by another process of this host".into()
            } else {
                String::new()
            },
            instances: vec![v1::Instance { alive: Some(n != 7), ..v1::Instance::default() }],
            ..v1::Status::default()
        }),
        assignment: Some(v1::Assignment { worker: format!("worker-{}", n % 50 + 1), ..v1::Assignment::default() }),
        ..v1::Appliance::default()
    }
}

fn page(from: u64, next: &str) -> Result<Box<v1::ListAppliancesResponse>, String> {
    Ok(Box::new(v1::ListAppliancesResponse {
        appliances: (from..from + 100).map(appliance).collect(),
        next_page_token: next.into(),
        total_size: 10_000,
    }))
}

/// A cluster of 50 workers with 10,000 appliances, of which a few are in trouble, in the middle of a rebalance.
pub(crate) fn fleet() -> Model {
    use v1::worker_event::Type;

    let mut model = Model::new(at(NOW), None);
    Feed::ALL.into_iter().for_each(|feed| assert!(model.update(Input::Opened(feed)).is_empty()));
    let crash = v1::UnownedAppliance {
        tenant: "shop".into(),
        name: "web-00042".into(),
        id: appliance(42).id,
        since: time(NOW - 75),
        state: "orphaned".into(),
        reason: "its worker is lost".into(),
    };
    model.update(Input::Cluster(Box::new(v1::ClusterStatus {
        identity: Some(v1::ClusterIdentity { id: "6f1c9a52".into(), name: "prod".into() }),
        coordinator: "coordinator-1".into(),
        term: 7,
        version: "0.1.0".into(),
        start_time: time(NOW - 12_000),
        workers: [("healthy".into(), 48), ("suspect".into(), 1), ("dead".into(), 1)].into(),
        appliances: 10_000,
        phases: [("Configured".into(), 9_950), ("Booting".into(), 30), ("Down".into(), 12), ("Error".into(), 8)].into(),
        moves_in_flight: 16,
        unowned: Some(v1::Unowned { appliances: 12, oldest: vec![crash] }),
        coordinators: vec![v1::Coordinator::default(), v1::Coordinator::default()],
        ..v1::ClusterStatus::default()
    })));
    for n in 1..=50 {
        let mut worker = worker(n, 190 + n % 20);
        match n {
            3 => worker.draining = true,
            4 => worker.cordoned = true,
            5 => worker.phases = [("Configured".to_owned(), 192), ("Booting".to_owned(), 3)].into(),
            13 => (worker.health, worker.reason) = (v1::Health::Dead.into(), "its lease has expired".into()),
            14 => (worker.health, worker.reason) = (v1::Health::Suspect.into(), "no session".into()),
            20 => (worker.appliances, worker.member) = (260, true),
            21 => worker.appliances = 60,
            _ => {}
        }
        model.update(worker_event(Type::Current, worker));
    }
    model.update(Input::Worker(Box::new(v1::WorkerEvent { r#type: Type::Synced.into(), worker: None })));
    model.update(Input::Ring(Some(Box::new(v1::Ring {
        strategy: "bounded".into(),
        band: 1.2,
        ..v1::Ring::default()
    }))));
    for n in 1..=12 {
        model.update(Input::Rebalance(Box::new(v1::Rebalance {
            id: format!("r7-{n}"),
            cause: format!("worker-joined worker-{n}"),
            start_time: time(NOW - 600 + n * 40),
            end_time: if n == 12 { None } else { time(NOW - 590 + n * 40) },
            outcome: if n == 12 { "running".into() } else { "completed".into() },
            moves: 400,
            moves_done: if n == 12 { 120 } else { 400 },
            ..v1::Rebalance::default()
        })));
        model.update(Input::Audit(Box::new(v1::AuditEvent {
            number: n,
            time: time(NOW - 600 + n * 40),
            actor: "rug://operator/anna".into(),
            action: if n % 4 == 0 { "evict".into() } else { "update".into() },
            subject: if n % 4 == 0 { "worker-13".into() } else { appliance(n).id },
            detail: if n % 4 == 0 { "it does not answer".into() } else { format!("shop/web-{n:05} generation 3") },
        })));
    }
    let mode = v1::DebugMode {
        scope: Some(v1::DebugScope { what: Some(v1::debug_scope::What::Tenant("shop".into())) }),
        reason: "a look at its network".into(),
        covered: Some(120),
        ..v1::DebugMode::default()
    };
    model.update(Input::Modes(Some(vec![mode])));
    let rollout = v1::Rollout {
        action: v1::RolloutAction::SetImage.into(),
        state: v1::RolloutState::Running.into(),
        total: 400,
        done: 100,
        failed: 2,
        wave: 2,
        waves: 4,
        waits: "2 of the selection are unavailable".into(),
        ..v1::Rollout::default()
    };
    let ended = v1::Rollout { state: v1::RolloutState::Completed.into(), ..rollout.clone() };
    model.update(Input::Rollouts(Some(vec![rollout, ended])));
    let budget = v1::Budget {
        name: "shop".into(),
        per: "tenant".into(),
        max_unavailable: Some(v1::budget::MaxUnavailable::Count(1)),
        covered: 1_200,
        down: 3,
        groups: 12,
        spent: 3,
        held: 40,
        ..v1::Budget::default()
    };
    model.update(Input::Budgets(Some(vec![budget])));
    let end = v1::InstanceEnd::default();
    model.update(Input::Troubles(Some(Box::new(v1::Troubles {
        crash_loops: 8,
        worst: vec![v1::CrashLoop {
            id: appliance(7).id,
            tenant: "shop".into(),
            name: "web-00007".into(),
            failed_boots: 5,
            last_error: "port 8080 is in use by another process of this host".into(),
            last_end: Some(end),
        }],
        hanging: 1,
        oldest: vec![v1::HangingBoot {
            id: appliance(11).id,
            tenant: "shop".into(),
            name: "web-00011".into(),
            instance: "web-00011-0-4".into(),
            start_time: time(NOW - 180),
            last_error: "connection refused".into(),
        }],
    }))));
    model
}

/// The same, with the list of appliances open.
pub(crate) fn fleet_with_appliances() -> Model {
    let mut model = fleet();
    let [Order::Page { number, .. }] = press(&mut model, Key::Char('2'))[..] else { panic!("no page is asked for") };
    model.update(Input::Page(number, page(0, "next")));
    model
}

pub(crate) fn press(model: &mut Model, key: Key) -> Vec<Order> {
    model.update(Input::Key(key))
}

fn type_text(model: &mut Model, text: &str) {
    for c in text.chars() {
        assert!(press(model, Key::Char(c)).is_empty());
    }
}

fn selected(model: &Model) -> String {
    let row = model.selected_row(model.pane);
    model.keys(model.pane)[row].clone()
}

#[test]
fn names_are_sorted_by_the_numbers_in_them() {
    let mut names = ["w10", "w2", "w02", "w1", "x", "w2a", "w"];
    names.sort_by(|a, b| natural(a, b));
    assert_eq!(names, ["w", "w1", "w02", "w2", "w2a", "w10", "x"]);
}

#[test]
fn a_worker_that_a_new_stream_does_not_name_is_gone() {
    use v1::worker_event::Type;

    let mut model = fleet();
    assert_eq!(model.worker_count(), 50);
    model.update(Input::Interrupted(Feed::Workers, "the connection broke".into()));
    assert_eq!(model.worker_count(), 50, "what was known is shown meanwhile");
    model.update(Input::Opened(Feed::Workers));
    model.update(worker_event(Type::Current, worker(1, 5)));
    model.update(Input::Worker(Box::new(v1::WorkerEvent { r#type: Type::Synced.into(), worker: None })));
    assert_eq!(model.worker_count(), 1);
    model.update(worker_event(Type::Gone, worker(1, 5)));
    assert_eq!(model.worker_count(), 0);
}

#[test]
fn changes_are_made_only_when_they_are_confirmed() {
    let mut model = fleet();
    press(&mut model, Key::Down);
    assert_eq!(selected(&model), "worker-2");
    assert!(press(&mut model, Key::Char('E')).is_empty());
    let question = |model: &Model| match &model.prompt {
        Some(Prompt::Confirm { question, .. }) => question.clone(),
        other => panic!("nothing is asked: {other:?}"),
    };
    assert_eq!(question(&model), "evict worker-2, which owns 192 appliances?");
    assert!(press(&mut model, Key::Enter).is_empty(), "Enter is no yes");
    assert_eq!(model.message.as_ref().map(|message| message.text.as_str()), Some("nothing was changed"));
    press(&mut model, Key::Char('E'));
    let evict = Change::Evict { worker: "worker-2".into(), incarnation: "i2".into() };
    assert_eq!(press(&mut model, Key::Char('y')), [Order::Change(evict)]);
    press(&mut model, Key::Char('d'));
    assert_eq!(question(&model), "drain worker-2: move 192 appliances to other workers?");
    assert_eq!(press(&mut model, Key::Char('y')), [Order::Change(Change::Drain { worker: "worker-2".into() })]);
    press(&mut model, Key::Char('h'));
    let subject = Subject::Worker("worker-2".into());
    assert_eq!(press(&mut model, Key::Char('y')), [Order::Change(Change::HandsOff(subject))]);
    let mode = v1::DebugMode {
        id: "0c".into(),
        scope: Some(v1::DebugScope { what: Some(v1::debug_scope::What::Worker("worker-2".into())) }),
        ..v1::DebugMode::default()
    };
    model.update(Input::Modes(Some(vec![mode])));
    press(&mut model, Key::Char('h'));
    assert_eq!(question(&model), "act on worker-2 again?");
    let on = Change::HandsOn { label: "worker-2".into(), modes: vec!["0c".into()] };
    assert_eq!(press(&mut model, Key::Char('y')), [Order::Change(on)]);
    press(&mut model, Key::Char('p'));
    assert!(question(&model).starts_with("pause placement"));
    assert_eq!(press(&mut model, Key::Char('y')), [Order::Change(Change::Pause)]);
    let status = model.cluster.clone().expect("known");
    let paused = Some(v1::Paused { reason: "work".into(), ..v1::Paused::default() });
    model.update(Input::Cluster(Box::new(v1::ClusterStatus { paused, ..status })));
    press(&mut model, Key::Char('p'));
    assert_eq!(press(&mut model, Key::Char('y')), [Order::Change(Change::Resume)]);
    model.update(Input::Changed(Err("not permitted".into())));
    assert_eq!(model.message.as_ref().map(|message| message.tone), Some(Tone::Bad));
    model.update(Input::Tick(at(NOW + 60)));
    assert_eq!(model.message, None, "messages go by themselves");
}

#[test]
fn appliances_are_asked_for_by_the_page_and_only_while_they_are_shown() {
    let mut model = fleet();
    let is_page = |order: &Order| matches!(order, Order::Page { .. });
    assert!(!model.update(Input::Tick(at(NOW + 100))).iter().any(is_page));
    let mut model = fleet_with_appliances();
    assert_eq!(selected(&model), appliance(0).id);
    model.update(Input::Tick(at(NOW + 20)));
    press(&mut model, Key::End);
    assert_eq!(selected(&model), appliance(99).id);
    // The tick has asked for the page again, and the answer is waited for.
    assert!(press(&mut model, Key::Down).is_empty());
    let mut model = fleet_with_appliances();
    press(&mut model, Key::End);
    let orders = press(&mut model, Key::Down);
    let [Order::Page { number, token, .. }] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!(token, "next");
    model.update(Input::Page(*number, page(100, "")));
    assert_eq!(selected(&model), appliance(100).id);
    assert_eq!(
        press(&mut model, Key::Enter),
        [Order::Inspect(Subject::Appliance { id: appliance(100).id, label: "shop/custom/web-00100".into() })]
    );
    assert!(matches!(&press(&mut model, Key::Char('e'))[..], [Order::Explain { id, .. }] if *id == appliance(100).id));
    press(&mut model, Key::Char('r'));
    assert!(matches!(&press(&mut model, Key::Char('y'))[..], [Order::Change(Change::Rebuild { .. })]));
}

#[test]
fn filters_are_typed_into_the_last_line() {
    let mut model = fleet();
    press(&mut model, Key::Char('/'));
    type_text(&mut model, "er-1q");
    press(&mut model, Key::Backspace);
    assert!(press(&mut model, Key::Enter).is_empty());
    assert_eq!(model.workers().len(), 11, "worker-1 and 10 to 19");
    let orders = press(&mut model, Key::Char('a'));
    let [Order::Page { filter, .. }] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!((filter.worker.as_str(), model.pane), ("worker-1", Pane::Appliances));
    press(&mut model, Key::Char('/'));
    type_text(&mut model, " phase=asleep");
    assert!(press(&mut model, Key::Enter).is_empty());
    assert!(model.message.as_ref().is_some_and(|message| message.text.contains("phase=asleep")));
    assert_eq!(model.pages.typed, "worker=worker-1", "the filter before counts");
}

#[test]
fn workers_are_sorted_by_load_and_by_health() {
    let mut model = fleet();
    let first = |model: &Model| model.workers()[0].id.clone();
    assert_eq!(first(&model), "worker-1");
    press(&mut model, Key::Char('s'));
    assert_eq!(first(&model), "worker-20");
    press(&mut model, Key::Char('s'));
    assert_eq!(first(&model), "worker-13");
}

#[test]
fn what_the_streams_do_not_say_is_asked_for_now_and_then() {
    let mut model = fleet();
    let orders = model.update(Input::Tick(at(NOW + 6)));
    let all = [Order::Troubles, Order::Ring, Order::Modes, Order::Rollouts, Order::Budgets];
    assert!(all.iter().all(|order| orders.contains(order)), "{orders:?}");
    assert_eq!(model.update(Input::Tick(at(NOW + 7))), []);
    model.update(Input::Troubles(None));
    assert!(model.trouble_list().iter().any(|it| it.what == "crash loop"), "a lost answer takes nothing away");
    assert_eq!(model.update(Input::Tick(at(NOW + 13))), [Order::Troubles]);
    // Who sets a debug mode or starts a rollout is heard of.
    let heard = [("debug-set", Order::Modes), ("rollout-start", Order::Rollouts), ("budget-set", Order::Budgets)];
    for (number, (action, order)) in (99..).zip(heard) {
        let event = v1::AuditEvent { number, action: action.into(), ..v1::AuditEvent::default() };
        model.update(Input::Audit(Box::new(event)));
        assert_eq!(model.update(Input::Tick(at(NOW + 14))), [order]);
    }
    // Nothing is asked while the server cannot be reached.
    model.update(Input::Interrupted(Feed::Cluster, "no answer".into()));
    assert_eq!(model.update(Input::Tick(at(NOW + 100))), []);
}

#[test]
fn a_click_chooses_and_a_second_one_inspects() {
    let mut model = fleet();
    assert!(model.update(Input::Click(Target::Row(Pane::Workers, 4))).is_empty());
    assert_eq!(selected(&model), "worker-5");
    let inspect = [Order::Inspect(Subject::Worker("worker-5".into()))];
    assert_eq!(model.update(Input::Click(Target::Row(Pane::Workers, 4))), inspect);
    model.update(Input::Text(Ok(("worker worker-5".into(), "a\nb\nc\nd\ne".into()))));
    model.update(Input::Wheel(None, 3));
    assert!(matches!(&model.overlay, Some(Overlay::Text { from: 3, .. })));
    press(&mut model, Key::Escape);
    assert_eq!(model.overlay, None);
    model.update(Input::Wheel(Some(Target::Pane(Pane::Workers)), 3));
    assert_eq!(selected(&model), "worker-8");
    model.update(Input::Click(Target::Pane(Pane::Events)));
    assert_eq!(model.pane, Pane::Events);
    assert_eq!(press(&mut model, Key::Enter), [Order::Inspect(Subject::Worker("worker-13".into()))]);
}

#[test]
fn the_keys_of_help_are_the_keys_there_are() {
    let mut model = fleet();
    press(&mut model, Key::Char('?'));
    assert_eq!(model.overlay, Some(Overlay::Help));
    assert!(press(&mut model, Key::Char('q')).is_empty(), "it ends the help");
    assert_eq!(press(&mut model, Key::Char('q')), [Order::Quit]);
}
