//! A worker as the leader knows it.

use std::sync::Arc;
use std::time::SystemTime;

use common::driver::DriverOffers;
use common::{Incarnation, WorkerId};
use coordinator_core::health::Health;

use super::WorkerOrdersView;

/// A worker as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its name.
    pub id: WorkerId,
    /// Its life; `None` for one that was only heard of in the store.
    pub incarnation: Option<Incarnation>,
    /// How well it is.
    pub health: Health,
    /// Host it runs on.
    pub host: String,
    /// Failure zone.
    pub zone: String,
    /// Share of the appliances relative to others.
    pub weight: u32,
    /// The share that it publishes itself.
    pub published_weight: u32,
    /// Drivers it offers.
    pub drivers: DriverOffers,
    /// Version of the program.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// When news of its last heartbeat came.
    pub last_seen: Option<SystemTime>,
    /// It gives up what it has: it is about to stop, or an operator drains it.
    pub draining: bool,
    /// What operators order about it; `None` when nothing is.
    pub orders: Option<Arc<WorkerOrdersView>>,
    /// Of one that an operator drains: appliances that no other worker can take now.
    pub immovable: u64,
    /// Its member node is there: it is in the ring.
    pub member: bool,
    /// What does not count of what it says of itself, one sentence each.
    pub limited: Vec<String>,
}
