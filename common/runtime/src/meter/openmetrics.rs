//! The OpenMetrics text format, version 1.0.0: what Prometheus asks for first, and the only text format with exemplars. The crate
//! `prometheus` writes the older format alone.
//!
//! The same series as there, except that bounds of buckets are written as OpenMetrics has them: `le="1.0"`, not `le="1"`.

use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::{self, Exemplar};

/// Its media type.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a scraper takes it.
pub(super) fn is_accepted(accept: &str) -> bool {
    accept.split(',').any(|part| part.trim_start().starts_with("application/openmetrics-text"))
}

/// Writes families of metrics, as [`prometheus::Registry::gather`] has them.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        encode_family(&mut text, family);
    }
    text.push_str("# EOF\n");
    text
}

fn encode_family(text: &mut String, family: &MetricFamily) {
    let (sample, kind) = (family.name(), family.get_field_type());
    let (name, kind_name) = match kind {
        MetricType::COUNTER => (sample.strip_suffix("_total").unwrap_or(sample), "counter"),
        MetricType::GAUGE => (sample, "gauge"),
        MetricType::HISTOGRAM => (sample, "histogram"),
        // No instrument makes them.
        MetricType::SUMMARY | MetricType::UNTYPED => return,
    };
    let _ = writeln!(text, "# TYPE {name} {kind_name}");
    if !family.help().is_empty() {
        let _ = writeln!(text, "# HELP {name} {}", escaped(family.help()));
    }
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match kind {
            MetricType::COUNTER => line(text, name, "_total", labels, None, metric.get_counter().get_value(), None),
            MetricType::GAUGE => line(text, name, "", labels, None, metric.get_gauge().get_value(), None),
            _ => encode_histogram(text, name, metric),
        }
    }
}

fn encode_histogram(text: &mut String, name: &str, metric: &Metric) {
    let (labels, histogram) = (metric.get_label(), metric.get_histogram());
    let traces = exemplars::of_series(name, labels).unwrap_or_default();
    let of = |bucket: usize| traces.get(bucket).and_then(Option::as_ref);
    let finite: Vec<_> = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()).collect();
    for (at, bucket) in finite.iter().enumerate() {
        let bound = number(bucket.upper_bound());
        line(text, name, "_bucket", labels, Some(&bound), bucket.cumulative_count() as f64, of(at));
    }
    let count = histogram.get_sample_count() as f64;
    line(text, name, "_bucket", labels, Some("+Inf"), count, of(finite.len()));
    line(text, name, "_count", labels, None, count, None);
    line(text, name, "_sum", labels, None, histogram.get_sample_sum(), None);
}

fn line(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[LabelPair],
    bound: Option<&str>,
    value: f64,
    exemplar: Option<&Exemplar>,
) {
    text.push_str(name);
    text.push_str(suffix);
    let pairs = labels.iter().map(|label| (label.name(), label.value())).chain(bound.map(|bound| ("le", bound)));
    for (at, (name, value)) in pairs.enumerate() {
        let _ = write!(text, "{}{name}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(value));
    }
    if !labels.is_empty() || bound.is_some() {
        text.push('}');
    }
    let _ = write!(text, " {value}");
    if let Some(Exemplar { value, trace, time }) = exemplar {
        let _ = write!(text, " # {{trace_id=\"{}\"", trace.trace);
        if !trace.span.is_empty() {
            let _ = write!(text, ",span_id=\"{}\"", trace.span);
        }
        let _ = write!(text, "}} {value}");
        if let Ok(time) = time.duration_since(UNIX_EPOCH) {
            let _ = write!(text, " {:.3}", time.as_secs_f64());
        }
    }
    text.push('\n');
}

/// A bound as OpenMetrics has it: never without a point.
fn number(bound: f64) -> String {
    format!("{bound:?}")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;
    use crate::meter::catalogue::{Label, Metric, Unit};
    use crate::meter::exemplars::{TraceRef, TracedHistogram};
    use crate::meter::tests::meters;

    static CALLS: Metric =
        Metric::counter("test.calls", Unit::Things("{call}"), "Calls \"so far\".").by(&[Label::fixed("code", &["ok"])]);
    static GAP: Metric = Metric::histogram("test.gap", Unit::Seconds, &[0.005, 1.0], "A gap.")
        .by(&[Label::fixed("why", &["move"])])
        .with_exemplars();

    #[test]
    fn the_newest_trace_of_each_bucket_is_named() {
        let meters = meters();
        CALLS.count(&meters.meter()).add(3, &[KeyValue::new("code", "ok")]);
        let gap = TracedHistogram::new(&GAP, &meters.meter());
        let why = [KeyValue::new("why", "move")];
        let trace = |n: u8| Some(TraceRef { trace: format!("{n:032x}"), span: format!("{n:016x}") });
        gap.record(0.005, &why, trace(1));
        gap.record(0.5, &why, trace(2));
        gap.record(0.25, &why, trace(3));
        gap.record(0.125, &why, None);
        gap.record(2.0, &why, TraceRef::of_trace("ab"));
        let text = encode(&meters.families());
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        has("# TYPE test_calls counter");
        has("# HELP test_calls Calls \\\"so far\\\".");
        has("test_calls_total{code=\"ok\"} 3");
        has("# TYPE test_gap_seconds histogram");
        has("test_gap_seconds_count{why=\"move\"} 5");
        has("test_gap_seconds_sum{why=\"move\"} 2.88");
        let begins = |start: &str| {
            let start = start.to_owned();
            assert!(text.lines().any(|found| found.starts_with(&start)), "no {start} in\n{text}");
        };
        begins(&format!(
            "test_gap_seconds_bucket{{why=\"move\",le=\"0.005\"}} 1 # {{trace_id=\"{:032x}\",span_id=\"{:016x}\"}} 0.005 ",
            1, 1
        ));
        begins(&format!("test_gap_seconds_bucket{{why=\"move\",le=\"1.0\"}} 4 # {{trace_id=\"{:032x}\"", 3));
        begins("test_gap_seconds_bucket{why=\"move\",le=\"+Inf\"} 5 # {trace_id=\"ab\"} 2 ");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert!(is_accepted(prometheus));
        assert!(!is_accepted("text/plain;version=0.0.4") && !is_accepted("*/*") && !is_accepted(""));
    }
}
