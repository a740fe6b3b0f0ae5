//! One running thing behind an appliance, as its driver describes it.

use std::net::SocketAddr;

use common::ApplianceId;
use serde::{Deserialize, Serialize};

/// A running instance. Drivers keep this beside the instance, so that any worker can adopt it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Position among the replicas, from 0.
    pub ordinal: u16,
    /// Which attempt at this ordinal started it, from 1.
    pub attempt: u32,
    /// [`crate::desired::boot_digest`] it was started with.
    pub boot_digest: String,
    /// Process id, where the driver has one.
    pub pid: Option<u32>,
    /// Start time as the driver tells it, in milliseconds since the Unix epoch.
    pub started_at_unix_ms: u64,
    /// Where its REST contract is served, for kinds that have one.
    pub management: Option<SocketAddr>,
    /// Where its service is, if it has a port.
    pub address: Option<SocketAddr>,
}

impl Instance {
    /// Name of the instance: derived from appliance, ordinal and attempt, so that a takeover without a journal finds
    /// what its predecessor made.
    #[must_use]
    pub fn name(appliance: ApplianceId, ordinal: u16, attempt: u32) -> String {
        format!("{appliance}-{ordinal}-{attempt}")
    }
}
