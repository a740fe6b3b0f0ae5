use std::net::{IpAddr, Ipv4Addr};

use common::Generation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::api::{Algorithm, Check, Label, Limits, Member, ProxyProtocol};
use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DEADLINE: Duration = Duration::from_secs(10);

/// A server that greets every connection with its letter and then sends back what it gets.
struct EchoServer {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl EchoServer {
    async fn start(letter: u8, address: SocketAddr) -> Self {
        let socket = TcpListener::bind(address).await.expect("a free port");
        let address = socket.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = socket.accept() => accepted,
                };
                let Ok((mut stream, _)) = accepted else { return };
                tokio::spawn(async move {
                    let _ = stream.write_all(&[letter]).await;
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Self { address, stop, task }
    }

    async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.task.await.expect("it does not panic");
        self.address
    }
}

/// From below the range that the kernel gives to outgoing connections: one from another address of this host, also a test before this
/// one had it, would be in the way of a socket that listens at all addresses.
fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| rand::random_range(10_000..30_000));
    ports.find(|port| std::net::TcpListener::bind((LOCAL, *port)).is_ok()).expect("a free port")
}

fn any() -> SocketAddr {
    SocketAddr::new(LOCAL, 0)
}

fn listener(name: &str, port: u16, members: &[SocketAddr]) -> Listener {
    Listener {
        name: name.into(),
        address: LOCAL,
        port,
        members: members.iter().map(|m| Member { address: m.ip(), port: m.port() }).collect(),
        health_check: Check { interval_ms: 20, timeout_ms: 500, fall: 2, rise: 1 },
        limits: Limits::default(),
        algorithm: Algorithm::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    }
}

fn config(generation: u64, listeners: Vec<Listener>) -> Config {
    Config { generation: Generation::new(generation), listeners }
}

/// The letter of the server a new connection reaches; `None` when the balancer closes it.
async fn reach(port: u16) -> Option<u8> {
    open(port).await.map(|(letter, _)| letter)
}

async fn open(port: u16) -> Option<(u8, TcpStream)> {
    let mut stream = timeout(DEADLINE, TcpStream::connect((LOCAL, port))).await.expect("no hang").ok()?;
    let letter = timeout(DEADLINE, stream.read_u8()).await.expect("no hang").ok()?;
    Some((letter, stream))
}

async fn echo(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).await.expect("the connection is open");
    let mut back = vec![0; text.len()];
    timeout(DEADLINE, stream.read_exact(&mut back)).await.expect("no hang").expect("the connection is open");
    back
}

async fn label(balancer: &Balancer) -> Label {
    balancer.labels().await.labels.into_iter().next().expect("a listener")
}

/// Looks again until a condition on the first listener's counters holds.
async fn until(balancer: &Balancer, holds: impl Fn(&Label) -> bool) {
    let end = Instant::now() + DEADLINE;
    loop {
        let now = label(balancer).await;
        if holds(&now) {
            return;
        }
        assert!(Instant::now() < end, "still {now:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn connections_alternate_between_members() {
    let (a, b) = (EchoServer::start(b'a', any()).await, EchoServer::start(b'b', any()).await);
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[a.address, b.address])])).await.expect("a free port");
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.extend(reach(port).await);
    }
    assert_eq!(seen, b"ababab");
    assert_eq!(label(&balancer).await.connections, 6);
}

#[tokio::test]
async fn a_dead_member_costs_no_connection_is_left_out_and_comes_back() {
    let (a, b) = (EchoServer::start(b'a', any()).await, EchoServer::start(b'b', any()).await);
    let (balancer, port) = (Balancer::new(100), free_port());
    let mut slow = listener("web", port, &[a.address, b.address]);
    slow.health_check.interval_ms = 3_600_000;
    balancer.apply(config(1, vec![slow])).await.expect("a free port");
    let gone = b.stop().await;
    for _ in 0..4 {
        assert_eq!(reach(port).await, Some(b'a'), "the next member takes what the dead one refuses");
    }
    assert!(label(&balancer).await.members[1].failed >= 2);
    balancer.apply(config(2, vec![listener("web", port, &[a.address, gone])])).await.expect("the same port");
    until(&balancer, |l| l.members[1].healthy == Some(false)).await;
    let refused = label(&balancer).await.members[1].failed;
    for _ in 0..4 {
        assert_eq!(reach(port).await, Some(b'a'));
    }
    assert_eq!(label(&balancer).await.members[1].failed, refused, "a member that is out is not tried");
    let b = EchoServer::start(b'b', gone).await;
    until(&balancer, |l| l.members[1].healthy == Some(true)).await;
    let seen = [reach(port).await, reach(port).await];
    assert!(seen.contains(&Some(b'a')) && seen.contains(&Some(b'b')), "{seen:?}");
    a.stop().await;
    b.stop().await;
    until(&balancer, |l| l.members.iter().all(|m| m.healthy == Some(false))).await;
    assert_eq!(reach(port).await, None, "without a member the connection is closed");
}

#[tokio::test]
async fn a_connection_goes_on_while_its_member_and_its_listener_are_taken_away() {
    let (a, b) = (EchoServer::start(b'a', any()).await, EchoServer::start(b'b', any()).await);
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[a.address])])).await.expect("a free port");
    let (letter, mut stream) = open(port).await.expect("a member");
    assert_eq!((letter, echo(&mut stream, b"one").await), (b'a', b"one".to_vec()));
    balancer.apply(config(2, vec![listener("renamed", port, &[b.address])])).await.expect("the same port");
    assert_eq!(reach(port).await, Some(b'b'), "new connections go to the new member");
    assert_eq!(echo(&mut stream, b"two").await, b"two");
    balancer.apply(config(3, vec![])).await.expect("nothing to bind");
    assert_eq!(reach(port).await, None, "nobody listens any more");
    assert_eq!(echo(&mut stream, b"three").await, b"three");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_put_in_place_changes_nothing() {
    let a = EchoServer::start(b'a', any()).await;
    let (balancer, port, other) = (Balancer::new(100), free_port(), free_port());
    let first = config(1, vec![listener("web", port, &[a.address])]);
    balancer.apply(first.clone()).await.expect("a free port");
    let taken = vec![listener("new", other, &[]), listener("taken", a.address.port(), &[])];
    let refused = balancer.apply(config(2, taken)).await.expect_err("the server has that port");
    assert_eq!(refused.field, "listeners[1].port");
    assert_eq!(refused.description, format!("port {} is in use", a.address.port()));
    assert_eq!((balancer.config().await, reach(port).await), (first, Some(b'a')));
    assert!(reach(other).await.is_none(), "the port that was free was let go");
    let twice = vec![listener("x", other, &[]), listener("x", free_port(), &[])];
    assert_eq!(balancer.apply(config(2, twice)).await.expect_err("one name twice").field, "listeners[1].name");
}

#[tokio::test]
async fn a_listener_can_change_its_address_and_is_put_back_when_that_fails() {
    let a = EchoServer::start(b'a', any()).await;
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[a.address])])).await.expect("a free port");
    let everywhere = Listener { address: Ipv4Addr::UNSPECIFIED.into(), ..listener("web", port, &[a.address]) };
    let taken = listener("taken", a.address.port(), &[]);
    balancer.apply(config(2, vec![everywhere.clone(), taken])).await.expect_err("the server has that port");
    assert_eq!(reach(port).await, Some(b'a'), "the listener is back");
    balancer.apply(config(3, vec![everywhere])).await.expect("it makes room for itself");
    assert_eq!(reach(port).await, Some(b'a'));
}

#[tokio::test]
async fn a_drain_stops_listening_and_lets_a_transfer_finish() {
    let a = EchoServer::start(b'a', any()).await;
    let (balancer, port) = (Arc::new(Balancer::new(100)), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[a.address])])).await.expect("a free port");
    let (_, mut stream) = open(port).await.expect("a member");
    let draining = Arc::clone(&balancer);
    let drained = tokio::spawn(async move { draining.drain(DEADLINE).await });
    let end = Instant::now() + DEADLINE;
    while TcpStream::connect((LOCAL, port)).await.is_ok() {
        assert!(Instant::now() < end, "it still listens");
    }
    assert!(!drained.is_finished());
    assert_eq!(echo(&mut stream, &[7; 100_000][..]).await.len(), 100_000);
    drop(stream);
    assert_eq!(timeout(DEADLINE, drained).await.expect("no hang").expect("no panic"), 0);
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[a.address])])).await.expect("a free port");
    let _stream = open(port).await.expect("a member");
    assert_eq!(balancer.drain(Duration::from_millis(20)).await, 1, "the grace ends it");
}

#[tokio::test]
async fn bytes_are_counted_both_ways_and_connections_are_bounded() {
    let a = EchoServer::start(b'a', any()).await;
    let (balancer, port) = (Balancer::new(2), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[a.address])])).await.expect("a free port");
    let (_, mut first) = open(port).await.expect("a member");
    let second = open(port).await.expect("a member");
    echo(&mut first, b"12345").await;
    let now = label(&balancer).await;
    assert_eq!((now.open, now.bytes_in, now.bytes_out), (2, 5, 7), "five there; five and two letters back");
    assert_eq!((now.members[0].bytes_in, now.members[0].bytes_out), (5, 7));
    let third = tokio::spawn(reach(port));
    tokio::task::yield_now().await;
    assert_eq!(balancer.open(), 2);
    drop(second);
    assert_eq!(timeout(DEADLINE, third).await.expect("no hang").expect("no panic"), Some(b'a'), "it waited for a slot");
}

/// A server that does with each connection what it is told.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let socket = TcpListener::bind(any()).await.expect("a free port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// What a client sees until the end, and how it ends: `true` for a clean end.
async fn until_the_end(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut seen = Vec::new();
    let ended = timeout(DEADLINE, stream.read_to_end(&mut seen)).await.expect("no hang");
    (seen, ended.is_ok())
}

#[tokio::test]
async fn a_listener_that_is_full_takes_nothing_from_the_others_and_is_shown() {
    let a = EchoServer::start(b'a', any()).await;
    let (balancer, full, other) = (Balancer::new(10), free_port(), free_port());
    let limited = |most| Listener {
        limits: Limits { max_connections: Some(most), ..Limits::default() },
        ..listener("full", full, &[a.address])
    };
    balancer.apply(config(1, vec![limited(3), listener("other", other, &[a.address])])).await.expect("free ports");
    assert_eq!(balancer.saturation().await, None);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(open(full).await.expect("a slot"));
    }
    // Far more than either may have: they wait in the kernel.
    let waiting: Vec<_> = (0..40).map(|_| tokio::spawn(reach(full))).collect();
    for _ in 0..20 {
        assert_eq!(reach(other).await, Some(b'a'));
    }
    assert_eq!(balancer.saturation().await.as_deref(), Some("listener full has had all of its 3 connections"));
    let labels = balancer.labels().await.labels;
    let of = |n: usize| (labels[n].open, labels[n].max_connections, labels[n].saturated);
    assert_eq!((of(0), of(1).1, of(1).2), ((3, 3, 1), 7, 0));
    // More are let in at once, and those that waited are served.
    balancer.apply(config(2, vec![limited(9), listener("other", other, &[a.address])])).await.expect("the same ports");
    for waited in waiting {
        assert_eq!(timeout(DEADLINE, waited).await.expect("no hang").expect("no panic"), Some(b'a'));
    }
    let refused =
        balancer.apply(config(3, vec![limited(10), listener("other", other, &[])])).await.expect_err("too many");
    assert_eq!(refused.field, "listeners[0].limits.max_connections");
}

#[tokio::test]
async fn a_reset_of_either_side_is_a_reset_for_the_other() {
    let breaks = server(|mut stream| async move {
        let _ = stream.write_all(b"half an ans").await;
        let _ = stream.read_u8().await;
        stream.set_zero_linger().expect("a socket");
    })
    .await;
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[breaks])])).await.expect("a free port");
    let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    let mut answer = [0; 11];
    timeout(DEADLINE, client.read_exact(&mut answer)).await.expect("no hang").expect("it comes through");
    client.write_u8(1).await.expect("open");
    assert!(!until_the_end(&mut client).await.1, "the server broke off");
    // The other way round, also when the client has ended its side before.
    let (tell, mut told) = tokio::sync::mpsc::channel(2);
    let waits = server(move |mut stream| {
        let tell = tell.clone();
        async move { _ = tell.send(until_the_end(&mut stream).await).await }
    })
    .await;
    let silent = server(move |stream| async move {
        tokio::time::sleep(DEADLINE).await;
        drop(stream);
    })
    .await;
    balancer.apply(config(2, vec![listener("web", port, &[waits])])).await.expect("the same port");
    let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    client.write_all(b"half a quest").await.expect("open");
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.set_zero_linger().expect("a socket");
    drop(client);
    // Health checks end as well, without a word and cleanly.
    let seen = loop {
        let seen = timeout(DEADLINE, told.recv()).await.expect("no hang").expect("it serves");
        if !seen.0.is_empty() {
            break seen;
        }
    };
    assert_eq!(seen, (b"half a quest".to_vec(), false));
    balancer.apply(config(3, vec![listener("web", port, &[silent])])).await.expect("the same port");
    let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    client.shutdown().await.expect("open");
    until(&balancer, |label| label.open == 1).await;
    client.set_zero_linger().expect("a socket");
    drop(client);
    until(&balancer, |label| label.open == 0).await;
}

#[tokio::test]
async fn what_is_silent_for_too_long_is_reset_and_half_closed_ones_have_a_time_of_their_own() {
    let silent = server(|mut stream| async move {
        let _ = stream.write_u8(b's').await;
        tokio::time::sleep(DEADLINE).await;
    })
    .await;
    let (balancer, port) = (Balancer::new(100), free_port());
    let limited = |idle_timeout_ms, half_close_timeout_ms| Listener {
        limits: Limits { idle_timeout_ms, half_close_timeout_ms, ..Limits::default() },
        ..listener("web", port, &[silent])
    };
    balancer.apply(config(1, vec![limited(50, 600_000)])).await.expect("a free port");
    let (_, mut client) = open(port).await.expect("a member");
    assert!(!until_the_end(&mut client).await.1);
    balancer.apply(config(2, vec![limited(600_000, 50)])).await.expect("the same port");
    let (_, mut client) = open(port).await.expect("a member");
    client.shutdown().await.expect("open");
    assert!(!until_the_end(&mut client).await.1);
    until(&balancer, |label| label.open == 0).await;
}

#[tokio::test]
async fn without_a_member_and_at_the_end_of_a_drain_clients_see_a_reset() {
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[SocketAddr::new(LOCAL, free_port())])])).await.expect("free");
    let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    assert_eq!(until_the_end(&mut client).await, (vec![], false));
    let a = EchoServer::start(b'a', any()).await;
    balancer.apply(config(2, vec![listener("web", port, &[a.address])])).await.expect("the same port");
    let (_, mut client) = open(port).await.expect("a member");
    assert_eq!(balancer.drain(Duration::from_millis(20)).await, 1);
    assert!(!until_the_end(&mut client).await.1);
}

#[tokio::test]
async fn a_member_that_resets_every_connection_is_not_healthy() {
    let resets = server(|stream| async move { stream.set_zero_linger().expect("a socket") }).await;
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[resets])])).await.expect("a free port");
    until(&balancer, |label| label.members[0].healthy == Some(false)).await;
}

/// Connects from another address of this host.
async fn open_from(last: u8, port: u16) -> Option<(u8, TcpStream)> {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("loopback has all of these");
    let mut stream = timeout(DEADLINE, socket.connect((LOCAL, port).into())).await.expect("no hang").ok()?;
    let letter = timeout(DEADLINE, stream.read_u8()).await.expect("no hang").ok()?;
    Some((letter, stream))
}

#[tokio::test]
async fn the_member_with_the_fewest_connections_is_next() {
    let (a, b) = (EchoServer::start(b'a', any()).await, EchoServer::start(b'b', any()).await);
    let (balancer, port) = (Balancer::new(100), free_port());
    let least = Listener { algorithm: Algorithm::LeastConnections, ..listener("web", port, &[a.address, b.address]) };
    balancer.apply(config(1, vec![least])).await.expect("a free port");
    let mut open_to = BTreeMap::from([(b'a', vec![]), (b'b', vec![])]);
    for _ in 0..4 {
        let (letter, stream) = open(port).await.expect("a member");
        open_to.get_mut(&letter).expect("one of the two").push(stream);
    }
    assert_eq!((open_to[&b'a'].len(), open_to[&b'b'].len()), (2, 2));
    open_to.get_mut(&b'b').expect("it is there").clear();
    until(&balancer, |label| label.open == 2).await;
    let (first, second) = (open(port).await.expect("a member"), open(port).await.expect("a member"));
    assert_eq!((first.0, second.0), (b'b', b'b'));
}

#[tokio::test]
async fn clients_stay_with_their_member_and_move_only_when_it_is_gone() {
    let servers = [
        EchoServer::start(b'a', any()).await,
        EchoServer::start(b'b', any()).await,
        EchoServer::start(b'c', any()).await,
    ];
    let all = servers.each_ref().map(|server| server.address);
    let (balancer, port) = (Balancer::new(1000), free_port());
    let by_source =
        |members: &[SocketAddr]| Listener { algorithm: Algorithm::SourceHash, ..listener("web", port, members) };
    balancer.apply(config(1, vec![by_source(&all)])).await.expect("a free port");
    let mut chosen = BTreeMap::new();
    for last in 1..=40 {
        let (letter, _) = open_from(last, port).await.expect("a member");
        assert_eq!(open_from(last, port).await.expect("a member").0, letter);
        chosen.insert(last, letter);
    }
    let taken: BTreeSet<_> = chosen.values().copied().collect();
    assert_eq!(taken, BTreeSet::from(*b"abc"), "40 clients find all members");
    balancer.apply(config(2, vec![by_source(&all[..2])])).await.expect("the same port");
    for (last, before) in &chosen {
        let (now, _) = open_from(*last, port).await.expect("a member");
        assert!(now == *before || *before == b'c', "client {last} moved from {before} to {now}");
    }
}

/// A server that notes what each connection begins with, and answers with one byte.
async fn listening_server() -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (tell, told) = tokio::sync::mpsc::channel(100);
    let address = server(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut seen = Vec::new();
            // Up to the word of a client, or to the end of a health check.
            while !seen.ends_with(b"hello") {
                match stream.read_u8().await {
                    Ok(byte) => seen.push(byte),
                    Err(_) => break,
                }
            }
            let _ = stream.write_u8(b'!').await;
            let _ = tell.send(seen).await;
        }
    })
    .await;
    (address, told)
}

/// What a member gets of a connection that begins with these bytes, and the client's own address.
async fn sent_through(
    port: u16,
    told: &mut tokio::sync::mpsc::Receiver<Vec<u8>>,
    begins: &[u8],
) -> (Vec<u8>, SocketAddr) {
    let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    client.write_all(begins).await.expect("open");
    client.write_all(b"hello").await.expect("open");
    assert_eq!(timeout(DEADLINE, client.read_u8()).await.expect("no hang").expect("an answer"), b'!');
    let seen = loop {
        let seen = timeout(DEADLINE, told.recv()).await.expect("no hang").expect("it serves");
        if seen.ends_with(b"hello") {
            break seen;
        }
    };
    (seen, client.local_addr().expect("connected"))
}

#[tokio::test]
async fn members_are_told_whose_connection_they_get() {
    let (member, mut told) = listening_server().await;
    let (balancer, port) = (Balancer::new(100), free_port());
    let with = |proxy_protocol| Listener { proxy_protocol, ..listener("web", port, &[member]) };
    balancer.apply(config(1, vec![with(Some(ProxyProtocol::V1))])).await.expect("a free port");
    let (seen, client) = sent_through(port, &mut told, b"").await;
    let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {port}\r\nhello", client.port());
    assert_eq!(String::from_utf8_lossy(&seen), line);
    // Health checks are of the balancer itself, and say so.
    let check = timeout(DEADLINE, told.recv()).await.expect("no hang").expect("it serves");
    assert_eq!(check, b"PROXY UNKNOWN\r\n");
    balancer.apply(config(2, vec![with(Some(ProxyProtocol::V2))])).await.expect("the same port");
    let (seen, client) = sent_through(port, &mut told, b"").await;
    let ports = [client.port().to_be_bytes(), port.to_be_bytes()].concat();
    assert_eq!(seen, [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"[..], &ports, b"hello"].concat());
}

#[tokio::test]
async fn what_trusted_peers_say_of_a_connection_counts_and_of_others_it_is_data() {
    let (member, mut told) = listening_server().await;
    let (balancer, port) = (Balancer::new(100), free_port());
    let trusting = |network: &str| Listener {
        proxy_protocol: Some(ProxyProtocol::V1),
        trust_proxy_from: vec![network.parse().expect("a network")],
        ..listener("web", port, &[member])
    };
    balancer.apply(config(1, vec![trusting("127.0.0.0/8")])).await.expect("a free port");
    let header = b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 80\r\n";
    let (seen, _) = sent_through(port, &mut told, header).await;
    assert_eq!(seen, [&header[..], b"hello"].concat());
    let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
    client.write_all(b"GET / HTTP/1.1\r\n").await.expect("open");
    assert_eq!(until_the_end(&mut client).await, (vec![], false), "it has to say");
    balancer.apply(config(2, vec![trusting("10.0.0.0/8")])).await.expect("the same port");
    let (seen, client) = sent_through(port, &mut told, header).await;
    let own = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {port}\r\n", client.port());
    assert_eq!(seen, [own.as_bytes(), header, b"hello"].concat());
}

#[tokio::test]
async fn connections_of_a_removed_member_have_the_drain_timeout_to_end() {
    let (a, b) = (EchoServer::start(b'a', any()).await, EchoServer::start(b'b', any()).await);
    let (balancer, port) = (Balancer::new(100), free_port());
    let with = |members: &[SocketAddr], drain_timeout_ms| Listener {
        limits: Limits { drain_timeout_ms, ..Limits::default() },
        ..listener("web", port, members)
    };
    balancer.apply(config(1, vec![with(&[a.address], 600_000)])).await.expect("a free port");
    let (_, mut kept) = open(port).await.expect("a member");
    balancer.apply(config(2, vec![with(&[b.address], 600_000)])).await.expect("the same port");
    assert_eq!(reach(port).await, Some(b'b'), "nothing new goes to it");
    assert_eq!(echo(&mut kept, b"still here").await, b"still here");
    // It comes back, and is removed again with less time.
    balancer.apply(config(3, vec![with(&[a.address], 600_000)])).await.expect("the same port");
    assert_eq!(echo(&mut kept, b"still here").await, b"still here");
    assert_eq!(label(&balancer).await.members[0].open, 1, "it is the same member");
    balancer.apply(config(4, vec![with(&[b.address], 20)])).await.expect("the same port");
    assert!(!until_the_end(&mut kept).await.1, "its time is over");
    // So have those of a listener that is removed.
    let (_, mut kept) = open(port).await.expect("a member");
    balancer.apply(config(5, vec![])).await.expect("nothing is needed");
    assert!(!until_the_end(&mut kept).await.1, "its time is over");
}

#[tokio::test]
async fn what_clients_send_first_gets_to_the_member_that_takes_the_connection() {
    let (member, mut told) = listening_server().await;
    // One that refuses, and one that does not answer: what waits in its queue fills that.
    let refuses = SocketAddr::new(LOCAL, free_port());
    let silent =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&silent, &any()).and_then(|()| rustix::net::listen(&silent, 0)).expect("a free port");
    let silent = std::net::TcpListener::from(silent);
    let silent_address = silent.local_addr().expect("bound");
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(100), TcpStream::connect(silent_address)).await {
        filling.push(stream);
    }
    let (balancer, port) = (Balancer::new(100), free_port());
    let mut slow = listener("web", port, &[refuses, silent_address, member]);
    slow.health_check = Check { interval_ms: 3_600_000, timeout_ms: 100, fall: 2, rise: 1 };
    balancer.apply(config(1, vec![slow])).await.expect("a free port");
    for begins in [&b"one "[..], &[b'x'; 3000], &[b'y'; 100_000], b""] {
        for _ in 0..3 {
            let (seen, _) = sent_through(port, &mut told, begins).await;
            assert_eq!(seen.len(), begins.len() + 5);
            assert_eq!(seen, [begins, b"hello"].concat());
        }
    }
    until(&balancer, |label| label.open == 0).await;
    let counted = label(&balancer).await;
    assert_eq!(counted.bytes_in, 3 * (103_004 + 4 * 5));
    assert!(counted.members[0].failed > 0 && counted.members[1].failed > 0, "{counted:?}");
    assert_eq!((counted.failed, counted.members[2].failed), (0, 0));
}

#[tokio::test]
async fn an_end_right_behind_the_last_bytes_is_clean_and_a_reset_there_is_a_reset() {
    let ends = server(|mut stream| async move {
        let mut request = Vec::new();
        let _ = stream.read_to_end(&mut request).await;
        // Both in one go, so that they mostly come together.
        let _ = stream.write_all(&request).await;
    })
    .await;
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[ends])])).await.expect("a free port");
    for length in [1, 100, 1_000, 65_535, 65_536, 65_537, 1_000_000] {
        let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
        let (mut from, mut to) = client.split();
        let sent = vec![7; length];
        let (written, (seen, clean)) = tokio::join!(
            async {
                to.write_all(&sent).await?;
                to.shutdown().await
            },
            async {
                let mut seen = Vec::new();
                let ended = timeout(DEADLINE, from.read_to_end(&mut seen)).await.expect("no hang");
                (seen, ended.is_ok())
            }
        );
        written.expect("open");
        assert_eq!((seen.len(), clean), (length, true));
    }
    let breaks = server(|mut stream| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(b"half an ans").await;
        stream.set_zero_linger().expect("a socket");
    })
    .await;
    balancer.apply(config(2, vec![listener("web", port, &[breaks])])).await.expect("the same port");
    for _ in 0..20 {
        let mut client = TcpStream::connect((LOCAL, port)).await.expect("it listens");
        client.write_u8(1).await.expect("open");
        assert!(!until_the_end(&mut client).await.1, "the server broke off");
    }
}

/// A server of requests of one byte. Each is answered with its letter, or in capitals once it is about to end the connection, which
/// it does when it is told to stop.
async fn request_server(letter: u8, stop: CancellationToken) -> SocketAddr {
    server(move |mut stream| {
        let stop = stop.clone();
        async move {
            while stream.read_u8().await.is_ok() {
                let last = stop.is_cancelled();
                let answer = if last { letter.to_ascii_uppercase() } else { letter };
                if stream.write_u8(answer).await.is_err() || last {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_member_that_is_removed_first_and_then_stopped_loses_no_request_of_kept_connections() {
    let (stop, never) = (CancellationToken::new(), CancellationToken::new());
    let (leaves, stays) = (request_server(b'a', stop.clone()).await, request_server(b'b', never).await);
    let (balancer, port) = (Balancer::new(100), free_port());
    balancer.apply(config(1, vec![listener("web", port, &[leaves, stays])])).await.expect("a free port");
    let over = CancellationToken::new();
    let clients: Vec<_> = (0..30)
        .map(|_| {
            let over = over.clone();
            tokio::spawn(async move {
                let (mut answers, mut kept) = (BTreeMap::new(), None);
                while !over.is_cancelled() {
                    let mut stream = match kept.take() {
                        Some(stream) => stream,
                        None => TcpStream::connect((LOCAL, port)).await.expect("it listens"),
                    };
                    stream.write_u8(b'r').await.expect("the connection is open");
                    let answer = timeout(DEADLINE, stream.read_u8()).await.expect("no hang").expect("an answer");
                    *answers.entry(answer).or_insert(0_usize) += 1;
                    if answer.is_ascii_lowercase() {
                        kept = Some(stream);
                    }
                }
                answers
            })
        })
        .collect();
    until(&balancer, |label| label.open == 30 && label.bytes_in > 3_000).await;
    assert_eq!(label(&balancer).await.members[0].open, 15);
    balancer.apply(config(2, vec![listener("web", port, &[stays])])).await.expect("the same port");
    stop.cancel();
    until(&balancer, |label| label.members[0].open == 30).await;
    let before = label(&balancer).await.bytes_in;
    until(&balancer, |label| label.bytes_in > before + 3_000).await;
    over.cancel();
    let mut moved = 0;
    for client in clients {
        let answers = timeout(DEADLINE, client).await.expect("no hang").expect("no request failed");
        moved += answers.get(&b'A').copied().unwrap_or(0);
    }
    assert_eq!(moved, 15, "those of the member that was stopped were ended by it");
    let counted = label(&balancer).await;
    assert_eq!((counted.failed, counted.connections), (0, 45));
}
