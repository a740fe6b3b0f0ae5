use proptest::prelude::*;

use super::*;

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a valid name")
}

fn members(list: &[(&str, u32)]) -> Vec<(WorkerId, u32)> {
    list.iter().map(|&(name, weight)| (worker(name), weight)).collect()
}

/// Key `i` of the committed vectors.
fn key(i: usize) -> String {
    match i {
        0 => String::new(),
        1 => "a".into(),
        2 => "router".into(),
        3 => "ä ö ü".into(),
        4 => "東京".into(),
        5 => "x".repeat(300),
        6 => "0".into(),
        7 => "w".into(),
        _ => {
            let digest: [u8; 16] = Md5::digest(format!("rug-vector-{i}").as_bytes()).into();
            uuid::Builder::from_random_bytes(digest).into_uuid().as_hyphenated().to_string()
        }
    }
}

#[test]
fn owners_equal_the_committed_answers_of_tooz() {
    let text = include_str!("../../../tests/vectors/tooz-ring.txt");
    let mut ring = Ring::default();
    let mut names: Vec<WorkerId> = Vec::new();
    let (mut sets, mut at, mut compared) = (0, 0, 0);
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(set) = line.strip_prefix("set ") {
            let list: Vec<(WorkerId, u32)> = set
                .split(' ')
                .skip(1)
                .map(|m| m.split_once('=').expect("member=weight"))
                .map(|(name, weight)| (worker(name), weight.parse().expect("a weight")))
                .collect();
            names = list.iter().map(|(id, _)| id.clone()).collect();
            ring = Ring::build(list);
            (sets, at) = (sets + 1, 0);
            continue;
        }
        for owner in line.split(',') {
            let expected = &names[owner.parse::<usize>().expect("an index")];
            assert_eq!(ring.owner(&key(at)), Some(expected), "key {at} of set {sets}");
            assert_eq!(ring.owner_at(position(&key(at))), Some(expected), "key {at} of set {sets}");
            (at, compared) = (at + 1, compared + 1);
        }
    }
    assert_eq!((sets, compared), (7, 4200));
}

#[test]
fn position_is_the_md5_of_the_key() {
    assert_eq!(position(""), 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
    assert_eq!(position("abc"), 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
}

#[test]
fn an_empty_ring_owns_nothing() {
    let ring = Ring::build([]);
    assert!(ring.is_empty());
    assert_eq!(ring.owner("a"), None);
    assert_eq!(ring.preference("a").count(), 0);
    assert!(ring.shares().is_empty());
    assert!(Ring::build(members(&[("w", 0)])).is_empty());
}

#[test]
fn points_that_meet_go_to_the_later_name_and_come_back_when_it_leaves() {
    let both = Ring::build(members(&[("w", 1), ("ww", 1)]));
    assert!(both.shared);
    assert_eq!(both, Ring::build(members(&[("ww", 1), ("w", 1)])));
    assert!(both.points().len() < 64);
    let left = both.with_members(members(&[("w", 1)]));
    assert_eq!(left, Ring::build(members(&[("w", 1)])));
    assert_eq!(left.points().len(), 32);
}

#[test]
fn an_enormous_weight_is_cut_to_the_largest() {
    let ring = Ring::build(members(&[("w1", u32::MAX), ("w2", 1)]));
    assert_eq!(ring.points().len(), ((MAX_WEIGHT + 1) * POINTS_PER_WEIGHT) as usize);
}

#[test]
fn a_member_listed_twice_counts_once_with_its_greater_weight() {
    assert_eq!(Ring::build(members(&[("w1", 3), ("w1", 1)])), Ring::build(members(&[("w1", 1), ("w1", 3)])));
    assert_eq!(Ring::build(members(&[("w1", 3), ("w1", 1)])).points().len(), 96);
}

fn some_members() -> impl Strategy<Value = Vec<(WorkerId, u32)>> {
    proptest::collection::btree_map("[w-y]{1,4}", 0u32..4, 0..12)
        .prop_map(|map| map.into_iter().map(|(name, weight)| (worker(&name), weight)).collect())
}

proptest! {
    #[test]
    fn input_order_does_not_matter(list in some_members(), seed in any::<u64>()) {
        let mut shuffled = list.clone();
        shuffled.sort_by_key(|(id, _)| position(&format!("{seed}{id}")));
        prop_assert_eq!(Ring::build(list), Ring::build(shuffled));
    }

    #[test]
    fn changing_a_ring_equals_building_it(old in some_members(), new in some_members(), third in some_members()) {
        let changed = Ring::build(old).with_members(new.clone());
        prop_assert_eq!(&changed, &Ring::build(new));
        prop_assert_eq!(changed.with_members(third.clone()), Ring::build(third));
    }

    #[test]
    fn the_crate_and_the_own_search_name_the_same_owner(list in some_members(), key in ".{0,20}") {
        let ring = Ring::build(list);
        prop_assert_eq!(ring.owner(&key), ring.owner_at(position(&key)));
        prop_assert_eq!(ring.owner(&key), ring.preference(&key).next());
    }

    #[test]
    fn preference_lists_each_member_once_and_survives_the_loss_of_the_owner(list in some_members(), key in ".{0,20}") {
        let ring = Ring::build(list.clone());
        let order: Vec<WorkerId> = ring.preference(&key).cloned().collect();
        prop_assert_eq!(order.len(), list.iter().filter(|(_, weight)| *weight > 0).count());
        // Points that meet can come back in front of others when their holder leaves.
        if let Some(owner) = order.first().filter(|_| !ring.shared) {
            let left = Ring::build(list.into_iter().filter(|(id, _)| id != owner));
            prop_assert_eq!(left.preference(&key).collect::<Vec<_>>(), order[1..].iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn applying_the_difference_to_the_old_owners_gives_the_new_ones(
        old in some_members(), new in some_members(), keys in proptest::collection::vec(any::<u128>(), 50),
    ) {
        let (old, new) = (Ring::build(old), Ring::build(new));
        let arcs = Ring::diff(&old, &new);
        prop_assert!(arcs.windows(2).all(|w| w[0].range.end() < w[1].range.start()));
        let edges = old.points().iter().chain(new.points()).flat_map(|p| [p.position.wrapping_sub(1), p.position]);
        for key in edges.chain(keys).chain([0, u128::MAX]) {
            let arc = arcs.iter().find(|arc| arc.range.contains(&key));
            let before = old.owner_at(key);
            let after = arc.map_or(before, |arc| arc.new.as_ref());
            prop_assert_eq!(after, new.owner_at(key));
            prop_assert!(arc.is_none_or(|arc| arc.old.as_ref() == before && arc.old != arc.new));
        }
    }

    #[test]
    fn shares_add_up_to_everything(list in some_members()) {
        let ring = Ring::build(list);
        let sum: f64 = ring.shares().iter().map(|(_, share)| share).sum();
        prop_assert!(ring.is_empty() || (sum - 1.0).abs() < 1e-9);
    }
}
