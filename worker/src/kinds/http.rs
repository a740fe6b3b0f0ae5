//! The one HTTP client of a worker: no proxy, connections kept for reuse, bodies bounded. Time limits are the caller's.

use std::net::SocketAddr;
use std::time::Duration;

use common::TraceContext;
use reqwest::{RequestBuilder, StatusCode, header};
use runtime::telemetry;
use tracing::{Instrument as _, Span, debug_span, field, info_span};
use worker_core::instance::ManagementSecret;

use crate::error::Error;

/// Most bytes read of an answer. A status and an explanation take less; whatever follows is not looked at, and the connection is
/// closed.
pub(super) const MOST: usize = 64 * 1024;

/// The client. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct HttpClient(reqwest::Client);

/// An answer, with as much of its body as is allowed.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

impl HttpClient {
    pub(super) fn new() -> Result<Self, Error> {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // An address is one instance, whose probes follow one another: one idle connection serves them all.
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(90))
            .tcp_nodelay(true)
            .build()
            .map(Self)
            .map_err(|error| Error::Failed(format!("no HTTP client: {error}")))
    }

    pub(super) async fn get(
        &self,
        address: SocketAddr,
        path: &str,
        secret: Option<&ManagementSecret>,
    ) -> Result<HttpAnswer, Error> {
        let span = debug_span!(
            "http",
            otel.name = "GET",
            otel.kind = "client",
            http.request.method = "GET",
            url.path = path,
            server.address = %address.ip(),
            server.port = address.port(),
            http.response.status_code = field::Empty,
        );
        traced(span, self.0.get(url(address, path)), |request| Self::send(authorized(request, secret))).await
    }

    /// The status of an answer. Its body is not waited for: status line and headers decide, and the connection is closed with whatever
    /// follows.
    pub(super) async fn status(&self, address: SocketAddr, path: &str) -> Result<StatusCode, Error> {
        let response = self.0.get(url(address, path)).send().await;
        response.map(|response| response.status()).map_err(|error| Error::Failed(chain(&error)))
    }

    pub(super) async fn put(
        &self,
        address: SocketAddr,
        path: &str,
        secret: Option<&ManagementSecret>,
        headers: [(&str, String); 2],
        body: Vec<u8>,
    ) -> Result<HttpAnswer, Error> {
        let request = self.0.put(url(address, path)).header(header::CONTENT_TYPE, "application/json");
        let request = authorized(request, secret);
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let span = info_span!(
            "http",
            otel.name = "PUT",
            otel.kind = "client",
            http.request.method = "PUT",
            url.path = path,
            server.address = %address.ip(),
            server.port = address.port(),
            http.response.status_code = field::Empty,
        );
        traced(span, request.body(body), Self::send).await
    }

    async fn send(request: RequestBuilder) -> Result<HttpAnswer, Error> {
        let mut response = request.send().await.map_err(|error| Error::Failed(chain(&error)))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Error::Failed(chain(&error)))? {
            let room = MOST - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
        Ok(HttpAnswer { status, body })
    }
}

/// Makes a request within the span of a client, which it carries along. Baggage is what callers tell one another, and not for instances.
async fn traced<F>(
    span: Span,
    request: RequestBuilder,
    send: impl FnOnce(RequestBuilder) -> F,
) -> Result<HttpAnswer, Error>
where
    F: Future<Output = Result<HttpAnswer, Error>>,
{
    let TraceContext { traceparent, tracestate, baggage: _ } = telemetry::trace_context(&span);
    let context = [("traceparent", traceparent), ("tracestate", tracestate)].into_iter();
    let context = context.filter(|(_, part)| !part.is_empty());
    let request = context.fold(request, |request, (name, part)| request.header(name, part));
    let answer = send(request).instrument(span.clone()).await;
    match &answer {
        Ok(answer) => {
            let status = answer.status;
            span.record("http.response.status_code", status.as_u16());
            if status.is_client_error() || status.is_server_error() {
                telemetry::fail(&span, status.as_str());
            }
        }
        Err(error) => telemetry::fail(&span, &error.to_string()),
    }
    answer
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

/// The header is marked as sensitive by the client: it is left out of what a request prints.
fn authorized(request: RequestBuilder, secret: Option<&ManagementSecret>) -> RequestBuilder {
    match secret {
        Some(secret) => request.bearer_auth(secret.reveal()),
        None => request,
    }
}

/// The causes of an error; its own text only repeats the address.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    // The innermost one says what happened, such as `connection refused`.
    causes.pop().unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::{get, put};
    use futures::stream;

    use super::*;

    async fn serve() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let endless = || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 1_000])));
        let routes = Router::new()
            .route("/refuses", put(move || async move { (StatusCode::CONFLICT, endless()) }))
            .route("/rambles", get(move || async move { endless() }))
            .route("/long", get(|| async { vec![b'x'; 2 * MOST] }));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }

    #[tokio::test]
    async fn a_status_is_known_before_the_body_has_come() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let endless = serve().await;
        let client = HttpClient::new().expect("a client");
        let limit = Duration::from_secs(20);
        for path in ["/rambles", "/long"] {
            let status = tokio::time::timeout(limit, client.status(endless, path)).await.expect("in time");
            assert_eq!(status.expect("it answers"), StatusCode::OK, "{path}");
        }
        // Headers, and then a body that is announced and does not come.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 512];
            assert_ne!(stream.read(&mut request).await.expect("open"), 0);
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 17825792\r\n\r\n";
            stream.write_all(head).await.expect("open");
            std::future::pending::<()>().await;
        });
        let status = tokio::time::timeout(limit, client.status(address, "/")).await.expect("in time");
        assert_eq!(status.expect("it answers"), StatusCode::OK);
    }

    #[tokio::test]
    async fn of_an_answer_only_the_beginning_is_read() {
        let address = serve().await;
        let client = HttpClient::new().expect("a client");
        let headers = [("rug-token", "1/1".into()), ("rug-instance", "1".into())];
        let put = client.put(address, "/refuses", None, headers, vec![]);
        let answer = tokio::time::timeout(Duration::from_secs(20), put).await.expect("in time").expect("it answers");
        assert_eq!((answer.status, answer.body.len()), (StatusCode::CONFLICT, MOST));
        for path in ["/rambles", "/long"] {
            let get = tokio::time::timeout(Duration::from_secs(20), client.get(address, path, None)).await;
            let answer = get.expect("in time").expect("it answers");
            assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, MOST), "{path}");
        }
    }
}
