//! Where every node lies and what stands in it, byte for byte as python-tooz and kazoo write and read it.
//!
//! Reading is lenient: anybody may write into these nodes, so what cannot be understood is taken for as little as
//! possible and never trusted. A lease node that holds anything but a heartbeat was written over; the version of the
//! node has grown with that, so that no further heartbeat of its owner can commit.

use std::collections::BTreeMap;
use std::time::Duration;

use rmpv::Value;
use serde::Serialize;
use zookeeper_client::Stat;

use super::MAX_LEASE;
use common::driver::{DriverCapabilities, DriverName, DriverOffers, MAX_DRIVERS, MAX_FENCE_DELAY, PreviousOffers};
use common::kind::KindName;
use common::secret::LifeSeal;
use common::site::is_state_dir;
use common::{CoordinatorId, Incarnation, Profile, WorkerId};

/// tooz's namespace when none is given.
const DEFAULT_NAMESPACE: &str = "tooz";

/// Root of what is Rug's alone, beside the namespace that Python services share.
const OWN_ROOT: &str = "rug";

/// Part of a contender's node name between its UUID and its sequence number; kazoo recognises contenders by it.
pub(super) const LOCK_MARK: &str = "__lock__";

/// The directory of contenders in a group; a name that no member may have.
pub(super) const LEADER: &str = "leader";

/// Digits of a sequence number in a node name.
const SEQUENCE_DIGITS: usize = 10;

/// Names of all nodes of one cluster. Paths are absolute: the chroot is their first part, so that it is created like any
/// other directory when it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    workers: String,
    coordinators: String,
    own: String,
}

impl Layout {
    /// The layout under `chroot` (empty, or `/a/b`).
    ///
    /// # Errors
    /// A sentence that names what cannot be a node.
    pub(super) fn new(chroot: &str, namespace: Option<&str>, group: &str) -> Result<Self, String> {
        if !chroot.is_empty() {
            let parts = chroot.strip_prefix('/').unwrap_or(chroot).split('/');
            for part in parts {
                node_name(part).map_err(|e| format!("the chroot `{chroot}` is not a path: {e}"))?;
            }
            if chroot == "/zookeeper" || chroot.starts_with("/zookeeper/") {
                return Err("the chroot `/zookeeper` belongs to ZooKeeper itself".to_owned());
            }
        }
        let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
        node_name(namespace).map_err(|e| format!("the namespace cannot be a node: {e}"))?;
        if chroot.is_empty() && namespace == "zookeeper" {
            return Err("the namespace `zookeeper` belongs to ZooKeeper itself".to_owned());
        }
        WorkerId::new(group).map_err(|e| format!("the group cannot be a node: {e}"))?;
        Ok(Self {
            workers: format!("{chroot}/{namespace}/{group}.workers"),
            coordinators: format!("{chroot}/{namespace}/{group}.coordinators"),
            own: format!("{chroot}/{OWN_ROOT}/{group}"),
        })
    }

    /// The group of workers.
    pub(super) fn workers(&self) -> &str {
        &self.workers
    }

    /// The group of coordinators.
    pub(super) fn coordinators(&self) -> &str {
        &self.coordinators
    }

    /// The directory of contenders for the leadership.
    pub(super) fn contenders(&self) -> String {
        format!("{}/{LEADER}", self.coordinators)
    }

    /// The node with the highest term.
    pub(super) fn term(&self) -> String {
        format!("{}/term", self.own)
    }

    /// Rug's own directory for this cluster.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// The directory of the workers' leases.
    pub(super) fn leases(&self) -> String {
        format!("{}/leases", self.own)
    }

    /// The two nodes of a worker's life.
    pub(super) fn worker(&self, worker: &WorkerId) -> NodePlace {
        NodePlace::new(self.workers.clone(), self.leases(), worker.as_str())
    }

    /// The two nodes of a coordinator's life. A directory of their own, so that a worker may have the same name.
    pub(super) fn coordinator(&self, id: &CoordinatorId) -> NodePlace {
        NodePlace::new(self.coordinators.clone(), format!("{}/coordinator-leases", self.own), id.as_str())
    }
}

fn node_name(text: &str) -> Result<(), String> {
    let usable =
        !text.is_empty() && !matches!(text, "." | "..") && text.chars().all(|c| c.is_ascii_graphic() && c != '/');
    usable.then_some(()).ok_or_else(|| format!("`{text}` is empty, `.`, `..` or not printable ASCII without `/`"))
}

/// Member node and lease node of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodePlace {
    /// The group's directory.
    pub(super) group: String,
    /// The leases' directory.
    pub(super) leases: String,
    /// The name itself.
    pub(super) name: String,
}

impl NodePlace {
    fn new(group: String, leases: String, name: &str) -> Self {
        Self { group, leases, name: name.to_owned() }
    }

    /// Path of the member node.
    pub(super) fn member(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Path of the lease node.
    pub(super) fn lease(&self) -> String {
        format!("{}/{}", self.leases, self.name)
    }
}

/// The life that made a node. Both nodes of a life were made in one transaction, so theirs are equal.
pub(super) fn incarnation(stat: &Stat) -> Incarnation {
    let (session, created) = (stat.ephemeral_owner.cast_unsigned(), stat.czxid.cast_unsigned());
    Incarnation::new((u128::from(session) << 64) | u128::from(created))
}

#[derive(Serialize)]
struct WorkerCapabilities<'a> {
    weight: u32,
    zone: &'a str,
    drivers: Vec<&'a str>,
    host: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    state_dir: String,
    version: &'a str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hold_ms: BTreeMap<String, u64>,
    /// What readers of the version before ignore; the fields before it are for them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    offers: BTreeMap<&'a str, OfferData<'a>>,
}

#[derive(Serialize)]
struct OfferData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fence_delay_ms: Option<u64>,
    plugs_ports: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    judges: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    logs: bool,
    kinds: Vec<&'static str>,
}

impl<'a> OfferData<'a> {
    fn new(capabilities: &'a DriverCapabilities) -> Self {
        let DriverCapabilities { state_dir, site, keeps_host: _, fence_delay, plugs_ports, judges, logs, kinds } =
            capabilities;
        Self {
            state_dir: state_dir.as_deref(),
            site: site.map(|id| id.to_string()),
            fence_delay_ms: fence_delay.map(millis_above),
            plugs_ports: *plugs_ports,
            judges: *judges,
            logs: *logs,
            kinds: kinds.iter().map(|kind| kind.as_str()).collect(),
        }
    }
}

#[derive(Serialize)]
struct CoordinatorCapabilities<'a> {
    address: &'a str,
}

#[derive(Serialize)]
struct HeartbeatData {
    beat: u64,
    lease_ms: u64,
    session: i64,
    /// What readers of the version before ignore.
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

#[derive(Serialize)]
struct Eviction<'a> {
    evicted: bool,
    by: &'a str,
    lease_ms: u64,
}

fn packed(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("numbers, texts and lists of texts always pack")
}

fn millis(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}

/// Rounded up: a shorter fence delay than the driver's would let the next owner act too early.
fn millis_above(fence_delay: Duration) -> u64 {
    u64::try_from(fence_delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What a worker publishes.
pub(super) fn worker_capabilities(profile: &Profile) -> Vec<u8> {
    let PreviousOffers { fence_delays, state_dir, .. } = PreviousOffers::of(&profile.drivers);
    packed(&WorkerCapabilities {
        // tooz takes no weight below 1.
        weight: profile.weight.max(1),
        zone: &profile.zone,
        drivers: profile.drivers.names().map(DriverName::as_str).collect(),
        host: &profile.host,
        state_dir,
        version: &profile.version,
        pid: profile.pid,
        process: profile.process.map(|process| process.to_string()),
        hold_ms: fence_delays.into_iter().map(|(driver, delay)| (driver.to_string(), millis_above(delay))).collect(),
        offers: profile.drivers.iter().map(|(driver, it)| (driver.as_str(), OfferData::new(it))).collect(),
    })
}

/// What a coordinator publishes.
pub(super) fn coordinator_capabilities(address: &str) -> Vec<u8> {
    packed(&CoordinatorCapabilities { address })
}

/// The `beat`-th heartbeat of the life that `session` leads. The session stands for the life, whose other half, the
/// creation of the node, is not known when the node is made; a session leads one life only.
/// A worker's says what the life is sealed with.
pub(super) fn heartbeat(beat: u64, lease: Duration, session: i64, seal: Option<&LifeSeal>) -> Vec<u8> {
    packed(&HeartbeatData { beat, lease_ms: millis(lease), session, seal: seal.map(LifeSeal::to_string) })
}

/// What the coordinator `by` writes over a lease node to evict its owner. The lease's length stays readable, because a
/// next leader waits for it.
pub(super) fn eviction(by: &CoordinatorId, lease: Duration) -> Vec<u8> {
    packed(&Eviction { evicted: true, by: by.as_str(), lease_ms: millis(lease) })
}

/// What stands in a lease node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseData {
    /// Number of the heartbeat and the session that sent it; `None` when it was written over.
    beat: Option<(u64, i64)>,
    /// How long its owner may act after a heartbeat; the longest possible when it does not say.
    pub(super) lease: Duration,
    /// A coordinator's mark, not just anybody's writing.
    pub(super) evicted: bool,
    /// What its life is sealed with, if it says so.
    pub(super) seal: Option<LifeSeal>,
}

impl LeaseData {
    /// Reads the data of a lease node.
    pub(super) fn read(data: &[u8]) -> Self {
        let map = unpacked(data);
        let number = |key: &str| map.get(key).and_then(Value::as_u64);
        let lease = number("lease_ms").map_or(MAX_LEASE, |ms| Duration::from_millis(ms).min(MAX_LEASE));
        // A person at ZooKeeper's shell writes plain text.
        let evicted = map.get("evicted").and_then(Value::as_bool).unwrap_or(false) || data.starts_with(b"evicted");
        let beat = number("beat").filter(|_| !evicted).zip(map.get("session").and_then(Value::as_i64));
        let seal = map.get("seal").and_then(Value::as_str).and_then(LifeSeal::from_hex);
        Self { beat, lease, evicted, seal }
    }

    /// Number of the heartbeat, if `session` sent it. A former life's may get into its successor's node when the versions
    /// happen to be equal; that is written over like any other.
    pub(super) fn beat_of(&self, session: i64) -> Option<u64> {
        self.beat.filter(|(_, by)| *by == session).map(|(beat, _)| beat)
    }
}

/// The address in a coordinator's capabilities; empty when there is none.
pub(super) fn address(data: &[u8]) -> String {
    unpacked(data).text("address")
}

/// What a member published, whoever it is. Its lease is zero: that stands in its lease node.
pub(super) fn profile(data: &[u8]) -> Profile {
    let map = unpacked(data);
    Profile {
        weight: weight(map.get("weight")),
        zone: map.text("zone"),
        host: map.text("host"),
        drivers: match map.get("offers") {
            Some(offers) => read_offers(offers),
            None => previous_offers(&map).read(),
        },
        version: map.text("version"),
        pid: map.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        // What cannot be read is no process that anybody can watch.
        process: map.get("process").and_then(Value::as_str).and_then(|text| text.parse().ok()),
        lease: Duration::ZERO,
    }
}

/// Drivers by name. One whose name is none is left out.
fn read_offers(value: &Value) -> DriverOffers {
    let entries = value.as_map().into_iter().flatten().take(MAX_DRIVERS);
    entries.filter_map(|(name, offer)| Some((name.as_str()?.parse().ok()?, read_offer(offer)))).collect()
}

/// What of an offer can be read. Its fence delay counts in any case; one that is broken elsewhere runs no kind, so that
/// nothing is placed on it.
fn read_offer(value: &Value) -> DriverCapabilities {
    let offer = Unpacked(value.as_map().cloned().unwrap_or_default());
    let state_dir = offer.get("state_dir").map(|dir| dir.as_str().unwrap_or("?").to_owned());
    let site = offer.get("site").map(|id| id.as_str().and_then(|id| id.parse().ok()));
    let is_broken = state_dir.as_ref().is_some_and(|dir| !dir.is_empty() && !is_state_dir(dir)) || site == Some(None);
    let kinds = offer.get("kinds").and_then(Value::as_array).into_iter().flatten().filter(|_| !is_broken);
    DriverCapabilities {
        state_dir: state_dir.filter(|_| !is_broken),
        site: site.flatten(),
        keeps_host: false,
        fence_delay: offer.get("fence_delay_ms").map(fence_delay),
        plugs_ports: offer.get("plugs_ports").and_then(Value::as_bool).unwrap_or(false),
        judges: offer.get("judges").and_then(Value::as_bool).unwrap_or(false),
        logs: offer.get("logs").and_then(Value::as_bool).unwrap_or(false),
        kinds: kinds.filter_map(|kind| KindName::find(kind.as_str()?)).collect(),
    }
}

/// What workers of the version before publish.
fn previous_offers(map: &Unpacked) -> PreviousOffers {
    let names = map.get("drivers").and_then(Value::as_array).into_iter().flatten();
    let delays = map.get("hold_ms").and_then(Value::as_map).into_iter().flatten();
    PreviousOffers {
        drivers: names.filter_map(|name| name.as_str()?.parse().ok()).collect(),
        fence_delays: delays.filter_map(|(name, it)| Some((name.as_str()?.parse().ok()?, fence_delay(it)))).collect(),
        state_dir: Some(map.text("state_dir")).filter(|dir| is_state_dir(dir)).unwrap_or_default(),
    }
}

/// One that cannot be read counts as the longest: its driver has one, and nobody knows which.
fn fence_delay(millis: &Value) -> Duration {
    millis.as_u64().map_or(MAX_FENCE_DELAY, Duration::from_millis).min(MAX_FENCE_DELAY)
}

/// A weight as tooz's partitioner takes it: 1 when there is none, true is 1, and below 1 no points.
fn weight(value: Option<&Value>) -> u32 {
    match value {
        Some(Value::Boolean(one)) => u32::from(*one),
        Some(Value::Integer(n)) => n.as_u64().map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        // tooz raises a TypeError for others, and for everybody.
        _ => 1,
    }
}

/// How deep what members publish may be nested; offers take four levels. The reader is recursive: at its own limit of 1,024 a
/// few hundred bytes of a member's node end a process by the size of its stack.
const MOST_NESTED: usize = 16;

/// A msgpack map with keys of text; empty when the data are something else.
struct Unpacked(Vec<(Value, Value)>);

fn unpacked(mut data: &[u8]) -> Unpacked {
    match rmpv::decode::read_value_with_max_depth(&mut data, MOST_NESTED) {
        Ok(Value::Map(entries)) => Unpacked(entries),
        _ => Unpacked(Vec::new()),
    }
}

impl Unpacked {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> String {
        self.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

/// The sequence number in the name of a contender's node, as kazoo finds it; `None` for other nodes.
pub(super) fn sequence(name: &str) -> Option<i64> {
    let (_, digits) = name.rsplit_once(LOCK_MARK)?;
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    (unsigned.len() == SEQUENCE_DIGITS && unsigned.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Contenders in the order in which they came, whoever made them.
pub(super) fn in_order(names: Vec<String>) -> Vec<String> {
    let mut contenders: Vec<(i64, String)> =
        names.into_iter().filter_map(|name| sequence(&name).map(|at| (at, name))).collect();
    contenders.sort_unstable();
    contenders.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use common::SiteId;
    use common::secret::LifeSecret;

    use super::*;

    /// What a driver of the process kind offered when there were these kinds.
    fn of_previous_kinds(state_dir: &str) -> DriverCapabilities {
        DriverCapabilities { kinds: KindName::PREVIOUS.into(), ..DriverCapabilities::of_all_kinds(Some(state_dir)) }
    }

    fn a_profile() -> Profile {
        Profile {
            weight: 2,
            zone: "a".to_owned(),
            host: "h".to_owned(),
            drivers: [(DriverName::process(), of_previous_kinds("/d"))].into(),
            version: "1".to_owned(),
            pid: 7,
            process: Some("5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/7/123".parse().expect("a process")),
            lease: Duration::from_secs(1),
        }
    }

    #[test]
    fn capabilities_are_the_bytes_that_tooz_writes() {
        // msgpack.packb({"weight": 2, "zone": "a", "drivers": ["process"], "host": "h", "state_dir": "/d",
        //     "version": "1", "pid": 7, "process": "5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/7/123",
        //     "offers": {"process": {"state_dir": "/d", "plugs_ports": False, "kinds": ["loadbalancer", "custom"]}}})
        let expected = b"\x89\xa6weight\x02\xa4zone\xa1a\xa7drivers\x91\xa7process\xa4host\xa1h\
            \xa9state_dir\xa2/d\xa7version\xa11\xa3pid\x07\
            \xa7process\xd9\x355f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/7/123\xa6offers\x81\xa7process\x83\xa9state_dir\xa2/d\
            \xabplugs_ports\xc2\xa5kinds\x92\xacloadbalancer\xa6custom";
        assert_eq!(worker_capabilities(&a_profile()), expected);
        assert_eq!(coordinator_capabilities("https://h:1"), b"\x81\xa7address\xabhttps://h:1");
    }

    #[test]
    fn what_a_worker_publishes_reads_back_without_its_lease() {
        let process = |dir| (DriverName::process(), DriverCapabilities::of_all_kinds(Some(dir)));
        let other = DriverCapabilities {
            fence_delay: Some(Duration::from_secs(20)),
            plugs_ports: true,
            judges: true,
            logs: true,
            kinds: [KindName::Custom].into(),
            ..DriverCapabilities::default()
        };
        let other = || (DriverName::new("other-cloud").expect("a name"), other.clone());
        let site = Some(SiteId::from_u128(7));
        let with_id =
            (DriverName::process(), DriverCapabilities { site, ..DriverCapabilities::of_all_kinds(Some("/d")) });
        for drivers in [[].into(), [with_id].into(), [process("")].into(), [process("/var/lib/rug"), other()].into()] {
            let published = Profile { drivers, ..a_profile() };
            let expected = Profile { lease: Duration::ZERO, ..published.clone() };
            assert_eq!(profile(&worker_capabilities(&published)), expected);
        }
        assert_eq!(address(&coordinator_capabilities("https://h:1")), "https://h:1");
    }

    #[test]
    fn capabilities_of_python_members_are_read_leniently() {
        // {"weight": 2}, None, {}, b"", {"weight": True}, {"weight": -3}, {"weight": "x"}, a list
        for (data, weight) in [
            (&b"\x81\xa6weight\x02"[..], 2),
            (b"\xc0", 1),
            (b"\x80", 1),
            (b"", 1),
            (b"\x81\xa6weight\xc3", 1),
            (b"\x81\xa6weight\xfd", 0),
            (b"\x81\xa6weight\xa1x", 1),
            (b"\x93\x01\x02\x03", 1),
            (b"\x81\xa6weight", 1),
        ] {
            let read = profile(data);
            assert_eq!((read.weight, read.drivers.len()), (weight, 0), "{data:?}");
        }
    }

    #[test]
    fn what_a_worker_of_the_version_before_publishes_is_read() {
        // {"drivers": ["process", "other"], "weight": 1, "state_dir": "/d", "hold_ms": {"process": 5}}
        let data = b"\x84\xa7drivers\x92\xa7process\xa5other\xa6weight\x01\xa9state_dir\xa2/d\
            \xa7hold_ms\x81\xa7process\x05";
        let process = DriverCapabilities { fence_delay: Some(Duration::from_millis(5)), ..of_previous_kinds("/d") };
        assert_eq!(profile(data).drivers, DriverOffers::from([(DriverName::process(), process)]));
    }

    #[test]
    fn offers_are_read_as_far_as_they_can_be() {
        let delayed = |delay| DriverCapabilities { fence_delay: delay, ..DriverCapabilities::default() };
        for (offers, expected) in [
            // 1, [], {}, {"x": 1}, {"x": {}}
            (&b"\x01"[..], None),
            (b"\x90", None),
            (b"\x80", None),
            (b"\x81\xa1x\x01", Some(delayed(None))),
            (b"\x81\xa1x\x80", Some(delayed(None))),
            // {"X": {}}: no name
            (b"\x81\xa1X\x80", None),
            // {"x": {"fence_delay_ms": "1"}}
            (b"\x81\xa1x\x81\xaefence_delay_ms\xa11", Some(delayed(Some(MAX_FENCE_DELAY)))),
            // {"x": {"fence_delay_ms": 1, "state_dir": "relative", "kinds": ["custom"]}}: nothing is placed on it
            (
                b"\x81\xa1x\x83\xaefence_delay_ms\x01\xa9state_dir\xa8relative\xa5kinds\x91\xa6custom",
                Some(delayed(Some(Duration::from_millis(1)))),
            ),
            // {"x": {"site": "0", "kinds": ["custom"]}}: nothing is placed on it
            (b"\x81\xa1x\x82\xa4site\xa10\xa5kinds\x91\xa6custom", Some(delayed(None))),
            // {"x": {"kinds": ["custom", "hovercraft", 7]}}
            (
                b"\x81\xa1x\x81\xa5kinds\x93\xa6custom\xaahovercraft\x07",
                Some(DriverCapabilities { kinds: [KindName::Custom].into(), ..DriverCapabilities::default() }),
            ),
        ] {
            let read = profile(&[b"\x81\xa6offers", offers].concat()).drivers;
            let expected = expected.map(|it| (DriverName::new("x").expect("a name"), it));
            assert_eq!(read, expected.into_iter().collect(), "{offers:?}");
        }
    }

    #[test]
    fn fence_delays_are_published_rounded_up_and_unreadable_ones_are_the_longest() {
        let read = |fence_delay| {
            let process = DriverCapabilities { fence_delay: Some(fence_delay), ..DriverCapabilities::default() };
            let published = Profile { drivers: [(DriverName::process(), process)].into(), ..a_profile() };
            profile(&worker_capabilities(&published)).fence_delay(&DriverName::process())
        };
        assert_eq!(read(Duration::from_secs(2)), Duration::from_secs(2));
        assert_eq!(read(Duration::from_nanos(1)), Duration::from_millis(1));
        assert_eq!(read(Duration::MAX), MAX_FENCE_DELAY);
        // {"drivers": ["process"], "hold_ms": {"process": "x", "other": 1}}
        let odd = b"\x82\xa7drivers\x91\xa7process\xa7hold_ms\x82\xa7process\xa1x\xa5other\x01";
        assert_eq!(profile(odd).fence_delay(&DriverName::process()), MAX_FENCE_DELAY);
        // {"drivers": ["process"], "hold_ms": 1}
        let none = b"\x82\xa7drivers\x91\xa7process\xa7hold_ms\x01";
        assert_eq!(profile(none).fence_delay(&DriverName::process()), Duration::ZERO);
    }

    #[test]
    fn a_lease_node_holds_a_heartbeat_or_was_written_over() {
        let lease = Duration::from_millis(1200);
        let seal = LifeSecret::new([3; 32]).seal();
        let read = LeaseData::read(&heartbeat(9, lease, -7, Some(&seal)));
        assert_eq!(read, LeaseData { beat: Some((9, -7)), lease, evicted: false, seal: Some(seal) });
        assert_eq!((read.beat_of(-7), read.beat_of(7)), (Some(9), None));
        let by = CoordinatorId::new("c1").expect("valid");
        assert_eq!(LeaseData::read(&eviction(&by, lease)), LeaseData { beat: None, lease, evicted: true, seal: None });
        let unknown = LeaseData { beat: None, lease: MAX_LEASE, evicted: false, seal: None };
        assert_eq!(LeaseData::read(b"evicted by hand"), LeaseData { evicted: true, ..unknown });
        assert_eq!(LeaseData::read(b""), unknown);
        assert_eq!(LeaseData::read(b"hello"), unknown);
    }

    #[test]
    fn contenders_are_those_of_kazoo_in_its_order() {
        let names = ["b__lock__0000000010", "a__lock__0000000011", "x", "leader", "c__lock__0000000009", "d__lock__12"];
        let ordered = in_order(names.map(str::to_owned).to_vec());
        assert_eq!(ordered, ["c__lock__0000000009", "b__lock__0000000010", "a__lock__0000000011"]);
    }

    #[test]
    fn nodes_lie_where_tooz_looks_for_them() {
        let layout = Layout::new("", None, "g").expect("valid");
        let worker = layout.worker(&WorkerId::new("w1").expect("valid"));
        assert_eq!((worker.member(), worker.lease()), ("/tooz/g.workers/w1".into(), "/rug/g/leases/w1".into()));
        let coordinator = layout.coordinator(&CoordinatorId::new("w1").expect("valid"));
        assert_eq!(coordinator.member(), "/tooz/g.coordinators/w1");
        assert_eq!(coordinator.lease(), "/rug/g/coordinator-leases/w1");
        assert_eq!(layout.contenders(), "/tooz/g.coordinators/leader");
    }
}
