//! Orders of operators: drains, cordons, weights and pins, over the deaths of leaders and workers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, rugctl, specs};

/// How many appliances are with a worker, once all have an owner.
async fn with(cluster: &Cluster, worker: &str) -> Result<usize> {
    let all = cluster.api.list().await?;
    let owned = |a: &v1::Appliance| a.assignment.as_ref().is_some_and(|x| x.state == "owned");
    if let Some(other) = all.iter().find(|a| !owned(a)) {
        anyhow::bail!("{}", api::describe(other));
    }
    Ok(all.iter().filter(|a| api::owner(a) == worker).count())
}

/// Waits until a worker has so many.
async fn comes_to(cluster: &Cluster, worker: &str, holds: impl Fn(usize) -> bool) -> Result<()> {
    until(PATIENCE, "it has what it is to have", async || {
        let count = with(cluster, worker).await?;
        ensure!(holds(count), "{worker} has {count}");
        Ok(())
    })
    .await
}

/// A fleet that exists in memory, from this number on.
fn simulated(numbers: std::ops::RangeInclusive<usize>) -> Vec<v1::Appliance> {
    numbers.map(|n| specs::simulated(&format!("sim-{n}"))).collect()
}

fn slow_moves() -> Options {
    Options {
        drivers: vec!["process", "simulated"],
        coordinator_env: vec![("RUG_COORDINATOR_MACHINE__MAX_MOVES_PER_WORKER", "1".to_owned())],
        ..Options::default()
    }
}

#[tokio::test]
async fn a_drain_goes_on_under_the_next_leader_and_holds_until_it_is_taken_back() -> Result<()> {
    let mut cluster = Cluster::start(slow_moves()).await?;
    cluster.fleet((1..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    cluster.fleet(simulated(1..=240)).await?;
    let running = cluster.instances();
    let before = with(&cluster, "worker-1").await?;
    ensure!(before > 60, "{before}");

    let (root, server) = (cluster.root().to_owned(), cluster.api.address().to_owned());
    let drain = tokio::spawn(async move {
        let args = ["worker", "drain", "worker-1", "--wait", "--reason", "new disks", "--server", &server];
        rugctl::run(&root, &args, "").await
    });
    until(PATIENCE, "the drain is under way", async || {
        let left = cluster.api.workers().await?.into_iter().find(|w| w.id == "worker-1").context("it is there")?;
        ensure!(left.drained && left.appliances < before as u64, "{} are left", left.appliances);
        Ok(())
    })
    .await?;
    cluster.coordinator.kill()?;
    cluster.coordinator.start()?;
    let drained = drain.await??.success()?;
    ensure!(drained.stdout.contains("worker-1 is drained: it owns nothing"), "{drained:?}");
    ensure!(cluster.instances() == running, "no appliance was restarted");
    let status = cluster.rugctl(&["cluster", "status"], "").await?.success()?.stdout;
    ensure!(status.contains("worker-1 drained: new disks (by 127.0.0.1"), "{status}");

    // It starts anew, is a member, and is given nothing.
    cluster.worker("worker-1")?.kill()?;
    cluster.worker("worker-1")?.start()?;
    cluster.healthy().await?;
    cluster.fleet(simulated(241..=250)).await?;
    ensure!(with(&cluster, "worker-1").await? == 0, "it was given something");
    let shown = cluster.rugctl(&["worker", "get", "worker-1", "-o", "json"], "").await?.json()?;
    ensure!(shown["drained"] == true && shown["member"] == true && shown["immovable"] == 0, "{shown}");
    ensure!(shown["orders"][0]["order"] == "drain" && shown["orders"][0]["reason"] == "new disks", "{shown}");
    let listed = cluster.rugctl(&["worker", "list"], "").await?.success()?.stdout;
    ensure!(listed.contains("healthy, drained"), "{listed}");

    cluster.rugctl(&["worker", "undrain", "worker-1"], "").await?.success()?;
    comes_to(&cluster, "worker-1", |n| n >= 75).await?;
    let audit = cluster.rugctl(&["audit", "worker-1"], "").await?.success()?.stdout;
    ensure!(audit.contains("undrain") && audit.contains("new disks"), "{audit}");

    // One that is cordoned keeps what it has, and another weight is one of the operator's.
    cluster.rugctl(&["worker", "cordon", "worker-2", "--reason", "noisy"], "").await?.success()?;
    let kept = with(&cluster, "worker-2").await?;
    cluster.fleet(simulated(251..=270)).await?;
    ensure!(with(&cluster, "worker-2").await? == kept, "it was given something, or lost something");
    cluster.rugctl(&["worker", "uncordon", "worker-2"], "").await?.success()?;
    let weighted = cluster.rugctl(&["worker", "weight", "worker-2", "3"], "").await?.success()?.stdout;
    ensure!(weighted == "worker-2 has weight 3; it publishes 1\n", "{weighted}");
    comes_to(&cluster, "worker-2", |n| n > 140).await?;
    cluster.finish().await
}

#[tokio::test]
async fn pins_hold_over_leaders_and_the_last_able_worker_is_not_drained_unasked() -> Result<()> {
    let options = Options { workers: 2, drivers: vec!["simulated"], ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    cluster.fleet(simulated(1..=6)).await?;
    let pinned =
        cluster.api.list().await?.into_iter().find(|a| api::owner(a) == "worker-1").context("three are there")?;
    let name = pinned.name.clone();
    let pin = ["placement", "pin", &name, "worker-2", "--strict", "--reason", "licence"];
    let said = cluster.rugctl(&pin, "").await?.success()?.stdout;
    ensure!(said.contains("is pinned to worker-2 alone"), "{said}");
    let is_with = async |cluster: &Cluster, worker: &str| -> Result<()> {
        until(PATIENCE, "it is where it is pinned", async || {
            let found = cluster.api.get(&name).await?;
            ensure!(api::owner(&found) == worker && api::is_configured(&found), "{}", api::describe(&found));
            Ok(())
        })
        .await
    };
    is_with(&cluster, "worker-2").await?;

    cluster.coordinator.kill()?;
    cluster.coordinator.start()?;
    cluster.healthy().await?;
    is_with(&cluster, "worker-2").await?;
    let shown = cluster.rugctl(&["get", &name, "-o", "json"], "").await?.json()?;
    let pin = &shown["status"]["assignment"]["pin"];
    ensure!(pin["worker"] == "worker-2" && pin["strict"] == true && pin["reason"] == "licence", "{shown}");

    // Without its worker it has no owner, and says why.
    cluster.worker("worker-2")?.kill()?;
    until(PATIENCE, "it waits for its worker", async || {
        let explained = cluster.rugctl(&["explain", &name], "").await?.success()?.stdout;
        ensure!(explained.contains("it is pinned to worker-2 alone, which cannot take it now"), "{explained}");
        ensure!(explained.contains("the appliance is pinned to another worker alone"), "{explained}");
        Ok(())
    })
    .await?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    is_with(&cluster, "worker-2").await?;

    let refused = cluster.rugctl(&["worker", "drain", "worker-2"], "").await?;
    refused.refused(1, &["worker worker-2 is the only one that can take 1 appliance pinned to it alone"])?;
    cluster.rugctl(&["placement", "unpin", &name], "").await?.success()?;
    cluster.rugctl(&["worker", "drain", "worker-2", "--wait"], "").await?.success()?;
    let refused = cluster.rugctl(&["worker", "drain", "worker-1"], "").await?;
    refused.refused(1, &["only one that can take 6 appliances of driver `simulated` and kind `custom`", "--force"])?;
    let forced = cluster.rugctl(&["worker", "drain", "worker-1", "--force", "--wait"], "").await?.success()?.stdout;
    ensure!(forced.contains("worker-1 is drained but for 6 appliances that no other worker can take: "), "{forced}");
    let twice = cluster.rugctl(&["worker", "drain", "worker-1", "--wait"], "").await?;
    twice.refused(1, &["still owns what no other worker can take"])?;
    cluster.rugctl(&["worker", "drain", "no-such"], "").await?.refused(4, &["no-such"])?;
    cluster.rugctl(&["placement", "pin", &name, "no-such"], "").await?.refused(4, &["no-such"])?;
    for worker in ["worker-1", "worker-2"] {
        cluster.rugctl(&["worker", "undrain", worker], "").await?.success()?;
    }
    comes_to(&cluster, "worker-2", |n| n >= 2).await?;
    tokio::time::timeout(Duration::from_secs(60), cluster.finish()).await?
}

#[tokio::test]
async fn a_plan_is_shown_before_anything_moves_and_applied_only_to_the_table_it_was_made_from() -> Result<()> {
    let cluster = Cluster::start(Options { drivers: vec!["simulated"], ..Options::default() }).await?;
    cluster.fleet(simulated(1..=60)).await?;
    comes_to(&cluster, "worker-1", |n| n >= 19).await?;
    let history = cluster.api.rebalances().await?.len();
    let shown =
        cluster.rugctl(&["plan", "--drain", "worker-1", "--weight", "worker-2=2", "-o", "json"], "").await?.json()?;
    let moves = shown["move"].as_array().context("no moves")?.clone();
    ensure!(!moves.is_empty() && shown["moves"] == moves.len() && shown["loads"]["worker-1"]["after"] == 0, "{shown}");
    ensure!(shown["tenants"]["default"] == moves.len() && shown["unplaced_count"] == 0, "{shown}");
    ensure!(cluster.api.rebalances().await?.len() == history, "nothing moves by being shown");

    // Another appliance: the table is another one.
    let id = shown["id"].as_str().context("no id")?.to_owned();
    cluster.fleet(simulated(61..=61)).await?;
    let version = shown["version"].as_str().context("no version")?;
    let stale = cluster.rugctl(&["plan", "apply", &id], "").await?;
    stale.refused(5, &["the plan was made from", version, "nothing was changed"])?;
    ensure!(cluster.api.rebalances().await?.len() == history, "nothing moved");

    let shown =
        cluster.rugctl(&["plan", "--drain", "worker-1", "--weight", "worker-2=2", "-o", "json"], "").await?.json()?;
    let id = shown["id"].as_str().context("no id")?.to_owned();
    let before = std::time::Instant::now();
    let applied = cluster.rugctl(&["plan", "apply", &id, "--reason", "maintenance"], "").await?.success()?.stdout;
    ensure!(applied.contains("is applied"), "{applied}");
    comes_to(&cluster, "worker-1", |n| n == 0).await?;
    let made = until(PATIENCE, "the rebalance has ended", async || {
        let newest = cluster.api.rebalances().await?.into_iter().next().context("there is one")?;
        ensure!(newest.outcome == "completed", "{newest:?}");
        Ok(cluster.api.rebalance(&newest.id).await?)
    })
    .await?;
    eprintln!("planned {} s, took at most {:?}", shown["seconds"], before.elapsed());
    let made: std::collections::BTreeSet<_> = made.r#move.into_iter().map(|m| (m.appliance, m.from, m.to)).collect();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let planned: std::collections::BTreeSet<_> = shown["move"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| (text(&m["appliance"]), text(&m["from"]), text(&m["to"])))
        .collect();
    ensure!(
        made == planned,
        "made, not planned: {:?}; planned, not made: {:?}",
        made.difference(&planned),
        planned.difference(&made)
    );
    let shown = cluster.rugctl(&["worker", "get", "worker-2", "-o", "json"], "").await?.json()?;
    ensure!(shown["weight"] == 2 && shown["orders"][0]["reason"] == "maintenance", "{shown}");
    // What is no order cannot be applied, and is shown all the same.
    let joined = cluster.rugctl(&["plan", "--join", "worker-9", "--lose-zone", "no-such"], "").await?;
    joined.refused(2, &["no worker is in zone no-such"])?;
    let joined =
        cluster.rugctl(&["plan", "--join", "worker-9,weight=2", "--undrain", "worker-1"], "").await?.success()?;
    ensure!(
        joined.stdout.contains("worker-9") && joined.stdout.contains("not possible: workers that join"),
        "{joined:?}"
    );
    cluster.rugctl(&["plan", "apply", "p0123456789abcdef"], "").await?.refused(4, &["was not made here"])?;
    cluster.finish().await
}
