//! Kind `loadbalancer`: the reference appliance as a TCP load balancer, configured and probed over the REST contract.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::contract::Config;
use super::{Configuration, Kind, LaunchRecipe, Listen, PortOverflow, ProbeSpec, Program, shifted};
use crate::limits::{FieldViolation, MAX_REPLICAS, check_count, check_port};
use crate::name::Name;
use crate::version::Generation;

pub mod contract;

/// Field path of the listeners.
const LISTENERS: &str = "spec.loadbalancer.listeners";

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
        Ok(LaunchRecipe { program: Program::Appliance, args: Vec::new(), env: BTreeMap::new(), listen })
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
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { interval_ms: ms(check.interval), timeout_ms: ms(check.timeout), fall: check.fall, rise: check.rise }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_check_is_the_same_on_both_sides() {
        assert_eq!(contract::Check::from(&HealthCheck::default()), contract::Check::default());
    }
}
