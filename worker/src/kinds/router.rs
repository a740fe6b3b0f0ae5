//! Configures routers: asks the instance which interfaces it has, finds for each network the one that is on it, and only then puts the
//! configuration in place. An instance that lacks an interface is not configured, because it would take what it gets for the whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::appliance::{MAX_TEXT, Name};
use common::kind::router::contract::{self, Draft, HaConfig, Orchestrator};
use common::network_port::{MacAddress, PortAddress};
use common::text::{clip, escaped};
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use worker_core::desired::Desired;
use worker_core::instance::Instance;
use worker_core::peers::Peer;

use super::http::{HttpClient, MOST};
use super::rest;
use crate::appliance::api::path;
use crate::error::Error;
use crate::gate::Permit;

/// Longest name of an interface, in bytes; Linux has 15.
const MAX_IFNAME: usize = 32;
/// How long an interface that was just plugged may take to be seen inside, before that counts as a failure: a guest finds a new device
/// within a second or two, and what fails waits longer each time.
const APPEARS: Duration = Duration::from_secs(8);
/// Between two looks whether it is.
const LOOK: Duration = Duration::from_millis(300);
/// Type and id of the network that instances are managed by.
const MANAGEMENT: &str = "management";
/// Priorities of an instance that is alone or the oldest, and of the others, as Astara gives them.
const PRIORITY: (u8, u8) = (100, 50);

/// What is configured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) instance: &'a Instance,
    pub(super) desired: &'a Desired,
    /// The other instances of the appliance.
    pub(super) peers: &'a [Peer],
    /// Who passes requests for metadata on.
    pub(super) metadata: Option<SocketAddr>,
}

/// Puts the configuration of a router in place.
pub(super) async fn configure(
    client: &HttpClient,
    permit: &Permit,
    target: Target<'_>,
    draft: Draft,
) -> Result<(), Error> {
    let instance = target.instance;
    let address = rest::management(instance)?;
    permit.check()?;
    let appears_by = Instant::now() + APPEARS;
    let config = loop {
        let interfaces = interfaces_of(client, instance, address).await?;
        match complete(draft.clone(), &interfaces, target, address.ip()) {
            Ok(config) => break config,
            Err(missing) if Instant::now() >= appears_by => return Err(Error::Failed(missing)),
            Err(_) => sleep(LOOK).await,
        }
    };
    let body = serde_json::to_value(&config).map_err(|error| Error::Refused(error.to_string()))?;
    rest::configure(client, permit, instance, &body).await
}

/// The interfaces that an instance says it has.
async fn interfaces_of(
    client: &HttpClient,
    instance: &Instance,
    address: SocketAddr,
) -> Result<Vec<SeenInterface>, Error> {
    let at = |problem: String| Error::Failed(format!("{} at {address}: {problem}", path::INTERFACES));
    let answer = client.get(address, path::INTERFACES, instance.secret.as_ref()).await;
    let answer = answer.map_err(|error| at(error.to_string()))?;
    if answer.status.as_u16() != 200 {
        return Err(at(format!("answered {}", answer.status)));
    }
    read_interfaces(&answer.body).map_err(at)
}

/// An interface as an appliance lists it. Those of Astara say more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct SeenInterface {
    ifname: String,
    #[serde(default)]
    lladdr: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
}

/// Reads the interfaces of an appliance; those without a usable name are left out.
fn read_interfaces(body: &[u8]) -> Result<Vec<SeenInterface>, String> {
    #[derive(Deserialize)]
    struct Answer {
        interfaces: Vec<SeenInterface>,
    }
    if body.len() >= MOST {
        return Err(format!("has {MOST} bytes or more"));
    }
    let answer: Answer =
        serde_json::from_slice(body).map_err(|error| escaped(clip(&error.to_string(), MAX_TEXT)).into_owned())?;
    let is_name = |name: &str| {
        (1..=MAX_IFNAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
    };
    Ok(answer.interfaces.into_iter().filter(|interface| is_name(&interface.ifname)).collect())
}

/// The configuration with everything that only the instance could say.
fn complete(
    draft: Draft,
    interfaces: &[SeenInterface],
    target: Target<'_>,
    management: IpAddr,
) -> Result<contract::Config, String> {
    let Draft { mut config, ports } = draft;
    let Target { instance, desired, peers, metadata } = target;
    let by_mac: BTreeMap<MacAddress, &SeenInterface> =
        interfaces.iter().filter_map(|i| Some((i.lladdr.as_deref()?.parse().ok()?, i))).collect();
    let spec_ports: BTreeMap<_, _> = desired.spec.ports.iter().map(|port| (&port.name, port)).collect();
    for (network, port) in config.networks.iter_mut().zip(&ports) {
        let asked = spec_ports.get(port).copied();
        let mac = instance.macs.get(port).copied().or_else(|| asked?.mac);
        let mac = mac.ok_or_else(|| format!("its driver does not say which interface has port `{port}`"))?;
        let found = by_mac.get(&mac).ok_or_else(|| missing(port, mac, &by_mac))?;
        network.interface.ifname.clone_from(&found.ifname);
        network.interface.lladdr = mac.to_string();
        network.network_id = asked.map(|port| port.network.clone()).unwrap_or_default();
    }
    config.networks.insert(0, management_network(interfaces, management)?);
    desired.tenant.as_str().clone_into(&mut config.tenant_id);
    if let Some(metadata) = metadata {
        config.orchestrator = Orchestrator { address: Some(metadata.ip()), metadata_port: Some(metadata.port()) };
    }
    if config.hostname.is_empty() {
        desired.name.as_str().clone_into(&mut config.hostname);
    }
    if desired.spec.replicas > 1 {
        config.ha_resource = true;
        config.ha_config = Some(ha_config(instance, peers));
        config.networks.iter_mut().filter(|n| n.network_type != MANAGEMENT).for_each(|network| network.ha = true);
    }
    Ok(config)
}

/// The oldest instance forwards; of equally old ones the first.
fn ha_config(instance: &Instance, peers: &[Peer]) -> HaConfig {
    let own = (instance.started_at_unix_ms, instance.ordinal);
    let is_oldest = peers.iter().all(|peer| own < (peer.started_at_unix_ms, peer.ordinal));
    let priority = if is_oldest { PRIORITY.0 } else { PRIORITY.1 };
    HaConfig { peers: peers.iter().filter_map(|peer| peer.management).collect(), priority }
}

fn missing(port: &Name, mac: MacAddress, by_mac: &BTreeMap<MacAddress, &SeenInterface>) -> String {
    let there: Vec<_> = by_mac.iter().map(|(mac, interface)| format!("{} ({mac})", interface.ifname)).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    format!("none of its interfaces has the address {mac} of port `{port}` yet; there are: {there}")
}

/// The network of the interface that has the management address, as the appliance has it.
fn management_network(interfaces: &[SeenInterface], management: IpAddr) -> Result<contract::Network, String> {
    let parsed = |text: &String| text.parse::<PortAddress>().ok().filter(|address| address.ip == management);
    let found = interfaces.iter().find_map(|i| Some((i, i.addresses.iter().find_map(parsed)?)));
    let (interface, address) =
        found.ok_or_else(|| format!("none of its interfaces has the management address {management}"))?;
    let addresses = interface.addresses.iter().filter(|text| text.parse::<PortAddress>().is_ok()).cloned().collect();
    let subnet = contract::SubnetConfig { cidr: cidr(address), ..contract::SubnetConfig::default() };
    Ok(contract::Network {
        interface: contract::Interface { ifname: interface.ifname.clone(), addresses, ..Default::default() },
        network_id: MANAGEMENT.to_owned(),
        network_type: MANAGEMENT.to_owned(),
        v4_conf_service: "static".to_owned(),
        v6_conf_service: "static".to_owned(),
        subnets: vec![subnet],
        ..contract::Network::default()
    })
}

/// The network that an address with its prefix is in.
fn cidr(address: PortAddress) -> String {
    let PortAddress { ip, prefix } = address;
    match ip {
        IpAddr::V4(ip) => {
            let length = prefix.unwrap_or(32).min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            format!("{}/{length}", std::net::Ipv4Addr::from_bits(ip.to_bits() & mask))
        }
        IpAddr::V6(ip) => {
            let length = prefix.unwrap_or(128).min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            format!("{}/{length}", std::net::Ipv6Addr::from_bits(ip.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use common::Edition;
    use common::appliance::{Spec, Timing};
    use common::driver::DriverName;
    use common::kind::router::NetworkRole;
    use common::kind::{Configuration, KindSpec, Router, RouterNetwork};
    use common::network_port::NetworkPort;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn desired(replicas: u16) -> Desired {
        let port =
            |text: &str| NetworkPort { name: name(text), network: format!("id-{text}"), addresses: vec![], mac: None };
        let network = |text: &str, role, address: &str| RouterNetwork {
            port: name(text),
            role,
            addresses: vec![address.parse().expect("an address")],
            mtu: None,
            subnets: vec![],
            allocations: vec![],
        };
        let networks = vec![
            network("ext", NetworkRole::External, "203.0.113.7/24"),
            network("int", NetworkRole::Internal, "10.0.0.1/24"),
        ];
        let ports = vec![port("ext"), port("int")];
        let kind = KindSpec::Router(Router { networks, ..Router::default() });
        let spec =
            Spec { replicas, probe_interval: None, timing: Timing::default(), image: None, pod: None, ports, kind };
        let (name, tenant) = (name("r1"), name("t1"));
        let driver: DriverName = "openstack".parse().expect("a driver");
        Desired { name, tenant, driver, edition: Edition::default(), revision: 0, deleting: false, spec }
    }

    fn draft(desired: &Desired) -> Draft {
        match desired.spec.kind.configuration(desired.edition.generation, 0) {
            Ok(Configuration::Router(draft)) => *draft,
            other => panic!("not that of a router: {other:?}"),
        }
    }

    fn of<'a>(instance: &'a Instance, desired: &'a Desired, peers: &'a [Peer]) -> Target<'a> {
        Target { instance, desired, peers, metadata: None }
    }

    const SEEN: &str = r#"{"interfaces": [
        {"ifname": "lo", "lladdr": "00:00:00:00:00:00", "addresses": ["127.0.0.1/8"], "mtu": 65536, "state": "up"},
        {"ifname": "ge0", "lladdr": "fa:16:3e:00:00:09", "addresses": ["fdca::9/64", "fe80::9/64"], "groups": []},
        {"ifname": "ge1", "lladdr": "FA:16:3e:00:00:02", "addresses": []},
        {"ifname": "ge2", "lladdr": "fa:16:3e:00:00:01", "addresses": [], "media": null},
        {"ifname": "../x", "lladdr": "fa:16:3e:00:00:03"}]}"#;

    fn instance() -> Instance {
        let mac = |text: &str| text.parse::<MacAddress>().expect("an address");
        let macs = [(name("ext"), mac("fa:16:3e:00:00:01")), (name("int"), mac("fa:16:3e:00:00:02"))].into();
        Instance { macs, ..Instance::default() }
    }

    #[test]
    fn each_network_gets_the_interface_that_has_the_address_of_its_port() {
        let desired = desired(1);
        let interfaces = read_interfaces(SEEN.as_bytes()).expect("readable");
        assert_eq!(interfaces.len(), 4, "a name that is none is left out");
        let management = "fdca::9".parse().expect("an address");
        let config =
            complete(draft(&desired), &interfaces, of(&instance(), &desired, &[]), management).expect("complete");
        let shown: Vec<_> = (config.networks.iter())
            .map(|n| (n.network_type.as_str(), n.network_id.as_str(), n.interface.ifname.as_str()))
            .collect();
        let wanted =
            [("management", "management", "ge0"), ("external", "id-ext", "ge2"), ("internal", "id-int", "ge1")];
        assert_eq!(shown, wanted);
        assert_eq!(config.networks[0].interface.addresses, ["fdca::9/64", "fe80::9/64"]);
        assert_eq!(config.networks[0].subnets[0].cidr, "fdca::/64");
        assert_eq!((config.tenant_id.as_str(), config.hostname.as_str()), ("t1", "r1"));
        assert!(!config.ha_resource && config.ha_config.is_none());
        assert_eq!(config.orchestrator, Orchestrator::default(), "no proxy is told of that is not there");
        let metadata = Some(([192, 0, 2, 1], 8_775).into());
        let instance = instance();
        let told = Target { metadata, ..of(&instance, &desired, &[]) };
        let config = complete(draft(&desired), &interfaces, told, management).expect("complete");
        let proxy = Orchestrator { address: Some([192, 0, 2, 1].into()), metadata_port: Some(8_775) };
        assert_eq!(config.orchestrator, proxy);
    }

    #[test]
    fn an_instance_without_the_interface_is_not_configured() {
        let desired = desired(2);
        let mut interfaces = read_interfaces(SEEN.as_bytes()).expect("readable");
        let management = "fdca::9".parse().expect("an address");
        let of = |interfaces: &[SeenInterface], instance: &Instance| {
            complete(
                draft(&desired),
                interfaces,
                Target { instance, desired: &desired, peers: &[], metadata: None },
                management,
            )
        };
        assert!(of(&interfaces, &instance()).expect("complete").ha_resource);
        let unknown = of(&interfaces, &Instance::default()).expect_err("the driver says nothing");
        assert!(unknown.contains("port `ext`"), "{unknown}");
        interfaces.retain(|interface| interface.ifname != "ge1");
        let missing = of(&interfaces, &instance()).expect_err("it is missing");
        assert!(missing.contains("fa:16:3e:00:00:02 of port `int`") && missing.contains("ge2"), "{missing}");
        interfaces.retain(|interface| interface.ifname != "ge0");
        let missing = of(&interfaces, &instance()).expect_err("both are missing");
        assert!(missing.contains("port `int`"), "{missing}");
    }

    #[test]
    fn the_oldest_of_several_forwards_and_each_knows_the_others() {
        let peer = |ordinal, started_at_unix_ms| Peer {
            ordinal,
            attempt: 1,
            started_at_unix_ms,
            management: Some([192, 0, 2, 9].into()),
        };
        let at = |ordinal, started_at_unix_ms| Instance { ordinal, started_at_unix_ms, ..Instance::default() };
        let priority = |instance: &Instance, peers: &[Peer]| ha_config(instance, peers).priority;
        assert_eq!(priority(&at(0, 5), &[]), 100, "alone");
        assert_eq!((priority(&at(0, 5), &[peer(1, 9)]), priority(&at(1, 9), &[peer(0, 5)])), (100, 50));
        assert_eq!(
            (priority(&at(0, 9), &[peer(1, 5)]), priority(&at(1, 5), &[peer(0, 9)])),
            (50, 100),
            "the older one"
        );
        assert_eq!((priority(&at(0, 5), &[peer(1, 5)]), priority(&at(1, 5), &[peer(0, 5)])), (100, 50), "as old");
        let known: Vec<IpAddr> = vec![[192, 0, 2, 9].into()];
        assert_eq!(ha_config(&at(0, 5), &[peer(1, 9)]).peers, known);
    }

    #[test]
    fn an_answer_that_lists_no_interfaces_is_a_problem() {
        for body in ["", "[]", r#"{"interfaces": 1}"#, r#"{"interfaces": [{"lladdr": "x"}]}"#] {
            assert!(read_interfaces(body.as_bytes()).is_err(), "{body}");
        }
        assert!(read_interfaces(&vec![b' '; MOST]).is_err());
    }

    #[test]
    fn the_network_of_an_address_has_no_bits_beyond_its_length() {
        for (address, network) in [("10.1.2.3/8", "10.0.0.0/8"), ("10.1.2.3", "10.1.2.3/32"), ("fd00::1/0", "::/0")] {
            assert_eq!(cidr(address.parse().expect("an address")), network);
        }
    }
}
