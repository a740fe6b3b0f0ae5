//! Rollouts, and how far they are.

use common::ApplianceId;
use common::status::Phase;
use coordinator_core::rollout::RolloutCounts;

use crate::record::RolloutRecord;

/// A rollout, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutView {
    /// What it is.
    pub record: RolloutRecord,
    /// How many appliances are how far.
    pub counts: RolloutCounts,
    /// The wave that is under way, from 0.
    pub wave: usize,
    /// How many waves there are.
    pub waves: usize,
    /// Where the present wave ends in the selection.
    pub wave_end: usize,
    /// Some of the appliances that are under way.
    pub under_way: Vec<RolloutItemView>,
    /// What it waits for, one clause; empty while nothing keeps it.
    pub waits: String,
}

/// An appliance that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutItemView {
    /// Which.
    pub appliance: ApplianceId,
    /// Tenant and name; empty once it is gone.
    pub name: String,
    /// Its phase.
    pub phase: Option<Phase>,
}
