//! Going along the ring of a class from key to key, in amortised constant time per key.

use std::borrow::Cow;

/// Looks up points for keys that come mostly in the order of the ring.
///
/// Members fill up while keys are placed and do not empty again, so that points of full members are dropped once
/// passing them has cost as much as dropping them does.
pub(super) struct Walk<'a> {
    all: &'a [(u64, u32)],
    open: Cow<'a, [(u64, u32)]>,
    at_all: usize,
    at_open: usize,
    wasted: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(points: &'a [(u64, u32)]) -> Self {
        Self { all: points, open: Cow::Borrowed(points), at_all: 0, at_open: 0, wasted: 0 }
    }

    /// The member the ring names for a key.
    pub(super) fn first(&mut self, position: u64) -> Option<u32> {
        self.at_all = seek(self.all, self.at_all, position);
        self.all.get(self.at_all).or(self.all.first()).map(|p| p.1)
    }

    /// The first member from the key on that is open to anything and accepts this one. A member that is not open now
    /// must not be open later.
    pub(super) fn find(
        &mut self,
        position: u64,
        is_open: impl Fn(u32) -> bool,
        accepts: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        if self.wasted > 2 * self.open.len() {
            self.open = self.open.iter().copied().filter(|p| is_open(p.1)).collect();
            (self.at_open, self.wasted) = (0, 0);
        }
        self.at_open = seek(&self.open, self.at_open, position);
        let (before, after) = self.open.split_at(self.at_open);
        for &(_, member) in after.iter().chain(before) {
            if !is_open(member) {
                self.wasted += 1;
            } else if accepts(member) {
                return Some(member);
            }
        }
        None
    }
}

/// Index of the first point after `position`, or the number of points; fast when it is near `from`.
fn seek(points: &[(u64, u32)], from: usize, position: u64) -> usize {
    const NEAR: usize = 8;
    if from == 0 || points.get(from - 1).is_some_and(|p| p.0 <= position) {
        let near = &points[from..points.len().min(from + NEAR)];
        let steps = near.iter().take_while(|p| p.0 <= position).count();
        if steps < NEAR {
            return from + steps;
        }
    }
    points.partition_point(|p| p.0 <= position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(
            mut points in proptest::collection::vec((0u64..200, 0u32..8), 0..60),
            keys in proptest::collection::vec((0u64..220, any::<bool>()), 0..60),
        ) {
            points.sort_unstable();
            let mut walk = Walk::new(&points);
            let mut room = [3u32; 8];
            for (key, picky) in keys {
                let at = points.partition_point(|p| p.0 <= key);
                let around = || points[at..].iter().chain(&points[..at]).map(|p| p.1);
                prop_assert_eq!(walk.first(key), around().next());
                let expected = around().find(|&m| room[m as usize] > 0 && !(picky && m % 2 == 0));
                let found = walk.find(key, |m| room[m as usize] > 0, |m| !(picky && m % 2 == 0));
                prop_assert_eq!(found, expected);
                if let Some(found) = found {
                    room[found as usize] -= 1;
                }
            }
        }
    }
}
