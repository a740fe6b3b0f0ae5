//! Strategy `bounded`: balance inside the band at the least movement.

use proptest::strategy::Strategy as _;

use super::*;

const BAND: f64 = 1.05;

/// Floor and ceiling by the formula of the design, with integers where the band is 21/20.
fn bounds(total: u64, weight: u64, weights: u64) -> (u64, u64) {
    ((total * weight * 20) / (weights * 21), (total * weight * 21).div_ceil(weights * 20))
}

/// The least number of moves that puts every member inside its band: `homeless + max(excess, deficit - homeless)`.
fn least(before: &[(u64, u64)], homeless: u64) -> u64 {
    let total: u64 = before.iter().map(|(load, _)| load).sum::<u64>() + homeless;
    let weights: u64 = before.iter().map(|(_, weight)| weight).sum();
    let (mut excess, mut deficit) = (0, 0);
    for &(load, weight) in before {
        let (floor, ceiling) = bounds(total, weight, weights);
        excess += load.saturating_sub(ceiling);
        deficit += floor.saturating_sub(load);
    }
    homeless + excess.max(deficit.saturating_sub(homeless))
}

fn assert_in_band(planner: &Planner) {
    let members = planner.members();
    let total: u64 = loads(planner).iter().sum();
    let weights: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    for m in members {
        let (floor, ceiling) = bounds(total, u64::from(m.weight), weights);
        let load = planner.load(&m.id);
        assert!((floor..=ceiling).contains(&load), "{} holds {load}, not {floor} to {ceiling}", m.id);
    }
}

#[test]
fn the_default_band_is_the_one_of_these_tests() {
    assert!((Config::default().band - BAND).abs() < f64::EPSILON);
}

#[test]
fn three_workers_share_thirty_and_one_that_returns_gets_its_share_with_nine_moves() {
    let mut planner = settled(Strategy::Bounded, fleet(3), 30);
    assert_in_band(&planner);
    let all = fleet(3);
    planner.set_members(all[..2].to_vec());
    let lost = planner.load(&worker("w002"));
    let plan = settle(&mut planner);
    assert_eq!(plan.moves().len() as u64, lost);
    assert!(plan.moves().all(|m| m.from == Some(&worker("w002")) && m.reason == Reason::Unowned));
    planner.set_members(all);
    let plan = settle(&mut planner);
    assert_eq!(plan.moves().len(), 9);
    assert!(plan.moves().all(|m| *m.to == worker("w002")));
    assert_in_band(&planner);
}

#[test]
fn a_joiner_gets_keys_of_its_own_arcs_where_it_can() {
    let mut planner = settled(Strategy::Bounded, fleet(10), 10_000);
    planner.set_members(fleet(11));
    let joiner = worker("w010");
    let home = |slot: Slot| planner.ring().owner(&format!("appliance-{}", slot.0)) == Some(&joiner);
    let mut copy = planner.clone();
    let plan = planned(&mut copy);
    let at_home = plan.moves().filter(|m| home(m.slot)).count();
    let available = (0..10_000).filter(|&slot| home(Slot(slot))).count();
    assert!(at_home * 10 > plan.moves().len().min(available) * 6, "{at_home} of {}, {available}", plan.moves().len());
}

#[test]
fn creating_one_by_one_moves_nothing_that_is_owned() {
    let mut planner = planner(Strategy::Bounded, fleet(7));
    for slot in 0..3_000 {
        create(&mut planner, slot..slot + 1);
        let plan = settle(&mut planner);
        assert_eq!(plan.moves().map(|m| m.slot).collect::<Vec<_>>(), [Slot(slot)], "{plan:?}");
    }
    assert_in_band(&planner);
}

#[test]
fn a_member_without_a_stream_keeps_what_it_has_and_moves_nothing_elsewhere() {
    let mut planner = settled(Strategy::Bounded, fleet(10), 1_003);
    for away in 0..10 {
        let mut members = fleet(10);
        members[away].connected = false;
        planner.set_members(members);
        assert!(planned(&mut planner).is_empty());
    }
    let mut members = fleet(11);
    members[10].connected = false;
    planner.set_members(members);
    assert!(planned(&mut planner).is_empty());
}

#[test]
fn a_drained_member_ends_with_nothing_and_the_others_in_their_band() {
    let mut planner = settled(Strategy::Bounded, fleet(5), 1_000);
    let mut members = fleet(5);
    members[3].draining = true;
    planner.set_members(members);
    let had = planner.load(&worker("w003"));
    let plan = settle(&mut planner);
    assert_eq!(reasons(&plan), BTreeMap::from([(Reason::Draining, had as usize)]));
    assert_eq!(planner.load(&worker("w003")), 0);
    assert!(planned(&mut planner).is_empty());
}

#[test]
fn appliances_bound_to_hosts_are_balanced_over_the_workers_of_their_host() {
    let mut members = fleet(6);
    for (n, m) in members.iter_mut().enumerate() {
        m.host = format!("h{}", n % 2);
    }
    let mut planner = planner(Strategy::Bounded, members);
    for slot in 0..600 {
        // Two thirds on h0: 400 over w0, w2, w4.
        planner.insert(
            Slot(slot),
            id(slot),
            &format!("k{slot}"),
            on_site(if slot % 3 == 0 { "h1" } else { "h0" }),
            None,
            None,
        );
    }
    settle(&mut planner);
    for (n, load) in loads(&planner).into_iter().enumerate() {
        let (floor, ceiling) = bounds(if n % 2 == 0 { 400 } else { 200 }, 1, 3);
        assert!((floor..=ceiling).contains(&load), "w{n} holds {load}");
    }
}

#[test]
fn needs_that_the_same_members_meet_share_a_band() {
    let mut planner = planner(Strategy::Bounded, fleet(4));
    for slot in 0..400 {
        let needs = if slot % 2 == 0 { anywhere() } else { on_site("h1") };
        planner.insert(Slot(slot), id(slot), &format!("k{slot}"), needs, None, None);
    }
    settle(&mut planner);
    assert_in_band(&planner);
    // Binding an appliance to the site it is on anyway moves nothing.
    (0..400).for_each(|slot| planner.set_needs(Slot(slot), on_site("h1")));
    assert!(planned(&mut planner).is_empty());
}

#[test]
fn what_cannot_be_moved_leaves_the_band_relaxed() {
    let mut planner = settled(Strategy::Bounded, fleet(2), 100);
    (0..100).for_each(|slot| _ = planner.set_movable(Slot(slot), false));
    planner.set_members(fleet(3));
    let plan = planned(&mut planner);
    assert_eq!(plan.moves().len(), 0);
    let joiner = plan.relaxed.iter().find(|r| r.member == worker("w002")).expect("the joiner stays empty");
    assert_eq!((joiner.load, joiner.floor, joiner.ceiling), (0, 31, 35));
}

#[test]
fn after_many_removals_the_band_is_kept_with_the_least_moves() {
    let mut planner = settled(Strategy::Bounded, fleet(8), 4_000);
    let full = worker("w001");
    let mut removed = 0;
    for slot in 0..4_000 {
        let owner = planner.explain(Slot(slot)).into_iter().find(|c| c.is_owner).expect("placed").member;
        if owner != full && removed < 1_500 {
            planner.remove(Slot(slot));
            removed += 1;
        }
    }
    let before: Vec<(u64, u64)> = loads(&planner).into_iter().map(|load| (load, 1)).collect();
    let plan = settle(&mut planner);
    assert!(plan.moves().len() > 0);
    assert_eq!(plan.moves().len() as u64, least(&before, 0));
    assert_in_band(&planner);
}

/// A step in the life of a fleet.
#[derive(Clone, Debug)]
enum Step {
    /// Members with these weights, by name.
    Members(BTreeMap<u8, u32>),
    Create(u16),
    Remove(u16),
    Release(u16),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => proptest::collection::btree_map(0u8..12, 1u32..4, 1..9).prop_map(Step::Members),
        2 => (1u16..300).prop_map(Step::Create),
        1 => (1u16..200).prop_map(Step::Remove),
        1 => (1u16..100).prop_map(Step::Release),
    ];
    proptest::collection::vec(step, 1..12)
}

fn of_weights(weights: &BTreeMap<u8, u32>) -> Vec<PlannerMember> {
    let zone = |n: u8| format!("z{}", n % 3);
    weights.iter().map(|(n, &weight)| PlannerMember { weight, zone: zone(*n), ..member(&format!("w{n}")) }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_inside_the_band_and_the_least_possible(steps in steps(), spread in any::<bool>()) {
        let spread = if spread { Spread::Tenant } else { Spread::None };
        let mut planner =
            planner_of(Config { spread, ..Config::default() }, of_weights(&BTreeMap::from([(0, 1), (1, 2)])));
        let (mut next, mut owners) = (0u32, BTreeMap::<u32, WorkerId>::new());
        for step in steps {
            match step {
                Step::Members(weights) => planner.set_members(of_weights(&weights)),
                Step::Create(count) => {
                    create(&mut planner, next..next + u32::from(count));
                    for slot in next..next + u32::from(count) {
                        planner.set_tenant(Slot(slot), tenant(slot % 40).as_ref());
                    }
                    next += u32::from(count);
                }
                Step::Remove(count) => {
                    for slot in owners.keys().copied().take(count.into()).collect::<Vec<_>>() {
                        planner.remove(Slot(slot));
                        owners.remove(&slot);
                    }
                }
                Step::Release(count) => {
                    for slot in owners.keys().copied().step_by(3).take(count.into()).collect::<Vec<_>>() {
                        planner.set_owner(Slot(slot), None, None);
                    }
                }
            }
            let before: Vec<(u64, u64)> =
                planner.members().iter().map(|m| (planner.load(&m.id), u64::from(m.weight))).collect();
            let total: u64 = planner.book.groups().map(|(_, g)| g.index.len() as u64).sum();
            let homeless = total - before.iter().map(|(load, _)| load).sum::<u64>();
            let plan = planned(&mut planner);
            prop_assert_eq!(&plan, &planned(&mut planner));
            prop_assert_eq!(plan.moves().len() as u64, least(&before, homeless));
            prop_assert_eq!(plan.unplaced.len() + plan.relaxed.len(), 0);
            let moved: BTreeSet<Slot> = plan.moves().map(|m| m.slot).collect();
            prop_assert_eq!(moved.len(), plan.moves().len());
            for m in plan.moves() {
                planner.set_owner(m.slot, Some(m.to), None);
                owners.insert(m.slot.0, m.to.clone());
            }
            assert_in_band(&planner);
            prop_assert!(planned(&mut planner).is_empty());
        }
    }

    #[test]
    fn the_order_of_input_does_not_matter(
        weights in proptest::collection::btree_map(0u8..12, 1u32..4, 2..9),
        order in Just((0u32..300).collect::<Vec<_>>()).prop_shuffle(),
        joiner in 1u32..4,
        spread in any::<bool>(),
    ) {
        let config = Config { spread: if spread { Spread::Tenant } else { Spread::None }, ..Config::default() };
        let mut members = of_weights(&weights);
        let mut forth = planner_of(config, members.clone());
        members.reverse();
        let mut back = planner_of(config, members.clone());
        // All members can take either, so that they share a band.
        let create = |planner: &mut Planner, slot: u32| {
            let needs = if slot.is_multiple_of(3) { on_site("h1") } else { anywhere() };
            planner.insert(Slot(slot), id(slot), &format!("k{slot}"), needs, None, None);
            planner.set_tenant(Slot(slot), tenant(slot % 40).as_ref());
        };
        (0..300).for_each(|slot| create(&mut forth, slot));
        order.into_iter().for_each(|slot| create(&mut back, slot));
        members.push(PlannerMember { weight: joiner, ..member("joiner") });
        for planner in [&mut forth, &mut back] {
            settle(planner);
            planner.set_members(members.clone());
        }
        prop_assert_eq!(content(planned(&mut forth)), content(planned(&mut back)));
    }

    #[test]
    fn nothing_immovable_moves_and_everybody_gets_only_what_it_can_take(
        kinds in proptest::collection::vec((0u8..3, 0u8..3, any::<bool>(), 0u8..5), 1..250),
        members in proptest::collection::vec((0u8..3, 0u8..4, 0u8..8, 1u32..3), 1..8),
        declines in proptest::collection::vec((0u32..250, 0usize..8), 0..20),
        spread in any::<bool>(),
    ) {
        let members: Vec<PlannerMember> = members.into_iter().enumerate().map(|(n, (site, drivers, state, weight))| PlannerMember {
            weight,
            host: format!("h{site}"),
            drivers: (0..2).zip([process(), simulated()]).filter(|(d, _)| drivers >> d & 1 == 1).map(|(_, d)| d).collect(),
            connected: state != 0,
            draining: state == 1,
            zone: format!("z{}", n % 3),
            ..member(&format!("w{n}"))
        }).collect();
        let spread = if spread { Spread::Tenant } else { Spread::None };
        let mut planner = planner_of(Config { spread, ..Config::default() }, members.clone());
        let mut needs = Vec::new();
        for (slot, &(driver, site, movable, owner)) in (0u32..).zip(&kinds) {
            let need = match driver {
                0 => anywhere(),
                1 => on_site(&format!("h{site}")),
                _ => Needs { site: None, ..on_site("") },
            };
            // Some have no owner, some one that is gone, or that cannot hold them.
            let owner = (owner > 0).then(|| worker(&format!("w{}", u32::from(owner) + slot % 5)));
            planner.insert(Slot(slot), id(slot), &format!("k{slot}"), need.clone(), owner.as_ref(), None);
            planner.set_movable(Slot(slot), movable);
            planner.set_tenant(Slot(slot), tenant(slot % 20).as_ref());
            needs.push((need, owner, movable));
        }
        let mut declined: BTreeMap<Slot, BTreeSet<WorkerId>> = BTreeMap::new();
        for (slot, n) in declines {
            if (slot as usize) < kinds.len() {
                declined.entry(Slot(slot)).or_default().insert(worker(&format!("w{n}")));
            }
        }
        declined.iter().for_each(|(slot, members)| planner.set_excluded(*slot, members.clone()));
        let plan = planned(&mut planner);
        prop_assert_eq!(&plan, &planned(&mut planner));
        let find = |id: &WorkerId| members.iter().find(|m| m.id == *id);
        let mut moved = BTreeSet::new();
        for m in plan.moves() {
            let (need, owner, movable) = &needs[m.slot.0 as usize];
            let to = find(m.to).expect("moves go to members");
            prop_assert!(*movable && moved.insert(m.slot));
            prop_assert_eq!(m.from, owner.as_ref());
            prop_assert!(to.connected && !to.draining && to.drivers.get(&need.driver).is_some());
            prop_assert!(need.site.as_ref().is_none_or(|site| site.as_str() == to.host));
            prop_assert!(!declined.get(&m.slot).is_some_and(|members| members.contains(m.to)));
            // A member without a stream gives up nothing.
            prop_assert!(owner.as_ref().and_then(&find).is_none_or(|from| from.connected));
        }
        let unplaced: BTreeSet<Slot> = plan.unplaced.iter().map(|u| u.slot).collect();
        for (slot, (_, owner, movable)) in (0u32..).zip(&needs) {
            let homeless = *movable && owner.as_ref().and_then(&find).is_none();
            let answered = usize::from(moved.contains(&Slot(slot))) + usize::from(unplaced.contains(&Slot(slot)));
            prop_assert!(!homeless || answered == 1, "slot {} is neither placed nor unplaced", slot);
        }
        // What somebody declined may have to go where something else could have made room for it: then that something
        // follows with a later plan, one for each at most.
        let mut late = 0;
        let mut plan = plan;
        while plan.moves().len() > 0 {
            carry_out(&mut planner, &plan);
            plan = planned(&mut planner);
            late += plan.moves().len();
            prop_assert!(late <= declined.len(), "{late} moves after the first plan: {plan:?}");
        }
    }
}

#[test]
fn what_is_being_deleted_takes_no_part_in_the_balance() {
    let mut planner = settled(Strategy::Bounded, fleet(3), 30);
    let of_first: Vec<Slot> = planner
        .book
        .ids()
        .map(|(slot, _)| Slot(slot))
        .filter(|slot| planner.explain(*slot).iter().any(|c| c.is_owner && c.member == worker("w000")))
        .collect();
    of_first.iter().for_each(|slot| planner.set_deleting(*slot));
    let left = 30 - of_first.len() as u64;
    let plan = settle(&mut planner);
    assert!(plan.moves().all(|m| !of_first.contains(&m.slot) && *m.to == worker("w000")), "{plan:?}");
    assert_eq!(plan.moves().len() as u64, left * 20 / 63, "the floor of what is left");
    assert_eq!(planner.load(&worker("w000")), of_first.len() as u64 + left * 20 / 63);
    assert!(planned(&mut planner).is_empty());
    (0..30).for_each(|slot| planner.set_deleting(Slot(slot)));
    assert!(planned(&mut planner).is_empty(), "nothing is left to be balanced");
}

#[test]
fn what_is_being_deleted_has_an_owner_all_the_same() {
    for strategy in [Strategy::Bounded, Strategy::Ring] {
        let mut planner = settled(strategy, fleet(3), 30);
        (0..30).for_each(|slot| planner.set_deleting(Slot(slot)));
        create(&mut planner, 30..31);
        planner.set_deleting(Slot(30));
        let mut members = fleet(4);
        members[0].draining = true;
        let drained = planner.load(&worker("w000"));
        planner.set_members(members);
        let plan = settle(&mut planner);
        let moved: BTreeMap<Reason, usize> = reasons(&plan);
        let expected = [(Reason::Unowned, 1), (Reason::Draining, drained as usize)];
        assert_eq!(
            moved,
            expected.into(),
            "{strategy:?}: one that drains gives up, and a newcomer is given nothing for balance"
        );
    }
}
