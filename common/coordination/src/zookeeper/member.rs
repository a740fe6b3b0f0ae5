//! A coordinator as a member of its group, for as long as one session lasts.

use std::sync::Arc;
use std::time::Duration;

use common::Timestamp;
use runtime::clock;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::connection::ZkSession;
use super::until;

/// A membership, for as long as its session lasts.
#[derive(Debug)]
pub(super) struct ContenderNode {
    /// Its session.
    pub(super) session: ZkSession,
    /// How long after a heartbeat the leader may trust itself.
    pub(super) lease: Duration,
    /// When the last heartbeat that committed was sent.
    pub(super) committed: watch::Receiver<Timestamp>,
    /// Cancelled when it ends.
    pub(super) over: CancellationToken,
    /// Makes a heartbeat be sent at once.
    pub(super) kick: Arc<Notify>,
}

impl ContenderNode {
    /// Waits until a heartbeat that was sent at `since` or later has committed, making one at once, and says when it was
    /// sent. `None` when the membership ends first.
    pub(super) async fn fresh(&self, since: Timestamp) -> Option<Timestamp> {
        self.kick.notify_one();
        let mut committed = self.committed.clone();
        let fresh = async { committed.wait_for(|sent| *sent >= since).await.ok().map(|sent| *sent) };
        self.over.run_until_cancelled(fresh).await.flatten()
    }

    /// Waits until heartbeats have not committed for as long as the lease.
    pub(super) async fn doubtful(&self) {
        loop {
            let stands_until = *self.committed.borrow() + self.lease;
            if clock::now() >= stands_until {
                return;
            }
            until(stands_until).await;
        }
    }
}
