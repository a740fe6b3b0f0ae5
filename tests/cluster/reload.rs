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
