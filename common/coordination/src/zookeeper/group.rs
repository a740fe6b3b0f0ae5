//! The worker's part: it joins its group under its name, one session per life, and knows where coordinators are.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::config::Config;
use super::connection::ZkSession;
use super::entry::enter;
use super::life::{Claim, Former, KeptLease};
use super::{finder, layout};
use crate::{Error, Group, Guard, MemberSession, MembershipEnd};
use common::secret::LifeSeal;
use common::{Incarnation, Profile, WorkerId};

/// The group of workers, as one of them knows it.
pub(super) struct ZooKeeperGroup {
    config: Arc<Config>,
    name: WorkerId,
    former: Former,
    coordinators: watch::Receiver<Vec<String>>,
    _finding: DropGuard,
}

impl fmt::Debug for ZooKeeperGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperGroup").field("name", &self.name).field("config", &self.config).finish_non_exhaustive()
    }
}

impl ZooKeeperGroup {
    pub(super) fn new(config: Config, name: WorkerId) -> Self {
        let config = Arc::new(config);
        let (found, coordinators) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        // What was known last is worth trying while ZooKeeper is away.
        finder::spawn(Arc::clone(&config), stop.clone(), move |view| {
            if let Some(view) = view {
                found.send_if_modified(|known| {
                    let addresses = view.addresses();
                    let changed = *known != addresses;
                    *known = addresses;
                    changed
                });
            }
        });
        Self { config, name, former: Former::default(), coordinators, _finding: stop.drop_guard() }
    }
}

#[async_trait]
impl Group for ZooKeeperGroup {
    async fn join(
        &self,
        profile: &Profile,
        seal: LifeSeal,
        guard: Arc<dyn Guard>,
    ) -> Result<Box<dyn MemberSession>, Error> {
        let session = ZkSession::open(&self.config).await?;
        // From here on the session may own nodes, also when this call is dropped.
        let claim = Claim { session, former: self.former.clone() };
        let place = self.config.layout.worker(&self.name);
        let capabilities = layout::worker_capabilities(profile);
        let entered = enter(claim, place, &capabilities, Some(seal), self.config.join_timeout).await?;
        tracing::info!(worker = %self.name, incarnation = %entered.incarnation, "joined");
        Ok(Box::new(ZooKeeperMember { worker: self.name.clone(), lease: entered.live(guard) }))
    }

    fn coordinators(&self) -> watch::Receiver<Vec<String>> {
        self.coordinators.clone()
    }
}

struct ZooKeeperMember {
    worker: WorkerId,
    lease: KeptLease,
}

impl fmt::Debug for ZooKeeperMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperMember")
            .field("worker", &self.worker)
            .field("incarnation", &self.lease.incarnation)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl MemberSession for ZooKeeperMember {
    fn incarnation(&self) -> Option<Incarnation> {
        Some(self.lease.incarnation)
    }

    fn lease(&self) -> Duration {
        self.lease.lease
    }

    async fn ended(&self) -> MembershipEnd {
        self.lease.ended().await
    }

    async fn leave(self: Box<Self>) {
        self.lease.leave().await;
    }
}
