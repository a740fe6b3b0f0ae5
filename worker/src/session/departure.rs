//! When a worker that was asked to stop is to leave.
//!
//! Draining, it stays until everything was given back, which the session sees; this tells what ends its patience: a
//! second request, `drain_timeout`, or having no stream on which anybody could take something over.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How a session is asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    drain: CancellationToken,
    leave: CancellationToken,
}

impl Stop {
    /// Nobody asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives everything back first, in the way that is configured, and then leaves.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Leaves at once, in good order; also in the midst of draining.
    pub fn leave(&self) {
        self.leave.cancel();
    }
}

/// What a departure is due to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Draining begins, and there is a stream to do it on. Said once.
    Drain,
    /// It is time to leave.
    Leave(Why),
}

/// Why it is time to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Asked,
    /// Draining has taken as long as it may.
    TimedOut,
    /// It wants to drain, and no leader is there who could organise it.
    Alone,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked to",
            Self::TimedOut => "drain_timeout is over",
            Self::Alone => "no coordinator is there that could give what is held to others in good order",
        })
    }
}

/// Watches a [`Stop`].
#[derive(Debug)]
pub(super) struct Departure {
    stop: Stop,
    patience: Duration,
    /// Until when draining may take, once it has begun.
    deadline: Option<Instant>,
    /// Since when there is no stream, and how long that may last while draining; `None` while there is one.
    alone: Option<(Instant, Duration)>,
}

impl Departure {
    /// Draining may take `patience`.
    pub(super) fn new(stop: Stop, patience: Duration) -> Self {
        Self { stop, patience, deadline: None, alone: Some((Instant::now(), Duration::ZERO)) }
    }

    /// There is no stream from now on, or still not. While draining, that may last for `limit` in all.
    pub(super) fn alone(&mut self, limit: Duration) {
        let since = self.alone.map_or_else(Instant::now, |(since, _)| since);
        self.alone = Some((since, limit));
    }

    /// There is a stream.
    pub(super) const fn accompanied(&mut self) {
        self.alone = None;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.deadline.is_some()
    }

    /// Whether this worker was asked to stop in any way.
    pub(super) fn is_asked(&self) -> bool {
        self.stop.drain.is_cancelled() || self.stop.leave.is_cancelled()
    }

    /// Waits for what is due. Cancel-safe.
    pub(super) async fn due(&mut self) -> Due {
        let deadline = match self.deadline {
            Some(deadline) => deadline,
            None => {
                tokio::select! {
                    biased;
                    () = self.stop.leave.cancelled() => return Due::Leave(Why::Asked),
                    () = self.stop.drain.cancelled() => {}
                }
                let now = Instant::now();
                self.deadline = Some(now + self.patience);
                match &mut self.alone {
                    Some((since, _)) => *since = now,
                    None => return Due::Drain,
                }
                now + self.patience
            }
        };
        let lonely = self.alone.map(|(since, limit)| since + limit).filter(|until| *until < deadline);
        tokio::select! {
            biased;
            () = self.stop.leave.cancelled() => Due::Leave(Why::Asked),
            () = tokio::time::sleep_until(lonely.unwrap_or(deadline)) => {
                match self.alone.filter(|_| lonely.is_some()) {
                    Some((_, limit)) if limit.is_zero() => Due::Leave(Why::Asked),
                    Some(_) => Due::Leave(Why::Alone),
                    None => Due::Leave(Why::TimedOut),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const LIMIT: Duration = Duration::from_secs(2);

    fn departure() -> (Stop, Departure) {
        let stop = Stop::new();
        (stop.clone(), Departure::new(stop, PATIENCE))
    }

    #[tokio::test(start_paused = true)]
    async fn draining_is_said_once_and_ends_with_its_timeout() {
        let (stop, mut departure) = departure();
        departure.accompanied();
        assert!(tokio::time::timeout(2 * PATIENCE, departure.due()).await.is_err(), "nobody asked");
        stop.drain();
        let begun = Instant::now();
        assert_eq!(departure.due().await, Due::Drain);
        assert_eq!(departure.due().await, Due::Leave(Why::TimedOut));
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_stream_patience_is_short_and_counts_from_when_it_is_needed() {
        let (stop, mut departure) = departure();
        departure.alone(LIMIT);
        tokio::time::advance(PATIENCE).await;
        stop.drain();
        let begun = Instant::now();
        assert_eq!(departure.due().await, Due::Leave(Why::Alone));
        assert_eq!(begun.elapsed(), LIMIT);

        // A stream comes and goes: counted anew.
        departure.accompanied();
        departure.alone(LIMIT);
        departure.alone(LIMIT);
        assert_eq!(departure.due().await, Due::Leave(Why::Alone));
        assert_eq!(begun.elapsed(), 2 * LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_ends_draining_at_once() {
        let (stop, mut departure) = departure();
        departure.accompanied();
        stop.drain();
        assert_eq!(departure.due().await, Due::Drain);
        let begun = Instant::now();
        stop.leave();
        assert_eq!(departure.due().await, Due::Leave(Why::Asked));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_nothing_needs_no_stream() {
        let (stop, mut departure) = departure();
        departure.alone(Duration::ZERO);
        stop.drain();
        let begun = Instant::now();
        assert_eq!(departure.due().await, Due::Leave(Why::Asked));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
