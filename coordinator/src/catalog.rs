//! Everything readers need, in memory: appliances with status and assignment, workers, the ring, running rebalances.
//!
//! One writer (the leader), many readers. Readers take a short read lock and walk away with `Arc`s; long walks go in
//! slices ([`Catalog::scan`]), so that the writer never waits for more than one of them. What the store does not have
//! yet is never visible: changes are checked by [admission](crate::admission) and shown here once they are durable.
//!
//! Changes are broadcast under the write lock; a snapshot and a subscription taken under one read lock leave no gap.

mod counts;
mod filter;
mod troubles;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use common::appliance::FieldViolation;
use common::change::ApplianceTarget;
use common::status::Status;
use common::{ApplianceId, RebalanceId, WorkerId};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::record::Record;
use crate::views::{
    ApplianceKey, AssignmentView, CatalogEntry, ClusterView, RebalanceView, RingView, WithheldStep, WorkerView,
};

pub use counts::{Counts, PhaseCounts};
pub use filter::Filter;
pub use troubles::Troubles;

/// Latest rebalances kept in memory; older ones are read from the store.
const REBALANCES: usize = 64;
/// Entries looked at under one read lock: some hundred microseconds.
const SLICE: usize = 4096;

/// Settings of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Most appliances of the cluster. Each takes about 1 KiB of the coordinator's memory; raising it takes more.
    pub max_appliances: usize,
    /// Changes a watcher may fall behind before its stream ends and it has to watch again. Raising it costs some 100
    /// bytes each, lowering it breaks the watches of slow clients.
    pub watch_buffer: usize,
    /// Most request ids remembered (for 24 h each). Beyond it the oldest are forgotten: a repeat of them is carried out
    /// again. Each takes about 150 bytes.
    pub max_requests: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_appliances: 1_000_000, watch_buffer: 16_384, max_requests: 500_000 }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.max_appliances == 0 {
            found.push(FieldViolation::new("max_appliances", "must be at least 1"));
        }
        if !(16..=1 << 20).contains(&self.watch_buffer) {
            found.push(FieldViolation::new("watch_buffer", "must be 16 to 1048576"));
        }
        if self.max_requests == 0 {
            found.push(FieldViolation::new("max_requests", "must be at least 1"));
        }
        found
    }
}

/// What needs no check: the machine decided it, or the owner reported it.
#[derive(Clone, Debug)]
pub enum Fact {
    /// What an owner reported.
    Status(ApplianceId, Arc<Status>, SystemTime),
    /// Who holds it now.
    Assignment(ApplianceId, AssignmentView),
    /// What its owner would have done if hands were on it, newest first.
    Withheld(ApplianceId, Vec<WithheldStep>),
    /// Nothing is left of it, and the store has that.
    Removed(ApplianceId),
}

/// A change of one appliance.
#[derive(Clone, Debug)]
pub struct ApplianceChange {
    /// What it was; `None` when it is new.
    pub before: Option<Arc<CatalogEntry>>,
    /// What it is; `None` when it is gone.
    pub after: Option<Arc<CatalogEntry>>,
}

/// A change of one worker.
#[derive(Clone, Debug)]
pub enum WorkerChange {
    /// It was not there before.
    Joined(Arc<WorkerView>),
    /// Something about it is different.
    Changed(Arc<WorkerView>),
    /// It is not shown any more.
    Gone(Arc<WorkerView>),
}

/// See the module.
#[derive(Debug)]
pub struct Catalog {
    config: Config,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    entries: HashMap<ApplianceId, Arc<CatalogEntry>>,
    names: BTreeMap<ApplianceKey, ApplianceId>,
    counts: Counts,
    troubled: troubles::Candidates,
    /// Of those that debug modes cover.
    withheld: HashMap<ApplianceId, Arc<[WithheldStep]>>,
    workers: BTreeMap<WorkerId, Arc<WorkerView>>,
    rebalances: BTreeMap<RebalanceId, Arc<RebalanceView>>,
    ring: Option<Arc<RingView>>,
    cluster: Option<Arc<ClusterView>>,
    /// What each source tells people; the cluster is shown with it.
    source_notes: BTreeMap<&'static str, Vec<String>>,
    watchers: Watchers,
}

#[derive(Debug)]
struct Watchers {
    appliances: broadcast::Sender<ApplianceChange>,
    workers: broadcast::Sender<WorkerChange>,
    rebalances: broadcast::Sender<Arc<RebalanceView>>,
    /// Anything that the state of the cluster as a whole is made of.
    cluster: watch::Sender<()>,
}

impl Watchers {
    fn new(buffer: usize) -> Self {
        Self {
            appliances: broadcast::Sender::new(buffer),
            workers: broadcast::Sender::new(buffer.min(1024)),
            rebalances: broadcast::Sender::new(buffer.min(1024)),
            cluster: watch::Sender::new(()),
        }
    }

    fn cluster_changed(&self) {
        if self.cluster.receiver_count() > 0 {
            self.cluster.send_replace(());
        }
    }
}

impl State {
    fn new(config: &Config) -> Self {
        Self {
            entries: HashMap::new(),
            names: BTreeMap::new(),
            counts: Counts::default(),
            troubled: troubles::Candidates::default(),
            withheld: HashMap::new(),
            workers: BTreeMap::new(),
            rebalances: BTreeMap::new(),
            ring: None,
            cluster: None,
            source_notes: BTreeMap::new(),
            watchers: Watchers::new(config.watch_buffer),
        }
    }

    fn find(&self, target: &ApplianceTarget) -> Option<&Arc<CatalogEntry>> {
        let id = match target {
            ApplianceTarget::Id(id) => *id,
            ApplianceTarget::Name(tenant, name) => *self.names.get(&(tenant.clone(), name.clone()))?,
        };
        self.entries.get(&id)
    }

    /// Puts an entry in the place of the former one of the same id and tells watchers.
    fn put(&mut self, entry: CatalogEntry) -> Arc<CatalogEntry> {
        let entry = Arc::new(entry);
        let id = entry.record.id;
        let before = self.entries.insert(id, Arc::clone(&entry));
        if let Some(before) = &before {
            self.counts.take(before);
        }
        self.counts.add(&entry);
        self.troubled.note(&entry);
        self.tell(before, Some(Arc::clone(&entry)));
        entry
    }

    fn remove(&mut self, id: ApplianceId) {
        let Some(before) = self.entries.remove(&id) else { return };
        let key = before.key();
        if self.names.get(&key) == Some(&id) {
            self.names.remove(&key);
        }
        self.counts.take(&before);
        self.troubled.forget(id);
        self.withheld.remove(&id);
        self.tell(Some(before), None);
    }

    fn tell(&self, before: Option<Arc<CatalogEntry>>, after: Option<Arc<CatalogEntry>>) {
        // An error means that nobody listens.
        if self.watchers.appliances.receiver_count() > 0 {
            let _ = self.watchers.appliances.send(ApplianceChange { before, after });
        }
        self.watchers.cluster_changed();
    }
}

impl Catalog {
    /// An empty catalog.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let state = RwLock::new(State::new(&config));
        Self { config, state }
    }

    /// Its settings.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    // A panic under the lock leaves no half-made state that matters more than answering: every update ends with whole
    // entries in place, and the leader dies with such a panic anyway.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    // ------------------------------------------------------------------------------------------- the writer's half

    /// Replaces everything by what the store has, as a new leader does. Watches end; their clients watch again.
    pub fn load(&self, entries: Vec<CatalogEntry>, rebalances: Vec<RebalanceView>) {
        let mut fresh = State::new(&self.config);
        for entry in entries {
            let id = entry.record.id;
            fresh.names.insert(entry.key(), id);
            fresh.counts.add(&entry);
            fresh.troubled.note(&entry);
            fresh.entries.insert(id, Arc::new(entry));
        }
        fresh.rebalances = rebalances.into_iter().map(|r| (r.record.id, Arc::new(r))).collect();
        let former = {
            let mut state = self.write();
            fresh.cluster = state.cluster.take();
            fresh.source_notes = std::mem::take(&mut state.source_notes);
            std::mem::replace(&mut *state, fresh)
        };
        // A million entries take a while to drop, which needs no lock.
        drop(former);
    }

    /// Shows a record that the store has now: a new appliance, or a change of one. Status and assignment stay as they are.
    pub(crate) fn put_record(&self, record: &Arc<Record>) -> Arc<CatalogEntry> {
        let mut state = self.write();
        let id = record.id;
        let before = state.entries.get(&id).cloned();
        let (status, assignment) = before
            .as_ref()
            .map_or((None, AssignmentView::default()), |entry| (entry.status.clone(), entry.assignment.clone()));
        let entry = CatalogEntry { record: Arc::clone(record), status, assignment };
        let key = entry.key();
        if let Some(former) = before.map(|entry| entry.key()).filter(|former| *former != key) {
            state.names.remove(&former);
        }
        state.names.insert(key, id);
        state.put(entry)
    }

    /// Applies facts, in order, under one lock. Those about appliances that are not there are dropped.
    pub fn apply(&self, facts: impl IntoIterator<Item = Fact>) {
        let mut state = self.write();
        for fact in facts {
            match fact {
                Fact::Status(id, status, time) => {
                    if let Some(entry) = state.entries.get(&id) {
                        let entry = CatalogEntry { status: Some((status, time)), ..CatalogEntry::clone(entry) };
                        state.put(entry);
                    }
                }
                Fact::Assignment(id, assignment) => {
                    if let Some(entry) = state.entries.get(&id).filter(|e| e.assignment != assignment) {
                        let entry = CatalogEntry { assignment, ..CatalogEntry::clone(entry) };
                        state.put(entry);
                    }
                }
                Fact::Withheld(id, steps) => {
                    if steps.is_empty() || !state.entries.contains_key(&id) {
                        state.withheld.remove(&id);
                    } else {
                        state.withheld.insert(id, steps.into());
                    }
                }
                Fact::Removed(id) => state.remove(id),
            }
        }
    }

    /// Notes how a worker is now. Watchers hear of it unless only `last_seen` differs.
    pub fn set_worker(&self, worker: WorkerView) {
        let mut state = self.write();
        let worker = Arc::new(worker);
        let change = match state.workers.insert(worker.id.clone(), Arc::clone(&worker)) {
            None => WorkerChange::Joined(worker),
            Some(before) => {
                let same = WorkerView { last_seen: worker.last_seen, ..WorkerView::clone(&before) } == *worker;
                if same {
                    return;
                }
                WorkerChange::Changed(worker)
            }
        };
        let _ = state.watchers.workers.send(change);
        state.watchers.cluster_changed();
    }

    /// Forgets the workers that are not among these.
    pub fn retain_workers(&self, known: &BTreeSet<WorkerId>) {
        let mut state = self.write();
        let gone: Vec<_> = state.workers.keys().filter(|id| !known.contains(*id)).cloned().collect();
        for id in gone {
            if let Some(worker) = state.workers.remove(&id) {
                let _ = state.watchers.workers.send(WorkerChange::Gone(worker));
                state.watchers.cluster_changed();
            }
        }
    }

    /// Replaces the ring.
    pub fn set_ring(&self, ring: RingView) {
        self.write().ring = Some(Arc::new(ring));
    }

    /// Replaces what is said of the cluster as a whole.
    pub fn set_cluster(&self, mut cluster: ClusterView) {
        let mut state = self.write();
        cluster.notes.extend(state.source_notes.values().flatten().cloned());
        state.cluster = Some(Arc::new(cluster));
        state.watchers.cluster_changed();
    }

    /// Replaces what one source tells people.
    pub(crate) fn set_source_notes(&self, source: &'static str, notes: Vec<String>) {
        let mut state = self.write();
        let shown = state.source_notes.values().map(Vec::len).sum::<usize>();
        let former =
            if notes.is_empty() { state.source_notes.remove(source) } else { state.source_notes.insert(source, notes) };
        if former.as_ref().unwrap_or(&Vec::new()) == state.source_notes.get(source).unwrap_or(&Vec::new()) {
            return;
        }
        if let Some(cluster) = state.cluster.take() {
            let mut cluster = Arc::unwrap_or_clone(cluster);
            cluster.notes.truncate(cluster.notes.len().saturating_sub(shown));
            cluster.notes.extend(state.source_notes.values().flatten().cloned());
            state.cluster = Some(Arc::new(cluster));
        }
        state.watchers.cluster_changed();
    }

    /// Notes a rebalance that began, went on or ended, and tells watchers. The latest 64 stay in memory.
    pub fn set_rebalance(&self, rebalance: RebalanceView) {
        let mut state = self.write();
        let rebalance = Arc::new(rebalance);
        state.rebalances.insert(rebalance.record.id, Arc::clone(&rebalance));
        while state.rebalances.len() > REBALANCES {
            state.rebalances.pop_first();
        }
        let _ = state.watchers.rebalances.send(rebalance);
    }

    /// Ends all watches; part of stopping, so that open streams do not hold the server up.
    pub fn close_watches(&self) {
        let mut state = self.write();
        state.watchers = Watchers::new(self.config.watch_buffer);
    }

    // ------------------------------------------------------------------------------------------ the readers' half

    /// What the owner of an appliance would have done if hands were on it, newest first.
    #[must_use]
    pub fn withheld(&self, id: ApplianceId) -> Option<Arc<[WithheldStep]>> {
        self.read().withheld.get(&id).cloned()
    }

    /// One appliance.
    #[must_use]
    pub fn get(&self, target: &ApplianceTarget) -> Option<Arc<CatalogEntry>> {
        self.read().find(target).cloned()
    }

    /// The appliance with this name.
    #[must_use]
    pub fn id_of(&self, key: &ApplianceKey) -> Option<ApplianceId> {
        self.read().names.get(key).copied()
    }

    /// Looks at every appliance under one lock, in no order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&CatalogEntry)) {
        self.read().entries.values().for_each(|entry| visit(entry));
    }

    /// Number of appliances.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Looks at a slice of the appliances that match, ordered by tenant and name, from after `from` on, as long as
    /// `visit` says `true`. Answers where to go on; `None` at the end. Between two slices the catalog may change; an
    /// appliance that stays is met once.
    pub fn scan(
        &self,
        filter: &Filter,
        from: Option<&ApplianceKey>,
        mut visit: impl FnMut(&Arc<CatalogEntry>) -> bool,
    ) -> Option<ApplianceKey> {
        let state = self.read();
        let lower = match (from, &filter.tenant) {
            (Some(key), _) => Bound::Excluded(key.clone()),
            (None, Some(tenant)) => match filter.first_name() {
                Some(name) => Bound::Included((tenant.clone(), name)),
                None => Bound::Unbounded,
            },
            (None, None) => Bound::Unbounded,
        };
        for (seen, (key, id)) in state.names.range((lower, Bound::Unbounded)).enumerate() {
            if filter.is_past(key) {
                return None;
            }
            if let Some(entry) = state.entries.get(id).filter(|e| filter.matches(e))
                && !visit(entry)
            {
                return None;
            }
            if seen + 1 >= SLICE {
                return Some(key.clone());
            }
        }
        None
    }

    /// All appliances that match, and the changes from then on. Takes the lock once, so that nothing is missed: with a
    /// million appliances that is some 50 ms, the price of a watch without gaps.
    #[must_use]
    pub fn watch(&self, filter: &Filter) -> (Vec<Arc<CatalogEntry>>, broadcast::Receiver<ApplianceChange>) {
        let state = self.read();
        let receiver = state.watchers.appliances.subscribe();
        let entries = state.names.values().filter_map(|id| state.entries.get(id));
        (entries.filter(|e| filter.matches(e)).cloned().collect(), receiver)
    }

    /// Workers, by name, from after `from` on.
    #[must_use]
    pub fn workers(&self, from: Option<&WorkerId>, limit: usize) -> Vec<(Arc<WorkerView>, PhaseCounts)> {
        let state = self.read();
        let lower = from.map_or(Bound::Unbounded, Bound::Excluded);
        let range = state.workers.range::<WorkerId, _>((lower, Bound::Unbounded));
        range.take(limit).map(|(id, w)| (Arc::clone(w), state.counts.of(id))).collect()
    }

    /// One worker.
    #[must_use]
    pub fn worker(&self, id: &WorkerId) -> Option<(Arc<WorkerView>, PhaseCounts)> {
        let state = self.read();
        state.workers.get(id).map(|w| (Arc::clone(w), state.counts.of(id)))
    }

    /// All workers, and the changes from then on.
    #[must_use]
    pub fn watch_workers(&self) -> (Vec<(Arc<WorkerView>, PhaseCounts)>, broadcast::Receiver<WorkerChange>) {
        let state = self.read();
        let workers = state.workers.iter().map(|(id, w)| (Arc::clone(w), state.counts.of(id)));
        (workers.collect(), state.watchers.workers.subscribe())
    }

    /// Rebalances in memory before `before`, newest first.
    #[must_use]
    pub fn rebalances(&self, before: Option<RebalanceId>) -> Vec<Arc<RebalanceView>> {
        let upper = before.map_or(Bound::Unbounded, Bound::Excluded);
        self.read().rebalances.range((Bound::Unbounded, upper)).rev().map(|(_, r)| Arc::clone(r)).collect()
    }

    /// A rebalance that is in memory.
    #[must_use]
    pub fn rebalance(&self, id: RebalanceId) -> Option<Arc<RebalanceView>> {
        self.read().rebalances.get(&id).cloned()
    }

    /// The rebalances that run, and the changes from then on.
    #[must_use]
    pub fn watch_rebalances(&self) -> (Vec<Arc<RebalanceView>>, broadcast::Receiver<Arc<RebalanceView>>) {
        let state = self.read();
        let running = state.rebalances.values().filter(|r| r.record.ended.is_none()).cloned().collect();
        (running, state.watchers.rebalances.subscribe())
    }

    /// The ring; `None` before the first membership is known.
    #[must_use]
    pub fn ring(&self) -> Option<Arc<RingView>> {
        self.read().ring.clone()
    }

    /// The cluster as a whole, and how much of everything there is. `None` before the leader has started.
    #[must_use]
    pub fn cluster(&self) -> Option<(Arc<ClusterView>, Counts, Vec<Arc<WorkerView>>)> {
        let state = self.read();
        let cluster = state.cluster.clone()?;
        Some((cluster, state.counts.clone(), state.workers.values().cloned().collect()))
    }

    /// What is wrong with instances at `now`.
    #[must_use]
    pub fn troubles(&self, now: SystemTime) -> Troubles {
        let state = self.read();
        state.troubled.judge(|id| state.entries.get(id), now)
    }

    /// Tells whenever [`cluster`](Self::cluster) may have another answer; ends with the watches.
    #[must_use]
    pub fn watch_cluster(&self) -> watch::Receiver<()> {
        self.read().watchers.cluster.subscribe()
    }

    /// Appliances a worker holds, by phase.
    #[must_use]
    pub fn held_by(&self, worker: &WorkerId) -> PhaseCounts {
        self.read().counts.of(worker)
    }
}
