//! Who is there, and what becomes of it when that changes: workers that die, alone or most of them at once, nodes that
//! somebody deletes, names that are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use runtime::clock;
use rustix::process::Signal;
use tests::cluster::processes::{self, ProcessIdentity, ROOT_VARIABLE};
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, api, binaries, specs};
use tests::fleet::{Fleet, FleetDatabase, Options, timed};
use tests::journal::effects;
use tests::lives::{lives, nobody_acts_once_gone};
use tokio::process::Command;
use zookeeper_client::Client;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_its_share_once_its_session_is_over_and_gets_it_back() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let before = fleet.instances();
    fleet.worker("w2")?.kill()?;
    fleet.settled(PATIENCE, |worker| worker != "w2").await?;
    assert_eq!(fleet.instances(), before, "no appliance is restarted");
    fleet.start_all().await?;
    fleet.settled(Duration::from_secs(20), |_| true).await?;
    assert_eq!(fleet.instances(), before);
    fleet.finish().await
}

/// What the coordinators tell of a worker.
async fn shown(fleet: &Fleet, name: &str) -> Result<v1::Worker> {
    let workers = fleet.api().workers().await?;
    workers.into_iter().find(|w| w.id == name).with_context(|| format!("{name} is not listed"))
}

/// Deletes a node as an operator might.
async fn delete(fleet: &Fleet, path: &str) -> Result<()> {
    let client = Client::connect(&fleet.zookeeper.connect_string()).await?;
    client.delete(path, None).await.with_context(|| format!("delete {path}"))
}

/// Appliances of a worker and the tokens it has them by.
async fn held(fleet: &Fleet, worker: &str) -> Result<BTreeMap<String, String>> {
    let assigned = fleet.api().list().await?.into_iter().filter_map(|a| Some((a.id, a.assignment?)));
    Ok(assigned.filter(|(_, a)| a.worker == worker).map(|(id, a)| (id, a.token)).collect())
}

/// Live instances of these appliances.
fn instances_of<'a>(fleet: &Fleet, ids: impl IntoIterator<Item = &'a String>) -> Vec<ProcessIdentity> {
    let ids: Vec<&String> = ids.into_iter().collect();
    let of_one = |name: &String| ids.iter().any(|id| name.starts_with(id.as_str()));
    fleet.instances().into_iter().filter(|(name, _)| of_one(name)).map(|(_, identity)| identity).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_member_node_is_deleted_works_on_is_drained_and_comes_back() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    fleet.rugctl(&["placement", "pause", "--reason", "to look at it"], "").await?.success()?;
    let mine = held(&fleet, "w2").await?;
    ensure!(!mine.is_empty());
    let life = shown(&fleet, "w2").await?.incarnation;
    delete(&fleet, "/tooz/rug.workers/w2").await?;
    until(PATIENCE, "it is no member any more", async || {
        let w2 = shown(&fleet, "w2").await?;
        ensure!(!w2.member && w2.draining, "{w2:?}");
        Ok(())
    })
    .await?;

    // It keeps what it holds, and looks after it.
    let done = effects(&fleet.state_dir())?.len();
    let killed = instances_of(&fleet, mine.keys().take(1));
    killed.iter().for_each(|one| processes::signal(one.pid, Signal::KILL));
    until(PATIENCE, "it starts the killed instance again", async || {
        let new = effects(&fleet.state_dir())?.split_off(done);
        ensure!(new.iter().any(|e| e.worker == "w2" && e.action == "spawn"), "{new:?}");
        Ok(())
    })
    .await?;
    assert_eq!(held(&fleet, "w2").await?, mine, "nothing was taken from it");
    let w2 = shown(&fleet, "w2").await?;
    assert_eq!((&w2.incarnation, w2.health()), (&life, v1::Health::Healthy));
    let left = fleet.api().get(mine.keys().next().context("it holds some")?).await?;
    ensure!(api::owner(&left) == "w2", "{}", api::describe(&left));

    let before = fleet.instances();
    fleet.rugctl(&["placement", "resume"], "").await?.success()?;
    until(PATIENCE, "it is back in another life", async || {
        let w2 = shown(&fleet, "w2").await?;
        ensure!(w2.incarnation != life && w2.member && !w2.draining && w2.health() == v1::Health::Healthy, "{w2:?}");
        Ok(())
    })
    .await?;
    let now = held(&fleet, "w2").await?;
    assert!(mine.iter().all(|(id, token)| now.get(id) != Some(token)), "what it held was taken from it first");
    until(PATIENCE, "it has a share again", async || {
        let owners = fleet.owners().await?;
        let shares = ["w1", "w2", "w3"].map(|w| owners.values().filter(|owner| *owner == w).count());
        ensure!(shares.iter().all(|share| *share >= 2), "{shares:?}");
        Ok(())
    })
    .await?;
    // A record is written anew with each owner, and the last moves may be under way; what was restarted never is as it was.
    until(PATIENCE, "no appliance is restarted", async || {
        let now = fleet.instances();
        ensure!(now == before, "{now:?} and not {before:?}");
        Ok(())
    })
    .await?;
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_lease_node_is_deleted_is_fenced_before_its_share_moves() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let mine = held(&fleet, "w2").await?;
    ensure!(!mine.is_empty());
    let life = shown(&fleet, "w2").await?.incarnation;
    // The default part of the session timeout.
    let lease = Options::default().session * 60 / 100;
    let kill = || instances_of(&fleet, mine.keys()).iter().for_each(|one| processes::signal(one.pid, Signal::KILL));
    kill();
    delete(&fleet, "/rug/rug/leases/w2").await?;
    let deleted = clock::now();
    // There is always something to repair, for whoever may.
    until(PATIENCE, "its share has other grants", async || {
        kill();
        let now: BTreeMap<_, _> = fleet.api().list().await?.into_iter().map(|a| (a.id, a.assignment)).collect();
        for (id, token) in &mine {
            let new = now[id].as_ref().filter(|a| a.state == "owned" && a.token != *token);
            ensure!(new.is_some(), "{id}: {:?}", now[id]);
        }
        Ok(())
    })
    .await?;
    until(PATIENCE, "it is back in another life", async || {
        let w2 = shown(&fleet, "w2").await?;
        ensure!(w2.incarnation != life && w2.health() == v1::Health::Healthy, "{w2:?}");
        Ok(())
    })
    .await?;
    fleet.settled(PATIENCE, |_| true).await?;

    let effects = effects(&fleet.state_dir())?;
    let lives = lives(&fleet);
    nobody_acts_once_gone(&lives, &effects)?;
    let gone = lives.get(&("w2".to_owned(), life)).and_then(|life| life.gone).context("it was called gone")?;
    let end = (deleted + lease).as_nanos();
    for effect in effects.iter().filter(|e| mine.contains_key(&e.appliance)) {
        let token = format!("t{}/{}", effect.token.0, effect.token.1);
        if mine[&effect.appliance] == token {
            ensure!(effect.at_ns <= end && effect.at_ns < gone, "after the end of the lease: {effect:?}");
        } else if effect.at_ns > deleted.as_nanos() {
            ensure!(effect.at_ns > gone, "before it was called gone: {effect:?}");
        }
    }
    let after = Duration::from_nanos(gone.saturating_sub(deleted.as_nanos()));
    println!("called gone {after:?} after its lease node was deleted (lease {lease:?})");
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_nodes_are_deleted_one_by_one_costs_no_move_and_can_be_found() -> Result<()> {
    let mut fleet = Fleet::start(Options { workers: 2, session: Duration::from_secs(3), ..Options::default() }).await?;
    fleet.create((1..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let (tokens, instances) = (tokens(&fleet).await?, fleet.instances());
    let client = Client::connect(&fleet.zookeeper.connect_string()).await?;
    for what in ["lock", "member", "lease"] {
        let status = fleet.api().status().await?;
        let path = match what {
            "lock" => first_lock(&client).await?,
            "member" => format!("/tooz/rug.coordinators/{}", status.coordinator),
            _ => format!("/rug/rug/coordinator-leases/{}", status.coordinator),
        };
        client.delete(&path, None).await.with_context(|| format!("delete {path}"))?;
        let (now, took) = timed(PATIENCE, "everybody finds a new leader", async || {
            let mut found = Vec::new();
            for api in &fleet.apis {
                let now = api.status().await?;
                ensure!(now.term > status.term && now.leading && now.coordinators.len() == 2, "{now:?}");
                ensure!(now.coordinators.iter().all(|one| !one.address.is_empty()), "{now:?}");
                found.push(now);
            }
            ensure!(found[0].coordinator == found[1].coordinator, "{found:?}");
            Ok(found.remove(0))
        })
        .await?;
        println!("{} leads after {}, {took:?} after its {what} node was deleted", now.coordinator, status.coordinator);
        fleet.healthy().await?;
    }
    assert_eq!(self::tokens(&fleet).await?, tokens, "nothing moves because the leader changed");
    assert_eq!(fleet.instances(), instances);
    fleet.finish().await
}

/// The lock node of the leader.
async fn first_lock(client: &Client) -> Result<String> {
    const CONTENDERS: &str = "/tooz/rug.coordinators/leader";
    let mut names = client.list_children(CONTENDERS).await?;
    names.sort_by_key(|name| name.rsplit("__lock__").next().map(str::to_owned));
    Ok(format!("{CONTENDERS}/{}", names.first().context("nobody leads")?))
}

/// Token of every appliance: who moves gets another one.
async fn tokens(fleet: &Fleet) -> Result<BTreeMap<String, String>> {
    let listed = fleet.api().list().await?;
    Ok(listed.into_iter().map(|a| (a.id, a.assignment.unwrap_or_default().token)).collect())
}

/// Runs a program of this workspace beside the fleet until it ends by itself.
async fn run(fleet: &Fleet, program: &str, args: &[&str], environment: &[(&str, String)]) -> Result<Output> {
    let program: PathBuf = binaries::path(program)?;
    let mut command = Command::new(&program);
    command
        .args(args)
        .env(ROOT_VARIABLE, fleet.root())
        .env("NO_COLOR", "1")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    Ok(ended.with_context(|| format!("{} goes on", program.display()))??)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_live_session_has_is_refused_with_its_holder() -> Result<()> {
    let mut fleet = Fleet::start(Options { session: Duration::from_secs(2), ..Options::default() }).await?;
    fleet.create(vec![specs::web("web-1")]).await?;
    let owners = fleet.owners().await?;
    let url = fleet.coordination.clone();
    let impatient = |prefix: &str| {
        [
            (format!("{prefix}_COORDINATION__URL"), url.clone()),
            (format!("{prefix}_COORDINATION__JOIN_TIMEOUT"), "500ms".to_owned()),
        ]
    };
    let state = fleet.root().join("twin").display().to_string();
    let worker = impatient("RUG_WORKER");
    let worker: Vec<(&str, String)> = worker.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let twin = run(&fleet, "rug-worker", &["run", "--name", "w1", "--state-dir", &state], &worker).await?;
    let said = String::from_utf8_lossy(&twin.stdout).into_owned() + &String::from_utf8_lossy(&twin.stderr);
    assert_eq!(twin.status.code(), Some(4), "{said}");
    let pid = fleet.worker("w1")?.pid().context("it runs")?;
    for text in ["w1", "host test-host", &format!("process {pid}"), "session 0x", " since 2"] {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }

    let coordinator = impatient("RUG_COORDINATOR");
    let mut coordinator: Vec<(&str, String)> =
        coordinator.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    // It reads no table of the cluster before it leads.
    let FleetDatabase::Postgres(database) = &fleet.database else { bail!("the fleet is on PostgreSQL") };
    coordinator.push(("RUG_COORDINATOR_STORE__URL", database.create_database("twin").await?));
    let args = ["run", "--name", "c1", "--listen", "127.0.0.1:0", "--insecure", "--state-dir", &state];
    let twin = run(&fleet, "rug-coordinator", &args, &coordinator).await?;
    let said = String::from_utf8_lossy(&twin.stdout).into_owned() + &String::from_utf8_lossy(&twin.stderr);
    assert_eq!(twin.status.code(), Some(6), "{said}");
    for text in ["c1", "session 0x", " since 2"] {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }

    // Those who have the names did not notice.
    fleet.healthy().await?;
    assert_eq!(fleet.owners().await?, owners);
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_most_workers_vanish_nothing_moves_before_they_are_back_or_somebody_says_so() -> Result<()> {
    let options = Options { workers: 5, session: Duration::from_secs(3), ..Options::default() };
    let mut fleet = Fleet::start(options).await?;
    fleet.create((1..=15).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let (owners, instances) = (fleet.owners().await?, fleet.instances());

    let began = vanish(&mut fleet, &owners).await?;
    println!("frozen {began:?} after the first of three workers of five was killed (session 3 s)");
    fleet.start_all().await?;
    thawed(&fleet).await?;
    assert_eq!(fleet.settled(PATIENCE, |_| true).await?, owners, "they got back what they had, and nothing else moved");
    assert_eq!(fleet.instances(), instances, "no appliance is restarted");

    let began = vanish(&mut fleet, &owners).await?;
    println!("frozen again {began:?} after the first was killed");
    let said = fleet.rugctl(&["placement", "resume"], "").await?.success()?.stdout;
    assert_eq!(said.trim(), "placement resumed");
    let (after, took) = timed(PATIENCE, "their share is with the others", async || {
        let now = fleet.owners().await?;
        ensure!(now.values().all(|owner| ["w4", "w5"].contains(&owner.as_str())), "{now:?}");
        Ok(now)
    })
    .await?;
    println!("all is with the others {took:?} after `rugctl placement resume`");
    assert!(owners.iter().all(|(id, owner)| !["w4", "w5"].contains(&owner.as_str()) || after[id] == *owner));
    assert_eq!(fleet.instances(), instances, "no appliance is restarted");
    thawed(&fleet).await?;
    fleet.finish().await
}

/// Kills three workers of five and waits until the leader has missed all three, moved nothing, and says so. Answers with
/// how long that took.
async fn vanish(fleet: &mut Fleet, owners: &BTreeMap<String, String>) -> Result<Duration> {
    let lost = ["w1", "w2", "w3"];
    for name in lost {
        fleet.worker(name)?.kill()?;
    }
    let began = std::time::Instant::now();
    until(PATIENCE, "moves are frozen", async || {
        let frozen = fleet.api().status().await?.frozen.context("they are not")?;
        ensure!(frozen.missing == lost && frozen.missing_count == 3, "{frozen:?}");
        // Each of theirs says why it has no owner.
        for appliance in fleet.api().list().await? {
            let assignment = appliance.assignment.clone().unwrap_or_default();
            let owner = &owners[&appliance.id];
            if lost.contains(&owner.as_str()) {
                let why = format!("its owner {owner} and most others vanished at once");
                ensure!(
                    assignment.worker.is_empty() && assignment.reason.starts_with(&why),
                    "{}",
                    api::describe(&appliance)
                );
            } else {
                ensure!(assignment.worker == *owner, "{}", api::describe(&appliance));
            }
        }
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    let status = fleet.rugctl(&["cluster", "status"], "").await?.success()?.stdout;
    let frozen = status.lines().find(|line| line.starts_with("Frozen")).context("it does not show")?;
    for text in ["3 of 5 workers vanished", "missing: w1, w2, w3"] {
        ensure!(frozen.contains(text), "{text:?} is not in\n{status}");
    }
    ensure!(status.contains("`rugctl placement resume`"), "{status}");
    let whose: BTreeSet<String> = fleet.api().list().await?.iter().map(|a| api::owner(a).to_owned()).collect();
    ensure!(whose == ["", "w4", "w5"].map(str::to_owned).into(), "{whose:?}");
    Ok(took)
}

async fn thawed(fleet: &Fleet) -> Result<()> {
    until(PATIENCE, "moves go on", async || {
        let frozen = fleet.api().status().await?.frozen;
        ensure!(frozen.is_none(), "{frozen:?}");
        Ok(())
    })
    .await
}
