//! The management server: HTTP/1 with a bound on everything that a caller can take.
//!
//! There are at most [`MOST_CONNECTIONS`] connections. When one more comes, the oldest of those that have not shown the secret
//! makes room, and one that has only if all have: a stranger who opens connections in a loop closes his own. A connection
//! that has not shown the secret within [`STRANGER_TIME`] is closed. One request has [`REQUEST_TIME`], its body a limit of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use worker_core::instance::ManagementSecret;

/// Connections at a time. A worker uses one; the rest is for people who look.
pub(super) const MOST_CONNECTIONS: usize = 64;
/// How long a connection may last without having shown the secret. Probes without one need milliseconds.
const STRANGER_TIME: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request to be complete up to its body. Longer than the 90 s after which a
/// worker closes an idle connection itself, so that it does not send into one that is being closed.
const IDLE_TIME: Duration = Duration::from_secs(120);
/// How long one request may take, from its head to its answer. Binding 256 listeners takes less than a second.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(30);
/// Most bytes of the head of a request.
const MOST_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What one connection has shown; requests carry it as an extension.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller(Arc<CallerState>);

#[derive(Debug, Default)]
struct CallerState {
    known: AtomicBool,
    close: CancellationToken,
}

impl Caller {
    /// Compares what a caller sent with the secret, in a time that does not depend on where they differ. Returns whether it
    /// is the secret.
    pub(super) fn shows(&self, sent: &[u8], secret: &ManagementSecret) -> bool {
        let same = bool::from(sent.ct_eq(secret.reveal().as_bytes()));
        if same {
            self.0.known.store(true, Ordering::Relaxed);
        }
        same
    }

    /// Whether it has shown the secret.
    pub(super) fn is_known(&self) -> bool {
        self.0.known.load(Ordering::Relaxed)
    }
}

/// Open connections, oldest first.
#[derive(Debug, Default)]
struct Connections(Mutex<VecDeque<Caller>>);

impl Connections {
    /// Takes in a new connection; one that is there already makes room if there are too many.
    fn enter(&self) -> Caller {
        let caller = Caller::default();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MOST_CONNECTIONS {
            let at = open.iter().position(|caller| !caller.is_known()).unwrap_or(0);
            if let Some(oldest) = open.remove(at) {
                oldest.0.close.cancel();
            }
        }
        open.push_back(caller.clone());
        caller
    }

    fn leave(&self, caller: &Caller) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| !Arc::ptr_eq(&other.0, &caller.0));
    }
}

/// Serves the routes until it is dropped; connections that are open then end with the runtime. `closed` says whether callers have
/// to show a secret.
pub(super) async fn serve(socket: TcpListener, router: Router, closed: bool) {
    let connections = Arc::new(Connections::default());
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let (connections, router) = (Arc::clone(&connections), router.clone());
                let caller = connections.enter();
                // Bounded by what `enter` lets stay open.
                tokio::spawn(async move {
                    tokio::select! {
                        () = converse(stream, router, caller.clone()) => {}
                        () = caller.0.close.cancelled() => {}
                        () = stranger(&caller, closed) => {}
                    }
                    connections.leave(&caller);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a management connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Ends when a connection has had the time in which it had to show the secret, and did not.
async fn stranger(caller: &Caller, closed: bool) {
    sleep(STRANGER_TIME).await;
    if !closed || caller.is_known() {
        std::future::pending().await
    }
}

async fn converse(stream: TcpStream, router: Router, caller: Caller) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (router, caller) = (router.clone(), caller.clone());
        async move {
            let mut request: Request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(caller);
            Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {}))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_TIME).max_buf_size(MOST_HEAD);
    // How it ended is the caller's business.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// Bounds one request in time; `None` when it took too long.
pub(super) async fn in_time<T>(request: impl Future<Output = T>) -> Option<T> {
    timeout(REQUEST_TIME, request).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_one_that_is_known_only_when_all_are() {
        let secret = ManagementSecret::new("x".repeat(32)).expect("long enough");
        let connections = Connections::default();
        let callers: Vec<_> = (0..MOST_CONNECTIONS).map(|_| connections.enter()).collect();
        let closed = |n: usize| callers[n].0.close.is_cancelled();
        assert!(!callers[0].shows(&[b'y'; 32], &secret) && !callers[0].shows(b"", &secret));
        assert!(callers[0].shows(&[b'x'; 32], &secret));
        let next = connections.enter();
        assert_eq!((closed(0), closed(1), closed(2)), (false, true, false));
        connections.leave(&next);
        connections.enter();
        assert!(!closed(2), "there was room");
        for caller in callers.iter().skip(2).chain(connections.0.lock().expect("no panic").iter()) {
            caller.shows(&[b'x'; 32], &secret);
        }
        connections.enter();
        assert_eq!((closed(0), closed(2)), (true, false));
        assert_eq!(connections.0.lock().expect("no panic").len(), MOST_CONNECTIONS);
    }
}
