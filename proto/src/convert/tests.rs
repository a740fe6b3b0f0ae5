//! Round trips, refusals as tables, and bytes nobody meant: nothing that decodes may panic here.

mod driver;
mod inquiry;
mod session;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use common::Profile;
use common::appliance::{FieldViolation, Name, Spec, Timing};
use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::{
    Algorithm, Custom, HealthCheck, KindName, KindSpec, Limits, Listener, LoadBalancer, Member, Probe, ProcessLimits,
    ProcessOptions, ProxyProtocol,
};
use common::mode::{Quiet, WouldHave};
use common::network_port::{NetworkPort, PortAddress};
use common::pod::PodTemplate;
use common::ring::MAX_WEIGHT;
use common::secret::LifeSecret;
use common::session::{
    Ack, AnnouncedStep, Carryover, Confirm, Declined, Delta, DeltaEntry, Desired, Envelope, GrantRef, Hello,
    OwnedDigest, OwnedGrant, Refused, RefusedReason, Release, Report, StatusReport, ToCoordinator, ToWorker, Welcome,
};
use common::status::{EndCause, InstanceEnd, InstanceStatus, JournalEntry, Phase, Progress, Status};
use common::{
    ApplianceId, Digest, Edition, Generation, Incarnation, Mode, ModeEdition, SiteId, StreamNumber, Term, Token,
    WorkerId,
};
use proptest::prelude::*;
use prost::Message;

use super::admin::{draft_from_wire, status_from_wire, status_to_wire, target_from_wire};
use super::down::{FromCoordinator, down_from_wire, down_to_wire};
use super::patch::update_from_wire;
use super::up::{FromWorker, up_from_wire, up_to_wire};
use super::*;
use crate::admin::v1 as wire;
use crate::worker::v1 as worker_wire;

// ------------------------------------------------------------------------------------------------------ strategies

fn duration(ms: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    ms.prop_map(Duration::from_millis)
}

fn member() -> impl Strategy<Value = Member> {
    (any::<[u8; 4]>(), 1..=u16::MAX).prop_map(|(a, port)| Member { address: IpAddr::from(a), port })
}

fn kind() -> impl Strategy<Value = KindSpec> {
    let members = prop::collection::btree_set(member(), 0..4).prop_map(|m| m.into_iter().collect::<Vec<_>>());
    let check = (duration(50..=300_000), duration(50..=300_000), 1..=100u32, 1..=100u32)
        .prop_map(|(interval, timeout, fall, rise)| HealthCheck { interval, timeout, fall, rise });
    let times = (duration(1_000..=86_400_000), duration(1_000..=86_400_000), duration(0..=86_400_000));
    let limits = (prop::option::of(1..=100_000u32), times).prop_map(
        |(max_connections, (idle_timeout, half_close_timeout, drain_timeout))| Limits {
            max_connections,
            idle_timeout,
            half_close_timeout,
            drain_timeout,
        },
    );
    let limits = prop_oneof![Just(Limits::default()), limits];
    let networks = prop_oneof![Just("10.0.0.0/8"), Just("192.0.2.7"), Just("2001:db8::/32")];
    let networks = prop::collection::vec(networks.prop_map(|text| text.parse().expect("a network")), 0..3);
    let proxy = (prop::option::of(prop::sample::select(&ProxyProtocol::ALL)), networks);
    let routing = (prop::sample::select(&Algorithm::ALL), proxy);
    let listeners = prop::collection::vec((members, check, limits, routing), 1..4).prop_map(|all| {
        let listener =
            |(i, (members, health_check, limits, (algorithm, (proxy_protocol, trust_proxy_from))))| Listener {
                name: format!("l{i}"),
                address: IpAddr::from([127, 0, 0, 1]),
                port: 8000 + 100 * u16::try_from(i).expect("few listeners"),
                members,
                health_check,
                limits,
                algorithm,
                proxy_protocol,
                trust_proxy_from,
            };
        KindSpec::Loadbalancer(LoadBalancer { listeners: all.into_iter().enumerate().map(listener).collect() })
    });
    let exec = prop::collection::vec("[!-z]{1,9}", 1..4).prop_map(|command| Probe::Exec { command });
    let http = "/[a-z]{0,8}".prop_map(|path| Probe::Http { path });
    let probe = prop_oneof![Just(Probe::Tcp), Just(Probe::Process), Just(Probe::None), http, exec];
    let limit = || prop::option::of(1_u64 << 20..1 << 30);
    let limits = (limit(), limit(), limit(), limit(), prop::option::of(1..1000_u32));
    let limits = limits.prop_map(|(nofile, nproc, core, memory, cpu_percent)| ProcessLimits {
        nofile,
        nproc,
        core,
        memory,
        cpu_percent,
    });
    let name = || prop::option::of("[a-z]{1,8}");
    let process = (
        (prop::collection::vec("/[a-z]{1,8}", 0..3), name(), name(), prop::option::of("/[a-z]{1,8}"), limits),
        (prop::option::of(-20..=19_i8), any::<bool>(), any::<bool>(), prop::option::of(duration(0..=3_600_000))),
    );
    let process =
        process.prop_map(|((env_from, user, group, working_dir, limits), (nice, rights, signal, timeout))| {
            ProcessOptions {
                env_from,
                user,
                group,
                working_dir,
                limits,
                nice,
                no_new_privileges: rights,
                stop_signal: signal.then(|| "INT".parse().expect("a signal")),
                stop_timeout: timeout,
            }
        });
    let env = prop::collection::btree_map("[A-Z]{1,5}", "[ -z]{0,9}", 0..4);
    let args = prop::collection::vec("[ -z]{0,9}", 0..4);
    let custom = ("[a-z]{1,9}", args, env, prop::option::of(1..60_000u16), probe, process).prop_map(
        |(command, args, env, port, probe, process)| {
            KindSpec::Custom(Custom { command, args, env, port, probe, process: process.boxed() })
        },
    );
    prop_oneof![listeners, custom]
}

fn ports() -> impl Strategy<Value = Vec<NetworkPort>> {
    let address = (any::<[u8; 4]>(), prop::option::of(0..=32u8))
        .prop_map(|(ip, prefix)| PortAddress { ip: IpAddr::from(ip), prefix });
    let port = ("[!-~é]{1,20}", prop::option::of(address));
    prop::collection::vec(port, 0..4).prop_map(|all| {
        let port = |(i, (network, address)): (usize, (String, Option<PortAddress>))| NetworkPort {
            name: Name::new(&format!("p{i}")).expect("a name"),
            network,
            addresses: address.into_iter().collect(),
            mac: None,
        };
        all.into_iter().enumerate().map(port).collect()
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let times = (
        prop::option::of(duration(10..=600_000)),
        prop::option::of(duration(10_000..=86_400_000)),
        prop::option::of(duration(0..=9_000)),
    );
    let timing = times.prop_map(|(probe_timeout, boot_timeout, settle_time)| Timing {
        probe_timeout,
        boot_timeout,
        settle_time,
    });
    let interval = prop::option::of(duration(100..=3_600_000));
    (1..=16u16, (interval, timing), prop::option::of("[a-z]{1,9}"), ports(), kind()).prop_map(
        |(replicas, (probe_interval, timing), image, ports, kind)| {
            let mut ports = ports;
            if let Some(port) = ports.first_mut().filter(|_| replicas == 1) {
                port.mac = "fa:16:3e:00:00:01".parse().ok();
            }
            let pod = image.as_ref().map(|image| serde_json::json!({"metadata": {"labels": {"image": image}}}));
            let pod = pod.map(|pod| PodTemplate::new(&pod).expect("valid"));
            Spec { replicas, probe_interval, timing, image, ports, pod, kind }
        },
    )
}

fn grip() -> impl Strategy<Value = (ApplianceId, Token)> {
    (any::<u128>(), any::<u64>(), any::<u64>())
        .prop_map(|(id, term, n)| (ApplianceId::from_u128(id), Token::new(Term::new(term), n)))
}

fn grips() -> impl Strategy<Value = Vec<GrantRef>> {
    prop::collection::vec(grip().prop_map(|(appliance, token)| GrantRef::new(appliance, token)), 0..4)
}

fn steps() -> impl Strategy<Value = Vec<AnnouncedStep>> {
    let one =
        (grip(), any::<u64>()).prop_map(|((appliance, token), number)| AnnouncedStep { appliance, token, number });
    prop::collection::vec(one, 0..4)
}

fn end() -> impl Strategy<Value = InstanceEnd> {
    let cause = prop_oneof![any::<i32>().prop_map(EndCause::Exit), any::<i32>().prop_map(EndCause::Signal)];
    let lines = prop::collection::vec("[ -~]{0,30}", 0..6);
    ("[a-z0-9-]{0,30}", 0..1u64 << 42, cause, any::<bool>(), lines).prop_map(
        |(instance, at_unix_ms, cause, out_of_memory, last_lines)| {
            InstanceEnd { instance, at_unix_ms, cause, out_of_memory, last_lines }.bounded()
        },
    )
}

fn last_end() -> impl Strategy<Value = Option<Box<InstanceEnd>>> {
    prop::option::of(end().prop_map(Box::new))
}

fn progress() -> impl Strategy<Value = Progress> {
    let entry = ("[a-z ]{0,9}", "[a-z]{0,9}").prop_map(|(step, request_id)| JournalEntry { step, request_id });
    (any::<[u32; 2]>(), prop::collection::vec(any::<u32>(), 0..5), duration(0..=60_000), any::<bool>(), {
        (prop::collection::vec(entry, 0..4), last_end())
    })
        .prop_map(|([failed_boots, ends], attempts, wait, cooling, (journal, last_end))| Progress {
            failed_boots,
            ends,
            attempts,
            wait,
            cooling,
            journal,
            last_end,
        })
}

fn status() -> impl Strategy<Value = Status> {
    let instance = (any::<u16>(), any::<Option<bool>>(), any::<Option<u32>>(), 0..1u64 << 42, any::<bool>(), 0..9u64)
        .prop_map(|(ordinal, alive, pid, started_at_unix_ms, addressed, generation)| InstanceStatus {
            details: pid.map(|pid| ("pid", pid.to_string())).into_iter().chain([("node", "n1".to_owned())]).collect(),
            ports: (0..generation).map(|n| Name::new(&format!("p{n}")).expect("a name")).collect(),
            ordinal,
            name: format!("n{ordinal}"),
            alive,
            started_at_unix_ms,
            address: addressed.then(|| ([10, 0, 0, 1], ordinal).into()),
            configured: (generation > 0).then(|| Generation::new(generation)),
        });
    let phase = prop::sample::select(Phase::ALL.to_vec());
    let instances = prop::collection::vec(instance, 0..5);
    (phase, any::<u64>(), instances, prop::option::of("[ -~]{1,30}"), any::<u32>(), last_end()).prop_map(
        |(phase, generation, instances, last_error, failed_boots, last_end)| Status {
            phase,
            observed_generation: Generation::new(generation),
            instances,
            last_error,
            failed_boots,
            last_end,
        },
    )
}

fn envelope() -> impl Strategy<Value = Envelope> {
    (any::<u64>(), any::<Option<u128>>(), any::<u64>()).prop_map(|(term, incarnation, stream)| Envelope {
        term: Term::new(term),
        incarnation: incarnation.map(Incarnation::new),
        stream: StreamNumber::new(stream),
    })
}

fn releases() -> impl Strategy<Value = Vec<Release>> {
    prop::collection::vec((grip(), progress(), duration(0..=99_000)), 0..4).prop_map(|all| {
        let one = |((appliance, token), progress, fence_delay)| Release {
            appliance,
            token,
            carryover: Carryover { progress, fence_delay },
        };
        all.into_iter().map(one).collect()
    })
}

fn edition() -> impl Strategy<Value = Edition> {
    (any::<u64>(), any::<u64>()).prop_map(|(number, term)| Edition::new(Generation::new(number), Term::new(term)))
}

fn mode() -> impl Strategy<Value = Mode> {
    let one = |(term, sequence, off)| Mode::new(ModeEdition::new(Term::new(term), sequence), off);
    any::<(u64, u64, bool)>().prop_map(one)
}

fn offers(delay: u32) -> DriverOffers {
    let other = DriverCapabilities {
        fence_delay: Some(Duration::from_secs(delay.into())),
        plugs_ports: true,
        judges: true,
        kinds: [KindName::Custom].into(),
        ..DriverCapabilities::default()
    };
    DriverOffers::from([
        (
            DriverName::process(),
            DriverCapabilities {
                site: Some(SiteId::from_u128(7)),
                ..DriverCapabilities::of_all_kinds(Some("/var/lib/rug"))
            },
        ),
        (DriverName::new("other-cloud.v2").expect("a name"), other),
    ])
}

fn up() -> impl Strategy<Value = ToCoordinator> {
    let owned = (grip(), edition(), mode()).prop_map(|((appliance, token), edition, mode)| OwnedGrant {
        appliance,
        token,
        edition,
        mode,
    });
    let secret = prop::option::of(any::<[u8; 32]>());
    let hello = (prop::collection::vec(owned, 0..4), releases(), any::<u64>(), grips(), 1..=MAX_WEIGHT, secret)
        .prop_map(|(owned, released, term, removed, weight, secret)| {
            ToCoordinator::Hello(Box::new(Hello {
                worker: WorkerId::new("w1").expect("a valid name"),
                profile: Profile {
                    weight,
                    zone: "a".into(),
                    host: "h".into(),
                    drivers: offers(weight),
                    version: "1".into(),
                    pid: 7,
                    process: Some("5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/7/123".parse().expect("a process")),
                    lease: Duration::from_secs(2),
                },
                owned,
                released,
                removed,
                highest_term: Term::new(term),
                secret: secret.map(LifeSecret::new),
                knows_modes: weight % 2 == 0,
            }))
        });
    let declined =
        (grip(), "[ -~]{0,9}").prop_map(|((appliance, token), reason)| Declined { appliance, token, reason });
    let quiet = (grip(), mode(), duration(0..=99_000)).prop_map(|((appliance, token), mode, fence_delay)| Quiet {
        appliance,
        token,
        edition: mode.edition,
        fence_delay,
    });
    let declined = prop::collection::vec(declined, 0..3);
    let quiet = prop::collection::vec(quiet, 0..3);
    let ack = (any::<u64>(), grips(), declined, releases(), grips(), [steps(), steps()], quiet).prop_map(
        |(applied, granted, declined, released, removed, [begun, ended], quiet)| {
            ToCoordinator::Ack(Ack { applied, granted, declined, released, removed, begun, ended, quiet })
        },
    );
    let would_have = ("[a-z ]{0,9}", "[ -~]{0,9}", duration(0..=99_000), any::<u32>())
        .prop_map(|(step, reason, ago, times)| WouldHave { step, reason, ago, times });
    let would_have = prop::collection::vec(would_have, 0..3);
    let report = (grip(), status(), any::<u64>(), any::<bool>(), would_have).prop_map(
        |((appliance, token), status, checked, adopted, would_have)| StatusReport {
            appliance,
            token,
            status,
            checked,
            adopted,
            would_have,
        },
    );
    let holdings = any::<(u64, u64, u128)>()
        .prop_map(|(applied, count, sum)| OwnedDigest { applied, digest: Digest { count, sum } });
    prop_oneof![
        hello,
        any::<u64>().prop_map(ToCoordinator::Beat),
        ack,
        (prop::collection::vec(report, 0..4), prop::option::of(holdings))
            .prop_map(|(statuses, owned)| ToCoordinator::Report(Report { statuses, owned })),
        any::<bool>().prop_map(|hand_back| ToCoordinator::Drain { hand_back }),
        Just(ToCoordinator::Leave),
    ]
}

fn desired() -> impl Strategy<Value = Desired> {
    ("[a-z]{1,9}", edition(), any::<u64>(), any::<bool>(), spec()).prop_map(
        |(name, edition, revision, deleting, spec)| Desired {
            name: Name::new(&name).expect("lower-case letters"),
            tenant: Name::new("default").expect("a valid name"),
            driver: DriverName::simulated(),
            edition,
            revision,
            deleting,
            spec,
        },
    )
}

fn down() -> impl Strategy<Value = ToWorker> {
    let grant = (grip(), desired(), progress(), duration(0..=99_000), any::<bool>(), mode()).prop_map(
        |((appliance, token), desired, progress, fence_delay, suspect, mode)| DeltaEntry::Grant {
            appliance,
            token,
            desired: Arc::new(desired),
            carryover: Carryover { progress, fence_delay },
            suspect,
            mode,
        },
    );
    let modes = (grip(), mode()).prop_map(|((appliance, token), mode)| DeltaEntry::Mode { appliance, token, mode });
    let release = grip().prop_map(|(appliance, token)| DeltaEntry::Release(GrantRef::new(appliance, token)));
    let update = (grip(), desired()).prop_map(|((appliance, token), desired)| DeltaEntry::Update {
        appliance,
        token,
        desired: Arc::new(desired),
    });
    let check =
        (grip(), any::<u64>()).prop_map(|((appliance, token), number)| DeltaEntry::Check { appliance, token, number });
    // The wire has one list for each sort, in this order.
    let delta = (
        any::<u64>(),
        prop::collection::vec(grant, 0..3),
        prop::collection::vec(modes, 0..3),
        prop::collection::vec(release, 0..4),
        prop::collection::vec(update, 0..3),
        prop::collection::vec(check, 0..3),
    )
        .prop_map(|(base, grants, modes, releases, updates, checks)| {
            let entries = [grants, modes, releases, updates, checks].concat();
            ToWorker::Delta(Delta { base, target: base, rebalance: None, entries })
        });
    prop_oneof![
        (grips(), duration(0..=9_000)).prop_map(|(keep, lease)| ToWorker::Welcome(Welcome { keep, lease })),
        any::<u64>().prop_map(ToWorker::BeatAck),
        delta,
        (grips(), steps()).prop_map(|(released, begin)| ToWorker::Confirm(Confirm { released, begin })),
        Just(ToWorker::Refused(Refused {
            reason: RefusedReason::NameTaken,
            detail: "w1 lives".into(),
            retry_after: Some(Duration::from_secs(1)),
        })),
    ]
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

// ------------------------------------------------------------------------------------------------------ properties

/// Decodes what damaged bytes still decode to, and converts it; only panics are failures.
fn convert_all(bytes: &[u8]) {
    if let Ok(message) = worker_wire::WorkerMessage::decode(bytes) {
        let _ = up_from_wire(message);
    }
    if let Ok(message) = worker_wire::CoordinatorMessage::decode(bytes) {
        let _ = down_from_wire(message);
    }
    if let Ok(request) = wire::CreateApplianceRequest::decode(bytes) {
        let _ = draft_from_wire(request.appliance);
    }
    if let Ok(request) = wire::GetApplianceRequest::decode(bytes) {
        let _ = target_from_wire(request.appliance, "appliance");
    }
    if let Ok(status) = wire::Status::decode(bytes) {
        let _ = status_from_wire(status);
    }
    if let Ok(request) = wire::UpdateApplianceRequest::decode(bytes)
        && let Ok(update) = update_from_wire(request)
        && let Some(draft) = &update.create
    {
        let _ = update.patch.apply(&draft.spec);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_spec_survives_the_wire(spec in spec()) {
        prop_assume!(spec.validate().is_empty());
        prop_assert_eq!(spec_from_wire(spec_to_wire(&spec), "spec"), Ok(spec));
    }

    #[test]
    fn a_status_survives_the_wire(status in status()) {
        prop_assert_eq!(status_from_wire(status_to_wire(&status)), Ok(status));
    }

    #[test]
    fn messages_of_a_worker_survive_the_wire(envelope in envelope(), up in up()) {
        let bytes = up_to_wire(&envelope, up.clone()).encode_to_vec();
        let decoded = worker_wire::WorkerMessage::decode(bytes.as_slice()).expect("just encoded");
        prop_assert_eq!(up_from_wire(decoded), Ok(FromWorker { envelope, message: up, more: false, answer: None, runs: None, unusable: None }));
    }

    #[test]
    fn messages_of_the_leader_survive_the_wire(envelope in envelope(), down in down()) {
        let specs_valid = match &down {
            ToWorker::Delta(delta) => delta.entries.iter().all(|entry| match entry {
                DeltaEntry::Grant { desired, .. } | DeltaEntry::Update { desired, .. } => {
                    desired.spec.validate().is_empty()
                }
                DeltaEntry::Release(_) | DeltaEntry::Check { .. } | DeltaEntry::Mode { .. } => true,
            }),
            _ => true,
        };
        prop_assume!(specs_valid);
        let traceparent = if matches!(&down, ToWorker::Delta(_)) { TRACEPARENT } else { "" };
        let bytes = down_to_wire(&envelope, down.clone(), traceparent).remove(0).encode_to_vec();
        let decoded = worker_wire::CoordinatorMessage::decode(bytes.as_slice()).expect("just encoded");
        let traceparent = traceparent.to_owned();
        let read = FromCoordinator { envelope, message: down, more: false, unreadable: vec![], traceparent, causes: vec![], telemetry: None, inquiry: None, keep_hand_offs: vec![], runs_stored: None };
        prop_assert_eq!(down_from_wire(decoded), Ok(read));
    }

    #[test]
    fn a_long_hello_is_split_and_joined(owned in 0..2_500_usize, removed in 0..1_500_usize) {
        let grant = |n: usize| GrantRef::new(ApplianceId::from_u128(n as u128), Token::new(Term::new(1), n as u64));
        let one = |g: GrantRef| OwnedGrant { appliance: g.appliance, token: g.token, edition: Edition::default(), mode: Mode::default() };
        let hello = Hello {
            worker: WorkerId::new("w1").expect("a valid name"),
            profile: Profile { weight: 1, host: "h".into(), lease: Duration::from_secs(1), ..Profile::default() },
            owned: (0..owned).map(grant).map(one).collect(),
            released: vec![],
            removed: (0..removed).map(grant).collect(),
            highest_term: Term::new(1),
            secret: Some(LifeSecret::new([1; 32])),
            knows_modes: true,
        };
        let envelope = Envelope { term: Term::new(1), incarnation: None, stream: StreamNumber::new(1) };
        let messages = super::up::hello_to_wire(&envelope, hello.clone());
        let count = messages.len();
        let mut parts = messages.into_iter().enumerate().map(|(n, message)| {
            let part = up_from_wire(message).expect("just written");
            assert_eq!((part.envelope, part.more), (envelope, n + 1 < count));
            match part.message {
                ToCoordinator::Hello(hello) => *hello,
                other => panic!("not a hello: {other:?}"),
            }
        });
        let mut whole = parts.next().expect("at least one");
        assert!(parts.all(|part| super::up::extend_hello(&mut whole, part)));
        prop_assert_eq!(whole, hello);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        convert_all(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        up in up(), down in down(), spec in spec(), at in any::<prop::sample::Index>(), with in any::<u8>(),
    ) {
        let envelope = Envelope { term: Term::new(1), incarnation: None, stream: StreamNumber::new(1) };
        let appliance = wire::Appliance { name: "a".into(), spec: Some(spec_to_wire(&spec)), ..Default::default() };
        let update = wire::UpdateApplianceRequest {
            appliance: Some(appliance),
            update_mask: Some(prost_types::FieldMask { paths: vec!["spec.replicas".into(), "spec.custom.port".into()] }),
            allow_missing: true,
            ..Default::default()
        };
        for mut bytes in [
            up_to_wire(&envelope, up).encode_to_vec(),
            down_to_wire(&envelope, down, TRACEPARENT).remove(0).encode_to_vec(),
            update.encode_to_vec(),
        ] {
            let at = at.index(bytes.len());
            bytes[at] = with;
            convert_all(&bytes);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- tables

fn custom_appliance() -> wire::Appliance {
    let custom = wire::Custom { command: "sleep".into(), args: vec!["9".into()], ..Default::default() };
    wire::Appliance {
        name: "web".into(),
        spec: Some(wire::Spec { kind: Some(wire::spec::Kind::Custom(custom)), ..Default::default() }),
        ..Default::default()
    }
}

fn lb(listener: wire::Listener) -> Option<wire::spec::Kind> {
    Some(wire::spec::Kind::Loadbalancer(wire::LoadBalancer { listeners: vec![listener] }))
}

fn fields<T: std::fmt::Debug>(result: Result<T, Vec<FieldViolation>>) -> Vec<String> {
    result.expect_err("it must be refused").into_iter().map(|v| v.field).collect()
}

#[test]
fn defaults_of_the_api_are_filled_in() {
    let draft = draft_from_wire(Some(custom_appliance())).expect("valid");
    assert_eq!((draft.tenant.as_str(), draft.driver, draft.spec.replicas), ("default", DriverName::process(), 1));
    let mut appliance = custom_appliance();
    appliance.spec.as_mut().expect("has one").kind = lb(wire::Listener { port: 80, ..Default::default() });
    let KindSpec::Loadbalancer(lb) = draft_from_wire(Some(appliance)).expect("valid").spec.kind else {
        panic!("the kind changed on the way");
    };
    assert_eq!(lb.listeners[0].name, "listener-0");
    assert_eq!(lb.listeners[0].health_check, HealthCheck::default());
}

#[test]
fn each_odd_field_of_a_document_is_named() {
    type Spoil = fn(&mut wire::Appliance);
    fn spec(a: &mut wire::Appliance) -> &mut wire::Spec {
        a.spec.as_mut().expect("has one")
    }
    let cases: &[(&str, Spoil)] = &[
        ("appliance.name", |a| a.name = "No".into()),
        ("appliance.id", |a| a.id = "123".into()),
        ("appliance.tenant", |a| a.tenant = "-".into()),
        ("appliance.driver", |a| a.driver = "A Floppy".into()),
        ("appliance.placement_key", |a| a.placement_key = "x".repeat(300)),
        ("appliance.labels", |a| a.labels = [(String::new(), "v".into())].into()),
        ("appliance.labels[\"k\"]", |a| a.labels = [("k".into(), "\n".into())].into()),
        ("appliance.spec", |a| a.spec = None),
        ("appliance.spec.kind", |a| spec(a).kind = None),
        ("appliance.spec.replicas", |a| spec(a).replicas = Some(-1)),
        ("appliance.spec.replicas", |a| spec(a).replicas = Some(0)),
        ("appliance.spec.replicas", |a| spec(a).replicas = Some(70_000)),
        ("appliance.spec.probe_interval", |a| {
            spec(a).probe_interval = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        }),
        ("appliance.spec.probe_interval", |a| {
            spec(a).probe_interval = Some(prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX });
        }),
        ("appliance.spec.probe_interval", |a| {
            spec(a).probe_interval = Some(prost_types::Duration { seconds: 0, nanos: 1 });
        }),
        ("appliance.spec.loadbalancer.listeners[0].port", |a| {
            spec(a).kind = lb(wire::Listener { port: 65_536, ..Default::default() });
        }),
        ("appliance.spec.loadbalancer.listeners[0].address", |a| {
            spec(a).kind = lb(wire::Listener { port: 1, address: "localhost".into(), ..Default::default() });
        }),
        ("appliance.spec.loadbalancer.listeners[0].members[0].address", |a| {
            let members = vec![wire::Member { address: "1.2.3".into(), port: 1 }];
            spec(a).kind = lb(wire::Listener { port: 1, members, ..Default::default() });
        }),
        ("appliance.spec.loadbalancer.listeners[0].members[0].port", |a| {
            let members = vec![wire::Member { address: String::new(), port: 0 }];
            spec(a).kind = lb(wire::Listener { port: 1, members, ..Default::default() });
        }),
        ("appliance.spec.loadbalancer.listeners[0].algorithm", |a| {
            spec(a).kind = lb(wire::Listener { port: 1, algorithm: 9, ..Default::default() });
        }),
        ("appliance.spec.loadbalancer.listeners[0].proxy_protocol", |a| {
            spec(a).kind = lb(wire::Listener { port: 1, proxy_protocol: 9, ..Default::default() });
        }),
        ("appliance.spec.loadbalancer.listeners[0].trust_proxy_from[1]", |a| {
            let trust_proxy_from = vec!["10.0.0.0/8".into(), "10.0.0.1/8".into()];
            spec(a).kind = lb(wire::Listener { port: 1, trust_proxy_from, ..Default::default() });
        }),
        ("appliance.spec.custom.command", |a| spec(a).kind = Some(wire::spec::Kind::Custom(Default::default()))),
    ];
    for (field, spoil) in cases {
        let mut appliance = custom_appliance();
        spoil(&mut appliance);
        assert_eq!(fields(draft_from_wire(Some(appliance))), [*field]);
    }
}

#[test]
fn all_violations_of_a_document_come_in_one_answer() {
    let mut appliance = custom_appliance();
    appliance.name.clear();
    appliance.id = "?".into();
    let spec = appliance.spec.as_mut().expect("has one");
    spec.replicas = Some(-3);
    spec.kind = None;
    assert_eq!(
        fields(draft_from_wire(Some(appliance))),
        ["appliance.id", "appliance.name", "appliance.spec.replicas", "appliance.spec.kind"]
    );
}

#[test]
fn a_spec_beyond_the_limit_is_refused_before_it_is_read() {
    let mut appliance = custom_appliance();
    appliance.spec.as_mut().expect("has one").image = "x".repeat(common::appliance::MAX_SPEC);
    let violations = draft_from_wire(Some(appliance)).expect_err("too large");
    assert_eq!(violations[0].field, "appliance.spec");
    assert!(violations[0].description.contains("at most 262144"), "{}", violations[0]);
}

fn update(paths: &[&str], appliance: wire::Appliance) -> wire::UpdateApplianceRequest {
    wire::UpdateApplianceRequest {
        appliance: Some(appliance),
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() }),
        ..Default::default()
    }
}

#[test]
fn a_masked_update_changes_the_named_fields_and_no_others() {
    let current = draft_from_wire(Some(custom_appliance())).expect("valid").spec;
    let mut appliance = custom_appliance();
    let spec = appliance.spec.as_mut().expect("has one");
    spec.replicas = Some(3);
    spec.image = "other".into();
    spec.kind = Some(wire::spec::Kind::Custom(wire::Custom { port: Some(8000), ..Default::default() }));
    let update = update_from_wire(update(&["spec.replicas", "spec.custom.port"], appliance)).expect("valid");
    assert_eq!((update.patch.name.clone(), update.patch.labels.clone()), (None, None));
    let next = update.patch.apply(&current).expect("valid");
    let KindSpec::Custom(custom) = &next.kind else { panic!("the kind changed on the way") };
    assert_eq!((next.replicas, next.image.as_deref(), custom.port), (3, None, Some(8000)));
    assert_eq!(custom.command, "sleep");
}

#[test]
fn ports_are_updated_as_a_whole_and_every_mistake_is_named() {
    let current = draft_from_wire(Some(custom_appliance())).expect("valid").spec;
    let port = |name: &str, address: &str, mac: &str| wire::NetworkPort {
        name: name.into(),
        network: "net-1".into(),
        addresses: vec![address.into()],
        mac: mac.into(),
    };
    let with = |ports| {
        let mut appliance = custom_appliance();
        appliance.spec.as_mut().expect("has one").ports = ports;
        update_from_wire(update(&["spec.ports"], appliance))
    };
    let patch = with(vec![port("external", "10.0.0.3/24", "FA:16:3E:00:00:01")]).expect("valid").patch;
    let next = patch.apply(&current).expect("valid");
    assert_eq!(next.ports[0].mac.map(|mac| mac.to_string()).as_deref(), Some("fa:16:3e:00:00:01"));
    assert_eq!((next.ports[0].name.as_str(), next.replicas), ("external", current.replicas));
    let none = with(vec![]).expect("valid").patch;
    assert_eq!(none.apply(&next).expect("valid").ports, []);
    let wrong = with(vec![port("External", "10.0.0.3/24", ""), port("b", "10.0.0.3/64", "01:00:00:00:00:01")]);
    let places = ["ports[0].name", "ports[1].addresses[0]", "ports[1].mac"];
    assert_eq!(fields(wrong), places.map(|place| format!("appliance.spec.{place}")));
    let twice = with(vec![port("a", "10.0.0.3", ""), port("a", "10.0.0.4", "")]).expect("each can be read").patch;
    assert_eq!(fields(twice.apply(&current)), ["appliance.spec.ports[1].name"]);
}

#[test]
fn an_instance_of_the_version_before_has_its_process_id_among_the_details() {
    let instance = wire::Instance { name: "a-0-1".into(), pid: Some(4711), ..Default::default() };
    let status = wire::Status { phase: wire::Phase::Up.into(), instances: vec![instance], ..wire::Status::default() };
    let read = status_from_wire(status).expect("valid");
    assert_eq!(read.instances[0].details.get("pid"), Some("4711"));
    assert_eq!(status_to_wire(&read).instances[0].pid, Some(4711), "and old readers still find it");
}

#[test]
fn masks_that_cannot_be_followed_name_the_field() {
    let cases: &[(&str, &str)] = &[
        ("driver", "update_mask"),
        ("spec.nonsense", "update_mask"),
        ("spec.loadbalancer", "appliance.spec.loadbalancer"),
    ];
    for (path, field) in cases {
        assert_eq!(fields(update_from_wire(update(&[path], custom_appliance()))), [*field], "{path}");
    }
    let many = vec!["spec"; 65];
    assert_eq!(fields(update_from_wire(update(&many, custom_appliance()))), ["update_mask"]);
}

#[test]
fn a_patch_of_another_kinds_field_is_refused() {
    let patch = update_from_wire(update(&["spec.custom.port"], custom_appliance())).expect("valid").patch;
    let mut balancer = custom_appliance();
    balancer.spec.as_mut().expect("has one").kind = lb(wire::Listener { port: 80, ..Default::default() });
    let current = draft_from_wire(Some(balancer)).expect("valid").spec;
    assert_eq!(fields(patch.apply(&current)), ["update_mask"]);
}

#[test]
fn a_reference_names_what_it_lacks() {
    let by = |by| target_from_wire(Some(wire::ApplianceRef { by: Some(by) }), "appliance");
    assert_eq!(fields(target_from_wire(None, "appliance")), ["appliance"]);
    assert_eq!(fields(by(wire::appliance_ref::By::Id("x".into()))), ["appliance.id"]);
    assert_eq!(fields(by(wire::appliance_ref::By::Name(wire::TenantName::default()))), ["appliance.name.name"]);
}

#[test]
fn the_environment_keeps_its_order_and_content() {
    let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())]);
    let kind = KindSpec::Custom(Custom { command: "x".into(), env, ..Custom::default() });
    let spec = Spec {
        replicas: 1,
        probe_interval: None,
        timing: Timing::default(),
        image: None,
        pod: None,
        ports: vec![],
        kind,
    };
    assert_eq!(spec_from_wire(spec_to_wire(&spec), "spec"), Ok(spec));
}

#[test]
fn a_router_survives_the_wire() {
    let spec = serde_json::json!({
        "replicas": 1,
        "ports": [{"name": "ext", "network": "n1"}, {"name": "int", "network": "n2"}],
        "kind": {"router": {
            "hostname": "r1.example",
            "networks": [
                {"port": "ext", "role": "external", "addresses": ["203.0.113.7/24"], "mtu": 1400,
                    "subnets": [{"cidr": "203.0.113.0/24", "gateway": "203.0.113.1"}]},
                {"port": "int", "role": "internal", "addresses": ["10.0.0.1/24", "fd00:1::1/64"],
                    "subnets": [
                        {"cidr": "10.0.0.0/24", "gateway": "10.0.0.1", "dhcp": true, "dns": ["192.0.2.53"],
                            "host_routes": [{"destination": "10.9.0.0/16", "next_hop": "10.0.0.9"}]},
                        {"cidr": "fd00:1::/64", "ra_mode": "slaac", "address_mode": "dhcpv6_stateless"}],
                    "allocations": [{"mac": "fa:16:3e:00:00:05", "addresses": ["10.0.0.5"], "hostname": "a.local", "device": "d"}]}],
            "routes": [{"destination": "0.0.0.0/0", "next_hop": "10.0.0.8"}],
            "floating_ips": [{"floating": "203.0.113.20", "fixed": "10.0.0.5"}],
            "snat": false,
            "labels": {"peers": ["192.0.2.0/24", "192.0.2.7"]}}},
    });
    let spec: Spec = serde_json::from_value(spec).expect("a stored router");
    assert_eq!(spec.validate(), []);
    assert_eq!(spec_from_wire(spec_to_wire(&spec), "spec"), Ok(spec.clone()));
    let mut wire = spec_to_wire(&spec);
    let Some(wire::spec::Kind::Router(router)) = &mut wire.kind else { panic!("a router") };
    router.networks[0].role = 0;
    router.networks[1].subnets[0].cidr = "10.0.0.1/24".into();
    router.networks[1].port = "other".into();
    router.floating_ips[0].fixed = "x".into();
    let found = spec_from_wire(wire, "spec").expect_err("several are wrong");
    let fields: Vec<_> = found.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.router.networks[0].role",
            "spec.router.networks[1].subnets[0].cidr",
            "spec.router.floating_ips[0].fixed"
        ]
    );
}
