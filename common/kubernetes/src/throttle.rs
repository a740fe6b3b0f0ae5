//! How many calls a second: the generic cell rate algorithm, which needs one instant and no task.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets a number of calls a second begin, and some more after a quiet time.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Between two calls.
    interval: Duration,
    /// How far ahead of that they may be.
    ahead: Duration,
    /// When the call that follows is due, if all keep the interval.
    next: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(qps: NonZeroU32, burst: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / qps.get();
        Self { interval, ahead: interval * (burst.get() - 1), next: Mutex::new(Instant::now()) }
    }

    /// Waits until a call may begin. Who gives up waiting has used its turn.
    pub(crate) async fn admit(&self) {
        let begins = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let due = (*next).max(Instant::now());
            *next = due + self.interval;
            due.checked_sub(self.ahead)
        };
        if let Some(begins) = begins {
            sleep_until(begins).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_what_follows_keeps_the_rate() {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        let (throttle, began) = (Throttle::new(number(10), number(5)), Instant::now());
        for _ in 0..5 {
            throttle.admit().await;
        }
        assert!(began.elapsed() < Duration::from_millis(10));
        for _ in 0..10 {
            throttle.admit().await;
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(990)..Duration::from_millis(1_100)).contains(&took), "{took:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let again = Instant::now();
        for _ in 0..5 {
            throttle.admit().await;
        }
        assert!(again.elapsed() < Duration::from_millis(10), "a quiet time is worth one burst, not more");
        throttle.admit().await;
        assert!(again.elapsed() >= Duration::from_millis(90));
    }
}
