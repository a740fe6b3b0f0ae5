//! Who should hold what: members, policy and the table as it is -> moves, with a reason for each.
//!
//! The planner keeps a copy of the table in the order of the ring and answers with [`Plan`]s. A plan changes nothing:
//! the caller carries moves out as hand-offs and tells with [`Planner::set_owner`] and [`Planner::set_movable`] how they
//! go; until then the next plan lists them again. An appliance is counted at one member at most, so once a hand-off has
//! begun it is set to its new owner and marked as not movable, lest the next plan finds the old owner still too full.
//!
//! Rules in their order: live and connected, driver, site, not drained, ceiling of the band, floor of the band, ring
//! preference; pins and zones will stand before the ceiling and after it. Under [`Strategy::Ring`] the ring alone
//! decides. See `bounded.rs` and `exact.rs` for the two strategies. Equal tables and members give equal plans, whatever
//! happened before.

mod book;
mod bounded;
#[cfg(feature = "canon")]
mod canon;
mod classes;
mod exact;
mod explain;
mod index;
mod roster;
mod walk;

use std::collections::BTreeSet;

use common::appliance::Driver;
use common::ring::{self, Ring};
use common::{Site, WorkerId};
use serde::{Deserialize, Serialize};

use book::{Book, Entry};
use classes::Class;
use exact::Unsettled;
use roster::Roster;

/// Index of an appliance in the table and the planner; reused after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// How members share the appliances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Ring preference inside a band around the fair share.
    #[default]
    Bounded,
    /// The owner python-tooz names, always.
    Ring,
}

/// Settings of the planner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How members share the appliances.
    pub strategy: Strategy,
    /// Width of the band: every member stays within `[floor(fair / band), ceil(fair * band)]`. Nearer to 1 is more even
    /// and moves more. At least 1.
    pub band: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { strategy: Strategy::Bounded, band: 1.05 }
    }
}

/// A member of the ring, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: WorkerId,
    /// Share of the appliances relative to others, as published. 0 counts as 1 for a fair share, and as no points on the
    /// ring under [`Strategy::Ring`].
    pub weight: u32,
    /// Failure zone; empty when not given.
    pub zone: String,
    /// Where its instances of host-bound drivers are kept.
    pub site: Site,
    /// Drivers it offers. Empty: a member of the ring that takes no share (a Python service).
    pub drivers: BTreeSet<Driver>,
    /// Live and with a settled stream: may be given appliances. One that is not keeps what it has, and is neither asked
    /// to take nor a reason for others to give.
    pub connected: bool,
    /// Gets nothing new and gives up what it has.
    pub draining: bool,
}

/// What an appliance needs of the member that takes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// The driver it uses.
    pub driver: Driver,
    /// Where its instances are kept, once they are bound to it.
    pub site: Option<Site>,
}

/// Why an appliance is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It has no owner.
    Unowned,
    /// It has no owner because it is new. The planner says [`Reason::Unowned`]; the table knows more.
    New,
    /// It has no owner because its former one is gone. As for [`Reason::New`].
    OwnerGone,
    /// Back to the worker of the same name that held it before.
    Returned,
    /// Its owner drains.
    Draining,
    /// Its owner lacks what it needs.
    Ineligible,
    /// Its owner holds more than the band allows.
    OverCeiling,
    /// Another member holds less than the band allows.
    UnderFloor,
    /// Strategy `ring`: the ring names another owner.
    RingOwner,
}

/// Why no member can take an appliance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unplaced {
    /// There are no members.
    NoMembers,
    /// No member offers the driver.
    NoDriver(Driver),
    /// No member is of the site where its instances are kept.
    SiteGone(Site),
    /// Members that could take it are not connected.
    NotConnected,
    /// Members that could take it drain.
    AllDraining,
    /// Members that could take it declined it recently.
    Declined,
    /// Strategy `ring`: the owner the ring names cannot take it.
    RingOwnerCannot(WorkerId),
    /// So many workers died while a step of it ran. The planner never says this, for it is not asked.
    Quarantined(u32),
    /// Most workers vanished at once, its owner among them. Not the planner's word either.
    Frozen(WorkerId),
    /// Its owner vanished and may be back soon. Not the planner's word either.
    WaitsFor(WorkerId),
}

/// One appliance to be taken to another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The appliance.
    pub slot: Slot,
    /// Who holds it now; `None` when nobody does.
    pub from: Option<WorkerId>,
    /// Who shall hold it.
    pub to: WorkerId,
    /// Why.
    pub reason: Reason,
}

/// A member that stays outside its band once a plan is carried out: what it holds, or what nobody else accepts, cannot
/// be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BandRelaxed {
    /// The member.
    pub member: WorkerId,
    /// Needs of the appliances this is about, one of them where several share the band.
    pub needs: Needs,
    /// Appliances it will hold.
    pub load: u64,
    /// Fewest it should hold.
    pub floor: u64,
    /// Most it should hold.
    pub ceiling: u64,
}

/// What should change, and what cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are to be made: without an owner (these are exempt from pacing), with one that drains
    /// or cannot hold it, and for balance. An appliance occurs at most once.
    pub moves: Vec<Move>,
    /// Appliances without a live owner that no member can take.
    pub unplaced: Vec<(Slot, Unplaced)>,
    /// Members that stay outside their band.
    pub relaxed: Vec<BandRelaxed>,
}

/// What speaks against giving an appliance to a member; the first that applies, in the order of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// It does not offer the driver.
    NoDriver,
    /// It is of another site than where the instances are kept.
    OtherSite,
    /// It has no settled stream.
    NotConnected,
    /// It drains.
    Draining,
    /// It declined the appliance recently.
    Declined,
    /// Strategy `ring`: the ring names another owner.
    NotRingOwner,
    /// It holds as much as the band allows.
    AtCeiling,
}

/// A member as a candidate for one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub member: WorkerId,
    /// What speaks against it; `None` when it can be given the appliance, or holds it rightly.
    pub refusal: Option<Refusal>,
    /// The appliance is counted here.
    pub is_owner: bool,
    /// Appliances it holds of those that share this one's band.
    pub load: u64,
    /// Fewest of them it should hold; 0 when it takes no share.
    pub floor: u64,
    /// Most of them it should hold; 0 when it takes no share.
    pub ceiling: u64,
}

/// The planner; see the head of this file.
#[derive(Clone, Debug)]
pub struct Planner {
    config: Config,
    roster: Roster,
    book: Book,
    /// Which groups share a band; `None` after members or needs changed.
    classes: Option<Vec<Class>>,
    unsettled: Unsettled,
}

impl Planner {
    /// A planner without members or appliances.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, roster: Roster::new(), book: Book::default(), classes: None, unsettled: Unsettled::default() }
    }

    /// Adds an appliance, or replaces the one in this slot. Memory is taken up to the highest slot in use.
    pub fn insert(
        &mut self,
        slot: Slot,
        placement_key: &str,
        needs: Needs,
        owner: Option<&WorkerId>,
        former: Option<&WorkerId>,
    ) {
        self.remove(slot);
        let group = self.group_of(&needs);
        let entry = Entry {
            position: ring::top(ring::position(placement_key)),
            group,
            owner: self.roster.acquire(owner),
            former: self.roster.acquire(former),
            movable: true,
        };
        self.book.insert(slot, entry);
        self.note(slot, &entry);
    }

    /// Removes an appliance, if there is one.
    pub fn remove(&mut self, slot: Slot) {
        if let Some(entry) = self.book.remove(slot) {
            self.roster.release(entry.owner);
            self.roster.release(entry.former);
            self.book.excluded.remove(&slot);
            self.unsettled.forget(slot);
        }
    }

    /// Changes what an appliance needs, as when its instances become bound to a site.
    pub fn set_needs(&mut self, slot: Slot, needs: Needs) {
        if self.book.entry(slot).is_none_or(|entry| self.book.group(entry.group).needs == needs) {
            return;
        }
        let group = self.group_of(&needs);
        if let Some(mut entry) = self.book.remove(slot) {
            entry.group = group;
            self.book.insert(slot, entry);
        }
    }

    /// Says where the appliance is counted: its owner, or the member it is being granted to; `None` when it wants an
    /// owner. `former` is the name of its last owner, to whom it returns when that is possible within the band.
    pub fn set_owner(&mut self, slot: Slot, owner: Option<&WorkerId>, former: Option<&WorkerId>) {
        let Some(&before) = self.book.entry(slot) else { return };
        let (owner, former) = (self.roster.acquire(owner), self.roster.acquire(former));
        self.book.change(slot, |entry| (entry.owner, entry.former) = (owner, former));
        self.roster.release(before.owner);
        self.roster.release(before.former);
        self.note(slot, &Entry { owner, ..before });
    }

    /// Says whether plans may pick the appliance. One in the middle of a hand-off, or fenced, must not be picked, though
    /// it counts where it is.
    pub fn set_movable(&mut self, slot: Slot, movable: bool) {
        self.book.change(slot, |entry| entry.movable = movable);
    }

    /// Says which members declined the appliance and are not to be asked; replaces what was said before.
    pub fn set_excluded(&mut self, slot: Slot, members: BTreeSet<WorkerId>) {
        if members.is_empty() || self.book.entry(slot).is_none() {
            self.book.excluded.remove(&slot);
        } else {
            self.book.excluded.insert(slot, members);
        }
    }

    /// Replaces the members. Weights are taken as at least 1 and at most [`ring::MAX_WEIGHT`].
    pub fn set_members(&mut self, members: Vec<Member>) {
        let changed = self.roster.replace(members, self.config.strategy);
        self.unsettled.add(&changed);
        self.book.drop_empty_groups();
        self.classes = None;
    }

    /// The members, in the order of their names.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.roster.members
    }

    /// The ring of the members; under [`Strategy::Ring`] without those that drain.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.roster.ring
    }

    /// Counts the calls of [`Planner::set_members`].
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.roster.version
    }

    /// What should change. Costs what it answers, the appliances without an owner, and members times classes; under
    /// [`Strategy::Ring`] also the arcs of the ring in which something is still to be moved. Asked twice it answers the
    /// same.
    pub fn plan(&mut self) -> Plan {
        match self.config.strategy {
            Strategy::Bounded => {
                let (roster, book) = (&self.roster, &self.book);
                let classes = self.classes.get_or_insert_with(|| classes::classify(roster, book));
                bounded::plan(roster, book, classes, &self.config).into_plan()
            }
            Strategy::Ring => exact::plan(&self.roster, &self.book, &mut self.unsettled).into_plan(),
        }
    }

    /// Appliances counted at a worker, which need not be a member.
    #[must_use]
    pub fn load(&self, worker: &WorkerId) -> u64 {
        let Some(handle) = self.roster.find(worker) else { return 0 };
        self.book.groups().filter_map(|(_, group)| group.held.get(&handle)).map(book::Held::count).sum()
    }

    /// Every member as a candidate for an appliance, in order of ring preference, members that are not on the ring last.
    /// Empty when there is no such appliance.
    #[must_use]
    pub fn explain(&self, slot: Slot) -> Vec<Candidate> {
        explain::explain(&self.roster, &self.book, self.classes.as_deref(), &self.config, slot)
    }

    fn group_of(&mut self, needs: &Needs) -> u32 {
        let (group, made) = self.book.group_of(needs);
        if made {
            self.classes = None;
        }
        group
    }

    fn note(&mut self, slot: Slot, entry: &Entry) {
        if self.config.strategy == Strategy::Ring {
            self.unsettled.note(&self.roster, slot, entry.position, entry.owner);
        }
    }
}

/// A plan being made.
#[derive(Debug, Default)]
struct Output {
    unowned: Vec<Move>,
    displaced: Vec<Move>,
    balance: Vec<Move>,
    unplaced: Vec<(Slot, Unplaced)>,
    relaxed: Vec<BandRelaxed>,
}

impl Output {
    /// Makes room for about so many moves between members: growing step by step takes a tenth of the time of a plan.
    fn expect(&mut self, moves: f64) {
        self.unowned.reserve(moves as usize);
        self.balance.reserve(moves as usize);
    }

    /// Adds a move from the worker with handle `from` to the member of rank `to`.
    fn push(&mut self, roster: &Roster, slot: Slot, from: u32, to: u32, reason: Reason) {
        let list = match reason {
            Reason::Unowned | Reason::New | Reason::OwnerGone | Reason::Returned => &mut self.unowned,
            Reason::Draining | Reason::Ineligible => &mut self.displaced,
            Reason::OverCeiling | Reason::UnderFloor | Reason::RingOwner => &mut self.balance,
        };
        list.push(Move { slot, from: roster.name(from).cloned(), to: roster.member(to).id.clone(), reason });
    }

    fn into_plan(self) -> Plan {
        let mut moves = self.unowned;
        for mut more in [self.displaced, self.balance] {
            if moves.is_empty() {
                moves = more;
            } else {
                moves.append(&mut more);
            }
        }
        let mut unplaced = self.unplaced;
        unplaced.sort_unstable_by_key(|(slot, _)| *slot);
        Plan { moves, unplaced, relaxed: self.relaxed }
    }
}

#[cfg(test)]
mod tests;
