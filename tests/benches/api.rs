//! The API under load, and a failover, with release binaries and the `simulated` driver.
//!
//! `cargo bench -p tests --bench api -- [--appliances N] [--in-flight N] [--failover N]`
//!
//! Two floors are measured in the same run, because absolute numbers shift from machine to machine: an empty unary
//! service with the same calls in flight, its server a process of its own like the coordinator, and flushed writes of 4
//! KiB on the disk the store is on. Times are wall clock.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use proto::admin::v1::appliance_event::Type;
use proto::admin::v1::cluster_client::ClusterClient;
use proto::admin::v1::cluster_server::{Cluster as ClusterService, ClusterServer};
use tests::cluster::api::{self, Api};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, specs};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

/// How long a phase of the run may take before it counts as stuck.
const LIMIT: Duration = Duration::from_secs(300);

/// Wanted of the API, in creates per second (issue of the first complete version).
const BOUND: f64 = 3_000.0;

#[derive(Clone, Copy)]
struct ApiLoad {
    appliances: u32,
    in_flight: u32,
    failover: u32,
}

fn load(arguments: &[String]) -> Result<ApiLoad> {
    let mut load = ApiLoad { appliances: 5_000, in_flight: 64, failover: 10_000 };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let field = match argument.as_str() {
            // What cargo passes to every bench.
            "--bench" => continue,
            "--appliances" => &mut load.appliances,
            "--in-flight" => &mut load.in_flight,
            "--failover" => &mut load.failover,
            other => bail!("unknown argument {other}; known are --appliances, --in-flight, --failover"),
        };
        *field = arguments.next().context("a number is missing")?.parse().with_context(|| argument.clone())?;
        ensure!(*field > 0, "{argument} must be at least 1");
    }
    Ok(load)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if arguments.first().is_some_and(|a| a == "--serve-nothing") {
        return runtime.block_on(serve_nothing());
    }
    runtime.block_on(run(load(&arguments)?))
}

async fn run(load: ApiLoad) -> Result<()> {
    let options = Options { drivers: vec!["simulated"], ..Options::default() };
    let mut cluster = Cluster::start(options).await?;

    let empty = empty_service(load).await?;
    row("empty unary service", &format!("{empty:.0} calls/s"), &format!("{} in flight, the floor", load.in_flight));
    let reader = cluster.api.clone();
    let reads = calls(load, load.appliances, move |_| {
        let api = reader.clone();
        async move { api.status().await.map(drop) }
    })
    .await?;
    row(
        "cluster status",
        &format!("{reads:.0} calls/s"),
        &format!("{:.0} % of the empty service", 100.0 * reads / empty),
    );
    let flushes = flushes(cluster.root())?;
    row("flushed 4 KiB writes", &format!("{flushes:.0} /s"), "one after the other");

    let before = cpu_time(&cluster)?;
    let (creates, configured) = create(&cluster, load, load.appliances, "bench").await?;
    let used = cpu_time(&cluster)?.saturating_sub(before);
    let verdict = if creates >= BOUND { "reached" } else { "missed" };
    row(
        &format!("creates, {} appliances", load.appliances),
        &format!("{creates:.0} /s"),
        &format!("{:.1} per flush, bound {BOUND:.0}: {verdict}", creates / flushes),
    );
    row("all configured after", &milliseconds(configured), "since the first call");
    let each = used.as_secs_f64() * 1e6 / f64::from(load.appliances);
    row("coordinator, CPU per appliance", &format!("{each:.0} us"), "from the call to configured, with its reports");

    if load.failover > load.appliances {
        create(&cluster, load, load.failover - load.appliances, "more").await?;
    }
    let failover = failover(&mut cluster).await?;
    row(
        &format!("worker killed, {} of {} its own", failover.orphans, load.appliances.max(load.failover)),
        &milliseconds(failover.owned),
        "until all are owned again",
    );
    row("  its lease", &milliseconds(failover.lease), "until it was over for certain");
    row("  the takeover", &milliseconds(failover.owned.saturating_sub(failover.lease)), "after that, bound 500 ms");
    cluster.finish().await
}

/// Makes `total` calls with as many in flight as asked; calls per second.
async fn calls<F>(load: ApiLoad, total: u32, call: impl Fn(u32) -> F + Clone + Send + Sync + 'static) -> Result<f64>
where
    F: Future<Output = Result<(), Status>> + Send,
{
    let next = Arc::new(AtomicU32::new(0));
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..load.in_flight {
        let (next, call) = (Arc::clone(&next), call.clone());
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return Ok(());
                }
                call(number).await?;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        let result: Result<(), Status> = ended?;
        result.context("a call failed")?;
    }
    Ok(f64::from(total) / began.elapsed().as_secs_f64())
}

/// Creates `count` appliances; creates per second, and the time from the first call until all are configured.
async fn create(cluster: &Cluster, load: ApiLoad, count: u32, prefix: &'static str) -> Result<(f64, Duration)> {
    let began = Instant::now();
    let api = cluster.api.clone();
    let rate = calls(load, count, move |n| {
        let api = api.clone();
        async move { api.create(specs::simulated(&format!("{prefix}-{n}"))).await.map(drop) }
    })
    .await?;
    until(LIMIT, "all are configured", async || {
        let status = cluster.api.status().await?;
        let configured = status.phases.iter().filter(|(name, _)| name.eq_ignore_ascii_case("configured"));
        let configured: u64 = configured.map(|(_, n)| n).sum();
        ensure!(configured == status.appliances, "{configured} of {}", status.appliances);
        Ok(())
    })
    .await?;
    Ok((rate, began.elapsed()))
}

struct Failover {
    orphans: usize,
    /// From the kill until every appliance had an owner again.
    owned: Duration,
    /// From the kill until the coordinator counted the worker as gone, as its rebalance tells.
    lease: Duration,
}

/// Kills a worker and watches its appliances until the last has a new owner.
async fn failover(cluster: &mut Cluster) -> Result<Failover> {
    let channel = tonic::transport::Endpoint::from_shared(cluster.api.address().to_owned())?.connect().await?;
    let mut client = v1::appliances_client::AppliancesClient::new(channel);
    let mut events = client.watch(v1::WatchAppliancesRequest::default()).await?.into_inner();
    let mut orphans = std::collections::BTreeSet::new();
    loop {
        let event = events.message().await?.context("the watch ended")?;
        match (event.r#type(), event.appliance) {
            (Type::Synced, _) => break,
            (_, Some(appliance)) if api::owner(&appliance) == "worker-2" => drop(orphans.insert(appliance.id)),
            _ => {}
        }
    }
    let count = orphans.len();
    let wall = std::time::SystemTime::now();
    let began = Instant::now();
    cluster.worker("worker-2")?.kill()?;
    let adopted = async {
        while !orphans.is_empty() {
            let event = events.message().await?.context("the watch ended")?;
            let Some(appliance) = event.appliance else { continue };
            let owned = appliance.assignment.as_ref().is_some_and(|a| a.state == "owned" && a.worker != "worker-2");
            if owned {
                orphans.remove(&appliance.id);
            }
        }
        anyhow::Ok(began.elapsed())
    };
    let owned = tokio::time::timeout(LIMIT, adopted).await.context("orphans are left")??;
    let rebalances = cluster.api.rebalances().await?;
    let made = rebalances.iter().find(|r| r.cause == "gone: worker-2").context("not in the history")?;
    let opened = std::time::SystemTime::try_from(made.start_time.context("no start")?)?;
    Ok(Failover { orphans: count, owned, lease: opened.duration_since(wall).unwrap_or_default() })
}

/// A service that does nothing, in a process of its own: calls per second.
async fn empty_service(load: ApiLoad) -> Result<f64> {
    let mut server = BenchCoordinator(
        Command::new(std::env::current_exe()?)
            .arg("--serve-nothing")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the empty service")?,
    );
    let mut address = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut address)?;
    let api = Api::new(address.trim())?;
    let client = ClusterClient::new(api.channel());
    let one = move |_| {
        let mut client = client.clone();
        async move { client.status(v1::ClusterStatusRequest {}).await.map(drop) }
    };
    // The first calls open the connection.
    calls(load, load.in_flight, one.clone()).await?;
    calls(load, load.appliances, one).await
}

struct BenchCoordinator(Child);

impl Drop for BenchCoordinator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Nothing;

#[tonic::async_trait]
impl ClusterService for Nothing {
    async fn identify(&self, _: Request<v1::IdentifyRequest>) -> Result<Response<v1::ClusterIdentity>, Status> {
        Ok(Response::new(v1::ClusterIdentity::default()))
    }

    async fn status(&self, _: Request<v1::ClusterStatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(v1::ClusterStatus::default()))
    }

    type WatchStream = tokio_stream::Empty<Result<v1::ClusterStatus, Status>>;

    async fn watch(&self, _: Request<v1::WatchClusterRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn reload_config(
        &self,
        _: Request<v1::ReloadConfigRequest>,
    ) -> Result<Response<v1::ReloadConfigResponse>, Status> {
        Ok(Response::new(v1::ReloadConfigResponse::default()))
    }
}

/// Serves until standard input ends, which it does with the process that asked for it.
async fn serve_nothing() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(ClusterServer::new(Nothing));
    let over = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        result = server.serve_with_incoming(incoming) => Ok(result?),
        _ = over => Ok(()),
    }
}

/// How often a second the disk below `folder` takes 4 KiB for good.
fn flushes(folder: &std::path::Path) -> Result<f64> {
    const ROUNDS: u32 = 200;
    let path = folder.join("flush");
    let mut file = File::create(&path)?;
    let block = [7; 4096];
    let began = Instant::now();
    for _ in 0..ROUNDS {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&block)?;
        file.sync_data()?;
    }
    let rate = f64::from(ROUNDS) / began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// CPU time the coordinator has used so far, to 10 ms.
fn cpu_time(cluster: &Cluster) -> Result<Duration> {
    // What the kernel counts in for programs, on every architecture we build for.
    const TICK: Duration = Duration::from_millis(10);
    let pid = cluster.coordinator.pid().context("the coordinator runs")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("odd stat")?.1.split_ascii_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u32>().ok()).context("odd stat");
    Ok(TICK * (ticks(11)? + ticks(12)?))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1e3)
}

/// Shows a result as soon as it is there: the run takes a while.
fn row(what: &str, value: &str, note: &str) {
    println!("{what:<38} {value:>16}   {note}");
}
