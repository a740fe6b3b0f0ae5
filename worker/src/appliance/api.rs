//! The REST contract, as both sides write it: the appliance serves it, [`crate::kinds::rest`] calls it.

use std::collections::BTreeMap;

pub use common::kind::loadbalancer::contract::{Check, Config, DEFAULT_MAX_CONNECTIONS, Limits, Listener, Member};
pub use common::kind::{Algorithm, Network, ProxyProtocol};
use common::{Term, Token};
use serde::{Deserialize, Serialize};

/// Header of every call that changes something: `Rug-Token: <term>/<sequence>`, both decimal.
pub const TOKEN_HEADER: &str = "rug-token";

/// Header that says which instance a call is meant for: `Rug-Instance: <appliance>-<ordinal>-<attempt>`. Addresses are used
/// again, and tokens order only the owners of one appliance: an instance must refuse what is meant for another.
pub const INSTANCE_HEADER: &str = "rug-instance";

/// Headers of requests for metadata that an appliance passes on to its worker: those of Neutron's routers to their agent.
pub mod metadata_header {
    use http::HeaderName;

    /// Address of the server that asks, as the appliance saw it.
    pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    /// Network that it asks from.
    pub const NETWORK: HeaderName = HeaderName::from_static("x-neutron-network-id");
    /// Router that it asks by, in place of the network.
    pub const ROUTER: HeaderName = HeaderName::from_static("x-neutron-router-id");
}

/// Paths of the contract.
pub mod path {
    /// `GET`: 200 means alive.
    pub const STATUS: &str = "/v1/status";
    /// `GET`: [`super::Interfaces`].
    pub const INTERFACES: &str = "/v1/system/interfaces";
    /// `PUT` of a [`super::Config`]; `GET` answers the one in force.
    pub const CONFIG: &str = "/v1/system/config";
    /// `GET`: 200 means alive, of appliances that have no [`STATUS`].
    pub const RULES: &str = "/v1/firewall/rules";
    /// `POST`: [`super::Labels`].
    pub const LABELS: &str = "/v1/firewall/labels";
}

/// Answer to [`path::STATUS`]. Appliances of the version before say less, and others may say more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `ok`.
    #[serde(default)]
    pub status: String,
    /// What people should know of an instance that is well otherwise, each a short text under a name, such as [`SATURATED`]. Only
    /// callers with the secret are told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, String>,
}

/// Name of the condition of a load balancer that has listeners with all the connections they may have.
pub use common::status::SATURATED_DETAIL as SATURATED;

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
    /// Of a listener, the connections it may have; 0 in answers of the version before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_connections: u64,
    /// Of a listener, how often it came to have them all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub saturated: u64,
    /// Of a member, whether it passes its health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Of a listener, its members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Label>,
}

const fn is_zero(number: &u64) -> bool {
    *number == 0
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
