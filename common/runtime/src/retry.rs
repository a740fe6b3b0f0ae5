//! Delays between tries of one operation, with the chance that a [`Backoff`] takes as an argument.

use std::time::Duration;

use common::backoff::Backoff;
use rand::Rng;

/// Smallest part of a delay: a try that follows at once would meet what failed before.
const LEAST: f64 = 0.1;

/// Counts failures in a row, and says how long to wait after each.
#[derive(Clone, Debug)]
pub struct Retries {
    backoff: Backoff,
    failures: u32,
}

impl Retries {
    /// No failure yet.
    #[must_use]
    pub const fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0 }
    }

    /// The delay after one more failure: a random part, at least a tenth, of what the back-off allows.
    pub fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.backoff.delay(self.failures, rand::rng().random_range(LEAST..=1.0))
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_a_tenth_of_the_base_and_the_cap() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };
        let mut retries = Retries::new(backoff);
        for _ in 0..64 {
            let delay = retries.next_delay();
            assert!(delay >= Duration::from_millis(10) && delay <= backoff.cap, "{delay:?}");
        }
    }
}
