//! Network interfaces of this host, as the kernel shows them.

use std::collections::BTreeMap;
use std::{fs, io};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::api::{Interface, Interfaces};

/// Reads all interfaces with their addresses.
pub(super) fn read() -> io::Result<Interfaces> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in getifaddrs()? {
        let interface = found.entry(entry.interface_name.clone()).or_insert_with(|| describe(&entry.interface_name));
        if let Some(address) = entry.address {
            interface.addresses.extend(with_prefix(&address, entry.netmask.as_ref()));
        }
    }
    Ok(Interfaces { interfaces: found.into_values().collect() })
}

fn describe(name: &str) -> Interface {
    let attribute = |attribute: &str| {
        fs::read_to_string(format!("/sys/class/net/{name}/{attribute}"))
            .map(|s| s.trim().to_owned())
            .unwrap_or_default()
    };
    Interface {
        ifname: name.to_owned(),
        lladdr: attribute("address"),
        addresses: Vec::new(),
        mtu: attribute("mtu").parse().unwrap_or(0),
        state: attribute("operstate"),
    }
}

/// `address/prefix` of an IP address; nothing for link-layer entries.
fn with_prefix(address: &SockaddrStorage, mask: Option<&SockaddrStorage>) -> Option<String> {
    if let Some(v4) = address.as_sockaddr_in() {
        let bits = mask.and_then(|m| m.as_sockaddr_in()).map_or(32, |m| m.ip().to_bits().count_ones());
        return Some(format!("{}/{bits}", v4.ip()));
    }
    let v6 = address.as_sockaddr_in6()?;
    let bits = mask.and_then(|m| m.as_sockaddr_in6()).map_or(128, |m| m.ip().to_bits().count_ones());
    Some(format!("{}/{bits}", v6.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there_with_its_address() {
        let interfaces = read().expect("every host has interfaces").interfaces;
        let lo = interfaces.iter().find(|i| i.ifname == "lo").expect("a loopback interface");
        assert!(lo.addresses.iter().any(|a| a == "127.0.0.1/8"), "{lo:?}");
        assert_eq!(lo.lladdr, "00:00:00:00:00:00");
    }
}
