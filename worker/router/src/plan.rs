//! What the kernel is to have for a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use common::kind::Network;
use common::kind::router::contract::{Config, FloatingIp, Network as NetworkConfig};
use common::network_port::PortAddress;

/// Longest name of an interface in Linux, in bytes.
const MAX_IFNAME: usize = 15;

/// Address at which servers ask for their metadata.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A configuration that cannot be put in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidConfig {
    /// Field of the configuration.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What the kernel is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By name.
    pub(crate) links: BTreeMap<String, Link>,
    pub(crate) routes: BTreeSet<PlannedRoute>,
    /// Destination and source are replaced.
    pub(crate) floating: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Interface and address by which internal networks leave, and those networks.
    pub(crate) snat: Option<Snat>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) addresses: BTreeSet<(IpAddr, u8)>,
    pub(crate) mtu: Option<u32>,
}

/// A route by way of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlannedRoute {
    pub(crate) destination: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) gateway: IpAddr,
}

/// Translation of what leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snat {
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) networks: Vec<(Ipv4Addr, u8)>,
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> InvalidConfig {
    InvalidConfig { field: field.into(), problem: problem.into() }
}

impl Plan {
    /// Makes the plan of a configuration.
    ///
    /// # Errors
    /// [`InvalidConfig`], with the first thing that is wrong.
    pub fn new(config: &Config) -> Result<Self, InvalidConfig> {
        let mut plan = Self::default();
        // One of several that is not the first forwards nothing until it is told to: it has the addresses of none.
        let forwards = forwards(config);
        let mut management = BTreeSet::new();
        for (i, network) in config.networks.iter().enumerate() {
            let at = format!("networks[{i}]");
            let name = &network.interface.ifname;
            check_name(name, &format!("{at}.interface.ifname"))?;
            match network.network_type.as_str() {
                "management" => drop(management.insert(name.clone())),
                "external" | "internal" => plan.add_link(network, &at, forwards)?,
                other => return Err(invalid(format!("{at}.network_type"), format!("`{other}` is not known"))),
            }
        }
        if let Some(shared) = plan.links.keys().find(|name| management.contains(*name)) {
            return Err(invalid("networks", format!("{shared} is the interface of the management network")));
        }
        for interface in metadata_doors(config).into_keys() {
            plan.links.entry(interface).or_default().addresses.insert((METADATA_ADDRESS.into(), 32));
        }
        if forwards {
            plan.add_routes(config)?;
            plan.add_nat(config)?;
        }
        Ok(plan)
    }

    fn add_link(&mut self, network: &NetworkConfig, at: &str, forwards: bool) -> Result<(), InvalidConfig> {
        let interface = &network.interface;
        let mut link = Link { mtu: interface.mtu, ..Link::default() };
        for (i, text) in interface.addresses.iter().enumerate() {
            let field = format!("{at}.interface.addresses[{i}]");
            let PortAddress { ip, prefix } = text.parse().map_err(|e| invalid(&field, format!("{e}")))?;
            let prefix = prefix.ok_or_else(|| invalid(&field, "needs the length of its prefix"))?;
            if forwards {
                link.addresses.insert((ip, prefix));
            }
        }
        match self.links.insert(interface.ifname.clone(), link) {
            None => Ok(()),
            Some(_) => Err(invalid(format!("{at}.interface.ifname"), "is the interface of another network")),
        }
    }

    fn add_routes(&mut self, config: &Config) -> Result<(), InvalidConfig> {
        for (field, text, all) in [
            ("default_v4_gateway", &config.default_v4_gateway, IpAddr::from([0; 4])),
            ("default_v6_gateway", &config.default_v6_gateway, IpAddr::from([0; 16])),
        ] {
            if text.is_empty() {
                continue;
            }
            let gateway: IpAddr = text.parse().map_err(|_| invalid(field, "is not an IP address"))?;
            if gateway.is_ipv4() != all.is_ipv4() {
                return Err(invalid(field, "is of the other version of IP"));
            }
            self.routes.insert(PlannedRoute { destination: all, prefix: 0, gateway });
        }
        for (i, (destination, gateway)) in config.static_routes.iter().enumerate() {
            let field = format!("static_routes[{i}]");
            let network: Network = destination.parse().map_err(|e| invalid(&field, format!("{e}")))?;
            if network.address().is_ipv4() != gateway.is_ipv4() {
                return Err(invalid(field, "destination and next hop are of different versions of IP"));
            }
            let route = PlannedRoute { destination: network.address(), prefix: network.prefix(), gateway: *gateway };
            // One that is told here is meant in place of the gateway's.
            self.routes.retain(|r| (r.destination, r.prefix) != (route.destination, route.prefix));
            self.routes.insert(route);
        }
        Ok(())
    }

    fn add_nat(&mut self, config: &Config) -> Result<(), InvalidConfig> {
        let external = config.networks.iter().find(|network| network.network_type == "external");
        for (i, FloatingIp { floating_ip, fixed_ip }) in config.floating_ips.iter().enumerate() {
            let field = format!("floating_ips[{i}]");
            let (IpAddr::V4(floating), IpAddr::V4(fixed)) = (*floating_ip, *fixed_ip) else {
                return Err(invalid(field, "only IPv4 is translated"));
            };
            let external = external.ok_or_else(|| invalid(&field, "there is no external network"))?;
            // The external interface answers for it.
            let link = self.links.entry(external.interface.ifname.clone()).or_default();
            if !link.addresses.iter().any(|(ip, _)| *ip == *floating_ip) {
                link.addresses.insert((*floating_ip, 32));
            }
            self.floating.push((floating, fixed));
        }
        self.floating.sort();
        let Some(external) = external.filter(|_| config.snat_enabled) else { return Ok(()) };
        let own = external.interface.addresses.iter().filter_map(|text| text.parse::<PortAddress>().ok());
        let own = own.map(|address| address.ip).find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        let networks = internal_networks(config)?;
        // Without an address of its own it has nothing to translate to, and there is no way out.
        if let Some(address) = own.filter(|_| !networks.is_empty()) {
            self.snat = Some(Snat { interface: external.interface.ifname.clone(), address, networks });
        }
        Ok(())
    }

    /// Whether addresses are translated.
    #[must_use]
    pub fn needs_nat(&self) -> bool {
        self.snat.is_some() || !self.floating.is_empty()
    }

    /// The interfaces that are used.
    pub(crate) fn interface_names(&self) -> BTreeSet<String> {
        self.links.keys().cloned().collect()
    }
}

/// Priority from which on an appliance forwards.
const FORWARDS: u8 = 100;

fn forwards(config: &Config) -> bool {
    config.ha_config.as_ref().is_none_or(|ha| ha.priority >= FORWARDS)
}

/// The interfaces by which servers ask for their metadata, with the ids of their networks: of internal networks, where somebody is named who
/// passes such requests on.
#[must_use]
pub fn metadata_doors(config: &Config) -> BTreeMap<String, String> {
    let is_passed_on = config.orchestrator.address.is_some() && config.orchestrator.metadata_port.is_some();
    let internal = config.networks.iter().filter(|network| network.network_type == "internal");
    let doors = internal.filter(|_| is_passed_on && forwards(config));
    doors.map(|network| (network.interface.ifname.clone(), network.network_id.clone())).collect()
}

/// Subnets of IPv4 of the internal networks; where none are told, those of the addresses there.
fn internal_networks(config: &Config) -> Result<Vec<(Ipv4Addr, u8)>, InvalidConfig> {
    let mut found = BTreeSet::new();
    for (i, network) in config.networks.iter().enumerate().filter(|(_, n)| n.network_type == "internal") {
        for (s, subnet) in network.subnets.iter().enumerate() {
            let field = format!("networks[{i}].subnets[{s}].cidr");
            let cidr: Network = subnet.cidr.parse().map_err(|e| invalid(field, format!("{e}")))?;
            if let IpAddr::V4(address) = cidr.address() {
                found.insert((address, cidr.prefix()));
            }
        }
        for address in network.interface.addresses.iter().filter_map(|text| text.parse::<PortAddress>().ok()) {
            if let (IpAddr::V4(ip), Some(prefix)) = (address.ip, address.prefix) {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                found.insert((Ipv4Addr::from_bits(ip.to_bits() & mask), prefix));
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn check_name(name: &str, field: &str) -> Result<(), InvalidConfig> {
    let valid = (1..=MAX_IFNAME).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if valid { Ok(()) } else { Err(invalid(field, "is no name of an interface")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"{"generation": 1, "tenant_id": "t", "hostname": "r", "asn": 64512, "neighbor_asn": 64512,
            "default_v4_gateway": "203.0.113.1", "default_v6_gateway": "",
            "networks": [
                {"interface": {"ifname": "ge0", "addresses": ["192.0.2.9/24"]}, "network_id": "management", "network_type": "management"},
                {"interface": {"ifname": "ge1", "addresses": ["203.0.113.7/24"], "mtu": 1400}, "network_id": "e", "network_type": "external"},
                {"interface": {"ifname": "ge2", "addresses": ["10.0.0.1/24", "fd00:1::1/64"]}, "network_id": "i", "network_type": "internal",
                 "subnets": [{"cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "dhcp_enabled": true, "dns_nameservers": [], "host_routes": []}]}],
            "static_routes": [["10.8.0.0/16", "10.0.0.8"]],
            "floating_ips": [{"floating_ip": "203.0.113.20", "fixed_ip": "10.0.0.5"}]}"#;
        serde_json::from_str(text).expect("a configuration")
    }

    #[test]
    fn a_configuration_becomes_links_routes_and_translation() {
        let plan = Plan::new(&config()).expect("valid");
        assert_eq!(plan.links.keys().collect::<Vec<_>>(), ["ge1", "ge2"], "not that of the management network");
        let floating = ("203.0.113.20".parse().expect("an address"), 32);
        assert!(plan.links["ge1"].addresses.contains(&floating) && plan.links["ge1"].mtu == Some(1400));
        assert_eq!(plan.routes.len(), 2);
        assert_eq!(plan.floating, [([203, 0, 113, 20].into(), [10, 0, 0, 5].into())]);
        let snat = plan.snat.expect("internal networks leave");
        assert_eq!((snat.interface.as_str(), snat.address), ("ge1", [203, 0, 113, 7].into()));
        assert_eq!(snat.networks, [([10, 0, 0, 0].into(), 24)]);
        let plain = Config { snat_enabled: false, floating_ips: vec![], ..config() };
        assert!(!Plan::new(&plain).expect("valid").needs_nat());
    }

    #[test]
    fn one_that_stands_by_has_no_addresses() {
        let ha = common::kind::router::contract::HaConfig { peers: vec![], priority: 50 };
        let plan = Plan::new(&Config { ha_config: Some(ha), ha_resource: true, ..config() }).expect("valid");
        assert!(
            plan.links.values().all(|link| link.addresses.is_empty()) && plan.routes.is_empty() && !plan.needs_nat()
        );
    }

    #[test]
    fn internal_interfaces_have_the_address_for_metadata_where_somebody_passes_it_on() {
        let orchestrator = common::kind::router::contract::Orchestrator {
            address: Some([192, 0, 2, 1].into()),
            metadata_port: Some(8_775),
        };
        let of = |config: &Config| {
            let plan = Plan::new(config).expect("valid");
            let has = |link: &Link| link.addresses.contains(&(METADATA_ADDRESS.into(), 32));
            let with: Vec<_> = plan.links.iter().filter(|(_, link)| has(link)).map(|(name, _)| name.clone()).collect();
            (with, metadata_doors(config))
        };
        assert_eq!(of(&config()), (vec![], BTreeMap::new()));
        let told = Config { orchestrator, ..config() };
        assert_eq!(of(&told), (vec!["ge2".to_owned()], [("ge2".to_owned(), "i".to_owned())].into()));
        let ha = common::kind::router::contract::HaConfig { peers: vec![], priority: 50 };
        assert_eq!(of(&Config { ha_config: Some(ha), ..told }), (vec![], BTreeMap::new()), "one that stands by");
    }

    #[test]
    fn what_is_wrong_is_named_before_anything_is_touched() {
        let of = |change: &dyn Fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            Plan::new(&config).expect_err("invalid").field
        };
        assert_eq!(of(&|c| c.networks[1].interface.ifname = "../x".into()), "networks[1].interface.ifname");
        assert_eq!(of(&|c| c.networks[2].interface.ifname = "ge1".into()), "networks[2].interface.ifname");
        assert_eq!(of(&|c| c.networks[2].interface.ifname = "ge0".into()), "networks");
        assert_eq!(of(&|c| c.networks[2].network_type = "other".into()), "networks[2].network_type");
        assert_eq!(
            of(&|c| c.networks[2].interface.addresses[0] = "10.0.0.1".into()),
            "networks[2].interface.addresses[0]"
        );
        assert_eq!(of(&|c| c.default_v4_gateway = "::1".into()), "default_v4_gateway");
        assert_eq!(of(&|c| c.static_routes[0].0 = "10.0.0.1/8".into()), "static_routes[0]");
        assert_eq!(of(&|c| c.floating_ips[0].fixed_ip = [0; 16].into()), "floating_ips[0]");
        assert_eq!(of(&|c| drop(c.networks.remove(1))), "floating_ips[0]");
    }
}
