//! Carries out what the admin services ask for, and shows readers what the machine decided.

use std::sync::Arc;
use std::time::SystemTime;

use common::change::ApplianceTarget;
use common::{ApplianceId, Timestamp};
use coordinator_core::machine::{self, Event};
use runtime::clock;
use tracing::debug;

use super::{Leader, Written, seed, size};
use crate::catalog::{Fact, Prepared};
use crate::commands::{ChangeOutcome, Changed, Command, CommandError, Mutation, Reply};
use crate::store::StoreWrite;
use crate::views::{
    AssignmentView, ClusterView, CoordinationState, CoordinatorView, Explanation, MAX_UNOWNED, RingView,
    UnownedAppliance, UnownedView,
};

/// Answers a command that comes while the leader stops.
pub(super) fn refuse(command: Command) {
    match command {
        Command::Change { reply, .. } => drop(reply.send(Err(CommandError::Stopping))),
        Command::Check { reply, .. } => drop(reply.send(Err(CommandError::Stopping))),
        Command::Explain { reply, .. } => drop(reply.send(Err(CommandError::Stopping))),
        Command::Evict { reply, .. } | Command::Pause { reply, .. } | Command::Resume { reply, .. } => {
            drop(reply.send(Err(CommandError::Stopping)));
        }
    }
}

impl Leader<'_> {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Change { mutation, reply } => self.change(&mutation, reply),
            Command::Check { appliance, reply } => self.check(appliance, reply),
            Command::Explain { appliance, reply } => {
                let _ = reply.send(self.explain(appliance));
            }
            Command::Evict { worker, incarnation, request, reply } => self.evict(worker, incarnation, &request, reply),
            Command::Pause { request, reply } => self.pause(&request, reply),
            Command::Resume { request, reply } => self.resume(&request, reply),
        }
    }

    fn change(&mut self, mutation: &Mutation, reply: Reply<Changed>) {
        if reply.is_closed() {
            // The caller's deadline has passed: what it asked for must not happen behind its back.
            return;
        }
        match self.catalog.prepare(mutation, SystemTime::now()) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Prepared::Done(changed)) => drop(reply.send(Ok(changed))),
            Ok(Prepared::Write(write)) => {
                let mut change = Vec::with_capacity(3);
                if let Some(record) = write.record() {
                    change.push(StoreWrite::PutAppliance(record.as_ref().clone()));
                    change.push(StoreWrite::Event(write.audit().clone()));
                }
                change.extend(write.request().cloned().map(StoreWrite::Request));
                let pending = self.store.submit(change);
                let write = Box::new(write);
                self.writes.push(Box::pin(async move {
                    let result = pending.await;
                    Written::Change(write, reply, result)
                }));
            }
        }
    }

    /// The store has a change: everybody may know.
    pub(super) fn committed(&mut self, write: crate::catalog::Write, reply: Reply<Changed>) {
        let event = write.record().map(|record| match write.outcome() {
            ChangeOutcome::Created => Event::Created(seed(record)),
            ChangeOutcome::Changed | ChangeOutcome::Unchanged => Event::Updated {
                id: record.id,
                edition: record.edition(),
                kind: record.spec.kind.kind_name(),
                size: size(record),
                deleting: record.deleting,
            },
        });
        let changed = write.commit();
        if let Some(event) = event {
            self.step(event);
        }
        let _ = reply.send(Ok(changed));
    }

    fn check(&mut self, appliance: ApplianceId, reply: Reply<()>) {
        let entry = self.machine.table().slot(appliance).and_then(|slot| self.machine.table().get(slot));
        let Some(entry) = entry else {
            let target = ApplianceTarget::Id(appliance);
            drop(reply.send(Err(CommandError::NotFound(target))));
            return;
        };
        if entry.state.holder().is_none() {
            let reason = machine::reason(entry).into_owned();
            drop(reply.send(Err(CommandError::NoOwner { appliance, reason })));
            return;
        }
        let number = self.next_check;
        self.next_check += 1;
        let waiting = self.checks.entry(appliance).or_default();
        waiting.retain(|(_, reply)| !reply.is_closed());
        waiting.push((number, reply));
        self.step(Event::Check(appliance, number));
    }

    fn explain(&self, appliance: ApplianceId) -> Result<Explanation, CommandError> {
        let target = ApplianceTarget::Id(appliance);
        let not_found = || CommandError::NotFound(target.clone());
        let explained = self.machine.explain(clock::now(), appliance).ok_or_else(not_found)?;
        let entry = self.catalog.get(&target).ok_or_else(not_found)?;
        Ok(Explanation {
            position: common::ring::position(&entry.record.placement_key),
            summary: explained.summary,
            candidates: explained.candidates.into_iter().map(super::wire::candidate).collect(),
        })
    }

    pub(super) fn show_assignment(&mut self, id: ApplianceId) {
        let table = self.machine.table();
        let Some(entry) = table.slot(id).and_then(|slot| table.get(slot)) else { return };
        let acting = entry.state.grant().filter(|_| !entry.state.wants_owner());
        let view = AssignmentView {
            state: entry.state.name(),
            worker: acting.map(|g| g.worker.clone()),
            token: acting.map(|g| g.token),
            reason: machine::reason(entry),
            site: entry.needs.site.clone(),
        };
        debug!(appliance = %id, state = view.state, worker = ?view.worker, token = ?view.token, "assignment");
        self.facts.push(Fact::Assignment(id, view));
    }

    pub(super) fn show_ring(&self, version: u64) {
        let planner = self.machine.planner();
        let config = &self.machine.config().planner;
        self.catalog.set_ring(RingView {
            version,
            ring: Arc::new(planner.ring().clone()),
            strategy: config.strategy,
            band: config.band,
        });
    }

    pub(super) fn show_cluster(&self, now: Timestamp) {
        let counters = self.machine.counters();
        let (suspects, quarantined) = self.machine.suspects();
        self.catalog.set_cluster(ClusterView {
            coordinator: self.identity.coordinator.clone(),
            term: self.machine.term(),
            leading: true,
            started: self.identity.started,
            waiting: self.machine.waiting(now).unwrap_or_default(),
            moves_in_flight: self.machine.moves_in_flight(),
            violations: counters.violations,
            store: self.identity.store.clone(),
            coordination: self.identity.coordination.clone(),
            coordination_state: self.coordination_state(),
            coordinators: self.coordinators(),
            frozen: self.frozen_view(now),
            paused: self.paused.clone(),
            stalled_moves: self.machine.stalled_moves(),
            notes: self.notes(),
            violation_kinds: counters.kinds.iter().map(|(kind, n)| (kind.name(), n)).collect(),
            last_violation: self.last_violation,
            unowned: self.unowned_view(),
            suspects,
            quarantined,
            store_problem: self.store.outage().map(|cause| cause.to_string()),
        });
    }

    fn unowned_view(&self) -> UnownedView {
        let (unowned, table) = (self.machine.unowned(), self.machine.table());
        let oldest = unowned.oldest().filter_map(|(since, slot)| {
            let entry = table.get(slot)?;
            let shown = self.catalog.get(&ApplianceTarget::Id(entry.id))?;
            Some(UnownedAppliance {
                id: entry.id,
                tenant: shown.record.tenant.clone(),
                name: shown.record.name.clone(),
                since: self.wall(since),
                state: entry.state.name(),
                reason: machine::reason(entry),
            })
        });
        UnownedView { appliances: unowned.len() as u64, oldest: oldest.take(MAX_UNOWNED).collect() }
    }

    /// A moment of this term by the wall clock as it was when the term began: the same whenever it is asked for.
    fn wall(&self, at: Timestamp) -> SystemTime {
        let (began, wall) = self.began;
        wall.checked_add(at.since(began)).unwrap_or(wall)
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
    fn coordination_state(&self) -> CoordinationState {
        let blind = self.roster.is_some() && self.identity.coordinators.borrow().is_empty();
        if blind { CoordinationState::InDoubt } else { CoordinationState::Connected }
    }

    fn notes(&self) -> Vec<String> {
        let outage = self.store.outage().map(|cause| {
            format!(
                "the database does not answer ({cause}): reads go on from memory, changes are refused until it is back"
            )
        });
        outage.into_iter().chain(self.notes.list()).collect()
    }
}
