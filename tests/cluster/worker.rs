//! Workers that die, come back, or find nobody to work for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use rustix::process::Signal;
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, Sandbox, api, binaries, ports, processes, specs};

/// Who holds what, by id.
fn owners(appliances: &[v1::Appliance]) -> BTreeMap<String, String> {
    appliances.iter().map(|a| (a.id.clone(), api::owner(a).to_owned())).collect()
}

/// Appliances of each of these workers.
fn loads(owners: &BTreeMap<String, String>, workers: &[&str]) -> Vec<u64> {
    workers.iter().map(|w| owners.values().filter(|o| o == w).count() as u64).collect()
}

/// The fewest moves that bring `loads` into the band around their mean.
fn least_moves(loads: &[u64]) -> u64 {
    const BAND: f64 = 1.05;
    let fair = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
    let (floor, ceiling) = ((fair / BAND).floor() as u64, (fair * BAND).ceil() as u64);
    let excess: u64 = loads.iter().map(|n| n.saturating_sub(ceiling)).sum();
    let deficit: u64 = loads.iter().map(|n| floor.saturating_sub(*n)).sum();
    excess.max(deficit)
}

/// Waits until everything is owned by a worker that `holds` accepts and every rebalance has ended.
async fn settled(cluster: &Cluster, what: &str, holds: impl Fn(&[u64]) -> bool) -> Result<BTreeMap<String, String>> {
    until(PATIENCE, what, async || {
        let appliances = cluster.api.list().await?;
        let owned = |a: &v1::Appliance| a.assignment.as_ref().is_some_and(|x| x.state == "owned");
        if let Some(other) = appliances.iter().find(|a| !owned(a) || !api::is_configured(a)) {
            anyhow::bail!("{}", api::describe(other));
        }
        let found = owners(&appliances);
        let loads = loads(&found, &["worker-1", "worker-2", "worker-3"]);
        ensure!(holds(&loads), "they hold {loads:?}");
        let open = cluster.api.rebalances().await?.into_iter().find(|r| r.outcome == "running");
        ensure!(open.is_none(), "{open:?} is open");
        Ok(found)
    })
    .await
}

/// Rebalances that began after those in `before`, oldest first, with their moves.
async fn since(cluster: &Cluster, before: &[v1::Rebalance]) -> Result<Vec<v1::Rebalance>> {
    let mut found = Vec::new();
    for rebalance in cluster.api.rebalances().await?.into_iter().rev() {
        if !before.iter().any(|b| b.id == rebalance.id) {
            found.push(cluster.api.rebalance(&rebalance.id).await?);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_killed_worker_loses_its_share_and_gets_it_back_without_a_restart_of_any_appliance() -> Result<()> {
    const FLEET: usize = 30;
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.fleet((1..=FLEET).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let start = settled(&cluster, "all are spread", |loads| loads.iter().all(|n| *n > 0)).await?;
    let running = cluster.instances();
    ensure!(running.len() == FLEET, "{} instances", running.len());
    ensure!(least_moves(&loads(&start, &["worker-1", "worker-2", "worker-3"])) == 0, "out of the band: {start:?}");
    let history = cluster.api.rebalances().await?;

    cluster.worker("worker-2")?.kill()?;
    let orphans: Vec<&String> = start.iter().filter(|(_, o)| *o == "worker-2").map(|(id, _)| id).collect();
    let without = settled(&cluster, "others have adopted them", |loads| loads[1] == 0).await?;
    ensure!(cluster.instances() == running, "appliances were restarted by the takeover");
    let changed: Vec<&String> = start.iter().filter(|(id, o)| without[*id] != **o).map(|(id, _)| id).collect();
    ensure!(changed == orphans, "{changed:?} moved, and {orphans:?} were the orphans");
    let made = since(&cluster, &history).await?;
    ensure!(made.iter().all(|r| r.cause == "gone: worker-2"), "{made:?}");
    ensure!(made.iter().map(|r| r.moves_done).sum::<u64>() == orphans.len() as u64, "{made:?}");

    // The same as a person sees it.
    let listed = cluster.rugctl(&["rebalance", "list", "-o", "json"], "").await?.json()?;
    let shown = listed.as_array().into_iter().flatten().find(|r| r["cause"] == "gone: worker-2");
    let shown = shown.with_context(|| format!("not in the history: {listed}"))?;
    ensure!(shown["outcome"] == "completed" && shown["trace_id"].as_str().is_some_and(|t| t.len() == 32), "{shown}");
    let id = shown["id"].as_str().context("no id")?;
    let shown = cluster.rugctl(&["rebalance", "get", id, "-o", "json"], "").await?.json()?;
    let moves = shown["move"].as_array().context("no moves")?;
    ensure!(!moves.is_empty(), "{shown}");
    for one in moves {
        let appliance = one["appliance"].as_str().context("no appliance")?;
        ensure!(one["from"] == "worker-2" && one["to"] == without[appliance].as_str(), "{one}");
        ensure!(one["reason"].as_str().is_some_and(|r| !r.is_empty()), "{one}");
    }

    let history = cluster.api.rebalances().await?;
    let least = least_moves(&loads(&without, &["worker-1", "worker-2", "worker-3"]));
    ensure!(least > 0, "{without:?}");
    cluster.worker("worker-2")?.start()?;
    let back = settled(&cluster, "it has its share back", |loads| least_moves(loads) == 0).await?;
    ensure!(cluster.instances() == running, "appliances were restarted by the way back");
    let moved = back.iter().filter(|(id, owner)| without[*id] != **owner).count() as u64;
    let made = since(&cluster, &history).await?;
    let done: u64 = made.iter().map(|r| r.moves_done).sum();
    ensure!(moved == least && done == least, "{moved} moved in {done} moves, {least} are enough: {made:?}");
    ensure!(made.iter().all(|r| r.cause == "joined: worker-2"), "{made:?}");
    cluster.finish().await
}

#[tokio::test]
async fn a_worker_that_stops_hands_over_at_once_and_without_a_restart() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    cluster.fleet((1..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let running = cluster.instances();
    let status = cluster.worker("worker-1")?.stop(Duration::from_secs(10)).await?;
    ensure!(status.success(), "it ended with {status}");
    settled(&cluster, "the other one has all", |loads| loads == [0, 6, 0]).await?;
    ensure!(cluster.instances() == running, "appliances were restarted");
    cluster.finish().await
}

/// With leases of two minutes, whoever waited for one would be late by far.
#[tokio::test]
async fn a_worker_that_died_beside_the_leader_is_not_waited_for() -> Result<()> {
    const LEASE: Duration = Duration::from_secs(120);
    let worker_env = vec![("RUG_WORKER_SESSION__LEASE", "2m".to_owned())];
    let mut cluster = Cluster::start(Options { worker_env, ..Options::default() }).await?;
    cluster.fleet((1..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let running = cluster.instances();
    cluster.worker("worker-3")?.kill()?;
    let killed = Instant::now();
    settled(&cluster, "others have adopted them", |loads| loads[2] == 0).await?;
    ensure!(killed.elapsed() < LEASE, "its lease was waited for");
    let log = cluster.coordinator.log_text();
    ensure!(log.lines().any(|line| line.contains("worker-3") && line.contains("its process has ended")), "{log}");
    // The leader that comes has nothing but the store, and finds that nobody has the pid.
    cluster.worker("worker-3")?.start()?;
    settled(&cluster, "it has its share back", |loads| loads[2] > 0).await?;
    cluster.coordinator.kill()?;
    cluster.worker("worker-3")?.kill()?;
    cluster.coordinator.start()?;
    settled(&cluster, "others have adopted them again", |loads| loads[2] == 0).await?;
    ensure!(killed.elapsed() < LEASE, "a lease was waited for");
    ensure!(cluster.instances() == running, "appliances were restarted by the takeover");
    cluster.finish().await
}

/// Who uses another directory cannot see what still runs, and would start it a second time.
#[tokio::test]
async fn what_runs_in_one_state_directory_waits_for_a_worker_that_uses_it() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    cluster.worker("worker-2")?.stop(Duration::from_secs(10)).await?;
    let fleet = cluster.fleet((1..=4).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let running = cluster.instances();
    let elsewhere = cluster.root().join("elsewhere");
    let setting = ("RUG_WORKER_PROCESS__STATE_DIR", elsewhere.to_string_lossy().into_owned());
    let other = cluster.worker("worker-2")?;
    other.environment(&[setting]);
    other.start()?;
    cluster.healthy().await?;

    cluster.worker("worker-1")?.kill()?;
    let kept = cluster.state_dir().canonicalize()?;
    let site = std::fs::read_to_string(kept.join("site"))?;
    let site = site.lines().find_map(|line| line.strip_prefix("id=")).context("it has an id")?;
    let waits =
        format!("its instances are kept on host test-host in {} (site {site}), which no worker uses", kept.display());
    until(PATIENCE, "everything waits for its directory", async || {
        for appliance in cluster.api.list().await? {
            let assignment = appliance.assignment.clone().context("no assignment")?;
            ensure!(assignment.reason == waits && api::owner(&appliance).is_empty(), "{assignment:?}");
        }
        Ok(())
    })
    .await?;
    // What is new has a place.
    let newest = cluster.fleet(vec![specs::web("web-5")]).await?.remove(0);
    ensure!(api::owner(&newest) == "worker-2", "{}", api::describe(&newest));
    let now = cluster.instances();
    ensure!(running.iter().all(|(name, identity)| now.get(name) == Some(identity)), "{running:?} became {now:?}");
    ensure!(now.len() == running.len() + 1, "something runs twice: {now:?}");

    let shown = cluster.rugctl(&["get", "web-1", "-o", "json"], "").await?.json()?;
    ensure!(shown["status"]["assignment"]["state_dir"].as_str().is_some_and(|dir| waits.contains(dir)), "{shown}");
    let shown = cluster.rugctl(&["worker", "get", "worker-2", "-o", "json"], "").await?.json()?;
    ensure!(shown["state_dir"] == elsewhere.canonicalize()?.to_string_lossy().as_ref(), "{shown}");

    cluster.worker("worker-1")?.start()?;
    until(PATIENCE, "its worker is back", async || {
        for appliance in cluster.api.list().await?.iter().filter(|a| a.id != newest.id) {
            ensure!(
                api::owner(appliance) == "worker-1" && api::is_configured(appliance),
                "{}",
                api::describe(appliance)
            );
        }
        Ok(())
    })
    .await?;
    ensure!(cluster.instances() == now, "something was restarted: {now:?}");
    cluster.api.delete(&newest.id).await?;
    until(PATIENCE, "it is deleted", async || {
        let left = cluster.api.list().await?;
        ensure!(left.len() == fleet.len(), "{} are left", left.len());
        Ok(())
    })
    .await?;
    cluster.finish().await
}

/// A host that is lost for good keeps its appliances bound to it until an operator says that it does not come back.
#[tokio::test]
async fn what_is_unbound_from_a_lost_host_runs_on_another() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    cluster.worker("worker-2")?.stop(Duration::from_secs(10)).await?;
    cluster.fleet(vec![specs::web("web-1")]).await?;
    let elsewhere = cluster.root().join("elsewhere");
    let setting = ("RUG_WORKER_PROCESS__STATE_DIR", elsewhere.to_string_lossy().into_owned());
    let other = cluster.worker("worker-2")?;
    other.environment(&[setting]);
    other.start()?;
    cluster.healthy().await?;

    let unbind = ["placement", "unbind", "web-1", "--yes", "--reason", "burnt down"];
    cluster.rugctl(&unbind, "").await?.refused(1, &["worker-1 owns it"])?;

    cluster.worker("worker-1")?.kill()?;
    for process in cluster.instances().into_values() {
        processes::signal(process.pid, Signal::KILL);
    }
    until(PATIENCE, "it waits for its host", async || {
        let appliance = cluster.api.list().await?.remove(0);
        let assignment = appliance.assignment.context("no assignment")?;
        ensure!(assignment.state == "orphaned" && assignment.reason.contains("which no worker uses"), "{assignment:?}");
        Ok(())
    })
    .await?;

    let unbound = cluster.rugctl(&unbind, "").await?.success()?;
    ensure!(unbound.stdout.contains("is not bound to test-host any more"), "{unbound:?}");
    let audit = cluster.rugctl(&["audit", "web-1"], "").await?.success()?;
    let stored = audit.stdout.lines().any(|line| line.contains("unbind") && line.contains("burnt down"));
    ensure!(stored, "it was stored with the change: {audit:?}");
    let directory = elsewhere.canonicalize()?.to_string_lossy().into_owned();
    let runs_elsewhere = async || {
        let appliance = cluster.api.list().await?.remove(0);
        let dir = appliance.assignment.as_ref().map(|a| a.state_dir.as_str());
        let there = api::owner(&appliance) == "worker-2" && dir == Some(directory.as_str());
        ensure!(there && api::is_configured(&appliance), "{}", api::describe(&appliance));
        // The status may be that of before.
        let running = cluster.instances();
        ensure!(running.len() == 1, "{running:?}");
        Ok(running)
    };
    let running = until(PATIENCE, "it runs elsewhere", runs_elsewhere).await?;

    // The host was not lost after all. Its worker is given other appliances, and this one stays where it is.
    cluster.worker("worker-1")?.start()?;
    cluster.healthy().await?;
    cluster.fleet(vec![specs::web("web-2")]).await?;
    until(PATIENCE, "it stays elsewhere", async || {
        let appliance = cluster.api.list().await?.into_iter().find(|a| a.name == "web-1").context("it is listed")?;
        ensure!(api::owner(&appliance) == "worker-2", "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    let now = cluster.instances();
    ensure!(running.iter().all(|(name, identity)| now.get(name) == Some(identity)), "{running:?} became {now:?}");
    cluster.finish().await
}

#[tokio::test]
async fn a_worker_without_a_coordinator_says_so_keeps_trying_and_stops_when_asked() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let address = format!("http://127.0.0.1:{}", ports::free());
    let mut args: Vec<_> =
        ["run", "--name", "alone", "--coordinator", &address, "--host", "test-host", "--driver", "process"]
            .map(Into::into)
            .to_vec();
    args.extend(["--state-dir".into(), sandbox.path("workers").into_os_string()]);
    let mut worker = Daemon::new("alone", binaries::path("rug-worker")?, args, &sandbox);
    worker.start()?;
    until(PATIENCE, "it has said so more than once", async || {
        worker.check()?;
        let log = worker.log_text();
        let said = log.lines().filter(|line| line.contains(&address) && line.contains("WARN")).count();
        ensure!(said >= 2, "its log:\n{log}");
        Ok(())
    })
    .await?;
    let began = Instant::now();
    let status = worker.stop(Duration::from_secs(10)).await?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(began.elapsed() <= Duration::from_secs(2), "stopping took {:?}", began.elapsed());
    sandbox.finish(&[])
}

#[tokio::test]
async fn a_lost_worker_is_forgotten_once_its_lease_is_over_and_one_that_runs_is_not() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let forget = ["worker", "forget", "worker-2", "--yes"];
    let refused = cluster.rugctl(&forget, "").await?;
    ensure!(refused.code != 0 && refused.stderr.contains("it can be forgotten once that is over"), "{refused:?}");
    cluster.worker("worker-2")?.kill()?;
    cluster.rugctl(&forget, "").await?.success()?;
    let listed = cluster.rugctl(&["worker", "list"], "").await?.success()?;
    ensure!(!listed.stdout.contains("worker-2") && listed.stdout.contains("worker-1"), "{}", listed.stdout);
    cluster.finish().await
}
