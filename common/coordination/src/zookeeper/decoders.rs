//! Every decoder of what others write into ZooKeeper, for the fuzz tests: they feed them bytes of any kind.

use common::Profile;

use super::layout::{self, LeaseData};

/// What a member publishes of itself.
#[must_use]
pub fn profile(data: &[u8]) -> Profile {
    layout::profile(data)
}

/// The bytes that a worker publishes.
#[must_use]
pub fn publish(profile: &Profile) -> Vec<u8> {
    layout::worker_capabilities(profile)
}

/// Whether a lease node says that its owner was evicted, and how long its lease lasts in milliseconds.
#[must_use]
pub fn lease(data: &[u8]) -> (bool, u128) {
    let read = LeaseData::read(data);
    (read.evicted, read.lease.as_millis())
}

/// The address that a coordinator publishes.
#[must_use]
pub fn address(data: &[u8]) -> String {
    layout::address(data)
}

/// Contenders in the order in which they came.
#[must_use]
pub fn contenders(names: Vec<String>) -> Vec<String> {
    layout::in_order(names)
}

/// Reads the URL of the coordination service.
///
/// # Errors
/// What is wrong with it.
pub fn url(settings: &crate::url::Config) -> Result<(), String> {
    super::config::Config::parse(settings).map(drop).map_err(|error| error.to_string())
}
