//! `explain` held against the planner: whatever it says of a member is what the next plan does.

use proptest::strategy::Strategy as _;

use super::*;

/// A planner in any state: who is there, who owns what, what may be picked, who declined.
fn any_planner() -> impl proptest::strategy::Strategy<Value = Planner> {
    let members = proptest::collection::vec((1u32..4, any::<bool>(), 0u8..8), 0..6);
    let appliances = proptest::collection::vec((0u8..9, 0u8..9, 0u8..12), 1..25);
    (0u8..4, members, appliances).prop_map(|(policy, members, appliances)| {
        let strategy = if policy > 0 { super::Strategy::Bounded } else { super::Strategy::Ring };
        let spread = if policy > 1 { Spread::Tenant } else { Spread::None };
        let members = members.into_iter().enumerate().map(|(n, (weight, simulates, state))| PlannerMember {
            weight,
            drivers: if simulates { [process(), simulated()].into() } else { [process()].into() },
            connected: state != 0,
            draining: state == 1,
            drained: state == 2,
            cordoned: state == 3,
            zone: ["", "a", "b", "b"][n % 4].into(),
            ..member(&format!("w{n:03}"))
        });
        let mut planner = planner_of(Config { strategy, spread, ..Config::default() }, members.collect());
        for (slot, (owner, former, state)) in (0u32..).zip(appliances) {
            // Some of them are no members.
            let named = |n: u8| (n < 7).then(|| worker(&format!("w{n:03}")));
            let (owner, former) = (named(owner), named(former));
            let needs = if state == 2 { on_site("h1") } else { anywhere() };
            let key = format!("appliance-{slot}");
            planner.insert(Slot(slot), id(slot), &key, needs, owner.as_ref(), former.as_ref());
            planner.set_tenant(Slot(slot), tenant(slot % 3).as_ref().filter(|_| state != 6));
            match state {
                0 => _ = planner.set_movable(Slot(slot), false),
                1 => planner.set_excluded(Slot(slot), [worker("w000"), worker("w001")].into()),
                3 => planner.set_deleting(Slot(slot)),
                4 | 5 => planner.set_pin(Slot(slot), Some(Pin { worker: worker("w001"), strict: state == 4 })),
                _ => {}
            }
        }
        planner
    })
}

/// How many other appliances of the tenant of one there are in the zone of a member; 0 where tenants are not spread.
fn beside(planner: &Planner, slot: Slot, member: &WorkerId) -> u64 {
    let zone_of = |id: &WorkerId| planner.members().iter().find(|m| m.id == *id && !m.gives_up()).map(|m| &m.zone);
    let zone = planner.members().iter().find(|m| m.id == *member).map(|m| &m.zone);
    let is_beside = |other: Slot| {
        let owner = planner.book.entry(other).and_then(|entry| planner.roster.names().get(entry.owner as usize));
        other != slot
            && planner.tenants.name(slot).is_some_and(|tenant| planner.tenants.name(other) == Some(tenant))
            && !planner.is_deleting(other)
            && owner.and_then(zone_of).is_some_and(|held| Some(held) == zone)
    };
    let counts = planner.config.spreads() && !planner.is_deleting(slot);
    if counts { planner.book.ids().filter(|(other, _)| is_beside(Slot(*other))).count() as u64 } else { 0 }
}

/// What is wrong with what is said of one member.
fn wrong(
    explained: &[PlacementCandidate],
    place: usize,
    next: Option<(&WorkerId, Reason)>,
    former: Option<&WorkerId>,
    beside: &[u64],
) -> Option<&'static str> {
    use CandidateStanding as S;
    let candidate = &explained[place];
    let target = next.and_then(|(to, _)| explained.iter().position(|c| c.member == *to));
    let moves = |reason: Reason| next.is_some_and(|(_, why)| why == reason);
    let owned = explained.iter().any(|c| c.is_owner);
    let (right, what) = match candidate.standing {
        S::Refused(CandidateRefusal::AtCeiling) => {
            (candidate.ceiling > 0 && candidate.load >= candidate.ceiling, "it is not full")
        }
        S::Refused(_) => (target != Some(place), "it is refused and gets it"),
        S::Keeps => (candidate.is_owner && next.is_none(), "it does not keep it"),
        S::GivesUp(reason) => (candidate.is_owner && moves(reason) && target != Some(place), "it does not give it up"),
        S::Next(reason) => (target == Some(place) && moves(reason), "it does not get it"),
        S::NotNeeded => (!candidate.is_owner && owned && next.is_none(), "a move is made, or there is no owner"),
        S::Barred => (!owned && next.is_none(), "some member gets it"),
        S::PinFirst => (moves(Reason::Pinned) && target != Some(place), "it is not pinned"),
        S::FormerFirst => (next.is_some_and(|(to, _)| Some(to) == former), "it goes to no former owner"),
        S::ShareFirst => {
            let short = |c: &PlacementCandidate| c.load <= c.floor;
            (target.is_some_and(|to| short(&explained[to]) && candidate.load >= candidate.floor), "shares are not why")
        }
        S::SpreadFirst => (target.is_some_and(|to| beside[to] < beside[place]), "zones are not why"),
        S::RingFirst => {
            let named_first = |to: usize| to < place && beside[to] == beside[place];
            (target.is_some_and(named_first), "the ring does not name the other one first, or zones are why")
        }
        S::OthersFill => (next.is_some(), "nothing is placed"),
    };
    (!right).then_some(what)
}

proptest! {
    #[test]
    fn what_is_said_of_each_member_is_what_the_next_plan_does(planner in any_planner()) {
        let plan = planner.propose(&Assumptions::default());
        for slot in planner.book.ids().map(|(slot, _)| Slot(slot)) {
            let next = plan.moves().find(|m| m.slot == slot).map(|m| (m.to, m.reason));
            let entry = planner.book.entry(slot).expect("listed");
            let former = planner.roster.names().get(entry.former as usize);
            let explained = planner.explain(slot);
            let beside: Vec<u64> = explained.iter().map(|c| beside(&planner, slot, &c.member)).collect();
            for (place, candidate) in explained.iter().enumerate() {
                let wrong = wrong(&explained, place, next, former, &beside);
                prop_assert_eq!(wrong, None, "slot {}: {:?} of {:?}, next {:?}", slot.0, candidate, explained, next);
            }
            let gets = explained.iter().filter(|c| matches!(c.standing, CandidateStanding::Next(_))).count();
            prop_assert_eq!(gets, usize::from(next.is_some()));
        }
    }
}

#[test]
fn a_first_preference_with_room_is_not_said_to_be_passed_over() {
    let planner = settled(Strategy::Bounded, fleet(3), 6);
    for slot in (0..6).map(Slot) {
        for candidate in planner.explain(slot) {
            let expected = match (candidate.is_owner, candidate.load < candidate.ceiling) {
                (true, _) => CandidateStanding::Keeps,
                (false, true) => CandidateStanding::NotNeeded,
                (false, false) => CandidateStanding::Refused(CandidateRefusal::AtCeiling),
            };
            assert_eq!(candidate.standing, expected, "{candidate:?}");
        }
    }
}

#[test]
fn an_empty_member_is_never_full() {
    let mut planner = planner(Strategy::Bounded, fleet(2));
    create(&mut planner, 0..1);
    planner.set_movable(Slot(0), false);
    let standings: Vec<_> = planner.explain(Slot(0)).into_iter().map(|c| c.standing).collect();
    assert_eq!(standings, [CandidateStanding::Barred; 2]);
}
