//! Settings of the session, and what they may be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses of coordinators, tried in turn.
    pub coordinators: Vec<String>,
    /// How long this worker may act after a heartbeat that was answered. Longer rides out longer outages of the
    /// coordinator, and makes a takeover after a crash wait longer.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long one try to connect, and the answer to `Hello`, may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest pause between two tries to connect.
    #[serde(with = "humantime_serde")]
    pub retry_cap: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            coordinators: vec!["http://127.0.0.1:7470".to_owned()],
            lease: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(5),
            retry_cap: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn validate(&self) -> Result<(), String> {
        if self.coordinators.is_empty() {
            return Err("session.coordinators must name at least one address".to_owned());
        }
        for address in &self.coordinators {
            tonic::transport::Endpoint::from_shared(address.clone()).map_err(|e| {
                format!("session.coordinators: `{address}` is not an address like http://host:port: {e}")
            })?;
        }
        if !(Duration::from_millis(200)..=Duration::from_secs(120)).contains(&self.lease) {
            return Err("session.lease must be 200ms to 2m".to_owned());
        }
        Ok(())
    }
}
