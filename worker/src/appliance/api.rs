//! The REST contract, as both sides write it: the appliance serves it, kind `loadbalancer` calls it.
//!
//! Durations are milliseconds and ports are those to listen on (already shifted by the ordinal), so that the appliance
//! knows nothing of replicas. Unknown fields are refused: a configuration that is only half understood must not count
//! as in place.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::appliance::{HealthCheck, LoadBalancer};
use common::{Generation, Term, Token};
use serde::{Deserialize, Serialize};

/// Header of every call that changes something: `Rug-Token: <term>/<sequence>`, both decimal.
pub const TOKEN_HEADER: &str = "rug-token";

/// Header that says which instance a call is meant for: `Rug-Instance: <appliance>-<ordinal>-<attempt>`. Addresses are used
/// again, and tokens order only the owners of one appliance: an instance must refuse what is meant for another.
pub const INSTANCE_HEADER: &str = "rug-instance";

/// Paths of the contract.
pub mod path {
    /// `GET`: 200 means alive.
    pub const STATUS: &str = "/v1/status";
    /// `GET`: [`super::Interfaces`].
    pub const INTERFACES: &str = "/v1/system/interfaces";
    /// `PUT` of a [`super::Config`]; `GET` answers the one in force.
    pub const CONFIG: &str = "/v1/system/config";
    /// `POST`: [`super::Labels`].
    pub const LABELS: &str = "/v1/firewall/labels";
}

/// A configuration, as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Generation of the spec it was made from.
    pub generation: Generation,
    /// What is listened on.
    pub listeners: Vec<Listener>,
}

/// One port and the members behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Unique in a configuration.
    pub name: String,
    /// Where to listen.
    pub address: IpAddr,
    /// Where to listen.
    pub port: u16,
    /// Where connections go.
    pub members: Vec<Member>,
    /// How members are checked.
    #[serde(default)]
    pub health_check: Check,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// How members are checked: a TCP connection that is closed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Time between two checks, in milliseconds.
    pub interval_ms: u64,
    /// How long one check may take, in milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row that take a member out.
    pub fall: u32,
    /// Successes in a row that bring it back.
    pub rise: u32,
}

/// Answer to [`path::INTERFACES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// By name.
    pub interfaces: Vec<Interface>,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name in the kernel.
    pub ifname: String,
    /// Link-layer address, `00:00:00:00:00:00` where there is none.
    pub lladdr: String,
    /// Addresses with prefix length, such as `10.0.0.5/24`.
    pub addresses: Vec<String>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// `up`, `down` or `unknown`, as the kernel says.
    pub state: String,
}

/// Answer to [`path::LABELS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// One per listener, by name.
    pub labels: Vec<Label>,
}

/// Counters since the listener was first configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Name of the listener; of a member its address and port.
    pub name: String,
    /// Connections accepted; of a member those that were opened to it.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections that found no member; of a member those that it did not accept.
    pub failed: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Of a member, whether it passes its health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Of a listener, its members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Label>,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub error: String,
    /// Field of the configuration it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Token in force, when an older one was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
}

impl Config {
    /// The configuration of instance `ordinal`. `None` when a port would go beyond 65535.
    #[must_use]
    pub fn new(generation: Generation, lb: &LoadBalancer, ordinal: u16) -> Option<Self> {
        let listeners = lb.listeners.iter().map(|listener| {
            Some(Listener {
                name: listener.name.clone(),
                address: listener.address,
                port: listener.port.checked_add(ordinal)?,
                members: listener.members.iter().map(|m| Member { address: m.address, port: m.port }).collect(),
                health_check: Check::from(&listener.health_check),
            })
        });
        Some(Self { generation, listeners: listeners.collect::<Option<_>>()? })
    }
}

impl Member {
    /// Address and port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl Check {
    /// Time between two checks.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// How long one check may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl Default for Check {
    fn default() -> Self {
        Self::from(&HealthCheck::default())
    }
}

impl From<&HealthCheck> for Check {
    fn from(check: &HealthCheck) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { interval_ms: ms(check.interval), timeout_ms: ms(check.timeout), fall: check.fall, rise: check.rise }
    }
}

/// The value of [`TOKEN_HEADER`].
#[must_use]
pub fn token_to_header(token: Token) -> String {
    format!("{}/{}", token.term.get(), token.sequence)
}

/// Reads the value of [`TOKEN_HEADER`].
#[must_use]
pub fn token_from_header(text: &str) -> Option<Token> {
    let (term, sequence) = text.split_once('/')?;
    Some(Token::new(Term::new(term.parse().ok()?), sequence.parse().ok()?))
}
