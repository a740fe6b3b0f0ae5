//! The specification of an appliance: every field is read, everything wrong is noted, then the whole is checked.

use std::collections::HashMap;
use std::time::Duration;

use common::appliance::{FieldViolation, MAX_REPLICAS, MAX_SPEC, Name, Spec, SpecTime, Timing, Violations};
use common::kind::{
    self, Algorithm, Custom, HealthCheck, KindSpec, Limits, Listener, LoadBalancer, Member, Probe, ProcessLimits,
    ProcessOptions, ProxyProtocol,
};
use common::network_port::{MAX_NETWORK_PORTS, NetworkPort};
use prost::Message;

use super::pod::{pod_to_wire, read_pod};
use super::router::{read_router, router_to_wire};
use super::scalar::{address_from_wire, duration_from_wire, duration_to_wire, port_from_wire};
use crate::admin::v1 as wire;

/// Reads a specification whose path in the request is `at` (such as `appliance.spec`).
///
/// # Errors
/// Every violation, with field paths below `at`.
pub fn spec_from_wire(wire: wire::Spec, at: &str) -> Result<Spec, Vec<FieldViolation>> {
    let mut found = Violations::default();
    let spec = read(wire, at, &mut found);
    found.into_result(spec)
}

/// Reads a specification; `None` when `found` says why.
pub(super) fn read(wire: wire::Spec, at: &str, found: &mut Violations) -> Option<Spec> {
    if !fits(&wire, at, found) {
        return None;
    }
    let mut own = Violations::default();
    let replicas = wire.replicas.map_or(Some(1), |n| replicas(n, at, &mut own));
    let times = SpecTime::ALL.map(|time| (time, read_time(time, &wire, at, &mut own)));
    let image = (!wire.image.is_empty()).then_some(wire.image);
    let ports = read_ports(wire.ports, at, &mut own);
    let pod = read_pod(wire.pod, at, &mut own);
    let kind = read_kind(wire.kind, at, &mut own);
    let readable = kind.is_some();
    // A missing kind gets a placeholder, so that one answer also has what is wrong with the other fields.
    let kind = kind.unwrap_or_else(|| KindSpec::Custom(Custom { command: "-".to_owned(), ..Custom::default() }));
    let (probe_interval, timing) = (None, Timing::default());
    let mut spec = Spec { replicas: replicas.unwrap_or(1), probe_interval, timing, image, ports, pod, kind };
    times.into_iter().for_each(|(time, value)| *spec.time_mut(time) = value);
    spec.validate_at(at, &mut own);
    let usable = readable && own.is_empty();
    own.into_vec().into_iter().for_each(|v| found.add(v.field, v.description));
    usable.then_some(spec)
}

/// Whether the message is small enough to be looked at. The exact limit, on the stored form, is checked before storing.
pub(super) fn fits(wire: &wire::Spec, at: &str, found: &mut Violations) -> bool {
    let size = wire.encoded_len();
    if size > MAX_SPEC {
        found.add(at, format!("has {size} bytes, at most {MAX_SPEC} are allowed"));
    }
    size <= MAX_SPEC
}

pub(super) fn replicas(n: i32, at: &str, found: &mut Violations) -> Option<u16> {
    let read = u16::try_from(n).ok().filter(|n| (1..=MAX_REPLICAS).contains(n));
    if read.is_none() {
        found.add(format!("{at}.replicas"), format!("must be 1 to {MAX_REPLICAS}, is {n}"));
    }
    read
}

/// Reads one of the times.
pub(super) fn read_time(time: SpecTime, wire: &wire::Spec, at: &str, found: &mut Violations) -> Option<Duration> {
    let value = match time {
        SpecTime::ProbeInterval => wire.probe_interval,
        SpecTime::ProbeTimeout => wire.probe_timeout,
        SpecTime::BootTimeout => wire.boot_timeout,
        SpecTime::SettleTime => wire.settle_time,
    };
    duration(&value?, &format!("{at}.{}", time.name()), found)
}

pub(super) fn duration(wire: &prost_types::Duration, at: &str, found: &mut Violations) -> Option<Duration> {
    found.take(at, duration_from_wire(wire))
}

/// Reads network ports; none when one of them cannot be read, which is noted.
pub(super) fn read_ports(wire: Vec<wire::NetworkPort>, at: &str, found: &mut Violations) -> Vec<NetworkPort> {
    let at = format!("{at}.ports");
    if wire.len() > MAX_NETWORK_PORTS {
        found.add(at, format!("has {} entries, at most {MAX_NETWORK_PORTS} are allowed", wire.len()));
        return Vec::new();
    }
    let read: Vec<_> =
        wire.into_iter().enumerate().map(|(i, port)| read_port(port, &format!("{at}[{i}]"), found)).collect();
    read.into_iter().collect::<Option<_>>().unwrap_or_default()
}

fn read_port(wire: wire::NetworkPort, at: &str, found: &mut Violations) -> Option<NetworkPort> {
    let name = found.take(&format!("{at}.name"), Name::new(&wire.name));
    let addresses: Vec<_> = (wire.addresses.iter().enumerate())
        .map(|(i, address)| found.take(&format!("{at}.addresses[{i}]"), address.parse()))
        .collect();
    let mac =
        if wire.mac.is_empty() { Some(None) } else { found.take(&format!("{at}.mac"), wire.mac.parse().map(Some)) };
    let addresses = addresses.into_iter().collect::<Option<_>>();
    Some(NetworkPort { name: name?, network: wire.network, addresses: addresses?, mac: mac? })
}

/// The name of the kind of a message.
pub(super) const fn kind_name(kind: &wire::spec::Kind) -> &'static str {
    match kind {
        wire::spec::Kind::Loadbalancer(_) => "loadbalancer",
        wire::spec::Kind::Custom(_) => "custom",
        wire::spec::Kind::Router(_) => "router",
    }
}

/// A message of this kind with nothing set.
pub(super) fn empty_kind(name: &str) -> Option<wire::spec::Kind> {
    match name {
        "loadbalancer" => Some(wire::spec::Kind::Loadbalancer(wire::LoadBalancer::default())),
        "custom" => Some(wire::spec::Kind::Custom(wire::Custom::default())),
        "router" => Some(wire::spec::Kind::Router(wire::Router::default())),
        _ => None,
    }
}

/// Takes the maps out of a specification, which are encoded in no particular order.
pub fn take_maps(spec: &mut wire::Spec) -> Option<HashMap<String, String>> {
    match spec.kind.as_mut()? {
        wire::spec::Kind::Custom(custom) => Some(std::mem::take(&mut custom.env)),
        wire::spec::Kind::Loadbalancer(_) | wire::spec::Kind::Router(_) => None,
    }
}

pub(super) fn read_kind(kind: Option<wire::spec::Kind>, at: &str, found: &mut Violations) -> Option<KindSpec> {
    match kind {
        None => {
            found.add(format!("{at}.kind"), format!("one of {} is needed", kind::names()));
            None
        }
        Some(wire::spec::Kind::Loadbalancer(lb)) => {
            let at = format!("{at}.loadbalancer.listeners");
            let listeners =
                lb.listeners.into_iter().enumerate().map(|(i, l)| read_listener(i, l, &at, found)).collect();
            Some(KindSpec::Loadbalancer(LoadBalancer { listeners }))
        }
        Some(wire::spec::Kind::Custom(custom)) => Some(KindSpec::Custom(read_custom(custom, at, found))),
        Some(wire::spec::Kind::Router(router)) => {
            read_router(router, &format!("{at}.router"), found).map(KindSpec::Router)
        }
    }
}

fn read_listener(i: usize, wire: wire::Listener, at: &str, found: &mut Violations) -> Listener {
    let name = if wire.name.is_empty() { format!("listener-{i}") } else { wire.name };
    let members = wire.members.into_iter().enumerate().map(|(m, member)| Member {
        address: found
            .take(&format!("{at}[{i}].members[{m}].address"), address_from_wire(&member.address))
            .unwrap_or([127, 0, 0, 1].into()),
        port: found.take(&format!("{at}[{i}].members[{m}].port"), port_from_wire(member.port)).unwrap_or(1),
    });
    let members = members.collect();
    Listener {
        name,
        address: found
            .take(&format!("{at}[{i}].address"), address_from_wire(&wire.address))
            .unwrap_or([127, 0, 0, 1].into()),
        port: found.take(&format!("{at}[{i}].port"), port_from_wire(wire.port)).unwrap_or(1),
        members,
        health_check: read_health_check(wire.health_check, &format!("{at}[{i}].health_check"), found),
        limits: read_limits(wire.limits, &format!("{at}[{i}].limits"), found),
        algorithm: found.take(&format!("{at}[{i}].algorithm"), algorithm_from_wire(wire.algorithm)).unwrap_or_default(),
        proxy_protocol: found
            .take(&format!("{at}[{i}].proxy_protocol"), proxy_protocol_from_wire(wire.proxy_protocol))
            .flatten(),
        trust_proxy_from: (wire.trust_proxy_from.into_iter().enumerate())
            .filter_map(|(n, network)| found.take(&format!("{at}[{i}].trust_proxy_from[{n}]"), network.parse()))
            .collect(),
    }
}

/// A number for which this version has no word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not known to this version")]
pub struct UnknownNumber(pub(super) i32);

/// Reads how a listener chooses members.
///
/// # Errors
/// [`UnknownNumber`].
pub fn algorithm_from_wire(number: i32) -> Result<Algorithm, UnknownNumber> {
    use wire::listener::Algorithm as Wire;
    match Wire::try_from(number).map_err(|_| UnknownNumber(number))? {
        Wire::Unspecified | Wire::RoundRobin => Ok(Algorithm::RoundRobin),
        Wire::LeastConnections => Ok(Algorithm::LeastConnections),
        Wire::SourceHash => Ok(Algorithm::SourceHash),
    }
}

/// Writes how a listener chooses members.
#[must_use]
pub fn algorithm_to_wire(algorithm: Algorithm) -> i32 {
    use wire::listener::Algorithm as Wire;
    let algorithm = match algorithm {
        // As before there was a choice.
        Algorithm::RoundRobin => Wire::Unspecified,
        Algorithm::LeastConnections => Wire::LeastConnections,
        Algorithm::SourceHash => Wire::SourceHash,
    };
    algorithm.into()
}

/// Reads what connections to members begin with.
///
/// # Errors
/// [`UnknownNumber`].
pub fn proxy_protocol_from_wire(number: i32) -> Result<Option<ProxyProtocol>, UnknownNumber> {
    use wire::listener::ProxyProtocol as Wire;
    match Wire::try_from(number).map_err(|_| UnknownNumber(number))? {
        Wire::Unspecified => Ok(None),
        Wire::V1 => Ok(Some(ProxyProtocol::V1)),
        Wire::V2 => Ok(Some(ProxyProtocol::V2)),
    }
}

/// Writes what connections to members begin with.
#[must_use]
pub fn proxy_protocol_to_wire(version: Option<ProxyProtocol>) -> i32 {
    use wire::listener::ProxyProtocol as Wire;
    let version = match version {
        None => Wire::Unspecified,
        Some(ProxyProtocol::V1) => Wire::V1,
        Some(ProxyProtocol::V2) => Wire::V2,
    };
    version.into()
}

fn read_limits(wire: Option<wire::ConnectionLimits>, at: &str, found: &mut Violations) -> Limits {
    let default = Limits::default();
    let Some(wire) = wire else { return default };
    let mut time = |field: &str, value: Option<prost_types::Duration>, default| {
        value.map_or(default, |d| duration(&d, &format!("{at}.{field}"), found).unwrap_or(default))
    };
    Limits {
        max_connections: (wire.max_connections > 0).then_some(wire.max_connections),
        idle_timeout: time("idle_timeout", wire.idle_timeout, default.idle_timeout),
        half_close_timeout: time("half_close_timeout", wire.half_close_timeout, default.half_close_timeout),
        drain_timeout: time("drain_timeout", wire.drain_timeout, default.drain_timeout),
    }
}

fn limits_to_wire(limits: &Limits) -> Option<wire::ConnectionLimits> {
    (*limits != Limits::default()).then(|| wire::ConnectionLimits {
        max_connections: limits.max_connections.unwrap_or(0),
        idle_timeout: Some(duration_to_wire(limits.idle_timeout)),
        half_close_timeout: Some(duration_to_wire(limits.half_close_timeout)),
        drain_timeout: Some(duration_to_wire(limits.drain_timeout)),
    })
}

fn read_health_check(wire: Option<wire::HealthCheck>, at: &str, found: &mut Violations) -> HealthCheck {
    let default = HealthCheck::default();
    let Some(wire) = wire else { return default };
    let mut time = |field: &str, value: Option<prost_types::Duration>, default| {
        value.map_or(default, |d| duration(&d, &format!("{at}.{field}"), found).unwrap_or(default))
    };
    HealthCheck {
        interval: time("interval", wire.interval, default.interval),
        timeout: time("timeout", wire.timeout, default.timeout),
        fall: if wire.fall == 0 { default.fall } else { wire.fall },
        rise: if wire.rise == 0 { default.rise } else { wire.rise },
    }
}

fn read_custom(wire: wire::Custom, at: &str, found: &mut Violations) -> Custom {
    let field = |name: &str| format!("{at}.custom.{name}");
    let text = |text: String| (!text.is_empty()).then_some(text);
    let nice = wire.nice.and_then(|nice| {
        let read = i8::try_from(nice).ok();
        if read.is_none() {
            found.add(field("nice"), format!("must be -20 to 19, is {nice}"));
        }
        read
    });
    let process = ProcessOptions {
        env_from: wire.env_from,
        user: text(wire.user),
        group: text(wire.group),
        working_dir: text(wire.working_dir),
        limits: wire.limits.map(read_process_limits).unwrap_or_default(),
        nice,
        no_new_privileges: wire.no_new_privileges,
        stop_signal: text(wire.stop_signal).and_then(|name| found.take(&field("stop_signal"), name.parse())),
        stop_timeout: wire.stop_timeout.and_then(|timeout| duration(&timeout, &field("stop_timeout"), found)),
    };
    Custom {
        command: wire.command,
        args: wire.args,
        env: wire.env.into_iter().collect(),
        port: wire.port.and_then(|p| found.take(&field("port"), port_from_wire(p))),
        probe: read_probe(wire.probe),
        process: process.boxed(),
    }
}

fn read_process_limits(wire: wire::ProcessLimits) -> ProcessLimits {
    let wire::ProcessLimits { nofile, nproc, core, memory, cpu_percent } = wire;
    ProcessLimits { nofile, nproc, core, memory, cpu_percent }
}

fn process_limits_to_wire(limits: &ProcessLimits) -> Option<wire::ProcessLimits> {
    let ProcessLimits { nofile, nproc, core, memory, cpu_percent } = *limits;
    (!limits.is_default()).then_some(wire::ProcessLimits { nofile, nproc, core, memory, cpu_percent })
}

fn read_probe(wire: Option<wire::Probe>) -> Probe {
    match wire.and_then(|p| p.probe) {
        None | Some(wire::probe::Probe::Tcp(_)) => Probe::Tcp,
        Some(wire::probe::Probe::Process(_)) => Probe::Process,
        Some(wire::probe::Probe::None(_)) => Probe::None,
        Some(wire::probe::Probe::Exec(exec)) => Probe::Exec { command: exec.command },
        Some(wire::probe::Probe::Http(http)) => {
            Probe::Http { path: if http.path.is_empty() { "/".to_owned() } else { http.path } }
        }
    }
}

/// Writes a specification.
#[must_use]
pub fn spec_to_wire(spec: &Spec) -> wire::Spec {
    wire::Spec {
        replicas: Some(i32::from(spec.replicas)),
        probe_interval: spec.probe_interval.map(duration_to_wire),
        probe_timeout: spec.timing.probe_timeout.map(duration_to_wire),
        boot_timeout: spec.timing.boot_timeout.map(duration_to_wire),
        settle_time: spec.timing.settle_time.map(duration_to_wire),
        image: spec.image.clone().unwrap_or_default(),
        ports: spec.ports.iter().map(port_to_wire).collect(),
        pod: spec.pod.as_ref().and_then(pod_to_wire),
        kind: Some(match &spec.kind {
            KindSpec::Loadbalancer(lb) => wire::spec::Kind::Loadbalancer(wire::LoadBalancer {
                listeners: lb.listeners.iter().map(listener_to_wire).collect(),
            }),
            KindSpec::Custom(custom) => wire::spec::Kind::Custom(custom_to_wire(custom)),
            KindSpec::Router(router) => wire::spec::Kind::Router(router_to_wire(router)),
        }),
    }
}

fn custom_to_wire(custom: &Custom) -> wire::Custom {
    let options = custom.options();
    wire::Custom {
        command: custom.command.clone(),
        args: custom.args.clone(),
        env: custom.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        port: custom.port.map(u32::from),
        probe: Some(probe_to_wire(&custom.probe)),
        env_from: options.env_from.clone(),
        user: options.user.clone().unwrap_or_default(),
        group: options.group.clone().unwrap_or_default(),
        working_dir: options.working_dir.clone().unwrap_or_default(),
        limits: process_limits_to_wire(&options.limits),
        nice: options.nice.map(i32::from),
        no_new_privileges: options.no_new_privileges,
        stop_signal: options.stop_signal.map(String::from).unwrap_or_default(),
        stop_timeout: options.stop_timeout.map(duration_to_wire),
    }
}

fn port_to_wire(port: &NetworkPort) -> wire::NetworkPort {
    wire::NetworkPort {
        name: port.name.to_string(),
        network: port.network.clone(),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        mac: port.mac.map(|mac| mac.to_string()).unwrap_or_default(),
    }
}

fn listener_to_wire(listener: &Listener) -> wire::Listener {
    let check = &listener.health_check;
    wire::Listener {
        name: listener.name.clone(),
        address: listener.address.to_string(),
        port: u32::from(listener.port),
        members: listener
            .members
            .iter()
            .map(|m| wire::Member { address: m.address.to_string(), port: u32::from(m.port) })
            .collect(),
        health_check: Some(wire::HealthCheck {
            interval: Some(duration_to_wire(check.interval)),
            timeout: Some(duration_to_wire(check.timeout)),
            fall: check.fall,
            rise: check.rise,
        }),
        limits: limits_to_wire(&listener.limits),
        algorithm: algorithm_to_wire(listener.algorithm),
        proxy_protocol: proxy_protocol_to_wire(listener.proxy_protocol),
        trust_proxy_from: listener.trust_proxy_from.iter().map(ToString::to_string).collect(),
    }
}

fn probe_to_wire(probe: &Probe) -> wire::Probe {
    wire::Probe {
        probe: Some(match probe {
            Probe::Tcp => wire::probe::Probe::Tcp(wire::TcpProbe {}),
            Probe::Process => wire::probe::Probe::Process(wire::ProcessProbe {}),
            Probe::None => wire::probe::Probe::None(wire::NoProbe {}),
            Probe::Exec { command } => wire::probe::Probe::Exec(wire::ExecProbe { command: command.clone() }),
            Probe::Http { path } => wire::probe::Probe::Http(wire::HttpProbe { path: path.clone() }),
        }),
    }
}
