//! When a worker that was asked to stop leaves.
//!
//! While it drains it stays until the leader has taken over every grant. This decides what ends that wait: a second
//! request, the drain timeout, or having no stream, without which no grant can be handed over.

use std::fmt;
use std::time::Duration;

use common::Timestamp;

/// How a worker is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// Its grants are handed over first, in the configured way.
    Drain,
    /// At once, in good order. Also ends a drain.
    Leave,
}

/// Why a worker leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// It was asked to, and nothing keeps it.
    Asked,
    /// Every grant that other workers take has been handed over.
    Drained,
    /// Draining took as long as it may.
    TimedOut,
    /// It drains, and has had no stream on which to hand over its grants for too long.
    NoCoordinator,
    /// It drains, and the only coordinator stops as well.
    CoordinatorStops,
    /// The runner has ended.
    RunnerEnded,
}

impl fmt::Display for LeaveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked to",
            Self::Drained => "the drain is complete",
            Self::TimedOut => "drain_timeout is over",
            Self::NoCoordinator => "no coordinator is reachable that could hand the remaining grants over",
            Self::CoordinatorStops => "the coordinator stops as well",
            Self::RunnerEnded => "the runner has ended",
        })
    }
}

/// Follows a stop request until it is time to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DrainDeadline {
    drain_timeout: Duration,
    /// Until when draining may take, once it has begun.
    deadline: Option<Timestamp>,
    /// Since when there is no stream, and how long a drain bears that; `None` while there is one.
    alone: Option<(Timestamp, Duration)>,
}

impl DrainDeadline {
    pub(super) const fn new(now: Timestamp, drain_timeout: Duration) -> Self {
        Self { drain_timeout, deadline: None, alone: Some((now, Duration::ZERO)) }
    }

    /// There is no stream from `now` on, or still not. A drain bears that for `limit` in all.
    pub(super) fn alone(&mut self, now: Timestamp, limit: Duration) {
        let since = self.alone.map_or(now, |(since, _)| since);
        self.alone = Some((since, limit));
    }

    /// There is a stream.
    pub(super) const fn accompanied(&mut self) {
        self.alone = None;
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.deadline.is_some()
    }

    /// Begins a drain. `true` when there is a stream to do it on; `false` also when it has begun already.
    pub(super) fn drain(&mut self, now: Timestamp) -> bool {
        if self.is_draining() {
            return false;
        }
        self.deadline = Some(now + self.drain_timeout);
        match &mut self.alone {
            // The time without a stream counts from when a stream is needed.
            Some((since, _)) => {
                *since = now;
                false
            }
            None => true,
        }
    }

    /// Whether, and why, a drain ends at `now`.
    pub(super) fn due(&self, now: Timestamp) -> Option<LeaveReason> {
        let deadline = self.deadline?;
        match self.alone {
            Some((since, limit)) if since + limit < deadline => (since + limit <= now).then_some(if limit.is_zero() {
                LeaveReason::Asked
            } else {
                LeaveReason::NoCoordinator
            }),
            _ => (deadline <= now).then_some(LeaveReason::TimedOut),
        }
    }

    /// When [`DrainDeadline::due`] may next have another answer.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        let deadline = self.deadline?;
        Some(self.alone.map_or(deadline, |(since, limit)| deadline.min(since + limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const LIMIT: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn departure() -> DrainDeadline {
        DrainDeadline::new(at(0), TIMEOUT)
    }

    #[test]
    fn draining_begins_once_and_ends_with_its_timeout() {
        let mut departure = departure();
        departure.accompanied();
        assert_eq!((departure.due(at(60)), departure.wake_at()), (None, None), "no stop was requested");
        assert!(departure.drain(at(100)));
        assert!(!departure.drain(at(110)), "it has begun");
        assert_eq!((departure.due(at(129)), departure.wake_at()), (None, Some(at(130))));
        assert_eq!(departure.due(at(130)), Some(LeaveReason::TimedOut));
    }

    #[test]
    fn without_a_stream_patience_is_short_and_counts_from_when_it_is_needed() {
        let mut departure = departure();
        departure.alone(at(0), LIMIT);
        assert!(!departure.drain(at(30)));
        assert_eq!((departure.due(at(31)), departure.wake_at()), (None, Some(at(32))));
        assert_eq!(departure.due(at(32)), Some(LeaveReason::NoCoordinator));

        // A stream comes and goes: counted anew.
        departure.accompanied();
        departure.alone(at(40), LIMIT);
        departure.alone(at(41), LIMIT);
        assert_eq!(departure.due(at(41)), None);
        assert_eq!(departure.due(at(42)), Some(LeaveReason::NoCoordinator));
    }

    #[test]
    fn a_worker_without_grants_needs_no_stream() {
        let mut departure = departure();
        departure.alone(at(0), Duration::ZERO);
        assert!(!departure.drain(at(5)));
        assert_eq!(departure.due(at(5)), Some(LeaveReason::Asked));
    }

    #[test]
    fn the_drain_timeout_also_bounds_the_wait_for_a_stream() {
        let mut departure = departure();
        departure.alone(at(0), 2 * TIMEOUT);
        departure.drain(at(0));
        assert_eq!((departure.due(at(29)), departure.due(at(30))), (None, Some(LeaveReason::TimedOut)));
    }
}
