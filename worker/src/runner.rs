//! Runs the lifecycle of every appliance held here.
//!
//! placeholder: interface only
use common::status::{Progress, Status};
use common::{ApplianceId, Token};
use std::sync::Arc;
use std::time::Duration;
use worker_core::desired::Desired;

use crate::gate::Gate;

/// What the session tells the runner.
#[derive(Debug)]
pub enum Command {
    /// A new incarnation begins: everything held under the former one is dropped without another side effect.
    Begin {
        /// Gate of the new incarnation.
        gate: Arc<Gate>,
    },
    /// Start to keep an appliance alive. The gate already admits the grant.
    Take {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// What it shall be.
        desired: Arc<Desired>,
        /// What its last owner handed in.
        progress: Progress,
        /// Remaining time before calls that no token fences may start.
        hold: Duration,
        /// W3C trace context of the rebalance that brought it; empty when there is none.
        traceparent: String,
    },
    /// The appliance shall be something else.
    Update {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// What it shall be now.
        desired: Arc<Desired>,
    },
    /// Let the running step end (or cancel it at a safe point), then answer [`Event::Released`].
    Release {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
    },
    /// Probe now; the answer is a [`Event::Status`] with this number.
    Check {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// Number of the check.
        number: u64,
    },
}

/// What the runner tells the session.
#[derive(Debug)]
pub enum Event {
    /// Nothing of this worker acts on the appliance any more.
    Released {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// What the next owner needs.
        progress: Progress,
        /// Remaining hold.
        hold: Duration,
    },
    /// The appliance was to be deleted and nothing is left of it.
    Gone {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
    },
    /// The status changed, or a check was answered.
    Status {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// The status.
        status: Status,
        /// Newest check answered; 0 when none.
        checked: u64,
    },
}
