//! What the tests of the whole share: clusters of real processes, what they leave behind, and drills on them.

pub mod cluster;
pub mod collector;
pub mod docs;
pub mod drill;
pub mod fleet;
pub mod journal;
pub mod lives;
pub mod tenures;
