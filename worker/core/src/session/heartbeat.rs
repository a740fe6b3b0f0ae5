//! The heartbeat of an embedded lease, which is sent on the stream: when one is due, and what an answer proves.
//!
//! One at a time, four in a lease. What an answer proves counts from the moment before the heartbeat was handed to the
//! stream; a heartbeat without an answer for as long as the lease means that the stream is dead.

use std::time::Duration;

use common::Timestamp;

/// Heartbeats in the time of one lease.
const BEATS_PER_LEASE: u32 = 4;

/// What to do about the heartbeat now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeatDue {
    /// Send the one with this number.
    Send(u64),
    /// The last one had no answer for as long as the lease.
    Unanswered,
}

/// The heartbeats of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BeatSchedule {
    lease: Duration,
    number: u64,
    /// When the one without an answer was handed to the stream.
    sent: Option<Timestamp>,
    next_at: Timestamp,
}

impl BeatSchedule {
    /// The first one is due at `now`.
    pub(super) const fn new(now: Timestamp, lease: Duration) -> Self {
        Self { lease, number: 0, sent: None, next_at: now }
    }

    /// What is due at `now`.
    pub(super) fn due(&mut self, now: Timestamp) -> Option<BeatDue> {
        if now < self.next_at {
            return None;
        }
        self.next_at = now + self.lease / BEATS_PER_LEASE;
        match self.sent {
            Some(sent) => (now.since(sent) >= self.lease).then_some(BeatDue::Unanswered),
            None => {
                self.number += 1;
                self.sent = Some(now);
                Some(BeatDue::Send(self.number))
            }
        }
    }

    /// Until when the lease stands by an answer; `None` when it answers another heartbeat than the last one.
    pub(super) fn answered(&mut self, number: u64) -> Option<Timestamp> {
        if number != self.number {
            return None;
        }
        self.sent.take().map(|sent| sent + self.lease)
    }

    /// When to ask [`BeatSchedule::due`] next.
    pub(super) const fn wake_at(&self) -> Timestamp {
        self.next_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn one_heartbeat_at_a_time_and_each_answer_counts_from_its_sending() {
        let mut beats = BeatSchedule::new(at(0), Duration::from_millis(400));
        assert_eq!((beats.due(at(0)), beats.wake_at()), (Some(BeatDue::Send(1)), at(100)));
        assert_eq!((beats.due(at(50)), beats.due(at(100))), (None, None), "one is under way");
        assert_eq!(beats.answered(2), None, "never sent");
        assert_eq!(beats.answered(1), Some(at(400)));
        assert_eq!(beats.answered(1), None, "it was answered already");
        assert_eq!(beats.due(at(210)), Some(BeatDue::Send(2)));
        assert_eq!((beats.answered(1), beats.answered(2)), (None, Some(at(610))));
    }

    #[test]
    fn a_heartbeat_without_an_answer_for_a_lease_is_noticed() {
        let mut beats = BeatSchedule::new(at(0), Duration::from_millis(400));
        assert_eq!(beats.due(at(0)), Some(BeatDue::Send(1)));
        assert_eq!([100, 200, 300].map(|millis| beats.due(at(millis))), [None; 3]);
        assert_eq!(beats.due(at(400)), Some(BeatDue::Unanswered));
    }
}
