//! The coordinator: leads the cluster, answers the admin API, and sends workers what they own.
//!
//! Public is what its binary, the benchmarks and tests of other packages use, and `commands`, the way in for sources; the
//! compiler finds what is dead in the rest.

#![expect(
    unreachable_pub,
    reason = "`pub` in a module says what it offers the rest of this crate; that modules are private lets the compiler find what is dead"
)]

mod access;
mod admission;
pub mod app;
mod budget;
mod catalog;
pub mod commands;
pub mod config;
pub mod decoders;
mod exit_code;
mod gauges;
mod grpc;
mod history;
mod leader;
mod leader_tasks;
mod leadership;
mod listen;
pub mod metrics;
mod opening;
pub mod record;
mod sessions;
mod sources;
mod state_dir;
pub mod store;
mod tuning;
mod views;
