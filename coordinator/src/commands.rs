//! What asks the leader to change something, or needs its decisions: admin services now, sources later.
//!
//! Reads need no command: they take a short lock on the [`Catalog`](crate::catalog::Catalog). A [`Command`] travels
//! through one bounded channel and is answered when what it did is durable.

mod change;
mod error;

use std::sync::Arc;

use common::{ApplianceId, Incarnation, WorkerId};
use tokio::sync::oneshot;

use crate::views::Explanation;

pub use change::{Change, ChangeOutcome, Changed, Mutation, RequestKey};
pub use error::CommandError;

/// Commands waiting for the leader. It takes them in batches; a caller that finds the channel full waits, at most until
/// its deadline.
pub const COMMAND_QUEUE: usize = 1024;

/// Where the answer to a command goes. A caller that has given up drops the other end.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// What a service asks of the leader.
#[derive(Debug)]
pub enum Command {
    /// Change the stored appliances. The leader calls [`Catalog::prepare`](crate::catalog::Catalog::prepare), makes
    /// the result durable, commits it, and answers.
    Change {
        /// What to change.
        mutation: Arc<Mutation>,
        /// Answered when it is durable.
        reply: Reply<Changed>,
    },
    /// Have the owner probe an appliance now.
    Check {
        /// The appliance.
        appliance: ApplianceId,
        /// Answered when the owner's report is in the catalog.
        reply: Reply<()>,
    },
    /// Why an appliance is where it is.
    Explain {
        /// The appliance.
        appliance: ApplianceId,
        /// Answered at once.
        reply: Reply<Explanation>,
    },
    /// End the lease of one life of a worker.
    Evict {
        /// The worker.
        worker: WorkerId,
        /// Only this life of it; the present one when absent.
        incarnation: Option<Incarnation>,
        /// For the audit trail.
        request: Operator,
        /// Answered when no further heartbeat of that life can count, and the catalog shows it.
        reply: Reply<()>,
    },
    /// Stop all planning, until [`Resume`](Self::Resume).
    Pause {
        /// The reason is shown in [`ClusterView::paused`].
        request: Operator,
        /// Answered when it is in force and the catalog shows it.
        reply: Reply<()>,
    },
    /// End a pause, and a freeze after a loss of sight.
    Resume {
        /// For the audit trail.
        request: Operator,
        /// Answered when planning goes on and the catalog shows it.
        reply: Reply<()>,
    },
}

impl Command {
    /// Answers with `error` instead of carrying it out.
    pub fn fail(self, error: CommandError) {
        match self {
            Self::Change { reply, .. } => drop(reply.send(Err(error))),
            Self::Explain { reply, .. } => drop(reply.send(Err(error))),
            Self::Check { reply, .. }
            | Self::Evict { reply, .. }
            | Self::Pause { reply, .. }
            | Self::Resume { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// Who asks for an operator's measure, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operator {
    /// Why; may be empty, has at most [`MAX_REASON`] bytes.
    pub reason: String,
    /// Address of the caller.
    pub actor: String,
}

/// Longest reason an operator can give, in bytes.
pub const MAX_REASON: usize = 500;
