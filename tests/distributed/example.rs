//! `docs/examples/tooz_member.py`, run as it stands, and what `docs/tooz.md` says of URLs with a chroot.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use rustix::process::Signal;
use servers::python::{Python, Script, is_skipped};
use tests::cluster::processes::{self, ROOT_VARIABLE};
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, binaries, specs};
use tests::fleet::{Fleet, Options};
use tokio::process::Command;

use crate::tooz::python;

const EXAMPLE: &str = include_str!("../../docs/examples/tooz_member.py");

const SESSION: Duration = Duration::from_secs(3);

fn start(python: &Python, url: &str, words: &[&str]) -> Result<Script> {
    python.spawn(EXAMPLE, &[&["--url", url], words].concat())
}

async fn says(script: &mut Script, line: &str) -> Result<()> {
    script.line_where(PATIENCE, |said| said == line).await.with_context(|| format!("until {line:?}")).map(drop)
}

fn terminate(script: &Script) -> Result<()> {
    processes::signal(script.pid().context("it runs")?, Signal::TERM);
    Ok(())
}

/// Waits until the ring has these members.
async fn ring_of(fleet: &Fleet, wanted: &[&str]) -> Result<()> {
    until(PATIENCE, &format!("the ring is of {wanted:?}"), async || {
        let ring = fleet.api().placement().get_ring(v1::GetRingRequest::default()).await?.into_inner();
        let members: Vec<String> = ring.members.into_iter().map(|m| m.id).collect();
        ensure!(members == wanted, "it is of {members:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_the_documentation_does_what_it_says() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let mut fleet = Fleet::start(Options {
        coordinators: 1,
        workers: 2,
        drivers: vec!["simulated"],
        session: SESSION,
        coordinator_env: vec![("RUG_COORDINATOR_MACHINE__PLANNER__STRATEGY", "ring".into())],
        ..Options::default()
    })
    .await?;
    let (python, url) = (python().await?, fleet.coordination.clone());
    let ids = fleet.create((1..=30).map(|n| specs::simulated(&format!("a-{n}"))).collect()).await?;
    let owners = fleet.settled(PATIENCE, |_| true).await?;

    let words: Vec<&str> = ["--url", &url, "owners"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    let named = python.script(EXAMPLE, &words, PATIENCE).await?;
    let named: BTreeMap<String, String> =
        named.lines().filter_map(|line| line.split_once(' ')).map(|(key, owner)| (key.into(), owner.into())).collect();
    assert_eq!(named, owners);

    let mut watch = start(&python, &url, &["watch"])?;
    says(&mut watch, "workers w1=1 w2=1").await?;
    says(&mut watch, "leader c1").await?;

    // A member that sleeps for longer than its session comes back, and one that is asked to stop leaves at once.
    let mut member = start(&python, &url, &["join", "py-1", "--weight", "2"])?;
    says(&mut member, "joined py-1").await?;
    says(&mut watch, "workers py-1=2 w1=1 w2=1").await?;
    ring_of(&fleet, &["py-1", "w1", "w2"]).await?;
    member.pause()?;
    ring_of(&fleet, &["w1", "w2"]).await?;
    member.resume()?;
    says(&mut member, "joined py-1").await?;
    ring_of(&fleet, &["py-1", "w1", "w2"]).await?;
    terminate(&member)?;
    says(&mut member, "left").await?;
    ring_of(&fleet, &["w1", "w2"]).await?;

    let mut contender = start(&python, &url, &["lead", "py-2"])?;
    says(&mut contender, "stands by c1").await?;
    fleet.coordinators[0].stop(PATIENCE).await?;
    says(&mut contender, "leads py-2").await?;
    says(&mut watch, "leader py-2").await?;
    fleet.coordinators[0].start()?;
    terminate(&contender)?;
    says(&mut contender, "stood down").await?;
    says(&mut watch, "leader c1").await?;
    fleet.healthy().await?;
    terminate(&watch)?;
    assert_eq!(fleet.settled(PATIENCE, |_| true).await?, owners);
    fleet.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_url_with_a_chroot_serves_tooz_and_rug() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let options = Options { coordinators: 1, workers: 1, drivers: vec!["simulated"], ..Options::default() };
    let fleet = Fleet::start(options).await?;
    let url = format!("zookeeper://?hosts={}/there/deep&timeout=3", fleet.zookeeper.connect_string());
    let state = fleet.root().join("chroot");
    let mut worker = Command::new(binaries::path("rug-worker")?);
    worker
        .args(["run", "--name", "elsewhere", "--driver", "simulated", "--weight", "4", "--state-dir"])
        .arg(&state)
        .env(ROOT_VARIABLE, fleet.root())
        .env("RUG_WORKER_COORDINATION__URL", &url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut worker = worker.spawn()?;
    let python = python().await?;
    until(PATIENCE, "tooz sees the worker below the chroot", async || {
        let named = python.script(EXAMPLE, &["--url", &url, "owners", "a"], PATIENCE).await?;
        ensure!(named == "a elsewhere\n", "{named:?}");
        Ok(())
    })
    .await?;
    // A path is a chroot for Rug; tooz drops it, and is in the other cluster.
    let path = format!("zookeeper://{}/there/deep?timeout=3", fleet.zookeeper.connect_string());
    let named = python.script(EXAMPLE, &["--url", &path, "owners", "a"], PATIENCE).await?;
    assert_eq!(named, "a w1\n");
    worker.kill().await?;
    fleet.finish().await
}
