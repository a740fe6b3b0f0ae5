//! The coordinator: leads the cluster, answers the admin API, and tells workers what is theirs.

pub mod app;
pub mod catalog;
pub mod commands;
pub mod config;
pub mod failure;
pub mod grpc;
pub mod history;
pub mod leader;
pub mod leadership;
pub mod metrics;
pub mod opening;
pub mod record;
pub mod sessions;
pub mod state_dir;
pub mod store;
pub mod views;
