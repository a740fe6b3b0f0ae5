//! Custom resources of Kubernetes as a source: each `Appliance` (`rug.dev/v1alpha1`) is an appliance that is managed by
//! `kubernetes/<namespace>/<name>`.
//!
//! - `resource` reads an object, and what it asks for, by the one reader of documents;
//! - `decide` says what is to be done about one, from the object and from what the leader knows: pure, one step at a time;
//! - `status` says what is to be shown in it: pure;
//! - `reconcile` carries steps out: changes by commands, the rest by `api`;
//! - `watch` and the [`Catalog`] tell what changed, `queue` which object is looked at when, `controller` owns all of it.
//!
//! Nothing is remembered that a new leader would need. What is asked for is in the objects, what there is in the store, and who
//! belongs to whom in `managed_by`. So a term begins with a list of everything and compares; whatever the one before had begun is
//! found done or is done anew. Writes to the store are fenced by the term as those of any client are; writes to objects name the
//! resource version that they were decided by.

mod api;
mod config;
mod controller;
mod decide;
mod reconcile;
mod resource;
mod status;
mod watch;

#[cfg(test)]
mod definition;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use common::CoordinatorId;
use common::backoff::Backoff;
use kubernetes::kube::Client;
use runtime::retry::Retries;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::catalog::Catalog;
use crate::commands::Commands;

use self::controller::Controller;

pub use self::config::Config;

/// First word of `managed_by` for what this source manages.
pub(crate) const SOURCE: &str = "kubernetes";

/// Delays between tries to set up a client: its files may come later.
const SETUP: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };

/// What the source works with, from one term to the next.
#[derive(Clone, Debug)]
pub struct CustomResources {
    config: Config,
    commands: Commands,
    catalog: Arc<Catalog>,
    /// Named in events.
    coordinator: CoordinatorId,
}

impl CustomResources {
    /// The source, if it is on.
    #[must_use]
    pub fn new(config: &Config, commands: Commands, catalog: Arc<Catalog>, coordinator: CoordinatorId) -> Option<Self> {
        config.appliances.then(|| Self { config: config.clone(), commands, catalog, coordinator })
    }

    /// Works until `over`.
    pub async fn run(self, over: CancellationToken) {
        let work = async {
            let client = self.client().await;
            Controller::new(self.clone(), client).run().await;
        };
        over.run_until_cancelled(work).await;
        self.catalog.set_source_notes(SOURCE, Vec::new());
    }

    /// A client, once there is one.
    async fn client(&self) -> Client {
        let mut retries = Retries::new(SETUP);
        loop {
            match kubernetes::connect(&self.config.client).await {
                Ok(connection) => {
                    let namespaces = self.config.namespaces.join(", ");
                    info!(server = connection.server, namespaces, "reading appliances from custom resources");
                    return connection.client;
                }
                Err(error) => {
                    let note = format!("custom resources are not read: there is no client of Kubernetes: {error}");
                    warn!("{note}");
                    self.catalog.set_source_notes(SOURCE, vec![note]);
                }
            }
            tokio::time::sleep(retries.next_delay()).await;
        }
    }
}
