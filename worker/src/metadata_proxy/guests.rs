//! Whose an address is: which server of which project has it in one of these networks, as Neutron says, remembered for a short time.
//!
//! Of several that ask for the same one asks Neutron and the others wait for its answer. Servers of Rug's own are nobody: what is in their
//! metadata is for them alone.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use openstack::{Client, Port, ResourceId};
use runtime::log_limited;
use tokio::sync::Mutex as TurnMutex;
use tokio::time::Instant;

use super::refusal::Refusal;
use crate::drivers::openstack::is_port_of_rug;
use crate::metrics;

/// Most answers that are remembered.
const MAX_KNOWN: usize = 4_096;
/// How long it is remembered that Neutron did not answer: those who wait meanwhile do not ask it again, one after the other.
const FAILED_TIME: Duration = Duration::from_secs(1);
/// How the owners of ports begin that are Neutron's own: of routers, DHCP, floating IPs.
const INFRASTRUCTURE: &str = "network:";

/// What knows ports: Neutron.
#[async_trait]
pub(super) trait PortDirectory: Send + Sync + 'static {
    /// The ports that have an address in one of these networks.
    async fn ports(&self, address: IpAddr, networks: &BTreeSet<String>) -> Result<Vec<Port>, openstack::Error>;
}

#[async_trait]
impl PortDirectory for Client {
    async fn ports(&self, address: IpAddr, networks: &BTreeSet<String>) -> Result<Vec<Port>, openstack::Error> {
        let address = format!("ip_address={address}");
        let networks = networks.iter().map(|network| ("network_id", network.as_str()));
        let filters: Vec<_> = std::iter::once(("fixed_ips", address.as_str())).chain(networks).collect();
        self.network().ports(&filters).await
    }
}

/// A server of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) server: ResourceId,
    pub(super) project: ResourceId,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GuestKey {
    address: IpAddr,
    networks: BTreeSet<String>,
}

#[derive(Debug)]
struct Remembered {
    until: Instant,
    answer: Result<Guest, Refusal>,
}

/// One question. Whoever asks Neutron has the lock.
type Slot = TurnMutex<Option<Remembered>>;

/// Answers of Neutron.
pub(super) struct Guests {
    directory: Box<dyn PortDirectory>,
    known_time: Duration,
    unknown_time: Duration,
    slots: Mutex<HashMap<GuestKey, Arc<Slot>>>,
}

impl Guests {
    pub(super) fn new(directory: Box<dyn PortDirectory>, known_time: Duration, unknown_time: Duration) -> Self {
        Self { directory, known_time, unknown_time, slots: Mutex::default() }
    }

    /// The server that has an address in one of these networks. Safe to be given up: the next one asks then.
    pub(super) async fn find(&self, address: IpAddr, networks: BTreeSet<String>) -> Result<Guest, Refusal> {
        let key = GuestKey { address, networks };
        let slot = self.slot(&key);
        let mut remembered = slot.lock().await;
        if let Some(Remembered { answer, .. }) = remembered.as_ref().filter(|known| Instant::now() < known.until) {
            metrics::metadata_lookup("remembered");
            return answer.clone();
        }
        metrics::metadata_lookup("asked");
        let answer = match self.directory.ports(address, &key.networks).await {
            Ok(ports) => owner(&key, ports),
            Err(error) => {
                log_limited!(warn, %error, "metadata proxy: Neutron does not say whose an address is");
                Err(Refusal::NoDirectory)
            }
        };
        let time = match &answer {
            Ok(_) => self.known_time,
            Err(Refusal::NoDirectory) => FAILED_TIME,
            Err(_) => self.unknown_time,
        };
        *remembered = Some(Remembered { until: Instant::now() + time, answer: answer.clone() });
        answer
    }

    fn slot(&self, key: &GuestKey) -> Arc<Slot> {
        // Each change is an insertion or a removal, so a panic elsewhere leaves the table whole.
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        if slots.len() >= MAX_KNOWN {
            // Those that others wait for stay, whose number is bounded by that of requests. Of the rest none is worth a search.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(key.clone()).or_default())
    }
}

/// The server behind the ports that Neutron listed. More than one is as bad as none: the metadata of one must not go to the other.
fn owner(key: &GuestKey, ports: Vec<Port>) -> Result<Guest, Refusal> {
    // Looked at again: an old Neutron ignores filters that it does not know.
    let is_there = |port: &Port| {
        port.fixed_ips.iter().any(|fixed| fixed.ip_address == key.address)
            && key.networks.contains(port.network_id.as_str())
    };
    let is_guest = |port: &Port| {
        !port.device_id.is_empty() && !port.device_owner.starts_with(INFRASTRUCTURE) && !is_port_of_rug(port)
    };
    let mut found = ports.into_iter().filter(|port| is_there(port) && is_guest(port));
    let address = key.address;
    let port = found.next().ok_or_else(|| Refusal::NoServer(format!("no server has the address {address} there")))?;
    if found.next().is_some() {
        return Err(Refusal::NoServer(format!("more than one server has the address {address} there")));
    }
    match (port.device_id.parse(), port.project_id.parse()) {
        (Ok(server), Ok(project)) => Ok(Guest { server, project }),
        _ => Err(Refusal::NoServer(format!("what has the address {address} there is no server"))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use openstack::ErrorKind;
    use serde_json::json;
    use tokio::sync::Semaphore;

    use super::*;

    pub(in super::super) const SERVER: &str = "11111111-2222-4333-8444-555555555555";
    pub(in super::super) const PROJECT: &str = "e5f5fe9aff804036b5abdb7bd0404910";

    pub(in super::super) fn port(network: &str, address: &str, more: serde_json::Value) -> Port {
        let mut port = json!({"id": "p", "network_id": network, "mac_address": "fa:16:3e:00:00:01", "project_id": PROJECT,
            "device_id": SERVER, "device_owner": "compute:nova",
            "fixed_ips": [{"subnet_id": "s", "ip_address": address}]});
        port.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(port).expect("a port")
    }

    /// Knows these ports, answers when it is let, and counts.
    #[derive(Default)]
    pub(in super::super) struct Listed {
        pub(in super::super) ports: Vec<Port>,
        pub(in super::super) asked: Arc<AtomicUsize>,
        pub(in super::super) waits_for: Option<Arc<Semaphore>>,
        pub(in super::super) fails: bool,
    }

    #[async_trait]
    impl PortDirectory for Listed {
        async fn ports(&self, _: IpAddr, _: &BTreeSet<String>) -> Result<Vec<Port>, openstack::Error> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if let Some(turns) = &self.waits_for {
                turns.acquire().await.expect("open").forget();
            }
            if self.fails {
                return Err(openstack::Error {
                    kind: ErrorKind::Unavailable,
                    message: "broken".to_owned(),
                    request_id: None,
                });
            }
            Ok(self.ports.clone())
        }
    }

    fn key() -> GuestKey {
        GuestKey { address: [10, 0, 0, 5].into(), networks: BTreeSet::from(["n1".to_owned()]) }
    }

    #[test]
    fn only_one_server_of_a_tenant_is_an_owner() {
        let of = |ports: Vec<Port>| owner(&key(), ports);
        let mine = || port("n1", "10.0.0.5", json!({}));
        let guest = Guest { server: SERVER.parse().expect("an id"), project: PROJECT.parse().expect("an id") };
        assert_eq!(of(vec![mine()]), Ok(guest.clone()));
        let others = [
            port("n2", "10.0.0.5", json!({})),
            port("n1", "10.0.0.50", json!({})),
            port("n1", "10.0.0.5", json!({"device_id": ""})),
            port("n1", "10.0.0.5", json!({"device_owner": "network:router_interface"})),
            port("n1", "10.0.0.5", json!({"description": "rug:rug:00000000-0000-0000-0000-000000000001"})),
        ];
        for other in &others {
            assert!(matches!(of(vec![other.clone()]), Err(Refusal::NoServer(_))), "{other:?}");
        }
        assert_eq!(of(others.into_iter().chain([mine()]).collect()), Ok(guest));
        assert!(matches!(of(vec![mine(), mine()]), Err(Refusal::NoServer(text)) if text.starts_with("more than one")));
        for odd in [json!({"device_id": "dhcp/../x"}), json!({"project_id": "a\r\nb"}), json!({"project_id": ""})] {
            assert!(matches!(of(vec![port("n1", "10.0.0.5", odd)]), Err(Refusal::NoServer(_))));
        }
    }

    fn guests(listed: Listed) -> (Arc<Guests>, Arc<AtomicUsize>) {
        let asked = Arc::clone(&listed.asked);
        let (known, unknown) = (Duration::from_secs(5), Duration::from_secs(2));
        (Arc::new(Guests::new(Box::new(listed), known, unknown)), asked)
    }

    async fn find(guests: &Guests) -> Result<Guest, Refusal> {
        let GuestKey { address, networks } = key();
        guests.find(address, networks).await
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_remembered_for_their_time_those_that_there_is_none_for_a_shorter_one() {
        let (there, asked) = guests(Listed { ports: vec![port("n1", "10.0.0.5", json!({}))], ..Listed::default() });
        let (none, asked_none) = guests(Listed::default());
        let (broken, asked_broken) = guests(Listed { fails: true, ..Listed::default() });
        let mut counted = Vec::new();
        for second in [0, 1, 2, 3, 4, 5, 6] {
            assert!(find(&there).await.is_ok());
            assert!(matches!(find(&none).await, Err(Refusal::NoServer(_))));
            assert_eq!(find(&broken).await, Err(Refusal::NoDirectory));
            let counts = [&asked, &asked_none, &asked_broken].map(|count| count.load(Ordering::Relaxed));
            counted.push((second, counts));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!((counted[1].1, counted[4].1, counted[6].1), ([1, 1, 2], [1, 3, 5], [2, 4, 7]));
    }

    #[tokio::test]
    async fn one_asks_for_all_and_the_next_one_when_that_gives_up() {
        let turns = Arc::new(Semaphore::new(0));
        let ports = vec![port("n1", "10.0.0.5", json!({}))];
        let (guests, asked) = guests(Listed { ports, waits_for: Some(Arc::clone(&turns)), ..Listed::default() });
        let ask = || {
            let guests = Arc::clone(&guests);
            tokio::spawn(async move { find(&guests).await })
        };
        let first = ask();
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..20).map(|_| ask()).collect();
        first.abort();
        while asked.load(Ordering::Relaxed) == 1 {
            tokio::task::yield_now().await;
        }
        turns.add_permits(1);
        for other in others {
            assert!(other.await.expect("ends").is_ok());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let (guests, _) = guests(Listed::default());
        for n in 0..u32::try_from(MAX_KNOWN).expect("small") + 10 {
            let _ = guests.find(std::net::Ipv4Addr::from(n).into(), BTreeSet::new()).await;
            assert!(guests.slots.lock().expect("whole").len() <= MAX_KNOWN);
        }
    }
}
