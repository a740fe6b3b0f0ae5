//! What readers see of the cluster: plain values that the leader publishes in the [catalog](crate::catalog).
//!
//! A leaf: nothing here knows the catalog, the leader or the wire.

mod appliance;
mod cluster;
mod mode;
mod orders;
mod plan;
mod rebalance;
mod rollout;
mod worker;

pub use appliance::{ApplianceKey, AssignmentView, Candidate, CatalogEntry, Explanation};
pub use cluster::{
    ClusterView, CoordinationState, CoordinatorView, FrozenView, LeaderView, MAX_MISSING, MAX_NOTES, MAX_UNOWNED,
    PausedView, PlacementView, RingView, UnownedAppliance, UnownedView, ViolationsView,
};
pub use mode::{ModeList, ModeView, WithheldStep};
pub use orders::{BudgetStatus, MAX_ORDERED, OrdersView, PinView, WorkerOrdersView};
pub use plan::{MAX_PLAN_UNPLACED, PlanView, PlannedMoveView, UnplacedView};
pub use rebalance::{MoveView, RebalanceView};
pub use rollout::{RolloutItemView, RolloutView};
pub use worker::WorkerView;
