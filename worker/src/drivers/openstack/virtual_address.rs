//! Virtual addresses of load balancers: a port that keeps each of them, and leave for the instances to send from it.
//!
//! A listener at an address of its own is meant for whichever instance has that address at the time, which instances settle among themselves (VRRP).
//! Neutron has to know the address, so that nobody else is given it, and has to let it through at the ports of all instances.

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::kind::Listen;
use openstack::{AddressPair, NewPort, PortChange, ResourceId};
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use super::names::{self, InstanceKey, OwnPort, Role};
use super::{Inner, failed, unread};
use crate::drivers::Error;
use crate::gate::Permit;

impl Inner {
    /// Makes the ports of virtual addresses, lets the instance send from them, and removes those that no listener has any more.
    pub(super) async fn expose(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error> {
        let recipe = desired.spec.kind.launch(0).map_err(|overflow| Error::Refused(overflow.to_string()))?;
        let (true, Listen::At(_)) = (recipe.program.has_management(), &recipe.listen) else {
            return Ok(permit.check()?);
        };
        let wanted = virtual_addresses(&recipe.listen, desired);
        let client = self.guarded(permit);
        let ports = self.inventory.ports_of(permit.appliance()).await.map_err(|error| unread("list ports", &error))?;
        let mut networks = Vec::new();
        for address in &wanted {
            let (network, subnet) = self.place_of(*address, desired).await?;
            let new = NewPort {
                network: network.clone(),
                name: names::virtual_port(permit.appliance(), *address),
                description: names::description(&self.config.cluster, permit.appliance()),
                device_owner: names::SECURED_OWNER.to_owned(),
                addresses: vec![(Some(subnet), *address)],
                ..NewPort::default()
            };
            self.port(permit, &client, &Role::Virtual(*address), &new, &ports).await?;
            networks.push((network, *address));
        }
        let key = InstanceKey::of(permit.appliance(), instance);
        let kept: BTreeSet<IpAddr> = ports.iter().filter_map(virtual_of).collect();
        for own in ports.iter().filter(|own| own.key() == Some(key) && matches!(own.role, Role::Network(..))) {
            // Without port security everything passes, and Neutron takes no pairs.
            if own.port.port_security_enabled == Some(false) {
                continue;
            }
            let here = networks
                .iter()
                .filter(|(network, _)| *network == own.port.network_id.as_str())
                .map(|(_, address)| *address);
            if let Some(pairs) = pairs(&own.port.allowed_address_pairs, &here.collect(), &kept) {
                let change = PortChange { allowed_address_pairs: Some(pairs), ..PortChange::default() };
                let changed = client.network().change_port(&own.port.id, &change).await;
                changed.map_err(|error| failed("let a virtual address through", &error, permit))?;
            }
        }
        for own in ports.iter().filter(|own| virtual_of(own).is_some_and(|address| !wanted.contains(&address))) {
            self.delete_port(permit, &client, &own.port.id).await?;
        }
        Ok(permit.check()?)
    }

    /// The network of the instances, and its subnet, that an address is in.
    async fn place_of(&self, address: IpAddr, desired: &Desired) -> Result<(String, ResourceId), Error> {
        for port in &desired.spec.ports {
            let subnets = self.places.subnets(&self.client, &port.network).await?;
            if let Some((subnet, _)) = subnets.into_iter().find(|(_, cidr)| contains(cidr, address)) {
                return Ok((port.network.clone(), subnet));
            }
        }
        Err(Error::Refused(format!("a listener is at {address}, which is in no network of the appliance's ports")))
    }
}

fn virtual_of(own: &OwnPort) -> Option<IpAddr> {
    match own.role {
        Role::Virtual(address) => Some(address),
        Role::Management(_) | Role::Claim(..) | Role::Network(..) => None,
    }
}

/// Addresses of listeners that are nobody's own: not those that ports are fixed to, nor any.
fn virtual_addresses(listen: &Listen, desired: &Desired) -> BTreeSet<IpAddr> {
    let Listen::At(addresses) = listen else { return BTreeSet::new() };
    let fixed: BTreeSet<IpAddr> =
        desired.spec.ports.iter().flat_map(|port| &port.addresses).map(|address| address.ip).collect();
    let all = addresses.iter().map(std::net::SocketAddr::ip);
    all.filter(|ip| !ip.is_unspecified() && !ip.is_loopback() && !fixed.contains(ip)).collect()
}

/// The pairs that a port has to have: `here`, and whatever others have given it. `None` when it has them.
fn pairs(has: &[AddressPair], here: &BTreeSet<IpAddr>, ours: &BTreeSet<IpAddr>) -> Option<Vec<AddressPair>> {
    // Neutron writes the hardware address of the port beside each.
    let address = |pair: &AddressPair| pair.ip_address.split('/').next().and_then(|text| text.parse::<IpAddr>().ok());
    let is_left = |pair: &&AddressPair| address(pair).is_none_or(|ip| here.contains(&ip) || !ours.contains(&ip));
    let mut wanted: Vec<AddressPair> = has.iter().filter(is_left).cloned().collect();
    let known: BTreeSet<IpAddr> = wanted.iter().filter_map(address).collect();
    let missing = here.difference(&known).map(|ip| AddressPair { ip_address: ip.to_string(), mac_address: None });
    wanted.extend(missing);
    (wanted != has).then_some(wanted)
}

/// Whether an address is in a network such as `10.0.0.0/24`.
fn contains(cidr: &str, address: IpAddr) -> bool {
    let read = || {
        let (base, bits) = cidr.split_once('/')?;
        let (base, bits): (IpAddr, u32) = (base.parse().ok()?, bits.parse().ok()?);
        let same = |one: u128, other: u128, width: u32| {
            let rest = width.checked_sub(bits)?;
            Some(rest == 128 || (one ^ other) >> rest == 0)
        };
        match (base, address) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => same(u32::from(base).into(), u32::from(ip).into(), 32),
            (IpAddr::V6(base), IpAddr::V6(ip)) => same(base.into(), ip.into(), 128),
            _ => Some(false),
        }
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_is_in_its_network_and_no_other() {
        for (cidr, address, is_in) in [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("0.0.0.0/0", "10.2.0.1", true),
            ("::/0", "fd00::1", true),
            ("fd00::/64", "fd00::1", true),
            ("fd00::/64", "fd01::1", false),
            ("fd00::/64", "10.0.0.1", false),
            ("10.0.0.0/33", "10.0.0.1", false),
            ("nonsense", "10.0.0.1", false),
        ] {
            assert_eq!(contains(cidr, ip(address)), is_in, "{cidr} {address}");
        }
    }

    #[test]
    fn pairs_of_others_stay_and_ours_follow_the_listeners() {
        let pair = |text: &str, mac: Option<&str>| AddressPair {
            ip_address: text.into(),
            mac_address: mac.map(str::to_owned),
        };
        let set = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect::<BTreeSet<_>>();
        let has = [pair("10.9.9.0/24", None), pair("10.0.0.5", Some("fa:16:3e:00:00:01"))];
        assert_eq!(pairs(&has, &set(&["10.0.0.5"]), &set(&["10.0.0.5"])), None, "as it is");
        let more = pairs(&has, &set(&["10.0.0.5", "10.0.0.6"]), &set(&["10.0.0.5"])).expect("one more");
        assert_eq!(more.len(), 3);
        let less = pairs(&has, &set(&[]), &set(&["10.0.0.5"])).expect("one less");
        assert_eq!(less, [pair("10.9.9.0/24", None)]);
    }
}
