//! What can keep a driver, or the protocol of its instances, from what it was asked.

use common::status::InstanceEnd;

use crate::gate::Shut;

/// Why a driver or kind could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The gate was shut before the call took effect.
    #[error(transparent)]
    Shut(#[from] Shut),
    /// The far side has seen a newer token: this worker is no longer the owner.
    #[error("a newer token ({0}) is in force")]
    Superseded(common::Token),
    /// Another call holds the lock of this appliance.
    #[error("another call on this appliance is under way: {0}")]
    FenceBusy(String),
    /// What was asked for cannot work until the appliance's spec or the host changes; carries what to tell the user.
    #[error("{0}")]
    Refused(String),
    /// An instance was started and ended at once.
    #[error("ended at once: {0}")]
    Ended(Box<InstanceEnd>),
    /// It may work the next time.
    #[error("{0}")]
    Failed(String),
}
