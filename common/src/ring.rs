//! Consistent-hash ring, key for key the one of python-tooz (`tooz.hashring.HashRing`), so that Python services in the
//! same group name the same owners.
//!
//! A member of weight `w` has `32 w` points: the MD5 state of its name is fed the name once more per point, and each
//! intermediate digest is a position, big endian. A key belongs to the first point strictly after its own MD5, going
//! round at the end. Members are taken in the order of their names; where two members share a point the later name has
//! it, as the last member added has in tooz. That is not a theoretical case: the digests of `w` and `ww` meet.
//!
//! The lookup of a single owner ([`Ring::owner`]) sits on the `hashring` crate with the top 64 bits of each point. That
//! crate has no weights, no order of preference and no arcs, and its ring cannot be changed without sorting it again,
//! so these, and the lookups of the planner's hot path, work on a sorted list of the full 128-bit points here. The
//! tests hold the two against each other.

mod limits;

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use hashring::HashRing;
use md5::{Digest, Md5};

use crate::WorkerId;

pub use limits::{MAX_RING_MEMBERS, MAX_RING_WEIGHT, cut, divisor};

/// Points per unit of weight, as tooz has them by default.
pub const POINTS_PER_WEIGHT: u32 = 32;

/// Largest weight that is honoured; a larger one counts as this. Anyone who may join the group publishes a weight, and
/// without a limit one member could make every other one compute points until its memory is gone.
pub const MAX_WEIGHT: u32 = 1024;

/// Where a key lies on the ring: its MD5, big endian.
#[must_use]
pub fn position(key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(key.as_bytes()).into())
}

/// One point of the ring. `member` is an index into the members, which are in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Where it lies. Keys from the point before it up to just before this position belong to `member`.
    pub position: u128,
    /// Index of its member in [`Ring::members`].
    pub member: u32,
}

/// Keys that changed hands between two rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingArc {
    /// Positions of the keys; never goes round the end.
    pub range: RangeInclusive<u128>,
    /// Who owned them; `None` when the old ring was empty.
    pub old: Option<WorkerId>,
    /// Who owns them now; `None` when the new ring is empty.
    pub new: Option<WorkerId>,
}

/// The ring of one set of members. Equal sets give equal rings, whatever their order.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    members: Vec<RingPositions>,
    /// Strictly ascending by position.
    points: Vec<Point>,
    /// Two members share a position, so that taking one away would have to bring a point of the other back.
    shared: bool,
    /// The crate's ring, made at the first [`Ring::owner`]: the planner replaces rings without asking for one key.
    single: OnceLock<HashRing<Top, BuildHasherDefault<PassThrough>>>,
}

#[derive(Clone, Debug)]
struct RingPositions {
    id: WorkerId,
    weight: u32,
    /// Ascending.
    positions: Arc<[u128]>,
}

impl PartialEq for Ring {
    fn eq(&self, other: &Self) -> bool {
        self.points == other.points && self.members().eq(other.members())
    }
}

impl Eq for Ring {}

impl Ring {
    /// The ring of `members`. A member of weight 0 has no points; one that is listed twice counts with its greater
    /// weight.
    pub fn build(members: impl IntoIterator<Item = (WorkerId, u32)>) -> Self {
        Self::default().with_members(members)
    }

    /// The ring of `members`, taking from this one the points of members that stay, with their weight. Equal to
    /// [`Ring::build`], and much cheaper when little changes.
    #[must_use]
    pub fn with_members(&self, members: impl IntoIterator<Item = (WorkerId, u32)>) -> Self {
        let mut wanted: Vec<(WorkerId, u32)> =
            members.into_iter().map(|(id, weight)| (id, weight.min(MAX_WEIGHT))).collect();
        wanted.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        wanted.dedup_by(|later, first| later.0 == first.0);
        let mut entries = Vec::with_capacity(wanted.len());
        // New index of each member of this ring whose points stay.
        let mut kept: Vec<Option<u32>> = vec![None; self.members.len()];
        let mut added: Vec<Point> = Vec::new();
        let mut at = 0;
        for (id, weight) in wanted {
            let index = u32::try_from(entries.len()).expect("fewer than 2^32 members");
            while self.members.get(at).is_some_and(|m| m.id < id) {
                at += 1;
            }
            let positions = match self.members.get(at).filter(|m| m.id == id && m.weight == weight) {
                Some(same) => {
                    kept[at] = Some(index);
                    Arc::clone(&same.positions)
                }
                None => {
                    let positions = points_of(&id, weight);
                    added.extend(positions.iter().map(|&position| Point { position, member: index }));
                    positions
                }
            };
            entries.push(RingPositions { id, weight, positions });
        }
        added.sort_unstable_by_key(|p| (p.position, p.member));
        let merged = if self.shared { None } else { merge(&self.points, &kept, &added) };
        let (points, shared) = merged.map_or_else(|| assemble(&entries), |points| (points, false));
        Self { members: entries, points, shared, single: OnceLock::new() }
    }

    /// Names and weights of the members, in the order of their names.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&WorkerId, u32)> {
        self.members.iter().map(|m| (&m.id, m.weight))
    }

    /// The name behind the index of a [`Point`].
    #[must_use]
    pub fn name(&self, member: u32) -> &WorkerId {
        &self.members[member as usize].id
    }

    /// All points, ascending.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether no member has a point.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The member that owns `key`, the one tooz names. `None` when the ring is empty.
    #[must_use]
    pub fn owner(&self, key: &str) -> Option<&WorkerId> {
        let single = self.single.get_or_init(|| {
            let mut tops: Vec<Top> = Vec::with_capacity(self.points.len());
            for point in &self.points {
                let top = Top { position: top(point.position), member: point.member };
                // Of points that agree in their top half the lowest is the one that keys before them reach.
                if tops.last().is_none_or(|last| last.position != top.position) {
                    tops.push(top);
                }
            }
            let mut ring = HashRing::with_hasher(BuildHasherDefault::default());
            ring.batch_add(tops);
            ring
        });
        // The crate finds the first point at or after what it is given, tooz the first one strictly after.
        let after = top(position(key)).wrapping_add(1);
        single.get(&Top { position: after, member: 0 }).map(|found| self.name(found.member))
    }

    /// The member that owns keys at `position`.
    #[must_use]
    pub fn owner_at(&self, position: u128) -> Option<&WorkerId> {
        self.points.get(self.successor(position)).map(|p| self.name(p.member))
    }

    /// All members with points in the order in which they are met from `key` on: the owner, then who would own the key
    /// without it, and so on.
    pub fn preference(&self, key: &str) -> impl Iterator<Item = &WorkerId> {
        self.preference_at(position(key))
    }

    /// As [`Ring::preference`], from a position.
    pub fn preference_at(&self, position: u128) -> impl Iterator<Item = &WorkerId> {
        let mut seen = vec![false; self.members.len()];
        let (before, after) = self.points.split_at(self.successor(position));
        after
            .iter()
            .chain(before)
            .filter(move |p| !std::mem::replace(&mut seen[p.member as usize], true))
            .map(|p| self.name(p.member))
    }

    /// The part of all keys that each member owns, 0 to 1, in the order of their names.
    #[must_use]
    pub fn shares(&self) -> Vec<(&WorkerId, f64)> {
        let mut shares = vec![0.0; self.members.len()];
        // One member owns everything, which a length modulo 2^128 cannot say.
        if let [only] = self.points[..] {
            shares[only.member as usize] = 1.0;
        } else if let Some(last) = self.points.last() {
            let mut before = last.position;
            for point in &self.points {
                let length = point.position.wrapping_sub(before);
                shares[point.member as usize] += length as f64 / 2f64.powi(128);
                before = point.position;
            }
        }
        self.members.iter().map(|m| &m.id).zip(shares).collect()
    }

    /// What changes hands between two rings: ascending arcs that do not overlap, adjacent ones with the same two owners
    /// in one.
    #[must_use]
    pub fn diff(old: &Self, new: &Self) -> Vec<RingArc> {
        let mut arcs: Vec<RingArc> = Vec::new();
        let (mut at_old, mut at_new) = (0, 0);
        // Index in the new ring of each old member: thousands of comparisons of names would take most of the time.
        let renumbered: Vec<Option<u32>> = old.members.iter().map(|m| new.index(&m.id)).collect();
        let mut start = 0u128;
        loop {
            // Most of the circle stays as it is.
            while let (Some(before), Some(after)) = (old.points.get(at_old), new.points.get(at_new)) {
                if before.position != after.position || renumbered[before.member as usize] != Some(after.member) {
                    break;
                }
                start = after.position;
                (at_old, at_new) = (at_old + 1, at_new + 1);
            }
            let ends = [old.points.get(at_old), new.points.get(at_new)].map(|p| p.map(|p| p.position));
            // The next position at which an owner changes; `None` when the rest of the circle has one.
            let next = ends.into_iter().flatten().min();
            if next != Some(start) {
                let end = next.map_or(u128::MAX, |next| next - 1);
                let (before, after) = (old.segment(at_old), new.segment(at_new));
                if before.and_then(|m| renumbered[m as usize]) != after || (before.is_some() && after.is_none()) {
                    let (before, after) = (before.map(|m| old.name(m)), after.map(|m| new.name(m)));
                    match arcs.last_mut() {
                        Some(last)
                            if last.range.end().checked_add(1) == Some(start)
                                && last.old.as_ref() == before
                                && last.new.as_ref() == after =>
                        {
                            last.range = *last.range.start()..=end;
                        }
                        _ => arcs.push(RingArc { range: start..=end, old: before.cloned(), new: after.cloned() }),
                    }
                }
            }
            let Some(next) = next else { return arcs };
            at_old += usize::from(ends[0] == Some(next));
            at_new += usize::from(ends[1] == Some(next));
            start = next;
        }
    }

    /// Member that owns the keys before point `index`, where the index after the last one is the first again.
    fn segment(&self, index: usize) -> Option<u32> {
        self.points.get(index).or(self.points.first()).map(|p| p.member)
    }

    fn index(&self, id: &WorkerId) -> Option<u32> {
        let at = self.members.binary_search_by(|m| m.id.cmp(id)).ok()?;
        Some(u32::try_from(at).expect("fewer than 2^32 members"))
    }

    /// Index of the first point after `position`, going round.
    fn successor(&self, position: u128) -> usize {
        let index = self.points.partition_point(|p| p.position <= position);
        if index == self.points.len() { 0 } else { index }
    }
}

/// The upper half of a position, which is what the `hashring` crate and the planner's index compare. That two unequal
/// positions agree in it is as likely as 2^-64 for a pair, and would cost one key another owner.
#[must_use]
pub const fn top(position: u128) -> u64 {
    (position >> 64) as u64
}

/// The points of one member, ascending.
fn points_of(id: &WorkerId, weight: u32) -> Arc<[u128]> {
    let name = id.as_str().as_bytes();
    let mut state = Md5::new_with_prefix(name);
    let mut positions: Vec<u128> = (0..weight * POINTS_PER_WEIGHT)
        .map(|_| {
            state.update(name);
            u128::from_be_bytes(state.clone().finalize().into())
        })
        .collect();
    positions.sort_unstable();
    positions.into()
}

/// The points whose members are kept, and `added`, in one ascending list; `None` when two of them share a position.
fn merge(old: &[Point], kept: &[Option<u32>], added: &[Point]) -> Option<Vec<Point>> {
    let mut points: Vec<Point> = Vec::with_capacity(old.len() + added.len());
    let mut added = added.iter().copied().peekable();
    for point in old {
        let Some(member) = kept[point.member as usize] else { continue };
        while let Some(new) = added.next_if(|new| new.position <= point.position) {
            points.push(new);
        }
        points.push(Point { position: point.position, member });
    }
    points.extend(added);
    points.is_sorted_by(|a, b| a.position < b.position).then_some(points)
}

/// All points, ascending; of points at one position the one of the last member stays. The flag says whether there were
/// such.
fn assemble(members: &[RingPositions]) -> (Vec<Point>, bool) {
    let of = |(member, entry): (u32, &RingPositions)| -> Vec<Point> {
        entry.positions.iter().map(|&position| Point { position, member }).collect()
    };
    let mut points: Vec<Point> = (0..).zip(members).flat_map(of).collect();
    points.sort_unstable_by_key(|p| (p.position, std::cmp::Reverse(p.member)));
    let all = points.len();
    points.dedup_by_key(|p| p.position);
    let shared = points.len() < all;
    (points, shared)
}

/// What the crate's ring holds: a point by its top half.
#[derive(Clone, Debug, PartialEq)]
struct Top {
    position: u64,
    member: u32,
}

impl Hash for Top {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.position);
    }
}

/// Hands the position through: it is an MD5 already.
#[derive(Clone, Debug, Default, PartialEq)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `Top` is hashed, by `write_u64`; folding keeps the trait's contract for anything else.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, position: u64) {
        self.0 = position;
    }
}

#[cfg(test)]
mod tests;
