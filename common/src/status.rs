//! What is known about an appliance: what its owner observed, and what travels with it from owner to owner.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::version::Generation;

/// Where an appliance is in its life, as its owner last saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No instance runs; the next boot is due or waits for its back-off.
    #[default]
    Down,
    /// At least one instance is being started.
    Booting,
    /// All instances run and answer; the configuration is not in place yet.
    Up,
    /// All instances run, answer and have the configuration of the observed generation.
    Configured,
    /// Some instances are dead; the living ones serve.
    Degraded,
    /// Ports are being plugged in or out.
    Replugging,
    /// Instances are being replaced because of a rebuild or a change that needs a restart.
    Restarting,
    /// Cooling down after too many failed boots.
    Error,
    /// Instances are being removed.
    Deleting,
    /// Nothing is left.
    Gone,
}

impl Phase {
    /// All phases, in the order of a life.
    pub const ALL: [Self; 10] = [
        Self::Down,
        Self::Booting,
        Self::Up,
        Self::Configured,
        Self::Degraded,
        Self::Replugging,
        Self::Restarting,
        Self::Error,
        Self::Deleting,
        Self::Gone,
    ];

    /// The name in tables, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "Down",
            Self::Booting => "Booting",
            Self::Up => "Up",
            Self::Configured => "Configured",
            Self::Degraded => "Degraded",
            Self::Replugging => "Replugging",
            Self::Restarting => "Restarting",
            Self::Error => "Error",
            Self::Deleting => "Deleting",
            Self::Gone => "Gone",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One running thing behind an appliance, as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Position among the replicas, from 0.
    pub ordinal: u16,
    /// Name given by the driver, derived from appliance, ordinal and attempt.
    pub name: String,
    /// Whether the last probe was answered; `None` before the first.
    pub alive: Option<bool>,
    /// Process id, where the driver has one.
    pub pid: Option<u32>,
    /// Start time as the driver tells it, in milliseconds since the Unix epoch.
    pub started_at_unix_ms: u64,
    /// Address of the service it offers.
    pub address: Option<SocketAddr>,
    /// Generation of the configuration last accepted by the instance.
    pub configured: Option<Generation>,
}

/// What the owner of an appliance reports about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// Newest generation the owner has acted on.
    pub observed_generation: Generation,
    /// Instances, by ordinal.
    pub instances: Vec<InstanceStatus>,
    /// What went wrong last; cleared when the appliance is `Configured` again.
    pub last_error: Option<String>,
    /// Boots in a row that failed, or whose instance ended soon after.
    pub failed_boots: u32,
}

/// What a hand-off takes along, so that nothing restarts because it moved. Durations are what was *left* when it was
/// taken: clocks of two workers are not comparable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Boots that failed in a row.
    pub failed_boots: u32,
    /// Ends of instances that had answered, without a time of health since.
    #[serde(default)]
    pub ends: u32,
    /// Attempts ever made to start each ordinal; instance names derive from it.
    pub attempts: Vec<u32>,
    /// Back-off or cooldown that was left.
    pub wait: Duration,
    /// Whether `wait` is the cooldown of phase `Error`.
    pub cooling: bool,
    /// Steps begun and not known to have ended.
    pub journal: Vec<JournalEntry>,
}

/// A step that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// What was begun, such as `boot 0`.
    pub step: String,
    /// Request id it was begun with, where the backend knows such ids.
    pub request_id: String,
}
