//! What a worker tells about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::appliance::Driver;

/// What a worker publishes about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Share of the appliances relative to others; at least 1.
    pub weight: u32,
    /// Failure zone; empty when not given.
    pub zone: String,
    /// Host it runs on.
    pub host: String,
    /// Drivers it offers.
    pub drivers: BTreeSet<Driver>,
    /// Version of the program.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// How long it may act after a heartbeat.
    pub lease: Duration,
    /// For drivers whose calls no token fences: how long after they were sent they may take effect, which is also how
    /// long after its lease. A driver that is missing is fenced by tokens.
    pub holds: BTreeMap<Driver, Duration>,
}

/// Longest hold that makes sense; anything longer is a unit mix-up, and is taken for this.
pub const MAX_HOLD: Duration = Duration::from_secs(24 * 3600);

impl Profile {
    /// How long after the lease of this worker calls through `driver` may take effect; zero when tokens fence them.
    #[must_use]
    pub fn hold_of(&self, driver: &Driver) -> Duration {
        self.holds.get(driver).copied().unwrap_or_default().min(MAX_HOLD)
    }
}
