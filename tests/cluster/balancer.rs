//! A load balancer from end to end: a client, Rug's appliance, two web servers that Rug runs as well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::cluster::http::{self, HttpConnection};
use tests::cluster::processes;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, ports, specs};

/// Who answers in `count` connections in a row.
async fn answers(port: u16, count: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(http::get(port).await?);
    }
    Ok(found)
}

/// Waits until exactly these servers answer.
async fn served_by(port: u16, servers: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = servers.iter().map(|s| (*s).to_owned()).collect();
    until(PATIENCE, "exactly these servers answer", async || {
        let found = answers(port, 6).await?;
        ensure!(found.iter().cloned().collect::<BTreeSet<_>>() == wanted, "{found:?} answered");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_load_balancer_alternates_is_changed_while_it_runs_and_outlives_its_members() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let (front, base) = (ports::free(), ports::free_run(3));
    let fleet = cluster
        .fleet(vec![
            specs::web_at("red", base),
            specs::web_at("blue", base + 1),
            specs::web_at("green", base + 2),
            specs::balancer("front", front, &[base, base + 1]),
        ])
        .await?;
    served_by(front, &["red", "blue"]).await?;
    let found = answers(front, 10).await?;
    ensure!(found.windows(2).all(|pair| pair[0] != pair[1]), "not in turn: {found:?}");

    // Changed while a connection is open: the connection stays, the process stays, new connections go elsewhere.
    let mut open = HttpConnection::open(front).await?;
    let server = open.get().await?;
    let pids = api::pids(&cluster.api.get("front").await?);
    let document = format!(
        "name: front\nkind: loadbalancer\nprobe_interval: 1s\nspec:\n  listeners:\n  - name: http\n    port: {front}\n    \
         members: [{{port: {base}}}, {{port: {}}}]\n    health_check: {{interval: 200ms, timeout: 1s}}\n",
        base + 2
    );
    let applied = cluster.rugctl(&["apply", "-f", "-"], &document).await?.success()?;
    ensure!(applied.stdout.contains("loadbalancer/front changed"), "{}", applied.stdout);
    let applied = cluster.rugctl(&["apply", "-f", "-"], &document).await?.success()?;
    ensure!(applied.stdout.contains("loadbalancer/front unchanged"), "{}", applied.stdout);
    served_by(front, &["red", "green"]).await?;
    ensure!(open.get().await? == server, "the open connection went elsewhere");
    let now = cluster.api.get("front").await?;
    ensure!(api::pids(&now) == pids && now.generation == fleet[3].generation + 1, "{}", api::describe(&now));

    // A member dies: the other one answers, nobody is refused once it is noticed, and it comes back.
    let red = *api::pids(&fleet[0]).first().context("red runs")?;
    processes::signal(red, Signal::KILL);
    served_by(front, &["red", "green"]).await?;
    let after = until(PATIENCE, "red is back", async || {
        let now = cluster.api.get("red").await?;
        ensure!(api::is_configured(&now) && api::pids(&now) != [red], "{}", api::describe(&now));
        Ok(now)
    })
    .await?;
    ensure!(api::port(&after)? == base, "it came back elsewhere: {}", api::describe(&after));

    // The balancer dies: its successor has the same configuration.
    processes::signal(pids[0], Signal::KILL);
    until(PATIENCE, "the balancer is back", async || {
        let now = cluster.api.get("front").await?;
        ensure!(api::is_configured(&now) && api::pids(&now) != pids, "{}", api::describe(&now));
        Ok(())
    })
    .await?;
    served_by(front, &["red", "green"]).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_load_balancer_goes_on_without_rug_and_is_adopted_with_its_connections() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let (front, back) = (ports::free(), ports::free());
    cluster.fleet(vec![specs::web_at("back", back), specs::balancer("front", front, &[back])]).await?;
    served_by(front, &["back"]).await?;
    let running = cluster.instances();
    let mut open = HttpConnection::open(front).await?;
    ensure!(open.get().await? == "back");
    cluster.worker("worker-1")?.kill()?;
    cluster.coordinator.stop(Duration::from_secs(15)).await?;
    ensure!(open.get().await? == "back" && http::get(front).await? == "back");
    cluster.start_all().await?;
    until(PATIENCE, "both are adopted", async || {
        for appliance in cluster.api.list().await? {
            let owned = appliance.assignment.as_ref().is_some_and(|a| a.state == "owned");
            ensure!(owned && api::is_configured(&appliance), "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    ensure!(open.get().await? == "back", "the connection was lost");
    ensure!(cluster.instances() == running, "appliances were restarted");
    cluster.finish().await
}

#[tokio::test]
async fn a_saturated_balancer_is_seen_in_status_and_metric() -> Result<()> {
    let metrics = ports::free();
    let coordinator_env = vec![("RUG_COORDINATOR_METRICS__LISTEN", format!("127.0.0.1:{metrics}"))];
    let cluster = Cluster::start(Options { workers: 1, coordinator_env, ..Options::default() }).await?;
    let (front, back) = (ports::free(), ports::free());
    cluster.fleet(vec![specs::web_at("back", back)]).await?;
    let document = format!(
        "name: front\nkind: loadbalancer\nprobe_interval: 1s\nspec:\n  listeners:\n  - name: narrow\n    port: {front}\n    \
         members: [{{port: {back}}}]\n    limits: {{max_connections: 2}}\n"
    );
    cluster.rugctl(&["apply", "-f", "-"], &document).await?.success()?;
    let saturated = async || {
        let page = http::page(metrics, "/metrics").await?;
        let line = page.lines().find(|line| line.starts_with("rug_appliances_saturated")).context("no metric")?;
        anyhow::Ok(line.rsplit_once(' ').context("a value")?.1.parse::<f64>()?)
    };
    served_by(front, &["back"]).await?;
    ensure!(saturated().await? == 0.0);
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut connection = HttpConnection::open(front).await?;
        connection.get().await?;
        open.push(connection);
    }
    until(PATIENCE, "it is shown", async || {
        let shown = cluster.rugctl(&["describe", "front"], "").await?.success()?.stdout;
        ensure!(shown.contains("saturated") && shown.contains("narrow"), "{shown}");
        let metric = saturated().await?;
        ensure!(metric == 1.0, "the metric says {metric}");
        Ok(())
    })
    .await?;
    drop(open);
    cluster.finish().await
}

/// Between two requests of a client, so that the machine has time for more than them.
const PAUSE: Duration = Duration::from_millis(2);

/// Requests on one kept connection until told to stop. Answers how many there were.
async fn keep_asking(front: u16, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut connection = HttpConnection::open(front).await?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        connection.get().await.with_context(|| format!("after {count} requests"))?;
        count += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(count)
}

/// Requests on a connection each until told to stop. Answers how many there were.
async fn ask_anew(front: u16, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        http::get(front).await.with_context(|| format!("after {count} requests"))?;
        count += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(count)
}

#[tokio::test]
async fn a_rebuild_loses_no_request() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let (front, base) = (ports::free(), ports::free_run(2));
    cluster
        .fleet(vec![
            specs::web_at("red", base),
            specs::web_at("blue", base + 1),
            specs::balancer("front", front, &[base, base + 1]),
        ])
        .await?;
    served_by(front, &["red", "blue"]).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let kept: Vec<_> = (0..10).map(|_| tokio::spawn(keep_asking(front, Arc::clone(&stop)))).collect();
    let anew: Vec<_> = (0..4).map(|_| tokio::spawn(ask_anew(front, Arc::clone(&stop)))).collect();
    let mut pids = api::pids(&cluster.api.get("front").await?);
    for _ in 0..3 {
        cluster.rugctl(&["rebuild", "front"], "").await?.success()?;
        let before = std::mem::take(&mut pids);
        pids = until(PATIENCE, "it is another instance", async || {
            let now = cluster.api.get("front").await?;
            ensure!(api::is_configured(&now) && api::pids(&now) != before, "{}", api::describe(&now));
            Ok(api::pids(&now))
        })
        .await?;
        until(PATIENCE, "the one before has ended", async || {
            ensure!(before.iter().all(|pid| processes::identify(*pid).is_none()), "{before:?}");
            Ok(())
        })
        .await?;
        served_by(front, &["red", "blue"]).await?;
    }
    stop.store(true, Ordering::Relaxed);
    for client in kept.into_iter().chain(anew) {
        ensure!(client.await?? > 0, "a client was never served");
    }
    cluster.finish().await
}
