//! The admin API as clients meet it: watches, health, reflection, placement.

use anyhow::{Context, Result, ensure};
use proto::admin::v1::{self, appliance_event::Type};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1 as reflection;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1alpha as reflection_alpha;
use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient as AlphaClient;

const SERVICES: [&str; 5] = [
    "rug.admin.v1.Appliances",
    "rug.admin.v1.Workers",
    "rug.admin.v1.Placement",
    "rug.admin.v1.Rebalances",
    "rug.admin.v1.Cluster",
];

/// The next event about an appliance for which `wanted` holds.
async fn next(
    events: &mut Streaming<v1::ApplianceEvent>,
    what: &str,
    wanted: impl Fn(Type, &v1::Appliance) -> bool,
) -> Result<v1::Appliance> {
    let found = async {
        loop {
            let event = events.message().await?.context("the watch ended")?;
            let appliance = event.appliance.clone().unwrap_or_default();
            if wanted(event.r#type(), &appliance) {
                return Ok(appliance);
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.with_context(|| format!("no event: {what}"))?
}

#[tokio::test]
async fn a_watch_shows_what_is_and_then_every_change() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    cluster.fleet(vec![specs::web("old")]).await?;
    // A call without the limit of the others: it goes on until it is dropped.
    let channel = tonic::transport::Endpoint::from_shared(cluster.api.address().to_owned())?.connect().await?;
    let mut client = v1::appliances_client::AppliancesClient::new(channel);
    let mut events = client.watch(v1::WatchAppliancesRequest::default()).await?.into_inner();
    next(&mut events, "current", |kind, a| kind == Type::Current && a.name == "old").await?;
    next(&mut events, "synced", |kind, _| kind == Type::Synced).await?;

    let mut new = specs::web("new");
    let created = cluster.api.create(new.clone()).await?;
    next(&mut events, "created", |kind, a| kind == Type::Created && a.id == created.id).await?;
    next(&mut events, "configured", |kind, a| kind == Type::Changed && a.id == created.id && api::is_configured(a))
        .await?;
    specs::custom(&mut new).env.insert("COLOUR".into(), "red".into());
    let changed = cluster.api.apply(new).await?;
    ensure!(changed.outcome() == v1::Outcome::Changed, "{changed:?}");
    next(&mut events, "configured again", |_, a| {
        a.id == created.id && a.generation == created.generation + 1 && api::is_configured(a)
    })
    .await?;
    cluster.api.delete("new").await?;
    next(&mut events, "deleting", |kind, a| kind == Type::Changed && a.id == created.id && a.deleting).await?;
    next(&mut events, "gone", |kind, a| kind == Type::Gone && a.id == created.id).await?;
    cluster.finish().await
}

#[tokio::test]
async fn health_and_reflection_answer_for_every_service() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 0, ..Options::default() }).await?;
    let mut health = HealthClient::new(cluster.api.channel());
    until(PATIENCE, "every service serves", async || {
        for service in SERVICES.into_iter().chain([""]) {
            let answer = health.check(HealthCheckRequest { service: service.into() }).await?.into_inner();
            ensure!(answer.status() == ServingStatus::Serving, "{service:?} is {:?}", answer.status());
        }
        Ok(())
    })
    .await?;
    let unknown = health.check(HealthCheckRequest { service: "rug.admin.v1.Nothing".into() }).await;
    ensure!(unknown.as_ref().is_err_and(|e| e.code() == tonic::Code::NotFound), "{unknown:?}");

    let ask = |symbol: &str| reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(reflection::server_reflection_request::MessageRequest::FileContainingSymbol(
            symbol.into(),
        )),
    };
    let list = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(reflection::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let questions: Vec<_> = std::iter::once(list).chain(SERVICES.map(ask)).collect();
    let count = questions.len();
    let mut client = ServerReflectionClient::new(cluster.api.channel());
    let answers = client.server_reflection_info(tokio_stream::iter(questions)).await?.into_inner();
    let answers: Vec<_> = answers.take(count).collect::<Result<_, _>>().await?;
    use reflection::server_reflection_response::MessageResponse;
    let Some(MessageResponse::ListServicesResponse(listed)) = &answers[0].message_response else {
        anyhow::bail!("{:?}", answers[0])
    };
    for service in SERVICES {
        ensure!(listed.service.iter().any(|s| s.name == service), "{service} is not in {listed:?}");
    }
    for (answer, service) in answers[1..].iter().zip(SERVICES) {
        let described = matches!(&answer.message_response,
            Some(MessageResponse::FileDescriptorResponse(files)) if !files.file_descriptor_proto.is_empty());
        ensure!(described, "{service}: {:?}", answer.message_response);
    }

    // Older clients ask for the alpha version.
    let list = reflection_alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(reflection_alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = AlphaClient::new(cluster.api.channel());
    let mut answers = client.server_reflection_info(tokio_stream::once(list)).await?.into_inner();
    let answer = answers.next().await.context("an answer")??;
    ensure!(format!("{answer:?}").contains(SERVICES[0]), "{answer:?}");
    cluster.finish().await
}

#[tokio::test]
async fn an_appliance_for_a_driver_that_nobody_offers_is_accepted_and_waits() -> Result<()> {
    const WHY: &str = "no worker offers driver `other-cloud`";
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let [process] = &cluster.api.workers().await?[0].offers[..] else { anyhow::bail!("one driver is offered") };
    ensure!(process.name == "process" && process.state_dir.is_some() && process.kinds.len() == 2, "{process:?}");
    let wanted = v1::Appliance { driver: "other-cloud".into(), ..specs::simulated("elsewhere") };
    cluster.api.create(wanted).await?;
    until(PATIENCE, "its reason is shown", async || {
        let appliance = cluster.api.get("elsewhere").await?;
        let reason = appliance.assignment.unwrap_or_default().reason;
        ensure!(reason == WHY, "{reason}");
        Ok(())
    })
    .await?;
    let explained = cluster.rugctl(&["explain", "elsewhere"], "").await?;
    ensure!(
        explained.stdout.contains(WHY) && explained.stdout.contains("it does not offer the driver"),
        "{explained:?}"
    );
    cluster.rugctl(&["delete", "elsewhere"], "").await?;
    cluster.finish().await
}

#[tokio::test]
async fn explain_locate_and_the_lists_agree_about_who_holds_what() -> Result<()> {
    let cluster = Cluster::start(Options { drivers: vec!["simulated"], ..Options::default() }).await?;
    let fleet = cluster.fleet((1..=12).map(|n| specs::simulated(&format!("s-{n:02}"))).collect()).await?;
    let workers = cluster.api.workers().await?;
    ensure!(workers.iter().map(|w| w.appliances).sum::<u64>() == 12, "{workers:?}");
    for appliance in &fleet {
        let owner = api::owner(appliance);
        let request = v1::ExplainApplianceRequest { appliance: Some(api::reference(&appliance.id)) };
        let explained = cluster.api.appliances().explain(request).await?.into_inner();
        ensure!(!explained.summary.is_empty() && !explained.ring_position.is_empty(), "{explained:?}");
        // One may hold as many as the band allows: twelve over three are four each, give or take one.
        let could = |c: &v1::Candidate| c.eligible || c.load == c.ceiling;
        ensure!(explained.candidates.len() == 3 && explained.candidates.iter().all(could), "{explained:?}");
        let what = v1::locate_request::What::Appliance(api::reference(&appliance.name));
        let located =
            cluster.api.placement().locate(v1::LocateRequest { what: Some(what), count: 3 }).await?.into_inner();
        ensure!(located.key == appliance.id && located.position == explained.ring_position, "{located:?}");
        ensure!(located.assignment.as_ref().is_some_and(|a| a.worker == owner), "{located:?}");
        let order: Vec<_> = explained.candidates.iter().map(|c| c.worker.clone()).collect();
        ensure!(located.preference == order, "{:?} and {order:?}", located.preference);
    }
    let located = cluster.rugctl(&["ring", "locate", "any key", "-o", "json"], "").await?.json()?;
    ensure!(located["preference"].as_array().is_some_and(|p| p.len() == 3), "{located}");
    let listed = cluster.rugctl(&["list", "--worker", "worker-1", "-o", "json"], "").await?.json()?;
    let held = fleet.iter().filter(|a| api::owner(a) == "worker-1").count();
    ensure!(listed.as_array().is_some_and(|l| l.len() == held), "{held} are not {listed}");

    // Pages are complete and in order, whatever their size.
    let mut request = v1::ListAppliancesRequest { page_size: 5, ..Default::default() };
    let mut names = Vec::new();
    loop {
        let page = cluster.api.appliances().list(request.clone()).await?.into_inner();
        ensure!(page.total_size == 12 && page.appliances.len() <= 5, "{page:?}");
        names.extend(page.appliances.into_iter().map(|a| a.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    ensure!(names == fleet.iter().map(|a| a.name.clone()).collect::<Vec<_>>(), "{names:?}");
    cluster.finish().await
}
