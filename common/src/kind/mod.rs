//! Kinds of appliances: one module for each, behind one trait.
//!
//! A kind is data and rules about it: what may be asked for, which ports it claims, what needs a restart, how an instance
//! is launched, configured and probed. It describes; drivers carry out its [`LaunchRecipe`], and workers its
//! [`Configuration`] and [`ProbeSpec`], none of them knowing which kind it is. So a kind that needs no new way to be
//! launched or spoken to is this module, its line in [`kinds!`] below, and its form on the wire and in documents.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::FieldViolation;
use crate::name::Name;
use crate::text::Redacted;
use crate::version::Generation;

pub mod custom;
pub mod loadbalancer;
pub mod router;

pub use self::custom::{Custom, InvalidStopSignal, Probe, ProcessLimits, ProcessOptions, StopSignal};
pub use self::loadbalancer::{Algorithm, HealthCheck, Limits, Listener, LoadBalancer, Member, Network, ProxyProtocol};
pub use self::router::{Router, RouterNetwork};

/// What one kind knows. The value is what an appliance of this kind asks for, and has passed [`Kind::validate`].
pub trait Kind {
    /// Notes every rule that is broken, with field paths such as `spec.custom.port`.
    fn validate(&self, replicas: u16, found: &mut Vec<FieldViolation>);

    /// Ports that instance 0 listens on, each with the field that names it. Instance `n` takes `port + n`.
    fn ports(&self) -> Vec<(u16, String)>;

    /// Network ports that its instances have to have, each with the field that names it.
    fn network_ports(&self) -> Vec<(&Name, String)> {
        Vec::new()
    }

    /// Names and values of everything an instance can only take on by being started anew, in an order that never changes:
    /// running instances are known by a digest of it.
    fn restart_inputs(&self, input: &mut dyn FnMut(&str, &str));

    /// How instance `ordinal` is launched.
    ///
    /// # Errors
    /// [`PortOverflow`] when one of its ports would be too high.
    fn launch(&self, ordinal: u16) -> Result<LaunchRecipe, PortOverflow>;

    /// Where instance `ordinal` serves once it has its configuration, for kinds whose configuration says so.
    fn service_address(&self, ordinal: u16) -> Option<SocketAddr>;

    /// What is put in place at instance `ordinal` once it runs, and again for each generation.
    ///
    /// # Errors
    /// [`PortOverflow`] when one of its ports would be too high.
    fn configuration(&self, generation: Generation, ordinal: u16) -> Result<Configuration, PortOverflow>;

    /// How to find out whether an instance is well.
    fn probe(&self) -> ProbeSpec;

    /// Whether the configuration of an instance says which others there are, so that it changes with them.
    fn knows_peers(&self) -> bool {
        false
    }

    /// Whether only an image can say what is run.
    fn needs_image(&self) -> bool {
        false
    }

    /// How an instance is ended.
    fn stop(&self) -> StopRecipe {
        StopRecipe::default()
    }

    /// How long an instance has to run before an answered probe counts, unless the specification says so.
    fn settle_time(&self) -> Duration {
        Duration::ZERO
    }
}

/// How an instance is launched: what a driver is asked for, whatever the kind.
#[derive(Clone, PartialEq, Eq)]
pub struct LaunchRecipe {
    /// What is run.
    pub program: Program,
    /// Its arguments; `{port}`, `{ordinal}`, `{name}` and `{id}` are replaced by the driver.
    pub args: Vec<String>,
    /// Its environment on top of the driver's own; values are replaced as in `args`.
    pub env: BTreeMap<String, String>,
    /// What its process is given besides.
    pub execution: Execution,
    /// Where it listens.
    pub listen: Listen,
}

/// What the process of an instance is given beside arguments and environment, where its driver runs processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Execution {
    /// Files with further variables.
    pub env_from: Vec<String>,
    /// User, by name or number; the driver's own when absent.
    pub user: Option<String>,
    /// Group, by name or number; that of the user when absent.
    pub group: Option<String>,
    /// Where it starts; a folder of its own when absent.
    pub working_dir: Option<String>,
    /// What it may use.
    pub limits: ProcessLimits,
    /// Nice value; 0 when absent.
    pub nice: Option<i8>,
    /// Whether no program that it runs may gain rights.
    pub no_new_privileges: bool,
}

/// How an instance is ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopRecipe {
    /// Number of the signal that asks it to; the driver's when absent.
    pub signal: Option<i32>,
    /// How long it may then take; the driver's when absent.
    pub timeout: Option<Duration>,
}

impl fmt::Debug for LaunchRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, args, env, execution, listen } = self;
        f.debug_struct("LaunchRecipe")
            .field("program", program)
            .field("args", args)
            .field("env", &Redacted(env))
            .field("execution", execution)
            .field("listen", listen)
            .finish()
    }
}

/// What an instance runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// The reference appliance, or an image that serves the same REST contract. It opens a management address, which the
    /// driver waits for and reports. The driver makes a secret for each attempt, hands it over where only the instance can read
    /// it (a file; for a virtual machine its configuration drive), and reports it with the instance.
    Appliance,
    /// A command: an absolute path, or a name to be looked up in the worker's `PATH`. An empty one is what an image runs by itself.
    Command(String),
}

impl Program {
    /// Whether it opens a management address.
    #[must_use]
    pub const fn has_management(&self) -> bool {
        match self {
            Self::Appliance => true,
            Self::Command(_) => false,
        }
    }
}

/// Where an instance listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At no address.
    Nowhere,
    /// At one address with a port that the driver picks.
    AnyPort,
    /// At these, which must be free. The first one is the address of its service.
    At(Vec<SocketAddr>),
}

/// What an instance is configured with once it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// Nothing: everything it needs to know comes with its launch.
    None,
    /// This body, put in place at the management address by the REST contract.
    Rest(serde_json::Value),
    /// The configuration of a router, put in place by the REST contract once it says which interface is on which network.
    Router(Box<router::contract::Draft>),
}

/// How to find out whether an instance is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeSpec {
    /// A connection to the address of its service can be opened.
    Tcp,
    /// `GET` of this path at the address of its service answers with a status below 400.
    Http {
        /// Path and query, starting with `/`.
        path: String,
    },
    /// It answers at its management address, as the REST contract says.
    Rest,
    /// It runs, as far as its driver can tell; it is not asked itself.
    Process,
    /// A command that its driver runs beside it ends with exit status 0.
    Exec {
        /// Program and arguments, replaced as in [`LaunchRecipe::args`].
        command: Vec<String>,
    },
}

/// A port of an instance would be higher than ports go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {port} + {ordinal} goes beyond 65535")]
pub struct PortOverflow {
    /// Port of instance 0.
    pub port: u16,
    /// The instance.
    pub ordinal: u16,
}

/// The port of instance `ordinal`.
fn shifted(port: u16, ordinal: u16) -> Result<u16, PortOverflow> {
    port.checked_add(ordinal).ok_or(PortOverflow { port, ordinal })
}

/// Lists the kinds: makes the type that holds any of them, and the registry. Besides it, only the readers and writers of
/// a form (`proto::convert::spec`, `rugctl`'s documents) name kinds.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident($value:ty) = $name:literal [$($field:literal),*]),+ $(,)?) => {
        /// What an appliance does: a value of one of the kinds.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub enum KindSpec {
            $($(#[$doc])* #[serde(rename = $name)] $variant($value),)+
        }

        /// The name of a kind, as workers publish what their drivers can run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum KindName {
            $($(#[$doc])* $variant,)+
        }

        impl KindName {
            /// Every kind there is.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name as text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        /// Every kind there is.
        pub const REGISTRY: &[KindInfo] = &[$(KindInfo { name: $name, fields: &[$($field),*] }),+];

        impl KindSpec {
            /// Its kind.
            #[must_use]
            pub const fn kind_name(&self) -> KindName {
                match self {
                    $(Self::$variant(_) => KindName::$variant,)+
                }
            }

            /// The name of its kind.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                self.kind_name().as_str()
            }
        }

        impl std::ops::Deref for KindSpec {
            type Target = dyn Kind;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$variant(value) => value,)+
                }
            }
        }
    };
}

kinds! {
    /// The reference appliance as a TCP load balancer.
    Loadbalancer(LoadBalancer) = "loadbalancer" ["listeners"],
    /// Any command.
    Custom(Custom) = "custom" [
        "command", "args", "env", "port", "probe", "env_from", "user", "group", "working_dir", "limits", "nice",
        "no_new_privileges", "stop_signal", "stop_timeout"
    ],
    /// A router between networks.
    Router(Router) = "router" ["hostname", "networks", "routes", "floating_ips", "snat", "labels"],
}

impl KindName {
    /// The kinds that every worker ran when workers did not publish their kinds. Never changes.
    pub const PREVIOUS: [Self; 2] = [Self::Loadbalancer, Self::Custom];

    /// The kind of this name; `None` when this version has none.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }
}

impl std::fmt::Display for KindName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A kind, as the registry lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindInfo {
    /// Its name in documents, tables, and paths of fields.
    pub name: &'static str,
    /// Fields that an update mask can name, as they are stored.
    pub fields: &'static [&'static str],
}

/// Names of all kinds, for messages.
#[must_use]
pub fn names() -> String {
    REGISTRY.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

impl KindSpec {
    /// This value with the named fields taken from `other`, which is of the same kind.
    ///
    /// # Errors
    /// What does not go together.
    pub fn with_fields(&self, other: &Self, fields: &BTreeSet<&'static str>) -> Result<Self, serde_json::Error> {
        let (mut merged, mut other) = (serde_json::to_value(self)?, serde_json::to_value(other)?);
        for field in fields {
            match other[self.name()].get_mut(field).map(serde_json::Value::take) {
                Some(value) => merged[self.name()][*field] = value,
                // A field without a value is not stored.
                None => drop(merged[self.name()].as_object_mut().and_then(|fields| fields.remove(*field))),
            }
        }
        serde_json::from_value(merged)
    }

    /// Gives instances no time to end by themselves. Answers whether that is new: a kind that does not say how its instances end
    /// leaves that to the driver.
    pub fn end_at_once(&mut self) -> bool {
        match self {
            Self::Custom(custom) => {
                let options = custom.process.get_or_insert_default();
                options.stop_timeout.replace(Duration::ZERO) != Some(Duration::ZERO)
            }
            Self::Loadbalancer(_) | Self::Router(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_that_are_stored() {
        let probe = Probe::Http { path: "/".into() };
        let process = ProcessOptions {
            env_from: vec!["/x".into()],
            user: Some("x".into()),
            group: Some("x".into()),
            working_dir: Some("/x".into()),
            limits: ProcessLimits { core: Some(0), ..ProcessLimits::default() },
            nice: Some(1),
            no_new_privileges: true,
            stop_signal: "INT".parse().ok(),
            stop_timeout: Some(Duration::ZERO),
        };
        let (command, port, process) = ("x".into(), Some(1), process.boxed());
        let custom = Custom { command, port, probe, process, ..Custom::default() };
        let router = Router {
            hostname: Some("x".into()),
            routes: vec![router::Route { destination: "::/0".parse().expect("a network"), next_hop: [0; 16].into() }],
            floating_ips: vec![router::FloatingIp { floating: [0; 4].into(), fixed: [0; 4].into() }],
            snat: false,
            labels: [("x".to_owned(), vec![])].into(),
            ..Router::default()
        };
        let balancer = KindSpec::Loadbalancer(LoadBalancer { listeners: vec![] });
        for kind in [KindSpec::Custom(custom), balancer, KindSpec::Router(router)] {
            let stored = serde_json::to_value(&kind).expect("plain data");
            let stored: BTreeSet<_> = stored[kind.name()].as_object().expect("fields").keys().cloned().collect();
            let info = REGISTRY.iter().find(|info| info.name == kind.name()).expect("listed");
            assert_eq!(stored, info.fields.iter().map(|field| (*field).to_owned()).collect());
        }
    }

    #[test]
    fn named_fields_are_merged_and_no_others() {
        let custom = |command: &str, port, probe| {
            let command = command.to_owned();
            KindSpec::Custom(Custom { command, port, probe, ..Custom::default() })
        };
        let (a, b) = (custom("a", Some(1), Probe::Tcp), custom("b", None, Probe::Http { path: "/".into() }));
        let KindSpec::Custom(merged) = a.with_fields(&b, &["port", "probe"].into()).expect("one kind") else {
            unreachable!("of that kind")
        };
        assert_eq!((merged.command.as_str(), merged.port), ("a", None));
        assert_eq!(merged.probe, Probe::Http { path: "/".into() });
    }
}
