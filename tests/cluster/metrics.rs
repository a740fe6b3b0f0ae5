//! What the processes of a cluster show at `/metrics`, against what its API says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, http, ports, specs};

/// The samples of a page, by name with labels.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn of(page: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum of all series of a metric whose labels hold this.
    fn sum(&self, metric: &str, labels: &str) -> f64 {
        let is_of = |name: &str| name.split('{').next() == Some(metric) && name.contains(labels);
        self.0.iter().filter(|(name, _)| is_of(name)).map(|(_, value)| value).sum()
    }
}

/// The variables of processes that serve `/metrics`, each at a port of its own.
fn listening(prefix: &'static str) -> (u16, (&'static str, String)) {
    let port = ports::free();
    (port, (prefix, format!("127.0.0.1:{port}")))
}

async fn samples(port: u16) -> Result<Samples> {
    Ok(Samples::of(&http::page(port, "/metrics").await?))
}

/// What the leader shows is what its API says: appliances with the list, moves with the history.
async fn ensure_sums_agree(cluster: &Cluster, port: u16) -> Result<()> {
    until(PATIENCE, "the metrics agree with the API", async || {
        let listed = cluster.api.list().await?;
        let shown = samples(port).await?;
        let appliances = listed.len() as f64;
        for metric in ["rug_appliances", "rug_appliances_phases"] {
            let sum = shown.sum(metric, "");
            ensure!(sum == appliances, "{metric}: {sum} of {appliances}");
        }
        let owned = shown.sum("rug_appliances", "state=\"owned\"");
        ensure!(owned == appliances, "{owned} of {appliances} are owned");
        ensure!(shown.sum("rug_moves_in_flight", "") == 0.0, "moves are under way");
        let rebalances = cluster.api.rebalances().await?;
        ensure!(rebalances.iter().all(|rebalance| rebalance.end_time.is_some()), "a rebalance has not ended");
        let mut history = 0;
        for rebalance in &rebalances {
            let moves = cluster.api.rebalance(&rebalance.id).await?.r#move;
            history += moves.iter().filter(|one| one.state == "done").count();
        }
        let made: u64 = rebalances.iter().map(|rebalance| rebalance.moves_done).sum();
        let moves = shown.sum("rug_moves_total", "outcome=\"done\"");
        ensure!(moves == made as f64 && history as u64 == made, "{moves} moves, {history} in the history, {made} made");
        let counted = shown.sum("rug_rebalance_duration_seconds_count", "");
        ensure!(counted == rebalances.len() as f64, "{counted} of {} rebalances", rebalances.len());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sums_agree_with_list_and_history_whatever_happens_to_workers() -> Result<()> {
    let (port, env) = listening("RUG_COORDINATOR_METRICS__LISTEN");
    let per_worker = ("RUG_COORDINATOR_METRICS__PER_WORKER", "true".to_owned());
    let mut cluster = Cluster::start(Options { coordinator_env: vec![env, per_worker], ..Options::default() }).await?;
    // It joins later.
    cluster.worker("worker-3")?.stop(PATIENCE).await?;
    cluster.fleet((1..=12).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    ensure_sums_agree(&cluster, port).await?;
    let before = samples(port).await?;
    ensure!(before.sum("rug_unowned_seconds_count", "after=\"created\"") == 12.0, "each had its first owner once");
    ensure!(before.sum("rug_handoff_gap_seconds_count", "") == 0.0, "nothing was moved");

    cluster.worker("worker-3")?.start()?;
    cluster.healthy().await?;
    until(PATIENCE, "the new worker has its share", async || {
        let share = samples(port).await?.sum("rug_worker_appliances", "worker=\"worker-3\"");
        ensure!(share > 0.0, "it has nothing");
        Ok(())
    })
    .await?;
    ensure_sums_agree(&cluster, port).await?;
    let joined = samples(port).await?;
    let moves = joined.sum("rug_moves_total", "cause=\"joined\",outcome=\"done\"");
    ensure!(
        moves > 0.0 && moves == joined.sum("rug_moves_total", ""),
        "{moves} moves to the new worker, and no others"
    );
    ensure!(joined.sum("rug_handoff_gap_seconds_count", "") == moves, "each move has its gap");
    let of_new = joined.sum("rug_worker_appliances", "worker=\"worker-3\"");
    ensure!(of_new == moves, "{of_new} of the new worker");

    let held = joined.sum("rug_worker_appliances", "worker=\"worker-1\"");
    cluster.worker("worker-1")?.kill()?;
    until(PATIENCE, "its appliances have other owners", async || {
        let left = samples(port).await?.sum("rug_worker_appliances", "worker=\"worker-1\"");
        ensure!(left == 0.0, "{left} are left");
        Ok(())
    })
    .await?;
    ensure_sums_agree(&cluster, port).await?;
    let killed = samples(port).await?;
    let lost = killed.sum("rug_moves_total", "cause=\"gone\",outcome=\"done\"");
    ensure!(lost == held, "{lost} moves after a worker with {held} was killed");
    ensure!(killed.sum("rug_unowned_seconds_count", "after=\"lost\"") == lost, "each of them was lost");
    ensure!(killed.sum("rug_workers", "health=\"dead\"") == 1.0, "the killed one is shown as dead");

    let drained = cluster.worker("worker-2")?.stop(PATIENCE).await?;
    ensure!(drained.success(), "{drained}");
    ensure_sums_agree(&cluster, port).await?;
    let last = until(PATIENCE, "one worker is left", async || {
        let last = samples(port).await?;
        ensure!(last.sum("rug_members", "") == 1.0, "{} are left", last.sum("rug_members", ""));
        Ok(last)
    })
    .await?;
    ensure!(last.sum("rug_worker_appliances", "") == 12.0, "it has everything");
    let drains = last.sum("rug_messages_received_total", "message=\"drain\"");
    ensure!(drains == 2.0, "two have drained, one of them before there was anything to move, and not {drains}");
    ensure!(last.sum("rug_moves_total", "cause=\"draining\",outcome=\"done\"") > 0.0, "it has given up what it had");
    let total = last.sum("rug_moves_total", "outcome=\"done\"");
    ensure!(total > moves + lost, "{total} moves in all");
    cluster.start_all().await?;
    cluster.finish().await
}

#[tokio::test]
async fn what_is_slow_can_be_found_by_its_trace() -> Result<()> {
    let (coordinator, coordinator_env) = listening("RUG_COORDINATOR_METRICS__LISTEN");
    let (worker, worker_env) = listening("RUG_WORKER_METRICS__LISTEN");
    let coordinator_env = vec![coordinator_env];
    let mut cluster = Cluster::start(Options { workers: 2, coordinator_env, ..Options::default() }).await?;
    cluster.worker("worker-2")?.stop(PATIENCE).await?;
    let first = cluster.worker("worker-1")?;
    first.stop(PATIENCE).await?;
    first.environment(&[worker_env]);
    first.start()?;
    cluster.fleet((1..=4).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    until(PATIENCE, "buckets name traces", async || {
        let rebalances = cluster.api.rebalances().await?;
        let joined =
            rebalances.iter().find(|rebalance| rebalance.cause == "joined: worker-2").context("no rebalance")?;
        let page = http::openmetrics(coordinator).await?;
        let trace = format!("# {{trace_id=\"{}\"}} ", joined.trace_id);
        let bucket = |line: &&str| line.starts_with("rug_handoff_gap_seconds_bucket{") && line.contains(&trace);
        ensure!(page.lines().any(|line| bucket(&line)), "no {trace} in\n{page}");
        ensure!(page.ends_with("# EOF\n"), "{page}");
        let page = http::openmetrics(worker).await?;
        let bucket = |line: &&str| {
            line.starts_with("rug_step_duration_seconds_bucket{")
                && line.contains(",span_id=\"")
                && line.contains("boot")
        };
        ensure!(page.lines().any(|line| bucket(&line)), "no step with its span in\n{page}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_load_balancer_shows_what_it_forwards() -> Result<()> {
    let worker_env = vec![("RUG_WORKER_PROCESS__APPLIANCE_METRICS", "true".to_owned())];
    let cluster = Cluster::start(Options { workers: 1, worker_env, ..Options::default() }).await?;
    let (member, nobody, front) = (ports::free(), ports::free(), ports::free());
    cluster.fleet(vec![specs::web_at("web", member)]).await?;
    let fleet = cluster.fleet(vec![specs::balancer("front", front, &[member, nobody])]).await?;
    let folder = cluster.state_dir().join("instances").join(&fleet[0].id).join("0");
    let address = std::fs::read_to_string(folder.join("metrics")).context("the file that says where")?;
    let (_, port) = address.trim().rsplit_once(':').context("an address with a port")?;
    let port = port.parse()?;
    for _ in 0..5 {
        http::get(front).await?;
    }
    until(PATIENCE, "its metrics show them", async || {
        let shown = samples(port).await?;
        let ended = shown.sum("rug_balancer_connections_total", "outcome=\"finished\"");
        ensure!(ended == 5.0, "{ended} of 5 connections have ended");
        ensure!(shown.sum("rug_balancer_traffic_bytes_total", "to_client") > 0.0, "no bytes");
        ensure!(shown.sum("rug_balancer_members", "state=\"up\"") == 1.0, "one member is up");
        ensure!(shown.sum("rug_balancer_members", "state=\"down\"") == 1.0, "and one is down");
        ensure!(shown.sum("process_start_time_seconds", "") > 0.0, "it has been started");
        Ok(())
    })
    .await?;
    cluster.finish().await
}
