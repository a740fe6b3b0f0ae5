//! What every binary does the same way: load its configuration, read the clock, start telemetry, wait for signals, and
//! speak TLS.

pub mod channel;
pub mod clock;
pub mod config;
pub mod file;
pub mod folder;
pub mod log_limit;
#[cfg(feature = "metrics")]
pub mod meter;
pub mod process;
pub mod program;
pub mod reference;
pub mod reload;
pub mod retry;
pub mod shutdown;
pub mod socket;
pub mod telemetry;
pub mod tls;
