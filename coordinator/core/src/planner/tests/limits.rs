//! Bounds of the ring: whatever members publish, a change of them costs a bounded amount of work.

use common::ring::{MAX_RING_MEMBERS, MAX_RING_WEIGHT, MAX_WEIGHT, POINTS_PER_WEIGHT, Ring};

use super::*;

const MAX_POINTS: u64 = MAX_RING_WEIGHT * POINTS_PER_WEIGHT as u64;

fn heavy(size: usize) -> Vec<PlannerMember> {
    fleet(size).into_iter().map(|m| PlannerMember { weight: u32::MAX, ..m }).collect()
}

#[test]
fn under_bounded_excessive_weights_are_scaled_and_all_members_stay() {
    let mut members = heavy(300);
    members.extend((0..3).map(|n| PlannerMember { weight: 1, ..member(&format!("z{n}")) }));
    let mut planner = planner(Strategy::Bounded, members);
    assert_eq!(*planner.ring_limited(), RingLimited { divisor: 32, ..RingLimited::default() });
    assert!(planner.ring().points().len() as u64 <= MAX_POINTS);
    assert!(planner.ring().members().all(|(_, weight)| weight >= 1));
    create(&mut planner, 0..3_000);
    settle(&mut planner);
    // Fair shares follow the weights as they are: those of 1 get next to nothing beside 300 of 1024.
    let loads: Vec<_> = ["w000", "z0"].iter().map(|name| planner.load(&worker(name))).collect();
    assert!((9..=11).contains(&loads[0]) && loads[1] <= 1, "{loads:?}");
    planner.set_members(fleet(3));
    assert_eq!(planner.ring_limited().divisor, 1);
}

#[test]
fn under_ring_points_are_those_of_tooz_and_the_heaviest_are_left_out() {
    let mut members = heavy(300);
    members.extend((0..3).map(|n| PlannerMember { weight: 2, ..member(&format!("z{n}")) }));
    let planner = planner(Strategy::Ring, members);
    let limited = planner.ring_limited();
    assert_eq!((limited.divisor, limited.left_out.len()), (0, 285));
    let light = (0..3).map(|n| (worker(&format!("z{n}")), 2));
    let kept = (0..15).map(|n| (worker(&format!("w{n:03}")), MAX_WEIGHT)).chain(light);
    assert_eq!(*planner.ring(), Ring::build(kept), "what is on the ring has all its points");
    assert_eq!(planner.members().len(), 303, "they keep what they have until it is moved");
}

#[test]
fn members_beyond_the_limit_are_ignored_those_without_appliances_first() {
    let mut planner = planner(Strategy::Bounded, vec![member("zz")]);
    create(&mut planner, 0..3);
    settle(&mut planner);
    let mut members: Vec<_> = (0..MAX_RING_MEMBERS + 5).map(|n| member(&format!("w{n:05}"))).collect();
    members[0].drivers = DriverOffers::default();
    members.push(member("zz"));
    planner.set_members(members);
    assert_eq!(planner.members().len(), MAX_RING_MEMBERS);
    let ignored = &planner.ring_limited().ignored;
    assert_eq!(ignored.len(), 6);
    assert!(ignored.contains(&worker("w00000")), "it takes no share");
    assert!(!ignored.contains(&worker("zz")), "it has appliances");
}
