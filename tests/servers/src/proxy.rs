//! A TCP forwarder that stands between a client and a server and fails on command.
//!
//! Bytes that meet a cut wait in the kernel's buffers and go on once it is healed, as TCP's own retransmission makes
//! them do on a network that lost packets for a while. What differs from such a network: a connection made meanwhile is
//! accepted by the kernel, and hangs then.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc as pieces, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::netns::Host;
use crate::ports::Port;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 1_024;
/// Pieces under way in one direction of one connection; then the sender has to wait. Only a delay fills it.
const PIECES: usize = 256;
const PIECE: usize = 16 * 1_024;

/// What the proxy does to packets now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    up_cut: bool,
    down_cut: bool,
    /// How many times all connections were reset.
    resets: u64,
    delay: Duration,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

impl Weather {
    const fn is_cut(self, way: Way) -> bool {
        match way {
            Way::Up => self.up_cut,
            Way::Down => self.down_cut,
        }
    }
}

/// A running forwarder; ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    ip: IpAddr,
    port: Port,
    weather: watch::Sender<Weather>,
    /// Absent for one that runs on a host: its thread ends when nobody is left to make weather.
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at a free port of 127.0.0.1 and forwards to `target`, `host:port`. Runs on the current runtime.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(target: &str) -> Result<Self> {
        Self::start_at(IpAddr::from([127, 0, 0, 1]), target).await
    }

    /// [`Proxy::start`] at another address of this machine.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start_at(ip: IpAddr, target: &str) -> Result<Self> {
        let port = Port::free()?;
        let listener = TcpListener::bind((ip, port.number())).await.context("listen for the proxy")?;
        let (weather, seen) = watch::channel(Weather::default());
        let listening = tokio::spawn(listen(listener, target.to_owned(), seen));
        Ok(Self { ip, port, weather, listening: Some(listening) })
    }

    /// Listens at a free port of a host and forwards from there, on a thread of its own.
    ///
    /// # Errors
    /// When the host cannot be entered, or the proxy cannot listen there.
    pub fn start_on(host: &Host, target: &str) -> Result<Self> {
        let (ip, port) = (host.address(), Port::free()?);
        let (weather, seen) = watch::channel(Weather::default());
        let (tell, told) = mpsc::sync_channel(1);
        let (host, number, target) = (host.clone(), port.number(), target.to_owned());
        let work = move || {
            let listening = || -> Result<(Runtime, TcpListener)> {
                host.enter()?;
                let runtime = Builder::new_current_thread().enable_all().build()?;
                let listener = runtime.block_on(TcpListener::bind((ip, number))).context("listen for the proxy")?;
                Ok((runtime, listener))
            };
            match listening() {
                Ok((runtime, listener)) => {
                    let _ = tell.send(Ok(()));
                    runtime.block_on(listen(listener, target, seen));
                }
                Err(problem) => _ = tell.send(Err(problem)),
            }
        };
        thread::Builder::new().name("proxy".to_owned()).spawn(work).context("start a thread")?;
        told.recv().context("the proxy's thread ended")??;
        Ok(Self { ip, port, weather, listening: None })
    }

    /// Where it listens, `ip:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.ip, self.port.number())
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// Nothing passes in either direction, connections stay open, new ones hang.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| (weather.up_cut, weather.down_cut) = (true, true));
    }

    /// Nothing passes from clients to the server. New connections hang.
    pub fn cut_up(&self) {
        self.weather.send_modify(|weather| weather.up_cut = true);
    }

    /// Nothing passes from the server to clients.
    pub fn cut_down(&self) {
        self.weather.send_modify(|weather| weather.down_cut = true);
    }

    /// Everything passes again, without delay; what a cut held back first.
    pub fn heal(&self) {
        self.weather.send_modify(|weather| *weather = Weather { resets: weather.resets, ..Weather::default() });
    }

    /// Breaks all connections, in both directions, by a reset. New ones are accepted unless there is a cut.
    pub fn reset(&self) {
        self.weather.send_modify(|weather| weather.resets += 1);
    }

    /// What enters from now on leaves this much later, in both directions. Throughput is not limited.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its connections are tasks of a set that it owns.
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

async fn listen(listener: TcpListener, target: String, mut weather: watch::Receiver<Weather>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        // Whoever comes during a cut waits in the kernel's queue.
        if weather.wait_for(|weather| !weather.is_cut(Way::Up)).await.is_err() {
            return;
        }
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match client {
            Ok((client, _)) => {
                let (target, weather) = (target.clone(), weather.clone());
                connections.spawn(async move {
                    let _place = place;
                    serve(client, &target, weather).await;
                });
            }
            // Out of descriptors, most likely; that passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// One forwarded connection. A break on one side has to show on the other, so both are reset unless both said good-bye.
struct Pair {
    client: TcpStream,
    server: Option<TcpStream>,
    ended: bool,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.ended {
            for stream in std::iter::once(&self.client).chain(&self.server) {
                let _ = stream.set_zero_linger();
            }
        }
    }
}

/// Forwards one connection until both sides have ended it, one of them broke it, or a reset.
async fn serve(client: TcpStream, target: &str, weather: watch::Receiver<Weather>) {
    let resets = weather.borrow().resets;
    let mut reset = weather.clone();
    let mut pair = Pair { client, server: None, ended: false };
    let forwarded = async {
        let server = pair.server.insert(TcpStream::connect(target).await?);
        let _ = (pair.client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = pair.client.split();
        let (from_server, to_server) = server.split();
        tokio::try_join!(
            forward(from_client, to_server, Way::Up, weather.clone()),
            forward(from_server, to_client, Way::Down, weather)
        )
    };
    let ended = tokio::select! {
        // A broken connection has nobody left to tell.
        forwarded = forwarded => forwarded.is_ok(),
        _ = reset.wait_for(|weather| weather.resets != resets) => false,
    };
    pair.ended = ended;
}

/// Forwards one direction to its end, and passes the end on.
async fn forward(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let (sender, mut under_way) = pieces::channel::<(Instant, Vec<u8>)>(PIECES);
    let mut passes = weather.clone();
    let write = async {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            open(&mut passes, way).await?;
            to.write_all(&piece).await?;
        }
        // The other side learns of the end, after everything else, and only when packets pass.
        open(&mut passes, way).await?;
        to.shutdown().await
    };
    tokio::try_join!(read(from, sender, way, weather), write).map(drop)
}

async fn read(
    mut from: ReadHalf<'_>,
    sender: pieces::Sender<(Instant, Vec<u8>)>,
    way: Way,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        open(&mut weather, way).await?;
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let due = Instant::now() + weather.borrow().delay;
        if sender.send((due, buffer[..count].to_vec())).await.is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// Waits until packets pass this way.
async fn open(weather: &mut watch::Receiver<Weather>, way: Way) -> io::Result<()> {
    let passes = weather.wait_for(|weather| !weather.is_cut(way)).await;
    passes.map(drop).map_err(|_| io::ErrorKind::ConnectionAborted.into())
}
