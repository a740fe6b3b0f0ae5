//! What was read from Neutron, of one router or of all.

use std::collections::{HashMap, HashSet};

use openstack::{FloatingAddress, NetworkRecord, Port, ResourceId, Router, Subnet};

/// Owners of the ports that are interfaces of routers, and of those that are their gateways. Neutron has others for its own agents, such
/// as that of the network between two of them.
pub const INTERFACE_OWNERS: [&str; 3] =
    ["network:router_interface", "network:router_interface_distributed", "network:ha_router_replicated_interface"];
/// Owner of the port that is the gateway of a router.
pub const GATEWAY_OWNER: &str = "network:router_gateway";

/// Everything that was read. It may hold more than is asked about.
#[derive(Debug, Default)]
pub struct Snapshot {
    routers: Vec<Router>,
    networks: HashMap<ResourceId, NetworkRecord>,
    subnets: HashMap<ResourceId, Vec<Subnet>>,
    /// By network.
    neighbours: HashMap<ResourceId, Vec<Port>>,
    /// By router.
    ports: HashMap<ResourceId, Vec<Port>>,
    floating: HashMap<ResourceId, Vec<FloatingAddress>>,
}

/// What was read of one router.
#[derive(Clone, Debug)]
pub struct RouterState<'a> {
    /// The router.
    pub router: &'a Router,
    /// Its ports.
    pub ports: &'a [Port],
    /// Its floating IPs.
    pub floating: &'a [FloatingAddress],
    snapshot: &'a Snapshot,
}

impl Snapshot {
    /// Sorts what was listed. Ports of routers are told from others by their owners.
    #[must_use]
    pub fn new(
        routers: Vec<Router>,
        networks: Vec<NetworkRecord>,
        subnets: Vec<Subnet>,
        ports: Vec<Port>,
        floating: Vec<FloatingAddress>,
    ) -> Self {
        let mut snapshot = Self { routers, ..Self::default() };
        snapshot.networks = networks.into_iter().map(|network| (network.id.clone(), network)).collect();
        for subnet in subnets {
            snapshot.subnets.entry(subnet.network_id.clone()).or_default().push(subnet);
        }
        let mut seen = HashSet::new();
        // Those of a router may have been listed as its own, and as those of its networks.
        for port in ports.into_iter().filter(|port| seen.insert(port.id.clone())) {
            let is_of_router =
                port.device_owner == GATEWAY_OWNER || INTERFACE_OWNERS.contains(&port.device_owner.as_str());
            match port.device_id.parse::<ResourceId>() {
                Ok(router) if is_of_router => snapshot.ports.entry(router).or_default().push(port),
                _ => snapshot.neighbours.entry(port.network_id.clone()).or_default().push(port),
            }
        }
        for floating in floating {
            if let Some(router) = floating.router_id.clone() {
                snapshot.floating.entry(router).or_default().push(floating);
            }
        }
        snapshot
    }

    /// The routers.
    pub fn routers(&self) -> impl Iterator<Item = &Router> {
        self.routers.iter()
    }

    /// What was read of one of them.
    #[must_use]
    pub fn of<'a>(&'a self, router: &'a Router) -> RouterState<'a> {
        RouterState {
            router,
            ports: self.ports.get(&router.id).map_or(&[], Vec::as_slice),
            floating: self.floating.get(&router.id).map_or(&[], Vec::as_slice),
            snapshot: self,
        }
    }
}

impl<'a> RouterState<'a> {
    /// Ids of the networks that its ports are in, and of that of its gateway; each once.
    fn network_ids(&self) -> Vec<&'a ResourceId> {
        let gateway = self.router.external_gateway_info.as_ref().map(|gateway| &gateway.network_id);
        let mut ids: Vec<_> = gateway.into_iter().chain(self.ports.iter().map(|port| &port.network_id)).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// The networks that it is in, as far as they were read.
    pub fn networks(&self) -> impl Iterator<Item = &'a NetworkRecord> {
        self.network_ids().into_iter().filter_map(|id| self.snapshot.networks.get(id))
    }

    /// A network that it is in and that was not read, if there is one: Neutron was asked for its parts one after the other.
    #[must_use]
    pub fn missing_network(&self) -> Option<&'a ResourceId> {
        self.network_ids().into_iter().find(|id| !self.snapshot.networks.contains_key(*id))
    }

    /// The subnets of these networks.
    pub fn subnets(&self) -> impl Iterator<Item = &'a Subnet> {
        self.network_ids().into_iter().flat_map(|id| self.subnets_of(id))
    }

    /// The subnets of one network.
    #[must_use]
    pub fn subnets_of(&self, network: &ResourceId) -> &'a [Subnet] {
        self.snapshot.subnets.get(network).map_or(&[], Vec::as_slice)
    }

    /// The ports of others in one network.
    #[must_use]
    pub fn neighbours_of(&self, network: &ResourceId) -> &'a [Port] {
        self.snapshot.neighbours.get(network).map_or(&[], Vec::as_slice)
    }
}
