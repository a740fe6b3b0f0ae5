//! The worker's decisions: what it holds, what each appliance needs next, what it reports.
//!
//! Free of IO, clock and randomness: time and jitter arrive as arguments, effects leave as values.

pub mod assignments;
pub mod desired;
pub mod gate;
pub mod instance;
pub mod lifecycle;
pub mod peers;
pub mod ports;
pub mod report;
pub mod session;
