//! One listener: accepts, picks a member, forwards.
//!
//! The socket and the task that accepts live as long as address and port stay configured; members are a [`Pool`] that
//! is replaced as a whole. A connection takes the pool that is in force when it arrives. Later ones touch it only where its member is in
//! none of them: then it has the drain time-out to end. Connections are tasks of their own and go on when their listener is gone; each
//! holds a slot of its listener, of which no other listener has any, and one of the appliance, by which a drain knows when the
//! last has ended.

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use runtime::log_limited;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api::{self, Algorithm, Label};
use super::counters::TrafficCounters;
use super::dial::{Dialled, dial};
use super::members::{Backend, Pool};
use super::metrics::{self, ConnectionEnd};
use super::proxy::{self, Ends, Header};
use super::relay::{Link, RelayEnd};
use super::slots::{Slot, Slots};
use super::socket::{read_first, reset};

/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the header of a trusted peer may take. It is the first packet.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Bytes that are read at a time while its end is looked for.
const HEADER_CHUNK: usize = 2048;

/// What connections to one address and port share.
#[derive(Debug)]
pub(super) struct Front {
    address: SocketAddr,
    pool: RwLock<Arc<Pool>>,
    counters: Arc<TrafficCounters>,
    slots: Arc<Slots>,
    /// Whose turn it is; wraps around.
    next: AtomicUsize,
}

/// What the connections of all listeners share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// One per connection that may be forwarded at a time.
    pub(super) slots: Arc<Semaphore>,
    /// Interrupts every connection; those of a member have one of their own below it.
    pub(super) interrupt: CancellationToken,
    /// Where connections that are interrupted go. Without it they are reset.
    pub(super) successor: Arc<OnceLock<mpsc::Sender<Moving>>>,
    /// Resets every connection that is left.
    pub(super) cut: CancellationToken,
}

/// A connection on its way to the process that goes on with it.
#[derive(Debug)]
pub(super) struct Moving {
    /// Where its client connected to.
    pub(super) listener: SocketAddr,
    /// The member it is connected to.
    pub(super) member: SocketAddr,
    pub(super) link: Link,
}

/// What a connection begins with.
struct Beginning {
    ends: Ends,
    /// What has been read of it and is for the member.
    first: Vec<u8>,
}

/// Why a connection is not carried.
enum Unprepared {
    /// There is no member for it, or it does not say what it has to.
    Failed,
    /// Its client has broken it off.
    BrokenOff,
}

/// A connection that can be carried.
struct Prepared {
    dialled: Dialled,
    backend: Arc<Backend>,
    /// What the member gets first, some of which it has been sent.
    first: Vec<u8>,
    /// How much of it the client has sent.
    from_client: usize,
}

impl Front {
    /// A listener that may have so many connections.
    pub(super) fn new(listener: &api::Listener, most: u32, shared: &Shared) -> Self {
        Self {
            address: SocketAddr::new(listener.address, listener.port),
            pool: RwLock::new(Arc::new(Pool::new(listener, None, shared))),
            counters: Arc::default(),
            slots: Arc::new(Slots::new(most)),
            next: AtomicUsize::new(0),
        }
    }

    /// Puts another set of members, and other limits, in force for new connections. Members that stay keep health and counters.
    pub(super) fn update(&self, listener: &api::Listener, most: u32, shared: &Shared) {
        self.slots.resize(most);
        let pool = Arc::new(Pool::new(listener, Some(&self.pool()), shared));
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
    }

    /// It is configured no more: its connections have the drain time-out to end.
    pub(super) fn retire(&self) {
        self.pool().retire();
    }

    /// Counters of the listener and its members.
    pub(super) fn label(&self) -> Label {
        let pool = self.pool();
        Label {
            members: pool.members().map(|member| member.label()).collect(),
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

    /// Whether it has, or had a moment ago, all the connections it may have.
    pub(super) fn is_saturated(&self) -> bool {
        self.slots.is_saturated()
    }

    /// How many members pass their health check, and how many do not.
    pub(super) fn health(&self) -> (u64, u64) {
        let pool = self.pool();
        let up = pool.members().filter(|member| member.is_healthy()).count();
        (up as u64, (pool.members().count() - up) as u64)
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The healthy members in the order in which a connection is offered to them.
    fn candidates<'a>(&self, pool: &'a Pool, client: IpAddr) -> Vec<&'a Arc<Backend>> {
        let mut healthy: Vec<_> = pool.members().filter(|member| member.is_healthy()).collect();
        if healthy.len() < 2 {
            return healthy;
        }
        match pool.algorithm {
            Algorithm::RoundRobin | Algorithm::LeastConnections => {
                let turn = self.next.fetch_add(1, Ordering::Relaxed) % healthy.len();
                healthy.rotate_left(turn);
            }
            Algorithm::SourceHash => healthy.sort_by_cached_key(|member| std::cmp::Reverse(member.rank(client))),
        }
        if pool.algorithm == Algorithm::LeastConnections {
            // Stable: among equals the turn decides.
            healthy.sort_by_key(|member| member.assigned());
        }
        healthy
    }

    /// Opens a connection to the first member that takes it, and sends it `first`. Each has the time of a health check.
    async fn connect(
        &self,
        pool: &Pool,
        client: IpAddr,
        first: &[u8],
        mut due: Pin<&mut Sleep>,
    ) -> Option<(Dialled, Arc<Backend>)> {
        for backend in self.candidates(pool, client) {
            let assigned = backend.assign();
            due.as_mut().reset(Instant::now() + pool.check.timeout());
            match dial(backend.address, first, due.as_mut()).await {
                Ok(dialled) => {
                    drop(assigned);
                    return Some((dialled, Arc::clone(backend)));
                }
                Err(_) => {
                    metrics::dial_failed();
                    backend.counters.fail();
                }
            }
        }
        None
    }

    /// Forwards one connection to its end. Whatever is no clean end of both sides is a reset for both.
    async fn forward(&self, client: TcpStream, peer: SocketAddr, shared: &Shared) {
        let _open = self.counters.open();
        let pool = self.pool();
        // One timer for the whole of it: registering each takes longer than to move one on.
        let mut due = pin!(sleep(pool.check.timeout()));
        let prepared = tokio::select! {
            biased;
            prepared = self.prepare(&client, peer, &pool, due.as_mut()) => prepared,
            () = shared.cut.cancelled() => Err(Unprepared::Failed),
        };
        let Prepared { dialled, backend, first, from_client } = match prepared {
            Ok(prepared) => prepared,
            Err(why) => {
                match why {
                    Unprepared::Failed => {
                        metrics::ended(ConnectionEnd::Failed);
                        self.counters.fail();
                    }
                    Unprepared::BrokenOff => metrics::ended(ConnectionEnd::BrokenOff),
                }
                return reset(&client);
            }
        };
        let count = from_client as u64;
        metrics::forwarded(true, count);
        self.counters.add(true, count);
        backend.counters.add(true, count);
        let link = Link::new(client, dialled, first);
        self.carry(link, &backend, &pool.limits, shared, due).await;
    }

    /// Finds out whose connection it is, and connects it to a member.
    async fn prepare(
        &self,
        client: &TcpStream,
        peer: SocketAddr,
        pool: &Pool,
        due: Pin<&mut Sleep>,
    ) -> Result<Prepared, Unprepared> {
        let mut beginning = Beginning { ends: Ends { client: peer, to: self.address }, first: Vec::new() };
        if pool.trusted.iter().any(|network| network.contains(peer.ip())) {
            // In a box, because every other connection would have room for it.
            let read = Box::pin(timeout(HEADER_TIME, read_header(client, beginning.ends)));
            beginning = read.await.ok().flatten().ok_or(Unprepared::Failed)?;
        } else {
            if pool.proxy_protocol.is_some() {
                // The address that is listened at may stand for all.
                beginning.ends.to = client.local_addr().map_err(|_| Unprepared::BrokenOff)?;
            }
            // Most clients speak first, and have done so by now.
            beginning.first = read_first(client).map_err(|_| Unprepared::BrokenOff)?;
        }
        let from_client = beginning.first.len();
        let first = match pool.proxy_protocol {
            Some(version) => [proxy::write(version, Some(beginning.ends)), beginning.first].concat(),
            None => beginning.first,
        };
        let connected = self.connect(pool, beginning.ends.client.ip(), &first, due).await;
        let (dialled, backend) = connected.ok_or(Unprepared::Failed)?;
        Ok(Prepared { dialled, backend, first, from_client })
    }

    /// Forwards a connection that has its member, or hands it over.
    async fn carry(
        &self,
        mut link: Link,
        backend: &Arc<Backend>,
        limits: &api::Limits,
        shared: &Shared,
        mut due: Pin<&mut Sleep>,
    ) {
        let (_open, _assigned) = (backend.counters.open(), backend.assign());
        let count = |from_client, bytes| {
            metrics::forwarded(from_client, bytes);
            self.counters.add(from_client, bytes);
            backend.counters.add(from_client, bytes);
        };
        let mut end = link.relay(limits, backend.interrupt(), due.as_mut(), count).await;
        if let (RelayEnd::Interrupted, Some(successor)) = (&end, shared.successor.get()) {
            link.hurry();
            match successor.send(Moving { listener: self.address, member: backend.address, link }).await {
                Ok(()) => return metrics::ended(ConnectionEnd::HandedOver),
                // It is not there any more. The connection may end here.
                Err(mpsc::error::SendError(moving)) => link = moving.link,
            }
            end = link.relay(limits, &shared.cut, due, count).await;
        }
        metrics::ended(match end {
            RelayEnd::Finished => ConnectionEnd::Finished,
            RelayEnd::Reset => ConnectionEnd::Reset,
            RelayEnd::Quiet => ConnectionEnd::Idle,
            RelayEnd::Interrupted => ConnectionEnd::Interrupted,
        });
        match end {
            RelayEnd::Finished => {}
            RelayEnd::Reset | RelayEnd::Quiet | RelayEnd::Interrupted => {
                tracing::debug!(listener = %self.address, ?end, "a connection is reset");
                link.reset();
            }
        }
    }

    /// Goes on with a connection of another process. A member that is not configured here has the drain time-out to end it.
    pub(super) async fn adopt(self: Arc<Self>, moving: Moving, shared: Shared, slots: (Slot, OwnedSemaphorePermit)) {
        let pool = self.pool();
        let _open = self.counters.open();
        let backend = pool.find(moving.member).unwrap_or_else(|| pool.unknown(moving.member, &shared));
        let due = pin!(sleep(pool.limits.idle_timeout()));
        self.carry(moving.link, &backend, &pool.limits, &shared, due).await;
        drop(slots);
    }

    /// A slot for a connection that is there already.
    pub(super) fn take_slot(&self) -> Slot {
        self.slots.take()
    }
}

/// Reads what a trusted peer says of a connection. `None` when it says nothing that can be read.
async fn read_header(client: &TcpStream, own: Ends) -> Option<Beginning> {
    let mut bytes = Vec::new();
    loop {
        match proxy::read(&bytes).ok()? {
            Header::Complete(length, ends) => {
                let first = bytes.split_off(length);
                return Some(Beginning { ends: ends.unwrap_or(own), first });
            }
            Header::Incomplete => {}
        }
        client.readable().await.ok()?;
        let mut chunk = [0; HEADER_CHUNK];
        match client.try_read(&mut chunk) {
            Ok(0) => return None,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Accepts until stopped.
pub(super) async fn serve(front: Arc<Front>, socket: Arc<TcpListener>, shared: Shared, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&front, &socket, &shared.slots) => accepted,
        };
        match accepted {
            Ok((client, peer, slot)) => {
                let (front, shared) = (Arc::clone(&front), shared.clone());
                let of_listener = front.slots.take();
                // Counted by its slots, of which there is a fixed number.
                tokio::spawn(async move {
                    front.forward(client, peer, &shared).await;
                    drop((of_listener, slot));
                });
            }
            Err(error) => {
                metrics::accept_failed();
                log_limited!(warn, address = %front.address, %error, "cannot accept a connection");
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
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    front.slots.free().await;
    let (client, peer) = socket.accept().await?;
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((client, peer, slot))
}
