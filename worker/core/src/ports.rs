//! Which network ports an instance has, and which it lacks.
//!
//! A plugged port is known by its name and a digest of what was asked for, so that a port that was asked for in another way is
//! another port: it is detached and attached again. Drivers keep the digest beside the port and give it back unchanged.

use std::fmt;
use std::str::FromStr;

use common::appliance::Name;
use common::network_port::NetworkPort;
use md5::{Digest, Md5};

/// Digest of a [`NetworkPort`]. As text it has 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortDigest(u128);

impl PortDigest {
    /// The digest of everything but the name.
    #[must_use]
    pub fn of(port: &NetworkPort) -> Self {
        let mut hash = Md5::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        field(&port.network);
        field(&port.mac.map(|mac| mac.to_string()).unwrap_or_default());
        port.addresses.iter().for_each(|address| field(&address.to_string()));
        Self(u128::from_be_bytes(hash.finalize().into()))
    }
}

impl fmt::Display for PortDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not a [`PortDigest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the digest of a port")]
pub struct InvalidPortDigest;

impl FromStr for PortDigest {
    type Err = InvalidPortDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u128::from_str_radix(text, 16).ok().filter(|_| digits).map(Self).ok_or(InvalidPortDigest)
    }
}

/// One port that an instance has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluggedPort {
    /// Name of the port.
    pub name: Name,
    /// Digest of what was asked for.
    pub digest: PortDigest,
}

impl From<&NetworkPort> for PluggedPort {
    fn from(port: &NetworkPort) -> Self {
        Self { name: port.name.clone(), digest: PortDigest::of(port) }
    }
}

/// The ports that an instance has, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PluggedPorts(Box<[PluggedPort]>);

impl PluggedPorts {
    /// Every port.
    pub fn iter(&self) -> impl Iterator<Item = &PluggedPort> {
        self.0.iter()
    }

    /// The same ones with `port`, which takes the place of one of the same name.
    #[must_use]
    pub fn with(&self, port: PluggedPort) -> Self {
        self.iter().filter(|known| known.name != port.name).cloned().chain([port.clone()]).collect()
    }

    /// The same ones without the port `name`.
    #[must_use]
    pub fn without(&self, name: &Name) -> Self {
        self.iter().filter(|known| known.name != *name).cloned().collect()
    }
}

impl FromIterator<PluggedPort> for PluggedPorts {
    fn from_iter<I: IntoIterator<Item = PluggedPort>>(ports: I) -> Self {
        let mut ports: Vec<_> = ports.into_iter().collect();
        ports.sort();
        ports.dedup();
        Self(ports.into())
    }
}

impl<'a> FromIterator<&'a NetworkPort> for PluggedPorts {
    fn from_iter<I: IntoIterator<Item = &'a NetworkPort>>(ports: I) -> Self {
        ports.into_iter().map(PluggedPort::from).collect()
    }
}

/// What has to be done so that an instance has the ports it shall have; in this order, so that a port that changed frees its
/// name and its addresses first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortChanges {
    /// Ports to be detached: not wanted any more, or wanted in another way.
    pub detach: Vec<Name>,
    /// Ports to be attached.
    pub attach: Vec<NetworkPort>,
}

impl PortChanges {
    /// The difference between what shall be and what is.
    #[must_use]
    pub fn between(wanted: &[NetworkPort], plugged: &PluggedPorts) -> Self {
        let goal: Vec<_> = wanted.iter().map(PluggedPort::from).collect();
        let mut detach: Vec<_> =
            plugged.iter().filter(|port| !goal.contains(port)).map(|port| port.name.clone()).collect();
        detach.dedup();
        let lacks = |goal: &PluggedPort| detach.contains(&goal.name) || !plugged.iter().any(|port| port == goal);
        let attach = wanted.iter().zip(&goal).filter(|(_, goal)| lacks(goal)).map(|(port, _)| port.clone());
        Self { attach: attach.collect(), detach }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, network: &str) -> NetworkPort {
        let name = Name::new(name).expect("a name");
        NetworkPort { name, network: network.into(), addresses: vec![], mac: None }
    }

    fn names<'a>(names: impl IntoIterator<Item = &'a Name>) -> Vec<&'a str> {
        names.into_iter().map(Name::as_str).collect()
    }

    #[test]
    fn only_what_differs_is_detached_and_attached() {
        let before = [port("a", "n1"), port("b", "n1"), port("c", "n1")];
        let after = [port("d", "n1"), port("c", "n2"), port("a", "n1")];
        let plugged: PluggedPorts = before.iter().collect();
        let changes = PortChanges::between(&after, &plugged);
        assert_eq!(names(&changes.detach), ["b", "c"]);
        assert_eq!(names(changes.attach.iter().map(|port| &port.name)), ["d", "c"]);
        let mut now = plugged;
        changes.detach.iter().for_each(|name| now = now.without(name));
        changes.attach.iter().for_each(|port| now = now.with(port.into()));
        assert_eq!(now, after.iter().collect());
        assert_eq!(PortChanges::between(&after, &now), PortChanges::default());
    }

    #[test]
    fn of_two_ports_under_one_name_both_are_detached_first() {
        let wanted = [port("a", "n1")];
        let plugged: PluggedPorts = [port("a", "n1"), port("a", "n2")].iter().collect();
        let changes = PortChanges::between(&wanted, &plugged);
        assert_eq!((names(&changes.detach), changes.attach.as_slice()), (vec!["a"], wanted.as_slice()));
    }

    /// Drivers keep these beside the ports: another one for the same port would replug it on an upgrade.
    #[test]
    fn digests_never_change_and_read_back() {
        let bare = port("a", "n1");
        let address = "10.0.0.3/24".parse().expect("an address");
        let full = NetworkPort { addresses: vec![address], mac: "fa:16:3e:00:00:01".parse().ok(), ..bare.clone() };
        for (port, digest) in [(bare, "9127cd10aead168bd99d2475ed4ad5be"), (full, "627ed02b4153fe330fdc96bd2fda6d58")] {
            assert_eq!(PortDigest::of(&port).to_string(), digest, "{port:?}");
            assert_eq!(digest.parse(), Ok(PortDigest::of(&port)));
        }
        for text in ["", "0", "+0000000000000000000000000000000", &"g".repeat(32)] {
            assert_eq!(text.parse::<PortDigest>(), Err(InvalidPortDigest), "{text}");
        }
    }
}
