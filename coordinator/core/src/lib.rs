//! The coordinator's decisions: who should hold what, who holds what, and how that changes hands.
//!
//! Free of IO, clock and randomness: time arrives as an argument, effects leave as values. [`machine::Machine`] composes
//! the parts; the shell feeds it events and carries out its actions.

pub mod audit;
pub mod brake;
pub mod budget;
pub mod checks;
mod display;
pub mod grants;
pub mod handoff;
pub mod health;
pub mod limits;
pub mod machine;
pub mod membership;
pub mod modes;
pub mod orders;
pub mod outbox;
pub mod planner;
pub mod quarantine;
pub mod rebalance;
pub mod rollout;
pub mod slot;
pub mod table;
pub mod unowned;
pub mod violation;
