//! Delays between tries: exponential with full jitter, so that many clients that failed together do not return together.

use std::time::Duration;

use rand::Rng;

/// How long to wait before each further try.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays up to `base` after the first failure, doubling up to `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The delay after one more failure: a random part, at least a tenth, of the doubled base.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::rng().random_range(0.1..=1.0))
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
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for _ in 0..64 {
            let delay = backoff.next_delay();
            assert!(delay >= Duration::from_millis(10) && delay <= Duration::from_secs(2), "{delay:?}");
        }
    }
}
