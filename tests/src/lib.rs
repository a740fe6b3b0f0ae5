//! What the tests of the whole share: clusters of real processes.

pub mod cluster;
pub mod fleet;
