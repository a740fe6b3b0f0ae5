//! Log lines that a peer, an appliance or a broken dependency can cause at will are folded and counted.
//!
//! Each place in the code has a limit of its own, which [`log_limited!`](crate::log_limited) keeps beside it: [`BURST`]
//! lines at once, then one per [`REFILL`]. A line that is written says as field `skipped` how many of its kind were left
//! out since the last one, and [`skipped`] is the number of all that were left out, for a metric: nothing is lost
//! unseen, also where no further line of that place follows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines of one place that are written at once: enough to see that several peers have the same problem.
pub const BURST: u32 = 10;
/// Time after which one more line may be written. A loop leaves some 30,000 lines a day, not millions.
pub const REFILL: Duration = Duration::from_secs(3);

static SKIPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that were left out since the process started, all places together.
#[must_use]
pub fn skipped() -> u64 {
    SKIPPED.load(Ordering::Relaxed)
}

/// The limit of one kind of line. Used through [`log_limited!`](crate::log_limited).
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<LimitState>);

#[derive(Debug, Default)]
struct LimitState {
    /// Lines written of the burst.
    used: u32,
    /// Since when `used` counts; `None` before the first line.
    refilled: Option<Instant>,
    skipped: u64,
}

impl LogLimit {
    /// A limit that nothing has used yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(LimitState { used: 0, refilled: None, skipped: 0 }))
    }

    /// Whether a line may be written now, and if so, how many were left out since the last one.
    pub fn take(&self) -> Option<u64> {
        let allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now());
        if allowed.is_none() {
            SKIPPED.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    /// Whether it has a whole burst again, so that a new one would allow no more.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_idle(Instant::now())
    }
}

impl LimitState {
    fn is_idle(&self, now: Instant) -> bool {
        let refill = REFILL * self.used;
        self.refilled.is_none_or(|refilled| now.saturating_duration_since(refilled) >= refill)
    }

    fn at(&mut self, now: Instant) -> Option<u64> {
        let refilled = self.refilled.get_or_insert(now);
        let refills = now.saturating_duration_since(*refilled).as_secs() / REFILL.as_secs();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        if refills >= self.used {
            (self.used, *refilled) = (0, now);
        } else {
            self.used -= refills;
            *refilled += REFILL * refills;
        }
        if self.used == BURST {
            self.skipped += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.skipped))
    }
}

/// Writes a log line, as `tracing::warn!(...)` and its like would, unless its place has written too many lately:
///
/// ```
/// # let (peer, error) = ("127.0.0.1:4711", "no certificate");
/// runtime::log_limited!(info, %peer, "refused: {error}");
/// ```
///
/// The field `skipped` says how many lines of this place were left out before it; it is absent when there were none.
#[macro_export]
macro_rules! log_limited {
    ($level:ident, $($line:tt)+) => {{
        static LIMIT: $crate::log_limit::LogLimit = $crate::log_limit::LogLimit::new();
        if let Some(skipped) = LIMIT.take() {
            $crate::log_limit::tracing::$level!(skipped = (skipped > 0).then_some(skipped), $($line)+);
        }
    }};
}

#[doc(hidden)]
pub use tracing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_of_lines_becomes_one_line_every_few_seconds_with_their_count() {
        let mut limit = LimitState::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(limit.at(start), Some(0));
        }
        for _ in 0..600 {
            assert_eq!(limit.at(start + Duration::from_secs(1)), None);
        }
        assert_eq!(limit.at(start + REFILL), Some(600), "the next line tells of those left out");
        assert_eq!(limit.at(start + REFILL), None);
        assert_eq!(limit.at(start + REFILL * 2), Some(1));
        let later = start + REFILL * 1000;
        for _ in 0..BURST {
            assert_eq!(limit.at(later), Some(0), "after a quiet time a burst is written again");
        }
        assert_eq!(limit.at(later), None);
        let whole = later + REFILL * BURST;
        assert!(limit.is_idle(whole) && !limit.is_idle(whole - REFILL));
    }

    #[test]
    fn lines_that_are_left_out_are_counted_for_the_process() {
        let before = skipped();
        for n in 0..100 {
            crate::log_limited!(debug, n, "the same again");
        }
        assert!(skipped() - before >= 100 - u64::from(BURST));
    }
}
