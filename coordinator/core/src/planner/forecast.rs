//! What a plan comes to: loads before and after, and how long it takes under the limits on what may be under way.

use std::collections::BTreeMap;
use std::time::Duration;

use common::WorkerId;

use super::spread::ZoneCounts;
use super::{Assumptions, Plan, Planner, PlannerMember, Strategy};

/// How many there are before and after a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadChange {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// What carrying a plan out comes to.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The plan.
    pub plan: Plan,
    /// Appliances of each worker that is a member before or after, or whose appliances move.
    pub loads: BTreeMap<WorkerId, LoadChange>,
    /// Moves from one owner to another; the others give an owner to what has none.
    pub hand_offs: u64,
    /// Most of them that have one worker in common.
    pub busiest: u64,
    /// Tenants of which one zone has at least two appliances more than another.
    pub uneven: LoadChange,
}

impl Planner {
    /// What would change under these assumptions, and what that comes to.
    #[must_use]
    pub fn forecast(&self, assumptions: &Assumptions) -> Forecast {
        let plan = self.propose(assumptions);
        let mut loads: BTreeMap<WorkerId, LoadChange> = BTreeMap::new();
        let strategy = assumptions.policy.map_or(self.config.strategy, |policy| policy.0.strategy);
        let after = assumptions.members(self.members(), strategy);
        for id in self.members().iter().chain(&after).map(|member| &member.id) {
            let load = self.load(id);
            loads.insert(id.clone(), LoadChange { before: load, after: load });
        }
        let mut concerned: BTreeMap<&WorkerId, u64> = BTreeMap::new();
        let mut hand_offs = 0;
        for planned in plan.moves() {
            if let Some(from) = planned.from {
                let from_load = loads.entry(from.clone()).or_insert_with(|| {
                    let load = self.load(from);
                    LoadChange { before: load, after: load }
                });
                from_load.after = from_load.after.saturating_sub(1);
                // One that is gone under the assumptions need not be asked.
                if after.iter().any(|member| member.id == *from) {
                    hand_offs += 1;
                    *concerned.entry(from).or_default() += 1;
                    *concerned.entry(planned.to).or_default() += 1;
                }
            }
            loads.entry(planned.to.clone()).or_default().after += 1;
        }
        let uneven = LoadChange { before: self.uneven_tenants(), after: self.uneven_after(&plan, after) };
        let busiest = concerned.into_values().max().unwrap_or_default();
        Forecast { plan, loads, hand_offs, busiest, uneven }
    }
}

impl Planner {
    /// Tenants of which one zone has at least two appliances more than another, of the zones of members that are able to have some. A look at
    /// every tenant, and where tenants are not spread at every appliance.
    #[must_use]
    pub fn uneven_tenants(&self) -> u64 {
        ZoneCounts::new(&self.roster, &self.book, &self.tenants).uneven()
    }

    /// The same once a plan is carried out with these members.
    fn uneven_after(&self, plan: &Plan, members: Vec<PlannerMember>) -> u64 {
        let mut roster = self.roster.clone();
        roster.replace(members, Strategy::Bounded);
        let rank = |worker: &WorkerId| roster.rank(roster.find(worker)?);
        let mut counts = ZoneCounts::new(&roster, &self.book, &self.tenants);
        for planned in plan.moves().filter(|planned| !self.is_deleting(planned.slot)) {
            if let Some(from) = planned.from.and_then(rank) {
                counts.leave(planned.slot.0, from);
            }
            if let Some(to) = rank(planned.to) {
                counts.arrive(planned.slot.0, to);
            }
        }
        counts.uneven()
    }
}

impl Forecast {
    /// About how long the hand-offs take: those that have a worker in common in as many rounds as `rounds` says, all of them
    /// `in_flight` at a time, and each takes `one`.
    #[must_use]
    pub fn duration(&self, one: Duration, rounds: impl Fn(u64) -> u64, in_flight: usize) -> Duration {
        let rounds = rounds(self.busiest).max(self.hand_offs.div_ceil(in_flight.max(1) as u64));
        one.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX))
    }
}
