//! Small requests of HTTP/1 that are passed on: connections of strangers, as many as may be open of one address and in all, and what of a
//! request and of its answer goes on.
//!
//! What goes on is listed, and everything else is left out. A list of what is left out would have to know every spelling that the other side
//! takes for a header of ours: to one that speaks WSGI `X_Instance_ID` is `X-Instance-ID`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::log_limited;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Headers of a request that go on.
const PASSED_ON: [HeaderName; 3] = [header::ACCEPT, header::CONTENT_TYPE, header::USER_AGENT];
/// Headers of an answer that go back. Its length follows from its body.
const PASSED_BACK: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CACHE_CONTROL, header::RETRY_AFTER];
/// Longest path with its query, in bytes.
const MAX_TARGET: usize = 2_048;
/// Connections at a time; more wait in the backlog of the system.
const CONNECTIONS: usize = 1_024;
/// The same of one address; more are closed at once. One that asks much keeps one open.
const CONNECTIONS_OF_ONE: usize = 64;
/// How long the head of a request may take, and a connection be idle.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a connection may last in any case, beyond the time of a request.
const LONGEST: Duration = Duration::from_secs(120);
/// Most bytes of the head of a request.
const MOST_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers requests.
pub(crate) trait RequestHandler: Send + Sync + 'static {
    /// Answers one from this address.
    fn handle(&self, sender: IpAddr, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>> + Send;

    /// How long that may take.
    fn timeout(&self) -> Duration;
}

/// Why a request cannot be passed on, or its answer not back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PassError {
    #[error("only GET, HEAD and POST are passed on")]
    Method,
    #[error("the path is none, or too long")]
    Target,
    #[error("the body has more than {0} bytes")]
    LongRequest(u32),
    #[error("the body broke off")]
    BrokenRequest,
    #[error("the answer has more than {0} bytes")]
    LongAnswer(u32),
    /// With the reason, which is for logs: it may name the address.
    #[error("the service does not answer")]
    NoAnswer(String),
}

impl PassError {
    /// What the sender is answered.
    pub(crate) const fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Target | Self::BrokenRequest => StatusCode::BAD_REQUEST,
            Self::LongRequest(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LongAnswer(_) | Self::NoAnswer(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl From<reqwest::Error> for PassError {
    fn from(error: reqwest::Error) -> Self {
        // The innermost one says what happened, such as `connection refused`.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Self::NoAnswer(cause.to_string())
    }
}

/// What of the address of a request goes on.
pub(crate) fn target(method: &Method, uri: &Uri) -> Result<String, PassError> {
    if !matches!(*method, Method::GET | Method::HEAD | Method::POST) {
        return Err(PassError::Method);
    }
    let target = uri.path_and_query().map(http::uri::PathAndQuery::as_str).unwrap_or_default();
    if !target.starts_with('/') || target.len() > MAX_TARGET {
        return Err(PassError::Target);
    }
    Ok(target.to_owned())
}

/// The headers that go on: some of those of the sender, and these.
pub(crate) fn headers(from: &HeaderMap, own: impl IntoIterator<Item = (HeaderName, String)>) -> HeaderMap {
    let mut to = HeaderMap::new();
    for name in PASSED_ON {
        if let Some(value) = from.get(&name) {
            to.insert(name, value.clone());
        }
    }
    for (name, value) in own {
        // A text that cannot be a header is missed by the other side, which says so.
        if let Ok(value) = HeaderValue::try_from(value) {
            to.insert(name, value);
        }
    }
    to
}

/// The body of a request.
pub(crate) async fn read(body: Incoming, most: u32) -> Result<Bytes, PassError> {
    if body.size_hint().lower() > u64::from(most) {
        return Err(PassError::LongRequest(most));
    }
    match Limited::new(body, most as usize).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(PassError::LongRequest(most)),
        Err(_) => Err(PassError::BrokenRequest),
    }
}

/// What of an answer goes back: its status, its body, and what is said about that.
pub(crate) async fn pass_back(
    mut answer: reqwest::Response,
    most: u32,
    is_head: bool,
) -> Result<Response<Full<Bytes>>, PassError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > most as usize {
            return Err(PassError::LongAnswer(most));
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = answer.status();
    let length = is_head.then_some(header::CONTENT_LENGTH);
    for name in PASSED_BACK.into_iter().chain(length) {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

/// An answer of our own, in a line of plain text.
pub(crate) fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Open connections by address.
#[derive(Debug, Default)]
struct Openings(Mutex<HashMap<IpAddr, usize>>);

impl Openings {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Opening> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Opening { all: Arc::clone(self), address })
    }
}

/// One connection, for as long as it is open.
struct Opening {
    all: Arc<Openings>,
    address: IpAddr,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut open = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Serves until `stop`, which ends what is under way.
pub(crate) async fn serve(listener: TcpListener, handler: Arc<impl RequestHandler>, stop: CancellationToken) {
    let (free, openings) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Openings::default()));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener, &free) => accepted,
        };
        let Some((stream, address, permit)) = accepted else { continue };
        let Some(opening) = openings.enter(address) else { continue };
        let (handler, stop) = (Arc::clone(&handler), stop.clone());
        // Bounded by the permits.
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(LONGEST + handler.timeout()) => {}
                () = converse(stream, address, handler.as_ref()) => {}
            }
            drop((opening, permit));
        });
    }
}

/// A connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> Option<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    // Nothing closes the semaphore.
    let permit = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address.ip().to_canonical(), permit)),
        Err(error) => {
            log_limited!(warn, "accept a connection for metadata: {error}");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn converse(stream: TcpStream, address: IpAddr, handler: &impl RequestHandler) {
    let service =
        hyper::service::service_fn(async |request| Ok::<_, Infallible>(handler.handle(address, request).await));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MOST_HEAD);
    // How it ended is the caller's business.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_open_more_than_its_share() {
        let openings = Arc::new(Openings::default());
        let of = |last| openings.enter([192, 0, 2, last].into());
        let mut open: Vec<_> = std::iter::repeat_with(|| of(1)).take(CONNECTIONS_OF_ONE).collect();
        assert!(open.iter().all(Option::is_some) && of(1).is_none() && of(2).is_some());
        open.pop();
        assert!(of(1).is_some());
        drop(open);
        assert!(openings.0.lock().expect("whole").is_empty(), "nothing is left of those that are closed");
    }

    #[test]
    fn only_a_path_goes_on() {
        let of = |method: Method, uri: &str| target(&method, &uri.parse().expect("a URI"));
        assert_eq!(of(Method::GET, "/latest/meta-data/?a=b").as_deref(), Ok("/latest/meta-data/?a=b"));
        assert_eq!(of(Method::GET, "http://other.example/openstack").as_deref(), Ok("/openstack"), "not the host");
        assert_eq!(of(Method::PUT, "/latest/api/token"), Err(PassError::Method));
        assert!(of(Method::GET, "other.example:80").is_err());
        assert!(of(Method::GET, "*").is_err());
        assert!(of(Method::GET, &format!("/{}", "x".repeat(MAX_TARGET))).is_err());
    }
}
