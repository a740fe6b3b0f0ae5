//! A rebalance as OTLP JSON, for backends that saw nothing of it: the spans that can be made from the history, with the ids that
//! were exported where they are known.
//!
//! Source of the form: the JSON encoding of OTLP (opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding"): ids in
//! hexadecimal digits, 64-bit numbers as texts.

use std::collections::BTreeMap;
use std::time::SystemTime;

use common::ApplianceId;
use proto::admin::v1;
use runtime::telemetry::{RebalanceTrace, SpanName};
use serde_json::{Value, json};

use super::Waterfall;
use crate::error::Failure;

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;

/// Spans by the process they are of: program and name.
type ByProcess = BTreeMap<(&'static str, String), Vec<Value>>;

fn nanos(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attributes(of: &[(&str, &str)]) -> Value {
    let known = of.iter().filter(|(_, value)| !value.is_empty());
    known.map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } })).collect()
}

fn span(trace: RebalanceTrace, of: SpanName, [start, end]: [SystemTime; 2], attributes: &Value) -> Value {
    let mut span = json!({
        "traceId": trace.to_string(),
        "spanId": trace.span_id(of),
        "name": of.name(),
        "kind": INTERNAL,
        "startTimeUnixNano": nanos(start),
        "endTimeUnixNano": nanos(end.max(start)),
        "attributes": attributes,
    });
    if let Some(parent) = of.parent() {
        span["parentSpanId"] = trace.span_id(parent).into();
    }
    span
}

/// The document.
pub(in crate::commands::rebalance) fn render(rebalance: &v1::Rebalance) -> Result<String, Failure> {
    let time = |t: Option<prost_types::Timestamp>| t.and_then(|t| SystemTime::try_from(t).ok());
    let Some(trace) = RebalanceTrace::parse(&rebalance.trace_id) else {
        return Err(Failure::failed(format!("rebalance {} has no trace id", rebalance.id)));
    };
    let (Some(start), Some(end)) = (time(rebalance.start_time), time(rebalance.end_time)) else {
        return Err(Failure::failed(format!(
            "rebalance {} still runs; its spans are known once it has ended",
            rebalance.id
        )));
    };
    let mut spans = ByProcess::new();
    let leader = ("rug-coordinator", String::new());
    let (moves, done) = (rebalance.moves.to_string(), rebalance.moves_done.to_string());
    let root = attributes(&[
        ("rebalance", &rebalance.id),
        ("cause", &rebalance.cause),
        ("outcome", &rebalance.outcome),
        ("moves", &moves),
        ("moves_done", &done),
    ]);
    spans.entry(leader.clone()).or_default().push(span(trace, SpanName::Rebalance, [start, end], &root));
    for it in rebalance.r#move.iter().filter_map(Waterfall::new) {
        let Ok(appliance) = it.moved.appliance.parse::<ApplianceId>() else { continue };
        let [began, released, granted, owned, adopted] = it.at;
        let name = it.moved.appliance.as_str();
        let of_it = attributes(&[("appliance", name), ("from", &it.moved.from), ("to", &it.moved.to)]);
        let of_leader = spans.entry(leader.clone()).or_default();
        of_leader.push(span(trace, SpanName::HandOff(appliance), [began, adopted], &of_it));
        if granted > released {
            of_leader.push(span(trace, SpanName::Commit(appliance), [released, granted], &json!([])));
        }
        let mut of_worker = |worker: &str, of: SpanName, times: [SystemTime; 2]| {
            let about = attributes(&[("appliance", name), ("worker", worker)]);
            spans.entry(("rug-worker", worker.to_owned())).or_default().push(span(trace, of, times, &about));
        };
        if released > began {
            of_worker(&it.moved.from, SpanName::Release(appliance), [began, released]);
        }
        if adopted > owned {
            of_worker(&it.moved.to, SpanName::Adopt(appliance), [granted, adopted]);
        }
    }
    let resources: Vec<Value> = spans
        .into_iter()
        .map(|((program, instance), spans)| {
            let of = attributes(&[
                ("service.name", program),
                ("service.namespace", "rug"),
                ("service.instance.id", &instance),
            ]);
            json!({
                "resource": { "attributes": of },
                "scopeSpans": [{ "scope": { "name": "rug" }, "spans": spans }],
            })
        })
        .collect();
    let document = json!({ "resourceSpans": resources });
    serde_json::to_string(&document).map_err(|error| Failure::failed(format!("write JSON: {error}")))
}
