//! What a cluster exports by OTLP.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use runtime::tls;
use tests::cluster::certificates::Certificates;
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
        env.push(("OTEL_LOGS_EXPORTER", "otlp".to_owned()));
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
    until(PATIENCE, "what was logged is exported with its trace", async || {
        let (records, spans) = (collector.records(), collector.spans());
        let created =
            records.iter().find(|record| record.attributes.get("action").is_some_and(|action| action == "create"));
        let created = created.with_context(|| format!("{} records, none of them it", records.len()))?;
        ensure!(created.instance == "coordinator-1", "{created:?}");
        let of_call = spans.iter().any(|span| span.trace == created.trace && span.name.ends_with("Appliances/Create"));
        ensure!(of_call, "{created:?} belongs to no call");
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
    cluster.tolerate("the collector takes no");
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

/// Names of spans that the process exported.
fn names_of(collector: &Collector, instance: &str) -> BTreeSet<String> {
    let spans = collector.spans().into_iter().filter(|span| span.instance == instance);
    spans.map(|span| span.name).collect()
}

#[tokio::test]
async fn what_is_kept_of_traces_follows_from_what_happened_and_from_what_operators_ask() -> Result<()> {
    const LIST: &str = "rug.admin.v1.Appliances/List";
    const GET: &str = "rug.admin.v1.Appliances/Get";
    let collector = Collector::start().await?;
    let mut options = Options { workers: 2, ..Options::default() };
    let port = ports::free();
    options.coordinator_env.push(("RUG_COORDINATOR_METRICS__LISTEN", format!("127.0.0.1:{port}")));
    for (env, [endpoint, ratio]) in [
        (
            &mut options.coordinator_env,
            ["RUG_COORDINATOR_TELEMETRY__ENDPOINT", "RUG_COORDINATOR_TELEMETRY__SAMPLE_RATIO"],
        ),
        (&mut options.worker_env, ["RUG_WORKER_TELEMETRY__ENDPOINT", "RUG_WORKER_TELEMETRY__SAMPLE_RATIO"]),
    ] {
        env.push((endpoint, collector.endpoint()));
        env.push((ratio, "0".to_owned()));
        env.push(("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()));
    }
    let mut cluster = Cluster::start(options).await?;
    cluster.fleet((1..=4).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    // A worker that was there before the coordinator could not connect, and what has failed is kept.
    let asked = collector.spans().into_iter().find(|span| span.name != "rug.worker.v1.Session/Open");
    ensure!(asked.is_none(), "nothing of it was asked for: {asked:?}");
    cluster.worker("worker-2")?.kill()?;
    ended(&cluster, "gone: worker-2").await?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    until(PATIENCE, "the rebalance is exported", async || {
        let names = names_of(&collector, "coordinator-1");
        ensure!(names.contains("rebalance") && !names.contains(GET), "{names:?}");
        Ok(())
    })
    .await?;
    ensure!(!names_of(&collector, "coordinator-1").contains("hand-off"), "no ratio keeps them");
    // A command that asks for its trace.
    let traced = cluster.rugctl(&["list", "--trace"], "").await?.success()?;
    let id = traced.stderr.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    ensure!(id.len() == 32, "{traced:?}");
    until(PATIENCE, "its trace is exported", async || {
        let found = collector.spans().into_iter().find(|span| span.trace == id && span.name == LIST);
        found.map(drop).context("it is not there")
    })
    .await?;
    // All of them, from now on, and only in the coordinator.
    let state =
        cluster.rugctl(&["sampling", "--ratio", "1", "--process", "coordinator-1", "-o", "json"], "").await?.json()?;
    ensure!(state[0]["process"] == "coordinator-1" && state[0]["sample_ratio"] == 1.0, "{state}");
    cluster.api.get("web-1").await?;
    until(PATIENCE, "calls are exported", async || {
        ensure!(names_of(&collector, "coordinator-1").contains(GET), "{:?}", names_of(&collector, "coordinator-1"));
        Ok(())
    })
    .await?;
    let page = http::page(port, "/metrics").await?;
    let has = |line: &str| page.lines().any(|found| found.starts_with(line));
    for line in [
        "rug_telemetry_spans_kept_total{reason=\"always\"}",
        "rug_telemetry_spans_kept_total{reason=\"asked\"}",
        "rug_telemetry_spans_kept_total{reason=\"ratio\"}",
        "rug_telemetry_spans_total{outcome=\"unsampled\"}",
    ] {
        ensure!(has(line) && !has(&format!("{line} 0")) || line.contains("unsampled"), "no {line} in\n{page}");
    }
    until(PATIENCE, "it is in the audit trail", async || {
        let audited = cluster.rugctl(&["audit", "--action", "sampling", "-o", "json"], "").await?.json()?;
        ensure!(audited[0]["subject"] == "coordinator-1" && audited[0]["detail"] == "ratio 1", "{audited}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn the_log_of_one_process_is_more_detailed_for_a_while() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    cluster.rugctl(&["log-level", "worker=loud"], "").await?.refused(2, &["loud"])?;
    cluster.rugctl(&["log-level", "debug", "--process", "nobody"], "").await?.refused(2, &["process"])?;
    let order = ["log-level", "worker=debug", "--process", "worker-1", "--for", "4s", "--reason", "looking"];
    let shown = cluster.rugctl(&order, "").await?.success()?.stdout;
    ensure!(shown.contains("worker-1") && shown.contains("worker=debug"), "{shown}");
    let logs = async |cluster: &mut Cluster, name: &str, text: &str| {
        let log = cluster.worker(name)?.log_text();
        anyhow::Ok(log.lines().filter(|line| line.contains(text)).count())
    };
    cluster.fleet(vec![specs::web("web-1"), specs::web("web-2"), specs::web("web-3")]).await?;
    let mut seen = 0;
    until(PATIENCE, "it goes back by itself", async || {
        seen = logs(&mut cluster, "worker-1", "filter of the log changed").await?;
        ensure!(seen == 2, "changed {seen} times");
        Ok(())
    })
    .await?;
    ensure!(logs(&mut cluster, "worker-1", " DEBUG ").await? > 0, "{}", cluster.worker("worker-1")?.log_text());
    ensure!(logs(&mut cluster, "worker-2", " DEBUG ").await? == 0);
    // A worker that connects later is told, too.
    cluster.rugctl(&["log-level", "worker=debug"], "").await?.success()?;
    cluster.worker("worker-2")?.kill()?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    until(PATIENCE, "the new one follows", async || {
        let changed = logs(&mut cluster, "worker-2", "filter of the log changed").await?;
        ensure!(changed == 2, "the former one and it: {changed}");
        Ok(())
    })
    .await?;
    let shown = cluster.rugctl(&["log-level", "--reset"], "").await?.success()?.stdout;
    ensure!(shown.contains("as they are configured"), "{shown}");
    until(PATIENCE, "all of it is in the audit trail", async || {
        let audited = cluster.rugctl(&["audit", "--action", "log-level"], "").await?.success()?.stdout;
        ensure!(audited.contains("worker=debug for 4s: looking") && audited.contains("as configured"), "{audited}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn everything_is_exported_over_tls_packed_by_grpc_and_by_http() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let names = ["coordinator:collector", "worker:rug"];
    let certificates = Certificates::make(folder.path().to_owned(), &names).await?;
    let files = |name: &str| tls::Config {
        ca: certificates.file(name, "ca.pem"),
        cert: certificates.file(name, "cert.pem"),
        key: certificates.file(name, "key.pem"),
        ..tls::Config::default()
    };
    let grpc = Collector::start_with_tls(&files("collector")).await?;
    let http = Collector::start_http_with_tls(&files("collector")).await?;
    for (protocol, collector) in [("grpc", grpc), ("http/protobuf", http)] {
        let mut options = Options::default();
        let own = |file: &str| certificates.shown("rug", file);
        for env in [&mut options.coordinator_env, &mut options.worker_env] {
            env.push(("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()));
            env.push(("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()));
            env.push(("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()));
            env.push(("OTEL_EXPORTER_OTLP_CERTIFICATE", own("ca.pem")));
            env.push(("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", own("cert.pem")));
            env.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY", own("key.pem")));
            env.push(("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()));
            env.push(("OTEL_METRIC_EXPORT_INTERVAL", "200".to_owned()));
            env.push(("OTEL_LOGS_EXPORTER", "otlp".to_owned()));
        }
        let cluster = Cluster::start(options).await?;
        cluster.fleet(vec![specs::web("web-1")]).await?;
        until(PATIENCE, "all three arrive", async || {
            let instances: BTreeSet<_> = collector.spans().into_iter().map(|span| span.instance).collect();
            ensure!(instances.contains("coordinator-1"), "{protocol}: spans come from {instances:?}");
            ensure!(instances.iter().any(|name| name.starts_with("worker-")), "{protocol}: {instances:?}");
            ensure!(!collector.records().is_empty(), "{protocol}: no log records");
            ensure!(collector.metrics().contains_key("rug.appliances"), "{protocol}: {:?}", collector.metrics());
            Ok(())
        })
        .await?;
        cluster.finish().await?;
    }
    Ok(())
}
