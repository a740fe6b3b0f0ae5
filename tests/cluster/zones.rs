//! Tenants over zones: when they are created, when a zone fails, and when it comes back.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};

/// Tenants, and appliances of each.
const TENANTS: usize = 8;
const EACH: usize = 3;

fn of(tenant: usize, name: &str) -> v1::Appliance {
    v1::Appliance { tenant: format!("tenant-{tenant}"), ..specs::simulated(name) }
}

/// How many of each tenant each worker has, once all have an owner. Each worker is a zone of its own.
async fn spread(cluster: &Cluster, workers: usize) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut spread = BTreeMap::new();
    for appliance in cluster.api.list().await? {
        let owned = appliance.assignment.as_ref().is_some_and(|assignment| assignment.state == "owned");
        let owner = api::owner(&appliance).strip_prefix("worker-").and_then(|n| n.parse::<usize>().ok());
        let Some(owner) = owner.filter(|_| owned) else { anyhow::bail!("{}", api::describe(&appliance)) };
        spread.entry(appliance.tenant.clone()).or_insert_with(|| vec![0; workers])[owner - 1] += 1;
    }
    Ok(spread)
}

#[tokio::test]
async fn tenants_are_even_over_zones_and_are_so_again_when_a_zone_comes_back() -> Result<()> {
    let options = Options {
        drivers: vec!["simulated"],
        coordinator_env: vec![("RUG_COORDINATOR_MACHINE__PLANNER__SPREAD", "tenant".to_owned())],
        zones: 3,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await?;
    let listed = cluster.rugctl(&["worker", "list", "-o", "wide"], "").await?.success()?.stdout;
    ensure!((1..=3).all(|zone| listed.contains(&format!("zone-{zone}"))), "{listed}");
    let shown = cluster.rugctl(&["ring", "show"], "").await?.success()?.stdout;
    ensure!(shown.contains("strategy bounded, band 1.05, spread tenant"), "{shown}");

    let names = (0..TENANTS).flat_map(|tenant| (0..EACH).map(move |n| of(tenant, &format!("sim-{n}"))));
    cluster.fleet(names.collect()).await?;
    let placed = spread(&cluster, 3).await?;
    ensure!(placed.len() == TENANTS && placed.values().all(|zones| *zones == [1, 1, 1]), "{placed:?}");

    // A zone that fails takes one of each tenant with it, which the others share.
    let lost = cluster.rugctl(&["plan", "--lose-zone", "zone-2", "-o", "json"], "").await?.json()?;
    ensure!(lost["moves"] == TENANTS && lost["uneven_tenants"]["after"] == 0, "{lost}");
    cluster.worker("worker-2")?.kill()?;
    until(PATIENCE, "the other zones have taken over", async || {
        let placed = spread(&cluster, 3).await?;
        ensure!(placed.values().all(|zones| zones[1] == 0 && zones[0].abs_diff(zones[2]) == 1), "{placed:?}");
        Ok(())
    })
    .await?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    until(PATIENCE, "the zone has its part of each tenant", async || {
        let placed = spread(&cluster, 3).await?;
        let even = placed.values().filter(|zones| **zones == [1, 1, 1]).count();
        // The floor of eight is seven.
        ensure!(even >= TENANTS - 1, "{placed:?}");
        Ok(())
    })
    .await?;

    // What is explained is what comes.
    cluster.rugctl(&["placement", "pause"], "").await?.success()?;
    cluster.api.create(of(9, "first")).await?;
    cluster.rugctl(&["placement", "resume"], "").await?.success()?;
    until(PATIENCE, "the first is placed", async || spread(&cluster, 3).await.map(|_| ())).await?;
    cluster.rugctl(&["placement", "pause"], "").await?.success()?;
    cluster.api.create(of(9, "second")).await?;
    let explained = cluster.rugctl(&["explain", "-t", "tenant-9", "second"], "").await?.success()?.stdout;
    ensure!(explained.contains("a worker of a zone with fewer appliances of the tenant gets it"), "{explained}");
    cluster.rugctl(&["placement", "resume"], "").await?.success()?;
    until(PATIENCE, "the second is in another zone", async || {
        let placed = spread(&cluster, 3).await?;
        ensure!(placed["tenant-9"].iter().all(|count| *count < 2), "{placed:?}");
        Ok(())
    })
    .await?;
    let other = cluster.rugctl(&["plan", "--spread", "none", "-o", "json"], "").await?.json()?;
    ensure!(other["not_appliable"].as_str().is_some_and(|why| !why.is_empty()), "{other}");
    let wrong = cluster.rugctl(&["plan", "--spread", "rack"], "").await?;
    wrong.refused(2, &["none", "tenant"])?;
    cluster.finish().await
}
