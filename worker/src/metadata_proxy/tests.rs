//! The proxy as appliances see it, before a service of HTTP that plays Nova's part and a directory that plays Neutron's.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as Asked;
use axum::response::IntoResponse as _;
use axum::routing::any;
use futures::stream;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::DropGuard;

use super::guests::tests::{Listed, PROJECT, SERVER, port};
use super::*;
use crate::gate::SharedGate;
use crate::held::tests::{router, standing};

/// The secret `Jefe` over [`SERVER`], as `printf %s 11111111-2222-4333-8444-555555555555 | openssl dgst -sha256 -hmac Jefe` says.
const SIGNATURE: &str = "e6ebee0c56e9f5690467d8a7aad27287400bf96be112375ddd95bd10c6f60dfe";

/// The proxy, and what is around it.
struct World {
    at: SocketAddr,
    held: HeldInstances,
    gate: Arc<SharedGate>,
    listed: Arc<std::sync::atomic::AtomicUsize>,
    /// Requests wait at Nova for it.
    turns: Arc<Semaphore>,
    _ended_with_this: DropGuard,
}

/// What Nova was asked.
async fn mirror(turns: Arc<Semaphore>, request: Asked) -> axum::response::Response {
    let (parts, body) = request.into_parts();
    match parts.uri.path() {
        "/slow" => turns.acquire().await.expect("open").forget(),
        "/never" => std::future::pending().await,
        "/long" => return vec![b'x'; 100_000].into_response(),
        "/endless" => {
            let chunks = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 1_000]));
            return Body::from_stream(chunks).into_response();
        }
        "/forbidden" => return (StatusCode::FORBIDDEN, "Invalid proxy request signature.").into_response(),
        "/broken" => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => {}
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
    let headers: Vec<_> =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
    let seen = json!({"method": parts.method.as_str(), "target": parts.uri.to_string(), "headers": headers, "body": body.len()});
    let back = [("content-type", "text/x-mirror"), ("x-instance-id", "not for the server"), ("connection", "close")];
    (back, seen.to_string()).into_response()
}

impl World {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self::with(Listed { ports: vec![port("id-int", "10.0.0.5", json!({}))], ..Listed::default() }, change).await
    }

    async fn with(listed: Listed, change: impl FnOnce(&mut Config)) -> Self {
        runtime::tls::install_provider();
        let (nova, turns) = (TcpListener::bind("127.0.0.1:0").await.expect("a free port"), Arc::new(Semaphore::new(0)));
        let at_nova = Arc::clone(&turns);
        let mut config = Config { nova: format!("http://{}", nova.local_addr().expect("bound")), ..Config::default() };
        let routes = Router::new().fallback(any(move |request| mirror(Arc::clone(&at_nova), request)));
        tokio::spawn(async move { axum::serve(nova, routes).await });
        change(&mut config);
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("secret");
        std::fs::write(&file, "Jefe\n").expect("written");
        let stop = CancellationToken::new();
        let secret = SharedSecret::follow(file, stop.clone()).expect("a secret");
        let (held, gate) = standing();
        let count = Arc::clone(&listed.asked);
        let proxy = Proxy::new(&config, Box::new(listed), held.clone(), secret).expect("valid settings");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = listener.local_addr().expect("bound");
        tokio::spawn(MetadataProxy { listener, proxy: Arc::new(proxy) }.serve(stop.clone()));
        let world = Self { at, held, gate, listed: count, turns, _ended_with_this: stop.drop_guard() };
        world.hold(1, [127, 0, 0, 1].into());
        world
    }

    /// An appliance has an instance there.
    fn hold(&self, appliance: u128, address: IpAddr) {
        self.held.note(ApplianceId::from_u128(appliance), &router("openstack"), [address].into_iter());
    }

    fn ask(&self, path: &str) -> reqwest::RequestBuilder {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let asked = client.get(format!("http://{}{path}", self.at));
        asked.header("X-Forwarded-For", "10.0.0.5").header("X-Neutron-Network-ID", "id-int")
    }

    async fn status(&self, path: &str) -> (u16, String) {
        read(self.ask(path)).await
    }
}

async fn read(request: reqwest::RequestBuilder) -> (u16, String) {
    let answer = request.send().await.expect("it answers");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

#[tokio::test]
async fn nova_is_asked_with_the_proof_of_who_asks_and_its_answer_goes_back() {
    let world = World::new(|_| {}).await;
    let asked =
        world.ask("/latest/meta-data/instance-id?a=b").header("X-Instance-ID", "other").header("X_Tenant_ID", "other");
    let answer = asked.header("Accept", "text/*").send().await.expect("it answers");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/x-mirror");
    assert!(!answer.headers().contains_key("x-instance-id"));
    let seen: Value = answer.json().await.expect("JSON");
    assert_eq!((&seen["method"], &seen["target"]), (&json!("GET"), &json!("/latest/meta-data/instance-id?a=b")));
    let headers: Vec<(String, String)> = serde_json::from_value(seen["headers"].clone()).expect("pairs");
    let of = |name: &str| {
        let all: Vec<_> =
            headers.iter().filter(|(n, _)| n.replace('_', "-") == name).map(|(_, v)| v.as_str()).collect();
        all.join("|")
    };
    assert_eq!(of("x-instance-id"), SERVER);
    assert_eq!(of("x-tenant-id"), PROJECT);
    assert_eq!(of("x-forwarded-for"), "10.0.0.5");
    assert_eq!(of("x-instance-id-signature"), SIGNATURE);
    assert_eq!((of("accept").as_str(), of("x-neutron-network-id").as_str()), ("text/*", ""));
    // A password that a server sends.
    let seen = read(world.ask("/openstack/latest/password").body("x")).await;
    assert!(seen.1.contains(r#""method":"GET""#), "{seen:?}");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let post = client.post(format!("http://{}/openstack/latest/password", world.at)).body("secret");
    let seen = read(post.header("X-Forwarded-For", "10.0.0.5").header("X-Neutron-Network-ID", "id-int")).await;
    assert!(seen.1.contains(r#""method":"POST""#) && seen.1.contains(r#""body":6"#), "{seen:?}");
    let head = client.head(format!("http://{}/long", world.at)).header("X-Forwarded-For", "10.0.0.5");
    let head = head.header("X-Neutron-Network-ID", "id-int").send().await.expect("it answers");
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &HeaderValue::from(100_000)));
    assert_eq!(world.listed.load(Ordering::Relaxed), 1, "Neutron was asked once");
}

#[tokio::test]
async fn only_appliances_that_are_held_here_may_ask_and_only_for_networks_behind_them() {
    let world = World::new(|_| {}).await;
    let again = |name: &str, value: &str| {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let asked = client.get(format!("http://{}/", world.at)).header("X-Forwarded-For", "10.0.0.5");
        read(asked.header(name, value))
    };
    let (status, why) = again("X-Neutron-Network-ID", "id-ext").await;
    assert_eq!((status, why.as_str()), (403, "network id-ext is none that the appliance serves\n"));
    assert_eq!(again("X-Neutron-Network-ID", "id-other").await.0, 403);
    assert_eq!(again("X-Neutron-Router-ID", &ApplianceId::from_u128(2).to_string()).await.0, 403);
    assert_eq!(again("X-Neutron-Router-ID", &ApplianceId::from_u128(1).to_string()).await.0, 200);
    assert_eq!(again("X-Other", "x").await.0, 400);
    world.hold(2, [127, 0, 0, 1].into());
    assert_eq!(world.status("/").await.0, 403, "two claim the address");
    world.held.forget(ApplianceId::from_u128(1));
    world.held.forget(ApplianceId::from_u128(2));
    let (status, why) = world.status("/").await;
    assert_eq!((status, why.as_str()), (403, "no instance that this worker holds has the address 127.0.0.1\n"));
    world.gate.shut();
    let answer = world.ask("/").send().await.expect("it answers");
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &HeaderValue::from(5)));
}

#[tokio::test]
async fn a_nova_that_is_down_slow_or_odd_is_told_apart() {
    let world = World::new(|config| config.timeout = Duration::from_millis(300)).await;
    assert_eq!(world.status("/never").await, (504, "no answer in time\n".to_owned()));
    assert_eq!(world.status("/forbidden").await.0, 403);
    assert_eq!(world.status("/broken").await.0, 500);
    let free = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a free port");
    let down = World::new(|config| config.nova = format!("http://{free}")).await;
    assert_eq!(down.status("/").await, (502, "the service does not answer\n".to_owned()), "and not where it is");
    let broken = World::with(Listed { fails: true, ..Listed::default() }, |_| {}).await;
    assert_eq!(broken.status("/").await.0, 502);
    let nobody = World::with(Listed::default(), |_| {}).await;
    assert_eq!(nobody.status("/").await, (404, "no server has the address 10.0.0.5 there\n".to_owned()));
}

#[tokio::test]
async fn what_is_too_long_or_too_much_is_refused() {
    let bytes = std::num::NonZeroU32::new(1_000).expect("not 0");
    let world = World::new(|config| {
        (config.max_request_bytes, config.max_response_bytes) = (bytes, bytes);
        config.in_flight_per_appliance = std::num::NonZeroU32::new(2).expect("not 0");
    })
    .await;
    for path in ["/long", "/endless"] {
        assert_eq!(world.status(path).await.0, 502, "{path}");
    }
    assert_eq!(read(world.ask("/").body(vec![0; 1_000])).await.0, 200);
    assert_eq!(read(world.ask("/").body(vec![0; 1_001])).await.0, 413);
    // One whose length is not told before.
    let mut stream = TcpStream::connect(world.at).await.expect("it listens");
    let head = "POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.5\r\nX-Neutron-Network-ID: id-int\r\n\
                Transfer-Encoding: chunked\r\n\r\n400\r\n";
    stream.write_all(head.as_bytes()).await.expect("open");
    stream.write_all(&[b'x'; 0x400]).await.expect("open");
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("it answers");
    assert_eq!(&status, b"HTTP/1.1 413");

    // Two of one appliance wait: a third one is told to come again. Others are not held up.
    let slow = [tokio::spawn(read(world.ask("/slow"))), tokio::spawn(read(world.ask("/slow")))];
    let busy = loop {
        let answer = world.ask("/").send().await.expect("it answers");
        if answer.status() != StatusCode::OK {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (503, &HeaderValue::from(1)));
    world.turns.add_permits(2);
    for slow in slow {
        assert_eq!(slow.await.expect("ends").0, 200);
    }
    assert_eq!(world.status("/").await.0, 200);
}

#[tokio::test]
async fn bytes_that_are_no_request_end_their_connection_and_nothing_else() {
    let world = World::new(|_| {}).await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Forwarded-For: \xff\xfe\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(world.at).await.expect("it listens");
        stream.write_all(bytes).await.expect("open");
        stream.shutdown().await.expect("open");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(world.status("/").await.0, 200);
}
