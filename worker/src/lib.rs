//! The worker: a process without state of its own that owns a share of the appliances, keeps them alive and reports.
//!
//! Public is what its binaries and tests of other packages use; the compiler finds what is dead in the rest.

#![expect(
    unreachable_pub,
    reason = "`pub` in a module says what it offers the rest of this crate; that modules are private lets the compiler find what is dead"
)]

pub mod app;
pub mod appliance;
pub mod config;
pub mod decoders;
pub mod drivers;
mod error;
pub mod gate;
pub mod held;
mod http_passing;
pub mod kinds;
pub mod metadata_proxy;
pub mod metrics;
mod offer;
mod orphans;
mod runner;
mod session;
mod setup;

pub use session::OnStop;
