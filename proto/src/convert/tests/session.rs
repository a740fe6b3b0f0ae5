//! What ends a session's stream, and what costs only the entry it is about.

use common::TraceContext;
use common::telemetry::{LogOrder, SamplingOrder, TelemetryOrder};

use super::super::down::{Unreadable, add_causes, order_to_wire};
use super::*;

fn first_envelope() -> Envelope {
    Envelope { term: Term::new(1), incarnation: None, stream: StreamNumber::new(1) }
}

#[test]
fn refusals_of_the_session_name_message_and_field() {
    let envelope = first_envelope();
    let message =
        |body| worker_wire::WorkerMessage { envelope: Some(super::super::worker::envelope_to_wire(&envelope)), body };
    let id = vec![0; 16];
    let granted = |appliance: Vec<u8>, token| worker_wire::Granted { appliance, token };
    let ack = |granted| {
        message(Some(worker_wire::worker_message::Body::Ack(worker_wire::Ack { granted, ..Default::default() })))
    };
    let token = Some(worker_wire::Token { term: 1, sequence: 1 });
    let cases = [
        (message(None), "WorkerMessage: body: is missing or unknown"),
        (
            worker_wire::WorkerMessage {
                envelope: None,
                ..message(Some(worker_wire::worker_message::Body::Leave(worker_wire::Leave {})))
            },
            "Leave: envelope: is missing",
        ),
        (ack(vec![granted(vec![0; 3], token)]), "Ack: granted[0].appliance: has 3 bytes, not 16"),
        (ack(vec![granted(id.clone(), token), granted(id.clone(), None)]), "Ack: granted[1].token: is missing"),
        (ack(vec![granted(id, token); 1001]), "Ack: entries: 1001 entries, at most 1000 are allowed"),
    ];
    for (message, text) in cases {
        assert_eq!(up_from_wire(message).expect_err("odd").to_string(), text);
    }
}

/// A delta with two grants and an update, in reading order.
fn delta_on_the_wire() -> worker_wire::CoordinatorMessage {
    let desired = || {
        Arc::new(Desired {
            name: Name::new("web").expect("a valid name"),
            tenant: Name::new("default").expect("a valid name"),
            driver: DriverName::process(),
            edition: Edition::new(Generation::new(2), Term::new(1)),
            revision: 0,
            deleting: false,
            spec: draft_from_wire(Some(custom_appliance())).expect("valid").spec,
        })
    };
    let grant = |n| DeltaEntry::Grant {
        appliance: ApplianceId::from_u128(n),
        token: Token::new(Term::new(1), 1),
        desired: desired(),
        carryover: Carryover::default(),
        suspect: false,
        mode: Mode::default(),
    };
    let (appliance, token) = (ApplianceId::from_u128(3), Token::new(Term::new(1), 1));
    let update = DeltaEntry::Update { appliance, token, desired: desired() };
    let delta = Delta { base: 0, target: 1, rebalance: None, entries: vec![grant(1), grant(2), update] };
    down_to_wire(&first_envelope(), ToWorker::Delta(delta), "").remove(0)
}

fn delta_of(message: &mut worker_wire::CoordinatorMessage) -> &mut worker_wire::Delta {
    match &mut message.body {
        Some(worker_wire::coordinator_message::Body::Delta(delta)) => delta,
        other => panic!("not a delta: {other:?}"),
    }
}

#[test]
fn calls_and_orders_about_telemetry_travel_beside_what_workers_act_on() {
    let mut message = delta_on_the_wire();
    let call =
        TraceContext { traceparent: TRACEPARENT.into(), baggage: "user=alice".into(), ..TraceContext::default() };
    let long = TraceContext { baggage: "x".repeat(10_000), ..call.clone() };
    let id = ApplianceId::from_u128;
    add_causes(&mut message, [(id(1), call.clone()), (id(3), long)]);
    let read = down_from_wire(message).expect("it reads");
    let short = TraceContext { baggage: String::new(), ..call.clone() };
    assert_eq!(read.causes, [(id(1), call), (id(3), short)]);
    let lasts = Some(Duration::from_secs(60));
    let order = TelemetryOrder {
        log: Some(LogOrder { filter: "worker=debug".into(), lasts }),
        sampling: Some(SamplingOrder { ratio: 0.5.try_into().ok(), slow: lasts, lasts: None }),
    };
    for order in [order.clone(), TelemetryOrder::default()] {
        let read = down_from_wire(order_to_wire(&first_envelope(), order.clone())).expect("it reads");
        assert_eq!(read.message, ToWorker::Confirm(Confirm::default()), "earlier versions know no more of it");
        assert_eq!(read.telemetry, Some(order));
    }
    let mut odd = order_to_wire(&first_envelope(), order);
    odd.telemetry.as_mut().expect("an order").sample_ratio = Some(7.0);
    assert_eq!(down_from_wire(odd).expect("no reason to end a session").telemetry, None);
}

#[test]
fn an_appliance_that_cannot_be_read_is_set_aside_and_the_others_are_not() {
    type Spoil = fn(&mut worker_wire::Delta);
    fn desired(grant: &mut worker_wire::Grant) -> &mut worker_wire::Desired {
        grant.desired.as_mut().expect("it has one")
    }
    let first = ApplianceId::from_u128(1);
    let cases: &[(Spoil, ApplianceId, &str)] = &[
        (|d| d.grant[0].desired = None, first, "Delta: grant[0].desired: is missing"),
        (|d| desired(&mut d.grant[0]).spec = None, first, "Delta: grant[0].desired.spec: is missing"),
        (|d| desired(&mut d.grant[0]).name = "x".repeat(9_000), first, "Delta: grant[0].desired.name: "),
        (|d| desired(&mut d.grant[0]).driver = "Hover Craft".into(), first, "Delta: grant[0].desired.driver: "),
        (
            |d| d.grant[0].hold = Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            first,
            "Delta: grant[0].hold: must not be negative",
        ),
        (|d| d.update[0].desired = None, ApplianceId::from_u128(3), "Delta: update[0].desired: is missing"),
    ];
    for (spoil, appliance, text) in cases {
        let mut message = delta_on_the_wire();
        spoil(delta_of(&mut message));
        let read = down_from_wire(message).expect("the rest is fine");
        let ToWorker::Delta(delta) = read.message else { panic!("not a delta") };
        let [Unreadable { grant, problem }] = &read.unreadable[..] else { panic!("{text}: {:?}", read.unreadable) };
        assert_eq!(*grant, GrantRef::new(*appliance, Token::new(Term::new(1), 1)));
        assert!(problem.starts_with(text) && problem.len() <= 256, "{problem}");
        assert_eq!((delta.target, delta.entries.len()), (1, 2));
    }
}

#[test]
fn a_delta_that_leaves_open_what_it_is_about_is_refused() {
    type Spoil = fn(&mut worker_wire::Delta);
    let cases: &[(Spoil, &str)] = &[
        (|d| d.grant[1].appliance = vec![1], "Delta: grant[1].appliance: has 1 bytes, not 16"),
        (|d| d.update[0].token = None, "Delta: update[0].token: is missing"),
        (
            |d| {
                // What cannot be read counts as well.
                d.grant[0].desired = None;
                d.grant = vec![d.grant[0].clone(); 1_000];
            },
            "Delta: entries: 1001 entries, at most 1000 are allowed",
        ),
    ];
    for (spoil, text) in cases {
        let mut message = delta_on_the_wire();
        spoil(delta_of(&mut message));
        assert_eq!(down_from_wire(message).expect_err("odd").to_string(), *text);
    }
}

#[test]
fn a_long_error_is_sent_in_part() {
    let status = Status {
        phase: Phase::Error,
        observed_generation: Generation::new(1),
        instances: vec![],
        last_error: Some("é".repeat(1_000_000)),
        failed_boots: 1,
        last_end: None,
    };
    assert_eq!(status_to_wire(&status).last_error, "é".repeat(common::appliance::MAX_TEXT / 2));
}

/// It is kept with the appliance and told to its next owner, beside hundreds of others in one message.
#[test]
fn a_journal_is_told_in_part_whatever_is_stored() {
    let entry = JournalEntry { step: "boot 0".repeat(1_000), request_id: "r".repeat(4_096) };
    let progress = Progress { journal: vec![entry; 1_000], ..Progress::default() };
    let told = super::super::worker::progress_to_wire(progress).expect("not empty");
    assert!(prost::Message::encoded_len(&told) < 32 << 10, "{}", prost::Message::encoded_len(&told));
}

fn reports(statuses: Vec<StatusReport>) -> ToCoordinator {
    ToCoordinator::Report(Report { statuses, owned: None })
}

#[test]
fn a_status_that_cannot_be_read_is_left_out_of_its_report() {
    let status = Status {
        phase: Phase::Up,
        observed_generation: Generation::new(1),
        instances: vec![],
        last_error: None,
        failed_boots: 0,
        last_end: None,
    };
    let report = |n| StatusReport {
        appliance: ApplianceId::from_u128(n),
        token: Token::new(Term::new(1), 1),
        status: status.clone(),
        checked: 0,
        adopted: false,
        would_have: vec![],
    };
    let spoiled = |spoil: fn(&mut Vec<worker_wire::ApplianceReport>)| {
        let mut message = up_to_wire(&first_envelope(), reports(vec![report(1), report(2), report(3)]));
        match &mut message.body {
            Some(worker_wire::worker_message::Body::Report(report)) => spoil(&mut report.appliances),
            other => panic!("not a report: {other:?}"),
        }
        up_from_wire(message).map(|read| read.message)
    };
    assert_eq!(
        spoiled(|all| {
            all[0].status = None;
            all[2].status.as_mut().expect("it has one").phase = 99;
        }),
        Ok(reports(vec![report(2)]))
    );
    let refused = spoiled(|all| all[1].token = None).expect_err("whose status it is stays open");
    assert_eq!(refused.to_string(), "Report: appliances[1].token: is missing");
}

#[test]
fn a_digest_that_is_none_is_refused() {
    let mut message = up_to_wire(
        &first_envelope(),
        ToCoordinator::Report(Report { statuses: vec![], owned: Some(OwnedDigest::default()) }),
    );
    match &mut message.body {
        Some(worker_wire::worker_message::Body::Report(report)) => {
            report.holdings.as_mut().expect("it was given").digest.truncate(15);
        }
        other => panic!("not a report: {other:?}"),
    }
    let refused = up_from_wire(message).expect_err("what it means stays open");
    assert_eq!(refused.to_string(), "Report: holdings.digest: has 15 bytes, not 16");
}
