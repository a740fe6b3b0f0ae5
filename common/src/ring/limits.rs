//! How large a ring may become: everybody who may join the group publishes a weight, and the work of each change of the
//! members is paid for by the leader, whose heartbeats wait meanwhile.

use super::{MAX_WEIGHT, POINTS_PER_WEIGHT};
use crate::WorkerId;

/// Weights of one ring, added up, at most. With [`POINTS_PER_WEIGHT`] it has half a million points then, which are some
/// 30 MB and are computed in about a quarter of a second. A thousand members of weight 16 are within it.
pub const MAX_RING_WEIGHT: u64 = 16_384;

/// Members of one ring, at most; with weights of 1 they fit into [`MAX_RING_WEIGHT`].
pub const MAX_RING_MEMBERS: usize = 4_096;

const _: () = assert!(MAX_RING_MEMBERS as u64 <= MAX_RING_WEIGHT);
const _: () = assert!(MAX_RING_WEIGHT * (POINTS_PER_WEIGHT as u64) < u32::MAX as u64);

/// By what the weights of a ring that only states a preference are to be divided, rounded up, so that it stays within
/// [`MAX_RING_WEIGHT`]; 1 when they fit. A power of two: most changes of the members leave it, and with it the points of
/// all others, as they are. Members beyond [`MAX_RING_MEMBERS`] are not counted.
pub fn divisor(weights: impl IntoIterator<Item = u32> + Clone) -> u32 {
    let mut divisor = 1;
    loop {
        let all = weights.clone().into_iter().take(MAX_RING_MEMBERS);
        let sum: u64 = all.map(|weight| u64::from(weight.min(MAX_WEIGHT).div_ceil(divisor))).sum();
        if sum <= MAX_RING_WEIGHT {
            return divisor;
        }
        divisor *= 2;
    }
}

/// Splits members for a ring whose points must be those of python-tooz, so that weights cannot be scaled: those that are
/// on it, and those left out. The light ones stay, so that a member with an excessive weight leaves out itself before
/// others; among equal ones the first by name.
#[must_use]
pub fn cut(mut members: Vec<(WorkerId, u32)>) -> (Vec<(WorkerId, u32)>, Vec<WorkerId>) {
    members.sort_by(|a, b| (a.1.min(MAX_WEIGHT), &a.0).cmp(&(b.1.min(MAX_WEIGHT), &b.0)));
    let (mut sum, mut fit) = (0, 0);
    for (_, weight) in members.iter().take(MAX_RING_MEMBERS) {
        sum += u64::from((*weight).min(MAX_WEIGHT));
        if sum > MAX_RING_WEIGHT {
            break;
        }
        fit += 1;
    }
    let beyond = members.split_off(fit).into_iter().map(|(id, _)| id).collect();
    (members, beyond)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;

    fn members(count: usize, weight: u32) -> Vec<(WorkerId, u32)> {
        (0..count).map(|n| (WorkerId::new(&format!("w{n:05}")).expect("a name"), weight)).collect()
    }

    #[test]
    fn weights_are_scaled_until_the_ring_is_within_its_bound() {
        let divisor_of = |count, weight| divisor(std::iter::repeat_n(weight, count));
        assert_eq!(divisor_of(0, 0), 1);
        assert_eq!(divisor_of(1_000, 16), 1);
        assert_eq!(divisor_of(1_000, 17), 2);
        assert_eq!(divisor_of(300, 1_024), 32);
        assert_eq!(divisor_of(100_000, u32::MAX), MAX_WEIGHT / 4);
    }

    #[test]
    fn who_asks_for_too_much_is_left_out_first() {
        let mut all = members(300, MAX_WEIGHT);
        all.extend((0..100).map(|n| (WorkerId::new(&format!("z{n}")).expect("a name"), 10)));
        let (kept, beyond) = cut(all);
        assert_eq!(kept.iter().filter(|(_, weight)| *weight == 10).count(), 100);
        assert_eq!(beyond.len(), 300 - (16_384 - 1_000) / 1_024);
        assert!(Ring::build(kept).points().len() as u64 <= MAX_RING_WEIGHT * u64::from(POINTS_PER_WEIGHT));
        let (kept, beyond) = cut(members(5_000, 0));
        assert_eq!((kept.len(), beyond.len()), (MAX_RING_MEMBERS, 5_000 - MAX_RING_MEMBERS));
        assert_eq!(beyond[0].as_str(), "w04096");
    }
}
