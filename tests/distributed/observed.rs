//! What tests measure with: the moment a lease node is deleted, and who looked after what from when to when.
//!
//! Workers tell in their logs, at level `debug`, when they take an appliance and when they have let go of it, each with
//! the token of the grant. All processes of a fleet share one clock, so that these moments can be compared.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tests::cluster::wait::until;
use tests::fleet::Fleet;
use tokio::task::JoinHandle;
use zookeeper_client::{AddWatchMode, Client, EventType};

/// Environment of workers that tell what they take and let go of.
pub(crate) const TELL_TENURES: (&str, &str) =
    ("RUG_WORKER_LOG__FILTER", "info,sqlx=warn,h2=warn,worker::session::told=debug");

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

/// One worker's time with one appliance.
#[derive(Clone, Debug)]
pub(crate) struct Tenure {
    /// The worker.
    pub(crate) worker: String,
    /// When it may have begun to act.
    pub(crate) taken: SystemTime,
    /// When it could not act any more; absent when it still may, or was killed.
    pub(crate) released: Option<SystemTime>,
}

/// What the logs of all workers of a fleet tell, by appliance, in the order of tokens.
pub(crate) fn tenures(fleet: &Fleet) -> Result<BTreeMap<String, Vec<Tenure>>> {
    let mut found: BTreeMap<String, BTreeMap<(u64, u64), Tenure>> = BTreeMap::new();
    let mut ends = Vec::new();
    for worker in &fleet.workers {
        for line in worker.log_text().lines() {
            let Some((head, tail)) = line.split_once("worker::session::told: ") else { continue };
            let taken = tail == "taken";
            if !taken && !tail.starts_with("released ") {
                continue;
            }
            let fields = if taken { head } else { tail };
            let appliance = field(fields, "appliance=").with_context(|| line.to_owned())?.to_owned();
            let token = token(field(fields, "token=").with_context(|| line.to_owned())?)?;
            let stamp = line.split_whitespace().next().unwrap_or_default();
            let stamp: prost_types::Timestamp = stamp.parse().with_context(|| line.to_owned())?;
            let at = SystemTime::try_from(stamp).with_context(|| line.to_owned())?;
            if taken {
                let tenure = Tenure { worker: worker.name().to_owned(), taken: at, released: None };
                let other = found.entry(appliance).or_default().insert(token, tenure);
                ensure!(other.is_none(), "a token was taken twice: {line}");
            } else {
                ends.push((appliance, token, at));
            }
        }
    }
    for (appliance, token, at) in ends {
        let tenure = found.get_mut(&appliance).and_then(|tenures| tenures.get_mut(&token));
        tenure.with_context(|| format!("{appliance} was released under {token:?}, and never taken"))?.released =
            Some(at);
    }
    Ok(found.into_iter().map(|(appliance, tenures)| (appliance, tenures.into_values().collect())).collect())
}

/// How long nobody looked after an appliance, from each of its owners to the next; fails where two did at once. Tenures
/// that a kill ended are passed over: nobody knows when they did.
pub(crate) fn gaps(tenures: &BTreeMap<String, Vec<Tenure>>) -> Result<Vec<Duration>> {
    let mut found = Vec::new();
    for (appliance, tenures) in tenures {
        for pair in tenures.windows(2) {
            let Some(released) = pair[0].released else { continue };
            let gap = pair[1].taken.duration_since(released);
            found.push(gap.ok().with_context(|| format!("{appliance} had two owners: {pair:?}"))?);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The value at this share of sorted ones.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(at - 1).copied().unwrap_or_default()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(name)?;
    rest.split(|c: char| c.is_whitespace() || c == '}').next()
}

/// `t<term>/<sequence>`
fn token(text: &str) -> Result<(u64, u64)> {
    let (term, sequence) = text.strip_prefix('t').and_then(|rest| rest.split_once('/')).context("odd token")?;
    let sequence = sequence.trim_start_matches(|c: char| !c.is_ascii_digit());
    Ok((term.parse()?, sequence.parse()?))
}
