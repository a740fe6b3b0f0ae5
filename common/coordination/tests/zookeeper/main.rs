//! Membership, leases and elections against real ZooKeeper servers.
//!
//! Tests that leave the server alone share one and lie in chroots of their own; the others start theirs. Sessions are
//! short, conditions are waited for with a deadline, and no test asserts how long something took, only what came before
//! what.

mod candidate;
mod faults;
mod group;
mod roster;
mod secured;
mod support;
