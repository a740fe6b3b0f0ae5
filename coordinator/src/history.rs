//! Reads of what is not kept in memory: past rebalances and their moves, the audit trail, and what workers did.

use common::{ApplianceId, RebalanceId};
use futures::future::BoxFuture;

use crate::record::{
    AuditFilter, AuditPart, MemberThen, MoveRecord, NumberedEvent, NumberedRun, RebalanceRecord, RunFilter,
};

/// An answer from the history, once it comes.
pub type HistoryAnswer<'a, T> = BoxFuture<'a, Result<T, HistoryError>>;

/// Reads of what is not kept in memory. The store implements it.
pub trait History: Send + Sync + 'static {
    /// Rebalances before `before`, newest first, at most `limit`.
    fn rebalances(&self, before: Option<RebalanceId>, limit: u64) -> HistoryAnswer<'_, Vec<RebalanceRecord>>;

    /// One rebalance and its moves.
    fn rebalance(&self, id: RebalanceId) -> HistoryAnswer<'_, Option<(RebalanceRecord, Vec<MoveRecord>)>>;

    /// Who was there when a rebalance began; empty where that is not known.
    fn members_of(&self, id: RebalanceId) -> HistoryAnswer<'_, Vec<MemberThen>>;

    /// Latest moves of an appliance, newest first, at most `limit`.
    fn moves_of(&self, appliance: ApplianceId, limit: u64) -> HistoryAnswer<'_, Vec<MoveRecord>>;

    /// Events of the audit trail that match, at most `limit`.
    fn audit(&self, filter: AuditFilter, part: AuditPart, limit: u64) -> HistoryAnswer<'_, Vec<NumberedEvent>>;

    /// Runs that match, at most `limit`.
    fn runs(&self, filter: RunFilter, part: AuditPart, limit: u64) -> HistoryAnswer<'_, Vec<NumberedRun>>;
}

/// The store could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the history: {0}")]
pub struct HistoryError(pub String);
