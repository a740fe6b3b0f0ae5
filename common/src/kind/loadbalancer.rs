//! Kind `loadbalancer`: the reference appliance as a TCP load balancer, configured and probed over the REST contract.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::contract::Config;
pub use self::routing::{Algorithm, Network, ProxyProtocol};
use super::{Configuration, Execution, Kind, LaunchRecipe, Listen, PortOverflow, ProbeSpec, Program, shifted};
use crate::limits::{FieldViolation, MAX_REPLICAS, check_count, check_port};
use crate::name::Name;
use crate::version::Generation;

pub mod contract;
mod routing;

/// Most networks that a listener can trust.
const MAX_TRUSTED: usize = 64;
/// Most connections that one listener can ask for: each takes two of the some 64,000 ports of an address and two sockets.
const MAX_CONNECTIONS: u32 = 100_000;
/// Field path of the listeners.
const LISTENERS: &str = "spec.loadbalancer.listeners";

/// A TCP load balancer: connections to each listener go to the members that pass its health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancer {
    /// At least one; names and ports are distinct.
    pub listeners: Vec<Listener>,
}

/// One port that is listened on and the members behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Unique within the load balancer.
    pub name: String,
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on; instance `n` takes `port + n`.
    pub port: u16,
    /// Where connections go. May be empty: connections are then refused.
    pub members: Vec<Member>,
    /// How members are checked; by default a TCP connect every 2 s.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// What its connections may take.
    #[serde(default, skip_serializing_if = "Limits::is_default")]
    pub limits: Limits,
    /// Which member a new connection goes to.
    #[serde(default, skip_serializing_if = "Algorithm::is_default")]
    pub algorithm: Algorithm,
    /// Members are told whose connection they get in this form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// From whom the same is taken, in either form. Connections of these begin with it, or are reset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_proxy_from: Vec<Network>,
}

/// What the connections of one listener may take, of each instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at a time; more wait until one ends. When absent [`contract::DEFAULT_MAX_CONNECTIONS`], or an equal share of
    /// what the instance can have where that is less. Listeners do not take each other's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// How long a connection may be without a byte before it is reset. Lower frees what peers that are gone have left; higher
    /// keeps connections that are meant to be silent.
    pub idle_timeout: Duration,
    /// The same once one side has ended and the other may go on.
    pub half_close_timeout: Duration,
    /// How long a connection may go on after its member, or its listener, was taken out of the specification. Then it is reset.
    #[serde(skip_serializing_if = "is_usual_drain")]
    pub drain_timeout: Duration,
}

/// As in [`contract::Limits`].
const USUAL_DRAIN: Duration = Duration::from_secs(300);

fn is_usual_drain(timeout: &Duration) -> bool {
    *timeout == USUAL_DRAIN
}

impl Limits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self, at: &str, found: &mut Vec<FieldViolation>) {
        if self.max_connections.is_some_and(|most| !(1..=MAX_CONNECTIONS).contains(&most)) {
            found.push(FieldViolation::new(format!("{at}.max_connections"), format!("must be 1 to {MAX_CONNECTIONS}")));
        }
        let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        for (field, value) in [("idle_timeout", self.idle_timeout), ("half_close_timeout", self.half_close_timeout)] {
            if !range.contains(&value) {
                found.push(FieldViolation::new(format!("{at}.{field}"), "must be 1s to 1d"));
            }
        }
        if self.drain_timeout > *range.end() {
            found.push(FieldViolation::new(format!("{at}.drain_timeout"), "must be at most 1d"));
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            idle_timeout: Duration::from_secs(3600),
            half_close_timeout: Duration::from_secs(300),
            drain_timeout: USUAL_DRAIN,
        }
    }
}

impl From<&Limits> for contract::Limits {
    fn from(limits: &Limits) -> Self {
        Self {
            max_connections: limits.max_connections,
            idle_timeout_ms: millis(limits.idle_timeout),
            half_close_timeout_ms: millis(limits.half_close_timeout),
            drain_timeout_ms: millis(limits.drain_timeout),
        }
    }
}

/// One server behind a listener.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Address of the server.
    pub address: IpAddr,
    /// Port of the server.
    pub port: u16,
}

/// How a load balancer checks its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// Time between two checks of one member.
    pub interval: Duration,
    /// How long one check may take.
    pub timeout: Duration,
    /// Failures in a row that take a member out.
    pub fall: u32,
    /// Successes in a row that bring it back.
    pub rise: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), fall: 2, rise: 1 }
    }
}

impl Kind for LoadBalancer {
    fn validate(&self, replicas: u16, found: &mut Vec<FieldViolation>) {
        if self.listeners.is_empty() {
            found.push(FieldViolation::new(LISTENERS, "at least one listener is needed"));
        }
        check_count(found, LISTENERS, self.listeners.len());
        let mut names = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for (i, listener) in self.listeners.iter().enumerate() {
            let at = format!("{LISTENERS}[{i}]");
            if Name::new(&listener.name).is_err() {
                found.push(FieldViolation::new(format!("{at}.name"), "must be a name of a-z 0-9 - . _"));
            }
            if !names.insert(&listener.name) {
                found.push(FieldViolation::new(format!("{at}.name"), "is used by another listener"));
            }
            check_port(found, &format!("{at}.port"), listener.port, replicas);
            let overlap = (0..replicas.min(MAX_REPLICAS)).find(|n| !ports.insert(listener.port.saturating_add(*n)));
            if overlap.is_some() {
                let text = "overlaps the ports of another listener (instance n takes port + n)";
                found.push(FieldViolation::new(format!("{at}.port"), text));
            }
            listener.check_members(&at, found);
            listener.health_check.check(&format!("{at}.health_check"), found);
            listener.limits.check(&format!("{at}.limits"), found);
            if listener.trust_proxy_from.len() > MAX_TRUSTED {
                let text = format!("at most {MAX_TRUSTED} are allowed");
                found.push(FieldViolation::new(format!("{at}.trust_proxy_from"), text));
            }
        }
    }

    fn ports(&self) -> Vec<(u16, String)> {
        self.listeners.iter().enumerate().map(|(i, l)| (l.port, format!("{LISTENERS}[{i}].port"))).collect()
    }

    /// The listeners come with the configuration, so that nothing of them needs a restart.
    fn restart_inputs(&self, _: &mut dyn FnMut(&str, &str)) {}

    fn launch(&self, ordinal: u16) -> Result<LaunchRecipe, PortOverflow> {
        let addresses = self.listeners.iter().map(|l| Ok(SocketAddr::new(l.address, shifted(l.port, ordinal)?)));
        let listen = Listen::At(addresses.collect::<Result<_, _>>()?);
        let (program, execution) = (Program::Appliance, Execution::default());
        Ok(LaunchRecipe { program, args: Vec::new(), env: BTreeMap::new(), execution, listen })
    }

    /// The first listener.
    fn service_address(&self, ordinal: u16) -> Option<SocketAddr> {
        let first = self.listeners.first()?;
        Some(SocketAddr::new(first.address, first.port.checked_add(ordinal)?))
    }

    fn configuration(&self, generation: Generation, ordinal: u16) -> Result<Configuration, PortOverflow> {
        let listeners =
            self.listeners.iter().map(|listener| listener.configuration(ordinal)).collect::<Result<_, _>>()?;
        let config = Config { generation, listeners };
        Ok(Configuration::Rest(serde_json::to_value(config).expect("plain data with text keys")))
    }

    fn probe(&self) -> ProbeSpec {
        ProbeSpec::Rest
    }
}

impl Listener {
    fn configuration(&self, ordinal: u16) -> Result<contract::Listener, PortOverflow> {
        Ok(contract::Listener {
            name: self.name.clone(),
            address: self.address,
            port: shifted(self.port, ordinal)?,
            members: self.members.iter().map(|m| contract::Member { address: m.address, port: m.port }).collect(),
            health_check: contract::Check::from(&self.health_check),
            limits: contract::Limits::from(&self.limits),
            algorithm: self.algorithm,
            proxy_protocol: self.proxy_protocol,
            trust_proxy_from: self.trust_proxy_from.clone(),
        })
    }

    fn check_members(&self, at: &str, found: &mut Vec<FieldViolation>) {
        check_count(found, &format!("{at}.members"), self.members.len());
        let mut members = BTreeSet::new();
        for (m, member) in self.members.iter().enumerate() {
            if member.port == 0 {
                found.push(FieldViolation::new(format!("{at}.members[{m}].port"), "must be 1 to 65535"));
            }
            if !members.insert(member) {
                found.push(FieldViolation::new(format!("{at}.members[{m}]"), "is listed twice"));
            }
        }
    }
}

impl HealthCheck {
    fn check(&self, at: &str, found: &mut Vec<FieldViolation>) {
        let range = Duration::from_millis(50)..=Duration::from_secs(300);
        for (field, value) in [("interval", self.interval), ("timeout", self.timeout)] {
            if !range.contains(&value) {
                found.push(FieldViolation::new(format!("{at}.{field}"), "must be 50ms to 5m"));
            }
        }
        for (field, value) in [("fall", self.fall), ("rise", self.rise)] {
            if !(1..=100).contains(&value) {
                found.push(FieldViolation::new(format!("{at}.{field}"), "must be 1 to 100"));
            }
        }
    }
}

impl From<&HealthCheck> for contract::Check {
    fn from(check: &HealthCheck) -> Self {
        let (interval_ms, timeout_ms) = (millis(check.interval), millis(check.timeout));
        Self { interval_ms, timeout_ms, fall: check.fall, rise: check.rise }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_check_is_the_same_on_both_sides() {
        assert_eq!(contract::Check::from(&HealthCheck::default()), contract::Check::default());
        assert_eq!(contract::Limits::from(&Limits::default()), contract::Limits::default());
    }

    #[test]
    fn what_the_version_before_does_not_know_is_left_out_while_it_is_not_asked_for() {
        let stored = r#"{"name":"a","address":"127.0.0.1","port":80,"members":[],"health_check":{"interval":{"secs":2,
            "nanos":0},"timeout":{"secs":1,"nanos":0},"fall":2,"rise":1}}"#;
        let listener: Listener = serde_json::from_str(stored).expect("a row of the version before");
        let same: serde_json::Value = serde_json::from_str(stored).expect("JSON");
        assert_eq!(serde_json::to_value(&listener).expect("plain data"), same);
        let sent = serde_json::to_value(listener.configuration(0).expect("in range")).expect("plain data");
        let fields: Vec<_> = sent.as_object().expect("fields").keys().map(String::as_str).collect();
        assert_eq!(fields, ["address", "health_check", "members", "name", "port"]);
        let networks = vec!["10.0.0.0/8".parse().expect("a network"); MAX_TRUSTED + 1];
        let asked = Listener {
            algorithm: Algorithm::SourceHash,
            proxy_protocol: Some(ProxyProtocol::V2),
            trust_proxy_from: networks,
            ..listener
        };
        let sent = asked.configuration(0).expect("in range");
        assert_eq!((sent.algorithm, sent.proxy_protocol), (asked.algorithm, asked.proxy_protocol));
        assert_eq!(sent.trust_proxy_from, asked.trust_proxy_from);
        let mut found = Vec::new();
        LoadBalancer { listeners: vec![asked] }.validate(1, &mut found);
        let fields: Vec<_> = found.into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, [format!("{LISTENERS}[0].trust_proxy_from")]);
    }

    #[test]
    fn limits_are_left_out_while_nothing_is_asked_for() {
        let stored = r#"{"name":"a","address":"127.0.0.1","port":80,"members":[]}"#;
        let listener: Listener = serde_json::from_str(stored).expect("a row of the version before");
        assert_eq!(listener.limits, Limits::default());
        assert!(!serde_json::to_string(&listener).expect("plain data").contains("limits"));
        let sent = serde_json::to_string(&listener.configuration(0).expect("in range")).expect("plain data");
        assert!(!sent.contains("limits"), "{sent}");
        let asked = Listener { limits: Limits { max_connections: Some(7), ..Limits::default() }, ..listener };
        let sent = serde_json::to_string(&asked.configuration(0).expect("in range")).expect("plain data");
        assert!(sent.contains(r#""limits":{"max_connections":7,"#) && !sent.contains("drain"), "{sent}");
        let balancer = |limits| LoadBalancer { listeners: vec![Listener { limits, ..asked.clone() }] };
        let mut found = Vec::new();
        let (zero, long) = (Duration::ZERO, Duration::from_secs(24 * 3600 + 1));
        balancer(Limits {
            max_connections: Some(0),
            idle_timeout: zero,
            half_close_timeout: zero,
            drain_timeout: long,
        })
        .validate(1, &mut found);
        let fields: Vec<_> = found.iter().map(|violation| violation.field.as_str()).collect();
        let at = |field: &str| format!("{LISTENERS}[0].limits.{field}");
        assert_eq!(fields, [at("max_connections"), at("idle_timeout"), at("half_close_timeout"), at("drain_timeout")]);
    }
}
