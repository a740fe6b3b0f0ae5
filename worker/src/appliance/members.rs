//! The members behind a listener, as configured at one moment.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::api::{self, Algorithm, Check, Label, Limits, Network, ProxyProtocol};
use super::counters::TrafficCounters;
use super::health::Checker;
use super::listener::Shared;

/// A member as one listener sees it.
#[derive(Debug)]
pub(super) struct Backend {
    /// Where it is.
    pub(super) address: SocketAddr,
    /// Its traffic through this listener.
    pub(super) counters: Arc<TrafficCounters>,
    /// Written by its checker only.
    healthy: AtomicBool,
    /// Connections it has, or is about to get.
    assigned: AtomicUsize,
    /// Interrupts its connections.
    interrupt: CancellationToken,
}

impl Backend {
    pub(super) fn new(address: SocketAddr, shared: &Shared) -> Self {
        Self {
            address,
            counters: Arc::default(),
            healthy: AtomicBool::new(true),
            assigned: AtomicUsize::new(0),
            interrupt: shared.interrupt.child_token(),
        }
    }

    /// Whether it passes its health check, as of the last one.
    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Notes the judgement of its checker.
    pub(super) fn judge(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Connections it has, or is about to get.
    pub(super) fn assigned(&self) -> usize {
        self.assigned.load(Ordering::Relaxed)
    }

    /// Counts one connection as this member's, for as long as the guard lives.
    pub(super) fn assign(&self) -> Assigned<'_> {
        self.assigned.fetch_add(1, Ordering::Relaxed);
        Assigned(self)
    }

    /// What ends its connections from here.
    pub(super) const fn interrupt(&self) -> &CancellationToken {
        &self.interrupt
    }

    /// How well it suits a client, the same in every process and at any time (rendezvous hashing): a client takes the member that
    /// suits it best.
    pub(super) fn rank(&self, client: IpAddr) -> u64 {
        // FNV-1a, because it is the same for ever, and then the end of splitmix64, because its highest bits say little.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut mix = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for address in [client.to_canonical(), self.address.ip()] {
            match address {
                IpAddr::V4(address) => mix(&address.octets()),
                IpAddr::V6(address) => mix(&address.octets()),
            }
        }
        mix(&self.address.port().to_be_bytes());
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }

    /// Its counters.
    pub(super) fn label(&self) -> Label {
        Label { healthy: Some(self.is_healthy()), ..self.counters.label(self.address.to_string()) }
    }
}

/// One connection of a member, as far as its choice is concerned.
#[derive(Debug)]
pub(super) struct Assigned<'a>(&'a Backend);

impl Drop for Assigned<'_> {
    fn drop(&mut self) {
        self.0.assigned.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Members behind a listener, and how they are chosen.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) check: Check,
    pub(super) limits: Limits,
    pub(super) algorithm: Algorithm,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// Whose connections begin with the PROXY protocol.
    pub(super) trusted: Vec<Network>,
    members: Vec<(Arc<Backend>, Arc<Checker>)>,
    /// Members of former pools that still have connections, with what ends those.
    leaving: BTreeMap<SocketAddr, (Arc<Backend>, Arc<DrainTimer>)>,
}

/// Interrupts the connections of a member when its time is over; does nothing once dropped.
#[derive(Debug)]
struct DrainTimer(AbortHandle);

impl Drop for DrainTimer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Pool {
    /// The members of a configuration. Those that were in the former pool keep health and counters.
    pub(super) fn new(listener: &api::Listener, former: Option<&Self>, shared: &Shared) -> Self {
        let (check, proxy_protocol) = (listener.health_check, listener.proxy_protocol);
        let members: Vec<_> = (listener.members.iter())
            .map(|member| {
                let address = member.address();
                let same = former.filter(|pool| (pool.check, pool.proxy_protocol) == (check, proxy_protocol));
                if let Some(known) = same.and_then(|pool| pool.members.iter().find(|m| m.0.address == address)) {
                    return known.clone();
                }
                let known = former.and_then(|pool| pool.find(address));
                let backend = known.unwrap_or_else(|| Arc::new(Backend::new(address, shared)));
                let checker = Arc::new(Checker::start(Arc::clone(&backend), check, proxy_protocol));
                (backend, checker)
            })
            .collect();
        let is_member = |address| members.iter().any(|(member, _)| member.address == address);
        let mut leaving = BTreeMap::new();
        if let Some(former) = former {
            let gone = former.members.iter().map(|(member, _)| member).filter(|member| !is_member(member.address));
            for member in gone.filter(|member| member.assigned() > 0) {
                leaving.insert(
                    member.address,
                    (Arc::clone(member), Arc::new(DrainTimer(interrupt_later(member, &listener.limits)))),
                );
            }
            for (address, (member, timer)) in &former.leaving {
                if !is_member(*address) && member.assigned() > 0 {
                    leaving.entry(*address).or_insert((Arc::clone(member), Arc::clone(timer)));
                }
            }
        }
        Self {
            name: listener.name.clone(),
            check,
            limits: listener.limits,
            algorithm: listener.algorithm,
            proxy_protocol,
            trusted: listener.trust_proxy_from.clone(),
            members,
            leaving,
        }
    }

    /// Its members, in the order of the configuration.
    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.members.iter().map(|(member, _)| member)
    }

    /// A member, or one that was and still has connections.
    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<Backend>> {
        let member = self.members().find(|member| member.address == address);
        member.or(self.leaving.get(&address).map(|(member, _)| member)).cloned()
    }

    /// A member of another process that is none here, with the time that its connections have.
    pub(super) fn unknown(&self, address: SocketAddr, shared: &Shared) -> Arc<Backend> {
        let backend = Arc::new(Backend::new(address, shared));
        interrupt_later(&backend, &self.limits);
        backend
    }

    /// Gives all its connections the drain time-out to end.
    pub(super) fn retire(&self) {
        for member in self.members().filter(|member| member.assigned() > 0) {
            interrupt_later(member, &self.limits);
        }
    }
}

/// Interrupts the connections of a member once the drain time-out is over.
fn interrupt_later(member: &Backend, limits: &Limits) -> AbortHandle {
    let (interrupt, timeout) = (member.interrupt.clone(), limits.drain_timeout());
    let task = tokio::spawn(async move {
        sleep(timeout).await;
        interrupt.cancel();
    });
    task.abort_handle()
}
