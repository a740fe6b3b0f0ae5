//! Budgets of disruption over drains, rollouts and the deaths of workers and leaders; rebalances that are aborted and undone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};

/// Tenants, and appliances of each.
const TENANTS: usize = 4;
const EACH: usize = 12;

fn fleet() -> Vec<v1::Appliance> {
    let of = |tenant: usize| {
        (0..EACH).map(move |n| v1::Appliance {
            tenant: format!("tenant-{tenant}"),
            ..specs::simulated(&format!("sim-{n:02}"))
        })
    };
    (0..TENANTS).flat_map(of).collect()
}

/// Whether an appliance is unavailable, as anybody sees it.
fn is_down(appliance: &v1::Appliance) -> bool {
    let owned = appliance.assignment.as_ref().is_some_and(|assignment| assignment.state == "owned");
    let acted = appliance.status.as_ref().is_some_and(|status| status.observed_generation >= appliance.generation);
    !(owned && acted && api::is_configured(appliance))
}

/// How many are unavailable in each tenant.
async fn down(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    let mut down = BTreeMap::new();
    for appliance in cluster.api.list().await?.iter().filter(|appliance| is_down(appliance)) {
        *down.entry(appliance.tenant.clone()).or_default() += 1;
    }
    Ok(down)
}

/// The owner of each appliance.
async fn owners(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let all = cluster.api.list().await?;
    Ok(all.iter().map(|appliance| (appliance.id.clone(), api::owner(appliance).to_owned())).collect())
}

/// How many the first worker has.
async fn left(cluster: &Cluster) -> Result<u64> {
    let worker = cluster.api.workers().await?.into_iter().find(|w| w.id == "worker-1").context("it is there")?;
    Ok(worker.appliances)
}

#[tokio::test]
async fn a_drain_and_a_rollout_at_once_take_down_no_more_of_a_tenant_than_its_budget() -> Result<()> {
    let mut cluster = Cluster::start(Options { drivers: vec!["simulated"], ..Options::default() }).await?;
    cluster.fleet(fleet()).await?;
    let set = ["budget", "set", "tenants", "--per", "tenant", "--max-unavailable", "1", "--reason", "promised"];
    let said = cluster.rugctl(&set, "").await?.success()?.stdout;
    ensure!(said.contains("budget tenants is in force: at most 1 per tenant of 48 appliances"), "{said}");
    until(PATIENCE, "the leader has heard of all", async || {
        let listed = cluster.rugctl(&["budget", "list", "-o", "json"], "").await?.json()?;
        ensure!(listed[0]["down"] == 0 && listed[0]["groups"] == TENANTS, "{listed}");
        Ok(())
    })
    .await?;

    cluster.rugctl(&["worker", "drain", "worker-1", "--reason", "disks"], "").await?.success()?;
    let start =
        ["rollout", "start", "rebuild", "--all", "--max-unavailable", "48", "--no-wait", "--yes", "-o", "json"];
    let rollout = cluster.rugctl(&start, "").await?.json()?;
    let rollout = rollout["id"].as_str().context("an id")?.to_owned();
    let (mut most, mut looks, mut several) = (0, 0, false);
    let done = until(Duration::from_secs(120), "both have ended", async || {
        let down = down(&cluster).await?;
        most = most.max(down.values().copied().max().unwrap_or_default());
        several |= down.len() > 1;
        looks += 1;
        ensure!(most <= 1, "more than one at a time: {down:?}");
        let rollouts = cluster.rugctl(&["rollout", "get", &rollout, "-o", "json"], "").await?.json()?;
        ensure!(rollouts["state"] == "completed", "{rollouts}");
        let worker = cluster.api.workers().await?.into_iter().find(|w| w.id == "worker-1").context("it is there")?;
        ensure!(worker.appliances == 0, "{} are left", worker.appliances);
        Ok(rollouts)
    })
    .await;
    ensure!(most <= 1, "more than one of a tenant was down: {most}");
    let done = done?;
    ensure!(done["done"] == TENANTS * EACH && done["failed"] == 0, "{done}");
    eprintln!("{looks} looks, several tenants at a time: {several}");

    // One that is asked for by itself waits for nobody, and is refused.
    cluster.rugctl(&["budget", "set", "none", "-t", "tenant-0", "--max-unavailable", "0"], "").await?.success()?;
    let refused = cluster.rugctl(&["rebuild", "tenant-0/sim-00"], "").await?;
    refused.refused(5, &["budget none allows 0 unavailable, and 0 are", "--force"])?;
    cluster.rugctl(&["rebuild", "tenant-1/sim-00"], "").await?.success()?;
    cluster.rugctl(&["rebuild", "tenant-0/sim-00", "--force"], "").await?.success()?;

    // What has lost its owner finds one, whatever budgets say, and budgets outlive the leader.
    cluster.rugctl(&["worker", "undrain", "worker-1"], "").await?.success()?;
    cluster.coordinator.kill()?;
    cluster.worker("worker-2")?.kill()?;
    cluster.coordinator.start()?;
    until(PATIENCE, "all have owners", async || {
        let down = down(&cluster).await?;
        ensure!(down.is_empty(), "{down:?}");
        Ok(())
    })
    .await?;
    let listed = cluster.rugctl(&["budget", "list", "-o", "json"], "").await?.json()?;
    let names: Vec<_> = listed.as_array().into_iter().flatten().map(|budget| budget["name"].clone()).collect();
    ensure!(names == ["none", "tenants"] && listed[1]["reason"] == "promised", "{listed}");
    cluster.rugctl(&["budget", "clear", "none"], "").await?.success()?;
    cluster.rugctl(&["budget", "clear", "tenants"], "").await?.success()?;
    let said = cluster.rugctl(&["budget", "list"], "").await?.success()?.stdout;
    ensure!(said.contains("there are no budgets"), "{said}");
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_rebalance_is_aborted_over_the_death_of_the_leader_and_what_it_moved_goes_back() -> Result<()> {
    let names = ["RUG_COORDINATOR_MACHINE__MOVES_AT_ONCE", "RUG_COORDINATOR_MACHINE__MAX_MOVES_PER_WORKER"];
    let mut cluster = Cluster::start(Options {
        drivers: vec!["simulated"],
        coordinator_env: names.map(|name| (name, "1".to_owned())).to_vec(),
        ..Options::default()
    })
    .await?;
    cluster.fleet((1..=240).map(|n| specs::simulated(&format!("sim-{n:03}"))).collect()).await?;
    let before = owners(&cluster).await?;
    cluster.rugctl(&["worker", "drain", "worker-1"], "").await?.success()?;
    let all = before.values().filter(|owner| *owner == "worker-1").count() as u64;
    until(PATIENCE, "some have moved", async || {
        let left = left(&cluster).await?;
        ensure!(left + 5 < all, "{left} of {all}");
        Ok(())
    })
    .await?;
    let aborted = cluster.rugctl(&["rebalance", "abort", "--reason", "too fast", "-o", "json"], "").await?.json()?;
    let id = aborted["id"].as_str().context("an id")?.to_owned();
    let ended = until(PATIENCE, "the rebalance has ended", async || {
        let rebalance = cluster.api.rebalance(&id).await?;
        ensure!(rebalance.outcome == "aborted", "{rebalance:?}");
        Ok(rebalance)
    })
    .await?;
    ensure!(ended.moves_done > 0 && ended.moves_done < all, "{} of {all}", ended.moves_done);
    let stays = left(&cluster).await?;
    ensure!(stays > 0 && stays + ended.moves_done == all, "{stays} + {} of {all}", ended.moves_done);
    let status = cluster.rugctl(&["cluster", "status"], "").await?.success()?.stdout;
    ensure!(status.contains(&format!("moves alone: rebalance {id} was aborted: too fast")), "{status}");
    let held = cluster.api.list().await?.into_iter().find(|a| api::owner(a) == "worker-1").context("one stays")?;
    let explained = cluster.rugctl(&["explain", &held.id], "").await?.success()?.stdout;
    ensure!(explained.contains("moves are paused"), "{explained}");

    // Neither another leader nor new appliances change that; those find owners.
    cluster.coordinator.kill()?;
    cluster.coordinator.start()?;
    cluster.healthy().await?;
    cluster.fleet((241..=246).map(|n| specs::simulated(&format!("sim-{n:03}"))).collect()).await?;
    ensure!(left(&cluster).await? == stays, "it has {} instead of {stays}", left(&cluster).await?);
    cluster.rugctl(&["rebalance", "abort"], "").await?.refused(5, &["no rebalance runs"])?;

    // Back to where it was: the pins are orders like others, shown and found again.
    cluster.rugctl(&["worker", "undrain", "worker-1"], "").await?.success()?;
    cluster.rugctl(&["placement", "resume"], "").await?.success()?;
    let undone = cluster.rugctl(&["rebalance", "undo", &id, "--reason", "worse", "--yes"], "").await?.success()?;
    ensure!(undone.stdout.contains("pinned to the workers that had them before"), "{undone:?}");
    let moved: BTreeSet<String> = ended.r#move.iter().map(|made| made.appliance.clone()).collect();
    until(PATIENCE, "all are back", async || {
        let now = owners(&cluster).await?;
        let wrong = moved.iter().filter(|id| now.get(*id) != before.get(*id)).count();
        ensure!(wrong == 0, "{wrong} are elsewhere");
        Ok(())
    })
    .await?;
    let unpinned = cluster.rugctl(&["placement", "unpin", "--undo-of", &id, "--yes"], "").await?.success()?.stdout;
    ensure!(unpinned.contains("not pinned any more"), "{unpinned}");
    cluster.finish().await
}
