//! Logs and traces. Spans get W3C ids from the OpenTelemetry SDK, so that a rebalance can be stored and followed with its
//! trace id, and are exported to a collector where one is [named](ExportConfig).
//!
//! Whatever a line holds, it is one line and moves no cursor: what is not plain in the sense of [`common::text`] is
//! escaped where lines are written, so that no place that logs has to think of it.

mod export;
mod outbox;
mod pipeline;
mod recorded;

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::text;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use export::{Compression, ExportConfig, Exports, Headers, OtlpProtocol, SignalTarget, TRACE_ID, VariableProblem};
pub use outbox::{SpanCounts, SpanTally};
pub use recorded::{RebalanceTrace, RecordedSpan, SpanName};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings of logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How log lines look.
    pub format: Format,
    /// Which lines are printed, in the syntax of `RUST_LOG`, which wins over it.
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        // Libraries that tell of every try, where what follows from it is told here: a ZooKeeper that is away makes its
        // client warn several times a second, and h2 warns of every connection that a peer resets.
        let filter =
            "info,sqlx=warn,h2=error,sea_orm_migration=warn,zookeeper_client=error,opentelemetry=warn".to_owned();
        Self { format: Format::Text, filter }
    }
}

/// Keeps the tracer alive; dropping it ends tracing.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that hangs must not hold the end of the process up.
        let _ = self.provider.shutdown_with_timeout(FLUSH);
    }
}

/// How long the last spans may take at the end.
const FLUSH: Duration = Duration::from_secs(2);

static SPANS: OnceLock<Arc<SpanCounts>> = OnceLock::new();

/// What became of the spans of this process.
#[must_use]
pub fn span_tally() -> SpanTally {
    SPANS.get().map(|counts| counts.tally()).unwrap_or_default()
}

/// Of which process telemetry is.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// The program, such as `rug-worker`.
    pub name: &'static str,
    /// Which of them.
    pub instance: &'a str,
}

/// What is in force of these settings beside the variables of the environment.
///
/// # Errors
/// [`VariableProblem`].
pub fn exports(config: &ExportConfig) -> Result<Exports, VariableProblem> {
    Exports::resolve(config, |name| std::env::var(name).ok())
}

/// The attributes of this process, and what pushes its metrics, if anything does. Call it within a Tokio runtime.
///
/// # Errors
/// What is wrong with the settings, for people.
pub fn metrics_push(
    program: Program<'_>,
    config: &ExportConfig,
) -> Result<(Resource, Option<PeriodicReader<MetricExporter>>), String> {
    let exports = exports(config).map_err(|problem| problem.to_string())?;
    let exporter = exports.metrics.as_ref().map(pipeline::metrics).transpose()?;
    let reader =
        exporter.map(|exporter| PeriodicReader::builder(exporter).with_interval(exports.metrics_interval).build());
    Ok((pipeline::resource(program, &exports), reader))
}

/// Spans with their ids, exported where they are to be.
fn tracing_of(program: Program<'_>, config: &ExportConfig) -> Result<SdkTracerProvider, String> {
    let exports = exports(config).map_err(|problem| problem.to_string())?;
    let resource = pipeline::resource(program, &exports);
    let builder = SdkTracerProvider::builder().with_resource(resource.clone());
    let Some(target) = exports.traces else { return Ok(builder.build()) };
    let gathering = outbox::Gathering {
        queue: exports.max_spans,
        batch: exports.batch,
        delay: exports.delay,
        timeout: target.timeout,
    };
    let counts = Arc::clone(SPANS.get_or_init(Arc::default));
    let outbox = outbox::Outbox::start(gathering, resource, counts, move || pipeline::spans(&target))?;
    recorded::export_to(Arc::new(outbox.queue()));
    Ok(builder.with_span_processor(outbox).build())
}

/// Starts logging to stderr, gives spans their ids, and exports them if they are to be.
///
/// # Errors
/// When the filter cannot be read, nothing can be exported as the settings have it, or logging was started before.
pub fn init(
    program: Program<'_>,
    config: &Config,
    export: &ExportConfig,
) -> Result<Telemetry, Box<dyn std::error::Error + Send + Sync>> {
    let provider = tracing_of(program, export).map_err(|problem| format!("telemetry: {problem}"))?;
    let tracer = provider.tracer(program.name);
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(text)?,
        _ => EnvFilter::try_new(&config.filter)?,
    };
    let lines = match config.format {
        Format::Text => {
            tracing_subscriber::fmt::layer().with_writer(|| EscapedLines(io::stderr())).with_ansi(false).boxed()
        }
        // JSON escapes control characters by itself, in its own way.
        Format::Json => tracing_subscriber::fmt::layer().json().with_current_span(true).with_writer(io::stderr).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .with(lines)
        .try_init()?;
    Ok(Telemetry { provider })
}

/// Escapes lines on their way. The layer above writes each as a whole, with its end.
struct EscapedLines<W>(W);

impl<W: Write> Write for EscapedLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        self.0.write_all(format!("{}{end}", text::escaped(text)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The W3C `traceparent` of a span; empty when it is not recorded.
#[must_use]
pub fn traceparent(span: &Span) -> String {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove("traceparent").unwrap_or_default()
}

/// The trace id of a span as 32 hex digits; empty when it is not recorded.
#[must_use]
pub fn trace_id(span: &Span) -> String {
    let context = span.context();
    let id = context.span().span_context().trace_id();
    if id == opentelemetry::TraceId::INVALID { String::new() } else { id.to_string() }
}

/// Makes `span` a child of the remote span that `traceparent` names; anything unreadable leaves it as it is.
pub fn set_parent(span: &Span, traceparent: &str) {
    if traceparent.is_empty() {
        return;
    }
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_one_line_without_control_characters() {
        let mut lines = EscapedLines(Vec::new());
        lines.write_all("refused: \u{1b}[2Jcert\u{202e}drow\nERROR forged\n".as_bytes()).expect("memory");
        let written = String::from_utf8(lines.0).expect("text");
        assert_eq!(written, "refused: \\u{1b}[2Jcert\\u{202e}drow\\nERROR forged\n");
    }

    #[test]
    fn a_span_continues_the_trace_it_is_given() {
        let provider = SdkTracerProvider::builder().build();
        let subscriber =
            tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, || {
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let span = tracing::info_span!("child");
            set_parent(&span, parent);
            assert_eq!(trace_id(&span), "0af7651916cd43dd8448eb211c80319c");
            assert!(traceparent(&span).contains("0af7651916cd43dd8448eb211c80319c"));
            let odd = tracing::info_span!("odd");
            set_parent(&odd, "not a traceparent");
            assert_eq!(trace_id(&odd).len(), 32, "an odd parent must not stop a trace of its own");
        });
    }
}
