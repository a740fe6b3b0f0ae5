//! What tests measure with: the moment a lease node is deleted, whether all beat, whether the load is balanced.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tests::cluster::wait::until;
use tests::fleet::Fleet;
pub(crate) use tests::tenures::{TELL_TENURES, gaps, percentile, tenures};
use tokio::task::JoinHandle;
use zookeeper_client::{AddWatchMode, Client, EventType};

/// Whether the numbers an issue names are to be run in full and compared with their bounds, which takes minutes and
/// release builds on an idle machine: `RUG_TEST_FULL=1`. Otherwise fewer are run, and what they take is only printed.
pub(crate) fn in_full() -> bool {
    std::env::var_os("RUG_TEST_FULL").is_some_and(|value| value == "1")
}

/// A session with ZooKeeper that watches for the end of one lease node.
pub(crate) struct LeaseEnd(JoinHandle<Result<SystemTime>>);

impl LeaseEnd {
    /// Watches from now on.
    pub(crate) async fn of(fleet: &Fleet, worker: &str) -> Result<Self> {
        let connector = Client::connector().with_session_timeout(Duration::from_secs(30));
        let client = connector.connect(&fleet.zookeeper.connect_string()).await?;
        let path = format!("/rug/rug/leases/{worker}");
        let mut watcher = client.watch(&path, AddWatchMode::Persistent).await?;
        ensure!(client.check_stat(&path).await?.is_some(), "{path} is not there");
        Ok(Self(tokio::spawn(async move {
            loop {
                let event = watcher.changed().await;
                let now = SystemTime::now();
                match event.event_type {
                    EventType::NodeDeleted => return Ok(now),
                    EventType::Session => ensure!(!event.session_state.is_terminated(), "the session ended: {event:?}"),
                    _ => {}
                }
                // The watcher needs its session.
                let _ = &client;
            }
        })))
    }

    /// When it ended.
    pub(crate) async fn moment(self, limit: Duration) -> Result<SystemTime> {
        tokio::time::timeout(limit, self.0).await.context("the lease node is still there")??
    }
}

/// Waits until heartbeats of all these workers have committed from now on; fails when one begins a new life meanwhile.
pub(crate) async fn all_beat(fleet: &Fleet, workers: &[&str], limit: Duration) -> Result<()> {
    let connector = Client::connector().with_session_timeout(Duration::from_secs(30));
    let client = connector.connect(&fleet.zookeeper.connect_string()).await?;
    let mut before = BTreeMap::new();
    until(limit, "all workers beat", async || {
        for worker in workers {
            let path = format!("/rug/rug/leases/{worker}");
            let stat = client.check_stat(&path).await?.with_context(|| format!("{path} is not there"))?;
            let (life, version) = *before.entry(*worker).or_insert((stat.czxid, stat.version));
            ensure!(stat.czxid == life, "{worker} lives another life");
            ensure!(stat.version > version, "{worker} has not beaten since");
        }
        Ok(())
    })
    .await
}

/// Waits until no rebalance is open, everything is owned, and each worker that runs has at least the floor of its
/// band, which one that joined gets some time later.
pub(crate) async fn balanced(fleet: &Fleet, limit: Duration) -> Result<BTreeMap<String, String>> {
    const BAND: f64 = 1.05;
    let running: Vec<&str> = fleet.workers.iter().filter(|w| w.runs()).map(|w| w.name()).collect();
    until(limit, "everybody has its share", async || {
        let open = fleet.api().rebalances().await?.into_iter().find(|r| r.outcome == "running");
        ensure!(open.is_none(), "{open:?}");
        let owners = fleet.owners().await?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let floor = (owners.len() as f64 / running.len() as f64 / BAND).floor();
        for worker in &running {
            let held = owners.values().filter(|owner| owner == worker).count();
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let enough = held as f64 >= floor;
            ensure!(enough, "{worker} holds {held} of {}", owners.len());
        }
        Ok(owners)
    })
    .await
}
