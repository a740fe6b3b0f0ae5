//! Operator calls and their visible effects.

use std::collections::BTreeMap;

use common::Incarnation;
use common::appliance::{Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec};
use tokio::sync::mpsc;

use super::*;
use crate::commands::Operator;
use crate::record::Record;
use crate::views::{FrozenView, PausedView, PlacementView, UnownedAppliance, UnownedView, ViolationsView};
use wire::cluster_client::ClusterClient;
use wire::placement_client::PlacementClient;
use wire::workers_client::WorkersClient;

fn cluster() -> ClusterView {
    let kinds = vec![("digest_differs", 0), ("grant_lost", 0)];
    ClusterView { violations: ViolationsView { kinds, ..ViolationsView::default() }, ..ClusterView::of_term(2) }
}

/// The cluster with this state of placement.
fn placed(placement: PlacementView) -> ClusterView {
    ClusterView { placement, ..cluster() }
}

/// A leader that pauses, resumes, evicts `w1` once and unbinds what is on `h1`; records the commands.
fn obey(catalog: &Arc<Catalog>, mut received: CommandQueue) -> mpsc::UnboundedReceiver<Operator> {
    let catalog = Arc::clone(catalog);
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(command) = received.recv().await {
            let (request, paused) = match command {
                Command::Pause { request, reply, .. } => {
                    let by = request.actor.clone();
                    let since = SystemTime::UNIX_EPOCH;
                    let reason = request.reason.clone();
                    let paused = PausedView { reason, since, by, moves_only: false, aborts: None };
                    catalog.set_cluster(placed(PlacementView { paused: Some(paused), ..PlacementView::default() }));
                    (request, Some(reply))
                }
                Command::Resume { request, reply } => {
                    catalog.set_cluster(cluster());
                    (request, Some(reply))
                }
                Command::Evict { worker: id, incarnation, request, reply } => {
                    assert_eq!(incarnation, Some(Incarnation::new(7)), "the life that was looked at");
                    let over = catalog.worker(&id).is_some_and(|(w, _)| w.health == Health::Dead);
                    let answer = if over { Err(CommandError::NoLease(id.clone())) } else { Ok(()) };
                    catalog.set_worker(WorkerView { health: Health::Dead, incarnation, ..worker(id.as_str()) });
                    let _ = reply.send(answer);
                    (request, None)
                }
                Command::Unbind { appliance, site, request, reply } => {
                    let on = common::Site::new("h1", "/a");
                    let _ = reply.send(match site {
                        Some(other) if !other.is(&on) => Err(CommandError::OtherSite { appliance, site: on }),
                        Some(site) => Ok(Some(site)),
                        None => Err(CommandError::MayBeOwned { appliance, reason: "w1 owns it".into() }),
                    });
                    (request, None)
                }
                _ => continue,
            };
            let _ = tell.send(request);
            if let Some(reply) = paused {
                let _ = reply.send(Ok(()));
            }
        }
    });
    told
}

/// An appliance as it is stored.
fn record(name: &str) -> Record {
    let custom = Custom { command: "sleep".into(), ..Custom::default() };
    Record {
        id: ApplianceId::from_u128(1),
        tenant: "default".parse().expect("a valid name"),
        name: name.parse().expect("a valid name"),
        driver: DriverName::process(),
        placement_key: name.into(),
        labels: BTreeMap::new(),
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(custom),
        },
        generation: Generation::new(1),
        written: Term::new(1),
        revision: 0,
        deleting: false,
        managed_by: None,
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn what_a_source_manages_is_changed_only_by_force() {
    let fixture = serve(Config::default(), true).await;
    fixture.catalog.put_record(&Arc::new(Record { managed_by: "neutron".parse().ok(), ..record("web") }));
    let mut client = fixture.appliances();
    let found = client.get(wire::GetApplianceRequest { appliance: by_name("web") }).await.expect("known").into_inner();
    assert_eq!(found.managed_by, "neutron");
    let update = |force| wire::UpdateApplianceRequest {
        appliance: Some(wire::Appliance { labels: [("a".to_owned(), "b".to_owned())].into(), ..custom("web") }),
        force,
        ..Default::default()
    };
    let delete = |force| wire::DeleteApplianceRequest { appliance: by_name("web"), force, ..Default::default() };
    for status in [
        client.update(update(false)).await.expect_err("managed"),
        client.delete(delete(false)).await.expect_err("managed"),
    ] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "MANAGED"));
        assert!(status.message().ends_with("is managed by `neutron`; change it there, or use --force"), "{status:?}");
    }
    let changed = client.update(update(true)).await.expect("forced").into_inner().appliance.expect("it is there");
    assert_eq!((changed.managed_by.as_str(), changed.labels.len()), ("neutron", 1));
    assert!(client.delete(delete(true)).await.expect("forced").into_inner().deleting);
}

/// Serves the API with that leader.
async fn start() -> (Arc<Catalog>, Channel, mpsc::UnboundedReceiver<Operator>) {
    let catalog = Arc::new(Catalog::new(Config::default()));
    let (commands, received) = commands::channel();
    let told = obey(&catalog, received);
    let routes = AdminServices::new(Arc::clone(&catalog), commands, Arc::new(Ten)).routes();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let calls = ServiceBuilder::new().layer(open()).service(routes.expect("descriptors are built in"));
    tokio::spawn(serve_listener(crate::grpc::Listener::Tcp(listener), None, calls));
    let channel = Channel::from_shared(format!("http://{address}")).expect("a valid address");
    (catalog, channel.connect().await.expect("it listens"), told)
}

#[tokio::test]
async fn placement_is_paused_and_resumed() {
    let (_catalog, channel, mut told) = start().await;
    let mut client = PlacementClient::new(channel);
    let pause = |reason: &str| wire::PausePlacementRequest { reason: reason.into(), ..Default::default() };
    let paused = client.pause(pause("network work")).await.expect("in order").into_inner().paused;
    let paused = paused.expect("it is paused");
    assert_eq!(paused.reason, "network work");
    assert!(paused.by.starts_with("127.0.0.1:"), "{paused:?}");
    assert_eq!(told.recv().await.expect("asked").reason, "network work");
    let resumed = client.resume(wire::ResumePlacementRequest {}).await.expect("in order").into_inner();
    assert_eq!(resumed, wire::PlacementState::default());
    for odd in ["x".repeat(501), "a\nb".to_owned()] {
        let status = client.pause(pause(&odd)).await.expect_err("too long or odd");
        assert_eq!(status.get_error_details().bad_request().expect("named").field_violations[0].field, "reason");
    }
}

#[tokio::test]
async fn an_appliance_is_unbound_from_the_named_site_only() {
    let (catalog, channel, mut told) = start().await;
    catalog.put_record(&Arc::new(record("web")));
    let mut client = PlacementClient::new(channel);
    let unbind = |name: &str, host: &str, state_dir: &str| wire::UnbindRequest {
        appliance: by_name(name),
        host: host.into(),
        state_dir: state_dir.into(),
        reason: "burnt down".into(),
        ..wire::UnbindRequest::default()
    };
    let with_site = |host: &str, site: &str| wire::UnbindRequest { site: site.into(), ..unbind("web", host, "/a") };
    for (request, code, expected) in [
        (unbind("other", "", ""), Code::NotFound, "NOT_FOUND"),
        (unbind("web", "", "/a"), Code::InvalidArgument, "INVALID"),
        (with_site("", "0123456789abcdef0123456789abcdef"), Code::InvalidArgument, "INVALID"),
        (with_site("h1", "0123"), Code::InvalidArgument, "INVALID"),
        (unbind("web", "", ""), Code::FailedPrecondition, "MAY_BE_OWNED"),
        (unbind("web", "h2", "/a"), Code::FailedPrecondition, "OTHER_SITE"),
    ] {
        let status = client.unbind(request).await.expect_err("refused");
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected));
    }
    let freed = client.unbind(unbind("web", "h1", "/a")).await.expect("in order").into_inner();
    assert_eq!((freed.host.as_str(), freed.state_dir.as_str()), ("h1", "/a"));
    let id = "0123456789abcdef0123456789abcdef";
    let freed = client.unbind(with_site("h1", id)).await.expect("bound before there were ids").into_inner();
    assert_eq!(freed.site, id);
    assert_eq!(told.recv().await.expect("asked").reason, "burnt down");
}

#[tokio::test]
async fn only_the_named_incarnation_is_evicted() {
    let (catalog, channel, mut told) = start().await;
    catalog.set_worker(WorkerView { incarnation: Some(Incarnation::new(7)), ..worker("w1") });
    let mut client = WorkersClient::new(channel);
    let evict = |id: &str, incarnation: &str| wire::EvictWorkerRequest {
        id: id.into(),
        reason: "stuck".into(),
        incarnation: incarnation.into(),
    };
    for (request, code, expected) in [
        (evict("w2", ""), Code::NotFound, "NOT_FOUND"),
        (evict("W 2", ""), Code::InvalidArgument, "INVALID"),
        (evict("w1", "i6"), Code::Aborted, "OTHER_LIFE"),
    ] {
        let status = client.evict(request).await.expect_err("refused");
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected));
    }
    let gone = client.evict(evict("w1", "i7")).await.expect("in order").into_inner();
    assert_eq!((gone.health(), gone.id.as_str()), (wire::Health::Dead, "w1"));
    assert_eq!(told.recv().await.expect("asked").reason, "stuck");
    let status = client.evict(evict("w1", "")).await.expect_err("its life is over");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NO_LEASE"));
}

#[tokio::test]
async fn a_watch_of_the_cluster_sends_different_states() {
    let (catalog, channel, _told) = start().await;
    let mut client = ClusterClient::new(channel);
    let early = client.watch(wire::WatchClusterRequest {}).await.expect_err("no leader yet");
    assert_eq!((early.code(), reason(&early).as_str()), (Code::Unavailable, "STARTING"));
    catalog.set_cluster(cluster());
    let mut states = client.watch(wire::WatchClusterRequest {}).await.expect("known now").into_inner();
    let next = async |states: &mut tonic::Streaming<wire::ClusterStatus>| {
        let next = tokio::time::timeout(Duration::from_secs(10), states.message()).await.expect("in time");
        next.expect("no error").expect("no end")
    };
    assert_eq!(next(&mut states).await.frozen, None);
    // Equal states are not sent again: the next state is the one that differs.
    catalog.set_cluster(cluster());
    catalog.set_worker(worker("w1"));
    assert_eq!(next(&mut states).await.workers.get("healthy"), Some(&1));
    let missing = (1..=30).map(|n| worker(&format!("w{n:02}")).id).collect();
    let frozen = FrozenView { reason: "30 of 40 vanished".into(), since: SystemTime::UNIX_EPOCH, missing };
    let notes = (0..30).map(|n| format!("note {n}")).collect();
    let placement = PlacementView { frozen: Some(frozen), stalled_moves: 2, ..PlacementView::default() };
    catalog.set_cluster(ClusterView { notes, ..placed(placement) });
    let state = next(&mut states).await;
    let frozen = state.frozen.expect("it is frozen");
    assert_eq!((frozen.missing.len(), frozen.missing_count, state.notes.len(), state.stalled_moves), (20, 30, 20, 2));
    let one = UnownedAppliance {
        id: common::ApplianceId::from_u128(7),
        tenant: "demo".parse().expect("a valid name"),
        name: "web".parse().expect("a valid name"),
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        state: "unowned",
        reason: "nobody offers its driver".into(),
    };
    let unowned = UnownedView { appliances: 12, oldest: vec![one] };
    let kinds = vec![("digest_differs", 3), ("grant_lost", 0)];
    let violations = ViolationsView { count: 3, kinds, last: None };
    catalog.set_cluster(ClusterView { unowned, violations, ..cluster() });
    let state = next(&mut states).await;
    let unowned = state.unowned.expect("always told");
    assert_eq!((unowned.appliances, unowned.oldest[0].name.as_str()), (12, "web"));
    assert_eq!(unowned.oldest[0].since.map(|t| t.seconds), Some(5));
    assert_eq!((state.violation_kinds["digest_differs"], state.violation_kinds["grant_lost"]), (3, 0));
    assert_eq!(state.time, None, "it always differs");
    assert!(client.status(wire::ClusterStatusRequest {}).await.expect("known").into_inner().time.is_some());
    catalog.close_watches();
    let end = states.message().await.expect_err("the watch is over");
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "WATCH_OVER"));
}
