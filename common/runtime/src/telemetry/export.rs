//! Where telemetry is sent to: the section `[telemetry]`, and the standard variables of OpenTelemetry, which win over it.
//!
//! The variables are those of the [specification](https://opentelemetry.io/docs/specs/otel/protocol/exporter/): `OTEL_SDK_DISABLED`,
//! `OTEL_{TRACES,METRICS,LOGS}_EXPORTER`, `OTEL_EXPORTER_OTLP_[{TRACES,METRICS,LOGS}_]{ENDPOINT,PROTOCOL,HEADERS,COMPRESSION,TIMEOUT,CERTIFICATE,
//! CLIENT_CERTIFICATE,CLIENT_KEY}`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_{BSP,BLRP}_{MAX_QUEUE_SIZE,MAX_EXPORT_BATCH_SIZE,SCHEDULE_DELAY}`,
//! `OTEL_TRACES_SAMPLER[_ARG]`, `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`. A variable that is empty counts as not set.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::telemetry::{NoRatio, Ratio};
use serde::{Deserialize, Serialize};

use super::sampling::Sampling;

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OtlpProtocol {
    /// Over gRPC, usually at port 4317.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// Over HTTP, as protobuf, usually at port 4318.
    #[serde(rename = "http/protobuf")]
    Http,
}

/// How what is sent is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// By gzip.
    Gzip,
}

/// Headers of every export. They are passwords as often as not: only names are ever printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Headers(pub BTreeMap<String, String>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Settings of what is exported, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    /// Address of a collector, such as `http://127.0.0.1:4317`. Nothing is exported while it is empty.
    pub endpoint: String,
    /// How OTLP is spoken there.
    pub protocol: OtlpProtocol,
    /// Headers of every export, for collectors that want a key. Never shown.
    pub headers: Headers,
    /// How what is sent is compressed.
    pub compression: Compression,
    /// How long one export may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub timeout: Duration,
    /// CAs that the collector's certificate is checked against; those of the system when empty.
    pub ca: PathBuf,
    /// Certificate to show the collector, with `key`.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whether spans are exported.
    pub traces: bool,
    /// Whether metrics are pushed.
    pub metrics: bool,
    /// Whether what is logged is exported, beside the lines that are printed.
    pub logs: bool,
    /// Time between two pushes of metrics.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub metrics_interval: Duration,
    /// Spans that wait to be exported; more are dropped and counted.
    pub max_spans: usize,
    /// Where people look at traces: an address with [`TRACE_ID`] in it, such as `https://tempo.example/trace/{trace_id}`.
    pub trace_url: String,
    /// Log records that wait to be exported; more are dropped and counted.
    pub max_logs: usize,
    /// Share of traces, and of hand-offs within a rebalance, that are kept whatever happens in them. What failed, was slow or was
    /// asked for is kept beside them, and so is the rebalance itself.
    pub sample_ratio: Ratio,
    /// Traces of calls and lifecycles that this share may come to in a second, over ten seconds; the rest counts as not sampled.
    pub max_traces_per_second: u32,
    /// What takes longer is kept.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub sample_slow: Duration,
    /// Spans that wait until it is known whether they are kept, and those that were not and can still be asked for.
    pub max_undecided: usize,
}

/// What stands in [`ExportConfig::trace_url`] for the id of a trace.
pub const TRACE_ID: &str = "{trace_id}";

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: OtlpProtocol::Grpc,
            headers: Headers::default(),
            compression: Compression::None,
            timeout: Duration::from_secs(10),
            ca: PathBuf::new(),
            cert: PathBuf::new(),
            key: PathBuf::new(),
            traces: true,
            metrics: true,
            logs: false,
            metrics_interval: Duration::from_secs(60),
            max_spans: 16_384,
            trace_url: String::new(),
            max_logs: 16_384,
            sample_ratio: Ratio::ALL,
            max_traces_per_second: 100,
            sample_slow: Duration::from_secs(5),
            max_undecided: 16_384,
        }
    }
}

impl ExportConfig {
    /// Every rule the settings break, with the field that breaks it. No value is quoted.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if !self.endpoint.is_empty() && !is_endpoint(&self.endpoint) {
            found.push(FieldViolation::new("endpoint", ENDPOINT_RULE));
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(120)).contains(&self.timeout) {
            found.push(FieldViolation::new("timeout", "must be 100ms to 2m"));
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.metrics_interval) {
            found.push(FieldViolation::new("metrics_interval", "must be 1s to 1h"));
        }
        if !(1..=1_000_000).contains(&self.max_spans) {
            found.push(FieldViolation::new("max_spans", "must be 1 to 1000000"));
        }
        let url = self.trace_url.strip_prefix("https://").or_else(|| self.trace_url.strip_prefix("http://"));
        let plain = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.trace_url.is_empty() && !url.is_some_and(|rest| rest.contains(TRACE_ID) && plain(rest)) {
            let description =
                format!("must be an address with {TRACE_ID} in it, such as https://tempo.example/trace/{TRACE_ID}");
            found.push(FieldViolation::new("trace_url", description));
        }
        if !(1..=1_000_000).contains(&self.max_logs) {
            found.push(FieldViolation::new("max_logs", "must be 1 to 1000000"));
        }
        if self.max_traces_per_second > 1_000_000 {
            found.push(FieldViolation::new("max_traces_per_second", "must be 0 to 1000000"));
        }
        if !SLOW.contains(&self.sample_slow) {
            found.push(FieldViolation::new("sample_slow", SLOW_RULE));
        }
        if !(1..=1_000_000).contains(&self.max_undecided) {
            found.push(FieldViolation::new("max_undecided", "must be 1 to 1000000"));
        }
        if self.cert.as_os_str().is_empty() != self.key.as_os_str().is_empty() {
            found.push(FieldViolation::new("cert", "cert and key belong together: set both or none"));
        }
        found.extend(self.headers.0.iter().filter(|(name, value)| !is_header(name, value)).map(|_| {
            FieldViolation::new("headers", "names must be lower-case letters, digits and `-`; values printable ASCII")
        }));
        found
    }
}

/// What may count as slow.
pub const SLOW: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// The rule of it.
pub const SLOW_RULE: &str = "must be 1ms to 1h";
const ENDPOINT_RULE: &str = "must be http://HOST:PORT or https://HOST:PORT, without a user";

fn is_endpoint(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.contains('@')) else { return false };
    let Ok(uri) = text.parse::<tonic::transport::Uri>() else { return false };
    // A number that is no port counts as none there.
    let authority = rest.split('/').next().unwrap_or_default();
    let has_port = authority.rsplit(']').next().is_some_and(|after| after.contains(':'));
    uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some_and(|port| port > 0) == has_port
}

fn is_header(name: &str, value: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && value.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// Why a standard variable cannot be used. Says which, and never what it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct VariableProblem {
    /// Its name.
    pub variable: String,
    /// What is wrong.
    pub problem: String,
}

/// Where one kind of telemetry is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalTarget {
    /// Complete address: with the path for HTTP.
    pub endpoint: String,
    /// How OTLP is spoken there.
    pub protocol: OtlpProtocol,
    /// Headers of every export.
    pub headers: Headers,
    /// How what is sent is compressed.
    pub compression: Compression,
    /// How long one export may take.
    pub timeout: Duration,
    /// Files of TLS: CAs, certificate, key; empty ones are not used.
    pub tls: [PathBuf; 3],
}

/// The kinds of telemetry that are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    const fn variable(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Metrics => "v1/metrics",
            Self::Logs => "v1/logs",
        }
    }
}

/// How what is exported is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gathering {
    /// How many may wait.
    pub queue: usize,
    /// How many go with one export.
    pub batch: usize,
    /// How long one waits for others to be exported with.
    pub delay: Duration,
}

/// What is in force: the settings with what the standard variables say instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exports {
    /// Where spans are sent to, if they are.
    pub traces: Option<SignalTarget>,
    /// Where metrics are pushed to, if they are.
    pub metrics: Option<SignalTarget>,
    /// Where log records are sent to, if they are.
    pub logs: Option<SignalTarget>,
    /// Time between two pushes of metrics.
    pub metrics_interval: Duration,
    /// How spans are gathered.
    pub spans: Gathering,
    /// How log records are gathered.
    pub records: Gathering,
    /// Which spans are kept, at the start.
    pub sampling: Sampling,
    /// Traces of calls and lifecycles that the ratio may keep in a second; `None` where the environment says how is sampled.
    pub max_traces_per_second: Option<u32>,
    /// Whether the flag `sampled` of a caller counts.
    pub follows_parent: bool,
    /// Spans that wait until it is known whether they are kept.
    pub max_undecided: usize,
    /// Name of the service, where the environment gives one.
    pub service: Option<String>,
    /// Attributes of everything that is exported, from the environment.
    pub attributes: Vec<(String, String)>,
}

impl Exports {
    /// What is in force with these settings, where `variable` reads the environment.
    ///
    /// # Errors
    /// [`VariableProblem`]: a variable cannot be used.
    pub fn resolve(config: &ExportConfig, variable: impl Fn(&str) -> Option<String>) -> Result<Self, VariableProblem> {
        let vars = Variables(&variable);
        let disabled = vars.get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let target = |signal, wanted: bool| {
            if disabled { Ok(None) } else { vars.target(config, signal, wanted) }
        };
        let attributes = vars.pairs("OTEL_RESOURCE_ATTRIBUTES")?.unwrap_or_default();
        let sampler = vars.sampler(config.sample_ratio)?;
        Ok(Self {
            traces: if sampler.is_some() { target(Signal::Traces, config.traces)? } else { None },
            metrics: target(Signal::Metrics, config.metrics)?,
            logs: target(Signal::Logs, config.logs)?,
            metrics_interval: vars.millis("OTEL_METRIC_EXPORT_INTERVAL")?.unwrap_or(config.metrics_interval),
            spans: vars.gathering("BSP", config.max_spans, DELAY)?,
            records: vars.gathering("BLRP", config.max_logs, LOG_DELAY)?,
            sampling: Sampling { ratio: sampler.map_or(Ratio::NONE, |(ratio, _)| ratio), slow: config.sample_slow },
            max_traces_per_second: match vars.get("OTEL_TRACES_SAMPLER") {
                Some(_) => None,
                None => Some(config.max_traces_per_second),
            },
            follows_parent: sampler.is_none_or(|(_, follows_parent)| follows_parent),
            max_undecided: config.max_undecided,
            service: vars.get("OTEL_SERVICE_NAME"),
            attributes,
        })
    }
}

/// Spans of one export, and how long one waits for others, unless the environment says otherwise: the specification's defaults.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(5);
const LOG_DELAY: Duration = Duration::from_secs(1);

struct Variables<'a, F>(&'a F);

impl<F: Fn(&str) -> Option<String>> Variables<'_, F> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A setting of OTLP: that of the signal, or that of all.
    fn otlp(&self, signal: Signal, field: &str) -> Option<(String, String)> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{field}", signal.variable());
        let all = format!("OTEL_EXPORTER_OTLP_{field}");
        [own, all].into_iter().find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn target(
        &self,
        config: &ExportConfig,
        signal: Signal,
        wanted: bool,
    ) -> Result<Option<SignalTarget>, VariableProblem> {
        let exporter = format!("OTEL_{}_EXPORTER", signal.variable());
        let wanted = match self.get(&exporter).as_deref() {
            None => wanted,
            Some("otlp") => true,
            Some("none") => false,
            Some(_) => return Err(problem(&exporter, "must be `otlp` or `none`")),
        };
        let protocol = match self.otlp(signal, "PROTOCOL") {
            None => config.protocol,
            Some((_, text)) if text == "grpc" => OtlpProtocol::Grpc,
            Some((_, text)) if text == "http/protobuf" => OtlpProtocol::Http,
            Some((name, _)) => return Err(problem(&name, "must be `grpc` or `http/protobuf`")),
        };
        let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.variable());
        let (place, base, whole) = match (self.get(&own), self.get(ENDPOINT)) {
            (Some(whole), _) => (own, whole, true),
            (None, Some(base)) => (ENDPOINT.to_owned(), base, false),
            (None, None) => (String::new(), config.endpoint.clone(), false),
        };
        if !wanted || base.is_empty() {
            return Ok(None);
        }
        if !is_endpoint(&base) {
            return Err(problem(&place, ENDPOINT_RULE));
        }
        // As the specification has it: the address for all signals is one to which each adds its path.
        let endpoint = match protocol {
            OtlpProtocol::Http if !whole => format!("{}/{}", base.trim_end_matches('/'), signal.path()),
            _ => base,
        };
        let compression = match self.otlp(signal, "COMPRESSION") {
            None => config.compression,
            Some((_, text)) if text == "gzip" => Compression::Gzip,
            Some((_, text)) if text == "none" => Compression::None,
            Some((name, _)) => return Err(problem(&name, "must be `gzip` or `none`")),
        };
        let headers = match self.otlp(signal, "HEADERS") {
            None => config.headers.clone(),
            Some((name, _)) => Headers(self.pairs(&name)?.unwrap_or_default().into_iter().collect()),
        };
        let timeout = match self.otlp(signal, "TIMEOUT") {
            None => config.timeout,
            Some((name, _)) => self.millis(&name)?.unwrap_or(config.timeout),
        };
        let file =
            |field, ours: &PathBuf| self.otlp(signal, field).map_or_else(|| ours.clone(), |(_, text)| text.into());
        let tls = [
            file("CERTIFICATE", &config.ca),
            file("CLIENT_CERTIFICATE", &config.cert),
            file("CLIENT_KEY", &config.key),
        ];
        Ok(Some(SignalTarget { endpoint, protocol, headers, compression, timeout, tls }))
    }

    /// The variables of a processor.
    fn gathering(&self, processor: &str, queue: usize, delay: Duration) -> Result<Gathering, VariableProblem> {
        let name = |setting: &str| format!("OTEL_{processor}_{setting}");
        let queue = self.number(&name("MAX_QUEUE_SIZE"))?.unwrap_or(queue).clamp(1, 1_000_000);
        Ok(Gathering {
            queue,
            batch: self.number(&name("MAX_EXPORT_BATCH_SIZE"))?.unwrap_or(BATCH).clamp(1, queue),
            delay: self.millis(&name("SCHEDULE_DELAY"))?.unwrap_or(delay),
        })
    }

    /// The ratio, and whether the flag of a caller counts; `None` when nothing is to be exported.
    fn sampler(&self, ours: Ratio) -> Result<Option<(Ratio, bool)>, VariableProblem> {
        let by_argument = || {
            let text = self.get("OTEL_TRACES_SAMPLER_ARG");
            text.map_or(Ok(Ratio::ALL), |text| {
                text.parse().map_err(|error: NoRatio| problem("OTEL_TRACES_SAMPLER_ARG", &error.to_string()))
            })
        };
        Ok(Some(match self.get("OTEL_TRACES_SAMPLER").as_deref() {
            None => (ours, true),
            Some("always_on") => (Ratio::ALL, false),
            Some("always_off") => return Ok(None),
            Some("traceidratio") => (by_argument()?, false),
            Some("parentbased_always_on") => (Ratio::ALL, true),
            Some("parentbased_always_off") => (Ratio::NONE, true),
            Some("parentbased_traceidratio") => (by_argument()?, true),
            Some(_) => {
                return Err(problem(
                    "OTEL_TRACES_SAMPLER",
                    "must be `always_on`, `always_off` or `traceidratio`, alone or after `parentbased_`",
                ));
            }
        }))
    }

    fn number(&self, name: &str) -> Result<Option<usize>, VariableProblem> {
        self.get(name).map(|text| text.parse().map_err(|_| problem(name, "must be a whole number"))).transpose()
    }

    fn millis(&self, name: &str) -> Result<Option<Duration>, VariableProblem> {
        match self.number(name)? {
            None => Ok(None),
            Some(ms @ 1..=3_600_000) => Ok(Some(Duration::from_millis(ms as u64))),
            Some(_) => Err(problem(name, "must be 1 to 3600000 milliseconds")),
        }
    }

    /// `name=value` pairs, separated by commas, with percent-encoded values.
    fn pairs(&self, name: &str) -> Result<Option<Vec<(String, String)>>, VariableProblem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let pair = |(at, pair): (usize, &str)| {
            let odd = || problem(name, &format!("entry {} must be NAME=VALUE, percent-encoded", at + 1));
            let (key, value) = pair.split_once('=').ok_or_else(odd)?;
            let value = percent_decoded(value.trim()).ok_or_else(odd)?;
            Ok((key.trim().to_owned(), value))
        };
        text.split(',').filter(|pair| !pair.trim().is_empty()).enumerate().map(pair).collect::<Result<_, _>>().map(Some)
    }
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

fn problem(variable: &str, text: &str) -> VariableProblem {
    let variable = if variable.is_empty() { "telemetry.endpoint" } else { variable };
    VariableProblem { variable: variable.to_owned(), problem: text.to_owned() }
}

/// Text with each `%41` replaced by its byte; `None` when that is no text.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(config: &ExportConfig, variables: &[(&str, &str)]) -> Result<Exports, VariableProblem> {
        Exports::resolve(config, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn at(endpoint: &str) -> ExportConfig {
        ExportConfig { endpoint: endpoint.to_owned(), ..ExportConfig::default() }
    }

    #[test]
    fn nothing_is_exported_without_an_address() {
        let exports = resolved(&ExportConfig::default(), &[]).expect("fine");
        assert_eq!((exports.traces, exports.metrics), (None, None));
        let off = [("OTEL_SDK_DISABLED", "TRUE")];
        assert_eq!(resolved(&at("http://c:4317"), &off).expect("fine").traces, None);
        let one = [("OTEL_METRICS_EXPORTER", "none")];
        let exports = resolved(&at("http://c:4317"), &one).expect("fine");
        assert!(exports.traces.is_some() && exports.metrics.is_none());
        let one = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317")];
        let exports = resolved(&ExportConfig::default(), &one).expect("fine");
        assert!(exports.traces.is_some() && exports.metrics.is_none(), "only that signal has an address");
    }

    #[test]
    fn standard_variables_win_and_those_of_a_signal_over_those_of_all() {
        let mut config = at("http://ours:4317");
        config.headers.0.insert("x-ours".into(), "1".into());
        let exports = resolved(
            &config,
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:4318/base/"),
                ("OTEL_LOGS_EXPORTER", "otlp"),
                ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:1/m"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=y=z"),
                ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
                ("OTEL_METRIC_EXPORT_INTERVAL", ""),
                ("OTEL_RESOURCE_ATTRIBUTES", "team=core,k8s.pod.name=rug-0"),
            ],
        )
        .expect("fine");
        let (traces, metrics) = (exports.traces.expect("on"), exports.metrics.expect("on"));
        assert_eq!(traces.endpoint, "https://all:4318/base/v1/traces");
        assert_eq!(metrics.endpoint, "http://metrics:1/m", "a signal's own address is taken as it is");
        assert_eq!((traces.compression, metrics.compression), (Compression::Gzip, Compression::None));
        assert_eq!((traces.protocol, traces.timeout), (OtlpProtocol::Http, Duration::from_millis(250)));
        let headers: Vec<_> = traces.headers.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(headers, [("api-key", "a b"), ("x", "y=z")]);
        assert_eq!(traces.tls[0], PathBuf::from("/ca.pem"));
        assert_eq!((exports.spans.queue, exports.spans.batch), (100, 100), "no export is larger than the queue");
        assert_eq!((exports.records.queue, exports.records.delay), (16_384, LOG_DELAY));
        assert_eq!(exports.logs.expect("on").endpoint, "https://all:4318/base/v1/logs");
        assert_eq!(exports.metrics_interval, config.metrics_interval, "an empty variable is none");
        assert_eq!(exports.attributes.len(), 2);
        assert!(!format!("{traces:?}").contains("a b"), "values of headers are never shown");
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name_and_not_quoted() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@c:1"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "secret:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://secret:99999"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]:0"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json-secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zzsecret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "secret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "secret"),
            ("OTEL_TRACES_EXPORTER", "secret"),
            ("OTEL_TRACES_SAMPLER", "secret"),
        ] {
            let error = resolved(&at("http://c:1"), &[(name, value)]).expect_err(value).to_string();
            assert!(error.starts_with(&format!("{name}: ")) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_standard_samplers_are_understood() {
        let config = ExportConfig { sample_ratio: Ratio::NONE, ..at("http://c:1") };
        let argument = ("OTEL_TRACES_SAMPLER_ARG", "0.5");
        for (sampler, ratio, follows_parent) in [
            ("", 0.0, true),
            ("always_on", 1.0, false),
            ("traceidratio", 0.5, false),
            ("parentbased_always_on", 1.0, true),
            ("parentbased_always_off", 0.0, true),
            ("parentbased_traceidratio", 0.5, true),
        ] {
            let exports = resolved(&config, &[("OTEL_TRACES_SAMPLER", sampler), argument]).expect("fine");
            assert_eq!((exports.sampling.ratio.get(), exports.follows_parent), (ratio, follows_parent), "{sampler}");
            assert!(exports.traces.is_some());
        }
        assert_eq!(resolved(&config, &[]).expect("fine").max_traces_per_second, Some(100));
        let all = resolved(&config, &[("OTEL_TRACES_SAMPLER", "always_on")]).expect("fine");
        assert_eq!(all.max_traces_per_second, None, "always means always");
        let off = resolved(&config, &[("OTEL_TRACES_SAMPLER", "always_off")]).expect("fine");
        assert!(off.traces.is_none() && off.metrics.is_some());
        let odd = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2secret")];
        let error = resolved(&config, &odd).expect_err("no ratio").to_string();
        assert_eq!(error, "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1");
    }

    #[test]
    fn settings_are_checked() {
        let bad = ExportConfig {
            endpoint: "c:1".into(),
            timeout: Duration::ZERO,
            metrics_interval: Duration::ZERO,
            max_spans: 0,
            max_logs: 0,
            max_traces_per_second: 1_000_001,
            sample_slow: Duration::ZERO,
            max_undecided: 0,
            cert: "/c".into(),
            headers: Headers(BTreeMap::from([("A b".into(), "x".into())])),
            ..ExportConfig::default()
        };
        let fields: Vec<_> = bad.validate().into_iter().map(|v| v.field).collect();
        let wrong = [
            "endpoint",
            "timeout",
            "metrics_interval",
            "max_spans",
            "max_logs",
            "max_traces_per_second",
            "sample_slow",
            "max_undecided",
            "cert",
            "headers",
        ];
        assert_eq!(fields, wrong);
        for good in ["https://c:4317", "http://[::1]:4317", "http://[::1]", "https://c/base/", "http://10.0.0.1:1/x:y"]
        {
            assert_eq!(at(good).validate(), [], "{good}");
        }
    }
}
