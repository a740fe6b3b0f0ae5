//! Names and metadata of what the driver makes. By them alone a new owner finds what a former one left.

use std::net::IpAddr;

use common::ApplianceId;
use common::appliance::Name;
use openstack::{Port, ResourceId};
use worker_core::instance::Instance;
use worker_core::ports::{PluggedPort, PortDigest};

/// How the names of servers and server groups begin.
const SERVER: &str = "rug-";
/// How the names of servers end that wait to be taken.
const SPARE: &str = "-spare";
/// How the names of ports for management begin.
const MANAGEMENT: &str = "RUG:MGT:";
/// How the names of ports begin that keep others from a spare.
const CLAIM: &str = "RUG:CLAIM:";
/// How the names of ports of networks begin.
const NETWORK: &str = "RUG:VRRP:";
/// How the names of ports that only keep an address begin.
const VIRTUAL: &str = "RUG:VIP:";
/// What is written as the owner of ports of networks without port security, until Nova plugs them.
pub(super) const FORWARDING_OWNER: &str = "network:rug";
/// The same of all other ports. Not one of `network:`, whose ports Neutron trusts: it gives them no port security.
pub(super) const SECURED_OWNER: &str = "rug:instance";

/// Metadata of servers.
pub(super) mod metadata {
    /// Which installation of Rug it belongs to.
    pub(in super::super) const CLUSTER: &str = "rug_cluster";
    pub(in super::super) const APPLIANCE: &str = "rug_appliance";
    /// Token of the grant that it was made under.
    pub(in super::super) const TOKEN: &str = "rug_token";
    pub(in super::super) const GENERATION: &str = "rug_generation";
    pub(in super::super) const NAME: &str = "rug_name";
    pub(in super::super) const TENANT: &str = "rug_tenant";
    pub(in super::super) const KIND: &str = "rug_kind";
    /// What it was started with.
    pub(in super::super) const BOOT_DIGEST: &str = "rug_boot_digest";
    /// It has answered a probe.
    pub(in super::super) const ANSWERED: &str = "rug_answered";
    /// Its address for management.
    pub(in super::super) const MANAGEMENT: &str = "rug_management";
    /// Port of its REST contract.
    pub(in super::super) const MANAGEMENT_PORT: &str = "rug_management_port";
    /// Port of its service.
    pub(in super::super) const PORT: &str = "rug_port";
    /// Its server group.
    pub(in super::super) const GROUP: &str = "rug_group";
    /// Image and flavor of a spare, by id.
    pub(in super::super) const IMAGE: &str = "rug_image";
    pub(in super::super) const FLAVOR: &str = "rug_flavor";
    /// What callers of its REST contract prove themselves with.
    pub(in super::super) const SECRET: &str = "rug_secret";
}

/// Which instance a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct InstanceKey {
    pub(super) appliance: ApplianceId,
    pub(super) ordinal: u16,
    pub(super) attempt: u32,
}

impl InstanceKey {
    pub(super) const fn of(appliance: ApplianceId, instance: &Instance) -> Self {
        Self { appliance, ordinal: instance.ordinal, attempt: instance.attempt }
    }

    /// The name of the instance.
    pub(super) fn instance(self) -> String {
        Instance::name(self.appliance, self.ordinal, self.attempt)
    }

    /// The name of its server.
    pub(super) fn server(self) -> String {
        format!("{SERVER}{}", self.instance())
    }

    /// The name of its server while that waits to be taken.
    pub(super) fn spare(self) -> String {
        format!("{}{SPARE}", self.server())
    }

    /// The instance that a server of this name is, and whether it waits to be taken; `None` for a server of others.
    pub(super) fn of_server(name: &str) -> Option<(Self, bool)> {
        let name = name.strip_prefix(SERVER)?;
        match name.strip_suffix(SPARE) {
            Some(name) => Some((Self::read(name)?, true)),
            None => Some((Self::read(name)?, false)),
        }
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let (rest, attempt) = text.rsplit_once('-')?;
        let (appliance, ordinal) = rest.rsplit_once('-')?;
        let key =
            Self { appliance: appliance.parse().ok()?, ordinal: ordinal.parse().ok()?, attempt: attempt.parse().ok()? };
        (key.instance() == text).then_some(key)
    }

    /// The name of its port for management.
    pub(super) fn management_port(self) -> String {
        format!("{MANAGEMENT}{}", self.instance())
    }

    /// The name of the port by which it has a spare to itself.
    pub(super) fn claim(self, server: &ResourceId) -> String {
        format!("{CLAIM}{}:{server}", self.instance())
    }

    /// The name of its port of a network.
    pub(super) fn network_port(self, port: &PluggedPort) -> String {
        format!("{NETWORK}{}:{}:{}", self.instance(), port.name, port.digest)
    }
}

/// Names of servers of an appliance, as a regular expression.
pub(super) fn servers_of(appliance: ApplianceId) -> String {
    format!("^{SERVER}{appliance}-")
}

/// Names of all servers, as a regular expression.
pub(super) fn all_servers() -> String {
    format!("^{SERVER}")
}

/// Names of all servers that wait to be taken, as a regular expression.
pub(super) fn all_spares() -> String {
    format!("^{SERVER}.*{SPARE}$")
}

/// The hardware address of the claim to a server. Neutron gives one address of a network to one port only, whoever asks.
pub(super) fn claim_address(server: &ResourceId) -> String {
    // Ids of servers are made of random digits. The first byte says that the address is nobody's by manufacture.
    let digits: Vec<char> = server.as_str().chars().filter(char::is_ascii_hexdigit).take(10).collect();
    let bytes = digits.chunks(2).map(|byte| byte.iter().collect::<String>());
    std::iter::once("06".to_owned()).chain(bytes).collect::<Vec<_>>().join(":")
}

/// The name of the server group of an appliance.
pub(super) fn group(appliance: ApplianceId) -> String {
    format!("{SERVER}{appliance}")
}

/// The name of the port that keeps a virtual address of an appliance.
pub(super) fn virtual_port(appliance: ApplianceId, address: IpAddr) -> String {
    format!("{VIRTUAL}{appliance}:{address}")
}

/// What is written about every port of an appliance: all of them are listed by it.
pub(super) fn description(cluster: &str, appliance: ApplianceId) -> String {
    format!("rug:{cluster}:{appliance}")
}

/// The appliance of a port with this description; `None` for a port of others.
pub(super) fn appliance_of(cluster: &str, description: &str) -> Option<ApplianceId> {
    description.strip_prefix("rug:")?.strip_prefix(cluster)?.strip_prefix(':')?.parse().ok()
}

/// Whether an installation of Rug has made a port, whichever.
pub(super) fn is_of_rug(port: &Port) -> bool {
    let id = port.description.strip_prefix("rug:").and_then(|rest| rest.rsplit_once(':'));
    id.is_some_and(|(_, id)| id.parse::<ApplianceId>().is_ok())
}

/// What a port of Rug's is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Management of an instance.
    Management(InstanceKey),
    /// Nothing is plugged into it: as long as it is there, this spare is for that instance alone, to be taken or to be ended.
    Claim(InstanceKey, ResourceId),
    /// A network of an instance.
    Network(InstanceKey, PluggedPort),
    /// A virtual address of an appliance.
    Virtual(IpAddr),
}

/// A port of Rug's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnPort {
    pub(super) appliance: ApplianceId,
    pub(super) role: Role,
    pub(super) port: Port,
}

impl OwnPort {
    /// What a port is; `None` for a port of others.
    pub(super) fn of(cluster: &str, port: Port) -> Option<Self> {
        let appliance = appliance_of(cluster, &port.description)?;
        let role = if let Some(rest) = port.name.strip_prefix(MANAGEMENT) {
            Role::Management(InstanceKey::read(rest)?)
        } else if let Some(rest) = port.name.strip_prefix(CLAIM) {
            let (instance, server) = rest.split_once(':')?;
            Role::Claim(InstanceKey::read(instance)?, server.parse().ok()?)
        } else if let Some(rest) = port.name.strip_prefix(NETWORK) {
            let mut parts = rest.splitn(3, ':');
            let key = InstanceKey::read(parts.next()?)?;
            let name = Name::new(parts.next()?).ok()?;
            let digest: PortDigest = parts.next()?.parse().ok()?;
            Role::Network(key, PluggedPort { name, digest })
        } else if let Some(rest) = port.name.strip_prefix(VIRTUAL) {
            Role::Virtual(rest.split_once(':')?.1.parse().ok()?)
        } else {
            return None;
        };
        Some(Self { appliance, role, port })
    }

    /// The instance that it is for, if it is for one.
    pub(super) const fn key(&self) -> Option<InstanceKey> {
        match &self.role {
            Role::Management(key) | Role::Claim(key, _) | Role::Network(key, _) => Some(*key),
            Role::Virtual(_) => None,
        }
    }

    pub(super) fn is_plugged_into(&self, server: &ResourceId) -> bool {
        self.port.device_id == server.as_str()
    }

    pub(super) fn is_free(&self) -> bool {
        self.port.device_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use common::network_port::NetworkPort;

    use super::*;

    fn key() -> InstanceKey {
        InstanceKey { appliance: ApplianceId::from_u128(7), ordinal: 3, attempt: 12 }
    }

    fn port(name: String, description: &str) -> Port {
        let json = serde_json::json!({"id": "p", "network_id": "n", "mac_address": "m", "name": name, "description": description});
        serde_json::from_value(json).expect("a port")
    }

    #[test]
    fn a_server_is_known_by_its_name_alone() {
        assert_eq!(InstanceKey::of_server(&key().server()), Some((key(), false)));
        assert_eq!(InstanceKey::of_server(&key().spare()), Some((key(), true)));
        for other in [
            "",
            "rug-",
            "rug-web-0-1",
            "web-00000000-0000-0000-0000-000000000007-3-1",
            "rug-00000000-0000-0000-0000-000000000007-03-1",
        ] {
            assert_eq!(InstanceKey::of_server(other), None, "{other}");
        }
    }

    #[test]
    fn the_address_of_a_claim_follows_from_the_server() {
        let server: ResourceId = "3ca15760-d291-4ca9-ac8a-6c16697a70cd".parse().expect("an id");
        assert_eq!(claim_address(&server), "06:3c:a1:57:60:d2");
    }

    #[test]
    fn a_port_is_known_by_name_and_description() {
        let wanted = NetworkPort {
            name: Name::new("external").expect("a name"),
            network: "n".into(),
            addresses: vec![],
            mac: None,
        };
        let plugged = PluggedPort::from(&wanted);
        let about = description("rug", key().appliance);
        let longest = key().network_port(&plugged);
        assert!(longest.len() + 63 < 255, "{}", longest.len());
        let own = OwnPort::of("rug", port(longest, &about)).expect("of Rug");
        assert_eq!(own.role, Role::Network(key(), plugged));
        let own = OwnPort::of("rug", port(key().management_port(), &about)).expect("of Rug");
        assert_eq!(own.key(), Some(key()));
        let server: ResourceId = "3ca15760-d291-4ca9-ac8a-6c16697a70cd".parse().expect("an id");
        let own = OwnPort::of("rug", port(key().claim(&server), &about)).expect("of Rug");
        assert_eq!((own.key(), own.role), (Some(key()), Role::Claim(key(), server)));
        for address in ["10.0.0.1", "fd00::1"].map(|text| text.parse().expect("an address")) {
            let own = OwnPort::of("rug", port(virtual_port(key().appliance, address), &about)).expect("of Rug");
            assert_eq!(own.role, Role::Virtual(address));
        }
        assert_eq!(OwnPort::of("other", port(key().management_port(), &about)), None, "of another installation");
        assert_eq!(OwnPort::of("rug", port("RUG:VRRP:x".into(), &about)), None);
        assert_eq!(OwnPort::of("rug", port(key().management_port(), "")), None);
    }
}
