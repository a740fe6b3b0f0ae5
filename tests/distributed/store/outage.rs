//! A database that is killed, or stands still, under a cluster that is asked to change all the while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::api::Api;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, specs};
use tests::fleet::{DatabaseChoice, Fleet, FleetDatabase, Options};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::small;

/// Seconds the database is away: fewer than the 30 of a full run, which `RUG_TEST_OUTAGE_SECONDS=30` asks for.
const SECONDS: u64 = 6;

fn outage() -> Duration {
    let asked = std::env::var("RUG_TEST_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(SECONDS))
}

/// What a client that creates one appliance after the other was told.
struct CreateLoad {
    stop: Arc<AtomicBool>,
    stored: Arc<AtomicUsize>,
    client: JoinHandle<(Vec<String>, Vec<Status>)>,
}

impl CreateLoad {
    fn start(api: Api, prefix: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let so_far = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&so_far);
        let client = tokio::spawn(async move {
            let (mut stored, mut refused) = (Vec::new(), Vec::new());
            for number in 1.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                match api.create(specs::simulated(&format!("{prefix}-{number}"))).await {
                    Ok(appliance) => {
                        stored.push(appliance.id);
                        count.store(stored.len(), Ordering::Relaxed);
                    }
                    Err(status) => refused.push(status),
                }
                // Only keeps the loop from spinning.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (stored, refused)
        });
        Self { stop, stored: so_far, client }
    }

    /// Waits until some more were stored.
    async fn goes_on(&self) -> Result<()> {
        let wanted = self.stored.load(Ordering::Relaxed) + 5;
        until(PATIENCE, "the load is stored", async || {
            let stored = self.stored.load(Ordering::Relaxed);
            ensure!(stored >= wanted, "{stored} so far");
            Ok(())
        })
        .await
    }

    /// Ids of what was stored, and how many were refused.
    async fn end(self) -> Result<(Vec<String>, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let (stored, refused) = self.client.await?;
        for status in &refused {
            // One whose commit was not answered is neither stored nor refused until the database is back.
            let clear = status.code() == Code::Unavailable && status.message().contains("store");
            ensure!(clear || status.code() == Code::DeadlineExceeded, "refused with {status:?}");
        }
        let clear = refused.iter().filter(|status| status.code() == Code::Unavailable).count();
        println!("{} stored, {} refused, {clear} of them with UNAVAILABLE", stored.len(), refused.len());
        ensure!(clear > 0, "no write was refused clearly");
        Ok((stored, refused.len()))
    }
}

/// Reads from memory answer as they did before, for as long as the database is away.
async fn reads_go_on(fleet: &Fleet, names: &[String]) -> Result<()> {
    let until = Instant::now() + outage();
    let mut rounds = 0;
    while Instant::now() < until || rounds == 0 {
        for api in &fleet.apis {
            let status = api.status().await.context("status")?;
            ensure!(status.leading, "nobody leads");
            let listed: BTreeSet<String> = api.list().await.context("list")?.into_iter().map(|a| a.id).collect();
            for name in names {
                ensure!(listed.contains(name), "{name} is not listed");
                ensure!(api.get(name).await.context("get")?.id == *name);
            }
            ensure!(!api.workers().await.context("workers")?.is_empty());
        }
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{rounds} rounds of reads while the database was away");
    Ok(())
}

async fn refuses(fleet: &Fleet) -> Result<()> {
    until(PATIENCE, "a write is refused", async || match fleet.api().create(specs::simulated("refused")).await {
        Err(status) if status.code() == Code::Unavailable => {
            ensure!(status.message().contains("store"), "{status:?}");
            Ok(())
        }
        other => anyhow::bail!("answered {other:?}"),
    })
    .await
}

async fn takes_changes_again(fleet: &Fleet, name: &str, since: Instant) -> Result<()> {
    until(PATIENCE, "changes are taken again", async || {
        Ok(fleet.api().apply(specs::simulated(name)).await.map(drop)?)
    })
    .await?;
    println!("changes were taken again {:.2?} after the database was back", since.elapsed());
    Ok(())
}

async fn all_there(fleet: &Fleet, stored: &[String]) -> Result<()> {
    until(PATIENCE, "everything that was acknowledged is there and configured", async || {
        for id in stored {
            let appliance = fleet.api().get(id).await?;
            let phase = appliance.status.unwrap_or_default().phase();
            ensure!(phase == v1::Phase::Configured, "{id} is {}", phase.as_str_name());
        }
        Ok(())
    })
    .await
}

fn pids(fleet: &Fleet) -> Vec<Option<u32>> {
    fleet.coordinators.iter().chain(&fleet.workers).map(|daemon| daemon.pid()).collect()
}

async fn killed_and_paused(store: DatabaseChoice) -> Result<()> {
    let session = Duration::from_secs(3);
    let mut fleet = small(
        Options {
            store,
            session,
            drivers: vec!["process", "simulated"],
            coordinator_env: vec![("RUG_COORDINATOR_STORE__STATEMENT_TIMEOUT", "2s".to_owned())],
            ..Options::default()
        },
        6,
    )
    .await?;
    let ids: Vec<String> = fleet.owners().await?.into_keys().collect();
    let (before, term) = (fleet.instances(), fleet.api().status().await?.term);

    // Killed; a worker dies meanwhile.
    let processes = pids(&fleet);
    let load = CreateLoad::start(fleet.api().clone(), "killed");
    load.goes_on().await?;
    fleet.database.kill()?;
    refuses(&fleet).await?;
    fleet.worker("w2")?.kill()?;
    reads_go_on(&fleet, &ids).await?;
    fleet.database.start_again().await?;
    takes_changes_again(&fleet, "after-1", Instant::now()).await?;
    load.goes_on().await?;
    let (mut stored, _) = load.end().await?;
    fleet.settled(PATIENCE, |worker| worker != "w2").await?;
    all_there(&fleet, &stored).await?;
    ensure!(fleet.instances() == before, "an appliance was restarted");
    fleet.worker("w2")?.start()?;
    fleet.healthy().await?;
    fleet.settled(PATIENCE, |_| true).await?;

    // Paused.
    let load = CreateLoad::start(fleet.api().clone(), "paused");
    load.goes_on().await?;
    pause(&mut fleet, true)?;
    refuses(&fleet).await?;
    reads_go_on(&fleet, &ids).await?;
    pause(&mut fleet, false)?;
    takes_changes_again(&fleet, "after-2", Instant::now()).await?;
    load.goes_on().await?;
    stored.extend(load.end().await?.0);
    all_there(&fleet, &stored).await?;
    fleet.settled(PATIENCE, |_| true).await?;
    ensure!(fleet.instances() == before, "an appliance was restarted");
    let (now, status) = (pids(&fleet), fleet.api().status().await?);
    let restarted = processes.iter().zip(&now).filter(|(before, now)| before != now).count();
    ensure!(restarted == 1, "only w2 was started anew: {processes:?} {now:?}");
    println!("term {term} -> {}", status.term);
    fleet.finish().await
}

fn pause(fleet: &mut Fleet, pause: bool) -> Result<()> {
    match (&mut fleet.database, pause) {
        (FleetDatabase::Postgres(server), true) => server.pause(),
        (FleetDatabase::Postgres(server), false) => server.resume(),
        (FleetDatabase::MariaDb(server), true) => server.pause(),
        (FleetDatabase::MariaDb(server), false) => server.resume(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_while_postgres_is_away() -> Result<()> {
    killed_and_paused(DatabaseChoice::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_while_mariadb_is_away() -> Result<()> {
    killed_and_paused(DatabaseChoice::MariaDb).await
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_that_start_before_their_database_wait_for_it() -> Result<()> {
    let mut fleet = small(Options { session: Duration::from_secs(3), ..Options::default() }, 3).await?;
    let (before, term) = (fleet.instances(), fleet.api().status().await?.term);
    let leader = fleet.leader().await?;
    let standby = 1 - leader;
    // One that starts without it stands by, and passes calls on to the one that was there.
    fleet.coordinators[standby].kill()?;
    fleet.database.kill()?;
    fleet.coordinators[standby].start()?;
    until(PATIENCE, "it passes calls on", async || {
        ensure!(fleet.apis[standby].list().await?.len() == 3);
        Ok(())
    })
    .await?;
    // Everything is down but the workers; coordinators come before their database.
    fleet.coordinators[leader].kill()?;
    fleet.coordinators[standby].kill()?;
    for coordinator in &mut fleet.coordinators {
        coordinator.start()?;
    }
    for coordinator in &mut fleet.coordinators {
        until(PATIENCE, "it says what it waits for", async || {
            coordinator.check()?;
            ensure!(coordinator.log_text().contains("standing by and trying again"), "nothing yet");
            Ok(())
        })
        .await?;
    }
    fleet.database.start_again().await?;
    super::led_above(&mut fleet, term).await?;
    fleet.settled(PATIENCE, |_| true).await?;
    ensure!(fleet.instances() == before, "an appliance was restarted");
    fleet.finish().await
}
