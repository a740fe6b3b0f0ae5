//! The queue of wake-ups: one heap for all appliances.
//!
//! A wake-up is never taken out when it is replaced; its owner recognises it by its moment when it comes up. Replaced
//! ones are swept once they outnumber the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use common::{ApplianceId, Timestamp};

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Timestamp, ApplianceId)>>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Timestamp, appliance: ApplianceId) {
        self.heap.push(Reverse((at, appliance)));
    }

    /// The earliest moment at which anything may be due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one wake-up that is due.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, ApplianceId)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| due)
    }

    /// Drops what is not wanted any more once there is too much of it for `owners` appliances.
    pub(super) fn sweep(&mut self, owners: usize, wanted: impl Fn(Timestamp, ApplianceId) -> bool) {
        if self.heap.len() > 2 * owners + 1_024 {
            self.heap.retain(|Reverse((at, appliance))| wanted(*at, *appliance));
        }
    }

    pub(super) fn clear(&mut self) {
        self.heap = BinaryHeap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_ups_come_in_order_and_only_when_they_are_due() {
        let mut timers = Timers::default();
        let id = ApplianceId::from_u128;
        timers.set(Timestamp::from_millis(30), id(3));
        timers.set(Timestamp::from_millis(10), id(1));
        timers.set(Timestamp::from_millis(20), id(2));
        assert_eq!(timers.next(), Some(Timestamp::from_millis(10)));
        let mut due = vec![];
        while let Some((_, appliance)) = timers.pop_due(Timestamp::from_millis(20)) {
            due.push(appliance);
        }
        assert_eq!(due, [id(1), id(2)]);
    }

    #[test]
    fn replaced_wake_ups_do_not_pile_up() {
        let mut timers = Timers::default();
        let id = ApplianceId::from_u128(1);
        for n in 0..100_000 {
            timers.set(Timestamp::from_millis(n), id);
            timers.sweep(1, |at, _| at == Timestamp::from_millis(n));
        }
        assert!(timers.heap.len() <= 1_026);
    }
}
