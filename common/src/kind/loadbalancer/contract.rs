//! The configuration of a load balancer on the wire to its appliance, in the REST contract.
//!
//! Durations are milliseconds and ports are those to listen on (already shifted by the ordinal), so that the appliance
//! knows nothing of replicas. Unknown fields are refused: a configuration that is only half understood must not count
//! as in place.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
