//! A worker that is cut off: from the coordinators only, or from ZooKeeper only, in both directions or in one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use runtime::clock;
use rustix::process::Signal;
use servers::netns::{Host, Network};
use tests::cluster::processes::ProcessIdentity;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, api, processes, specs};
use tests::fleet::{Fleet, Hosts, Options};
use tests::{journal, lives};

/// Who is cut off.
const LONER: &str = "w1";
/// How often one of its instances is killed where it shall want to act.
const KILL_EVERY: Duration = Duration::from_millis(400);

/// A fleet on hosts with nine appliances, or `None` where there can be no hosts.
async fn fleet(session: Duration) -> Result<Option<Fleet>> {
    if let Err(problem) = Network::available() {
        println!("skipped: {problem}");
        return Ok(None);
    }
    let fleet = Fleet::start(Options {
        session,
        hosts: Hosts::All,
        worker_env: vec![("RUG_WORKER_SESSION__RETRY_CAP", "300ms".to_owned())],
        ..Options::default()
    })
    .await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    Ok(Some(fleet))
}

/// Ids of what a worker holds.
async fn held_by(fleet: &Fleet, worker: &str) -> Result<Vec<String>> {
    let owners = fleet.owners().await?;
    let held: Vec<String> = owners.into_iter().filter(|(_, by)| by == worker).map(|(id, _)| id).collect();
    ensure!(!held.is_empty(), "{worker} holds nothing");
    Ok(held)
}

fn host(fleet: &Fleet, name: &str) -> Result<Host> {
    fleet.network.as_ref().context("a network")?.host(name).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_coordinator_keeps_what_it_holds_alive_and_reports_later() -> Result<()> {
    let Some(fleet) = fleet(Duration::from_secs(6)).await? else { return Ok(()) };
    let held = held_by(&fleet, LONER).await?;
    let owners = fleet.owners().await?;
    let rebalances = fleet.api().rebalances().await?.len();
    let (loner, here) = (host(&fleet, LONER)?, fleet.network.as_ref().context("a network")?.here().clone());
    let both = [(&loner, &here), (&here, &loner)];
    // In one direction: what it says is lost.
    for cuts in [&both[..], &both[..1]] {
        let began = clock::now().as_nanos();
        for (from, to) in cuts {
            from.cut(to)?;
        }
        until(PATIENCE, "the leader misses its session", async || {
            let workers = fleet.api().workers().await?;
            let found = workers.iter().find(|w| w.id == LONER).context("it is not listed")?;
            ensure!(found.health() == v1::Health::Suspect, "{found:?}");
            Ok(())
        })
        .await?;
        let id = &held[0];
        let (victim, successor) = killed_and_replaced(&fleet, id).await?;
        let effects = journal::effects(&fleet.state_dir())?;
        let done: Vec<_> = effects.into_iter().filter(|effect| effect.at_ns > began).collect();
        ensure!(done.iter().any(|e| e.appliance == *id && e.action == "spawn"), "no spawn in {done:?}");
        ensure!(done.iter().all(|e| e.worker == LONER), "others acted: {done:?}");
        // Nobody heard of it yet, and nobody drew conclusions from that.
        ensure!(api::pids(&fleet.api().get(id).await?) == [victim.pid], "the leader knows of the repair");
        ensure!(fleet.owners().await? == owners, "appliances moved");

        for (from, to) in cuts {
            from.heal(to)?;
        }
        until(PATIENCE, "the repair is reported", async || {
            let found = fleet.api().get(id).await?;
            ensure!(api::pids(&found) == [successor.pid] && api::is_configured(&found), "{}", api::describe(&found));
            Ok(())
        })
        .await?;
    }
    ensure!(fleet.owners().await? == owners, "appliances moved");
    ensure!(fleet.api().rebalances().await?.len() == rebalances, "there was a rebalance");
    let lives = lives::lives(&fleet);
    ensure!(lives.values().all(|life| life.gone.is_none()), "somebody was called gone: {lives:?}");
    fleet.finish().await
}

/// Kills the instance of an appliance and waits for the next one.
async fn killed_and_replaced(fleet: &Fleet, id: &str) -> Result<(ProcessIdentity, ProcessIdentity)> {
    let instance = || fleet.instances().into_iter().find(|(name, _)| name.starts_with(id)).map(|(_, process)| process);
    let victim = instance().context("it has an instance")?;
    processes::signal(victim.pid, Signal::KILL);
    let successor = until(PATIENCE, "the instance is replaced", async || {
        instance().filter(|process| *process != victim).context("it has no successor")
    })
    .await?;
    Ok((victim, successor))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_zookeeper_is_fenced_before_others_take_over() -> Result<()> {
    let Some(mut fleet) = fleet(Duration::from_secs(3)).await? else { return Ok(()) };
    let (loner, zookeeper) = (host(&fleet, LONER)?, host(&fleet, "zk1")?);
    let everything = [(&loner, &zookeeper), (&zookeeper, &loner)];
    for cuts in [&everything[..], &everything[..1], &everything[1..]] {
        let held = held_by(&fleet, LONER).await?;
        let began = clock::now().as_nanos();
        for (from, to) in cuts {
            from.cut(to)?;
        }
        // It has reasons to act all the time.
        let mut killed: Option<Instant> = None;
        until(PATIENCE, "others have taken over", async || {
            let owners = fleet.owners().await;
            let left: Vec<_> = match &owners {
                Ok(owners) => held.iter().filter(|id| owners[*id] == LONER).collect(),
                Err(_) => held.iter().collect(),
            };
            if killed.is_none_or(|at| at.elapsed() >= KILL_EVERY) {
                let theirs = |name: &String| left.iter().any(|id| name.starts_with(*id));
                if let Some((_, process)) = fleet.instances().into_iter().find(|(name, _)| theirs(name)) {
                    processes::signal(process.pid, Signal::KILL);
                    killed = Some(Instant::now());
                }
            }
            owners?;
            ensure!(left.is_empty(), "{left:?} are still {LONER}'s");
            Ok(())
        })
        .await?;
        // An instance that still runs is replaced only once it was missed: it answers on the host it was started on. Before
        // the cut is healed: afterwards the loner is back within a tenth of a second, and gets a share of its own.
        until(PATIENCE, "others have acted on all of them", async || {
            let effects = journal::effects(&fleet.state_dir())?;
            let acted =
                |id: &String| effects.iter().any(|e| e.at_ns > began && e.appliance == *id && e.worker != LONER);
            let left: Vec<_> = held.iter().filter(|id| !acted(id)).collect();
            ensure!(left.is_empty(), "nobody acted on {left:?}");
            Ok(())
        })
        .await?;
        for (from, to) in cuts {
            from.heal(to)?;
        }
        until(PATIENCE, "it knows that its life is over", async || {
            let lives = lives::lives(&fleet);
            let ended = lives.iter().find(|(_, life)| life.gone.is_some_and(|at| at > began));
            ensure!(ended.is_some_and(|(_, life)| life.over), "{lives:?}");
            Ok(())
        })
        .await?;
        in_good_order(&fleet, &held, began)?;
        fleet.healthy().await?;
        until(PATIENCE, "it has a share again", async || held_by(&fleet, LONER).await).await?;
    }
    fleet.finish().await
}

/// Since `began` the loner did its last to `held`, then its deadline passed, then it was called gone, then others began.
fn in_good_order(fleet: &Fleet, held: &[String], began: u64) -> Result<()> {
    let lives = lives::lives(fleet);
    let ((worker, incarnation), life) =
        lives.iter().find(|(_, life)| life.gone.is_some_and(|at| at > began)).context("nobody was called gone")?;
    ensure!(worker == LONER, "{worker} {incarnation} was called gone");
    let (until, gone) = (life.until.context("it is over")?, life.gone.context("it is gone")?);
    ensure!(until <= gone, "{LONER} might act until {until} and was called gone at {gone}");
    let effects = journal::effects(&fleet.state_dir())?;
    lives::nobody_acts_once_gone(&lives, &effects)?;
    let (mut last, mut first) = (BTreeMap::new(), BTreeMap::new());
    for effect in effects.iter().filter(|effect| effect.at_ns > began && held.contains(&effect.appliance)) {
        if effect.worker == LONER {
            last.insert(&effect.appliance, effect.at_ns);
        } else {
            first.entry(&effect.appliance).or_insert(effect.at_ns);
        }
    }
    for id in held {
        let taken = *first.get(id).with_context(|| format!("nobody acted on {id} after {LONER}"))?;
        ensure!(taken >= gone, "{id} was taken over at {taken}, and {LONER} called gone at {gone}");
        let before = last.get(id).copied().unwrap_or(began);
        ensure!(before <= until, "{LONER} acted on {id} at {before}, its right had ended at {until}");
    }
    let least = |ns: u64| Duration::from_nanos(ns);
    let last = last.values().max().map_or_else(|| "nothing".to_owned(), |at| format!("{:?}", least(until - at)));
    println!("its last step began {last} before its right ended, {:?} before it was called gone", least(gone - until));
    Ok(())
}
