//! How many hand-offs one worker is part of at once: as many as leave each appliance unattended for no longer than asked for.
//!
//! Hand-offs that begin together share commits and the time of two workers, so that more of them at once are faster in all and slower
//! each. Where that bends depends on the database, the machines and the load, so that it is measured: as in congestion control
//! (RFC 5681), the window grows while what comes back is well in time, and shrinks by a part when something is late. How long a
//! hand-off takes with hardly any other beside it is measured first, whenever some begin: where that alone is longer than asked for,
//! fewer at once would help nobody.

use std::time::Duration;

/// Hand-offs of a worker at once that a leader begins with, and goes back to at most.
const FIRST: usize = 2;
/// Hand-offs that are measured before the window grows, at least.
const ROUND: usize = 16;
/// Hand-offs over which those that are late are counted: what the target is about is the 99th percentile, which fewer say nothing about.
const LATE_ROUND: usize = 128;
/// As many of those may be late. With a smaller window, one that is late by chance alone would count for all.
const MAY_BE_LATE: usize = 1;
/// What is left of a window after more.
const SHRINK: f64 = 0.5;
/// How much longer than the mean of hand-offs that are alone one may take without being late, whatever the target: as much as the 99th
/// percentile of those themselves on a machine that does other work (decision 80).
const SPREAD: u32 = 3;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveWindow {
    /// How long an appliance may be unattended; 0 is no limit.
    target: Duration,
    most: usize,
    size: usize,
    /// Hand-offs of this round, the longest, and all together.
    measured: usize,
    /// Those that were late, of so many.
    late: usize,
    late_of: usize,
    longest: Duration,
    sum: Duration,
    /// It is measured how long hand-offs take alone.
    probes: bool,
    /// Mean of those, of the newest ones.
    alone: Duration,
    /// Hand-offs that had begun when the window shrank and say nothing about the new one.
    begun_before: usize,
    /// It has stopped to grow: it is known where that bends.
    settled: bool,
}

impl MoveWindow {
    /// A window of at most `most` hand-offs; that many from the begin where there is no target.
    #[must_use]
    pub fn new(target: Duration, most: usize) -> Self {
        Self {
            target,
            most,
            size: if target.is_zero() { most } else { FIRST.min(most) },
            measured: 0,
            late: 0,
            late_of: 0,
            longest: Duration::ZERO,
            sum: Duration::ZERO,
            probes: false,
            alone: Duration::ZERO,
            begun_before: 0,
            settled: false,
        }
    }

    /// Hand-offs that may have begun and not ended.
    #[must_use]
    pub fn size(&self) -> usize {
        if self.probes { self.size.min(FIRST) } else { self.size }
    }

    /// The first hand-off begins while there is no other.
    pub(super) fn begin(&mut self) {
        self.probes = !self.target.is_zero();
        self.begun_before = 0;
        self.next_round();
    }

    /// An appliance was unattended for so long on its way from one owner to another.
    pub(super) fn note(&mut self, gap: Duration) {
        if self.target.is_zero() {
            return;
        }
        if self.begun_before > 0 {
            self.begun_before -= 1;
            return;
        }
        let limit = self.target.max(self.alone * SPREAD);
        self.measured += 1;
        self.longest = self.longest.max(gap);
        self.sum = self.sum.saturating_add(gap);
        if self.probes {
            if self.measured >= ROUND {
                self.probes = false;
                self.alone = self.sum / u32::try_from(self.measured).unwrap_or(u32::MAX);
                self.next_round();
            }
            return;
        }
        self.late += usize::from(gap > limit);
        self.late_of += 1;
        if self.late > MAY_BE_LATE {
            self.begun_before = self.size;
            self.size = ((self.size as f64 * SHRINK) as usize).max(FIRST.min(self.most));
            self.settled = true;
            self.next_round();
            return;
        }
        if self.late_of >= LATE_ROUND.max(self.size) {
            (self.late, self.late_of) = (0, 0);
        }
        if self.measured < ROUND.max(self.size) {
            return;
        }
        if self.longest * 5 <= limit * 3 {
            let step = if self.settled { self.size / 16 } else { self.size / 4 };
            self.size = (self.size + 1.max(step)).min(self.most);
        } else {
            self.settled = true;
        }
        (self.measured, self.longest, self.sum) = (0, Duration::ZERO, Duration::ZERO);
    }

    fn next_round(&mut self) {
        (self.measured, self.longest, self.sum) = (0, Duration::ZERO, Duration::ZERO);
        (self.late, self.late_of) = (0, 0);
    }

    /// How often as long as one hand-off so many of one worker take, one window after the other: of this size where it is known
    /// how many are well in time, otherwise growing as if all were.
    #[must_use]
    pub fn rounds(&self, hand_offs: u64) -> u64 {
        let mut ahead = Self { probes: false, ..self.clone() };
        let (mut left, mut rounds) = (hand_offs, 0);
        while left > 0 {
            if ahead.settled || ahead.size == ahead.most {
                return rounds + left.div_ceil(ahead.size as u64);
            }
            let now = left.min(ahead.size as u64);
            (0..now).for_each(|_| ahead.note(Duration::ZERO));
            (left, rounds) = (left - now, rounds + 1);
        }
        rounds
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGET: Duration = Duration::from_millis(10);

    /// Hand-offs through a system in which each takes 1 ms for every one under way; the gaps of the last half.
    fn run(window: &mut MoveWindow, hand_offs: usize, each: Duration) -> Vec<Duration> {
        let mut gaps = Vec::new();
        for n in 0..hand_offs {
            let gap = each * u32::try_from(window.size()).expect("small");
            window.note(gap);
            if n >= hand_offs / 2 {
                gaps.push(gap);
            }
        }
        gaps
    }

    #[test]
    fn it_grows_while_hand_offs_are_well_in_time_and_finds_where_they_are_not() {
        let mut window = MoveWindow::new(TARGET, 128);
        assert_eq!(window.size(), 2);
        let gaps = run(&mut window, 2_000, Duration::from_millis(1));
        assert!(gaps.iter().all(|gap| *gap <= TARGET), "{gaps:?}");
        assert!((5..=10).contains(&window.size()), "{window:?}");
        // Something else takes the machine: each hand-off takes four times as long.
        run(&mut window, 2_000, Duration::from_millis(4));
        assert!((2..=3).contains(&window.size()), "{window:?}");
        run(&mut window, 4_000, Duration::from_micros(10));
        assert_eq!(window.size(), 128, "it grows again, up to the most");
    }

    #[test]
    fn one_that_is_late_by_chance_costs_nothing_and_more_cost_a_half() {
        let mut window = MoveWindow::new(TARGET, 128);
        run(&mut window, 10_000, Duration::from_micros(1));
        assert_eq!(window.size(), 128);
        window.note(TARGET * 3);
        (0..200).for_each(|_| window.note(Duration::ZERO));
        assert_eq!(window.size(), 128, "one of a hundred may be late");
        (0..3).for_each(|_| window.note(TARGET * 3));
        assert_eq!(window.size(), 64);
        run(&mut window, 10_000, Duration::from_micros(1));
        assert_eq!(window.size(), 128);
    }

    #[test]
    fn what_is_slow_alone_is_not_made_slower_by_being_made_alone() {
        let mut window = MoveWindow::new(TARGET, 128);
        window.begin();
        // 14 ms with hardly another beside it, as on a disk that others use, and 1 ms more for each.
        for _ in 0..4_000 {
            window.note(
                Duration::from_millis(12) + Duration::from_millis(1) * u32::try_from(window.size()).expect("small"),
            );
        }
        assert!((10..=44).contains(&window.size()), "{window:?}");
        // The next ones are measured alone again.
        window.begin();
        assert_eq!(window.size(), 2);
        (0..16).for_each(|_| window.note(Duration::from_millis(2)));
        assert!(window.size() > 2, "what is known is not forgotten: {window:?}");
        run(&mut window, 4_000, Duration::from_millis(1));
        assert!((2..=10).contains(&window.size()), "{window:?}");
    }

    #[test]
    fn without_a_target_it_is_as_large_as_it_may_be() {
        let mut window = MoveWindow::new(Duration::ZERO, 64);
        window.begin();
        window.note(Duration::from_secs(9));
        assert_eq!((window.size(), window.rounds(640)), (64, 10));
    }

    #[test]
    fn it_tells_how_many_windows_hand_offs_take() {
        let mut window = MoveWindow::new(TARGET, 128);
        let growing = window.rounds(12_000);
        assert!((100..400).contains(&growing), "{growing}");
        run(&mut window, 2_000, Duration::from_millis(1));
        assert_eq!(window.rounds(1_000), 1_000_u64.div_ceil(window.size() as u64));
        assert_eq!(window.rounds(0), 0);
    }

    proptest! {
        #[test]
        fn its_size_is_never_0_and_never_more_than_allowed(
            most in 1usize..200,
            gaps in proptest::collection::vec((0u64..30_000, 0u32..50), 0..2_000),
        ) {
            let mut window = MoveWindow::new(TARGET, most);
            for (gap, begin) in gaps {
                if begin == 0 {
                    window.begin();
                }
                window.note(Duration::from_micros(gap));
                prop_assert!((1..=most).contains(&window.size()));
            }
        }
    }
}
