//! Kinds: how an instance is configured and probed once it runs.

use async_trait::async_trait;
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use crate::drivers::Error;
use crate::gate::Permit;

/// How one kind of appliance is spoken to. Every call is bounded by the caller's time-out.
#[async_trait]
pub trait Kind: Send + Sync + 'static {
    /// Puts the configuration in place. Repeating it changes nothing.
    async fn configure(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error>;

    /// Whether the instance answers. `Err` says what is wrong with it.
    async fn probe(&self, instance: &Instance, desired: &Desired) -> Result<(), Error>;
}
