//! Loss-of-sight brake and departure grace: when not to give away what the missing held.
//!
//! When more than a fraction of the live members vanish within a window, it is more likely that the leader lost sight of
//! them than that they all died, and moving their share to the few that are left helps in neither case: the brake
//! *freezes*. It ends when enough of them are back and no worker has joined for a while, or when an operator says so. The
//! departure grace waits for each vanished name on its own. Both count *names*: a worker that comes back in a new life is
//! back. The names that are remembered are stored with the members, so that a new leader can start frozen.
//!
//! Members whose heartbeats are overdue by a whole lease (they are fenced, though not gone yet) count as
//! vanished while one is decided on: sessions that were lost together end one after the other, and the first ones must
//! not be given away before the others are noticed. Workers that send `Leave` are not missed.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Timestamp, WorkerId};

/// Settings of the brake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Part of the live members that may vanish within `window` before nothing moves any more.
    pub fraction: f64,
    /// Losses further apart than this are not one event.
    pub window: Duration,
    /// How long everything waits for one vanished name.
    pub grace: Duration,
    /// How long no worker may have joined for the brake to let go.
    pub settle: Duration,
}

/// How a name left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Its lease ended without `Leave`, or it was evicted.
    Lost,
    /// Its lease ended without `Leave` in the midst of something that is known to end workers: the grace applies, but
    /// that says nothing about what the leader sees.
    Explained,
    /// It sent `Leave`.
    Left,
    /// It released everything and will be back: only the grace applies.
    HandedBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missing {
    since: Timestamp,
    /// Counts for the brake.
    lost: bool,
    grace_ends: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Freeze {
    since: Timestamp,
    last_join: Timestamp,
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Brake {
    config: Config,
    live: BTreeSet<WorkerId>,
    missing: BTreeMap<WorkerId, Missing>,
    frozen: Option<Freeze>,
    /// How many were in their grace when time was last looked at.
    in_grace: usize,
}

impl Brake {
    /// The brake of a new leader: `live` were members when the store was last written, `missing` were missed already.
    #[must_use]
    pub fn restore(
        config: Config,
        now: Timestamp,
        live: impl IntoIterator<Item = WorkerId>,
        missing: impl IntoIterator<Item = WorkerId>,
    ) -> Self {
        let live: BTreeSet<_> = live.into_iter().collect();
        let mut this = Self { config, live, missing: BTreeMap::new(), frozen: None, in_grace: 0 };
        for name in missing {
            if !this.live.contains(&name) {
                this.missing.insert(name, Missing { since: now, lost: true, grace_ends: now + config.grace });
            }
        }
        this.judge(now, 0);
        this
    }

    /// A member may be given appliances. Returns whether its name had been waited for.
    pub fn joined(&mut self, now: Timestamp, name: &WorkerId) -> bool {
        let missed = self.waits_for(now, name);
        self.missing.remove(name);
        if self.live.insert(name.clone())
            && let Some(frozen) = &mut self.frozen
        {
            frozen.last_join = now;
        }
        missed
    }

    /// A member left, while `silent` others are overdue.
    pub fn left(&mut self, now: Timestamp, name: &WorkerId, how: Departure, silent: usize) {
        let was_live = self.live.remove(name);
        let lost = how == Departure::Lost;
        let waits = match how {
            Departure::Left => false,
            // What handed back before it left is waited for from the moment it is gone.
            Departure::Lost | Departure::Explained => was_live,
            Departure::HandedBack => true,
        };
        if waits {
            let missing = Missing { since: now, lost, grace_ends: now + self.config.grace };
            self.missing.insert(name.clone(), missing);
        } else if how == Departure::Left {
            self.missing.remove(name);
        }
        self.judge(now, silent);
        self.forget(now);
    }

    fn judge(&mut self, now: Timestamp, silent: usize) {
        let lost = self.lost(now);
        if self.frozen.is_none() && lost > 0 && self.exceeds(lost, silent) {
            self.frozen = Some(Freeze { since: now, last_join: now });
        }
    }

    /// Missing names that count for the brake.
    fn lost(&self, now: Timestamp) -> usize {
        let recent = |m: &&Missing| m.lost && (self.frozen.is_some() || now.since(m.since) <= self.config.window);
        self.missing.values().filter(recent).count()
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 members")]
    fn exceeds(&self, lost: usize, silent: usize) -> bool {
        let vanished = lost + silent.min(self.live.len());
        vanished as f64 > self.config.fraction * (self.live.len() + lost) as f64
    }

    /// Forgets names that are not waited for any more.
    fn forget(&mut self, now: Timestamp) {
        let (frozen, window) = (self.frozen.is_some(), self.config.window);
        self.missing.retain(|_, m| {
            let counts = m.lost && (frozen || now.since(m.since) <= window);
            counts || now < m.grace_ends
        });
    }

    /// Lets time pass, while `silent` members are overdue. Returns whether the brake let go, or a grace ended.
    pub fn tick(&mut self, now: Timestamp, silent: usize) -> bool {
        let before = self.missing.len();
        let in_grace =
            std::mem::replace(&mut self.in_grace, self.missing.values().filter(|m| now < m.grace_ends).count());
        let mut let_go = false;
        if let Some(frozen) = self.frozen
            && now.since(frozen.last_join) >= self.config.settle
            && !self.exceeds(self.lost(now), silent)
        {
            self.frozen = None;
            let_go = true;
            // Whoever is still away has been waited for.
            self.missing.retain(|_, m| now < m.grace_ends);
        }
        self.forget(now);
        let_go || self.missing.len() != before || self.in_grace != in_grace
    }

    /// An operator lets the brake go: missing names are not waited for any more. Returns whether that changed anything.
    pub fn resume(&mut self) -> bool {
        let waited = self.frozen.is_some() || !self.missing.is_empty();
        self.frozen = None;
        self.missing.clear();
        waited
    }

    /// An operator says that a name does not come back: it is not waited for any more, and the brake holds for the others
    /// only. Returns whether that changed anything.
    pub fn give_up(&mut self, name: &WorkerId) -> bool {
        self.missing.remove(name).is_some()
    }

    /// Since when nothing moves, if the brake holds.
    #[must_use]
    pub fn frozen_since(&self) -> Option<Timestamp> {
        self.frozen.map(|f| f.since)
    }

    /// Whether what this name held waits for it.
    #[must_use]
    pub fn waits_for(&self, now: Timestamp, name: &WorkerId) -> bool {
        self.missing.get(name).is_some_and(|m| self.frozen.is_some() || now < m.grace_ends)
    }

    /// Whether any name is waited for in its own grace.
    #[must_use]
    pub fn in_grace(&self, now: Timestamp) -> bool {
        self.missing.values().any(|m| now < m.grace_ends)
    }

    /// Names that are missed, in order.
    pub fn missing(&self) -> impl Iterator<Item = &WorkerId> {
        self.missing.keys()
    }

    /// Members that count as live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Whether this name is missed, so that the store has to remember it.
    #[must_use]
    pub fn remembers(&self, name: &WorkerId) -> bool {
        self.missing.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u32) -> WorkerId {
        WorkerId::new(&format!("w{n}")).expect("valid")
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(100_000 + ms)
    }

    fn config(grace_ms: u64) -> Config {
        Config {
            fraction: 0.5,
            window: Duration::from_secs(10),
            grace: Duration::from_millis(grace_ms),
            settle: Duration::from_secs(2),
        }
    }

    fn brake(live: u32, grace_ms: u64) -> Brake {
        Brake::restore(config(grace_ms), at(0), (1..=live).map(name), [])
    }

    #[test]
    fn a_majority_that_vanishes_at_once_freezes_and_its_return_thaws() {
        let mut b = brake(10, 0);
        for n in 1..=5 {
            b.left(at(u64::from(n)), &name(n), Departure::Lost, 0);
        }
        assert_eq!(b.frozen_since(), None, "half is not more than half");
        b.left(at(6), &name(6), Departure::Lost, 0);
        assert_eq!(b.frozen_since(), Some(at(6)));
        assert!(b.waits_for(at(6), &name(1)));
        assert!(!b.tick(at(60_000), 0), "time alone never thaws");
        assert!(b.joined(at(60_000), &name(6)));
        assert!(!b.tick(at(61_000), 0), "others may follow");
        assert!(b.tick(at(62_000), 0));
        assert_eq!(b.frozen_since(), None);
        assert!(!b.waits_for(at(62_000), &name(1)), "the others were waited for");
        assert_eq!(b.missing().count(), 0);
    }

    #[test]
    fn the_first_of_many_losses_freezes_when_the_others_are_overdue() {
        let mut b = brake(10, 0);
        b.left(at(0), &name(1), Departure::Lost, 4);
        assert_eq!(b.frozen_since(), None);
        b.left(at(0), &name(2), Departure::Lost, 4);
        assert_eq!(b.frozen_since(), Some(at(0)));
        assert!(!b.tick(at(2_000), 4));
        assert!(b.tick(at(2_100), 0), "they were late, not lost");
    }

    #[test]
    fn losses_that_are_far_apart_do_not_freeze() {
        let mut b = brake(10, 0);
        for n in 1..=9 {
            b.left(at(u64::from(n) * 11_000), &name(n), Departure::Lost, 0);
            assert_eq!(b.frozen_since(), None, "{n}");
        }
    }

    #[test]
    fn goodbyes_are_not_missed() {
        let mut b = brake(10, 60_000);
        for n in 1..=10 {
            b.left(at(1), &name(n), Departure::Left, 0);
        }
        assert_eq!(b.frozen_since(), None);
        assert_eq!(b.missing().count(), 0);
    }

    #[test]
    fn grace_waits_for_one_name_and_ends() {
        let mut b = brake(10, 5_000);
        b.left(at(0), &name(1), Departure::Lost, 0);
        assert!(b.waits_for(at(4_999), &name(1)));
        assert!(b.in_grace(at(4_999)));
        b.tick(at(4_998), 0);
        assert!(!b.tick(at(4_999), 0));
        assert!(b.tick(at(5_000), 0));
        assert!(!b.waits_for(at(5_000), &name(1)));
        assert!(b.remembers(&name(1)), "it still counts within the window");
        assert!(b.tick(at(10_001), 0));
        assert!(!b.remembers(&name(1)));
    }

    #[test]
    fn a_name_that_handed_back_is_waited_for_from_the_moment_it_is_gone() {
        let mut b = brake(3, 5_000);
        b.left(at(0), &name(1), Departure::HandedBack, 0);
        b.left(at(4_000), &name(1), Departure::HandedBack, 0);
        assert!(b.waits_for(at(8_999), &name(1)));
        assert_eq!(b.frozen_since(), None);
        assert!(b.joined(at(8_999), &name(1)));
        assert!(!b.waits_for(at(8_999), &name(1)));
    }

    #[test]
    fn a_new_leader_starts_frozen_when_most_names_are_missed() {
        let b = Brake::restore(config(0), at(0), (1..=2).map(name), (3..=5).map(name));
        assert_eq!(b.frozen_since(), Some(at(0)));
        let b = Brake::restore(config(0), at(0), (1..=3).map(name), (4..=5).map(name));
        assert_eq!(b.frozen_since(), None);
    }

    #[test]
    fn an_operator_ends_it_for_good() {
        let mut b = brake(3, 60_000);
        b.left(at(0), &name(1), Departure::Lost, 0);
        b.left(at(0), &name(2), Departure::Lost, 0);
        assert!(b.frozen_since().is_some());
        assert!(b.resume());
        assert!(!b.waits_for(at(1), &name(1)));
        assert!(!b.resume());
        b.left(at(2), &name(3), Departure::Lost, 0);
        assert_eq!(b.frozen_since(), Some(at(2)), "the last one is a majority of one");
    }

    #[test]
    fn others_that_take_their_place_thaw_as_well() {
        let mut b = brake(2, 0);
        b.left(at(0), &name(1), Departure::Lost, 0);
        b.left(at(0), &name(2), Departure::Lost, 0);
        for n in 11..=13 {
            b.joined(at(100), &name(n));
        }
        assert!(!b.tick(at(2_099), 0));
        assert!(b.tick(at(2_100), 0));
        assert_eq!(b.frozen_since(), None);
    }
}
