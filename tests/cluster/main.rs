//! The behaviour of whole clusters of real processes, one test per promise.
//!
//! Each test has a cluster of its own ([`tests::cluster`]). A test that fails keeps its files and prints the ends of all
//! logs. Two at a time are what two cores can take: `cargo test -p tests --test cluster -- --test-threads=2`.

mod api;
mod balancer;
mod boot;
mod budgets;
mod closed;
mod contexts;
mod coordinator;
mod custom;
mod debug;
mod docs;
mod exec;
mod input;
mod inquiries;
mod limits;
mod logs;
mod metrics;
mod orders;
mod quarantine;
mod reload;
mod repair;
mod restart;
mod rollouts;
mod runs;
mod site;
mod strangers;
mod telemetry;
mod tokens;
mod trace;
mod units;
mod up;
mod worker;
mod zones;
