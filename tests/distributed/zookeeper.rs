//! ZooKeeper away for a while, and an ensemble that loses servers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use rustix::process::Signal;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, api, processes, specs};
use tests::fleet::{Fleet, Options};

use crate::observed;

/// Moves of all rebalances so far, done or not.
async fn moves(fleet: &Fleet) -> Result<u64> {
    Ok(fleet.api().rebalances().await?.iter().map(|r| r.moves).sum())
}

/// Lives of the workers that are healthy, by name.
async fn lives(fleet: &Fleet) -> Result<BTreeMap<String, String>> {
    let workers = fleet.api().workers().await?;
    Ok(workers.into_iter().filter(|w| w.health() == v1::Health::Healthy).map(|w| (w.id, w.incarnation)).collect())
}

/// Waits until the leader is in touch with ZooKeeper and all workers are healthy.
async fn recovered(fleet: &mut Fleet) -> Result<()> {
    fleet.healthy().await?;
    until(PATIENCE, "the leader is in touch with ZooKeeper", async || {
        let status = fleet.api().status().await?;
        let waits = !status.waiting.is_empty() || status.frozen.is_some();
        ensure!(status.coordination_state() == v1::CoordinationState::Connected && !waits, "{status:?}");
        Ok(())
    })
    .await
}

async fn fleet_of_nine(options: Options) -> Result<Fleet> {
    let fleet = Fleet::start(options).await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    observed::balanced(&fleet, PATIENCE).await?;
    Ok(fleet)
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeeper_away_for_less_than_a_session_moves_nothing() -> Result<()> {
    // Long enough for a server that starts slowly while others build: it has to be back within it.
    let mut fleet = fleet_of_nine(Options { session: Duration::from_secs(12), ..Options::default() }).await?;
    let (owners, running, made, before) =
        (fleet.owners().await?, fleet.instances(), moves(&fleet).await?, lives(&fleet).await?);
    let away = Instant::now();
    fleet.zookeeper.kill(0)?;
    fleet.zookeeper.start_again(0).await?;
    println!("zookeeper away for {:?} of a session of 12 s", away.elapsed());
    recovered(&mut fleet).await?;
    fleet.settled(PATIENCE, |_| true).await?;
    ensure!(lives(&fleet).await? == before, "workers began new lives");
    ensure!(fleet.owners().await? == owners, "something moved");
    ensure!(moves(&fleet).await? == made, "a move was begun: {:?}", fleet.api().rebalances().await?);
    ensure!(fleet.instances() == running, "appliances were restarted");
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeeper_away_for_more_than_a_session_fences_all_and_everything_is_as_before_afterwards() -> Result<()> {
    let session = Duration::from_secs(2);
    let mut fleet = fleet_of_nine(Options { session, ..Options::default() }).await?;
    let (owners, running, before) = (fleet.owners().await?, fleet.instances(), lives(&fleet).await?);
    let (probe, _) = owners.iter().next().context("nine appliances")?;
    let victim = *api::pids(&fleet.api().get(probe).await?).first().context("an instance")?;

    let away = Instant::now();
    fleet.zookeeper.kill(0)?;
    until(PATIENCE, "all workers are fenced", async || {
        for worker in &fleet.workers {
            ensure!(worker.log_text().contains("fenced: the lease has run out"), "{} is not", worker.name());
        }
        Ok(())
    })
    .await?;
    println!("zookeeper away: all fenced after {:?}, with sessions of {session:?}", away.elapsed());
    // Somebody would replace it within a second, if anybody might act.
    processes::signal(victim, Signal::KILL);
    tokio::time::sleep((session * 3).saturating_sub(away.elapsed())).await;
    let mut others = running.clone();
    others.retain(|_, process| process.pid != victim);
    ensure!(fleet.instances() == others, "somebody acted, or more than one ended: {:?}", fleet.instances());

    fleet.zookeeper.start_again(0).await?;
    let back = Instant::now();
    recovered(&mut fleet).await?;
    let after = fleet.settled(PATIENCE, |_| true).await?;
    println!("zookeeper away: all owned {:?} after it was back", back.elapsed());
    let changed = lives(&fleet).await?.iter().filter(|(name, life)| before.get(*name) != Some(life)).count();
    println!("zookeeper away: {changed} of {} workers began a new life", before.len());
    for rebalance in fleet.api().rebalances().await? {
        println!(
            "zookeeper away: {} {}: {} of {} moves",
            rebalance.id, rebalance.cause, rebalance.moves_done, rebalance.moves
        );
    }
    ensure!(after == owners, "the placement is another: {after:?}, was {owners:?}");
    until(PATIENCE, "what died is replaced", async || {
        let appliance = fleet.api().get(probe).await?;
        let replaced = api::is_configured(&appliance) && !api::pids(&appliance).contains(&victim);
        ensure!(replaced, "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    let now = fleet.instances();
    ensure!(now.len() == running.len(), "{now:?}");
    ensure!(others.iter().all(|(name, process)| now.get(name) == Some(process)), "appliances were restarted");
    fleet.finish().await
}

/// Kills a worker right after a server, and both come back: the end of the worker must be noticed, and nothing else moves.
async fn notices(fleet: &mut Fleet, server: usize, worker: &str) -> Result<()> {
    let (owners, running, before) = (fleet.owners().await?, fleet.instances(), lives(fleet).await?);
    fleet.zookeeper.kill(server)?;
    fleet.worker(worker)?.kill()?;
    let killed = Instant::now();
    let without = fleet.settled(PATIENCE, |owner| owner != worker).await?;
    println!("server {server} killed, {worker} right after: taken over after {:?}", killed.elapsed());
    for (id, owner) in &owners {
        ensure!(owner == worker || without[id] == *owner, "{id} moved from {owner}, who lives, to {}", without[id]);
    }
    let now = lives(fleet).await?;
    ensure!(
        now.iter().all(|(name, life)| before.get(name) == Some(life)),
        "others began new lives: {now:?} {before:?}"
    );
    fleet.zookeeper.start_again(server).await?;
    fleet.start_all().await?;
    observed::balanced(fleet, PATIENCE).await?;
    ensure!(fleet.instances() == running, "appliances were restarted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_that_loses_a_server_and_then_its_leader_swallows_no_event_and_moves_nothing() -> Result<()> {
    let session = Duration::from_secs(4);
    let mut fleet = fleet_of_nine(Options { zookeepers: 3, session, ..Options::default() }).await?;

    // No move: servers end one after the other and come back, nothing else happens.
    let (owners, made, before) = (fleet.owners().await?, moves(&fleet).await?, lives(&fleet).await?);
    for role in ["a follower", "the leader"] {
        let leader = fleet.zookeeper.leader().await?;
        let server = if role == "the leader" { leader } else { (leader + 1) % 3 };
        let killed = Instant::now();
        fleet.zookeeper.kill(server)?;
        observed::all_beat(&fleet, &["w1", "w2", "w3"], PATIENCE).await?;
        println!("{role} of the ensemble killed: every worker beats after {:?}", killed.elapsed());
        fleet.zookeeper.start_again(server).await?;
    }
    recovered(&mut fleet).await?;
    ensure!(fleet.settled(PATIENCE, |_| true).await? == owners, "something moved");
    ensure!(moves(&fleet).await? == made, "a move was begun: {:?}", fleet.api().rebalances().await?);
    ensure!(lives(&fleet).await? == before, "somebody began a new life");

    // No missed event: a worker ends while those who would notice reconnect.
    let leader = fleet.zookeeper.leader().await?;
    notices(&mut fleet, (leader + 1) % 3, "w2").await?;
    let leader = fleet.zookeeper.leader().await?;
    notices(&mut fleet, leader, "w3").await?;
    fleet.finish().await
}
