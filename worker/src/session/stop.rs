//! How a session is asked to stop.

use tokio_util::sync::CancellationToken;
use worker_core::session::StopRequest;

/// Asks a session to stop. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StopHandle {
    drain: CancellationToken,
    leave: CancellationToken,
}

impl StopHandle {
    /// No request yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands over every grant first, in the way that is configured, and then leaves.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Leaves at once, in good order; also while draining.
    pub fn leave(&self) {
        self.leave.cancel();
    }
}

/// The requests of a [`StopHandle`], each of which is seen once.
#[derive(Debug)]
pub(super) struct StopRequests {
    stop: StopHandle,
    drain_seen: bool,
    leave_seen: bool,
}

impl StopRequests {
    pub(super) const fn new(stop: StopHandle) -> Self {
        Self { stop, drain_seen: false, leave_seen: false }
    }

    /// Waits for the next request. Cancel-safe.
    pub(super) async fn next(&mut self) -> StopRequest {
        tokio::select! {
            biased;
            () = self.stop.leave.cancelled(), if !self.leave_seen => {
                self.leave_seen = true;
                StopRequest::Leave
            }
            () = self.stop.drain.cancelled(), if !self.drain_seen => {
                self.drain_seen = true;
                StopRequest::Drain
            }
            else => std::future::pending().await,
        }
    }
}
