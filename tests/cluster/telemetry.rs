//! What a cluster exports by OTLP.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, http, ports, specs};
use tests::collector::{CollectedSpan, Collector, Manner};

/// A cluster whose processes export to a collector, ten times a second.
async fn observed(collector: &Collector) -> Result<Cluster> {
    let mut options = Options::default();
    let names = ["RUG_COORDINATOR_TELEMETRY__ENDPOINT", "RUG_WORKER_TELEMETRY__ENDPOINT"];
    for (env, name) in [&mut options.coordinator_env, &mut options.worker_env].into_iter().zip(names) {
        env.push((name, collector.endpoint()));
        env.push(("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()));
        env.push(("OTEL_METRIC_EXPORT_INTERVAL", "200".to_owned()));
    }
    Cluster::start(options).await
}

/// The rebalance with this cause, once it has ended.
async fn ended(cluster: &Cluster, cause: &str) -> Result<v1::Rebalance> {
    until(PATIENCE, "the rebalance has ended", async || {
        let all = cluster.api.rebalances().await?;
        let found = all.into_iter().find(|rebalance| rebalance.cause == cause && rebalance.end_time.is_some());
        found.with_context(|| format!("no ended rebalance for {cause}"))
    })
    .await
}

fn is_instance_of<'a>(spans: &'a [CollectedSpan], name: &'a str) -> impl Iterator<Item = &'a CollectedSpan> {
    spans.iter().filter(move |span| span.name == name)
}

#[tokio::test]
async fn a_rebalance_is_one_trace_over_all_processes() -> Result<()> {
    let collector = Collector::start().await?;
    let mut cluster = observed(&collector).await?;
    let fleet = cluster.fleet((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let held = fleet.iter().filter(|appliance| api::owner(appliance) == "worker-2").count();
    cluster.worker("worker-2")?.kill()?;
    let rebalance = ended(&cluster, "gone: worker-2").await?;
    ensure!(rebalance.moves_done == held as u64, "{rebalance:?}");
    until(PATIENCE, "its spans are exported", async || {
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == rebalance.trace_id).collect();
        let roots: Vec<_> = is_instance_of(&spans, "rebalance").collect();
        ensure!(roots.len() == 1, "{} roots", roots.len());
        let root = roots[0];
        ensure!(root.parent.is_empty() && root.instance == "coordinator-1", "{root:?}");
        let hand_offs: Vec<_> = is_instance_of(&spans, "hand-off").collect();
        ensure!(hand_offs.len() == held, "{} of {held} hand-offs", hand_offs.len());
        ensure!(hand_offs.iter().all(|span| span.parent == root.id), "hand-offs belong to the root");
        for appliance in hand_offs.iter().filter_map(|span| span.attributes.get("appliance")) {
            let of_it = |span: &&CollectedSpan| span.attributes.get("appliance") == Some(appliance);
            let adopted =
                is_instance_of(&spans, "adopt").filter(of_it).any(|span| span.instance.starts_with("worker-"));
            ensure!(adopted, "{appliance} was adopted without a span");
        }
        let ids: Vec<_> = spans.iter().map(|span| &span.id).collect();
        let orphan = spans.iter().find(|span| !span.parent.is_empty() && !ids.contains(&&span.parent));
        ensure!(orphan.is_none(), "{orphan:?} has no parent");
        let late = spans.iter().find(|span| span.time.1 < span.time.0);
        ensure!(late.is_none(), "{late:?} ends before it begins");
        Ok(())
    })
    .await?;
    until(PATIENCE, "metrics are pushed", async || {
        let metrics = collector.metrics();
        let from = |name: &str| metrics.get(name).map(|from| from.iter().map(String::as_str).collect::<BTreeSet<_>>());
        ensure!(from("rug.leader") == Some(BTreeSet::from(["coordinator-1"])), "{metrics:?}");
        let workers = BTreeSet::from(["worker-1", "worker-2", "worker-3"]);
        ensure!(from("rug.step.duration").as_ref() == Some(&workers), "{metrics:?}");
        ensure!(from("rug.appliances.held") == Some(workers), "{metrics:?}");
        Ok(())
    })
    .await?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_collector_that_hangs_or_refuses_holds_up_nothing_and_is_used_again_when_it_is_back() -> Result<()> {
    let collector = Collector::start().await?;
    collector.behave(Manner::Hangs);
    let mut cluster = observed(&collector).await?;
    cluster.tolerate("the collector takes no spans");
    cluster.fleet((1..=4).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    collector.behave(Manner::Refuses);
    cluster.fleet((5..=6).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    ensure!(collector.spans().is_empty());
    collector.behave(Manner::Keeps);
    // An export that hangs is given up after 10 s.
    until(PATIENCE, "spans arrive again", async || {
        let spans = collector.spans();
        let from = |name: &str| spans.iter().any(|span| span.instance == name);
        cluster.api.get("web-1").await?;
        ensure!(from("coordinator-1"), "none of the coordinator");
        Ok(())
    })
    .await?;
    let stopped = cluster.worker("worker-1")?.stop(PATIENCE).await?;
    ensure!(stopped.success(), "{stopped}");
    collector.behave(Manner::Hangs);
    let began = std::time::Instant::now();
    let stopped = cluster.worker("worker-3")?.stop(PATIENCE).await?;
    ensure!(stopped.success() && began.elapsed() < PATIENCE - Duration::from_secs(10), "{:?}", began.elapsed());
    cluster.start_all().await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_worker_shows_what_it_measures() -> Result<()> {
    let port = ports::free();
    let worker_env = vec![("RUG_WORKER_METRICS__LISTEN", format!("127.0.0.1:{port}"))];
    let cluster = Cluster::start(Options { workers: 1, worker_env, ..Options::default() }).await?;
    cluster.fleet(vec![specs::web("web-1"), specs::web("web-2")]).await?;
    until(PATIENCE, "its metrics show them", async || {
        let page = http::page(port, "/metrics").await?;
        let has = |line: &str| page.lines().any(|found| found.starts_with(line));
        for line in [
            "rug_appliances_held 2",
            "rug_step_duration_seconds_count{driver=\"process\",outcome=\"booted\",step=\"boot\"} 2",
            "rug_probe_duration_seconds_count{driver=\"process\",kind=\"custom\",outcome=\"answered\"}",
            "rug_boot_attempts_total{driver=\"process\",kind=\"custom\"} 2",
            "rug_boot_duration_seconds_count{driver=\"process\",kind=\"custom\",outcome=\"answered\"} 2",
            "rug_driver_call_duration_seconds_count{call=\"ensure\",driver=\"process\",outcome=\"ok\"} 2",
            "rug_grants_total{event=\"taken\"} 2",
            "rug_session_connected 1",
            "rug_steps_limit{pool=\"changes\"} 64",
            "process_resident_memory_bytes ",
            "rug_runtime_workers ",
            "rug_session_connects_total{outcome=\"opened\"} 1",
            "rug_lease_remaining_seconds_count",
            "rug_build_info{",
        ] {
            ensure!(has(line), "no {line} in\n{page}");
        }
        Ok(())
    })
    .await?;
    cluster.finish().await
}
