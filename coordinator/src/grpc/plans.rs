//! Plans on the wire: assumptions in, what would change out.

use common::appliance::FieldViolation;
use common::driver::DriverName;
use common::ring::MAX_WEIGHT;
use common::{ApplianceId, WorkerId};
use coordinator_core::orders::{OrderOp, Pin};
use coordinator_core::planner::{Spread, Strategy};
use proto::admin::v1 as wire;
use tonic::Status;

use super::{page, status};
use crate::commands::{Joiner, PlanAssumptions, PlanPart};
use crate::views::{PlanView, PlannedMoveView, UnplacedView};

/// Most names, pins and joiners of one plan.
const MAX_ASSUMED: usize = 1_000;

/// Widest band that can be assumed.
const MAX_BAND: f64 = 1_000.0;

/// Reads assumptions; `find` looks appliances up as the caller may see them.
pub(super) fn assumptions(
    assumed: Option<wire::PlanAssumptions>,
    find: impl Fn(Option<wire::ApplianceRef>) -> Result<ApplianceId, Status>,
) -> Result<PlanAssumptions, Status> {
    let wire::PlanAssumptions {
        leave,
        lost_zones,
        join,
        uncordon,
        undrain,
        weight_as_published,
        unpin,
        cordon,
        drain,
        weight,
        pin,
        strategy,
        band,
        spread,
        // Read by the caller, who knows the history.
        undo: _,
    } = assumed.unwrap_or_default();
    let lengths = [leave.len(), lost_zones.len(), join.len(), uncordon.len(), undrain.len(), weight_as_published.len()];
    let more = [unpin.len(), cordon.len(), drain.len(), weight.len(), pin.len()];
    if lengths.iter().chain(&more).sum::<usize>() > MAX_ASSUMED {
        let problem = format!("has more than {MAX_ASSUMED} entries");
        return Err(status::invalid(&[FieldViolation::new("assumptions", problem)]));
    }
    let mut wrong = Vec::new();
    let mut name = |field: &str, text: &str| {
        let field = format!("assumptions.{field}");
        WorkerId::new(text).map_err(|e| wrong.push(FieldViolation::new(field, e.to_string()))).ok()
    };
    let leave = leave.iter().filter_map(|id| name("leave", id)).collect();
    let mut orders = Vec::new();
    orders.extend(
        uncordon.iter().filter_map(|id| name("uncordon", id)).map(|worker| OrderOp::Cordon { worker, set: false }),
    );
    orders.extend(
        undrain.iter().filter_map(|id| name("undrain", id)).map(|worker| OrderOp::Drain { worker, set: false }),
    );
    let published = weight_as_published.iter().filter_map(|id| name("weight_as_published", id));
    orders.extend(published.map(|worker| OrderOp::Weight { worker, weight: None }));
    let mut pins = Vec::new();
    for one in pin {
        let worker = name("pin.worker", &one.worker);
        pins.extend(worker.map(|worker| (one.appliance, Pin { worker, strict: one.strict })));
    }
    let cordoned: Vec<_> = cordon.iter().filter_map(|id| name("cordon", id)).collect();
    let drained: Vec<_> = drain.iter().filter_map(|id| name("drain", id)).collect();
    let mut weighted: Vec<_> =
        weight.into_iter().filter_map(|(id, weight)| Some((name("weight", &id)?, weight))).collect();
    weighted.sort();
    let mut joiners = Vec::new();
    for joiner in join {
        joiners.extend(name("join.id", &joiner.id).map(|id| (id, joiner)));
    }
    for reference in unpin {
        orders.push(OrderOp::Pin { appliance: find(Some(reference))?, pin: None });
    }
    orders.extend(cordoned.into_iter().map(|worker| OrderOp::Cordon { worker, set: true }));
    orders.extend(drained.into_iter().map(|worker| OrderOp::Drain { worker, set: true }));
    let in_range = |weight: u32| (1..=MAX_WEIGHT).contains(&weight);
    for (worker, weight) in weighted {
        if !in_range(weight) {
            let problem = format!("of {worker} must be 1 to {MAX_WEIGHT}, is {weight}");
            wrong.push(FieldViolation::new("assumptions.weight", problem));
        }
        orders.push(OrderOp::Weight { worker, weight: Some(weight) });
    }
    for (reference, pin) in pins {
        orders.push(OrderOp::Pin { appliance: find(reference)?, pin: Some(pin) });
    }
    let mut join = Vec::new();
    for (id, wire::plan_assumptions::Joiner { weight, zone, host, drivers, .. }) in joiners {
        let mut known = Vec::new();
        for driver in drivers {
            match driver.parse::<DriverName>() {
                Ok(driver) => known.push(driver),
                Err(e) => wrong.push(FieldViolation::new("assumptions.join.drivers", e.to_string())),
            }
        }
        if weight > MAX_WEIGHT {
            let problem = format!("must be {MAX_WEIGHT} at most, is {weight}");
            wrong.push(FieldViolation::new("assumptions.join.weight", problem));
        }
        join.push(Joiner { id, weight: weight.max(1), zone, host, drivers: known });
    }
    let strategy = match strategy.as_str() {
        "" => None,
        "bounded" => Some(Strategy::Bounded),
        "ring" => Some(Strategy::Ring),
        _ => {
            wrong.push(FieldViolation::new("assumptions.strategy", "must be `bounded` or `ring`"));
            None
        }
    };
    let known = Spread::find(&spread);
    if !spread.is_empty() && known.is_none() {
        wrong.push(FieldViolation::new("assumptions.spread", "must be `none` or `tenant`"));
    }
    if band.is_some_and(|band| !(1.0..=MAX_BAND).contains(&band)) {
        wrong.push(FieldViolation::new("assumptions.band", format!("must be 1 to {MAX_BAND}")));
    }
    if !wrong.is_empty() {
        return Err(status::invalid(&wrong));
    }
    Ok(PlanAssumptions {
        leave,
        lost_zones: lost_zones.into_iter().collect(),
        join,
        orders,
        strategy,
        band,
        spread: known,
    })
}

/// Reads which moves are asked for.
pub(super) fn part(size: i32, token: &str) -> Result<PlanPart, Status> {
    let size = page::size(size)?;
    if token.is_empty() {
        return Ok(PlanPart { first: 0, size, of: None });
    }
    let text = page::open(token).ok_or_else(page::odd)?;
    let (of, first) = text.split_once('/').ok_or_else(page::odd)?;
    Ok(PlanPart { first: first.parse().map_err(|_| page::odd())?, size, of: Some(of.to_owned()) })
}

/// A plan with the moves of this part.
pub(super) fn to_wire(view: &PlanView, part: &PlanPart) -> wire::PlacementPlan {
    use wire::placement_plan::{LoadChange, PlannedMove, PlannedUnplaced};
    let named = |name: &Option<(common::appliance::Name, common::appliance::Name)>| {
        name.as_ref().map(|(tenant, name)| (tenant.to_string(), name.to_string())).unwrap_or_default()
    };
    let planned = |planned: &PlannedMoveView| {
        let (tenant, name) = named(&planned.name);
        PlannedMove {
            appliance: planned.appliance.to_string(),
            tenant,
            name,
            from: planned.from.as_ref().map(ToString::to_string).unwrap_or_default(),
            to: planned.to.to_string(),
            reason: planned.reason.to_owned(),
        }
    };
    let unplaced = |unplaced: &UnplacedView| {
        let (tenant, name) = named(&unplaced.name);
        PlannedUnplaced {
            appliance: unplaced.appliance.to_string(),
            tenant,
            name,
            reason: unplaced.reason.clone(),
            already: unplaced.already,
        }
    };
    let next = part.first.saturating_add(view.moves.len());
    let has_more = !view.moves.is_empty() && (next as u64) < view.total;
    wire::PlacementPlan {
        id: view.id.clone(),
        version: view.version.clone(),
        r#move: view.moves.iter().map(planned).collect(),
        next_page_token: if has_more { page::seal(&format!("{}/{next}", view.id)) } else { String::new() },
        moves: view.total,
        hand_offs: view.hand_offs,
        tenants: view.tenants.iter().map(|(tenant, n)| (tenant.to_string(), *n)).collect(),
        loads: view
            .loads
            .iter()
            .map(|(id, load)| LoadChange { worker: id.to_string(), before: load.before, after: load.after })
            .collect(),
        unplaced: view.unplaced.iter().map(unplaced).collect(),
        unplaced_count: view.unplaced_total,
        duration: prost_types::Duration::try_from(view.duration).ok(),
        hand_off: prost_types::Duration::try_from(view.hand_off).ok(),
        measured: view.measured,
        not_appliable: view.not_appliable.clone().unwrap_or_default(),
        notes: Vec::new(),
        uneven_before: view.uneven.before,
        uneven_after: view.uneven.after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).expect("a valid name")
    }

    fn read(assumed: wire::PlanAssumptions) -> Result<PlanAssumptions, Status> {
        assumptions(Some(assumed), |_| Ok(ApplianceId::from_u128(1)))
    }

    #[test]
    fn assumptions_are_read_in_the_order_of_the_fields() {
        let assumed = wire::PlanAssumptions {
            drain: vec!["w1".into()],
            undrain: vec!["w2".into()],
            weight: [("w3".to_owned(), 2)].into(),
            pin: vec![wire::plan_assumptions::AssumedPin { worker: "w4".into(), strict: true, ..Default::default() }],
            join: vec![wire::plan_assumptions::Joiner { id: "w9".into(), ..Default::default() }],
            strategy: "ring".into(),
            ..wire::PlanAssumptions::default()
        };
        let found = read(assumed).expect("in order");
        let pin = Some(Pin { worker: worker("w4"), strict: true });
        let expected = [
            OrderOp::Drain { worker: worker("w2"), set: false },
            OrderOp::Drain { worker: worker("w1"), set: true },
            OrderOp::Weight { worker: worker("w3"), weight: Some(2) },
            OrderOp::Pin { appliance: ApplianceId::from_u128(1), pin },
        ];
        assert_eq!(found.orders, expected);
        assert_eq!((found.join[0].weight, found.strategy), (1, Some(Strategy::Ring)));
        assert_eq!(
            assumptions(None, |_| Err(Status::internal("nothing is looked up"))).expect("nothing"),
            PlanAssumptions::default()
        );
    }

    #[test]
    fn what_cannot_be_assumed_is_named() {
        let odd = wire::PlanAssumptions {
            drain: vec!["no name".into()],
            weight: [("w1".to_owned(), 0)].into(),
            strategy: "best".into(),
            band: Some(f64::NAN),
            spread: "zone".into(),
            ..wire::PlanAssumptions::default()
        };
        let text = read(odd).expect_err("five mistakes").message().to_owned();
        assert!(text.contains("assumptions.drain") && text.contains("4 more"), "{text}");
        let many = wire::PlanAssumptions { drain: vec!["w1".into(); MAX_ASSUMED + 1], ..Default::default() };
        assert!(read(many).is_err());
    }

    #[test]
    fn a_page_goes_on_with_its_own_plan() {
        assert_eq!(part(0, "").expect("the first"), PlanPart { first: 0, size: 100, of: None });
        let token = page::seal("p01/500");
        assert_eq!(part(7, &token).expect("made here"), PlanPart { first: 500, size: 7, of: Some("p01".into()) });
        assert!(part(0, "zz").is_err() && part(0, &page::seal("p01")).is_err());
    }
}
