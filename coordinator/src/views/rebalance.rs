//! A rebalance and its moves.

use std::time::SystemTime;

use common::{ApplianceId, WorkerId};

use crate::record::{MoveTimes, RebalanceRecord};

/// A rebalance with its moves, as the leader keeps the latest ones in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceView {
    /// What is stored of it.
    pub record: RebalanceRecord,
    /// Its moves, at most 1,000.
    pub moves: Vec<MoveView>,
}

/// One move, under way or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveView {
    /// What moves.
    pub appliance: ApplianceId,
    /// Who held it.
    pub from: Option<WorkerId>,
    /// Who shall hold it.
    pub to: WorkerId,
    /// Why.
    pub reason: String,
    /// planned, releasing, granting, done, dropped.
    pub state: &'static str,
    /// When it reached the stages.
    pub times: MoveTimes,
    /// When it reached that state.
    pub time: SystemTime,
}
