//! Drivers by name, and what a worker says about each that it offers.
//!
//! Where instances run is open: the coordinator knows no driver, only what live workers publish ([`DriverOffers`]).
//! Placement, admission, fence delays and `explain` go by that. What workers of the version before published (names, fence
//! delays, one directory for all) is read through [`PreviousOffers`], the only place that knows drivers by name.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kind::KindName;
use crate::site::{Site, SiteId};

/// Longest name of a driver, in bytes.
pub const MAX_DRIVER_NAME: usize = 63;

/// Most drivers one worker can offer. Every worker's offers are kept by the leader and travel with each `Hello`.
pub const MAX_DRIVERS: usize = 64;

/// Longest fence delay that makes sense; anything longer is a unit mix-up, and is taken for this.
pub const MAX_FENCE_DELAY: Duration = Duration::from_secs(24 * 3600);

/// Names that are kept for reuse, so that a million appliances of one driver share one copy of its name.
const MAX_INTERNED: usize = 64;

/// Name of a driver: 1 to 63 of `a-z 0-9 - .`, starting with a letter and ending with a letter or digit. Whether a worker
/// offers a driver of that name is another question.
///
/// One pointer, since every appliance has its driver in several places; cheap to clone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DriverName(Arc<DriverText>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct DriverText(Box<str>);

/// The text is not a [`DriverName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a driver: 1 to 63 of a-z 0-9 - . that start with a letter and end with a letter or digit"
)]
pub struct InvalidDriverName(String);

/// Names in use, by text.
static INTERNED: Mutex<BTreeSet<DriverName>> = Mutex::new(BTreeSet::new());

impl DriverName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidDriverName`] with the start of the text.
    pub fn new(text: &str) -> Result<Self, InvalidDriverName> {
        let letter = |c: u8| c.is_ascii_lowercase();
        let end = |c: u8| letter(c) || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= MAX_DRIVER_NAME
            && bytes.first().copied().is_some_and(letter)
            && bytes.last().copied().is_some_and(end)
            && bytes.iter().all(|&c| end(c) || matches!(c, b'-' | b'.'));
        if valid { Ok(Self::interned(text)) } else { Err(InvalidDriverName(text.chars().take(80).collect())) }
    }

    /// Detached local processes: what an appliance uses that names no driver.
    #[must_use]
    pub fn process() -> Self {
        Self::interned("process")
    }

    /// In memory, for benchmarks and soak runs.
    #[must_use]
    pub fn simulated() -> Self {
        Self::interned("simulated")
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.0
    }

    /// The shared copy of a name. When clients have made up more names than are kept, those that nobody uses go.
    fn interned(text: &str) -> Self {
        let mut names = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(text) {
            return known.clone();
        }
        if names.len() >= MAX_INTERNED {
            names.retain(|name| Arc::strong_count(&name.0) > 1);
        }
        let name = Self(Arc::new(DriverText(text.into())));
        if names.len() < MAX_INTERNED {
            names.insert(name.clone());
        }
        name
    }
}

impl PartialOrd for DriverName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DriverName {
    /// By text. The planner compares names often, and mostly a name with itself.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { std::cmp::Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl std::hash::Hash for DriverName {
    /// As the text, for [`Borrow`].
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for DriverName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DriverName {
    type Err = InvalidDriverName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for DriverName {
    type Error = InvalidDriverName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<DriverName> for String {
    fn from(name: DriverName) -> Self {
        name.as_str().to_owned()
    }
}

/// What a worker says about one driver that it offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DriverCapabilities {
    /// For a host-bound driver: the directory on the worker's host in which it keeps its instances, as an absolute path.
    /// Its appliances stay with workers of that host and directory, and share the ports of the host. Empty when the host
    /// alone says where they are, as it was for workers that published no directory.
    pub state_dir: Option<String>,
    /// Id of that directory, by which its appliances are bound to it. `None` for workers of versions before ids: host and path
    /// stand for it then.
    pub site: Option<SiteId>,
    /// Not published: the configuration says on which hosts its worker may be. What is bound to that directory then counts as
    /// its own only under the name of the host where it was bound, because anybody can read the id.
    pub keeps_host: bool,
    /// How long after they were sent its calls may take effect, which is also how long after the lease of its worker.
    /// `None`: the far side refuses older tokens, so that nobody has to wait.
    pub fence_delay: Option<Duration>,
    /// It attaches and detaches ports of running instances.
    pub plugs_ports: bool,
    /// It can be asked what is against instances of a specification before there is one.
    pub judges: bool,
    /// It can be asked what instances have printed.
    pub logs: bool,
    /// Kinds of appliances it can run. Kinds that this version does not know are left out when it is read.
    pub kinds: BTreeSet<KindName>,
}

impl DriverCapabilities {
    /// Runs every kind of this version, fenced by tokens; bound to its host if there is a directory.
    #[must_use]
    pub fn of_all_kinds(state_dir: Option<&str>) -> Self {
        Self {
            state_dir: state_dir.map(str::to_owned),
            kinds: KindName::ALL.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// Whether appliances of this driver stay on the host where they were first placed.
    #[must_use]
    pub const fn is_host_bound(&self) -> bool {
        self.state_dir.is_some()
    }

    /// Where its instances are kept by a worker on `host`; `None` when they are not bound to a host.
    #[must_use]
    pub fn site(&self, host: &str) -> Option<Site> {
        self.state_dir.as_ref().map(|dir| match self.site {
            Some(id) => Site::identified(id, host, dir),
            None => Site::new(host, dir),
        })
    }

    /// Whether a worker on `host` keeps instances of this driver at `site`.
    #[must_use]
    pub fn is_at(&self, host: &str, site: &Site) -> bool {
        let same_host = site.host() == host;
        match (&self.state_dir, self.site, site.id()) {
            (None, ..) => false,
            (Some(_), Some(own), Some(id)) => own == id && (same_host || !self.keeps_host),
            (Some(dir), ..) => same_host && site.state_dir() == dir,
        }
    }

    /// Whether a worker on `host` can have an appliance of this kind, whose instances are bound to `site` if there is one.
    #[must_use]
    pub fn can_run(&self, host: &str, kind: KindName, site: Option<&Site>) -> bool {
        self.kinds.contains(&kind) && site.is_none_or(|site| self.is_at(host, site))
    }
}

/// The drivers a worker offers, by name. Clones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DriverOffers(Arc<BTreeMap<DriverName, DriverCapabilities>>);

impl DriverOffers {
    /// What is said about a driver; `None` when it is not offered.
    #[must_use]
    pub fn get(&self, driver: &DriverName) -> Option<&DriverCapabilities> {
        self.0.get(driver)
    }

    /// Whether none is offered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of drivers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Every driver, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&DriverName, &DriverCapabilities)> {
        self.0.iter()
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &DriverName> {
        self.0.keys()
    }
}

impl FromIterator<(DriverName, DriverCapabilities)> for DriverOffers {
    fn from_iter<I: IntoIterator<Item = (DriverName, DriverCapabilities)>>(offers: I) -> Self {
        Self(Arc::new(offers.into_iter().collect()))
    }
}

impl<const N: usize> From<[(DriverName, DriverCapabilities); N]> for DriverOffers {
    fn from(offers: [(DriverName, DriverCapabilities); N]) -> Self {
        offers.into_iter().collect()
    }
}

/// What a worker of the version before published of its drivers. Written beside [`DriverOffers`] for readers of that
/// version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousOffers {
    /// Names of the drivers.
    pub drivers: BTreeSet<DriverName>,
    /// Fence delays; a driver that is missing is fenced by tokens.
    pub fence_delays: BTreeMap<DriverName, Duration>,
    /// The directory of every host-bound driver; empty when none is offered, or when the host alone says where.
    pub state_dir: String,
}

impl PreviousOffers {
    /// Capabilities of the two drivers that the version before had; it could offer no others.
    #[must_use]
    pub fn read(self) -> DriverOffers {
        let capabilities = |driver: DriverName| {
            let capabilities = DriverCapabilities {
                state_dir: match previous_is_host_bound(&driver) {
                    None => return None,
                    Some(true) => Some(self.state_dir.clone()),
                    Some(false) => None,
                },
                site: None,
                keeps_host: false,
                fence_delay: self.fence_delays.get(&driver).map(|delay| (*delay).min(MAX_FENCE_DELAY)),
                plugs_ports: false,
                judges: false,
                logs: false,
                kinds: KindName::PREVIOUS.into(),
            };
            Some((driver, capabilities))
        };
        self.drivers.iter().cloned().filter_map(capabilities).collect()
    }

    /// What of `offers` the version before can make sense of.
    #[must_use]
    pub fn of(offers: &DriverOffers) -> Self {
        let known = || offers.iter().filter(|(name, _)| previous_is_host_bound(name).is_some());
        Self {
            drivers: known().map(|(name, _)| name.clone()).collect(),
            fence_delays: known().filter_map(|(name, it)| Some((name.clone(), it.fence_delay?))).collect(),
            state_dir: known().find_map(|(_, it)| it.state_dir.clone()).unwrap_or_default(),
        }
    }
}

/// Whether a driver of the version before is host-bound; `None` for drivers that it did not have, of which only workers say.
#[must_use]
pub fn previous_is_host_bound(driver: &DriverName) -> Option<bool> {
    match driver.as_str() {
        "process" => Some(true),
        "simulated" => Some(false),
        _ => None,
    }
}

/// Whether appliances of a driver share the ports of their host, by what workers have published.
///
/// Counts for admission only: placement asks the worker that is to get a grant. Where workers differ, as while a fleet is
/// being updated, one that says so is enough. What is known stays when the last worker that offers the driver is gone; a
/// driver that nobody has offered yet counts as host-bound, because a port that is given twice is worse than one that is
/// refused. The two drivers of the version before are known from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostBoundDrivers(BTreeMap<DriverName, bool>);

impl HostBoundDrivers {
    /// Whether it is host-bound, if any worker has said.
    #[must_use]
    pub fn get(&self, driver: &DriverName) -> Option<bool> {
        self.0.get(driver).copied().or_else(|| previous_is_host_bound(driver))
    }

    /// Whether its appliances have to be taken to share the ports of their host.
    #[must_use]
    pub fn shares_ports(&self, driver: &DriverName) -> bool {
        self.get(driver).unwrap_or(true)
    }

    /// Takes in what all workers offer that are there now. Returns the drivers for which
    /// [`HostBoundDrivers::shares_ports`] answers otherwise than before.
    pub fn learn<'a>(&mut self, workers: impl IntoIterator<Item = &'a DriverOffers>) -> Vec<DriverName> {
        let mut offered: BTreeMap<&DriverName, bool> = BTreeMap::new();
        for (name, capabilities) in workers.into_iter().flat_map(DriverOffers::iter) {
            *offered.entry(name).or_default() |= capabilities.is_host_bound();
        }
        let mut changed = Vec::new();
        for (name, bound) in offered {
            if self.shares_ports(name) != bound {
                changed.push(name.clone());
            }
            self.0.insert(name.clone(), bound);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DriverName {
        DriverName::new(text).expect("a name")
    }

    #[test]
    fn a_name_is_checked_and_any_text_of_that_form_is_one() {
        for text in ["process", "k8s", "open-stack.v2", "a", &"a".repeat(63)] {
            assert_eq!(name(text).as_str(), text);
        }
        for text in ["", "8", "-a", "a-", "a.", "Process", "a b", "a/b", "a_b", "é", &"a".repeat(64)] {
            let error = DriverName::new(text).expect_err(text).to_string();
            assert!(error.contains("1 to 63 of a-z 0-9 - ."), "{error}");
        }
    }

    #[test]
    fn names_are_stored_as_the_text_they_always_were() {
        assert_eq!(serde_json::to_string(&DriverName::process()).expect("text"), r#""process""#);
        assert_eq!(serde_json::from_str::<DriverName>(r#""simulated""#).expect("a name"), DriverName::simulated());
        assert!(serde_json::from_str::<DriverName>(r#""no name""#).is_err());
    }

    #[test]
    fn equal_names_share_their_text_however_many_others_were_asked_for() {
        let kept = name("kept");
        for n in 0..10 * MAX_INTERNED {
            let other = name(&format!("n{n}"));
            assert_eq!(other.as_str(), format!("n{n}"));
        }
        assert!(Arc::ptr_eq(&kept.0, &name("kept").0));
        assert!(name("a") < name("b") && name("process") == DriverName::process());
    }

    fn process(dir: &str) -> DriverCapabilities {
        DriverCapabilities {
            state_dir: Some(dir.to_owned()),
            kinds: KindName::PREVIOUS.into(),
            ..DriverCapabilities::default()
        }
    }

    #[test]
    fn a_driver_can_run_its_kinds_where_their_instances_are_kept() {
        let (one, other) = (KindName::ALL[0], KindName::ALL[1]);
        let bound = DriverCapabilities { kinds: [one].into(), ..process("/a") };
        assert!(bound.can_run("h", one, None) && !bound.can_run("h", other, None));
        assert!(bound.can_run("h", one, Some(&Site::new("h", "/a"))));
        for site in [Site::new("h", "/b"), Site::new("h", ""), Site::new("g", "/a")] {
            assert!(!bound.can_run("h", one, Some(&site)), "{site}");
        }
        let free = DriverCapabilities { state_dir: None, ..bound };
        assert!(free.can_run("h", one, None) && !free.can_run("h", one, Some(&Site::new("h", "/a"))));
    }

    #[test]
    fn what_the_version_before_published_is_read_and_written() {
        let previous = PreviousOffers {
            drivers: [DriverName::process(), DriverName::simulated()].into(),
            fence_delays: [(DriverName::simulated(), Duration::from_secs(2))].into(),
            state_dir: "/var/lib/rug".to_owned(),
        };
        let offers = previous.clone().read();
        assert_eq!(offers.get(&DriverName::process()), Some(&process("/var/lib/rug")));
        let simulated = offers.get(&DriverName::simulated()).expect("offered");
        assert_eq!((simulated.state_dir.as_ref(), simulated.fence_delay), (None, Some(Duration::from_secs(2))));
        assert_eq!(PreviousOffers::of(&offers), previous);

        let with = offers.iter().map(|(n, c)| (n.clone(), c.clone())).chain([(name("other"), process("/other"))]);
        assert_eq!(PreviousOffers::of(&with.collect()), previous, "it knows no other drivers");
        let others = PreviousOffers { drivers: [name("other")].into(), ..PreviousOffers::default() };
        assert!(others.read().is_empty());
    }

    #[test]
    fn instances_are_found_by_the_id_of_their_directory_under_every_name_of_its_host() {
        let (one, other) = (SiteId::from_u128(1), SiteId::from_u128(2));
        let known = DriverCapabilities { site: Some(one), ..process("/a") };
        let bound = known.site("h").expect("it is host-bound");
        assert_eq!(bound, Site::identified(one, "h", "/a"));
        assert!(known.is_at("h", &bound) && known.is_at("renamed", &bound));
        let twin = DriverCapabilities { site: Some(other), ..process("/a") };
        assert!(!twin.is_at("h", &bound), "another host of the same name and path");
        // Grants of the version before are bound to host and path, and its workers publish these only.
        assert!(known.is_at("h", &Site::new("h", "/a")) && !known.is_at("renamed", &Site::new("h", "/a")));
        assert!(process("/a").is_at("h", &bound) && !process("/a").is_at("renamed", &bound));
        let limited = DriverCapabilities { keeps_host: true, ..known };
        assert!(limited.is_at("h", &bound) && !limited.is_at("renamed", &bound));
        assert!(!DriverCapabilities { state_dir: None, ..limited }.is_at("h", &bound));
    }

    #[test]
    fn whether_a_driver_is_host_bound_is_learned_and_kept() {
        let free = DriverCapabilities::default;
        let mut bound = HostBoundDrivers::default();
        let x = name("x");
        assert_eq!(bound.get(&DriverName::process()), Some(true));
        assert_eq!(bound.get(&DriverName::simulated()), Some(false));
        assert_eq!((bound.get(&x), bound.shares_ports(&x)), (None, true), "nobody has said anything");
        let (host, cloud) =
            (DriverOffers::from([(x.clone(), process("/d"))]), DriverOffers::from([(x.clone(), free())]));
        assert_eq!(bound.learn([&cloud]), vec![x.clone()]);
        assert_eq!((bound.get(&x), bound.shares_ports(&x)), (Some(false), false));
        assert_eq!(bound.learn([&cloud, &host]), vec![x.clone()], "one that is bound is enough");
        assert_eq!(bound.learn([&host]), vec![]);
        assert_eq!(bound.learn([]), vec![]);
        assert_eq!(bound.get(&x), Some(true), "kept when nobody offers it");
    }
}
