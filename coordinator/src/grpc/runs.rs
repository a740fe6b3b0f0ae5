//! The service `Runs`: what workers did about appliances, from the store.
//!
//! Runs are of appliances: a caller reads those of the tenants whose appliances it may read. One of another tenant does not exist for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::appliance::{FieldViolation, Name};
use common::run::{PhaseChange, RunOutcome, RunStep};
use common::{ApplianceId, WorkerId};
use futures::stream::{self, BoxStream, StreamExt};
use proto::admin::v1 as wire;
use proto::convert::admin::phase_to_wire;
use proto::convert::scalar::{duration_to_wire, time_to_wire};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call::{self, Caller};
use super::{Access, audit, page, status};
use crate::access::Scope;
use crate::history::History;
use crate::record::{AuditPart, NumberedRun, RunFilter};

/// Shortest time between two looks of a watch at the store.
const PACE: Duration = Duration::from_secs(1);
/// Runs that a watch reads at once.
const READ: u64 = 200;

pub(super) struct RunsService {
    caller: Caller,
}

impl RunsService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

#[tonic::async_trait]
impl wire::runs_server::Runs for RunsService {
    async fn list(&self, request: Request<wire::ListRunsRequest>) -> Result<Response<wire::ListRunsResponse>, Status> {
        let access = call::access(&request)?;
        let message = request.into_inner();
        let size = page::size(message.page_size)?;
        let filter = filter(message.filter, &access)?;
        let made_for = digest(&filter);
        let before = match message.page_token.as_str() {
            "" => None,
            token => Some(audit::page_start(token, &made_for)?),
        };
        let found = self.caller.history.runs(filter, AuditPart::Before(before), size as u64 + 1).await;
        let found = found.map_err(|e| status::from_history(&e))?;
        let last = found.get(size - 1).filter(|_| found.len() > size);
        Ok(Response::new(wire::ListRunsResponse {
            next_page_token: last.map(|run| page::seal(&format!("{made_for}/{}", run.number))).unwrap_or_default(),
            runs: found.iter().take(size).map(to_wire).collect(),
        }))
    }

    type WatchStream = BoxStream<'static, Result<wire::Run, Status>>;

    async fn watch(&self, request: Request<wire::WatchRunsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let access = call::access(&request)?;
        let filter = filter(request.into_inner().filter, &access)?;
        let history = Arc::clone(&self.caller.history);
        let changes = self.caller.catalog.watch_cluster();
        let after = match filter.since {
            Some(_) => 0,
            None => newest(&*history).await?,
        };
        let watch = RunWatch { history, filter, after, changes, read: VecDeque::new(), is_first: true };
        let runs = stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(run) => Some((Ok(run), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(runs.boxed()))
    }
}

/// One watch, which asks the store again and again, as that of the audit trail does.
struct RunWatch {
    history: Arc<dyn History>,
    filter: RunFilter,
    /// Number of the last run that was read.
    after: u64,
    changes: watch::Receiver<()>,
    read: VecDeque<NumberedRun>,
    is_first: bool,
}

impl RunWatch {
    async fn next(&mut self) -> Result<wire::Run, Status> {
        loop {
            if let Some(run) = self.read.pop_front() {
                return Ok(to_wire(&run));
            }
            if !std::mem::take(&mut self.is_first) {
                tokio::time::sleep(PACE).await;
                self.changes.changed().await.map_err(|_| status::watch_over())?;
            }
            let newest = newest(&*self.history).await?;
            if newest <= self.after {
                continue;
            }
            let found = self.history.runs(self.filter.clone(), AuditPart::After(self.after), READ).await;
            self.read = found.map_err(|e| status::from_history(&e))?.into();
            // What does not match is not gone through again.
            let all = (self.read.len() as u64) < READ;
            let last = self.read.back().map_or(0, |last| last.number);
            self.after = if all { newest.max(last) } else { last };
        }
    }
}

/// Number of the last run; 0 when there is none.
async fn newest(history: &dyn History) -> Result<u64, Status> {
    let last = history.runs(RunFilter::default(), AuditPart::Before(None), 1).await;
    Ok(last.map_err(|e| status::from_history(&e))?.first().map_or(0, |last| last.number))
}

fn to_wire(numbered: &NumberedRun) -> wire::Run {
    let NumberedRun { number, run } = numbered;
    let step = |step: &RunStep| wire::RunStep {
        step: step.step.clone(),
        outcome: step.outcome.clone(),
        took: Some(duration_to_wire(step.took)),
    };
    let change = |change: &PhaseChange| wire::PhaseChange {
        from: phase_to_wire(change.from).into(),
        to: phase_to_wire(change.to).into(),
        cause: change.cause.clone(),
        time: Some(time_to_wire(run.began.checked_add(change.after).unwrap_or(run.ended))),
    };
    wire::Run {
        number: *number,
        appliance: run.appliance.to_string(),
        tenant: run.tenant.to_string(),
        name: run.name.to_string(),
        generation: run.generation.get(),
        worker: run.worker.to_string(),
        cause: run.cause.clone(),
        outcome: run.outcome.name().to_owned(),
        error: run.error.clone(),
        start_time: Some(time_to_wire(run.began)),
        end_time: Some(time_to_wire(run.ended)),
        steps: run.steps.iter().map(step).collect(),
        changes: run.changes.iter().map(change).collect(),
    }
}

/// Parses a filter; every invalid condition is an error, because ignoring one would return too much.
fn filter(wire: Option<wire::RunFilter>, access: &Access) -> Result<RunFilter, Status> {
    let wire::RunFilter { since, until, appliance, tenant, worker, outcome, with_steps } = wire.unwrap_or_default();
    let mut wrong = Vec::new();
    let mut note = |field: &str, problem: String| wrong.push(FieldViolation::new(format!("filter.{field}"), problem));
    let mut found = RunFilter { with_steps, ..RunFilter::default() };
    found.since = time("since", since, &mut note);
    found.until = time("until", until, &mut note);
    let mut tenants = BTreeSet::new();
    if !tenant.is_empty() {
        match Name::new(&tenant) {
            Ok(tenant) => drop(tenants.insert(tenant)),
            Err(problem) => note("tenant", problem.to_string()),
        }
    }
    match appliance.split_once('/') {
        _ if appliance.is_empty() => {}
        Some((tenant, name)) => match (Name::new(tenant), Name::new(name)) {
            (Ok(tenant), Ok(name)) => {
                if tenants.first().is_some_and(|other| *other != tenant) {
                    note("appliance", "is of another tenant than `filter.tenant`".to_owned());
                }
                tenants.insert(tenant);
                found.name = Some(name);
            }
            _ => note("appliance", "must be an id, or tenant/name".to_owned()),
        },
        None => match appliance.parse::<ApplianceId>() {
            Ok(id) => found.appliance = Some(id),
            Err(_) => note("appliance", "must be an id, or tenant/name".to_owned()),
        },
    }
    if !worker.is_empty() {
        match WorkerId::new(&worker) {
            Ok(worker) => found.worker = Some(worker),
            Err(problem) => note("worker", problem.to_string()),
        }
    }
    if !outcome.is_empty() {
        found.outcome = RunOutcome::of_name(&outcome);
        if found.outcome.is_none() {
            let names: Vec<_> = RunOutcome::ALL.into_iter().map(RunOutcome::name).collect();
            note("outcome", format!("must be one of {}", names.join(", ")));
        }
    }
    if !wrong.is_empty() {
        return Err(status::invalid(&wrong));
    }
    for tenant in &tenants {
        access.check_tenant(tenant)?;
    }
    found.tenants = match access.scope() {
        _ if !tenants.is_empty() => Some(tenants),
        Scope::All => None,
        Scope::Tenants(own) => Some(own.clone()),
    };
    Ok(found)
}

fn time(field: &str, time: Option<prost_types::Timestamp>, note: &mut impl FnMut(&str, String)) -> Option<SystemTime> {
    let found = time.and_then(audit::moment);
    if time.is_some() && found.is_none() {
        note(field, "must be a time of the years 1970 to 9999".to_owned());
    }
    found
}

fn digest(filter: &RunFilter) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{filter:?}").as_bytes()).to_string()
}
