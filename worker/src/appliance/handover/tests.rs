use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::StatusCode;
use common::{Generation, Term};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::api::{Check, Config, Limits, Listener, Member};
use super::super::rest::Served;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn free_port() -> u16 {
    std::net::TcpListener::bind((LOCAL, 0)).and_then(|l| l.local_addr()).expect("a free port").port()
}

fn token(sequence: u64) -> Token {
    Token::new(Term::new(1), sequence)
}

fn config(port: u16, member: SocketAddr) -> Config {
    let listener = Listener {
        name: "web".into(),
        address: LOCAL,
        port,
        members: vec![Member { address: member.ip(), port: member.port() }],
        health_check: Check::default(),
        limits: Limits::default(),
        algorithm: Default::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    };
    Config { generation: Generation::new(1), listeners: vec![listener] }
}

/// A server that sends back what it gets.
async fn echo_server() -> SocketAddr {
    let socket = TcpListener::bind((LOCAL, 0)).await.expect("a free port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

/// An instance without its process.
struct TestInstance {
    folder: TempDir,
    state: Arc<RestState>,
    balancer: Arc<Balancer>,
}

impl TestInstance {
    fn new(predecessor: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let balancer = Arc::new(Balancer::new(1000));
        let state = RestState::open(
            Folder::exclusive(folder.path()).expect("ours"),
            None,
            true,
            Served { balancer: Arc::clone(&balancer), routing: None },
            predecessor.map(Path::to_owned),
        );
        Self { state: state.expect("it opens"), balancer, folder }
    }

    /// Waits for its successor, and hands over to it. Answers how many connections were left.
    fn wait(&self) -> JoinHandle<usize> {
        let socket = HandoverSocket::open(&Folder::exclusive(self.folder.path()).expect("ours")).expect("it listens");
        let (state, balancer) = (Arc::clone(&self.state), Arc::clone(&self.balancer));
        tokio::spawn(async move {
            let successor = socket.successor(&state, &balancer).await;
            successor.hand_over(&balancer, DEADLINE).await
        })
    }
}

/// Sends and gets back more than sockets hold, again and again, until told to stop. Answers how often.
async fn transfers(port: u16, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    let mut stream = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    while !stop.load(Ordering::Relaxed) {
        let (mut from, mut to) = stream.split();
        let mut back = vec![0; sent.len()];
        let (written, read) = tokio::join!(to.write_all(&sent), timeout(DEADLINE, from.read_exact(&mut back)));
        written.expect("it goes on");
        read.expect("no hang").expect("it goes on");
        assert!(back == sent, "bytes were lost or mixed up");
        done.fetch_add(1, Ordering::Relaxed);
    }
    // Half closed, and then to its end.
    stream.write_all(b"bye").await.expect("it goes on");
    stream.shutdown().await.expect("it goes on");
    let mut end = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut end)).await.expect("no hang").expect("a clean end");
    assert_eq!(end, b"bye");
}

/// Waits until a number has grown by so many.
async fn grown(number: &AtomicUsize, by: usize) {
    let from = number.load(Ordering::Relaxed);
    let wait = async {
        while number.load(Ordering::Relaxed) < from + by {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, wait).await.expect("nothing is served any more");
}

#[tokio::test]
async fn a_successor_takes_over_every_connection_and_no_new_one_is_refused() {
    let (member, port) = (echo_server().await, free_port());
    let old = TestInstance::new(None);
    old.state.change(token(1), config(port, member)).await.expect("a free port");
    let waiting = old.wait();
    let (stop, kept, fresh) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> =
        (0..10).map(|_| tokio::spawn(transfers(port, Arc::clone(&stop), Arc::clone(&kept)))).collect();
    let connecting = {
        let (stop, fresh) = (Arc::clone(&stop), Arc::clone(&fresh));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect((LOCAL, port)).await.expect("not refused");
                stream.write_all(b"x").await.expect("open");
                let answer = timeout(DEADLINE, stream.read_u8()).await.expect("no hang");
                assert_eq!(answer.expect("served"), b'x');
                fresh.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let silent = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    grown(&kept, 20).await;
    let new = TestInstance::new(Some(old.folder.path()));
    new.state.change(token(1), config(port, member)).await.expect("it takes the socket over");
    assert_eq!(timeout(DEADLINE, waiting).await.expect("no hang").expect("no panic"), 0, "all were handed over");
    assert_eq!(old.balancer.open(), 0);
    grown(&kept, 20).await;
    grown(&fresh, 20).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients.into_iter().chain([connecting]) {
        timeout(DEADLINE, client).await.expect("no hang").expect("no panic");
    }
    drop(silent);
    // It needs no predecessor any more.
    new.state.change(token(1), config(port, member)).await.expect("again");
}

#[tokio::test]
async fn an_owner_that_is_not_the_newest_takes_nothing() {
    let (member, port) = (echo_server().await, free_port());
    let old = TestInstance::new(None);
    old.state.change(token(5), config(port, member)).await.expect("a free port");
    let waiting = old.wait();
    let new = TestInstance::new(Some(old.folder.path()));
    let refused = new.state.change(token(4), config(port, member)).await.expect_err("an older owner");
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(!waiting.is_finished());
    // The newest one takes it, and from then on older ones are refused there as well.
    new.state.change(token(6), config(port, member)).await.expect("the newest owner");
    timeout(DEADLINE, waiting).await.expect("no hang").expect("no panic");
    let late = old.state.change(token(5), config(port, member)).await.expect_err("a late call");
    assert_eq!(late.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_successor_that_cannot_be_configured_changes_nothing() {
    let (member, port) = (echo_server().await, free_port());
    let old = TestInstance::new(None);
    old.state.change(token(1), config(port, member)).await.expect("a free port");
    let waiting = old.wait();
    let new = TestInstance::new(Some(old.folder.path()));
    let mut taken = config(port, member);
    taken.listeners.push(Listener { name: "taken".into(), port: member.port(), ..taken.listeners[0].clone() });
    let refused = new.state.change(token(1), taken).await.expect_err("the member has that port");
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    let mut stream = TcpStream::connect((LOCAL, port)).await.expect("the old one listens");
    stream.write_all(b"x").await.expect("open");
    assert_eq!(timeout(DEADLINE, stream.read_u8()).await.expect("no hang").expect("served"), b'x');
    assert!(!waiting.is_finished());
    new.state.change(token(1), config(port, member)).await.expect("this one can be had");
    timeout(DEADLINE, waiting).await.expect("no hang").expect("no panic");
    assert_eq!(
        timeout(DEADLINE, async {
            stream.write_all(b"y").await?;
            stream.read_u8().await
        })
        .await
        .expect("no hang")
        .expect("it goes on"),
        b'y'
    );
}

#[tokio::test]
async fn without_its_predecessor_a_successor_binds_itself_or_asks_to_try_again() {
    let (member, port) = (echo_server().await, free_port());
    let gone = tempfile::tempdir().expect("a temporary folder");
    let holder = TcpListener::bind((LOCAL, port)).await.expect("a free port");
    let new = TestInstance::new(Some(gone.path()));
    let error = new.state.change(token(1), config(port, member)).await.expect_err("the port is taken");
    assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
    drop(holder);
    new.state.change(token(1), config(port, member)).await.expect("it is free");
}
