//! Appliances that die, are rebuilt or deleted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use rustix::process::Signal;
use tests::cluster::processes::{self, ProcessIdentity};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, ports, specs};

/// As the specs have it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Instances except those of `appliance`.
fn others(cluster: &Cluster, appliance: &v1::Appliance) -> BTreeMap<String, ProcessIdentity> {
    cluster.instances().into_iter().filter(|(name, _)| !name.starts_with(&appliance.id)).collect()
}

#[tokio::test]
async fn a_killed_appliance_is_replaced_within_its_probe_interval_and_3_seconds() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let mut wanted: Vec<_> = (1..=5).map(|n| specs::web(&format!("web-{n}"))).collect();
    wanted.push(specs::balancer("front", ports::free(), &[]));
    let fleet = cluster.fleet(wanted).await?;
    for victim in [&fleet[2], &fleet[5]] {
        let untouched = others(&cluster, victim);
        ensure!(untouched.len() == 5, "{untouched:?}");
        let pid = *api::pids(victim).first().with_context(|| api::describe(victim))?;
        let began = Instant::now();
        processes::signal(pid, Signal::KILL);
        until(PATIENCE, "it is replaced and configured", async || {
            let now = cluster.api.get(&victim.id).await?;
            let new = api::pids(&now).first().is_some_and(|new| *new != pid);
            ensure!(new && api::is_configured(&now), "{}", api::describe(&now));
            Ok(())
        })
        .await?;
        let took = began.elapsed();
        ensure!(took <= PROBE_INTERVAL + Duration::from_secs(3), "{} took {took:?}", victim.name);
        ensure!(others(&cluster, victim) == untouched, "others were touched: {untouched:?}");
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_program_that_listens_nowhere_is_kept_by_its_process() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let sleeper = cluster.fleet(vec![specs::sleeper("sleeper")]).await?.remove(0);
    let status = sleeper.status.clone().context("reported")?;
    ensure!(status.instances.iter().all(|instance| instance.address.is_empty()), "{}", api::describe(&sleeper));
    let pid = *api::pids(&sleeper).first().with_context(|| api::describe(&sleeper))?;
    processes::signal(pid, Signal::KILL);
    until(PATIENCE, "it is started again", async || {
        let now = cluster.api.get("sleeper").await?;
        let new = api::pids(&now).first().is_some_and(|new| *new != pid);
        ensure!(new && api::is_configured(&now), "{}", api::describe(&now));
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn an_end_is_noticed_at_once_however_rare_probes_are() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let mut wanted = [specs::web("web"), specs::sleeper("sleeper")];
    for appliance in &mut wanted {
        specs::spec(appliance).probe_interval = Some(specs::duration(Duration::from_secs(3600)));
    }
    for appliance in cluster.fleet(wanted.into()).await? {
        let pid = *api::pids(&appliance).first().with_context(|| api::describe(&appliance))?;
        processes::signal(pid, Signal::KILL);
        let now = until(PATIENCE, "it is started again", async || {
            let now = cluster.api.get(&appliance.id).await?;
            let new = api::pids(&now).first().is_some_and(|new| *new != pid);
            ensure!(new && api::is_configured(&now), "{}", api::describe(&now));
            Ok(now)
        })
        .await?;
        // All is well again, and how the last one ended can still be seen.
        let end = now.status.and_then(|status| status.last_end).context("it was seen to end")?;
        ensure!(end.cause == Some(v1::instance_end::Cause::Signal(9)), "{end:?}");
        let shown = cluster.rugctl(&["describe", &appliance.name], "").await?.success()?;
        ensure!(shown.stdout.contains("signal 9 (SIGKILL)"), "{}", shown.stdout);
    }
    cluster.finish().await
}

#[tokio::test]
async fn whoever_applies_a_program_that_dies_soon_is_told_how() -> Result<()> {
    let worker_env = vec![("RUG_WORKER_RUNNER__LIFECYCLE__BOOT_ATTEMPTS", "2".to_owned())];
    let cluster = Cluster::start(Options { workers: 1, worker_env, ..Options::default() }).await?;
    let script = "echo starting; sleep 0.5; echo no such table >&2; exit 3";
    for probe in ["process", "tcp"] {
        let text =
            format!("name: {probe}\nkind: custom\nspec: {{command: sh, args: [-c, '{script}'], probe: {probe}}}\n");
        let applied = cluster.rugctl(&["apply", "-f", "-"], &text).await?;
        applied.refused(1, &["Error", "exit status 3; last output: starting | no such table"])?;
        let shown = cluster.rugctl(&["get", probe, "-o", "json"], "").await?.json()?;
        let end = &shown["status"]["last_end"];
        ensure!(end["exit_status"] == 3 && end["last_lines"][1] == "no such table", "{shown}");
    }
    cluster.finish().await
}

#[tokio::test]
async fn every_instance_of_an_appliance_is_kept() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let mut pair = specs::web_at("pair", ports::free_run(2));
    specs::spec(&mut pair).replicas = Some(2);
    let pair = cluster.fleet(vec![pair]).await?.remove(0);
    let before = api::pids(&pair);
    ensure!(before.len() == 2, "{}", api::describe(&pair));
    processes::signal(before[1], Signal::KILL);
    let after = until(PATIENCE, "the second instance is back", async || {
        let now = cluster.api.get("pair").await?;
        let pids = api::pids(&now);
        ensure!(pids.len() == 2 && pids[1] != before[1] && api::is_configured(&now), "{}", api::describe(&now));
        Ok(pids)
    })
    .await?;
    ensure!(after[0] == before[0], "the first instance was replaced as well: {before:?}, {after:?}");
    cluster.finish().await
}

#[tokio::test]
async fn deletion_removes_processes_and_directories() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let fleet = vec![specs::web("goes"), specs::web("stays"), specs::balancer("front", ports::free(), &[])];
    let fleet = cluster.fleet(fleet).await?;
    let stays = cluster.instances().into_iter().find(|(name, _)| name.starts_with(&fleet[1].id));
    for appliance in [&fleet[0], &fleet[2]] {
        let folder = cluster.state_dir().join("instances").join(&appliance.id);
        ensure!(folder.is_dir(), "{} is missing", folder.display());
        let deleted = cluster.rugctl(&["delete", &appliance.name], "").await?.success()?;
        ensure!(deleted.stdout.contains(&format!("{} deleted", appliance.name)), "{}", deleted.stdout);
        ensure!(!folder.exists(), "{} is left", folder.display());
        let left = cluster.api.get(&appliance.id).await;
        ensure!(left.as_ref().is_err_and(|e| e.code() == tonic::Code::NotFound), "{left:?}");
    }
    ensure!(cluster.instances().into_iter().next() == stays, "{:?}", cluster.instances());
    cluster.finish().await
}

#[tokio::test]
async fn a_rebuild_replaces_the_process_and_an_unchanged_apply_does_not() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let fleet = cluster.fleet(vec![specs::web("a"), specs::web("b")]).await?;
    let untouched = others(&cluster, &fleet[0]);
    let same = cluster.api.apply(specs::web("a")).await?;
    ensure!(same.outcome() == v1::Outcome::Unchanged, "{same:?}");
    let first = api::pids(&cluster.api.get("a").await?);
    ensure!(first == api::pids(&fleet[0]), "an apply without a change replaced the process");

    cluster.rugctl(&["rebuild", "a"], "").await?.success()?;
    let rebuilt = cluster.api.get("a").await?;
    ensure!(api::is_configured(&rebuilt), "{}", api::describe(&rebuilt));
    ensure!(rebuilt.generation == fleet[0].generation + 1, "{}", api::describe(&rebuilt));
    let second = api::pids(&rebuilt);
    ensure!(second.len() == 1 && second != first, "{first:?} became {second:?}");
    ensure!(others(&cluster, &fleet[0]) == untouched, "the other appliance was touched");

    let checked = cluster.rugctl(&["check", "a", "-o", "json"], "").await?.json()?;
    ensure!(checked["status"]["phase"].as_str().is_some_and(|p| p.eq_ignore_ascii_case("configured")), "{checked}");
    cluster.finish().await
}
