//! Messages of gRPC: the session of workers, and the admin API.

use std::mem::discriminant;

use common::inquiry::Question;
use common::session::ToCoordinator;
use prost::Message;
use proto::admin::v1 as admin;
use proto::convert::admin::{draft_from_wire, status_from_wire, status_to_wire, target_from_wire};
use proto::convert::down::{down_from_wire, down_to_wire};
use proto::convert::inquiry::{answer_to_wire, inquiry_to_wire};
use proto::convert::patch::update_from_wire;
use proto::convert::up::{hello_to_wire, up_from_wire, up_to_wire};
use proto::convert::{spec_to_wire, struct_from_json};
use proto::worker::v1 as wire;

use crate::{Outcome, size};

const ID: [u8; 16] = [0x5a; 16];

fn refused(error: &impl ToString) -> Outcome {
    Outcome::refused(&error.to_string())
}

/// The first violation stands for all: their combinations are too many to be told apart.
fn violated(found: &[common::appliance::FieldViolation]) -> Outcome {
    found.first().map_or_else(|| Outcome::refused("nothing"), refused)
}

fn token() -> Option<wire::Token> {
    Some(wire::Token { term: 3, sequence: 7 })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 5_000_000 })
}

fn progress() -> Option<wire::Progress> {
    let journal = vec![wire::JournalEntry { step: "boot 0".into(), request_id: "r".into() }];
    Some(wire::Progress {
        failed_boots: 1,
        attempts: vec![2, 3],
        wait: seconds(4),
        cooling: true,
        journal,
        ends: 1,
        last_end: wire_end(),
    })
}

fn envelope() -> Option<wire::Envelope> {
    Some(wire::Envelope { term: 3, incarnation: ID.to_vec(), stream: 2 })
}

fn granted() -> Vec<wire::Granted> {
    vec![wire::Granted { appliance: ID.to_vec(), token: token() }; 2]
}

fn steps() -> Vec<wire::Step> {
    vec![wire::Step { appliance: ID.to_vec(), token: token(), number: 9 }]
}

fn released() -> Vec<wire::Release> {
    vec![wire::Release { appliance: ID.to_vec(), token: token(), progress: progress(), hold: seconds(1) }]
}

fn offers() -> Vec<admin::DriverOffer> {
    vec![admin::DriverOffer { name: "process".into(), ..Default::default() }]
}

fn profile() -> Option<wire::Profile> {
    Some(wire::Profile {
        weight: 2,
        zone: "z".into(),
        host: "h".into(),
        drivers: vec!["process".into(), "simulated".into()],
        version: "0.1.0".into(),
        pid: 7,
        lease: seconds(10),
        holds: [("simulated".to_owned(), prost_types::Duration { seconds: 1, nanos: 0 })].into(),
        state_dir: "/var/lib/rug".into(),
        offers: offers(),
        process: "5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/7/123".into(),
    })
}

fn wire_end() -> Option<admin::InstanceEnd> {
    Some(admin::InstanceEnd {
        instance: "a-0-1".into(),
        time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        cause: Some(admin::instance_end::Cause::ExitStatus(3)),
        out_of_memory: true,
        last_lines: vec!["no such table".into(), "x".into()],
    })
}

fn wire_status() -> admin::Status {
    let instance = admin::Instance {
        name: "a-0-1".into(),
        alive: Some(true),
        pid: Some(7),
        address: "127.0.0.1:80".into(),
        configured_generation: 3,
        details: [("saturated".to_owned(), "yes".to_owned())].into(),
        ports: vec!["external".into()],
        start_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let instances = vec![instance.clone(), admin::Instance { ordinal: 1, ..instance }];
    admin::Status {
        phase: 4,
        observed_generation: 3,
        instances,
        last_error: "e".into(),
        last_end: wire_end(),
        ..Default::default()
    }
}

/// A template of pods with every sort of value.
fn pod() -> prost_types::Struct {
    let value = serde_json::json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"x": [1, 0.5, true, null, "y"], "containers": [{"name": "appliance", "env": []}]},
    });
    struct_from_json(&value).unwrap_or_default()
}

fn custom() -> admin::Spec {
    let probe = admin::Probe { probe: Some(admin::probe::Probe::Http(admin::HttpProbe { path: "/".into() })) };
    let custom = admin::Custom {
        command: "sh".into(),
        args: vec!["-c".into(), "{port}".into()],
        env: [("A".to_owned(), "b".to_owned())].into(),
        port: Some(8080),
        probe: Some(probe),
        env_from: vec!["/etc/e".into()],
        user: "u".into(),
        group: "33".into(),
        working_dir: "/srv".into(),
        limits: Some(admin::ProcessLimits {
            nofile: Some(1024),
            nproc: Some(7),
            core: Some(0),
            memory: Some(1 << 29),
            cpu_percent: Some(150),
        }),
        nice: Some(-5),
        no_new_privileges: true,
        stop_signal: "SIGINT".into(),
        stop_timeout: seconds(1),
    };
    let port = admin::NetworkPort {
        name: "external".into(),
        network: "n".into(),
        addresses: vec!["203.0.113.7/24".into()],
        mac: "fa:16:3e:00:00:01".into(),
    };
    admin::Spec {
        replicas: Some(1),
        probe_interval: seconds(5),
        probe_timeout: seconds(1),
        boot_timeout: seconds(60),
        settle_time: seconds(2),
        image: "i".into(),
        ports: vec![port],
        pod: Some(pod()),
        kind: Some(admin::spec::Kind::Custom(custom)),
    }
}

fn balancer() -> admin::Spec {
    let listener = admin::Listener {
        name: "http".into(),
        address: "0.0.0.0".into(),
        port: 8080,
        members: vec![admin::Member { address: "127.0.0.1".into(), port: 8081 }],
        health_check: Some(admin::HealthCheck { interval: seconds(1), timeout: seconds(1), fall: 2, rise: 1 }),
        limits: Some(admin::ConnectionLimits {
            max_connections: 9,
            idle_timeout: seconds(60),
            half_close_timeout: None,
            drain_timeout: seconds(30),
        }),
        algorithm: admin::listener::Algorithm::SourceHash.into(),
        proxy_protocol: admin::listener::ProxyProtocol::V2.into(),
        trust_proxy_from: vec!["10.0.0.0/8".into()],
    };
    let kind = admin::spec::Kind::Loadbalancer(admin::LoadBalancer { listeners: vec![listener] });
    admin::Spec { replicas: Some(2), kind: Some(kind), ..Default::default() }
}

fn router() -> admin::Spec {
    let port = admin::NetworkPort { name: "int".into(), network: "n".into(), ..Default::default() };
    let route = admin::Route { destination: "10.8.0.0/16".into(), next_hop: "10.0.0.8".into() };
    let subnet = admin::Subnet {
        cidr: "fd00::/64".into(),
        gateway: "fd00::1".into(),
        dhcp: true,
        dns: vec!["fd00::53".into()],
        host_routes: vec![admin::Route { destination: "fd01::/64".into(), next_hop: "fd00::9".into() }],
        ra_mode: admin::subnet::Ipv6Mode::Slaac.into(),
        address_mode: admin::subnet::Ipv6Mode::Dhcpv6Stateless.into(),
    };
    let allocation = admin::Allocation {
        mac: "fa:16:3e:00:00:05".into(),
        addresses: vec!["fd00::5".into()],
        hostname: "a.local".into(),
        device: "d".into(),
    };
    let network = admin::RouterNetwork {
        port: "int".into(),
        role: admin::router_network::Role::Internal.into(),
        addresses: vec!["fd00::1/64".into()],
        mtu: 1500,
        subnets: vec![subnet],
        allocations: vec![allocation],
    };
    let router = admin::Router {
        hostname: "r".into(),
        networks: vec![network],
        routes: vec![route],
        floating_ips: vec![admin::FloatingIp { floating: "203.0.113.9".into(), fixed: "10.0.0.5".into() }],
        snat: Some(false),
        labels: vec![admin::RouterLabel { name: "peers".into(), networks: vec!["192.0.2.0/24".into()] }],
    };
    admin::Spec {
        replicas: Some(1),
        ports: vec![port],
        kind: Some(admin::spec::Kind::Router(router)),
        ..Default::default()
    }
}

fn desired(spec: admin::Spec) -> Option<wire::Desired> {
    Some(wire::Desired {
        name: "web".into(),
        tenant: "default".into(),
        driver: "process".into(),
        generation: 3,
        revision: 1,
        spec: Some(spec),
        written_term: 2,
        ..Default::default()
    })
}

fn mode() -> Option<wire::Mode> {
    Some(wire::Mode { term: 2, sequence: 7, hands_off: true })
}

fn run() -> wire::Run {
    wire::Run {
        id: vec![1; 16],
        appliance: vec![2; 16],
        tenant: "demo".into(),
        name: "web".into(),
        generation: 3,
        cause: "rebuild".into(),
        outcome: "completed".into(),
        error: "it fell over".into(),
        ago: Some(prost_types::Duration { seconds: 1, nanos: 5 }),
        took: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        steps: vec![wire::RunStep { step: "boot 0".into(), outcome: "booted".into(), took: None }],
        changes: vec![wire::PhaseChange { from: 1, to: 2, cause: "rebuild".into(), after: None }],
    }
}

pub(super) fn up_seeds() -> Vec<Vec<u8>> {
    use wire::worker_message::Body;
    let held = wire::Held { appliance: ID.to_vec(), token: token(), generation: 3, written_term: 2, mode: mode() };
    let hello = wire::Hello {
        worker: "worker-1".into(),
        profile: profile(),
        held: vec![held],
        released: released(),
        gone: granted(),
        highest_term: 3,
        ..Default::default()
    };
    let ack = wire::Ack {
        applied: 5,
        granted: granted(),
        declined: vec![wire::Declined { appliance: ID.to_vec(), token: token(), reason: "full".into() }],
        released: released(),
        gone: granted(),
        begun: steps(),
        ended: steps(),
        quiet: vec![wire::Quiet {
            appliance: ID.to_vec(),
            token: token(),
            mode_term: 2,
            mode_sequence: 7,
            hold: seconds(1),
        }],
    };
    let report = wire::ApplianceReport {
        appliance: ID.to_vec(),
        token: token(),
        status: Some(wire_status()),
        checked: 1,
        adopted: true,
        would_have: vec![wire::WouldHave {
            step: "boot 0".into(),
            reason: "it is gone".into(),
            ago: seconds(3),
            times: 2,
        }],
    };
    let holdings = Some(wire::Holdings { applied: 5, count: 2, digest: ID.to_vec() });
    let judgement = wire::Judgement { verdict: 2, field: "spec.pod".into(), reason: "forbidden".into() };
    let answer = |finding| Body::Answer(wire::Answer { number: 6, finding: Some(finding) });
    let bodies = [
        Body::Hello(hello),
        Body::Beat(wire::Beat { number: 300 }),
        Body::Ack(ack),
        Body::Report(wire::Report { appliances: vec![report], holdings, runs: vec![run()], run_batch: 9 }),
        Body::Leave(wire::Leave {}),
        Body::Drain(wire::Drain { hand_back: true }),
        answer(wire::answer::Finding::Unanswered("why".into())),
        answer(wire::answer::Finding::Judgement(judgement)),
        answer(wire::answer::Finding::Exec(wire::ExecAnswer {
            answer: Some(wire::exec_answer::Answer::Ended(wire::ExecEnd { how: Some(wire::exec_end::How::Exit(3)) })),
        })),
        answer(wire::answer::Finding::Exec(wire::ExecAnswer {
            answer: Some(wire::exec_answer::Answer::Stdout(vec![1, 2])),
        })),
        answer(wire::answer::Finding::Reloaded(wire::Reloaded {
            applied: vec!["log.filter".into()],
            needs_restart: vec!["name".into()],
            problem: String::new(),
        })),
    ];
    let message = |body| wire::WorkerMessage { envelope: envelope(), body: Some(body) }.encode_to_vec();
    bodies.into_iter().map(message).collect()
}

/// A message that was read is written as one that is read the same.
pub(super) fn up(input: &[u8]) -> Outcome {
    let Ok(message) = wire::WorkerMessage::decode(input) else { return Outcome::refused("protobuf") };
    let read = match up_from_wire(message) {
        Ok(read) => read,
        Err(error) => return refused(&error),
    };
    let written = match read.message.clone() {
        _ if read.answer.is_some() => {
            read.answer.iter().map(|said| answer_to_wire(&read.envelope, said.clone())).collect()
        }
        ToCoordinator::Hello(hello) => hello_to_wire(&read.envelope, *hello),
        other => vec![up_to_wire(&read.envelope, other)],
    };
    if let [one] = written.as_slice() {
        let again = up_from_wire(one.clone()).expect("what was read can be written");
        assert_eq!((&again.envelope, &again.message), (&read.envelope, &read.message));
        assert_eq!(again.answer, read.answer);
    }
    let finding = read.answer.as_ref().map(|answer| discriminant(&answer.finding));
    Outcome::read(&(discriminant(&read.message), finding, size(input.len())))
}

pub(super) fn down_seeds() -> Vec<Vec<u8>> {
    use wire::coordinator_message::Body;
    let grant = |spec| wire::Grant {
        appliance: ID.to_vec(),
        token: token(),
        desired: desired(spec),
        progress: progress(),
        hold: seconds(1),
        suspect: true,
        mode: mode(),
    };
    let delta = wire::Delta {
        base: 4,
        target: 5,
        grant: vec![grant(custom()), grant(balancer()), grant(router())],
        release: granted(),
        update: vec![wire::Update { appliance: ID.to_vec(), token: token(), desired: desired(custom()) }],
        check: vec![wire::Check { appliance: ID.to_vec(), token: token(), number: 8 }],
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        cause: vec![wire::Cause {
            appliance: ID.to_vec(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            tracestate: "rug=tail".into(),
            baggage: "user=alice".into(),
        }],
        mode: vec![wire::ModeChange { appliance: ID.to_vec(), token: token(), mode: mode() }],
    };
    let telemetry = Some(wire::TelemetryOrder {
        log_filter: "worker=debug".into(),
        log_for: seconds(60),
        sample_ratio: Some(0.5),
        sample_slow: seconds(1),
        sample_for: None,
    });
    let judge = wire::Judge { appliance: ID.to_vec(), desired: desired(custom()) };
    let inquiry = |question| {
        Body::Inquiry(wire::Inquiry {
            number: 6,
            within: seconds(5),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            tracestate: "rug=tail".into(),
            baggage: "user=alice".into(),
            question,
        })
    };
    let bodies = [
        Body::Welcome(wire::Welcome { keep: granted(), more: false, lease: seconds(10) }),
        Body::BeatAck(wire::BeatAck { number: 300 }),
        Body::Delta(delta),
        Body::Confirm(wire::Confirm { released: granted(), begun: steps() }),
        Body::Refused(wire::Refused { reason: 4, detail: "why".into(), retry_after: seconds(1) }),
        Body::Drained(wire::Drained {}),
        inquiry(Some(wire::inquiry::Question::Judge(judge))),
        inquiry(Some(wire::inquiry::Question::Exec(wire::Exec {
            step: Some(wire::exec::Step::Begin(wire::ExecBegin {
                appliance: ID.to_vec(),
                token: token(),
                desired: desired(custom()),
                ordinal: 1,
                command: vec!["uptime".into()],
                limit: seconds(60),
            })),
        }))),
        inquiry(Some(wire::inquiry::Question::ReloadConfig(wire::ReloadConfig {}))),
        inquiry(None),
    ];
    let message = |body| {
        wire::CoordinatorMessage {
            envelope: envelope(),
            body: Some(body),
            telemetry: telemetry.clone(),
            keep_hand_offs: vec![7, u64::MAX],
            runs_stored: 9,
        }
        .encode_to_vec()
    };
    bodies.into_iter().map(message).collect()
}

/// A message that was read is written as one that is read the same, but for entries that could not be used.
pub(super) fn down(input: &[u8]) -> Outcome {
    let Ok(message) = wire::CoordinatorMessage::decode(input) else { return Outcome::refused("protobuf") };
    let read = match down_from_wire(message) {
        Ok(read) => read,
        Err(error) => return refused(&error),
    };
    if let Some(inquiry) = &read.inquiry {
        let again =
            down_from_wire(inquiry_to_wire(&read.envelope, inquiry.clone())).expect("what was read can be written");
        let readable = !matches!(inquiry.question, Question::Unreadable(_));
        assert_eq!(again.inquiry.filter(|_| readable), Some(inquiry.clone()).filter(|_| readable));
        return Outcome::read(&(discriminant(&inquiry.question), size(input.len())));
    }
    if let [one] = down_to_wire(&read.envelope, read.message.clone(), &read.traceparent).as_slice() {
        let again = down_from_wire(one.clone()).expect("what was read can be written");
        assert_eq!((&again.envelope, &again.message), (&read.envelope, &read.message));
        assert_eq!(again.unreadable, []);
    }
    let problems = read.unreadable.iter().map(|one| Outcome::refused(&one.problem)).next();
    Outcome::read(&(discriminant(&read.message), problems, size(input.len())))
}

fn wire_appliance(spec: admin::Spec) -> admin::Appliance {
    admin::Appliance {
        name: "web".into(),
        tenant: "demo".into(),
        driver: "process".into(),
        id: "5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a".into(),
        placement_key: "k".into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        spec: Some(spec),
        ..Default::default()
    }
}

pub(super) fn appliance_seeds() -> Vec<Vec<u8>> {
    [custom(), balancer(), router()].map(|spec| wire_appliance(spec).encode_to_vec()).into()
}

/// A specification that was read is written as one that is read the same.
pub(super) fn appliance(input: &[u8]) -> Outcome {
    let Ok(appliance) = admin::Appliance::decode(input) else { return Outcome::refused("protobuf") };
    match draft_from_wire(Some(appliance.clone())) {
        Err(found) => violated(&found),
        Ok(draft) => {
            let written = admin::Appliance { spec: Some(spec_to_wire(&draft.spec)), ..appliance };
            assert_eq!(draft_from_wire(Some(written)), Ok(draft.clone()));
            Outcome::read(&(draft.spec.kind.name(), draft.spec.ports.len(), size(input.len())))
        }
    }
}

pub(super) fn update_seeds() -> Vec<Vec<u8>> {
    let paths = ["spec.custom.command", "spec.loadbalancer.listeners", "labels", "spec.replicas", "name", "*"];
    let with = |spec: admin::Spec, mask: Option<&str>, allow_missing| {
        admin::UpdateApplianceRequest {
            appliance: Some(wire_appliance(spec)),
            update_mask: mask.map(|path| prost_types::FieldMask { paths: vec![path.to_owned()] }),
            allow_missing,
            ..Default::default()
        }
        .encode_to_vec()
    };
    let mut seeds: Vec<_> = paths.iter().map(|path| with(custom(), Some(path), false)).collect();
    seeds.extend([with(balancer(), None, true), with(balancer(), Some(paths[1]), true)]);
    seeds
}

pub(super) fn update(input: &[u8]) -> Outcome {
    let Ok(request) = admin::UpdateApplianceRequest::decode(input) else { return Outcome::refused("protobuf") };
    match update_from_wire(request) {
        Err(found) => violated(&found),
        Ok(_) => Outcome::read(&size(input.len())),
    }
}

pub(super) fn reference_seeds() -> Vec<Vec<u8>> {
    use admin::appliance_ref::By;
    let name = By::Name(admin::TenantName { tenant: "demo".into(), name: "web".into() });
    [By::Id("5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a".into()), name]
        .map(|by| admin::ApplianceRef { by: Some(by) }.encode_to_vec())
        .into()
}

pub(super) fn reference(input: &[u8]) -> Outcome {
    let Ok(reference) = admin::ApplianceRef::decode(input) else { return Outcome::refused("protobuf") };
    match target_from_wire(Some(reference), "appliance") {
        Err(found) => violated(&found),
        Ok(target) => Outcome::read(&(discriminant(&target), size(input.len()))),
    }
}

pub(super) fn status_seeds() -> Vec<Vec<u8>> {
    vec![wire_status().encode_to_vec()]
}

/// A status that was read is written as one that is read the same, and stored as one as well.
pub(super) fn status(input: &[u8]) -> Outcome {
    let Ok(status) = admin::Status::decode(input) else { return Outcome::refused("protobuf") };
    match status_from_wire(status) {
        Err(violation) => refused(&violation),
        Ok(status) => {
            assert_eq!(status_from_wire(status_to_wire(&status)), Ok(status.clone()));
            let stored = serde_json::to_vec(&status).expect("plain data");
            assert_eq!(serde_json::from_slice::<common::status::Status>(&stored).expect("what was stored"), status);
            Outcome::read(&(status.phase, status.instances.len()))
        }
    }
}
