//! The service `Cluster`.
//!
//! A watch sends the state of the cluster whenever it differs from the last one sent, at most 4 times a second: counts
//! change with every report of a worker, and watchers need the current state rather than every change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::WorkerId;
use common::appliance::FieldViolation;
use common::reload::Reloaded;
use coordinator_core::health::Health;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use proto::admin::v1 as wire;
use proto::convert::scalar::time_to_wire;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::call::{Caller, context, reason};
use super::status;
use super::wire as to_wire;
use crate::catalog::Catalog;
use crate::commands::{CommandError, ConfigReload};

/// Shortest time between two messages of a watch.
const PACE: Duration = Duration::from_millis(250);
/// Workers that read their configuration at a time.
const ASKED_AT_ONCE: usize = 64;

pub(super) struct ClusterService {
    caller: Caller,
}

impl ClusterService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

fn state(catalog: &Catalog) -> Result<wire::ClusterStatus, Status> {
    let (cluster, counts, workers) = catalog.cluster().ok_or_else(status::starting)?;
    Ok(to_wire::cluster(&cluster, &counts, &workers))
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for ClusterService {
    async fn identify(
        &self,
        _request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::ClusterIdentity>, Status> {
        let (cluster, ..) = self.caller.catalog.cluster().ok_or_else(status::starting)?;
        Ok(Response::new(to_wire::identity(&cluster.identity)))
    }

    async fn status(
        &self,
        _request: Request<wire::ClusterStatusRequest>,
    ) -> Result<Response<wire::ClusterStatus>, Status> {
        // Not part of `state`, because the time always differs, and with it what hangs.
        let now = SystemTime::now();
        let troubles = Some(to_wire::troubles(&self.caller.catalog.troubles(now)));
        let state = state(&self.caller.catalog)?;
        Ok(Response::new(wire::ClusterStatus { time: Some(time_to_wire(now)), troubles, ..state }))
    }

    type WatchStream = BoxStream<'static, Result<wire::ClusterStatus, Status>>;

    async fn watch(&self, _request: Request<wire::WatchClusterRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let catalog = Arc::clone(&self.caller.catalog);
        let changes = catalog.watch_cluster();
        // No state yet is an error of the call, not the end of a stream.
        let first = state(&catalog)?;
        let watch = ClusterWatch { catalog, changes, said: first.clone(), not_before: Instant::now() + PACE };
        let rest = stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(status) => Some((Ok(status), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(stream::once(std::future::ready(Ok(first))).chain(rest).boxed()))
    }

    async fn reload_config(
        &self,
        request: Request<wire::ReloadConfigRequest>,
    ) -> Result<Response<wire::ReloadConfigResponse>, Status> {
        let context = context(&request)?;
        let wire::ReloadConfigRequest { workers, all, reason: why } = request.into_inner();
        let reason = reason(why)?;
        let ReloadTargets { leader, workers, not_asked } = ReloadTargets::of(&self.caller.catalog, workers, all)?;
        let commands = &self.caller.commands;
        let mut processes = Vec::new();
        if let Some(own) = leader {
            processes.push(reloaded(own, commands.reload_config(&context, None, reason.clone()).await)?);
        }
        let asked = workers.into_iter().map(|worker| {
            let (context, reason) = (&context, reason.clone());
            async move {
                let done = commands.reload_config(context, Some(worker.clone()), reason).await;
                reloaded(worker.to_string(), done)
            }
        });
        let told: Vec<_> = stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await?;
        processes.extend(told);
        Ok(Response::new(wire::ReloadConfigResponse { processes, not_asked }))
    }
}

/// What one process found, as it is told; an error when the whole call fails.
fn reloaded(process: String, done: Result<ConfigReload, CommandError>) -> Result<wire::ReloadedConfig, Status> {
    let told = wire::ReloadedConfig { process, ..wire::ReloadedConfig::default() };
    match done {
        Ok(Ok(Reloaded { applied, needs_restart })) => Ok(wire::ReloadedConfig { applied, needs_restart, ..told }),
        Ok(Err(problem)) => Ok(wire::ReloadedConfig { problem, ..told }),
        Err(CommandError::NoAnswer { why, .. }) => Ok(wire::ReloadedConfig { unanswered: why, ..told }),
        Err(error @ CommandError::DeadlineExceeded) => {
            Ok(wire::ReloadedConfig { unanswered: error.to_string(), ..told })
        }
        Err(error) => Err(status::from_command(&error)),
    }
}

/// Whose configuration a call is about.
struct ReloadTargets {
    /// The coordinator that leads, if it is.
    leader: Option<String>,
    workers: BTreeSet<WorkerId>,
    /// Coordinators that stand by, which the leader cannot ask.
    not_asked: Vec<String>,
}

impl ReloadTargets {
    fn of(catalog: &Catalog, workers: Vec<String>, all: bool) -> Result<Self, Status> {
        let (cluster, _, known) = catalog.cluster().ok_or_else(status::starting)?;
        let own = &cluster.leader.coordinator;
        let mut targets = Self { leader: None, workers: BTreeSet::new(), not_asked: Vec::new() };
        let invalid = |problem: String| status::invalid(&[FieldViolation::new("workers", problem)]);
        if all && !workers.is_empty() {
            return Err(invalid("must be empty with `all`".to_owned()));
        }
        if all {
            let others = cluster.leader.coordinators.iter().filter(|other| other.id != *own);
            targets.not_asked = others.map(|other| other.id.to_string()).collect();
            let there = known.iter().filter(|worker| !matches!(worker.health, Health::Dead | Health::Left));
            targets.workers = there.map(|worker| worker.id.clone()).collect();
        }
        if workers.is_empty() {
            targets.leader = Some(own.to_string());
        }
        for name in workers {
            let id = WorkerId::new(&name).map_err(|problem| invalid(problem.to_string()))?;
            if catalog.worker(&id).is_none() {
                return Err(status::from_command(&CommandError::NoWorker(id)));
            }
            targets.workers.insert(id);
        }
        Ok(targets)
    }
}

/// One watch, and the last state it sent.
struct ClusterWatch {
    catalog: Arc<Catalog>,
    changes: watch::Receiver<()>,
    said: wire::ClusterStatus,
    not_before: Instant,
}

impl ClusterWatch {
    /// The next state that differs.
    async fn next(&mut self) -> Result<wire::ClusterStatus, Status> {
        loop {
            self.changes.changed().await.map_err(|_| status::watch_over())?;
            sleep_until(self.not_before).await;
            // Changes during the pause are part of what is read now.
            self.changes.borrow_and_update();
            self.not_before = Instant::now() + PACE;
            let now = state(&self.catalog)?;
            if now != self.said {
                self.said = now.clone();
                return Ok(now);
            }
        }
    }
}
