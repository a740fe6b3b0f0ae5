//! Calls against a server that answers as it should not, and, where `OS_AUTH_URL` is set, against a real cloud.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router as WebRouter;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::*;

/// One answer of the server.
#[derive(Clone)]
enum Reply {
    /// Status, headers, body.
    Plain(u16, Vec<(&'static str, String)>, String),
    /// None, for this long.
    Late(Duration),
}

fn ok(body: Value) -> Reply {
    Reply::Plain(200, vec![("x-openstack-request-id", "req-of-test".to_owned())], body.to_string())
}

fn status(status: u16) -> Reply {
    Reply::Plain(status, vec![("x-openstack-request-id", "req-of-test".to_owned())], "{}".to_owned())
}

fn after(code: u16, wait: &str) -> Reply {
    Reply::Plain(code, vec![("retry-after", wait.to_owned())], "{}".to_owned())
}

#[derive(Default)]
struct Script {
    replies: Mutex<VecDeque<Reply>>,
    /// Method, path with query, token.
    asked: Mutex<Vec<(String, String, String)>>,
    tokens: AtomicUsize,
    /// How long tokens are good for, in seconds.
    life: AtomicUsize,
    refuses: AtomicUsize,
}

/// A cloud on one port: Keystone that works, and behind it a service that answers what it is told to.
struct TestCloud {
    script: Arc<Script>,
    port: u16,
}

impl TestCloud {
    async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let script = Arc::new(Script { replies: Mutex::new(replies.into_iter().collect()), ..Script::default() });
        script.life.store(3_600, Ordering::Relaxed);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let router = WebRouter::new().fallback(answer).with_state((Arc::clone(&script), port));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { script, port }
    }

    fn client(&self, change: impl FnOnce(&mut ClientConfig)) -> Client {
        client(self.port, change)
    }

    fn asked(&self) -> Vec<(String, String, String)> {
        self.script.asked.lock().expect("whole").clone()
    }

    fn tokens(&self) -> usize {
        self.script.tokens.load(Ordering::Relaxed)
    }
}

fn client(port: u16, change: impl FnOnce(&mut ClientConfig)) -> Client {
    let mut config = ClientConfig { request_timeout: Duration::from_secs(5), ..ClientConfig::default() };
    config.page_size = NonZeroU32::new(2).expect("not 0");
    change(&mut config);
    let cloud = Cloud {
        name: "test".into(),
        auth_url: format!("http://127.0.0.1:{port}/v3"),
        credentials: Credentials::Password {
            user: Named::Name("u".into(), Domain::Id("default".into())),
            password: Secret::new("p"),
            project: Named::Id("p".into()),
        },
        region: None,
        interface: "public".into(),
        endpoints: config.endpoints.clone(),
        ca: None,
        own: None,
    };
    Client::of(cloud, &config).expect("no TLS")
}

async fn answer(State((script, port)): State<(Arc<Script>, u16)>, request: Request) -> Response {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    if path == "/v3/auth/tokens" {
        if script.refuses.load(Ordering::Relaxed) > 0 {
            script.refuses.fetch_add(1, Ordering::Relaxed);
            return plain(
                401,
                &[],
                json!({"error": {"message": "The request you have made requires authentication."}}).to_string(),
            );
        }
        let number = script.tokens.fetch_add(1, Ordering::Relaxed) + 1;
        let life = script.life.load(Ordering::Relaxed) as u64;
        let end = humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + Duration::from_secs(life));
        let at = |kind: &str| {
            json!({"type": kind, "endpoints": [
            {"interface": "public", "region_id": "R", "url": format!("http://127.0.0.1:{port}/{kind}")}]})
        };
        let body = json!({"token": {"issued_at": "1970-01-01T00:00:00.000000Z", "expires_at": end.to_string(),
            "user": {"id": "u"}, "project": {"id": "p"}, "catalog": [at("network"), at("compute"), at("image")]}});
        return plain(201, &[("x-subject-token", format!("token-{number}"))], body.to_string());
    }
    let token =
        request.headers().get("x-auth-token").and_then(|token| token.to_str().ok()).unwrap_or_default().to_owned();
    script.asked.lock().expect("whole").push((request.method().to_string(), path.clone(), token));
    let reply = script.replies.lock().expect("whole").pop_front();
    match reply {
        Some(Reply::Plain(status, headers, body)) => plain(status, &headers, body),
        Some(Reply::Late(wait)) => {
            sleep(wait).await;
            plain(200, &[], "{}".to_owned())
        }
        None => plain(500, &[], "{}".to_owned()),
    }
}

fn plain(status: u16, headers: &[(&'static str, String)], body: String) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(body)).expect("valid")
}

fn id(text: &str) -> ResourceId {
    text.parse().expect("an id")
}

fn new_port() -> NewPort {
    NewPort { network: "n".into(), name: "p".into(), ..NewPort::default() }
}

fn port_body() -> Value {
    json!({"port": {"id": "p-1", "network_id": "n-1", "mac_address": "fa:16:3e:00:00:01"}})
}

#[tokio::test]
async fn a_call_waits_as_long_as_it_is_asked_to_and_not_longer_than_is_set() {
    let cloud = TestCloud::start([after(429, "1"), ok(port_body()), after(429, "60")]).await;
    let client = cloud.client(|config| config.max_retry_after = Duration::from_secs(2));
    let began = Instant::now();
    client.network().create_port(&new_port()).await.expect("made");
    assert!((Duration::from_millis(950)..Duration::from_secs(3)).contains(&began.elapsed()), "{:?}", began.elapsed());
    let error = client.network().create_port(&new_port()).await.expect_err("too long");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::Throttled, true));
    assert_eq!(cloud.asked().len(), 3);
}

#[tokio::test]
async fn only_what_reads_is_repeated_after_an_answer_that_says_nothing() {
    let cloud =
        TestCloud::start([status(500), after(503, "0"), ok(json!({"ports": []})), status(503), status(500)]).await;
    let client = cloud.client(|_| {});
    assert_eq!(client.network().ports(&[]).await.expect("listed"), []);
    let error = client.network().create_port(&new_port()).await.expect_err("not repeated");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::Unavailable, false));
    assert_eq!(error.request_id.as_deref(), Some("req-of-test"));
    assert!(client.network().delete_port(&id("p-1")).await.is_err());
    assert_eq!(cloud.asked().len(), 5);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_may_have_been_done() {
    let cloud = TestCloud::start([Reply::Late(Duration::from_secs(60))]).await;
    let client = cloud.client(|config| config.request_timeout = Duration::from_millis(800));
    let error = client.network().create_port(&new_port()).await.expect_err("no answer");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::TimedOut, false));
    assert_eq!(error.to_string(), "no answer within 800ms");
}

#[tokio::test]
async fn what_waits_for_its_turn_until_the_deadline_was_not_done() {
    let cloud = TestCloud::start([Reply::Late(Duration::from_secs(60))]).await;
    let client = cloud.client(|config| {
        config.request_timeout = Duration::from_secs(1);
        config.in_flight = NonZeroU32::MIN;
    });
    let (network, port) = (client.network(), new_port());
    let (first, second) = tokio::join!(network.create_port(&port), network.create_port(&port));
    assert_eq!(first.expect_err("no answer").kind, ErrorKind::TimedOut);
    let second = second.expect_err("no turn");
    assert_eq!((second.kind, second.is_without_effect()), (ErrorKind::Throttled, true));
    assert_eq!(cloud.asked().len(), 1);
}

#[tokio::test]
async fn a_token_that_has_ended_is_renewed_once() {
    let cloud = TestCloud::start([status(401), ok(port_body()), status(401), status(401)]).await;
    let client = cloud.client(|_| {});
    client.network().create_port(&new_port()).await.expect("made with the second token");
    assert_eq!(cloud.asked().iter().map(|(_, _, token)| token.as_str()).collect::<Vec<_>>(), ["token-1", "token-2"]);
    let error = client.network().create_port(&new_port()).await.expect_err("refused for good");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::Unauthenticated, true));
    assert_eq!((cloud.asked().len(), cloud.tokens()), (4, 3));
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end_and_by_one_caller_for_all() {
    let cloud = TestCloud::start((0..40).map(|_| ok(json!({"ports": []})))).await;
    cloud.script.life.store(2, Ordering::Relaxed);
    let client = cloud.client(|_| {});
    let all = async || {
        let network = client.network();
        let (a, b, c) = tokio::join!(network.ports(&[]), network.ports(&[]), network.ports(&[]));
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
    };
    all().await;
    assert_eq!(cloud.tokens(), 1);
    sleep(Duration::from_millis(1_700)).await;
    all().await;
    assert_eq!(cloud.tokens(), 2);
}

#[tokio::test]
async fn refused_credentials_are_not_tried_again_at_once() {
    let cloud = TestCloud::start([]).await;
    cloud.script.refuses.store(1, Ordering::Relaxed);
    let client = cloud.client(|_| {});
    for _ in 0..5 {
        let error = client.network().ports(&[]).await.expect_err("refused");
        assert_eq!(
            error.to_string(),
            "not authenticated: no token: The request you have made requires authentication."
        );
    }
    assert_eq!(cloud.script.refuses.load(Ordering::Relaxed), 2, "asked once");
}

#[tokio::test]
async fn nothing_is_sent_once_the_guard_does_not_let_it_pass() {
    let cloud = TestCloud::start([ok(json!({"ports": []}))]).await;
    let client = cloud.client(|_| {}).guarded(Arc::new(|| Err("the lease has run out".to_owned())));
    let error = client.network().create_port(&new_port()).await.expect_err("withheld");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::Withheld, true));
    assert!(client.network().ports(&[]).await.is_ok(), "what reads needs no right");
    assert_eq!(cloud.asked().len(), 1);
}

#[tokio::test]
async fn pages_are_followed_where_the_client_found_the_service_and_end() {
    let server = |id: &str| json!({"id": id, "status": "ACTIVE", "name": id, "created": "2026-11-22T11:28:31Z"});
    let link = |to: &str| json!([{"rel": "next", "href": format!("http://elsewhere:1/v2.1/servers/detail?limit=2&marker={to}")}]);
    let version = json!({"version": {"id": "v2.1", "version": "2.93", "min_version": "2.1"}});
    let pages = [
        ok(version.clone()),
        ok(json!({"servers": [server("a"), server("b")], "servers_links": link("b")})),
        ok(json!({"servers": [server("c")]})),
        ok(json!({"servers": [server("a"), server("b")], "servers_links": link("b")})),
        ok(json!({"servers": [server("b")], "servers_links": link("b")})),
        ok(json!({"servers": "none"})),
    ];
    let cloud = TestCloud::start(pages).await;
    let client = cloud.client(|_| {});
    let names: Vec<_> =
        client.compute().servers(&[]).await.expect("listed").into_iter().map(|server| server.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(cloud.asked()[2].1, "/compute/servers/detail?limit=2&marker=b");
    let error = client.compute().servers(&[]).await.expect_err("a circle");
    assert_eq!(error.kind, ErrorKind::Unreadable);
    assert_eq!(client.compute().servers(&[]).await.expect_err("no list").kind, ErrorKind::Unreadable);
}

#[tokio::test]
async fn a_nova_that_is_too_old_is_named() {
    let old = json!({"version": {"id": "v2.1", "version": "2.60", "min_version": "2.1"}});
    let cloud = TestCloud::start([ok(old)]).await;
    let error = cloud.client(|_| {}).compute().flavors().await.expect_err("too old");
    assert_eq!(error.to_string(), "Nova speaks 2.1 to 2.60, and Rug 2.64 to 2.79");
}

#[tokio::test]
async fn answers_of_other_types_are_refused_and_not_trusted() {
    for body in [
        "",
        "nonsense",
        "[]",
        "{}",
        r#"{"port": null}"#,
        r#"{"port": {"id": "../x", "network_id": "n", "mac_address": "m"}}"#,
    ] {
        let reply = Reply::Plain(201, vec![], body.to_owned());
        let error =
            TestCloud::start([reply]).await.client(|_| {}).network().create_port(&new_port()).await.expect_err(body);
        assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::Unreadable, false), "{body}");
    }
}

/// Answers with these bytes and closes the connection, `times` times; tokens as they should be.
async fn raw_service(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                _ = stream.read(&mut buffer).await;
                _ = stream.write_all(&bytes).await;
            });
        }
    });
    port
}

async fn against_raw(bytes: Vec<u8>) -> Error {
    let cloud = TestCloud::start([]).await;
    let raw = raw_service(bytes).await;
    let client = cloud.client(|config| {
        config.endpoints.insert(Service::Network, format!("http://127.0.0.1:{raw}"));
    });
    client.network().create_port(&new_port()).await.expect_err("no good answer")
}

#[tokio::test]
async fn an_answer_that_breaks_off_leaves_it_open_what_was_done() {
    for bytes in
        ["", "HTTP/1.1 201 Cre", "HTTP/1.1 201 Created\r\ncontent-length: 500\r\n\r\n{\"port\": {", "SSH-2.0-x\r\n"]
    {
        let error = against_raw(bytes.as_bytes().to_vec()).await;
        assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::NoAnswer, false), "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn a_huge_answer_is_not_read_to_its_end() {
    let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 400000000\r\n\r\n".to_vec();
    bytes.resize(40 * 1024 * 1024, b'x');
    let error = against_raw(bytes).await;
    assert_eq!(error.kind, ErrorKind::Unreadable, "{error}");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_has_done_nothing() {
    let cloud = TestCloud::start([]).await;
    // Reserved, and not listening.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = listener.local_addr().expect("bound").port();
    drop(listener);
    let client = cloud.client(|config| {
        config.request_timeout = Duration::from_secs(2);
        config.endpoints.insert(Service::Network, format!("http://127.0.0.1:{closed}"));
    });
    let error = client.network().create_port(&new_port()).await.expect_err("refused");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::NoConnection, true), "{error}");
    let nowhere = self::client(closed, |config| config.request_timeout = Duration::from_secs(2));
    let error = nowhere.network().create_port(&new_port()).await.expect_err("no token");
    assert_eq!((error.kind, error.is_without_effect()), (ErrorKind::NoConnection, true), "{error}");
}

/// Everything that is used, against a real cloud, as `make test-openstack` starts one. Says nothing where there is none.
#[tokio::test]
async fn a_real_cloud_answers_as_it_is_read() {
    if std::env::var("RUG_TEST_OPENSTACK").is_err() {
        return;
    }
    let config = ClientConfig { page_size: NonZeroU32::new(2).expect("not 0"), ..ClientConfig::default() };
    let client = Client::new(&config).expect("OS_* are set");
    let (compute, network) = (client.compute(), client.network());
    assert!(client.identity().await.expect("a token").roles.contains(&"admin".to_owned()));
    assert_eq!(compute.version().await.expect("answered"), "2.79");
    assert!(network.extensions().await.expect("answered").contains_key("router"));
    let image = client.image().find("fake").await.expect("the lab has it");
    assert_eq!(client.image().find(image.id.as_str()).await.expect("by id"), image);
    assert_eq!(client.image().find("no such").await.expect_err("not there").kind, ErrorKind::NotFound);
    let flavors = compute.flavors().await.expect("listed");
    let flavor = flavors.iter().find(|flavor| flavor.name == "lab.tiny").expect("the lab has it");
    let networks = network.networks(&[]).await.expect("listed");
    let net = networks.iter().find(|net| net.name == "rug-client-test").expect("made by the caller");
    let name = format!("rug-client-test-{}", std::process::id());
    let wanted =
        NewPort { network: net.id.to_string(), name: name.clone(), device_owner: "network:rug".into(), ..new_port() };
    let wanted = NewPort { port_security: Some(false), security_groups: Some(vec![]), ..wanted };
    let mut ports = Vec::new();
    for _ in 0..3 {
        ports.push(network.create_port(&wanted).await.expect("made"));
    }
    let listed = network.ports(&[("name", &name)]).await.expect("listed in pages");
    assert_eq!(listed.len(), 3);
    assert_eq!((listed[0].port_security_enabled, listed[0].device_owner.as_str()), (Some(false), "network:rug"));
    network.set_tags(Resource::Ports, &ports[0].id, &["rug"]).await.expect("set");
    assert_eq!(network.port(&ports[0].id).await.expect("read").expect("there").tags, ["rug"]);
    let group = compute.create_server_group(&name, Policy::SoftAntiAffinity).await.expect("made");
    assert!(compute.server_groups().await.expect("listed").iter().any(|known| known.id == group.id));
    let server = NewServer {
        name: name.clone(),
        image: image.id.to_string(),
        flavor: flavor.id.clone(),
        ports: vec![ports[0].id.clone()],
        metadata: [("rug_cluster".to_owned(), "test".to_owned())].into(),
        user_data: b"hello".to_vec(),
        config_drive: true,
        group: Some(group.id.clone()),
        ..NewServer::default()
    };
    let server = compute.create_server(&server).await.expect("accepted");
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let found = compute.server(&server).await.expect("read").expect("there");
        if found.status == ServerStatus::Active {
            assert_eq!(found.metadata["rug_cluster"], "test");
            break;
        }
        assert!(found.status == ServerStatus::Build && Instant::now() < until, "{found:?}");
        sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(compute.servers_named(&name).await.expect("listed").len(), 1);
    compute.set_metadata(&server, &[("rug_token".to_owned(), "1/2".to_owned())].into()).await.expect("written");
    compute.attach(&server, &ports[1].id).await.expect("plugged");
    let plugged = compute.interfaces(&server).await.expect("listed");
    assert!(plugged.iter().any(|interface| interface.port_id == ports[1].id) && plugged.len() == 2, "{plugged:?}");
    compute.detach(&server, &ports[1].id).await.expect("accepted");
    assert!(!compute.console(&server, 10).await.expect("answered").is_empty());
    compute.delete_server(&server).await.expect("accepted");
    while compute.server(&server).await.expect("read").is_some() {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(500)).await;
    }
    compute.delete_server(&server).await.expect("deleted already");
    compute.delete_server_group(&group.id).await.expect("deleted");
    for port in ports {
        network.delete_port(&port.id).await.expect("deleted");
        network.delete_port(&port.id).await.expect("deleted already");
    }
}
