//! What every binary does the same way: read the clock, start telemetry, wait for signals.

pub mod clock;
pub mod retry;
pub mod shutdown;
pub mod telemetry;
