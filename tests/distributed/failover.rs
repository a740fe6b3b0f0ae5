//! Workers and leaders that are killed, stopped and started again under load: how soon what they held has an owner, and
//! what that costs the appliances.
//!
//! Bounds that only an idle machine and release builds can keep are compared under `RUG_TEST_FULL=1`; every run prints
//! what it measured:
//! `RUG_TEST_FULL=1 cargo test --release -p tests --test distributed failover -- --nocapture --test-threads 1`

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use rustix::process::Signal;
use serde_json::Value;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, api, specs};
use tests::fleet::{Fleet, Options};

use crate::observed::{self, LeaseEnd, TELL_TENURES};

/// Appliances of the rows that name 10,000; fewer where only correctness can be judged.
fn many() -> usize {
    if observed::in_full() { 10_000 } else { 2_000 }
}

fn simulated(count: usize) -> Vec<v1::Appliance> {
    (0..count).map(|n| specs::simulated(&format!("simulated-{n}"))).collect()
}

/// Environment of workers whose simulated instances lie in one world, so that a second boot would be seen there.
fn in_world(world: &tempfile::TempDir) -> Vec<(&'static str, String)> {
    let world = world.path().to_string_lossy().into_owned();
    vec![("RUG_WORKER_SIMULATED__WORLD", world), (TELL_TENURES.0, TELL_TENURES.1.to_owned())]
}

/// Boots and ends of simulated instances in a world, by appliance.
fn world_changes(world: &tempfile::TempDir) -> Result<BTreeMap<String, usize>> {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(world.path())? {
        for line in fs::read_to_string(entry?.path())?.lines() {
            let line: Value = serde_json::from_str(line)?;
            // That it has answered a probe changes nothing about the instance.
            if line["answered"] == true {
                continue;
            }
            *found.entry(line["appliance"].as_str().context("a line without appliance")?.to_owned()).or_default() += 1;
        }
    }
    Ok(found)
}

fn loads(owners: &BTreeMap<String, String>) -> BTreeMap<&str, usize> {
    let mut found = BTreeMap::new();
    owners.values().for_each(|worker| *found.entry(worker.as_str()).or_default() += 1);
    found
}

/// Waits until everything is owned by those who may own it and no rebalance is open.
async fn at_rest(fleet: &Fleet, limit: Duration, allowed: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
    until(limit, "every rebalance has ended", async || {
        let open = fleet.api().rebalances().await?.into_iter().find(|r| r.outcome == "running");
        ensure!(open.is_none(), "{open:?}");
        let owners = fleet.owners().await?;
        ensure!(owners.values().all(|worker| allowed(worker)), "{:?}", loads(&owners));
        Ok(owners)
    })
    .await
}

async fn incarnation(fleet: &Fleet, worker: &str) -> Result<String> {
    let workers = fleet.api().workers().await?;
    let found = workers.into_iter().find(|w| w.id == worker && w.health() == v1::Health::Healthy);
    Ok(found.with_context(|| format!("{worker} is not healthy"))?.incarnation)
}

/// When a rebalance with this cause, begun since `begun`, was over.
async fn over(fleet: &Fleet, cause: &str, begun: SystemTime) -> Result<(SystemTime, u64)> {
    until(PATIENCE * 2, &format!("the rebalance for `{cause}` is over"), async || {
        let mut over = None;
        for rebalance in fleet.api().rebalances().await? {
            let started = rebalance.start_time.and_then(|at| SystemTime::try_from(at).ok()).context("no start")?;
            if rebalance.cause != cause || started < begun {
                continue;
            }
            // What was on its way to the lost worker is orphaned once that grant is stored, and has a plan of its own.
            ensure!(["completed", "superseded"].contains(&rebalance.outcome.as_str()), "{rebalance:?}");
            let ended = rebalance.end_time.and_then(|at| SystemTime::try_from(at).ok()).context("no end")?;
            let (latest, moved) = over.unwrap_or((ended, 0));
            over = Some((ended.max(latest), moved + rebalance.moves_done));
        }
        over.context("it has not begun")
    })
    .await
}

/// The heavy worker of three holds five sixths of all, so that its end orphans as many as the row names.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_held_is_owned_again_soon_after_its_node_is_gone() -> Result<()> {
    const BOUND: Duration = Duration::from_millis(500);
    let repeats = if observed::in_full() { 5 } else { 2 };
    let mut fleet = Fleet::start(Options {
        drivers: vec!["simulated"],
        session: Duration::from_secs(2),
        // Only so that the heavy one gets its share back soon.
        coordinator_env: vec![
            ("RUG_COORDINATOR_MACHINE__MAX_MOVES_IN_FLIGHT", "20000".to_owned()),
            ("RUG_COORDINATOR_MACHINE__MAX_MOVES_PER_WORKER", "20000".to_owned()),
        ],
        ..Options::default()
    })
    .await?;
    let heavy = fleet.worker("w1")?;
    heavy.stop(PATIENCE).await?;
    heavy.environment(&[("RUG_WORKER_WEIGHT", "10".to_owned())]);
    fleet.start_all().await?;
    // At the floor of its band the heavy one still holds as many as are asked for.
    fleet.create(simulated(many() * 126 / 100)).await?;
    let mut took = Vec::new();
    for round in 1..=repeats {
        let (before, held) = until(PATIENCE * 2, "the heavy one has its share", async || {
            let owners = at_rest(&fleet, PATIENCE, |_| true).await?;
            let held = loads(&owners).get("w1").copied().unwrap_or_default();
            ensure!(held >= many(), "it holds {:?}", loads(&owners));
            Ok((owners, held))
        })
        .await?;
        let end = LeaseEnd::of(&fleet, "w1").await?;
        let killed = SystemTime::now();
        fleet.worker("w1")?.kill()?;
        let deleted = end.moment(PATIENCE).await?;
        let (owned, moved) = over(&fleet, "gone: w1", killed).await?;
        let after = at_rest(&fleet, PATIENCE, |worker| worker != "w1").await?;
        ensure!(moved >= held as u64, "{moved} moves for {held} orphans");
        let strays = before.iter().filter(|(id, owner)| *owner != "w1" && after[*id] != **owner).count();
        ensure!(strays == 0, "{strays} moved whose owner lived");
        // The leader may hear of it a little before this test does.
        let gap = owned.duration_since(deleted).unwrap_or_default();
        let noticed = deleted.duration_since(killed).unwrap_or_default();
        println!(
            "worker killed, round {round}: {held} orphans owned {gap:?} after the node was gone ({noticed:?} after the kill)"
        );
        took.push(gap);
        fleet.start_all().await?;
    }
    took.sort_unstable();
    println!("worker killed: median {:?} of {took:?}", took[took.len() / 2]);
    ensure!(!observed::in_full() || took[took.len() / 2] <= BOUND, "the median is above {BOUND:?}");
    at_rest(&fleet, PATIENCE * 2, |_| true).await?;
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_outlives_its_leader_and_nothing_moves_because_of_that() -> Result<()> {
    const BAND: f64 = 1.05;
    let session = Duration::from_secs(4);
    let world = tempfile::tempdir()?;
    let mut fleet = Fleet::start(Options {
        drivers: vec!["simulated"],
        session,
        worker_env: in_world(&world),
        ..Options::default()
    })
    .await?;
    for newcomer in ["w2", "w3"] {
        fleet.worker(newcomer)?.stop(PATIENCE).await?;
    }
    let count = many();
    let ids = fleet.create(simulated(count)).await?;
    for newcomer in ["w2", "w3"] {
        fleet.worker(newcomer)?.start()?;
    }
    // The bands of three equal workers; all is at the first one.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let least = count - (count as f64 / 3.0 * BAND - 1e-6).ceil() as usize;
    let done = until(PATIENCE, "the rebalance is under way", async || {
        let rebalances = fleet.api().rebalances().await?;
        let running = rebalances.iter().find(|r| r.outcome == "running" && r.moves_done > 0);
        Ok(running.with_context(|| format!("{rebalances:?}"))?.moves_done)
    })
    .await?;
    let leader = fleet.leader().await?;
    let was = fleet.coordinators[leader].name().to_owned();
    let killed = Instant::now();
    fleet.coordinators[leader].kill()?;
    let limit = session + Duration::from_secs(1);
    until(PATIENCE, "another one leads and answers", async || {
        let status = fleet.api().status().await?;
        ensure!(status.coordinator != was && status.appliances == count as u64, "{status:?}");
        let appliance = fleet.api().get(&ids[0]).await?;
        ensure!(!appliance.id.is_empty());
        Ok(())
    })
    .await?;
    let answered = killed.elapsed();
    println!(
        "leader killed after {done} of {least} moves: admin answers after {answered:?}, session timeout + 1 s is {limit:?}"
    );
    // Nothing is open either before the next leader has begun.
    let owners = until(PATIENCE * 2, "the next leader finishes it", async || {
        let owners = at_rest(&fleet, PATIENCE, |_| true).await?;
        ensure!(loads(&owners)["w1"] <= count - least, "{:?}", loads(&owners));
        Ok(owners)
    })
    .await?;
    println!("leader killed: all settled after {:?}, {:?}", killed.elapsed(), loads(&owners));
    ensure!(owners.len() == count, "{} of {count} are left", owners.len());
    let rebalances = fleet.api().rebalances().await?;
    for rebalance in &rebalances {
        let v1::Rebalance { id, cause, outcome, moves, moves_done, .. } = rebalance;
        println!("leader killed: {id} {cause}: {outcome}, {moves_done} of {moves} moves done");
    }
    // Every appliance was taken once by the first worker, and those that are elsewhere now once more: nothing went to and
    // fro, and none more went than had to.
    let tenures = observed::tenures(&fleet)?;
    ensure!(tenures.len() == count, "{} of {count} were ever taken", tenures.len());
    let mut moved = 0;
    for (id, tenures) in &tenures {
        let owner = &owners[id];
        let path: Vec<&str> = tenures.iter().map(|t| t.worker.as_str()).collect();
        let straight = if owner == "w1" { path == ["w1"] } else { path == ["w1", owner.as_str()] };
        ensure!(straight, "{id} went {path:?}: {tenures:?}");
        moved += path.len() - 1;
    }
    observed::gaps(&tenures)?;
    ensure!(moved == least, "{moved} moved, {least} are enough");
    let changes = world_changes(&world)?;
    ensure!(changes.len() == count && changes.values().all(|n| *n == 1), "instances were booted twice or ended");
    ensure!(!observed::in_full() || answered <= limit, "the admin API was away for {answered:?}");
    fleet.start_all().await?;
    fleet.finish().await
}

/// Lines of the journals of all appliances that were written after `since` (boot clock) by this process.
fn acted(fleet: &Fleet, pid: u32, since: Duration) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(fleet.state_dir().join("fences"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "journal") {
            for line in fs::read_to_string(&path)?.lines() {
                let line: Value = serde_json::from_str(line)?;
                // That it has answered a probe changes nothing about the instance.
                if line["answered"] == true {
                    continue;
                }
                let later = line["at_boot_ns"].as_u64().map(Duration::from_nanos).is_some_and(|at| at >= since);
                if later && line["actor_pid"].as_u64() == Some(pid.into()) {
                    found.push(line);
                }
            }
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_from_a_long_sleep_starts_nothing_and_begins_a_new_life() -> Result<()> {
    let session = Duration::from_secs(2);
    let mut fleet = Fleet::start(Options { session, ..Options::default() }).await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let owners = at_rest(&fleet, PATIENCE, |_| true).await?;
    let former = incarnation(&fleet, "w2").await?;
    let (held, _) = owners.iter().find(|(_, owner)| *owner == "w2").context("w2 holds something")?;
    let victim = api::pids(&fleet.api().get(held).await?);
    let victim = *victim.first().context("an instance")?;
    let mut others = fleet.instances();
    others.retain(|_, process| process.pid != victim);

    // What it holds dies while it sleeps, so that it has every reason to act when it wakes.
    let asleep = Instant::now();
    fleet.worker("w2")?.signal(Signal::STOP)?;
    tests::cluster::processes::signal(victim, Signal::KILL);
    at_rest(&fleet, PATIENCE, |worker| worker != "w2").await?;
    println!("worker asleep: taken over after {:?}", asleep.elapsed());
    until(PATIENCE, "its new owner has replaced what died", async || {
        let appliance = fleet.api().get(held).await?;
        let replaced = api::is_configured(&appliance) && api::pids(&appliance).iter().all(|pid| *pid != victim);
        ensure!(replaced, "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    let running = fleet.instances();
    ensure!(others.iter().all(|(name, process)| running.get(name) == Some(process)), "others were restarted");
    tokio::time::sleep((session * 3).saturating_sub(asleep.elapsed())).await;

    let pid = fleet.worker("w2")?.pid().context("it runs")?;
    let woken = boot_time();
    fleet.worker("w2")?.signal(Signal::CONT)?;
    until(PATIENCE, "it lives a new life", async || {
        let now = incarnation(&fleet, "w2").await?;
        ensure!(now != former, "it is still {now}");
        Ok(())
    })
    .await?;
    // Of its new life there may be adoptions, under tokens that are newer than all before.
    let owners = observed::balanced(&fleet, PATIENCE).await?;
    let lines = acted(&fleet, pid, woken)?;
    let newest = newest_of_others(&fleet, pid, woken)?;
    println!("worker asleep: {} journal lines of its new life, {:?}", lines.len(), loads(&owners));
    for line in &lines {
        let token = (line["term"].as_u64(), line["sequence"].as_u64());
        ensure!(line["action"] == "adopt", "it did something: {line}");
        ensure!(token > newest, "it acted under an old token: {line}, others had {newest:?}");
    }
    ensure!(fleet.instances() == running, "appliances were restarted after it woke");
    fleet.finish().await
}

/// The highest token anybody else acted with before `until`.
fn newest_of_others(fleet: &Fleet, pid: u32, until: Duration) -> Result<(Option<u64>, Option<u64>)> {
    let mut newest = (None, None);
    for entry in fs::read_dir(fleet.state_dir().join("fences"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            // That it has answered a probe changes nothing about the instance.
            if line["answered"] == true {
                continue;
            }
            let earlier = line["at_boot_ns"].as_u64().map(Duration::from_nanos).is_some_and(|at| at < until);
            if earlier && line["actor_pid"].as_u64() != Some(pid.into()) {
                newest = newest.max((line["term"].as_u64(), line["sequence"].as_u64()));
            }
        }
    }
    Ok(newest)
}

fn boot_time() -> Duration {
    Duration::from_nanos(runtime::clock::now().as_nanos())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_restarts_no_appliance_and_leaves_none_alone_for_long() -> Result<()> {
    const BOUND: Duration = Duration::from_millis(10);
    let world = tempfile::tempdir()?;
    let mut fleet = Fleet::start(Options {
        workers: 5,
        drivers: vec!["process", "simulated"],
        worker_env: in_world(&world),
        ..Options::default()
    })
    .await?;
    let real = 15;
    let simulations = if observed::in_full() { 985 } else { 285 };
    let web = (1..=real).map(|n| specs::web(&format!("web-{n}")));
    fleet.create(web.chain(simulated(simulations)).collect()).await?;
    observed::balanced(&fleet, PATIENCE).await?;
    let running = fleet.instances();
    ensure!(running.len() == real, "{} instances", running.len());
    for n in 1..=5 {
        let name = format!("w{n}");
        let begun = Instant::now();
        let former = incarnation(&fleet, &name).await?;
        let status = fleet.worker(&name)?.stop(PATIENCE).await?;
        ensure!(status.success(), "{name} ended with {status}");
        let stopped = begun.elapsed();
        fleet.settled(PATIENCE, |owner| owner != name).await?;
        fleet.start_all().await?;
        ensure!(incarnation(&fleet, &name).await? != former, "{name} lives its old life");
        observed::balanced(&fleet, PATIENCE).await?;
        println!("rolling restart: {name} stopped in {stopped:?}, has its share back after {:?}", begun.elapsed());
    }
    ensure!(fleet.instances() == running, "appliances were restarted");
    let changes = world_changes(&world)?;
    ensure!(changes.len() == simulations && changes.values().all(|n| *n == 1), "simulated ones were restarted");

    let tenures = observed::tenures(&fleet)?;
    let handed: usize = tenures.values().map(|t| t.len() - 1).sum();
    let gaps = observed::gaps(&tenures)?;
    ensure!(gaps.len() == handed, "{} of {handed} hand-offs began with a release", gaps.len());
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| observed::percentile(&gaps, share));
    println!("rolling restart: {handed} hand-offs, unmanaged p50 {p50:?}, p99 {p99:?}, max {most:?}");
    ensure!(!observed::in_full() || p99 <= BOUND, "p99 is above {BOUND:?}");
    fleet.finish().await
}
