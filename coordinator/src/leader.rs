//! The leader: owns the machine, its clock and everything only a leader may do.
//!
//! One task takes every input in turn (admin commands, workers' messages, finished writes, time), feeds the machine, and
//! carries out its actions. It is the only writer of the catalog. Nothing here waits for a worker or the disk: writes are
//! futures that come back as inputs, workers have bounded queues of their own. When the store is lost to another term,
//! the task ends and says so; the composition root decides what follows.

mod commands;
mod members;
mod rebalances;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::change::ApplianceTarget;
use common::session::{Envelope, Refused, RefusedReason, StatusReport, ToCoordinator, ToWorker};
use common::{ApplianceId, CoordinatorId, Life, Term, Timestamp, WorkerId};
use coordination::{Leadership, RosterEvent};
use coordinator_core::grants::StoredGrant;
use coordinator_core::machine::{self, Action, Commit, Event, Machine, Refusal, Restored, StreamId};
use coordinator_core::membership::LeaseAuthority;
use coordinator_core::table::Seed;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use proto::convert::down;
use runtime::{clock, telemetry};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::catalog::{self, Catalog, Fact};
use crate::commands::{Changed, Command, CommandError, Reply};
use crate::metrics::Metrics;
use crate::record::{MoveRecord, Record};
use crate::sessions::{Input, Out};
use crate::store::{self, Store, StoreWrite};
use crate::views::{AssignmentView, CatalogEntry, PausedView};
use rebalances::RebalanceHistory;

/// Inputs taken before the machine is asked to plan, so that calls that come together are placed together.
const BATCH: usize = 256;

/// How often what changes with time alone (health, time last seen) is shown anew.
const REFRESH: Duration = Duration::from_secs(1);

/// How long a stopping leader waits for workers to say that they leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a term ended.
#[derive(Debug)]
pub enum Ended {
    /// This process stops.
    Stopped,
    /// A higher term was met: campaign above it.
    HigherTerm(Term),
    /// The store is lost to another term, or an outcome could not be found out.
    StoreLost(store::Error),
    /// The leadership is lost, or in doubt: campaign again.
    LeadershipLost,
}

/// Why a term could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The store cannot be used, or is led by a higher term.
    #[error("begin a term: {0}")]
    Store(#[from] store::Error),
    /// The coordination service did not take the term.
    #[error("raise the term: {0}")]
    Coordination(#[from] coordination::Error),
}

/// What the terms before this one on this coordinator say about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Former {
    /// Highest term that a worker has met.
    pub highest_seen: Term,
    /// How long the new term lasts at least before a worker that has met a higher one ends it.
    pub raise_after: Duration,
}

/// What a leader works with.
#[derive(Debug)]
pub struct Leader<'a> {
    machine: Machine,
    leadership: &'a dyn Leadership,
    /// Events of the workers' nodes; `None` when this coordinator itself is the authority.
    roster: Option<mpsc::Receiver<(Timestamp, RosterEvent)>>,
    store: Store,
    catalog: Arc<Catalog>,
    identity: Identity,
    conns: HashMap<StreamId, Session>,
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    checks: HashMap<ApplianceId, Vec<(u64, Reply<()>)>>,
    next_check: u64,
    /// Callers that wait for the end of a life's lease.
    evictions: Vec<(Life, Reply<()>)>,
    paused: Option<PausedView>,
    /// What a person should look at: found when the term began, and contradictions met since.
    notes: members::Notes,
    last_violation: Option<SystemTime>,
    /// When the term began, by both clocks.
    began: (Timestamp, SystemTime),
    metrics: Arc<Metrics>,
    history: RebalanceHistory,
    facts: Vec<Fact>,
    changed_workers: BTreeSet<WorkerId>,
    /// Moves and rebalances to be stored, in one change per turn.
    ended_moves: Vec<MoveRecord>,
    shown_ring: Option<u64>,
    /// What the cluster's status shows is to be shown anew at once.
    cluster_changed: bool,
    refreshed: Option<Timestamp>,
    end: Option<Ended>,
}

/// Who this coordinator is, for `Cluster.Status`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub coordinator: CoordinatorId,
    /// When the process started.
    pub started: SystemTime,
    /// The store, without credentials.
    pub store: String,
    /// How the cluster is coordinated, without credentials.
    pub coordination: String,
    /// Where others reach its APIs.
    pub address: String,
    /// The coordinators that are there.
    pub coordinators: watch::Receiver<Vec<coordination::Leader>>,
}

#[derive(Debug)]
struct Session {
    out: Out,
    envelope: Envelope,
    worker: WorkerId,
}

/// A write that ended.
#[derive(Debug)]
enum Written {
    Batch(machine::BatchId, Result<(), store::Error>),
    Change(Box<catalog::Write>, Reply<Changed>, Result<(), store::Error>),
    /// A write nobody waits for.
    Note(&'static str, Result<(), store::Error>),
    /// Not a write, but a call that ends as they do: a lease node was to be written over.
    Evicted(Life, Result<(), coordination::Error>),
}

/// Where a leader's inputs come from. They outlive its term.
#[derive(Debug)]
pub struct Inputs {
    /// From the admin services.
    pub commands: mpsc::Receiver<Command>,
    /// From workers.
    pub sessions: mpsc::Receiver<(Timestamp, Input)>,
}

impl<'a> Leader<'a> {
    /// Begins a term above everything the coordination service, the store and any worker have met: raises it there,
    /// then in the store, and reads everything.
    ///
    /// # Errors
    /// [`BeginError`]; nothing was begun, or nothing that anybody was told of.
    pub async fn begin(
        mut config: machine::Config,
        leadership: &'a dyn Leadership,
        store: Store,
        catalog: Arc<Catalog>,
        identity: Identity,
        metrics: Arc<Metrics>,
        former: Former,
    ) -> Result<Self, BeginError> {
        let Former { highest_seen, raise_after } = former;
        let highest = store.highest_term().await?.max(highest_seen);
        let raised = leadership.raise_term(highest).await?;
        let term = raised.term;
        let loaded = store.begin_term(&identity.coordinator, term).await?;
        let roster = leadership.roster();
        config.authority = if roster.is_some() { LeaseAuthority::External } else { LeaseAuthority::Embedded };
        // Not `highest`: the database may have been swapped for an older copy since that was read.
        let mut notes = members::Notes::found(loaded.former, raised.found, roster.is_some(), highest_seen);
        let store::StoredState {
            former: _,
            records,
            mut statuses,
            mut grants,
            members,
            requests,
            rebalances,
            unreadable,
        } = loaded;
        for one in &unreadable {
            error!(appliance = %one.id, tenant = one.tenant, name = one.name, "set aside, it cannot be read: {}", one.why);
            notes.unreadable(one);
        }
        info!(%term, appliances = records.len(), members = members.len(), "leading");
        let mut appliances = Vec::with_capacity(records.len());
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            let stored = grants.remove(&record.id);
            let stored = StoredGrant { ever: stored.is_some(), ..stored.unwrap_or_default() };
            appliances.push((seed(&record), stored));
            let status = statuses.remove(&record.id).map(|(status, at)| (Arc::new(status), at));
            entries.push(CatalogEntry { record: Arc::new(record), status, assignment: AssignmentView::default() });
        }
        let (history, interrupted) = RebalanceHistory::restore(rebalances);
        catalog.load(catalog::Loaded { term, entries, requests, rebalances: history.views() });
        let began = (clock::now(), SystemTime::now());
        let machine = Machine::new(config, term, began.0, Restored { appliances, members, raise_after });
        metrics.begin_term();
        let mut this = Self {
            machine,
            leadership,
            roster,
            store,
            catalog,
            identity,
            conns: HashMap::new(),
            writes: FuturesUnordered::new(),
            checks: HashMap::new(),
            next_check: 1,
            evictions: Vec::new(),
            paused: None,
            notes,
            last_violation: None,
            began,
            metrics,
            history,
            facts: Vec::new(),
            changed_workers: BTreeSet::new(),
            ended_moves: Vec::new(),
            shown_ring: None,
            cluster_changed: true,
            refreshed: None,
            end: None,
        };
        for record in interrupted {
            this.note("rebalance", vec![StoreWrite::PutRebalance(record)]);
        }
        Ok(this)
    }

    /// Leads until `stop`, or until the term ends.
    pub async fn run(mut self, inputs: &mut Inputs, stop: CancellationToken) -> Ended {
        let mut wake_at = Some(clock::now());
        let lost = self.leadership.lost();
        loop {
            if self.end.is_none() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {
                        self.say_farewell(inputs).await;
                        return self.end.take().unwrap_or(Ended::Stopped);
                    }
                    () = lost.cancelled() => self.end = Some(Ended::LeadershipLost),
                    event = members::next(&mut self.roster) => self.on_roster_event(event),
                    Some(written) = self.writes.next(), if !self.writes.is_empty() => self.on_written(written),
                    Some(input) = inputs.sessions.recv() => self.on_session(input),
                    Some(command) = inputs.commands.recv() => self.on_command(command),
                    () = sleep_until(wake_at) => {}
                }
                self.drain(inputs);
                wake_at = self.step(Event::Tick);
                self.show();
                if self.end.is_none() && !self.store.leads(self.machine.term()) {
                    self.end = Some(Ended::StoreLost(store::Error::Deposed { term: self.machine.term() }));
                }
            }
            if let Some(end) = self.end.take() {
                self.resign().await;
                return end;
            }
        }
    }

    /// Takes what else has come, without waiting.
    fn drain(&mut self, inputs: &mut Inputs) {
        for _ in 0..BATCH {
            let mut idle = true;
            if let Some(event) = self.roster.as_mut().and_then(|roster| roster.try_recv().ok()) {
                self.on_roster_event(Some(event));
                idle = false;
            }
            if let Some(Some(written)) = futures::FutureExt::now_or_never(self.writes.next()) {
                self.on_written(written);
                idle = false;
            }
            if let Ok(input) = inputs.sessions.try_recv() {
                self.on_session(input);
                idle = false;
            }
            if let Ok(command) = inputs.commands.try_recv() {
                self.on_command(command);
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    /// Feeds the machine one event and carries out what follows.
    fn step(&mut self, event: Event) -> Option<Timestamp> {
        let output = self.machine.step(clock::now(), event);
        self.metrics.regained(&output.regained);
        for action in output.actions {
            self.carry_out(action);
        }
        output.wake_at
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Commit(batch, commit) => {
                let pending = self.store.submit(writes(commit));
                self.writes.push(Box::pin(async move { Written::Batch(batch, pending.await) }));
            }
            Action::Send(conn, envelope, message) => self.send(conn, envelope, message),
            Action::Reports(reports) => self.on_reports(reports),
            Action::Close(conn, refusal) => self.close(conn, &refusal),
            Action::Assigned(id) => self.show_assignment(id),
            Action::Removed(id) => self.facts.push(Fact::Removed(id)),
            Action::WorkerChanged(worker) => {
                self.cluster_changed = true;
                self.changed_workers.insert(worker);
            }
            Action::Gone(Life { worker, incarnation }, at) => {
                // Beside the worker's `may_act_until_ns` of the same host it shows what the lease's margin comes to.
                info!(%worker, %incarnation, at_ns = at.as_nanos(), "gone: its lease is over, or it left");
            }
            Action::Rebalance(news) => {
                let (put, moved) = self.history.take_in(news);
                self.ended_moves.extend(moved);
                if let Some(record) = put {
                    self.flush_moves();
                    self.note("rebalance", vec![StoreWrite::PutRebalance(record)]);
                }
            }
            Action::Quarantined(id, deaths) => {
                warn!(appliance = %id, deaths, "quarantined: workers died while a step of it ran");
            }
            Action::Violation(text) => {
                warn!("refused: {text}");
                self.last_violation = Some(SystemTime::now());
                self.cluster_changed = true;
                self.notes.violation(text);
            }
            Action::Evict(life) => {
                info!(worker = %life.worker, incarnation = %life.incarnation, "evicting");
                let marked = self.leadership.evict(life.worker.clone(), life.incarnation);
                self.writes.push(Box::pin(async move { Written::Evicted(life, marked.await) }));
            }
            Action::RaiseTerm(seen) => self.end = Some(Ended::HigherTerm(seen)),
        }
    }

    fn note(&mut self, what: &'static str, change: Vec<StoreWrite>) {
        let pending = self.store.submit(change);
        self.writes.push(Box::pin(async move { Written::Note(what, pending.await) }));
    }

    fn flush_moves(&mut self) {
        if !self.ended_moves.is_empty() {
            let moves = std::mem::take(&mut self.ended_moves);
            self.note("moves", vec![StoreWrite::Moves(moves)]);
        }
    }

    fn on_written(&mut self, written: Written) {
        let lost = |error: &store::Error| {
            matches!(
                error,
                store::Error::Deposed { .. }
                    | store::Error::Unresolved
                    | store::Error::NotLeading
                    | store::Error::Closed
            )
        };
        match written {
            Written::Batch(batch, Ok(())) => {
                self.step(Event::Durable(batch));
            }
            Written::Batch(_, Err(error)) if lost(&error) => self.end = Some(Ended::StoreLost(error)),
            Written::Batch(batch, Err(error)) => {
                warn!("a change of ownership was not stored and will be made anew: {error}");
                self.step(Event::Undone(batch));
            }
            Written::Change(write, reply, Ok(())) => self.committed(*write, reply),
            Written::Change(write, reply, Err(error)) => {
                drop(write);
                let _ = reply.send(Err(CommandError::Unavailable(error.to_string())));
                if lost(&error) {
                    self.end = Some(Ended::StoreLost(error));
                }
            }
            Written::Evicted(_, Ok(())) => {}
            // The machine asks again.
            Written::Evicted(life, Err(error)) => {
                warn!(worker = %life.worker, "the lease node cannot be written over: {error}")
            }
            Written::Note(_, Ok(())) => {}
            Written::Note(what, Err(error)) => {
                warn!("history ({what}) was not stored: {error}");
                if lost(&error) {
                    self.end = Some(Ended::StoreLost(error));
                }
            }
        }
    }

    fn on_session(&mut self, (read_at, input): (Timestamp, Input)) {
        if clock::now().since(read_at) > machine::BEHIND {
            self.step(Event::FellBehind);
        }
        match input {
            Input::Hello { conn, envelope, hello, out } => {
                info!(worker = %hello.worker, conn, owned = hello.owned.len(), "hello");
                let session = Session { out, envelope, worker: hello.worker.clone() };
                self.conns.insert(conn, session);
                if hello.highest_term < self.machine.term() {
                    self.notes.met(hello.highest_term);
                }
                self.step(Event::Received(conn, envelope, ToCoordinator::Hello(hello)));
            }
            Input::Message { conn, envelope, message } => self.on_message(conn, envelope, message),
            Input::Closed(conn) => {
                if self.conns.remove(&conn).is_some() {
                    self.step(Event::Closed(conn));
                }
            }
        }
    }

    fn on_message(&mut self, conn: StreamId, envelope: Envelope, message: ToCoordinator) {
        match &message {
            ToCoordinator::Hello(_) => return debug!(conn, "a second hello on one stream was dropped"),
            ToCoordinator::Beat(_) | ToCoordinator::Report(_) => {}
            ToCoordinator::Ack(ack) => {
                for declined in &ack.declined {
                    info!(appliance = %declined.appliance, conn, "an offer was declined: {}", declined.reason);
                }
            }
            ToCoordinator::Drain { hand_back } => {
                info!(conn, worker = ?self.conns.get(&conn).map(|s| &s.worker), hand_back, "is about to stop");
            }
            ToCoordinator::Leave => {
                info!(conn, worker = ?self.conns.get(&conn).map(|s| &s.worker), "leaves");
                self.conns.remove(&conn);
            }
        }
        self.step(Event::Received(conn, envelope, message));
    }

    /// Stores and shows statuses that come from the owners of their appliances.
    fn on_reports(&mut self, reports: Vec<StatusReport>) {
        let now = SystemTime::now();
        let mut stored = Vec::with_capacity(reports.len());
        for report in reports {
            self.facts.push(Fact::Status(report.appliance, Arc::new(report.status.clone()), now));
            stored.push((report.appliance, report.status, now));
            if report.checked > 0 {
                self.answer_checks(report.appliance, report.checked);
            }
        }
        self.store.submit_statuses(stored);
    }

    fn answer_checks(&mut self, appliance: ApplianceId, checked: u64) {
        let Some(waiting) = self.checks.remove(&appliance) else { return };
        let (answered, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(number, _)| *number <= checked);
        // Readers look into the catalog as soon as they are answered.
        self.catalog.apply(self.facts.drain(..));
        for (_, reply) in answered {
            let _ = reply.send(Ok(()));
        }
        let waiting: Vec<_> = waiting.into_iter().filter(|(_, reply)| !reply.is_closed()).collect();
        if !waiting.is_empty() {
            self.checks.insert(appliance, waiting);
        }
    }

    fn send(&mut self, conn: StreamId, envelope: Envelope, message: ToWorker<()>) {
        let mut traceparent = String::new();
        if let ToWorker::Delta(delta) = &message
            && let Some(id) = delta.rebalance
        {
            self.history.under_way(id, &delta.entries, self.conns.get(&conn).map(|s| &s.worker));
            let span = self.history.delta_span(id, delta.entries.len());
            traceparent = span.as_ref().map(telemetry::traceparent).unwrap_or_default();
        }
        let message = message.fill(|id| {
            let entry = self.catalog.get(&ApplianceTarget::Id(id))?;
            Some(Arc::new(wire::desired(&entry.record)))
        });
        let Some(session) = self.conns.get_mut(&conn) else { return };
        session.envelope = envelope;
        let messages = down::down_to_wire(&envelope, message, &traceparent);
        let whole = messages.into_iter().all(|message| session.out.send(message));
        if !whole {
            warn!(conn, worker = %session.worker, "the worker does not read its stream; closing it");
            self.conns.remove(&conn);
            self.step(Event::Closed(conn));
        }
    }

    fn close(&mut self, conn: StreamId, refusal: &Refusal) {
        let Some(session) = self.conns.remove(&conn) else { return };
        let (reason, detail, after) = match refusal {
            Refusal::IncarnationOver => (RefusedReason::IncarnationOver, "its lease is over".to_owned(), None),
            Refusal::NameTaken(wait) => (
                RefusedReason::NameTaken,
                format!("another process named {} may act for up to {wait:?} more", session.worker),
                Some(*wait),
            ),
            Refusal::ImplausibleTerm(term) => {
                (RefusedReason::Malformed, format!("no cluster reaches {term}, which it claims to have met"), None)
            }
            Refusal::TermAhead(met, wait) => {
                let detail = format!("no term above {met}, which it has met, is begun within {wait:?}");
                (RefusedReason::NotLeading, detail, Some(*wait))
            }
            Refusal::Superseded => (RefusedReason::Superseded, "a newer stream took over".to_owned(), None),
            Refusal::StoreUnavailable => {
                (RefusedReason::NotLeading, "the store takes no changes".to_owned(), Some(Duration::from_millis(500)))
            }
            Refusal::NoLife => (
                RefusedReason::Malformed,
                format!("this cluster is coordinated by {}; the worker is not", self.identity.coordination),
                None,
            ),
            Refusal::UnknownLife => {
                let detail = "no lease node of this life was seen".to_owned();
                (RefusedReason::NotLeading, detail, Some(Duration::from_millis(500)))
            }
            Refusal::Differs => {
                (RefusedReason::AssignmentsDiffer, "what it holds differs from the table".to_owned(), None)
            }
            Refusal::NotMember => {
                (RefusedReason::IncarnationOver, "its member node was taken away, and it is drained".to_owned(), None)
            }
        };
        info!(conn, worker = %session.worker, ?reason, "closing the session: {detail}");
        let _ =
            session.out.send(down::refused_to_wire(&session.envelope, Refused { reason, detail, retry_after: after }));
    }

    /// The last words of a leader that stops: workers that stop at the same time get to say that they leave, so that the
    /// next leader need not wait for their leases. Nothing is planned any more.
    async fn say_farewell(&mut self, inputs: &mut Inputs) {
        if self.roster.is_some() {
            // The next leader waits for this one's lock only, and workers for neither.
            return self.resign().await;
        }
        let deadline = tokio::time::Instant::now() + FAREWELL;
        while self.end.is_none() && !(self.conns.is_empty() && self.writes.is_empty()) {
            tokio::select! {
                biased;
                Some(written) = self.writes.next(), if !self.writes.is_empty() => self.on_written(written),
                Some(input) = inputs.sessions.recv() => match input {
                    (_, Input::Hello { envelope, out, .. }) => {
                        let detail = "the coordinator is stopping".to_owned();
                        let refused = Refused { reason: RefusedReason::Stopping, detail, retry_after: None };
                        let _ = out.send(down::refused_to_wire(&envelope, refused));
                    }
                    input => self.on_session(input),
                },
                Some(command) = inputs.commands.recv() => commands::refuse(command),
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        self.resign().await;
    }

    /// Ends everything that belongs to the term: streams are told to look for the leader, writes under way end.
    async fn resign(&mut self) {
        for (_, session) in self.conns.drain() {
            let detail = "this coordinator does not lead any more".to_owned();
            let refused = Refused { reason: RefusedReason::NotLeading, detail, retry_after: None };
            let _ = session.out.send(down::refused_to_wire(&session.envelope, refused));
        }
        self.flush_moves();
        let drained = async {
            while let Some(written) = self.writes.next().await {
                if let Written::Change(write, reply, result) = written {
                    match result {
                        // It is stored, and whoever leads next reads it.
                        Ok(()) => drop(reply.send(Ok(write.commit()))),
                        Err(e) => drop(reply.send(Err(CommandError::Unavailable(e.to_string())))),
                    }
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), drained).await;
        let checks = self.checks.drain().flat_map(|(_, waiting)| waiting.into_iter().map(|(_, reply)| reply));
        for reply in checks.chain(self.evictions.drain(..).map(|(_, reply)| reply)) {
            let _ = reply.send(Err(CommandError::NotLeading(None)));
        }
        self.catalog.apply(self.facts.drain(..));
    }

    /// Shows readers what this turn changed.
    fn show(&mut self) {
        self.flush_moves();
        if !self.facts.is_empty() {
            self.catalog.apply(self.facts.drain(..));
        }
        for view in self.history.take_changed() {
            self.catalog.set_rebalance(view);
        }
        self.metrics.count(&self.machine.counters(), &self.machine.audits());
        let now = clock::now();
        let refresh = self.refreshed.is_none_or(|at| now.since(at) >= REFRESH);
        if refresh || !self.changed_workers.is_empty() {
            let wall = SystemTime::now();
            for view in self.machine.workers(now) {
                let changed = self.changed_workers.contains(&view.id);
                if refresh || changed {
                    self.store.submit_seen(view.id.clone(), wall.checked_sub(view.silent).unwrap_or(wall));
                    self.catalog.set_worker(wire::worker_view(view, wall));
                }
            }
            self.changed_workers.clear();
        }
        let version = self.machine.planner().ring_version();
        if self.shown_ring != Some(version) {
            self.shown_ring = Some(version);
            self.show_ring(version);
        }
        if refresh || self.cluster_changed {
            self.show_cluster(now);
            self.cluster_changed = false;
        }
        if refresh {
            self.refreshed = Some(now);
        }
        self.answer_evictions();
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    let wait = at.map_or(REFRESH, |at| at.since(clock::now()).min(REFRESH));
    tokio::time::sleep(wait).await;
}

/// About the bytes of a specification on the wire; an upper bound is not needed, only the order of magnitude.
fn size(record: &Record) -> usize {
    serde_json::to_vec(&record.spec).map_or(0, |text| text.len())
}

fn seed(record: &Record) -> Seed {
    Seed {
        id: record.id,
        placement_key: record.placement_key.clone(),
        needs: coordinator_core::planner::Needs {
            driver: record.driver.clone(),
            kind: record.spec.kind.kind_name(),
            site: None,
        },
        edition: record.edition(),
        size: size(record),
        deleting: record.deleting,
    }
}

fn writes(commit: Commit) -> Vec<StoreWrite> {
    let Commit { grants, put_members, remove_members } = commit;
    let mut writes: Vec<StoreWrite> = Vec::new();
    writes.extend(remove_members.into_iter().map(|life| StoreWrite::RemoveMember(life.worker, life.incarnation)));
    writes.extend(put_members.into_iter().map(StoreWrite::PutMember));
    if !grants.is_empty() {
        writes.push(StoreWrite::Grants(grants));
    }
    writes
}
