//! Rebalances as people see them: what is stored of each, its latest moves, and its [trace].
//!
//! A rebalance has ended, for the store and for readers, when its last move has ended *and* the new owners have seen what came to
//! them; one that the leader does not end is gone on with by the next one, under the same identity and trace.

mod trace;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use common::session::DeltaEntry;
use common::{ApplianceId, CoordinatorId, RebalanceId, Term, WorkerId};
use coordinator_core::grants::GrantOp;
use coordinator_core::machine::{BatchId, Commit, Machine, StreamId};
use coordinator_core::rebalance::{RebalanceCause, RebalanceEnd, RebalanceEvent, UnfinishedRebalance};
use opentelemetry::KeyValue;
use runtime::clock;
use runtime::meter::TraceRef;
use runtime::telemetry::{RebalanceTrace, RecordedSpan};
use tracing::info;

use self::trace::{HandOff, OpenTrace, count};
use super::plans::HandOffTimes;
use crate::record::{AdoptionRecord, MoveRecord, MoveTimes, RebalanceOutcome, RebalanceRecord};
use crate::views::{MoveView, RebalanceView};

/// Moves of one rebalance that are shown while it runs; the rest only counts, and is in the history once it has ended.
const SHOWN_MOVES: usize = 1_000;

/// For how long the end of a rebalance waits for new owners to say that they have seen what came to them. A look and a probe take
/// milliseconds, and what hangs is timed out after some seconds; workers of the version before say nothing.
const ADOPTION: Duration = Duration::from_secs(30);

/// What a hand-off says whose appliance moved on before its new owner had seen it.
const MOVED_ON: &str = "it moved on before its new owner had seen it";

#[derive(Debug)]
struct OpenRebalance {
    view: RebalanceView,
    trace: OpenTrace,
    hand_offs: HashMap<ApplianceId, HandOff>,
    /// Positions in `view.moves`.
    shown: HashMap<ApplianceId, usize>,
    /// Its last move has ended.
    closing: Option<Closing>,
}

#[derive(Debug)]
struct Closing {
    how: RebalanceEnd,
    /// When the last thing happened that belongs to it.
    last: SystemTime,
    /// Adoptions are waited for until then.
    until: Instant,
}

/// A rebalance as it is to be stored, and its root if it has ended, which is exported once that is durable.
#[derive(Debug)]
pub(super) struct StoredRebalance {
    pub(super) record: RebalanceRecord,
    pub(super) root: Option<RecordedSpan>,
}

/// The rebalances that have not ended, and those that are to be shown anew.
#[derive(Debug)]
pub(super) struct RebalanceHistory {
    coordinator: CoordinatorId,
    /// The term of the leader: spans of two leaders have ids of their own.
    term: Term,
    /// The kind of the database, for traces.
    store: &'static str,
    open: BTreeMap<RebalanceId, OpenRebalance>,
    changed: BTreeSet<RebalanceId>,
    ended: Vec<RebalanceView>,
    /// Grants that are being stored, of hand-offs.
    committing: HashMap<BatchId, Vec<(RebalanceId, ApplianceId)>>,
    /// What is to be stored, moves and adoptions before rebalances.
    moves: Vec<MoveRecord>,
    adoptions: Vec<AdoptionRecord>,
    records: Vec<StoredRebalance>,
    /// When the store refused one of them.
    refused: Option<Instant>,
    /// Hand-offs whose workers are to be asked for what they have of them.
    asked: Vec<(WorkerId, u64)>,
    hand_off_times: HandOffTimes,
}

/// After how long rebalances are offered to the store again that it refused.
const STORE_AGAIN: Duration = Duration::from_millis(500);
/// Most rebalances that wait for a store that takes nothing; a leader without its store opens no more of them.
const MAX_UNSTORED: usize = 1_000;

/// Most hand-offs that workers are asked for at once; the spans of others stay incomplete.
const MAX_ASKED: usize = 20_000;

/// Notes that the workers of a hand-off are to be asked for what they have of it.
fn ask(asked: &mut Vec<(WorkerId, u64)>, hand_off: &HandOff, id: Option<u64>) {
    let Some(id) = id else { return };
    for worker in [&hand_off.from, &hand_off.to].into_iter().flatten() {
        if asked.len() < MAX_ASKED {
            asked.push((worker.clone(), id));
        }
    }
}

impl RebalanceHistory {
    /// History as the store has it. If the newest one ran when the former leader ended, it is gone on with; others that ran were
    /// superseded, and end here. `made` are the moves of those that ran. `store` is the kind of the database.
    pub(super) fn restore(
        (coordinator, term): (CoordinatorId, Term),
        store: &'static str,
        rebalances: Vec<RebalanceRecord>,
        made: &HashMap<RebalanceId, Vec<MoveRecord>>,
    ) -> (Self, Option<UnfinishedRebalance>) {
        let now = SystemTime::now();
        let mut this = Self {
            coordinator,
            term,
            store,
            open: BTreeMap::new(),
            changed: BTreeSet::new(),
            ended: Vec::with_capacity(rebalances.len()),
            committing: HashMap::new(),
            moves: Vec::new(),
            adoptions: Vec::new(),
            records: Vec::new(),
            refused: None,
            asked: Vec::new(),
            hand_off_times: HandOffTimes::default(),
        };
        let mut unfinished = None;
        for (n, mut record) in rebalances.into_iter().enumerate() {
            if record.outcome != RebalanceOutcome::Running {
                this.ended.push(RebalanceView { record, moves: Vec::new() });
                continue;
            }
            let trace = OpenTrace::new(RebalanceTrace::parse(&record.trace_id).unwrap_or_else(RebalanceTrace::random));
            let id = record.id;
            let moves = made.get(&id).map_or(&[][..], Vec::as_slice);
            let moved: BTreeSet<_> = moves.iter().filter(|it| it.done).map(|it| it.appliance).collect();
            record.done = moved.len() as u64;
            if n == 0 {
                let view = RebalanceView { record, moves: Vec::new() };
                this.open.insert(id, OpenRebalance::new(view, trace));
                this.changed.insert(id);
                unfinished = Some(UnfinishedRebalance { id, moved });
            } else {
                record.outcome = RebalanceOutcome::Interrupted;
                record.ended = Some(moves.iter().map(|it| it.time).max().unwrap_or(now));
                this.ended.push(RebalanceView { record: record.clone(), moves: Vec::new() });
                let root = Some(trace.root(&record, this.coordinator.as_str()));
                this.records.push(StoredRebalance { record, root });
            }
        }
        (this, unfinished)
    }

    /// Everything that is to be shown at the start.
    pub(super) fn views(&self) -> Vec<RebalanceView> {
        let open = self.open.values().map(|open| open.view.clone());
        self.ended.iter().cloned().chain(open).collect()
    }

    /// How long hand-offs took.
    pub(super) const fn hand_off_times(&self) -> &HandOffTimes {
        &self.hand_off_times
    }

    /// Takes in how a rebalance goes on. The step of the machine that told of it began at `began`.
    pub(super) fn take_in(&mut self, event: RebalanceEvent, began: SystemTime) {
        let now = SystemTime::now();
        match event {
            RebalanceEvent::Opened { id, cause, moves, since } => {
                // Before the plan in any case, whatever the two clocks make of it.
                let noticed = now.checked_sub(clock::now().since(since)).unwrap_or(now).min(began);
                self.opened(id, &cause, moves, noticed);
                self.planned(id, moves, (began, now));
            }
            RebalanceEvent::Resumed { id, cause, moves } => {
                let coordinator = self.coordinator.to_string();
                if let Some(open) = self.open.get_mut(&id) {
                    let told = vec![
                        KeyValue::new("coordinator", coordinator),
                        KeyValue::new("cause", cause.to_string()),
                        KeyValue::new("moves", count(moves)),
                    ];
                    open.trace.note(now, "resumed", told);
                    info!(rebalance = %id, %cause, moves, trace_id = %open.trace.id(), "rebalance goes on");
                }
                self.planned(id, moves, (began, now));
            }
            RebalanceEvent::Planned { id, moves } => self.planned(id, moves, (began, now)),
            RebalanceEvent::Moved { id, appliance, from, to, reason } => {
                let (reason, times) = (reason.text().to_owned(), MoveTimes::default());
                self.moved(MoveRecord { rebalance: id, appliance, from, to, reason, done: true, times, time: now });
            }
            RebalanceEvent::Closed { id, moves, done, end } => self.closed(id, (moves, done), end, now),
        }
    }

    fn opened(&mut self, id: RebalanceId, cause: &RebalanceCause, moves: u64, started: SystemTime) {
        let trace = RebalanceTrace::random();
        info!(rebalance = %id, %cause, moves, trace_id = %trace, "rebalance begins");
        let record = RebalanceRecord {
            id,
            cause: cause.to_string(),
            trace_id: trace.to_string(),
            started,
            ended: None,
            outcome: RebalanceOutcome::Running,
            moves,
            done: 0,
        };
        let mut of_new = OpenTrace::new(trace);
        // What it takes over from has moves that have not ended, or is told in this step, after this, to have ended.
        for (former, open) in self.open.iter_mut().filter(|(_, open)| open.closing.is_none()) {
            of_new.link(open.trace.id());
            open.trace.link(trace);
            open.trace.note(started, "superseded", vec![KeyValue::new("rebalance", id.to_string())]);
            self.changed.insert(*former);
        }
        self.records.push(StoredRebalance { record: record.clone(), root: None });
        self.open.insert(id, OpenRebalance::new(RebalanceView { record, moves: Vec::new() }, of_new));
        self.changed.insert(id);
    }

    fn planned(&mut self, id: RebalanceId, moves: u64, times: (SystemTime, SystemTime)) {
        if let Some(open) = self.open.get_mut(&id) {
            open.view.record.moves = moves;
            open.trace.planned(times, moves);
            self.changed.insert(id);
        }
    }

    fn moved(&mut self, mut record: MoveRecord) {
        if let Some(open) = self.open.get_mut(&record.rebalance) {
            open.view.record.done += 1;
            let hand_off = open.hand_offs.entry(record.appliance).or_insert_with(|| HandOff::new(record.time));
            hand_off.ended = Some(record.time);
            hand_off.from = record.from.clone().or_else(|| hand_off.from.take());
            hand_off.to = Some(record.to.clone());
            record.times = hand_off.times;
            let took = record.times.began.and_then(|began| record.time.duration_since(began).ok());
            if let Some(took) = took.filter(|_| record.from.is_some()) {
                self.hand_off_times.add(took);
            }
            if let Some(at) = open.shown.remove(&record.appliance) {
                open.view.moves[at] = MoveView {
                    appliance: record.appliance,
                    from: record.from.clone(),
                    to: record.to.clone(),
                    reason: record.reason.clone(),
                    state: "done",
                    times: record.times,
                    time: record.time,
                };
            }
            self.changed.insert(record.rebalance);
        }
        self.moves.push(record);
    }

    /// A rebalance has made its last move, after so many that were begun and made.
    fn closed(&mut self, id: RebalanceId, (moves, done): (u64, u64), how: RebalanceEnd, now: SystemTime) {
        let Some(open) = self.open.get_mut(&id) else { return };
        (open.view.record.moves, open.view.record.done) = (moves, done);
        for (appliance, hand_off) in open.hand_offs.extract_if(|_, hand_off| hand_off.ended.is_none()) {
            let id = open.trace.handed_off(appliance, &hand_off, now, Some("given up"), self.store);
            ask(&mut self.asked, &hand_off, id);
        }
        for at in open.shown.values() {
            open.view.moves[*at].state = "dropped";
        }
        open.closing = Some(Closing { how, last: now, until: Instant::now() + ADOPTION });
        self.changed.insert(id);
        self.end_adopted(id);
    }

    /// A new owner has seen what came to it.
    pub(super) fn adopted(&mut self, appliance: ApplianceId) {
        let now = SystemTime::now();
        let of = |open: &OpenRebalance| open.hand_offs.get(&appliance).is_some_and(|hand_off| hand_off.ended.is_some());
        let Some((&id, open)) = self.open.iter_mut().find(|(_, open)| of(open)) else { return };
        let Some(hand_off) = open.hand_offs.remove(&appliance) else { return };
        let asked = open.trace.handed_off(appliance, &hand_off, now, None, self.store);
        ask(&mut self.asked, &hand_off, asked);
        if let Some(closing) = &mut open.closing {
            closing.last = now;
        }
        self.adoptions.push(AdoptionRecord { rebalance: id, appliance, time: now });
        self.end_adopted(id);
    }

    /// Nothing is left of an appliance: nobody will see how it is.
    pub(super) fn removed(&mut self, appliance: ApplianceId) {
        self.give_up_adoption(appliance, None, "the appliance was removed");
    }

    /// What came to its new owner went on before that has seen it.
    fn give_up_adoption(&mut self, appliance: ApplianceId, newer: Option<RebalanceId>, problem: &'static str) {
        let now = SystemTime::now();
        let waits = |id: RebalanceId, open: &OpenRebalance| {
            Some(id) != newer && open.hand_offs.get(&appliance).is_some_and(|hand_off| hand_off.ended.is_some())
        };
        let Some((&id, open)) = self.open.iter_mut().find(|(id, open)| waits(**id, open)) else { return };
        let Some(hand_off) = open.hand_offs.remove(&appliance) else { return };
        let asked = open.trace.handed_off(appliance, &hand_off, now, Some(problem), self.store);
        ask(&mut self.asked, &hand_off, asked);
        self.end_adopted(id);
    }

    /// Ends a rebalance that has made its last move, if nobody has to see anything any more.
    fn end_adopted(&mut self, id: RebalanceId) {
        if self.open.get(&id).is_some_and(|open| open.closing.is_some() && open.hand_offs.is_empty()) {
            self.end(id);
        }
    }

    /// Ends those that have made their last move and wait for adoptions, after their time or, with `all`, now.
    pub(super) fn end_late(&mut self, all: bool) {
        let now = Instant::now();
        let late = |open: &OpenRebalance| open.closing.as_ref().is_some_and(|closing| all || closing.until <= now);
        let late: Vec<_> = self.open.iter().filter(|(_, open)| late(open)).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.end(id));
    }

    fn end(&mut self, id: RebalanceId) {
        let Some(mut open) = self.open.remove(&id) else { return };
        let Some(closing) = open.closing.take() else { return };
        self.changed.remove(&id);
        for (appliance, hand_off) in open.hand_offs.drain() {
            let end = hand_off.ended.unwrap_or(closing.last);
            let problem = "its new owner did not say what it found";
            let asked = open.trace.handed_off(appliance, &hand_off, end, Some(problem), self.store);
            ask(&mut self.asked, &hand_off, asked);
        }
        let record = &mut open.view.record;
        record.ended = Some(closing.last);
        record.outcome = match closing.how {
            RebalanceEnd::Completed => RebalanceOutcome::Completed,
            RebalanceEnd::Superseded => RebalanceOutcome::Superseded,
            RebalanceEnd::Aborted => RebalanceOutcome::Aborted,
        };
        let seconds = closing.last.duration_since(record.started).unwrap_or_default().as_secs_f64();
        let (done, outcome) = (record.done, record.outcome.name());
        info!(rebalance = %id, done, outcome, seconds, trace_id = %open.trace.id(), "rebalance ends");
        let record = record.clone();
        let root = Some(open.trace.root(&record, self.coordinator.as_str()));
        self.records.push(StoredRebalance { record, root });
        self.ended.push(open.view);
    }

    /// The trace of a rebalance that has not ended.
    pub(super) fn trace(&self, id: RebalanceId) -> Option<TraceRef> {
        TraceRef::of_trace(&self.open.get(&id)?.view.record.trace_id)
    }

    /// What set off a rebalance that has not ended, by its name in metrics.
    pub(super) fn cause(&self, id: RebalanceId) -> Option<&'static str> {
        RebalanceCause::name_in(&self.open.get(&id)?.view.record.cause)
    }

    /// Moves that ended and are to be stored.
    pub(super) fn take_ended_moves(&mut self) -> Vec<MoveRecord> {
        std::mem::take(&mut self.moves)
    }

    /// Adoptions that are to be stored, after the moves.
    pub(super) fn take_adoptions(&mut self) -> Vec<AdoptionRecord> {
        std::mem::take(&mut self.adoptions)
    }

    /// Workers that are to be asked for what they have of hand-offs, by the ids of their spans.
    pub(super) fn take_asked(&mut self) -> Vec<(WorkerId, u64)> {
        std::mem::take(&mut self.asked)
    }

    /// Rebalances that are to be stored, after their moves.
    pub(super) fn take_records(&mut self) -> Vec<StoredRebalance> {
        if self.refused.is_some_and(|at| at.elapsed() < STORE_AGAIN) {
            return Vec::new();
        }
        self.refused = None;
        std::mem::take(&mut self.records)
    }

    /// The store did not take one of them now: it is offered again, unless a newer state of it is waiting.
    pub(super) fn not_stored(&mut self, rebalance: StoredRebalance) {
        self.refused = Some(Instant::now());
        let id = rebalance.record.id;
        let has_newer = rebalance.root.is_none() && !self.open.contains_key(&id);
        if has_newer || self.records.iter().any(|waiting| waiting.record.id == id) {
            return;
        }
        if self.records.len() < MAX_UNSTORED {
            self.records.push(rebalance);
        }
    }

    /// Notes that a batch with these changes is being stored.
    pub(super) fn committing(&mut self, batch: BatchId, commit: &Commit, machine: &Machine) {
        if self.open.is_empty() {
            return;
        }
        let now = SystemTime::now();
        let table = machine.table();
        let mut granted = Vec::new();
        for op in &commit.grants {
            let GrantOp::Grant { appliance, to, .. } = op else { continue };
            let row = table.slot(*appliance).and_then(|slot| table.get(slot));
            let Some(id) = row.and_then(|row| row.placement.rebalance) else { continue };
            self.give_up_adoption(*appliance, Some(id), MOVED_ON);
            let Some(open) = self.open.get_mut(&id) else { continue };
            let hand_off = open.hand_offs.entry(*appliance).or_insert_with(|| HandOff::new(now));
            if hand_off.from.is_some() {
                hand_off.times.released.get_or_insert(now);
            }
            hand_off.to = Some(to.worker.clone());
            granted.push((id, *appliance));
        }
        if !granted.is_empty() {
            self.committing.insert(batch, granted);
        }
    }

    /// A batch was stored, or was not.
    pub(super) fn committed(&mut self, batch: BatchId, durable: bool) {
        let Some(granted) = self.committing.remove(&batch).filter(|_| durable) else { return };
        let now = SystemTime::now();
        for (id, appliance) in granted {
            if let Some(hand_off) = self.open.get_mut(&id).and_then(|open| open.hand_offs.get_mut(&appliance)) {
                hand_off.committed = Some(now);
            }
        }
    }

    /// Notes that a delta of a rebalance goes to a worker. Returns the `traceparent` that goes with it.
    pub(super) fn sent(
        &mut self,
        id: RebalanceId,
        delta: (StreamId, u64),
        entries: &[DeltaEntry<()>],
        worker: Option<&WorkerId>,
    ) -> String {
        for entry in entries {
            if let DeltaEntry::Release(grant) = entry {
                self.give_up_adoption(grant.appliance, Some(id), MOVED_ON);
            }
        }
        let Some(open) = self.open.get_mut(&id) else { return String::new() };
        let now = SystemTime::now();
        if let Some(worker) = worker {
            for entry in entries {
                open.under_way(entry, worker, now);
            }
        }
        self.changed.insert(id);
        open.trace.sent((self.term, delta.0, delta.1), worker, entries.len(), now)
    }

    /// A worker has applied everything that was sent on a stream up to this version.
    pub(super) fn acknowledged(&mut self, stream: StreamId, applied: u64) {
        if !self.open.is_empty() {
            let now = SystemTime::now();
            self.open.values_mut().for_each(|open| open.trace.acknowledged(stream, applied, now));
        }
    }

    /// A stream is closed: what was sent on it is not acknowledged any more.
    pub(super) fn stream_closed(&mut self, stream: StreamId) {
        let now = SystemTime::now();
        self.open.values_mut().for_each(|open| open.trace.stream_closed(stream, now));
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

impl OpenRebalance {
    fn new(view: RebalanceView, trace: OpenTrace) -> Self {
        Self { view, trace, hand_offs: HashMap::new(), shown: HashMap::new(), closing: None }
    }

    /// An entry of a delta goes to a worker.
    fn under_way(&mut self, entry: &DeltaEntry<()>, worker: &WorkerId, now: SystemTime) {
        let (appliance, state) = match entry {
            DeltaEntry::Release(grant) => (grant.appliance, "releasing"),
            DeltaEntry::Grant { appliance, .. } => (*appliance, "granting"),
            DeltaEntry::Update { .. } | DeltaEntry::Check { .. } | DeltaEntry::Mode { .. } => return,
        };
        let hand_off = self.hand_offs.entry(appliance).or_insert_with(|| HandOff::new(now));
        if state == "releasing" {
            hand_off.from = Some(worker.clone());
        } else {
            hand_off.to = Some(worker.clone());
            hand_off.times.granted = Some(now);
        }
        let times = hand_off.times;
        if let Some(at) = self.shown.get(&appliance) {
            let shown = &mut self.view.moves[*at];
            (shown.state, shown.times, shown.time) = (state, times, now);
            if state == "granting" {
                shown.to = worker.clone();
            }
        } else if self.view.moves.len() < SHOWN_MOVES {
            self.shown.insert(appliance, self.view.moves.len());
            self.view.moves.push(MoveView {
                appliance,
                from: (state == "releasing").then(|| worker.clone()),
                to: worker.clone(),
                reason: String::new(),
                state,
                times,
                time: now,
            });
        }
    }
}
