//! `rugctl plan --from FILE`: the planner over a file of `rugctl cluster dump`, without a server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::driver::{DriverCapabilities, DriverOffers};
use common::{ApplianceId, WorkerId};
use coordinator_core::machine::{self, MoveWindow};
use coordinator_core::orders::{OrderOp, Pin};
use coordinator_core::planner::{AssumedPolicy, Assumptions, Forecast, PlannerMember};
use proto::admin::v1;
use proto::admin::v1::placement_plan::{LoadChange, PlannedMove, PlannedUnplaced};
use proto::admin::v1::plan_assumptions::Joiner;

use crate::dump::{Dump, DumpedAppliance, Places};
use crate::error::{Exit, Failure};
use crate::text::one_line;

/// What a hand-off is taken to last: nothing was measured.
const HAND_OFF: Duration = Duration::from_millis(20);
/// Why such a plan is not applied.
const OF_A_FILE: &str = "it was made of a file";

/// What is assumed, with appliances as they are named on the command line.
#[derive(Debug, Default)]
pub(crate) struct Assumed {
    /// All but pins.
    pub(crate) others: v1::PlanAssumptions,
    /// Appliance, worker, and whether to it alone.
    pub(crate) pin: Vec<(String, String, bool)>,
    pub(crate) unpin: Vec<String>,
}

/// What would change, as a server would answer.
pub(crate) fn plan(dump: &Dump, assumed: &Assumed) -> Result<v1::PlacementPlan, Failure> {
    let (mut planner, places) = dump.planner(dump.policy(None, None, None)?, DumpedAppliance::owner)?;
    let members = dump.members()?;
    planner.set_members(members.clone());
    let assumptions = assumptions(dump, assumed, &members, &places)?;
    let forecast = planner.forecast(&assumptions);
    Ok(to_wire(&forecast, &places))
}

fn assumptions(
    dump: &Dump,
    assumed: &Assumed,
    members: &[PlannerMember],
    places: &Places<'_>,
) -> Result<Assumptions, Failure> {
    let v1::PlanAssumptions {
        leave,
        lost_zones,
        join,
        uncordon,
        undrain,
        weight_as_published,
        cordon,
        drain,
        weight,
        strategy,
        band,
        spread,
        ..
    } = assumed.others.clone();
    let name = |text: &String| WorkerId::new(text).map_err(|e| Failure::usage(format!("{}: {e}", one_line(text))));
    let join: Vec<PlannerMember> = join.iter().map(|joiner| joiner_of(joiner, members)).collect::<Result<_, _>>()?;
    let known = |text: &String| {
        let worker = name(text)?;
        let there = members.iter().chain(&join).any(|member| member.id == worker);
        let missing = || Failure::new(Exit::NotFound, format!("{worker} is no worker of the file"));
        if there { Ok(worker) } else { Err(missing()) }
    };
    let find = |text: &str| {
        let is_it = |(_, it): &(coordinator_core::slot::Slot, &DumpedAppliance)| {
            it.id == text || it.name == text && it.tenant == "default" || format!("{}/{}", it.tenant, it.name) == text
        };
        let found = places.iter().find(|(_, place)| is_it(place)).map(|(id, _)| *id);
        found.ok_or_else(|| Failure::new(Exit::NotFound, format!("{} is no appliance of the file", one_line(text))))
    };
    let mut orders = Vec::new();
    for worker in &uncordon {
        orders.push(OrderOp::Cordon { worker: known(worker)?, set: false });
    }
    for worker in &undrain {
        orders.push(OrderOp::Drain { worker: known(worker)?, set: false });
    }
    for worker in &weight_as_published {
        orders.push(OrderOp::Weight { worker: known(worker)?, weight: None });
    }
    for appliance in &assumed.unpin {
        orders.push(OrderOp::Pin { appliance: find(appliance)?, pin: None });
    }
    for worker in &cordon {
        orders.push(OrderOp::Cordon { worker: known(worker)?, set: true });
    }
    for worker in &drain {
        orders.push(OrderOp::Drain { worker: known(worker)?, set: true });
    }
    for (worker, weight) in weight.into_iter().collect::<BTreeMap<_, _>>() {
        orders.push(OrderOp::Weight { worker: known(&worker)?, weight: Some(weight) });
    }
    for (appliance, worker, strict) in &assumed.pin {
        let pin = Some(Pin { worker: known(worker)?, strict: *strict });
        orders.push(OrderOp::Pin { appliance: find(appliance)?, pin });
    }
    let given = (!strategy.is_empty()).then_some(strategy.as_str());
    let spread = (!spread.is_empty()).then_some(spread.as_str());
    let is_another = given.is_some() || band.is_some() || spread.is_some();
    let policy = if is_another { Some(AssumedPolicy(dump.policy(given, band, spread)?)) } else { None };
    let leave: BTreeSet<WorkerId> = leave.iter().map(known).collect::<Result<_, _>>()?;
    Ok(Assumptions { leave, lost_zones: lost_zones.into_iter().collect(), join, orders, policy })
}

/// A member that is not there, with drivers as others have them.
fn joiner_of(joiner: &Joiner, members: &[PlannerMember]) -> Result<PlannerMember, Failure> {
    let id = WorkerId::new(&joiner.id).map_err(|e| Failure::usage(format!("{}: {e}", one_line(&joiner.id))))?;
    let offers = members.iter().flat_map(|member| member.drivers.iter());
    let wanted = offers
        .filter(|(name, _)| joiner.drivers.is_empty() || joiner.drivers.iter().any(|driver| driver == name.as_str()));
    // What is kept on a host of its own is not what others keep.
    let drivers: DriverOffers =
        wanted.map(|(name, it)| (name.clone(), DriverCapabilities { site: None, ..it.clone() })).collect();
    let host = if joiner.host.is_empty() { format!("(host of {id})") } else { joiner.host.clone() };
    let weight = joiner.weight.max(1);
    Ok(PlannerMember {
        id,
        weight,
        published_weight: weight,
        zone: joiner.zone.clone(),
        host,
        drivers,
        connected: true,
        draining: false,
        drained: false,
        cordoned: false,
    })
}

fn to_wire(forecast: &Forecast, places: &Places<'_>) -> v1::PlacementPlan {
    let plan = &forecast.plan;
    let named =
        |id: &ApplianceId| places.get(id).map(|(_, it)| (it.tenant.clone(), it.name.clone())).unwrap_or_default();
    let mut tenants = std::collections::HashMap::new();
    for planned in plan.moves() {
        *tenants.entry(named(&planned.appliance).0).or_default() += 1;
    }
    let moves = plan.moves().map(|planned| {
        let (tenant, name) = named(&planned.appliance);
        PlannedMove {
            appliance: planned.appliance.to_string(),
            tenant,
            name,
            from: planned.from.map(ToString::to_string).unwrap_or_default(),
            to: planned.to.to_string(),
            reason: planned.reason.text().to_owned(),
        }
    });
    let load = |(worker, change): (&WorkerId, &coordinator_core::planner::LoadChange)| LoadChange {
        worker: worker.to_string(),
        before: change.before,
        after: change.after,
    };
    let unplaced = plan.unplaced.iter().take(100).map(|unplaced| {
        let (tenant, name) = named(&unplaced.appliance);
        let already = places.get(&unplaced.appliance).is_some_and(|(_, it)| it.owner.is_empty());
        PlannedUnplaced {
            appliance: unplaced.appliance.to_string(),
            tenant,
            name,
            reason: unplaced.why.to_string(),
            already,
        }
    });
    let limits = machine::Config::default();
    let window = MoveWindow::new(limits.gap_target, limits.max_moves_per_worker);
    let duration = forecast.duration(HAND_OFF, |moves| window.rounds(moves), limits.max_moves_in_flight);
    v1::PlacementPlan {
        id: plan.id.to_string(),
        version: plan.version.to_string(),
        moves: plan.moves().len() as u64,
        r#move: moves.collect(),
        next_page_token: String::new(),
        hand_offs: forecast.hand_offs,
        tenants,
        loads: forecast.loads.iter().map(load).collect(),
        unplaced: unplaced.collect(),
        unplaced_count: plan.unplaced.len() as u64,
        duration: prost_types::Duration::try_from(duration).ok(),
        hand_off: prost_types::Duration::try_from(HAND_OFF).ok(),
        measured: 0,
        not_appliable: OF_A_FILE.to_owned(),
        notes: Vec::new(),
        uneven_before: forecast.uneven.before,
        uneven_after: forecast.uneven.after,
    }
}
