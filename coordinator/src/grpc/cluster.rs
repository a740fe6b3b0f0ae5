//! The service `Cluster`.

use std::collections::HashMap;

use proto::admin::v1 as wire;
use proto::convert::scalar::time_to_wire;
use tonic::{Request, Response, Status};

use super::call::Caller;
use super::status;

pub(super) struct Service {
    caller: Caller,
}

impl Service {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for Service {
    async fn status(
        &self,
        _request: Request<wire::ClusterStatusRequest>,
    ) -> Result<Response<wire::ClusterStatus>, Status> {
        let (cluster, counts, members) = self.caller.catalog.cluster().ok_or_else(status::starting)?;
        let mut workers = HashMap::new();
        for member in members {
            *workers.entry(member.health.name().to_owned()).or_default() += 1;
        }
        Ok(Response::new(wire::ClusterStatus {
            coordinator: cluster.coordinator.to_string(),
            term: cluster.term.get(),
            leading: cluster.leading,
            start_time: Some(time_to_wire(cluster.started)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            workers,
            appliances: counts.phases().total(),
            phases: counts.phases().iter().map(|(phase, n)| (phase.name().to_owned(), n)).collect(),
            assignments: counts.states().iter().map(|(state, n)| ((*state).to_owned(), *n)).collect(),
            moves_in_flight: cluster.moves_in_flight,
            violations: cluster.violations,
            waiting: cluster.waiting.clone(),
            store: cluster.store.clone(),
            coordination: cluster.coordination.clone(),
        }))
    }
}
