//! Appliances that no worker acts on, and since when.
//!
//! An appliance is without an owner from the moment the leader knows so (it was created, given up, or its owner's lease is
//! over) until a worker took it; also while it is granted and on its way. A new leader counts from its own start: for what
//! it finds without an owner that is the least it can be. The time before a dead worker is called gone is not in it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::Timestamp;

use crate::handoff::HandoffState;
use crate::planner::Slot;

/// Every appliance without an owner.
#[derive(Clone, Debug, Default)]
pub struct UnownedAppliances {
    since: BTreeMap<Slot, (Timestamp, u64)>,
    /// By their numbers and so in order of time, which never goes back; also such as got an owner since, which are passed
    /// over.
    order: VecDeque<(u64, Slot)>,
    next: u64,
}

/// Whether a worker acts on an appliance in this state, or the last traces of it are being wiped out.
#[must_use]
pub const fn has_owner(state: &HandoffState) -> bool {
    matches!(state, HandoffState::Owned(_) | HandoffState::Releasing(_) | HandoffState::Removing(_))
}

impl UnownedAppliances {
    /// Notes that an appliance has no owner. Nothing changes when that is known.
    pub fn begin(&mut self, now: Timestamp, slot: Slot) {
        if self.since.contains_key(&slot) {
            return;
        }
        self.since.insert(slot, (now, self.next));
        self.order.push_back((self.next, slot));
        self.next += 1;
        if self.order.len() > 2 * self.since.len() + 64 {
            let since = &self.since;
            self.order.retain(|(number, slot)| since.get(slot).is_some_and(|(_, n)| n == number));
        }
    }

    /// Notes that an appliance has an owner, or is gone. Returns for how long it had none.
    pub fn end(&mut self, now: Timestamp, slot: Slot) -> Option<Duration> {
        let (since, _) = self.since.remove(&slot)?;
        while let Some((number, slot)) = self.order.front()
            && self.since.get(slot).is_none_or(|(_, n)| n != number)
        {
            self.order.pop_front();
        }
        Some(now.since(since))
    }

    /// Since when an appliance has no owner.
    #[must_use]
    pub fn since(&self, slot: Slot) -> Option<Timestamp> {
        self.since.get(&slot).map(|(since, _)| *since)
    }

    /// Those without an owner for longest, the longest first.
    pub fn oldest(&self) -> impl Iterator<Item = (Timestamp, Slot)> + '_ {
        self.order.iter().filter_map(|(number, slot)| {
            self.since.get(slot).filter(|(_, n)| n == number).map(|(since, _)| (*since, *slot))
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.since.len()
    }

    /// Whether everything has an owner.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(s: u64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    fn oldest(unowned: &UnownedAppliances) -> Vec<u32> {
        unowned.oldest().map(|(_, slot)| slot.0).collect()
    }

    #[test]
    fn the_oldest_come_first_and_time_counts_from_the_first_news() {
        let mut unowned = UnownedAppliances::default();
        for n in [3, 1, 2] {
            unowned.begin(at(u64::from(n == 2)), Slot(n));
        }
        unowned.begin(at(9), Slot(3));
        assert_eq!((oldest(&unowned), unowned.len()), (vec![3, 1, 2], 3));
        assert_eq!(unowned.end(at(10), Slot(3)), Some(Duration::from_secs(10)));
        assert_eq!(unowned.end(at(10), Slot(3)), None, "it has one already");
        unowned.begin(at(20), Slot(3));
        assert_eq!((oldest(&unowned), unowned.since(Slot(3))), (vec![1, 2, 3], Some(at(20))));
    }

    #[test]
    fn what_came_and_went_leaves_nothing_behind() {
        let mut unowned = UnownedAppliances::default();
        unowned.begin(at(0), Slot(0));
        for n in 1..10_000 {
            unowned.begin(at(n), Slot(1));
            unowned.end(at(n), Slot(1));
        }
        assert!(unowned.order.len() < 128, "{}", unowned.order.len());
        assert_eq!(oldest(&unowned), [0]);
        unowned.end(at(10_000), Slot(0));
        assert!(unowned.order.is_empty() && unowned.is_empty());
    }
}
