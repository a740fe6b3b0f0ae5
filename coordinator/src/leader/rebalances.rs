//! Rebalances as people see them: what is stored of each, its latest moves, and its trace.
//!
//! The root span of a rebalance is open as long as the rebalance is; deltas and hand-offs are its children, and workers
//! continue it through the `traceparent` of their deltas.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use common::session::DeltaEntry;
use common::{ApplianceId, RebalanceId, WorkerId};
use coordinator_core::rebalance::{RebalanceCause, RebalanceEvent};
use runtime::meter::TraceRef;
use runtime::telemetry;
use tracing::{Span, info, info_span};

use crate::record::{MoveRecord, RebalanceOutcome, RebalanceRecord};
use crate::views::{MoveView, RebalanceView};

/// Moves of one rebalance that are shown, and traced hand-off by hand-off; the rest only counts.
const SHOWN_MOVES: usize = 1_000;

#[derive(Debug)]
struct OpenRebalance {
    view: RebalanceView,
    root: Span,
    /// Position in `view.moves` and the span of each hand-off that is followed.
    followed: HashMap<ApplianceId, (usize, Span)>,
}

/// The rebalances of this term that have not ended, and those that are to be shown anew.
#[derive(Debug, Default)]
pub(super) struct RebalanceHistory {
    open: BTreeMap<RebalanceId, OpenRebalance>,
    changed: BTreeSet<RebalanceId>,
    ended: Vec<RebalanceView>,
    /// Moves that ended and are to be stored.
    ended_moves: Vec<MoveRecord>,
}

impl RebalanceHistory {
    /// History as the store has it. Those that ran when the former leader ended are interrupted, and to be stored so.
    pub(super) fn restore(rebalances: Vec<RebalanceRecord>) -> (Self, Vec<RebalanceRecord>) {
        let now = SystemTime::now();
        let mut interrupted = Vec::new();
        let mut ended = Vec::with_capacity(rebalances.len());
        for mut record in rebalances {
            if record.outcome == RebalanceOutcome::Running {
                record.outcome = RebalanceOutcome::Interrupted;
                record.ended = Some(now);
                interrupted.push(record.clone());
            }
            ended.push(RebalanceView { record, moves: Vec::new() });
        }
        (Self { ended, ..Self::default() }, interrupted)
    }

    /// Everything that is to be shown at the start.
    pub(super) fn views(&self) -> Vec<RebalanceView> {
        self.ended.clone()
    }

    /// Takes in how a rebalance goes on; answers with what is to be stored of it, after the moves that ended.
    pub(super) fn take_in(&mut self, event: RebalanceEvent) -> Option<RebalanceRecord> {
        let now = SystemTime::now();
        match event {
            RebalanceEvent::Opened { id, cause, moves } => Some(self.opened(id, &cause, moves, now)),
            RebalanceEvent::Planned { id, moves } => {
                if let Some(open) = self.open.get_mut(&id) {
                    open.view.record.moves = moves;
                    self.changed.insert(id);
                }
                None
            }
            RebalanceEvent::Moved { id, appliance, from, to, reason } => {
                let reason = reason.text().to_owned();
                self.moved(MoveRecord { rebalance: id, appliance, from, to, reason, done: true, time: now });
                None
            }
            RebalanceEvent::Closed { id, moves, done, superseded } => self.closed(id, (moves, done), superseded, now),
        }
    }

    fn opened(&mut self, id: RebalanceId, cause: &RebalanceCause, moves: u64, now: SystemTime) -> RebalanceRecord {
        let root = info_span!(parent: None, "rebalance", rebalance = %id, %cause, moves, term = id.term.get());
        let trace_id = telemetry::trace_id(&root);
        info!(parent: &root, rebalance = %id, %cause, moves, trace_id, "rebalance begins");
        let record = RebalanceRecord {
            id,
            cause: cause.to_string(),
            trace_id,
            started: now,
            ended: None,
            outcome: RebalanceOutcome::Running,
            moves,
            done: 0,
        };
        let view = RebalanceView { record: record.clone(), moves: Vec::new() };
        self.open.insert(id, OpenRebalance { view, root, followed: HashMap::new() });
        self.changed.insert(id);
        record
    }

    fn moved(&mut self, record: MoveRecord) {
        if let Some(open) = self.open.get_mut(&record.rebalance) {
            open.view.record.done += 1;
            if let Some((at, _span)) = open.followed.remove(&record.appliance) {
                open.view.moves[at] = MoveView {
                    appliance: record.appliance,
                    from: record.from.clone(),
                    to: record.to.clone(),
                    reason: record.reason.clone(),
                    state: "done",
                    time: record.time,
                };
            }
            self.changed.insert(record.rebalance);
        }
        self.ended_moves.push(record);
    }

    /// A rebalance has ended, with so many moves begun and made.
    fn closed(
        &mut self,
        id: RebalanceId,
        (moves, done): (u64, u64),
        superseded: bool,
        now: SystemTime,
    ) -> Option<RebalanceRecord> {
        let mut open = self.open.remove(&id)?;
        self.changed.remove(&id);
        let record = &mut open.view.record;
        (record.moves, record.done) = (moves, done);
        record.ended = Some(now);
        record.outcome = if superseded { RebalanceOutcome::Superseded } else { RebalanceOutcome::Completed };
        for (at, _) in open.followed.values() {
            open.view.moves[*at].state = "dropped";
        }
        let seconds = now.duration_since(record.started).unwrap_or_default().as_secs_f64();
        let record = record.clone();
        info!(parent: &open.root, rebalance = %id, done, superseded, seconds, "rebalance ends");
        self.ended.push(open.view);
        Some(record)
    }

    /// The trace of a rebalance that has not ended.
    pub(super) fn trace(&self, id: RebalanceId) -> Option<TraceRef> {
        TraceRef::of_trace(&self.open.get(&id)?.view.record.trace_id)
    }

    /// Moves that ended and are to be stored.
    pub(super) fn take_ended_moves(&mut self) -> Vec<MoveRecord> {
        std::mem::take(&mut self.ended_moves)
    }

    /// Notes what a delta of a rebalance asks of a worker.
    pub(super) fn under_way(&mut self, id: RebalanceId, entries: &[DeltaEntry<()>], worker: Option<&WorkerId>) {
        let (Some(open), Some(worker)) = (self.open.get_mut(&id), worker) else { return };
        let now = SystemTime::now();
        for entry in entries {
            let (appliance, state) = match entry {
                DeltaEntry::Release(grant) => (grant.appliance, "releasing"),
                DeltaEntry::Grant { appliance, .. } => (*appliance, "granting"),
                DeltaEntry::Update { .. } | DeltaEntry::Check { .. } => continue,
            };
            if let Some((at, _)) = open.followed.get(&appliance) {
                let shown = &mut open.view.moves[*at];
                shown.state = state;
                shown.time = now;
                if state == "granting" {
                    shown.to = worker.clone();
                }
            } else if open.view.moves.len() < SHOWN_MOVES {
                let span = info_span!(parent: &open.root, "hand-off", %appliance);
                open.followed.insert(appliance, (open.view.moves.len(), span));
                open.view.moves.push(MoveView {
                    appliance,
                    from: (state == "releasing").then(|| worker.clone()),
                    to: worker.clone(),
                    reason: String::new(),
                    state,
                    time: now,
                });
            }
        }
        self.changed.insert(id);
    }

    /// A span for one delta of a rebalance.
    pub(super) fn delta_span(&self, id: RebalanceId, entries: usize) -> Option<Span> {
        let open = self.open.get(&id)?;
        Some(info_span!(parent: &open.root, "delta", rebalance = %id, entries))
    }

    /// Rebalances to be shown anew.
    pub(super) fn take_changed(&mut self) -> Vec<RebalanceView> {
        let mut views = std::mem::take(&mut self.ended);
        for id in std::mem::take(&mut self.changed) {
            views.extend(self.open.get(&id).map(|open| open.view.clone()));
        }
        views
    }
}
