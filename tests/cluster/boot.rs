//! Starts that take longer than their worker lives.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, binaries, ports, processes, specs};
use tests::journal;
use tokio::net::TcpListener;

/// More probes than an instance that has served is allowed to leave unanswered.
const PROBES: usize = 5;

/// Listens on the port of a program that does not yet, and hangs up on everybody, so that probes can be counted.
async fn hang_up(port: u16) -> Result<(Arc<AtomicUsize>, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let task = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok((calls, task))
}

/// Starts the workers that do not run: when most are away at once, nothing is given to the others.
async fn start_all(cluster: &mut Cluster) -> Result<()> {
    for worker in cluster.workers.iter_mut().filter(|worker| !worker.runs()) {
        worker.start()?;
    }
    cluster.healthy().await
}

#[tokio::test]
async fn a_long_start_survives_three_workers_and_stays_one_attempt() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let (port, gate) = (ports::free(), cluster.root().join("warm"));
    let mut slow = specs::web_at("slow", port);
    let custom = specs::custom(&mut slow);
    let helper = binaries::path("rug-test-helper")?;
    let script = format!(
        "while ! [ -e {} ]; do sleep 0.1; done; exec {} serve {{port}} {{name}}",
        gate.display(),
        helper.display()
    );
    (custom.command, custom.args) = ("sh".into(), vec!["-c".into(), script]);
    let id = cluster.api.create(slow).await?.id;
    let running = until(PATIENCE, "it is being started", async || {
        let running = cluster.instances();
        ensure!(running.len() == 1, "{running:?}");
        Ok(running)
    })
    .await?;
    ensure!(running.contains_key(&format!("{id}-0-1")), "{running:?}");
    let (calls, probed) = hang_up(port).await?;

    let mut former: Option<String> = None;
    for _ in 0..3 {
        let owner = until(PATIENCE, "another worker owns it", async || {
            let appliance = cluster.api.get(&id).await?;
            let owner = api::owner(&appliance).to_owned();
            ensure!(!owner.is_empty() && Some(&owner) != former.as_ref(), "{}", api::describe(&appliance));
            Ok(owner)
        })
        .await?;
        let seen = calls.load(Ordering::Relaxed);
        until(PATIENCE, "it was asked in vain", async || {
            let asked = calls.load(Ordering::Relaxed) - seen;
            ensure!(asked >= PROBES, "{asked} times");
            Ok(())
        })
        .await?;
        ensure!(cluster.instances() == running, "{owner} gave up: {:?}", cluster.instances());
        start_all(&mut cluster).await?;
        former = Some(owner.clone());
        cluster.worker(&owner)?.kill()?;
    }

    probed.abort();
    let _ = probed.await;
    fs::write(&gate, "")?;
    let appliance = until(PATIENCE, "it serves", async || {
        let appliance = cluster.api.get(&id).await?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        Ok(appliance)
    })
    .await?;
    ensure!(cluster.instances() == running, "it was restarted: {:?}", cluster.instances());
    let status = appliance.status.context("no status")?;
    ensure!(status.failed_boots == 0 && status.instances[0].name == format!("{id}-0-1"), "{status:?}");
    let spawned = journal::effects(&cluster.state_dir())?.into_iter().filter(|effect| effect.action == "spawn").count();
    ensure!(spawned == 1, "started {spawned} times");

    // It has served now, so that the next owner is not patient with it any more: a hang is noticed as that of any other.
    start_all(&mut cluster).await?;
    let owner = api::owner(&cluster.api.get(&id).await?).to_owned();
    cluster.worker(&owner)?.kill()?;
    let pid = running.values().next().context("it runs")?.pid;
    processes::signal(pid, Signal::STOP);
    until(PATIENCE, "it is replaced", async || {
        let now = cluster.instances();
        ensure!(now.contains_key(&format!("{id}-0-2")) && now.len() == 1, "{now:?}");
        Ok(())
    })
    .await?;
    start_all(&mut cluster).await?;
    until(PATIENCE, "it serves again", async || {
        let appliance = cluster.api.get(&id).await?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    cluster.finish().await
}
