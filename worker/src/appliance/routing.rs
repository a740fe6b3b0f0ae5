//! The router mode: configurations of routers, put in force in the network namespace of this process.
//!
//! Only an appliance that was started for it does so, because it changes addresses, routes and rules of the host where it has no namespace
//! of its own.

use std::sync::Arc;

use common::kind::router::contract;
use router::{ApplyError, Router};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::api::{Label, Labels};
use super::metadata::MetadataDoors;

/// The router of this appliance.
#[derive(Debug, Default)]
pub(super) struct Routing(Arc<Mutex<InForce>>);

#[derive(Debug, Default)]
struct InForce {
    router: Router,
    config: contract::Config,
    metadata: MetadataDoors,
}

/// Why a configuration is not in force.
#[derive(Debug)]
pub(super) enum RoutingError {
    /// It cannot be.
    Refused { field: Option<String>, problem: String },
    /// It may be, later.
    Failed(String),
}

impl Routing {
    /// Puts a configuration in force.
    pub(super) async fn apply(&self, config: contract::Config) -> Result<(), RoutingError> {
        let mut in_force = Arc::clone(&self.0).lock_owned().await;
        // The kernel answers at once, mostly; what it is asked must not hold up the probes.
        let work = spawn_blocking(move || {
            in_force.router.apply(&config)?;
            in_force.config = config;
            Ok(in_force)
        });
        match work.await.map_err(|error| RoutingError::Failed(error.to_string()))? {
            Ok(mut in_force) => {
                let InForce { config, metadata, .. } = &mut *in_force;
                metadata.apply(config).map_err(RoutingError::Failed)
            }
            Err(ApplyError::Invalid(invalid)) => {
                Err(RoutingError::Refused { field: Some(invalid.field), problem: invalid.problem })
            }
            Err(error @ ApplyError::NoNat(_)) => Err(RoutingError::Refused { field: None, problem: error.to_string() }),
            Err(error @ ApplyError::Kernel { .. }) => Err(RoutingError::Failed(error.to_string())),
        }
    }

    /// The configuration in force.
    pub(super) async fn config(&self) -> contract::Config {
        self.0.lock().await.config.clone()
    }

    /// What has passed each interface.
    pub(super) async fn labels(&self) -> Labels {
        let traffic = self.0.lock().await.router.traffic();
        let label = |traffic: router::Traffic| Label {
            name: traffic.interface,
            bytes_in: traffic.received,
            bytes_out: traffic.sent,
            ..Label::default()
        };
        Labels { labels: traffic.into_iter().map(label).collect() }
    }
}
