//! Everything ends and starts again.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, ports, specs};

/// A cluster with a fleet of 9 appliances of both kinds.
async fn start() -> Result<Cluster> {
    let cluster = Cluster::start(Options::default()).await?;
    let mut fleet: Vec<_> = (1..=8).map(|n| specs::web(&format!("web-{n}"))).collect();
    fleet.push(specs::balancer("front", ports::free(), &[]));
    cluster.fleet(fleet).await?;
    Ok(cluster)
}

/// Starts everything and waits until every appliance was adopted.
async fn start_again(cluster: &mut Cluster) -> Result<()> {
    let running = cluster.instances();
    ensure!(running.len() == 9, "the appliances did not outlive Rug: {running:?}");
    cluster.start_all().await?;
    until(PATIENCE, "all are adopted", async || {
        let appliances = cluster.api.list().await?;
        ensure!(appliances.len() == 9, "{} appliances", appliances.len());
        for appliance in &appliances {
            let owned = appliance.assignment.as_ref().is_some_and(|a| a.state == "owned");
            ensure!(owned && api::is_configured(appliance), "{}", api::describe(appliance));
            ensure!(!api::pids(appliance).is_empty(), "{}", api::describe(appliance));
        }
        Ok(())
    })
    .await?;
    ensure!(cluster.instances() == running, "appliances were restarted");
    Ok(())
}

#[tokio::test]
async fn appliances_outlive_a_stop_and_start_of_everything() -> Result<()> {
    let mut cluster = start().await?;
    for worker in &mut cluster.workers {
        let status = worker.stop(Duration::from_secs(15)).await?;
        ensure!(status.success(), "{} ended with {status}", worker.name());
    }
    let status = cluster.coordinator.stop(Duration::from_secs(15)).await?;
    ensure!(status.success(), "the coordinator ended with {status}");
    start_again(&mut cluster).await?;

    // And the other way round.
    let status = cluster.coordinator.stop(Duration::from_secs(15)).await?;
    ensure!(status.success(), "the coordinator ended with {status}");
    for worker in &mut cluster.workers {
        let status = worker.stop(Duration::from_secs(15)).await?;
        ensure!(status.success(), "{} ended with {status}", worker.name());
    }
    start_again(&mut cluster).await?;
    cluster.finish().await
}

#[tokio::test]
async fn appliances_outlive_a_kill_of_everything() -> Result<()> {
    let mut cluster = start().await?;
    cluster.coordinator.kill()?;
    for worker in &mut cluster.workers {
        worker.kill()?;
    }
    start_again(&mut cluster).await?;
    cluster.finish().await
}
