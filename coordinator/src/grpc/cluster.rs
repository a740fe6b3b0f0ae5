//! The service `Cluster`.
//!
//! A watch sends the state of the cluster whenever it differs from the last one sent, at most 4 times a second: counts
//! change with every report of a worker, and watchers need the current state rather than every change.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::{self, BoxStream, StreamExt};
use proto::admin::v1 as wire;
use proto::convert::scalar::time_to_wire;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::call::Caller;
use super::status;
use super::wire as to_wire;
use crate::catalog::Catalog;

/// Shortest time between two messages of a watch.
const PACE: Duration = Duration::from_millis(250);

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
