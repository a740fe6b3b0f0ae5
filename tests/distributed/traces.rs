//! Traces of calls, through every process that has to do with them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, specs};
use tests::collector::{CollectedSpan, Collector};
use tests::fleet::{Fleet, Options};

/// A fleet whose processes export to a collector, ten times a second, and keep only what is asked for.
async fn observed(collector: &Collector) -> Result<Fleet> {
    let mut options = Options { workers: 1, ..Options::default() };
    for (env, program) in [(&mut options.coordinator_env, "COORDINATOR"), (&mut options.worker_env, "WORKER")] {
        let name = |setting: &str| -> &'static str { format!("RUG_{program}_TELEMETRY__{setting}").leak() };
        env.push((name("ENDPOINT"), collector.endpoint()));
        env.push((name("SAMPLE_RATIO"), "0".to_owned()));
        env.push(("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()));
    }
    Fleet::start(options).await
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
