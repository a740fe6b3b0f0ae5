//! Appliances that no worker acts on, and since when.
//!
//! An appliance is without an owner from the moment the leader knows so (it was created, given up, or its owner's lease is
//! over) until a worker took it; also while it is granted and on its way. A new leader counts from its own start: for what
//! it finds without an owner that is the least it can be. The time before a dead worker is called gone is not in it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::{RebalanceId, Timestamp};

use crate::handoff::HandoffState;
use crate::slot::Slot;

/// How an appliance came to have no owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnownedCause {
    /// It is new.
    Created,
    /// Its owner gave it up on a move to another one.
    HandOff,
    /// Its owner is gone.
    Lost,
    /// Its owner gave it up otherwise: it stops, or does not act on it after all.
    Other,
}

impl UnownedCause {
    /// Every cause.
    pub const ALL: [Self; 4] = [Self::Created, Self::HandOff, Self::Lost, Self::Other];

    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::HandOff => "hand_off",
            Self::Lost => "lost",
            Self::Other => "other",
        }
    }
}

/// An appliance has an owner again, or its first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regained {
    /// For how long it had none.
    pub lasted: Duration,
    /// How it had come to that.
    pub cause: UnownedCause,
    /// The rebalance that it was moved in.
    pub rebalance: Option<RebalanceId>,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    at: Timestamp,
    number: u64,
    cause: UnownedCause,
}

/// Every appliance without an owner.
#[derive(Clone, Debug, Default)]
pub struct UnownedAppliances {
    since: BTreeMap<Slot, Since>,
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
    pub fn begin(&mut self, now: Timestamp, slot: Slot, cause: UnownedCause) {
        if self.since.contains_key(&slot) {
            return;
        }
        self.since.insert(slot, Since { at: now, number: self.next, cause });
        self.order.push_back((self.next, slot));
        self.next += 1;
        if self.order.len() > 2 * self.since.len() + 64 {
            let since = &self.since;
            self.order.retain(|(number, slot)| since.get(slot).is_some_and(|since| since.number == *number));
        }
    }

    /// Notes that an appliance has an owner, or is gone. Returns for how long it had none, and why.
    pub fn end(&mut self, now: Timestamp, slot: Slot) -> Option<(Duration, UnownedCause)> {
        let ended = self.since.remove(&slot)?;
        while let Some((number, slot)) = self.order.front()
            && self.since.get(slot).is_none_or(|since| since.number != *number)
        {
            self.order.pop_front();
        }
        Some((now.since(ended.at), ended.cause))
    }

    /// Since when an appliance has no owner.
    #[must_use]
    pub fn since(&self, slot: Slot) -> Option<Timestamp> {
        self.since.get(&slot).map(|since| since.at)
    }

    /// Those without an owner for longest, the longest first.
    pub fn oldest(&self) -> impl Iterator<Item = (Timestamp, Slot)> + '_ {
        self.order.iter().filter_map(|(number, slot)| {
            self.since.get(slot).filter(|since| since.number == *number).map(|since| (since.at, *slot))
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
            unowned.begin(at(u64::from(n == 2)), Slot(n), UnownedCause::Created);
        }
        unowned.begin(at(9), Slot(3), UnownedCause::Lost);
        assert_eq!((oldest(&unowned), unowned.len()), (vec![3, 1, 2], 3));
        assert_eq!(unowned.end(at(10), Slot(3)), Some((Duration::from_secs(10), UnownedCause::Created)));
        assert_eq!(unowned.end(at(10), Slot(3)), None, "it has one already");
        unowned.begin(at(20), Slot(3), UnownedCause::HandOff);
        assert_eq!((oldest(&unowned), unowned.since(Slot(3))), (vec![1, 2, 3], Some(at(20))));
    }

    #[test]
    fn what_came_and_went_leaves_nothing_behind() {
        let mut unowned = UnownedAppliances::default();
        unowned.begin(at(0), Slot(0), UnownedCause::Other);
        for n in 1..10_000 {
            unowned.begin(at(n), Slot(1), UnownedCause::Other);
            unowned.end(at(n), Slot(1));
        }
        assert!(unowned.order.len() < 128, "{}", unowned.order.len());
        assert_eq!(oldest(&unowned), [0]);
        unowned.end(at(10_000), Slot(0));
        assert!(unowned.order.is_empty() && unowned.is_empty());
    }
}
