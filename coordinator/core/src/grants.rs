//! What the store knows of ownership: the durable half of the table, and the changes that are written to it.

use std::time::Duration;

pub use common::Profile;
use common::secret::LifeSeal;
use common::status::Progress;
use common::{ApplianceId, Incarnation, Life, Site, Token, WorkerId};

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

impl Granted {
    /// The life it was granted to.
    #[must_use]
    pub fn life(&self) -> Life {
        Life::new(self.worker.clone(), self.incarnation)
    }

    /// Whether it was granted to this life.
    #[must_use]
    pub fn is_of(&self, life: &Life) -> bool {
        self.worker == life.worker && self.incarnation == life.incarnation
    }
}

/// The durable state of one appliance's ownership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredGrant {
    /// Who holds it; `None` is Free.
    pub granted: Option<Granted>,
    /// Where its instances are kept, for drivers that are bound to their host.
    pub site: Option<Site>,
    /// The carryover of the last owner.
    pub progress: Progress,
    /// How long the next owner has to wait before calls that no token fences: of what is free, what its last owner left; of
    /// what is granted, counted from the loss of its owner, whose calls may be the ones that are waited for.
    pub fence_delay: Duration,
    /// A worker was granted it at least once, so that instances may exist, whatever else is known.
    pub ever: bool,
}

/// One change of ownership, to be made durable before any worker is told (I4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantOp {
    /// Granted to a worker; the stored progress stays.
    Grant {
        /// The appliance.
        appliance: ApplianceId,
        /// To whom, in which life, under which token.
        to: Granted,
        /// Where its instances are kept from now on.
        site: Option<Site>,
        /// What the next owner has to wait if this one is lost.
        fence_delay: Duration,
    },
    /// Given up by its owner, with what the next one needs.
    Free {
        /// The appliance.
        appliance: ApplianceId,
        /// The carryover of the owner.
        progress: Progress,
        /// Remaining fence delay.
        fence_delay: Duration,
    },
    /// Freed from the site it was bound to, while no worker owns it; progress and fence delay are those that are known already.
    Unbind {
        /// The appliance.
        appliance: ApplianceId,
        /// The carryover of the last owner.
        progress: Progress,
        /// Remaining fence delay.
        fence_delay: Duration,
    },
    /// The appliance is gone: its rows go in the same transaction.
    Remove {
        /// The appliance.
        appliance: ApplianceId,
    },
}

/// A member as the store has it: written before the worker is welcomed, removed once its lease is known to be over and
/// its name is not waited for to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMember {
    /// Its name.
    pub worker: WorkerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// What it published.
    pub profile: Profile,
    /// Its lease is over, so that it may not act any more; the row only tells a next leader that the name was live (see
    /// [`crate::brake`]).
    pub departed: bool,
    /// What the life is sealed with, so that a next leader knows who speaks for it; `None` for a worker that knows of no
    /// seals.
    pub seal: Option<LifeSeal>,
}

impl StoredMember {
    /// The life it is about.
    #[must_use]
    pub fn life(&self) -> Life {
        Life::new(self.worker.clone(), self.incarnation)
    }
}
