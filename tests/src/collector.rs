//! An OTLP collector for tests: it keeps what it is sent, and can be told to refuse or to hang.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
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
use runtime::telemetry::spans;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
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
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

impl Collector {
    /// Starts one; it ends with the runtime.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let this = Self { address: listener.local_addr()?, kept: Arc::default() };
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(this.clone()))
            .add_service(LogsServiceServer::new(this.clone()))
            .add_service(MetricsServiceServer::new(this.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(this)
    }

    /// Its address for `telemetry.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
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
