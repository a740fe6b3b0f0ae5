//! Proposals: pure, also under assumptions, and adopted only by the table they were made from.

use proptest::collection::{btree_set, vec};
use proptest::strategy::Strategy as _;

use super::*;

/// One member: weight, site, and 1 in 5 each without a stream, draining, or with one driver only.
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
    (any::<bool>(), members(), members(), appliances, 0usize..150).prop_map(
        |(bounded, before, after, appliances, carried)| {
            let mut planner = planner(if bounded { Strategy::Bounded } else { Strategy::Ring }, before);
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
                if state == 2 {
                    planner.set_excluded(Slot(slot), [worker("w0"), worker("w2")].into());
                }
            }
            let plan = planned(&mut planner);
            for m in plan.moves().take(carried) {
                planner.set_owner(m.slot, Some(m.to), None);
            }
            planner.set_members(after);
            planner
        },
    )
}

/// Every kind of assumption but pins.
fn assumptions() -> impl proptest::strategy::Strategy<Value = Assumptions> {
    let names = || btree_set(0usize..9, 0..3);
    let set = |names: BTreeSet<usize>| names.into_iter().map(|n| worker(&format!("w{n}"))).collect();
    (names(), vec((0usize..9, drawn()), 0..3), names(), vec((0usize..9, 0u32..5), 0..3)).prop_map(
        move |(leave, join, drain, weights)| Assumptions {
            leave: set(leave),
            join: join.into_iter().map(|(n, drawn)| as_drawn(n, drawn)).collect(),
            drain: set(drain),
            weights: weights.into_iter().map(|(n, weight)| (worker(&format!("w{n}")), weight)).collect(),
            pins: BTreeMap::new(),
        },
    )
}

/// The members after what was assumed has come true, found in another way than by [`Assumptions::members`].
fn come_true(planner: &mut Planner, assumed: &Assumptions) {
    let mut members: BTreeMap<WorkerId, PlannerMember> =
        planner.members().iter().map(|member| (member.id.clone(), member.clone())).collect();
    members.retain(|id, _| !assumed.leave.contains(id));
    members.extend(assumed.join.iter().map(|member| (member.id.clone(), member.clone())));
    for (id, member) in &mut members {
        if assumed.drain.contains(id) {
            member.draining = true;
        }
        if let Some(weight) = assumed.weights.get(id) {
            member.weight = *weight;
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
        let assumed =
            Assumptions { pins: pins.iter().map(|(slot, to)| (id(*slot), to.clone())).collect(), ..Assumptions::default() };
        let plan = planner.propose(&assumed);
        let mut moves = BTreeMap::new();
        for m in plan.moves() {
            prop_assert_eq!(m.appliance, id(m.slot.0));
            prop_assert!(moves.insert(m.slot, m).is_none(), "{} moves twice", m.appliance);
            prop_assert!(m.reason != Reason::Pinned || pins.get(&m.slot.0) == Some(m.to));
        }
        for (slot, to) in pins {
            let candidates = planner.explain(Slot(slot));
            // A member that drains, or lacks what is needed, gives up what it has, and is given nothing.
            let can_take = candidates.iter().filter(|c| c.member == to).any(|c| match c.standing {
                CandidateStanding::Refused(refusal) => refusal == CandidateRefusal::AtCeiling,
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
    let drained = Assumptions { drain: [worker("w001")].into(), ..Assumptions::default() };
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
    let pins = pinned.iter().map(|slot| (id(*slot), worker("w000"))).collect();
    let plan = planner.propose(&Assumptions { pins, ..Assumptions::default() });
    assert_eq!(reasons(&plan)[&Reason::Pinned], 20);
    assert!(plan.moves().filter(|m| m.reason != Reason::Pinned).all(|m| !pinned.contains(&m.slot.0)));
    carry_out(&mut planner, &plan);
    assert!(planned(&mut planner).is_empty(), "the others made room");
}
