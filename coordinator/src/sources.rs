//! What the leader learns from other systems, each by a task that runs for as long as its term and speaks to it through
//! [`Commands`](crate::commands::Commands), as the gRPC services do: appliances that custom resources ask for, those of the routers of
//! Neutron, and workers whose containers have terminated.

pub mod custom_resources;
pub mod neutron;
mod queue;
pub mod worker_pods;

use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

/// Settings of the sources that have a section of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Routers of Neutron.
    pub neutron: neutron::Config,
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        FieldViolation::of_sections([("neutron", self.neutron.validate())]).collect()
    }
}
