//! What the leader shows: appliances, workers, the ring and the cluster go to the catalog, counts to the metrics, and what
//! was observed to the store.
//!
//! The leader notes what has changed while it works, and publishes once per turn. What changes with time alone (health,
//! when a worker was last seen) is shown anew every [`REFRESH`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::change::ApplianceTarget;
use common::cluster::ClusterIdentity;
use common::session::StatusReport;
use common::{ApplianceId, CoordinatorId, RebalanceId, Timestamp, WorkerId};
use coordinator_core::machine::Machine;
use coordinator_core::membership::LeaseAuthority;
use coordinator_core::rebalance::RebalanceEvent;
use runtime::{clock, log_limited};
use tracing::debug;
use uuid::Uuid;

use super::convert;
use super::notes::Notes;
use super::orders::OrderBook;
use super::rebalances::RebalanceHistory;
use super::{Identity, LeaderSetup};
use crate::catalog::{Catalog, Fact};
use crate::metrics::{self, Counted, RebalanceTally};
use crate::store::{Store, StoreProblem};
use crate::views::{
    AssignmentView, ClusterView, CoordinationState, CoordinatorView, LeaderView, MAX_UNOWNED, PausedView,
    PlacementView, UnownedAppliance, UnownedView, ViolationsView,
};

/// How often what changes with time alone is shown anew.
pub(super) const REFRESH: Duration = Duration::from_secs(1);

/// How often a status is stored that has not changed: after a restart of the coordinator its time is at most so old.
const RESTORE: Duration = Duration::from_secs(600);

/// Moments of this term by the wall clock as it was when the term began: the same whenever they are asked for.
#[derive(Clone, Copy, Debug)]
struct TermClock {
    began: Timestamp,
    wall: SystemTime,
}

impl TermClock {
    fn wall(&self, at: Timestamp) -> SystemTime {
        self.wall.checked_add(at.since(self.began)).unwrap_or(self.wall)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Publisher {
    catalog: Arc<Catalog>,
    /// What is in the metrics of this term's counts.
    counted: Counted,
    rebalances: RebalanceTally,
    store: Store,
    identity: Identity,
    cluster: ClusterIdentity,
    clock: TermClock,
    paused: Option<PausedView>,
    /// What operators order, and who does.
    pub(super) orders: OrderBook,
    /// What the catalog is to be told.
    facts: Vec<Fact>,
    changed_workers: BTreeSet<WorkerId>,
    /// The state of the cluster is to be shown at once.
    cluster_changed: bool,
    /// The ring that is shown.
    ring_version: Option<u64>,
    refreshed: Option<Timestamp>,
    /// When it was last stored of all workers when they were seen.
    seen_stored: Option<Timestamp>,
}

impl Publisher {
    /// This coordinator.
    pub(super) const fn coordinator(&self) -> &CoordinatorId {
        &self.identity.coordinator
    }

    /// A publisher for the term that began at `began`, of the cluster with this id, while an operator has stopped planning if
    /// `paused` says so, and with these orders in force.
    pub(super) fn new(
        setup: &LeaderSetup,
        store: Store,
        cluster: Uuid,
        began: Timestamp,
        (paused, orders): (Option<PausedView>, OrderBook),
    ) -> Self {
        Self {
            catalog: Arc::clone(&setup.catalog),
            counted: Counted::default(),
            rebalances: RebalanceTally::default(),
            store,
            identity: setup.identity.clone(),
            cluster: ClusterIdentity { id: cluster, name: setup.identity.cluster_name.clone() },
            clock: TermClock { began, wall: SystemTime::now() },
            paused,
            orders,
            facts: Vec::new(),
            changed_workers: BTreeSet::new(),
            cluster_changed: true,
            ring_version: None,
            refreshed: None,
            seen_stored: None,
        }
    }

    /// Notes who holds an appliance now.
    pub(super) fn assigned(&mut self, machine: &Machine, id: ApplianceId) {
        let Some(view) = convert::assignment(machine, id) else { return };
        let view = AssignmentView { pin: self.orders.pin(id), ..view };
        debug!(appliance = %id, state = view.state, worker = ?view.worker, token = ?view.token, "assignment");
        self.facts.push(Fact::Assignment(id, view));
    }

    /// Notes that nothing is left of an appliance.
    pub(super) fn removed(&mut self, id: ApplianceId) {
        self.orders.removed(id);
        self.facts.push(Fact::Removed(id));
    }

    /// Notes what owners report, and stores it.
    pub(super) fn reported(&mut self, reports: Vec<StatusReport>) {
        let now = SystemTime::now();
        let mut stored = Vec::with_capacity(reports.len());
        for report in reports {
            let id = report.appliance;
            let known = self.catalog.get(&ApplianceTarget::Id(id)).and_then(|entry| entry.status.clone());
            let news = known.is_none_or(|(status, at)| *status != report.status || is_due(id, at, now));
            self.facts.push(Fact::Status(id, Arc::new(report.status.clone()), now));
            let withheld = report.would_have.into_iter().map(|step| convert::withheld(step, now)).collect();
            self.facts.push(Fact::Withheld(id, withheld));
            if news {
                stored.push((id, report.status, now));
            }
        }
        self.store.submit_statuses(stored);
    }

    /// Notes that a worker joined, changed or is gone.
    pub(super) fn worker_changed(&mut self, worker: WorkerId) {
        self.cluster_changed = true;
        self.changed_workers.insert(worker);
    }

    /// Whether workers have changed since they were shown last.
    pub(super) fn has_changed_workers(&self) -> bool {
        !self.changed_workers.is_empty()
    }

    /// Notes that the state of the cluster as a whole has changed.
    pub(super) const fn cluster_changed(&mut self) {
        self.cluster_changed = true;
    }

    /// Notes that an operator has stopped planning, or lets it go on.
    pub(super) fn set_paused(&mut self, paused: Option<PausedView>) {
        self.paused = paused;
    }

    /// Goes on counting a rebalance that a former leader began, for this cause.
    pub(super) fn inherit_rebalance(&mut self, id: RebalanceId, cause: Option<&'static str>) {
        self.rebalances.inherit(id, cause);
    }

    /// Counts how a rebalance goes on.
    pub(super) fn count_rebalance(&mut self, event: &RebalanceEvent) {
        self.rebalances.count(event);
    }

    /// Shows what was noted of appliances. Callers who are answered next look into the catalog.
    pub(super) fn flush(&mut self) {
        if !self.facts.is_empty() {
            self.catalog.apply(self.facts.drain(..));
        }
    }

    /// Shows everything that has changed since the last time.
    pub(super) fn publish(&mut self, machine: &Machine, notes: &Notes, rebalances: &mut RebalanceHistory) {
        self.flush();
        for view in rebalances.take_changed() {
            self.catalog.set_rebalance(view);
        }
        metrics::count(&mut self.counted, &machine.counters(), &machine.audits());
        let now = clock::now();
        let refresh = self.refreshed.is_none_or(|at| now.since(at) >= REFRESH);
        if refresh {
            metrics::backlog(machine.backlog());
            self.show_workers(machine, now);
        } else if !self.changed_workers.is_empty() {
            self.show_changed_workers(machine, now);
        }
        let version = machine.planner().ring_version();
        if self.ring_version != Some(version) {
            self.ring_version = Some(version);
            self.catalog.set_ring(convert::ring_view(machine));
            for note in convert::ring_notes(machine) {
                log_limited!(warn, "{note}");
            }
        }
        if refresh || self.cluster_changed {
            self.show_cluster(machine, notes, now);
            self.cluster_changed = false;
        }
        if refresh {
            self.refreshed = Some(now);
        }
    }

    /// Shows every worker there is, and no other.
    pub(super) fn show_workers(&mut self, machine: &Machine, now: Timestamp) {
        let wall = SystemTime::now();
        let all = machine.workers(now);
        self.catalog.retain_workers(&all.iter().map(|view| view.id.clone()).collect());
        let stored = self.seen_stored.is_none_or(|at| now.since(at) >= self.store.seen_interval());
        if stored {
            self.seen_stored = Some(now);
        }
        for view in all {
            if stored || self.changed_workers.contains(&view.id) {
                self.store.submit_seen(view.id.clone(), wall.checked_sub(view.silent).unwrap_or(wall));
            }
            let orders = self.orders.worker(&view.id);
            self.catalog.set_worker(convert::worker_view(view, orders, wall));
        }
        self.changed_workers.clear();
    }

    fn show_changed_workers(&mut self, machine: &Machine, now: Timestamp) {
        let wall = SystemTime::now();
        for view in machine.workers(now) {
            if self.changed_workers.contains(&view.id) {
                self.store.submit_seen(view.id.clone(), wall.checked_sub(view.silent).unwrap_or(wall));
                let orders = self.orders.worker(&view.id);
                self.catalog.set_worker(convert::worker_view(view, orders, wall));
            }
        }
        self.changed_workers.clear();
    }

    /// Shows the state of the cluster as a whole.
    pub(super) fn show_cluster(&self, machine: &Machine, notes: &Notes, now: Timestamp) {
        let violations = notes.violations().counts(&machine.counters().kinds);
        let (suspects, quarantined) = machine.suspects();
        let problem = self.store.problem();
        self.catalog.set_cluster(ClusterView {
            term: machine.term(),
            identity: self.cluster.clone(),
            leader: self.leader(machine),
            placement: PlacementView {
                waiting: machine.waiting(now).unwrap_or_default(),
                moves_in_flight: machine.moves_in_flight(),
                stalled_moves: machine.stalled_moves(),
                frozen: convert::frozen(machine, now),
                paused: self.paused.clone(),
                orders: self.orders.view(),
            },
            violations: ViolationsView {
                count: violations.total(),
                kinds: violations.iter().map(|(kind, n)| (kind.name(), n)).collect(),
                last: notes.violations().last(),
            },
            unowned: self.unowned(machine),
            suspects,
            quarantined,
            notes: problem
                .iter()
                .map(problem_note)
                .chain(convert::fence_note(machine, now))
                .chain(convert::ring_notes(machine))
                .chain(notes.list())
                .collect(),
            store_problem: problem,
        });
    }

    fn leader(&self, machine: &Machine) -> LeaderView {
        LeaderView {
            coordinator: self.identity.coordinator.clone(),
            started: self.identity.started,
            store: self.identity.store.clone(),
            coordination: self.identity.coordination.clone(),
            coordination_state: self.coordination_state(machine),
            coordinators: self.coordinators(),
        }
    }

    fn unowned(&self, machine: &Machine) -> UnownedView {
        let (unowned, table) = (machine.unowned(), machine.table());
        let oldest = unowned.oldest().filter_map(|(since, slot)| {
            let row = table.get(slot)?;
            let shown = self.catalog.get(&ApplianceTarget::Id(row.id))?;
            Some(UnownedAppliance {
                id: row.id,
                tenant: shown.record.tenant.clone(),
                name: shown.record.name.clone(),
                since: self.clock.wall(since),
                state: row.state.name(),
                reason: machine.reason(slot),
            })
        });
        UnownedView { appliances: unowned.len() as u64, oldest: oldest.take(MAX_UNOWNED).collect() }
    }

    /// The coordinators that are there; this one, which leads, whatever the others' nodes tell so far.
    fn coordinators(&self) -> Vec<CoordinatorView> {
        let own = &self.identity.coordinator;
        let mut all: Vec<_> =
            self.identity.coordinators.borrow().iter().filter(|one| one.id != *own).cloned().collect();
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let others = all.into_iter().map(|one| CoordinatorView { id: one.id, address: one.address, leading: false });
        let itself = CoordinatorView { id: own.clone(), address: self.identity.address.clone(), leading: true };
        std::iter::once(itself).chain(others).collect()
    }

    /// Whether the service that tells of coordinators could be read lately.
    fn coordination_state(&self, machine: &Machine) -> CoordinationState {
        let external = machine.config().authority == LeaseAuthority::External;
        let blind = external && self.identity.coordinators.borrow().is_empty();
        if blind { CoordinationState::InDoubt } else { CoordinationState::Connected }
    }
}

/// Whether a status that says the same again is to be stored for its time alone: once in [`RESTORE`], each appliance at a
/// moment of its own.
fn is_due(id: ApplianceId, before: SystemTime, now: SystemTime) -> bool {
    let offset = Duration::from_secs(u64::from(id.as_bytes()[15]));
    let count = |at: SystemTime| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + offset;
        since.as_secs() / RESTORE.as_secs()
    };
    count(before) != count(now)
}

fn problem_note(problem: &StoreProblem) -> String {
    // `rugctl doctor` knows the first words: it has a check of its own for the store.
    format!("the database takes no changes: {}; reads go on from memory", problem.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_says_the_same_is_stored_once_in_ten_minutes() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        for n in [0, 7, 255] {
            let id = ApplianceId::from_u128(n);
            let due = (0_u64..120).filter(|minute| is_due(id, at(minute * 60), at((minute + 1) * 60))).count();
            assert_eq!(due, 12, "in two hours, reported each minute");
        }
    }
}
