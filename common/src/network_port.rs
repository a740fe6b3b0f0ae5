//! Network ports that an appliance wants its instances to have: where each is plugged, and with which addresses.
//!
//! A port here is a network interface, not a TCP port: ports that a kind listens on are `Kind::ports`. What a network is, and
//! whether it exists, is known to the driver only. Ports that a driver needs for itself, such as one for management, are its own
//! affair and are not listed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::FieldViolation;
use crate::name::Name;

/// Most network ports of one appliance.
pub const MAX_NETWORK_PORTS: usize = 64;
/// Most fixed addresses of one network port.
pub const MAX_PORT_ADDRESSES: usize = 16;
/// Longest id of a network, in bytes.
pub const MAX_NETWORK_ID: usize = 255;

/// One network port that every instance of an appliance shall have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPort {
    /// What the appliance calls it, such as `external`; unique within the appliance.
    pub name: Name,
    /// Network that it is plugged into, by the id its driver knows it by.
    pub network: String,
    /// Fixed addresses; where there is none, the driver's backend gives one if it does so. Several replicas all get them, and
    /// the kind settles which of them answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<PortAddress>,
    /// Fixed hardware address, for appliances of one replica; the driver's backend gives one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// Every rule that the ports of an appliance break, with field paths below `at`.
pub(crate) fn validate(ports: &[NetworkPort], replicas: u16, at: &str, found: &mut Vec<FieldViolation>) {
    if ports.len() > MAX_NETWORK_PORTS {
        let text = format!("has {} entries, at most {MAX_NETWORK_PORTS} are allowed", ports.len());
        found.push(FieldViolation::new(at, text));
        return;
    }
    let (mut names, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let mut note = |field: &str, text: String| found.push(FieldViolation::new(format!("{at}[{i}].{field}"), text));
        if !names.insert(&port.name) {
            note("name", format!("`{}` is the name of another port", port.name));
        }
        if port.network.is_empty() {
            note("network", "must not be empty".to_owned());
        } else if port.network.len() > MAX_NETWORK_ID || port.network.contains(char::is_control) {
            note("network", format!("must have at most {MAX_NETWORK_ID} bytes and no control characters"));
        }
        if port.addresses.len() > MAX_PORT_ADDRESSES {
            let text = format!("has {} entries, at most {MAX_PORT_ADDRESSES} are allowed", port.addresses.len());
            note("addresses", text);
        }
        let mut known = BTreeSet::new();
        if let Some(twice) = port.addresses.iter().find(|address| !known.insert(address.ip)) {
            note("addresses", format!("names {} twice", twice.ip));
        }
        match port.mac {
            Some(_) if replicas > 1 => note("mac", format!("cannot be fixed for {replicas} replicas")),
            Some(mac) if !macs.insert(mac) => note("mac", format!("{mac} is that of another port")),
            Some(_) | None => {}
        }
    }
}

/// An address of a port, with or without the length of its network's prefix: `10.0.0.3` or `10.0.0.3/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortAddress {
    /// The address itself.
    pub ip: IpAddr,
    /// Length of the prefix in bits, where it is told.
    pub prefix: Option<u8>,
}

/// The text is not a [`PortAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IP address, with or without the length of a prefix")]
pub struct InvalidPortAddress(String);

impl FromStr for PortAddress {
    type Err = InvalidPortAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
            let ip: IpAddr = ip.parse().ok()?;
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let digits = |prefix: &str| prefix.bytes().all(|b| b.is_ascii_digit());
            let prefix = match prefix {
                None => None,
                Some(bits) => Some(bits.parse().ok().filter(|n| digits(bits) && *n <= most)?),
            };
            Some(Self { ip, prefix })
        };
        read().ok_or_else(|| InvalidPortAddress(text.chars().take(64).collect()))
    }
}

impl fmt::Display for PortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            None => write!(f, "{}", self.ip),
            Some(prefix) => write!(f, "{}/{prefix}", self.ip),
        }
    }
}

impl TryFrom<String> for PortAddress {
    type Error = InvalidPortAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortAddress> for String {
    fn from(address: PortAddress) -> Self {
        address.to_string()
    }
}

/// Hardware address of one network interface, such as `fa:16:3e:00:00:01`; never a group address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// The text is not a [`MacAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the hardware address of one interface: six bytes in hexadecimal, as in fa:16:3e:00:00:01")]
pub struct InvalidMacAddress(String);

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            // The lowest bit of the first byte is that of groups.
            (parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
        };
        read().ok_or_else(|| InvalidMacAddress(text.chars().take(64).collect()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMacAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> NetworkPort {
        NetworkPort {
            name: Name::new(name).expect("a name"),
            network: "net-1".into(),
            addresses: vec!["10.0.0.3/24".parse().expect("an address")],
            mac: Some("fa:16:3e:00:00:01".parse().expect("an address")),
        }
    }

    fn violations(ports: &[NetworkPort], replicas: u16) -> Vec<String> {
        let mut found = Vec::new();
        validate(ports, replicas, "spec.ports", &mut found);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_port_survives_json_with_its_addresses_as_texts() {
        let text = serde_json::to_string(&port("external")).expect("plain data");
        let written = r#"{"name":"external","network":"net-1","addresses":["10.0.0.3/24"],"mac":"fa:16:3e:00:00:01"}"#;
        assert_eq!(text, written);
        assert_eq!(serde_json::from_str::<NetworkPort>(&text).expect("round trip"), port("external"));
        let bare = r#"{"name":"a","network":"n"}"#;
        let read: NetworkPort = serde_json::from_str(bare).expect("addresses may be missing");
        assert_eq!(serde_json::to_string(&read).expect("plain data"), bare);
    }

    #[test]
    fn addresses_have_a_prefix_that_fits_or_none() {
        for text in ["10.0.0.3", "10.0.0.3/0", "10.0.0.3/32", "fd00::1", "fd00::1/128"] {
            assert_eq!(text.parse::<PortAddress>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "10.0.0.3/", "10.0.0.3/33", "10.0.0.3/+8", "fd00::1/129", "10.0.0/8", "10.0.0.3/8/8", "é"] {
            assert!(text.parse::<PortAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn hardware_addresses_are_those_of_one_interface() {
        assert_eq!("FA:16:3e:00:00:0a".parse::<MacAddress>().expect("valid").to_string(), "fa:16:3e:00:00:0a");
        for text in [
            "",
            "fa:16:3e:00:00",
            "fa:16:3e:00:00:01:02",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+a:16:3e:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_violation_names_its_port_and_field() {
        assert_eq!(violations(&[port("a")], 1), Vec::<String>::new());
        let twice = "10.0.0.3".parse().expect("an address");
        let second = NetworkPort { network: String::new(), addresses: vec![twice, twice], ..port("a") };
        assert_eq!(
            violations(&[port("a"), second], 1),
            [
                "spec.ports[1].name: `a` is the name of another port",
                "spec.ports[1].network: must not be empty",
                "spec.ports[1].addresses: names 10.0.0.3 twice",
                "spec.ports[1].mac: fa:16:3e:00:00:01 is that of another port",
            ]
        );
        assert_eq!(violations(&[port("a")], 2), ["spec.ports[0].mac: cannot be fixed for 2 replicas"]);
        let long = NetworkPort { network: "n".repeat(MAX_NETWORK_ID + 1), ..port("a") };
        assert_eq!(violations(&[long], 1).len(), 1);
        let many = vec![port("a"); MAX_NETWORK_PORTS + 1];
        assert_eq!(violations(&many, 1), ["spec.ports: has 65 entries, at most 64 are allowed"]);
    }
}
