//! What the leader learns from other systems, each by a task that runs for as long as its term and speaks to it through
//! [`Commands`](crate::commands::Commands), as the gRPC services do: appliances that custom resources ask for, and workers whose
//! containers have terminated.

pub mod custom_resources;
pub mod worker_pods;
