//! Settings of the client.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

/// Settings of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// File that says where the API server is and how to prove who one is. Without it, what `KUBECONFIG` names; without that, the
    /// service account of the pod this runs in; outside of pods `~/.kube/config`.
    pub kubeconfig: PathBuf,
    /// Context in that file; its current one when empty. Not for service accounts.
    pub context: String,
    /// How long one call may take, with every repetition of it. A watch has so long to begin. Longer is more patient with an API server
    /// under load, shorter tells sooner that it does not answer. Of a worker, less than what its lifecycle waits for a look
    /// (`observe_timeout`).
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub request_timeout: Duration,
    /// Calls a second, over time. More changes a fleet faster, and loads the API server more.
    pub qps: NonZeroU32,
    /// Calls that may be made at once after a quiet time, before `qps` holds.
    pub burst: NonZeroU32,
    /// Calls that may be under way at a time, beside lists and watches, which are counted for themselves: 10 at most.
    pub in_flight: NonZeroU32,
    /// Longest wait that is done as the API server asks for (`Retry-After`); what is to wait longer fails.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub max_retry_after: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        Self {
            kubeconfig: PathBuf::new(),
            context: String::new(),
            request_timeout: Duration::from_secs(8),
            qps: number(50),
            burst: number(100),
            in_flight: number(64),
            max_retry_after: Duration::from_secs(10),
        }
    }
}

impl ClientConfig {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        let range = Duration::from_millis(100)..=Duration::from_secs(300);
        if !range.contains(&self.request_timeout) {
            found.push(FieldViolation::new("request_timeout", "must be 100ms to 5m"));
        }
        if self.max_retry_after > Duration::from_secs(300) {
            found.push(FieldViolation::new("max_retry_after", "must be 5m or less"));
        }
        for (field, value) in [("qps", self.qps), ("burst", self.burst), ("in_flight", self.in_flight)] {
            if value.get() > 10_000 {
                found.push(FieldViolation::new(field, "must be 10000 or less"));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(ClientConfig::default().validate(), []);
        let bad = ClientConfig { request_timeout: Duration::ZERO, ..ClientConfig::default() };
        assert_eq!(bad.validate()[0].to_string(), "request_timeout: must be 100ms to 5m");
        let text = r#"{"qps": 0}"#;
        assert!(serde_json::from_str::<ClientConfig>(text).is_err(), "a client that may call never");
    }
}
