//! Logs and traces. Spans get W3C ids from the OpenTelemetry SDK, so that a rebalance can be stored and followed with its
//! trace id, and are exported to a collector where one is [named](ExportConfig).
//!
//! Whatever a line holds, it is one line and moves no cursor: what is not plain in the sense of [`common::text`] is
//! escaped where lines are written, so that no place that logs has to think of it.

mod command;
mod context;
mod control;
mod export;
mod lines;
mod logs;
mod outbox;
mod pipeline;
mod recorded;
mod sampling;
pub mod spans;
mod tail;

use std::io;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use control::{Configured, Control};
use lines::{EscapedLines, WithTrace};
use logs::{LogBatches, LogQueue};
use outbox::QueueCounts;
use sampling::{HeadSampler, SamplingRules, TraceBudget};
use tail::{SharedTail, TailSampler};

pub use command::CommandTrace;
pub use common::telemetry::{NoRatio, Ratio};
pub use context::{add_link, continue_or_link, continue_trace, fail, set_parent, trace_context, trace_id, traceparent};
pub use control::{MAX_FILTER, check_filter, obey};
pub use export::{Compression, ExportConfig, Exports, Headers, OtlpProtocol, SignalTarget, TRACE_ID, VariableProblem};
pub use export::{SLOW, SLOW_RULE};
pub use outbox::{KeptReason, QueueTally, SpanCounts, SpanTally};
pub use recorded::{RebalanceTrace, RecordedSpan, SpanName};
pub use sampling::Sampling;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
            "info,sqlx=warn,h2=error,sea_orm_migration=warn,zookeeper_client=error,lapin=off,opentelemetry=warn"
                .to_owned();
        Self { format: Format::Text, filter }
    }
}

/// Keeps the tracer alive; dropping it ends tracing.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    logger: Option<SdkLoggerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that hangs must not hold the end of the process up.
        let _ = self.provider.shutdown_with_timeout(FLUSH);
        if let Some(logger) = &self.logger {
            let _ = logger.shutdown_with_timeout(FLUSH);
        }
    }
}

/// How long the last spans may take at the end.
const FLUSH: Duration = Duration::from_secs(2);

static SPANS: OnceLock<Arc<SpanCounts>> = OnceLock::new();
static RECORDS: OnceLock<Arc<QueueCounts>> = OnceLock::new();

/// What became of the log records of this process, as far as they were to be exported.
#[must_use]
pub fn log_tally() -> QueueTally {
    RECORDS.get().map(|counts| counts.tally()).unwrap_or_default()
}

/// Which spans are kept, by what is in force now.
static RULES: LazyLock<Arc<SamplingRules>> = LazyLock::new(|| {
    let ExportConfig { sample_ratio: ratio, sample_slow: slow, max_traces_per_second, .. } = ExportConfig::default();
    let budget = TraceBudget::new(max_traces_per_second, Instant::now());
    Arc::new(SamplingRules::new(Sampling { ratio, slow }, budget))
});

/// Where spans of this process go; nowhere while nothing is exported.
static TAIL: OnceLock<Arc<TailSampler>> = OnceLock::new();

/// Which spans of this process are kept.
#[must_use]
pub fn sampling() -> Sampling {
    RULES.get()
}

/// Changes which spans of this process are kept, from now on.
pub fn set_sampling(sampling: Sampling) {
    RULES.set(sampling);
}

/// Exports the spans of this process that belong to a hand-off, or to the span of this id and what is below it, although they were not
/// kept: those that ended in the last seconds, and those that end in the next minutes.
pub fn keep(span: SpanId) {
    if let Some(tail) = TAIL.get() {
        tail.keep(span);
    }
}

/// The same for hand-offs, by their ids as numbers.
pub fn keep_hand_offs(ids: &[u64]) {
    ids.iter().for_each(|id| keep(SpanId::from(*id)));
}

/// What became of the spans of this process.
#[must_use]
pub fn span_tally() -> SpanTally {
    if let Some(tail) = TAIL.get() {
        tail.expire();
    }
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
    RULES.set(exports.sampling);
    RULES.set_budget(TraceBudget::new(exports.max_traces_per_second.unwrap_or(u32::MAX), Instant::now()));
    let sampler = HeadSampler { rules: Arc::clone(&RULES), follows_parent: exports.follows_parent };
    let builder = SdkTracerProvider::builder().with_resource(resource.clone()).with_sampler(sampler);
    let Some(target) = exports.traces else { return Ok(builder.build()) };
    let gathering = outbox::Gathering::new(exports.spans, target.timeout);
    let counts = Arc::clone(SPANS.get_or_init(Arc::default));
    let queue = Arc::clone(&counts.queue);
    let outbox = outbox::Outbox::start(gathering, resource, queue, move || pipeline::spans(&target))?;
    let tail = Arc::new(TailSampler::new(Arc::clone(&RULES), outbox, counts, exports.max_undecided));
    let _ = TAIL.set(Arc::clone(&tail));
    Ok(builder.with_span_processor(SharedTail(tail)).build())
}

/// Log records, exported where they are to be.
fn logging_of(program: Program<'_>, config: &ExportConfig) -> Result<Option<SdkLoggerProvider>, String> {
    let exports = exports(config).map_err(|problem| problem.to_string())?;
    let resource = pipeline::resource(program, &exports);
    let Some(target) = exports.logs else { return Ok(None) };
    let gathering = outbox::Gathering::new(exports.records, target.timeout);
    let counts = Arc::clone(RECORDS.get_or_init(Arc::default));
    let build = move || pipeline::logs(&target).map(LogBatches);
    let queue = LogQueue(outbox::Outbox::start(gathering, resource.clone(), counts, build)?);
    Ok(Some(SdkLoggerProvider::builder().with_resource(resource).with_log_processor(queue).build()))
}

/// Puts another filter of the log and another sampling into force, beside which the orders of operators go on. What is traced, where logs are
/// written to and what is exported stay as they are.
///
/// # Errors
/// What is wrong with them. Nothing has changed then.
pub fn configure(config: &Config, export: &ExportConfig) -> Result<(), String> {
    let exports = exports(export).map_err(|problem| problem.to_string())?;
    let filter = filter_of(config);
    EnvFilter::try_new(&filter).map_err(|error| format!("log.filter: {error}"))?;
    control::configure(filter, exports.sampling);
    Ok(())
}

/// The filter of the log; the environment wins.
fn filter_of(config: &Config) -> String {
    match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => text,
        _ => config.filter.clone(),
    }
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
    let logger = logging_of(program, export).map_err(|problem| format!("telemetry: {problem}"))?;
    let filter = filter_of(config);
    // Each has a filter of its own: the log's can be changed, and what is traced must not change with it.
    let of_spans = EnvFilter::try_new(&filter)?;
    let (of_lines, handle) = reload::Layer::new(EnvFilter::try_new(&filter)?);
    let lines = match config.format {
        Format::Text => lines(Format::Text, || EscapedLines(io::stderr())),
        // JSON escapes control characters by itself, in its own way.
        Format::Json => lines(Format::Json, io::stderr),
    };
    let (of_records, records_handle) = reload::Layer::new(EnvFilter::try_new(&filter)?);
    let records = logger.as_ref().map(|logger| OpenTelemetryTracingBridge::new(logger).with_filter(of_records));
    // Only what the table of spans says: not where in the source a span is made, on which thread, and the like.
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_level(false)
        .with_target(false);
    tracing_subscriber::registry()
        .with(spans.with_filter(of_spans))
        .with(lines.with_filter(of_lines))
        .with(records)
        .try_init()?;
    control::install(Control {
        configured: Mutex::new(Configured { filter, sampling: sampling() }),
        reload: Box::new(move |filter| {
            let of_records = EnvFilter::try_new(filter.to_string()).map_err(|error| error.to_string())?;
            // Gone where nothing is exported.
            let _ = records_handle.reload(of_records);
            handle.reload(filter).map_err(|error| error.to_string())
        }),
    });
    Ok(Telemetry { provider, logger })
}

/// Writes lines.
fn lines<S, W>(format: Format, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    match format {
        Format::Text => {
            let format = WithTrace { format: tracing_subscriber::fmt::format(), json: false };
            layer.event_format(format).boxed()
        }
        Format::Json => {
            let format = tracing_subscriber::fmt::format().json().with_current_span(true);
            let fields = tracing_subscriber::fmt::format::JsonFields::new();
            layer.fmt_fields(fields).event_format(WithTrace { format, json: true }).boxed()
        }
    }
}
