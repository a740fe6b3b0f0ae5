//! Somebody who can open streams to the coordinator and is no worker of the cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::worker::v1 as worker;
use proto::worker::v1::session_client::SessionClient;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};
use tokio_stream::StreamExt;
use tonic::{Code, Status};

/// Bytes that one peer's `Hello`s may take, and what the process may need besides while it reads them.
const BOUND: u64 = (128 + 128) << 20;

fn hello(name: &str) -> worker::Hello {
    worker::Hello {
        worker: name.into(),
        profile: Some(worker::Profile {
            weight: 1,
            host: "elsewhere".into(),
            drivers: vec!["simulated".into()],
            lease: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn message(incarnation: u128, stream: u64, hello: worker::Hello) -> worker::WorkerMessage {
    let incarnation = if incarnation == 0 { vec![] } else { incarnation.to_be_bytes().to_vec() };
    worker::WorkerMessage {
        envelope: Some(worker::Envelope { term: 0, incarnation, stream }),
        body: Some(worker::worker_message::Body::Hello(hello)),
    }
}

/// What a stream on which this was said is refused with.
async fn refused(cluster: &Cluster, said: worker::WorkerMessage) -> Result<worker::Refused> {
    let mut session = SessionClient::new(cluster.api.channel());
    let open = tokio_stream::once(said).chain(tokio_stream::pending());
    let mut answers = session.open(open).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.body) {
        Some(worker::coordinator_message::Body::Refused(refused)) => Ok(refused),
        other => bail!("it is answered with {other:?}"),
    }
}

#[tokio::test]
async fn nobody_speaks_for_a_worker_or_keeps_a_dead_one_alive() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let fleet = cluster.fleet((1..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let victim = api::owner(&fleet[0]).to_owned();
    let workers = cluster.api.workers().await?;
    let life = &workers.iter().find(|w| w.id == victim).context("it is listed")?.incarnation;
    let life = u128::from_str_radix(life.trim_start_matches('i'), 16)?;
    let term = cluster.api.status().await?.term;
    for stream in [1, 2, 3, 1_000, u64::MAX] {
        for secret in [vec![], vec![7; 32]] {
            let claims = worker::Hello { highest_term: term + 1, secret, ..hello(&victim) };
            let refused = refused(&cluster, message(life, stream, claims)).await?;
            ensure!(refused.reason() == worker::refused::Reason::NotProven, "{refused:?}");
        }
    }
    cluster.healthy().await?;
    ensure!(cluster.api.status().await?.term == term, "a stranger ended the term");

    cluster.worker(&victim)?.kill()?;
    let killed = Instant::now();
    until(PATIENCE, "others have what the dead worker had", async || {
        refused(&cluster, message(life, u64::MAX, hello(&victim))).await?;
        for appliance in cluster.api.list().await? {
            ensure!(api::owner(&appliance) != victim, "after {:?}: {}", killed.elapsed(), api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    cluster.worker(&victim)?.start()?;
    cluster.healthy().await?;
    cluster.finish().await
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it says so")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}

/// Sends parts of a `Hello` for as long as they are taken; answers with how many bytes that were, and the end.
async fn pour(cluster: &Cluster, name: &str) -> Result<(u64, Status)> {
    let text = "j".repeat(4_000);
    let journal = vec![worker::JournalEntry { step: text.clone(), request_id: text }; 30];
    let release = worker::Release {
        appliance: vec![1; 16],
        token: Some(worker::Token { term: 1, sequence: 1 }),
        progress: Some(worker::Progress { journal, ..Default::default() }),
        hold: None,
    };
    let part = worker::Hello { released: vec![release; 8], more: true, ..hello(name) };
    let part = message(0, 1, part);
    let size = prost::Message::encoded_len(&part) as u64;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&sent);
    let parts = tokio_stream::iter(std::iter::repeat_with(move || {
        counted.fetch_add(size, std::sync::atomic::Ordering::Relaxed);
        part.clone()
    }));
    let mut session = SessionClient::new(cluster.api.channel());
    let end = match session.open(parts).await {
        Err(status) => status,
        Ok(answers) => match answers.into_inner().message().await {
            Err(status) => status,
            Ok(answer) => bail!("it is answered with {answer:?}"),
        },
    };
    Ok((sent.load(std::sync::atomic::Ordering::Relaxed), end))
}

#[tokio::test]
async fn a_hello_without_end_is_cut_off_and_what_it_took_is_given_back() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let pid = cluster.coordinator.pid().context("it runs")?;
    let before = resident(pid)?;
    let mut most = 0;
    for round in 0..4 {
        let (one, other) = tokio::join!(pour(&cluster, "pourer-1"), pour(&cluster, "pourer-2"));
        for (sent, end) in [one?, other?] {
            println!("round {round}: {} MiB were sent, then: {:?} {}", sent >> 20, end.code(), end.message());
            ensure!(end.code() == Code::ResourceExhausted, "{end:?}");
        }
        most = most.max(resident(pid)?);
    }
    println!("resident before {} MiB, at most {} MiB after a round", before >> 20, most >> 20);
    ensure!(most < before + BOUND, "{} MiB, {} before", most >> 20, before >> 20);
    ensure!(cluster.coordinator.pid() == Some(pid), "the coordinator was started anew");
    // A long one of a worker is as good as ever afterwards.
    let held = |n: u32| worker::Held {
        appliance: u128::from(n).to_be_bytes().to_vec(),
        token: Some(worker::Token { term: 1, sequence: u64::from(n) + 1_000_000 }),
        generation: 1,
        written_term: 0,
        mode: None,
    };
    let parts: Vec<_> = (0..100_u32)
        .map(|part| {
            let held = (part * 1_000..(part + 1) * 1_000).map(held).collect();
            message(1, 1, worker::Hello { held, more: part < 99, ..hello("large") })
        })
        .collect();
    let mut session = SessionClient::new(cluster.api.channel());
    let open = tokio_stream::iter(parts).chain(tokio_stream::pending());
    let answer =
        tokio::time::timeout(Duration::from_secs(30), async { session.open(open).await?.into_inner().message().await });
    let answer = answer.await.context("it is answered")??.and_then(|answer| answer.body);
    let over = worker::refused::Reason::IncarnationOver;
    ensure!(
        matches!(&answer, Some(worker::coordinator_message::Body::Refused(refused)) if refused.reason() == over),
        "its life is not known, but it was read: {answer:?}"
    );
    cluster.healthy().await?;
    cluster.finish().await
}
