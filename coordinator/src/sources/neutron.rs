//! Routers of Neutron as a source: each is an appliance that is managed by `neutron/router/<id>`.
//!
//! - `feed` reads notifications from RabbitMQ, and says when a subscription stands or why none does;
//! - `read` reads what Neutron has, of one router or of all;
//! - the package `neutron` says which routers an event concerns, and which appliance a router is to have: pure;
//! - `reconcile` compares that with what the leader knows, and changes what differs;
//! - `controller` owns all of it: which router is looked at when.
//!
//! A notification only says that something has changed: what is put in place is the whole state of a router, as Neutron has it then.
//! So an event that is lost, doubled or late does no harm. One that came is acknowledged when what it is about is in the store, so that it
//! comes again when this leader is gone before; what was never sent, or was lost with RabbitMQ, is found by a listing: at the beginning of
//! each term, whenever a subscription stands again, and every `resync_interval`.

mod config;
mod controller;
mod feed;
mod read;
mod reconcile;

use std::sync::Arc;
use std::time::Duration;

use common::CoordinatorId;
use common::backoff::Backoff;
use openstack::Client;
use runtime::retry::Retries;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::controller::Controller;
use crate::catalog::Catalog;
use crate::commands::Commands;

pub use self::config::Config;

/// First word of `managed_by` for what this source manages.
pub(crate) const SOURCE: &str = "neutron";

/// Delays between tries to set up a client: its files may come later.
const SETUP: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };

/// What the source works with, from one term to the next.
#[derive(Clone, Debug)]
pub struct NeutronRouters {
    config: Config,
    commands: Commands,
    catalog: Arc<Catalog>,
    /// Named at RabbitMQ.
    coordinator: CoordinatorId,
}

impl NeutronRouters {
    /// The source, if it is on.
    #[must_use]
    pub fn new(config: &Config, commands: Commands, catalog: Arc<Catalog>, coordinator: CoordinatorId) -> Option<Self> {
        config.routers.then(|| Self { config: config.clone(), commands, catalog, coordinator })
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
            match Client::new(&self.config.client) {
                Ok(client) => {
                    info!(cloud = client.cloud().auth_url, "reading routers from Neutron");
                    return client;
                }
                Err(error) => {
                    let note = format!("routers of Neutron are not read: there is no client of OpenStack: {error}");
                    warn!("{note}");
                    self.catalog.set_source_notes(SOURCE, vec![note]);
                }
            }
            tokio::time::sleep(retries.next_delay()).await;
        }
    }
}
