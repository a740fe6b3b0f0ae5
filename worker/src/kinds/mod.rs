//! Kinds: how an instance is configured and probed once it runs.

use std::sync::Arc;

use async_trait::async_trait;
use common::appliance;
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use crate::drivers::Error;
use crate::gate::Permit;

pub mod custom;
mod http;
pub mod loadbalancer;

/// How one kind of appliance is spoken to. Every call is bounded by the caller's time-out.
#[async_trait]
pub trait Kind: Send + Sync + 'static {
    /// Puts the configuration in place. Repeating it changes nothing.
    async fn configure(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error>;

    /// Whether the instance answers. `Err` says what is wrong with it.
    async fn probe(&self, instance: &Instance, desired: &Desired) -> Result<(), Error>;
}

/// The kinds there are, sharing one HTTP client. Appliances of the `simulated` driver use its own kind instead.
#[derive(Clone)]
pub struct Kinds {
    custom: Arc<dyn Kind>,
    loadbalancer: Arc<dyn Kind>,
}

impl Kinds {
    /// Sets all kinds up.
    ///
    /// # Errors
    /// [`Error::Failed`] when no HTTP client can be made.
    pub fn new() -> Result<Self, Error> {
        let client = http::Client::new()?;
        Ok(Self {
            custom: Arc::new(custom::Custom::new(client.clone())),
            loadbalancer: Arc::new(loadbalancer::LoadBalancer::new(client)),
        })
    }

    /// The kind that goes with a spec.
    #[must_use]
    pub fn of(&self, spec: &appliance::Spec) -> Arc<dyn Kind> {
        match &spec.kind {
            appliance::Kind::Custom(_) => Arc::clone(&self.custom),
            appliance::Kind::Loadbalancer(_) => Arc::clone(&self.loadbalancer),
        }
    }
}

impl std::fmt::Debug for Kinds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kinds").finish_non_exhaustive()
    }
}
