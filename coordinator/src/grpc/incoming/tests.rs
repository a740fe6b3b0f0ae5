//! A server with TLS, and clients that may and may not connect.

use runtime::channel::Target;
use runtime::tls::testing::{Authority, Issued};
use runtime::tls::{self, ClientTls};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::*;
use crate::grpc::connections::MAX_PENDING;
use crate::grpc::serve_listener;

const DEADLINE: Duration = Duration::from_secs(20);

/// Sends the peer of each request to the test.
struct PeerRecorder(mpsc::Sender<PeerInfo>);

#[tonic::async_trait]
impl Health for PeerRecorder {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned().expect("every request knows its peer");
        self.0.send(peer).await.expect("the test goes on");
        Ok(Response::new(HealthCheckResponse::default()))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// A server, and the folder its files are in.
struct TlsServer {
    dir: TempDir,
    address: SocketAddr,
    peers: mpsc::Receiver<PeerInfo>,
}

impl TlsServer {
    async fn with(tls: Option<(&Authority, &Issued)>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let tls = tls.and_then(|(ca, issued)| ServerTls::load(&issued.write(dir.path(), ca)).expect("good files"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (told, peers) = mpsc::channel(4);
        let server = Routes::new(HealthServer::new(PeerRecorder(told)));
        tokio::spawn(serve_listener(Listener::Tcp(listener), tls, server));
        Self { dir, address, peers }
    }

    /// With a certificate of `ca` for its address.
    async fn of(ca: &Authority) -> Self {
        Self::with(Some((ca, &ca.issue("coordinator-1", &["127.0.0.1", "rug://coordinator/c1"])))).await
    }

    /// Calls over a new connection. Returns the peer that the server sees, or the error of the client.
    async fn ask(&mut self, as_whom: Option<&ClientTls>) -> Result<PeerInfo, String> {
        let scheme = if as_whom.is_some() { "https" } else { "http" };
        let target = Target::new(&format!("{scheme}://{}", self.address), as_whom).expect("an address");
        let asked = async {
            let channel = target.connect().await.map_err(|e| tls::chain(&e))?;
            let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
            answer.map_err(|status| tls::chain(&status))?;
            Ok(self.peers.recv().await.expect("the server goes on"))
        };
        tokio::time::timeout(DEADLINE, asked).await.expect("in time")
    }
}

/// A client that shows `issued`, trusts `ca`, and keeps its files.
fn client(ca: &Authority, issued: &Issued) -> (ClientTls, TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let client = ClientTls::load(&issued.write(dir.path(), ca)).expect("good files").expect("named");
    (client, dir)
}

#[tokio::test]
async fn services_see_the_identity_of_the_certificate() {
    let ca = Authority::new("ca");
    let mut bench = TlsServer::of(&ca).await;
    let (worker, _dir) = client(&ca, &ca.issue("worker-1", &["worker-1.rug"]));
    let peer = bench.ask(Some(&worker)).await.expect("let in");
    let PeerIdentity::Certificate(identity) = &peer.identity else { panic!("{peer:?}") };
    assert_eq!(identity.common_name.as_deref(), Some("worker-1"));
    assert_eq!(identity.names, [tls::AlternativeName::Dns("worker-1.rug".into())]);
    assert_eq!(peer.to_string(), format!("worker-1 at {}", peer.address));
}

#[tokio::test]
async fn without_tls_services_see_the_address() {
    let mut bench = TlsServer::with(None).await;
    let peer = bench.ask(None).await.expect("let in");
    assert_eq!(peer.identity, PeerIdentity::Unverified);
    assert!(peer.to_string().starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn over_a_unix_socket_services_see_the_user() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s");
    let listener = LocalListener::bind(&path).expect("bound");
    let (told, mut peers) = mpsc::channel(4);
    let server = Routes::new(HealthServer::new(PeerRecorder(told)));
    let served = tokio::spawn(serve_listener(Listener::Unix(listener), None, server));
    let target = Target::new(&format!("unix:{}", path.display()), None).expect("an address");
    let answer = HealthClient::new(target.connect_lazy()).check(HealthCheckRequest::default()).await;
    answer.expect("let in");
    let peer = peers.recv().await.expect("the server goes on");
    assert!(matches!(peer.identity, PeerIdentity::Local(user) if user.is_own_or_root()), "{peer:?}");
    assert!(peer.to_string().ends_with(&format!(", pid {}", std::process::id())), "{peer}");
    served.abort();
    let _ = served.await;
    assert!(!path.exists(), "the socket goes with its listener");
}

#[tokio::test]
async fn a_changed_ca_takes_effect_without_a_restart() {
    let (old_ca, new_ca) = (Authority::new("old"), Authority::new("new"));
    let mut bench = TlsServer::of(&old_ca).await;
    let (old, old_dir) = client(&old_ca, &old_ca.issue("worker-1", &[]));
    let (new, _new_dir) = client(&new_ca, &new_ca.issue("worker-1", &[]));
    bench.ask(Some(&old)).await.expect("let in");
    let words = bench.ask(Some(&new)).await.expect_err("not yet");
    assert!(words.contains("the server's certificate `coordinator-1`"), "{words}");

    let _ = new_ca.issue("coordinator-1", &["127.0.0.1", "rug://coordinator/c1"]).write(bench.dir.path(), &new_ca);
    let changed = async {
        // Each attempt is a new connection; the server checks its files ten times a second.
        while bench.ask(Some(&new)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, changed).await.expect("the new files are taken over");
    let words = bench.ask(Some(&old)).await.expect_err("no longer");
    assert!(
        words.ends_with(&format!("was not issued by a CA in {}", old_dir.path().join("ca.pem").display())),
        "{words}"
    );
}

#[tokio::test]
async fn a_connection_ends_when_its_certificate_is_revoked() {
    let ca = Authority::new("ca");
    let bench = TlsServer::of(&ca).await;
    let numbered = |name: &str, serial: u64| {
        let (client, dir) = client(&ca, &ca.issue_with(name, &[], |params| params.serial_number = Some(serial.into())));
        (client, dir)
    };
    let ((good, _good_dir), (bad, _bad_dir)) = (numbered("worker-1", 7), numbered("worker-2", 8));
    let crl = bench.dir.path().join("crl.pem");
    std::fs::write(&crl, ca.revoke(&[])).expect("written");
    let config = tls::Config {
        ca: bench.dir.path().join("ca.pem"),
        cert: bench.dir.path().join("cert.pem"),
        key: bench.dir.path().join("key.pem"),
        crl: crl.clone(),
        reload_interval: Duration::from_millis(100),
        ..tls::Config::default()
    };
    let server_tls = ServerTls::load(&config).expect("good files");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("https://{}", listener.local_addr().expect("bound"));
    let (told, mut peers) = mpsc::channel(64);
    let server = Routes::new(HealthServer::new(PeerRecorder(told)));
    tokio::spawn(serve_listener(Listener::Tcp(listener), server_tls, server));
    tokio::spawn(async move { while peers.recv().await.is_some() {} });
    let connect = async |tls: &ClientTls| {
        let target = Target::new(&address, Some(tls)).expect("an address");
        HealthClient::new(target.connect().await.expect("let in"))
    };
    let (mut stays, mut ends) = (connect(&good).await, connect(&bad).await);
    stays.check(HealthCheckRequest::default()).await.expect("answered");
    ends.check(HealthCheckRequest::default()).await.expect("answered");
    std::fs::write(&crl, ca.revoke(&[8])).expect("written");
    let ended = async {
        while ends.check(HealthCheckRequest::default()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("the connection ends");
    assert!(ends.check(HealthCheckRequest::default()).await.is_err(), "it is not let in again");
    stays.check(HealthCheckRequest::default()).await.expect("the other one stays");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_with_a_reason() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let mut bench = TlsServer::of(&ca).await;
    // It trusts the server, which does not trust it.
    let (stranger, dir) = client(&ca, &other.issue("stranger", &[]));
    let words = bench.ask(Some(&stranger)).await.expect_err("refused");
    let file = dir.path().join("cert.pem");
    assert!(words.starts_with("TLS: the server refuses this side's certificate"), "{words}");
    assert!(
        words.contains(&*file.to_string_lossy()) && words.ends_with("does not trust the CA that issued it"),
        "{words}"
    );
}

#[tokio::test]
async fn a_client_without_tls_is_told_to_use_it() {
    let ca = Authority::new("ca");
    let mut bench = TlsServer::of(&ca).await;
    let words = bench.ask(None).await.expect_err("refused");
    assert_eq!(words, "TLS: this address wants TLS with a client certificate; use https://");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Authority::new("ca");
    let mut bench = TlsServer::of(&ca).await;
    let pem = tonic::transport::Certificate::from_pem(ca.pem());
    let config = tonic::transport::ClientTlsConfig::new().ca_certificate(pem);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("https://{}", bench.address)).expect("an address");
    let asked = async {
        let channel = endpoint.tls_config(config).expect("a CA").connect().await.map_err(|e| tls::chain(&e))?;
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        answer.map(drop).map_err(|status| tls::chain(&status))
    };
    let words = tokio::time::timeout(DEADLINE, asked).await.expect("in time").expect_err("refused");
    assert!(words.contains("CertificateRequired"), "{words}");
    assert!(bench.peers.try_recv().is_err(), "no call came through");
}

#[tokio::test]
async fn stalled_clients_delay_no_other() {
    let ca = Authority::new("ca");
    let mut bench = TlsServer::of(&ca).await;
    let mut stalled = Vec::new();
    for n in 0..MAX_PENDING + 8 {
        let mut stream = TcpStream::connect(bench.address).await.expect("it listens");
        // Some say nothing, some begin a record and go no further.
        if n % 2 == 0 {
            stream.write_all(&[22, 3, 1]).await.expect("sent");
        }
        stalled.push(stream);
    }
    let (worker, _dir) = client(&ca, &ca.issue("worker-1", &[]));
    bench.ask(Some(&worker)).await.expect("let in");
    // The oldest handshake was given up for newer ones.
    let gone = tokio::time::timeout(DEADLINE, stalled[0].read(&mut [0; 64])).await.expect("in time");
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
}

#[tokio::test]
async fn silent_connections_without_tls_keep_no_one_out() {
    let mut bench = TlsServer::with(None).await;
    let mut silent = Vec::new();
    for n in 0..MAX_PENDING + 8 {
        let mut stream = TcpStream::connect(bench.address).await.expect("it listens");
        if n % 2 == 0 {
            stream.write_all(&PREFACE[..20]).await.expect("sent");
        }
        silent.push(stream);
    }
    bench.ask(None).await.expect("let in");
    let gone = tokio::time::timeout(DEADLINE, silent[0].read(&mut [0; 64])).await.expect("in time");
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
}

#[tokio::test]
async fn what_is_no_http2_is_told_so() {
    let bench = TlsServer::with(None).await;
    let mut stream = TcpStream::connect(bench.address).await.expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let _ = tokio::time::timeout(DEADLINE, read).await.expect("closed");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
}

#[tokio::test]
async fn who_opens_many_connections_keeps_out_nobody_else() {
    let mut pending = PendingConnections::new(8);
    let network = |n: u8| PeerAddress::Tcp(([10, 0, 0, n], 1).into());
    let (held, ended) = mpsc::channel::<()>(1);
    let one = |held: &mpsc::Sender<()>| {
        let held = held.clone();
        async move {
            let _held = held;
            std::future::pending().await
        }
    };
    let (slow, mut is_open) = mpsc::channel::<()>(1);
    assert!(!pending.spawn(network(1), one(&slow)).await);
    drop(slow);
    for n in 0..100 {
        assert_eq!(pending.spawn(network(2), one(&held)).await, n >= 7, "{n}");
        assert!(pending.tasks.len() <= 8 && pending.remembered() <= 8);
    }
    assert_eq!(is_open.try_recv(), Err(mpsc::error::TryRecvError::Empty), "the slow one goes on");
    for n in 3..30 {
        pending.spawn(network(n), one(&held)).await;
    }
    assert!(pending.by_network.len() <= 9, "networks without connections are forgotten");
    drop((pending, held, ended));
}
