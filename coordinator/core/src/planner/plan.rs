//! Plans as values: what should change, from which version of the table, and under which assumptions.
//!
//! A plan can be shown, compared and kept. It is carried out only on the table it was made from ([`Planner::adopt`]), so
//! that what was shown is what happens; one made under assumptions is never carried out, since it counts on members that
//! are not there.
//!
//! [`Planner::adopt`]: super::Planner::adopt

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use common::{ApplianceId, Term, WorkerId};

use super::book::Book;
use super::exact::Unsettled;
use super::roster::MemberRoster;
use super::{Config, Needs, PlannerMember, Reason, Slot, Strategy, Unplaced};
use crate::orders::{OrderOp, Pin};

/// The state of the table and the members that planning reads. Versions of one term are ordered by revision; every change
/// that could lead to another plan raises it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableVersion {
    /// Term of the leader whose table it is.
    pub term: Term,
    /// Number of changes since the term began.
    pub revision: u64,
}

impl TableVersion {
    /// The version after one more change.
    pub(super) const fn raise(&mut self) {
        self.revision += 1;
    }
}

impl fmt::Display for TableVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/r{}", self.term, self.revision)
    }
}

/// Names a plan by what it was made from: equal tables and assumptions give the same plan under the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanId(u64);

impl PlanId {
    fn of(version: TableVersion, assumptions: &Assumptions) -> Self {
        let mut hasher = DefaultHasher::new();
        (version, assumptions).hash(&mut hasher);
        Self(hasher.finish())
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{:016x}", self.0)
    }
}

/// Differences from the members as they are, for plans that answer "what if". Applied in the order of the fields; names
/// that are not members afterwards are without effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Assumptions {
    /// Members that are gone.
    pub leave: BTreeSet<WorkerId>,
    /// Failure zones whose members are gone.
    pub lost_zones: BTreeSet<String>,
    /// Members that came. One with the name of a member replaces it.
    pub join: Vec<PlannerMember>,
    /// Orders that operators give or take back, in this order. Cordons, weights and pins are without effect under
    /// [`Strategy::Ring`](super::Strategy::Ring), where the ring alone decides.
    pub orders: Vec<OrderOp>,
    /// Another policy than the one in force.
    pub policy: Option<AssumedPolicy>,
}

/// How members would share the appliances.
#[derive(Clone, Copy, Debug)]
pub struct AssumedPolicy(pub Config);

impl PartialEq for AssumedPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for AssumedPolicy {}

impl Hash for AssumedPolicy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl AssumedPolicy {
    const fn key(&self) -> (u8, u64, u8) {
        let Self(Config { strategy, band, spread }) = *self;
        (strategy as u8, band.to_bits(), spread as u8)
    }
}

impl Assumptions {
    /// Whether nothing is assumed, as for the plans of the leader itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { leave, lost_zones, join, orders, policy } = self;
        leave.is_empty() && lost_zones.is_empty() && join.is_empty() && orders.is_empty() && policy.is_none()
    }

    /// Whether nothing but orders is assumed, so that giving those makes all of it true.
    #[must_use]
    pub fn is_orders_only(&self) -> bool {
        let Self { leave, lost_zones, join, orders: _, policy } = self;
        leave.is_empty() && lost_zones.is_empty() && join.is_empty() && policy.is_none()
    }

    /// Where appliances would be pinned, or would not be any more.
    pub(super) fn pins(&self) -> BTreeMap<ApplianceId, Option<&Pin>> {
        let pin = |op| match op {
            &OrderOp::Pin { appliance, ref pin } => Some((appliance, pin.as_ref())),
            _ => None,
        };
        self.orders.iter().filter_map(pin).collect()
    }

    /// The members there would be.
    pub(super) fn members(&self, present: &[PlannerMember], strategy: Strategy) -> Vec<PlannerMember> {
        let replaced = |id: &WorkerId| self.leave.contains(id) || self.join.iter().any(|joiner| joiner.id == *id);
        let lost = |member: &PlannerMember| !member.zone.is_empty() && self.lost_zones.contains(&member.zone);
        let staying = present.iter().filter(|member| !replaced(&member.id) && !lost(member));
        // Of two that join with one name the last counts, as of two members.
        let joining: BTreeMap<&WorkerId, &PlannerMember> =
            self.join.iter().map(|joiner| (&joiner.id, joiner)).collect();
        let mut members: Vec<PlannerMember> = staying.chain(joining.into_values()).cloned().collect();
        for op in &self.orders {
            let Some(member) = members.iter_mut().find(|member| op.worker() == Some(&member.id)) else { continue };
            match op {
                OrderOp::Drain { set, .. } => member.drained = *set,
                OrderOp::Cordon { set, .. } if strategy == Strategy::Bounded => member.cordoned = *set,
                OrderOp::Weight { weight, .. } if strategy == Strategy::Bounded => {
                    member.weight = weight.unwrap_or(member.published_weight);
                }
                OrderOp::Cordon { .. } | OrderOp::Weight { .. } | OrderOp::Pin { .. } | OrderOp::Budget { .. } => {}
            }
        }
        members
    }
}

/// One appliance to be taken to another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedMove<'a> {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Its place in the table, which is its own only as long as the table has the version of the plan.
    pub(crate) slot: Slot,
    /// Its present owner; `None` when it has none.
    pub from: Option<&'a WorkerId>,
    /// The owner it is to get.
    pub to: &'a WorkerId,
    /// Why.
    pub reason: Reason,
}

/// A move as a plan keeps it: with numbers for names, since there may be a million of them.
#[derive(Clone, Copy, Debug)]
struct PackedMove {
    appliance: ApplianceId,
    slot: Slot,
    /// Handle of the present owner.
    from: u32,
    /// Handle of the next one.
    to: u32,
    reason: Reason,
}

/// An appliance without a live owner that no member can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaceable {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Its place in the table, as of [`PlannedMove`].
    pub(crate) slot: Slot,
    /// Why no member can take it.
    pub why: Unplaced,
}

/// A member that stays outside its band once a plan is carried out: what it owns, or what no other member accepts, cannot
/// be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BandRelaxed {
    /// The member.
    pub member: WorkerId,
    /// Needs of the appliances this is about, one of them where several share the band.
    pub needs: Needs,
    /// Appliances it will own.
    pub load: u64,
    /// Fewest it should own.
    pub floor: u64,
    /// Most it should own.
    pub ceiling: u64,
}

/// What should change, and what cannot.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names it.
    pub id: PlanId,
    /// The table it was made from.
    pub version: TableVersion,
    /// What it takes for given beyond the table.
    pub assumptions: Assumptions,
    moves: Vec<PackedMove>,
    /// Names by handle.
    names: Arc<Vec<WorkerId>>,
    /// Appliances without a live owner that no member can take.
    pub unplaced: Vec<Unplaceable>,
    /// Members that stay outside their band.
    pub relaxed: Vec<BandRelaxed>,
    /// Strategy `ring`: the keys that may still be misplaced. Planning finds it out on the way, and the planner keeps it
    /// when it adopts the plan.
    pub(super) unsettled: Unsettled,
}

impl Plan {
    /// The moves, in the order in which they are to be made: without an owner (these are exempt from pacing), with one
    /// that drains or cannot own it and those pinned elsewhere, and for balance. An appliance occurs at most once.
    #[must_use]
    pub fn moves(&self) -> impl ExactSizeIterator<Item = PlannedMove<'_>> {
        self.moves.iter().map(|packed| PlannedMove {
            appliance: packed.appliance,
            slot: packed.slot,
            from: self.names.get(packed.from as usize),
            to: &self.names[packed.to as usize],
            reason: packed.reason,
        })
    }

    /// Whether everything is where it should be and every member inside its band.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty() && self.unplaced.is_empty() && self.relaxed.is_empty()
    }
}

/// By names, since numbers stand for them in one plan only.
impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        let Self { id, version, assumptions, moves: _, names: _, unplaced, relaxed, unsettled } = self;
        (id, version, assumptions) == (&other.id, &other.version, &other.assumptions)
            && self.moves().eq(other.moves())
            && (unplaced, relaxed, unsettled) == (&other.unplaced, &other.relaxed, &other.unsettled)
    }
}

impl Eq for Plan {}

/// Why a plan is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanRefused {
    /// The table changed since the plan was made.
    Stale {
        /// The version it was made from.
        planned: TableVersion,
        /// The version of the table now.
        current: TableVersion,
    },
    /// It was made under assumptions.
    Assumed(PlanId),
}

impl fmt::Display for PlanRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { planned, current } => {
                write!(f, "the plan was made from table version {planned}, the table is at {current}")
            }
            Self::Assumed(id) => write!(f, "plan {id} was made under assumptions and cannot be carried out"),
        }
    }
}

impl std::error::Error for PlanRefused {}

/// A move by slot and rank.
#[derive(Clone, Copy, Debug)]
struct MoveDraft {
    slot: u32,
    /// Handle of the present owner.
    from: u32,
    /// Rank of the next one.
    to: u32,
    reason: Reason,
}

/// A plan being made.
#[derive(Debug, Default)]
pub(super) struct PlanDraft {
    unowned: Vec<MoveDraft>,
    displaced: Vec<MoveDraft>,
    balance: Vec<MoveDraft>,
    pub(super) unplaced: Vec<(Slot, Unplaced)>,
    pub(super) relaxed: Vec<BandRelaxed>,
}

impl PlanDraft {
    /// Makes room for about so many moves between members: growing step by step takes a tenth of the time of a plan.
    pub(super) fn expect(&mut self, moves: f64) {
        self.unowned.reserve(moves as usize);
        self.balance.reserve(moves as usize);
    }

    /// Adds a move from the worker with handle `from` to the member of rank `to`.
    pub(super) fn push(&mut self, roster: &MemberRoster, slot: u32, from: u32, to: u32, reason: Reason) {
        let list = match reason {
            Reason::Unowned | Reason::New | Reason::OwnerGone | Reason::Returned => &mut self.unowned,
            Reason::Pinned if roster.rank(from).is_none() => &mut self.unowned,
            Reason::Draining | Reason::Ineligible | Reason::Pinned => &mut self.displaced,
            Reason::OverCeiling | Reason::UnderFloor | Reason::RingOwner => &mut self.balance,
        };
        list.push(MoveDraft { slot, from, to, reason });
    }

    /// The plan, with the ids of appliances.
    pub(super) fn into_plan(
        mut self,
        version: TableVersion,
        assumptions: &Assumptions,
        (roster, book): (&MemberRoster, &Book),
        unsettled: Unsettled,
    ) -> Plan {
        let lists = [self.unowned, self.displaced, self.balance];
        let mut moves = Vec::with_capacity(lists.iter().map(Vec::len).sum());
        moves.extend(lists.iter().flatten().map(|draft| PackedMove {
            appliance: book.id(draft.slot),
            slot: Slot(draft.slot),
            from: draft.from,
            to: roster.handle(draft.to),
            reason: draft.reason,
        }));
        self.unplaced.sort_unstable_by_key(|(slot, _)| *slot);
        let unplaced = self.unplaced.into_iter();
        Plan {
            id: PlanId::of(version, assumptions),
            version,
            assumptions: assumptions.clone(),
            moves,
            names: Arc::clone(roster.names()),
            unplaced: unplaced.map(|(slot, why)| Unplaceable { appliance: book.id(slot.0), slot, why }).collect(),
            relaxed: self.relaxed,
            unsettled,
        }
    }
}
