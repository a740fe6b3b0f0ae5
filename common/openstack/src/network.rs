//! Neutron: networks, subnets, ports, routers and floating IPs.
//!
//! Listings take Neutron's own filters, any number of them: `network_id`, `device_id`, `tags`, `id` several times. Whoever has many ids asks in
//! portions: an address has some 8,000 characters.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::call::{Call, wrapped};
use crate::client::Client;
use crate::compute::optional;
use crate::config::Service;
use crate::error::Error;
use crate::id::ResourceId;

/// Neutron, by a [`Client`].
#[derive(Clone, Copy, Debug)]
pub struct Networking<'a>(&'a Client);

impl Client {
    /// The network service.
    #[must_use]
    pub const fn network(&self) -> Networking<'_> {
        Networking(self)
    }
}

/// What Neutron has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Networks.
    Networks,
    /// Subnets.
    Subnets,
    /// Ports.
    Ports,
    /// Routers.
    Routers,
    /// Floating IPs.
    FloatingAddresses,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NetworkRecord {
    /// Its id.
    pub id: ResourceId,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its project.
    #[serde(default)]
    pub project_id: String,
    /// Whether it may be used.
    #[serde(default = "yes")]
    pub admin_state_up: bool,
    /// How it is.
    #[serde(default)]
    pub status: String,
    /// Whether it leads outside.
    #[serde(default, rename = "router:external")]
    pub external: bool,
    /// Whether all projects may use it.
    #[serde(default)]
    pub shared: bool,
    /// Its subnets.
    #[serde(default)]
    pub subnets: Vec<ResourceId>,
    /// Longest packet; absent when Neutron does not say.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// `vlan`, `vxlan`, ...; only for those who may see it.
    #[serde(default, rename = "provider:network_type")]
    pub network_type: Option<String>,
    /// Whether ports have security groups unless they say so.
    #[serde(default)]
    pub port_security_enabled: Option<bool>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A part of a subnet that addresses are given from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationPool {
    /// The first.
    pub start: IpAddr,
    /// The last.
    pub end: IpAddr,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// To which network, as `10.1.0.0/16`.
    pub destination: String,
    /// By which address.
    pub nexthop: String,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: ResourceId,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its project.
    #[serde(default)]
    pub project_id: String,
    /// Its network.
    pub network_id: ResourceId,
    /// 4 or 6.
    pub ip_version: u8,
    /// Its addresses, as `10.0.0.0/24`.
    pub cidr: String,
    /// Its gateway.
    #[serde(default)]
    pub gateway_ip: Option<IpAddr>,
    /// Whether there is DHCP.
    #[serde(default)]
    pub enable_dhcp: bool,
    /// Servers of names.
    #[serde(default)]
    pub dns_nameservers: Vec<String>,
    /// Routes of its hosts.
    #[serde(default)]
    pub host_routes: Vec<Route>,
    /// From where addresses are given.
    #[serde(default)]
    pub allocation_pools: Vec<AllocationPool>,
    /// `slaac`, ...; IPv6 only.
    #[serde(default)]
    pub ipv6_ra_mode: Option<String>,
    /// `slaac`, ...; IPv6 only.
    #[serde(default)]
    pub ipv6_address_mode: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedAddress {
    /// In which subnet.
    pub subnet_id: ResourceId,
    /// The address.
    pub ip_address: IpAddr,
}

/// Another address that a port may send from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressPair {
    /// An address, or a network as `10.0.0.0/24`.
    pub ip_address: String,
    /// Hardware address; that of the port when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Port {
    /// Its id.
    pub id: ResourceId,
    /// Its name. Names need not be unique.
    #[serde(default)]
    pub name: String,
    /// What is written about it.
    #[serde(default)]
    pub description: String,
    /// Its project.
    #[serde(default)]
    pub project_id: String,
    /// Its network.
    pub network_id: ResourceId,
    /// Its hardware address.
    pub mac_address: String,
    /// Its addresses.
    #[serde(default)]
    pub fixed_ips: Vec<FixedAddress>,
    /// What it is plugged into: the id of a server or router; may be empty.
    #[serde(default)]
    pub device_id: String,
    /// What sort of thing that is: `compute:nova`, `network:router_interface`, ...
    #[serde(default)]
    pub device_owner: String,
    /// `ACTIVE`, `DOWN`, `BUILD`.
    #[serde(default)]
    pub status: String,
    /// Whether it may be used.
    #[serde(default = "yes")]
    pub admin_state_up: bool,
    /// Whether what it sends is checked.
    #[serde(default)]
    pub port_security_enabled: Option<bool>,
    /// Its security groups.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// Other addresses that it may send from.
    #[serde(default)]
    pub allowed_address_pairs: Vec<AddressPair>,
    /// Host that it is bound to; only for those who may see it.
    #[serde(default, rename = "binding:host_id")]
    pub host_id: Option<String>,
    /// How it is bound: `binding_failed` when it is not.
    #[serde(default, rename = "binding:vif_type")]
    pub vif_type: Option<String>,
    /// Name for DNS.
    #[serde(default)]
    pub dns_name: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// When it was made, as Neutron writes it.
    #[serde(default)]
    pub created_at: String,
    /// Grows with each change.
    #[serde(default)]
    pub revision_number: u64,
}

/// Where a router leads outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExternalGateway {
    /// By which network.
    pub network_id: ResourceId,
    /// Whether addresses are translated.
    #[serde(default)]
    pub enable_snat: Option<bool>,
    /// Its addresses there.
    #[serde(default)]
    pub external_fixed_ips: Vec<FixedAddress>,
}

/// A router.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Router {
    /// Its id.
    pub id: ResourceId,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// What is written about it.
    #[serde(default)]
    pub description: String,
    /// Its project.
    #[serde(default)]
    pub project_id: String,
    /// Whether it may be used.
    #[serde(default = "yes")]
    pub admin_state_up: bool,
    /// How it is.
    #[serde(default)]
    pub status: String,
    /// Where it leads outside.
    #[serde(default)]
    pub external_gateway_info: Option<ExternalGateway>,
    /// Its static routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Whether there are to be two; only for those who may see it.
    #[serde(default)]
    pub ha: Option<bool>,
    /// Whether it is spread over hosts; only for those who may see it.
    #[serde(default)]
    pub distributed: Option<bool>,
    /// Its flavor.
    #[serde(default)]
    pub flavor_id: Option<String>,
    /// In which zones it is to be.
    #[serde(default)]
    pub availability_zone_hints: Vec<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Grows with each change.
    #[serde(default)]
    pub revision_number: u64,
    /// When it was made, as Neutron writes it.
    #[serde(default)]
    pub created_at: String,
}

/// A floating IP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FloatingAddress {
    /// Its id.
    pub id: ResourceId,
    /// The address outside.
    pub floating_ip_address: IpAddr,
    /// The address that it stands for.
    #[serde(default)]
    pub fixed_ip_address: Option<IpAddr>,
    /// Network outside.
    pub floating_network_id: ResourceId,
    /// Port that it stands for.
    #[serde(default)]
    pub port_id: Option<ResourceId>,
    /// Router that translates it.
    #[serde(default)]
    pub router_id: Option<ResourceId>,
    /// Its project.
    #[serde(default)]
    pub project_id: String,
    /// How it is.
    #[serde(default)]
    pub status: String,
}

const fn yes() -> bool {
    true
}

/// A port to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewPort {
    /// Its network.
    pub network: String,
    /// Its name.
    pub name: String,
    /// What is written about it.
    pub description: String,
    /// Its addresses; Neutron gives one when there is none.
    pub addresses: Vec<(Option<ResourceId>, IpAddr)>,
    /// It has no address at all.
    pub without_address: bool,
    /// Its hardware address, which is unique in its network; Neutron gives one otherwise.
    pub mac: Option<String>,
    /// What is written as its device, until it is plugged.
    pub device_id: String,
    /// What sort of device that is.
    pub device_owner: String,
    /// Whether what it sends is checked; as the network says when absent.
    pub port_security: Option<bool>,
    /// Its security groups; the project's own when absent.
    pub security_groups: Option<Vec<String>>,
    /// Other addresses that it may send from.
    pub address_pairs: Vec<AddressPair>,
    /// Project that it is made for; only an administrator may make one for another.
    pub project: Option<String>,
}

impl NewPort {
    fn body(&self) -> Value {
        let mut port = Map::new();
        let mut set = |name: &str, value: Value| drop(port.insert(name.to_owned(), value));
        set("network_id", json!(self.network));
        set("name", json!(self.name));
        for (name, text) in
            [("description", &self.description), ("device_id", &self.device_id), ("device_owner", &self.device_owner)]
        {
            if !text.is_empty() {
                set(name, json!(text));
            }
        }
        if !self.addresses.is_empty() {
            let one = |(subnet, ip): &(Option<ResourceId>, IpAddr)| match subnet {
                Some(subnet) => json!({"subnet_id": subnet, "ip_address": ip}),
                None => json!({"ip_address": ip}),
            };
            set("fixed_ips", self.addresses.iter().map(one).collect());
        }
        if self.without_address {
            set("fixed_ips", json!([]));
        }
        if let Some(mac) = &self.mac {
            set("mac_address", json!(mac));
        }
        if let Some(enabled) = self.port_security {
            set("port_security_enabled", json!(enabled));
        }
        if let Some(groups) = &self.security_groups {
            set("security_groups", json!(groups));
        }
        if !self.address_pairs.is_empty() {
            set("allowed_address_pairs", json!(self.address_pairs));
        }
        if let Some(project) = &self.project {
            set("project_id", json!(project));
        }
        json!({"port": port})
    }
}

/// A change of a port: only what is there is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortChange {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is written about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// What sort of device that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_owner: Option<String>,
    /// Host that it is bound to.
    #[serde(rename = "binding:host_id", skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// Its addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_ips: Option<Vec<FixedAddress>>,
    /// Other addresses that it may send from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_address_pairs: Option<Vec<AddressPair>>,
}

impl Networking<'_> {
    async fn list<T: DeserializeOwned>(
        &self,
        path: &'static str,
        name: &str,
        filters: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        self.0.list(Call::get(Service::Network, path, &[]).filtered(filters.iter().copied()), name).await
    }

    async fn one<T: DeserializeOwned>(
        &self,
        path: &'static str,
        name: &str,
        id: &ResourceId,
    ) -> Result<Option<T>, Error> {
        let answer = optional(self.0.send(&Call::get(Service::Network, path, &[id])).await)?;
        answer.map(|answer| answer.object(name)).transpose()
    }

    /// Networks.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn networks(&self, filters: &[(&str, &str)]) -> Result<Vec<NetworkRecord>, Error> {
        self.list("/networks", "networks", filters).await
    }

    /// One network.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn network(&self, id: &ResourceId) -> Result<Option<NetworkRecord>, Error> {
        self.one("/networks/{}", "network", id).await
    }

    /// Subnets.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn subnets(&self, filters: &[(&str, &str)]) -> Result<Vec<Subnet>, Error> {
        self.list("/subnets", "subnets", filters).await
    }

    /// One subnet.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn subnet(&self, id: &ResourceId) -> Result<Option<Subnet>, Error> {
        self.one("/subnets/{}", "subnet", id).await
    }

    /// Ports.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ports(&self, filters: &[(&str, &str)]) -> Result<Vec<Port>, Error> {
        self.list("/ports", "ports", filters).await
    }

    /// One port.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn port(&self, id: &ResourceId) -> Result<Option<Port>, Error> {
        self.one("/ports/{}", "port", id).await
    }

    /// Makes a port.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn create_port(&self, port: &NewPort) -> Result<Port, Error> {
        let call = Call::new(Service::Network, Method::POST, "/ports", &[]).with(&port.body());
        self.0.send(&call).await?.object("port")
    }

    /// Changes a port.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn change_port(&self, id: &ResourceId, change: &PortChange) -> Result<Port, Error> {
        let call = Call::new(Service::Network, Method::PUT, "/ports/{}", &[id]).with(&wrapped("port", change));
        self.0.send(&call).await?.object("port")
    }

    /// Deletes a port. One that is not there is deleted already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete_port(&self, id: &ResourceId) -> Result<(), Error> {
        optional(self.0.send(&Call::delete(Service::Network, "/ports/{}", &[id])).await).map(drop)
    }

    /// Routers.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn routers(&self, filters: &[(&str, &str)]) -> Result<Vec<Router>, Error> {
        self.list("/routers", "routers", filters).await
    }

    /// One router.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn router(&self, id: &ResourceId) -> Result<Option<Router>, Error> {
        self.one("/routers/{}", "router", id).await
    }

    /// Floating IPs.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn floating_addresses(&self, filters: &[(&str, &str)]) -> Result<Vec<FloatingAddress>, Error> {
        self.list("/floatingips", "floatingips", filters).await
    }

    /// Sets the tags of an object, in place of those it had.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_tags(&self, resource: Resource, id: &ResourceId, tags: &[&str]) -> Result<(), Error> {
        let template = match resource {
            Resource::Networks => "/networks/{}/tags",
            Resource::Subnets => "/subnets/{}/tags",
            Resource::Ports => "/ports/{}/tags",
            Resource::Routers => "/routers/{}/tags",
            Resource::FloatingAddresses => "/floatingips/{}/tags",
        };
        let call = Call::new(Service::Network, Method::PUT, template, &[id]).with(&json!({"tags": tags}));
        self.0.send(&call).await.map(drop)
    }

    /// What extensions Neutron has, by alias, with their names.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn extensions(&self) -> Result<BTreeMap<String, String>, Error> {
        #[derive(Deserialize)]
        struct Extension {
            alias: String,
            #[serde(default)]
            name: String,
        }
        let answer = self.0.send(&Call::get(Service::Network, "/extensions", &[])).await?;
        let all: Vec<Extension> = answer.object("extensions")?;
        Ok(all.into_iter().map(|extension| (extension.alias, extension.name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_of_the_lab_is_read() {
        let body = r#"{"id": "6e97d14a-93b4-4daa-a307-36c1761e1b76", "name": "r1", "tenant_id": "e5f5", "project_id": "e5f5",
            "admin_state_up": true, "status": "ACTIVE", "external_gateway_info": null, "description": "", "availability_zones": [],
            "availability_zone_hints": [], "distributed": false, "ha": false, "routes": [], "flavor_id": null, "tags": [],
            "created_at": "2026-11-22T11:28:31Z", "updated_at": "2026-11-22T11:28:31Z", "revision_number": 1}"#;
        let router: Router = serde_json::from_str(body).expect("readable");
        assert_eq!((router.name.as_str(), router.ha, router.revision_number), ("r1", Some(false), 1));
    }

    #[test]
    fn a_new_port_says_only_what_it_has() {
        let plain = NewPort { network: "n".into(), name: "p".into(), ..NewPort::default() };
        assert_eq!(plain.body(), json!({"port": {"network_id": "n", "name": "p"}}));
        let vrrp = NewPort { port_security: Some(false), security_groups: Some(vec![]), ..plain };
        assert_eq!(vrrp.body()["port"]["security_groups"], json!([]));
        assert_eq!(vrrp.body()["port"]["port_security_enabled"], json!(false));
    }
}
