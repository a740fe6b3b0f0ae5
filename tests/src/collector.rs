//! An OTLP collector for tests: it keeps what it is sent, and can be told to refuse or to hang. Over gRPC or HTTP, plain or with
//! mutual TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use runtime::telemetry::spans;
use runtime::tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// A span as the collector got it.
#[derive(Clone, Debug)]
pub struct CollectedSpan {
    /// Its trace, as hexadecimal digits.
    pub trace: String,
    /// Itself, as hexadecimal digits.
    pub id: String,
    /// Its parent; empty for a root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Begin and end in nanoseconds of the epoch.
    pub time: (u64, u64),
    /// Its attributes as texts.
    pub attributes: BTreeMap<String, String>,
    /// Names of its events.
    pub events: Vec<String>,
    /// The process it comes from.
    pub instance: String,
    /// Its program.
    pub program: String,
}

/// A log record as the collector got it.
#[derive(Clone, Debug)]
pub struct CollectedRecord {
    /// What it says.
    pub text: String,
    /// Its trace, as hexadecimal digits; empty without one.
    pub trace: String,
    /// Its attributes as texts.
    pub attributes: BTreeMap<String, String>,
    /// The process it comes from.
    pub instance: String,
}

/// What a collector does with what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// It keeps it.
    #[default]
    Keeps,
    /// It answers `UNAVAILABLE`.
    Refuses,
    /// It never answers.
    Hangs,
}

#[derive(Debug, Default)]
struct Kept {
    manner: Manner,
    spans: Vec<CollectedSpan>,
    records: Vec<CollectedRecord>,
    metrics: BTreeMap<String, Vec<String>>,
}

/// A collector on a free port of this host.
#[derive(Clone, Debug)]
pub struct Collector {
    url: String,
    kept: Arc<Mutex<Kept>>,
}

impl Collector {
    /// Starts one; it ends with the runtime.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let this = Self::at(format!("http://{}", listener.local_addr()?));
        tokio::spawn(this.grpc(Server::builder()).serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(this)
    }

    /// Starts one for gRPC with TLS that admits who has a certificate of the same CA.
    ///
    /// # Errors
    /// When no port is free, or the files are not what they should be.
    pub async fn start_with_tls(files: &tls::Config) -> Result<Self> {
        let (ca, cert, key) = (read(&files.ca)?, read(&files.cert)?, read(&files.key)?);
        let identity = Identity::from_pem(cert, key);
        let config = ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(ca));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let this = Self::at(format!("https://{}", listener.local_addr()?));
        let server = this.grpc(Server::builder().tls_config(config)?);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(this)
    }

    /// Starts one for HTTP with protobuf, with TLS that admits who has a certificate of the same CA.
    ///
    /// # Errors
    /// As [`Self::start_with_tls`].
    pub async fn start_http_with_tls(files: &tls::Config) -> Result<Self> {
        let tls = https(files)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let this = Self::at(format!("https://{}", listener.local_addr()?));
        let router = Router::new()
            .route("/v1/traces", post(http_traces))
            .route("/v1/logs", post(http_logs))
            .route("/v1/metrics", post(http_metrics))
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(TlsListener { listener, tls }, router).await });
        Ok(this)
    }

    fn at(url: String) -> Self {
        Self { url, kept: Arc::default() }
    }

    fn grpc(&self, mut server: Server) -> tonic::transport::server::Router {
        server
            .add_service(TraceServiceServer::new(self.clone()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(LogsServiceServer::new(self.clone()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(MetricsServiceServer::new(self.clone()).accept_compressed(CompressionEncoding::Gzip))
    }

    /// Its address for `telemetry.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.url.clone()
    }

    /// What it does from now on.
    pub fn behave(&self, manner: Manner) {
        self.kept().manner = manner;
    }

    /// What programs exported that the reference of spans does not have.
    #[must_use]
    pub fn undocumented(&self) -> BTreeSet<String> {
        let kept = self.kept();
        let problems = kept.spans.iter().filter_map(|span| {
            spans::undocumented(&span.program, &span.name, span.attributes.keys().map(String::as_str))
        });
        problems.collect()
    }

    /// Every span so far.
    #[must_use]
    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.kept().spans.clone()
    }

    /// Every log record so far.
    #[must_use]
    pub fn records(&self) -> Vec<CollectedRecord> {
        self.kept().records.clone()
    }

    /// Names of metrics so far, with the processes they came from.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, Vec<String>> {
        self.kept().metrics.clone()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn admit(&self) -> Result<(), Status> {
        let manner = self.kept().manner;
        match manner {
            Manner::Keeps => Ok(()),
            Manner::Refuses => Err(Status::unavailable("told to refuse")),
            Manner::Hangs => std::future::pending().await,
        }
    }
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.admit().await?;
        for of_resource in request.into_inner().resource_spans {
            let resource = texts(of_resource.resource.as_ref().map_or(&[], |resource| &resource.attributes));
            let instance = resource.get("service.instance.id").cloned().unwrap_or_default();
            let program = resource.get("service.name").cloned().unwrap_or_default();
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.kept().spans.extend(spans.map(|span| CollectedSpan {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                attributes: texts(&span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                name: span.name,
                instance: instance.clone(),
                program: program.clone(),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.admit().await?;
        for of_resource in request.into_inner().resource_logs {
            let resource = texts(of_resource.resource.as_ref().map_or(&[], |resource| &resource.attributes));
            let instance = resource.get("service.instance.id").cloned().unwrap_or_default();
            let records = of_resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            self.kept().records.extend(records.map(|record| CollectedRecord {
                text: text(record.body.as_ref()),
                trace: hex(&record.trace_id),
                attributes: texts(&record.attributes),
                instance: instance.clone(),
            }));
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.admit().await?;
        for of_resource in request.into_inner().resource_metrics {
            let resource = texts(of_resource.resource.as_ref().map_or(&[], |resource| &resource.attributes));
            let instance = resource.get("service.instance.id").cloned().unwrap_or_default();
            for metric in of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let mut kept = self.kept();
                let from = kept.metrics.entry(metric.name).or_default();
                if !from.contains(&instance) {
                    from.push(instance.clone());
                }
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// What a web server shows, and whom it admits.
fn https(files: &tls::Config) -> Result<TlsAcceptor> {
    let mut roots = rustls::RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(&files.ca)? {
        roots.add(ca?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let chain = CertificateDer::pem_file_iter(&files.cert)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(&files.key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connections that have shown a certificate.
struct TlsListener {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, peer)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Largest message that is taken, once it is unpacked.
const MAX_MESSAGE: u64 = 64 << 20;

/// The message in the body of a request, which may be packed.
fn message<T: Message + Default>(headers: &HeaderMap, body: &Bytes) -> Result<Request<T>, StatusCode> {
    let unpacked = match headers.get(header::CONTENT_ENCODING).map(|encoding| encoding.as_bytes()) {
        None => body.to_vec(),
        Some(b"gzip") => {
            let mut unpacked = Vec::new();
            let read = flate2::read::GzDecoder::new(&body[..]).take(MAX_MESSAGE).read_to_end(&mut unpacked);
            read.map_err(|_| StatusCode::BAD_REQUEST)?;
            unpacked
        }
        Some(_) => return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    };
    T::decode(&unpacked[..]).map(Request::new).map_err(|_| StatusCode::BAD_REQUEST)
}

fn answer<T: Message>(answered: Result<Response<T>, Status>) -> Result<Vec<u8>, StatusCode> {
    answered.map(|response| response.into_inner().encode_to_vec()).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

async fn http_traces(State(it): State<Collector>, headers: HeaderMap, body: Bytes) -> Result<Vec<u8>, StatusCode> {
    answer(TraceService::export(&it, message(&headers, &body)?).await)
}

async fn http_logs(State(it): State<Collector>, headers: HeaderMap, body: Bytes) -> Result<Vec<u8>, StatusCode> {
    answer(LogsService::export(&it, message(&headers, &body)?).await)
}

async fn http_metrics(State(it): State<Collector>, headers: HeaderMap, body: Bytes) -> Result<Vec<u8>, StatusCode> {
    answer(MetricsService::export(&it, message(&headers, &body)?).await)
}
