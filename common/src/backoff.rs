//! Delay after the n-th failure: exponential with full jitter, so that many appliances that failed together do not come
//! back together. Chance is an argument; the shell draws it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::FieldViolation;
use crate::time::Timestamp;

/// How long to wait after failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// Upper bound of the first delay. Higher spares a struggling backend, lower repairs sooner.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::DurationText"))]
    pub base: Duration,
    /// Upper bound of every delay.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::DurationText"))]
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), cap: Duration::from_secs(60) }
    }
}

impl Backoff {
    /// Delay after the `failures`-th failure in a row (none before the first): `jitter`, from 0 to 1, times
    /// `base * 2^(failures - 1)`, at most `cap`. A jitter outside of its range is taken as the nearest end.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let bound = self.base.saturating_mul(factor).min(self.cap);
        // NaN counts as 1: waiting too long is the harmless mistake.
        let jitter = if jitter.is_nan() { 1.0 } else { jitter.clamp(0.0, 1.0) };
        bound.mul_f64(jitter)
    }

    /// Every rule the settings break.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.base.is_zero() {
            found.push(FieldViolation::new("base", "must be longer than nothing"));
        }
        if self.cap < self.base {
            found.push(FieldViolation::new("cap", "must not be shorter than base"));
        }
        found
    }
}

/// When something that failed may be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// Failures in a row.
    pub failures: u32,
    /// Not before this moment.
    pub at: Timestamp,
}

impl Retry {
    /// Notes a failure at `now`.
    pub fn fail(&mut self, now: Timestamp, backoff: &Backoff, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        self.at = now + backoff.delay(self.failures, jitter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_shrink_with_jitter() {
        let backoff = Backoff::default();
        let secs: Vec<_> = [0, 1, 2, 3, 6, 7, 8, 33, u32::MAX].map(|n| backoff.delay(n, 1.0).as_secs()).into();
        assert_eq!(secs, [0, 1, 2, 4, 32, 60, 60, 60, 60]);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_secs(2));
        assert_eq!(backoff.delay(3, 0.0), Duration::ZERO);
    }

    #[test]
    fn odd_jitter_stays_in_range() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(1, f64::NAN), Duration::from_secs(1));
        assert_eq!(backoff.delay(1, -3.0), Duration::ZERO);
        assert_eq!(backoff.delay(1, 9.0), Duration::from_secs(1));
    }

    #[test]
    fn settings_that_cannot_work_name_their_field() {
        let backoff = Backoff { base: Duration::ZERO, cap: Duration::from_secs(1) };
        assert_eq!(backoff.validate()[0].field, "base");
        let backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(1) };
        assert_eq!(backoff.validate()[0].field, "cap");
    }
}
