//! Plans before moves: what would change, and having exactly that done.
//!
//! A plan is not kept. Whoever has seen one gives its assumptions again, and it is made again: from the same table it is the same,
//! under the same id. From another table it is another plan, and nothing is done.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::appliance::{FieldViolation, Name};
use common::change::ApplianceTarget;
use common::driver::{DriverCapabilities, DriverOffers};
use common::{ApplianceId, WorkerId};
use coordinator_core::machine::SLOW;
use coordinator_core::orders::OrderOp;
use coordinator_core::planner::{AssumedPolicy, Assumptions, Config, Forecast, PlannerMember};

use super::Leader;
use crate::commands::{CommandError, Joiner, Operator, PlanAssumptions, PlanPart, Reply, ShownPlan};
use crate::views::{MAX_PLAN_UNPLACED, PlanView, PlannedMoveView, UnplacedView};

/// What a hand-off is taken to last while none was measured.
const HAND_OFF: Duration = Duration::from_millis(20);

/// Most hand-offs that an expectation is made of.
const MEASURED: usize = 1_000;

/// How long the newest hand-offs of this term took.
#[derive(Debug, Default)]
pub(super) struct HandOffTimes {
    newest: VecDeque<Duration>,
}

impl HandOffTimes {
    /// A hand-off has taken so long.
    pub(super) fn add(&mut self, took: Duration) {
        if self.newest.len() == MEASURED {
            self.newest.pop_front();
        }
        // From then on others begin beside it.
        self.newest.push_back(took.min(SLOW));
    }

    /// For how long one keeps others from beginning, and of how many that is the median: a few that waited for a worker which was just
    /// starting say nothing about the next ones.
    fn typical(&self) -> (Duration, u64) {
        let mut sorted: Vec<Duration> = self.newest.iter().copied().collect();
        sorted.sort_unstable();
        match sorted.get(sorted.len() / 2) {
            None => (HAND_OFF, 0),
            Some(median) => (*median, sorted.len() as u64),
        }
    }
}

impl Leader<'_> {
    /// What would change under assumptions.
    pub(super) fn plan(&self, assumed: &PlanAssumptions, part: &PlanPart) -> Result<PlanView, CommandError> {
        let assumptions = self.assumptions(assumed)?;
        let forecast = self.machine.planner().forecast(&assumptions);
        let (id, version) = (forecast.plan.id.to_string(), forecast.plan.version.to_string());
        if part.of.as_ref().is_some_and(|of| *of != id) {
            let of = part.of.clone().unwrap_or_default();
            return Err(CommandError::StalePlan { planned: of, current: id });
        }
        let not_appliable = self.why_not_appliable(&assumptions).or_else(|| {
            let force = true;
            assumptions.orders.iter().find_map(|op| self.check_order(op, force).err()).map(|error| error.to_string())
        });
        Ok(self.view_of(&forecast, &assumptions, part, (id, version), not_appliable))
    }

    /// Has done what a plan shows, if it would be the same now: gives its orders, all at once.
    pub(super) fn apply_plan(
        &mut self,
        assumed: &PlanAssumptions,
        shown: &ShownPlan,
        force: bool,
        request: &Operator,
        reply: Reply<()>,
    ) {
        if self.waiting.is_storing_orders() {
            return drop(reply.send(Err(CommandError::Contended)));
        }
        match self.check_plan(assumed, shown) {
            // A call that is repeated because its answer was lost.
            Err(CommandError::StalePlan { .. }) if self.are_in_force(&assumed.orders) => drop(reply.send(Ok(()))),
            Err(error) => drop(reply.send(Err(error))),
            Ok(orders) => self.order(orders, force, request, reply),
        }
    }

    fn are_in_force(&self, orders: &[OrderOp]) -> bool {
        let mut after = self.machine.orders().clone();
        orders.iter().for_each(|op| after.apply(op));
        after == *self.machine.orders()
    }

    fn check_plan(&self, assumed: &PlanAssumptions, shown: &ShownPlan) -> Result<Vec<OrderOp>, CommandError> {
        let assumptions = self.assumptions(assumed)?;
        if let Some(why) = self.why_not_appliable(&assumptions) {
            return Err(CommandError::NotAppliable(why));
        }
        let plan = self.machine.propose(&assumptions);
        let (id, version) = (plan.id.to_string(), plan.version.to_string());
        if (&id, &version) != (&shown.id, &shown.version) {
            let planned = if shown.version == version { &shown.id } else { &shown.version };
            let current = if shown.version == version { id } else { version };
            return Err(CommandError::StalePlan { planned: planned.clone(), current });
        }
        Ok(assumptions.orders)
    }

    fn why_not_appliable(&self, assumptions: &Assumptions) -> Option<String> {
        if !assumptions.is_orders_only() {
            Some(
                "workers that join, leave or are lost, and another policy, are no orders: they come true by themselves"
                    .into(),
            )
        } else if assumptions.orders.is_empty() {
            Some("it assumes nothing".into())
        } else {
            let now = runtime::clock::now();
            let frozen = self.machine.frozen(now).map(|_| "most workers vanished at once".to_owned());
            self.machine.waiting(now).or(frozen).map(|why| format!("nothing moves now: {why}"))
        }
    }

    /// The planner's form of what is assumed.
    fn assumptions(&self, assumed: &PlanAssumptions) -> Result<Assumptions, CommandError> {
        let PlanAssumptions { leave, lost_zones, join, orders, strategy, band, spread } = assumed;
        let in_force = self.machine.config().planner;
        let policy = Config {
            strategy: strategy.unwrap_or(in_force.strategy),
            band: band.unwrap_or(in_force.band),
            spread: spread.unwrap_or(in_force.spread),
        };
        let is_another = strategy.is_some() || band.is_some() || spread.is_some();
        let members = self.machine.planner().members();
        let is_there =
            |id: &WorkerId| members.iter().any(|member| member.id == *id) || join.iter().any(|joiner| joiner.id == *id);
        let mut wrong = Vec::new();
        let ordered = orders.iter().filter_map(OrderOp::worker).filter(|id| self.publisher.orders.worker(id).is_none());
        for id in leave.iter().chain(ordered).filter(|id| !is_there(id)) {
            wrong.push(FieldViolation::new("assumptions", format!("{id} is not a member of the ring")));
        }
        for zone in lost_zones.iter().filter(|zone| !members.iter().any(|member| member.zone == **zone)) {
            wrong.push(FieldViolation::new("assumptions.lost_zones", format!("no worker is in zone {zone}")));
        }
        if !wrong.is_empty() {
            return Err(CommandError::Invalid(wrong));
        }
        Ok(Assumptions {
            leave: leave.clone(),
            lost_zones: lost_zones.clone(),
            join: join.iter().map(|joiner| self.member(joiner)).collect(),
            orders: orders.clone(),
            policy: is_another.then_some(AssumedPolicy(policy)),
        })
    }

    /// A member that is not there, with drivers as others have them.
    fn member(&self, joiner: &Joiner) -> PlannerMember {
        let offers = self.machine.planner().members().iter().flat_map(|member| member.drivers.iter());
        let wanted = offers.filter(|(name, _)| joiner.drivers.is_empty() || joiner.drivers.contains(name));
        // What is kept on a host of its own is not what others keep.
        let drivers: DriverOffers =
            wanted.map(|(name, it)| (name.clone(), DriverCapabilities { site: None, ..it.clone() })).collect();
        let host = if joiner.host.is_empty() { format!("(host of {})", joiner.id) } else { joiner.host.clone() };
        PlannerMember {
            id: joiner.id.clone(),
            weight: joiner.weight,
            published_weight: joiner.weight,
            zone: joiner.zone.clone(),
            host,
            drivers,
            connected: true,
            draining: false,
            drained: self.machine.orders().is_drained(&joiner.id),
            cordoned: self.machine.orders().is_cordoned(&joiner.id),
        }
    }

    fn view_of(
        &self,
        forecast: &Forecast,
        assumptions: &Assumptions,
        part: &PlanPart,
        (id, version): (String, String),
        not_appliable: Option<String>,
    ) -> PlanView {
        let (plan, table) = (&forecast.plan, self.machine.table());
        let row = |id: ApplianceId| table.slot(id).and_then(|slot| table.get(slot));
        let mut tenants = BTreeMap::new();
        for tenant in plan.moves().filter_map(|planned| row(planned.appliance)).map(|row| &row.subject.tenant) {
            *tenants.entry(tenant.clone()).or_default() += 1;
        }
        let moves = plan.moves().skip(part.first).take(part.size).map(|planned| PlannedMoveView {
            appliance: planned.appliance,
            name: self.name_of(planned.appliance),
            from: planned.from.cloned(),
            to: planned.to.clone(),
            reason: planned.reason.text(),
        });
        let unplaced = plan.unplaced.iter().take(MAX_PLAN_UNPLACED).map(|unplaced| UnplacedView {
            appliance: unplaced.appliance,
            name: self.name_of(unplaced.appliance),
            reason: unplaced.why.to_string(),
            already: row(unplaced.appliance)
                .is_some_and(|row| row.state.wants_owner() && row.placement.unplaced.is_some()),
        });
        let config = self.machine.config();
        let window = self.machine.move_window();
        let (hand_off, measured) = self.rebalances.hand_off_times().typical();
        let hand_offs = forecast.duration(hand_off, |moves| window.rounds(moves), config.max_moves_in_flight);
        let joins = if assumptions.join.is_empty() { Duration::ZERO } else { config.debounce };
        let grants = if plan.moves().len() as u64 > forecast.hand_offs { hand_off } else { Duration::ZERO };
        PlanView {
            id,
            version,
            moves: moves.collect(),
            total: plan.moves().len() as u64,
            hand_offs: forecast.hand_offs,
            tenants,
            loads: forecast.loads.clone(),
            unplaced: unplaced.collect(),
            unplaced_total: plan.unplaced.len() as u64,
            duration: hand_offs + joins + grants,
            hand_off,
            measured,
            not_appliable,
            uneven: forecast.uneven,
        }
    }

    fn name_of(&self, appliance: ApplianceId) -> Option<(Name, Name)> {
        let entry = self.catalog.get(&ApplianceTarget::Id(appliance))?;
        Some((entry.record.tenant.clone(), entry.record.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hand_offs_last_is_the_median_of_the_newest_and_slow_ones_hold_up_no_others() {
        let mut times = HandOffTimes::default();
        assert_eq!(times.typical(), (HAND_OFF, 0));
        times.add(Duration::from_millis(10));
        times.add(Duration::from_secs(60));
        assert_eq!(times.typical(), (SLOW, 2));
        times.add(Duration::from_millis(12));
        assert_eq!(times.typical(), (Duration::from_millis(12), 3));
        (0..MEASURED).for_each(|_| times.add(Duration::from_millis(4)));
        assert_eq!(times.typical(), (Duration::from_millis(4), MEASURED as u64));
    }
}
