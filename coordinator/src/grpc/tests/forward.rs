//! Calls to a standby: two servers, whose roles are set by the test.

use std::net::SocketAddr;

use common::CoordinatorId;
use coordination::Leader;
use runtime::channel::Target;
use runtime::tls::testing::Authority;
use runtime::tls::{self, ClientTls, ServerTls};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::super::{Forwarder, LEADER, ServingRole, Undecodable};
use tokio::sync::mpsc;

use super::*;

/// A coordinator without the parts below its services. The leader commits changes at once, unless it is mute.
pub(super) struct TestCoordinator {
    id: CoordinatorId,
    scheme: &'static str,
    address: SocketAddr,
    role: watch::Sender<ServingRole>,
    pub(super) channel: Channel,
    /// Callers of changes, in order.
    actors: mpsc::UnboundedReceiver<String>,
    /// Cancelled calls of a mute coordinator.
    given_up: mpsc::UnboundedReceiver<()>,
    catalog: Arc<Catalog>,
}

impl TestCoordinator {
    pub(super) async fn start(name: &str, role: ServingRole, mute: bool) -> Self {
        Self::start_with(name, role, mute, &tls::Config::default()).await
    }

    async fn start_with(name: &str, role: ServingRole, mute: bool, tls: &tls::Config) -> Self {
        let server_tls = ServerTls::load(tls).expect("files in order");
        let client_tls = ClientTls::load(tls).expect("files in order");
        let id = CoordinatorId::new(name).expect("a valid name");
        let role = watch::Sender::new(role);
        let catalog = Arc::new(Catalog::new(Config::default()));
        let (commands, mut received) = commands::channel();
        let services = AdminServices::new(Arc::clone(&catalog), commands, Arc::new(Ten));
        let health = services.health();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let forward = Forwarder::new(id.clone(), role.subscribe(), client_tls.clone());
        let calls = ServiceBuilder::new()
            .layer(CallLayer::new(Trace))
            .layer(CallLayer::new(Undecodable))
            .layer(open())
            .layer(CallLayer::new(forward))
            .service(services.routes().expect("descriptors are built in"));
        tokio::spawn(serve_listener(crate::grpc::Listener::Tcp(listener), server_tls, calls));
        let (own, roles) = (id.clone(), role.subscribe());
        tokio::spawn(async move { health.follow(&own, roles).await });
        let (actor, actors) = mpsc::unbounded_channel();
        let (gone, given_up) = mpsc::unbounded_channel();
        let mut admission = Admission::new(Arc::clone(&catalog), Term::new(1), &[], received.settled());
        tokio::spawn(async move {
            while let Some(command) = received.recv().await {
                let Command::Change { mutation, mut reply, .. } = command else { continue };
                let _ = actor.send(mutation.actor.clone());
                if mute {
                    reply.closed().await;
                    let _ = gone.send(());
                    continue;
                }
                let _ = reply.send(carry_out(&mut admission, &mutation));
            }
        });
        let scheme = if tls.is_off() { "http" } else { "https" };
        let target = Target::new(&format!("{scheme}://{address}"), client_tls.as_ref()).expect("a valid address");
        let channel = target.connect().await.expect("it listens");
        Self { id, scheme, address, role, channel, actors, given_up, catalog }
    }

    pub(super) fn leader(&self) -> Leader {
        self.leader_at(self.address)
    }

    fn leader_at(&self, address: SocketAddr) -> Leader {
        Leader { id: self.id.clone(), address: format!("{}://{address}", self.scheme) }
    }

    fn appliances(&self) -> AppliancesClient<Channel> {
        AppliancesClient::new(self.channel.clone())
    }

    async fn watch(&self) -> tonic::Streaming<wire::ApplianceEvent> {
        let request = wire::WatchAppliancesRequest::default();
        self.appliances().watch(request).await.expect("somebody leads").into_inner()
    }
}

/// One that leads and one that stands by.
async fn pair() -> (TestCoordinator, TestCoordinator) {
    let leader = TestCoordinator::start("c1", ServingRole::Leading, false).await;
    let standby = TestCoordinator::start("c2", ServingRole::Standby(Some(leader.leader())), false).await;
    (leader, standby)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

/// The status a stream ends with, after any number of messages.
async fn end_of<T: std::fmt::Debug>(stream: &mut tonic::Streaming<T>) -> (Code, String) {
    loop {
        match soon(stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => return (status.code(), reason(&status)),
        }
    }
}

fn unavailable(reason: &str) -> (Code, String) {
    (Code::Unavailable, reason.to_owned())
}

#[tokio::test]
async fn a_standby_forwards_calls_to_the_leader() {
    let (mut leader, standby) = pair().await;
    let made = standby.appliances().create(create("web")).await.expect("passed on").into_inner();
    assert_eq!(leader.catalog.get(&by_name_target("web")).expect("made there").record.id.to_string(), made.id);
    assert_eq!(standby.catalog.len(), 0);
    let actor = leader.actors.recv().await.expect("one change");
    assert!(actor.starts_with("127.0.0.1:") && actor.contains(" by way of c2 (127.0.0.1:"), "{actor}");
    // Errors arrive with their details.
    let missing = wire::GetApplianceRequest { appliance: by_name("nobody") };
    let status = standby.appliances().get(missing).await.expect_err("there is none");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NOT_FOUND"));
    assert!(status.get_error_details().resource_info().is_some());
}

#[tokio::test]
async fn calls_are_forwarded_over_mutual_tls() {
    tls::install_provider();
    let ca = Authority::new("ca");
    let folders = ["c1", "c2"].map(|name| (name, tempfile::tempdir().expect("a folder")));
    let [first, second] = folders.each_ref().map(|(name, dir)| {
        ca.issue(name, &["127.0.0.1", &format!("rug://coordinator/{name}"), "rug://role/admin"]).write(dir.path(), &ca)
    });
    let mut leader = TestCoordinator::start_with("c1", ServingRole::Leading, false, &first).await;
    let standby = TestCoordinator::start_with("c2", ServingRole::Standby(Some(leader.leader())), false, &second).await;
    standby.appliances().create(create("web")).await.expect("passed on");
    let actor = leader.actors.recv().await.expect("one change");
    // The client has the certificate of the standby here.
    assert!(actor.starts_with("c2 at 127.0.0.1:") && actor.contains(" by way of c2 (c2 at 127.0.0.1:"), "{actor}");
    let plain = Leader { address: format!("http://{}", leader.address), ..leader.leader() };
    standby.role.send_replace(ServingRole::Standby(Some(plain)));
    let status = standby.appliances().create(create("web-2")).await.expect_err("not without TLS");
    assert_eq!((status.code(), reason(&status)), unavailable("LEADER_UNREACHABLE"));
    assert!(status.message().contains("https://"), "{status:?}");
}

#[tokio::test]
async fn caller_headers_of_a_client_are_not_forwarded() {
    let (mut leader, standby) = pair().await;
    let mut request = Request::new(create("web"));
    request.metadata_mut().insert("rug-forwarded-for", "the king".parse().expect("ASCII"));
    standby.appliances().create(request).await.expect("passed on");
    let actor = leader.actors.recv().await.expect("one change");
    assert!(!actor.contains("king"), "{actor}");
    // Without a coordinator in between its own address is named as well.
    let mut request = Request::new(create("web-2"));
    request.metadata_mut().insert("rug-forwarded-for", "the king".parse().expect("ASCII"));
    leader.appliances().create(request).await.expect("answered");
    let actor = leader.actors.recv().await.expect("another change");
    assert!(actor.starts_with("127.0.0.1:"), "{actor}");
}

#[tokio::test]
async fn a_watch_through_a_standby_ends_when_the_leader_steps_down() {
    let (leader, standby) = pair().await;
    let mut events = standby.watch().await;
    assert_eq!(soon(events.message()).await.expect("no error").expect("no end").r#type(), EventType::Synced);
    leader.appliances().create(create("web")).await.expect("answered");
    assert_eq!(soon(events.message()).await.expect("no error").expect("no end").r#type(), EventType::Created);
    let mut own = leader.watch().await;
    leader.role.send_replace(ServingRole::Standby(None));
    assert_eq!(end_of(&mut events).await, unavailable("LEADER_CHANGED"));
    assert_eq!(end_of(&mut own).await, unavailable("LEADER_CHANGED"));
}

use wire::appliance_event::Type as EventType;

#[tokio::test]
async fn a_watch_ends_when_the_standby_sees_another_leader() {
    let (leader, standby) = pair().await;
    let mut events = standby.watch().await;
    // An unknown leader is no reason: it may still lead.
    standby.role.send_replace(ServingRole::Standby(None));
    leader.appliances().create(create("web")).await.expect("answered");
    for expected in [EventType::Synced, EventType::Created] {
        assert_eq!(soon(events.message()).await.expect("no error").expect("no end").r#type(), expected);
    }
    standby.role.send_replace(ServingRole::Leading);
    assert_eq!(end_of(&mut events).await, unavailable("LEADER_CHANGED"));
    let mut events = standby.watch().await;
    standby.role.send_replace(ServingRole::Stopping);
    assert_eq!(end_of(&mut events).await, unavailable("STOPPING"));
}

#[tokio::test]
async fn a_call_in_flight_fails_when_the_leader_changes() {
    let mut mute = TestCoordinator::start("c1", ServingRole::Leading, true).await;
    let standby = TestCoordinator::start("c2", ServingRole::Standby(Some(mute.leader())), false).await;
    let mut client = standby.appliances();
    let call = tokio::spawn(async move { client.create(create("web")).await });
    soon(mute.actors.recv()).await.expect("it has arrived");
    standby.role.send_replace(ServingRole::Leading);
    let status = soon(call).await.expect("no panic").expect_err("not answered");
    assert_eq!((status.code(), reason(&status)), unavailable("LEADER_UNREACHABLE"));
}

#[tokio::test]
async fn the_leader_keeps_the_deadline_of_a_forwarded_call() {
    let mute = TestCoordinator::start("c1", ServingRole::Leading, true).await;
    let standby = TestCoordinator::start("c2", ServingRole::Standby(Some(mute.leader())), false).await;
    let mut request = Request::new(create("web"));
    request.set_timeout(Duration::from_secs(2));
    let status = standby.appliances().create(request).await.expect_err("nobody answers");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE"));
}

#[tokio::test]
async fn cancellation_is_forwarded_to_the_leader() {
    let mut mute = TestCoordinator::start("c1", ServingRole::Leading, true).await;
    let standby = TestCoordinator::start("c2", ServingRole::Standby(Some(mute.leader())), false).await;
    let mut client = standby.appliances();
    let call = tokio::spawn(async move { client.create(create("web")).await });
    soon(mute.actors.recv()).await.expect("it has arrived");
    call.abort();
    soon(mute.given_up.recv()).await.expect("the leader has heard of it");
}

#[tokio::test]
async fn no_call_is_forwarded_twice() {
    let first = TestCoordinator::start("c1", ServingRole::Standby(None), false).await;
    let second = TestCoordinator::start("c2", ServingRole::Standby(Some(first.leader())), false).await;
    first.role.send_replace(ServingRole::Standby(Some(second.leader())));
    for node in [&first, &second] {
        let status = node.appliances().create(create("web")).await.expect_err("neither leads");
        assert_eq!((status.code(), reason(&status)), unavailable("NOT_LEADING"));
        let details = status.get_error_details();
        let leader = details.error_info().expect("it has one").metadata.get("leader").cloned();
        assert_eq!(leader.as_deref(), Some(node.id.as_str()), "as the other one reports");
        assert!(details.retry_info().is_some());
    }
}

#[tokio::test]
async fn a_call_waits_for_an_election_to_end() {
    let node = TestCoordinator::start("c1", ServingRole::Standby(None), false).await;
    let mut client = node.appliances();
    let mut call = tokio::spawn(async move { client.create(create("web")).await });
    // It waits, also once this coordinator is elected, until it is ready.
    node.role.send_replace(ServingRole::Standby(Some(node.leader())));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut call).await.is_err());
    node.role.send_replace(ServingRole::Leading);
    soon(call).await.expect("no panic").expect("answered");
}

#[tokio::test]
async fn without_a_leader_a_call_is_answered_before_its_deadline() {
    let node = TestCoordinator::start("c1", ServingRole::Standby(None), false).await;
    let mut request = Request::new(create("web"));
    request.set_timeout(Duration::from_secs(1));
    let status = node.appliances().create(request).await.expect_err("nobody leads");
    assert_eq!((status.code(), reason(&status)), unavailable("NOT_LEADING"));
    assert!(status.get_error_details().retry_info().is_some());
}

#[tokio::test]
async fn an_unreachable_leader_is_named() {
    let (leader, standby) = pair().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("it is bound");
    standby.role.send_replace(ServingRole::Standby(Some(leader.leader_at(closed))));
    let status = standby.appliances().create(create("web")).await.expect_err("refused");
    assert_eq!((status.code(), reason(&status)), unavailable("LEADER_UNREACHABLE"));
    assert!(status.message().contains("c1") && status.message().contains("refused"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some());
    // The next one is found at its own address.
    standby.role.send_replace(ServingRole::Standby(Some(leader.leader())));
    standby.appliances().create(create("web")).await.expect("passed on");
    let silent = Leader { address: String::new(), ..leader.leader() };
    standby.role.send_replace(ServingRole::Standby(Some(silent)));
    let status = standby.appliances().create(create("web")).await.expect_err("it has no address");
    assert_eq!((status.code(), reason(&status)), unavailable("NOT_LEADING"));
}

/// Stands between a standby and the leader until it is dropped.
async fn wire_to(address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let own = listener.local_addr().expect("it is bound");
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut far = TcpStream::connect(address).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    (own, task)
}

#[tokio::test]
async fn a_broken_connection_ends_streams_with_a_status() {
    let (leader, standby) = pair().await;
    let (address, wire) = wire_to(leader.address).await;
    standby.role.send_replace(ServingRole::Standby(Some(leader.leader_at(address))));
    let mut events = standby.watch().await;
    soon(events.message()).await.expect("no error").expect("no end");
    wire.abort();
    assert_eq!(end_of(&mut events).await, unavailable("LEADER_UNREACHABLE"));
}

#[tokio::test]
async fn health_distinguishes_serving_from_leading() {
    let (leader, standby) = pair().await;
    let health = |node: &TestCoordinator, service: &str| {
        let mut client = HealthClient::new(node.channel.clone());
        let request = HealthCheckRequest { service: service.to_owned() };
        async move { client.check(request).await.expect("known").into_inner().status() }
    };
    let becomes = async |node: &TestCoordinator, serving: bool, leading: bool| {
        let status = |is| if is { ServingStatus::Serving } else { ServingStatus::NotServing };
        let wanted = [("", serving), ("rug.admin.v1.Cluster", serving), (LEADER, leading)];
        soon(async {
            for (service, is) in wanted {
                while health(node, service).await != status(is) {
                    tokio::task::yield_now().await;
                }
            }
        })
        .await;
    };
    becomes(&leader, true, true).await;
    becomes(&standby, true, false).await;
    standby.role.send_replace(ServingRole::Standby(None));
    becomes(&standby, false, false).await;
    standby.role.send_replace(ServingRole::Standby(Some(standby.leader())));
    becomes(&standby, false, false).await;
    standby.role.send_replace(ServingRole::Leading);
    becomes(&standby, true, true).await;
    standby.role.send_replace(ServingRole::Stopping);
    becomes(&standby, false, false).await;
}
