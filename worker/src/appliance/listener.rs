//! One listener: accepts, picks a member, forwards.
//!
//! The socket and the task that accepts live as long as address and port stay configured; members are a [`Pool`] that
//! is replaced as a whole. A connection takes the pool that is in force when it arrives and is not touched by later
//! ones. Connections are tasks of their own and go on when their listener is gone; each holds a slot of its listener, of which
//! no other listener has any, and one of the appliance, by which a drain knows when the last has ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use runtime::log_limited;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api::{self, Check, Label, Limits};
use super::counters::TrafficCounters;
use super::health::{Backend, Checker};
use super::relay::{RelayEnd, relay, reset};
use super::slots::Slots;

/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections to one address and port share.
#[derive(Debug)]
pub(super) struct Front {
    pool: RwLock<Arc<Pool>>,
    counters: Arc<TrafficCounters>,
    slots: Arc<Slots>,
    /// Whose turn it is; wraps around.
    next: AtomicUsize,
}

/// Members behind a listener, as configured at one moment.
#[derive(Debug)]
struct Pool {
    name: String,
    check: Check,
    limits: Limits,
    members: Vec<(Arc<Backend>, Arc<Checker>)>,
}

impl Front {
    /// A listener that may have so many connections.
    pub(super) fn new(listener: &api::Listener, most: u32) -> Self {
        let pool = RwLock::new(Arc::new(Pool::new(listener, None)));
        Self { pool, counters: Arc::default(), slots: Arc::new(Slots::new(most)), next: AtomicUsize::new(0) }
    }

    /// Puts another set of members, and other limits, in force for new connections. Members that stay keep health and counters.
    pub(super) fn update(&self, listener: &api::Listener, most: u32) {
        self.slots.resize(most);
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
        Label {
            members: members.collect(),
            max_connections: self.slots.most() as u64,
            saturated: self.slots.filled(),
            ..self.counters.label(pool.name.clone())
        }
    }

    /// What to say of it while it has, or had a moment ago, all the connections it may have.
    pub(super) fn saturation(&self) -> Option<String> {
        self.slots
            .is_saturated()
            .then(|| format!("listener {} has had all of its {} connections", self.pool().name, self.slots.most()))
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a connection to the next healthy member that takes it.
    async fn connect(&self, pool: &Pool) -> Option<(TcpStream, Arc<Backend>)> {
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

    /// Forwards one connection to its end. Whatever is no clean end of both sides is a reset for both.
    async fn forward(&self, mut client: TcpStream, cut: CancellationToken) {
        let _open = self.counters.open();
        let pool = self.pool();
        let connected = tokio::select! {
            connected = self.connect(&pool) => connected,
            () = cut.cancelled() => None,
        };
        let Some((mut server, backend)) = connected else {
            self.counters.fail();
            return reset(&client);
        };
        let _open_to_member = backend.counters.open();
        // Small packets matter more than few of them; a socket that cannot be set so works as well.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let count = |from_client, bytes| {
            self.counters.add(from_client, bytes);
            backend.counters.add(from_client, bytes);
        };
        match relay(&mut client, &mut server, &pool.limits, &cut, count).await {
            RelayEnd::Finished => {}
            end @ (RelayEnd::Reset | RelayEnd::Quiet | RelayEnd::Cut) => {
                tracing::debug!(listener = pool.name, ?end, "a connection is reset");
                reset(&client);
                reset(&server);
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
        Self { name: listener.name.clone(), check, limits: listener.limits, members: members.collect() }
    }
}

fn watched(backend: Arc<Backend>, check: Check) -> (Arc<Backend>, Arc<Checker>) {
    let checker = Arc::new(Checker::start(Arc::clone(&backend), check));
    (backend, checker)
}

/// What the connections of all listeners share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// One per connection that may be forwarded at a time.
    pub(super) slots: Arc<Semaphore>,
    /// Ends every connection.
    pub(super) cut: CancellationToken,
}

/// Accepts until stopped; the socket is closed when it returns.
pub(super) async fn serve(
    front: Arc<Front>,
    address: SocketAddr,
    socket: TcpListener,
    shared: Shared,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&front, &socket, &shared.slots) => accepted,
        };
        match accepted {
            Ok((client, slot)) => {
                let (front, cut) = (Arc::clone(&front), shared.cut.clone());
                let of_listener = front.slots.take();
                // Counted by its slots, of which there is a fixed number.
                tokio::spawn(async move {
                    front.forward(client, cut).await;
                    drop((of_listener, slot));
                });
            }
            Err(error) => {
                log_limited!(warn, %address, %error, "cannot accept a connection");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// Takes the next connection once its listener has a slot for it; the others wait in the kernel's backlog. Where connections
/// of listeners that are gone have left too few slots of the appliance, one per listener waits here.
async fn accept(
    front: &Front,
    socket: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    front.slots.free().await;
    let (client, _) = socket.accept().await?;
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((client, slot))
}
