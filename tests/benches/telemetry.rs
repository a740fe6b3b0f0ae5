//! What telemetry costs: creates and hand-offs with exports to collectors of every manner, against none, in turns in one run.
//!
//! `cargo bench -p tests --bench telemetry -- [--appliances N] [--rounds N] [--hand-off-rounds N] [--in-flight N]`
//!
//! Each round starts a cluster with release binaries and the `simulated` driver for each condition, in an order that turns from
//! round to round, and compares with the round's cluster without telemetry, since machines change their speed. Hand-offs are
//! paced and take most of the time, so that only the first rounds have some. A database on a disk that others use as well
//! makes the figures worthless: `TMPDIR=/dev/shm`. The collector reads and forgets: one that works would run on another
//! machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, http, ports, specs};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long a phase of the run may take before it counts as stuck.
const LIMIT: Duration = Duration::from_secs(300);
/// Wanted: with telemetry at least this part of the throughput without it.
const BOUND: f64 = 0.95;

/// What becomes of what is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Off,
    Taken,
    Absent,
    Refused,
    Hanging,
    Slow,
}

impl Condition {
    const ALL: [Self; 6] = [Self::Off, Self::Taken, Self::Absent, Self::Refused, Self::Hanging, Self::Slow];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "no telemetry",
            Self::Taken => "collector takes all",
            Self::Absent => "no collector there",
            Self::Refused => "collector refuses",
            Self::Hanging => "collector hangs",
            Self::Slow => "collector takes 2 s",
        }
    }
}

#[derive(Clone, Copy)]
struct Load {
    appliances: u32,
    rounds: u32,
    hand_off_rounds: u32,
    in_flight: u32,
}

fn load(arguments: impl Iterator<Item = String>) -> Result<Load> {
    let mut load = Load { appliances: 12_000, rounds: 9, hand_off_rounds: 2, in_flight: 64 };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let field = match argument.as_str() {
            // What cargo passes to every bench.
            "--bench" => continue,
            "--appliances" => &mut load.appliances,
            "--rounds" => &mut load.rounds,
            "--hand-off-rounds" => &mut load.hand_off_rounds,
            "--in-flight" => &mut load.in_flight,
            other => {
                bail!("unknown argument {other}; known are --appliances, --rounds, --hand-off-rounds, --in-flight")
            }
        };
        *field = arguments.next().context("a number is missing")?.parse().with_context(|| argument.clone())?;
        ensure!(*field > 0, "{argument} must be at least 1");
    }
    Ok(load)
}

fn main() -> Result<()> {
    let load = load(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(load))
}

/// What one cluster did.
#[derive(Clone, Debug)]
struct Measured {
    creates: f64,
    /// CPU time of coordinator and workers until all were configured, per appliance.
    cpu: f64,
    /// From an owner's release to the next owner's word, of each hand-off, in milliseconds and in order; none in rounds without.
    gaps: Vec<f64>,
    resident: f64,
    exported: u64,
    lost: u64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { creates, cpu, gaps, resident, exported, lost } = self;
        let gap = p99(gaps);
        write!(
            f,
            "{creates:.0} creates/s, {cpu:.0} us CPU, gap p99 {gap:.1} ms, {resident:.1} MB, {exported} exported, {lost} lost"
        )
    }
}

async fn run(load: Load) -> Result<()> {
    let mut all: BTreeMap<Condition, Vec<Measured>> = BTreeMap::new();
    for round in 0..load.rounds {
        let mut order = Condition::ALL;
        order.rotate_left(round as usize % Condition::ALL.len());
        for condition in order {
            let measured =
                one(load, condition, round < load.hand_off_rounds).await.with_context(|| condition.name())?;
            eprintln!("round {}: {:<20} {measured}", round + 1, condition.name());
            all.entry(condition).or_default().push(measured);
        }
    }
    println!(
        "{:<20} {:>10} {:>7} {:>9} {:>7} {:>9} {:>7} {:>9} {:>9} {:>9}",
        "", "creates/s", "", "CPU us", "", "gap p99", "", "resident", "exported", "lost"
    );
    let base = all[&Condition::Off].clone();
    // Of all rounds together: a p99 of one round hangs on a few hand-offs.
    let gap = |measured: &[Measured]| {
        let mut gaps: Vec<f64> = measured.iter().flat_map(|m| m.gaps.iter().copied()).collect();
        gaps.sort_unstable_by(f64::total_cmp);
        p99(&gaps)
    };
    for (condition, measured) in &all {
        // Each round against its own, then the median.
        let ratio = |of: fn(&Measured) -> f64| median(measured.iter().zip(&base).map(|(m, b)| of(m) / of(b)));
        let value = |of: fn(&Measured) -> f64| median(measured.iter().map(of));
        println!(
            "{:<20} {:>10.0} {:>7.2} {:>9.0} {:>7.2} {:>6.1} ms {:>7.2} {:>6.1} MB {:>9} {:>9}",
            condition.name(),
            value(|m| m.creates),
            ratio(|m| m.creates),
            value(|m| m.cpu),
            ratio(|m| m.cpu),
            gap(measured),
            gap(measured) / gap(&base),
            value(|m| m.resident),
            measured.iter().map(|m| m.exported).max().unwrap_or_default(),
            measured.iter().map(|m| m.lost).max().unwrap_or_default(),
        );
    }
    let worst = all.values().map(|measured| median(measured.iter().zip(&base).map(|(m, b)| m.creates / b.creates)));
    let worst = worst.fold(f64::INFINITY, f64::min);
    println!("least throughput {worst:.2} of that without telemetry, bound {BOUND}: {}", verdict(worst >= BOUND));
    Ok(())
}

const fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}

/// Of values in order.
fn p99(values: &[f64]) -> f64 {
    values.get(values.len() * 99 / 100).copied().unwrap_or_default()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn one(load: Load, condition: Condition, hands_off: bool) -> Result<Measured> {
    let scrape = ports::free();
    let mut options = Options { drivers: vec!["simulated"], ..Options::default() };
    options.coordinator_env.push(("RUG_COORDINATOR_METRICS__LISTEN", format!("127.0.0.1:{scrape}")));
    if condition != Condition::Off {
        let endpoint = match condition {
            Condition::Absent => format!("http://127.0.0.1:{}", ports::free()),
            _ => format!("http://{}", Sink::start(condition).await?),
        };
        for env in [&mut options.coordinator_env, &mut options.worker_env] {
            env.push(("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.clone()));
            env.push(("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()));
        }
    }
    let mut cluster = Cluster::start(options).await?;
    let before = cpu_time(&cluster)?;
    let creates = create(&cluster, load).await?;
    let used = cpu_time(&cluster)?.saturating_sub(before);
    let gaps = if hands_off { hand_off(&mut cluster).await? } else { Vec::new() };
    let page = http::page(scrape, "/metrics").await?;
    let tally = |outcome: &str| {
        let found = page.lines().find(|line| line.starts_with("rug_telemetry_spans_total") && line.contains(outcome));
        found.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default()
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    let measured = Measured {
        creates,
        cpu: used.as_secs_f64() * 1e6 / f64::from(load.appliances),
        gaps,
        resident: resident(&cluster.coordinator)?,
        exported: tally("\"exported\"") as u64,
        lost: (tally("\"dropped\"") + tally("\"failed\"")) as u64,
    };
    cluster.tolerate("the collector takes no");
    cluster.finish().await?;
    Ok(measured)
}

/// Live owners hand over a share each: to a worker that comes, and back when it leaves. Answers the gaps, in order.
async fn hand_off(cluster: &mut Cluster) -> Result<Vec<f64>> {
    cluster.worker("worker-2")?.stop(LIMIT).await?;
    let drained = ended(cluster, "draining: worker-2").await?;
    cluster.worker("worker-2")?.start()?;
    let joined = ended(cluster, "joined: worker-2").await?;
    let mut gaps = Vec::new();
    for rebalance in [drained, joined] {
        gaps.extend(gaps_of(&cluster.api.rebalance(&rebalance.id).await?));
    }
    gaps.sort_unstable_by(f64::total_cmp);
    ensure!(!gaps.is_empty(), "no hand-off had a gap");
    Ok(gaps)
}

/// Creates per second.
async fn create(cluster: &Cluster, load: Load) -> Result<f64> {
    let (next, began) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let mut clients = JoinSet::new();
    for _ in 0..load.in_flight {
        let (next, api) = (Arc::clone(&next), cluster.api.clone());
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.appliances {
                    return anyhow::Ok(());
                }
                api.create(specs::simulated(&format!("bench-{number}"))).await?;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let rate = f64::from(load.appliances) / began.elapsed().as_secs_f64();
    until(LIMIT, "all are configured", async || {
        let status = cluster.api.status().await?;
        let configured = status.phases.iter().filter(|(name, _)| name.eq_ignore_ascii_case("configured"));
        let configured: u64 = configured.map(|(_, n)| n).sum();
        ensure!(configured == status.appliances, "{configured} of {}", status.appliances);
        Ok(())
    })
    .await?;
    Ok(rate)
}

/// The newest rebalance with this cause, once it has ended.
async fn ended(cluster: &Cluster, cause: &str) -> Result<v1::Rebalance> {
    until(LIMIT, "the rebalance has ended", async || {
        let all = cluster.api.rebalances().await?;
        let found = all.into_iter().find(|it| it.cause == cause && it.end_time.is_some() && it.moves_done > 0);
        found.with_context(|| format!("none for {cause}"))
    })
    .await
}

/// For how long nobody had what was moved, in milliseconds.
fn gaps_of(rebalance: &v1::Rebalance) -> Vec<f64> {
    let time = |t: Option<prost_types::Timestamp>| t.and_then(|t| SystemTime::try_from(t).ok());
    let gap = |it: &v1::Move| {
        let released = time(it.stages.as_ref()?.released)?;
        Some(time(it.time)?.duration_since(released).ok()?.as_secs_f64() * 1e3)
    };
    rebalance.r#move.iter().filter_map(gap).collect()
}

/// CPU time that coordinator and workers have used so far, to 10 ms.
fn cpu_time(cluster: &Cluster) -> Result<Duration> {
    // What the kernel counts in for programs, on every architecture we build for.
    const TICK: Duration = Duration::from_millis(10);
    let mut used = Duration::ZERO;
    for daemon in cluster.workers.iter().chain([&cluster.coordinator]) {
        let pid = daemon.pid().context("it runs")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("odd stat")?.1.split_ascii_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u32>().ok()).context("odd stat");
        used += TICK * (ticks(11)? + ticks(12)?);
    }
    Ok(used)
}

/// Resident memory in MB.
fn resident(daemon: &Daemon) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid().context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e3)
}

/// A collector over HTTP that reads requests and forgets them.
struct Sink {
    condition: Condition,
    requests: AtomicU64,
}

impl Sink {
    async fn start(condition: Condition) -> Result<std::net::SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let this = Arc::new(Self { condition, requests: AtomicU64::new(0) });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = Arc::clone(&this);
                // A client that breaks off is no failure of the bench.
                tokio::spawn(async move { drop(this.serve(stream).await) });
            }
        });
        Ok(address)
    }

    async fn serve(&self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut length = 0_u64;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 {
                    return Ok(());
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse()?;
                }
                if line == "\r\n" {
                    break;
                }
            }
            tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
            self.requests.fetch_add(1, Ordering::Relaxed);
            let status = match self.condition {
                Condition::Hanging => std::future::pending().await,
                Condition::Refused => "503 Service Unavailable",
                Condition::Slow => {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    "200 OK"
                }
                Condition::Off | Condition::Taken | Condition::Absent => "200 OK",
            };
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
        }
    }
}
