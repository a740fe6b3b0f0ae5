//! Printed form of appliances: what `apply` reads, plus the observed state under `status`.
//!
//! Field names are those of the API, enums are lower-case words, durations and times are texts. Optional fields without
//! a value are omitted, so that printed documents can be applied again.

use std::collections::BTreeMap;
use std::time::Duration;

use common::appliance::Name;
use common::kind::{Algorithm, ProxyProtocol};
use common::status::{EndCause, PID_DETAIL};
use proto::admin::v1;
use proto::convert::{algorithm_from_wire, proxy_protocol_from_wire};
use proto::document::SIZE_UNITS;
use serde::Serialize;

use self::router::Router;

mod router;

/// The tenant that is meant where none is given.
pub(crate) const DEFAULT_TENANT: &str = "default";

/// `kind/name`, with `tenant/` in front unless that is `home`, the tenant that a name without one means.
pub(crate) fn label(appliance: &v1::Appliance, home: Option<&Name>) -> String {
    let home = home.map_or(DEFAULT_TENANT, Name::as_str);
    let (kind, name) = (kind(appliance), &appliance.name);
    match appliance.tenant.as_str() {
        "" => format!("{kind}/{name}"),
        tenant if tenant == home => format!("{kind}/{name}"),
        _ => full_label(appliance),
    }
}

/// `tenant/kind/name`, which is the same appliance whatever else is said.
pub(crate) fn full_label(appliance: &v1::Appliance) -> String {
    format!("{}/{}/{}", appliance.tenant, kind(appliance), appliance.name)
}

/// Name of the kind; empty when the server sent a kind that this version does not know.
pub(crate) fn kind(appliance: &v1::Appliance) -> &'static str {
    match appliance.spec.as_ref().and_then(|spec| spec.kind.as_ref()) {
        Some(v1::spec::Kind::Loadbalancer(_)) => "loadbalancer",
        Some(v1::spec::Kind::Custom(_)) => "custom",
        Some(v1::spec::Kind::Router(_)) => "router",
        None => "",
    }
}

/// Phase for people, such as `Configured`; `Down` before the first report.
pub(crate) fn phase(appliance: &v1::Appliance) -> &'static str {
    phase_name(appliance.status.as_ref().map_or(0, |status| status.phase))
}

/// The phase of this number, for people.
pub(crate) fn phase_name(number: i32) -> &'static str {
    use v1::Phase::{Booting, Configured, Degraded, Deleting, Down, Error, Gone, Replugging, Restarting, Up};
    match v1::Phase::try_from(number) {
        Err(_) | Ok(v1::Phase::Unspecified | Down) => "Down",
        Ok(Booting) => "Booting",
        Ok(Up) => "Up",
        Ok(Configured) => "Configured",
        Ok(Degraded) => "Degraded",
        Ok(Replugging) => "Replugging",
        Ok(Restarting) => "Restarting",
        Ok(Error) => "Error",
        Ok(Deleting) => "Deleting",
        Ok(Gone) => "Gone",
    }
}

/// Health for people, such as `healthy`.
pub(crate) fn health(health: v1::Health) -> &'static str {
    match health {
        v1::Health::Unspecified => "unknown",
        v1::Health::Healthy => "healthy",
        v1::Health::Suspect => "suspect",
        v1::Health::Dead => "dead",
        v1::Health::Left => "left",
    }
}

/// How an instance ended, for people, such as `signal 9 (SIGKILL), out of memory`.
pub(crate) fn end_cause(end: &v1::InstanceEnd) -> String {
    let cause = match end.cause {
        Some(v1::instance_end::Cause::ExitStatus(status)) => EndCause::Exit(status).to_string(),
        Some(v1::instance_end::Cause::Signal(number)) => EndCause::Signal(number).to_string(),
        None => "not known".to_owned(),
    };
    if end.out_of_memory { format!("{cause}, out of memory") } else { cause }
}

/// A duration in the notation of documents.
pub(crate) fn duration(duration: &prost_types::Duration) -> String {
    Duration::try_from(*duration).map(|d| humantime::format_duration(d).to_string()).unwrap_or_default()
}

/// One appliance.
#[derive(Debug, Serialize)]
pub(crate) struct Appliance {
    name: String,
    tenant: String,
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    driver: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    placement_key: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    managed_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settle_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    image: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<NetworkPort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<serde_json::Value>,
    spec: Spec,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Debug, Serialize)]
struct NetworkPort {
    name: String,
    network: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
}

impl From<v1::NetworkPort> for NetworkPort {
    fn from(port: v1::NetworkPort) -> Self {
        let v1::NetworkPort { name, network, addresses, mac } = port;
        Self { name, network, addresses, mac }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Spec {
    LoadBalancer { listeners: Vec<Listener> },
    Custom(Box<Custom>),
    Router(Box<Router>),
    Unknown {},
}

#[derive(Debug, Serialize)]
struct Listener {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    port: u32,
    members: Vec<Member>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check: Option<HealthCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithm: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trust_proxy_from: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    half_close_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_timeout: Option<String>,
}

#[derive(Debug, Serialize)]
struct Member {
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    port: u32,
}

#[derive(Debug, Serialize)]
struct HealthCheck {
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fall: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rise: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Custom {
    command: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Probe>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env_from: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<ProcessLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nice: Option<i32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_new_privileges: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_timeout: Option<String>,
}

#[derive(Debug, Serialize)]
struct ProcessLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    nofile: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nproc: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    core: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
}

/// A size in the notation of documents, such as `512MiB`.
fn bytes(size: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, unit)| size.is_multiple_of(*unit));
    unit.map_or_else(|| size.to_string(), |(name, unit)| format!("{}{name}", size / unit))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Probe {
    Tcp,
    Http { path: String },
    Process,
    None,
    Exec { command: Vec<String> },
}

#[derive(Debug, Serialize)]
struct Status {
    phase: String,
    generation: u64,
    observed_generation: u64,
    deleting: bool,
    last_error: String,
    failed_boots: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_end: Option<InstanceEnd>,
    create_time: Option<String>,
    update_time: Option<String>,
    report_time: Option<String>,
    instances: Vec<Instance>,
    assignment: Option<Assignment>,
}

/// How an instance ended.
#[derive(Debug, Serialize)]
struct InstanceEnd {
    instance: String,
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    out_of_memory: bool,
    last_lines: Vec<String>,
}

impl From<v1::InstanceEnd> for InstanceEnd {
    fn from(end: v1::InstanceEnd) -> Self {
        let v1::InstanceEnd { instance, time, cause, out_of_memory, last_lines } = end;
        let (exit_status, signal) = match cause {
            Some(v1::instance_end::Cause::ExitStatus(status)) => (Some(status), None),
            Some(v1::instance_end::Cause::Signal(number)) => (None, Some(number)),
            None => (None, None),
        };
        Self { instance, time: time.map(|t| t.to_string()), exit_status, signal, out_of_memory, last_lines }
    }
}

#[derive(Debug, Serialize)]
struct Instance {
    ordinal: u32,
    name: String,
    alive: Option<bool>,
    pid: Option<u32>,
    start_time: Option<String>,
    address: String,
    configured_generation: u64,
    /// All but the process id, which is shown in its own field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    details: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<String>,
}

/// The owner of an appliance.
#[derive(Debug, Serialize)]
pub(crate) struct Assignment {
    state: String,
    worker: String,
    token: String,
    reason: String,
    host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    state_dir: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    site: String,
    /// Absent while no debug mode covers it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    hands_off: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<Pin>,
}

/// Where an operator wants it.
#[derive(Debug, Serialize)]
struct Pin {
    worker: String,
    strict: bool,
    reason: String,
    since: Option<String>,
    by: String,
}

impl From<&v1::Assignment> for Assignment {
    fn from(assignment: &v1::Assignment) -> Self {
        let v1::Assignment { state, worker, token, reason, host, state_dir, site, hands_off, pin } = assignment.clone();
        let pin = pin.map(|v1::Pin { worker, strict, reason, since, by }| Pin {
            worker,
            strict,
            reason,
            since: since.map(|t| t.to_string()),
            by,
        });
        Self { state, worker, token, reason, host, state_dir, site, hands_off, pin }
    }
}

/// What stands in place of values that are not shown. The server refuses to store it.
const HIDDEN: &str = "<hidden>";

/// Whether values of environment variables are shown, which is where secrets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrets {
    /// They are, for a document that is to be applied again.
    Shown,
    /// They are not.
    Hidden,
}

impl Appliance {
    /// Only fields that a document may contain, though who manages the appliance is ignored there.
    pub(crate) fn document(appliance: &v1::Appliance, secrets: Secrets) -> Self {
        let spec = appliance.spec.clone().unwrap_or_default();
        Self {
            name: appliance.name.clone(),
            tenant: appliance.tenant.clone(),
            kind: kind(appliance).to_owned(),
            driver: appliance.driver.clone(),
            id: appliance.id.clone(),
            placement_key: appliance.placement_key.clone(),
            labels: appliance.labels.clone().into_iter().collect(),
            managed_by: appliance.managed_by.clone(),
            replicas: spec.replicas,
            probe_interval: spec.probe_interval.as_ref().map(duration),
            probe_timeout: spec.probe_timeout.as_ref().map(duration),
            boot_timeout: spec.boot_timeout.as_ref().map(duration),
            settle_time: spec.settle_time.as_ref().map(duration),
            image: spec.image,
            ports: spec.ports.into_iter().map(NetworkPort::from).collect(),
            pod: spec.pod.map(|pod| pod_template(pod, secrets)),
            spec: match spec.kind {
                Some(v1::spec::Kind::Loadbalancer(lb)) => {
                    Spec::LoadBalancer { listeners: lb.listeners.into_iter().map(listener).collect() }
                }
                Some(v1::spec::Kind::Custom(c)) => Spec::Custom(Box::new(custom(c, secrets))),
                Some(v1::spec::Kind::Router(router)) => Spec::Router(Box::new(router.into())),
                None => Spec::Unknown {},
            },
            status: None,
        }
    }

    /// All fields.
    pub(crate) fn full(appliance: &v1::Appliance, secrets: Secrets) -> Self {
        let status = appliance.status.clone().unwrap_or_default();
        let time = |t: Option<prost_types::Timestamp>| t.map(|t| t.to_string());
        let instance = |i: v1::Instance| Instance {
            ordinal: i.ordinal,
            name: i.name,
            alive: i.alive,
            pid: i.pid,
            start_time: i.start_time.map(|t| t.to_string()),
            address: i.address,
            configured_generation: i.configured_generation,
            details: i.details.into_iter().filter(|(name, _)| name != PID_DETAIL).collect(),
            ports: i.ports,
        };
        let status = Status {
            phase: phase(appliance).to_lowercase(),
            generation: appliance.generation,
            observed_generation: status.observed_generation,
            deleting: appliance.deleting,
            last_error: status.last_error,
            failed_boots: status.failed_boots,
            last_end: status.last_end.map(InstanceEnd::from),
            create_time: time(appliance.create_time),
            update_time: time(appliance.update_time),
            report_time: time(status.report_time),
            instances: status.instances.into_iter().map(instance).collect(),
            assignment: appliance.assignment.as_ref().map(Assignment::from),
        };
        Self { status: Some(status), ..Self::document(appliance, secrets) }
    }
}

fn listener(listener: v1::Listener) -> Listener {
    let member = |m: v1::Member| Member { address: m.address, port: m.port };
    let some = |n: u32| (n > 0).then_some(n);
    let health_check = |check: v1::HealthCheck| HealthCheck {
        interval: check.interval.as_ref().map(duration),
        timeout: check.timeout.as_ref().map(duration),
        fall: some(check.fall),
        rise: some(check.rise),
    };
    Listener {
        name: listener.name,
        address: listener.address,
        port: listener.port,
        members: listener.members.into_iter().map(member).collect(),
        health_check: listener.health_check.map(health_check),
        limits: listener.limits.map(|limits| Limits {
            max_connections: some(limits.max_connections),
            idle_timeout: limits.idle_timeout.as_ref().map(duration),
            half_close_timeout: limits.half_close_timeout.as_ref().map(duration),
            drain_timeout: limits.drain_timeout.as_ref().map(duration),
        }),
        algorithm: algorithm_from_wire(listener.algorithm)
            .ok()
            .filter(|algorithm| *algorithm != Algorithm::default())
            .map(Algorithm::name),
        proxy_protocol: proxy_protocol_from_wire(listener.proxy_protocol).ok().flatten().map(ProxyProtocol::name),
        trust_proxy_from: listener.trust_proxy_from,
    }
}

/// A template of pods. Values of variables are hidden as those of commands are.
fn pod_template(pod: prost_types::Struct, secrets: Secrets) -> serde_json::Value {
    let mut value = proto::convert::json_from_struct(pod);
    if secrets == Secrets::Hidden {
        for list in ["containers", "initContainers"] {
            let containers = value["spec"].get_mut(list).and_then(serde_json::Value::as_array_mut);
            let variables =
                containers.into_iter().flatten().filter_map(|container| container.get_mut("env")?.as_array_mut());
            for variable in variables.flatten() {
                if let Some(value) = variable.get_mut("value") {
                    *value = HIDDEN.into();
                }
            }
        }
    }
    value
}

fn custom(custom: v1::Custom, secrets: Secrets) -> Custom {
    let hidden = |(name, value)| (name, if secrets == Secrets::Hidden { HIDDEN.to_owned() } else { value });
    let probe = |probe: v1::Probe| match probe.probe? {
        v1::probe::Probe::Tcp(_) => Some(Probe::Tcp),
        v1::probe::Probe::Process(_) => Some(Probe::Process),
        v1::probe::Probe::None(_) => Some(Probe::None),
        v1::probe::Probe::Exec(exec) => Some(Probe::Exec { command: exec.command }),
        v1::probe::Probe::Http(http) => Some(Probe::Http { path: http.path }),
    };
    Custom {
        command: custom.command,
        args: custom.args,
        env: custom.env.into_iter().map(hidden).collect(),
        port: custom.port,
        probe: custom.probe.and_then(probe),
        env_from: custom.env_from,
        user: custom.user,
        group: custom.group,
        working_dir: custom.working_dir,
        limits: custom.limits.map(|limits| ProcessLimits {
            nofile: limits.nofile,
            nproc: limits.nproc,
            core: limits.core,
            memory: limits.memory.map(bytes),
            cpu: limits.cpu_percent.map(|percent| format!("{percent}%")),
        }),
        nice: custom.nice,
        no_new_privileges: custom.no_new_privileges,
        stop_signal: custom.stop_signal,
        stop_timeout: custom.stop_timeout.as_ref().map(duration),
    }
}
