//! Routers on the wire: every field is read, everything wrong is noted.

use std::collections::BTreeMap;

use common::appliance::{MAX_ENTRIES, Name, Violations};
use common::kind::router::{
    Allocation, FloatingIp, Ipv6Mode, MAX_ALLOCATIONS, MAX_SUBNETS, NetworkRole, Route, Subnet,
};
use common::kind::{Router, RouterNetwork};
use common::network_port::MAX_NETWORK_PORTS;

use super::spec::UnknownNumber;
use crate::admin::v1 as wire;

/// Reads a router; `None` when `found` says why.
pub(super) fn read_router(wire: wire::Router, at: &str, found: &mut Violations) -> Option<Router> {
    let wire::Router { hostname, networks, routes, floating_ips, snat, labels } = wire;
    let networks = read_all(networks, MAX_NETWORK_PORTS, &format!("{at}.networks"), found, |network, at, found| {
        read_network(network, at, found)
    });
    let routes = read_all(routes, MAX_ENTRIES, &format!("{at}.routes"), found, read_route);
    let floating_ips = read_all(floating_ips, MAX_ENTRIES, &format!("{at}.floating_ips"), found, |ip, at, found| {
        let floating = read_address(&ip.floating, &format!("{at}.floating"), found);
        let fixed = read_address(&ip.fixed, &format!("{at}.fixed"), found);
        Some(FloatingIp { floating: floating?, fixed: fixed? })
    });
    let labels = read_all(labels, MAX_ENTRIES, &format!("{at}.labels"), found, |label, at, found| {
        let networks = read_all(label.networks, MAX_ENTRIES, &format!("{at}.networks"), found, |text, at, found| {
            found.take(at, text.parse())
        });
        Some((label.name, networks?))
    });
    let labels = labels.map(BTreeMap::from_iter);
    Some(Router {
        hostname: (!hostname.is_empty()).then_some(hostname),
        networks: networks?,
        routes: routes?,
        floating_ips: floating_ips?,
        snat: snat.unwrap_or(true),
        labels: labels?,
    })
}

/// Reads every entry of a list, so that one answer has what is wrong with each.
fn read_all<W, T>(
    wire: Vec<W>,
    most: usize,
    at: &str,
    found: &mut Violations,
    read: impl Fn(W, &str, &mut Violations) -> Option<T>,
) -> Option<Vec<T>> {
    if wire.len() > most {
        found.add(at, format!("has {} entries, at most {most} are allowed", wire.len()));
        return None;
    }
    let all: Vec<_> = wire.into_iter().enumerate().map(|(i, one)| read(one, &format!("{at}[{i}]"), found)).collect();
    all.into_iter().collect()
}

fn read_address(text: &str, at: &str, found: &mut Violations) -> Option<std::net::IpAddr> {
    let read = text.parse();
    found.take(at, read.map_err(|_| format!("`{}` is not an IP address", super::scalar::clip(text, 64))))
}

fn read_route(wire: wire::Route, at: &str, found: &mut Violations) -> Option<Route> {
    let destination = found.take(&format!("{at}.destination"), wire.destination.parse());
    let next_hop = read_address(&wire.next_hop, &format!("{at}.next_hop"), found);
    Some(Route { destination: destination?, next_hop: next_hop? })
}

fn read_network(wire: wire::RouterNetwork, at: &str, found: &mut Violations) -> Option<RouterNetwork> {
    let port = found.take(&format!("{at}.port"), Name::new(&wire.port));
    let role = found.take(&format!("{at}.role"), role_from_wire(wire.role));
    let addresses = read_all(wire.addresses, MAX_ENTRIES, &format!("{at}.addresses"), found, |text, at, found| {
        found.take(at, text.parse())
    });
    let subnets = read_all(wire.subnets, MAX_SUBNETS, &format!("{at}.subnets"), found, read_subnet);
    let allocations = read_all(wire.allocations, MAX_ALLOCATIONS, &format!("{at}.allocations"), found, read_allocation);
    Some(RouterNetwork {
        port: port?,
        role: role?,
        addresses: addresses?,
        mtu: (wire.mtu > 0).then_some(wire.mtu),
        subnets: subnets?,
        allocations: allocations?,
    })
}

fn read_subnet(wire: wire::Subnet, at: &str, found: &mut Violations) -> Option<Subnet> {
    let cidr = found.take(&format!("{at}.cidr"), wire.cidr.parse());
    let gateway = match wire.gateway.as_str() {
        "" => Some(None),
        text => read_address(text, &format!("{at}.gateway"), found).map(Some),
    };
    let dns =
        read_all(wire.dns, MAX_ENTRIES, &format!("{at}.dns"), found, |text, at, found| read_address(&text, at, found));
    let host_routes = read_all(wire.host_routes, MAX_ENTRIES, &format!("{at}.host_routes"), found, read_route);
    let ra_mode = found.take(&format!("{at}.ra_mode"), ipv6_mode_from_wire(wire.ra_mode));
    let address_mode = found.take(&format!("{at}.address_mode"), ipv6_mode_from_wire(wire.address_mode));
    Some(Subnet {
        cidr: cidr?,
        gateway: gateway?,
        dhcp: wire.dhcp,
        dns: dns?,
        host_routes: host_routes?,
        ra_mode: ra_mode?,
        address_mode: address_mode?,
    })
}

fn read_allocation(wire: wire::Allocation, at: &str, found: &mut Violations) -> Option<Allocation> {
    let mac = found.take(&format!("{at}.mac"), wire.mac.parse());
    let addresses = read_all(wire.addresses, MAX_ENTRIES, &format!("{at}.addresses"), found, |text, at, found| {
        read_address(&text, at, found)
    });
    Some(Allocation { mac: mac?, addresses: addresses?, hostname: wire.hostname, device: wire.device })
}

/// Reads what a network is to a router.
///
/// # Errors
/// What is wrong with it.
fn role_from_wire(number: i32) -> Result<NetworkRole, String> {
    use wire::router_network::Role as Wire;
    match Wire::try_from(number).map_err(|_| UnknownNumber(number).to_string())? {
        Wire::Unspecified => Err("must be external or internal".to_owned()),
        Wire::External => Ok(NetworkRole::External),
        Wire::Internal => Ok(NetworkRole::Internal),
    }
}

/// Writes what a network is to a router.
#[must_use]
pub fn role_to_wire(role: NetworkRole) -> i32 {
    use wire::router_network::Role as Wire;
    let role = match role {
        NetworkRole::External => Wire::External,
        NetworkRole::Internal => Wire::Internal,
    };
    role.into()
}

/// Reads how hosts of an IPv6 subnet get their addresses.
///
/// # Errors
/// [`UnknownNumber`].
pub fn ipv6_mode_from_wire(number: i32) -> Result<Option<Ipv6Mode>, UnknownNumber> {
    use wire::subnet::Ipv6Mode as Wire;
    match Wire::try_from(number).map_err(|_| UnknownNumber(number))? {
        Wire::Unspecified => Ok(None),
        Wire::Slaac => Ok(Some(Ipv6Mode::Slaac)),
        Wire::Dhcpv6Stateful => Ok(Some(Ipv6Mode::Dhcpv6Stateful)),
        Wire::Dhcpv6Stateless => Ok(Some(Ipv6Mode::Dhcpv6Stateless)),
    }
}

/// Writes how hosts of an IPv6 subnet get their addresses.
#[must_use]
pub fn ipv6_mode_to_wire(mode: Option<Ipv6Mode>) -> i32 {
    use wire::subnet::Ipv6Mode as Wire;
    let mode = match mode {
        None => Wire::Unspecified,
        Some(Ipv6Mode::Slaac) => Wire::Slaac,
        Some(Ipv6Mode::Dhcpv6Stateful) => Wire::Dhcpv6Stateful,
        Some(Ipv6Mode::Dhcpv6Stateless) => Wire::Dhcpv6Stateless,
    };
    mode.into()
}

/// Writes a router.
pub(super) fn router_to_wire(router: &Router) -> wire::Router {
    let floating =
        |ip: &FloatingIp| wire::FloatingIp { floating: ip.floating.to_string(), fixed: ip.fixed.to_string() };
    let label = |(name, networks): (&String, &Vec<_>)| wire::RouterLabel {
        name: name.clone(),
        networks: networks.iter().map(ToString::to_string).collect(),
    };
    wire::Router {
        hostname: router.hostname.clone().unwrap_or_default(),
        networks: router.networks.iter().map(network_to_wire).collect(),
        routes: router.routes.iter().map(route_to_wire).collect(),
        floating_ips: router.floating_ips.iter().map(floating).collect(),
        // As before there was a choice.
        snat: (!router.snat).then_some(false),
        labels: router.labels.iter().map(label).collect(),
    }
}

fn route_to_wire(route: &Route) -> wire::Route {
    wire::Route { destination: route.destination.to_string(), next_hop: route.next_hop.to_string() }
}

fn network_to_wire(network: &RouterNetwork) -> wire::RouterNetwork {
    let subnet = |subnet: &Subnet| wire::Subnet {
        cidr: subnet.cidr.to_string(),
        gateway: subnet.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        dhcp: subnet.dhcp,
        dns: subnet.dns.iter().map(ToString::to_string).collect(),
        host_routes: subnet.host_routes.iter().map(route_to_wire).collect(),
        ra_mode: ipv6_mode_to_wire(subnet.ra_mode),
        address_mode: ipv6_mode_to_wire(subnet.address_mode),
    };
    let allocation = |allocation: &Allocation| wire::Allocation {
        mac: allocation.mac.to_string(),
        addresses: allocation.addresses.iter().map(ToString::to_string).collect(),
        hostname: allocation.hostname.clone(),
        device: allocation.device.clone(),
    };
    wire::RouterNetwork {
        port: network.port.to_string(),
        role: role_to_wire(network.role),
        addresses: network.addresses.iter().map(ToString::to_string).collect(),
        mtu: network.mtu.unwrap_or_default(),
        subnets: network.subnets.iter().map(subnet).collect(),
        allocations: network.allocations.iter().map(allocation).collect(),
    }
}
