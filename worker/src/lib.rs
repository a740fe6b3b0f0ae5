//! The worker: a stateless process that holds a share of the appliances, keeps them alive and reports.

pub mod app;
pub mod appliance;
pub mod config;
pub mod drivers;
pub mod gate;
pub mod kinds;
pub mod offer;
pub mod runner;
pub mod session;
