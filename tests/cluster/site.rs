//! Which worker may have what runs in a state directory: by the id in it, not by the name of the host.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, Sandbox, api, binaries, specs};
use tokio::process::Command;

/// What `rug-worker site` prints, or how it refuses.
async fn site(dir: &Path, args: &[&str]) -> Result<std::process::Output> {
    let mut command = Command::new(binaries::path("rug-worker")?);
    command.args(["site", "--state-dir"]).arg(dir).args(args).kill_on_drop(true);
    Ok(tokio::time::timeout(PATIENCE, command.output()).await??)
}

/// The id of a state directory.
fn id_of(dir: &Path) -> Result<String> {
    let text = fs::read_to_string(dir.join("site"))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("id=")).context("it has an id")?.to_owned())
}

async fn all_owned_by(cluster: &Cluster, worker: &str) -> Result<()> {
    until(PATIENCE, "all are owned and well", async || {
        for appliance in cluster.api.list().await? {
            let well = api::owner(&appliance) == worker && api::is_configured(&appliance);
            ensure!(well, "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_renamed_host_keeps_its_appliances_and_a_namesake_does_not_get_them() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    cluster.worker("worker-2")?.stop(Duration::from_secs(10)).await?;
    cluster.fleet((1..=3).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let running = cluster.instances();
    let id = id_of(&cluster.state_dir())?;
    let shown = cluster.rugctl(&["get", "web-1", "-o", "json"], "").await?.json()?;
    ensure!(shown["status"]["assignment"]["site"] == id.as_str(), "{shown}");

    // The same host name, and a directory that is another one: with the same path it would be a container of this name.
    let elsewhere = cluster.root().join("elsewhere");
    let other = cluster.worker("worker-2")?;
    other.environment(&[("RUG_WORKER_PROCESS__STATE_DIR", elsewhere.to_string_lossy().into_owned())]);
    other.start()?;
    cluster.healthy().await?;
    ensure!(id_of(&elsewhere)? != id, "every directory has an id of its own");
    cluster.worker("worker-1")?.kill()?;
    let path = cluster.state_dir().canonicalize()?;
    let waits =
        format!("its instances are kept on host test-host in {} (site {id}), which no worker uses", path.display());
    until(PATIENCE, "they wait for their site", async || {
        for appliance in cluster.api.list().await? {
            let assignment = appliance.assignment.clone().context("no assignment")?;
            ensure!(assignment.reason == waits && api::owner(&appliance).is_empty(), "{assignment:?}");
        }
        Ok(())
    })
    .await?;

    // The machine has got another name meanwhile.
    let renamed = cluster.worker("worker-1")?;
    renamed.flag("--host", "renamed");
    renamed.start()?;
    all_owned_by(&cluster, "worker-1").await?;
    ensure!(cluster.instances() == running, "something was restarted: {:?}", cluster.instances());
    let shown = cluster.rugctl(&["get", "web-1", "-o", "json"], "").await?.json()?;
    let assignment = &shown["status"]["assignment"];
    ensure!(assignment["site"] == id.as_str() && assignment["host"] == "renamed", "{shown}");
    let shown = cluster.rugctl(&["worker", "get", "worker-1"], "").await?.success()?;
    ensure!(shown.stdout.contains(&format!("(site {id})")), "{shown:?}");
    cluster.finish().await
}

#[tokio::test]
async fn a_copied_state_directory_is_refused_until_somebody_says_what_it_is() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (original, copy) = (sandbox.path("original"), sandbox.path("copy"));
    let refused = site(&original, &[]).await?;
    ensure!(refused.status.code() == Some(3), "no worker has used it: {refused:?}");
    let worker = |name: &str, dir: &Path| -> Result<Daemon> {
        let args = ["run", "--name", name, "--coordinator", "http://127.0.0.1:9", "--driver", "process", "--state-dir"];
        let args = args.map(Into::into).into_iter().chain([dir.into()]).collect();
        Ok(Daemon::new(name, binaries::path("rug-worker")?, args, &sandbox))
    };
    let mut first = worker("first", &original)?;
    first.start()?;
    until(PATIENCE, "it has made an id", async || id_of(&original)).await?;
    let id = id_of(&original)?;
    first.stop(Duration::from_secs(10)).await?;
    fs::create_dir(&copy)?;
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::copy(original.join("site"), copy.join("site"))?;

    let mut second = worker("second", &copy)?;
    second.start()?;
    let status = second.ended(PATIENCE).await?;
    let log = second.log_text();
    ensure!(status.code() == Some(3), "{status}: {log}");
    ensure!(log.contains(&id) && log.contains("--copied") && log.contains("--moved"), "{log}");
    let moved = site(&copy, &["--moved"]).await?;
    ensure!(moved.status.success() && id_of(&copy)? == id, "{moved:?}");
    let copied = site(&copy, &["--copied"]).await?;
    let new = id_of(&copy)?;
    ensure!(
        copied.status.success() && new != id && String::from_utf8_lossy(&copied.stdout).contains(&new),
        "{copied:?}"
    );
    second.start()?;
    until(PATIENCE, "it runs", async || {
        second.check()?;
        ensure!(second.log_text().contains("no session"), "{}", second.log_text());
        Ok(())
    })
    .await?;
    second.stop(Duration::from_secs(10)).await?;
    sandbox.finish(&["cannot be used".to_owned()])
}
