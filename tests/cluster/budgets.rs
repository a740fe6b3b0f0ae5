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
    let start = ["rollout", "start", "rebuild", "--all", "--max-unavailable", "48", "--no-wait", "--yes", "-o", "json"];
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
    refused.refused(1, &["budget none allows 0 unavailable, and 0 are", "--force"])?;
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
    let mut cluster = Cluster::start(Options {
        drivers: vec!["simulated"],
        coordinator_env: vec![("RUG_COORDINATOR_MACHINE__MAX_MOVES_PER_WORKER", "1".to_owned())],
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
    cluster.rugctl(&["rebalance", "abort"], "").await?.refused(1, &["no rebalance runs"])?;

    // Back to where it was: the pins are orders like others, shown and found again.
    cluster.rugctl(&["worker", "undrain", "worker-1"], "").await?.success()?;
    let undone = cluster.rugctl(&["rebalance", "undo", &id, "--reason", "worse", "--yes"], "").await?.success()?;
    ensure!(undone.stdout.contains("pinned to the workers that had them before"), "{undone:?}");
    ensure!(undone.stderr.contains("moves are paused"), "{undone:?}");
    cluster.rugctl(&["placement", "resume"], "").await?.success()?;
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

/// The members of a list in JSON.
fn list(value: &serde_json::Value) -> &[serde_json::Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[tokio::test]
async fn a_dump_plans_without_a_server_and_the_past_is_replayed_as_it_was() -> Result<()> {
    let mut cluster = Cluster::start(Options { drivers: vec!["simulated"], ..Options::default() }).await?;
    cluster.fleet((1..=120).map(|n| specs::simulated(&format!("sim-{n:03}"))).collect()).await?;
    cluster.rugctl(&["worker", "drain", "worker-1"], "").await?.success()?;
    until(PATIENCE, "it is drained", async || {
        let left = left(&cluster).await?;
        ensure!(left == 0, "{left}");
        Ok(())
    })
    .await?;
    cluster.rugctl(&["worker", "undrain", "worker-1"], "").await?.success()?;
    until(PATIENCE, "it has its share again", async || {
        let left = left(&cluster).await?;
        ensure!(left >= 38, "{left}");
        Ok(())
    })
    .await?;
    cluster.worker("worker-2")?.kill()?;
    until(PATIENCE, "what it had has other owners", async || {
        let owners = owners(&cluster).await?;
        ensure!(owners.values().all(|owner| !owner.is_empty() && owner != "worker-2"), "{owners:?}");
        Ok(())
    })
    .await?;
    let history = until(PATIENCE, "all has ended", async || {
        let all = cluster.api.rebalances().await?;
        ensure!(all.len() >= 3 && all.iter().all(|it| it.outcome != "running"), "{all:?}");
        Ok(all)
    })
    .await?;

    let text = cluster.rugctl(&["cluster", "dump"], "").await?.success()?.stdout;
    let dump: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(list(&dump["appliances"]).len() == 120 && list(&dump["rebalances"]).len() == history.len(), "{text}");
    ensure!(list(&dump["rebalances"]).iter().all(|it| !list(&it["members"]).is_empty()), "members are known: {text}");
    let file = cluster.root().join("dump.json");
    std::fs::write(&file, &text)?;
    let file = file.to_string_lossy().into_owned();

    // What happened, as the history has it, and as it would have been.
    let args = ["plan", "replay", "--from", &file, "--band", "1.0", "--band", "3", "--ring", "-o", "json"];
    let accounts = cluster.rugctl(&args, "").await?.json()?;
    let policies: Vec<_> = list(&accounts).iter().filter_map(|it| it["policy"].as_str()).collect();
    ensure!(policies == ["what happened", "as configured (band 1.05)", "band 1", "band 3", "ring"], "{accounts}");
    let mut done = 0;
    for it in &history {
        done += cluster.api.rebalance(&it.id).await?.r#move.iter().filter(|made| made.state == "done").count() as u64;
    }
    let happened = &accounts[0];
    let counted = happened["hand_offs"].as_u64().unwrap_or_default() + happened["orphans"].as_u64().unwrap_or_default();
    ensure!(counted == done && happened["rebalances"] == history.len(), "{done} moves: {accounts}");
    ensure!(happened["orphans"].as_u64() >= Some(38), "{accounts}");
    let again = &accounts[1];
    let moves = |it: &serde_json::Value| it["hand_offs"].as_u64().unwrap_or_default();
    ensure!(moves(again).abs_diff(moves(happened)) <= 10, "the policy in force makes about what was made: {accounts}");
    ensure!(moves(&accounts[3]) <= moves(&accounts[2]), "a wide band moves less: {accounts}");

    // The file plans as the server does.
    let live = cluster.rugctl(&["plan", "--drain", "worker-1", "-o", "json"], "").await?.json()?;
    let offline = cluster.rugctl(&["plan", "--from", &file, "--drain", "worker-1", "-o", "json"], "").await?.json()?;
    let moved = |plan: &serde_json::Value| -> BTreeSet<String> {
        list(&plan["move"]).iter().map(|it| format!("{} {} {}", it["appliance"], it["from"], it["to"])).collect()
    };
    ensure!(moved(&live) == moved(&offline) && !moved(&live).is_empty(), "{live}\n{offline}");
    ensure!(offline["not_appliable"] == "it was made of a file", "{offline}");
    let unknown = cluster.rugctl(&["plan", "--from", &file, "--drain", "nobody"], "").await?;
    unknown.refused(4, &["nobody is no worker of the file"])?;
    let other = cluster.rugctl(&["plan", "--from", "/dev/null"], "").await?;
    other.refused(1, &["is not what `rugctl cluster dump` writes"])?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    cluster.finish().await
}
