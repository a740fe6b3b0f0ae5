//! A plan as readers see it: what would change, and what that comes to.

use std::collections::BTreeMap;
use std::time::Duration;

use common::appliance::Name;
use common::{ApplianceId, WorkerId};
use coordinator_core::planner::LoadChange;

/// Most appliances that are shown of those that no worker could take.
pub const MAX_PLAN_UNPLACED: usize = 100;

/// What would change under assumptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanView {
    /// Names the plan: equal tables and assumptions give equal ones.
    pub id: String,
    /// The version of the table that it was made from.
    pub version: String,
    /// Those moves of it that were asked for.
    pub moves: Vec<PlannedMoveView>,
    /// How many moves there are.
    pub total: u64,
    /// Moves from one owner to another.
    pub hand_offs: u64,
    /// Moves of each tenant.
    pub tenants: BTreeMap<Name, u64>,
    /// Appliances of each worker before and after.
    pub loads: BTreeMap<WorkerId, LoadChange>,
    /// Appliances without an owner that no worker could take; the first [`MAX_PLAN_UNPLACED`].
    pub unplaced: Vec<UnplacedView>,
    /// How many of them there are.
    pub unplaced_total: u64,
    /// About how long it takes.
    pub duration: Duration,
    /// What one hand-off is taken to last for that.
    pub hand_off: Duration,
    /// Of how many hand-offs that is the mean; 0 when none were made since this leader began.
    pub measured: u64,
    /// Why it cannot be applied, if it cannot.
    pub not_appliable: Option<String>,
    /// Tenants of which one zone has at least two appliances more than another.
    pub uneven: LoadChange,
}

/// A move that would be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMoveView {
    /// What moves.
    pub appliance: ApplianceId,
    /// Its tenant and name, unless it was removed a moment ago.
    pub name: Option<(Name, Name)>,
    /// Its owner; `None` when it has none.
    pub from: Option<WorkerId>,
    /// The owner it would get.
    pub to: WorkerId,
    /// Why.
    pub reason: &'static str,
}

/// An appliance that no worker could take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnplacedView {
    /// Which.
    pub appliance: ApplianceId,
    /// Its tenant and name.
    pub name: Option<(Name, Name)>,
    /// Why no worker could take it.
    pub reason: String,
    /// It is so already.
    pub already: bool,
}
