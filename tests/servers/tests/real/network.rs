//! Proxies and networks that fail on command.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use servers::netns::{Host, Network};
use servers::proxy::Proxy;
use servers::zookeeper::{Options, Standalone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Long enough for bytes to arrive that can.
const SOON: Duration = Duration::from_secs(20);
/// How long nothing has to arrive.
const NOTHING: Duration = Duration::from_millis(200);

/// A server that sends back what it gets. Answers its address.
async fn echo() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    Ok(address)
}

async fn answer(stream: &mut TcpStream, count: usize) -> Result<String> {
    let mut buffer = vec![0; count];
    timeout(SOON, stream.read_exact(&mut buffer)).await.context("nothing arrives")??;
    Ok(String::from_utf8(buffer)?)
}

async fn says_nothing(stream: &mut TcpStream) -> bool {
    timeout(NOTHING, stream.read(&mut [0; 1])).await.is_err()
}

#[tokio::test]
async fn what_meets_a_cut_arrives_once_it_is_healed() -> Result<()> {
    let proxy = Proxy::start(&echo().await?).await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    stream.write_all(b"one").await?;
    assert_eq!(answer(&mut stream, 3).await?, "one");
    for cut in [Proxy::cut, Proxy::cut_up, Proxy::cut_down] {
        cut(&proxy);
        stream.write_all(b"two").await?;
        assert!(says_nothing(&mut stream).await, "there is a cut");
        proxy.heal();
        assert_eq!(answer(&mut stream, 3).await?, "two");
    }
    // The end as well, and on a connection of its own, made during a cut.
    proxy.cut();
    let mut late = TcpStream::connect(proxy.address()).await?;
    late.write_all(b"three").await?;
    late.shutdown().await?;
    assert!(says_nothing(&mut late).await, "there is a cut");
    proxy.heal();
    let mut text = String::new();
    timeout(SOON, late.read_to_string(&mut text)).await.context("the end does not arrive")??;
    assert_eq!(text, "three");
    Ok(())
}

#[tokio::test]
async fn a_reset_breaks_connections_and_new_ones_work() -> Result<()> {
    let proxy = Proxy::start(&echo().await?).await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    stream.write_all(b"one").await?;
    assert_eq!(answer(&mut stream, 3).await?, "one");
    proxy.reset();
    let broken = timeout(SOON, stream.read(&mut [0; 1])).await.context("it is still open")?;
    assert_eq!(broken.expect_err("it was reset").kind(), std::io::ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(proxy.address()).await?;
    stream.write_all(b"two").await?;
    assert_eq!(answer(&mut stream, 3).await?, "two");
    // Also connections that are cut.
    proxy.cut();
    proxy.reset();
    assert!(timeout(SOON, stream.read(&mut [0; 1])).await.context("it is still open")?.is_err());
    Ok(())
}

#[tokio::test]
async fn a_delay_holds_for_each_direction_and_lets_everything_through() -> Result<()> {
    const EACH: Duration = Duration::from_millis(150);
    let proxy = Proxy::start(&echo().await?).await?;
    proxy.delay(EACH);
    let mut stream = TcpStream::connect(proxy.address()).await?;
    let sent = "x".repeat(1_000_000);
    let began = Instant::now();
    let (mut from, mut to) = stream.split();
    let write = async {
        to.write_all(sent.as_bytes()).await?;
        to.shutdown().await
    };
    let mut got = String::new();
    let both = async { tokio::join!(write, from.read_to_string(&mut got)) };
    let (wrote, read) = timeout(SOON, both).await.context("it does not arrive")?;
    wrote?;
    read?;
    assert!(began.elapsed() >= 2 * EACH, "it was not delayed");
    assert_eq!(got.len(), sent.len());
    Ok(())
}

#[tokio::test]
async fn a_dropped_proxy_closes_its_connections() -> Result<()> {
    let proxy = Proxy::start(&echo().await?).await?;
    let address = proxy.address();
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(b"one").await?;
    assert_eq!(answer(&mut stream, 3).await?, "one");
    drop(proxy);
    assert!(timeout(SOON, stream.read(&mut [0; 1])).await.context("it is still open")?.is_err());
    assert!(TcpStream::connect(&address).await.is_err());
    Ok(())
}

/// Whether a connection from one host to another can be made and carries bytes both ways.
fn reaches(from: &Host, to: &str) -> Result<bool> {
    let (host, port) = to.rsplit_once(':').context("an address has a port")?;
    let script = format!("exec 3<>/dev/tcp/{host}/{port} && printf srvr >&3 && grep -q Mode <&3");
    let status = from
        .command("timeout")
        .args(["3", "bash", "-c", &script])
        .stderr(std::process::Stdio::null())
        .status()
        .context("start bash")?;
    Ok(status.success())
}

#[tokio::test]
async fn hosts_of_a_network_lose_each_other_on_command() -> Result<()> {
    if let Err(reason) = Network::available() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let network = Network::new(&["server", "near", "far"])?;
    let (server, near, far) = (network.host("server")?, network.host("near")?, network.host("far")?);
    let zookeeper = Standalone::start_on(server, Options::default()).await?;
    let address = zookeeper.address();
    assert!(reaches(near, &address)? && reaches(far, &address)?);
    // Either direction is enough to break it, and nobody else is touched.
    for (from, to) in [(far, server), (server, far)] {
        from.cut(to)?;
        assert!(!reaches(far, &address)?, "{} is cut off from {}", from.name(), to.name());
        assert!(reaches(near, &address)?);
        from.heal(to)?;
        assert!(reaches(far, &address)?);
    }
    network.part(&[server], &[near, network.here()])?;
    assert!(!reaches(near, &address)? && !reaches(network.here(), &address)? && reaches(far, &address)?);
    network.join(&[server], &[near, network.here()])?;
    assert!(reaches(near, &address)? && reaches(network.here(), &address)?);
    // What a cut held up goes on afterwards, on the same connection.
    let mut stream = TcpStream::connect(&address).await?;
    network.here().cut(server)?;
    stream.write_all(b"srvr").await?;
    assert!(says_nothing(&mut stream).await, "there is a cut");
    network.here().heal(server)?;
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.context("nothing arrives")??;
    assert!(text.contains("Mode: standalone"), "{text}");
    Ok(())
}

#[test]
fn a_network_can_be_made_as_soon_as_another_is_dropped() -> Result<()> {
    if let Err(problem) = Network::available() {
        println!("skipped: {problem}");
        return Ok(());
    }
    for _ in 0..5 {
        drop(Network::new(&["one", "two"])?);
    }
    Ok(())
}

#[tokio::test]
async fn a_target_that_is_away_breaks_connections() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    drop(listener);
    let proxy = Proxy::start(&address).await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    let read = timeout(SOON, stream.read(&mut [0; 1])).await.context("it is still open")?;
    assert_eq!(read.expect_err("nobody is there").kind(), std::io::ErrorKind::ConnectionReset);
    Ok(())
}
