//! An appliance that kills every worker that starts it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};

/// Kills the parent of its shim, if that is the worker that starts it. By what the shell has built in, because it has to happen while
/// the worker still watches the start.
const POISON: &str =
    "read -r _ _ _ p _ </proc/$PPID/stat; read -r c </proc/$p/comm; [ \"$c\" = rug-worker ] && kill -9 $p";

#[tokio::test]
async fn an_appliance_that_kills_its_workers_is_quarantined_until_it_is_changed() -> Result<()> {
    // The first death proves nothing, three more are the strikes, and one worker has to be left.
    let mut cluster = Cluster::start(Options { workers: 5, ..Options::default() }).await?;
    cluster.fleet((1..=5).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let running = cluster.instances();

    let mut poison = specs::web("poison");
    let custom = specs::custom(&mut poison);
    custom.command = "sh".into();
    custom.args = vec!["-c".into(), POISON.into()];
    let id = cluster.api.create(poison).await?.id;
    until(PATIENCE, "it is quarantined", async || {
        let poison = cluster.api.get("poison").await?;
        let assignment = poison.assignment.clone().unwrap_or_default();
        ensure!(assignment.worker.is_empty(), "{}", api::describe(&poison));
        ensure!(assignment.reason.starts_with("quarantined: 3 workers died"), "{}", api::describe(&poison));
        Ok(())
    })
    .await?;
    let mut died = 0;
    for worker in &mut cluster.workers {
        if worker.check().is_err() {
            worker.ended(Duration::from_secs(1)).await?;
            died += 1;
        }
    }
    ensure!(died == 4, "{died} workers died");
    let journals = tests::journal::read(&cluster.state_dir())?;
    let spawned = journals.get(&id).into_iter().flatten().filter(|line| line.action == "spawn" && line.begins());
    let attempts: Vec<u64> = spawned.map(|line| line.instance.1).collect();
    ensure!(attempts == [1, 2, 3, 4], "numbers of attempts are used once, those of dead workers too: {attempts:?}");
    until(PATIENCE, "the last worker keeps all others alive", async || {
        for appliance in cluster.api.list().await?.into_iter().filter(|a| a.name != "poison") {
            let healthy =
                cluster.api.workers().await?.into_iter().filter(|w| w.health() == proto::admin::v1::Health::Healthy);
            let names: Vec<String> = healthy.map(|w| w.id).collect();
            ensure!(names.len() == 1 && names[0] == api::owner(&appliance), "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    ensure!(cluster.instances() == running, "others were restarted");
    let said = cluster.rugctl(&["explain", "poison"], "").await?;
    ensure!(said.stdout.contains("update, rebuild or delete it to try again"), "{said:?}");

    cluster.api.apply(specs::web("poison")).await?;
    until(PATIENCE, "what it is now is granted and kept alive", async || {
        let poison = cluster.api.get("poison").await.context("get")?;
        ensure!(api::is_configured(&poison), "{}", api::describe(&poison));
        Ok(())
    })
    .await?;
    cluster.finish().await
}
