//! Coordinators that stand by: they answer what the leader answers, and take over when it steps down.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::v1::{
    self, cluster_client::ClusterClient, rebalances_client::RebalancesClient, workers_client::WorkersClient,
};
use tests::cluster::PATIENCE;
use tests::cluster::api::{self, Api, reference};
use tests::cluster::specs;
use tests::cluster::wait::until;
use tests::fleet::{Fleet, Options};
use tokio_stream::StreamExt;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::small;

/// What a coordinator says of its health under a name.
async fn health(api: &Api, service: &str) -> Result<ServingStatus> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::new(api.channel()).check(request).await?.into_inner().status())
}

/// The messages of a watch up to one that is `last`.
async fn up_to<T>(mut stream: Streaming<T>, last: impl Fn(&T) -> bool) -> Result<Vec<T>> {
    let mut seen = Vec::new();
    let all = async {
        while let Some(message) = stream.next().await {
            seen.push(message?);
            if seen.last().is_some_and(&last) {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, all).await.context("the watch says nothing")??;
    Ok(seen)
}

/// Every call of `rug.admin.v1.Appliances`, in an order in which all of them succeed.
async fn appliances(api: &Api, name: &str) -> Result<()> {
    let mut client = api.appliances();
    let created = api.create(specs::web(name)).await.context("create")?;
    let id = created.id.clone();
    ensure!(api.get(&id).await.context("get")?.name == name);
    ensure!(api.list().await.context("list")?.iter().any(|a| a.id == id));
    let request = v1::WatchAppliancesRequest { filter: None };
    let watch = client.watch(request).await.context("watch")?.into_inner();
    let current = up_to(watch, |event| event.r#type() == v1::appliance_event::Type::Synced).await?;
    ensure!(current.iter().any(|event| event.appliance.as_ref().is_some_and(|a| a.id == id)));
    until(PATIENCE, "it is configured", async || {
        let appliance = api.get(&id).await?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    let mut changed = specs::web(name);
    specs::custom(&mut changed).env.insert("RUG_TEST_WORD".into(), "changed".into());
    let updated = api.apply(changed).await.context("update")?;
    ensure!(updated.outcome() == v1::Outcome::Changed && updated.appliance.is_some_and(|a| a.generation == 2));
    let check = v1::CheckApplianceRequest { appliance: Some(reference(&id)) };
    ensure!(client.check(check).await.context("check")?.into_inner().id == id);
    let explain = v1::ExplainApplianceRequest { appliance: Some(reference(&id)) };
    ensure!(!client.explain(explain).await.context("explain")?.into_inner().candidates.is_empty());
    let rebuild = v1::RebuildApplianceRequest { appliance: Some(reference(&id)), ..Default::default() };
    ensure!(client.rebuild(rebuild).await.context("rebuild")?.into_inner().generation == 3);
    ensure!(api.delete(&id).await.context("delete")?.deleting);
    let gone = async || {
        let found = api.get(&id).await;
        ensure!(found.as_ref().is_err_and(|status| status.code() == Code::NotFound), "{found:?}");
        Ok(())
    };
    until(PATIENCE, "it is gone", gone).await
}

/// Every other call of `rug.admin.v1`.
async fn others(api: &Api) -> Result<()> {
    let mut workers = WorkersClient::new(api.channel());
    let all = api.workers().await.context("list workers")?;
    let first = all.first().context("there are workers")?.clone();
    let got = workers.get(v1::GetWorkerRequest { id: first.id.clone() }).await.context("get worker")?.into_inner();
    ensure!((&got.id, &got.incarnation) == (&first.id, &first.incarnation));
    let watch = workers.watch(v1::WatchWorkersRequest {}).await.context("watch workers")?.into_inner();
    let current = up_to(watch, |event| event.r#type() == v1::worker_event::Type::Synced).await?;
    ensure!(current.iter().filter(|event| event.worker.is_some()).count() >= all.len());

    let mut placement = api.placement();
    let what = Some(v1::locate_request::What::Key("some key".to_owned()));
    let located = placement.locate(v1::LocateRequest { what, count: 2 }).await.context("locate")?.into_inner();
    ensure!(located.preference.len() == 2);
    let ring = placement.get_ring(v1::GetRingRequest { points: true }).await.context("ring")?.into_inner();
    ensure!(ring.members.len() == all.len() && !ring.points.is_empty());
    let pause = v1::PausePlacementRequest { reason: "a test".to_owned(), ..Default::default() };
    ensure!(placement.pause(pause).await.context("pause")?.into_inner().paused.is_some_and(|p| p.reason == "a test"));
    ensure!(placement.resume(v1::ResumePlacementRequest {}).await.context("resume")?.into_inner().paused.is_none());

    let listed = api.rebalances().await.context("list rebalances")?;
    let newest = listed.first().context("something was placed")?.id.clone();
    ensure!(!api.rebalance(&newest).await.context("get rebalance")?.r#move.is_empty());

    ensure!(api.status().await.context("status")?.leading);
    let mut cluster = ClusterClient::new(api.channel());
    let watch = cluster.watch(v1::WatchClusterRequest {}).await.context("watch cluster")?.into_inner();
    up_to(watch, |status| status.leading).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_answer_every_call_and_one_leads_soon_after_the_leader_is_asked_to_stop() -> Result<()> {
    let mut fleet =
        small(Options { coordinators: 3, session: Duration::from_secs(4), ..Options::default() }, 9).await?;
    // One eviction is enough: the worker comes back in a new life, and there are moves to look at, for whoever watches.
    let standby = (fleet.leader().await? + 1) % fleet.apis.len();
    let mut watches = Vec::new();
    for api in &fleet.apis {
        let watch = RebalancesClient::new(api.channel()).watch(v1::WatchRebalancesRequest::default()).await;
        watches.push(watch.context("watch rebalances")?.into_inner());
    }
    let life = fleet.apis[standby].workers().await?.remove(0);
    let evict = v1::EvictWorkerRequest { id: life.id.clone(), reason: "a test".to_owned(), ..Default::default() };
    WorkersClient::new(fleet.apis[standby].channel()).evict(evict).await.context("evict")?;
    until(PATIENCE, "it is back in a new life", async || {
        let now = fleet.api().workers().await?.into_iter().find(|w| w.id == life.id).context("listed")?;
        ensure!(now.health() == v1::Health::Healthy && now.incarnation != life.incarnation, "{now:?}");
        ensure!(!fleet.api().rebalances().await?.is_empty(), "nothing was placed anew yet");
        Ok(())
    })
    .await?;
    for watch in watches {
        up_to(watch, |rebalance| rebalance.end_time.is_some()).await?;
    }
    settle(&fleet).await?;
    for (n, api) in fleet.apis.iter().enumerate() {
        appliances(api, &format!("through-{n}")).await.with_context(|| format!("through c{}", n + 1))?;
        others(api).await.with_context(|| format!("through c{}", n + 1))?;
    }
    settle(&fleet).await?;

    let (before, instances) = (tokens(&fleet).await?, fleet.instances());
    let mut elapsed = Vec::new();
    for _ in 0..2 {
        let leader = fleet.leader().await?;
        serving(&fleet, leader).await?;
        let term = fleet.api().status().await?.term;
        let other = (leader + 1) % fleet.apis.len();
        let asked = Instant::now();
        fleet.coordinators[leader].signal(rustix::process::Signal::TERM)?;
        until(PATIENCE, "another one leads", async || {
            let status = fleet.apis[other].status().await?;
            ensure!(status.leading && status.term > term, "term {}", status.term);
            Ok(())
        })
        .await?;
        elapsed.push(asked.elapsed());
        let ended = fleet.coordinators[leader].ended(PATIENCE).await?;
        ensure!(ended.success(), "it ended with {ended}");
        fleet.coordinators[leader].start()?;
        fleet.healthy().await?;
    }
    println!("after SIGTERM another coordinator led within {elapsed:.0?}");
    // Without waiting for a session to expire; nothing else of the machine's speed is compared.
    ensure!(elapsed.iter().all(|time| *time < Duration::from_secs(4)), "slower than the session timeout: {elapsed:?}");
    settle(&fleet).await?;
    ensure!(tokens(&fleet).await? == before, "a change of leader moved something");
    ensure!(fleet.instances() == instances, "an appliance was restarted");
    fleet.finish().await
}

async fn settle(fleet: &Fleet) -> Result<()> {
    fleet.settled(PATIENCE, |_| true).await?;
    until(PATIENCE, "nothing is under way", async || {
        let status = fleet.api().status().await?;
        ensure!(status.moves_in_flight == 0 && status.waiting.is_empty(), "{status:?}");
        Ok(())
    })
    .await
}

/// Owner and token of every appliance.
async fn tokens(fleet: &Fleet) -> Result<BTreeMap<String, (String, String)>> {
    let token = |a: v1::Appliance| {
        let assignment = a.assignment.unwrap_or_default();
        (a.id, (assignment.worker, assignment.token))
    };
    Ok(fleet.api().list().await?.into_iter().map(token).collect())
}

/// All serve, and `leader` alone leads.
async fn serving(fleet: &Fleet, leader: usize) -> Result<()> {
    until(PATIENCE, "health tells who serves and who leads", async || {
        for (n, api) in fleet.apis.iter().enumerate() {
            for service in ["", "rug.admin.v1.Appliances", "rug.admin.v1.Cluster"] {
                ensure!(health(api, service).await? == ServingStatus::Serving, "c{} does not serve {service:?}", n + 1);
            }
            let leads = health(api, "rug.leader").await? == ServingStatus::Serving;
            ensure!(leads == (n == leader), "c{} says {leads} of leading", n + 1);
        }
        Ok(())
    })
    .await
}
