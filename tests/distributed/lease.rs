//! Leases when a worker's ZooKeeper server stops to answer: no worker acts after a leader called it gone.
//!
//! Workers know one server each, so that their lease nodes freeze with it; the coordinators know all. A trial breaks one
//! server in a way of its own at a random moment of the heartbeat, kills instances meanwhile so that the workers want to
//! act, and has one of the workers evicted, whose lease node then ends long before its session. Once a leader has called
//! all workers of that server gone, everything is mended. `RUG_LEASE_TRIALS=30` makes as many trials of each kind; a few
//! are enough to see that the rule is in force.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1::{self, workers_client::WorkersClient};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use runtime::clock;
use rustix::process::Signal;
use servers::netns::{Host, Network};
use servers::zookeeper;
use tests::cluster::api::Api;
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, api, processes, specs};
use tests::fleet::{Fleet, Hosts, Options};
use tests::journal;
use tests::lives::{self, Lives};

const SESSION: Duration = Duration::from_secs(2);
/// Heartbeats follow each other in this part of a session timeout: a lease is 0.6 of it and has four of them.
const BEAT: f64 = 0.15;
/// Of the servers; they tell each other twice in it which sessions live.
const TICK: Duration = Duration::from_millis(500);
const SERVERS: usize = 3;
const WORKERS: u16 = 6;
/// How often an instance is killed while a server is broken.
const KILL_EVERY: Duration = Duration::from_millis(200);

/// How a lease node is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FreezeKind {
    /// The follower is cut off from the other servers; it goes on to speak to its clients for a while.
    CutFollower,
    /// The follower is paused: for good, or for a moment after which it is cut off with what it has not sent yet.
    PausedFollower,
    /// The leading server is paused: until there is another, or for a moment, with a follower cut off right after.
    PausedLeader,
}

/// What one trial does.
#[derive(Clone, Copy, Debug)]
struct Trial {
    kind: FreezeKind,
    /// Server whose clients lose their leases.
    server: usize,
    /// The server that is paused, and for how long; `None` until the end.
    pause: Option<(usize, Option<Duration>)>,
    /// The server is cut off from the others.
    cut: bool,
}

impl Trial {
    fn new(kind: FreezeKind, leader: usize, rng: &mut StdRng) -> Self {
        let follower = (leader + rng.random_range(1..SERVERS)) % SERVERS;
        // Short ones leave the connection as it is, so that heartbeats commit as the server wakes.
        let moment = Some(SESSION.mul_f64(rng.random_range(0.1..1.25)));
        let short = rng.random_bool(0.5);
        match kind {
            FreezeKind::CutFollower => Self { kind, server: follower, pause: None, cut: true },
            FreezeKind::PausedFollower if short => {
                Self { kind, server: follower, pause: Some((follower, moment)), cut: true }
            }
            FreezeKind::PausedFollower => Self { kind, server: follower, pause: Some((follower, None)), cut: false },
            FreezeKind::PausedLeader if short => {
                Self { kind, server: follower, pause: Some((leader, moment)), cut: true }
            }
            FreezeKind::PausedLeader => Self { kind, server: leader, pause: Some((leader, None)), cut: false },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_acts_after_it_was_called_gone_whatever_freezes_its_lease_node() -> Result<()> {
    if let Err(problem) = Network::available() {
        println!("skipped: {problem}");
        return Ok(());
    }
    let trials = std::env::var("RUG_LEASE_TRIALS").ok().map_or(Ok(3), |n| n.parse::<usize>())?;
    let seed = std::env::var("RUG_LEASE_SEED").ok().map_or_else(|| Ok(rand::rng().random()), |n| n.parse::<u64>())?;
    println!("RUG_LEASE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::start(Options {
        zookeepers: SERVERS,
        workers: WORKERS,
        zookeeper: zookeeper::Options { tick_time: TICK, ..zookeeper::Options::default() },
        session: SESSION,
        pinned: true,
        hosts: Hosts::ZooKeepers,
        // All workers may vanish at once; what is tried here is not the brake.
        coordinator_env: vec![("RUG_COORDINATOR_MACHINE__FREEZE_FRACTION", "1".to_owned())],
        worker_env: vec![("RUG_WORKER_SESSION__RETRY_CAP", "300ms".to_owned())],
        ..Options::default()
    })
    .await?;
    fleet.create((1..=2 * WORKERS).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;

    let mut begun: Vec<(u64, Trial)> = Vec::new();
    for _ in 0..trials {
        for kind in [FreezeKind::CutFollower, FreezeKind::PausedFollower, FreezeKind::PausedLeader] {
            let trial = Trial::new(kind, fleet.zookeeper.leader().await?, &mut rng);
            begun.push((clock::now().as_nanos(), trial));
            let number = begun.len();
            run(&mut fleet, trial, &mut rng).await.with_context(|| format!("trial {number}: {trial:?}"))?;
        }
    }
    let lives = lives::lives(&fleet);
    let slacks = lives::nobody_acts_once_gone(&lives, &journal::effects(&fleet.state_dir())?)?;
    for kind in [FreezeKind::CutFollower, FreezeKind::PausedFollower, FreezeKind::PausedLeader] {
        let of = |at: &u64| begun.iter().rev().find(|(began, _)| began <= at).is_some_and(|(_, t)| t.kind == kind);
        let mut found: Vec<Duration> = slacks.iter().filter(|(at, _)| of(at)).map(|(_, slack)| *slack).collect();
        found.sort_unstable();
        let (least, median) = (found.first(), found.get(found.len() / 2));
        println!("{kind:?}: {trials} trials, {} lives gone, smallest slack {least:?}, median {median:?}", found.len());
        ensure!(found.len() >= trials, "not every trial of {kind:?} ended a life");
    }
    fleet.finish().await
}

/// Breaks a server, waits until a life has ended of it, mends it and waits until all are back.
async fn run(fleet: &mut Fleet, trial: Trial, rng: &mut StdRng) -> Result<()> {
    let affected: Vec<String> =
        (0..usize::from(WORKERS)).filter(|n| n % SERVERS == trial.server).map(|n| format!("w{}", n + 1)).collect();
    let owners: BTreeMap<String, String> =
        fleet.api().list().await?.iter().map(|a| (a.id.clone(), api::owner(a).to_owned())).collect();
    let before = lives::lives(fleet);
    // Any moment between two heartbeats is as good as any other.
    tokio::time::sleep(SESSION.mul_f64(BEAT * rng.random_range(0.0..1.0))).await;

    if let Some((server, moment)) = trial.pause {
        fleet.zookeeper.pause(server)?;
        if let Some(moment) = moment {
            tokio::time::sleep(moment).await;
            fleet.zookeeper.resume(server)?;
            // For an answer or two, and not for what keeps sessions alive.
            tokio::time::sleep(TICK.mul_f64(rng.random_range(0.0..0.25))).await;
        }
    }
    if trial.cut {
        let (one, others) = hosts(fleet, trial.server)?;
        fleet.network.as_ref().context("a network")?.part(&[&one], &others.iter().collect::<Vec<_>>())?;
    }
    // One of them is evicted: its lease node takes no more heartbeats long before its session ends, and it cannot know.
    let evicting = tokio::spawn(evict(fleet.api().clone(), affected[rng.random_range(0..affected.len())].clone()));
    let gone = until_gone(fleet, &before, &affected, &owners, rng).await;
    evicting.abort();

    if let Some((server, None)) = trial.pause {
        fleet.zookeeper.resume(server)?;
    }
    if trial.cut {
        let (one, others) = hosts(fleet, trial.server)?;
        fleet.network.as_ref().context("a network")?.join(&[&one], &others.iter().collect::<Vec<_>>())?;
    }
    gone?;
    for server in 0..SERVERS {
        fleet.zookeeper.serves(server).await?;
    }
    until(PATIENCE, "all lives that are gone are over", async || {
        let lives = lives::lives(fleet);
        let unaware = lives.iter().find(|(_, life)| life.gone.is_some() && !life.over);
        ensure!(unaware.is_none(), "{unaware:?}");
        Ok(())
    })
    .await?;
    fleet.healthy().await?;
    fleet.settled(PATIENCE, |_| true).await?;
    Ok(())
}

/// Asks for an eviction. Whoever leads may lose that in the meantime; then the session ends the life.
async fn evict(api: Api, id: String) {
    let request = v1::EvictWorkerRequest { id: id.clone(), reason: "trial".to_owned(), incarnation: String::new() };
    if let Err(refused) = WorkersClient::new(api.channel()).evict(request).await {
        println!("{id} is not evicted: {}", refused.message());
    }
}

/// Waits until each of these workers was called gone since `before`, killing instances of theirs meanwhile.
async fn until_gone(
    fleet: &Fleet,
    before: &Lives,
    affected: &[String],
    owners: &BTreeMap<String, String>,
    rng: &mut StdRng,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lives = lives::lives(fleet);
        let gone = |worker: &String| {
            let is = |(life, now): (&(String, String), &lives::LoggedLife)| {
                life.0 == *worker && now.gone.is_some() && before.get(life).is_none_or(|was| was.gone.is_none())
            };
            lives.iter().any(is)
        };
        if affected.iter().all(gone) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not all of {affected:?} were called gone: {lives:?}");
        }
        let theirs = |name: &String| owners.iter().any(|(id, by)| name.starts_with(id) && affected.contains(by));
        let instances: Vec<_> = fleet.instances().into_iter().filter(|(name, _)| theirs(name)).collect();
        if !instances.is_empty() {
            let (_, victim) = &instances[rng.random_range(0..instances.len())];
            processes::signal(victim.pid, Signal::KILL);
        }
        tokio::time::sleep(KILL_EVERY).await;
    }
}

/// The host of a server, and those of the others.
fn hosts(fleet: &Fleet, server: usize) -> Result<(Host, Vec<Host>)> {
    let network = fleet.network.as_ref().context("a network")?;
    let host = |n: usize| network.host(&format!("zk{}", n + 1)).cloned();
    let others = (0..SERVERS).filter(|n| *n != server).map(host).collect::<Result<_>>()?;
    Ok((host(server)?, others))
}

/// What ZooKeeper has received from clients so far.
async fn received(fleet: &Fleet) -> Result<u64> {
    let told = fleet.zookeeper.four_letter(0, "mntr").await?;
    let line = told.lines().find_map(|line| line.strip_prefix("zk_packets_received"));
    Ok(line.with_context(|| format!("not in {told}"))?.trim().parse()?)
}

/// Processor time these daemons have taken, in the kernel's ticks of 10 ms.
fn ticks(daemons: &[Daemon]) -> Result<u64> {
    let mut sum = 0;
    for daemon in daemons {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid().context("it runs")?))?;
        // User and system time are the 12th and 13th field after the name.
        let fields = stat.rsplit_once(')').context("a name in parentheses")?.1.split_ascii_whitespace();
        for field in fields.skip(11).take(2) {
            sum += field.parse::<u64>()?;
        }
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_fleet_asks_zookeeper_for_little_more_than_its_heartbeats() -> Result<()> {
    let options = Options { session: Duration::from_secs(6), ..Options::default() };
    let (session, members) = (options.session, u32::from(options.workers + options.coordinators));
    let fleet = Fleet::start(options).await?;
    let busy = || Ok::<_, anyhow::Error>((ticks(&fleet.workers)?, ticks(&fleet.coordinators)?));
    let (before, ticked, began) = (received(&fleet).await?, busy()?, Instant::now());
    tokio::time::sleep(session).await;
    let (after, now_ticked, took) = (received(&fleet).await?, busy()?, began.elapsed().as_secs_f64());
    let asked = (after - before) as f64;
    let (each, beats) = (asked * session.as_secs_f64() / took / f64::from(members), 1.0 / BEAT);
    println!("{:.1} requests per second of {members} members with sessions of {session:?}", asked / took);
    println!("{each:.1} requests per member and session timeout, {beats:.1} of them heartbeats");
    let percent = |from: u64, to: u64, count: usize| (to - from) as f64 / took / count as f64;
    println!(
        "processor time: {:.2} % of a core per worker, {:.2} % per coordinator",
        percent(ticked.0, now_ticked.0, fleet.workers.len()),
        percent(ticked.1, now_ticked.1, fleet.coordinators.len())
    );
    ensure!(each <= 3.0 * beats, "{each:.1} requests per member and session timeout");
    fleet.finish().await
}
