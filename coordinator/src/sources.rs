//! Wishes of other systems, turned into appliances: each source runs beside the leader, for as long as its term, and changes
//! appliances through [`Commands`](crate::commands::Commands) as the gRPC services do.

pub mod custom_resources;
pub mod worker_pods;
