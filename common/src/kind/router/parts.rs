//! The parts of a router's networks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::check_most;
use crate::kind::Network;
use crate::limits::FieldViolation;
use crate::network_port::{MAX_PORT_ADDRESSES, MacAddress};

/// Most name servers of one subnet.
const MAX_DNS: usize = 16;
/// Most host routes of one subnet.
const MAX_HOST_ROUTES: usize = 64;
/// Longest name of a host, in bytes.
const MAX_HOST_NAME: usize = 253;
/// Longest id of the device that has an allocation, in bytes.
const MAX_DEVICE: usize = 255;

/// What a name of a host must be, for messages.
pub(super) const HOST_NAME: &str = "must be a name of a host: letters, digits, `-` and `.`, at most 253";

/// What a network is to a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkRole {
    /// The way out: it has the default gateway and the floating IPs.
    External,
    /// A network of the tenant.
    Internal,
}

impl NetworkRole {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::External, Self::Internal];

    /// Its name in documents and in the contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Internal => "internal",
        }
    }
}

/// How hosts of an IPv6 subnet get their addresses, or what routers advertise there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv6Mode {
    /// Addresses are made of the advertised prefix.
    Slaac,
    /// Addresses and options by DHCPv6.
    Dhcpv6Stateful,
    /// Addresses of the advertised prefix, options by DHCPv6.
    Dhcpv6Stateless,
}

impl Ipv6Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Slaac, Self::Dhcpv6Stateful, Self::Dhcpv6Stateless];

    /// Its name in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slaac => "slaac",
            Self::Dhcpv6Stateful => "dhcpv6_stateful",
            Self::Dhcpv6Stateless => "dhcpv6_stateless",
        }
    }

    /// Its name in Neutron and in the contract.
    #[must_use]
    pub const fn neutron_name(self) -> &'static str {
        match self {
            Self::Slaac => "slaac",
            Self::Dhcpv6Stateful => "dhcpv6-stateful",
            Self::Dhcpv6Stateless => "dhcpv6-stateless",
        }
    }
}

/// A route by way of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where it leads.
    pub destination: Network,
    /// The neighbour.
    pub next_hop: IpAddr,
}

/// An address of the external network that stands for one behind the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatingIp {
    /// Of the external network.
    pub floating: IpAddr,
    /// Behind the router.
    pub fixed: IpAddr,
}

/// A subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Its addresses.
    pub cidr: Network,
    /// Its gateway; of an internal network usually the router itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Whether hosts get their addresses by DHCP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dhcp: bool,
    /// Name servers that hosts are told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Routes that hosts are told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_routes: Vec<Route>,
    /// What is advertised, of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra_mode: Option<Ipv6Mode>,
    /// How hosts get their addresses, of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_mode: Option<Ipv6Mode>,
}

/// Addresses that a device has in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// Hardware address of its port.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its name.
    pub hostname: String,
    /// Id of the device, such as a server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
}

impl Subnet {
    pub(super) fn check(&self, at: &str, found: &mut Vec<FieldViolation>) {
        let is_v4 = self.cidr.address().is_ipv4();
        if self.gateway.is_some_and(|gateway| gateway.is_ipv4() != is_v4) {
            found.push(FieldViolation::new(format!("{at}.gateway"), "must be of the same version of IP as `cidr`"));
        }
        for (field, mode) in [("ra_mode", self.ra_mode), ("address_mode", self.address_mode)] {
            if is_v4 && mode.is_some() {
                found.push(FieldViolation::new(format!("{at}.{field}"), "is for IPv6"));
            }
        }
        check_most(found, &format!("{at}.dns"), self.dns.len(), MAX_DNS);
        check_most(found, &format!("{at}.host_routes"), self.host_routes.len(), MAX_HOST_ROUTES);
        check_routes(&self.host_routes, &format!("{at}.host_routes"), found);
    }
}

impl Allocation {
    pub(super) fn check(&self, at: &str, found: &mut Vec<FieldViolation>) {
        if !is_host_name(&self.hostname) {
            found.push(FieldViolation::new(format!("{at}.hostname"), HOST_NAME));
        }
        if self.device.len() > MAX_DEVICE || self.device.contains(char::is_control) {
            let text = format!("must have at most {MAX_DEVICE} bytes and no control characters");
            found.push(FieldViolation::new(format!("{at}.device"), text));
        }
        if self.addresses.is_empty() {
            found.push(FieldViolation::new(format!("{at}.addresses"), "must not be empty"));
        }
        check_most(found, &format!("{at}.addresses"), self.addresses.len(), MAX_PORT_ADDRESSES);
    }
}

pub(super) fn check_routes(routes: &[Route], at: &str, found: &mut Vec<FieldViolation>) {
    for (i, route) in routes.iter().enumerate() {
        if route.destination.address().is_ipv4() != route.next_hop.is_ipv4() {
            let text = "must be of the same version of IP as `destination`";
            found.push(FieldViolation::new(format!("{at}[{i}].next_hop"), text));
        }
    }
}

/// Whether a text can be the name of a host.
pub(super) fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= MAX_HOST_NAME && text.split('.').all(is_label)
}
