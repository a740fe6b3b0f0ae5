use std::collections::BTreeMap;

use common::driver::DriverCapabilities;
use proptest::prelude::*;

use super::Strategy;
use super::*;

mod balance;
mod explained;
mod limits;
mod ordered;
mod proposals;
mod reasons;
mod ring_strategy;
mod spread;

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a valid name")
}

/// A connected member of weight 1 with both drivers.
fn member(name: &str) -> PlannerMember {
    PlannerMember {
        id: worker(name),
        weight: 1,
        published_weight: 1,
        zone: String::new(),
        host: "h1".into(),
        drivers: [process(), simulated()].into(),
        connected: true,
        draining: false,
        drained: false,
        cordoned: false,
    }
}

/// A host-bound driver that runs every kind.
fn process() -> (DriverName, DriverCapabilities) {
    (DriverName::process(), DriverCapabilities::of_all_kinds(Some("")))
}

/// A driver that is not bound to a host and runs every kind.
fn simulated() -> (DriverName, DriverCapabilities) {
    (DriverName::simulated(), DriverCapabilities::of_all_kinds(None))
}

fn fleet(size: usize) -> Vec<PlannerMember> {
    (0..size).map(|n| member(&format!("w{n:03}"))).collect()
}

fn anywhere() -> Needs {
    Needs { driver: DriverName::simulated(), kind: KindName::Custom, site: None }
}

fn on_site(site: &str) -> Needs {
    Needs { driver: DriverName::process(), kind: KindName::Custom, site: Some(site.into()) }
}

fn planner(strategy: Strategy, members: Vec<PlannerMember>) -> Planner {
    planner_of(Config { strategy, ..Config::default() }, members)
}

fn planner_of(config: Config, members: Vec<PlannerMember>) -> Planner {
    let mut planner = Planner::new(config, Term::new(3));
    planner.set_members(members);
    planner
}

/// A tenant by number.
fn tenant(number: u32) -> Option<Name> {
    Name::new(&format!("t{number}")).ok()
}

fn create(planner: &mut Planner, slots: std::ops::Range<u32>) {
    for slot in slots {
        planner.insert(Slot(slot), id(slot), &format!("appliance-{slot}"), anywhere(), None, None);
    }
}

/// Names the appliance that these tests put into a slot.
fn id(slot: u32) -> ApplianceId {
    ApplianceId::from_u128(1_000 + u128::from(slot))
}

/// The plan for the members as they are, adopted.
fn planned(planner: &mut Planner) -> Plan {
    let plan = planner.propose(&Assumptions::default());
    planner.adopt(&plan).expect("nothing changed since");
    plan
}

fn unplaceable(slot: u32, why: Unplaced) -> Unplaceable {
    Unplaceable { appliance: id(slot), slot: Slot(slot), why }
}

/// What a plan says, whatever it was made from.
type PlanContent = (Vec<(Slot, ApplianceId, Option<WorkerId>, WorkerId, Reason)>, Vec<Unplaceable>, Vec<BandRelaxed>);

/// What a plan asks for, whatever version and assumptions it was made from.
fn content(plan: Plan) -> PlanContent {
    let moves = plan.moves().map(|m| (m.slot, m.appliance, m.from.cloned(), m.to.clone(), m.reason));
    (moves.collect(), plan.unplaced, plan.relaxed)
}

/// Makes every move of a plan at once.
fn carry_out(planner: &mut Planner, plan: &Plan) {
    for m in plan.moves() {
        planner.set_owner(m.slot, Some(m.to), None);
    }
}

fn settle(planner: &mut Planner) -> Plan {
    let plan = planned(planner);
    carry_out(planner, &plan);
    plan
}

/// A planner with `appliances` placed on `members`.
fn settled(strategy: Strategy, members: Vec<PlannerMember>, appliances: u32) -> Planner {
    let mut planner = planner(strategy, members);
    create(&mut planner, 0..appliances);
    settle(&mut planner);
    planner
}

fn loads(planner: &Planner) -> Vec<u64> {
    planner.members().iter().map(|m| planner.load(&m.id)).collect()
}

fn reasons(plan: &Plan) -> BTreeMap<Reason, usize> {
    let mut counts = BTreeMap::new();
    for m in plan.moves() {
        *counts.entry(m.reason).or_default() += 1;
    }
    counts
}
