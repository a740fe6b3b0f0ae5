//! Who may do what, over real connections with real certificates.

use std::collections::BTreeMap;

use common::access::Role;
use futures::StreamExt;
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use proto::worker::v1::session_client::SessionClient;
use proto::worker::v1::session_server::SessionServer;
use proto::worker::v1::{self as session, worker_message};
use runtime::channel::Target;
use runtime::tls::testing::Authority;
use runtime::tls::{self, ClientTls, ServerTls};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tonic::metadata::MetadataValue;
use tonic_prost::ProstCodec;

use super::*;
use crate::access::permission::{self, CALLS, Permission};
use crate::sessions::{Input, Sessions};
use wire::runs_client::RunsClient;

/// A served instance that knows roles, with a leader that commits changes at once and answers nothing else.
struct RoleServer {
    ca: Authority,
    address: String,
    actors: mpsc::UnboundedReceiver<String>,
    /// What sessions tell the leader.
    leader: mpsc::Receiver<(common::Timestamp, Input)>,
    _dir: TempDir,
}

impl RoleServer {
    async fn start() -> Self {
        tls::install_provider();
        let (ca, dir) = (Authority::new("ca"), tempfile::tempdir().expect("a folder"));
        let own = ca.issue("c1", &["127.0.0.1", "rug://coordinator/c1"]).write(dir.path(), &ca);
        let server_tls = ServerTls::load(&own).expect("good files");
        let catalog = Arc::new(Catalog::new(Config::default()));
        let (commands, received) = commands::channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("https://{}", listener.local_addr().expect("it is bound"));
        let services = AdminServices::new(Arc::clone(&catalog), commands, Arc::new(Ten));
        let (to_leader, leader) = mpsc::channel(16);
        let (stopping, stop_seen) = watch::channel(false);
        let routes = services.routes().expect("descriptors are built in");
        let routes = routes.add_service(SessionServer::new(Sessions::new(to_leader, stop_seen)));
        let calls = ServiceBuilder::new().layer(CallLayer::new(Trace)).layer(open()).service(routes);
        tokio::spawn(async move {
            let _kept = stopping;
            serve_listener(crate::grpc::Listener::Tcp(listener), server_tls, calls).await;
        });
        let (actor, actors) = mpsc::unbounded_channel();
        tokio::spawn(obey(catalog, received, actor));
        Self { ca, address, actors, leader, _dir: dir }
    }

    /// A connection of somebody whose certificate has these names.
    async fn connect(&self, name: &str, names: &[&str]) -> Channel {
        let dir = tempfile::tempdir().expect("a folder");
        let config = self.ca.issue(name, names).write(dir.path(), &self.ca);
        let client = ClientTls::load(&config).expect("good files");
        let target = Target::new(&self.address, client.as_ref()).expect("an address");
        target.connect().await.expect("let in")
    }

    async fn runs(&self, name: &str, names: &[&str]) -> RunsClient<Channel> {
        RunsClient::new(self.connect(name, names).await)
    }

    async fn appliances(&self, name: &str, names: &[&str]) -> AppliancesClient<Channel> {
        AppliancesClient::new(self.connect(name, names).await)
    }
}

/// Commits changes, and drops all other commands unanswered.
async fn obey(catalog: Arc<Catalog>, mut received: CommandQueue, actor: mpsc::UnboundedSender<String>) {
    let mut admission = Admission::new(catalog, Term::new(1), &[], received.settled());
    while let Some(command) = received.recv().await {
        if let Command::Change { mutation, reply, .. } = command {
            let _ = actor.send(mutation.actor.clone());
            let _ = reply.send(carry_out(&mut admission, &mutation));
        }
    }
}

/// Every method that is served, by its path.
fn methods() -> BTreeMap<String, MethodDescriptorProto> {
    let sets = [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = BTreeMap::new();
    for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).expect("built in").file) {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                methods.insert(path, method.clone());
            }
        }
    }
    methods
}

/// Makes a call with an empty message.
async fn make(channel: &Channel, path: &str, method: &MethodDescriptorProto) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("the server goes on");
    let path = path.parse().expect("a path");
    let codec = ProstCodec::<(), ()>::default();
    let mut request = Request::new(());
    request.set_timeout(Duration::from_secs(20));
    match (method.client_streaming(), method.server_streaming()) {
        (false, false) => grpc.unary(request, path, codec).await.map(drop),
        (false, true) => grpc.server_streaming(request, path, codec).await.map(drop),
        (true, true) => grpc.streaming(Request::new(tokio_stream::empty()), path, codec).await.map(drop),
        (true, false) => grpc.client_streaming(Request::new(tokio_stream::empty()), path, codec).await.map(drop),
    }
}

#[tokio::test]
async fn every_call_answers_every_role_as_the_table_says() {
    let server = RoleServer::start().await;
    let (methods, mut made) = (methods(), 0);
    let who = [
        Some("rug://role/admin"),
        Some("rug://role/operator"),
        Some("rug://editor/web"),
        Some("rug://role/viewer"),
        Some("rug://worker/w1"),
        Some("rug://coordinator/c9"),
        None,
    ];
    for uri in who {
        let names: Vec<_> = uri.into_iter().collect();
        let channel = server.connect("somebody", &names).await;
        let role: Option<Role> = uri.map(|uri| {
            let text = uri.trim_start_matches("rug://").trim_start_matches("role/").replacen('/', ":", 1);
            text.parse().expect("a role")
        });
        for (path, method) in &methods {
            let call = permission::of_path(path).expect("every call has a row");
            let open = call.permission == Permission::Health;
            let allowed = open || role.as_ref().is_some_and(|role| permission::has(role, call.permission));
            let answer = make(&channel, path, method).await;
            let refused = answer.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied);
            assert_eq!(refused, !allowed, "{uri:?} {path}: {answer:?}");
            if let Err(status) = answer.as_ref().map_err(|status| status.message()).map(|()| "").map_err(str::to_owned)
                && refused
            {
                let wanted = if uri.is_some() { "its roles are: " } else { "no rule gives a role to the certificate" };
                assert!(status.contains(wanted) && status.contains("somebody"), "{status}");
            }
            made += 1;
        }
    }
    assert_eq!(made, who.len() * CALLS.len());
    let channel = server.connect("somebody", &["rug://role/admin"]).await;
    let method = methods.values().next().expect("there are some");
    let unknown = make(&channel, "/rug.admin.v1.Appliances/Steal", method).await.expect_err("there is none");
    assert_eq!(unknown.code(), Code::Unimplemented);
}

fn owned(tenant: &str, name: &str) -> wire::CreateApplianceRequest {
    let mut appliance = wire::Appliance { tenant: tenant.into(), ..custom(name) };
    if let Some(wire::spec::Kind::Custom(custom)) = appliance.spec.as_mut().and_then(|s| s.kind.as_mut()) {
        custom.env.insert("PASSWORD".into(), "s3cret".into());
    }
    wire::CreateApplianceRequest { appliance: Some(appliance), ..Default::default() }
}

fn password(appliance: &wire::Appliance) -> String {
    match appliance.spec.as_ref().and_then(|s| s.kind.as_ref()) {
        Some(wire::spec::Kind::Custom(custom)) => custom.env["PASSWORD"].clone(),
        other => panic!("{other:?}"),
    }
}

fn in_tenant(tenant: &str, name: &str) -> Option<wire::ApplianceRef> {
    let name = wire::TenantName { tenant: tenant.into(), name: name.into() };
    Some(wire::ApplianceRef { by: Some(wire::appliance_ref::By::Name(name)) })
}

fn with_id(id: &str) -> Option<wire::ApplianceRef> {
    Some(wire::ApplianceRef { by: Some(wire::appliance_ref::By::Id(id.into())) })
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("refused").code()
}

#[tokio::test]
async fn an_editor_sees_and_changes_its_tenants_only() {
    let server = RoleServer::start().await;
    let mut admin = server.appliances("root", &["rug://role/admin"]).await;
    admin.create(owned("a", "web")).await.expect("in order");
    let other = admin.create(owned("b", "web")).await.expect("in order").into_inner().id;
    let mut editor = server.appliances("jane", &["rug://editor/a"]).await;
    editor.create(owned("a", "db")).await.expect("its own tenant");

    // By id it does not exist; a tenant that is named is refused.
    let get = |appliance| wire::GetApplianceRequest { appliance };
    assert_eq!(code(editor.get(get(with_id(&other))).await), Code::NotFound);
    assert_eq!(code(editor.get(get(in_tenant("b", "web"))).await), Code::PermissionDenied);
    assert_eq!(code(editor.get(get(in_tenant("b", "none"))).await), Code::PermissionDenied);
    assert_eq!(code(editor.create(owned("b", "mine")).await), Code::PermissionDenied);
    let explain = wire::ExplainApplianceRequest { appliance: with_id(&other) };
    assert_eq!(code(editor.explain(explain).await), Code::NotFound);
    let check = wire::CheckApplianceRequest { appliance: with_id(&other) };
    assert_eq!(code(editor.check(check).await), Code::NotFound);
    let rebuild = wire::RebuildApplianceRequest { appliance: with_id(&other), ..Default::default() };
    assert_eq!(code(editor.rebuild(rebuild).await), Code::NotFound);
    let delete = |allow_missing| wire::DeleteApplianceRequest {
        appliance: with_id(&other),
        expected_generation: 77,
        allow_missing,
        ..Default::default()
    };
    assert_eq!(code(editor.delete(delete(false)).await), Code::NotFound);
    assert!(editor.delete(delete(true)).await.expect("as if it was missing").into_inner().deleting);
    let update = wire::UpdateApplianceRequest {
        appliance: Some(wire::Appliance { id: other.clone(), tenant: "b".into(), ..custom("web") }),
        ..Default::default()
    };
    assert_eq!(code(editor.update(update).await), Code::NotFound);
    assert!(!admin.get(get(with_id(&other))).await.expect("it is still there").into_inner().deleting);

    let list = editor.list(wire::ListAppliancesRequest::default()).await.expect("in order").into_inner();
    let names: Vec<_> = list.appliances.iter().map(|a| format!("{}/{}", a.tenant, a.name)).collect();
    assert_eq!((names, list.total_size), (vec!["a/db".to_owned(), "a/web".to_owned()], 2));
    let filter = Some(wire::ApplianceFilter { tenant: "b".into(), ..Default::default() });
    let list = wire::ListAppliancesRequest { filter, ..Default::default() };
    assert_eq!(code(editor.list(list).await), Code::PermissionDenied);
    let mut runs = server.runs("jane", &["rug://editor/odd"]).await;
    let found = runs.list(wire::ListRunsRequest::default()).await.expect("in order").into_inner().runs;
    assert!(found.len() == 5 && found.iter().all(|run| run.tenant == "odd"), "{found:?}");
    let filter = |appliance: &str| wire::ListRunsRequest {
        filter: Some(wire::RunFilter { appliance: appliance.into(), ..wire::RunFilter::default() }),
        ..wire::ListRunsRequest::default()
    };
    assert_eq!(code(runs.list(filter("even/web")).await), Code::PermissionDenied);
    assert_eq!(code(runs.list(filter("nonsense")).await), Code::InvalidArgument);
    let events = editor.watch(wire::WatchAppliancesRequest::default()).await.expect("in order").into_inner();
    admin.create(owned("b", "more")).await.expect("in order");
    editor.create(owned("a", "more")).await.expect("in order");
    let seen: Vec<_> =
        events.take(4).map(|e| e.expect("an event").appliance.unwrap_or_default().tenant).collect().await;
    assert_eq!(seen, ["a", "a", "", "a"]);
    // The other side of a conflict is not named.
    let with_port = |tenant: &str| {
        let mut request = owned(tenant, "port");
        let spec = request.appliance.as_mut().and_then(|a| a.spec.as_mut());
        if let Some(wire::spec::Kind::Custom(custom)) = spec.and_then(|s| s.kind.as_mut()) {
            custom.port = Some(8080);
        }
        request
    };
    admin.create(with_port("b")).await.expect("in order");
    let problem = format!("{:?}", editor.create(with_port("a")).await.expect_err("taken").get_error_details());
    assert!(problem.contains("an appliance of another tenant") && !problem.contains("b/port"), "{problem}");
}

#[tokio::test]
async fn values_of_variables_are_shown_to_whoever_could_change_them() {
    let mut server = RoleServer::start().await;
    let mut admin = server.appliances("root", &["rug://role/admin"]).await;
    admin.create(owned("a", "web")).await.expect("in order");
    assert!(server.actors.recv().await.expect("a change").starts_with("root at 127.0.0.1:"));
    let get = || wire::GetApplianceRequest { appliance: in_tenant("a", "web") };
    for (names, expected) in [
        (vec!["rug://role/admin"], "s3cret"),
        (vec!["rug://editor/a"], "s3cret"),
        (vec!["rug://editor/b", "rug://role/viewer"], "<hidden>"),
        (vec!["rug://role/viewer"], "<hidden>"),
        (vec!["rug://role/operator"], "<hidden>"),
    ] {
        let mut client = server.appliances("somebody", &names).await;
        assert_eq!(password(&client.get(get()).await.expect("it may read").into_inner()), expected, "{names:?}");
        let list = client.list(wire::ListAppliancesRequest::default()).await.expect("it may read").into_inner();
        assert!(list.appliances.iter().all(|a| password(a) == expected), "{names:?}");
        let mut events = client.watch(wire::WatchAppliancesRequest::default()).await.expect("it may read").into_inner();
        if let Some(appliance) = events.message().await.expect("no error").expect("no end").appliance {
            assert_eq!(password(&appliance), expected, "{names:?}");
        }
    }
    // What was read without its secrets is not stored in their place.
    let mut hidden = owned("a", "web").appliance.expect("made so");
    if let Some(wire::spec::Kind::Custom(custom)) = hidden.spec.as_mut().and_then(|s| s.kind.as_mut()) {
        custom.env.insert("PASSWORD".into(), "<hidden>".into());
    }
    let update = wire::UpdateApplianceRequest { appliance: Some(hidden), ..Default::default() };
    let status = admin.update(update).await.expect_err("refused");
    let field = status.get_error_details().bad_request().expect("named").field_violations[0].field.clone();
    assert_eq!(field, "appliance.spec.custom.env[PASSWORD]");
    // Operators replace instances, but by nothing else.
    let mut operator = server.appliances("op", &["rug://role/operator"]).await;
    let rebuild = |image: &str| wire::RebuildApplianceRequest {
        appliance: in_tenant("a", "web"),
        image: image.into(),
        ..Default::default()
    };
    assert_eq!(password(&operator.rebuild(rebuild("")).await.expect("in order").into_inner()), "<hidden>");
    assert_eq!(code(operator.rebuild(rebuild("evil")).await), Code::PermissionDenied);
}

#[tokio::test]
async fn only_a_coordinator_names_another_caller_and_only_under_its_own_name() {
    let mut server = RoleServer::start().await;
    let named = |by: &'static str, roles: Option<&'static str>| {
        let mut request = Request::new(owned("a", "web"));
        let headers = request.metadata_mut();
        headers.insert("rug-forwarded-by", MetadataValue::from_static(by));
        headers.insert("rug-forwarded-for", MetadataValue::from_static("the king"));
        if let Some(roles) = roles {
            headers.insert("rug-forwarded-roles", MetadataValue::from_static(roles));
        }
        request
    };
    let mut coordinator = server.appliances("c2", &["rug://coordinator/c2"]).await;
    for refused in [
        named("c3", Some("admin")),
        named("c2", None),
        named("c2", Some("viewer")),
        named("c2", Some("coordinator:c2")),
        named("c2", Some("")),
        named("c2", Some("king")),
        Request::new(owned("a", "web")),
    ] {
        assert_eq!(code(coordinator.create(refused).await), Code::PermissionDenied);
    }
    for uri in ["rug://worker/c2", "rug://role/viewer"] {
        let mut other = server.appliances("w1", &[uri]).await;
        assert_eq!(code(other.create(named("c2", Some("admin"))).await), Code::PermissionDenied);
    }
    assert!(server.actors.try_recv().is_err(), "none of them reached the leader");
    coordinator.create(named("c2", Some("editor:a"))).await.expect("an editor asked");
    let actor = server.actors.recv().await.expect("a change");
    assert!(actor.starts_with("the king by way of c2 (c2 at 127.0.0.1:"), "{actor}");
    // Others keep their own name.
    let mut admin = server.appliances("root", &["rug://role/admin"]).await;
    let mut request = named("c2", Some("viewer"));
    request.get_mut().appliance = owned("a", "other").appliance;
    admin.create(request).await.expect("it is an admin");
    let actor = server.actors.recv().await.expect("a change");
    assert!(actor.starts_with("root at 127.0.0.1:") && !actor.contains("king"), "{actor}");
}

#[tokio::test]
async fn a_worker_joins_as_itself_only() {
    let mut server = RoleServer::start().await;
    let hello = |worker: &str| {
        let profile = session::Profile {
            weight: 1,
            lease: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            host: "h".into(),
            drivers: vec!["process".into()],
            ..Default::default()
        };
        let hello = session::Hello { worker: worker.into(), profile: Some(profile), ..Default::default() };
        let envelope = session::Envelope { stream: 1, ..Default::default() };
        let body = Some(worker_message::Body::Hello(hello));
        tokio_stream::once(session::WorkerMessage { envelope: Some(envelope), body })
    };
    let mut client = SessionClient::new(server.connect("worker-2", &["rug://worker/worker-2"]).await);
    let mut stream = client.open(hello("worker-1")).await.expect("it is a worker").into_inner();
    let status = stream.message().await.expect_err("not this one");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("`worker-1` is none of the workers"), "{status:?}");
    assert!(status.message().contains("worker:worker-2"), "{status:?}");
    let _stream = client.open(hello("worker-2")).await.expect("it is a worker").into_inner();
    let told = tokio::time::timeout(Duration::from_secs(20), server.leader.recv()).await.expect("in time");
    let Some((_, Input::Hello { hello, .. })) = told else { panic!("{told:?}") };
    assert_eq!(hello.worker.as_str(), "worker-2", "nothing of the refused one reached the leader");
}
