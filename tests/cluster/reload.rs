//! Configuration that is read again.

use std::fs;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE};

#[tokio::test]
async fn settings_are_read_again_on_sighup_and_a_file_that_is_wrong_changes_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let file = cluster.root().join("coordinator.toml");
    fs::write(&file, "[log]\nfilter = \"info\"\n[machine]\ndebounce = \"500ms\"\n")?;
    cluster.coordinator.kill()?;
    cluster.coordinator.flag("--config", &file.to_string_lossy());
    cluster.coordinator.start()?;
    cluster.healthy().await?;
    cluster.tolerate("SIGHUP: nothing has changed");
    let said = async |cluster: &Cluster, text: &str| {
        until(PATIENCE, text, async || {
            ensure!(cluster.coordinator.log_text().contains(text));
            Ok(())
        })
        .await
    };
    cluster.coordinator.signal(Signal::HUP)?;
    said(&cluster, "configuration read again; nothing has changed").await?;
    fs::write(&file, "[log]\nfilter = \"info,coordinator=debug\"\n[machine]\ndebounce = \"600ms\"\n")?;
    cluster.coordinator.signal(Signal::HUP)?;
    said(&cluster, "in force: log.filter; needs a restart: machine.debounce").await?;
    fs::write(&file, "[log]\nfilter = \"warn\"\n[machine]\ndebounce = \"soon\"\n")?;
    cluster.coordinator.signal(Signal::HUP)?;
    said(&cluster, "SIGHUP: nothing has changed").await?;
    ensure!(cluster.coordinator.log_text().contains("machine.debounce"), "it says what is wrong");
    // A worker reads its own in the same way.
    cluster.worker("worker-1")?.signal(Signal::HUP)?;
    let log = cluster.worker("worker-1")?.log().to_owned();
    until(PATIENCE, "the worker has read its configuration", async || {
        ensure!(fs::read_to_string(&log)?.contains("configuration read again; nothing has changed"));
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn settings_are_read_again_by_the_api_and_what_is_not_applied_is_named() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let (own, file) = (cluster.root().join("coordinator.toml"), cluster.root().join("worker.toml"));
    fs::write(&own, "[log]\nfilter = \"info\"\n")?;
    fs::write(&file, "[log]\nfilter = \"info\"\n[session]\nlease = \"5s\"\n")?;
    cluster.coordinator.kill()?;
    cluster.coordinator.flag("--config", &own.to_string_lossy());
    cluster.coordinator.start()?;
    let worker = cluster.worker("worker-1")?;
    worker.kill()?;
    worker.flag("--config", &file.to_string_lossy());
    worker.start()?;
    cluster.healthy().await?;
    cluster.tolerate("nothing has changed: ");
    let reload = async |cluster: &Cluster, args: &[&str]| {
        let args: Vec<&str> = ["config", "reload"].iter().chain(args).copied().collect();
        cluster.rugctl(&args, "").await
    };
    let unchanged =
        "coordinator-1: nothing has changed\nworker-1: nothing has changed\nworker-2: nothing has changed\n";
    let said = reload(&cluster, &["--all"]).await?.success()?.stdout;
    ensure!(said == unchanged, "{said}");
    fs::write(&own, "[log]\nfilter = \"warn,coordinator=debug\"\n[machine]\ndebounce = \"600ms\"\n")?;
    fs::write(&file, "[log]\nfilter = \"info,worker=debug\"\n[session]\nlease = \"6s\"\n")?;
    let said = reload(&cluster, &[]).await?.success()?.stdout;
    let expected =
        "coordinator-1: in force: log.filter\ncoordinator-1: not applied, needs a restart: machine.debounce\n";
    ensure!(said == expected, "{said}");
    let told =
        reload(&cluster, &["--worker", "worker-1", "--reason", "louder", "-o", "json"]).await?.success()?.json()?;
    ensure!(told[0]["applied"] == serde_json::json!(["log.filter"]), "{told}");
    ensure!(told[0]["needs_restart"] == serde_json::json!(["session.lease"]), "{told}");
    // What cannot be used changes nothing, and does not keep others from reading theirs.
    fs::write(&file, "[session]\nlease = \"soon\"\n")?;
    let failed = reload(&cluster, &["--all"]).await?;
    ensure!(failed.stdout.contains("worker-1: nothing has changed: "), "{}", failed.stdout);
    ensure!(failed.stdout.contains("session.lease"), "it says what is wrong: {}", failed.stdout);
    ensure!(failed.stdout.contains("worker-2: nothing has changed\n"), "{}", failed.stdout);
    failed.refused(1, &["1 of 3"])?;
    reload(&cluster, &["--worker", "worker-9"]).await?.refused(4, &["worker-9"])?;
    let audited = cluster.rugctl(&["audit", "worker-1", "--action", "config-reload"], "").await?.success()?.stdout;
    ensure!(audited.contains("louder"), "{audited}");
    cluster.finish().await
}
