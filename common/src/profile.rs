//! What a worker tells about itself.

use std::time::Duration;

use crate::driver::{DriverName, DriverOffers, MAX_FENCE_DELAY};
use crate::kind::KindName;
use crate::process::ProcessIdentity;
use crate::site::Site;

/// What a worker publishes about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Share of the appliances relative to others; at least 1.
    pub weight: u32,
    /// Failure zone; empty when not given.
    pub zone: String,
    /// Host it runs on.
    pub host: String,
    /// Drivers it offers.
    pub drivers: DriverOffers,
    /// Version of the program.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// Which process it is; `None` where it could not find out, and from workers of a version before.
    pub process: Option<ProcessIdentity>,
    /// How long it may act after a heartbeat.
    pub lease: Duration,
}

impl Profile {
    /// Where it keeps instances of `driver`; `None` when those are not bound to a host, or the driver is not offered.
    #[must_use]
    pub fn site(&self, driver: &DriverName) -> Option<Site> {
        self.drivers.get(driver)?.site(&self.host)
    }

    /// How long after the lease of this worker calls through `driver` may take effect; zero when tokens fence them.
    #[must_use]
    pub fn fence_delay(&self, driver: &DriverName) -> Duration {
        let delay = self.drivers.get(driver).and_then(|capabilities| capabilities.fence_delay);
        delay.unwrap_or_default().min(MAX_FENCE_DELAY)
    }

    /// Whether it can have an appliance of this driver and kind, whose instances are bound to `site` if there is one.
    #[must_use]
    pub fn can_run(&self, driver: &DriverName, kind: KindName, site: Option<&Site>) -> bool {
        self.drivers.get(driver).is_some_and(|capabilities| capabilities.can_run(&self.host, kind, site))
    }
}
