//! Connections over HTTP/1.1, kept for a while, and one exchange over one of them.
//!
//! Not a client of a library: whoever makes a call that changes something is asked once more when the connection is there, as the last
//! thing before the request is sent. A lease may have ended while a connection was opened.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use runtime::tls::WebClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::error::{Error, ErrorKind};

/// Largest answer, in bytes. A page of 500 servers has some 2 MB.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// Connections to one server that are kept without a call.
const MAX_IDLE: usize = 16;
/// How long they are. A server that closes a connection just when a call is sent leaves it open whether that was done, so that this is
/// shorter than what servers and proxies wait for.
const IDLE: Duration = Duration::from_secs(8);
/// How long a kept connection may take to be ready for the next call.
const READY: Duration = Duration::from_millis(100);

type Sender = http1::SendRequest<Full<Bytes>>;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path before that of each call, without a slash at its end.
    pub(crate) path: String,
}

impl Target {
    /// Reads an address that [`check_url`](crate::config::check_url) accepts.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let https = uri.scheme_str()? == "https";
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/').to_owned();
        Some(Self { https, host: uri.host()?.to_owned(), port, path })
    }

    /// What the header `Host` says.
    pub(crate) fn authority(&self) -> String {
        let usual = if self.https { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// The connections of one client.
pub(crate) struct Connections {
    tls: Result<WebClient, String>,
    connect_timeout: Duration,
    idle: Mutex<HashMap<(bool, String, u16), Vec<Idle>>>,
}

impl Connections {
    /// `tls`: how servers with `https` are checked, or why they cannot be.
    pub(crate) fn new(tls: Result<WebClient, String>, connect_timeout: Duration) -> Self {
        Self { tls, connect_timeout, idle: Mutex::default() }
    }

    /// Makes one exchange. `before` is asked when the connection is there, right before the request is sent.
    pub(crate) async fn exchange(
        &self,
        target: &Target,
        mut request: Request<Full<Bytes>>,
        before: &(dyn Fn() -> Result<(), Error> + Send + Sync),
    ) -> Result<Response<Bytes>, Error> {
        loop {
            let (mut sender, is_new) = match self.kept(target).await {
                Some(sender) => (sender, false),
                None => (self.open(target).await?, true),
            };
            before()?;
            let answer = match sender.try_send_request(request).await {
                Ok(answer) => answer,
                Err(mut failed) => match failed.take_message() {
                    // It was not sent: the server had closed the connection.
                    Some(unsent) if !is_new => {
                        request = unsent;
                        continue;
                    }
                    _ => {
                        let text = format!("{} did not answer: {}", target.authority(), innermost(failed.error()));
                        return Err(Error::new(ErrorKind::NoAnswer, text));
                    }
                },
            };
            let (parts, body) = answer.into_parts();
            let whole = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    return Error::new(ErrorKind::Unreadable, format!("the answer has more than {MAX_ANSWER} bytes"));
                }
                let text = format!("the answer of {} broke off: {}", target.authority(), innermost(error.as_ref()));
                Error::new(ErrorKind::NoAnswer, text)
            })?;
            self.keep(target, sender);
            return Ok(Response::from_parts(parts, whole.to_bytes()));
        }
    }

    async fn kept(&self, target: &Target) -> Option<Sender> {
        loop {
            let Idle { mut sender, since } = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                // The one that was used last: it is the most likely to be open.
                idle.get_mut(&key(target))?.pop()?
            };
            if since.elapsed() < IDLE && matches!(timeout(READY, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    fn keep(&self, target: &Target, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.entry(key(target)).or_default();
        kept.retain(|idle| idle.since.elapsed() < IDLE);
        if kept.len() < MAX_IDLE {
            kept.push(Idle { sender, since: Instant::now() });
        }
    }

    async fn open(&self, target: &Target) -> Result<Sender, Error> {
        let failed = |problem: String| Error::new(ErrorKind::NoConnection, problem);
        let limit = self.connect_timeout;
        let opened = timeout(limit, async {
            if target.https {
                let tls = self.tls.as_ref().map_err(|problem| format!("TLS: {problem}"))?;
                start(tls.connect(&target.host, target.port).await?).await
            } else {
                let host = target.host.trim_start_matches('[').trim_end_matches(']');
                let tcp = TcpStream::connect((host, target.port)).await;
                let tcp = tcp.map_err(|error| format!("connect to {}: {error}", target.authority()))?;
                _ = tcp.set_nodelay(true);
                start(tcp).await
            }
        });
        match opened.await {
            Ok(opened) => opened.map_err(failed),
            Err(_) => Err(failed(format!("connect to {}: no answer within {limit:?}", target.authority()))),
        }
    }
}

fn key(target: &Target) -> (bool, String, u16) {
    (target.https, target.host.clone(), target.port)
}

async fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Sender, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends with its sender, or when the server closes it.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a service of OpenStack broke off");
        }
    });
    Ok(sender)
}

/// The cause of the causes, which says what happened.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_their_path() {
        let target = Target::of("http://127.0.0.1:8774/v2.1/").expect("an address");
        assert_eq!((target.https, target.port, target.path.as_str()), (false, 8774, "/v2.1"));
        assert_eq!(
            Target::of("https://[::1]/identity").map(|t| (t.authority(), t.path)),
            Some(("[::1]".into(), "/identity".into()))
        );
        assert_eq!(Target::of("nova"), None);
    }
}
