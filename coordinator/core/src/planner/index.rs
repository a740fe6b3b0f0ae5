//! Keys in the order of the ring, in radix buckets: the keys of an arc are read one after the other, and one key comes
//! or goes in constant time. A sorted list costs a millisecond per created appliance at a million keys, a tree reads an
//! arc several times slower.

use std::ops::RangeInclusive;

/// Keys per bucket at which the number of buckets doubles: few enough that an insertion moves little, enough that
/// reading an arc is not all jumps between buckets.
const PER_BUCKET: usize = 16;
/// Room a bucket is made with. Few outgrow it before the number doubles again, so that buckets made one after the other
/// stay side by side in memory, which halves the time to read an arc.
const ROOM: usize = 24;
/// Most buckets, as a power of two; beyond 2^32 appliances there are no slots anyway.
const MAX_BITS: u32 = 28;

/// One appliance on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingKey {
    /// Upper half of its position.
    pub(super) position: u64,
    pub(super) slot: u32,
    /// Who holds it, as the book packs it; here so that reading an arc touches nothing else.
    pub(super) holder: u32,
}

impl RingKey {
    const fn order(&self) -> (u64, u32) {
        (self.position, self.slot)
    }
}

/// Buckets by the first `bits` bits of the position, each in order.
#[derive(Clone, Debug)]
pub(super) struct Index {
    bits: u32,
    buckets: Vec<Vec<RingKey>>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { bits: 0, buckets: vec![Vec::new()], len: 0 }
    }
}

impl Index {
    pub(super) fn insert(&mut self, key: RingKey) {
        let at = self.bucket(key.position);
        let bucket = &mut self.buckets[at];
        let place = bucket.partition_point(|k| k.order() < key.order());
        bucket.insert(place, key);
        self.len += 1;
        if self.len > PER_BUCKET << self.bits && self.bits < MAX_BITS {
            self.double();
        }
    }

    pub(super) fn remove(&mut self, position: u64, slot: u32) {
        let at = self.bucket(position);
        let bucket = &mut self.buckets[at];
        if let Ok(place) = bucket.binary_search_by_key(&(position, slot), RingKey::order) {
            bucket.remove(place);
            self.len -= 1;
        }
    }

    pub(super) fn set_holder(&mut self, position: u64, slot: u32, holder: u32) {
        let at = self.bucket(position);
        let bucket = &mut self.buckets[at];
        if let Ok(place) = bucket.binary_search_by_key(&(position, slot), RingKey::order) {
            bucket[place].holder = holder;
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Shows the keys of `range` in order until `visit` answers `false`; the answer is whether it never did.
    pub(super) fn scan(&self, range: RangeInclusive<u64>, mut visit: impl FnMut(&RingKey) -> bool) -> bool {
        let (start, end) = range.into_inner();
        if start > end {
            return true;
        }
        let (first, last) = (self.bucket(start), self.bucket(end));
        for (at, bucket) in self.buckets[first..=last].iter().enumerate() {
            let from = if at == 0 { bucket.partition_point(|k| k.position < start) } else { 0 };
            for key in &bucket[from..] {
                if key.position > end {
                    return true;
                }
                if !visit(key) {
                    return false;
                }
            }
        }
        true
    }

    const fn bucket(&self, position: u64) -> usize {
        if self.bits == 0 { 0 } else { (position >> (u64::BITS - self.bits)) as usize }
    }

    fn double(&mut self) {
        self.bits += 1;
        let bit = u64::BITS - self.bits;
        let roomy = |keys: &[RingKey]| {
            let mut bucket = Vec::with_capacity(keys.len().max(ROOM));
            bucket.extend_from_slice(keys);
            bucket
        };
        self.buckets = std::mem::take(&mut self.buckets)
            .into_iter()
            .flat_map(|bucket| {
                let (lower, upper) = bucket.split_at(bucket.partition_point(|k| (k.position >> bit) & 1 == 0));
                [roomy(lower), roomy(upper)]
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_an_ordered_map(
            steps in proptest::collection::vec((any::<bool>(), 0u32..400, any::<u32>()), 0..600),
            range in any::<(u64, u64)>(),
        ) {
            let position = |slot: u32| u64::from(slot % 97).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            for (insert, slot, holder) in steps {
                let at = (position(slot), slot);
                match (insert, model.contains_key(&at)) {
                    (true, false) => index.insert(RingKey { position: at.0, slot, holder }),
                    (true, true) => index.set_holder(at.0, slot, holder),
                    (false, _) => index.remove(at.0, slot),
                }
                if insert {
                    model.insert(at, holder);
                } else {
                    model.remove(&at);
                }
            }
            prop_assert_eq!(index.len(), model.len());
            let range = range.0.min(range.1)..=range.0.max(range.1);
            for range in [range, 0..=u64::MAX] {
                let mut seen = Vec::new();
                index.scan(range.clone(), |k| { seen.push(((k.position, k.slot), k.holder)); true });
                let expected: Vec<_> =
                    model.iter().filter(|((p, _), _)| range.contains(p)).map(|(k, h)| (*k, *h)).collect();
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
