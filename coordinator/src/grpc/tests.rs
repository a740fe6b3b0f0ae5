//! The services over a real connection, with a leader that commits at once.

mod forward;
mod operators;
mod roles;
mod undecodable;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::appliance::Name;
use common::change::ApplianceTarget;
use common::driver::{DriverCapabilities, DriverName};
use common::run::RunOutcome;
use common::{ApplianceId, Generation, RebalanceId, Term, WorkerId};
use coordinator_core::health::Health;
use coordinator_core::planner::{Spread, Strategy};
use proto::admin::v1 as wire;
use proto::admin::v1::appliances_client::AppliancesClient;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use tower::ServiceBuilder;

use super::{AdminServices, Authorize, CallLayer, Trace, serve_listener};
use crate::access::{self, Policy};
use crate::admission::{Admission, Admitted};
use crate::catalog::{Catalog, Config, Fact};
use crate::commands::{self, Changed, Command, CommandError, CommandQueue, Mutation};
use crate::history::{History, HistoryAnswer};
use crate::record::{
    AuditEvent, AuditFilter, AuditPart, MemberThen, MoveRecord, NumberedEvent, NumberedRun, RebalanceOutcome,
    RebalanceRecord, RunFilter, RunRecord,
};
use crate::views::{AssignmentView, ClusterView, RingView, WorkerView};

/// The layer with the built-in rules.
fn open() -> CallLayer<Authorize> {
    CallLayer::new(Authorize::new(Policy::new(&access::Config::default()), None))
}

/// A history of ten rebalances.
struct Ten;

fn rebalance_request(id: &str) -> wire::GetRebalanceRequest {
    wire::GetRebalanceRequest { id: id.into(), ..wire::GetRebalanceRequest::default() }
}

fn rebalance(number: u64) -> RebalanceRecord {
    RebalanceRecord {
        id: RebalanceId { term: Term::new(1), number },
        cause: "joined: w1".into(),
        trace_id: String::new(),
        started: SystemTime::UNIX_EPOCH,
        ended: Some(SystemTime::UNIX_EPOCH),
        outcome: RebalanceOutcome::Completed,
        moves: 0,
        done: 0,
    }
}

impl History for Ten {
    fn rebalances(&self, before: Option<RebalanceId>, limit: u64) -> HistoryAnswer<'_, Vec<RebalanceRecord>> {
        let all = (1..=10).rev().map(rebalance).filter(move |r| before.is_none_or(|b| r.id < b));
        let found = all.take(usize::try_from(limit).expect("a small limit")).collect();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn rebalance(&self, id: RebalanceId) -> HistoryAnswer<'_, Option<(RebalanceRecord, Vec<MoveRecord>)>> {
        let found = (1..=10).contains(&id.number).then(|| (rebalance(id.number), vec![]));
        Box::pin(std::future::ready(Ok(found)))
    }

    fn members_of(&self, _: RebalanceId) -> HistoryAnswer<'_, Vec<MemberThen>> {
        Box::pin(std::future::ready(Ok(vec![])))
    }

    fn moves_of(&self, _: ApplianceId, _: u64) -> HistoryAnswer<'_, Vec<MoveRecord>> {
        Box::pin(std::future::ready(Ok(vec![])))
    }

    fn audit(&self, filter: AuditFilter, part: AuditPart, limit: u64) -> HistoryAnswer<'_, Vec<NumberedEvent>> {
        let event = |number: u64| AuditEvent {
            time: SystemTime::UNIX_EPOCH,
            actor: if number.is_multiple_of(2) { "even" } else { "odd" }.into(),
            action: "evict".into(),
            subject: "w1".into(),
            detail: String::new(),
        };
        let is_in = move |n: &u64| match part {
            AuditPart::Before(before) => before.is_none_or(|before| *n < before),
            AuditPart::After(after) => *n > after,
        };
        let all = (1..=10).filter(is_in).map(|number| NumberedEvent { number, event: event(number) });
        let mut all: Vec<_> =
            all.filter(|e| filter.actor.as_ref().is_none_or(|actor| *actor == e.event.actor)).collect();
        if matches!(part, AuditPart::Before(_)) {
            all.reverse();
        }
        all.truncate(usize::try_from(limit).expect("a small limit"));
        Box::pin(std::future::ready(Ok(all)))
    }

    fn runs(&self, filter: RunFilter, part: AuditPart, limit: u64) -> HistoryAnswer<'_, Vec<NumberedRun>> {
        let run = |number: u64| RunRecord {
            id: number.into(),
            appliance: ApplianceId::from_u128(number.into()),
            tenant: Name::new(if number.is_multiple_of(2) { "even" } else { "odd" }).expect("a name"),
            name: Name::new("web").expect("a name"),
            generation: Generation::new(1),
            worker: WorkerId::new("w1").expect("a name"),
            cause: "rebuild".into(),
            outcome: RunOutcome::Completed,
            error: String::new(),
            began: SystemTime::UNIX_EPOCH,
            ended: SystemTime::UNIX_EPOCH,
            steps: vec![],
            changes: vec![],
        };
        let is_in = move |n: &u64| match part {
            AuditPart::Before(before) => before.is_none_or(|before| *n < before),
            AuditPart::After(after) => *n > after,
        };
        let all = (1..=10).rev().filter(is_in).map(|number| NumberedRun { number, run: run(number) });
        let all = all.filter(|it| filter.tenants.as_ref().is_none_or(|tenants| tenants.contains(&it.run.tenant)));
        let found = all.take(usize::try_from(limit).expect("a small limit")).collect();
        Box::pin(std::future::ready(Ok(found)))
    }
}

struct Fixture {
    channel: Channel,
    catalog: Arc<Catalog>,
}

impl Fixture {
    fn appliances(&self) -> AppliancesClient<Channel> {
        AppliancesClient::new(self.channel.clone())
    }
}

/// Carries a change out as a leader whose store has everything at once.
fn carry_out(admission: &mut Admission, mutation: &Mutation) -> Result<Changed, CommandError> {
    admission.admit(mutation, SystemTime::now()).map(|admitted| match admitted {
        Admitted::Done(done) => done,
        Admitted::Write(change) => admission.commit(change),
    })
}

/// Serves the API; the leader commits each change at once when `answers`, and never answers otherwise.
async fn serve(config: Config, answers: bool) -> Fixture {
    let catalog = Arc::new(Catalog::new(config));
    let (commands, mut received) = commands::channel();
    let services = AdminServices::new(Arc::clone(&catalog), commands, Arc::new(Ten));
    let health = services.health();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let routes = services.routes().expect("descriptors are built in");
    let calls = ServiceBuilder::new().layer(CallLayer::new(Trace)).layer(open()).service(routes);
    tokio::spawn(serve_listener(super::Listener::Tcp(listener), None, calls));
    health.set_serving(true).await;
    let mut admission = Admission::new(Arc::clone(&catalog), Term::new(1), &[], received.settled());
    tokio::spawn(async move {
        let mut unanswered = vec![];
        while let Some(command) = received.recv().await {
            match command {
                Command::Change { mutation, reply, .. } if answers => {
                    let _ = reply.send(carry_out(&mut admission, &mutation));
                }
                other => unanswered.push(other),
            }
        }
    });
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("a valid address");
    Fixture { channel: endpoint.connect().await.expect("it listens"), catalog }
}

fn custom(name: &str) -> wire::Appliance {
    let kind = wire::Custom { command: "sleep".into(), ..Default::default() };
    let spec = wire::Spec { kind: Some(wire::spec::Kind::Custom(kind)), ..Default::default() };
    wire::Appliance { name: name.into(), spec: Some(spec), ..Default::default() }
}

fn create(name: &str) -> wire::CreateApplianceRequest {
    wire::CreateApplianceRequest { appliance: Some(custom(name)), ..Default::default() }
}

fn by_name(name: &str) -> Option<wire::ApplianceRef> {
    let name = wire::TenantName { tenant: String::new(), name: name.into() };
    Some(wire::ApplianceRef { by: Some(wire::appliance_ref::By::Name(name)) })
}

fn by_name_target(name: &str) -> ApplianceTarget {
    ApplianceTarget::Name("default".parse().expect("a name"), name.parse().expect("a name"))
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("every status has one");
    assert_eq!(info.domain, "rug");
    info.reason.clone()
}

#[tokio::test]
async fn an_appliance_is_created_changed_and_deleted() {
    let fixture = serve(Config::default(), true).await;
    let mut client = fixture.appliances();
    let made = client.create(create("web")).await.expect("in order").into_inner();
    assert_eq!((made.tenant.as_str(), made.driver.as_str(), made.generation), ("default", "process", 1));
    let found = client.get(wire::GetApplianceRequest { appliance: by_name("web") }).await.expect("just made");
    assert_eq!(found.into_inner(), made);
    let again = client.create(create("web")).await.expect_err("the name is taken");
    assert_eq!((again.code(), reason(&again).as_str()), (Code::AlreadyExists, "NAME_TAKEN"));
    assert_eq!(again.get_error_details().resource_info().expect("says what").resource_name, "default/web");
    let delete = wire::DeleteApplianceRequest { appliance: by_name("web"), ..Default::default() };
    assert!(client.delete(delete).await.expect("in order").into_inner().deleting);
    let update = wire::UpdateApplianceRequest { appliance: Some(custom("web")), ..Default::default() };
    let late = client.update(update).await.expect_err("it is being deleted");
    assert_eq!((late.code(), reason(&late).as_str()), (Code::FailedPrecondition, "DELETING"));
    assert!(late.get_error_details().precondition_failure().is_some());
}

#[tokio::test]
async fn invalid_input_is_answered_with_the_invalid_fields() {
    let fixture = serve(Config::default(), true).await;
    let mut appliance = custom("web");
    appliance.id = "no-uuid".into();
    appliance.spec.as_mut().expect("has one").replicas = Some(-1);
    let request = wire::CreateApplianceRequest { appliance: Some(appliance), ..Default::default() };
    let status = fixture.appliances().create(request).await.expect_err("it is wrong twice");
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let fields: Vec<_> = details.bad_request().expect("named").field_violations.iter().map(|v| &v.field).collect();
    assert_eq!(fields, ["appliance.id", "appliance.spec.replicas"]);
    let bad_id = wire::CreateApplianceRequest { request_id: "7".into(), ..create("web") };
    let status = fixture.appliances().create(bad_id).await.expect_err("not a UUID");
    assert_eq!(status.get_error_details().bad_request().expect("named").field_violations[0].field, "request_id");
    let filter = wire::ApplianceFilter {
        kind: "toaster".into(),
        phases: vec![77],
        selector: "a in".into(),
        ..Default::default()
    };
    let list = wire::ListAppliancesRequest { filter: Some(filter), ..Default::default() };
    let status = fixture.appliances().list(list).await.expect_err("no such kind");
    assert_eq!(status.get_error_details().bad_request().expect("named").field_violations.len(), 3);
    assert_eq!(fixture.catalog.len(), 0);
}

#[tokio::test]
async fn an_oversized_request_is_refused_and_the_connection_stays_usable() {
    let fixture = serve(Config::default(), true).await;
    let mut client = fixture.appliances();
    let sized = |bytes: usize| {
        let mut request = create("web");
        let spec = request.appliance.as_mut().and_then(|a| a.spec.as_mut()).expect("has one");
        spec.image = "x".repeat(bytes);
        request
    };
    let status = client.create(sized(10 << 20)).await.expect_err("larger than any message");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    let status = client.create(sized(300 << 10)).await.expect_err("larger than any spec");
    assert_eq!(status.get_error_details().bad_request().expect("named").field_violations[0].field, "appliance.spec");
    client.create(create("web")).await.expect("a sane one still works");
}

#[tokio::test]
async fn pages_contain_every_lasting_appliance_once() {
    let fixture = serve(Config::default(), true).await;
    let mut client = fixture.appliances();
    for n in 0..25 {
        client.create(create(&format!("a{n:02}"))).await.expect("in order");
    }
    let filter = wire::ApplianceFilter { name_prefix: "a".into(), ..Default::default() };
    for filter in [None, Some(filter)] {
        let mut request = wire::ListAppliancesRequest { page_size: 10, filter, ..Default::default() };
        let mut seen = vec![];
        loop {
            let page = client.list(request.clone()).await.expect("in order").into_inner();
            assert_eq!(page.total_size, 25);
            seen.extend(page.appliances.into_iter().map(|a| a.name));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(seen, (0..25).map(|n| format!("a{n:02}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn concurrent_creates_of_one_name_make_one_appliance() {
    let fixture = serve(Config::default(), true).await;
    let calls = (0..8).map(|_| {
        let mut client = fixture.appliances();
        async move { client.create(create("web")).await.map_err(|s| s.code()) }
    });
    let answers = futures::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 1);
    assert!(answers.into_iter().filter_map(Result::err).all(|code| code == Code::AlreadyExists));
}

#[tokio::test]
async fn a_call_gives_up_at_its_deadline() {
    let fixture = serve(Config::default(), false).await;
    let mut request = Request::new(create("web"));
    request.metadata_mut().insert("grpc-timeout", "2S".parse().expect("ASCII"));
    let status = fixture.appliances().create(request).await.expect_err("nobody answers");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE"));
}

#[tokio::test]
async fn a_watch_lists_the_current_state_and_then_changes() {
    use wire::appliance_event::Type;
    let fixture = serve(Config::default(), true).await;
    let mut client = fixture.appliances();
    client.create(create("a")).await.expect("in order");
    let filter = wire::ApplianceFilter { labels: HashMap::new(), name_prefix: "a".into(), ..Default::default() };
    let request = wire::WatchAppliancesRequest { filter: Some(filter) };
    let mut events = client.watch(request).await.expect("in order").into_inner();
    client.create(create("b")).await.expect("does not match");
    client.create(create("a2")).await.expect("in order");
    let rebuild = wire::RebuildApplianceRequest { appliance: by_name("a"), ..Default::default() };
    client.rebuild(rebuild).await.expect("in order");
    let mut rename = custom("z");
    rename.id = fixture.catalog.get(&by_name_target("a2")).expect("just made").record.id.to_string();
    client.update(wire::UpdateApplianceRequest { appliance: Some(rename), ..Default::default() }).await.expect("valid");
    let mut seen = vec![];
    for _ in 0..5 {
        let event = tokio::time::timeout(Duration::from_secs(5), events.message()).await.expect("in time");
        let event = event.expect("no error").expect("no end");
        seen.push((event.r#type(), event.appliance.map(|a| a.name).unwrap_or_default()));
    }
    let expected =
        [(Type::Current, "a"), (Type::Synced, ""), (Type::Created, "a2"), (Type::Changed, "a"), (Type::Gone, "z")];
    assert_eq!(seen, expected.map(|(kind, name)| (kind, name.to_owned())));
    fixture.catalog.close_watches();
    let end = events.message().await.expect_err("the watch is over");
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "WATCH_OVER"));
}

#[tokio::test]
async fn a_slow_watcher_is_aborted() {
    let fixture = serve(Config { watch_buffer: 16, ..Config::default() }, true).await;
    let mut client = fixture.appliances();
    let mut events = client.watch(wire::WatchAppliancesRequest::default()).await.expect("in order").into_inner();
    // Names of 63 bytes in large labels fill the stream's window, so that the server cannot send on.
    let mut wide = custom("a");
    wide.labels = (0..60).map(|n| (format!("l{n}"), "x".repeat(250))).collect();
    for n in 0..200 {
        wide.name = format!("a{n}");
        let request = wire::CreateApplianceRequest { appliance: Some(wide.clone()), ..Default::default() };
        client.create(request).await.expect("in order");
    }
    let end = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Aborted, "WATCH_LAGGED"));
}

#[tokio::test]
async fn history_comes_in_pages_newest_first() {
    let fixture = serve(Config::default(), true).await;
    let mut client = wire::rebalances_client::RebalancesClient::new(fixture.channel.clone());
    let mut request = wire::ListRebalancesRequest { page_size: 4, ..Default::default() };
    let mut seen = vec![];
    loop {
        let page = client.list(request.clone()).await.expect("in order").into_inner();
        seen.extend(page.rebalances.into_iter().map(|r| r.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, (1..=10).rev().map(|n| format!("r1-{n}")).collect::<Vec<_>>());
    let missing = client.get(rebalance_request("r1-11")).await.expect_err("there are ten");
    assert_eq!(missing.code(), Code::NotFound);
    let odd = client.get(rebalance_request("x")).await.expect_err("not an id");
    assert_eq!(odd.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn health_reports_that_the_services_serve() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let fixture = serve(Config::default(), true).await;
    let mut client = HealthClient::new(fixture.channel.clone());
    let request = HealthCheckRequest { service: "rug.admin.v1.Appliances".into() };
    let response = client.check(request).await.expect("known").into_inner();
    assert_eq!(response.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn ring_and_cluster_are_served_once_known() {
    use wire::cluster_client::ClusterClient;
    use wire::placement_client::PlacementClient;
    let fixture = serve(Config::default(), true).await;
    let mut placement = PlacementClient::new(fixture.channel.clone());
    let mut cluster = ClusterClient::new(fixture.channel.clone());
    let key = || wire::LocateRequest { what: Some(wire::locate_request::What::Key("k".into())), count: 0 };
    let early = placement.locate(key()).await.expect_err("no ring yet");
    assert_eq!((early.code(), reason(&early).as_str()), (Code::Unavailable, "STARTING"));
    let early = cluster.status(wire::ClusterStatusRequest {}).await.expect_err("no leader yet");
    assert_eq!(early.code(), Code::Unavailable);
    let members = (1..=5).map(|n| (WorkerId::new(&format!("w{n}")).expect("a valid name"), 1));
    let ring = Arc::new(common::ring::Ring::build(members));
    let owner = ring.owner("k").expect("five members").to_string();
    fixture.catalog.set_ring(RingView {
        version: 3,
        ring,
        strategy: Strategy::Bounded,
        band: 1.05,
        spread: Spread::None,
    });
    let found = placement.locate(key()).await.expect("known now").into_inner();
    assert_eq!((found.preference.len(), &found.preference[0], found.position.len()), (3, &owner, 32));
    let ring = placement.get_ring(wire::GetRingRequest { points: true }).await.expect("known now").into_inner();
    assert_eq!((ring.members.len(), ring.points.len(), ring.strategy.as_str()), (5, 160, "bounded"));
    assert!((ring.members.iter().map(|m| m.share).sum::<f64>() - 1.0).abs() < 1e-9);
    fixture.catalog.set_cluster(ClusterView::of_term(2));
    fixture.appliances().create(create("web")).await.expect("in order");
    let status = cluster.status(wire::ClusterStatusRequest {}).await.expect("known now").into_inner();
    assert_eq!((status.term, status.appliances, status.phases["Down"]), (2, 1, 1));
}

fn worker(name: &str) -> WorkerView {
    WorkerView {
        id: WorkerId::new(name).expect("a valid name"),
        incarnation: None,
        health: Health::Healthy,
        host: "h".into(),
        zone: String::new(),
        weight: 1,
        published_weight: 1,
        drivers: [(DriverName::process(), DriverCapabilities::of_all_kinds(Some("/var/lib/rug")))].into(),
        version: "1".into(),
        pid: 1,
        last_seen: None,
        draining: false,
        orders: None,
        immovable: 0,
        member: true,
        limited: vec![],
    }
}

#[tokio::test]
async fn workers_come_in_pages_and_are_watched() {
    use wire::worker_event::Type;
    let fixture = serve(Config::default(), true).await;
    let mut client = wire::workers_client::WorkersClient::new(fixture.channel.clone());
    for name in ["w1", "w2", "w3"] {
        fixture.catalog.set_worker(worker(name));
    }
    let mut request = wire::ListWorkersRequest { page_size: 2, ..Default::default() };
    let first = client.list(request.clone()).await.expect("in order").into_inner();
    request.page_token = first.next_page_token;
    let second = client.list(request).await.expect("in order").into_inner();
    let names: Vec<_> = first.workers.iter().chain(&second.workers).map(|w| w.id.as_str()).collect();
    assert_eq!((names, second.next_page_token.as_str()), (vec!["w1", "w2", "w3"], ""));
    let missing = client.get(wire::GetWorkerRequest { id: "w9".into() }).await.expect_err("no such worker");
    assert_eq!(missing.code(), Code::NotFound);
    let mut events = client.watch(wire::WatchWorkersRequest {}).await.expect("in order").into_inner();
    fixture.catalog.set_worker(WorkerView { draining: true, ..worker("w1") });
    fixture.appliances().create(create("web")).await.expect("in order");
    let id = fixture.catalog.get(&by_name_target("web")).expect("just made").record.id;
    let held = AssignmentView { state: "owned", worker: Some(worker("w3").id), ..AssignmentView::default() };
    fixture.catalog.apply([Fact::Assignment(id, held)]);
    let mut seen = vec![];
    for _ in 0..6 {
        let event = tokio::time::timeout(Duration::from_secs(5), events.message()).await.expect("in time");
        let event = event.expect("no error").expect("no end");
        let worker = event.worker.clone().unwrap_or_default();
        seen.push((event.r#type(), worker.id, worker.appliances));
    }
    let expected = [
        (Type::Current, "w1", 0),
        (Type::Current, "w2", 0),
        (Type::Current, "w3", 0),
        (Type::Synced, "", 0),
        (Type::Changed, "w1", 0),
        (Type::Changed, "w3", 1),
    ];
    assert_eq!(seen, expected.map(|(kind, name, held)| (kind, name.to_owned(), held)));
}
