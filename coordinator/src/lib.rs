//! The coordinator: leads the cluster, answers the admin API, and tells workers what is theirs.

pub mod record;
pub mod store;
