//! Waiting for conditions.

pub use servers::wait::until;
