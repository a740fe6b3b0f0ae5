//! The configuration of a router on the wire to its appliance, in the REST contract.
//!
//! The names of fields are those that appliances of Astara read, so that images made for it work. What they do not know they
//! ignore: `generation`, `snat_enabled`, `default_v6_gateway`, the modes of IPv6. Nothing may be left out that they need: a tenant, a
//! host name, an autonomous system number, and of every subnet a gateway, if only an empty one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Allocation, Router, RouterNetwork, Subnet};
use crate::kind::Network as Cidr;
use crate::name::Name;
use crate::version::Generation;

/// Autonomous system number that appliances of Astara are told unless it is another one; they take a configuration without any for
/// one of another kind.
pub const DEFAULT_ASN: u32 = 64_512;

/// A configuration, as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Generation of the spec it was made from.
    #[serde(default)]
    pub generation: Generation,
    /// Owner of the router.
    pub tenant_id: String,
    /// What the appliance calls itself.
    pub hostname: String,
    /// Autonomous system number of the router.
    #[serde(default)]
    pub asn: u32,
    /// That of its neighbours.
    #[serde(default)]
    pub neighbor_asn: u32,
    /// Gateway of the external network, empty when there is none.
    #[serde(default)]
    pub default_v4_gateway: String,
    /// The same for IPv6.
    #[serde(default)]
    pub default_v6_gateway: String,
    /// Networks by interface, that of the management among them.
    pub networks: Vec<Network>,
    /// Further routes: destination and next hop.
    #[serde(default)]
    pub static_routes: Vec<(String, IpAddr)>,
    /// Addresses of the external network that stand for one behind the router.
    #[serde(default)]
    pub floating_ips: Vec<FloatingIp>,
    /// Whether internal networks leave by the external one with the router's address.
    #[serde(default = "yes")]
    pub snat_enabled: bool,
    /// Destinations whose traffic is counted, by name.
    #[serde(default)]
    pub labels: BTreeMap<String, Vec<String>>,
    /// Where the appliance finds who passes requests for metadata on.
    #[serde(default, skip_serializing_if = "Orchestrator::is_empty")]
    pub orchestrator: Orchestrator,
    /// Whether it is one of several.
    #[serde(default)]
    pub ha_resource: bool,
    /// What it needs to know of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ha_config: Option<HaConfig>,
}

const fn yes() -> bool {
    true
}

/// One network, at its interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The interface.
    pub interface: Interface,
    /// Its id where instances run.
    pub network_id: String,
    /// `external`, `internal` or `management`.
    pub network_type: String,
    /// How its addresses of IPv4 are set: always `static`.
    #[serde(default = "fixed")]
    pub v4_conf_service: String,
    /// The same for IPv6.
    #[serde(default = "fixed")]
    pub v6_conf_service: String,
    /// Its subnets.
    #[serde(default)]
    pub subnets: Vec<SubnetConfig>,
    /// Addresses that others have in it.
    #[serde(default)]
    pub allocations: Vec<AllocationConfig>,
    /// Whether several appliances share the addresses.
    #[serde(default)]
    pub ha: bool,
}

/// How addresses are set.
const STATIC: &str = "static";

fn fixed() -> String {
    STATIC.to_owned()
}

/// An interface of the appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// What the appliance calls it.
    pub ifname: String,
    /// The router's addresses there, with their prefixes.
    pub addresses: Vec<String>,
    /// Hardware address it was found by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lladdr: String,
    /// Largest packet in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetConfig {
    /// Its addresses.
    pub cidr: String,
    /// Its gateway, empty when there is none.
    pub gateway_ip: String,
    /// Whether the appliance serves DHCP there.
    pub dhcp_enabled: bool,
    /// Name servers that hosts are told.
    pub dns_nameservers: Vec<IpAddr>,
    /// Routes that hosts are told.
    pub host_routes: Vec<HostRoute>,
    /// What is advertised, of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_ra_mode: Option<String>,
    /// How hosts get their addresses, of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_address_mode: Option<String>,
}

/// A route that hosts are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRoute {
    /// Where it leads.
    pub destination: String,
    /// The neighbour.
    pub nexthop: IpAddr,
}

/// Addresses of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllocationConfig {
    /// Addresses, and whether each is given out by DHCP.
    pub ip_addresses: BTreeMap<IpAddr, bool>,
    /// Id of the device.
    pub device_id: String,
    /// Its name.
    pub hostname: String,
    /// Hardware address of its port.
    pub mac_address: String,
}

/// An address of the external network that stands for one behind the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatingIp {
    /// Of the external network.
    pub floating_ip: IpAddr,
    /// Behind the router.
    pub fixed_ip: IpAddr,
}

/// Where the worker is, seen from the appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orchestrator {
    /// Its address on the management network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Where it takes requests for metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_port: Option<u16>,
}

impl Orchestrator {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What one of several appliances needs to know of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaConfig {
    /// Management addresses of the others.
    pub peers: Vec<IpAddr>,
    /// The one with the highest forwards.
    pub priority: u8,
}

/// A configuration as far as the specification says it: interfaces have no names yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Tenant, host name, interfaces, and what is known of the others are missing; a host name may be there.
    pub config: Config,
    /// The network port that each network is reached by, in their order.
    pub ports: Vec<Name>,
}

impl Draft {
    /// The draft of a router.
    #[must_use]
    pub(super) fn new(router: &Router, generation: Generation) -> Self {
        let gateway = |v4| router.gateway(v4).map(|gateway| gateway.to_string()).unwrap_or_default();
        let pair = |ip: &super::FloatingIp| FloatingIp { floating_ip: ip.floating, fixed_ip: ip.fixed };
        let texts = |networks: &[Cidr]| networks.iter().map(Cidr::with_length).collect();
        let config = Config {
            generation,
            tenant_id: String::new(),
            hostname: router.hostname.clone().unwrap_or_default(),
            asn: DEFAULT_ASN,
            neighbor_asn: DEFAULT_ASN,
            default_v4_gateway: gateway(true),
            default_v6_gateway: gateway(false),
            networks: router.networks.iter().map(Network::draft).collect(),
            static_routes: router.routes.iter().map(|r| (r.destination.with_length(), r.next_hop)).collect(),
            floating_ips: router.floating_ips.iter().map(pair).collect(),
            snat_enabled: router.snat,
            labels: router.labels.iter().map(|(name, networks)| (name.clone(), texts(networks))).collect(),
            orchestrator: Orchestrator::default(),
            ha_resource: false,
            ha_config: None,
        };
        Self { config, ports: router.networks.iter().map(|network| network.port.clone()).collect() }
    }
}

impl Network {
    fn draft(network: &RouterNetwork) -> Self {
        let interface = Interface {
            addresses: network.addresses.iter().map(ToString::to_string).collect(),
            mtu: network.mtu,
            ..Interface::default()
        };
        Self {
            interface,
            network_type: network.role.name().to_owned(),
            v4_conf_service: fixed(),
            v6_conf_service: fixed(),
            subnets: network.subnets.iter().map(SubnetConfig::from).collect(),
            allocations: network.allocations.iter().map(|a| allocation(a, &network.subnets)).collect(),
            ..Self::default()
        }
    }
}

impl From<&Subnet> for SubnetConfig {
    fn from(subnet: &Subnet) -> Self {
        // Hosts that make their addresses of the advertised prefix ask no DHCP server.
        let is_slaac = subnet.ra_mode == Some(super::Ipv6Mode::Slaac);
        let host_route = |r: &super::Route| HostRoute { destination: r.destination.with_length(), nexthop: r.next_hop };
        let mode = |mode: Option<super::Ipv6Mode>| mode.map(|mode| mode.neutron_name().to_owned());
        Self {
            cidr: subnet.cidr.with_length(),
            gateway_ip: subnet.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            dhcp_enabled: subnet.dhcp && !is_slaac,
            dns_nameservers: subnet.dns.clone(),
            host_routes: subnet.host_routes.iter().map(host_route).collect(),
            ipv6_ra_mode: mode(subnet.ra_mode),
            ipv6_address_mode: mode(subnet.address_mode),
        }
    }
}

fn allocation(allocation: &Allocation, subnets: &[Subnet]) -> AllocationConfig {
    let is_dhcp = |address: IpAddr| subnets.iter().any(|subnet| subnet.dhcp && subnet.cidr.contains(address));
    AllocationConfig {
        ip_addresses: allocation.addresses.iter().map(|address| (*address, is_dhcp(*address))).collect(),
        device_id: allocation.device.clone(),
        hostname: allocation.hostname.clone(),
        mac_address: allocation.mac.to_string(),
    }
}
