//! Traces of calls, through every process that has to do with them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, specs};
use tests::collector::{CollectedSpan, Collector};
use tests::fleet::{Fleet, Options};

/// A fleet of one worker whose processes export to a collector and keep only what is asked for.
async fn observed(collector: &Collector) -> Result<Fleet> {
    let mut options = exporting(collector, Options { workers: 1, ..Options::default() });
    options.coordinator_env.push(("RUG_COORDINATOR_TELEMETRY__SAMPLE_RATIO", "0".to_owned()));
    options.worker_env.push(("RUG_WORKER_TELEMETRY__SAMPLE_RATIO", "0".to_owned()));
    Fleet::start(options).await
}

/// Has the processes of a fleet export to a collector, ten times a second.
fn exporting(collector: &Collector, mut options: Options) -> Options {
    for (env, name) in [
        (&mut options.coordinator_env, "RUG_COORDINATOR_TELEMETRY__ENDPOINT"),
        (&mut options.worker_env, "RUG_WORKER_TELEMETRY__ENDPOINT"),
    ] {
        env.push((name, collector.endpoint()));
        env.push(("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()));
    }
    options
}

/// Whether one of these spans has this name and process, and the named parent.
fn find<'a>(spans: &'a [CollectedSpan], instance: &str, name: &str, parent: &str) -> Result<&'a CollectedSpan> {
    let mut found = spans.iter().filter(|span| span.instance == instance && span.name == name);
    let names: BTreeSet<_> = spans.iter().map(|span| (&span.instance, &span.name, &span.parent)).collect();
    found
        .find(|span| span.parent == parent)
        .with_context(|| format!("no {name} of {instance} below {parent} in {names:?}"))
}

#[tokio::test]
async fn a_call_to_a_standby_is_one_trace_from_its_client_to_the_driver() -> Result<()> {
    const CREATE: &str = "rug.admin.v1.Appliances/Create";
    let collector = Collector::start().await?;
    let fleet = observed(&collector).await?;
    let leader = fleet.leader().await?;
    let standby = (leader + 1) % fleet.coordinators.len();
    let (trace, client) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let create = async |name: &str, flags: &str| {
        let message = v1::CreateApplianceRequest { appliance: Some(specs::web(name)), ..Default::default() };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("traceparent", format!("00-{trace}-{client}-{flags}").parse()?);
        request.metadata_mut().insert("baggage", "user=alice".parse()?);
        fleet.apis[standby].appliances().create(request).await?;
        anyhow::Ok(())
    };
    create("web-1", "01").await?;
    let (leading, standing) = (fleet.coordinators[leader].name(), fleet.coordinators[standby].name());
    until(PATIENCE, "the trace is complete", async || {
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == trace).collect();
        let received = find(&spans, standing, CREATE, client)?;
        let forwarded = find(&spans, standing, CREATE, &received.id)?;
        let served = find(&spans, leading, CREATE, &forwarded.id)?;
        let stored = find(&spans, leading, "store transaction", &served.id)?;
        ensure!(stored.attributes.get("db.system.name").map(String::as_str) == Some("postgresql"), "{stored:?}");
        let run = find(&spans, "w1", "lifecycle", &served.id)?;
        let boot = find(&spans, "w1", "boot", &run.id)?;
        let driver = find(&spans, "w1", "process/ensure", &boot.id)?;
        ensure!(driver.time.0 >= boot.time.0 && driver.time.1 <= boot.time.1, "{driver:?} is within {boot:?}");
        ensure!(run.time.0 >= stored.time.1, "it is stored before anything is done");
        Ok(())
    })
    .await?;
    // One that did not ask for its trace is left alone, and what failed in none is not kept.
    let before = collector.spans().len();
    create("web-2", "00").await?;
    until(PATIENCE, "it is there", async || {
        let status = fleet.api().get("web-2").await?.status.unwrap_or_default();
        ensure!(status.phase() == v1::Phase::Configured, "{status:?}");
        Ok(())
    })
    .await?;
    let later = collector.spans().split_off(before);
    let calls: Vec<_> = later.iter().filter(|span| span.name == CREATE).collect();
    ensure!(calls.is_empty(), "{calls:?}");
    fleet.finish().await
}

#[tokio::test]
async fn a_rebalance_over_three_leaders_is_one_trace_with_one_root() -> Result<()> {
    let (collector, world) = (Collector::start().await?, tempfile::tempdir()?);
    let mut options = exporting(&collector, Options { drivers: vec!["simulated"], ..Options::default() });
    options.worker_env.push(("RUG_WORKER_SIMULATED__WORLD", world.path().to_string_lossy().into_owned()));
    options.coordinator_env.push(("RUG_COORDINATOR_MACHINE__MAX_MOVES_IN_FLIGHT", "1".to_owned()));
    let mut fleet = Fleet::start(options).await?;
    fleet.worker("w3")?.kill()?;
    fleet.create((0..240).map(|n| specs::simulated(&format!("s-{n}"))).collect()).await?;
    let all_ended = async |fleet: &Fleet| {
        until(PATIENCE, "every rebalance has ended", async || {
            let all = fleet.api().rebalances().await?;
            let open = all.iter().find(|rebalance| rebalance.end_time.is_none());
            ensure!(open.is_none(), "{open:?}");
            Ok(all)
        })
        .await
    };
    all_ended(&fleet).await?;
    fleet.worker("w3")?.start()?;
    // Whichever coordinator answers: the others name the leader, or there is none for a moment.
    let under_way = async |fleet: &Fleet, more_than: u64| {
        until(PATIENCE, "it goes on", async || {
            let leader = fleet.leader().await?;
            let all = fleet.apis[leader].rebalances().await?;
            let found = all.into_iter().find(|rebalance| rebalance.cause == "joined: w3");
            let found = found.context("no such rebalance")?;
            ensure!(found.moves_done > more_than, "{found:?}");
            Ok((leader, found))
        })
        .await
    };
    let (mut leader, mut seen) = under_way(&fleet, 1).await?;
    let mut led = vec![leader];
    for _ in 0..2 {
        ensure!(seen.end_time.is_none(), "it has ended before its leader was killed: {seen:?}");
        fleet.coordinators[leader].kill()?;
        (leader, seen) = under_way(&fleet, seen.moves_done).await?;
        ensure!(led.last() != Some(&leader), "the killed one still leads");
        fleet.coordinators[led[led.len() - 1]].start()?;
        led.push(leader);
        until(PATIENCE, "the former leader stands by", async || {
            let standby = (leader + 1) % fleet.coordinators.len();
            fleet.apis[standby].rebalances().await?;
            Ok(())
        })
        .await?;
    }
    let all = all_ended(&fleet).await?;
    let found: Vec<_> = all.iter().filter(|rebalance| rebalance.cause == "joined: w3").collect();
    ensure!(found.len() == 1 && found[0].id == seen.id && found[0].outcome == "completed", "{all:#?}");
    let rebalance = found[0];
    until(PATIENCE, "its root is exported", async || {
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == rebalance.trace_id).collect();
        let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
        ensure!(ids.len() == spans.len(), "spans of several leaders share ids");
        let roots: Vec<_> = spans.iter().filter(|span| span.parent.is_empty()).collect();
        ensure!(roots.len() == 1 && roots[0].name == "rebalance", "{roots:?}");
        let root = roots[0];
        ensure!(root.instance == fleet.coordinators[leader].name(), "its last leader ends it: {root:?}");
        ensure!(root.attributes["moves_done"] == rebalance.moves_done.to_string(), "{root:?}: {rebalance:?}");
        ensure!(spans.iter().all(|span| root.time.0 <= span.time.0 && span.time.1 <= root.time.1), "{root:?}");
        let hand_offs: Vec<_> = spans.iter().filter(|span| span.name == "hand-off").collect();
        // What a killed leader had not exported is lost.
        ensure!(hand_offs.len() as u64 <= rebalance.moves_done, "{} hand-offs: {rebalance:?}", hand_offs.len());
        let of: BTreeSet<_> = hand_offs.iter().map(|span| span.instance.as_str()).collect();
        ensure!(of.len() == fleet.coordinators.len(), "each leader did some of it: {of:?}");
        Ok(())
    })
    .await?;
    fleet.healthy().await?;
    fleet.finish().await
}

#[tokio::test]
async fn orders_about_logs_reach_coordinators_that_stand_by_and_outlive_the_leader() -> Result<()> {
    let mut fleet = Fleet::start(Options { workers: 1, ..Options::default() }).await?;
    let leader = fleet.leader().await?;
    let standby = (leader + 1) % fleet.coordinators.len();
    fleet.rugctl(&["log-level", "coordinator=debug", "--for", "1h"], "").await?.success()?;
    let follows = |log: String| log.contains("filter of the log changed");
    until(PATIENCE, "all of them follow", async || {
        let deaf: Vec<_> =
            fleet.coordinators.iter().chain(&fleet.workers).filter(|one| !follows(one.log_text())).collect();
        ensure!(deaf.is_empty(), "{deaf:?}");
        Ok(())
    })
    .await?;
    fleet.coordinators[leader].kill()?;
    until(PATIENCE, "the other one leads with the same order", async || {
        ensure!(fleet.leader().await? == standby, "it does not lead yet");
        let shown = fleet.rugctl(&["log-level"], "").await?.success()?.stdout;
        ensure!(shown.contains("coordinator=debug") && shown.contains("59m"), "{shown}");
        Ok(())
    })
    .await?;
    fleet.coordinators[leader].start()?;
    fleet.healthy().await?;
    fleet.finish().await
}
