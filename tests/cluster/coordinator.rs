//! Coordinators that die under load, or cannot start.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use proto::worker::v1 as worker;
use proto::worker::v1::session_client::SessionClient;
use tests::cluster::api::Api;
use tests::cluster::daemon::Daemon;
use tests::cluster::processes::ROOT_VARIABLE;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, Sandbox, api, binaries, ports, specs};
use tokio::process::Command;
use tokio_stream::StreamExt;

/// Creates appliances until told to stop; answers with those the server acknowledged.
async fn create(api: Api, client: u32, stop: Arc<AtomicBool>) -> Vec<v1::Appliance> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        match api.create(specs::simulated(&format!("load-{client}-{number}"))).await {
            Ok(appliance) => acknowledged.push(appliance),
            // Refused or unknown: the coordinator is away. The pause only keeps the loop from spinning meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    acknowledged
}

#[tokio::test]
async fn a_coordinator_killed_under_load_loses_nothing_it_accepted_and_moves_nothing() -> Result<()> {
    const CLIENTS: u32 = 4;
    let options = Options { drivers: vec!["process", "simulated"], ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    let fleet = cluster.fleet((1..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let running = cluster.instances();
    let owners: BTreeMap<_, _> = fleet.iter().map(|a| (a.id.clone(), api::owner(a).to_owned())).collect();

    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(create(cluster.api.clone(), n, Arc::clone(&stop)))).collect();
    let more_than = async |cluster: &Cluster, count: usize| {
        until(PATIENCE, "the load has created some more", async || {
            let total = cluster.api.status().await?.appliances;
            ensure!(total as usize > count, "{total} so far");
            Ok(total as usize)
        })
        .await
    };
    let mut count = more_than(&cluster, fleet.len() + 20).await?;
    let mut terms = vec![cluster.api.status().await?.term];
    for _ in 0..2 {
        cluster.coordinator.kill()?;
        cluster.coordinator.start()?;
        count = more_than(&cluster, count + 20).await?;
        terms.push(cluster.api.status().await?.term);
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for client in load {
        acknowledged.extend(client.await?);
    }
    ensure!(acknowledged.len() >= 40, "{} were acknowledged", acknowledged.len());
    ensure!(terms.is_sorted_by(|a, b| a < b), "terms do not grow: {terms:?}");
    cluster.healthy().await?;

    until(PATIENCE, "all are configured", async || {
        let all: BTreeMap<_, _> = cluster.api.list().await?.into_iter().map(|a| (a.id.clone(), a)).collect();
        for made in &acknowledged {
            let found = all.get(&made.id).with_context(|| format!("{} was acknowledged and is lost", made.name))?;
            ensure!(api::is_configured(found), "{}", api::describe(found));
        }
        Ok(())
    })
    .await?;
    ensure!(cluster.instances() == running, "appliances were restarted");
    for (id, before) in &owners {
        let after = cluster.api.get(id).await?;
        ensure!(api::owner(&after) == before, "{} moved from {before}", api::describe(&after));
    }
    for rebalance in cluster.api.rebalances().await? {
        let rebalance = cluster.api.rebalance(&rebalance.id).await?;
        let moved = rebalance.r#move.iter().find(|m| !m.from.is_empty());
        ensure!(moved.is_none(), "{} ({}) moved {moved:?}", rebalance.id, rebalance.cause);
    }
    cluster.finish().await
}

/// Runs a coordinator until it ends by itself. `shell` is put in front of it; `listen` is an address, and flags that go
/// with it.
async fn run(sandbox: &Sandbox, shell: &str, state_dir: &str, listen: &str) -> Result<Output> {
    let program = binaries::path("rug-coordinator")?;
    let run = Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$0\" \"$@\""), &program.to_string_lossy()])
        .args(["run", "--name", "coordinator-1", "--state-dir", state_dir, "--listen"])
        .args(listen.split(' '))
        .env(ROOT_VARIABLE, sandbox.root())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    Ok(tokio::time::timeout(PATIENCE, run).await.context("it does not end")??)
}

/// It ended with `code`, and its message has every one of `texts`.
fn refused(output: &Output, code: i32, texts: &[&str]) -> Result<()> {
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "it ended with {}, not {code}:\n{message}", output.status);
    for text in texts {
        ensure!(message.contains(text), "{text:?} is not in its message:\n{message}");
    }
    ensure!(!message.contains("panicked"), "it panicked:\n{message}");
    Ok(())
}

#[tokio::test]
async fn a_coordinator_that_cannot_write_its_state_says_where_and_ends_with_3() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let listen = format!("127.0.0.1:{} --insecure", ports::free());
    let file = sandbox.path("file");
    std::fs::write(&file, "")?;
    // Tests may run as root, whom permissions do not stop: below a file nobody can make a directory, and nobody in /proc.
    for dir in [file.join("state").to_string_lossy().into_owned(), "/proc/rug-test".to_owned()] {
        refused(&run(&sandbox, "", &dir, &listen).await?, 3, &[&dir])?;
    }
    sandbox.finish(&[])
}

#[tokio::test]
async fn a_coordinator_on_a_full_disk_says_so_and_ends_with_3() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let listen = format!("127.0.0.1:{} --insecure", ports::free());
    // A limit on the size of files stands for a disk that is full: writes fail in the same way, and nobody needs to be
    // allowed to mount. From nothing at all to a store that can be begun and not finished.
    for (n, blocks) in [0, 1, 8, 32, 100].into_iter().enumerate() {
        let dir = sandbox.path(&format!("state-{n}")).to_string_lossy().into_owned();
        let output = run(&sandbox, &format!("trap '' XFSZ; ulimit -f {blocks};"), &dir, &listen).await?;
        refused(&output, 3, &[&dir]).with_context(|| format!("{blocks} blocks"))?;
    }
    sandbox.finish(&[])
}

#[tokio::test]
async fn a_coordinator_whose_disk_fills_up_refuses_with_a_reason_and_keeps_what_it_accepted() -> Result<()> {
    // Room for the schema and some appliances, in blocks of 512 bytes.
    const BLOCKS: u32 = 600;
    let sandbox = Sandbox::new()?;
    let port = ports::free();
    let api = Api::new(&format!("http://127.0.0.1:{port}"))?;
    let program = binaries::path("rug-coordinator")?.into_os_string();
    let mut args: Vec<std::ffi::OsString> =
        ["run", "--listen", &format!("127.0.0.1:{port}"), "--insecure", "--state-dir"].map(Into::into).into();
    args.push(sandbox.path("state").into());
    let limited = format!("trap '' XFSZ; ulimit -f {BLOCKS}; exec \"$0\" \"$@\"");
    let shell = ["-c".into(), limited.into(), program.clone()].into_iter().chain(args.clone()).collect();
    let mut full = Daemon::new("full", "/bin/sh".into(), shell, &sandbox);
    full.start()?;
    until(PATIENCE, "it serves", async || Ok(api.status().await?)).await?;

    let mut accepted = Vec::new();
    let refusal = loop {
        ensure!(accepted.len() < 20_000, "nothing ever filled up");
        match api.create(specs::simulated(&format!("s-{}", accepted.len()))).await {
            Ok(appliance) => accepted.push(appliance),
            Err(status) => break status,
        }
    };
    ensure!(!accepted.is_empty(), "nothing was accepted: {refusal:?}");
    ensure!(refusal.code() == tonic::Code::Unavailable, "{refusal:?}");
    // It may go on reading, or give its store up; whatever it does, it says so.
    if full.check().is_ok() {
        api.status().await.context("reads are refused as well")?;
        full.stop(PATIENCE).await?;
    } else {
        let status = full.ended(PATIENCE).await?;
        ensure!(matches!(status.code(), Some(3 | 5)), "it ended with {status}");
    }
    let log = full.log_text();
    ensure!(log.contains("store") || log.contains("disk"), "its log:\n{log}");
    ensure!(!log.contains("panicked"), "its log:\n{log}");

    let mut roomy = Daemon::new("roomy", program.into(), args, &sandbox);
    roomy.start()?;
    let kept = until(PATIENCE, "it serves again", async || Ok(api.list().await?)).await?;
    let lost = accepted.iter().find(|a| !kept.iter().any(|k| k.id == a.id));
    ensure!(lost.is_none(), "accepted and lost: {lost:?}");
    api.create(specs::simulated("after")).await?;
    let status = roomy.stop(PATIENCE).await?;
    ensure!(status.success(), "it ended with {status}");
    sandbox.finish(&["store".to_owned(), "disk".to_owned(), "stepping down".to_owned()])
}

#[tokio::test]
async fn a_state_directory_or_address_in_use_is_named_and_bad_settings_end_with_2() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 0, ..Options::default() }).await?;
    let sandbox = Sandbox::new()?;
    let listen = format!("127.0.0.1:{} --insecure", ports::free());
    let in_use = cluster.root().join("coordinator").to_string_lossy().into_owned();
    let pid = format!("process {}", cluster.coordinator.pid().context("it runs")?);
    refused(&run(&sandbox, "", &in_use, &listen).await?, 3, &[&in_use, &pid])?;

    let dir = sandbox.path("state").to_string_lossy().into_owned();
    let taken = cluster.api.address().trim_start_matches("http://").to_owned();
    refused(&run(&sandbox, "", &dir, &format!("{taken} --insecure")).await?, 4, &[&taken])?;
    for open in ["0.0.0.0:1", "127.0.0.1:1"] {
        refused(&run(&sandbox, "", &dir, open).await?, 2, &["listen", "insecure"])?;
    }
    let odd = "RUG_COORDINATOR_MACHINE__DEBOUNCE=soon;";
    refused(
        &run(&sandbox, &format!("export {odd}"), &dir, &listen).await?,
        2,
        &["RUG_COORDINATOR_MACHINE__DEBOUNCE", "duration"],
    )?;
    sandbox.finish(&[])?;
    cluster.finish().await
}

/// Says `Hello` as a new worker that has met `highest_term`, and answers with what ends the stream.
async fn claim(cluster: &Cluster, highest_term: u64) -> Result<String> {
    let hello = worker::Hello {
        worker: "claimant".into(),
        profile: Some(worker::Profile {
            weight: 1,
            host: "elsewhere".into(),
            drivers: vec!["simulated".into()],
            lease: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..Default::default()
        }),
        highest_term,
        ..Default::default()
    };
    let message = worker::WorkerMessage {
        envelope: Some(worker::Envelope { stream: 1, ..Default::default() }),
        body: Some(worker::worker_message::Body::Hello(hello)),
    };
    let mut session = SessionClient::new(cluster.api.channel());
    let open = tokio_stream::once(message).chain(tokio_stream::pending());
    let mut answers = session.open(open).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.body) {
        Some(worker::coordinator_message::Body::Refused(refused)) => Ok(refused.detail),
        other => bail!("it is answered with {other:?}"),
    }
}

#[tokio::test]
async fn workers_that_claim_ever_higher_terms_end_no_coordinator() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let fleet = cluster.fleet((1..=3).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let (first, pid) = (cluster.api.status().await?.term, cluster.coordinator.pid());
    let mut details = Vec::new();
    for n in 1..=10 {
        details.push(claim(&cluster, first + 10 * n).await?);
    }
    cluster.coordinator.check()?;
    ensure!(cluster.coordinator.pid() == pid, "the coordinator was started anew");
    let put_off = details.iter().filter(|detail| detail.contains("is begun within")).count();
    ensure!(put_off >= 5, "{details:?}");
    until(PATIENCE, "a term above what was claimed is led", async || {
        let term = cluster.api.status().await?.term;
        ensure!(term > first + 10, "{term} is not above {first} + 10");
        Ok(())
    })
    .await?;
    cluster.healthy().await?;
    ensure!(cluster.api.list().await?.len() == fleet.len());
    cluster.finish().await
}
