//! Tenants spread over zones: inside the band, at no move of its own, and as even as what is placed allows.

use proptest::strategy::Strategy as _;

use super::*;

const SPREAD: Config = Config { strategy: Strategy::Bounded, band: 1.05, spread: Spread::Tenant };

/// `size` members, one after the other in each of `zones` zones.
fn zoned(size: usize, zones: usize) -> Vec<PlannerMember> {
    let zone_of = |(n, member): (usize, PlannerMember)| PlannerMember { zone: format!("z{}", n % zones), ..member };
    fleet(size).into_iter().enumerate().map(zone_of).collect()
}

fn create_of(planner: &mut Planner, slots: std::ops::Range<u32>, tenant_of: impl Fn(u32) -> u32) {
    for slot in slots {
        create(planner, slot..slot + 1);
        planner.set_tenant(Slot(slot), tenant(tenant_of(slot)).as_ref());
    }
}

fn owner(planner: &Planner, slot: Slot) -> Option<WorkerId> {
    let entry = planner.book.entry(slot)?;
    planner.roster.rank(entry.owner).map(|rank| planner.roster.member(rank).id.clone())
}

/// Appliances of each tenant in each of these zones.
fn counts(planner: &Planner, zones: usize) -> BTreeMap<Name, Vec<u64>> {
    let mut counts: BTreeMap<Name, Vec<u64>> = BTreeMap::new();
    for (slot, _) in planner.book.ids() {
        let Some(tenant) = planner.tenants.name(Slot(slot)) else { continue };
        let row = counts.entry(tenant.clone()).or_insert_with(|| vec![0; zones]);
        if let Some(owner) = owner(planner, Slot(slot)) {
            let zone = &planner.members().iter().find(|m| m.id == owner).expect("a member").zone;
            row[zone[1..].parse::<usize>().expect("a number")] += 1;
        }
    }
    counts
}

/// By how much the fullest zone has more of a tenant than the emptiest.
fn unevenness(counts: &[u64]) -> u64 {
    counts.iter().max().copied().unwrap_or(0) - counts.iter().min().copied().unwrap_or(0)
}

/// Floor and ceiling of members of weight 1.
fn bounds(total: u64, members: u64) -> (u64, u64) {
    (total * 20 / (members * 21), (total * 21).div_ceil(members * 20))
}

/// Whether `placed` more of one tenant can be even over the zones: no member is below its floor with them, so that none has to go where it is
/// missing, and each zone has room for its part below the ceilings.
fn can_be_even(planner: &Planner, zones: usize, placed: u64) -> bool {
    let loads = loads(planner);
    let (floor, ceiling) = bounds(loads.iter().sum::<u64>() + placed, loads.len() as u64);
    let room =
        |zone: usize| -> u64 { loads.iter().skip(zone).step_by(zones).map(|load| ceiling.saturating_sub(*load)).sum() };
    loads.iter().all(|load| *load >= floor) && (0..zones).all(|zone| room(zone) >= placed.div_ceil(zones as u64))
}

#[test]
fn tenants_that_come_one_after_the_other_are_even_and_move_nothing() {
    for size in [2, 3, 5, 12, 100] {
        let mut planner = planner_of(SPREAD, zoned(9, 3));
        for slot in 0..1_200 {
            create_of(&mut planner, slot..slot + 1, |slot| slot / size);
            let plan = settle(&mut planner);
            assert_eq!(plan.moves().map(|m| m.slot).collect::<Vec<_>>(), [Slot(slot)], "{plan:?}");
        }
        let counts = counts(&planner, 3);
        assert!(counts.values().all(|zones| unevenness(zones) <= 1), "{counts:?}");
    }
}

#[test]
fn what_a_lost_zone_had_is_even_over_the_others_and_comes_back_with_it() {
    let mut planner = planner_of(SPREAD, zoned(9, 3));
    create_of(&mut planner, 0..3_000, |slot| slot % 1_000);
    settle(&mut planner);
    let lost = Assumptions { lost_zones: ["z1".to_owned()].into(), ..Assumptions::default() };
    assert_eq!(planner.forecast(&lost).uneven, LoadChange::default(), "over the zones that are left");
    planner.set_members(zoned(9, 3).into_iter().filter(|m| m.zone != "z1").collect());
    let plan = settle(&mut planner);
    assert_eq!(plan.moves().len(), 1_000, "what it had, and nothing else");
    assert!(counts(&planner, 3).values().all(|zones| zones[1] == 0 && zones[0].abs_diff(zones[2]) <= 1));
    planner.set_members(zoned(9, 3));
    let forecast = planner.forecast(&Assumptions::default()).uneven;
    let moves = settle(&mut planner).moves().len();
    let uneven = counts(&planner, 3).values().filter(|zones| unevenness(zones) > 1).count() as u64;
    assert_eq!(forecast, LoadChange { before: 1_000, after: uneven });
    assert_eq!(moves, 951, "the floors of three of nine");
    let even = counts(&planner, 3).values().filter(|zones| unevenness(zones) == 0).count();
    assert!(even >= moves - 10, "next to every move makes a tenant even again: {even} of {moves}");
}

#[test]
fn what_a_drained_member_had_stays_in_its_zone_as_far_as_there_is_room() {
    let mut planner = planner_of(SPREAD, zoned(9, 3));
    create_of(&mut planner, 0..900, |slot| slot % 100);
    settle(&mut planner);
    let mut members = zoned(9, 3);
    members[4].drained = true;
    planner.set_members(members);
    settle(&mut planner);
    let (_, ceiling) = bounds(900, 8);
    let zone = loads(&planner).into_iter().skip(1).step_by(3).sum::<u64>();
    assert_eq!(zone, 2 * ceiling);
}

#[test]
fn what_is_being_deleted_counts_in_no_zone() {
    let mut planner = planner_of(SPREAD, zoned(3, 3));
    create_of(&mut planner, 0..30, |slot| slot / 3);
    settle(&mut planner);
    for slot in (0..30).step_by(3) {
        let home = owner(&planner, Slot(slot));
        planner.set_deleting(Slot(slot));
        create_of(&mut planner, 100 + slot..101 + slot, |_| slot / 3);
        settle(&mut planner);
        assert_eq!(owner(&planner, Slot(100 + slot)), home);
    }
    assert!(planner.tenants.is_true_of(&planner.book));
}

#[test]
fn members_without_a_zone_are_one_zone() {
    let mut members = fleet(6);
    members[0].zone = "z0".into();
    members[1].zone = "z0".into();
    let mut planner = planner_of(SPREAD, members);
    create_of(&mut planner, 0..12, |slot| slot / 2);
    settle(&mut planner);
    for first in (0..12).step_by(2) {
        let zones = [first, first + 1].map(|slot| owner(&planner, Slot(slot)).is_some_and(|id| id < worker("w002")));
        assert_ne!(zones[0], zones[1], "one in the zone, one outside of it");
    }
}

#[test]
fn explain_says_when_zones_are_why() {
    let mut planner = planner_of(SPREAD, zoned(3, 3));
    create_of(&mut planner, 0..60, |slot| 1 + slot);
    settle(&mut planner);
    create_of(&mut planner, 60..61, |_| 0);
    settle(&mut planner);
    create_of(&mut planner, 61..62, |_| 0);
    let first = owner(&planner, Slot(60));
    let explained = planner.explain(Slot(61));
    let standing = |is_first: bool| {
        let of: Vec<_> = explained.iter().filter(|c| (Some(&c.member) == first.as_ref()) == is_first).collect();
        of.iter().map(|c| c.standing).collect::<Vec<_>>()
    };
    assert_eq!(standing(true), [CandidateStanding::SpreadFirst]);
    assert!(standing(false).contains(&CandidateStanding::Next(Reason::Unowned)), "{explained:?}");
}

/// A step in the life of a fleet: members that are there and that are drained, by bits; or how many are created, removed, released, or
/// are being deleted.
#[derive(Clone, Debug)]
enum Step {
    Members(u16, u16),
    Create(u8, u8),
    Remove(u8),
    Release(u8),
    Delete(u8),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u16..512, 0u16..512).prop_map(|(there, drained)| Step::Members(there, drained & (drained >> 2))),
        3 => (1u8..100, 1u8..30).prop_map(|(count, tenants)| Step::Create(count, tenants)),
        1 => (1u8..50).prop_map(Step::Remove),
        1 => (1u8..50).prop_map(Step::Release),
        1 => (1u8..50).prop_map(Step::Delete),
    ];
    proptest::collection::vec(step, 1..14)
}

/// Takes a step; every third appliance is bound to a host.
fn take(planner: &mut Planner, step: &Step, zones: usize) {
    let slots: Vec<Slot> = planner.book.ids().map(|(slot, _)| Slot(slot)).collect();
    match *step {
        Step::Members(there, drained) => {
            let all = zoned(9, zones).into_iter().enumerate().filter(|(n, _)| there >> n & 1 == 1);
            let host = |n: usize| if n.is_multiple_of(2) { "h1" } else { "h2" }.to_owned();
            let member = |(n, m)| PlannerMember { drained: drained >> n & 1 == 1, host: host(n), ..m };
            planner.set_members(all.map(member).collect());
        }
        Step::Create(count, tenants) => {
            let first = slots.last().map_or(0, |slot| slot.0 + 1);
            for slot in first..first + u32::from(count) {
                let needs = if slot % 3 == 0 { on_site(if slot % 2 == 0 { "h1" } else { "h2" }) } else { anywhere() };
                planner.insert(Slot(slot), id(slot), &format!("k{slot}"), needs, None, None);
                planner.set_tenant(Slot(slot), tenant(slot % u32::from(tenants)).as_ref());
            }
        }
        Step::Remove(count) => slots.iter().step_by(2).take(count.into()).for_each(|slot| planner.remove(*slot)),
        Step::Release(count) => {
            slots.iter().step_by(3).take(count.into()).for_each(|slot| planner.set_owner(*slot, None, None));
        }
        Step::Delete(count) => slots.iter().step_by(5).take(count.into()).for_each(|slot| planner.set_deleting(*slot)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn one_tenant_created_on_a_quiet_cluster_is_even(
        others in 0u32..800,
        size in 1u32..40,
        (members, zones) in (2usize..5).prop_flat_map(|zones| (1usize..4).prop_map(move |per| (per * zones, zones))),
        placed in 1u32..40,
        one_by_one in any::<bool>(),
    ) {
        let mut planner = planner_of(SPREAD, zoned(members, zones));
        create_of(&mut planner, 0..others, |slot| 1 + slot / size);
        settle(&mut planner);
        let mut even = true;
        let mut next = others;
        while next < others + placed {
            let end = if one_by_one { next + 1 } else { others + placed };
            even &= can_be_even(&planner, zones, u64::from(end - next));
            create_of(&mut planner, next..end, |_| 0);
            settle(&mut planner);
            next = end;
        }
        let counts = counts(&planner, zones);
        let of_it = &counts[&tenant(0).expect("a name")];
        prop_assert!(!even || unevenness(of_it) <= 1, "{of_it:?}");
        // Whatever there is room for, it is no worse where there is nothing else.
        prop_assert!(others > 0 || unevenness(of_it) <= 1, "{of_it:?}");
    }

    #[test]
    fn a_spread_costs_no_move_and_what_is_kept_for_it_is_true(steps in steps(), zones in 1usize..5) {
        let mut planner = planner_of(SPREAD, zoned(9, zones));
        for step in steps {
            take(&mut planner, &step, zones);
            let mut plain = planner_of(Config { spread: Spread::None, ..SPREAD }, planner.members().to_vec());
            for (slot, id) in planner.book.ids().collect::<Vec<_>>() {
                let entry = planner.book.entry(Slot(slot)).expect("listed");
                let names = planner.roster.names();
                let [owner, former] = [entry.owner, entry.former].map(|handle| names.get(handle as usize));
                let group = planner.book.group(entry.group);
                plain.insert(Slot(slot), *id, &format!("k{slot}"), group.needs.clone(), owner, former);
                plain.set_tenant(Slot(slot), planner.tenants.name(Slot(slot)));
                if group.deleting {
                    plain.set_deleting(Slot(slot));
                }
            }
            let plan = planned(&mut planner);
            let without = planned(&mut plain);
            prop_assert_eq!(plan.moves().len(), without.moves().len());
            prop_assert_eq!(&plan.unplaced, &without.unplaced);
            prop_assert_eq!(plan.relaxed.len(), without.relaxed.len());
            prop_assert!(zones > 1 || content(plan.clone()) == content(without), "with one zone there is nothing to choose");
            let assumed = Assumptions { policy: Some(AssumedPolicy(SPREAD)), ..Assumptions::default() };
            prop_assert_eq!(content(plain.propose(&assumed)), content(plan.clone()), "assumed it is the same as in force");
            carry_out(&mut planner, &plan);
            prop_assert!(planner.tenants.is_true_of(&planner.book));
            prop_assert!(planned(&mut planner).moves().len() == 0);
        }
    }

    #[test]
    fn what_a_plan_has_shown_is_made_by_the_plans_after_it(
        appliances in 0u32..600,
        tenants in 1u32..100,
        change in 0u8..4,
        which in 0usize..9,
        at_once in 1usize..20,
    ) {
        let mut planner = planner_of(SPREAD, zoned(9, 3));
        create_of(&mut planner, 0..appliances, |slot| slot % tenants);
        settle(&mut planner);
        let mut members = zoned(9, 3);
        match change {
            0 => members[which].drained = true,
            1 => _ = members.remove(which),
            2 => members.push(PlannerMember { zone: format!("z{}", which % 4), ..member("joiner") }),
            _ => {
                planner.set_members(members.iter().filter(|m| m.zone != "z1").cloned().collect());
                settle(&mut planner);
            }
        }
        planner.set_members(members);
        let mut left: BTreeMap<Slot, WorkerId> =
            planned(&mut planner).moves().map(|m| (m.slot, m.to.clone())).collect();
        while !left.is_empty() {
            let next = planned(&mut planner);
            prop_assert_eq!(&next.moves().map(|m| (m.slot, m.to.clone())).collect::<BTreeMap<_, _>>(), &left);
            for m in next.moves().take(at_once) {
                planner.set_owner(m.slot, Some(m.to), None);
                left.remove(&m.slot);
            }
        }
    }
}
