//! Which connections are served: how many, how many of one address, and for how long one may be idle.
//!
//! A connection that was accepted is *pending* until its handshake and the preface of HTTP/2 have come; [`super::incoming`]
//! bounds those by number and time, and gives one up for a new one, so that connections that say nothing keep no
//! one out. Only then it takes a *place* here. Both are bounded by the descriptors this process may have. One peer, which is
//! a certificate's name or a network without one, takes half of them at most, and the last eighth is kept for peers with a
//! certificate, networks that workers had sessions from, and Unix sockets. A place is given back with its connection, at the
//! latest after a time without any call.
//!
//! Calls under way on one connection are bounded, too: each costs memory, even one whose request never comes. Coordinators
//! are exempt, because a standby passes on the calls of all its clients over one connection, and so is everybody over plain TCP, where
//! nobody can tell which peer is one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::appliance::FieldViolation;
use futures::FutureExt;
use http::{Request, Response};
use runtime::log_limited;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tracing::info;

use super::authorize::grants_of;
use super::incoming::{PeerAddress, PeerIdentity, PeerInfo};
use super::layer::{Answer, Around, Calls, KeepingBody, Next, at_once};
use super::status;
use crate::access::Policy;
use crate::budget::PeerKey;
use crate::metrics;

/// Descriptors that are kept for everything but connections of peers: the store, ZooKeeper, files, metrics. At most a
/// quarter of all.
const OTHER_DESCRIPTORS: usize = 128;
/// Most connections that are *pending* at once. Some thousand, when the leader changes, take a second of one core; each
/// stalled one costs a descriptor and some ten KiB until its deadline.
pub(super) const MAX_PENDING: usize = 256;
/// Fewest connections that can be configured.
const FEWEST: usize = 64;
/// Calls under way on one connection of a peer that is no coordinator.
const MAX_CALLS: usize = 128;
/// Networks of workers that are remembered.
const MAX_KNOWN: usize = 4_096;
/// The call whose callers are workers.
pub(super) const SESSION: &str = "/rug.worker.v1.Session/Open";

/// Settings of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Connections served at once; fewer where the limit of descriptors leaves less. Each worker has one, each client one
    /// or more.
    pub max: usize,
    /// Time after which a connection without calls is closed; clients open another one when they need it. At least 10s.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub idle_timeout: Duration,
    /// How long calls that are under way may go on when the coordinator stops; what is left then is cut off. 60s at most.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max: 16_384, idle_timeout: Duration::from_secs(15 * 60), drain_timeout: Duration::from_secs(3) }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if !(FEWEST..=1_000_000).contains(&self.max) {
            found.push(FieldViolation::new("max", format!("must be {FEWEST} to 1000000")));
        }
        if self.idle_timeout < Duration::from_secs(10) {
            found.push(FieldViolation::new("idle_timeout", "must be 10s or more"));
        }
        if self.drain_timeout > Duration::from_secs(60) {
            found.push(FieldViolation::new("drain_timeout", "must be 60s or less"));
        }
        found
    }
}

/// Why a connection gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    #[error("this peer has {0} connections already")]
    Peer(usize),
    #[error("{0} connections are open, the rest is kept for workers that are known")]
    Strangers(usize),
    #[error("{0} connections are open, which is all")]
    Full(usize),
}

impl NoPlace {
    /// The name in metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::Peer(_) => "peer",
            Self::Strangers(_) => "strangers",
            Self::Full(_) => "full",
        }
    }
}

/// All places. Clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<PlacesShared>);

#[derive(Debug)]
struct PlacesShared {
    max: usize,
    pending: usize,
    idle: Duration,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<PeerKey, usize>,
    /// Use of each connection over TCP.
    uses: HashMap<SocketAddr, Arc<ConnectionUse>>,
    /// When a worker last opened a session from a network.
    known: HashMap<String, Instant>,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(&Config::default(), u64::MAX)
    }
}

impl Places {
    /// Places for a process that may have this number of descriptors: a part is kept for everything else, and a part for
    /// connections that are pending.
    #[must_use]
    pub fn new(config: &Config, descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let left = descriptors - OTHER_DESCRIPTORS.min(descriptors / 4);
        let pending = MAX_PENDING.min(left / 4).max(1);
        let max = config.max.min(left - pending.min(left)).max(1);
        if max < config.max {
            info!(max, pending, descriptors, "the limit of descriptors bounds the number of connections");
        }
        Self(Arc::new(PlacesShared { max, pending, idle: config.idle_timeout, taken: Mutex::default() }))
    }

    /// Connections that may be pending at once, over all listeners.
    pub(super) fn pending(&self) -> usize {
        self.0.pending
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // No code under the lock panics.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place.
    pub(super) fn take(&self, peer: &PeerInfo) -> Result<Place, NoPlace> {
        let taken = self.try_take(peer);
        if let Err(why) = &taken {
            metrics::connection_refused(why.name());
        }
        taken
    }

    fn try_take(&self, peer: &PeerInfo) -> Result<Place, NoPlace> {
        let max = self.0.max;
        let mut taken = self.taken();
        let all = taken.all;
        if all >= max {
            return Err(NoPlace::Full(all));
        }
        let key: PeerKey = peer.key().into();
        if let PeerAddress::Tcp(tcp) = peer.address {
            let is_known = matches!(peer.identity, PeerIdentity::Certificate(_))
                || taken.known.contains_key(&peer.address.network());
            if !is_known && all >= max - max / 8 {
                return Err(NoPlace::Strangers(all));
            }
            let of_peer = taken.by_peer.entry(Arc::clone(&key)).or_default();
            if *of_peer >= max / 2 {
                return Err(NoPlace::Peer(*of_peer));
            }
            *of_peer += 1;
            taken.uses.insert(tcp, Arc::new(ConnectionUse::new()));
        }
        taken.all += 1;
        metrics::connections(taken.all, max);
        Ok(Place { places: self.clone(), address: peer.address, key })
    }

    fn give_back(&self, address: PeerAddress, key: &PeerKey) {
        let mut taken = self.taken();
        taken.all -= 1;
        metrics::connections(taken.all, self.0.max);
        if let PeerAddress::Tcp(tcp) = address {
            taken.uses.remove(&tcp);
            if let Some(of_peer) = taken.by_peer.get_mut(key) {
                *of_peer -= 1;
                if *of_peer == 0 {
                    taken.by_peer.remove(key);
                }
            }
        }
    }

    /// Notes that a worker has opened a session from an address.
    fn remember(&self, address: PeerAddress) {
        let network = address.network();
        let mut taken = self.taken();
        if taken.known.len() >= MAX_KNOWN
            && !taken.known.contains_key(&network)
            && let Some(oldest) = taken.known.iter().min_by_key(|(_, at)| **at).map(|(network, _)| network.clone())
        {
            taken.known.remove(&oldest);
        }
        taken.known.insert(network, Instant::now());
    }

    fn connection_use(&self, address: SocketAddr) -> Option<Arc<ConnectionUse>> {
        self.taken().uses.get(&address).cloned()
    }
}

/// The place of one connection; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: PeerAddress,
    /// Whose share it is of.
    key: PeerKey,
}

impl Place {
    /// Ready once its connection has had no call for too long; never over a Unix socket.
    pub(super) async fn idle(&self) {
        let PeerAddress::Tcp(address) = self.address else { return std::future::pending().await };
        let Some(of) = self.places.connection_use(address) else { return std::future::pending().await };
        let limit = self.places.0.idle;
        let mut until = Instant::now() + limit;
        loop {
            tokio::time::sleep_until(until).await;
            let now = Instant::now();
            until = {
                let state = of.state();
                if state.open > 0 { now + limit } else { state.idle_since + limit }
            };
            if until <= now {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(self.address, &self.key);
    }
}

/// Calls of one connection.
#[derive(Debug)]
struct ConnectionUse(Mutex<UseState>);

#[derive(Debug)]
struct UseState {
    open: usize,
    /// When the last call ended, or the connection began.
    idle_since: Instant,
}

impl ConnectionUse {
    fn new() -> Self {
        Self(Mutex::new(UseState { open: 0, idle_since: Instant::now() }))
    }

    fn state(&self) -> MutexGuard<'_, UseState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts calls of each connection, and learns from where workers come. Goes around everything else. Which peers are
/// coordinators, and may have any number of calls under way, says `policy`; `accepts_tokens` is whether peers without a
/// certificate may show tokens.
#[derive(Clone, Debug)]
pub struct CountCalls {
    /// Places of the connections that calls come over.
    pub places: Places,
    /// Who is a coordinator.
    pub policy: Policy,
    /// Whether peers without a certificate may show tokens.
    pub accepts_tokens: bool,
}

impl CountCalls {
    /// Begins a call on a connection.
    ///
    /// # Errors
    /// The status it is refused with.
    fn begin(&self, of: &Arc<ConnectionUse>, peer: &PeerInfo) -> Result<OpenCall, Status> {
        let is_coordinator = || grants_of(&self.policy, self.accepts_tokens, peer).is_some_coordinator();
        OpenCall::within(of, MAX_CALLS)
            .or_else(|| is_coordinator().then(|| OpenCall::within(of, usize::MAX)).flatten())
            .ok_or_else(|| {
                log_limited!(warn, %peer, "call refused: {MAX_CALLS} are under way on its connection");
                status::too_many_calls(MAX_CALLS)
            })
    }
}

impl Around for CountCalls {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let peer = request.extensions().get::<PeerInfo>();
        let Some((peer, PeerAddress::Tcp(address))) = peer.map(|peer| (peer, peer.address)) else {
            return next.call(request);
        };
        let begun = self.places.connection_use(address).map(|of| self.begin(&of, peer)).transpose();
        let call = match begun {
            Ok(call) => call,
            Err(refusal) => return at_once(&refusal),
        };
        let session = (request.uri().path() == SESSION).then(|| self.places.clone());
        let counted = move |answer: Response<Body>| {
            if let Some(places) = session
                && Status::from_header_map(answer.headers()).is_none()
            {
                places.remember(PeerAddress::Tcp(address));
            }
            KeepingBody::of(answer, call)
        };
        next.call(request).map(counted).boxed()
    }
}

/// A call under way.
#[derive(Debug)]
struct OpenCall(Arc<ConnectionUse>);

impl OpenCall {
    /// Begins one, unless as many as `most` are under way.
    fn within(of: &Arc<ConnectionUse>, most: usize) -> Option<Self> {
        let mut state = of.state();
        if state.open >= most {
            return None;
        }
        state.open += 1;
        Some(Self(Arc::clone(of)))
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use runtime::socket::LocalUser;
    use runtime::tls::Identity;

    use super::*;
    use crate::access;

    fn peer(ip: u8, port: u16) -> PeerInfo {
        PeerInfo { address: PeerAddress::Tcp(([10, 0, 0, ip], port).into()), identity: PeerIdentity::Unverified }
    }

    fn local() -> PeerInfo {
        let user = LocalUser { uid: 0, gid: 0, pid: None };
        PeerInfo { address: PeerAddress::Unix, identity: PeerIdentity::Local(user) }
    }

    fn certified(name: &str, port: u16) -> PeerInfo {
        let identity = Identity {
            common_name: Some(name.into()),
            names: Vec::new(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::now(),
        };
        PeerInfo { identity: PeerIdentity::Certificate(Arc::new(identity)), ..peer(1, port) }
    }

    #[test]
    fn places_are_bounded_in_all_and_by_peer_and_the_last_are_for_workers_and_certificates() {
        let config = Config { max: 80, ..Config::default() };
        let places = Places::new(&config, u64::MAX);
        let mut open: Vec<_> = (0..40).map(|port| places.take(&peer(1, port)).expect("free")).collect();
        assert_eq!(places.take(&peer(1, 99)).expect_err("half"), NoPlace::Peer(40));
        open.extend((0..30).map(|port| places.take(&peer(2, port)).expect("free")));
        assert_eq!(places.take(&peer(3, 1)).expect_err("a stranger"), NoPlace::Strangers(70));
        places.remember(peer(3, 1).address);
        open.extend((0..7).map(|port| places.take(&peer(3, port)).expect("a worker was there")));
        open.push(
            places.take(&certified("operator", 101)).expect("its address has too many, its certificate has none"),
        );
        open.push(places.take(&certified("worker-1", 102)).expect("the same"));
        open.push(places.take(&local()).expect("kept"));
        assert_eq!(places.take(&local()).expect_err("all"), NoPlace::Full(80));
        drop(open);
        assert!(places.taken().by_peer.is_empty() && places.taken().uses.is_empty());
        let mut open: Vec<_> = (0..40).map(|port| places.take(&certified("worker-1", port)).expect("free")).collect();
        assert_eq!(places.take(&certified("worker-1", 99)).expect_err("half"), NoPlace::Peer(40));
        open.push(places.take(&peer(1, 100)).expect("a certificate's places are not those of its address"));
    }

    #[test]
    fn all_addresses_of_one_ipv6_network_are_one_peer() {
        let places = Places::new(&Config { max: 64, ..Config::default() }, u64::MAX);
        let address = |n: u16| PeerAddress::Tcp(SocketAddr::from(([0x2001, 0xdb8, 0, 1, n, n, n, n], 1)));
        let peer = |n| PeerInfo { address: address(n), identity: PeerIdentity::Unverified };
        let _open: Vec<_> = (0..32).map(|n| places.take(&peer(n)).expect("free")).collect();
        assert_eq!(places.take(&peer(99)).expect_err("half"), NoPlace::Peer(32));
    }

    #[test]
    fn calls_of_one_connection_are_bounded_unless_its_peer_may_be_a_coordinator() {
        let places = Places::default();
        let _place = places.take(&peer(1, 1)).expect("free");
        let of = places.connection_use(([10, 0, 0, 1], 1).into()).expect("it has a place");
        let stranger = peer(1, 1);
        let bound = |accepts_tokens| CountCalls {
            places: places.clone(),
            policy: Policy::new(&access::Config::default()),
            accepts_tokens,
        };
        let mut open: Vec<_> = (0..MAX_CALLS).map(|_| bound(true).begin(&of, &stranger).expect("free")).collect();
        let refused = bound(true).begin(&of, &stranger).expect_err("all");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        open.push(bound(false).begin(&of, &stranger).expect("plain TCP: it may be a coordinator"));
        drop(open);
        assert!(bound(true).begin(&of, &stranger).is_ok(), "calls come back");
    }

    #[test]
    fn descriptors_bound_what_is_pending_and_the_places() {
        let bounds = |descriptors| {
            let places = Places::new(&Config::default(), descriptors);
            (places.pending(), places.0.max)
        };
        assert_eq!(bounds(u64::MAX), (MAX_PENDING, Config::default().max));
        for (descriptors, pending, max) in [(4_096, 256, 3_712), (1_024, 224, 672), (256, 48, 144), (64, 12, 36)] {
            assert_eq!(bounds(descriptors), (pending, max), "{descriptors}");
        }
        assert_eq!(bounds(0), (1, 1));
    }

    #[test]
    fn a_flood_of_addresses_is_not_remembered() {
        let places = Places::default();
        (0..=u32::try_from(MAX_KNOWN).expect("small"))
            .for_each(|n| places.remember(PeerAddress::Tcp((n.to_be_bytes(), 1).into())));
        assert_eq!(places.taken().known.len(), MAX_KNOWN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_over_when_it_had_no_call_for_a_while() {
        let places = Places::default();
        let place = places.take(&peer(1, 1)).expect("free");
        let limit = Config::default().idle_timeout;
        let of = places.connection_use(([10, 0, 0, 1], 1).into()).expect("it has a place");
        let call = OpenCall::within(&of, MAX_CALLS).expect("the first");
        let mut over = std::pin::pin!(place.idle());
        assert!(tokio::time::timeout(limit * 3, &mut over).await.is_err(), "a call is open");
        drop(call);
        let ended = Instant::now();
        over.await;
        assert!(ended.elapsed() >= limit && ended.elapsed() < limit * 2, "{:?}", ended.elapsed());
    }
}
