//! What a user asks for: the specification of an appliance, checked as a whole.
//!
//! A [`Spec`] in memory is always valid: `proto::convert` builds one field by field and calls [`Spec::validate`] before
//! anybody sees it, and the store reads it back through the same check. Limits are generous for real appliances and
//! small enough that no single document can exhaust a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most instances one appliance can ask for.
pub const MAX_REPLICAS: u16 = 16;
/// Most arguments, environment variables, listeners and members (each) of one spec.
pub const MAX_ENTRIES: usize = 256;
/// Longest single text in a spec, in bytes.
pub const MAX_TEXT: usize = 4096;
/// Largest spec, in bytes of its JSON form. Anything larger is refused before it is stored.
pub const MAX_SPEC: usize = 256 * 1024;
/// Longest appliance or tenant name, in bytes (that of a DNS label, so that names can become host names).
pub const MAX_NAME: usize = 63;

/// One thing that is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field in the API's spelling, such as `spec.loadbalancer.listeners[0].port`.
    pub field: String,
    /// What is wrong, lower case, without a final stop.
    pub description: String,
}

impl FieldViolation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

impl fmt::Display for FieldViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}

/// Name of an appliance or tenant: 1 to 63 of `a-z 0-9 - . _`, starting and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// The text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: 1 to 63 of a-z 0-9 - . _ that start and end with a letter or digit")]
pub struct InvalidName(String);

impl Name {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidName`] with the start of the text.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= MAX_NAME
            && bytes.first().copied().is_some_and(ok)
            && bytes.last().copied().is_some_and(ok)
            && bytes.iter().all(|&c| ok(c) || matches!(c, b'-' | b'.' | b'_'));
        if valid { Ok(Self(Arc::from(text))) } else { Err(InvalidName(text.chars().take(80).collect())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// Where instances run. A worker lists the drivers it offers; an appliance needs exactly one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Detached local processes.
    Process,
    /// In memory, for benchmarks and soak runs.
    Simulated,
}

impl Driver {
    /// Every driver this version knows.
    pub const ALL: [Self; 2] = [Self::Process, Self::Simulated];

    /// The name in configuration, API and membership data.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Simulated => "simulated",
        }
    }

    /// Whether the instances of an appliance stay on the host where they were first placed.
    #[must_use]
    pub const fn is_host_bound(&self) -> bool {
        match self {
            Self::Process => true,
            Self::Simulated => false,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No driver has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown driver `{0}`; known are process, simulated")]
pub struct UnknownDriver(String);

impl FromStr for Driver {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|d| d.name() == text).ok_or_else(|| UnknownDriver(text.chars().take(64).collect()))
    }
}

/// What a user asks of one appliance. Every change of it raises the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Instances wanted, 1 to [`MAX_REPLICAS`]. Instance `n` of a process appliance listens on `port + n`.
    pub replicas: u16,
    /// Time between two probes of one instance; the worker's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<Duration>,
    /// Image to boot, where the driver has images; part of what makes a rebuild.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What the appliance does.
    pub kind: Kind,
}

/// What an appliance does, how it is configured and probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// The reference appliance as a TCP load balancer.
    Loadbalancer(LoadBalancer),
    /// Any command.
    Custom(Custom),
}

impl Kind {
    /// The name in documents and tables.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loadbalancer(_) => "loadbalancer",
            Self::Custom(_) => "custom",
        }
    }
}

/// A TCP load balancer: connections to each listener go round robin to the members that pass its health check.
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

/// Any command, kept running and probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// Program to run: an absolute path, or a name looked up in the worker's `PATH`.
    pub command: String,
    /// Arguments; `{port}`, `{ordinal}`, `{name}` and `{id}` are replaced.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment on top of a minimal one (`PATH`, `HOME`, `LANG`); values are replaced as in `args`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Port the command listens on; instance `n` takes `port + n`. The worker picks free ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How to tell that an instance is alive.
    pub probe: Probe,
}

/// How an instance of kind `custom` is probed, on its own port at the loopback address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A connection can be opened.
    Tcp,
    /// `GET` of this path answers with a status below 400.
    Http {
        /// Path and query, starting with `/`.
        path: String,
    },
}

impl Spec {
    /// Every rule the spec breaks, with field paths below `spec`.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.replicas == 0 || self.replicas > MAX_REPLICAS {
            found.push(FieldViolation::new(
                "spec.replicas",
                format!("must be 1 to {MAX_REPLICAS}, is {}", self.replicas),
            ));
        }
        if let Some(interval) = self.probe_interval
            && !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval)
        {
            found.push(FieldViolation::new("spec.probe_interval", "must be 100ms to 1h"));
        }
        if let Some(image) = &self.image {
            check_text(&mut found, "spec.image", image, 1);
        }
        match &self.kind {
            Kind::Loadbalancer(lb) => lb.validate(self.replicas, &mut found),
            Kind::Custom(custom) => custom.validate(self.replicas, &mut found),
        }
        found
    }

    /// Ports this spec claims on the host that runs it, with the field that names each. Empty for drivers that give
    /// every instance an address of its own.
    #[must_use]
    pub fn claimed_ports(&self) -> Vec<(u16, String)> {
        let bases = match &self.kind {
            Kind::Loadbalancer(lb) => lb
                .listeners
                .iter()
                .enumerate()
                .map(|(i, l)| (l.port, format!("spec.loadbalancer.listeners[{i}].port")))
                .collect(),
            Kind::Custom(c) => c.port.map(|p| (p, "spec.custom.port".to_owned())).into_iter().collect::<Vec<_>>(),
        };
        bases
            .into_iter()
            .flat_map(|(port, field)| {
                (0..self.replicas).filter_map(move |n| port.checked_add(n)).map(move |p| (p, field.clone()))
            })
            .collect()
    }
}

impl LoadBalancer {
    fn validate(&self, replicas: u16, found: &mut Vec<FieldViolation>) {
        let at = "spec.loadbalancer.listeners";
        if self.listeners.is_empty() {
            found.push(FieldViolation::new(at, "at least one listener is needed"));
        }
        check_count(found, at, self.listeners.len());
        let mut names = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for (i, listener) in self.listeners.iter().enumerate() {
            if Name::new(&listener.name).is_err() {
                found.push(FieldViolation::new(format!("{at}[{i}].name"), "must be a name of a-z 0-9 - . _"));
            }
            if !names.insert(&listener.name) {
                found.push(FieldViolation::new(format!("{at}[{i}].name"), "is used by another listener"));
            }
            check_port(found, &format!("{at}[{i}].port"), listener.port, replicas);
            for n in 0..replicas.min(MAX_REPLICAS) {
                if !ports.insert(listener.port.saturating_add(n)) {
                    found.push(FieldViolation::new(
                        format!("{at}[{i}].port"),
                        "overlaps the ports of another listener (instance n takes port + n)",
                    ));
                    break;
                }
            }
            check_count(found, &format!("{at}[{i}].members"), listener.members.len());
            let mut members = BTreeSet::new();
            for (m, member) in listener.members.iter().enumerate() {
                if member.port == 0 {
                    found.push(FieldViolation::new(format!("{at}[{i}].members[{m}].port"), "must be 1 to 65535"));
                }
                if !members.insert(member) {
                    found.push(FieldViolation::new(format!("{at}[{i}].members[{m}]"), "is listed twice"));
                }
            }
            let check = &listener.health_check;
            let range = Duration::from_millis(50)..=Duration::from_secs(300);
            for (field, value) in [("interval", check.interval), ("timeout", check.timeout)] {
                if !range.contains(&value) {
                    found.push(FieldViolation::new(format!("{at}[{i}].health_check.{field}"), "must be 50ms to 5m"));
                }
            }
            for (field, value) in [("fall", check.fall), ("rise", check.rise)] {
                if !(1..=100).contains(&value) {
                    found.push(FieldViolation::new(format!("{at}[{i}].health_check.{field}"), "must be 1 to 100"));
                }
            }
        }
    }
}

impl Custom {
    fn validate(&self, replicas: u16, found: &mut Vec<FieldViolation>) {
        check_text(found, "spec.custom.command", &self.command, 1);
        check_count(found, "spec.custom.args", self.args.len());
        for (i, arg) in self.args.iter().enumerate() {
            check_text(found, &format!("spec.custom.args[{i}]"), arg, 0);
        }
        check_count(found, "spec.custom.env", self.env.len());
        for (name, value) in &self.env {
            if name.is_empty() || name.len() > MAX_TEXT || name.contains(['=', '\0']) {
                found.push(FieldViolation::new("spec.custom.env", format!("{name:?} cannot be a variable's name")));
            }
            check_text(found, &format!("spec.custom.env[{name}]"), value, 0);
        }
        if let Some(port) = self.port {
            check_port(found, "spec.custom.port", port, replicas);
        }
        if let Probe::Http { path } = &self.probe {
            check_text(found, "spec.custom.probe.http.path", path, 1);
            if !path.starts_with('/') || path.contains(char::is_whitespace) {
                found.push(FieldViolation::new(
                    "spec.custom.probe.http.path",
                    "must start with / and hold no white space",
                ));
            }
        }
    }
}

fn check_text(found: &mut Vec<FieldViolation>, field: &str, text: &str, least: usize) {
    if text.len() < least {
        found.push(FieldViolation::new(field, "must not be empty"));
    }
    if text.len() > MAX_TEXT {
        found.push(FieldViolation::new(field, format!("has {} bytes, at most {MAX_TEXT} are allowed", text.len())));
    }
    if text.contains('\0') {
        found.push(FieldViolation::new(field, "must not hold a NUL character"));
    }
}

fn check_count(found: &mut Vec<FieldViolation>, field: &str, count: usize) {
    if count > MAX_ENTRIES {
        found.push(FieldViolation::new(field, format!("has {count} entries, at most {MAX_ENTRIES} are allowed")));
    }
}

fn check_port(found: &mut Vec<FieldViolation>, field: &str, port: u16, replicas: u16) {
    if port == 0 {
        found.push(FieldViolation::new(field, "must be 1 to 65535"));
    } else if port.checked_add(replicas.saturating_sub(1)).is_none() {
        found.push(FieldViolation::new(field, format!("{port} + {replicas} replicas goes beyond 65535")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom() -> Spec {
        Spec {
            replicas: 2,
            probe_interval: None,
            image: None,
            kind: Kind::Custom(Custom {
                command: "sleep".into(),
                args: vec!["1".into()],
                env: BTreeMap::new(),
                port: Some(8000),
                probe: Probe::Tcp,
            }),
        }
    }

    #[test]
    fn a_valid_spec_has_no_violations_and_survives_json() {
        let spec = custom();
        assert_eq!(spec.validate(), vec![]);
        let text = serde_json::to_string(&spec).expect("a spec is plain data");
        assert_eq!(serde_json::from_str::<Spec>(&text).expect("round trip"), spec);
    }

    #[test]
    fn every_violation_names_its_field() {
        let mut spec = custom();
        spec.replicas = 0;
        let Kind::Custom(c) = &mut spec.kind else { unreachable!() };
        c.command = String::new();
        c.port = Some(0);
        c.probe = Probe::Http { path: "x y".into() };
        let fields: Vec<_> = spec.validate().into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["spec.replicas", "spec.custom.command", "spec.custom.port", "spec.custom.probe.http.path"]);
    }

    #[test]
    fn instance_ports_follow_the_first_one() {
        let ports: Vec<_> = custom().claimed_ports().into_iter().map(|(p, _)| p).collect();
        assert_eq!(ports, [8000, 8001]);
    }

    #[test]
    fn listeners_whose_instance_ports_overlap_are_refused() {
        let listener = |name: &str, port| Listener {
            name: name.into(),
            address: IpAddr::from([127, 0, 0, 1]),
            port,
            members: vec![],
            health_check: HealthCheck::default(),
        };
        let spec = Spec {
            kind: Kind::Loadbalancer(LoadBalancer { listeners: vec![listener("a", 80), listener("b", 81)] }),
            ..custom()
        };
        assert_eq!(spec.validate()[0].field, "spec.loadbalancer.listeners[1].port");
    }
}
