//! Carries out what callers ask of the leader.

use std::time::SystemTime;

use common::appliance::FieldViolation;
use common::change::ApplianceTarget;
use common::telemetry::{SamplingOrder, TelemetryOrder};
use common::{ApplianceId, Incarnation, Life, RebalanceId, Site, WorkerId};
use coordinator_core::budget::BudgetView;
use coordinator_core::grants::GrantOp;
use coordinator_core::machine::{Commit, Event, Pause, UnbindNumber, UnbindRefused};
use runtime::{clock, telemetry};
use tracing::{Span, info};

use super::Leader;
use super::convert::{self, seed, size, subject};
use super::inquiries::ChangeCall;
use super::waiting::UnbindCaller;
use super::writes::{PauseChange, PauseReply};
use crate::admission::{Admitted, AdmittedChange};
use crate::commands::{Change, ChangeOutcome, Changed, Command, CommandError, Mutation, Operator, Reply};
use crate::record::{AuditEvent, PauseRecord};
use crate::store::StoreWrite;
use crate::tuning::TuningChange;
use crate::views::{BudgetStatus, Explanation, PausedView};

impl Leader<'_> {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Change { mutation, caller, deadline, reply } => {
                self.change(ChangeCall { mutation, caller, deadline, reply });
            }
            Command::Check { appliance, reply } => self.check(appliance, reply),
            Command::ReadLog { query, deadline, reply } => self.read_log(*query, deadline, reply),
            Command::ReloadConfig { worker, request, deadline, reply } => {
                self.reload_config(worker, &request, deadline, reply);
            }
            Command::Execute { asked, request, deadline, reply } => self.execute(*asked, &request, deadline, reply),
            Command::GoOnExecuting { appliance, execution, step, deadline, reply } => {
                self.go_on_executing(appliance, execution, *step, deadline, reply);
            }
            Command::Explain { appliance, reply } => {
                let _ = reply.send(self.explain(appliance));
            }
            Command::Evict { worker, incarnation, request, reply } => self.evict(worker, incarnation, &request, reply),
            Command::Witness { worker, process, by, reply } => {
                self.container_ended(worker, process, by);
                let _ = reply.send(Ok(()));
            }
            Command::Forget { worker, request, reply } => {
                let _ = reply.send(self.forget(worker, &request));
            }
            Command::Unbind { appliance, site, request, reply } => {
                self.unbind(UnbindCaller { appliance, request, reply }, site);
            }
            Command::SetMode { mode, request, until, reply } => self.set_mode(mode, request, until, reply),
            Command::ClearMode { mode, request, reply } => self.clear_mode(mode, request, reply),
            Command::Mode { mode, reply } => drop(reply.send(self.mode_view(mode))),
            Command::Modes { after, most, reply } => drop(reply.send(Ok(self.mode_list(after, most)))),
            Command::StartRollout { new, request, reply } => self.start_rollout(*new, &request, reply),
            Command::OrderRollout { rollout, order, request, reply } => {
                self.order_rollout(rollout, order, &request, reply);
            }
            Command::Rollout { rollout, reply } => drop(reply.send(self.rollout(rollout))),
            Command::Rollouts { reply } => drop(reply.send(Ok(self.rollout_list()))),
            Command::Pause { moves_only, request, reply } => self.pause(moves_only, &request, reply),
            Command::AbortRebalance { rebalance, request, reply } => {
                self.abort_rebalance(rebalance, &request, reply);
            }
            Command::Budgets { reply } => drop(reply.send(Ok(self.budgets()))),
            Command::Resume { request, reply } => self.resume(&request, reply),
            Command::Order { ops, force, request, reply } => self.order(ops, force, &request, reply),
            Command::Plan { assumptions, part, reply } => {
                let _ = reply.send(self.plan(&assumptions, &part));
            }
            Command::ApplyPlan { assumptions, shown, force, request, reply } => {
                self.apply_plan(&assumptions, &shown, force, &request, reply);
            }
            Command::Tune { process, change, request, reply } => {
                let _ = reply.send(self.tune(&process, change, &request));
            }
            Command::Tuning { reply } => drop(reply.send(Ok(self.tuning.orders()))),
        }
    }

    /// Changes what processes log or sample, and tells the workers.
    fn tune(
        &mut self,
        process: &str,
        change: TuningChange,
        request: &Operator,
    ) -> Result<Vec<(String, TelemetryOrder)>, CommandError> {
        if !process.is_empty() && !self.has_process(process) {
            let problem = "there is neither a coordinator nor a worker of this name";
            return Err(CommandError::Invalid(vec![FieldViolation::new("process", problem)]));
        }
        let (action, what) = match &change {
            TuningChange::Log(Some(log)) => {
                ("log-level", format!("{} for {:?}", log.filter, log.lasts.unwrap_or_default()))
            }
            TuningChange::Sampling(Some(sampling)) => ("sampling", described(sampling)),
            TuningChange::Log(None) => ("log-level", "as configured".to_owned()),
            TuningChange::Sampling(None) => ("sampling", "as configured".to_owned()),
        };
        let detail = if request.reason.is_empty() { what } else { format!("{what}: {}", request.reason) };
        self.tuning.change(process, change);
        self.connections.tune();
        let subject = if process.is_empty() { "all" } else { process };
        self.audit(action, subject, &Operator { reason: detail, actor: request.actor.clone() });
        Ok(self.tuning.orders())
    }

    /// Whether a coordinator or a worker has this name.
    fn has_process(&self, name: &str) -> bool {
        self.coordinators.borrow().iter().any(|one| one.id.as_str() == name)
            || WorkerId::new(name).is_ok_and(|worker| self.machine.knows(&worker))
    }

    /// Admits a change, with what is to be said about it.
    pub(super) fn admit(&mut self, call: ChangeCall, warning: Option<String>) {
        let ChangeCall { mutation, caller, deadline: _, reply } = call;
        if reply.is_closed() {
            // The caller's deadline has passed: what it asked for must not happen behind its back.
            return;
        }
        match self.admission.admit(&mutation, SystemTime::now()) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Admitted::Done(changed)) => drop(reply.send(Ok(Changed { warning, ..changed }))),
            Ok(Admitted::Write(change)) => match self.spent_by(&mutation, &change) {
                Some(error) => {
                    self.admission.withdraw(change);
                    drop(reply.send(Err(error)));
                }
                None => self.writes.change(change.with_warning(warning), &caller, reply),
            },
        }
    }

    /// Why a budget keeps a change from being made that replaces instances, if one does. Otherwise what it replaces is counted from now
    /// on.
    fn spent_by(&mut self, mutation: &Mutation, change: &AdmittedChange) -> Option<CommandError> {
        let Change::Rebuild { force, .. } = mutation.change else { return None };
        let id = change.record()?.id;
        if let Some(spent) = self.machine.refuses_disruption(id).filter(|_| !force) {
            return Some(CommandError::BudgetSpent { appliance: id, spent });
        }
        self.step(Event::Disrupt { id, begins: true });
        None
    }

    /// A change is not made: what was counted for it is not made unavailable.
    pub(super) fn withdraw(&mut self, change: AdmittedChange) {
        let id = change.record().map(|record| record.id);
        self.admission.withdraw(change);
        if let Some(id) = id {
            self.step(Event::Disrupt { id, begins: false });
        }
    }

    /// The store has a change that `caller` has asked for: everybody may know.
    pub(super) fn changed(&mut self, change: AdmittedChange, caller: &Span, reply: Reply<Changed>) {
        if let Some(record) = change.record() {
            self.causes.add(record.id, telemetry::trace_context(caller));
        }
        let labelled = change.record().map(|record| Event::Labelled(record.id, subject(record)));
        let event = change.record().map(|record| match change.outcome() {
            ChangeOutcome::Created => Event::Created(seed(record)),
            ChangeOutcome::Changed | ChangeOutcome::Unchanged => Event::Updated {
                id: record.id,
                edition: record.edition(),
                kind: record.spec.kind.kind_name(),
                size: size(record),
                deleting: record.deleting,
            },
        });
        let changed = caller.in_scope(|| self.admission.commit(change));
        // Of a new appliance its creation says it.
        let id = changed.entry.as_ref().map(|entry| entry.record.id);
        for event in labelled.into_iter().chain(event) {
            self.step(event);
        }
        // From now on it shows by itself that it has not acted on its newest generation.
        if let Some(id) = id {
            self.step(Event::Disrupt { id, begins: false });
        }
        let _ = reply.send(Ok(changed));
    }

    pub(super) fn check(&mut self, appliance: ApplianceId, reply: Reply<()>) {
        let table = self.machine.table();
        let Some((slot, entry)) = table.slot(appliance).and_then(|slot| Some((slot, table.get(slot)?))) else {
            let target = ApplianceTarget::Id(appliance);
            drop(reply.send(Err(CommandError::NotFound(target))));
            return;
        };
        if entry.state.holder().is_none() {
            let reason = self.machine.reason(slot).into_owned();
            drop(reply.send(Err(CommandError::NoOwner { appliance, reason })));
            return;
        }
        let number = self.waiting.add_check(appliance, reply);
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
            candidates: explained.candidates.into_iter().map(convert::candidate).collect(),
            modes: self.modes_of(appliance),
        })
    }

    fn evict(&mut self, worker: WorkerId, incarnation: Option<Incarnation>, request: &Operator, reply: Reply<()>) {
        let current = self.machine.life_of(&worker);
        let life = match (incarnation, current) {
            (None, Some(life)) => Life::new(worker.clone(), life),
            (Some(asked), _) if self.machine.is_alive(&Life::new(worker.clone(), asked)) => {
                Life::new(worker.clone(), asked)
            }
            (Some(_), current) if self.machine.knows(&worker) => {
                return drop(reply.send(Err(CommandError::OtherLife { worker, current })));
            }
            (None, None) if self.machine.knows(&worker) => {
                return drop(reply.send(Err(CommandError::NoLease(worker))));
            }
            _ => return drop(reply.send(Err(CommandError::NoWorker(worker)))),
        };
        self.audit("evict", worker.as_str(), request);
        self.waiting.add_eviction(life.clone(), reply);
        self.step(Event::Evict(life));
    }

    fn forget(&mut self, worker: WorkerId, request: &Operator) -> Result<(), CommandError> {
        if !self.machine.knows(&worker) {
            return Err(CommandError::NoWorker(worker));
        }
        if self.machine.has_life(&worker) {
            return Err(CommandError::HasLease(worker));
        }
        self.audit("forget", worker.as_str(), request);
        self.step(Event::Forget(worker));
        self.publisher.show_workers(&self.machine, clock::now());
        Ok(())
    }

    fn unbind(&mut self, caller: UnbindCaller, site: Option<Site>) {
        if caller.reply.is_closed() {
            // The caller's deadline has passed, as for changes.
            return;
        }
        let id = caller.appliance;
        if let Err(error) = self.admission.check_unbind(id) {
            return drop(caller.reply.send(Err(error)));
        }
        let number = self.waiting.add_unbind(caller);
        self.step(Event::Unbind { id, site, number });
    }

    /// The machine has answered [`Event::Unbind`].
    pub(super) fn unbound(&mut self, number: UnbindNumber, answer: Result<Option<Site>, UnbindRefused>) {
        let Some(UnbindCaller { appliance, request, reply }) = self.waiting.take_unbind(number) else { return };
        if let Ok(Some(site)) = &answer {
            info!(%appliance, %site, actor = request.actor, reason = request.reason, "freed from its site");
            // Its caller reads the catalog next.
            self.publisher.flush();
        }
        let _ = reply.send(answer.map_err(|refused| match refused {
            UnbindRefused::Unknown => CommandError::NotFound(ApplianceTarget::Id(appliance)),
            UnbindRefused::OtherSite(site) => CommandError::OtherSite { appliance, site },
            UnbindRefused::NotStored => CommandError::Unavailable(refused.to_string()),
            UnbindRefused::MayBeOwned { .. } | UnbindRefused::BeingStored | UnbindRefused::Awaited(_) => {
                CommandError::MayBeOwned { appliance, reason: refused.to_string() }
            }
        }));
    }

    /// Stops planning once that is stored: it holds until an operator resumes, whoever leads.
    fn pause(&mut self, moves_only: bool, request: &Operator, reply: Reply<()>) {
        let audit = audit_event("pause", if moves_only { "moves" } else { "placement" }, request);
        let Operator { reason, actor } = request.clone();
        let pause = PauseRecord { reason, by: actor, since: SystemTime::now(), moves_only, aborts: None };
        self.change_pause(Some(pause), audit, PauseReply::Paused(reply));
    }

    /// Ends a rebalance with the moves that are under way, and pauses moves, once that is stored.
    fn abort_rebalance(&mut self, rebalance: Option<RebalanceId>, request: &Operator, reply: Reply<RebalanceId>) {
        let current = self.machine.current_rebalance();
        let running = rebalance.or(current).filter(|id| self.machine.is_rebalancing(*id));
        let Some(id) = running else {
            return drop(reply.send(Err(CommandError::NotRebalancing(rebalance))));
        };
        let audit = audit_event("abort", &id.to_string(), request);
        let Operator { reason, actor } = request.clone();
        // A pause of everything is not weakened.
        let moves_only = self.machine.paused().is_none_or(|pause| pause.moves_only);
        let pause = PauseRecord { reason, by: actor, since: SystemTime::now(), moves_only, aborts: Some(id) };
        self.change_pause(Some(pause), audit, PauseReply::Aborted(id, reply));
    }

    /// How each budget stands.
    fn budgets(&self) -> Vec<BudgetStatus> {
        let status = |view: BudgetView| {
            let note = self.publisher.orders.budget(&view.name)?;
            Some(BudgetStatus { view, note })
        };
        self.machine.budgets().into_iter().filter_map(status).collect()
    }

    fn resume(&mut self, request: &Operator, reply: Reply<()>) {
        self.change_pause(None, audit_event("resume", "placement", request), PauseReply::Paused(reply));
    }

    fn change_pause(&mut self, pause: Option<PauseRecord>, audit: AuditEvent, reply: PauseReply) {
        if reply.is_closed() {
            // The caller's deadline has passed, as for changes.
            return;
        }
        let number = self.waiting.next_pause();
        self.writes.pause(PauseChange { number, pause, audit, reply });
    }

    /// The store has it: a pause or its end is in force.
    pub(super) fn paused(&mut self, change: PauseChange) {
        let PauseChange { number, pause, audit, reply } = change;
        audit.log();
        // Two that were stored together may be told of in either order.
        if self.waiting.is_newest_pause(number) {
            let event = pause.as_ref().map_or(Event::Resume, |pause| Event::Pause(in_force(pause)));
            self.publisher.set_paused(pause.map(PausedView::from));
            self.step(event);
            self.publisher.show_cluster(&self.machine, &self.notes, clock::now());
        }
        reply.send(Ok(()));
    }

    /// Lines of the audit trail that are to be stored together with this commit.
    pub(super) fn unbind_events(&self, commit: &Commit) -> Vec<AuditEvent> {
        let unbound = commit.grants.iter().filter_map(|op| match op {
            GrantOp::Unbind { appliance, .. } => Some(*appliance),
            _ => None,
        });
        unbound.filter_map(|appliance| self.unbind_event(appliance)).collect()
    }

    /// The line about a request to unbind that is being carried out.
    fn unbind_event(&self, appliance: ApplianceId) -> Option<AuditEvent> {
        let table = self.machine.table();
        let site = table.slot(appliance).and_then(|slot| table.get(slot))?.needs.site.clone()?;
        let caller = self.waiting.unbind_of(appliance)?;
        Some(audit_event("unbind", &unbound_subject(appliance, &site), &caller.request))
    }

    pub(super) fn audit(&mut self, action: &str, subject: &str, request: &Operator) {
        let event = audit_event(action, subject, request);
        event.log();
        self.writes.history("audit event", StoreWrite::Event(event));
    }
}

/// What is sampled by an order.
fn described(SamplingOrder { ratio, slow, lasts }: &SamplingOrder) -> String {
    let ratio = ratio.map(|ratio| format!("ratio {ratio}"));
    let slow = slow.map(|slow| format!("slow {slow:?}"));
    let lasts = lasts.map(|lasts| format!("for {lasts:?}"));
    [ratio, slow, lasts].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The line of the audit trail about an operator's request.
pub(super) fn audit_event(action: &str, subject: &str, request: &Operator) -> AuditEvent {
    AuditEvent {
        time: SystemTime::now(),
        actor: request.actor.clone(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        detail: request.reason.clone(),
    }
}

fn unbound_subject(appliance: ApplianceId, site: &Site) -> String {
    format!("{appliance} from {site}")
}

/// What the machine is told of a pause.
pub(super) fn in_force(PauseRecord { reason, by, moves_only, aborts, .. }: &PauseRecord) -> Pause {
    let why = if reason.is_empty() { format!("by {by}") } else { reason.clone() };
    let why = match aborts {
        Some(id) => format!("rebalance {id} was aborted: {why}"),
        None => why,
    };
    Pause { why, moves_only: *moves_only, aborts: *aborts }
}
