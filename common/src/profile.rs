//! What a worker tells about itself.

use std::collections::BTreeSet;
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
}
