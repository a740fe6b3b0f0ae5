//! Exporters of OTLP as the settings have them.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    LogExporter, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Uri};

use super::Program;
use super::export::{Compression, Exports, OtlpProtocol, SignalTarget};
use crate::tls;

/// CAs of the system, where no others are named.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Longest answer of a collector that is read, in bytes.
const ANSWER: usize = 1 << 20;

/// What everything that is exported says of its process, by the semantic conventions.
pub(super) fn resource(program: Program<'_>, exports: &Exports) -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut attributes = vec![
        KeyValue::new("service.name", exports.service.clone().unwrap_or_else(|| program.name.to_owned())),
        KeyValue::new("service.namespace", "rug"),
        KeyValue::new("service.instance.id", program.instance.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("host.name", host),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    // What the downward API of Kubernetes is usually asked for, under the names its users give it.
    for (variable, name) in [
        ("POD_NAME", "k8s.pod.name"),
        ("POD_NAMESPACE", "k8s.namespace.name"),
        ("POD_UID", "k8s.pod.uid"),
        ("NODE_NAME", "k8s.node.name"),
    ] {
        if let Some(value) = std::env::var(variable).ok().filter(|value| !value.is_empty()) {
            attributes.push(KeyValue::new(name, value));
        }
    }
    attributes.extend(exports.attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone())));
    Resource::builder_empty().with_attributes(attributes).build()
}

/// Exports spans to a collector. Call it within a Tokio runtime.
///
/// # Errors
/// What is wrong with the settings, for people.
pub(super) fn spans(target: &SignalTarget) -> Result<SpanExporter, String> {
    let built = match target.protocol {
        OtlpProtocol::Grpc => {
            let builder = SpanExporter::builder().with_tonic();
            grpc(builder.with_endpoint(&target.endpoint).with_timeout(target.timeout), target)?.build()
        }
        OtlpProtocol::Http => {
            let builder = SpanExporter::builder().with_http();
            http(builder.with_endpoint(&target.endpoint).with_timeout(target.timeout), target)?.build()
        }
    };
    built.map_err(|error| error.to_string())
}

/// Exports log records to a collector. Call it within a Tokio runtime.
///
/// # Errors
/// What is wrong with the settings, for people.
pub(super) fn logs(target: &SignalTarget) -> Result<LogExporter, String> {
    let built = match target.protocol {
        OtlpProtocol::Grpc => {
            let builder = LogExporter::builder().with_tonic();
            grpc(builder.with_endpoint(&target.endpoint).with_timeout(target.timeout), target)?.build()
        }
        OtlpProtocol::Http => {
            let builder = LogExporter::builder().with_http();
            http(builder.with_endpoint(&target.endpoint).with_timeout(target.timeout), target)?.build()
        }
    };
    built.map_err(|error| error.to_string())
}

/// Pushes metrics to a collector. Call it within a Tokio runtime.
///
/// # Errors
/// What is wrong with the settings, for people.
pub(super) fn metrics(target: &SignalTarget) -> Result<MetricExporter, String> {
    let built = match target.protocol {
        OtlpProtocol::Grpc => {
            let builder = MetricExporter::builder().with_tonic();
            grpc(builder.with_endpoint(&target.endpoint).with_timeout(target.timeout), target)?.build()
        }
        OtlpProtocol::Http => {
            let builder = MetricExporter::builder().with_http();
            http(builder.with_endpoint(&target.endpoint).with_timeout(target.timeout), target)?.build()
        }
    };
    built.map_err(|error| error.to_string())
}

fn grpc<B: WithTonicConfig>(mut builder: B, target: &SignalTarget) -> Result<B, String> {
    if target.compression == Compression::Gzip {
        builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
    }
    if target.endpoint.starts_with("https://") {
        let [ca, cert, key] = &target.tls;
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(cas(ca))?));
        if !cert.as_os_str().is_empty() {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        builder = builder.with_tls_config(config);
    }
    let mut headers = MetadataMap::new();
    for (name, value) in &target.headers.0 {
        let name = name.parse::<tonic::metadata::MetadataKey<_>>().map_err(|_| "a header's name is none".to_owned())?;
        headers.insert(name, value.parse().map_err(|_| "a header's value is none".to_owned())?);
    }
    Ok(builder.with_metadata(headers))
}

fn http<B: WithHttpConfig>(mut builder: B, target: &SignalTarget) -> Result<B, String> {
    if target.compression == Compression::Gzip {
        builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
    }
    let [ca, cert, key] = &target.tls;
    let tls = if target.endpoint.starts_with("https://") {
        let own = (!cert.as_os_str().is_empty()).then_some((cert.as_path(), key.as_path()));
        Some(tls::web_client(cas(ca), own)?)
    } else {
        None
    };
    Ok(builder
        .with_http_client(OtlpHttp::new(tls, target.timeout, Handle::current()))
        .with_headers(target.headers.0.clone().into_iter().collect()))
}

fn cas(named: &Path) -> &Path {
    if named.as_os_str().is_empty() { Path::new(SYSTEM_CAS) } else { named }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// One request over one connection: exports are seconds apart.
struct OtlpHttp {
    tls: Option<tls::WebClient>,
    timeout: Duration,
    /// Where requests are made: whoever asks may be a thread without a runtime, as the one that pushes metrics is.
    runtime: Handle,
    /// Whether it was said why nothing goes through, which the exporter keeps to itself.
    complained: AtomicBool,
}

impl OtlpHttp {
    fn new(tls: Option<tls::WebClient>, timeout: Duration, runtime: Handle) -> Self {
        Self { tls, timeout, runtime, complained: AtomicBool::new(false) }
    }
}

impl fmt::Debug for OtlpHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OtlpHttp")
    }
}

#[async_trait]
impl HttpClient for OtlpHttp {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (timeout, tls) = (self.timeout, self.tls.clone());
        let asked = self.runtime.spawn(async move { tokio::time::timeout(timeout, ask(tls, request)).await });
        let answer = match asked.await? {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {timeout:?}").into()),
        };
        match &answer {
            Ok(_) => self.complained.store(false, Ordering::Relaxed),
            Err(problem) if !self.complained.swap(true, Ordering::Relaxed) => {
                tracing::warn!("the collector does not answer over HTTP: {problem}");
            }
            Err(_) => {}
        }
        answer
    }
}

async fn ask(tls: Option<tls::WebClient>, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let uri: Uri = std::mem::take(request.uri_mut());
    let authority = uri.authority().ok_or("the address has no host")?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse()?;
    request.headers_mut().insert("host", authority.as_str().parse()?);
    let request = request.map(Full::new);
    let (host, port) = (authority.host(), authority.port_u16());
    match &tls {
        Some(tls) => exchange(TokioIo::new(tls.connect(host, port.unwrap_or(443)).await?), request).await,
        None => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let stream = tokio::net::TcpStream::connect((bare, port.unwrap_or(80))).await?;
            exchange(TokioIo::new(stream), request).await
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, HttpError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await?;
    // Ends with the client, at the end of this function.
    tokio::spawn(connection);
    let (head, body) = client.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// What pushes metrics is a thread without a runtime.
    #[test]
    fn a_thread_without_a_runtime_can_ask_over_http() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = server.local_addr().expect("bound");
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("somebody comes");
            let mut asked = Vec::new();
            while !asked.ends_with(b"body") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("it asks");
                asked.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").expect("it reads");
            String::from_utf8(asked).expect("text")
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("built");
        let client = OtlpHttp::new(None, Duration::from_secs(30), runtime.handle().clone());
        let request =
            Request::post(format!("http://{address}/v1/metrics")).body(Bytes::from("body")).expect("a request");
        let answer = std::thread::spawn(move || futures::executor::block_on(client.send_bytes(request)));
        let answer = answer.join().expect("no panic").expect("answered");
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"ok"[..]));
        let asked = serving.join().expect("no panic");
        assert!(
            asked.starts_with("POST /v1/metrics HTTP/1.1\r\n") && asked.contains(&format!("host: {address}")),
            "{asked}"
        );
    }
}
