//! The history of what workers did.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, processes, specs};

/// The runs of an appliance, newest first, each as cause and outcome.
async fn runs(cluster: &Cluster, args: &[&str]) -> Result<Vec<(String, String)>> {
    let args: Vec<&str> = ["runs", "-o", "json"].iter().chain(args).copied().collect();
    let found = cluster.rugctl(&args, "").await?.json()?;
    let text = |run: &Value, field: &str| run[field].as_str().unwrap_or_default().to_owned();
    let all = found.as_array().context("a list")?;
    Ok(all.iter().map(|run| (text(run, "cause"), text(run, "outcome"))).collect())
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(cause, outcome)| ((*cause).to_owned(), (*outcome).to_owned())).collect()
}

#[tokio::test]
async fn what_was_done_about_an_appliance_is_kept_with_cause_and_outcome() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let web = cluster.fleet(vec![specs::web("web")]).await?.remove(0);
    cluster.rugctl(&["rebuild", "web"], "").await?.success()?;
    let rebuilt = cluster.api.get(&web.id).await?;
    let pid = *api::pids(&rebuilt).first().with_context(|| api::describe(&rebuilt))?;
    processes::signal(pid, Signal::KILL);
    until(PATIENCE, "all of it is kept", async || {
        let found = runs(&cluster, &["web"]).await?;
        let causes: Vec<_> = found.iter().map(|(cause, outcome)| (cause.as_str(), outcome.as_str())).collect();
        let expected = [("exited", "completed"), ("rebuild", "completed"), ("taken", "completed")];
        ensure!(causes == expected || causes[1..] == expected[1..] && causes[0].1 == "completed", "{found:?}");
        Ok(())
    })
    .await?;
    ensure!(runs(&cluster, &["web", "--outcome", "failed"]).await?.is_empty());
    ensure!(runs(&cluster, &["--worker", "nobody"]).await?.is_empty());

    // The next leader has it, and what happens under it goes on top; a follower sees that.
    cluster.coordinator.kill()?;
    cluster.coordinator.start()?;
    cluster.healthy().await?;
    cluster.rugctl(&["delete", "web", "--yes"], "").await?.success()?;
    until(PATIENCE, "the removal is kept, under the name it had", async || {
        let found = runs(&cluster, &["web", "--limit", "2"]).await?;
        ensure!(found.first() == owned(&[("delete", "removed")]).first(), "{found:?}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn explain_shows_the_last_changes_of_phase() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    cluster.fleet(vec![specs::web("web")]).await?;
    until(PATIENCE, "the changes are told", async || {
        let told = cluster.rugctl(&["explain", "web"], "").await?.success()?.stdout;
        ensure!(told.contains("FROM") && told.contains("Configured") && told.contains("taken, completed"), "{told}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}
