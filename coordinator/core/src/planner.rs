//! Who should hold what: members, policy and the table as it is -> moves, with a reason for each.
//!
//! The planner keeps a copy of the table in the order of the ring and proposes [`Plan`]s. A proposal changes nothing, and
//! it can be asked for under [`Assumptions`]. The caller has a plan adopted, which a plan of an older version of the table
//! is not, carries its moves out as hand-offs and reports with [`Planner::set_owner`] and [`Planner::set_movable`] how
//! they go; until then the next plan lists them again. An appliance is counted at one member at most, so once a hand-off has
//! begun it is set to its new owner and marked as not movable, lest the next plan finds the old owner still too full.
//!
//! Who may take an appliance is decided first: live and connected, driver, kind, site, neither drained nor cordoned, pin. Orders
//! of operators never leave without an owner what the former one could have again. Among those who may, in this
//! order: the former owner below its ceiling, members below their floor (the one the ring prefers first), then members below
//! their ceiling. Where tenants are [spread](Spread), zones with fewer of their appliances go before the preference of the ring. What is being deleted gets an owner by the same rules, and takes no part in the balance. Under
//! [`Strategy::Ring`] the ring alone decides. See `bounded.rs` and `exact.rs` for the two strategies.
//! Equal tables and members give equal plans, whatever happened before; under `Ring` the moves may be listed in another
//! order.

mod book;
mod bounded;
#[cfg(feature = "canon")]
mod canon;
mod classes;
mod exact;
mod explain;
mod forecast;
mod index;
mod movable;
mod pins;
mod plan;
mod roster;
mod spread;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use common::appliance::Name;
use common::driver::{DriverName, DriverOffers};
use common::kind::KindName;
use common::ring::{self, Ring};
use common::{ApplianceId, Site, Term, WorkerId};
use serde::{Deserialize, Serialize};

use book::{Book, BookEntry};
use classes::Class;
use exact::Unsettled;
pub use forecast::{Forecast, LoadChange};
pub use movable::LastAble;
use pins::{SlotPin, SlotPins};
pub use plan::{
    AssumedPolicy, Assumptions, BandRelaxed, Plan, PlanId, PlanRefused, PlannedMove, TableVersion, Unplaceable,
};
pub use roster::RingLimited;
use roster::{MemberRoster, NOBODY};
use spread::{Tenants, ZoneCounts};

use crate::orders::Pin;
use crate::slot::Slot;

/// How members share the appliances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Ring preference inside a band around the fair share.
    #[default]
    Bounded,
    /// The owner python-tooz names, always.
    Ring,
}

/// What is spread over the failure zones that workers publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Nothing.
    #[default]
    None,
    /// The appliances of each tenant.
    Tenant,
}

impl Spread {
    /// Its name in settings and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tenant => "tenant",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        [Self::None, Self::Tenant].into_iter().find(|spread| spread.name() == name)
    }
}

/// Settings of the planner.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How members share the appliances.
    pub strategy: Strategy,
    /// Width of the band: every member stays within `[floor(fair / band), ceil(fair * band)]`. Nearer to 1 is more even
    /// and moves more. At least 1.
    pub band: f64,
    /// What is spread over the zones of workers: `tenant` for the appliances of each tenant, or `none`. Inside the band it goes before
    /// the preference of the ring; it never makes a move of its own. Without effect under strategy `ring`.
    pub spread: Spread,
}

impl Default for Config {
    fn default() -> Self {
        Self { strategy: Strategy::Bounded, band: 1.05, spread: Spread::None }
    }
}

impl Config {
    /// Whether zones are looked at.
    const fn spreads(&self) -> bool {
        matches!((self.strategy, self.spread), (Strategy::Bounded, Spread::Tenant))
    }
}

/// A member of the ring, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlannerMember {
    /// Its name.
    pub id: WorkerId,
    /// Share of the appliances relative to others: as published, or as an operator orders. 0 counts as 1 for a fair share,
    /// and as no points on the ring under [`Strategy::Ring`].
    pub weight: u32,
    /// The weight as published.
    pub published_weight: u32,
    /// Failure zone; empty when not given.
    pub zone: String,
    /// Host it runs on.
    pub host: String,
    /// Drivers it offers. Empty: a member of the ring that takes no share (a Python service).
    pub drivers: DriverOffers,
    /// Live and with a settled stream: may be given appliances. One that is not keeps what it has, and is neither asked
    /// to take nor a reason for others to give.
    pub connected: bool,
    /// It is about to stop: gets nothing new and gives up what it has.
    pub draining: bool,
    /// The same by an operator's order. It stays, so that it gets back what it held last where no other member can have it.
    pub drained: bool,
    /// By an operator's order it gets nothing new and keeps what it has, of which no part is moved for balance. Without effect under
    /// [`Strategy::Ring`].
    pub cordoned: bool,
}

impl PlannerMember {
    /// Whether it gives up what it has.
    pub(crate) const fn gives_up(&self) -> bool {
        self.draining || self.drained
    }
}

/// What an appliance needs of the member that takes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// The driver it uses.
    pub driver: DriverName,
    /// What it is.
    pub kind: KindName,
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
    /// It is pinned to its new owner.
    Pinned,
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
    NoDriver(DriverName),
    /// Members offer the driver, and none of theirs runs the kind.
    NoKind(DriverName, KindName),
    /// No member is of the site where its instances are kept.
    SiteGone(Site),
    /// Members that could take it are not connected.
    NotConnected,
    /// Members that could take it drain.
    AllDraining,
    /// Members that could take it are cordoned, or drain.
    Cordoned,
    /// It is pinned to this worker alone, which cannot take it.
    Pinned(WorkerId),
    /// Members that could take it declined it recently.
    Declined,
    /// Strategy `ring`: the owner the ring names cannot take it.
    RingOwnerCannot(WorkerId),
    /// So many workers died while a step of it ran. Set by the machine, not by the planner.
    Quarantined(u32),
    /// Most workers vanished at once, its owner among them. Set by the machine, not by the planner.
    Frozen(WorkerId),
    /// Its owner vanished and may be back soon. Set by the machine, not by the planner.
    WaitsFor(WorkerId),
    /// Hands are off, and the versions of members that could take it do not know that. Set by the machine, not by the planner.
    NoModes,
}

/// What speaks against giving an appliance to a member; the first that applies, in the order of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateRefusal {
    /// It does not offer the driver.
    NoDriver,
    /// Its driver does not run the kind.
    NoKind,
    /// It is of another site than where the instances are kept.
    OtherSite,
    /// It has no settled stream.
    NotConnected,
    /// It drains.
    Draining,
    /// It is cordoned.
    Cordoned,
    /// It declined the appliance recently.
    Declined,
    /// The appliance is pinned to this other worker alone, which need not be a member.
    PinnedElsewhere,
    /// Strategy `ring`: the ring names another owner.
    NotRingOwner,
    /// It holds as much as the band allows.
    AtCeiling,
}

/// What a member is to one appliance as the next plan has it: each is true of that plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateStanding {
    /// It cannot be given the appliance.
    Refused(CandidateRefusal),
    /// The appliance is counted here and stays.
    Keeps,
    /// The appliance is counted here and is taken away.
    GivesUp(Reason),
    /// It is given the appliance.
    Next(Reason),
    /// It could be given it, but another member has it and nothing asks for a move.
    NotNeeded,
    /// It could be given it, but no member is now.
    Barred,
    /// It could be given it, but the member that it is pinned to gets it.
    PinFirst,
    /// It could be given it, but its former owner gets it.
    FormerFirst,
    /// It could be given it, but a member with less than its share gets it.
    ShareFirst,
    /// It could be given it, but a member of a zone with fewer appliances of the same tenant gets it.
    SpreadFirst,
    /// It could be given it, but a member that the ring names before it gets it.
    RingFirst,
    /// It could be given it, were there not others that are placed by the same plan.
    OthersFill,
}

/// A member as a candidate for one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementCandidate {
    /// The member.
    pub member: WorkerId,
    /// Whether it is, or gets, the owner, and if not, why.
    pub standing: CandidateStanding,
    /// The appliance is counted here.
    pub is_owner: bool,
    /// Appliances it holds of those that share this one's band.
    pub load: u64,
    /// Fewest of them it should hold; 0 when it takes no share.
    pub floor: u64,
    /// Most of them it should hold; 0 when it takes no share.
    pub ceiling: u64,
}

impl PlacementCandidate {
    /// What speaks against it; `None` when it can be given the appliance, or has it rightly.
    #[must_use]
    pub const fn refusal(&self) -> Option<CandidateRefusal> {
        if let CandidateStanding::Refused(refusal) = self.standing { Some(refusal) } else { None }
    }
}

/// The planner; see the head of this file.
#[derive(Clone, Debug)]
pub struct Planner {
    config: Config,
    /// Raised by every change of what planning reads.
    version: TableVersion,
    roster: MemberRoster,
    book: Book,
    /// Which groups share a band; computed by the first plan after members or needs changed.
    classes: OnceLock<Vec<Class>>,
    unsettled: Unsettled,
    /// Where operators want appliances.
    pins: BTreeMap<Slot, Pin>,
    /// Whose appliances they are.
    tenants: Tenants,
}

impl Planner {
    /// A planner of the leader of `term`, without members or appliances.
    #[must_use]
    pub fn new(config: Config, term: Term) -> Self {
        Self {
            config,
            version: TableVersion { term, revision: 0 },
            roster: MemberRoster::new(),
            book: Book::default(),
            classes: OnceLock::new(),
            unsettled: Unsettled::default(),
            pins: BTreeMap::new(),
            tenants: Tenants::new(config.spreads()),
        }
    }

    /// Adds an appliance, or replaces the one in this slot. Memory is taken up to the highest slot in use.
    pub fn insert(
        &mut self,
        slot: Slot,
        id: ApplianceId,
        placement_key: &str,
        needs: Needs,
        owner: Option<&WorkerId>,
        former: Option<&WorkerId>,
    ) {
        self.remove(slot);
        self.version.raise();
        let group = self.group_of(&needs, false);
        let entry = BookEntry {
            position: ring::top(ring::position(placement_key)),
            group,
            owner: self.roster.acquire(owner),
            former: self.roster.acquire(former),
            movable: true,
        };
        self.book.insert(slot, id, entry);
        self.note(slot, &entry);
    }

    /// Removes an appliance, if there is one.
    pub fn remove(&mut self, slot: Slot) {
        self.set_tenant(slot, None);
        if let Some(entry) = self.book.remove(slot) {
            self.version.raise();
            self.roster.release(entry.owner);
            self.roster.release(entry.former);
            self.book.excluded.remove(&slot);
            self.unsettled.forget(slot);
            self.pins.remove(&slot);
        }
    }

    /// Changes what an appliance needs, as when its instances become bound to a site.
    pub fn set_needs(&mut self, slot: Slot, needs: Needs) {
        if self.book.entry(slot).is_none_or(|entry| self.book.group(entry.group).needs == needs) {
            return;
        }
        let deleting = self.is_deleting(slot);
        self.regroup(slot, &needs, deleting);
    }

    /// Says that an appliance is being deleted: it stays with its owner where that can have it, needs one where it has none,
    /// and counts for no member's share any more.
    pub fn set_deleting(&mut self, slot: Slot) {
        let Some(entry) = self.book.entry(slot).filter(|_| !self.is_deleting(slot)) else { return };
        let (owner, needs) = (entry.owner, self.book.group(entry.group).needs.clone());
        self.tenants.moved(slot, owner, NOBODY);
        self.regroup(slot, &needs, true);
    }

    /// Says whose an appliance is. One without a tenant is spread with no other.
    pub fn set_tenant(&mut self, slot: Slot, tenant: Option<&Name>) {
        let Some(&BookEntry { owner, .. }) = self.book.entry(slot) else { return };
        let owner = if self.is_deleting(slot) { NOBODY } else { owner };
        self.tenants.moved(slot, owner, NOBODY);
        if self.tenants.set(slot, tenant) {
            self.version.raise();
        }
        self.tenants.moved(slot, NOBODY, owner);
    }

    fn is_deleting(&self, slot: Slot) -> bool {
        self.book.entry(slot).is_some_and(|entry| self.book.group(entry.group).deleting)
    }

    fn regroup(&mut self, slot: Slot, needs: &Needs, deleting: bool) {
        let group = self.group_of(needs, deleting);
        if let Some(mut entry) = self.book.remove(slot) {
            self.version.raise();
            entry.group = group;
            self.book.insert(slot, self.book.id(slot.0), entry);
        }
    }

    /// Says where the appliance is counted: its owner, or the member it is being granted to; `None` when it wants an
    /// owner. `former` is the name of its last owner, to whom it returns when that is possible within the band.
    pub fn set_owner(&mut self, slot: Slot, owner: Option<&WorkerId>, former: Option<&WorkerId>) {
        let Some(&before) = self.book.entry(slot) else { return };
        let (owner, former) = (self.roster.acquire(owner), self.roster.acquire(former));
        if (owner, former) != (before.owner, before.former) {
            self.version.raise();
        }
        self.book.change(slot, |entry| (entry.owner, entry.former) = (owner, former));
        if !self.is_deleting(slot) {
            self.tenants.moved(slot, before.owner, owner);
        }
        self.roster.release(before.owner);
        self.roster.release(before.former);
        self.note(slot, &BookEntry { owner, ..before });
    }

    /// Says whether plans may pick the appliance. One in the middle of a hand-off, or fenced, must not be picked, though
    /// it counts where it is. Returns whether that is new.
    pub fn set_movable(&mut self, slot: Slot, movable: bool) -> bool {
        let changed = self.book.entry(slot).is_some_and(|entry| entry.movable != movable);
        if changed {
            self.version.raise();
            self.book.change(slot, |entry| entry.movable = movable);
        }
        changed
    }

    /// Says which members declined the appliance and are not to be asked; replaces what was said before.
    pub fn set_excluded(&mut self, slot: Slot, members: BTreeSet<WorkerId>) {
        let members = Some(members).filter(|members| !members.is_empty() && self.book.entry(slot).is_some());
        if self.book.excluded.get(&slot) == members.as_ref() {
            return;
        }
        self.version.raise();
        match members {
            Some(members) => self.book.excluded.insert(slot, members),
            None => self.book.excluded.remove(&slot),
        };
    }

    /// Says where an operator wants the appliance; anywhere when `None`.
    pub fn set_pin(&mut self, slot: Slot, pin: Option<Pin>) {
        if self.book.entry(slot).is_none() || self.pins.get(&slot) == pin.as_ref() {
            return;
        }
        self.version.raise();
        match pin {
            Some(pin) => _ = self.pins.insert(slot, pin),
            None => _ = self.pins.remove(&slot),
        }
    }

    /// Replaces the members. Weights are taken as at least 1 and at most [`ring::MAX_WEIGHT`].
    pub fn set_members(&mut self, members: Vec<PlannerMember>) {
        let changed = self.roster.replace(members, self.config.strategy);
        self.version.raise();
        self.unsettled.add(&changed);
        self.book.drop_empty_groups();
        self.classes.take();
    }

    /// The members, in the order of their names.
    #[must_use]
    pub fn members(&self) -> &[PlannerMember] {
        &self.roster.members
    }

    /// The ring of the members; under [`Strategy::Ring`] without those that drain.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.roster.ring
    }

    /// What was left out or scaled to keep the ring within its bounds.
    #[must_use]
    pub const fn ring_limited(&self) -> &RingLimited {
        &self.roster.limited
    }

    /// Counts the calls of [`Planner::set_members`].
    #[must_use]
    pub const fn ring_version(&self) -> u64 {
        self.roster.version
    }

    /// The version of what planning reads.
    #[must_use]
    pub const fn version(&self) -> TableVersion {
        self.version
    }

    /// What should change, if members were as assumed. Changes nothing; asked twice it answers the same.
    ///
    /// Costs what it answers, the appliances without an owner, and members times classes; under [`Strategy::Ring`] also
    /// the arcs of the ring in which something is still to be moved, and where appliances are spread the holders of each tenant that is
    /// looked at. Assumptions add a copy of the members, and pins among them, or a spread that is not in force, one look at every id.
    #[must_use]
    pub fn propose(&self, assumptions: &Assumptions) -> Plan {
        if assumptions.is_empty() {
            return self.plan(assumptions, &self.config, &self.roster, &self.classes, self.unsettled.clone());
        }
        let config = assumptions.policy.map_or(self.config, |AssumedPolicy(config)| config);
        let mut roster = self.roster.clone();
        let changed = roster.replace(assumptions.members(&self.roster.members, config.strategy), config.strategy);
        let mut unsettled = self.unsettled.clone();
        if config.strategy == self.config.strategy {
            unsettled.add(&changed);
        } else {
            unsettled = Unsettled::everything();
        }
        self.plan(assumptions, &config, &roster, &OnceLock::new(), unsettled)
    }

    fn plan(
        &self,
        assumptions: &Assumptions,
        config: &Config,
        roster: &MemberRoster,
        classes: &OnceLock<Vec<Class>>,
        mut unsettled: Unsettled,
    ) -> Plan {
        let book = &self.book;
        let output = match config.strategy {
            Strategy::Bounded => {
                let pins = self.pins(assumptions, roster);
                let classes = classes.get_or_init(|| classes::classify(roster, book));
                let counts = config.spreads().then(|| ZoneCounts::new(roster, book, &self.tenants));
                bounded::plan(roster, book, classes, &pins, (config, counts))
            }
            Strategy::Ring => exact::plan(roster, book, &mut unsettled),
        };
        output.into_plan(self.version, assumptions, (roster, book), unsettled)
    }

    /// Where appliances are to be, by slot.
    fn pins<'a>(&'a self, assumptions: &'a Assumptions, roster: &MemberRoster) -> SlotPins<'a> {
        let rank = |worker: &WorkerId| roster.find(worker).and_then(|handle| roster.rank(handle));
        let of = |pin: &'a Pin| SlotPin { worker: &pin.worker, rank: rank(&pin.worker), strict: pin.strict };
        let mut pins: SlotPins<'a> = self.pins.iter().map(|(slot, pin)| (slot.0, of(pin))).collect();
        let assumed = assumptions.pins();
        if !assumed.is_empty() {
            for (slot, id) in self.book.ids() {
                match assumed.get(id) {
                    Some(Some(pin)) => _ = pins.insert(slot, of(pin)),
                    Some(None) => _ = pins.remove(&slot),
                    None => {}
                }
            }
        }
        pins
    }

    /// Takes over what was found out while making a plan, before it is carried out. The plan has to be made from the table
    /// as it is, and without assumptions; otherwise nothing changes.
    pub fn adopt(&mut self, plan: &Plan) -> Result<(), PlanRefused> {
        if !plan.assumptions.is_empty() {
            return Err(PlanRefused::Assumed(plan.id));
        }
        if plan.version != self.version {
            return Err(PlanRefused::Stale { planned: plan.version, current: self.version });
        }
        if self.unsettled != plan.unsettled {
            self.unsettled.clone_from(&plan.unsettled);
        }
        Ok(())
    }

    /// Appliances counted at a worker, which need not be a member.
    #[must_use]
    pub fn load(&self, worker: &WorkerId) -> u64 {
        let Some(handle) = self.roster.find(worker) else { return 0 };
        self.book.groups().filter_map(|(_, group)| group.held.get(&handle)).map(book::Held::count).sum()
    }

    /// Every member as a candidate for an appliance, in order of ring preference, members that are not on the ring last.
    /// Empty when there is no such appliance. What it says is what the next plan does; it costs as much as that.
    #[must_use]
    pub fn explain(&self, slot: Slot) -> Vec<PlacementCandidate> {
        let plan = self.propose(&Assumptions::default());
        let next = plan.moves().find(|m| m.slot == slot);
        let next = next.and_then(|m| Some((self.roster.rank(self.roster.find(m.to)?)?, m.reason)));
        let classes = self.classes.get_or_init(|| classes::classify(&self.roster, &self.book));
        let pins = self.pins(&plan.assumptions, &self.roster);
        let beside = self.beside(slot);
        let (roster, book, config) = (&self.roster, &self.book, &self.config);
        explain::Explainer { roster, book, config, pins: &pins, slot, next, beside: beside.as_deref() }.explain(classes)
    }

    /// Other appliances of the same tenant in the zone of each member, by rank; `None` where they do not count.
    fn beside(&self, slot: Slot) -> Option<Vec<u32>> {
        let entry = self.book.entry(slot).filter(|_| self.config.spreads() && !self.is_deleting(slot))?;
        ZoneCounts::new(&self.roster, &self.book, &self.tenants).beside(slot, self.roster.rank(entry.owner))
    }

    fn group_of(&mut self, needs: &Needs, deleting: bool) -> u32 {
        let (group, made) = self.book.group_of(needs, deleting);
        if made {
            self.classes.take();
        }
        group
    }

    fn note(&mut self, slot: Slot, entry: &BookEntry) {
        if self.config.strategy == Strategy::Ring {
            self.unsettled.note(&self.roster, slot, entry.position, entry.owner);
        }
    }
}

#[cfg(test)]
mod tests;
