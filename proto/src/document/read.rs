//! From the tree of a document to the API's message, field by field.

use std::time::Duration;

use common::ApplianceId;
use common::appliance::{MAX_REPLICAS, Name, SpecTime};
use common::cluster::ClusterRef;
use common::driver::DriverName;
use common::kind::{Algorithm, KindName, Network, ProxyProtocol, StopSignal};
use common::network_port::{MacAddress, PortAddress};

use super::router::router;
use super::tree::{Field, Fields, ReadReport, Value};
use crate::admin::v1;
use crate::convert::{algorithm_to_wire, proxy_protocol_to_wire, struct_from_json};

/// What holds for fields that a document leaves away.
#[derive(Clone, Copy, Debug)]
pub struct DocumentDefaults<'a> {
    /// The name; `None` where a document has to say it.
    pub name: Option<&'a Name>,
    /// The tenant.
    pub tenant: &'a str,
}

/// Reads one appliance: the message of the API with name, tenant and kind set, and the cluster that it is for if it says so.
/// `None`, or problems in `report`, if it cannot be used. Field paths are put below that of `field`.
pub fn appliance(
    field: Field,
    defaults: DocumentDefaults<'_>,
    report: &mut ReadReport,
) -> Option<(v1::Appliance, Option<ClusterRef>)> {
    let mut fields = field.fields(report)?;
    let name = match defaults.name {
        None => fields.require("name", report),
        Some(_) => fields.take("name", report),
    };
    let name = match (name, defaults.name) {
        (None, default) => default.cloned(),
        (Some(field), _) => checked(&field, report, Name::new),
    };
    let tenant = match fields.take("tenant", report) {
        Some(field) => checked(&field, report, Name::new)?.to_string(),
        None => defaults.tenant.to_owned(),
    };
    let cluster = fields.take("cluster", report).and_then(|f| checked(&f, report, str::parse::<ClusterRef>));
    let id = fields.take("id", report).and_then(|f| checked(&f, report, str::parse::<ApplianceId>));
    let kind = fields.require("kind", report).and_then(|f| Some((f.text(report)?, f.line())));
    let driver = fields.take("driver", report).and_then(|f| checked(&f, report, str::parse::<DriverName>));
    let placement_key = fields.take("placement_key", report).and_then(|f| f.text(report));
    let labels = fields.take("labels", report).map(|f| f.texts(report)).unwrap_or_default();
    let replicas = fields.take("replicas", report).and_then(|f| f.whole(1..=u32::from(MAX_REPLICAS), report));
    let [probe_interval, probe_timeout, boot_timeout, settle_time] = SpecTime::ALL
        .map(|time| fields.take(time.name(), report).and_then(|f| f.duration(report)).and_then(wire_duration));
    let image = fields.take("image", report).and_then(|f| f.text(report));
    let ports = fields.take("ports", report).map(|f| f.list(report)).unwrap_or_default();
    let ports = ports.into_iter().filter_map(|field| network_port(field, report)).collect();
    let pod = fields.take("pod", report).and_then(|field| field.object(report)).as_ref().and_then(struct_from_json);
    let spec = match kind {
        Some((kind, line)) => spec(&kind, line, &mut fields, report),
        None => {
            fields.take("spec", report);
            None
        }
    };
    // Printed by `get`, ignored here.
    fields.take("managed_by", report);
    fields.take("status", report);
    fields.finish(report);
    let appliance = v1::Appliance {
        id: id.map(|id| id.to_string()).unwrap_or_default(),
        name: name?.to_string(),
        tenant,
        driver: driver.map(|d| d.to_string()).unwrap_or_default(),
        placement_key: placement_key.unwrap_or_default(),
        labels: labels.into_iter().collect(),
        spec: Some(v1::Spec {
            replicas: replicas.and_then(|r| i32::try_from(r).ok()),
            probe_interval,
            probe_timeout,
            boot_timeout,
            settle_time,
            image: image.unwrap_or_default(),
            ports,
            pod,
            kind: Some(spec?),
        }),
        ..v1::Appliance::default()
    };
    Some((appliance, cluster))
}

/// Text that is validated by a parser of the domain.
pub(super) fn checked<T, E: std::fmt::Display>(
    field: &Field,
    report: &mut ReadReport,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let text = field.text(report)?;
    parse(&text).map_err(|e| report.problem(field.line(), &field.path, e.to_string())).ok()
}

fn spec(kind: &str, line: u64, fields: &mut Fields, report: &mut ReadReport) -> Option<v1::spec::Kind> {
    match kind {
        "loadbalancer" => {
            let fields = fields.require("spec", report)?.fields(report)?;
            Some(v1::spec::Kind::Loadbalancer(load_balancer(fields, report)))
        }
        "custom" => {
            let fields = fields.require("spec", report)?.fields(report)?;
            custom(fields, report).map(v1::spec::Kind::Custom)
        }
        "router" => {
            let fields = fields.require("spec", report)?.fields(report)?;
            Some(v1::spec::Kind::Router(router(fields, report)))
        }
        _ => {
            fields.take("spec", report);
            let kind: String = kind.chars().take(40).collect();
            let known = KindName::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
            report.problem(line, &fields.path_of("kind"), format!("unknown kind `{kind}`; known are {known}"));
            None
        }
    }
}

fn network_port(field: Field, report: &mut ReadReport) -> Option<v1::NetworkPort> {
    let mut fields = field.fields(report)?;
    let name = fields.require("name", report).and_then(|f| checked(&f, report, Name::new));
    let network = fields.require("network", report).and_then(|f| f.text(report));
    let addresses = fields.take("addresses", report).map(|f| f.list(report)).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|field| checked(field, report, str::parse::<PortAddress>));
    let addresses = addresses.map(|address| address.to_string()).collect();
    let mac = fields.take("mac", report).and_then(|f| checked(&f, report, str::parse::<MacAddress>));
    fields.finish(report);
    let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
    Some(v1::NetworkPort { name: name?.to_string(), network: network?, addresses, mac })
}

fn load_balancer(mut fields: Fields, report: &mut ReadReport) -> v1::LoadBalancer {
    let listeners = fields.require("listeners", report).map(|f| f.list(report)).unwrap_or_default();
    let listeners = listeners.into_iter().filter_map(|field| listener(field, report)).collect();
    fields.finish(report);
    v1::LoadBalancer { listeners }
}

fn listener(field: Field, report: &mut ReadReport) -> Option<v1::Listener> {
    let mut fields = field.fields(report)?;
    let name = fields.take("name", report).and_then(|f| f.text(report));
    let address = address(&mut fields, report);
    let port = port(fields.require("port", report), report);
    let members = fields.take("members", report).map(|f| f.list(report)).unwrap_or_default();
    let members = members.into_iter().filter_map(|field| member(field, report)).collect();
    let health_check = fields.take("health_check", report).and_then(|field| health_check(field, report));
    let limits = fields.take("limits", report).and_then(|field| limits(field, report));
    let algorithms = Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm));
    let algorithm = fields.take("algorithm", report).and_then(|f| one_of(&f, &algorithms, report));
    let versions = ProxyProtocol::ALL.map(|version| (version.name(), version));
    let proxy_protocol = fields.take("proxy_protocol", report).and_then(|f| one_of(&f, &versions, report));
    let trusted = fields.take("trust_proxy_from", report).map(|f| f.list(report)).unwrap_or_default();
    let trusted = trusted.iter().filter_map(|field| checked(field, report, str::parse::<Network>));
    let trust_proxy_from = trusted.map(|network| network.to_string()).collect();
    fields.finish(report);
    Some(v1::Listener {
        name: name.unwrap_or_default(),
        address,
        port: port?,
        members,
        health_check,
        limits,
        algorithm: algorithm_to_wire(algorithm.unwrap_or_default()),
        proxy_protocol: proxy_protocol_to_wire(proxy_protocol),
        trust_proxy_from,
    })
}

/// One of several words.
pub(super) fn one_of<T: Copy>(field: &Field, known: &[(&str, T)], report: &mut ReadReport) -> Option<T> {
    checked(field, report, |text| {
        let found = known.iter().find(|(name, _)| *name == text);
        let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        found.map(|(_, value)| *value).ok_or_else(|| format!("must be one of {}", names()))
    })
}

fn limits(field: Field, report: &mut ReadReport) -> Option<v1::ConnectionLimits> {
    let mut fields = field.fields(report)?;
    let most = fields.take("max_connections", report).and_then(|f| f.whole(1..=u32::MAX, report));
    let idle = fields.take("idle_timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let half = fields.take("half_close_timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let drain = fields.take("drain_timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    fields.finish(report);
    Some(v1::ConnectionLimits {
        max_connections: most.unwrap_or_default(),
        idle_timeout: idle,
        half_close_timeout: half,
        drain_timeout: drain,
    })
}

fn member(field: Field, report: &mut ReadReport) -> Option<v1::Member> {
    let mut fields = field.fields(report)?;
    let address = address(&mut fields, report);
    let port = port(fields.require("port", report), report);
    fields.finish(report);
    Some(v1::Member { address, port: port? })
}

fn address(fields: &mut Fields, report: &mut ReadReport) -> String {
    let field = fields.take("address", report);
    let address = field.and_then(|f| {
        checked(&f, report, |text| {
            text.parse::<std::net::IpAddr>().map_err(|_| format!("`{text}` is not an IP address"))
        })
    });
    address.map(|a| a.to_string()).unwrap_or_default()
}

fn port(field: Option<Field>, report: &mut ReadReport) -> Option<u32> {
    field?.whole(1..=u32::from(u16::MAX), report)
}

fn health_check(field: Field, report: &mut ReadReport) -> Option<v1::HealthCheck> {
    let mut fields = field.fields(report)?;
    let interval = fields.take("interval", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let timeout = fields.take("timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let fall = fields.take("fall", report).and_then(|f| f.whole(1..=100, report)).unwrap_or_default();
    let rise = fields.take("rise", report).and_then(|f| f.whole(1..=100, report)).unwrap_or_default();
    fields.finish(report);
    Some(v1::HealthCheck { interval, timeout, fall, rise })
}

fn custom(mut fields: Fields, report: &mut ReadReport) -> Option<v1::Custom> {
    let command = fields.require("command", report).and_then(|f| f.text(report));
    let args = fields.take("args", report).map(|f| f.list(report)).unwrap_or_default();
    let args = args.iter().filter_map(|field| field.text(report)).collect();
    let env = fields.take("env", report).map(|f| f.texts(report)).unwrap_or_default();
    let port = port(fields.take("port", report), report);
    let probe = fields.take("probe", report).and_then(|field| probe(field, report));
    let env_from = fields.take("env_from", report).map(|f| f.list(report)).unwrap_or_default();
    let env_from = env_from.iter().filter_map(|field| field.text(report)).collect();
    let [user, group, working_dir] = ["user", "group", "working_dir"]
        .map(|name| fields.take(name, report).and_then(|f| f.text(report)).unwrap_or_default());
    let limits = fields.take("limits", report).and_then(|field| process_limits(field, report));
    let nice = fields.take("nice", report).and_then(|f| f.whole(-20..=19, report));
    let no_new_privileges = fields.take("no_new_privileges", report).and_then(|f| f.flag(report));
    let stop_signal = fields.take("stop_signal", report).and_then(|f| checked(&f, report, str::parse::<StopSignal>));
    let stop_timeout = fields.take("stop_timeout", report).and_then(|f| f.duration(report));
    fields.finish(report);
    Some(v1::Custom {
        command: command?,
        args,
        env: env.into_iter().collect(),
        port,
        probe,
        env_from,
        user,
        group,
        working_dir,
        limits,
        nice,
        no_new_privileges: no_new_privileges.unwrap_or_default(),
        stop_signal: stop_signal.map(String::from).unwrap_or_default(),
        stop_timeout: stop_timeout.and_then(wire_duration),
    })
}

fn process_limits(field: Field, report: &mut ReadReport) -> Option<v1::ProcessLimits> {
    let mut fields = field.fields(report)?;
    let most = u64::from(u32::MAX);
    let [nofile, nproc, core] = [("nofile", most), ("nproc", most), ("core", i64::MAX.cast_unsigned())]
        .map(|(name, most)| fields.take(name, report).and_then(|f| f.whole(0..=most, report)));
    let memory = fields.take("memory", report).and_then(|f| checked(&f, report, parse_bytes));
    let cpu = fields.take("cpu", report).and_then(|f| checked(&f, report, parse_percent));
    fields.finish(report);
    Some(v1::ProcessLimits { nofile, nproc, core, memory, cpu_percent: cpu })
}

/// `tcp`, `http`, `process`, `none`, or one of these and `exec` with their fields, such as `{http: {path: /}}`.
fn probe(field: Field, report: &mut ReadReport) -> Option<v1::Probe> {
    let wire = |probe| Some(v1::Probe { probe: Some(probe) });
    let tcp = || wire(v1::probe::Probe::Tcp(v1::TcpProbe {}));
    let process = || wire(v1::probe::Probe::Process(v1::ProcessProbe {}));
    let none = || wire(v1::probe::Probe::None(v1::NoProbe {}));
    let http = |path: Option<String>| {
        wire(v1::probe::Probe::Http(v1::HttpProbe { path: path.unwrap_or_else(|| "/".to_owned()) }))
    };
    let (line, path) = (field.line(), field.path.clone());
    if let Value::Text(text) = &field.node.value {
        return match text.as_str() {
            "tcp" => tcp(),
            "http" => http(None),
            "process" => process(),
            "none" => none(),
            _ => {
                report.problem(
                    line,
                    &path,
                    format!("unknown probe `{text}`; known are tcp, http, process, none, and exec with a command"),
                );
                None
            }
        };
    }
    let mut fields = field.fields(report)?;
    let tcp_fields = fields.take("tcp", report);
    let http_fields = fields.take("http", report);
    let process_fields = fields.take("process", report);
    let none_fields = fields.take("none", report);
    let exec_fields = fields.take("exec", report);
    fields.finish(report);
    let plain = |field: Field, report: &mut ReadReport| field.fields(report).map(|fields| fields.finish(report));
    match (tcp_fields, http_fields, process_fields, none_fields, exec_fields) {
        (Some(field), None, None, None, None) => plain(field, report).and_then(|()| tcp()),
        (None, None, Some(field), None, None) => plain(field, report).and_then(|()| process()),
        (None, None, None, Some(field), None) => plain(field, report).and_then(|()| none()),
        (None, Some(field), None, None, None) => {
            let mut fields = field.fields(report)?;
            let path = fields.take("path", report).and_then(|f| f.text(report));
            fields.finish(report);
            http(path)
        }
        (None, None, None, None, Some(field)) => {
            let mut fields = field.fields(report)?;
            let command = fields.require("command", report).map(|f| f.list(report)).unwrap_or_default();
            let command = command.iter().filter_map(|field| field.text(report)).collect();
            fields.finish(report);
            wire(v1::probe::Probe::Exec(v1::ExecProbe { command }))
        }
        _ => {
            report.problem(line, &path, "must be tcp, http with a path, process, none, or exec with a command");
            None
        }
    }
}

fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// Units of sizes, the largest first.
pub const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a size.
fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    let read = |(name, unit): &(&str, u64)| text.strip_suffix(name)?.trim_end().parse::<u64>().ok()?.checked_mul(*unit);
    SIZE_UNITS.iter().find_map(read).ok_or("must be a size with its unit (B, KiB, MiB, GiB), such as 512MiB")
}

/// Reads a share of one CPU.
fn parse_percent(text: &str) -> Result<u32, &'static str> {
    let number = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
    number.ok_or("must be a whole number of percent of one CPU, such as 150%")
}
