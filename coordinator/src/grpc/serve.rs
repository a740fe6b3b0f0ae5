//! Serves calls on connections. Each connection is a task of its own, which also ends it:
//!
//! | when | the connection |
//! |---|---|
//! | had no call for the idle time-out | is announced to end (GOAWAY), takes no new calls, and ends with the last one |
//! | belongs to a server that stops | the same, and is cut off after the drain time-out |
//! | showed a certificate that is no longer accepted | ends at once |

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::ServiceExt;
use tracing::{debug, error, warn};

use super::incoming::{Incoming, IncomingConnection, PeerIdentity};
use super::layer::Calls;

/// Calls under way on one connection. A standby passes the calls of all its clients on over one; others may have fewer, see
/// [`connections`](super::connections).
const STREAMS: u32 = 4_096;
/// Bytes of the headers of one call, names and values and 32 for each: four times what a bearer token needs.
const HEADERS: u32 = 16 * 1024;
/// Calls of one connection that may be cancelled before they were looked at; beyond it the connection is closed.
const RESETS: usize = 64;
/// The same for a peer with a certificate. A standby passes on what any of its clients cancels, and closing its connection
/// would end the calls of all others.
const RESETS_OF_KNOWN: usize = 4_096;
/// Bytes that a peer may send before they are read, on one stream and on one connection: what [`arriving`](super::arriving)
/// does not see yet. 100 ms away that is 1.2 MB a second of one call.
const WINDOWS: (u32, u32) = (128 * 1024, 256 * 1024);
/// How often a peer is asked whether it is still there, and how long it may take to answer.
const ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// Answers calls on `incoming` connections until `closing`, and then at most for `drain` longer those that are under way.
pub async fn serve<S: Calls>(mut incoming: Incoming, calls: S, closing: CancellationToken, drain: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = closing.cancelled() => break,
            connection = incoming.next() => match connection {
                Some(connection) => {
                    connections.spawn(serve_one(connection, calls.clone(), closing.clone()));
                }
                None => break,
            },
            Some(ended) = connections.join_next() => if let Err(failure) = ended {
                error!("the task of a connection failed: {failure}");
            },
        }
    }
    drop(incoming);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, ended).await.is_err() {
        warn!(connections = connections.len(), "open calls did not end within {drain:?} and are cut off");
    }
}

/// Serves at one listener, within default bounds, for ever.
#[cfg(test)]
pub(crate) async fn serve_listener<S: Calls>(
    listener: super::Listener,
    tls: Option<runtime::tls::ServerTls>,
    calls: S,
) {
    let incoming = super::incoming_within(vec![listener], tls, &super::connections::Places::default());
    serve(incoming, calls, CancellationToken::new(), Duration::ZERO).await;
}

/// Serves one connection until it ends.
async fn serve_one<S: Calls>(connection: IncomingConnection, calls: S, closing: CancellationToken) {
    let IncomingConnection { stream, peer, trusted, place } = connection;
    let caller = peer.clone();
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(caller.clone());
        let answer: BoxFuture<'static, Result<Response<Body>, Infallible>> = calls.clone().oneshot(request).boxed();
        answer
    });
    let resets = if matches!(peer.identity, PeerIdentity::Certificate(_)) { RESETS_OF_KNOWN } else { RESETS };
    let mut served = pin!(protocol(resets).serve_connection(TokioIo::new(stream), service));
    let mut idle = pin!(place.idle());
    let mut revoked = pin!(async {
        match trusted {
            Some(trusted) => trusted.over().await,
            None => std::future::pending().await,
        }
    });
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = &mut served => {
                if let Err(error) = ended {
                    debug!(%peer, "the connection ended: {error}");
                }
                return;
            }
            () = &mut revoked => return,
            () = &mut idle, if !leaving => debug!(%peer, "closing a connection without calls"),
            () = closing.cancelled(), if !leaving => {}
        }
        // A peer that does not answer this is found out by the pings.
        leaving = true;
        served.as_mut().graceful_shutdown();
    }
}

fn protocol(resets: usize) -> http2::Builder<TokioExecutor> {
    let mut protocol = http2::Builder::new(TokioExecutor::new());
    protocol
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(ALIVE.0))
        .keep_alive_timeout(ALIVE.1)
        .max_concurrent_streams(Some(STREAMS))
        .max_header_list_size(HEADERS)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_pending_accept_reset_streams(Some(resets));
    protocol
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;
    use tonic::service::Routes;

    use super::*;
    use crate::grpc::connections::{Config, Places};
    use crate::grpc::{Listener, incoming_within};

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn listen(places: &Places) -> (SocketAddr, Incoming) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        (address, incoming_within(vec![Listener::Tcp(listener)], None, places))
    }

    /// A client of HTTP/2 that has sent its preface and empty settings, and then these bytes.
    async fn client(address: SocketAddr, more: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let said = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice(), more].concat();
        stream.write_all(&said).await.expect("sent");
        stream
    }

    /// Reads frames until one of this type, and returns its content; `None` at the end of the connection.
    async fn frame(stream: &mut TcpStream, kind: u8) -> Option<Vec<u8>> {
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.ok()?;
            let mut content = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
            stream.read_exact(&mut content).await.ok()?;
            if header[3] == kind {
                return Some(content);
            }
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_announced_to_end() {
        let config = Config { idle_timeout: Duration::from_millis(200), ..Config::default() };
        let (address, incoming) = listen(&Places::new(&config, u64::MAX)).await;
        tokio::spawn(serve(incoming, Routes::default(), CancellationToken::new(), Duration::ZERO));
        let mut stream = client(address, b"").await;
        let goaway = tokio::time::timeout(DEADLINE, frame(&mut stream, 7)).await.expect("in time").expect("GOAWAY");
        assert_eq!(goaway[4..8], [0; 4], "no error");
    }

    #[tokio::test]
    async fn a_call_that_does_not_end_is_cut_off_after_the_drain_time_out() {
        let drain = Duration::from_millis(300);
        let (address, incoming) = listen(&Places::default()).await;
        let (called, mut begun) = tokio::sync::mpsc::channel(1);
        let calls = tower::service_fn(move |_: Request<Body>| {
            let called = called.clone();
            async move {
                let _ = called.send(()).await;
                std::future::pending::<Result<Response<Body>, Infallible>>().await
            }
        });
        let closing = CancellationToken::new();
        let served = tokio::spawn(serve(incoming, calls, closing.clone(), drain));
        // HEADERS of stream 1: POST, http, path `/`, and no more.
        let mut stream = client(address, &[0, 0, 3, 1, 5, 0, 0, 0, 1, 0x83, 0x86, 0x84]).await;
        tokio::time::timeout(DEADLINE, begun.recv()).await.expect("in time").expect("the call begins");
        let began = Instant::now();
        closing.cancel();
        assert!(frame(&mut stream, 7).await.is_some(), "it is announced");
        tokio::time::timeout(DEADLINE, served).await.expect("in time").expect("no panic");
        assert!(began.elapsed() >= drain && began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
        let end = async { while frame(&mut stream, 0).await.is_some() {} };
        tokio::time::timeout(DEADLINE, end).await.expect("the connection is closed");
    }
}
