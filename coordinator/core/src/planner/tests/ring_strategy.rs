//! Strategy `ring`: the owner of the ring, always, and nothing read but what changed.

use super::*;

fn key(slot: u32) -> String {
    format!("appliance-{slot}")
}

#[test]
fn owners_are_those_of_the_ring_and_a_join_moves_only_to_the_joiner() {
    let mut planner = settled(Strategy::Ring, fleet(10), 2_000);
    planner.set_members(fleet(11));
    let plan = settle(&mut planner);
    assert!(plan.moves().len() > 0);
    assert!(plan.moves().all(|m| *m.to == worker("w010") && m.reason == Reason::RingOwner));
    let ring = planner.ring().clone();
    for slot in 0..2_000 {
        let owner = planner.explain(Slot(slot)).into_iter().find(|c| c.is_owner).expect("placed").member;
        assert_eq!(Some(&owner), ring.owner(&key(slot)));
    }
    assert!(planned(&mut planner).is_empty());
}

#[test]
fn an_owner_that_cannot_take_it_leaves_it_unplaced() {
    let mut members = fleet(2);
    members[0].drivers = DriverOffers::default();
    let mut planner = planner(Strategy::Ring, members);
    create(&mut planner, 0..100);
    let plan = settle(&mut planner);
    assert!(plan.moves().all(|m| *m.to == worker("w001")));
    assert!(plan.unplaced.iter().all(|u| u.why == Unplaced::RingOwnerCannot(worker("w000"))));
    assert_eq!(plan.moves().len() + plan.unplaced.len(), 100);
    assert!(!plan.unplaced.is_empty());
    // It can once it offers the driver; nothing of the others moves.
    planner.set_members(fleet(2));
    assert_eq!(planned(&mut planner).moves().len(), plan.unplaced.len());
}

#[test]
fn draining_is_leaving_the_ring() {
    let mut planner = settled(Strategy::Ring, fleet(4), 400);
    let mut members = fleet(4);
    members[1].draining = true;
    planner.set_members(members);
    assert_eq!(planner.ring().members().len(), 3);
    let had = planner.load(&worker("w001")) as usize;
    assert_eq!(reasons(&settle(&mut planner)), BTreeMap::from([(Reason::Draining, had)]));
}

#[test]
fn without_members_everything_is_unplaced() {
    let mut planner = settled(Strategy::Ring, fleet(2), 50);
    planner.set_members(vec![]);
    let plan = planned(&mut planner);
    assert_eq!((plan.moves().len(), plan.unplaced.len()), (0, 50));
    planner.set_members(fleet(2));
    assert!(planned(&mut planner).is_empty());
}

/// What a full comparison of owners with the ring asks for.
fn expected(planner: &Planner, owners: &BTreeMap<u32, Option<WorkerId>>) -> BTreeMap<Slot, WorkerId> {
    let mut moves = BTreeMap::new();
    for (&slot, owner) in owners {
        let Some(target) = planner.ring().owner(&key(slot)) else { continue };
        let connected = |id: &WorkerId| planner.members().iter().find(|m| m.id == *id).is_none_or(|m| m.connected);
        let free = owner.as_ref().is_none_or(&connected);
        if owner.as_ref() != Some(target) && free && connected(target) {
            moves.insert(Slot(slot), target.clone());
        }
    }
    moves
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn reading_the_changed_arcs_finds_what_a_full_comparison_finds(
        steps in proptest::collection::vec(
            (proptest::collection::btree_map(0u8..10, (1u32..3, 0u8..6), 0..7), 0u32..40, 0usize..400, any::<u32>()),
            1..10,
        ),
    ) {
        let mut planner = planner(Strategy::Ring, vec![]);
        let mut owners: BTreeMap<u32, Option<WorkerId>> = BTreeMap::new();
        for (members, created, carried, touched) in steps {
            let members = members.into_iter().map(|(n, (weight, state))| PlannerMember {
                weight, connected: state > 0, ..member(&format!("w{n}"))
            });
            planner.set_members(members.collect());
            for slot in owners.len() as u32..owners.len() as u32 + created {
                // Some start with a worker that may not be the one of the ring.
                let owner = (slot % 3 == 0).then(|| worker(&format!("w{}", slot % 10)));
                planner.insert(Slot(slot), id(slot), &key(slot), anywhere(), owner.as_ref(), None);
                owners.insert(slot, owner);
            }
            if !owners.is_empty() {
                let slot = touched % owners.len() as u32;
                let owner = (touched % 4 > 0).then(|| worker(&format!("w{}", touched % 11)));
                planner.set_owner(Slot(slot), owner.as_ref(), None);
                owners.insert(slot, owner);
            }
            let plan = planned(&mut planner);
            prop_assert_eq!(&plan, &planned(&mut planner));
            let moves: BTreeMap<Slot, WorkerId> = plan.moves().map(|m| (m.slot, m.to.clone())).collect();
            prop_assert_eq!(moves.len(), plan.moves().len());
            prop_assert_eq!(&moves, &expected(&planner, &owners));
            // A part of it is carried out before the members change again.
            for m in plan.moves().take(carried) {
                planner.set_owner(m.slot, Some(m.to), None);
                owners.insert(m.slot.0, Some(m.to.clone()));
            }
        }
    }
}

#[test]
fn a_member_of_weight_nothing_has_no_points_as_in_tooz() {
    let mut members = fleet(3);
    members[0].drivers = DriverOffers::default();
    members[0].weight = 0;
    let mut planner = settled(Strategy::Ring, members.clone(), 200);
    assert_eq!(planner.ring().points().len(), 64);
    assert_eq!(loads(&planner).iter().sum::<u64>(), 200, "nothing belongs to it");
    assert_eq!(planner.members(), members, "it is kept as it was published, so that nobody tells it again and again");
    // Nobody else is left.
    planner.set_members(members[..1].to_vec());
    assert_eq!(planned(&mut planner).unplaced.len(), 200);
    assert!(planned(&mut planner).unplaced.iter().all(|u| u.why == Unplaced::NoMembers));
}

#[test]
fn one_of_weight_nothing_that_takes_a_share_is_met_where_the_ring_only_prefers() {
    let mut members = fleet(2);
    members[0].weight = 0;
    let planner = settled(Strategy::Bounded, members, 100);
    assert_eq!(loads(&planner), [50, 50]);
}
