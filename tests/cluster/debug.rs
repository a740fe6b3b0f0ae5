//! Debug modes: from the answer on nothing is changed about what one covers, whatever happens meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use proto::admin::v1::debug_client::DebugClient;
use proto::admin::v1::debug_scope::What;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tests::cluster::wait::{holds, until};
use tests::cluster::{Cluster, Options, PATIENCE, api, processes, specs};
use tests::journal;
use tonic::Code;

/// How long it is watched that nothing happens; a worker starts an instance anew at once, and a leader gives one that lost its
/// worker to another within a second or two.
const QUIET: Duration = Duration::from_secs(4);

/// What journals count in.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
}

async fn set(cluster: &Cluster, what: What) -> Result<v1::DebugMode> {
    let request = v1::SetDebugModeRequest {
        scope: Some(v1::DebugScope { what: Some(what) }),
        reason: "a test".into(),
        wait: Some(specs::duration(Duration::from_secs(20))),
        ..v1::SetDebugModeRequest::default()
    };
    let mut request = tonic::Request::new(request);
    request.set_timeout(Duration::from_secs(30));
    let mode = DebugClient::new(cluster.api.channel()).set(request).await?.into_inner();
    ensure!(mode.waiting_count == 0, "it has not taken hold: {mode:?}");
    Ok(mode)
}

async fn clear(cluster: &Cluster, mode: &v1::DebugMode) -> Result<()> {
    let request = v1::ClearDebugModeRequest { id: mode.id.clone(), reason: "done".into() };
    DebugClient::new(cluster.api.channel()).clear(request).await?;
    Ok(())
}

/// What was done to these appliances since then; fencing a former owner out is no change of theirs.
fn changes(cluster: &Cluster, appliances: &[v1::Appliance], since_ns: u64) -> Result<Vec<journal::JournalLine>> {
    let is_meant = |line: &journal::JournalLine| {
        line.at_ns > since_ns && line.action != "fence" && appliances.iter().any(|a| a.id == line.appliance)
    };
    Ok(journal::effects(&cluster.state_dir())?.into_iter().filter(is_meant).collect())
}

async fn would_have(cluster: &Cluster, id: &str) -> Result<Vec<v1::WithheldStep>> {
    let request = v1::WouldHaveRequest { appliance: Some(api::reference(id)) };
    Ok(DebugClient::new(cluster.api.channel()).would_have(request).await?.into_inner().steps)
}

fn kill_instance(appliance: &v1::Appliance) -> Result<()> {
    let pid = *api::pids(appliance).first().with_context(|| api::describe(appliance))?;
    processes::signal(pid, Signal::KILL);
    Ok(())
}

async fn configured(cluster: &Cluster, appliances: &[v1::Appliance]) -> Result<()> {
    until(PATIENCE, "hands are on again, and everything is repaired", async || {
        for appliance in appliances {
            let now = cluster.api.get(&appliance.id).await?;
            ensure!(api::is_configured(&now) && !api::pids(&now).is_empty(), "{}", api::describe(&now));
            ensure!(!now.assignment.as_ref().is_some_and(|a| a.hands_off), "{}", api::describe(&now));
        }
        Ok(())
    })
    .await
}

/// A fleet of two tenants, in which one of each has a label.
async fn fleet(cluster: &Cluster) -> Result<Vec<v1::Appliance>> {
    let appliance = |n: usize| {
        let mut web = specs::web(&format!("web-{n}"));
        if n > 2 {
            web.labels.insert("role".into(), "canary".into());
        }
        web
    };
    cluster.fleet((1..=4).map(appliance).collect()).await
}

#[tokio::test]
async fn nothing_is_changed_about_what_is_covered_although_its_owner_and_its_leader_die() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let all = fleet(&cluster).await?;
    let by_name = |names: &[&str]| -> Vec<v1::Appliance> {
        all.iter().filter(|a| names.contains(&a.name.as_str())).cloned().collect()
    };
    let scopes = [
        (What::Appliance(api::reference("web-1")), by_name(&["web-1"])),
        (What::Selector("role in (canary)".into()), by_name(&["web-3", "web-4"])),
        (What::Tenant("default".into()), all.clone()),
        (What::Global(true), all.clone()),
    ];
    for (what, covered) in scopes {
        let named = format!("{what:?}");
        // A step may be running when the mode comes.
        let victim = cluster.api.get(&covered[0].id).await?;
        kill_instance(&victim)?;
        let mode = set(&cluster, what).await.context(named.clone())?;
        let answered = now_ns();
        ensure!(mode.covered == Some(covered.len() as u64), "{named}: {mode:?}");

        let holder = api::owner(&cluster.api.get(&victim.id).await?).to_owned();
        let of_others: Vec<_> = all.iter().filter(|a| covered.iter().all(|c| c.id != a.id)).cloned().collect();
        for appliance in &covered {
            // One that the running step had not started yet has none.
            let _ = kill_instance(&cluster.api.get(&appliance.id).await?);
        }
        cluster.worker(&holder)?.kill()?;
        cluster.coordinator.kill()?;
        cluster.start_all().await?;
        until(PATIENCE, "what is covered has an owner, who tells what it would do", async || {
            for appliance in &covered {
                let now = cluster.api.get(&appliance.id).await?;
                let assignment = now.assignment.clone().unwrap_or_default();
                ensure!(assignment.state == "owned" && assignment.hands_off, "{}", api::describe(&now));
                ensure!(!would_have(&cluster, &appliance.id).await?.is_empty(), "{}", api::describe(&now));
            }
            Ok(())
        })
        .await
        .context(named.clone())?;
        holds(QUIET, "nothing is changed", async || {
            let changes = changes(&cluster, &covered, answered)?;
            ensure!(changes.is_empty(), "{named}: {changes:?}");
            Ok(())
        })
        .await?;
        configured(&cluster, &of_others).await.context(named.clone())?;
        clear(&cluster, &mode).await?;
        configured(&cluster, &covered).await.context(named)?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_mode_of_a_worker_covers_what_it_owns_and_expires_by_the_leader() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let all = fleet(&cluster).await?;
    let owner = api::owner(&all[0]).to_owned();
    let covered: Vec<_> = all.iter().filter(|a| api::owner(a) == owner).cloned().collect();
    let mode = set(&cluster, What::Worker(owner.clone())).await?;
    ensure!(mode.covered == Some(covered.len() as u64), "{mode:?}");
    let answered = now_ns();
    kill_instance(&covered[0])?;
    let shown = until(PATIENCE, "what would be done is told", async || {
        let steps = would_have(&cluster, &covered[0].id).await?;
        ensure!(!steps.is_empty(), "nothing yet");
        Ok(steps)
    })
    .await?;
    ensure!(shown.len() <= 16 && !shown[0].step.is_empty(), "{shown:?}");
    let said = cluster.rugctl(&["explain", "web-1"], "").await?.success()?;
    ensure!(said.stdout.contains("debug mode: "), "{said:?}");
    // A change that is made meanwhile is kept.
    let mut changed = specs::web("web-1");
    specs::spec(&mut changed).replicas = Some(2);
    cluster.api.apply(changed).await?;
    holds(QUIET, "nothing is changed", async || {
        let changes = changes(&cluster, &covered, answered)?;
        ensure!(changes.is_empty(), "{changes:?}");
        Ok(())
    })
    .await?;

    // The same mode again, which ends by itself: the leader clears it.
    let (id, worker) = (mode.id.clone(), owner.as_str());
    cluster.rugctl(&["debug", "clear", &id[..8], "--reason", "enough"], "").await?.success()?;
    let said = cluster.rugctl(&["debug", "set", "--worker", worker, "--for", "3s", "-o", "json"], "").await?;
    let said = said.success()?.json()?;
    ensure!(said["waiting_count"] == 0 && said["expire_time"].is_string(), "{said}");
    until(PATIENCE, "it has expired", async || {
        let listed = cluster.rugctl(&["debug", "list"], "").await?.success()?;
        ensure!(listed.stdout.contains("there are no debug modes"), "{listed:?}");
        Ok(())
    })
    .await?;
    configured(&cluster, &covered).await?;
    until(PATIENCE, "what was changed meanwhile is done", async || {
        let web = cluster.api.get("web-1").await?;
        ensure!(api::pids(&web).len() == 2, "{}", api::describe(&web));
        Ok(())
    })
    .await?;
    let audit = cluster.rugctl(&["audit", "-o", "json"], "").await?.success()?;
    for action in ["debug-set", "debug-clear", "debug-expire"] {
        ensure!(audit.stdout.contains(action), "{action}: {audit:?}");
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_mode_is_named_by_its_caller_and_holds_in_a_store_that_was_put_back() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let web = cluster.fleet(vec![specs::web("web-1")]).await?.remove(0);
    let mut client = DebugClient::new(cluster.api.channel());
    let request = |what| v1::SetDebugModeRequest {
        id: "0c0ffee0-0000-4000-8000-000000000001".into(),
        scope: Some(v1::DebugScope { what: Some(what) }),
        ..v1::SetDebugModeRequest::default()
    };
    let first = client.set(request(What::Global(true))).await?.into_inner();
    let again = client.set(request(What::Global(true))).await?.into_inner();
    ensure!((first.id.as_str(), &first.since) == (again.id.as_str(), &again.since), "{first:?} {again:?}");
    let taken = client.set(request(What::Tenant("default".into()))).await.expect_err("it covers something else");
    ensure!(taken.code() == Code::AlreadyExists, "{taken:?}");
    for wrong in [What::Global(false), What::Selector(String::new()), What::Tenant("a b".into())] {
        let refused = client.set(request(wrong)).await.expect_err("no scope");
        ensure!(refused.code() == Code::InvalidArgument, "{refused:?}");
    }
    let missing = What::Appliance(api::reference("nobody"));
    ensure!(client.set(request(missing)).await.expect_err("not there").code() == Code::NotFound, "it is not there");

    // A copy of the store in which the mode is set.
    cluster.coordinator.stop(PATIENCE).await?;
    let (store, copy) = (cluster.root().join("coordinator"), cluster.root().join("copy"));
    copy_files(&store, &copy)?;
    cluster.start_all().await?;
    clear(&cluster, &first).await?;
    let gone = DebugClient::new(cluster.api.channel()).get(v1::GetDebugModeRequest { id: first.id.clone() }).await;
    ensure!(gone.expect_err("cleared").code() == Code::NotFound, "it is gone");
    configured(&cluster, std::slice::from_ref(&web)).await?;
    cluster.coordinator.stop(PATIENCE).await?;
    copy_files(&copy, &store)?;
    cluster.start_all().await?;
    until(PATIENCE, "the mode has taken hold again", async || {
        let request = v1::GetDebugModeRequest { id: first.id.clone() };
        let mode = DebugClient::new(cluster.api.channel()).get(request).await?.into_inner();
        ensure!(mode.covered == Some(1) && mode.waiting_count == 0, "{mode:?}");
        Ok(())
    })
    .await?;
    let answered = now_ns();
    kill_instance(&cluster.api.get("web-1").await?)?;
    holds(QUIET, "nothing is changed", async || {
        let changes = changes(&cluster, std::slice::from_ref(&web), answered)?;
        ensure!(changes.is_empty(), "{changes:?}");
        Ok(())
    })
    .await?;
    cluster.rugctl(&["debug", "clear", "--all", "--yes"], "").await?.success()?;
    configured(&cluster, &[web]).await?;
    cluster.finish().await
}

/// Copies the files of a folder, and removes others from the copy.
fn copy_files(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(to)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
