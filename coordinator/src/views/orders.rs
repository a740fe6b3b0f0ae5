//! Operators' orders about placement, with who gave them.

use std::sync::Arc;

use common::WorkerId;
use coordinator_core::budget::BudgetView;

use crate::record::OrderNote;

/// What is ordered about one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerOrdersView {
    /// It is given nothing new.
    pub cordon: Option<OrderNote>,
    /// It gives up what it has.
    pub drain: Option<OrderNote>,
    /// It has another weight than it publishes.
    pub weight: Option<(u32, OrderNote)>,
}

impl WorkerOrdersView {
    /// Whether nothing is ordered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        let Self { cordon, drain, weight } = self;
        cordon.is_none() && drain.is_none() && weight.is_none()
    }
}

/// Where an appliance is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinView {
    /// The worker.
    pub worker: WorkerId,
    /// No other worker is given it.
    pub strict: bool,
    /// Who says so.
    pub note: OrderNote,
}

/// All orders in force, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrdersView {
    /// Those about workers, by name, also of workers that are away; the first [`MAX_ORDERED`] of them.
    pub workers: Vec<(WorkerId, Arc<WorkerOrdersView>)>,
    /// Workers that something is ordered about.
    pub worker_count: usize,
    /// Appliances that are pinned.
    pub pins: usize,
}

/// Most workers whose orders are shown with the cluster.
pub const MAX_ORDERED: usize = 50;

/// How a budget of disruption stands, and who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetStatus {
    /// How it stands.
    pub view: BudgetView,
    /// Who set it, when and why.
    pub note: OrderNote,
}
