//! Plans that are shown before they come true.

use super::*;
use crate::orders::OrderOp;
use crate::planner::{PlannedMove, PlannerMember};

/// Who gets what from whom.
type Moves = BTreeMap<ApplianceId, (Option<WorkerId>, WorkerId)>;

fn moves_of<'a>(moves: impl Iterator<Item = PlannedMove<'a>>) -> Moves {
    moves.map(|m| (m.appliance, (m.from.cloned(), m.to.clone()))).collect()
}

/// Moves that are in one of them only, or go elsewhere.
fn differing(made: &Moves, shown: &Moves) -> Moves {
    let of = |these: &Moves, others: &Moves| -> Moves {
        these.iter().filter(|(id, way)| others.get(id) != Some(way)).map(|(id, way)| (*id, way.clone())).collect()
    };
    of(made, shown).into_iter().chain(of(shown, made)).collect()
}

/// So many workers with so many appliances between them.
fn fleet(workers: usize, appliances: u128) -> World {
    let seeds = (1..=appliances).map(|n| (seed(n), StoredGrant::default())).collect();
    let restored = Restored { appliances: seeds, ..Restored::default() };
    let mut w = World::with(Config { reconnect_grace: Duration::ZERO, ..Config::default() }, Term::new(1), restored);
    w.unchecked = true;
    for n in 1..=workers {
        w.connect(&format!("w{n:02}"));
    }
    w.pass(Duration::from_secs(2));
    assert_eq!(w.loads().iter().sum::<usize>() as u128, appliances);
    w.events.clear();
    w
}

impl World {
    /// Lets everything happen that is to happen.
    fn settle(&mut self) {
        loop {
            let before = self.moved();
            // Each tick makes a plan of what the moves before have left room for.
            (0..20).for_each(|_| self.step(Event::Tick));
            self.pass(Duration::from_millis(100));
            if self.moved() == before && self.machine.moves_in_flight() == 0 {
                return;
            }
        }
    }

    fn made(&self) -> Moves {
        let made = self.events.iter().filter_map(|event| match event {
            RebalanceEvent::Moved { appliance, from, to, .. } => Some((*appliance, (from.clone(), to.clone()))),
            _ => None,
        });
        made.collect()
    }
}

#[test]
fn a_join_moves_exactly_what_its_plan_shows() {
    let mut w = fleet(10, 10_000);
    let joiner = PlannerMember { id: worker("w11"), ..w.machine.planner().members()[0].clone() };
    let assumed = Assumptions { join: vec![joiner], ..Assumptions::default() };
    let forecast = w.machine.planner().forecast(&assumed);
    let shown = moves_of(forecast.plan.moves());
    assert!(shown.len() > 800, "{}", shown.len());
    assert_eq!((forecast.hand_offs, forecast.busiest), (shown.len() as u64, shown.len() as u64));
    w.connect("w11");
    w.pass(Duration::from_secs(1));
    w.settle();
    assert_eq!(w.moved(), shown.len());
    assert_eq!(differing(&w.made(), &shown), Moves::new());
    let loads: Vec<u64> = forecast.loads.values().map(|load| load.after).collect();
    assert_eq!(loads, w.loads().iter().map(|n| *n as u64).collect::<Vec<_>>());
}

#[test]
fn orders_move_exactly_what_their_plan_shows() {
    let mut w = fleet(5, 1_000);
    let orders = vec![
        OrderOp::Drain { worker: worker("w01"), set: true },
        OrderOp::Weight { worker: worker("w02"), weight: Some(2) },
        OrderOp::Cordon { worker: worker("w03"), set: true },
    ];
    let assumed = Assumptions { orders: orders.clone(), ..Assumptions::default() };
    assert!(assumed.is_orders_only());
    let shown = moves_of(w.machine.planner().forecast(&assumed).plan.moves());
    w.step(Event::Orders(orders));
    w.settle();
    assert_eq!(w.moved(), shown.len());
    assert_eq!(differing(&w.made(), &shown), Moves::new());
}

#[test]
fn a_forecast_names_how_long_it_takes() {
    let w = fleet(3, 30);
    let drain = vec![OrderOp::Drain { worker: worker("w01"), set: true }];
    let forecast = w.machine.planner().forecast(&Assumptions { orders: drain, ..Assumptions::default() });
    assert_eq!((forecast.hand_offs, forecast.busiest), (10, 10));
    let second = Duration::from_secs(1);
    assert_eq!(forecast.duration(second, |moves| moves.div_ceil(2), 512), 5 * second);
    assert_eq!(forecast.duration(second, |moves| moves.div_ceil(128), 3), 4 * second);
    assert_eq!(forecast.duration(second, |moves| moves, 0), 10 * second);
    let gone = Assumptions { leave: [worker("w01")].into(), ..Assumptions::default() };
    let lost = w.machine.planner().forecast(&gone);
    assert_eq!((lost.plan.moves().len(), lost.hand_offs), (10, 0), "whoever is gone is not asked");
    assert_eq!(lost.loads[&worker("w01")].after, 0);
}
