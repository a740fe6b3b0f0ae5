//! What the store knows of ownership: the durable half of the table, and the changes that are written to it.

use std::collections::BTreeSet;
use std::time::Duration;

use common::appliance::Driver;
use common::status::Progress;
use common::{ApplianceId, Incarnation, Token, WorkerId};

/// A grant as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Who may act.
    pub worker: WorkerId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Under which token.
    pub token: Token,
}

/// The durable state of one appliance's ownership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredGrant {
    /// Who holds it; `None` is Free.
    pub granted: Option<Granted>,
    /// Host its instances are bound to, for drivers that bind them.
    pub host: Option<String>,
    /// What the last owner handed in.
    pub progress: Progress,
    /// Remaining time during which calls of a former owner may still take effect.
    pub hold: Duration,
}

/// One change of ownership, to be made durable before anybody is told (I4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantOp {
    /// Granted to a worker; the stored progress and hold stay.
    Grant {
        /// The appliance.
        appliance: ApplianceId,
        /// To whom, in which life, under which token.
        to: Granted,
        /// Host its instances are bound to from now on.
        host: Option<String>,
    },
    /// Given up by its owner, with what the next one needs.
    Free {
        /// The appliance.
        appliance: ApplianceId,
        /// What the owner handed in.
        progress: Progress,
        /// Remaining hold.
        hold: Duration,
    },
    /// The appliance is gone: its rows go in the same transaction.
    Remove {
        /// The appliance.
        appliance: ApplianceId,
    },
}

/// What a worker publishes about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Share of the appliances relative to others; at least 1.
    pub weight: u32,
    /// Failure zone; empty when not given.
    pub zone: String,
    /// Host it runs on.
    pub host: String,
    /// Drivers it offers.
    pub drivers: BTreeSet<Driver>,
    /// Version of the program.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// How long it may act after a heartbeat.
    pub lease: Duration,
}

/// A live member as the store has it: written before the worker is welcomed, removed once its lease is known to be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMember {
    /// Its name.
    pub worker: WorkerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// What it published.
    pub profile: Profile,
}
