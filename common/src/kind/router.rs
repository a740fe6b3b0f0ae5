//! A router between networks: interfaces with addresses, static routes, an external gateway with SNAT, floating IPs, and what
//! appliances that serve DHCP and router advertisements need to know of the subnets behind it.
//!
//! Which interface of an instance is on which network is not part of it: a network names the [network port](crate::network_port)
//! that it is reached by, and the worker finds the interface by the hardware address of that port once the instance runs. The
//! management network of an instance is its driver's affair and is not listed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::parts::{Allocation, FloatingIp, Ipv6Mode, NetworkRole, Route, Subnet};
use super::{Configuration, Execution, Kind, LaunchRecipe, Listen, Network, PortOverflow, ProbeSpec, Program};
use crate::limits::{FieldViolation, MAX_ENTRIES};
use crate::name::Name;
use crate::network_port::{MAX_NETWORK_PORTS, MAX_PORT_ADDRESSES, PortAddress};
use crate::version::Generation;

pub mod contract;
mod parts;

#[cfg(test)]
mod tests;

/// Most allocations of one router, over all its networks. A specification that holds more would be stored and sent anew with every
/// port that comes or goes.
pub const MAX_ALLOCATIONS: usize = 1024;
/// Most subnets of one network.
pub const MAX_SUBNETS: usize = 32;
/// Most labels of one router.
const MAX_LABELS: usize = 16;
/// Smallest and largest packet of a network, in bytes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;
/// Field path of the kind.
const AT: &str = "spec.router";

/// A router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// What the appliance calls itself; the name of the appliance when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The networks that it connects, at most one of them external. A router without one forwards nothing.
    pub networks: Vec<RouterNetwork>,
    /// Static routes beside those to its networks and to the gateway of the external one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Addresses of the external network, each of which stands for one address behind the router.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floating_ips: Vec<FloatingIp>,
    /// Whether connections of internal networks leave by the external one with the router's own address.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub snat: bool,
    /// Destinations whose traffic is counted under a name, for appliances that count.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Vec<Network>>,
}

const fn yes() -> bool {
    true
}

const fn is_yes(value: &bool) -> bool {
    *value
}

impl Default for Router {
    fn default() -> Self {
        Self {
            hostname: None,
            networks: vec![],
            routes: vec![],
            floating_ips: vec![],
            snat: true,
            labels: BTreeMap::new(),
        }
    }
}

/// One network that a router connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterNetwork {
    /// Name of the network port that it is reached by, one of `spec.ports`.
    pub port: Name,
    /// What it is to the router.
    pub role: NetworkRole,
    /// The router's addresses in it, with the lengths of their prefixes.
    pub addresses: Vec<PortAddress>,
    /// Largest packet in bytes; the interface's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its subnets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// Addresses that others have in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<Allocation>,
}

impl Kind for Router {
    fn validate(&self, _: u16, found: &mut Vec<FieldViolation>) {
        if self.hostname.as_ref().is_some_and(|name| !parts::is_host_name(name)) {
            found.push(FieldViolation::new(format!("{AT}.hostname"), parts::HOST_NAME));
        }
        self.check_networks(found);
        check_most(found, &format!("{AT}.routes"), self.routes.len(), MAX_ENTRIES);
        check_most(found, &format!("{AT}.floating_ips"), self.floating_ips.len(), MAX_ENTRIES);
        parts::check_routes(&self.routes, &format!("{AT}.routes"), found);
        let mut floating = BTreeSet::new();
        for (i, ip) in self.floating_ips.iter().enumerate() {
            let at = format!("{AT}.floating_ips[{i}]");
            if ip.floating.is_ipv4() != ip.fixed.is_ipv4() {
                found.push(FieldViolation::new(
                    format!("{at}.fixed"),
                    "must be of the same version of IP as `floating`",
                ));
            }
            if !floating.insert(ip.floating) {
                found.push(FieldViolation::new(format!("{at}.floating"), format!("{} is listed twice", ip.floating)));
            }
        }
        check_most(found, &format!("{AT}.labels"), self.labels.len(), MAX_LABELS);
        for (name, networks) in &self.labels {
            if Name::new(name).is_err() {
                found.push(FieldViolation::new(format!("{AT}.labels"), "names must be of a-z 0-9 - . _"));
            }
            check_most(found, &format!("{AT}.labels.{name}"), networks.len(), MAX_ENTRIES);
        }
    }

    /// It listens at no port of its host: its addresses are those of its networks.
    fn ports(&self) -> Vec<(u16, String)> {
        Vec::new()
    }

    fn network_ports(&self) -> Vec<(&Name, String)> {
        self.networks
            .iter()
            .enumerate()
            .map(|(i, network)| (&network.port, format!("{AT}.networks[{i}].port")))
            .collect()
    }

    /// Everything comes with the configuration.
    fn restart_inputs(&self, _: &mut dyn FnMut(&str, &str)) {}

    fn launch(&self, _: u16) -> Result<LaunchRecipe, PortOverflow> {
        let (program, execution, listen) = (Program::Appliance, Execution::default(), Listen::Nowhere);
        Ok(LaunchRecipe { program, args: Vec::new(), env: BTreeMap::new(), execution, listen })
    }

    fn service_address(&self, _: u16) -> Option<std::net::SocketAddr> {
        None
    }

    fn configuration(&self, generation: Generation, _: u16) -> Result<Configuration, PortOverflow> {
        Ok(Configuration::Router(Box::new(contract::Draft::new(self, generation))))
    }

    fn knows_peers(&self) -> bool {
        true
    }

    fn probe(&self) -> ProbeSpec {
        ProbeSpec::Rest
    }
}

impl Router {
    fn check_networks(&self, found: &mut Vec<FieldViolation>) {
        let at = format!("{AT}.networks");
        check_most(found, &at, self.networks.len(), MAX_NETWORK_PORTS);
        let (mut ports, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for (i, network) in self.networks.iter().enumerate() {
            let at = format!("{at}[{i}]");
            if !ports.insert(&network.port) {
                found.push(FieldViolation::new(format!("{at}.port"), "is the port of another network"));
            }
            if let Some(twice) = network.addresses.iter().find(|address| !addresses.insert(address.ip)) {
                found.push(FieldViolation::new(format!("{at}.addresses"), format!("{} is listed twice", twice.ip)));
            }
            network.check(&at, found);
        }
        if self.networks.iter().filter(|network| network.role == NetworkRole::External).count() > 1 {
            found.push(FieldViolation::new(&at, "at most one can be external"));
        }
        let allocations: usize = self.networks.iter().map(|network| network.allocations.len()).sum();
        if allocations > MAX_ALLOCATIONS {
            let text = format!("have {allocations} allocations, at most {MAX_ALLOCATIONS} are allowed");
            found.push(FieldViolation::new(at, text));
        }
    }

    /// Gateway of the external network: that of the first of its subnets of this version of IP in which the router has an address.
    #[must_use]
    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        let external = self.networks.iter().find(|network| network.role == NetworkRole::External)?;
        let has_address = |subnet: &Subnet| external.addresses.iter().any(|address| subnet.cidr.contains(address.ip));
        let gateways = external.subnets.iter().filter(|subnet| has_address(subnet)).filter_map(|subnet| subnet.gateway);
        let mut gateways = gateways.filter(|gateway| gateway.is_ipv4() == v4);
        gateways.next()
    }
}

impl RouterNetwork {
    fn check(&self, at: &str, found: &mut Vec<FieldViolation>) {
        check_most(found, &format!("{at}.addresses"), self.addresses.len(), MAX_PORT_ADDRESSES);
        check_most(found, &format!("{at}.subnets"), self.subnets.len(), MAX_SUBNETS);
        if let Some(bare) = self.addresses.iter().find(|address| address.prefix.is_none()) {
            let text = format!("{bare} needs the length of its prefix, as in {bare}/24");
            found.push(FieldViolation::new(format!("{at}.addresses"), text));
        }
        if self.mtu.is_some_and(|mtu| !MTU.contains(&mtu)) {
            let text = format!("must be {} to {}", MTU.start(), MTU.end());
            found.push(FieldViolation::new(format!("{at}.mtu"), text));
        }
        for (i, subnet) in self.subnets.iter().enumerate() {
            subnet.check(&format!("{at}.subnets[{i}]"), found);
        }
        for (i, allocation) in self.allocations.iter().enumerate() {
            allocation.check(&format!("{at}.allocations[{i}]"), found);
        }
    }
}

/// Notes a list that is too long.
fn check_most(found: &mut Vec<FieldViolation>, at: &str, count: usize, most: usize) {
    if count > most {
        found.push(FieldViolation::new(at, format!("has {count} entries, at most {most} are allowed")));
    }
}
