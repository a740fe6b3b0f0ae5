//! The trace of a rebalance: one, over all processes and over leaders that are killed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, specs};
use tests::collector::{CollectedSpan, Collector};

/// Appliances; a row of the observability page has 1,000 with release binaries (`RUG_TEST_FULL=1`).
fn many() -> usize {
    if std::env::var_os("RUG_TEST_FULL").is_some() { 1_000 } else { 90 }
}

/// A cluster with simulated appliances whose processes export to a collector, ten times a second.
async fn observed(collector: &Collector, world: &tempfile::TempDir, slow: bool) -> Result<Cluster> {
    let mut options = Options { drivers: vec!["simulated"], ..Options::default() };
    let names = ["RUG_COORDINATOR_TELEMETRY__ENDPOINT", "RUG_WORKER_TELEMETRY__ENDPOINT"];
    for (env, name) in [&mut options.coordinator_env, &mut options.worker_env].into_iter().zip(names) {
        env.push((name, collector.endpoint()));
        env.push(("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()));
        env.push(("OTEL_BSP_MAX_QUEUE_SIZE", "100000".to_owned()));
    }
    options.worker_env.push(("RUG_WORKER_SIMULATED__WORLD", world.path().to_string_lossy().into_owned()));
    if slow {
        options.coordinator_env.push(("RUG_COORDINATOR_MACHINE__MAX_MOVES_IN_FLIGHT", "1".to_owned()));
    }
    Cluster::start(options).await
}

async fn all_ended(cluster: &Cluster) -> Result<Vec<v1::Rebalance>> {
    until(PATIENCE, "every rebalance has ended", async || {
        let all = cluster.api.rebalances().await?;
        let open = all.iter().find(|rebalance| rebalance.end_time.is_none());
        ensure!(open.is_none(), "{open:?}");
        Ok(all)
    })
    .await
}

/// The spans of a trace, by name.
#[derive(Default)]
struct Trace<'a>(BTreeMap<&'a str, Vec<&'a CollectedSpan>>);

impl<'a> Trace<'a> {
    fn of(spans: &'a [CollectedSpan], id: &str) -> Self {
        let mut this = Self::default();
        for span in spans.iter().filter(|span| span.trace == id) {
            this.0.entry(&span.name).or_default().push(span);
        }
        this
    }

    fn named(&self, name: &str) -> &[&'a CollectedSpan] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn all(&self) -> impl Iterator<Item = &'a CollectedSpan> {
        self.0.values().flatten().copied()
    }

    /// Checks what holds for the trace of every rebalance whose leaders exported everything.
    fn check(&self, rebalance: &v1::Rebalance) -> Result<()> {
        let root = self.check_root(rebalance)?;
        let hand_offs = self.named("hand-off");
        ensure!(
            hand_offs.len() as u64 == rebalance.moves_done && rebalance.moves == rebalance.moves_done,
            "{} hand-offs: {rebalance:?}",
            hand_offs.len()
        );
        ensure!(!self.named("plan").is_empty() && !self.named("delta").is_empty(), "plans and deltas");
        for hand_off in hand_offs {
            ensure!(hand_off.parent == root.id, "hand-offs belong to the root");
            let children: Vec<_> = self.all().filter(|span| span.parent == hand_off.id).collect();
            let one = |name: &str| children.iter().filter(|span| span.name == name).collect::<Vec<_>>();
            let (released, commits, adopted) = (one("release"), one("commit"), one("adopt"));
            ensure!(commits.len() == 1 && adopted.len() == 1, "{hand_off:?}: {children:?}");
            ensure!(adopted[0].instance == hand_off.attributes["to"], "{:?} of {hand_off:?}", adopted[0]);
            // Whoever is dead is asked for nothing.
            if let Some(released) = released.first() {
                ensure!(released.instance == hand_off.attributes["from"], "{released:?} of {hand_off:?}");
            }
            ensure!(children.iter().all(|span| hand_off.time.0 <= span.time.0), "{hand_off:?}: {children:?}");
            ensure!(adopted[0].time.1 <= hand_off.time.1 && hand_off.time.1 <= root.time.1, "{hand_off:?}");
        }
        Ok(())
    }

    fn check_root(&self, rebalance: &v1::Rebalance) -> Result<&'a CollectedSpan> {
        let roots: Vec<_> = self.all().filter(|span| span.parent.is_empty()).collect();
        ensure!(roots.len() == 1 && roots[0].name == "rebalance", "{roots:?} for {rebalance:?}");
        let root = roots[0];
        let ids: BTreeSet<_> = self.all().map(|span| &span.id).collect();
        ensure!(ids.len() == self.all().count(), "spans share ids");
        let orphan = self.all().find(|span| !span.parent.is_empty() && !ids.contains(&span.parent));
        ensure!(orphan.is_none(), "{orphan:?} has no parent");
        for span in self.all() {
            ensure!(root.time.0 <= span.time.0 && span.time.0 <= span.time.1, "{span:?} in {root:?}");
        }
        Ok(root)
    }
}

async fn check_all(cluster: &Cluster, collector: &Collector) -> Result<Vec<v1::Rebalance>> {
    let all = all_ended(cluster).await?;
    until(PATIENCE, "every trace is complete", async || {
        let spans = collector.spans();
        let ids: BTreeSet<_> = all.iter().map(|rebalance| rebalance.trace_id.as_str()).collect();
        ensure!(ids.len() == all.len(), "each has a trace of its own");
        all.iter().try_for_each(|rebalance| Trace::of(&spans, &rebalance.trace_id).check(rebalance))?;
        let roots: BTreeSet<_> =
            spans.iter().filter(|span| span.name == "rebalance").map(|span| &*span.trace).collect();
        ensure!(roots.is_subset(&ids), "roots without a rebalance");
        Ok(())
    })
    .await?;
    Ok(all)
}

#[tokio::test]
async fn joins_deaths_and_drains_are_each_one_trace_with_a_span_for_each_move() -> Result<()> {
    let (collector, world) = (Collector::start().await?, tempfile::tempdir()?);
    let mut cluster = observed(&collector, &world, false).await?;
    cluster.fleet((0..many()).map(|n| specs::simulated(&format!("s-{n}"))).collect()).await?;
    let held = |appliances: &[v1::Appliance]| {
        appliances.iter().filter(|appliance| tests::cluster::api::owner(appliance) == "worker-2").count() as u64
    };
    let of_second = held(&cluster.api.list().await?);
    cluster.worker("worker-2")?.kill()?;
    until(PATIENCE, "its appliances moved", async || {
        ensure!(held(&cluster.api.list().await?) == 0, "not yet");
        Ok(())
    })
    .await?;
    check_all(&cluster, &collector).await?;
    cluster.worker("worker-2")?.start()?;
    cluster.healthy().await?;
    until(PATIENCE, "it has its share", async || {
        ensure!(held(&cluster.api.list().await?) > of_second / 2, "not yet");
        Ok(())
    })
    .await?;
    check_all(&cluster, &collector).await?;
    // It gives up what it has before it ends.
    let stopped = cluster.worker("worker-2")?.stop(PATIENCE).await?;
    ensure!(stopped.success(), "{stopped}");
    let all = check_all(&cluster, &collector).await?;
    let moves = |cause: &str| {
        let found = all.iter().filter(|rebalance| rebalance.cause.starts_with(cause));
        found.map(|rebalance| rebalance.moves_done).max().unwrap_or_default()
    };
    ensure!(moves("gone: worker-2") == of_second && moves("joined: worker-2") > 0, "{all:#?}");
    ensure!(moves("draining: worker-2") > 0, "{all:#?}");
    cluster.worker("worker-2")?.start()?;
    ensure!(collector.undocumented().is_empty(), "{:#?}", collector.undocumented());
    cluster.finish().await
}

#[tokio::test]
async fn a_rebalance_whose_leader_is_killed_twice_is_one_trace_with_one_root() -> Result<()> {
    let (collector, world) = (Collector::start().await?, tempfile::tempdir()?);
    let mut cluster = observed(&collector, &world, true).await?;
    cluster.worker("worker-3")?.kill()?;
    cluster.fleet((0..many()).map(|n| specs::simulated(&format!("s-{n}"))).collect()).await?;
    all_ended(&cluster).await?;
    cluster.worker("worker-3")?.start()?;
    let under_way = async |cluster: &Cluster, more_than: u64| {
        until(PATIENCE, "it is half-way", async || {
            let all = cluster.api.rebalances().await?;
            let found = all.into_iter().find(|rebalance| rebalance.cause == "joined: worker-3");
            let found = found.context("no such rebalance")?;
            ensure!(found.moves_done > more_than, "{found:?}");
            Ok(found)
        })
        .await
    };
    let mut seen = under_way(&cluster, 1).await?;
    for _ in 0..2 {
        ensure!(seen.end_time.is_none(), "it has ended before its leader was killed: {seen:?}");
        cluster.coordinator.kill()?;
        cluster.coordinator.start()?;
        seen = under_way(&cluster, seen.moves_done).await?;
    }
    cluster.healthy().await?;
    let all = all_ended(&cluster).await?;
    let found: Vec<_> = all.iter().filter(|rebalance| rebalance.cause == "joined: worker-3").collect();
    ensure!(found.len() == 1 && found[0].id == seen.id && found[0].outcome == "completed", "{all:#?}");
    let rebalance = found[0];
    until(PATIENCE, "its root is exported", async || {
        let spans = collector.spans();
        let trace = Trace::of(&spans, &rebalance.trace_id);
        let ids: BTreeSet<_> = trace.all().map(|span| &span.id).collect();
        ensure!(ids.len() == trace.all().count(), "spans of several leaders share ids");
        // What a killed leader had not exported is lost, so hand-offs may be missing, and parents of what workers did.
        let roots = trace.named("rebalance");
        ensure!(roots.len() == 1, "{} roots", roots.len());
        let root = roots[0];
        ensure!(root.attributes["moves_done"] == rebalance.moves_done.to_string(), "{root:?}: {rebalance:?}");
        let resumed = root.events.iter().filter(|name| *name == "resumed").count();
        ensure!(resumed == 1, "by its last leader: {root:?}");
        ensure!(trace.all().all(|span| root.time.0 <= span.time.0 && span.time.1 <= root.time.1), "{root:?}");
        ensure!(trace.named("hand-off").len() as u64 <= rebalance.moves_done, "too many hand-offs");
        let ended = rebalance.end_time.map(|time| time.seconds.unsigned_abs()).unwrap_or_default();
        ensure!(root.time.1 / 1_000_000_000 == ended, "{root:?}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}
