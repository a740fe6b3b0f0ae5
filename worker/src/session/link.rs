//! One open stream to a coordinator.

use std::time::Duration;

use common::TraceContext;
use proto::convert::down::{self, FromCoordinator};
use proto::worker::v1::session_client::SessionClient;
use proto::worker::v1::{CoordinatorMessage, WorkerMessage};
use runtime::channel::Target;
use runtime::telemetry;
use runtime::tls::{self, ClientTls};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;
use tracing::{Instrument as _, Span, info_span};

/// Messages that wait for the transport. Few, so that a heartbeat never stands behind many reports.
const QUEUE: usize = 4;

/// How often the transport asks whether the other side is there, and how long it waits for the answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// One open stream.
#[derive(Debug)]
pub(super) struct CoordinatorLink {
    pub(super) out: Outlet,
    pub(super) inlet: Inlet,
}

/// The way to the coordinator.
#[derive(Debug)]
pub(super) struct Outlet(mpsc::Sender<WorkerMessage>);

/// The way from the coordinator.
#[derive(Debug)]
pub(super) struct Inlet(Streaming<CoordinatorMessage>);

/// The stream cannot take messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// It ended.
    #[error("the stream has ended")]
    Ended,
    /// The other side takes nothing in.
    #[error("nothing was taken within {0:?}")]
    Stuck(Duration),
}

/// Connects and opens the stream. With `tls` the address has to be `https://`, without it `http://`; or `unix:`.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn open(address: &str, timeout: Duration, tls: Option<&ClientTls>) -> Result<CoordinatorLink, String> {
    let connect = async {
        let set = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(timeout)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEP_ALIVE.0)
                .keep_alive_timeout(KEEP_ALIVE.1)
        };
        let target = Target::new(address, tls).map_err(|e| e.to_string())?.with(set);
        let channel = target.connect().await.map_err(|e| tls::chain(&e))?;
        let (out, messages) = mpsc::channel(QUEUE);
        let mut request = tonic::Request::new(ReceiverStream::new(messages));
        let TraceContext { traceparent, tracestate, baggage: _ } = telemetry::trace_context(&Span::current());
        for (name, part) in [("traceparent", traceparent), ("tracestate", tracestate)] {
            if let Some(value) = part.parse().ok().filter(|_| !part.is_empty()) {
                request.metadata_mut().insert(name, value);
            }
        }
        // A server that refuses this side's certificate says so only now: with TLS 1.3 the client is done first.
        let answer = SessionClient::new(channel).open(request).await.map_err(|status| reason(&status))?;
        Ok(CoordinatorLink { out: Outlet(out), inlet: Inlet(answer.into_inner()) })
    };
    let span = info_span!(
        "connect",
        otel.name = "rug.worker.v1.Session/Open",
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = "rug.worker.v1.Session",
        rpc.method = "Open",
        server.address = address,
    );
    let opened = tokio::time::timeout(timeout, connect).instrument(span.clone()).await;
    let opened = opened.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
    if let Err(problem) = &opened {
        telemetry::fail(&span, problem);
    }
    opened
}

impl Outlet {
    /// Sends messages in their order. A coordinator that is alive but does not read lets the keep-alive pass, so that
    /// `limit`, for all of them, is what ends the wait for room.
    ///
    /// # Errors
    /// [`Broken`]; some of the messages may have been sent.
    pub(super) async fn send(
        &self,
        messages: impl IntoIterator<Item = WorkerMessage>,
        limit: Duration,
    ) -> Result<(), Broken> {
        let all = async {
            for message in messages {
                self.0.send(message).await.map_err(|_| Broken::Ended)?;
            }
            Ok(())
        };
        tokio::time::timeout(limit, all).await.unwrap_or(Err(Broken::Stuck(limit)))
    }

    /// Waits for room for one message.
    pub(super) async fn room(&self) -> Result<mpsc::OwnedPermit<WorkerMessage>, Broken> {
        self.0.clone().reserve_owned().await.map_err(|_| Broken::Ended)
    }
}

impl Inlet {
    /// The next message.
    ///
    /// # Errors
    /// Why there is none: the stream ended, broke, or carried something that cannot be read.
    pub(super) async fn receive(&mut self) -> Result<FromCoordinator, String> {
        match self.0.message().await {
            Ok(Some(message)) => down::down_from_wire(message).map_err(|e| e.to_string()),
            Ok(None) => Err("the coordinator closed it".to_owned()),
            Err(status) => Err(reason(&status)),
        }
    }
}

impl CoordinatorLink {
    /// Sends a last message and waits until the other side ends the stream. `limit` is for the first of the two.
    pub(super) async fn finish(mut self, message: WorkerMessage, limit: Duration) {
        if self.out.send([message], limit).await.is_ok() {
            drop(self.out);
            while let Ok(Some(_)) = self.inlet.0.message().await {}
        }
    }
}

/// Why a call failed. What the transport says is in the causes of the status.
fn reason(status: &tonic::Status) -> String {
    let cause = || std::error::Error::source(status).map_or_else(|| status.message().to_owned(), tls::chain);
    tls::refusal(status).unwrap_or_else(cause)
}

#[cfg(test)]
mod tests {
    use proto::worker::v1::session_server::{Session, SessionServer};
    use runtime::tls::testing::{self, Authority};

    use super::*;

    #[tokio::test]
    async fn a_coordinator_that_is_not_there_is_told_without_the_layers_of_the_transport() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let refused = open(&format!("http://{free}"), Duration::from_secs(5), None).await.expect_err("nobody listens");
        assert!(refused.starts_with("Connection refused"), "{refused}");
        let lookup = std::io::Error::other("failed to lookup address information: Name or service not known");
        assert_eq!(reason(&tonic::Status::from_error(Box::new(lookup))), "there is no host of this name");
        let broken = std::io::Error::other("h2 protocol error: error reading a body from connection");
        assert_eq!(reason(&tonic::Status::from_error(Box::new(broken))), "the connection broke");
        assert_eq!(reason(&tonic::Status::aborted("a newer stream")), "a newer stream");
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_nobody_takes_are_given_up_in_time() {
        let (sender, mut messages) = mpsc::channel(1);
        let out = Outlet(sender);
        let limit = Duration::from_secs(2);
        let begun = tokio::time::Instant::now();
        let pair = || [WorkerMessage::default(), WorkerMessage::default()];
        assert_eq!(out.send(pair(), limit).await, Err(Broken::Stuck(limit)));
        assert_eq!(begun.elapsed(), limit);
        messages.recv().await.expect("the first one was taken");
        assert_eq!(out.send([WorkerMessage::default()], limit).await, Ok(()));
        drop(messages);
        assert_eq!(out.send(pair(), limit).await, Err(Broken::Ended));
    }

    /// Answers every stream by ending it.
    struct Ending;

    #[tonic::async_trait]
    impl Session for Ending {
        type OpenStream = tokio_stream::Empty<Result<CoordinatorMessage, tonic::Status>>;

        async fn open(
            &self,
            _: tonic::Request<Streaming<WorkerMessage>>,
        ) -> Result<tonic::Response<Self::OpenStream>, tonic::Status> {
            Ok(tonic::Response::new(tokio_stream::empty()))
        }
    }

    /// A coordinator with TLS, reached at this address.
    async fn coordinator(ca: &Authority) -> String {
        let (connections, address) =
            testing::serve(ca, &ca.issue("coordinator-1", &["127.0.0.1", "rug://coordinator/coordinator-1"])).await;
        let server = tonic::transport::Server::builder().add_service(SessionServer::new(Ending));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(connections)));
        address
    }

    #[tokio::test]
    async fn a_stream_is_opened_over_tls() {
        let ca = Authority::new("ca");
        let address = coordinator(&ca).await;
        let dir = tempfile::tempdir().expect("a folder");
        let tls = ClientTls::load(&ca.issue("worker-1", &[]).write(dir.path(), &ca)).expect("good files");
        let mut link = open(&address, Duration::from_secs(20), tls.as_ref()).await.expect("let in");
        assert_eq!(link.inlet.receive().await.expect_err("ended"), "the coordinator closed it");
    }

    #[tokio::test]
    async fn a_certificate_that_is_refused_is_named() {
        let (ca, other) = (Authority::new("ca"), Authority::new("other"));
        let address = coordinator(&ca).await;
        let dir = tempfile::tempdir().expect("a folder");
        let tls = ClientTls::load(&other.issue("worker-1", &[]).write(dir.path(), &ca)).expect("good files");
        let problem = open(&address, Duration::from_secs(20), tls.as_ref()).await.expect_err("refused");
        assert!(problem.contains("cert.pem (`worker-1`, valid until"), "{problem}");
        let problem = open(&address.replace("https", "http"), Duration::from_secs(20), tls.as_ref()).await;
        assert!(problem.expect_err("refused").contains("write https://"));
        let problem = open(&address, Duration::from_secs(20), None).await.expect_err("refused");
        assert!(problem.contains("https:// needs TLS"), "{problem}");
    }
}
