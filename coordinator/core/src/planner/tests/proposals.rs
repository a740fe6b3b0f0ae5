//! Proposals: pure, also under assumptions, and adopted only by the table they were made from.

use proptest::collection::{btree_set, vec};
use proptest::strategy::Strategy as _;

use super::*;
use crate::orders::OrderOp;

/// One member: weight, site, and 2 in 15 each without a stream, draining, with one driver only, drained, or cordoned.
type Drawn = (u32, bool, u8);

fn drawn() -> impl proptest::strategy::Strategy<Value = Drawn> {
    (1u32..4, any::<bool>(), 0u8..15)
}

fn as_drawn(name: usize, (weight, site, state): Drawn) -> PlannerMember {
    let mut member = PlannerMember {
        weight,
        host: if site { "h1" } else { "h2" }.into(),
        connected: state != 0 && state != 1,
        draining: state == 2 || state == 3,
        drained: state == 6 || state == 7,
        cordoned: state == 8 || state == 9,
        published_weight: 2,
        zone: format!("z{}", name % 3),
        ..member(&format!("w{name}"))
    };
    if state == 4 || state == 5 {
        member.drivers = [simulated()].into();
    }
    member
}

fn members() -> impl proptest::strategy::Strategy<Value = Vec<PlannerMember>> {
    vec(drawn(), 0..7).prop_map(|drawn| drawn.into_iter().enumerate().map(|(n, d)| as_drawn(n, d)).collect())
}

/// A planner whose appliances are partly placed as planned and partly anywhere, some of them fixed or declined.
fn planners() -> impl proptest::strategy::Strategy<Value = Planner> {
    let appliances = vec((0u8..4, 0usize..12, 0u8..10), 0..150);
    (0u8..3, members(), members(), appliances, 0usize..150).prop_map(|(policy, before, after, appliances, carried)| {
        let strategy = if policy > 0 { Strategy::Bounded } else { Strategy::Ring };
        let spread = if policy > 1 { Spread::Tenant } else { Spread::None };
        let mut planner = planner_of(Config { strategy, spread, ..Config::default() }, before);
        for (slot, (needs, owner, state)) in (0..).zip(appliances) {
            let needs = match needs {
                0 => on_site("h1"),
                1 => on_site("h2"),
                _ => anywhere(),
            };
            let owner = (owner < 8).then(|| worker(&format!("w{owner}")));
            let former = (state == 0).then(|| worker("w1"));
            planner.insert(Slot(slot), id(slot), &format!("a{slot}"), needs, owner.as_ref(), former.as_ref());
            planner.set_movable(Slot(slot), state != 1);
            planner.set_tenant(Slot(slot), tenant(slot % 20).as_ref());
            if state == 2 {
                planner.set_excluded(Slot(slot), [worker("w0"), worker("w2")].into());
            }
        }
        let plan = planned(&mut planner);
        for m in plan.moves().take(carried) {
            planner.set_owner(m.slot, Some(m.to), None);
        }
        planner.set_members(after);
        for slot in (0..carried as u32).step_by(7) {
            let pin = Pin { worker: worker(&format!("w{}", slot % 9)), strict: slot % 2 == 0 };
            planner.set_pin(Slot(slot), Some(pin));
        }
        planner
    })
}

/// Every kind of assumption.
fn assumptions() -> impl proptest::strategy::Strategy<Value = Assumptions> {
    let names = || btree_set(0usize..9, 0..3);
    let set = |names: BTreeSet<usize>| names.into_iter().map(|n| worker(&format!("w{n}"))).collect();
    (names(), vec((0usize..9, drawn()), 0..3), vec((0u8..4, 0usize..9, 0u32..5, any::<bool>()), 0..6)).prop_map(
        move |(leave, join, orders)| Assumptions {
            leave: set(leave),
            lost_zones: BTreeSet::new(),
            join: join.into_iter().map(|(n, drawn)| as_drawn(n, drawn)).collect(),
            orders: orders.into_iter().map(order).collect(),
            policy: None,
        },
    )
}

fn pin(slot: u32, to: &WorkerId, strict: bool) -> OrderOp {
    OrderOp::Pin { appliance: id(slot), pin: Some(Pin { worker: to.clone(), strict }) }
}

fn order((sort, n, amount, set): (u8, usize, u32, bool)) -> OrderOp {
    let worker = worker(&format!("w{n}"));
    match sort {
        0 => OrderOp::Cordon { worker, set },
        1 => OrderOp::Drain { worker, set },
        2 => OrderOp::Weight { worker, weight: set.then_some(amount) },
        _ => {
            let pin = Pin { worker, strict: amount % 2 == 0 };
            OrderOp::Pin { appliance: id(amount * 7 + n as u32), pin: set.then_some(pin) }
        }
    }
}

/// The last order of each sort about a member: cordoned, drained, weight.
type LastOrders = (Option<bool>, Option<bool>, Option<Option<u32>>);

/// The members after what was assumed has come true, found in another way than by [`Assumptions::members`].
fn come_true(planner: &mut Planner, assumed: &Assumptions) {
    let mut members: BTreeMap<WorkerId, PlannerMember> =
        planner.members().iter().map(|member| (member.id.clone(), member.clone())).collect();
    members.retain(|id, _| !assumed.leave.contains(id));
    members.extend(assumed.join.iter().map(|member| (member.id.clone(), member.clone())));
    // As the machine does it: what all orders come to is kept by name, apart from the members.
    let mut ordered: BTreeMap<WorkerId, LastOrders> = BTreeMap::new();
    for op in &assumed.orders {
        match op.clone() {
            OrderOp::Cordon { worker, set } => ordered.entry(worker).or_default().0 = Some(set),
            OrderOp::Drain { worker, set } => ordered.entry(worker).or_default().1 = Some(set),
            OrderOp::Weight { worker, weight } => ordered.entry(worker).or_default().2 = Some(weight),
            OrderOp::Pin { appliance, pin } => {
                let slot = planner.book.ids().find(|(_, id)| **id == appliance).map(|(slot, _)| Slot(slot));
                slot.into_iter().for_each(|slot| planner.set_pin(slot, pin.clone()));
            }
            OrderOp::Budget { .. } => {}
        }
    }
    let bounded = planner.config.strategy == Strategy::Bounded;
    for (id, (cordoned, drained, weight)) in ordered {
        let Some(member) = members.get_mut(&id) else { continue };
        member.drained = drained.unwrap_or(member.drained);
        if bounded {
            member.cordoned = cordoned.unwrap_or(member.cordoned);
            member.weight = weight.map_or(member.weight, |weight| weight.unwrap_or(member.published_weight));
        }
    }
    planner.set_members(members.into_values().collect());
}

/// What a plan says, by appliance: strategy `ring` lists moves arc by arc, and adopting a plan cuts the arcs differently.
fn in_order(plan: Plan) -> PlanContent {
    let (mut moves, mut unplaced, relaxed) = content(plan);
    moves.sort_by_key(|planned| planned.0);
    unplaced.sort_by_key(|one| one.slot);
    (moves, unplaced, relaxed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_proposal_changes_nothing_and_is_the_same_each_time(mut planner in planners(), assumed in assumptions()) {
        let own = planner.propose(&Assumptions::default());
        let version = planner.version();
        let first = planner.propose(&assumed);
        prop_assert_eq!(&first, &planner.propose(&assumed));
        prop_assert_eq!(&first, &planner.clone().propose(&assumed));
        prop_assert_eq!(&own, &planner.propose(&Assumptions::default()));
        prop_assert_eq!(planner.version(), version);
        // What adopting keeps makes later plans cheaper and not different.
        prop_assert_eq!(planner.adopt(&own), Ok(()));
        prop_assert_eq!(in_order(first), in_order(planner.propose(&assumed)));
        prop_assert_eq!(in_order(own), in_order(planner.propose(&Assumptions::default())));
        prop_assert_eq!(planner.version(), version);
    }

    #[test]
    fn a_plan_under_assumptions_is_the_plan_once_they_came_true(mut planner in planners(), assumed in assumptions()) {
        let expected = in_order(planner.propose(&assumed));
        come_true(&mut planner, &assumed);
        prop_assert_eq!(expected, in_order(planner.propose(&Assumptions::default())));
    }

    #[test]
    fn a_stale_plan_is_refused_and_changes_nothing(mut planner in planners(), change in 0u8..6) {
        planner.insert(Slot(200), id(200), "late", anywhere(), None, None);
        let stale = planner.propose(&Assumptions::default());
        match change {
            0 => planner.remove(Slot(200)),
            1 => planner.set_needs(Slot(200), on_site("h1")),
            2 => planner.set_owner(Slot(200), Some(&worker("w5")), None),
            3 => _ = planner.set_movable(Slot(200), false),
            4 => planner.set_excluded(Slot(200), [worker("w0")].into()),
            _ => planner.set_members(fleet(3)),
        }
        let current = planner.version();
        let next = planner.propose(&Assumptions::default());
        let refused = planner.adopt(&stale);
        prop_assert_eq!(refused, Err(PlanRefused::Stale { planned: stale.version, current }));
        prop_assert_eq!(next, planner.propose(&Assumptions::default()));
    }

    #[test]
    fn a_pinned_appliance_goes_where_it_is_pinned_if_that_member_can_take_it(
        planner in planners(),
        pins in proptest::collection::btree_map(0u32..150, 0usize..9, 1..8),
    ) {
        let pins: BTreeMap<u32, WorkerId> =
            pins.into_iter().map(|(slot, n)| (slot, worker(&format!("w{n}")))).collect();
        let pinned: BTreeMap<u32, WorkerId> =
            planner.pins.iter().map(|(slot, pin)| (slot.0, pin.worker.clone())).chain(pins.clone()).collect();
        let plan = planner.propose(&Assumptions { orders: pins.iter().map(|(slot, to)| pin(*slot, to, false)).collect(), ..Assumptions::default() });
        let mut moves = BTreeMap::new();
        for m in plan.moves() {
            prop_assert_eq!(m.appliance, id(m.slot.0));
            prop_assert!(moves.insert(m.slot, m).is_none(), "{} moves twice", m.appliance);
            prop_assert!(m.reason != Reason::Pinned || pinned.get(&m.slot.0) == Some(m.to));
        }
        for (slot, to) in pins {
            let candidates = planner.explain(Slot(slot));
            // A member that drains, or lacks what is needed, gives up what it has, and is given nothing.
            let is_open = planner.members().iter().any(|m| m.id == to && !m.gives_up() && !m.cordoned);
            // Of an owner that gives it up for two reasons one is told.
            let lacks_nothing = planner.lack(Slot(slot), &to).is_none();
            let can_take = is_open && lacks_nothing && candidates.iter().filter(|c| c.member == to).any(|c| match c.standing {
                CandidateStanding::Refused(refusal) => {
                    matches!(refusal, CandidateRefusal::AtCeiling | CandidateRefusal::PinnedElsewhere)
                }
                CandidateStanding::GivesUp(reason) => !matches!(reason, Reason::Draining | Reason::Ineligible),
                _ => true,
            });
            let Some(entry) = planner.book.entry(Slot(slot)) else { continue };
            let stays = planner.members().iter().any(|m| !m.connected && candidates.iter().any(|c| c.is_owner && c.member == m.id));
            if planner.config.strategy == Strategy::Ring || !can_take || !entry.movable || stays {
                continue;
            }
            let is_there = candidates.iter().any(|c| c.is_owner && c.member == to);
            let planned = moves.get(&Slot(slot)).map(|m| (m.to, m.reason));
            prop_assert_eq!(planned, (!is_there).then_some((&to, Reason::Pinned)));
        }
    }
}

#[test]
fn a_plan_made_under_assumptions_is_never_adopted() {
    let mut planner = settled(Strategy::Bounded, fleet(2), 20);
    let assumed = Assumptions { join: vec![member("w002")], ..Assumptions::default() };
    let plan = planner.propose(&assumed);
    assert!(plan.moves().any(|m| *m.to == worker("w002")));
    assert_eq!(planner.adopt(&plan), Err(PlanRefused::Assumed(plan.id)));
    // Not even when all of it has come true.
    come_true(&mut planner, &assumed);
    assert_eq!(planner.adopt(&plan), Err(PlanRefused::Assumed(plan.id)));
}

#[test]
fn ids_differ_with_the_version_and_with_what_is_assumed() {
    let mut planner = settled(Strategy::Bounded, fleet(3), 30);
    let drain = OrderOp::Drain { worker: worker("w001"), set: true };
    let drained = Assumptions { orders: vec![drain], ..Assumptions::default() };
    let (plain, assumed) = (planner.propose(&Assumptions::default()), planner.propose(&drained));
    assert_ne!(plain.id, assumed.id);
    planner.set_movable(Slot(0), false);
    assert_ne!(planner.propose(&Assumptions::default()).id, plain.id);
    planner.set_movable(Slot(0), false);
    assert_eq!(planner.version(), TableVersion { revision: plain.version.revision + 1, ..plain.version });
}

#[test]
fn a_pin_keeps_the_band_for_the_others() {
    let mut planner = settled(Strategy::Bounded, fleet(4), 400);
    let pinned: Vec<u32> = (0..400)
        .filter(|slot| planner.explain(Slot(*slot)).iter().any(|c| c.is_owner && c.member != worker("w000")))
        .take(20)
        .collect();
    let orders: Vec<OrderOp> = pinned.iter().map(|slot| pin(*slot, &worker("w000"), false)).collect();
    let assumed = planner.propose(&Assumptions { orders, ..Assumptions::default() });
    for slot in &pinned {
        planner.set_pin(Slot(*slot), Some(Pin { worker: worker("w000"), strict: false }));
    }
    let plan = planned(&mut planner);
    assert_eq!(content(assumed), content(plan.clone()), "what is assumed is one mechanism with what is ordered");
    assert_eq!(reasons(&plan)[&Reason::Pinned], 20);
    assert!(plan.moves().filter(|m| m.reason != Reason::Pinned).all(|m| !pinned.contains(&m.slot.0)));
    carry_out(&mut planner, &plan);
    assert!(planned(&mut planner).is_empty(), "the others made room");
}
