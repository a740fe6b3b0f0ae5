//! The clock leases are measured with.

use std::time::Duration;

use common::Timestamp;

/// Now, on CLOCK_BOOTTIME: it goes on while the machine is suspended, so that a lease cannot outlive its owner's sleep.
#[must_use]
pub fn now() -> Timestamp {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(t.tv_nsec).unwrap_or(0);
    Timestamp::ZERO + Duration::new(secs, nanos)
}
