//! The admin API (`rug.admin.v1`), health and reflection over gRPC.
//!
//! Each service translates: wire -> domain with `proto::convert`, one read of the [`Catalog`] or one [`Command`] to the
//! runner, domain -> wire ([`wire`]). Decisions are made elsewhere. [`status`] is the one mapping of errors to codes.
//! Reads never wait for the leader; changes wait for it until the caller's deadline, and at most [`call::LONGEST`].

mod appliances;
mod arriving;
mod audit;
mod authorize;
mod budgets;
mod call;
mod cluster;
pub mod connections;
mod deadline;
mod debug;
mod exec;
mod forward;
mod incoming;
mod layer;
mod logs;
mod measure;
mod orders;
mod page;
mod pin;
mod placement;
mod plans;
mod rebalances;
mod rollouts;
mod runs;
mod serve;
pub(crate) mod status;
mod telemetry;
mod trace;
mod undecodable;
pub mod watches;
mod wire;
mod workers;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::CoordinatorId;
use proto::admin::v1 as api;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;

use crate::catalog::Catalog;
use crate::commands::Commands;
use crate::history::History;
use connections::CountCalls;
use measure::Measure;

pub use arriving::Arriving;
pub use authorize::Authorize;
pub(crate) use authorize::{Access, access_of};
pub use forward::{Forwarder, ServingRole};
pub use incoming::{Listener, incoming_within};
pub(crate) use incoming::{PeerAddress, PeerIdentity, PeerInfo};
pub use layer::{CallLayer, Calls};
pub use orders::follow_orders;
pub use page::{make_token, reseal};
pub use pin::ClusterPin;
pub use serve::serve;
#[cfg(test)]
pub(crate) use serve::serve_listener;
pub use trace::Trace;
pub use undecodable::Undecodable;
pub use watches::BoundWatches;

use call::Caller;

/// Names of the services whose health is reported; `""` is the server as a whole.
const SERVICES: [&str; 12] = [
    "",
    "rug.admin.v1.Appliances",
    "rug.admin.v1.Workers",
    "rug.admin.v1.Placement",
    "rug.admin.v1.Rebalances",
    "rug.admin.v1.Cluster",
    "rug.admin.v1.Telemetry",
    "rug.admin.v1.Audit",
    "rug.admin.v1.Debug",
    "rug.admin.v1.Budgets",
    "rug.admin.v1.Rollouts",
    "rug.admin.v1.Runs",
];

/// Health service name that only the leader reports as serving.
pub const LEADER: &str = "rug.leader";

/// Everything that is done around calls, from outside in.
#[derive(Debug)]
pub struct Layers {
    /// Bounds the calls of each connection.
    pub count: CountCalls,
    /// Knows who calls.
    pub authorize: Authorize,
    /// Bounds watches.
    pub watches: BoundWatches,
    /// Passes calls on to the leader.
    pub forward: Forwarder,
    /// Refuses calls for another cluster.
    pub pin: ClusterPin,
}

impl Layers {
    /// Puts them around services.
    pub fn around(self, services: Routes) -> impl Calls {
        ServiceBuilder::new()
            .layer(CallLayer::new(Measure))
            .layer(CallLayer::new(self.count))
            .layer(CallLayer::new(Trace))
            .layer(CallLayer::new(Undecodable))
            .layer(CallLayer::new(Arriving::default()))
            .layer(CallLayer::new(self.authorize))
            .layer(CallLayer::new(self.watches))
            .layer(CallLayer::new(self.forward))
            .layer(CallLayer::new(self.pin))
            .service(services.prepare())
    }
}

/// Builds the services of the admin API.
pub struct AdminServices {
    caller: Caller,
    health: HealthService,
}

/// Health of the services, for clients and load balancers. Starts as "not serving".
///
/// | service | serving while |
/// |---|---|
/// | `""` and those of `rug.admin.v1` | this coordinator answers calls, itself or by forwarding them |
/// | [`LEADER`] | this coordinator leads |
#[derive(Clone, Debug)]
pub struct HealthService {
    reporter: HealthReporter,
    serving: Arc<AtomicBool>,
}

impl HealthService {
    /// Sets whether the services answer calls, and whether this coordinator leads.
    pub async fn set_serving(&self, serving: bool) {
        self.set(serving, serving).await;
    }

    /// Follows the role of the coordinator `own` until its sender is dropped.
    pub async fn follow(&self, own: &CoordinatorId, mut role: watch::Receiver<ServingRole>) {
        loop {
            let seen = role.borrow_and_update().clone();
            self.set(seen.answers(own), seen == ServingRole::Leading).await;
            if role.changed().await.is_err() {
                return self.set(false, false).await;
            }
        }
    }

    /// Whether this coordinator answers calls, itself or by forwarding them.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    async fn set(&self, serving: bool, leading: bool) {
        self.serving.store(serving, Ordering::Relaxed);
        let status = |is| if is { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.reporter.set_service_status(service, status(serving)).await;
        }
        self.reporter.set_service_status(LEADER, status(leading)).await;
    }
}

impl AdminServices {
    /// Services that read `catalog` and `history` and send changes to `commands`.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, commands: Commands, history: Arc<dyn History>) -> Self {
        let health = HealthService { reporter: HealthReporter::new(), serving: Arc::default() };
        Self { caller: Caller { catalog, commands, history, trace_url: "".into() }, health }
    }

    /// With addresses of traces made so (see [`ExportConfig::trace_url`](runtime::telemetry::ExportConfig::trace_url)).
    #[must_use]
    pub fn linking_traces(mut self, trace_url: &str) -> Self {
        self.caller.trace_url = trace_url.into();
        self
    }

    /// The health of these services.
    #[must_use]
    pub fn health(&self) -> HealthService {
        self.health.clone()
    }

    /// All services, to be [served](serve) with [`Layers`] around them, on connections from [`incoming_within`]. Without
    /// [`Authorize`] they answer nobody.
    ///
    /// # Errors
    /// When the descriptors built into the program cannot be read.
    pub fn routes(self) -> Result<Routes, tonic_reflection::server::Error> {
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let Self { caller, health } = self;
        let mut routes = Routes::builder();
        routes
            .add_service(api::appliances_server::AppliancesServer::new(appliances::AppliancesService::new(
                caller.clone(),
            )))
            .add_service(api::workers_server::WorkersServer::new(workers::WorkersService::new(caller.clone())))
            .add_service(api::placement_server::PlacementServer::new(placement::PlacementService::new(caller.clone())))
            .add_service(api::rebalances_server::RebalancesServer::new(rebalances::RebalancesService::new(
                caller.clone(),
            )))
            .add_service(api::cluster_server::ClusterServer::new(cluster::ClusterService::new(caller.clone())))
            .add_service(api::telemetry_server::TelemetryServer::new(telemetry::TelemetryService::new(caller.clone())))
            .add_service(api::debug_server::DebugServer::new(debug::DebugService::new(caller.clone())))
            .add_service(api::budgets_server::BudgetsServer::new(budgets::BudgetsService::new(caller.clone())))
            .add_service(api::rollouts_server::RolloutsServer::new(rollouts::RolloutsService::new(caller.clone())))
            .add_service(api::runs_server::RunsServer::new(runs::RunsService::new(caller.clone())))
            .add_service(api::audit_server::AuditServer::new(audit::AuditService::new(caller)))
            .add_service(tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(health.reporter),
            ))
            .add_service(descriptors().build_v1()?)
            .add_service(descriptors().build_v1alpha()?);
        Ok(routes.routes())
    }
}
