//! Which connections are served: how many, how many of one address, and for how long one may be idle.
//!
//! A connection that was accepted is *pending* until its handshake and the preface of HTTP/2 have come; [`super::incoming`]
//! bounds those by number and time, and gives up the oldest for a new one, so that connections that say nothing keep no
//! one out. Only then it takes a *place* here. Places are bounded by the descriptors this process may have. One address
//! takes half of them at most, and the last eighth is kept for addresses that workers had sessions from, and for Unix
//! sockets. A place is given back with its connection, at the latest after a time without any call.
//!
//! Calls under way on one connection are bounded, too: each costs memory, even one whose request never comes. Coordinators
//! are exempt, because a standby passes on the calls of all its clients over one connection, and so is everybody over plain TCP, where
//! nobody can tell which peer is one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use common::appliance::FieldViolation;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use http::{Request, Response};
use http_body::Frame;
use runtime::log_limited;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tower::{Layer, Service};

use super::authorize::grants_of;
use super::incoming::{MAX_PENDING, PeerAddress, PeerInfo};
use super::status;
use crate::access::Policy;

/// Descriptors that are left for everything but connections of peers: the store, ZooKeeper, files, metrics.
const OTHER_DESCRIPTORS: u64 = 128;
/// Fewest places, whatever the limit of descriptors is.
const FEWEST: usize = 64;
/// Calls under way on one connection of a peer that is no coordinator.
const MAX_CALLS: usize = 128;
/// Addresses of workers that are remembered.
const MAX_KNOWN: usize = 4_096;
/// The call whose callers are workers.
pub(super) const SESSION: &str = "/rug.worker.v1.Session/Open";

/// Settings of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Connections served at once; fewer where the limit of descriptors leaves less. Each worker has one, each client one
    /// or more.
    pub max: usize,
    /// Time after which a connection without calls is closed; clients open another one when they need it. At least 10s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max: 16_384, idle_timeout: Duration::from_secs(15 * 60) }
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
        found
    }
}

/// Why a connection gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    #[error("one address has {0} connections already")]
    Address(usize),
    #[error("{0} connections are open, the rest is kept for workers that are known")]
    Strangers(usize),
    #[error("{0} connections are open, which is all")]
    Full(usize),
}

/// All places. Clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<PlacesShared>);

#[derive(Debug)]
struct PlacesShared {
    max: usize,
    idle: Duration,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Use of each connection over TCP.
    uses: HashMap<SocketAddr, Arc<ConnectionUse>>,
    /// When a worker last opened a session from an address.
    known: HashMap<IpAddr, Instant>,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(&Config::default(), u64::MAX)
    }
}

impl Places {
    /// Places for a process that may have this number of descriptors.
    #[must_use]
    pub fn new(config: &Config, descriptors: u64) -> Self {
        let left = descriptors.saturating_sub(OTHER_DESCRIPTORS + MAX_PENDING as u64);
        let max = config.max.min(usize::try_from(left).unwrap_or(usize::MAX)).max(FEWEST);
        Self(Arc::new(PlacesShared { max, idle: config.idle_timeout, taken: Mutex::default() }))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // No code under the lock panics.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place.
    pub(super) fn take(&self, address: PeerAddress) -> Result<Place, NoPlace> {
        let max = self.0.max;
        let mut taken = self.taken();
        if taken.all >= max {
            return Err(NoPlace::Full(taken.all));
        }
        if let PeerAddress::Tcp(tcp) = address {
            let (ip, all) = (tcp.ip(), taken.all);
            let known = taken.known.contains_key(&ip);
            if !known && all >= max - max / 8 {
                return Err(NoPlace::Strangers(all));
            }
            let of_address = taken.by_address.entry(ip).or_default();
            if *of_address >= max / 2 {
                return Err(NoPlace::Address(*of_address));
            }
            *of_address += 1;
            taken.uses.insert(tcp, Arc::new(ConnectionUse::new()));
        }
        taken.all += 1;
        Ok(Place { places: self.clone(), address })
    }

    fn give_back(&self, address: PeerAddress) {
        let mut taken = self.taken();
        taken.all -= 1;
        if let PeerAddress::Tcp(tcp) = address {
            taken.uses.remove(&tcp);
            if let Some(of_address) = taken.by_address.get_mut(&tcp.ip()) {
                *of_address -= 1;
                if *of_address == 0 {
                    taken.by_address.remove(&tcp.ip());
                }
            }
        }
    }

    /// Notes that a worker has opened a session from an address.
    fn remember(&self, ip: IpAddr) {
        let mut taken = self.taken();
        if taken.known.len() >= MAX_KNOWN
            && !taken.known.contains_key(&ip)
            && let Some(oldest) = taken.known.iter().min_by_key(|(_, at)| **at).map(|(ip, _)| *ip)
        {
            taken.known.remove(&oldest);
        }
        taken.known.insert(ip, Instant::now());
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
}

impl Place {
    /// How long its connection may be without calls; `None` over a Unix socket.
    pub(super) fn idle(&self) -> Option<IdleLimit> {
        let PeerAddress::Tcp(address) = self.address else { return None };
        let limit = self.places.0.idle;
        let of = self.places.connection_use(address)?;
        Some(IdleLimit { of, limit, check: Box::pin(tokio::time::sleep(limit)) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(self.address);
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

/// Ends a connection that has had no call for too long.
#[derive(Debug)]
pub(super) struct IdleLimit {
    of: Arc<ConnectionUse>,
    limit: Duration,
    check: Pin<Box<tokio::time::Sleep>>,
}

impl IdleLimit {
    /// Ready once the connection is to be closed.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.check.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let until = {
                let state = self.of.state();
                if state.open > 0 { now + self.limit } else { state.idle_since + self.limit }
            };
            if until <= now {
                return Poll::Ready(());
            }
            self.check.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// Counts calls of each connection, and learns from where workers come. Goes around everything else.
#[derive(Clone, Debug)]
pub struct ConnectionsLayer {
    places: Places,
    bound: CallBound,
}

/// Who may have any number of calls under way.
#[derive(Clone, Debug)]
struct CallBound {
    policy: Policy,
    accepts_tokens: bool,
}

impl CallBound {
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

impl ConnectionsLayer {
    /// A layer for connections that took these places. Which peers are coordinators says `policy`; `accepts_tokens` is
    /// whether peers without a certificate may show tokens.
    #[must_use]
    pub const fn new(places: Places, policy: Policy, accepts_tokens: bool) -> Self {
        Self { places, bound: CallBound { policy, accepts_tokens } }
    }
}

/// See [`ConnectionsLayer`].
#[derive(Clone, Debug)]
pub struct CountedCalls<S> {
    inner: S,
    places: Places,
    bound: CallBound,
}

impl<S> Layer<S> for ConnectionsLayer {
    type Service = CountedCalls<S>;

    fn layer(&self, inner: S) -> CountedCalls<S> {
        CountedCalls { inner, places: self.places.clone(), bound: self.bound.clone() }
    }
}

impl<S, Q> Service<Request<Q>> for CountedCalls<S>
where
    S: Service<Request<Q>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let peer = request.extensions().get::<PeerInfo>();
        let Some((peer, PeerAddress::Tcp(address))) = peer.map(|peer| (peer, peer.address)) else {
            return self.inner.call(request).boxed();
        };
        let begun = self.places.connection_use(address).map(|of| self.bound.begin(&of, peer)).transpose();
        let call = match begun {
            Ok(call) => call,
            Err(refusal) => return ready(Ok(refusal.into_http())).boxed(),
        };
        let session = (request.uri().path() == SESSION).then(|| self.places.clone());
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await?;
            if let Some(places) = session
                && Status::from_header_map(answer.headers()).is_none()
            {
                places.remember(address.ip());
            }
            Ok(answer.map(|body| Body::new(CountedBody { body, _call: call })))
        }
        .boxed()
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

/// A response whose call ends with it.
struct CountedBody {
    body: Body,
    _call: Option<OpenCall>,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access;
    use crate::grpc::PeerIdentity;

    fn peer(ip: u8, port: u16) -> PeerAddress {
        PeerAddress::Tcp(([10, 0, 0, ip], port).into())
    }

    #[test]
    fn places_are_bounded_in_all_and_by_address_and_the_last_are_for_workers() {
        let config = Config { max: 80, ..Config::default() };
        let places = Places::new(&config, u64::MAX);
        let mut open: Vec<_> = (0..40).map(|port| places.take(peer(1, port)).expect("free")).collect();
        assert_eq!(places.take(peer(1, 99)).expect_err("half"), NoPlace::Address(40));
        open.extend((0..30).map(|port| places.take(peer(2, port)).expect("free")));
        assert_eq!(places.take(peer(3, 1)).expect_err("a stranger"), NoPlace::Strangers(70));
        places.remember([10, 0, 0, 3].into());
        open.extend((0..9).map(|port| places.take(peer(3, port)).expect("a worker was there")));
        open.push(places.take(PeerAddress::Unix).expect("kept"));
        assert_eq!(places.take(PeerAddress::Unix).expect_err("all"), NoPlace::Full(80));
        drop(open);
        assert!(places.taken().by_address.is_empty() && places.taken().uses.is_empty());
        assert!(places.take(peer(1, 99)).is_ok(), "places come back");
    }

    #[test]
    fn calls_of_one_connection_are_bounded_unless_its_peer_may_be_a_coordinator() {
        let places = Places::default();
        let _place = places.take(peer(1, 1)).expect("free");
        let of = places.connection_use(([10, 0, 0, 1], 1).into()).expect("it has a place");
        let stranger = PeerInfo { address: peer(1, 1), identity: PeerIdentity::Unverified };
        let bound = |accepts_tokens| CallBound { policy: Policy::new(&access::Config::default()), accepts_tokens };
        let mut open: Vec<_> = (0..MAX_CALLS).map(|_| bound(true).begin(&of, &stranger).expect("free")).collect();
        let refused = bound(true).begin(&of, &stranger).expect_err("all");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        open.push(bound(false).begin(&of, &stranger).expect("plain TCP: it may be a coordinator"));
        drop(open);
        assert!(bound(true).begin(&of, &stranger).is_ok(), "calls come back");
    }

    #[test]
    fn descriptors_bound_the_places() {
        let max = |descriptors| Places::new(&Config::default(), descriptors).0.max;
        assert_eq!((max(1_024), max(100), max(u64::MAX)), (640, FEWEST, Config::default().max));
    }

    #[test]
    fn a_flood_of_addresses_is_not_remembered() {
        let places = Places::default();
        (0..=u32::try_from(MAX_KNOWN).expect("small")).for_each(|n| places.remember(IpAddr::from(n.to_be_bytes())));
        assert_eq!(places.taken().known.len(), MAX_KNOWN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_over_when_it_had_no_call_for_a_while() {
        let places = Places::default();
        let place = places.take(peer(1, 1)).expect("free");
        let mut idle = place.idle().expect("over TCP");
        let limit = Config::default().idle_timeout;
        let of = places.connection_use(([10, 0, 0, 1], 1).into()).expect("it has a place");
        let call = OpenCall::within(&of, MAX_CALLS).expect("the first");
        let mut over = std::pin::pin!(std::future::poll_fn(|cx| idle.poll_over(cx)));
        assert!(tokio::time::timeout(limit * 3, &mut over).await.is_err(), "a call is open");
        drop(call);
        let ended = Instant::now();
        over.await;
        assert!(ended.elapsed() >= limit && ended.elapsed() < limit * 2, "{:?}", ended.elapsed());
    }
}
