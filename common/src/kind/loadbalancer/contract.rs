//! The configuration of a load balancer on the wire to its appliance, in the REST contract.
//!
//! Durations are milliseconds and ports are those to listen on (already shifted by the ordinal), so that the appliance
//! knows nothing of replicas. Unknown fields are refused: a configuration that is only half understood must not count
//! as in place.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Network, ProxyProtocol};
use crate::version::Generation;

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
    /// What its connections may take. Left out while nothing is asked for: appliances of the version before do not know it.
    #[serde(default, skip_serializing_if = "Limits::is_default")]
    pub limits: Limits,
    /// Which member a new connection goes to.
    #[serde(default, skip_serializing_if = "Algorithm::is_default")]
    pub algorithm: Algorithm,
    /// What connections to members begin with, if with anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Whose connections begin with the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_proxy_from: Vec<Network>,
}

/// Connections of a listener that does not say how many it may have, where its appliance can have that many.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 4096;

/// What the connections of one listener may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel. `None` for [`DEFAULT_MAX_CONNECTIONS`], or for an equal share of what the
    /// appliance can have where that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// How long a connection may be without a byte, in milliseconds.
    pub idle_timeout_ms: u64,
    /// How long it may be so once one side has ended, in milliseconds.
    pub half_close_timeout_ms: u64,
    /// How long it may go on once its member or its listener is not configured any more, in milliseconds. Left out while it is the
    /// usual time: appliances of the version before do not know it.
    #[serde(skip_serializing_if = "is_usual_drain")]
    pub drain_timeout_ms: u64,
}

const USUAL_DRAIN_MS: u64 = 300_000;

fn is_usual_drain(ms: &u64) -> bool {
    *ms == USUAL_DRAIN_MS
}

impl Limits {
    /// How long a connection may be without a byte.
    #[must_use]
    pub const fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    /// How long it may be so once one side has ended.
    #[must_use]
    pub const fn half_close_timeout(&self) -> Duration {
        Duration::from_millis(self.half_close_timeout_ms)
    }

    /// How long it may go on once it is not configured any more.
    #[must_use]
    pub const fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            idle_timeout_ms: 3_600_000,
            half_close_timeout_ms: 300_000,
            drain_timeout_ms: USUAL_DRAIN_MS,
        }
    }
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
        Self { interval_ms: 2_000, timeout_ms: 1_000, fall: 2, rise: 1 }
    }
}
