//! Classes: the groups that the same members can take. Fair shares and bands are per class, since an appliance can only
//! balance the members that can hold it. What members hold that are cordoned, or drain, is no part of a share.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use common::ring;
use common::{Site, SiteId};

use super::book::{Book, Group};
use super::roster::{MemberRoster, narrow};
use super::{Config, Needs, Unplaced};

/// Groups with the same eligible members. All members are given by rank, ascending; *local* numbers index `takers`.
#[derive(Clone, Debug)]
pub(super) struct Class {
    pub(super) groups: Vec<u32>,
    /// Of what is being deleted: nobody has too little or too much of it.
    pub(super) deleting: bool,
    /// Members that can be given an appliance of the class.
    pub(super) takers: Vec<u32>,
    /// Members that could, were they connected: they keep what they have and are not asked to take.
    pub(super) waiting: Vec<u32>,
    /// The ring of the takers; made when something is to be placed.
    points: OnceLock<Vec<(u64, u32)>>,
}

impl Class {
    pub(super) fn local(&self, rank: u32) -> Option<u32> {
        self.takers.binary_search(&rank).ok().map(narrow)
    }

    /// The ring of the takers alone, as (upper half of the position, local).
    pub(super) fn points(&self, roster: &MemberRoster) -> &[(u64, u32)] {
        self.points.get_or_init(|| {
            let mut locals = vec![None; roster.members.len()];
            for (local, &rank) in (0u32..).zip(&self.takers) {
                locals[rank as usize] = Some(local);
            }
            let points = roster.ring.points().iter();
            points.filter_map(|p| Some((ring::top(p.position), locals[roster.ring_rank(p.member) as usize]?))).collect()
        })
    }
}

/// Puts the groups into classes.
pub(super) fn classify(roster: &MemberRoster, book: &Book) -> Vec<Class> {
    let nearby = Nearby::of(roster);
    let everyone: BTreeSet<u32> = (0..narrow(roster.members.len())).collect();
    let mut classes: BTreeMap<(bool, Vec<u32>, Vec<u32>), Vec<u32>> = BTreeMap::new();
    for (at, group) in book.groups() {
        let nearby = match &group.needs.site {
            Some(site) => Cow::Owned(nearby.to(site)),
            None => Cow::Borrowed(&everyone),
        };
        let able = nearby.iter().copied().filter(|&rank| roster.is_able(rank, &group.needs));
        let staying = able.filter(|&rank| !roster.member(rank).gives_up() && !roster.member(rank).cordoned);
        let (takers, waiting) = staying.partition(|&rank| roster.member(rank).connected);
        classes.entry((group.deleting, takers, waiting)).or_default().push(at);
    }
    let class = |((deleting, takers, waiting), mut groups): ((bool, Vec<u32>, Vec<u32>), Vec<u32>)| {
        // Their numbers tell which came first, and equal tables are to give equal plans whatever happened before.
        groups.sort_by_key(|at| &book.group(*at).needs);
        Class { groups, deleting, takers, waiting, points: OnceLock::new() }
    };
    classes.into_iter().map(class).collect()
}

/// Members by where they keep instances, so that not every one is asked for each site.
struct Nearby {
    with_id: BTreeMap<SiteId, BTreeSet<u32>>,
    at_place: BTreeMap<Site, BTreeSet<u32>>,
}

impl Nearby {
    fn of(roster: &MemberRoster) -> Self {
        let mut found = Self { with_id: BTreeMap::new(), at_place: BTreeMap::new() };
        for (rank, member) in (0u32..).zip(&roster.members) {
            for site in member.drivers.iter().filter_map(|(_, capabilities)| capabilities.site(&member.host)) {
                if let Some(id) = site.id() {
                    found.with_id.entry(id).or_default().insert(rank);
                }
                found.at_place.entry(site.place()).or_default().insert(rank);
            }
        }
        found
    }

    /// Those that may be of a site: which of them are, they say themselves.
    fn to(&self, site: &Site) -> BTreeSet<u32> {
        let with_id = site.id().and_then(|id| self.with_id.get(&id));
        with_id.into_iter().chain(self.at_place.get(&site.place())).flatten().copied().collect()
    }
}

/// Why no member can take an appliance with these needs, given that none can.
pub(super) fn why_unplaced(roster: &MemberRoster, needs: &Needs) -> Unplaced {
    let ranks = || 0..narrow(roster.members.len());
    if roster.members.is_empty() {
        Unplaced::NoMembers
    } else if !roster.members.iter().any(|m| m.drivers.get(&needs.driver).is_some()) {
        Unplaced::NoDriver(needs.driver.clone())
    } else if !roster
        .members
        .iter()
        .any(|m| m.drivers.get(&needs.driver).is_some_and(|d| d.kinds.contains(&needs.kind)))
    {
        Unplaced::NoKind(needs.driver.clone(), needs.kind)
    } else if let Some(site) = needs.site.as_ref().filter(|_| !ranks().any(|rank| roster.is_able(rank, needs))) {
        Unplaced::SiteGone(site.clone())
    } else if ranks()
        .any(|rank| roster.is_able(rank, needs) && !roster.member(rank).gives_up() && !roster.member(rank).cordoned)
    {
        Unplaced::NotConnected
    } else if ranks().any(|rank| roster.keeps(rank, needs)) {
        Unplaced::Cordoned
    } else {
        Unplaced::AllDraining
    }
}

/// Loads and bounds of the takers of one class, by local number.
#[derive(Clone, Debug)]
pub(super) struct Band {
    pub(super) load: Vec<u64>,
    pub(super) floor: Vec<u64>,
    pub(super) ceiling: Vec<u64>,
    /// Below this a taker is the first to be given what needs an owner anyway. At most one above the floor, it fills
    /// members before a growing fleet raises the floor past them, which would cost moves then.
    pub(super) soft: Vec<u64>,
}

impl Band {
    /// The band with what the takers hold now and `homeless` appliances still to be placed with them.
    ///
    /// Members that wait for a connection neither give nor take. The bounds are the wider ones of a sharing with and
    /// without them, so that nothing moves because a stream broke or has yet to come up.
    pub(super) fn new(roster: &MemberRoster, groups: &[&Group], class: &Class, homeless: u64, config: &Config) -> Self {
        let held = |rank: &u32| -> u64 {
            let handle = roster.handle(*rank);
            groups.iter().filter_map(|g| g.held.get(&handle)).map(super::book::Held::count).sum()
        };
        let weight = |rank: &u32| roster.weight(*rank);
        let load: Vec<u64> = class.takers.iter().map(held).collect();
        let total = load.iter().sum::<u64>() + homeless;
        let weights: u64 = class.takers.iter().map(weight).sum();
        let total_waiting = total + class.waiting.iter().map(held).sum::<u64>();
        let weights_waiting = weights + class.waiting.iter().map(weight).sum::<u64>();
        let band = config.band.max(1.0);
        let mut bounds = Self { floor: Vec::new(), ceiling: Vec::new(), soft: Vec::new(), load };
        if class.deleting {
            let none = vec![0; class.takers.len()];
            (bounds.floor, bounds.soft) = (none.clone(), none);
            bounds.ceiling = vec![u64::MAX; class.takers.len()];
            return bounds;
        }
        for rank in &class.takers {
            let fair = |total: u64, weights: u64| total as f64 * weight(rank) as f64 / weights as f64;
            let fair = [fair(total, weights), fair(total_waiting, weights_waiting)];
            let (low, high) = (fair[0].min(fair[1]), fair[0].max(fair[1]));
            bounds.floor.push(round_down(low / band));
            bounds.soft.push(round_up(low / band));
            bounds.ceiling.push(round_up(high * band));
        }
        bounds
    }

    pub(super) fn excess(&self, local: u32) -> u64 {
        self.load[local as usize].saturating_sub(self.ceiling[local as usize])
    }

    pub(super) fn deficit(&self, local: u32) -> u64 {
        self.floor[local as usize].saturating_sub(self.load[local as usize])
    }

    pub(super) fn spare(&self, local: u32) -> u64 {
        self.load[local as usize].saturating_sub(self.floor[local as usize])
    }

    pub(super) fn has_room(&self, local: u32) -> bool {
        self.load[local as usize] < self.ceiling[local as usize]
    }

    pub(super) fn locals(&self) -> std::ops::Range<u32> {
        0..narrow(self.load.len())
    }
}

/// The error of the divisions before, relative; without it a share of exactly 3 could come out as a floor of 2.
const TOLERANCE: f64 = 1e-12;

fn round_down(x: f64) -> u64 {
    (x * (1.0 + TOLERANCE)).floor() as u64
}

fn round_up(x: f64) -> u64 {
    (x * (1.0 - TOLERANCE)).ceil() as u64
}
