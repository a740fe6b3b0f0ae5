//! Which reason is given in which situation, one situation per row.

use super::*;

/// What a driver that is not bound to a host and runs no other kind says.
fn only_balancers() -> DriverCapabilities {
    DriverCapabilities { kinds: [KindName::Loadbalancer].into(), ..DriverCapabilities::default() }
}

fn bound_balancers() -> (DriverName, DriverCapabilities) {
    (DriverName::process(), DriverCapabilities { state_dir: Some(String::new()), ..only_balancers() })
}

/// One appliance, on these members.
fn one(
    strategy: Strategy,
    members: Vec<PlannerMember>,
    needs: Needs,
    owner: Option<&str>,
    former: Option<&str>,
) -> Plan {
    let mut planner = planner(strategy, members);
    let (owner, former) = (owner.map(worker), former.map(worker));
    planner.insert(Slot(0), id(0), "a", needs, owner.as_ref(), former.as_ref());
    planned(&mut planner)
}

#[test]
fn what_nobody_can_take_is_unplaced_with_the_reason() {
    let away = || PlannerMember { connected: false, ..member("w1") };
    let drains = || PlannerMember { draining: true, ..member("w1") };
    let simulates = || PlannerMember { drivers: [simulated()].into(), ..member("w1") };
    let python = || PlannerMember { drivers: DriverOffers::default(), ..member("py1") };
    let balances = || PlannerMember { drivers: [(DriverName::simulated(), only_balancers())].into(), ..member("w1") };
    let no_kind = Unplaced::NoKind(DriverName::simulated(), KindName::Custom);
    let cordoned = || PlannerMember { cordoned: true, ..member("w1") };
    let rows: [(&str, Vec<PlannerMember>, Needs, Unplaced); 11] = [
        ("nobody is there", vec![], anywhere(), Unplaced::NoMembers),
        ("a Python member takes no share", vec![python()], anywhere(), Unplaced::NoDriver(DriverName::simulated())),
        ("the driver is missing", vec![simulates()], on_site("h1"), Unplaced::NoDriver(DriverName::process())),
        ("no driver runs the kind", vec![balances(), python()], anywhere(), no_kind),
        (
            "the kind is run on another site",
            vec![
                member("w1"),
                PlannerMember { host: "h2".into(), drivers: [bound_balancers()].into(), ..member("w2") },
            ],
            on_site("h2"),
            Unplaced::SiteGone("h2".into()),
        ),
        ("the site is gone", vec![member("w1")], on_site("h9"), Unplaced::SiteGone("h9".into())),
        ("no stream", vec![away(), python()], anywhere(), Unplaced::NotConnected),
        ("all drain", vec![drains()], anywhere(), Unplaced::AllDraining),
        ("one is cordoned", vec![cordoned()], anywhere(), Unplaced::Cordoned),
        (
            "one is cordoned, one drains",
            vec![cordoned(), PlannerMember { id: worker("w2"), ..drains() }],
            anywhere(),
            Unplaced::Cordoned,
        ),
        (
            "one drains, one is away",
            vec![drains(), PlannerMember { id: worker("w2"), ..away() }],
            anywhere(),
            Unplaced::NotConnected,
        ),
    ];
    for (name, members, needs, expected) in rows {
        let plan = one(Strategy::Bounded, members, needs, None, None);
        assert_eq!(content(plan), (vec![], vec![unplaceable(0, expected)], vec![]), "{name}");
    }
}

#[test]
fn a_move_says_why() {
    let w = |n: usize| member(&format!("w{n}"));
    type Row<'a> = (&'a str, Vec<PlannerMember>, Needs, Option<&'a str>, Option<&'a str>, Option<Reason>);
    let rows: [Row<'_>; 9] = [
        ("new", vec![w(1), w(2)], anywhere(), None, None, Some(Reason::Unowned)),
        ("its owner is gone", vec![w(1)], anywhere(), Some("w9"), None, Some(Reason::Unowned)),
        ("its former owner is there", vec![w(1), w(2)], anywhere(), None, Some("w2"), Some(Reason::Returned)),
        ("its former owner is gone", vec![w(1)], anywhere(), None, Some("w9"), Some(Reason::Unowned)),
        (
            "drains",
            vec![PlannerMember { draining: true, ..w(1) }, w(2)],
            anywhere(),
            Some("w1"),
            None,
            Some(Reason::Draining),
        ),
        ("drains, nobody else", vec![PlannerMember { draining: true, ..w(1) }], anywhere(), Some("w1"), None, None),
        (
            "drains without a stream",
            vec![PlannerMember { draining: true, connected: false, ..w(1) }, w(2)],
            anywhere(),
            Some("w1"),
            None,
            None,
        ),
        (
            "wrong site",
            vec![w(1), PlannerMember { host: "h2".into(), ..w(2) }],
            on_site("h2"),
            Some("w1"),
            None,
            Some(Reason::Ineligible),
        ),
        ("in place", vec![w(1), w(2)], anywhere(), Some("w1"), None, None),
    ];
    for (name, members, needs, owner, former, expected) in rows {
        let plan = one(Strategy::Bounded, members, needs, owner, former);
        assert_eq!(plan.moves().next().map(|m| m.reason), expected, "{name}");
        assert_eq!((plan.unplaced.len(), plan.relaxed.len()), (0, 0), "{name}");
        if let Some(m) = plan.moves().next() {
            assert_eq!(m.from.map(WorkerId::as_str), owner, "{name}");
            assert_ne!(Some(m.to.as_str()), owner, "{name}");
        }
    }
}

fn first_target(plan: &Plan) -> WorkerId {
    plan.moves().next().expect("a move").to.clone()
}

#[test]
fn a_declined_appliance_goes_to_the_others_and_nowhere_once_all_declined() {
    let mut planner = settled(Strategy::Bounded, fleet(3), 30);
    planner.insert(Slot(30), id(30), "x", anywhere(), None, None);
    let first = first_target(&planned(&mut planner));
    planner.set_excluded(Slot(30), [first.clone()].into());
    let second = first_target(&planned(&mut planner));
    assert_ne!(first, second);
    planner.set_excluded(Slot(30), planner.members().iter().map(|m| m.id.clone()).collect());
    assert_eq!(planned(&mut planner).unplaced, vec![unplaceable(30, Unplaced::Declined)]);
    planner.set_excluded(Slot(30), BTreeSet::new());
    assert_eq!(first_target(&planned(&mut planner)), first);
}

#[test]
fn a_member_over_its_ceiling_is_preferred_to_no_owner_at_all() {
    let mut planner = settled(Strategy::Bounded, fleet(2), 40);
    for slot in 40..44 {
        planner.insert(Slot(slot), id(slot), &format!("x{slot}"), anywhere(), None, None);
        planner.set_excluded(Slot(slot), [worker("w001")].into());
    }
    (0..40).for_each(|slot| _ = planner.set_movable(Slot(slot), false));
    let plan = settle(&mut planner);
    assert_eq!(plan.moves().len(), 4);
    assert!(plan.moves().all(|m| *m.to == worker("w000")), "{plan:?}");
    let over: Vec<&BandRelaxed> = plan.relaxed.iter().filter(|r| r.load > r.ceiling).collect();
    assert!(over.is_empty() || over[0].member == worker("w000"));
    assert_eq!(planned(&mut planner).moves().len(), 0);
}

#[test]
fn unowned_come_before_displaced_and_these_before_balance() {
    let mut planner = settled(Strategy::Bounded, fleet(4), 400);
    let mut members = fleet(5);
    members[0].draining = true;
    planner.set_members(members);
    create(&mut planner, 400..410);
    let plan = planned(&mut planner);
    let rank = |r: Reason| match r {
        Reason::Unowned | Reason::Returned => 0,
        Reason::Draining | Reason::Ineligible => 1,
        _ => 2,
    };
    assert!(plan.moves().is_sorted_by_key(|m| rank(m.reason)));
    assert_eq!(reasons(&plan)[&Reason::Unowned], 10);
    carry_out(&mut planner, &plan);
    assert_eq!(planner.load(&worker("w000")), 0);
}

#[test]
fn explain_lists_every_member_with_what_speaks_against_it() {
    let mut members = fleet(7);
    members[0].drivers = DriverOffers::default();
    members[1].connected = false;
    members[2].draining = true;
    members[3].host = "h2".into();
    members[6].drivers = [bound_balancers()].into();
    let mut planner = planner(Strategy::Bounded, members);
    planner.insert(Slot(0), id(0), "a", on_site("h1"), Some(&worker("w004")), None);
    planner.insert(Slot(1), id(1), "b", on_site("h1"), None, None);
    planner.set_excluded(Slot(1), [worker("w005")].into());
    let explained = |slot| -> BTreeMap<WorkerId, PlacementCandidate> {
        planner.explain(slot).into_iter().map(|c| (c.member.clone(), c)).collect()
    };
    let by_name = explained(Slot(1));
    let refusals: Vec<Option<CandidateRefusal>> = by_name.values().map(PlacementCandidate::refusal).collect();
    let expected = [
        Some(CandidateRefusal::NoDriver),
        Some(CandidateRefusal::NotConnected),
        Some(CandidateRefusal::Draining),
        Some(CandidateRefusal::OtherSite),
        None,
        Some(CandidateRefusal::Declined),
        Some(CandidateRefusal::NoKind),
    ];
    assert_eq!(refusals, expected);
    let first = explained(Slot(0));
    assert!(first[&worker("w004")].is_owner && first[&worker("w004")].standing == CandidateStanding::Keeps);
    assert_eq!((first[&worker("w004")].load, first[&worker("w004")].ceiling), (1, 2));
    let order: Vec<WorkerId> = planner.explain(Slot(1)).into_iter().map(|c| c.member).collect();
    assert_eq!(order, planner.ring().preference("b").cloned().collect::<Vec<_>>());
    assert_eq!(planner.explain(Slot(7)), vec![]);
}

#[test]
fn a_full_member_is_explained_as_full() {
    let planner = settled(Strategy::Bounded, fleet(5), 1000);
    for slot in 0..1000 {
        for candidate in planner.explain(Slot(slot)) {
            let full = candidate.load >= candidate.ceiling && !candidate.is_owner;
            assert_eq!(candidate.refusal() == Some(CandidateRefusal::AtCeiling), full);
        }
    }
}

#[test]
fn changes_to_slots_without_an_appliance_do_nothing() {
    let mut planner = planner(Strategy::Bounded, fleet(2));
    planner.remove(Slot(7));
    planner.set_owner(Slot(7), Some(&worker("w000")), None);
    planner.set_needs(Slot(7), on_site("h1"));
    planner.set_movable(Slot(7), false);
    planner.set_excluded(Slot(7), [worker("w000")].into());
    assert!(planned(&mut planner).is_empty());
    assert_eq!(planner.load(&worker("w000")), 0);
}

#[test]
fn names_of_workers_that_are_gone_are_forgotten() {
    let mut planner = planner(Strategy::Bounded, vec![]);
    for n in 0..50 {
        let name = format!("pod-{n}");
        planner.set_members(vec![member(&name)]);
        planner.insert(Slot(0), id(0), "a", anywhere(), Some(&worker(&name)), None);
    }
    assert!(planner.roster.handle_count() <= 3, "{}", planner.roster.handle_count());
}

#[test]
fn the_version_counts_membership_changes_and_members_are_in_order() {
    let mut planner = planner(Strategy::Bounded, vec![member("b"), member("a")]);
    assert_eq!(planner.ring_version(), 1);
    assert_eq!(planner.members().iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    planner.set_members(vec![]);
    assert_eq!(planner.ring_version(), 2);
}

#[test]
fn what_nobody_can_run_names_driver_and_kind() {
    let driver = DriverName::new("other-cloud").expect("a name");
    assert_eq!(Unplaced::NoDriver(driver.clone()).to_string(), "no worker offers driver `other-cloud`");
    let no_kind = Unplaced::NoKind(driver, KindName::Custom);
    assert_eq!(no_kind.to_string(), "no worker's driver `other-cloud` runs kind `custom`");
}

#[test]
fn a_change_of_the_kind_moves_an_appliance_whose_owner_does_not_run_it() {
    let balances = PlannerMember { drivers: [(DriverName::simulated(), only_balancers())].into(), ..member("w1") };
    let mut planner = planner(Strategy::Bounded, vec![balances, member("w2")]);
    let balancer = Needs { kind: KindName::Loadbalancer, ..anywhere() };
    planner.insert(Slot(0), id(0), "a", balancer, Some(&worker("w1")), None);
    assert_eq!(planned(&mut planner).moves().len(), 0);
    planner.set_needs(Slot(0), anywhere());
    let plan = planned(&mut planner);
    assert_eq!(plan.moves().map(|m| (m.to.as_str(), m.reason)).collect::<Vec<_>>(), [("w2", Reason::Ineligible)]);
}
