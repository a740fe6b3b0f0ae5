//! Orders of operators: what members are given and give up under them.

use proptest::collection::vec;
use proptest::strategy::Strategy as _;

use super::*;

/// Members of two sites, some of them ordered, and appliances with any owner, some of them pinned.
fn ordered() -> impl proptest::strategy::Strategy<Value = Planner> {
    let members = vec((any::<bool>(), 0u8..6, 1u32..4), 1..7);
    let appliances = vec((0u8..4, 0usize..8, 0usize..8, 0u8..8), 1..120);
    (members, appliances).prop_map(|(members, appliances)| {
        let members = members.into_iter().enumerate().map(|(n, (site, state, weight))| PlannerMember {
            weight,
            host: if site { "h1" } else { "h2" }.into(),
            drained: state == 0,
            cordoned: state == 1,
            connected: state != 2,
            ..member(&format!("w{n}"))
        });
        let mut planner = planner(Strategy::Bounded, members.collect());
        for (slot, (needs, owner, former, pin)) in (0..).zip(appliances) {
            let needs = match needs {
                0 => on_site("h1"),
                1 => on_site("h2"),
                _ => anywhere(),
            };
            let named = |n: usize| (n < 7).then(|| worker(&format!("w{n}")));
            let (owner, former) = (named(owner), named(former));
            planner.insert(Slot(slot), id(slot), &format!("a{slot}"), needs, owner.as_ref(), former.as_ref());
            if pin < 3 {
                let pin = Pin { worker: worker(&format!("w{}", slot % 7)), strict: pin < 2 };
                planner.set_pin(Slot(slot), Some(pin));
            }
        }
        planner
    })
}

fn find<'a>(planner: &'a Planner, name: &WorkerId) -> Option<&'a PlannerMember> {
    planner.members().iter().find(|member| member.id == *name)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_member_that_is_ordered_off_is_given_only_what_no_other_can_have(mut planner in ordered()) {
        let before: BTreeMap<WorkerId, u64> = planner.members().iter().map(|m| (m.id.clone(), planner.load(&m.id))).collect();
        let plan = planned(&mut planner);
        prop_assert_eq!(&plan, &planner.clone().propose(&Assumptions::default()), "determinism");
        for m in plan.moves() {
            let to = find(&planner, m.to).expect("a member");
            if to.drained || to.cordoned {
                prop_assert_eq!(m.from, None);
                let entry = *planner.book.entry(m.slot).expect("there is one");
                let needs = &planner.book.group(entry.group).needs;
                let ranks = 0..planner.members().len() as u32;
                let open = |rank: &u32| planner.roster.can_take(*rank, needs) && !planner.roster.member(*rank).cordoned;
                prop_assert!(!ranks.clone().any(|rank| open(&rank)), "another member could have it");
                let former = planner.roster.rank(entry.former).map(|rank| planner.roster.member(rank).id.clone());
                prop_assert!(former.as_ref() == Some(m.to) || needs.site.is_some());
            }
        }
        // Nothing else is left without an owner by orders, but for strict pins.
        for unplaced in &plan.unplaced {
            let former = planner.book.entry(unplaced.slot).map(|entry| entry.former);
            let former = former.and_then(|handle| planner.roster.rank(handle));
            let needs = &planner.book.group(planner.book.entry(unplaced.slot).expect("there").group).needs;
            let could = former.is_some_and(|rank| planner.roster.is_held_off(rank, needs));
            let unowned = planner.book.entry(unplaced.slot).expect("there").owner == super::roster::NOBODY;
            prop_assert!(!could || !unowned || matches!(unplaced.why, Unplaced::Pinned(_)), "{unplaced:?}");
        }
        let gained: BTreeMap<&WorkerId, u64> = plan.moves().filter(|m| m.from.is_none()).fold(BTreeMap::new(), |mut n, m| {
            *n.entry(m.to).or_default() += 1;
            n
        });
        let gained = |id: &WorkerId| gained.get(id).copied().unwrap_or_default();
        let expected: BTreeMap<WorkerId, u64> = before.iter().map(|(id, load)| (id.clone(), load + gained(id))).collect();
        carry_out(&mut planner, &plan);
        for member in planner.members().iter().filter(|m| m.cordoned || m.drained) {
            prop_assert!(planner.load(&member.id) <= expected[&member.id], "the load of {} grew", member.id);
        }
        for member in planner.members().iter().filter(|m| m.drained && m.connected) {
            let (load, bound) = (planner.load(&member.id), planner.immovable(&member.id));
            // What only members without a stream could take waits for them.
            let all_there = planner.members().iter().all(|m| m.connected);
            prop_assert!(if all_there { load == bound } else { load >= bound }, "{}: {load}, {bound} bound", member.id);
        }
    }

    #[test]
    fn a_strict_pin_is_where_it_says_or_stays_where_it_is(mut planner in ordered()) {
        let owners: BTreeMap<Slot, Option<u32>> =
            planner.pins.keys().map(|slot| (*slot, planner.book.entry(*slot).map(|entry| entry.owner))).collect();
        let plan = settle(&mut planner);
        for (slot, pin) in planner.pins.clone().into_iter().filter(|(_, pin)| pin.strict) {
            let owner = planner.book.entry(slot).map(|entry| entry.owner);
            let is_there = owner.is_some() && owner == planner.roster.find(&pin.worker);
            prop_assert!(is_there || owner == owners[&slot], "{pin:?} went elsewhere");
            let why = plan.unplaced.iter().find(|unplaced| unplaced.slot == slot).map(|unplaced| &unplaced.why);
            prop_assert!(why.is_none_or(|why| *why == Unplaced::Pinned(pin.worker.clone())), "{why:?}");
        }
        // One plan is enough, and the next one says the same.
        let again = planned(&mut planner);
        prop_assert_eq!(again.moves().filter(|m| m.reason == Reason::Pinned).count(), 0);
    }
}

#[test]
fn cordoning_moves_nothing_away_and_uncordoning_fills_it_again() {
    let mut planner = settled(Strategy::Bounded, fleet(4), 400);
    let mut members = fleet(4);
    members[0].cordoned = true;
    planner.set_members(members.clone());
    assert!(planned(&mut planner).is_empty());
    create(&mut planner, 400..600);
    let plan = settle(&mut planner);
    assert!(plan.moves().all(|m| *m.to != worker("w000") && m.from.is_none()), "{plan:?}");
    let held = planner.load(&worker("w000"));
    assert!((95..=105).contains(&held), "{held}");
    // One that holds more than its share keeps it as well.
    (400..600).for_each(|slot| planner.remove(Slot(slot)));
    (0..400).filter(|slot| slot % 3 == 0).for_each(|slot| planner.set_owner(Slot(slot), Some(&worker("w000")), None));
    let full = planner.load(&worker("w000"));
    let plan = settle(&mut planner);
    assert!(plan.moves().all(|m| m.from != Some(&worker("w000")) && *m.to != worker("w000")));
    assert_eq!(planner.load(&worker("w000")), full);
    members[0].cordoned = false;
    planner.set_members(members);
    let plan = settle(&mut planner);
    assert!(plan.moves().len() > 0 && plan.moves().all(|m| m.from == Some(&worker("w000"))));
}

#[test]
fn what_is_bound_to_a_drained_member_stays_and_comes_back_to_it() {
    let mut members = fleet(3);
    members[1].host = "h2".into();
    members[2].host = "h3".into();
    let mut planner = planner(Strategy::Bounded, members.clone());
    planner.insert(Slot(0), id(0), "bound", on_site("h1"), Some(&worker("w000")), None);
    planner.insert(Slot(1), id(1), "free", anywhere(), Some(&worker("w000")), None);
    let last = |needs, appliances| LastAble { needs, appliances };
    assert_eq!(planner.only_for(&worker("w000")), [last(on_site("h1"), 1)]);
    members[0].drained = true;
    planner.set_members(members.clone());
    assert_eq!((planner.can_move(Slot(0)), planner.can_move(Slot(1))), (false, true));
    let plan = settle(&mut planner);
    assert_eq!(plan.moves().map(|m| (m.appliance, m.reason)).collect::<Vec<_>>(), [(id(1), Reason::Draining)]);
    assert_eq!((planner.load(&worker("w000")), planner.immovable(&worker("w000"))), (1, 1));
    // It was started anew.
    planner.set_owner(Slot(0), None, Some(&worker("w000")));
    let plan = settle(&mut planner);
    assert_eq!(plan.moves().map(|m| (m.to.as_str(), m.reason)).collect::<Vec<_>>(), [("w000", Reason::Returned)]);
    // One that is about to stop is given nothing.
    members[0].draining = true;
    planner.set_members(members);
    planner.set_owner(Slot(0), None, Some(&worker("w000")));
    assert_eq!(planned(&mut planner).unplaced, [unplaceable(0, Unplaced::AllDraining)]);
}

#[test]
fn a_strict_pin_waits_for_its_member_and_a_preferred_one_does_not() {
    let mut planner = planner(Strategy::Bounded, fleet(2));
    create(&mut planner, 0..2);
    for (slot, strict) in [(0, true), (1, false)] {
        planner.set_pin(Slot(slot), Some(Pin { worker: worker("w009"), strict }));
    }
    let plan = settle(&mut planner);
    assert_eq!(plan.unplaced, [unplaceable(0, Unplaced::Pinned(worker("w009")))]);
    assert_eq!(plan.moves().map(|m| m.appliance).collect::<Vec<_>>(), [id(1)]);
    let refusals: BTreeSet<_> = planner.explain(Slot(0)).iter().map(PlacementCandidate::refusal).collect();
    assert_eq!(refusals, [Some(CandidateRefusal::PinnedElsewhere)].into());
    let mut members = fleet(2);
    members.push(member("w009"));
    planner.set_members(members);
    let plan = settle(&mut planner);
    let moved: Vec<_> = plan.moves().map(|m| (m.appliance, m.to.as_str(), m.reason)).collect();
    assert_eq!(moved, [(id(0), "w009", Reason::Pinned), (id(1), "w009", Reason::Pinned)]);
    // Taken back, the band has a say again.
    planner.set_pin(Slot(0), None);
    planner.set_pin(Slot(1), None);
    let version = planner.version();
    planner.set_pin(Slot(1), None);
    planner.set_pin(Slot(7), Some(Pin { worker: worker("w009"), strict: true }));
    assert_eq!(planner.version(), version, "nothing changed");
    assert_eq!(settle(&mut planner).moves().len(), 1);
}

#[test]
fn what_is_being_deleted_is_pinned_no_longer() {
    let mut planner = planner(Strategy::Bounded, fleet(2));
    create(&mut planner, 0..1);
    planner.set_pin(Slot(0), Some(Pin { worker: worker("w009"), strict: true }));
    assert_eq!(planned(&mut planner).moves().len(), 0);
    planner.set_deleting(Slot(0));
    assert_eq!(planned(&mut planner).moves().len(), 1);
}
