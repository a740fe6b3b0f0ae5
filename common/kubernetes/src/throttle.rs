//! How many calls a second: the generic cell rate algorithm, which needs one instant and no task.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A call would not have had its turn in time. It was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many calls wait for their turn (qps)")]
pub(crate) struct NoTurn;

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

    /// Waits until a call may begin. One whose turn would come after its deadline fails at once, and takes no turn: otherwise those who
    /// wait in vain would take the turns of all that come later.
    pub(crate) async fn admit(&self, deadline: Instant) -> Result<(), NoTurn> {
        let begins = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let due = (*next).max(Instant::now());
            let begins = due.checked_sub(self.ahead);
            if begins.is_some_and(|begins| begins > deadline) {
                return Err(NoTurn);
            }
            *next = due + self.interval;
            begins
        };
        if let Some(begins) = begins {
            sleep_until(begins).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_what_follows_keeps_the_rate() {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        let (throttle, began) = (Throttle::new(number(10), number(5)), Instant::now());
        let admit = async || throttle.admit(Instant::now() + Duration::from_secs(60)).await.expect("a turn");
        for _ in 0..5 {
            admit().await;
        }
        assert!(began.elapsed() < Duration::from_millis(10));
        for _ in 0..10 {
            admit().await;
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(990)..Duration::from_millis(1_100)).contains(&took), "{took:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let again = Instant::now();
        for _ in 0..5 {
            admit().await;
        }
        assert!(again.elapsed() < Duration::from_millis(10), "a quiet time is worth one burst, not more");
        admit().await;
        assert!(again.elapsed() >= Duration::from_millis(90));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_turn_is_too_late_fails_at_once_and_takes_none() {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        let throttle = Throttle::new(number(10), number(1));
        let began = Instant::now();
        let deadline = began + Duration::from_secs(1);
        let asked = futures::future::join_all((0..1_000).map(|_| throttle.admit(deadline))).await;
        assert_eq!(asked.iter().filter(|turn| turn.is_ok()).count(), 11, "those that begin within the second");
        assert!(began.elapsed() <= Duration::from_secs(1));
        throttle.admit(deadline + Duration::from_secs(1)).await.expect("it follows them");
        assert!(began.elapsed() <= Duration::from_millis(1_200), "{:?}", began.elapsed());
    }
}
