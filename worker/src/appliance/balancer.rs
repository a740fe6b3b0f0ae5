//! The load balancer as a whole: which listeners there are, and how one configuration follows another.
//!
//! A configuration takes effect as a whole or not at all: every socket it needs is bound before anything changes.
//! Listeners whose address and port stay keep their socket, and open connections go on whatever changes; those whose member or listener
//! is configured no more have a time for that. Sockets and connections can come from the instance before, and go to the one after
//! (`handover.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::net::sockopt::set_tcp_nodelay;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::api::{Config, Labels, Listener};
use super::listener::{Front, Moving, Shared, serve};
use super::slots::shares;

/// Most listeners of a configuration, and most members of a listener.
const MOST_ENTRIES: usize = 256;
/// How long it takes at most until connections that are cut off are closed.
const CUT_TIME: Duration = Duration::from_secs(1);

/// A configuration that cannot take effect; the former one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Invalid {
    /// Path of the field, such as `listeners[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// The load balancer.
#[derive(Debug)]
pub struct Balancer {
    shared: Shared,
    most: u32,
    active: Mutex<Active>,
}

#[derive(Debug, Default)]
struct Active {
    config: Config,
    fronts: BTreeMap<SocketAddr, RunningListener>,
}

/// A listener and the task that accepts for it.
#[derive(Debug)]
struct RunningListener {
    front: Arc<Front>,
    socket: Arc<TcpListener>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// How listeners and their members are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BalancerLevels {
    pub(super) listeners: u64,
    /// Listeners with all the connections they may have.
    pub(super) saturated: u64,
    /// Members that pass their health check, and those that do not.
    pub(super) up: u64,
    pub(super) down: u64,
}

/// Sockets that an instance before listens at, by their addresses.
pub(super) type Inherited = BTreeMap<SocketAddr, std::net::TcpListener>;

impl Balancer {
    /// A balancer without listeners that forwards at most so many connections at a time.
    #[must_use]
    pub fn new(max_connections: usize) -> Self {
        let most = u32::try_from(max_connections.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let shared = Shared {
            slots: Arc::new(Semaphore::new(most as usize)),
            interrupt: CancellationToken::new(),
            successor: Arc::new(OnceLock::new()),
            cut: CancellationToken::new(),
        };
        Self { shared, most, active: Mutex::default() }
    }

    /// Puts a configuration in force. Must be driven to its end: a caller that may be cancelled spawns it.
    ///
    /// # Errors
    /// [`Invalid`] names the field; nothing has changed then.
    pub async fn apply(&self, config: Config) -> Result<(), Invalid> {
        self.apply_with(config, Inherited::new()).await
    }

    /// The same with sockets of the instance before, for listeners that have no socket yet.
    pub(super) async fn apply_with(&self, config: Config, inherited: Inherited) -> Result<(), Invalid> {
        validate(&config)?;
        let shares = shares(&config, self.most)?;
        let mut active = self.active.lock().await;
        if config == active.config {
            return Ok(());
        }
        let bound = self.bind(&mut active, &config, inherited).await?;
        let wanted: BTreeSet<SocketAddr> = config.listeners.iter().map(address).collect();
        let gone: Vec<_> = active.fronts.keys().filter(|a| !wanted.contains(a)).copied().collect();
        for address in gone {
            if let Some(running) = active.fronts.remove(&address) {
                running.front.retire();
                running.stop().await;
            }
        }
        for ((listener, most), socket) in config.listeners.iter().zip(shares).zip(bound) {
            match (socket, active.fronts.get(&address(listener))) {
                (None, Some(running)) => running.front.update(listener, most, &self.shared),
                (None, None) => {}
                (Some(socket), _) => {
                    let front = Arc::new(Front::new(listener, most, &self.shared));
                    active.fronts.insert(address(listener), self.start(front, socket));
                }
            }
        }
        active.config = config;
        Ok(())
    }

    /// The configuration in force.
    pub async fn config(&self) -> Config {
        self.active.lock().await.config.clone()
    }

    /// Counters of all listeners, in the order of the configuration.
    pub async fn labels(&self) -> Labels {
        let active = self.active.lock().await;
        let fronts = active.config.listeners.iter().filter_map(|listener| active.fronts.get(&address(listener)));
        Labels { labels: fronts.map(|running| running.front.label()).collect() }
    }

    /// What to say of listeners that have, or had a moment ago, all the connections they may have.
    pub async fn saturation(&self) -> Option<String> {
        let active = self.active.lock().await;
        let full: Vec<_> = active.fronts.values().filter_map(|running| running.front.saturation()).collect();
        (!full.is_empty()).then(|| full.join(", "))
    }

    /// How listeners and members are; `None` while a configuration is being put in force.
    pub(super) fn levels(&self) -> Option<BalancerLevels> {
        let active = self.active.try_lock().ok()?;
        let mut levels = BalancerLevels::default();
        for running in active.fronts.values() {
            levels.listeners += 1;
            levels.saturated += u64::from(running.front.is_saturated());
            let (up, down) = running.front.health();
            (levels.up, levels.down) = (levels.up + up, levels.down + down);
        }
        Some(levels)
    }

    /// Connections that may be forwarded at a time.
    pub(super) fn most(&self) -> u64 {
        u64::from(self.most)
    }

    /// Connections that are forwarded now.
    #[must_use]
    pub fn open(&self) -> usize {
        (self.most as usize).saturating_sub(self.shared.slots.available_permits())
    }

    /// The sockets that are listened at.
    pub(super) async fn sockets(&self) -> Vec<(SocketAddr, Arc<TcpListener>)> {
        let active = self.active.lock().await;
        active.fronts.iter().map(|(address, running)| (*address, Arc::clone(&running.socket))).collect()
    }

    /// Goes on with a connection of the instance before. One to a listener that is not configured here, or that was handed over
    /// incomplete, is reset.
    pub(super) async fn adopt(&self, moving: Moving) {
        let front = self.active.lock().await.fronts.get(&moving.listener).map(|running| Arc::clone(&running.front));
        let slot = Arc::clone(&self.shared.slots).acquire_owned().await;
        let (Some(front), Ok(slot)) = (front, slot) else { return moving.link.reset() };
        let slots = (front.take_slot(), slot);
        // Counted by its slots, as those that are accepted here.
        tokio::spawn(front.adopt(moving, self.shared.clone(), slots));
    }

    /// Stops listening and waits until the last connection has ended, at most for `grace`. Those that are left then are reset, so
    /// that their clients see that they were broken off. Returns how many those were.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.leave(grace, None).await
    }

    /// The same, but connections go to `successor` as soon as they have a member.
    pub(super) async fn hand_over(&self, grace: Duration, successor: mpsc::Sender<Moving>) -> usize {
        self.leave(grace, Some(successor)).await
    }

    async fn leave(&self, grace: Duration, successor: Option<mpsc::Sender<Moving>>) -> usize {
        let fronts = std::mem::take(&mut self.active.lock().await.fronts);
        for running in fronts.into_values() {
            running.stop().await;
        }
        if let Some(successor) = successor {
            let _ = self.shared.successor.set(successor);
            self.shared.interrupt.cancel();
        }
        // All slots free means that no connection is left.
        if timeout(grace, self.shared.slots.acquire_many(self.most)).await.is_ok() {
            return 0;
        }
        let left = self.open();
        self.shared.cut.cancel();
        self.shared.interrupt.cancel();
        let _ = timeout(CUT_TIME, self.shared.slots.acquire_many(self.most)).await;
        left
    }

    /// Binds the sockets a configuration needs beyond those there are: for each of its listeners `None` where there is
    /// one already.
    async fn bind(
        &self,
        active: &mut Active,
        config: &Config,
        mut inherited: Inherited,
    ) -> Result<Vec<Option<TcpListener>>, Invalid> {
        let wanted: BTreeSet<SocketAddr> = config.listeners.iter().map(address).collect();
        let mut bound = Vec::new();
        let mut moved: Vec<(SocketAddr, Arc<Front>)> = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let at = address(listener);
            if active.fronts.contains_key(&at) {
                bound.push(None);
                continue;
            }
            let mut socket = match inherited.remove(&at) {
                Some(socket) => TcpListener::from_std(socket),
                None => TcpListener::bind(at).await,
            };
            // A listener that only changes its address may stand in its own way (127.0.0.1 and 0.0.0.0).
            let former = active.fronts.keys().find(|a| a.port() == at.port() && !wanted.contains(a)).copied();
            if let (Err(error), Some(former)) = (&socket, former)
                && error.kind() == io::ErrorKind::AddrInUse
                && let Some(running) = active.fronts.remove(&former)
            {
                moved.push((former, Arc::clone(&running.front)));
                running.stop().await;
                socket = TcpListener::bind(at).await;
            }
            match socket {
                Ok(socket) => bound.push(Some(socket)),
                Err(error) => {
                    drop(bound);
                    self.restore(active, moved).await;
                    return Err(unbound(index, at, &error));
                }
            }
        }
        Ok(bound)
    }

    /// Brings back listeners that had to make room for a configuration that failed.
    async fn restore(&self, active: &mut Active, moved: Vec<(SocketAddr, Arc<Front>)>) {
        for (address, front) in moved {
            match TcpListener::bind(address).await {
                Ok(socket) => {
                    active.fronts.insert(address, self.start(front, socket));
                }
                Err(error) => tracing::error!(%address, %error, "a listener was lost to somebody else"),
            }
        }
    }

    fn start(&self, front: Arc<Front>, socket: TcpListener) -> RunningListener {
        // Connections have it from the socket that they are accepted from; one that cannot be set so works as well.
        let _ = set_tcp_nodelay(&socket, true);
        let (socket, stop) = (Arc::new(socket), CancellationToken::new());
        let task = tokio::spawn(serve(Arc::clone(&front), Arc::clone(&socket), self.shared.clone(), stop.clone()));
        RunningListener { front, socket, stop, task }
    }
}

impl RunningListener {
    /// Stops to accept; its socket is closed when this returns.
    async fn stop(self) {
        self.stop.cancel();
        // It ends at its next await; a panic in it has let go of the socket as well.
        let _ = self.task.await;
    }
}

const fn address(listener: &Listener) -> SocketAddr {
    SocketAddr::new(listener.address, listener.port)
}

fn unbound(index: usize, at: SocketAddr, error: &io::Error) -> Invalid {
    let (field, description) = match error.kind() {
        io::ErrorKind::AddrInUse => ("port", format!("port {} is in use", at.port())),
        io::ErrorKind::AddrNotAvailable => ("address", format!("{} is not an address of this host", at.ip())),
        io::ErrorKind::PermissionDenied => ("port", format!("not allowed to listen on port {}", at.port())),
        _ => ("port", format!("cannot listen on {at}: {error}")),
    };
    Invalid { field: format!("listeners[{index}].{field}"), description }
}

/// Checks a configuration as an appliance with the usual number of connections does. For the fuzz tests.
pub(crate) fn check(config: &Config) -> Result<(), Invalid> {
    validate(config)?;
    shares(config, 32_768).map(|_| ())
}

fn validate(config: &Config) -> Result<(), Invalid> {
    let invalid = |field: String, description: &str| Err(Invalid { field, description: description.to_owned() });
    if config.listeners.len() > MOST_ENTRIES {
        return invalid("listeners".into(), "at most 256 are allowed");
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (index, listener) in config.listeners.iter().enumerate() {
        let at = format!("listeners[{index}]");
        if listener.name.is_empty() || !names.insert(&listener.name) {
            return invalid(format!("{at}.name"), "must not be empty or used twice");
        }
        if listener.port == 0 || !addresses.insert(address(listener)) {
            return invalid(format!("{at}.port"), "must be 1 to 65535 and not used twice");
        }
        if listener.members.len() > MOST_ENTRIES {
            return invalid(format!("{at}.members"), "at most 256 are allowed");
        }
        let mut members = BTreeSet::new();
        for (m, member) in listener.members.iter().enumerate() {
            if member.port == 0 || !members.insert(member.address()) {
                return invalid(format!("{at}.members[{m}]"), "must have a port and not be listed twice");
            }
        }
        let check = listener.health_check;
        let allowed = 1..=3_600_000;
        if !allowed.contains(&check.interval_ms) || !allowed.contains(&check.timeout_ms) {
            return invalid(format!("{at}.health_check"), "interval_ms and timeout_ms must be 1 to 3600000");
        }
        let limits = listener.limits;
        if limits.max_connections == Some(0) {
            return invalid(format!("{at}.limits.max_connections"), "must be 1 or more");
        }
        if listener.trust_proxy_from.len() > MOST_ENTRIES {
            return invalid(format!("{at}.trust_proxy_from"), "at most 256 are allowed");
        }
        let allowed = 1..=7 * 24 * 3_600_000;
        if limits.drain_timeout_ms > *allowed.end() {
            return invalid(format!("{at}.limits"), "drain_timeout_ms must be at most 604800000");
        }
        if !allowed.contains(&limits.idle_timeout_ms) || !allowed.contains(&limits.half_close_timeout_ms) {
            return invalid(format!("{at}.limits"), "idle_timeout_ms and half_close_timeout_ms must be 1 to 604800000");
        }
        if check.fall == 0 || check.rise == 0 {
            return invalid(format!("{at}.health_check"), "fall and rise must be 1 or more");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
