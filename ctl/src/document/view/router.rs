//! Printed form of routers.

use common::kind::router::{Ipv6Mode, NetworkRole};
use proto::admin::v1;
use proto::convert::{ipv6_mode_from_wire, role_to_wire};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Router {
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    networks: Vec<RouterNetwork>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    floating_ips: Vec<FloatingIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snat: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Label>,
}

#[derive(Debug, Serialize)]
struct RouterNetwork {
    port: String,
    role: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subnets: Vec<Subnet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allocations: Vec<Allocation>,
}

#[derive(Debug, Serialize)]
struct Subnet {
    cidr: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    gateway: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dhcp: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    host_routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ra_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address_mode: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Route {
    destination: String,
    next_hop: String,
}

#[derive(Debug, Serialize)]
struct Allocation {
    mac: String,
    addresses: Vec<String>,
    hostname: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    device: String,
}

#[derive(Debug, Serialize)]
struct FloatingIp {
    floating: String,
    fixed: String,
}

#[derive(Debug, Serialize)]
struct Label {
    name: String,
    networks: Vec<String>,
}

impl From<v1::Router> for Router {
    fn from(router: v1::Router) -> Self {
        let v1::Router { hostname, networks, routes, floating_ips, snat, labels } = router;
        let floating = |ip: v1::FloatingIp| FloatingIp { floating: ip.floating, fixed: ip.fixed };
        Self {
            hostname,
            networks: networks.into_iter().map(RouterNetwork::from).collect(),
            routes: routes.into_iter().map(Route::from).collect(),
            floating_ips: floating_ips.into_iter().map(floating).collect(),
            snat,
            labels: labels.into_iter().map(|l| Label { name: l.name, networks: l.networks }).collect(),
        }
    }
}

impl From<v1::RouterNetwork> for RouterNetwork {
    fn from(network: v1::RouterNetwork) -> Self {
        let v1::RouterNetwork { port, role, addresses, mtu, subnets, allocations } = network;
        let allocation = |a: v1::Allocation| Allocation {
            mac: a.mac,
            addresses: a.addresses,
            hostname: a.hostname,
            device: a.device,
        };
        Self {
            port,
            role: NetworkRole::ALL.into_iter().find(|r| role_to_wire(*r) == role).map_or("", NetworkRole::name),
            addresses,
            mtu: (mtu > 0).then_some(mtu),
            subnets: subnets.into_iter().map(Subnet::from).collect(),
            allocations: allocations.into_iter().map(allocation).collect(),
        }
    }
}

impl From<v1::Subnet> for Subnet {
    fn from(subnet: v1::Subnet) -> Self {
        let v1::Subnet { cidr, gateway, dhcp, dns, host_routes, ra_mode, address_mode } = subnet;
        let mode = |number| ipv6_mode_from_wire(number).ok().flatten().map(Ipv6Mode::name);
        let host_routes = host_routes.into_iter().map(Route::from).collect();
        Self { cidr, gateway, dhcp, dns, host_routes, ra_mode: mode(ra_mode), address_mode: mode(address_mode) }
    }
}

impl From<v1::Route> for Route {
    fn from(route: v1::Route) -> Self {
        Self { destination: route.destination, next_hop: route.next_hop }
    }
}
