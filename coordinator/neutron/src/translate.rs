//! The appliance that a router of Neutron is to have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::ApplianceId;
use common::appliance::{FieldViolation, Name, Spec, Timing};
use common::change::ApplianceDraft;
use common::driver::DriverName;
use common::kind::router::{Allocation, FloatingIp, Ipv6Mode, MAX_ALLOCATIONS, NetworkRole, Route, Subnet};
use common::kind::{KindSpec, Network, Router, RouterNetwork};
use common::network_port::{NetworkPort, PortAddress};
use openstack::{FixedAddress, Port, ResourceId};
use uuid::Uuid;

use crate::state::RouterState;

/// Label of an appliance with the name of its router in Neutron, where it has one.
pub const NAME_LABEL: &str = "neutron.router";
/// Longest text of a label that is taken over, in bytes.
const MAX_LABEL: usize = 128;
/// Instances of a router, and of one that is to survive the loss of one of them.
const REPLICAS: (u16, u16) = (1, 2);
/// Tenant of routers that have none in Neutron.
const NO_TENANT: &str = "neutron";

/// What Neutron does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where instances run.
    pub driver: DriverName,
    /// What they boot; what the driver has for the kind when absent.
    pub image: Option<String>,
    /// Tell appliances the addresses of others in internal networks, for DHCP and names.
    pub allocations: bool,
    /// What the names of ports that belong to appliances begin with: those are nobody's address.
    pub own_ports: String,
}

/// Which routers are ours. A condition that names nothing holds for all; all have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Of these projects.
    pub tenants: Vec<String>,
    /// With one of these flavors.
    pub flavors: Vec<String>,
    /// With one of these tags.
    pub tags: Vec<String>,
    /// With one of these hints of availability zones.
    pub zones: Vec<String>,
}

impl Selection {
    /// Whether a router is ours.
    #[must_use]
    pub fn includes(&self, router: &openstack::Router) -> bool {
        let holds = |wanted: &[String], has: &dyn Fn(&String) -> bool| wanted.is_empty() || wanted.iter().any(has);
        holds(&self.tenants, &|tenant| router.project_id == *tenant)
            && holds(&self.flavors, &|flavor| router.flavor_id.as_ref() == Some(flavor))
            && holds(&self.tags, &|tag| router.tags.contains(tag))
            && holds(&self.zones, &|zone| router.availability_zone_hints.contains(zone))
    }
}

/// What a router comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The appliance.
    pub draft: ApplianceDraft,
    /// Allocations that are left out, because there are too many.
    pub left_out: usize,
}

/// Why there is no appliance for what was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// Something changed while it was read, or may not be seen.
    #[error("network {0} of the router was not listed: it may be gone meanwhile, or these credentials do not see it")]
    Incomplete(ResourceId),
    /// Neutron says what this version cannot use.
    #[error("{0}")]
    Odd(String),
    /// The appliance would break rules.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldViolation>),
}

/// The identity of the appliance of a router: that of the router.
#[must_use]
pub fn appliance_id(router: &ResourceId) -> ApplianceId {
    let own = Uuid::parse_str(router.as_str())
        .unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, router.as_str().as_bytes()));
    ApplianceId::from_u128(own.as_u128())
}

/// The appliance of a router.
///
/// # Errors
/// [`TranslateError`].
pub fn translate(state: &RouterState<'_>, options: &Options) -> Result<Translated, TranslateError> {
    if let Some(network) = state.missing_network() {
        return Err(TranslateError::Incomplete(network.clone()));
    }
    let router = state.router;
    let mut networks = Vec::new();
    // A router that is switched off keeps its appliance, which then forwards nothing.
    if router.admin_state_up {
        for network in state.networks() {
            networks.push((network.id.clone(), network_of(state, network, options)?));
        }
    }
    // The way out first, as people read it; otherwise in an order that does not depend on how Neutron listed them.
    networks.sort_by(|(one, a), (other, b)| (a.role, one).cmp(&(b.role, other)));
    let left_out = shorten(networks.iter_mut().map(|(_, network)| network));
    let ports = networks.iter().map(|(id, network)| plugged(id, network)).collect();
    let snat = router.external_gateway_info.as_ref().and_then(|gateway| gateway.enable_snat).unwrap_or(true);
    let kind = Router {
        hostname: None,
        networks: networks.into_iter().map(|(_, network)| network).collect(),
        routes: routes(&router.routes)?,
        floating_ips: floating_ips(state),
        snat,
        labels: BTreeMap::new(),
    };
    let spec = Spec {
        replicas: if router.ha == Some(true) { REPLICAS.1 } else { REPLICAS.0 },
        probe_interval: None,
        timing: Timing::default(),
        image: options.image.clone(),
        ports,
        pod: None,
        kind: KindSpec::Router(kind),
    };
    let violations = spec.validate();
    if !violations.is_empty() {
        return Err(TranslateError::Invalid(violations));
    }
    let id = appliance_id(&router.id);
    let name = Name::new(&router.id.as_str().to_ascii_lowercase()).unwrap_or_else(|_| own_name(id));
    let tenant = Name::new(&router.project_id).unwrap_or_else(|_| Name::new(NO_TENANT).expect("a name"));
    let draft = ApplianceDraft {
        id: Some(id),
        name,
        tenant,
        driver: options.driver.clone(),
        placement_key: None,
        labels: labels(&router.name),
        spec,
    };
    Ok(Translated { draft, left_out })
}

fn own_name(id: ApplianceId) -> Name {
    Name::new(&id.to_string()).expect("a UUID is a name")
}

/// The router's name, where it can be a label.
fn labels(name: &str) -> BTreeMap<String, String> {
    let plain = !name.is_empty() && name.len() <= MAX_LABEL && !name.chars().any(|c| c.is_control());
    plain.then(|| (NAME_LABEL.to_owned(), name.to_owned())).into_iter().collect()
}

/// The network port of the instances in a network. It has no addresses of its own: those of the router are put on it by the
/// configuration, on each instance when its turn is.
fn plugged(id: &ResourceId, network: &RouterNetwork) -> NetworkPort {
    NetworkPort { name: network.port.clone(), network: id.to_string(), addresses: Vec::new(), mac: None }
}

fn network_of(
    state: &RouterState<'_>,
    network: &openstack::NetworkRecord,
    options: &Options,
) -> Result<RouterNetwork, TranslateError> {
    let gateway = state.router.external_gateway_info.as_ref().filter(|gateway| gateway.network_id == network.id);
    let role = if gateway.is_some() { NetworkRole::External } else { NetworkRole::Internal };
    let mut subnets: Vec<_> = state.subnets_of(&network.id).iter().collect();
    subnets.sort_by_key(|subnet| (subnet.ip_version, &subnet.id));
    let of_ports = state.ports.iter().filter(|port| port.network_id == network.id).flat_map(|port| &port.fixed_ips);
    let of_gateway = gateway.into_iter().flat_map(|gateway| &gateway.external_fixed_ips);
    let mut addresses =
        of_ports.chain(of_gateway).map(|fixed| address(fixed, &subnets)).collect::<Result<Vec<_>, _>>()?;
    addresses.sort_by_key(|address| (address.ip.is_ipv6(), address.ip));
    addresses.dedup();
    let mut allocations = Vec::new();
    if role == NetworkRole::Internal && options.allocations {
        let neighbours = state.neighbours_of(&network.id).iter();
        allocations.extend(neighbours.filter(|port| is_host(port, options)).filter_map(allocation));
        allocations.sort_by_key(|allocation| (allocation.mac, allocation.device.clone()));
    }
    let port = Name::new(&network.id.as_str().to_ascii_lowercase());
    Ok(RouterNetwork {
        port: port.map_err(|error| TranslateError::Odd(format!("network {}: {error}", network.id)))?,
        role,
        addresses,
        mtu: network.mtu.filter(|mtu| *mtu > 0),
        subnets: subnets.into_iter().map(subnet_of).collect::<Result<_, _>>()?,
        allocations,
    })
}

/// An address with the length of its subnet's prefix.
fn address(fixed: &FixedAddress, subnets: &[&openstack::Subnet]) -> Result<PortAddress, TranslateError> {
    let subnet = subnets.iter().find(|subnet| subnet.id == fixed.subnet_id);
    let cidr = subnet.map(|subnet| cidr(subnet)).transpose()?;
    let prefix = cidr.map_or(if fixed.ip_address.is_ipv4() { 32 } else { 128 }, |cidr| cidr.prefix());
    Ok(PortAddress { ip: fixed.ip_address, prefix: Some(prefix) })
}

fn cidr(subnet: &openstack::Subnet) -> Result<Network, TranslateError> {
    subnet.cidr.parse().map_err(|error| TranslateError::Odd(format!("subnet {}: cidr: {error}", subnet.id)))
}

fn subnet_of(subnet: &openstack::Subnet) -> Result<Subnet, TranslateError> {
    let is_v6 = subnet.ip_version == 6;
    let mode = |text: &Option<String>| {
        let known = |text: &String| Ipv6Mode::ALL.into_iter().find(|mode| mode.neutron_name() == text);
        text.as_ref().filter(|_| is_v6).and_then(known)
    };
    Ok(Subnet {
        cidr: cidr(subnet)?,
        gateway: subnet.gateway_ip,
        dhcp: subnet.enable_dhcp,
        // `0.0.0.0` and `::` mean that there shall be none.
        dns: (subnet.dns_nameservers.iter().filter_map(|text| text.parse::<IpAddr>().ok()))
            .filter(|ip| !ip.is_unspecified())
            .collect(),
        host_routes: routes(&subnet.host_routes)?,
        ra_mode: mode(&subnet.ipv6_ra_mode),
        address_mode: mode(&subnet.ipv6_address_mode),
    })
}

/// Routes, in an order that does not depend on how they were listed.
fn routes(routes: &[openstack::Route]) -> Result<Vec<Route>, TranslateError> {
    let read = |route: &openstack::Route| {
        let odd = |problem: &dyn std::fmt::Display| {
            TranslateError::Odd(format!("route to {} by {}: {problem}", route.destination, route.nexthop))
        };
        let destination = route.destination.parse().map_err(|error| odd(&error))?;
        let next_hop = route.nexthop.parse().map_err(|error| odd(&error))?;
        Ok(Route { destination, next_hop })
    };
    let mut read: Vec<_> = routes.iter().map(read).collect::<Result<_, _>>()?;
    read.sort();
    read.dedup();
    Ok(read)
}

fn floating_ips(state: &RouterState<'_>) -> Vec<FloatingIp> {
    let pair = |f: &openstack::FloatingAddress| {
        Some(FloatingIp { floating: f.floating_ip_address, fixed: f.fixed_ip_address? })
    };
    let mut pairs: Vec<_> = state.floating.iter().filter_map(pair).collect();
    pairs.sort();
    pairs
}

/// Whether a port is that of somebody who may be a host: not Neutron's own, and not that of an appliance.
fn is_host(port: &Port, options: &Options) -> bool {
    let is_own = !options.own_ports.is_empty() && port.name.starts_with(&options.own_ports);
    !is_own && !port.device_owner.starts_with("network:") && !port.fixed_ips.is_empty()
}

/// What is known of a host; `None` of one whose hardware address is none.
fn allocation(port: &Port) -> Option<Allocation> {
    let mut addresses: Vec<_> = port.fixed_ips.iter().map(|fixed| fixed.ip_address).collect();
    addresses.sort();
    addresses.truncate(common::network_port::MAX_PORT_ADDRESSES);
    let first = addresses.first()?.to_string();
    Some(Allocation {
        mac: port.mac_address.parse().ok()?,
        hostname: format!("{}.local", first.replace([':', '.'], "-")),
        addresses,
        device: port.device_id.clone(),
    })
}

/// Leaves out allocations beyond those that a router can have; the networks share what there is in their order. Answers how many.
fn shorten<'a>(networks: impl Iterator<Item = &'a mut RouterNetwork>) -> usize {
    let (mut room, mut left_out) = (MAX_ALLOCATIONS, 0);
    for network in networks {
        left_out += network.allocations.len().saturating_sub(room);
        network.allocations.truncate(room);
        room -= network.allocations.len();
    }
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{id, snapshot};

    fn options() -> Options {
        Options {
            driver: "openstack".parse().expect("a driver"),
            image: None,
            allocations: true,
            own_ports: "RUG:".to_owned(),
        }
    }

    fn translated(router: &str) -> Translated {
        let snapshot = snapshot();
        let router = snapshot.routers().find(|r| r.id == id(router)).expect("there");
        translate(&snapshot.of(router), &options()).expect("usable")
    }

    fn kind(translated: &Translated) -> Router {
        match &translated.draft.spec.kind {
            KindSpec::Router(router) => router.clone(),
            other => panic!("no router: {other:?}"),
        }
    }

    #[test]
    fn a_router_becomes_an_appliance_that_has_what_neutron_says() {
        let translated = translated("r1");
        let draft = &translated.draft;
        assert_eq!((draft.name.as_str(), draft.tenant.as_str()), ("r1", "e5f5fe9aff804036b5abdb7bd0404910"));
        assert_eq!(draft.labels, [(NAME_LABEL.to_owned(), "shop".to_owned())].into());
        assert_eq!(draft.spec.replicas, 1);
        let ports: Vec<_> = draft.spec.ports.iter().map(|port| (port.name.as_str(), port.network.as_str())).collect();
        assert_eq!(ports, [("n-ext", "n-ext"), ("n-int", "n-int")]);
        let router = kind(&translated);
        assert!(router.snat);
        let shown = |network: &RouterNetwork| network.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let [external, internal] = router.networks.as_slice() else { panic!("two networks: {router:?}") };
        assert_eq!((external.role, external.mtu), (NetworkRole::External, Some(1500)));
        assert_eq!(shown(external), ["203.0.113.7/24"], "port and gateway say the same");
        assert_eq!(external.allocations, []);
        assert_eq!((internal.role, internal.mtu), (NetworkRole::Internal, Some(1450)));
        assert_eq!(shown(internal), ["10.0.0.1/24", "fd00:1::1/64"], "two ports in one network");
        assert_eq!(internal.subnets[0].dns, ["192.0.2.53".parse::<IpAddr>().expect("an address")]);
        assert_eq!(internal.subnets[0].host_routes.len(), 1);
        assert_eq!(internal.subnets[1].ra_mode, Some(Ipv6Mode::Slaac));
        let [host] = internal.allocations.as_slice() else { panic!("one host: {internal:?}") };
        assert_eq!((host.hostname.as_str(), host.device.as_str()), ("10-0-0-5.local", "server-1"));
        assert_eq!(router.gateway(true), "203.0.113.1".parse().ok());
        assert_eq!(router.routes[0].destination.to_string(), "10.8.0.0/16");
        assert_eq!(router.floating_ips.len(), 1);
        assert_eq!(router.floating_ips[0].fixed.to_string(), "10.0.0.5");
    }

    #[test]
    fn a_router_that_is_to_survive_has_two_instances() {
        let translated = translated("r2");
        assert_eq!((translated.draft.spec.replicas, translated.draft.tenant.as_str()), (2, "p2"));
        assert!(translated.draft.labels.is_empty() && !kind(&translated).snat);
    }

    #[test]
    fn the_order_in_which_neutron_lists_changes_nothing() {
        let read = |reversed: bool| {
            let turned = |mut ports: Vec<openstack::Port>| {
                if reversed {
                    ports.reverse();
                }
                ports
            };
            let all = crate::samples::ports();
            let base = snapshot();
            let router = base.routers().next().expect("there").clone();
            let networks = base.of(&router).networks().cloned().collect();
            let mut subnets: Vec<_> = base.of(&router).subnets().cloned().collect();
            if reversed {
                subnets.reverse();
            }
            let snapshot = crate::state::Snapshot::new(vec![router], networks, subnets, turned(all), vec![]);
            let router = snapshot.routers().next().expect("there");
            translate(&snapshot.of(router), &options()).expect("usable")
        };
        assert_eq!(read(false), read(true));
    }

    #[test]
    fn a_router_that_is_switched_off_forwards_nothing_and_keeps_its_appliance() {
        let base = snapshot();
        let mut router = base.routers().next().expect("there").clone();
        router.admin_state_up = false;
        let translated = translate(&base.of(&router), &options()).expect("usable");
        assert!(kind(&translated).networks.is_empty() && translated.draft.spec.ports.is_empty());
    }

    #[test]
    fn what_was_read_only_in_part_is_no_appliance() {
        let base = snapshot();
        let mut router = base.routers().next().expect("there").clone();
        let gateway = router.external_gateway_info.as_mut().expect("has one");
        gateway.network_id = id("n-new");
        let error = translate(&base.of(&router), &options()).expect_err("that network was not read");
        assert_eq!(error, TranslateError::Incomplete(id("n-new")));
        let mut router = base.routers().next().expect("there").clone();
        router.routes[0].nexthop = "nowhere".into();
        assert!(matches!(translate(&base.of(&router), &options()), Err(TranslateError::Odd(_))));
        router.routes[0].nexthop = "::1".into();
        assert!(matches!(translate(&base.of(&router), &options()), Err(TranslateError::Invalid(_))));
    }

    #[test]
    fn more_allocations_than_a_router_can_have_are_left_out() {
        let base = snapshot();
        let router = base.routers().next().expect("there").clone();
        let host = crate::samples::ports().into_iter().find(|port| port.id == id("p-vm")).expect("there");
        let many = (0..MAX_ALLOCATIONS + 5).map(|n| Port {
            id: id(&format!("p{n}")),
            mac_address: format!("fa:16:3e:00:{:02x}:{:02x}", n / 256, n % 256),
            ..host.clone()
        });
        let networks = base.of(&router).networks().cloned().collect();
        let subnets = base.of(&router).subnets().cloned().collect();
        let interfaces = base.of(&router).ports.iter().cloned();
        let ports = interfaces.chain(many).collect();
        let snapshot = crate::state::Snapshot::new(vec![router], networks, subnets, ports, vec![]);
        let router = snapshot.routers().next().expect("there");
        let translated = translate(&snapshot.of(router), &options()).expect("usable");
        assert_eq!(translated.left_out, 5);
    }

    #[test]
    fn the_appliance_of_a_router_has_its_id() {
        let router = id("6e97d14a-93b4-4daa-a307-36c1761e1b76");
        assert_eq!(appliance_id(&router).to_string(), router.to_string());
        assert_ne!(appliance_id(&id("a")), appliance_id(&id("b")));
    }

    #[test]
    fn a_selection_names_what_all_have_to_have() {
        let base = snapshot();
        let routers: Vec<_> = base.routers().collect();
        let of = |selection: &Selection| -> Vec<&str> {
            routers.iter().filter(|router| selection.includes(router)).map(|router| router.id.as_str()).collect()
        };
        let texts = |text: &str| vec!["x".to_owned(), text.to_owned()];
        assert_eq!(of(&Selection::default()), ["r1", "r2"]);
        assert_eq!(of(&Selection { tenants: texts("p2"), ..Selection::default() }), ["r2"]);
        assert_eq!(of(&Selection { flavors: texts("fl"), ..Selection::default() }), ["r2"]);
        assert_eq!(of(&Selection { tags: texts("blue"), ..Selection::default() }), ["r1"]);
        assert_eq!(of(&Selection { zones: texts("z1"), ..Selection::default() }), ["r1"]);
        assert_eq!(of(&Selection { zones: texts("z1"), tenants: texts("p2"), ..Selection::default() }), [""; 0]);
    }
}
