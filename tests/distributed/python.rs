//! Python services in the same groups: what tooz sees of Rug, and what Rug makes of members and contenders of tooz.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::ring::position;
use proto::admin::v1;
use serde_json::{Value, json};
use servers::python::{Python, is_skipped};
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, api, binaries, specs};
use tests::fleet::{Fleet, Options};

use crate::tooz::Tooz;

const SESSION: Duration = Duration::from_secs(3);

/// Appliances whose owners are compared with those that tooz names.
const APPLIANCES: usize = 10_000;

/// Appliances that are created while a Python process is a member.
const LATER: usize = 200;

/// Owners are those of the ring.
fn ring_fleet() -> Options {
    Options {
        workers: 4,
        drivers: vec!["simulated"],
        session: SESSION,
        coordinator_env: vec![
            ("RUG_COORDINATOR_MACHINE__PLANNER__STRATEGY", "ring".into()),
            // Who gets what is asked here, not how gently.
            ("RUG_COORDINATOR_MACHINE__GAP_TARGET", "0s".into()),
        ],
        ..Options::default()
    }
}

/// The ring as Rug tells it.
struct ReportedRing {
    weights: BTreeMap<String, u32>,
    points: Vec<(u128, String)>,
}

impl ReportedRing {
    async fn of(fleet: &Fleet) -> Result<Self> {
        let ring = fleet.api().placement().get_ring(v1::GetRingRequest { points: true }).await?.into_inner();
        let point = |p: v1::RingPoint| Ok((u128::from_str_radix(&p.position, 16)?, p.member));
        Ok(Self {
            weights: ring.members.into_iter().map(|m| (m.id, m.weight)).collect(),
            points: ring.points.into_iter().map(point).collect::<Result<_>>()?,
        })
    }

    /// Waits until its members have these weights.
    async fn with(fleet: &Fleet, wanted: &[(&str, u32)]) -> Result<Self> {
        let wanted: BTreeMap<String, u32> = wanted.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        until(PATIENCE, &format!("the ring is of {wanted:?}"), async || {
            let ring = Self::of(fleet).await?;
            ensure!(ring.weights == wanted, "it is of {:?}", ring.weights);
            Ok(ring)
        })
        .await
    }

    fn owner(&self, key: &str) -> &str {
        let at = self.points.partition_point(|(point, _)| *point <= position(key));
        &self.points[at % self.points.len()].1
    }

    /// Owner of every key, which have to be those that tooz names.
    async fn owners(&self, peer: &mut Tooz, keys: &[&String]) -> Result<BTreeMap<String, String>> {
        let named = peer.owners(keys).await?;
        ensure!(named.len() == keys.len(), "{} owners for {} keys", named.len(), keys.len());
        for (key, named) in keys.iter().zip(&named) {
            ensure!(self.owner(key) == named, "{key} is {named}'s for tooz and {}'s for Rug", self.owner(key));
        }
        Ok(keys.iter().map(ToString::to_string).zip(named).collect())
    }
}

/// Waits until every appliance is where `wanted` says.
async fn placed(fleet: &Fleet, wanted: &BTreeMap<String, String>) -> Result<()> {
    until(PATIENCE, "all owners are those that tooz names", async || {
        let owners = fleet.owners().await?;
        let other = wanted.iter().find(|(id, worker)| owners.get(*id) != Some(worker));
        ensure!(other.is_none() && owners.len() == wanted.len(), "{other:?} is {:?}'s", other.map(|o| owners.get(o.0)));
        Ok(())
    })
    .await
}

/// Tokens of these appliances: who moves gets another one.
async fn tokens(fleet: &Fleet, ids: &[&String]) -> Result<BTreeMap<String, String>> {
    let tokens = fleet.api().list().await?.into_iter().map(|a| (a.id, a.assignment.unwrap_or_default().token));
    let mut tokens: BTreeMap<String, String> = tokens.collect();
    Ok(ids.iter().filter_map(|id| tokens.remove_entry(*id)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn tooz_and_rug_agree_on_members_weights_leader_and_ten_thousand_owners() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let mut fleet = Fleet::start(ring_fleet()).await?;
    let mut peer = Tooz::start(&fleet, "py-1").await?;
    sees_members_and_leader(&mut fleet, &mut peer).await?;

    let began = Instant::now();
    let ids = fleet.create((1..=APPLIANCES).map(|n| specs::simulated(&format!("a-{n}"))).collect()).await?;
    println!("{APPLIANCES} appliances created and configured in {:?}", began.elapsed());
    let keys: Vec<&String> = ids.iter().collect();
    let rugs = [("w1", 1), ("w2", 1), ("w3", 3), ("w4", 1)];
    let before = ReportedRing::with(&fleet, &rugs).await?.owners(&mut peer, &keys).await?;
    placed(&fleet, &before).await?;

    follows_python_members(&fleet, &mut peer, &keys, &before).await?;

    // What a service must not do: ask who leads the workers. tooz takes the directory it makes for a member.
    ensure!(peer.ask(json!({ "do": "leader", "group": "workers" })).await?.is_null());
    peer.ask(json!({ "do": "poll" })).await?;
    fleet.worker("w4")?.stop(PATIENCE).await?;
    fleet.start_all().await?;
    ReportedRing::with(&fleet, &rugs).await?;
    ensure!(peer.members("workers").await?.contains(&"leader".to_owned()));
    ensure!(peer.owners(&keys[..1]).await.is_err(), "tooz got over it: docs/tooz.md says it does not");
    fleet.finish().await
}

/// Members with what they publish, the leader, and a worker that leaves and comes back with another weight.
async fn sees_members_and_leader(fleet: &mut Fleet, peer: &mut Tooz) -> Result<()> {
    assert_eq!(peer.members("workers").await?, ["w1", "w2", "w3", "w4"]);
    peer.ask(json!({ "do": "watch", "group": "workers" })).await?;
    assert_eq!(peer.seen().await?, [], "a watch tells of changes only");

    fleet.worker("w3")?.stop(PATIENCE).await?;
    until(PATIENCE, "tooz sees it go", async || {
        ensure!(peer.seen().await?.last() == Some(&("left".to_owned(), "w3".to_owned())));
        Ok(())
    })
    .await?;
    fleet.worker("w3")?.environment(&[("RUG_WORKER_WEIGHT", "3".into())]);
    fleet.start_all().await?;
    until(PATIENCE, "tooz sees it come", async || {
        ensure!(peer.seen().await?.last() == Some(&("joined".to_owned(), "w3".to_owned())));
        Ok(())
    })
    .await?;

    let published = peer.ask(json!({ "do": "capabilities", "group": "workers" })).await?;
    for (name, weight) in [("w1", 1), ("w2", 1), ("w3", 3), ("w4", 1)] {
        let one = &published[name];
        assert_eq!((&one["weight"], &one["host"]), (&json!(weight), &json!("test-host")), "{name}");
        assert_eq!(one["drivers"], json!(["simulated"]));
        let pid = fleet.worker(name)?.pid().context("it runs")?;
        assert_eq!(one["pid"], json!(pid));
    }
    assert_eq!(published.as_object().map(serde_json::Map::len), Some(4));

    let leader = fleet.coordinators[fleet.leader().await?].name().to_owned();
    assert_eq!(peer.leader().await?, Some(leader));
    // tooz takes the directory of contenders for a member, of every group that has had a leader.
    assert_eq!(peer.members("coordinators").await?, ["c1", "c2", "leader"]);
    Ok(())
}

/// Members of tooz come, leave, are killed: the ring follows, and they are given nothing.
async fn follows_python_members(
    fleet: &Fleet,
    peer: &mut Tooz,
    keys: &[&String],
    before: &BTreeMap<String, String>,
) -> Result<()> {
    let rugs = [("w1", 1), ("w2", 1), ("w3", 3), ("w4", 1)];
    let with = |name, weight| [rugs.as_slice(), &[(name, weight)]].concat();
    let held = tokens(fleet, keys).await?;
    let mut member = Tooz::start(fleet, "py-2").await?;
    member.ask(json!({ "do": "join", "capabilities": { "weight": 2 } })).await?;
    let ring = ReportedRing::with(fleet, &with("py-2", 2)).await?;
    let owners = ring.owners(peer, keys).await?;
    let taken = owners.values().filter(|owner| *owner == "py-2").count();
    println!("tooz names py-2 for {taken} of {} appliances", keys.len());
    ensure!(taken > 0 && owners.iter().all(|(id, owner)| owner == "py-2" || before[id] == *owner));

    // What it cannot take stays where it is, or is nowhere when it is new.
    let mut later = Vec::new();
    for n in 1..=LATER {
        later.push(fleet.api().create(specs::simulated(&format!("later-{n}"))).await?.id);
    }
    let mut wanted = ring.owners(peer, &later.iter().collect::<Vec<_>>()).await?;
    let unplaced = until(PATIENCE, "what can be placed is placed", async || {
        let mut unplaced = 0;
        for appliance in fleet.api().list().await? {
            let owner = api::owner(&appliance).to_owned();
            let reason = appliance.assignment.as_ref().map(|a| a.reason.as_str()).unwrap_or_default();
            match wanted.get(&appliance.id).map(String::as_str) {
                Some("py-2") => ensure!(
                    owner.is_empty() && reason == "the ring names py-2, which cannot take it",
                    "{}",
                    api::describe(&appliance)
                ),
                Some(named) => ensure!(owner == named, "{}", api::describe(&appliance)),
                None => ensure!(owner == before[&appliance.id], "{}", api::describe(&appliance)),
            }
            unplaced += usize::from(owner.is_empty());
        }
        Ok(unplaced)
    })
    .await?;
    println!("{unplaced} of {LATER} new appliances are unplaced while py-2 is a member");
    ensure!(unplaced > 0);
    ensure!(tokens(fleet, keys).await? == held, "nothing moved, not even to and fro");

    // It dies: what it kept unplaced goes to whom tooz names then.
    let began = Instant::now();
    member.kill().await?;
    let ring = ReportedRing::with(fleet, &rugs).await?;
    println!("the ring is without py-2 {:?} after its death (session {SESSION:?})", began.elapsed());
    wanted = ring.owners(peer, &later.iter().collect::<Vec<_>>()).await?;
    wanted.extend(before.clone());
    placed(fleet, &wanted).await?;

    // One that leaves goes at once, and one without weight has no part of the ring at all.
    let mut member = Tooz::start(fleet, "py-3").await?;
    for weight in [2, 0] {
        member.ask(json!({ "do": "join", "capabilities": { "weight": weight } })).await?;
        let ring = ReportedRing::with(fleet, &with("py-3", weight)).await?;
        let owners = ring.owners(peer, keys).await?;
        ensure!(owners.values().any(|owner| owner == "py-3") == (weight > 0), "weight {weight}");
        member.ask(json!({ "do": "leave" })).await?;
        ReportedRing::with(fleet, &rugs).await?;
    }
    // One that publishes nothing counts with weight 1.
    member.ask(json!({ "do": "join", "capabilities": Value::Null })).await?;
    ReportedRing::with(fleet, &with("py-3", 1)).await?.owners(peer, keys).await?;
    member.ask(json!({ "do": "publish", "capabilities": { "weight": 3, "note": "anything" } })).await?;
    ReportedRing::with(fleet, &with("py-3", 3)).await?.owners(peer, keys).await?;
    member.ask(json!({ "do": "leave" })).await?;
    ReportedRing::with(fleet, &rugs).await?;
    placed(fleet, &wanted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_member_takes_no_share_and_moves_nothing_inside_the_band() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let fleet =
        Fleet::start(Options { coordinators: 1, drivers: vec!["simulated"], session: SESSION, ..Options::default() })
            .await?;
    fleet.create((1..=30).map(|n| specs::simulated(&format!("a-{n}"))).collect()).await?;
    let before = fleet.owners().await?;
    let mut member = Tooz::start(&fleet, "py-1").await?;
    member.ask(json!({ "do": "join", "capabilities": { "weight": 2 } })).await?;
    ReportedRing::with(&fleet, &[("py-1", 2), ("w1", 1), ("w2", 1), ("w3", 1)]).await?;
    fleet.create((1..=30).map(|n| specs::simulated(&format!("b-{n}"))).collect()).await?;
    let after = fleet.owners().await?;
    assert!(before.iter().all(|(id, owner)| after[id] == *owner));
    for worker in ["w1", "w2", "w3"] {
        assert_eq!(after.values().filter(|owner| *owner == worker).count(), 20, "{worker}");
    }
    let shown = fleet.rugctl(&["ring", "show"], "").await?.success()?.stdout;
    assert!(shown.lines().any(|line| line.starts_with("py-1") && line.ends_with(" 0")), "{shown}");
    member.kill().await?;
    ReportedRing::with(&fleet, &[("w1", 1), ("w2", 1), ("w3", 1)]).await?;
    assert_eq!(fleet.owners().await?, after);
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_contender_excludes_the_coordinators_and_is_excluded_by_them() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let options = Options { workers: 1, drivers: vec!["simulated"], session: SESSION, ..Options::default() };
    let mut fleet = Fleet::start(options).await?;
    fleet.create(vec![specs::simulated("a-1")]).await?;
    let term = fleet.api().status().await?.term;
    let mut peer = Tooz::start(&fleet, "py-1").await?;
    peer.ask(json!({ "do": "contend" })).await?;
    let leader = fleet.coordinators[fleet.leader().await?].name().to_owned();
    for _ in 0..10 {
        assert_eq!(peer.elected().await?, 0, "Rug leads");
        assert_eq!(peer.leader().await?.as_ref(), Some(&leader));
    }
    assert_eq!(fleet.api().status().await?.term, term, "its attempts are no concern of the leader's");

    // A change of leaders while it goes on trying: those that queue come first.
    let at = fleet.leader().await?;
    fleet.coordinators[at].stop(PATIENCE).await?;
    let other = fleet.coordinators[1 - at].name().to_owned();
    until(PATIENCE, "the other coordinator leads", async || {
        ensure!(peer.elected().await? == 0, "the one that waited was passed over");
        ensure!(fleet.api().status().await?.coordinator == other);
        Ok(())
    })
    .await?;
    fleet.coordinators[1 - at].stop(PATIENCE).await?;
    until(PATIENCE, "the Python process leads, as nobody else is there", async || {
        ensure!(peer.elected().await? == 1);
        Ok(())
    })
    .await?;

    // Rug's coordinators come, and wait.
    for coordinator in &mut fleet.coordinators {
        coordinator.start()?;
    }
    until(PATIENCE, "both coordinators are members", async || {
        ensure!(peer.members("coordinators").await? == ["c1", "c2", "leader"]);
        Ok(())
    })
    .await?;
    until(PATIENCE, "they say who leads", async || {
        for api in &fleet.apis {
            let refused = api.status().await.err().context("nobody can answer")?;
            ensure!(refused.code() == tonic::Code::Unavailable, "{refused}");
            ensure!(refused.message().contains("py-1"), "{refused}");
        }
        Ok(())
    })
    .await?;
    assert_eq!(peer.leader().await?.as_deref(), Some("py-1"));
    let began = Instant::now();
    ensure!(peer.ask(json!({ "do": "stand_down" })).await? == json!(true));
    let status = until(PATIENCE, "a coordinator leads", async || Ok(fleet.api().status().await?)).await?;
    println!("a coordinator answers {:?} after the Python process stood down", began.elapsed());
    assert!(status.term > term);
    assert_eq!(peer.leader().await?, Some(status.coordinator));
    fleet.healthy().await?;

    // The same when the Python leader dies.
    for coordinator in &mut fleet.coordinators {
        coordinator.stop(PATIENCE).await?;
    }
    until(PATIENCE, "the Python process leads again", async || {
        ensure!(peer.elected().await? == 2);
        Ok(())
    })
    .await?;
    for coordinator in &mut fleet.coordinators {
        coordinator.start()?;
    }
    let began = Instant::now();
    peer.kill().await?;
    fleet.healthy().await?;
    println!("all is well {:?} after the Python leader died (session {SESSION:?})", began.elapsed());
    fleet.settled(PATIENCE, |_| true).await?;
    fleet.finish().await
}

/// Asks a coordinator how it is over its Unix socket, as docs/configuration.md says.
const OVER_THE_SOCKET: &str = r#"
import sys, time, grpc
options = [("grpc.default_authority", "localhost")]
for address in sys.argv[1:]:
    channel = grpc.insecure_channel(address, options=options)
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    while (answer := check(b"", timeout=60, wait_for_ready=True).hex()) != "0801":
        time.sleep(0.1)
    print(answer)
"#;

#[tokio::test]
async fn a_python_client_of_grpc_calls_over_the_unix_socket() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let python = Python::prepare(env!("CARGO_TARGET_TMPDIR")).await?;
    let sandbox = Sandbox::new()?;
    let state = sandbox.path("state");
    let args = ["run".into(), "--state-dir".into(), state.clone().into_os_string()].to_vec();
    let mut coordinator = Daemon::new("coordinator", binaries::path("rug-coordinator")?, args, &sandbox);
    coordinator.start()?;
    let socket = state.join("coordinator.sock");
    let addresses = ["unix:", "unix://"].map(|scheme| format!("{scheme}{}", socket.display()));
    let answers = python.script(OVER_THE_SOCKET, &[&addresses[0], &addresses[1]], PATIENCE).await?;
    // Field 1 is status 1: serving.
    ensure!(answers == "0801\n0801\n", "{answers}");
    coordinator.stop(PATIENCE).await?;
    sandbox.finish(&[])
}
