//! Bounds of the coordinator as a process: descriptors, watches, and the time it takes to stop.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1 as wire;
use proto::admin::v1::appliances_client::AppliancesClient;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, specs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;
use tonic::transport::Channel;

/// Descriptors of a coordinator in these tests.
const FEW: u64 = 256;
/// What every client of HTTP/2 sends first, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Connects to the coordinator from the address 127.0.0.`from`, of which every host has as many as it likes.
async fn stranger(cluster: &Cluster, from: u8) -> Result<TcpStream> {
    let port = cluster.api.address().rsplit_once(':').context("it has a port")?.1.parse()?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0)))?;
    let connecting = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    Ok(tokio::time::timeout(PATIENCE, connecting).await.context("nobody takes it")??)
}

/// So many of them, which say nothing or begin HTTP/2 and go no further.
async fn strangers(cluster: &Cluster, from: u8, count: usize, said: &[u8]) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = stranger(cluster, from).await?;
        // It may have been closed already.
        let _ = stream.write_all(said).await;
        all.push(stream);
    }
    Ok(all)
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Sets how many descriptors a process may have from now on; it may raise that again.
fn allow(pid: u32, most: u64) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("a process")?;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(most), maximum: Some(FEW) })?;
    Ok(())
}

#[tokio::test]
async fn strangers_do_not_use_up_the_descriptors_of_a_coordinator_with_few() -> Result<()> {
    let options = Options { workers: 2, coordinator_files: Some(FEW), ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    cluster.fleet((1..=4).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let pid = cluster.coordinator.pid().context("it runs")?;
    let alone = descriptors(pid)?;

    let mut held = Vec::new();
    for from in 2..=5 {
        held.extend(strangers(&cluster, from, 100, b"").await?);
        held.extend(strangers(&cluster, from, 100, PREFACE).await?);
    }
    let most = descriptors(pid)?;
    println!("{alone} descriptors without strangers, {most} with {} of them", held.len());
    ensure!(most < usize::try_from(FEW)? - 20, "{most} of {FEW} are used");
    // Everything that is known goes on, a worker that comes back and clients that come anew included.
    cluster.worker("worker-1")?.kill()?;
    cluster.worker("worker-1")?.start()?;
    cluster.healthy().await?;
    cluster.rugctl(&["list"], "").await?.success()?;
    cluster.fleet(vec![specs::web("web-5")]).await?;
    ensure!(!cluster.coordinator.log_text().contains("no descriptor is left"), "it ran out of descriptors");
    drop(held);
    cluster.finish().await
}

#[tokio::test]
async fn without_a_descriptor_new_connections_are_closed_and_the_others_stay() -> Result<()> {
    let options = Options { workers: 1, coordinator_files: Some(FEW), ..Options::default() };
    let cluster = Cluster::start(options).await?;
    let pid = cluster.coordinator.pid().context("it runs")?;
    // What it keeps for this case is the last it may have. The first strangers fill what is free below; the others find nothing.
    let spare = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(Result::ok)
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "/dev/null"))
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .context("it has some")?;
    allow(pid, spare + 1)?;
    let mut held = strangers(&cluster, 2, 30, b"").await?;
    let mut last = held.pop().context("there are some")?;
    let began = Instant::now();
    let end = tokio::time::timeout(Duration::from_secs(5), last.read(&mut [0; 16])).await;
    ensure!(matches!(end, Ok(Ok(0) | Err(_))), "it is left waiting: {end:?}");
    println!("closed after {:?}", began.elapsed());
    cluster.api.list().await.context("connections that are open stay")?;
    let log = cluster.coordinator.log_text();
    let lines = log.matches("no descriptor is left").count();
    ensure!((1..=11).contains(&lines), "{lines} lines");
    allow(pid, FEW)?;
    drop(held);
    until(PATIENCE, "others get in again", async || {
        cluster.rugctl(&["list", "--timeout", "2s"], "").await?.success().map(drop)
    })
    .await?;
    cluster.finish().await
}

type Watching = tonic::Streaming<wire::ApplianceEvent>;

async fn watch(channel: &Channel) -> Result<Watching, tonic::Status> {
    let answer = AppliancesClient::new(channel.clone()).watch(wire::WatchAppliancesRequest::default()).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn watches_are_bounded_and_come_back() -> Result<()> {
    let most = ("RUG_COORDINATOR_WATCHES__MAX_PER_CALLER", "3".to_owned());
    let cluster = Cluster::start(Options { workers: 1, coordinator_env: vec![most], ..Options::default() }).await?;
    let channel = cluster.api.channel();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(watch(&channel).await?);
    }
    let refused = watch(&channel).await.err().context("it is one too many")?;
    ensure!(refused.code() == Code::ResourceExhausted && refused.message().contains("3 watches"), "{refused:?}");
    open.pop();
    until(PATIENCE, "there is room again", async || {
        open.push(watch(&channel).await?);
        Ok(())
    })
    .await?;
    drop(open);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_with_thousands_of_open_calls_stops_in_seconds() -> Result<()> {
    let bounds = ["RUG_COORDINATOR_WATCHES__MAX", "RUG_COORDINATOR_WATCHES__MAX_PER_CALLER"];
    let coordinator_env = bounds.map(|bound| (bound, "10000".to_owned())).to_vec();
    let mut cluster = Cluster::start(Options { workers: 1, coordinator_env, ..Options::default() }).await?;
    cluster.fleet(vec![specs::web("web")]).await?;
    let mut open: Vec<Watching> = Vec::new();
    for _ in 0..40 {
        let channel = Channel::from_shared(cluster.api.address().to_owned())?.connect().await?;
        for _ in 0..100 {
            open.push(watch(&channel).await?);
        }
    }
    // Some do not even speak, which is what a drain waits for in vain.
    let silent = strangers(&cluster, 127, 100, PREFACE).await?;
    let began = Instant::now();
    let status = cluster.coordinator.stop(PATIENCE).await?;
    let took = began.elapsed();
    println!("stopped {took:?} after SIGTERM, with {} watches", open.len());
    ensure!(status.success() && took < Duration::from_secs(12), "{status} after {took:?}");
    drop((open, silent));
    cluster.start_all().await?;
    cluster.finish().await
}
