//! One listener: accepts, picks a member, forwards.
//!
//! The socket and the task that accepts live as long as address and port stay configured; members are a [`Pool`] that
//! is replaced as a whole. A connection takes the pool that is in force when it arrives and is not touched by later
//! ones. Connections are tasks of their own and go on when their listener is gone; each holds a slot of the
//! appliance-wide limit, by which a drain knows when the last has ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api::{self, Check, Label};
use super::counters::{CountedStream, Traffic, TrafficCounters};
use super::health::{Backend, Checker};

/// A connection without a byte for this long is closed: its peers are most likely gone without a word.
const IDLE: Duration = Duration::from_secs(3600);
/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections to one address and port share.
#[derive(Debug)]
pub(super) struct Front {
    pool: RwLock<Arc<Pool>>,
    counters: Arc<TrafficCounters>,
    /// Whose turn it is; wraps around.
    next: AtomicUsize,
}

/// Members behind a listener, as configured at one moment.
#[derive(Debug)]
struct Pool {
    name: String,
    check: Check,
    members: Vec<(Arc<Backend>, Arc<Checker>)>,
}

impl Front {
    pub(super) fn new(listener: &api::Listener) -> Self {
        let pool = RwLock::new(Arc::new(Pool::new(listener, None)));
        Self { pool, counters: Arc::default(), next: AtomicUsize::new(0) }
    }

    /// Puts another set of members in force for new connections. Members that stay keep health and counters.
    pub(super) fn update(&self, listener: &api::Listener) {
        let pool = Arc::new(Pool::new(listener, Some(&self.pool())));
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
    }

    /// Counters of the listener and its members.
    pub(super) fn label(&self) -> Label {
        let pool = self.pool();
        let members = pool.members.iter().map(|(backend, _)| Label {
            healthy: Some(backend.is_healthy()),
            ..backend.counters.label(backend.address.to_string())
        });
        Label { members: members.collect(), ..self.counters.label(pool.name.clone()) }
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a connection to the next healthy member that takes it.
    async fn connect(&self) -> Option<(TcpStream, Arc<Backend>)> {
        let pool = self.pool();
        let healthy: Vec<_> = pool.members.iter().map(|(backend, _)| backend).filter(|b| b.is_healthy()).collect();
        let first = if healthy.is_empty() { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) % healthy.len() };
        for backend in healthy.iter().cycle().skip(first).take(healthy.len()) {
            match timeout(pool.check.timeout(), TcpStream::connect(backend.address)).await {
                Ok(Ok(stream)) => return Some((stream, Arc::clone(backend))),
                Ok(Err(_)) | Err(_) => backend.counters.fail(),
            }
        }
        None
    }

    async fn forward(&self, client: TcpStream) {
        let _open = self.counters.open();
        let Some((server, backend)) = self.connect().await else {
            self.counters.fail();
            return;
        };
        let _open_to_member = backend.counters.open();
        // Small packets matter more than few of them; a socket that cannot be set so works as well.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let traffic = Arc::new(Traffic {
            listener: Arc::clone(&self.counters),
            member: Arc::clone(&backend.counters),
            total: AtomicU64::new(0),
        });
        let mut client = CountedStream::new(client, Arc::clone(&traffic), true);
        let mut server = CountedStream::new(server, Arc::clone(&traffic), false);
        let copy = copy_bidirectional(&mut client, &mut server);
        tokio::pin!(copy);
        loop {
            let before = traffic.total.load(Ordering::Relaxed);
            tokio::select! {
                // How it ended is the peers' business: both sides are closed either way.
                _ = &mut copy => return,
                () = sleep(IDLE) => if traffic.total.load(Ordering::Relaxed) == before { return },
            }
        }
    }
}

impl Pool {
    fn new(listener: &api::Listener, former: Option<&Self>) -> Self {
        let check = listener.health_check;
        let members = listener.members.iter().map(|member| {
            let address = member.address();
            match former.and_then(|pool| Some((pool.check, pool.members.iter().find(|m| m.0.address == address)?))) {
                Some((same, (backend, checker))) if same == check => (Arc::clone(backend), Arc::clone(checker)),
                Some((_, (backend, _))) => watched(Arc::clone(backend), check),
                None => watched(Arc::new(Backend::new(address)), check),
            }
        });
        Self { name: listener.name.clone(), check, members: members.collect() }
    }
}

fn watched(backend: Arc<Backend>, check: Check) -> (Arc<Backend>, Arc<Checker>) {
    let checker = Arc::new(Checker::start(Arc::clone(&backend), check));
    (backend, checker)
}

/// Accepts until stopped; the socket is closed when it returns.
pub(super) async fn serve(
    front: Arc<Front>,
    address: SocketAddr,
    socket: TcpListener,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&socket, &slots) => accepted,
        };
        match accepted {
            Ok((client, slot)) => {
                let front = Arc::clone(&front);
                // Counted by its slot, of which there is a fixed number.
                tokio::spawn(async move {
                    front.forward(client).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%address, %error, "cannot accept a connection");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// Takes the next connection once there is a slot for it. While there is none, one connection per listener waits here
/// and the others in the kernel's backlog.
async fn accept(socket: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let (client, _) = socket.accept().await?;
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((client, slot))
}
